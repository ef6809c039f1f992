"""Dialling: `lamina_interfaces.connecting`, waited for in the calling thread.

One `poll` waits for the attempts and for the look-ups' threads together, and every way out closes every socket
but the winner's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina_interfaces import TimeoutException
from lamina_interfaces.connecting import Dial
from lamina_interfaces.translation import network_error

from ._bell import Bell
from ._stream import SyncStream
from ._waiting import READ, WRITE, new_poll, wait

if TYPE_CHECKING:
    from lamina_interfaces.connecting import UnixDial


class Connecting:
    """One call of `connect_tcp` or `connect_unix_socket`."""

    def __init__(self, dial: Dial | UnixDial) -> None:
        self._dial = dial
        self._bell: Bell | None = None
        self._stream: SyncStream | None = None

    def run(self) -> SyncStream:
        """Connect.

        Raises:
            ConnectTimeout, DeadlineExceeded, ConnectError: with the attempts. No socket is left.
        """
        try:
            try:
                return self._connect()
            finally:
                self._clean_up()
        except BaseException:
            if self._stream is not None:
                self._stream.abort()
            raise

    def _connect(self) -> SyncStream:
        dial = self._dial
        if isinstance(dial, Dial) and dial.look_ups:
            try:
                self._bell = Bell()
            except OSError as exc:
                raise network_error(exc, "dns", f"the name {dial.host!r} could not be looked up") from exc
            dial.ask(self._bell)
        while (sock := dial.advance()) is None:
            self._wait()
        self._stream = SyncStream(sock, timings=dial.timings)
        dial.release()
        return self._stream

    def _wait(self) -> None:
        dial, bell = self._dial, self._bell
        poll = new_poll()
        indices = {sock.fileno(): index for index, sock in dial.pending.items()}
        for fd in indices:
            poll.register(fd, WRITE)
        if bell is not None and dial.look_ups:
            poll.register(bell.fileno(), READ)
        try:
            ready = wait(poll, dial.limit, dial.wake_at)
        except TimeoutException:
            raise dial.timeout_error() from None
        for fd, _ in ready:
            if fd in indices:
                dial.ended(indices[fd])
            elif bell is not None:
                bell.hush()

    def _clean_up(self) -> None:
        self._dial.close()
        if self._bell is not None:
            self._bell.close()
