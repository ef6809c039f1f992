"""The stream of asyncio over TLS: handshakes and how they fail, both directions at once, and the farewell."""

import asyncio
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from asyncio_peers import (
    LOOP_NAMES,
    LOOPS,
    PATIENCE,
    Outcome,
    Peer,
    ServerTLS,
    client_context,
    echo,
    end_of,
    has_ended,
    in_a_wait,
    no_socket_left,
    nothing_left,
    over_tls,
    pair,
    reset,
    server_context,
    silent,
    tls_echo,
    until,
)
from lamina_async_backends._asyncio import AsyncioBackend, AsyncioStream
from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    ReadError,
    WriteError,
    WriteTimeout,
    close_deadline,
    open_deadline,
)

pytestmark = pytest.mark.anyio

NAME = "server.example"

LARGE = 32 * 1024 * 1024


@pytest.fixture(params=LOOPS, ids=LOOP_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with no_socket_left():
        yield


async def connect(peer: Peer) -> AsyncioStream:
    return await AsyncioBackend().connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE)


async def connect_tls(peer: Peer, layers: int = 1) -> AsyncioStream:
    stream = await connect(peer)
    for _ in range(layers):
        assert await stream.start_tls(client_context(), NAME, timeout=PATIENCE) is stream
    return stream


async def read_exactly(stream: AsyncioStream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.read(timeout=PATIENCE)
        assert piece
        data += piece
    return bytes(data)


def deaf(tls: ServerTLS) -> None:
    """Say one byte, behind the session tickets, and read nothing."""
    tls.sendall(b"x")
    silent(tls._beneath)


# --- handshakes ----------------------------------------------------------------------------------------------


async def test_a_stream_becomes_tls_in_place() -> None:
    with Peer(over_tls(tls_echo)) as peer:
        async with await connect_tls(peer) as stream:
            await stream.write(b"secret")
            assert await stream.read() == b"secret"
            assert stream.get_extra_info("ssl_object").version() == "TLSv1.3"
            assert [span.name for span in stream.get_extra_info("timings")] == ["tcp", "tls"]
            assert repr(stream) == f"<AsyncioStream [open, 127.0.0.1:{peer.port}, TLS]>"


@pytest.mark.parametrize("layers", [2, 3])
async def test_tls_in_tls(layers: int) -> None:
    data = random.Random(1).randbytes(1_000_000)
    with Peer(over_tls(tls_echo, *(server_context() for _ in range(layers)))) as peer:
        async with await connect_tls(peer, layers) as stream:
            reading = asyncio.ensure_future(read_exactly(stream, len(data)))
            await stream.write(data, timeout=PATIENCE)
            assert await reading == data
            assert [span.name for span in stream.get_extra_info("timings")] == ["tcp", *["tls"] * layers]


async def test_a_certificate_for_another_name_is_refused_and_the_peer_is_told() -> None:
    with Peer(over_tls(tls_echo, server_context("other.example"))) as peer:
        stream = await connect(peer)
        with nothing_left(), pytest.raises(ConnectError, match="certificate was not accepted") as caught:
            await stream.start_tls(client_context(), NAME, timeout=PATIENCE)
        assert caught.value.phase == "tls"
        assert repr(stream).startswith("<AsyncioStream [closed")
        assert "alert" in str(await peer.served()).lower()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        (lambda connection: None, "closed the connection during the TLS handshake|broke during the TLS"),
        (reset, "the connection broke during the TLS handshake: .*reset"),
        (lambda connection: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n"), "TLS handshake failed"),
    ],
    ids=["end", "reset", "no TLS"],
)
async def test_a_handshake_that_the_peer_breaks(script: Any, message: str) -> None:
    def after_hello(connection: socket.socket) -> None:
        connection.recv(65536)
        script(connection)

    with Peer(after_hello) as peer:
        stream = await connect(peer)
        with nothing_left(), pytest.raises(ConnectError, match=message):
            await stream.start_tls(client_context(), NAME, timeout=PATIENCE)
        with pytest.raises(ReadError, match="the stream is closed"):
            await stream.read()


