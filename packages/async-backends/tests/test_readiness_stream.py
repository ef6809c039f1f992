"""The streams of trio and anyio: bytes, limits, cancellation, closing. TLS is in `test_readiness_tls`."""

import asyncio
import gc
import os
import re
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import warnings
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio
import trio.testing

from lamina_async_backends import AnyIOStream, TrioBackend, TrioStream
from lamina_async_backends._readiness import Waiter
from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    DeadlineExceeded,
    ReadError,
    ReadTimeout,
    WriteError,
    WriteTimeout,
    close_deadline,
    current_runtime,
    open_deadline,
)
from readiness_peers import PATIENCE, Peer, drain, echo, has_ended, rounds, silent, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left")]

Pair = tuple[Any, socket.socket]

MUCH = bytes(32 * 1024 * 1024)
"""More than all buffers of a connection hold."""

RESET = struct.pack("ii", 1, 0)
"""For SO_LINGER: end by a reset."""


# --- bytes -------------------------------------------------------------------------------------------------


async def test_bytes_go_both_ways_and_the_end_stays_the_end(backend: Any) -> None:
    with Peer(echo) as peer:
        async with await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
            await stream.write(b"")
            await stream.write(bytearray(b"hello"))
            assert await stream.read(2, timeout=PATIENCE) == b"he"
            assert await stream.read(timeout=PATIENCE) == b"llo"
            stream.get_extra_info("socket").shutdown(socket.SHUT_WR)
            assert [await stream.read(timeout=PATIENCE) for _ in range(3)] == [b"", b"", b""]
            assert repr(stream) == f"<{type(stream).__name__} [open, 127.0.0.1:{peer.port}]>"
        assert "closed" in repr(stream)


async def test_much_goes_through_at_once_in_both_directions(backend: Any) -> None:
    sent = os.urandom(1 << 16) * 80
    with Peer(echo) as peer:
        async with await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
            got = bytearray()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.write, sent)
                while len(got) < len(sent):
                    got += await stream.read(timeout=PATIENCE)
            assert got == sent


async def test_a_reset_is_an_error_but_the_answer_before_it_is_read(backend: Any) -> None:
    def answer_and_reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.sendall(b"answer")
        heard.wait(PATIENCE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    heard = threading.Event()
    with Peer(answer_and_reset) as peer:
        async with await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
            await stream.write(b"?")
            await until(lambda: stream.get_extra_info("is_readable"))
            heard.set()
            await until(lambda: peer.ended)
            with pytest.raises(WriteError) as broken:
                for _ in range(10):
                    await stream.write(b"more")
            assert broken.value.errno
            assert broken.value.phase == "write"
            with pytest.raises(WriteError, match="an earlier write was not completed"):
                await stream.write(b"more")
            with pytest.raises(WriteError, match="an earlier write was not completed"):
                await stream.write_until_readable(b"more")
            assert await stream.read(timeout=PATIENCE) == b"answer"
            for _ in range(2):
                with pytest.raises(ReadError, match="broke"):
                    await stream.read(timeout=PATIENCE)


async def test_the_end_stays_the_end_though_writing_finds_the_peer_gone(backend: Any) -> None:
    with Peer(lambda connection: connection.recv(1)) as peer:
        async with await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
            await stream.write(b"!")
            assert await stream.read(timeout=PATIENCE) == b""
            with pytest.raises(WriteError):
                for _ in range(1000):
                    await stream.write(b"more")
                    await anyio.sleep(0.001)
            assert await stream.read(timeout=PATIENCE) == b""


async def test_a_cut_connection_tells_its_errno(backend: Any) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)  # not before the client has noticed that it is connected
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    with Peer(reset) as peer:
        async with await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
            await stream.write(b"!")
            with pytest.raises(ReadError, match="broke") as caught:
                await stream.read(timeout=PATIENCE)
            assert caught.value.errno
            assert isinstance(caught.value.__cause__, OSError)


async def test_every_read_and_write_lets_other_tasks_run(pair: Pair) -> None:
    """A peer that is always faster must not starve the others."""
    stream, theirs = pair
    turns = 0
    enough = False

    async def count() -> None:
        nonlocal turns
        while not enough:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        await rounds(2)
        before = turns
        for _ in range(20):
            await stream.write(b"x")
        assert turns >= before + 19  # trio draws lots for who is first in a round
        for size in (20, 20_000):
            theirs.sendall(bytes(4 * size))
            before = turns
            for _ in range(4):
                assert len(await stream.read(size)) == size
            assert turns >= before + 3
        enough = True


