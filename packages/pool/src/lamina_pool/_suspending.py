"""The async pool: `AsyncConnectionPool`, and the world in which the pool's one text suspends a task.

It runs under asyncio and trio, whichever runs when the first request is sent. All of a pool's steps are taken in the
thread of its event loop, so the lock around a step is always free.

A stream is closed in places where nothing can be awaited: while a cancellation passes by, in a finaliser. Lamina's own
streams can be (`PromptCloser`, `abort`). One that only has `aclose` is closed by a task of its own, within a second,
and closing the pool waits for that.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

from lamina_interfaces import (
    AsyncNetworkBackend,
    AsyncNetworkBackendInterface,
    AsyncNetworkStream,
    BackendNotFound,
    DeadlineBlock,
    Limit,
    NetworkBackend,
    PromptCloser,
    ThreadRuntime,
    async_backend_from_interface,
    current_runtime,
    load_backend,
)

from ._faces import (
    BodyFace,
    StreamFace,
    Switched,
    WholeBody,
    addresses_of,
    check_kind,
    describe_pool,
    pieces_of,
    untrusted_bytes,
)
from ._interfaces import AsyncRequestInterface
from ._io import END, CallerError
from ._models import ByteStream
from ._pool import Pool
from ._settings import read_settings

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterable
    from types import TracebackType
    from typing import Self

    from lamina_interfaces import BytesLike, Event, Phase, Runtime, SocketOption

    from ._body import ResponseBody
    from ._events import PoolEvent
    from ._io import BodySource
    from ._lone_suspending import AsyncHTTPConnection
    from ._models import Proxy, Request, Response
    from ._stats import PooledConnection, PoolStats
    from ._urls import Origin

T = TypeVar("T")

CLOSING_SECONDS = 1.0
"""How long the closing of a custom stream, or the clean-up of a body after a cancellation, may take."""


class NoRuntime(ThreadRuntime):
    """Stands for the runtime of a pool that has not been used in any yet."""

    def is_here(self) -> bool:
        """Nowhere."""
        return False

    def has_ended(self) -> bool:
        """So that the pool may move on."""
        return True

    def run_soon(self, function: Callable[[], object]) -> None:
        """Nothing comes of it, as in a loop that has ended."""


class SuspendingStream(StreamFace[AsyncNetworkStream]):
    """An `AsyncNetworkStream`, custom ones too. Fulfils `_io.Stream`."""

    __slots__ = ("_is_left", "_world")

    def __init__(self, stream: AsyncNetworkStream, world: SuspendingWorld) -> None:
        super().__init__(stream)
        self._world = world
        self._is_left = False

    async def read(self, max_bytes: int, timeout: float | None) -> bytes:
        # As `noted` does it, without a coroutine more for what every request does.
        try:
            data: bytes = await self.public.read(max_bytes, timeout=timeout)
        except Exception:
            raise
        except BaseException:
            self._world.note_interruption("read")
            raise
        return data

    async def read_into(self, buffer: memoryview, timeout: float | None) -> int:
        return await self._world.noted("read", self.public.read_into(buffer, timeout=timeout))

    async def write(self, buffer: BytesLike, timeout: float | None) -> None:
        await self._world.noted("write", self.public.write(buffer, timeout=timeout))

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None) -> int:
        if not self.is_watchful:
            return await self._write_looking(buffer, timeout)
        try:
            sent: int = await self.public.write_until_readable(buffer, timeout=timeout)
        except Exception:
            raise
        except BaseException:
            self._world.note_interruption("write")
            raise
        return sent

    async def _write_looking(self, buffer: BytesLike, timeout: float | None) -> int:
        for start, piece in pieces_of(buffer):
            if self.get_extra_info("is_readable"):
                return start
            await self.write(piece, timeout)
        return len(buffer)

    async def wait_writable(self, timeout: float | None) -> None:
        await self._world.noted("write", self.public.wait_writable(timeout))

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None, timeout: float | None
    ) -> SuspendingStream:
        step = self.public.start_tls(ssl_context, server_hostname=server_hostname, timeout=timeout)
        return SuspendingStream(await self._world.noted("tls", step), self._world)

    def close_now(self) -> None:
        self._close(getattr(self.public, "close_now", None))

    def abort(self) -> None:
        self._close(getattr(self.public, "abort", None))

    def _close(self, close: Callable[[], object] | None) -> None:
        try:
            if close is None:
                raise NotImplementedError
            close()
        except NotImplementedError:
            if not self._is_left:
                self._is_left = True
                self._world.close_later(self.public)
        except Exception:  # noqa: BLE001 - a custom stream that breaks its contract; nothing more can be done for it
            pass


class SuspendingBody(BodyFace):
    """A request's body, pulled from an async iterable. Fulfils `_io.BodySource`."""

    __slots__ = ("_iterator",)

    def __init__(self, iterable: AsyncIterable[bytes]) -> None:
        super().__init__()
        try:
            self._iterator = aiter(iterable)
        except Exception as error:
            raise CallerError(error) from error

    async def _pull(self) -> Any:
        try:
            return await self._iterator.__anext__()
        except StopAsyncIteration:
            return END

    async def aclose(self) -> None:
        aclose = getattr(self._iterator, "aclose", None)
        if aclose is None:
            return
        passing = sys.exception()
        try:
            if passing is None or isinstance(passing, Exception):
                await aclose()
            else:
                # Cancelled, and yet its clean-up is to be run; but nobody waits for it for long.
                with _Shield():
                    await aclose()
        except Exception as error:
            raise CallerError(error) from error


