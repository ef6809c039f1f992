"""What an HTTP/2 connection may do next: bytes in, news of streams out, no I/O.

The work is divided. h2 has what belongs to the connection as a whole: both sides of HPACK, and the server's SETTINGS,
which are checked and answered there. The frames of streams are made and read here, with their windows. For one thing
h2 describes each frame that it receives, its payload too, for a log that nobody keeps, which takes longer than all the
rest. For another it ends the whole connection where it must live on:

- GOAWAY closes h2's state. Here, streams up to the last one that the server named go on, later ones were refused.
- A malformed response, or a body that is not as long as it was declared, ends one stream. The others go on.
- Frames for a stream that we have reset are on their way for a while. They are dropped, and what they took of the
  connection's window is given back. They are not answered: a reset for each would be a storm.
- Frames that further nothing are counted (`Patience`): a flood of them costs the server little, and us much.

Windows (section 5.2). The connection's is given back as soon as bytes have come, whoever reads them or not: a reader
that sleeps must not stop the others. A stream's is given back as its reader takes the bytes, so that it holds no more
than one window. That window starts small, and doubles while it, not the reader or the line, is what slows the stream:
when half a window was taken within two round trips of the half before. Streams opened later start with that size.

Header blocks. Most requests on a connection are alike, and so are the answers: their blocks consist of references to
the compression tables. Such a block changes no table, so it means the same until another block comes that may change
one (RFC 7541, section 2.3.2). Until then what is known of it is looked up, and not worked out again.

A fault of the connection never raises: it ends up in `failure`, there and in each open stream.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

import h2.config
import h2.connection
import h2.exceptions
import h2.settings

from lamina_interfaces import ConnectionNotAvailable, LaminaError, LocalProtocolError, RemoteProtocolError

from ._http2_frames import (
    ACK,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    NO_ERROR,
    PADDED,
    PING,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    ConnectionFault,
    FrameReader,
    Patience,
    error_name,
    frame,
    without_padding,
)
from ._http2_headers import (
    MalformedMessage,
    ResponseFields,
    check_response,
    check_trailers,
    request_fields,
)
from ._http11 import (
    MAX_HEAD_BYTES,
    MAX_INTERIM_BYTES,
    MAX_INTERIM_RESPONSES,
    MAX_QUOTE,
    ResponseHead,
    shortened,
)
from ._scheduler import PRESUMED_STREAMS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._checks import RequestFraming
    from ._http11 import Headers

CONNECTION_WINDOW = 16 * 1024 * 1024
"""Bytes that the server may have on the way to us in all streams. Held down by nobody's reading."""

STREAM_WINDOW = 256 * 1024
"""Bytes that the server may send on one stream before somebody reads them, to begin with."""

MAX_STREAM_WINDOW = 16 * 1024 * 1024
"""What a stream's window may grow to: 1 Gbit/s at 130 ms."""

MAX_ENCODER_TABLE = 4096
"""Bytes of our compression table, whatever the server offers. hpack looks through it from end to end."""

FRAMES_PER_REQUEST = 16
"""How many frames without progress a request lets the server send besides. For one that we gave up, all are such."""

BYTES_PER_FRAME = 512
"""How many bytes that we send let the server send one more such frame: it acknowledges them by WINDOW_UPDATE."""

SMALL_DATA = 512
"""Bytes below which DATA for a stream that is gone counts as a frame without progress."""

SILENCE_SECONDS = 1.0
"""After so long without a byte the frames are counted from 0: a PING now and then, for days, is no flood."""

SMALL_INCREMENT = 64
"""Bytes below which a WINDOW_UPDATE counts as a frame without progress."""

AMPLE_WINDOW = 1024 * 1024
"""Bytes of a window of the server's above which every WINDOW_UPDATE for it does."""

MAX_UNSENT = 1024 * 1024
"""The most bytes of answers to the server's frames that may wait to be sent: beyond, it does not read."""

MAX_STREAM_ID = 2**31 - 1
"""After the stream with this number there is no other (RFC 9113, section 5.1.1)."""

MAX_SEND_BYTES = 64 * 1024
"""The most bytes that one call of `send_data` takes, so that several uploads take turns."""

SMALL_CHUNK = 4096
"""Bytes of DATA below which they are gathered: an object for each costs more than the byte that it holds."""

MAX_KNOWN_BLOCKS = 64
"""Of how many header blocks in each direction it is remembered what they mean."""

