"""`timeout` in tasks of asyncio and trio, in virtual time: what ends, when, with which error, and who else asked."""

import asyncio
import gc
import pickle
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

from lamina_interfaces import (
    NEVER,
    THREADS,
    Deadline,
    DeadlineExceeded,
    Limit,
    Phase,
    ReadTimeout,
    TimeoutException,
    current_deadline,
    current_runtime,
)
from lamina_timeouts import TimeoutStateError, timeout
from timeouts_loops import ATTEMPTS, VirtualLoop, lamina_waits, run_virtual, virtual_backend

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return virtual_backend(request.param)


@pytest.fixture(autouse=True)
async def nothing_is_left(anyio_backend_name: str) -> AsyncIterator[None]:
    yield
    assert current_deadline() is None
    if anyio_backend_name == "asyncio":
        assert not current_task().cancelling()


def current_task() -> "asyncio.Task[Any]":
    task = asyncio.current_task()
    assert task is not None
    return task


with_asyncio = pytest.mark.parametrize("anyio_backend", [virtual_backend("asyncio")], ids=["asyncio"])


class Watch:
    """Virtual seconds since it was made."""

    def __init__(self) -> None:
        self.begun = anyio.current_time()

    @property
    def elapsed(self) -> float:
        return anyio.current_time() - self.begun


@asynccontextmanager
async def plain(block: timeout) -> AsyncIterator[timeout]:
    with block:
        yield block


Enter = Callable[[timeout], AbstractAsyncContextManager[timeout]]

both_ways = pytest.mark.parametrize("enter", [lambda block: block, plain], ids=["async with", "with"])


async def test_it_is_virtual_time(anyio_backend_name: str) -> None:
    assert current_runtime().name == anyio_backend_name
    watch = Watch()
    await anyio.sleep(3600)
    assert watch.elapsed == 3600


# --- one block ---------------------------------------------------------------------------------------------


@both_ways
async def test_any_await_of_the_block_ends_exactly_when_its_seconds_are_over(enter: Enter) -> None:
    watch = Watch()
    block = timeout(3.0)
    with pytest.raises(DeadlineExceeded) as caught:
        async with enter(block):
            await anyio.sleep_forever()
    assert watch.elapsed == 3.0
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert (error.phase, error.elapsed, error.limit) == (None, 3.0, 3.0)
    assert str(error) == "the deadline passed in the caller's own code (3.000 s of 3 s)"
    assert isinstance(error.__cause__, anyio.get_cancelled_exc_class())
    assert (block.expired, block.remaining) == (True, 0.0)
    assert repr(block) == "<timeout [3 s, ended, expired]>"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@both_ways
async def test_what_is_done_in_time_is_done(enter: Enter) -> None:
    async with enter(timeout(3.0)) as block:
        await anyio.sleep(1.0)
        assert block.remaining == 2.0
        await lamina_waits(1.5)
    assert (block.expired, block.remaining) == (False, 0.5)
    await anyio.sleep(60.0)


@both_ways
async def test_a_wait_of_laminas_ends_with_its_phase(enter: Enter) -> None:
    watch = Watch()
    with pytest.raises(DeadlineExceeded) as caught:
        async with enter(timeout(3.0)):
            await lamina_waits(60.0, phase="tls")
    assert watch.elapsed == 3.0
    assert (caught.value.phase, caught.value.elapsed, caught.value.limit) == ("tls", 3.0, 3.0)


async def test_an_operations_own_time_out_is_no_deadline() -> None:
    async with timeout(3.0) as block:
        with pytest.raises(ReadTimeout):
            await lamina_waits(60.0, timeout=1.0)
        assert block.remaining == 2.0


@pytest.mark.parametrize("seconds", [None, NEVER, 1e300])
async def test_no_limit_bounds_nothing(seconds: float | None) -> None:
    async with timeout(seconds) as block:
        await anyio.sleep(10_000.0)
    assert not block.expired


async def test_a_block_of_no_time_ends_at_its_first_await() -> None:
    watch = Watch()
    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(0):
            await anyio.lowlevel.checkpoint()
    assert (watch.elapsed, caught.value.limit) == (0.0, 0.0)
    async with timeout(0):
        pass
    with pytest.raises(DeadlineExceeded):
        async with timeout(0):
            await lamina_waits(1.0)
    await anyio.sleep(1.0)


