"""Connections in memory: what a peer says comes when it is due, and the streams keep their contract."""

import importlib
import math
import ssl
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    ReadError,
    ReadTimeout,
    TimingSpan,
    WriteError,
    WriteTimeout,
    close_deadline,
    open_deadline,
)
from lamina_mock import DeadlockError, Line, Peer, PeerBackend, RuntimeClock, TLSFacts, VirtualClock
from mock_faces import Face, async_face, face

__all__ = ["async_face", "face"]  # fixtures

CONTEXT = ssl.create_default_context()


class Recorder(Peer):
    """Does something when the connection is made, and keeps what it hears."""

    name = "the recorder"

    def __init__(self, begin: Callable[[Line], object] = lambda line: None) -> None:
        self.begin = begin
        self.heard: list[tuple[float, str | bytes]] = []

    def connected(self, line: Line, now: float) -> None:
        self.line = line
        self.begin(line)

    def secured(self, now: float) -> None:
        self.heard.append((now, "TLS"))

    def received(self, data: bytes, now: float) -> None:
        self.heard.append((now, data))

    def ended(self, now: float) -> None:
        self.heard.append((now, "the end"))


class World:
    """A clock, a peer and the stream to it."""

    def __init__(self, face: Face, begin: Callable[[Line], object] = lambda line: None) -> None:
        self.clock = VirtualClock()
        self.peer = Recorder(begin)
        self.backend = face.peers(lambda host, port: self.peer, clock=self.clock)

    async def connect(self) -> Any:
        return await self.backend.connect_tcp("www.example.org", 80)


# --- what the peer says ------------------------------------------------------------------------------------


def test_what_is_said_comes_at_its_time_and_in_its_order(face: Face) -> None:
    def begin(line: Line) -> None:
        line.say(b"at once")
        line.say(b"later", 2.0)
        line.say(b"never before", 1.0)
        line.end(3.0)

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        got = [(await stream.read(), world.clock()) for _ in range(5)]
        assert got == [(b"at once", 0.0), (b"later", 2.0), (b"never before", 2.0), (b"", 3.0), (b"", 3.0)]

    face.run(body)


@given(
    said=st.lists(st.tuples(st.binary(max_size=20), st.floats(0, 5)), max_size=8),
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=8),
    most=st.none() | st.integers(1, 9),
)
def test_no_byte_is_lost_or_added_however_it_is_said_and_read(
    said: list[tuple[bytes, float]], sizes: list[int], most: int | None
) -> None:
    def begin(line: Line) -> None:
        for data, at in said:
            line.say(data, at)
        line.end()
        if most is not None:
            line.read_at_most(most)

    stream = PeerBackend(lambda *_: Recorder(begin)).connect_tcp("a.example", 80)
    received = []
    for turn in range(1000):
        size = sizes[turn % len(sizes)]
        part = stream.read(size)
        assert len(part) <= min(size, most or size)
        if not part:
            break
        received.append(part)
    assert b"".join(received) == b"".join(data for data, _ in said)


def test_a_read_without_number_gives_at_most_64_kib(face: Face) -> None:
    async def body() -> None:
        stream = await World(face, lambda line: line.say(bytes(100_000))).connect()
        assert [len(await stream.read()), len(await stream.read())] == [65_536, 34_464]

    face.run(body)


def test_nothing_that_is_said_as_nothing_ends_the_stream(face: Face) -> None:
    async def body() -> None:
        world = World(face, lambda line: line.say(b""))
        stream = await world.connect()
        with pytest.raises(ReadTimeout):
            await stream.read(timeout=1.0)

    face.run(body)


def test_a_reset_comes_behind_what_was_said_and_breaks_both_sides(face: Face) -> None:
    def begin(line: Line) -> None:
        line.say(b"last words")
        line.reset(1.0)

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        await stream.write(b"hello")
        assert await stream.read() == b"last words"
        for _ in range(2):
            with pytest.raises(ReadError, match="reset by the recorder"):
                await stream.read()
            with pytest.raises(WriteError, match="reset by the recorder"):
                await stream.write(b"hello")
        assert world.clock() == 1.0

    face.run(body)


