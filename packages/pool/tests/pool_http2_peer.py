"""The server's end of an HTTP/2 session, frame by frame: what a test says is what goes over the wire.

`Peer` holds the `HTTP2Session` under test, makes frames, and takes apart what the session sends.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import hpack

from lamina_pool._checks import RequestFraming
from lamina_pool._http2 import HTTP2Session, HTTP2Stream
from lamina_pool._http2_frames import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def request(
    method: bytes = b"GET",
    target: bytes = b"/",
    headers: list[tuple[bytes, bytes]] | None = None,
    *,
    length: int | None = None,
    is_chunked: bool = False,
    is_upgrade: bool = False,
) -> RequestFraming:
    """A checked request, as `check_request` would return it."""
    return RequestFraming(
        method,
        target,
        headers or [(b"Host", b"example.test")],
        "chunked" if is_chunked else "none" if length is None else "length",
        length or 0,
        False,
        False,
        True,
        is_upgrade,
        method == b"CONNECT",
        False,
        False,
    )


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def number(self) -> int:
        """The number that the payload begins with."""
        return int.from_bytes(self.payload[:4], "big")


def split(data: bytes) -> list[Frame]:
    """Take frames apart; nothing may be left over."""
    data = data.removeprefix(PREFACE)
    frames = []
    while data:
        size = int.from_bytes(data[:3], "big")
        frames.append(Frame(data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        assert len(frames[-1].payload) == size
        data = data[9 + size :]
    return frames


def uint32(number: int) -> bytes:
    return struct.pack(">I", number)


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def data(
    stream: HTTP2Stream | int, payload: bytes = b"", *, ends: bool = False, padding: int | None = None
) -> bytes:
    flags = END_STREAM if ends else 0
    if padding is not None:
        flags |= PADDED
        payload = bytes([padding]) + payload + bytes(padding)
    return frame(DATA, flags, _number(stream), payload)


def reset(stream: HTTP2Stream | int, code: int) -> bytes:
    return frame(RST_STREAM, 0, _number(stream), uint32(code))


def window_update(stream: HTTP2Stream | int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, _number(stream), uint32(increment))


def goaway(last_id: int, code: int = 0, debug: bytes = b"") -> bytes:
    return frame(GOAWAY, 0, 0, uint32(last_id) + uint32(code) + debug)


def ping(payload: bytes = b"12345678", *, ack: bool = False) -> bytes:
    return frame(PING, ACK if ack else 0, 0, payload)


SETTINGS_ACK = frame(SETTINGS, ACK, 0)


def _number(stream: HTTP2Stream | int) -> int:
    return stream if isinstance(stream, int) else stream.id


class Peer:
    """A session, and the server that it talks to.

    Attributes:
        session: under test.
        encoder: the server's HPACK encoder.
        decoder: the server's HPACK decoder.
        now: the present time; tests move it.
    """

    def __init__(self, *greeting: bytes) -> None:
        self.now = 0.0
        self.session = HTTP2Session(self.now)
        self.encoder = hpack.Encoder()
        self.decoder = hpack.Decoder()
        if greeting:
            self.feed(*greeting)
            self.session.output()

    @classmethod
    def ready(cls) -> Peer:
        """Both sides have sent and acknowledged their SETTINGS."""
        return cls(settings(), SETTINGS_ACK)

    def feed(self, *frames: bytes) -> list[HTTP2Stream]:
        return self.session.receive(b"".join(frames), self.now)

    def sent(self) -> list[Frame]:
        return split(self.session.output())

    def fields(self, sent: Frame) -> list[tuple[bytes, bytes]]:
        return list(self.decoder.decode(sent.payload, raw=True))

    def open(self, framing: RequestFraming | None = None, *, ends: bool = True) -> HTTP2Stream:
        return self.session.open_stream(framing or request(), b"https", ends=ends, now=self.now)

    def upload(self, *, length: int | None = None) -> HTTP2Stream:
        """A stream whose body is still to be sent."""
        return self.open(request(b"POST", length=length, is_chunked=length is None), ends=False)

    def head(
        self,
        stream: HTTP2Stream | int,
        *fields: tuple[bytes, bytes],
        status: bytes = b"200",
        ends: bool = False,
    ) -> bytes:
        return self.block(stream, (b":status", status), *fields, ends=ends)

    def block(self, stream: HTTP2Stream | int, *fields: tuple[bytes, bytes], ends: bool = False) -> bytes:
        flags = END_HEADERS | (END_STREAM if ends else 0)
        return frame(HEADERS, flags, _number(stream), self.encoder.encode(list(fields)))
