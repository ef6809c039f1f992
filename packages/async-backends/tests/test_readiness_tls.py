"""TLS over the streams of trio and anyio."""

import os
import socket
import ssl
import struct
import threading
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    ConnectError,
    ConnectTimeout,
    ReadError,
    ReadTimeout,
    TimeoutException,
    WriteError,
    WriteTimeout,
    close_deadline,
    current_runtime,
    open_deadline,
)
from readiness_peers import (
    PATIENCE,
    Peer,
    ServerTLS,
    client_context,
    drain,
    echo,
    has_ended,
    rounds,
    tls_peer,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left", "no_task_is_left")]

Pair = tuple[Any, socket.socket]

MUCH = bytes(16 * 1024 * 1024)

SLICE = 128 * 1024
"""What is encrypted at once."""


async def connect(backend: Any, peer: Peer, layers: int = 1) -> Any:
    stream = await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE)
    for _ in range(layers):
        assert await stream.start_tls(client_context(), "server.example", timeout=PATIENCE) is stream
    return stream


def layered(depth: int, script: Any) -> Any:
    def peer(connection: socket.socket) -> None:
        tls: Any = connection
        for _ in range(depth):
            tls = ServerTLS(tls).handshake()
        script(tls)

    return peer


# --- bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_much_goes_through_in_both_directions_at_once_at_any_depth(backend: Any, depth: int) -> None:
    sent = os.urandom(1 << 16) * 24
    with Peer(layered(depth, echo)) as peer:
        async with await connect(backend, peer, depth) as stream:
            assert [span.name for span in stream.get_extra_info("timings")] == ["tcp"] + ["tls"] * depth
            assert isinstance(stream.get_extra_info("ssl_object"), ssl.SSLObject)
            assert "TLS" in repr(stream)
            got = bytearray()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(stream.write, sent)
                while len(got) < len(sent):
                    got += await stream.read(timeout=PATIENCE)
            assert bytes(got) == sent


async def test_the_peers_farewell_is_the_end_and_its_absence_an_error(backend: Any) -> None:
    def say_bye(tls: ServerTLS) -> None:
        tls.sendall(b"last words")
        tls.end()
        assert tls.recv(10) == b"thank you"

    with Peer(layered(1, say_bye)) as peer:
        async with await connect(backend, peer) as stream:
            assert await stream.read(timeout=PATIENCE) == b"last words"
            assert [await stream.read(timeout=PATIENCE) for _ in range(3)] == [b"", b"", b""]
            await stream.write(b"thank you")
            await until(lambda: peer.ended)

    with Peer(layered(1, lambda tls: tls.sendall(b"last words"))) as peer:
        async with await connect(backend, peer) as stream:
            assert await stream.read(timeout=PATIENCE) == b"last words"
            for _ in range(2):
                with pytest.raises(ReadError, match="cut off"):
                    await stream.read(timeout=PATIENCE)


async def test_closing_says_farewell(backend: Any) -> None:
    ends: list[bytes] = []
    with Peer(layered(1, lambda tls: ends.append(tls.recv(10)))) as peer:
        stream = await connect(backend, peer)
        await stream.aclose()
        await until(lambda: peer.ended)
    assert ends == [b""]


@pytest.mark.parametrize("how", ["abort", "cut short", "cut short, and sent later"])
async def test_there_is_no_farewell_where_it_would_be_a_lie(backend: Any, how: str) -> None:
    ends: list[object] = []
    go = threading.Event()

    def read_on(tls: ServerTLS) -> None:
        go.wait(PATIENCE)
        try:
            while tls.recv(1 << 16):
                pass
            ends.append("farewell")
        except ConnectionError:
            ends.append("cut off")

    with Peer(layered(1, read_on)) as peer:
        stream = await connect(backend, peer)
        if how == "abort":
            stream.abort()
        else:
            with pytest.raises(WriteTimeout):
                await stream.write(MUCH, timeout=0.02)
            if how != "cut short":
                go.set()
                await until(lambda: stream._transport.queue(b"") or not stream._transport.unsent)
            await stream.aclose()
        go.set()
        await until(lambda: peer.ended)
    assert ends == ["cut off"]


async def test_every_read_lets_other_tasks_run_though_the_bytes_are_at_hand(backend: Any) -> None:
    size = 4000
    with Peer(layered(1, lambda tls: (tls.sendall(bytes(10 * size)), tls.recv(1)))) as peer:
        async with await connect(backend, peer) as stream:
            turns = 0
            enough = False

            async def count() -> None:
                nonlocal turns
                while not enough:
                    turns += 1
                    await anyio.lowlevel.checkpoint()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(count)
                await until(lambda: stream.get_extra_info("is_readable"))
                before = turns
                for _ in range(10):
                    assert len(await stream.read(size, timeout=PATIENCE)) <= size
                assert turns >= before + 9
                enough = True


