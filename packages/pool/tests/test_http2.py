"""The HTTP/2 session, frame by frame (RFC 9113), and what the fault catalogue's group B asks of it."""

from __future__ import annotations

import gc
import itertools
import struct
import tracemalloc

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import ConnectionNotAvailable, LocalProtocolError, RemoteProtocolError
from lamina_pool._http2 import (
    CONNECTION_WINDOW,
    MAX_SEND_BYTES,
    MAX_STREAM_WINDOW,
    MAX_UNSENT,
    STREAM_WINDOW,
    HTTP2Session,
    HTTP2Stream,
)
from lamina_pool._http2_frames import (
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
    MAX_EMPTY_DATA,
    MAX_FRAME_BYTES,
    MAX_IDLE_FRAMES,
    MAX_RESETS,
    NO_ERROR,
    PADDED,
    PING,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    frame,
)
from lamina_pool._http11 import MAX_FIELDS, MAX_HEAD_BYTES, MAX_INTERIM_RESPONSES
from lamina_pool._scheduler import PRESUMED_STREAMS
from pool_http2_peer import (
    PREFACE,
    SETTINGS_ACK,
    Frame,
    Peer,
    data,
    goaway,
    ping,
    request,
    reset,
    settings,
    split,
    uint32,
    window_update,
)

HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 3, 4, 5


def failure_of(owner: HTTP2Session | HTTP2Stream) -> str:
    assert isinstance(owner.failure, RemoteProtocolError)
    assert owner.failure.phase == "read"
    return owner.failure.message


def assert_lives(peer: Peer) -> None:
    """The connection carries another request."""
    assert peer.session.failure is None
    stream = peer.open()
    peer.feed(peer.head(stream), data(stream, b"fine", ends=True))
    assert stream.take(peer.now) == b"fine"
    assert stream.failure is None
    assert not stream.is_open


def assert_dead(peer: Peer, code: int) -> str:
    """The connection is over, and the server is told why."""
    last = peer.sent()[-1]
    assert (last.kind, last.stream) == (GOAWAY, 0)
    assert struct.unpack(">II", last.payload) == (0, code)
    assert peer.session.capacity == peer.session.open_streams == 0
    assert not peer.session.can_open
    return failure_of(peer.session)


# --- the beginning ---------------------------------------------------------------------------------------------------


def test_begins_with_preface_settings_and_a_wide_connection_window() -> None:
    output = HTTP2Session(0.0).output()
    assert output.startswith(PREFACE)
    first, second = split(output)
    assert (first.kind, first.flags, first.stream) == (SETTINGS, 0, 0)
    assert dict(struct.iter_unpack(">HI", first.payload)) == {2: 0, 4: STREAM_WINDOW, 6: MAX_HEAD_BYTES}
    assert (second.kind, second.stream, second.number) == (WINDOW_UPDATE, 0, CONNECTION_WINDOW - 65_535)


def test_acknowledges_settings_and_pings() -> None:
    peer = Peer()
    peer.session.output()
    peer.feed(settings(), ping(b"abcdefgh"))
    assert peer.sent() == [Frame(SETTINGS, ACK, 0, b""), Frame(PING, ACK, 0, b"abcdefgh")]


def test_output_comes_once() -> None:
    session = HTTP2Session(0.0)
    assert session.has_output
    assert session.output()
    assert not session.has_output
    assert session.output() == b""


