"""A network in memory whose servers speak HTTP/2, for the tests of the blocking pool. See `pool_loopback`."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

from lamina_interfaces import ConcurrencyError, Limit, PromptWriter, WriteError
from pool_http2_server import INTERNAL_ERROR, REFUSED_STREAM, Asked, ServerEnd
from pool_loopback import MemoryBackend, MemoryStream, wait_on

if TYPE_CHECKING:
    from collections.abc import Callable


def echo(asked: Asked) -> None:
    asked.respond()


def moody(seed: int, *, refuses: float = 0.03, says_goodbye: float = 0.005) -> Callable[[Asked], None]:
    """A server for many threads that resets now and then, refuses, says goodbye: with or without the last request."""
    chance = random.Random(seed)
    lock = threading.Lock()
    resets = refuses + 0.02

    def answer(asked: Asked) -> None:
        with lock:
            mood = chance.random()
        if mood < refuses:
            asked.reset(REFUSED_STREAM)
        elif mood < resets:
            asked.respond(b"some", ends=False)
            asked.reset(INTERNAL_ERROR)
        elif mood < resets + says_goodbye:
            asked.server.goaway(asked.id)
            asked.respond()
        elif mood < resets + 2 * says_goodbye:
            asked.server.goaway(max(0, asked.id - 2))
        else:
            asked.respond()

    return answer


class SharedStream(MemoryStream):
    """A connection to a server that speaks HTTP/2. Knows only `write`; two readers are noted in `violations`."""

    backend: HTTP2Backend

    def __init__(self, backend: HTTP2Backend, number: int) -> None:
        super().__init__(backend, number)
        self.stalls = False
        self.peer = ServerEnd(self.feed, backend.serve, backend.settings, violations=backend.violations)
        self._reader: int | None = None
        backend.on_open(self)

    def _cut_requests(self) -> None:
        data = bytes(self._written)
        self._written.clear()
        self.peer.receive(data)
        if self.peer.is_over:
            self.feed_eof()

    def hang_up(self) -> None:
        with self._changed:
            self.peer.is_over = True
            self.feed_eof()

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        with self._changed:
            if self._reader is not None and self._reader != threading.get_ident():
                self.backend.violations.append("two threads read")
                raise ConcurrencyError("another thread is reading")
            self._reader = threading.get_ident()
        try:
            return super().read(max_bytes, timeout)
        finally:
            self._reader = None


class PromptStream(SharedStream, PromptWriter):
    """One that writes promptly, as lamina's own do."""

    def write_now(self, buffer: Any) -> int:
        with self._changed:
            if self.is_closed or self._is_broken:
                raise WriteError("the stream is closed", phase="write")
            if self.stalls:
                return 0
            piece = memoryview(buffer)[: self.backend.room]
            self._written += piece
            self._cut_requests()
            return len(piece)

    def wait_writable(self, timeout: float | None = None) -> None:
        limit = Limit(timeout, time.monotonic, "write")
        limit.check()
        with self._changed:
            while self.stalls and not self.is_closed and not self._is_broken:
                if self._reader is None and self.get_extra_info("is_readable"):
                    return
                wait_on(self._changed, limit)

    @property
    def has_unsent(self) -> bool:
        return False


def _nothing(stream: SharedStream) -> None:
    pass


class HTTP2Backend(MemoryBackend):
    """See `MemoryBackend`, and `pool_http2_net.HTTP2Backend`."""

    def __init__(
        self,
        serve: Callable[[Asked], object] = echo,
        *,
        settings: dict[int, int] | None = None,
        is_custom: bool = False,
        room: int | None = None,
    ) -> None:
        super().__init__()
        self.answer_http2 = serve
        self.settings = settings
        self.room = room
        self.violations: list[str] = []
        self.on_open: Callable[[SharedStream], object] = _nothing
        self._kind = SharedStream if is_custom else PromptStream

    def serve(self, asked: Asked) -> None:
        self.answer_http2(asked)

    def _open(self, timeout: float | None) -> MemoryStream:
        limit = Limit(timeout, time.monotonic, "connect")
        limit.check()
        self.on_connect(limit)
        stream = self._kind(self, len(self.streams))
        if self.keep_streams:
            self.streams.append(stream)
        else:
            self.calls.clear()
        return stream
