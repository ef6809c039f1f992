"""A connected socket, its users, and the end of its life.

The socket is non-blocking. A thread waits in `poll` and nowhere else, so a time limit holds everywhere. It does so even
where there is none: an interrupt that comes while `recv` waits takes the bytes with it that have come meanwhile.

Closing from another thread. A file descriptor that is closed while somebody polls or reads it may be given to
another connection in the same moment, and the reader would take that one's bytes. So a closed transport is only
shut down at first, which wakes everybody who waits on it, and the last user to leave closes the descriptor.
Each side has one user at a time: one operation, known by an object of its own. It leaves by plain assignments in a
`finally`, which an interrupt cannot divide, whether or not it ever got in. There are three sides: who reads, who
sends, and who waits until more can be sent. A write is the user of the last two, so that what only sends (a prompt
write, which never waits) and what only waits may go on side by side, and neither beside a write.

A look for data (`Look`) is a user as well, but one that never waits; so whoever finds a look waits for its end.

A forked child has a copy of the descriptor. It may close its copy, but a shutdown (or a farewell of TLS) would
end the parent's connection, so the process is remembered too. Each operation asks the system which process this is: a
fork that is made in C may run no handlers of Python's (uWSGI's does not, unless told to), and two processes that share
a connection would get each other's answers.
"""

from __future__ import annotations

import socket
import threading
import time
from os import getpid
from typing import TYPE_CHECKING, overload

from lamina_interfaces import ConcurrencyError, WriteError
from lamina_interfaces.sockets import (
    MAX_READ_SIZE,
    close_without_lingering,
    drop_incoming,
    make_non_blocking,
)
from lamina_interfaces.translation import network_error

from ._waiting import READ, WRITE, new_poll, wait

if TYPE_CHECKING:
    from lamina_interfaces import Limit, NetworkError, Phase

    from ._waiting import Poll

READING = 1
SENDING = 2
WAITING = 4
WRITING = SENDING | WAITING

BULK = 16 * 1024
"""After a read of so many bytes more are likely to be there, so the next one tries before it waits."""

# A process that handles SIGPIPE in its own way must not get one from us.
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)

LOOK_PATIENCE = 1.0
"""Seconds for which another thread's look for data is waited for; it takes a fraction of a millisecond."""

LOOK_PAUSE = 0.0001
"""Seconds between two glances whether that look is over."""

_CLOSED = "the stream is closed"
_INHERITED = "the stream belongs to the parent process"
_BROKE = "the connection broke"
_HALF_SENT = "an earlier write was not completed"


class User:
    """One operation on a stream."""

    __slots__ = ()


