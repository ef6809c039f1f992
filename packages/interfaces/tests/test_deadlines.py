"""Deadlines and limits: arithmetic, against tables and a simple oracle, on a clock that only tests move."""

import contextvars
import itertools
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interfaces_clock import VirtualClock
from lamina_interfaces import (
    GLANCE_SECONDS,
    NEVER,
    NO_LIMIT,
    ArgumentTypeError,
    ArgumentValueError,
    ConnectTimeout,
    Deadline,
    DeadlineExceeded,
    Limit,
    Phase,
    PoolTimeout,
    ReadTimeout,
    TimeoutException,
    WriteTimeout,
    chain_clock,
    check_seconds,
    close_deadline,
    current_deadline,
    enter_deadline,
    open_deadline,
    start_limit,
)

times = st.floats(min_value=0, max_value=1e9)
limits = st.none() | st.just(NEVER) | times


@pytest.fixture(autouse=True)
def no_deadline_is_left() -> Iterator[None]:
    assert current_deadline() is None
    yield
    left = current_deadline()
    while (deadline := current_deadline()) is not None:  # or the next test would fail as well
        close_deadline(deadline)
    assert left is None


# --- numbers of seconds ------------------------------------------------------------------------------------

BAD_SECONDS: list[tuple[object, type[Exception], str]] = [
    (-1, ArgumentValueError, "must not be negative or NaN, got -1"),
    (-1e-300, ArgumentValueError, "must not be negative"),
    (-math.inf, ArgumentValueError, "must not be negative"),
    (-(10**400), ArgumentValueError, "must not be negative"),
    (math.nan, ArgumentValueError, "NaN, got nan"),
    (True, ArgumentTypeError, "not bool"),
    (False, ArgumentTypeError, "not bool"),
    ("3", ArgumentTypeError, "not str"),
    (b"3", ArgumentTypeError, "not bytes"),
    (3j, ArgumentTypeError, "not complex"),
    (Decimal(3), ArgumentTypeError, "not Decimal"),
    ((3.0,), ArgumentTypeError, "not tuple"),
]


@pytest.mark.parametrize(
    ("seconds", "checked"),
    [
        (None, NEVER),
        (math.inf, NEVER),
        (0, 0.0),
        (0.0, 0.0),
        (-0.0, 0.0),
        (3, 3.0),
        (0.25, 0.25),
        (5e-324, 5e-324),
        (10**400, NEVER),  # more than a float can hold, and longer than anybody waits
    ],
    ids=lambda value: repr(value)[:20],
)
def test_seconds_become_a_float(seconds: float | None, checked: float) -> None:
    assert check_seconds(seconds) == checked
    assert type(check_seconds(seconds)) is float


