"""A connected socket, its users, and the end of its life.

The socket is non-blocking. A thread waits in `poll` and nowhere else, so a time limit holds everywhere.

Closing from another thread. A file descriptor that is closed while somebody polls or reads it may be given to
another connection in the same moment, and the reader would take that one's bytes. So a closed transport is only
shut down at first, which wakes everybody who waits on it, and the last user to leave closes the descriptor.
Each side, reading and writing, has one user at a time: one operation, known by an object of its own, so that it
may leave in a `finally` whether or not it ever got in.

A forked child has a copy of the descriptor. It may close its copy, but a shutdown (or a farewell of TLS) would
end the parent's connection, so the process is remembered too.
"""

from __future__ import annotations

import os
import socket
import threading
from typing import TYPE_CHECKING

from lamina_interfaces import ConcurrencyError, ReadError

from ._translation import network_error
from ._waiting import READ, WRITE, new_poll, wait

if TYPE_CHECKING:
    from lamina_interfaces import Limit, Phase

    from ._waiting import Poll

READING = 1
WRITING = 2

BULK = 16 * 1024
"""After a read of so many bytes more are likely to be there, so the next one tries before it waits."""

# A process that handles SIGPIPE in its own way must not get one from us.
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)

_CLOSED = "the stream is closed"
_BROKE = "the connection broke"


class Transport:
    """A non-blocking socket that is waited for.

    Args:
        sock: a connected socket, the transport's from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.closed = False
        self._pid = os.getpid()
        # Re-entrant: a finaliser may call `close` while this very thread is in one of the short sections below.
        self._lock = threading.RLock()
        self._reader: object | None = None
        self._writer: object | None = None
        self._read_poll: Poll | None = None
        self._write_poll: Poll | None = None
        self._bulk = False
        self._ended = False
        # The system tells of a break only once, to whoever asks first; afterwards it looks like an orderly end.
        self._read_failure: str | None = None
        self._write_failure: str | None = None

    # --- users and the end ---------------------------------------------------------------------------------

    def enter(self, user: object, sides: int, phase: Phase) -> None:
        """Make `user`, one operation, the user of one side or both.

        Raises:
            ConcurrencyError: there is another one.
            NetworkError: the transport is closed.
        """
        with self._lock:
            if sides & READING and self._reader is not None:
                raise ConcurrencyError("another thread is reading from this stream", phase=phase)
            if sides & WRITING and self._writer is not None:
                raise ConcurrencyError("another thread is writing to this stream", phase=phase)
            # Marked first and looked at second, for the sake of a finaliser that closes in between.
            if sides & READING:
                self._reader = user
            if sides & WRITING:
                self._writer = user
            if self.closed:
                raise network_error(OSError(_CLOSED), phase)

    def leave(self, user: object) -> None:
        """Let `user` be the user no longer; nothing happens if it is not."""
        with self._lock:
            if self._reader is user:
                self._reader = None
            if self._writer is user:
                self._writer = None
            if self.closed and not self.users:
                self.sock.close()

    @property
    def users(self) -> int:
        """The sides that are in use."""
        return (READING if self._reader is not None else 0) | (WRITING if self._writer is not None else 0)

    @property
    def inherited(self) -> bool:
        """Whether this process has the transport from its parent."""
        return os.getpid() != self._pid

    def close(self) -> None:
        """Shut down, wake those who wait, and free the descriptor when the last of them has left."""
        if self.inherited:
            # Of the parent's threads only one lives on, and another may have held the lock.
            self.closed = True
            self.sock.close()
            return
        with self._lock:
            if self.closed:
                return
            self.closed = True
            try:
                self.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the peer was faster
            finally:
                if not self.users:
                    self.sock.close()

    # --- reading -------------------------------------------------------------------------------------------

    def receive(self, max_bytes: int, limit: Limit) -> bytes:
        """Wait for bytes; `b""` at the end. By the user of the reading side."""
        # A small message is usually waited for: asking first saves a call that fails.
        if not self._bulk:
            wait(self._poll_for_reading(), limit)
        while (data := self.receive_now(max_bytes)) is None:
            wait(self._poll_for_reading(), limit)
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
            error = network_error(exc, "read", _CLOSED if self.closed else _BROKE)
            self._read_failure = error.message
            raise error from exc
        self._bulk = len(data) >= BULK
        if not data:
            # Our own shutdown, or a break that the writer was told of, reads like the peer's end but is not.
            self._read_failure = _CLOSED if self.closed else self._write_failure
            if self._read_failure is not None:
                raise ReadError(self._read_failure, phase="read")
            self._ended = True
        return data

    def readable_now(self) -> bool:
        """Whether `receive` would return at once. By the user of the reading side."""
        return self._ended or self._read_failure is not None or bool(self._poll_for_reading().poll(0))

    # --- writing -------------------------------------------------------------------------------------------

    def send(self, view: memoryview, limit: Limit) -> None:
        """Send all of it. By the user of the writing side."""
        sent = self.send_now(view)
        while sent < len(view):
            self.wait_writable(limit)
            sent += self.send_now(view[sent:])

    def send_now(self, view: memoryview) -> int:
        """Send what the system takes at once; how many bytes that was."""
        try:
            return self.sock.send(view, _SEND_FLAGS)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            error = network_error(exc, "write", _CLOSED if self.closed else _BROKE)
            # Bytes that have come may still be read: an answer may be among them.
            self._write_failure = error.message
            raise error from exc

    def send_until_readable(self, view: memoryview, limit: Limit) -> int:
        """Send all of it, or less if something can be read before."""
        sent = 0
        while sent < len(view):
            if self.wait_either(limit) & ~WRITE:
                break
            sent += self.send_now(view[sent:])
        return sent

    def wait_writable(self, limit: Limit) -> None:
        """Wait until the system takes more."""
        wait(self._poll_for_writing(), limit)

    def wait_either(self, limit: Limit) -> int:
        """Wait until one may read or write; returns the events."""
        poll = new_poll()
        poll.register(self.sock.fileno(), READ | WRITE)
        return wait(poll, limit)[0][1]

    # --- within --------------------------------------------------------------------------------------------

    def _poll_for_reading(self) -> Poll:
        # Kept: the descriptor stays the same as long as there is a user. One each, since a poll object
        # may be waited on by one thread at a time.
        if self._read_poll is None:
            self._read_poll = new_poll()
            self._read_poll.register(self.sock.fileno(), READ)
        return self._read_poll

    def _poll_for_writing(self) -> Poll:
        if self._write_poll is None:
            self._write_poll = new_poll()
            self._write_poll.register(self.sock.fileno(), WRITE)
        return self._write_poll
