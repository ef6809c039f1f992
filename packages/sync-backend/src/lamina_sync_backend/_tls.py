"""TLS over a transport, for two threads: one that reads and one that writes.

`lock` guards the engine, because one `ssl.SSLObject` must not be used by two threads at a time. It is held
while bytes are encrypted or decrypted, never while anybody waits.

The *right to send* is the right to take ciphertext from the engine and put it on the wire, and guards what is
left over (`unsent`). Without it two threads could take one after the other and send the other way round. A writer
holds it through the whole of its write. A reader needs it too, because reading may produce something to send (the
answer to a key update), but must never wait for a writer that waits for the peer: it tries, and where it fails the
writer, who looks again after letting go, sends the reader's bytes as well. A prompt write tries too, and lets go before
it returns; what it leaves over is sent by whoever gets the right next, and one who waits to write tries each time when
the system takes more.

Both are shared by all the layers of TLS in TLS, since the outer engines work through the inner ones: so closing
a stream says no farewell through an engine that a handshake is using.

The lock is re-entrant, for a signal handler that closes a stream which its own thread is using. The right to send
is not a lock but the name of its holder: an interrupt may strike between getting a lock and noting that one has it.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, overload

from lamina_interfaces import ConcurrencyError, ConnectError, NetworkError, ReadError

from ._waiting import READ, WRITE

if TYPE_CHECKING:
    from lamina_interfaces import Limit
    from lamina_interfaces.tls import TLSEngine

    from ._transport import Transport

RECEIVE_SIZE = 64 * 1024
"""Bytes of ciphertext that are read from the socket at once; more, if the caller asks for more."""

SLICE = 128 * 1024
"""Bytes of plaintext that are encrypted at once: eight records, so that memory stays small and calls are few."""

TURN_PAUSE = 0.0002
"""Seconds between two tries to get the right to send, which a reader has for a few calls that do not wait."""

MOST_UNSENT = 1024 * 1024
"""Bytes of answers that may wait for the peer: one that makes us answer, but does not read, is cut off."""

MESSAGES_WITHOUT_DATA = 16
"""How often a look for data reads from the socket in vain before the peer counts as talking."""


class Sender:
    """One who has, or wants, the right to send."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()


