"""What a stream, and TLS, need of the socket beneath them: the surface that each transport has.

The transports differ in how one waits for a socket, and in nothing that can be seen from here. All of it happens in
the loop's own thread, save `close`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from lamina_interfaces import Limit, Phase

READING = 1
WRITING = 2

BULK = 16 * 1024
"""After a read of so many bytes more are likely to be there, so the next one tries before it waits."""

CLOSED = "the stream is closed"
INHERITED = "the stream belongs to the parent process"
BROKE = "the connection broke"
HALF_SENT = "an earlier write was not completed"


class Transport(Protocol):
    """A connected socket, and how to wait for it.

    Each side, reading and writing, has one user at a time.

    Attributes:
        sock: the transport's own, non-blocking.
        now: the clock of the loop.
        closed: whether `close` was called.
        users: the sides that are in use.
        unsent: bytes that were queued, and that the system has not taken yet.
    """

    sock: socket.socket
    now: Callable[[], float]
    closed: bool
    users: int
    unsent: bytearray

    # --- users and the end ---------------------------------------------------------------------------------

    def enter(self, sides: int, phase: Phase) -> None:
        """Become the user of one side or both, until `leave`.

        Raises:
            ConcurrencyError: there is another one, or this is another loop.
            NetworkError: the transport is closed, or the parent process's; or a write was broken off.
        """

    def leave(self, sides: int) -> None:
        """Be no longer the user of these sides."""

    def give_up_writing(self) -> None:
        """Take note that a write was broken off: nothing that is sent from now on would make sense to the peer."""

    @property
    def inherited(self) -> bool:
        """Whether this process has the transport from its parent."""
        ...

    @property
    def may_take_leave(self) -> bool:
        """Whether what is sent now comes after whole messages, and disturbs nobody: then a farewell is in order."""
        ...

    def close(self, *, gracefully: bool = False) -> None:
        """Wake those who wait, and free the socket as soon as nobody uses it. Never raises or blocks.

        From any thread, by finalisers, and whether the loop runs, stands still or is closed.

        Args:
            gracefully: see to it that the peer gets what was sent last (`lamina_interfaces.sockets.drop_incoming`).
                Only by somebody who may take leave.
        """

    # --- reading -------------------------------------------------------------------------------------------

    async def receive(self, max_bytes: int, limit: Limit) -> bytes:
        """Wait for bytes; `b""` at the end. By the user of the reading side."""
        ...

    def receive_now(self, max_bytes: int) -> bytes | None:
        """The bytes that are there; `None` if there are none, `b""` at the end."""

    def readable_now(self) -> bool:
        """Whether `receive_now` would return something, or raise."""
        ...

    # --- writing -------------------------------------------------------------------------------------------

    async def take_turns(self) -> None:
        """Let other tasks go first, as often as it is due."""

    async def send(self, view: memoryview, limit: Limit) -> None:
        """Send all of it, without a copy. By the user of the writing side."""

    def send_now(self, view: memoryview | bytearray | bytes) -> int:
        """Send what the system takes at once; how many bytes that was."""
        ...

    async def send_until_readable(self, view: memoryview, limit: Limit) -> int:
        """Send all of it, or less if something can be read before. By the user of both sides."""
        ...

    async def wait_either(self, limit: Limit) -> None:
        """Wait until something can be read, or the system has taken all that is queued. May return too early."""

    def queue(self, data: bytes) -> None:
        """Send it after what is queued already: now, as far as that goes, and the rest when it goes.

        At the latest while somebody waits to read or to write.

        Raises:
            NetworkError: the connection broke, or is closed.
        """

    async def flush(self, limit: Limit) -> None:
        """Wait until the system has taken all that is queued. By the user of the writing side.

        Raises:
            NetworkError: the connection broke, or is closed; be it that somebody else was told so.
        """
