"""HTTP/2 frames out of bytes (RFC 9113, section 4): what can be said of them without knowing any stream.

`FrameReader` splits, checks lengths and places, and puts header blocks together. A frame that is too large is refused
at its header, before it has come. `Patience` counts frames that further nothing. Whatever is wrong here is wrong with
the connection: a `ConnectionFault`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from h2.errors import ErrorCodes

from ._http11 import MAX_HEAD_BYTES, describe_foreign_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_FRAME_BYTES = 16_384
"""The largest payload that we take: the least that one may ask for, and the default (RFC 9113, section 4.2)."""

MAX_CONTINUATIONS = 64
"""The most CONTINUATION frames of one header block."""

MAX_IDLE_FRAMES = 1000
"""The most frames without progress."""

MAX_EMPTY_DATA = 100
"""The most DATA frames without a byte and without END_STREAM, as long as nothing makes progress."""

MAX_RESETS = 100
"""The most resets of our streams by the server, as long as nothing makes progress."""

MAX_ALLOWANCE = 50_000
"""The most frames without progress that what we have sent is good for."""

# RFC 9113, section 6.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
WITH_PRIORITY: Final = 0x20

# RFC 9113, section 7. Plain numbers: members of an enumeration are slow to compare.
NO_ERROR: Final = 0
PROTOCOL_ERROR: Final = 1
FLOW_CONTROL_ERROR: Final = 3
STREAM_CLOSED: Final = 5
FRAME_SIZE_ERROR: Final = 6
REFUSED_STREAM: Final = 7
CANCEL: Final = 8
COMPRESSION_ERROR: Final = 9
ENHANCE_YOUR_CALM: Final = 11

_ON_STREAM = frozenset({DATA, HEADERS, PRIORITY, RST_STREAM, PUSH_PROMISE, CONTINUATION})
_ON_CONNECTION = frozenset({SETTINGS, PING, GOAWAY})
_LENGTHS = {RST_STREAM: 4, PING: 8, WINDOW_UPDATE: 4}
_NAMES = (
    "DATA", "HEADERS", "PRIORITY", "RST_STREAM", "SETTINGS", "PUSH_PROMISE", "PING", "GOAWAY", "WINDOW_UPDATE",
    "CONTINUATION",
)  # fmt: skip

_HEADER = struct.Struct(">IBI")  # the length (24 bits) and the type together, the flags, the stream
_HEADER_BYTES = 9


class ConnectionFault(Exception):
    """The server broke a rule in a way that leaves nothing to build on (RFC 9113, section 5.4.1).

    Attributes:
        code: the error code of the GOAWAY that is due.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def frame(kind: int, flags: int, stream_id: int, payload: bytes | memoryview = b"") -> bytes:
    """The bytes of a frame."""
    return _HEADER.pack(len(payload) << 8 | kind, flags, stream_id) + payload


def error_name(code: int) -> str:
    """The name of an error code."""
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"error {code:#x}"


def without_padding(payload: bytes) -> bytes:
    """The payload of a frame with the flag PADDED (RFC 9113, sections 6.1 and 6.2)."""
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(
            PROTOCOL_ERROR, "the server sent a frame with more padding than it has room for"
        )
    return payload[1 : len(payload) - payload[0]]


