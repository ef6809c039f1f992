"""The blocking backend."""

from __future__ import annotations

import errno
import os
import socket
import time
from time import monotonic
from typing import TYPE_CHECKING

from lamina_interfaces import (
    GLANCE_SECONDS,
    ArgumentTypeError,
    ArgumentValueError,
    ConnectAttempt,
    Limit,
    NetworkBackend,
    TimeoutException,
    TimingSpan,
    UnsupportedProtocol,
    check_seconds,
    current_deadline,
)
from lamina_interfaces.dialing import check_host, check_port, default_socket_options, format_address

from ._connecting import Dial, set_options
from ._resolving import SystemResolver, ip_address
from ._stream import SyncStream
from ._translation import network_error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lamina_interfaces import ResolvedAddress, Resolver, SocketOption

LONGEST_SLEEP = 24 * 60 * 60.0
"""Seconds that one system call sleeps at most; the clock's own limit is far beyond."""

FIRST_PAUSE = 0.001
"""Seconds before a unix socket whose queue is full is tried again; doubled each time up to `LONGEST_PAUSE`."""

LONGEST_PAUSE = 0.05
"""Seconds between two such attempts at most."""


class SyncBackend(NetworkBackend):
    """TCP and unix sockets for threads. The contract is `NetworkBackend`'s. Thread-safe; holds no sockets.

    Args:
        resolver: turns names into addresses; the system's own if `None`. IP addresses do not reach it.
        keep_alive: whether the system probes a peer that has been silent for 60 seconds, and ends the
            connection when five probes stay unanswered.

    Raises:
        ArgumentTypeError: `resolver` is none.
    """

    def __init__(self, *, resolver: Resolver | None = None, keep_alive: bool = True) -> None:
        if resolver is not None and not hasattr(resolver, "resolve"):
            raise ArgumentTypeError(f"resolver must have a method resolve, unlike {type(resolver).__name__}")
        self._resolver = SystemResolver() if resolver is None else resolver
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
        limit = Limit(timeout, monotonic, "connect")
        dial = Dial(
            host,
            check_host(host),
            check_port(port),
            limit=limit,
            local_address=_local_address(local_address),
            defaults=self._defaults,
            options=_checked_options(socket_options),
            resolver=self._resolver,
        )
        limit.check()
        return dial.run()

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> SyncStream:
        """Connect to a unix domain socket. See `NetworkBackend.connect_unix_socket`.

        Raises:
            ArgumentValueError, ArgumentTypeError: the path or an option makes no sense. Nothing was tried.
        """
        if not hasattr(socket, "AF_UNIX"):
            raise UnsupportedProtocol("this system has no unix sockets")
        path = _checked_path(path)
        options = _checked_options(socket_options)
        limit = Limit(timeout, monotonic, "connect")
        limit.check()
        start = monotonic()
        sock: socket.socket | None = None
        stream: SyncStream | None = None
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.setblocking(False)
            set_options(sock, (), options)
            _connect_unix(sock, path, limit)
            stream = SyncStream(sock, timings=(TimingSpan("unix", start, monotonic()),))
            return stream
        except TimeoutException as exc:
            exc.attempts = (ConnectAttempt(format_address(path), None, monotonic() - start),)
            raise
        except OSError as exc:
            # The socket module finds a long path itself, and gives no number.
            number = errno.ENAMETOOLONG if exc.errno is None else exc.errno
            error = network_error(exc, "connect", f"could not connect to {format_address(path)}")
            error.errno = number
            error.attempts = (ConnectAttempt(format_address(path), number, monotonic() - start),)
            raise error from OSError(number, os.strerror(number))
        finally:
            if stream is None and sock is not None:
                sock.close()

    def sleep(self, seconds: float) -> None:
        """Wait, within the ambient deadline. See `NetworkBackend.sleep`."""
        now = monotonic()
        end = now + check_seconds(seconds, "seconds")
        while True:
            deadline = current_deadline()
            soonest = None if deadline is None else deadline.soonest()
            if soonest is not None and soonest.expired(now):
                raise soonest.exceeded(now)
            if now >= end:
                return
            # Somebody else may bring the deadline forward meanwhile, as closing a pool does.
            rest = end - now if soonest is None else min(end - now, soonest.remaining(now), GLANCE_SECONDS)
            time.sleep(min(rest, LONGEST_SLEEP))
            now = monotonic()

    def __repr__(self) -> str:
        return f"<SyncBackend [{type(self._resolver).__name__}]>"


def _local_address(local_address: str | None) -> ResolvedAddress | None:
    if local_address is None:
        return None
    if not isinstance(local_address, str):
        raise ArgumentTypeError(f"local_address must be a str or None, not {type(local_address).__name__}")
    try:
        return ip_address(check_host(local_address), 0)
    except ValueError as exc:
        raise ArgumentValueError(f"local_address must be an IP address, got {local_address!r}") from exc


def _checked_options(options: Iterable[SocketOption] | None) -> tuple[SocketOption, ...]:
    try:
        checked = () if options is None else tuple(options)
    except TypeError as exc:
        raise ArgumentTypeError(f"socket_options must be a list of tuples: {exc}") from exc
    for option in checked:
        if not isinstance(option, (tuple, list)) or len(option) not in (3, 4):
            raise ArgumentTypeError(f"a socket option is a tuple of level, name and value, not {option!r}")
    return checked


def _checked_path(path: str) -> str:
    if not isinstance(path, str):
        raise ArgumentTypeError(f"path must be a str, not {type(path).__name__}")
    if not path or "\0" in path[1:]:
        raise ArgumentValueError(f"{path!r} is not the path of a socket")
    return path


def _connect_unix(sock: socket.socket, path: str, limit: Limit) -> None:
    pause = FIRST_PAUSE
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            # The listener's queue is full. The system has no way to wait for room but a blocking call, which
            # would know no limit.
            limit.check()
            remaining = limit.remaining()
            time.sleep(pause if remaining is None else min(pause, remaining))
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            return
