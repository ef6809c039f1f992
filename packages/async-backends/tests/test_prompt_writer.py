"""Sending what goes at once, and waiting apart from that: `AsyncPromptWriter` in every world, at every depth of TLS."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from lamina_async_backends import AsyncioBackend
from lamina_interfaces import (
    ArgumentTypeError,
    AsyncPromptWriter,
    ConcurrencyError,
    DeadlineExceeded,
    ReadError,
    WriteError,
    WriteTimeout,
    close_deadline,
    current_runtime,
    open_deadline,
)
from readiness_peers import ALL_WORLDS, PATIENCE, Server, ServerTLS, has_ended, rounds, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left", "no_task_is_left")]

NUMBERS = b"".join(struct.pack("!I", number) for number in range(1 << 18))
"""A megabyte in which each piece can be told from every other."""

SLICE = 128 * 1024
"""What may wait unsent over TLS."""


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


def take(count: int | list[int], into: bytearray, also: bytes = b"") -> Callable[[Any], None]:
    """A script: receive so many bytes, the sum of a list that is complete by then; say something; hear the end."""

    def script(connection: Any) -> None:
        total = count if isinstance(count, int) else sum(count)
        while len(into) < total:
            data = connection.recv(min(1 << 16, total - len(into)))
            if not data:
                return
            into.extend(data)
        if also:
            connection.sendall(also)
        connection.recv(1)

    return script


def hold(connection: Any) -> None:
    """A script: say nothing, and read what is left."""
    while connection.recv(1 << 16):
        pass


def reset(connection: Any) -> None:
    """A script: break the connection, by ending it with bytes unread."""


def fill(stream: Any, data: bytes) -> int:
    """Send until nothing more is taken."""
    sent = 0
    while count := stream.write_now(memoryview(data)[sent:]):
        sent += count
    assert 0 < sent < len(data)
    return sent


async def send(stream: Any, data: bytes) -> None:
    """Send all of it, by prompt writes."""
    sent = 0
    while sent < len(data) or stream.has_unsent:
        count = stream.write_now(memoryview(data)[sent:])
        sent += count
        if not count:
            await stream.wait_writable(timeout=PATIENCE)


async def test_all_that_is_taken_arrives_in_order(backend: Any, depth: int) -> None:
    got = bytearray()
    with Server(depth, take(len(NUMBERS), got)) as peer:
        async with await peer.client(backend) as stream:
            assert isinstance(stream, AsyncPromptWriter)
            peer.go_on.set()
            await send(stream, NUMBERS)
            assert not stream.has_unsent
            await until(lambda: len(got) == len(NUMBERS))
    assert got == NUMBERS


async def test_nothing_waits_for_a_peer_that_does_not_read(backend: Any, depth: int) -> None:
    """B13: and a wait that has timed out, or was cancelled, has broken nothing."""
    got = bytearray()
    with Server(depth, take(len(NUMBERS), got)) as peer:
        async with await peer.client(backend) as stream:
            sent = fill(stream, NUMBERS)
            assert stream.has_unsent == (depth > 0)
            assert len(stream._transport.unsent) < SLICE + 8192
            assert stream.write_now(b"more") == stream.write_now(b"") == 0
            # What TLS has sent after its handshake (session tickets) is there, and is nothing to read.
            with pytest.raises(WriteTimeout) as caught:
                await stream.wait_writable(timeout=0.02)
            assert (caught.value.phase, caught.value.limit) == ("write", 0.02)
            with anyio.move_on_after(0.02):
                await stream.wait_writable()
            deadline = open_deadline(0.02, current_runtime().now)
            try:
                with pytest.raises(DeadlineExceeded):
                    await stream.wait_writable(timeout=PATIENCE)
            finally:
                close_deadline(deadline)
            with pytest.raises(WriteTimeout):
                await stream.wait_writable(timeout=0)
            peer.go_on.set()
            await send(stream, NUMBERS[sent:])
            await until(lambda: len(got) == len(NUMBERS))
    assert got == NUMBERS


async def test_waits_that_are_cancelled_in_any_moment_lose_no_byte(backend: Any, depth: int) -> None:
    """D04: HTTP/2 cancels one request, and the others go on."""
    got = bytearray()
    with Server(depth, take(len(NUMBERS), got)) as peer:
        async with await peer.client(backend) as stream:
            sent = attempt = 0
            peer.go_on.set()
            while sent < len(NUMBERS) or stream.has_unsent:
                sent += stream.write_now(memoryview(NUMBERS)[sent : sent + 50_000])
                attempt += 1
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(stream.wait_writable)
                    await rounds(attempt % 7)
                    tasks.cancel_scope.cancel()
            await until(lambda: len(got) == len(NUMBERS))
    assert got == NUMBERS


async def test_a_wait_ends_when_something_can_be_read_and_leaves_it(backend: Any, depth: int) -> None:
    got = bytearray()
    read = threading.Event()
    total: list[int] = []

    def script(connection: Any) -> None:
        connection.sendall(b"stop")
        read.wait(PATIENCE)
        take(total, got)(connection)

    with Server(depth, script) as peer:
        async with await peer.client(backend) as stream:
            total.append(fill(stream, NUMBERS))
            peer.go_on.set()
            for _ in range(2):  # it was left there
                await stream.wait_writable(timeout=PATIENCE)
            assert stream.write_now(b"x") == 0
            assert stream.get_extra_info("is_readable")
            assert await stream.read(2, timeout=PATIENCE) == b"st"
            await stream.wait_writable(timeout=PATIENCE)
            assert await stream.read(timeout=PATIENCE) == b"op"
            with pytest.raises(WriteTimeout):
                await stream.wait_writable(timeout=0.02)
            read.set()
            while stream.has_unsent:
                await stream.wait_writable(timeout=PATIENCE)
            await until(lambda: len(got) == total[0])
    assert got == NUMBERS[: total[0]]


async def test_a_wait_ends_at_the_peers_end(backend: Any, depth: int) -> None:
    def end(connection: Any) -> None:
        if isinstance(connection, ServerTLS):
            try:
                connection.end()
            except ssl.SSLError:  # something had come already
                connection._flush()
        else:
            connection.shutdown(socket.SHUT_WR)
        over.wait(PATIENCE)

    over = threading.Event()
    with Server(depth, end) as peer:
        async with await peer.client(backend) as stream:
            fill(stream, NUMBERS)
            peer.go_on.set()
            for _ in range(2):
                await stream.wait_writable(timeout=PATIENCE)
            assert await stream.read(timeout=PATIENCE) == b""
            over.set()


async def test_a_wait_leaves_the_reading_to_a_reader(backend: Any, depth: int) -> None:
    got = bytearray()
    read: list[bytes] = []
    total: list[int] = []
    with Server(depth, take(total, got, b"all there"), lambda tls: tls.sendall(b"a")) as peer:
        async with await peer.client(backend) as stream, anyio.create_task_group() as tasks:

            async def reader() -> None:
                while len(read) < 2:
                    read.append(await stream.read(timeout=PATIENCE))

            total.append(fill(stream, NUMBERS))
            tasks.start_soon(reader)
            await until(lambda: read == [b"a"])
            with pytest.raises(WriteTimeout):  # a reader's bytes are no news for it
                await stream.wait_writable(timeout=0.02)
            peer.go_on.set()
            while stream.write_now(b"") or stream.has_unsent:
                await stream.wait_writable(timeout=PATIENCE)
            await until(lambda: len(read) == 2)
    assert read == [b"a", b"all there"]
    assert got == NUMBERS[: total[0]]


async def test_others_send_at_once_while_somebody_waits_but_nobody_waits_twice(
    backend: Any, depth: int
) -> None:
    got = bytearray()
    with Server(depth, take(len(NUMBERS), got)) as peer:
        async with await peer.client(backend) as stream, anyio.create_task_group() as tasks:
            sent = fill(stream, NUMBERS)
            ended = []

            async def wait() -> None:
                await stream.wait_writable(timeout=PATIENCE)
                ended.append(True)

            tasks.start_soon(wait)
            await rounds(5)
            assert stream.write_now(NUMBERS[sent:]) == 0
            with pytest.raises(ConcurrencyError):
                await stream.wait_writable(timeout=PATIENCE)
            with pytest.raises(ConcurrencyError):
                await stream.write(b"x", timeout=PATIENCE)
            with pytest.raises(ConcurrencyError):
                await stream.write_until_readable(b"x", timeout=PATIENCE)
            with pytest.raises(ConcurrencyError):
                await stream.read(timeout=PATIENCE)
            assert not ended
            peer.go_on.set()
            await until(lambda: ended)
            await send(stream, NUMBERS[sent:])
            await until(lambda: len(got) == len(NUMBERS))
    assert got == NUMBERS


async def test_nothing_is_taken_beside_a_write(backend: Any, depth: int) -> None:
    got = bytearray()
    with Server(depth, take(len(NUMBERS) + 4, got)) as peer:
        async with await peer.client(backend) as stream, anyio.create_task_group() as tasks:
            tasks.start_soon(stream.write, NUMBERS, PATIENCE)
            await rounds(5)
            assert stream.write_now(b"x") == 0
            with pytest.raises(ConcurrencyError):
                await stream.wait_writable(timeout=PATIENCE)
            peer.go_on.set()
            await until(lambda: stream.write_now(b"last"))
            while stream.has_unsent:
                await stream.wait_writable(timeout=PATIENCE)
            await until(lambda: len(got) == len(NUMBERS) + 4)
    assert got == NUMBERS + b"last"


@pytest.mark.parametrize("way", ["write", "read", "nothing"])
async def test_what_waits_goes_out_by_other_operations_too(backend: Any, way: str) -> None:
    got = bytearray()
    total = [len(b"!")] if way == "write" else []
    with Server(1, take(total, got, b"thanks")) as peer:
        async with await peer.client(backend) as stream:
            total.append(fill(stream, NUMBERS))
            peer.go_on.set()
            if way == "write":
                await stream.write(b"!", timeout=PATIENCE)
            elif way == "nothing":
                if not isinstance(backend, AsyncioBackend):
                    return  # only asyncio tells by itself when more can be sent
                await until(lambda: not stream.has_unsent)
            assert await stream.read(timeout=PATIENCE) == b"thanks"
    assert got == NUMBERS[: total[-1]] + (b"!" if way == "write" else b"")


@pytest.mark.parametrize("way", ["aclose", "abort"])
async def test_closing_wakes_who_waits_and_nothing_is_taken_afterwards(
    backend: Any, depth: int, way: str
) -> None:
    with Server(depth, hold) as peer:
        async with await peer.client(backend) as stream:
            fill(stream, NUMBERS)
            errors = []
            async with anyio.create_task_group() as tasks:

                async def wait() -> None:
                    with pytest.raises(WriteError, match="the stream is closed") as caught:
                        await stream.wait_writable(timeout=PATIENCE)
                    errors.append(caught.value)

                tasks.start_soon(wait)
                await rounds(5)
                if way == "abort":
                    stream.abort()
                else:
                    await stream.aclose()
            assert errors
            assert not stream.has_unsent
            assert stream.get_extra_info("socket").fileno() == -1
            with pytest.raises(WriteError, match="the stream is closed"):
                stream.write_now(b"x")
            with pytest.raises(WriteError, match="the stream is closed"):
                await stream.wait_writable(timeout=PATIENCE)


async def test_nothing_waits_in_a_closed_stream(backend: Any, depth: int) -> None:
    with Server(depth, hold) as peer:
        stream = await peer.client(backend)
        fill(stream, NUMBERS)
        await stream.aclose()
        assert not stream.has_unsent


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "TCP"])
@pytest.mark.parametrize("when", ["before", "meanwhile", "after a read"])
async def test_a_break_ends_the_wait_and_the_writing(backend: Any, depth: int, when: str, tcp: bool) -> None:
    with Server(depth, reset, lambda tls: tls.sendall(b"a"), tcp=tcp) as peer:
        async with await peer.client(backend) as stream, anyio.create_task_group() as tasks:
            if when == "after a read":  # uvloop forgets a socket that is reset while nobody waits for it
                assert await stream.read(timeout=PATIENCE) == b"a"
                with anyio.move_on_after(0.01):
                    await stream.read(timeout=PATIENCE)
            fill(stream, NUMBERS)
            if when != "meanwhile":
                peer.go_on.set()
                await until(lambda: peer.has_ended)

            async def write() -> None:
                with pytest.raises(WriteError):
                    for _ in range(100):
                        await stream.wait_writable(timeout=PATIENCE)
                        stream.write_now(NUMBERS)
                with pytest.raises(WriteError):
                    stream.write_now(NUMBERS)
                with pytest.raises(WriteError):
                    await stream.wait_writable(timeout=PATIENCE)

            async def read() -> None:
                with pytest.raises(ReadError):
                    for _ in range(3):
                        await stream.read(timeout=PATIENCE)

            tasks.start_soon(read)
            await rounds(2)
            tasks.start_soon(write)
            await rounds(5)
            peer.go_on.set()


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "TCP"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_break_ends_the_wait_of_one_who_reads_as_well(
    backend: Any, depth: int, when: str, tcp: bool
) -> None:
    with Server(depth, reset, tcp=tcp) as peer:
        async with await peer.client(backend) as stream:
            fill(stream, NUMBERS)
            peer.go_on.set()
            if when == "before":
                await until(lambda: peer.has_ended)
            with pytest.raises(WriteError):
                for _ in range(100):
                    await stream.wait_writable(timeout=PATIENCE)
                    stream.write_now(NUMBERS)
            assert not stream._transport.users


async def test_what_is_no_buffer_is_refused_and_an_empty_one_sends_nothing(backend: Any, depth: int) -> None:
    got = bytearray()
    with Server(depth, take(2, got)) as peer:
        async with await peer.client(backend) as stream:
            peer.go_on.set()
            with pytest.raises(ArgumentTypeError):
                stream.write_now("text")
            assert stream.write_now(b"") == 0
            buffer = bytearray(b"ok")
            assert stream.write_now(buffer) == 2
            buffer.clear()  # it is not kept
            await stream.wait_writable(timeout=PATIENCE)
            await until(lambda: len(got) == 2)
    assert got == b"ok"


async def test_a_prompt_write_that_is_interrupted_is_the_last(
    backend: Any, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows how much it has sent."""

    def interrupted(view: memoryview) -> int:
        raise KeyboardInterrupt

    with Server(depth, hold) as peer:
        async with await peer.client(backend) as stream:
            with monkeypatch.context() as patch:
                patch.setattr(stream._transport, "send_now", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    stream.write_now(b"x")
            assert not stream._transport.users
            with pytest.raises(WriteError, match="an earlier write was not completed"):
                stream.write_now(b"x")
            with pytest.raises(WriteError, match="an earlier write was not completed"):
                await stream.wait_writable()


async def test_another_thread_is_refused(backend: Any) -> None:
    def elsewhere() -> None:
        with pytest.raises(ConcurrencyError):
            stream.write_now(b"x")

    with Server(0, hold) as peer:
        async with await peer.client(backend) as stream:
            await anyio.to_thread.run_sync(elsewhere)
            assert stream.write_now(b"x") == 1


async def test_a_wait_that_need_not_wait_lets_other_tasks_run(backend: Any, depth: int) -> None:
    """Whoever asks in a loop must not hold up the one that he waits for."""
    with Server(depth, hold) as peer:
        async with await peer.client(backend) as stream, anyio.create_task_group() as tasks:
            turns = []

            async def other() -> None:
                while True:
                    turns.append(True)
                    await anyio.lowlevel.checkpoint()

            tasks.start_soon(other)
            for _ in range(100):
                await stream.wait_writable(timeout=PATIENCE)
            tasks.cancel_scope.cancel()
            assert len(turns) > 2


async def test_closing_takes_leave_beside_somebody_who_waits(backend: Any) -> None:
    """Nothing is half sent, so the peer is told of an orderly end."""
    ours, theirs = socket.socketpair()
    with theirs:
        async with await backend.wrap_socket(ours) as stream, anyio.create_task_group() as tasks:
            fill(stream, bytes(1 << 22))

            async def wait() -> None:
                with pytest.raises(WriteError):
                    await stream.wait_writable(timeout=PATIENCE)

            tasks.start_soon(wait)
            await rounds(5)
            assert stream._transport.may_take_leave
            await stream.aclose()
        assert has_ended(theirs)