class SuspendingWorld:
    """asyncio and trio, as the pool's one text sees them. Fulfils `_io.World`."""

    is_blocking = False

    def __init__(self, backend: AsyncNetworkBackend | None) -> None:
        self._backend = backend
        self.runtime: Runtime = NoRuntime()
        self._closing: set[object] = set()
        self._closed: list[Event] = []

    def another(self) -> SuspendingWorld:
        """One with the same backend, which may run in another event loop."""
        return SuspendingWorld(self._backend)

    def move(self) -> None:
        runtime = current_runtime()
        if runtime.name == "threads":
            raise BackendNotFound("no event loop is running: an async pool needs asyncio or trio")
        self.runtime = runtime
        self._forget_closing()

    def leave(self) -> None:
        self.runtime = NoRuntime()
        self._forget_closing()

    def _forget_closing(self) -> None:
        self._closing, self._closed = set(), []

    @property
    def backend(self) -> AsyncNetworkBackend:
        """The backend in use; the default one is looked for when it is first needed."""
        if self._backend is None:
            self._backend = load_backend("auto")
        return self._backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None,
        local_address: str | None,
        socket_options: Iterable[SocketOption] | None,
    ) -> SuspendingStream:
        step = self.backend.connect_tcp(
            host, port, timeout=timeout, local_address=local_address, socket_options=socket_options
        )
        return SuspendingStream(await self.noted("connect", step), self)

    async def connect_unix_socket(
        self, path: str, timeout: float | None, socket_options: Iterable[SocketOption] | None
    ) -> SuspendingStream:
        step = self.backend.connect_unix_socket(path, timeout=timeout, socket_options=socket_options)
        return SuspendingStream(await self.noted("connect", step), self)

    async def resolve(self, host: str, port: int, timeout: float | None) -> list[str]:
        resolve: Any = getattr(self.backend, "resolve", None)
        if resolve is None:
            return []
        return addresses_of(await self.noted("dns", resolve(host, port, timeout=timeout)))

    async def sleep(self, seconds: float) -> None:
        await self.noted("connect", self.backend.sleep(seconds))

    def body_source(self, stream: Any) -> BodySource:
        return WholeBody(stream) if type(stream) is ByteStream else SuspendingBody(stream)

    def response_stream(self, body: ResponseBody) -> AsyncResponseStream:
        return AsyncResponseStream(body)

    def switched_stream(self, body: ResponseBody, leading: bytes) -> AsyncSwitchedStream:
        return AsyncSwitchedStream(body, leading)

    async def noted(self, phase: Phase, step: Awaitable[T]) -> T:
        """Await a step, and note its phase if a cancellation passes by: a custom stream may know no deadlines."""
        try:
            return await step
        except Exception:
            raise
        except BaseException:
            self.note_interruption(phase)
            raise

    def note_interruption(self, phase: Phase) -> None:
        """A cancellation passes by, in this phase."""
        Limit(None, self.runtime.now, phase).interrupted()

    # --- custom streams that can only be closed by waiting -------------------------------------------------

    def close_later(self, stream: AsyncNetworkStream) -> None:
        """Close it by a task of its own. From any thread; never waits or raises."""
        token = object()
        # Of this event loop, should the pool have moved on by the end.
        closing, closed = self._closing, self._closed

        async def close() -> None:
            try:
                with _Shield():
                    await stream.aclose()
            except Exception:  # noqa: BLE001 - nobody is left who could be told
                pass
            finally:
                closing.discard(token)
                while closed and not closing:
                    closed.pop().set()

        def start() -> None:
            closing.add(token)
            if not self.runtime.spawn(close):
                closing.discard(token)  # nobody is to wait for it

        if self.runtime.is_here():
            start()
        else:
            self.runtime.run_soon(start)

    async def finish_closing(self) -> None:
        """Wait until all that `close_later` was given is closed, not for long."""
        if self._closing and self.runtime.is_here():
            event = self.runtime.create_event()
            self._closed.append(event)
            await event.wait(2 * CLOSING_SECONDS)  # by then each has ended by itself


