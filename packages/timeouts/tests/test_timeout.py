"""`timeout` in threads, on a clock that only tests move, and once on the real one."""

import itertools
import pickle
import queue
import sys
import threading
from collections.abc import Callable, Generator, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import (
    NEVER,
    THREADS,
    ArgumentTypeError,
    ArgumentValueError,
    ConnectTimeout,
    Deadline,
    DeadlineExceeded,
    LaminaError,
    Limit,
    Phase,
    ReadTimeout,
    close_deadline,
    current_deadline,
    drive,
    enter_deadline,
)
from lamina_timeouts import TimeoutStateError, timeout


class Clock:
    """Stands for `time.monotonic`, and waits as every layer of lamina does, without taking any time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    @property
    def elapsed(self) -> float:
        return self.now - 1000.0

    def work(self, seconds: float) -> None:
        """Let time pass in the caller's own code."""
        self.now += seconds

    def wait(self, seconds: float, timeout: float | None = None, phase: Phase = "read") -> None:
        """Let time pass in an operation of lamina's that takes `seconds`."""
        limit = Limit(timeout, self, phase)
        limit.check()
        remaining = limit.remaining()
        self.now += seconds if remaining is None else min(seconds, remaining)
        limit.check()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr("lamina_interfaces._runtimes.ThreadRuntime.now", staticmethod(clock))
    yield clock
    left = current_deadline()
    while (deadline := current_deadline()) is not None:
        close_deadline(deadline)
    assert left is None


# --- one block ---------------------------------------------------------------------------------------------


def test_what_is_done_in_time_is_done(clock: Clock) -> None:
    with timeout(3.0) as block:
        clock.wait(1.0)
        assert block.remaining == 2.0
        clock.wait(1.5)
    assert (clock.elapsed, block.remaining, block.expired) == (2.5, 0.5, False)


@pytest.mark.parametrize("seconds", [3, 3.0, 0.125, 0])
def test_a_wait_ends_exactly_when_the_seconds_of_its_block_are_over(seconds: float, clock: Clock) -> None:
    with pytest.raises(DeadlineExceeded) as caught, timeout(seconds) as block:
        clock.wait(60.0, phase="tls")
    assert clock.elapsed == seconds
    assert block.expired
    assert block.remaining == 0.0
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.phase, caught.value.elapsed, caught.value.limit) == ("tls", seconds, seconds)
    assert str(caught.value) == f"the deadline has passed (phase tls, {seconds:.3f} s of {seconds:g} s)"


@pytest.mark.parametrize("seconds", [None, NEVER, 10**400])
def test_no_limit_bounds_nothing(seconds: float | None, clock: Clock) -> None:
    with timeout(seconds) as block:
        clock.wait(1e12)
        assert block.remaining == NEVER
    assert not block.expired


@pytest.mark.parametrize(
    ("seconds", "error"),
    [
        (-1, ArgumentValueError),
        (-0.001, ArgumentValueError),
        (float("-inf"), ArgumentValueError),
        (float("nan"), ArgumentValueError),
        (True, ArgumentTypeError),
        ("3", ArgumentTypeError),
        (None.__class__, ArgumentTypeError),
    ],
)
def test_what_is_no_number_of_seconds_is_refused_at_once(seconds: float, error: type[LaminaError]) -> None:
    with pytest.raises(error, match="timeout must"):
        timeout(seconds)


def test_the_seconds_begin_when_the_block_is_entered(clock: Clock) -> None:
    block = timeout(3.0)
    clock.work(60.0)
    assert (block.remaining, block.expired) == (3.0, False)
    with block:
        assert block.remaining == 3.0


def test_many_short_waits_do_not_outlast_the_block(clock: Clock) -> None:
    waits = 0
    with pytest.raises(DeadlineExceeded), timeout(3.0):
        for _ in range(100):
            clock.wait(0.25, timeout=1.0)
            waits += 1
    assert (waits, clock.elapsed) == (11, 3.0)


def test_once_the_seconds_are_over_nothing_more_is_begun(clock: Clock) -> None:
    with timeout(1.0):
        clock.work(5.0)
        for _ in range(2):
            with pytest.raises(DeadlineExceeded):
                clock.wait(1.0)
    assert clock.elapsed == 5.0


def test_a_block_that_merely_ends_late_raises_nothing(clock: Clock) -> None:
    with timeout(1.0) as block:
        clock.wait(0.5)
        clock.work(60.0)
    assert block.expired


