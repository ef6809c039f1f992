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

from lamina_pool._scheduler import (
    Action,
    GiveUp,
    Limits,
    Scheduler,
    Slot,
    SlotState,
    Waiter,
    WaiterState,
    Wake,
)

INF = math.inf


@dataclass(eq=False)
class Connection:
    key: str
    state: str = "dialling"
    in_use: int = 0
    capacity: int = 0
    retired: bool = False
    reason: str = "BROKEN"
    detached: int = 0  # when the dial was detached
    given_up: bool = False
    expires: float = INF
    retires: float = INF
    stacked: int = 0  # when it last came to have room, or was given back
    idled: int = 0  # when it last became idle


@dataclass(eq=False)
class Request:
    key: str
    arrival: int
    state: str = "new"
    returned: int = 0  # when it came to wait before all others of its origin
    joined: int | None = None  # when it joined the common queue
    promised: bool = False
    connection: Connection | None = None
    parked_at: float = 0.0
    opens: Connection | None = None  # the dial that it has begun, and waits for


class Oracle:
    def __init__(self, limits: Limits, fraction: float) -> None:
        self.limits = limits
        self.max_age = limits.max_age * (1 - limits.age_jitter * fraction)
        self.closed = False
        self.connections: list[Connection] = []
        self.requests: list[Request] = []
        self.log: list[tuple[Any, ...]] = []
        self.ticks = 0
        self.expected: dict[str, int] = {}

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

    def line(self, key: str) -> list[Request]:
        """Those who are not in the common queue, in the order in which they would join."""
        mine = [r for r in self.parked() if r.key == key and r.joined is None]
        return sorted(mine, key=lambda r: (not r.returned, r.returned or r.arrival))

    def next_of(self, key: str) -> Request | None:
        heads = self.heads(key)
        return heads[0] if heads else None

    def heads(self, key: str) -> list[Request]:
        mine = [r for r in self.parked() if r.key == key]
        ahead = sorted((r for r in mine if r.returned), key=lambda r: r.returned)
        queued = [r for r in self.common_queue() if r.key == key]
        rest = [r for r in self.line(key) if not r.returned]
        return ahead[:1] + queued[:1] + rest[:1]

    def stalled(self, connection: Connection) -> bool:
        return connection.state == "open" and not connection.retired and connection.capacity == 0

    def wants(self, key: str, newcomers: int = 0) -> float:
        mine = self.of(key)
        dials = [c for c in mine if c.state == "dialling" and not c.given_up]
        requests = sum(r.key == key for r in self.parked()) + newcomers + sum(not c.detached for c in dials)
        to_come = len(dials) + sum(self.stalled(c) for c in mine)
        lacking = math.ceil(requests / self.expected[key]) - to_come if key in self.expected else 0
        return min(lacking, self.limits.max_connections_per_origin - len(mine))

    def past(self, connection: Connection, now: float) -> str | None:
        if now >= connection.retires:
            return "TOO_OLD"
        return "EXPIRED" if connection.in_use == 0 and now >= connection.expires else None

    def may_dial(self, key: str) -> bool:
        return len(self.connections) < self.limits.max_connections and self.wants(key, 1) > 0

    # --- what is done

    def close_one(self, connection: Connection, reason: str) -> None:
        was_stalled = self.stalled(connection)
        connection.state = "closing"
        self.log.append(("close", connection, reason))
        if was_stalled:
            self.join()
        self.promise()

    def spare(self, key: str, now: float) -> Connection | None:
        usable = [c for c in self.of(key) if c.state == "open" and not c.retired and c.in_use < c.capacity]
        for connection in sorted(usable, key=lambda c: c.stacked, reverse=True):
            reason = self.past(connection, now)
            if reason is None:
                return connection
            if connection.in_use:
                connection.retired, connection.reason = True, reason
            else:
                self.close_one(connection, reason)
        return None

    def grant(self, request: Request, connection: Connection) -> None:
        request.state, request.joined, request.promised = "granted", None, False
        request.connection = connection
        connection.in_use += 1

    def dial(self, request: Request) -> None:
        request.state, request.joined, request.promised = "dialling", None, False
        request.connection = Connection(request.key)
        self.connections.append(request.connection)

    def park(self, request: Request, now: float, first: bool, opens: Connection | None = None) -> None:
        if not (first and request.arrival):
            request.arrival = self.tick()
        request.parked_at, request.opens = now, opens
        request.returned = self.tick() if first else 0
        request.state, request.connection = "parked", None
        self.join()

    def join(self) -> None:
        for key in "ABC":
            joined = sum(r.key == key for r in self.common_queue())
            for request in self.line(key):
                if joined < self.wants(key):
                    request.joined = self.tick()
                    joined += 1
        self.promise()

    def promise(self) -> None:
        closing = len(self.in_state("closing"))
        while sum(r.promised for r in self.parked()) < closing and (request := self.head(promised=False)):
            request.promised = True

    def head(self, *, promised: bool) -> Request | None:
        """The first with or without a promise; if its origin wants no more, they all go back to their line."""
        while queue := [r for r in self.common_queue() if r.promised == promised]:
            key = queue[0].key
            mine = [r for r in self.common_queue() if r.key == key]
            kept = 0 if promised else sum(r.promised for r in mine)
            if self.wants(key) > kept:
                return queue[0]
            for request in mine[kept:]:
                request.joined, request.promised = None, False
        return None

    def settle(self) -> None:
        self.join()
        while len(self.connections) < self.limits.max_connections:
            request = self.head(promised=True) or self.head(promised=False)
            if request is None:
                break
            self.dial(request)
            self.log.append(("wake", request))
            self.join()
        self.promise()
        while self.idle() and self.head(promised=False):
            self.close_one(self.idle()[0], "EVICTED")
        for key in [key for key in self.expected if not self.of(key)]:
            if all(r.key != key for r in self.parked()):
                del self.expected[key]

    def answer(self, request: Request, now: float, *, fresh: bool = False, first: bool = False) -> None:
        may_dial = self.may_dial(request.key)
        spare = None if fresh and may_dial else self.spare(request.key, now)
        if spare is not None:
            self.grant(request, spare)
        elif may_dial:
            self.dial(request)
        else:
            self.park(request, now, first)

    def end_dial(self, connection: Connection, now: float) -> None:
        """Whoever waits for the dial that it has begun stands in the queue from now on."""
        for request in self.parked():
            if request.opens is connection:
                request.parked_at, request.opens = now, None

    def queued(self) -> list[Request]:
        return [request for request in self.parked() if request.opens is None]

    def serve(self, request: Request, connection: Connection) -> None:
        self.grant(request, connection)
        self.log.append(("wake", request))
        self.join()

    def give_back(self, connection: Connection, now: float, hint: float | None) -> None:
        connection.in_use -= 1
        connection.stacked = self.tick()
        if connection.in_use == 0:
            self.note_idle(connection, now, hint)

    def note_idle(self, connection: Connection, now: float, hint: float | None) -> None:
        theirs = connection.expires if hint is None else now + hint
        connection.expires = min(now + self.limits.idle_seconds, theirs)
        connection.idled = self.tick()

    def offer(self, connection: Connection, now: float) -> None:
        reason = connection.reason if connection.retired else self.past(connection, now)
        if reason is not None:
            connection.retired, connection.reason = True, reason
            if connection.in_use == 0:
                self.close_one(connection, reason)
            return
        while (
            connection.in_use < connection.capacity and (request := self.next_of(connection.key)) is not None
        ):
            if connection.in_use == 0:
                head = self.head(promised=False)
                arrival = min(r.arrival for r in self.heads(connection.key))
                if head is not None and head.key != connection.key and head.arrival < arrival:
                    break
            self.serve(request, connection)
        if connection.in_use == 0:
            self.settle()
            if connection.state == "open" and len(self.idle()) > self.limits.max_idle:
                self.close_one(self.idle()[0], "SURPLUS")

    # --- events

    def acquire(self, request: Request, now: float, expected: int) -> None:
        self.requests.append(request)
        if self.closed:
            request.state = "refused"
            return
        self.expire(now)
        self.expected.setdefault(request.key, expected)
        self.answer(request, now)
        self.settle()

    def detach(self, request: Request, dialler: Request, now: float) -> None:
        dial = request.connection
        assert dial is not None
        self.requests.append(dialler)
        dial.detached = self.tick()
        dialler.state, dialler.connection = "dialling", dial
        if self.closed:
            request.state, request.connection = "refused", None
        elif (spare := self.spare(request.key, now)) is not None:
            self.grant(request, spare)
        else:
            self.park(request, now, first=True, opens=dial)
        self.settle()

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
        if capacity:
            self.expected[connection.key] = capacity
        if not connection.detached:
            self.grant(request, connection)
        else:
            request.state, request.connection = "done", None
            if capacity and (first := self.next_of(connection.key)) is not None:
                self.serve(first, connection)
            else:
                self.note_idle(connection, now, None)
        self.offer(connection, now)
        self.end_dial(connection, now)
        self.settle()

    def release(self, request: Request, now: float, reusable: bool, hint: float | None) -> None:
        state, connection = request.state, request.connection
        request.state, request.joined, request.promised, request.connection = "done", None, False, None
        if state == "parked":
            self.join()
            if all(r.key != request.key for r in self.parked()):
                dials = [c for c in self.in_state("dialling") if c.key == request.key and c.detached]
                for dial in sorted(dials, key=lambda c: c.detached, reverse=True):
                    if not dial.given_up:
                        dial.given_up = True
                        self.log.append(("give up", dial))
        elif state == "dialling" and connection is not None:
            if not reusable:
                self.expected[request.key] = 1
            self.connections.remove(connection)
            self.end_dial(connection, now)
        elif state == "granted" and connection is not None and connection.state == "open":
            connection.retired = connection.retired or not reusable
            self.give_back(connection, now, hint)
            if connection.in_use == 0 and not reusable:
                self.connections.remove(connection)
            else:
                self.offer(connection, now)
        self.settle()

    def replace(self, request: Request, now: float, fresh: bool) -> None:
        dead = request.connection
        assert dead is not None
        if dead.state != "open":
            request.state, request.connection = "refused", None
            return
        dead.in_use -= 1
        dead.retired = True
        if dead.in_use == 0:
            self.connections.remove(dead)
        self.answer(request, now, fresh=fresh)
        self.settle()

    def renew(self, request: Request, now: float) -> None:
        connection = request.connection
        assert connection is not None
        if connection.state != "open":
            request.state, request.connection = "refused", None
            return
        self.give_back(connection, now, None)
        connection.stacked *= -1
        reason = connection.reason if connection.retired else self.past(connection, now)
        if reason is not None:
            self.offer(connection, now)
        self.answer(request, now, first=True)
        if connection.state == "open":
            self.offer(connection, now)
        self.settle()

    def capacity_changed(self, connection: Connection, capacity: int, now: float) -> None:
        had_room = connection.in_use < connection.capacity
        connection.capacity = capacity
        if connection.state == "open":
            if not had_room:
                connection.stacked = self.tick()
            if capacity and not connection.retired:
                self.expected[connection.key] = capacity
            self.offer(connection, now)
            self.settle()

    def retire(self, connection: Connection, now: float) -> None:
        if connection.state == "open":
            connection.retired, connection.reason = True, "RETIRED"
            self.offer(connection, now)
            self.settle()

    def closed_one(self, connection: Connection) -> None:
        self.connections.remove(connection)
        self.settle()

    def expire(self, now: float) -> None:
        for connection in self.idle():
            reason = self.past(connection, now)
            if reason is None:
                break
            self.close_one(connection, reason)
        self.settle()

    def close(self) -> None:
        self.closed = True
        for connection in self.in_state("open"):
            self.close_one(connection, "POOL_CLOSED")
        for request in self.parked():
            request.state, request.joined, request.promised = "refused", None, False
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

    def take_over(self, actions: Sequence[Action], *asking: Waiter, ordered: bool = True) -> None:
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
            else ("give up", self.slots[a.slot])
            if isinstance(a, GiveUp)
            else ("close", self.slots[a.slot], a.reason.name)
            for a in actions
        ]
        assert done == log if ordered else set(done) == set(log)
        assert len(done) == len(log)

        woken = [a.waiter for a in actions if isinstance(a, Wake)]
        changed = [w for w, _ in self.pairs if w.state is not self.before.get(w, WaiterState.NEW)]
        assert len(set(woken)) == len(woken)
        assert set(woken) - set(asking) == set(changed) - set(asking)
        assert all(self.before[w] is WaiterState.PARKED for w in woken if w not in asking)
        for waiter in changed:
            slot = waiter.slot
            if waiter.state is WaiterState.GRANTED and slot is not None:
                was_dialling = slot in self.dialled_before
                assert slot.state is SlotState.OPEN
                assert was_dialling or slot.in_use <= slot.capacity
                assert was_dialling or not slot._is_retired
                assert was_dialling or self.now < slot._retires_at
        for action in actions:
            if not isinstance(action, Wake):
                given_up = isinstance(action, GiveUp)
                assert action.slot.state is (SlotState.DIALLING if given_up else SlotState.CLOSING)

    def note(self) -> None:
        self.before = {waiter: waiter.state for waiter, _ in self.pairs}
        self.dialled_before = {w.slot for w, _ in self.pairs if w.state is WaiterState.DIALLING}

    @rule(
        keys=st.text("ABC", min_size=1, max_size=4) | st.sampled_from(["AAAAAA", "BBBB"]),
        expected=st.sampled_from([1, 1, 2, 3, 100]),
        capacity=st.sampled_from([None, None, 1, 2, 3]),
    )
    def acquire(self, keys: str, expected: int, capacity: int | None) -> None:
        for key in keys:
            self.note()
            waiter, request = Waiter(key), Request(key, 0)
            self.pairs.append((waiter, request))
            self.oracle.acquire(request, self.now, expected)
            self.take_over(self.scheduler.acquire(waiter, self.now, expected), waiter)
            if capacity is not None and waiter.state is WaiterState.DIALLING:
                self.open_one(waiter, request, capacity)

    def open_one(self, waiter: Waiter, request: Request, capacity: int) -> None:
        self.note()
        self.oracle.opened(request, self.now, capacity)
        self.take_over(self.scheduler.opened(waiter, object(), self.now, capacity), waiter)

    @precondition(lambda self: self.dialling_inline())
    @rule(which=any_of_them)
    def detach(self, which: int) -> None:
        self.note()
        pairs = self.dialling_inline()
        waiter, request = pairs[which % len(pairs)]
        dial_waiter, dialler = Waiter(waiter.key), Request(request.key, 0)
        self.pairs.append((dial_waiter, dialler))
        self.oracle.detach(request, dialler, self.now)
        self.take_over(self.scheduler.detach(waiter, dial_waiter, self.now), waiter, dial_waiter)
        assert dial_waiter.state is WaiterState.DIALLING

    def dialling_inline(self) -> list[tuple[Waiter, Request]]:
        dialling = self.in_state(WaiterState.DIALLING)
        return [pair for pair in dialling if pair[1].connection and not pair[1].connection.detached]

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
            self.take_over(actions, waiter)

    @rule(state=st.sampled_from(list(WaiterState)), which=any_of_them, failed=st.booleans())
    def give_up(self, state: WaiterState, which: int, failed: bool) -> None:
        self.release_one(state, which, state is WaiterState.DIALLING and not failed, INF)

    @precondition(lambda self: self.in_state(WaiterState.GRANTED))
    @rule(
        these=st.lists(any_of_them, min_size=1, max_size=4),
        reusable=st.sampled_from([True, True, False]),
        hint=st.sampled_from([INF, INF, 3, 0, None]),
    )
    def give_back(self, these: list[int], reusable: bool, hint: float | None) -> None:
        for which in these:
            self.release_one(WaiterState.GRANTED, which, reusable, hint)

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
        self.take_over(self.scheduler.replace(waiter, self.now, fresh=fresh), waiter)

    @precondition(lambda self: self.in_state(WaiterState.GRANTED))
    @rule(which=any_of_them)
    def renew(self, which: int) -> None:
        self.note()
        waiter, request = self.pick(WaiterState.GRANTED, which)
        self.oracle.renew(request, self.now)
        self.take_over(self.scheduler.renew(waiter, self.now), waiter)

    def connected(self) -> list[Slot]:
        return [slot for slot in self.scheduler.slots() if slot.state is not SlotState.DIALLING]

    @precondition(lambda self: self.connected())
    @rule(which=any_of_them)
    def retire(self, which: int) -> None:
        self.note()
        slot = self.connected()[which % len(self.connected())]
        self.oracle.retire(self.slots[slot], self.now)
        self.take_over(self.scheduler.retire(slot, self.now))

    @precondition(lambda self: self.connected())
    @rule(which=any_of_them, capacities=st.lists(st.integers(0, 3), min_size=1, max_size=4))
    def capacity_changed(self, which: int, capacities: list[int]) -> None:
        slot = self.connected()[which % len(self.connected())]
        for capacity in capacities:
            self.note()
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
        slots, limits = self.scheduler.slots(), self.limits
        wanted = 0
        for key in "ABC":
            mine = [slot for slot in slots if slot.key == key]
            parked = sum(w.state is WaiterState.PARKED and w.key == key for w, _ in self.pairs)
            if not parked:
                continue
            fit = [
                slot
                for slot in mine
                if slot.state is SlotState.OPEN
                and not slot._is_retired
                and slot._past_its_time(self.now) is None
            ]
            # Nobody waits beside a connection with room.
            assert all(slot.in_use >= slot.capacity for slot in fit)
            # Whoever waits does so for a dial, for a server that allows nothing now, or because of a limit.
            dials = [slot for slot in mine if self.is_hoped_for(slot)]
            stalled = [slot for slot in mine if self.oracle.stalled(self.slots[slot])]
            is_at_its_limit = len(mine) == limits.max_connections_per_origin
            assert dials or stalled or is_at_its_limit or len(slots) == limits.max_connections
            # And those to come are enough for all.
            inline = sum(not self.slots[slot].detached for slot in dials)
            room = (len(dials) + len(stalled)) * self.oracle.expected[key]
            more = math.ceil(max(0, parked + inline - room) / self.oracle.expected[key])
            wanted += int(min(more, limits.max_connections_per_origin - len(mine)))
        assert not wanted or len(slots) == limits.max_connections
        assert not self.scheduler.idle or wanted <= sum(slot.state is SlotState.CLOSING for slot in slots)

    def is_hoped_for(self, slot: Slot) -> bool:
        return slot.state is SlotState.DIALLING and not self.slots[slot].given_up

    @invariant()
    def no_dial_is_left_to_nobody(self) -> None:
        """A detached dial is somebody's: who dials is told to end it when the last who waited goes."""
        for waiter, request in self.in_state(WaiterState.DIALLING):
            assert waiter.slot in self.slots
            assert request.connection is not None
            key, origin = request.key, self.scheduler._origins[request.key]
            assert (waiter.slot in origin.detached) == (
                bool(request.connection.detached) and not request.connection.given_up
            )
            assert origin.expected == self.oracle.expected[key]

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
        assert ours.requests == sum(c.in_use for c in plain.in_state("open"))

    @invariant()
    def what_is_told_of_each_origin_agrees(self) -> None:
        ours, plain = self.scheduler, self.oracle
        queued = plain.queued()
        assert ours.queued == len(queued)
        assert ours.oldest_wait(self.now) == max((self.now - r.parked_at for r in queued), default=0.0)
        told = dict(ours.all_counts())
        for key in "ABC":
            carrying = [c.in_use > 0 for c in plain.in_state("open") if c.key == key]
            expected = (
                carrying.count(True),
                carrying.count(False),
                sum(c.key == key for c in plain.in_state("dialling")),
                sum(r.key == key for r in queued),
            )
            assert ours.counts(key) == expected
            assert told.pop(key, (0, 0, 0, 0)) == expected
        assert told == {}

    @invariant()
    def turns_are_counted(self) -> None:
        for slot in self.scheduler.slots():
            turns = [w.turn for w, _ in self.pairs if w.slot is slot and w.state is WaiterState.GRANTED]
            assert len(set(turns)) == len(turns)
            assert all(1 <= turn <= slot.turns for turn in turns)

    @invariant()
    def nothing_is_remembered_of_origins_without_business(self) -> None:
        busy = {slot.key for slot in self.scheduler.slots()}
        busy |= {w.key for w, _ in self.pairs if w.state in {WaiterState.PARKED, WaiterState.REFUSED}}
        assert set(self.scheduler._origins) <= busy

    def teardown(self) -> None:
        """Whatever happened: everybody is served in the end, and when all is given back, nothing is left."""
        if hasattr(self, "pairs"):
            self.serve_all()
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

    def serve_all(self) -> None:
        """Everything that has begun comes to an end, and nobody gives up."""
        for _ in range(3 * len(self.pairs) + 3):
            self.check_once()
            if not any(w.state in {WaiterState.PARKED, WaiterState.DIALLING} for w, _ in self.pairs):
                return
        raise AssertionError("somebody waits for ever")

    def check_once(self) -> None:
        for slot in self.scheduler.slots():
            if slot.state is SlotState.CLOSING:
                self.scheduler.closed(slot)
            elif slot.state is SlotState.OPEN and slot.capacity == 0:
                self.scheduler.capacity_changed(slot, 1, self.now)
        for waiter, _ in self.in_state(WaiterState.DIALLING):
            self.scheduler.opened(waiter, object(), self.now)
        for waiter, _ in self.in_state(WaiterState.GRANTED):
            self.scheduler.release(waiter, self.now, reusable=True)


# Some seconds on an idle machine, and most of a minute on one that has much else to do.
TestSchedulerAgainstItsOracle = pytest.mark.timeout(600)(SchedulerMachine.TestCase)
