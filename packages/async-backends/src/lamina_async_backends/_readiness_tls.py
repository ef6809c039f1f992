"""TLS over a transport, for two tasks: one that reads and one that writes.

Ciphertext must go out in the order in which it was made, and both tasks make some: reading may produce an answer
for the peer (to a key update). No lock is needed for that, as everything between two waits is undivided. There is one
place that sends, `_send_some`; it takes new ciphertext from the engine only when nothing of the old is left
over (`Transport.unsent`). Whoever comes first sends what there is, whoever made it.

A reader must not wait for a peer that takes nothing, so what it could not send is sent while it waits for bytes.
If a writer is at work, then that one does it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina_interfaces import ConnectError, NetworkError, ReadError

from ._readiness_transport import WRITING

if TYPE_CHECKING:
    from lamina_interfaces import Limit
    from lamina_interfaces.tls import TLSEngine

    from ._readiness_transport import Transport

RECEIVE_SIZE = 64 * 1024
"""Bytes of ciphertext that are read from the socket at once."""

SLICE = 128 * 1024
"""Bytes of plaintext that are encrypted at once: eight records, so that memory stays small and calls are few."""

MESSAGES_WITHOUT_DATA = 16
"""How often a look for data reads from the socket in vain before the peer counts as talking."""


class TLSChannel:
    """One stream's way through an engine to a transport. Whoever calls has entered the transport's side.

    Args:
        transport: what carries the ciphertext.
        engine: its handshake has not begun.
    """

    def __init__(self, transport: Transport, engine: TLSEngine) -> None:
        self.engine = engine
        self._transport = transport
        self._has_more = False  # the next read will probably have something without waiting

    # --- handshake -----------------------------------------------------------------------------------------

    async def handshake(self, limit: Limit) -> None:
        """Perform the handshake of the engine. By the user of both sides."""
        try:
            done = False
            while not done:
                done = self.engine.handshake()
                await self._send_all(limit)
                if not done:
                    self._feed(await self._transport.receive(RECEIVE_SIZE, limit))
        except ConnectError:
            self._try_to_send()  # an alert, so that the peer's log says more than "connection closed"
            raise
        except NetworkError as exc:
            raise ConnectError(
                f"the connection broke during the TLS handshake: {exc.message}", phase="tls", errno=exc.errno
            ) from exc

    # --- reading -------------------------------------------------------------------------------------------

    async def read(self, max_bytes: int, limit: Limit) -> bytes:
        """Wait for plaintext. By the user of the reading side."""
        transport = self._transport
        if self._has_more:
            # What is at hand needs no wait, but a fast peer must not keep other tasks from running. Before the bytes
            # are taken, as in `Transport.receive`.
            await transport.waiter.library.checkpoint()
        while True:
            data = self.engine.read(max_bytes)
            is_left = self._try_to_send()
            if data is not None:
                self._has_more = self._has_more or len(data) == max_bytes or not data
                return data
            self._has_more = False
            if is_left and not transport.users & WRITING:
                await transport.wait_either(limit)
                ciphertext = transport.receive_now(RECEIVE_SIZE)
            else:
                ciphertext = await transport.receive(RECEIVE_SIZE, limit)
            if ciphertext is not None:
                self._feed(ciphertext)

    def readable(self) -> bool:
        """Whether `read` would return at once. By the user of the reading side; never waits."""
        for _ in range(MESSAGES_WITHOUT_DATA):
            readable = self.engine.readable()
            self._try_to_send()
            if readable:
                break
            try:
                ciphertext = self._transport.receive_now(RECEIVE_SIZE)
            except ReadError:
                break
            if ciphertext is None:
                return False
            self._feed(ciphertext)
        self._has_more = True
        return True

    def _feed(self, ciphertext: bytes) -> None:
        if ciphertext:
            self.engine.feed(ciphertext)
        else:
            self.engine.feed_eof()

    # --- writing -------------------------------------------------------------------------------------------

    async def write(self, view: memoryview, limit: Limit) -> None:
        """Send all of it. By the user of the writing side."""
        await self._send_all(limit)
        for start in range(0, len(view), SLICE):
            with view[start : start + SLICE] as piece:
                self.engine.write(piece)
            await self._send_all(limit)

    async def write_until_readable(self, view: memoryview, limit: Limit) -> int:
        """Send all of it, or less if plaintext can be read before. By the user of both sides.

        What has been encrypted cannot be taken back: it counts as sent, and goes out with the next operation.
        """
        taken = 0
        while True:
            is_left = self._send_some()
            if is_left:
                await self._transport.wait_either(limit)
                if self.readable():
                    break
            elif taken == len(view) or self.readable():
                break
            else:
                with view[taken : taken + SLICE] as piece:
                    self.engine.write(piece)
                    taken += len(piece)
        if is_left or taken < len(view):
            self._transport.check_open()
        return taken

    async def _send_all(self, limit: Limit) -> None:
        while self._send_some():
            await self._transport.wait_writable(limit)

    def _send_some(self) -> bool:
        """Send what the engine has for the peer, as far as that goes without waiting.

        Returns:
            Whether something is left over.
        """
        transport = self._transport
        while transport.unsent or self._take():
            sent = transport.send_now(transport.unsent)
            if not sent:
                return True
            transport.unsent = transport.unsent[sent:]
        return False

    def _take(self) -> bool:
        self._transport.unsent = memoryview(self.engine.take())
        return bool(self._transport.unsent)

    def _try_to_send(self) -> bool:
        """As `_send_some`, by a reader: what the peer no longer takes is no loss. A writer finds out for itself."""
        try:
            return self._send_some()
        except NetworkError:
            self._transport.unsent = memoryview(b"")
            return False

    # --- the end -------------------------------------------------------------------------------------------

    def farewell(self) -> None:
        """Send close_notify if that goes at once, and comes after whole messages."""
        if self._transport.may_take_leave and not self._try_to_send():
            self.engine.close()
            self._try_to_send()