@pytest.mark.parametrize(
    ("beginning", "named"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP/1"),
        (b"HTTP", "HTTP"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH"),
        (b"220 smtp.example.test ESMTP\r\n", "220 smtp"),
        (bytes(20), "DATA"),
        (goaway(0), "GOAWAY"),
        (frame(PING, 0, 0, bytes(8)), "PING"),
        (b"\0", "begins with"),
    ],
)
@pytest.mark.parametrize("step", [1, 1000])
def test_B20_a_server_that_speaks_something_else_is_named(beginning: bytes, named: str, step: int) -> None:
    session = HTTP2Session(0.0)
    for start in range(0, len(beginning), step):
        session.receive(beginning[start : start + step], 0.0)
    session.receive(b"", 0.0)
    assert named in failure_of(session)


def test_a_server_that_says_nothing_is_described() -> None:
    session = HTTP2Session(0.0)
    session.receive(b"", 0.0)
    assert "without speaking HTTP/2" in failure_of(session)


# --- requests --------------------------------------------------------------------------------------------------------


def sent_fields(*headers: tuple[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    peer = Peer.ready()
    peer.open(request(target=b"/a?b", headers=[(b"Host", b"example.test:8443"), *headers]))
    (sent,) = peer.sent()
    assert (sent.kind, sent.flags, sent.stream) == (HEADERS, END_HEADERS | END_STREAM, 1)
    fields = peer.fields(sent)
    assert fields[:4] == [
        (b":method", b"GET"),
        (b":authority", b"example.test:8443"),
        (b":scheme", b"https"),
        (b":path", b"/a?b"),
    ]
    return fields[4:]


def test_header_names_are_sent_in_lower_case() -> None:
    assert sent_fields((b"User-Agent", b"Lamina"), (b"x", b"")) == [(b"user-agent", b"Lamina"), (b"x", b"")]


def test_headers_of_the_connection_are_left_out() -> None:
    assert sent_fields(
        (b"Connection", b"close, X-Mine"),
        (b"Keep-Alive", b"timeout=5"),
        (b"Proxy-Connection", b"keep-alive"),
        (b"Transfer-Encoding", b"chunked"),
        (b"HTTP2-Settings", b"AAMAAABk"),
        (b"X-Mine", b"1"),
        (b"X-Yours", b"2"),
    ) == [(b"x-yours", b"2")]


@pytest.mark.parametrize(
    ("value", "sent"),
    [(b"trailers", [(b"te", b"trailers")]), (b"gzip, Trailers;q=1", [(b"te", b"trailers")]), (b"gzip", [])],
)
def test_of_te_only_trailers_is_sent(value: bytes, sent: list[tuple[bytes, bytes]]) -> None:
    assert sent_fields((b"Connection", b"TE"), (b"TE", value)) == sent


def test_secrets_stay_out_of_the_compression_table() -> None:
    fields = sent_fields(
        (b"Authorization", b"Bearer 1"), (b"Cookie", b"a=1"), (b"Cookie", b"a" * 40), (b"X", b"y")
    )
    assert [type(field) is hpack.NeverIndexedHeaderTuple for field in fields] == [True, True, False, False]


@pytest.mark.parametrize(
    "framing",
    [
        request(target=b"/a b"),
        request(target=b"/a\r\nx: y"),
        request(target=b"http://example.test/"),
        request(target=b""),
        request(headers=[(b"X", b"y")]),
        request(headers=[(b"Host", b"")]),
        request(headers=[(b"Host", b"a\0b")]),
        request(headers=[(b"Host", b"a"), (b"x", b"a\r\nb: c")]),
        request(headers=[(b"Host", b"a"), (b"x", b"a\0")]),
        request(headers=[(b"Host", b"a"), (b"x", b" a")]),
        request(headers=[(b"Host", b"a"), (b":path", b"/")]),
        request(headers=[(b"Host", b"a"), (b"a b", b"c")]),
        request(headers=[(b"Host", b"a"), (b"", b"c")]),
        request(b"CONNECT", b"a:1"),
        request(is_upgrade=True),
        request(b"POST", length=5),
    ],
)
def test_J02_what_cannot_be_sent_is_refused_and_harms_nobody(framing: object) -> None:
    peer = Peer.ready()
    with pytest.raises(LocalProtocolError) as caught:
        peer.open(framing)  # type: ignore[arg-type] # the table is of mixed rows for mypy
    assert caught.value.phase == "write"
    assert not peer.session.has_output
    assert peer.session.is_idle
    assert_lives(peer)


def test_a_large_head_is_cut_into_frames() -> None:
    peer = Peer.ready()
    value = bytes(range(33, 127)) * 400
    peer.open(request(headers=[(b"Host", b"a"), (b"X-Large", value)]))
    first, *others = peer.sent()
    assert first.kind == HEADERS
    assert {other.kind for other in others} == {CONTINUATION}
    assert [sent.flags & END_HEADERS for sent in (first, *others)] == [0] * len(others) + [END_HEADERS]
    whole = Frame(HEADERS, 0, 1, b"".join(sent.payload for sent in (first, *others)))
    assert (b"x-large", value) in peer.fields(whole)


# --- request bodies --------------------------------------------------------------------------------------------------


def body_of(frames: list[Frame]) -> bytes:
    return b"".join(sent.payload for sent in frames if sent.kind == DATA)


def test_a_body_goes_out_as_far_as_the_windows_allow() -> None:
    peer = Peer.ready()
    stream = peer.upload(length=100_000)
    body = memoryview(bytes(range(250)) * 400)
    assert peer.session.send_data(stream, body) == MAX_SEND_BYTES - 1 == 65_535
    assert peer.session.send_data(stream, body[65_535:]) == 0
    assert not peer.session.can_send(stream)
    frames = peer.sent()[1:]
    assert [len(sent.payload) for sent in frames] == [16_384, 16_384, 16_384, 16_383]
    assert body_of(frames) == body[:65_535]
    assert peer.feed(window_update(stream, 100_000)) == [stream]  # the connection's is shut still
    assert peer.session.send_data(stream, body[65_535:]) == 0
    assert peer.feed(window_update(0, 10)) == [stream]
    assert peer.session.send_data(stream, body[65_535:]) == 10
    assert peer.feed(window_update(0, 100_000)) == [stream]
    assert peer.session.send_data(stream, body[65_545:]) == 100_000 - 65_545
    peer.session.end_stream(stream)
    frames = peer.sent()
    assert body_of(frames) == body[65_535:]
    assert frames[-1] == Frame(DATA, END_STREAM, stream.id, b"")
    assert not stream.wants_body


def test_one_call_takes_no_more_than_64_KiB_in_frames_of_the_servers_size() -> None:
    peer = Peer(settings((MAX_FRAME_SIZE, 40_000), (INITIAL_WINDOW_SIZE, 1 << 20)), window_update(0, 1 << 20))
    stream = peer.upload()
    assert peer.session.send_data(stream, memoryview(bytes(200_000))) == MAX_SEND_BYTES
    assert peer.session.can_send(stream)
    assert [len(sent.payload) for sent in peer.sent()[1:]] == [40_000, 25_536]


def test_a_large_body_is_not_copied_again_and_again() -> None:
    peer = Peer(settings((INITIAL_WINDOW_SIZE, 1 << 30)), window_update(0, 1 << 30))
    stream = peer.upload()
    body = memoryview(bytes(16 << 20))
    sent = 0
    tracemalloc.start()
    try:
        while sent < len(body):
            sent += peer.session.send_data(stream, body[sent:])
            peer.session.output()
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_B12_a_window_of_nothing_and_a_negative_one() -> None:
    peer = Peer(settings((INITIAL_WINDOW_SIZE, 0)))
    stream = peer.upload()
    body = memoryview(bytes(10_000))
    assert peer.session.send_data(stream, body) == 0
    assert peer.feed(settings((INITIAL_WINDOW_SIZE, 5_000))) == [stream]
    assert peer.session.send_data(stream, body) == 5_000
    assert peer.session.send_data(stream, body[5_000:]) == 0
    peer.feed(settings((INITIAL_WINDOW_SIZE, 0)))  # the window is -5,000 now
    assert peer.session.send_data(stream, body[5_000:]) == 0
    peer.feed(window_update(stream, 5_000))
    assert peer.session.send_data(stream, body[5_000:]) == 0
    assert peer.feed(window_update(stream, 7)) == [stream]
    assert peer.session.send_data(stream, body[5_000:]) == 7


@pytest.mark.parametrize(("increment", "code"), [(0, PROTOCOL_ERROR), (2**31 - 1, FLOW_CONTROL_ERROR)])
def test_B12_a_wrong_window_update_ends_its_stream_or_the_connection(increment: int, code: int) -> None:
    peer = Peer.ready()
    stream, other = peer.open(), peer.open()
    peer.session.output()
    assert peer.feed(window_update(stream, increment)) == [stream]
    assert "window" in failure_of(stream)
    assert peer.sent() == [Frame(RST_STREAM, 0, stream.id, uint32(code))]
    assert other.is_open
    assert peer.feed(window_update(0, increment)) == [other]
    assert "window" in assert_dead(peer, code)
    assert failure_of(other) == failure_of(peer.session)


def test_B12_settings_may_not_open_a_window_too_far() -> None:
    peer = Peer.ready()
    peer.feed(window_update(peer.upload(), 2**31 - 1 - 65_535))
    assert peer.session.failure is None
    peer.feed(settings((INITIAL_WINDOW_SIZE, 65_536)))
    assert_dead(peer, FLOW_CONTROL_ERROR)


def test_J06_a_body_longer_than_declared_is_not_sent() -> None:
    peer = Peer.ready()
    stream = peer.upload(length=5)
    assert peer.session.send_data(stream, memoryview(b"abc")) == 3
    with pytest.raises(LocalProtocolError, match="longer than declared: 1 bytes"):
        peer.session.send_data(stream, memoryview(b"def"))
    assert not stream.is_open
    assert [(sent.kind, sent.payload) for sent in peer.sent()[1:]] == [
        (DATA, b"abc"),
        (RST_STREAM, uint32(CANCEL)),
    ]
    assert_lives(peer)


def test_J06_a_body_shorter_than_declared_does_not_end() -> None:
    peer = Peer.ready()
    stream = peer.upload(length=5)
    peer.session.send_data(stream, memoryview(b"abc"))
    with pytest.raises(LocalProtocolError, match="2 bytes are missing"):
        peer.session.end_stream(stream)
    assert [(sent.kind, sent.payload) for sent in peer.sent()[1:]] == [
        (DATA, b"abc"),
        (RST_STREAM, uint32(CANCEL)),
    ]
    assert_lives(peer)


def test_an_open_window_is_no_news_for_a_stream_that_is_gone() -> None:
    peer = Peer.ready()
    stream = peer.upload()
    assert peer.session.send_data(stream, memoryview(bytes(65_536))) == 65_535
    peer.session.reset(stream)
    assert (
        peer.feed(window_update(0, 1), window_update(stream, 1), settings((INITIAL_WINDOW_SIZE, 100_000)))
        == []
    )


def test_nothing_follows_the_end_of_a_body() -> None:
    peer = Peer.ready()
    stream = peer.upload()
    peer.session.end_stream(stream)
    peer.session.end_stream(stream)
    assert [sent.kind for sent in peer.sent()] == [HEADERS, DATA]
    with pytest.raises(LocalProtocolError, match="ended"):
        peer.session.send_data(stream, memoryview(b"x"))


# --- responses -------------------------------------------------------------------------------------------------------


def test_a_response_with_body_and_trailers() -> None:
    peer = Peer.ready()
    stream = peer.open()
    assert (stream.head, stream.has_answer_begun, stream.take(0.0)) == (None, False, b"")
    assert peer.feed(peer.head(stream, (b"server", b"x"), (b"set-cookie", b"a"), (b"set-cookie", b"b"))) == [
        stream
    ]
    assert stream.head == (
        b"HTTP/2",
        200,
        b"",
        [(b"server", b"x"), (b"set-cookie", b"a"), (b"set-cookie", b"b")],
        False,
    )
    assert stream.has_answer_begun
    assert peer.feed(data(stream, b"ab"), data(stream, b"cd")) == [stream]
    assert stream.held == 4
    assert stream.take(0.0) == b"abcd"
    assert (stream.held, stream.take(0.0), stream.has_ended, stream.is_open) == (0, b"", False, True)
    assert peer.feed(data(stream, b"e"), peer.block(stream, (b"checksum", b"1"), ends=True)) == [stream]
    assert (stream.has_ended, stream.is_open, stream.held, stream.trailers) == (
        True,
        False,
        1,
        [(b"checksum", b"1")],
    )
    assert stream.take(0.0) == b"e"
    assert peer.session.is_idle


def test_interim_responses_come_before_the_final_one() -> None:
    peer = Peer.ready()
    stream = peer.upload()
    assert peer.feed(peer.head(stream, status=b"103")) == [stream]
    assert (stream.head, stream.interim_responses, stream.is_continued) == (None, 1, False)
    assert stream.has_answer_begun
    peer.feed(peer.head(stream, status=b"100"))
    assert stream.is_continued
    peer.feed(peer.head(stream, status=b"201", ends=True))
    assert stream.head is not None
    assert stream.head.status == 201


def test_too_many_interim_responses_end_their_stream() -> None:
    peer = Peer.ready()
    stream = peer.open()
    for _ in range(MAX_INTERIM_RESPONSES):
        peer.feed(peer.head(stream, status=b"103"))
    assert stream.failure is None
    peer.feed(peer.head(stream, status=b"103"))
    assert "interim" in failure_of(stream)
    assert_lives(peer)


def test_too_large_interim_responses_end_their_stream() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream, (b"link", b"x" * 15_000), status=b"103"))
    for _ in range(4):
        peer.feed(peer.head(stream, (b"link", b"x" * 15_000), status=b"103"))
    assert "interim" in failure_of(stream)
    assert_lives(peer)


STATUS = (b":status", b"200")


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(b"server", b"x")],
        [(b":status", b"abc")],
        [(b":status", b"20")],
        [(b":status", b"2000")],
        [(b":status", b"099")],
        [(b":status", b"\xb2\xb2\xb2")],
        [(b":status", b"")],
        [(b":status", b"101")],
        [STATUS, STATUS],
        [(b"server", b"x"), STATUS],
        [STATUS, (b":path", b"/")],
        [STATUS, (b"server", b"x"), (b":path", b"/")],
        [STATUS, (b"Server", b"x")],
        [STATUS, (b"", b"x")],
        [STATUS, (b"a b", b"x")],
        [STATUS, (b"a\r\nb", b"x")],
        [STATUS, (b"a\xff", b"x")],
        [STATUS, (b"a", b"x\r\ny: z")],
        [STATUS, (b"a", b"x\ny")],
        [STATUS, (b"a", b"x\0y")],
        [STATUS, (b"a", b" x")],
        [STATUS, (b"a", b"x\t")],
        [STATUS, (b"connection", b"close")],
        [STATUS, (b"proxy-connection", b"close")],
        [STATUS, (b"keep-alive", b"timeout=5")],
        [STATUS, (b"transfer-encoding", b"chunked")],
        [STATUS, (b"upgrade", b"h2c")],
        [STATUS, (b"te", b"trailers")],
        [STATUS, (b"content-length", b"")],
        [STATUS, (b"content-length", b"+5")],
        [STATUS, (b"content-length", b"5, 6")],
        [STATUS, (b"content-length", b"5,")],
        [STATUS, (b"content-length", b"\xb2")],
        [STATUS, (b"content-length", b"9" * 5_000)],
        [STATUS, (b"content-length", b"5"), (b"content-length", b"6")],
        [STATUS, *[(b"a", b"b")] * (MAX_FIELDS + 1)],
    ],
)
@pytest.mark.parametrize("interim", [False, True])
def test_B09_a_malformed_head_ends_its_stream_alone(fields: list[tuple[bytes, bytes]], interim: bool) -> None:
    if interim:
        fields = [(name, b"103" if (name, value) == STATUS else value) for name, value in fields]
    peer = Peer.ready()
    stream, other = peer.open(), peer.open()
    peer.session.output()
    assert peer.feed(peer.block(stream, *fields)) == [stream]
    assert failure_of(stream)
    assert (stream.head, stream.is_open, stream.is_refused, stream.code) == (
        None,
        False,
        False,
        PROTOCOL_ERROR,
    )
    assert peer.sent() == [Frame(RST_STREAM, 0, stream.id, uint32(PROTOCOL_ERROR))]
    peer.feed(data(stream, b"late", ends=True), peer.head(other, ends=True))
    assert other.has_ended
    assert stream.held == 0
    assert_lives(peer)


