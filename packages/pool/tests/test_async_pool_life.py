"""The life of an async pool: event loops that end, forks, what is dropped, and streams that others have written."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import trio
import trio.testing

from lamina_interfaces import (
    AsyncNetworkBackend,
    AsyncNetworkStream,
    ConcurrencyError,
    DeadlineExceeded,
    LaminaError,
    Limit,
    PoolClosed,
    ReadError,
    running_runtime,
)
from lamina_pool import AsyncConnectionPool, PoolStats
from pool_async_net import (
    CustomStream,
    MemoryBackend,
    MemoryStream,
    WatchfulStream,
    checkpoint,
    checkpoints,
    echo,
    never,
    silent,
)
from pool_async_runs import (
    EVERYWHERE,
    VIRTUAL,
    Cancelled,
    Job,
    Jobs,
    VirtualLoop,
    all_tasks,
    ask,
    check_invariant,
    checked_pool,
    deadline,
    loop_options,
    now,
    pause,
    until,
    url,
)
from pool_loopback import Worker, request_for, response

URL = "http://example.com/"
EMPTY = PoolStats(0, 0, 0, 0, 0, 0)

Main = Callable[[], Coroutine[Any, Any, Any]]


@pytest.fixture(params=EVERYWHERE)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return loop_options(request.param)


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


HALF_AN_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome"
BAD_CHUNK = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nsome\r\nno number\r\n"


def half(stream: MemoryStream, head: bytes, body: bytes) -> None:
    stream.feed(HALF_AN_ANSWER)


# --- one loop after another --------------------------------------------------------------------------------


def run_asyncio(main: Main) -> Any:
    return asyncio.run(main())


def run_trio(main: Main) -> Any:
    return trio.run(main)


def run_uvloop(main: Main) -> Any:
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


class Stopped:
    """A loop that is left standing, and closed only at the end."""

    def __init__(self) -> None:
        self.loops: list[asyncio.AbstractEventLoop] = []

    def __call__(self, main: Main) -> Any:
        self.loops.append(asyncio.new_event_loop())
        return self.loops[-1].run_until_complete(main())

    def close(self) -> None:
        for loop in self.loops:
            loop.close()


RUNS = {"asyncio": run_asyncio, "trio": run_trio, "uvloop": run_uvloop}


@pytest.mark.parametrize("second", RUNS)
@pytest.mark.parametrize("first", [*RUNS, "stopped"])
@pytest.mark.parametrize("custom", [False, True], ids=["own", "custom"])
def test_a_pool_moves_on_when_its_loop_has_ended_I05(first: str, second: str, custom: bool) -> None:
    kind, wrap = (MemoryStream, CustomStream) if custom else (WatchfulStream, None)
    backend = MemoryBackend(kind=kind, wrap=wrap)
    pool = AsyncConnectionPool(network_backend=backend, max_connections=3)
    held: list[Any] = []
    stopped = Stopped()

    async def leave_a_mess() -> None:
        await ask(pool)
        backend.answer = half
        held.extend([await pool.handle_async_request(request_for(url())) for _ in range(2)])
        assert await anext(held[0].stream) == b"some"
        backend.answer = MemoryBackend().answer
        await ask(pool)

    async def go_on() -> None:
        tasks = all_tasks()
        for _ in range(3):
            await ask(pool)
            assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
        assert len(backend.streams) == 4
        assert backend.streams[-1].requests
        if not custom:
            assert [stream.is_closed for stream in backend.streams] == [True, True, True, False]
        # What is left of the first loop is told of in no way, and does no harm.
        await held[0].aclose()
        with pytest.raises(LaminaError):
            await held[1].aread()
        await held[1].aclose()
        await ask(pool)
        await until(lambda: not pool._world._closing)
        await checkpoints(2)
        check_invariant(pool, backend, tasks)
        await pool.aclose()
        await until(lambda: not pool._world._closing)
        assert all_tasks() == tasks

    (stopped if first == "stopped" else RUNS[first])(leave_a_mess)
    RUNS[second](go_on)
    stopped.close()
    assert backend.live == 0
    assert pool.stats() == EMPTY


@pytest.mark.parametrize("second", RUNS)
@pytest.mark.parametrize("first", RUNS)
def test_a_response_of_a_loop_that_has_ended_is_closed_before_the_pool_has_moved_I05(
    first: str, second: str
) -> None:
    backend = MemoryBackend(half)
    pool = AsyncConnectionPool(network_backend=backend)

    async def open_one() -> Any:
        return await pool.handle_async_request(request_for(url()))

    def small(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")

    held = RUNS[first](open_one)
    backend.answer = small
    rest_to_come = RUNS[first](open_one) if first != "uvloop" else None

    async def close() -> None:
        with pytest.raises(ConcurrencyError, match="another event loop"):
            await anext(held.stream)
        for answer in (held, rest_to_come):
            if answer is not None:
                await answer.aclose()

    RUNS[second](close)
    assert backend.live == 0
    assert pool.stats() == EMPTY
    RUNS[second](pool.aclose)


@pytest.mark.parametrize("second", RUNS)
@pytest.mark.parametrize("first", RUNS)
def test_a_response_that_is_dropped_in_another_loop_tells_its_age_by_its_own_clock_I05(
    first: str, second: str
) -> None:
    """trio's clock begins somewhere else."""
    backend = MemoryBackend(half)
    pool = AsyncConnectionPool(network_backend=backend)
    held: list[Any] = []

    async def open_one() -> None:
        held.append(await pool.handle_async_request(request_for(url())))

    async def drop_it() -> None:
        backend.answer = MemoryBackend().answer
        await ask(pool)
        with pytest.warns(
            ResourceWarning, match=r"never read to its end or closed; it came \d{1,2}\.\d s ago"
        ):
            held.clear()
        await pool.aclose()

    RUNS[first](open_one)
    RUNS[second](drop_it)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_pool_is_closed_in_another_loop_or_none_I05(run: Callable[[Main], Any]) -> None:
    backend = MemoryBackend()
    pool = AsyncConnectionPool(network_backend=backend)

    async def use() -> None:
        await ask(pool)

    run(use)
    with pytest.raises(StopIteration):
        pool.aclose().send(None)
    assert backend.live == 0

    async def refused() -> None:
        with pytest.raises(PoolClosed):
            await pool.request("GET", URL)

    run(refused)


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("other", RUNS.values(), ids=RUNS)
def test_two_loops_at_once_are_an_error_I05(
    run: Callable[[Main], Any], other: Callable[[Main], Any], backend: MemoryBackend
) -> None:
    pool = AsyncConnectionPool(network_backend=backend)

    async def intrude() -> None:
        with pytest.raises(ConcurrencyError, match="another event loop"):
            await pool.request("GET", URL)

    async def use() -> None:
        await ask(pool)
        Worker(other, intrude).result()
        await ask(pool)
        assert len(backend.streams) == 1
        await pool.aclose()

    run(use)
    assert backend.live == 0