@pytest.mark.parametrize(("seconds", "error", "text"), BAD_SECONDS, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize(
    "take",
    [
        check_seconds,
        lambda seconds: Deadline(seconds, VirtualClock()),
        lambda seconds: open_deadline(seconds, VirtualClock()),
        lambda seconds: Deadline(1.0, VirtualClock()).reschedule(seconds),
        lambda seconds: Limit(seconds, VirtualClock(), "read"),
        lambda seconds: start_limit(seconds, VirtualClock(), "read"),
    ],
    ids=["check_seconds", "Deadline", "open_deadline", "reschedule", "Limit", "start_limit"],
)
def test_what_is_no_number_of_seconds_is_refused(
    take: Callable[[object], object], seconds: object, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        take(seconds)
    assert current_deadline() is None


def test_the_error_names_the_argument() -> None:
    with pytest.raises(ArgumentValueError, match="keepalive_expiry must not be negative"):
        check_seconds(-1, "keepalive_expiry")


# --- one deadline ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "now", "remaining", "expired"),
    [
        (3.0, 10.0, 3.0, False),
        (3.0, 12.5, 0.5, False),
        (3.0, 13.0, 0.0, True),
        (3.0, 99.0, 0.0, True),
        (0, 10.0, 0.0, True),
        (None, 1e12, NEVER, False),
        (NEVER, 1e12, NEVER, False),
    ],
)
def test_a_deadline_ends_exactly_when_its_seconds_are_over(
    seconds: float | None, now: float, remaining: float, expired: bool
) -> None:
    clock = VirtualClock(10.0)
    deadline = Deadline(seconds, clock)
    clock.now = now
    assert deadline.remaining() == remaining
    assert deadline.expired() is expired


def test_a_cancelled_deadline_never_ends() -> None:
    clock = VirtualClock(10.0)
    deadline = Deadline(3.0, clock)
    deadline.cancel()
    clock.now = 1e12
    assert (deadline.limit, deadline.remaining(), deadline.expired()) == (NEVER, NEVER, False)


def test_a_rescheduled_deadline_ends_that_many_seconds_from_now() -> None:
    clock = VirtualClock(10.0)
    deadline = Deadline(3.0, clock)
    clock.now = 12.0
    deadline.reschedule(5.0)
    assert (deadline.expires_at, deadline.limit) == (17.0, 7.0)
    clock.now = 12.5
    deadline.reschedule(None)
    assert (deadline.expires_at, deadline.limit) == (NEVER, NEVER)
    clock.now = 13.0
    deadline.reschedule(0)
    assert deadline.expired()


@pytest.mark.parametrize("change", [Deadline.cancel, lambda deadline: deadline.reschedule(60.0)])
def test_a_deadline_that_is_changed_after_it_passed_still_says_which_limit_that_was(
    change: Callable[[Deadline], None],
) -> None:
    """Its scope had cancelled the task by then, and the block raises the error later."""
    clock = VirtualClock()
    deadline = Deadline(3.0, clock)
    clock.now = 3.5
    change(deadline)
    assert deadline.exceeded().limit == 3.0
    deadline.reschedule(1.0)
    clock.now = 9.0
    assert deadline.exceeded().limit == 4.5, "the new limit has passed as well"


def test_whoever_is_interested_is_told_of_changes() -> None:
    clock = VirtualClock()
    deadline = Deadline(3.0, clock)
    seen: list[float] = []
    deadline.on_change = lambda: seen.append(deadline.expires_at)
    deadline.reschedule(5.0)
    deadline.cancel()
    deadline.end()
    deadline.reschedule(1.0)
    deadline.cancel()
    assert seen == [5.0, NEVER]
    assert deadline.expires_at == NEVER


def test_a_deadline_that_ends_while_another_thread_changes_it_has_ended() -> None:
    clock = VirtualClock()
    deadline = Deadline(3.0, clock)
    looks = 0

    def ends_meanwhile() -> float:
        nonlocal looks
        looks += 1
        if looks == 2:
            deadline.clock = clock
            deadline.end()
        return 1.0

    deadline.clock = ends_meanwhile
    deadline.reschedule(5.0)
    assert (looks, deadline.ended, deadline.expires_at) == (2, True, NEVER)


@given(opened_at=times, later=times, seconds=times)
def test_rescheduling_adds_no_rounding_of_its_own(opened_at: float, later: float, seconds: float) -> None:
    clock = VirtualClock(opened_at)
    deadline = Deadline(1.0, clock)
    clock.now = opened_at + later
    deadline.reschedule(seconds)
    assert deadline.expires_at == opened_at + later + seconds


def test_the_error_of_a_deadline_tells_its_circumstances() -> None:
    clock = VirtualClock(10.0)
    deadline = Deadline(3.0, clock)
    clock.now = 13.5
    error = deadline.exceeded("tls")
    assert isinstance(error, TimeoutError)
    assert (error.deadline, error.phase, error.elapsed, error.limit) == (deadline, "tls", 3.5, 3.0)
    assert str(error) == "the deadline has passed (phase tls, 3.500 s of 3 s)"
    assert deadline.exceeded().phase is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.0, "<Deadline [3 s]>"), (0.25, "<Deadline [0.25 s]>"), (None, "<Deadline [no limit]>")],
)
def test_repr_shows_the_limit(seconds: float | None, text: str) -> None:
    assert repr(Deadline(seconds, VirtualClock())) == text


# --- nested deadlines --------------------------------------------------------------------------------------


@given(blocks=st.lists(limits, min_size=1, max_size=6), now=times)
def test_the_soonest_of_nested_deadlines_counts_and_of_equals_the_outermost(
    blocks: list[float | None], now: float
) -> None:
    clock = VirtualClock(now)
    chain: list[Deadline] = []
    for seconds in blocks:
        chain.append(Deadline(seconds, clock, chain[-1] if chain else None))
    ends = [deadline.expires_at for deadline in chain]
    assert chain[-1].soonest() is chain[ends.index(min(ends))]


