"""Every event of the scheduler takes as many steps where the pool holds ten of everything as where it holds 10,000.

Counted are the lines that the module executes, and the entries that are met where it walks through a collection.
"""

import math
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest

from lamina_pool import _scheduler
from lamina_pool._scheduler import Action, Limits, Scheduler, SlotState, Waiter, WaiterState, Wake

SIZES = (10, 100, 1_000, 10_000)
Event = Callable[[], object]


class CountedDict(OrderedDict[Any, Any]):
    walked = 0

    def __iter__(self) -> Iterator[Any]:
        for entry in super().__iter__():
            CountedDict.walked += 1
            yield entry


def steps_of(scheduler: Scheduler, event: Event) -> int:
    for name in ("_slots", "_waiters", "_origins", "_idle", "_queue", "_promised", "_queued"):
        setattr(scheduler, name, CountedDict(getattr(scheduler, name)))
    for origin in scheduler._origins.values():
        for name in ("spare", "stalled", "detached", "ahead", "returned", "eligible", "blocked"):
            setattr(origin, name, CountedDict(getattr(origin, name)))
    lines = 0

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        nonlocal lines
        if frame.f_code.co_filename != _scheduler.__file__:
            return None
        lines += what == "line"
        return trace

    CountedDict.walked = 0
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        event()
    finally:
        sys.settrace(before)
    assert lines > 0
    return lines + CountedDict.walked


def pool(**limits: float) -> Scheduler:
    return Scheduler(Limits(**limits))


def ask(scheduler: Scheduler, key: object = "a", now: float = 0, expected: int = 1) -> Waiter:
    waiter = Waiter(key)
    scheduler.acquire(waiter, now, expected)
    return waiter


def detach(scheduler: Scheduler, waiter: Waiter) -> Waiter:
    dial_waiter = Waiter(waiter.key)
    scheduler.detach(waiter, dial_waiter, 0)
    return dial_waiter


def connect(scheduler: Scheduler, key: object = "a", capacity: int = 1) -> Waiter:
    waiter = ask(scheduler, key)
    assert waiter.state is WaiterState.DIALLING
    scheduler.opened(waiter, object(), 0, capacity)
    return waiter


def connected(scheduler: Scheduler, n: int, key: Callable[[int], object] = lambda i: i) -> list[Waiter]:
    return [connect(scheduler, key(i)) for i in range(n)]


def idle(scheduler: Scheduler, n: int, key: Callable[[int], object] = lambda i: i) -> None:
    for waiter in connected(scheduler, n, key):
        scheduler.release(waiter, 0, reusable=True)


def acquire_with_many_connections_in_use(n: int) -> tuple[Scheduler, Event]:
    s = pool()
    connected(s, n, lambda _: "a")
    return s, lambda: ask(s)


def acquire_with_many_idle_to_the_origin(n: int) -> tuple[Scheduler, Event]:
    s = pool()
    idle(s, n, lambda _: "a")
    return s, lambda: ask(s)


def acquire_behind_many(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=5)
    for i in range(n):
        ask(s, i % 7)
    return s, lambda: ask(s)


def acquire_behind_many_of_an_origin_at_its_limit(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections_per_origin=5)
    for _ in range(n):
        ask(s)
    return s, lambda: ask(s)


def acquire_that_evicts_one_of_many(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=n)
    idle(s, n)
    return s, lambda: ask(s)


def acquire_that_evicts_while_many_are_closing(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=2 * n)
    idle(s, 2 * n)
    for _ in range(n):
        ask(s)
    return s, lambda: ask(s)


def acquire_that_meets_one_expired_of_many(n: int) -> tuple[Scheduler, Event]:
    s = pool(idle_seconds=10)
    waiters = connected(s, n, lambda _: "a")
    for i, waiter in enumerate(waiters):
        s.release(waiter, 0 if i == 0 else 5, reusable=True)
    return s, lambda: ask(s, now=10)


def opened_with_many_waiting(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=1)
    dialler = ask(s)
    for i in range(n):
        ask(s, "ab"[i % 2])
    return s, lambda: s.opened(dialler, object(), 0)


def dial_failed_with_many_waiting(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=1)
    dialler = ask(s)
    for _ in range(n):
        ask(s)
    return s, lambda: s.release(dialler, 0, reusable=False)


def release_to_one_of_many(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=1)
    holder = connect(s)
    for _ in range(n):
        ask(s)
    return s, lambda: s.release(holder, 0, reusable=True)


def release_with_many_waiting_for_other_origins(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=2)
    holder = connect(s)
    connect(s)
    for i in range(n):
        ask(s, i)
    return s, lambda: s.release(holder, 0, reusable=True)


