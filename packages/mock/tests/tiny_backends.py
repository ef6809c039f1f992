"""Small streams and backends that keep their contracts, for the mutants of the conformance tests to be made of."""

from __future__ import annotations

import asyncio
import select
import socket
from time import monotonic
from typing import Any

import trio

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    ArgumentValueError,
    AsyncNetworkBackendInterface,
    AsyncNetworkStreamInterface,
    ConcurrencyError,
    ConnectAttempt,
    ConnectError,
    Limit,
    NetworkBackend,
    NetworkStream,
    ReadError,
    TimeoutException,
    WriteError,
    async_stream_from_interface,
    running_runtime,
)
from lamina_interfaces.sockets import check_read_buffer
from lamina_interfaces.tls import TLSEngine

GLANCE = 0.02
"""Seconds after which a wait looks whether the stream was closed meanwhile."""


opened: list[socket.socket] | None = None
"""The sockets of all streams, for tests of streams that do not close them."""


def _opened(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    if opened is not None:
        opened.append(sock)
    return sock


class TinyStream(NetworkStream):
    """A blocking stream over a socket, with TLS; it is a `PromptWriter` only without."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = _opened(sock)
        self.engine: TLSEngine | None = None
        self.broken = ""

    # --- what waits ------------------------------------------------------------------------------------------

    def wait(self, limit: Limit, *, to_read: bool) -> None:
        while self.sock.fileno() >= 0:
            glance = limit.glance()
            seconds = GLANCE if glance is None else min(glance, GLANCE)
            sockets = [self.sock]
            try:
                if any(select.select(sockets if to_read else [], [] if to_read else sockets, [], seconds)):
                    return
            except (OSError, ValueError):
                break  # closed in this moment
            limit.check()
        raise OSError("the stream is closed")

    def receive(self, size: int, limit: Limit) -> bytes:
        while True:
            try:
                return self.sock.recv(size)
            except BlockingIOError:
                self.wait(limit, to_read=True)

    def send(self, view: memoryview, limit: Limit) -> None:
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                self.wait(limit, to_read=False)

    def flush(self, limit: Limit) -> None:
        assert self.engine is not None
        self.send(memoryview(self.engine.take()), limit)

    def more(self, limit: Limit) -> None:
        assert self.engine is not None
        data = self.receive(DEFAULT_READ_SIZE, limit)
        if data:
            self.engine.feed(data)
        else:
            self.engine.feed_eof()

    # --- the contract ----------------------------------------------------------------------------------------

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        size = DEFAULT_READ_SIZE if max_bytes is None else max_bytes
        limit = Limit(timeout, monotonic, "read")
        limit.check()
        try:
            if self.sock.fileno() < 0:
                raise OSError("the stream is closed")
            if self.engine is None:
                return self.receive(size, limit)
            while (data := self.engine.read(size)) is None:
                self.flush(limit)
                self.more(limit)
            return data
        except (ReadError, TimeoutException):
            raise
        except OSError as error:
            raise ReadError(str(error), phase="read") from error

    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        with check_read_buffer(buffer) as view:
            data = self.read(len(view), timeout)
            view[: len(data)] = data
        return len(data)

    def write(self, buffer: Any, timeout: float | None = None) -> None:
        limit = Limit(timeout, monotonic, "write")
        limit.check()
        try:
            if self.sock.fileno() < 0:
                raise OSError("the stream is closed")
            with memoryview(buffer) as view, view.cast("B") as octets:
                for start in range(0, len(octets), DEFAULT_READ_SIZE):
                    with octets[start : start + DEFAULT_READ_SIZE] as piece:
                        self.send_piece(bytes(piece), limit)
        except (WriteError, TimeoutException):
            raise
        except OSError as error:
            raise WriteError(str(error), phase="write") from error

    def send_piece(self, piece: bytes, limit: Limit) -> None:
        if self.engine is None:
            self.send(memoryview(piece), limit)
        else:
            self.engine.write(piece)
            self.flush(limit)

    def write_now(self, buffer: Any) -> int:
        try:
            return self.sock.send(buffer)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise WriteError(str(error), phase="write") from error

    def wait_writable(self, timeout: float | None = None) -> None:
        limit = Limit(timeout, monotonic, "write")
        while not any(select.select([self.sock], [self.sock], [], GLANCE)):
            limit.check()

    @property
    def has_unsent(self) -> bool:
        return False

    def start_tls(
        self, ssl_context: Any, server_hostname: Any = None, timeout: float | None = None
    ) -> TinyStream:
        try:
            limit = Limit(timeout, monotonic, "tls")
            limit.check()
            self.handshake(TLSEngine(ssl_context, server_hostname, over=self.engine), limit)
        except OSError as error:
            self.close()
            if isinstance(error, ConnectError | TimeoutException):
                raise
            raise ConnectError(str(error), phase="tls") from error
        except BaseException:
            self.close()
            raise
        return self

    def handshake(self, engine: TLSEngine, limit: Limit) -> None:
        self.engine = engine
        while not engine.handshake():
            self.flush(limit)
            self.more(limit)
        self.flush(limit)

    def close(self) -> None:
        try:
            if self.engine is not None:
                self.engine.close()
                self.sock.send(self.engine.take())
        except OSError:
            pass
        finally:
            self.sock.close()

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "socket":
                return self.sock
            case "ssl_object" if self.engine is not None:
                return self.engine.ssl_object
            case "is_readable":
                return self.is_readable()
        return None

    def is_readable(self) -> bool:
        if self.sock.fileno() < 0:
            return True
        if self.engine is not None and self.engine.readable():
            return True
        if not select.select([self.sock], [], [], 0)[0]:
            return False
        if self.engine is None:
            return True
        self.more(Limit(None, monotonic, "read"))
        return self.engine.readable()


class TinyBackend(NetworkBackend):
    """Opens one kind of `TinyStream`."""

    def __init__(self, stream: type[TinyStream] = TinyStream) -> None:
        self.stream = stream

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> NetworkStream:
        if local_address or socket_options:
            raise ArgumentValueError("not here")
        if not 1 <= port <= 65535:
            raise ArgumentValueError(f"{port} is no port")
        limit = Limit(timeout, monotonic, "connect")
        limit.check()
        return self.stream(self.dial(host, port, limit))

    def dial(self, host: str, port: int, limit: Limit) -> socket.socket:
        try:
            return socket.create_connection((host, port), limit.remaining())
        except OSError as error:
            if not isinstance(error, TimeoutError):
                raise ConnectError(str(error), phase="connect") from error
            late = limit.error()
            late.attempts = (ConnectAttempt(f"{host}:{port}", None, 0.0),)
            raise late from None


class AsyncTinyStream(AsyncNetworkStreamInterface):
    """A stream over a socket, for asyncio and trio. In the second dialect, where limits are ambient."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = _opened(sock)
        self.waiting: dict[str, asyncio.Future[None]] = {}
        self.busy: set[str] = set()

    async def wait(self, what: str) -> None:
        if running_runtime() == "trio":
            await (trio.lowlevel.wait_readable if what == "read" else trio.lowlevel.wait_writable)(self.sock)
            return
        loop = asyncio.get_running_loop()
        self.waiting[what] = future = loop.create_future()
        (loop.add_reader if what == "read" else loop.add_writer)(self.sock, self.wake, what)
        try:
            await future
        finally:
            self.wake(what)

    def wake(self, what: str) -> None:
        future = self.waiting.pop(what, None)
        if future is not None:
            loop = asyncio.get_running_loop()
            (loop.remove_reader if what == "read" else loop.remove_writer)(self.sock)
            if not future.done():
                future.set_result(None)

    def enter(self, what: str) -> None:
        if what in self.busy:
            raise ConcurrencyError
        self.busy.add(what)

    async def read(self, max_bytes: int | None = None) -> bytes:
        self.enter("read")
        try:
            while True:
                try:
                    return self.sock.recv(max_bytes or DEFAULT_READ_SIZE)
                except BlockingIOError:
                    await self.wait("read")
        except (OSError, trio.ClosedResourceError) as error:
            if isinstance(error, TimeoutException):
                raise
            raise ReadError(str(error), phase="read") from error
        finally:
            self.busy.discard("read")

    async def write(self, data: bytes) -> None:
        self.enter("write")
        view = memoryview(data)
        try:
            if self.sock.fileno() < 0:
                raise OSError("the stream is closed")
            while view:
                try:
                    view = view[self.sock.send(view) :]
                except BlockingIOError:
                    await self.wait("write")
        except (OSError, trio.ClosedResourceError) as error:
            if isinstance(error, TimeoutException):
                raise
            raise WriteError(str(error), phase="write") from error
        finally:
            self.busy.discard("write")

    def abort(self) -> None:
        if self.sock.fileno() < 0:
            return
        if running_runtime() == "trio":
            trio.lowlevel.notify_closing(self.sock)
        else:
            self.wake("read")
            self.wake("write")
        self.sock.close()

    async def close(self) -> None:
        self.abort()

    def get_extra_info(self, key: str) -> Any:
        return self.sock if key == "socket" else None


class AsyncDirectStream:
    """An `AsyncTinyStream` in the first dialect, which is also an `AsyncDirectReader`."""

    def __init__(self, tiny: AsyncTinyStream) -> None:
        self.sock = tiny.sock
        self.stream = async_stream_from_interface(tiny)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    async def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        with check_read_buffer(buffer) as view:
            data = await self.stream.read(len(view), timeout)
            view[: len(data)] = data
        return len(data)


class AsyncTinyBackend(AsyncNetworkBackendInterface):
    """Opens one kind of `AsyncTinyStream`."""

    def __init__(self, stream: type[AsyncTinyStream] = AsyncTinyStream) -> None:
        self.stream = stream

    async def connect(self, host: str, port: int) -> AsyncNetworkStreamInterface:
        if not 1 <= port <= 65535:
            raise ArgumentValueError(f"{port} is no port")
        # Only ever asked for loopback, whose addresses are not looked up anywhere.
        sock = socket.socket()
        stream = self.stream(sock)
        try:
            sock.connect_ex((host, port))
            await stream.wait("write")
            failure = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failure:
                raise ConnectError(f"error {failure}", phase="connect", errno=failure)
        except BaseException:
            stream.abort()
            raise
        return stream
