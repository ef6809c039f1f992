"""The contract of a stream: reading, writing, limits, threads, and the end."""

from __future__ import annotations

import array
import errno
import signal
import socket
import ssl
import struct
import sys
import threading
import tracemalloc
import weakref
from time import monotonic
from typing import Any

import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    DeadlineExceeded,
    InterruptibleWriter,
    NetworkStream,
    ReadError,
    ReadTimeout,
    WriteError,
    WriteTimeout,
    close_deadline,
    open_deadline,
)
from lamina_sync_backend import SyncBackend, SyncStream, _transport
from lamina_sync_backend._transport import READING, Look, User
from lamina_sync_backend._waiting import Poll, new_poll
from sync_peers import PATIENCE, Peer, drain, echo, in_thread, open_fds, silent, tries, until

Pair = tuple[SyncStream, socket.socket]


def reset(sock: socket.socket) -> None:
    """Close with a TCP reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


@pytest.fixture
def tcp(backend: SyncBackend) -> Any:
    """A stream, and the accepted plain socket at its other end, over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = backend.connect_tcp("127.0.0.1", listener.getsockname()[1], timeout=30)
        peer, _ = listener.accept()
    with stream, peer:
        yield stream, peer


# --- reading -----------------------------------------------------------------------------------------------


def test_a_stream_is_what_the_interfaces_say(pair: Pair) -> None:
    assert isinstance(pair[0], NetworkStream)
    assert isinstance(pair[0], InterruptibleWriter)


def test_read_returns_what_has_come(pair: Pair) -> None:
    stream, peer = pair
    peer.sendall(b"some bytes")
    assert stream.read() == b"some bytes"


def test_read_returns_no_more_than_was_asked_for_and_loses_nothing(pair: Pair) -> None:
    stream, peer = pair
    peer.sendall(b"0123456789")
    assert [stream.read(4), stream.read(4), stream.read(4)] == [b"0123", b"4567", b"89"]


def test_read_asks_for_64_kib_by_default(pair: Pair) -> None:
    stream, peer = pair
    writer = in_thread(lambda: peer.sendall(bytes(200_000)))
    total = 0
    while total < 200_000:
        data = stream.read(timeout=30)
        assert 0 < len(data) <= 65536
        total += len(data)
    writer.result()


def test_read_waits_for_the_first_byte(pair: Pair) -> None:
    stream, peer = pair
    reader = in_thread(stream.read)
    until(lambda: stream._transport.users & READING)
    peer.sendall(b"late")
    assert reader.result() == b"late"


def test_after_a_bulk_the_next_read_still_waits(pair: Pair) -> None:
    """A read that follows a large one tries before it waits; it must not take "nothing yet" for the end."""
    stream, peer = pair
    peer.sendall(bytes(32768))
    assert len(stream.read(32768)) == 32768
    with pytest.raises(ReadTimeout):
        stream.read(timeout=0.01)
    peer.sendall(b"late")
    assert stream.read() == b"late"


class Counting(socket.socket):
    received = 0

    def recv(self, *arguments: Any) -> bytes:
        self.received += 1
        return super().recv(*arguments)


def test_a_small_answer_is_received_by_one_call_and_a_bulk_without_waiting() -> None:
    """Not one that fails, a wait, and one that succeeds; in a bulk, not a wait before each."""
    first, theirs = socket.socketpair()
    ours = Counting(fileno=first.detach())
    with theirs, SyncStream(ours) as stream:
        for _ in range(3):
            reader = in_thread(stream.read)
            until(lambda: stream._transport.users)
            theirs.sendall(b"answer")
            assert reader.result() == b"answer"
        assert ours.received == 3
        theirs.sendall(bytes(64 * 1024))
        stream.read(32 * 1024)
        stream._transport._read_poll = None  # a wait would make a new one
        stream.read(32 * 1024)
        assert stream._transport._read_poll is None


