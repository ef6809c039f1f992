"""Reading into the caller's buffer, and reads without a limit."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from time import monotonic
from typing import TYPE_CHECKING

import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    DeadlineExceeded,
    DirectReader,
    ReadError,
    ReadTimeout,
    close_deadline,
    open_deadline,
)
from lamina_sync_backend import SyncBackend, SyncStream
from lamina_sync_backend._transport import READING
from sync_peers import PATIENCE, Peer, client_context, echo, in_thread, server_context, tls_echo, until
from sync_tls import ServerTLS

if TYPE_CHECKING:
    from collections.abc import Callable

Pair = tuple[SyncStream, socket.socket]


def read(stream: SyncStream, timeout: float | None = None) -> bytes:
    return stream.read(100, timeout)


def read_into(stream: SyncStream, timeout: float | None = None) -> bytes:
    buffer = bytearray(100)
    count = stream.read_into(buffer, timeout)
    assert not any(buffer[count:])
    return bytes(buffer[:count])


ways = pytest.mark.parametrize("way", [read, read_into])


# --- the buffer --------------------------------------------------------------------------------------------


def test_a_stream_has_the_ability(pair: Pair) -> None:
    assert isinstance(pair[0], DirectReader)


def test_what_has_come_is_at_the_front_and_the_rest_is_left_alone(pair: Pair) -> None:
    stream, peer = pair
    peer.sendall(b"0123456789")
    buffer = bytearray(b"." * 8)
    assert stream.read_into(memoryview(buffer)[1:5], timeout=PATIENCE) == 4
    assert buffer == b".0123..."
    assert stream.read_into(buffer, timeout=PATIENCE) == 6
    assert buffer == b"456789.."


def test_reads_of_both_kinds_take_from_the_same_bytes_up_to_the_end(pair: Pair) -> None:
    stream, peer = pair
    peer.sendall(b"0123456789")
    assert stream.read(3) == b"012"
    buffer = bytearray(3)
    assert stream.read_into(buffer) == 3
    assert buffer == b"345"
    assert stream.read() == b"6789"
    peer.shutdown(socket.SHUT_WR)
    for _ in range(2):
        assert stream.read_into(buffer) == 0
        assert stream.read() == b""
    assert buffer == b"345"


def test_more_than_one_read_takes_goes_into_one_buffer(pair: Pair) -> None:
    stream, peer = pair
    data = os.urandom(1_000_000)
    writer = in_thread(lambda: peer.sendall(data))
    buffer = bytearray(len(data))
    with memoryview(buffer) as view:
        filled = 0
        while filled < len(data):
            with view[filled:] as rest:
                filled += stream.read_into(rest, timeout=PATIENCE)
    writer.result()
    assert buffer == data


@pytest.mark.parametrize(
    ("buffer", "error"),
    [
        (bytearray(), ArgumentValueError),
        (memoryview(bytearray(9))[::2], ArgumentValueError),
        (bytes(9), ArgumentTypeError),
        (None, ArgumentTypeError),
    ],
    ids=["empty", "in pieces", "read-only", "nothing"],
)
def test_a_buffer_that_cannot_be_filled_takes_nothing(
    pair: Pair, buffer: bytearray, error: type[Exception]
) -> None:
    stream, peer = pair
    peer.sendall(b"data")
    with pytest.raises(error):
        stream.read_into(buffer, timeout=PATIENCE)
    assert stream.read(timeout=PATIENCE) == b"data"


def test_the_buffer_is_free_afterwards_whatever_came_of_it(pair: Pair) -> None:
    """A `bytearray` that is in use cannot be resized, and a traceback keeps what its frames have."""
    stream, peer = pair
    buffer = bytearray(10)
    with pytest.raises(ReadTimeout) as caught:
        stream.read_into(buffer, timeout=0.001)
    buffer.append(0)
    assert caught.value.__traceback__ is not None
    peer.sendall(b"x")
    stream.read_into(buffer, timeout=PATIENCE)
    buffer.append(0)


@pytest.mark.parametrize("operation", ["write", "write_until_readable", "write_now"])
def test_what_was_to_be_written_is_free_afterwards_whatever_came_of_it(pair: Pair, operation: str) -> None:
    stream, _ = pair
    buffer = bytearray(10)
    getattr(stream, operation)(buffer)
    buffer.append(0)
    if operation != "write_now":
        more = bytearray(10_000_000)
        with pytest.raises(TimeoutError) as caught:
            getattr(stream, operation)(more, timeout=0.01)
        more.append(0)
        assert caught.value.__traceback__ is not None
    stream.close()
    with pytest.raises(ConnectionError) as closed:
        getattr(stream, operation)(buffer)
    buffer.append(0)
    assert closed.value.__traceback__ is not None


# --- waiting -----------------------------------------------------------------------------------------------


@ways
def test_a_read_without_a_limit_waits_and_a_limit_holds(
    way: Callable[[SyncStream, float | None], bytes],
) -> None:
    ours, theirs = socket.socketpair()
    with SyncStream(ours) as stream, theirs:
        reader = in_thread(lambda: way(stream, None))
        until(lambda: stream._transport.users & READING)
        theirs.sendall(b"late")
        assert reader.result() == b"late"
        with pytest.raises(ReadTimeout):
            way(stream, 0.01)
        theirs.sendall(b"later")
        assert way(stream, PATIENCE) == b"later"


@ways
@pytest.mark.parametrize("end", ["close", "abort"])
def test_closing_wakes_a_read_without_a_limit(
    way: Callable[[SyncStream, float | None], bytes], end: str
) -> None:
    with Peer(echo) as peer:
        stream = SyncBackend().connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE)
        reader = in_thread(lambda: way(stream, None))
        until(lambda: stream._transport.users & READING)
        getattr(stream, end)()
        with pytest.raises(ReadError, match="closed"):
            reader.result()
        assert stream._transport.sock.fileno() == -1


def test_a_closing_that_drops_what_has_come_waits_for_nothing() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        stream = SyncStream(ours)
        theirs.sendall(b"unread")
        stream.close()


@ways
def test_an_ambient_deadline_ends_a_read_without_a_limit_of_its_own(
    pair: Pair, way: Callable[[SyncStream, float | None], bytes]
) -> None:
    deadline = open_deadline(0.02, monotonic)
    try:
        with pytest.raises(DeadlineExceeded):
            way(pair[0], None)
    finally:
        close_deadline(deadline)


@pytest.mark.parametrize(("first", "second"), [(read, read_into), (read_into, read), (read_into, read_into)])
def test_there_is_one_reader_at_a_time_of_either_kind(
    pair: Pair,
    first: Callable[[SyncStream, float | None], bytes],
    second: Callable[[SyncStream, float | None], bytes],
) -> None:
    stream, peer = pair
    reader = in_thread(lambda: first(stream, None))
    until(lambda: stream._transport.users & READING)
    with pytest.raises(ConcurrencyError):
        second(stream, PATIENCE)
    peer.sendall(b"x")
    assert reader.result() == b"x"


def test_a_break_is_told_to_both_kinds(backend: SyncBackend) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = backend.connect_tcp("127.0.0.1", listener.getsockname()[1], timeout=PATIENCE)
        peer, _ = listener.accept()
    with stream:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        for way in (read_into, read, read_into):
            with pytest.raises(ReadError):
                way(stream, PATIENCE)


# --- TLS ---------------------------------------------------------------------------------------------------


def test_tls_is_decrypted_into_the_buffer(backend: SyncBackend) -> None:
    with Peer(tls_echo()) as peer, backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
        stream.start_tls(client_context(), "server.example", timeout=PATIENCE)
        data = os.urandom(200_000)
        writer = in_thread(lambda: stream.write(data, timeout=PATIENCE))
        buffer = bytearray(len(data) + 1)
        with memoryview(buffer) as view:
            filled = 0
            while filled < len(data):
                with view[filled : filled + 33_333] as rest:
                    filled += stream.read_into(rest, timeout=PATIENCE)
        writer.result()
        assert buffer == data + b"\0"


def test_over_tls_both_kinds_take_from_the_same_bytes_up_to_the_end(backend: SyncBackend) -> None:
    def script(connection: socket.socket) -> None:
        tls = ServerTLS(connection, server_context()).handshake()
        tls.sendall(b"0123456789")
        tls.recv(1)
        tls.end()
        tls.recv(1)

    with Peer(script) as peer, backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
        stream.start_tls(client_context(), "server.example", timeout=PATIENCE)
        until(lambda: stream.get_extra_info("is_readable"))  # which decrypts, and keeps what it finds
        buffer = bytearray(3)
        assert stream.read_into(buffer) == 3
        assert buffer == b"012"
        assert stream.read(3) == b"345"
        assert stream.read_into(memoryview(buffer)[:1]) == 1
        assert buffer == b"612"
        assert read_into(stream) == b"789"
        with pytest.raises(ReadTimeout):
            stream.read_into(buffer, timeout=0.01)
        stream.write(b"x")
        for _ in range(2):
            assert stream.read_into(buffer, timeout=PATIENCE) == 0
            assert stream.read(timeout=PATIENCE) == b""
        assert buffer == b"612"


def test_tls_that_was_cut_off_is_an_error_for_both_kinds(backend: SyncBackend) -> None:
    def script(connection: socket.socket) -> None:
        ServerTLS(connection, server_context()).handshake().sendall(b"half")

    with Peer(script) as peer, backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
        stream.start_tls(client_context(), "server.example", timeout=PATIENCE)
        assert read_into(stream, PATIENCE) == b"half"
        for way in (read_into, read):
            with pytest.raises(ReadError):
                way(stream, PATIENCE)


# --- forks -------------------------------------------------------------------------------------------------

CLOSED_BY_A_HANDLER = """
import os, socket
streams = []
os.register_at_fork(after_in_child=lambda: [stream.{way}() for stream in streams])  # before ours
from lamina_sync_backend import SyncStream
ours, theirs = socket.socketpair()
streams.append(SyncStream(ours))
child = os.fork()
if not child:
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
theirs.sendall(b"still here")
print(streams[0].read(timeout=20))
streams[0].close()
theirs.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("way", ["close", "abort"])
def test_a_handler_of_the_fork_that_closes_does_not_end_the_parents_connection(way: str) -> None:
    """I04."""
    program = CLOSED_BY_A_HANDLER.format(way=way)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=4 * PATIENCE
    )
    assert result.stdout == "b'still here'\n"


