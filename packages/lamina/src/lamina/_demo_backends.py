"""The same requests on every backend, for the demonstration: threads, and whatever event loops are installed.

Each contender sends its requests through a pool of its own. Then a deadline ends one that the server never answers, and
somebody cancels another one. Both times the pool, which may have one connection, has to be whole afterwards: the next
request goes through.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import lamina

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Coroutine, Iterator
    from typing import Protocol

    class Signal(Protocol):
        """An event of whichever runtime."""

        def set(self) -> object: ...

        async def wait(self) -> object: ...

    class Tasks(Protocol):
        """What the runtimes do each in their own way."""

        def signal(self) -> Signal: ...

        async def together(self, *jobs: Callable[[], Coroutine[Any, Any, None]]) -> None:
            """Run all of them at the same time, to their end."""

        async def cancelled(self, job: Callable[[], Coroutine[Any, Any, None]], begun: Signal) -> None:
            """Run it, cancel it once it has begun, and wait for its end."""


IN_A_ROW = 150
"""Requests one after the other, over one connection; once plain and once over TLS."""

WORKERS, EACH, CONNECTIONS, ROUNDS = 8, 10, 4, 3
"""At the same time: so many threads or tasks, with so many requests each, over so many connections, so often."""

LIMIT = 0.2
"""Seconds, of the deadline."""

PATIENCE: dict[str, dict[str, float]] = {"timeout": {"read": 10.0}}
"""Of a request that somebody else ends, should nobody do so."""

CLOCK_SLACK = 0.01
"""Seconds by which a deadline may seem early: uvloop reads its clock in milliseconds, and once for each turn."""


class Scene(NamedTuple):
    """Where the requests go.

    Attributes:
        url: makes one of a target; with `tls=True`, on the server that speaks TLS.
        trusting: its TLS settings; `None` if there is no such server.
        resolver: knows its name.
    """

    url: Callable[..., str]
    trusting: ssl.SSLContext | None
    resolver: lamina.Resolver


class Findings(NamedTuple):
    """What a contender has shown. Times are in seconds.

    Attributes:
        plain: for one request of those in a row; the median, since the server is in the same process, and at times its
            threads get in the way.
        tls: the same over TLS; `None` if that was left out.
        at_once: for one request of those at the same time, in the fastest round.
        wrong: how many answers were not the right ones.
        deadline: what ended the request that is never answered, in words.
        cancelled: what came of the one that somebody cancelled, in words.
        whole: whether the deadline, the cancellation and the pool were as they should be.
    """

    plain: float
    tls: float | None
    at_once: float
    wrong: int
    deadline: str
    cancelled: str
    whole: bool

    @property
    def requests(self) -> int:
        """How many there were that got an answer."""
        return IN_A_ROW * (1 if self.tls is None else 2) + WORKERS * EACH * ROUNDS

    @property
    def as_expected(self) -> bool:
        """Whether all went well."""
        return self.whole and not self.wrong


class Cut(NamedTuple):
    """A request that was ended before its answer came, and the pool after it.

    Attributes:
        seconds: from the deadline's or the cancellation's beginning to the end of the request.
        phase: what the request was doing; `None` if it was not ended in this way.
        counts: of the pool right after it: active connections, and requests in the queue.
        status: of the next request.
    """

    seconds: float
    phase: str | None
    counts: tuple[int, int]
    status: int

    @property
    def is_whole(self) -> bool:
        """Whether it was ended while it read, and the pool's only connection was free again."""
        return self.phase == "read" and self.counts == (0, 0) and self.status == 200


def findings(
    plain: float, tls: float | None, at_once: float, wrong: int, deadline: Cut, cancelled: Cut
) -> Findings:
    """Sum up."""
    in_time = LIMIT - CLOCK_SLACK <= deadline.seconds < 25 * LIMIT  # on a machine that is busy, too
    return Findings(
        plain,
        tls,
        at_once,
        wrong,
        f"phase {deadline.phase}, {deadline.seconds:.3f} s",
        f"after {cancelled.seconds * 1000:.1f} ms, then {cancelled.status}",
        in_time and deadline.is_whole and cancelled.is_whole,
    )


# --- threads -----------------------------------------------------------------------------------------------


