"""What a pool says of itself, for each origin and in all, and what a `PoolTimeout` says of it."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest

from lamina_interfaces import ConnectError, DeadlineExceeded, PoolTimeout
from lamina_pool import AsyncConnectionPool, ConnectionPool, Origin, OriginStats, PoolStats, Proxy
from pool_async_net import MemoryBackend, checkpoints, silent
from pool_async_runs import VIRTUAL, Jobs, ask, deadline, loop_options, pause, until, url
from pool_helpers import HEAD, OK, ScriptedBackend
from pool_http2_net import HTTP2Backend

A, B, C = (Origin(b"http", name, 80) for name in (b"a.test", b"b.test", b"c.test"))


@pytest.fixture(params=VIRTUAL)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return loop_options(request.param)


def test_a_row_for_each_origin_where_they_are_asked_for() -> None:
    backend = ScriptedBackend([HEAD, OK], [HEAD, OK], [HEAD, OK])
    with ConnectionPool(network_backend=backend) as pool:
        assert pool.stats(per_origin=True).origins == {}
        pool.request("GET", "http://a.test/")
        with pool.stream("GET", "http://b.test/"), pool.stream("GET", "http://b.test/"):
            stats = pool.stats(per_origin=True)
            assert stats == PoolStats(3, 2, 1, 0, 0, 2)
            assert stats.origins == {A: OriginStats(0, 1, 0, 0), B: OriginStats(2, 0, 0, 0)}
            assert pool.stats() == stats
            assert pool.stats().origins == {}
        assert pool.stats(per_origin=True).origins[B] == OriginStats(0, 2, 0, 0)
    assert pool.stats(per_origin=True).origins == {}


def test_connections_to_one_origin_that_differ_in_other_things_are_one_row() -> None:
    backend = ScriptedBackend([HEAD, OK], [HEAD, OK])
    with ConnectionPool(network_backend=backend) as pool:
        pool.request("GET", "http://a.test/")
        pool.request("GET", "http://a.test/", extensions={"sni_hostname": "other.test"})
        assert pool.stats(per_origin=True).origins == {A: OriginStats(0, 2, 0, 0)}


def test_a_proxy_that_forwards_is_the_origin() -> None:
    proxy = Proxy("http://user:secret@proxy.test:3128/")
    with ConnectionPool(network_backend=ScriptedBackend([HEAD, OK]), proxy=proxy) as pool:
        pool.request("GET", "http://a.test/")
        assert pool.stats(per_origin=True).origins == {proxy.url.origin: OriginStats(0, 1, 0, 0)}


@pytest.mark.anyio
async def test_who_dials_who_waits_and_for_how_long(anyio_backend: Any) -> None:
    backend = MemoryBackend(silent)
    dials: list[str] = []

    async def hang(host: str, limit: Any) -> None:
        dials.append(host)
        while True:
            await pause(100.0)

    async with AsyncConnectionPool(network_backend=backend, max_connections=2) as pool, Jobs() as jobs:
        jobs.start(ask, pool, url(host="a.test"))
        await until(lambda: backend.streams)
        backend.on_connect = hang
        jobs.start(ask, pool, url(host="b.test"))
        await until(lambda: dials)
        assert pool.stats().oldest_wait == 0.0
        jobs.start(ask, pool, url(host="b.test"))
        await until(lambda: pool.stats().queued)
        await pause(2.0)
        first = jobs.start(ask, pool, url(host="c.test"))
        await until(lambda: pool.stats().queued == 2)
        await pause(3.0)
        stats = pool.stats(per_origin=True)
        assert stats == PoolStats(2, 1, 0, 1, 2, 1)
        assert stats.oldest_wait == pytest.approx(5.0)
        assert stats.origins == {
            A: OriginStats(1, 0, 0, 0),
            B: OriginStats(0, 0, 1, 1),
            C: OriginStats(0, 0, 0, 1),
        }
        first.cancel()
        await until(lambda: pool.stats().queued == 1)
        assert C not in pool.stats(per_origin=True).origins


@pytest.mark.anyio
async def test_a_request_that_has_its_connection_opened_does_not_stand_in_the_queue(
    anyio_backend: Any,
) -> None:
    backend = HTTP2Backend()
    gates: list[str] = []

    async def wait(host: str, limit: Any) -> None:
        gates.append(host)
        while len(gates) < 2:
            await checkpoints(1)

    backend.on_connect = wait
    async with AsyncConnectionPool(network_backend=backend, http1=False, http2=True) as pool, Jobs() as jobs:
        started = [jobs.start(ask, pool)]
        await until(lambda: gates)
        assert pool.stats() == PoolStats(1, 0, 0, 1, 0, 0)
        started.append(jobs.start(ask, pool))
        await until(lambda: pool.stats().queued)
        assert pool.stats() == PoolStats(1, 0, 0, 1, 1, 0)
        gates.append("open")
        for job in started:
            await job.result()
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


# --- PoolTimeout ---------------------------------------------------------------------------------------------


def held_up(pool: ConnectionPool, target: str) -> PoolTimeout:
    with pytest.raises(PoolTimeout) as caught:
        pool.request("GET", target, extensions={"timeout": {"pool": 0.0}})
    return caught.value


def test_a_timeout_shows_what_its_origin_has_and_what_the_pool_has() -> None:
    backend = ScriptedBackend([HEAD, OK], [HEAD, OK])
    with (
        ConnectionPool(network_backend=backend, max_connections=2) as pool,
        pool.stream("GET", "http://a.test/"),
        pool.stream("GET", "http://b.test/"),
    ):
        error = held_up(pool, "http://a.test/")
    assert error.stats == PoolStats(2, 2, 0, 0, 1, 2)
    assert error.stats.origins == {A: OriginStats(1, 0, 0, 1)}
    assert error.message.startswith(
        "no connection became free: connections to http://a.test:80: 1 active, 0 connecting, 0 idle, "
        "1 requests queued; in the whole pool: 2 active, 0 connecting, 0 idle, 1 requests queued; longest wait: 0."
    )
    assert error.origin == "http://a.test:80"


@pytest.mark.parametrize("copied", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))])
def test_a_timeout_keeps_it_when_it_is_copied_or_pickled(copied: Any) -> None:
    backend = ScriptedBackend([HEAD, OK])
    with (
        ConnectionPool(network_backend=backend, max_connections=1) as pool,
        pool.stream("GET", "http://a.test/"),
    ):
        error = held_up(pool, "http://a.test/")
    again = copied(error)
    assert (str(again), again.stats, again.stats.origins) == (str(error), error.stats, error.stats.origins)


def test_a_timeout_of_nobodys_pool_has_no_stats() -> None:
    assert PoolTimeout().stats is None


def test_a_deadline_that_ends_a_wait_shows_the_same_in_its_text() -> None:
    backend = ScriptedBackend([HEAD, OK])
    with (
        ConnectionPool(network_backend=backend, max_connections=1) as pool,
        pool.stream("GET", "http://a.test/"),
        pytest.raises(DeadlineExceeded, match=r"1 active.*1 requests"),
        deadline(0.01),
    ):
        pool.request("GET", "http://a.test/")


def test_stats_are_right_in_the_midst_of_failing_dials() -> None:
    seen: list[PoolStats] = []
    backend = ScriptedBackend(otherwise=lambda: ConnectError("no", phase="connect"))
    connect = backend._connect

    def looking(dial: Any) -> Any:
        seen.append(pool.stats(per_origin=True))
        return connect(dial)

    backend._connect = looking  # type: ignore[method-assign] # a fake
    with ConnectionPool(network_backend=backend) as pool:
        with pytest.raises(ConnectError):
            pool.request("GET", "http://a.test/")
        assert pool.stats(per_origin=True).origins == {}
    assert seen == [PoolStats(1, 0, 0, 1, 0, 0)]
    assert seen[0].origins == {A: OriginStats(0, 0, 1, 0)}


def test_may_be_asked_by_any_thread_while_requests_go_on() -> None:
    from itertools import cycle

    backend = ScriptedBackend(otherwise=lambda: cycle([HEAD, OK]))
    with ConnectionPool(network_backend=backend, max_connections=2) as pool:

        def work(number: int) -> None:
            for turn in range(100):
                pool.request("GET", f"http://{'abc'[(number + turn) % 3]}.test/")

        workers = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for worker in workers:
            worker.start()
        for _ in range(300):
            stats = pool.stats(per_origin=True)
            rows = stats.origins.values()
            assert sum(row.active for row in rows) == stats.active
            assert sum(row.idle for row in rows) == stats.idle
            assert sum(row.connecting for row in rows) == stats.connecting
            assert sum(row.queued for row in rows) == stats.queued
        for worker in workers:
            worker.join()
        assert pool.stats().queued == 0