# --- limits ------------------------------------------------------------------------------------------------


async def test_a_read_that_took_too_long_may_be_repeated(pair: Pair) -> None:
    stream, theirs = pair
    with pytest.raises(ReadTimeout) as caught:
        await stream.read(timeout=0.02)
    assert caught.value.phase == "read"
    assert caught.value.limit == 0.02
    theirs.sendall(b"late")
    assert await stream.read(timeout=PATIENCE) == b"late"


async def test_a_write_that_took_too_long_is_the_last(pair: Pair) -> None:
    stream, theirs = pair
    with pytest.raises(WriteTimeout):
        await stream.write(MUCH, timeout=0.02)
    with pytest.raises(WriteError, match="an earlier write was not completed"):
        await stream.write(b"more")
    theirs.sendall(b"still heard")
    assert await stream.read(timeout=PATIENCE) == b"still heard"


async def test_a_limit_that_has_passed_allows_nothing(pair: Pair) -> None:
    stream, theirs = pair
    theirs.sendall(b"x")
    with pytest.raises(ReadTimeout):
        await stream.read(timeout=0)
    with pytest.raises(WriteTimeout):
        await stream.write(b"y", timeout=0)
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)
    assert await stream.read(timeout=PATIENCE) == b"x"
    await stream.write(b"z", timeout=PATIENCE)
    assert theirs.recv(2) == b"z"


async def test_a_deadline_ends_a_wait_with_its_phase(pair: Pair) -> None:
    stream, _ = pair
    for seconds, operation, phase in ((0.02, stream.read, "read"), (0.02, partial_write(stream), "write")):
        deadline = open_deadline(seconds, current_runtime().now)
        try:
            with pytest.raises(DeadlineExceeded) as caught:
                await operation()
        finally:
            close_deadline(deadline)
        assert caught.value.phase == phase
        assert caught.value.deadline is deadline


def partial_write(stream: Any) -> Any:
    return lambda: stream.write(MUCH, timeout=PATIENCE)


async def test_a_deadline_that_is_brought_forward_by_another_thread_is_noticed(pair: Pair) -> None:
    stream, _ = pair
    deadline = open_deadline(None, current_runtime().now)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial_reschedule, deadline)
            with pytest.raises(DeadlineExceeded):
                await stream.read()
    finally:
        close_deadline(deadline)


async def partial_reschedule(deadline: Any) -> None:
    await rounds(5)
    thread = threading.Thread(target=deadline.reschedule, args=(0,))
    thread.start()
    await until(lambda: not thread.is_alive())
    thread.join()


async def test_a_wait_that_is_cancelled_by_its_deadlines_scope_leaves_the_circumstances(pair: Pair) -> None:
    stream, _ = pair
    for operation, phase in ((stream.read, "read"), (lambda: stream.write(MUCH), "write")):
        deadline = open_deadline(0, current_runtime().now)
        deadline.reschedule(None)
        try:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def expire(deadline: Any = deadline, scope: Any = scope) -> None:
                        await rounds(5)
                        deadline.reschedule(0)
                        scope.cancel()

                    tasks.start_soon(expire)
                    await operation()
        finally:
            interruption = deadline.interruption
            close_deadline(deadline)
        assert scope.cancelled_caught
        assert interruption is not None
        assert interruption.phase == phase


def test_time_outs_go_by_trios_clock() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            async with TrioStream(ours) as stream:
                start = trio.current_time()
                with pytest.raises(ReadTimeout):
                    await stream.read(timeout=1000)
                assert trio.current_time() == start + 1000
                with trio.move_on_after(500):
                    await stream.read(timeout=1000)
                assert trio.current_time() == start + 1500
                await TrioBackend().sleep(100)
                assert trio.current_time() == start + 1600

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- cancellation ------------------------------------------------------------------------------------------


