"""KeyboardInterrupt strikes anywhere: after `rebuild` no place, no waiter and no connection is lost.

A script of events runs up to some event, which is then interrupted before its n-th bytecode. What follows has to look
as if the request that the event was about had never been there, and the rest of the script has to run to a good end.
So it is for every event that takes a way through the code that no event before it took, and for every n in the long
profile, for every sixteenth otherwise: the same code is on many ways.
"""

import contextlib
import math
import os
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, product
from types import FrameType
from typing import Any

import pytest

from lamina_pool import _scheduler
from lamina_pool._scheduler import (
    Action,
    Close,
    CloseReason,
    GiveUp,
    Limits,
    Scheduler,
    Slot,
    SlotState,
    Waiter,
    WaiterState,
    Wake,
    _Origin,
)

EVENTS = 40
STRIDE = 1 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 16
LIMITS = (
    Limits(max_connections=3, max_connections_per_origin=2, max_idle=1, idle_seconds=3, max_age=20),
    Limits(max_connections=2, idle_seconds=5),
    Limits(max_connections_per_origin=1, max_idle=0),
)


class Interrupt(BaseException):
    pass


@contextlib.contextmanager
def tracing(trace: Callable[[FrameType, str, Any], Any]) -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def interrupted(event: Callable[[], object], at: int) -> bool:
    """Run the event; raise `Interrupt` in it before bytecode number `at`. Return whether it had so many.

    Lines count as well: newer interpreters do not report the bytecodes of a function's first run.
    """
    left = at

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        nonlocal left
        if frame.f_code.co_filename != _scheduler.__file__:
            return None
        frame.f_trace_opcodes = True
        if what in {"line", "opcode"}:
            left -= 1
            if left < 0:
                raise Interrupt
        return trace

    try:
        with tracing(trace):
            event()
    except Interrupt:
        return True
    return False


def path_of(event: Callable[[], object]) -> tuple[int, ...]:
    """Return the lines that the event runs through."""
    lines: list[int] = []

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        if frame.f_code.co_filename != _scheduler.__file__:
            return None
        if what == "line":
            lines.append(frame.f_lineno)
        return trace

    with tracing(trace):
        event()
    return tuple(lines)


