"""What a listener is told: of each outcome the right story, in the right order, at moments that do no harm."""

from __future__ import annotations

import dataclasses
import errno
import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest

import lamina_pool
from lamina_interfaces import (
    ArgumentTypeError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    LaminaError,
    PoolClosed,
    PoolTimeout,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    TimingSpan,
    WriteTimeout,
)
from lamina_pool import (
    AsyncConnectionPool,
    CloseReason,
    ConnectFailed,
    ConnectionAcquired,
    ConnectionClosed,
    ConnectionInfo,
    ConnectionOpened,
    ConnectionPool,
    ConnectionReleased,
    ConnectStep,
    Origin,
    PoolEvent,
    Proxy,
    RequestEnded,
    RequestEvent,
    RequestQueued,
    RequestSent,
    ResponseStarted,
    TCPConnected,
    _observing,
    _releasing,
)
from lamina_pool._scheduler import Waiter
from pool_async_net import MemoryBackend, checkpoints, silent
from pool_async_runs import VIRTUAL, Jobs, ask, deadline, loop_options, until
from pool_helpers import EOF, HEAD, OK, RESET, Delay, Script, ScriptedBackend, response, use_clock
from pool_http2_net import HTTP2Backend, echo
from pool_http2_server import CANCEL, REFUSED_STREAM, Asked
from pool_journal import LETTERS, Journal

URL = "http://a.test/"
ORIGIN = Origin(b"http", b"a.test", 80)
SERVED = "started opened acquired sent head body released:COMPLETE ended"
AGAIN = "started acquired sent head body released:COMPLETE ended"


@pytest.fixture
def journal() -> Iterator[Journal]:
    journal = Journal()
    yield journal
    journal.check_over()


@pytest.fixture(params=VIRTUAL)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return loop_options(request.param)


def pool_over(journal: Callable[[PoolEvent], object], *scripts: Any, **options: Any) -> ConnectionPool:
    return ConnectionPool(network_backend=ScriptedBackend(*scripts), on_event=journal, **options)


# --- the stories of single requests, blocking ----------------------------------------------------------------


def read_all(pool: ConnectionPool, timeout: dict[str, float] | None = None) -> None:
    pool.request("GET", URL, extensions={"timeout": timeout or {}})


def close_early(pool: ConnectionPool) -> None:
    with pool.stream("GET", URL):
        pass


def close_the_pool_under_it(pool: ConnectionPool) -> None:
    with pool.stream("GET", URL) as answer:
        pool.close()
        answer.read()


def interrupt(_: Any = None) -> Any:
    raise KeyboardInterrupt


def fail(_: Any) -> Any:
    raise ValueError("no")


def timed_out(pool: ConnectionPool) -> None:
    read_all(pool, {"read": 1.0})


LONG = response(b"x" * 1_000_000)[:-1]