def test_a_reset_waits_for_what_was_said_before(face: Face) -> None:
    def begin(line: Line) -> None:
        line.say(b"slow words", 5.0)
        line.reset(1.0)

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        world.clock.advance(4.0)
        await stream.write(b"not yet")
        world.clock.advance(1.0)
        with pytest.raises(WriteError, match="reset"):
            await stream.write(b"now")
        assert await stream.read() == b"slow words"

    face.run(body)


def test_what_is_planned_happens_at_its_time_and_may_go_on_planning(face: Face) -> None:
    def begin(line: Line) -> None:
        def tick(now: float) -> None:
            line.say(b"%d" % int(now), now)
            if now < 3:
                line.call_at(now + 1, tick)
            else:
                line.end(now)

        line.call_at(1.0, tick)

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        got = [(await stream.read(), world.clock()) for _ in range(4)]
        assert got == [(b"1", 1.0), (b"2", 2.0), (b"3", 3.0), (b"", 3.0)]

    face.run(body)


def test_what_nobody_looked_at_meanwhile_has_happened_at_its_time() -> None:
    times: list[float] = []
    clock = VirtualClock()

    def begin(line: Line) -> None:
        for at in (3.0, 1.0, 2.0):
            line.call_at(at, times.append)

    stream = PeerBackend(lambda *_: Recorder(begin), clock=clock).connect_tcp("a.example", 80)
    clock.advance(2.5)
    assert times == []
    assert stream.get_extra_info("is_readable") is False
    assert times == [1.0, 2.0]
    stream.close()
    clock.advance(2.5)
    assert stream.get_extra_info("is_readable") is True
    assert times == [1.0, 2.0]  # a closed connection is nobody's plan any more


# --- what the client writes --------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [b"hello", bytearray(b"hello"), memoryview(b"hello")])
def test_the_peer_hears_what_is_written(face: Face, buffer: Any) -> None:
    async def body() -> None:
        world = World(face)
        stream = await world.connect()
        await stream.write(buffer)
        await stream.write(b"")
        world.clock.advance(2.0)
        await stream.aclose()
        await stream.aclose()
        assert world.peer.heard == [(0.0, b"hello"), (2.0, "the end")]

    face.run(body)


def test_what_has_come_is_put_into_a_buffer(face: Face) -> None:
    def begin(line: Line) -> None:
        line.say(b"hello", 1.0)
        line.end(2.0)

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        buffer = bytearray(b"########")
        with pytest.raises(ReadTimeout):
            await stream.read_into(buffer, timeout=0.5)
        with pytest.raises(ArgumentTypeError, match="read-only"):
            await stream.read_into(bytes(3))
        with memoryview(buffer)[:3] as part:
            assert await stream.read_into(part) == 3
        assert world.clock() == 1.0
        assert buffer == b"hel#####"
        assert await stream.read_into(buffer) == 2
        assert buffer == b"lol#####"
        assert await stream.read_into(buffer) == await stream.read_into(buffer) == 0
        assert world.clock() == 2.0
        buffer.clear()

    face.run(body)


@pytest.mark.parametrize("buffer", ["text", 3, None, [1, 2]])
def test_what_is_not_bytes_is_refused_and_harms_nothing(face: Face, buffer: Any) -> None:
    async def body() -> None:
        stream = await World(face).connect()
        with pytest.raises(ArgumentTypeError):
            await stream.write(buffer)
        await stream.write(b"hello")

    face.run(body)


def test_a_peer_that_stops_reading_lets_writes_wait(face: Face) -> None:
    async def body() -> None:
        world = World(face, lambda line: line.stop_reading(capacity=3))
        stream = await world.connect()
        await stream.write(b"abc", timeout=1.0)
        assert world.clock() == 0.0
        assert world.peer.heard == []
        with pytest.raises(WriteTimeout):
            await stream.write(b"def", timeout=1.0)
        assert world.clock() == 1.0
        with pytest.raises(WriteError, match="broken off"):
            await stream.write(b"ghi")

    face.run(body)


def test_a_peer_that_reads_again_takes_what_has_waited(face: Face) -> None:
    def begin(line: Line) -> None:
        line.stop_reading(capacity=4)
        line.read_again(5.0)

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        await stream.write(b"abcdef", timeout=10.0)
        assert world.clock() == 5.0
        assert world.peer.heard == [(5.0, b"abcd"), (5.0, b"ef")]

    face.run(body)


