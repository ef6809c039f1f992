"""What an HTTP/1.1 connection makes of the bytes that it is fed, however they are cut: no I/O anywhere."""

from __future__ import annotations

import itertools
import re
import time
import tracemalloc
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import LocalProtocolError, RemoteProtocolError
from lamina_pool._http11 import (
    MAX_CHUNK_OVERHEAD,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_INTERIM_BYTES,
    MAX_INTERIM_RESPONSES,
    BodyData,
    EndOfResponse,
    HTTP11Session,
    InterimResponse,
    ResponseHead,
)
from pool_catalogue import BIG, CATALOGUE, CLOSE, CONNECT, GET, HEAD, TWO, UPGRADE, Row, Sent

if TYPE_CHECKING:
    from collections.abc import Iterable

HOST = (b"Host", b"a.test")


@dataclass
class Answer:
    """What came of the bytes."""

    interim: list[int] = field(default_factory=list)
    head: ResponseHead | None = None
    body: bytes = b""
    trailers: list[tuple[bytes, bytes]] | None = None
    failed: bool = False
    reusable: bool = False
    message: str = field(default="", compare=False)
    left_over: bytes = field(default=b"", compare=False)

    @property
    def status(self) -> int | None:
        return None if self.head is None else self.head.status


def send(session: HTTP11Session, request: Sent) -> None:
    session.send_head(request.method, request.target, [HOST, *request.headers])
    if request.body:
        session.send_body(request.body)
    session.send_end()


def play(pieces: Iterable[bytes], request: Sent = GET, *, session: HTTP11Session | None = None) -> Answer:
    """Feed the pieces; `b""` is the end of the stream. Stops where a connection would: at the end, or an error."""
    session = session or HTTP11Session()
    send(session, request)
    answer = Answer()
    try:
        for piece in pieces:
            session.receive(piece)
            if answer.trailers is not None:
                continue  # where it ended a connection reads no further; the rest is found when it is used again
            while (event := session.next_event()) is not None:
                if isinstance(event, InterimResponse):
                    assert answer.head is None
                    answer.interim.append(event.status)
                elif isinstance(event, ResponseHead):
                    assert answer.head is None
                    answer.head = event
                elif isinstance(event, BodyData):
                    assert event.data
                    answer.body += event.data
                else:
                    assert isinstance(event, EndOfResponse)
                    answer.trailers = event.trailers
                    break
    except RemoteProtocolError as error:  # anything else is a failure
        answer.failed = error.phase == "read"
        answer.message = str(error)
    answer.reusable = session.obstacle_to_reuse() is None
    answer.left_over = session.left_over
    assert not (answer.failed and answer.reusable), "reusable after an error"
    assert not (answer.reusable and answer.trailers is None), "reusable in the midst of a response"
    return answer


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    bounds = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [piece for start, end in itertools.pairwise(bounds) if (piece := data[start:end])]


def ways(data: bytes, places: Iterable[int] = ()) -> list[list[bytes]]:
    """As a whole, byte by byte, and cut at these places."""
    return [[data], [data[i : i + 1] for i in range(len(data))], cut(data, places)]


# --- the catalogue ----------------------------------------------------------------------------------------

ROWS = [pytest.param(row, id=name) for name, row in CATALOGUE.items()]


def judge(row: Row, answer: Answer) -> None:
    assert answer.failed == (row.error is not None), answer.message
    assert row.error is None or row.error in answer.message
    assert answer.status == row.status
    assert answer.body == row.body
    assert answer.reusable == row.reusable
    if answer.trailers is not None:
        assert answer.trailers == list(row.trailers)


@pytest.mark.parametrize("row", ROWS)
def test_each_row_of_the_catalogue_is_answered_as_required_however_it_is_cut(row: Row) -> None:
    for pieces in ways(row.wire, [7, 19, 40]):
        judge(row, play(row.pieces(pieces), row.request))


@given(
    st.sampled_from([row for name, row in CATALOGUE.items() if name not in BIG]),
    st.lists(st.integers(0, 10_000)),
)
def test_how_the_bytes_are_cut_changes_nothing(row: Row, places: list[int]) -> None:
    judge(row, play(row.pieces(cut(row.wire, places)), row.request))


def test_a_reusable_connection_takes_the_next_request_and_a_foreign_byte_never_reaches_it() -> None:
    for row in CATALOGUE.values():
        session = HTTP11Session()
        answer = play(row.pieces([row.wire]), row.request, session=session)
        if not answer.reusable:
            continue
        session.start_next()
        second = play([TWO], session=session)
        assert second == Answer(head=ResponseHead(b"HTTP/1.1", 200, b"OK", [(b"Content-Length", b"3")], False),
                                body=b"one", trailers=[], reusable=True)  # fmt: skip
        assert session.exchanges == 2


