"""The listener for OpenTelemetry's numbers, with a meter that has nothing but what is asked of one."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from itertools import cycle, permutations
from typing import Any

import pytest

from lamina_interfaces import PoolTimeout
from lamina_pool import (
    CloseReason,
    ConnectionAcquired,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionPool,
    ConnectionReleased,
    OpenTelemetryMetrics,
    Origin,
    PoolEvent,
    ReleaseReason,
    RequestEnded,
    RequestStarted,
)
from lamina_pool._info import ConnectionFacts, ConnectionInfo
from pool_helpers import HEAD, OK, ScriptedBackend
from pool_journal import PlainMeter

URL = "http://a.test/"
ORIGIN = Origin(b"https", b"a.test", 8443)
SERVER = {"server.address": "a.test", "server.port": 80, "url.scheme": "http"}
VERSION = {"network.protocol.version": "1.1"}
NAMES = {
    "http.client.open_connections": "{connection}",
    "http.client.connection.duration": "s",
    "http.client.active_requests": "{request}",
    "http.client.request.time_in_queue": "s",
}


def listened(meter: PlainMeter, *scripts: Any, **options: Any) -> ConnectionPool:
    return ConnectionPool(
        network_backend=ScriptedBackend(*scripts), on_event=OpenTelemetryMetrics(meter), **options
    )


def test_names_and_units_are_those_of_the_conventions() -> None:
    meter = PlainMeter()
    OpenTelemetryMetrics(meter)
    assert {name: instrument.unit for name, instrument in meter.instruments.items()} == NAMES


def test_a_meter_that_takes_boundaries_gets_them_in_seconds() -> None:
    given: dict[str, Any] = {}

    class Advised(PlainMeter):
        def create_histogram(self, name: str, unit: str = "", description: str = "", **advice: Any) -> Any:
            given[name] = advice["explicit_bucket_boundaries_advisory"]
            return super().create_histogram(name, unit, description)

    OpenTelemetryMetrics(Advised())
    assert set(given) == {"http.client.connection.duration", "http.client.request.time_in_queue"}
    for boundaries in given.values():
        assert list(boundaries) == sorted(boundaries)
        assert boundaries[0] <= 0.01


def test_connections_and_requests_are_counted_with_their_attributes() -> None:
    meter = PlainMeter()
    with listened(meter, [HEAD, OK, HEAD, OK], [HEAD, OK]) as pool:
        with pool.stream("GET", URL), pool.stream("BREW", URL):
            meter.check(pool, requests=2)
            requests = meter.instruments["http.client.active_requests"].sums
            assert dict(requests) == {
                frozenset({**SERVER, "http.request.method": method}.items()): 1
                for method in ("GET", "_OTHER")
            }
        meter.check(pool, requests=0)
        connections = meter.instruments["http.client.open_connections"].sums
        assert {key: count for key, count in connections.items() if count} == {
            frozenset({**SERVER, **VERSION, "http.connection.state": "idle"}.items()): 2
        }
    meter.check(pool, requests=0)
    lives = meter.instruments["http.client.connection.duration"].values
    assert [attributes for _, attributes in lives] == [{**SERVER, **VERSION}] * 2
    assert all(seconds >= 0.0 for seconds, _ in lives)
    assert meter.instruments["http.client.request.time_in_queue"].values == []


def test_times_in_the_queue_are_recorded_for_those_who_were_served_and_for_those_who_were_not() -> None:
    meter = PlainMeter()
    metrics = OpenTelemetryMetrics(meter)
    queued = threading.Event()

    def listener(event: PoolEvent) -> None:
        metrics(event)
        if type(event).__name__ == "RequestQueued":
            queued.set()

    backend = ScriptedBackend([HEAD, OK, HEAD, OK])
    with ConnectionPool(network_backend=backend, on_event=listener, max_connections=1) as pool:
        with pool.stream("GET", URL):
            with pytest.raises(PoolTimeout):
                pool.request("POST", URL, extensions={"timeout": {"pool": 0.01}})
            queued.clear()
            waiting = threading.Thread(target=pool.request, args=("GET", URL))
            waiting.start()
            assert queued.wait(timeout=30.0)
        waiting.join()
    times = meter.instruments["http.client.request.time_in_queue"].values
    assert [attributes for _, attributes in times] == [
        {**SERVER, "http.request.method": "POST"},
        {**SERVER, **VERSION, "http.request.method": "GET"},
    ]
    assert times[0][0] >= 0.009
    assert times[1][0] > 0.0


def told_by_threads() -> list[PoolEvent]:
    """The life of a connection to which the events of two requests came from two threads."""
    facts = ConnectionFacts(7, ORIGIN, "HTTP/2", "/a/socket", None, None, None, None, None, (), 0.0)
    about: Any = {"at": 1.0, "origin": ORIGIN, "connection_id": 7}
    return [
        ConnectionOpened(**about, request_id=1, duration=0.0, connection=ConnectionInfo(facts, 0, 0.0)),
        *(ConnectionAcquired(**about, request_id=n, wait=0.0, queued=0.0, reused=False) for n in (1, 2)),
        *(
            ConnectionReleased(**about, request_id=n, duration=0.0, reason=ReleaseReason.COMPLETE)
            for n in (1, 2)
        ),
        ConnectionClosed(**about, reason=CloseReason.EXPIRED, duration=3.0, request_count=2),
    ]


def test_in_whatever_order_threads_tell_of_a_connection_the_sums_end_at_nothing() -> None:
    for order in permutations(told_by_threads()):
        meter = PlainMeter()
        metrics = OpenTelemetryMetrics(meter)
        for event in order:
            metrics(event)
        assert set(meter.instruments["http.client.open_connections"].sums.values()) <= {0}
        ((seconds, attributes),) = meter.instruments["http.client.connection.duration"].values
        assert (seconds, attributes["network.peer.address"]) == (3.0, "/a/socket")
        assert (attributes["server.port"], attributes["network.protocol.version"]) == (8443, "2")
        assert "0 connections" in repr(metrics)


def test_events_of_what_it_was_never_told_of_change_nothing() -> None:
    meter = PlainMeter()
    metrics = OpenTelemetryMetrics(meter)
    for event in told_by_threads()[1:]:
        metrics(event)
    metrics(RequestEnded(at=0.0, origin=ORIGIN, request_id=9, duration=0.0, error=None))
    assert not any(instrument.sums or instrument.values for instrument in meter.instruments.values())


def test_many_threads_on_several_pools_add_up() -> None:
    meter = PlainMeter()
    metrics = OpenTelemetryMetrics(meter)
    pools = [
        ConnectionPool(
            network_backend=ScriptedBackend(otherwise=lambda: cycle([HEAD, OK])),
            on_event=metrics,
            max_connections=2,
        )
        for _ in range(2)
    ]

    def work(number: int) -> None:
        for turn in range(60):
            with pools[turn % 2].stream("GET", f"http://{'abc'[(number + turn) % 3]}.test/") as answer:
                if turn % 3:
                    answer.read()

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    stats = [pool.stats() for pool in pools]
    connections = meter.instruments["http.client.open_connections"]
    assert connections.sum_where(http__connection__state="active") == sum(each.active for each in stats) == 0
    assert connections.sum_where(http__connection__state="idle") == sum(each.idle for each in stats) > 0
    assert meter.instruments["http.client.active_requests"].sum_where() == 0
    for pool in pools:
        pool.close()
    assert set(connections.sums.values()) == {0}


FORKED = """
import os, signal, sys
from lamina_pool import OpenTelemetryMetrics
from pool_journal import PlainMeter
from test_opentelemetry import told_by_threads

metrics = OpenTelemetryMetrics(PlainMeter())
with metrics._lock:  # as by another thread, which the child does not have
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        metrics(told_by_threads()[-1])
        os._exit(0)
_, status = os.waitpid(child, 0)
sys.exit(status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_a_lock_of_its_own() -> None:
    here = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": here}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], cwd=here, env=environment, check=True, timeout=120
    )


def test_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys, lamina_pool; lamina_pool.OpenTelemetryMetrics; assert 'opentelemetry' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_request_that_began_is_active_until_it_ends() -> None:
    meter = PlainMeter()
    metrics = OpenTelemetryMetrics(meter)
    metrics(RequestStarted(at=0.0, origin=ORIGIN, request_id=1, method="GET"))
    assert "1 requests active" in repr(metrics)
    assert meter.instruments["http.client.active_requests"].sum_where() == 1
