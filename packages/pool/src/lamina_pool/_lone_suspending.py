"""Async connections without a pool: `AsyncHTTPConnection`, `AsyncHTTP11Connection`, `AsyncHTTP2Connection`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    AsyncNetworkStream,
    AsyncNetworkStreamInterface,
    NetworkStream,
    async_stream_from_interface,
)

from ._faces import check_kind
from ._interfaces import AsyncConnectionInterface
from ._lone import LoneFace, LonePool, LoneStreamFace, lone_settings, settings_of
from ._suspending import SuspendingStream, SuspendingWorld, as_async_backend, faced

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from lamina_interfaces import AsyncNetworkBackend, AsyncNetworkBackendInterface, SocketOption

    from ._models import Request, Response
    from ._pool import Pool
    from ._urls import Origin


class _Suspending(LoneFace, AsyncConnectionInterface):
    """What the three have in common."""

    _world: SuspendingWorld

    async def handle_async_request(self, request: Request) -> Response:
        """Send a request as it is; nothing is added to its headers.

        Returns:
            The response, its body unread; the caller reads it to its end, or closes it.

        Raises:
            ConnectionNotAvailable: the connection speaks HTTP/1.1 and is in use, or it is closed, or cannot carry this
                kind of request. Nothing was sent, and another connection may take it.
            OriginMismatch: it leads to another origin.
            PoolTimeout: over HTTP/2, no stream became free within the `"pool"` timeout.
            LaminaError: all others as from `AsyncConnectionPool.handle_async_request`; nothing is sent a second time
                here.
        """
        return await faced(self._lone.handle_request(request))

    async def aclose(self) -> None:
        """Close it, and its network stream. Never waits for the peer; the second time nothing is done.

        A request that is under way ends with an error of the network. A custom stream that can only be closed by
        waiting is waited for, at most a second; it is closed also if that is cancelled.
        """
        given = self._lone.take_given()
        self._lone.close()
        if given is not None:
            if not self._world.runtime.is_here():
                self._world.move()
            given.close_now()
        await self._world.finish_closing()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self.aclose()


class AsyncHTTPConnection(_Suspending):
    """One connection to one origin, opened by the first request. For the tasks of one event loop.

    Over HTTP/1.1 it carries one request at a time: another one meanwhile gets `ConnectionNotAvailable`, and does not
    wait. Over HTTP/2 several, and those that the server does not allow yet wait for one to end. Once it was open and
    has been closed, by whomever, it is of no further use. An attempt to open it that failed, or was cancelled, may be
    repeated by another request. Use it as an async context manager, or close it.

    Args:
        origin: where it leads.
        ssl_context: as for `AsyncConnectionPool`, as are all that follow.
        keepalive_expiry: seconds that it may idle; then it is closed instead of used. `None` for no limit.
        http1: whether HTTP/1.1 may be spoken.
        http2: whether HTTP/2 may be spoken.
        retries: how often a failed attempt to connect is repeated.
        local_address: our own IP address to connect from.
        uds: path of a unix socket to connect to instead of the origin's host and port.
        network_backend: opens the connection.
        socket_options: set on the socket before connecting.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense.
        UnsupportedProtocol: HTTP/2 is asked for, and its package is not installed.
    """

    def __init__(
        self,
        origin: Origin,
        ssl_context: ssl.SSLContext | None = None,
        keepalive_expiry: float | None = None,
        http1: bool = True,
        http2: bool = False,
        retries: int = 0,
        local_address: str | None = None,
        uds: str | None = None,
        network_backend: AsyncNetworkBackend | AsyncNetworkBackendInterface | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> None:
        self._world = SuspendingWorld(as_async_backend(network_backend))
        self._lone = LonePool(
            self._world,
            *lone_settings(
                ssl_context=ssl_context,
                keepalive_expiry=keepalive_expiry,
                http1=http1,
                http2=http2,
                retries=retries,
                local_address=local_address,
                uds=uds,
                socket_options=socket_options,
            ),
            origin,
        )

    @classmethod
    def _of(cls, pool: Pool, world: SuspendingWorld, origin: Origin) -> Self:
        """A connection as this pool would open it."""
        connection = cls.__new__(cls)
        connection._world = world.another()
        connection._lone = LonePool(connection._world, *settings_of(pool), origin)
        return connection


class AsyncHTTP11Connection(LoneStreamFace, _Suspending):
    """HTTP/1.1 over a network stream that is open already, TLS included. For the tasks of one event loop.

    It carries one request at a time; another one meanwhile gets `ConnectionNotAvailable`. The stream is the
    connection's from now on, and is closed with it. Use it as an async context manager, or close it.

    Args:
        origin: where the stream leads.
        stream: what to speak over.
        keepalive_expiry: seconds that it may idle; then it is closed instead of used. `None` for no limit.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense.
    """

    def __init__(
        self,
        origin: Origin,
        stream: AsyncNetworkStream | AsyncNetworkStreamInterface,
        keepalive_expiry: float | None = None,
    ) -> None:
        self._world = SuspendingWorld(None)
        self._lone = _over(self._world, origin, stream, keepalive_expiry=keepalive_expiry)


class AsyncHTTP2Connection(LoneStreamFace, _Suspending):
    """HTTP/2 over a network stream that is open already, TLS included. For the tasks of one event loop.

    It carries several requests at once; those that the server does not allow yet wait for one to end. The stream is the
    connection's from now on, and is closed with it. Use it as an async context manager, or close it. Needs the extra
    `http2`.

    Args:
        origin: where the stream leads.
        stream: what to speak over. That HTTP/2 is spoken is taken for granted, whatever ALPN says.
        keepalive_expiry: seconds that it may idle; then it is closed instead of used. `None` for no limit.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense.
        UnsupportedProtocol: the package for HTTP/2 is not installed.
    """

    def __init__(
        self,
        origin: Origin,
        stream: AsyncNetworkStream | AsyncNetworkStreamInterface,
        keepalive_expiry: float | None = None,
    ) -> None:
        self._world = SuspendingWorld(None)
        self._lone = _over(
            self._world, origin, stream, keepalive_expiry=keepalive_expiry, http1=False, http2=True
        )


def _over(
    world: SuspendingWorld,
    origin: Origin,
    stream: AsyncNetworkStream | AsyncNetworkStreamInterface,
    **options: Any,
) -> LonePool:
    settings = lone_settings(**options)
    if isinstance(stream, AsyncNetworkStreamInterface):
        stream = async_stream_from_interface(stream)
    check_kind("stream", stream, AsyncNetworkStream, NetworkStream, "read")
    return LonePool(world, *settings, origin, SuspendingStream(stream, world))