def test_the_head_is_told_as_it_came() -> None:
    wire = b"HTTP/1.0 299 Fine so far\r\nX-MiXeD: \xe9 value \r\nSet-Cookie: a\r\nset-cookie: b\r\n\r\n"
    head = play([wire]).head
    assert head == ResponseHead(
        b"HTTP/1.0",
        299,
        b"Fine so far",
        [(b"X-MiXeD", b"\xe9 value"), (b"Set-Cookie", b"a"), (b"set-cookie", b"b")],
        False,
    )


def test_trailers_are_never_merged_into_the_headers() -> None:
    answer = play([CATALOGUE["A22 framing names"].wire])
    assert answer.head is not None
    assert answer.head.headers == [(b"Transfer-Encoding", b"chunked")]


# --- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [MAX_FIELDS - 1, MAX_FIELDS, MAX_FIELDS + 1, 10_000])
@pytest.mark.parametrize("where", ["head", "interim", "trailers"])
def test_there_may_be_256_fields(where: str, count: int) -> None:
    lines = b"A: b\r\n" * count
    if where == "head":
        wire = b"HTTP/1.1 204 x\r\n" + lines + b"\r\n"
    elif where == "interim":
        wire = b"HTTP/1.1 103 x\r\n" + lines + b"\r\nHTTP/1.1 204 x\r\n\r\n"
    else:
        wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + lines + b"\r\n"
    answer = play([wire])
    assert answer.failed == (count > MAX_FIELDS)
    assert answer.reusable == (count <= MAX_FIELDS)


@pytest.mark.parametrize("where", ["head", "interim", "trailers"])
def test_a_section_over_100_kib_is_refused_even_if_it_came_whole(where: str) -> None:
    line = b"A: " + b"b" * MAX_HEAD_BYTES + b"\r\n"
    wire = {
        "head": b"HTTP/1.1 204 x\r\n" + line + b"\r\n",
        "interim": b"HTTP/1.1 103 x\r\n" + line + b"\r\n",
        "trailers": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + line + b"\r\n",
    }[where]
    answer = play([wire])
    assert answer.failed
    assert str(MAX_CHUNK_OVERHEAD if where == "trailers" else MAX_HEAD_BYTES) in answer.message
    assert len(answer.message) < 1000


def endless(prefix: bytes, piece: bytes, total: int) -> Iterable[bytes]:
    yield prefix
    for _ in range(total // len(piece)):
        yield piece


ENDLESS = {
    "A09 chunk extension": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;", b"x" * 65536),
    "A09 chunk size": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0" * 65536),
    "A13 header value": (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 65536),
    "A13 header name": (b"HTTP/1.1 200 OK\r\n", b"x" * 65536),
    "A13 header lines": (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 10000),
    "A13 folded lines": (b"HTTP/1.1 200 OK\r\nA: b\r\n", b" b\r\n" * 10000),
    "A13 reason": (b"HTTP/1.1 200 ", b"x" * 65536),
    "A13 status line": (b"HTTP/", b"1" * 65536),
    "A13 trailers": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n" * 10000),
    "A14 interim responses": (b"", b"HTTP/1.1 103 x\r\n\r\n" * 1000),
    "A14 with fields": (b"", b"HTTP/1.1 103 x\r\n" + b"A: b\r\n" * 200 + b"\r\n"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_has_no_end_is_given_up_at_the_limit_in_bounded_memory(name: str) -> None:
    prefix, piece = ENDLESS[name]
    fed = 0

    def pieces() -> Iterable[bytes]:
        nonlocal fed
        for item in endless(prefix, piece, 8 * 1024 * 1024):
            fed += len(item)
            if item:
                yield item

    tracemalloc.start()
    try:
        answer = play(pieces())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert answer.failed
    assert fed <= 3 * MAX_HEAD_BYTES
    assert peak < 2**20
    assert len(answer.message) < 1000


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nX:" + b" " * 95_000 + b"\x00\r\n\r\n", id="blanks in a header"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX:" + b" \t" * 47_000 + b"\x00\r\n\r\n", id="blanks and tabs"),
        pytest.param(b"HTTP/1.1 200 OK\r\nX:" + b"\r\n " * 31_000 + b"\x00\r\n\r\n", id="folds"),
        pytest.param(
            b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 200 OK\r\nX:" + b" " * 95_000 + b"\x00\r\n\r\n",
            id="behind a 103",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;" + b" " * 95_000 + b"\n\r\n",
            id="chunk extension",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n5;" + b" " * 95_000 + b"\n\r\n",
            id="second chunk extension",
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX:" + b" " * 95_000 + b"\x00\r\n\r\n",
            id="trailer",
        ),
    ],
)
def test_no_head_takes_quadratic_time(wire: bytes) -> None:
    # The patterns that it is matched against backtrack: 95,000 blanks took 40 s.
    start = time.process_time()
    answer = play(wire[i : i + 65536] for i in range(0, len(wire), 65536))
    assert time.process_time() - start < 5
    assert answer.failed
    assert re.search("blanks in a row|lines of fields|chunk's header", answer.message)
    assert len(answer.message) < 1000


