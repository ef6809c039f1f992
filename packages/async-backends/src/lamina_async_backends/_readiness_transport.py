"""A non-blocking socket that tasks wait for by means of a library: the transport of trio and of anyio.

The loop's thread alone enters and leaves. But `close` may come from another thread or from a finaliser, at any time,
also when the loop has ended: so it is a plain function that asks nobody. It marks the transport as closed and shuts
the connection down, which wakes whoever waits for the socket; the descriptor is freed at once if there is no user,
and otherwise by the last user as it leaves, so that nobody ever waits for a number that has become another
connection's. A user marks itself first and looks for the mark of `close` second, `close` does it the other way
round; so at least one of them sees the other.

There are no callbacks, so what was queued and is left over goes out while somebody waits: a writer, or where there is
none a reader.

A forked child has a copy of the descriptor. It may close its copy, but a shutdown (or a farewell of TLS) would
end the parent's connection, so the process is remembered too.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from lamina_interfaces import NetworkError
from lamina_interfaces.sockets import close_without_lingering, drop_incoming

from ._transport import WAITING, Alarm, Transport

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from lamina_interfaces import Event, Limit

    from ._readiness import Waiter


class ReadinessTransport(Transport):
    """A connected, non-blocking socket: the `Transport` of trio and of anyio.

    Args:
        sock: the transport's from now on.
        waiter: how to wait for it.
    """

    def __init__(self, sock: socket.socket, waiter: Waiter) -> None:
        super().__init__(sock, waiter.runtime.now, waiter.runtime.is_here, True)
        self.waiter = waiter
        self._writable: Event | None = None  # somebody waits for the socket to become writable
        call_at = waiter.library.call_at
        self._alarm = None if call_at is None else Alarm(call_at, self)

    # --- users and the end ---------------------------------------------------------------------------------

    def leave(self, sides: int) -> None:
        """See `Transport.leave`."""
        self.users &= ~sides
        if self.closed and not self.users:
            close_without_lingering(self.sock)

    def close(self, *, gracefully: bool = False) -> None:
        """See `Transport.close`."""
        if gracefully and not self.users:
            drop_incoming(self.sock)
        self.closed = True
        if self._alarm is not None and self.is_here():
            self._alarm.stop()
        if self.inherited:
            self.sock.close()
            return
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster, or it is closed already
        if not self.users:
            close_without_lingering(self.sock)

    def wake_all(self) -> None:
        """See `Transport.wake_all`."""
        wake_all = self.waiter.library.wake_all
        # Without a user of ours whoever waits for the socket is the caller, who got it by `get_extra_info`.
        if wake_all is not None and self.users and self.sock.fileno() >= 0:
            wake_all(self.sock)

    # --- reading -------------------------------------------------------------------------------------------

    async def receive(self, room: int | memoryview, limit: Limit) -> Any:
        """See `Transport.receive`.

        Always lets other tasks run, and always before the bytes are taken: after that nothing can come in
        between, so none is ever lost.
        """
        library = self.waiter.library
        if self._bulk:
            await library.checkpoint()
        else:
            # A small message is usually waited for: asking first saves a call that fails. A cancellation that is due
            # must be raised even so.
            if not library.wait_checks:
                await library.checkpoint_if_cancelled()
            await self._wait_readable(limit)
        while (data := self.receive_now(room)) is None:
            await self._wait_readable(limit)
        return data

    def _wait_readable(self, limit: Limit) -> Awaitable[None]:
        if self.unsent and not self.users & WAITING:
            return self.wait_either(limit)
        waiter = self.waiter
        return waiter.wait(limit, waiter.library.wait_readable, self.sock.fileno(), alarm=self._alarm)

    # --- writing -------------------------------------------------------------------------------------------

    async def take_turns(self) -> None:
        """See `Transport.take_turns`. It is always due."""
        await self.waiter.library.checkpoint()

    async def send(self, data: memoryview, limit: Limit) -> None:
        """See `Transport.send`."""
        await self.take_turns()
        sent = self.send_now(data)
        while sent < len(data):
            await self.wait_writable(limit)
            sent += self.send_now(data, sent)

    async def wait_either(self, limit: Limit) -> None:
        """See `Transport.wait_either`. By the user of the reading side."""
        await self.waiter.wait(limit, self.waiter.first_of, self._until_readable, self._until_writable)
        try:
            self.queue(b"")
        except NetworkError:
            pass  # what the peer no longer takes is no loss for a reader; a writer finds out for itself

    def queue(self, data: bytes) -> None:
        """See `Transport.queue`."""
        try:
            if self.unsent:
                del self.unsent[: self.send_now(self.unsent)]
            if data and not self.unsent:
                data = data[self.send_now(data) :]
        except NetworkError:
            self.unsent.clear()
            raise
        self.unsent += data

    async def wait_writable(self, limit: Limit) -> None:
        """See `Transport.wait_writable`."""
        await self.waiter.wait(limit, self._until_writable)

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
