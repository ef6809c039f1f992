"""Dialling: happy eyeballs, carried out in the calling thread.

What is tried when is decided by `lamina_interfaces.dialing.Dialer`, whose text has the theory. Here are the
sockets: all attempts are non-blocking, one `poll` waits for them and for the look-ups' threads together, and
every way out closes every socket but the winner's.
"""

from __future__ import annotations

import errno
import os
import socket
from time import monotonic
from typing import TYPE_CHECKING

from lamina_interfaces import (
    ConnectError,
    ResolvedAddress,
    TimeoutException,
    TimingSpan,
)
from lamina_interfaces.dialing import Connected, Dialer, GiveUp, StartAttempt, Wait

from ._resolving import LOOKUPS, Bell, SystemResolver, ip_address, is_localhost, loopback, says_none
from ._stream import SyncStream, make_non_blocking
from ._translation import describe, network_error
from ._waiting import READ, WRITE, new_poll, wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lamina_interfaces import ConnectAttempt, Limit, Resolver, SocketOption

    from ._resolving import Lookup

FAMILIES = (socket.AF_INET6, socket.AF_INET)
"""The preferred one first (RFC 8305, section 4)."""

_STREAM = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)

_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY, errno.EINTR)


class Dial:
    """One call of `connect_tcp`.

    Args:
        host: a name or an IP address as the caller gave it, checked.
        ascii_host: the same, IDNA-encoded.
        port: checked.
        limit: for all of it.
        local_address: to connect from, or `None`.
        defaults: options that are set where the system knows them.
        options: the caller's options, which must be possible.
        resolver: for a name.
    """

    def __init__(
        self,
        host: str,
        ascii_host: str,
        port: int,
        *,
        limit: Limit,
        local_address: ResolvedAddress | None,
        defaults: Sequence[SocketOption],
        options: Sequence[SocketOption],
        resolver: Resolver,
    ) -> None:
        self._host = host
        self._ascii_host = ascii_host
        self._port = port
        self._limit = limit
        self._local_address = local_address
        self._defaults = defaults
        self._options = options
        self._resolver = resolver
        self._started_at = monotonic()
        self._dialed_at: float | None = None
        self._poll = new_poll()
        self._sockets: dict[int, socket.socket] = {}  # by the index of the attempt
        self._indices: dict[int, int] = {}  # of the attempts, by file descriptor
        self._lookups: dict[int, Lookup] = {}  # by family
        self._look_up_error: BaseException | None = None
        self._bell: Bell | None = None
        self._is_name = False
        self._timings: tuple[TimingSpan, ...] = ()
        self._stream: SyncStream | None = None
        families = FAMILIES if local_address is None else (local_address.family,)
        self._dialer = Dialer(families)

    def run(self) -> SyncStream:
        """Connect.

        Raises:
            ConnectTimeout, DeadlineExceeded, ConnectError: with the attempts. No socket is left.
        """
        try:
            try:
                self._find_addresses()
                return self._connect()
            finally:
                self._clean_up()
        except BaseException:
            if self._stream is not None:
                self._stream.abort()
            raise

    # --- addresses -----------------------------------------------------------------------------------------

    def _find_addresses(self) -> None:
        try:
            address = ip_address(self._ascii_host, self._port)
        except ValueError as exc:
            if ":" in self._host:
                raise ConnectError(str(exc), phase="connect") from exc
            self._look_up()
        else:
            for family in self._dialer.looking_up:
                self._dialer.found(family, [address], self._started_at)

    def _look_up(self) -> None:
        self._limit.phase = "dns"
        self._is_name = True
        if type(self._resolver) is SystemResolver and is_localhost(self._host):
            # Known without asking, so a thread that cannot be had need not be had.
            for family in self._dialer.looking_up:
                self._dialer.found(family, [loopback(self._port, family)], self._started_at)
            return
        try:
            self._bell = Bell()
        except OSError as exc:
            raise network_error(exc, "dns", f"the name {self._host!r} could not be looked up") from exc
        self._poll.register(self._bell.fileno(), READ)
        for family in self._dialer.looking_up:
            lookup = LOOKUPS.join(self._resolver, self._host, self._port, family, self._bell)
            self._lookups[family] = lookup

    def _hear_answers(self) -> None:
        assert self._bell is not None
        self._bell.hush()
        now = monotonic()
        for family, lookup in list(self._lookups.items()):
            if not lookup.done:
                continue
            del self._lookups[family]
            if lookup.addresses is not None:
                self._dialer.found(family, lookup.addresses, now)
                continue
            self._dialer.not_found(family)
            if self._look_up_error is None or says_none(self._look_up_error):
                # "Ask again later" for one family tells more than "there is none" for the other.
                self._look_up_error = lookup.error
        if not self._lookups:
            self._poll.unregister(self._bell.fileno())

    # --- attempts ------------------------------------------------------------------------------------------

    def _connect(self) -> SyncStream:
        while True:
            match self._dialer.next_action(monotonic()):
                case StartAttempt(index, address):
                    if self._limit.expired():  # attempts that fail at once never come to a wait
                        raise self._timeout()
                    self._start(index, address)
                case Wait(until):
                    self._wait(until)
                case Connected(index):
                    return self._finish(index)
                case GiveUp(attempts):
                    raise self._failure(attempts)

    def _start(self, index: int, address: ResolvedAddress) -> None:
        if self._dialed_at is None:
            self._dialed_at = monotonic()
            self._limit.phase = "connect"
            if self._is_name:
                self._timings = (TimingSpan("dns", self._started_at, self._dialed_at),)
        try:
            sock = self._sockets[index] = socket.socket(address.family, _STREAM)
            make_non_blocking(sock)
            set_options(sock, self._defaults, self._options)
            if self._local_address is not None:
                sock.bind(self._local_address.sockaddr)
            number = sock.connect_ex(address.sockaddr)
        except OSError as exc:
            self._failed(index, exc.errno)
            return
        if number in _UNDER_WAY:
            self._indices[sock.fileno()] = index
            self._poll.register(sock.fileno(), WRITE)
        else:
            self._ended(index, number)

    def _wait(self, until: float | None) -> None:
        self._limit.phase = "dns" if self._lookups and not self._indices else "connect"
        try:
            ready = wait(self._poll, self._limit, until)
        except TimeoutException:
            raise self._timeout() from None
        for fd, _ in ready:
            if fd in self._indices:
                self._poll.unregister(fd)
                index = self._indices.pop(fd)
                number = self._sockets[index].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self._ended(index, number)
                if not number:
                    return
            else:
                self._hear_answers()

    def _ended(self, index: int, number: int) -> None:
        if not number and connected_to_itself(self._sockets[index]):
            number = errno.ECONNREFUSED  # nobody listens there
        if number:
            self._failed(index, number)
        else:
            self._dialer.connected(index)

    def _failed(self, index: int, number: int | None) -> None:
        if index in self._sockets:
            self._sockets[index].close()  # before it is forgotten, lest an interrupt come in between
            del self._sockets[index]
        self._dialer.failed(index, number, monotonic())

    # --- outcomes ------------------------------------------------------------------------------------------

    def _finish(self, index: int) -> SyncStream:
        assert self._dialed_at is not None
        timings = (*self._timings, TimingSpan("tcp", self._dialed_at, monotonic()))
        self._stream = SyncStream(self._sockets[index], timings=timings)
        del self._sockets[index]
        return self._stream

    def _clean_up(self) -> None:
        for lookup in self._lookups.values():
            assert self._bell is not None
            LOOKUPS.leave(lookup, self._bell)
        for sock in self._sockets.values():
            sock.close()
        if self._bell is not None:
            self._bell.close()

    @property
    def _where(self) -> str:
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    def _timeout(self) -> TimeoutException:
        doing = "looking up the name of" if self._limit.phase == "dns" else "connecting to"
        untried = f"; addresses left untried: {self._dialer.untried}" if self._dialer.untried else ""
        error = self._limit.error(f"{doing} {self._where} took too long{untried}")
        error.attempts = self._dialer.attempts(monotonic())
        return error

    def _failure(self, attempts: tuple[ConnectAttempt, ...]) -> ConnectError:
        elapsed = monotonic() - self._started_at
        if not attempts:
            kind = "" if self._local_address is None else " of the local address's family"
            why = f"it has no address{kind}" if self._look_up_error is None else describe(self._look_up_error)
            error = ConnectError(f"{self._where} could not be resolved: {why}", phase="dns", elapsed=elapsed)
            error.__cause__ = self._look_up_error
            return error
        number = attempts[-1].errno
        # Made anew, for what was raised or reported had a traceback that holds on to the sockets.
        cause = OSError(number, os.strerror(number)) if number is not None else None
        why = "no address could be used" if cause is None else str(cause.strerror)
        error = ConnectError(
            f"could not connect to {self._where}: {why}",
            phase="connect",
            attempts=attempts,
            elapsed=elapsed,
            errno=number,
        )
        error.__cause__ = cause
        return error


def set_options(
    sock: socket.socket, defaults: Iterable[SocketOption], options: Iterable[SocketOption] = ()
) -> None:
    """Set options on a socket: defaults as far as the system knows them, then the caller's.

    Raises:
        OSError: the system refuses one of the caller's.
    """
    set_option: Callable[..., None] = sock.setsockopt
    for option in defaults:
        try:
            set_option(*option)
        except OSError:
            pass  # a comfort that this kernel or sandbox does not have
    for option in options:
        set_option(*option)


def connected_to_itself(sock: socket.socket) -> bool:
    """Whether the system chose our own port as the peer (RFC 9293, section 3.5: simultaneous open).

    That happens on the way to a local port within the ephemeral range where nobody listens.
    """
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # reset already; the first use will tell
        return False