def test_an_error_quotes_a_little_of_what_came() -> None:
    answer = play([b"HTTP/1.1 200 OK\r\nno colon " + b"x" * 5000 + b"\r\n\r\n"])
    assert answer.failed
    assert "no colon" in answer.message
    assert len(answer.message) < 300


def test_many_blanks_in_a_body_are_nobodys_business() -> None:
    body = b" " * 100_000 + b"\n" * 1000 + b"\r\n\r\n" + b"\t" * 100_000
    for head, framed in (
        (b"Content-Length: %d" % len(body), body),
        (b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)),
    ):
        wire = b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + framed
        for size in (1000, 65536, len(wire)):
            answer = play(wire[i : i + size] for i in range(0, len(wire), size))
            assert answer.body == body
            assert answer.reusable


@pytest.mark.parametrize("count", [0, 1, MAX_INTERIM_RESPONSES, MAX_INTERIM_RESPONSES + 1])
def test_there_may_be_16_interim_responses(count: int) -> None:
    wire = b"HTTP/1.1 103 x\r\nLink: a\r\n\r\n" * count + b"HTTP/1.1 204 x\r\n\r\n"
    for pieces in ways(wire):
        answer = play(pieces)
        assert answer.interim == [103] * min(count, MAX_INTERIM_RESPONSES)
        assert answer.failed == (count > MAX_INTERIM_RESPONSES)


