"""Which runtime runs, the driver for blocking code, and the primitives of threads."""

import asyncio
import inspect
import queue
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Coroutine, Generator
from types import ModuleType
from typing import Any, Self

import pytest

from lamina_interfaces import (
    THREADS,
    Deadline,
    Event,
    Runtime,
    ThreadRuntime,
    current_runtime,
    drive,
    running_runtime,
)

# --- which runtime runs ------------------------------------------------------------------------------------


def test_plain_code_runs_in_threads() -> None:
    assert running_runtime() == "threads"


def test_another_thread_of_an_asyncio_program_runs_in_threads() -> None:
    async def main() -> tuple[str, str]:
        return running_runtime(), await asyncio.to_thread(running_runtime)

    assert asyncio.run(main()) == ("asyncio", "threads")
    assert running_runtime() == "threads"


def test_an_asyncio_callback_runs_in_asyncio() -> None:
    async def main() -> str:
        seen: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(lambda: seen.set_result(running_runtime()))
        return await seen

    assert asyncio.run(main()) == "asyncio"


def test_a_trio_task_runs_in_trio_and_its_worker_thread_in_threads() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> tuple[str, str]:
        return running_runtime(), await trio.to_thread.run_sync(running_runtime)

    assert trio.run(main) == ("trio", "threads")
    assert running_runtime() == "threads"


def test_where_trio_is_a_guest_of_asyncio_each_task_is_told_its_own() -> None:
    trio = pytest.importorskip("trio")

    async def guest() -> str:
        await trio.sleep(0)
        return running_runtime()

    async def host() -> tuple[str, str]:
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=finished.set_result
        )
        in_host = running_runtime()
        return in_host, (await finished).unwrap()

    assert asyncio.run(host()) == ("asyncio", "trio")


@pytest.mark.parametrize("name", ["trio", "asyncio.events"])
def test_a_module_that_another_thread_is_importing_just_now_does_not_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    assert running_runtime() == "threads"


# --- the driver --------------------------------------------------------------------------------------------


class Suspend:
    """What an event loop's primitives do, and blocking ones never."""

    def __await__(self) -> Generator[str, None, None]:
        yield "suspended"


async def deep(levels: int, last: Awaitable[str]) -> str:
    return await (deep(levels - 1, last) if levels else last)


async def answer() -> str:
    return "answer"


def test_drive_returns_what_the_coroutine_returns() -> None:
    assert drive(answer()) == "answer"
    assert drive(deep(50, answer())) == "answer"


def test_drives_may_be_nested() -> None:
    async def outer() -> str:
        return drive(answer())

    assert drive(outer()) == "answer"


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), GeneratorExit(), TimeoutError()])
def test_drive_lets_every_exception_through_as_it_is(error: BaseException) -> None:
    async def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        drive(fail())
    assert caught.value is error


def test_a_stop_iteration_from_inside_is_not_taken_for_a_result() -> None:
    async def fail() -> None:
        raise StopIteration("bad")

    with pytest.raises(RuntimeError, match="StopIteration"):
        drive(fail())


def test_a_coroutine_that_suspends_is_refused_and_closed() -> None:
    happened: list[str] = []

    async def suspends() -> None:
        try:
            await Suspend()
            happened.append("went on")
        finally:
            happened.append("cleaned up")

    coroutine = suspends()
    with pytest.raises(RuntimeError, match=r"suspends.* suspended in blocking code.*event loop"):
        drive(coroutine)
    assert happened == ["cleaned up"]
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_a_primitive_of_an_event_loop_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="suspended in blocking code"):
            drive(asyncio.sleep(0))

    asyncio.run(main())


def test_async_with_and_async_for_are_driven_too() -> None:
    class Numbers:
        def __init__(self) -> None:
            self.left = [1, 2, 3]

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *exc_info: object) -> None:
            self.left.clear()

        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    async def total() -> int:
        result = 0
        async with Numbers() as numbers:
            async for number in numbers:
                result += number
        return result

    assert drive(total()) == 6


# --- events between threads --------------------------------------------------------------------------------

BOUND = 10.0  # seconds; nothing here takes a hundredth of it


def in_thread(coroutine: Coroutine[Any, Any, bool]) -> "queue.Queue[bool]":
    result: queue.Queue[bool] = queue.Queue()
    threading.Thread(target=lambda: result.put(drive(coroutine)), daemon=True).start()
    return result


def test_an_event_that_is_set_before_the_wait_does_not_block() -> None:
    event = THREADS.create_event()
    event.set()
    assert event.is_set()
    assert drive(event.wait())
    assert drive(event.wait(0))
    assert drive(event.wait())


def test_an_event_may_be_set_more_than_once() -> None:
    event = THREADS.create_event()
    for _ in range(3):
        event.set()
    assert drive(event.wait(0))
    event.set()
    assert event.is_set()
    assert drive(event.wait(0))


@pytest.mark.parametrize("timeout", [0, 0.0, 0.01, -0.5, -1])
def test_waiting_ends_when_its_time_is_over(timeout: float) -> None:
    event = THREADS.create_event()
    begun = time.monotonic()
    assert not drive(event.wait(timeout))
    assert time.monotonic() - begun >= timeout
    assert not event.is_set()


def test_a_wait_in_vain_does_not_spoil_the_next_one() -> None:
    event = THREADS.create_event()
    assert not drive(event.wait(0))
    event.set()
    assert drive(event.wait(0))


@pytest.mark.parametrize("timeout", [None, float("inf"), 1e300, 60.0])
def test_another_thread_ends_the_wait(timeout: float | None) -> None:
    event = THREADS.create_event()
    result = in_thread(event.wait(timeout))
    with pytest.raises(queue.Empty):
        result.get(timeout=0.01)
    event.set()
    assert result.get(timeout=BOUND)


def test_an_event_that_is_set_by_many_threads_at_once_is_set() -> None:
    for _ in range(50):
        event = THREADS.create_event()
        result = in_thread(event.wait(BOUND))
        setters = [threading.Thread(target=event.set) for _ in range(4)]
        for setter in setters:
            setter.start()
        assert result.get(timeout=BOUND)
        for setter in setters:
            setter.join(BOUND)


# --- the runtime of threads --------------------------------------------------------------------------------


def test_the_runtime_of_threads_has_what_a_runtime_has() -> None:
    runtime: Runtime = THREADS
    event: Event = runtime.create_event()
    assert runtime.name == "threads"
    assert time.monotonic() <= runtime.now() <= time.monotonic()
    assert not event.is_set()
    assert repr(runtime) == "<ThreadRuntime>"
    assert isinstance(runtime, ThreadRuntime)


def test_the_runtime_of_threads_is_always_here_and_never_ends() -> None:
    assert current_runtime() is THREADS
    assert (THREADS.is_here(), THREADS.has_ended()) == (True, False)
    runtime: Runtime = THREADS
    assert runtime.open_scope(Deadline(0, runtime.now)) is None, "nothing interrupts a thread"


def test_the_runtime_of_threads_does_at_once_what_others_do_soon() -> None:
    done: list[str] = []

    async def work() -> None:
        done.append("spawned")

    THREADS.run_soon(lambda: done.append("run soon"))
    THREADS.spawn(work)
    assert done == ["run soon", "spawned"]


def test_its_sleep_sleeps() -> None:
    begun = time.monotonic()
    drive(THREADS.sleep(0.01))
    assert time.monotonic() - begun >= 0.01