@pytest.mark.parametrize(
    "fields",
    [[(b"a", b"")], [(b"a", b"\x01\xff b")], [(b"content-length", b"3, 3")], [(b"content-length", b"3")] * 2],
)
def test_an_odd_head_is_taken_as_it_is(fields: list[tuple[bytes, bytes]]) -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream, *fields), data(stream, b"abc", ends=True))
    assert stream.failure is None
    assert stream.head is not None
    assert stream.head.headers == fields


@pytest.mark.parametrize(
    "fields", [[STATUS], [(b":path", b"/")], [(b"A", b"b")], [(b"connection", b"close")]]
)
def test_malformed_trailers_end_their_stream_alone(fields: list[tuple[bytes, bytes]]) -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream), peer.block(stream, *fields, ends=True))
    assert failure_of(stream)
    assert not stream.has_ended
    assert_lives(peer)


def test_a_second_head_ends_its_stream_alone() -> None:
    for status in (b"200", b"103"):
        peer = Peer.ready()
        stream = peer.open()
        peer.feed(peer.head(stream), peer.head(stream, status=status))
        assert "second head" in failure_of(stream)
        assert_lives(peer)


def test_an_interim_response_cannot_end_a_stream() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream, status=b"103", ends=True))
    assert "103" in failure_of(stream)
    assert_lives(peer)


def test_data_before_the_head_ends_its_stream_alone() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(data(stream, b"x"))
    assert "before the head" in failure_of(stream)
    assert_lives(peer)


@pytest.mark.parametrize("late", ["data", "fields"])
def test_what_comes_after_the_end_fails_the_stream(late: str) -> None:
    peer = Peer.ready()
    stream = peer.upload()
    peer.feed(peer.head(stream, ends=True))
    peer.session.output()
    peer.feed(data(stream, b"x") if late == "data" else peer.block(stream, (b"a", b"b"), ends=True))
    assert "after the end" in failure_of(stream)
    assert peer.sent()[0].kind == RST_STREAM
    assert_lives(peer)


@pytest.mark.parametrize(
    ("method", "status", "fields", "body", "is_fine"),
    [
        (b"GET", b"200", [(b"content-length", b"3")], b"abc", True),
        (b"GET", b"200", [(b"content-length", b"0")], b"", True),
        (b"GET", b"200", [(b"content-length", b"2")], b"abc", False),
        (b"GET", b"200", [(b"content-length", b"4")], b"abc", False),
        (b"GET", b"200", [(b"content-length", b"4")], b"", False),
        (b"HEAD", b"200", [(b"content-length", b"4")], b"", True),
        (b"HEAD", b"200", [(b"content-length", b"4")], b"abcd", False),
        (b"HEAD", b"200", [], b"x", False),
        (b"GET", b"304", [(b"content-length", b"4")], b"", True),
        (b"GET", b"304", [], b"x", False),
        (b"GET", b"204", [], b"", True),
        (b"GET", b"204", [], b"x", False),
    ],
)
@pytest.mark.parametrize("end", ["with data", "alone", "with trailers"])
def test_B08_a_body_has_the_length_that_was_declared(
    method: bytes, status: bytes, fields: list[tuple[bytes, bytes]], body: bytes, is_fine: bool, end: str
) -> None:
    peer = Peer.ready()
    stream, other = peer.open(request(method)), peer.open()
    peer.feed(peer.head(stream, *fields, status=status, ends=not body and end == "alone"))
    if body or end != "alone":
        peer.feed(data(stream, body, ends=end == "with data"))
        if end == "with trailers":
            peer.feed(peer.block(stream, (b"a", b"b"), ends=True))
        elif end == "alone":
            peer.feed(data(stream, ends=True))
    assert (stream.failure is None) is stream.has_ended is is_fine
    assert is_fine or "body" in failure_of(stream)
    peer.feed(peer.head(other, ends=True))
    assert other.has_ended
    assert_lives(peer)