def test_the_same_loop_may_stand_still_in_between(backend: MemoryBackend) -> None:
    pool = AsyncConnectionPool(network_backend=backend)
    loop = asyncio.new_event_loop()
    for _ in range(3):
        loop.run_until_complete(ask(pool))
    loop.run_until_complete(pool.aclose())
    loop.close()
    assert len(backend.streams) == 1


def test_who_waits_in_a_loop_that_stands_still_does_not_wait_for_ever_I05(backend: MemoryBackend) -> None:
    """The pool has moved on meanwhile; when that loop goes on, its requests end, queued ones too."""
    pool = AsyncConnectionPool(network_backend=backend, max_connections=1)
    loop = asyncio.new_event_loop()
    backend.answer = silent

    async def begin() -> list[asyncio.Task[Any]]:
        tasks = [asyncio.ensure_future(ask(pool)) for _ in range(3)]
        await until(lambda: pool.stats().queued == 2 and backend.streams and backend.streams[0].reads)
        return tasks

    async def end(tasks: list[asyncio.Task[Any]]) -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20.0)

    tasks = loop.run_until_complete(begin())
    backend.answer = echo
    trio.run(ask, pool)
    errors = loop.run_until_complete(end(tasks))
    loop.run_until_complete(ask(pool))
    loop.run_until_complete(pool.aclose())
    loop.close()
    assert [type(error) for error in errors] == [ReadError, ConcurrencyError, ConcurrencyError]
    assert "another event loop" in str(errors[-1])
    assert backend.live == 0


