"""What a pool tells about itself: counts, and what each connection is doing."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Any, NamedTuple

from ._scheduler import SlotState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ._dialling import ConnectionKey
    from ._io import Connection
    from ._scheduler import Scheduler, Slot
    from ._urls import Origin


class OriginStats(NamedTuple):
    """How many connections and requests there are for one origin, at one moment.

    Attributes:
        active: connections that carry a request.
        idle: open connections that carry none.
        connecting: connections being opened.
        queued: requests that wait for one.
    """

    active: int
    idle: int
    connecting: int
    queued: int


_NO_ORIGINS: Mapping[Origin, OriginStats] = {}


class PoolStats(NamedTuple):
    """How many connections and requests a pool has, at one moment. Two are equal if the totals are.

    Attributes:
        connections: all of them, those being opened and closed included.
        active: connections that carry a request.
        idle: open connections that carry none.
        connecting: connections being opened.
        queued: requests that wait for one. A request whose connection is being opened for itself does not.
        requests: requests that have one. An HTTP/2 connection carries several.
        oldest_wait: for how many seconds the first of the queued requests has been waiting; 0.0 if there is none.
        origins: a row for each origin of which there is anything, where that was asked for. The origin of a connection
            to a proxy that forwards requests is the proxy's.
    """

    connections: int
    active: int
    idle: int
    connecting: int
    queued: int
    requests: int
    oldest_wait: float = 0.0
    origins: Mapping[Origin, OriginStats] = _NO_ORIGINS

    def __eq__(self, other: object) -> bool:
        return self[:6] == other[:6] if isinstance(other, PoolStats) else NotImplemented

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(self[:6])

    def __repr__(self) -> str:
        told = ", ".join(f"{name}={value}" for name, value in zip(self._fields[:6], self[:6], strict=True))
        return f"{type(self).__name__}({told})"


def count_all(
    scheduler: Scheduler, now: Callable[[], float], origins: Mapping[Origin, OriginStats] | None = None
) -> PoolStats:
    """Count what the whole pool has. In constant time, as the next."""
    return PoolStats(
        connections=scheduler.total,
        active=scheduler.active,
        idle=scheduler.idle,
        connecting=scheduler.dialling,
        queued=scheduler.queued,
        requests=scheduler.requests,
        oldest_wait=scheduler.oldest_wait(now()),
        origins=_NO_ORIGINS if origins is None else origins,
    )


def count_origin(scheduler: Scheduler, now: Callable[[], float], key: ConnectionKey) -> PoolStats:
    """The same, with a row for the connections of one key."""
    return count_all(scheduler, now, {key.origin: OriginStats(*scheduler.counts(key))})


def count_each_origin(scheduler: Scheduler, now: Callable[[], float]) -> PoolStats:
    """The same, with a row for each origin."""
    origins: dict[Origin, OriginStats] = {}
    key: Any
    for key, counts in scheduler.all_counts():
        # Connections of one origin may differ in other things.
        before = origins.get(key.origin, ())
        origins[key.origin] = OriginStats(*map(sum, zip_longest(counts, before, fillvalue=0)))
    return count_all(scheduler, now, origins)


def describe_counts(stats: PoolStats, origin: Origin) -> str:
    """What there is of one origin, and in the whole pool, for an error's text."""
    return (
        f"connections to {origin}: {_counts(stats.origins[origin])}; "
        f"in the whole pool: {_counts(stats)}; longest wait: {stats.oldest_wait:.3f} s"
    )


def _counts(stats: PoolStats | OriginStats) -> str:
    return (
        f"{stats.active} active, {stats.connecting} connecting, {stats.idle} idle, "
        f"{stats.queued} requests queued"
    )


class PooledConnection(NamedTuple):
    """A connection of the pool, as it was at one moment.

    Attributes:
        origin: what it is connected to.
        http_version: `"HTTP/1.1"` or `"HTTP/2"`, or `""` while it is being opened.
        state: `"CONNECTING"`, `"ACTIVE"`, `"IDLE"` or `"CLOSED"`.
        request_count: how many requests it has carried.
    """

    origin: Origin
    http_version: str
    state: str
    request_count: int

    def info(self) -> str:
        """One line about it."""
        if self.state == "CONNECTING":
            return "CONNECTING"
        return f"'{self.origin}', {self.http_version}, {self.state}, Request Count: {self.request_count}"

    def is_available(self) -> bool:
        """Whether it could have taken a request."""
        return self.state == "IDLE"

    def is_idle(self) -> bool:
        """Whether it was open and carried no request."""
        return self.state == "IDLE"

    def is_closed(self) -> bool:
        """Whether it was being closed."""
        return self.state == "CLOSED"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.info()}]>"


def snapshot(slot: Slot) -> PooledConnection:
    """What a connection is doing."""
    connection: Connection | None = slot.connection
    origin: Origin = slot.key.origin  # type: ignore[attr-defined] # every key here is a ConnectionKey
    if connection is None:
        return PooledConnection(origin, "", "CONNECTING", 0)
    state = "CLOSED" if slot.state is not SlotState.OPEN else "IDLE" if slot.is_idle else "ACTIVE"
    return PooledConnection(origin, connection.http_version, state, connection.exchanges)


# The package does it for those that are asked for under its name.
for _public in (OriginStats, PoolStats, PooledConnection):
    _public.__module__ = "lamina_pool"
