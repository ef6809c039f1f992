"""What `lamina.httpx` and `lamina.httpx2` share: transports that hand a client's requests to a pool.

The two client libraries have the same names and no class in common, and each checks with `isinstance` that what it is
given is its own. So what is here is written against a `Library`, and each of the two modules makes its public classes
of it. Neither library is imported here.

Which error of lamina becomes which of the library is the table in `Library`; what happens to `DeadlineExceeded`
depends on what was being done. The caller's mistakes (`ArgumentTypeError`, `ArgumentValueError`) stay as they are: they
are the builtin `TypeError` and `ValueError`, as for the library's own arguments, and no trouble of the network that
should be tried again.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypedDict, TypeVar, cast

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    AsyncNetworkStream,
    ConnectError,
    ConnectionNotAvailable,
    ConnectTimeout,
    DeadlineExceeded,
    InvalidURL,
    LaminaError,
    LocalProtocolError,
    NetworkError,
    NetworkStream,
    PoolClosed,
    PoolTimeout,
    ProtocolError,
    ProxyError,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    TimeoutException,
    UnsupportedProtocol,
    WriteError,
    WriteTimeout,
)
from lamina_pool import URL, AsyncConnectionPool, ByteStream, ConnectionPool, Proxy, Request

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from types import ModuleType, TracebackType
    from typing import Unpack

    from lamina_interfaces import (
        AsyncNetworkBackend,
        AsyncNetworkBackendInterface,
        BytesLike,
        NetworkBackend,
        NetworkBackendInterface,
        SocketOption,
    )
    from lamina_pool import PoolEvent, Response

T = TypeVar("T")

CertTypes = str | tuple[str, str] | tuple[str, str, str]
"""A client certificate: a file, or certificate, key and the key's password."""


class LimitsLike(Protocol):
    """`Limits` of either library."""

    max_connections: int | None
    max_keepalive_connections: int | None
    keepalive_expiry: float | None


class PoolOptions(TypedDict, total=False):
    """What lamina's pools take and the libraries' own transports do not; `ConnectionPool` says what each means."""

    max_connections_per_origin: int | None
    max_connection_age: float | None
    age_jitter: float
    http2_ping_interval: float | None
    http2_ping_timeout: float
    on_event: Callable[[PoolEvent], object] | None


class BlockingOptions(PoolOptions, total=False):
    """The same for a blocking transport."""

    network_backend: NetworkBackend | NetworkBackendInterface | None


class AsyncOptions(PoolOptions, total=False):
    """The same for an async transport."""

    network_backend: AsyncNetworkBackend | AsyncNetworkBackendInterface | None


@dataclass(frozen=True)
class Settings:
    """The arguments of the library's own transports, by their names, with their defaults."""

    verify: ssl.SSLContext | str | bool = True
    cert: CertTypes | None = None
    trust_env: bool = True
    http1: bool = True
    http2: bool = False
    limits: LimitsLike | None = None
    proxy: Any = None
    uds: str | None = None
    local_address: str | None = None
    retries: int = 0
    socket_options: Iterable[SocketOption] | None = None


