"""HTTP/2 through the pool and the real backend, against a peer that does what no standard allows, over real sockets.

The peer is in `stack_h2_peer`; it holds every frame of the client against RFC 9113, in all of these tests. The ids in
the names are those of docs/faults.md.
"""

from __future__ import annotations

import itertools
import os
import random
import socket
import ssl
import threading
import time
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from lamina_interfaces import (
    ConnectTimeout,
    DeadlineExceeded,
    LaminaError,
    LocalProtocolError,
    PoolClosed,
    PoolTimeout,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    WriteError,
    WriteTimeout,
)
from lamina_pool import PoolStats
from lamina_pool._http2 import HTTP2Session
from lamina_timeouts import timeout
from stack_h2_peer import (
    CANCEL,
    COMPRESSION_ERROR,
    ENABLE_PUSH,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    HEADER_TABLE_SIZE,
    INITIAL_WINDOW_SIZE,
    INTERNAL_ERROR,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    NO_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    START_WINDOW,
    STREAM_CLOSED,
    Asked,
    H2Connection,
    H2Server,
    raw_frame,
)
from stack_helpers import read_head, response, tries_in_time
from stack_worlds import Cancelled

if TYPE_CHECKING:
    from stack_helpers import Certificates, FaultServer
    from stack_worlds import Job, World

    StartServer = Callable[..., H2Server]
    Fault = Callable[[H2Connection, Asked], None]

EMPTY = PoolStats(0, 0, 0, 0, 0, 0)

LONG = 30.0
"""Seconds of a limit that is not to be reached."""

EITHER = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