async def test_a_handshake_has_a_limit() -> None:
    with Peer(silent) as peer:
        stream = await connect(peer)
        with pytest.raises(ConnectTimeout) as caught:
            await stream.start_tls(client_context(), NAME, timeout=0.05)
        assert (caught.value.phase, caught.value.limit) == ("tls", 0.05)
        await peer.served()


async def test_the_ambient_deadline_ends_a_handshake() -> None:
    with Peer(silent) as peer:
        stream = await connect(peer)
        deadline = open_deadline(0.05, asyncio.get_running_loop().time)
        try:
            with pytest.raises(DeadlineExceeded) as caught:
                await stream.start_tls(client_context(), NAME)
        finally:
            close_deadline(deadline)
        assert caught.value.phase == "tls"


async def test_a_cancelled_handshake_closes_the_connection_at_once() -> None:
    with Peer(silent) as peer:
        for number in range(20):
            stream = await connect(peer)
            with nothing_left():
                handshake = asyncio.ensure_future(stream.start_tls(client_context(), NAME))
                await in_a_wait(handshake)
                handshake.cancel()
                assert isinstance(await end_of(handshake), asyncio.CancelledError)
                assert stream.get_extra_info("socket").fileno() < 0
            await peer.served(number)


@pytest.mark.parametrize(
    ("context", "name", "timeout", "error"),
    [
        (client_context(), "two words", None, ArgumentValueError),
        (client_context(), None, None, ArgumentValueError),
        ("context", NAME, None, ArgumentTypeError),
        (client_context(), NAME, -1, ArgumentValueError),
        (client_context(), NAME, 0, ConnectTimeout),
    ],
    ids=["name", "no name", "context", "limit", "limit passed"],
)
async def test_a_handshake_that_cannot_begin_closes_the_stream(
    context: Any, name: str | None, timeout: float | None, error: type[Exception]
) -> None:
    with pair() as (stream, theirs):
        with pytest.raises(error):
            await stream.start_tls(context, name, timeout=timeout)
        assert theirs.recv(100) == b""
        assert stream.get_extra_info("socket").fileno() < 0


async def test_a_stream_in_use_is_left_as_it_was() -> None:
    with pair() as (stream, theirs):
        reading = asyncio.ensure_future(stream.read())
        await in_a_wait(reading)
        with pytest.raises(ConcurrencyError):
            await stream.start_tls("nonsense", "two words", timeout=-1)  # type: ignore[arg-type] # no matter what
        theirs.sendall(b"unharmed")
        assert await reading == b"unharmed"


async def test_closing_ends_a_handshake() -> None:
    with pair() as (stream, theirs):
        handshake = asyncio.ensure_future(stream.start_tls(client_context(), NAME))
        await in_a_wait(handshake)
        await stream.aclose()
        raised = await end_of(handshake)
        assert isinstance(raised, ConnectError)
        assert raised.message == "the connection broke during the TLS handshake: the stream is closed"
        assert has_ended(theirs)


# --- bytes ---------------------------------------------------------------------------------------------------


async def test_both_directions_at_once() -> None:
    data = random.Random(2).randbytes(6_000_000)
    with Peer(over_tls(tls_echo)) as peer:
        async with await connect_tls(peer) as stream:
            reading = asyncio.ensure_future(read_exactly(stream, len(data)))
            await stream.write(data, timeout=PATIENCE)
            assert await reading == data


async def test_an_orderly_end_and_one_that_is_none() -> None:
    def orderly(tls: ServerTLS) -> None:
        tls.sendall(b"all")
        tls.end()

    for script, expected in ((orderly, b""), (lambda tls: tls.sendall(b"all"), None)):
        with Peer(over_tls(script)) as peer:
            async with await connect_tls(peer) as stream:
                assert await read_exactly(stream, 3) == b"all"
                if expected is not None:
                    assert [await stream.read(timeout=PATIENCE) for _ in range(2)] == [b"", b""]
                else:
                    with pytest.raises(ReadError, match="ended without TLS's closing message"):
                        await stream.read(timeout=PATIENCE)


async def test_half_closed_by_the_peer_we_may_still_send() -> None:
    def script(tls: ServerTLS) -> bytes:
        tls.end()
        return tls._beneath.recv(65536)  # type: ignore[no-any-return] # it is a socket

    with Peer(over_tls(script)) as peer:
        async with await connect_tls(peer) as stream:
            assert await stream.read(timeout=PATIENCE) == b""
            await stream.write(b"x" * 1000)
            assert len(await peer.served()) > 1000


