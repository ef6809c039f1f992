"""The scheduler does what a plain oracle does, whatever happens in whatever order.

The oracle states the rules with lists that it scans from one end to the other at every event, and keeps nothing that
it could compute. The machine feeds the same events to both, and compares: what became of every request, which
connection it holds, who is woken, what is closed and why, and all counts. Besides, it checks what must hold whatever
the rules are.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lamina_pool._scheduler import Action, Limits, Scheduler, SlotState, Waiter, WaiterState, Wake

INF = math.inf


@dataclass(eq=False)
class Connection:
    key: str
    state: str = "dialling"
    in_use: int = 0
    capacity: int = 0
    retired: bool = False
    expires: float = INF
    retires: float = INF
    stacked: int = 0  # when it last came to have room, or was given back
    idled: int = 0  # when it last became idle


@dataclass(eq=False)
class Request:
    key: str
    arrival: int
    state: str = "new"
    joined: int | None = None  # when it joined the common queue
    connection: Connection | None = None


class Oracle:
    def __init__(self, limits: Limits, fraction: float) -> None:
        self.limits = limits
        self.max_age = limits.max_age * (1 - limits.age_jitter * fraction)
        self.closed = False
        self.connections: list[Connection] = []
        self.requests: list[Request] = []
        self.log: list[tuple[Any, ...]] = []
        self.ticks = 0

    def tick(self) -> int:
        self.ticks += 1
        return self.ticks

    # --- what is, by scanning

    def of(self, key: str) -> list[Connection]:
        return [c for c in self.connections if c.key == key]

    def in_state(self, state: str) -> list[Connection]:
        return [c for c in self.connections if c.state == state]

    def idle(self) -> list[Connection]:
        return sorted((c for c in self.in_state("open") if c.in_use == 0), key=lambda c: c.idled)

    def parked(self) -> list[Request]:
        return [r for r in self.requests if r.state == "parked"]

    def common_queue(self) -> list[Request]:
        return sorted((r for r in self.parked() if r.joined is not None), key=lambda r: r.joined or 0)

    def without_a_place(self) -> list[Request]:
        return self.common_queue()[len(self.in_state("closing")) :]

    def next_of(self, key: str) -> Request | None:
        mine = [r for r in self.common_queue() if r.key == key]
        mine += sorted(
            (r for r in self.parked() if r.key == key and r.joined is None), key=lambda r: r.arrival
        )
        return mine[0] if mine else None

    def past(self, connection: Connection, now: float) -> str | None:
        if now >= connection.retires:
            return "TOO_OLD"
        return "EXPIRED" if connection.in_use == 0 and now >= connection.expires else None

    def has_room(self, key: str) -> bool:
        return (
            len(self.connections) < self.limits.max_connections
            and len(self.of(key)) < self.limits.max_connections_per_origin
        )

    # --- what is done

    def close_one(self, connection: Connection, reason: str) -> None:
        connection.state = "closing"
        self.log.append(("close", connection, reason))

    def spare(self, key: str, now: float) -> Connection | None:
        usable = [c for c in self.of(key) if c.state == "open" and not c.retired and c.in_use < c.capacity]
        for connection in sorted(usable, key=lambda c: c.stacked, reverse=True):
            reason = self.past(connection, now)
            if reason is None:
                return connection
            if connection.in_use:
                connection.retired = True
            else:
                self.close_one(connection, reason)
        return None

    def grant(self, request: Request, connection: Connection) -> None:
        request.state, request.joined, request.connection = "granted", None, connection
        connection.in_use += 1

    def dial(self, request: Request) -> None:
        request.state, request.joined, request.connection = "dialling", None, Connection(request.key)
        self.connections.append(request.connection)

    def park(self, request: Request) -> None:
        request.state, request.arrival, request.connection = "parked", self.tick(), None

    def join(self) -> None:
        for key in "ABC":
            blocked = [r for r in self.parked() if r.key == key and r.joined is None]
            joined = [r for r in self.parked() if r.key == key and r.joined is not None]
            for request in sorted(blocked, key=lambda r: r.arrival):
                if len(joined) < self.limits.max_connections_per_origin - len(self.of(key)):
                    request.joined = self.tick()
                    joined.append(request)

    def settle(self, asking: Request | None = None) -> None:
        self.join()
        while self.common_queue() and len(self.connections) < self.limits.max_connections:
            request = self.common_queue()[0]
            self.dial(request)
            if request is not asking:
                self.log.append(("wake", request))
            self.join()
        while self.idle() and self.without_a_place():
            self.close_one(self.idle()[0], "EVICTED")

    def offer(self, connection: Connection, now: float) -> None:
        reason = "BROKEN" if connection.retired else self.past(connection, now)
        if reason is not None:
            connection.retired = True
            if connection.in_use == 0:
                self.close_one(connection, reason)
            return
        while (
            connection.in_use < connection.capacity and (request := self.next_of(connection.key)) is not None
        ):
            others = self.without_a_place()
            if connection.in_use == 0 and others and others[0].arrival < request.arrival:
                break
            self.grant(request, connection)
            self.log.append(("wake", request))
            self.join()
        self.settle()
        if connection in self.idle() and len(self.idle()) > self.limits.max_idle:
            self.close_one(self.idle()[0], "SURPLUS")

    # --- events

    def acquire(self, request: Request, now: float) -> None:
        self.requests.append(request)
        if self.closed:
            request.state = "refused"
            return
        self.expire(now)
        connection = self.spare(request.key, now)
        if connection is not None:
            self.grant(request, connection)
        else:
            self.park(request)
            self.settle(asking=request)

    def opened(self, request: Request, now: float, capacity: int) -> None:
        connection = request.connection
        assert connection is not None
        if self.closed:
            self.connections.remove(connection)
            request.state, request.connection = "refused", None
            return
        connection.state, connection.capacity = "open", capacity
        connection.retires = now + self.max_age
        connection.stacked = self.tick()
        self.grant(request, connection)
        self.offer(connection, now)

    def release(self, request: Request, now: float, reusable: bool, hint: float | None) -> None:
        state, connection = request.state, request.connection
        request.state, request.joined, request.connection = "done", None, None
        if state == "dialling" and connection is not None:
            self.connections.remove(connection)
        elif state == "granted" and connection is not None and connection.state == "open":
            connection.in_use -= 1
            connection.stacked = self.tick()
            connection.retired = connection.retired or not reusable
            if connection.in_use == 0 and not reusable:
                self.connections.remove(connection)
            else:
                if connection.in_use == 0:
                    theirs = connection.expires if hint is None else now + hint
                    connection.expires = min(now + self.limits.idle_seconds, theirs)
                    connection.idled = self.tick()
                self.offer(connection, now)
                return
        self.settle()

    def replace(self, request: Request, now: float, fresh: bool) -> None:
        dead = request.connection
        assert dead is not None
        if dead.state != "open":
            request.state, request.connection = "refused", None
            return
        dead.in_use -= 1
        dead.retired = True
        can_dial = dead.in_use == 0 or self.has_room(request.key)
        spare = None if fresh and can_dial else self.spare(request.key, now)
        if spare is not None:
            self.grant(request, spare)
            if dead.in_use == 0:
                self.connections.remove(dead)
                self.settle()
        elif dead.in_use == 0:
            self.connections.remove(dead)
            self.dial(request)
        else:
            self.park(request)
            self.settle(asking=request)

    def capacity_changed(self, connection: Connection, capacity: int, now: float) -> None:
        had_room = connection.in_use < connection.capacity
        connection.capacity = capacity
        if connection.state == "open":
            if not had_room:
                connection.stacked = self.tick()
            self.offer(connection, now)

    def closed_one(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self.settle()

    def expire(self, now: float) -> None:
        for connection in self.idle():
            reason = self.past(connection, now)
            if reason is None:
                break
            self.close_one(connection, reason)

    def close(self) -> None:
        self.closed = True
        for connection in self.in_state("open"):
            self.close_one(connection, "POOL_CLOSED")
        for request in self.parked():
            request.state, request.joined = "refused", None
            self.log.append(("wake", request))


# The value that switches a limit off comes more often: each of the others hides something behind it.
every_limits = st.builds(
    Limits,
    max_connections=st.sampled_from([1, 2, 3, 4, INF]),
    max_connections_per_origin=st.sampled_from([INF, INF, 1, 2, 3]),
    max_idle=st.sampled_from([INF, INF, INF, 2, 1, 0]),
    idle_seconds=st.sampled_from([INF, INF, INF, 5, 2, 0]),
    max_age=st.sampled_from([INF, INF, INF, 8, 4, 0]),
    age_jitter=st.sampled_from([0.0, 0.5, 1.0]),
)
any_of_them = st.integers(0, 20)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(limits=every_limits, fraction=st.sampled_from([0.0, 0.5, 0.75]))
    def start(self, limits: Limits, fraction: float) -> None:
        self.limits = limits
        self.now = 100.0
        self.scheduler = Scheduler(limits, lambda: fraction)
        self.oracle = Oracle(limits, fraction)
        self.pairs: list[tuple[Waiter, Request]] = []
        self.slots: dict[Any, Connection] = {}

    def in_state(self, state: WaiterState) -> list[tuple[Waiter, Request]]:
        return [pair for pair in self.pairs if pair[0].state is state]

    def pick(self, state: WaiterState, which: int) -> tuple[Waiter, Request]:
        pairs = self.in_state(state)
        return pairs[which % len(pairs)]

    def take_over(
        self, actions: Sequence[Action], asking: Waiter | None = None, *, ordered: bool = True
    ) -> None:
        """Compare what both did in this event."""
        log, self.oracle.log = self.oracle.log, []
        requests = dict(self.pairs)
        for waiter, request in self.pairs:
            assert waiter.state.value == request.state
            assert (waiter.slot is None) == (request.connection is None)
            if waiter.slot is not None and request.connection is not None:
                assert self.slots.setdefault(waiter.slot, request.connection) is request.connection
        done = [
            ("wake", requests[a.waiter])
            if isinstance(a, Wake)
            else ("close", self.slots[a.slot], a.reason.name)
            for a in actions
        ]
        assert done == log if ordered else set(done) == set(log)
        assert len(done) == len(log)

        woken = [a.waiter for a in actions if isinstance(a, Wake)]
        changed = [w for w, _ in self.pairs if w.state is not self.before.get(w, WaiterState.NEW)]
        assert len(set(woken)) == len(woken)
        assert set(woken) == set(changed) - {asking}
        assert all(self.before[w] is WaiterState.PARKED for w in woken)
        for waiter in changed:
            slot = waiter.slot
            if waiter.state is WaiterState.GRANTED and slot is not None:
                was_dialling = self.before.get(waiter) is WaiterState.DIALLING
                assert slot.state is SlotState.OPEN
                assert was_dialling or slot.in_use <= slot.capacity
                assert was_dialling or not slot._is_retired
                assert was_dialling or self.now < slot._retires_at
        for action in actions:
            assert isinstance(action, Wake) or action.slot.state is SlotState.CLOSING

    def note(self) -> None:
        self.before = {waiter: waiter.state for waiter, _ in self.pairs}

    @rule(keys=st.text("ABC", min_size=1, max_size=4), capacity=st.sampled_from([None, 1, 1, 2, 3]))
    def acquire(self, keys: str, capacity: int | None) -> None:
        for key in keys:
            self.note()
            waiter, request = Waiter(key), Request(key, 0)
            self.pairs.append((waiter, request))
            self.oracle.acquire(request, self.now)
            self.take_over(self.scheduler.acquire(waiter, self.now), asking=waiter)
            if capacity is not None and waiter.state is WaiterState.DIALLING:
                self.open_one(waiter, request, capacity)

    def open_one(self, waiter: Waiter, request: Request, capacity: int) -> None:
        self.note()
        self.oracle.opened(request, self.now, capacity)
        self.take_over(self.scheduler.opened(waiter, object(), self.now, capacity), asking=waiter)

    @precondition(lambda self: self.in_state(WaiterState.DIALLING))
    @rule(which=any_of_them, capacity=st.sampled_from([1, 1, 2, 3, 0]))
    def opened(self, which: int, capacity: int) -> None:
        self.open_one(*self.pick(WaiterState.DIALLING, which), capacity)

    def release_one(self, state: WaiterState, which: int, reusable: bool, hint: float | None) -> None:
        if self.in_state(state):
            self.note()
            waiter, request = self.pick(state, which)
            self.oracle.release(request, self.now, reusable, hint)
            actions = self.scheduler.release(waiter, self.now, reusable=reusable, idle_seconds=hint)
            self.take_over(actions, asking=waiter)

    @rule(state=st.sampled_from(list(WaiterState)), which=any_of_them)
    def give_up(self, state: WaiterState, which: int) -> None:
        self.release_one(state, which, False, INF)

    @precondition(lambda self: self.in_state(WaiterState.GRANTED))
    @rule(these=st.lists(any_of_them, min_size=1, max_size=4), hint=st.sampled_from([INF, INF, 3, 0, None]))
    def give_back(self, these: list[int], hint: float | None) -> None:
        for which in these:
            self.release_one(WaiterState.GRANTED, which, True, hint)

    @rule(hint=st.sampled_from([INF, 3, None]))
    def nobody_wants_anything_any_more(self, hint: float | None) -> None:
        """Leads to pools with idle connections; without it there are ever more requests in the queue."""
        for _ in self.in_state(WaiterState.PARKED):
            self.release_one(WaiterState.PARKED, -1, True, INF)
        for waiter, request in self.in_state(WaiterState.DIALLING):
            self.open_one(waiter, request, 1)
        for _ in self.in_state(WaiterState.GRANTED):
            self.release_one(WaiterState.GRANTED, 0, True, hint)

    @precondition(lambda self: self.in_state(WaiterState.GRANTED))
    @rule(which=any_of_them, fresh=st.booleans())
    def replace(self, which: int, fresh: bool) -> None:
        self.note()
        waiter, request = self.pick(WaiterState.GRANTED, which)
        self.oracle.replace(request, self.now, fresh)
        self.take_over(self.scheduler.replace(waiter, self.now, fresh=fresh), asking=waiter)

    @precondition(lambda self: self.slots)
    @rule(which=any_of_them, capacity=st.integers(0, 3))
    def capacity_changed(self, which: int, capacity: int) -> None:
        known = [slot for slot in self.scheduler.slots() if slot.state is not SlotState.DIALLING]
        if known:
            self.note()
            slot = known[which % len(known)]
            self.oracle.capacity_changed(self.slots[slot], capacity, self.now)
            self.take_over(self.scheduler.capacity_changed(slot, capacity, self.now))

    @precondition(lambda self: any(slot.state is SlotState.CLOSING for slot in self.slots))
    @rule(which=any_of_them, again=st.booleans())
    def closed(self, which: int, again: bool) -> None:
        self.note()
        closing = [slot for slot in self.slots if slot.state is SlotState.CLOSING]
        slot = closing[which % len(closing)]
        self.oracle.closed_one(self.slots[slot])
        self.take_over(self.scheduler.closed(slot))
        if again:
            assert not self.scheduler.closed(slot)

    @rule(seconds=st.integers(1, 3), expire=st.booleans())
    def time_passes(self, seconds: int, expire: bool) -> None:
        self.now += seconds
        if expire:
            self.note()
            self.oracle.expire(self.now)
            self.take_over(self.scheduler.expire(self.now))

    @precondition(lambda self: len(self.pairs) > 30)
    @rule(really=st.sampled_from([False] * 19 + [True]))
    def close(self, really: bool) -> None:
        if really:
            self.note()
            self.oracle.close()
            self.take_over(self.scheduler.close(), ordered=False)

    @invariant()
    def limits_hold(self) -> None:
        slots = self.scheduler.slots()
        assert len(slots) <= self.limits.max_connections
        for key in "ABC":
            assert sum(slot.key == key for slot in slots) <= self.limits.max_connections_per_origin
        assert self.scheduler.idle <= self.limits.max_idle

    @invariant()
    def every_hold_is_counted_once(self) -> None:
        for slot in self.scheduler.slots():
            holders = [w for w, _ in self.pairs if w.slot is slot]
            if slot.state is SlotState.OPEN:
                assert slot.in_use == len(holders)
                assert all(w.state is WaiterState.GRANTED for w in holders)
            if slot.state is SlotState.DIALLING:
                assert [w.state for w in holders] == [WaiterState.DIALLING]

    @invariant()
    def no_wake_up_is_lost(self) -> None:
        slots = self.scheduler.slots()
        eligible = 0
        for key in "ABC":
            mine = [slot for slot in slots if slot.key == key]
            parked = [w for w, _ in self.pairs if w.state is WaiterState.PARKED and w.key == key]
            usable = [
                slot
                for slot in mine
                if slot.state is SlotState.OPEN
                and not slot._is_retired
                and slot.in_use < slot.capacity
                and slot._past_its_time(self.now) is None
            ]
            assert not (parked and usable)
            eligible += int(min(len(parked), self.limits.max_connections_per_origin - len(mine)))
        assert not eligible or len(slots) == self.limits.max_connections
        assert not self.scheduler.idle or eligible <= sum(slot.state is SlotState.CLOSING for slot in slots)

    @invariant()
    def counts_agree(self) -> None:
        ours, plain = self.scheduler, self.oracle
        assert {self.slots[slot] for slot in ours.slots() if slot in self.slots} == set(plain.connections)
        assert (ours.total, ours.idle, ours.dialling, ours.waiting) == (
            len(plain.connections),
            len(plain.idle()),
            len(plain.in_state("dialling")),
            len(plain.parked()),
        )
        assert ours.active == len([c for c in plain.in_state("open") if c.in_use])

    @invariant()
    def nothing_is_remembered_of_origins_without_business(self) -> None:
        busy = {slot.key for slot in self.scheduler.slots()}
        busy |= {w.key for w, _ in self.pairs if w.state in {WaiterState.PARKED, WaiterState.REFUSED}}
        assert set(self.scheduler._origins) <= busy

    def teardown(self) -> None:
        """Whatever happened: when all is given back, nothing is left."""
        for waiter, _ in getattr(self, "pairs", ()):
            self.scheduler.release(waiter, self.now, reusable=True)
        for waiter, _ in getattr(self, "pairs", ()):
            assert waiter.state is WaiterState.DONE
        if hasattr(self, "pairs"):
            self.scheduler.close()
            for slot in self.scheduler.slots():
                self.scheduler.closed(slot)
            assert self.scheduler.slots() == []
            assert self.scheduler._origins == {}


# Some seconds on an idle machine, and most of a minute on one that has much else to do.
TestSchedulerAgainstItsOracle = pytest.mark.timeout(600)(SchedulerMachine.TestCase)