@pytest.mark.parametrize("comes_first", ["connection", "loop"])
def test_a_dial_in_a_loop_that_stands_still_ends_without_a_trace_I05(
    backend: MemoryBackend, comes_first: str
) -> None:
    """Its connection belongs to that loop, and must not be counted in the next one."""
    pool = AsyncConnectionPool(network_backend=backend)
    loop = asyncio.new_event_loop()
    connected = asyncio.Event()

    async def connecting(host: str, limit: Limit) -> None:
        await connected.wait()

    async def begin() -> asyncio.Task[Any]:
        task = asyncio.ensure_future(ask(pool))
        await until(lambda: pool.stats().connecting and "connect" in backend.steps)
        await checkpoints(3)
        return task

    async def end(task: asyncio.Task[Any]) -> Any:
        return (await asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 20.0))[0]

    backend.on_connect = connecting
    task = loop.run_until_complete(begin())
    backend.on_connect = None
    if comes_first == "connection":
        connected.set()
    trio.run(ask, pool)
    assert isinstance(loop.run_until_complete(end(task)), ConcurrencyError)
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
    assert backend.live == 1
    loop.run_until_complete(pool.aclose())
    loop.close()
    assert backend.live == 0


# --- forks -------------------------------------------------------------------------------------------------


def in_child(function: Callable[[], object]) -> int:
    """Fork; run it in the child. Returns the exit status, 0 if it raised nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of threads, which the test tools may have
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # a child that hangs is ended, even if it no longer runs Python
            gc.disable()
            warnings.simplefilter("ignore")  # trio finds the parent's signal handling in place
            function()
            status = 0
        except BaseException:  # noqa: BLE001 - it is told of
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("in_childs", [run_asyncio, run_trio], ids=["asyncio", "trio"])
@pytest.mark.parametrize("custom", [False, True], ids=["own", "custom"])
def test_a_fork_in_the_midst_of_a_loop_I04(
    run: Callable[[Main], Any], in_childs: Callable[[Main], Any], custom: bool
) -> None:
    """The child begins anew in a loop of its own; nothing of the parent's is written to or bid farewell."""
    kind, wrap = (MemoryStream, CustomStream) if custom else (WatchfulStream, None)
    backend = MemoryBackend(kind=kind, wrap=wrap)
    pool = AsyncConnectionPool(network_backend=backend)

    async def child_main() -> None:
        await ask(pool)
        assert len(backend.streams) == 3
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
        await pool.aclose()

    def child() -> None:
        assert pool.stats() == EMPTY
        asyncio._set_running_loop(None)  # as a child does that leaves the parent's loop alone
        context: Any = trio._core._run.GLOBAL_RUN_CONTEXT
        for name in ("runner", "task"):
            context.__dict__.pop(name, None)
        in_childs(child_main)
        inherited = backend.streams[:2]
        assert [len(stream.requests) for stream in inherited] == [1, 1]
        assert not {"aclose", "close_now"} & {how for stream in inherited for how in stream.closings}

    async def parent() -> None:
        held = await pool.handle_async_request(request_for(URL))
        await ask(pool)
        assert in_child(child) == 0
        assert pool.stats() == PoolStats(2, 1, 1, 0, 0, 1)
        await held.aread()
        await ask(pool)
        await pool.aclose()

    run(parent)
    assert len(backend.streams) == 2
    assert backend.live == 0


