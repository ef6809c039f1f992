"""A listener that keeps OpenTelemetry's numbers of an HTTP client.

The names, units and attributes are those of the semantic conventions for HTTP and the metrics of .NET's client, which
count connections and the queue:

| instrument | kind | unit | attributes |
|---|---|---|---|
| `http.client.open_connections` | UpDownCounter | `{connection}` | server, connection, `http.connection.state` |
| `http.client.connection.duration` | Histogram | `s` | server, connection |
| `http.client.active_requests` | UpDownCounter | `{request}` | server, `http.request.method` |
| `http.client.request.time_in_queue` | Histogram | `s` | server, `http.request.method`, `network.protocol.version` |

There "server" is `server.address`, `server.port` and `url.scheme`, "connection" is `network.protocol.version` and
`network.peer.address`.

Nothing of OpenTelemetry is imported: the meter is the caller's.
"""

from __future__ import annotations

import os
import weakref
from _thread import allocate_lock
from typing import TYPE_CHECKING, Any, Protocol

from ._events import (
    ConnectionAcquired,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReleased,
    RequestEnded,
    RequestQueued,
    RequestStarted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._events import PoolEvent
    from ._info import ConnectionInfo
    from ._urls import Origin

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
"""Those that are told as they are; any other one, which a program may make up, is `_OTHER` (semantic conventions)."""

CONNECTION_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""The histogram's boundaries for the age of connections: those of .NET's instrument of the same name."""

QUEUE_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
"""The same for times in the queue: what the conventions advise for durations of requests."""

ACTIVE, IDLE = "active", "idle"


class Counter(Protocol):
    """What is used of an `opentelemetry.metrics.UpDownCounter`."""

    def add(self, amount: float, attributes: Any = None) -> None:
        """Add to the sum that has these attributes."""
        ...


class Histogram(Protocol):
    """What is used of an `opentelemetry.metrics.Histogram`."""

    def record(self, amount: float, attributes: Any = None) -> None:
        """Add a value."""
        ...


class Meter(Protocol):
    """What is used of an `opentelemetry.metrics.Meter`. One that takes boundaries for a histogram gets them, too."""

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> Counter:
        """An instrument for a sum that goes up and down."""
        ...

    def create_histogram(self, name: str, unit: str = "", description: str = "") -> Histogram:
        """An instrument for the distribution of values."""
        ...


class _Connection:
    """A connection, as far as events have told of it. Threads may tell of it in any order."""

    __slots__ = ("age", "attributes", "holders", "version", "was_opened")

    def __init__(self) -> None:
        self.version: dict[str, Any] = {}
        self.attributes: dict[str, Any] = {}
        self.holders = 0
        self.was_opened = False
        self.age: float | None = None  # once it is closed

    def open(self, info: ConnectionInfo) -> None:
        self.version = {"network.protocol.version": info.http_version.removeprefix("HTTP/")}
        self.attributes = {**_server(info.origin), **self.version}
        peer = info.peer_address
        if peer:
            self.attributes["network.peer.address"] = str(peer[0] if isinstance(peer, tuple) else peer)
        self.was_opened = True

    def hold(self, change: int) -> None:
        self.holders += change

    def close(self, age: float) -> None:
        self.age = age

    @property
    def is_over(self) -> bool:
        """Whether there is nothing to remember: no holder, and it is not just one half of opened and closed."""
        return not self.holders and self.was_opened is (self.age is not None)

    @property
    def state(self) -> str | None:
        """In which it counts; `None` if it does not count, or no longer."""
        if not self.was_opened or self.age is not None:
            return None
        return ACTIVE if self.holders > 0 else IDLE


class _Request:
    """A request that has begun and not ended."""

    __slots__ = ("attributes", "queued_at")

    def __init__(self, event: RequestStarted) -> None:
        method = event.method if event.method in METHODS else "_OTHER"
        self.attributes = {**_server(event.origin), "http.request.method": method}
        self.queued_at: float | None = None


class OpenTelemetryMetrics:
    """Keeps OpenTelemetry's metrics of one pool, or of several: `ConnectionPool(on_event=OpenTelemetryMetrics(meter))`.

    May be called by any number of threads. It is told of connections and requests from the beginning on, so it is to be
    given to a pool when that is made. What a pool says with `stats()`, the sums over the states say, too.

    Args:
        meter: of OpenTelemetry's API, or anything with its two methods that make an UpDownCounter and a Histogram.
    """

    def __init__(self, meter: Meter) -> None:
        self._open = meter.create_up_down_counter(
            "http.client.open_connections", "{connection}", "Connections that are open, by their state."
        )
        self._age = _histogram(
            meter,
            "http.client.connection.duration",
            "For how long connections were open that are closed.",
            CONNECTION_SECONDS,
        )
        self._active = meter.create_up_down_counter(
            "http.client.active_requests", "{request}", "Requests that have begun and not ended."
        )
        self._in_queue = _histogram(
            meter,
            "http.client.request.time_in_queue",
            "For how long requests that had to wait stood in the queue for a connection.",
            QUEUE_SECONDS,
        )
        self._connections: dict[int, _Connection] = {}
        self._requests: dict[int, _Request] = {}
        self._actions: Mapping[type, Callable[[Any], None]] = {
            ConnectionOpened: self._note_opened,
            ConnectionAcquired: self._note_acquired,
            ConnectionReleased: self._note_released,
            ConnectionClosed: self._note_closed,
            RequestStarted: self._note_started,
            RequestQueued: self._note_queued,
            RequestEnded: self._note_ended,
        }
        self._renew_lock()
        _instances.add(self)

    def _renew_lock(self) -> None:
        # Around a few lines of ours, never around the instruments.
        self._lock = allocate_lock()

    def __call__(self, event: PoolEvent) -> None:
        """Take note of an event."""
        action = self._actions.get(type(event))
        if action is not None:
            action(event)

    # --- connections ---------------------------------------------------------------------------------------

    def _note_opened(self, event: ConnectionOpened) -> None:
        connection = self._change(event.connection_id, lambda connection: connection.open(event.connection))
        if connection.age is not None:
            self._age.record(connection.age, connection.attributes)

    def _note_acquired(self, event: ConnectionAcquired) -> None:
        connection = self._hold(event.connection_id, 1)
        request = self._requests.get(event.request_id)
        if request is not None:
            request.queued_at = None
            if event.queued > 0.0:
                self._in_queue.record(event.queued, {**request.attributes, **connection.version})

    def _note_released(self, event: ConnectionReleased) -> None:
        self._hold(event.connection_id, -1)

    def _note_closed(self, event: ConnectionClosed) -> None:
        connection = self._change(event.connection_id, lambda connection: connection.close(event.duration))
        if connection.was_opened:
            self._age.record(event.duration, connection.attributes)

    def _hold(self, connection_id: int, change: int) -> _Connection:
        return self._change(connection_id, lambda connection: connection.hold(change))

    def _change(self, connection_id: int, change: Callable[[_Connection], None]) -> _Connection:
        with self._lock:
            connection = self._connections.get(connection_id) or _Connection()
            before = connection.state
            change(connection)
            after = connection.state
            if connection.is_over:
                self._connections.pop(connection_id, None)
            else:
                self._connections[connection_id] = connection
        if before != after:
            if before is not None:
                self._count(connection, before, -1)
            if after is not None:
                self._count(connection, after, 1)
        return connection

    def _count(self, connection: _Connection, state: str, change: int) -> None:
        self._open.add(change, {**connection.attributes, "http.connection.state": state})

    # --- requests ------------------------------------------------------------------------------------------

    def _note_started(self, event: RequestStarted) -> None:
        request = self._requests[event.request_id] = _Request(event)
        self._active.add(1, request.attributes)

    def _note_queued(self, event: RequestQueued) -> None:
        request = self._requests.get(event.request_id)
        if request is not None:
            request.queued_at = event.at

    def _note_ended(self, event: RequestEnded) -> None:
        request = self._requests.pop(event.request_id, None)
        if request is not None:
            self._active.add(-1, request.attributes)
            if request.queued_at is not None:
                self._in_queue.record(event.at - request.queued_at, request.attributes)

    def __repr__(self) -> str:
        return (
            f"<OpenTelemetryMetrics [{len(self._connections)} connections open, "
            f"{len(self._requests)} requests active]>"
        )


def _server(origin: Origin) -> dict[str, Any]:
    return {
        "server.address": origin.host.decode("ascii"),
        "server.port": origin.port,
        "url.scheme": origin.scheme.decode("ascii"),
    }


def _histogram(meter: Any, name: str, description: str, boundaries: Sequence[float]) -> Histogram:
    instrument: Histogram
    try:
        instrument = meter.create_histogram(
            name, "s", description, explicit_bucket_boundaries_advisory=boundaries
        )
    except TypeError:  # an older API, without the advice
        instrument = meter.create_histogram(name, "s", description)
    return instrument


# For the child of a fork, where another thread may have held a lock.
_instances: weakref.WeakSet[OpenTelemetryMetrics] = weakref.WeakSet()


def _renew_locks() -> None:
    for metrics in list(_instances):
        metrics._renew_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