OUTCOMES: dict[
    str, tuple[list[Any], Callable[[ConnectionPool], object], type[BaseException] | None, str, list[str]]
]
OUTCOMES = {
    "read to its end": ([[HEAD, OK]], read_all, None, SERVED, ["POOL_CLOSED"]),
    "the server does not keep the connection": (
        [[HEAD, response(headers=b"Connection: close\r\n")]], read_all, None, SERVED, ["BROKEN"],
    ),
    "closed early, and the rest is here": (
        [[HEAD, OK]], close_early, None,
        "started opened acquired sent head released:CLOSED_EARLY ended", ["POOL_CLOSED"],
    ),
    "closed early, and the rest is long": (
        [[HEAD, LONG]], close_early, None,
        "started opened acquired sent head released:CLOSED_EARLY ended", ["CLOSED_EARLY"],
    ),
    "connecting is refused": (
        [ConnectError("no", errno=errno.ECONNREFUSED, phase="connect")], read_all, ConnectError,
        "started failed:connect:ConnectError ended:ConnectError", [],
    ),
    "the name is unknown": (
        [ConnectError("no", phase="dns")], read_all, ConnectError,
        "started failed:dns:ConnectError ended:ConnectError", [],
    ),
    "connecting takes too long": (
        [Script(connect_seconds=5.0)], lambda pool: read_all(pool, {"connect": 1.0}), ConnectTimeout,
        "started failed:connect:ConnectTimeout ended:ConnectTimeout", [],
    ),
    "the request cannot be sent in time": (
        [Script(stall_write_after=3)], lambda pool: read_all(pool, {"write": 1.0}), WriteTimeout,
        "started opened acquired released:FAILED ended:WriteTimeout", ["FAILED"],
    ),
    "no answer in time": (
        [[HEAD]], timed_out, ReadTimeout,
        "started opened acquired sent released:FAILED ended:ReadTimeout", ["FAILED"],
    ),
    "the body stops": (
        [[HEAD, OK[:-1], Delay(9.0)]], timed_out, ReadTimeout,
        "started opened acquired sent head released:FAILED ended:ReadTimeout", ["FAILED"],
    ),
    "the connection breaks": (
        [[HEAD, RESET]], read_all, ReadError,
        "started opened acquired sent released:FAILED ended:ReadError", ["FAILED"],
    ),
    "the body is cut off": (
        [[HEAD, OK[:-1], EOF]], read_all, RemoteProtocolError,
        "started opened acquired sent head released:FAILED ended:RemoteProtocolError", ["FAILED"],
    ),
    "the body of the request raises": (
        [[HEAD, OK]], lambda pool: pool.request("POST", URL, content=map(fail, [1])), ValueError,
        "started opened acquired released:FAILED ended:ValueError", ["FAILED"],
    ),
    "interrupted": (
        [[HEAD, OK]], lambda pool: pool.request("POST", URL, content=map(interrupt, [1])), KeyboardInterrupt,
        "started opened acquired released:CANCELLED ended:KeyboardInterrupt", ["CANCELLED"],
    ),
    "an answer that comes before all was sent": (
        [Script(HEAD, response(status="413 Too Large"), EOF)],
        lambda pool: pool.request("POST", URL, content=[b"x" * 100_000] * 30), None,
        "started opened acquired head body released:COMPLETE ended", ["BROKEN"],
    ),
    "the pool is closed under it": (
        [[HEAD, LONG]], close_the_pool_under_it, PoolClosed,
        "started opened acquired sent head released:POOL_CLOSED ended:PoolClosed", ["POOL_CLOSED"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_each_outcome_has_its_story(outcome: str, journal: Journal) -> None:
    scripts, send, error, story, closings = OUTCOMES[outcome]
    with pool_over(journal, *scripts) as pool:
        if error is None:
            send(pool)
        else:
            with pytest.raises(error):
                send(pool)
    assert journal.story() == story
    assert journal.closings() == closings


def test_a_request_on_a_dead_connection_lets_go_of_it_and_gets_another_one(journal: Journal) -> None:
    with pool_over(journal, [HEAD, OK, EOF], [HEAD, OK]) as pool:
        read_all(pool)
        read_all(pool)
        assert journal.story() == f"started acquired released:STALE {SERVED.removeprefix('started ')}"
    assert journal.closings() == ["STALE", "POOL_CLOSED"]
    second = journal.of(ConnectionAcquired)[1:]
    assert [event.reused for event in second] == [True, False]


def test_a_request_on_a_dead_connection_that_cannot_be_sent_again_has_failed(journal: Journal) -> None:
    with pool_over(journal, [HEAD, OK, HEAD, EOF]) as pool:
        read_all(pool)
        with pytest.raises(RemoteProtocolError):
            pool.request("POST", URL)
    assert journal.story() == "started acquired sent released:FAILED ended:RemoteProtocolError"
    assert journal.closings() == ["FAILED"]


def test_failed_attempts_are_told_one_by_one(journal: Journal) -> None:
    refused = ConnectError("no", phase="connect")
    with pool_over(journal, refused, refused, [HEAD, OK], retries=2) as pool:
        read_all(pool)
    failed = "failed:connect:ConnectError+"
    assert journal.story() == f"started {failed} {failed} {SERVED.removeprefix('started ')}"
    ids = {event.connection_id for event in journal.of(ConnectFailed, ConnectionOpened)}
    assert len(ids) == 1


def test_requests_that_wait_are_told_to_wait_and_for_how_long() -> None:
    journal = Journal()
    waits = threading.Event()

    def listener(event: PoolEvent) -> None:
        journal(event)
        if isinstance(event, RequestQueued):
            waits.set()

    with pool_over(listener, [HEAD, OK, HEAD, OK], max_connections=1) as pool:
        with pool.stream("GET", URL):
            waiting = threading.Thread(target=read_all, args=(pool,))
            waiting.start()
            assert waits.wait(timeout=30.0)
            with pytest.raises(PoolTimeout):
                read_all(pool, {"pool": 0.0})
            assert journal.story() == "started queued ended:PoolTimeout"
        waiting.join()
        assert journal.story(-2) == f"started queued {AGAIN.removeprefix('started ')}"
        wait = journal.of(ConnectionAcquired)[1]
        assert wait.wait >= wait.queued > 0.0
        assert wait.reused
    journal.check_over()


def test_one_whose_place_comes_from_another_origin_did_not_stand_in_the_queue(journal: Journal) -> None:
    with pool_over(journal, [HEAD, OK], [HEAD, OK], max_connections=1) as pool:
        read_all(pool)
        pool.request("GET", "http://b.test/")
        assert journal.story() == SERVED
        assert journal.closings() == ["EVICTED"]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"keepalive_expiry": 0.0}, "EXPIRED"),
        ({"max_keepalive_connections": 0}, "SURPLUS"),
        ({"max_connection_age": 0.0}, "TOO_OLD"),
    ],
)
def test_connections_are_closed_for_what_the_settings_say(
    options: dict[str, Any], reason: str, journal: Journal
) -> None:
    with pool_over(journal, [HEAD, OK], **options) as pool:
        read_all(pool)
        pool.reap()
        assert journal.closings() == [reason]
        assert journal.of(ConnectionClosed)[0].request_count == 1