def test_padding_and_priority_are_no_part_of_the_message() -> None:
    peer = Peer.ready()
    stream = peer.open()
    block = peer.encoder.encode([STATUS])
    flags = END_HEADERS | PADDED | WITH_PRIORITY
    peer.feed(
        frame(HEADERS, flags, stream.id, b"\x03" + bytes(5) + block + bytes(3)),
        data(stream, b"ab", padding=5),
    )
    peer.feed(data(stream, padding=0), data(stream, b"c", ends=True, padding=255))
    assert stream.take(0.0) == b"abc"
    assert stream.has_ended


def test_a_head_may_be_nearly_as_large_as_we_have_said() -> None:
    peer = Peer.ready()
    stream = peer.open()
    fields = [(b"a", b"x" * 1_000)] * 98
    assert sum(len(name) + len(value) + 32 for name, value in fields) < MAX_HEAD_BYTES
    peer.feed(peer.head(stream, *fields, ends=True))
    assert stream.head is not None
    assert stream.head.headers == fields


def test_a_head_in_many_frames() -> None:
    peer = Peer.ready()
    stream = peer.open()
    block = peer.encoder.encode([STATUS, (b"a", b"x" * 500)])
    peer.feed(frame(HEADERS, END_STREAM, stream.id, block[:10]))
    assert peer.feed(frame(CONTINUATION, 0, stream.id, block[10:20]), frame(CONTINUATION, 0, stream.id)) == []
    assert peer.feed(frame(CONTINUATION, END_HEADERS, stream.id, block[20:])) == [stream]
    assert stream.has_ended
    assert stream.head is not None
    assert stream.head.headers == [(b"a", b"x" * 500)]


# --- resets ----------------------------------------------------------------------------------------------------------


def test_B05_a_stream_that_is_given_up_is_reset_once() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream), data(stream, b"abc"))
    peer.session.output()
    peer.session.reset(stream)
    peer.session.reset(stream)
    assert peer.sent() == [Frame(RST_STREAM, 0, stream.id, uint32(CANCEL))]
    assert (stream.is_open, stream.held, stream.take(0.0), stream.failure) == (False, 0, b"", None)
    assert peer.session.is_idle
    assert (
        peer.feed(data(stream, b"late"), peer.block(stream, (b"a", b"b"), ends=True), reset(stream, NO_ERROR))
        == []
    )
    assert not peer.session.has_output
    assert_lives(peer)


@pytest.mark.parametrize("end", ["whole", "reset", "eof"])
def test_a_stream_that_is_closed_already_is_not_reset(end: str) -> None:
    peer = Peer.ready()
    stream = peer.open()
    if end == "whole":
        peer.feed(peer.head(stream, ends=True))
    elif end == "reset":
        peer.feed(reset(stream, CANCEL))
    else:
        peer.feed(b"")
    peer.session.output()
    peer.session.reset(stream)
    assert peer.session.output() == b""


def test_the_table_of_the_servers_fields_stays_right_when_streams_are_gone() -> None:
    peer = Peer.ready()
    gone, stream = peer.open(), peer.open()
    peer.session.reset(gone)
    peer.feed(peer.head(gone, (b"x-new", b"value")))  # puts the field into the table
    peer.feed(peer.head(stream, (b"x-new", b"value"), ends=True))  # and this takes it from there
    assert stream.head is not None
    assert stream.head.headers == [(b"x-new", b"value")]


def test_B03_a_refused_stream_may_be_sent_again() -> None:
    peer = Peer.ready()
    stream, other = peer.open(), peer.open()
    peer.feed(peer.head(other))
    peer.feed(reset(stream, REFUSED_STREAM), reset(other, REFUSED_STREAM))
    assert (stream.is_refused, stream.code) == (True, REFUSED_STREAM)
    assert not other.is_refused  # the answer had begun: whatever it says, it was processed
    assert "REFUSED_STREAM" in failure_of(other)
    assert_lives(peer)


@pytest.mark.parametrize(("code", "name"), [(NO_ERROR, "NO_ERROR"), (CANCEL, "CANCEL"), (99, "0x63")])
def test_B04_a_reset_in_the_midst_of_a_response_fails_the_stream(code: int, name: str) -> None:
    peer = Peer.ready()
    stream = peer.open()
    assert peer.feed(peer.head(stream), data(stream, b"half"), reset(stream, code)) == [stream]
    assert name in failure_of(stream)
    assert (stream.is_open, stream.has_ended, stream.is_refused, stream.code) == (False, False, False, code)
    assert stream.take(0.0) == b"half"
    assert_lives(peer)


@pytest.mark.parametrize("code", [NO_ERROR, CANCEL])
def test_B04_a_whole_response_stands_when_the_rest_of_the_request_is_not_wanted(code: int) -> None:
    peer = Peer.ready()
    stream = peer.upload(length=200_000)
    assert peer.session.send_data(stream, memoryview(bytes(200_000))) == 65_535
    peer.feed(peer.head(stream, status=b"413"), data(stream, b"too large", ends=True))
    assert not stream.wants_body
    assert stream.is_open
    assert peer.feed(reset(stream, code)) == [stream]
    peer.session.output()
    assert (stream.failure, stream.has_ended, stream.is_open, stream.wants_body) == (None, True, False, False)
    assert peer.session.send_data(stream, memoryview(bytes(100))) == 100
    peer.session.end_stream(stream)
    assert peer.session.output() == b""
    assert stream.take(0.0) == b"too large"
    assert_lives(peer)


def test_a_body_that_was_cut_off_by_an_early_response_does_not_look_whole() -> None:
    peer = Peer.ready()
    stream = peer.upload()
    peer.session.send_data(stream, memoryview(b"half"))
    peer.feed(peer.head(stream, ends=True))
    peer.session.output()
    assert peer.session.send_data(stream, memoryview(b"rest")) == 4
    peer.session.end_stream(stream)
    assert peer.sent() == [Frame(RST_STREAM, 0, stream.id, uint32(CANCEL))]
    assert stream.failure is None


def test_a_body_that_was_sent_whole_ends_after_an_early_response() -> None:
    peer = Peer.ready()
    stream = peer.upload(length=4)
    peer.session.send_data(stream, memoryview(b"full"))
    peer.feed(peer.head(stream, ends=True))
    peer.session.output()
    peer.session.end_stream(stream)
    assert peer.sent() == [Frame(DATA, END_STREAM, stream.id, b"")]
    assert not stream.is_open


def test_ten_thousand_streams_are_opened_and_reset_without_a_trace() -> None:
    peer = Peer.ready()
    framing = request()

    def run(count: int) -> None:
        for _ in range(count):
            stream = peer.open(framing)
            peer.session.reset(stream)
            peer.session.output()
            peer.feed(peer.head(stream), data(stream, bytes(100)))

    run(1_000)
    gc.collect()
    before = len(gc.get_objects())
    run(10_000)
    gc.collect()
    assert len(gc.get_objects()) - before < 200
    tracemalloc.start()
    try:
        run(1_000)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()
    assert peer.session.opened == 12_000
    assert peer.session.open_streams == 0
    assert peer.session._window_left > 0.9 * CONNECTION_WINDOW
    assert_lives(peer)


# --- GOAWAY and the end of the connection ----------------------------------------------------------------------------


