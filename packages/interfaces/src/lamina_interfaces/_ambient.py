"""The second dialect: streams and backends whose time limits are ambient only.

Here `connect(host, port)`, `read(max_bytes)` and `write(data)` take no `timeout=`; a `timeout` block around
them bounds them. Custom backends are written against `NetworkBackendInterface` and `NetworkStreamInterface`,
which ask for less than the first dialect does.

The adapters lead both ways. Towards the first dialect a `timeout=` becomes an ambient deadline for the length
of the call, and passing it gives the error that the first dialect promises. Towards the second, there is
nothing to translate but the names.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ._blocks import DeadlineBlock
from ._deadlines import Limit
from ._errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    DeadlineExceeded,
    UnsupportedProtocol,
)
from ._runtimes import current_runtime
from ._streams import (
    DEFAULT_READ_SIZE,
    AsyncNetworkBackend,
    AsyncNetworkStream,
    NetworkBackend,
    NetworkStream,
)

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Self

    from ._errors import Phase, TimeoutException
    from ._streams import BytesLike, SocketOption


class NetworkStreamInterface:
    """A two-way stream of bytes to one peer, blocking, bounded by ambient deadlines.

    The promises are those of `NetworkStream`, save for `timeout=`.
    """

    def read(self, max_bytes: int | None = None) -> bytes:
        """Return 1 to `max_bytes` bytes (64 KiB for `None`), `b""` at the end. See `NetworkStream.read`."""
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Send all the bytes. See `NetworkStream.write`."""
        raise NotImplementedError

    def start_tls(self, ctx: ssl.SSLContext, hostname: str | None = None) -> Any:
        """Upgrade this stream to TLS, in place. See `NetworkStream.start_tls`."""
        raise NotImplementedError

    def get_extra_info(self, key: str) -> Any:
        """Tell what lies beneath, or `None`. See `NetworkStream.get_extra_info`."""
        return None

    def close(self) -> None:
        """Close the stream. See `NetworkStream.close`."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class NetworkBackendInterface:
    """Opens network streams, blocking, bounded by ambient deadlines."""

    def connect(self, host: str, port: int) -> NetworkStreamInterface:
        """Connect to a TCP port. See `NetworkBackend.connect_tcp`."""
        raise NotImplementedError


class AsyncNetworkStreamInterface:
    """`NetworkStreamInterface` for asyncio or trio."""

    async def read(self, max_bytes: int | None = None) -> bytes:
        """Return 1 to `max_bytes` bytes (64 KiB for `None`), `b""` at the end."""
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        """Send all the bytes."""
        raise NotImplementedError

    async def start_tls(self, ctx: ssl.SSLContext, hostname: str | None = None) -> Any:
        """Upgrade this stream to TLS, in place."""
        raise NotImplementedError

    def get_extra_info(self, key: str) -> Any:
        """Tell what lies beneath, or `None`."""
        return None

    async def close(self) -> None:
        """Close the stream."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


class AsyncNetworkBackendInterface:
    """`NetworkBackendInterface` for asyncio or trio."""

    async def connect(self, host: str, port: int) -> AsyncNetworkStreamInterface:
        """Connect to a TCP port."""
        raise NotImplementedError


# --- from the second dialect to the first ------------------------------------------------------------------


class _AmbientTimeout:
    """A `timeout=` as an ambient deadline: the length of one call into the second dialect."""

    __slots__ = ("_block", "_limit", "_timeout")

    def __init__(self, timeout: float | None, phase: Phase) -> None:
        self._timeout = timeout
        self._limit = Limit(timeout, current_runtime().now, phase)
        self._block: DeadlineBlock | None = None

    def __enter__(self) -> None:
        self._limit.check()
        if self._timeout is not None:
            self._block = DeadlineBlock(self._timeout)
            self._block.open()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is not None and not isinstance(exc, Exception):
            self._limit.interrupted()  # perhaps by an outer block's deadline; that stream may not say so
        if self._block is None:
            return
        error = self._block.close(exc_type, exc, traceback) or exc
        if isinstance(error, DeadlineExceeded) and error.deadline is self._block.deadline:
            raise self._translated(error) from error

    def _translated(self, exc: DeadlineExceeded) -> TimeoutException:
        error = self._limit.error()
        # The backend may have known more than that its time was over: the step, the addresses that it tried.
        error.phase = exc.phase or error.phase
        error.origin = exc.origin
        error.attempts = exc.attempts
        return error


