"""What all streams do with their arguments and sockets."""

from __future__ import annotations

import socket
from array import array
from typing import Any

import pytest

from lamina_interfaces import ArgumentTypeError, ArgumentValueError
from lamina_interfaces.sockets import (
    MAX_READ_SIZE,
    byte_view,
    check_read_buffer,
    check_read_size,
    connected_to_itself,
    make_non_blocking,
    set_options,
    socket_address,
)

KEEP_ALIVE = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
UNKNOWN = (socket.SOL_SOCKET, 9999, 1)


@pytest.mark.parametrize(
    ("asked", "size"), [(1, 1), (65536, 65536), (MAX_READ_SIZE, MAX_READ_SIZE), (2**40, MAX_READ_SIZE)]
)
def test_a_read_asks_for_no_more_than_there_is_room_for(asked: int, size: int) -> None:
    assert check_read_size(asked) == size


@pytest.mark.parametrize(
    ("asked", "error"),
    [(0, ArgumentValueError), (-1, ArgumentValueError), (True, ArgumentTypeError), ("1", ArgumentTypeError),
     (1.0, ArgumentTypeError)],
)  # fmt: skip
def test_a_size_that_makes_no_sense_is_refused(asked: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="max_bytes"):
        check_read_size(asked)


@pytest.mark.parametrize(
    "buffer",
    [b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), array("H", b"abcd"), memoryview(b"abcd").cast("B", (2, 2))],
    ids=lambda buffer: type(buffer).__name__,
)  # fmt: skip
def test_every_buffer_is_seen_as_bytes(buffer: Any) -> None:
    with byte_view(buffer) as view:
        assert (view.format, view.ndim, bytes(view)) == ("B", 1, b"abcd")


def test_a_view_locks_the_buffer_until_it_is_released() -> None:
    buffer = bytearray(b"abcd")
    with byte_view(buffer), pytest.raises(BufferError):
        buffer.clear()
    buffer.clear()
    wide: Any = array("H", b"abcd")
    byte_view(wide).release()
    wide.append(1)


@pytest.mark.parametrize("buffer", ["text", 5, None], ids=repr)
def test_what_is_no_buffer_of_bytes_is_refused(buffer: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="buffer"):
        byte_view(buffer)


def test_a_view_with_gaps_is_refused() -> None:
    with pytest.raises(ArgumentValueError, match="not contiguous"):
        byte_view(memoryview(b"abcd")[::2])


def test_a_view_that_was_released_is_refused() -> None:
    view = memoryview(b"x")
    view.release()
    with pytest.raises(ArgumentValueError, match="buffer"):
        byte_view(view)


@pytest.mark.parametrize(
    "buffer",
    [bytearray(4), memoryview(bytearray(4)), array("H", bytes(4)), memoryview(bytearray(4)).cast("B", (2, 2)),
     memoryview(bytearray(6))[1:5]],
    ids=lambda buffer: type(buffer).__name__,
)  # fmt: skip
def test_every_buffer_that_can_be_written_may_be_filled(buffer: Any) -> None:
    with check_read_buffer(buffer) as view:
        assert (view.format, view.ndim, view.nbytes) == ("B", 1, 4)
        view[:] = b"abcd"
    assert bytes(buffer) == b"abcd"


@pytest.mark.parametrize(
    ("buffer", "error", "why"),
    [
        (bytearray(), ArgumentValueError, "empty"),
        (memoryview(bytearray(4))[2:2], ArgumentValueError, "empty"),
        (memoryview(bytearray(4))[::2], ArgumentValueError, "not contiguous"),
        (memoryview(bytearray(4))[::-1], ArgumentValueError, "not contiguous"),
        (b"abcd", ArgumentTypeError, "bytes is read-only"),
        (b"", ArgumentTypeError, "bytes is read-only"),
        (memoryview(bytearray(4)).toreadonly(), ArgumentTypeError, "memoryview is read-only"),
        ("text", ArgumentTypeError, "str"),
        (5, ArgumentTypeError, "int"),
        (None, ArgumentTypeError, "None"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_filled_is_refused(buffer: Any, error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        check_read_buffer(buffer)


def test_a_buffer_is_locked_until_its_view_is_released_and_never_by_a_refusal() -> None:
    buffer = bytearray(b"abcd")
    with check_read_buffer(buffer), pytest.raises(BufferError):
        buffer.clear()
    buffer.clear()
    refusals = []
    for _ in range(2):
        with pytest.raises(ArgumentValueError) as caught:
            check_read_buffer(buffer)
        refusals.append(caught)  # whose traceback has the view
        buffer.append(0)
        buffer.clear()


def test_a_socket_becomes_non_blocking_without_a_needless_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    class Watched(socket.socket):
        def setblocking(self, flag: bool) -> None:
            calls.append(flag)
            super().setblocking(flag)

    with Watched() as sock:
        make_non_blocking(sock)
        make_non_blocking(sock)
        assert sock.gettimeout() == 0
    assert calls == [False]


def test_only_the_callers_options_must_be_known() -> None:
    with socket.socket() as sock:
        set_options(sock, (UNKNOWN, KEEP_ALIVE))
        assert sock.getsockopt(*KEEP_ALIVE[:2]) == 1
        set_options(sock, (KEEP_ALIVE,), [(*KEEP_ALIVE[:2], 0)])
        assert sock.getsockopt(*KEEP_ALIVE[:2]) == 0
        for unknown in (UNKNOWN, (*UNKNOWN[:2], None, 0)):
            with pytest.raises(OSError, match=r"not available|Invalid argument"):
                set_options(sock, (), (unknown,))


def test_a_socket_without_a_peer_has_no_address() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        assert socket_address(sock.getpeername) is None
        assert socket_address(sock.getsockname) == sock.getsockname()
        assert not connected_to_itself(sock)


def test_a_socket_that_is_its_own_peer_is_recognised() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.connect(sock.getsockname())
        assert connected_to_itself(sock)