def on_threads(scene: Scene) -> Findings:
    """The blocking pool."""

    def pool(**options: Any) -> lamina.ConnectionPool:
        backend = lamina.SyncBackend(resolver=scene.resolver)
        return lamina.ConnectionPool(scene.trusting, network_backend=backend, **options)

    wrong: list[int] = []

    def fetch(pool: lamina.ConnectionPool, numbers: range, *, tls: bool = False) -> None:
        answers = ((n, pool.request("GET", scene.url(f"/number/{n}", tls=tls)).content) for n in numbers)
        wrong.extend(n for n, content in answers if content != b"%d" % n)

    def in_a_row(*, tls: bool) -> float:
        times = [time.perf_counter()]
        with pool() as one:
            for n in range(IN_A_ROW):
                fetch(one, range(n, n + 1), tls=tls)
                times.append(time.perf_counter())
        return _median(times)

    def at_once() -> float:
        times = [time.perf_counter()]
        with pool(max_connections=CONNECTIONS) as shared:
            for _ in range(ROUNDS):
                threads = [threading.Thread(target=fetch, args=(shared, numbers)) for numbers in _shares()]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                times.append(time.perf_counter())
        return _fastest(times)

    def after(cut: lamina.ConnectionPool, seconds: float, phase: str | None) -> Cut:
        stats = cut.stats()
        return Cut(
            seconds, phase, (stats.active, stats.queued), cut.request("GET", scene.url("/number/1")).status
        )

    def deadline() -> Cut:
        phase = None
        with pool(max_connections=1) as cut:
            cut.request(
                "GET", scene.url("/number/0")
            )  # so that nothing is left to do within the limit but to wait
            begin = time.monotonic()
            try:
                with lamina.timeout(LIMIT):
                    cut.request("GET", scene.url("/silent"))
            except lamina.DeadlineExceeded as error:
                phase = error.phase
            return after(cut, time.monotonic() - begin, phase)

    def cancelled() -> Cut:
        """A thread cannot be cancelled; another one may close the response that it reads."""
        begun = threading.Event()
        errors: list[lamina.LaminaError] = []

        def read(response: lamina.Response) -> None:
            try:
                for _ in response.iter_stream():
                    begun.set()
            except lamina.LaminaError as error:
                errors.append(error)

        with pool(max_connections=1) as cut:
            with cut.stream("GET", scene.url("/stalled"), extensions=PATIENCE) as response:
                reader = threading.Thread(target=read, args=(response,))
                reader.start()
                begun.wait(PATIENCE["timeout"]["read"])
                begin = time.monotonic()
            reader.join()
            return after(cut, time.monotonic() - begin, errors[0].phase if errors else None)

    return findings(
        in_a_row(tls=False),
        None if scene.trusting is None else in_a_row(tls=True),
        at_once(),
        len(wrong),
        deadline(),
        cancelled(),
    )


# --- event loops -------------------------------------------------------------------------------------------


async def in_tasks(
    scene: Scene, tasks: Tasks, make_backend: Callable[..., lamina.AsyncNetworkBackend]
) -> Findings:
    """The async pool, under whatever runs."""

    def pool(**options: Any) -> lamina.AsyncConnectionPool:
        backend = make_backend(resolver=scene.resolver)
        return lamina.AsyncConnectionPool(scene.trusting, network_backend=backend, **options)

    wrong: list[int] = []

    async def fetch(pool: lamina.AsyncConnectionPool, numbers: range, *, tls: bool = False) -> None:
        for n in numbers:
            response = await pool.request("GET", scene.url(f"/number/{n}", tls=tls))
            if response.content != b"%d" % n:
                wrong.append(n)

    async def in_a_row(*, tls: bool) -> float:
        times = [time.perf_counter()]
        async with pool() as one:
            for n in range(IN_A_ROW):
                await fetch(one, range(n, n + 1), tls=tls)
                times.append(time.perf_counter())
        return _median(times)

    async def at_once() -> float:
        times = [time.perf_counter()]
        async with pool(max_connections=CONNECTIONS) as shared:
            for _ in range(ROUNDS):
                await tasks.together(*(partial(fetch, shared, numbers) for numbers in _shares()))
                times.append(time.perf_counter())
        return _fastest(times)

    async def after(cut: lamina.AsyncConnectionPool, seconds: float, phase: str | None) -> Cut:
        stats = cut.stats()
        response = await cut.request("GET", scene.url("/number/1"))
        return Cut(seconds, phase, (stats.active, stats.queued), response.status)

    async def deadline() -> Cut:
        phase = None
        async with pool(max_connections=1) as cut:
            await cut.request("GET", scene.url("/number/0"))  # as for threads
            begin = time.monotonic()
            try:
                async with lamina.timeout(LIMIT):
                    await cut.request("GET", scene.url("/silent"))
            except lamina.DeadlineExceeded as error:
                phase = error.phase
            return await after(cut, time.monotonic() - begin, phase)

    async def cancelled() -> Cut:
        begun = tasks.signal()
        begin = 0.0

        def listen(event: str, info: dict[str, Any]) -> None:
            nonlocal begin
            del info
            if event == "http11.receive_response_headers.started":
                begin = time.monotonic()
                begun.set()

        async with pool(max_connections=1) as cut:

            async def ask() -> None:
                try:
                    await cut.request("GET", scene.url("/silent"), extensions={"trace": listen, **PATIENCE})
                finally:
                    begun.set()  # should it fail before it has begun to wait

            await tasks.cancelled(ask, begun)
            return await after(cut, time.monotonic() - begin, "read")

    return findings(
        await in_a_row(tls=False),
        None if scene.trusting is None else await in_a_row(tls=True),
        await at_once(),
        len(wrong),
        await deadline(),
        await cancelled(),
    )