def test_B01_streams_up_to_the_last_one_go_on() -> None:
    peer = Peer.ready()
    stream, later = peer.open(), peer.open()
    peer.feed(peer.head(stream))
    assert peer.feed(goaway(stream.id)) == [later]
    assert (later.is_refused, later.is_open, stream.is_refused, stream.failure) == (True, False, False, None)
    assert "GOAWAY, NO_ERROR" in failure_of(later)
    assert (peer.session.is_draining, peer.session.capacity, peer.session.can_open) == (True, 0, False)
    assert peer.session.failure is None
    with pytest.raises(ConnectionNotAvailable):
        peer.open()
    peer.feed(ping(), data(stream, b"all of it", ends=True))
    assert stream.take(0.0) == b"all of it"
    assert stream.has_ended
    assert peer.session.is_idle


def test_B02_streams_that_were_never_looked_at_are_refused() -> None:
    peer = Peer.ready()
    streams = [peer.open() for _ in range(5)]
    assert peer.feed(goaway(0, ENHANCE_YOUR_CALM, b"too many\n" + bytes(500))) == streams
    assert all(stream.is_refused for stream in streams)
    assert "ENHANCE_YOUR_CALM, b'too many\\n" in failure_of(streams[0])
    assert len(failure_of(streams[0])) < 1_000


def test_a_second_goaway_can_only_refuse_more() -> None:
    peer = Peer.ready()
    first, second, third = peer.open(), peer.open(), peer.open()
    assert peer.feed(goaway(2**31 - 1)) == []
    assert peer.feed(goaway(second.id)) == [third]
    assert peer.feed(goaway(2**31 - 1)) == []
    assert peer.feed(goaway(first.id)) == [second]
    peer.feed(peer.head(first, ends=True))
    assert first.has_ended


def test_the_end_of_the_connection_fails_what_is_not_whole() -> None:
    peer = Peer.ready()
    half, whole, early = peer.open(), peer.open(), peer.upload()
    peer.feed(peer.head(half), data(half, b"half"))
    peer.feed(peer.head(whole), data(whole, b"whole", ends=True), peer.head(early, ends=True))
    assert peer.feed(b"") == [half, early]
    assert failure_of(half) == failure_of(peer.session) == "the server ended the connection"
    assert half.failure is not peer.session.failure
    assert (whole.failure, early.failure) == (None, None)
    assert whole.take(0.0) == b"whole"
    assert half.take(0.0) == b"half"
    assert not half.is_refused
    assert peer.feed(b"") == []
    assert peer.feed(ping()) == []


def test_the_end_of_the_connection_names_the_goaway_before() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(goaway(stream.id, PROTOCOL_ERROR, b"no"))
    peer.feed(b"")
    assert failure_of(stream) == "the server ended the connection after GOAWAY, PROTOCOL_ERROR, b'no'"


def test_our_own_farewell() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.session.output()
    peer.session.goaway()
    peer.session.goaway()
    assert peer.sent() == [Frame(GOAWAY, 0, 0, bytes(8))]
    assert (peer.session.is_draining, peer.session.capacity) == (True, 0)
    peer.feed(peer.head(stream, ends=True))
    assert stream.has_ended


def test_B21_the_last_stream_number_is_used_and_then_the_connection_drains() -> None:
    peer = Peer.ready()
    peer.session._next_id = 2**31 - 1
    assert peer.session.can_open
    stream = peer.open()
    assert (stream.id, peer.session.is_draining, peer.session.capacity) == (2**31 - 1, True, 0)
    peer.feed(peer.head(stream, ends=True))
    assert stream.has_ended


# --- capacity --------------------------------------------------------------------------------------------------------


def test_B10_a_hundred_streams_until_the_server_names_another_number() -> None:
    peer = Peer()
    assert peer.session.capacity == PRESUMED_STREAMS == 100
    for _ in range(100):
        peer.open()
    assert (peer.session.can_open, peer.session.open_streams) == (False, 100)
    peer.feed(settings())
    assert peer.session.capacity == 100
    peer.feed(settings((MAX_CONCURRENT_STREAMS, 2**32 - 1)))
    assert peer.session.capacity == 2**32 - 1
    assert peer.session.can_open


def test_B11_the_number_of_streams_goes_down_and_up() -> None:
    peer = Peer(settings((MAX_CONCURRENT_STREAMS, 0)))
    assert (peer.session.capacity, peer.session.can_open) == (0, False)
    assert not peer.session.is_draining
    peer.feed(settings((MAX_CONCURRENT_STREAMS, 3)))
    streams = [peer.open() for _ in range(3)]
    peer.feed(settings((MAX_CONCURRENT_STREAMS, 1)))
    assert (peer.session.capacity, peer.session.open_streams) == (1, 3)
    for stream in streams:
        assert not peer.session.can_open
        peer.feed(peer.head(stream, ends=True))
        assert stream.has_ended
    peer.open()
    assert not peer.session.can_open
    for number in range(1_000):
        peer.now += 1
        peer.feed(settings((MAX_CONCURRENT_STREAMS, number)))
    assert (peer.session.capacity, peer.session.open_streams) == (999, 1)


# --- windows for responses -------------------------------------------------------------------------------------------


def credits(frames: list[Frame], stream: HTTP2Stream | None) -> int:
    number = 0 if stream is None else stream.id
    return sum(sent.number for sent in frames if sent.kind == WINDOW_UPDATE and sent.stream == number)


def chunks(stream: HTTP2Stream, size: int, *, padding: int | None = None) -> list[bytes]:
    """DATA frames of so many bytes."""
    return [
        data(stream, bytes(min(16_000, size - start)), padding=padding) for start in range(0, size, 16_000)
    ]


def test_B06_abandoned_responses_take_nothing_from_the_others() -> None:
    peer = Peer.ready()
    server_window = CONNECTION_WINDOW
    for _ in range(400):
        stream = peer.open()
        peer.feed(peer.head(stream))
        peer.session.reset(stream)
        peer.feed(*chunks(stream, 60_000))
        server_window += credits(peer.sent(), None) - 60_000
        assert server_window > 0.9 * CONNECTION_WINDOW
    assert server_window == peer.session._window_left
    assert_lives(peer)


def test_B07_padding_is_given_back_in_both_windows() -> None:
    peer = Peer.ready()
    stream, gone = peer.open(), peer.open()
    peer.session.reset(gone)
    peer.feed(peer.head(stream))
    server_stream, server_connection = STREAM_WINDOW, CONNECTION_WINDOW
    peer.session.output()
    for _ in range(5_000):
        peer.feed(data(stream, b"x", padding=250), data(gone, bytes(600), padding=250))
        stream.take(0.0)
        sent = peer.sent()
        server_stream += credits(sent, stream) - 252
        server_connection += credits(sent, None) - 252 - 851
        assert server_stream >= STREAM_WINDOW // 2 - 252
        assert server_connection > 0.9 * CONNECTION_WINDOW
    assert (server_stream, server_connection) == (stream._window_left, peer.session._window_left)
    assert peer.session.failure is None


def test_a_slow_reader_is_bounded_by_its_window_and_slows_nobody() -> None:
    peer = Peer.ready()
    slow, quick = peer.open(), peer.open()
    peer.feed(peer.head(slow), peer.head(quick))
    peer.session.output()
    peer.feed(*chunks(slow, STREAM_WINDOW))
    server_window = STREAM_WINDOW
    for _ in range(200):
        peer.now += 10  # no growth
        peer.feed(*chunks(quick, 100_000))
        assert len(quick.take(peer.now)) == 100_000
        sent = peer.sent()
        assert credits(sent, slow) == 0
        server_window += credits(sent, quick) - 100_000
        assert server_window >= 100_000
    assert slow.held == STREAM_WINDOW
    assert len(slow.take(peer.now)) == STREAM_WINDOW
    assert credits(peer.sent(), slow) == STREAM_WINDOW


def test_more_than_a_streams_window_ends_the_stream_alone() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream), *chunks(stream, STREAM_WINDOW))
    peer.session.output()
    peer.feed(data(stream, b"x"))
    assert "window" in failure_of(stream)
    assert peer.sent() == [Frame(RST_STREAM, 0, stream.id, uint32(FLOW_CONTROL_ERROR))]
    assert_lives(peer)


