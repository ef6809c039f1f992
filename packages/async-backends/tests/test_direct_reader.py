"""Reading into the caller's buffer: `AsyncDirectReader` in every world, at every depth of TLS."""

from __future__ import annotations

import array
import asyncio
import random
import socket
import struct
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from lamina_async_backends._asyncio_transport import TURNS
from lamina_async_backends._transport import READING
from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    AsyncDirectReader,
    ConcurrencyError,
    DeadlineExceeded,
    ReadError,
    ReadTimeout,
    close_deadline,
    current_runtime,
    open_deadline,
)
from readiness_peers import ALL_WORLDS, PATIENCE, Peer, Server, rounds, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left", "no_task_is_left")]

NUMBERS = b"".join(struct.pack("!I", number) for number in range(1 << 17))
"""Half a megabyte in which each piece can be told from every other."""

BLANK = b"\xaa"
"""What a buffer is full of, so that bytes are seen which nobody reported."""


@pytest.fixture(params=ALL_WORLDS)
def world(request: pytest.FixtureRequest) -> tuple[Any, str, dict[str, Any]]:
    """Of asyncio too."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return ALL_WORLDS[request.param]


@pytest.fixture(params=[0, 1, 2], ids=["plain", "TLS", "TLS in TLS"])
def depth(request: pytest.FixtureRequest) -> int:
    chosen: int = request.param
    return chosen


def say(*pieces: bytes) -> Callable[[Any], None]:
    """A script: say something, in pieces, and hear the client's end."""

    def script(connection: Any) -> None:
        for piece in pieces:
            connection.sendall(piece)
        connection.recv(1)

    return script


def greet(data: bytes) -> Callable[[Any], None]:
    """A greeting: say something."""
    return lambda connection: connection.sendall(data)


def end(connection: Any) -> None:
    """A script: end our side in an orderly way, and hear the client's end."""
    if isinstance(connection, socket.socket):
        connection.shutdown(socket.SHUT_WR)
    else:
        connection.end()
    connection.recv(1)


def nothing(connection: Any) -> None:
    """A script: only hear the client's end."""
    connection.recv(1)


def is_free(buffer: bytearray) -> bool:
    """Whether nobody holds on to it."""
    try:
        buffer.append(0)
    except BufferError:
        return False
    del buffer[-1]
    return True


async def test_all_comes_in_order_whichever_way_it_is_read(backend: Any, depth: int) -> None:
    body = bytearray(len(NUMBERS))
    sizes = random.Random(1)
    with Server(depth, say(NUMBERS)) as peer:
        async with await peer.client(backend) as stream:
            assert AsyncDirectReader in type(stream).__mro__
            peer.go_on.set()
            count = 0
            while count < len(body):
                size = min(sizes.choice([1, 100, 20_000, 200_000]), len(body) - count)
                if sizes.random() < 0.3:
                    piece = await stream.read(size, timeout=PATIENCE)
                    body[count : count + len(piece)] = piece
                    count += len(piece)
                else:
                    with memoryview(body)[count : count + size] as room:
                        taken = await stream.read_into(room, timeout=PATIENCE)
                    assert 1 <= taken <= size
                    count += taken
    assert body == NUMBERS
    assert is_free(body)


async def test_what_has_come_is_put_at_the_front_and_the_rest_is_left(backend: Any, depth: int) -> None:
    buffer = bytearray(BLANK * 20)
    numbers = array.array("I", [7] * 2)
    with Server(depth, say(b"hello"), greet(b"12345678")) as peer:
        async with await peer.client(backend) as stream:
            assert await stream.read_into(numbers, timeout=PATIENCE) == 8
            assert numbers.tobytes() == b"12345678"
            peer.go_on.set()
            assert await stream.read_into(buffer, timeout=PATIENCE) == 5
            assert buffer == b"hello" + BLANK * 15


async def test_the_end_is_0_and_stays_so(backend: Any, depth: int) -> None:
    buffer = bytearray(BLANK * 20)
    with Server(depth, end) as peer:
        async with await peer.client(backend) as stream:
            peer.go_on.set()
            assert [await stream.read_into(buffer, timeout=PATIENCE) for _ in range(2)] == [0, 0]
            assert await stream.read(timeout=PATIENCE) == b""
            assert await stream.read_into(buffer, timeout=PATIENCE) == 0
    assert buffer == BLANK * 20


async def test_a_time_limit_leaves_the_buffer_alone_and_loses_nothing(backend: Any, depth: int) -> None:
    buffer = bytearray(BLANK * 20)
    with Server(depth, say(b"late")) as peer:
        async with await peer.client(backend) as stream:
            with pytest.raises(ReadTimeout) as caught:
                await stream.read_into(buffer, timeout=0.02)
            assert (caught.value.phase, caught.value.limit) == ("read", 0.02)
            assert is_free(buffer)  # though the error, and so its traceback, is there
            deadline = open_deadline(0.02, current_runtime().now)
            try:
                with pytest.raises(DeadlineExceeded):
                    await stream.read_into(buffer, timeout=PATIENCE)
            finally:
                close_deadline(deadline)
            peer.go_on.set()
            await until(lambda: stream.get_extra_info("is_readable"))
            with pytest.raises(ReadTimeout):
                await stream.read_into(buffer, timeout=0)
            assert buffer == BLANK * 20
            assert await stream.read_into(buffer) == 4
    assert buffer == b"late" + BLANK * 16