class FrameReader:
    """Splits what comes into frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._needed = _HEADER_BYTES
        self._has_begun = False
        self._block: bytearray | None = None
        self._block_flags = 0
        self._block_stream = 0
        self._continuations = 0

    def read(self, data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
        """The frames that are complete now: type, flags, stream, payload.

        A header block comes as one HEADERS frame, without padding and priority; of its flags END_STREAM counts.

        Raises:
            ConnectionFault: this is not HTTP/2, or against its rules. There is no going on.
        """
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._needed:
                return
            data = bytes(self._buffer)
            self._buffer.clear()
        if not self._has_begun and len(data) >= _HEADER_BYTES:
            # SETTINGS comes first (RFC 9113, section 3.4). A small frame's first byte is 0.
            if data[0] or data[3] != SETTINGS:
                raise ConnectionFault(PROTOCOL_ERROR, _describe_beginning(data))
            self._has_begun = True
        self._needed = _HEADER_BYTES
        position, end = 0, len(data)
        while end - position >= _HEADER_BYTES:
            word, flags, stream_id = _HEADER.unpack_from(data, position)
            kind, length, stream_id = word & 0xFF, word >> 8, stream_id & 0x7FFFFFFF
            if length > MAX_FRAME_BYTES:
                raise ConnectionFault(FRAME_SIZE_ERROR, f"the server sent a frame of {length} bytes")
            if end - position < _HEADER_BYTES + length:
                self._needed = _HEADER_BYTES + length
                break
            start = position + _HEADER_BYTES
            position = start + length
            payload = data[start:position]
            if kind != DATA or self._block is not None or not stream_id:
                self._check(kind, stream_id, length)
                if kind == HEADERS:
                    payload = self._begin_block(flags, stream_id, payload)
                elif kind == CONTINUATION:
                    payload = self._continue_block(flags, payload)
                    kind, flags = HEADERS, self._block_flags
                if self._block is not None:
                    continue
            yield kind, flags, stream_id, payload
        if position < end:
            self._buffer += data[position:]

    def describe_end(self) -> str:
        """Say what it means that the bytes end here."""
        if self._has_begun:
            return "the server ended the connection"
        if self._buffer:
            return _describe_beginning(bytes(self._buffer))
        return "the server ended the connection without speaking HTTP/2"

    def _check(self, kind: int, stream_id: int, length: int) -> None:
        if self._block is not None and (kind != CONTINUATION or stream_id != self._block_stream):
            raise ConnectionFault(PROTOCOL_ERROR, "the server broke off a header block")
        if kind in (_ON_CONNECTION if stream_id else _ON_STREAM):
            place = f"stream {stream_id}" if stream_id else "no stream"
            raise ConnectionFault(PROTOCOL_ERROR, f"the server sent {_NAMES[kind]} on {place}")
        if _LENGTHS.get(kind, length) != length:
            raise ConnectionFault(FRAME_SIZE_ERROR, f"the server sent {_NAMES[kind]} of {length} bytes")

    def _begin_block(self, flags: int, stream_id: int, payload: bytes) -> bytes:
        if flags & PADDED:
            payload = without_padding(payload)
        if flags & WITH_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(FRAME_SIZE_ERROR, "the server sent HEADERS that are too short")
            payload = payload[5:]
        if not flags & END_HEADERS:
            self._block = bytearray(payload)
            self._block_flags = flags
            self._block_stream = stream_id
            self._continuations = 0
        return payload

    def _continue_block(self, flags: int, payload: bytes) -> bytes:
        block = self._block
        if block is None:
            raise ConnectionFault(PROTOCOL_ERROR, "the server continued a header block that was not begun")
        block += payload
        self._continuations += 1
        if len(block) > MAX_HEAD_BYTES or self._continuations > MAX_CONTINUATIONS:
            raise ConnectionFault(ENHANCE_YOUR_CALM, "the server's header block is too large")
        if not flags & END_HEADERS:
            return b""
        self._block = None
        return bytes(block)


class Patience:
    """Counts the frames that further no response, and ends the connection over too many of them.

    Each costs the server a few bytes, and us time. A response that comes, or something that was waited for, clears
    the counts. What we have sent is answered by such frames as well, and allows for some.
    """

    def __init__(self) -> None:
        self._idle_frames = 0  # below 0: what is allowed besides
        self._empty_data = 0
        self._resets = 0

    def allow(self, frames: int) -> None:
        """As many frames may come besides."""
        self._idle_frames = max(self._idle_frames - frames, -MAX_ALLOWANCE)

    def note_progress(self) -> None:
        """Something came that somebody waits for, or nothing for a while: no flood."""
        if self._idle_frames > 0:  # noqa: PLR1730 # `min` would be a call for each DATA frame
            self._idle_frames = 0
        self._empty_data = self._resets = 0

    def note_idle_frame(self) -> None:
        """A frame came that furthers nothing."""
        self._idle_frames += 1
        if self._idle_frames > MAX_IDLE_FRAMES:
            raise ConnectionFault(
                ENHANCE_YOUR_CALM, f"the server sent {MAX_IDLE_FRAMES} frames that further no response"
            )

    def note_empty_data(self) -> None:
        """DATA came that has no byte and ends nothing."""
        self._empty_data += 1
        if self._empty_data > MAX_EMPTY_DATA:
            raise ConnectionFault(ENHANCE_YOUR_CALM, f"the server sent {MAX_EMPTY_DATA} empty DATA frames")

    def note_reset(self) -> None:
        """The server reset one of our streams."""
        self._resets += 1
        if self._resets > MAX_RESETS:
            raise ConnectionFault(ENHANCE_YOUR_CALM, f"the server reset {MAX_RESETS} streams in a row")


def _describe_beginning(data: bytes) -> str:
    """Say what a peer speaks that does not begin with SETTINGS."""
    if data.startswith(b"HTTP/"):
        return f"the server speaks HTTP/1 where HTTP/2 was expected; it begins with {data[:32]!r}"
    if data[:1] == b"\0" and b"" < data[3:4] < bytes([len(_NAMES)]):
        return f"the server's first frame is {_NAMES[data[3]]}, not SETTINGS"
    return describe_foreign_bytes(data, "HTTP/2")
