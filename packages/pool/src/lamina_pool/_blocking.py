"""The blocking pool: `ConnectionPool`, and the world in which the pool's one text blocks instead of suspending."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from lamina_interfaces import (
    THREADS,
    AsyncNetworkBackend,
    NetworkBackend,
    NetworkBackendInterface,
    NetworkStream,
    backend_from_interface,
    default_backend,
    drive,
)

from ._faces import (
    PlainBody,
    StreamFace,
    Switched,
    WholeBody,
    addresses_of,
    check_kind,
    describe_pool,
    pieces_of,
    untrusted_bytes,
)
from ._interfaces import RequestInterface
from ._io import CallerError
from ._models import ByteStream
from ._pool import Pool
from ._settings import read_settings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Coroutine, Iterable, Iterator
    from types import TracebackType
    from typing import Self

    from lamina_interfaces import BytesLike, SocketOption, ThreadRuntime

    from ._body import ResponseBody
    from ._events import PoolEvent
    from ._io import BodySource
    from ._lone_blocking import HTTPConnection
    from ._models import Proxy, Request, Response
    from ._stats import PooledConnection, PoolStats
    from ._urls import Origin

T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run the pool's text; what the caller's own code raised in it comes out as it was."""
    try:
        return drive(coroutine)
    except CallerError as error:
        original = error.original
    try:
        raise original
    finally:
        del original  # which its traceback would keep in a cycle


class BlockingStream(StreamFace[NetworkStream]):
    """A `NetworkStream` whose methods can be awaited, and block. Fulfils `_io.Stream`."""

    __slots__ = ()

    async def read(self, max_bytes: int, timeout: float | None) -> bytes:
        data: bytes = self.public.read(max_bytes, timeout=timeout)
        return data

    async def read_into(self, buffer: memoryview, timeout: float | None) -> int:
        count: int = self.public.read_into(buffer, timeout=timeout)
        return count

    async def write(self, buffer: BytesLike, timeout: float | None) -> None:
        self.public.write(buffer, timeout=timeout)

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None) -> int:
        if self.is_watchful:
            sent: int = self.public.write_until_readable(buffer, timeout=timeout)
            return sent
        for start, piece in pieces_of(buffer):
            if self.get_extra_info("is_readable"):
                return start
            self.public.write(piece, timeout=timeout)
        return len(buffer)

    async def wait_writable(self, timeout: float | None) -> None:
        self.public.wait_writable(timeout)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None, timeout: float | None
    ) -> BlockingStream:
        return BlockingStream(
            self.public.start_tls(ssl_context, server_hostname=server_hostname, timeout=timeout)
        )

    def close_now(self) -> None:
        try:
            self.public.close()
        except Exception:  # noqa: BLE001 - a custom stream that breaks its contract; nothing more can be done for it
            pass

    def abort(self) -> None:
        try:
            getattr(self.public, "abort", self.public.close)()
        except Exception:  # noqa: BLE001 - as above
            pass


class BlockingWorld:
    """Blocking code, as the pool's one text sees it. Fulfils `_io.World`."""

    is_blocking = True
    runtime: ThreadRuntime = THREADS

    def __init__(self, backend: NetworkBackend | None) -> None:
        self._backend = backend

    @property
    def backend(self) -> NetworkBackend:
        """The backend in use; the default one is looked for when it is first needed."""
        if self._backend is None:
            self._backend = default_backend()
        return self._backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[SocketOption] | None,
    ) -> BlockingStream:
        return BlockingStream(
            self.backend.connect_tcp(
                host, port, timeout=timeout, local_address=local_address, socket_options=socket_options
            )
        )

    async def connect_unix_socket(
        self, path: str, timeout: float | None, socket_options: Iterable[SocketOption] | None
    ) -> BlockingStream:
        return BlockingStream(
            self.backend.connect_unix_socket(path, timeout=timeout, socket_options=socket_options)
        )

    async def resolve(self, host: str, port: int, timeout: float | None) -> list[str]:
        resolve: Any = getattr(self.backend, "resolve", None)
        return [] if resolve is None else addresses_of(resolve(host, port, timeout=timeout))

    async def sleep(self, seconds: float) -> None:
        self.backend.sleep(seconds)

    def move(self) -> None:
        raise AssertionError("unreachable: blocking code is everywhere at home")

    def leave(self) -> None:
        """Nothing: blocking code is everywhere at home."""

    def body_source(self, stream: Any) -> BodySource:
        return WholeBody(stream) if type(stream) is ByteStream else PlainBody(stream)

    def response_stream(self, body: ResponseBody) -> ResponseStream:
        return ResponseStream(body)

    def switched_stream(self, body: ResponseBody, leading: bytes) -> SwitchedStream:
        return SwitchedStream(body, leading)


