"""The server's end of an HTTP/2 connection, for tests: it does what its script says, right or wrong.

Made of hyperframe and hpack alone. Nothing here is shared with what is tested, and nothing stands in the way of
sending what no standard allows. A script is a function of an `H2Connection`, and runs in a thread of its own, which
`FaultServer` starts. It reads only when it waits for something; that it may write at any time is what the buffers of
the two sockets are for.

What the client sends is held against RFC 9113 as it is read, whatever the test is about: the preface, the order and the
form of the frames, who may open how many streams, how much fits in the windows. What is wrong there is an
`AssertionError` in the thread, which fails the test.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from stack_helpers import FaultServer

Fields = Iterable[tuple[bytes, bytes]]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

PATIENCE = 20.0
"""Seconds that a peer waits for anything. Then it hangs up, and the client tells what became of it."""

START_WINDOW = 65_535
"""Bytes of each window, as long as nobody has said otherwise (RFC 9113, section 6.9.2)."""

FRAME_SIZE = 16_384
"""Bytes of the payload of a frame, at most, as long as nobody has said otherwise (RFC 9113, section 4.2)."""

# Settings (RFC 9113, section 6.5.2).
HEADER_TABLE_SIZE = SettingsFrame.HEADER_TABLE_SIZE
ENABLE_PUSH = SettingsFrame.ENABLE_PUSH
MAX_CONCURRENT_STREAMS = SettingsFrame.MAX_CONCURRENT_STREAMS
INITIAL_WINDOW_SIZE = SettingsFrame.INITIAL_WINDOW_SIZE
MAX_FRAME_SIZE = SettingsFrame.MAX_FRAME_SIZE

# Error codes (RFC 9113, section 7).
NO_ERROR = 0x0
PROTOCOL_ERROR = 0x1
INTERNAL_ERROR = 0x2
FLOW_CONTROL_ERROR = 0x3
STREAM_CLOSED = 0x5
FRAME_SIZE_ERROR = 0x6
REFUSED_STREAM = 0x7
CANCEL = 0x8
COMPRESSION_ERROR = 0x9
ENHANCE_YOUR_CALM = 0xB

FORBIDDEN = {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade", b"host"}
"""Fields that a request must not have (RFC 9113, section 8.2.2); `host` beside `:authority` says it twice."""


def raw_frame(
    kind: int, flags: int, stream_id: int, payload: bytes = b"", *, length: int | None = None
) -> bytes:
    """A frame by its parts, whatever they are; `length` where it does not tell that of the payload."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream_id) + payload


class Asked:
    """A stream that the client has opened.

    Attributes:
        id: the stream's.
        fields: the request's head, pseudo-headers first.
        size: bytes of the body that have come; `checksum`, their CRC-32.
        is_ended: whether the client has ended it.
        is_answered: whether the peer has; `was_reset`, by RST_STREAM.
        reset_code: of the client's RST_STREAM.
        sent: bytes of DATA that the peer has sent, padding included.
        send_window: what it may still send; `receive_window`, what the client may.
    """

    def __init__(self, stream_id: int, fields: list[tuple[bytes, bytes]], send: int, receive: int) -> None:
        self.id = stream_id
        self.fields = fields
        self.trailers: list[tuple[bytes, bytes]] = []
        self.size = self.checksum = self.sent = 0
        self.is_ended = self.is_answered = self.was_reset = False
        self.reset_code: int | None = None
        self.send_window = send
        self.receive_window = receive

    def field(self, name: bytes) -> bytes | None:
        return dict(self.fields).get(name)

    @property
    def path(self) -> bytes:
        return self.field(b":path") or b""

    @property
    def method(self) -> bytes:
        return self.field(b":method") or b""

    @property
    def is_open(self) -> bool:
        is_reset = self.was_reset or self.reset_code is not None
        return not is_reset and not (self.is_ended and self.is_answered)

    def __repr__(self) -> str:
        return f"<Asked {self.id} {self.method!r} {self.path!r}>"