class Library:
    """What the transports take from a client library.

    Args:
        module: `httpx`, or `httpx2`.
        core: the name of the network library beneath it. Code that speaks WebSockets over a response's
            `network_stream` expects that library's errors from it.

    Attributes:
        translating: a context manager that turns lamina's errors into the library's.
        translating_for_streams: one that turns them into those of the network library.
    """

    def __init__(self, module: ModuleType, core: str) -> None:
        self._module: Any = module
        self._core = core
        classes: dict[type[LaminaError], type[Exception]] = {
            LaminaError: self._module.TransportError,
            ConnectionNotAvailable: self._module.ConnectError,
        }
        for kind in (
            *(TimeoutException, PoolTimeout, ConnectTimeout, ReadTimeout, WriteTimeout),
            *(NetworkError, ConnectError, ReadError, WriteError, ProxyError),
            *(ProtocolError, LocalProtocolError, RemoteProtocolError, UnsupportedProtocol, InvalidURL),
        ):
            classes[kind] = getattr(module, kind.__name__)
        self._classes = classes
        self.translating = Translating(self._class_for)
        self.translating_for_streams = Translating(self._core_class_for)
        self._response_body: Any = type("ResponseBody", (ResponseBody, self._module.SyncByteStream), {})
        self._async_response_body: Any = type(
            "AsyncResponseBody", (AsyncResponseBody, self._module.AsyncByteStream), {}
        )

    # --- settings

    def pool_arguments(self, settings: Settings) -> dict[str, Any]:
        """The arguments of a pool."""
        limits = settings.limits
        if limits is None:  # as the library's own transports have them
            limits = self._module.Limits(max_connections=100, max_keepalive_connections=20)
        return {
            "ssl_context": self._ssl_context(settings),
            "proxy": None if settings.proxy is None else self._proxy(settings.proxy),
            "max_connections": limits.max_connections,
            "max_keepalive_connections": limits.max_keepalive_connections,
            "keepalive_expiry": limits.keepalive_expiry,
            "http1": settings.http1,
            "http2": settings.http2,
            "retries": settings.retries,
            "local_address": settings.local_address,
            "uds": settings.uds,
            "socket_options": settings.socket_options,
        }

    def _ssl_context(self, settings: Settings) -> ssl.SSLContext:
        verify, cert = settings.verify, settings.cert
        context: ssl.SSLContext
        if not isinstance(verify, (bool, str)):
            if not hasattr(verify, "wrap_bio"):
                raise ArgumentTypeError(
                    f"verify must be a bool, a path as a str, or an SSLContext, not {type(verify).__name__}"
                )
            if cert is not None:
                raise ArgumentValueError(
                    "cert would change the SSL context that was given as verify: "
                    "call its load_cert_chain instead"
                )
            return verify
        context = self._module.create_ssl_context(verify=verify, trust_env=settings.trust_env)
        if cert is not None:
            # Not left to the library: with a path as `verify` one of the two forgets it, and the other refuses.
            context.load_cert_chain(*((cert,) if isinstance(cert, str) else cert))
        spoken = {"h2": settings.http2, "http/1.1": settings.http1}
        context.set_alpn_protocols([name for name, is_spoken in spoken.items() if is_spoken])
        return context

    def _proxy(self, given: Any) -> Proxy:
        proxy = given if isinstance(given, self._module.Proxy) else self._module.Proxy(given)
        return Proxy(
            self._url(proxy.url),
            auth=proxy.raw_auth,
            headers=proxy.headers.raw,
            ssl_context=proxy.ssl_context,
        )

    # --- requests and responses

    def _url(self, url: Any) -> URL:
        return URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)

    def request(self, request: Any) -> Request:
        """The pool's request for one of the library's.

        Raises:
            InvalidURL: the library let a host pass that cannot exist.
        """
        content = request.stream
        if type(content) is self._module.ByteStream:
            # All of it is there: as such it leaves with the head, and the pool may repeat it.
            content = ByteStream(b"".join(content))
        return Request(
            request.method,
            self._url(request.url),
            headers=request.headers.raw,
            content=content,
            extensions=request.extensions,
        )

    def response(self, response: Response, *, is_async: bool) -> Any:
        """One of the library's responses for the pool's."""
        body = (self._async_response_body if is_async else self._response_body)(self, response.stream)
        extensions = response.extensions
        stream = extensions.get("network_stream")
        if response.status == 101 and stream is not None:
            kind = AsyncSwitchedStream if is_async else SwitchedStream
            extensions = {**extensions, "network_stream": kind(self, stream)}
        return self._module.Response(
            response.status, headers=response.headers, stream=body, extensions=extensions
        )

    # --- errors

    def _class_for(self, error: LaminaError) -> type[Exception] | None:
        kind = type(error)
        if isinstance(error, (ArgumentTypeError, ArgumentValueError)):
            return None
        if isinstance(error, DeadlineExceeded):
            kind = DEADLINES.get(error.phase or "", TimeoutException)
        return next(self._classes[each] for each in kind.__mro__ if each in self._classes)

    def _core_class_for(self, error: LaminaError) -> type[Exception] | None:
        kind = type(error)
        if isinstance(error, PoolClosed):
            # They know of streams only, and that one may be closed.
            kind = WriteError if error.phase == "write" else ReadError
        elif isinstance(error, DeadlineExceeded):
            kind = DEADLINES.get(error.phase or "", TimeoutException)
        found = getattr(importlib.import_module(self._core), kind.__name__, None)
        return None if found is None or isinstance(error, found) else cast("type[Exception]", found)


DEADLINES: dict[str, type[LaminaError]] = {
    "pool": PoolTimeout,
    "dns": ConnectTimeout,
    "connect": ConnectTimeout,
    "tls": ConnectTimeout,
    "proxy": ConnectTimeout,
    "write": WriteTimeout,
    "read": ReadTimeout,
}
"""Which time-out the end of an ambient deadline amounts to, by the phase in which it came."""


class Translating:
    """Turns lamina's errors into others: the same text, the original as the cause. Keeps no state.

    Args:
        class_for: the class to raise instead, or `None` for the error itself.
    """

    def __init__(self, class_for: Callable[[LaminaError], type[Exception] | None]) -> None:
        self._class_for = class_for

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(exc, LaminaError):
            kind = self._class_for(exc)
            if kind is not None:
                raise kind(str(exc)) from exc


# --- bodies and streams ------------------------------------------------------------------------------------


class ResponseBody:
    """The body of a response, as the library iterates over it."""

    def __init__(self, library: Library, stream: Any) -> None:
        self._translating = library.translating
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._translating:
            piece: bytes = next(self._stream)
        return piece

    def close(self) -> None:
        with self._translating:
            self._stream.close()


class AsyncResponseBody:
    """The same in async code. No generator: nothing depends on its being finalised."""

    def __init__(self, library: Library, stream: Any) -> None:
        self._translating = library.translating
        self._stream = stream

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        with self._translating:
            piece: bytes = await anext(self._stream)
        return piece

    async def aclose(self) -> None:
        with self._translating:
            await self._stream.aclose()