def test_the_smaller_of_an_operations_own_time_out_and_the_block_counts(clock: Clock) -> None:
    with timeout(3.0) as block:
        with pytest.raises(ReadTimeout):
            clock.wait(60.0, timeout=1.0)
        with pytest.raises(ConnectTimeout):
            clock.wait(60.0, timeout=1.0, phase="dns")
        with pytest.raises(DeadlineExceeded):
            clock.wait(60.0, timeout=1.0)
    assert (clock.elapsed, block.expired) == (3.0, True)


# --- cancel and reschedule ---------------------------------------------------------------------------------


def test_a_cancelled_block_goes_on_without_limit(clock: Clock) -> None:
    with timeout(3.0) as block:
        clock.wait(1.0)
        block.cancel()
        block.cancel()
        clock.wait(60.0)
        assert block.remaining == NEVER
    block.cancel()
    assert not block.expired


def test_cancelling_before_the_block_makes_one_without_limit(clock: Clock) -> None:
    block = timeout(3.0)
    block.cancel()
    with block:
        clock.wait(60.0)


def test_cancelling_after_the_block_does_not_change_what_happened(clock: Clock) -> None:
    with timeout(3.0) as block:
        clock.work(4.0)
    block.cancel()
    assert block.expired


@pytest.mark.parametrize(("seconds", "ends"), [(5.0, 7.0), (0.5, 2.5), (0, 2.0)])
def test_a_rescheduled_block_ends_that_many_seconds_from_now(
    seconds: float, ends: float, clock: Clock
) -> None:
    with pytest.raises(DeadlineExceeded) as caught, timeout(3.0) as block:
        clock.wait(2.0)
        block.reschedule(seconds)
        assert block.remaining == seconds
        clock.wait(60.0)
    assert clock.elapsed == ends
    assert (caught.value.elapsed, caught.value.limit) == (ends, ends)


def test_a_block_may_be_rescheduled_after_it_was_cancelled_or_had_passed(clock: Clock) -> None:
    with timeout(3.0) as block:
        block.cancel()
        block.reschedule(1.0)
        with pytest.raises(DeadlineExceeded):
            clock.wait(60.0)
        block.reschedule(1.0)
        assert not block.expired
        clock.wait(0.5)
        block.reschedule(None)
        clock.wait(60.0)


def test_a_bad_number_leaves_the_old_limit(clock: Clock) -> None:
    with timeout(3.0) as block:
        for seconds in (-1.0, float("nan")):
            with pytest.raises(ArgumentValueError):
                block.reschedule(seconds)
        with pytest.raises(ArgumentTypeError):
            block.reschedule("3")  # type: ignore[arg-type]  # the caller's mistake is the case
        assert block.remaining == 3.0


# --- nested blocks -----------------------------------------------------------------------------------------


def test_an_inner_block_expires_where_it_was_opened_and_the_outer_goes_on(clock: Clock) -> None:
    with timeout(10.0) as outer:
        with pytest.raises(DeadlineExceeded) as caught, timeout(3.0) as inner:
            clock.wait(60.0)
        assert caught.value.limit == 3.0
        assert (inner.expired, outer.expired, outer.remaining) == (True, False, 7.0)
        clock.wait(6.0)
        with pytest.raises(DeadlineExceeded) as caught:
            clock.wait(60.0)
        assert caught.value.limit == 10.0
    assert clock.elapsed == 10.0


def test_an_outer_blocks_expiry_passes_through_the_inner_ones_untouched(clock: Clock) -> None:
    inner_saw: list[BaseException] = []
    with pytest.raises(DeadlineExceeded) as caught, timeout(3.0) as outer, timeout(10.0) as inner:
        try:
            clock.wait(60.0)
        except DeadlineExceeded as error:
            inner_saw.append(error)
            raise
    assert inner_saw == [caught.value]
    assert caught.value.limit == 3.0
    assert (inner.expired, outer.expired, inner.remaining) == (False, True, 7.0)


def test_of_two_that_end_together_the_outer_is_the_one_that_expired(clock: Clock) -> None:
    with timeout(3.0):
        outermost = current_deadline()
        with pytest.raises(DeadlineExceeded) as caught, timeout(3.0):
            clock.wait(60.0)
    assert caught.value.deadline is outermost


def test_cancelling_an_inner_block_leaves_the_outer_one(clock: Clock) -> None:
    with pytest.raises(DeadlineExceeded) as caught, timeout(10.0), timeout(3.0) as connecting:
        clock.wait(2.0)
        connecting.cancel()
        clock.wait(60.0)
    assert (clock.elapsed, caught.value.limit) == (10.0, 10.0)