def test_more_than_the_connections_window_ends_the_connection() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.session.reset(stream)
    frames = b"".join(chunks(stream, CONNECTION_WINDOW))
    peer.feed(frames + data(stream, b"x"))  # in one piece: nothing could be given back in between
    assert "connection's window" in assert_dead(peer, FLOW_CONTROL_ERROR)


def test_until_the_server_has_our_settings_the_old_window_holds() -> None:
    peer = Peer(settings())
    stream = peer.open()
    peer.feed(peer.head(stream), *chunks(stream, 65_535))
    peer.session.output()
    assert len(stream.take(0.0)) == 65_535
    assert credits(peer.sent(), stream) == 65_535
    peer.feed(SETTINGS_ACK)
    assert stream._window == stream._window_left == STREAM_WINDOW
    peer.feed(*chunks(stream, STREAM_WINDOW))
    assert stream.failure is None


def test_a_window_grows_while_it_is_what_slows_the_stream() -> None:
    peer = Peer(settings())
    peer.now = 0.1
    peer.feed(SETTINGS_ACK)  # a round trip takes 0.1 s
    stream = peer.open()
    peer.feed(peer.head(stream))
    peer.session.output()
    size = STREAM_WINDOW
    for _ in range(20):
        peer.now += 0.1
        peer.feed(*chunks(stream, stream._window_left))
        stream.take(peer.now)
        assert stream._window in (size, 2 * size)
        size = stream._window
        assert stream._window_left == size
        peer.session.output()
    assert size == MAX_STREAM_WINDOW
    later = peer.open()
    assert later._window == MAX_STREAM_WINDOW
    sent = peer.sent()
    assert [frame.kind for frame in sent] == [HEADERS, WINDOW_UPDATE]
    assert credits(sent, later) == MAX_STREAM_WINDOW - STREAM_WINDOW


def test_a_window_does_not_grow_for_a_slow_reader() -> None:
    peer = Peer(settings())
    peer.now = 0.1
    peer.feed(SETTINGS_ACK)
    stream = peer.open()
    peer.feed(peer.head(stream))
    for _ in range(20):
        peer.now += 0.3
        peer.feed(*chunks(stream, stream._window_left))
        stream.take(peer.now)
    assert stream._window == STREAM_WINDOW
    assert peer.open()._window == STREAM_WINDOW


def test_no_window_is_opened_for_a_response_that_is_whole() -> None:
    peer = Peer.ready()
    stream = peer.upload()
    peer.feed(peer.head(stream), *chunks(stream, 200_000), data(stream, ends=True))
    peer.session.output()
    assert len(stream.take(0.0)) == 200_000
    assert credits(peer.sent(), stream) == 0


def test_K05_tiny_frames_are_held_in_little_memory() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream))
    tiny = data(stream, b"x") * 1_000
    tracemalloc.start()
    try:
        for _ in range(50):
            peer.feed(tiny)
        assert tracemalloc.get_traced_memory()[0] < 2 * 50_000
    finally:
        tracemalloc.stop()
    assert stream.take(0.0) == b"x" * 50_000


# --- floods ----------------------------------------------------------------------------------------------------------


def flood(peer: Peer, piece: bytes, *, at_most: int, code: int = ENHANCE_YOUR_CALM) -> None:
    """Send it again and again, until the connection is over; nothing is ever written."""
    for _ in range(at_most):
        peer.feed(piece)
    assert peer.session.failure is None
    backlog = peer.session._unsent_control
    assert backlog < 2 * MAX_UNSENT
    peer.feed(piece)
    assert_dead(peer, code)


FLOODS = {
    "PING": ping(),
    "answers to PINGs": ping(ack=True),
    "SETTINGS": settings(),
    "SETTINGS with values": settings((INITIAL_WINDOW_SIZE, 10)),
    "answers to SETTINGS": SETTINGS_ACK,
    "PRIORITY": frame(PRIORITY, 0, 1, bytes(5)),
    "unknown frames": frame(0x77, 0xFF, 1, b"abc"),
    "ALTSVC": frame(0xA, 0, 0, b"\0\0x"),
    "WINDOW_UPDATE": window_update(0, 1),
    "WINDOW_UPDATE of a stream": window_update(1, 1),
    "GOAWAY": goaway(2**31 - 1),
    "resets of a closed stream": reset(3, CANCEL),
    "small DATA for a closed stream": data(3, b"x"),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_B14_B15_frames_that_further_nothing_are_counted(kind: str) -> None:
    peer = Peer.ready()
    peer.open()
    peer.session.reset(peer.open())
    peer.session._patience._idle_frames = 0
    flood(peer, FLOODS[kind], at_most=MAX_IDLE_FRAMES)


def test_B14_fields_for_a_closed_stream_are_counted() -> None:
    peer = Peer.ready()
    gone = peer.open()
    peer.session.reset(gone)
    peer.session._patience._idle_frames = 0
    flood(peer, peer.head(gone), at_most=MAX_IDLE_FRAMES)


@pytest.mark.parametrize("padding", [None, 0, 100])
def test_B13_empty_data_is_counted(padding: int | None) -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream))
    flood(peer, data(stream, padding=padding), at_most=MAX_EMPTY_DATA)


def test_resets_are_counted() -> None:
    peer = Peer(settings((MAX_CONCURRENT_STREAMS, 1_000)))
    for stream in [peer.open() for _ in range(MAX_RESETS)]:
        peer.feed(reset(stream, REFUSED_STREAM))
        assert stream.is_refused
    assert peer.session.failure is None
    peer.feed(reset(peer.open(), REFUSED_STREAM))
    assert_dead(peer, ENHANCE_YOUR_CALM)


def test_what_somebody_waits_for_clears_the_counts() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream))
    for _ in range(20):
        peer.feed(*[ping()] * 900, *[data(stream)] * 90, data(stream, b"x"))
        peer.session.output()
    assert_lives(peer)


def test_what_was_sent_lets_the_server_acknowledge_it() -> None:
    peer = Peer(settings((INITIAL_WINDOW_SIZE, 1 << 28)), window_update(0, 1 << 28))
    stream = peer.upload()
    piece = memoryview(bytes(MAX_SEND_BYTES))
    for _ in range(1_000):
        assert peer.session.send_data(stream, piece) == MAX_SEND_BYTES
        peer.session.output()
    for _ in range(1_000 * 4):
        peer.feed(window_update(stream, 16_384), window_update(0, 16_384))
    assert peer.session.failure is None


def test_a_window_that_opens_byte_by_byte_is_a_flood() -> None:
    peer = Peer(settings((INITIAL_WINDOW_SIZE, 0)))
    stream = peer.upload()
    body = memoryview(bytes(100_000))
    for _ in range(2_000):
        peer.feed(window_update(stream, 1))
        peer.session.send_data(stream, body)
        peer.session.output()
    assert peer.session.failure is not None
    assert "further no response" in failure_of(stream)


def test_frames_now_and_then_are_no_flood() -> None:
    peer = Peer.ready()
    for _ in range(5_000):
        peer.now += 10
        peer.feed(ping())
        assert peer.session.output()
    assert_lives(peer)


