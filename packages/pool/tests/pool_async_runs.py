"""How the tests of the async pool run: the loops, virtual time, and what has to hold after each."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import selectors
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import anyio
import trio
import trio.testing

from lamina_interfaces import (
    ConnectError,
    DeadlineBlock,
    LaminaError,
    ReadError,
    WriteError,
    running_runtime,
)
from lamina_pool import AsyncConnectionPool, Response
from pool_async_net import CustomStream, MemoryBackend, checkpoint

HANG_SECONDS = 20.0
"""Seconds of real time after which a loop that waits for nothing is taken for one that hangs."""

_tokens = itertools.count(1)


class _JumpingSelector(selectors.DefaultSelector):
    """Does not wait: what it should have waited is time that has passed."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            ready = super().select(HANG_SECONDS)  # for a thread that calls
            assert ready, "the loop waits for ever"
        else:
            self.passed += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop in virtual time, as trio has with its `MockClock`."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return 1000.0 + self._jumping.passed


VIRTUAL = ["asyncio", "trio"]
"""Parameters of `anyio_backend` in virtual time."""

EVERYWHERE = [*VIRTUAL, *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]
"""The same, and uvloop, where it is installed; there time is real."""


def loop_options(name: str) -> tuple[str, dict[str, Any]]:
    """What anyio's fixture `anyio_backend` gives, by one of the names above."""
    if name == "trio":
        return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}
    if name == "uvloop":
        import uvloop

        return "asyncio", {"loop_factory": uvloop.new_event_loop}
    return "asyncio", {"loop_factory": VirtualLoop}


def now() -> float:
    """By the clock of the loop that runs."""
    return trio.current_time() if running_runtime() == "trio" else asyncio.get_running_loop().time()


# --- tasks -------------------------------------------------------------------------------------------------


def all_tasks() -> set[Any]:
    """Every task that there is, in this loop."""
    if running_runtime() == "asyncio":
        return set(asyncio.all_tasks())
    found: set[Any] = set()
    root = trio.lowlevel.current_root_task()
    pending = [] if root is None else [root]
    while pending:
        task = pending.pop()
        found.add(task)
        for nursery in task.child_nurseries:
            pending.extend(nursery.child_tasks)
    return found


class Job:
    """A task of its own, whose outcome is asked for later."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], nursery: trio.Nursery | None) -> None:
        self._coroutine = coroutine
        self._outcome: Any = None
        self.error: BaseException | None = None
        self.is_done = False
        self._scope = trio.CancelScope()
        self._task: asyncio.Task[None] | None = None
        self._ended = None
        if nursery is None:
            self._task = asyncio.get_running_loop().create_task(self._run())
        else:
            nursery.start_soon(self._run)

    async def _run(self) -> None:
        try:
            if self._task is not None:
                self._outcome = await self._coroutine
            else:
                with self._scope:
                    self._outcome = await self._coroutine
                if self._scope.cancelled_caught:
                    self.error = Cancelled()
        except asyncio.CancelledError:
            self.error = Cancelled()
        except Exception as error:  # noqa: BLE001 - it is looked at by the test
            self.error = error
        finally:
            self.is_done = True

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:
            self._scope.cancel()

    async def outcome(self, limit: int = 10_000) -> Any:
        """What it returned, or what ended it."""
        for _ in range(limit):
            if self.is_done:
                return self.error if self.error is not None else self._outcome
            await checkpoint()
        raise AssertionError("the task hangs")

    async def outcome_in_time(self, seconds: float = 100.0) -> Any:
        """The same, while time passes."""
        end = now() + seconds
        while not self.is_done:
            assert now() < end, "the task hangs"
            await pause(0.01)
        return await self.outcome()

    async def result(self) -> Any:
        outcome = await self.outcome()
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Cancelled(Exception):
    """What a `Job` tells of a task that ended by being cancelled."""


class Jobs:
    """Starts tasks; at the end of its block those that are left are cancelled."""

    def __init__(self) -> None:
        self._manager: Any = None
        self._nursery: trio.Nursery | None = None
        self.started: list[Job] = []

    def start(
        self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any, **options: Any
    ) -> Job:
        self.started.append(Job(function(*arguments, **options), self._nursery))
        return self.started[-1]

    async def __aenter__(self) -> Self:
        if running_runtime() == "trio":
            self._manager = trio.open_nursery()
            self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for job in self.started:
            if not job.is_done:
                job.cancel()
        if self._manager is not None:
            await self._manager.__aexit__(None, None, None)
        else:
            tasks = [job._task for job in self.started if job._task is not None and not job._task.done()]
            if tasks:
                await asyncio.wait(tasks)


async def pause(seconds: float) -> None:
    if running_runtime() == "trio":
        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


async def until(condition: Callable[[], Any], limit: int = 10_000) -> None:
    """Let the others run until something holds that they bring about."""
    for _ in range(limit):
        if condition():
            return
        await checkpoint()
    raise AssertionError("it never came about")


# --- striking ----------------------------------------------------------------------------------------------


class Stepper:
    """Awaits a coroutine, and calls `on_step` with the number of each of its suspensions, just before it."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], on_step: Callable[[int, Any], object]) -> None:
        self._coroutine = coroutine
        self._on_step = on_step

    def __await__(self) -> Generator[Any, Any, Any]:
        coroutine, number = self._coroutine, 0
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                yielded = coroutine.send(value) if error is None else coroutine.throw(error)
            except StopIteration as stop:
                return stop.value
            number += 1
            self._on_step(number, yielded)
            value = error = None
            try:
                value = yield yielded
            except BaseException as exc:  # noqa: BLE001 - it is thrown into the coroutine
                error = exc