class Wire:
    """What all layers of TLS over one transport share.

    Attributes:
        lock: guards the engines.
        sender: who has the right to send, or `None`. Given back by assigning `None`.
        unsent: ciphertext that was taken from the engine and has not been sent.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.sender: Sender | None = None
        self.unsent = memoryview(b"")

    def try_to_take_the_turn(self, sender: Sender) -> bool:
        """Get the right to send if nobody has it."""
        with self.lock:
            if self.sender is None:
                self.sender = sender
        return self.sender is sender

    def take_the_turn(self, sender: Sender, limit: Limit) -> None:
        """Get the right to send. By the user of the writing side, so that only a reader can have it.

        Raises:
            ConcurrencyError: a signal handler has interrupted the reader, and wants to write.
        """
        while not self.try_to_take_the_turn(sender):
            self.refuse_interrupted(sender.thread, limit)
            limit.check()
            time.sleep(TURN_PAUSE)

    def refuse_interrupted(self, thread: int, limit: Limit) -> None:
        """Refuse to wait for the right to send if this very thread has it, beneath a signal handler.

        Raises:
            ConcurrencyError: so it is.
        """
        holder = self.sender
        if holder is not None and holder.thread == thread:
            raise ConcurrencyError("this thread is in the middle of using this stream", phase=limit.phase)


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
        self._wire: Wire = Wire() if beneath is None else beneath._wire

    # --- handshake -----------------------------------------------------------------------------------------

    def handshake(self, limit: Limit) -> None:
        """Perform the handshake of the engine. By the user of both sides."""
        wire, sender = self._wire, Sender()
        try:
            wire.take_the_turn(sender, limit)
            self._send_unsent(limit)  # of the layer beneath
            done = False
            while not done:
                with wire.lock:
                    done = self.engine.handshake()
                    wire.unsent = memoryview(self.engine.take())
                self._send_unsent(limit)
                if not done:
                    self._feed(self._transport.receive(RECEIVE_SIZE, limit))
        except ConnectError:
            self._send_alert()
            raise
        except NetworkError as exc:
            raise ConnectError(
                f"the connection broke during the TLS handshake: {exc.message}", phase="tls", errno=exc.errno
            ) from exc
        finally:
            if wire.sender is sender:
                wire.sender = None

    def _send_alert(self) -> None:
        """Tell the peer why, so that its log says more than "connection closed"."""
        try:
            with self._wire.lock:
                alert = self.engine.take()
            self._transport.send_now(memoryview(alert))
        except NetworkError:
            pass  # it need not be told

    # --- reading -------------------------------------------------------------------------------------------

    @overload
    def read(self, room: int, limit: Limit) -> bytes: ...
    @overload
    def read(self, room: memoryview, limit: Limit) -> int: ...

    def read(self, room: int | memoryview, limit: Limit) -> bytes | int:
        """Wait for plaintext, as `Transport.receive` for bytes. By the user of the reading side."""
        size = room if isinstance(room, int) else len(room)
        while True:
            with self._wire.lock:
                data = self.engine.read(room) if isinstance(room, int) else self.engine.read_into(room)
                answer = self.engine.outgoing
            if answer:
                self._send_answers()
            if data is not None:
                return data
            if self._wire.unsent and self._wire.sender is None:
                # Nobody is writing, so what is left over goes out while we wait.
                events = self._transport.wait_either(limit)
                if events & WRITE:
                    self._send_some()
                if not events & ~WRITE:
                    continue
            self._feed(self._transport.receive(max(size, RECEIVE_SIZE), limit))

    def readable(self) -> bool:
        """Whether `read` would return at once. By the user of the reading side; never waits."""
        for _ in range(MESSAGES_WITHOUT_DATA):
            with self._wire.lock:
                readable = self.engine.readable()
                answer = self.engine.outgoing
            try:
                if answer:
                    self._send_answers()
                if readable:
                    return True
                if not self._transport.readable_now():
                    return (
                        False  # asked first, since mostly there is nothing, and a call that fails costs more
                    )
                ciphertext = self._transport.receive_now(RECEIVE_SIZE)
            except ReadError:
                return True
            if ciphertext is None:
                return False
            self._feed(ciphertext)
        return True

    def _feed(self, ciphertext: bytes) -> None:
        with self._wire.lock:
            if ciphertext:
                self.engine.feed(ciphertext)
            else:
                self.engine.feed_eof()

    def _send_answers(self) -> None:
        """Send what reading has produced for the peer, or see that somebody else does."""
        self._send_some()
        with self._wire.lock:
            unsent = len(self._wire.unsent) + self.engine.outgoing
        if unsent > MOST_UNSENT:
            raise ReadError("the peer wants answers, and does not read them", phase="read")

    # --- writing -------------------------------------------------------------------------------------------

    def write(self, data: bytes | memoryview, limit: Limit) -> None:
        """Send all of it. By the user of the writing side."""
        wire, sender = self._wire, Sender()
        try:
            wire.take_the_turn(sender, limit)
            self._send_unsent(limit)
            taken = 0
            while taken < len(data):
                taken += self._encrypt(data, taken)
                self._send_unsent(limit)
        finally:
            if wire.sender is sender:
                wire.sender = None
        self._send_some()

    def write_until_readable(self, data: bytes | memoryview, limit: Limit) -> int:
        """Send all of it, or less if plaintext can be read before. By the user of both sides.

        What has been encrypted cannot be taken back: it counts as sent, and goes out with the next operation.
        """
        wire, sender = self._wire, Sender()
        taken = 0
        try:
            wire.take_the_turn(sender, limit)
            while True:
                if wire.unsent:
                    events = self._transport.wait_either(limit)
                    if events & ~WRITE and self.readable():
                        break
                    wire.unsent = wire.unsent[self._transport.send_now(wire.unsent) :]
                elif taken == len(data) or self.readable():
                    break
                else:
                    taken += self._encrypt(data, taken)
                    self._send_at_once()
            if wire.unsent or taken < len(data):
                self._transport.check_open()
        finally:
            if wire.sender is sender:
                wire.sender = None
        self._send_some()  # what looking for data has produced
        return taken

    def write_now(self, data: bytes | memoryview) -> int:
        """Send what the system takes, and at most a slice more, which waits; how many bytes. Never waits itself."""
        wire, sender = self._wire, Sender()
        taken = 0
        try:
            if not wire.try_to_take_the_turn(sender):
                return 0  # for a moment it is the reader's
            self._send_at_once()
            while taken < len(data) and not wire.unsent:
                taken += self._encrypt(data, taken)
                self._send_at_once()
        finally:
            if wire.sender is sender:
                wire.sender = None
        self._send_some()
        return taken

    def wait_writable(self, limit: Limit, *, reads: bool) -> None:
        """Wait until nothing is left over. By the user of the waiting side.

        Args:
            limit: how long at most.
            reads: by the user of the reading side, too: until then, or until plaintext can be read.
        """
        thread = threading.get_ident()
        while self.has_unsent() and not (reads and self.readable()):
            self._wire.refuse_interrupted(thread, limit)
            if not reads:
                self._transport.wait_writable(limit)
            elif not self._transport.wait_either(limit) & ~READ:
                continue
            self._send_some()

    def _encrypt(self, data: bytes | memoryview, start: int) -> int:
        """Encrypt a slice, from `start` on; how many bytes that was."""
        # Released in any case: the traceback of an error keeps this frame, and would keep the buffer locked.
        with memoryview(data)[start : start + SLICE] as piece, self._wire.lock:
            self.engine.write(piece)
            self._wire.unsent = memoryview(self.engine.take())
            return len(piece)

    def _send_at_once(self) -> None:
        """Send of what is left over as much as goes. With the right to send."""
        wire = self._wire
        if wire.unsent:
            wire.unsent = wire.unsent[self._transport.send_now(wire.unsent) :]

    def _send_unsent(self, limit: Limit) -> None:
        """Send what is left over. With the right to send."""
        wire = self._wire
        while wire.unsent:
            sent = self._transport.send_now(wire.unsent)
            wire.unsent = wire.unsent[sent:]
            if not sent:
                self._transport.wait_writable(limit)

    def _send_some(self) -> None:
        """Send what the engine has for the peer, as far as that goes without waiting. Never raises."""
        # Whoever finds the right to send taken goes away, so whoever had it looks again after letting go.
        wire, transport = self._wire, self._transport
        while self.has_unsent():
            sender = Sender()
            try:
                if not wire.try_to_take_the_turn(sender):
                    return
                if not wire.unsent:
                    with wire.lock:
                        wire.unsent = memoryview(self.engine.take())
                sent = transport.send_now(wire.unsent)
                wire.unsent = wire.unsent[sent:]
                if not sent:
                    return
            except NetworkError:
                # What the peer no longer takes is no loss for a reader; a writer finds out for itself.
                wire.unsent = memoryview(b"")
                return
            finally:
                if wire.sender is sender:
                    wire.sender = None

    def has_unsent(self) -> bool:
        """Whether there is ciphertext that the system has not taken."""
        if self._wire.unsent:
            return True
        with self._wire.lock:
            return self.engine.outgoing > 0

    # --- the end -------------------------------------------------------------------------------------------

    def farewell(self) -> None:
        """Send close_notify if that goes at once: not behind another thread's unfinished record."""
        if sys.is_finalizing():
            return  # a thread that has stopped for good may hold the lock
        wire, transport, sender = self._wire, self._transport, Sender()
        try:
            if not wire.try_to_take_the_turn(sender):
                return
            wire.unsent = wire.unsent[transport.send_now(wire.unsent) :]
            if wire.unsent:
                return
            with wire.lock:
                self.engine.close()
                ciphertext = self.engine.take()
            transport.send_now(memoryview(ciphertext))
        except NetworkError:
            pass  # the peer has gone already
        finally:
            if wire.sender is sender:
                wire.sender = None