FORKED_IN_C = """
import ctypes, os, socket
from lamina_interfaces import ReadError, WriteError
from lamina_sync_backend import SyncStream

ours, theirs = socket.socketpair()
stream = SyncStream(ours)
theirs.sendall(b"the parent's")
child = ctypes.PyDLL(None).fork()
if not child:
    refused = 0
    for step in (stream.read, lambda: stream.read_into(bytearray(9)), lambda: stream.write_now(b"x")):
        try:
            step()
        except (ReadError, WriteError):
            refused += 1
    os._exit(refused)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stream.read(timeout=20))
stream.close()
theirs.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the C library's fork")
def test_a_child_that_was_forked_in_c_does_not_use_the_parents_connection_I04() -> None:
    """No handler of Python's runs then: so it is with uWSGI, unless that is told otherwise."""
    result = subprocess.run(
        [sys.executable, "-c", FORKED_IN_C], capture_output=True, text=True, check=True, timeout=4 * PATIENCE
    )
    assert result.stdout == '3 b"the parent\'s"\n'


def test_a_childs_copy_is_closed_and_refused_though_a_thread_of_the_parent_held_the_lock(pair: Pair) -> None:
    stream, _ = pair
    transport = stream._transport
    transport._pid = -1  # as in a child
    is_held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with transport._lock:
            is_held.set()
            done.wait(PATIENCE)

    holder = in_thread(hold)
    assert is_held.wait(PATIENCE)
    stream.close()
    with pytest.raises(ReadError, match="parent process"):
        stream.read()
    assert holder.is_alive()
    done.set()
    holder.result()
