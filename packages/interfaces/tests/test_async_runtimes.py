"""The primitives of asyncio and trio: from tasks, other threads, finalisers, and after the end."""

import asyncio
import contextvars
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio
import trio.testing

from interfaces_loops import VirtualLoop
from lamina_interfaces import (
    THREADS,
    DeadlineBlock,
    DeadlineExceeded,
    Event,
    Limit,
    Runtime,
    close_deadline,
    current_deadline,
    current_runtime,
    open_deadline,
)

BOUND = 20.0  # seconds; nothing here takes a hundredth of it


def backends() -> list[Any]:
    uvloop_there = pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not run there")
    return [
        pytest.param("asyncio", id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop", marks=uvloop_there),
        pytest.param("trio", id="trio"),
    ]


every_runtime = pytest.mark.parametrize("anyio_backend", backends())


def in_threads(function: Callable[[], object], count: int = 1) -> None:
    threads = [threading.Thread(target=function) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(BOUND)


# --- which one ---------------------------------------------------------------------------------------------


@pytest.mark.anyio
@every_runtime
async def test_the_runtime_of_a_task_is_the_one_that_runs_it(
    anyio_backend_name: str, request: pytest.FixtureRequest
) -> None:
    runtime = current_runtime()
    assert runtime.name == anyio_backend_name
    assert repr(runtime).startswith(("<AsyncioRuntime [", "<TrioRuntime>"))
    if anyio_backend_name == "asyncio":
        assert ("uvloop" in repr(runtime)) == ("uvloop" in request.node.name)


@pytest.mark.anyio
@every_runtime
async def test_in_another_thread_it_is_that_of_threads() -> None:
    assert await anyio.to_thread.run_sync(current_runtime) is THREADS


@pytest.mark.anyio
@every_runtime
async def test_it_is_here_for_its_own_tasks_only() -> None:
    runtime = current_runtime()
    assert runtime.is_here()
    assert current_runtime().is_here()
    assert not await anyio.to_thread.run_sync(runtime.is_here)


@pytest.mark.anyio
@every_runtime
async def test_its_clock_goes_on_in_other_threads_and_while_the_loop_sleeps(anyio_backend_name: str) -> None:
    now = current_runtime().now
    before = now()

    def look() -> float:
        end = time.monotonic() + 0.02
        first = now()
        while time.monotonic() < end:
            pass
        return now() - first

    assert await anyio.to_thread.run_sync(look) >= 0.015
    assert before + 0.015 <= now() <= before + BOUND
    assert abs(now() - anyio.current_time()) < BOUND, "the loop's own clock, whatever its start"


def guest_run(guest: Callable[[], Coroutine[Any, Any, Any]]) -> tuple[Any, Any]:
    """Run trio as asyncio's guest: what the guest returned, and what a runtime in the host was."""

    async def host() -> tuple[Any, Any]:
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=finished.set_result
        )
        runtime = current_runtime()
        return (await finished).unwrap(), runtime

    return asyncio.run(host())


def test_where_trio_is_a_guest_of_asyncio_each_has_its_own() -> None:
    hosts: list[Runtime] = []

    async def guest() -> tuple[Runtime, bool, bool]:
        loop = asyncio.get_running_loop()
        looked = trio.Event()
        outside: list[bool] = []
        mine = current_runtime()

        def in_host() -> None:
            hosts.append(current_runtime())
            outside.append(mine.is_here())
            looked.set()

        loop.call_soon(in_host)
        await looked.wait()
        return mine, outside[0], hosts[0].is_here()

    (mine, guest_is_there, host_is_here), host = guest_run(guest)
    assert (mine.name, hosts[0].name, host.name) == ("trio", "asyncio", "asyncio")
    assert (guest_is_there, host_is_here) == (False, False)


def test_a_guests_events_are_set_by_its_host() -> None:
    async def guest() -> bool:
        event = current_runtime().create_event()
        asyncio.get_running_loop().call_soon(event.set)
        return await event.wait(BOUND)

    assert guest_run(guest)[0]


@pytest.mark.parametrize("run", [lambda main: asyncio.run(main()), trio.run], ids=["asyncio", "trio"])
def test_it_has_ended_when_its_loop_has(run: Callable[[Callable[[], Any]], Any]) -> None:
    async def main() -> tuple[Runtime, Event, bool]:
        runtime = current_runtime()
        return runtime, runtime.create_event(), runtime.has_ended()

    runtime, event, had_ended = run(main)
    assert not had_ended
    assert runtime.has_ended()
    assert not runtime.is_here()
    event.set()
    assert event.is_set()
    runtime.run_soon(lambda: pytest.fail("there is nobody to run it"))
    in_threads(lambda: runtime.run_soon(lambda: None))

    async def later() -> tuple[bool, bool]:
        return runtime.is_here(), runtime.has_ended()

    assert run(later) == (False, True)


def test_an_asyncio_loop_that_stands_still_has_ended_for_the_time_being() -> None:
    loop = asyncio.new_event_loop()

    async def main() -> tuple[Runtime, bool]:
        return current_runtime(), current_runtime().has_ended()

    runtime, had_ended = loop.run_until_complete(main())
    assert (had_ended, runtime.has_ended()) == (False, True)

    async def again() -> bool:
        return runtime.has_ended()

    assert not loop.run_until_complete(again())
    loop.close()
    assert runtime.has_ended()


# --- events ------------------------------------------------------------------------------------------------


async def waiting(tasks: int = 1) -> None:
    """Let other tasks come to where they wait."""
    for _ in range(3 * tasks):
        await anyio.lowlevel.checkpoint()


@pytest.mark.anyio
@every_runtime
async def test_an_event_that_is_set_before_the_wait_does_not_hold_it_up() -> None:
    event = current_runtime().create_event()
    assert not event.is_set()
    event.set()
    event.set()
    assert event.is_set()
    assert await event.wait()
    assert await event.wait(0)
    assert await event.wait(-1.0)


class OnDeletion:
    """Does something when it goes."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def __del__(self) -> None:
        self.act()


def by_a_cycle_that_is_collected(event: Event) -> None:
    finalised = OnDeletion(event.set)
    finalised.itself = finalised  # type: ignore[attr-defined]  # any attribute makes the cycle
    del finalised
    gc.collect()


SETTERS: dict[str, Callable[[Event], object]] = {
    "the task": lambda event: event.set(),
    "another thread": lambda event: in_threads(event.set),
    "many threads": lambda event: in_threads(event.set, 8),
    "a finaliser": by_a_cycle_that_is_collected,
    "a finaliser in another thread": lambda event: in_threads(lambda: by_a_cycle_that_is_collected(event)),
}


@pytest.mark.anyio
@every_runtime
@pytest.mark.parametrize("timeout", [None, BOUND, float("inf"), 1e300])
@pytest.mark.parametrize("set_it", SETTERS.values(), ids=SETTERS)
async def test_a_wait_ends_when_the_event_is_set(
    set_it: Callable[[Event], object], timeout: float | None
) -> None:
    event = current_runtime().create_event()
    results: list[bool] = []

    async def wait() -> None:
        results.append(await event.wait(timeout))

    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await waiting()
            assert results == []
            set_it(event)
            event.set()
    assert results == [True]


@pytest.mark.anyio
@every_runtime
@pytest.mark.parametrize("timeout", [0, 0.0, 0.01, -1.0])
async def test_a_wait_ends_when_its_time_is_over(timeout: float) -> None:
    runtime = current_runtime()
    event = runtime.create_event()
    begun = time.monotonic()
    with anyio.fail_after(BOUND):
        assert not await event.wait(timeout)
        # uvloop counts whole milliseconds.
        assert time.monotonic() - begun >= timeout - 0.001
        event.set()
        assert await event.wait(0), "a wait in vain does not spoil the next one"


@pytest.mark.anyio
@every_runtime
@pytest.mark.parametrize("timeout", [None, BOUND])
async def test_a_cancelled_wait_leaves_nothing_behind(timeout: float | None) -> None:
    event = current_runtime().create_event()
    results: list[bool] = []

    async def wait() -> None:
        results.append(await event.wait(timeout))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await waiting()
        tasks.cancel_scope.cancel()
    assert results == []
    with anyio.fail_after(BOUND):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await waiting()
            event.set()
            await waiting()
    assert results == [True]


@pytest.mark.anyio
@every_runtime
async def test_an_event_that_is_set_just_when_its_wait_is_cancelled_harms_nobody() -> None:
    for order in range(2):
        event = current_runtime().create_event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(event.wait)
            await waiting()
            if order:
                event.set()
            tasks.cancel_scope.cancel()
            event.set()
        await waiting()
        assert await event.wait(0)


@pytest.mark.anyio
@every_runtime
async def test_a_thread_that_sets_an_event_as_the_wait_begins_is_never_missed() -> None:
    runtime = current_runtime()
    events = [runtime.create_event() for _ in range(300)]

    def set_all() -> None:
        for event in events:
            event.set()

    thread = threading.Thread(target=set_all)
    thread.start()
    with anyio.fail_after(BOUND):
        for event in events:
            assert await event.wait()
    thread.join(BOUND)


@pytest.mark.parametrize("make_loop", [asyncio.SelectorEventLoop, VirtualLoop])
def test_an_event_whose_loop_was_closed_under_the_wait_is_set_without_an_error(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    loop = make_loop()
    events: list[Event] = []

    async def wait() -> None:
        events.append(current_runtime().create_event())
        await events[0].wait(BOUND)

    task = loop.create_task(wait())
    loop.call_later(0, loop.stop)
    loop.run_forever()
    loop.close()
    assert not task.done()
    vars_of_task: Any = task
    vars_of_task._log_destroy_pending = False  # that it is pending is the case
    events[0].set()
    in_threads(events[0].set)
    assert events[0].is_set()
    vars_of_task.get_coro().close()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})], ids=["asyncio"])
async def test_a_wait_for_years_is_no_more_than_asyncio_takes_and_leaves_no_timer() -> None:
    loop = asyncio.get_running_loop()
    event = current_runtime().create_event()
    begun = loop.time()
    assert not await event.wait(1e15)
    assert loop.time() == begun + 24 * 60 * 60
    event.set()
    assert await event.wait(1e15)
    task = asyncio.ensure_future(current_runtime().create_event().wait(60.0))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [timer for timer in loop._scheduled if not timer.cancelled()] == []  # type: ignore[attr-defined]  # private


# --- sleep -------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@every_runtime
async def test_it_sleeps() -> None:
    begun = time.monotonic()
    await current_runtime().sleep(0.01)
    assert time.monotonic() - begun >= 0.009
    with anyio.move_on_after(0):
        await current_runtime().sleep(1e9)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualLoop})], ids=["asyncio"])
async def test_it_sleeps_for_days() -> None:
    """Which is more than one timer takes."""
    runtime = current_runtime()
    begun = runtime.now()
    await runtime.sleep(3e5)
    assert runtime.now() - begun == 3e5


# --- functions and tasks -----------------------------------------------------------------------------------


@pytest.mark.anyio
@every_runtime
async def test_what_is_run_soon_runs_in_the_loop(anyio_backend_name: str) -> None:
    runtime = current_runtime()
    event = runtime.create_event()
    seen: list[tuple[str, int]] = []

    def note() -> None:
        seen.append((current_runtime().name, threading.get_ident()))
        if len(seen) == 2:
            event.set()

    runtime.run_soon(note)
    assert seen == [], "not at once"
    in_threads(lambda: runtime.run_soon(note))
    with anyio.fail_after(BOUND):
        await event.wait()
    assert seen == [(anyio_backend_name, threading.get_ident())] * 2


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.anyio
@every_runtime
async def test_what_is_spawned_runs_in_a_task_of_its_own_that_sees_nothing_of_the_caller(
    anyio_backend_name: str,
) -> None:
    runtime = current_runtime()
    event = runtime.create_event()
    seen: list[object] = []

    async def work() -> None:
        seen.extend((variable.get(), current_deadline(), current_runtime().name))
        variable.set("the task's own")
        await anyio.lowlevel.checkpoint()
        event.set()

    variable.set("the caller's")
    deadline = open_deadline(0, runtime.now)
    runtime.spawn(work)
    assert seen == []
    close_deadline(deadline)
    with anyio.fail_after(BOUND):
        await event.wait()
    assert seen == ["unset", None, anyio_backend_name]
    assert variable.get() == "the caller's"


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", backends()[:2])
async def test_a_spawned_task_lives_although_nobody_else_holds_it() -> None:
    """asyncio's loop has weak references only."""
    loop = asyncio.get_running_loop()
    done = asyncio.Event()
    futures: list[weakref.ref[asyncio.Future[None]]] = []

    async def work() -> None:
        future = loop.create_future()
        futures.append(weakref.ref(future))
        await future
        done.set()

    current_runtime().spawn(work)
    await waiting()
    gc.collect()
    future = futures[0]()
    assert future is not None
    future.set_result(None)
    del future
    await asyncio.wait_for(done.wait(), BOUND)
    await waiting()
    gc.collect()
    assert futures[0]() is None, "and no longer than it takes"


def test_a_task_is_spawned_by_a_factory_that_knows_no_contexts() -> None:
    seen: list[str] = []

    async def work() -> None:
        seen.append(variable.get())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(lambda loop, coroutine: asyncio.Task(coroutine, loop=loop))
        variable.set("the caller's")
        current_runtime().spawn(work)
        await waiting()

    contextvars.Context().run(asyncio.run, main())
    assert seen == ["unset"]


def test_a_run_that_is_about_to_end_takes_no_more_tasks() -> None:
    """Its last generators are finalised, and its last callbacks called, when no task can be spawned any more."""
    answers: list[bool] = []

    async def never_run() -> None:
        raise AssertionError

    async def generator() -> AsyncGenerator[None, None]:
        runtime = current_runtime()
        try:
            yield
        finally:
            answers.append(runtime.spawn(never_run))
            runtime.run_soon(lambda: answers.append(runtime.spawn(never_run)))

    async def main() -> AsyncGenerator[None, None]:
        kept = generator()
        await anext(kept)
        return kept

    kept = trio.run(main)
    assert answers == [False, False]
    del kept


# --- scopes ------------------------------------------------------------------------------------------------


def test_in_a_callback_of_a_loop_there_is_nothing_to_cancel() -> None:
    async def main() -> list[object]:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        seen: list[object] = []

        def callback() -> None:
            block = DeadlineBlock(0)
            block.open()
            seen.append(current_deadline() is block.deadline)
            seen.append(block.close(None, None, None))
            seen.append(current_deadline())
            done.set()

        loop.call_soon(callback)
        await done.wait()
        return seen

    assert asyncio.run(main()) == [True, None, None]


# --- shields -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
class TestShields:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request: pytest.FixtureRequest) -> Any:
        if request.param == "asyncio":
            return ("asyncio", {"loop_factory": VirtualLoop})
        return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})

    @pytest.mark.parametrize("takes", [1.0, 60.0])
    async def test_a_shielded_block_cleans_up_in_spite_of_the_cancellation_that_passes_by(
        self, takes: float
    ) -> None:
        now = current_runtime().now
        noted: list[Any] = []

        async def clean_up() -> None:
            begun = now()
            block, exceeded = await bounded(5.0, current_runtime().sleep, takes, shield=True)
            assert exceeded is None or exceeded.deadline is block.deadline
            noted.append((now() - begun, exceeded is not None))

        async def is_cancelled() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                await clean_up()

        block, exceeded = await bounded(1.0, is_cancelled)
        assert noted == [(min(takes, 5.0), takes > 5.0)]
        assert exceeded is not None
        assert exceeded.deadline is block.deadline

    async def test_laminas_waits_in_a_shielded_block_obey_that_alone(self) -> None:
        noted: list[float | None] = []

        async def clean_up() -> None:
            noted.append(Limit(None, current_runtime().now, "close").remaining())

        async def is_cancelled() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                await bounded(5.0, clean_up, shield=True)
                noted.append(Limit(None, current_runtime().now, "close").remaining())

        await bounded(1.0, is_cancelled)
        assert noted == [5.0, 0.0]