class H2Connection:
    """One connection from a client, in the hands of a script.

    Attributes:
        sock: for what frames cannot say.
        number: how many connections the server had before this one.
        frames: all that have come, without the bytes of DATA.
        streams: all that the client has opened, by their ids.
        most_open: how many of them were open at once, at most.
        window: bytes of DATA that the connection may still send; `widest_window`, at most.
        counts_acknowledgements: whether one too many is an error; for those who send SETTINGS raw.
        answers_pings, acknowledges, credits: whether it answers PING and SETTINGS, and gives back the window of what it
            takes from an upload.
        is_ended: whether the client has gone.
        error: what has ended the script.
    """

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number
        self.frames: list[Frame] = []
        self.streams: dict[int, Asked] = {}
        self.most_open = 0
        self.window = self.widest_window = START_WINDOW
        self.answers_pings = self.acknowledges = self.credits = self.counts_acknowledgements = True
        self.is_ended = False
        self.error: BaseException | None = None
        self._open: set[int] = set()
        self._unheard: deque[Asked] = deque()
        self._received = bytearray()
        self._has_preface = False
        self._block: HeadersFrame | None = None
        self._decoder = hpack.Decoder(1 << 20)
        self._encoder = hpack.Encoder()
        self._stream_window = START_WINDOW
        self._frame_size = FRAME_SIZE
        # Of the client: what it may send, by the settings that it has acknowledged.
        self._unacknowledged: deque[Mapping[int, int]] = deque()
        self._receive_window = self._receive_start = START_WINDOW
        self._most_streams: float = float("inf")
        self._first_limit: float = float("inf")
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    # --- writing -------------------------------------------------------------------------------------------

    def raw(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send(self, *frames: Frame) -> None:
        self.raw(b"".join(frame.serialize() for frame in frames))

    def settings(self, settings: Mapping[int, int] | None = None) -> None:
        if not self._unacknowledged and not self.frames:
            self._first_limit = (settings or {}).get(MAX_CONCURRENT_STREAMS, float("inf"))
        self._unacknowledged.append(dict(settings or {}))
        self.send(SettingsFrame(settings=dict(settings or {})))

    def block(self, fields: Fields) -> bytes:
        """Fields as HPACK has them: in the order and the case in which they are given."""
        return self._encoder.encode(list(fields))

    def headers(self, asked: Asked, fields: Fields, *, ends: bool = False) -> None:
        block = self.block(fields)
        pieces = [block[at : at + FRAME_SIZE] for at in range(0, len(block), FRAME_SIZE)] or [b""]
        frames: list[Frame] = [HeadersFrame(asked.id, pieces[0], flags=["END_STREAM"] if ends else [])]
        frames += [ContinuationFrame(asked.id, piece) for piece in pieces[1:]]
        frames[-1].flags.add("END_HEADERS")
        self.send(*frames)
        if ends:
            self._answered(asked)

    def head(self, asked: Asked, status: int = 200, fields: Fields = (), *, ends: bool = False) -> None:
        self.headers(asked, [(b":status", b"%d" % status), *fields], ends=ends)

    def data(self, asked: Asked, body: bytes = b"", *, ends: bool = True, padding: int = 0) -> None:
        """As much as the windows let through at a time, reading what comes in between; no more after a reset."""
        rest = memoryview(body)
        extra = padding + 1 if padding else 0
        while asked.reset_code is None:
            room = min(self._frame_size, self.window, asked.send_window) - extra
            if rest and room <= 0:
                self.next_frame()
                continue
            piece, rest = rest[: max(room, 0)], rest[max(room, 0) :]
            frame = DataFrame(asked.id, bytes(piece), flags=["PADDED"] if padding else [])
            frame.pad_length = padding
            if ends and not rest:
                frame.flags.add("END_STREAM")
                self._answered(asked)
            self.sent(asked, frame.flow_controlled_length)
            self.send(frame)
            if not rest:
                return

    def sent(self, asked: Asked | None, size: int) -> None:
        """Count what was sent of DATA; for those who send it raw."""
        self.window -= size
        if asked is not None:
            asked.sent += size
            asked.send_window -= size

    def respond(
        self, asked: Asked, body: bytes | None = None, *, status: int = 200, fields: Fields = ()
    ) -> None:
        """A whole response; without a body given, with the path for one."""
        content = asked.path if body is None else body
        if asked.reset_code is None:
            self.head(asked, status, fields, ends=not content)
        if content:
            self.data(asked, content)

    def reset(self, asked: Asked, code: int) -> None:
        self.send(RstStreamFrame(asked.id, code))
        asked.was_reset = True
        self._open.discard(asked.id)

    def goaway(self, last: int, code: int = NO_ERROR, text: bytes = b"") -> None:
        self.send(GoAwayFrame(0, last, code, text))

    def credit(self, asked: Asked | None, size: int) -> None:
        """Give back a part of the stream's window, or of the connection's."""
        if asked is None:
            self._receive_window += size
        else:
            asked.receive_window += size
        self.send(WindowUpdateFrame(0 if asked is None else asked.id, size))

    def abort(self) -> None:
        """End the connection with a reset of TCP."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise EOFError

    def _answered(self, asked: Asked) -> None:
        asked.is_answered = True
        if asked.is_ended:
            self._open.discard(asked.id)

    # --- waiting -------------------------------------------------------------------------------------------

    def request(self) -> Asked:
        """The next one, once its head has come."""
        self.until(lambda: self._unheard)
        return self._unheard.popleft()

    def has_request(self) -> bool:
        """Whether `request` would return at once."""
        return bool(self._unheard)

    def requests(self, count: int) -> list[Asked]:
        return [self.request() for _ in range(count)]

    def finish(self, asked: Asked) -> None:
        """Read until the request has come whole, or was reset."""
        self.until(lambda: asked.is_ended or asked.reset_code is not None)

    def serve(self, special: Callable[[Asked], None] | None = None) -> None:
        """Answer each request with its path, or have `special` answer those for other paths than `/echo…`."""
        while True:
            asked = self.request()
            if special is None or asked.path.startswith(b"/echo"):
                self.finish(asked)
                self.respond(asked)
            else:
                special(asked)

    def until(self, condition: Callable[[], object]) -> None:
        """Read until something has come."""
        while not condition():
            self.next_frame()

    def hold(self, condition: Callable[[], object]) -> None:
        """Go on reading until something has happened elsewhere."""
        end = time.monotonic() + PATIENCE
        while not condition():
            if self.has_input(0.002):
                self.next_frame()
            elif time.monotonic() > end:
                raise TimeoutError("the peer waits for what does not happen")

    def pause(self, seconds: float) -> None:
        """Go on reading for so long."""
        end = time.monotonic() + seconds
        self.hold(lambda: time.monotonic() >= end)

    def drain(self) -> None:
        """Read until the client has gone."""
        while True:
            self.next_frame()

    def has_input(self, seconds: float) -> bool:
        if self._frame_length() or (isinstance(self.sock, ssl.SSLSocket) and self.sock.pending()):
            return True
        return bool(select.select([self.sock], [], [], seconds)[0])

    # --- what has come -------------------------------------------------------------------------------------

    def resets(self) -> list[tuple[int, int]]:
        """The client's RST_STREAM frames, as pairs of stream and code."""
        return [(frame.stream_id, frame.error_code) for frame in self._of(RstStreamFrame)]

    def goaways(self) -> list[int]:
        """The codes of the client's GOAWAY frames."""
        return [frame.error_code for frame in self._of(GoAwayFrame)]

    def _of(self, kind: type[Any]) -> list[Any]:
        return [frame for frame in list(self.frames) if isinstance(frame, kind)]

    # --- reading -------------------------------------------------------------------------------------------

    def _frame_length(self) -> int:
        """Of the first frame that was read, if it was read whole."""
        if len(self._received) < 9 or not self._has_preface:
            return 0
        length = 9 + int.from_bytes(self._received[:3], "big")
        assert length <= 9 + FRAME_SIZE, "the client's frame is too long"
        return length if len(self._received) >= length else 0

    def _read(self) -> None:
        try:
            piece = self.sock.recv(1 << 18)
        except OSError:
            self.is_ended = True
            raise
        # A socket that another thread has shut down knows nothing of TLS any more, and gives what is encrypted.
        is_shut = isinstance(self.sock, ssl.SSLSocket) and self.sock.version() is None
        if not piece or is_shut:
            self.is_ended = True
            raise EOFError
        self._received += piece

    def next_frame(self) -> Frame:
        """The client's next frame, after what is to be done about it.

        Raises:
            EOFError, OSError: the client has gone.
        """
        if not self._has_preface:
            while len(self._received) < len(PREFACE):
                self._read()
            assert self._received.startswith(PREFACE), bytes(self._received[:100])
            del self._received[: len(PREFACE)]
            self._has_preface = True
        while not (length := self._frame_length()):
            self._read()
        view = memoryview(bytes(self._received[:length]))
        del self._received[:length]
        frame, _ = Frame.parse_frame_header(view[:9])
        frame.parse_body(view[9:])
        is_settings = isinstance(frame, SettingsFrame) and "ACK" not in frame.flags
        assert self.frames or is_settings, f"the client began with {frame!r}"
        assert self._block is None or isinstance(frame, ContinuationFrame), f"in a header block: {frame!r}"
        self._take(frame)
        self.frames.append(frame)
        return frame

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, HeadersFrame):
            self._took_headers(frame)
        elif isinstance(frame, ContinuationFrame):
            assert self._block is not None
            assert self._block.stream_id == frame.stream_id
            self._block.data += frame.data
            self._took_block(self._block, is_whole="END_HEADERS" in frame.flags)
        elif isinstance(frame, DataFrame):
            self._took_data(frame)
        elif isinstance(frame, SettingsFrame):
            self._took_settings(frame)
        elif isinstance(frame, WindowUpdateFrame):
            self._took_credit(frame)
        elif isinstance(frame, RstStreamFrame):
            asked = self._known(frame)
            assert asked.reset_code is None, f"a second {frame!r}"
            asked.reset_code = frame.error_code
            self._open.discard(asked.id)
        elif isinstance(frame, PingFrame):
            if self.answers_pings and "ACK" not in frame.flags:
                self.send(PingFrame(opaque_data=frame.opaque_data, flags=["ACK"]))
        else:
            assert isinstance(frame, (GoAwayFrame, PriorityFrame)), f"a client sends no {frame!r}"

    def _known(self, frame: Frame) -> Asked:
        assert frame.stream_id in self.streams, f"of no stream: {frame!r}"
        asked = self.streams[frame.stream_id]
        assert asked.reset_code is None, f"after a reset: {frame!r}"
        return asked

    def _took_headers(self, frame: HeadersFrame) -> None:
        if frame.stream_id not in self.streams:
            assert frame.stream_id % 2 == 1, f"a client's streams are odd: {frame!r}"
            assert frame.stream_id > max(self.streams, default=0), f"streams count upwards: {frame!r}"
        self._took_block(frame, is_whole="END_HEADERS" in frame.flags)

    def _took_block(self, frame: HeadersFrame, *, is_whole: bool) -> None:
        self._block = None if is_whole else frame
        if not is_whole:
            return
        fields = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(frame.data, raw=True)]
        frame.data = b""
        if frame.stream_id in self.streams:
            asked = self._known(frame)
            assert "END_STREAM" in frame.flags, "trailers end the stream"
            assert not any(name.startswith(b":") for name, _ in fields), fields
            asked.trailers = fields
        else:
            check_request(fields)
            asked = Asked(frame.stream_id, fields, self._stream_window, self._receive_start)
            self.streams[asked.id] = asked
            if len(self._open) >= self._first_limit:
                self.reset(asked, REFUSED_STREAM)  # the client cannot have known
            else:
                self._unheard.append(asked)
                self._open.add(asked.id)
                self.most_open = max(self.most_open, len(self._open))
            assert len(self._open) <= self._most_streams, f"more than {self._most_streams} streams"
        self._ended(asked, frame)

    def _ended(self, asked: Asked, frame: Frame) -> None:
        assert not asked.is_ended, f"after the end: {frame!r}"
        if "END_STREAM" in frame.flags:
            asked.is_ended = True
            if asked.is_answered:
                self._open.discard(asked.id)

    def _took_data(self, frame: DataFrame) -> None:
        asked = self._known(frame)
        size = frame.flow_controlled_length
        asked.size += len(frame.data)
        asked.checksum = zlib.crc32(frame.data, asked.checksum)
        frame.data = b""
        self._receive_window -= size
        asked.receive_window -= size
        # Frames without bytes are allowed in windows that are negative.
        assert not size or (self._receive_window >= 0 and asked.receive_window >= 0), "beyond the window"
        self._ended(asked, frame)
        if self.credits and size:
            self.credit(None, size)
            if not asked.is_ended and not asked.was_reset:
                self.credit(asked, size)

    def _took_settings(self, frame: SettingsFrame) -> None:
        if "ACK" in frame.flags:
            if self._unacknowledged:
                self._heard(self._unacknowledged.popleft())
            else:
                assert not self.counts_acknowledgements, "an acknowledgement of nothing"
            return
        assert frame.settings.get(ENABLE_PUSH, 1) == 0 or self.frames, "push was not turned off"
        if INITIAL_WINDOW_SIZE in frame.settings:
            change = frame.settings[INITIAL_WINDOW_SIZE] - self._stream_window
            self._stream_window += change
            for asked in self.streams.values():
                asked.send_window += change
        self._frame_size = frame.settings.get(MAX_FRAME_SIZE, self._frame_size)
        self._encoder.header_table_size = frame.settings.get(
            HEADER_TABLE_SIZE, self._encoder.header_table_size
        )
        if self.acknowledges:
            self.send(SettingsFrame(flags=["ACK"]))

    def _heard(self, settings: Mapping[int, int]) -> None:
        """The client goes by these settings from here on."""
        self._first_limit = float("inf")
        self._most_streams = settings.get(MAX_CONCURRENT_STREAMS, self._most_streams)
        if INITIAL_WINDOW_SIZE in settings:
            change = settings[INITIAL_WINDOW_SIZE] - self._receive_start
            self._receive_start += change
            for asked in self.streams.values():
                asked.receive_window += change
        if HEADER_TABLE_SIZE in settings:
            # Whatever it was offered: more than this, nobody needs.
            self._decoder.max_allowed_table_size = min(settings[HEADER_TABLE_SIZE], 1 << 16)

    def _took_credit(self, frame: WindowUpdateFrame) -> None:
        assert frame.window_increment > 0
        if frame.stream_id:
            asked = self._known(frame)
            asked.send_window += frame.window_increment
            assert asked.send_window < 1 << 31
        else:
            self.window += frame.window_increment
            assert self.window < 1 << 31
            self.widest_window = max(self.widest_window, self.window)


