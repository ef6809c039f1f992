"""In which order, and when, the addresses of a host are tried: RFC 8305 ("Happy Eyeballs") without sockets.

The problem. A host has several addresses, of two families, and some may be dead in the worst way: packets to
them vanish, so that an attempt neither succeeds nor fails until the system gives up after minutes. Trying them
one after the other makes the caller wait for each dead one; trying all at once loads servers and networks with
connections that nobody wants.

What the RFC asks for, and what `Dialer` does:

- IPv6 and IPv4 are looked up side by side, and the slower answer does not hold up the faster (section 3). If
  the IPv4 addresses come first, the IPv6 ones get `RESOLUTION_DELAY` to come too, since IPv6 is preferred.
- The addresses are tried with the families taking turns (section 4), so that one family that is dead as a whole
  costs one delay and no more.
- A new attempt starts `ATTEMPT_DELAY` after the one before it, which goes on meanwhile, or at once when that
  one has failed (section 5). The first to connect wins and the others are dropped.

There is no time-out per address: the caller has one budget over everything, and ends the dial when it is spent.

Not followed: the RFC would sort the addresses of both families together by RFC 6724 first. Two separate
look-ups lose that order across families; inside a family it is the resolver's, which already sorts. Nor is the
history of round-trip times used: a delay that adapts would save milliseconds on hosts that work anyway.

`Dialer` is a plain state machine, for a blocking backend and an async one alike. Tell it what happened
(`found`, `not_found`, `failed`, `connected`) and ask `next_action` until it says to wait.

The rest of the module is what every backend has to do before it dials: `check_host`, `check_port`,
`default_socket_options`, and `format_address` for what it reports afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._errors import ArgumentTypeError, ArgumentValueError, ConnectAttempt

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._streams import ResolvedAddress, SocketAddress, SocketOption

__all__ = [
    "ATTEMPT_DELAY",
    "RESOLUTION_DELAY",
    "Connected",
    "Dialer",
    "GiveUp",
    "StartAttempt",
    "Wait",
    "check_host",
    "check_port",
    "default_socket_options",
    "format_address",
]

ATTEMPT_DELAY = 0.25
"""Seconds from the start of one attempt to the start of the next (RFC 8305, section 8)."""

RESOLUTION_DELAY = 0.05
"""Seconds that the preferred family's addresses are waited for when the other's are there (section 8)."""

KEEP_ALIVE_IDLE = 60
"""Seconds of silence before the system probes the peer; below the idle limit of common NAT gateways."""

KEEP_ALIVE_INTERVAL = 60
"""Seconds between two probes."""

KEEP_ALIVE_PROBES = 5
"""Unanswered probes after which the connection counts as broken."""

MAX_LABEL = 63
"""Bytes in one label of a host name (RFC 1035, section 2.3.4)."""

MAX_NAME = 253
"""Characters in a host name, the final dot left aside (RFC 1035, section 2.3.4)."""


# --- what the dialer says ----------------------------------------------------------------------------------


class _Decision:
    """Compared by value. No dataclass, since the module that makes those is slow to import; not to be changed."""

    __slots__: tuple[str, ...] = ()

    def _values(self) -> tuple[object, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values() == other._values()

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
        return f"{type(self).__name__}({values})"


class StartAttempt(_Decision):
    """Start connecting to `address`; report the outcome under `index`."""

    __slots__ = __match_args__ = ("index", "address")

    def __init__(self, index: int, address: ResolvedAddress) -> None:
        self.index: int = index
        self.address: ResolvedAddress = address


class Wait(_Decision):
    """Do nothing until something happens, or until the time `until` (`None`: only until something happens)."""

    __slots__ = __match_args__ = ("until",)

    def __init__(self, until: float | None) -> None:
        self.until: float | None = until


class Connected(_Decision):
    """The attempt `index` has won. Drop all others."""

    __slots__ = __match_args__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index: int = index


class GiveUp(_Decision):
    """Every address has failed, or there was none."""

    __slots__ = __match_args__ = ("attempts",)

    def __init__(self, attempts: tuple[ConnectAttempt, ...]) -> None:
        self.attempts: tuple[ConnectAttempt, ...] = attempts


Action = StartAttempt | Wait | Connected | GiveUp


class _Attempt:
    __slots__ = ("address", "ended_at", "errno", "started_at")

    def __init__(self, address: ResolvedAddress, started_at: float) -> None:
        self.address = address
        self.started_at = started_at
        self.ended_at: float | None = None
        self.errno: int | None = None


class Dialer:
    """Decides which address is tried when. No I/O, no clock; not thread-safe.

    Args:
        families: the address families that are being looked up, the preferred one first. For an IP address,
            its own family alone, followed by a call of `found`.
    """

    __slots__ = ("_attempts", "_first_answer_at", "_looking_up", "_running", "_seen", "_untried", "_winner")

    def __init__(self, families: Sequence[int]) -> None:
        self._looking_up = list(families)
        # Insertion order is the order of preference.
        self._untried: dict[int, list[ResolvedAddress]] = {family: [] for family in families}
        self._seen: set[tuple[int, tuple[Any, ...]]] = set()
        self._attempts: list[_Attempt] = []
        self._running: set[int] = set()
        self._first_answer_at: float | None = None
        self._winner: int | None = None

    # --- events --------------------------------------------------------------------------------------------

    def found(self, family: int, addresses: Iterable[ResolvedAddress], now: float) -> None:
        """The look-up of `family` is done. Addresses of other families, and repeated ones, are left aside."""
        queue = self._untried[family]
        for address in addresses:
            known = (address.family, address.sockaddr)
            if address.family == family and known not in self._seen:
                self._seen.add(known)
                queue.append(address)
        if queue and self._first_answer_at is None:
            self._first_answer_at = now
        self._looking_up.remove(family)

    def not_found(self, family: int) -> None:
        """The look-up of `family` has failed."""
        self._looking_up.remove(family)

    def failed(self, index: int, errno: int | None, now: float) -> None:
        """The attempt `index` has failed with the system's error number, if there is one."""
        self._running.remove(index)
        attempt = self._attempts[index]
        attempt.ended_at = now
        attempt.errno = errno

    def connected(self, index: int) -> None:
        """The attempt `index` has a connection."""
        self._running.remove(index)
        self._winner = index

    # --- decisions -----------------------------------------------------------------------------------------

    def next_action(self, now: float) -> Action:
        """What to do now. Ask again after each `StartAttempt`, and after each event or wait."""
        if self._winner is not None:
            return Connected(self._winner)
        if self.untried:
            start_at = self._may_start_at(now)
            return self._start(now) if start_at <= now else Wait(start_at)
        if self._running or self._looking_up:
            return Wait(None)
        return GiveUp(self.attempts(now))

    def _may_start_at(self, now: float) -> float:
        if self._attempts:
            last = self._attempts[-1]
            return now if last.ended_at is not None else last.started_at + ATTEMPT_DELAY
        preferred = next(iter(self._untried))
        if preferred in self._looking_up and self._first_answer_at is not None:
            return self._first_answer_at + RESOLUTION_DELAY
        return now

    def _start(self, now: float) -> StartAttempt:
        index = len(self._attempts)
        address = self._take_address()
        self._attempts.append(_Attempt(address, now))
        self._running.add(index)
        return StartAttempt(index, address)

    def _take_address(self) -> ResolvedAddress:
        last_family = self._attempts[-1].address.family if self._attempts else None
        candidates = [family for family, queue in self._untried.items() if queue]
        others = [family for family in candidates if family != last_family]
        return self._untried[(others or candidates)[0]].pop(0)

    # --- what is known -------------------------------------------------------------------------------------

    @property
    def untried(self) -> int:
        """How many addresses are known and have not been tried."""
        return sum(map(len, self._untried.values()))

    @property
    def looking_up(self) -> tuple[int, ...]:
        """The families whose look-up has not ended."""
        return tuple(self._looking_up)

    def attempts(self, now: float) -> tuple[ConnectAttempt, ...]:
        """The attempts so far, the winner left aside; those that are still going on have no `errno`."""
        return tuple(
            ConnectAttempt(
                format_address(attempt.address.sockaddr),
                attempt.errno,
                (now if attempt.ended_at is None else attempt.ended_at) - attempt.started_at,
            )
            for index, attempt in enumerate(self._attempts)
            if index != self._winner
        )

    def __repr__(self) -> str:
        return (
            f"<Dialer [{len(self._looking_up)} look-ups, {self.untried} untried, "
            f"{len(self._running)} of {len(self._attempts)} attempts under way]>"
        )


