"""Load over real sockets: threads against a server that closes as it likes, and tasks that are cancelled at random.

The default run does 5,000 requests in threads, and 1,000 cancellations on each async backend; `pytest tests -m soak`
does 200,000 and 100,000, and prints what it measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import itertools
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import pytest
import trio

from lamina_pool import AsyncConnectionPool, ConnectionPool
from lamina_sync_backend import SyncBackend
from stack_helpers import assert_no_sockets_since, open_sockets
from stack_worlds import ASYNC, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamina_sync_backend import SyncStream

THREADS = 32
LIMIT = 8
MAX_GROWTH = 2 * 1024 * 1024
"""Bytes by which the resident memory may grow from a tenth of the way to the end (K03)."""


class Counts(NamedTuple):
    accepted: int
    live: int
    peak: int
    requests: int


class EchoServer:
    """The server in the other process."""

    def __init__(self, close_percent: float) -> None:
        script = Path(__file__).with_name("stack_echo_server.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(close_percent)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = f"http://127.0.0.1:{self._read()}"

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the server has ended"
        return line.strip()

    def counts(self) -> Counts:
        assert self._process.stdin is not None
        self._process.stdin.write("?\n")
        self._process.stdin.flush()
        return Counts(*map(int, self._read().split()))

    def stop(self) -> None:
        self._process.communicate(timeout=10)


@pytest.fixture
def server() -> Iterator[EchoServer]:
    server = EchoServer(close_percent=10)
    try:
        yield server
    finally:
        server.stop()


class CountingBackend(SyncBackend):
    """Knows at every new connection how many sockets there are, exactly; the server learns of an end only later."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._dialling = 0
        self._open: list[SyncStream] = []
        self._lock = threading.Lock()

    def connect_tcp(self, *arguments: Any, **options: Any) -> SyncStream:
        with self._lock:
            self._open = [stream for stream in self._open if stream.get_extra_info("socket").fileno() >= 0]
            self._dialling += 1
            self.peak = max(self.peak, len(self._open) + self._dialling)
        try:
            stream = super().connect_tcp(*arguments, **options)
            with self._lock:
                self._open.append(stream)
            return stream
        finally:
            with self._lock:
                self._dialling -= 1


def resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def run(pool: ConnectionPool, url: str, first: int, count: int) -> list[BaseException]:
    """`count` requests, numbered from `first`, from all threads. Returns what went wrong."""
    numbers = iter(range(first, first + count))
    lock = threading.Lock()
    failures: list[BaseException] = []

    def work() -> None:
        while not failures:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                got = pool.request("GET", f"{url}/{number}", extensions={"timeout": {"pool": 30, "read": 30}})
                assert got.content == b"/%d" % number, f"/{number} was answered with {got.content!r}"
            except BaseException as error:  # noqa: BLE001 - is handed to the test
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def soak(server: EchoServer, count: int) -> None:
    backend = CountingBackend()
    with ConnectionPool(max_connections=LIMIT, network_backend=backend) as pool:
        warm_up = count // 10
        assert run(pool, server.url, 0, warm_up) == []
        gc.collect()
        objects, resident = len(gc.get_objects()), resident_bytes()
        start = time.monotonic()
        assert run(pool, server.url, warm_up, count - warm_up) == []
        seconds = time.monotonic() - start
        gc.collect()
        grown, more = resident_bytes() - resident, len(gc.get_objects()) - objects
        stats = pool.stats()
        counts = server.counts()
        print(
            f"\n{count} requests, {THREADS} threads, limit {LIMIT}: {(count - warm_up) / seconds:.0f} requests/s; "
            f"{counts.accepted} connections, at most {backend.peak} at once; "
            f"resident {resident / 2**20:.1f} MiB {grown / 2**20:+.2f} MiB, objects {objects} {more:+d}"
        )
        assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0)
        assert stats.connections <= LIMIT
        # A dead connection's request may be asked again, so the server has heard at least as many.
        assert counts.requests >= count
        assert backend.peak <= LIMIT
        assert counts.peak <= 2 * LIMIT  # it may see the next connection before the end of the last
        assert grown < MAX_GROWTH
        assert abs(more) < 1000


@pytest.mark.timeout(60)
def test_five_thousand_requests_from_32_threads_H01_K03(server: EchoServer) -> None:
    soak(server, 5_000)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_200_000_requests_from_32_threads_H01_K03(
    server: EchoServer, capsys: pytest.CaptureFixture[str]
) -> None:
    faulthandler.cancel_dump_traceback_later()  # what takes minutes is no hang here
    with capsys.disabled():
        soak(server, 200_000)