class Look(User):
    """A look for data, which never waits."""

    __slots__ = ("thread",)

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Transport:
    """A non-blocking socket that is waited for.

    Args:
        sock: a connected socket, the transport's from now on. It is made non-blocking.
    """

    def __init__(self, sock: socket.socket) -> None:
        make_non_blocking(sock)
        self.sock = sock
        self.closed = False
        self.half_sent = False
        self._pid = getpid()
        # Re-entrant: a finaliser may call `close` while this very thread is in one of the short sections below.
        self._lock = threading.RLock()
        self.reader: User | None = None
        self.sender: User | None = None
        self.waiter: User | None = None
        self._read_poll: Poll | None = None
        self._write_poll: Poll | None = None
        self._either_poll: Poll | None = None
        self._bulk = False
        # What a read has left of a window the next one asks for. Who takes all that there is, time and again, lets the
        # connection run dry, and both ends wait by turns: on loopback that costs a fifth of the processor's time.
        self._window = MAX_READ_SIZE
        self._ended = False
        # The system tells of a break only once, to whoever asks first; afterwards it looks like an orderly end.
        self._read_failure: OSError | None = None
        self._write_failure: OSError | None = None

    # --- users and the end ---------------------------------------------------------------------------------

    def enter(self, user: User, sides: int, phase: Phase) -> None:
        """Make `user`, one operation, the user of some sides.

        Its `finally` takes it out of `reader`, `sender` and `waiter`, and calls `settle` if the transport is closed.

        Raises:
            ConcurrencyError: there is another one.
            NetworkError: the transport is closed, or the parent process's; or a write was broken off.
        """
        if getpid() != self._pid:
            # Before the lock, which a thread that does not exist here may hold.
            raise network_error(OSError(_INHERITED), phase)
        if not self._entered(user, sides, phase):
            end = time.monotonic() + LOOK_PATIENCE
            while not self._entered(user, sides, phase):
                if time.monotonic() > end:
                    raise ConcurrencyError("another thread is looking for data on this stream", phase=phase)
                time.sleep(LOOK_PAUSE)

    def _entered(self, user: User, sides: int, phase: Phase) -> bool:
        """Enter, unless a look of another thread is in the way."""
        with self._lock:
            reader = self.reader
            if reader is not None and sides & READING:
                if isinstance(reader, Look) and reader.thread != threading.get_ident():
                    return False
                raise ConcurrencyError("another thread is reading from this stream", phase=phase)
            if (self.sender is not None and sides & SENDING) or (self.waiter is not None and sides & WAITING):
                raise ConcurrencyError("another thread is writing to this stream", phase=phase)
            # Marked first and looked at second, for the sake of a finaliser that closes in between.
            if sides & READING:
                self.reader = user
            if sides & SENDING:
                self.sender = user
            if sides & WAITING:
                self.waiter = user
            if self.closed:
                raise network_error(OSError(_CLOSED), phase)
            if self.half_sent and sides & WRITING:
                raise network_error(OSError(_HALF_SENT), phase)
        return True

    def give_up_writing(self, user: User) -> None:
        """Take note that a write was broken off: nothing that is sent from now on would make sense to the peer."""
        if self.sender is user:
            self.half_sent = True

    def settle(self) -> None:
        """Free the descriptor of a closed transport once nobody uses it."""
        if self.inherited:
            return  # which has closed its copy, and whose lock may be held by a thread that is not here
        with self._lock:
            if self.closed and not self.users:
                close_without_lingering(self.sock)

    @property
    def users(self) -> int:
        """The sides that are in use."""
        return (
            (READING if self.reader is not None else 0)
            | (SENDING if self.sender is not None else 0)
            | (WAITING if self.waiter is not None else 0)
        )

    @property
    def inherited(self) -> bool:
        """Whether this process has the transport from its parent."""
        return getpid() != self._pid

    def close(self, *, gracefully: bool = False) -> None:
        """Shut down, wake those who wait, and free the descriptor when the last of them has left.

        May be repeated, and does then what an interrupt kept it from doing.

        Args:
            gracefully: see to it that the peer gets what was sent last (`lamina_interfaces.sockets.drop_incoming`).
        """
        if self.inherited:
            # Of the parent's threads only one lives on, and another may have held the lock.
            self.closed = True
            self.sock.close()
            return
        with self._lock:
            fresh = not self.closed
            self.closed = True
            if self.sock.fileno() < 0:
                return
            try:
                if gracefully and fresh and not self.users:
                    drop_incoming(self.sock)
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was faster
            finally:
                self.settle()

    # --- reading -------------------------------------------------------------------------------------------

    @overload
    def receive(self, room: int, limit: Limit) -> bytes: ...
    @overload
    def receive(self, room: memoryview, limit: Limit) -> int: ...

    def receive(self, room: int | memoryview, limit: Limit) -> bytes | int:
        """Wait for bytes. By the user of the reading side.

        Args:
            room: how many bytes to return at most, or where to put them.
            limit: how long at most.

        Returns:
            The bytes, or how many they are; `b""` or 0 at the end.
        """
        # A small message is usually waited for: asking first saves a call that fails.
        if not self._bulk:
            wait(self._poll_for_reading(), limit)
        while (taken := self.receive_now(room)) is None:
            wait(self._poll_for_reading(), limit)
        return taken

    @overload
    def receive_now(self, room: int) -> bytes | None: ...
    @overload
    def receive_now(self, room: memoryview) -> int | None: ...
    @overload
    def receive_now(self, room: int | memoryview) -> bytes | int | None: ...

    def receive_now(self, room: int | memoryview) -> bytes | int | None:
        """As `receive`, but take what is there; `None` if there is nothing yet."""
        taken: bytes | int
        if self._ended:
            return b"" if isinstance(room, int) else 0
        if self._read_failure is None:
            try:
                if isinstance(room, int):
                    taken = self.sock.recv(min(room, self._window))
                    size = len(taken)
                else:
                    taken = size = self.sock.recv_into(room)
            except (BlockingIOError, InterruptedError):
                self._bulk = False
                return None
            except OSError as exc:
                # Without its traceback, which knows this frame.
                self._read_failure = exc.with_traceback(None)
            else:
                self._bulk = size >= BULK
                if size:
                    if self._bulk:
                        left = self._window - size
                        self._window = left if left >= BULK else MAX_READ_SIZE
                    return taken
                # Our own shutdown, or a break that the writer was told of, reads like the peer's end but is not.
                self._read_failure = self._write_failure
                self._ended = self._read_failure is None and not self.closed
                if self._ended:
                    return taken
        raise self._error(self._read_failure, "read") from self._read_failure

    def readable_now(self) -> bool:
        """Whether `receive` would return at once. By the user of the reading side."""
        return self._ended or self._read_failure is not None or bool(self._poll_for_reading().poll(0))

    # --- writing -------------------------------------------------------------------------------------------

    def send(self, data: bytes | memoryview, limit: Limit) -> None:
        """Send all of it. By the user of the writing side."""
        sent = self.send_now(data)
        while sent < len(data):
            self.wait_writable(limit)
            sent += self.send_now(data, sent)

    def send_now(self, data: bytes | memoryview, start: int = 0) -> int:
        """Send what the system takes at once, from `start` on; how many bytes that was."""
        if self._write_failure is None:
            try:
                if not start:
                    return self.sock.send(data, _SEND_FLAGS)
                # Released in any case: the traceback of an error keeps this frame, and would keep the buffer locked.
                with memoryview(data)[start:] as rest:
                    return self.sock.send(rest, _SEND_FLAGS)
            except (BlockingIOError, InterruptedError):
                return 0
            except OSError as exc:
                # Bytes that have come may still be read: an answer may be among them.
                self._write_failure = exc.with_traceback(None)
        raise self._error(self._write_failure, "write") from self._write_failure

    def send_until_readable(self, data: bytes | memoryview, limit: Limit) -> int:
        """Send all of it, or less if something can be read before."""
        sent = 0
        while sent < len(data):
            if self.wait_either(limit) & ~WRITE:
                self.check_open()
                break
            sent += self.send_now(data, sent)
        return sent

    def check_open(self) -> None:
        """Tell a writer that what can be read is our own end.

        Raises:
            WriteError: another thread has closed the transport.
        """
        if self.closed:
            raise WriteError(_CLOSED, phase="write")

    def check_sending(self) -> None:
        """Tell whoever has waited to send of a break that is known.

        Raises:
            WriteError: the connection broke, or another thread has closed the transport.
        """
        self.check_open()
        if self._write_failure is not None:
            raise self._error(self._write_failure, "write") from self._write_failure

    def wait_writable(self, limit: Limit) -> None:
        """Wait until the system takes more. By the user of the waiting side."""
        wait(self._poll_for_writing(), limit)

    def wait_either(self, limit: Limit) -> int:
        """Wait until one may read or write; returns the events. By the user of the reading side."""
        poll = self._either_poll
        if poll is None:
            poll = self._either_poll = self._new_poll(READ | WRITE)
        return wait(poll, limit)[0][1]

    # --- within --------------------------------------------------------------------------------------------

    def _error(self, exc: OSError | None, phase: Phase) -> NetworkError:
        if exc is None or self.closed:
            return network_error(OSError(_CLOSED), phase)
        return network_error(exc, phase, _BROKE)

    def _poll_for_reading(self) -> Poll:
        if self._read_poll is None:
            self._read_poll = self._new_poll(READ)
        return self._read_poll

    def _poll_for_writing(self) -> Poll:
        if self._write_poll is None:
            self._write_poll = self._new_poll(WRITE)
        return self._write_poll

    def _new_poll(self, events: int) -> Poll:
        # To be kept: the descriptor stays the same as long as there is a user. One for each kind of waiting, since a
        # poll object may be waited on by one thread at a time. Kept only when it is complete: after an interrupt in
        # between, the next one to wait would wait for nothing.
        poll = new_poll()
        poll.register(self.sock.fileno(), events)
        return poll