MAX_KNOWN_BLOCK = 64
"""The longest of a server's that is, in bytes: each may refer to a field. A server cannot fill the memory with them."""

_MAX_WINDOW: Final = 2**31 - 1
_DEFAULT_WINDOW: Final = 65_535

# RFC 9113, section 6.5.2.
_HEADER_TABLE_SIZE: Final = 1
_ENABLE_PUSH: Final = 2
_INITIAL_WINDOW_SIZE: Final = 4
_MAX_HEADER_LIST_SIZE: Final = 6
_KNOWN_SETTINGS = frozenset(range(1, 7))

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_UINT32 = struct.Struct(">I")
_SETTING = struct.Struct(">HI")


# References alone (RFC 7541, section 6.1), to the first 126 entries, which nearly all are.
_has_only_references = re.compile(rb"[\x81-\xfe]*").fullmatch


class HTTP2Stream:
    """One request and its response. Made by `HTTP2Session.open_stream`. Not thread-safe.

    Attributes:
        id: its number on the connection.
        head: the final response, as soon as its fields have come.
        trailers: the fields behind the body, often none.
        interim_responses: how many 1xx responses came.
        is_continued: whether 100 (Continue) was among them.
        has_answer_begun: whether any response, 1xx included, has come.
        has_ended: whether the response has come whole. Some of it may still be held.
        failure: why there will be no (more) response. What is held may be taken all the same.
        is_refused: whether the server certainly has not processed the request: it may be sent again.
        code: the error code with which either side reset the stream.
        is_open: whether it takes one of the places on the connection.
        held: bytes of the body that wait to be taken.
    """

    __slots__ = (
        "_chunks",
        "_content_length",
        "_credited_at",
        "_has_sent_end",
        "_interim_bytes",
        "_is_cut_off",
        "_is_head",
        "_received",
        "_send_window",
        "_session",
        "_uncredited",
        "_unsent",
        "_window",
        "_window_left",
        "code",
        "failure",
        "has_answer_begun",
        "has_ended",
        "head",
        "held",
        "id",
        "interim_responses",
        "is_continued",
        "is_open",
        "is_refused",
        "trailers",
    )

    def __init__(
        self, session: HTTP2Session, number: int, framing: RequestFraming, window: int, send_window: int
    ) -> None:
        self.id = number
        self.head: ResponseHead | None = None
        self.trailers: Headers = []
        self.interim_responses = 0
        self.is_continued = False
        self.has_answer_begun = False
        self.has_ended = False
        self.failure: LaminaError | None = None
        self.is_refused = False
        self.code: int | None = None
        self.is_open = True
        self.held = 0
        self._session = session
        self._is_head = framing.method == b"HEAD"
        self._has_sent_end = False
        self._is_cut_off = False
        # Bytes that the request still lacks; `None` where no length was declared.
        self._unsent = None if framing.body == "chunked" else framing.length
        self._chunks: list[bytes | bytearray] = []
        self._interim_bytes = 0
        self._content_length: int | None = None
        self._received = 0
        self._send_window = send_window
        self._window = window
        self._window_left = window
        self._uncredited = 0
        self._credited_at: float | None = None

    def __repr__(self) -> str:
        answer = "no answer" if self.head is None else f"{self.head.status}, {self._received} bytes"
        state = (
            "failed" if self.failure else "ended" if self.has_ended else "open" if self.is_open else "reset"
        )
        return f"<{type(self).__name__} {self.id}, {state}, {answer}, {self.held} held>"

    @property
    def wants_body(self) -> bool:
        """Whether more of the request's body is of use. Not after the whole response, or a reset."""
        return self.is_open and not self._has_sent_end and not self.has_ended

    def take(self, now: float) -> bytes:
        """All that is held of the response's body; `b""` if nothing is. Gives the room in the window back."""
        if not self.held:
            return b""
        chunks = self._chunks
        data = bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self.held = 0
        self._uncredited += len(data)
        if self._uncredited * 2 >= self._window and self.is_open and not self.has_ended:
            self._session._credit_stream(self, now)
        return data

    def _hold(self, data: bytes) -> None:
        self.held += len(data)
        chunks = self._chunks
        if len(data) >= SMALL_CHUNK:
            chunks.append(data)
        elif chunks and type(last := chunks[-1]) is bytearray:
            last += data
        else:
            chunks.append(bytearray(data) if chunks else data)


