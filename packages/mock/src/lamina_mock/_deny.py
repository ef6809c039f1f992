"""Backends that let no test out: whoever connects fails, by name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NoReturn

from lamina_interfaces import (
    ArgumentTypeError,
    AsyncNetworkBackend,
    AsyncNetworkStream,
    NetworkBackend,
    NetworkStream,
    default_backend,
    load_backend,
)

from ._failures import NetworkDenied

if TYPE_CHECKING:
    from lamina_interfaces import SocketOption

    Address = str | tuple[str, int]


class _Gate:
    """What is let through."""

    def __init__(self, allow: Iterable[Address]) -> None:
        if isinstance(allow, (str, bytes)):
            raise ArgumentTypeError(f"allow is a list of hosts, not {type(allow).__name__}")
        self.allowed = frozenset(allow)

    def check(self, host: str, port: int) -> None:
        if host not in self.allowed and (host, port) not in self.allowed:
            self._deny(host, port)

    def _deny(self, host: str, port: int) -> NoReturn:
        where = f"{host}:{port}" if port else f"the unix socket {host}"
        raise NetworkDenied(
            f"this test may not use the network, but connects to {where}", host=host, port=port
        )

    def __str__(self) -> str:
        return "nothing allowed" if not self.allowed else f"{len(self.allowed)} allowed"


class DenyNetworkBackend(NetworkBackend):
    """A backend for tests that must not use the network: connecting raises `NetworkDenied`.

    Nothing of lamina takes that for a failing network: it is not tried again, and code that copes with connection
    errors does not hide it.

    Args:
        allow: what may be connected to nevertheless: hosts, pairs of host and port, paths of unix sockets.
        backend: that does it. By default lamina's own.
    """

    def __init__(self, allow: Iterable[Address] = (), *, backend: NetworkBackend | None = None) -> None:
        self._gate = _Gate(allow)
        self._backend = backend

    def _open(self) -> NetworkBackend:
        if self._backend is None:
            self._backend = default_backend()
        return self._backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> NetworkStream:
        """Connect where it is allowed. See `NetworkBackend.connect_tcp`.

        Raises:
            NetworkDenied: it is not.
        """
        self._gate.check(host, port)
        return self._open().connect_tcp(
            host, port, timeout=timeout, local_address=local_address, socket_options=socket_options
        )

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> NetworkStream:
        """Connect where it is allowed. See `connect_tcp`."""
        self._gate.check(path, 0)
        return self._open().connect_unix_socket(path, timeout=timeout, socket_options=socket_options)

    def __repr__(self) -> str:
        return f"<DenyNetworkBackend [{self._gate}]>"


class AsyncDenyNetworkBackend(AsyncNetworkBackend):
    """`DenyNetworkBackend` for asyncio and trio."""

    def __init__(self, allow: Iterable[Address] = (), *, backend: AsyncNetworkBackend | None = None) -> None:
        self._gate = _Gate(allow)
        self._backend = backend

    def _open(self) -> AsyncNetworkBackend:
        if self._backend is None:
            found: AsyncNetworkBackend = load_backend("auto")
            self._backend = found
        return self._backend

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncNetworkStream:
        """Connect where it is allowed. See `DenyNetworkBackend.connect_tcp`."""
        self._gate.check(host, port)
        return await self._open().connect_tcp(
            host, port, timeout=timeout, local_address=local_address, socket_options=socket_options
        )

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> AsyncNetworkStream:
        """Connect where it is allowed. See `DenyNetworkBackend.connect_tcp`."""
        self._gate.check(path, 0)
        return await self._open().connect_unix_socket(path, timeout=timeout, socket_options=socket_options)

    def __repr__(self) -> str:
        return f"<AsyncDenyNetworkBackend [{self._gate}]>"