# --- what is dropped ---------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["response", "generator", "context"])
async def test_a_dropped_response_warns_and_its_place_comes_back_G08(
    backend: MemoryBackend, how: str
) -> None:
    backend.answer = half
    async with checked_pool(backend, max_connections=1) as pool:

        async def pieces() -> AsyncIterator[bytes]:
            answer = await pool.handle_async_request(request_for(URL))
            async for piece in answer.aiter_stream():
                yield piece

        if how == "response":
            answer: Any = await pool.handle_async_request(request_for(URL))
            assert await anext(answer.aiter_stream()) == b"some"
        elif how == "generator":
            answer = pieces()
            assert await anext(answer) == b"some"
        else:
            answer = pool.stream("GET", URL)
            await answer.__aenter__()
        assert pool.stats().active == 1
        backend.answer = MemoryBackend().answer
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            del answer
            gc.collect()  # asyncio's own hook takes hold of a generator, and closes it by a task
            await checkpoints(5)
            await ask(pool)
        assert any("was never read" in str(warning.message) for warning in caught)
        assert backend.live == 1


@pytest.mark.anyio
@pytest.mark.parametrize("by", ["here", "another thread"])
async def test_a_dropped_response_serves_who_waits_G08(backend: MemoryBackend, by: str) -> None:
    async with checked_pool(backend, max_connections=1) as pool, Jobs() as jobs:
        held = [await pool.handle_async_request(request_for(URL))]
        waiter = jobs.start(ask, pool)
        await until(lambda: pool.stats().queued)
        await checkpoints(3)
        with pytest.warns(ResourceWarning, match="never read"):
            if by == "here":
                held.clear()
            else:
                thread = threading.Thread(target=held.clear)
                thread.start()
                thread.join()
            end = 1_000_000
            while not waiter.is_done and end:
                end -= 1
                await checkpoint()
        await waiter.result()
        assert [stream.is_closed for stream in backend.streams] == [True, False]


@pytest.mark.anyio
async def test_a_result_that_is_lost_on_its_way_costs_no_place(backend: MemoryBackend) -> None:
    """A task that is cancelled when it has the response already, and nobody takes it: as `asyncio.wait_for` may do."""
    async with checked_pool(backend, max_connections=1) as pool:

        async def get_and_lose() -> None:
            response = await pool.handle_async_request(request_for(URL))
            await pause(1e6)
            await response.aread()

        for _ in range(3):
            async with Jobs() as jobs:
                job = jobs.start(get_and_lose)
                await until(lambda: pool.stats().active)
                await checkpoints(3)
                with pytest.warns(ResourceWarning, match="never read"):
                    job.cancel()
                    await job.outcome()
                    jobs.started.clear()
                    del job
                    gc.collect()
            await ask(pool)


# --- streams and backends that others have written ---------------------------------------------------------


@pytest.fixture
def custom() -> MemoryBackend:
    return MemoryBackend(kind=MemoryStream, wrap=CustomStream)


@pytest.mark.anyio
async def test_a_wrapper_serves_and_is_closed_by_waiting(custom: MemoryBackend) -> None:
    async with checked_pool(custom) as pool:
        await ask(pool)
        await ask(pool)
        assert len(custom.streams) == 1
    assert [wrapper.closings for wrapper in custom.wrapped] == [1]  # type: ignore[attr-defined] # they are `CustomStream`s


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["cancel", "close", "broken", "server closes"])
async def test_a_wrapper_is_closed_once_whatever_happens(custom: MemoryBackend, fault: str) -> None:
    tasks = all_tasks()
    custom.answer = silent
    if fault == "server closes":
        custom.answer = lambda stream, head, body: stream.feed(response(headers=b"Connection: close\r\n"))
    async with AsyncConnectionPool(network_backend=custom) as pool, Jobs() as jobs:
        job = jobs.start(pool.request, "GET", URL)
        if fault != "server closes":
            await until(lambda: custom.streams and custom.streams[0]._waiting)
        if fault == "cancel":
            job.cancel()
        elif fault == "close":
            await pool.aclose()
        elif fault == "broken":
            custom.streams[0].break_off()
        outcome = await job.outcome()
        kinds = {"cancel": Cancelled, "close": PoolClosed, "broken": LaminaError, "server closes": object}
        assert isinstance(outcome, kinds[fault])
        await until(lambda: not pool._world._closing)
        await checkpoints(2)
        assert [wrapper.closings for wrapper in custom.wrapped] == [1]  # type: ignore[attr-defined] # as above
        assert custom.live == 0
    check_invariant(pool, custom, tasks)