async def bounded(
    seconds: float, function: Callable[..., Awaitable[object]], *arguments: Any, shield: bool = False
) -> tuple[DeadlineBlock, DeadlineExceeded | None]:
    """The block, and the error that it would raise."""
    block = DeadlineBlock(seconds, shield=shield)
    block.open()
    try:
        await function(*arguments)
    except BaseException as exc:
        exceeded = block.close(type(exc), exc, None)
        if exceeded is None:
            raise
        return block, exceeded
    return block, block.close(None, None, None)


# --- imports -----------------------------------------------------------------------------------------------


def test_blocking_code_with_deadlines_imports_no_event_loop() -> None:
    code = """if True:
        import sys
        from lamina_interfaces import DeadlineBlock, Limit, current_runtime, drive
        block = DeadlineBlock(1.0)
        block.open()
        Limit(1.0, current_runtime().now, "read").check()
        drive(current_runtime().create_event().wait(0))
        block.close(None, None, None)
        print(*{"asyncio", "anyio", "trio"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_asyncio_code_imports_no_trio() -> None:
    code = """if True:
        import asyncio, sys
        from lamina_interfaces import DeadlineBlock
        async def main():
            block = DeadlineBlock(1.0)
            block.open()
            await asyncio.sleep(0)
            block.close(None, None, None)
        asyncio.run(main())
        print(*{"anyio", "trio"} & set(sys.modules))
    """
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