class HTTP2Session:
    """The protocol state of one HTTP/2 connection, from the client's side. Not thread-safe.

    Args:
        now: the present time, in seconds of any clock, as everywhere below.

    Attributes:
        failure: why the connection is over.
        is_draining: it takes no further streams: the server or we have said so, or the numbers are used up.
        last_id: the last stream that the server has said it deals with, in its farewell; `None` before that.
        opened: how many streams there were.
        last_received: when bytes came last.
        bytes_received: how many.
    """

    def __init__(self, now: float) -> None:
        self._h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._h2.decoder.max_header_list_size = MAX_HEAD_BYTES
        self._streams: dict[int, HTTP2Stream] = {}
        self._next_id = 1
        self.failure: LaminaError | None = None
        self.is_draining = False
        self.opened = 0
        self.last_received = now
        self.bytes_received = 0
        # Sending.
        self._output: list[bytes] = []
        self._unsent_control = 0
        self._limit: int = PRESUMED_STREAMS
        self._blocked: dict[HTTP2Stream, None] = {}
        self._send_window = _DEFAULT_WINDOW
        self._first_send_window = _DEFAULT_WINDOW
        self._max_payload: int = self._h2.max_outbound_frame_size
        self._known_requests: dict[tuple[tuple[bytes, bytes], ...], bytes] = {}
        self._has_said_goodbye = False
        # Receiving.
        self._reader = FrameReader()
        self._patience = Patience()
        self._news: dict[HTTP2Stream, None] = {}
        self._known_heads: dict[bytes, ResponseFields] = {}
        self.last_id: int | None = None
        self._farewell = ""
        # Windows.
        self._window_left = CONNECTION_WINDOW
        self._first_window = _DEFAULT_WINDOW
        self._grown_window = STREAM_WINDOW
        # Round trips.
        self._round_trip: float | None = None
        self._settings_sent_at: float | None = now
        self._pings: dict[bytes, float] = {}
        self._pings_sent = 0
        settings = {
            _ENABLE_PUSH: 0,
            _INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            _MAX_HEADER_LIST_SIZE: MAX_HEAD_BYTES,
        }
        self._output.append(_PREFACE + frame(SETTINGS, 0, 0, _pack_settings(settings)))
        self._output.append(frame(WINDOW_UPDATE, 0, 0, _UINT32.pack(CONNECTION_WINDOW - _DEFAULT_WINDOW)))

    def __repr__(self) -> str:
        state = "failed" if self.failure else "draining" if self.is_draining else "open"
        return f"<{type(self).__name__} {state}, {len(self._streams)} of {self._limit} streams, {self.opened} so far>"

    # --- facts ---------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """Streams that may be open at once now; 0 when draining or failed. The server may change it at any time."""
        return 0 if self.is_draining or self.failure is not None else self._limit

    @property
    def open_streams(self) -> int:
        """Streams that are not closed yet."""
        return len(self._streams)

    @property
    def can_open(self) -> bool:
        """Whether `open_stream` has a place."""
        return len(self._streams) < self.capacity and self._unsent_control <= MAX_UNSENT

    @property
    def is_idle(self) -> bool:
        """Whether no stream is open."""
        return not self._streams

    @property
    def has_output(self) -> bool:
        """Whether `output` has something."""
        return bool(self._output)

    @property
    def pings_unanswered(self) -> int:
        """PINGs that were sent and not answered yet."""
        return len(self._pings)

    @property
    def ping_sent_at(self) -> float | None:
        """When the oldest PING that is not answered yet was sent."""
        return next(iter(self._pings.values()), None)

    # --- sending -------------------------------------------------------------------------------------------

    def open_stream(self, framing: RequestFraming, scheme: bytes, *, ends: bool, now: float) -> HTTP2Stream:
        """Send a request's head.

        Args:
            framing: the checked request.
            scheme: `b"https"` or `b"http"`.
            ends: whether no body follows.
            now: the present time.

        Raises:
            LocalProtocolError: HTTP/2 cannot send it, or it declares a body and has none. Nothing was sent.
            ConnectionNotAvailable: there is no place now, see `can_open`.
        """
        if not self.can_open:
            raise ConnectionNotAvailable("the HTTP/2 connection has no place for another stream")
        fields = request_fields(framing, scheme)
        if ends and framing.body == "length" and framing.length:
            raise _wrong_length(framing.length, 0)
        number = self._next_id
        block, step = self._encode(fields), self._max_payload
        flags = END_STREAM if ends else 0
        if len(block) <= step:
            self._output.append(frame(HEADERS, flags | END_HEADERS, number, block))
        else:
            self._output.append(frame(HEADERS, flags, number, block[:step]))
            for start in range(step, len(block), step):
                flags = END_HEADERS if start + step >= len(block) else 0
                self._output.append(frame(CONTINUATION, flags, number, block[start : start + step]))
        stream = HTTP2Stream(self, number, framing, self._first_window, self._first_send_window)
        stream._has_sent_end = ends
        self._streams[number] = stream
        self.opened += 1
        self._next_id = number + 2
        if self._next_id > MAX_STREAM_ID:
            self.is_draining = True
        self._patience.allow(FRAMES_PER_REQUEST)
        extra = self._grown_window - STREAM_WINDOW
        if extra:
            stream._window += extra
            self._open_window(stream, extra)
        return stream

    def _encode(self, fields: Headers) -> bytes:
        known, key = self._known_requests, tuple(fields)
        block = known.get(key)
        if block is None:
            block = self._h2.encoder.encode(fields)
            if len(known) >= MAX_KNOWN_BLOCKS or not _has_only_references(block):
                known.clear()
            else:
                known[key] = block
        return block

    def presume(self, streams: int) -> None:
        """Open no more streams than these before the server has named a number: others of its connections had it."""
        self._limit = min(streams, self._limit)

    def send_data(self, stream: HTTP2Stream, data: memoryview) -> int:
        """Send a piece of the request's body, as far as the windows allow.

        Returns:
            How many bytes were taken, at most 64 KiB; 0 if a window is shut: `receive` tells when it opens. All, if
            nobody wants the body any more (`wants_body`): they are dropped.

        Raises:
            LocalProtocolError: more than the declared Content-Length. The stream was reset.
        """
        if not stream.is_open or stream.has_ended:
            stream._is_cut_off = stream._is_cut_off or len(data) > 0
            return len(data)
        if stream._unsent is not None and len(data) > stream._unsent:
            self.reset(stream)
            raise LocalProtocolError(
                f"the request's body is longer than declared: {len(data) - stream._unsent} bytes too many",
                phase="write",
            )
        if stream._has_sent_end:
            raise LocalProtocolError("the request's body was ended before", phase="write")
        size = min(len(data), MAX_SEND_BYTES, self._send_window, stream._send_window)
        if size <= 0:
            if len(data):
                self._blocked[stream] = None
            return 0
        step = self._max_payload
        for start in range(0, size, step):
            self._output.append(frame(DATA, 0, stream.id, data[start : min(start + step, size)]))
        self._send_window -= size
        stream._send_window -= size
        if stream._unsent is not None:
            stream._unsent -= size
        if size < len(data) and size < MAX_SEND_BYTES:
            self._blocked[stream] = None
        self._patience.allow(size // BYTES_PER_FRAME)
        return size

    def can_send(self, stream: HTTP2Stream) -> bool:
        """Whether `send_data` is worth calling again after it took less than it was given."""
        return stream not in self._blocked

    def end_stream(self, stream: HTTP2Stream) -> None:
        """End the request's body. Does nothing where it was ended, or the stream is closed.

        Raises:
            LocalProtocolError: less than the declared Content-Length was sent. The stream was reset.
        """
        if not stream.is_open or stream._has_sent_end:
            return
        if stream._is_cut_off or (stream._unsent and stream.has_ended):
            self._reset(stream, CANCEL)  # END_STREAM would make a whole request of the part that was sent
            return
        if stream._unsent:
            missing = stream._unsent
            self.reset(stream)
            raise LocalProtocolError(
                f"the request's body is shorter than declared: {missing} bytes are missing", phase="write"
            )
        stream._has_sent_end = True
        self._output.append(frame(DATA, END_STREAM, stream.id))
        if stream.has_ended:
            self._close(stream)

    def reset(self, stream: HTTP2Stream, code: int = CANCEL) -> None:
        """Give a stream up: what is held of it is dropped, and the server is told unless it is closed already."""
        stream._chunks = []
        stream.held = 0
        if stream.is_open:
            self._reset(stream, code)

    def ping(self, now: float) -> None:
        """Ask for a sign of life. The answer clears `pings_unanswered`."""
        if self.failure is None:
            self._pings_sent += 1
            payload = self._pings_sent.to_bytes(8, "big")
            self._pings[payload] = now
            self._send_control(frame(PING, 0, 0, payload))

    def goaway(self) -> None:
        """Say farewell before closing: no stream of the server's was ever accepted, and none of ours will follow."""
        self.is_draining = True
        self._say_goodbye(NO_ERROR)

    def output(self) -> bytes:
        """What is to be written, all of it, and only once."""
        chunks = self._output
        if not chunks:
            return b""
        self._output = []
        self._unsent_control = 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _send_control(self, data: bytes) -> None:
        self._output.append(data)
        self._unsent_control += len(data)

    def _say_goodbye(self, code: int) -> None:
        if not self._has_said_goodbye:
            self._has_said_goodbye = True
            self._send_control(frame(GOAWAY, 0, 0, _UINT32.pack(0) + _UINT32.pack(code)))

    def _reset(self, stream: HTTP2Stream, code: int, failure: str | None = None) -> None:
        self._send_control(frame(RST_STREAM, 0, stream.id, _UINT32.pack(code)))
        stream.code = code
        if failure is not None:
            stream.failure = RemoteProtocolError(failure, phase="read")
            self._news[stream] = None
        self._close(stream)

    def _close(self, stream: HTTP2Stream) -> None:
        """Forget it: later frames for it are recognised by its number."""
        stream.is_open = False
        del self._streams[stream.id]
        self._blocked.pop(stream, None)

    # --- windows -------------------------------------------------------------------------------------------

    def _open_window(self, stream: HTTP2Stream, increment: int) -> None:
        stream._window_left += increment
        self._send_control(frame(WINDOW_UPDATE, 0, stream.id, _UINT32.pack(increment)))

    def _credit_stream(self, stream: HTTP2Stream, now: float) -> None:
        increment, stream._uncredited = stream._uncredited, 0
        last, stream._credited_at = stream._credited_at, now
        if last is not None and self._round_trip is not None and now - last <= 2 * self._round_trip:
            growth = min(stream._window, MAX_STREAM_WINDOW - stream._window)
            stream._window += growth
            increment += growth
            self._grown_window = max(self._grown_window, stream._window)
        self._open_window(stream, increment)

    def _credit_connection(self) -> None:
        missing = CONNECTION_WINDOW - self._window_left
        if missing * 16 >= CONNECTION_WINDOW:
            self._window_left = CONNECTION_WINDOW
            self._send_control(frame(WINDOW_UPDATE, 0, 0, _UINT32.pack(missing)))

    # --- receiving -----------------------------------------------------------------------------------------

    def receive(self, data: bytes, now: float) -> list[HTTP2Stream]:
        """Take what the server sent; `b""` for the orderly end of the connection. Never raises.

        Returns:
            The streams with news: head, body, end, failure, a window that opened after it had been shut.
        """
        if self.failure is not None:
            return []
        if not data:
            self._fail(self._reader.describe_end() + (f" after {self._farewell}" if self._farewell else ""))
        else:
            if now - self.last_received >= SILENCE_SECONDS:
                self._patience.note_progress()
            self.last_received = now
            self.bytes_received += len(data)
            try:
                for kind, flags, stream_id, payload in self._reader.read(data):
                    self._read_frame(kind, flags, stream_id, payload, now)
                self._credit_connection()
                if self._unsent_control > MAX_UNSENT:
                    raise ConnectionFault(
                        ENHANCE_YOUR_CALM, "the server asks for answers and does not read them"
                    )
            except ConnectionFault as fault:
                self._fail(str(fault), fault.code, fault.__cause__)
            except h2.exceptions.ProtocolError as error:
                self._fail(f"the server broke HTTP/2: {shortened(str(error))}", int(error.error_code), error)
            except Exception as error:  # noqa: BLE001 # the border: hpack and hyperframe raise what they come upon
                self._fail(f"the server broke HTTP/2: {shortened(repr(error))}", PROTOCOL_ERROR, error)
        news = list(self._news)
        self._news.clear()
        return news

    def _read_frame(self, kind: int, flags: int, stream_id: int, payload: bytes, now: float) -> None:
        if kind in _NEED_STREAM and stream_id and (stream_id >= self._next_id or not stream_id & 1):
            raise ConnectionFault(
                PROTOCOL_ERROR, f"the server spoke on stream {stream_id}, which was never opened"
            )
        if kind == DATA:
            self._read_data(flags, stream_id, payload)
        elif kind == HEADERS:
            self._read_headers(flags, stream_id, payload)
        elif kind == WINDOW_UPDATE:
            self._read_window_update(stream_id, payload)
        elif kind == RST_STREAM:
            self._read_reset(stream_id, payload)
        elif kind == PING:
            self._read_ping(flags, payload, now)
        elif kind == SETTINGS:
            self._read_settings(flags, payload, now)
        elif kind == GOAWAY:
            self._read_goaway(payload)
        elif kind == PUSH_PROMISE:
            raise ConnectionFault(PROTOCOL_ERROR, "the server pushed a response, which it was told not to")
        else:
            # PRIORITY says nothing to a client. Unknown types are to be ignored (RFC 9113, section 5.5).
            self._patience.note_idle_frame()

    # --- frames of streams ---------------------------------------------------------------------------------

    def _read_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._window_left -= size
        if self._window_left < 0:
            raise ConnectionFault(
                FLOW_CONTROL_ERROR, "the server sent more than the connection's window allows"
            )
        data = without_padding(payload) if flags & PADDED else payload
        stream = self._streams.get(stream_id)
        if stream is None:
            if size < SMALL_DATA:
                self._patience.note_idle_frame()
            return
        stream._window_left -= size
        if stream._window_left < 0:
            self._reset(stream, FLOW_CONTROL_ERROR, "the server sent more than the stream's window allows")
            return
        if stream.head is None or stream.has_ended:
            when = "after the end" if stream.has_ended else "before the head"
            self._reset(
                stream, STREAM_CLOSED if stream.has_ended else PROTOCOL_ERROR, f"the server sent data {when}"
            )
            return
        stream._uncredited += size - len(data)
        if data:
            self._patience.note_progress()
            stream._received += len(data)
            if stream._content_length is not None and stream._received > stream._content_length:
                self._reset(stream, PROTOCOL_ERROR, "the response's body is longer than it may be")
                return
            stream._hold(data)
            self._news[stream] = None
        elif not flags & END_STREAM:
            self._patience.note_empty_data()
        if flags & END_STREAM:
            self._end_response(stream)

    def _read_headers(self, flags: int, stream_id: int, block: bytes) -> None:
        stream = self._streams.get(stream_id)
        head = self._known_heads.get(block)
        is_head = stream is not None and stream.head is None
        # Decoded also where nobody wants it: the compression table is the connection's.
        fields = () if head is not None and is_head else self._decode(block)
        if stream is None:
            self._patience.note_idle_frame()
            return
        self._patience.note_progress()
        stream.has_answer_begun = True
        self._news[stream] = None
        try:
            if not is_head:
                self._read_trailers(stream, fields, ends=bool(flags & END_STREAM))
                return
            if head is None:
                head = check_response(fields)
                is_short = len(block) <= MAX_KNOWN_BLOCK and len(self._known_heads) < MAX_KNOWN_BLOCKS
                if is_short and _has_only_references(block):
                    self._known_heads[block] = head
            self._read_head(stream, head, ends=bool(flags & END_STREAM))
        except MalformedMessage as error:
            self._reset(stream, PROTOCOL_ERROR, str(error))

    def _decode(self, block: bytes) -> Sequence[tuple[bytes, bytes]]:
        _check_table_updates(block)
        if not _has_only_references(block):
            self._known_heads.clear()
        try:
            return list(self._h2.decoder.decode(block, raw=True))
        except Exception as error:
            # hpack says that a list is too long by an error like any other, and then leaves the table as it is.
            message = f"the response's head cannot be decoded: {shortened(str(error) or repr(error))}"
            raise ConnectionFault(COMPRESSION_ERROR, message) from error

    def _read_trailers(
        self, stream: HTTP2Stream, fields: Sequence[tuple[bytes, bytes]], *, ends: bool
    ) -> None:
        if stream.has_ended:
            raise MalformedMessage("the server sent fields after the end of its response")
        if not ends:
            raise MalformedMessage("the server sent a second head in the midst of its response")
        stream.trailers = check_trailers(fields)
        self._end_response(stream)

    def _read_head(self, stream: HTTP2Stream, head: ResponseFields, *, ends: bool) -> None:
        status, headers, length = head
        if status < 200:
            self._read_interim(stream, status, headers, ends=ends)
            return
        # A list of its own: the caller may change it.
        stream.head = ResponseHead(b"HTTP/2", status, b"", headers.copy(), False)
        stream._content_length = 0 if stream._is_head or status in (204, 304) else length
        if ends:
            self._end_response(stream)

    def _read_interim(self, stream: HTTP2Stream, status: int, headers: Headers, *, ends: bool) -> None:
        if ends or status == 101:
            raise MalformedMessage(f"the server sent {status} as its final response")
        stream.interim_responses += 1
        stream._interim_bytes += sum(len(name) + len(value) for name, value in headers)
        if stream.interim_responses > MAX_INTERIM_RESPONSES or stream._interim_bytes > MAX_INTERIM_BYTES:
            raise MalformedMessage(
                f"the server sent {stream.interim_responses} interim (1xx) responses and no final one"
            )
        if status == 100:
            stream.is_continued = True

    def _end_response(self, stream: HTTP2Stream) -> None:
        if stream._content_length not in (None, stream._received):
            self._reset(
                stream,
                PROTOCOL_ERROR,
                f"the response's body has {stream._received} bytes, of {stream._content_length} declared",
            )
            return
        self._patience.note_progress()
        stream.has_ended = True
        self._news[stream] = None
        if stream._has_sent_end:
            self._close(stream)

    def _read_reset(self, stream_id: int, payload: bytes) -> None:
        stream = self._streams.get(stream_id)
        if stream is None:
            self._patience.note_idle_frame()
            return
        self._patience.note_reset()
        code = _UINT32.unpack(payload)[0]
        stream.code = code
        self._news[stream] = None
        if not stream.has_ended:
            # A reset after the whole response only says that the rest of the request is not wanted (section 8.1).
            stream.is_refused = code == REFUSED_STREAM and not stream.has_answer_begun
            stream.failure = RemoteProtocolError(
                f"the server reset the stream: {error_name(code)}", phase="read"
            )
        self._close(stream)

    def _read_window_update(self, stream_id: int, payload: bytes) -> None:
        increment = _UINT32.unpack(payload)[0] & 0x7FFFFFFF
        stream = self._streams.get(stream_id)
        window = self._send_window if stream is None else stream._send_window
        if increment < SMALL_INCREMENT or window > AMPLE_WINDOW or (stream_id and stream is None):
            self._patience.note_idle_frame()
        if stream is None and stream_id:
            return
        if not 0 < increment <= _MAX_WINDOW - window:
            code = FLOW_CONTROL_ERROR if increment else PROTOCOL_ERROR
            if stream is None:
                raise ConnectionFault(code, f"the server opened the connection's window by {increment}")
            self._reset(stream, code, f"the server opened the stream's window by {increment}")
        elif stream is None:
            self._send_window += increment
            self._wake_blocked()
        else:
            stream._send_window += increment
            if stream in self._blocked:
                del self._blocked[stream]
                self._news[stream] = None

    def _wake_blocked(self) -> None:
        self._news.update(self._blocked)
        self._blocked.clear()

    # --- frames of the connection --------------------------------------------------------------------------

    def _read_settings(self, flags: int, payload: bytes, now: float) -> None:
        if len(payload) % 6 or (flags & ACK and payload):
            raise ConnectionFault(FRAME_SIZE_ERROR, f"the server sent SETTINGS of {len(payload)} bytes")
        if flags & ACK:
            if self._settings_sent_at is None:
                self._patience.note_idle_frame()
                return
            self._patience.note_progress()
            self._note_round_trip(now - self._settings_sent_at)
            self._settings_sent_at = None
            # What we asked for holds from here on, for the streams that are open too (section 6.9.2).
            for stream in self._streams.values():
                stream._window += STREAM_WINDOW - self._first_window
                stream._window_left += STREAM_WINDOW - self._first_window
            self._first_window = STREAM_WINDOW
            return
        self._patience.note_idle_frame()
        # h2 keeps every setting that it gets: 65,536 unknown ones would be 45 MB.
        settings = {key: value for key, value in _SETTING.iter_unpack(payload) if key in _KNOWN_SETTINGS}
        if _HEADER_TABLE_SIZE in settings:
            size = min(settings[_HEADER_TABLE_SIZE], MAX_ENCODER_TABLE)
            settings[_HEADER_TABLE_SIZE] = size
            if size == self._h2.encoder.header_table_size:
                # No change; hpack would forget one that it has not announced yet.
                del settings[_HEADER_TABLE_SIZE]
        self._h2.receive_data(frame(SETTINGS, 0, 0, _pack_settings(settings)))
        changes = self._h2.encoder.table_size_changes
        if len(changes) > 1:
            # The smallest and the last are announced (RFC 7541, section 4.2), and none larger than the last.
            changes[:] = dict.fromkeys((min(changes), changes[-1]))
        self._send_control(self._h2.data_to_send())
        self._known_requests.clear()  # the next block may have to announce the table's new size
        self._max_payload = self._h2.max_outbound_frame_size
        self._change_first_window(self._h2.remote_settings.initial_window_size)
        limit = self._h2.remote_settings.get(h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS)
        self._limit = PRESUMED_STREAMS if limit is None else limit
        self._wake_blocked()  # the windows may be larger

    def _change_first_window(self, size: int) -> None:
        """The server changes what it takes of each stream, the open ones too (section 6.9.2)."""
        growth, self._first_send_window = size - self._first_send_window, size
        if growth:
            for stream in self._streams.values():
                stream._send_window += growth  # which may become negative
                if stream._send_window > _MAX_WINDOW:
                    message = f"the server opened the window of stream {stream.id} by {growth}"
                    raise ConnectionFault(FLOW_CONTROL_ERROR, message)

    def _read_ping(self, flags: int, payload: bytes, now: float) -> None:
        sent_at = self._pings.get(payload) if flags & ACK else None
        if sent_at is None:
            self._patience.note_idle_frame()
            if not flags & ACK:
                self._send_control(frame(PING, ACK, 0, payload))
            return
        self._patience.note_progress()
        self._note_round_trip(now - sent_at)
        # They are answered in their order; one that was left out will not be answered.
        self._pings = {key: value for key, value in self._pings.items() if key > payload}

    def _note_round_trip(self, seconds: float) -> None:
        self._round_trip = seconds if self._round_trip is None else min(seconds, self._round_trip)

    def _read_goaway(self, payload: bytes) -> None:
        if len(payload) < 8:
            raise ConnectionFault(FRAME_SIZE_ERROR, f"the server sent GOAWAY of {len(payload)} bytes")
        self._patience.note_idle_frame()
        last_id = _UINT32.unpack_from(payload)[0] & 0x7FFFFFFF
        # A second one may refuse more (section 6.8). It cannot take back: what was refused is closed.
        self.last_id = last_id
        self.is_draining = True
        debug = payload[8 : 8 + MAX_QUOTE]
        self._farewell = (
            f"GOAWAY, {error_name(_UINT32.unpack_from(payload, 4)[0])}{f', {debug!r}' if debug else ''}"
        )
        for stream in [stream for stream in self._streams.values() if stream.id > last_id]:
            stream.is_refused = not stream.has_answer_begun
            if not stream.has_ended:
                stream.failure = RemoteProtocolError(
                    f"the server takes no more streams: {self._farewell}", phase="read"
                )
            self._news[stream] = None
            self._close(stream)

    # --- failure -------------------------------------------------------------------------------------------

    def _fail(self, message: str, code: int | None = None, cause: BaseException | None = None) -> None:
        self.failure = RemoteProtocolError(message, phase="read")
        self.failure.__cause__ = cause and cause.with_traceback(None)
        if code is not None:
            self._say_goodbye(code)
        for stream in list(self._streams.values()):
            if not stream.has_ended:
                # Each its own: an error that several raise would gather the tracebacks of all.
                stream.failure = RemoteProtocolError(message, phase="read")
                stream.failure.__cause__ = self.failure.__cause__
            self._news[stream] = None
            self._close(stream)


# On a stream that was never opened they are a fault of the connection (RFC 9113, section 5.1).
_NEED_STREAM = frozenset({DATA, HEADERS, RST_STREAM, WINDOW_UPDATE})


def _check_table_updates(block: bytes) -> None:
    """Two changes of the table's size are all that a block can need (RFC 7541, section 4.2); hpack takes any number."""
    position = updates = 0
    while position < len(block) and block[position] & 0xE0 == 0x20:
        updates += 1
        if updates > 2:
            raise ConnectionFault(
                COMPRESSION_ERROR, "the server changes its compression table again and again"
            )
        if block[position] & 0x1F == 0x1F:
            position += 1
            while position < len(block) and block[position] & 0x80:
                position += 1
        position += 1


def _pack_settings(settings: dict[int, int]) -> bytes:
    return b"".join(_SETTING.pack(*setting) for setting in settings.items())


def _wrong_length(declared: int, sent: int) -> LocalProtocolError:
    return LocalProtocolError(f"the request's body has {sent} bytes, of {declared} declared", phase="write")
