"""What the sockets and streams of every backend have in common, and what does not wait.

Connecting is in `connecting`, the order of addresses in `dialing`, TLS in `tls`.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from ._errors import ArgumentTypeError, ArgumentValueError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._streams import BytesLike, SocketAddress, SocketOption

__all__ = [
    "MAX_READ_SIZE",
    "byte_view",
    "check_read_buffer",
    "check_read_size",
    "close_without_lingering",
    "connected_to_itself",
    "drop_incoming",
    "make_non_blocking",
    "set_options",
    "socket_address",
]

MAX_READ_SIZE = 128 * 1024
"""Most bytes that one read returns, for the system is given room for all that are asked for.

Measured: from 64 KiB on the calls themselves hardly count. With 256 KiB each byte costs a third more, with 1 MiB twice
as much, because the C library has so large a piece from the kernel anew each time, whose pages are filled with zeros.
"""

DROP_SIZE = 64 * 1024
"""Bytes that are read at once to be dropped."""

DROPS = 4
"""How often that is done: a peer that sends without end is not waited for."""

_LINGER = getattr(socket, "SO_LINGER", None)
_AT_ONCE = getattr(socket, "MSG_DONTWAIT", 0)


# --- arguments of streams ----------------------------------------------------------------------------------


def check_read_size(max_bytes: int) -> int:
    """Return how many bytes to ask the system for: `max_bytes`, at most `MAX_READ_SIZE`.

    Raises:
        ArgumentValueError: it is below 1.
        ArgumentTypeError: it is not an `int`.
    """
    if type(max_bytes) is int and 0 < max_bytes <= MAX_READ_SIZE:
        return max_bytes  # as nearly always
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int):
        raise ArgumentTypeError(f"max_bytes must be an int or None, not {type(max_bytes).__name__}")
    if max_bytes < 1:
        raise ArgumentValueError(f"max_bytes must be at least 1, got {max_bytes}")
    return min(max_bytes, MAX_READ_SIZE)


def check_read_buffer(buffer: bytearray | memoryview) -> memoryview:
    """A view of a buffer that is to be filled, as plain bytes. It locks the buffer until it is released.

    Raises:
        ArgumentValueError: the buffer is empty, is not contiguous, or has been released.
        ArgumentTypeError: it is no buffer, or read-only.
    """
    view = byte_view(buffer)
    if view.nbytes and not view.readonly:
        return view
    with view:
        if view.readonly:
            raise ArgumentTypeError(
                f"a writable buffer is needed, and this {type(buffer).__name__} is read-only"
            )
        raise ArgumentValueError("the buffer is empty: there must be room for at least 1 byte")


def byte_view(buffer: BytesLike) -> memoryview:
    """A view of a buffer as plain bytes, without a copy. It locks the buffer until it is released.

    Raises:
        ArgumentValueError: the buffer is not contiguous, or has been released.
        ArgumentTypeError: it is no buffer of bytes.
    """
    if type(buffer) is bytes:
        return memoryview(buffer)  # nothing to look into, and the usual case
    try:
        view = memoryview(buffer)
        if view.format == "B" and view.contiguous and view.ndim == 1:
            return view
        with view:
            if not view.c_contiguous:
                raise ValueError("it is not contiguous")
            return view.cast("B")
    except TypeError as exc:
        raise ArgumentTypeError(f"a buffer of bytes is needed: {exc}") from exc
    except ValueError as exc:
        raise ArgumentValueError(f"the buffer cannot be read: {exc}") from exc


# --- sockets -----------------------------------------------------------------------------------------------


def make_non_blocking(sock: socket.socket) -> None:
    """Make a socket non-blocking, without a system call where it already is."""
    if sock.gettimeout() != 0:
        sock.setblocking(False)


def set_options(
    sock: socket.socket, defaults: Iterable[SocketOption], options: Iterable[SocketOption] = ()
) -> None:
    """Set options on a socket: defaults as far as the system knows them, then the caller's.

    Raises:
        OSError: the system refuses one of the caller's.
    """
    set_option: Callable[..., None] = sock.setsockopt
    for option in defaults:
        try:
            set_option(*option)
        except OSError:
            pass  # a comfort that this kernel or sandbox does not have
    for option in options:
        set_option(*option)


def socket_address(ask: Callable[[], Any]) -> SocketAddress | None:
    """What `getsockname` or `getpeername` of a socket returns; `None` where the peer has gone already."""
    try:
        address: SocketAddress = ask()
    except OSError:
        return None
    return address


def connected_to_itself(sock: socket.socket) -> bool:
    """Whether the system chose our own port as the peer (RFC 9293, section 3.5: simultaneous open).

    That happens on the way to a local port within the ephemeral range where nobody listens.
    """
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # reset already; the first use will tell
        return False


def drop_incoming(sock: socket.socket) -> None:
    """Read what has come, up to 256 KiB, and drop it: before an orderly close. Never waits or raises.

    With bytes unread TCP closes by a reset (RFC 1122, section 4.2.2.13), and what we sent last is lost as far as it has
    not arrived, or the peer has not read it yet. To be called before `shutdown`, after which Linux no longer tells a
    peer that there is room again: one that was waiting for it would not hear of our end.

    Args:
        sock: non-blocking; where the system can be told for one call, it need not be. One that is closed already is
            left alone.
    """
    try:
        for _ in range(DROPS):
            if not sock.recv(DROP_SIZE, _AT_ONCE):
                return
    except OSError:
        pass  # there is nothing more, or the connection is broken anyway


def close_without_lingering(sock: socket.socket) -> None:
    """Close a socket without blocking.

    With a time to linger (`SO_LINGER`), which a caller may have set, the system would block in `close`, non-blocking
    socket or not. A time of 0 (end by a reset) does not block, and stays.
    """
    try:
        if _LINGER is not None and sock.fileno() >= 0:
            linger = sock.getsockopt(socket.SOL_SOCKET, _LINGER, 8)
            if any(linger[len(linger) // 2 :]):
                sock.setsockopt(socket.SOL_SOCKET, _LINGER, bytes(len(linger)))
    except OSError:
        pass  # no such option for this kind of socket
    finally:
        sock.close()