class ResponseStream:
    """The body of a response, as an iterator over bytes. Closing it gives the connection back.

    One thread at a time may read. Closing may be done by another one; what is being read then ends with `ReadError`.
    """

    __slots__ = ("_body",)

    def __init__(self, body: ResponseBody) -> None:
        self._body = body

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            data = run(self._body.receive())
        except StopIteration as error:
            # A callback's. As it is it would be taken for the end of the body; PEP 479 does the same to a generator's.
            raise RuntimeError("the trace callback raised StopIteration") from error
        if not data:
            raise StopIteration
        return data

    def read_whole(self) -> bytes:
        """The same as joining all that there is still to iterate over."""
        try:
            return self._body.take_whole() or run(self._body.receive_whole())
        except StopIteration as error:
            raise RuntimeError("the trace callback raised StopIteration") from error  # as above

    def close(self) -> None:
        """Let go of the connection, whatever is unread; the second time nothing is done."""
        if self._body.is_open:
            run(self._body.close())


class SwitchedStream(Switched[NetworkStream], NetworkStream):
    """The connection after the server has switched protocols (101, or 2xx to CONNECT); `NetworkStream`'s contract.

    Begins with what the server has already sent of the new protocol. It keeps its place in the pool until it is
    closed, by itself, by closing the response, or with the pool.
    """

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """See `NetworkStream.read`."""
        if self._leading:
            return self._take_leading(max_bytes)
        with self._body.explaining():
            return self._stream.read(max_bytes, timeout=timeout)

    def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """See `NetworkStream.write`."""
        with self._body.explaining():
            self._stream.write(buffer, timeout=timeout)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        """See `NetworkStream.start_tls`. Returns this stream.

        Raises:
            ReadError: bytes have come that the handshake cannot account for.
        """
        if self._leading:
            self.close()
            raise untrusted_bytes()
        with self._body.explaining():
            self._stream = self._stream.start_tls(
                ssl_context, server_hostname=server_hostname, timeout=timeout
            )
        return self

    def close(self) -> None:
        """Close the connection, and give its place back."""
        self._leading = b""
        try:
            self._stream.close()
        finally:
            run(self._body.close())