async def test_a_cancelled_read_loses_no_byte(backend: Any) -> None:
    total = 200_000
    data = os.urandom(total)

    def send(tls: ServerTLS) -> None:
        for start in range(0, total, 700):
            tls.sendall(data[start : start + 700])
        tls.recv(1)

    async def cancel_after(count: int, scope: anyio.CancelScope) -> None:
        await rounds(count)
        scope.cancel()

    with Peer(layered(1, send)) as peer:
        async with await connect(backend, peer) as stream:
            got = bytearray()
            attempt = 0
            while len(got) < total:
                attempt += 1
                assert attempt < 1_000_000
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(cancel_after, attempt % 7, scope)
                        got += await stream.read(1 << (attempt % 16))
                        tasks.cancel_scope.cancel()
    assert bytes(got) == data


# --- the order of the ciphertext, and what is left over ----------------------------------------------------


async def test_an_upload_stops_at_the_answer_and_its_rest_goes_out_with_the_next_operation(
    backend: Any,
) -> None:
    def answer(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        tls = ServerTLS(connection).handshake()
        stuck.wait(PATIENCE)
        tls.sendall(b"stop")
        go_on.wait(PATIENCE)
        count = 0
        while count < told[0]:
            count += len(tls.recv(1 << 16))
        tls.sendall(b"all there")
        assert tls.recv(5) == b"after"
        tls.recv(1)

    async def tell_when_stuck() -> None:
        await until(lambda: stream._transport._writable is not None)
        stuck.set()

    sent = 0
    stuck, go_on = threading.Event(), threading.Event()
    told: list[int] = []
    with Peer(answer) as peer:
        async with await connect(backend, peer) as stream:
            stream.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(tell_when_stuck)
                sent = await stream.write_until_readable(MUCH, timeout=PATIENCE)
            assert 0 < sent < len(MUCH)
            assert await stream.read(timeout=PATIENCE) == b"stop"
            assert len(stream._transport.unsent)  # the peer reads nothing yet
            told.append(sent)
            with pytest.raises(ReadTimeout):
                await stream.read(timeout=0.02)
            async with anyio.create_task_group() as tasks:

                async def read() -> None:
                    assert await stream.read(timeout=PATIENCE) == b"all there"

                tasks.start_soon(read)  # waits for either direction
                await until(lambda: stream._transport._writable is not None)
                tasks.start_soon(stream.write, b"after")  # waits for what the reader waits for
                await rounds(5)
                go_on.set()


async def test_a_peer_that_makes_us_answer_but_does_not_read_is_cut_off(backend: Any) -> None:
    go_on = threading.Event()
    with Peer(layered(1, lambda tls: go_on.wait(PATIENCE))) as peer:
        async with await connect(backend, peer) as stream:
            with pytest.raises(WriteTimeout):
                await stream.write(MUCH, timeout=0.05)
            while len(stream._transport.unsent) <= 1024 * 1024:
                stream._transport.queue(bytes(65536))
            stream._tls.engine.write(b"as if it were an answer")
            with pytest.raises(ReadError, match="wants answers, and does not read them"):
                await stream.read(timeout=PATIENCE)
        go_on.set()


async def test_a_writer_learns_of_a_break_that_a_reader_was_told_of(backend: Any) -> None:
    """What was queued is lost then: the write must not end as if it had been sent."""
    go_on = threading.Event()

    def reset(tls: ServerTLS) -> None:
        go_on.wait(PATIENCE)

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        layered(1, reset)(connection)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with Peer(serve) as peer:
        async with await connect(backend, peer) as stream, anyio.create_task_group() as tasks:

            async def write() -> None:
                with pytest.raises(WriteError, match="the connection broke") as caught:
                    await stream.write(bytes(128 * 1024), timeout=PATIENCE)
                assert caught.value.errno

            stream.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16 * 1024)
            tasks.start_soon(write)
            await until(lambda: stream._transport._writable is not None)
            go_on.set()
            end = monotonic() + PATIENCE
            while not peer.ended:
                assert monotonic() < end  # the writer must not run before the next lines
            with pytest.raises(WriteError):
                stream._transport.queue(b"an answer, by a reader")


@pytest.mark.parametrize("method", ["write", "write_until_readable"])
async def test_who_writes_is_woken_when_the_stream_is_closed(backend: Any, method: str) -> None:
    go_on = threading.Event()
    with Peer(layered(1, lambda tls: go_on.wait(PATIENCE))) as peer:
        async with await connect(backend, peer) as stream, anyio.create_task_group() as tasks:

            async def close() -> None:
                await until(lambda: stream._transport._writable is not None)
                await stream.aclose()

            tasks.start_soon(close)
            with pytest.raises(WriteError, match="the stream is closed"):
                await getattr(stream, method)(MUCH, timeout=PATIENCE)
        go_on.set()


async def test_all_is_written_to_a_peer_that_only_listens(backend: Any) -> None:
    with Peer(tls_peer(drain)) as peer:
        async with await connect(backend, peer) as stream:
            assert await stream.write_until_readable(MUCH, timeout=PATIENCE) == len(MUCH)


