"""The blocking pool under many threads, and under exceptions that strike anywhere.

The hard rule: whoever gets a response gets the answer to his own request. Every request carries a token, every
answer repeats it.
"""

from __future__ import annotations

import itertools
import random
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import (
    ConcurrencyError,
    LaminaError,
    PoolClosed,
    PoolTimeout,
    ReadError,
    RemoteProtocolError,
    _deadlines,
    _runtimes,
)
from lamina_pool import (
    ConnectionPool,
    PoolStats,
    _blocking,
    _body,
    _connection,
    _dialling,
    _pool,
    _scheduler,
)
from pool_loopback import (
    MemoryBackend,
    MemoryStream,
    Worker,
    request_for,
    response,
    target_of,
    until,
)
from pool_strikes import URL, Struck, alarm_everywhere, check_token, strike_everywhere

if TYPE_CHECKING:
    from collections.abc import Iterator

EMPTY = PoolStats(0, 0, 0, 0, 0, 0)


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


# --- concurrency -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_no_mix_up_and_never_more_connections_than_allowed_H01(seed: int) -> None:
    """32 threads, 150 requests each, limit 8; the server closes one connection in ten, in every way that there is."""
    choice = random.Random(seed)
    lock = threading.Lock()

    def answer(stream: MemoryStream, head: bytes, body: bytes) -> None:
        token = target_of(head)
        with lock:
            fate = choice.randrange(60)
        if fate == 0:  # says so
            stream.feed(response(token, headers=b"Connection: close\r\n"))
        elif fate in (1, 2):  # closes after the answer
            stream.feed(response(token))
            stream.feed_eof()
        elif fate == 3:  # closes instead of an answer
            stream.feed_eof()
        elif fate == 4:  # breaks off in the midst
            stream.feed(response(token)[:-2])
            stream.break_off()
        elif fate == 5:  # says something more
            stream.feed(response(token) + response(b"/nobody asked"))
        else:
            stream.feed(response(token))

    backend = MemoryBackend(answer)
    fine = itertools.count()
    failures: list[LaminaError] = []

    def work(name: int) -> None:
        for number in range(150):
            try:
                check_token(pool, f"{name}-{number}", extensions={"timeout": {"pool": 30}})
                next(fine)
            except (ReadError, RemoteProtocolError) as error:
                failures.append(error)

    with ConnectionPool(network_backend=backend, max_connections=8) as pool:
        workers = [Worker(work, name) for name in range(32)]
        for worker in workers:
            worker.result(50.0)
        stats = pool.stats()
        assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0)
        assert backend.live == stats.idle
    assert backend.peak <= 8
    assert backend.live == 0
    # What broke off before its answer on a reused connection is asked again; the rest, about one in forty, is told.
    assert next(fine) + len(failures) == 4800
    assert len(failures) < 400


def test_first_come_first_served_H02() -> None:
    backend = MemoryBackend()
    served: list[int] = []

    def ask(number: int) -> None:
        with pool.stream("GET", f"{URL}{number}") as got:
            served.append(number)
            got.read()

    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        held = pool.handle_request(request_for())
        workers = []
        for number in range(30):
            workers.append(Worker(ask, number))
            until(lambda: pool.stats().queued == len(workers))
        held.close()
        for worker in workers:
            worker.result()
    assert served == list(range(30))
    assert len(backend.streams) == 1


def test_a_busy_origin_does_not_starve_another_H03() -> None:
    """The one request to a quiet origin is served in its turn, however many come behind it."""
    stop = threading.Event()
    hot = itertools.count()

    def ask() -> None:
        while not stop.is_set():
            pool.request("GET", "http://hot.example/")
            next(hot)

    backend = MemoryBackend()
    with ConnectionPool(network_backend=backend, max_connections=2) as pool:
        workers = [Worker(ask) for _ in range(8)]
        try:
            for _ in range(20):
                before = next(hot)
                assert pool.request("GET", "http://cold.example/cold").content == b"/cold"
                turns = next(hot) - before
                assert turns < 2000, "starved"
        finally:
            stop.set()
            for worker in workers:
                worker.result()
    assert backend.peak <= 2