class ConnectionPool(RequestInterface):
    """Sends requests over connections that it keeps for the next ones. Blocking; for any number of threads.

    Use it as a context manager, or close it. After a fork the child's pool begins empty.

    Args:
        ssl_context: for https; used as it is, never changed. By default one that trusts certifi's certificates
            and is shared by all pools of the process.
        proxy: that requests go through: forwarded by it if they are plain HTTP/1.1, otherwise in a tunnel; if it
            speaks SOCKS5 (extra `socks`), everything in a tunnel. With `socks5` names are resolved here, with
            `socks5h` there. The addresses and socket options below then are those of connections to the proxy.
        max_connections: at most so many connections in all, those being opened and closed included; further
            requests wait, first come first served. `None` for no limit.
        max_keepalive_connections: at most so many idle ones. `None` for as many as `max_connections`.
        keepalive_expiry: seconds that a connection may idle. `None` for no limit.
        http1: whether HTTP/1.1 may be spoken. With `http1=False, http2=True` HTTP/2 is taken for granted, without TLS
            too (prior knowledge, RFC 9113, section 3.3).
        http2: whether HTTP/2 may be spoken: over TLS, where the server chooses it (ALPN). Needs the extra `http2`. An
            `ssl_context` of the caller's own must offer `"h2"` itself. CONNECT, and requests with an Upgrade header,
            go over HTTP/1.1 connections of their own.
        retries: how often a failed attempt to connect is repeated: at once, then after 0.5 s, 1 s, 2 s, …
        local_address: our own IP address to connect from.
        uds: path of a unix socket to connect to instead of the URL's host and port, or the proxy's.
        network_backend: opens the connections. By default the one of `lamina-sync-backend`.
        socket_options: set on every socket before connecting, each as `socket.setsockopt` takes it.
        max_connections_per_origin: at most so many connections to one scheme, host and port (and one
            `"sni_hostname"`, where that extension is used).
        max_connection_age: seconds after which a connection takes no new requests, so that a changed DNS entry
            or a load balancer comes into its own.
        age_jitter: up to which fraction that is shortened, at random for each connection.
        http2_ping_interval: after so many seconds without a sign of life an HTTP/2 server is sent a PING while a
            request waits for it. `None` for never.
        http2_ping_timeout: seconds that it has to answer; then the connection counts as broken.
        on_event: called with a `PoolEvent` for each thing that happens, a plain function. It is called by the
            thread of the request, so by several at once, and never while a lock is held. It should be quick. What it
            raises goes to `sys.unraisablehook`.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense.
        UnsupportedProtocol: a package is needed that is not installed, or the proxy has another scheme.
        InvalidURL, LocalProtocolError: the proxy has no host, or credentials that its protocol cannot carry.
    """

    def __init__(
        self,
        ssl_context: ssl.SSLContext | None = None,
        proxy: Proxy | None = None,
        max_connections: int | None = 10,
        max_keepalive_connections: int | None = None,
        keepalive_expiry: float | None = None,
        http1: bool = True,
        http2: bool = False,
        retries: int = 0,
        local_address: str | None = None,
        uds: str | None = None,
        network_backend: NetworkBackend | NetworkBackendInterface | None = None,
        socket_options: Iterable[SocketOption] | None = None,
        *,
        max_connections_per_origin: int | None = None,
        max_connection_age: float | None = None,
        age_jitter: float = 0.1,
        http2_ping_interval: float | None = None,
        http2_ping_timeout: float = 20.0,
        on_event: Callable[[PoolEvent], object] | None = None,
    ) -> None:
        self._pool = Pool(
            BlockingWorld(as_backend(network_backend)),
            *read_settings(
                ssl_context=ssl_context,
                proxy=proxy,
                max_connections=max_connections,
                max_keepalive_connections=max_keepalive_connections,
                keepalive_expiry=keepalive_expiry,
                http1=http1,
                http2=http2,
                http2_ping_interval=http2_ping_interval,
                http2_ping_timeout=http2_ping_timeout,
                retries=retries,
                local_address=local_address,
                uds=uds,
                socket_options=socket_options,
                max_connections_per_origin=max_connections_per_origin,
                max_connection_age=max_connection_age,
                age_jitter=age_jitter,
            ),
            on_event,
        )

    def handle_request(self, request: Request) -> Response:
        """Send a request as it is; nothing is added to its headers.

        Returns:
            The response, its body unread; the caller reads it to its end, or closes it.

        Raises:
            PoolTimeout: no connection became free within the `"pool"` timeout.
            ConnectTimeout, ConnectError: no connection could be made.
            ProxyError: the proxy refused to connect, or failed.
            WriteTimeout, WriteError: the request could not be sent.
            ReadTimeout, ReadError: the answer did not come.
            DeadlineExceeded: the ambient deadline passed, in any of these phases.
            LocalProtocolError: the request is not valid.
            RemoteProtocolError: the answer is not valid, or the server closed the connection without one.
            UnsupportedProtocol, InvalidURL, ArgumentTypeError, ArgumentValueError: it cannot be sent at all.
            PoolClosed: the pool was closed, before or meanwhile.

            Whatever it is, nothing is held then. A request is sent a second time only if a reused connection
            turned out to be dead before any byte of the answer, and the request has a method that may be repeated
            (RFC 9110, section 9.2.2) and a body that can be, or nothing of it had been sent.
        """
        return run(self._pool.handle_request(request))

    def create_connection(self, origin: Origin) -> HTTPConnection:
        """A connection of its own, opened as this pool's are, and not one of them: the caller closes it.

        Raises:
            ArgumentTypeError: it is no `Origin`.
        """
        from ._lone_blocking import HTTPConnection  # which needs this module first

        return HTTPConnection._of(self._pool, origin)

    def close(self) -> None:
        """Close all connections, without waiting for any peer.

        Requests that wait or are under way end with `PoolClosed`, as do later ones. May be called from any thread,
        and more than once.
        """
        self._pool.close()

    def reap(self) -> None:
        """Close the idle connections whose time is over, without waiting for the next request to do so.

        A program that may send nothing for a long time can call it now and then. May be called from any thread.
        """
        self._pool.reap()

    @property
    def connections(self) -> list[PooledConnection]:
        """The connections, oldest first, each as it is at this moment."""
        return self._pool.connections()

    def stats(self, *, per_origin: bool = False) -> PoolStats:
        """How many connections and requests there are. May be called from any thread.

        Args:
            per_origin: whether to count them for each origin, too.

        Returns:
            The counts at one moment. In constant time; with `per_origin` in proportion to the number of origins.
        """
        return self._pool.stats(per_origin=per_origin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return describe_pool(self, self._pool.stats())


def as_backend(backend: NetworkBackend | NetworkBackendInterface | None) -> NetworkBackend | None:
    """The backend that was given, in the first dialect.

    Raises:
        ArgumentTypeError: it is none.
    """
    if isinstance(backend, NetworkBackendInterface):
        return backend_from_interface(backend)
    if backend is not None:
        check_kind("network_backend", backend, NetworkBackend, AsyncNetworkBackend, "connect_tcp")
    return backend
