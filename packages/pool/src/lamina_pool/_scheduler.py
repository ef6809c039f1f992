"""Who gets which connection: the pool's decisions, without sockets, clocks, locks or tasks.

The rules:

- A request gets, in this order: a connection to its origin that has room; a place on one that is to come anyway; a
  new connection, if the limits allow one; the place of a connection to another origin that idles; or a place in the
  queue.
- Among idle connections to an origin the one used last is taken first, so that a surplus is left to expire. The
  one to give up its place to another origin is the one that has been idle longest.
- First come, first served. What becomes free goes to the oldest waiting request that can use it, whatever its
  origin: a busy origin cannot starve a quiet one. A request that waits because its own origin is at its limit
  does not hold up the others; it joins the end of the common queue when its origin has room again. A place that is
  about to become free is meant for the head of the common queue, so nothing is closed for the same request twice.
- A place is free only when its socket is closed, so that live sockets never exceed the limit.

Where a connection carries several requests at once, more rules are needed:

- For each origin there is a number of requests that one connection is expected to carry: first by the word of whoever
  asks, then by what the last connection could carry; one, after a dial that failed, so that then each dials for
  himself. An origin wants as many connections as it takes to carry all who wait for one or dial, and no more. Those
  whom the dials under way are expected to serve wait for them, outside of the common queue. If these fail, or carry
  less, the others join its end.
- A connection that for the moment may carry nothing, by its server's word, is waited for as a dial is. A new one
  would fare no better.
- A dial can be detached from the request that began it, so that it outlives it: somebody else dials on, and the
  request waits, before all others of its origin. Whoever dials on wants no place on the connection: it is released
  when the connection opens, in the same event, so that those who wait get all places that there are. A detached dial
  is given up when the last who waited has gone.
- A connection that takes no more requests is retired: closed when it carries none. A request that it has not served
  asks again, and waits, if it must, before all others of its origin.

How it is used: the shell takes its lock, calls one method (an event), lets the lock go, and carries out the
actions that the method returned: it closes connections (and says so with `closed`), ends dials that are given up
(and releases who dialled), and wakes waiters. What became of a waiter stands in the waiter: `GRANTED`, `DIALLING` (it
is asked to open a connection itself), `PARKED` or `REFUSED`. A waiter is the one token for what a request holds, and
`release` is the one way to give it back, in whatever state it is.

Every event takes constant time: queues and stacks are ordered dictionaries from which any entry is removed in
constant time, and nothing is ever searched. Connections past their time are met at the end of a queue, or when they
would be handed out, and closed then. In the same way those whom a connection to come will serve after all are sent
from the common queue back to their line when they are met at its head.

An exception can strike in the middle of an event: KeyboardInterrupt does, anywhere. Everything can be computed again
from two dictionaries, of slots and of waiters, and from the states of their entries; `rebuild` does so. For this a
state is set last when something is given, and whoever gets something is entered before. The waiter that the event is
about may let go at any moment: to `rebuild` it is one that holds nothing.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

NEVER = math.inf

PRESUMED_STREAMS = 100
"""How many requests an HTTP/2 connection is taken to carry before the server names a number: what RFC 9113 (section
6.5.2) asks it to allow."""


class Limits(NamedTuple):
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
    """Why a connection is closed."""

    EXPIRED = "idle for too long"
    TOO_OLD = "past its maximum age"
    SURPLUS = "more idle connections than allowed"
    EVICTED = "another origin needs its place"
    BROKEN = "not fit for another request"
    RETIRED = "takes no further requests"
    POOL_CLOSED = "the pool is closed"
    # From here on not the scheduler's: a request has let go of it so, or the pool of all that it had.
    STALE = "the server had closed it, or sent bytes unasked"
    FAILED = "a request on it failed"
    CANCELLED = "a request on it was cancelled or interrupted"
    CLOSED_EARLY = "a response on it was closed before its end"
    ABANDONED = "a response on it was forgotten"
    LOST = "its event loop has ended, or it is the parent process's"


class Waiter:
    """One request's claim on a connection: the token that it holds from `acquire` to `release`.

    Attributes:
        key: what the connection has to fit: origin, and everything else that makes one differ from another.
        state: see `WaiterState`.
        slot: the connection's place, while `GRANTED` or `DIALLING`.
        turn: which of the requests it is to which that connection was granted, 1 for the first.
        payload: the shell's own: what it needs to wake the waiter.
    """

    __slots__ = (
        "_awaits",
        "_expected",
        "_goes_first",
        "_parked_at",
        "arrival",
        "key",
        "payload",
        "slot",
        "state",
        "turn",
    )

    def __init__(self, key: Hashable, payload: Any = None) -> None:
        self.key = key
        self.payload = payload
        self.state = WaiterState.NEW
        self.slot: Slot | None = None
        self.arrival = 0
        self.turn = 0
        self._awaits: Slot | None = None  # the dial that it has detached, as long as it waits for that
        self._expected = 1
        self._goes_first = False
        self._parked_at = 0.0


class Slot:
    """One connection's place in the pool.

    Attributes:
        connection: the shell's own object, from `opened` on.
        capacity: how many requests the connection can carry at once; 1 for HTTP/1.1.
        in_use: how many it carries.
        turns: to how many requests it was granted.
    """

    __slots__ = (
        "_expires_at",
        "_is_detached",
        "_is_given_up",
        "_is_retired",
        "_opener",
        "_origin",
        "_reason",
        "_retires_at",
        "capacity",
        "connection",
        "in_use",
        "state",
        "turns",
    )

    def __init__(self, origin: _Origin) -> None:
        self._origin = origin
        self._expires_at = NEVER
        self._retires_at = NEVER
        self._is_detached = False  # whether it is dialled for those who wait
        self._opener: Waiter | None = None  # who has detached the dial
        self._is_given_up = False
        self._is_retired = False
        self._reason = CloseReason.BROKEN  # if it is retired
        self.connection: Any = None
        self.capacity = 0
        self.in_use = 0
        self.turns = 0
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
        if now >= self._expires_at and self.in_use == 0:
            return CloseReason.EXPIRED
        return None


class Wake(NamedTuple):
    """Action: tell the waiter that its state has changed."""

    waiter: Waiter


class Close(NamedTuple):
    """Action: close the connection, then report it with `closed`."""

    slot: Slot
    reason: CloseReason


class GiveUp(NamedTuple):
    """Action: end the detached dial, for which nobody waits any more, then release the waiter that dials."""

    slot: Slot


class OriginCounts(NamedTuple):
    """What there is of one key. Connections that are being closed are not counted.

    Attributes:
        active: connections that carry at least one request.
        idle: open connections that carry nothing.
        dialling: connections that are being opened.
        queued: requests in the queue.
    """

    active: int
    idle: int
    dialling: int
    queued: int


Action: TypeAlias = "Wake | Close | GiveUp"
_NOTHING: Sequence[Action] = ()
_HOLDING = (WaiterState.GRANTED, WaiterState.DIALLING)

# What nearly every request asks for: a member of an enumeration is slow to look up.
_NEW, _GRANTED, _DONE = WaiterState.NEW, WaiterState.GRANTED, WaiterState.DONE
_OPEN = SlotState.OPEN


class _Origin:
    """What the pool knows of the connections and waiters with one key. Lives while there are any.

    Every waiter is in one of three lines. Those in `eligible`, in the order in which they came there, also stand in the
    common queue, or, the first of them, are promised a place. There are at least as many as the origin lacks
    connections, and may open; more, as long as nobody has noticed that it lacks less than before.
    """

    __slots__ = (
        "ahead",
        "blocked",
        "closing",
        "detached",
        "dialling",
        "eligible",
        "expected",
        "idle",
        "inline",
        "key",
        "places",
        "promised",
        "queued",
        "returned",
        "spare",
        "stalled",
        "waiting",
    )

    def __init__(self, key: Hashable, expected: int) -> None:
        self.key = key
        self.expected = expected  # how many requests a connection to come will carry
        self.places = 0
        self.dialling = 0  # of the places, as are the next two
        self.idle = 0
        self.closing = 0
        self.waiting = 0  # in all three lines
        self.queued = 0  # of these, who do not wait for a dial that they have begun
        self.spare: OrderedDict[Slot, None] = OrderedDict()  # a stack: slots with room, last used on top
        self.stalled: dict[Slot, None] = {}  # open, but for the moment may carry nothing
        self.inline = 0  # dials by those who will be the first to use the connection
        self.detached: dict[Slot, None] = {}  # dials for those who wait, as long as they are not given up
        self.ahead: OrderedDict[Waiter, None] = OrderedDict()  # who go before all others, in whichever line
        self.returned: OrderedDict[Waiter, None] = OrderedDict()  # of these, who are not eligible
        self.eligible: OrderedDict[Waiter, None] = OrderedDict()
        self.promised = 0  # of the eligible
        self.blocked: OrderedDict[Waiter, None] = OrderedDict()

    @property
    def counts(self) -> OriginCounts:
        active = self.places - self.dialling - self.idle - self.closing
        return OriginCounts(active, self.idle, self.dialling, self.queued)

    def lacks(self, newcomers: int = 0) -> int:
        """How many more connections it takes to carry all who wait or dial, beside those that are to come."""
        requests = self.waiting + self.inline + newcomers
        to_come = self.inline + len(self.detached) + len(self.stalled)
        return (requests + self.expected - 1) // self.expected - to_come

    def heads(self) -> list[Waiter]:
        """The first of those who go before all others, of the eligible and of the rest, as far as there are any."""
        return [next(iter(line)) for line in (self.ahead, self.eligible, self.blocked) if line]

    def first_in_line(self) -> Waiter | None:
        """Who gets what becomes free."""
        for line in (self.ahead, self.eligible, self.blocked):
            for waiter in line:
                return waiter
        return None

    def arrival(self) -> int:
        """When the oldest of them came."""
        return min(waiter.arrival for waiter in self.heads())

    def line_of(self, waiter: Waiter) -> OrderedDict[Waiter, None]:
        """Where the waiter waits while it is not eligible."""
        return self.returned if waiter._goes_first else self.blocked

    def expect(self, capacity: int) -> None:
        """A connection has turned out to carry so many. If it may carry none at present, that tells nothing."""
        if capacity > 0:
            self.expected = capacity

    def withdraw(self, slot: Slot) -> None:
        """The slot has room for nobody any more."""
        self.spare.pop(slot, None)
        self.stalled.pop(slot, None)

    def note_room(self, slot: Slot) -> None:
        """The slot is open and fit: it has room, or none, or is stalled."""
        if slot.in_use < slot.capacity:
            self.spare[slot] = None
        else:
            self.spare.pop(slot, None)
        if slot.capacity <= 0:
            self.stalled[slot] = None
        elif self.stalled:
            self.stalled.pop(slot, None)


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
        # All who wait, but for those who wait for a dial that they have begun; who waits longest is the first.
        self._queued: OrderedDict[Waiter, None] = OrderedDict()
        self._dialling = 0
        self._closing = 0
        self._waiting = 0
        self._requests = 0
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
        """Requests that wait, for whatever it is."""
        return self._waiting

    @property
    def queued(self) -> int:
        """The same without those that wait for a dial which they have begun, and have detached."""
        return len(self._queued)

    def oldest_wait(self, now: float) -> float:
        """For how many seconds the first of the `queued` has been waiting; 0.0 if there is none."""
        oldest = next(iter(self._queued), None)
        return 0.0 if oldest is None else max(0.0, now - oldest._parked_at)

    def counts(self, key: Hashable) -> OriginCounts:
        """What there is of one key."""
        origin = self._origins.get(key)
        return OriginCounts(0, 0, 0, 0) if origin is None else origin.counts

    def all_counts(self) -> list[tuple[Hashable, OriginCounts]]:
        """The same for each key of which there is anything. Takes time in proportion to their number."""
        return [(origin.key, origin.counts) for origin in self._origins.values()]

    @property
    def requests(self) -> int:
        """Requests that hold a connection. One that carries several counts for as many."""
        return self._requests

    def expected(self, key: Hashable) -> int | None:
        """How many requests a new connection is expected to carry, by those before it; `None` if nothing is known."""
        origin = self._origins.get(key)
        return None if origin is None else origin.expected

    def stalled(self, key: Hashable) -> list[Slot]:
        """Open connections that may carry nothing for the moment. In proportion to their number, which is small."""
        origin = self._origins.get(key)
        return [] if origin is None else list(origin.stalled)

    def slots(self) -> list[Slot]:
        """All connections that are not gone, oldest first. Takes time in proportion to their number."""
        return list(self._slots)

    # --- events --------------------------------------------------------------------------------------------

    def acquire(self, waiter: Waiter, now: float, expected: int = 1) -> Sequence[Action]:
        """A request asks for a connection. Its waiter's state is the answer.

        Args:
            waiter: the request's token.
            now: the present, in seconds.
            expected: how many requests a new connection is expected to carry at once, at least 1, as long as the pool
                knows nothing of this origin.
        """
        if waiter.state is not _NEW:
            self._check(waiter, _NEW)
        if self.is_closed:
            waiter.state = WaiterState.REFUSED
            return _NOTHING
        waiter._expected = expected
        self._waiters[waiter] = None
        origin = self._origins.get(waiter.key) or self._origin_of(waiter.key, expected)
        actions: list[Action] = []
        for oldest in self._idle:
            if now >= oldest._expires_at or now >= oldest._retires_at:
                self._expire(now, actions)
            break
        slot = next(reversed(origin.spare)) if origin.spare else None
        if slot is not None and now < slot._retires_at and (now < slot._expires_at or slot.in_use):
            self._grant(waiter, slot)  # nearly always; `_answer` would come to the same
        else:
            self._answer(waiter, origin, now, actions)
        if self._waiting:
            self._settle(origin, actions)
        return actions or _NOTHING

    def detach(self, waiter: Waiter, dial_waiter: Waiter, now: float) -> Sequence[Action]:
        """A request that dials has somebody else dial on, and waits like the others that the dial is to serve.

        Whoever goes on calls `opened` with its own waiter, and has nothing to give back then: the connection is not for
        itself. If there is none, it `release`s its waiter. If this event is interrupted, `dial_waiter` has taken the
        dial over if its state says so.

        Args:
            waiter: the request's token, which is `DIALLING`. Afterwards it is `PARKED`, before all others of its
                origin; or `GRANTED`, if there is room for it meanwhile; or `REFUSED`, if the pool was closed.
            dial_waiter: a new one with the same key. Afterwards it is `DIALLING`.
            now: the present, in seconds.
        """
        slot = self._slot_of(waiter, WaiterState.DIALLING)
        self._check(dial_waiter, WaiterState.NEW)
        if slot._is_detached:
            raise AssertionError("a dial can be detached only once")
        actions: list[Action] = []
        origin = slot._origin
        slot._is_detached = True
        origin.inline -= 1
        origin.detached[slot] = None
        self._waiters[dial_waiter] = None
        dial_waiter.slot = slot
        dial_waiter.state = WaiterState.DIALLING
        if self.is_closed:
            waiter.slot, waiter.state = None, WaiterState.REFUSED
        elif (spare := self._take_spare(origin, now, actions)) is not None:
            self._grant(waiter, spare)
        else:
            slot._opener = waiter
            self._park(waiter, origin, now, goes_first=True, awaits=slot)
        self._settle(origin, actions)
        return actions or _NOTHING

    def opened(self, waiter: Waiter, connection: Any, now: float, capacity: int = 1) -> Sequence[Action]:
        """The connection that this waiter was asked to open is open. The waiter is the first to use it.

        Where the dial was detached the first is whoever waits, and the waiter that dialled is `DONE`: it holds nothing,
        and to release it does nothing. If nobody waits, the connection idles.

        If the pool was closed meanwhile the waiter is refused, and the caller closes the connection itself. If this
        event is interrupted, the connection is the pool's if the waiter is `GRANTED`. Otherwise the caller closes it,
        since it may be nobody's; whoever was granted it by then finds it dead, and asks again.
        """
        slot = self._slot_of(waiter, WaiterState.DIALLING)
        actions: list[Action] = []
        if self.is_closed:
            waiter.slot, waiter.state = None, WaiterState.REFUSED
            self._drop(slot, actions)
            return actions or _NOTHING
        origin = slot._origin
        self._end_dial(slot)
        slot.connection = connection
        slot.capacity = capacity
        slot.state = SlotState.OPEN
        slot._retires_at = now + self.limits.max_age * (1.0 - self.limits.age_jitter * self._random())
        origin.expect(capacity)
        if not slot._is_detached:
            self._grant(waiter, slot)
        else:
            self._dismiss(waiter)
            if capacity > 0 and (first := origin.first_in_line()) is not None:
                # Not left to `_offer`, to which the connection may be too old already, or another origin's.
                self._serve(first, slot, actions)
            else:
                slot.in_use = 1  # it idles as if somebody had given it back
                self._requests += 1
                self._give_back(slot, now)
        self._offer(slot, now, actions)
        self._queue_opener(slot, now)
        self._settle(origin, actions)
        return actions or _NOTHING

    def release(
        self, waiter: Waiter, now: float, reusable: bool, idle_seconds: float | None = None
    ) -> Sequence[Action]:
        """A request gives back whatever it holds: its place in the queue, its dial, its connection.

        Args:
            waiter: the request's token; of no more use afterwards. Giving it back twice does nothing, nor does
                giving back one that never came here.
            now: the present, in seconds.
            reusable: whether the connection can take further requests. If not, the caller has closed it already
                when it carried no other request. Of a dial: `False` if it failed, `True` if it was given up.
            idle_seconds: how long the server is willing to keep the connection, by what it said in answer to this
                request; `None` if it was not asked anything, so that its earlier word stands.
        """
        state, slot = waiter.state, waiter.slot
        if not self._dismiss(waiter):
            return _NOTHING
        actions: list[Action] = []
        if state is _GRANTED and slot is not None and slot.state is _OPEN:
            if not reusable:
                slot._is_retired = True
            if (
                self._give_back(slot, now, idle_seconds)
                and not self._waiting
                and slot.capacity > 0
                and now < slot._expires_at
                and now < slot._retires_at
                and len(self._idle) <= self.limits.max_idle
            ):
                slot._origin.spare[slot] = None  # nearly always; `_offer` would come to the same
                return _NOTHING
            if slot.in_use == 0 and not reusable:
                self._remove(slot)
            else:
                self._offer(slot, now, actions)
                if not self._waiting or (slot.in_use and not slot._is_retired):
                    return actions or _NOTHING  # one less waits, or none did: nobody waits for what is there
        elif state is WaiterState.PARKED:
            origin = self._origins[waiter.key]
            self._unpark(waiter, origin)
            self._give_up(origin, actions)
        elif state is WaiterState.DIALLING and slot is not None:
            if not reusable:
                slot._origin.expected = 1
            self._remove(slot)
            self._queue_opener(slot, now)
        if waiter.key in self._origins:
            self._settle(self._origins[waiter.key], actions)
        return actions or _NOTHING

    def replace(self, waiter: Waiter, now: float, *, fresh: bool) -> Sequence[Action]:
        """The connection that was granted turned out to be dead; the caller has closed it. Get another one.

        Unless `fresh` is set, another connection to the origin that has room will do; otherwise the request opens a
        new one in the place of the dead. While the dead connection carries other requests its place is not free:
        then the request opens one in a free place, or takes one with room after all, or queues like a new request. So
        it does where enough are being opened already.
        """
        slot = self._slot_of(waiter, WaiterState.GRANTED)
        if slot.state is not SlotState.OPEN:
            waiter.slot, waiter.state = None, WaiterState.REFUSED
            return _NOTHING
        actions: list[Action] = []
        origin = slot._origin
        slot._is_retired = True
        origin.withdraw(slot)
        self._give_back(slot, now)
        if slot.in_use == 0:
            self._remove(slot)
        self._answer(waiter, origin, now, actions, fresh=fresh)
        self._settle(origin, actions)
        return actions or _NOTHING

    def renew(self, waiter: Waiter, now: float) -> Sequence[Action]:
        """A request gives back a connection that has not served it, and that others may use or not, and asks again.

        It gets any connection with room, if need be the same; or else what a new request would get, except that it
        waits before all others of its origin. If the pool was closed meanwhile it is refused.
        """
        slot = self._slot_of(waiter, WaiterState.GRANTED)
        if slot.state is not SlotState.OPEN:
            waiter.slot, waiter.state = None, WaiterState.REFUSED
            return _NOTHING
        actions: list[Action] = []
        origin = slot._origin
        self._give_back(slot, now)
        if self._is_fit(slot, now, actions):
            origin.note_room(slot)
            if slot in origin.spare:
                origin.spare.move_to_end(slot, last=False)
        self._answer(waiter, origin, now, actions, goes_first=True)
        if slot.state is SlotState.OPEN:
            self._offer(slot, now, actions)
        self._settle(origin, actions)
        return actions or _NOTHING

    def capacity_changed(self, slot: Slot, capacity: int, now: float) -> Sequence[Action]:
        """A connection can carry more, or fewer, requests at once than before.

        With a capacity of 0 it is one that is waited for. One that will never take requests again is to `retire`.
        """
        actions: list[Action] = []
        slot.capacity = capacity
        if slot.state is SlotState.OPEN:
            if not slot._is_retired:
                slot._origin.expect(capacity)
            self._offer(slot, now, actions)
            self._settle(slot._origin, actions)
        return actions or _NOTHING

    def retire(self, slot: Slot, now: float) -> Sequence[Action]:
        """A connection takes no further requests. It is closed when it carries none: now, or at the last release."""
        actions: list[Action] = []
        if slot.state is SlotState.OPEN:
            slot._is_retired = True
            slot._reason = CloseReason.RETIRED
            self._offer(slot, now, actions)
            self._settle(slot._origin, actions)
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
            while (waiter := origin.first_in_line()) is not None:
                self._unpark(waiter, origin)
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
            Whatever may have been lost, and with it what was not: to close every connection that is to be closed, to
            give up every dial for which nobody waits, and to wake every waiter that was parked and no longer is. The
            caller sees to it that doing any of it twice does no harm.
        """
        if abandoned is not None:
            self._dismiss(abandoned)
        self._origins = {}
        self._idle, self._promised, self._queue = OrderedDict(), OrderedDict(), OrderedDict()
        self._queued = OrderedDict()
        self._dialling = self._closing = self._waiting = self._requests = 0
        held: dict[Slot | None, int] = {}
        for waiter in list(self._waiters):
            if waiter.state is WaiterState.NEW:
                del self._waiters[waiter]  # it was to take over a dial
            elif waiter.state in _HOLDING:
                held[waiter.slot] = held.get(waiter.slot, 0) + 1
        for slot in list(self._slots):
            self._rebuild_slot(slot, held.get(slot, 0))
        for waiter in sorted(self._waiters, key=lambda waiter: waiter.arrival):
            if waiter.state is WaiterState.PARKED:
                waiter.slot = None
                origin = self._origin_of(waiter.key, waiter._expected)
                self._enqueue(waiter, origin)
                self._balance(origin)
        for waiter in sorted(self._waiters, key=lambda waiter: waiter._parked_at):
            awaited = waiter._awaits
            if waiter.state is WaiterState.PARKED and not (awaited and awaited.state is SlotState.DIALLING):
                self._join_queued(waiter)
        self._serve_queue([])
        if self.is_closed:
            self.close()
        for origin in self._origins.values():
            self._give_up(origin, [])
        given_up = [slot for slot in self._slots if slot._is_given_up and slot.state is SlotState.DIALLING]
        closing = [slot for slot in self._slots if slot.state is SlotState.CLOSING]
        awake = [
            waiter for waiter in self._waiters if waiter.arrival and waiter.state is not WaiterState.PARKED
        ]
        return [
            *(Close(slot, CloseReason.BROKEN) for slot in closing),
            *(GiveUp(slot) for slot in given_up),
            *(Wake(waiter) for waiter in awake),
        ]

    def _rebuild_slot(self, slot: Slot, holders: int) -> None:
        if slot.state is SlotState.GONE or (slot.state is SlotState.DIALLING and not holders):
            slot.state = SlotState.GONE
            del self._slots[slot]
            return
        origin = slot._origin = self._origin_of(slot.key, slot._origin.expected)
        origin.places += 1
        if slot.state is SlotState.DIALLING:
            self._dialling += 1
            origin.dialling += 1
            if not slot._is_detached:
                origin.inline += 1
            elif not slot._is_given_up:
                origin.detached[slot] = None
        elif slot.state is SlotState.CLOSING:
            self._closing += 1
            origin.closing += 1
        else:
            slot.in_use = holders
            self._requests += holders
            slot._is_retired = True
            if not holders:
                self._close(slot, CloseReason.BROKEN, [])

    # --- steps of the events -------------------------------------------------------------------------------

    def _answer(
        self,
        waiter: Waiter,
        origin: _Origin,
        now: float,
        actions: list[Action],
        *,
        fresh: bool = False,
        goes_first: bool = False,
    ) -> None:
        """Give the waiter a connection with room, or have it dial, or wait."""
        slot = None if fresh and self._may_dial(origin) else self._take_spare(origin, now, actions)
        if slot is not None:
            self._grant(waiter, slot)
        elif self._may_dial(origin):
            self._dial(waiter, origin)
        else:
            self._park(waiter, origin, now, goes_first=goes_first)

    def _may_dial(self, origin: _Origin) -> bool:
        return len(self._slots) < self.limits.max_connections and self._wants(origin, 1) > 0

    def _settle(self, origin: _Origin, actions: list[Action]) -> None:
        """The end of an event: see that nobody waits for what is there."""
        if self._waiting:
            self._balance(origin)
            self._serve_queue(actions)
        if not origin.places:
            self._forget(origin)

    def _take_spare(self, origin: _Origin, now: float, actions: list[Action]) -> Slot | None:
        """The connection to this origin with room for one more request that was used last."""
        while origin.spare:
            slot = next(reversed(origin.spare))
            reason = slot._past_its_time(now)
            if reason is None:
                return slot
            del origin.spare[slot]
            if slot.in_use:
                slot._is_retired, slot._reason = True, reason
            else:
                self._close(slot, reason, actions)
        return None

    def _grant(self, waiter: Waiter, slot: Slot) -> None:
        if slot in self._idle:
            del self._idle[slot]
            slot._origin.idle -= 1
        slot.in_use = in_use = slot.in_use + 1
        slot.turns = waiter.turn = slot.turns + 1
        self._requests += 1
        if in_use >= slot.capacity:
            slot._origin.spare.pop(slot, None)
        waiter.slot = slot
        waiter.state = _GRANTED

    def _serve(self, waiter: Waiter, slot: Slot, actions: list[Action]) -> None:
        self._unpark(waiter, slot._origin)
        self._grant(waiter, slot)
        actions.append(Wake(waiter))

    def _give_back(self, slot: Slot, now: float, idle_seconds: float | None = None) -> bool:
        """Somebody uses an open connection no longer. What becomes of it comes next. Returns whether it idles now."""
        origin = slot._origin
        if slot.in_use < slot.capacity:
            origin.spare.pop(slot, None)  # it comes back on top
        slot.in_use = in_use = slot.in_use - 1
        self._requests -= 1
        if in_use or slot._is_retired:
            return False
        ours = now + self.limits.idle_seconds
        theirs = slot._expires_at if idle_seconds is None else now + idle_seconds
        slot._expires_at = ours if ours < theirs else theirs  # noqa: FURB136 - `min` takes many times as long
        self._idle[slot] = None
        origin.idle += 1
        return True

    def _leave_idle(self, slot: Slot) -> None:
        if slot in self._idle:
            del self._idle[slot]
            slot._origin.idle -= 1

    def _dismiss(self, waiter: Waiter) -> bool:
        """The waiter holds nothing any more. Returns whether it was one of ours, and might have."""
        waiter.slot = None
        waiter.state = _DONE
        if waiter not in self._waiters:
            return False
        del self._waiters[waiter]
        return True

    def _dial(self, waiter: Waiter, origin: _Origin) -> None:
        slot = Slot(origin)
        self._slots[slot] = None
        self._dialling += 1
        origin.dialling += 1
        origin.places += 1
        origin.inline += 1
        waiter.slot = slot
        waiter.state = WaiterState.DIALLING

    def _offer(self, slot: Slot, now: float, actions: list[Action]) -> None:
        """A connection has room, it may be: serve who waits for its origin; then see that it may idle."""
        origin = slot._origin
        if not self._is_fit(slot, now, actions):
            return
        while (
            self._waiting and slot.in_use < slot.capacity and (waiter := origin.first_in_line()) is not None
        ):
            if slot.in_use == 0 and self._is_behind(origin):
                break  # somebody of another origin came first, and will have this connection's place
            self._serve(waiter, slot, actions)
        origin.note_room(slot)
        if slot.in_use == 0:
            if self._waiting:
                self._settle(origin, actions)
            if slot.state is SlotState.OPEN and len(self._idle) > self.limits.max_idle:
                self._close(next(iter(self._idle)), CloseReason.SURPLUS, actions)

    def _is_fit(self, slot: Slot, now: float, actions: list[Action]) -> bool:
        """Whether an open connection may take requests. If not, it is closed when it carries none."""
        reason = slot._reason if slot._is_retired else slot._past_its_time(now)
        if reason is None:
            return True
        slot._is_retired, slot._reason = True, reason
        slot._origin.withdraw(slot)
        if slot.in_use == 0:
            self._close(slot, reason, actions)
        return False

    def _serve_queue(self, actions: list[Action]) -> None:
        """Give free places to those in the common queue, and make places free by closing idle connections."""
        while len(self._slots) < self.limits.max_connections:
            waiter = self._first_of(self._promised) or self._first_of(self._queue)
            if waiter is None:
                break
            origin = self._origins[waiter.key]
            self._dial(waiter, origin)  # first, so that its origin has no room for another
            self._unpark(waiter, origin)
            actions.append(Wake(waiter))
        if self._closing:
            self._promise()
        while self._idle and self._first_of(self._queue):
            self._close(next(iter(self._idle)), CloseReason.EVICTED, actions)

    def _is_behind(self, origin: _Origin) -> bool:
        """Whether an older waiter of another origin is in the common queue, with no place about to become free."""
        first = self._first_of(self._queue)
        return first is not None and first.key != origin.key and first.arrival < origin.arrival()

    def _first_of(self, queue: OrderedDict[Waiter, None]) -> Waiter | None:
        """The head of a common queue. Those of an origin that wants no connection any more go back to their line."""
        while queue:
            waiter = next(iter(queue))
            origin = self._origins[waiter.key]
            promised = origin.promised if queue is self._queue else 0
            if self._wants(origin) > promised:
                return waiter
            while len(origin.eligible) > promised:
                waiter = next(reversed(origin.eligible))
                self._leave_queue(waiter, origin)
                line = origin.line_of(waiter)
                line[waiter] = None
                line.move_to_end(waiter, last=False)
        return None

    def _wants(self, origin: _Origin, newcomers: int = 0) -> float:
        """How many connections the origin lacks and may open, as far as its own limit goes."""
        if origin.expected == 1 and not (origin.detached or origin.stalled):
            lacks = origin.waiting + newcomers  # mostly; `lacks` would come to the same
        else:
            lacks = origin.lacks(newcomers)
        return min(lacks, self.limits.max_connections_per_origin - origin.places)

    def _park(
        self, waiter: Waiter, origin: _Origin, now: float, *, goes_first: bool, awaits: Slot | None = None
    ) -> None:
        """Have the waiter wait. The end of the event balances its origin."""
        if not (goes_first and waiter.arrival):
            self._arrivals += 1
            waiter.arrival = self._arrivals
        waiter._goes_first = goes_first
        waiter._parked_at = now
        waiter._awaits = awaits
        self._enqueue(waiter, origin)
        if awaits is None:
            self._join_queued(waiter)
        waiter.slot = None
        waiter.state = WaiterState.PARKED

    def _enqueue(self, waiter: Waiter, origin: _Origin) -> None:
        self._waiting += 1
        origin.waiting += 1
        origin.line_of(waiter)[waiter] = None
        if waiter._goes_first:
            origin.ahead[waiter] = None

    def _join_queued(self, waiter: Waiter) -> None:
        self._queued[waiter] = None
        self._origins[waiter.key].queued += 1

    def _queue_opener(self, slot: Slot, now: float) -> None:
        """A dial has ended. If whoever has detached it waits still, it is for what everybody waits for."""
        opener, slot._opener = slot._opener, None
        if opener is not None and opener.state is WaiterState.PARKED and opener._awaits is slot:
            opener._awaits = None
            opener._parked_at = now
            self._join_queued(opener)

    def _unpark(self, waiter: Waiter, origin: _Origin) -> None:
        self._waiting -= 1
        origin.waiting -= 1
        if waiter in self._queued:
            del self._queued[waiter]
            origin.queued -= 1
        if waiter in origin.eligible:
            self._leave_queue(waiter, origin)
        else:
            del origin.line_of(waiter)[waiter]
        if waiter._goes_first:
            origin.ahead.pop(waiter, None)
        self._balance(origin)

    def _leave_queue(self, waiter: Waiter, origin: _Origin) -> None:
        del origin.eligible[waiter]
        if waiter in self._promised:
            del self._promised[waiter]
            origin.promised -= 1
        else:
            del self._queue[waiter]

    def _balance(self, origin: _Origin) -> None:
        """See that as many of an origin stand in the common queue as it wants connections."""
        wanted = self._wants(origin)
        while len(origin.eligible) < wanted:
            waiter, _ = (origin.returned or origin.blocked).popitem(last=False)
            origin.eligible[waiter] = None
            self._queue[waiter] = None
        if self._closing:
            self._promise()

    def _promise(self) -> None:
        """Mark those in the common queue for whom a place is about to become free."""
        while len(self._promised) < self._closing and (waiter := self._first_of(self._queue)):
            del self._queue[waiter]
            self._promised[waiter] = None
            self._origins[waiter.key].promised += 1

    def _expire(self, now: float, actions: list[Action]) -> None:
        while self._idle:
            slot = next(iter(self._idle))
            if now < slot._expires_at and now < slot._retires_at:
                break
            self._close(slot, slot._past_its_time(now) or CloseReason.EXPIRED, actions)
        if self._waiting:
            self._serve_queue(actions)

    def _close(self, slot: Slot, reason: CloseReason, actions: list[Action]) -> None:
        """Have a connection closed; its place stays taken until `closed`."""
        origin = slot._origin
        was_waited_for = slot in origin.stalled
        slot.state = SlotState.CLOSING
        origin.withdraw(slot)
        self._leave_idle(slot)
        self._requests -= slot.in_use
        self._closing += 1
        origin.closing += 1
        actions.append(Close(slot, reason))
        if was_waited_for:
            self._balance(origin)
        else:
            self._promise()

    def _drop(self, slot: Slot, actions: list[Action]) -> None:
        """A connection is gone: its place goes to whoever waits."""
        self._remove(slot)
        self._settle(slot._origin, actions)

    def _remove(self, slot: Slot) -> None:
        if slot.state is SlotState.DIALLING:
            self._end_dial(slot)
        elif slot.state is SlotState.CLOSING:
            self._closing -= 1
            slot._origin.closing -= 1
        slot.state = SlotState.GONE
        slot._origin.withdraw(slot)
        slot._origin.places -= 1
        del self._slots[slot]

    def _end_dial(self, slot: Slot) -> None:
        self._dialling -= 1
        slot._origin.dialling -= 1
        if slot._is_detached:
            slot._origin.detached.pop(slot, None)  # unless it was given up
        else:
            slot._origin.inline -= 1

    def _give_up(self, origin: _Origin, actions: list[Action]) -> None:
        """Have the detached dials ended, if nobody waits for them any more."""
        while origin.detached and not origin.waiting:
            slot, _ = origin.detached.popitem()
            slot._is_given_up = True
            actions.append(GiveUp(slot))

    def _origin_of(self, key: Hashable, expected: int) -> _Origin:
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = _Origin(key, expected)
        return origin

    def _forget(self, origin: _Origin) -> None:
        if not (origin.places or origin.waiting):
            self._origins.pop(origin.key, None)

    def _slot_of(self, waiter: Waiter, state: WaiterState) -> Slot:
        self._check(waiter, state)
        assert waiter.slot is not None
        return waiter.slot

    @staticmethod
    def _check(waiter: Waiter, state: WaiterState) -> None:
        if waiter.state is not state:
            raise AssertionError(f"a waiter must be {state.value} for this, not {waiter.state.value}")