class _StreamFromInterface(NetworkStream):
    """A stream of the second dialect, used as one of the first."""

    def __init__(self, stream: NetworkStreamInterface) -> None:
        self._stream = stream

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        with _AmbientTimeout(timeout, "read"):
            return self._stream.read(max_bytes)

    def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        data = _as_bytes(buffer)
        with _AmbientTimeout(timeout, "write"):
            self._stream.write(data)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        try:
            with _AmbientTimeout(timeout, "tls"):
                upgraded = self._stream.start_tls(ssl_context, server_hostname)
        except ConcurrencyError:
            raise  # the stream belongs to another thread
        except BaseException:
            # Also where nothing of the limit was left, and that stream has not heard of it.
            with suppress(Exception):
                self.close()
            raise
        if upgraded is not None:
            self._stream = upgraded
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def __repr__(self) -> str:
        return repr(self._stream)


class _BackendFromInterface(NetworkBackend):
    """A backend of the second dialect, used as one of the first."""

    def __init__(self, backend: NetworkBackendInterface) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> NetworkStream:
        _refuse_dial_options(local_address, socket_options)
        with _AmbientTimeout(timeout, "connect"):
            return _StreamFromInterface(self._backend.connect(host, port))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> NetworkStream:
        raise UnsupportedProtocol(f"{self._backend!r} connects to a host and a port only")

    def __repr__(self) -> str:
        return repr(self._backend)


class _AsyncStreamFromInterface(AsyncNetworkStream):
    """A stream of the second dialect, used as one of the first. Has no `abort`, unless that stream does."""

    def __init__(self, stream: AsyncNetworkStreamInterface) -> None:
        self._stream = stream

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        with _AmbientTimeout(timeout, "read"):
            return await self._stream.read(max_bytes)

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        data = _as_bytes(buffer)
        with _AmbientTimeout(timeout, "write"):
            await self._stream.write(data)

    async def aclose(self) -> None:
        await self._stream.close()

    def abort(self) -> None:
        abort: Callable[[], object] = getattr(self._stream, "abort", super().abort)
        abort()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        try:
            with _AmbientTimeout(timeout, "tls"):
                upgraded = await self._stream.start_tls(ssl_context, server_hostname)
        except ConcurrencyError:
            raise  # the stream belongs to another task
        except BaseException:
            # Also where nothing of the limit was left, and that stream has not heard of it.
            with suppress(Exception):
                await self.aclose()
            raise
        if upgraded is not None:
            self._stream = upgraded
        return self

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

    def __repr__(self) -> str:
        return repr(self._stream)


class _AsyncBackendFromInterface(AsyncNetworkBackend):
    """A backend of the second dialect, used as one of the first."""

    def __init__(self, backend: AsyncNetworkBackendInterface) -> None:
        self._backend = backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncNetworkStream:
        _refuse_dial_options(local_address, socket_options)
        with _AmbientTimeout(timeout, "connect"):
            return _AsyncStreamFromInterface(await self._backend.connect(host, port))

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> AsyncNetworkStream:
        raise UnsupportedProtocol(f"{self._backend!r} connects to a host and a port only")

    def __repr__(self) -> str:
        return repr(self._backend)


def _as_bytes(buffer: BytesLike) -> bytes:
    # The second dialect's `write` takes `bytes` and nothing else; `bytes(5)` would be five zeros.
    if not isinstance(buffer, (bytes, bytearray, memoryview)):
        raise ArgumentTypeError(f"write takes bytes, not {type(buffer).__name__}")
    return bytes(buffer)


def stream_from_interface(stream: NetworkStreamInterface) -> NetworkStream:
    """Use a stream of the second dialect where one of the first is wanted.

    A `timeout=` becomes an ambient deadline around the call. A stream that ignores ambient deadlines ignores
    it, except that an operation whose limit has passed before it begins is not begun.
    """
    return _StreamFromInterface(stream)


def backend_from_interface(backend: NetworkBackendInterface) -> NetworkBackend:
    """Use a backend of the second dialect where one of the first is wanted.

    `local_address` and `socket_options` raise `ArgumentValueError`, and `connect_unix_socket`
    `UnsupportedProtocol`, since the second dialect has no place for them.
    """
    return _BackendFromInterface(backend)