def test_waiting_makes_no_new_poll_object_each_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, peer = pair
    made = []

    def counting() -> Poll:
        made.append(new_poll())
        return made[-1]

    monkeypatch.setattr(_transport, "new_poll", counting)
    for _ in range(3):
        assert stream.get_extra_info("is_readable") is False
        assert stream.write_until_readable(b"question") == 8
        peer.send(b"answer")
        assert stream.read() == b"answer"
    assert len(made) == 2, "one to read, and one to write while listening"


def test_an_interruptible_write_looks_before_it_sends(pair: Pair) -> None:
    """On a connection that is used again, what is there already answers nothing that is to come."""
    stream, peer = pair
    peer.send(b"408")
    assert stream.write_until_readable(b"question") == 0
    assert stream.read() == b"408"
    peer.close()
    assert stream.write_until_readable(b"question") == 0


def test_the_peers_end_is_empty_and_stays_so(pair: Pair) -> None:
    stream, peer = pair
    peer.sendall(b"last")
    peer.close()
    assert [stream.read() for _ in range(4)] == [b"last", b"", b"", b""]


def test_a_reset_is_a_read_error_and_stays_one(tcp: Pair) -> None:
    stream, peer = tcp
    reset(peer)
    with pytest.raises(ReadError) as caught:
        stream.read()
    assert caught.value.errno == errno.ECONNRESET
    assert caught.value.phase == "read"
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ReadError) as again:
        stream.read()
    assert (str(again.value), again.value.errno) == (str(caught.value), errno.ECONNRESET)


def test_a_break_that_the_writer_was_told_of_is_not_an_end_for_the_reader(tcp: Pair) -> None:
    """The system tells of a reset once. To take the next b"" for an end would make a cut-off body a whole one."""
    stream, peer = tcp
    peer.sendall(b"answer")
    assert stream.read() == b"answer"
    reset(peer)
    until(lambda: stream.get_extra_info("is_readable"))
    with pytest.raises(WriteError) as caught:
        stream.write(b"more")
    assert caught.value.errno in {errno.ECONNRESET, errno.EPIPE}
    for _ in range(2):
        with pytest.raises(ReadError) as read:
            stream.read()
        assert read.value.errno == caught.value.errno


def test_a_break_is_told_with_one_number_to_all_who_send(tcp: Pair) -> None:
    """Over TLS a reader sends too; the system tells the first of a reset and the next of a broken pipe."""
    stream, peer = tcp
    reset(peer)
    until(lambda: stream.get_extra_info("is_readable"))
    numbers = set()
    for _ in range(3):
        with pytest.raises(WriteError) as caught:
            stream._transport.send_now(memoryview(b"more"))
        numbers.add(caught.value.errno)
    assert len(numbers) == 1


def test_bytes_that_came_before_a_failed_write_can_be_read(tcp: Pair) -> None:
    """A19: a rejected upload's answer."""
    stream, peer = tcp
    peer.sendall(b"413")
    peer.close()
    until(lambda: stream.get_extra_info("is_readable"))
    with pytest.raises(WriteError):
        for _ in range(100):
            stream.write(bytes(65536), timeout=30)
    assert stream.read() == b"413"


@pytest.mark.parametrize("size", [0, -1])
def test_a_read_of_less_than_one_byte_is_refused(pair: Pair, size: int) -> None:
    with pytest.raises(ArgumentValueError, match="max_bytes"):
        pair[0].read(size)


@pytest.mark.parametrize("size", ["1", 1.0, True])
def test_a_read_of_no_number_is_refused(pair: Pair, size: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="max_bytes"):
        pair[0].read(size)


# --- writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "buffer",
    [b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), memoryview(array.array("H", [25185, 25699]))],
    ids=["bytes", "bytearray", "memoryview", "memoryview of two-byte items"],
)
def test_any_bytes_like_is_written(pair: Pair, buffer: Any) -> None:
    stream, peer = pair
    stream.write(buffer)
    assert peer.recv(10) == b"abcd"