def test_deadlines_open_and_close_like_brackets() -> None:
    outer = open_deadline(3.0, VirtualClock())
    inner = open_deadline(1.0, VirtualClock())
    assert (current_deadline(), inner.outer, outer.outer) == (inner, outer, None)
    close_deadline(inner)
    assert current_deadline() is outer
    close_deadline(outer)
    assert current_deadline() is None


def test_a_deadline_that_is_closed_before_an_inner_one_only_takes_out_itself() -> None:
    outer, middle, inner = (open_deadline(seconds, VirtualClock()) for seconds in (3.0, 1.0, 2.0))
    close_deadline(middle)
    assert current_deadline() is inner
    assert inner.outer is outer
    assert inner.soonest() is inner
    close_deadline(inner)
    assert current_deadline() is outer
    close_deadline(outer)


def test_a_deadline_that_is_closed_elsewhere_stops_counting_and_leaves_that_place_alone() -> None:
    here = open_deadline(1.0, VirtualClock())

    def elsewhere() -> bool:
        theirs = open_deadline(5.0, VirtualClock())
        close_deadline(here)
        return current_deadline() is theirs

    assert contextvars.Context().run(elsewhere)
    assert here.remaining() == NEVER
    assert current_deadline() is None
    later = open_deadline(1.0, VirtualClock())
    assert later.outer is None, "it does not stay in the chain"
    close_deadline(later)


def test_a_block_that_has_ended_bounds_no_work_in_a_copied_context() -> None:
    """`asyncio.to_thread` copies the context, and the work may outlive the block."""
    clock = VirtualClock()
    outer = open_deadline(None, clock)
    deadline = open_deadline(1.0, clock)
    copy = contextvars.copy_context()
    clock.now = 0.5
    limit = copy.run(Limit, None, clock, "read")
    assert limit.remaining() == 0.5
    close_deadline(deadline)
    deadline.reschedule(1.0)
    assert limit.remaining() is None
    assert copy.run(current_deadline) is outer
    close_deadline(outer)


def test_what_is_under_way_elsewhere_when_the_deadline_passes_ends_even_if_the_block_ended_first() -> None:
    """The block's task is cancelled at that moment, and leaves; a worker thread looks a little later."""
    clock = VirtualClock()
    deadline = open_deadline(1.0, clock)
    copy = contextvars.copy_context()
    limit = copy.run(Limit, None, clock, "read")
    inner = copy.run(open_deadline, 9.0, clock)
    clock.now = 1.0
    close_deadline(deadline)
    clock.now = 1.25
    assert limit.expired()
    error = limit.error()
    assert isinstance(error, DeadlineExceeded)
    assert (error.deadline, error.elapsed, error.limit) == (deadline, 1.25, 1.0)
    assert copy.run(Limit, None, clock, "read").expired(), "a block was under way"
    copy.run(close_deadline, inner)
    assert copy.run(Limit, None, clock, "read").remaining() is None, "what begins now is free"
    assert Limit(None, clock, "read").remaining() is None
    deadline.reschedule(5.0)
    assert limit.expired()


def test_a_deadline_that_its_owner_holds_already_is_opened_inside_the_others() -> None:
    """An interrupt may come before the result of `open_deadline` has arrived anywhere."""
    clock = VirtualClock()
    outer = open_deadline(3.0, clock)
    deadline = Deadline(1.0, clock)
    enter_deadline(deadline)
    assert (current_deadline(), deadline.outer) == (deadline, outer)
    close_deadline(deadline)
    assert current_deadline() is outer
    close_deadline(outer)


def test_a_chain_has_one_clock_the_outermost_ones() -> None:
    """trio counts from another start than threads, and hands its context to threads."""
    trios, ours = VirtualClock(1e6), VirtualClock(5.0)
    assert chain_clock(ours) is ours
    outer = open_deadline(3.0, trios)
    assert chain_clock(ours) is trios
    inner = open_deadline(1.0, ours)
    assert (inner.clock, inner.expires_at) == (trios, 1e6 + 1.0)
    limit = Limit(0.5, ours, "read")
    assert limit.remaining() == 0.5
    trios.sleep(0.75)
    assert limit.expired()
    error = limit.error()
    assert (type(error), error.elapsed) == (ReadTimeout, 0.75)
    close_deadline(inner)
    close_deadline(outer)


