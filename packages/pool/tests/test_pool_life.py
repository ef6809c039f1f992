"""The life of a pool: closing, forking, forgetting, expiry, and what is left behind."""

from __future__ import annotations

import faulthandler
import gc
import os
import re
import signal
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc
import warnings
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest

from lamina_interfaces import (
    ConnectError,
    LaminaError,
    Limit,
    NetworkStream,
    PoolClosed,
    ReadError,
)
from lamina_pool import ConnectionPool, PoolStats
from pool_loopback import (
    EchoServer,
    LoopbackBackend,
    MemoryBackend,
    MemoryStream,
    Worker,
    echo,
    request_for,
    response,
    target_of,
    until,
    wait_on,
)

if TYPE_CHECKING:
    from collections.abc import Callable

URL = "http://example.com/"
EMPTY = PoolStats(0, 0, 0, 0, 0, 0)


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


def silent(stream: MemoryStream, head: bytes, body: bytes) -> None:
    """A server that never answers."""


def half(stream: MemoryStream, head: bytes, body: bytes) -> None:
    stream.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome")


def stall(limit: Limit) -> None:
    condition = threading.Condition()
    with condition:
        while True:
            wait_on(condition, limit)


# --- closing -----------------------------------------------------------------------------------------------


def test_a_request_after_close_is_refused_and_opens_nothing_I01(backend: MemoryBackend) -> None:
    pool = ConnectionPool(network_backend=backend)
    pool.request("GET", URL)
    pool.close()
    assert backend.live == 0
    for _ in range(2):
        with pytest.raises(PoolClosed):
            pool.request("GET", URL)
        with pytest.raises(PoolClosed), pool.stream("GET", "http://other.example/"):
            pass
    assert len(backend.streams) == 1
    assert pool.stats() == EMPTY