def test_a_write_may_stop_when_the_peer_answers(face: Face) -> None:
    def begin(line: Line) -> None:
        line.stop_reading(capacity=100_000)
        line.say(b"413", 1.0)

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        assert await stream.write_until_readable(bytes(1_000_000)) == 100_000
        assert world.clock() == 1.0
        assert await stream.read() == b"413"
        world.peer.line.read_again()
        assert await stream.write_until_readable(b"abc") == 3

    face.run(body)


def test_what_goes_at_once_is_told_from_what_has_to_wait(face: Face) -> None:
    def begin(line: Line) -> None:
        line.stop_reading(capacity=3)
        line.read_again(2.0)

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        await stream.wait_writable()
        assert stream.write_now(b"abcdef") == 3
        assert stream.write_now(b"def") == 0
        assert stream.has_unsent is False
        for error, limits in ((WriteTimeout, {"timeout": 0.5}), (WriteTimeout, {"timeout": 0})):
            with pytest.raises(error):
                await stream.wait_writable(**limits)
        assert world.clock() == 0.5
        await stream.wait_writable()
        assert world.clock() == 2.0
        assert stream.write_now(b"") == 0
        assert stream.write_now(b"def") == 3
        assert world.peer.heard == [(2.0, b"abc"), (2.0, b"def")]
        await stream.write(b"ghi")  # nothing was broken off

    face.run(body)


def test_a_wait_to_write_ends_when_there_is_something_to_read(face: Face) -> None:
    def begin(line: Line) -> None:
        line.stop_reading()
        line.say(b"hello", 1.0)
        line.reset(2.0)

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        await stream.wait_writable()
        assert world.clock() == 1.0
        assert await stream.read() == b"hello"
        with pytest.raises(WriteError, match="reset"):
            await stream.wait_writable()
        with pytest.raises(WriteError, match="reset"):
            stream.write_now(b"x")
        await stream.aclose()
        with pytest.raises(WriteError, match="closed"):
            await stream.wait_writable()
        with pytest.raises(WriteError, match="closed"):
            stream.write_now(b"x")
        assert stream.has_unsent is False

    face.run(body)


def test_who_waits_to_write_leaves_reading_and_writing_to_others(async_face: Face) -> None:
    anyio = importlib.import_module("anyio")

    def begin(line: Line) -> None:
        line.stop_reading()
        line.read_again(1.0)
        line.say(b"hello", 0.5)

    async def body() -> None:
        world = World(async_face, begin)
        stream = await world.connect()
        seen: list[int] = []

        async def write_meanwhile() -> None:
            await anyio.lowlevel.checkpoint()
            seen.append(stream.write_now(b"x"))

        async def wait_meanwhile() -> None:
            await anyio.lowlevel.checkpoint()
            await stream.wait_writable()
            assert world.clock() == 1.0

        # The reader hears the answer, so that it does not end the other's wait.
        results = await async_face.together(stream.read, wait_meanwhile, wait_meanwhile, write_meanwhile)
        assert sorted(type(each).__name__ for each in results) == [
            "ConcurrencyError",
            "NoneType",
            "NoneType",
            "bytes",
        ]
        assert seen == [0]
        world.peer.line.stop_reading()

        async def overtake() -> None:
            await anyio.lowlevel.checkpoint()
            world.peer.line.read_again()
            seen.append(stream.write_now(b"x"))

        await async_face.together(lambda: stream.write(b"y"), overtake)
        assert seen == [0, 0]
        assert world.peer.heard == [(1.0, b"y")]

    async_face.run(body)


def test_an_end_of_the_peers_side_leaves_ours_open(face: Face) -> None:
    async def body() -> None:
        world = World(face, lambda line: line.end())
        stream = await world.connect()
        assert await stream.read() == b""
        await stream.write(b"still here")
        assert world.peer.heard == [(0.0, b"still here")]

    face.run(body)


