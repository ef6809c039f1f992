"""The backend that finds out what runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from lamina_interfaces import AsyncNetworkBackend, ConcurrencyError, running_runtime
from lamina_interfaces.resolving import check_resolver

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterable

    from lamina_interfaces import AsyncResolver, Resolver, RuntimeName, SocketOption

    from ._asyncio import AsyncioBackend, AsyncioStream
    from ._trio import TrioBackend, TrioStream

    AnyStream: TypeAlias = AsyncioStream | TrioStream


class AutoBackend(AsyncNetworkBackend):
    """TCP and unix sockets for whatever runs: `AsyncioBackend` under asyncio, `TrioBackend` under trio.

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
        self._backends: dict[RuntimeName, AsyncioBackend | TrioBackend] = {}

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AnyStream:
        """Connect to a TCP port, over the first of the host's addresses that answers (RFC 8305).

        See `AsyncNetworkBackend.connect_tcp`. `TCP_NODELAY` and keep-alive are set before the caller's options.

        Raises:
            ConcurrencyError: neither asyncio nor trio runs here.
        """
        return await self._here().connect_tcp(host, port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> AnyStream:
        """Connect to a unix domain socket. See `AsyncNetworkBackend.connect_unix_socket`.

        Raises:
            ConcurrencyError: neither asyncio nor trio runs here.
        """
        return await self._here().connect_unix_socket(path, timeout, socket_options)

    async def wrap_socket(self, sock: socket.socket) -> AnyStream:
        """A stream over a connected plain socket, which is the stream's from now on.

        Raises:
            ConcurrencyError: neither asyncio nor trio runs here.
        """
        return await self._here().wrap_socket(sock)

    def _here(self) -> AsyncioBackend | TrioBackend:
        name = running_runtime()
        backend = self._backends.get(name)
        if backend is None:
            backend = self._backends[name] = self._make(name)
        return backend

    def _make(self, name: RuntimeName) -> AsyncioBackend | TrioBackend:
        # From the package, not from the modules: it gives the classes their public names.
        if name == "asyncio":
            from . import AsyncioBackend

            return AsyncioBackend(resolver=self._resolver, keep_alive=self._keep_alive)
        if name == "trio":
            from . import TrioBackend

            return TrioBackend(resolver=self._resolver, keep_alive=self._keep_alive)
        raise ConcurrencyError("AutoBackend works under asyncio or trio, and no event loop runs here")

    def __repr__(self) -> str:
        return f"<AutoBackend [{type(self._resolver).__name__}]>"
