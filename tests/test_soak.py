"""Many requests from many threads against a server that closes connections as it likes.

The default run does 5,000 requests; `pytest tests -m soak` does 200,000 and prints what it measured.
"""

from __future__ import annotations

import faulthandler
import gc
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from lamina_pool import ConnectionPool
from lamina_sync_backend import SyncBackend

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