@pytest.mark.filterwarnings("ignore:the response to:ResourceWarning")
def test_a_forgotten_response_is_told_by_whoever_comes_next() -> None:
    journal = Journal()
    with pool_over(journal, [HEAD, LONG], [HEAD, OK]) as pool:
        answer = pool.handle_request(lamina_pool.Request("GET", URL, headers={"Host": "a.test"}))
        del answer
        gc.collect()
        assert not journal.of(ConnectionReleased)
        read_all(pool)
        assert journal.story(0) == "started opened acquired sent head released:ABANDONED ended"
        assert journal.closings() == ["ABANDONED"]
    journal.check_over()


@pytest.mark.filterwarnings("ignore:unclosed pool:ResourceWarning")
def test_a_forgotten_pool_tells_of_its_connections_when_any_pool_tells_something() -> None:
    journal = Journal()
    pool = pool_over(journal, [HEAD, OK])
    read_all(pool)
    del pool
    gc.collect()
    with pool_over(Journal(), [HEAD, OK]) as other:
        read_all(other)
    assert journal.closings() == ["ABANDONED"]
    journal.check_over()


def test_a_switch_of_protocols_holds_the_connection_until_its_stream_is_closed(journal: Journal) -> None:
    answer = b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"
    with pool_over(journal, [HEAD, answer]) as pool:
        headers = {"Host": "a.test", "Connection": "upgrade", "Upgrade": "x"}
        switched = pool.handle_request(lamina_pool.Request("GET", URL, headers=headers))
        assert journal.story() == "started opened acquired sent head"
        switched.extensions["network_stream"].close()
    assert journal.story() == "started opened acquired sent head released:COMPLETE ended"
    assert journal.closings() == ["BROKEN"]


@pytest.mark.filterwarnings("ignore:unclosed pool:ResourceWarning")
def test_a_forgotten_pool_closes_its_connections_at_once_though_there_is_a_listener_I06() -> None:
    """Nothing that idles leads back to the pool."""
    gc.collect()
    gc.disable()
    try:
        backend = ScriptedBackend([HEAD, OK])
        pool = ConnectionPool(network_backend=backend, on_event=Journal())
        read_all(pool)
        del pool
        assert not backend.open_streams
    finally:
        gc.enable()


