"""Who sends what, when a reading and a writing thread both have ciphertext: played through with fakes."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import pytest

from lamina_interfaces import Limit, NetworkError, ReadError, WriteError
from lamina_sync_backend._tls import MESSAGES_WITHOUT_DATA, TLSChannel
from lamina_sync_backend._waiting import READ, WRITE

if TYPE_CHECKING:
    from collections.abc import Callable


class FakeEngine:
    """Encrypts by doing nothing; `say` is what TLS itself has for the peer."""

    def __init__(self) -> None:
        self._outgoing = bytearray()
        self._plaintext = bytearray()
        self.ended = False

    def say(self, message: bytes) -> None:
        self._outgoing += message

    @property
    def outgoing(self) -> bool:
        return bool(self._outgoing)

    def take(self) -> bytes:
        taken, self._outgoing = bytes(self._outgoing), bytearray()
        return taken

    def write(self, plaintext: memoryview) -> None:
        self._outgoing += plaintext

    def feed(self, ciphertext: bytes) -> None:
        self._plaintext += ciphertext.replace(b"*", b"")  # a star is a message of TLS itself

    def feed_eof(self) -> None:
        self.ended = True

    def read(self, max_bytes: int) -> bytes | None:
        taken = bytes(self._plaintext[:max_bytes])
        del self._plaintext[:max_bytes]
        return taken or (b"" if self.ended else None)

    def readable(self) -> bool:
        return bool(self._plaintext) or self.ended


class FakeTransport:
    """Takes as many bytes at once as `room` says; then, only when waited for."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.room: deque[int] = deque()
        self.coming: deque[bytes] = deque()
        self.while_sending: Callable[[], None] | None = None
        self.error: NetworkError | None = None
        self.waits = 0

    def send_now(self, view: memoryview) -> int:
        hook, self.while_sending = self.while_sending, None
        if hook is not None:
            hook()
        if self.error is not None:
            raise self.error
        taken = view[: self.room.popleft()] if self.room else view
        self.sent += taken
        return len(taken)

    def readable_now(self) -> bool:
        return True  # a mistake, perhaps; `receive_now` knows

    def receive_now(self, max_bytes: int) -> bytes | None:
        return self.coming.popleft() if self.coming else None

    def receive(self, max_bytes: int, limit: Limit) -> bytes:
        assert self.coming, "nothing will ever come"
        return self.coming.popleft()

    def wait_writable(self, limit: Limit) -> None:
        self.waits += 1

    def wait_either(self, limit: Limit) -> int:
        self.waits += 1
        return WRITE | (READ if self.coming else 0)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def transport() -> FakeTransport:
    return FakeTransport()


@pytest.fixture
def channel(engine: FakeEngine, transport: FakeTransport) -> TLSChannel:
    return TLSChannel(cast("Any", transport), cast("Any", engine))


def limit() -> Limit:
    return Limit(None, monotonic, "write")


def test_what_reading_produced_goes_out_at_once(
    channel: TLSChannel, engine: FakeEngine, transport: FakeTransport
) -> None:
    engine.say(b"answer")
    transport.coming.append(b"data")
    assert channel.read(10, limit()) == b"data"
    assert transport.sent == b"answer"


def test_what_reading_produced_while_another_thread_writes_is_sent_by_that_thread(
    channel: TLSChannel, engine: FakeEngine, transport: FakeTransport
) -> None:
    def read_meanwhile() -> None:
        engine.say(b"answer")
        transport.coming.append(b"data")
        assert channel.read(10, limit()) == b"data"
        assert not transport.sent, "not in the middle of the writer's bytes"

    transport.while_sending = read_meanwhile
    channel.write(memoryview(b"question"), limit())
    assert transport.sent == b"questionanswer"


def test_what_comes_up_while_an_answer_is_sent_is_sent_too(
    channel: TLSChannel, engine: FakeEngine, transport: FakeTransport
) -> None:
    """Whoever found the right to send taken has gone away by then."""

    def look_meanwhile() -> None:
        engine.say(b"second")
        assert channel.readable() is False

    engine.say(b"first")
    transport.while_sending = look_meanwhile
    assert channel.readable() is False
    assert transport.sent == b"firstsecond"