def test_two_threads_cannot_read_one_response_H04() -> None:
    def slowly(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsome")

    backend = MemoryBackend(slowly)
    with ConnectionPool(network_backend=backend) as pool:
        got = pool.handle_request(request_for())
        pieces = got.iter_stream()
        assert next(pieces) == b"some"
        reader = Worker(next, pieces)
        until(lambda: backend.streams[0].reads == 2)
        with pytest.raises(ConcurrencyError, match="another thread or task is reading"):
            next(pieces)
        backend.streams[0].feed(b"more")
        assert reader.result() == b"more"
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


def test_closing_a_response_that_another_thread_reads_H04() -> None:
    def half(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsome")

    backend = MemoryBackend(half)
    with ConnectionPool(network_backend=backend) as pool:
        got = pool.handle_request(request_for())
        reader = Worker(got.read)
        until(lambda: backend.streams[0].reads == 2)
        got.close()
        assert isinstance(reader.outcome(), ReadError)
        assert pool.stats() == EMPTY


def test_open_close_and_look_at_the_same_time_H05() -> None:
    stop = threading.Event()
    current: list[ConnectionPool] = []
    backend = MemoryBackend()

    def renew() -> None:
        for _ in range(60):
            pool = ConnectionPool(network_backend=backend, max_connections=3)
            before = current[:1]
            current[:] = [pool]
            for old in before:
                old.close()
        stop.set()

    def use() -> int:
        done = 0
        while not stop.is_set():
            try:
                check_token(current[0], f"{threading.get_ident()}-{done}")
                done += 1
            except PoolClosed:
                pass
        return done

    def look() -> None:
        while not stop.is_set():
            pool = current[0]
            assert repr(pool).startswith("<ConnectionPool [")
            stats = pool.stats()
            assert 0 <= stats.active + stats.idle + stats.connecting <= stats.connections <= 3
            for connection in pool.connections:
                assert connection.info()
                assert repr(connection)

    current.append(ConnectionPool(network_backend=backend, max_connections=3))
    workers = [Worker(renew), *(Worker(use) for _ in range(6)), Worker(look), Worker(look)]
    for worker in workers:
        worker.result(45.0)
    current[0].close()
    assert backend.live == 0


def test_waiters_that_give_up_pass_their_turn_on_G03() -> None:
    """Whoever is handed a connection in the moment in which his time is over hands it on."""
    backend = MemoryBackend()
    served = itertools.count()

    def ask(number: int) -> None:
        for _ in range(40):
            try:
                check_token(pool, f"{number}", extensions={"timeout": {"pool": 0.0005}})
                next(served)
            except PoolTimeout:
                pass

    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        for worker in [Worker(ask, number) for number in range(12)]:
            worker.result(30.0)
        check_token(pool, "afterwards", extensions={"timeout": {"pool": 1}})
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
    assert next(served) > 0
    assert backend.peak == 1


# --- exceptions at random points ---------------------------------------------------------------------------


def scenario(pool: ConnectionPool, tokens: Iterator[int]) -> None:
    """Two requests and a stream that is left in the middle; over reused connections, if there are any."""
    check_token(pool, f"a{next(tokens)}")
    with pool.stream("GET", f"{URL}b{next(tokens)}") as got:
        assert got.status == 200
    check_token(pool, f"c{next(tokens)}")
    check_token(pool, f"d{next(tokens)}", headers={"Connection": "close"})


def stale_scenario(pool: ConnectionPool, tokens: Iterator[int]) -> None:
    check_token(pool, f"a{next(tokens)}")
    for slot in pool._pool._scheduler.slots():
        slot.connection.stream.public.feed_eof()
    check_token(pool, f"b{next(tokens)}")
    pool.request("GET", f"http://other.example/{next(tokens)}")
    check_token(pool, f"c{next(tokens)}")


LINES_IN = tuple(
    module.__file__
    for module in (_pool, _body, _dialling, _blocking, _connection, _scheduler, _deadlines, _runtimes)
)


@pytest.mark.parametrize("stale", [False, True], ids=["plain", "stale"])
@pytest.mark.parametrize("step", [7, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_an_exception_at_any_line_mixes_nothing_up_and_loses_no_place_G07(step: int, stale: bool) -> None:
    strike_everywhere(
        MemoryBackend,
        lambda backend: ConnectionPool(network_backend=backend, max_connections=2),
        stale_scenario if stale else scenario,
        LINES_IN,
        step,
    )


# By a thread, since the signal is the one by which a test is usually ended that hangs.
@pytest.mark.timeout(60, method="thread")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timer signals here")
def test_an_alarm_at_any_moment_mixes_nothing_up_G07(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C: the handler of a signal raises, in a pool that lives on; 600 times, on a slow machine fewer."""
    backend = MemoryBackend()
    pool = ConnectionPool(network_backend=backend, max_connections=2)
    alarm_everywhere(backend, pool, scenario, monkeypatch)


def test_exceptions_in_some_threads_cost_the_others_nothing_G07() -> None:
    """One in three requests is struck down by what its own backend raises, in every place."""
    choice = random.Random(3)
    lock = threading.Lock()

    class Stream(MemoryStream):
        def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
            strike()
            return super().read(max_bytes, timeout)

        def write(self, buffer: Any, timeout: float | None = None) -> None:
            strike()
            super().write(buffer, timeout)

        def get_extra_info(self, info: str) -> Any:
            strike()
            return super().get_extra_info(info)

    class Backend(MemoryBackend):
        def _open(self, timeout: float | None) -> MemoryStream:
            strike()
            return Stream(self, 0)

    def strike() -> None:
        with lock:
            unlucky = choice.random() < 0.12
        if unlucky:
            raise Struck

    backend = Backend()
    struck = itertools.count()

    def work(name: int) -> None:
        for number in range(100):
            try:
                check_token(pool, f"{name}-{number}", extensions={"timeout": {"pool": 20}})
            except Struck:
                next(struck)

    with ConnectionPool(network_backend=backend, max_connections=4) as pool:
        for worker in [Worker(work, name) for name in range(16)]:
            worker.result(40.0)
        stats = pool.stats()
        assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0)
        assert backend.live == stats.connections
    assert backend.peak <= 4
    assert next(struck) > 100