# --- what the events say -------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_clock(journal: Journal) -> None:
    spans = (TimingSpan("dns", 1.0, 1.5), TimingSpan("tcp", 1.5, 3.0), TimingSpan("other", 3.0, 4.0))
    backend = ScriptedBackend([HEAD, Delay(2.0), response(b"four"), HEAD, OK])
    backend_connect = backend._connect

    def connect(dial: Any) -> Any:
        stream = backend_connect(dial)
        known = stream.get_extra_info
        told = {"timings": spans, "server_addr": ("192.0.2.1", 80), "client_addr": ("192.0.2.9", 5)}
        stream.get_extra_info = lambda info: told.get(info) or known(info)  # type: ignore[assignment,method-assign] # a fake
        return stream

    backend._connect = connect  # type: ignore[method-assign] # a fake
    with ConnectionPool(network_backend=backend, on_event=journal) as pool:
        use_clock(pool, backend.clock)
        first = pool.request("GET", URL, extensions={"timeout": {"read": 9.0}})
        second = pool.request("GET", URL)
    assert journal.story(0) == SERVED.replace("opened", "dns tcp opened")
    assert [(type(step).__name__, step.at, step.duration) for step in journal.of(ConnectStep)] == [
        ("NameResolved", 1.5, 0.5),
        ("TCPConnected", 3.0, 1.5),
    ]
    head = journal.of(ResponseStarted)[0]
    assert (head.status, head.duration) == (200, pytest.approx(2.0))
    assert [event.size for event in journal.of(lamina_pool.BodyReceived)] == [4, 2]
    assert journal.of(RequestEnded)[0].duration == pytest.approx(2.0)
    assert {event.origin for event in journal.events} == {ORIGIN}

    info = first.extensions["connection"]
    assert isinstance(info, ConnectionInfo)
    assert (info.peer_address, info.local_address) == (("192.0.2.1", 80), ("192.0.2.9", 5))
    assert (info.reused, info.request_count, info.timings) == (False, 1, spans)
    assert info.age == pytest.approx(2.0)
    again = second.extensions["connection"]
    assert (again.id, again.reused, again.request_count) == (info.id, True, 2)
    opened = journal.of(ConnectionOpened)[0]
    assert (opened.connection.id, opened.connection.request_count, opened.connection.reused) == (
        info.id,
        0,
        False,
    )
    assert opened.at == info.opened_at
    assert (info.http_version, info.origin, info.proxy) == ("HTTP/1.1", ORIGIN, None)
    assert (info.tls_version, info.cipher, info.alpn_protocol) == (None, None, None)


def test_what_is_told_of_tls(journal: Journal) -> None:
    class Agreed:
        def selected_alpn_protocol(self) -> str:
            return "http/1.1"

        def version(self) -> str:
            return "TLSv1.3"

        def cipher(self) -> tuple[str, str, int]:
            return ("TLS_AES_128_GCM_SHA256", "TLSv1.3", 128)

    with pool_over(journal, Script(HEAD, OK, ssl_object=Agreed())) as pool:
        info = pool.request("GET", "https://a.test/").extensions["connection"]
    assert (info.tls_version, info.cipher, info.alpn_protocol) == (
        "TLSv1.3", "TLS_AES_128_GCM_SHA256", "http/1.1",
    )  # fmt: skip
    assert (
        repr(info)
        == f"<ConnectionInfo [{info.id}, 'https://a.test:443', HTTP/1.1, TLSv1.3, Request Count: 1]>"
    )
    with pytest.raises(AttributeError):
        info.request_count = 7
    assert pickle.loads(pickle.dumps(info)) == info


class OddTLS:
    def version(self) -> int:
        raise OSError("no")

    def cipher(self) -> str:
        return "secret"

    def selected_alpn_protocol(self) -> None:
        return None


@pytest.mark.parametrize(
    "told",
    [
        {"timings": [1.0, 2.0]},
        {"timings": 1.0},
        {"ssl_object": OddTLS()},
        {"server_addr": object(), "client_addr": 7},
    ],
)
def test_a_custom_stream_that_tells_of_itself_in_its_own_way_serves_as_well(
    told: dict[str, Any], journal: Journal
) -> None:
    backend = ScriptedBackend([HEAD, OK])
    connect = backend._connect

    def connect_oddly(dial: Any) -> Any:
        stream = connect(dial)
        known = stream.get_extra_info
        stream.get_extra_info = lambda info: told.get(info) or known(info)  # type: ignore[assignment,method-assign] # a fake
        return stream

    backend._connect = connect_oddly  # type: ignore[method-assign] # a fake
    with ConnectionPool(network_backend=backend, on_event=journal) as pool:
        info = pool.request("GET", URL).extensions["connection"]
    assert (info.timings, info.tls_version, info.cipher, info.alpn_protocol) == ((), None, None, None)
    assert journal.story() == SERVED


def test_connections_to_a_proxy_that_forwards_are_the_proxys(journal: Journal) -> None:
    proxy = Proxy("http://user:secret@proxy.test:3128/")
    with pool_over(journal, [HEAD, OK, HEAD, OK], proxy=proxy) as pool:
        pool.request("GET", URL)
        info = pool.request("GET", "http://b.test/").extensions["connection"]
        assert set(pool.stats(per_origin=True).origins) == {proxy.url.origin}
    assert (info.origin, info.proxy, info.reused) == (proxy.url.origin, proxy.url.origin, True)
    asked = [event.origin.host for event in journal.of(lamina_pool.RequestStarted, RequestSent, RequestEnded)]
    assert asked == [b"a.test"] * 3 + [b"b.test"] * 3
    held = journal.of(ConnectionOpened, ConnectionAcquired, ConnectionReleased, ConnectionClosed)
    assert {event.origin for event in held} == {proxy.url.origin}
    assert "secret" not in repr(journal.events)


