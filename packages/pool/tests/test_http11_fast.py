"""What is written and read without h11 is what h11 would have written and read; and the rest h11 gets to see."""

from __future__ import annotations

import builtins
import itertools
import subprocess
import sys
import threading
import time
import tracemalloc
from array import array
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina_interfaces import LocalProtocolError, RemoteProtocolError
from lamina_pool import _http11_fast
from lamina_pool._http11 import (
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    BodyData,
    EndOfResponse,
    HTTP11Session,
    InterimResponse,
    ResponseHead,
)
from lamina_pool._http11_events import MAX_BLANKS
from lamina_pool._http11_fast import MAX_KNOWN_LINES, MAX_PLAIN_HEAD, write_head
from pool_catalogue import CATALOGUE, Row, Sent
from pool_two_ways import HOST, REQUESTS, WORDS, Act, acts_of, cut_at, differences, is_plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from lamina_pool._http11 import Headers

OK = b"HTTP/1.1 200 OK\r\n"

# --- answers that must go without the judge ------------------------------------------------------------------

NGINX = (
    b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Fri, 20 Nov 2026 20:50:10 GMT\r\nContent-Type: text/plain\r\n"
    b'Content-Length: 13\r\nConnection: keep-alive\r\nETag: "67-d"\r\nAccept-Ranges: bytes\r\n\r\nHello, world!'
)
APACHE = (
    b"HTTP/1.1 404 Not Found\r\nDate: Fri, 20 Nov 2026 20:50:10 GMT\r\nServer: Apache/2.4.57 (Debian)\r\n"
    b"Content-Length: 4\r\nKeep-Alive: timeout=5, max=100\r\nConnection: Keep-Alive\r\n"
    b"Content-Type: text/html; charset=iso-8859-1\r\n\r\ngone"
)
HYPERCORN = (
    b"HTTP/1.1 200 \r\ncontent-type: text/plain\r\ncontent-length: 2\r\ndate: Fri, 20 Nov 2026 20:50:10 GMT\r\n"
    b"server: hypercorn-h11\r\n\r\nok"
)
NODE = (
    b"HTTP/1.1 201 Created\r\nX-Powered-By: Express\r\nSet-Cookie: a=b; Path=/\r\nset-cookie: c=d\r\n"
    b"Date: Fri, 20 Nov 2026 20:50:10 GMT\r\nConnection: keep-alive\r\nKeep-Alive: timeout=5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1F\r\n" + b"x" * 31 + b"\r\n0\r\n\r\n"
)
PLAIN = {
    "nginx": ("GET", NGINX),
    "apache": ("GET", APACHE),
    "hypercorn": ("GET", HYPERCORN),
    "chunks": ("GET", NODE),
    "no body": ("GET", b"HTTP/1.1 204 No Content\r\nServer: x\r\n\r\n"),
    "not modified": ("GET", b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n'),
    "HEAD": ("HEAD", NGINX.removesuffix(b"Hello, world!")),
    "closing": ("GET", OK + b"Connection: close\r\nContent-Length: 2\r\n\r\nok"),
    "to a body": ("POST", HYPERCORN),
    "to a body in chunks": ("POST in chunks", HYPERCORN),
    "early": ("POST, half", HYPERCORN),
    "empty value": ("GET", OK + b"X-Empty:\r\nContent-Length: 0\r\n\r\n"),
    "foreign letters": ("GET", OK + b"X: caf\xc3\xa9 \xff\r\nContent-Length: 0\r\n\r\n"),
    "a large head": ("GET", OK + b"Content-Length: 0\r\n" + b"X-Policy: a b c\r\n" * 200 + b"\r\n"),
}


def received(session: HTTP11Session, pieces: Iterable[bytes]) -> list[Any]:
    """What comes of the pieces, adjacent data joined, to the end of the answer."""
    events: list[Any] = []
    for piece in pieces:
        session.receive(piece)
        while (event := session.next_event()) is not None:
            if isinstance(event, BodyData) and isinstance(events[-1], BodyData):
                event = BodyData(events.pop().data + event.data)
            events.append(event)
            if isinstance(event, EndOfResponse):
                break
    return events


def sent(session: HTTP11Session, request: str) -> bytes:
    out = b""
    for act in REQUESTS[request]:
        match act:
            case ("head", method, target, headers):
                out += session.send_head(method, target, headers)
            case ("body", data):
                out += b"".join(session.send_body(data))
            case _:
                out += session.send_end()
    return out


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_what_servers_send_goes_without_the_judge(name: str, step: int) -> None:
    request, wire = PLAIN[name]
    session = HTTP11Session()
    sent(session, request)
    events = received(session, [wire[i : i + step] for i in range(0, len(wire), step)])
    assert isinstance(events[-1], EndOfResponse)
    assert is_plain(session)
    assert session.is_reusable == (name not in {"closing", "early"})
    assert is_plain(session)  # nor for a look at the gate


def test_many_requests_on_one_connection_need_no_h11_at_all() -> None:
    code = f"""
import sys
from lamina_pool._http11 import EndOfResponse, HTTP11Session
session = HTTP11Session()
for wire in {[NGINX, NODE, HYPERCORN]!r}:
    session.send_head(b"GET", b"/", [(b"Host", b"a.test")])
    session.send_end()
    session.receive(wire)
    while not isinstance(session.next_event(), EndOfResponse):
        pass
    session.start_next()
assert "h11" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize("error", [ImportError("gone"), OSError(24, "Too many open files")])
def test_where_h11_cannot_be_imported_the_error_is_ours(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if "_http11_judge" in name:
            raise error
        return real(name, *args, **kwargs)

    session = HTTP11Session()
    sent(session, "GET")
    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(LocalProtocolError, match="h11 cannot be imported"):
        session.receive(b"HTTP/1.0 200 OK\r\n\r\n")
    assert not session.is_reusable


def test_after_an_exchange_that_was_judged_the_next_goes_without() -> None:
    session = HTTP11Session()
    sent(session, "GET")
    events = received(session, [OK + b"X: y\tz\r\nContent-Length: 2\r\n\r\nok"])
    assert not is_plain(session)
    assert events[1:] == [BodyData(b"ok"), EndOfResponse([])]
    assert session.is_reusable
    session.start_next()
    sent(session, "GET")
    received(session, [NGINX])
    assert is_plain(session)
    assert session.is_reusable


def test_a_body_that_was_read_by_itself_is_passed_on_uncopied() -> None:
    session = HTTP11Session()
    sent(session, "GET")
    received(session, [OK + b"Content-Length: 70000\r\n\r\n"])
    piece = bytes(70_000)
    session.receive(piece)
    event = session.next_event()
    assert isinstance(event, BodyData)
    assert event.data is piece


# --- the two ways say the same -------------------------------------------------------------------------------


def same(acts: Sequence[Act]) -> None:
    assert differences(acts) == {}, list(acts)


def act_of(request: Sent) -> list[Act]:
    acts: list[Act] = [("head", request.method, request.target, [HOST, *request.headers])]
    return [*acts, *([("body", request.body)] if request.body else []), ("end",)]


@pytest.mark.parametrize("row", [pytest.param(row, id=name) for name, row in CATALOGUE.items()])
def test_of_each_row_of_the_catalogue_however_it_is_cut(row: Row) -> None:
    steps = [1, 2, 3, 7, 100_000] if len(row.wire) < 2000 else [1000, 100_000]
    for step in steps:
        pieces = row.pieces([row.wire[i : i + step] for i in range(0, len(row.wire), step)])
        same([*act_of(row.request), *[("receive", piece) for piece in pieces]])


# Everything among the words that has a say in the framing.
FRAMING = [
    word
    for word in WORDS
    if word.lower().startswith((b"content-length", b"transfer-", b"connection", b"keep-alive", b"upgrade"))
]


@pytest.mark.parametrize("status", [b"200 OK", b"204 x", b"304 x"])
def test_of_any_two_fields_that_frame_an_answer(status: bytes) -> None:
    for one, other in itertools.product(FRAMING, FRAMING):
        wire = b"HTTP/1.1 " + status + b"\r\n" + one + other + b"\r\n5\r\nhello\r\n0\r\n\r\n"
        same(acts_of("GET", [wire]))
        if status == b"200 OK":
            same(acts_of("HEAD", [wire]))
            same(acts_of("GET", [wire.replace(other, b"Content-Length: 5\r\n" + other)]))


@pytest.mark.parametrize("end", [b"\r\nhello", b"", b"\x00\r\n\r\n"])
def test_of_heads_at_the_limits(end: bytes) -> None:
    head = OK + b"Content-Length: 5\r\n"
    lines = [b"X: a" + b" " * count + b"b\r\n" for count in (1, MAX_BLANKS - 1, MAX_BLANKS, MAX_BLANKS + 1)]
    lines += [b"X: y\r\n" * count for count in (MAX_FIELDS - 2, MAX_FIELDS - 1, MAX_FIELDS, MAX_FIELDS + 1)]
    sizes = [size + more for size in (MAX_PLAIN_HEAD, MAX_HEAD_BYTES) for more in range(-60, 20, 8)]
    lines += [b"X: " + b"y" * size + b"\r\n" for size in sizes]
    for line in lines:
        wire = head + line + end
        for step in (1000, 200_000):
            same(acts_of("GET", [wire[i : i + step] for i in range(0, len(wire), step)]))


@pytest.mark.parametrize("request_", REQUESTS)
def test_whenever_somebody_calls_the_judge(request_: str) -> None:
    """Every state that there can be is told over rightly: each byte is a moment at which it may happen."""
    for wire in (
        OK + b"Content-Length: 3\r\nKeep-Alive: timeout=7\r\n\r\nabcX",
        OK + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\nX",
        b"HTTP/1.1 204 x\r\n\r\nX",
        b"HTTP/1.1 103 x\r\n\r\nHTTP/1.1 200 x\r\nContent-Length: 1\r\n\r\na",
    ):
        pieces = [wire[i : i + 1] for i in range(len(wire))]
        for moment in range(len(wire) + 4):
            for length in (moment, len(wire)):
                same(acts_of(request_, pieces[:length], ends=True, asks_at=moment))
                same(acts_of(request_, [wire[:length]] if length else [], ends=False, asks_at=moment))
            more: list[Act] = [("body", b"lo"), ("end",)]
            acts = acts_of(request_, pieces[:moment])
            same([*acts, ("ask",), *more, *(("receive", piece) for piece in pieces[moment:])])
            same([*acts, *more, *(("receive", piece) for piece in pieces[moment:]), ("body", b"too much")])


def well_formed() -> st.SearchStrategy[bytes]:
    name = st.sampled_from([b"Server", b"X-A", b"Date", b"keep-alive", b"Set-Cookie", b"a!#$%&'*+-.^_`|~9"])
    value = st.sampled_from([b"", b"a", b"a b", b"timeout=3", b"max=1", b"\xe9", b'"x", y;z=1', b"a  b"])
    fields = st.lists(st.tuples(name, value), max_size=5).map(
        lambda pairs: b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    )
    status = st.sampled_from(
        [b"200 OK", b"200 ", b"404 Not Found", b"204 x", b"304 x", b"799 ~", b"206 \xff"]
    )
    connection = st.sampled_from([b"", b"", b"Connection: keep-alive\r\n", b"connection: Close\r\n"])
    body = st.binary(max_size=40)

    def whole(parts: tuple[bytes, bytes, bytes, list[bytes], bool]) -> bytes:
        line, lines, option, bodies, is_chunked = parts
        head = b"HTTP/1.1 " + line + b"\r\n" + lines + option
        if line.startswith((b"204", b"304")):
            return head + b"\r\n"
        if not is_chunked:
            joined = b"".join(bodies)
            return head + b"Content-Length: %d\r\n\r\n" % len(joined) + joined
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(each), each) for each in bodies if each)
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"

    return st.tuples(status, fields, connection, st.lists(body, max_size=4), st.booleans()).map(whole)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """An answer in which little is wrong: a byte or a word more, less or another."""
    wire = draw(well_formed())
    if draw(st.booleans()):
        wire += draw(well_formed())
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(wire)))
        size = draw(st.sampled_from([0, 0, 1, 2]))
        new = draw(st.one_of(st.sampled_from(WORDS), st.binary(max_size=2)))
        if draw(st.booleans()):  # between two lines
            at = wire.find(b"\n", at) + 1
        wire = wire[:at] + new + wire[at + size :]
    return wire


ANSWERS = st.one_of(mutated(), mutated(), st.lists(st.sampled_from(WORDS), max_size=9).map(b"".join))
PLACES = st.lists(st.integers(0, 400), max_size=6)


@settings(max_examples=settings().max_examples * 3)
@given(
    st.sampled_from([*REQUESTS, "GET", "GET", "GET"]),
    ANSWERS,
    PLACES,
    st.booleans(),
    st.none() | st.integers(0, 20),
)
def test_of_whatever_comes(
    request_: str, wire: bytes, places: list[int], ends: bool, asks_at: int | None
) -> None:
    same(acts_of(request_, cut_at(wire, places), ends=ends, asks_at=asks_at))


@given(
    st.lists(
        st.tuples(st.sampled_from(["GET", "HEAD", "POST", "close", "POST in chunks"]), mutated(), PLACES),
        max_size=4,
    )
)
def test_of_one_exchange_after_another(exchanges: list[tuple[str, bytes, list[int]]]) -> None:
    acts: list[Act] = []
    for request, wire, places in exchanges:
        acts += [*acts_of(request, cut_at(wire, places)), ("next",)]
    same(acts)


NAMES = st.sampled_from(
    [
        b"Host", b"host", b"Accept", b"X-A", b"Content-Length", b"content-length", b"Transfer-Encoding",
        b"Connection", b"Upgrade", b"Expect", b"Authorization", b"", b"A b", b"A:b", b"A\r\nB", b"A\x00", b"\xe9",
        b"A: b\r\nC", b"X\n",
    ]
)  # fmt: skip
VALUES = st.sampled_from(
    [
        b"a.test", b"", b"a", b"5", b"05", b"0", b"+5", b"5, 5", b"6", b"chunked", b"Chunked", b"gzip", b"close",
        b"keep-alive", b"Keep-Alive", b"keep-alive, close", b"100-continue", b"websocket",
        b"a\r\nB: c", b"a\nb", b"a\rb",
        b"a\x00", b" a", b"a ", b"a\t", b"a\tb", b"\x01", b"\x7f", b"\xff", b"a  b", b"9" * 19, b"9" * 20, b"9" * 21,
        b"a\r\n", b"\xd9\xa5",
    ]
)  # fmt: skip


@settings(max_examples=settings().max_examples * 3)
@given(
    st.sampled_from(
        [
            *[b"GET", b"HEAD", b"POST"] * 4,
            b"CONNECT",
            b"get",
            b"",
            b"G T",
            b"GET /",
            b"G\r\nX",
            b"\xe9",
            b"A:",
        ]
    ),
    st.sampled_from(
        [
            *[b"/", b"*", b"/a?b#c"] * 4,
            b"",
            b"/ x",
            b"/\r\nX: y",
            b"/\x00",
            b"/\xe9",
            b"/ HTTP/1.1\r\nA: b",
            b"/\x7f",
        ]
    ),
    st.lists(st.tuples(NAMES, VALUES), max_size=4),
    st.booleans(),
    st.lists(st.sampled_from([b"", b"hello", b"he", b"llo", b"x"]), max_size=3),
    st.booleans(),
)
def test_of_whatever_is_to_be_sent(
    method: bytes, target: bytes, headers: Headers, has_host: bool, pieces: list[bytes], ends: bool
) -> None:
    if has_host:
        headers = [*headers, HOST]
    acts: list[Act] = [("head", method, target, headers), *(("body", piece) for piece in pieces)]
    acts += [*([("end",)] if ends else []), ("receive", NGINX), ("next",), ("head", b"GET", b"/", [HOST])]
    for _ in range(3):
        same(acts)


FRAMING_FIELDS = [
    (name, value)
    for name, values in {
        b"Host": [b"a.test", b"b.test"],
        b"Content-Length": [b"5", b"05", b"0", b"5, 5", b"+5", b"9" * 20],
        b"transfer-encoding": [b"chunked", b"Chunked", b"gzip"],
        b"Connection": [b"keep-alive", b"Keep-Alive", b"close", b"x"],
        b"Upgrade": [b"echo", b""],
        b"Expect": [b"100-continue"],
        b"Accept": [b"*/*"],
    }.items()
    for value in values
]


@pytest.mark.parametrize(
    "pieces", [[], [b"hello"], [b"hello", b""], [b"", b"he", b"llo", b"x"], [b"hel"], [b"hello!"]]
)
def test_of_any_two_fields_that_frame_a_request(pieces: list[bytes]) -> None:
    for one, other in itertools.product(FRAMING_FIELDS, FRAMING_FIELDS):
        acts: list[Act] = [
            ("head", b"POST", b"/", [HOST, one, other]),
            *(("body", piece) for piece in pieces),
        ]
        same([*acts, ("end",), ("receive", NGINX)])
        same([("head", b"POST", b"/", [one, other]), ("end",), ("body", b"x")])


tokens = st.text("abcdefgXYZ-_0189!#", min_size=1, max_size=12).map(str.encode)
values = st.text("abc XYZ019,;=\"'\xe9", max_size=20).map(lambda text: text.strip().encode("latin-1"))


@given(st.lists(st.tuples(tokens, values), max_size=6), st.integers(0, 6))
def test_of_every_good_head_that_is_sent(headers: Headers, place: int) -> None:
    headers.insert(place, HOST)
    for _ in range(3):  # the second time its lines are known, the third time all of it
        same([("head", b"GET", b"/a?b", headers), ("end",), ("receive", NGINX)])


# --- and the other way round: what was taken, plain h11 takes -------------------------------------------------


@settings(max_examples=settings().max_examples * 2)
@given(st.sampled_from(["GET", "HEAD", "POST"]), mutated(), PLACES)
def test_what_goes_without_the_judge_h11_takes_with_the_same_events_and_framing(
    request_: str, wire: bytes, places: list[int]
) -> None:
    session = HTTP11Session()
    out = sent(session, request_)
    events: list[Any] = []
    try:
        events = received(session, cut_at(wire, places))
    except RemoteProtocolError:
        assert not is_plain(session)
    if not is_plain(session) or not events or not isinstance(events[-1], EndOfResponse):
        return

    peer = h11.Connection(h11.CLIENT, max_incomplete_event_size=200_000)
    sent_by_h11 = b""
    for act in REQUESTS[request_]:
        match act:
            case ("head", method, target, headers):
                sent_by_h11 += peer.send(h11.Request(method=method, target=target, headers=headers))
            case ("body", data):
                sent_by_h11 += peer.send(h11.Data(data=data))
            case _:
                sent_by_h11 += peer.send(h11.EndOfMessage())
    assert out == sent_by_h11
    peer.receive_data(wire)
    head = peer.next_event()
    assert isinstance(head, h11.Response)
    assert events[0] == ResponseHead(
        b"HTTP/" + head.http_version, head.status_code, bytes(head.reason), head.headers.raw_items(), False
    )
    body = b""
    while isinstance(event := peer.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert list(event.headers) == []
    assert b"".join(each.data for each in events if isinstance(each, BodyData)) == body
    assert session.left_over == peer.trailing_data[0]
    assert session.is_reusable == (
        peer.our_state is peer.their_state is h11.DONE and not peer.trailing_data[0]
    )


def test_the_words_for_a_body_that_is_cut_off_are_those_of_h11() -> None:
    session = HTTP11Session()
    sent(session, "GET")
    received(session, [OK + b"Content-Length: 10\r\n\r\nhello"])
    session.receive(b"")
    with pytest.raises(RemoteProtocolError) as ours:
        session.next_event()
    peer = h11.Connection(h11.CLIENT)
    peer.send(h11.Request(method=b"GET", target=b"/", headers=[HOST]))
    peer.receive_data(OK + b"Content-Length: 10\r\n\r\nhello")
    peer.next_event()
    peer.next_event()
    peer.receive_data(b"")
    with pytest.raises(h11.RemoteProtocolError) as theirs:
        peer.next_event()
    assert ours.value.message == str(theirs.value)


# --- what must never pass ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field",
    [
        (b"A", b"b\r\nC: d"), (b"A", b"b\r\n"), (b"A", b"\r\nC: d"), (b"A", b"b\nC: d"), (b"A: b\r\nC", b"d"),
        (b"A:b", b"c"), (b"A", b"b\r\n\r\nGET / HTTP/1.1"), (b"A\r\n", b"b"), (b"", b"b"), (b"A", b"b\x00"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [tuple, list])
def test_a_line_break_is_never_sent_from_within_a_field(field: tuple[bytes, bytes], kind: Any) -> None:
    headers = [HOST, kind(field)]
    assert write_head(b"GET", b"/", headers) is None
    with pytest.raises(LocalProtocolError):
        HTTP11Session().send_head(b"GET", b"/", headers)


def test_what_was_checked_once_is_not_taken_for_something_else() -> None:
    pair: Any = [b"A", b"b"]
    odd: list[Any] = [[HOST, pair], [HOST, (b"A", bytearray(b"b"))]]
    for headers in odd:
        HTTP11Session().send_head(b"GET", b"/", headers)
    pair[1] = b"b\r\nC: d"
    with pytest.raises(LocalProtocolError):
        HTTP11Session().send_head(b"GET", b"/", [HOST, pair])


class Twofold(tuple[bytes, bytes]):
    """It is iterated over as another than it is compared as."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        return iter((b"X-Other", b"it"))


class Changeable:
    """A pair that is compared by its identity, whatever it holds."""

    def __init__(self, name: bytes, value: bytes) -> None:
        self.pair = [name, value]

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.pair)

    def __getitem__(self, index: int) -> bytes:
        return self.pair[index]