class Shell:
    """Drives a scheduler by a random script, and remembers what it was told and what it did."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.scheduler = Scheduler(LIMITS[seed % len(LIMITS)], random.Random(seed).random)
        self.now = 0.0
        self.waiters: list[Waiter] = []
        self.told: set[Waiter] = set()  # those who know what became of them
        self.to_close: dict[Slot, None] = {}
        self.to_end: dict[Slot, None] = {}  # dials
        self.dial_waiter = Waiter("a")  # who is to take a dial over in this event

    def carry_out(self, actions: object) -> None:
        assert isinstance(actions, Sequence)
        for action in actions:
            if isinstance(action, Wake):
                self.told.add(action.waiter)
            elif isinstance(action, GiveUp):
                self.to_end[action.slot] = None
            else:
                self.to_close[action.slot] = None

    def pick(self, *states: WaiterState) -> Waiter | None:
        waiters = [w for w in self.waiters if w in self.told and w.state in states]
        return self.random.choice(waiters) if waiters else None

    def next_event(self, number: int) -> tuple[Callable[[], Sequence[Action]], Waiter | None]:
        """Return an event, and the request that it is about."""
        s, now = self.scheduler, self.now
        if number == EVENTS - 6:
            return s.close, None
        kind = self.random.choice("aaaaaaooooorrrrrbpqcctxxkkddddeenng")
        granted = self.pick(WaiterState.GRANTED)
        dialling = self.pick(WaiterState.DIALLING)
        parked = [w for w in self.waiters if w.state is WaiterState.PARKED]
        if kind == "o" and dialling:
            capacity = self.random.choice([1, 1, 2, 3, 0])
            return lambda: s.opened(dialling, object(), now, capacity), dialling
        if kind == "b" and dialling:
            was_given_up = self.random.random() < 0.5
            return lambda: s.release(dialling, now, reusable=was_given_up), dialling
        if kind == "d" and dialling and dialling.slot and not dialling.slot._is_detached:
            dial_waiter = self.dial_waiter = Waiter(dialling.key)
            return lambda: s.detach(dialling, dial_waiter, now), dialling
        if kind == "e" and self.to_end:
            (holder,) = [w for w in self.waiters if w.slot is next(iter(self.to_end))]
            return lambda: s.release(holder, now, reusable=True), holder
        if kind == "n" and granted:
            return lambda: s.renew(granted, now), granted
        if kind == "g" and granted and granted.slot:
            retired = granted.slot
            return lambda: s.retire(retired, now), None
        if kind in "rp" and granted:
            reusable = kind == "r"
            return lambda: s.release(granted, now, reusable=reusable), granted
        if kind == "q" and granted:
            fresh = self.random.random() < 0.5
            return lambda: s.replace(granted, now, fresh=fresh), granted
        if kind == "x" and parked:
            waiter = self.random.choice(parked)
            return lambda: s.release(waiter, now, reusable=False), waiter
        if kind == "c" and self.to_close:
            slot = next(iter(self.to_close))
            return lambda: s.closed(slot), None
        if kind == "k" and granted and granted.slot is not None:
            slot, capacity = granted.slot, self.random.choice([0, 1, 2, 3])
            return lambda: s.capacity_changed(slot, capacity, now), None
        if kind == "t":
            self.now = now = now + self.random.choice([0, 1, 3])
            return lambda: s.expire(now), None
        waiter, expected = Waiter(self.random.choice("aab")), self.random.choice([1, 1, 2, 3, 100])
        self.waiters.append(waiter)
        return lambda: s.acquire(waiter, now, expected), waiter

    def run(self, first: int, last: int, *, checked: bool = True) -> None:
        for number in range(first, last):
            event, waiter = self.next_event(number)
            self.carry_out(event())
            self.after(waiter)
            if checked:
                self.check()

    def after(self, waiter: Waiter | None) -> None:
        if waiter is not None:
            if waiter.state is WaiterState.PARKED:
                self.told.discard(waiter)
            else:
                self.told.add(waiter)
        if self.dial_waiter.state is not WaiterState.NEW and self.dial_waiter not in self.waiters:
            self.waiters.append(self.dial_waiter)
            self.told.add(self.dial_waiter)
        self.to_end = {slot: None for slot in self.to_end if slot.state is SlotState.DIALLING}
        self.to_close = {slot: None for slot in self.to_close if slot.state is not SlotState.GONE}

    def check(self) -> None:
        s, slots = self.scheduler, self.scheduler.slots()
        counts = {state: sum(slot.state is state for slot in slots) for state in SlotState}
        parked = [w for w in self.waiters if w.state is WaiterState.PARKED]
        assert counts[SlotState.GONE] == 0
        assert (s.dialling, s._closing) == (counts[SlotState.DIALLING], counts[SlotState.CLOSING])
        assert s.idle == sum(slot.is_idle for slot in slots)
        assert s.active == counts[SlotState.OPEN] - s.idle
        assert s.waiting == len(parked)
        assert set(s._queued) == {
            waiter for waiter in parked if not (waiter._awaits and waiter._awaits.state is SlotState.DIALLING)
        }
        waits = [waiter._parked_at for waiter in s._queued]
        assert waits == sorted(waits)
        assert len(slots) <= s.limits.max_connections
        for slot in slots:
            holders = [w for w in self.waiters if w.slot is slot]
            if slot.state is SlotState.OPEN:
                assert slot.in_use == len(holders)
                assert slot.in_use or not slot._is_retired
            if slot.state is SlotState.DIALLING:
                assert [w.state for w in holders] == [WaiterState.DIALLING]
            if slot.state is SlotState.CLOSING:
                assert slot in self.to_close
        assert all(w in self.told for w in self.waiters if w.state is not WaiterState.PARKED)
        assert s.requests == sum(slot.in_use for slot in slots if slot.state is SlotState.OPEN)
        wanted = 0
        for key in "ab":
            mine = [slot for slot in slots if slot.key == key]
            waiting = sum(w.key == key for w in parked)
            assert len(mine) <= s.limits.max_connections_per_origin
            assert (key in s._origins) == bool(mine or waiting) or s.is_closed
            is_idle = [slot.is_idle for slot in mine if slot.state is SlotState.OPEN]
            dialling = sum(slot.state is SlotState.DIALLING for slot in mine)
            queued = sum(waiter.key == key for waiter in s._queued)
            assert s.counts(key) == (is_idle.count(False), is_idle.count(True), dialling, queued)
            if key in s._origins:
                wanted += self.check_origin(s._origins[key], mine, waiting)
        assert not wanted or len(slots) == s.limits.max_connections
        assert not s.idle or wanted <= s._closing
        assert sum(len(origin.eligible) for origin in s._origins.values()) == len(s._queue) + len(s._promised)
        assert sum(origin.promised for origin in s._origins.values()) == len(s._promised)

    def check_origin(self, origin: _Origin, slots: list[Slot], waiting: int) -> int:
        """Return how many more connections it would open, but for the limit of all."""
        dials = [slot for slot in slots if slot.state is SlotState.DIALLING]
        fit = [slot for slot in slots if slot.state is SlotState.OPEN and not slot._is_retired]
        inline = sum(not slot._is_detached for slot in dials)
        assert (origin.waiting, origin.places, origin.inline) == (waiting, len(slots), inline)
        assert set(origin.detached) == {slot for slot in dials if slot._is_detached} - set(self.to_end)
        assert set(origin.stalled) == {slot for slot in fit if slot.capacity == 0}
        assert set(origin.spare) == {slot for slot in fit if slot.in_use < slot.capacity}
        to_come = inline + len(origin.detached) + len(origin.stalled)
        lacking = math.ceil((waiting + inline) / origin.expected) - to_come
        wanted = int(max(0, min(lacking, self.scheduler.limits.max_connections_per_origin - len(slots))))
        assert len(origin.eligible) >= wanted
        return wanted

    def drain(self) -> None:
        """Bring everything to a good end: everyone who waits is served, and nothing is left."""
        s = self.scheduler
        for _ in range(4 * len(self.waiters) + 10):
            if (waiter := self.pick(WaiterState.DIALLING)) is not None:
                self.carry_out(s.opened(waiter, object(), self.now))
            elif (waiter := self.pick(WaiterState.GRANTED, WaiterState.REFUSED)) is not None:
                self.carry_out(s.release(waiter, self.now, reusable=True))
            elif self.to_close:
                self.carry_out(s.closed(next(iter(self.to_close))))
                waiter = None
            elif stalled := [
                slot for slot in s.slots() if slot.state is SlotState.OPEN and not slot.capacity
            ]:
                self.carry_out(s.capacity_changed(stalled[0], 1, self.now))
                waiter = None
            else:
                break
            self.after(waiter)
            self.check()
        assert [w.state for w in self.waiters if w.state is not WaiterState.DONE] == []
        self.carry_out(s.close())
        for slot in s.slots():
            self.carry_out(s.closed(slot))
        books = (s._slots, s._waiters, s._origins, s._idle, s._queue, s._promised, s._queued)
        assert [len(book) for book in books] == [0] * len(books)
        assert (s._dialling, s._closing, s._waiting, s._requests) == (0, 0, 0, 0)


def prepared(seed: int, number: int) -> tuple[Shell, Callable[[], Sequence[Action]], Waiter | None]:
    shell = Shell(seed)
    shell.run(0, number, checked=False)  # which other tests do
    return shell, *shell.next_event(number)


def recover(shell: Shell, waiter: Waiter | None) -> None:
    shell.carry_out(shell.scheduler.rebuild(waiter))
    shell.after(waiter)
    if waiter is not None:
        assert (waiter.state, waiter.slot) == (WaiterState.DONE, None)
        assert waiter not in shell.scheduler._waiters
        assert not shell.scheduler.release(waiter, shell.now, reusable=True)
    shell.check()
    assert not any(origin.detached for origin in shell.scheduler._origins.values() if not origin.waiting)


@pytest.mark.parametrize("seed", range(6))
def test_the_scripts_run_to_a_good_end(seed: int) -> None:
    shell = Shell(seed)
    shell.run(0, EVENTS)
    shell.drain()


def test_the_scripts_meet_every_event() -> None:
    met = set()

    def trace(frame: FrameType, _: str, __: Any) -> Any:
        if frame.f_code.co_filename == _scheduler.__file__:
            met.add(frame.f_code.co_name)

    with tracing(trace):
        for seed in range(6):
            Shell(seed).run(0, EVENTS)
    public = {name for name, value in vars(Scheduler).items() if not name.startswith("_") and callable(value)}
    queries = {"all_counts", "counts", "expected", "oldest_wait", "stalled"}
    assert public - met - queries == {"rebuild"}
    assert {"_close", "_drop", "_take_spare", "_promise", "_balance", "_first_of", "_give_up"} <= met


# Some seconds on an idle machine, and a minute on one that has much else to do.
@pytest.mark.timeout(600)
def test_an_interrupt_at_any_bytecode_of_any_event_loses_nothing() -> None:
    paths: set[tuple[int, ...]] = set()
    for seed, number in product(range(12), range(EVENTS)):
        _, event, _ = prepared(seed, number)
        if (path := path_of(event)) in paths:
            continue
        paths.add(path)
        for at in count(len(paths) % STRIDE, STRIDE):
            shell, event, waiter = prepared(seed, number)
            if not interrupted(event, at):
                break
            recover(shell, waiter)
            if at % 7 == 0:
                shell.run(number + 1, EVENTS)
            shell.drain()
    assert len(paths) > 30


@pytest.mark.parametrize("number", [12, 24, 34])
@pytest.mark.parametrize("seed", range(3))
def test_an_interrupt_at_any_bytecode_of_the_rebuilding_loses_nothing(seed: int, number: int) -> None:
    for at in count(seed % STRIDE, STRIDE):
        shell, event, waiter = prepared(seed, number)
        assert interrupted(event, 5)
        if not interrupted(lambda: shell.carry_out(shell.scheduler.rebuild(waiter)), at):  # noqa: B023 - called at once
            break
        recover(shell, waiter)
        shell.drain()


def with_a_detached_dial(seed: int, waiting: int) -> Shell:
    """So many wait for the dial of `dial_waiter`, and one of another origin for a place."""
    shell = Shell(seed)
    shell.waiters = [Waiter(key) for key in "a" * max(waiting, 1) + "bbb"]
    for waiter in shell.waiters:
        shell.carry_out(shell.scheduler.acquire(waiter, 0, 3))
        shell.after(waiter)
    opener = shell.waiters[0]
    shell.dial_waiter = Waiter("a")
    shell.carry_out(shell.scheduler.detach(opener, shell.dial_waiter, 0))
    shell.after(opener)
    if not waiting:
        shell.carry_out(shell.scheduler.release(opener, 0, reusable=True))
        shell.after(opener)
    shell.check()
    return shell


@pytest.mark.parametrize("seed", range(len(LIMITS)))
@pytest.mark.parametrize("waiting", [0, 1, 4])
@pytest.mark.parametrize("capacity", [0, 1, 3])
def test_an_interrupt_at_any_bytecode_of_the_end_of_a_detached_dial_loses_nothing(
    capacity: int, waiting: int, seed: int
) -> None:
    interrupts = 0
    for at in count((capacity + waiting + seed) % STRIDE, STRIDE):
        shell = with_a_detached_dial(seed, waiting)
        connection, dial_waiter = object(), shell.dial_waiter
        opened = partial(shell.scheduler.opened, dial_waiter, connection, 0, capacity)
        if not interrupted(opened, at):
            break
        was_done = dial_waiter.state is WaiterState.DONE
        recover(shell, dial_waiter)
        kept = [slot for slot in shell.scheduler.slots() if slot.connection is connection]
        assert len(kept) == 1 or not was_done
        assert all(slot._is_retired or slot in shell.to_close for slot in kept)
        lost = {WaiterState.NEW, WaiterState.REFUSED, WaiterState.DONE}
        assert not lost & {w.state for w in shell.waiters[1:] if w is not dial_waiter}
        shell.drain()
        interrupts += 1
    assert interrupts > 5


def test_rebuilding_what_is_in_order_only_closes_what_idles() -> None:
    scheduler = Scheduler(Limits(max_connections=3))
    waiters = [Waiter(key) for key in "aaaba"]
    for waiter in waiters[:3]:
        scheduler.acquire(waiter, 0)
    for waiter in waiters[:2]:
        scheduler.opened(waiter, object(), 0)
    idle = waiters[0].slot
    scheduler.release(waiters[0], 0, reusable=True)
    for waiter in waiters[3:]:
        scheduler.acquire(waiter, 0)
    held = [(w.state, w.slot) for w in waiters]
    assert idle is not None
    actions = scheduler.rebuild()
    assert actions == [Close(idle, CloseReason.BROKEN)]
    assert [(w.state, w.slot) for w in waiters] == held
    assert idle.state is SlotState.CLOSING
    assert (scheduler.total, scheduler.dialling, scheduler.active, scheduler.idle) == (3, 1, 1, 0)


def test_rebuilding_keeps_what_is_hoped_for() -> None:
    scheduler = Scheduler(Limits(max_connections=3))
    waiters = [Waiter("a") for _ in range(4)]
    for waiter in waiters:
        scheduler.acquire(waiter, 0, 100)
    dial_waiter = Waiter("a")
    scheduler.detach(waiters[0], dial_waiter, 0)
    held = [(w.state, w.slot) for w in [dial_waiter, *waiters]]
    assert scheduler.rebuild() == []
    assert [(w.state, w.slot) for w in [dial_waiter, *waiters]] == held
    for waiter in waiters:
        scheduler.release(waiter, 0, reusable=True)
    assert dial_waiter.slot is not None
    assert scheduler.rebuild() == [GiveUp(dial_waiter.slot)]


def test_rebuilding_keeps_what_is_expected_of_an_origin_without_connections() -> None:
    scheduler = Scheduler(Limits(max_connections=1))
    holder, *waiters = [Waiter(key) for key in "baaa"]
    for waiter in (holder, *waiters):
        scheduler.acquire(waiter, 0, 100)
    scheduler.rebuild()
    scheduler.release(holder, 0, reusable=False)
    assert [w.state for w in waiters] == [WaiterState.DIALLING, WaiterState.PARKED, WaiterState.PARKED]
    assert [len(origin.eligible) for origin in scheduler._origins.values()] == [0]