async def test_a_cancelled_read_loses_no_byte(backend: Any) -> None:
    """Cancelled after every number of rounds, while bytes come all the time."""
    total = 400_000

    def send(connection: socket.socket) -> None:
        counted = b"".join(struct.pack("!I", number) for number in range(total // 4))
        for start in range(0, total, 1000):
            connection.sendall(counted[start : start + 1000])

    with Peer(send) as peer:
        async with await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
            got = bytearray()
            attempt = 0
            while len(got) < total:
                attempt += 1
                assert attempt < 1_000_000
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(cancel_after, attempt % 7, scope)
                        # Kept in the same breath, as a caller would: what read has returned is not its to lose.
                        got += await stream.read(1 << (attempt % 16))
                        tasks.cancel_scope.cancel()
    assert bytes(got) == b"".join(struct.pack("!I", number) for number in range(total // 4))


async def cancel_after(count: int, scope: anyio.CancelScope) -> None:
    await rounds(count)
    scope.cancel()


async def test_a_read_that_asyncio_cancels_loses_no_byte(pair: Pair, runtime_name: str) -> None:
    if runtime_name != "asyncio":
        return  # there are no tasks of asyncio
    stream, theirs = pair
    got = bytearray()

    async def read() -> None:
        got.extend(await stream.read(16))

    for number in range(100):
        theirs.sendall(bytes([number]) * 8)
        while len(got) < 8 * (number + 1):
            task = asyncio.ensure_future(read())
            for _ in range(number % 5):
                await asyncio.sleep(0)
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                got += await stream.read(1, timeout=PATIENCE)
    assert got == b"".join(bytes([number]) * 8 for number in range(100))


@pytest.mark.parametrize("first", ["the scope", "the task"])
async def test_a_cancelled_task_of_asyncio_is_cancelled_though_a_wait_ends_in_the_same_moment(
    pair: Pair, runtime_name: str, first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait under a deadline looks up now and then; what cancels the task then must not be taken for that."""
    if runtime_name != "asyncio":
        return  # there are no tasks of asyncio
    monkeypatch.setattr("lamina_interfaces._deadlines.GLANCE_SECONDS", 0.02)
    stream, _ = pair
    loop = asyncio.get_running_loop()
    deadline = open_deadline(None, loop.time)
    try:
        task = asyncio.ensure_future(stream.read())
        await rounds(3)
        loop.call_later(0.001 if first == "the task" else 0.02, task.cancel)
        end = loop.time() + 0.03
        while loop.time() < end:
            pass  # both timers are due when the loop gets to look again
        await asyncio.wait([task], timeout=PATIENCE)
        assert task.cancelled()
    finally:
        close_deadline(deadline)


def is_stuck(stream: Any) -> bool:
    """Whether somebody waits to write."""
    return stream._transport._writable is not None


@pytest.mark.parametrize("timeout", [None, PATIENCE])
async def test_a_cancelled_task_of_asyncio_is_cancelled_though_one_of_two_waits_ends(
    backend: Any, runtime_name: str, timeout: float | None
) -> None:
    """In whatever turn: the nursery of the two waits cancels as well, for its own sake."""
    if runtime_name != "asyncio":
        return  # there are no tasks of asyncio
    for turns in range(8):
        ours, theirs = socket.socketpair()
        with theirs:
            stream = await backend.wrap_socket(ours)
            task = asyncio.ensure_future(stream.write_until_readable(MUCH, timeout=timeout))
            await until(partial(is_stuck, stream))
            theirs.sendall(b"stop")
            for _ in range(turns):
                await asyncio.sleep(0)
            is_cancelled = task.cancel()
            await asyncio.wait([task], timeout=PATIENCE)
            assert task.cancelled() == is_cancelled
            stream.abort()


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("urgent", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
async def test_of_several_failures_a_cancellation_or_an_interrupt_is_raised(
    backend: Any, urgent: type[BaseException], place: int, nested: bool
) -> None:
    """Lest it be swallowed."""
    errors: list[BaseException] = [ValueError("of a resolver's")]
    if urgent is not asyncio.CancelledError:
        errors.insert(place, asyncio.CancelledError())
    errors.insert(place, urgent())
    group = BaseExceptionGroup("", errors)
    if nested:
        group = BaseExceptionGroup("", [group])

    async def main(nursery: object) -> None:
        raise group

    waiter = Waiter(type(backend)._stream_class._library, current_runtime())
    with pytest.raises(urgent):
        await waiter.with_children(main)


async def test_a_timeout_of_asyncio_ends_a_read_and_a_write(pair: Pair, runtime_name: str) -> None:
    if runtime_name != "asyncio":
        return  # it works in its own loop only
    stream, theirs = pair
    for timeout in (None, PATIENCE):
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.02):
                await stream.read(timeout=timeout)
        assert not isinstance(caught.value, ReadTimeout)
    theirs.sendall(b"x")
    assert await stream.read(timeout=PATIENCE) == b"x"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.02):
            await stream.write(MUCH, timeout=PATIENCE)
    with pytest.raises(WriteError, match="not completed"):
        await stream.write(b"x")


async def test_a_cancelled_write_is_the_last(pair: Pair) -> None:
    stream, theirs = pair
    with anyio.move_on_after(0.02) as scope:
        await stream.write(MUCH, timeout=PATIENCE)
    assert scope.cancelled_caught
    with pytest.raises(WriteError, match="an earlier write was not completed"):
        await stream.write(b"more")
    await stream.aclose()
    assert has_ended(theirs)


async def test_closing_needs_no_turn_and_so_cannot_be_cancelled(pair: Pair) -> None:
    stream, theirs = pair
    closed = False
    with anyio.CancelScope() as scope:
        scope.cancel()
        await stream.aclose()
        closed = True
    assert closed
    assert stream.get_extra_info("socket").fileno() == -1
    assert has_ended(theirs)


async def test_an_operation_in_a_cancelled_scope_does_nothing(pair: Pair) -> None:
    stream, theirs = pair
    theirs.sendall(b"x")
    for operation in (stream.read, lambda: stream.write(b"y")):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await operation()
        assert scope.cancelled_caught
    assert await stream.read() == b"x"
    theirs.setblocking(False)
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


# --- several users -----------------------------------------------------------------------------------------


async def test_a_second_reader_or_writer_is_refused_and_disturbs_nobody(pair: Pair) -> None:
    stream, theirs = pair
    got: list[bytes] = []

    async def read() -> None:
        got.append(await stream.read(timeout=PATIENCE))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        tasks.start_soon(stream.write, MUCH)
        await until(lambda: stream._transport.users == 7)
        with pytest.raises(ConcurrencyError, match="another task is reading"):
            await stream.read()
        with pytest.raises(ConcurrencyError, match="another task is writing"):
            await stream.write(b"x")
        with pytest.raises(ConcurrencyError, match="another task is writing"):
            await stream.write_until_readable(b"x")
        theirs.sendall(b"hello")
        await until(lambda: got)
        reader = threading.Thread(target=drain_exactly, args=(theirs, len(MUCH)))
        reader.start()
        await until(lambda: not reader.is_alive())
        reader.join()
    assert got == [b"hello"]


def drain_exactly(sock: socket.socket, count: int) -> None:
    buffer = bytearray(1 << 18)
    while count:
        count -= sock.recv_into(buffer, min(count, len(buffer)))


async def test_a_socket_that_somebody_else_waits_for_is_an_error_of_ours(pair: Pair) -> None:
    stream, _ = pair
    library = type(stream)._library
    sock = stream.get_extra_info("socket")
    waiting = 0

    async def wait(ready: Any) -> None:
        nonlocal waiting
        waiting += 1
        await ready(sock)

    with pytest.raises(WriteTimeout):
        await stream.write_until_readable(MUCH, timeout=0.01)
    stream._transport._half_sent = False
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, library.wait_readable)
        tasks.start_soon(wait, library.wait_writable)
        await until(lambda: waiting == 2)
        for limit in (None, PATIENCE):
            with pytest.raises(ReadError, match="cannot watch the socket") as read:
                await stream.read(timeout=limit)
            assert read.value.phase == "read"
        with pytest.raises(WriteError, match="cannot watch the socket") as written:
            await stream.write(b"more", timeout=PATIENCE)
        assert written.value.phase == "write"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["aclose", "abort", "from another thread"])
async def test_who_waits_is_woken_when_the_stream_is_closed(pair: Pair, how: str) -> None:
    stream, theirs = pair
    caught: list[BaseException] = []

    async def expect(operation: Any, error: type[Exception]) -> None:
        with pytest.raises(error, match="the stream is closed") as info:
            await operation()
        caught.append(info.value)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(expect, stream.read, ReadError)
        tasks.start_soon(expect, lambda: stream.write(MUCH), WriteError)
        await until(lambda: stream._transport.users == 7)
        await rounds(3)
        if how == "aclose":
            await stream.aclose()
        elif how == "abort":
            stream.abort()
        else:
            thread = threading.Thread(target=stream.abort)
            thread.start()
            await until(lambda: not thread.is_alive())
            thread.join()
        await until(lambda: len(caught) == 2)
    assert stream.get_extra_info("socket").fileno() == -1
    assert has_ended(theirs)


async def test_an_upload_is_woken_when_the_stream_is_closed(pair: Pair) -> None:
    stream, theirs = pair
    async with anyio.create_task_group() as tasks:

        async def close() -> None:
            await until(lambda: stream._transport._writable is not None)
            await stream.aclose()

        tasks.start_soon(close)
        with pytest.raises(WriteError, match="the stream is closed"):
            await stream.write_until_readable(MUCH, timeout=PATIENCE)
    assert has_ended(theirs)


async def test_a_closed_stream_says_so(pair: Pair) -> None:
    stream, _ = pair
    await stream.aclose()
    await stream.aclose()
    stream.abort()
    with pytest.raises(ReadError, match="closed"):
        await stream.read()
    with pytest.raises(WriteError, match="closed"):
        await stream.write(b"x")
    with pytest.raises(WriteError, match="closed"):
        await stream.write_until_readable(b"x")
    assert stream.get_extra_info("is_readable") is True
    assert stream.get_extra_info("ssl_object") is None
    assert "closed" in repr(stream)


# --- the end of the run, the process and the object --------------------------------------------------------


def test_a_stream_can_be_aborted_when_its_run_is_over(world: Any) -> None:
    class_, runtime, options = world

    async def make(sock: socket.socket) -> Any:
        return await class_().wrap_socket(sock)

    ours, theirs = socket.socketpair()
    with theirs:
        stream = anyio.run(make, ours, backend=runtime, backend_options=options)
        theirs.settimeout(PATIENCE)
        stream.abort()
        assert ours.fileno() == -1
        assert theirs.recv(1) == b""
        stream.abort()


def test_a_stream_is_of_no_use_in_another_run(world: Any) -> None:
    class_, runtime, options = world

    async def make(sock: socket.socket) -> Any:
        return await class_().wrap_socket(sock)

    async def use(stream: Any) -> None:
        for operation in (stream.read, lambda: stream.write(b"x"), lambda: stream.start_tls(None)):
            with pytest.raises(ConcurrencyError, match="belongs to another event loop"):
                await operation()
        await stream.aclose()

    ours, theirs = socket.socketpair()
    with theirs:
        stream = anyio.run(make, ours, backend=runtime, backend_options=options)
        anyio.run(use, stream, backend=runtime, backend_options=options)
        assert ours.fileno() == -1


@pytest.mark.parametrize("users", [0, 1])
async def test_a_stream_that_nobody_closed_is_warned_of_and_freed(backend: Any, users: int) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = await backend.wrap_socket(ours)
        stream._transport.users = users  # as an interrupt may leave it
        said = re.escape(repr(stream))
        with pytest.warns(ResourceWarning, match=f"unclosed {said}"):
            del stream
            gc.collect()
        assert ours.fileno() == -1
        assert has_ended(theirs)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
async def test_a_forked_child_does_not_end_its_parents_connection(pair: Pair) -> None:
    stream, theirs = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: none of them is needed in the child
        child = os.fork()
    if child == 0:
        status = 1
        try:
            is_readable = stream.get_extra_info("is_readable")
            stream.close_now()
            stream.abort()
            status = 0 if is_readable and stream.get_extra_info("socket").fileno() == -1 else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0  # noqa: ASYNC222 - the child waits for nothing
    theirs.sendall(b"alive")
    assert await stream.read(timeout=PATIENCE) == b"alive"
    await stream.write(b"too")
    assert theirs.recv(10) == b"too"


# --- looking, and writing with an open ear -----------------------------------------------------------------


async def test_is_readable_tells_what_a_read_would_do(pair: Pair) -> None:
    stream, theirs = pair

    def look() -> bool:
        return bool(stream.get_extra_info("is_readable"))

    assert not look()
    theirs.sendall(b"x")
    assert look()
    assert await stream.read() == b"x"
    assert not look()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.read)
        await rounds(3)
        assert not look()
        theirs.sendall(b"x")
        assert not look()  # it is the reader's
    theirs.shutdown(socket.SHUT_WR)
    assert look()
    assert await stream.read() == b""
    assert look()


async def test_writing_stops_when_the_peer_answers(pair: Pair) -> None:
    stream, theirs = pair
    threading.Timer(0.05, theirs.sendall, (b"stop",)).start()
    sent = await stream.write_until_readable(MUCH, timeout=PATIENCE)
    assert 0 < sent < len(MUCH)
    assert await stream.read() == b"stop"
    theirs.sendall(b"again")
    assert await stream.write_until_readable(b"nothing of it") == 0
    assert await stream.read() == b"again"


async def test_all_is_written_to_a_peer_that_only_listens(backend: Any) -> None:
    with Peer(drain) as peer:
        async with await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
            assert await stream.write_until_readable(MUCH, timeout=PATIENCE) == len(MUCH)
            assert await stream.write_until_readable(b"") == 0


async def test_writing_with_an_open_ear_obeys_limits_and_cancellation(backend: Any) -> None:
    with Peer(silent) as peer:
        for cancelled in (False, True):
            async with await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
                if cancelled:
                    with anyio.move_on_after(0.02) as scope:
                        await stream.write_until_readable(MUCH)
                    assert scope.cancelled_caught
                else:
                    with pytest.raises(WriteTimeout):
                        await stream.write_until_readable(MUCH, timeout=0.02)
                with pytest.raises(WriteError, match="not completed"):
                    await stream.write_until_readable(b"x")


async def test_writing_with_an_open_ear_leaves_the_answer_to_a_reader(pair: Pair) -> None:
    stream, theirs = pair
    got: list[bytes] = []

    async def read() -> None:
        got.append(await stream.read(timeout=PATIENCE))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await rounds(3)
        assert await stream.write_until_readable(b"hello") == 5
        theirs.sendall(theirs.recv(10))
    assert got == [b"hello"]


# --- arguments ---------------------------------------------------------------------------------------------


async def test_arguments_are_checked(pair: Pair, backend: Any) -> None:
    stream, theirs = pair
    for size, error in ((0, ArgumentValueError), (True, ArgumentTypeError), ("1", ArgumentTypeError)):
        with pytest.raises(error):
            await stream.read(size)
    with pytest.raises(ArgumentTypeError):
        await stream.write("text")
    with pytest.raises(ArgumentTypeError):
        await backend.wrap_socket(None)
    with socket.socket() as closed:
        closed.close()
        with pytest.raises(ArgumentValueError):
            await backend.wrap_socket(closed)
    await stream.write(b"it still works")
    assert theirs.recv(100) == b"it still works"


@pytest.mark.parametrize(("class_", "where"), [(TrioStream, "trio"), (AnyIOStream, "asyncio or trio")])
def test_a_stream_needs_its_runtime(class_: Any, where: str) -> None:
    ours, theirs = socket.socketpair()
    with (
        ours,
        theirs,
        pytest.raises(ConcurrencyError, match=f"works under {where}, and no event loop runs here"),
    ):
        class_(ours)


@pytest.mark.parametrize("world", ["anyio-asyncio"], indirect=True)
async def test_a_stream_of_trio_is_not_for_asyncio(world: object) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ConcurrencyError, match="works under trio, and asyncio runs here"):
        TrioStream(ours)


# --- memory ------------------------------------------------------------------------------------------------


def test_two_hundred_megabytes_are_written_in_little_memory(world: Any) -> None:
    class_, runtime, options = world
    code = textwrap.dedent(
        f"""
        import resource, socket, threading
        import anyio
        from lamina_async_backends import {class_.__name__}

        def drain(sock):
            buffer = bytearray(1 << 18)
            while sock.recv_into(buffer):
                pass

        async def main():
            ours, theirs = socket.socketpair()
            thread = threading.Thread(target=drain, args=(theirs,))
            thread.start()
            data = bytes(b"x") * 200_000_000
            async with await {class_.__name__}().wrap_socket(ours) as stream:
                await stream.write(data[:1000])
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                await stream.write(data)
            thread.join()
            theirs.close()
            print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

        anyio.run(main, backend={runtime!r}, backend_options={options!r})
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 8 * 1024  # KiB
