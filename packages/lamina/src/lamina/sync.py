"""The second dialect, blocking: a small client, and the network under it without `timeout=` arguments.

Write `from lamina import sync as httpx`. `lamina.aio` has the same names for asyncio and trio. Time limits are blocks:
`with timeout(3.0): …` bounds every wait in it.

- `Client` follows redirects, over a `Transport`: by default a `ConnectionPool`; a `Connection` is one too.
- `NetworkBackend` and `NetworkStream` are the network beneath. To write one of your own, see `NetworkBackendInterface`
  and `NetworkStreamInterface`.

What does not wait is in `_dialect_models`, and redirects are in `_dialect_redirects`, both shared with `lamina.aio`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, overload

import lamina_interfaces
from lamina_interfaces import ArgumentTypeError as ArgumentTypeError
from lamina_interfaces import ArgumentValueError as ArgumentValueError
from lamina_interfaces import BackendNotFound as BackendNotFound
from lamina_interfaces import ConcurrencyError as ConcurrencyError
from lamina_interfaces import ConnectError as ConnectError
from lamina_interfaces import ConnectionNotAvailable as ConnectionNotAvailable
from lamina_interfaces import ConnectTimeout as ConnectTimeout
from lamina_interfaces import DeadlineExceeded as DeadlineExceeded
from lamina_interfaces import InvalidURL as InvalidURL
from lamina_interfaces import LaminaError as LaminaError
from lamina_interfaces import LocalProtocolError as LocalProtocolError
from lamina_interfaces import NetworkBackendInterface as NetworkBackendInterface
from lamina_interfaces import NetworkError as NetworkError
from lamina_interfaces import NetworkStreamInterface as NetworkStreamInterface
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
    backend_from_interface,
    default_backend,
    drive,
    stream_from_interface,
)
from lamina_pool import ConnectionPool as _Pool
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
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from lamina_interfaces import SocketOption
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

    One thread may read while another writes; two that read, or two that write, get `ConcurrencyError`. `close` may be
    called from any thread. The promises are those of `lamina_interfaces.NetworkStream`, save for `timeout=`: use a
    `timeout` block.

    Args:
        sock: a connected stream socket, not an `ssl.SSLSocket`. The stream's from now on.

    Raises:
        ArgumentTypeError: it is no plain socket.
        ArgumentValueError: it is closed.
    """

    def __init__(self, sock: socket.socket) -> None:
        from lamina_sync_backend import SyncStream

        self._adopt(SyncStream(sock))

    @classmethod
    def _over(cls, stream: lamina_interfaces.NetworkStream) -> Self:
        self = cls.__new__(cls)
        self._adopt(stream)
        return self

    def _adopt(self, stream: lamina_interfaces.NetworkStream) -> None:
        self._stream = stream
        self._is_closed = False
        # Asked for now: a closed socket cannot tell.
        self._server_addr = stream.get_extra_info("server_addr")

    def read(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes, and return those that have come.

        Args:
            max_bytes: the most bytes to return, at least 1; `None` stands for 64 KiB.

        Returns:
            From 1 to `max_bytes` bytes, or `b""` once the peer has ended its side.

        Raises:
            DeadlineExceeded: the deadline passed. No byte is lost.
            ReadError: the connection broke, or the stream is closed.
            ConcurrencyError: another thread is reading.
        """
        return self._stream.read(max_bytes)

    def write(self, data: bytes) -> None:
        """Send all the bytes.

        Raises:
            DeadlineExceeded: the deadline passed. An unknown part has been sent: the stream can only be closed.
            WriteError: the connection broke, or the stream is closed.
            ConcurrencyError: another thread is writing.
        """
        self._stream.write(data)

    def start_tls(self, ctx: ssl.SSLContext, hostname: str | None = None) -> Self:
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
            ConcurrencyError: another thread is reading or writing. The stream is as it was.
        """
        try:
            self._stream = self._stream.start_tls(ctx, server_hostname=hostname)
        except ConcurrencyError:
            raise
        except BaseException:
            self.close()
            raise
        return self

    def get_extra_info(self, key: str) -> Any:
        """Tell something about what lies beneath, or `None`.

        Args:
            key: `"client_addr"`, `"server_addr"`, `"ssl_object"`, `"socket"`, `"is_readable"` (whether a read would
                return at once) or `"timings"`.
        """
        return self._stream.get_extra_info(key)

    def close(self) -> None:
        """Close the stream; over TLS with the closing message, if the system takes it at once. May be repeated."""
        self._is_closed = True
        self._stream.close()

    def __repr__(self) -> str:
        return stream_name(
            self._server_addr,
            is_closed=self._is_closed,
            is_tls=self._stream.get_extra_info("ssl_object") is not None,
        )


class NetworkBackend(NetworkBackendInterface):
    """The default backend: opens streams over TCP. For any number of threads.

    Args:
        backend: a backend of the first dialect (`lamina_interfaces.NetworkBackend`) to use instead of the one of
            `lamina-sync-backend`; a `SyncBackend` with a resolver of your own, for instance.
    """

    def __init__(self, backend: lamina_interfaces.NetworkBackend | None = None) -> None:
        self._backend = backend

    def _timed(self) -> lamina_interfaces.NetworkBackend:
        if self._backend is None:
            self._backend = default_backend()
        return self._backend

    def connect(self, host: str, port: int) -> NetworkStream:
        """Connect to a TCP port.

        Args:
            host: a name or an IP address.
            port: 1 to 65535.

        Returns:
            The connected stream, the caller's to close; a context manager.

        Raises:
            ConnectError: the name is unknown, or no address could be connected to.
            DeadlineExceeded: the deadline passed. No socket is left.
            ArgumentValueError, ArgumentTypeError: an argument makes no sense.
        """
        return NetworkStream._over(self._timed().connect_tcp(host, port))

    def __repr__(self) -> str:
        return "<NetworkBackend [threaded]>"


def _timed_backend(
    backend: NetworkBackendInterface | lamina_interfaces.NetworkBackend | None,
) -> lamina_interfaces.NetworkBackend | None:
    """A backend of either dialect, as one of the first."""
    foreign = (lamina_interfaces.AsyncNetworkBackend, lamina_interfaces.AsyncNetworkBackendInterface)
    if isinstance(backend, foreign):
        raise ArgumentTypeError(f"backend must be for blocking code, which {type(backend).__name__} is not")
    if backend is None or isinstance(backend, lamina_interfaces.NetworkBackend):
        return backend
    if type(backend) is NetworkBackend:
        return backend._timed()
    if isinstance(backend, NetworkBackendInterface):
        return backend_from_interface(backend)
    raise ArgumentTypeError(f"backend must be a NetworkBackendInterface, not {type(backend).__name__}")


def _timed_stream(
    stream: NetworkStreamInterface | lamina_interfaces.NetworkStream,
) -> lamina_interfaces.NetworkStream:
    """A stream of either dialect, as one of the first."""
    if type(stream) is NetworkStream:
        return stream._stream
    if isinstance(stream, lamina_interfaces.NetworkStream):
        return stream
    return stream_from_interface(stream)


# --- messages ----------------------------------------------------------------------------------------------


class Response(ResponseBase):
    """A response. A context manager that closes it.

    From `get` and its like it comes read; from `stream` and `send` with its body still on the network. One thread at
    a time may read.

    Args:
        status_code: `200`.
        headers: pairs, or a mapping.
        content: the body: bytes, or an iterable of bytes, which `close` closes if it can.
        reason_phrase: the words after the code; by default the usual ones.
        http_version: `"HTTP/1.1"`.
        request: what it answers.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
    """

    _needs = "__iter__"

    @property
    def stream(self) -> Iterator[bytes]:
        """The body, piece by piece, as it comes in; for a response that has been read, all of it at once.

        It is one iterator: a second loop goes on where the first one stopped.

        Raises:
            ResponseStateError: by the iterator: the response was closed before the end of its body.
            ReadError, RemoteProtocolError, DeadlineExceeded: by the iterator: the body could not be read to its end.
        """
        if self._content is not None:
            return iter((self._content,) if self._content else ())
        if self._body is None:
            self._body = _Body(self)
        body: _Body = self._body
        return body

    def read(self) -> bytes:
        """Read the whole body, keep it as `content`, and return it. A second call returns the same bytes.

        Raises:
            ResponseStateError: the body was read as a stream, or the response was closed before.
            ReadError, RemoteProtocolError, DeadlineExceeded: the body could not be read to its end.
        """
        if self._content is None:
            self._begin(whole=True)
            self._content = b"".join(self.stream)
        return self._content

    def close(self) -> None:
        """Let go of the connection, whatever is still unread. May be repeated, and called from any thread."""
        self._is_closed = True
        close = getattr(self._source, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class _Body:
    """The body of one response, as an iterator."""

    __slots__ = ("_has_ended", "_pieces", "_response")

    def __init__(self, response: Response) -> None:
        self._response = response
        self._has_ended = False
        self._pieces = iter(response._source)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        if self._has_ended:
            raise StopIteration
        self._response._begin(whole=False)
        try:
            piece: bytes = next(self._pieces)
        except StopIteration:
            self._has_ended = True
            raise
        return piece


# --- transports --------------------------------------------------------------------------------------------


class Transport:
    """Sends requests. `Client`, `ConnectionPool` and `Connection` are transports; so is what you build on this class.

    To write one, implement `send`, and `close` if there is something to close. The other methods are made of these.
    """

    def send(self, request: Request) -> Response:
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

    def close(self) -> None:
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

    def request(
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
            content: the body: bytes, or an iterable of bytes, which is sent in chunks.

        Returns:
            The response; `response.content` is its body.

        Raises:
            LaminaError: see `send`; and the same from reading the body.
        """
        with self.send(self.build_request(method, url, headers=headers, content=content)) as response:
            response.read()
        return response

    @overload
    def stream(
        self, url: URL | bytes | str, /, *, headers: HeaderTypes = None, content: ContentTypes = None
    ) -> Response: ...
    @overload
    def stream(
        self,
        method: str = "GET",
        url: URL | bytes | str | None = None,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
    ) -> Response: ...

    def stream(
        self,
        method: Any = "GET",
        url: URL | bytes | str | None = None,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
    ) -> Response:
        """Send a request, and return the response before its body: `stream(url)`, or `stream(method, url)`.

        Use it as a context manager, which closes it: `with client.stream(url) as response: …`.

        Args and errors are those of `request`.
        """
        verb, place = method_and_url(method, url)
        return self.send(self.build_request(verb, place, headers=headers, content=content))

    def get(self, url: URL | bytes | str, *, headers: HeaderTypes = None) -> Response:
        """Send a GET request, and read the whole response. See `request`."""
        return self.request("GET", url, headers=headers)

    def head(self, url: URL | bytes | str, *, headers: HeaderTypes = None) -> Response:
        """Send a HEAD request. See `request`."""
        return self.request("HEAD", url, headers=headers)

    def options(self, url: URL | bytes | str, *, headers: HeaderTypes = None) -> Response:
        """Send an OPTIONS request, and read the whole response. See `request`."""
        return self.request("OPTIONS", url, headers=headers)

    def post(
        self, url: URL | bytes | str, *, headers: HeaderTypes = None, content: ContentTypes = None
    ) -> Response:
        """Send a POST request, and read the whole response. See `request`."""
        return self.request("POST", url, headers=headers, content=content)

    def put(
        self, url: URL | bytes | str, *, headers: HeaderTypes = None, content: ContentTypes = None
    ) -> Response:
        """Send a PUT request, and read the whole response. See `request`."""
        return self.request("PUT", url, headers=headers, content=content)

    def patch(
        self, url: URL | bytes | str, *, headers: HeaderTypes = None, content: ContentTypes = None
    ) -> Response:
        """Send a PATCH request, and read the whole response. See `request`."""
        return self.request("PATCH", url, headers=headers, content=content)

    def delete(self, url: URL | bytes | str, *, headers: HeaderTypes = None) -> Response:
        """Send a DELETE request, and read the whole response. See `request`."""
        return self.request("DELETE", url, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class ConnectionPool(Transport):
    """Sends requests over connections that it keeps for the next ones. For any number of threads.

    `lamina_pool.ConnectionPool` in the words of this dialect. Close it, or use it as a context manager.

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
        backend: NetworkBackendInterface | lamina_interfaces.NetworkBackend | None = None,
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

    def send(self, request: Request) -> Response:
        """Send a request as it is. See `Transport.send`.

        Raises:
            PoolClosed: the pool was closed, before or meanwhile.
            LaminaError: see `Transport.send`.
        """
        return self._send(request, None)

    def _send(self, request: Request, extensions: Extensions | None) -> Response:
        answer = self._pool.handle_request(for_pool(request, extensions))
        return Response(
            answer.status,
            headers=answer.headers,
            content=answer.stream,
            request=request,
            **facts_of(answer.extensions),
        )

    def close(self) -> None:
        """Close all connections. Requests that wait or are under way end with `PoolClosed`. May be repeated."""
        self._pool.close()

    def stats(self) -> PoolStats:
        """How many connections and requests there are."""
        return self._pool.stats()

    def __repr__(self) -> str:
        return repr(self._pool)


class _OneStream(lamina_interfaces.NetworkBackend):
    """A backend that has one stream to give, and gives it once."""

    def __init__(self, stream: lamina_interfaces.NetworkStream) -> None:
        self.stream: lamina_interfaces.NetworkStream | None = stream

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> lamina_interfaces.NetworkStream:
        stream, self.stream = self.stream, None
        if stream is None:
            raise ConnectionNotAvailable("the connection has ended; open another one", phase="connect")
        return stream


class Connection(Transport):
    """One connection to one origin. `open_connection` makes it. A context manager that closes it.

    Requests take turns, those of several threads too. For https the handshake is part of the first request. When the
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
        stream: NetworkStreamInterface | lamina_interfaces.NetworkStream,
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

    def send(self, request: Request) -> Response:
        """Send a request as it is. See `Transport.send`.

        Raises:
            ArgumentValueError: it is for another origin.
            ConnectionNotAvailable: the connection has ended.
            LaminaError: see `Transport.send`.
        """
        self._place.check(request, is_closed=self._is_closed)
        return self._pool._send(request, self._place.extensions)

    def close(self) -> None:
        """Close the connection. A request that is under way ends with `PoolClosed`. May be repeated."""
        self._is_closed = True
        self._pool.close()
        stream, self._supply.stream = self._supply.stream, None
        if stream is not None:
            stream.close()

    def __repr__(self) -> str:
        stats = self._pool.stats()
        is_gone = self._supply.stream is None and not stats.connections
        return self._place.connection_name(stats, is_closed=self._is_closed or is_gone)


def open_connection(
    url: URL | bytes | str,
    *,
    hostname: str | None = None,
    ssl_context: ssl.SSLContext | None = None,
    backend: NetworkBackendInterface | lamina_interfaces.NetworkBackend | None = None,
) -> Connection:
    """Connect to the server of a URL.

    For https the TLS handshake is part of the first request.

    Args:
        url: of the server; its path does not matter.
        hostname: the name that the server's certificate must bear, if it is not the one in `url`.
        ssl_context: for https; by default one that trusts certifi's certificates.
        backend: opens the connection: a `NetworkBackend`, one of your own, or one of the first dialect.

    Returns:
        The connection, the caller's to close; a context manager.

    Raises:
        ConnectError: the name is unknown, or no address could be connected to.
        DeadlineExceeded: the deadline passed.
        InvalidURL, UnsupportedProtocol, ArgumentTypeError: an argument makes no sense. Nothing was tried.
    """
    place = OneOrigin(url, hostname)
    with place.named_in_errors():
        stream = (_timed_backend(backend) or default_backend()).connect_tcp(place.host, place.port)
    try:
        return Connection(stream, url, hostname=hostname, ssl_context=ssl_context)
    except BaseException:
        stream.close()
        raise


# --- the client --------------------------------------------------------------------------------------------


class Client(Transport):
    """Sends requests and follows redirects. For any number of threads. A context manager that closes it.

    Redirects are followed as browsers do (RFC 9110, section 15.4). On the way to another origin, and to http from
    https, the headers `Authorization`, `Cookie`, `Proxy-Authorization` and `Host` are dropped. A body is sent again
    if it was given as bytes, a list or a tuple. There is no time limit but those of `timeout` blocks.

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
        check_transport(self._transport, "__aenter__", "lamina.sync")

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

    def send(self, request: Request) -> Response:
        """Send a request as it is, and follow redirects from it. See `Transport.send`.

        Raises:
            RedirectError: there were too many redirects, or one that cannot be followed.
            LaminaError: see `Transport.send`.
        """
        return drive(send_following(_Hop(self._transport), request, self._max_redirects))

    def close(self) -> None:
        """Close the transport. May be repeated."""
        self._transport.close()

    def __repr__(self) -> str:
        return f"<Client [{self._transport!r}]>"


class _Hop:
    """One request of several, blocking. Fulfils `_dialect_redirects.Hop`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def send(self, request: Request) -> Response:
        return self._transport.send(request)

    async def close(self, response: Response) -> None:
        response.close()


for _public in (Headers, RedirectError, Request):
    _public.__module__ = __name__