@pytest.mark.parametrize("buffer", ["text", 5, None, [b"x"], memoryview(b"abcd")[::2]])
def test_what_is_no_buffer_is_refused_before_a_byte_is_sent(pair: Pair, buffer: Any) -> None:
    stream, peer = pair
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match="buffer"):
        stream.write(buffer)
    stream.close()
    assert peer.recv(10) == b""


def test_writing_nothing_sends_nothing(pair: Pair) -> None:
    stream, peer = pair
    stream.write(b"")
    assert stream.write_until_readable(b"") == 0
    stream.close()
    assert peer.recv(10) == b""


def test_the_buffer_is_not_kept(pair: Pair) -> None:
    buffer = bytearray(b"abcd")
    pair[0].write(buffer)
    buffer.extend(b"e")  # fails while something holds a view of it


def test_write_waits_until_all_is_taken(pair: Pair) -> None:
    stream, peer = pair
    data = bytes(range(256)) * 8192
    writer = in_thread(lambda: stream.write(data))
    received = bytearray()
    while len(received) < len(data):
        received += peer.recv(100_000)
    writer.result()
    assert received == data


def test_200_megabytes_are_written_without_copies(pair: Pair) -> None:
    stream, peer = pair
    data = bytes(200_000_000)
    reader = in_thread(lambda: drain(peer))
    tracemalloc.start()
    try:
        stream.write(data)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    stream.close()
    assert reader.result() == len(data)


def test_a_broken_connection_is_a_write_error(tcp: Pair) -> None:
    stream, peer = tcp
    reset(peer)
    with pytest.raises(WriteError) as caught:
        for _ in range(100):
            stream.write(bytes(65536), timeout=30)
    assert caught.value.errno in {errno.ECONNRESET, errno.EPIPE}
    assert caught.value.phase == "write"


def test_a_write_ends_early_when_the_peer_answers(pair: Pair) -> None:
    stream, peer = pair
    data = bytes(10_000_000)
    writer = in_thread(lambda: stream.write_until_readable(data, timeout=30))
    assert len(peer.recv(1000)) == 1000
    peer.sendall(b"413")
    sent = writer.result()
    assert 1000 <= sent < len(data)
    assert stream.read() == b"413"


def test_a_write_ends_early_when_the_peer_ends(pair: Pair) -> None:
    stream, peer = pair
    writer = in_thread(lambda: stream.write_until_readable(bytes(10_000_000), timeout=30))
    peer.recv(1000)
    peer.shutdown(socket.SHUT_WR)
    assert writer.result() < 10_000_000
    assert stream.read() == b""


def test_an_interruptible_write_sends_everything_when_nothing_comes(pair: Pair) -> None:
    stream, peer = pair
    reader = in_thread(lambda: drain(peer))
    assert stream.write_until_readable(bytes(3_000_000)) == 3_000_000
    stream.close()
    assert reader.result() == 3_000_000


def test_an_interruptible_write_beside_a_reader_is_a_plain_write(pair: Pair) -> None:
    stream, peer = pair
    reader = in_thread(stream.read)
    until(lambda: stream._transport.users & READING)
    assert stream.write_until_readable(b"question") == 8
    assert peer.recv(10) == b"question"
    peer.sendall(b"answer")
    assert reader.result() == b"answer"


# --- limits ------------------------------------------------------------------------------------------------

BAD_LIMITS = [(-1, ArgumentValueError), (-0.001, ArgumentValueError), (float("nan"), ArgumentValueError),
              (float("-inf"), ArgumentValueError), ("1", ArgumentTypeError), (True, ArgumentTypeError)]  # fmt: skip


@pytest.mark.parametrize(("limit", "error"), BAD_LIMITS)
@pytest.mark.parametrize("operation", ["read", "write", "write_until_readable", "start_tls"])
def test_a_limit_that_makes_no_sense_is_the_callers_mistake(
    pair: Pair, operation: str, limit: Any, error: type[Exception]
) -> None:
    """F02."""
    arguments = {"read": (1,), "write": (b"x",), "write_until_readable": (b"x",), "start_tls": (None,)}[
        operation
    ]
    with pytest.raises(error, match="timeout"):
        getattr(pair[0], operation)(*arguments, timeout=limit)


