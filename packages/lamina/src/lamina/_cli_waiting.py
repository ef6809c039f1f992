"""Waiting for a file descriptor within `--timeout`: the other end of a pipe may be as slow as any server."""

from __future__ import annotations

import os
import select
import stat
from time import monotonic
from typing import TYPE_CHECKING

from lamina_interfaces import DeadlineExceeded, Limit

if TYPE_CHECKING:
    from collections.abc import Callable

PIECE_SIZE: int = getattr(select, "PIPE_BUF", 512)
"""Bytes that a pipe takes without blocking, once it is reported to be writable (POSIX, `write`)."""

RETRY_SECONDS = 0.02
"""Between two looks for something that cannot be waited for."""

MAX_WAIT_SECONDS = 3600.0
"""At a time: `poll` takes no number of any size."""


class Stalled(DeadlineExceeded):
    """The deadline has passed while another process kept us waiting, not the server.

    Attributes:
        doing: what had to wait, for a reader.
    """

    def __init__(self, doing: str, limit: Limit) -> None:
        error = limit.error()
        super().__init__(f"the deadline has passed, {doing}", elapsed=error.elapsed, limit=error.limit)
        self.doing = doing


class Descriptor:
    """A file descriptor that may keep one waiting. Without an ambient deadline its operations just block.

    Args:
        number: of the descriptor; it stays the caller's to close.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._is_regular = stat.S_ISREG(os.fstat(number).st_mode)

    def read(self, size: int, doing: str) -> bytes:
        """Up to so many bytes; none at the end.

        Raises:
            Stalled: the ambient deadline has passed; its text has `doing`.
            OSError: reading failed.
        """
        limit = self._limit()
        while True:
            self._wait("POLLIN", limit, doing)
            try:
                return os.read(self.number, size)
            except BlockingIOError:
                # The descriptor does not block, by our wish or that of whoever shares it.
                self._wait("POLLIN", limit, doing, always=True)

    def write(self, data: bytes, doing: str) -> None:
        """Write all of it.

        Raises:
            Stalled: the ambient deadline has passed; its text has `doing`.
            OSError: writing failed.
        """
        limit = self._limit()
        left = memoryview(data)
        while left:
            waits = self._wait("POLLOUT", limit, doing)
            try:
                written = os.write(self.number, left[:PIECE_SIZE] if waits else left)
            except BlockingIOError:
                self._wait("POLLOUT", limit, doing, always=True)
            else:
                left = left[written:]

    def _limit(self) -> Limit:
        return Limit(None, monotonic, "write")

    def _wait(self, event: str, limit: Limit, doing: str, *, always: bool = False) -> bool:
        """Wait if there is a limit, or `always`. Returns whether that was so."""
        seconds = limit.remaining()
        if self._is_regular or not hasattr(select, "poll") or (seconds is None and not always):
            return False
        poll = select.poll()
        poll.register(self.number, getattr(select, event))
        while not poll.poll(None if seconds is None else min(seconds, MAX_WAIT_SECONDS) * 1000):
            if limit.expired():
                raise Stalled(doing, limit)
            seconds = limit.remaining()
        return True


def open_within_limit(opener: Callable[[int], int], doing: str) -> int:
    """Open a file that may be a named pipe, whose other end nobody has opened yet.

    Args:
        opener: opens it with the flags that it is given, besides its own.
        doing: for the error.

    Returns:
        The descriptor, which blocks.

    Raises:
        Stalled: the ambient deadline has passed.
        OSError: it cannot be opened.
    """
    import errno
    from time import sleep

    limit = Limit(None, monotonic, "write")
    nonblocking = getattr(os, "O_NONBLOCK", 0)
    if limit.remaining() is None or not nonblocking:
        return opener(0)
    while True:
        try:
            descriptor = opener(nonblocking)
        except OSError as error:
            if error.errno != errno.ENXIO:  # a named pipe that nobody reads
                raise
        else:
            os.set_blocking(descriptor, True)
            return descriptor
        if limit.expired():
            raise Stalled(doing, limit)
        sleep(RETRY_SECONDS)