def test_B14_a_server_that_never_reads_our_answers_is_left() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream))
    asking = ping() * 900 + data(stream, b"x")
    for _ in range(MAX_UNSENT // (17 * 900)):
        peer.feed(asking)
        assert peer.session.failure is None
    peer.feed(asking)
    assert "does not read" in assert_dead(peer, ENHANCE_YOUR_CALM)


# --- header compression ----------------------------------------------------------------------------------------------


def test_B16_a_flood_of_continuations_is_cut_off() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(frame(HEADERS, 0, stream.id, b""))
    flood(peer, frame(CONTINUATION, 0, stream.id, b""), at_most=64)


def test_B16_a_block_that_is_too_large_is_cut_off() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(frame(HEADERS, 0, stream.id, bytes(MAX_FRAME_BYTES)))
    flood(peer, frame(CONTINUATION, 0, stream.id, bytes(MAX_FRAME_BYTES)), at_most=5)


@pytest.mark.parametrize("is_gone", [False, True])
def test_B16_a_small_block_that_unfolds_to_a_large_one_is_cut_off(is_gone: bool) -> None:
    peer = Peer.ready()
    stream = peer.open()
    if is_gone:
        peer.session.reset(stream)
    bomb = hpack.Encoder().encode([STATUS, (b"a", b"x" * 4_000)]) + b"\xbe" * 16_000  # 64 MB
    tracemalloc.start()
    try:
        peer.feed(frame(HEADERS, END_HEADERS, stream.id, bomb[:MAX_FRAME_BYTES]))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert_dead(peer, COMPRESSION_ERROR)


@pytest.mark.parametrize("update", [b"\x20", b"\x3f\xe1\x1f"])
def test_B16_a_flood_of_table_updates_is_cut_off(update: bytes) -> None:
    peer = Peer.ready()
    peer.feed(
        frame(HEADERS, END_HEADERS | END_STREAM, peer.open().id, b"\x20\x3f\xe1\x1f\x88")
    )  # two are fine
    assert peer.session.failure is None
    peer.feed(frame(HEADERS, END_HEADERS, peer.open().id, update * 3 + b"\x88"))
    assert "table" in assert_dead(peer, COMPRESSION_ERROR)


@pytest.mark.parametrize(
    "block", [b"\xff\xff\xff\xff\xff\xff\xff", b"\x80", b"\xc8", b"\x40\x05ab", b"\x3f\xff\xff\x7f", b"\x40"]
)
def test_B16_a_block_that_cannot_be_decoded_ends_the_connection(block: bytes) -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(frame(HEADERS, END_HEADERS, stream.id, block))
    assert "cannot be decoded" in assert_dead(peer, COMPRESSION_ERROR)
    assert failure_of(stream) == failure_of(peer.session)


def test_B18_our_table_stays_small_whatever_the_server_offers() -> None:
    peer = Peer(settings((HEADER_TABLE_SIZE, 2**32 - 1)))
    for number in range(1_000):
        stream = peer.open(request(headers=[(b"Host", b"a"), (b"x-%d" % number, b"y" * 1_000)]))
        peer.session.reset(stream)
    assert peer.session._h2.encoder.header_table_size <= 65_536
    assert (
        sum(
            len(name) + len(value) + 32
            for name, value in peer.session._h2.encoder.header_table.dynamic_entries
        )
        <= 65_536
    )


def test_B18_a_table_that_the_server_makes_smaller_and_larger_stays_in_step() -> None:
    peer = Peer.ready()
    peer.fields(_opened(peer))
    for sizes in ([0], [4096], [0, 4096], [0, 4096, 4096, 1 << 20], [100, 0, 50]):
        for size in sizes:
            peer.feed(settings((HEADER_TABLE_SIZE, size)))
        peer.decoder.max_allowed_table_size = sizes[-1]
        fields = peer.fields(_opened(peer))
        assert (b"x-some", b"value") in fields
        assert peer.decoder.header_table_size <= sizes[-1]


def test_B18_every_change_of_the_table_is_announced() -> None:
    for sizes, announced in (
        ([0, 4096, 4096], b"\x20\x3f\xe1\x1f"),
        ([0, 0], b"\x20"),
        ([9, 5, 7], b"\x25\x27"),
    ):
        peer = Peer.ready()
        _opened(peer)
        for size in sizes:
            peer.feed(settings((HEADER_TABLE_SIZE, size)))
        payload = _opened(peer).payload
        assert payload.startswith(announced)
        assert payload[len(announced)] & 0xE0 != 0x20


def _opened(peer: Peer) -> Frame:
    peer.open(request(headers=[(b"Host", b"a"), (b"X-Some", b"value")]))
    return peer.sent()[-1]


def test_settings_that_nobody_knows_are_not_kept() -> None:
    peer = Peer.ready()
    for start in range(8, 65_000, 1_000):
        peer.feed(settings(*((number, number) for number in range(start, start + 1_000))))
    assert len(peer.session._h2.remote_settings) < 10
    assert_lives(peer)


# --- faults of the connection ----------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[bytes, int]] = {
    "B17 a push": (frame(PUSH_PROMISE, END_HEADERS, 1, uint32(2) + b"\x82"), PROTOCOL_ERROR),
    "B17 HEADERS on an even stream": (frame(HEADERS, END_HEADERS, 2, b"\x88"), PROTOCOL_ERROR),
    "HEADERS on a stream to come": (frame(HEADERS, END_HEADERS, 99, b"\x88"), PROTOCOL_ERROR),
    "DATA on a stream to come": (data(99, b"x"), PROTOCOL_ERROR),
    "a reset of a stream to come": (reset(99, CANCEL), PROTOCOL_ERROR),
    "a window of a stream to come": (window_update(99, 1), PROTOCOL_ERROR),
    "B19 a frame that is too large": (frame(DATA, 0, 1, bytes(MAX_FRAME_BYTES + 1)), FRAME_SIZE_ERROR),
    "B19 its header alone": (frame(0x77, 0, 1, bytes(MAX_FRAME_BYTES + 1))[:9], FRAME_SIZE_ERROR),
    "B19 the largest possible": (b"\xff\xff\xff" + bytes(6), FRAME_SIZE_ERROR),
    "B19 short SETTINGS": (frame(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
    "B19 an answer to SETTINGS with a payload": (frame(SETTINGS, ACK, 0, bytes(6)), FRAME_SIZE_ERROR),
    "B19 a short PING": (frame(PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "B19 a long PING": (frame(PING, ACK, 0, bytes(9)), FRAME_SIZE_ERROR),
    "B19 a short reset": (frame(RST_STREAM, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
    "B19 a short window": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
    "B19 a short GOAWAY": (frame(GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
    "B19 DATA on no stream": (data(0, b"x"), PROTOCOL_ERROR),
    "B19 HEADERS on no stream": (frame(HEADERS, END_HEADERS, 0, b"\x88"), PROTOCOL_ERROR),
    "B19 PRIORITY on no stream": (frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
    "B19 a reset of no stream": (reset(0, CANCEL), PROTOCOL_ERROR),
    "B19 a push on no stream": (frame(PUSH_PROMISE, END_HEADERS, 0, bytes(4)), PROTOCOL_ERROR),
    "B19 CONTINUATION on no stream": (frame(CONTINUATION, END_HEADERS, 0), PROTOCOL_ERROR),
    "B19 SETTINGS on a stream": (frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
    "B19 a PING on a stream": (frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "B19 GOAWAY on a stream": (frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
    "CONTINUATION of nothing": (frame(CONTINUATION, END_HEADERS, 1, b"\x88"), PROTOCOL_ERROR),
    "DATA inside a block": (frame(HEADERS, 0, 1, b"\x88") + data(1, b"x"), PROTOCOL_ERROR),
    "a PING inside a block": (frame(HEADERS, 0, 1, b"\x88") + ping(), PROTOCOL_ERROR),
    "HEADERS inside a block": (frame(HEADERS, 0, 1, b"\x88") + frame(HEADERS, 4, 1, b"\x88"), PROTOCOL_ERROR),
    "CONTINUATION of another": (frame(HEADERS, 0, 1) + frame(CONTINUATION, 4, 3, b"\x88"), PROTOCOL_ERROR),
    "padding of nothing": (frame(DATA, PADDED, 1), PROTOCOL_ERROR),
    "too much padding": (frame(DATA, PADDED, 1, b"\x03ab"), PROTOCOL_ERROR),
    "too much padding of fields": (frame(HEADERS, PADDED | END_HEADERS, 1, b"\x02\x88"), PROTOCOL_ERROR),
    "priority without room": (frame(HEADERS, WITH_PRIORITY | END_HEADERS, 1, bytes(4)), FRAME_SIZE_ERROR),
    "a frame size below the least": (settings((MAX_FRAME_SIZE, 16_383)), PROTOCOL_ERROR),
    "a frame size above the most": (settings((MAX_FRAME_SIZE, 1 << 24)), PROTOCOL_ERROR),
    "a window above the most": (settings((INITIAL_WINDOW_SIZE, 1 << 31)), FLOW_CONTROL_ERROR),
    "push that is neither on nor off": (settings((2, 2)), PROTOCOL_ERROR),
}


@pytest.mark.parametrize("step", [1, 10_000_000])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_connection_ends_it_with_its_code(fault: str, step: int) -> None:
    peer = Peer.ready()
    stream, other = peer.open(), peer.open()
    peer.session.output()
    piece, code = FAULTS[fault]
    news: list[HTTP2Stream] = []
    for start in range(0, len(piece), step):
        news += peer.feed(piece[start : start + step])
    assert news == [stream, other]
    message = assert_dead(peer, code)
    assert failure_of(stream) == failure_of(other) == message
    assert "Error" not in message
    assert stream.failure is not other.failure
    assert peer.feed(ping()) == []
    with pytest.raises(ConnectionNotAvailable):
        peer.open()


# --- PING ------------------------------------------------------------------------------------------------------------


def test_pings_are_counted_until_they_are_answered() -> None:
    peer = Peer.ready()
    peer.session.ping(1.0)
    peer.session.ping(2.0)
    first, second = peer.sent()
    assert {first.kind, second.kind} == {PING}
    assert first.payload != second.payload
    assert (peer.session.pings_unanswered, peer.session.ping_sent_at) == (2, 1.0)
    peer.now = 3.0
    peer.feed(ping(b"nonsense", ack=True))
    assert peer.session.pings_unanswered == 2
    peer.feed(ping(first.payload, ack=True))
    assert (peer.session.pings_unanswered, peer.session.ping_sent_at) == (1, 2.0)
    peer.session.ping(4.0)
    peer.feed(ping(peer.sent()[-1].payload, ack=True))  # the one before was left out
    assert (peer.session.pings_unanswered, peer.session.ping_sent_at) == (0, None)
    peer.feed(b"")
    peer.session.output()
    peer.session.ping(5.0)
    assert not peer.session.has_output


def test_knows_when_bytes_came_last() -> None:
    peer = Peer.ready()
    before = peer.session.bytes_received
    peer.now = 7.0
    peer.feed(ping())
    assert (peer.session.last_received, peer.session.bytes_received) == (7.0, before + 17)


# --- any bytes -------------------------------------------------------------------------------------------------------

FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]),
    st.sampled_from([0, 1, 2, 3, 5, 7, 99, 2**31 - 1, 2**31 + 1]),
    st.one_of(
        st.binary(max_size=30),
        st.sampled_from(
            [
                b"\x88",
                b"\x88\x5c\x011",
                uint32(1),
                uint32(0),
                uint32(2**31 - 1),
                bytes(8),
                struct.pack(">HI", INITIAL_WINDOW_SIZE, 0),
                struct.pack(">HI", MAX_CONCURRENT_STREAMS, 1),
                struct.pack(">HI", HEADER_TABLE_SIZE, 0),
                b"\x05" + bytes(10),
            ]
        ),
    ),
)
ANY_BYTES = st.one_of(
    st.binary(max_size=200),
    st.lists(st.one_of(FRAMES, FRAMES, FRAMES, st.binary(max_size=12)), max_size=12).map(b"".join),
)


def observe(peer: Peer, streams: list[HTTP2Stream]) -> object:
    return (
        peer.session.output(),
        str(peer.session.failure).split("begins with", maxsplit=1)[0],  # as much of it as came at once
        peer.session.capacity,
        [
            (
                stream.head,
                stream.trailers,
                stream.take(0.0),
                stream.has_ended,
                str(stream.failure).split("begins with", maxsplit=1)[0],
                stream.is_refused,
            )
            for stream in streams
        ],
    )


@given(ANY_BYTES, st.lists(st.integers(0, 200), max_size=6), st.booleans())
def test_any_bytes_in_any_pieces_mean_the_same_and_raise_nothing(
    received: bytes, cuts: list[int], greets: bool
) -> None:
    results = []
    for pieces in ([0, *sorted(cuts), len(received)], [0, len(received)]):
        peer = Peer.ready() if greets else Peer()
        streams = [peer.open(), peer.upload(), peer.upload(length=9), peer.open(request(b"HEAD"))]
        for start, stop in itertools.pairwise(pieces):
            if received[start:stop]:
                peer.feed(received[start:stop])
        for stream in streams:
            if stream.failure is None and stream.is_open:
                assert peer.session._streams[stream.id] is stream
            assert stream.is_open or stream.failure is not None or stream.has_ended
        message = str(peer.session.failure)
        assert "Error(" not in message  # nothing but what was foreseen
        results.append(observe(peer, streams))
    assert results[0] == results[1]


@given(st.integers(0, 200), st.binary(min_size=1, max_size=3), st.booleans())
def test_a_flipped_byte_ends_in_a_clean_state(place: int, noise: bytes, cut: bool) -> None:
    peer = Peer.ready()
    streams = [peer.open(), peer.open()]
    good = b"".join(
        [
            peer.head(1, (b"content-length", b"5"), (b"server", b"x")),
            peer.head(3, (b"server", b"x")),
            data(1, b"hello", ends=True),
            settings((MAX_CONCURRENT_STREAMS, 5)),
            data(3, b"world", padding=3),
            peer.block(3, (b"checksum", b"1"), ends=True),
        ]
    )
    place %= len(good)
    peer.feed(good[:place] + noise + good[place + (0 if cut else len(noise)) :])
    peer.feed(b"")
    for stream in streams:
        assert not stream.is_open
        assert stream.has_ended or stream.failure is not None
    assert "Error(" not in failure_of(peer.session)


# --- against another implementation ----------------------------------------------------------------------------------


def test_talks_to_h2() -> None:
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    server.initiate_connection()
    session = HTTP2Session(0.0)
    stream = session.open_stream(request(b"POST", length=300_000), b"https", ends=False, now=0.0)
    body, sent = memoryview(bytes(range(200)) * 1_500), 0
    received = b""
    for _ in range(100):
        sent += session.send_data(stream, body[sent:])
        if sent == len(body):
            session.end_stream(stream)
        for event in server.receive_data(session.output()):
            if isinstance(event, h2.events.DataReceived):
                received += event.data
                server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                server.send_headers(event.stream_id, [(b":status", b"200"), (b"content-length", b"3")])
                server.send_data(event.stream_id, b"yes", end_stream=True)
        session.receive(server.data_to_send(), 0.0)
        if stream.has_ended:
            break
    assert received == body
    assert stream.take(0.0) == b"yes"
    assert session.is_idle


def test_says_what_it_is() -> None:
    peer = Peer.ready()
    stream = peer.open()
    peer.feed(peer.head(stream), data(stream, b"abc"))
    assert repr(peer.session) == "<HTTP2Session open, 1 of 100 streams, 1 so far>"
    assert repr(stream) == "<HTTP2Stream 1, open, 200, 3 bytes, 3 held>"


def test_a_block_that_came_before_is_read_anew_once_the_table_has_changed() -> None:
    peer = Peer.ready()
    fields = [(b":status", b"200"), (b"x-a", b"1")]
    blocks = []
    for extra in ([], [], [(b"x-b", b"2")], []):
        stream = peer.open()
        peer.feed(peer.block(stream, *fields, *extra, ends=True))
        assert stream.head is not None
        blocks.append(stream.head.headers)
    assert blocks == [fields[1:], fields[1:], [*fields[1:], (b"x-b", b"2")], fields[1:]]
    stream = peer.open()
    # The first entry of the table was x-a when this block was known; now it is x-b.
    peer.feed(frame(1, 0x5, stream.id, b"\x88\xbe"))
    assert stream.head is not None
    assert stream.head.headers == [(b"x-b", b"2")]
