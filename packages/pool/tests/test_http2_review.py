"""What a review of HTTP/2 in the pool has found: each test failed before it was mended."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from lamina_interfaces import (
    THREADS,
    ConnectError,
    LocalProtocolError,
    ReadTimeout,
    RemoteProtocolError,
    WriteError,
    running_runtime,
)
from lamina_pool import AsyncConnectionPool
from lamina_pool._http2_connection import HTTP2Connection
from lamina_pool._pool import MAX_REFUSALS, _capacity_changed
from lamina_pool._scheduler import Waiter
from pool_async_net import checkpoints
from pool_async_runs import VIRTUAL, Jobs, ask, loop_options, pause, until, url
from pool_http2_net import (
    Contexts,
    HTTP2Backend,
    PromptStream,
    SharedStream,
    check_shared,
    echo,
    make_contexts,
)
from pool_http2_peer import request
from pool_http2_server import CANCEL, INITIAL_WINDOW_SIZE, REFUSED_STREAM, Asked

on_loops = pytest.mark.anyio
"""For those that need an event loop."""

UPLOADS = 4
"""How many requests send a body at the same time."""


@pytest.fixture(params=VIRTUAL)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return loop_options(request.param)


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    return make_contexts()


def shared(
    answer: Callable[[Asked], object] = echo, *, is_custom: bool = False, **options: Any
) -> tuple[HTTP2Backend, AsyncConnectionPool]:
    """A server, and a pool that speaks nothing but HTTP/2 with it."""
    backend = HTTP2Backend(answer, is_custom=is_custom)
    return backend, AsyncConnectionPool(network_backend=backend, http1=False, http2=True, **options)


async def chunks(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


# --- dials that nobody waits for any more ------------------------------------------------------------------


@on_loops
@pytest.mark.parametrize("turns", range(4))
async def test_a_dial_that_is_given_up_in_its_last_step_leaves_no_dead_connection_G04(turns: int) -> None:
    """Its request is cancelled a few turns of the loop before it ends, so it may end before it hears of that."""
    backend, pool = shared()
    async with pool:
        with anyio.CancelScope() as scope:

            async def strike(name: str, _: dict[str, Any]) -> None:
                if name == "connection.connect_tcp.complete":
                    scope.cancel()
                    await checkpoints(turns)

            await pool.request("GET", url(), extensions={"trace": strike})
        assert scope.cancelled_caught
        await until(lambda: not pool._pool._lone_dials)
        assert (await pool.request("POST", url(), content=b"x")).status == 200
        check_shared(pool, backend)


# --- what is sent again ------------------------------------------------------------------------------------


@on_loops
async def test_a_server_that_refuses_what_it_said_it_would_deal_with_is_given_up_B02_B03() -> None:
    asked = []

    def refuse(one: Asked) -> None:
        asked.append(one)
        if len(asked) > 10 * MAX_REFUSALS:
            one.respond()  # the test fails, but ends
        one.server.goaway(2**31 - 1)
        one.reset(REFUSED_STREAM)

    backend, pool = shared(refuse)
    async with pool:
        with pytest.raises(RemoteProtocolError, match="REFUSED_STREAM"):
            await ask(pool)
        assert len(asked) == MAX_REFUSALS + 1
        check_shared(pool, backend)


@on_loops
async def test_an_empty_body_that_can_be_read_once_can_be_sent_elsewhere_B01() -> None:
    backend, pool = shared()
    async with pool:
        await ask(pool)
        backend.streams[0].peer.goaway(1)
        assert (await pool.request("POST", url(), content=chunks())).status == 200
        check_shared(pool, backend)


@on_loops
async def test_a_refusal_after_a_connection_has_died_is_no_failure_A17_B03() -> None:
    backend, pool = shared()
    async with pool:
        await ask(pool)

        def die(one: Asked) -> None:
            backend.answer_http2 = refuse
            backend.streams[0].hang_up()

        def refuse(one: Asked) -> None:
            backend.answer_http2 = echo
            one.reset(REFUSED_STREAM)

        backend.answer_http2 = die
        await ask(pool)
        assert len(backend.streams) == 2
        check_shared(pool, backend)


@on_loops
async def test_one_connection_that_dies_under_a_request_is_the_one_chance_A17() -> None:
    """A refusal in between does not open another."""
    backend, pool = shared()
    asked = []

    async with pool:
        await ask(pool)

        def misbehave(one: Asked) -> None:
            asked.append(one)
            if len(asked) == 2:
                one.reset(REFUSED_STREAM)
            elif len(asked) < 10:
                backend.streams[-1].hang_up()
            else:
                one.respond()  # the test fails, but ends

        backend.answer_http2 = misbehave
        with pytest.raises(RemoteProtocolError):
            await ask(pool)
        assert len(asked) == 3
        check_shared(pool, backend)


@on_loops
async def test_a_body_whose_second_piece_is_too_much_J06() -> None:
    backend, pool = shared()
    async with pool:
        await ask(pool)
        with pytest.raises(LocalProtocolError, match="longer than declared"):
            await pool.request("POST", url(), headers={"Content-Length": "2"}, content=chunks(b"ab", b"c"))
        answer = await pool.request(
            "POST", url(), headers={"Content-Length": "3"}, content=chunks(b"ab", b"c", b"")
        )
        assert answer.status == 200
        check_shared(pool, backend)


# --- who waits ---------------------------------------------------------------------------------------------


@on_loops
@pytest.mark.parametrize("room", [1000, 70_000])
async def test_uploads_go_on_when_what_waited_in_the_stream_has_gone(room: int, contexts: Contexts) -> None:
    """Though nothing comes from the server, and so nobody who reads has anything to tell them."""
    held: list[Asked] = []
    uploaded: list[Asked] = []

    def answer(asked: Asked) -> None:
        (uploaded if asked.body else held).append(asked)
        if len(uploaded) == UPLOADS:
            for upload in uploaded:
                upload.respond(b"%d" % len(upload.body))

    backend = HTTP2Backend(
        answer, server_context=contexts.server, room=room, settings={INITIAL_WINDOW_SIZE: 2**30}
    )
    pool = AsyncConnectionPool(network_backend=backend, ssl_context=contexts.client, http1=False, http2=True)

    def give_no_credit(stream: SharedStream) -> None:
        server: Any = stream.peer
        server._credit = lambda event, asked: None

    backend.on_open = give_no_credit
    async with pool, Jobs() as jobs:
        reader = jobs.start(pool.request, "GET", url("", "https"))
        await until(lambda: held)
        held[0].server.h2.increment_flow_control_window(2**30)
        held[0].server.flush()

        async def upload() -> bytes:
            content = chunks(*[bytes(100_000)] * 10)
            answer = await pool.request("POST", url("", "https"), content=content)
            return answer.content

        uploads = [jobs.start(upload) for _ in range(UPLOADS)]
        for job in uploads:
            assert await job.outcome_in_time(100.0) == b"1000000"
        held[0].respond()
        await reader.result()
        check_shared(pool, backend)


@on_loops
async def test_an_answer_to_a_ping_that_nobody_has_read_is_one() -> None:
    asked: list[Asked] = []
    backend, pool = shared(asked.append, http2_ping_interval=10.0, http2_ping_timeout=5.0)
    async with pool, Jobs() as jobs:

        async def read_slowly() -> bytes:
            body = b""
            async with pool.stream("GET", url()) as response:
                stream: Any = response.stream
                async for piece in stream:
                    if not body:
                        await pause(30.0)
                    body += piece
            return body

        job = jobs.start(read_slowly)
        await until(lambda: asked)
        stream = backend.streams[0]
        late: list[bytes] = []
        server: Any = stream.peer
        server._send = late.append
        await pause(10.5)
        assert stream.peer.pings == 1
        server._send = stream.feed
        asked[0].respond(b"some", ends=False)
        await pause(1.0)
        stream.feed(b"".join(late))  # while the one who asked for it has other things to do
        asked[0].respond(b"more")
        assert await job.outcome_in_time(100.0) == b"somemore"
        check_shared(pool, backend)


class BrokenStream(PromptStream):
    """Takes nothing any more, keeps what it has taken, and says nothing."""

    tries = 0

    @property
    def has_unsent(self) -> bool:
        return not self.is_closed

    def write_now(self, buffer: Any) -> int:
        raise WriteError("the stream is broken", phase="write")

    async def wait_writable(self, timeout: float | None = None) -> None:
        BrokenStream.tries += 1
        assert BrokenStream.tries < 100  # else it would be asked for ever, and the loop would stand still
        raise WriteError("the stream is broken", phase="write")


@on_loops
async def test_a_stream_that_is_broken_is_not_asked_again_and_again() -> None:
    asked: list[Asked] = []
    backend, pool = shared(asked.append)
    BrokenStream.tries = 0
    async with pool, Jobs() as jobs:
        reader = jobs.start(pool.request, "GET", url())
        await until(lambda: asked)
        backend.streams[0].__class__ = BrokenStream
        backend.answer_http2 = echo
        await ask(pool)  # over another connection
        backend.streams[0].peer.ping()  # who reads looks up
        assert isinstance(await reader.outcome_in_time(10.0), WriteError)
    assert len(backend.streams) == 2


class HopefulStream(PromptStream):
    """Takes for readable what is only half a record of TLS."""

    def get_extra_info(self, info: str) -> Any:
        return True if info == "is_readable" else super().get_extra_info(info)


@on_loops
async def test_a_stream_that_is_less_readable_than_it_says_keeps_the_time_limits_F01() -> None:
    backend, pool = shared()
    async with pool, Jobs() as jobs:
        await ask(pool)
        backend.streams[0].__class__ = HopefulStream
        backend.answer_http2 = lambda asked: None
        job = jobs.start(lambda: pool.request("GET", url(), extensions={"timeout": {"read": 1.0}}))
        assert isinstance(await job.outcome_in_time(10.0), ReadTimeout)
        check_shared(pool, backend)


@on_loops
async def test_a_custom_stream_that_raises_something_foreign_at_the_farewell() -> None:
    backend, pool = shared(lambda asked: asked.respond(b"some", ends=False), is_custom=True)
    async with pool:
        async with pool.stream("GET", url()) as response:
            stream: Any = response.stream
            await anext(stream)

            async def write(*arguments: Any) -> None:
                raise OSError("not an error of the contract")

            custom: Any = backend.wrapped[0]
            custom.write = write
        assert backend.wrapped[0] is custom
        backend.answer_http2 = echo
        await ask(pool)
        assert pool._pool.stats().requests == 0
        await until(lambda: backend.streams[0].is_closed)


@on_loops
async def test_a_callback_that_cancels_the_task_that_connects() -> None:
    backend, pool = shared()

    async def trace(name: str, info: dict[str, Any]) -> None:
        if name == "connection.connect_tcp.started":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()

    async with pool:
        if running_runtime() == "asyncio":
            with pytest.raises(ConnectError, match="was cancelled"):
                await pool.request("GET", url(), extensions={"trace": trace})
        await ask(pool)
        check_shared(pool, backend)


@on_loops
async def test_a_closed_pool_leaves_nothing_to_the_garbage_collector() -> None:
    def fail(asked: Asked) -> None:
        asked.reset(CANCEL)

    for answer in (echo, fail):
        gc.collect()
        gc.disable()
        try:
            backend, pool = shared(answer)
            async with pool:
                try:
                    await ask(pool)
                except RemoteProtocolError:
                    assert answer is fail
                (connection,) = [weakref.ref(slot.connection) for slot in pool._pool._scheduler.slots()]
            assert backend.live == 0
            del pool
            await pause(0.1)
            assert connection() is None
        finally:
            gc.enable()


# --- between threads and processes -------------------------------------------------------------------------


class FakeConnection:
    """One whose capacity changes while somebody is about to tell the pool of it."""

    is_retired = False

    def __init__(self) -> None:
        self.now = 1
        self.on_look: Callable[[], object] | None = None

    @property
    def capacity(self) -> int:
        capacity, on_look, self.on_look = self.now, self.on_look, None
        if on_look is not None:
            on_look()
        return capacity


def test_the_pool_ends_up_with_the_latest_capacity_B11() -> None:
    """Of two threads that have each seen a change, the one with the older number comes last."""
    pool = AsyncConnectionPool(http2=True, network_backend=HTTP2Backend())._pool
    scheduler, connection = pool._scheduler, FakeConnection()
    waiter = Waiter("key")
    scheduler.acquire(waiter, 0.0, 100)
    slot = waiter.slot
    assert slot is not None
    scheduler.opened(waiter, connection, 0.0, 100)
    told: list[Any] = []

    def change() -> None:
        connection.now = 50
        _capacity_changed(weakref.ref(pool), slot, told[0])

    told.append(connection)
    connection.on_look = change
    _capacity_changed(weakref.ref(pool), slot, told[0])
    assert slot.capacity == 50
    scheduler.release(waiter, 0.0, reusable=False)


class NoStream:
    """A stream that does nothing."""

    is_prompt = True
    is_watchful = False
    has_unsent = False

    def __init__(self) -> None:
        self.sent = 0

    def write_now(self, buffer: Any) -> int:
        self.sent += len(buffer)
        return len(buffer)

    def abort(self) -> None:
        pass

    def close_now(self) -> None:
        pass


def lone_connection() -> HTTP2Connection:
    stream: Any = NoStream()
    return HTTP2Connection(stream, THREADS, is_blocking=True, ping_interval=None, ping_timeout=1.0)


def test_an_interrupt_does_not_keep_the_pool_from_hearing_of_the_end_G07() -> None:
    connection = lone_connection()
    told = []

    def on_change(_: HTTP2Connection) -> None:
        told.append(connection.capacity)
        if len(told) == 1:
            raise KeyboardInterrupt

    connection.on_change = on_change
    connection.session.goaway()
    with pytest.raises(KeyboardInterrupt):
        connection.announce()
    connection.announce()
    connection.announce()
    assert told == [0, 0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_does_not_wait_for_a_thread_that_it_does_not_have_I04() -> None:
    connection = lone_connection()
    exchange = connection.begin()
    exchange._stream = connection.session.open_stream(request(), b"http", ends=True, now=0.0)
    connection.enter(exchange._stream, exchange)
    is_held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with connection._lock:
            is_held.set()
            may_end.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    is_held.wait()
    child = os.fork()
    if child == 0:
        connection.abort()  # as a pool does when it finds itself in a child
        exchange.give_up()
        os._exit(0)
    try:
        for _ in range(600):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                break
            time.sleep(0.05)
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            status = 1
    finally:
        may_end.set()
        thread.join()
    assert status == 0
