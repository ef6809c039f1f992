"""The blocking backend."""

from __future__ import annotations

import errno
import os
import socket
import time
from time import monotonic
from typing import TYPE_CHECKING

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectAttempt,
    Limit,
    NetworkBackend,
    TimeoutException,
    TimingSpan,
    UnsupportedProtocol,
)
from lamina_interfaces.dialing import check_host, check_port, default_socket_options, format_address

from ._connecting import Dial, set_options
from ._resolving import SYSTEM_RESOLVER, ip_address
from ._stream import SyncStream
from ._translation import network_error

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lamina_interfaces import NetworkError, ResolvedAddress, Resolver, SocketOption

FIRST_PAUSE = 0.001
"""Seconds before a unix socket whose queue is full is tried again; doubled each time up to `LONGEST_PAUSE`."""

LONGEST_PAUSE = 0.05
"""Seconds between two such attempts at most."""

LARGEST_INT = 2**31 - 1
"""Of the numbers that a socket option takes."""


class SyncBackend(NetworkBackend):
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
        ArgumentTypeError: `resolver` is none.
    """

    def __init__(self, *, resolver: Resolver | None = None, keep_alive: bool = True) -> None:
        if resolver is not None and not hasattr(resolver, "resolve"):
            raise ArgumentTypeError(f"resolver must have a method resolve, unlike {type(resolver).__name__}")
        self._resolver = SYSTEM_RESOLVER if resolver is None else resolver
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
            attempt = ConnectAttempt(format_address(path), number, monotonic() - start)
            raise _unix_error(exc, attempt) from OSError(number, os.strerror(number))
        finally:
            if stream is None and sock is not None:
                sock.close()

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
        if not isinstance(option, (tuple, list)) or not _is_option(*option):
            raise ArgumentTypeError(
                f"a socket option is (level, name, number), (level, name, bytes) or (level, name, None, length), "
                f"not {option!r}"
            )
        if any(isinstance(part, int) and abs(part) > LARGEST_INT for part in option):
            raise ArgumentValueError(f"socket option {option!r} has a number that no system takes")
    return checked


def _is_option(*parts: object) -> bool:
    match parts:
        case (int(), int(), int() | bytes() | bytearray() | memoryview()):
            return True
        case (int(), int(), None, int()):
            return True
    return False


def _checked_path(path: str) -> str:
    if not isinstance(path, str):
        raise ArgumentTypeError(f"path must be a str, not {type(path).__name__}")
    if not path or "\0" in path[1:]:
        raise ArgumentValueError(f"{path!r} is not the path of a socket")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as exc:
        raise ArgumentValueError(f"{path!r} is not the path of a socket: {exc}") from exc
    return path


def _unix_error(exc: OSError, attempt: ConnectAttempt) -> NetworkError:
    error = network_error(exc, "connect", f"could not connect to {attempt.address}")
    error.errno = attempt.errno
    error.attempts = (attempt,)
    return error


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
