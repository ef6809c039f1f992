"""The blocking backend."""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING

from lamina_interfaces import Limit, NameResolver, NetworkBackend
from lamina_interfaces.connecting import Dial, Resolution, UnixDial
from lamina_interfaces.dialing import default_socket_options
from lamina_interfaces.resolving import check_resolver

from ._connecting import connect, resolve

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from lamina_interfaces import ResolvedAddress, Resolver, SocketOption

    from ._stream import SyncStream


class SyncBackend(NetworkBackend, NameResolver):
    """TCP and unix sockets for threads. The contract is `NetworkBackend`'s. Thread-safe; holds no sockets.

    A name is looked up in threads, at most 16 for each resolver. When none can be started, as in `atexit` handlers
    from Python 3.12 on and in finalisers at the very end of the program, a name gives `ConnectError` at once, save
    `localhost` with the system's resolver. IP addresses need no thread.

    A host counts as an IP address in the forms of RFC 3986. What only `getaddrinfo` takes for one (`127.1`,
    `2130706433`, `0x7f000001`, `127.0.0.1.`) is a name here, and the system's resolver answers it: whoever must
    keep callers away from some addresses checks the peer's (`server_addr`), not the host's text.

    Args:
        resolver: turns names into addresses; the system's own if `None`. IP addresses do not reach it.
        keep_alive: whether the system probes a peer that has been silent for 60 seconds, and ends the
            connection when five probes stay unanswered.

    Raises:
        ArgumentTypeError: `resolver` is none, or one that has to be awaited.
    """

    def __init__(self, *, resolver: Resolver | None = None, keep_alive: bool = True) -> None:
        self._resolver = check_resolver(resolver)
        self._defaults = default_socket_options(socket, keep_alive=keep_alive)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> SyncStream:
        """Connect to a TCP port, over the first of the host's addresses that answers (RFC 8305).

        See `NetworkBackend.connect_tcp`. `TCP_NODELAY` and keep-alive are set before the caller's options.
        """
        dial = Dial(
            host,
            port,
            limit=Limit(timeout, monotonic, "connect"),
            clock=monotonic,
            local_address=local_address,
            defaults=self._defaults,
            options=socket_options,
            resolver=self._resolver,
        )
        return connect(dial)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> SyncStream:
        """Connect to a unix domain socket. See `NetworkBackend.connect_unix_socket`.

        Raises:
            ArgumentValueError, ArgumentTypeError: the path or an option makes no sense. Nothing was tried.
        """
        limit = Limit(timeout, monotonic, "connect")
        dial = UnixDial(path, limit=limit, clock=monotonic, options=socket_options)
        return connect(dial)

    def resolve(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None
    ) -> Sequence[ResolvedAddress]:
        """Return the addresses to which `connect_tcp` would connect. See `NameResolver.resolve`."""
        return resolve(
            Resolution(
                host,
                port,
                limit=Limit(timeout, monotonic, "dns"),
                clock=monotonic,
                local_address=local_address,
                resolver=self._resolver,
            )
        )

    def __repr__(self) -> str:
        return f"<SyncBackend [{type(self._resolver).__name__}]>"