class _Shield:
    """Keeps a cancellation that is passing by out of its block. After `CLOSING_SECONDS` it ends the block itself."""

    __slots__ = ("_block",)

    def __enter__(self) -> None:
        self._block = DeadlineBlock(CLOSING_SECONDS, shield=True)
        self._block.open()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return self._block.close(exc_type, exc, traceback) is not None


async def faced(coroutine: Coroutine[Any, Any, T]) -> T:
    """Await the pool's text; what the caller's own code raised in it comes out as it was."""
    try:
        return await coroutine
    except CallerError as error:
        original = error.original
    if isinstance(original, StopAsyncIteration):
        # As it is it would be taken for the end of the body; PEP 525 does the same to a generator's.
        raise RuntimeError("the caller's code raised StopAsyncIteration") from original  # noqa: TRY004 - not our check
    try:
        raise original
    finally:
        del original  # which its traceback would keep in a cycle


class AsyncResponseStream:
    """The body of a response, as an async iterator over bytes. Closing it gives the connection back.

    One task at a time may read. Closing may be done by another one; what is being read then ends with `ReadError`.
    """

    __slots__ = ("_body",)

    def __init__(self, body: ResponseBody) -> None:
        self._body = body

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await faced(self._body.receive())
        if not data:
            raise StopAsyncIteration
        return data

    async def aread_whole(self) -> bytes:
        """The same as joining all that there is still to iterate over."""
        return self._body.take_whole() or await faced(self._body.receive_whole())

    async def aclose(self) -> None:
        """Let go of the connection, whatever is unread; the second time nothing is done. Frees it when cancelled."""
        if self._body.is_open:
            await faced(self._body.close())


class AsyncSwitchedStream(Switched[AsyncNetworkStream], AsyncNetworkStream, PromptCloser):
    """The connection after the server has switched protocols; `AsyncNetworkStream`'s contract.

    Begins with what the server has already sent of the new protocol. It keeps its place in the pool until it is
    closed, by itself, by closing the response, or with the pool.
    """

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """See `AsyncNetworkStream.read`."""
        if self._leading:
            return self._take_leading(max_bytes)
        with self._body.explaining():
            return await self._stream.read(max_bytes, timeout=timeout)

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """See `AsyncNetworkStream.write`."""
        with self._body.explaining():
            await self._stream.write(buffer, timeout=timeout)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        """See `AsyncNetworkStream.start_tls`. Returns this stream.

        Raises:
            ReadError: bytes have come that the handshake cannot account for.
        """
        if self._leading:
            self.abort()
            raise untrusted_bytes()
        with self._body.explaining():
            self._stream = await self._stream.start_tls(
                ssl_context, server_hostname=server_hostname, timeout=timeout
            )
        return self

    async def aclose(self) -> None:
        """Close the connection, and give its place back."""
        self._leading = b""
        try:
            await self._stream.aclose()
        finally:
            self._body.abort()

    def close_now(self) -> None:
        """See `PromptCloser.close_now`."""
        self._leading = b""
        try:
            if isinstance(self._stream, PromptCloser):
                self._stream.close_now()
        finally:
            self._body.abort()

    def abort(self) -> None:
        """Close the connection without farewell, and give its place back."""
        self._leading = b""
        self._body.abort()