def test_the_bytes_of_interim_responses_are_limited_and_counted_anew_for_each_request() -> None:
    interim = b"HTTP/1.1 103 x\r\nLink: " + b"a" * (MAX_INTERIM_BYTES // 2) + b"\r\n\r\n"
    session = HTTP11Session()
    for _ in range(3):
        assert play([interim + b"HTTP/1.1 204 x\r\n\r\n"], session=session).reusable
        session.start_next()
    assert play([interim * 2]).failed


def test_many_small_chunks_take_linear_time_and_give_every_byte() -> None:
    count = 30_000
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * count + b"0\r\n\r\n"
    pieces = [wire[i : i + 65536] for i in range(0, len(wire), 65536)]
    start = time.process_time()
    answer = play(pieces)
    assert answer.body == b"x" * count
    assert answer.reusable
    assert time.process_time() - start < 20  # seconds; by far, while a quadratic way would take minutes


def test_what_comes_before_the_last_was_looked_at_stays_in_its_order() -> None:
    session = HTTP11Session()
    send(session, GET)
    session.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n7530\r\n" + b"a" * 30_000)
    session.receive(b"\r\n1\r\nb\r\n0\r\n\r\n")
    body = b""
    while not isinstance(event := session.next_event(), EndOfResponse):
        if isinstance(event, BodyData):
            body += event.data
    assert body == b"a" * 30_000 + b"b"
    assert session.obstacle_to_reuse() is None


# --- the gate ----------------------------------------------------------------------------------------------


def test_the_gate_knows_every_reason() -> None:
    reasons: list[str | None] = []

    def check(expected: str | None, session: HTTP11Session) -> None:
        obstacle = session.obstacle_to_reuse()
        reasons.append(obstacle)
        if expected is None:
            assert obstacle is None
        else:
            assert obstacle is not None
            assert expected in obstacle

    check("request was not sent", HTTP11Session())

    session = HTTP11Session()
    session.send_head(b"POST", b"/", [HOST, (b"Content-Length", b"5")])
    check("request was not sent", session)
    session.receive(TWO)
    while not isinstance(session.next_event(), EndOfResponse):
        pass
    check("before the request had ended", session)
    session.send_body(b"hello")
    session.send_end()
    check("before the request had ended", session)

    session = HTTP11Session()
    send(session, GET)
    check("response was not read", session)
    session.receive(TWO)
    session.next_event()
    check("response was not read", session)
    while not isinstance(session.next_event(), EndOfResponse):
        pass
    check(None, session)
    session.receive(b"x")
    check("behind the end", session)

    for name, expected in {
        "A01": "behind the end",
        "A03 body not here yet": "framed in two ways",
        "A07": "framed in two ways",
        "A15 asked": "switched",
        "A21 close": "kept alive",
        "A21 we asked for it": "kept alive",
        "A21 1.0": "kept alive",
        "delimited by close": "ended the connection",
        "A08 +2": "",
        "A12 SSH": "",
    }.items():
        session = HTTP11Session()
        row = CATALOGUE[name]
        play(row.pieces([row.wire]), row.request, session=session)
        check(expected, session)
    assert all(reason is None or reason for reason in reasons)


def test_after_a_refusal_of_our_own_nothing_is_reusable() -> None:
    # h11 is done with this one: only our own limit was passed.
    session = HTTP11Session()
    answer = play([CATALOGUE["A22 ten thousand"].wire], session=session)
    assert answer.failed
    assert session.obstacle_to_reuse() is not None


def test_what_is_still_to_come_is_known_where_a_length_was_declared() -> None:
    session = HTTP11Session()
    send(session, GET)
    assert session.body_left == 0
    session.receive(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhe")
    session.next_event()
    assert session.body_left == 10
    session.next_event()
    assert session.body_left == 8
    session.receive(b"llo wor")
    session.next_event()
    assert session.body_left == 1
    session.receive(b"l")
    session.next_event()
    assert isinstance(session.next_event(), EndOfResponse)
    assert session.body_left == 0
    session.start_next()
    send(session, GET)
    session.receive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    session.next_event()
    assert session.body_left is None
    assert not session.is_delimited_by_close


def test_only_a_body_without_length_and_chunks_is_delimited_by_close() -> None:
    for headers, expected in (
        (b"", True),
        (b"Content-Length: 1\r\n", False),
        (b"Transfer-Encoding: chunked\r\n", False),
    ):
        session = HTTP11Session()
        send(session, GET)
        session.receive(b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n")
        session.next_event()
        assert session.is_delimited_by_close is expected


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"timeout=5", 4.0),
        (b"timeout=5, max=100", 4.0),
        (b"max=100, Timeout = 61", 60.0),
        (b'timeout="15"', 14.0),
        (b"max=100;timeout=3", 2.0),
        (b"timeout=1", 0.0),
        (b"timeout=0", 0.0),
        (b"timeout=999999999", 999_999_998.0),
        (b"timeout=9999999999", float("inf")),
        (b"timeout=-5", float("inf")),
        (b"timeout=5.5", float("inf")),
        (b"timeout=abc", float("inf")),
        (b"timeout=", float("inf")),
        (b"x-timeout=5", float("inf")),
        (b"max=5", float("inf")),
        (b"", float("inf")),
    ],
)
def test_the_servers_word_on_idling_is_heard_less_a_second(value: bytes, seconds: float) -> None:
    session = HTTP11Session()
    assert play([b"HTTP/1.1 204 x\r\nKeep-Alive: " + value + b"\r\n\r\n"], session=session).reusable
    assert session.idle_seconds == seconds
    session.start_next()
    assert session.idle_seconds == float("inf")  # each response speaks for itself


# --- switching protocols -----------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", [b"", b"\x00", b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 70_000])
@pytest.mark.parametrize(
    ("request_", "head"),
    [
        pytest.param(UPGRADE, b"HTTP/1.1 101 Switching\r\nUpgrade: echo\r\n\r\n", id="101"),
        pytest.param(CONNECT, b"HTTP/1.1 200 Established\r\n\r\n", id="CONNECT"),
        pytest.param(CONNECT, b"HTTP/1.0 200 Established\r\n\r\n", id="CONNECT 1.0"),
        pytest.param(CONNECT, b"HTTP/1.1 299 x\r\nContent-Length: 5\r\n\r\n", id="E03 CONNECT with a length"),
        pytest.param(
            CONNECT, b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n", id="E03 CONNECT with chunks"
        ),
    ],
)
def test_after_a_switch_the_bytes_belong_to_the_new_protocol(
    request_: Sent, head: bytes, leading: bytes
) -> None:
    answer = play([head + leading], request_)
    assert answer.head is not None
    assert answer.head.switches_protocol
    assert answer.body == b""
    assert answer.left_over == leading
    assert not answer.reusable