def test_a_shield_keeps_the_deadlines_around_it_out() -> None:
    clock = VirtualClock()
    outer = open_deadline(1.0, clock)
    shield = open_deadline(5.0, clock)
    shield.shields = True
    inner = open_deadline(9.0, clock)
    limit = Limit(None, clock, "close")
    assert limit.remaining() == 5.0
    assert inner.soonest() is shield
    close_deadline(shield)
    assert limit.remaining() == 1.0
    close_deadline(inner)
    close_deadline(outer)


def test_the_message_of_a_limit_reaches_the_error_of_a_deadline() -> None:
    clock = VirtualClock()
    deadline = open_deadline(1.0, clock)
    limit = Limit(None, clock, "dns")
    clock.now = 2.0
    assert limit.error("looking up x took too long").message == "looking up x took too long"
    close_deadline(deadline)


def test_closing_twice_does_no_harm() -> None:
    outer = open_deadline(3.0, VirtualClock())
    inner = open_deadline(1.0, VirtualClock())
    close_deadline(inner)
    close_deadline(inner)
    assert current_deadline() is outer
    close_deadline(outer)


def test_threads_do_not_see_each_others_deadlines() -> None:
    seen: list[list[Deadline | None]] = []
    opened = threading.Barrier(3)

    def work(seconds: float) -> None:
        before = current_deadline()
        mine = open_deadline(seconds, VirtualClock())
        opened.wait(10)  # now each thread has one open
        seen.append([before, mine.outer, None if current_deadline() is mine else mine])
        close_deadline(mine)

    ours = open_deadline(3.0, VirtualClock())
    threads = [threading.Thread(target=work, args=(seconds,)) for seconds in (1.0, 2.0)]
    for thread in threads:
        thread.start()
    opened.wait(10)
    assert current_deadline() is ours
    for thread in threads:
        thread.join(10)
    close_deadline(ours)
    assert seen == [[None, None, None]] * 2


# --- the limit of one operation ----------------------------------------------------------------------------

ERROR_OF_PHASE: dict[Phase, type[TimeoutException]] = {
    "pool": PoolTimeout,
    "dns": ConnectTimeout,
    "connect": ConnectTimeout,
    "tls": ConnectTimeout,
    "proxy": ConnectTimeout,
    "write": WriteTimeout,
    "read": ReadTimeout,
    "close": WriteTimeout,
}


def test_the_table_of_errors_has_every_phase() -> None:
    assert set(ERROR_OF_PHASE) == set(get_args(Phase))


@pytest.mark.parametrize(("phase", "error"), ERROR_OF_PHASE.items())
def test_a_time_out_gives_the_error_of_its_phase(phase: Phase, error: type[TimeoutException]) -> None:
    clock = VirtualClock(100.0)
    limit = Limit(2.0, clock, phase)
    clock.sleep(2.5)
    caught = limit.error()
    assert type(caught) is error
    assert (caught.phase, caught.elapsed, caught.limit) == (phase, 2.5, 2.0)
    assert caught.message == error.default_message
    assert limit.error("the peer is asleep").message == "the peer is asleep"


@pytest.mark.parametrize("phase", ERROR_OF_PHASE)
def test_an_ambient_deadline_gives_deadline_exceeded_in_every_phase(phase: Phase) -> None:
    clock = VirtualClock(100.0)
    deadline = open_deadline(1.0, clock)
    clock.sleep(0.25)
    limit = Limit(2.0, clock, phase)
    clock.sleep(0.75)
    caught = limit.error()
    close_deadline(deadline)
    assert isinstance(caught, DeadlineExceeded)
    assert (caught.deadline, caught.phase, caught.elapsed, caught.limit) == (deadline, phase, 1.0, 1.0)


def test_the_phase_may_change_on_the_way() -> None:
    clock = VirtualClock()
    limit = Limit(1.0, clock, "dns")
    limit.phase = "tls"
    clock.sleep(1.0)
    assert limit.error().phase == "tls"