def test_no_field_is_remembered_under_a_name_that_is_not_its_own() -> None:
    twofold: Any = Twofold((b"X-Twofold", b"1"))
    for field, line in (
        (twofold, b"X-Other: it"),
        ((b"X-Twofold", b"1"), b"X-Twofold: 1"),
        (twofold, b"X-Other: it"),
    ):
        head = HTTP11Session().send_head(b"GET", b"/", [HOST, field])
        assert head == b"GET / HTTP/1.1\r\nHost: a.test\r\n" + line + b"\r\n\r\n"


def test_a_field_that_was_changed_is_sent_as_it_is_now() -> None:
    field: Any = Changeable(b"X-Changeable", b"1")
    for value in (b"1", b"2"):
        field.pair[1] = value
        head = HTTP11Session().send_head(b"GET", b"/", [HOST, field])
        assert b"\r\nX-Changeable: " + value + b"\r\n" in head
    field.pair[1] = b"3\r\nC: d"
    with pytest.raises(LocalProtocolError):
        HTTP11Session().send_head(b"GET", b"/", [HOST, field])


class Spelled:
    """Bytes for whoever asks for them, and equal to none."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __bytes__(self) -> bytes:
        return self.data


@pytest.mark.parametrize("kind", [Spelled, lambda data: array("B", data), memoryview, bytearray])
def test_the_method_is_what_is_sent_of_whatever_type_it_is(kind: Any) -> None:
    for method, last in ((b"HEAD", EndOfResponse([])), (b"CONNECT", True), (b"GET", None)):
        same([("head", kind(method), b"/", [HOST]), ("end",), ("receive", NGINX)])
        session = HTTP11Session()
        session.send_head(kind(method), b"/", [HOST])
        session.send_end()
        session.receive(OK + b"Content-Length: 5\r\n\r\n")
        head = session.next_event()
        assert isinstance(head, ResponseHead)
        assert head.switches_protocol == (method == b"CONNECT")
        if method != b"CONNECT":
            assert session.next_event() == last


def test_what_is_not_bytes_is_left_to_h11_though_it_is_like_what_is_known() -> None:
    code = """
