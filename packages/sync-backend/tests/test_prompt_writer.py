"""Sending what goes at once, and waiting apart from that: `PromptWriter` over sockets, at every depth of TLS."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import ssl
import struct
import sys
import threading
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    ConcurrencyError,
    DeadlineExceeded,
    PromptWriter,
    ReadError,
    WriteError,
    WriteTimeout,
    close_deadline,
    open_deadline,
)
from lamina_sync_backend import SyncStream
from lamina_sync_backend._tls import Sender
from lamina_sync_backend._transport import SENDING, WAITING, WRITING
from sync_peers import PATIENCE, Outcome, client_context, in_thread, server_context, until
from sync_tls import ServerTLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

NUMBERS = b"".join(struct.pack("!I", number) for number in range(1 << 18))
"""A megabyte in which each piece can be told from every other."""

SMALL = 16 * 1024
"""Bytes that our system takes, so that little is on the way."""

SLICE = 128 * 1024
"""What may wait unsent over TLS."""


@pytest.fixture(params=[0, 1, 2], ids=["plain", "TLS", "TLS in TLS"])
def depth(request: pytest.FixtureRequest) -> int:
    chosen: int = request.param
    return chosen


class Server:
    """A peer in a thread, and our stream; it does nothing before it is let go on.

    It is at the other end of a pair of sockets, whose system takes the same number of bytes each time.
    """

    def __init__(self, stream: SyncStream) -> None:
        self.stream = stream
        self.go_on = threading.Event()
        self.thread: Outcome

    def fill(self, data: bytes = NUMBERS) -> int:
        """Send until nothing more is taken."""
        sent = 0
        while count := self.stream.write_now(memoryview(data)[sent:]):
            sent += count
        assert 0 < sent < len(data)
        return sent

    def send(self, data: bytes) -> None:
        """Send all of it, by prompt writes."""
        sent = 0
        while sent < len(data) or self.stream.has_unsent:
            count = self.stream.write_now(memoryview(data)[sent:])
            sent += count
            if not count:
                self.stream.wait_writable(timeout=PATIENCE)


@contextmanager
def served(
    depth: int, script: Callable[[Any], object], greeting: bytes = b"", *, tcp: bool = False
) -> Iterator[Server]:
    if tcp:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = socket.create_connection(listener.getsockname())
            theirs = listener.accept()[0]
    else:
        ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
    theirs.settimeout(PATIENCE)

    def serve() -> None:
        with theirs:
            try:
                tls: Any = theirs
                for _ in range(depth):
                    tls = ServerTLS(tls, server_context()).handshake()
                if greeting:
                    tls.sendall(greeting)
                server.go_on.wait(PATIENCE)
                script(tls)
            except ConnectionError:
                pass  # the client has gone

    with SyncStream(ours) as stream:
        server = Server(stream)
        server.thread = in_thread(serve)
        try:
            for _ in range(depth):
                stream.start_tls(client_context(), "server.example", timeout=PATIENCE)
            yield server
        finally:
            stream.abort()
            server.go_on.set()
            server.thread.result()


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


# --- bytes -------------------------------------------------------------------------------------------------


def test_all_that_is_taken_arrives_in_order(depth: int) -> None:
    got = bytearray()
    with served(depth, take(len(NUMBERS), got)) as server:
        assert isinstance(server.stream, PromptWriter)
        server.go_on.set()
        server.send(NUMBERS)
        assert not server.stream.has_unsent
        until(lambda: len(got) == len(NUMBERS))
    assert got == NUMBERS


def test_nothing_waits_for_a_peer_that_does_not_read(depth: int) -> None:
    """B13: and a wait that has timed out has broken nothing."""
    got = bytearray()
    with served(depth, take(len(NUMBERS), got)) as server:
        stream = server.stream
        sent = server.fill()
        assert stream.has_unsent == (depth > 0)
        if stream._tls is not None:
            assert len(stream._tls._wire.unsent) < SLICE + 8192
        assert stream.write_now(b"more") == stream.write_now(b"") == 0
        # What TLS has sent after its handshake (session tickets) is there, and is nothing to read.
        with pytest.raises(WriteTimeout) as caught:
            stream.wait_writable(timeout=0.02)
        assert (caught.value.phase, caught.value.limit) == ("write", 0.02)
        with pytest.raises(WriteTimeout):
            stream.wait_writable(timeout=0)
        deadline = open_deadline(0.02, monotonic)
        try:
            with pytest.raises(DeadlineExceeded):
                stream.wait_writable(timeout=PATIENCE)
        finally:
            close_deadline(deadline)
        server.go_on.set()
        server.send(NUMBERS[sent:])
        until(lambda: len(got) == len(NUMBERS))
    assert got == NUMBERS


def test_waits_that_time_out_in_any_moment_lose_no_byte(depth: int) -> None:
    got = bytearray()
    with served(depth, take(len(NUMBERS), got)) as server:
        stream = server.stream
        server.go_on.set()
        sent = 0
        for attempt in itertools.count():
            if sent == len(NUMBERS) and not stream.has_unsent:
                break
            sent += stream.write_now(memoryview(NUMBERS)[sent : sent + 50_000])
            try:
                stream.wait_writable(timeout=attempt % 7 * 1e-4)
            except WriteTimeout:
                pass
        until(lambda: len(got) == len(NUMBERS))
    assert got == NUMBERS


@pytest.mark.parametrize("way", ["write", "read"])
def test_what_waits_goes_out_by_other_operations_too(way: str) -> None:
    got = bytearray()
    total = [len(b"!")] if way == "write" else []
    with served(1, take(total, got, b"thanks")) as server:
        total.append(server.fill())
        server.go_on.set()
        if way == "write":
            server.stream.write(b"!", timeout=PATIENCE)
        assert server.stream.read(timeout=PATIENCE) == b"thanks"
    assert got == NUMBERS[: total[-1]] + (b"!" if way == "write" else b"")


def test_what_is_no_buffer_is_refused_and_an_empty_one_sends_nothing(depth: int) -> None:
    got = bytearray()
    with served(depth, take(2, got)) as server:
        server.go_on.set()
        with pytest.raises(ArgumentTypeError):
            server.stream.write_now("text")  # type: ignore[arg-type] # a mistake
        assert server.stream.write_now(b"") == 0
        buffer = bytearray(b"ok")
        assert server.stream.write_now(buffer) == 2
        buffer.clear()  # it is not kept
        server.stream.wait_writable(timeout=PATIENCE)
        until(lambda: len(got) == 2)
    assert got == b"ok"


# --- something to read -------------------------------------------------------------------------------------


def test_a_wait_ends_when_something_can_be_read_and_leaves_it(depth: int) -> None:
    got = bytearray()
    read = threading.Event()
    total: list[int] = []

    def script(connection: Any) -> None:
        connection.sendall(b"stop")
        read.wait(PATIENCE)
        take(total, got)(connection)

    with served(depth, script) as server:
        stream = server.stream
        total.append(server.fill())
        server.go_on.set()
        for _ in range(2):  # it was left there
            stream.wait_writable(timeout=PATIENCE)
        assert stream.write_now(b"x") == 0
        assert stream.get_extra_info("is_readable")
        assert stream.read(2, timeout=PATIENCE) == b"st"
        stream.wait_writable(timeout=PATIENCE)
        assert stream.read(timeout=PATIENCE) == b"op"
        with pytest.raises(WriteTimeout):
            stream.wait_writable(timeout=0.02)
        read.set()
        while stream.has_unsent:
            stream.wait_writable(timeout=PATIENCE)
        until(lambda: len(got) == total[0])
    assert got == NUMBERS[: total[0]]


def test_a_wait_ends_at_the_peers_end(depth: int) -> None:
    def end(connection: Any) -> None:
        if isinstance(connection, ServerTLS):
            try:
                connection.end()
            except ssl.SSLError:  # something had come already
                connection.flush()
        else:
            connection.shutdown(socket.SHUT_WR)
        over.wait(PATIENCE)

    over = threading.Event()
    with served(depth, end) as server:
        server.fill()
        server.go_on.set()
        for _ in range(2):
            server.stream.wait_writable(timeout=PATIENCE)
        assert server.stream.read(timeout=PATIENCE) == b""
        over.set()


def test_a_wait_leaves_the_reading_to_a_reader(depth: int) -> None:
    got = bytearray()
    read: list[bytes] = []
    total: list[int] = []
    with served(depth, take(total, got, b"all there"), b"a") as server:
        stream = server.stream

        def reader() -> None:
            while len(read) < 2:
                read.append(stream.read(timeout=PATIENCE))

        total.append(server.fill())
        reading = in_thread(reader)
        until(lambda: read == [b"a"] and stream._transport.users)
        with pytest.raises(WriteTimeout):  # a reader's bytes are no news for it
            stream.wait_writable(timeout=0.02)
        server.go_on.set()
        while stream.has_unsent:
            stream.wait_writable(timeout=PATIENCE)
        reading.result()
    assert read == [b"a", b"all there"]
    assert got == NUMBERS[: total[0]]


# --- several threads ---------------------------------------------------------------------------------------


def test_others_send_at_once_while_somebody_waits_but_nobody_waits_twice(depth: int) -> None:
    got = bytearray()
    with served(depth, take(len(NUMBERS), got)) as server:
        stream = server.stream
        sent = server.fill()
        waiting = in_thread(lambda: stream.wait_writable(timeout=PATIENCE))
        until(lambda: stream._transport.users & WAITING)
        assert stream.write_now(NUMBERS[sent:]) == 0
        with pytest.raises(ConcurrencyError):
            stream.wait_writable(timeout=PATIENCE)
        with pytest.raises(ConcurrencyError):
            stream.write(b"x", timeout=PATIENCE)
        with pytest.raises(ConcurrencyError):
            stream.write_until_readable(b"x", timeout=PATIENCE)
        with pytest.raises(ConcurrencyError):
            stream.read(timeout=PATIENCE)
        assert waiting.is_alive()
        server.go_on.set()
        waiting.result()
        server.send(NUMBERS[sent:])
        until(lambda: len(got) == len(NUMBERS))
    assert got == NUMBERS


def test_nothing_is_taken_beside_a_write(depth: int) -> None:
    got = bytearray()
    with served(depth, take(len(NUMBERS) + 4, got)) as server:
        stream = server.stream
        writing = in_thread(lambda: stream.write(NUMBERS, timeout=PATIENCE))
        until(lambda: stream._transport.users & WRITING)
        assert stream.write_now(b"x") == 0
        with pytest.raises(ConcurrencyError):
            stream.wait_writable(timeout=PATIENCE)
        server.go_on.set()
        writing.result()
        server.send(b"last")
        until(lambda: len(got) == len(NUMBERS) + 4)
    assert got == NUMBERS + b"last"


def test_sixteen_threads_send_side_by_side_while_one_reads(depth: int) -> None:
    """B06: whole messages, each in one piece, and everything that the peer says."""
    messages, size = 40, 2000
    answers = bytearray()

    def echo(connection: Any) -> None:
        left = 16 * messages * size
        while left:
            data = connection.recv(1 << 16)
            left -= len(data)
            connection.sendall(data)
        connection.recv(1)

    with served(depth, echo) as server:
        stream = server.stream
        turn = threading.Lock()
        server.go_on.set()

        def read() -> None:
            while len(answers) < 16 * messages * size:
                answers.extend(stream.read(timeout=PATIENCE))

        def write(number: int) -> None:
            for _ in range(messages):
                rest = memoryview(bytes([number]) * size)
                with turn:  # as those who share a connection have one
                    while rest or stream.has_unsent:
                        count = stream.write_now(rest)
                        rest = rest[count:]
                        if not count:
                            stream.wait_writable(timeout=PATIENCE)

        threads = [in_thread(read), *(in_thread(partial(write, number)) for number in range(16))]
        for thread in threads:
            thread.result()
    found = [answers[start : start + size] for start in range(0, len(answers), size)]
    assert sorted(found) == sorted(bytes([number]) * size for number in range(16) for _ in range(messages))


def test_threads_without_a_lock_are_told_exactly_what_was_taken(depth: int) -> None:
    """One that comes while another one sends is told 0, and the sum is right."""
    got = bytearray()
    sent = [0] * 4
    with served(depth, hold_counting(got)) as server:
        stream = server.stream
        server.go_on.set()

        def write(number: int) -> None:
            while sent[number] < 50_000:
                count = stream.write_now(bytes([number]) * 500)
                sent[number] += count
                if not count:
                    threading.Event().wait(0.0002)  # lets the others go on

        for thread in [in_thread(partial(write, number)) for number in range(4)]:
            thread.result()
        while stream.has_unsent:
            stream.wait_writable(timeout=PATIENCE)
        until(lambda: len(got) == sum(sent))
    assert [got.count(number) for number in range(4)] == sent


def hold_counting(into: bytearray) -> Callable[[Any], None]:
    """A script: read to the end."""

    def script(connection: Any) -> None:
        while data := connection.recv(1 << 16):
            into.extend(data)

    return script


def test_a_prompt_write_gives_way_to_a_reader_that_sends_an_answer() -> None:
    """It must not wait for the right to send, however short."""
    with served(1, hold) as server:
        stream = server.stream
        assert stream._tls is not None
        wire = stream._tls._wire
        wire.sender = other = object()  # type: ignore[assignment] # another thread, in the midst of its calls
        assert stream.write_now(b"x") == 0
        assert wire.sender is other
        wire.sender = None
        assert stream.write_now(b"x") == 1


# --- the end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "abort"])
def test_closing_wakes_who_waits_and_nothing_is_taken_afterwards(depth: int, way: str) -> None:
    with served(depth, hold) as server:
        stream = server.stream
        server.fill()
        waiting = in_thread(lambda: stream.wait_writable(timeout=PATIENCE))
        until(lambda: stream._transport.users & WAITING)
        getattr(stream, way)()
        with pytest.raises(WriteError, match="the stream is closed"):
            waiting.result()
        assert stream._transport.sock.fileno() == -1
        assert not stream.has_unsent
        with pytest.raises(WriteError, match="the stream is closed"):
            stream.write_now(b"x")
        with pytest.raises(WriteError, match="the stream is closed"):
            stream.wait_writable(timeout=PATIENCE)


@pytest.mark.parametrize("tcp", [False, True], ids=["unix", "TCP"])
@pytest.mark.parametrize("reads", [False, True], ids=["alone", "beside a reader"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_break_ends_the_wait_and_the_writing(depth: int, when: str, reads: bool, tcp: bool) -> None:
    with served(depth, reset, tcp=tcp) as server:
        stream = server.stream

        def read() -> None:
            with pytest.raises(ReadError):
                for _ in range(3):
                    stream.read(timeout=PATIENCE)

        server.fill()
        reading = in_thread(read) if reads else None
        if reads:
            until(lambda: stream._transport.users)
        starter = threading.Timer(0.0 if when == "before" else 0.01, server.go_on.set)
        starter.start()
        if when == "before":
            until(lambda: not server.thread.is_alive())
        with pytest.raises(WriteError):
            for _ in range(10_000):
                stream.wait_writable(timeout=PATIENCE)
                stream.write_now(NUMBERS)
        with pytest.raises(WriteError):
            stream.write_now(NUMBERS)
        with pytest.raises(WriteError):
            stream.wait_writable(timeout=PATIENCE)
        if reading is not None:
            reading.result()
        starter.join()
        assert not stream._transport.users


# --- interrupts --------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that interrupt")
def test_an_interrupted_wait_goes_on_later(depth: int) -> None:
    """As for every connection that breaks."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    got = bytearray()
    with served(depth, take(len(NUMBERS), got)) as server:
        sent = server.fill()
        before = signal.signal(signal.SIGALRM, interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                server.stream.wait_writable(timeout=PATIENCE)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert not server.stream._transport.users
        server.go_on.set()
        server.send(NUMBERS[sent:])
        until(lambda: len(got) == len(NUMBERS))
    assert got == NUMBERS


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers that interrupt")
def test_a_signal_handler_sends_while_its_thread_waits(depth: int) -> None:
    results: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        results.append(server.stream.write_now(b"x"))
        with pytest.raises(ConcurrencyError):
            server.stream.wait_writable(timeout=PATIENCE)

    with served(depth, hold) as server:
        server.fill()
        before = signal.signal(signal.SIGALRM, handle)
        try:
            with pytest.raises(WriteTimeout):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                server.stream.wait_writable(timeout=0.1)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    assert results == [0]


def test_a_handler_does_not_wait_for_the_thread_beneath_it() -> None:
    """Which has the right to send, and goes on when the handler has ended."""
    with served(1, hold) as server:
        server.fill()
        assert server.stream._tls is not None
        wire = server.stream._tls._wire
        wire.sender = beneath = Sender()
        try:
            with pytest.raises(ConcurrencyError, match="this thread is in the middle of using this stream"):
                server.stream.wait_writable(timeout=PATIENCE)
        finally:
            assert wire.sender is beneath
            wire.sender = None


def test_a_prompt_write_that_is_interrupted_is_the_last(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows how much it has sent."""

    def interrupted(view: memoryview) -> int:
        raise KeyboardInterrupt

    with served(depth, hold) as server:
        with monkeypatch.context() as patch:
            patch.setattr(server.stream._transport, "send_now", interrupted)
            with pytest.raises(KeyboardInterrupt):
                server.stream.write_now(b"x")
        assert not server.stream._transport.users & SENDING
        for again in (lambda: server.stream.write_now(b"x"), server.stream.wait_writable):
            with pytest.raises(WriteError, match="an earlier write was not completed"):
                again()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_child_process_may_neither_send_nor_wait(depth: int) -> None:
    with served(depth, hold) as server:
        child = os.fork()
        if not child:  # pragma: no cover - it is another process
            status = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(40)  # a child that hangs ends, even if it no longer runs Python
                for again in (lambda: server.stream.write_now(b"x"), server.stream.wait_writable):
                    with pytest.raises(WriteError, match="parent"):
                        again()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert server.stream.write_now(b"x") == 1


def test_the_buffer_is_released_though_an_error_is_kept(depth: int) -> None:
    with served(depth, hold) as server:
        server.stream.close()
        buffer = bytearray(b"x")
        caught: Any = None
        try:
            server.stream.write_now(buffer)
        except WriteError:
            caught = sys.exc_info()
        assert caught is not None
        buffer.clear()  # BufferError if somebody still looked at it
        del caught