def test_a_limit_is_exact_on_its_clock() -> None:
    clock = VirtualClock(100.0)
    limit = Limit(2.0, clock, "read")
    assert limit.remaining() == 2.0
    clock.now = math.nextafter(102.0, 0)
    assert not limit.expired()
    limit.check()
    clock.now = 102.0
    assert limit.remaining() == 0.0
    assert limit.expired()
    with pytest.raises(ReadTimeout):
        limit.check()
    clock.now = 1e9
    assert limit.remaining() == 0.0


@pytest.mark.parametrize("timeout", [0, 0.0, -0.0])
def test_a_limit_of_nothing_has_passed_at_once(timeout: float) -> None:
    with pytest.raises(WriteTimeout):
        Limit(timeout, VirtualClock(5.0), "write").check()


@pytest.mark.parametrize("timeout", [None, NEVER])
def test_no_limit_is_none_whatever_the_time(timeout: float | None) -> None:
    clock = VirtualClock()
    limit = Limit(timeout, clock, "read")
    clock.sleep(1e12)
    assert limit.remaining() is None
    assert not limit.expired()
    limit.check()


def test_an_operation_without_limits_never_reads_the_clock() -> None:
    clock = VirtualClock()
    limit = Limit(None, clock, "read")
    for _ in range(3):
        limit.remaining()
        limit.expired()
        limit.check()
    assert clock.readings == 0


@pytest.mark.parametrize("phase", get_args(Phase))
def test_operations_that_nothing_bounds_share_a_limit_that_nobody_can_change(phase: Phase) -> None:
    clock = VirtualClock()
    limit = start_limit(None, clock, phase)
    assert start_limit(None, VirtualClock(3.0), phase) is limit is NO_LIMIT[phase]
    assert limit.phase == phase
    for name in Limit.__slots__:
        with pytest.raises(AttributeError, match=f"its {name} cannot be set"):
            setattr(limit, name, getattr(limit, name))
    with pytest.raises(AttributeError):
        limit.something = 1  # type: ignore[attr-defined] # a mistake
    limit.check()
    limit.interrupted()
    assert (limit.remaining(), limit.glance(), limit.expired(), limit.is_ambient) == (
        None,
        None,
        False,
        False,
    )


def test_an_operation_that_something_bounds_starts_with_a_limit_of_its_own() -> None:
    clock = VirtualClock(5.0)
    limit = start_limit(2.0, clock, "read")
    assert limit is not start_limit(2.0, clock, "read")
    limit.phase = "write"
    clock.now += 1.5
    assert limit.remaining() == 0.5
    assert start_limit(math.inf, clock, "read").remaining() is None
    deadline = open_deadline(1.0, clock)
    assert start_limit(None, clock, "read").remaining() == 1.0
    assert start_limit(0.25, clock, "read").remaining() == 0.25
    close_deadline(deadline)
    assert start_limit(None, clock, "read") is start_limit(None, clock, "read")


def test_an_operation_does_not_start_when_nothing_remains() -> None:
    clock = VirtualClock(5.0)
    with pytest.raises(WriteTimeout):
        start_limit(0, clock, "write")
    deadline = open_deadline(1.0, clock)
    clock.now += 1.0
    with pytest.raises(DeadlineExceeded) as caught:
        start_limit(None, clock, "read")
    assert caught.value.deadline is deadline
    assert caught.value.phase == "read"
    close_deadline(deadline)


def test_a_limit_says_whether_a_deadline_is_part_of_it() -> None:
    clock = VirtualClock()
    assert not Limit(3.0, clock, "read").is_ambient
    deadline = open_deadline(None, clock)  # without limit now; it may be given one during the wait
    assert Limit(3.0, clock, "read").is_ambient
    assert Limit(None, clock, "read").is_ambient
    close_deadline(deadline)


def test_a_limit_keeps_to_the_deadlines_of_the_place_where_it_was_made() -> None:
    clock = VirtualClock()
    before = Limit(None, clock, "read")
    deadline = open_deadline(1.0, clock)
    within = Limit(None, clock, "read")
    assert (before.remaining(), within.remaining()) == (None, 1.0)
    close_deadline(deadline)
    assert (before.remaining(), within.remaining()) == (None, None), "a block that has ended bounds nothing"


