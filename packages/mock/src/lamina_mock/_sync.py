"""The scripted backend and its streams for blocking code."""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from lamina_interfaces import Limit, NetworkBackend, NetworkStream, check_seconds

from ._chunks import Chunks, checked_chunks, count_chunks

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from lamina_interfaces import BytesLike, SocketOption


class MockStream(NetworkStream):
    """A stream whose peer says the items of a list, one for each read, and then ends its side.

    A read returns at most `max_bytes`; the rest of an item comes with the next read. An empty item ends the
    peer's side there. What is written is taken and forgotten. Nothing ever waits, so a limit matters only where
    it has passed before the operation: then the operation raises its time-out. After `close`, `read` raises
    `ReadError` and `write` `WriteError`.

    `get_extra_info` knows `"ssl_object"`, with a `selected_alpn_protocol()` and nothing more, also before
    `start_tls`; and `"is_readable"`, which is false until the stream is closed or the next item is empty, so
    that a pool takes the rest of the list for the answers to its next requests.

    Args:
        buffer: what the peer says. The list is copied.
        http2: whether ALPN has chosen HTTP/2.

    Raises:
        ArgumentTypeError: `buffer` is not a list of bytes.
    """

    def __init__(self, buffer: list[bytes], http2: bool = False) -> None:
        self._rest = Chunks(buffer, http2)

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """Return the next item, or as much of it as fits. See `NetworkStream.read`."""
        return self._rest.read(max_bytes, Limit(timeout, monotonic, "read"))

    def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """Take the bytes, and forget them. See `NetworkStream.write`."""
        self._rest.write(buffer, Limit(timeout, monotonic, "write"))

    def close(self) -> None:
        """Close the stream. See `NetworkStream.close`."""
        self._rest.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> MockStream:
        """Do nothing but check the limit. See `NetworkStream.start_tls`."""
        self._rest.start_tls(Limit(timeout, monotonic, "tls"))
        return self

    def get_extra_info(self, info: str) -> Any:
        """Tell what this stream knows: see the class. See `NetworkStream.get_extra_info`."""
        return self._rest.get_extra_info(info)

    def __repr__(self) -> str:
        return f"<MockStream [{self._rest.describe()}]>"


class MockBackend(NetworkBackend):
    """A backend whose every connection, to whatever address, is a `MockStream` that says the same list.

    Each connection begins with the first item. `sleep` does not sleep. Safe to use from several threads.

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

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> MockStream:
        """Open a stream that says the list. See `NetworkBackend.connect_tcp`."""
        return self._connect(timeout)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> MockStream:
        """Open a stream that says the list. See `NetworkBackend.connect_unix_socket`."""
        return self._connect(timeout)

    def _connect(self, timeout: float | None) -> MockStream:
        Limit(timeout, monotonic, "connect").check()
        return MockStream(self._buffer, self._http2)

    def sleep(self, seconds: float) -> None:
        """Return at once. See `NetworkBackend.sleep`."""
        check_seconds(seconds, "seconds")
        Limit(None, monotonic, "connect").check()

    def __repr__(self) -> str:
        return f"<MockBackend [{count_chunks(self._buffer)}{', HTTP/2' if self._http2 else ''}]>"
