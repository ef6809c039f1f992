"""A non-blocking socket that tasks wait for, and who uses it.

Each side, reading and writing, has one user at a time. The loop's thread alone enters and leaves. But `close` may
come from another thread or from a finaliser, at any time, also when the loop has ended: so it is a plain function
that asks nobody. It marks the transport as closed and shuts the connection down, which wakes whoever waits for the
socket; the descriptor is freed at once if there is no user, and otherwise by the last user as it leaves, so that
nobody ever waits for a number that has become another connection's. A user marks itself first and looks for the
mark of `close` second, `close` does it the other way round; so at least one of them sees the other.

A forked child has a copy of the descriptor. It may close its copy, but a shutdown (or a farewell of TLS) would
end the parent's connection, so the process is remembered too.
"""

from __future__ import annotations

import os
import select
import socket
from typing import TYPE_CHECKING

from lamina_interfaces import ConcurrencyError, ReadError, WriteError
from lamina_interfaces.translation import network_error

if TYPE_CHECKING:
    from lamina_interfaces import Event, Limit, NetworkError, Phase

    from ._readiness import Waiter

READING = 1
WRITING = 2

BULK = 16 * 1024
"""After a read of so many bytes more are likely to be there, so the next one tries before it waits."""

# A process that handles SIGPIPE in its own way must not get one from us.
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)

_LINGER = getattr(socket, "SO_LINGER", None)

_CLOSED = "the stream is closed"
_INHERITED = "the stream belongs to the parent process"
_BROKE = "the connection broke"
_UNFINISHED = "an earlier write was not completed"


