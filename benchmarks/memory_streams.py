"""Backends without a network: each stream has a fixed answer to whatever it is sent, and has it at once.

What is measured over them is the work of the layers above alone. There is no kernel in it, and no server whose own
work would drown what is looked for.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from lamina_interfaces import AsyncNetworkBackend, AsyncNetworkStream, NetworkBackend, NetworkStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from lamina_interfaces import BytesLike, SocketOption


class _Answers:
    """What both kinds of stream hold: the answer, and how much of it was read."""

    def __init__(self, answer: bytes, request_size: int) -> None:
        self._answer = answer
        self._request_size = request_size
        self._received = 0
        self._unread = memoryview(b"")

    def _take(self, buffer: BytesLike) -> int:
        """Take a part of a request; with its last part the answer is there."""
        size = len(buffer)
        self._received += size
        if self._received >= self._request_size:
            self._received = 0
            self._unread = memoryview(self._answer)
        return size

    def _give(self, max_bytes: int | None) -> bytes:
        if len(self._unread) == len(self._answer) and (max_bytes is None or max_bytes >= len(self._answer)):
            self._unread = memoryview(b"")
            return self._answer
        data = bytes(self._unread[:max_bytes])
        self._unread = self._unread[len(data) :]
        return data

    def _give_into(self, buffer: bytearray | memoryview) -> int:
        data = self._give(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _tell(self, info: str) -> Any:
        return bool(self._unread) if info == "is_readable" else None


class MemoryStream(_Answers, NetworkStream):
    """A blocking stream. `pause` is called before each read."""

    def __init__(self, answer: bytes, request_size: int, pause: Callable[[], object] | None) -> None:
        super().__init__(answer, request_size)
        self._pause = pause

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """See `NetworkStream.read`."""
        if self._pause is not None:
            self._pause()
        return self._give(max_bytes)

    def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """See `DirectReader.read_into`."""
        if self._pause is not None:
            self._pause()
        return self._give_into(buffer)

    def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """See `NetworkStream.write`."""
        self._take(buffer)

    def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        """See `InterruptibleWriter.write_until_readable`."""
        return self._take(buffer)

    def close(self) -> None:
        """Nothing is held."""

    def abort(self) -> None:
        """Nothing is held."""

    def get_extra_info(self, info: str) -> Any:
        """Whether the answer is here."""
        return self._tell(info)


class AsyncMemoryStream(_Answers, AsyncNetworkStream):
    """The same for asyncio and trio. `pause` is awaited before each read; without it nothing ever suspends."""

    def __init__(
        self, answer: bytes, request_size: int, pause: Callable[[], Awaitable[object]] | None
    ) -> None:
        super().__init__(answer, request_size)
        self._pause = pause

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """See `AsyncNetworkStream.read`."""
        if self._pause is not None:
            await self._pause()
        return self._give(max_bytes)

    async def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """See `AsyncDirectReader.read_into`."""
        if self._pause is not None:
            await self._pause()
        return self._give_into(buffer)

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """See `AsyncNetworkStream.write`."""
        self._take(buffer)

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        """See `AsyncInterruptibleWriter.write_until_readable`."""
        return self._take(buffer)

    async def aclose(self) -> None:
        """Nothing is held."""

    def close_now(self) -> None:
        """Nothing is held."""

    def abort(self) -> None:
        """Nothing is held."""

    def get_extra_info(self, info: str) -> Any:
        """Whether the answer is here."""
        return self._tell(info)


class MemoryBackend(NetworkBackend):
    """Opens blocking streams.

    Args:
        answer: to each request, head and body.
        request_size: bytes after which a request is complete; by default one write is one.
        pause: called before each read.
    """

    def __init__(
        self, answer: bytes, request_size: int = 1, pause: Callable[[], object] | None = None
    ) -> None:
        self._arguments = answer, request_size, pause

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> NetworkStream:
        """Connect to nobody."""
        return MemoryStream(*self._arguments)


class AsyncMemoryBackend(AsyncNetworkBackend):
    """The same for asyncio and trio; `pause` is awaited."""

    def __init__(
        self, answer: bytes, request_size: int = 1, pause: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        self._arguments = answer, request_size, pause

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncNetworkStream:
        """Connect to nobody."""
        return AsyncMemoryStream(*self._arguments)


def yield_thread() -> None:
    """A pause for threads: another one may run."""
    time.sleep(0)


SMALL_BODY = b"Hello, world!"
SMALL_ANSWER = (
    b"HTTP/1.1 200 OK\r\n"
    b"Server: nginx/1.22.1\r\n"
    b"Date: Fri, 20 Nov 2026 12:00:00 GMT\r\n"
    b"Content-Type: text/plain\r\n"
    b"Content-Length: 13\r\n"
    b"Connection: keep-alive\r\n"
    b"\r\n" + SMALL_BODY
)
"""As nginx has it, and as the benchmarks over the network ask for."""
