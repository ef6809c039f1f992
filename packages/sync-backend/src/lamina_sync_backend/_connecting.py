"""Dialling and resolving: `lamina_interfaces.connecting`, waited for in the calling thread.

One `poll` waits for the attempts and for the look-ups' threads together, and every way out closes every socket
but the winner's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

from lamina_interfaces import TimeoutException
from lamina_interfaces.connecting import HostDial
from lamina_interfaces.translation import network_error

from ._bell import Bell
from ._stream import SyncStream
from ._waiting import READ, WRITE, new_poll, wait

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from lamina_interfaces import ResolvedAddress
    from lamina_interfaces.connecting import AnyDial, Dial, Resolution, UnixDial

Outcome = TypeVar("Outcome")


def connect(dial: Dial | UnixDial) -> SyncStream:
    """Connect.

    Raises:
        ConnectTimeout, DeadlineExceeded, ConnectError: with the attempts. No socket is left.
    """
    waiting: Waiting[socket.socket] = Waiting(dial)
    stream: SyncStream | None = None
    try:
        try:
            stream = SyncStream(waiting.outcome(), timings=dial.timings)
            dial.release()
        finally:
            waiting.clean_up()
        return stream
    except BaseException:
        if stream is not None:
            stream.abort()
        raise


def resolve(resolution: Resolution) -> Sequence[ResolvedAddress]:
    """Look a name up.

    Raises:
        ConnectTimeout, DeadlineExceeded, ConnectError: there is no address, or not in time.
    """
    waiting: Waiting[Sequence[ResolvedAddress]] = Waiting(resolution)
    try:
        return waiting.outcome()
    finally:
        waiting.clean_up()


class Waiting(Generic[Outcome]):
    """The waiting of one dial."""

    def __init__(self, dial: AnyDial[Outcome]) -> None:
        self._dial = dial
        self._bell: Bell | None = None

    def outcome(self) -> Outcome:
        """Wait until there is one. It is the dial's."""
        dial = self._dial
        if isinstance(dial, HostDial) and dial.look_ups:
            try:
                self._bell = Bell()
            except OSError as exc:
                raise network_error(exc, "dns", f"the name {dial.host!r} could not be looked up") from exc
            dial.ask(self._bell)
        while (outcome := dial.advance()) is None:
            self._wait()
        return outcome

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

    def clean_up(self) -> None:
        """Close what is not the caller's."""
        self._dial.close()
        if self._bell is not None:
            self._bell.close()
