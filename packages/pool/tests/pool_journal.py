"""A listener that remembers what it was told, and knows which order is legal; and a meter that adds up.

journal = Journal()
with ConnectionPool(on_event=journal) as pool: ...
journal.check_over()
assert journal.story() == "started opened acquired sent head body released:COMPLETE ended"
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

from lamina_pool import (
    BodyReceived,
    CloseReason,
    ConnectFailed,
    ConnectionAcquired,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReleased,
    ConnectStep,
    NameResolved,
    ProxyConnected,
    RequestEnded,
    RequestEvent,
    RequestQueued,
    RequestSent,
    RequestStarted,
    ResponseStarted,
    TCPConnected,
    TLSEstablished,
)

if TYPE_CHECKING:
    from lamina_pool import AsyncConnectionPool, ConnectionPool, PoolEvent

LETTERS: dict[type[PoolEvent], str] = {
    RequestStarted: "S",
    RequestQueued: "Q",
    NameResolved: "n",
    TCPConnected: "t",
    ProxyConnected: "p",
    TLSEstablished: "l",
    ConnectFailed: "F",
    ConnectionOpened: "O",
    ConnectionAcquired: "A",
    RequestSent: "s",
    ResponseStarted: "h",
    BodyReceived: "b",
    ConnectionReleased: "R",
    RequestEnded: "E",
}

WORDS: dict[type[PoolEvent], str] = {
    RequestStarted: "started",
    RequestQueued: "queued",
    NameResolved: "dns",
    TCPConnected: "tcp",
    ProxyConnected: "proxy",
    TLSEstablished: "tls",
    ConnectionOpened: "opened",
    ConnectionAcquired: "acquired",
    RequestSent: "sent",
    ResponseStarted: "head",
    BodyReceived: "body",
}

# A dial by a task of its own may go on when the request that began it has ended; its events are looked at apart.
EXCHANGES = re.compile("S(Q|As?(hb?)?R)*E")
DIALS = re.compile("([ntpl]*[FO])*")

OUTLIVED = (CloseReason.POOL_CLOSED, CloseReason.LOST)
"""Why a connection is closed though requests are on it."""


class Journal:
    """See the top of the module. For any number of threads.

    Attributes:
        events: all of them, in the order in which they were told.
    """

    def __init__(self) -> None:
        self.events: list[PoolEvent] = []

    def __call__(self, event: PoolEvent) -> None:
        self.events.append(event)

    def of(self, *kinds: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kinds)]

    def requests(self) -> dict[int, list[RequestEvent]]:
        stories: dict[int, list[RequestEvent]] = {}
        for event in self.events:
            if isinstance(event, RequestEvent):
                stories.setdefault(event.request_id, []).append(event)
        return stories

    def story(self, number: int = -1) -> str:
        """What happened to one request, the last one unless told otherwise."""
        requests = self.requests()
        return " ".join(map(word_of, requests[sorted(requests)[number]]))

    def closings(self) -> list[str]:
        return [event.reason.name for event in self.of(ConnectionClosed)]

    # --- what has to hold ---------------------------------------------------------------------------------

    def check(self) -> None:
        """What holds at any time."""
        for story in self.requests().values():
            self._check_request(story, is_over=any(isinstance(event, RequestEnded) for event in story))
        for connection_id in self._connections():
            self._check_connection(connection_id)

    def check_over(self) -> None:
        """What holds when nothing is under way any more, and the pool is closed."""
        self.check()
        self.check_ends()

    def check_ends(self) -> None:
        """The same, where threads have shared connections, and may have told of these in any order."""
        for story in self.requests().values():
            self._check_request(story, is_over=True)
        opened = Counter(event.connection_id for event in self.of(ConnectionOpened))
        closed = Counter(event.connection_id for event in self.of(ConnectionClosed))
        assert not closed or max(closed.values()) == 1
        assert opened == closed, (opened - closed, closed - opened)

    def _check_request(self, story: list[RequestEvent], *, is_over: bool) -> None:
        letters = "".join(LETTERS[type(event)] for event in story)
        exchanges = re.sub("[ntplFO]", "", letters)
        # What is not over yet is the beginning of a legal sequence: one of these is its end.
        ends = [""] if is_over else ["E", "RE", "hRE"]
        assert any(EXCHANGES.fullmatch(exchanges + end) for end in ends), (letters, story)
        dials = re.sub("[^ntplFO]", "", letters)
        assert DIALS.fullmatch(dials + ("" if is_over else "F")) or DIALS.fullmatch(dials), (letters, story)
        held = None
        latest = story[0].at
        for event in story:
            assert event.request_id == story[0].request_id
            assert getattr(event, "duration", 0.0) >= 0.0, event
            if isinstance(event, ConnectionAcquired):
                assert held is None
                held = event.connection_id
                assert 0.0 <= event.queued <= event.wait
            elif isinstance(event, (RequestSent, ResponseStarted, BodyReceived, ConnectionReleased)):
                assert event.connection_id == held
            if isinstance(event, ConnectionReleased):
                held = None
            if not isinstance(event, (ConnectStep, ConnectFailed, ConnectionOpened)):
                assert event.at >= latest, story
                latest = event.at
        assert held is None or not is_over

    def _connections(self) -> set[int]:
        return {event.connection_id for event in self.of(ConnectionOpened)}

    def _check_connection(self, connection_id: int) -> None:
        kinds = (ConnectionOpened, ConnectionAcquired, ConnectionReleased, ConnectionClosed)
        events = [event for event in self.of(*kinds) if event.connection_id == connection_id]
        first = events[0]
        assert isinstance(first, ConnectionOpened), events
        holders: set[int] = set()
        is_closed = False
        for event in events[1:]:
            assert event.origin == first.origin
            if isinstance(event, ConnectionAcquired):
                assert not is_closed, events
                assert event.request_id not in holders, events
                assert first.connection.http_version == "HTTP/2" or not holders, events
                holders.add(event.request_id)
            elif isinstance(event, ConnectionReleased):
                assert event.request_id in holders, events
                holders.remove(event.request_id)
            else:
                assert isinstance(event, ConnectionClosed), events
                assert not is_closed, events
                assert not holders or event.reason in OUTLIVED, events
                assert event.duration >= 0.0
                is_closed = True


def word_of(event: PoolEvent) -> str:
    if isinstance(event, ConnectionReleased):
        return f"released:{event.reason.name}"
    if isinstance(event, ConnectFailed):
        return f"failed:{event.phase}:{event.error}{'+' if event.will_retry else ''}"
    if isinstance(event, RequestEnded):
        return "ended" if event.error is None else f"ended:{event.error}"
    return WORDS[type(event)]


class Instrument:
    """Both kinds of them."""

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.sums: Counter[frozenset[tuple[str, Any]]] = Counter()
        self.values: list[tuple[float, dict[str, Any]]] = []
        self._lock = threading.Lock()

    def add(self, amount: float, attributes: Any = None) -> None:
        with self._lock:
            self.sums[frozenset(attributes.items())] += int(amount)

    def record(self, amount: float, attributes: Any = None) -> None:
        self.values.append((amount, dict(attributes)))

    def sum_where(self, **wanted: Any) -> int:
        pairs = {(name.replace("__", "."), value) for name, value in wanted.items()}
        return sum(count for attributes, count in self.sums.items() if pairs <= attributes)


class PlainMeter:
    """What OpenTelemetry's API asks of a meter, and nothing else."""

    def __init__(self) -> None:
        self.instruments: dict[str, Instrument] = {}

    def create_up_down_counter(self, name: str, unit: str = "", description: str = "") -> Instrument:
        return self.instruments.setdefault(name, Instrument(unit))

    def create_histogram(self, name: str, unit: str = "", description: str = "") -> Instrument:
        return self.instruments.setdefault(name, Instrument(unit))

    def check(self, pool: ConnectionPool | AsyncConnectionPool, requests: int | None = None) -> None:
        """The sums are those of the pool, in all and for each origin.

        Args:
            pool: that is at rest.
            requests: how many are under way.
        """
        stats = pool.stats(per_origin=True)
        connections = self.instruments["http.client.open_connections"]
        for state, count in (("active", stats.active), ("idle", stats.idle)):
            assert connections.sum_where(http__connection__state=state) == count, (stats, connections.sums)
        for origin, row in stats.origins.items():
            server = {"server__address": origin.host.decode(), "server__port": origin.port}
            for state, count in (("active", row.active), ("idle", row.idle)):
                assert connections.sum_where(http__connection__state=state, **server) == count
        assert min(connections.sums.values(), default=0) >= 0
        assert sum(row.active for row in stats.origins.values()) == stats.active
        assert sum(row.idle for row in stats.origins.values()) == stats.idle
        assert sum(row.connecting for row in stats.origins.values()) == stats.connecting
        assert sum(row.queued for row in stats.origins.values()) == stats.queued
        assert (stats.oldest_wait > 0.0) <= (stats.queued > 0)
        if requests is not None:
            assert self.instruments["http.client.active_requests"].sum_where() == requests
