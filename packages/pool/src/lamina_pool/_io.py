"""What the pool's one text needs from the world that it runs in, blocking or async.

`_pool.py`, `_dialling.py`, `_connection.py` and `_body.py` are written as `async def` against these few protocols.
`_blocking.py` fulfils them with methods that block and never suspend, `_suspending.py` for asyncio and trio.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable

    from lamina_interfaces import BytesLike, LaminaError, Runtime, SocketOption

    from ._body import ResponseBody
    from ._checks import RequestFraming, Timeouts
    from ._http11 import Headers, ResponseHead
    from ._info import ConnectionFacts
    from ._models import Request
    from ._trace import Tracer


END = object()
"""What `BodySource.next` returns at the end. Not `None`, which an iterator may yield by mistake."""


class Stream(Protocol):
    """A network stream; the methods are those of `AsyncNetworkStream`, and their contracts too."""

    @property
    def public(self) -> Any:
        """The stream as the backend gave it, for `extensions["network_stream"]`."""
        ...

    is_watchful: bool
    """Whether it has the ability of `InterruptibleWriter`, and so knows of time limits too."""

    async def read(self, max_bytes: int, timeout: float | None) -> bytes:
        """See `NetworkStream.read`."""
        ...

    is_direct: bool
    """Whether it has the ability of `DirectReader`; only then may the next one be used."""

    async def read_into(self, buffer: memoryview, timeout: float | None) -> int:
        """See `DirectReader.read_into`."""
        ...

    async def write(self, buffer: BytesLike, timeout: float | None) -> None:
        """See `NetworkStream.write`."""
        ...

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None) -> int:
        """See `InterruptibleWriter.write_until_readable`; emulated for streams without that ability."""
        ...

    is_prompt: bool
    """Whether it has the ability of `PromptWriter`; only then may the next three be used."""

    @property
    def has_unsent(self) -> bool:
        """See `PromptWriter.has_unsent`."""
        ...

    def write_now(self, buffer: BytesLike) -> int:
        """See `PromptWriter.write_now`."""
        ...

    async def wait_writable(self, timeout: float | None) -> None:
        """See `PromptWriter.wait_writable`."""
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


class StaleConnectionError(Exception):
    """A connection turned out to be of no use for a request, before any byte of the answer.

    A reused one was closed by the server, most likely; or the server has refused the request. Never leaves the
    package. Either the request goes out again on another connection, or `cause` is raised.

    Attributes:
        cause: what the caller is told if it is not sent again.
        bytes_sent: how many bytes of the request the server may have processed; 0 only if none can have been.
        is_futile: the server refuses it, and deals with no other request on that connection either, or may.
    """

    def __init__(self, cause: LaminaError, bytes_sent: int, *, is_futile: bool = False) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.bytes_sent = bytes_sent
        self.is_futile = is_futile


class Exchange(Protocol):
    """What one request has of a connection: for HTTP/1.1 all of it, for HTTP/2 a stream."""

    @property
    def trace_name(self) -> str:
        """`"http11"` or `"http2"`."""
        ...

    @property
    def is_exclusive(self) -> bool:
        """Whether no other request can be on the connection at the same time."""
        ...

    @property
    def stream(self) -> Stream:
        """What it runs over."""
        ...

    @property
    def extensions(self) -> dict[str, Any]:
        """What a response says besides, in its `extensions`."""
        ...

    @property
    def facts(self) -> ConnectionFacts | None:
        """What the pool has found out of the connection when it was open."""
        ...

    on_sent: Callable[[], None] | None
    """Called when all of the request was sent, if that is so before the answer has come."""

    trace: Tracer | None
    """Who is told of the request step by step, once that has begun."""

    @property
    def trailers(self) -> Headers:
        """The fields behind the body, once it has been read to its end."""
        ...

    @property
    def has_ended(self) -> bool:
        """Whether the response was read to its end."""
        ...

    @property
    def idle_seconds(self) -> float:
        """How long the server will keep the idle connection, by its own word."""
        ...

    @property
    def left_over(self) -> bytes:
        """After a switch of protocols: the bytes of the new one that have come already."""
        ...

    async def send_request(
        self, request: Request, framing: RequestFraming, body: BodySource, timeouts: Timeouts
    ) -> ResponseHead:
        """Send a request and receive the head of its answer.

        Raises:
            StaleConnectionError: see there.
            LaminaError: it has failed.
        """
        ...

    async def receive_body(self, timeout: float | None) -> bytes:
        """The next bytes of the body, as many as are here; `b""` at its end, and after it."""
        ...

    def take_whole(self) -> bytes:
        """The body, if all of it is here already; otherwise, and if it is empty, `b""`."""
        ...

    async def receive_body_whole(self, timeout: float | None) -> bytes:
        """As `receive_body`, for whoever wants all of it: may wait for more than is here, even for all."""
        ...

    async def drain(self) -> None:
        """The rest of the response is not wanted. Never raises for what the peer does."""
        ...

    def start_next(self) -> bool:
        """Be done with the response. Returns whether the connection may take further requests."""
        ...

    def give_up(self) -> bool:
        """Let go, in whatever state; never waits or raises. Returns what `start_next` does."""
        ...

    def abort(self) -> None:
        """Make whoever waits in it stop. From anywhere, at any time."""
        ...

    def close_now(self) -> None:
        """Close the connection in the protocol's way, where `start_next` has said that it is done for."""
        ...


class Connection(Protocol):
    """A connection of the pool."""

    facts: ConnectionFacts | None
    """What the pool has found out of it when it was open."""

    @property
    def http_version(self) -> str:
        """`"HTTP/1.1"` or `"HTTP/2"`."""
        ...

    @property
    def is_exclusive(self) -> bool:
        """See `Exchange.is_exclusive`."""
        ...

    @property
    def capacity(self) -> int:
        """How many requests it can carry at once, at present."""
        ...

    @property
    def exchanges(self) -> int:
        """How many requests it has carried, the present ones included."""
        ...

    def begin(self) -> Exchange:
        """What one request has of it."""
        ...

    def give_up(self) -> bool:
        """Let go of it before the request has begun. As `Exchange.give_up`."""
        ...

    def close_now(self) -> None:
        """Close it in the protocol's way, as far as that needs no waiting."""
        ...

    def abort(self) -> None:
        """Close it without farewell; may be called from anywhere, at any time."""
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
    def is_whole(self) -> bool:
        """Whether it is there as a whole, in one piece: nothing is to be waited for, or to be closed."""
        ...

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

    def put_back(self, piece: Any) -> None:
        """The only piece (or `END`) that was taken so far was not used, and is to be the first again."""
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

    async def resolve(self, host: str, port: int, timeout: float | None) -> list[str]:
        """The IP addresses of a name, by the backend's resolver; none if the backend does not tell (`NameResolver`)."""
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
