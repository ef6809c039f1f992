"""Peers for the tests of the async pool: a network in memory, and real sockets by way of anyio, whatever loop runs.

In memory every operation of the backend is one checkpoint at least, whose number does not depend on any luck; what is
opened and closed is counted. The server answers each request with its target, which the tests make a different one
each time: a byte of another response would be seen.
"""

from __future__ import annotations

import re
import ssl
import sys
from typing import TYPE_CHECKING, Any

import anyio

from lamina_interfaces import (
    AsyncInterruptibleWriter,
    AsyncNetworkBackend,
    AsyncNetworkStream,
    ConcurrencyError,
    ConnectError,
    Limit,
    PromptCloser,
    ReadError,
    WriteError,
    current_runtime,
    running_runtime,
)
from lamina_interfaces.tls import TLSEngine
from pool_loopback import response, target_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lamina_interfaces import BytesLike
    from lamina_interfaces._runtimes import Event

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


async def checkpoint() -> None:
    """Suspend once, and be cancelled here if one is to be."""
    if running_runtime() == "trio":
        await sys.modules["trio"].lowlevel.checkpoint()
    else:
        await sys.modules["asyncio"].sleep(0)


async def checkpoints(number: int) -> None:
    for _ in range(number):
        await checkpoint()


def echo(stream: MemoryStream, head: bytes, body: bytes) -> None:
    """A server that answers with the target."""
    stream.feed(response(target_of(head)))


def silent(stream: MemoryStream, head: bytes, body: bytes) -> None:
    """A server that never answers."""


def nothing(*arguments: object) -> None:
    """What the hooks of a backend do unless a test has them do something."""


def reflect(stream: MemoryStream, data: bytes) -> None:
    """A server that, after a switch of protocols, says everything louder."""
    if stream.is_raw:
        stream.feed(data.upper())


async def never(host: str, limit: Limit) -> None:
    """A peer that does not answer the call."""
    event = current_runtime().create_event()
    while True:
        await event.wait(limit.glance())
        limit.check()