async def test_blocks_in_a_row_add_nothing_to_each_others_time() -> None:
    watch = Watch()
    for _ in range(20):
        with pytest.raises(DeadlineExceeded):
            async with timeout(0.25):
                await anyio.sleep_forever()
    assert watch.elapsed == 5.0


async def test_many_short_waits_do_not_outlast_the_block() -> None:
    watch = Watch()
    with pytest.raises(DeadlineExceeded):
        async with timeout(3.0):
            for number in range(100):
                await (anyio.sleep(0.25) if number % 2 else lamina_waits(0.25, timeout=1.0))
    assert watch.elapsed == 3.0


# --- nested blocks -----------------------------------------------------------------------------------------

WAITS = {"foreign": anyio.sleep_forever, "lamina's": lambda: lamina_waits(1e6)}
every_wait = pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)


@every_wait
async def test_an_inner_block_expires_where_it_was_opened_and_the_outer_goes_on(
    wait: Callable[[], Any],
) -> None:
    watch = Watch()
    with pytest.raises(DeadlineExceeded) as from_outer:
        async with timeout(10.0) as outer:
            inner = timeout(3.0)
            with pytest.raises(DeadlineExceeded) as from_inner:
                async with inner:
                    await wait()
            assert (watch.elapsed, from_inner.value.limit) == (3.0, 3.0)
            assert (inner.expired, outer.expired, outer.remaining) == (True, False, 7.0)
            await anyio.sleep(6.0)
            await wait()
    assert (watch.elapsed, from_outer.value.limit) == (10.0, 10.0)


@every_wait
async def test_an_outer_blocks_expiry_passes_through_the_inner_ones(wait: Callable[[], Any]) -> None:
    watch = Watch()
    outer, middle, inner = timeout(3.0), timeout(10.0), timeout(None)
    with pytest.raises(DeadlineExceeded) as caught:
        async with outer, middle, inner:
            await wait()
    assert (watch.elapsed, caught.value.limit) == (3.0, 3.0)
    assert (outer.expired, middle.expired, middle.remaining, inner.expired) == (True, False, 7.0, False)


@every_wait
@pytest.mark.parametrize("before", [0.0, 0.1, 1 / 3])
async def test_of_two_that_end_together_the_outer_is_the_one_that_expired(
    wait: Callable[[], Any], before: float
) -> None:
    await anyio.sleep(before)
    outermost: Deadline | None = None
    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(3.0):
            outermost = current_deadline()
            async with timeout(3.0), timeout(3.0):
                await wait()
            pytest.fail("the outer block went on")
    assert caught.value.deadline is outermost


# --- cancel and reschedule ---------------------------------------------------------------------------------


async def test_a_cancelled_block_goes_on_without_limit() -> None:
    async with timeout(3.0) as block:
        await anyio.sleep(1.0)
        block.cancel()
        block.cancel()
        await anyio.sleep(60.0)
        await lamina_waits(60.0)
    assert not block.expired


async def test_cancelling_one_block_leaves_the_others() -> None:
    watch = Watch()
    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(10.0), timeout(3.0) as connecting:
            await anyio.sleep(2.0)
            connecting.cancel()
            await anyio.sleep_forever()
    assert (watch.elapsed, caught.value.limit) == (10.0, 10.0)


@every_wait
@pytest.mark.parametrize(("seconds", "ends"), [(5.0, 7.0), (0.5, 2.5), (0, 2.0)])
async def test_a_rescheduled_block_ends_that_many_seconds_from_then(
    seconds: float, ends: float, wait: Callable[[], Any]
) -> None:
    watch = Watch()
    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(3.0) as block:
            await anyio.sleep(2.0)
            block.reschedule(seconds)
            assert block.remaining == seconds
            await wait()
    assert watch.elapsed == ends
    assert (caught.value.elapsed, caught.value.limit) == (ends, ends)


@pytest.mark.parametrize(
    ("limit", "seconds", "ends"), [(60.0, 0, 2.0), (60.0, 0.5, 2.5), (3.0, 5.0, 7.0), (None, 1.0, 3.0)]
)
async def test_another_task_may_reschedule_the_block_during_a_foreign_wait(
    limit: float | None, seconds: float, ends: float
) -> None:
    watch = Watch()

    async def change(block: timeout) -> None:
        await anyio.sleep(2.0)
        block.reschedule(seconds)

    async with anyio.create_task_group() as tasks:
        with pytest.raises(DeadlineExceeded):
            async with timeout(limit) as block:
                tasks.start_soon(change, block)
                await anyio.sleep_forever()
        assert watch.elapsed == ends


