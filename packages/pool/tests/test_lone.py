"""Connections without a pool, in every world, over HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import functools
import gc
import warnings
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import pytest

import lamina_pool
from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectError,
    ConnectionNotAvailable,
    DeadlineExceeded,
    LaminaError,
    LocalProtocolError,
    NetworkError,
    PoolTimeout,
    RemoteProtocolError,
    UnsupportedProtocol,
)
from lamina_pool import URL, HTTP2Connection, HTTP11Connection, HTTPConnection, OriginMismatch, Request
from pool_async_net import CustomStream, silent
from pool_async_net import MemoryBackend as AsyncMemoryBackend
from pool_async_net import echo as async_echo
from pool_async_runs import deadline
from pool_http2_server import Asked
from pool_lone_worlds import ORIGIN, WORLDS, Face, World
from pool_loopback import MemoryBackend, request_for, response

Test = Callable[[World], Coroutine[Any, Any, None]]


def everywhere(*, http1: bool = True, http2: bool = True) -> Callable[[Test], Callable[[World], None]]:
    """Run the coroutine function in every world, over these protocols."""
    worlds = [
        World(name, http2=speaks)
        for name in WORLDS
        for speaks, is_wanted in ((False, http1), (True, http2))
        if is_wanted
    ]

    def decorate(test: Test) -> Callable[[World], None]:
        @pytest.mark.parametrize("world", worlds, ids=repr)
        def run(world: World) -> None:
            world.run(test)

        run.__name__ = test.__name__
        return run

    return decorate


def version(world: World) -> str:
    return "HTTP/2" if world.http2 else "HTTP/1.1"


async def refused(connection: Face, target: str = "/refused") -> ConnectionNotAvailable:
    """A request that the connection does not take."""
    with pytest.raises(ConnectionNotAvailable) as caught:
        await connection.get(target)
    assert caught.value.origin == "http://a.test:80"
    return caught.value


def later(now: Callable[[], float]) -> float:
    return now() + 61.0


def silence(*arguments: object) -> None:
    """A server that never answers."""


# --- one request after another


@everywhere()
async def test_it_is_opened_by_the_first_request_and_kept(world: World) -> None:
    backend = world.backend()
    async with world.connection(backend) as connection:
        assert backend.streams == []
        assert [await connection.get(f"/{number}") for number in range(3)] == [b"/0", b"/1", b"/2"]
        assert len(backend.streams) == 1
        assert backend.live == 1
    assert backend.live == 0


@everywhere()
async def test_it_says_what_it_is_doing(world: World) -> None:
    backend = world.backend()
    connection = world.connection(backend)
    name, place = type(connection.inner).__name__, f"'http://a.test:80', {version(world)}"
    shared = "is_available" if world.http2 else ""
    assert (repr(connection.inner), connection.facts) == (f"<{name} [CONNECTING]>", shared)
    async with connection.stream("/x") as answer:
        assert connection.inner.info() == f"{place}, ACTIVE, Request Count: 1"
        assert connection.facts == shared
        assert await answer.read() == b"/x"
        assert connection.inner.info() == f"{place}, IDLE, Request Count: 1"
        assert connection.facts == "is_available is_idle"
    await connection.get()
    assert repr(connection.inner) == f"<{name} [{place}, IDLE, Request Count: 2]>"
    await connection.aclose()
    assert repr(connection.inner) == f"<{name} [{place}, CLOSED, Request Count: 2]>"
    assert connection.facts == "is_closed"


@everywhere()
async def test_one_over_a_stream_says_what_it_is_doing(world: World) -> None:
    backend = world.backend()
    connection = world.over(await world.stream(backend))
    name, state = type(connection.inner).__name__, "IDLE" if world.http2 else "NEW"
    assert repr(connection.inner) == f"<{name} ['http://a.test:80', {state}, Request Count: 0]>"
    assert connection.inner.info() == f"'http://a.test:80', {version(world)}, {state}, Request Count: 0"
    assert connection.facts == ("is_available is_idle" if world.http2 else "")
    assert await connection.get("/x") == b"/x"
    assert repr(connection.inner) == f"<{name} ['http://a.test:80', IDLE, Request Count: 1]>"
    assert connection.facts == "is_available is_idle"
    await connection.aclose()
    assert repr(connection.inner) == f"<{name} ['http://a.test:80', CLOSED, Request Count: 1]>"
    assert connection.facts == "is_closed"
    assert (backend.live, len(backend.streams)) == (0, 1)


@everywhere()
async def test_a_stream_that_is_given_is_closed_with_the_connection(world: World) -> None:
    backend = world.backend()
    used, unused = await world.stream(backend), await world.stream(backend)
    async with world.over(used) as connection:
        await connection.get()
    async with world.over(unused):
        pass
    assert used.is_closed
    assert unused.is_closed
    assert backend.live == 0


@pytest.mark.parametrize("name", WORLDS[1:])
@pytest.mark.parametrize("is_used", [False, True])
def test_a_stream_that_can_only_be_closed_by_waiting_is_waited_for(name: str, is_used: bool) -> None:
    async def test(world: World) -> None:
        backend = world.backend()
        stream = await world.stream(backend)
        async with world.over(CustomStream(stream)) as connection:
            if is_used:
                await connection.get()
        assert stream.is_closed

    World(name, http2=False).run(test)


@everywhere()
async def test_it_can_be_closed_twice_and_takes_nothing_afterwards(world: World) -> None:
    backend = world.backend()
    connections = [world.connection(backend), world.over(await world.stream(backend))]
    for connection in connections:
        await connection.get()
        await connection.aclose()
        await connection.aclose()
        assert "CLOSED" in str(await refused(connection))
    assert backend.live == 0
    assert len(backend.streams) == 2


@everywhere()
async def test_one_that_was_never_opened_is_closed_for_good(world: World) -> None:
    backend = world.backend()
    connection = world.connection(backend)
    await connection.aclose()
    assert (connection.inner.info(), connection.facts) == ("CLOSED", "is_closed")
    await refused(connection)
    assert backend.streams == []


# --- several at once


@everywhere(http2=False)
async def test_a_busy_one_refuses_at_once(world: World) -> None:
    backend = world.backend()
    async with world.connection(backend) as connection:
        async with connection.stream("/1") as answer:
            error = await refused(connection)
            assert "'http://a.test:80', HTTP/1.1, ACTIVE, Request Count: 1" in str(error)
            assert error.phase == "pool"
            assert await answer.read() == b"/1"
        assert await connection.get("/2") == b"/2"
        assert len(backend.streams) == 1


@everywhere(http1=False)
async def test_http2_carries_several(world: World) -> None:
    backend = world.backend()
    async with world.connection(backend) as connection:
        async with connection.stream("/1") as first, connection.stream("/2") as second:
            assert connection.inner.info().endswith("HTTP/2, IDLE, Request Count: 2") or "ACTIVE" in (
                connection.inner.info()
            )
            assert await connection.get("/3") == b"/3"
            assert (await second.read(), await first.read()) == (b"/2", b"/1")
        assert len(backend.streams) == 1


@everywhere(http1=False)
async def test_http2_waits_for_a_stream_within_the_pool_timeout(world: World) -> None:
    def answer(asked: Asked) -> None:
        if asked.target == b"/held":
            asked.respond(b"a", ends=False)
            held.append(asked)
        else:
            asked.respond()

    held: list[Asked] = []
    backend = world.backend(answer)
    backend.settings = {3: 1}  # SETTINGS_MAX_CONCURRENT_STREAMS
    async with world.connection(backend) as connection:
        await connection.get("/first")  # by then it has heard how many are allowed
        async with connection.stream("/held") as first:
            with pytest.raises(PoolTimeout):
                await connection.get("/late", timeout={"pool": 0.01})

            async def end() -> None:
                await world.until(lambda: connection.inner._lone.stats().queued)
                held[0].respond(b"b")
                assert await first.read() == b"ab"

            async def wait() -> None:
                assert await connection.get("/waits") == b"/waits"

            await world.beside(wait, end)
        assert len(backend.streams) == 1


@everywhere(http1=False)
async def test_those_who_wait_for_a_stream_are_told_when_it_goes_away(world: World) -> None:
    def answer(asked: Asked) -> None:
        asked.respond(b"a", ends=asked.target != b"/held")
        if asked.target == b"/held":
            held.append(asked)

    held: list[Asked] = []
    backend = world.backend(answer)
    backend.settings = {3: 1}  # SETTINGS_MAX_CONCURRENT_STREAMS
    async with world.connection(backend) as connection:
        await connection.get("/first")
        async with connection.stream("/held") as first:

            async def end() -> None:
                await world.until(lambda: connection.inner._lone.stats().queued)
                held[0].server.goaway(held[0].id)
                held[0].respond(b"b")
                assert await first.read() == b"ab"

            async def wait() -> None:
                await refused(connection)

            await world.beside(wait, end)
        assert len(backend.streams) == 1


@everywhere(http1=False)
async def test_another_name_for_the_server_is_refused(world: World) -> None:
    async with world.connection(world.backend()) as connection:
        assert await connection.get("/1", sni_hostname="b.test") == b"/1"
        with pytest.raises(ConnectionNotAvailable):
            await connection.get("/2", sni_hostname="c.test")
        assert await connection.get("/3") == b"/3"


@everywhere(http2=False)
async def test_while_it_is_being_opened_it_is_in_use(world: World) -> None:
    def on_connect(*arguments: Any) -> Any:
        is_connecting.set()
        if world.is_blocking:
            assert is_let_go.wait(20)
            return None
        return is_let_go.wait()

    is_connecting, is_let_go = world.event(), world.event()
    backend = world.backend()
    backend.on_connect = on_connect

    async def first() -> None:
        assert await connection.get("/1") == b"/1"

    async def second() -> None:
        await world.until(is_connecting.is_set)
        assert (connection.inner.info(), connection.facts) == ("CONNECTING", "")
        await refused(connection)
        is_let_go.set()

    async with world.connection(backend) as connection:
        await world.beside(first, second)
        assert len(backend.streams) == 1


@everywhere(http1=False)
async def test_those_who_may_share_it_wait_while_it_is_being_opened(world: World) -> None:
    def on_connect(*arguments: Any) -> Any:
        is_connecting.set()
        if world.is_blocking:
            assert is_let_go.wait(20)
            return None
        return is_let_go.wait()

    is_connecting, is_let_go = world.event(), world.event()
    backend = world.backend()
    backend.on_connect = on_connect

    async def first() -> None:
        assert await connection.get("/1") == b"/1"

    async def second() -> None:
        await world.until(is_connecting.is_set)
        assert connection.facts == "is_available"
        await world.beside(third, let_go)

    async def third() -> None:
        assert await connection.get("/2") == b"/2"

    async def let_go() -> None:
        # Who began it may wait as the others do, while somebody else dials.
        enough = 1 if world.is_blocking else 2
        await world.until(lambda: connection.inner._lone._scheduler.waiting >= enough)
        is_let_go.set()

    async with world.connection(backend) as connection:
        await world.beside(first, second)
        assert len(backend.streams) == 1


# --- what cannot go this way


@everywhere()
async def test_another_origin_is_refused(world: World) -> None:
    backend = world.backend()
    async with world.connection(backend) as connection:
        for url in ("http://b.test/", "https://a.test/", "http://a.test:81/"):
            with pytest.raises(OriginMismatch, match=r"on connection to http://a\.test:80") as caught:
                await connection.handle(request_for(url))
            assert isinstance(caught.value, RuntimeError)
            assert isinstance(caught.value, ArgumentValueError)
            assert isinstance(caught.value, ValueError)
            assert caught.value.origin == str(URL(url).origin)
            assert not connection.inner.can_handle_request(URL(url).origin)
        assert connection.inner.can_handle_request(ORIGIN)
        assert backend.streams == []
        assert await connection.get("/x") == b"/x"


@everywhere()
async def test_what_is_not_valid_is_refused_and_costs_nothing(world: World) -> None:
    backend = world.backend()
    async with world.over(await world.stream(backend)) as connection:
        with pytest.raises(LocalProtocolError):
            await connection.handle(Request("GET", "http://a.test/"))  # without a Host
        with pytest.raises(ArgumentTypeError):
            await connection.handle("GET")  # type: ignore[arg-type] # that is the test
        assert connection.inner.info().endswith("Request Count: 0")
        assert await connection.get("/x") == b"/x"


@everywhere(http1=False)
async def test_http2_knows_no_upgrade(world: World) -> None:
    upgrade = Request("GET", "http://a.test/", headers={"Host": "a.test", "Upgrade": "echo"})
    async with world.connection(world.backend()) as connection:
        with pytest.raises(UnsupportedProtocol, match=r"need HTTP/1\.1"):
            await connection.handle(upgrade)


@everywhere(http2=False)
async def test_an_upgrade_takes_the_connection_over(world: World) -> None:
    def answer(stream: Any, head: bytes, body: bytes) -> None:
        stream.feed(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nhi")

    backend = world.backend(answer)
    async with world.connection(backend) as connection:
        answered = await connection.handle(
            Request("GET", "http://a.test/", headers={"Host": "a.test", "Upgrade": "echo"})
        )
        stream = answered.inner.extensions["network_stream"]
        data = stream.read(10) if world.is_blocking else await stream.read(10)
        assert data == b"hi"
        await refused(connection)
        await answered.aclose()
        assert connection.facts == "is_closed"
        await refused(connection)


def test_what_was_asked_for_at_first_need_not_be_asked_for_again() -> None:
    backend = MemoryBackend()
    with HTTPConnection(ORIGIN, network_backend=backend) as connection:
        for name in ("c.test", None, "c.test"):
            extensions = {} if name is None else {"sni_hostname": name}
            assert connection.request("GET", "http://a.test/", extensions=extensions).status == 200
        with pytest.raises(ConnectionNotAvailable):
            connection.request("GET", "http://a.test/", extensions={"sni_hostname": "d.test"})
        upgrade = Request("GET", "http://a.test/", headers={"Host": "a.test", "Upgrade": "echo"})
        assert connection.handle_request(upgrade).read() == b"/"
        assert len(backend.streams) == 1


# --- what goes wrong


@everywhere(http2=False)
async def test_one_that_the_server_has_closed_is_of_no_further_use(world: World) -> None:
    backend = world.backend()
    async with world.connection(backend) as connection:
        await connection.get()
        backend.streams[0].feed_eof()
        assert connection.facts == "is_available has_expired is_idle"
        assert "CLOSED" in str(await refused(connection))
        assert connection.facts == "is_closed"
        assert (backend.live, len(backend.streams)) == (0, 1)


@everywhere(http1=False)
async def test_one_that_goes_away_carries_on_and_takes_nothing_more(world: World) -> None:
    def answer(asked: Asked) -> None:
        asked.respond(b"a", ends=False)
        if asked.target == b"/held":
            asked.server.goaway(asked.id)
            held.append(asked)

    held: list[Asked] = []
    backend = world.backend(answer)
    async with world.connection(backend) as connection:
        async with connection.stream("/held") as first:
            await refused(connection)
            assert "ACTIVE" in connection.inner.info()
            assert connection.facts == ""
            held[0].respond(b"b")
            assert await first.read() == b"ab"
        assert connection.facts == "is_closed"
        await refused(connection)
        assert (backend.live, len(backend.streams)) == (0, 1)


@everywhere()
async def test_nothing_is_sent_a_second_time(world: World) -> None:
    def answer(*arguments: Any) -> None:
        requests.append(arguments)
        if len(requests) == 1:
            (world_echo if world.http2 else async_echo)(*arguments)
        else:
            backend.streams[0].hang_up() if world.http2 else backend.streams[0].feed_eof()

    def world_echo(asked: Asked) -> None:
        asked.respond()

    requests: list[Any] = []
    backend = world.backend(answer)
    async with world.connection(backend) as connection:
        await connection.get()
        # A pool would send this one again, on another connection.
        with pytest.raises(RemoteProtocolError):
            await connection.get()
        assert len(requests) == 2
        await refused(connection)
        assert (backend.live, len(backend.streams)) == (0, 1)


@everywhere()
async def test_an_attempt_to_open_it_that_failed_may_be_repeated(world: World) -> None:
    def on_connect(*arguments: Any) -> None:
        raise ConnectError("refused", phase="connect")

    backend = world.backend()
    async with world.connection(backend) as connection:
        usual, backend.on_connect = backend.on_connect, on_connect
        with pytest.raises(ConnectError) as caught:
            await connection.get()
        assert caught.value.origin == "http://a.test:80"
        assert connection.inner.info() == "CONNECTION FAILED"
        assert connection.facts == "has_expired is_idle is_closed"
        backend.on_connect = usual
        assert await connection.get("/x") == b"/x"
        assert len(backend.streams) == 1


@everywhere()
async def test_a_response_that_is_closed_early(world: World) -> None:
    backend = world.backend()
    if world.http2:
        backend.answer_http2 = lambda asked: asked.respond(b"a", ends=False)
    else:
        backend.answer = lambda stream, head, body: stream.feed(response(b"a" * 100_000)[:99])
    async with world.connection(backend) as connection:
        async with connection.stream():
            pass
        if world.http2:
            assert connection.facts == "is_available is_idle"  # the stream was reset, no more
        else:
            assert connection.facts == "is_closed"
            await refused(connection)


@everywhere()
async def test_closing_it_ends_a_request_that_is_under_way(world: World) -> None:
    backend = world.backend(silence)

    async def wait() -> None:
        with pytest.raises(NetworkError) as caught:
            await connection.get()
        assert caught.value.origin == "http://a.test:80"

    async def close() -> None:
        await world.until(lambda: "ACTIVE" in connection.inner.info() and _has_asked(world, backend))
        await connection.aclose()

    connection = world.connection(backend)
    await world.beside(wait, close)
    assert connection.facts == "is_closed"
    assert backend.live == 0


def _has_asked(world: World, backend: Any) -> bool:
    stream = backend.streams[0]
    return bool(stream.peer.asked) if world.http2 else bool(stream.requests)


@everywhere()
async def test_closing_it_ends_the_reading_of_a_response(world: World) -> None:
    backend = world.backend()
    if world.http2:
        backend.answer_http2 = lambda asked: asked.respond(b"a", ends=False)
    else:
        backend.answer = lambda stream, head, body: stream.feed(response(b"a" * 100_000)[:99])
    connection = world.connection(backend)
    answer = await connection.handle(request_for("http://a.test/"))
    await connection.aclose()
    with pytest.raises(LaminaError, match="clos"):
        await answer.read()
    await answer.aclose()
    assert backend.live == 0


@everywhere()
async def test_a_deadline_ends_a_request_and_the_connection(world: World) -> None:
    backend = world.backend(silence)
    for _ in range(20):
        async with world.connection(backend) as connection:
            with pytest.raises(DeadlineExceeded) as caught, deadline(0.02):
                await connection.get()
            if caught.value.phase != "read":
                continue  # on a busy machine, or while h2 is imported, it may not get so far in time
            if world.http2:
                assert connection.facts == "is_available is_idle"
            else:
                assert connection.facts == "is_closed"
                assert backend.live == 0
            return
    pytest.fail("no request was sent in time")


@pytest.mark.parametrize("name", WORLDS[1:])
@pytest.mark.parametrize("http2", [False, True])
def test_a_cancelled_request_gives_up_what_it_holds(name: str, http2: bool) -> None:
    async def test(world: World) -> None:
        backend = world.backend(silence if http2 else silent)
        async with world.connection(backend) as connection:
            async with anyio.create_task_group() as group:
                group.start_soon(connection.get)
                await world.until(lambda: backend.streams and _has_asked(world, backend))
                group.cancel_scope.cancel()
            if http2:
                assert connection.facts == "is_available is_idle"
            else:
                assert connection.facts == "is_closed"
                await refused(connection)

    World(name, http2=http2).run(test)


@pytest.mark.parametrize("name", WORLDS[1:])
@pytest.mark.parametrize("http2", [False, True])
def test_opening_it_can_be_cancelled_and_repeated(name: str, http2: bool) -> None:
    async def test(world: World) -> None:
        async def hang(*arguments: Any) -> None:
            is_connecting.set()
            await world.event().wait()

        backend = world.backend()
        backend.on_connect, is_connecting = hang, world.event()
        async with world.connection(backend) as connection:
            async with anyio.create_task_group() as group:
                group.start_soon(connection.get)
                await is_connecting.wait()
                group.cancel_scope.cancel()
            await world.until(lambda: connection.inner.info() == "CONNECTION FAILED")
            backend.on_connect = None
            assert await connection.get("/x") == b"/x"

    World(name, http2=http2).run(test)


@everywhere()
async def test_closing_it_ends_its_opening(world: World) -> None:
    def on_connect(host_or_limit: Any, limit: Any = None) -> Any:
        is_connecting.set()
        if world.is_blocking:
            while True:
                host_or_limit.check()
        return world.event().wait()

    is_connecting = world.event()
    backend = world.backend()
    backend.on_connect = on_connect

    async def first() -> None:
        with pytest.raises(ConnectionNotAvailable, match=r"(?i)closed"):
            await connection.get()

    async def close() -> None:
        await world.until(is_connecting.is_set)
        await connection.aclose()

    connection = world.connection(backend)
    await world.beside(first, close)
    assert connection.facts == "is_closed"
    assert backend.live == 0


# --- time


@everywhere()
async def test_one_that_has_idled_for_too_long_is_not_used(world: World) -> None:
    backend = world.backend()
    async with (
        world.connection(backend) as patient,
        world.connection(backend, keepalive_expiry=60.0) as own,
        world.over(await world.stream(backend), keepalive_expiry=60.0) as given,
        world.connection(backend, keepalive_expiry=0.0) as never,
    ):
        for connection in (patient, own, given, never):
            assert await connection.get("/x") == b"/x"
        assert never.facts == "is_closed"
        for connection in (patient, own, given):
            assert await connection.get("/y") == b"/y"
            assert connection.facts == "is_available is_idle"
            lone = connection.inner._lone
            lone._now = functools.partial(later, lone._now)
        for connection in (own, given):
            assert connection.facts == "is_available has_expired is_idle"
            await refused(connection)
            assert connection.facts == "is_closed"
        assert await patient.get("/z") == b"/z"


# --- what is forgotten


@everywhere()
async def test_one_that_is_forgotten_is_told_of_and_its_stream_freed(world: World) -> None:
    backend = world.backend()
    opened = world.connection(backend)
    await opened.get()
    used = world.over(await world.stream(backend))
    await used.get()
    unused = world.over(await world.stream(backend))
    assert backend.live == 3
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del opened, used, unused
        gc.collect()
    assert [str(warning.message) for warning in caught] == ["unclosed connection to http://a.test:80"] * 3
    assert {warning.category for warning in caught} == {ResourceWarning}
    assert backend.live == 0


@everywhere()
async def test_one_that_holds_nothing_is_forgotten_silently(world: World) -> None:
    backend = world.backend()
    connections = [world.connection(backend), world.over(await world.stream(backend))]
    await connections[1].aclose()
    left = world.over(await world.stream(backend))
    connections.append(left)
    await left.get()
    (backend.streams[-1].hang_up if world.http2 else backend.streams[-1].feed_eof)()
    await refused(left)
    del left
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        connections.clear()
        gc.collect()


# --- from a pool


@everywhere()
async def test_a_pool_makes_connections_of_its_kind_that_are_not_its_own(world: World) -> None:
    backend = world.backend()
    options: dict[str, Any] = {"http1": False, "http2": True} if world.http2 else {}
    pool = world.class_of("ConnectionPool")(network_backend=backend, retries=2, uds="/socket", **options)
    async with Face(world, pool.create_connection(ORIGIN)) as connection:
        assert type(connection.inner) is world.class_of("HTTPConnection")
        assert await connection.get("/x") == b"/x"
        assert pool.connections == []
        with pytest.raises(ArgumentTypeError):
            pool.create_connection("http://a.test/")
    assert [call[:2] for call in backend.calls] == [("connect_unix_socket", "/socket")]
    assert backend.live == 0


# --- arguments


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (HTTPConnection, {"origin": "http://a.test"}),
        (HTTPConnection, {"retries": 1.5}),
        (HTTPConnection, {"network_backend": AsyncMemoryBackend()}),
        (HTTP11Connection, {"stream": MemoryBackend}),
        (HTTP11Connection, {"stream": None}),
        (HTTP2Connection, {"stream": b""}),
        (lamina_pool.AsyncHTTPConnection, {"network_backend": MemoryBackend()}),
        (lamina_pool.AsyncHTTP11Connection, {"stream": object()}),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(kind: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentTypeError):
        kind(**{"origin": ORIGIN, **arguments})


@pytest.mark.parametrize(
    "arguments",
    [{"keepalive_expiry": -1.0}, {"http1": False}, {"retries": -1}, {"uds": "/x", "local_address": "::"}],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ArgumentValueError):
        HTTPConnection(ORIGIN, **arguments)


def test_a_stream_of_the_other_world_is_refused() -> None:
    backend = MemoryBackend()
    stream = backend.connect_tcp("a.test", 80)
    with pytest.raises(
        ArgumentTypeError, match="must be an instance of AsyncNetworkStream, not MemoryStream"
    ):
        lamina_pool.AsyncHTTP11Connection(ORIGIN, stream)  # type: ignore[arg-type] # that is the test
    stream.close()


def test_the_interfaces_are_there_to_derive_from() -> None:
    blocking, suspending = lamina_pool.ConnectionInterface(), lamina_pool.AsyncConnectionInterface()
    calls: list[Callable[[], object]] = [
        blocking.close,
        lambda: blocking.handle_request(request_for()),
        lambda: blocking.request("GET", "http://a.test/"),
    ]
    for interface in (blocking, suspending):
        calls += [interface.info, interface.is_available, interface.has_expired, interface.is_idle]
        calls += [interface.is_closed, functools.partial(interface.can_handle_request, ORIGIN)]
    for call in calls:
        with pytest.raises(NotImplementedError):
            call()
    for coroutine in (suspending.aclose(), suspending.handle_async_request(request_for())):
        with pytest.raises(NotImplementedError):
            coroutine.send(None)
    assert issubclass(HTTPConnection, lamina_pool.ConnectionInterface)
    assert issubclass(lamina_pool.AsyncHTTPConnection, lamina_pool.AsyncConnectionInterface)


def test_a_connection_of_ones_own_has_request_and_stream() -> None:
    class Canned(lamina_pool.ConnectionInterface):
        def handle_request(self, request: Request) -> lamina_pool.Response:
            return lamina_pool.Response(200, content=request.url.target)

    assert Canned().request("GET", "http://a.test/x").content == b"/x"
    with Canned().stream("GET", "http://a.test/y") as answer:
        assert answer.read() == b"/y"