def test_cancelling_an_outer_block_leaves_the_inner_one(clock: Clock) -> None:
    with timeout(3.0) as outer, pytest.raises(DeadlineExceeded), timeout(5.0):
        outer.cancel()
        clock.wait(60.0)
    assert clock.elapsed == 5.0


seconds_or_none = st.none() | st.integers(0, 100).map(float)


def expected_end(blocks: list[float | None], before: list[float]) -> float:
    """When the soonest of these nested blocks ends, each opened so many seconds after the one around it."""
    opened_at = itertools.accumulate(before, initial=Clock().now)
    next(opened_at)
    return min(
        now + (NEVER if seconds is None else seconds) for now, seconds in zip(opened_at, blocks, strict=False)
    )


@given(
    blocks=st.lists(seconds_or_none, min_size=1, max_size=6),
    before=st.lists(st.integers(0, 20).map(float), min_size=6, max_size=6),
    takes=st.integers(0, 300).map(float),
)
def test_a_wait_in_nested_blocks_ends_with_the_soonest(
    blocks: list[float | None], before: list[float], takes: float
) -> None:
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lamina_interfaces._runtimes.ThreadRuntime.now", staticmethod(clock))
        opened: list[timeout] = []
        ends: list[float] = []

        def nested(depth: int) -> None:
            if depth == len(blocks):
                clock.wait(takes)
                return
            clock.work(before[depth])
            seconds = blocks[depth]
            ends.append(clock.now + (NEVER if seconds is None else seconds))
            with timeout(seconds) as block:
                opened.append(block)
                nested(depth + 1)

        began = clock.now + sum(before[: len(blocks)])
        if began + takes < expected_end(blocks, before):
            nested(0)
            assert clock.now == began + takes
        else:
            with pytest.raises(DeadlineExceeded) as caught:
                nested(0)
            assert clock.now == max(began, min(ends))
            assert caught.value.limit == blocks[ends.index(min(ends))]
        assert [block.expired for block in opened] == [end <= clock.now for end in ends]
        assert current_deadline() is None


# --- other people's exceptions -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: TimeoutError("mine"),
        ReadTimeout,
        DeadlineExceeded,
        KeyboardInterrupt,
    ],
)
def test_any_other_exception_passes_as_it_is_even_from_an_expired_block(
    make: Callable[[], BaseException], clock: Clock
) -> None:
    error = make()
    before = sys.exception()  # a test that traces may have left one behind
    with pytest.raises(type(error)) as caught, timeout(1.0) as block:
        clock.work(5.0)
        raise error
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is before
    assert block.expired
    assert current_deadline() is None


def test_an_expiry_that_the_caller_handles_does_not_come_back(clock: Clock) -> None:
    with timeout(1.0) as block:
        try:
            clock.wait(5.0)
        except TimeoutError:
            pass
    assert block.expired


# --- one object, one block ---------------------------------------------------------------------------------


def test_entering_one_object_inside_itself_is_refused_and_harmless(clock: Clock) -> None:
    with timeout(3.0) as block:
        with pytest.raises(
            TimeoutStateError, match=r"<timeout \[3 s, open, 3.000 s left\]> was entered before"
        ):
            block.__enter__()
        assert block.remaining == 3.0
        with pytest.raises(DeadlineExceeded):
            clock.wait(60.0)


def test_using_one_object_twice_is_refused(clock: Clock) -> None:
    with timeout(3.0) as block:
        clock.wait(1.0)
    with pytest.raises(TimeoutStateError, match="make a new timeout for each block"), block:
        pytest.fail("the block was entered")
    assert current_deadline() is None


def test_a_block_that_is_not_open_cannot_be_rescheduled() -> None:
    block = timeout(3.0)
    with pytest.raises(TimeoutStateError, match=r"not entered.* cannot be rescheduled"):
        block.reschedule(1.0)
    with block:
        pass
    with pytest.raises(TimeoutStateError, match=r"ended.* cannot be rescheduled"):
        block.reschedule(1.0)


def test_its_error_is_one_of_laminas_and_a_runtime_error() -> None:
    error = TimeoutStateError()
    assert isinstance(error, LaminaError)
    assert isinstance(error, RuntimeError)
    assert str(pickle.loads(pickle.dumps(error))) == "a timeout bounds one block, once"