# --- arguments ---------------------------------------------------------------------------------------------


def check_host(host: str) -> str:
    """Return the host as ASCII: an IP address as it is, a name with each label IDNA-encoded (RFC 3490).

    Raises:
        ArgumentValueError: it is empty, has a control character or a space, an empty label or one of more
            than 63 bytes, more than 253 characters, brackets, a colon without being an IPv6 address (its zone
            left aside), or cannot be encoded.
        ArgumentTypeError: it is not a `str`.
    """
    if not isinstance(host, str):
        raise ArgumentTypeError(f"host must be a str, not {type(host).__name__}")
    name = host
    if not host.isascii():
        if ":" in host:
            raise ArgumentValueError(f"host {host!r} is neither an IPv6 address nor a name")
        try:
            name = host.encode("idna").decode("ascii")
        except UnicodeError as exc:
            raise ArgumentValueError(f"host {host!r} cannot be IDNA-encoded: {exc}") from exc
    if not name:
        raise ArgumentValueError("host must not be empty")
    # Looked at after encoding, which turns some exotic spaces into plain ones.
    if any(character <= " " or character == "\x7f" for character in name):
        raise ArgumentValueError(f"host {host!r} has a space or a control character")
    if "[" in name or "]" in name:
        raise ArgumentValueError(f"host {host!r} has brackets; an IPv6 address is given without them")
    if ":" in name:
        _check_ipv6(host, name.partition("%")[0])
    else:
        _check_labels(host, name.removesuffix("."))
    return name