# --- faults at byte n --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5, 9])
@pytest.mark.parametrize("fault", ["reset", "eof", "stall"])
def test_a_fault_comes_after_exactly_so_many_bytes_read(face: Face, size: int, fault: Any) -> None:
    def begin(line: Line) -> None:
        line.say(b"012345")
        line.say(b"6789")
        line.fault_after_reading(size, fault)

    async def body() -> None:
        stream = await World(face, begin).connect()
        received = b""
        for _ in range(10):
            if len(received) == size:
                break
            received += await stream.read(4)
        assert received == b"0123456789"[:size]
        assert stream.get_extra_info("is_readable") is (fault != "stall")
        if fault == "eof":
            assert [await stream.read(), await stream.read()] == [b"", b""]
        elif fault == "reset":
            with pytest.raises(ReadError, match="reset"):
                await stream.read()
            with pytest.raises(WriteError, match="reset"):
                await stream.write(b"x")
        else:
            with pytest.raises(ReadTimeout):
                await stream.read(timeout=5.0)
            await stream.write(b"x")

    face.run(body)


@pytest.mark.parametrize("size", [0, 1, 5])
@pytest.mark.parametrize("fault", ["reset", "eof", "stall"])
def test_a_fault_comes_after_exactly_so_many_bytes_written(face: Face, size: int, fault: Any) -> None:
    def begin(line: Line) -> None:
        line.say(b"early")
        line.fault_after_writing(size, fault)

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        if fault == "eof":
            await stream.write(b"01234567")
            await stream.write(b"89")
        elif fault == "reset":
            with pytest.raises(WriteError, match="reset"):
                await stream.write(b"01234567")
        else:
            with pytest.raises(WriteTimeout):
                await stream.write(b"01234567", timeout=1.0)
        assert b"".join(data for _, data in world.peer.heard if isinstance(data, bytes)) == b"01234567"[:size]
        assert await stream.read() == b"early"
        if fault == "eof":
            assert await stream.read() == b""
        elif fault == "reset":
            with pytest.raises(ReadError, match="reset"):
                await stream.read()

    face.run(body)


# --- limits ------------------------------------------------------------------------------------------------


def test_a_limit_that_has_passed_does_nothing(face: Face) -> None:
    async def body() -> None:
        world = World(face, lambda line: line.say(b"hello"))
        stream = await world.connect()
        with pytest.raises(ReadTimeout):
            await stream.read(timeout=0)
        with pytest.raises(WriteTimeout):
            await stream.write(b"hello", timeout=0)
        with world.clock:
            deadline = open_deadline(0, world.clock)
            try:
                with pytest.raises(DeadlineExceeded):
                    await stream.read()
                with pytest.raises(DeadlineExceeded):
                    await stream.write(b"hello")
            finally:
                close_deadline(deadline)
        assert world.peer.heard == []
        assert await stream.read() == b"hello"
        await stream.write(b"hello")

    face.run(body)


@pytest.mark.parametrize("timeout", [-1.0, math.nan])
def test_a_limit_that_makes_no_sense_is_refused(face: Face, timeout: float) -> None:
    async def body() -> None:
        world = World(face)
        with pytest.raises(ArgumentValueError):
            await world.backend.connect_tcp("a.example", 80, timeout=timeout)
        stream = await world.connect()
        for operation in (stream.read(timeout=timeout), stream.write(b"x", timeout=timeout)):
            with pytest.raises(ArgumentValueError):
                await operation

    face.run(body)


@pytest.mark.parametrize(("size", "error"), [(0, ArgumentValueError), ("5", ArgumentTypeError)])
def test_a_read_of_no_bytes_is_refused(face: Face, size: Any, error: type[Exception]) -> None:
    async def body() -> None:
        stream = await World(face, lambda line: line.say(b"hello")).connect()
        with pytest.raises(error, match="max_bytes"):
            await stream.read(size)
        assert await stream.read() == b"hello"

    face.run(body)


def test_a_read_that_timed_out_loses_nothing(face: Face) -> None:
    async def body() -> None:
        stream = await World(face, lambda line: line.say(b"hello", 2.0)).connect()
        with pytest.raises(ReadTimeout):
            await stream.read(timeout=1.0)
        assert await stream.read(timeout=1.0) == b"hello"

    face.run(body)


# --- connecting --------------------------------------------------------------------------------------------