async def test_a_cancelled_read_loses_nothing() -> None:
    go = threading.Event()

    def script(tls: ServerTLS) -> None:
        go.wait(PATIENCE)
        tls.sendall(b"abc")
        tls.recv(1)

    with Peer(over_tls(script)) as peer:
        async with await connect_tls(peer) as stream:
            for _ in range(3):
                reading = asyncio.ensure_future(stream.read())
                await in_a_wait(reading)
                reading.cancel()
                assert isinstance(await end_of(reading), asyncio.CancelledError)
            go.set()
            assert await read_exactly(stream, 3) == b"abc"


async def test_a_reader_does_not_wait_for_a_writer_who_waits_for_the_peer() -> None:
    go = threading.Event()

    def script(tls: ServerTLS) -> int:
        for number in range(50):
            tls.sendall(b"%02d" % number)
        go.wait(PATIENCE)
        total = 0
        while data := tls.recv(65536):
            total += len(data)
        return total

    with Peer(over_tls(script)) as peer:
        stream = await connect_tls(peer)
        writing = asyncio.ensure_future(stream.write(bytes(LARGE)))
        await in_a_wait(writing)
        assert await read_exactly(stream, 100) == b"".join(b"%02d" % number for number in range(50))
        assert not writing.done()
        go.set()
        await writing
        await stream.aclose()
        assert await peer.served() == LARGE


async def test_what_a_reader_must_answer_goes_out_without_it() -> None:
    """An answer that the system does not take is sent as soon as it does, though nobody reads or writes then."""
    with pair() as (stream, theirs):
        transport = stream._transport
        with pytest.raises(WriteTimeout):
            await stream.write(bytes(LARGE), timeout=0.01)  # fills the system's buffers …
        with suppress(BlockingIOError):
            while True:
                transport.sock.send(b"x")  # … in which there may be room again
        transport.queue(b"the answer")
        transport.queue(b" in order")
        assert transport.unsent == b"the answer in order"
        received = bytearray()

        def receive() -> None:
            while not received.endswith(b"the answer in order"):
                received.extend(theirs.recv(1 << 20)[-40:])

        await Outcome(receive).ended()
        await until(lambda: not transport.unsent)


async def test_a_peer_that_makes_us_answer_but_does_not_read_is_cut_off() -> None:
    with Peer(over_tls(deaf)) as peer:
        stream = await connect_tls(peer)
        transport, tls = stream._transport, stream._tls
        assert tls is not None
        with pytest.raises(WriteTimeout):
            await stream.write(bytes(LARGE), timeout=0.05)
        while len(transport.unsent) <= 1024 * 1024:
            transport.queue(bytes(65536))
        tls.engine.write(b"as if it were an answer")
        with pytest.raises(ReadError, match="wants answers, and does not read them"):
            await stream.read(timeout=PATIENCE)
        stream.abort()


# --- writing until an answer comes -----------------------------------------------------------------------------


async def test_a_write_stops_when_the_peer_answers() -> None:
    go = threading.Event()

    def script(tls: ServerTLS) -> None:
        tls.recv(1)
        go.wait(PATIENCE)
        tls.sendall(b"no thanks")
        silent(tls._beneath)

    with Peer(over_tls(script)) as peer:
        stream = await connect_tls(peer)
        writing = asyncio.ensure_future(stream.write_until_readable(bytes(LARGE)))
        await in_a_wait(writing)
        go.set()
        assert 0 < await asyncio.wait_for(writing, PATIENCE) < LARGE
        assert await stream.read() == b"no thanks"
        stream.abort()


async def test_session_tickets_are_no_answer() -> None:
    def script(tls: ServerTLS) -> int:
        total = 0
        while total < 1_000_000:
            total += len(tls.recv(65536))
        tls.sendall(b"thanks")
        return total

    with Peer(over_tls(script)) as peer:
        async with await connect_tls(peer) as stream:
            # A server sends its tickets right after the handshake.
            assert stream.get_extra_info("is_readable") is False
            assert await stream.write_until_readable(bytes(1_000_000), timeout=PATIENCE) == 1_000_000
            assert await stream.read(timeout=PATIENCE) == b"thanks"


