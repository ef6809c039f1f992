"""The second dialect, for asyncio and trio: a small client, and the network under it without `timeout=` arguments.

Write `from lamina import aio as ahttpx`. `lamina.sync` has the same names for threads, and says what lives where; here
whatever waits is awaited. Time limits are blocks: `async with timeout(3.0): …` bounds every `await` in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, overload

import lamina_interfaces
from lamina_interfaces import ArgumentTypeError as ArgumentTypeError
from lamina_interfaces import ArgumentValueError as ArgumentValueError
from lamina_interfaces import AsyncNetworkBackendInterface as NetworkBackendInterface
from lamina_interfaces import AsyncNetworkStreamInterface as NetworkStreamInterface
from lamina_interfaces import BackendNotFound as BackendNotFound
from lamina_interfaces import ConcurrencyError as ConcurrencyError
from lamina_interfaces import ConnectError as ConnectError
from lamina_interfaces import ConnectionNotAvailable as ConnectionNotAvailable
from lamina_interfaces import ConnectTimeout as ConnectTimeout
from lamina_interfaces import DeadlineExceeded as DeadlineExceeded
from lamina_interfaces import InvalidURL as InvalidURL
from lamina_interfaces import LaminaError as LaminaError
from lamina_interfaces import LocalProtocolError as LocalProtocolError
from lamina_interfaces import NetworkError as NetworkError
from lamina_interfaces import PoolClosed as PoolClosed
from lamina_interfaces import PoolTimeout as PoolTimeout
from lamina_interfaces import ProtocolError as ProtocolError
from lamina_interfaces import ProxyError as ProxyError
from lamina_interfaces import ReadError as ReadError
from lamina_interfaces import ReadTimeout as ReadTimeout
from lamina_interfaces import RemoteProtocolError as RemoteProtocolError
from lamina_interfaces import TimeoutException as TimeoutException
from lamina_interfaces import UnsupportedProtocol as UnsupportedProtocol
from lamina_interfaces import WriteError as WriteError
from lamina_interfaces import WriteTimeout as WriteTimeout
from lamina_interfaces import (
    async_backend_from_interface,
    async_stream_from_interface,
    load_backend,
    running_runtime,
)
from lamina_interfaces.sockets import socket_address
from lamina_pool import AsyncConnectionPool as _Pool
from lamina_pool import ResponseStateError as ResponseStateError
from lamina_timeouts import TimeoutStateError as TimeoutStateError
from lamina_timeouts import timeout as timeout

from ._dialect_faces import CLIENT_HEADERS, OneOrigin, check_transport, method_and_url, stream_name
from ._dialect_models import Headers as Headers
from ._dialect_models import Request as Request
from ._dialect_models import ResponseBase, facts_of, for_pool
from ._dialect_redirects import MAX_REDIRECTS, most_redirects, send_following
from ._dialect_redirects import RedirectError as RedirectError

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import AsyncIterator, Coroutine, Generator, Iterable
    from types import TracebackType

    from lamina_interfaces import SocketAddress, SocketOption
    from lamina_pool import URL, ContentTypes, Extensions, HeaderTypes, PoolStats


__all__ = [
    "ArgumentTypeError",
    "ArgumentValueError",
    "BackendNotFound",
    "Client",
    "ConcurrencyError",
    "ConnectError",
    "ConnectTimeout",
    "Connection",
    "ConnectionNotAvailable",
    "ConnectionPool",
    "DeadlineExceeded",
    "Headers",
    "InvalidURL",
    "LaminaError",
    "LocalProtocolError",
    "NetworkBackend",
    "NetworkBackendInterface",
    "NetworkError",
    "NetworkStream",
    "NetworkStreamInterface",
    "PoolClosed",
    "PoolTimeout",
    "ProtocolError",
    "ProxyError",
    "ReadError",
    "ReadTimeout",
    "RedirectError",
    "RemoteProtocolError",
    "Request",
    "Response",
    "ResponseStateError",
    "TimeoutException",
    "TimeoutStateError",
    "Transport",
    "UnsupportedProtocol",
    "WriteError",
    "WriteTimeout",
    "open_connection",
    "timeout",
]


# --- the network -------------------------------------------------------------------------------------------


class NetworkStream(NetworkStreamInterface):
    """A stream of bytes to one peer, over a connected socket.

    One task may read while another writes; two that read, or two that write, get `ConcurrencyError`. The promises are
    those of `lamina_interfaces.AsyncNetworkStream`, save for `timeout=`: use a `timeout` block. The stream belongs to
    the event loop in which it is first awaited.

    Args:
        sock: a connected stream socket, not an `ssl.SSLSocket`. The stream's from now on.

    Raises:
        ArgumentTypeError: it is no plain socket.
        ArgumentValueError: it is closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        import socket

        if not isinstance(sock, socket.socket) or hasattr(sock, "do_handshake"):
            raise ArgumentTypeError(
                f"NetworkStream takes a plain socket, not {type(sock).__name__}; TLS is for start_tls"
            )
        if sock.fileno() < 0:
            raise ArgumentValueError("the socket is closed")
        # Wrapped when it is first awaited: only then an event loop is sure to run.
        self._set(None, sock, socket_address(sock.getpeername))

    @classmethod
    def _over(cls, stream: lamina_interfaces.AsyncNetworkStream) -> Self:
        self = cls.__new__(cls)
        self._set(stream, None, stream.get_extra_info("server_addr"))
        return self

    def _set(
        self,
        stream: lamina_interfaces.AsyncNetworkStream | None,
        sock: socket.socket | None,
        address: SocketAddress | None,
    ) -> None:
        self._stream = stream
        self._sock = sock
        self._is_closed = False
        # Asked for now: a closed socket cannot tell.
        self._server_addr = address

    async def _awaited(self, closed_error: type[NetworkError]) -> lamina_interfaces.AsyncNetworkStream:
        if self._stream is None:
            if self._sock is None:
                raise closed_error("the stream is closed")
            # Never suspends, so nobody comes in between.
            self._stream = await load_backend("auto").wrap_socket(self._sock)
            self._sock = None
        return self._stream

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes, and return those that have come.

        Args:
            max_bytes: the most bytes to return, at least 1; `None` stands for 64 KiB.

        Returns:
            From 1 to `max_bytes` bytes, or `b""` once the peer has ended its side.

        Raises:
            DeadlineExceeded: the deadline passed. No byte is lost.
            ReadError: the connection broke, or the stream is closed.
            ConcurrencyError: another task is reading.
        """
        return await (await self._awaited(ReadError)).read(max_bytes)

    async def write(self, data: bytes) -> None:
        """Send all the bytes.

        Raises:
            DeadlineExceeded: the deadline passed. An unknown part has been sent: the stream can only be closed.
            WriteError: the connection broke, or the stream is closed.
            ConcurrencyError: another task is writing.
        """
        await (await self._awaited(WriteError)).write(data)

    async def start_tls(self, ctx: ssl.SSLContext, hostname: str | None = None) -> Self:
        """Perform a TLS handshake as the client, and carry on inside TLS. In place.

        Args:
            ctx: settings and trusted certificates; used as it is, never changed.
            hostname: the name that the certificate must bear.

        Returns:
            This stream.

        Raises:
            ConnectError: the peer broke off, did not speak TLS, or its certificate was not accepted. The stream is
                closed.
            DeadlineExceeded: the deadline passed. The stream is closed.
            ArgumentValueError, ArgumentTypeError: the name or the context makes no sense. The stream is closed.
            ConcurrencyError: another task is reading or writing. The stream is as it was.
        """
        try:
            stream = await self._awaited(ConnectError)
            self._stream = await stream.start_tls(ctx, server_hostname=hostname)
        except ConcurrencyError:
            raise
        except BaseException:
            await self.close()
            raise
        return self

    def get_extra_info(self, key: str) -> Any:
        """Tell something about what lies beneath, or `None`.

        Args:
            key: `"client_addr"`, `"server_addr"`, `"ssl_object"`, `"socket"`, `"is_readable"` (whether a read would
                return at once) or `"timings"`.
        """
        if self._stream is not None:
            return self._stream.get_extra_info(key)
        if key == "server_addr":
            return self._server_addr
        if key == "client_addr" and self._sock is not None:
            return socket_address(self._sock.getsockname)
        return self._sock if key == "socket" else None

    async def close(self) -> None:
        """Close the stream; over TLS with the closing message, if the system takes it at once. May be repeated."""
        self._is_closed = True
        if self._stream is not None:
            await self._stream.aclose()
        elif self._sock is not None:
            self._sock.close()
            self._sock = None

    def __repr__(self) -> str:
        return stream_name(
            self._server_addr,
            is_closed=self._is_closed,
            is_tls=self.get_extra_info("ssl_object") is not None,
        )


class NetworkBackend(NetworkBackendInterface):
    """The default backend: opens streams over TCP, under asyncio and trio. For any number of tasks.

    Args:
        backend: a backend of the first dialect (`lamina_interfaces.AsyncNetworkBackend`) to use instead of the
            `AutoBackend` of `lamina-async-backends`, which finds out what runs.
    """

    def __init__(self, backend: lamina_interfaces.AsyncNetworkBackend | None = None) -> None:
        self._backend = backend

    def _timed(self) -> lamina_interfaces.AsyncNetworkBackend:
        backend = self._backend
        if backend is None:
            backend = self._backend = load_backend("auto")
        return backend

    async def connect(self, host: str, port: int) -> NetworkStream:
        """Connect to a TCP port.

        Args:
            host: a name or an IP address.
            port: 1 to 65535.

        Returns:
            The connected stream, the caller's to close; an async context manager.

        Raises:
            ConnectError: the name is unknown, or no address could be connected to.
            DeadlineExceeded: the deadline passed. No socket is left.
            ArgumentValueError, ArgumentTypeError: an argument makes no sense.
            BackendNotFound: `lamina-async-backends` is not installed.
        """
        return NetworkStream._over(await self._timed().connect_tcp(host, port))

    def __repr__(self) -> str:
        runtime = running_runtime()
        return f"<NetworkBackend [{'async' if runtime == 'threads' else runtime}]>"


def _timed_backend(
    backend: NetworkBackendInterface | lamina_interfaces.AsyncNetworkBackend | None,
) -> lamina_interfaces.AsyncNetworkBackend | None:
    """A backend of either dialect, as one of the first."""
    foreign = (lamina_interfaces.NetworkBackend, lamina_interfaces.NetworkBackendInterface)
    if isinstance(backend, foreign):
        raise ArgumentTypeError(f"backend must be for async code, which {type(backend).__name__} is not")
    if backend is None or isinstance(backend, lamina_interfaces.AsyncNetworkBackend):
        return backend
    if type(backend) is NetworkBackend:
        return backend._timed()
    if isinstance(backend, NetworkBackendInterface):
        return async_backend_from_interface(backend)
    raise ArgumentTypeError(f"backend must be a NetworkBackendInterface, not {type(backend).__name__}")


def _timed_stream(
    stream: NetworkStreamInterface | lamina_interfaces.AsyncNetworkStream,
) -> lamina_interfaces.AsyncNetworkStream:
    """A stream of either dialect, as one of the first."""
    if type(stream) is NetworkStream and stream._stream is not None:
        return stream._stream
    if isinstance(stream, lamina_interfaces.AsyncNetworkStream):
        return stream
    return async_stream_from_interface(stream)


# --- messages ----------------------------------------------------------------------------------------------


class Response(ResponseBase):
    """A response. An async context manager that closes it.

    From `get` and its like it comes read; from `stream` and `send` with its body still on the network. One task at
    a time may read.

    Args:
        status_code: `200`.
        headers: pairs, or a mapping.
        content: the body: bytes, or an async iterable of bytes, which `close` closes if it can.
        reason_phrase: the words after the code; by default the usual ones.
        http_version: `"HTTP/1.1"`.
        request: what it answers.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
    """

    _needs = "__aiter__"

    @property
    def stream(self) -> AsyncIterator[bytes]:
        """The body, piece by piece, as it comes in; for a response that has been read, all of it at once.

        It is one async iterator: a second loop goes on where the first one stopped.

        Raises:
            ResponseStateError: by the iterator: the response was closed before the end of its body.
            ReadError, RemoteProtocolError, DeadlineExceeded: by the iterator: the body could not be read to its end.
        """
        if self._content is not None:
            return _Whole(self._content)
        if self._body is None:
            self._body = _Body(self)
        body: _Body = self._body
        return body

    async def read(self) -> bytes:
        """Read the whole body, keep it as `content`, and return it. A second call returns the same bytes.

        Raises:
            ResponseStateError: the body was read as a stream, or the response was closed before.
            ReadError, RemoteProtocolError, DeadlineExceeded: the body could not be read to its end.
        """
        if self._content is None:
            self._begin(whole=True)
            self._content = b"".join([piece async for piece in self.stream])
        return self._content

    async def close(self) -> None:
        """Let go of the connection, whatever is still unread. May be repeated."""
        self._is_closed = True
        aclose = getattr(self._source, "aclose", None)
        if aclose is not None:
            await aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class _Body:
    """The body of one response, as an async iterator."""

    __slots__ = ("_has_ended", "_pieces", "_response")

    def __init__(self, response: Response) -> None:
        self._response = response
        self._has_ended = False
        self._pieces = aiter(response._source)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._has_ended:
            raise StopAsyncIteration
        self._response._begin(whole=False)
        try:
            piece: bytes = await anext(self._pieces)
        except StopAsyncIteration:
            self._has_ended = True
            raise
        return piece


class _Whole:
    """A body that is there already, as an async iterator: in one piece, or in none if it is empty."""

    __slots__ = ("_rest",)

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._rest:
            raise StopAsyncIteration
        piece, self._rest = self._rest, b""
        return piece


class ResponseContext:
    """What `stream` returns: await it, or enter it with `async with`; the request is sent then, once."""

    __slots__ = ("_response", "_sending")

    def __init__(self, sending: Coroutine[Any, Any, Response]) -> None:
        self._sending = sending
        self._response: Response | None = None

    def __await__(self) -> Generator[Any, Any, Response]:
        return self._sending.__await__()

    async def __aenter__(self) -> Response:
        self._response = await self._sending
        return self._response

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._response is not None:
            await self._response.close()


# --- transports --------------------------------------------------------------------------------------------


class Transport:
    """Sends requests. `Client`, `ConnectionPool` and `Connection` are transports; so is what you build on this class.

    To write one, implement `send`, and `close` if there is something to close. The other methods are made of these.
    """

    async def send(self, request: Request) -> Response:
        """Send a request as it is.

        Returns:
            The response, its body unread; the caller reads it to its end, or closes it.

        Raises:
            ConnectError: no connection could be made.
            WriteError, ReadError, RemoteProtocolError: the connection broke, or the answer makes no sense.
            DeadlineExceeded: the deadline passed, in any phase.
            LocalProtocolError, UnsupportedProtocol, ArgumentTypeError: the request cannot be sent. Nothing was.
        """
        raise NotImplementedError

    async def close(self) -> None:
        """Close what the transport holds. The base class holds nothing."""

    def build_request(
        self,
        method: str,
        url: URL | bytes | str,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
    ) -> Request:
        """Make the request that `request` and `stream` send.

        Raises:
            InvalidURL, ArgumentTypeError: an argument makes no sense.
        """
        return Request(method, url, headers=headers, content=content)

    async def request(
        self,
        method: str,
        url: URL | bytes | str,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
    ) -> Response:
        """Send a request, and read the whole response.

        Args:
            method: `"GET"` and so on.
            url: where to.
            headers: pairs, or a mapping. `Host`, and what announces a body, are added where they are missing.
            content: the body: bytes, or an async iterable of bytes, which is sent in chunks.

        Returns:
            The response; `response.content` is its body.

        Raises:
            LaminaError: see `send`; and the same from reading the body.
        """
        async with await self.send(
            self.build_request(method, url, headers=headers, content=content)
        ) as response:
            await response.read()
        return response

    @overload
    def stream(
        self, url: URL | bytes | str, /, *, headers: HeaderTypes = None, content: ContentTypes = None
    ) -> ResponseContext: ...
    @overload
    def stream(
        self,
        method: str = "GET",
        url: URL | bytes | str | None = None,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
    ) -> ResponseContext: ...

    def stream(
        self,
        method: Any = "GET",
        url: URL | bytes | str | None = None,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
    ) -> ResponseContext:
        """Send a request, and give the response before its body: `stream(url)`, or `stream(method, url)`.

        Both `async with client.stream(url) as response: …` and `async with await client.stream(url) as response: …`
        send it and close the response.

        Args and errors are those of `request`.
        """
        verb, place = method_and_url(method, url)
        return ResponseContext(self.send(self.build_request(verb, place, headers=headers, content=content)))

    async def get(self, url: URL | bytes | str, *, headers: HeaderTypes = None) -> Response:
        """Send a GET request, and read the whole response. See `request`."""
        return await self.request("GET", url, headers=headers)

    async def head(self, url: URL | bytes | str, *, headers: HeaderTypes = None) -> Response:
        """Send a HEAD request. See `request`."""
        return await self.request("HEAD", url, headers=headers)

    async def options(self, url: URL | bytes | str, *, headers: HeaderTypes = None) -> Response:
        """Send an OPTIONS request, and read the whole response. See `request`."""
        return await self.request("OPTIONS", url, headers=headers)

    async def post(
        self, url: URL | bytes | str, *, headers: HeaderTypes = None, content: ContentTypes = None
    ) -> Response:
        """Send a POST request, and read the whole response. See `request`."""
        return await self.request("POST", url, headers=headers, content=content)

    async def put(
        self, url: URL | bytes | str, *, headers: HeaderTypes = None, content: ContentTypes = None
    ) -> Response:
        """Send a PUT request, and read the whole response. See `request`."""
        return await self.request("PUT", url, headers=headers, content=content)

    async def patch(
        self, url: URL | bytes | str, *, headers: HeaderTypes = None, content: ContentTypes = None
    ) -> Response:
        """Send a PATCH request, and read the whole response. See `request`."""
        return await self.request("PATCH", url, headers=headers, content=content)

    async def delete(self, url: URL | bytes | str, *, headers: HeaderTypes = None) -> Response:
        """Send a DELETE request, and read the whole response. See `request`."""
        return await self.request("DELETE", url, headers=headers)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class ConnectionPool(Transport):
    """Sends requests over connections that it keeps for the next ones. For the tasks of one event loop.

    `lamina_pool.AsyncConnectionPool` in the words of this dialect. Close it, or use it as an async context manager.

    Args:
        backend: opens the connections: a `NetworkBackend`, one of your own, or one of the first dialect.
        ssl_context: for https; used as it is. By default one that trusts certifi's certificates.
        max_connections: at most so many connections in all; further requests wait. `None` for no limit.
        max_keepalive_connections: at most so many idle ones. `None` for as many as `max_connections`.
        keepalive_expiry: seconds that a connection may idle. `None` for no limit.
        retries: how often a failed attempt to connect is repeated.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense.
    """

    def __init__(
        self,
        *,
        backend: NetworkBackendInterface | lamina_interfaces.AsyncNetworkBackend | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int | None = 10,
        max_keepalive_connections: int | None = None,
        keepalive_expiry: float | None = None,
        retries: int = 0,
    ) -> None:
        self._pool = _Pool(
            ssl_context,
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
            retries=retries,
            network_backend=_timed_backend(backend),
        )

    async def send(self, request: Request) -> Response:
        """Send a request as it is. See `Transport.send`.

        Raises:
            PoolClosed: the pool was closed, before or meanwhile.
            LaminaError: see `Transport.send`.
        """
        return await self._send(request, None)

    async def _send(self, request: Request, extensions: Extensions | None) -> Response:
        answer = await self._pool.handle_async_request(for_pool(request, extensions))
        return Response(
            answer.status,
            headers=answer.headers,
            content=answer.stream,
            request=request,
            **facts_of(answer.extensions),
        )

    async def close(self) -> None:
        """Close all connections. Requests that wait or are under way end with `PoolClosed`. May be repeated."""
        await self._pool.aclose()

    def stats(self) -> PoolStats:
        """How many connections and requests there are."""
        return self._pool.stats()

    def __repr__(self) -> str:
        return repr(self._pool).replace("Async", "", 1)


class _OneStream(lamina_interfaces.AsyncNetworkBackend):
    """A backend that has one stream to give, and gives it once."""

    def __init__(self, stream: lamina_interfaces.AsyncNetworkStream) -> None:
        self.stream: lamina_interfaces.AsyncNetworkStream | None = stream

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> lamina_interfaces.AsyncNetworkStream:
        stream, self.stream = self.stream, None
        if stream is None:
            raise ConnectionNotAvailable("the connection has ended; open another one", phase="connect")
        return stream


class Connection(Transport):
    """One connection to one origin. `open_connection` makes it. An async context manager that closes it.

    Requests take turns, those of several tasks too. For https the handshake is part of the first request. When the
    server has closed the connection, or an answer was not read to its end, later requests raise
    `ConnectionNotAvailable`.

    Args:
        stream: connected, without TLS; the connection's from now on.
        origin: a URL of the origin that it leads to.
        hostname: the name that the certificate must bear, if it is not the one in `origin`.
        ssl_context: for https; by default one that trusts certifi's certificates.

    Raises:
        InvalidURL, UnsupportedProtocol, ArgumentTypeError: `origin` is no URL of http or https.
    """

    def __init__(
        self,
        stream: NetworkStreamInterface | lamina_interfaces.AsyncNetworkStream,
        origin: URL | bytes | str,
        *,
        hostname: str | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._place = OneOrigin(origin, hostname)
        self._is_closed = False
        self._supply = _OneStream(_timed_stream(stream))
        self._pool = ConnectionPool(backend=self._supply, ssl_context=ssl_context, max_connections=1)

    def build_request(
        self,
        method: str,
        url: URL | bytes | str,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
    ) -> Request:
        """Make the request that `request` and `stream` send. A path will do for `url`.

        Raises:
            InvalidURL, ArgumentTypeError: an argument makes no sense.
        """
        return super().build_request(method, self._place.complete(url), headers=headers, content=content)

    async def send(self, request: Request) -> Response:
        """Send a request as it is. See `Transport.send`.

        Raises:
            ArgumentValueError: it is for another origin.
            ConnectionNotAvailable: the connection has ended.
            LaminaError: see `Transport.send`.
        """
        self._place.check(request, is_closed=self._is_closed)
        return await self._pool._send(request, self._place.extensions)

    async def close(self) -> None:
        """Close the connection. A request that is under way ends with `PoolClosed`. May be repeated."""
        self._is_closed = True
        await self._pool.close()
        stream, self._supply.stream = self._supply.stream, None
        if stream is not None:
            await stream.aclose()

    def __repr__(self) -> str:
        stats = self._pool.stats()
        is_gone = self._supply.stream is None and not stats.connections
        return self._place.connection_name(stats, is_closed=self._is_closed or is_gone)


async def open_connection(
    url: URL | bytes | str,
    *,
    hostname: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    backend: NetworkBackendInterface | lamina_interfaces.AsyncNetworkBackend | None = None,
) -> Connection:
    """Connect to the server of a URL.

    For https the TLS handshake is part of the first request.

    Args:
        url: of the server; its path does not matter.
        hostname: the name that the server's certificate must bear, if it is not the one in `url`.
        ssl_context: for https; by default one that trusts certifi's certificates.
        backend: opens the connection: a `NetworkBackend`, one of your own, or one of the first dialect.

    Returns:
        The connection, the caller's to close; an async context manager.

    Raises:
        ConnectError: the name is unknown, or no address could be connected to.
        DeadlineExceeded: the deadline passed.
        BackendNotFound: `lamina-async-backends` is not installed.
        InvalidURL, UnsupportedProtocol, ArgumentTypeError: an argument makes no sense. Nothing was tried.
    """
    place = OneOrigin(url, hostname)
    with place.named_in_errors():
        stream = await (_timed_backend(backend) or load_backend("auto")).connect_tcp(place.host, place.port)
    try:
        return Connection(stream, url, hostname=hostname, ssl_context=ssl_context)
    except BaseException:
        await stream.aclose()
        raise


# --- the client --------------------------------------------------------------------------------------------


class Client(Transport):
    """Sends requests and follows redirects. For the tasks of one event loop. An async context manager that closes it.

    Redirects are followed as browsers do (RFC 9110, section 15.4). On the way to another origin, and to http from
    https, the headers `Authorization`, `Cookie`, `Proxy-Authorization` and `Host` are dropped. A body is sent again
    if it was given as bytes. There is no time limit but those of `timeout` blocks.

    Args:
        transport: sends the requests; a `ConnectionPool` by default. It is the client's from now on: closing the
            client closes it. What shares a transport with others is closed last, or not at all.
        headers: sent with each request that has none of the same names. By default a User-Agent.
        follow_redirects: whether to; otherwise a redirect is a response like any other.
        max_redirects: so many in a row are followed.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        ArgumentValueError: `max_redirects` is below 0.
    """

    def __init__(
        self,
        *,
        transport: Transport | None = None,
        headers: HeaderTypes = None,
        follow_redirects: bool = True,
        max_redirects: int = MAX_REDIRECTS,
    ) -> None:
        self._headers = CLIENT_HEADERS.copy_update(headers)
        self._max_redirects = most_redirects(max_redirects, follow=follow_redirects)
        self._transport = ConnectionPool() if transport is None else transport
        check_transport(self._transport, "__enter__", "lamina.aio")

    @property
    def headers(self) -> Headers:
        """What is sent with each request."""
        return self._headers

    def build_request(
        self,
        method: str,
        url: URL | bytes | str,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
    ) -> Request:
        """Make the request that `request` and `stream` send, with the client's own headers.

        Raises:
            InvalidURL, ArgumentTypeError: an argument makes no sense.
        """
        return super().build_request(method, url, headers=self._headers.copy_update(headers), content=content)

    async def send(self, request: Request) -> Response:
        """Send a request as it is, and follow redirects from it. See `Transport.send`.

        Raises:
            RedirectError: there were too many redirects, or one that cannot be followed.
            LaminaError: see `Transport.send`.
        """
        return await send_following(_Hop(self._transport), request, self._max_redirects)

    async def close(self) -> None:
        """Close the transport. May be repeated."""
        await self._transport.close()

    def __repr__(self) -> str:
        return f"<Client [{self._transport!r}]>"


class _Hop:
    """One request of several. Fulfils `_dialect_redirects.Hop`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def send(self, request: Request) -> Response:
        return await self._transport.send(request)

    async def close(self, response: Response) -> None:
        await response.close()