def test_closing_ends_everything_within_a_second_I02() -> None:
    """Readers, queued, connecting, in a handshake, in the pause before a retry: all at once."""

    class Backend(MemoryBackend):
        def connect_tcp(
            self, host: str, port: int, timeout: float | None = None, *others: Any, **options: Any
        ) -> MemoryStream:
            if host == "blackhole.example":
                stall(Limit(timeout, time.monotonic, "connect"))
            if host == "refused.example":
                raise ConnectError("refused")
            return super().connect_tcp(host, port, timeout, *others, **options)

    backend = Backend(silent)
    backend.on_start_tls = lambda stream, limit: stall(limit)
    backend.on_sleep = lambda seconds: stall(Limit(seconds or None, time.monotonic, "connect"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pool = ConnectionPool(network_backend=backend, max_connections=40, retries=5, ssl_context=context)
    hosts = [
        "http://example.com/",
        "http://blackhole.example/",
        "http://refused.example/",
        "https://tls.example/",
    ]
    workers = []

    # Nothing but the closing ends a wait.
    limits = dict.fromkeys(("connect", "read", "write", "pool"), 50.0)

    def ask(url: str) -> object:
        return pool.request("GET", url, extensions={"timeout": limits})

    for url in hosts:
        for number in range(10):
            workers.append(Worker(ask, url))
            until(lambda: pool.stats().connections == len(workers))
            assert number < 10
    workers += [Worker(ask, url) for url in hosts for _ in range(5)]
    until(lambda: pool.stats() == PoolStats(40, 10, 0, 30, 20, 10))

    start = time.monotonic()
    pool.close()
    outcomes = [worker.outcome() for worker in workers]
    assert time.monotonic() - start < 4.0  # a small part of a second, on a machine that does nothing else
    assert {type(outcome) for outcome in outcomes} == {PoolClosed}
    assert {outcome.origin for outcome in outcomes} == {
        "http://example.com:80", "http://blackhole.example:80", "http://refused.example:80", "https://tls.example:443",
    }  # fmt: skip
    assert all(str(outcome) for outcome in outcomes)
    assert pool.stats() == EMPTY
    assert backend.live == 0


def test_closing_ends_the_reading_of_a_body_I02() -> None:
    backend = MemoryBackend(half)
    pool = ConnectionPool(network_backend=backend)
    got = pool.handle_request(request_for())
    pieces = got.iter_stream()
    assert next(pieces) == b"some"
    reader = Worker(next, pieces)
    until(lambda: backend.streams[0].reads == 2)
    pool.close()
    outcome = reader.outcome(5.0)
    assert isinstance(outcome, PoolClosed)
    assert isinstance(outcome.__cause__, ReadError)
    with pytest.raises(PoolClosed):
        next(pieces)
    got.close()


def test_closing_before_the_body_is_read_I02() -> None:
    backend = MemoryBackend(half)
    pool = ConnectionPool(network_backend=backend)
    got = pool.handle_request(request_for())
    pool.close()
    with pytest.raises(PoolClosed, match=r"origin http://example\.com:80"):
        got.read()
    got.close()
    assert backend.live == 0


class EndsOnAbort(MemoryStream):
    """A stream that, like a bare socket, reads as ended when it is closed by another thread."""

    def close(self) -> None:
        self._has_ended = True
        super().close()

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        try:
            return super().read(max_bytes, timeout)
        except ReadError:
            return b""


@pytest.mark.parametrize("by", ["pool", "response"])
def test_a_body_delimited_by_close_is_not_ended_by_our_own_closing(by: str) -> None:
    """A16: half a body as if it were whole is the worst that could be told."""

    def until_close(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.feed(b"HTTP/1.1 200 OK\r\n\r\nsome")

    class Backend(MemoryBackend):
        def _open(self, timeout: float | None) -> MemoryStream:
            stream = EndsOnAbort(self, 0)
            self.streams.append(stream)
            return stream

    backend = Backend(until_close)
    with ConnectionPool(network_backend=backend) as pool:
        got = pool.handle_request(request_for())
        reader = Worker(got.read)
        until(lambda: backend.streams[0].reads == 2)
        (pool if by == "pool" else got).close()
        outcome = reader.outcome(5.0)
        assert isinstance(outcome, PoolClosed if by == "pool" else LaminaError), outcome


@pytest.mark.parametrize(
    ("answer", "aborted"),
    [
        (lambda stream, head, body: stream.feed(response(headers=b"Connection: close\r\n")), False),
        (lambda stream, head, body: stream.feed(response()[:-2]) or stream.feed_eof(), True),
    ],
)
def test_a_connection_in_order_is_closed_with_a_farewell_and_a_broken_one_without(
    answer: Callable[[MemoryStream, bytes, bytes], None], aborted: bool
) -> None:
    backend = MemoryBackend(answer)
    with ConnectionPool(network_backend=backend) as pool:
        try:
            pool.request("GET", URL)
        except LaminaError:
            pass
        assert backend.streams[0].is_closed
        assert backend.streams[0].was_aborted == aborted


def test_close_twice_and_from_many_threads_I03(backend: MemoryBackend) -> None:
    pool = ConnectionPool(network_backend=backend)
    for number in range(5):
        pool.request("GET", f"http://host{number}.example/")
    for worker in [Worker(pool.close) for _ in range(10)]:
        worker.result()
    pool.close()
    assert backend.live == 0
    assert pool.stats() == EMPTY


def test_close_in_exit_keeps_the_exception_I03(backend: MemoryBackend) -> None:
    with (
        pytest.raises(KeyError, match="mine"),
        ConnectionPool(network_backend=backend) as pool,
        pool.stream("GET", URL),
    ):
        raise KeyError("mine")
    assert backend.live == 0


def test_a_dial_that_completes_after_close_is_closed_I02(backend: MemoryBackend) -> None:
    entered, gate = threading.Event(), threading.Event()

    def slow(limit: Limit) -> None:
        entered.set()
        assert gate.wait(10)

    backend.on_connect = slow
    pool = ConnectionPool(network_backend=backend)
    worker = Worker(pool.request, "GET", URL)
    assert entered.wait(10)
    pool.close()
    gate.set()
    assert isinstance(worker.outcome(), PoolClosed)
    assert (len(backend.streams), backend.live) == (1, 0)
    assert pool.stats() == EMPTY


# --- forks -------------------------------------------------------------------------------------------------

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")


def in_child(function: Callable[[], object]) -> int:
    """Run it in a forked child; returns the exit status, 0 if it raised nothing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: threads and forks; that is what is tested
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(20)  # a child that hangs is ended, even if it no longer runs Python
            function()
            status = 0
        except BaseException:  # noqa: BLE001 - a child must not run on into pytest
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@needs_fork
def test_a_forked_child_never_uses_the_connections_of_its_parent_I04() -> None:
    with EchoServer() as server, ConnectionPool(network_backend=LoopbackBackend()) as pool:
        url = f"http://127.0.0.1:{server.port}"
        peer = dict(pool.request("GET", f"{url}/idle").headers)[b"X-Peer"]
        held = pool.handle_request(request_for(f"{url}/large"))
        assert pool.stats().connections == 1
        second = pool.handle_request(request_for(f"{url}/second"))
        second.read()
        assert pool.stats() == PoolStats(2, 1, 1, 0, 0, 1)

        def child() -> None:
            assert pool.stats() == EMPTY
            for number in range(20):
                got = pool.request("GET", f"{url}/child{number}")
                assert got.content == b"/child%d" % number
                assert dict(got.headers)[b"X-Peer"] not in (peer, dict(second.headers)[b"X-Peer"])
            with pytest.raises(LaminaError):
                held.read()
            assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
            pool.close()

        assert in_child(child) == 0
        # The parent's connections are as they were: the child has neither written to nor shut them down.
        assert held.read() == b"/large" * 1_000_000
        for number in range(20):
            got = pool.request("GET", f"{url}/parent{number}")
            assert got.content == b"/parent%d" % number
            assert dict(got.headers)[b"X-Peer"] in (peer, dict(second.headers)[b"X-Peer"])
        assert pool.stats() == PoolStats(2, 0, 2, 0, 0, 0)


@needs_fork
def test_a_fork_while_another_thread_holds_the_lock_I04() -> None:
    with EchoServer() as server, ConnectionPool(network_backend=LoopbackBackend()) as pool:
        url = f"http://127.0.0.1:{server.port}/"
        pool.request("GET", url)
        held, gate = threading.Event(), threading.Event()

        def hold() -> None:
            with pool._pool._lock:
                held.set()
                gate.wait(20)

        holder = Worker(hold)
        assert held.wait(10)
        try:
            assert in_child(lambda: pool.request("GET", url)) == 0
        finally:
            gate.set()
            holder.result()
        assert pool.request("GET", url).content == b"/"


@needs_fork
def test_a_fork_in_the_midst_of_everything_I04() -> None:
    """Threads that read, wait and connect at the moment of the fork: the child knows nothing of them."""
    backend = MemoryBackend(silent)
    pool = ConnectionPool(network_backend=backend, max_connections=2)
    reading = Worker(pool.request, "GET", URL)
    until(lambda: pool.stats().active == 1)
    backend.on_connect = stall
    connecting = Worker(pool.request, "GET", "http://other.example/")
    queued = Worker(pool.request, "GET", URL)
    until(lambda: pool.stats() == PoolStats(2, 1, 0, 1, 1, 1))

    def child() -> None:
        assert pool.stats() == EMPTY
        fresh = MemoryBackend()
        pool._pool._world._backend = fresh  # type: ignore[attr-defined]
        assert pool.request("GET", URL).content == b"/"
        pool.close()
        with pytest.raises(PoolClosed):
            pool.request("GET", URL)

    assert in_child(child) == 0
    assert pool.stats() == PoolStats(2, 1, 0, 1, 1, 1)
    pool.close()
    for worker in (reading, connecting, queued):
        assert isinstance(worker.outcome(), PoolClosed)


@needs_fork
def test_a_closed_pool_is_closed_in_the_child_too_I04(backend: MemoryBackend) -> None:
    pool = ConnectionPool(network_backend=backend)
    pool.close()

    def child() -> None:
        with pytest.raises(PoolClosed):
            pool.request("GET", URL)

    assert in_child(child) == 0


# --- dropped, not closed -----------------------------------------------------------------------------------


def test_a_dropped_pool_warns_and_closes_its_connections_I06(backend: MemoryBackend) -> None:
    pool = ConnectionPool(network_backend=backend)
    pool.request("GET", URL)
    with pytest.warns(ResourceWarning, match="unclosed pool with 1 connection"):
        del pool
        gc.collect()
    assert backend.live == 0


def test_a_dropped_pool_without_connections_is_nobodys_business_I06(backend: MemoryBackend) -> None:
    pool = ConnectionPool(network_backend=backend)
    reference = weakref.ref(pool._pool)
    del pool
    assert reference() is None, "it took part in a cycle"


PRELUDE = """
import atexit, sys, warnings
sys.path.insert(0, {tests!r})
from lamina_pool import ConnectionPool
from pool_loopback import EchoServer, LoopbackBackend, MemoryBackend, MemoryStream, request_for
"""


def run_script(body: str, *options: str) -> subprocess.CompletedProcess[str]:
    script = PRELUDE.format(tests=str(Path(__file__).parent)) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, *options, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize(
    ("body", "warns"),
    [
        ("pool = ConnectionPool(network_backend=MemoryBackend()); pool.request('GET', 'http://a/')", True),
        (
            """
            pool = ConnectionPool(network_backend=MemoryBackend())
            pool.request('GET', 'http://a/')
            pool.close()
            """,
            False,
        ),
        (
            """
            pool = ConnectionPool(network_backend=MemoryBackend())
            atexit.register(pool.close)
            pool.request('GET', 'http://a/')
            """,
            False,
        ),
        (
            """
            pool = ConnectionPool(network_backend=MemoryBackend())
            def last():
                assert pool.request('GET', 'http://a/last').content == b'/last'
                pool.close()
                print('last')
            atexit.register(last)
            """,
            False,
        ),
        (
            """
            pool = ConnectionPool(network_backend=MemoryBackend())
            held = pool.handle_request(request_for('http://a/'))
            """,
            True,
        ),
        (
            """
            pool = ConnectionPool(network_backend=MemoryBackend())
            held = pool.handle_request(request_for('http://a/'))
            cycle = [pool, held]
            cycle.append(cycle)
            sys.modules['builtins'].keep = cycle
            """,
            None,
        ),
    ],
    ids=["dropped", "closed", "closed at exit", "used at exit", "half-read", "kept to the very end"],
)  # fmt: skip
def test_the_end_of_the_interpreter_leaves_no_traceback_I06(body: str, warns: bool | None) -> None:
    done = run_script(body, "-W", "default::ResourceWarning")
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    if warns is not None:
        assert ("ResourceWarning" in done.stderr) == warns, done.stderr


# --- half-read responses -----------------------------------------------------------------------------------

ABANDONED = (
    r"the response to GET http://example\.com:80/path was never read to its end or closed; it came \d\.\d s"
)


@pytest.mark.parametrize("read", [0, 1])
def test_a_dropped_response_warns_and_its_place_comes_back_G08(read: int) -> None:
    backend = MemoryBackend(half)
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        for _ in range(5):
            got = pool.handle_request(request_for("http://example.com/path?secret=x"))
            pieces = got.iter_stream()
            for _ in range(read):
                next(pieces)
            with pytest.warns(ResourceWarning, match=ABANDONED) as caught:
                del got, pieces
                gc.collect()
            assert len(caught) == 1
            assert "secret" not in str(caught[0].message)
            assert pool.stats() == EMPTY
            assert backend.live == 0


def test_a_dropped_response_serves_who_waits_in_the_queue_G08() -> None:
    """And nobody else touches the pool: whoever waits is all there is."""
    backend = MemoryBackend(half)
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        for _ in range(20):
            backend.answer = half
            held: Any = pool.handle_request(request_for())
            backend.answer = echo
            waiting = Worker(pool.request, "GET", "http://example.com/waited")
            until(lambda: pool._pool._scheduler.waiting == 1)  # not `stats()`, which would settle
            with pytest.warns(ResourceWarning):
                held = None
            assert held is None
            assert waiting.result(5.0).content == b"/waited"


def test_who_is_served_without_having_slept_is_not_woken_in_the_place_of_others_G08() -> None:
    """An idle connection to another origin was closed for it. Later a response is dropped while somebody waits."""
    backend = MemoryBackend()
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        pool.request("GET", URL)
        pool.request("GET", "http://other.example/")
        assert not pool._pool._sleepers
        dropped = [pool.handle_request(request_for())]
        waiter = Worker(pool.request, "GET", URL)
        until(lambda: pool.stats().queued == 1)
        with pytest.warns(ResourceWarning, match="never read"):
            dropped.clear()
            assert waiter.result().content == b"/"


def test_an_alarm_between_waking_and_sleeping_is_not_lost_G08() -> None:
    """A second response is dropped just as the waiting request has dealt with the first."""
    backend = MemoryBackend(half)
    pool = ConnectionPool(network_backend=backend, max_connections=2, max_connections_per_origin=1)
    with pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        dropped: dict[str, Any] = {
            "first": pool.handle_request(request_for("http://first.example/")),
            "wanted": pool.handle_request(request_for("http://wanted.example/")),
        }
        core = pool._pool
        settle = core._settle

        def watched() -> None:
            settle()
            if threading.current_thread().name == "waiting" and "first" not in dropped:
                dropped.clear()

        backend.answer = echo
        core._settle = watched  # type: ignore[method-assign]

        def wait() -> Any:
            threading.current_thread().name = "waiting"
            return pool.request("GET", "http://wanted.example/x")

        waiting = Worker(wait)
        until(lambda: core._scheduler.waiting == 1)
        del dropped["first"]
        assert waiting.result(5.0).content == b"/x"


def test_what_an_interrupt_has_left_undone_is_seen_by_whoever_falls_asleep_just_then_G08() -> None:
    """The closing that it was to wait for is lost while it is in the midst of its own step."""
    backend = MemoryBackend()
    with ConnectionPool(network_backend=backend, max_connections=1, max_keepalive_connections=0) as pool:
        reply = pool.handle_request(request_for(URL))
        core, stream = pool._pool, backend.streams[0]
        create_event, close = core._runtime.create_event, stream.close
        falls_asleep, is_struck = threading.Event(), threading.Event()

        def create_late() -> Any:
            falls_asleep.set()
            assert is_struck.wait(10)
            return create_event()

        def struck() -> None:
            stream.close = close  # type: ignore[method-assign] # so that it is struck once
            waiting.append(Worker(lambda: pool.request("GET", URL)))
            assert falls_asleep.wait(10)
            raise KeyboardInterrupt

        waiting: list[Any] = []
        core._runtime = Mock(wraps=core._runtime)
        core._runtime.create_event = create_late
        stream.close = struck  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            reply.read()
        is_struck.set()
        assert waiting[0].result(5.0).status == 200


def test_an_alarm_for_whoever_is_leaving_is_not_lost_to_the_next_G08() -> None:
    """An interrupted request gives its claim back; the alarm of a dropped response still goes to it."""
    backend = MemoryBackend(half)
    with ConnectionPool(network_backend=backend, max_connections=1) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        core = pool._pool
        held = [pool.handle_request(request_for(URL))]
        sleep = core._sleep_until_served
        waiting: list[Any] = []

        class Sleepers(dict[Any, None]):
            def pop(self, waiter: Any, default: Any = None) -> Any:
                if held and len(self) == 2:
                    backend.answer = echo
                    Worker(held.clear).result(5.0)
                return super().pop(waiter, default)

        async def struck(claim: Any, limit: Any, lone: Any = None) -> None:
            core._sleep_until_served = sleep  # type: ignore[method-assign]
            waiting.append(Worker(lambda: pool.request("GET", URL)))
            until(lambda: len(core._sleepers) == 2)
            raise KeyboardInterrupt

        core._sleepers = Sleepers()
        core._sleep_until_served = struck  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            pool.request("GET", URL)
        assert waiting[0].result(5.0).status == 200


def test_an_interrupt_between_giving_back_and_telling_who_waits_is_made_good_G08() -> None:
    backend = MemoryBackend()
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        core = pool._pool
        reply: Any = pool.handle_request(request_for(URL))
        waiting = Worker(lambda: pool.request("GET", URL))
        until(lambda: core._scheduler.waiting == 1)
        settle = core._settle

        def struck() -> None:
            core._settle = settle  # type: ignore[method-assign]
            raise KeyboardInterrupt

        core._settle = struck  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            reply.read()
        del reply  # which is when its finaliser runs
        assert waiting.result(5.0).status == 200


def test_a_dropped_response_is_taken_back_by_whoever_gives_back_the_next_G08() -> None:
    backend = MemoryBackend(half)
    with ConnectionPool(network_backend=backend) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        dropped: Any = pool.handle_request(request_for(URL))
        backend.answer = echo
        kept = pool.handle_request(request_for(URL))
        del dropped
        assert backend.live == 2  # a finaliser closes nothing
        kept.close()
        assert backend.live == 1


def test_thousands_of_dropped_responses_are_taken_back_at_once_G08() -> None:
    backend = MemoryBackend(half)
    with ConnectionPool(network_backend=backend, max_connections=None) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        held = [pool.handle_request(request_for()) for _ in range(3000)]
        assert pool.stats().active == 3000
        del held
        backend.answer = echo
        assert pool.request("GET", URL).content == b"/"
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
        assert backend.live == 1


def test_collecting_garbage_inside_the_lock_does_no_harm_G08() -> None:
    """The finaliser of a response runs in the middle of a step of the scheduler."""
    backend = MemoryBackend(half)
    with (
        ConnectionPool(network_backend=backend, max_connections=4, max_connection_age=1e9) as pool,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ResourceWarning)
        core = pool._pool
        collected = 0

        def collecting() -> float:
            nonlocal collected
            assert core.is_in_step
            collected += gc.collect()
            return 0.5

        core._scheduler._random = collecting
        for name in ("acquire", "release", "opened", "closed"):
            event = getattr(core._scheduler, name)

            def between(*arguments: Any, _event: Any = event, **options: Any) -> Any:
                collecting()
                actions = _event(*arguments, **options)
                collecting()
                return actions

            setattr(core._scheduler, name, between)

        def churn() -> None:
            for _ in range(10):
                got = pool.handle_request(request_for())
                cycle: list[Any] = [got, got.iter_stream()]
                cycle.append(cycle)
                del got, cycle  # or the thread would wait for what it holds itself

        gc.disable()
        gc.freeze()  # so that a collection looks only at what comes from here on
        try:
            workers = [Worker(churn) for _ in range(6)]
            # All of them may come to wait for a connection at once, and then nobody else collects.
            until(lambda: gc.collect() >= 0 and not any(worker.is_alive() for worker in workers), 30.0)
            for worker in workers:
                worker.result()
        finally:
            gc.unfreeze()
            gc.enable()
        gc.collect()
        assert collected > 0
        assert pool.stats() == EMPTY
        assert backend.live == 0


# --- expiry ------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self, pool: ConnectionPool) -> None:
        self.now = 1000.0
        pool._pool._now = pool._pool._dialler._now = lambda: self.now


@pytest.mark.parametrize(("idle", "reused"), [(4.999, True), (5.0, False), (5.001, False), (3600.0, False)])
def test_keepalive_expiry_is_exact_I07(backend: MemoryBackend, idle: float, reused: bool) -> None:
    with ConnectionPool(network_backend=backend, keepalive_expiry=5.0) as pool:
        clock = Clock(pool)
        pool.request("GET", URL)
        clock.now += idle
        pool.request("GET", URL)
        assert backend.streams[0].is_closed != reused
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
    assert len(backend.streams) == (1 if reused else 2)


@pytest.mark.parametrize(
    ("value", "idle", "reused"), [(b"5", 3.999, True), (b"5", 4.0, False), (b"1", 0.0, False)]
)
def test_the_servers_own_keep_alive_is_obeyed_I07(value: bytes, idle: float, reused: bool) -> None:
    backend = MemoryBackend(
        lambda s, head, body: s.feed(response(headers=b"Keep-Alive: timeout=%s\r\n" % value))
    )
    with ConnectionPool(network_backend=backend) as pool:
        clock = Clock(pool)
        pool.request("GET", URL)
        clock.now += idle
        pool.request("GET", URL)
    assert len(backend.streams) == (1 if reused else 2)


@pytest.mark.parametrize(("age", "reused"), [(9.999, True), (10.0, False)])
def test_a_connection_of_a_certain_age_takes_no_new_request_I07(
    backend: MemoryBackend, age: float, reused: bool
) -> None:
    with ConnectionPool(network_backend=backend, max_connection_age=10.0, age_jitter=0) as pool:
        clock = Clock(pool)
        pool.request("GET", URL)
        with pool.stream("GET", URL) as got:
            clock.now += age
            assert got.read() == b"/"  # what is under way ends well
        pool.request("GET", URL)
    assert len(backend.streams) == (1 if reused else 2)


def test_no_more_idle_connections_than_allowed_and_the_last_used_first_I07(backend: MemoryBackend) -> None:
    with ConnectionPool(network_backend=backend, max_keepalive_connections=2) as pool:
        held = [pool.handle_request(request_for()) for _ in range(4)]
        for got in held:
            got.read()
        assert pool.stats() == PoolStats(2, 0, 2, 0, 0, 0)
        assert [stream.is_closed for stream in backend.streams] == [True, True, False, False]
        pool.request("GET", URL)
        assert len(backend.streams[3].requests) == 2


def test_the_servers_own_close_wins_quietly_I07(backend: MemoryBackend) -> None:
    with ConnectionPool(network_backend=backend, keepalive_expiry=5.0) as pool:
        for _ in range(10):
            assert pool.request("POST", URL, content=b"x").status == 200
            backend.streams[-1].feed_eof()
    assert (len(backend.streams), backend.peak) == (10, 1)


# --- a stream that outlives its response -------------------------------------------------------------------


def switching(stream: MemoryStream, head: bytes, body: bytes) -> None:
    if head.startswith(b"CONNECT"):
        stream.feed(b"HTTP/1.1 200 OK\r\n\r\nleading")
    else:
        stream.feed(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nleading")


@pytest.mark.parametrize("method", ["GET", "CONNECT"])
def test_a_switched_stream_keeps_its_place_until_it_is_closed_I08(method: str) -> None:
    backend = MemoryBackend(switching)
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        for _ in range(3):
            target = {"target": b"example.com:443"} if method == "CONNECT" else {}
            request = request_for(method=method, extensions=target)
            if method == "GET":
                request.headers += [(b"Connection", b"upgrade"), (b"Upgrade", b"x")]
            got = pool.handle_request(request)
            stream: NetworkStream = got.extensions["network_stream"]
            assert got.read() == b""
            del got
            gc.collect()
            assert pool.stats() == PoolStats(1, 1, 0, 0, 0, 1)
            assert stream.get_extra_info("is_readable") is True
            assert stream.read(4) == b"lead"
            assert stream.read() == b"ing"
            backend.streams[-1].feed(b"more")
            assert stream.read(max_bytes=2) == b"mo"
            stream.write(b"question")
            assert bytes(backend.streams[-1]._written) == b"question"
            stream.close()
            stream.close()
            assert pool.stats() == EMPTY
            assert backend.live == 0


def test_a_switched_stream_ends_with_its_pool_I08() -> None:
    backend = MemoryBackend(switching)
    pool = ConnectionPool(network_backend=backend)
    request = request_for(method="CONNECT", extensions={"target": b"example.com:443"})
    stream = pool.handle_request(request).extensions["network_stream"]
    assert stream.read() == b"leading"
    reader = Worker(stream.read)
    until(lambda: backend.streams[0].reads == 2)
    pool.close()
    outcome = reader.outcome()
    assert isinstance(outcome, PoolClosed)
    assert (outcome.phase, outcome.origin) == ("read", "http://example.com:80")
    assert isinstance(outcome.__cause__, ReadError)
    stream.close()
    assert (backend.live, pool.stats()) == (0, EMPTY)


def test_a_dropped_switched_stream_gives_its_place_back_I08() -> None:
    backend = MemoryBackend(switching)
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        request = request_for(method="CONNECT", extensions={"target": b"example.com:443"})
        got = pool.handle_request(request)
        stream = got.extensions["network_stream"]
        with pytest.warns(ResourceWarning):
            del got, stream
            gc.collect()
        assert pool.stats() == EMPTY


# --- resources ---------------------------------------------------------------------------------------------


def hammer(pool: ConnectionPool, count: int) -> None:
    request = pool.request
    for _ in range(count):
        request("GET", URL)


def check_flat(count: int, warm_up: int) -> None:
    def answer(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.requests.clear()
        stream.feed(response(b"x"))

    backend = MemoryBackend(answer)
    with ConnectionPool(network_backend=backend) as pool:
        hammer(pool, warm_up)
        gc.collect()
        objects = len(gc.get_objects())
        tracemalloc.start()
        try:
            hammer(pool, 100)
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            tracemalloc.reset_peak()
            hammer(pool, 2000)
            gc.collect()
            after, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 64 * 1024
        assert peak - before < 1024 * 1024
        resident = resident_bytes()
        hammer(pool, count)
        gc.collect()
        assert abs(len(gc.get_objects()) - objects) < 500
        assert resident_bytes() - resident < 2 * 1024 * 1024
        core = pool._pool
        assert (len(core._scheduler._origins), len(core._scheduler._waiters)) == (1, 0)
        assert [
            len(each) for each in (core._todo, core._abandoned, core._sleepers, core._dialler._dials)
        ] == [
            0,
            0,
            0,
            0,
        ]


def resident_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
    assert found is not None
    return int(found[1]) * 1024


def test_memory_stays_flat_over_many_requests_K03() -> None:
    check_flat(20_000, warm_up=1_000)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_memory_stays_flat_over_a_million_requests_K03() -> None:
    faulthandler.cancel_dump_traceback_later()  # what takes minutes is no hang here
    check_flat(1_000_000, warm_up=10_000)


def test_ten_thousand_origins_leave_nothing_behind_K04() -> None:
    backend = MemoryBackend()
    backend.keep_streams = False
    with ConnectionPool(network_backend=backend, max_connections=10) as pool:
        for number in range(10_000):
            assert pool.request("GET", f"http://host{number}.example/").status == 200
        assert pool.stats() == PoolStats(10, 0, 10, 0, 0, 0)
        assert len(pool._pool._scheduler._origins) == 10
        assert (backend.live, backend.peak) == (10, 10)


def test_running_out_of_descriptors_is_an_error_and_passes_K02() -> None:
    pytest.importorskip("resource")
    done = run_script(
        """
        import resource
        from lamina_interfaces import ConnectError
        with EchoServer() as server:
            url = f'http://127.0.0.1:{server.port}/'
            pool = ConnectionPool(network_backend=LoopbackBackend(), max_connections=None)
            pool.request('GET', url)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
            # The server shares the process, and keeps its accepted sockets: half of them are its own.
            held, errors = [], 0
            while errors < 10:
                try:
                    held.append(pool.handle_request(request_for(url)))
                except ConnectError as error:
                    assert error.errno == 24, error
                    errors += 1
                assert len(held) < 64
            assert pool.stats().active == len(held) > 5, pool.stats()
            assert pool.stats().connecting == 0
            for response in held:
                assert response.read() == b'/'
            for _ in range(500):
                assert pool.request('GET', url).content == b'/'
            print('recovered', len(held))
            pool.close()
        """,
        "-W",
        "error",
    )
    assert done.returncode == 0, done.stderr
    assert "recovered" in done.stdout


def test_the_echo_of_the_test_server_is_the_target() -> None:
    assert target_of(b"GET /a HTTP/1.1\r\n\r\n") == b"/a"