def test_the_handshake_with_a_proxy_is_a_step_of_its_own(journal: Journal) -> None:
    established = b"HTTP/1.1 200 Connection established\r\n\r\n"
    proxy = Proxy("http://proxy.test:3128/")
    with pool_over(journal, Script(HEAD, established, HEAD, OK), proxy=proxy) as pool:
        info = pool.request("GET", "https://a.test/").extensions["connection"]
    assert journal.story() == SERVED.replace("opened", "proxy opened")
    assert (info.proxy, str(info.origin)) == (proxy.url.origin, "https://a.test:443")
    assert [span.name for span in info.timings] == ["proxy"]
    assert "by way of 'http://proxy.test:3128'" in repr(info)


@pytest.mark.parametrize("kind", [*LETTERS, ConnectionClosed], ids=lambda kind: kind.__name__)
def test_events_are_frozen_slotted_and_keyword_only(kind: type[Any]) -> None:
    fields = dataclasses.fields(kind)
    event = kind(**{field.name: field.name for field in fields})
    assert not hasattr(event, "__dict__")
    with pytest.raises(dataclasses.FrozenInstanceError):
        event.at = 0.0
    with pytest.raises(TypeError):
        kind(*[field.name for field in fields])
    assert kind.__module__ == "lamina_pool"
    assert {"at", "origin"} <= {field.name for field in fields}


def test_ids_are_never_given_twice_in_a_process() -> None:
    journals = [Journal(), Journal()]
    for journal in journals:
        with pool_over(journal, [HEAD, OK]) as pool:
            read_all(pool)
    first, second = ({event.connection_id for event in journal.of(ConnectionOpened)} for journal in journals)
    assert not first & second
    assert not journals[0].requests().keys() & journals[1].requests().keys()


# --- listeners -----------------------------------------------------------------------------------------------


async def coroutine_function(event: PoolEvent) -> None:
    raise AssertionError("nobody awaits it")


class AsyncCallable:
    async def __call__(self, event: PoolEvent) -> None:
        raise AssertionError("nobody awaits it")


@pytest.mark.parametrize("listener", [1, "f", coroutine_function, AsyncCallable()])
@pytest.mark.parametrize("kind", [ConnectionPool, AsyncConnectionPool])
def test_what_cannot_be_called_or_would_have_to_be_awaited_is_refused(kind: type[Any], listener: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="on_event"):
        kind(on_event=listener)


def test_what_a_listener_raises_goes_to_the_hook_and_the_request_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caught: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", caught.append)

    def failing(event: PoolEvent) -> None:
        raise ValueError(type(event).__name__)

    with pool_over(failing, [HEAD, OK]) as pool:
        assert pool.request("GET", URL).status == 200
    told = ["RequestStarted", "ConnectionOpened", "ConnectionAcquired", "RequestSent", "ResponseStarted"]
    told += ["BodyReceived", "ConnectionReleased", "RequestEnded", "ConnectionClosed"]
    assert [str(each.exc_value) for each in caught] == told
    assert "failing" in repr(caught[0].object)
    assert caught[0].exc_traceback is not None


def test_a_listener_may_use_the_pool_and_is_not_called_within_itself() -> None:
    told: list[str] = []
    depth = 0

    def greedy(event: PoolEvent) -> None:
        nonlocal depth
        depth += 1
        assert depth == 1
        told.append(type(event).__name__)
        if told.count("ConnectionAcquired") == 1 and told[-1] == "ConnectionAcquired":
            assert pool.request("GET", "http://b.test/").status == 200
            assert pool.stats().requests == 1
        depth -= 1

    with pool_over(greedy, [HEAD, OK], [HEAD, OK]) as pool:
        read_all(pool)
    assert told.count("RequestEnded") == told.count("ConnectionClosed") == 2


def test_a_listener_holds_no_lock_of_the_pool(journal: Journal) -> None:
    """Another thread can use the pool, its stats and its requests, while the listener is being called."""
    checked: list[str] = []

    def meddling(event: PoolEvent) -> None:
        journal(event)
        if threading.current_thread() is not main:
            return

        def look() -> None:
            pool.stats(per_origin=True)
            pool.reap()
            checked.append(type(event).__name__)

        thread = threading.Thread(target=look)
        thread.start()
        thread.join(timeout=30.0)
        assert not thread.is_alive()

    main = threading.current_thread()
    with pool_over(meddling, [HEAD, OK, HEAD, LONG], [HEAD, OK], max_connections=1) as pool:
        read_all(pool)
        close_early(pool)
        pool.request("GET", "http://b.test/")
    assert checked.count("RequestEnded") == 3
    assert journal.closings() == ["CLOSED_EARLY", "POOL_CLOSED"]