def test_a_limit_of_zero_allows_no_io(pair: Pair) -> None:
    """F02: data that is there stays there, and nothing is sent."""
    stream, peer = pair
    peer.sendall(b"x")
    with pytest.raises(ReadTimeout):
        stream.read(timeout=0)
    for write in (stream.write, stream.write_until_readable):
        with pytest.raises(WriteTimeout):
            write(b"y", timeout=0)
    assert stream.read() == b"x"
    stream.close()
    assert peer.recv(1) == b""


def test_a_deadline_that_has_passed_allows_no_io(pair: Pair) -> None:
    """F02."""
    stream, peer = pair
    peer.sendall(b"x")
    deadline = open_deadline(0, monotonic)
    try:
        with pytest.raises(DeadlineExceeded) as caught:
            stream.read(timeout=float("inf"))
        assert (caught.value.phase, caught.value.deadline) == ("read", deadline)
        with pytest.raises(DeadlineExceeded):
            stream.write(b"y")
    finally:
        close_deadline(deadline)
    assert stream.read(timeout=float("inf")) == b"x"


def test_the_tighter_of_time_out_and_deadline_counts(pair: Pair) -> None:
    """F02."""
    deadline = open_deadline(30, monotonic)
    try:
        with pytest.raises(ReadTimeout):
            pair[0].read(timeout=0.01)
    finally:
        close_deadline(deadline)
    deadline = open_deadline(0.01, monotonic)
    try:
        with pytest.raises(DeadlineExceeded):
            pair[0].read(timeout=30)
    finally:
        close_deadline(deadline)


def test_a_read_that_timed_out_loses_nothing(pair: Pair) -> None:
    stream, peer = pair
    with pytest.raises(ReadTimeout) as caught:
        stream.read(timeout=0.02)
    assert caught.value.limit == 0.02
    assert caught.value.elapsed >= 0.02  # type: ignore[operator] # known here
    peer.sendall(b"late")
    assert stream.read(timeout=30) == b"late"


def test_a_write_that_nobody_takes_times_out_as_a_whole(pair: Pair) -> None:
    stream, peer = pair
    finished = threading.Event()

    def drip() -> None:
        while not finished.wait(0.005):
            peer.recv(1)

    dripping = in_thread(drip)
    start = monotonic()
    with pytest.raises(WriteTimeout) as caught:
        stream.write(bytes(50_000_000), timeout=0.1)
    assert monotonic() - start < PATIENCE / 2
    assert caught.value.phase == "write"
    finished.set()
    dripping.result()


# --- threads -----------------------------------------------------------------------------------------------


def test_a_second_reader_is_told_so(pair: Pair) -> None:
    stream, peer = pair
    reader = in_thread(stream.read)
    until(lambda: stream._transport.users & READING)
    with pytest.raises(ConcurrencyError, match="reading"):
        stream.read()
    peer.sendall(b"for the first")
    assert reader.result() == b"for the first"


def test_a_second_writer_is_told_so(pair: Pair) -> None:
    stream, peer = pair
    writer = in_thread(lambda: stream.write(bytes(10_000_000)))
    assert peer.recv(1)
    with pytest.raises(ConcurrencyError, match="writing"):
        stream.write(b"x")
    received = 1
    while received < 10_000_000:
        received += len(peer.recv(1_000_000))
    writer.result()


def test_one_thread_reads_while_another_writes(backend: SyncBackend) -> None:
    data = bytes(range(256)) * 20_000
    with Peer(echo) as peer, backend.connect_tcp("127.0.0.1", peer.port, timeout=30) as stream:
        writer = in_thread(lambda: stream.write(data, timeout=30))
        received = bytearray()
        while len(received) < len(data):
            received += stream.read(timeout=30)
        writer.result()
    assert received == data


