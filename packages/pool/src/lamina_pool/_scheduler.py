"""Who gets which connection: the pool's decisions, without sockets, clocks, locks or tasks.

The rules:

- A request gets, in this order: a connection to its origin that has room; a new connection, if the limits allow
  one; the place of a connection to another origin that idles; or a place in the queue.
- Among idle connections to an origin the one used last is taken first, so that a surplus is left to expire. The
  one to give up its place to another origin is the one that has been idle longest.
- First come, first served. What becomes free goes to the oldest waiting request that can use it, whatever its
  origin: a busy origin cannot starve a quiet one. A request that waits because its own origin is at its limit
  does not hold up the others; it joins the end of the common queue when its origin has room again. A place that is
  about to become free is meant for the head of the common queue, so nothing is closed for the same request twice.
- A place is free only when its socket is closed, so that live sockets never exceed the limit.

How it is used: the shell takes its lock, calls one method (an event), lets the lock go, and carries out the
actions that the method returned: it closes connections (and says so with `closed`), and wakes waiters. What
became of a waiter stands in the waiter: `GRANTED`, `DIALLING` (it is asked to open a connection itself),
`PARKED` or `REFUSED`. A waiter is the one token for what a request holds, and `release` is the one way to
give it back, in whatever state it is.

Every event takes constant time: queues and stacks are ordered dictionaries from which any entry is removed in
constant time, and nothing is ever searched. Connections past their time are met at the end of a queue, or when they
would be handed out, and closed then.

An exception can strike in the middle of an event: KeyboardInterrupt does, anywhere. Everything can be computed again
from two dictionaries, of slots and of waiters, and from the states of their entries; `rebuild` does so. For this a
state is set last when something is given, and whoever gets something is entered before.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

NEVER = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the pool may hold. Counts may be `math.inf`; times are seconds.

    Attributes:
        max_connections: connections in all: being opened, in use, idle, being closed.
        max_connections_per_origin: the same, for each origin.
        max_idle: idle connections; beyond it the one that has been idle longest is closed.
        idle_seconds: how long a connection may idle before it is closed instead of used.
        max_age: how long after its opening a connection may take new requests.
        age_jitter: up to which fraction `max_age` is shortened, at random for each connection, so that those
            opened together are not all replaced together.
    """

    max_connections: float = NEVER
    max_connections_per_origin: float = NEVER
    max_idle: float = NEVER
    idle_seconds: float = NEVER
    max_age: float = NEVER
    age_jitter: float = 0.1


class WaiterState(enum.Enum):
    """What became of a request that asked for a connection."""

    NEW = "new"
    PARKED = "parked"
    GRANTED = "granted"
    DIALLING = "dialling"
    REFUSED = "refused"
    DONE = "done"


class SlotState(enum.Enum):
    """The life of a connection's place in the pool."""

    DIALLING = "dialling"
    OPEN = "open"
    CLOSING = "closing"
    GONE = "gone"


class CloseReason(enum.Enum):
    """Why the scheduler wants a connection closed."""

    EXPIRED = "idle for too long"
    TOO_OLD = "past its maximum age"
    SURPLUS = "more idle connections than allowed"
    EVICTED = "another origin needs its place"
    BROKEN = "not fit for another request"
    POOL_CLOSED = "the pool is closed"


class Waiter:
    """One request's claim on a connection: the token that it holds from `acquire` to `release`.

    Attributes:
        key: what the connection has to fit: origin, and everything else that makes one differ from another.
        state: see `WaiterState`.
        slot: the connection's place, while `GRANTED` or `DIALLING`.
        payload: the shell's own: what it needs to wake the waiter.
    """

    __slots__ = ("arrival", "key", "payload", "slot", "state")

    def __init__(self, key: Hashable, payload: Any = None) -> None:
        self.key = key
        self.payload = payload
        self.state = WaiterState.NEW
        self.slot: Slot | None = None
        self.arrival = 0


class Slot:
    """One connection's place in the pool.

    Attributes:
        connection: the shell's own object, from `opened` on.
        capacity: how many requests the connection can carry at once; 1 for HTTP/1.1.
        in_use: how many it carries.
    """

    __slots__ = (
        "_expires_at",
        "_is_retired",
        "_origin",
        "_retires_at",
        "capacity",
        "connection",
        "in_use",
        "state",
    )

    def __init__(self, origin: _Origin) -> None:
        self._origin = origin
        self._expires_at = NEVER
        self._retires_at = NEVER
        self._is_retired = False
        self.connection: Any = None
        self.capacity = 0
        self.in_use = 0
        self.state = SlotState.DIALLING

    @property
    def key(self) -> Hashable:
        """What the connection fits: see `Waiter.key`."""
        return self._origin.key

    @property
    def is_idle(self) -> bool:
        """Whether it is open and carries nothing."""
        return self.state is SlotState.OPEN and self.in_use == 0

    def _past_its_time(self, now: float) -> CloseReason | None:
        if now >= self._retires_at:
            return CloseReason.TOO_OLD
        return CloseReason.EXPIRED if self.in_use == 0 and now >= self._expires_at else None


