"""The scripted backend and its streams for asyncio and trio."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    AsyncNetworkBackend,
    AsyncNetworkStream,
    Limit,
    PromptCloser,
    check_seconds,
    current_runtime,
)

from ._chunks import Chunks, checked_chunks, count_chunks

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from lamina_interfaces import BytesLike, Phase, SocketOption


def _limit(timeout: float | None, phase: Phase) -> Limit:
    """On the clock of the running event loop, which ambient deadlines are measured on."""
    return Limit(timeout, current_runtime().now, phase)


class AsyncMockStream(AsyncNetworkStream, PromptCloser):
    """`MockStream` for asyncio and trio. No operation waits or lets another task run.

    Args:
        buffer: what the peer says. The list is copied.
        http2: whether ALPN has chosen HTTP/2.

    Raises:
        ArgumentTypeError: `buffer` is not a list of bytes.
    """

    def __init__(self, buffer: list[bytes], http2: bool = False) -> None:
        self._rest = Chunks(buffer, http2)

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """Return the next item, or as much of it as fits. See `AsyncNetworkStream.read`."""
        return self._rest.read(max_bytes, _limit(timeout, "read"))

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """Take the bytes, and forget them. See `AsyncNetworkStream.write`."""
        self._rest.write(buffer, _limit(timeout, "write"))

    async def aclose(self) -> None:
        """Close the stream. See `AsyncNetworkStream.aclose`."""
        self._rest.close()

    def close_now(self) -> None:
        """Close the stream. See `PromptCloser.close_now`."""
        self._rest.close()

    def abort(self) -> None:
        """Close the stream. See `AsyncNetworkStream.abort`."""
        self._rest.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> AsyncMockStream:
        """Do nothing but check the limit. See `AsyncNetworkStream.start_tls`."""
        self._rest.start_tls(_limit(timeout, "tls"))
        return self

    def get_extra_info(self, info: str) -> Any:
        """Tell what this stream knows: see the class. See `AsyncNetworkStream.get_extra_info`."""
        return self._rest.get_extra_info(info)

    def __repr__(self) -> str:
        return f"<AsyncMockStream [{self._rest.describe()}]>"


class AsyncMockBackend(AsyncNetworkBackend):
    """`MockBackend` for asyncio and trio. No operation waits or lets another task run.

    Args:
        buffer: what the peer says on each connection. Items that are added later count for later connections.
        http2: whether ALPN chooses HTTP/2 on them.

    Raises:
        ArgumentTypeError: `buffer` is not a list of bytes.
    """

    def __init__(self, buffer: list[bytes], http2: bool = False) -> None:
        checked_chunks(buffer)
        self._buffer = buffer
        self._http2 = http2

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncMockStream:
        """Open a stream that says the list. See `AsyncNetworkBackend.connect_tcp`."""
        return self._connect(timeout)

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncMockStream:
        """Open a stream that says the list. See `AsyncNetworkBackend.connect_unix_socket`."""
        return self._connect(timeout)

    def _connect(self, timeout: float | None) -> AsyncMockStream:
        _limit(timeout, "connect").check()
        return AsyncMockStream(self._buffer, self._http2)

    async def sleep(self, seconds: float) -> None:
        """Return at once. See `AsyncNetworkBackend.sleep`."""
        check_seconds(seconds, "seconds")
        _limit(None, "connect").check()

    def __repr__(self) -> str:
        return f"<AsyncMockBackend [{count_chunks(self._buffer)}{', HTTP/2' if self._http2 else ''}]>"
