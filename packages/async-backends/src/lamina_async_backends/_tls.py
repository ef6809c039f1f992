"""TLS over a transport, for two tasks: one that reads and one that writes.

Everything here happens between two awaits, so the engine has one user at a time without a lock. Ciphertext leaves in
the order in which it was made, because each piece is taken from the engine and handed to `Transport.queue` without a
pause in between, by whoever made it. So a reader may answer a key update while a writer waits for the peer: it never
waits itself, and what is left over goes out behind what the writer sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamina_interfaces import ConnectError, NetworkError, ReadError

if TYPE_CHECKING:
    from lamina_interfaces import Limit
    from lamina_interfaces.tls import TLSEngine

    from ._transport import Transport

RECEIVE_SIZE = 64 * 1024
"""Bytes of ciphertext that are read from the socket at once. More of them cost more processor time, not less (1,060 µs
for 1 MiB instead of 840), for the system maps large buffers anew each time."""

SLICE = 128 * 1024
"""Bytes of plaintext that are encrypted at once: eight records, so that memory stays small and calls are few."""

MESSAGES_WITHOUT_DATA = 16
"""How often a look for data reads from the socket in vain before the peer counts as talking."""

MOST_UNSENT = 1024 * 1024
"""Bytes of answers that may wait for the peer: one that makes us answer, but does not read, is cut off."""


class TLSChannel:
    """One stream's way through an engine to a transport. Whoever calls has entered the transport's side.

    Args:
        transport: what carries the ciphertext. It is shared by the layers of TLS in TLS.
        engine: the outermost; its handshake has not begun.
    """

    def __init__(self, transport: Transport, engine: TLSEngine) -> None:
        self.engine = engine
        self._transport = transport
        self._at_hand = True  # the next read will probably have something without waiting

    # --- handshake -----------------------------------------------------------------------------------------

    async def handshake(self, limit: Limit) -> None:
        """Perform the handshake of the engine. By the user of both sides."""
        transport, engine = self._transport, self.engine
        try:
            done = False
            while not done:
                done = engine.handshake()
                transport.queue(engine.take())
                await transport.flush(limit)
                if not done:
                    self._feed(await transport.receive(RECEIVE_SIZE, limit))
        except ConnectError:
            self._send_alert()
            raise
        except NetworkError as exc:
            raise ConnectError(
                f"the connection broke during the TLS handshake: {exc.message}", phase="tls", errno=exc.errno
            ) from exc

    def _send_alert(self) -> None:
        """Tell the peer why, so that its log says more than "connection closed"."""
        try:
            self._transport.queue(self.engine.take())
        except NetworkError:
            pass  # it need not be told

    # --- reading -------------------------------------------------------------------------------------------

    async def receive(self, room: int | memoryview, limit: Limit) -> Any:
        """Wait for plaintext, as `Transport.receive` does. By the user of the reading side."""
        if self._at_hand:
            # What is at hand needs no wait, but a fast peer must not keep other tasks from running. Before the bytes
            # are taken: after that nothing can come in between, so none is ever lost.
            await self._transport.take_turns()
        while True:
            received: Any
            if isinstance(room, int):
                received = self.engine.read(room)
                is_full = received is not None and len(received) == room
            else:
                received = self.engine.read_into(room)
                is_full = received == len(room)
            self._answer()
            if received is not None:
                self._at_hand = self._at_hand or is_full or not received
                return received
            self._at_hand = False
            self._feed(await self._transport.receive(RECEIVE_SIZE, limit))

    def readable(self) -> bool:
        """Whether `read` would return at once. By the user of the reading side; never waits."""
        for _ in range(MESSAGES_WITHOUT_DATA):
            readable = self.engine.readable()
            try:
                self._answer()
                if readable:
                    break
                if not self._transport.readable_now():
                    return False  # mostly, and a look is cheaper than a call that fails
                ciphertext = self._transport.receive_now(RECEIVE_SIZE)
            except ReadError:
                break
            if ciphertext is None:
                return False
            self._feed(ciphertext)
        self._at_hand = True
        return True

    def _feed(self, ciphertext: bytes) -> None:
        if ciphertext:
            self.engine.feed(ciphertext)
        else:
            self.engine.feed_eof()

    def _answer(self) -> None:
        """Send what reading has produced for the peer."""
        if not self.engine.outgoing:
            return
        try:
            self._transport.queue(self.engine.take())
        except NetworkError:
            return  # what the peer no longer takes is no loss for a reader; a writer finds out for itself
        if len(self._transport.unsent) > MOST_UNSENT:
            raise ReadError("the peer wants answers, and does not read them", phase="read")

    # --- writing -------------------------------------------------------------------------------------------

    async def write(self, view: memoryview, limit: Limit) -> None:
        """Send all of it. By the user of the writing side."""
        transport = self._transport
        for start in range(0, len(view), SLICE):
            await transport.take_turns()
            with view[start : start + SLICE] as piece:
                self._encrypt(piece)
            if transport.unsent:
                await transport.flush(limit)

    async def write_until_readable(self, view: memoryview, limit: Limit) -> int:
        """Send all of it, or less if plaintext can be read before. By the user of both sides.

        What has been encrypted cannot be taken back: it counts as sent, and goes out when the system takes it.
        """
        transport = self._transport
        await transport.take_turns()
        taken = 0
        while not self.readable():
            if transport.unsent:
                await transport.wait_either(limit)
            elif taken < len(view):
                with view[taken : taken + SLICE] as piece:
                    self._encrypt(piece)
                    taken += len(piece)
                await transport.take_turns()
            else:
                await transport.flush(limit)  # which has nothing left to wait for, but knows of a break
                break
        return taken

    def write_now(self, view: memoryview) -> int:
        """Send what the system takes, and at most a slice more, which waits; how many bytes. Never waits itself."""
        transport = self._transport
        if transport.unsent:
            transport.queue(b"")
        taken = 0
        while taken < len(view) and not transport.unsent:
            with view[taken : taken + SLICE] as piece:
                self._encrypt(piece)
                taken += len(piece)
        return taken

    async def wait_writable(self, limit: Limit, *, reads: bool) -> None:
        """Wait until nothing is left over. By the user of the waiting side.

        Args:
            limit: how long at most.
            reads: by the user of the reading side, too: until then, or until plaintext can be read.
        """
        transport = self._transport
        while transport.unsent and not (reads and self.readable()):
            if reads:
                await transport.wait_either(limit)
            else:
                await transport.wait_writable(limit)
                transport.queue(b"")

    def _encrypt(self, piece: memoryview) -> None:
        self.engine.write(piece)
        self._transport.queue(self.engine.take())

    # --- the end -------------------------------------------------------------------------------------------

    def farewell(self) -> None:
        """Send close_notify if that goes at once. Where the transport says that one may take leave."""
        transport = self._transport
        try:
            transport.queue(b"")
            if not transport.unsent:
                self.engine.close()
                transport.send_now(self.engine.take())
        except NetworkError:
            pass  # the peer has gone already