# --- cancellation ------------------------------------------------------------------------------------------

TASKS = 40
CONNECTIONS = 10
CANCELLED_SHARE = 0.7
LONGEST = 0.006
"""Seconds after which a request is cancelled, at most: a little more than most of them take."""


class Churn:
    """Requests from many tasks, most of which are cancelled at a random moment.

    Attributes:
        cancelled: so many requests were; `done`: so many were answered.
    """

    def __init__(self, world: World, pool: AsyncConnectionPool, url: str, seed: int) -> None:
        self._world = world
        self._pool = pool
        self._url = url
        self._random = random.Random(seed)
        self._tokens = itertools.count()
        self.cancelled = self.done = 0

    def _cancelling(self, seconds: float) -> Any:
        """The loop's own cancellation of a task, or the scopes of anyio and trio."""
        if self._world.name.startswith("asyncio"):
            return asyncio.timeout(seconds)
        return (trio if self._world.name == "trio" else anyio).move_on_after(seconds)

    async def _ask(self) -> None:
        token = next(self._tokens)
        got = await self._pool.request("GET", f"{self._url}/{token}")
        assert got.content == b"/%d" % token, f"/{token} was answered with {got.content!r}"
        self.done += 1

    async def _ask_unless_cancelled(self) -> None:
        cancelling = self._cancelling(self._random.random() * LONGEST)
        done = self.done
        if isinstance(cancelling, asyncio.Timeout):
            with contextlib.suppress(TimeoutError):
                async with cancelling:
                    await self._ask()
            self.cancelled += cancelling.expired()
        else:
            with cancelling:
                await self._ask()
            self.cancelled += cancelling.cancelled_caught
        assert self.done >= done

    async def _work(self, until: int) -> None:
        while self.cancelled < until:
            if self._random.random() < CANCELLED_SHARE:
                await self._ask_unless_cancelled()
            else:
                await self._ask()

    async def go_on(self, until: int) -> None:
        """Until so many have been cancelled in all."""
        async with anyio.create_task_group() as group:
            for _ in range(TASKS):
                group.start_soon(self._work, until)

    async def follow_up(self) -> None:
        """As many requests as there are connections, all at once, and all of them served."""
        done = self.done
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for _ in range(CONNECTIONS):
                    group.start_soon(self._ask)
        assert self.done == done + CONNECTIONS


async def churn(world: World, url: str, count: int, seed: int) -> str:
    """`count` cancellations. Returns what was measured."""
    async with world.pool(max_connections=CONNECTIONS) as pool:
        requests = Churn(world, pool, url, seed)
        await requests.go_on(count // 10)
        await requests.follow_up()
        gc.collect()
        sockets, resident, tasks = len(open_sockets()), resident_bytes(), len(anyio.get_running_tasks())
        start = time.monotonic()
        await requests.go_on(count)
        seconds = time.monotonic() - start
        await requests.follow_up()
        gc.collect()
        grown = resident_bytes() - resident
        stats = pool.stats()
        assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0)
        assert stats.connections <= CONNECTIONS
        assert len(open_sockets()) <= sockets + CONNECTIONS
        assert len(anyio.get_running_tasks()) <= tasks
        assert grown < MAX_GROWTH, f"{grown} bytes more"
    return (
        f"{world.name}: {requests.cancelled} cancelled, {requests.done} answered, {TASKS} tasks, limit {CONNECTIONS}: "
        f"{(requests.cancelled * 0.9) / seconds:.0f} cancellations/s; resident {grown / 2**20:+.2f} MiB"
    )


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ASYNC)
def test_a_thousand_cancellations_on_real_sockets_G02(name: str, server: EchoServer) -> None:
    world = World(name)
    before = open_sockets()
    world.run(churn, world, server.url, 1_000, 7)
    assert_no_sockets_since(before)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["asyncio", "trio"])
def test_100_000_cancellations_on_real_sockets_G02(
    name: str, server: EchoServer, capsys: pytest.CaptureFixture[str]
) -> None:
    faulthandler.cancel_dump_traceback_later()  # what takes minutes is no hang here
    world = World(name)
    before = open_sockets()
    with capsys.disabled():
        print(f"\n{world.run(churn, world, server.url, 100_000, 7)}")
    assert_no_sockets_since(before)
