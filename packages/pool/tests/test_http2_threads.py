"""The blocking pool over HTTP/2, under many threads, and under exceptions that strike anywhere.

As `test_pool_threads`. What is worse here: a request that is struck down leaves others behind on its connection. They
may fail with it, since nobody knows what was lost; but none of them may wait for ever, or get another one's answer.
"""

from __future__ import annotations

import random
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lamina_interfaces import LaminaError, ReadError, RemoteProtocolError, _deadlines, _runtimes
from lamina_pool import (
    ConnectionPool,
    _blocking,
    _body,
    _dialling,
    _http2,
    _http2_connection,
    _http2_exchange,
    _pool,
    _scheduler,
)
from pool_http2_blocking import HTTP2Backend, SharedStream, moody
from pool_http2_server import (
    MAX_CONCURRENT_STREAMS,
    Asked,
)
from pool_loopback import Worker, until
from pool_strikes import URL, Striker, Struck, alarm_everywhere, check_token, strike_everywhere

CONNECTIONS = 2
LINES_IN = tuple(
    module.__file__
    for module in (
        _pool,
        _body,
        _dialling,
        _blocking,
        _http2,
        _http2_connection,
        _http2_exchange,
        _scheduler,
        _deadlines,
        _runtimes,
    )
)


@pytest.fixture(autouse=True)
def frequent_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def make_pool(backend: HTTP2Backend) -> ConnectionPool:
    return ConnectionPool(network_backend=backend, max_connections=CONNECTIONS, http1=False, http2=True)


@pytest.mark.parametrize("is_custom", [False, True], ids=["prompt", "custom"])
def test_no_mix_up_on_shared_connections_H01(is_custom: bool) -> None:
    """16 threads, 100 requests each, over two connections of six streams each."""
    backend = HTTP2Backend(moody(1), settings={MAX_CONCURRENT_STREAMS: 6}, is_custom=is_custom)
    failures: list[LaminaError] = []

    def work(name: int) -> None:
        for number in range(100):
            method: dict[str, Any] = {"method": "POST", "content": b"body"} if number % 3 == 0 else {}
            try:
                check_token(pool, f"{name}-{number}", extensions={"timeout": {"pool": 30}}, **method)
            except (ReadError, RemoteProtocolError) as error:
                failures.append(error)

    with make_pool(backend) as pool:
        for worker in [Worker(work, name) for name in range(16)]:
            worker.result(50.0)
        stats = pool.stats()
        assert (stats.active, stats.connecting, stats.queued, stats.requests) == (0, 0, 0, 0)
        assert backend.live == stats.idle
    assert not backend.violations
    assert backend.peak <= CONNECTIONS
    assert backend.live == 0
    assert len(failures) < 200


# --- exceptions at random points ---------------------------------------------------------------------------


def half(asked: Asked) -> None:
    """A server that stops in the midst of its answer where it is asked to."""
    if asked.target.startswith(b"/b"):
        asked.respond(b"some", ends=False)
    else:
        asked.respond()


def scenario(pool: ConnectionPool, tokens: Iterator[int]) -> None:
    """A request, an upload, a response that is left in the middle, and another request."""
    check_token(pool, f"a{next(tokens)}")
    check_token(pool, f"p{next(tokens)}", method="POST", content=iter([b"one", b"two"]))
    with pool.stream("GET", f"{URL}b{next(tokens)}") as got:
        assert got.status == 200
    check_token(pool, f"c{next(tokens)}")


def make_backend() -> HTTP2Backend:
    # One stream for each connection, so that two requests at the same time prove that both places came back.
    return HTTP2Backend(half, settings={MAX_CONCURRENT_STREAMS: 1})


@pytest.mark.parametrize("step", [23, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def test_an_exception_at_any_line_mixes_nothing_up_and_loses_no_place_G07(step: int) -> None:
    strike_everywhere(make_backend, make_pool, scenario, LINES_IN, step)


# By a thread, since the signal is the one by which a test is usually ended that hangs.
@pytest.mark.timeout(60, method="thread")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timer signals here")
def test_an_alarm_at_any_moment_mixes_nothing_up_G07(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = make_backend()
    alarm_everywhere(backend, make_pool(backend), scenario, monkeypatch, most=300, seconds=3.0)


@pytest.mark.parametrize("step", [31, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
@pytest.mark.filterwarnings("ignore:the response to:ResourceWarning", "ignore:coroutine .* was never awaited")
def test_whoever_is_struck_down_leaves_no_other_one_waiting_G07(step: int) -> None:
    """Two other threads wait on the same connection, one of which reads for all, or the one that is struck does."""
    strike_at = random.randint(1, step) - step
    failed = 0
    while True:
        strike_at += step
        held: list[Asked] = []
        is_over = threading.Event()

        def serve(asked: Asked, held: list[Asked] = held, is_over: threading.Event = is_over) -> None:
            if asked.target.startswith(b"/held"):
                held.append(asked)  # first: whoever is tried again may come at any time
                if not is_over.is_set():
                    return
            half(asked)

        backend = HTTP2Backend(serve)
        pool = make_pool(backend)
        check_token(pool, "first")
        tokens = iter(range(10_000))
        others = [Worker(check_token, pool, f"held{number}") for number in range(2)]
        until(lambda: len(held) == 2)  # noqa: B023 - within this round
        striker = Striker(strike_at, LINES_IN)
        try:
            striker.run(scenario, pool, tokens)
        except Struck:
            pass
        is_over.set()
        for stream in list(backend.streams):
            assert isinstance(stream, SharedStream)
            with stream._changed:
                for asked in [asked for asked in held if asked.server is stream.peer]:
                    asked.respond()
        for other in others:
            outcome = other.outcome()
            assert outcome is None or isinstance(outcome, LaminaError), (strike_at, striker.where, outcome)
            failed += outcome is not None
        check_token(pool, "last")
        pool.close()
        assert not backend.violations, (strike_at, striker.where, backend.violations)
        if striker.where is None:
            break
    assert strike_at > 300