class Strike:
    """Cancels a task when it suspends for the n-th time.

    Args:
        at: the numbers of the suspensions.
        late: not in the moment when it suspends, but when what it waits for has come about and it has not yet gone on.
            Only asyncio knows such a moment.
        by_anyio: by a scope of anyio's, which cancels the task again and again until it has left.

    Attributes:
        count: how often it suspended.
        was_cancelled: whether the cancellation came out of it.
    """

    def __init__(self, *at: int, late: bool = False, by_anyio: bool = False) -> None:
        self.at = set(at)
        self.late = late
        self.by_anyio = by_anyio
        self.count = 0
        self.was_cancelled = False

    async def run(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Returns what the function returned or raised."""
        if self.by_anyio:
            return await self._run_in_anyio(function)
        if running_runtime() == "trio":
            return await self._run_in_trio(function)
        return await self._run_in_asyncio(function)

    async def _run_in_trio(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        scopes = [
            trio.CancelScope() for _ in self.at
        ]  # innermost first: a shield inside lets none of them through

        def on_step(number: int, _: Any) -> None:
            self.count = number
            if number in self.at:
                scopes[len([at for at in self.at if at < number])].cancel()

        outcome: Any = None
        with _Stack(scopes):
            try:
                outcome = await Stepper(function(), on_step)
            except Exception as error:  # noqa: BLE001 - it is looked at
                outcome = error
        self.was_cancelled = any(scope.cancelled_caught for scope in scopes)
        return Cancelled() if self.was_cancelled else outcome

    async def _run_in_anyio(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        def on_step(number: int, _: Any) -> None:
            self.count = number
            if number in self.at:
                scope.cancel()

        outcome: Any = None
        with anyio.CancelScope() as scope:
            try:
                outcome = await Stepper(function(), on_step)
            except Exception as error:  # noqa: BLE001 - it is looked at
                outcome = error
        self.was_cancelled = scope.cancelled_caught
        return Cancelled() if self.was_cancelled else outcome

    async def _run_in_asyncio(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        task: asyncio.Task[Any]

        def on_step(number: int, yielded: Any) -> None:
            self.count = number
            if number not in self.at:
                return
            if self.late and yielded is not None:
                yielded.add_done_callback(lambda _: task.cancel())  # before the task's own, which comes next
            else:
                task.cancel()

        async def whole() -> Any:
            return await Stepper(function(), on_step)

        task = asyncio.get_running_loop().create_task(whole())
        await asyncio.wait([task])
        self.was_cancelled = task.cancelled()
        if self.was_cancelled:
            return Cancelled()
        return task.exception() or task.result()


MOST_POINTS = 200
"""More suspensions than any path has."""


async def strike_everywhere(
    run: Callable[[Strike], Awaitable[Any]], *, late: bool = False, by_anyio: bool = False
) -> int:
    """Cancel a run at its first suspension, then at its second, until one passes untouched.

    Returns:
        At how many of them the cancellation came out of it.
    """
    cancelled = 0
    for at in range(1, MOST_POINTS):
        strike = Strike(at, late=late, by_anyio=by_anyio)
        outcome = await run(strike)
        assert outcome is None or isinstance(outcome, Cancelled), outcome
        if strike.count < at:
            assert outcome is None
            return cancelled
        cancelled += outcome is not None
    raise AssertionError("the path has no end")


async def strike_twice(run: Callable[[Strike], Awaitable[Any]]) -> int:
    """The same with two, the second during the clean-up after the first, or after that. Returns how many there were."""
    pairs, strike = 0, Strike()
    for first in range(1, MOST_POINTS):
        for second in range(first + 1, MOST_POINTS):
            strike = Strike(first, second)
            outcome = await run(strike)
            assert outcome is None or isinstance(outcome, Cancelled), outcome
            if strike.count < second:
                break
            pairs += 1
        if strike.count < first:
            break
    return pairs


def lamina_error(step: str) -> LaminaError:
    """What a backend of lamina's own would raise in such a step."""
    if step in {"connect", "start_tls", "handshake", "sleep"}:
        return ConnectError("struck", phase="connect")
    return ReadError("struck", phase="read") if step == "read" else WriteError("struck", phase="write")


async def fail_everywhere(
    run: Callable[[int, Callable[[str], Exception]], Awaitable[Any]], fault: Callable[[str], Exception]
) -> int:
    """Let the backend fail at its first step, then at its second, until a run passes untouched. Returns how often."""
    for at in range(1, MOST_POINTS):
        struck: list[str] = []

        def strike(step: str, struck: list[str] = struck) -> Exception:
            struck.append(step)
            return fault(step)

        outcome = await run(at, strike)
        assert outcome is None or isinstance(outcome, (RuntimeError, LaminaError)), outcome
        if not struck:
            assert outcome is None, outcome
            return at - 1
    raise AssertionError("the path has no end")


class _Stack:
    """Several scopes as one `with` block; the last is the outermost."""

    def __init__(self, scopes: list[trio.CancelScope]) -> None:
        self._scopes = scopes

    def __enter__(self) -> None:
        for scope in reversed(self._scopes):
            scope.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        for scope in self._scopes:
            if scope.__exit__(None if exc is None else type(exc), exc, traceback):
                exc = None
        return exc is None


# --- the pool under test -----------------------------------------------------------------------------------


def url(path: str = "", scheme: str = "http", host: str = "example.com") -> str:
    """A URL that no other request has."""
    return f"{scheme}://{host}/{path}{next(_tokens)}"


async def ask(pool: AsyncConnectionPool, target: str | None = None, **options: Any) -> Response:
    """Ask an echo for what no other request asks; the answer has to be its own."""
    target = target or url()
    answer = await pool.request(options.pop("method", "GET"), target, **options)
    assert answer.content.endswith(target.rpartition("/")[2].encode()), (answer.content, target)
    return answer


def idle_streams(pool: AsyncConnectionPool) -> list[Any]:
    """The streams of the connections that idle in the pool, as the backend counts them."""
    public = [slot.connection.stream.public for slot in pool._pool._scheduler.slots() if slot.is_idle]
    return [stream.inner if isinstance(stream, CustomStream) else stream for stream in public]


def check_invariant(pool: AsyncConnectionPool, backend: MemoryBackend, tasks: set[Any] | None = None) -> None:
    """What has to hold, without any garbage collection, whenever no request is under way."""
    stats = pool.stats()
    assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0), stats
    idle = idle_streams(pool)
    assert stats.connections == stats.idle == len(idle), stats
    assert backend.open_streams == set(idle)
    assert not pool._pool._scheduler._waiters
    assert not pool._pool._sleepers
    assert not pool._pool._dialler._dials
    assert not pool._world._closing
    if tasks is not None:
        assert all_tasks() == tasks


@asynccontextmanager
async def checked_pool(backend: MemoryBackend, **options: Any) -> AsyncIterator[AsyncConnectionPool]:
    """A pool over this backend; at the end the invariant is checked, before and after closing it."""
    tasks = all_tasks()
    async with AsyncConnectionPool(network_backend=backend, **options) as pool:
        yield pool
        check_invariant(pool, backend, tasks)
    check_invariant(pool, backend, tasks)
    assert backend.live == 0


class deadline:  # noqa: N801 - stands for `lamina_timeouts.timeout`, which the pool's tests cannot import
    """A block with a deadline, as `lamina_timeouts.timeout` makes it."""

    def __init__(self, seconds: float | None) -> None:
        self.block = DeadlineBlock(seconds)

    def __enter__(self) -> Self:
        self.block.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        error = self.block.close(exc_type, exc, traceback)
        if error is not None:
            raise error


async def gather(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Run them side by side; what each returned or raised."""

    async def one(call: Callable[[], Awaitable[Any]]) -> Any:
        return await call()

    async with Jobs() as jobs:
        started = [jobs.start(one, call) for call in calls]
        return [await job.outcome() for job in started]