def in_thread(function: Callable[[], object]) -> None:
    """The loop stands still meanwhile, and with it time."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(20.0)


@every_wait
async def test_another_thread_may_change_the_block(wait: Callable[[], Any], anyio_backend_name: str) -> None:
    if anyio_backend_name == "asyncio":
        asyncio.get_running_loop().set_debug(True)  # it refuses timers from other threads
    watch = Watch()
    async with timeout(3.0) as lifted:
        await anyio.sleep(1.0)
        in_thread(lifted.cancel)
        await anyio.sleep(60.0)
    assert not lifted.expired
    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(3.0) as prolonged:
            in_thread(lambda: prolonged.reschedule(9.0))
            await wait()
    assert (watch.elapsed, caught.value.limit) == (70.0, 9.0)
    with pytest.raises(DeadlineExceeded):
        async with timeout(60.0) as shortened:
            in_thread(lambda: shortened.reschedule(1.0))
            await wait()
    assert watch.elapsed == 71.0
    async with timeout(5.0) as ended_before:
        in_thread(lambda: ended_before.reschedule(1.0))
    await anyio.sleep(5.0)
    assert not ended_before.expired


async def test_a_change_that_arrives_after_the_block_cancels_nobody() -> None:
    async with timeout(5.0) as block:
        in_thread(lambda: block.reschedule(0))  # the loop hears of it at its next step
    assert block.expired
    await anyio.sleep(5.0)


async def test_a_block_that_passed_while_nobody_waited_may_still_be_rescheduled() -> None:
    """As in threads: nothing was cut short."""
    watch = Watch()
    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(3.0) as block:
            pass_time(5.0)
            assert block.expired
            block.reschedule(2.0)
            await anyio.sleep(1.0)
            await anyio.sleep_forever()
    assert (watch.elapsed, caught.value.limit) == (7.0, 7.0)


def pass_time(seconds: float) -> None:
    """A computation, in which nothing of the loop runs."""
    if current_runtime().name == "asyncio":
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.now += seconds
    else:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(seconds)


async def test_lifting_the_limit_on_the_way_out_comes_too_late() -> None:
    block = timeout(3.0)
    with pytest.raises(DeadlineExceeded) as caught:
        async with block:
            try:
                await anyio.sleep_forever()
            finally:
                block.cancel()
    assert (caught.value.limit, caught.value.elapsed) == (3.0, 3.0)
    assert block.expired


async def test_a_block_of_no_time_may_still_be_lifted() -> None:
    async with timeout(0) as block:
        block.cancel()
        await anyio.sleep(1.0)
    assert not block.expired


async def test_a_block_that_merely_ends_late_raises_nothing() -> None:
    async with timeout(1.0) as block:
        await anyio.sleep(0.5)
        pass_time(60.0)
    assert block.expired
    await anyio.sleep(1.0)


# --- other people's exceptions -----------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: TimeoutError("mine"), ReadTimeout, DeadlineExceeded, KeyError])
@pytest.mark.parametrize("has_fired", [False, True])
async def test_any_other_exception_passes_as_it_is(make: Callable[[], Exception], has_fired: bool) -> None:
    error = make()
    block = timeout(1.0)
    with pytest.raises(type(error)) as caught:
        async with block:
            if has_fired:
                try:
                    await anyio.sleep_forever()
                except anyio.get_cancelled_exc_class():
                    raise error from None
            raise error
    assert caught.value is error
    assert block.expired is has_fired
    await anyio.sleep(60.0)


async def test_a_cancellation_that_the_block_swallows_is_over_with_the_block(anyio_backend_name: str) -> None:
    """asyncio cancels once, as `asyncio.timeout` does; trio again at each await."""
    goes_on = False
    async with timeout(1.0) as block:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass
        if anyio_backend_name == "asyncio":
            await anyio.sleep(1.0)
            goes_on = True
        else:
            with pytest.raises(trio.Cancelled):
                await anyio.sleep(1.0)
    assert block.expired
    assert goes_on is (anyio_backend_name == "asyncio")
    await anyio.sleep(60.0)


# --- other people's cancellations --------------------------------------------------------------------------


@pytest.mark.parametrize(("theirs", "ours"), [(1.0, 3.0), (2.0, 2.0)])
@every_wait
async def test_a_scope_around_the_block_keeps_its_cancellation_even_in_the_same_moment(
    wait: Callable[[], Any], theirs: float, ours: float, anyio_backend_name: str
) -> None:
    if anyio_backend_name == "asyncio" and theirs == ours:
        return  # anyio's scope leaves a task alone that is about to run, so that either may come first
    watch = Watch()
    with anyio.move_on_after(theirs) as scope:
        async with timeout(ours):
            await wait()
    assert scope.cancelled_caught
    assert watch.elapsed == theirs
    with pytest.raises(TimeoutError) as caught, anyio.fail_after(theirs):
        async with timeout(ours):
            await wait()
    assert not isinstance(caught.value, TimeoutException)


async def test_a_block_that_ends_sooner_than_the_scope_around_it_leaves_that_alone() -> None:
    watch = Watch()
    with anyio.move_on_after(5.0) as scope:
        with pytest.raises(DeadlineExceeded):
            async with timeout(2.0):
                await anyio.sleep_forever()
        await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert watch.elapsed == 5.0


@pytest.mark.parametrize(("theirs", "ours"), [(3.0, 1.0), (2.0, 2.0)])
async def test_a_scope_inside_the_block_does_not_take_its_cancellation(theirs: float, ours: float) -> None:
    watch = Watch()
    with pytest.raises(DeadlineExceeded):
        async with timeout(ours):
            with anyio.move_on_after(theirs):
                await anyio.sleep_forever()
            pytest.fail("the block went on")
    assert watch.elapsed == ours


async def test_a_scope_inside_the_block_that_ends_sooner_is_its_own_affair() -> None:
    watch = Watch()
    async with timeout(5.0) as block:
        with anyio.move_on_after(2.0) as scope:
            await anyio.sleep_forever()
        assert (watch.elapsed, block.remaining) == (2.0, 3.0)
        with pytest.raises(TimeoutError) as caught, anyio.fail_after(1.0):
            await anyio.sleep_forever()
        assert not isinstance(caught.value, DeadlineExceeded)
    assert scope.cancelled_caught


async def test_the_tasks_of_a_group_inside_the_block_end_with_it() -> None:
    watch = Watch()
    ended: list[float] = []

    async def child(wait: Callable[[], Any]) -> None:
        try:
            await wait()
        finally:
            ended.append(watch.elapsed)

    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(2.0), anyio.create_task_group() as tasks:
            for wait in (anyio.sleep_forever, anyio.sleep_forever):
                tasks.start_soon(child, wait)
    assert ended == [2.0, 2.0]
    assert (caught.value.elapsed, caught.value.phase) == (2.0, None)


async def sees_the_deadline_itself(phase: Phase = "read") -> None:
    """A wait of lamina's that looks at the deadline before the block's cancellation comes through."""
    with anyio.CancelScope(shield=True):
        while (deadline := current_deadline()) is not None and not deadline.soonest().expired():
            try:
                await anyio.sleep(0.5)
            except asyncio.CancelledError:  # asyncio's comes through a shield
                break
    Limit(None, current_runtime().now, phase).check()


@pytest.mark.parametrize("sees", [[True], [True, True, True], [True, False, True], [False, True], [False]])
async def test_the_deadline_of_a_group_of_tasks_is_one_error_whoever_saw_it_first(sees: list[bool]) -> None:
    watch = Watch()
    block = timeout(2.0)
    with pytest.raises(DeadlineExceeded) as caught:
        async with block, anyio.create_task_group() as outer, anyio.create_task_group() as tasks:
            for sees_it in sees:
                if sees_it:
                    tasks.start_soon(sees_the_deadline_itself)
                else:
                    tasks.start_soon(lamina_waits, 60.0)
            outer.start_soon(lamina_waits, 60.0)
    assert watch.elapsed == 2.0
    error = caught.value
    assert (error.phase, error.elapsed, error.limit, block.expired) == ("read", 2.0, 2.0, True)
    assert error.deadline is block._deadline


@pytest.mark.parametrize("theirs", [KeyError("theirs"), ReadTimeout("theirs"), DeadlineExceeded("theirs")])
async def test_a_group_in_which_something_else_went_wrong_is_not_taken_for_the_deadline(
    theirs: Exception,
) -> None:
    async def fail() -> None:
        with anyio.CancelScope(shield=True):
            try:
                await anyio.sleep(2.0)
            except asyncio.CancelledError:
                pass
        raise theirs

    with pytest.raises(ExceptionGroup) as caught:
        async with timeout(2.0), anyio.create_task_group() as tasks:
            tasks.start_soon(sees_the_deadline_itself)
            tasks.start_soon(fail)
    assert theirs in caught.value.exceptions


async def test_a_group_of_an_outer_deadlines_errors_passes_through_the_inner_block() -> None:
    outer, inner = timeout(2.0), timeout(3.0)
    with pytest.raises(DeadlineExceeded) as caught:
        async with outer, inner, anyio.create_task_group() as tasks:
            tasks.start_soon(sees_the_deadline_itself)
            tasks.start_soon(sees_the_deadline_itself)
    assert caught.value.deadline is outer._deadline
    assert not inner.expired


def test_a_group_of_errors_of_the_deadline_is_one_in_threads_too() -> None:
    with pytest.raises(DeadlineExceeded) as caught, timeout(0) as block:
        found: list[DeadlineExceeded] = []
        for phase in ("dns", "read"):
            with pytest.raises(DeadlineExceeded) as one:
                Limit(None, THREADS.now, phase).check()
            found.append(one.value)
        raise ExceptionGroup("both", found)
    assert (caught.value.phase, caught.value.deadline) == ("dns", block._deadline)
    assert isinstance(caught.value.__cause__, ExceptionGroup)


async def test_an_error_of_a_task_in_the_block_is_not_lost() -> None:
    async def fails() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise KeyError("the child's")

    block = timeout(2.0)
    with pytest.raises(ExceptionGroup) as caught:
        async with block, anyio.create_task_group() as tasks:
            tasks.start_soon(fails)
    assert [str(error) for error in caught.value.exceptions] == ['"the child\'s"']
    assert block.expired


async def test_a_task_that_was_started_inside_has_the_deadline_until_the_block_ends() -> None:
    watch = Watch()
    seen: list[Any] = []

    async def child(seconds: float) -> None:
        try:
            await lamina_waits(seconds, phase="pool")
        except DeadlineExceeded as error:
            seen.append((watch.elapsed, error.phase, error.limit))
        else:
            seen.append((watch.elapsed, current_deadline()))

    async with anyio.create_task_group() as tasks, timeout(2.0):
        tasks.start_soon(child, 60.0)
        await anyio.sleep(1.5)
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        tasks.start_soon(child, 5.0)
        # The block has ended before its seconds were over: it bounds nobody any more.
    assert seen == [(6.5, None), (60.0, None)]


@with_asyncio
async def test_laminas_waits_in_a_native_task_end_with_the_deadline_as_the_block_does() -> None:
    seen: list[Any] = []

    async def child() -> None:
        await asyncio.sleep(0.25)
        with pytest.raises(DeadlineExceeded) as caught:
            await lamina_waits(60.0, phase="pool")
        seen.append((caught.value.phase, caught.value.elapsed, caught.value.limit))

    tasks: list[asyncio.Task[None]] = []
    for _ in range(3):
        with pytest.raises(DeadlineExceeded):
            async with timeout(2.0):
                tasks.append(asyncio.create_task(child()))
                await asyncio.sleep(60.0)
        await tasks[-1]
    assert seen == [("pool", 2.0, 2.0)] * 3


async def test_laminas_waits_in_a_task_that_was_started_inside_end_with_the_deadline() -> None:
    watch = Watch()
    seen: list[Any] = []

    async def child() -> None:
        with pytest.raises(DeadlineExceeded) as caught:
            await lamina_waits(60.0, phase="pool")
        seen.append((watch.elapsed, caught.value.phase, caught.value.limit))

    async with anyio.create_task_group() as tasks, timeout(2.0):
        tasks.start_soon(child)
        with anyio.CancelScope(shield=True):
            try:
                await anyio.sleep(2.5)
            except asyncio.CancelledError:  # asyncio's comes through a shield, once
                await anyio.sleep(0.5)
    assert seen == [(2.0, "pool", 2.0)]


# --- what a wait knew --------------------------------------------------------------------------------------


async def test_a_wait_that_the_deadline_ends_says_its_phase_whoever_saw_it_first() -> None:
    left: list[TimeoutException] = []
    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(3.0):
            await anyio.sleep(1.0)
            await lamina_waits(60.0, phase="dns", left=left)
    assert (caught.value.phase, caught.value.elapsed, caught.value.limit) == ("dns", 3.0, 3.0)
    if left:  # else it had seen the deadline itself
        assert caught.value is left[0]
        assert caught.value.attempts == ATTEMPTS


async def never_looks(left: list[TimeoutException]) -> None:
    """A wait that only a cancellation ends."""
    limit = Limit(None, current_runtime().now, "connect")
    try:
        await anyio.sleep_forever()
    except BaseException:
        left.append(limit.error())
        left[-1].attempts = ATTEMPTS
        limit.interrupted(left[-1])
        raise


async def test_the_block_raises_the_very_error_that_the_wait_left() -> None:
    left: list[TimeoutException] = []
    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(10.0), timeout(3.0), timeout(7.0):
            await never_looks(left)
    assert caught.value is left[0]
    assert (caught.value.phase, caught.value.limit, caught.value.attempts) == ("connect", 3.0, ATTEMPTS)
    assert isinstance(caught.value.__cause__, anyio.get_cancelled_exc_class())


@pytest.mark.parametrize(("theirs", "ours"), [(1.0, 3.0), (3.0, 3.0)])
async def test_the_error_that_a_wait_left_is_forgotten_where_somebody_else_cancelled(
    theirs: float, ours: float
) -> None:
    deadlines: list[Deadline] = []
    with anyio.move_on_after(theirs) as scope:
        async with timeout(ours):
            deadline = current_deadline()
            assert deadline is not None
            deadlines.append(deadline)
            limit = Limit(None, current_runtime().now, "read")
            try:
                await anyio.sleep_forever()
            except BaseException:
                limit.interrupted()
                assert (deadline.interruption is None) is (theirs < ours)
                raise
    assert scope.cancelled_caught
    assert deadlines[0].interruption is None


class Local:
    """Something in a frame."""


@every_wait
@pytest.mark.parametrize("outer", [None, 1.0, 60.0])
async def test_an_expiry_leaves_no_cycle_of_references(wait: Callable[[], Any], outer: float | None) -> None:
    locals_of_frames: list[weakref.ref[Local]] = []

    async def holds() -> None:
        local = Local()
        locals_of_frames.append(weakref.ref(local))
        await wait()

    async def expires() -> None:
        try:
            async with timeout(outer), timeout(1.0):
                await holds()
        except DeadlineExceeded as error:
            locals_of_frames.append(weakref.ref(error))  # type: ignore[arg-type]  # only whether it goes matters

    gc.collect()
    gc.disable()
    try:
        await expires()
        await anyio.lowlevel.checkpoint()
        assert len(locals_of_frames) == 2
        assert [gone() for gone in locals_of_frames] == [None, None]
    finally:
        gc.enable()


async def test_a_timeout_that_is_kept_does_not_keep_the_task() -> None:
    kept: list[timeout] = []
    gone: list[weakref.ref[Local]] = []

    async def child() -> None:
        local = Local()
        gone.append(weakref.ref(local))
        async with timeout(60.0) as block:
            kept.append(block)
        try:
            async with timeout(1.0) as block:
                kept.append(block)
                await anyio.sleep_forever()
        except DeadlineExceeded:
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child)
    del tasks
    gc.collect()
    assert gone[0]() is None
    assert [block.expired for block in kept] == [False, True]


# --- use against the order ---------------------------------------------------------------------------------


async def test_one_object_bounds_one_block() -> None:
    async with timeout(3.0) as block:
        with pytest.raises(TimeoutStateError):
            async with block:
                pytest.fail("it was entered")
        assert block.remaining == 3.0
    with pytest.raises(TimeoutStateError):
        async with block:
            pytest.fail("it was entered")


async def test_leaving_twice_does_nothing() -> None:
    block = timeout(3.0)
    async with block:
        pass
    await block.__aexit__(None, None, None)
    block.__exit__(None, None, None)
    assert block.remaining == 3.0


async def test_a_block_that_has_gone_without_ending_cancels_nobody(anyio_backend_name: str) -> None:
    """An interrupt may come before the first line of `__exit__`."""
    done: list[str] = []

    async def cut_off() -> None:
        timeout(1.0).__enter__()
        assert current_deadline() is None
        await anyio.sleep(5.0)
        await lamina_waits(5.0)
        done.append("all")

    if anyio_backend_name == "trio":
        async with (
            trio.open_nursery() as nursery
        ):  # and not anyio's, which has a scope that trio finds misnested
            nursery.start_soon(cut_off)
    else:
        await asyncio.create_task(cut_off())
    assert done == ["all"]


async def test_a_block_in_a_generator_bounds_whoever_has_it_open() -> None:
    def pages() -> Generator[str]:
        with timeout(2.0):
            yield "page"

    watch = Watch()
    generator = pages()
    with pytest.raises(DeadlineExceeded):
        next(generator)
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as error:
            generator.throw(error)
    assert watch.elapsed == 2.0
    generator = pages()
    next(generator)
    generator.close()
    await anyio.sleep(5.0)
    generator = pages()
    next(generator)
    del generator
    await anyio.sleep(5.0)


# --- asyncio's own -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("theirs_first", [True, False])
@pytest.mark.parametrize("blocks", [1, 2, 3])
@pytest.mark.parametrize("repetition", range(10))
def test_task_cancel_in_the_very_same_moment_passes(theirs_first: bool, blocks: int, repetition: int) -> None:
    async def bounded(depth: int) -> None:
        if not depth:
            await asyncio.sleep(60.0)
            return
        async with timeout(1.0):
            await bounded(depth - 1)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(repetition / 7)
        end = loop.time() + 1.0
        task = asyncio.ensure_future(bounded(blocks))
        if theirs_first:
            loop.call_at(end, task.cancel, "theirs")
        await asyncio.sleep(0)
        if not theirs_first:
            loop.call_at(end, task.cancel, "theirs")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert task.cancelling() == 1
        assert loop.time() == end

    run_virtual(main())


@pytest.mark.parametrize("steps", range(6))
def test_task_cancel_some_steps_after_the_expiry_passes_as_long_as_the_block_lasts(steps: int) -> None:
    """The block may be cleaning up when somebody asks as well."""

    async def bounded() -> str:
        try:
            async with timeout(1.0):
                try:
                    await asyncio.sleep(60.0)
                finally:
                    for _ in range(3):
                        await asyncio.sleep(0)
        except DeadlineExceeded:
            assert current_task().cancelling() == 0
            return "exceeded"
        return "not reached"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(bounded())

        def cancel_later(steps: int) -> None:
            if steps:
                loop.call_soon(cancel_later, steps - 1)
            else:
                task.cancel()

        await asyncio.sleep(0)
        loop.call_at(loop.time() + 1.0, cancel_later, steps)
        results: list[Any] = [*await asyncio.gather(task, return_exceptions=True)]
        if task.cancelled():
            assert task.cancelling() == 1
        else:
            assert results == ["exceeded"]
            assert steps >= 3, "it asked while the block was still open"

    run_virtual(main())


@with_asyncio
async def test_a_task_that_was_asked_to_end_before_the_block_still_gets_its_expiry() -> None:
    """`asyncio.timeout` counts in the same way: from where it was entered."""

    async def main() -> str:
        task = current_task()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(0)
        assert task.cancelling() == 1
        with pytest.raises(DeadlineExceeded):
            async with timeout(1.0):
                await asyncio.sleep(60.0)
        assert task.cancelling() == 1
        return "done"

    assert await asyncio.create_task(main()) == "done"


@with_asyncio
@pytest.mark.parametrize(("theirs", "ours"), [(1.0, 3.0), (2.0, 2.0)])
async def test_asyncio_timeout_around_the_block(theirs: float, ours: float) -> None:
    watch = Watch()
    with pytest.raises(TimeoutError) as caught:
        async with asyncio.timeout(theirs):
            async with timeout(ours):
                await asyncio.sleep(60.0)
    assert not isinstance(caught.value, TimeoutException)
    assert watch.elapsed == theirs
    async with asyncio.timeout(9.0) as around:
        with pytest.raises(DeadlineExceeded):
            async with timeout(1.0):
                await asyncio.sleep(60.0)
    assert not around.expired()


@with_asyncio
@pytest.mark.parametrize(("theirs", "ours"), [(3.0, 1.0), (2.0, 2.0)])
async def test_asyncio_timeout_inside_the_block(theirs: float, ours: float) -> None:
    watch = Watch()
    with pytest.raises(DeadlineExceeded):
        async with timeout(ours):
            async with asyncio.timeout(theirs):
                await asyncio.sleep(60.0)
    assert watch.elapsed == ours
    async with timeout(9.0) as block:
        with pytest.raises(TimeoutError) as caught:
            await asyncio.wait_for(asyncio.sleep(60.0), 1.0)
        assert not isinstance(caught.value, TimeoutException)
    assert not block.expired


@with_asyncio
async def test_asyncio_task_group_and_gather_inside_the_block() -> None:
    async def child() -> None:
        await asyncio.sleep(60.0)

    tasks: list[asyncio.Task[None]] = []
    with pytest.raises(DeadlineExceeded):
        async with timeout(1.0), asyncio.TaskGroup() as group:
            tasks.extend(group.create_task(child()) for _ in range(3))
            await asyncio.sleep(60.0)
    assert all(task.cancelled() for task in tasks)
    tasks = [asyncio.create_task(child()) for _ in range(3)]
    with pytest.raises(DeadlineExceeded):
        async with timeout(1.0):
            await asyncio.gather(*tasks)
    assert all(task.cancelled() for task in tasks)


@with_asyncio
async def test_a_shielded_task_survives_the_block() -> None:
    task = asyncio.create_task(asyncio.sleep(5.0, "done"))
    with pytest.raises(DeadlineExceeded):
        async with timeout(1.0):
            await asyncio.shield(task)
    assert await task == "done"


@with_asyncio
async def test_a_native_task_started_inside_is_not_cancelled_by_the_block() -> None:
    seen: list[float] = []
    watch = Watch()

    async def child() -> None:
        await asyncio.sleep(5.0)
        seen.append(watch.elapsed)

    tasks: list[asyncio.Task[None]] = []
    with pytest.raises(DeadlineExceeded):
        async with timeout(1.0):
            tasks.append(asyncio.create_task(child()))
            await asyncio.sleep(60.0)
    await tasks[0]
    assert seen == [5.0]


@with_asyncio
async def test_a_generators_block_may_be_closed_before_its_callers_own() -> None:
    def pages() -> Generator[str]:
        with timeout(1.0):
            yield "page"

    watch = Watch()
    generator = pages()
    next(generator)
    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(3.0):
            generator.close()
            await asyncio.sleep(60.0)
    assert (watch.elapsed, caught.value.limit) == (3.0, 3.0)


@with_asyncio
async def test_a_generator_that_another_task_ends_takes_none_of_that_tasks_cancellations() -> None:
    def pages() -> Generator[str]:
        with timeout(1.0):
            yield "page"

    generator = pages()
    task = asyncio.current_task()

    async def opens_and_is_cancelled() -> None:
        next(generator)
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError:
            pass  # by the block, which is still open

    async def ends_it() -> None:
        try:
            await asyncio.sleep(60.0)
        except asyncio.CancelledError as error:
            generator.throw(error)

    await asyncio.create_task(opens_and_is_cancelled())
    ending = asyncio.create_task(ends_it())
    await asyncio.sleep(0)
    ending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending
    assert ending.cancelled()
    assert task is asyncio.current_task()


@with_asyncio
async def test_a_callback_of_the_loop_has_no_task_to_cancel_but_its_waits_see_the_deadline() -> None:
    loop = asyncio.get_running_loop()
    seen: list[object] = []

    def callback() -> None:
        with timeout(0) as block:
            seen.append(Limit(None, loop.time, "read").expired())
        seen.append(block.expired)
        seen.append(current_deadline())

    loop.call_soon(callback)
    await asyncio.sleep(1.0)
    assert seen == [True, True, None]


@with_asyncio
async def test_a_timer_that_fires_too_early_fires_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loops count in steps of their clock: uvloop in milliseconds."""
    loop = asyncio.get_running_loop()
    call_at = loop.call_at
    early = iter([0.25, 0.125])
    monkeypatch.setattr(
        loop, "call_at", lambda when, *rest, **more: call_at(when - next(early, 0), *rest, **more)
    )
    watch = Watch()
    with pytest.raises(DeadlineExceeded):
        async with timeout(0.5):
            await asyncio.sleep(60.0)
    assert watch.elapsed == 0.5


# --- trio's own --------------------------------------------------------------------------------------------


async def test_trio_scopes_around_and_inside(anyio_backend_name: str) -> None:
    if anyio_backend_name != "trio":
        return
    for theirs, ours, expires in ((1.0, 3.0, "theirs"), (2.0, 2.0, "theirs"), (3.0, 1.0, "ours")):
        try:
            with trio.fail_after(theirs):
                async with timeout(ours):
                    await trio.sleep_forever()
        except DeadlineExceeded:
            assert expires == "ours"
        except trio.TooSlowError:
            assert expires == "theirs"
    with pytest.raises(DeadlineExceeded):
        async with timeout(2.0):
            with trio.move_on_after(2.0):
                await trio.sleep_forever()
            pytest.fail("the block went on")
    with pytest.raises(DeadlineExceeded):
        async with timeout(2.0), trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
