"""What a pool over real sockets tells: of its connections to each response, to a listener, to OpenTelemetry's SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from lamina_pool import (
    ConnectionAcquired,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReleased,
    ConnectStep,
    OpenTelemetryMetrics,
    RequestEnded,
    RequestQueued,
)
from stack_worlds import Cancelled

if TYPE_CHECKING:
    import ssl

    from lamina_pool import PoolEvent
    from stack_helpers import Certificates
    from stack_servers import Server
    from stack_worlds import World

pytestmark = pytest.mark.usefixtures("no_socket_left")


def of(told: list[PoolEvent], *kinds: type[Any]) -> list[Any]:
    return [event for event in told if isinstance(event, kinds)]


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
async def test_what_a_response_and_the_events_tell_of_a_connection(
    world: World, hypercorn: Server, certificates: Certificates, http2_context: ssl.SSLContext, http2: bool
) -> None:
    told: list[PoolEvent] = []
    port = urlsplit(hypercorn.https).port
    url = f"https://localhost:{port}/"
    context = http2_context if http2 else certificates.client
    async with world.pool(ssl_context=context, http2=http2, on_event=told.append) as pool:
        infos = [(await pool.request("GET", url)).extensions["connection"] for _ in range(2)]
    first, second = infos
    assert (first.reused, second.reused, second.id == first.id) == (False, True, True)
    assert [info.request_count for info in infos] == [1, 2]
    assert first.peer_address[1] == port
    assert first.peer_address[0] == first.local_address[0]
    assert first.tls_version in ("TLSv1.2", "TLSv1.3")
    assert first.cipher
    assert first.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    assert first.alpn_protocol == ("h2" if http2 else "http/1.1")
    assert [span.name for span in first.timings] == ["dns", "tcp", "tls"]
    assert second.age >= first.age >= 0.0
    assert first.opened_at >= first.timings[-1].end

    assert [type(step).__name__ for step in of(told, ConnectStep)] == [
        "NameResolved",
        "TCPConnected",
        "TLSEstablished",
    ]
    assert [event.connection_id for event in of(told, ConnectionOpened, ConnectionClosed)] == [first.id] * 2
    assert [event.reused for event in of(told, ConnectionAcquired)] == [False, True]
    assert [event.reason.name for event in of(told, ConnectionReleased)] == ["COMPLETE"] * 2
    assert [event.error for event in of(told, RequestEnded)] == [None, None]
    ats = [event.at for event in told if not isinstance(event, ConnectStep)]
    assert ats == sorted(ats)


async def test_the_numbers_are_those_of_the_pool_by_the_real_sdk(
    world: World, hypercorn: Server, certificates: Certificates
) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    told: list[PoolEvent] = []
    metrics = OpenTelemetryMetrics(provider.get_meter("lamina"))

    def listener(event: PoolEvent) -> None:
        told.append(event)
        metrics(event)

    port = urlsplit(hypercorn.https).port
    options: Any = {"ssl_context": certificates.client, "max_connections": 1, "on_event": listener}
    async with world.pool(**options) as pool, world.jobs() as jobs:
        async with pool.stream("GET", hypercorn.https) as answer:
            waiting = jobs.start(pool.request, "GET", hypercorn.https)
            given_up = jobs.start(pool.request, "POST", hypercorn.https)
            await world.until(lambda: len(of(told, RequestQueued)) == 2)
            numbers = numbers_of(reader)
            assert numbers["http.client.open_connections", "active"] == 1
            assert numbers.get(("http.client.open_connections", "idle"), 0) == 0
            assert numbers["http.client.active_requests", "GET"] == 2
            assert numbers["http.client.active_requests", "POST"] == 1
            if world.is_async:
                given_up.cancel()
                await world.until(lambda: of(told, RequestEnded))
            await answer.aread()
        await waiting.result(world)
        if world.is_async:
            with pytest.raises(Cancelled):
                await given_up.result(world)
        else:
            await given_up.result(world)
        stats = pool.stats()
        numbers = numbers_of(reader)
        assert numbers["http.client.open_connections", "active"] == stats.active == 0
        assert numbers["http.client.open_connections", "idle"] == stats.idle == 1
        assert numbers["http.client.active_requests", "GET"] == 0
        assert numbers["http.client.active_requests", "POST"] == 0
        assert numbers["http.client.request.time_in_queue", "GET"] == 1
        assert numbers["http.client.request.time_in_queue", "POST"] == 1
    numbers = numbers_of(reader)
    assert numbers["http.client.open_connections", "idle"] == 0
    assert numbers["http.client.connection.duration", ""] == 1
    points = points_of(reader)
    assert {name: unit for name, unit, _ in points} == {
        "http.client.open_connections": "{connection}",
        "http.client.connection.duration": "s",
        "http.client.active_requests": "{request}",
        "http.client.request.time_in_queue": "s",
    }
    for _, unit, point in points:
        assert point.attributes["server.port"] == port
        assert (point.attributes["server.address"], point.attributes["url.scheme"]) == ("127.0.0.1", "https")
        assert unit != "s" or point.explicit_bounds[0] <= 0.01
    provider.shutdown()


def points_of(reader: InMemoryMetricReader) -> list[tuple[str, str, Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return [
        (metric.name, metric.unit or "", point)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]


def numbers_of(reader: InMemoryMetricReader) -> dict[tuple[str, str], int]:
    """The sum, or the count, of each instrument by the state or the method among its attributes."""
    numbers: dict[tuple[str, str], int] = {}
    for name, _, point in points_of(reader):
        what = (
            point.attributes.get("http.connection.state") or point.attributes.get("http.request.method") or ""
        )
        number = point.value if hasattr(point, "value") else point.count
        numbers[name, what] = numbers.get((name, what), 0) + number
    return numbers