@pytest.mark.parametrize("request_", [UPGRADE, CONNECT])
@pytest.mark.parametrize("status", [b"404", b"407", b"302"])
def test_a_refused_switch_is_an_ordinary_response(request_: Sent, status: bytes) -> None:
    answer = play([b"HTTP/1.1 " + status + b" x\r\nContent-Length: 2\r\n\r\nno"], request_)
    assert answer.head is not None
    assert not answer.head.switches_protocol
    assert answer.body == b"no"
    assert answer.reusable


def test_interim_responses_may_come_before_a_switch() -> None:
    answer = play([b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 101 x\r\n\r\nleading"], UPGRADE)
    assert (answer.interim, answer.status, answer.left_over) == ([103], 101, b"leading")


# --- other protocols ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wire", "words"),
    [
        (b"\x15\x03\x03\x00\x02\x02\x46", "TLS"),
        (b"\x16\x03\x01", "TLS"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH"),
        (b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\x00\x03", "HTTP/2"),
        (b"220 mail.test ESMTP\r\n", "b'220 mail.test ESMTP"),
        (b"ICY 200 OK\r\n", "b'ICY"),
        (b"<html>" + b"x" * 10_000, "b'<html>"),
    ],
)
def test_a_foreign_protocol_is_named_at_its_first_bytes(wire: bytes, words: str) -> None:
    answer = play([wire])
    assert answer.failed
    assert words in answer.message
    assert len(answer.message) < 300
    assert play([wire[:1]]).failed  # nobody waits for more


# --- sending -----------------------------------------------------------------------------------------------


def test_a_request_is_framed_and_its_data_passed_through_uncopied() -> None:
    session = HTTP11Session()
    assert session.send_head(b"POST", b"/p?q", [HOST, (b"Content-Length", b"5"), (b"X-CaSe", b"1")]) == (
        b"POST /p?q HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nX-CaSe: 1\r\n\r\n"
    )
    data = b"hello"
    assert any(piece is data for piece in session.send_body(data))
    assert session.send_end() == b""

    session = HTTP11Session()
    session.send_head(b"POST", b"/", [HOST, (b"Transfer-Encoding", b"chunked")])
    view = memoryview(b"hello")
    assert b"".join(session.send_body(view)) == b"5\r\nhello\r\n"
    assert any(piece is view for piece in session.send_body(view))
    assert session.send_end() == b"0\r\n\r\n"


@pytest.mark.parametrize("headers", [[(b"Content-Length", b"3")], []])
def test_j06_a_body_longer_than_declared_is_our_fault(headers: list[tuple[bytes, bytes]]) -> None:
    session = HTTP11Session()
    session.send_head(b"POST", b"/", [HOST, *headers])
    with pytest.raises(LocalProtocolError):
        session.send_body(b"four")
    assert session.obstacle_to_reuse() is not None


def test_j06_a_body_shorter_than_declared_is_our_fault() -> None:
    session = HTTP11Session()
    session.send_head(b"POST", b"/", [HOST, (b"Content-Length", b"3")])
    session.send_body(b"tw")
    with pytest.raises(LocalProtocolError):
        session.send_end()
    assert session.obstacle_to_reuse() is not None


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        (b"GE T", b"/", [HOST]),
        (b"GET", b"/ x", [HOST]),
        (b"GET", b"/", []),
        (b"GET", b"/", [HOST, (b"A b", b"c")]),
        (b"GET", b"/", [HOST, (b"A", b"c\r\nB: d")]),
        (b"GET", b"/", [HOST, (b"Content-Length", b"1"), (b"Content-Length", b"2")]),
    ],
)
def test_j01_an_invalid_head_is_refused_by_the_last_gate_too(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    session = HTTP11Session()
    with pytest.raises(LocalProtocolError):
        session.send_head(method, target, headers)
    assert session.obstacle_to_reuse() is not None


def test_a_second_request_before_the_first_is_answered_is_refused() -> None:
    session = HTTP11Session()
    send(session, GET)
    with pytest.raises(LocalProtocolError):
        session.send_head(b"GET", b"/", [HOST])


# --- anything at all ---------------------------------------------------------------------------------------

tokens = st.text("abcdefgXYZ-_0189!#", min_size=1, max_size=12).map(str.encode)
values = st.text("abc XYZ019,;=\"'\xe9", max_size=20).map(lambda text: text.strip().encode("latin-1"))
RESERVED = {b"content-length", b"transfer-encoding", b"connection", b"keep-alive", b"upgrade", b"host"}
fields = st.lists(st.tuples(tokens.filter(lambda name: name.lower() not in RESERVED), values), max_size=6)


@given(
    status=st.integers(200, 599).filter(lambda status: status not in {204, 304}),
    reason=st.text("abc XYZ", max_size=10).map(lambda text: text.strip().encode()),
    headers=fields,
    interim=st.lists(st.sampled_from([100, 102, 103]), max_size=4),
    chunks=st.lists(st.binary(max_size=300), max_size=6),
    trailers=fields,
    is_chunked=st.booleans(),
    places=st.lists(st.integers(0, 5000)),
)
def test_whatever_a_good_server_sends_comes_out_as_it_was(
    status: int,
    reason: bytes,
    headers: list[tuple[bytes, bytes]],
    interim: list[int],
    chunks: list[bytes],
    trailers: list[tuple[bytes, bytes]],
    is_chunked: bool,
    places: list[int],
) -> None:
    session = HTTP11Session()
    for _ in range(2):
        peer = h11.Connection(h11.SERVER)
        peer.receive_data(session.send_head(b"GET", b"/", [HOST]) + session.send_end())
        while not isinstance(peer.next_event(), h11.EndOfMessage):
            pass
        wire = b""
        for code in interim:
            wire += peer.send(h11.InformationalResponse(status_code=code, headers=[])) or b""
        framing = (
            (b"Transfer-Encoding", b"chunked")
            if is_chunked
            else (b"Content-Length", b"%d" % sum(map(len, chunks)))
        )
        sent_headers = [*headers, framing]
        wire += peer.send(h11.Response(status_code=status, headers=sent_headers, reason=reason)) or b""
        for chunk in chunks:
            wire += peer.send(h11.Data(data=chunk)) or b""
        wire += peer.send(h11.EndOfMessage(headers=trailers if is_chunked else [])) or b""

        events: list[Any] = []
        for piece in cut(wire, places):
            session.receive(piece)
            while (event := session.next_event()) is not None:
                events.append(event)
                if isinstance(event, EndOfResponse):
                    break
        assert [event.status for event in events if isinstance(event, InterimResponse)] == interim
        (head,) = [event for event in events if isinstance(event, ResponseHead)]
        assert head == ResponseHead(b"HTTP/1.1", status, reason, sent_headers, False)
        assert b"".join(event.data for event in events if isinstance(event, BodyData)) == b"".join(chunks)
        assert events[-1] == EndOfResponse(trailers if is_chunked else [])
        assert session.obstacle_to_reuse() is None
        session.start_next()


GARBAGE = st.one_of(
    st.binary(max_size=300),
    st.lists(
        st.sampled_from(
            [
                b"HTTP/1.1 ", b"HTTP/1.0 ", b"200 OK", b"103 x", b"101 x", b"204 x", b"304", b"\r\n", b"\n", b"\r",
                b"\r\n\r\n", b"Content-Length: 5", b"Content-Length: 0", b"Transfer-Encoding: chunked", b"5", b"0",
                b"hello", b": ", b" ", b"\t", b"X: y", b"Connection: close", b"Upgrade: echo", b";a=b", b"\x00",
                b"Keep-Alive: timeout=5", b"ffffffffffffffffffff",
            ]
        )
    ).map(b"".join),
    st.sampled_from([row.wire for name, row in CATALOGUE.items() if name not in BIG]).flatmap(
        lambda wire: st.tuples(st.integers(0, len(wire)), st.binary(max_size=4), st.integers(0, 8)).map(
            lambda edit: wire[: edit[0]] + edit[1] + wire[edit[0] + edit[2] :]
        )
    ),
)  # fmt: skip


@given(
    GARBAGE,
    st.sampled_from([GET, HEAD, CONNECT, UPGRADE, CLOSE]),
    st.booleans(),
    st.lists(st.integers(0, 500)),
)
def test_whatever_comes_only_our_errors_come_out_and_nothing_is_reusable_after_one(
    wire: bytes, request_: Sent, ends: bool, places: list[int]
) -> None:
    end = [b""] if ends else []
    whole = play([*([wire] if wire else []), *end], request_)  # which asserts it
    apart = play([*cut(wire, places), *end], request_)
    assert (apart.failed, apart.reusable, apart.status) == (whole.failed, whole.reusable, whole.status)
    if whole.failed:
        assert whole.message
    else:
        assert apart == whole