@pytest.mark.anyio
@pytest.mark.parametrize("manner", ["slow", "hangs", "raises"])
async def test_closing_the_pool_waits_for_wrappers_and_not_for_ever(
    custom: MemoryBackend, manner: str, anyio_backend: Any
) -> None:
    if anyio_backend not in [loop_options(name) for name in VIRTUAL] and anyio_backend[0] != "trio":
        return  # a matter of time, which is real there
    ended: list[str] = []

    async def closing(stream: CustomStream) -> None:
        try:
            if manner == "raises":
                raise OSError("cannot be closed")
            await pause(0.5 if manner == "slow" else 1e6)
        finally:
            ended.append(manner)

    custom.on_aclose = closing
    tasks = all_tasks()
    pool = AsyncConnectionPool(network_backend=custom)
    for number in range(3):
        await ask(pool, url(host=f"host{number}.example"))
    start = now()
    async with Jobs() as jobs:
        for job in [jobs.start(pool.aclose) for _ in range(3)]:
            await job.outcome_in_time()
        passed = now() - start
    await checkpoints(3)
    assert ended == [manner] * 3
    assert all_tasks() == tasks
    assert passed <= {"slow": 0.55, "hangs": 1.05, "raises": 0.05}[manner]
    assert not pool._world._closing


@pytest.mark.anyio
async def test_cancelling_the_close_of_a_pool_leaves_nothing_open_G05(custom: MemoryBackend) -> None:
    tasks = all_tasks()
    pool = AsyncConnectionPool(network_backend=custom)
    for number in range(3):
        await ask(pool, url(host=f"host{number}.example"))
    async with Jobs() as jobs:
        job = jobs.start(pool.aclose)
        await until(lambda: custom.wrapped[0].closings)  # type: ignore[attr-defined] # as above
        job.cancel()
        assert isinstance(await job.outcome(), Cancelled)
    await until(lambda: not custom.live)
    await checkpoints(3)
    assert all_tasks() == tasks


class DeafBackend(AsyncNetworkBackend):
    """Knows of no time limit at all."""

    def __init__(self, inner: MemoryBackend, phase: str) -> None:
        self.inner = inner
        self.phase = phase

    async def connect_tcp(self, *args: Any, **options: Any) -> AsyncNetworkStream:
        if self.phase == "connect":
            await pause(1e6)
        return DeafStream(await self.inner.connect_tcp(*args), self.phase)  # type: ignore[arg-type] # it is one

    async def sleep(self, seconds: float) -> None:
        await pause(1e6)


class DeafStream(CustomStream):
    def __init__(self, stream: MemoryStream, phase: str) -> None:
        super().__init__(stream)
        self.phase = phase

    async def start_tls(self, *args: Any, **options: Any) -> AsyncNetworkStream:
        await pause(1e6)
        return self

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        if self.phase == "read":
            await pause(1e6)
        return await super().read(max_bytes)

    async def write(self, buffer: Any, timeout: float | None = None) -> None:
        if self.phase == "write":
            await pause(1e6)
        await super().write(buffer)