def release_beside_many_idle(n: int) -> tuple[Scheduler, Event]:
    s = pool()
    holder = connect(s)
    idle(s, n)
    return s, lambda: s.release(holder, 0, reusable=True)


def release_of_a_surplus_connection(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_idle=n)
    holder = connect(s)
    idle(s, n)
    return s, lambda: s.release(holder, 0, reusable=True)


def release_of_a_broken_connection(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=n, max_connections_per_origin=1)
    holder = connected(s, n)[0]
    for i in range(n):
        ask(s, i % 3)
    return s, lambda: s.release(holder, 0, reusable=False)


def cancel_in_the_middle_of_the_common_queue(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=1)
    waiters = [ask(s, i % 7) for i in range(n)]
    return s, lambda: s.release(waiters[n // 2], 0, reusable=False)


def cancel_in_the_middle_of_an_origin_at_its_limit(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections_per_origin=1)
    waiters = [ask(s) for _ in range(n)]
    return s, lambda: s.release(waiters[n // 2], 0, reusable=False)


def cancel_of_one_who_is_promised_a_place(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=n)
    idle(s, n)
    waiters = [ask(s) for _ in range(2 * n)]
    return s, lambda: s.release(waiters[n // 2], 0, reusable=False)


def closed_with_many_closing_and_waiting(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=n)
    idle(s, n)
    for _ in range(2 * n):
        ask(s)
    slots = s.slots()
    assert {slot.state for slot in slots} == {SlotState.CLOSING}
    return s, lambda: s.closed(slots[n // 2])


def replace_by_a_fresh_connection(n: int) -> tuple[Scheduler, Event]:
    s = pool()
    holder = connect(s)
    idle(s, n)
    return s, lambda: s.replace(holder, 0, fresh=True)


def replace_by_one_of_many_idle(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=n)
    holder, *others = connected(s, n, lambda _: "a")
    for waiter in others:
        s.release(waiter, 0, reusable=True)
    return s, lambda: s.replace(holder, 0, fresh=False)


def one_more_place_on_a_connection(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=1)
    slot = connect(s, capacity=1).slot
    assert slot is not None
    for _ in range(n):
        ask(s)
    return s, lambda: s.capacity_changed(slot, 2, 0)


def many_places_less_on_a_connection(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=1)
    slot = connect(s, capacity=n).slot
    assert slot is not None
    for _ in range(n - 1):
        ask(s)
    return s, lambda: s.capacity_changed(slot, 1, 0)


def expire_one_of_many(n: int) -> tuple[Scheduler, Event]:
    s = pool(idle_seconds=10)
    for i, waiter in enumerate(connected(s, n)):
        s.release(waiter, min(i, 1), reusable=True)
    return s, lambda: s.expire(10)


def expire_none_of_many(n: int) -> tuple[Scheduler, Event]:
    s = pool(idle_seconds=10)
    idle(s, n)
    return s, lambda: s.expire(9)


def acquire_with_many_waiting_for_a_dial(n: int) -> tuple[Scheduler, Event]:
    s = pool()
    for _ in range(n):
        ask(s, expected=n + 1)
    return s, lambda: ask(s)


def acquire_with_many_dials_and_many_waiting_for_them(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=n)
    for _ in range(3 * n):
        ask(s, expected=2)
    return s, lambda: ask(s)


def detach_beside_many(n: int) -> tuple[Scheduler, Event]:
    s = pool()
    waiters = [ask(s, expected=2) for _ in range(2 * n)]
    for waiter in waiters[2::2]:
        detach(s, waiter)
    return s, lambda: detach(s, waiters[0])


def detached_dial_opened_with_many_waiting(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=2)
    waiters = [ask(s, expected=2) for _ in range(n)]
    dial_waiter = detach(s, waiters[0])
    return s, lambda: s.opened(dial_waiter, object(), 0, 2)


def last_of_many_leaves_a_detached_dial(n: int) -> tuple[Scheduler, Event]:
    s = pool()
    waiters = [ask(s, expected=n) for _ in range(n)]
    detach(s, waiters[0])
    for waiter in waiters[1:]:
        s.release(waiter, 0, reusable=True)
    return s, lambda: s.release(waiters[0], 0, reusable=True)


def given_up_dial_with_many_waiting(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=1)
    dialler, *_ = [ask(s, expected=2) for _ in range(n)]
    return s, lambda: s.release(dialler, 0, reusable=True)


def one_more_place_where_many_had_asked_for_one_each(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=n)
    slot = connect(s).slot
    assert slot is not None
    for _ in range(2 * n):
        ask(s)
    return s, lambda: s.capacity_changed(slot, 2, 0)


def retire_one_of_many(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=n)
    slot = connected(s, n, lambda _: "a")[n // 2].slot
    assert slot is not None
    for _ in range(n):
        ask(s)
    return s, lambda: s.retire(slot, 0)


def renew_with_many_waiting(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=1)
    holder = connect(s, capacity=n)
    for _ in range(2 * n):
        ask(s)
    assert holder.slot is not None
    s.capacity_changed(holder.slot, 1, 0)
    return s, lambda: s.renew(holder, 0)


def renew_beside_many_with_room(n: int) -> tuple[Scheduler, Event]:
    s = pool()
    holder = connect(s)
    idle(s, n, lambda _: "a")
    return s, lambda: s.renew(holder, 0)


def all_counts(n: int) -> tuple[Scheduler, Event]:
    s = pool(max_connections=n)
    idle(s, n)
    for _ in range(2 * n):
        ask(s)
    return s, lambda: (
        s.total, s.idle, s.dialling, s.active, s.waiting, s.queued, s.requests, s.counts("a"), s.oldest_wait(0)
    )  # fmt: skip


EVENTS = (
    acquire_with_many_connections_in_use,
    acquire_with_many_idle_to_the_origin,
    acquire_behind_many,
    acquire_behind_many_of_an_origin_at_its_limit,
    acquire_that_evicts_one_of_many,
    acquire_that_evicts_while_many_are_closing,
    acquire_that_meets_one_expired_of_many,
    opened_with_many_waiting,
    dial_failed_with_many_waiting,
    release_to_one_of_many,
    release_with_many_waiting_for_other_origins,
    release_beside_many_idle,
    release_of_a_surplus_connection,
    release_of_a_broken_connection,
    cancel_in_the_middle_of_the_common_queue,
    cancel_in_the_middle_of_an_origin_at_its_limit,
    cancel_of_one_who_is_promised_a_place,
    closed_with_many_closing_and_waiting,
    replace_by_a_fresh_connection,
    replace_by_one_of_many_idle,
    one_more_place_on_a_connection,
    many_places_less_on_a_connection,
    expire_one_of_many,
    expire_none_of_many,
    acquire_with_many_waiting_for_a_dial,
    acquire_with_many_dials_and_many_waiting_for_them,
    detach_beside_many,
    detached_dial_opened_with_many_waiting,
    last_of_many_leaves_a_detached_dial,
    given_up_dial_with_many_waiting,
    one_more_place_where_many_had_asked_for_one_each,
    retire_one_of_many,
    renew_with_many_waiting,
    renew_beside_many_with_room,
    all_counts,
)


@pytest.mark.parametrize("build", EVENTS, ids=lambda build: build.__name__)
def test_an_event_takes_as_many_steps_in_a_large_pool_as_in_a_small_one(
    build: Callable[[int], tuple[Scheduler, Event]],
) -> None:
    steps = [steps_of(*build(n)) for n in SIZES]
    assert max(steps) - min(steps) <= 3, dict(zip(SIZES, steps, strict=True))
    assert max(steps) < 200


@pytest.mark.parametrize("capacity", [None, 1, 3, 100])
@pytest.mark.parametrize("limit", [1, math.inf])
def test_a_hope_that_comes_to_nothing_costs_each_who_had_it_the_same(
    limit: float, capacity: int | None
) -> None:
    """A dial that fails, or carries less than expected, sends all who waited for it to the common queue: once."""

    def steps(n: int) -> float:
        s = pool(max_connections=limit)
        served: list[Waiter] = []

        def life() -> None:
            waiters = [ask(s, expected=100) for _ in range(n)]
            todo = deque([waiter for waiter in waiters if waiter.state is WaiterState.DIALLING])
            todo[0] = detach(s, todo[0])
            while todo:
                waiter = todo.popleft()
                actions: list[Action] = []
                if waiter.state is WaiterState.DIALLING and capacity is not None:
                    actions += s.opened(waiter, object(), 0, capacity)
                actions += s.release(waiter, 0, reusable=False)
                todo.extend(action.waiter for action in actions if isinstance(action, Wake))
                served.append(waiter)

        total = steps_of(s, life)
        assert (len(served), s.total) == (n + 1, 0)
        return total / n

    assert steps(600) < 1.5 * steps(60)


def test_the_count_sees_a_walk_through_everything() -> None:
    def steps(n: int) -> int:
        s = pool()
        idle(s, n)
        return steps_of(s, s.slots)

    assert steps(1_000) > 1_000