class Wake(NamedTuple):
    """Action: tell the waiter that its state has changed."""

    waiter: Waiter


class Close(NamedTuple):
    """Action: close the connection, then report it with `closed`."""

    slot: Slot
    reason: CloseReason


Action: TypeAlias = "Wake | Close"
_NOTHING: Sequence[Action] = ()
_HOLDING = (WaiterState.GRANTED, WaiterState.DIALLING)


class _Origin:
    """What the pool knows of the connections and waiters with one key. Lives while there are any.

    Every waiter is in `eligible` or in `blocked`, oldest first; those in `eligible` also stand in the common
    queue, or are promised a place. There are never more of them than the origin may open connections.
    """

    __slots__ = ("blocked", "eligible", "key", "places", "spare")

    def __init__(self, key: Hashable) -> None:
        self.key = key
        self.places = 0
        self.spare: dict[Slot, None] = {}  # a stack: slots with room for a request, last used on top
        self.eligible: OrderedDict[Waiter, None] = OrderedDict()
        self.blocked: OrderedDict[Waiter, None] = OrderedDict()

    def oldest(self) -> Waiter | None:
        for queue in (self.eligible, self.blocked):
            if queue:
                return next(iter(queue))
        return None


class Scheduler:
    """The state of the pool, and its rules. See the top of the module.

    Args:
        limits: what the pool may hold.
        random: returns a number from 0 to less than 1, for the jitter of the maximum age.
    """

    def __init__(self, limits: Limits, random: Callable[[], float] = lambda: 0.0) -> None:
        self.limits = limits
        self.is_closed = False
        self._random = random
        self._origins: dict[Hashable, _Origin] = {}
        self._slots: dict[Slot, None] = {}
        self._waiters: dict[Waiter, None] = {}  # from `acquire` to `release`
        self._idle: OrderedDict[Slot, None] = OrderedDict()  # longest idle first
        # The eligible of all origins, first come first. As many as there are connections being closed are promised
        # their places; a connection that idles is closed for the others only.
        self._promised: OrderedDict[Waiter, None] = OrderedDict()
        self._queue: OrderedDict[Waiter, None] = OrderedDict()
        self._dialling = 0
        self._closing = 0
        self._waiting = 0
        self._arrivals = 0

    # --- counts, each in constant time ---------------------------------------------------------------------

    @property
    def total(self) -> int:
        """Connections in all."""
        return len(self._slots)

    @property
    def idle(self) -> int:
        """Connections that are open and carry nothing."""
        return len(self._idle)

    @property
    def dialling(self) -> int:
        """Connections that are being opened."""
        return self._dialling

    @property
    def active(self) -> int:
        """Connections that carry at least one request."""
        return len(self._slots) - len(self._idle) - self._dialling - self._closing

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return self._waiting

    def slots(self) -> list[Slot]:
        """All connections that are not gone, oldest first. Takes time in proportion to their number."""
        return list(self._slots)

    # --- events --------------------------------------------------------------------------------------------

    def acquire(self, waiter: Waiter, now: float) -> Sequence[Action]:
        """A request asks for a connection. Its waiter's state is the answer."""
        if waiter.state is not WaiterState.NEW:
            raise AssertionError(f"a waiter must be new for this, not {waiter.state.value}")
        if self.is_closed:
            waiter.state = WaiterState.REFUSED
            return _NOTHING
        self._waiters[waiter] = None
        origin = self._origin_of(waiter.key)
        actions: list[Action] = []
        self._expire(now, actions)
        if (slot := self._take_spare(origin, now, actions)) is not None:
            self._grant(waiter, slot)
        elif self._has_room(origin):
            self._dial(waiter, origin)
        else:
            self._park(waiter, origin)
            self._serve_queue(actions)
        return actions or _NOTHING

    def opened(self, waiter: Waiter, connection: Any, now: float, capacity: int = 1) -> Sequence[Action]:
        """The connection that this waiter was asked to open is open. The waiter is the first to use it.

        If the pool was closed meanwhile the waiter is refused, and the caller closes the connection itself.
        """
        slot = self._slot_of(waiter, WaiterState.DIALLING)
        actions: list[Action] = []
        if self.is_closed:
            waiter.slot, waiter.state = None, WaiterState.REFUSED
            self._drop(slot, actions)
            return actions or _NOTHING
        self._dialling -= 1
        slot.connection = connection
        slot.capacity = capacity
        slot.state = SlotState.OPEN
        slot._retires_at = now + self.limits.max_age * (1.0 - self.limits.age_jitter * self._random())
        self._grant(waiter, slot)
        self._offer(slot, now, actions)
        return actions or _NOTHING

    def release(
        self, waiter: Waiter, now: float, *, reusable: bool, idle_seconds: float | None = None
    ) -> Sequence[Action]:
        """A request gives back whatever it holds: its place in the queue, its dial, its connection.

        Args:
            waiter: the request's token; of no more use afterwards. Giving it back twice does nothing, nor does
                giving back one that never came here.
            now: the present, in seconds.
            reusable: whether the connection can take further requests. If not, the caller has closed it already
                when it carried no other request, as it has after a dial that failed.
            idle_seconds: how long the server is willing to keep the connection, by what it said in answer to this
                request; `None` if it was not asked anything, so that its earlier word stands.
        """
        state, slot = waiter.state, waiter.slot
        waiter.slot, waiter.state = None, WaiterState.DONE
        if waiter not in self._waiters:
            return _NOTHING
        del self._waiters[waiter]
        actions: list[Action] = []
        if state is WaiterState.PARKED:
            self._unpark(waiter)
        elif state is WaiterState.DIALLING and slot is not None:
            self._drop(slot, actions)
        elif state is WaiterState.GRANTED and slot is not None and slot.state is SlotState.OPEN:
            slot.in_use -= 1
            slot._is_retired |= not reusable
            slot._origin.spare.pop(slot, None)  # it comes back on top
            if slot.in_use == 0 and not reusable:
                self._drop(slot, actions)
            else:
                if slot.in_use == 0:
                    ours = now + self.limits.idle_seconds
                    theirs = slot._expires_at if idle_seconds is None else now + idle_seconds
                    slot._expires_at = min(ours, theirs)
                    self._idle[slot] = None
                self._offer(slot, now, actions)
        self._forget(waiter.key)
        return actions or _NOTHING

    def replace(self, waiter: Waiter, now: float, *, fresh: bool) -> Sequence[Action]:
        """The connection that was granted turned out to be dead; the caller has closed it. Get another one.

        Unless `fresh` is set, another connection to the origin that has room will do; otherwise the request opens a
        new one in the place of the dead. While the dead connection carries other requests its place is not free:
        then the request opens one in a free place, or takes one with room after all, or queues like a new request.
        """
        slot = self._slot_of(waiter, WaiterState.GRANTED)
        actions: list[Action] = []
        if slot.state is not SlotState.OPEN:
            waiter.slot, waiter.state = None, WaiterState.REFUSED
            return _NOTHING
        origin = slot._origin
        slot.in_use -= 1
        slot._is_retired = True
        origin.spare.pop(slot, None)
        fresh &= slot.in_use == 0 or self._has_room(origin)
        if not fresh and (spare := self._take_spare(origin, now, actions)) is not None:
            self._grant(waiter, spare)
            if slot.in_use == 0:
                self._drop(slot, actions)
            return actions or _NOTHING
        if slot.in_use == 0:
            self._remove(slot)
        if self._has_room(origin):
            self._dial(waiter, origin)
        else:
            self._park(waiter, origin)
            self._serve_queue(actions)
        return actions or _NOTHING

    def capacity_changed(self, slot: Slot, capacity: int, now: float) -> Sequence[Action]:
        """A connection can carry more, or fewer, requests at once than before."""
        actions: list[Action] = []
        slot.capacity = capacity
        if slot.state is SlotState.OPEN:
            self._offer(slot, now, actions)
        return actions or _NOTHING

    def closed(self, slot: Slot) -> Sequence[Action]:
        """A connection that the scheduler wanted closed is closed; its place is free."""
        actions: list[Action] = []
        if slot.state is SlotState.CLOSING:
            self._drop(slot, actions)
        return actions or _NOTHING

    def expire(self, now: float) -> Sequence[Action]:
        """Close the idle connections whose time is over, as far as they were idle longest."""
        actions: list[Action] = []
        self._expire(now, actions)
        return actions or _NOTHING

    def close(self) -> Sequence[Action]:
        """Refuse all that wait and all that come later; have every open connection closed."""
        actions: list[Action] = []
        self.is_closed = True
        for slot in list(self._slots):
            if slot.state is SlotState.OPEN:
                self._close(slot, CloseReason.POOL_CLOSED, actions)
        for origin in list(self._origins.values()):
            while (waiter := origin.oldest()) is not None:
                self._unpark(waiter)
                waiter.state = WaiterState.REFUSED
                actions.append(Wake(waiter))
        return actions or _NOTHING

    def rebuild(self, abandoned: Waiter | None = None) -> Sequence[Action]:
        """An exception struck in the middle of an event: compute everything again, and lose nothing.

        What the event meant to say of a connection is not known, so none that is open takes further requests: those
        that carry nothing are closed now, the others when they are given back. Takes time in proportion to all that
        there is. If it is interrupted in its turn, it is called again.

        Args:
            abandoned: the waiter that the event was about. It holds nothing afterwards; if it held a connection that
                the event did not take over or give back for certain, the caller closes it first.

        Returns:
            Whatever may have been lost, and with it what was not: to close every connection that is to be closed, and
            to wake every waiter that was parked and no longer is. The caller sees to it that doing either twice does
            no harm.
        """
        if abandoned is not None:
            abandoned.slot, abandoned.state = None, WaiterState.DONE
            self._waiters.pop(abandoned, None)
        self._origins = {}
        self._idle, self._promised, self._queue = OrderedDict(), OrderedDict(), OrderedDict()
        self._dialling = self._closing = self._waiting = 0
        held: dict[Slot | None, int] = {}
        for waiter in self._waiters:
            if waiter.state in _HOLDING:
                held[waiter.slot] = held.get(waiter.slot, 0) + 1
        for slot in list(self._slots):
            self._rebuild_slot(slot, held.get(slot, 0))
        for waiter in sorted(self._waiters, key=lambda waiter: waiter.arrival):
            if waiter.state is WaiterState.PARKED:
                waiter.slot = None
                self._enqueue(waiter, self._origin_of(waiter.key))
        self._serve_queue([])
        if self.is_closed:
            self.close()
        closing = [slot for slot in self._slots if slot.state is SlotState.CLOSING]
        awake = [
            waiter for waiter in self._waiters if waiter.arrival and waiter.state is not WaiterState.PARKED
        ]
        return [*(Close(slot, CloseReason.BROKEN) for slot in closing), *(Wake(waiter) for waiter in awake)]

    def _rebuild_slot(self, slot: Slot, holders: int) -> None:
        if slot.state is SlotState.GONE or (slot.state is SlotState.DIALLING and not holders):
            slot.state = SlotState.GONE
            del self._slots[slot]
            return
        slot._origin = self._origin_of(slot.key)
        slot._origin.places += 1
        if slot.state is SlotState.DIALLING:
            self._dialling += 1
        elif slot.state is SlotState.CLOSING:
            self._closing += 1
        else:
            slot.in_use = holders
            slot._is_retired = True
            if not holders:
                self._close(slot, CloseReason.BROKEN, [])

    # --- steps of the events -------------------------------------------------------------------------------

    def _take_spare(self, origin: _Origin, now: float, actions: list[Action]) -> Slot | None:
        """The connection to this origin with room for one more request that was used last."""
        while origin.spare:
            slot, _ = origin.spare.popitem()
            reason = slot._past_its_time(now)
            if reason is None:
                origin.spare[slot] = None
                return slot
            if slot.in_use:
                slot._is_retired = True
            else:
                self._close(slot, reason, actions)
        return None

    def _grant(self, waiter: Waiter, slot: Slot) -> None:
        if slot.in_use == 0:
            self._idle.pop(slot, None)
        slot.in_use += 1
        if slot.in_use >= slot.capacity:
            slot._origin.spare.pop(slot, None)
        waiter.slot = slot
        waiter.state = WaiterState.GRANTED

    def _dial(self, waiter: Waiter, origin: _Origin) -> None:
        slot = Slot(origin)
        self._slots[slot] = None
        self._dialling += 1
        origin.places += 1
        waiter.slot = slot
        waiter.state = WaiterState.DIALLING

    def _offer(self, slot: Slot, now: float, actions: list[Action]) -> None:
        """A connection has room, it may be: serve who waits for its origin; then see that it may idle."""
        origin = slot._origin
        reason = CloseReason.BROKEN if slot._is_retired else slot._past_its_time(now)
        if reason is not None:
            slot._is_retired = True
            origin.spare.pop(slot, None)
            if slot.in_use == 0:
                self._close(slot, reason, actions)
            return
        while slot.in_use < slot.capacity and (waiter := origin.oldest()) is not None:
            if slot.in_use == 0 and self._came_before(waiter):
                break  # somebody of another origin came first, and will have this connection's place
            self._unpark(waiter)
            self._grant(waiter, slot)
            actions.append(Wake(waiter))
        if slot.in_use < slot.capacity:
            origin.spare[slot] = None
        else:
            origin.spare.pop(slot, None)
        if slot.in_use == 0:
            self._serve_queue(actions)
            if slot.state is SlotState.OPEN and len(self._idle) > self.limits.max_idle:
                self._close(next(iter(self._idle)), CloseReason.SURPLUS, actions)

    def _serve_queue(self, actions: list[Action]) -> None:
        """Give free places to those in the common queue, and make places free by closing idle connections."""
        while len(self._slots) < self.limits.max_connections and (queue := self._promised or self._queue):
            waiter = next(iter(queue))
            self._dial(waiter, self._origins[waiter.key])  # first, so that its origin has no room for another
            self._unpark(waiter)
            actions.append(Wake(waiter))
        while self._idle and self._queue:
            self._close(next(iter(self._idle)), CloseReason.EVICTED, actions)

    def _came_before(self, waiter: Waiter) -> bool:
        """Whether the common queue holds an older waiter for whom no place is about to become free."""
        return bool(self._queue) and next(iter(self._queue)).arrival < waiter.arrival

    def _park(self, waiter: Waiter, origin: _Origin) -> None:
        self._arrivals += 1
        waiter.arrival = self._arrivals
        self._enqueue(waiter, origin)
        waiter.slot = None
        waiter.state = WaiterState.PARKED

    def _enqueue(self, waiter: Waiter, origin: _Origin) -> None:
        self._waiting += 1
        origin.blocked[waiter] = None
        self._promote(origin)

    def _unpark(self, waiter: Waiter) -> None:
        self._waiting -= 1
        origin = self._origins[waiter.key]
        if waiter in origin.blocked:
            del origin.blocked[waiter]
        else:
            del origin.eligible[waiter]
            self._queue.pop(waiter, None)
            self._promised.pop(waiter, None)
            self._promise()
            self._promote(origin)

    def _promote(self, origin: _Origin) -> None:
        """Let those of an origin into the common queue for whom it may still open connections."""
        room = self.limits.max_connections_per_origin - origin.places
        while origin.blocked and len(origin.eligible) < room:
            waiter, _ = origin.blocked.popitem(last=False)
            origin.eligible[waiter] = None
            self._queue[waiter] = None
        self._promise()

    def _promise(self) -> None:
        """Mark those in the common queue for whom a place is about to become free."""
        while self._queue and len(self._promised) < self._closing:
            waiter, _ = self._queue.popitem(last=False)
            self._promised[waiter] = None

    def _expire(self, now: float, actions: list[Action]) -> None:
        while self._idle:
            slot = next(iter(self._idle))
            reason = slot._past_its_time(now)
            if reason is None:
                return
            self._close(slot, reason, actions)

    def _close(self, slot: Slot, reason: CloseReason, actions: list[Action]) -> None:
        """Have a connection closed; its place stays taken until `closed`."""
        slot.state = SlotState.CLOSING
        slot._origin.spare.pop(slot, None)
        self._idle.pop(slot, None)
        self._closing += 1
        self._promise()
        actions.append(Close(slot, reason))

    def _drop(self, slot: Slot, actions: list[Action]) -> None:
        """A connection is gone: its place goes to whoever waits."""
        self._remove(slot)
        origin = slot._origin
        self._promote(origin)
        self._serve_queue(actions)
        self._forget(origin.key)

    def _remove(self, slot: Slot) -> None:
        if slot.state is SlotState.DIALLING:
            self._dialling -= 1
        elif slot.state is SlotState.CLOSING:
            self._closing -= 1
        slot.state = SlotState.GONE
        slot._origin.spare.pop(slot, None)
        slot._origin.places -= 1
        del self._slots[slot]

    def _has_room(self, origin: _Origin) -> bool:
        """Whether a connection may be opened at once. If so, nobody waits in the queue who could do it."""
        return (
            len(self._slots) < self.limits.max_connections
            and origin.places < self.limits.max_connections_per_origin
        )

    def _origin_of(self, key: Hashable) -> _Origin:
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = _Origin(key)
        return origin

    def _forget(self, key: Hashable) -> None:
        origin = self._origins.get(key)
        if origin is not None and not (origin.places or origin.eligible or origin.blocked):
            del self._origins[key]

    def _slot_of(self, waiter: Waiter, state: WaiterState) -> Slot:
        if waiter.state is not state or waiter.slot is None:
            raise AssertionError(f"a waiter must be {state.value} for this, not {waiter.state.value}")
        return waiter.slot