async def test_cancelled_in_any_moment_it_loses_no_byte_and_writes_none(backend: Any, depth: int) -> None:
    got = bytearray()
    cancelled = attempt = 0
    with Server(depth, say(NUMBERS)) as peer:
        async with await peer.client(backend) as stream:
            peer.go_on.set()
            while len(got) < len(NUMBERS):
                attempt += 1
                buffer = bytearray(BLANK * 7000)
                counts: list[int] = []

                async def take(buffer: bytearray, counts: list[int]) -> None:
                    counts.append(await stream.read_into(buffer))

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(take, buffer, counts)
                    await rounds(attempt % 7)
                    tasks.cancel_scope.cancel()
                count = sum(counts)
                assert buffer[count:] == BLANK * (len(buffer) - count)
                assert is_free(buffer)
                got += buffer[:count]
                cancelled += not counts
    assert got == NUMBERS
    assert cancelled


@pytest.mark.parametrize(
    ("buffer", "error"),
    [
        (bytearray(), ArgumentValueError),
        (memoryview(bytearray(20))[::2], ArgumentValueError),
        (memoryview(b"read-only"), ArgumentTypeError),
        (b"read-only", ArgumentTypeError),
        (100, ArgumentTypeError),
    ],
    ids=["empty", "with gaps", "read-only view", "bytes", "int"],
)
async def test_a_buffer_that_cannot_be_filled_is_refused_and_nothing_is_read(
    backend: Any, buffer: Any, error: type[Exception]
) -> None:
    with Server(0, say(b"hello")) as peer:
        async with await peer.client(backend) as stream:
            peer.go_on.set()
            await until(lambda: stream.get_extra_info("is_readable"))
            with pytest.raises(error):
                await stream.read_into(buffer)
            assert await stream.read() == b"hello"


async def test_one_task_reads_at_a_time_and_closing_wakes_it(backend: Any, depth: int) -> None:
    buffer = bytearray(BLANK * 20)
    errors: list[BaseException] = []

    async def wait(stream: Any) -> None:
        with pytest.raises(ReadError) as caught:
            await stream.read_into(buffer)
        errors.append(caught.value)

    with Server(depth, nothing) as peer:
        async with await peer.client(backend) as stream:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, stream)
                await until(lambda: stream._transport.users & READING)
                await rounds(3)
                with pytest.raises(ConcurrencyError):
                    await stream.read_into(bytearray(1))
                with pytest.raises(ConcurrencyError):
                    await stream.read()
                stream.abort()
            assert len(errors) == 1
            with pytest.raises(ReadError):
                await stream.read_into(buffer)
    assert buffer == BLANK * 20
    assert is_free(buffer)


async def test_a_peer_that_is_always_faster_does_not_hold_up_the_others(backend: Any) -> None:
    def pour(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(1 << 20))

    turns = 0
    enough = False

    async def count() -> None:
        nonlocal turns
        while not enough:
            turns += 1
            await anyio.lowlevel.checkpoint()

    buffer = bytearray(1 << 16)
    with Peer(pour) as source:
        async with (
            await backend.connect_tcp("127.0.0.1", source.port) as stream,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(count)
            await rounds(2)
            for _ in range(5):
                before = turns
                for _ in range(2 * TURNS):
                    await stream.read_into(buffer, timeout=PATIENCE)
                assert turns > before
            enough = True


@pytest.mark.parametrize("world", ["asyncio", "uvloop"], indirect=True)
async def test_what_came_for_a_read_that_was_cancelled_is_put_piece_by_piece(backend: Any) -> None:
    """The loop's callback has received it before the cancellation."""
    ours, theirs = socket.socketpair()
    with theirs:
        async with await backend.wrap_socket(ours) as stream:
            reading = asyncio.ensure_future(stream.read(timeout=PATIENCE))
            await until(lambda: stream._transport._read_waiter)
            theirs.sendall(b"abcdef")
            stream._transport._on_readable()  # as the loop will
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
            buffer = bytearray(BLANK * 4)
            assert [await stream.read_into(buffer), bytes(buffer)] == [4, b"abcd"]
            theirs.sendall(b"gh")
            assert [await stream.read_into(buffer), bytes(buffer)] == [2, b"efcd"]
            assert [await stream.read_into(buffer), bytes(buffer)] == [2, b"ghcd"]


@pytest.mark.parametrize("world", ["asyncio", "uvloop"], indirect=True)
async def test_the_loop_watches_the_socket_from_one_wait_to_the_next(backend: Any) -> None:
    """It says once more that the socket can be read, of what has been received since."""
    ours, theirs = socket.socketpair()
    with theirs:
        async with await backend.wrap_socket(ours) as stream:
            buffer = bytearray(10)
            for data in (b"a", b"b"):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(stream.read_into, buffer, PATIENCE)
                    await until(lambda: stream._transport.users & READING)
                    await rounds(2)
                    theirs.sendall(data)
                assert bytes(buffer[:1]) == data
                await rounds(5)
                assert stream._transport._watched & READING
            theirs.sendall(b"unwanted")
            await until(lambda: not stream._transport._watched & READING)


@pytest.mark.parametrize("world", ["asyncio", "uvloop"], indirect=True)
@pytest.mark.parametrize("into", [False, True], ids=["read", "read_into"])
async def test_what_has_come_when_the_limit_has_passed_counts_as_in_time(backend: Any, into: bool) -> None:
    """The timer goes off before the loop has looked at the socket."""
    ours, theirs = socket.socketpair()
    now = 0.0
    buffer = bytearray(1)
    with theirs:
        async with await backend.wrap_socket(ours) as stream:
            stream._now = lambda: now
            operation = stream.read_into(buffer, PATIENCE) if into else stream.read(1, PATIENCE)
            reading = asyncio.ensure_future(operation)
            await until(lambda: stream._transport._read_waiter)
            theirs.sendall(b"x")
            now = PATIENCE + 1
            stream._transport.wake_all()  # as the timer does
            got = await reading
            assert (bytes(buffer[:got]) if into else got) == b"x"