class AsyncioTasks:
    """asyncio's own means. Fulfils `Tasks`."""

    def signal(self) -> Signal:
        import asyncio

        return asyncio.Event()

    async def together(self, *jobs: Callable[[], Coroutine[Any, Any, None]]) -> None:
        import asyncio

        async with asyncio.TaskGroup() as group:
            for job in jobs:
                group.create_task(job())

    async def cancelled(self, job: Callable[[], Coroutine[Any, Any, None]], begun: Signal) -> None:
        import asyncio

        task = asyncio.create_task(job())
        await begun.wait()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass


class NurseryTasks:
    """Those of trio and anyio, which agree on their names. Fulfils `Tasks`.

    Args:
        event: makes one.
        nursery: makes a nursery, or task group.
    """

    def __init__(self, event: Callable[[], Signal], nursery: Callable[[], Any]) -> None:
        self.signal = event
        self._nursery = nursery

    async def together(self, *jobs: Callable[[], Awaitable[None]]) -> None:
        async with self._nursery() as nursery:
            for job in jobs:
                nursery.start_soon(job)

    async def cancelled(self, job: Callable[[], Awaitable[None]], begun: Signal) -> None:
        async with self._nursery() as nursery:
            nursery.start_soon(job)
            await begun.wait()
            nursery.cancel_scope.cancel()


def on_asyncio(scene: Scene, *, uvloop: bool = False) -> Findings:
    """`AsyncioBackend`, in the loop of the standard library or in uvloop's."""
    import asyncio

    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None
    if uvloop:
        from uvloop import new_event_loop as new_loop
    # Without debug mode, whatever the interpreter was started with: it would slow this one contender down, and write
    # to the standard error.
    with asyncio.Runner(debug=False, loop_factory=new_loop) as runner:
        return runner.run(in_tasks(scene, AsyncioTasks(), lamina.AsyncioBackend))


def on_anyio(scene: Scene, *, runtime: str) -> Findings:
    """`AnyIOBackend`, on either runtime."""
    import anyio

    tasks = NurseryTasks(anyio.Event, anyio.create_task_group)
    options = {"debug": False} if runtime == "asyncio" else {}
    return anyio.run(in_tasks, scene, tasks, lamina.AnyIOBackend, backend=runtime, backend_options=options)


def on_trio(scene: Scene) -> Findings:
    """`TrioBackend`."""
    import trio

    return trio.run(in_tasks, scene, NurseryTasks(trio.Event, trio.open_nursery), lamina.TrioBackend)


def _shares() -> Iterator[range]:
    for worker in range(WORKERS):
        yield range(1000 * worker, 1000 * worker + EACH)


def _median(times: list[float]) -> float:
    return sorted(_gaps(times))[len(times) // 2]


def _fastest(times: list[float]) -> float:
    return min(_gaps(times)) / (WORKERS * EACH)


def _gaps(times: list[float]) -> Iterator[float]:
    return (later - earlier for earlier, later in pairwise(times))


class Contender(NamedTuple):
    """One line of the table.

    Attributes:
        name: of runtime and backend.
        run: does it.
        modules: that have to be installed.
        install: what brings them, after `pip install`.
    """

    name: str
    run: Callable[[Scene], Findings]
    modules: tuple[str, ...] = ()
    install: str = ""


CONTENDERS = (
    Contender("threads, SyncBackend", on_threads),
    Contender("asyncio, AsyncioBackend", on_asyncio, ("lamina_async_backends",), "lamina[asyncio]"),
    Contender(
        "asyncio in uvloop, AsyncioBackend",
        partial(on_asyncio, uvloop=True),
        ("lamina_async_backends", "uvloop"),
        "lamina[asyncio] uvloop",
    ),
    Contender(
        "anyio on asyncio, AnyIOBackend",
        partial(on_anyio, runtime="asyncio"),
        ("lamina_async_backends", "anyio"),
        "lamina[anyio]",
    ),
    Contender(
        "anyio on trio, AnyIOBackend",
        partial(on_anyio, runtime="trio"),
        ("lamina_async_backends", "anyio", "trio"),
        "lamina[anyio,trio]",
    ),
    Contender("trio, TrioBackend", on_trio, ("lamina_async_backends", "trio"), "lamina[trio]"),
)
