"""The stream of asyncio over plain sockets: bytes, limits, cancellation, and the end of its life."""

import asyncio
import errno
import random
import socket
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from asyncio_peers import (
    LOOP_NAMES,
    LOOPS,
    PATIENCE,
    Outcome,
    Peer,
    count,
    end_of,
    has_ended,
    in_a_wait,
    no_socket_left,
    nothing_left,
    pair,
    reset,
    transport_of,
    until,
)
from lamina_async_backends._asyncio import AsyncioBackend, AsyncioStream
from lamina_async_backends._asyncio_transport import TURNS
from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    DeadlineBlock,
    DeadlineExceeded,
    ReadError,
    ReadTimeout,
    UnsupportedProtocol,
    WriteError,
    WriteTimeout,
    close_deadline,
    open_deadline,
)

pytestmark = pytest.mark.anyio

LARGE = 32 * 1024 * 1024
"""Bytes; more than the kernel's buffers of a connection on loopback."""


@pytest.fixture(params=LOOPS, ids=LOOP_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with no_socket_left():
        yield


async def test_the_loop_is_the_one_that_is_meant(anyio_backend: Any) -> None:
    module = type(asyncio.get_running_loop()).__module__
    assert module.startswith("uvloop" if anyio_backend[1]["use_uvloop"] else "asyncio")


# --- bytes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview], ids=lambda make: make.__name__)
async def test_every_kind_of_buffer_is_sent_whole(make: Any) -> None:
    data = random.Random(1).randbytes(3_000_000)
    with pair() as (stream, theirs):
        received = bytearray()

        def receive() -> None:
            while len(received) < len(data):
                received.extend(theirs.recv(1 << 20))

        peer = Outcome(receive)
        await stream.write(make(data), timeout=PATIENCE)
        await peer.ended()
        assert received == data


async def test_an_empty_buffer_sends_nothing() -> None:
    with pair() as (stream, theirs):
        await stream.write(b"")
        await stream.write(b"x")
        assert theirs.recv(10) == b"x"


async def test_a_read_returns_what_has_come_and_no_more_than_asked_for() -> None:
    with pair() as (stream, theirs):
        theirs.sendall(b"abcdef")
        assert await stream.read(4) == b"abcd"
        assert await stream.read() == b"ef"


async def test_large_data_comes_in_order() -> None:
    data = random.Random(2).randbytes(5_000_000)
    with pair() as (stream, theirs):

        def send() -> None:
            theirs.sendall(data)
            theirs.shutdown(socket.SHUT_WR)

        peer = Outcome(send)
        received = bytearray()
        sizes = random.Random(3)
        while piece := await stream.read(sizes.randint(1, 200_000), timeout=PATIENCE):
            received += piece
        await peer.ended()
        assert received == data


async def test_the_end_stays_the_end_and_our_side_stays_open() -> None:
    with pair() as (stream, theirs):
        theirs.shutdown(socket.SHUT_WR)
        assert [await stream.read() for _ in range(3)] == [b"", b"", b""]
        await stream.write(b"still here")
        assert theirs.recv(100) == b"still here"


async def test_a_reset_is_an_error_that_stays() -> None:
    with pair() as (stream, theirs):
        reset(theirs)
        for _ in range(2):
            with pytest.raises(ReadError) as caught:
                await stream.read(timeout=PATIENCE)
            assert caught.value.errno == errno.ECONNRESET
            assert caught.value.message == "the connection broke: Connection reset by peer"
            assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_bytes_that_came_before_a_reset_can_be_read() -> None:
    with pair() as (stream, theirs):
        writing = asyncio.ensure_future(stream.write(bytes(LARGE)))
        await in_a_wait(writing)
        theirs.sendall(b"the answer")
        reset(theirs)  # what we have sent is unread there
        assert isinstance(await end_of(writing), WriteError)
        assert await stream.read() == b"the answer"
        with pytest.raises(ReadError):
            await stream.read()


async def test_a_writer_learns_that_the_peer_has_gone() -> None:
    with pair() as (stream, theirs):
        theirs.close()
        with pytest.raises(WriteError) as caught:
            for _ in range(1000):
                await stream.write(b"x" * 1000, timeout=PATIENCE)
        assert caught.value.errno in (errno.EPIPE, errno.ECONNRESET)
        assert caught.value.phase == "write"


# --- turns of the loop ----------------------------------------------------------------------------------------


async def turns_taken(operation: Any) -> bool:
    """Whether other callbacks of the loop ran before the operation was done."""
    ran: list[None] = []
    asyncio.get_running_loop().call_soon(ran.append, None)
    await operation
    return bool(ran)


async def test_what_need_not_wait_takes_no_turn_of_the_loop() -> None:
    with pair() as (stream, theirs):
        assert not await turns_taken(stream.write(b"x" * 1000))
        theirs.sendall(b"y" * 60_000)
        ours = stream.get_extra_info("socket")
        await until(lambda: stream.get_extra_info("is_readable"))
        await until(lambda: len(ours.recv(60_000, socket.MSG_PEEK)) == 60_000)
        assert await turns_taken(stream.read(30_000))
        assert not await turns_taken(stream.read(30_000))
        assert not await turns_taken(stream.aclose())


async def test_a_task_that_never_waits_does_not_hold_up_the_others() -> None:
    def pour(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(1 << 20))

    with Peer(pour) as source, Peer(count) as sink:
        backend = AsyncioBackend()
        async with (
            await backend.connect_tcp("127.0.0.1", source.port) as incoming,
            await backend.connect_tcp("127.0.0.1", sink.port) as outgoing,
        ):
            operations_of_all_kinds: tuple[Callable[[], Awaitable[object]], ...] = (
                incoming.read,
                lambda: outgoing.write(b"x" * 10),
                lambda: outgoing.write_until_readable(b"x" * 10),
            )
            for operation in operations_of_all_kinds:
                done = asyncio.Event()
                for _ in range(20):
                    asyncio.get_running_loop().call_soon(done.set)
                    operations = 0
                    while not done.is_set():
                        await operation()
                        operations += 1
                        assert operations <= 2 * TURNS
                    done.clear()


async def test_nothing_is_read_ahead() -> None:
    with pair() as (stream, theirs):
        theirs.sendall(b"x")
        assert await stream.read() == b"x"  # the loop watches the socket from now on
        theirs.settimeout(0)
        tracemalloc.start()
        try:
            sent = 0
            for _ in range(2000):
                try:
                    sent += theirs.send(bytes(65536))
                except BlockingIOError:
                    pass
                await asyncio.sleep(0)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert sent < 2000 * 65536  # the kernel's buffers are full, and nobody emptied them
        assert peak < 500_000


async def test_an_idle_connection_that_ends_is_not_watched_over_and_over() -> None:
    with pair() as (stream, theirs):
        theirs.sendall(b"x")
        assert await stream.read() == b"x"
        theirs.shutdown(socket.SHUT_WR)
        calls = 0
        original = transport_of(stream)._on_readable

        def counting() -> None:
            nonlocal calls
            calls += 1
            original()

        asyncio.get_running_loop().add_reader(transport_of(stream)._fd, counting)
        for _ in range(50):
            await asyncio.sleep(0.0)
        assert calls <= 1
        assert await stream.read() == b""


async def test_an_idle_connection_whose_peer_sends_unasked_costs_one_callback() -> None:
    with pair() as (stream, theirs):
        theirs.sendall(b"x")
        assert await stream.read() == b"x"  # the loop watches the socket from now on
        calls = 0
        original = transport_of(stream)._on_readable

        def counting() -> None:
            nonlocal calls
            calls += 1
            original()

        asyncio.get_running_loop().add_reader(transport_of(stream)._fd, counting)
        for _ in range(50):
            theirs.sendall(b"unasked")
            await asyncio.sleep(0)
        assert calls <= 1
        received = b""
        while len(received) < 50 * 7:
            received += await stream.read()
        assert received == b"unasked" * 50


# --- limits --------------------------------------------------------------------------------------------------


async def test_a_read_that_times_out_tells_and_may_be_repeated() -> None:
    with pair() as (stream, theirs):
        with pytest.raises(ReadTimeout) as caught:
            await stream.read(timeout=0.01)
        assert (caught.value.phase, caught.value.limit) == ("read", 0.01)
        assert caught.value.elapsed is not None
        assert caught.value.elapsed >= 0.009
        theirs.sendall(b"late")
        assert await stream.read(timeout=PATIENCE) == b"late"


async def test_a_limit_that_has_passed_allows_no_io() -> None:
    with pair() as (stream, theirs):
        theirs.sendall(b"kept")
        await until(lambda: stream.get_extra_info("is_readable"))
        with pytest.raises(ReadTimeout):
            await stream.read(timeout=0)
        with pytest.raises(WriteTimeout):
            await stream.write(b"never sent", timeout=0)
        await stream.write(b"sent")  # nothing was broken off
        assert theirs.recv(100) == b"sent"
        assert await stream.read() == b"kept"


async def test_a_write_that_times_out_leaves_a_stream_that_can_only_be_closed() -> None:
    with pair() as (stream, theirs):
        with pytest.raises(WriteTimeout) as caught:
            await stream.write(bytes(LARGE), timeout=0.05)
        assert (caught.value.phase, caught.value.limit) == ("write", 0.05)
        with pytest.raises(WriteError, match="an earlier write was not completed"):
            await stream.write(b"more")
        await stream.aclose()
        assert has_ended(theirs)


@pytest.mark.parametrize("side", ["read", "write"])
async def test_the_ambient_deadline_ends_a_wait(side: Any) -> None:
    with pair() as (stream, _):
        deadline = open_deadline(0.05, asyncio.get_running_loop().time)
        try:
            with pytest.raises(DeadlineExceeded) as caught:
                await (stream.read(timeout=PATIENCE) if side == "read" else stream.write(bytes(LARGE)))
        finally:
            close_deadline(deadline)
        assert (caught.value.phase, caught.value.limit) == (side, 0.05)
        assert caught.value.deadline is deadline


async def test_a_deadline_that_is_brought_forward_ends_a_wait() -> None:
    with pair() as (stream, _):
        deadline = open_deadline(3600, asyncio.get_running_loop().time)
        try:
            reading = asyncio.ensure_future(stream.read())
            await in_a_wait(reading)
            deadline.reschedule(0)
            assert isinstance(await end_of(reading), DeadlineExceeded)
        finally:
            close_deadline(deadline)


@pytest.mark.parametrize("side", ["read", "write"])
async def test_a_wait_that_its_deadline_cancels_leaves_what_it_knows(side: Any) -> None:
    with pair() as (stream, _):
        now = [0.0]
        deadline = open_deadline(1.0, lambda: now[0])
        try:
            operation = stream.read() if side == "read" else stream.write(bytes(LARGE))
            waiting = asyncio.ensure_future(operation)
            await in_a_wait(waiting)
            now[0] = 1.0
            waiting.cancel()
            assert isinstance(await end_of(waiting), asyncio.CancelledError)
            assert deadline.interruption is not None
            assert deadline.interruption.phase == side
        finally:
            close_deadline(deadline)


@pytest.mark.parametrize("side", ["read", "write"])
async def test_a_block_with_a_deadline_names_the_phase(side: Any) -> None:
    """Whichever comes first, the wait's own look at the clock or the block's cancellation."""
    with pair() as (stream, _):
        block = DeadlineBlock(0.05)
        block.open()
        try:
            await (stream.read() if side == "read" else stream.write(bytes(LARGE)))
        except BaseException as exc:  # noqa: BLE001 - a cancellation too
            error = block.close(type(exc), exc, exc.__traceback__) or exc
        else:
            raise AssertionError("it did not end")
        assert isinstance(error, DeadlineExceeded)
        assert (error.phase, error.limit) == (side, 0.05)


@pytest.mark.parametrize("side", ["read", "write"])
async def test_a_loop_that_refuses_to_watch_a_socket(side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "add_reader", refuse)
    monkeypatch.setattr(loop, "add_writer", refuse)
    with pair() as (stream, _):
        with pytest.raises(
            ReadError if side == "read" else WriteError, match="cannot watch the socket"
        ) as caught:
            await (stream.read() if side == "read" else stream.write(bytes(LARGE)))
        assert (caught.value.errno, caught.value.phase) == (errno.ENOSPC, side)


@pytest.mark.parametrize("size", [0, -1, True, "1"])
async def test_a_size_that_makes_no_sense_is_refused(size: Any) -> None:
    with pair() as (stream, _), pytest.raises((ArgumentValueError, ArgumentTypeError)):
        await stream.read(size)


# --- cancellation ---------------------------------------------------------------------------------------------


async def test_a_cancelled_read_loses_nothing() -> None:
    with pair() as (stream, theirs):
        reading = asyncio.ensure_future(stream.read())
        await in_a_wait(reading)
        reading.cancel()
        assert isinstance(await end_of(reading), asyncio.CancelledError)
        theirs.sendall(b"after")
        assert await stream.read(timeout=PATIENCE) == b"after"


async def test_a_cancelled_write_leaves_a_stream_that_can_only_be_closed() -> None:
    with pair() as (stream, theirs):
        writing = asyncio.ensure_future(stream.write(bytes(LARGE)))
        await in_a_wait(writing)
        writing.cancel()
        assert isinstance(await end_of(writing), asyncio.CancelledError)
        with pytest.raises(WriteError, match="an earlier write was not completed"):
            await stream.write(b"more")
        theirs.sendall(b"x")
        assert await stream.read(timeout=PATIENCE) == b"x"
        with nothing_left():
            stream.abort()
        assert has_ended(theirs)


async def test_bytes_and_the_end_of_a_wait_in_the_same_turn(anyio_backend: Any) -> None:
    """The bytes are delivered by this read or by the next one, whatever ended it, and in whatever order."""
    loop = asyncio.get_running_loop()
    rounds = 10_000 if not anyio_backend[1].get("debug") else 2_000
    chance = random.Random(4)
    supply = bytes(range(256)) * 2
    received = bytearray()
    sent = 0
    outcomes = {"bytes": 0, "timeout": 0, "cancelled": 0}
    with pair() as (stream, theirs):
        for _ in range(rounds):
            kind = chance.choice(["timeout", "timer in the same turn", "cancel first", "cancel later"])
            timeout = chance.choice([0.00001, 0.0005]) if kind == "timeout" else None
            reading = loop.create_task(stream.read(chance.randint(1, 20), timeout=timeout))
            for _ in range(chance.randint(0, 2)):
                await asyncio.sleep(0)
            if kind == "cancel first":
                reading.cancel()
            size = chance.randint(1, 20)
            theirs.sendall(supply[sent % 256 :][:size])
            sent += size
            if kind == "timer in the same turn":
                waiter = transport_of(stream)._read_waiter
                if waiter is not None and not waiter.done():
                    waiter.set_result(None)
            for _ in range(chance.randint(0, 3)):
                await asyncio.sleep(0)
            if kind == "cancel later":
                reading.cancel()
            await asyncio.wait([reading])
            if reading.cancelled():
                outcomes["cancelled"] += 1
            elif isinstance(reading.exception(), ReadTimeout):
                outcomes["timeout"] += 1
            else:
                outcomes["bytes"] += 1
                received += reading.result()
        while len(received) < sent:
            received += await stream.read(timeout=PATIENCE)
        assert received == (bytes(range(256)) * (sent // 256 + 1))[:sent]
        assert not stream.get_extra_info("is_readable")
    assert outcomes["bytes"]
    assert outcomes["cancelled"]


# --- several users --------------------------------------------------------------------------------------------


async def test_two_readers_or_two_writers_are_refused_and_one_of_each_is_not() -> None:
    with pair() as (stream, theirs):
        reading = asyncio.ensure_future(stream.read())
        writing = asyncio.ensure_future(stream.write(bytes(LARGE)))
        await in_a_wait(reading)
        await in_a_wait(writing)
        with pytest.raises(ConcurrencyError, match="another task is reading"):
            await stream.read()
        with pytest.raises(ConcurrencyError, match="another task is writing"):
            await stream.write(b"x")
        with pytest.raises(ConcurrencyError):
            await stream.write_until_readable(b"x")
        theirs.sendall(b"hello")
        assert await reading == b"hello"
        peer = Outcome(lambda: count(theirs))
        await writing
        await stream.aclose()
        assert await peer.ended() == LARGE


async def test_another_loop_is_refused() -> None:
    with pair() as (stream, theirs):

        async def use() -> None:
            for operation in (stream.read(), stream.write(b"x"), stream.write_until_readable(b"x")):
                with pytest.raises(ConcurrencyError, match="belongs to another event loop"):
                    await operation

        Outcome(lambda: asyncio.run(use())).result()
        await stream.write(b"here")
        assert theirs.recv(10) == b"here"


# --- the end --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["aclose", "close_now", "abort"])
async def test_closing_wakes_those_who_wait(way: str) -> None:
    with pair() as (stream, theirs):
        reading = asyncio.ensure_future(stream.read())
        writing = asyncio.ensure_future(stream.write(bytes(LARGE)))
        await in_a_wait(reading)
        await in_a_wait(writing)
        result = getattr(stream, way)()
        if way == "aclose":
            await result
        for task, error in ((reading, ReadError), (writing, WriteError)):
            raised = await end_of(task)
            assert isinstance(raised, error)
            assert raised.message == "the stream is closed"
        assert has_ended(theirs)


async def test_a_closed_stream_says_so_and_may_be_closed_again() -> None:
    with pair() as (stream, _):
        for _ in range(2):
            await stream.aclose()
            stream.abort()
        for operation, error in (
            (stream.read(), ReadError),
            (stream.write(b"x"), WriteError),
            (stream.write_until_readable(b"x"), WriteError),
        ):
            with pytest.raises(error, match="the stream is closed"):
                await operation
        assert stream.get_extra_info("is_readable") is True
        assert stream.get_extra_info("server_addr") is not None
        assert repr(stream).startswith("<AsyncioStream [closed, 127.0.0.1:")


async def test_closing_with_a_time_to_linger_does_not_block() -> None:
    with pair() as (stream, theirs):
        theirs.settimeout(0)
        linger = (1).to_bytes(4, sys.byteorder) + (30).to_bytes(4, sys.byteorder)
        stream.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        with pytest.raises(WriteTimeout):
            await stream.write(bytes(LARGE), timeout=0.01)
        loop = asyncio.get_running_loop()
        start = loop.time()
        await stream.aclose()
        assert loop.time() - start < 10


async def test_another_thread_may_abort() -> None:
    with pair() as (stream, theirs):
        reading = asyncio.ensure_future(stream.read())
        await in_a_wait(reading)
        with nothing_left():
            Outcome(stream.abort).result()
            raised = await end_of(reading)
        assert isinstance(raised, ReadError)
        assert raised.message == "the stream is closed"
        assert has_ended(theirs)


def stream_of_a_loop(anyio_backend: Any) -> tuple[Any, AsyncioStream, socket.socket]:
    """A loop that stands still, and a stream of it that the loop still watches."""
    if anyio_backend[1]["use_uvloop"]:
        import uvloop

        loop: Any = uvloop.new_event_loop()
    else:
        loop = asyncio.new_event_loop()
    loop.set_debug(anyio_backend[1].get("debug", False))
    ours, theirs = socket.socketpair()
    theirs.sendall(b"x")

    async def make() -> AsyncioStream:
        stream = await AsyncioStream.from_socket(ours)
        assert await stream.read() == b"x"
        return stream

    return loop, loop.run_until_complete(make()), theirs


@pytest.mark.parametrize("closed", [False, True], ids=["stopped", "closed"])
@pytest.mark.parametrize("thread", [False, True], ids=["same thread", "other thread"])
def test_a_stream_outlives_its_loop_and_can_be_aborted(
    anyio_backend: Any, *, closed: bool, thread: bool
) -> None:
    loop, stream, theirs = stream_of_a_loop(anyio_backend)
    with theirs:
        if closed:
            loop.close()
        if thread:
            Outcome(stream.abort).result()
        else:
            stream.abort()
        stream.abort()
        assert has_ended(theirs)
        loop.close()


def test_aborting_while_the_loop_stands_still_wakes_those_who_wait(anyio_backend: Any) -> None:
    loop, stream, theirs = stream_of_a_loop(anyio_backend)
    with theirs:

        async def begin() -> asyncio.Task[bytes]:
            reading = asyncio.ensure_future(stream.read())
            await in_a_wait(reading)
            return reading

        reading = loop.run_until_complete(begin())
        Outcome(stream.abort).result()
        with pytest.raises(ReadError, match="the stream is closed"):
            loop.run_until_complete(reading)
        loop.close()


@pytest.mark.parametrize("state", ["running", "stopped", "closed"])
def test_a_stream_that_nobody_holds_is_closed_with_a_warning(anyio_backend: Any, state: str) -> None:
    loop, stream, theirs = stream_of_a_loop(anyio_backend)
    streams = [stream]
    del stream
    with theirs:
        if state == "closed":
            loop.close()

        async def drop() -> None:
            streams.clear()

        with pytest.warns(ResourceWarning, match=r"unclosed <AsyncioStream \[open, "):
            if state == "running":
                loop.run_until_complete(drop())
            else:
                streams.clear()
        assert has_ended(theirs)
        loop.close()


def test_a_stream_whose_timer_is_set_outlives_its_loop(anyio_backend: Any) -> None:
    loop, stream, theirs = stream_of_a_loop(anyio_backend)
    with theirs:

        async def read() -> None:
            reading = loop.create_task(stream.read(timeout=PATIENCE))
            await in_a_wait(reading)
            theirs.sendall(b"x")
            assert await reading == b"x"

        loop.run_until_complete(read())
        assert transport_of(stream)._alarm._handle is not None
        loop.close()
        stream.abort()
        assert has_ended(theirs)


def test_a_loop_that_ends_before_it_frees_the_socket_leaves_none(anyio_backend: Any) -> None:
    loop, stream, theirs = stream_of_a_loop(anyio_backend)
    streams = [stream]
    del stream
    with theirs:

        def abort_and_forget() -> None:
            streams[0].abort()
            streams.clear()

        async def abort_elsewhere() -> None:
            Outcome(abort_and_forget).result()
            loop.stop()  # which ends after this turn, and before what another thread has asked for

        loop.create_task(abort_elsewhere())
        loop.run_forever()
        loop.close()
        assert has_ended(theirs)


def run_script(text: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(text), *arguments],
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system does not fork")
@pytest.mark.parametrize("way", ["abort", "close_now", "drop", "use"])
def test_a_forked_child_leaves_the_parent_s_stream_alone(way: str) -> None:
    script = """
        import asyncio, os, socket, sys
        from lamina_async_backends._asyncio import AsyncioStream
        from lamina_interfaces import ReadError, WriteError

        async def main():
            ours, theirs = socket.socketpair()
            stream = AsyncioStream(ours)
            theirs.sendall(b"1")
            assert await stream.read() == b"1"
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    match sys.argv[1]:
                        case "use":
                            assert stream.get_extra_info("is_readable") is True
                            for operation, error in ((stream.read(), ReadError), (stream.write(b"x"), WriteError)):
                                try:
                                    await operation
                                except error as exc:
                                    assert "belongs to the parent process" in str(exc)
                            stream.abort()
                        case "drop":
                            del stream
                        case way:
                            getattr(stream, way)()
                    assert ours.fileno() < 0
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
            reading = asyncio.ensure_future(stream.read())
            await asyncio.sleep(0)
            theirs.sendall(b"2")
            assert await asyncio.wait_for(reading, 20) == b"2"
            await stream.write(b"3")
            assert theirs.recv(10) == b"3"
            await stream.aclose()
            theirs.close()

        asyncio.run(main())
        print("fine")
    """
    assert run_script(script, way) == "fine\n"


# --- looking --------------------------------------------------------------------------------------------------


async def test_is_readable_tells_how_things_are_now() -> None:
    with pair() as (stream, theirs):
        assert stream.get_extra_info("is_readable") is False
        theirs.sendall(b"xy")
        await until(lambda: stream.get_extra_info("is_readable"))
        assert await stream.read(1) == b"x"
        assert stream.get_extra_info("is_readable") is True
        assert await stream.read() == b"y"
        assert stream.get_extra_info("is_readable") is False
        reading = asyncio.ensure_future(stream.read())
        await in_a_wait(reading)
        assert stream.get_extra_info("is_readable") is False  # what comes is that task's
        theirs.shutdown(socket.SHUT_WR)
        assert await reading == b""
        assert stream.get_extra_info("is_readable") is True


async def test_a_reset_is_readable() -> None:
    with pair() as (stream, theirs):
        reset(theirs)
        await until(lambda: stream.get_extra_info("is_readable"))


async def test_what_a_stream_tells_about_itself() -> None:
    with pair() as (stream, theirs):
        assert stream.get_extra_info("client_addr") == theirs.getpeername()
        assert stream.get_extra_info("server_addr") == theirs.getsockname()
        assert stream.get_extra_info("socket").fileno() == transport_of(stream)._fd
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("timings") == ()
        assert stream.get_extra_info("anything else") is None
        assert repr(stream) == f"<AsyncioStream [open, 127.0.0.1:{theirs.getsockname()[1]}]>"


# --- writing until an answer comes -----------------------------------------------------------------------------


async def test_a_write_stops_when_the_peer_answers() -> None:
    with pair() as (stream, theirs):
        writing = asyncio.ensure_future(stream.write_until_readable(bytes(LARGE)))
        await in_a_wait(writing)
        theirs.sendall(b"no thanks")
        sent = await asyncio.wait_for(writing, PATIENCE)
        assert 0 < sent < LARGE
        assert await stream.read() == b"no thanks"


async def test_a_write_that_nobody_answers_sends_everything() -> None:
    with pair() as (stream, theirs):
        peer = Outcome(lambda: count(theirs))
        assert await stream.write_until_readable(bytes(LARGE), timeout=PATIENCE) == LARGE
        await stream.aclose()
        assert await peer.ended() == LARGE


async def test_an_answer_that_is_there_already_stops_a_write_before_it_begins() -> None:
    with pair() as (stream, theirs):
        theirs.sendall(b"x")
        await until(lambda: stream.get_extra_info("is_readable"))
        assert await stream.write_until_readable(b"abc") == 0


async def test_a_reset_after_the_answer_does_not_take_the_answer_away() -> None:
    with pair() as (stream, theirs):
        writing = asyncio.ensure_future(stream.write_until_readable(bytes(LARGE)))
        await in_a_wait(writing)
        theirs.sendall(b"413")
        reset(theirs)
        assert await asyncio.wait_for(writing, PATIENCE) < LARGE
        assert await stream.read() == b"413"


async def test_a_write_until_readable_has_a_limit() -> None:
    with pair() as (stream, _):
        with pytest.raises(WriteTimeout):
            await stream.write_until_readable(bytes(LARGE), timeout=0.05)
        with pytest.raises(WriteError, match="an earlier write was not completed"):
            await stream.write(b"x")


async def test_a_reader_hears_the_answer_while_another_task_writes() -> None:
    with pair() as (stream, theirs):
        reading = asyncio.ensure_future(stream.read())
        await in_a_wait(reading)
        writing = asyncio.ensure_future(stream.write_until_readable(bytes(LARGE)))
        await in_a_wait(writing)
        theirs.sendall(b"x")
        assert await reading == b"x"
        peer = Outcome(lambda: count(theirs))
        assert await writing == LARGE
        await stream.aclose()
        assert await peer.ended() == LARGE


# --- memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", ["plain", "tls"])
def test_a_large_buffer_is_not_copied(layer: str) -> None:
    script = """
        import asyncio, socket, sys, threading, tracemalloc
        sys.path[:0] = sys.argv[2].split(";")
        from asyncio_peers import Peer, client_context, over_tls
        from lamina_async_backends._asyncio import AsyncioBackend

        plain = sys.argv[1] == "plain"
        size = 200_000_000 if plain else 50_000_000

        def take_all(connection):
            total = 0
            while total < size:
                total += len(connection.recv(65536))
            connection.sendall(b"thanks")

        async def main():
            data = bytes(size)
            with Peer(take_all if plain else over_tls(take_all)) as peer:
                stream = await AsyncioBackend().connect_tcp("127.0.0.1", peer.port)
                if not plain:
                    await stream.start_tls(client_context(), "server.example")
                tracemalloc.start()
                await stream.write(data)
                _, peak = tracemalloc.get_traced_memory()
                tracemalloc.stop()
                assert await stream.read() == b"thanks"
                await stream.aclose()
            print(peak)

        asyncio.run(main())
    """
    peak = int(run_script(script, layer, ";".join(path for path in sys.path if path)))
    assert peak < 8_000_000


async def test_a_connection_takes_little_memory() -> None:
    pairs = [socket.socketpair() for _ in range(100)]
    streams = []
    tracemalloc.start()
    try:
        for ours, theirs in pairs:
            stream = AsyncioStream(ours)
            theirs.send(b"x")
            await stream.read()
            streams.append(stream)
        current, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for stream in streams:
        stream.abort()
    for _, theirs in pairs:
        theirs.close()
    assert current / len(pairs) < 8_000


# --- making one -----------------------------------------------------------------------------------------------


async def test_what_is_no_plain_connected_socket_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="takes a plain socket, not int"):
        AsyncioStream(1)  # type: ignore[arg-type] # that is the test
    with socket.socket() as sock:
        sock.close()
        with pytest.raises(ArgumentValueError, match="the socket is closed"):
            AsyncioStream(sock)


async def test_a_socket_can_be_wrapped_by_the_backend() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        async with await AsyncioBackend().wrap_socket(ours) as stream:
            await stream.write(b"x")
            assert theirs.recv(1) == b"x"
            assert repr(stream) == "<AsyncioStream [open, an unnamed peer]>"


def test_without_a_loop_there_is_no_stream(anyio_backend: Any) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ConcurrencyError, match="no event loop of asyncio is running here"):
        AsyncioStream(ours)


def test_a_loop_that_cannot_watch_sockets_is_refused() -> None:
    class Proactor(asyncio.SelectorEventLoop):
        add_reader = asyncio.AbstractEventLoop.add_reader  # as Windows' ProactorEventLoop has it

    async def use() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            with pytest.raises(UnsupportedProtocol, match="Proactor cannot watch sockets"):
                AsyncioStream(ours)
            with pytest.raises(UnsupportedProtocol):
                await AsyncioBackend().connect_tcp("127.0.0.1", 1)

    loop = Proactor()
    try:
        loop.run_until_complete(use())
    finally:
        loop.close()