async def test_messages_of_tls_without_data_are_not_readable(backend: Any) -> None:
    """A server of TLS 1.3 sends its session tickets after the handshake."""
    with Peer(layered(1, lambda tls: (tls.recv(1), tls.sendall(b"data"), tls.recv(1)))) as peer:
        async with await connect(backend, peer) as stream:
            await rounds(20)
            assert not stream.get_extra_info("is_readable")
            await stream.write(b"?")
            await until(lambda: stream.get_extra_info("is_readable"))
            assert await stream.write_until_readable(MUCH, timeout=PATIENCE) == 0
            assert await stream.read() == b"data"
            assert not stream.get_extra_info("is_readable")


# --- what goes wrong in a handshake ------------------------------------------------------------------------


async def test_a_certificate_that_is_not_accepted_closes_and_the_peer_is_told(backend: Any) -> None:
    said: list[str] = []

    def listen(connection: socket.socket) -> None:
        try:
            ServerTLS(connection).handshake().recv(1)
        except ssl.SSLError as exc:
            said.append(exc.reason or "")

    with Peer(listen) as peer:
        stream = await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE)
        with pytest.raises(ConnectError, match="certificate was not accepted") as caught:
            await stream.start_tls(client_context(), "other.example", timeout=PATIENCE)
        assert caught.value.phase == "tls"
        assert stream.get_extra_info("socket").fileno() == -1
        await until(lambda: peer.ended)
    assert "ALERT" in said[0]


@pytest.mark.parametrize("ambient", [False, True])
async def test_a_handshake_obeys_limits(pair: Pair, ambient: bool) -> None:
    stream, theirs = pair
    deadline = open_deadline(0.02 if ambient else None, current_runtime().now)
    try:
        with pytest.raises(TimeoutException) as caught:
            await stream.start_tls(client_context(), "server.example", timeout=None if ambient else 0.02)
    finally:
        close_deadline(deadline)
    assert caught.value.phase == "tls"
    assert ambient != isinstance(caught.value, ConnectTimeout)
    assert stream.get_extra_info("socket").fileno() == -1
    assert has_ended(theirs)


async def test_a_cancelled_handshake_closes_the_stream(backend: Any) -> None:
    with Peer(drain) as peer:
        stream = await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE)
        deadline = open_deadline(0.02, current_runtime().now)
        with anyio.CancelScope(deadline=anyio.current_time()) as scope:
            await stream.start_tls(client_context(), "server.example")
        close_deadline(deadline)
        assert scope.cancelled_caught
        assert stream.get_extra_info("socket").fileno() == -1
        await until(lambda: peer.ended)


async def test_a_peer_that_goes_away_in_the_handshake_is_a_connect_error(pair: Pair) -> None:
    stream, theirs = pair
    theirs.shutdown(socket.SHUT_WR)
    with pytest.raises(ConnectError, match="closed the connection during the TLS handshake"):
        await stream.start_tls(client_context(), "server.example", timeout=PATIENCE)


async def test_mistakes_close_the_stream(backend: Any) -> None:
    for context, name, error in (
        (client_context(), None, ArgumentValueError),
        (client_context(), "two words", ArgumentValueError),
        (None, "server.example", ArgumentTypeError),
    ):
        ours, theirs = socket.socketpair()
        with theirs:
            stream = await backend.wrap_socket(ours)
            with pytest.raises(error):
                await stream.start_tls(context, name)
            assert ours.fileno() == -1


async def test_a_stream_that_is_in_use_is_left_as_it_was(pair: Pair) -> None:
    stream, theirs = pair
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stream.read)
        await rounds(3)
        with pytest.raises(ConcurrencyError):
            await stream.start_tls(client_context(), "server.example")
        theirs.sendall(b"x")
    await stream.write(b"still there")
    assert theirs.recv(100) == b"still there"


# --- cancelling at each turn -------------------------------------------------------------------------------


async def test_cancelled_at_any_turn_a_connection_is_over_for_the_peer(backend: Any) -> None:
    """Connect, handshake, write, read, close, cancelled at the first, second, … turn until all of it passes."""
    with Peer(tls_peer(echo)) as peer:
        turn = 0
        passed = False
        while not passed:
            # Many, for a turn of the loop may take far less time than an answer of the peer.
            assert turn < 10_000_000
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def cancel(turn: int = turn, scope: anyio.CancelScope = scope) -> None:
                        await rounds(turn)
                        scope.cancel()

                    tasks.start_soon(cancel)
                    stream = await connect(backend, peer)
                    try:
                        await stream.write(bytes(300_000))
                        got = 0
                        while got < 300_000:
                            got += len(await stream.read(timeout=PATIENCE))
                    finally:
                        await stream.aclose()
                    passed = True
                    tasks.cancel_scope.cancel()
            await until(lambda: peer.ended == len(peer.connections))
            turn += 1 + turn // 8
        assert turn > 4
