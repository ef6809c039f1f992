"""The rules of the pool, one by one: events in, actions out, no time but the one that is said."""

import math
from collections.abc import Hashable, Iterable

import pytest

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
)

GRANTED, DIALLING, PARKED = WaiterState.GRANTED, WaiterState.DIALLING, WaiterState.PARKED
REFUSED, DONE = WaiterState.REFUSED, WaiterState.DONE


class Pool:
    """A scheduler together with what it has asked for so far."""

    def __init__(self, *, fraction: float = 0.0, **limits: float) -> None:
        self.scheduler = Scheduler(Limits(**limits), lambda: fraction)
        self.now = 0.0
        self.woken: list[Waiter] = []
        self.closes: list[tuple[Slot, CloseReason]] = []
        self.given_up: list[Slot] = []

    def carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, Wake):
                self.woken.append(action.waiter)
            elif isinstance(action, GiveUp):
                self.given_up.append(action.slot)
            else:
                self.closes.append((action.slot, action.reason))

    def ask(self, key: Hashable = "a", expected: int = 1) -> Waiter:
        waiter = Waiter(key)
        self.carry_out(self.scheduler.acquire(waiter, self.now, expected))
        return waiter

    def ask_often(self, number: int, key: Hashable = "a", expected: int = 100) -> list[Waiter]:
        return [self.ask(key, expected) for _ in range(number)]

    def detach(self, waiter: Waiter) -> Waiter:
        dial_waiter = Waiter(waiter.key)
        self.carry_out(self.scheduler.detach(waiter, dial_waiter, self.now))
        return dial_waiter

    def opened(self, waiter: Waiter, capacity: int = 1) -> Waiter:
        self.carry_out(self.scheduler.opened(waiter, object(), self.now, capacity))
        return waiter

    def connect(self, key: Hashable = "a", capacity: int = 1) -> Waiter:
        waiter = self.ask(key)
        assert waiter.state is DIALLING
        return self.opened(waiter, capacity)

    def give_back(self, waiter: Waiter, *, reusable: bool = True, hint: float | None = math.inf) -> None:
        self.carry_out(self.scheduler.release(waiter, self.now, reusable=reusable, idle_seconds=hint))

    def replace(self, waiter: Waiter, *, fresh: bool = False) -> None:
        self.carry_out(self.scheduler.replace(waiter, self.now, fresh=fresh))

    def renew(self, waiter: Waiter) -> None:
        self.carry_out(self.scheduler.renew(waiter, self.now))

    def retire(self, slot: Slot) -> None:
        self.carry_out(self.scheduler.retire(slot, self.now))

    def resize(self, slot: Slot, capacity: int) -> None:
        self.carry_out(self.scheduler.capacity_changed(slot, capacity, self.now))

    def closed(self, slot: Slot) -> None:
        self.carry_out(self.scheduler.closed(slot))

    def close(self) -> None:
        self.carry_out(self.scheduler.close())

    def expire(self) -> None:
        self.carry_out(self.scheduler.expire(self.now))

    def take_closes(self) -> list[tuple[Slot, CloseReason]]:
        closes, self.closes = self.closes, []
        return closes

    def take_woken(self) -> list[Waiter]:
        woken, self.woken = self.woken, []
        return woken

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Total, dialling, active, idle, waiting."""
        s = self.scheduler
        return s.total, s.dialling, s.active, s.idle, s.waiting


def slot_of(waiter: Waiter) -> Slot:
    assert waiter.slot is not None
    return waiter.slot


def states(waiters: Iterable[Waiter]) -> list[WaiterState]:
    return [waiter.state for waiter in waiters]


# --- which connection ----------------------------------------------------------------------------------------


def test_the_first_request_opens_a_connection_itself() -> None:
    pool = Pool()
    waiter = pool.ask()
    assert (waiter.state, slot_of(waiter).state, pool.woken, pool.closes) == (
        DIALLING,
        SlotState.DIALLING,
        [],
        [],
    )


def test_the_connection_used_last_is_used_first() -> None:
    pool = Pool()
    first, second, third = [pool.connect() for _ in range(3)]
    a, b, c = slot_of(first), slot_of(second), slot_of(third)
    for waiter in (second, first, third):
        pool.give_back(waiter)
    assert [pool.ask().slot for _ in range(3)] == [c, a, b]


def test_a_connection_is_the_object_that_was_opened() -> None:
    scheduler, waiter, connection = Scheduler(Limits()), Waiter("a"), object()
    scheduler.acquire(waiter, 0)
    assert (slot_of(waiter).connection, slot_of(waiter).key) == (None, "a")
    scheduler.opened(waiter, connection, 0)
    assert slot_of(waiter).connection is connection


def test_a_change_of_capacity_is_no_use_of_a_connection() -> None:
    pool = Pool()
    first, second = pool.connect(), pool.connect()
    a, b = slot_of(first), slot_of(second)
    pool.give_back(first)
    pool.give_back(second)
    pool.resize(a, 2)
    assert pool.ask().slot is b


def test_a_connection_to_another_origin_is_of_no_use() -> None:
    pool = Pool()
    pool.give_back(pool.connect("a"))
    assert pool.ask("b").state is DIALLING


def test_for_another_origin_the_longest_idle_is_closed() -> None:
    pool = Pool(max_connections=3)
    waiters = [pool.connect(key) for key in "abc"]
    slots = [slot_of(waiter) for waiter in waiters]
    for i in (1, 0, 2):
        pool.give_back(waiters[i])
    newcomer = pool.ask("d")
    assert pool.take_closes() == [(slots[1], CloseReason.EVICTED)]
    assert newcomer.state is PARKED
    pool.closed(slots[1])
    assert pool.take_woken() == [newcomer]
    assert newcomer.state is DIALLING


def test_a_place_is_free_only_when_its_connection_is_reported_closed() -> None:
    pool = Pool(max_connections=2)
    for key in "ab":
        pool.give_back(pool.connect(key))
    newcomers = [pool.ask("c") for _ in range(3)]
    closing = [slot for slot, _ in pool.take_closes()]
    assert len(closing) == 2
    assert pool.scheduler.total == 2
    for i, slot in enumerate(closing):
        pool.closed(slot)
        pool.closed(slot)
        assert pool.scheduler.total == 2
        assert states(newcomers) == [DIALLING] * (i + 1) + [PARKED] * (2 - i)


def test_no_more_is_closed_than_is_asked_for() -> None:
    pool = Pool(max_connections=4)
    for waiter in [pool.connect(key) for key in "abcd"]:
        pool.give_back(waiter)
    for i in range(1, 4):
        pool.ask("e")
        assert len(pool.closes) == i


def test_a_connection_is_not_closed_for_one_who_is_promised_another_place() -> None:
    pool = Pool(max_connections=2)
    other, mine = pool.connect("x"), pool.connect("a")
    pool.give_back(other)
    first = pool.ask("b")
    (evicted, _), *_ = pool.take_closes()
    second = pool.ask("a")
    pool.give_back(mine)
    assert pool.take_closes() == []
    assert pool.take_woken() == [second]
    pool.closed(evicted)
    assert pool.take_woken() == [first]


# --- who first ---------------------------------------------------------------------------------------------


def test_requests_to_one_origin_are_served_first_come_first_served() -> None:
    pool = Pool(max_connections=1)
    holder = pool.connect()
    queue = [pool.ask() for _ in range(30)]
    for waiter in queue:
        pool.give_back(holder)
        assert pool.take_woken() == [waiter]
        assert waiter.state is GRANTED
        holder = waiter


def test_requests_to_many_origins_are_served_first_come_first_served() -> None:
    pool = Pool(max_connections=1)
    holder = pool.connect("a")
    queue = [pool.ask(key) for key in "bacbacaab"]
    for waiter in queue:
        key = slot_of(holder).key
        pool.give_back(holder)
        for slot, reason in pool.take_closes():
            assert (reason, key == waiter.key) == (CloseReason.EVICTED, False)
            pool.closed(slot)
        assert pool.take_woken() == [waiter]
        holder = pool.opened(waiter) if waiter.state is DIALLING else waiter


def test_a_hot_origin_does_not_starve_a_cold_request() -> None:
    pool = Pool(max_connections=2)
    hot = [pool.connect("hot"), pool.connect("hot")]
    queue = [pool.ask("hot") for _ in range(5)]
    cold = pool.ask("cold")
    served = 0
    while cold.state is PARKED:
        served += 1
        assert served <= 6, "twice its turn"
        queue.append(pool.ask("hot"))
        pool.give_back(hot.pop(0))
        for slot, _ in pool.take_closes():
            pool.closed(slot)
        hot += [waiter for waiter in pool.take_woken() if waiter is not cold]
    assert served == 6


def test_the_limit_of_one_origin_holds_nobody_else_up() -> None:
    pool = Pool(max_connections=3, max_connections_per_origin=1)
    pool.connect("slow")
    blocked = [pool.ask("slow") for _ in range(100)]
    assert set(states(blocked)) == {PARKED}
    assert [pool.ask(key).state for key in "abc"] == [DIALLING, DIALLING, PARKED]


@pytest.mark.parametrize("reusable", [True, False])
def test_the_limit_of_one_origin_is_kept_when_a_place_becomes_free(reusable: bool) -> None:
    pool = Pool(max_connections=5, max_connections_per_origin=1)
    holder = pool.connect()
    queue = [pool.ask() for _ in range(3)]
    pool.give_back(holder, reusable=reusable)
    assert states(queue) == [GRANTED if reusable else DIALLING, PARKED, PARKED]
    assert pool.scheduler.total == 1


def test_those_held_back_join_the_common_queue_when_their_origin_has_room() -> None:
    pool = Pool(max_connections=2, max_connections_per_origin=1)
    mine, other = pool.connect("a"), pool.connect("b")
    held_back, third = pool.ask("a"), pool.ask("c")
    pool.give_back(mine, reusable=False)
    assert pool.take_woken() == [third]
    assert held_back.state is PARKED
    pool.give_back(other, reusable=False)
    assert pool.take_woken() == [held_back]


def test_a_free_connection_goes_to_an_older_request_of_another_origin() -> None:
    pool = Pool(max_connections=1)
    holder = pool.connect("a")
    slot = slot_of(holder)
    older, younger = pool.ask("b"), pool.ask("a")
    pool.give_back(holder)
    assert pool.take_closes() == [(slot, CloseReason.EVICTED)]
    pool.closed(slot)
    assert states([older, younger]) == [DIALLING, PARKED]


# --- giving back -------------------------------------------------------------------------------------------


def test_whatever_a_request_holds_release_gives_it_back_once() -> None:
    pool = Pool(max_connections=2)
    new, granted, dialling = Waiter("a"), pool.connect(), pool.ask()
    parked = pool.ask()
    for waiter, counts in [
        (new, (2, 1, 1, 0, 1)),
        (parked, (2, 1, 1, 0, 0)),
        (dialling, (1, 0, 1, 0, 0)),
        (granted, (1, 0, 0, 1, 0)),
    ]:
        for _ in range(2):
            pool.give_back(waiter)
            assert (waiter.state, waiter.slot, pool.counts) == (DONE, None, counts)
    pool.close()
    refused = pool.ask()
    assert refused.state is REFUSED
    pool.give_back(refused)
    assert refused.state is DONE


def test_a_request_that_was_just_granted_a_connection_passes_it_on() -> None:
    pool = Pool(max_connections=1)
    holder = pool.connect()
    first, second = pool.ask(), pool.ask()
    pool.give_back(holder)
    pool.give_back(first)
    assert pool.take_woken() == [first, second]
    assert second.state is GRANTED


@pytest.mark.parametrize("key", ["a", "b"])
def test_a_request_that_gives_up_dialling_passes_its_place_on(key: str) -> None:
    pool = Pool(max_connections=1)
    dialler, waiter = pool.ask("a"), pool.ask(key)
    pool.give_back(dialler, reusable=False)
    assert (waiter.state, pool.take_woken(), pool.scheduler.total) == (DIALLING, [waiter], 1)


def test_a_cancelled_request_leaves_the_order_of_the_others() -> None:
    pool = Pool(max_connections=1)
    holder = pool.connect()
    queue = [pool.ask() for _ in range(5)]
    for i in (0, 2, 4):
        pool.give_back(queue[i])
    pool.give_back(holder)
    pool.give_back(queue[1])
    assert pool.take_woken() == [queue[1], queue[3]]


def test_the_promise_of_a_cancelled_request_passes_to_the_next() -> None:
    pool = Pool(max_connections=2)
    idler, active = pool.connect("a"), pool.connect("a")
    pool.give_back(idler)
    first = pool.ask("b")
    (slot, _), *_ = pool.take_closes()
    second = pool.ask("c")
    pool.give_back(first)
    pool.give_back(active)
    assert pool.take_closes() == []
    pool.closed(slot)
    assert second.state is DIALLING
    assert pool.counts == (2, 1, 0, 1, 0)


def test_a_request_of_another_pool_is_given_back_without_effect() -> None:
    parent, pool = Pool(max_connections=2), Pool(max_connections=1)
    strangers = [parent.connect(), parent.ask(), parent.ask()]
    pool.ask()
    pool.ask()
    for waiter in strangers:
        pool.give_back(waiter)
        assert (waiter.state, waiter.slot, pool.counts) == (DONE, None, (1, 1, 0, 0, 1))


def test_what_is_not_reusable_is_gone() -> None:
    pool = Pool()
    pool.give_back(pool.connect(), reusable=False)
    assert pool.counts == (0, 0, 0, 0, 0)
    assert pool.closes == []


# --- how long ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "hint", "after", "usable"),
    [
        (5, math.inf, 4.999, True),
        (5, math.inf, 5, False),
        (5, 3, 2.999, True),
        (5, 3, 3, False),
        (5, 9, 4.999, True),
        (5, 9, 5, False),
        (math.inf, 3, 3, False),
        (math.inf, math.inf, 1e12, True),
        (5, 0, 0, False),
        (0, math.inf, 0, False),
    ],
)
def test_an_idle_connection_expires_exactly_at_its_time(
    ours: float, hint: float, after: float, usable: bool
) -> None:
    pool = Pool(idle_seconds=ours)
    waiter = pool.connect()
    slot = slot_of(waiter)
    pool.now = 10
    pool.give_back(waiter, hint=hint)
    pool.now = 10 + after
    second = pool.ask()
    assert (second.slot is slot) == usable
    assert pool.closes == ([] if usable else [(slot, CloseReason.EXPIRED)])


@pytest.mark.parametrize(
    ("jitter", "fraction", "after", "usable"),
    [
        (0, 0.5, 99.9, True),
        (0, 0.5, 100, False),
        (0.1, 0, 99.9, True),
        (0.1, 0.5, 94.9, True),
        (0.1, 0.5, 95, False),
        (1, 0.75, 25, False),
    ],
)
def test_a_connection_takes_no_request_past_its_age(
    jitter: float, fraction: float, after: float, usable: bool
) -> None:
    pool = Pool(max_age=100, age_jitter=jitter, fraction=fraction)
    waiter = pool.ask()
    pool.now = 7
    slot = slot_of(pool.opened(waiter))
    pool.now = 7 + after / 2
    pool.give_back(waiter)
    pool.now = 7 + after
    assert (pool.ask().slot is slot) == usable
    assert pool.closes == ([] if usable else [(slot, CloseReason.TOO_OLD)])


def test_a_request_under_way_outlives_the_age_of_its_connection() -> None:
    pool = Pool(max_age=10, age_jitter=0)
    waiter = pool.connect(capacity=2)
    slot = slot_of(waiter)
    pool.now = 10
    assert pool.ask().state is DIALLING
    assert pool.closes == []
    pool.give_back(waiter)
    assert [closing for closing, _ in pool.closes] == [slot]


def test_expired_connections_are_closed_without_a_request() -> None:
    pool = Pool(idle_seconds=5)
    waiters = [pool.connect(key) for key in "abc"]
    slots = [slot_of(waiter) for waiter in waiters]
    for waiter in waiters:
        pool.give_back(waiter)
        pool.now += 1
    pool.now = 6
    pool.expire()
    assert pool.take_closes() == [(slots[0], CloseReason.EXPIRED), (slots[1], CloseReason.EXPIRED)]
    assert pool.counts == (3, 0, 0, 1, 0)


def test_a_connection_that_expires_before_those_idle_longer_is_closed_when_it_is_met() -> None:
    pool = Pool(idle_seconds=60)
    first, second = pool.connect(), pool.connect()
    longer, shorter = slot_of(first), slot_of(second)
    pool.give_back(first)
    pool.give_back(second, hint=3)
    pool.now = 3
    assert pool.ask().slot is longer
    assert pool.closes == [(shorter, CloseReason.EXPIRED)]
    assert pool.counts == (2, 0, 1, 0, 0)


def test_a_connection_that_was_granted_and_not_used_expires_when_it_would_have() -> None:
    pool = Pool(idle_seconds=60)
    pool.give_back(pool.connect(), hint=3)
    pool.now = 2
    waiter = pool.ask()
    slot = slot_of(waiter)
    pool.give_back(waiter, hint=None)
    pool.now = 3
    assert pool.ask().state is DIALLING
    assert pool.closes == [(slot, CloseReason.EXPIRED)]


@pytest.mark.parametrize(
    ("limits", "reason"),
    [({"idle_seconds": 5}, CloseReason.EXPIRED), ({"max_age": 5, "age_jitter": 0}, CloseReason.TOO_OLD)],
)
def test_a_request_to_any_origin_has_expired_connections_closed(
    limits: dict[str, float], reason: CloseReason
) -> None:
    pool = Pool(**limits)
    waiter = pool.connect("a")
    slot = slot_of(waiter)
    pool.give_back(waiter)
    pool.now = 5
    assert pool.ask("b").state is DIALLING
    assert pool.closes == [(slot, reason)]


def test_an_expired_connection_is_not_handed_to_the_one_who_waits() -> None:
    pool = Pool(max_connections=1, max_age=10, age_jitter=0)
    holder = pool.connect()
    slot = slot_of(holder)
    waiter = pool.ask()
    pool.now = 10
    pool.give_back(holder)
    assert waiter.state is PARKED
    pool.closed(slot)
    assert waiter.state is DIALLING


@pytest.mark.parametrize("max_idle", [0, 1, 2])
def test_beyond_max_idle_the_longest_idle_is_closed(max_idle: int) -> None:
    pool = Pool(max_idle=max_idle)
    waiters = [pool.connect(key) for key in "abca"]
    slots = [slot_of(waiter) for waiter in waiters]
    for waiter in waiters:
        pool.give_back(waiter)
        assert pool.scheduler.idle <= max_idle
    assert pool.closes == [(slot, CloseReason.SURPLUS) for slot in slots[: 4 - max_idle]]


def test_with_no_idle_connections_allowed_one_is_still_handed_over() -> None:
    pool = Pool(max_connections=1, max_idle=0)
    holder, waiter = pool.connect(), pool.ask()
    pool.give_back(holder)
    assert (waiter.state, pool.closes) == (GRANTED, [])


# --- a dead connection -----------------------------------------------------------------------------------------


def test_a_dead_connection_is_replaced_by_another_idle_one() -> None:
    pool = Pool()
    first, second = pool.connect(), pool.connect()
    spare = slot_of(first)
    pool.give_back(first)
    pool.replace(second)
    assert (second.state, second.slot, pool.counts) == (GRANTED, spare, (1, 0, 1, 0, 0))


def test_a_dead_connection_is_replaced_by_a_fresh_one_in_its_place() -> None:
    pool = Pool(max_connections=2)
    first, second = pool.connect(), pool.connect()
    pool.give_back(first)
    queued = pool.ask("b")
    pool.replace(second, fresh=True)
    assert (second.state, queued.state, pool.scheduler.total) == (DIALLING, PARKED, 2)


def test_where_an_idle_connection_takes_over_the_place_of_the_dead_goes_to_the_queue() -> None:
    pool = Pool(max_connections=3, max_connections_per_origin=2)
    first, second = pool.ask("a"), pool.connect("a")
    pool.connect("b")
    pool.opened(first, capacity=2)
    queued = pool.ask("b")
    pool.replace(second)
    assert second.slot is first.slot
    assert (queued.state, pool.take_woken()) == (DIALLING, [queued])


def test_a_dead_connection_is_not_its_own_replacement() -> None:
    pool = Pool(max_connections=1)
    first = pool.connect(capacity=5)
    second = pool.ask()
    dead = slot_of(first)
    pool.replace(first)
    assert first.state is PARKED
    assert pool.ask().state is PARKED
    pool.replace(second)
    assert (second.state, dead.state) == (DIALLING, SlotState.GONE)


@pytest.mark.parametrize(("limit", "dials"), [(2, False), (3, True)])
def test_where_a_fresh_connection_cannot_be_opened_another_will_do(limit: int, dials: bool) -> None:
    pool = Pool(max_connections_per_origin=limit)
    first, second = pool.ask(), pool.ask()
    shared, spare = slot_of(first), slot_of(second)
    pool.opened(first, capacity=2)
    assert pool.ask().slot is shared
    pool.give_back(pool.opened(second))
    pool.replace(first, fresh=True)
    assert (first.state, first.slot is spare) == ((DIALLING, False) if dials else (GRANTED, True))


def test_a_request_whose_dead_connection_is_shared_has_another_origins_closed() -> None:
    pool = Pool(max_connections=2)
    first = pool.connect("a", capacity=2)
    pool.ask("a")
    idler = pool.connect("b")
    idle = slot_of(idler)
    pool.give_back(idler)
    pool.replace(first)
    assert (first.state, pool.closes) == (PARKED, [(idle, CloseReason.EVICTED)])
    pool.closed(idle)
    assert (first.state, pool.woken) == (DIALLING, [first])


def test_after_the_pool_was_closed_nothing_is_replaced() -> None:
    pool = Pool()
    waiter = pool.connect()
    pool.close()
    pool.replace(waiter)
    assert (waiter.state, waiter.slot) == (REFUSED, None)


# --- several requests on one connection ------------------------------------------------------------------------


def test_a_connection_carries_as_many_requests_as_it_can() -> None:
    pool = Pool(max_connections=1)
    first = pool.ask()
    queue = [pool.ask() for _ in range(5)]
    pool.opened(first, capacity=3)
    assert states(queue) == [GRANTED] * 2 + [PARKED] * 3
    assert pool.take_woken() == queue[:2]
    pool.give_back(queue[0])
    assert pool.take_woken() == [queue[2]]
    assert pool.counts == (1, 0, 1, 0, 2)


def test_a_higher_capacity_is_used_at_once() -> None:
    pool = Pool(max_connections=1)
    first = pool.connect()
    queue = [pool.ask() for _ in range(5)]
    pool.resize(slot_of(first), 4)
    assert pool.take_woken() == queue[:3]


def test_a_lower_capacity_takes_nothing_away_and_gives_nothing_more() -> None:
    pool = Pool(max_connections=1)
    first = pool.connect(capacity=3)
    others = [pool.ask(), pool.ask()]
    slot = slot_of(first)
    pool.resize(slot, 1)
    waiting = pool.ask()
    for waiter in others:
        pool.give_back(waiter)
        assert waiting.state is PARKED
    pool.give_back(first)
    assert (waiting.state, slot.in_use) == (GRANTED, 1)


def test_a_capacity_that_goes_up_and_down_loses_no_place() -> None:
    pool = Pool(max_connections=1)
    first = pool.connect()
    slot = slot_of(first)
    for i in range(1000):
        pool.resize(slot, i % 4)
    pool.give_back(first)
    pool.resize(slot, 2)
    assert states([pool.ask(), pool.ask(), pool.ask()]) == [GRANTED, GRANTED, PARKED]


def test_an_idle_connection_without_capacity_gives_its_place_to_others() -> None:
    pool = Pool(max_connections=1)
    first = pool.connect(capacity=2)
    slot = slot_of(first)
    pool.resize(slot, 0)
    pool.give_back(first)
    waiter = pool.ask("b")
    assert pool.closes == [(slot, CloseReason.EVICTED)]
    pool.closed(slot)
    assert waiter.state is DIALLING


def test_of_connections_with_room_the_one_that_was_given_back_last_is_taken_first() -> None:
    pool = Pool()
    first, second = pool.connect(capacity=2), pool.ask()
    third = pool.connect(capacity=2)
    pool.give_back(first)
    pool.give_back(third)
    assert pool.ask().slot is not slot_of(second)


def test_an_idle_connection_without_capacity_is_not_handed_out() -> None:
    pool = Pool()
    first = pool.connect(capacity=2)
    pool.resize(slot_of(first), 0)
    pool.give_back(first)
    waiter = pool.ask()
    assert waiter.state is PARKED
    assert pool.counts == (1, 0, 0, 1, 1)
    assert pool.scheduler.stalled("a") == pool.scheduler.slots()


def test_a_broken_connection_takes_no_more_and_is_closed_after_its_last_request() -> None:
    pool = Pool(max_connections=2)
    first = pool.connect(capacity=3)
    second = pool.ask()
    slot = slot_of(first)
    pool.give_back(first, reusable=False)
    third = pool.ask()
    assert third.slot is not slot
    pool.resize(slot, 9)
    pool.give_back(second)
    assert pool.closes == [(slot, CloseReason.BROKEN)]


# --- connections to come -----------------------------------------------------------------------------------------


def test_a_thousand_requests_to_one_origin_open_as_many_connections_as_they_fill() -> None:
    pool = Pool(max_connections=100)
    waiters = pool.ask_often(1000)
    diallers = [waiter for waiter in waiters if waiter.state is DIALLING]
    assert (len(diallers), diallers) == (10, waiters[::100])
    for waiter in diallers:
        pool.opened(waiter, capacity=100)
    assert set(states(waiters)) == {GRANTED}
    assert (pool.counts, pool.scheduler.requests) == ((10, 0, 10, 0, 0), 1000)


def test_where_a_connection_carries_one_request_only_all_is_as_if_nothing_had_been_expected() -> None:
    def served(expected: int) -> list[int]:
        pool = Pool(max_connections=8, max_connections_per_origin=5)
        waiters = pool.ask_often(30, expected=expected)
        order: list[int] = []
        while len(order) < len(waiters):
            for waiter in waiters:
                if waiter.state is DIALLING:
                    pool.opened(waiter)
            assert pool.scheduler.total == 5
            for i, waiter in enumerate(waiters):
                if waiter.state is GRANTED:
                    order.append(i)
                    pool.give_back(waiter)
                    break
        return order

    assert served(100) == served(1) == list(range(30))


def test_requests_beyond_the_capacity_lead_to_more_connections() -> None:
    pool = Pool(max_connections=10)
    waiters = pool.ask_often(20)
    pool.opened(waiters[0], capacity=2)
    assert states(waiters) == [GRANTED] * 2 + [DIALLING] * 9 + [PARKED] * 9
    for waiter in waiters[2:11]:
        pool.opened(waiter, capacity=2)
    assert set(states(waiters)) == {GRANTED}


def test_after_a_dial_that_failed_each_dials_for_himself() -> None:
    pool = Pool(max_connections=4)
    first, *others = pool.ask_often(6)
    pool.give_back(first, reusable=False)
    assert states(others) == [DIALLING] * 4 + [PARKED]
    assert pool.take_woken() == others[:4]


def test_after_a_dial_that_was_given_up_one_dials_for_all() -> None:
    pool = Pool(max_connections=4)
    first, *others = pool.ask_often(6)
    pool.give_back(first)
    assert states(others) == [DIALLING] + [PARKED] * 4


def test_what_is_known_of_an_origin_counts_more_than_what_is_expected_until_it_is_forgotten() -> None:
    pool = Pool()
    holder = pool.connect(capacity=1)
    waiters = pool.ask_often(3)
    assert set(states(waiters)) == {DIALLING}
    for waiter in (holder, *waiters):
        pool.give_back(waiter, reusable=False)
    assert states(pool.ask_often(3)) == [DIALLING, PARKED, PARKED]


def test_who_waits_for_a_dial_holds_up_nobody_else() -> None:
    pool = Pool(max_connections=2)
    pool.ask_often(5, "a")
    assert pool.ask("b").state is DIALLING
    queued = pool.ask("c")
    (beyond,) = pool.ask_often(96, "a")[-1:]
    assert pool.scheduler.waiting == 4 + 1 + 96
    other = next(slot for slot in pool.scheduler.slots() if slot.key == "b")
    pool.carry_out(pool.scheduler.release(next(iter(holders(pool, other))), 0, reusable=False))
    assert (queued.state, beyond.state) == (DIALLING, PARKED)


def holders(pool: Pool, slot: Slot) -> list[Waiter]:
    return [waiter for waiter in pool.scheduler._waiters if waiter.slot is slot]


def test_the_one_who_dials_for_many_in_the_common_queue_stands_there_for_all() -> None:
    pool = Pool(max_connections=1)
    holder = pool.connect("b")
    hundred = pool.ask_often(100, "a")
    last = pool.ask("b")
    pool.give_back(holder, reusable=False)
    assert pool.take_woken() == [hundred[0]]
    pool.opened(hundred[0], capacity=100)
    assert set(states(hundred)) == {GRANTED}
    for waiter in hundred:
        pool.give_back(waiter)
    assert last.state is PARKED
    pool.closed(pool.take_closes()[0][0])
    assert last.state is DIALLING


def test_those_who_wait_for_a_connection_that_came_after_all_leave_the_common_queue() -> None:
    pool = Pool(max_connections=2)
    mine, other = pool.connect("a"), pool.connect("b")
    waiters = [pool.ask("a") for _ in range(4)]
    last = pool.ask("c")
    pool.resize(slot_of(mine), 2)
    assert states(waiters) == [GRANTED, PARKED, PARKED, PARKED]
    pool.give_back(other, reusable=False)
    assert pool.take_woken() == [waiters[0], waiters[1]]
    pool.give_back(waiters[1], reusable=False)  # whose dial failed
    assert pool.take_woken() == [waiters[2]]
    pool.opened(waiters[2], capacity=100)
    assert states(waiters) == [GRANTED, DONE, GRANTED, GRANTED]
    pool.give_back(mine)
    pool.give_back(waiters[0])
    assert [reason for _, reason in pool.closes] == [CloseReason.EVICTED]
    pool.closed(pool.closes[0][0])
    assert last.state is DIALLING


def test_those_in_the_common_queue_whom_connections_to_come_will_serve_do_not_dial() -> None:
    pool = Pool(max_connections=4)
    mine, *others = [pool.connect(key) for key in "abbb"]
    waiters = [pool.ask("a") for _ in range(5)]
    last = pool.ask("c")
    pool.resize(slot_of(mine), 2)
    for other in others:
        pool.give_back(other, reusable=False)
    assert states([*waiters, last]) == [GRANTED, DIALLING, DIALLING, PARKED, PARKED, DIALLING]
    pool.give_back(
        waiters[1]
    )  # its dial was given up: the next place is for the oldest of those who wait for it
    assert (pool.take_woken()[-1], states(waiters[3:])) == (waiters[3], [DIALLING, PARKED])


def test_a_dead_connection_with_many_requests_is_replaced_by_one() -> None:
    pool = Pool(max_connections=10)
    first = pool.ask(expected=100)
    pool.opened(first, capacity=100)
    waiters = [first, *pool.ask_often(99)]
    for waiter in waiters:
        pool.replace(waiter, fresh=True)
    assert states(waiters) == [DIALLING] + [PARKED] * 99
    pool.opened(first, capacity=100)
    assert set(states(waiters)) == {GRANTED}


# --- a connection that may carry nothing for the moment ------------------------------------------------------------


def test_a_server_that_allows_nothing_for_the_moment_is_waited_for() -> None:
    pool = Pool(max_connections=10)
    first = pool.ask(expected=100)
    dial_waiter = pool.detach(first)
    pool.opened(dial_waiter, capacity=0)
    later = pool.ask()
    assert (states([first, later]), pool.scheduler.total, pool.closes) == ([PARKED, PARKED], 1, [])
    pool.resize(pool.scheduler.slots()[0], 1)
    assert states([first, later]) == [GRANTED, DIALLING]


@pytest.mark.parametrize("how", ["evicted", "expired", "retired", "retired while in use"])
def test_if_it_goes_those_who_waited_for_it_dial(how: str) -> None:
    pool = Pool(max_connections=2, idle_seconds=5)
    holder = pool.ask(expected=100)
    pool.opened(holder, capacity=3)
    slot = slot_of(holder)
    pool.resize(slot, 0)
    waiting = pool.ask()
    if how != "retired while in use":
        pool.give_back(holder)
    assert (waiting.state, pool.scheduler.total) == (PARKED, 1)
    if how == "evicted":
        other = pool.connect("b")
        pool.ask("c")
        assert pool.take_closes() == [(slot, CloseReason.EVICTED)]
        pool.closed(slot)  # whose place goes to the third
        pool.give_back(other)
        pool.closed(pool.take_closes()[0][0])
    elif how == "expired":
        pool.now = 5
        pool.expire()
    else:
        pool.retire(slot)
    assert waiting.state is DIALLING


def test_a_thousand_changes_of_a_limit_leave_the_counts_exact() -> None:
    pool = Pool(max_connections=1)
    holder = pool.ask(expected=100)
    pool.opened(holder, capacity=100)
    slot = slot_of(holder)
    waiters = [holder, *pool.ask_often(250)]
    for i in range(1000):
        pool.resize(slot, (0, 100, 1, 7)[i % 4])
        for waiter in waiters:
            if waiter.state is GRANTED and i % 3 == 0:
                pool.give_back(waiter)
                waiters[waiters.index(waiter)] = pool.ask()
                break
        assert slot.in_use == pool.scheduler.requests == states(waiters).count(GRANTED) <= 100
    for waiter in waiters:
        pool.give_back(waiter)
    pool.resize(slot, 4)
    assert states([pool.ask() for _ in range(5)]) == [GRANTED] * 4 + [PARKED]


# --- detached dials --------------------------------------------------------------------------------------------------


def test_a_detached_dial_outlives_the_request_that_began_it() -> None:
    pool = Pool()
    first, second = pool.ask_often(2)
    dial_waiter = pool.detach(first)
    assert states([first, dial_waiter, second]) == [PARKED, DIALLING, PARKED]
    pool.give_back(first)
    assert (second.state, pool.scheduler.total, pool.given_up) == (PARKED, 1, [])
    pool.opened(dial_waiter, capacity=100)
    assert (second.state, pool.take_woken(), pool.counts) == (GRANTED, [second], (1, 0, 1, 0, 0))


def test_whoever_began_a_dial_and_queues_again_when_that_fails_counts_once() -> None:
    pool = Pool(max_connections=3)
    first = pool.ask()
    dial_waiter = pool.detach(first)
    second = pool.opened(pool.ask())
    pool.give_back(second)
    assert first.state is GRANTED
    pool.now = 1.0
    pool.replace(first)
    assert (first.state, pool.scheduler.queued, pool.scheduler.counts("a").queued) == (PARKED, 1, 1)
    pool.now = 3.0
    assert pool.scheduler.oldest_wait(pool.now) == 2.0
    pool.give_back(dial_waiter, reusable=False)
    assert first.state is DIALLING
    assert (pool.scheduler.queued, pool.scheduler.counts("a").queued) == (0, 0)


def test_whoever_waits_for_the_second_dial_it_began_does_not_queue_when_the_first_one_ends() -> None:
    pool = Pool(max_connections=2)
    first, second = pool.ask(), pool.opened(pool.ask())
    first_dial = pool.detach(first)
    third = pool.ask()
    assert states([first, third]) == [PARKED, PARKED]
    pool.give_back(second, reusable=False)
    assert states([first, third]) == [DIALLING, PARKED]
    pool.detach(first)
    pool.give_back(third)
    assert (first.state, pool.scheduler.queued) == (PARKED, 0)
    pool.give_back(first_dial, reusable=False)
    assert (first.state, pool.scheduler.queued, pool.scheduler.counts("a").queued) == (PARKED, 0, 0)


def test_a_detached_dial_serves_the_one_who_began_it_first() -> None:
    pool = Pool(max_connections=1)
    waiters = pool.ask_often(3)
    dial_waiter = pool.detach(waiters[0])
    pool.opened(dial_waiter)
    assert states(waiters) == [GRANTED, PARKED, PARKED]
    assert (pool.counts, pool.scheduler.requests) == ((1, 0, 1, 0, 2), 1)


@pytest.mark.parametrize("limits", [{"idle_seconds": 0}, {"max_age": 0, "age_jitter": 0}, {"max_idle": 0}])
def test_a_detached_dial_serves_somebody_though_the_connection_may_not_be_kept(
    limits: dict[str, float],
) -> None:
    pool = Pool(**limits)
    waiter = pool.ask()
    pool.opened(pool.detach(waiter))
    assert (waiter.state, pool.closes) == (GRANTED, [])


def test_who_dials_for_others_holds_nothing_when_the_connection_is_open() -> None:
    pool = Pool()
    first, second = pool.ask_often(2)
    dial_waiter = pool.detach(first)
    pool.opened(dial_waiter, capacity=100)
    assert pool.take_woken() == [first, second]
    for _ in range(2):
        assert (dial_waiter.state, dial_waiter.slot) == (DONE, None)
        assert dial_waiter not in pool.scheduler._waiters
        assert (slot_of(first).in_use, pool.scheduler.requests, pool.counts) == (2, 2, (1, 0, 1, 0, 0))
        pool.give_back(dial_waiter, reusable=False)
        assert pool.take_woken() == []


def test_a_thousand_requests_to_one_origin_have_no_more_connections_dialled_than_they_fill() -> None:
    pool = Pool()
    waiters = pool.ask_often(1000)
    dials = 0
    while diallers := [waiter for waiter in waiters if waiter.state is DIALLING]:
        for waiter in diallers:
            dial_waiter = pool.detach(waiter)
            dials += 1
            pool.opened(dial_waiter, capacity=100)
            assert pool.scheduler.total <= 10
            pool.give_back(dial_waiter)
    assert set(states(waiters)) == {GRANTED}
    assert (dials, pool.counts, pool.scheduler.requests) == (10, (10, 0, 10, 0, 0), 1000)
    assert {slot.in_use for slot in pool.scheduler.slots()} == {100}


@pytest.mark.parametrize("capacity", [1, 2, 5])
def test_a_detached_dial_serves_as_many_as_the_connection_can_carry(capacity: int) -> None:
    pool = Pool(max_connections=1)
    waiters = pool.ask_often(5)
    pool.opened(pool.detach(waiters[0]), capacity=capacity)
    assert states(waiters) == [GRANTED] * capacity + [PARKED] * (5 - capacity)
    assert pool.take_woken() == waiters[:capacity]


def test_a_detached_dial_serves_its_own_though_somebody_of_another_origin_came_first() -> None:
    pool = Pool(max_connections=1)
    opener = pool.ask("a")
    older = pool.ask("b")
    dial_waiter = pool.detach(opener)
    pool.give_back(opener)  # whose place another one takes that came later
    younger = pool.ask("a")
    pool.opened(dial_waiter)
    assert (states([younger, older]), pool.closes) == ([GRANTED, PARKED], [])


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"idle_seconds": 0}, CloseReason.EXPIRED),
        ({"max_age": 0, "age_jitter": 0}, CloseReason.TOO_OLD),
        ({"max_idle": 0}, CloseReason.SURPLUS),
        ({"max_connections": 1}, CloseReason.EVICTED),
        ({"idle_seconds": 5}, None),
    ],
)
def test_a_connection_that_was_dialled_for_nobody_idles_as_far_as_it_may(
    limits: dict[str, float], reason: CloseReason | None
) -> None:
    pool = Pool(**limits)
    first = pool.ask()
    dial_waiter = pool.detach(first)
    slot = slot_of(dial_waiter)
    pool.give_back(first)
    if reason is CloseReason.EVICTED:
        pool.ask("b")
    pool.opened(dial_waiter)
    if reason is None:
        assert pool.counts == (1, 0, 0, 1, 0)
        pool.now = 4.999
        pool.expire()
        assert pool.closes == []
        pool.now, reason = 5, CloseReason.EXPIRED
        pool.expire()
    assert (dial_waiter.state, pool.closes) == (DONE, [(slot, reason)])


def test_a_detached_dial_is_given_up_when_nobody_waits_any_more() -> None:
    pool = Pool()
    first, second = pool.ask_often(2)
    dial_waiter = pool.detach(first)
    slot = slot_of(dial_waiter)
    pool.give_back(second)
    assert pool.given_up == []
    pool.give_back(first)
    assert pool.given_up == [slot]
    newcomer = pool.ask(expected=100)
    assert newcomer.state is DIALLING  # and waits for nothing that will not come
    pool.give_back(dial_waiter)
    assert pool.counts == (1, 1, 0, 0, 0)
    assert pool.ask().state is PARKED


def test_a_dial_that_was_given_up_and_succeeds_is_a_connection_like_any() -> None:
    pool = Pool()
    first = pool.ask()
    dial_waiter = pool.detach(first)
    pool.give_back(first)
    pool.opened(dial_waiter)
    assert pool.counts == (1, 0, 0, 1, 0)
    assert pool.ask().state is GRANTED


@pytest.mark.parametrize("failed", [True, False])
def test_when_a_detached_dial_ends_without_a_connection_those_who_wait_dial(failed: bool) -> None:
    pool = Pool()
    waiters = pool.ask_often(3)
    pool.give_back(pool.detach(waiters[0]), reusable=not failed)
    assert states(waiters) == ([DIALLING] * 3 if failed else [DIALLING, PARKED, PARKED])


def test_who_detaches_his_dial_takes_what_became_free_meanwhile() -> None:
    pool = Pool()
    holder, waiter = pool.connect(), pool.ask()
    slot = slot_of(holder)
    pool.give_back(holder)
    dial_waiter = pool.detach(waiter)
    assert (waiter.state, waiter.slot, pool.woken) == (GRANTED, slot, [])
    pool.opened(dial_waiter)
    assert pool.counts == (2, 0, 1, 1, 0)


def test_after_the_pool_was_closed_who_detaches_his_dial_is_refused() -> None:
    pool = Pool()
    waiter = pool.ask()
    pool.close()
    dial_waiter = pool.detach(waiter)
    assert states([waiter, dial_waiter]) == [REFUSED, DIALLING]
    pool.opened(dial_waiter)
    assert (dial_waiter.state, pool.scheduler.total) == (REFUSED, 0)


# --- connections that take no more ---------------------------------------------------------------------------------


def test_a_retired_connection_is_closed_when_it_carries_nothing() -> None:
    pool = Pool()
    first = pool.connect(capacity=3)
    second, slot = pool.ask(), slot_of(first)
    assert second.slot is slot
    pool.retire(slot)
    assert pool.ask().slot is not slot
    pool.give_back(first)
    assert pool.closes == []
    pool.give_back(second)
    assert pool.closes == [(slot, CloseReason.RETIRED)]
    pool.retire(slot)
    pool.closed(slot)
    pool.retire(slot)
    assert pool.closes == [(slot, CloseReason.RETIRED)]


def test_an_idle_connection_that_is_retired_is_closed_at_once() -> None:
    pool = Pool()
    waiter = pool.connect()
    slot = slot_of(waiter)
    pool.give_back(waiter)
    pool.retire(slot)
    assert pool.closes == [(slot, CloseReason.RETIRED)]
    assert pool.ask().state is DIALLING


def test_a_request_that_a_retired_connection_did_not_serve_goes_before_all_others() -> None:
    pool = Pool(max_connections=2)
    holder, first = pool.ask(), pool.ask()
    pool.opened(first, capacity=2)
    pool.opened(holder)
    second, third = pool.ask(), pool.ask()
    assert (second.slot, third.state) == (first.slot, PARKED)
    pool.retire(slot_of(second))
    pool.renew(second)
    assert second.state is PARKED
    pool.give_back(holder)
    assert states([second, third]) == [GRANTED, PARKED]


def test_a_hundred_requests_that_ask_again_share_one_new_connection() -> None:
    pool = Pool(max_connections=10)
    waiters = pool.ask_often(100)
    pool.opened(waiters[0], capacity=100)
    slot = slot_of(waiters[0])
    pool.retire(slot)
    for waiter in waiters:
        pool.renew(waiter)
    assert pool.closes == [(slot, CloseReason.RETIRED)]
    assert states(waiters) == [DIALLING] + [PARKED] * 99


def test_a_request_that_asks_again_gets_another_connection_before_the_same() -> None:
    pool = Pool()
    first, second = pool.ask(), pool.ask()
    pool.opened(first, capacity=2)
    pool.opened(second, capacity=2)
    one, two = slot_of(first), slot_of(second)
    pool.renew(first)
    assert (first.slot, pool.counts) == (two, (2, 0, 1, 1, 0))
    pool.retire(one)
    pool.renew(first)
    assert first.slot is two


def test_a_request_that_asks_again_leaves_its_place_to_others() -> None:
    pool = Pool(max_connections=2)
    first = pool.ask(expected=100)
    pool.opened(first, capacity=2)
    second, waiting = pool.ask(), pool.ask()
    assert waiting.state is DIALLING
    pool.opened(waiting, capacity=2)
    third = pool.ask()
    late = pool.ask("b")
    pool.give_back(second)
    assert third.slot is waiting.slot
    pool.renew(third)  # to the connection of the first
    pool.give_back(waiting)
    assert third.slot is first.slot
    assert [reason for _, reason in pool.closes] == [CloseReason.EVICTED]
    pool.closed(pool.closes[0][0])
    assert late.state is DIALLING


def test_a_request_whose_server_allows_nothing_waits_before_all_others() -> None:
    pool = Pool(max_connections=5)
    first = pool.ask(expected=100)
    pool.opened(first, capacity=100)
    slot = slot_of(first)
    pool.resize(slot, 0)
    later = pool.ask()
    pool.renew(first)
    assert (states([first, later]), slot.in_use, pool.closes) == ([PARKED, PARKED], 0, [])
    pool.resize(slot, 1)
    assert (pool.take_woken()[0], slot.in_use) == (first, 1)


def test_after_the_pool_was_closed_nobody_asks_again() -> None:
    pool = Pool()
    waiter = pool.connect()
    pool.close()
    pool.renew(waiter)
    assert (waiter.state, waiter.slot) == (REFUSED, None)


# --- closing -----------------------------------------------------------------------------------------------------


def test_close_wakes_all_who_wait_and_closes_all_that_is_open() -> None:
    pool = Pool(max_connections=3, max_connections_per_origin=2)
    active, idler, dialler = pool.connect("a"), pool.connect("b"), pool.ask("c")
    slots = [slot_of(active), slot_of(idler)]
    pool.give_back(idler)
    waiting = [pool.ask(key) for key in "caccdb"]
    evicted = pool.take_closes()
    pool.close()
    assert sorted(map(id, pool.woken)) == sorted(map(id, waiting))
    assert set(states(waiting)) == {REFUSED}
    assert evicted == [(slots[1], CloseReason.EVICTED)]
    assert pool.closes == [(slots[0], CloseReason.POOL_CLOSED)]
    assert dialler.state is DIALLING


def test_close_twice_is_close_once() -> None:
    pool = Pool()
    waiter = pool.connect()
    pool.close()
    pool.take_closes()
    pool.close()
    assert pool.closes == []
    slot = slot_of(waiter)
    pool.closed(slot)
    pool.give_back(waiter)
    assert pool.counts == (0, 0, 0, 0, 0)


def test_a_closed_pool_refuses_requests_and_opens_nothing() -> None:
    pool = Pool()
    pool.close()
    waiter = pool.ask()
    assert (waiter.state, waiter.slot, pool.counts) == (REFUSED, None, (0, 0, 0, 0, 0))
    assert pool.scheduler._origins == {}


def test_a_connection_that_opens_after_the_close_is_refused() -> None:
    pool = Pool()
    dialler = pool.ask()
    pool.close()
    assert pool.closes == []
    pool.opened(dialler)
    assert (dialler.state, dialler.slot, pool.counts) == (REFUSED, None, (0, 0, 0, 0, 0))


def test_a_connection_given_back_after_the_close_is_not_offered() -> None:
    pool = Pool()
    waiter = pool.connect()
    pool.close()
    pool.take_closes()
    pool.give_back(waiter)
    assert (pool.scheduler.idle, pool.scheduler.active, pool.scheduler.total) == (0, 0, 1)


# --- books ----------------------------------------------------------------------------------------------------------


def test_the_counts_tell_every_state_apart() -> None:
    pool = Pool(max_connections=4)
    assert pool.counts == (0, 0, 0, 0, 0)
    first = pool.ask()
    assert pool.counts == (1, 1, 0, 0, 0)
    pool.opened(first, capacity=2)
    assert pool.counts == (1, 0, 1, 0, 0)
    second = pool.ask()
    assert pool.counts == (1, 0, 1, 0, 0)
    pool.ask("b")
    pool.connect("c")
    idler = pool.connect("d")
    assert pool.counts == (4, 1, 3, 0, 0)
    pool.give_back(idler)
    assert pool.counts == (4, 1, 2, 1, 0)
    pool.ask("e")
    assert pool.counts == (4, 1, 2, 0, 1)
    for waiter in (first, second):
        pool.give_back(waiter)
    assert pool.counts == (4, 1, 1, 1, 1)


def test_ten_thousand_origins_leave_no_record() -> None:
    pool = Pool(max_connections=10, max_connections_per_origin=2, max_idle=5)
    for i in range(10_000):
        waiter = pool.ask(i)
        for slot, _ in pool.take_closes():
            pool.closed(slot)
        assert waiter.state is DIALLING
        if i % 3:
            pool.opened(waiter)
        pool.give_back(waiter, reusable=i % 2 == 0)
        assert len(pool.scheduler._origins) <= 10
    pool.close()
    for slot in pool.scheduler.slots():
        pool.closed(slot)
    s = pool.scheduler
    assert [len(x) for x in (s._origins, s._slots, s._waiters, s._idle, s._queue, s._promised)] == [0] * 6


def test_cancelled_requests_leave_no_record() -> None:
    pool = Pool(max_connections=1)
    holder = pool.connect("a")
    for waiter in [pool.ask(i % 100) for i in range(1000)]:
        pool.give_back(waiter)
    assert set(pool.scheduler._origins) == {"a"}
    pool.give_back(holder, reusable=False)
    assert pool.scheduler._origins == {}


def test_a_contradiction_is_not_passed_over() -> None:
    pool = Pool()
    waiter = pool.ask()
    with pytest.raises(AssertionError, match="must be new for this, not dialling"):
        pool.scheduler.acquire(waiter, 0)
    with pytest.raises(AssertionError, match="must be granted for this, not dialling"):
        pool.scheduler.replace(waiter, 0, fresh=False)
    dialler = Waiter("a")
    pool.scheduler.detach(waiter, dialler, 0)
    with pytest.raises(AssertionError, match="detached only once"):
        pool.scheduler.detach(dialler, Waiter("a"), 0)
    pool.opened(dialler)
    with pytest.raises(AssertionError, match="must be dialling for this, not granted"):
        pool.scheduler.opened(waiter, object(), 0)
    with pytest.raises(AssertionError, match="must be dialling for this, not done"):
        pool.scheduler.opened(dialler, object(), 0)


def test_close_actions_name_a_slot_that_is_closing() -> None:
    pool = Pool(idle_seconds=0)
    waiter = pool.connect()
    actions = pool.scheduler.release(waiter, 0, reusable=True)
    assert [type(action) for action in actions] == [Close]
    assert [action.slot.state for action in actions if isinstance(action, Close)] == [SlotState.CLOSING]