@pytest.mark.parametrize("way", ["close", "abort"])
def test_closing_wakes_a_reader(pair: Pair, way: str) -> None:
    stream, _ = pair
    reader = in_thread(stream.read)
    until(lambda: stream._transport.users & READING)
    getattr(stream, way)()
    with pytest.raises(ReadError, match="closed") as caught:
        reader.result()
    assert caught.value.errno != errno.EBADF


@pytest.mark.parametrize("way", ["close", "abort"])
def test_closing_wakes_a_writer(pair: Pair, way: str) -> None:
    stream, peer = pair
    writer = in_thread(lambda: stream.write(bytes(50_000_000)))
    assert peer.recv(1)
    getattr(stream, way)()
    with pytest.raises(WriteError, match="closed") as caught:
        writer.result()
    assert caught.value.errno != errno.EBADF


def test_the_descriptor_is_kept_until_its_last_user_has_left(pair: Pair) -> None:
    """Otherwise another connection could be given its number while it is being read."""
    stream, _ = pair
    transport = stream._transport
    transport.enter(User(), READING, "read")
    stream.close()
    assert transport.sock.fileno() >= 0
    transport.reader = None
    transport.settle()
    assert transport.sock.fileno() == -1


def test_a_look_for_data_makes_no_reader_fail(pair: Pair) -> None:
    """It is over in a moment, and a reader that comes meanwhile waits for that."""
    stream, peer = pair
    look = Look()
    look.thread = -1  # another one's
    stream._transport.enter(look, READING, "read")
    peer.send(b"data")
    reader = in_thread(lambda: stream.read(timeout=30))
    threading.Event().wait(0.02)
    assert reader.is_alive()
    stream._transport.reader = None
    assert reader.result() == b"data"


def test_a_reader_within_a_look_of_its_own_thread_is_refused(pair: Pair) -> None:
    """A signal handler that waited would wait for ever."""
    stream, _ = pair
    stream._transport.enter(Look(), READING, "read")
    with pytest.raises(ConcurrencyError):
        stream.read(timeout=30)
    stream._transport.reader = None


@pytest.mark.parametrize("way", ["close", "abort"])
def test_an_interruptible_write_that_is_closed_under_way_is_a_write_error(pair: Pair, way: str) -> None:
    stream, _ = pair
    writer = in_thread(lambda: stream.write_until_readable(bytes(50_000_000), timeout=30))
    until(lambda: stream._transport.users)
    getattr(stream, way)()
    with pytest.raises(WriteError, match="closed"):
        writer.result()


@pytest.mark.parametrize("way", ["close", "abort"])
def test_closing_finishes_what_an_interrupt_kept_it_from(pair: Pair, way: str) -> None:
    stream, _ = pair
    stream._transport.closed = True
    getattr(stream, way)()
    assert stream._transport.sock.fileno() == -1