@pytest.mark.anyio
@pytest.mark.parametrize("phase", ["connect", "tls", "write", "read", "pool"])
@pytest.mark.parametrize("how", ["deadline", "close"])
async def test_a_backend_that_knows_no_deadline_is_ended_all_the_same(
    backend: MemoryBackend, phase: str, how: str, anyio_backend: Any
) -> None:
    if anyio_backend[1].get("loop_factory", VirtualLoop) is not VirtualLoop:
        return  # as above
    tasks = all_tasks()
    target = "https://example.com/" if phase == "tls" else URL
    import ssl

    pool = AsyncConnectionPool(
        network_backend=DeafBackend(backend, phase),
        max_connections=1,
        ssl_context=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT),
    )
    held = await pool.handle_async_request(request_for(URL)) if phase == "pool" else None

    async def bounded() -> None:
        with deadline(1.0 if how == "deadline" else None):
            await pool.request("GET", target)

    async with Jobs() as jobs:
        start = now()
        job: Job = jobs.start(bounded)
        if how == "close":
            await pause(0.5)
            await pool.aclose()
            if phase in {"write", "read"}:
                # An exchange is nobody's to cancel but its own: it ends when the stream does.
                job.cancel()
        outcome = await job.outcome_in_time()
        assert now() - start <= 1.05
    if how == "deadline":
        assert isinstance(outcome, DeadlineExceeded), outcome
        assert outcome.phase == phase
        assert outcome.origin is not None
    elif phase not in {"write", "read"}:
        assert isinstance(outcome, PoolClosed), outcome
    if held is not None:
        await held.aclose()
    await pool.aclose()
    await checkpoints(3)
    assert pool.stats() == EMPTY
    assert backend.live == 0
    assert all_tasks() == tasks


@pytest.mark.anyio
async def test_a_wrapper_as_the_documents_show_it(backend: MemoryBackend) -> None:
    """A backend that tells of what it does, around another one; `abort` is left out."""
    told: list[str] = []

    class TellingStream(AsyncNetworkStream):
        def __init__(self, stream: AsyncNetworkStream) -> None:
            self.stream = stream

        async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
            told.append("read")
            return await self.stream.read(max_bytes, timeout=timeout)

        async def write(self, buffer: Any, timeout: float | None = None) -> None:
            told.append("write")
            await self.stream.write(buffer, timeout=timeout)

        async def aclose(self) -> None:
            told.append("aclose")
            await self.stream.aclose()

        def get_extra_info(self, info: str) -> Any:
            return self.stream.get_extra_info(info)

    class TellingBackend(AsyncNetworkBackend):
        async def connect_tcp(
            self,
            host: str,
            port: int,
            timeout: float | None = None,
            local_address: str | None = None,
            socket_options: Any = None,
        ) -> AsyncNetworkStream:
            told.append("connect")
            return TellingStream(
                await backend.connect_tcp(host, port, timeout, local_address, socket_options)
            )

    async with AsyncConnectionPool(network_backend=TellingBackend()) as pool:
        await ask(pool)
        await ask(pool)
    assert told == ["connect", "write", "read", "write", "read", "aclose"]
    assert backend.live == 0


def test_a_dropped_pool_warns_and_closes_its_connections_I06(backend: MemoryBackend) -> None:
    async def main() -> None:
        pool = AsyncConnectionPool(network_backend=backend)
        await ask(pool)
        with pytest.warns(ResourceWarning, match="unclosed pool with 1 connections"):
            del pool
        assert backend.live == 0

    for run in (run_asyncio, run_trio):
        run(main)


@pytest.mark.anyio
async def test_a_dial_that_is_under_way_when_the_pool_is_closed_I02(backend: MemoryBackend) -> None:
    """The connection comes after the closing, from a backend that let neither a deadline nor a cancellation stop it."""

    async def stubborn(host: str, limit: Limit) -> None:
        for _ in range(20):
            try:
                await checkpoint()
            except BaseException:
                if running_runtime() == "trio":
                    raise

    backend.on_connect = stubborn
    async with AsyncConnectionPool(network_backend=backend) as pool, Jobs() as jobs:
        job = jobs.start(ask, pool)
        await until(lambda: pool.stats().connecting)
        await checkpoints(5)
        await pool.aclose()
        assert isinstance(await job.outcome(), PoolClosed)
        assert backend.live == 0
        check_invariant(pool, backend)


@pytest.mark.anyio
async def test_the_backend_never_answers_a_call(backend: MemoryBackend) -> None:
    backend.on_connect = never
    async with checked_pool(backend) as pool, Jobs() as jobs:
        job = jobs.start(ask, pool)
        await until(lambda: pool.stats().connecting)
        job.cancel()
        assert isinstance(await job.outcome(), Cancelled)