def test_leaving_a_block_that_was_never_entered_does_nothing() -> None:
    timeout(3.0).__exit__(None, None, None)


def test_async_with_in_driven_code_is_with(clock: Clock) -> None:
    async def main() -> None:
        async with timeout(3.0):
            clock.wait(60.0, phase="pool")

    with pytest.raises(DeadlineExceeded) as caught:
        drive(main())
    assert (clock.elapsed, caught.value.phase, caught.value.limit) == (3.0, "pool", 3.0)
    assert current_deadline() is None


# --- repr --------------------------------------------------------------------------------------------------


def test_repr_shows_the_state(clock: Clock) -> None:
    block = timeout(3.0)
    assert repr(block) == "<timeout [3 s, not entered]>"
    with block:
        clock.work(0.129)
        assert repr(block) == "<timeout [3 s, open, 2.871 s left]>"
        clock.work(3.0)
        assert repr(block) == "<timeout [3 s, open, expired]>"
        block.cancel()
        assert repr(block) == "<timeout [no limit, open]>"
        block.reschedule(1.0)
    clock.work(60.0)
    assert repr(block) == "<timeout [4.129 s, ended, 1.000 s left]>"
    assert repr(timeout(None)) == "<timeout [no limit, not entered]>"


# --- generators and threads --------------------------------------------------------------------------------


def test_a_block_in_a_generator_that_ends_before_its_callers_leaves_theirs(clock: Clock) -> None:
    def pages() -> Generator[str]:
        with timeout(60.0):
            yield "page"

    generator = pages()
    next(generator)
    with pytest.raises(DeadlineExceeded), timeout(2.0):
        generator.close()
        clock.wait(10.0)
    assert clock.elapsed == 2.0
    assert current_deadline() is None


def test_threads_do_not_see_each_others_blocks(clock: Clock) -> None:
    seen: queue.Queue[object] = queue.Queue()

    def other_thread() -> None:
        seen.put(current_deadline())
        with timeout(5.0):
            seen.put(Limit(None, clock, "read").remaining())
        seen.put(Limit(None, clock, "read").remaining())

    with timeout(1.0):
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join(10)
        assert Limit(None, clock, "read").remaining() == 1.0
    assert [seen.get_nowait() for _ in range(3)] == [None, 5.0, None]


def test_another_thread_may_cancel_or_reschedule_the_block(clock: Clock) -> None:
    with timeout(3.0) as block:
        limit = Limit(None, clock, "read")  # of an operation that is under way
        for change, remaining in ((lambda: block.reschedule(1.0), 1.0), (block.cancel, None)):
            thread = threading.Thread(target=change)
            thread.start()
            thread.join(10)
            assert limit.remaining() == remaining


def test_many_threads_each_keep_to_their_own(clock: Clock) -> None:
    together = threading.Barrier(8)
    wrong: queue.Queue[object] = queue.Queue()

    def nest(own: float) -> None:
        for _ in range(200):
            with timeout(own + 0.5), timeout(own) as inner:
                remaining = Limit(None, clock, "read").remaining()
                if remaining != own or inner.remaining != own:
                    wrong.put((own, remaining))

    def work(own: float) -> None:
        together.wait(10)
        nest(own)

    threads = [threading.Thread(target=work, args=(float(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong.empty()


# --- the real clock ----------------------------------------------------------------------------------------


def test_on_the_real_clock_a_wait_in_a_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    event = THREADS.create_event()

    def wait_for_event() -> None:
        limit = Limit(None, THREADS.now, "pool")
        while not drive(event.wait(limit.remaining())):
            limit.check()

    with pytest.raises(DeadlineExceeded) as caught, timeout(0.05):
        wait_for_event()
    assert caught.value.phase == "pool"
    assert caught.value.elapsed is not None
    assert caught.value.elapsed >= 0.05


def test_an_interrupt_while_entering_leaves_no_deadline_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `with` statement does not have the object yet, and calls no `__exit__`."""

    def interrupted(deadline: Deadline) -> None:
        enter_deadline(deadline)
        raise KeyboardInterrupt

    monkeypatch.setattr("lamina_interfaces._blocks.enter_deadline", interrupted)
    block = timeout(1.0)
    with pytest.raises(KeyboardInterrupt), block:
        pass
    assert current_deadline() is None
    assert block is not None


def test_a_block_that_was_cut_off_before_its_exit_bounds_nothing() -> None:
    timeout(1.0).__enter__()
    assert current_deadline() is None
