"""The backend that finds out what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina_interfaces import (
    AsyncNameResolver,
    AsyncNetworkBackend,
    ConcurrencyError,
    UnsupportedProtocol,
    running_runtime,
)
from lamina_interfaces.resolving import check_resolver

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable, Sequence

    from lamina_interfaces import AsyncNetworkStream, AsyncResolver, ResolvedAddress, Resolver, SocketOption

    from ._anyio import AnyIOBackend
    from ._asyncio import AsyncioBackend
    from ._trio import TrioBackend

_NAMES = {"asyncio": "AsyncioBackend", "anyio": "AnyIOBackend", "trio": "TrioBackend"}


class AutoBackend(AsyncNetworkBackend, AsyncNameResolver):
    """TCP and unix sockets for whatever runs: `AsyncioBackend` under asyncio, `TrioBackend` under trio.

    Where the loop of asyncio cannot watch sockets, as Windows' `ProactorEventLoop`, it is `AnyIOBackend`, if anyio is
    installed: that watches them in a thread of its own.

    What runs is found out at each call; the backend for it is made at the first. One `AutoBackend` may serve both.

    Args:
        resolver: turns names into addresses; the system's own if `None`. Blocking (`Resolver`) or not
            (`AsyncResolver`). IP addresses do not reach it.
        keep_alive: whether the system probes a peer that has been silent for 60 seconds, and ends the
            connection when five probes stay unanswered.

    Raises:
        ArgumentTypeError: `resolver` is none.
    """

    def __init__(self, *, resolver: Resolver | AsyncResolver | None = None, keep_alive: bool = True) -> None:
        self._resolver = check_resolver(resolver, also_async=True)
        self._keep_alive = keep_alive
        self._backends: dict[str, AsyncioBackend | AnyIOBackend | TrioBackend] = {}

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncNetworkStream:
        """Connect to a TCP port, over the first of the host's addresses that answers (RFC 8305).

        See `AsyncNetworkBackend.connect_tcp`. `TCP_NODELAY` and keep-alive are set before the caller's options.

        Raises:
            ConcurrencyError: neither asyncio nor trio runs here.
            UnsupportedProtocol: the loop of asyncio cannot watch sockets, and anyio is not installed.
        """
        return await self._here().connect_tcp(host, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> AsyncNetworkStream:
        """Connect to a unix domain socket. See `AsyncNetworkBackend.connect_unix_socket`.

        Raises:
            ConcurrencyError: neither asyncio nor trio runs here.
            UnsupportedProtocol: the loop of asyncio cannot watch sockets, and anyio is not installed.
        """
        return await self._here().connect_unix_socket(path, timeout, socket_options)

    async def resolve(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None
    ) -> Sequence[ResolvedAddress]:
        """Return the addresses to which `connect_tcp` would connect. See `NameResolver.resolve`.

        Raises:
            ConcurrencyError: neither asyncio nor trio runs here.
            UnsupportedProtocol: the loop of asyncio cannot watch sockets, and anyio is not installed.
        """
        return await self._here().resolve(host, port, timeout, local_address)

    async def wrap_socket(self, sock: socket.socket) -> AsyncNetworkStream:
        """A stream over a connected plain socket, which is the stream's from now on.

        Raises:
            ConcurrencyError: neither asyncio nor trio runs here.
            UnsupportedProtocol: the loop of asyncio cannot watch sockets, and anyio is not installed.
        """
        return await self._here().wrap_socket(sock)

    def _here(self) -> AsyncioBackend | AnyIOBackend | TrioBackend:
        name: str = running_runtime()
        if name == "asyncio" and not _loop_watches_sockets():
            name = "anyio"
        backend = self._backends.get(name)
        if backend is None:
            backend = self._backends[name] = self._make(name)
        return backend

    def _make(self, name: str) -> AsyncioBackend | AnyIOBackend | TrioBackend:
        # From the package, not from the modules: it gives the classes their public names.
        import lamina_async_backends as backends

        if name == "threads":
            raise ConcurrencyError("AutoBackend works under asyncio or trio, and no event loop runs here")
        make: type[AsyncioBackend | AnyIOBackend | TrioBackend]
        try:
            make = getattr(backends, _NAMES[name])
        except ImportError:
            if name != "anyio":
                raise
            make = backends.AsyncioBackend  # which says what the loop cannot do
        return make(resolver=self._resolver, keep_alive=self._keep_alive)

    def __repr__(self) -> str:
        return f"<AutoBackend [{type(self._resolver).__name__}]>"


def _loop_watches_sockets() -> bool:
    from ._asyncio_transport import running_loop

    try:
        running_loop()
    except UnsupportedProtocol:
        return False
    return True