def test_connecting_takes_as_long_as_the_peer_has_it(face: Face) -> None:
    async def body() -> None:
        world = World(face)
        world.peer.connect_delay = 3.0
        with pytest.raises(ConnectTimeout) as caught:
            await world.backend.connect_tcp("a.example", 80, timeout=2.0)
        assert caught.value.phase == "connect"
        stream = await world.backend.connect_tcp("a.example", 80, timeout=3.5)
        assert world.clock() == 5.0
        assert stream.get_extra_info("timings") == (TimingSpan("tcp", 2.0, 5.0),)

    face.run(body)


def test_a_peer_may_refuse(face: Face) -> None:
    async def body() -> None:
        world = World(face)
        world.peer.connect_error = "connection refused"
        with pytest.raises(ConnectError, match="connection refused"):
            await world.connect()

    face.run(body)


@pytest.mark.parametrize(("host", "port"), [("", 80), ("a b", 80), ("a.example", 0), ("a.example", 65536)])
def test_an_address_that_makes_no_sense_is_refused(face: Face, host: str, port: int) -> None:
    async def body() -> None:
        with pytest.raises(ArgumentValueError):
            await World(face).backend.connect_tcp(host, port)

    face.run(body)


def test_a_unix_socket_has_a_path(face: Face) -> None:
    async def body() -> None:
        asked: list[tuple[str, int]] = []

        def make_peer(host: str, port: int) -> Peer:
            asked.append((host, port))
            return Peer()

        backend = face.peers(make_peer)
        stream = await backend.connect_unix_socket("/run/app.sock")
        assert asked == [("/run/app.sock", 0)]
        assert stream.get_extra_info("server_addr") == "/run/app.sock"
        assert stream.get_extra_info("client_addr") == ""
        assert [span.name for span in stream.get_extra_info("timings")] == ["unix"]
        with pytest.raises(ArgumentTypeError):
            await backend.connect_unix_socket(b"/run/app.sock")

    face.run(body)


def test_facts(face: Face) -> None:
    async def body() -> None:
        world = World(face)
        stream = await world.connect()
        assert stream.get_extra_info("server_addr") == ("www.example.org", 80)
        assert stream.get_extra_info("client_addr") == ("127.0.0.1", 49152)
        assert (await world.connect()).get_extra_info("client_addr") == ("127.0.0.1", 49153)
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("socket") is None
        assert stream.get_extra_info("nonsense") is None
        assert repr(stream).endswith("WireStream [open, www.example.org:80, the recorder]>")
        assert repr(world.peer.line) == "<Line [open, www.example.org:80, the recorder]>"
        await stream.aclose()
        assert repr(stream).endswith("WireStream [closed, www.example.org:80, the recorder]>")
        assert "PeerBackend" in repr(world.backend)

    face.run(body)


# --- TLS ---------------------------------------------------------------------------------------------------


def test_a_handshake_comes_to_what_the_peer_has(face: Face) -> None:
    certificate = {"subject": ((("commonName", "www.example.org"),),)}

    def begin(line: Line) -> None:
        line.tls_facts = TLSFacts(delay=0.5, certificate=certificate)
        line.selected_alpn = "h2"

    async def body() -> None:
        world = World(face, begin)
        stream = await world.connect()
        assert await stream.start_tls(CONTEXT, "www.example.org", timeout=1.0) is stream
        found = stream.get_extra_info("ssl_object")
        assert found.selected_alpn_protocol() == "h2"
        assert found.version() == "TLSv1.3"
        assert found.cipher()[1] == "TLSv1.3"
        assert found.getpeercert() == certificate
        assert found.getpeercert(True) is None
        assert found.server_hostname == world.peer.line.server_hostname == "www.example.org"
        assert world.peer.line.tls
        assert world.peer.heard == [(0.0, "TLS")]
        assert stream.get_extra_info("timings")[1:] == (TimingSpan("tls", 0.0, 0.5),)
        assert repr(stream).endswith("the recorder, TLS]>")
        await stream.write(b"hello")

    face.run(body)


def test_a_handshake_may_fail_or_take_too_long_and_closes_the_stream(face: Face) -> None:
    async def body() -> None:
        for facts, error in [
            (TLSFacts(error="certificate has expired"), ConnectError),
            (TLSFacts(delay=math.inf), ConnectTimeout),
        ]:
            world = World(face, lambda line, facts=facts: setattr(line, "tls_facts", facts))  # type: ignore[misc]  # a default of a lambda has no type
            stream = await world.connect()
            with pytest.raises(error) as caught:
                await stream.start_tls(CONTEXT, "www.example.org", timeout=4.0)
            assert caught.value.phase == "tls"
            assert facts.error is None or facts.error in str(caught.value)
            with pytest.raises(ReadError, match="closed"):
                await stream.read()
            assert world.peer.heard[-1][1] == "the end"

    face.run(body)


