"""Connecting a socket, save for the waiting, which each backend does in its own way.

What is tried when is decided by `dialing.Dialer`, whose text has the theory. Here are the sockets that carry it
out: all of them non-blocking, so that a `Dial` never waits. It says what there is to wait for, and the backend's
loop is the same for TCP and unix sockets:

    dial = Dial("host.example", 443, limit=limit, clock=clock, resolver=resolver)
    try:
        if dial.look_ups:
            dial.ask(bell)
        while (sock := dial.advance()) is None:
            ...  # wait for the first of four things, see `Dial.advance`
        stream = MyStream(sock, timings=dial.timings)
        dial.release()
    finally:
        dial.close()

A socket belongs to the dial from its making on, and to the caller only from `release` on. So every way out closes
every socket but the winner's, also when the backend fails, is cancelled or interrupted between two lines.

A `Resolution` stops where a `Dial` would begin to connect. A backend waits for all three kinds in the same way.
"""

from __future__ import annotations

import errno
import os
import socket
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

from ._errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectAttempt,
    ConnectError,
    TimeoutException,
    UnsupportedProtocol,
)
from ._streams import AsyncResolver, TimingSpan
from .dialing import Connected, Dialer, GiveUp, StartAttempt, Wait, check_host, check_port, format_address
from .resolving import (
    LOOKUPS,
    SystemResolver,
    check_address,
    ip_address,
    is_async,
    is_localhost,
    loopback,
    says_none,
)
from .sockets import connected_to_itself, make_non_blocking, set_options
from .translation import describe, network_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from ._deadlines import Limit
    from ._errors import NetworkError
    from ._streams import ResolvedAddress, Resolver, SocketOption
    from .resolving import Bell, Lookup

__all__ = ["AnyDial", "Dial", "HostDial", "Resolution", "UnixDial"]

Outcome_co = TypeVar("Outcome_co", covariant=True)

FAMILIES = (socket.AF_INET6, socket.AF_INET)
"""The preferred one first (RFC 8305, section 4)."""

FIRST_PAUSE = 0.001
"""Seconds before a unix socket whose queue is full is tried again; doubled each time up to `LONGEST_PAUSE`."""

LONGEST_PAUSE = 0.05
"""Seconds between two such attempts at most."""

LARGEST_INT = 2**31 - 1
"""Of the numbers that a socket option takes."""

_STREAM = socket.SOCK_STREAM | getattr(socket, "SOCK_NONBLOCK", 0)

_UNDER_WAY = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EALREADY, errno.EINTR)


class AnyDial(Protocol[Outcome_co]):
    """What a backend needs to know of a dial in order to wait for it. See `Dial`, which has the most to say."""

    @property
    def look_ups(self) -> Sequence[int]:
        """The families whose addresses are not known yet."""
        ...

    @property
    def async_resolver(self) -> AsyncResolver | None:
        """The resolver if the backend has to await it."""
        ...

    @property
    def limit(self) -> Limit:
        """For all of it."""
        ...

    @property
    def pending(self) -> Mapping[int, socket.socket]:
        """The sockets that are connecting."""
        ...

    @property
    def wake_at(self) -> float | None:
        """When to advance even if nothing happens."""
        ...

    def ask(self, bell: Bell) -> None:
        """Have the blocking resolver asked."""

    def advance(self) -> Outcome_co | None:
        """Do what can be done now. Returns `None` as long as there is something to wait for."""

    def ended(self, index: int) -> bool:
        """Tell that a socket of `pending` has become writable."""
        ...

    def found(self, family: int, addresses: Iterable[ResolvedAddress]) -> None:
        """Tell what the async resolver has returned."""

    def not_found(self, family: int, error: BaseException) -> None:
        """Tell what the async resolver has raised."""

    def close(self) -> None:
        """Let go of everything."""

    def interrupted(self) -> None:
        """Tell that the wait was cancelled."""

    def timeout_error(self) -> TimeoutException:
        """The error that says that nothing remains of the limit."""
        ...