def async_stream_from_interface(stream: AsyncNetworkStreamInterface) -> AsyncNetworkStream:
    """`stream_from_interface` for asyncio and trio, where a `timeout=` bounds any `await` of that stream."""
    return _AsyncStreamFromInterface(stream)


def async_backend_from_interface(backend: AsyncNetworkBackendInterface) -> AsyncNetworkBackend:
    """`backend_from_interface` for asyncio and trio."""
    return _AsyncBackendFromInterface(backend)


def _refuse_dial_options(local_address: str | None, socket_options: Iterable[SocketOption] | None) -> None:
    if local_address is not None or (socket_options is not None and tuple(socket_options)):
        raise ArgumentValueError("connect(host, port) here takes no local address or socket options")


# --- from the first dialect to the second ------------------------------------------------------------------


class _InterfaceFromStream(NetworkStreamInterface):
    """A stream of the first dialect, used as one of the second."""

    def __init__(self, stream: NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int | None = None) -> bytes:
        return self._stream.read(DEFAULT_READ_SIZE if max_bytes is None else max_bytes)

    def write(self, data: bytes) -> None:
        self._stream.write(data)

    def start_tls(self, ctx: ssl.SSLContext, hostname: str | None = None) -> NetworkStreamInterface:
        self._stream = self._stream.start_tls(ctx, server_hostname=hostname)
        return self

    def get_extra_info(self, key: str) -> Any:
        return self._stream.get_extra_info(key)

    def close(self) -> None:
        self._stream.close()

    def __repr__(self) -> str:
        return repr(self._stream)


class _InterfaceFromBackend(NetworkBackendInterface):
    """A backend of the first dialect, used as one of the second."""

    def __init__(self, backend: NetworkBackend) -> None:
        self._backend = backend

    def connect(self, host: str, port: int) -> NetworkStreamInterface:
        return _InterfaceFromStream(self._backend.connect_tcp(host, port))

    def __repr__(self) -> str:
        return repr(self._backend)


class _AsyncInterfaceFromStream(AsyncNetworkStreamInterface):
    """A stream of the first dialect, used as one of the second."""

    def __init__(self, stream: AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int | None = None) -> bytes:
        return await self._stream.read(DEFAULT_READ_SIZE if max_bytes is None else max_bytes)

    async def write(self, data: bytes) -> None:
        await self._stream.write(data)

    async def start_tls(
        self, ctx: ssl.SSLContext, hostname: str | None = None
    ) -> AsyncNetworkStreamInterface:
        self._stream = await self._stream.start_tls(ctx, server_hostname=hostname)
        return self

    def get_extra_info(self, key: str) -> Any:
        return self._stream.get_extra_info(key)

    async def close(self) -> None:
        await self._stream.aclose()

    def __repr__(self) -> str:
        return repr(self._stream)


class _AsyncInterfaceFromBackend(AsyncNetworkBackendInterface):
    """A backend of the first dialect, used as one of the second."""

    def __init__(self, backend: AsyncNetworkBackend) -> None:
        self._backend = backend

    async def connect(self, host: str, port: int) -> AsyncNetworkStreamInterface:
        return _AsyncInterfaceFromStream(await self._backend.connect_tcp(host, port))

    def __repr__(self) -> str:
        return repr(self._backend)


def interface_from_stream(stream: NetworkStream) -> NetworkStreamInterface:
    """Use a stream of the first dialect where one of the second is wanted."""
    return _InterfaceFromStream(stream)


def interface_from_backend(backend: NetworkBackend) -> NetworkBackendInterface:
    """Use a backend of the first dialect where one of the second is wanted."""
    return _InterfaceFromBackend(backend)


def async_interface_from_stream(stream: AsyncNetworkStream) -> AsyncNetworkStreamInterface:
    """`interface_from_stream` for asyncio and trio."""
    return _AsyncInterfaceFromStream(stream)


def async_interface_from_backend(backend: AsyncNetworkBackend) -> AsyncNetworkBackendInterface:
    """`interface_from_backend` for asyncio and trio."""
    return _AsyncInterfaceFromBackend(backend)