@pytest.mark.parametrize(
    "arguments",
    [{"ssl_context": None}, {"server_hostname": "a b"}, {"timeout": -1}, {"server_hostname": b"a"}],
)
def test_a_handshake_that_makes_no_sense_closes_the_stream(face: Face, arguments: dict[str, Any]) -> None:
    async def body() -> None:
        world = World(face)
        stream = await world.connect()
        with pytest.raises((ArgumentTypeError, ArgumentValueError)):
            await stream.start_tls(**{"ssl_context": CONTEXT, **arguments})
        assert world.peer.heard == [(0.0, "the end")]

    face.run(body)


# --- several users, closing, cancellation ------------------------------------------------------------------


def test_a_closed_stream_has_its_own_error_for_each_operation(face: Face) -> None:
    async def body() -> None:
        stream = await World(face, lambda line: line.say(b"unread")).connect()
        stream.abort()
        assert stream.get_extra_info("is_readable") is True
        for operation, error in [
            (stream.read(), ReadError),
            (stream.write(b"x"), WriteError),
            (stream.start_tls(CONTEXT), ConnectError),
        ]:
            with pytest.raises(error, match="the stream is closed"):
                await operation

    face.run(body)


def test_two_readers_or_writers_are_told(async_face: Face) -> None:
    def begin(line: Line) -> None:
        line.say(b"hello", 1.0)
        line.stop_reading()
        line.read_again(1.0)

    async def body() -> None:
        world = World(async_face, begin)
        stream = await world.connect()
        results = await async_face.together(stream.read, stream.read)
        assert b"hello" in results
        assert [type(each) for each in results if each != b"hello"] == [ConcurrencyError]
        world.peer.line.stop_reading()
        world.peer.line.read_again(2.0)
        anyio = importlib.import_module("anyio")

        async def handshake() -> None:
            await anyio.lowlevel.checkpoint()
            await stream.start_tls(CONTEXT)

        results = await async_face.together(*[lambda: stream.write(b"x")] * 2, handshake)
        assert sorted(str(type(each).__name__) for each in results) == [
            "ConcurrencyError",
            "ConcurrencyError",
            "NoneType",
        ]
        assert world.peer.heard == [(2.0, b"x")]  # and the handshake that was refused has not closed it

    async_face.run(body)


def test_one_may_read_while_another_writes(async_face: Face) -> None:
    def begin(line: Line) -> None:
        line.say(b"hello", 2.0)
        line.stop_reading()
        line.read_again(1.0)

    async def body() -> None:
        world = World(async_face, begin)
        stream = await world.connect()
        assert await async_face.together(stream.read, lambda: stream.write(b"x")) == [b"hello", None]
        assert world.clock() == 2.0

    async_face.run(body)


@pytest.mark.parametrize("operation", ["read", "write", "start_tls"])
def test_closing_wakes_whoever_waits(async_face: Face, operation: str) -> None:
    errors = {"read": ReadError, "write": WriteError, "start_tls": ConnectError}
    anyio = importlib.import_module("anyio")

    def begin(line: Line) -> None:
        line.stop_reading()
        line.tls_facts = TLSFacts(delay=math.inf)

    async def body() -> None:
        stream = await World(async_face, begin).connect()
        arguments = {"read": (), "write": (b"x",), "start_tls": (CONTEXT,)}[operation]

        async def close() -> None:
            await anyio.lowlevel.checkpoint()
            await stream.aclose()

        result, _ = await async_face.together(lambda: getattr(stream, operation)(*arguments), close)
        assert isinstance(result, errors[operation])
        assert "the stream is closed" in str(result)

    async_face.run(body)


