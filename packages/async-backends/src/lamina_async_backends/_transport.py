"""What a stream, and TLS, need of the socket beneath them, and what the transports have in common.

They differ in how one waits for a socket, and in nothing that can be seen from here. All of it happens in the loop's
own thread, save `close`.

There are three sides that a task may use: one reads, one sends, one waits until more can be sent. A write uses the
last two, so that what only sends (a prompt write, which never waits) and what only waits may go on side by side, and
neither beside a write.
"""

from __future__ import annotations

import select
import socket
from os import getpid
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ref

from lamina_interfaces import ConcurrencyError
from lamina_interfaces.translation import network_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamina_interfaces import Limit, NetworkError, Phase

READING = 1
SENDING = 2
WAITING = 4
WRITING = SENDING | WAITING

NEVER = float("inf")

BULK = 16 * 1024
"""After a read of so many bytes more are likely to be there, so the next one tries before it waits."""

CLOSED = "the stream is closed"
INHERITED = "the stream belongs to the parent process"
BROKE = "the connection broke"
HALF_SENT = "an earlier write was not completed"
UNWATCHED = "the event loop cannot watch the socket"

# A process that handles SIGPIPE in its own way must not get one from us.
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)

_HAS_POLL = hasattr(select, "poll")  # not on Windows


class TimerHandle(Protocol):
    """The part of a loop's timer that is used here."""

    def cancel(self) -> object:
        """It is not to go off."""


class Alarm:
    """One timer for all the waits of a connection.

    A timer for each wait, nearly always cancelled, would cost more than the wait: asyncio keeps a heap of them, and
    trio's cancel scopes are dearer still. So the timer is left where it is when a wait ends, and only moved when one
    is to end earlier. Whoever waits when it goes off looks at its own limit, and sets the alarm anew if that has
    not passed. An idle connection has none, once the last has gone off.

    It keeps nothing alive: a transport that nobody holds is freed though the timer has yet to go off.

    Args:
        call_at: calls a function at a time, in the loop; returns `None` if it will not.
        transport: whose waits they are.
    """

    __slots__ = ("_at", "_call_at", "_handle", "_transport")

    def __init__(
        self, call_at: Callable[[float, Callable[[], None]], TimerHandle | None], transport: Transport
    ) -> None:
        self._at = NEVER
        self._call_at = call_at
        self._handle: TimerHandle | None = None
        self._transport = ref(transport)

    def set(self, at: float) -> bool:
        """Go off at that time of the loop's clock, or earlier; whether it will."""
        if at < self._at:
            self.stop()
            self._handle = self._call_at(at, self._go_off)
            if self._handle is None:
                return False
            self._at = at
        return True

    def stop(self) -> None:
        """Do not go off."""
        self._at = NEVER
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _go_off(self) -> None:
        self._at = NEVER
        self._handle = None
        transport = self._transport()
        if transport is not None:
            transport.wake_all()