@pytest.mark.parametrize(
    ("timeout", "deadline", "glance"),
    [
        (None, "none open", None),
        (60.0, "none open", 60.0),
        (0, "none open", 0.0),
        (None, None, GLANCE_SECONDS),  # without limit now; it may be given one during the wait
        (60.0, None, GLANCE_SECONDS),
        (None, 60.0, GLANCE_SECONDS),
        (0.125, 60.0, 0.125),
        (60.0, 0.125, 0.125),
        (60.0, 0, 0.0),
    ],
)
def test_a_wait_looks_again_often_enough_to_see_a_deadline_that_somebody_else_changes(
    timeout: float | None, deadline: float | str | None, glance: float | None
) -> None:
    clock = VirtualClock()
    ambient = None if isinstance(deadline, str) else open_deadline(deadline, clock)
    limit = Limit(timeout, clock, "read")
    assert limit.glance() == glance
    if ambient is not None:
        close_deadline(ambient)


def test_a_wait_that_is_cancelled_leaves_what_it_knows_with_the_deadline_that_has_passed() -> None:
    clock = VirtualClock()
    outer = open_deadline(1.0, clock)
    inner = open_deadline(3.0, clock)
    limit = Limit(None, clock, "tls")
    limit.interrupted()
    assert (outer.interruption, inner.interruption) == (None, None), "it was cancelled by somebody else"
    clock.now = 1.5
    limit.interrupted()
    first = outer.interruption
    assert first is not None
    assert (first.deadline, first.phase, first.elapsed, first.limit) == (outer, "tls", 1.5, 1.0)
    Limit(None, clock, "read").interrupted()
    assert outer.interruption is first, "the first to be cancelled is the innermost, and knows best"
    assert inner.interruption is None
    close_deadline(inner)
    close_deadline(outer)
    assert outer.interruption is None, "which refers to its deadline in turn"


def test_a_wait_may_leave_an_error_of_its_own_making() -> None:
    clock = VirtualClock()
    deadline = open_deadline(1.0, clock)
    limit = Limit(0.5, clock, "connect")
    clock.now = 1.0
    limit.interrupted()
    assert deadline.interruption is None, "its own time-out came sooner, and is nothing that the block raises"
    error = deadline.exceeded("dns")
    limit.interrupted(error)
    assert deadline.interruption is error
    close_deadline(deadline)
    Limit(None, clock, "read").interrupted()


@dataclass
class Block:
    """What the oracle knows of one open block."""

    deadline: Deadline
    ends: float


changes = st.tuples(st.integers(0, 9), st.just("cancel") | limits)


@given(
    start=times,
    blocks=st.lists(st.tuples(times, limits), max_size=4),
    timeout=limits,
    steps=st.lists(st.tuples(times, st.none() | changes), max_size=6),
)
def test_a_limit_is_the_smaller_of_its_time_out_and_every_deadline_around_it(
    start: float,
    blocks: list[tuple[float, float | None]],
    timeout: float | None,
    steps: list[tuple[float, tuple[int, str | float | None] | None]],
) -> None:
    clock = VirtualClock(start)
    opened: list[Block] = []
    for pause, seconds in blocks:
        clock.sleep(pause)
        deadline = open_deadline(seconds, clock)
        opened.append(Block(deadline, clock.now + (NEVER if seconds is None else seconds)))
    try:
        limit = Limit(timeout, clock, "read")
        own_end = clock.now + (NEVER if timeout is None else timeout)
        for pause, change in itertools.chain([(0.0, None)], steps):
            clock.sleep(pause)
            if change is not None and opened:
                which, what = change
                block = opened[which % len(opened)]
                if what == "cancel":
                    block.deadline.cancel()
                    block.ends = NEVER
                else:
                    assert not isinstance(what, str)
                    block.deadline.reschedule(what)
                    block.ends = clock.now + (NEVER if what is None else what)

            ambient_end = min((block.ends for block in opened), default=NEVER)
            end = min(own_end, ambient_end)
            assert limit.remaining() == (None if end == NEVER else max(0.0, end - clock.now))
            assert limit.expired() is (clock.now >= end)
            if not limit.expired():
                limit.check()
                continue
            with pytest.raises(TimeoutException) as caught:
                limit.check()
            if ambient_end <= own_end:
                assert isinstance(caught.value, DeadlineExceeded)
                assert caught.value.deadline is next(b.deadline for b in opened if b.ends == ambient_end)
            else:
                assert type(caught.value) is ReadTimeout
                assert caught.value.limit == timeout
    finally:
        for block in reversed(opened):
            close_deadline(block.deadline)