class ServerTLS:
    """The server's side of a TLS connection, without I/O."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._is_done = False

    def receive(self, ciphertext: bytes) -> bytes:
        """What the client has said, in clear."""
        self._incoming.write(ciphertext)
        plain = bytearray()
        try:
            if not self._is_done:
                self._ssl.do_handshake()
                self._is_done = True
            while piece := self._ssl.read(65536):
                plain += piece
        except ssl.SSLWantReadError:
            pass
        return bytes(plain)

    def send(self, plaintext: bytes) -> bytes:
        if plaintext:
            self._ssl.write(plaintext)
        return self._outgoing.read()


class MemoryStream(AsyncNetworkStream):
    """One connection in memory. What is written is cut into requests, each of which is given to `backend.answer`.

    Attributes:
        requests: what has come whole, head and body together.
        heard: what came that was not yet cut into requests; `backend.hear` is told of each piece.
        stalls: whether the peer takes nothing more.
        reads: how many have been begun.
    """

    def __init__(self, backend: MemoryBackend, number: int) -> None:
        self.backend = backend
        self.number = number
        self.requests: list[bytes] = []
        self.heard = bytearray()
        self.stalls = False
        self.reads = 0
        self.is_closed = False
        self.was_aborted = False
        self.closings: list[str] = []
        self.tls: list[str | None] = []
        self.is_raw = False  # after a switch of protocols nothing is cut any more
        self._incoming = bytearray()
        self._has_ended = False
        self._is_broken = False
        self._engine: TLSEngine | None = None
        self._server: ServerTLS | None = None
        self._waiting: dict[str, Event] = {}
        self._runtime = current_runtime()  # which it belongs to, as a socket's stream does
        backend.open_streams.add(self)
        backend.peak = max(backend.peak, backend.live)

    # --- the peer's side

    def feed(self, data: bytes) -> None:
        if self._server is not None and self._engine is not None:
            self._engine.feed(self._server.send(data))
        else:
            self._incoming += data
        self._wake()

    def feed_eof(self) -> None:
        self._has_ended = True
        if self._engine is not None:
            self._engine.feed_eof()
        self._wake()

    def break_off(self) -> None:
        """As after a reset: writing fails, and so does reading."""
        self._is_broken = True
        self._wake()

    def unstall(self) -> None:
        self.stalls = False
        self._wake()

    def _wake(self) -> None:
        for event in list(self._waiting.values()):
            event.set()

    def _hear(self, data: bytes) -> None:
        self.heard += data
        self.backend.hear(self, bytes(data))
        while not self.is_raw:
            end = self.heard.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.heard[: end + 4])
            length = _LENGTH.search(head)
            size = len(head) + (int(length.group(1)) if length else 0)
            if b"chunked" in head.lower():
                tail = self.heard.find(b"0\r\n\r\n", len(head))
                if tail < 0:
                    return
                size = tail + 5
            if len(self.heard) < size:
                return
            body = bytes(self.heard[len(head) : size])
            del self.heard[:size]
            self.requests.append(head + body)
            self.backend.answer(self, head, body)

    # --- our side

    async def _step(self, name: str, limit: Limit) -> None:
        if not self._runtime.is_here() and not self.is_closed:
            raise RuntimeError("the stream belongs to another event loop")
        await self.backend.step(name, limit)

    async def _wait(self, direction: str, limit: Limit) -> None:
        """Until something has changed, or the limit is over."""
        if direction in self._waiting:
            raise ConcurrencyError(f"another task is at work in this stream: {direction}")
        self._waiting[direction] = event = current_runtime().create_event()
        try:
            if not await event.wait(limit.glance()):
                limit.check()
        except BaseException:
            limit.interrupted()
            raise
        finally:
            del self._waiting[direction]

    def _take(self, max_bytes: int) -> bytes | None:
        if self._engine is not None:
            return self._engine.read(max_bytes)
        if self._incoming:
            data = bytes(self._incoming[:max_bytes])
            del self._incoming[: len(data)]
            return data
        return b"" if self._has_ended else None

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        limit = Limit(timeout, current_runtime().now, "read")
        limit.check()
        self.reads += 1
        await self._step("read", limit)
        while True:
            if self.is_closed:
                raise ReadError("the stream is closed", phase="read")
            if (data := self._take(min(max_bytes or 65536, self.backend.read_size))) is not None:
                return data
            if self._is_broken:
                raise ReadError("the connection was reset", phase="read")
            await self._wait("read", limit)

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        await self._write(buffer, timeout, watches=False)

    async def _write(self, buffer: BytesLike, timeout: float | None, *, watches: bool) -> int:
        limit = Limit(timeout, current_runtime().now, "write")
        limit.check()
        rest, sent = memoryview(buffer), 0
        while rest:
            if watches and self.get_extra_info("is_readable"):
                break
            await self._step("write", limit)
            while self.stalls and not self.is_closed and not self._is_broken:
                await self._wait("write", limit)
                if watches and self.get_extra_info("is_readable"):
                    return sent
            if self.is_closed or self._is_broken:
                raise WriteError("the stream is closed", phase="write")
            piece, rest = bytes(rest[: self.backend.write_size]), rest[self.backend.write_size :]
            sent += len(piece)
            self._send(piece)
        return sent

    def _send(self, data: bytes) -> None:
        if self._engine is not None and self._server is not None:
            self._engine.write(data)
            data = self._server.receive(self._engine.take())
        self._hear(data)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        limit = Limit(timeout, current_runtime().now, "tls")
        self.tls.append(server_hostname)
        try:
            limit.check()
            await self._step("start_tls", limit)
            if self.backend.server_context is None:
                while not self.is_closed:
                    await self._wait("tls", limit)
                raise ConnectError("the stream was closed", phase="tls")
            server = ServerTLS(self.backend.server_context)
            engine = TLSEngine(ssl_context, server_hostname)
            while not engine.handshake():
                server.receive(engine.take())
                await self._step("handshake", limit)
                engine.feed(server.send(b""))
            server.receive(engine.take())
            engine.feed(server.send(b""))
        except BaseException:
            self.abort()
            raise
        self._engine, self._server = engine, server
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            is_ready = self._has_ended or self._is_broken or self.is_closed
            return is_ready or (self._engine.readable() if self._engine is not None else bool(self._incoming))
        if info == "ssl_object" and self._engine is not None:
            return self._engine.ssl_object
        return None

    async def aclose(self) -> None:
        self._close("aclose")

    def close_now(self) -> None:
        self._close("close_now")

    def abort(self) -> None:
        self.was_aborted |= not self.is_closed
        self._close("abort")

    def _close(self, how: str) -> None:
        self.closings.append(how)
        self.is_closed = True
        self.backend.open_streams.discard(self)
        self._wake()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number} [{'closed' if self.is_closed else 'open'}]>"


class WatchfulStream(MemoryStream, AsyncInterruptibleWriter, PromptCloser):
    """A stream with all the abilities of lamina's own."""

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        return await self._write(buffer, timeout, watches=True)