async def test_is_readable_looks_through_tls() -> None:
    go = threading.Event()

    def script(tls: ServerTLS) -> None:
        go.wait(PATIENCE)
        tls.sendall(b"ab")
        tls.recv(1)

    with Peer(over_tls(script)) as peer:
        async with await connect_tls(peer) as stream:
            for _ in range(20):
                assert stream.get_extra_info("is_readable") is False
                await asyncio.sleep(0)
            go.set()
            await until(lambda: stream.get_extra_info("is_readable"))
            assert await stream.read(1) == b"a"
            assert stream.get_extra_info("is_readable") is True
            assert await stream.read() == b"b"
            assert stream.get_extra_info("is_readable") is False


# --- the farewell ----------------------------------------------------------------------------------------------


def until_the_end(tls: ServerTLS) -> str:
    tls.sendall(b"x")  # the client reads it, and the session tickets before it
    try:
        while tls.recv(65536):
            pass
    except ConnectionError:
        return "cut off"
    return "orderly"


@pytest.mark.parametrize(("way", "end"), [("close_now", "orderly"), ("abort", "cut off")])
@pytest.mark.parametrize("layers", [1, 2])
async def test_closing_says_farewell_and_aborting_does_not(way: str, end: str, layers: int) -> None:
    with Peer(over_tls(until_the_end, *(server_context() for _ in range(layers)))) as peer:
        stream = await connect_tls(peer, layers)
        assert await stream.read() == b"x"
        getattr(stream, way)()
        assert await peer.served() == end


async def test_no_farewell_follows_half_a_message() -> None:
    """Or the peer would take what it has for the whole."""
    with Peer(over_tls(until_the_end)) as peer:
        stream = await connect_tls(peer)
        assert await stream.read() == b"x"
        writing = asyncio.ensure_future(stream.write(bytes(LARGE)))
        await asyncio.sleep(0)
        writing.cancel()
        assert isinstance(await end_of(writing), asyncio.CancelledError)
        await until(lambda: not stream._transport.unsent)
        with pytest.raises(WriteError, match="an earlier write was not completed"):
            await stream.write(b"x")
        await stream.aclose()
        assert await peer.served() == "cut off"


async def test_closing_while_the_peer_reads_nothing_does_not_wait() -> None:
    with Peer(over_tls(deaf)) as peer:
        stream = await connect_tls(peer)
        assert await stream.read() == b"x"
        with pytest.raises(WriteTimeout):
            await stream.write(bytes(LARGE), timeout=0.05)
        with nothing_left():
            await stream.aclose()
        assert stream.get_extra_info("socket").fileno() < 0


async def test_closing_from_another_loop_still_frees_the_socket() -> None:
    with Peer(over_tls(until_the_end)) as peer:
        stream = await connect_tls(peer)
        assert await stream.read() == b"x"
        Outcome(lambda: asyncio.run(stream.aclose())).result()
        assert await peer.served() == "cut off"


async def test_the_context_s_protocols_are_offered() -> None:
    server, client = server_context(), client_context()
    server.set_alpn_protocols(["h2", "http/1.1"])
    client.set_alpn_protocols(["h2"])
    with Peer(over_tls(tls_echo, server)) as peer:
        async with await connect(peer) as stream:
            await stream.start_tls(client, NAME, timeout=PATIENCE)
            assert stream.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"


async def test_tls_1_2_too() -> None:
    with Peer(over_tls(tls_echo, server_context(version=ssl.TLSVersion.TLSv1_2))) as peer:
        async with await connect_tls(peer) as stream:
            await stream.write(b"old")
            assert await stream.read() == b"old"


async def test_plain_text_before_the_handshake_is_not_taken_for_tls() -> None:
    def inject(connection: socket.socket) -> None:
        connection.sendall(b"injected")
        echo(connection)

    with Peer(inject) as peer:
        stream = await connect(peer)
        with pytest.raises(ConnectError):
            await stream.start_tls(client_context(), NAME, timeout=PATIENCE)