# --- what holds after each test ----------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nothing_left(no_socket_left: None) -> Iterator[None]:
    """No socket, and no thread but those that were there."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread


@pytest.fixture(scope="session")
def h2_contexts(certificates: Certificates) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's, that offers HTTP/2 before HTTP/1.1, and a server's, that has nothing else."""
    client = ssl.create_default_context(cafile=str(certificates.authority))
    client.set_alpn_protocols(["h2", "http/1.1"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificates.certificate, certificates.key)
    server.set_alpn_protocols(["h2"])
    return client, server


@pytest.fixture
def h2_server(
    nothing_left: None, h2_contexts: tuple[ssl.SSLContext, ssl.SSLContext]
) -> Iterator[Callable[..., H2Server]]:
    """Call it with a script."""
    servers: list[H2Server] = []

    def start(script: Callable[[H2Connection], None], *, tls: bool = False, **arguments: Any) -> H2Server:
        servers.append(H2Server(script, context=h2_contexts[1] if tls else None, **arguments))
        servers[-1].client_context = h2_contexts[0]
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.stop()


async def _tasks(world: World) -> int:
    """How many there are, once those that have something to finish have done it."""
    if not world.is_async:
        return 0
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    return len(anyio.get_running_tasks())


@asynccontextmanager
async def http2_pool(world: World, server: H2Server, **options: Any) -> AsyncIterator[Any]:
    """A pool for a test. At the end of its block nothing is under way, and it works."""
    options = {"http1": False, "http2": True, "ssl_context": server.client_context, **options}
    tasks = await _tasks(world)
    async with world.pool(**options) as pool:
        yield pool
        is_answer(await ask(pool, server, "/echo/after"))
        stats = pool.stats()
        assert (stats.active, stats.connecting, stats.queued, stats.requests) == (0, 0, 0, 0), stats
    assert pool.stats() == EMPTY
    assert await _tasks(world) <= tasks
    await world.until(lambda: server.live == 0)


async def ask(
    pool: Any, server: H2Server, path: str, method: str = "GET", content: Any = None, /, **options: Any
) -> Any:
    """A request; the limits that are not given are long."""
    names = ("connect", "read", "write", "pool")
    limits = {name: options.pop(name, LONG) for name in names}
    return await pool.request(
        method, server.url + path, content=content, extensions={"timeout": limits}, **options
    )


def streaming(pool: Any, server: H2Server, path: str, /, **limits: float) -> Any:
    names = ("connect", "read", "write", "pool")
    limits = {name: limits.get(name, LONG) for name in names}
    return pool.stream("GET", server.url + path, extensions={"timeout": limits})


def is_answer(got: Any) -> None:
    """The peer answers with the path: nobody has got another's answer."""
    assert got.status == 200
    assert got.content.startswith(b"/"), got.content[:100]
    assert got.extensions["http_version"] == b"HTTP/2"


def echoed(got: Any, path: str) -> None:
    is_answer(got)
    assert got.content == path.encode()


async def some(got: Any, least: int = 1) -> int:
    """Read so many bytes of the body, at least."""
    size = 0
    async for piece in got.aiter_stream():
        size += len(piece)
        if size >= least:
            break
    return size


async def in_time(awaitable: Awaitable[Any]) -> Any:
    """What has no limit of its own; a busy machine is given its time."""
    start = time.monotonic()
    try:
        return await awaitable
    finally:
        assert time.monotonic() - start < 20


# --- faults of one stream, and of a whole connection ---------------------------------------------------------


def one_stream(fault: Fault) -> Callable[[H2Connection], None]:
    """A script: the fault is for whoever asks for it; a sibling waits until somebody asks for its release."""

    def script(peer: H2Connection) -> None:
        held: list[Asked] = []

        def special(asked: Asked) -> None:
            if asked.path == b"/sibling":
                held.append(asked)
            elif asked.path == b"/release":
                for each in (*held, asked):
                    peer.respond(each)
            else:
                fault(peer, asked)

        peer.serve(special)

    return script


async def fails_alone(
    world: World,
    server: H2Server,
    error: type[Exception] | None = RemoteProtocolError,
    *,
    method: str = "GET",
    content: Any = None,
    **limits: float,
) -> Any:
    """A request meets the fault; another on the same connection does not notice. The error, or the response."""
    outcome: Any = None
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        sibling = jobs.start(partial(ask, pool, server, "/sibling"))
        await world.until(lambda: b"/sibling" in server.paths())
        try:
            outcome = await ask(pool, server, "/fault", method, content, **limits)
        except LaminaError as caught:
            outcome = caught
        if error is None:
            assert not isinstance(outcome, Exception), repr(outcome)
        else:
            assert type(outcome) is error, repr(outcome)
            assert str(outcome)
            assert isinstance(outcome, LaminaError)
            assert outcome.origin == server.url
        echoed(await ask(pool, server, "/release"), "/release")
        echoed(await sibling.result(world), "/sibling")
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
    assert server.accepted == 1
    return outcome


def whole_connection(fault: Fault) -> Callable[[H2Connection], None]:
    """A script: the first connection meets the fault, and those after it are fine."""

    def script(peer: H2Connection) -> None:
        if peer.number:
            peer.serve()
        else:
            fault(peer, peer.request())
            peer.drain()

    return script


async def fails_as_a_whole(
    world: World,
    server: H2Server,
    error: type[Exception] = RemoteProtocolError,
    codes: tuple[int, ...] | None = (PROTOCOL_ERROR,),
    **options: Any,
) -> LaminaError:
    """The request fails; the peer is told why, if `codes` are given; the next has a connection of its own."""
    async with http2_pool(world, server, max_connections=1, **options) as pool:
        with pytest.raises(LaminaError) as caught:
            await in_time(ask(pool, server, "/fault", read=LONG))
        assert type(caught.value) is error, repr(caught.value)
        assert str(caught.value)
        assert caught.value.origin == server.url
        assert pool.stats() == EMPTY
        await world.until(lambda: server.connections[0].is_ended)
        if codes is not None:
            (code,) = server.connections[0].goaways()
            assert code in codes
    assert server.accepted == 2
    return caught.value


# --- the plain way -----------------------------------------------------------------------------------------


@EITHER
async def test_what_a_response_tells(world: World, tls: bool, h2_server: StartServer) -> None:
    def special(peer: H2Connection, asked: Asked) -> None:
        peer.head(asked, 103, [(b"link", b"</style.css>")])
        peer.head(asked, 200, [(b"content-length", b"5"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")])
        peer.data(asked, b"12345", ends=False)
        peer.headers(asked, [(b"x-sum", b"15")], ends=True)

    server = h2_server(one_stream(special), tls=tls)
    async with http2_pool(world, server) as pool:
        got = await ask(pool, server, "/a?b=c", headers=[("Host", "example.org:8"), ("X-Upper", "Kept")])
        assert (got.status, got.content) == (200, b"12345")
        assert got.headers == [(b"content-length", b"5"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        assert got.trailers == [(b"x-sum", b"15")]
        assert got.extensions["http_version"] == b"HTTP/2"
        assert got.extensions["stream_id"] == server.asked()[0].id
        assert "reason_phrase" not in got.extensions
    fields = dict(server.asked()[0].fields)
    assert fields[b":authority"] == b"example.org:8"
    assert fields[b":path"] == b"/a?b=c"
    assert fields[b":scheme"] == (b"https" if tls else b"http")
    assert fields[b"x-upper"] == b"Kept"
    assert server.accepted == 1


async def test_fields_that_belong_to_a_connection_are_left_out(world: World, h2_server: StartServer) -> None:
    server = h2_server(lambda peer: peer.serve())
    async with http2_pool(world, server) as pool:
        headers = [
            ("Host", "a"),
            ("Connection", "keep-alive, X-Hop"),
            ("Keep-Alive", "5"),
            ("X-Hop", "1"),
            ("X-Far", "2"),
        ]
        echoed(await ask(pool, server, "/echo", headers=headers), "/echo")
    (fields, _) = (
        dict(asked.fields) for asked in server.asked()
    )  # the peer has checked for what is forbidden
    assert b"x-hop" not in fields
    assert fields[b"x-far"] == b"2"


async def test_a_ping_is_answered(world: World, h2_server: StartServer) -> None:
    def special(peer: H2Connection, asked: Asked) -> None:
        for data in (b"12345678", b"abcdefgh"):
            peer.send(PingFrame(opaque_data=data))
        peer.until(lambda: len(_pongs(peer)) == 2)
        peer.respond(asked)

    def _pongs(peer: H2Connection) -> list[bytes]:
        pings = [frame for frame in peer.frames if isinstance(frame, PingFrame)]
        return [frame.opaque_data for frame in pings if "ACK" in frame.flags]

    server = h2_server(one_stream(special))
    async with http2_pool(world, server) as pool:
        echoed(await ask(pool, server, "/ping"), "/ping")
        assert _pongs(server.connections[0]) == [b"12345678", b"abcdefgh"]


async def test_head_and_statuses_without_a_body(world: World, h2_server: StartServer) -> None:
    def special(peer: H2Connection, asked: Asked) -> None:
        status = int(asked.path[1:])
        peer.head(asked, status, [(b"content-length", b"1000")] if status != 204 else [], ends=True)

    server = h2_server(one_stream(special))
    async with http2_pool(world, server) as pool:
        for method, status in (("HEAD", 200), ("GET", 204), ("GET", 304)):
            got = await ask(pool, server, f"/{status}", method)
            assert (got.status, got.content) == (status, b"")
    assert server.accepted == 1


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [(None, b"HTTP/1.1"), (["http/1.1"], b"HTTP/1.1"), (["h2"], b"HTTP/2"), (["spdy/3"], b"HTTP/1.1")],
)
async def test_the_protocol_is_what_the_server_agrees_to_C04(
    world: World,
    offered: list[str] | None,
    chosen: bytes,
    fault_server: Callable[..., FaultServer],
    certificates: Certificates,
    h2_contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """Where both are allowed; no protocol is guessed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    if offered:
        context.set_alpn_protocols(offered)

    def behave(sock: ssl.SSLSocket) -> None:
        if sock.selected_alpn_protocol() == "h2":
            peer = H2Connection(sock, 0)
            peer.settings()
            peer.serve()
        while True:
            sock.sendall(response(read_head(sock).split()[1]))

    server = fault_server(behave, context=context)
    async with world.pool(http1=True, http2=True, ssl_context=h2_contexts[0]) as pool:
        for number in range(3):
            got = await pool.request("GET", f"{server.url}/{number}")
            assert (got.content, got.extensions["http_version"]) == (b"/%d" % number, chosen)
    assert server.accepted == 1


async def test_one_context_serves_pools_of_both_kinds_C05(
    world: World,
    h2_server: StartServer,
    fault_server: Callable[..., FaultServer],
    certificates: Certificates,
    h2_contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """The server prefers HTTP/2 where it is offered: what a pool without it makes of that is no error."""
    server = h2_server(lambda peer: peer.serve(), tls=True)

    def behave(sock: socket.socket) -> None:
        while True:
            sock.sendall(response(read_head(sock).split()[1]))

    older = fault_server(behave, context=certificates.server)
    async with (
        http2_pool(world, server, http1=True) as newer_pool,
        world.pool(ssl_context=h2_contexts[0]) as older_pool,
        world.jobs() as jobs,
    ):
        asked: list[Job] = []
        for number in range(10):
            asked.append(jobs.start(partial(ask, newer_pool, server, f"/echo/{number}")))
            asked.append(jobs.start(partial(older_pool.request, "GET", f"{older.url}/{number}")))
        for number, job in enumerate(asked):
            got = await job.result(world)
            assert got.extensions["http_version"] == (b"HTTP/1.1" if number % 2 else b"HTTP/2")


# --- GOAWAY ------------------------------------------------------------------------------------------------


@EITHER
async def test_a_response_is_finished_after_goaway_B01(
    world: World, tls: bool, h2_server: StartServer
) -> None:
    """Whoever comes after it gets another connection; the first is closed once it is empty."""
    go_on = threading.Event()

    def script(peer: H2Connection) -> None:
        if peer.number:
            peer.serve()
        asked = peer.request()
        peer.head(asked)
        peer.goaway(asked.id)
        peer.data(asked, b"/one", ends=False)
        peer.hold(go_on.is_set)
        peer.data(asked, b"/two")
        peer.drain()

    server = h2_server(script, tls=tls)
    async with http2_pool(world, server) as pool:
        async with streaming(pool, server, "/fault") as got:
            pieces = aiter(got.aiter_stream())
            body = await anext(pieces)
            echoed(await ask(pool, server, "/echo/meanwhile"), "/echo/meanwhile")
            assert [len(peer.streams) for peer in server.connections] == [1, 1]
            assert pool.stats().connections == 2
            go_on.set()
            async for piece in pieces:
                body += piece
            assert body == b"/one/two"
        await world.until(lambda: server.connections[0].is_ended)
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
    assert server.connections[0].resets() == []


async def test_goaway_in_two_steps_B01(world: World, h2_server: StartServer) -> None:
    """First that no more are wanted, with the highest id of all, then which were the last (section 6.8)."""

    def script(peer: H2Connection) -> None:
        if peer.number:
            peer.serve()
        first, second, third = peer.requests(3)
        peer.goaway((1 << 31) - 1)
        peer.respond(first)
        peer.goaway(second.id)
        peer.respond(second)
        assert third.id > second.id
        peer.drain()

    server = h2_server(script)
    async with http2_pool(world, server) as pool, world.jobs() as jobs:
        asked = [jobs.start(partial(ask, pool, server, f"/{number}")) for number in range(3)]
        for number, job in enumerate(asked):
            echoed(await job.result(world), f"/{number}")
    assert server.accepted == 2


@pytest.mark.parametrize("concurrency", [1, 8])
async def test_a_server_that_recycles_its_connections_costs_no_error_B01(
    world: World, concurrency: int, h2_server: StartServer
) -> None:
    """As nginx does after `keepalive_requests`: it takes what has come by then, and no more."""

    def script(peer: H2Connection) -> None:
        asked = peer.request()
        for _ in range(2):
            peer.respond(asked)
            asked = peer.request()
        peer.goaway(asked.id)
        peer.respond(asked)
        peer.drain()

    server = h2_server(script)
    async with world.pool(http1=False, http2=True, max_connections=4) as pool, world.jobs() as jobs:

        async def many(worker: int) -> None:
            for number in range(120 // concurrency):
                path = f"/{worker}/{number}"
                echoed(await ask(pool, server, path), path)

        for job in [jobs.start(many, worker) for worker in range(concurrency)]:
            await job.result(world)
    assert server.accepted >= 30


@EITHER
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_what_goaway_leaves_out_is_sent_again_B02(
    world: World, tls: bool, method: str, h2_server: StartServer
) -> None:
    """Whatever the method: the server has said that it did nothing about it."""

    def script(peer: H2Connection) -> None:
        if peer.number:
            peer.serve()
        peer.request()
        peer.goaway(0)
        peer.drain()

    server = h2_server(script, tls=tls)
    async with http2_pool(world, server) as pool:
        content = bytes(200_000) if method == "POST" else None
        echoed(await ask(pool, server, "/once", method, content), "/once")
        await world.until(lambda: server.connections[0].is_ended)
    assert server.accepted == 2
    assert server.connections[1].streams[1].size == len(content or b"")


async def test_goaway_with_an_error_and_the_end_B02(world: World, h2_server: StartServer) -> None:
    """What was processed fails, what was not is sent again."""

    def script(peer: H2Connection) -> None:
        if peer.number:
            peer.serve()
        first, _ = peer.requests(2)
        peer.goaway(first.id, INTERNAL_ERROR, b"out of \x00 order" * 100)

    server = h2_server(script)
    async with http2_pool(world, server) as pool, world.jobs() as jobs:
        first = jobs.start(partial(ask, pool, server, "/first", "POST", b""))
        await world.until(lambda: server.paths() == [b"/first"])
        second = jobs.start(partial(ask, pool, server, "/second", "POST", b""))
        error = await first.outcome(world)
        assert type(error) in (RemoteProtocolError, ReadError), repr(error)
        assert "INTERNAL_ERROR" in str(error)
        assert len(str(error)) < 1000
        assert str(error).isprintable()
        echoed(await second.result(world), "/second")
    assert server.accepted == 2


async def test_a_body_that_cannot_be_read_again_is_not_sent_again_B02(
    world: World, h2_server: StartServer
) -> None:
    def script(peer: H2Connection) -> None:
        if peer.number:
            peer.serve()
        asked = peer.request()
        peer.until(lambda: asked.size)
        peer.goaway(0)
        peer.drain()

    server = h2_server(script)
    async with http2_pool(world, server) as pool:
        with pytest.raises(RemoteProtocolError):
            await ask(pool, server, "/once", "POST", world.body(iter([b"some of it"] * 3)))


@pytest.mark.parametrize("how", ["GOAWAY", "REFUSED_STREAM"])
async def test_a_server_that_refuses_everything_is_given_up_B02_B03(
    world: World, how: str, h2_server: StartServer
) -> None:
    def script(peer: H2Connection) -> None:
        def refuse(asked: Asked) -> None:
            if how == "GOAWAY":
                peer.goaway(0)
                peer.drain()
            peer.reset(asked, REFUSED_STREAM)

        peer.serve(refuse)

    server = h2_server(script)
    async with http2_pool(world, server) as pool:
        with pytest.raises(RemoteProtocolError):
            await ask(pool, server, "/again")
    assert server.paths().count(b"/again") <= 10


# --- resets ------------------------------------------------------------------------------------------------


@EITHER
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_refused_stream_is_asked_for_again_B03(
    world: World, tls: bool, method: str, h2_server: StartServer
) -> None:
    def refuse_once(peer: H2Connection, asked: Asked) -> None:
        if sum(each.path == b"/fault" for each in peer.streams.values()) == 1:
            peer.reset(asked, REFUSED_STREAM)
        else:
            peer.finish(asked)
            peer.respond(asked)

    server = h2_server(one_stream(refuse_once), tls=tls)
    got = await fails_alone(
        world, server, None, method=method, content=b"again" if method == "POST" else None
    )
    echoed(got, "/fault")
    assert server.paths().count(b"/fault") == 2


@pytest.mark.parametrize("code", [CANCEL, INTERNAL_ERROR, NO_ERROR, 0xFFFFFFFF])
@pytest.mark.parametrize("when", ["at once", "after the head", "in the body"])
async def test_a_reset_ends_one_stream_B04(
    world: World, when: str, code: int, h2_server: StartServer
) -> None:
    def reset(peer: H2Connection, asked: Asked) -> None:
        if when != "at once":
            peer.head(asked)
        if when == "in the body":
            peer.data(asked, b"some of it", ends=False)
        peer.reset(asked, code)

    server = h2_server(one_stream(reset))
    error = await fails_alone(world, server)
    if code == CANCEL:
        assert "CANCEL" in str(error)
    assert server.connections[0].resets() == []


@EITHER
@pytest.mark.parametrize("body", ["bytes", "pieces"])
@pytest.mark.parametrize("status", [200, 413])
async def test_an_upload_ends_with_an_early_response_and_no_error_B04_A18(
    world: World, tls: bool, body: str, status: int, h2_server: StartServer
) -> None:
    """RFC 9113, section 8.1: the response is whole, and the rest of the request is not wanted."""

    def answer(peer: H2Connection, asked: Asked) -> None:
        peer.credits = False
        peer.until(lambda: asked.size)
        peer.respond(asked, b"/too large", status=status)
        peer.reset(asked, NO_ERROR)

    server = h2_server(one_stream(answer), tls=tls)
    content: Any = bytes(50_000_000) if body == "bytes" else world.body(bytes(500_000) for _ in range(100))
    got = await fails_alone(world, server, None, method="POST", content=content)
    assert (got.status, got.content) == (status, b"/too large")
    # The client may have ended the stream itself before it heard that the server has.
    assert server.connections[0].resets() in ([], [(server.asked()[1].id, CANCEL)])
    assert server.asked()[1].size <= START_WINDOW


@pytest.mark.parametrize("body", ["bytes", "pieces"])
async def test_an_upload_ends_with_an_early_response_alone_A18(
    world: World, body: str, h2_server: StartServer
) -> None:
    """Without a reset, which the server should have sent: the stream is ended all the same."""

    def answer(peer: H2Connection, asked: Asked) -> None:
        peer.credits = False
        peer.until(lambda: asked.size)
        peer.respond(asked, b"/too large", status=413)

    server = h2_server(one_stream(answer))
    content: Any = bytes(50_000_000) if body == "bytes" else world.body(bytes(500_000) for _ in range(100))
    got = await fails_alone(world, server, None, method="POST", content=content)
    assert (got.status, got.content) == (413, b"/too large")
    assert [stream for stream, _ in server.connections[0].resets()] == [server.asked()[1].id]


@EITHER
@pytest.mark.parametrize("when", ["before the body", "in the body", "after the body"])
async def test_a_response_closed_early_is_reset_B05(
    world: World, tls: bool, when: str, h2_server: StartServer
) -> None:
    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            peer.head(asked)
            if when == "in the body":
                peer.data(asked, bytes(1000), ends=False)
            elif when == "after the body":
                peer.data(asked, bytes(1000))

        peer.serve(special)

    server = h2_server(script, tls=tls)
    async with http2_pool(world, server, max_connections=1) as pool:
        for _ in range(5):
            async with streaming(pool, server, "/long") as got:
                if when == "in the body":
                    await some(got)
                elif when == "after the body":
                    await got.aread()
            assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
        echoed(await ask(pool, server, "/echo"), "/echo")
        wanted = [] if when == "after the body" else [(2 * number + 1, CANCEL) for number in range(5)]
        assert server.connections[0].resets() == wanted
    assert server.accepted == 1


@pytest.mark.timeout(240)  # ten seconds, on a machine that does nothing else
@EITHER
async def test_ten_thousand_early_closes_on_one_connection_B05_B06(
    world: World, tls: bool, h2_server: StartServer
) -> None:
    """No stream stays open, and the connection's window is what it was."""
    count = 10_000 if world.name == "sync" and not tls else 1_000

    def script(peer: H2Connection) -> None:
        body = bytes(8_000)

        def special(asked: Asked) -> None:
            peer.head(asked)
            if asked.reset_code is None:
                peer.data(asked, body, ends=False)

        peer.serve(special)

    server = h2_server(script, tls=tls)
    async with http2_pool(world, server, max_connections=1) as pool:
        for _ in range(count):
            async with streaming(pool, server, "/long") as got:
                assert got.status == 200
        echoed(await ask(pool, server, "/echo"), "/echo")
        (peer,) = server.connections
        resets = peer.resets()
        assert len(resets) == count
        assert {code for _, code in resets} == {CANCEL}
        assert sum(asked.is_open for asked in peer.streams.values()) == 0
        await world.until(lambda: peer.window > 0.9 * peer.widest_window)
    assert server.accepted == 1


@EITHER
async def test_abandoned_responses_take_nothing_from_the_others_B06(
    world: World, tls: bool, h2_server: StartServer
) -> None:
    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            peer.head(asked)
            peer.data(asked, bytes(60_000) if asked.path == b"/left" else b"/" * 3_000_000)

        peer.serve(special)

    server = h2_server(script, tls=tls)
    async with http2_pool(world, server, max_connections=1) as pool:
        for _ in range(400):
            async with streaming(pool, server, "/left"):
                pass
        got = await ask(pool, server, "/whole")
        assert got.content == b"/" * 3_000_000
        await ask(pool, server, "/echo")
        (peer,) = server.connections
        await world.until(lambda: peer.window > 0.9 * peer.widest_window)
    assert server.accepted == 1


@pytest.mark.parametrize("stream", ["reset", "finished"])
async def test_data_for_streams_that_are_over_is_credited_B07(
    world: World, stream: str, h2_server: StartServer
) -> None:
    """With padding, which counts too; and no answer to each of the frames."""

    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            if stream == "reset":
                peer.head(asked)
                peer.until(lambda: asked.reset_code is not None)
            else:
                peer.respond(asked)
                peer.until(lambda: b"/late" in [each.path for each in peer.streams.values()])
            for _ in range(1_000):
                frame = DataFrame(asked.id, bytes(1000), pad_length=200, flags=["PADDED"])
                peer.sent(None, frame.flow_controlled_length)
                peer.send(frame)
                while peer.window < 100_000:
                    peer.next_frame()

        def late(asked: Asked) -> None:
            if asked.path == b"/over":
                special(asked)
            else:
                peer.respond(asked)

        peer.serve(late)

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool:
        async with streaming(pool, server, "/over") as got:
            if stream == "finished":
                await got.aread()
        for _ in range(3):
            echoed(await ask(pool, server, "/late"), "/late")
        (peer,) = server.connections
        await world.until(lambda: peer.window > 0.9 * peer.widest_window)
        assert len(peer.resets()) <= 1
    assert server.accepted == 1


# --- malformed responses -----------------------------------------------------------------------------------

LENGTHS: dict[str, tuple[bytes, bytes, bool]] = {
    "longer than it says": (b"5", b"1234567890", False),
    "shorter than it says": (b"10", b"12345", True),
    "nothing of what it says": (b"10", b"", True),
}


@EITHER
@pytest.mark.parametrize("case", LENGTHS)
async def test_a_body_of_another_length_B08(
    world: World, tls: bool, case: str, h2_server: StartServer
) -> None:
    length, body, ends = LENGTHS[case]

    def answer(peer: H2Connection, asked: Asked) -> None:
        peer.head(asked, 200, [(b"content-length", length)], ends=not body)
        if body:
            peer.data(asked, body, ends=ends)

    server = h2_server(one_stream(answer), tls=tls)
    await fails_alone(world, server)
    if not ends:
        assert server.connections[0].resets() == [(server.asked()[1].id, PROTOCOL_ERROR)]


@pytest.mark.parametrize("case", ["HEAD", "204", "304"])
async def test_a_body_where_none_may_be_B08(world: World, case: str, h2_server: StartServer) -> None:
    def answer(peer: H2Connection, asked: Asked) -> None:
        peer.head(asked, 200 if case == "HEAD" else int(case))
        peer.data(asked, b"a body", ends=False)

    server = h2_server(one_stream(answer))
    await fails_alone(world, server, method="HEAD" if case == "HEAD" else "GET")
    assert server.connections[0].resets() == [(server.asked()[1].id, PROTOCOL_ERROR)]


OK = (b":status", b"200")

HEADS: dict[str, list[tuple[bytes, bytes]]] = {
    "no status": [(b"x", b"1")],
    "nothing": [],
    "two statuses": [OK, OK],
    "status abc": [(b":status", b"abc")],
    "status 20": [(b":status", b"20")],
    "status 2000": [(b":status", b"2000")],
    "status with a sign": [(b":status", b"+20")],
    "status in other digits": [(b":status", "٢٠٠".encode())],
    "101": [(b":status", b"101")],
    "a path": [OK, (b":path", b"/")],
    "an unknown pseudo-header": [OK, (b":fine", b"yes")],
    "pseudo-header after others": [(b"x", b"1"), OK],
    "upper case": [OK, (b"X-Upper", b"1")],
    "no name": [OK, (b"", b"1")],
    "CR LF in a value": [OK, (b"x", b"1\r\nset-cookie: a=b")],
    "LF in a value": [OK, (b"x", b"1\n2")],
    "CR in a value": [OK, (b"x", b"1\r2")],
    "NUL in a value": [OK, (b"x", b"1\x002")],
    "CR LF in a name": [OK, (b"x\r\ny", b"1")],
    "space in a name": [OK, (b"x y", b"1")],
    "colon in a name": [OK, (b"x:y", b"1")],
    "space before a value": [OK, (b"x", b" 1")],
    "space after a value": [OK, (b"x", b"1 ")],
    "connection": [OK, (b"connection", b"close")],
    "keep-alive": [OK, (b"keep-alive", b"timeout=5")],
    "proxy-connection": [OK, (b"proxy-connection", b"close")],
    "transfer-encoding": [OK, (b"transfer-encoding", b"chunked")],
    "upgrade": [OK, (b"upgrade", b"h2c")],
    "content-length abc": [OK, (b"content-length", b"abc")],
    "content-length +5": [OK, (b"content-length", b"+5")],
    "two lengths": [OK, (b"content-length", b"5"), (b"content-length", b"6")],
    "lengths in one": [OK, (b"content-length", b"5, 6")],
    "257 fields": [OK, *((b"x", b"1") for _ in range(257))],
}


@pytest.mark.parametrize("case", HEADS)
async def test_a_malformed_head_B09(world: World, case: str, h2_server: StartServer) -> None:
    server = h2_server(one_stream(lambda peer, asked: peer.headers(asked, HEADS[case])))
    await fails_alone(world, server)
    assert server.connections[0].resets() == [(server.asked()[1].id, PROTOCOL_ERROR)]


TRAILERS: dict[str, tuple[list[tuple[bytes, bytes]], bool]] = {
    "a status": ([OK], True),
    "upper case": ([(b"X", b"1")], True),
    "CR LF": ([(b"x", b"1\r\ny: 2")], True),
    "no end": ([(b"x", b"1")], False),
    "connection": ([(b"connection", b"close")], True),
}


@pytest.mark.parametrize("case", TRAILERS)
async def test_malformed_trailers_B09(world: World, case: str, h2_server: StartServer) -> None:
    fields, ends = TRAILERS[case]

    def answer(peer: H2Connection, asked: Asked) -> None:
        peer.head(asked)
        peer.data(asked, b"body", ends=False)
        peer.headers(asked, fields, ends=ends)

    server = h2_server(one_stream(answer))
    await fails_alone(world, server)


async def test_interim_responses_without_an_end_A14(world: World, h2_server: StartServer) -> None:
    def answer(peer: H2Connection, asked: Asked) -> None:
        for _ in range(1000):
            if asked.reset_code is None:
                peer.head(asked, 103, [(b"link", b"</style.css>; rel=preload")])
            if peer.has_input(0):
                peer.next_frame()
        peer.until(lambda: asked.reset_code is not None)

    server = h2_server(one_stream(answer))
    await fails_alone(world, server)


# --- how many streams --------------------------------------------------------------------------------------


def all_at_once(
    count: int, also: Callable[[H2Connection], None] | None = None
) -> Callable[[H2Connection], None]:
    """A script that answers when so many streams are open, and not before."""

    def script(peer: H2Connection) -> None:
        asked = peer.requests(count)
        assert all(each.is_open for each in asked)
        if also is not None:
            also(peer)
        for each in asked:
            peer.respond(each)
        peer.serve()

    return script


@EITHER
@pytest.mark.parametrize("silent", [False, True], ids=["no limit", "no SETTINGS"])
async def test_a_hundred_streams_where_the_server_sets_no_limit_B10(
    world: World, tls: bool, silent: bool, h2_server: StartServer
) -> None:
    script = all_at_once(100, (lambda peer: peer.settings()) if silent else None)
    server = h2_server(script, tls=tls, is_silent=silent)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        asked = [jobs.start(partial(ask, pool, server, f"/{number}")) for number in range(100)]
        for number, job in enumerate(asked):
            echoed(await job.result(world), f"/{number}")
    assert server.connections[0].most_open == 100


@pytest.mark.parametrize("limit", [1, 2, 250])
async def test_the_servers_limit_holds_B10(world: World, limit: int, h2_server: StartServer) -> None:
    """From the moment when it is known, which the first answer makes sure of; the peer counts."""

    def script(peer: H2Connection) -> None:
        peer.respond(peer.request())
        all_at_once(limit)(peer)

    server = h2_server(script, settings={MAX_CONCURRENT_STREAMS: limit})
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        echoed(await ask(pool, server, "/first"), "/first")
        asked = [jobs.start(partial(ask, pool, server, f"/{number}")) for number in range(limit + 10)]
        for number, job in enumerate(asked):
            echoed(await job.result(world), f"/{number}")
    assert server.connections[0].most_open == limit


async def test_no_stream_is_wanted_for_a_time_B11(world: World, h2_server: StartServer) -> None:
    """The wait is the pool's, with its time-out; it ends when the limit is raised."""
    steps = [threading.Event(), threading.Event()]

    def script(peer: H2Connection) -> None:
        asked = peer.request()
        peer.settings({MAX_CONCURRENT_STREAMS: 0})
        peer.head(asked)
        peer.data(asked, b"/some", ends=False)
        peer.hold(steps[0].is_set)
        peer.settings({MAX_CONCURRENT_STREAMS: 2})
        other = peer.request()
        peer.respond(other)
        peer.hold(steps[1].is_set)
        peer.data(asked, b"/more")
        peer.serve()

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        started = threading.Event()

        async def read() -> bytes:
            async with streaming(pool, server, "/long") as got:
                body = b""
                async for piece in got.aiter_stream():
                    body += piece
                    started.set()
            return body

        first = jobs.start(read)
        await world.until(started.is_set)
        for _ in tries_in_time(0.25, 0.6):
            with pytest.raises(PoolTimeout):
                await ask(pool, server, "/never", pool=0.3)
        second = jobs.start(partial(ask, pool, server, "/second"))
        await world.until(lambda: pool.stats().queued == 1)
        steps[0].set()
        echoed(await second.result(world), "/second")
        steps[1].set()
        assert await first.result(world) == b"/some/more"
    assert b"/never" not in server.paths()
    assert server.accepted == 1


async def test_no_stream_is_wanted_and_nothing_is_under_way_B11(world: World, h2_server: StartServer) -> None:
    """Whatever the pool does about it, nobody waits for ever, and it works again when the limit is raised."""
    go_on = threading.Event()

    def script(peer: H2Connection) -> None:
        asked = peer.request()
        peer.settings({MAX_CONCURRENT_STREAMS: 0})
        peer.respond(asked)
        peer.hold(go_on.is_set)
        peer.settings({MAX_CONCURRENT_STREAMS: 100})
        peer.serve()

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool:
        echoed(await ask(pool, server, "/first"), "/first")
        try:
            await ask(pool, server, "/second", pool=0.3)
        except PoolTimeout:
            pass
        go_on.set()
        await world.until(lambda: len(server.connections[0].frames) or server.connections[0].is_ended)
        # The request at the end of the block is answered.


async def test_a_limit_that_changes_all_the_time_B11(world: World, h2_server: StartServer) -> None:
    """The peer counts after each acknowledgement; in the end there is room for exactly as many as it says."""
    chance = random.Random(11)

    def script(peer: H2Connection) -> None:
        answered = 0
        while answered < 500:
            asked = peer.request()
            peer.settings({MAX_CONCURRENT_STREAMS: chance.randrange(1, 12)})
            if chance.random() < 0.5:
                peer.settings({MAX_CONCURRENT_STREAMS: chance.randrange(0, 3)})
                peer.settings({MAX_CONCURRENT_STREAMS: chance.randrange(1, 12)})
            peer.respond(asked)
            answered += 1
        last = peer.request()
        peer.settings({MAX_CONCURRENT_STREAMS: 7})
        peer.respond(last)
        all_at_once(7)(peer)

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:

        async def many(worker: int) -> None:
            for number in range(50):
                path = f"/{worker}/{number}"
                echoed(await ask(pool, server, path), path)

        for job in [jobs.start(many, worker) for worker in range(10)]:
            await job.result(world)
        echoed(await ask(pool, server, "/last"), "/last")
        (peer,) = server.connections
        peer.most_open = 0
        for job in [jobs.start(partial(ask, pool, server, f"/echo/{number}")) for number in range(30)]:
            is_answer(await job.result(world))
        assert peer.most_open == 7
    assert server.accepted == 1


async def test_streams_that_are_used_up_lead_to_more_connections_B11(
    world: World, h2_server: StartServer
) -> None:
    """20 requests, two to a connection, ten connections: all of them are there at once."""

    def script(peer: H2Connection) -> None:
        pair = peer.requests(2)
        peer.hold(lambda: sum(asked.is_open or asked.is_answered for asked in server.asked()) == 20)
        for asked in pair:
            peer.respond(asked)
        peer.serve()

    server = h2_server(script, settings={MAX_CONCURRENT_STREAMS: 2})
    async with http2_pool(world, server, max_connections=10) as pool, world.jobs() as jobs:
        asked = [jobs.start(partial(ask, pool, server, f"/{number}")) for number in range(20)]
        for number, job in enumerate(asked):
            echoed(await job.result(world), f"/{number}")
        assert [peer.most_open for peer in server.connections] == [2] * 10


async def test_twenty_requests_of_half_a_second_B11(world: World, h2_server: StartServer) -> None:
    """In the time of one, or nearly: 0.8 seconds where two streams and ten connections are allowed."""

    def script(peer: H2Connection) -> None:
        waiting: list[tuple[float, Asked]] = []

        def hear(asked: Asked) -> None:
            waiting.append((time.monotonic() + 0.5, asked))

        while True:
            try:
                peer.hold(lambda: peer.has_request() or (waiting and waiting[0][0] <= time.monotonic()))
            except TimeoutError:
                return
            while peer.has_request():
                hear(peer.request())
            while waiting and waiting[0][0] <= time.monotonic():
                peer.respond(waiting.pop(0)[1])

    server = h2_server(script, settings={MAX_CONCURRENT_STREAMS: 2})
    async with http2_pool(world, server, max_connections=10) as pool:
        for _ in tries_in_time(0.5, 0.8):
            async with world.jobs() as jobs:
                asked = [jobs.start(partial(ask, pool, server, f"/{number}")) for number in range(20)]
                for number, job in enumerate(asked):
                    echoed(await job.result(world), f"/{number}")
    assert server.accepted <= 10
    assert max(peer.most_open for peer in server.connections) == 2


# --- windows -----------------------------------------------------------------------------------------------


@EITHER
async def test_a_window_that_is_shut_B12(world: World, tls: bool, h2_server: StartServer) -> None:
    server = h2_server(one_stream(lambda peer, asked: None), tls=tls, settings={INITIAL_WINDOW_SIZE: 0})
    start = time.monotonic()
    await fails_alone(world, server, WriteTimeout, method="POST", content=bytes(200_000), write=0.3)
    assert time.monotonic() - start >= 0.25
    assert server.connections[0].resets() == [(server.asked()[1].id, CANCEL)]


async def test_a_connection_window_that_is_shut_B12(world: World, h2_server: StartServer) -> None:
    """It is everybody's, and who sends nothing needs none of it."""

    def fault(peer: H2Connection, asked: Asked) -> None:
        peer.credits = False

    server = h2_server(one_stream(fault), settings={INITIAL_WINDOW_SIZE: 1 << 20})
    await fails_alone(world, server, WriteTimeout, method="POST", content=bytes(200_000), write=0.3)
    assert server.asked()[1].size == START_WINDOW
    assert server.connections[0].resets() == [(server.asked()[1].id, CANCEL)]


@pytest.mark.parametrize("body", ["bytes", "pieces"])
async def test_a_window_that_becomes_negative_B12(world: World, body: str, h2_server: StartServer) -> None:
    """RFC 9113, section 6.9.2. The peer counts every byte."""

    def script(peer: H2Connection) -> None:
        peer.credits = False
        asked = peer.request()
        peer.until(lambda: asked.receive_window == 0)
        peer.settings({INITIAL_WINDOW_SIZE: 100})
        peer.until(lambda: asked.receive_window == 100 - START_WINDOW)
        peer.credit(None, 300_000)
        for _ in range(7):
            peer.credit(asked, 10_000)  # six of them bring it to what it was
        peer.until(lambda: asked.receive_window == 0)
        for _ in range(300):
            if not asked.is_ended:
                peer.credit(asked, 1_000)
        peer.finish(asked)
        peer.credits = True
        peer.respond(asked)
        peer.serve()

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool:
        content = os.urandom(200_000)
        given: Any = content if body == "bytes" else world.body(iter([content[:50_000], content[50_000:]]))
        echoed(await ask(pool, server, "/echo", "POST", given), "/echo")
    asked = server.connections[0].streams[1]
    assert (asked.size, asked.checksum) == (200_000, zlib.crc32(content))


async def test_windows_given_in_small_steps_are_no_flood_B12_B14(
    world: World, h2_server: StartServer
) -> None:
    def script(peer: H2Connection) -> None:
        peer.credits = False
        asked = peer.request()
        if asked.method == b"POST":
            peer.until(lambda: asked.receive_window == 0)
            for _ in range(6_000):
                peer.credit(None, 100)
                peer.credit(asked, 100)
            peer.finish(asked)
        peer.credits = True
        peer.respond(asked)
        peer.serve()

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool:
        content = bytes(START_WINDOW + 600_000)
        echoed(await ask(pool, server, "/echo", "POST", content), "/echo")
        assert server.asked()[0].size == len(content)
    assert server.accepted == 1


@pytest.mark.parametrize("case", ["no step", "overflow"])
async def test_bad_credit_for_a_stream_B12(world: World, case: str, h2_server: StartServer) -> None:
    """A stream error (RFC 9113, sections 6.9 and 6.9.1)."""
    step = 0 if case == "no step" else (1 << 31) - 1
    server = h2_server(one_stream(lambda peer, asked: peer.send(WindowUpdateFrame(asked.id, step))))
    await fails_alone(world, server)
    code = PROTOCOL_ERROR if case == "no step" else FLOW_CONTROL_ERROR
    assert server.connections[0].resets() == [(server.asked()[1].id, code)]


CREDIT: dict[str, tuple[bytes, int]] = {
    "no step": (raw_frame(0x8, 0, 0, bytes(4)), PROTOCOL_ERROR),
    "overflow": (raw_frame(0x8, 0, 0, b"\x7f\xff\xff\xff"), FLOW_CONTROL_ERROR),
    "a start beyond all": (
        SettingsFrame(settings={INITIAL_WINDOW_SIZE: 1 << 31}).serialize(),
        FLOW_CONTROL_ERROR,
    ),
    "frames too small": (SettingsFrame(settings={MAX_FRAME_SIZE: 16_383}).serialize(), PROTOCOL_ERROR),
    "frames too large": (SettingsFrame(settings={MAX_FRAME_SIZE: 1 << 24}).serialize(), PROTOCOL_ERROR),
    "push from a server": (SettingsFrame(settings={ENABLE_PUSH: 1}).serialize(), PROTOCOL_ERROR),
}


@pytest.mark.parametrize("case", CREDIT)
async def test_bad_credit_and_settings_for_the_connection_B12(
    world: World, case: str, h2_server: StartServer
) -> None:
    frame, code = CREDIT[case]
    server = h2_server(whole_connection(lambda peer, asked: peer.raw(frame)))
    await fails_as_a_whole(world, server, codes=(code,))


async def test_more_data_than_the_window_holds_B12(world: World, h2_server: StartServer) -> None:
    """A slow reader is not made to hold what it has not asked for: an error of the stream, or of the connection."""

    def script(peer: H2Connection) -> None:
        def flood(asked: Asked) -> None:
            peer.head(asked)
            frame = DataFrame(asked.id, bytes(16_384)).serialize()
            for _ in range((64 << 20) // 16_384):
                peer.raw(frame)

        peer.serve(flood)

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=2) as pool, streaming(pool, server, "/fault") as got:
        before = resident()
        is_answer(await ask(pool, server, "/echo"))  # reads for both
        assert resident() - before < 32 << 20
        with pytest.raises(RemoteProtocolError):
            await got.aread()


# --- floods ------------------------------------------------------------------------------------------------

FLOODS: dict[str, Callable[[int], bytes]] = {
    "PING": lambda stream: PingFrame(opaque_data=b"12345678").serialize(),
    "PING answers": lambda stream: PingFrame(opaque_data=b"12345678", flags=["ACK"]).serialize(),
    "SETTINGS": lambda stream: SettingsFrame().serialize(),
    "SETTINGS with contents": lambda stream: SettingsFrame(settings={HEADER_TABLE_SIZE: 4096}).serialize(),
    "PRIORITY": lambda stream: raw_frame(0x2, 0, stream, b"\0\0\0\0\x10"),
    "unknown": lambda stream: raw_frame(0xFA, 0, stream, b"what is this"),
    "unknown without a stream": lambda stream: raw_frame(0xFB, 0xFF, 0, b""),
    "WINDOW_UPDATE": lambda stream: WindowUpdateFrame(0, 1).serialize(),
    "WINDOW_UPDATE of the stream": lambda stream: WindowUpdateFrame(stream, 1).serialize(),
    "GOAWAY": lambda stream: raw_frame(0x7, 0, 0, b"\x7f\xff\xff\xff\0\0\0\0"),
    "empty DATA": lambda stream: DataFrame(stream).serialize(),
    "padding": lambda stream: DataFrame(stream, pad_length=3, flags=["PADDED"]).serialize(),
}


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_of_frames_B13_B14_B15(world: World, what: str, h2_server: StartServer) -> None:
    """The peer reads nothing of what is answered, either."""
    taken: list[bool] = []

    def fault(peer: H2Connection, asked: Asked) -> None:
        peer.head(asked)
        peer.counts_acknowledgements = False
        burst = FLOODS[what](asked.id) * 1000
        for _ in range(100):
            peer.raw(burst)
        taken.append(True)

    server = h2_server(whole_connection(fault))
    async with http2_pool(world, server, max_connections=1) as pool:
        used = time.process_time()
        with pytest.raises(RemoteProtocolError):
            await in_time(ask(pool, server, "/fault"))
        assert (
            time.process_time() - used < 10
        )  # a small part of a second, on a machine that does nothing else
        assert pool.stats() == EMPTY
        await world.until(lambda: server.connections[0].is_ended)


@pytest.mark.parametrize("what", ["PING", "SETTINGS", "empty DATA", "PRIORITY", "WINDOW_UPDATE"])
async def test_a_flood_is_answered_with_its_name_B13_B14_B15(
    world: World, what: str, h2_server: StartServer
) -> None:
    """A small one: the peer is not in the middle of a write when the client ends the connection."""

    def fault(peer: H2Connection, asked: Asked) -> None:
        peer.head(asked)
        peer.counts_acknowledgements = False
        peer.raw(FLOODS[what](asked.id) * 5_000)

    server = h2_server(whole_connection(fault))
    error = await fails_as_a_whole(world, server, codes=(ENHANCE_YOUR_CALM,))
    assert "frames" in str(error), error


async def test_many_frames_with_progress_in_between_are_no_flood_B13_B14_B15(
    world: World, h2_server: StartServer
) -> None:
    """A thousand and more of each, over a long answer."""

    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            peer.head(asked)
            for number in range(60):
                for what in ("PING", "SETTINGS", "unknown", "WINDOW_UPDATE"):
                    if what == "SETTINGS":
                        peer.settings({HEADER_TABLE_SIZE: 4096})
                    else:
                        peer.raw(FLOODS[what](asked.id) * 20)
                peer.raw(FLOODS["empty DATA"](asked.id) * 20)
                peer.data(asked, b"/" * 100, ends=number == 59)

        peer.serve(special)

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool:
        assert (await ask(pool, server, "/long")).content == b"/" * 6_000
    assert server.accepted == 1


async def test_answers_that_nobody_reads_are_not_piled_up_B14(world: World, h2_server: StartServer) -> None:
    """PING, with enough progress in between, to a peer that takes no answer: a mebibyte may wait, not more."""
    over = threading.Event()

    def fault(peer: H2Connection, asked: Asked) -> None:
        peer.head(asked)
        burst = FLOODS["PING"](0) * 500 + DataFrame(asked.id, b"x").serialize()
        for _ in range(400):
            peer.raw(burst)
        over.wait(20)

    server = h2_server(whole_connection(fault))
    small = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]
    async with http2_pool(world, server, max_connections=1, socket_options=small) as pool:
        try:
            with pytest.raises((RemoteProtocolError, ReadTimeout, WriteTimeout)):
                await in_time(ask(pool, server, "/fault", read=2))
        finally:
            over.set()
        assert pool.stats() == EMPTY


def _bomb(peer: H2Connection, asked: Asked) -> None:
    """4 kB of a field, in the table, and 12,000 times one byte that means the same."""
    field = b"\x40\x01x" + b"\x7f" + _length(3900) + b"y" * 3900
    peer.raw(raw_frame(0x1, 0x4, asked.id, b"\x88" + field + b"\xbe" * 12_000))


def _length(size: int) -> bytes:
    """The rest of an HPACK integer with a prefix of seven bits, all of them set."""
    size -= 127
    pieces = bytearray()
    while size >= 128:
        pieces.append(size % 128 | 128)
        size //= 128
    pieces.append(size)
    return bytes(pieces)


def _continuation(payload: bytes, count: int) -> Fault:
    def fault(peer: H2Connection, asked: Asked) -> None:
        peer.raw(raw_frame(0x1, 0, asked.id, b"\x88"))
        frame = raw_frame(0x9, 0, asked.id, payload)
        for _ in range(count):
            peer.raw(frame * 10)

    return fault


def _huge_head(peer: H2Connection, asked: Asked) -> None:
    peer.headers(asked, [OK, *((b"x-%d" % number, b"y" * 1000) for number in range(150))])


BLOCKS: dict[str, tuple[Fault, tuple[int, ...] | None]] = {
    "CONTINUATION without an end": (_continuation(b"", 1000), None),
    "CONTINUATION with fields": (_continuation(b"\x00\x01x\x01y" * 100, 1000), None),
    "CONTINUATION of 16 KiB": (_continuation(b"\x00\x01x\x7f" + _length(16_000) + b"y" * 16_000, 200), None),
    "bomb": (_bomb, (ENHANCE_YOUR_CALM, COMPRESSION_ERROR, PROTOCOL_ERROR)),
    "150 kB": (_huge_head, (ENHANCE_YOUR_CALM, COMPRESSION_ERROR, PROTOCOL_ERROR)),
    "table size updates": (
        lambda peer, asked: peer.raw(raw_frame(0x1, 0x4, asked.id, b"\x20\x3f\xe1\x1f" * 4_000 + b"\x88")),
        (COMPRESSION_ERROR, ENHANCE_YOUR_CALM, PROTOCOL_ERROR),
    ),
    "a table too large": (
        lambda peer, asked: peer.raw(raw_frame(0x1, 0x4, asked.id, b"\x3f\xe2\x1f\x88")),
        (COMPRESSION_ERROR,),
    ),
    "an index of nothing": (
        lambda peer, asked: peer.raw(raw_frame(0x1, 0x4, asked.id, b"\x88\xff\x7f")),
        (COMPRESSION_ERROR,),
    ),
    "half a field": (
        lambda peer, asked: peer.raw(raw_frame(0x1, 0x4, asked.id, b"\x88\x40\x05x")),
        (COMPRESSION_ERROR,),
    ),
    "bad Huffman": (
        lambda peer, asked: peer.raw(raw_frame(0x1, 0x4, asked.id, b"\x88\x40\x81\xff\x81\xff")),
        (COMPRESSION_ERROR,),
    ),
    "an endless number": (
        lambda peer, asked: peer.raw(raw_frame(0x1, 0x4, asked.id, b"\x88\x7f" + b"\xff" * 10_000)),
        (COMPRESSION_ERROR,),
    ),
}


@pytest.mark.parametrize("case", BLOCKS)
async def test_header_blocks_that_take_memory_or_make_no_sense_B16(
    world: World, case: str, h2_server: StartServer
) -> None:
    fault, codes = BLOCKS[case]
    server = h2_server(whole_connection(fault))
    tracemalloc.start()
    try:
        await fails_as_a_whole(world, server, codes=codes)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


# --- frames that are wrong ---------------------------------------------------------------------------------


def _answered(peer: H2Connection, asked: Asked) -> None:
    peer.head(asked)
    peer.data(asked, b"some", ends=False)


FRAMES: dict[str, tuple[Callable[[H2Connection, Asked], bytes], tuple[int, ...]]] = {
    # B17
    "PUSH_PROMISE B17": (
        lambda peer, asked: PushPromiseFrame(
            asked.id,
            2,
            peer.block(
                [(b":method", b"GET"), (b":path", b"/"), (b":scheme", b"http"), (b":authority", b"a")]
            ),
            flags=["END_HEADERS"],
        ).serialize(),
        (PROTOCOL_ERROR,),
    ),
    "HEADERS on an even stream B17": (
        lambda peer, asked: HeadersFrame(2, peer.block([OK]), flags=["END_HEADERS"]).serialize(),
        (PROTOCOL_ERROR,),
    ),
    "HEADERS on a stream to come B17": (
        lambda peer, asked: HeadersFrame(99, peer.block([OK]), flags=["END_HEADERS"]).serialize(),
        (PROTOCOL_ERROR, STREAM_CLOSED),
    ),
    "DATA on a stream to come B07": (
        lambda peer, asked: DataFrame(99, b"x").serialize(),
        (PROTOCOL_ERROR, STREAM_CLOSED),
    ),
    "RST_STREAM on a stream to come B04": (
        lambda peer, asked: RstStreamFrame(99, CANCEL).serialize(),
        (PROTOCOL_ERROR,),
    ),
    "WINDOW_UPDATE on a stream to come B12": (
        lambda peer, asked: WindowUpdateFrame(99, 1).serialize(),
        (PROTOCOL_ERROR,),
    ),
    # B19
    "a frame too long B19": (
        lambda peer, asked: raw_frame(0x0, 0, asked.id, bytes(100), length=16_385),
        (FRAME_SIZE_ERROR,),
    ),
    "a head too long B19": (
        lambda peer, asked: raw_frame(0x1, 0x4, asked.id, b"\x88", length=(1 << 24) - 1),
        (FRAME_SIZE_ERROR,),
    ),
    "an unknown frame too long B19": (
        lambda peer, asked: raw_frame(0xFA, 0, 0, bytes(100), length=1 << 20),
        (FRAME_SIZE_ERROR,),
    ),
    "SETTINGS of 5 bytes B19": (lambda peer, asked: raw_frame(0x4, 0, 0, bytes(5)), (FRAME_SIZE_ERROR,)),
    "SETTINGS on a stream B19": (lambda peer, asked: raw_frame(0x4, 0, asked.id, b""), (PROTOCOL_ERROR,)),
    "SETTINGS answer with contents B19": (
        lambda peer, asked: raw_frame(0x4, 0x1, 0, bytes(6)),
        (FRAME_SIZE_ERROR,),
    ),
    "PING of 7 bytes B19": (lambda peer, asked: raw_frame(0x6, 0, 0, bytes(7)), (FRAME_SIZE_ERROR,)),
    "PING of 9 bytes B19": (lambda peer, asked: raw_frame(0x6, 0, 0, bytes(9)), (FRAME_SIZE_ERROR,)),
    "PING on a stream B19": (lambda peer, asked: raw_frame(0x6, 0, asked.id, bytes(8)), (PROTOCOL_ERROR,)),
    "RST_STREAM of 3 bytes B19": (
        lambda peer, asked: raw_frame(0x3, 0, asked.id, bytes(3)),
        (FRAME_SIZE_ERROR,),
    ),
    "RST_STREAM of 5 bytes B19": (
        lambda peer, asked: raw_frame(0x3, 0, asked.id, bytes(5)),
        (FRAME_SIZE_ERROR,),
    ),
    "RST_STREAM of no stream B19": (lambda peer, asked: raw_frame(0x3, 0, 0, bytes(4)), (PROTOCOL_ERROR,)),
    "WINDOW_UPDATE of 3 bytes B19": (lambda peer, asked: raw_frame(0x8, 0, 0, bytes(3)), (FRAME_SIZE_ERROR,)),
    "GOAWAY of 4 bytes B19": (lambda peer, asked: raw_frame(0x7, 0, 0, bytes(4)), (FRAME_SIZE_ERROR,)),
    "GOAWAY on a stream B19": (lambda peer, asked: raw_frame(0x7, 0, asked.id, bytes(8)), (PROTOCOL_ERROR,)),
    "PRIORITY of no stream B19": (lambda peer, asked: raw_frame(0x2, 0, 0, bytes(5)), (PROTOCOL_ERROR,)),
    "DATA of no stream B19": (lambda peer, asked: raw_frame(0x0, 0, 0, b"x"), (PROTOCOL_ERROR,)),
    "HEADERS of no stream B19": (lambda peer, asked: raw_frame(0x1, 0x4, 0, b"\x88"), (PROTOCOL_ERROR,)),
    "CONTINUATION of no stream B19": (lambda peer, asked: raw_frame(0x9, 0x4, 0, b"\x88"), (PROTOCOL_ERROR,)),
    "CONTINUATION of nothing B19": (
        lambda peer, asked: ContinuationFrame(asked.id, b"", flags=["END_HEADERS"]).serialize(),
        (PROTOCOL_ERROR,),
    ),
    "DATA in a header block B19": (
        lambda peer, asked: raw_frame(0x1, 0, asked.id, b"\x88") + raw_frame(0x0, 0, asked.id, b"x"),
        (PROTOCOL_ERROR,),
    ),
    "PING in a header block B19": (
        lambda peer, asked: raw_frame(0x1, 0, asked.id, b"\x88") + raw_frame(0x6, 0, 0, bytes(8)),
        (PROTOCOL_ERROR,),
    ),
    "an unknown frame in a header block B19": (
        lambda peer, asked: raw_frame(0x1, 0, asked.id, b"\x88") + raw_frame(0xFA, 0, 0, bytes(8)),
        (PROTOCOL_ERROR,),
    ),
    "CONTINUATION of another stream B19": (
        lambda peer, asked: raw_frame(0x1, 0, asked.id, b"\x88") + raw_frame(0x9, 0x4, asked.id + 2, b"\x88"),
        (PROTOCOL_ERROR,),
    ),
    "more padding than frame B19": (
        lambda peer, asked: raw_frame(0x0, 0x8, asked.id, b"\x05abcd"),
        (PROTOCOL_ERROR,),
    ),
    "more padding than head B19": (
        lambda peer, asked: raw_frame(0x1, 0xC, asked.id, b"\x05\x88"),
        (PROTOCOL_ERROR,),
    ),
    "a padded frame without its length B19": (
        lambda peer, asked: raw_frame(0x0, 0x8, asked.id, b""),
        (FRAME_SIZE_ERROR, PROTOCOL_ERROR),
    ),
    "a head without its priority B19": (
        lambda peer, asked: raw_frame(0x1, 0x24, asked.id, b"\x00\x00"),
        (FRAME_SIZE_ERROR, PROTOCOL_ERROR),
    ),
}


@pytest.mark.parametrize("case", FRAMES)
async def test_a_frame_that_is_wrong(world: World, case: str, h2_server: StartServer) -> None:
    """Connection errors: B07 and B17 by their streams, B19 by their form (RFC 9113, sections 4 to 6)."""
    frame, codes = FRAMES[case]
    server = h2_server(whole_connection(lambda peer, asked: peer.raw(frame(peer, asked))))
    await fails_as_a_whole(world, server, codes=codes)


async def test_a_wrong_frame_fails_everybody_with_an_error_of_his_own_B19(
    world: World, h2_server: StartServer
) -> None:
    def script(peer: H2Connection) -> None:
        if peer.number:
            peer.serve()
        asked = peer.requests(5)
        peer.head(asked[0])
        peer.raw(raw_frame(0x6, 0, 0, bytes(7)))
        peer.drain()

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        asked = [jobs.start(partial(ask, pool, server, f"/{number}", "POST", b"")) for number in range(5)]
        errors = [await job.outcome(world) for job in asked]
        assert {type(error) for error in errors} == {RemoteProtocolError}
        assert len({id(error) for error in errors}) == 5
        assert pool.stats() == EMPTY


@pytest.mark.parametrize("length", [4, 6])
async def test_a_priority_of_another_length_B19(world: World, length: int, h2_server: StartServer) -> None:
    """A stream error, for a frame that means nothing any more (RFC 9113, section 6.3): it may be passed over."""

    def fault(peer: H2Connection, asked: Asked) -> None:
        peer.raw(raw_frame(0x2, 0, asked.id, bytes(length)))
        peer.respond(asked)

    server = h2_server(one_stream(fault))
    async with http2_pool(world, server, max_connections=1) as pool:
        try:
            is_answer(await ask(pool, server, "/fault"))
        except RemoteProtocolError:
            pass
    assert server.accepted == 1


async def test_a_table_of_four_gigabytes_is_not_filled_B18(world: World, h2_server: StartServer) -> None:
    """The peer's decoder takes no more than 64 KiB, whatever was offered."""
    server = h2_server(lambda peer: peer.serve(), settings={HEADER_TABLE_SIZE: (1 << 32) - 1})
    async with http2_pool(world, server, max_connections=1) as pool:
        for number in range(100):
            headers = [("Host", "a"), (f"x-{number}", f"{number}" * 1000)]
            echoed(await ask(pool, server, f"/echo/{number}", headers=headers), f"/echo/{number}")
        decoder = server.connections[0]._decoder
        assert decoder.header_table_size <= 1 << 16


async def test_a_table_of_nothing_B18(world: World, h2_server: StartServer) -> None:
    server = h2_server(lambda peer: peer.serve(), settings={HEADER_TABLE_SIZE: 0})
    async with http2_pool(world, server, max_connections=1) as pool:
        for number in range(10):
            echoed(
                await ask(pool, server, f"/echo/{number}", headers=[("Host", "a"), ("x", "y")]),
                f"/echo/{number}",
            )
        assert server.connections[0]._decoder.header_table_size == 0


# --- peers that speak something else, or nothing -------------------------------------------------------------

SPEECH: dict[str, tuple[bytes, str]] = {
    "HTTP/1.1": (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nbad", "HTTP/1"),
    "TLS": (b"\x15\x03\x01\x00\x02\x02\x46", "TLS"),
    "SSH": (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
    "HTTP/2 without SETTINGS": (PingFrame(opaque_data=b"12345678").serialize(), "SETTINGS"),
}


@pytest.mark.parametrize("case", SPEECH)
async def test_a_server_that_speaks_another_protocol_B20(
    world: World, case: str, h2_server: StartServer
) -> None:
    said, name = SPEECH[case]

    def script(peer: H2Connection) -> None:
        if peer.number:
            peer.settings()
            peer.serve()
        peer.raw(said)
        peer.drain()

    server = h2_server(script, is_silent=True)
    error = await fails_as_a_whole(world, server, codes=None)
    assert name in str(error), error


@EITHER
@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_server_that_hangs_up_B20(world: World, tls: bool, how: str, h2_server: StartServer) -> None:
    def script(peer: H2Connection) -> None:
        if peer.number:
            peer.settings()
            peer.serve()
        peer.until(lambda: peer.streams)
        if how == "reset":
            peer.abort()

    server = h2_server(script, is_silent=True, tls=tls)
    async with http2_pool(world, server, max_connections=1) as pool:
        with pytest.raises((RemoteProtocolError, ReadError)):
            await ask(pool, server, "/fault", "POST", b"")
        assert pool.stats() == EMPTY
    assert server.accepted == 2


@EITHER
async def test_settings_that_never_come_B20(world: World, tls: bool, h2_server: StartServer) -> None:
    """The wait is bounded by the limits of a request."""

    def script(peer: H2Connection) -> None:
        if peer.number:
            peer.settings()
            peer.serve()
        peer.drain()

    server = h2_server(script, is_silent=True, tls=tls)
    async with world.pool(http1=False, http2=True, ssl_context=server.client_context) as pool:
        start = time.monotonic()
        with pytest.raises((ReadTimeout, ConnectTimeout)):
            await ask(pool, server, "/fault", connect=5, read=0.3)
        assert time.monotonic() - start < 5
        # The connection may be given up with the request, or be waited for by the next.
        assert pool.stats().active == 0
    assert pool.stats() == EMPTY
    await world.until(lambda: server.live == 0)


# --- the life of a connection ------------------------------------------------------------------------------


async def test_streams_that_are_used_up_lead_to_a_new_connection_B21(
    world: World, h2_server: StartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids end at 2**31 - 1."""
    begin = HTTP2Session.__init__

    def late(self: HTTP2Session, *arguments: Any) -> None:
        begin(self, *arguments)
        self._next_id = (1 << 31) - 5

    monkeypatch.setattr(HTTP2Session, "__init__", late)
    server = h2_server(lambda peer: peer.serve())
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        asked = [jobs.start(partial(ask, pool, server, f"/{number}", "POST", b"")) for number in range(11)]
        for number, job in enumerate(asked):
            echoed(await job.result(world), f"/{number}")
    assert [sorted(peer.streams) for peer in server.connections] == [
        [(1 << 31) - 5, (1 << 31) - 3, (1 << 31) - 1]
    ] * 4


@EITHER
@pytest.mark.parametrize("how", ["end", "reset", "GOAWAY", "GOAWAY and end"])
async def test_a_connection_that_ends_while_idle_is_replaced_unseen_A05(
    world: World, tls: bool, how: str, h2_server: StartServer
) -> None:
    answered, ended = threading.Event(), threading.Event()

    def script(peer: H2Connection) -> None:
        peer.respond(peer.request())
        peer.hold(answered.is_set)
        if how.startswith("GOAWAY"):
            peer.goaway(1)
        if how == "GOAWAY":
            ended.set()
            peer.drain()
        if how == "reset":
            peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.sock.close()
        ended.set()

    server = h2_server(script, tls=tls)
    async with world.pool(http1=False, http2=True, ssl_context=server.client_context) as pool:
        for _ in range(5):
            answered.clear()
            ended.clear()
            echoed(await ask(pool, server, "/once", "POST", b""), "/once")
            answered.set()
            assert ended.wait(10)
            assert pool.stats().connections == 1
    await world.until(lambda: server.live == 0)
    assert server.accepted == 5


async def test_the_end_of_a_connection_that_was_used_before_A17(world: World, h2_server: StartServer) -> None:
    """Before a byte of the answer: sent once more if that may be done, and else the error says what is known."""

    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            raise EOFError

        if peer.number % 2:
            peer.serve()
        peer.serve(special)

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool:
        echoed(await ask(pool, server, "/echo"), "/echo")
        echoed(await ask(pool, server, "/gone"), "/gone")
    assert server.paths() == [b"/echo", b"/gone", b"/gone", b"/echo/after"]


async def test_silence_is_found_out_by_ping(world: World, h2_server: StartServer) -> None:
    """A peer that is gone without a word fails who waits for it; one that is slow does not."""

    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            peer.answers_pings = asked.path == b"/slow"
            if peer.answers_pings:
                peer.until(lambda: sum(isinstance(frame, PingFrame) for frame in peer.frames) >= 3)
                peer.respond(asked)
            else:
                peer.drain()

        peer.serve(special)

    server = h2_server(script)
    async with http2_pool(world, server, http2_ping_interval=0.2, http2_ping_timeout=1.0) as pool:
        echoed(await ask(pool, server, "/slow"), "/slow")
        with pytest.raises((ReadError, ReadTimeout, RemoteProtocolError)):
            await in_time(ask(pool, server, "/dead", "POST", b""))
    assert server.accepted == 2


# --- who waits for what ------------------------------------------------------------------------------------


@EITHER
@pytest.mark.parametrize("order", ["A first", "B first"])
async def test_a_time_out_is_that_of_one_stream_B22(
    world: World, tls: bool, order: str, h2_server: StartServer
) -> None:
    """Whoever of the two reads for the other."""
    server = h2_server(one_stream(lambda peer, asked: None), tls=tls)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:

        async def impatient() -> None:
            with pytest.raises(ReadTimeout):
                await ask(pool, server, "/hold", read=0.3)

        async def begin(function: Callable[[], Any]) -> Job:
            number = len(server.paths())
            job = jobs.start(function)
            await world.until(lambda: len(server.paths()) > number)
            return job

        patient: Callable[[], Any] = partial(ask, pool, server, "/sibling")
        if order == "A first":
            first, second = await begin(impatient), await begin(patient)
        else:
            second, first = await begin(patient), await begin(impatient)
        await first.result(world)
        assert not second.is_done
        echoed(await ask(pool, server, "/release"), "/release")
        echoed(await second.result(world), "/sibling")
        (held,) = (asked for asked in server.asked() if asked.path == b"/hold")
        assert server.connections[0].resets() == [(held.id, CANCEL)]
    assert server.accepted == 1


@EITHER
async def test_a_time_out_is_kept_while_another_reads_B23(
    world: World, tls: bool, h2_server: StartServer
) -> None:
    server = h2_server(one_stream(lambda peer, asked: None), tls=tls)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        reader = jobs.start(partial(ask, pool, server, "/sibling"))
        await world.until(server.paths)
        for _ in tries_in_time(0.25, 0.6):
            with pytest.raises(ReadTimeout):
                await ask(pool, server, "/hold", read=0.3)
        assert not reader.is_done
        echoed(await ask(pool, server, "/release"), "/release")
        echoed(await reader.result(world), "/sibling")
    assert server.accepted == 1


async def test_each_waits_for_his_own_answer_B23(world: World, h2_server: StartServer) -> None:
    """Answers in the opposite order, and in pieces of each in turn."""

    def script(peer: H2Connection) -> None:
        asked = peer.requests(30)[::-1]
        for each in asked:
            peer.head(each)
        for at in range(3):
            for each in asked:
                peer.data(each, each.path, ends=at == 2)
        peer.serve()

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        asked = [jobs.start(partial(ask, pool, server, f"/{number}")) for number in range(30)]
        for number, job in enumerate(asked):
            assert (await job.result(world)).content == f"/{number}".encode() * 3


@EITHER
async def test_half_of_thirty_streams_end_early_thirty_times_B24(
    world: World, tls: bool, h2_server: StartServer
) -> None:
    """Cancelled at random; by short time-outs where nothing can be cancelled."""
    chance = random.Random(24)

    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            if world.is_async and asked.id % 4 == 1:
                peer.respond(asked)
            elif asked.id % 4 == 3:
                peer.head(asked)

        peer.serve(special)

    server = h2_server(script, tls=tls)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        for round_ in range(30):
            ended: list[Job] = []
            others: list[tuple[str, Job]] = []
            for number in range(30):
                if number % 2:
                    read = LONG if world.is_async else chance.choice([0.01, 0.02])
                    ended.append(jobs.start(partial(ask, pool, server, f"/end/{round_}/{number}", read=read)))
                else:
                    path = f"/echo/{round_}/{number}"
                    others.append((path, jobs.start(partial(ask, pool, server, path))))
            for job in ended:
                if world.is_async:
                    for _ in range(chance.randrange(4)):
                        await anyio.lowlevel.checkpoint()
                    job.cancel()
            for path, job in others:
                echoed(await job.result(world), path)
            for job in ended:
                outcome = await job.outcome(world)
                if not isinstance(outcome, (Cancelled, ReadTimeout)):
                    is_answer(outcome)
            stats = pool.stats()
            assert (stats.active, stats.connecting, stats.queued, stats.requests) == (0, 0, 0, 0), stats
            assert stats.connections <= 1
        hundred = [jobs.start(partial(ask, pool, server, f"/echo/{number}")) for number in range(100)]
        for number, job in enumerate(hundred):
            echoed(await job.result(world), f"/echo/{number}")
        (peer,) = server.connections[-1:]
        assert sum(asked.is_open for asked in peer.streams.values()) == 0
        await world.until(lambda: peer.window > 0.9 * peer.widest_window)
    # A cancellation may end the opening of a connection; once it is there, it stays.
    assert server.accepted <= 3


@EITHER
async def test_a_reader_that_pauses_holds_up_nobody(world: World, tls: bool, h2_server: StartServer) -> None:
    """Its own window bounds what is kept for it; 99 others get megabytes meanwhile."""
    piece = b"/" * 50_000

    def script(peer: H2Connection) -> None:
        paused = peer.request()
        peer.head(paused)
        rest = 40_000_000

        def push() -> None:
            nonlocal rest
            while rest and min(peer.window, paused.send_window) >= 16_384:
                peer.data(paused, b"/" * min(rest, 16_384), ends=rest <= 16_384)
                rest -= min(rest, 16_384)

        def special(asked: Asked) -> None:
            push()
            if asked.path == b"/rest":
                peer.respond(asked)
                while rest:
                    if min(peer.window, paused.send_window) < 16_384:
                        peer.next_frame()
                    push()
            else:
                peer.respond(asked, piece)

        peer.serve(special)

    server = h2_server(script, tls=tls)
    async with (
        http2_pool(world, server, max_connections=1) as pool,
        streaming(pool, server, "/paused") as slow,
    ):
        async with world.jobs() as jobs:
            for _ in range(3):
                asked = [jobs.start(partial(ask, pool, server, f"/{number}")) for number in range(99)]
                for job in asked:
                    assert (await job.result(world)).content == piece
        (peer,) = server.connections
        assert 0 < peer.streams[1].sent <= 1 << 20
        await world.until(lambda: peer.window > 0.9 * peer.widest_window)
        echoed(await ask(pool, server, "/rest"), "/rest")
        size = 0
        async for part in slow.aiter_stream():
            size += len(part)
        assert size == 40_000_000
    assert server.accepted == 1


async def test_readers_that_pause_hold_no_more_than_their_windows_K01(
    world: World, h2_server: StartServer
) -> None:
    """99 answers of 10 MB that nobody reads, beside one that is read: by counting what was sent, and by memory."""

    def script(peer: H2Connection) -> None:
        slow = peer.requests(99)
        for asked in slow:
            peer.head(asked)

        def push() -> None:
            for asked in slow:
                while asked.sent < 10_000_000 and min(peer.window, asked.send_window) >= 16_384:
                    peer.data(asked, bytes(16_384), ends=False)
                while peer.has_input(0):
                    peer.next_frame()

        def special(asked: Asked) -> None:
            push()
            peer.respond(asked)

        peer.serve(special)

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool:
        before = resident()
        async with world.jobs() as jobs:

            async def pause() -> None:
                async with streaming(pool, server, "/slow") as got:
                    opened.append(got)
                    await world.until(over.is_set)

            opened: list[Any] = []
            over = threading.Event()
            held = [jobs.start(pause) for _ in range(99)]
            try:
                await world.until(lambda: len(opened) == 99)
                for number in range(50):
                    echoed(await ask(pool, server, f"/read/{number}"), f"/read/{number}")
                (peer,) = server.connections
                sent = sum(asked.sent for asked in list(peer.streams.values()))
                assert 99 * 16_384 <= sent <= 99 * (1 << 18) * 1.1
                assert resident() - before < 99 * (1 << 18) * 1.1 + (16 << 20)
            finally:
                over.set()
            for job in held:
                await job.result(world)
        echoed(await ask(pool, server, "/echo"), "/echo")
        await world.until(lambda: peer.window > 0.9 * peer.widest_window)
    assert server.accepted == 1


def resident() -> int:
    """Bytes of memory that this process has."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


# --- uploads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "tls"), [("bytes", True), ("pieces", False)], ids=["tls", "pieces"])
async def test_an_upload_of_fifty_megabytes(
    world: World, tls: bool, body: str, h2_server: StartServer
) -> None:
    """In frames no longer than allowed, through windows that are given back as it is taken."""
    piece = os.urandom(1_000_000)
    server = h2_server(
        lambda peer: peer.serve(), tls=tls, settings={INITIAL_WINDOW_SIZE: 1 << 20, MAX_FRAME_SIZE: 16_384}
    )
    async with http2_pool(world, server, max_connections=1) as pool:
        content: Any = piece * 50 if body == "bytes" else world.body(iter([piece] * 50))
        echoed(await ask(pool, server, "/echo", "POST", content), "/echo")
    checksum = 0
    for _ in range(50):
        checksum = zlib.crc32(piece, checksum)
    asked = server.connections[0].streams[1]
    assert (asked.size, asked.checksum) == (50_000_000, checksum)
    assert asked.field(b"transfer-encoding") is None


async def test_a_body_is_not_read_ahead_of_the_window(world: World, h2_server: StartServer) -> None:
    """The server stops giving, and its body stops being asked for."""
    given = 0
    stopped, go_on = threading.Event(), threading.Event()

    def pieces() -> Iterator[bytes]:
        nonlocal given
        for _ in range(500):
            given += 10_000
            yield bytes(10_000)

    def script(peer: H2Connection) -> None:
        asked = peer.request()
        peer.until(lambda: asked.size >= 1_000_000)
        peer.credits = False
        peer.until(lambda: 0 in (peer._receive_window, asked.receive_window))
        stopped.set()
        peer.hold(go_on.is_set)
        peer.credit(None, 6_000_000)
        peer.credit(asked, 6_000_000)
        peer.finish(asked)
        peer.respond(asked)
        peer.credits = True
        peer.serve()

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        job = jobs.start(partial(ask, pool, server, "/echo", "POST", world.body(pieces())))
        await world.until(stopped.is_set)
        await world.pause(0.1)
        assert given <= server.asked()[0].size + 30_000
        go_on.set()
        echoed(await job.result(world), "/echo")
    assert server.connections[0].streams[1].size == 5_000_000


async def test_two_uploads_share_what_there_is(world: World, h2_server: StartServer) -> None:
    """One that is stopped by its own window does not stop the other."""
    go_on = threading.Event()

    def script(peer: H2Connection) -> None:
        peer.credits = False
        first = peer.request()
        peer.until(lambda: first.receive_window == 0)
        peer.credit(None, 10_000_000)
        second = peer.request()
        while not second.is_ended:
            size = second.size
            peer.until(lambda: second.size >= size + 30_000 or second.is_ended)  # noqa: B023 - called at once
            if not second.is_ended:
                peer.credit(second, second.size - size)
        peer.respond(second)
        peer.hold(go_on.is_set)
        peer.credit(first, 2_000_000)
        peer.finish(first)
        peer.respond(first)
        peer.credits = True
        peer.serve()

    server = h2_server(script)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        first = jobs.start(partial(ask, pool, server, "/echo/1", "POST", bytes(1_000_000)))
        await world.until(lambda: server.asked() and server.asked()[0].receive_window == 0)
        echoed(await ask(pool, server, "/echo/2", "POST", bytes(1_000_000)), "/echo/2")
        assert not first.is_done
        go_on.set()
        echoed(await first.result(world), "/echo/1")
    assert server.accepted == 1


@pytest.mark.parametrize("case", ["shorter", "longer"])
async def test_a_body_of_another_length_than_it_says_J06(
    world: World, case: str, h2_server: StartServer
) -> None:
    server = h2_server(one_stream(lambda peer, asked: None))
    async with http2_pool(world, server, max_connections=1) as pool:
        headers = [("Host", "a"), ("Content-Length", "25")]
        count = 2 if case == "shorter" else 3
        for _ in range(3):
            with pytest.raises(LocalProtocolError):
                await ask(
                    pool, server, "/fault", "POST", world.body(iter([b"ten bytes!"] * count)), headers=headers
                )
            assert pool.stats().active == 0
    assert server.accepted == 1
    (peer,) = server.connections
    assert {stream for stream, _ in peer.resets()} == {
        asked.id for asked in server.asked() if asked.path == b"/fault"
    }


REQUESTS: dict[str, dict[str, Any]] = {
    "CR LF in a value": {"headers": [("Host", "a"), ("x", "1\r\ny: 2")]},
    "NUL in a value": {"headers": [("Host", "a"), ("x", "1\x002")]},
    "LF in a name": {"headers": [("Host", "a"), ("x\ny", "1")]},
    "space in a name": {"headers": [("Host", "a"), ("x y", "1")]},
    "CR LF in Host": {"headers": [("Host", "a\r\nb: c")]},
    "space in Host": {"headers": [("Host", "a b")]},
    "a pseudo-header": {"headers": [("Host", "a"), (":path", "/other")]},
    "space in the method": {"method": "GET /x"},
    "CR LF in the method": {"method": "GET\r\n"},
    "space in the target": {"target": b"/a b"},
    "CR LF in the target": {"target": b"/a\r\nb: c"},
    "NUL in the target": {"target": b"/a\0"},
}


@pytest.mark.parametrize("case", REQUESTS)
async def test_what_may_not_be_sent_is_not_sent_J02(world: World, case: str, h2_server: StartServer) -> None:
    what = REQUESTS[case]
    server = h2_server(lambda peer: peer.serve())
    async with http2_pool(world, server, max_connections=1) as pool:
        echoed(await ask(pool, server, "/echo"), "/echo")
        extensions = {"target": what["target"]} if "target" in what else {}
        with pytest.raises(LocalProtocolError):
            await pool.request(
                what.get("method", "GET"),
                f"{server.url}/echo",
                headers=what.get("headers", [("Host", "a")]),
                extensions=extensions,
            )
    assert server.paths() == [b"/echo", b"/echo/after"]
    assert server.accepted == 1


# --- deadlines, cancellation, and many at once ---------------------------------------------------------------


@EITHER
@pytest.mark.parametrize(
    "where", ["waiting for a stream", "writing", "awaiting the head", "reading the body"]
)
async def test_a_deadline_ends_every_wait_F01(
    world: World, tls: bool, where: str, h2_server: StartServer
) -> None:
    over = threading.Event()

    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            if asked.path == b"/late" and where == "reading the body":
                peer.head(asked)
            elif asked.path == b"/held":
                peer.hold(over.is_set)
                peer.respond(asked)

        peer.respond(peer.request())
        peer.serve(special)

    settings = {MAX_CONCURRENT_STREAMS: 1 if where == "waiting for a stream" else 100, INITIAL_WINDOW_SIZE: 0}
    server = h2_server(script, tls=tls, settings=settings)
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        echoed(await ask(pool, server, "/first"), "/first")
        patient = None
        if where == "waiting for a stream":
            patient = jobs.start(partial(ask, pool, server, "/held"))
            await world.until(lambda: b"/held" in server.paths())
        content = bytes(100_000) if where == "writing" else None
        for _ in tries_in_time(0.25, 0.6):
            with pytest.raises(DeadlineExceeded) as caught:
                async with timeout(0.3):
                    await ask(pool, server, "/late", "POST", content)
            phase = {"waiting for a stream": "pool", "writing": "write"}.get(where, "read")
            assert caught.value.phase == phase
        if patient is not None:
            over.set()
            echoed(await patient.result(world), "/held")
    assert server.accepted == 1


@pytest.mark.parametrize(
    "place", ["writing", "awaiting the head", "reading the body", "waiting for a stream"]
)
@EITHER
async def test_a_cancelled_request_resets_its_stream_G01(
    async_world: World, place: str, tls: bool, h2_server: StartServer
) -> None:
    """At once, and the connection goes on; with a sibling that waits, and without."""
    world = async_world

    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            if place == "reading the body":
                peer.head(asked)
                peer.data(asked, b"some", ends=False)

        peer.credits = False
        peer.serve(special)

    server = h2_server(script, tls=tls, settings={MAX_CONCURRENT_STREAMS: 2})
    async with http2_pool(world, server, max_connections=1) as pool, world.jobs() as jobs:
        echoed(await ask(pool, server, "/echo"), "/echo")
        content = bytes(1_000_000) if place == "writing" else None
        siblings = 2 if place == "waiting for a stream" else 0
        held = [jobs.start(partial(ask, pool, server, f"/held/{number}")) for number in range(siblings)]
        await world.until(lambda: len(server.paths()) == 1 + siblings)
        job = jobs.start(partial(ask, pool, server, "/hang", "POST", content))
        if siblings:
            await world.until(lambda: pool.stats().queued == 1)
        else:
            await world.until(lambda: b"/hang" in server.paths())
            if place == "writing":
                await world.until(lambda: server.asked()[-1].receive_window == 0)
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
        assert not job.is_done, await job.outcome(world)
        job.cancel()
        assert isinstance(await job.outcome(world), Cancelled)
        assert pool.stats() == PoolStats(1, 1 if siblings else 0, 0 if siblings else 1, 0, 0, siblings)
        for each in held:
            each.cancel()
            assert isinstance(await each.outcome(world), Cancelled)
        (peer,) = server.connections
        await world.until(lambda: len(peer.resets()) == (siblings or 1))
        assert {code for _, code in peer.resets()} == {CANCEL}
    assert server.accepted == 1


@EITHER
async def test_a_cancellation_at_every_turn_costs_one_stream_G01(
    async_world: World, tls: bool, h2_server: StartServer
) -> None:
    """After N turns of the loop, for N = 0, 1, 2, …, with siblings that are not to notice."""
    world = async_world
    through = turns = 0
    server = h2_server(lambda peer: peer.serve(), tls=tls)
    async with http2_pool(world, server, max_connections=1) as pool:
        echoed(await ask(pool, server, "/echo"), "/echo")
        async with world.jobs() as jobs:
            while through < 3:
                sibling = jobs.start(partial(ask, pool, server, f"/sibling/{turns}"))
                job = jobs.start(partial(ask, pool, server, f"/{turns}", "POST", bytes(100_000)))
                for _ in range(turns):
                    if job.is_done:
                        break
                    await anyio.lowlevel.checkpoint()
                through += job.is_done
                job.cancel()
                outcome = await job.outcome(world)
                if not isinstance(outcome, Cancelled):
                    echoed(outcome, f"/{turns}")
                echoed(await sibling.result(world), f"/sibling/{turns}")
                stats = pool.stats()
                assert stats == PoolStats(1, 0, 1, 0, 0, 0), (turns, stats)
                turns += 1 if turns < 60 else turns // 3
        await world.until(lambda: not any(asked.is_open for asked in server.asked()))
        assert server.accepted == 1


@pytest.mark.parametrize("ends", ["cancelled", "timed out"])
async def test_a_connection_outlives_who_asked_for_it_first_G04(
    world: World,
    ends: str,
    fault_server: Callable[..., FaultServer],
    h2_contexts: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    """Two wait for a connection that is being opened, and the first gives up: the second gets it, and it stays."""
    if ends == "cancelled" and not world.is_async:
        return  # nothing can be cancelled there
    go_on = threading.Event()

    def behave(sock: socket.socket) -> None:
        go_on.wait(20)
        with h2_contexts[1].wrap_socket(sock, server_side=True) as stream:
            peer = H2Connection(stream, 0)
            peer.settings()
            peer.serve()

    server = fault_server(behave)
    url = f"https://127.0.0.1:{server.port}"
    async with (
        world.pool(http1=False, http2=True, ssl_context=h2_contexts[0], max_connections=2) as pool,
        world.jobs() as jobs,
    ):
        limits = {"timeout": {"connect": 0.5 if ends == "timed out" else LONG}}
        first = jobs.start(partial(pool.request, "GET", f"{url}/1", extensions=limits))
        await world.until(lambda: pool.stats().connecting == 1)
        second = jobs.start(partial(pool.request, "GET", f"{url}/2"))
        await world.until(lambda: pool.stats().queued == 1 or pool.stats().connecting == 2)
        if ends == "cancelled":
            first.cancel()
            assert isinstance(await first.outcome(world), Cancelled)
        else:
            assert isinstance(await first.outcome(world), ConnectTimeout)
        go_on.set()
        got = await second.result(world)
        assert (got.content, got.extensions["http_version"]) == (b"/2", b"HTTP/2")
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
        assert (await pool.request("GET", f"{url}/3")).content == b"/3"
        if ends == "cancelled":
            assert server.accepted == 1
    await world.until(lambda: server.live == 0)


@EITHER
async def test_a_thousand_at_once_open_no_more_connections_than_they_need_H06(
    world: World, tls: bool, h2_server: StartServer
) -> None:
    count = 1_000 if world.is_async else 200
    server = h2_server(lambda peer: peer.serve(), tls=tls)
    async with http2_pool(world, server, max_connections=100) as pool, world.jobs() as jobs:
        asked = [jobs.start(partial(ask, pool, server, f"/{number}")) for number in range(count)]
        for number, job in enumerate(asked):
            echoed(await job.result(world), f"/{number}")
    assert server.accepted <= count // 100


@EITHER
async def test_closing_the_pool_ends_every_stream_I02(
    world: World, tls: bool, h2_server: StartServer
) -> None:
    """One awaits its head, one a window, one its body, and one a place."""

    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            if asked.path == b"/body":
                peer.head(asked)

        peer.serve(special)

    server = h2_server(script, tls=tls, settings={MAX_CONCURRENT_STREAMS: 3, INITIAL_WINDOW_SIZE: 0})
    pool = world.pool(http1=False, http2=True, ssl_context=server.client_context, max_connections=1)
    echoed(await ask(pool, server, "/echo"), "/echo")
    async with world.jobs() as jobs:
        asked = [
            jobs.start(partial(ask, pool, server, "/head")),
            jobs.start(partial(ask, pool, server, "/window", "POST", bytes(100_000))),
            jobs.start(partial(ask, pool, server, "/body")),
        ]
        await world.until(lambda: len(server.paths()) == 4)
        asked.append(jobs.start(partial(ask, pool, server, "/place")))
        await world.until(lambda: pool.stats().queued == 1)
        await world.pause(0.05)
        start = time.monotonic()
        await pool.aclose()
        for job in asked:
            outcome = await job.outcome(world)
            assert isinstance(outcome, PoolClosed), repr(outcome)
            assert job.ended_at - start < 4  # a small part of a second, on a machine that does nothing else
    assert pool.stats() == EMPTY
    await world.until(lambda: server.live == 0)
    assert server.accepted == 1
    assert b"/place" not in server.paths()


async def test_many_threads_or_tasks_and_a_server_that_resets_at_random(
    world: World, h2_server: StartServer
) -> None:
    """Streams, windows, limits and connections come and go; everybody gets his own answer, or an error of his own."""
    lock = threading.Lock()
    chance = random.Random(7)

    def draw() -> float:
        with lock:
            return chance.random()

    def script(peer: H2Connection) -> None:
        def special(asked: Asked) -> None:
            luck = draw()
            if luck < 0.05:
                peer.reset(asked, INTERNAL_ERROR)
            elif luck < 0.1:
                peer.reset(asked, REFUSED_STREAM)
            elif luck < 0.13:
                peer.goaway(asked.id)
                peer.finish(asked)
                peer.respond(asked)
            elif luck < 0.15:
                peer.settings(
                    {MAX_CONCURRENT_STREAMS: int(draw() * 20) + 1, INITIAL_WINDOW_SIZE: int(draw() * 100_000)}
                )
                peer.finish(asked)
                peer.respond(asked)
            elif luck < 0.16:
                raise EOFError
            else:
                peer.finish(asked)
                peer.respond(asked)

        peer.serve(special)

    server = h2_server(script)
    answers = itertools.count()
    async with http2_pool(world, server, max_connections=3) as pool, world.jobs() as jobs:

        async def many(worker: int) -> None:
            for number in range(40):
                path = f"/{worker}/{number}"
                try:
                    got = await ask(pool, server, path, "POST", bytes(int(draw() * 1_000)), read=10)
                except (RemoteProtocolError, ReadError, WriteError):
                    continue
                echoed(got, path)
                next(answers)

        for job in [jobs.start(many, worker) for worker in range(16)]:
            await job.result(world)
        stats = pool.stats()
        assert (stats.active, stats.connecting, stats.queued, stats.requests) == (0, 0, 0, 0), stats
        assert stats.connections <= 3
    assert next(answers) > 300