@pytest.mark.parametrize("operation", ["read", "write", "write_until_readable", "write_now", "wait_writable"])
def test_a_closer_that_comes_in_between_is_noticed(
    pair: Pair, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mark comes first and the look at `closed` second, so that one of the two frees the descriptor."""
    stream, _ = pair
    transport = stream._transport
    real = type(transport).__setattr__

    def store(self: Any, name: str, value: object) -> None:
        if name in ("reader", "sender", "waiter") and value is not None and not self.closed:
            self.close()
        real(self, name, value)

    monkeypatch.setattr(type(transport), "__setattr__", store)
    arguments = (b"x",) if operation.startswith("write") else ()
    limit = {} if operation == "write_now" else {"timeout": 1}
    with pytest.raises((ReadError, WriteError), match="closed"):
        getattr(stream, operation)(*arguments, **limit)
    assert transport.sock.fileno() == -1


@pytest.mark.parametrize("way", ["write", "write_until_readable"])
def test_a_time_out_does_not_keep_the_buffer(pair: Pair, way: str) -> None:
    stream, _ = pair
    buffer = bytearray(50_000_000)
    caught = None
    try:
        getattr(stream, way)(buffer, timeout=0.05)
    except WriteTimeout as exc:
        caught = exc
    buffer.clear()  # raises BufferError while somebody holds it
    assert caught is not None


@pytest.mark.parametrize("way", ["write", "write_until_readable"])
def test_nothing_is_sent_behind_a_write_that_was_broken_off(pair: Pair, way: str) -> None:
    """The peer would take it for the rest."""
    stream, peer = pair
    with pytest.raises(WriteTimeout):
        getattr(stream, way)(bytes(50_000_000), timeout=0.05)
    peer.recv(1 << 20)
    for again in (stream.write, stream.write_until_readable):
        with pytest.raises(WriteError, match="an earlier write was not completed"):
            again(b"x", timeout=30)
    peer.sendall(b"an answer")
    assert stream.read(timeout=30) == b"an answer"


def test_a_write_that_was_refused_breaks_nothing_off(pair: Pair) -> None:
    stream, peer = pair
    for refused in (-1, float("nan")):
        with pytest.raises(ArgumentValueError):
            stream.write(b"lost", timeout=refused)
    with pytest.raises(WriteTimeout):
        stream.write(b"lost", timeout=0)
    stream.write(b"kept", timeout=30)
    assert peer.recv(64) == b"kept"


def test_a_released_buffer_is_the_callers_mistake(pair: Pair) -> None:
    stream, _ = pair
    view = memoryview(b"x")
    view.release()
    with pytest.raises(ArgumentValueError, match="released"):
        stream.write(view)


def test_an_absurd_read_size_is_no_more_than_a_large_one(pair: Pair) -> None:
    stream, peer = pair
    peer.send(b"x")
    assert stream.read(2**70, timeout=30) == b"x"


def test_a_broken_stream_that_is_dropped_is_gone_without_the_collector(tcp: Pair) -> None:
    stream, peer = tcp
    fd = stream.get_extra_info("socket").fileno()
    reset(peer)
    other = SyncStream(socket.fromfd(fd, socket.AF_INET, socket.SOCK_STREAM))
    with pytest.raises(ReadError):
        other.read(timeout=30)
    gone = weakref.ref(other)
    other.close()
    del other
    assert gone() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts calls as Linux has them")
def test_no_write_can_raise_sigpipe(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that handles the signal in its own way must not get one from us."""
    stream, peer = pair
    peer.close()
    got: list[int] = []
    before = signal.signal(signal.SIGPIPE, lambda number, frame: got.append(number))
    try:
        with pytest.raises(WriteError):
            stream.write(b"x", timeout=30)
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert not got


@pytest.mark.parametrize("way", ["close", "abort"])
def test_a_time_to_linger_does_not_hold_up_closing(tcp: Pair, way: str) -> None:
    stream, _ = tcp
    linger = struct.pack("ii", 1, 50)
    stream.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    with pytest.raises(WriteTimeout):
        stream.write(bytes(50_000_000), timeout=0.05)
    start = monotonic()
    getattr(stream, way)()
    assert monotonic() - start < PATIENCE


def test_closing_under_a_readers_feet_never_takes_another_connections_bytes() -> None:
    for _ in range(300):
        ours, theirs = socket.socketpair()
        stream = SyncStream(ours)
        reader = in_thread(stream.read)
        stream.close()
        # Likely to be given the number that has just become free.
        others = socket.socketpair()
        others[1].sendall(b"secret")
        with pytest.raises(ReadError) as caught:
            reader.result()
        assert caught.value.errno != errno.EBADF
        assert others[0].recv(10, socket.MSG_DONTWAIT) == b"secret"
        for sock in (theirs, *others):
            sock.close()


# --- the end -----------------------------------------------------------------------------------------------


def test_closing_is_seen_by_the_peer_and_may_be_repeated(pair: Pair) -> None:
    stream, peer = pair
    for _ in range(2):
        stream.close()
        stream.abort()
    assert peer.recv(1) == b""
    assert repr(stream).startswith("<SyncStream [closed")


def test_a_closed_stream_refuses_everything_with_our_errors(pair: Pair) -> None:
    stream, _ = pair
    stream.close()
    with pytest.raises(ReadError, match="closed"):
        stream.read()
    with pytest.raises(WriteError, match="closed"):
        stream.write(b"x")
    with pytest.raises(WriteError, match="closed"):
        stream.write_until_readable(b"x")


def test_a_finaliser_may_close_at_any_moment(pair: Pair) -> None:
    """The lock is re-entrant: collection may strike within it."""
    stream, _ = pair
    with stream._transport._lock:
        stream.abort()
    assert stream._transport.sock.fileno() == -1


def test_a_forgotten_stream_warns_and_frees_its_socket(backend: SyncBackend) -> None:
    with Peer(echo) as peer:
        before = open_fds()
        stream = backend.connect_tcp("127.0.0.1", peer.port, timeout=30)
        with pytest.warns(ResourceWarning, match=rf"unclosed <SyncStream \[open, 127.0.0.1:{peer.port}\]>"):
            del stream
        until(lambda: open_fds() <= before)


def test_closing_does_not_wait_for_a_peer_that_does_not_read(backend: SyncBackend) -> None:
    with Peer(silent) as peer:
        for this in tries():
            stream = backend.connect_tcp("127.0.0.1", peer.port, timeout=30)
            with pytest.raises(WriteTimeout):
                stream.write(bytes(50_000_000), timeout=0.05)
            start = monotonic()
            stream.close()
            with this:
                assert monotonic() - start < 0.5


# --- facts -------------------------------------------------------------------------------------------------


def test_the_facts_of_a_plain_stream(backend: SyncBackend) -> None:
    with Peer(echo) as peer, backend.connect_tcp("127.0.0.1", peer.port, timeout=30) as stream:
        sock = stream.get_extra_info("socket")
        assert isinstance(sock, socket.socket)
        assert not sock.get_inheritable()
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", peer.port)
        assert stream.get_extra_info("client_addr") == sock.getsockname()
        assert stream.get_extra_info("ssl_object") is None
        assert stream.get_extra_info("nonsense") is None
        (span,) = stream.get_extra_info("timings")
        assert span.name == "tcp"
        assert span.start <= span.end
    assert stream.get_extra_info("server_addr") == ("127.0.0.1", peer.port)
    assert stream.get_extra_info("is_readable") is True


def test_is_readable_tells_of_data_and_of_the_end_and_takes_nothing(pair: Pair) -> None:
    stream, peer = pair
    assert stream.get_extra_info("is_readable") is False
    peer.sendall(b"x")
    assert stream.get_extra_info("is_readable") is True
    assert stream.read() == b"x"
    assert stream.get_extra_info("is_readable") is False
    peer.close()
    assert stream.get_extra_info("is_readable") is True
    assert stream.read() == b""
    assert stream.get_extra_info("is_readable") is True


def test_is_readable_while_another_thread_reads_says_no(pair: Pair) -> None:
    stream, peer = pair
    reader = in_thread(stream.read)
    until(lambda: stream._transport.users & READING)
    assert stream.get_extra_info("is_readable") is False
    peer.sendall(b"x")
    reader.result()


def test_a_tls_socket_of_the_standard_library_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours, theirs = socket.socketpair()
    tls = context.wrap_socket(ours, server_hostname="x", do_handshake_on_connect=False)
    with theirs, tls, pytest.raises(ArgumentTypeError, match="start_tls"):
        SyncStream(tls)


def test_what_is_no_open_socket_is_refused() -> None:
    sock = socket.socket()
    sock.close()
    with pytest.raises(ArgumentValueError, match="closed"):
        SyncStream(sock)
    with pytest.raises(ArgumentTypeError, match="plain socket"):
        SyncStream(5)  # type: ignore[arg-type] # the point of the test