from lamina_pool._http11 import HTTP11Session
host = (b"Host", b"a.test")
for field in [(b"X-A", b"1"), ("X-A", "1"), (b"X-A", "1"), (b"X-A", memoryview(bytearray(b"1")))]:
    head = HTTP11Session().send_head(b"GET", b"/", [host, field])
    assert head == b"GET / HTTP/1.1\\r\\nHost: a.test\\r\\nX-A: 1\\r\\n\\r\\n", (field, head)
HTTP11Session().send_head("HEAD", "/", [host])
"""
    subprocess.run([sys.executable, "-bb", "-c", code], check=True, timeout=60)


def test_few_lines_are_remembered_and_no_secrets() -> None:
    known = _http11_fast.known_lines
    for number in range(3 * MAX_KNOWN_LINES):
        write_head(b"GET", b"/", [HOST, (b"X-Number", b"%d" % number)])
        assert len(known) <= MAX_KNOWN_LINES
    secret = b"do not keep me"
    for name in (
        b"Authorization",
        b"proxy-authorization",
        b"Cookie",
        b"X-Api-Key",
        b"X-Auth-Token",
        b"X-Goog-Signature",
    ):
        assert write_head(b"GET", b"/", [HOST, (name, secret)]) is not None
    assert write_head(b"GET", b"/", [HOST, (b"X", b"long " * 100 + b"x")]) is not None
    assert all(secret not in line and len(line) < 500 for line in known.values())


# --- whole lists of fields that are known ----------------------------------------------------------------------


@pytest.fixture
def blocks() -> Iterator[dict[Any, _http11_fast.HeaderBlock]]:
    """What is remembered of lists of fields: nothing, at first."""
    _http11_fast.known_lines.clear()
    _http11_fast.known_blocks.clear()
    yield _http11_fast.known_blocks
    _http11_fast.known_blocks.clear()


def learn(*headers: Any) -> bytes:
    """Send a list until it is known, if it can be; the last head."""
    heads = [write_head(b"GET", b"/", list(headers)) for _ in range(3)]
    assert heads[0] == heads[1] == heads[2]
    assert heads[0] is not None
    return heads[0][0]


Blocks = dict[Any, _http11_fast.HeaderBlock]
PLAIN_FIELDS = (b"Accept", b"*/*"), (b"User-Agent", b"x/1")


def test_a_list_of_fields_is_known_when_it_comes_for_the_second_time(blocks: Blocks) -> None:
    headers = [PLAIN_FIELDS[0], HOST, (b"Connection", b"keep-alive"), PLAIN_FIELDS[1]]
    first = write_head(b"GET", b"/a", headers)
    assert not blocks
    assert write_head(b"GET", b"/b", headers) is not None
    [(fields, block)] = blocks.items()
    assert fields == tuple(headers)
    assert write_head(b"GET", b"/a", headers) == first
    again = [(bytes(bytearray(name)), bytes(bytearray(value))) for name, value in headers]
    assert _http11_fast.header_block(tuple(again)) is block  # others that are the same
    assert _http11_fast.header_block((HOST, *PLAIN_FIELDS)) is not block


@pytest.mark.parametrize(
    "field",
    [
        (b"Content-Length", b"5"), (b"content-length", b"0"), (b"Transfer-Encoding", b"chunked"),
        (b"Expect", b"100-continue"), (b"Authorization", b"Bearer x"), (b"proxy-authorization", b"Basic x"),
        (b"Cookie", b"a=b"), (b"X-Api-Key", b"x"), (b"X-Auth-Token", b"x"), (b"X-Goog-Signature", b"x"),
        (b"X-Session", b"x"), (b"PASSWORD", b"x"), (b"X-Long", b"x" * 256),
    ],
)  # fmt: skip
def test_no_list_is_known_with_a_field_that_is_not(field: tuple[bytes, bytes], blocks: Blocks) -> None:
    learn(HOST, *PLAIN_FIELDS, field)
    learn(field, HOST)
    assert not blocks


def test_no_list_is_known_with_a_field_that_is_new_each_time(blocks: Blocks) -> None:
    for number in range(3 * _http11_fast.MAX_KNOWN_BLOCKS):
        assert write_head(b"GET", b"/", [HOST, *PLAIN_FIELDS, (b"X-Request-Id", b"%d" % number)]) is not None
    assert not blocks


def test_few_lists_are_known_and_no_long_ones(blocks: Blocks) -> None:
    learn(HOST, *[(b"X-%d" % number, b"x" * 200) for number in range(25)])
    assert not blocks
    most = 0
    for number in range(3 * _http11_fast.MAX_KNOWN_BLOCKS):
        learn((b"Host", b"%d.test" % number), *PLAIN_FIELDS)
        most = max(most, len(blocks))
    assert most == _http11_fast.MAX_KNOWN_BLOCKS


@pytest.mark.parametrize(
    "more",
    [
        [(b"Host", b"b.test")], [HOST], [(b"A", b"b\r\nC: d")], [(b"Content-Length", b"5"), (b"content-length", b"6")],
        [(b"Transfer-Encoding", b"gzip")], [(b"A b", b"c")],
    ],
)  # fmt: skip
@pytest.mark.parametrize("is_last", [False, True])
def test_with_something_more_a_known_list_is_another(more: Headers, is_last: bool, blocks: Blocks) -> None:
    known = [HOST, *PLAIN_FIELDS]
    learn(*known)
    assert blocks
    headers = [*known, *more] if is_last else [*more, *known]
    assert write_head(b"GET", b"/", headers) is None
    with pytest.raises(LocalProtocolError):
        HTTP11Session().send_head(b"GET", b"/", headers)
    known += more
    assert write_head(b"GET", b"/", known) is None
    assert write_head(b"GET", b"/", known[1:3]) is None  # without Host


@pytest.mark.parametrize(
    ("method", "target"),
    [
        (b"CONNECT", b"a.test:443"), (b"GET", b"/ x"), (b"GET", b"/\r\nX: y"), (b"G T", b"/"), (b"", b"/"),
        (b"GET", b""), (b"GET /\r\nX", b"/"), (b"GET", b"/ HTTP/1.1\r\nA: b"), ("GET", b"/"), (b"GET", None), (1, b"/"),
    ],
)  # fmt: skip
def test_the_request_line_is_checked_where_the_list_is_known(
    method: Any, target: Any, blocks: Blocks
) -> None:
    learn(HOST, *PLAIN_FIELDS)
    assert blocks
    assert write_head(method, target, [HOST, *PLAIN_FIELDS]) is None


class EqualBytes(bytes):
    """They say that they are what they are not."""

    def __new__(cls, value: bytes, like: bytes) -> Self:
        made = super().__new__(cls, value)
        made.like = like
        return made

    like: bytes

    def __eq__(self, other: object) -> bool:
        return other == self.like

    def __hash__(self) -> int:
        return hash(self.like)


class EqualTuple(tuple[bytes, ...]):  # noqa: SLOT001 - a tuple that has slots cannot have an attribute
    """A pair, or a list of them, that says that it is another."""

    like: tuple[Any, ...]

    def __eq__(self, other: object) -> bool:
        return other == self.like

    def __hash__(self) -> int:
        return hash(self.like)


def equal_tuple(value: Any, like: Any) -> Any:
    made = EqualTuple(value)
    made.like = like
    return made


class Restless(list[Any]):
    """It is something else each time that it is iterated over."""

    def __init__(self, first: list[Any], then: list[Any]) -> None:
        super().__init__(then)
        self._now = first

    def __iter__(self) -> Iterator[Any]:
        now, self._now = self._now, list(self[:])
        return iter(now)


SMUGGLED = b"*/*\r\nX: y"
LIARS: dict[str, Any] = {
    "a value": (b"Accept", EqualBytes(SMUGGLED, b"*/*")),
    "a name": (EqualBytes(b"X: y\r\nAccept", b"Accept"), b"*/*"),
    "a pair": equal_tuple((b"Accept", SMUGGLED), PLAIN_FIELDS[0]),
    "a pair of three": equal_tuple((b"Accept", b"*/*", SMUGGLED), PLAIN_FIELDS[0]),
    "a list": [b"Accept", SMUGGLED],
}


@pytest.mark.parametrize("liar", LIARS)
def test_who_says_that_he_is_known_is_not_believed(liar: str, blocks: Blocks) -> None:
    for headers in (
        [HOST, LIARS[liar], PLAIN_FIELDS[1]],
        equal_tuple([HOST, LIARS[liar]], (HOST, PLAIN_FIELDS[0])),
    ):
        _http11_fast.known_lines.clear()
        blocks.clear()
        for _ in range(3):
            assert write_head(b"GET", b"/", headers) is None  # nor is he remembered
        assert not blocks
        expected = learn(HOST, *PLAIN_FIELDS), learn(HOST, PLAIN_FIELDS[0])
        assert len(blocks) == 2
        for _ in range(3):
            assert write_head(b"GET", b"/", headers) is None
        assert (learn(HOST, *PLAIN_FIELDS), learn(HOST, PLAIN_FIELDS[0])) == expected
        assert {type(part) for fields in blocks for field in fields for part in (field, *field)} == {
            tuple,
            bytes,
        }


def test_a_list_is_iterated_over_once(blocks: Blocks) -> None:
    good, bad = [HOST, *PLAIN_FIELDS], [HOST, (b"Accept", SMUGGLED), PLAIN_FIELDS[1]]
    expected = learn(*good)
    blocks.clear()
    for _ in range(3):
        headers = Restless(good, bad)
        assert write_head(b"GET", b"/", headers) == (expected, 0)
        assert write_head(b"GET", b"/", headers) is None
    assert list(blocks) == [tuple(good)]


def test_a_list_that_is_changed_is_sent_as_it_is_now(blocks: Blocks) -> None:
    headers = [HOST, *PLAIN_FIELDS]
    learn(*headers)
    assert blocks
    for value in (b"a", b"b", b"a"):
        headers[1] = (b"Accept", value)
        assert (
            learn(*headers)
            == b"GET / HTTP/1.1\r\nHost: a.test\r\nAccept: %b\r\nUser-Agent: x/1\r\n\r\n" % value
        )
    headers.reverse()
    assert learn(*headers) == b"GET / HTTP/1.1\r\nHost: a.test\r\nUser-Agent: x/1\r\nAccept: a\r\n\r\n"


def test_threads_that_learn_and_forget_at_once_get_their_own_heads(blocks: Blocks) -> None:
    count = _http11_fast.MAX_KNOWN_BLOCKS + 10
    start = threading.Barrier(4)

    def send(worker: int) -> list[bytes]:
        start.wait(60)
        wrong = []
        for number in range(3 * count):
            host = b"%d.test" % ((number * (worker + 1)) % count)
            expected = b"GET / HTTP/1.1\r\nHost: %b\r\nAccept: */*\r\nX-Worker: %d\r\n\r\n" % (host, worker)
            for _ in range(3):
                head = write_head(
                    b"GET", b"/", [(b"Host", host), PLAIN_FIELDS[0], (b"X-Worker", b"%d" % worker)]
                )
                if head != (expected, 0):
                    wrong.append(expected)
        return wrong

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # seconds
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(send, range(4))) == [[]] * 4
    finally:
        sys.setswitchinterval(interval)
    assert len(blocks) <= _http11_fast.MAX_KNOWN_BLOCKS + 4


def test_interim_responses_are_the_judges() -> None:
    session = HTTP11Session()
    sent(session, "GET")
    events = received(session, [b"HTTP/1.1 103 x\r\nLink: a\r\n\r\n" + NGINX])
    assert isinstance(events[0], InterimResponse)
    assert not is_plain(session)


# --- time and memory -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"a" * 9, b"X: a:a:a\x00", b"A: b\r\nX: y:y \r\nC: d\r\n", b"\n:\x00"])
def test_behind_what_is_no_field_nothing_is_searched(data: bytes) -> None:
    # Each byte as a beginning of its own: the time would grow with the square of the head's size.
    found = _http11_fast._find_fields(data)
    assert found[-1] == (b"", b"")
    assert (b"", b"") not in found[:-1]


def test_many_small_chunks_take_little_memory_besides_the_body() -> None:
    session = HTTP11Session()
    sent(session, "GET")
    received(session, [OK + b"Transfer-Encoding: chunked\r\n\r\n"])
    wire = b"1\r\nx\r\n" * 100_000
    session.receive(wire)
    tracemalloc.start()
    try:
        assert session.next_event() == BodyData(b"x" * 100_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 * len(wire)  # bytes; a view for each chunk took 44 times of it


@pytest.mark.parametrize(
    "wire",
    [
        pytest.param(OK + b"X: " + b"a" * MAX_PLAIN_HEAD + b"\r\n\r\n", id="long value"),
        pytest.param(
            OK + b"X: " + b"a " * (MAX_PLAIN_HEAD // 2 - 50) + b"\x00\r\n\r\n", id="words, then a NUL"
        ),
        pytest.param(OK + b"X:" + b" " * 1000 + b"\x00" + b"a\r\n" * 4000 + b"\r\n", id="blanks"),
        pytest.param(OK + b"a" * (MAX_PLAIN_HEAD - 50) + b"\r\n\r\n", id="a name without a colon"),
        pytest.param(OK + b"a\r\n" * (MAX_PLAIN_HEAD // 3 - 20) + b"\r\n", id="many such"),
        pytest.param(OK + b"Keep-Alive: " + b"timeout " * 1900 + b"\r\nA: b\r\n\r\n", id="keep-alive"),
        pytest.param(b"HTTP/1.1 200 " + b" " * (MAX_PLAIN_HEAD - 50) + b"\x00\r\n\r\n", id="reason"),
        pytest.param(OK + b"X: " + b"a" * 200_000, id="no end"),
    ],
)
@pytest.mark.parametrize("step", [100, 100_000])
def test_no_head_takes_long(wire: bytes, step: int) -> None:
    session = HTTP11Session()
    sent(session, "GET")
    start = time.process_time()
    with suppress(RemoteProtocolError):
        received(session, [wire[i : i + step] for i in range(0, len(wire), step)])
    assert time.process_time() - start < 5  # seconds; one pass takes a thousandth of it
