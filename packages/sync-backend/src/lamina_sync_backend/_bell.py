"""What wakes a thread that waits for a look-up."""

from __future__ import annotations

import socket
import sys
import threading


class Bell:
    """Wakes a thread that waits in `poll`, from any thread.

    It has a lock, since a descriptor that is closed while another thread is about to write to it may have become
    somebody's connection. Only its owner and the threads that look up know it, so no handler waits for that lock.

    Raises:
        OSError: there are no more descriptors.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pair: tuple[socket.socket, ...] = ()
        try:
            self._pair = socket.socketpair()
            for sock in self._pair:
                sock.setblocking(False)
        except BaseException:  # an interrupt
            self.close()
            raise

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._pair[0].fileno()

    def ring(self) -> None:
        """Make it readable."""
        with self._lock:
            try:
                self._pair[1].send(b"!")
            except OSError:
                pass  # it is readable already, or closed

    def hush(self) -> None:
        """Make it silent again."""
        try:
            self._pair[0].recv(64)
        except BlockingIOError:
            pass  # it was

    def close(self) -> None:
        """Free the descriptors."""
        if sys.is_finalizing():
            return  # a thread that has stopped for good may hold the lock
        with self._lock:
            for sock in self._pair:
                sock.close()