class HostDial:
    """What `Dial` and `Resolution` have in common: the host, and the look-ups if it is a name.

    Args:
        host: a name or an IP address.
        port: from 1 to 65535.
        limit: for all of it; its phase is kept up to date.
        clock: returns the present in seconds, on the clock by which the backend waits.
        local_address: the IP address to connect from.
        resolver: for a name; blocking, or to be awaited (`async_resolver`).

    Attributes:
        host: as given; for the resolver.
        port: the same.
        async_resolver: the resolver if the backend has to await it, else `None`, and `ask` is to be used.
        limit: as given.
        wake_at: when to advance even if nothing happens, on the clock; `None` for never.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense.
        ConnectTimeout, DeadlineExceeded: nothing remains of the limit.
        ConnectError: the host is an IPv6 address with a zone that does not exist here.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        limit: Limit,
        clock: Callable[[], float],
        local_address: str | None = None,
        resolver: Resolver | AsyncResolver,
    ) -> None:
        ascii_host = check_host(host)
        self.host = host
        self.port: int = check_port(port)
        self._local_address = _local_address(local_address)
        limit.check()
        self.limit = limit
        self.async_resolver: AsyncResolver | None = None
        self.wake_at: float | None = None
        self._clock = clock
        self._started_at = clock()
        self._blocking_resolver: Resolver | None = None
        self._bell: Bell | None = None
        self._lookups: dict[int, Lookup] = {}  # by family
        self._look_up_error: BaseException | None = None
        self._is_name = False
        families = FAMILIES if self._local_address is None else (self._local_address.family,)
        self._dialer = Dialer(families)
        try:
            address = ip_address(ascii_host, port)
        except ValueError as exc:
            if ":" in host:
                raise ConnectError(str(exc), phase=limit.phase) from exc
            self._take_name(resolver)
        else:
            for family in families:
                self._dialer.found(family, [address], self._started_at)

    def _take_name(self, resolver: Resolver | AsyncResolver) -> None:
        self.limit.phase = "dns"
        self._is_name = True
        if type(resolver) is SystemResolver and is_localhost(self.host):
            # Known without asking, so a thread that cannot be had need not be had.
            for family in self._dialer.looking_up:
                self._dialer.found(family, [loopback(self.port, family)], self._started_at)
        elif is_async(resolver):
            self.async_resolver = resolver
        else:
            self._blocking_resolver = cast("Resolver", resolver)

    @property
    def look_ups(self) -> Sequence[int]:
        """The families whose addresses are not known yet; empty from the start for what needs no resolver."""
        return self._dialer.looking_up

    def ask(self, bell: Bell) -> None:
        """Have the blocking resolver asked, in threads. Once, before the first `advance`.

        Args:
            bell: rung for each answer; `advance` takes it in.
        """
        assert self._blocking_resolver is not None
        self._bell = bell
        for family in self._dialer.looking_up:
            lookup = LOOKUPS.join(self._blocking_resolver, self.host, self.port, family, bell)
            self._lookups[family] = lookup

    def found(self, family: int, addresses: Iterable[ResolvedAddress]) -> None:
        """Tell what the async resolver has returned for one family of `look_ups`."""
        try:
            checked = [check_address(address) for address in addresses]
        except Exception as exc:  # noqa: BLE001 - a custom resolver may return anything; it is the dial's error
            self.not_found(family, exc)
        else:
            self._dialer.found(family, checked, self._clock())

    def not_found(self, family: int, error: BaseException) -> None:
        """Tell what the async resolver has raised for one family of `look_ups`."""
        self._dialer.not_found(family)
        if self._look_up_error is None or says_none(self._look_up_error):
            # "Ask again later" for one family tells more than "there is none" for the other.
            self._look_up_error = error

    def _take_answers(self) -> None:
        for family, lookup in list(self._lookups.items()):
            if not lookup.done:
                continue
            del self._lookups[family]
            if lookup.error is not None:
                self.not_found(family, lookup.error)
            else:
                self.found(family, lookup.addresses or ())

    # --- outcomes ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the look-ups. May be repeated."""
        for lookup in self._lookups.values():
            assert self._bell is not None
            LOOKUPS.leave(lookup, self._bell)

    def interrupted(self) -> None:
        """Tell that the wait was cancelled. See `Limit.interrupted`, which gets the error with the attempts."""
        self.limit.interrupted(self.timeout_error())

    def timeout_error(self) -> TimeoutException:
        """The error that says that nothing remains of the limit."""
        doing = "looking up the name of" if self.limit.phase == "dns" else "connecting to"
        untried = f"; addresses left untried: {self._dialer.untried}" if self._dialer.untried else ""
        error = self.limit.error(f"{doing} {self._where} took too long{untried}")
        error.attempts = self._dialer.attempts(self._clock())
        return error

    @property
    def _where(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def _resolver_ran_out(self) -> bool:
        # An async resolver may have been stopped by the deadline that the dial is under as well.
        return isinstance(self._look_up_error, TimeoutException) and self.limit.expired()

    def _unresolved(self) -> ConnectError:
        kind = "" if self._local_address is None else " of the local address's family"
        why = f"it has no address{kind}" if self._look_up_error is None else describe(self._look_up_error)
        elapsed = self._clock() - self._started_at
        error = ConnectError(f"{self._where} could not be resolved: {why}", phase="dns", elapsed=elapsed)
        error.__cause__ = self._look_up_error
        return error


class Dial(HostDial):
    """One call of `connect_tcp`, without the waiting. For one thread or task; makes no socket before `advance`.

    Args:
        host: a name or an IP address.
        port: from 1 to 65535.
        limit: for all of it; its phase is kept up to date (`"dns"`, `"connect"`).
        clock: returns the present in seconds, on the clock by which the backend waits.
        local_address: the IP address to connect from.
        defaults: options that are set where the system knows them.
        options: the caller's options, set after those; the system must know them.
        resolver: for a name; blocking, or to be awaited (`async_resolver`).

    Attributes:
        pending: the sockets that are connecting, by the index of the attempt. Tell when one becomes writable (`ended`).
        timings: how long the steps took, once there is a connection.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense.
        ConnectTimeout, DeadlineExceeded: nothing remains of the limit.
        ConnectError: the host is an IPv6 address with a zone that does not exist here.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        limit: Limit,
        clock: Callable[[], float],
        local_address: str | None = None,
        defaults: Sequence[SocketOption] = (),
        options: Iterable[SocketOption] | None = None,
        resolver: Resolver | AsyncResolver,
    ) -> None:
        self._options = _checked_options(options)
        super().__init__(host, port, limit=limit, clock=clock, local_address=local_address, resolver=resolver)
        self.pending: dict[int, socket.socket] = {}
        self.timings: tuple[TimingSpan, ...] = ()
        self._defaults = defaults
        self._dialed_at: float | None = None
        self._sockets: dict[int, socket.socket] = {}  # by the index of the attempt
        self._winner: int | None = None

    # --- attempts ------------------------------------------------------------------------------------------

    def advance(self) -> socket.socket | None:
        """Do what can be done now: take in answers, start attempts.

        Returns:
            A connected, non-blocking socket; it is the dial's until `release`. Or `None`: wait for the first of
            these, and call it again. A socket of `pending` is writable (`ended`); `bell` was rung, or the
            async resolver is done (`found`, `not_found`); the clock shows `wake_at`; `limit.glance()` seconds
            have passed. Sockets are closed by `ended`, `advance` and `close` alone, never during a wait.

        Raises:
            ConnectTimeout, DeadlineExceeded: nothing remains of the limit; with the attempts.
            ConnectError: every address has failed, with the attempts; or there is none.
        """
        self._take_answers()
        while True:
            match self._dialer.next_action(self._clock()):
                case StartAttempt(index, address):
                    if self.limit.expired():  # attempts that fail at once never come to a wait
                        raise self.timeout_error()
                    self._start(index, address)
                case Wait(until):
                    self.limit.phase = "connect" if self.pending or not self.look_ups else "dns"
                    if self.limit.expired():
                        raise self.timeout_error()
                    self.wake_at = until
                    return None
                case Connected(index):
                    return self._finish(index)
                case GiveUp(attempts):
                    raise self._failure(attempts)

    def _start(self, index: int, address: ResolvedAddress) -> None:
        if self._dialed_at is None:
            self._dialed_at = self._clock()
            self.limit.phase = "connect"
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
            self.pending[index] = sock
        else:
            self._ended(index, number)

    def ended(self, index: int) -> bool:
        """Tell that a socket of `pending` has become writable.

        Returns:
            Whether there is a connection now. Further sockets need not be told of then.
        """
        if self._winner is None and index in self.pending:
            sock = self.pending.pop(index)
            self._ended(index, sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        return self._winner is not None

    def _ended(self, index: int, number: int) -> None:
        if not number and connected_to_itself(self._sockets[index]):
            number = errno.ECONNREFUSED  # nobody listens there
        if number:
            self._failed(index, number)
        else:
            self._winner = index
            self._dialer.connected(index)

    def _failed(self, index: int, number: int | None) -> None:
        if index in self._sockets:
            self._sockets[index].close()  # before it is forgotten, lest an interrupt come in between
            del self._sockets[index]
        self._dialer.failed(index, number, self._clock())

    # --- outcomes ------------------------------------------------------------------------------------------

    def _finish(self, index: int) -> socket.socket:
        assert self._dialed_at is not None
        names = (TimingSpan("dns", self._started_at, self._dialed_at),) if self._is_name else ()
        self.timings = (*names, TimingSpan("tcp", self._dialed_at, self._clock()))
        return self._sockets[index]

    def release(self) -> None:
        """The socket that `advance` has returned is the caller's from now on."""
        assert self._winner is not None
        del self._sockets[self._winner]

    def close(self) -> None:
        """Leave the look-ups, and close every socket that was not released. May be repeated."""
        super().close()
        for sock in self._sockets.values():
            sock.close()
        self.pending.clear()

    def _failure(self, attempts: tuple[ConnectAttempt, ...]) -> ConnectError | TimeoutException:
        if self._resolver_ran_out:
            return self.timeout_error()
        if not attempts:
            return self._unresolved()
        elapsed = self._clock() - self._started_at
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

    def __repr__(self) -> str:
        return (
            f"<Dial [{self._where}, {len(self.look_ups)} look-ups, {len(self.pending)} attempts under way]>"
        )


class Resolution(HostDial):
    """One call of `NameResolver.resolve`, without the waiting. Waited for like a `Dial` that connects nothing.

    Args:
        host: a name or an IP address, which is its own answer.
        port: from 1 to 65535, to put into the addresses.
        limit: for all of it, of the phase `"dns"`.
        clock: returns the present in seconds, on the clock by which the backend waits.
        local_address: the IP address that will be connected from: only its family is looked up.
        resolver: for a name; blocking, or to be awaited (`async_resolver`).

    Attributes:
        pending: none.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense.
        ConnectTimeout, DeadlineExceeded: nothing remains of the limit.
        ConnectError: the host is an IPv6 address with a zone that does not exist here.
    """

    pending: Mapping[int, socket.socket] = MappingProxyType({})

    def advance(self) -> Sequence[ResolvedAddress] | None:
        """Take in answers.

        Returns:
            The addresses that are known when a `Dial` would begin to connect, in the order in which it would try
            them. Or `None`: wait as for a `Dial`, and call it again.

        Raises:
            ConnectTimeout, DeadlineExceeded: nothing remains of the limit.
            ConnectError: there is no address.
        """
        self._take_answers()
        addresses: list[ResolvedAddress] = []
        while True:
            now = self._clock()
            match self._dialer.next_action(now):
                case StartAttempt(index, address):
                    addresses.append(address)
                    self._dialer.failed(index, None, now)  # so that the next one is named at once
                case Wait() if not addresses and self.limit.expired():
                    raise self.timeout_error()
                case Wait(until) if not addresses:
                    self.wake_at = until
                    return None
                case GiveUp() if not addresses:
                    raise self.timeout_error() if self._resolver_ran_out else self._unresolved()
                case _:
                    return addresses

    def ended(self, index: int) -> bool:
        """Nothing is pending. See `Dial.ended`."""
        return False

    def __repr__(self) -> str:
        return f"<Resolution [{self._where}, {len(self.look_ups)} look-ups]>"


class UnixDial:
    """One call of `connect_unix_socket`, without the waiting. Waited for like a `Dial` that has no names.

    A listener whose queue is full refuses a non-blocking socket, and the system has no way to wait for room but a
    blocking call, which would know no limit. So it is tried again and again, after pauses.

    Args:
        path: in the file system, or one that begins with a zero character in Linux's abstract space.
        limit: for all of it.
        clock: returns the present in seconds, on the clock by which the backend waits.
        options: the caller's options, which the system must know.

    Attributes:
        look_ups: none.
        async_resolver: none.
        limit: as given.
        pending: none.
        wake_at: when to try again, on the clock; `None` before the first attempt.
        timings: how long it took, once there is a connection.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense.
        UnsupportedProtocol: this system has no unix sockets.
        ConnectTimeout, DeadlineExceeded: nothing remains of the limit.
    """

    look_ups: Sequence[int] = ()
    async_resolver: AsyncResolver | None = None

    def __init__(
        self,
        path: str,
        *,
        limit: Limit,
        clock: Callable[[], float],
        options: Iterable[SocketOption] | None = None,
    ) -> None:
        if not hasattr(socket, "AF_UNIX"):
            raise UnsupportedProtocol("this system has no unix sockets")
        self._path = _checked_path(path)
        self._options = _checked_options(options)
        limit.check()
        self.limit = limit
        self.pending: Mapping[int, socket.socket] = {}
        self.wake_at: float | None = None
        self.timings: tuple[TimingSpan, ...] = ()
        self._clock = clock
        self._started_at = clock()
        self._pause = FIRST_PAUSE
        self._socket: socket.socket | None = None

    def advance(self) -> socket.socket | None:
        """Try to connect.

        Returns:
            A connected, non-blocking socket; it is the dial's until `release`. Or `None`: call it again when the
            clock shows `wake_at`, or after `limit.glance()` seconds.

        Raises:
            ConnectTimeout, DeadlineExceeded: nothing remains of the limit; with the attempt.
            ConnectError: it failed; with the attempt.
        """
        try:
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                make_non_blocking(self._socket)
                set_options(self._socket, (), self._options)
            self._socket.connect(self._path)
        except BlockingIOError:
            if self.limit.expired():
                raise self.timeout_error() from None
            self.wake_at = self._clock() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
            return None
        except OSError as exc:
            # The socket module finds a long path itself, and gives no number.
            number = errno.ENAMETOOLONG if exc.errno is None else exc.errno
            raise self._failure(exc, number) from OSError(number, os.strerror(number))
        self.timings = (TimingSpan("unix", self._started_at, self._clock()),)
        return self._socket

    def ask(self, bell: Bell) -> None:
        """Nothing to ask: a path is no name. See `Dial.ask`."""

    def ended(self, index: int) -> bool:
        """Nothing is pending. See `Dial.ended`."""
        return False

    def found(self, family: int, addresses: Iterable[ResolvedAddress]) -> None:
        """Nothing is looked up. See `Dial.found`."""

    def not_found(self, family: int, error: BaseException) -> None:
        """Nothing is looked up. See `Dial.not_found`."""

    def release(self) -> None:
        """The socket that `advance` has returned is the caller's from now on."""
        self._socket = None

    def close(self) -> None:
        """Close the socket unless it was released. May be repeated."""
        if self._socket is not None:
            self._socket.close()

    def interrupted(self) -> None:
        """Tell that the wait was cancelled. See `Limit.interrupted`, which gets the error with the attempt."""
        self.limit.interrupted(self.timeout_error())

    def timeout_error(self) -> TimeoutException:
        """The error that says that nothing remains of the limit."""
        error = self.limit.error(f"connecting to {format_address(self._path)} took too long")
        error.attempts = (self._attempt(None),)
        return error

    def _attempt(self, number: int | None) -> ConnectAttempt:
        return ConnectAttempt(format_address(self._path), number, self._clock() - self._started_at)

    def _failure(self, exc: OSError, number: int) -> NetworkError:
        error = network_error(exc, "connect", f"could not connect to {format_address(self._path)}")
        error.errno = number
        error.attempts = (self._attempt(number),)
        return error

    def __repr__(self) -> str:
        return f"<UnixDial [{format_address(self._path)}]>"


# --- arguments ---------------------------------------------------------------------------------------------


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