def test_the_peers_of_a_backend_are_never_called_at_the_same_time() -> None:
    inside: list[int] = []
    most: list[int] = []
    lines: list[Line] = []

    class Together(Peer):
        """Answers all when all have asked, on the others' lines."""

        def connected(self, line: Line, now: float) -> None:
            self.line = line

        def received(self, data: bytes, now: float) -> None:
            inside.append(1)
            lines.append(self.line)
            most.append(sum(range(1000)) * 0 + len(inside))
            if len(lines) % 4 == 0:
                for line in lines[-4:]:
                    line.say(data, now)
            inside.pop()

    backend = PeerBackend(lambda host, port: Together(), clock=RuntimeClock())

    def ask() -> None:
        with backend.connect_tcp("a.example", 80) as stream:
            for _ in range(50):
                stream.write(b"?")
                assert stream.read(timeout=60.0) == b"?"

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads)
    assert len(most) == 200
    assert set(most) == {1}


def test_closing_wakes_a_thread() -> None:
    stream = PeerBackend(lambda *_: Peer()).connect_tcp("a.example", 80)
    thread = threading.Timer(0.01, stream.close)
    thread.start()
    with pytest.raises(ReadError, match="the stream is closed"):
        stream.read()
    thread.join(30)


def test_a_cancelled_read_loses_nothing_and_a_cancelled_write_breaks_off(async_face: Face) -> None:
    anyio = importlib.import_module("anyio")

    def begin(line: Line) -> None:
        line.say(b"hello", 1.0)
        line.stop_reading(2)

    async def body() -> None:
        world = World(async_face, begin)
        stream = await world.connect()
        for operation in (stream.read, lambda: stream.write(b"abcd")):
            async with anyio.create_task_group() as group:
                group.start_soon(operation)
                await anyio.lowlevel.checkpoint()
                group.cancel_scope.cancel()
        assert await stream.read() == b"hello"
        with pytest.raises(WriteError, match="broken off"):
            await stream.write(b"e")

    async_face.run(body)


def test_a_cancelled_handshake_closes_the_stream(async_face: Face) -> None:
    anyio = importlib.import_module("anyio")

    async def body() -> None:
        world = World(async_face, lambda line: setattr(line, "tls_facts", TLSFacts(delay=math.inf)))
        stream = await world.connect()
        async with anyio.create_task_group() as group:
            group.start_soon(stream.start_tls, CONTEXT)
            await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        assert world.peer.heard[-1] == (0.0, "the end")

    async_face.run(body)


def test_a_stream_can_be_closed_promptly(async_face: Face) -> None:
    async def body() -> None:
        world = World(async_face)
        stream = await world.connect()
        stream.close_now()
        assert world.peer.heard == [(0.0, "the end")]

    async_face.run(body)


def test_a_deadlock_names_the_peer_and_its_state(face: Face) -> None:
    class Waiting(Recorder):
        def state(self) -> str:
            return "is at step 3"

    async def body() -> None:
        world = World(face)
        world.peer = Waiting()
        world.clock.patience = 0.05
        with pytest.raises(
            DeadlockError, match=r"the recorder has nothing more to say or do.*; it is at step 3"
        ):
            await (await world.connect()).read()

    face.run(body)


@pytest.mark.parametrize("fault", ["reset", "eof", "stall"])
def test_a_fault_may_be_set_when_its_byte_has_been_written(face: Face, fault: Any) -> None:
    async def body() -> None:
        world = World(face)
        stream = await world.connect()
        await stream.write(b"0123456789")
        world.peer.line.fault_after_writing(3, fault)
        if fault == "eof":
            await stream.write(b"more")
        else:
            with pytest.raises(WriteError if fault == "reset" else WriteTimeout):
                await stream.write(b"more", timeout=1.0)
        assert b"".join(data for _, data in world.peer.heard if isinstance(data, bytes)) == b"0123456789"

    face.run(body)


def test_a_backend_made_in_the_block_of_a_clock_keeps_it_in_other_threads() -> None:
    seen: list[float] = []

    def read() -> None:
        with backend.connect_tcp("a.example", 80) as stream:
            with pytest.raises(ReadTimeout):
                stream.read(timeout=60.0)
            seen.append(clock())

    with VirtualClock() as clock:
        backend = PeerBackend(lambda host, port: Peer())
        thread = threading.Thread(target=read)
        thread.start()
        thread.join(30)
    assert seen == [60.0]
    assert clock() == 60.0
