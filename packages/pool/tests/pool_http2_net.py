"""A network in memory whose servers speak HTTP/2, for the tests of the async pool. See `pool_async_net`.

There are streams that can write promptly and such as only know `write`. Of each connection only one task at a time may
read, and one write; whoever does besides is noted in `violations`, as is what the client may not do by HTTP/2.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import trustme

from lamina_interfaces import (
    AsyncPromptWriter,
    ConcurrencyError,
    Limit,
    PromptCloser,
    WriteError,
    current_runtime,
)
from lamina_pool._http2 import CONNECTION_WINDOW
from pool_async_net import CustomStream, MemoryBackend, MemoryStream
from pool_async_runs import check_invariant
from pool_http2_server import Asked, ServerEnd

if TYPE_CHECKING:
    from lamina_interfaces import BytesLike
    from lamina_pool import AsyncConnectionPool

SLICE = 128 * 1024
"""How many bytes of TLS may wait in a stream."""


class SharedStream(MemoryStream):
    """A connection to a server that speaks HTTP/2.

    Attributes:
        peer: the server.
        was_cut: whether a write was broken off.
    """

    backend: HTTP2Backend

    def __init__(self, backend: HTTP2Backend, number: int) -> None:
        super().__init__(backend, number)
        self.was_cut = False
        self.peer = ServerEnd(self.feed, backend.serve, backend.settings, violations=backend.violations)
        self._busy: dict[str, int] = {}
        backend.on_open(self)

    def _hear(self, data: bytes) -> None:
        self.peer.receive(data)
        if self.peer.is_over:
            self.feed_eof()

    def hang_up(self) -> None:
        """The server closes the connection."""
        self.peer.is_over = True
        self.feed_eof()

    def break_off(self) -> None:
        self.peer.is_over = True
        super().break_off()

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        with _Alone(self, "read"):
            return await super().read(max_bytes, timeout)

    async def _write(self, buffer: BytesLike, timeout: float | None, *, watches: bool) -> int:
        with _Alone(self, "write"):
            is_whole = False
            try:
                sent = await super()._write(buffer, timeout, watches=watches)
                is_whole = True
            finally:
                self.was_cut |= not is_whole
            return sent


class _Alone:
    """A block in which only one task at a time may be."""

    def __init__(self, stream: SharedStream, *what: str) -> None:
        self._stream = stream
        self._what = what

    def __enter__(self) -> None:
        for what in self._what:
            if self._stream._busy.get(what):
                self._stream.backend.violations.append(f"two tasks at the same time: {what}")
                raise ConcurrencyError(f"another task is at work in this stream: {what}")
        for what in self._what:
            self._stream._busy[what] = 1

    def __exit__(self, *exc_info: object) -> None:
        for what in self._what:
            self._stream._busy[what] = 0


class PromptStream(SharedStream, AsyncPromptWriter, PromptCloser):
    """One that writes promptly, as lamina's own do.

    The system takes `backend.room` bytes, and then none before somebody has waited for it.
    """

    def __init__(self, backend: HTTP2Backend, number: int) -> None:
        super().__init__(backend, number)
        self._room = backend.room
        self._channel = bytearray()  # of TLS

    def _pass_on(self, data: bytes | bytearray | memoryview) -> int:
        if self.stalls:
            return 0
        piece = bytes(data[: self._room])
        if self._room is not None:
            self._room -= len(piece)
        if self._server is None:
            self._hear(piece)
        else:
            self._hear(self._server.receive(piece))
        return len(piece)

    def _empty_channel(self) -> None:
        while self._channel and (sent := self._pass_on(self._channel)):
            del self._channel[:sent]

    def write_now(self, buffer: BytesLike) -> int:
        self.backend.note("write_now")
        if self.is_closed or self._is_broken:
            raise WriteError("the stream is closed", phase="write")
        view = memoryview(buffer)
        if self._engine is None:
            return self._pass_on(view) if view else 0
        self._empty_channel()
        if self._channel or not view:
            return 0
        piece = bytes(view[:SLICE])
        self._engine.write(piece)
        self._channel += self._engine.take()
        self._empty_channel()
        return len(piece)

    async def wait_writable(self, timeout: float | None = None) -> None:
        limit = Limit(timeout, current_runtime().now, "write")
        limit.check()
        reads = not self._busy.get("read")
        with _Alone(self, "write", *(["read"] if reads else [])):
            await self._step("wait_writable", limit)
            while True:
                self._room = self.backend.room
                if self.is_closed or self._is_broken:
                    raise WriteError("the stream is closed", phase="write")
                self._empty_channel()
                if not self.stalls and not self._channel:
                    return
                if reads and self.get_extra_info("is_readable"):
                    return
                if self._channel and not self.stalls:
                    await self._step("wait_writable", limit)
                else:
                    await self._wait("write", limit)

    @property
    def has_unsent(self) -> bool:
        return bool(self._channel) and not self.is_closed


def echo(asked: Asked) -> None:
    """A server that answers with the target."""
    asked.respond()


def _nothing(stream: SharedStream) -> None:
    pass


class HTTP2Backend(MemoryBackend):
    """See `MemoryBackend`.

    Args:
        serve: what the server does with a request that is whole.
        settings: the server's.
        is_custom: whether its streams know nothing but what the contract asks of everybody.
        room: how many bytes the system takes at a time from a stream that writes promptly; `None` for all.

    Attributes:
        violations: what was done and may not be.
        on_open: is called with each connection.
    """

    streams: list[SharedStream]  # type: ignore[assignment] # there are no others here
    open_streams: set[SharedStream]  # type: ignore[assignment] # as above

    def __init__(
        self,
        serve: Callable[[Asked], object] = echo,
        *,
        settings: dict[int, int] | None = None,
        is_custom: bool = False,
        room: int | None = None,
        **options: Any,
    ) -> None:
        kind: Any = SharedStream if is_custom else PromptStream
        super().__init__(kind=kind, wrap=CustomStream if is_custom else None, **options)
        self.is_custom = is_custom
        self.answer_http2 = serve
        self.settings = settings
        self.room = room
        self.violations: list[str] = []
        self.on_open: Callable[[SharedStream], object] = _nothing

    def serve(self, asked: Asked) -> None:
        self.answer_http2(asked)

    def check(self) -> None:
        assert not self.violations, self.violations


def check_shared(pool: AsyncConnectionPool, backend: HTTP2Backend, tasks: set[Any] | None = None) -> None:
    """`check_invariant`, and that no connection holds anything of a request; so sees it the server, too."""
    check_invariant(pool, backend, tasks)
    backend.check()
    assert not pool._pool._lone_dials
    for slot in pool._pool._scheduler.slots():
        connection: Any = slot.connection
        session = connection.session
        assert session.is_idle, session
        assert not connection._exchanges
        assert not connection._asleep
        assert not connection._put_off
        assert connection._reader is None
        assert connection._writer is None
        assert connection._turn is None
        assert not session._blocked
        assert session._window_left > 0.9 * CONNECTION_WINDOW


def check_servers(backend: HTTP2Backend) -> None:
    """No server waits for more of a request, where all was sent that there is."""
    for stream in backend.open_streams:
        assert stream.peer.is_over or not stream.peer.open, (stream, stream.peer.open)


class Contexts(NamedTuple):
    """TLS of both sides, which agree on h2."""

    server: ssl.SSLContext
    client: ssl.SSLContext


def make_contexts() -> Contexts:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.com").configure_cert(server)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(client)
    for context in (server, client):
        context.set_alpn_protocols(["h2"])
    return Contexts(server, client)