class Transport:
    """A connected, non-blocking socket.

    Args:
        sock: the transport's from now on.
        waiter: how to wait for it.

    Attributes:
        sock: as given.
        waiter: as given.
        closed: whether `close` was called.
        users: the sides that are in use.
        unsent: ciphertext that was taken from a TLS engine and has not been sent. On the transport because all
            layers of TLS in TLS share it.
    """

    def __init__(self, sock: socket.socket, waiter: Waiter) -> None:
        self.sock = sock
        self.waiter = waiter
        self.closed = False
        self.users = 0
        self.unsent = memoryview(b"")
        self._pid = os.getpid()
        self._bulk = False
        self._ended = False
        # The system tells of a break only once, to whoever asks first; afterwards it looks like an orderly end.
        self._read_failure: str | None = None
        self._write_failure: str | None = None
        self._unfinished = False
        self._writable: Event | None = None  # somebody waits for the socket to become writable

    # --- users and the end ---------------------------------------------------------------------------------

    def enter(self, sides: int, phase: Phase) -> None:
        """Become the user of one side or both, until `leave`.

        Raises:
            ConcurrencyError: there is another one, or this is another loop.
            NetworkError: the transport is closed, or the parent process's; or a write was not completed.
        """
        if self.inherited:
            raise network_error(OSError(_INHERITED), phase)
        if not self.waiter.runtime.is_here():
            raise ConcurrencyError("this stream belongs to another event loop", phase=phase)
        if self.users & sides & READING:
            raise ConcurrencyError("another task is reading from this stream", phase=phase)
        if self.users & sides & WRITING:
            raise ConcurrencyError("another task is writing to this stream", phase=phase)
        self.users |= sides
        if self.closed or (self._unfinished and sides & WRITING):
            self.leave(sides)
            raise network_error(OSError(_CLOSED if self.closed else _UNFINISHED), phase)

    def leave(self, sides: int) -> None:
        """Be no longer the user of these sides."""
        self.users &= ~sides
        if self.closed and not self.users:
            self._free()

    @property
    def inherited(self) -> bool:
        """Whether this process has the transport from its parent."""
        return os.getpid() != self._pid

    @property
    def may_take_leave(self) -> bool:
        """Whether what is sent now comes after whole messages, and disturbs nobody: then a farewell is in order."""
        busy = self.closed or self.inherited or self._unfinished or self.users & WRITING
        return not busy and self.waiter.runtime.is_here()

    def close(self) -> None:
        """Shut down, wake those who wait, and free the descriptor when the last of them has left. Never raises."""
        self.closed = True
        if self.inherited:
            self.sock.close()
            return
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster, or it is closed already
        if not self.users:
            self._free()

    def _free(self) -> None:
        try:
            # With a time to linger, which a caller may have set, the system would block in `close`. A time of 0
            # (end by a reset) does not block, and stays.
            if _LINGER is not None and self.sock.fileno() >= 0:
                linger = self.sock.getsockopt(socket.SOL_SOCKET, _LINGER, 8)
                if any(linger[len(linger) // 2 :]):
                    self.sock.setsockopt(socket.SOL_SOCKET, _LINGER, bytes(len(linger)))
        except OSError:
            pass  # no such option for this kind of socket
        finally:
            self.sock.close()

    # --- reading -------------------------------------------------------------------------------------------

    async def receive(self, max_bytes: int, limit: Limit) -> bytes:
        """Wait for bytes; `b""` at the end. By the user of the reading side.

        Always lets other tasks run, and always before the bytes are taken: after that nothing can come in
        between, so none is ever lost.
        """
        library = self.waiter.library
        if self._bulk:
            await library.checkpoint()
        else:
            # A small message is usually waited for: asking first saves a call that fails. Under anyio a wait that ends
            # at once is not always cancelled by a scope that already is.
            await library.checkpoint_if_cancelled()
            await self._wait_readable(limit)
        while (data := self.receive_now(max_bytes)) is None:
            await self._wait_readable(limit)
        return data

    def receive_now(self, max_bytes: int) -> bytes | None:
        """The bytes that are there; `None` if there are none, `b""` at the end."""
        if self._ended:
            return b""
        if self._read_failure is not None:
            raise ReadError(self._read_failure, phase="read")
        try:
            data = self.sock.recv(max_bytes)
        except (BlockingIOError, InterruptedError):
            self._bulk = False
            return None
        except OSError as exc:
            # Nothing is kept in a variable here: the traceback knows this frame, which would know the error.
            raise self._noted_read_failure(exc) from exc
        self._bulk = len(data) >= BULK
        if not data:
            # Our own shutdown, or a break that the writer was told of, reads like the peer's end but is not.
            self._read_failure = _CLOSED if self.closed else self._write_failure
            if self._read_failure is not None:
                raise ReadError(self._read_failure, phase="read")
            self._ended = True
        return data

    def readable_now(self) -> bool:
        """Whether `receive_now` would return something. By the user of the reading side."""
        if self._ended or self._read_failure is not None:
            return True
        if not hasattr(select, "poll"):  # Windows
            return bool(select.select([self.sock], (), (), 0)[0])
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        return bool(poll.poll(0))

    async def _wait_readable(self, limit: Limit) -> None:
        await self.waiter.wait(limit, self.waiter.library.wait_readable, self.sock)

    # --- writing -------------------------------------------------------------------------------------------

    async def send(self, view: memoryview, limit: Limit) -> None:
        """Send all of it. By the user of the writing side."""
        sent = self.send_now(view)
        while sent < len(view):
            await self.wait_writable(limit)
            with view[sent:] as rest:
                sent += self.send_now(rest)

    def send_now(self, view: memoryview) -> int:
        """Send what the system takes at once; how many bytes that was."""
        try:
            return self.sock.send(view, _SEND_FLAGS)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            raise self._noted_write_failure(exc) from exc

    async def write_until_readable(self, view: memoryview, limit: Limit) -> int:
        """Send all of it, or less if something can be read before. By the user of both sides."""
        sent = 0
        while sent < len(view):
            if self.readable_now():
                self.check_open()
                break
            with view[sent:] as rest:
                taken = self.send_now(rest)
            if not taken:
                await self.wait_either(limit)
            sent += taken
        return sent

    def check_open(self) -> None:
        """Tell a writer that what can be read is our own end.

        Raises:
            WriteError: the transport was closed meanwhile.
        """
        if self.closed:
            raise WriteError(_CLOSED, phase="write")

    def give_up_writing(self) -> None:
        """Take note that a write was not completed, so that no other may follow."""
        self._unfinished = self._write_failure is None  # a break is told again by the system, with its number

    async def wait_writable(self, limit: Limit) -> None:
        """Wait until the system takes more. Sometimes returns too early."""
        await self.waiter.wait(limit, self._until_writable)

    async def wait_either(self, limit: Limit) -> None:
        """Wait until one may read or write. By the user of the reading side. Sometimes returns too early."""
        await self.waiter.wait(limit, self.waiter.first_of, self._until_readable, self._until_writable)

    async def _until_readable(self) -> None:
        await self.waiter.library.wait_readable(self.sock)

    async def _until_writable(self) -> None:
        # A reader may wait for this too, to send what it owes the peer, but a library lets only one task wait. The
        # second waits for the first, and then tries again, for the first may have been cancelled.
        if self._writable is not None:
            await self._writable.wait()
            return
        self._writable = event = self.waiter.runtime.create_event()
        try:
            await self.waiter.library.wait_writable(self.sock)
        finally:
            self._writable = None
            event.set()

    # --- within --------------------------------------------------------------------------------------------

    def _noted_read_failure(self, exc: OSError) -> NetworkError:
        error = network_error(exc, "read", _CLOSED if self.closed else _BROKE)
        self._read_failure = error.message
        return error

    def _noted_write_failure(self, exc: OSError) -> NetworkError:
        # Bytes that have come may still be read: an answer may be among them.
        error = network_error(exc, "write", _CLOSED if self.closed else _BROKE)
        self._write_failure = error.message
        return error