@pytest.mark.anyio
@pytest.mark.parametrize("suspends", [False, True])
async def test_a_callback_closes_the_pool_at_any_event_I03(backend: MemoryBackend, suspends: bool) -> None:
    """Which is done within the request, in its own task: in the midst of its dial, its exchange, its body."""
    told: list[str] = []
    number = 0
    while True:
        number += 1
        told.clear()
        tasks = all_tasks()
        pool = AsyncConnectionPool(network_backend=backend)

        async def trace(
            event: str, info: dict[str, Any], pool: AsyncConnectionPool = pool, number: int = number
        ) -> None:
            told.append(event)
            if len(told) == number:
                await pool.aclose()
                await checkpoints(3 if suspends else 0)

        try:
            await ask(pool, extensions={"trace": trace})
        except PoolClosed as error:
            assert error.origin == "http://example.com:80"  # noqa: PT017 - at some events it is too late for an error
        else:
            assert number >= 8, told  # the whole answer was here
        if len(told) < number:
            break
        assert backend.live == 0
        check_invariant(pool, backend, tasks)
    await pool.aclose()
    assert number > 12
    assert backend.live == 0


@pytest.mark.parametrize("is_dropped", [False, True])
def test_a_wrapper_that_is_given_up_when_trio_takes_no_more_tasks(
    backend: MemoryBackend, is_dropped: bool
) -> None:
    """Nobody is left to wait for its closing; the run ends as if nothing had been."""
    backend.wrap, backend.answer = CustomStream, half
    pool = AsyncConnectionPool(network_backend=backend)

    async def finalised_last() -> AsyncIterator[bytes]:
        answer = await pool.handle_async_request(request_for(URL))
        try:
            yield await anext(answer.aiter_stream())
        finally:
            if is_dropped:
                with pytest.warns(ResourceWarning, match="never read"):
                    del answer
            else:
                await answer.aclose()

    async def main() -> AsyncIterator[bytes]:
        generator = finalised_last()
        assert await anext(generator) == b"some"
        return generator

    kept = trio.run(main)
    assert pool.stats() == EMPTY
    assert not pool._world._closing
    del kept


# What fails, by name: the server, and how the request is made.
FAILURES: dict[str, tuple[Callable[[MemoryStream, bytes, bytes], object], dict[str, float]]] = {
    "garbage": (lambda stream, *_: stream.feed(b"\0\0\r\n\r\n"), {}),
    "half": (lambda stream, *_: (stream.feed(HALF_AN_ANSWER), stream.feed_eof()), {}),
    "bad chunk": (lambda stream, *_: stream.feed(BAD_CHUNK), {}),
    "broken": (lambda stream, *_: stream.break_off(), {}),
    "closed": (lambda stream, *_: stream.feed_eof(), {}),
    "silent": (silent, {"read": 0.01}),
    "no time to connect": (silent, {"connect": 0.0}),
}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("name", "is_reused"),
    [
        (name, is_reused)
        for name in FAILURES
        for is_reused in ([False] if "connect" in name else [False, True])
    ],
)
async def test_a_failure_keeps_nothing_in_a_cycle_of_references(
    backend: MemoryBackend, name: str, is_reused: bool
) -> None:
    """A request may have a large body, and its caller much else; with the error all of it is freed at once."""

    class Body:
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b"body"

    kept: list[weakref.ref[object]] = []
    async with AsyncConnectionPool(network_backend=backend) as pool:
        if is_reused:
            await ask(pool)
        backend.answer, timeouts = FAILURES[name]
        gc.collect()
        gc.disable()
        try:
            body = Body()
            kept.append(weakref.ref(body))
            with pytest.raises(LaminaError):
                await pool.request("POST", url(), content=body, extensions={"timeout": timeouts})
            del body
            kept.extend(weakref.ref(stream) for stream in backend.streams)
            backend.streams.clear()
            await checkpoints(3)
            assert [reference() for reference in kept] == [None] * len(kept)
        finally:
            gc.enable()