def test_a_listener_is_not_called_by_a_finaliser_in_the_midst_of_a_step(journal: Journal) -> None:
    with pool_over(journal, [HEAD, LONG], [HEAD, OK]) as pool:
        answer = pool.handle_request(lamina_pool.Request("GET", URL, headers={"Host": "a.test"}))

        def step() -> tuple[()]:
            before = len(journal.events)
            answer.close()  # as an abandoned generator would that holds it
            assert len(journal.events) == before
            return ()

        pool._pool._step(step)
        read_all(pool)
        assert journal.story(0) == "started opened acquired sent head released:CLOSED_EARLY ended"


def test_a_listener_is_not_called_in_the_midst_of_another_pools_step(journal: Journal) -> None:
    with pool_over(journal, [HEAD, LONG]) as pool, pool_over(Journal(), [HEAD, OK]) as other:
        answer = pool.handle_request(lamina_pool.Request("GET", URL, headers={"Host": "a.test"}))

        def step() -> tuple[()]:
            before = len(journal.events)
            answer.close()
            assert len(journal.events) == before
            return ()

        other._pool._step_of(Waiter(None), step)
        read_all(other)  # whoever tells something next
        assert journal.story() == "started opened acquired sent head released:CLOSED_EARLY ended"


def test_the_thread_of_the_request_is_the_one_that_calls(journal: Journal) -> None:
    threads: list[tuple[int, int]] = []

    def listener(event: PoolEvent) -> None:
        journal(event)
        if isinstance(event, RequestEvent):
            threads.append((event.request_id, threading.get_ident()))

    scripts = [cycle([HEAD, OK]) for _ in range(4)]
    with pool_over(listener, *scripts, max_connections=None) as pool:
        workers = [threading.Thread(target=read_all, args=(pool,)) for _ in scripts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert len(set(threads)) == len(scripts)


# --- at no cost ----------------------------------------------------------------------------------------------


def test_without_a_listener_nothing_is_made_and_no_clock_is_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unwanted(*_: Any, **__: Any) -> Any:
        raise AssertionError("made for nobody")

    def reads(on_event: Any) -> int:
        backend = ScriptedBackend([HEAD, OK] * 4)
        with ConnectionPool(network_backend=backend, on_event=on_event) as pool:
            read_all(pool)
            core, count = pool._pool, 0
            clock = core._now

            def counting() -> float:
                nonlocal count
                count += 1
                return clock()

            core._now = counting
            for _ in range(3):
                read_all(pool)
            core._now = clock
            return count

    observed = reads(Journal())
    for kind in (*LETTERS, ConnectionClosed, _observing.RequestRecord, _observing.Observer):
        monkeypatch.setattr(_observing, kind.__name__, unwanted)
    # For being given a connection, for the age of the response, and for giving the connection back.
    assert reads(None) == 3 * 3 < observed


# --- async, HTTP/1.1 -----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_cancelled_in_each_phase(anyio_backend: Any) -> None:
    journal = Journal()
    backend = MemoryBackend(silent)
    hangs: list[Any] = []

    async def hang(host: str, limit: Any) -> None:
        hangs.append(host)
        while True:
            await checkpoints(1)

    async with AsyncConnectionPool(network_backend=backend, max_connections=1, on_event=journal) as pool:
        async with Jobs() as jobs:
            jobs.start(ask, pool)
            await until(lambda: journal.of(RequestSent))
            jobs.start(ask, pool)
            await until(lambda: journal.of(RequestQueued))
        backend.on_connect = hang
        async with Jobs() as jobs:
            jobs.start(ask, pool)
            await until(lambda: hangs)
    cancelled = {event.error for event in journal.of(RequestEnded)}
    assert len(cancelled) == 1
    (error,) = cancelled
    assert error in ("Cancelled", "CancelledError")
    assert [journal.story(number) for number in range(3)] == [
        f"started opened acquired sent released:CANCELLED ended:{error}",
        f"started queued ended:{error}",
        f"started failed:connect:{error} ended:{error}",
    ]
    assert journal.closings() == ["CANCELLED"]
    journal.check_over()


@pytest.mark.anyio
async def test_an_ambient_deadline_is_an_end_like_others(anyio_backend: Any) -> None:
    journal = Journal()
    async with AsyncConnectionPool(network_backend=MemoryBackend(silent), on_event=journal) as pool:
        with pytest.raises(DeadlineExceeded), deadline(1.0):
            await ask(pool)
    assert journal.closings() in (["CANCELLED"], ["FAILED"])
    assert journal.of(RequestEnded)[0].duration == pytest.approx(1.0)
    journal.check_over()


@pytest.mark.anyio
async def test_a_pool_that_is_closed_under_its_requests_tells_of_all_of_them(anyio_backend: Any) -> None:
    journal = Journal()
    pool = AsyncConnectionPool(network_backend=MemoryBackend(silent), max_connections=1, on_event=journal)
    async with Jobs() as jobs:
        started = [jobs.start(ask, pool) for _ in range(3)]
        await until(lambda: len(journal.of(RequestQueued)) == 2 and journal.of(RequestSent))
        await pool.aclose()
        for job in started:
            with pytest.raises(PoolClosed):
                await job.result()
    assert journal.story(0) == "started opened acquired sent released:POOL_CLOSED ended:PoolClosed"
    assert journal.story(1) == journal.story(2) == "started queued ended:PoolClosed"
    assert journal.closings() == ["POOL_CLOSED"]
    journal.check_over()


@pytest.mark.anyio
async def test_a_connection_that_was_granted_and_closed_before_it_was_used_was_never_acquired(
    anyio_backend: Any,
) -> None:
    journal = Journal()

    def listener(event: PoolEvent) -> None:
        journal(event)
        if isinstance(event, RequestEnded):
            pool._pool.close()  # the next one has been granted its connection, and does not know it yet

    backend = MemoryBackend()
    pool = AsyncConnectionPool(network_backend=backend, max_connections=1, on_event=listener)
    async with Jobs() as jobs:
        answer = await pool.handle_async_request(
            lamina_pool.Request("GET", "http://example.com/", headers={"Host": "a"})
        )
        waiting = jobs.start(ask, pool)
        await until(lambda: journal.of(RequestQueued))
        await answer.aread()
        with pytest.raises(PoolClosed):
            await waiting.result()
    await pool.aclose()
    assert journal.story() == "started queued ended:PoolClosed"
    assert journal.closings() == ["POOL_CLOSED"]
    journal.check_over()


# --- async, HTTP/2 -------------------------------------------------------------------------------------------


def shared(backend: HTTP2Backend, journal: Journal, **options: Any) -> AsyncConnectionPool:
    return AsyncConnectionPool(network_backend=backend, http1=False, http2=True, on_event=journal, **options)


@pytest.mark.anyio
async def test_requests_share_a_connection_and_each_lets_go_of_it(anyio_backend: Any) -> None:
    journal = Journal()
    held: list[Asked] = []
    backend = HTTP2Backend(held.append)
    async with shared(backend, journal) as pool, Jobs() as jobs:
        started = []
        for number in range(3):
            started.append(jobs.start(ask, pool))
            await until(lambda: len(held) == number + 1)  # noqa: B023 - is called at once
        assert len({event.connection_id for event in journal.of(ConnectionAcquired)}) == 1
        assert [event.reused for event in journal.of(ConnectionAcquired)] == [False, True, True]
        assert pool.stats() == lamina_pool.PoolStats(1, 1, 0, 0, 0, 3)
        held[1].reset(CANCEL)
        for asked in held[::2]:
            asked.respond(asked.target[1:])
        counts = []
        for number, job in enumerate(started):
            if number == 1:
                with pytest.raises(LaminaError):
                    await job.result()
            else:
                counts.append((await job.result()).extensions["connection"].request_count)
        assert counts == [1, 3]
    assert journal.story(0) == "started opened acquired sent head body released:COMPLETE ended"
    assert journal.story(1) == "started acquired sent released:FAILED ended:RemoteProtocolError"
    assert journal.closings() == ["POOL_CLOSED"]
    assert journal.of(ConnectionClosed)[0].request_count == 3
    journal.check_over()


@pytest.mark.anyio
async def test_goaway_retires_a_connection_and_refused_requests_go_elsewhere(anyio_backend: Any) -> None:
    journal = Journal()

    def refuse(asked: Asked) -> None:
        backend.answer_http2 = echo
        asked.server.goaway(0)

    backend = HTTP2Backend(refuse)
    async with shared(backend, journal) as pool:
        await ask(pool)
    again = "opened acquired sent head body released:COMPLETE ended"
    assert journal.story() == f"started opened acquired sent released:STALE {again}"
    assert journal.closings() == ["RETIRED", "POOL_CLOSED"]
    journal.check_over()


@pytest.mark.anyio
async def test_a_refused_stream_is_sent_again_on_the_same_connection(anyio_backend: Any) -> None:
    journal = Journal()

    def refuse(asked: Asked) -> None:
        backend.answer_http2 = echo
        asked.reset(REFUSED_STREAM)

    backend = HTTP2Backend(refuse)
    async with shared(backend, journal) as pool:
        await ask(pool)
    again = "acquired sent head body released:COMPLETE ended"
    assert journal.story() == f"started opened acquired sent released:STALE {again}"
    assert len(journal.of(ConnectionOpened)) == 1
    journal.check_over()


@pytest.mark.anyio
async def test_a_dial_outlives_the_request_that_began_it_under_its_name(anyio_backend: Any) -> None:
    journal = Journal()
    backend = HTTP2Backend()
    gates: list[Any] = []

    async def wait(host: str, limit: Any) -> None:
        gates.append(host)
        while len(gates) < 2:
            await checkpoints(1)

    backend.on_connect = wait
    async with shared(backend, journal) as pool, Jobs() as jobs:
        first = jobs.start(ask, pool)
        await until(lambda: gates)
        second = jobs.start(ask, pool)
        await until(lambda: journal.of(RequestQueued))
        first.cancel()
        await until(lambda: journal.of(RequestEnded))
        gates.append("open")
        await second.result()
    stories = [journal.story(0), journal.story(1)]
    assert stories[0].startswith("started ended:Cancelled")
    assert stories[0].endswith("opened")
    assert stories[1] == "started queued acquired sent head body released:COMPLETE ended"
    journal.check_over()


@pytest.mark.anyio
async def test_a_dial_that_fails_for_all_is_told_once_and_each_then_dials(anyio_backend: Any) -> None:
    journal = Journal()
    backend = HTTP2Backend()

    async def refuse(host: str, limit: Any) -> None:
        await checkpoints(2)
        raise ConnectError("no", phase="connect")

    backend.on_connect = refuse
    async with shared(backend, journal) as pool, Jobs() as jobs:
        started = [jobs.start(ask, pool) for _ in range(3)]
        for job in started:
            with pytest.raises(ConnectError):
                await job.result()
    assert [journal.story(number).split()[-1] for number in range(3)] == ["ended:ConnectError"] * 3
    assert len(journal.of(ConnectFailed)) == 3
    journal.check_over()


# --- forks, loops ---------------------------------------------------------------------------------------------


def test_a_pool_that_moves_to_another_loop_tells_that_its_connections_are_lost() -> None:
    import asyncio

    journal = Journal()
    backend = MemoryBackend()
    pool = AsyncConnectionPool(network_backend=backend, on_event=journal)
    for _ in range(2):
        asyncio.run(ask(pool))
    assert journal.closings() == [CloseReason.LOST.name]
    asyncio.run(pool.aclose())
    journal.check_over()


FORKED = """
import os, sys
from lamina_pool import ConnectionPool
from pool_helpers import HEAD, OK, ScriptedBackend
from pool_journal import Journal

journal = Journal()
pool = ConnectionPool(network_backend=ScriptedBackend([HEAD, OK], [HEAD, OK]), on_event=journal)
pool.request("GET", "http://a.test/")
first = journal.events[0]
pool._pool._observer._line.append(first)  # the parent has yet to tell it
child = os.fork()
if child == 0:
    assert journal.closings() == []
    pool.request("GET", "http://a.test/")
    pool.close()
    assert journal.events.count(first) == 1
    journal.check_over()
    os._exit(0 if journal.closings() == ["LOST", "POOL_CLOSED"] else 1)
_, status = os.waitpid(child, 0)
pool._pool._observer._line.clear()
pool.close()
journal.check_over()
assert journal.closings() == ["POOL_CLOSED"]
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_that_what_it_inherited_is_lost_and_the_parent_nothing() -> None:
    here = os.path.dirname(__file__)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED],
        cwd=here, env={**os.environ, "PYTHONPATH": here}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_step_names_are_those_of_the_backends() -> None:
    assert set(_observing.STEPS) == {"dns", "tcp", "unix", "proxy", "tls"}
    assert _observing.STEPS["unix"] is TCPConnected
    assert set(_releasing.CLOSE_REASONS) == set(lamina_pool.ReleaseReason)