def test_a_half_sent_answer_is_finished_by_the_next_write(
    channel: TLSChannel, engine: FakeEngine, transport: FakeTransport
) -> None:
    engine.say(b"answer")
    transport.room.extend([3, 0])
    assert channel.readable() is False
    assert transport.sent == b"ans"
    channel.write(memoryview(b"question"), limit())
    assert transport.sent == b"answerquestion"


def test_a_half_sent_answer_is_finished_while_reading(
    channel: TLSChannel, engine: FakeEngine, transport: FakeTransport
) -> None:
    engine.say(b"answer")
    transport.room.extend([3, 0])
    assert channel.readable() is False
    transport.coming.append(b"data")
    assert channel.read(10, limit()) == b"data"
    assert transport.sent == b"answer"


def test_a_write_in_pieces_waits_only_when_nothing_was_taken(
    channel: TLSChannel, transport: FakeTransport
) -> None:
    transport.room.extend([3, 0, 2, 0])
    channel.write(memoryview(b"question"), limit())
    assert transport.sent == b"question"
    assert transport.waits == 2


def test_an_answer_that_the_peer_does_not_take_is_no_loss_for_the_reader(
    channel: TLSChannel, engine: FakeEngine, transport: FakeTransport
) -> None:
    engine.say(b"answer")
    transport.error = WriteError("the connection broke")
    transport.coming.append(b"data")
    assert channel.read(10, limit()) == b"data"
    with pytest.raises(WriteError):
        channel.write(memoryview(b"question"), limit())


def test_talk_of_tls_itself_does_not_end_a_write_early(channel: TLSChannel, transport: FakeTransport) -> None:
    transport.room.extend([3, 0])
    transport.while_sending = lambda: transport.coming.append(b"*")
    assert channel.write_until_readable(memoryview(b"question"), limit()) == 8
    assert transport.sent == b"question"


def test_a_peer_that_talks_without_end_counts_as_talking(
    channel: TLSChannel, transport: FakeTransport
) -> None:
    transport.coming.extend([b"*"] * (MESSAGES_WITHOUT_DATA + 10))
    assert channel.readable() is True
    assert len(transport.coming) == 10


def test_a_broken_connection_is_something_to_read(
    channel: TLSChannel, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(max_bytes: int) -> bytes:
        raise ReadError("the connection broke")

    monkeypatch.setattr(transport, "receive_now", broken)
    assert channel.readable() is True


def test_what_the_last_look_of_an_interruptible_write_produced_is_sent(
    channel: TLSChannel, engine: FakeEngine, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look finds the right to send taken, by its own write, which looks again after letting go."""
    feed = engine.feed

    def answered(ciphertext: bytes) -> None:
        feed(ciphertext)
        engine.say(b"answer")

    monkeypatch.setattr(engine, "feed", answered)
    transport.room.append(3)
    transport.while_sending = lambda: transport.coming.append(b"*")
    assert channel.write_until_readable(memoryview(b"question"), limit()) == 8
    assert transport.sent == b"questionanswer"


def test_what_the_layer_beneath_left_over_goes_out_before_a_handshake(
    channel: TLSChannel, engine: FakeEngine, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.say(b"rest of a record")
    transport.room.extend([3, 0])
    assert channel.readable() is False
    over = FakeEngine()
    over.say(b"hello")
    monkeypatch.setattr(over, "handshake", lambda: True, raising=False)
    TLSChannel(cast("Any", transport), cast("Any", over), channel).handshake(limit())
    assert transport.sent == b"rest of a recordhello"


def test_no_farewell_is_said_through_an_engine_that_a_handshake_is_using(
    channel: TLSChannel, engine: FakeEngine, transport: FakeTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing during a second `start_tls` would use the outer engine beside the handshake."""
    over, closed = FakeEngine(), []
    over.say(b"hello")
    monkeypatch.setattr(engine, "close", lambda: closed.append(engine), raising=False)
    monkeypatch.setattr(over, "handshake", lambda: True, raising=False)
    transport.while_sending = channel.farewell
    TLSChannel(cast("Any", transport), cast("Any", over), channel).handshake(limit())
    assert not closed
    channel.farewell()
    assert closed == [engine]


def test_an_interrupt_of_a_sender_gives_the_right_to_send_back(
    channel: TLSChannel, engine: FakeEngine, transport: FakeTransport
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    engine.say(b"answer")
    transport.while_sending = interrupt
    with pytest.raises(KeyboardInterrupt):
        channel.readable()
    channel.write(memoryview(b"question"), limit())
    assert transport.sent == b"answerquestion"