class AsyncConnectionPool(AsyncRequestInterface):
    """Sends requests over connections that it keeps for the next ones. For the tasks of one event loop.

    Use it as an async context manager, or close it. It belongs to the event loop, of asyncio or trio, in which it is
    used first. When that one has ended, or stands still, its connections are dropped, and the pool works in the next.
    Requests that are under way in a loop which stands still end with an error when it goes on. Use in a second loop
    while the first is running raises `ConcurrencyError`. After a fork the child's pool begins empty.

    A request that is cancelled, at whatever point, gives up its place in the queue or its connection at once.

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
        network_backend: opens the connections. By default one of `lamina-async-backends`, for the runtime that runs.
        socket_options: set on every socket before connecting, each as `socket.setsockopt` takes it.
        max_connections_per_origin: at most so many connections to one scheme, host and port (and one
            `"sni_hostname"`, where that extension is used).
        max_connection_age: seconds after which a connection takes no new requests, so that a changed DNS entry
            or a load balancer comes into its own.
        age_jitter: up to which fraction that is shortened, at random for each connection.
        http2_ping_interval: after so many seconds without a sign of life an HTTP/2 server is sent a PING while a
            request waits for it. `None` for never.
        http2_ping_timeout: seconds that it has to answer; then the connection counts as broken.
        on_event: called with a `PoolEvent` for each thing that happens, a plain function. It is called in the task
            of the request, and not awaited, so it should be quick. What it raises goes to `sys.unraisablehook`.

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
        network_backend: AsyncNetworkBackend | AsyncNetworkBackendInterface | None = None,
        socket_options: Iterable[SocketOption] | None = None,
        *,
        max_connections_per_origin: int | None = None,
        max_connection_age: float | None = None,
        age_jitter: float = 0.1,
        http2_ping_interval: float | None = None,
        http2_ping_timeout: float = 20.0,
        on_event: Callable[[PoolEvent], object] | None = None,
    ) -> None:
        self._world = SuspendingWorld(as_async_backend(network_backend))
        self._pool = Pool(
            self._world,
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

    async def handle_async_request(self, request: Request) -> Response:
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
            ConcurrencyError: the pool is in use in another event loop.
            BackendNotFound: there is no backend for the running event loop, or none runs.

            Whatever it is, also a cancellation, nothing is held then. A request is sent a second time only if a
            reused connection turned out to be dead before any byte of the answer, and the request has a method that
            may be repeated (RFC 9110, section 9.2.2) and a body that can be, or nothing of it had been sent.
        """
        return await faced(self._pool.handle_request(request))

    def create_connection(self, origin: Origin) -> AsyncHTTPConnection:
        """A connection of its own, opened as this pool's are, and not one of them: the caller closes it.

        Raises:
            ArgumentTypeError: it is no `Origin`.
        """
        from ._lone_suspending import AsyncHTTPConnection  # which needs this module first

        return AsyncHTTPConnection._of(self._pool, self._world, origin)

    async def aclose(self) -> None:
        """Close all connections, without waiting for any peer.

        Requests that wait or are under way end with `PoolClosed`, as do later ones. May be called more than once.
        Custom streams that can only be closed by waiting are waited for, at most a second; everything is closed
        also if that is cancelled.
        """
        self._pool.close()
        await self._world.finish_closing()

    def reap(self) -> None:
        """Close the idle connections whose time is over, without waiting for the next request to do so.

        A program that may send nothing for a long time can call it now and then.
        """
        self._pool.reap()

    @property
    def connections(self) -> list[PooledConnection]:
        """The connections, oldest first, each as it is at this moment."""
        return self._pool.connections()

    def stats(self, *, per_origin: bool = False) -> PoolStats:
        """How many connections and requests there are.

        Args:
            per_origin: whether to count them for each origin, too.

        Returns:
            The counts at one moment. In constant time; with `per_origin` in proportion to the number of origins.
        """
        return self._pool.stats(per_origin=per_origin)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return describe_pool(self, self._pool.stats())


def as_async_backend(
    backend: AsyncNetworkBackend | AsyncNetworkBackendInterface | None,
) -> AsyncNetworkBackend | None:
    """The backend that was given, in the first dialect.

    Raises:
        ArgumentTypeError: it is none.
    """
    if isinstance(backend, AsyncNetworkBackendInterface):
        return async_backend_from_interface(backend)
    if backend is not None:
        check_kind("network_backend", backend, AsyncNetworkBackend, NetworkBackend, "connect_tcp")
    return backend
