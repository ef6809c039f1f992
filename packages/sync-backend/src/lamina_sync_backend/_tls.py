"""TLS over a transport, for two threads: one that reads and one that writes.

`lock` guards the engine, because one `ssl.SSLObject` must not be used by two threads at a time. It is held
while bytes are encrypted or decrypted, never while anybody waits.

`_sending` is the right to take ciphertext from the engine and put it on the wire, and guards `_unsent`. Without
it two threads could take one after the other and send the other way round. A writer holds it through the whole
of its write. A reader needs it too, because reading may produce something to send (the answer to a key update),
but must never wait for a writer that waits for the peer: it tries, and where it fails the writer, who looks
again after letting go, sends the reader's bytes as well.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from lamina_interfaces import ConnectError, NetworkError, ReadError

from ._waiting import WRITE

if TYPE_CHECKING:
    from lamina_interfaces import Limit
    from lamina_interfaces.tls import TLSEngine

    from ._transport import Transport

RECEIVE_SIZE = 64 * 1024
"""Bytes of ciphertext that are read from the socket at once."""

SLICE = 128 * 1024
"""Bytes of plaintext that are encrypted at once: eight records, so that memory stays small and calls are few."""

FAREWELL_WAIT = 0.1
"""Seconds that closing waits for another thread to finish decrypting, before it leaves out the farewell."""

MESSAGES_WITHOUT_DATA = 16
"""How often a look for data reads from the socket in vain before the peer counts as talking."""


class TLSChannel:
    """One stream's way through an engine to a transport. Whoever calls has entered the transport's side.

    Args:
        transport: what carries the ciphertext.
        engine: its handshake has not begun.
        beneath: the channel that has been in use until now, for TLS in TLS; not used any more.
    """

    def __init__(self, transport: Transport, engine: TLSEngine, beneath: TLSChannel | None = None) -> None:
        self.engine = engine
        self._transport = transport
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._unsent: memoryview = memoryview(b"") if beneath is None else beneath._unsent

    # --- handshake -----------------------------------------------------------------------------------------

    def handshake(self, limit: Limit) -> None:
        """Perform the handshake of the engine. By the user of both sides."""
        try:
            with self._sending:
                self._send_unsent(limit)  # of the layer beneath
                while True:
                    done = self.engine.handshake()
                    self._transport.send(memoryview(self.engine.take()), limit)
                    if done:
                        break
                    ciphertext = self._transport.receive(RECEIVE_SIZE, limit)
                    if ciphertext:
                        self.engine.feed(ciphertext)
                    else:
                        self.engine.feed_eof()
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
            self._transport.send_now(memoryview(self.engine.take()))
        except NetworkError:
            pass  # it need not be told

    # --- reading -------------------------------------------------------------------------------------------

    def read(self, max_bytes: int, limit: Limit) -> bytes:
        """Wait for plaintext. By the user of the reading side."""
        while True:
            with self._lock:
                data = self.engine.read(max_bytes)
                answer = self.engine.outgoing
            if answer:
                self._send_some()
            if data is not None:
                return data
            if self._unsent and not self._sending.locked():
                # Nobody is writing, so what is left over goes out while we wait.
                events = self._transport.wait_either(limit)
                if events & WRITE:
                    self._send_some()
                if not events & ~WRITE:
                    continue
            self._feed(self._transport.receive(RECEIVE_SIZE, limit))

    def readable(self) -> bool:
        """Whether `read` would return at once. By the user of the reading side; never waits."""
        for _ in range(MESSAGES_WITHOUT_DATA):
            with self._lock:
                readable = self.engine.readable()
                answer = self.engine.outgoing
            if answer:
                self._send_some()
            if readable:
                return True
            try:
                ciphertext = self._transport.receive_now(RECEIVE_SIZE)
            except ReadError:
                return True
            if ciphertext is None:
                return False
            self._feed(ciphertext)
        return True

    def _feed(self, ciphertext: bytes) -> None:
        with self._lock:
            if ciphertext:
                self.engine.feed(ciphertext)
            else:
                self.engine.feed_eof()

    # --- writing -------------------------------------------------------------------------------------------

    def write(self, view: memoryview, limit: Limit) -> None:
        """Send all of it. By the user of the writing side."""
        with self._sending:
            self._send_unsent(limit)
            for start in range(0, len(view), SLICE):
                self._encrypt(view[start : start + SLICE])
                self._send_unsent(limit)
        self._send_some()

    def write_until_readable(self, view: memoryview, limit: Limit) -> int:
        """Send all of it, or less if plaintext can be read before. By the user of both sides.

        What has been encrypted cannot be taken back: it counts as sent, and goes out with the next operation.
        """
        taken = 0
        with self._sending:
            while True:
                if self._unsent:
                    events = self._transport.wait_either(limit)
                    if events & ~WRITE and self.readable():
                        break
                    self._unsent = self._unsent[self._transport.send_now(self._unsent) :]
                elif taken == len(view) or self.readable():
                    break
                else:
                    piece = view[taken : taken + SLICE]
                    self._encrypt(piece)
                    taken += len(piece)
        self._send_some()
        return taken

    def _encrypt(self, piece: memoryview) -> None:
        with self._lock:
            self.engine.write(piece)
            self._unsent = memoryview(self.engine.take())

    def _send_unsent(self, limit: Limit) -> None:
        """Send what is left over. With the right to send."""
        while self._unsent:
            sent = self._transport.send_now(self._unsent)
            self._unsent = self._unsent[sent:]
            if not sent:
                self._transport.wait_writable(limit)

    def _send_some(self) -> None:
        """Send what the engine has for the peer, as far as that goes without waiting. Never raises."""
        # Whoever finds the right to send taken goes away, so whoever had it looks again after letting go.
        while self._has_more_to_send() and self._sending.acquire(blocking=False):
            try:
                if not self._unsent:
                    with self._lock:
                        self._unsent = memoryview(self.engine.take())
                sent = self._transport.send_now(self._unsent)
                self._unsent = self._unsent[sent:]
                if not sent:
                    return
            except NetworkError:
                # What the peer no longer takes is no loss for a reader; a writer finds out for itself.
                self._unsent = memoryview(b"")
                return
            finally:
                self._sending.release()

    def _has_more_to_send(self) -> bool:
        if self._unsent:
            return True
        with self._lock:
            return self.engine.outgoing

    # --- the end -------------------------------------------------------------------------------------------

    def farewell(self) -> None:
        """Send close_notify if that goes at once: not behind another thread's unfinished record."""
        if not self._sending.acquire(blocking=False):
            return
        try:
            self._unsent = self._unsent[self._transport.send_now(self._unsent) :]
            if self._unsent or not self._lock.acquire(timeout=FAREWELL_WAIT):
                return
            try:
                self.engine.close()
                ciphertext = self.engine.take()
            finally:
                self._lock.release()
            self._transport.send_now(memoryview(ciphertext))
        except NetworkError:
            pass  # the peer has gone already
        finally:
            self._sending.release()