def _check_ipv6(host: str, address: str) -> None:
    from ipaddress import IPv6Address  # only for an address with colons; a name needs none of it

    try:
        IPv6Address(address)
    except ValueError as exc:
        raise ArgumentValueError(
            f"host {host!r} is neither an IPv6 address nor a name; a port is given separately"
        ) from exc


def _check_labels(host: str, name: str) -> None:
    if len(name) > MAX_NAME:
        raise ArgumentValueError(f"host {host!r} is longer than {MAX_NAME} characters")
    for label in name.split("."):
        if not label:
            raise ArgumentValueError(f"host {host!r} has an empty label")
        if len(label) > MAX_LABEL:
            raise ArgumentValueError(f"host {host!r} has a label of more than {MAX_LABEL} bytes")


def check_port(port: int) -> int:
    """Return the port.

    Raises:
        ArgumentValueError: it is not from 1 to 65535.
        ArgumentTypeError: it is not an `int`.
    """
    if isinstance(port, bool) or not isinstance(port, int):
        raise ArgumentTypeError(f"port must be an int, not {type(port).__name__}")
    if not 1 <= port <= 65535:
        raise ArgumentValueError(f"port must be from 1 to 65535, got {port}")
    return port


# --- sockets, without touching one -------------------------------------------------------------------------


def default_socket_options(constants: Any, *, keep_alive: bool = True) -> tuple[SocketOption, ...]:
    """The options that each TCP socket of lamina gets unless the caller says otherwise.

    `TCP_NODELAY`, because HTTP writes whole messages and gains nothing from waiting for more; and TCP
    keep-alive, because a peer that vanished behind a NAT gateway is otherwise never noticed by a reader.

    Args:
        constants: the `socket` module, or anything with the same names. Those it lacks are left out.
        keep_alive: whether to have the system probe a silent peer.
    """
    tcp = constants.IPPROTO_TCP
    options: list[SocketOption] = [(tcp, constants.TCP_NODELAY, 1)]
    if keep_alive:
        options.append((constants.SOL_SOCKET, constants.SO_KEEPALIVE, 1))
        # macOS calls the first one TCP_KEEPALIVE; Linux, BSD and Windows TCP_KEEPIDLE.
        idle = getattr(constants, "TCP_KEEPIDLE", None) or getattr(constants, "TCP_KEEPALIVE", None)
        interval = getattr(constants, "TCP_KEEPINTVL", None)
        probes = getattr(constants, "TCP_KEEPCNT", None)
        values = ((idle, KEEP_ALIVE_IDLE), (interval, KEEP_ALIVE_INTERVAL), (probes, KEEP_ALIVE_PROBES))
        options.extend((tcp, name, value) for name, value in values if name is not None)
    return tuple(options)


def format_address(sockaddr: SocketAddress) -> str:
    """Write an address as a reader would: `192.0.2.1:443`, `[2001:db8::1]:443`, a path, `@abstract`."""
    if isinstance(sockaddr, bytes):
        sockaddr = sockaddr.decode("utf-8", "backslashreplace")
    if isinstance(sockaddr, str):
        return "@" + sockaddr[1:] if sockaddr.startswith("\0") else sockaddr
    host, port = sockaddr[:2]
    if ":" not in str(host):
        return f"{host}:{port}"
    scope = sockaddr[3] if len(sockaddr) > 3 else 0
    zone = f"%{scope}" if scope and "%" not in host else ""
    return f"[{host}{zone}]:{port}"
