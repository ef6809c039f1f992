"""`timeout` on real clocks: asyncio, uvloop, trio, their worker threads, and blocks around whole runs."""

import asyncio
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trio

from lamina_interfaces import (
    THREADS,
    DeadlineExceeded,
    Limit,
    ReadTimeout,
    current_deadline,
    current_runtime,
    drive,
)
from lamina_timeouts import timeout
from timeouts_loops import lamina_waits

ROUNDING = 1e-6
BOUND = 20.0  # seconds; nothing here takes a tenth of it

uvloop_there = pytest.mark.skipif(sys.platform == "win32", reason="uvloop does not run there")


@pytest.fixture(
    params=[
        pytest.param("asyncio", id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="uvloop", marks=uvloop_there),
        pytest.param("trio", id="trio"),
    ]
)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


async def for_ever() -> None:
    await anyio.sleep_forever()


async def in_lamina() -> None:
    await lamina_waits(1e6)


every_wait = pytest.mark.parametrize(("wait", "phase"), [(for_ever, None), (in_lamina, "read")])


@pytest.mark.anyio
@every_wait
async def test_a_block_ends_when_its_seconds_are_over(wait: Callable[[], Any], phase: str | None) -> None:
    begun = time.monotonic()
    async with timeout(BOUND):
        with pytest.raises(DeadlineExceeded) as caught:
            async with timeout(0.05):
                await wait()
    # uvloop counts whole milliseconds.
    assert 0.049 <= time.monotonic() - begun < BOUND
    error = caught.value
    assert error.elapsed is not None
    assert 0.049 <= error.elapsed < BOUND
    assert (error.phase, error.limit) == (phase, 0.05)


@pytest.mark.anyio
@pytest.mark.parametrize("seconds", [0.0, 0.0004, 0.0006, 0.001, 0.0105])
async def test_short_blocks_end_too(seconds: float) -> None:
    for _ in range(20):
        with pytest.raises(DeadlineExceeded):
            async with timeout(seconds):
                await anyio.sleep(BOUND)


@pytest.mark.anyio
@every_wait
@pytest.mark.parametrize("limit", [None, 600.0])
async def test_another_thread_ends_the_block(
    wait: Callable[[], Any], phase: str | None, limit: float | None
) -> None:
    begun = time.monotonic()
    block = timeout(limit)
    thread = threading.Thread(target=block.reschedule, args=(0.01,))
    with pytest.raises(DeadlineExceeded):
        async with block:
            thread.start()
            await wait()
    thread.join(BOUND)
    assert time.monotonic() - begun < BOUND


@pytest.mark.anyio
async def test_a_worker_thread_that_was_given_the_context_counts_on_the_same_clock() -> None:
    """trio's begins somewhere else than the thread's own."""

    def work() -> tuple[float | None, float, float | None]:
        remaining = Limit(None, THREADS.now, "read").remaining()
        with timeout(1000.0) as inner:
            in_both = Limit(None, THREADS.now, "read").remaining()
            with pytest.raises(ReadTimeout):
                Limit(0, THREADS.now, "read").check()
            return remaining, inner.remaining, in_both

    async with timeout(600.0) as block:
        remaining, inner, in_both = await anyio.to_thread.run_sync(work)
        assert remaining is not None
        assert in_both is not None
        # uvloop's clock stands still within a turn, so that nothing is left of a duration but its rounding.
        assert 600.0 - BOUND < block.remaining <= in_both <= remaining <= 600.0 + ROUNDING
        assert 1000.0 - BOUND < inner <= 1000.0 + ROUNDING


@pytest.mark.anyio
async def test_a_wait_of_laminas_in_a_worker_thread_ends_with_the_block() -> None:
    ended: queue.Queue[BaseException] = queue.Queue()

    def work() -> None:
        try:
            drive(lamina_waits(1e6, phase="dns"))
        except DeadlineExceeded as error:
            ended.put(error)
            raise

    with pytest.raises(DeadlineExceeded) as caught:
        async with timeout(0.05):
            # Under asyncio the block is cancelled meanwhile and ends, perhaps before the thread looks.
            await anyio.to_thread.run_sync(work)
    assert caught.value.limit == 0.05
    in_thread = ended.get(timeout=BOUND)
    assert isinstance(in_thread, DeadlineExceeded)
    assert (in_thread.phase, in_thread.limit) == ("dns", 0.05)


# --- blocks around a whole run -----------------------------------------------------------------------------

RUNS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "asyncio": lambda main: asyncio.run(main()),
    "trio": trio.run,
}
every_run = pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)


@every_run
def test_a_threads_block_around_a_run_bounds_laminas_waits_in_it(
    run: Callable[[Callable[[], Any]], Any],
) -> None:
    async def main() -> None:
        deadline = current_deadline()
        assert deadline is not None
        async with timeout(BOUND) as inner:
            assert current_deadline() is not deadline
            assert BOUND - 1 < inner.remaining <= BOUND
            await lamina_waits(BOUND, phase="connect")

    with pytest.raises(DeadlineExceeded) as caught, timeout(0.05) as block:
        run(main)
    assert (caught.value.phase, caught.value.limit) == ("connect", 0.05)
    assert block.expired
    assert current_deadline() is None


@every_run
def test_a_tasks_block_inside_a_threads_one_ends_its_awaits_by_itself(
    run: Callable[[Callable[[], Any]], Any],
) -> None:
    async def main() -> None:
        async with timeout(0.05):
            await anyio.sleep_forever()

    with timeout(BOUND) as block, pytest.raises(DeadlineExceeded) as caught:
        run(main)
    assert caught.value.limit == 0.05
    assert not block.expired


def test_a_guests_and_its_hosts_blocks_are_their_own() -> None:
    async def guest() -> str:
        try:
            async with timeout(0.05):
                await trio.sleep_forever()
        except DeadlineExceeded:
            return current_runtime().name
        return "went on"

    async def host() -> str:
        loop = asyncio.get_running_loop()
        finished: asyncio.Future[Any] = loop.create_future()
        async with timeout(BOUND) as block:
            trio.lowlevel.start_guest_run(
                guest, run_sync_soon_threadsafe=loop.call_soon_threadsafe, done_callback=finished.set_result
            )
            with pytest.raises(DeadlineExceeded) as caught:
                async with timeout(0.02):
                    await asyncio.sleep(BOUND)
            assert caught.value.limit == 0.02
            outcome = await finished
        assert not block.expired
        result: str = outcome.unwrap()
        return result

    assert asyncio.run(host()) == "trio"