class Transport:
    """A connected socket, and how to wait for it.

    Each side has one user at a time.

    Args:
        sock: connected, non-blocking, the transport's from now on.
        now: the clock of the loop.
        running: tells what runs in this thread.
        home: what it returns in the loop.

    Attributes:
        sock: as given.
        now: as given.
        closed: whether `close` was called.
        users: the sides that are in use.
        unsent: bytes that were queued, and that the system has not taken yet.
        has_news: whether it is known, without asking the system, that `receive_now` would return something, or raise.
    """

    def __init__(
        self, sock: socket.socket, now: Callable[[], float], running: Callable[[], object], home: object
    ) -> None:
        self.sock = sock
        self.now = now
        self.closed = False
        self.users = 0
        self.unsent: bytearray = bytearray()
        self.has_news = False
        self._running = running
        self._home = home
        self._pid = getpid()
        self._bulk = False
        # The system tells of a break only once, to whoever asks first; afterwards it looks like an orderly end.
        self._read_failure: OSError | None = None
        self._write_failure: OSError | None = None
        self._half_sent = False
        self._poll: select.poll | None = None

    # --- users and the end ---------------------------------------------------------------------------------

    def enter(self, sides: int, phase: Phase) -> None:
        """Become the user of some sides, until `leave`.

        Raises:
            ConcurrencyError: there is another one, or this is another loop.
            NetworkError: the transport is closed, or the parent process's; or a write was broken off.
        """
        if getpid() != self._pid:
            raise network_error(OSError(INHERITED), phase)
        if self._running() is not self._home:
            raise ConcurrencyError("this stream belongs to another event loop", phase=phase)
        if common := sides & self.users:
            doing = "reading from" if common & READING else "writing to"
            raise ConcurrencyError(f"another task is {doing} this stream", phase=phase)
        # Marked first and looked at second, for the sake of a thread that closes in between.
        self.users |= sides
        if self.closed or (self._half_sent and sides & WRITING):
            self.leave(sides)
            raise network_error(OSError(CLOSED if self.closed else HALF_SENT), phase)

    def leave(self, sides: int) -> None:
        """Be no longer the user of these sides."""
        self.users &= ~sides

    def give_up_writing(self) -> None:
        """Take note that a write was broken off: nothing that is sent from now on would make sense to the peer."""
        self._half_sent = True

    def is_here(self) -> bool:
        """Whether its loop is the one that runs in this thread."""
        return self._running() is self._home

    @property
    def inherited(self) -> bool:
        """Whether this process has the transport from its parent.

        The system says so: a fork that is made in C may run no handlers of Python's.
        """
        return getpid() != self._pid

    @property
    def may_take_leave(self) -> bool:
        """Whether what is sent now comes after whole messages, and disturbs nobody: then a farewell is in order."""
        busy = self.closed or self.inherited or self._half_sent or self.users & SENDING
        return not busy and self.is_here()

    def close(self, *, gracefully: bool = False) -> None:
        """Wake those who wait, and free the socket as soon as nobody uses it. Never raises or blocks.

        From any thread, by finalisers, and whether the loop runs, stands still or is closed.

        Args:
            gracefully: see to it that the peer gets what was sent last (`lamina_interfaces.sockets.drop_incoming`).
                Only by somebody who may take leave.
        """
        raise NotImplementedError

    def wake_all(self) -> None:
        """Have those who wait look at their limits."""
        raise NotImplementedError

    # --- reading -------------------------------------------------------------------------------------------

    # Where `room` is the most bytes that there may be, those are what is received; where it is a buffer to put them
    # into, it is their number. Both are false at the end. `Any` stands for that.

    async def receive(self, room: int | memoryview, limit: Limit) -> Any:
        """Wait for bytes; none at the end. By the user of the reading side."""
        raise NotImplementedError

    def receive_now(self, room: int | memoryview) -> Any:
        """The bytes that are there; `None` if there are none yet."""
        if not self.has_news:
            received = self._ask(room)
            if received is not None or not self.has_news:
                return received
        return self._tell(room)

    def readable_now(self) -> bool:
        """Whether `receive_now` would return something, or raise."""
        if self.has_news or self.closed:
            return True  # closed, its descriptor may be another's
        if not _HAS_POLL:
            return bool(select.select([self.sock], (), (), 0)[0])
        if self._poll is None:
            poll = select.poll()
            poll.register(self.sock, select.POLLIN)
            self._poll = poll  # only now: after an interrupt in between it would never see anything
        return bool(self._poll.poll(0))

    # --- writing -------------------------------------------------------------------------------------------

    async def take_turns(self) -> None:
        """Let other tasks go first, as often as it is due."""
        raise NotImplementedError

    async def send(self, data: memoryview, limit: Limit) -> None:
        """Send all of it, without a copy. By the user of the writing side."""
        raise NotImplementedError

    def send_now(self, data: bytes | bytearray | memoryview, start: int = 0) -> int:
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
                # Without its traceback, which knows this frame. Bytes that have come may still be read: an answer
                # may be among them.
                self._write_failure = exc.with_traceback(None)
        raise self._error(self._write_failure, "write") from self._write_failure

    def send_at_once(self, data: memoryview) -> int:
        """As much of `send_until_readable` as goes without a coroutine; how many bytes were sent."""
        return 0

    async def send_until_readable(self, data: memoryview, limit: Limit, sent: int) -> int:
        """Send all of it, or less if something can be read before; how many bytes. By the user of both sides.

        Args:
            data: what to send.
            limit: how long at most.
            sent: how many bytes of it `send_at_once` has sent.
        """
        if not sent:
            await self.take_turns()
        while sent < len(data) and not self.readable_now():
            count = self.send_now(data, sent)
            sent += count
            if not count:
                await self.wait_either(limit)
        return sent

    async def wait_writable(self, limit: Limit) -> None:
        """Wait until the system takes more. May return too early. By the user of the waiting side."""
        raise NotImplementedError

    async def wait_either(self, limit: Limit) -> None:
        """Wait until something can be read, or the system has taken all that is queued. May return too early."""
        raise NotImplementedError

    def queue(self, data: bytes) -> None:
        """Send it after what is queued already: now, as far as that goes, and the rest when it goes.

        At the latest while somebody waits to read or to write.

        Raises:
            NetworkError: the connection broke, or is closed.
        """
        raise NotImplementedError

    async def flush(self, limit: Limit) -> None:
        """Wait until the system has taken all that is queued. By the user of the writing side.

        Raises:
            NetworkError: the connection broke, or is closed; be it that somebody else was told so.
        """
        while self.unsent:
            await self.wait_writable(limit)
            self.queue(b"")
        self.check_sending()

    def check_sending(self) -> None:
        """Tell whoever has waited to send of a break that is known.

        Raises:
            NetworkError: the connection broke, or is closed.
        """
        if self.closed:
            raise network_error(OSError(CLOSED), "write")
        if self._write_failure is not None:
            raise self._error(self._write_failure, "write") from self._write_failure

    # --- within --------------------------------------------------------------------------------------------

    def _ask(self, room: int | memoryview) -> Any:
        """Receive what is there; `None` if there is nothing, or if it is the end or an error, which are news."""
        received: Any
        try:
            if isinstance(room, int):
                received = self.sock.recv(room)
                count, size = len(received), room
            else:
                received = count = self.sock.recv_into(room)
                size = len(room)
        except (BlockingIOError, InterruptedError):
            self._bulk = False
            return None
        except OSError as exc:
            # Without its traceback, which knows this frame.
            self._read_failure = exc.with_traceback(None)
        else:
            if count:
                self._bulk = count >= BULK or count == size
                return received
            # A break that the writer was told of reads like the peer's end, but is not.
            self._read_failure = self._write_failure
        self.has_news = True
        return None

    def _tell(self, room: int | memoryview) -> Any:
        """The news: the end, or an error."""
        if self._read_failure is None and not self.closed:  # closed by us, it reads like the peer's end, too
            return b"" if isinstance(room, int) else 0
        raise self._error(self._read_failure, "read") from self._read_failure

    def _error(self, exc: OSError | None, phase: Phase) -> NetworkError:
        if exc is None or self.closed:
            return network_error(OSError(CLOSED), phase)
        return network_error(exc, phase, BROKE)