def check_request(fields: list[tuple[bytes, bytes]]) -> None:
    """Hold the head of a request against RFC 9113, section 8."""
    pseudo = [name for name, _ in fields if name.startswith(b":")]
    assert pseudo == [name for name, _ in fields[: len(pseudo)]], f"pseudo-headers come first: {fields}"
    assert sorted(pseudo) == [b":authority", b":method", b":path", b":scheme"], fields
    for name, value in fields:
        assert name == name.lower(), fields
        assert name not in FORBIDDEN, fields
        assert not any(byte in value for byte in b"\r\n\0"), fields
        assert value == value.strip(b" \t"), fields
        assert name != b"te" or value == b"trailers", fields


class H2Server(FaultServer):
    """Gives each connection to a script, behind TLS that chooses `h2` if it is given a context.

    Attributes:
        connections: those that it has had.
        client_context: for whoever is to connect.
    """

    def __init__(
        self,
        script: Callable[[H2Connection], None],
        *,
        context: ssl.SSLContext | None = None,
        settings: Mapping[int, int] | None = None,
        is_silent: bool = False,
    ) -> None:
        self.connections: list[H2Connection] = []
        self.client_context: ssl.SSLContext | None = None
        self._script = script
        self._settings = settings
        self._is_silent = is_silent
        self._numbers = threading.Lock()
        super().__init__(self._run, context=context)

    def asked(self) -> list[Asked]:
        """All that has been asked, on any connection."""
        return [asked for connection in list(self.connections) for asked in list(connection.streams.values())]

    def paths(self) -> list[bytes]:
        return [asked.path for asked in self.asked()]

    def _run(self, sock: socket.socket) -> None:
        with self._numbers:
            connection = H2Connection(sock, len(self.connections))
            self.connections.append(connection)
        try:
            if not self._is_silent:
                connection.settings(self._settings)
            self._script(connection)
        except BaseException as error:
            connection.error = error
            raise
        finally:
            connection.is_ended = True