class SwitchedStream(NetworkStream):
    """The connection after a switch of protocols, with the errors of the network library that the client knows."""

    def __init__(self, library: Library, stream: NetworkStream) -> None:
        self._translating = library.translating_for_streams
        self._stream = stream

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """See `NetworkStream.read`."""
        with self._translating:
            data = self._stream.read(max_bytes, timeout=timeout)
        return data

    def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """See `NetworkStream.write`."""
        with self._translating:
            self._stream.write(buffer, timeout=timeout)

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        """See `NetworkStream.start_tls`. Returns this stream."""
        with self._translating:
            self._stream = self._stream.start_tls(ssl_context, server_hostname, timeout)
        return self

    def close(self) -> None:
        """See `NetworkStream.close`."""
        with self._translating:
            self._stream.close()

    def abort(self) -> None:
        """See `NetworkStream.abort`."""
        self._stream.abort()

    def get_extra_info(self, info: str) -> Any:
        """See `NetworkStream.get_extra_info`."""
        return self._stream.get_extra_info(info)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self._stream!r}]>"


class AsyncSwitchedStream(AsyncNetworkStream):
    """The async twin of `SwitchedStream`."""

    def __init__(self, library: Library, stream: AsyncNetworkStream) -> None:
        self._translating = library.translating_for_streams
        self._stream = stream

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """See `NetworkStream.read`."""
        with self._translating:
            data = await self._stream.read(max_bytes, timeout=timeout)
        return data

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """See `NetworkStream.write`."""
        with self._translating:
            await self._stream.write(buffer, timeout=timeout)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        """See `NetworkStream.start_tls`. Returns this stream."""
        with self._translating:
            self._stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        return self

    async def aclose(self) -> None:
        """See `NetworkStream.close`."""
        with self._translating:
            await self._stream.aclose()

    def abort(self) -> None:
        """See `NetworkStream.abort`."""
        self._stream.abort()

    def get_extra_info(self, info: str) -> Any:
        """See `NetworkStream.get_extra_info`."""
        return self._stream.get_extra_info(info)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self._stream!r}]>"


# --- transports --------------------------------------------------------------------------------------------


class Transport:
    """All of `HTTPTransport` but the library's own base class and types."""

    _library: ClassVar[Library]

    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: CertTypes | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: LimitsLike | None = None,
        proxy: Any = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[SocketOption] | None = None,
        *,
        pool: ConnectionPool | None = None,
        **options: Unpack[BlockingOptions],
    ) -> None:
        settings = Settings(
            verify,
            cert,
            trust_env,
            http1,
            http2,
            limits,
            proxy,
            uds,
            local_address,
            retries,
            socket_options,
        )
        self._is_ours = pool is None
        self._pool = _pool(self._library, ConnectionPool, pool, settings, dict(options))

    def _handle(self, request: Any) -> Any:
        with self._library.translating:
            response = self._pool.handle_request(self._library.request(request))
        return self._library.response(response, is_async=False)

    def close(self) -> None:
        """Close the pool, if it is the transport's own."""
        if self._is_ours:
            self._pool.close()

    @property
    def pool(self) -> ConnectionPool:
        """The pool beneath, for `stats()` and `connections`."""
        return self._pool

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._pool!r}>"


class AsyncTransport:
    """All of `AsyncHTTPTransport` but the library's own base class and types."""

    _library: ClassVar[Library]

    def __init__(
        self,
        verify: ssl.SSLContext | str | bool = True,
        cert: CertTypes | None = None,
        trust_env: bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: LimitsLike | None = None,
        proxy: Any = None,
        uds: str | None = None,
        local_address: str | None = None,
        retries: int = 0,
        socket_options: Iterable[SocketOption] | None = None,
        *,
        pool: AsyncConnectionPool | None = None,
        **options: Unpack[AsyncOptions],
    ) -> None:
        settings = Settings(
            verify,
            cert,
            trust_env,
            http1,
            http2,
            limits,
            proxy,
            uds,
            local_address,
            retries,
            socket_options,
        )
        self._is_ours = pool is None
        self._pool = _pool(self._library, AsyncConnectionPool, pool, settings, dict(options))

    async def _handle(self, request: Any) -> Any:
        with self._library.translating:
            response = await self._pool.handle_async_request(self._library.request(request))
        return self._library.response(response, is_async=True)

    async def aclose(self) -> None:
        """Close the pool, if it is the transport's own."""
        if self._is_ours:
            await self._pool.aclose()

    @property
    def pool(self) -> AsyncConnectionPool:
        """The pool beneath, for `stats()` and `connections`."""
        return self._pool

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._pool!r}>"


def _pool(
    library: Library, pool_class: type[T], given: T | None, settings: Settings, options: dict[str, Any]
) -> T:
    """The caller's pool, or a new one.

    Raises:
        ArgumentValueError: a pool was given, and settings that it cannot be given any more.
    """
    if given is None:
        return pool_class(**library.pool_arguments(settings), **options)
    if settings != Settings() or options:
        raise ArgumentValueError("a pool that is given has its settings: give them where it is made")
    if not isinstance(given, pool_class):
        raise ArgumentTypeError(f"pool must be a {pool_class.__name__}, not {type(given).__name__}")
    return given