class CustomStream(AsyncNetworkStream):
    """A wrapper that knows only what the contract asks of everybody: no `abort`, no `close_now`.

    It ignores time limits, and is closed only when `aclose` has come to its end.
    """

    def __init__(self, stream: MemoryStream) -> None:
        self.inner = stream
        self.closings = 0

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        return await self.inner.read(max_bytes)

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        await self.inner.write(buffer)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        return CustomStream(await self.inner.start_tls(ssl_context, server_hostname))  # type: ignore[arg-type] # itself

    def get_extra_info(self, info: str) -> Any:
        return self.inner.get_extra_info(info)

    async def aclose(self) -> None:
        self.closings += 1
        await self.inner.backend.on_aclose(self)
        await self.inner.aclose()


async def _two_checkpoints(stream: CustomStream) -> None:
    await checkpoints(2)


class MemoryBackend(AsyncNetworkBackend):
    """Counts what is open, and answers each request with its own target unless `answer` is replaced.

    Args:
        answer: what the server does with a request.
        kind: of the streams that are given out.
        server_context: with which the server speaks TLS; without one its handshakes hang.

    Attributes:
        streams: all that were opened, in order.
        open_streams: those that are open now; `peak`: how many were at most.
        steps: what was done by the backend and its streams, in order.
        fail_at: the number of the step that raises what `fault` makes of its name.
    """

    def __init__(
        self,
        answer: Callable[[MemoryStream, bytes, bytes], object] = echo,
        *,
        kind: Callable[[MemoryBackend, int], MemoryStream] = WatchfulStream,
        wrap: Callable[[MemoryStream], AsyncNetworkStream] | None = None,
        server_context: ssl.SSLContext | None = None,
    ) -> None:
        self.streams: list[MemoryStream] = []
        self.wrapped: list[AsyncNetworkStream] = []
        self.open_streams: set[MemoryStream] = set()
        self.calls: list[tuple[Any, ...]] = []
        self.steps: list[str] = []
        self.sleeps: list[float] = []
        self.peak = 0
        self.fail_at = 0
        self.fault: Callable[[str], BaseException] = RuntimeError
        self.kind = kind
        self.wrap = wrap
        self.server_context = server_context
        self.answer = answer
        self.read_size = self.write_size = 1 << 30
        # Replaced by tests.
        self.hear: Callable[[MemoryStream, bytes], object] = nothing
        self.on_connect: Callable[[str, Limit], Any] | None = None
        self.on_aclose: Callable[[CustomStream], Any] = _two_checkpoints

    @property
    def live(self) -> int:
        return len(self.open_streams)

    def note(self, name: str) -> None:
        """A step is taken, or the fault is raised that is due."""
        self.steps.append(name)
        if len(self.steps) == self.fail_at:
            raise self.fault(name)

    async def step(self, name: str, limit: Limit) -> None:
        """One checkpoint, or the fault that is due."""
        self.note(name)
        try:
            await checkpoint()
        except BaseException:
            limit.interrupted()
            raise
        limit.check()

    async def _open(self, host: str, timeout: float | None) -> AsyncNetworkStream:
        limit = Limit(timeout, current_runtime().now, "connect")
        limit.check()
        await self.step("connect", limit)
        if self.on_connect is not None:
            try:
                await self.on_connect(host, limit)
            except BaseException:
                limit.interrupted()
                raise
        stream = self.kind(self, len(self.streams))
        self.streams.append(stream)
        if self.wrap is None:
            return stream
        self.wrapped.append(self.wrap(stream))
        return self.wrapped[-1]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        self.calls.append(("connect_tcp", host, port, timeout, local_address, socket_options))
        return await self._open(host, timeout)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> AsyncNetworkStream:
        self.calls.append(("connect_unix_socket", path, timeout, socket_options))
        return await self._open(path, timeout)

    async def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        await self.step("sleep", Limit(None, current_runtime().now, "connect"))
        await super().sleep(seconds)


class AnyIOStream(AsyncNetworkStream):
    """A socket by way of anyio, wrapped as anybody would: it knows no time limits, and closes only by waiting."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        try:
            return await self._stream.receive(max_bytes or 65536)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise ReadError(str(error) or "broken", phase="read") from error

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        try:
            await self._stream.send(bytes(buffer))
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise WriteError(str(error) or "broken", phase="write") from error

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            sock = self._stream.extra(anyio.abc.SocketAttribute.raw_socket)
            sock.setblocking(False)
            try:
                return not sock.recv(1, 2) or True  # 2: MSG_PEEK
            except BlockingIOError:
                return False
            except OSError:
                return True
        return None

    async def aclose(self) -> None:
        await self._stream.aclose()


class AnyIOBackend(AsyncNetworkBackend):
    """TCP by way of anyio."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncNetworkStream:
        try:
            return AnyIOStream(await anyio.connect_tcp(host, port))
        except OSError as error:
            raise ConnectError(str(error), phase="connect", errno=error.errno) from error
