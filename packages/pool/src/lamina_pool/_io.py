"""What the pool's one text needs from the world that it runs in, blocking or async.

`_pool.py`, `_dialling.py`, `_connection.py` and `_body.py` are written as `async def` against these few protocols.
`_blocking.py` fulfils them with methods that block and never suspend, `_suspending.py` for asyncio and trio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from lamina_interfaces import BytesLike, Runtime, SocketOption

    from ._body import ResponseBody


END = object()
"""What `BodySource.next` returns at the end. Not `None`, which an iterator may yield by mistake."""


class Stream(Protocol):
    """A network stream; the methods are those of `AsyncNetworkStream`, and their contracts too."""

    @property
    def public(self) -> Any:
        """The stream as the backend gave it, for `extensions["network_stream"]`."""
        ...

    @property
    def is_watchful(self) -> bool:
        """Whether it has the ability of `InterruptibleWriter`, and so knows of time limits too."""
        ...

    async def read(self, max_bytes: int, timeout: float | None) -> bytes:
        """See `NetworkStream.read`."""
        ...

    async def write(self, buffer: BytesLike, timeout: float | None) -> None:
        """See `NetworkStream.write`."""
        ...

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None) -> int:
        """See `InterruptibleWriter.write_until_readable`; emulated for streams without that ability."""
        ...

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None, timeout: float | None
    ) -> Stream:
        """See `NetworkStream.start_tls`."""
        ...

    def get_extra_info(self, info: str) -> Any:
        """See `NetworkStream.get_extra_info`. `None` if the stream has no such method."""
        ...

    def close_now(self) -> None:
        """Close with such a farewell as costs no waiting. Never raises."""
        ...

    def abort(self) -> None:
        """Close without farewell. Never raises; may be called by a finaliser."""
        ...


class CallerError(Exception):
    """Carries an exception of the caller's own code (a body's iterator, a callback) past our handlers.

    It may be of any class, one of lamina's too, and would be taken for our own. The public faces raise the original.

    Attributes:
        original: what the caller's code raised.
    """

    def __init__(self, original: Exception) -> None:
        super().__init__(original)
        self.original = original


class BodySource(Protocol):
    """The body of a request, piece by piece."""

    @property
    def has_begun(self) -> bool:
        """Whether `next` was ever called: what can be read only once cannot begin again then."""
        ...

    async def next(self) -> Any:
        """The next piece, which should be bytes-like, or `END`.

        Raises:
            CallerError: the iterator raised.
        """
        ...

    def put_back(self, piece: BytesLike) -> None:
        """The only piece that was taken so far was not used, and is to be the first again."""
        ...

    async def aclose(self) -> None:
        """Let go of the iterator, wherever it is; a generator's `finally` runs now."""
        ...


class World(Protocol):
    """Everything that differs between blocking and async code."""

    @property
    def runtime(self) -> Runtime:
        """Clock, events and scopes."""
        ...

    @property
    def is_blocking(self) -> bool:
        """Whether bodies and callbacks must be plain ones."""
        ...

    def move(self) -> None:
        """Make `runtime` the one that the caller runs in."""
        ...

    def leave(self) -> None:
        """In a forked child: have no runtime any more that is the parent's."""
        ...

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[SocketOption] | None,
    ) -> Stream:
        """See `NetworkBackend.connect_tcp`."""
        ...

    async def connect_unix_socket(
        self, path: str, timeout: float | None, socket_options: Iterable[SocketOption] | None
    ) -> Stream:
        """See `NetworkBackend.connect_unix_socket`."""
        ...

    async def sleep(self, seconds: float) -> None:
        """See `NetworkBackend.sleep`."""
        ...

    def body_source(self, stream: Any) -> BodySource:
        """A way to pull on `Request.stream`."""
        ...

    def response_stream(self, body: ResponseBody) -> Any:
        """What becomes `Response.stream`."""
        ...

    def switched_stream(self, body: ResponseBody, leading: bytes) -> Any:
        """What becomes `extensions["network_stream"]` after a switch of protocols."""
        ...
