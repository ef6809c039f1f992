"""One connection in the hands of a pool, over a network in memory: what servers and callers do to it."""

from __future__ import annotations

import array
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    InvalidURL,
    LaminaError,
    LocalProtocolError,
    NetworkStream,
    PoolClosed,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    UnsupportedProtocol,
    WriteError,
    WriteTimeout,
)
from lamina_pool import ConnectionPool, Request, Response
from lamina_pool._connection import DRAIN_BYTES, DRAIN_SECONDS, EXPECT_CONTINUE_SECONDS
from pool_catalogue import CATALOGUE, Row
from pool_helpers import (
    CHECKED,
    EOF,
    HEAD,
    OK,
    RESET,
    Call,
    Delay,
    Received,
    Script,
    ScriptedBackend,
    ScriptedStream,
    checked_pool,
    response,
)

URL = "http://a.test/"
MINE = response(b"mine")
EVIL = response(b"evil")
EARLY = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
PLAIN_GET = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"


class Body:
    """A one-shot body that knows what became of it."""

    def __init__(self, *pieces: Any, error: BaseException | None = None) -> None:
        self.is_closed = False
        self.taken = 0
        self._pieces = iter(pieces)
        self._error = error

    def __iter__(self) -> Body:
        return self

    def __next__(self) -> Any:
        assert not self.is_closed, "read after it was closed"
        for piece in self._pieces:
            self.taken += 1
            return piece() if callable(piece) else piece
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        self.is_closed = True


def read_all(reply: Response) -> tuple[bytes, LaminaError | None]:
    """What a caller gets of a body, and the error that it ends in."""
    got = b""
    try:
        for piece in reply.iter_stream():
            assert piece
            got += piece
    except LaminaError as error:
        return got, error
    return got, None


def warm(pool: ConnectionPool) -> None:
    """Have one connection idle."""
    assert pool.request("GET", URL).content == b"ok"
    assert pool.stats().idle == 1


# --- group A, end to end -----------------------------------------------------------------------------------

END_TO_END = [pytest.param(row, id=name) for name, row in CATALOGUE.items() if name != "not delimited yet"]


@pytest.mark.parametrize("way", ["whole", "in bytes", "plain stream"])
@pytest.mark.parametrize("row", END_TO_END)
def test_each_row_of_the_catalogue_through_a_pool(row: Row, way: str) -> None:
    """The first response is delivered, or refused; the next request is answered rightly, with no foreign byte."""
    wire = [row.wire[i : i + 1] for i in range(len(row.wire))] if way == "in bytes" else [row.wire]
    if way == "in bytes" and len(wire) > 2000:
        wire = [row.wire[i : i + 100] for i in range(0, len(row.wire), 100)]
    first = Script(
        HEAD,
        *wire,
        *([EOF] if row.ends else []),
        *([HEAD, MINE] if row.reusable else []),
        watchful=way == "whole",
    )
    backend = ScriptedBackend(first, *([] if row.reusable else [[HEAD, MINE]]))
    with checked_pool(backend) as pool:
        headers = [(b"Host", b"a.test"), *row.request.headers]
        url = "http://a.test:443/" if row.request.method == b"CONNECT" else URL
        asked = Request(row.request.method, url, headers=headers, extensions={"timeout": {"read": 5}})
        error: LaminaError | None = None
        got = b""
        try:
            reply = pool.handle_request(asked)
        except LaminaError as raised:
            assert row.status is None
            error = raised
        else:
            assert reply.status == row.status
            got, error = read_all(reply)
            reply.close()
            if error is None:
                assert reply.trailers == list(row.trailers)
        assert got == row.body
        assert (error is not None) == (row.error is not None), error
        if error is not None:
            assert isinstance(error, RemoteProtocolError)
            assert error.origin == (
                "http://a.test:443" if row.request.method == b"CONNECT" else "http://a.test:80"
            )
        # Bytes that come later, in reads of their own, are met when the connection would be used again.
        comes_later = row.wire.startswith(b"HTTP/1.1") and way != "whole"
        if not row.reusable and not comes_later:
            assert backend.streams[0].is_closed
            assert pool.stats().connections == 0
        assert pool.request("GET", URL).content == b"mine"
        assert len(backend.streams) == (1 if row.reusable else 2)


@pytest.mark.parametrize(
    "late", [b"HTTP/1.1 408 Request Timeout\r\n\r\n", EVIL, b"\x15\x03\x03", b"x", EOF, RESET]
)
@pytest.mark.parametrize("watchful", [True, False])
def test_a05_what_comes_while_the_connection_idles_is_answer_to_nothing(late: Any, watchful: bool) -> None:
    backend = ScriptedBackend(Script(HEAD, OK, late, watchful=watchful), [Received(b"body"), MINE])
    with checked_pool(backend) as pool:
        warm(pool)
        # Even a POST: nothing of it went out.
        assert pool.request("POST", URL, content=b"body").content == b"mine"
        assert backend.streams[0].is_closed
        assert bytes(backend.streams[0].written).count(b"HTTP/1.1") == 1


def test_a05_all_the_dead_are_passed_over_for_one_that_lives() -> None:
    backend = ScriptedBackend([HEAD, OK, HEAD, MINE], [HEAD, OK, EOF], [HEAD, OK, RESET])
    with checked_pool(backend) as pool:
        replies = [pool.handle_request(Request("GET", URL, headers={"Host": "a.test"})) for _ in range(3)]
        for reply in replies:
            reply.read()
        assert pool.stats().idle == 3
        assert pool.request("POST", URL, content=b"x").content == b"mine"
        assert len(backend.streams) == 3
        assert [stream.is_closed for stream in backend.streams] == [False, True, True]


@pytest.mark.parametrize("when", ["trace", "body"])
@pytest.mark.parametrize("late", [EVIL, EOF, RESET])
def test_a06_the_last_look_comes_after_all_that_the_caller_may_do(when: str, late: Any) -> None:
    backend = ScriptedBackend([HEAD, OK], [Received(b"0\r\n\r\n"), MINE])
    with checked_pool(backend) as pool:
        warm(pool)
        stream = backend.streams[0]

        def trace(name: str, info: dict[str, Any]) -> None:
            if when == "trace" and name == "http11.send_request_headers.started":
                stream.feed(late)

        def first() -> bytes:
            if when == "body":
                stream.feed(late)
            return b"first,"

        body = Body(first, b"second")
        reply = pool.request(
            "POST", URL, content=body, extensions={"trace": trace} if when == "trace" else {}
        )
        assert reply.content == b"mine"
        assert bytes(stream.written).count(b"HTTP/1.1") == 1
        # Not a piece of a body that can be read only once is lost on the way.
        assert b"first," in backend.streams[1].written
        assert b"second" in backend.streams[1].written
        assert body.is_closed


@pytest.mark.parametrize("content", [None, b"body", b"x" * 1_000_000, [b"a", b"b"]])
@pytest.mark.parametrize("watchful", [False, True])
def test_a06_nothing_happens_between_the_last_look_and_the_first_byte(content: Any, watchful: bool) -> None:
    backend = ScriptedBackend(Script(HEAD, OK, HEAD, OK, watchful=watchful))
    with checked_pool(backend) as pool:
        warm(pool)
        log = backend.streams[0].log
        before = len(log)
        pool.request("GET", URL, content=content)
        # To look is a part of the write of a stream that watches; see `InterruptibleWriter`.
        expected = ["write"] if watchful else ["check", "check", "write"]
        assert log[before : before + len(expected)] == expected


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("watchful", [False, True])
@pytest.mark.parametrize("late", [EVIL, EOF, RESET])
@pytest.mark.parametrize(
    "make", [lambda: None, lambda: b"body", lambda: Body(b"body"), lambda: b"x" * 1_000_000]
)
def test_a06_what_comes_between_the_last_look_and_the_first_byte_is_answer_to_nothing(
    make: Callable[[], Any], late: Any, watchful: bool, traced: bool
) -> None:
    last_look = () if watchful else (CHECKED,)
    backend = ScriptedBackend(Script(HEAD, OK, *last_look, late, watchful=watchful), [HEAD, MINE])
    with checked_pool(backend) as pool:
        warm(pool)
        extensions = {"trace": lambda name, info: None} if traced else {}
        assert pool.request("POST", URL, content=make(), extensions=extensions).content == b"mine"
        assert backend.streams[0].is_closed


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a06_nor_is_what_comes_in_place_of_a_first_write(method: str) -> None:
    # In the gap between the system calls: the server spoke and hung up, so that the write fails.
    script = Script(HEAD, OK, CHECKED, CHECKED, EVIL, EOF, watchful=False, fail_write_after=len(PLAIN_GET))
    backend = ScriptedBackend(script, [HEAD, MINE])
    with checked_pool(backend) as pool:
        warm(pool)
        if method == "GET":
            assert pool.request("GET", URL).content == b"mine"
        else:  # nobody can say that nothing was sent
            with pytest.raises(RemoteProtocolError, match="not known"):
                pool.request("POST", URL, content=b"body")


def test_a14_a_server_that_only_ever_says_103_is_given_up() -> None:
    backend = ScriptedBackend([HEAD, *[b"HTTP/1.1 103 x\r\n\r\n"] * 100])
    with checked_pool(backend) as pool, pytest.raises(RemoteProtocolError, match="interim"):
        pool.request("GET", URL)


@pytest.mark.parametrize("end", [EOF, RESET])
@pytest.mark.parametrize(
    ("wire", "so_far"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", b"hel"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", b"hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX: y\r\n", b"hello"),
    ],
)
def test_a16_what_has_come_is_delivered_before_the_error(wire: bytes, so_far: bytes, end: Any) -> None:
    backend = ScriptedBackend([HEAD, wire, end], [HEAD, MINE])
    with checked_pool(backend) as pool:
        reply = pool.handle_request(Request("GET", URL, headers={"Host": "a.test"}))
        got, error = read_all(reply)
        assert got == so_far
        assert isinstance(error, RemoteProtocolError if end is EOF else ReadError)
        assert pool.stats().connections == 0
        reply.close()
        assert pool.request("GET", URL).content == b"mine"


def test_a16_data_and_fault_in_one_read_are_told_one_after_the_other() -> None:
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n3\r\ntwo\r\nnonsense\r\n"
    backend = ScriptedBackend([HEAD, wire], [HEAD, MINE])
    with checked_pool(backend) as pool:
        stream = iter(pool.handle_request(Request("GET", URL, headers={"Host": "a.test"})).stream)  # type: ignore[arg-type]
        assert next(stream) == b"onetwo"
        with pytest.raises(RemoteProtocolError):
            next(stream)
        assert pool.request("GET", URL).content == b"mine"


def test_a16_the_same_where_only_our_own_limit_was_passed() -> None:
    wire = EARLY + b"3\r\none\r\n0\r\n" + b"A: b\r\n" * 300 + b"\r\n"
    backend = ScriptedBackend([HEAD, wire], [HEAD, MINE])
    with checked_pool(backend) as pool:
        reply = pool.handle_request(Request("GET", URL, headers={"Host": "a.test"}))
        got, error = read_all(reply)
        assert got == b"one"
        assert isinstance(error, RemoteProtocolError)
        assert pool.request("GET", URL).content == b"mine"


def test_a16_a_fault_that_was_not_told_yet_still_spoils_the_connection() -> None:
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\nnonsense\r\n"
    backend = ScriptedBackend([HEAD, wire], [HEAD, MINE])
    with checked_pool(backend) as pool:
        with pool.stream("GET", URL) as reply:
            assert next(iter(reply.stream)) == b"one"  # type: ignore[arg-type]
        assert backend.streams[0].is_closed
        assert pool.request("GET", URL).content == b"mine"


@pytest.mark.parametrize(
    ("end", "framing", "expected"),
    [
        (RESET, b"", RemoteProtocolError),
        (EOF, b"", None),
        (RESET, b"Content-Length: 5\r\n", None),
        (RESET, b"Content-Length: 6\r\n", ReadError),
    ],
)
def test_c06_the_end_of_a_body_is_believed_only_where_it_is_certain(
    end: Any, framing: bytes, expected: type[LaminaError] | None
) -> None:
    # Over TLS an end without close_notify is a `ReadError` of the stream.
    backend = ScriptedBackend([HEAD, b"HTTP/1.1 200 OK\r\n" + framing + b"\r\nhello", end])
    with checked_pool(backend) as pool:
        reply = pool.handle_request(Request("GET", URL, headers={"Host": "a.test"}))
        got, error = read_all(reply)
        assert got == b"hello"
        assert type(error) is (type(None) if expected is None else expected)


def test_a20_a_slow_body_obeys_the_read_timeout_between_its_pieces() -> None:
    wire = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
    backend = ScriptedBackend([HEAD, wire, Delay(1), b"a", Delay(1), b"b", Delay(3), b"cd"])
    with checked_pool(backend) as pool:
        reply = pool.handle_request(
            Request("GET", URL, headers={"Host": "a.test"}, extensions={"timeout": {"read": 2}})
        )
        got, error = read_all(reply)
        assert got == b"ab"
        assert isinstance(error, ReadTimeout)
        assert backend.streams[0].is_closed


# --- a reused connection that dies: one retry, where it is safe (A17) ----------------------------------------

DEATHS: dict[str, list[Any]] = {
    "closed": [EOF],
    "reset": [RESET],
    "closed after the request": [HEAD, EOF],
    "reset after the request": [HEAD, RESET],
}
REQUESTS: dict[str, tuple[str, Any, bytes, bool]] = {
    "GET": ("GET", lambda: None, b"", True),
    "HEAD": ("HEAD", lambda: None, b"", True),
    "DELETE": ("DELETE", lambda: None, b"", True),
    "PUT bytes": ("PUT", lambda: b"payload", b"payload", True),
    "PUT list": ("PUT", lambda: [b"pay", b"load"], b"3\r\npay\r\n4\r\nload\r\n0\r\n\r\n", True),
    "PUT iterator": ("PUT", lambda: Body(b"pay", b"load"), b"3\r\npay\r\n4\r\nload\r\n0\r\n\r\n", False),
    "POST bytes": ("POST", lambda: b"payload", b"payload", False),
    "POST without a body": ("POST", lambda: None, b"", False),
    "POST iterator": ("POST", lambda: Body(b"pay", b"load"), b"3\r\npay\r\n4\r\nload\r\n0\r\n\r\n", False),
    "POST empty pieces first": ("POST", lambda: Body(b"", b"", b"load"), b"4\r\nload\r\n0\r\n\r\n", False),
    "PATCH bytes": ("PATCH", lambda: b"payload", b"payload", False),
}


@pytest.mark.parametrize("watchful", [True, False])
@pytest.mark.parametrize("what", REQUESTS)
@pytest.mark.parametrize("death", DEATHS)
def test_a17_a_request_is_sent_again_only_if_nothing_was_sent_or_nothing_can_come_of_it(
    death: str, what: str, watchful: bool
) -> None:
    method, content, wire, is_repeatable = REQUESTS[what]
    backend = ScriptedBackend(
        Script(HEAD, OK, *DEATHS[death], watchful=watchful),
        Script(HEAD, MINE, watchful=watchful),
        [HEAD, MINE],
    )
    with checked_pool(backend) as pool:
        warm(pool)
        is_unsent = DEATHS[death][0] is not HEAD
        if is_unsent or is_repeatable:
            assert pool.request(method, URL, content=content()).status == 200
            assert bytes(backend.streams[1].written).endswith(b"\r\n\r\n" + wire)
            assert (bytes(backend.streams[0].written).count(b"HTTP/1.1") == 1) == is_unsent
        else:
            with pytest.raises(RemoteProtocolError, match="not known") as caught:
                pool.request(method, URL, content=content())
            assert caught.value.__cause__ is not None
            sent = len(backend.streams[0].written) - len(PLAIN_GET)
            assert f"up to {sent} bytes" in str(caught.value)
            assert caught.value.origin == "http://a.test:80"
            assert len(backend.streams) == 1
        assert backend.streams[0].is_closed


@pytest.mark.parametrize("end", [EOF, RESET])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a17_a_new_connection_is_given_no_second_chance(method: str, end: Any) -> None:
    backend = ScriptedBackend([HEAD, end])
    with checked_pool(backend) as pool, pytest.raises((RemoteProtocolError, ReadError)):
        pool.request(method, URL)


def test_a17_the_retry_is_the_only_one_and_goes_to_a_new_connection() -> None:
    # Two idle connections, both of which die under a request: the second is not tried.
    backend = ScriptedBackend([HEAD, OK, HEAD, OK], [HEAD, OK, HEAD, RESET], [HEAD, RESET])
    with checked_pool(backend) as pool:
        replies = [pool.handle_request(Request("GET", URL, headers={"Host": "a.test"})) for _ in range(2)]
        for reply in replies:
            reply.read()
        with pytest.raises(ReadError):
            pool.request("GET", URL)
        assert len(backend.streams) == 3
        assert [stream.is_closed for stream in backend.streams] == [False, True, True]


def test_a17_an_answer_that_has_begun_is_no_reason_to_ask_again() -> None:
    backend = ScriptedBackend([HEAD, OK, HEAD, b"H", EOF])
    with checked_pool(backend) as pool:
        warm(pool)
        with pytest.raises(RemoteProtocolError, match="midst"):
            pool.request("GET", URL)


def test_a17_a_time_out_is_no_reason_to_ask_again() -> None:
    backend = ScriptedBackend([HEAD, OK, HEAD])
    with checked_pool(backend) as pool:
        warm(pool)
        with pytest.raises(ReadTimeout):
            pool.request("GET", URL, extensions={"timeout": {"read": 1}})


@pytest.mark.parametrize("watchful", [True, False])
@pytest.mark.parametrize("sent", [0, 1, 100, 70_000])
@pytest.mark.parametrize("what", ["GET", "PUT", "POST", "POST iterator"])
def test_a17_a_write_that_failed_may_have_sent_a_part(what: str, sent: int, watchful: bool) -> None:
    """Nobody can say how much of a buffer went out before an error; so a POST is not sent again."""
    warm_up = len(PLAIN_GET)
    backend = ScriptedBackend(
        Script(HEAD, OK, Received(b"never"), fail_write_after=warm_up + sent, watchful=watchful), [HEAD, MINE]
    )
    body = b"x" * 200_000
    content: Any = {"GET": None, "PUT": body, "POST": body, "POST iterator": Body(body)}[what]
    with checked_pool(backend) as pool:
        warm(pool)
        method = what.partition(" ")[0]
        extensions = {"timeout": {"read": 5}}
        if method == "POST":
            with pytest.raises(LaminaError):
                pool.request(method, URL, content=content, extensions=extensions)
            assert len(backend.streams) == 1
        elif what == "GET" and sent >= 100:
            with pytest.raises(ReadTimeout):
                pool.request(method, URL, content=content, extensions=extensions)
        else:
            assert pool.request(method, URL, content=content, extensions=extensions).content == b"mine"
        assert backend.streams[0].is_closed


# --- an answer before the request has ended (A18, A19) ------------------------------------------------------

REFUSAL = response(b"too large", status="413 Content Too Large")
BIG_BODIES: dict[str, Callable[[], Any]] = {
    "bytes": lambda: b"x" * 1_000_000,
    "pieces of 100 kB": lambda: Body(*[b"x" * 100_000] * 10),
    "pieces of 10 kB": lambda: Body(*[b"x" * 10_000] * 100),
    "memoryview": lambda: memoryview(bytearray(1_000_000)),
    "pieces of one byte": lambda: Body(*[b"x"] * 2_000),
}


@pytest.mark.parametrize("watchful", [True, False])
@pytest.mark.parametrize("status", ["413 x", "400 x", "401 x", "302 x"])
@pytest.mark.parametrize("kind", BIG_BODIES)
def test_a18_a_refusal_ends_the_upload(kind: str, status: str, watchful: bool) -> None:
    backend = ScriptedBackend(Script(HEAD, response(b"no", status=status), watchful=watchful), [HEAD, MINE])
    with checked_pool(backend) as pool:
        content = BIG_BODIES[kind]()
        reply = pool.request("POST", URL, content=content)
        assert (reply.status, reply.content) == (int(status[:3]), b"no")
        assert len(backend.streams[0].written) < 250_000
        if isinstance(content, Body):
            assert content.is_closed
            assert content.taken <= 100
        assert backend.streams[0].is_closed
        assert pool.request("GET", URL).content == b"mine"


@pytest.mark.parametrize("watchful", [True, False])
@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.parametrize("is_reused", [False, True])
@pytest.mark.parametrize("kind", BIG_BODIES)
def test_a18_a_server_that_stops_reading_is_heard_all_the_same(
    kind: str, is_reused: bool, delay: float, watchful: bool
) -> None:
    steps = [*([HEAD, OK] if is_reused else []), HEAD, Delay(delay), REFUSAL]
    backend = ScriptedBackend(Script(*steps, watchful=watchful, stall_write_after=1500), [HEAD, MINE])
    with checked_pool(backend) as pool:
        if is_reused:
            warm(pool)
        reply = pool.request(
            "POST", URL, content=BIG_BODIES[kind](), extensions={"timeout": {"write": 5, "read": 5}}
        )
        assert (reply.status, reply.content) == (413, b"too large")
        assert backend.streams[0].is_closed
        assert pool.request("GET", URL).content == b"mine"


@pytest.mark.parametrize("watchful", [True, False])
def test_a18_a_server_that_stops_reading_and_says_nothing_is_a_write_timeout(watchful: bool) -> None:
    backend = ScriptedBackend(Script(HEAD, watchful=watchful, stall_write_after=1500))
    with checked_pool(backend, virtual_time=True) as pool:
        before = backend.clock.now()
        with pytest.raises(WriteTimeout):
            pool.request("POST", URL, content=b"x" * 1_000_000, extensions={"timeout": {"write": 5}})
        assert backend.clock.now() - before == pytest.approx(5)


# A plain stream cannot say how much of the first write went out, so there a reused connection is not believed.
@pytest.mark.parametrize(("is_reused", "watchful"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("kind", BIG_BODIES)
def test_a19_a_refusal_that_came_whole_counts_although_the_connection_broke(
    kind: str, traced: bool, is_reused: bool, watchful: bool
) -> None:
    steps = [*([HEAD, OK] if is_reused else []), HEAD, REFUSAL, RESET]
    backend = ScriptedBackend(Script(*steps, watchful=watchful, fail_write_after=1500), [HEAD, MINE])
    with checked_pool(backend) as pool:
        if is_reused:
            warm(pool)
        extensions = {"trace": lambda name, info: None} if traced else {}
        reply = pool.request("POST", URL, content=BIG_BODIES[kind](), extensions=extensions)
        assert (reply.status, reply.content) == (413, b"too large")
        assert backend.streams[0].is_closed
        assert pool.request("GET", URL).content == b"mine"


@pytest.mark.parametrize("traced", [False, True])
def test_a19_an_answer_counts_although_even_the_head_could_not_be_sent(traced: bool) -> None:
    # A server that refuses a connection at once: it answers and closes before it has read anything.
    refusal = response(b"later", status="503 Service Unavailable")
    backend = ScriptedBackend(Script(refusal, EOF, fail_write_after=0), [HEAD, MINE])
    with checked_pool(backend) as pool:
        extensions = {"trace": lambda name, info: None} if traced else {}
        reply = pool.request("GET", URL, extensions=extensions)
        assert (reply.status, reply.content) == (503, b"later")
        assert backend.streams[0].is_closed
        assert pool.request("GET", URL).content == b"mine"


@pytest.mark.parametrize("watchful", [True, False])
@pytest.mark.parametrize("rest", [[], [b"HTTP/1.1 413 x\r\nConte"], [RESET], [b"HTTP/1.1 413", RESET]])
def test_a19_without_a_whole_head_it_is_the_write_that_failed(rest: list[Any], watchful: bool) -> None:
    backend = ScriptedBackend(Script(HEAD, *rest, watchful=watchful, fail_write_after=1500))
    with checked_pool(backend) as pool, pytest.raises(WriteError):
        pool.request("POST", URL, content=b"x" * 1_000_000)


def test_a19_a_server_that_hangs_up_on_an_upload_is_said_to_have_done_so() -> None:
    backend = ScriptedBackend(Script(HEAD, EOF))
    with (
        checked_pool(backend) as pool,
        pytest.raises(RemoteProtocolError, match="without sending a response"),
    ):
        pool.request("POST", URL, content=b"x" * 1_000_000)


def test_a19_a_refusal_whose_body_is_cut_off_is_delivered_as_far_as_it_came() -> None:
    cut_off = b"HTTP/1.1 413 x\r\nContent-Length: 100\r\n\r\ntoo"
    backend = ScriptedBackend(Script(HEAD, cut_off, RESET, fail_write_after=1500))
    with checked_pool(backend) as pool:
        request = Request(
            "POST",
            URL,
            headers={"Host": "a.test", "Transfer-Encoding": "chunked"},
            content=Body(b"x" * 1_000_000),
        )
        reply = pool.handle_request(request)
        assert reply.status == 413
        got, error = read_all(reply)
        assert got == b"too"
        assert isinstance(error, ReadError)


@pytest.mark.parametrize("watchful", [True, False])
def test_an_early_success_lets_the_upload_go_on(watchful: bool) -> None:
    script = Script(HEAD, EARLY, Received(b"last\r\n0\r\n\r\n"), b"2\r\nok\r\n0\r\n\r\n", watchful=watchful)
    backend = ScriptedBackend(script, [HEAD, MINE])
    with checked_pool(backend) as pool:
        body = Body(*[b"x" * 50_000] * 10, b"last")
        reply = pool.request("POST", URL, content=body)
        assert (reply.status, reply.content) == (200, b"ok")
        assert backend.streams[0].written.count(b"x") == 500_000
        assert pool.request("GET", URL).content == b"mine"
        assert backend.streams[0].is_closed  # who answers before the end is not trusted with another request


@pytest.mark.parametrize("watchful", [True, False])
@pytest.mark.parametrize("fault", [{"fail_write_after": 20_000}, {"stall_write_after": 20_000}])
@pytest.mark.parametrize("kind", BIG_BODIES)
def test_an_early_success_is_not_lost_if_the_upload_then_breaks_off(
    kind: str, fault: dict[str, int], watchful: bool
) -> None:
    script = Script(HEAD, EARLY + b"2\r\nok\r\n0\r\n\r\n", watchful=watchful, **fault)  # type: ignore[arg-type]
    backend = ScriptedBackend(script)
    with checked_pool(backend) as pool:
        reply = pool.request(
            "POST", URL, content=BIG_BODIES[kind](), extensions={"timeout": {"write": 5, "read": 5}}
        )
        assert (reply.status, reply.content) == (200, b"ok")
        assert backend.streams[0].is_closed


@pytest.mark.parametrize("watchful", [True, False])
def test_interim_responses_do_not_stop_an_upload(watchful: bool) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
    backend = ScriptedBackend(
        Script(HEAD, hints, hints[:10], hints[10:], Received(b"last"), OK, watchful=watchful)
    )
    with checked_pool(backend) as pool:
        assert pool.request("POST", URL, content=[b"x" * 300_000, b"last"]).content == b"ok"
        assert pool.stats().idle == 1


# --- Expect: 100-continue ----------------------------------------------------------------------------------

EXPECT = {"Expect": "100-continue", "Content-Length": "4"}


@pytest.mark.parametrize(
    "first", [[], [b"HTTP/1.1 103 x\r\n\r\n"], [b"HTTP/1.1 102 x\r\n\r\nHTTP/1.1 103 x\r\n\r\n"]]
)
def test_a_body_waits_for_100(first: list[bytes]) -> None:
    backend = ScriptedBackend(
        [HEAD, *first, b"HTTP/1.1 100 Continue\r\n\r\n", Received(b"body"), OK, HEAD, OK]
    )
    with checked_pool(backend, virtual_time=True) as pool:
        before = backend.clock.now()
        assert pool.request("POST", URL, headers=EXPECT, content=b"body").content == b"ok"
        assert backend.clock.now() == before
        writes = backend.streams[0].writes
        assert len(writes) == 2
        assert writes[0].endswith(b"\r\n\r\n")
        assert writes[1] == b"body"
        assert pool.request("GET", URL).content == b"ok"
        assert len(backend.streams) == 1


@pytest.mark.parametrize("watchful", [True, False])
def test_a_final_answer_right_behind_the_100_is_heard_too(watchful: bool) -> None:
    both = b"HTTP/1.1 100 Continue\r\n\r\n" + REFUSAL
    backend = ScriptedBackend(Script(HEAD, both, stall_write_after=1500, watchful=watchful))
    with checked_pool(backend) as pool:
        body = b"y" * 100_000
        headers = {"Expect": "100-continue"}
        reply = pool.request("POST", URL, headers=headers, content=body, extensions={"timeout": {"write": 5}})
        assert (reply.status, reply.content) == (413, b"too large")
        assert b"y" not in backend.streams[0].written


@pytest.mark.parametrize("status", ["417 Expectation Failed", "401 Unauthorized", "200 OK"])
def test_a_final_answer_in_place_of_100_keeps_the_body_at_home(status: str) -> None:
    backend = ScriptedBackend([HEAD, response(b"no", status=status)], [HEAD, MINE])
    with checked_pool(backend) as pool:
        body = Body(b"body")
        reply = pool.request("POST", URL, headers=EXPECT, content=body)
        assert (reply.status, reply.content) == (int(status[:3]), b"no")
        assert body.taken == 0
        assert body.is_closed
        assert b"body" not in backend.streams[0].written
        # The server may still expect the body that it was promised.
        assert backend.streams[0].is_closed
        assert pool.request("GET", URL).content == b"mine"


@pytest.mark.parametrize("hints", [[], [Delay(0.4), b"HTTP/1.1 103 x\r\n\r\n"] * 2])
def test_a_server_that_does_not_know_of_100_gets_the_body_after_a_second(hints: list[Any]) -> None:
    backend = ScriptedBackend([HEAD, *hints, Received(b"body"), OK])
    with checked_pool(backend, virtual_time=True) as pool:
        before = backend.clock.now()
        assert pool.request("POST", URL, headers=EXPECT, content=b"body").content == b"ok"
        assert backend.clock.now() - before == pytest.approx(EXPECT_CONTINUE_SECONDS)
        assert pool.stats().idle == 1


def test_the_read_timeout_may_shorten_the_wait_for_100() -> None:
    backend = ScriptedBackend([HEAD, Received(b"body"), OK])
    with checked_pool(backend, virtual_time=True) as pool:
        before = backend.clock.now()
        pool.request("POST", URL, headers=EXPECT, content=b"body", extensions={"timeout": {"read": 0.25}})
        assert backend.clock.now() - before == pytest.approx(0.25)


def test_a_late_100_is_no_answer() -> None:
    late = b"HTTP/1.1 100 Continue\r\n\r\n"
    backend = ScriptedBackend([HEAD, Received(b"body"), late, OK, HEAD, OK])
    with checked_pool(backend, virtual_time=True) as pool:
        assert pool.request("POST", URL, headers=EXPECT, content=b"body").content == b"ok"
        assert pool.request("GET", URL).content == b"ok"


@pytest.mark.parametrize("end", [EOF, RESET])
def test_a17_a_connection_that_dies_while_a_body_waits_for_100(end: Any) -> None:
    backend = ScriptedBackend(
        [HEAD, OK, HEAD, end], [HEAD, b"HTTP/1.1 100 x\r\n\r\n", Received(b"body"), MINE]
    )
    with checked_pool(backend) as pool:
        warm(pool)
        assert pool.request("PUT", URL, headers=EXPECT, content=b"body").content == b"mine"


# --- what is left unread -----------------------------------------------------------------------------------


def leave_unread(pool: ConnectionPool) -> None:
    with pool.stream("GET", URL) as reply:
        assert reply.status == 200


def test_14_small_bodies_that_nobody_reads_cost_no_connection() -> None:
    backend = ScriptedBackend([step for _ in range(5) for step in (HEAD, response(b"x" * 10))])
    with checked_pool(backend) as pool:
        for _ in range(5):
            leave_unread(pool)
        assert len(backend.streams) == 1
        assert pool.stats().idle == 1


@pytest.mark.parametrize(
    ("steps", "is_kept"),
    [
        pytest.param([response(b"x" * DRAIN_BYTES)], True, id="as much as is drained"),
        pytest.param([response(b"x" * (DRAIN_BYTES + 1))], False, id="a byte more"),
        pytest.param([response(b"x" * 100)[:-50], response(b"x" * 100)[-50:]], True, id="in two pieces"),
        pytest.param([response(b"x" * 9)[:-5], Delay(DRAIN_SECONDS / 2), b"xxxxx"], True, id="soon"),
        pytest.param([response(b"x" * 9)[:-5], Delay(DRAIN_SECONDS * 2), b"xxxxx"], False, id="too late"),
        pytest.param([response(b"x" * 9)[:-5]], False, id="never"),
        pytest.param([response(b"x" * 9)[:-5], EOF], False, id="cut off"),
        pytest.param([response(b"x" * 9)[:-5], RESET], False, id="reset"),
        pytest.param([EARLY + b"2\r\nok\r\n0\r\n\r\n"], True, id="chunks, all here"),
        pytest.param([EARLY, b"2\r\nok\r\n0\r\n\r\n"], True, id="chunks, all here in two pieces"),
        pytest.param([EARLY, b"2\r\nok\r\n"], False, id="chunks, more to come"),
        pytest.param([EARLY, *[b"400\r\n" + b"x" * 1024 + b"\r\n"] * 1000], False, id="chunks without end"),
        pytest.param([EARLY, b"2\r\nok\r\nnonsense\r\n"], False, id="chunks with a fault"),
        pytest.param([EARLY, b"0\r\n" + b"A: b\r\n" * 300 + b"\r\n"], False, id="too many trailers"),
        pytest.param([b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 100, EOF], False, id="delimited by close"),
        pytest.param([response(b"x", headers=b"Connection: close\r\n")], False, id="Connection: close"),
        pytest.param([OK + b"x"], False, id="a byte behind it"),
    ],
)
def test_14_a_small_rest_is_read_and_a_large_or_endless_one_is_not(steps: list[Any], is_kept: bool) -> None:
    backend = ScriptedBackend([HEAD, *steps, *([HEAD, MINE] if is_kept else [])], [HEAD, MINE])
    with checked_pool(backend, virtual_time=True) as pool:
        before = backend.clock.now()
        leave_unread(pool)
        assert backend.clock.now() - before <= DRAIN_SECONDS + 0.001
        assert backend.streams[0].is_closed is not is_kept
        assert backend.streams[0].log.count("read") < 100
        assert pool.request("GET", URL).content == b"mine"
        assert len(backend.streams) == (1 if is_kept else 2)


def test_14_the_drain_obeys_no_read_timeout_of_zero() -> None:
    # A rest that is here needs no waiting.
    backend = ScriptedBackend([HEAD, response(b"x" * 10)])
    with checked_pool(backend) as pool:
        leave_unread(pool)
        assert pool.stats().idle == 1


def test_14_what_cannot_be_used_again_is_not_drained() -> None:
    refused = [HEAD, REFUSAL[:-5], Delay(DRAIN_SECONDS / 10), REFUSAL[-5:]]
    backend = ScriptedBackend(refused, [HEAD, b"HTTP/1.1 200 OK\r\n\r\n", b"x"])
    with checked_pool(backend, virtual_time=True) as pool:
        before = backend.clock.now()
        with pool.stream("POST", URL, content=Body(*[b"x" * 100_000] * 2)) as reply:
            assert reply.status == 413
        leave_unread(pool)
        assert backend.clock.now() == before
        assert backend.streams[1].log.count("read") == 1


@pytest.mark.parametrize(
    "head", [EARLY, b"HTTP/1.1 200 OK\r\n\r\n", response(b"x" * (DRAIN_BYTES + 1))[:100]]
)
def test_14_a_rest_of_unknown_or_great_length_is_not_waited_for(head: bytes) -> None:
    backend = ScriptedBackend([HEAD, head, Delay(DRAIN_SECONDS / 10), EOF])
    with checked_pool(backend, virtual_time=True) as pool:
        before = backend.clock.now()
        leave_unread(pool)
        assert backend.clock.now() == before
        assert backend.streams[0].is_closed


def test_a_body_half_read_is_drained_too() -> None:
    backend = ScriptedBackend([HEAD, b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none", b"two", HEAD, MINE])
    with checked_pool(backend) as pool:
        with pool.stream("GET", URL) as reply:
            assert next(iter(reply.stream)) == b"one"  # type: ignore[arg-type]
        assert pool.request("GET", URL).content == b"mine"
        assert len(backend.streams) == 1


# --- the caller's bad input (group J) -----------------------------------------------------------------------

HOST = (b"Host", b"a.test")
LENGTH_2 = (b"Content-Length", b"2")
LENGTH_3 = (b"Content-Length", b"3")
CHUNKED = (b"Transfer-Encoding", b"chunked")


def ask(
    method: str, *fields: tuple[bytes, bytes], url: str = URL, content: Any = None, **extensions: Any
) -> Callable[[], Request]:
    """Makes a request; whether it may be made at all is a part of the question."""
    return lambda: Request(method, url, headers=fields or [HOST], content=content, extensions=extensions)


J_CASES: dict[str, tuple[type[LaminaError], Callable[[], Request]]] = {
    "J01 CR in the method": (LocalProtocolError, ask("G\rT")),
    "J01 space in the method": (LocalProtocolError, ask("G T")),
    "J01 LF in the target": (LocalProtocolError, ask("GET", target=b"/a\nb")),
    "J01 space in the target": (LocalProtocolError, ask("GET", target=b"/a b")),
    "J01 CRLF in a value": (LocalProtocolError, ask("GET", HOST, (b"A", b"b\r\nC: d"))),
    "J01 NUL in a value": (LocalProtocolError, ask("GET", HOST, (b"A", b"b\x00"))),
    "J01 LF in a name": (LocalProtocolError, ask("GET", HOST, (b"A\n", b"b"))),
    "J01 space in a name": (LocalProtocolError, ask("GET", HOST, (b"A ", b"b"))),
    "J01 CRLF in Host": (LocalProtocolError, ask("GET", (b"Host", b"a\r\nB: c"))),
    "J03 CRLF in the server name": (LocalProtocolError, ask("GET", sni_hostname="a\r\nb")),
    "J04 port": (InvalidURL, ask("GET", url="http://a.test:99999/")),
    "J04 no host": (InvalidURL, ask("GET", url="http:///")),
    "J04 bracket": (InvalidURL, ask("GET", url="http://[::1")),
    "J04 NUL host": (InvalidURL, ask("GET", url="http://a\x00b/")),
    "J04 long label": (InvalidURL, ask("GET", url=f"http://{'a' * 64}.test/")),
    "J04 scheme": (UnsupportedProtocol, ask("GET", url="ftp://a.test/")),
    "J05 str body": (ArgumentTypeError, ask("POST", content="text")),
    "J05 int body": (ArgumentTypeError, ask("POST", content=5)),
    "J06 longer": (LocalProtocolError, ask("POST", HOST, LENGTH_3, content=b"four")),
    "J06 shorter": (LocalProtocolError, ask("POST", HOST, LENGTH_3, content=b"tw")),
    "J06 undeclared": (LocalProtocolError, ask("POST", HOST, content=b"tw")),
    "J07 two lengths": (LocalProtocolError, ask("POST", HOST, LENGTH_2, LENGTH_2, content=b"tw")),
    "J07 length and chunks": (LocalProtocolError, ask("POST", HOST, LENGTH_2, CHUNKED, content=b"tw")),
    "J08 timeout key": (ArgumentValueError, ask("GET", timeout={"reed": 1})),
    "J08 negative timeout": (ArgumentValueError, ask("GET", timeout={"read": -1})),
}


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize("name", J_CASES)
def test_bad_input_is_refused_before_anything_is_dialled_or_sent(name: str, is_warm: bool) -> None:
    expected, make = J_CASES[name]
    backend = ScriptedBackend(*([[HEAD, OK, HEAD, MINE]] if is_warm else []))
    with checked_pool(backend) as pool:
        if is_warm:
            warm(pool)
        written = bytes(backend.streams[0].written) if is_warm else b""
        with pytest.raises(expected):
            pool.handle_request(make())
        if is_warm:
            assert bytes(backend.streams[0].written) == written
            assert pool.request("GET", URL).content == b"mine"
        assert len(backend.dials) == is_warm


@pytest.mark.parametrize("watchful", [True, False])
@pytest.mark.parametrize("piece", ["text", 5, None.__class__, [1]])
@pytest.mark.parametrize("is_first", [True, False])
def test_j05_a_body_that_yields_no_bytes(piece: Any, is_first: bool, watchful: bool) -> None:
    backend = ScriptedBackend(Script(HEAD, watchful=watchful), [HEAD, MINE])
    body = Body(*([] if is_first else [b"good"]), lambda: piece, b"more")
    with checked_pool(backend) as pool:
        with pytest.raises(ArgumentTypeError, match="must yield bytes"):
            pool.request("POST", URL, content=body)
        assert body.is_closed
        assert backend.streams[0].is_closed
        if is_first:
            assert not backend.streams[0].written
        assert pool.request("GET", URL).content == b"mine"


@pytest.mark.parametrize(
    "piece",
    [
        b"piece",
        bytearray(b"piece"),
        memoryview(b"piece"),
        memoryview(b"p-i-e-c-e")[::2],
        memoryview(b"piece").cast("c"),
    ],
)
def test_whatever_is_like_bytes_is_sent(piece: Any) -> None:
    backend = ScriptedBackend([Received(b"0\r\n\r\n"), OK])
    with checked_pool(backend) as pool:
        pool.request("POST", URL, content=Body(piece, b"", piece))
        assert bytes(backend.streams[0].written).endswith(b"\r\n\r\n5\r\npiece\r\n5\r\npiece\r\n0\r\n\r\n")


def test_a_wide_memoryview_is_counted_in_bytes() -> None:
    backend = ScriptedBackend([Received(b"0\r\n\r\n"), OK])
    with checked_pool(backend) as pool:
        pool.request("POST", URL, content=Body(memoryview(array.array("H", [0x4141, 0x4141]))))
        assert bytes(backend.streams[0].written).endswith(b"\r\n\r\n4\r\nAAAA\r\n0\r\n\r\n")


@pytest.mark.parametrize("pieces", [[b"t", b"w"], [], [b"two", b"!"], [b"x" * 100_000]])
@pytest.mark.parametrize("watchful", [True, False])
def test_j06_an_iterator_that_gives_less_or_more_than_declared(pieces: list[bytes], watchful: bool) -> None:
    backend = ScriptedBackend(Script(HEAD, watchful=watchful), [HEAD, MINE])
    with checked_pool(backend) as pool:
        body = Body(*pieces)
        with pytest.raises(LocalProtocolError) as caught:
            pool.request("POST", URL, headers={"Content-Length": "3"}, content=body)
        assert caught.value.origin == "http://a.test:80"
        assert body.is_closed
        assert backend.streams[0].is_closed
        assert bytes(backend.streams[0].written).count(b"x") == 0
        assert pool.request("GET", URL).content == b"mine"


class TheirsError(Exception):
    """An exception of the caller's own."""


@pytest.mark.parametrize(
    "error", [TheirsError("x"), KeyboardInterrupt(), GeneratorExit(), StopAsyncIteration()]
)
@pytest.mark.parametrize("pieces", [[], [b"x" * 100], [b"x" * 100_000]])
@pytest.mark.parametrize("is_warm", [False, True])
def test_g06_an_exception_of_the_bodys_own_comes_out_as_it_is(
    error: BaseException, pieces: list[bytes], is_warm: bool
) -> None:
    backend = ScriptedBackend([HEAD, OK, HEAD] if is_warm else [HEAD], [HEAD, MINE])
    with checked_pool(backend) as pool:
        if is_warm:
            warm(pool)
        body = Body(*pieces, error=error)
        with pytest.raises(type(error)) as caught:
            pool.request("POST", URL, content=body)
        assert caught.value is error
        assert body.is_closed
        assert backend.streams[0].is_closed
        assert pool.request("GET", URL).content == b"mine"


def test_g06_a_generators_finally_runs_before_the_request_returns() -> None:
    ended: list[str] = []

    def generate() -> Iterator[bytes]:
        try:
            while True:
                yield b"x" * 10_000
        finally:
            ended.append("now")

    backend = ScriptedBackend([HEAD, REFUSAL])
    with checked_pool(backend) as pool:
        reply = pool.handle_request(
            Request(
                "POST", URL, headers={"Host": "a.test", "Transfer-Encoding": "chunked"}, content=generate()
            )
        )
        assert ended == ["now"]
        reply.close()


EXCHANGE_EVENTS = [
    "connection.connect_tcp.started",
    "connection.connect_tcp.complete",
    "http11.send_request_headers.started",
    "http11.send_request_headers.complete",
    "http11.send_request_body.started",
    "http11.send_request_body.complete",
    "http11.receive_response_headers.started",
    "http11.receive_response_headers.complete",
    "http11.receive_response_body.started",
    "http11.receive_response_body.complete",
    "http11.response_closed.started",
    "http11.response_closed.complete",
]
"""The events of one request over a new connection, as httpcore 1.0 tells them."""


@pytest.mark.parametrize("event", EXCHANGE_EVENTS)
def test_g06_an_exception_of_the_trace_callback_comes_out_as_it_is(event: str) -> None:
    error = TheirsError(event)

    def trace(name: str, info: dict[str, Any]) -> None:
        if name == event:
            raise error

    backend = ScriptedBackend([HEAD, OK, HEAD, MINE], [HEAD, MINE])
    with checked_pool(backend) as pool:
        with pytest.raises(TheirsError) as caught:
            pool.request("GET", URL, extensions={"trace": trace})
        assert caught.value is error
        assert len(backend.open_streams) == pool.stats().idle
        assert pool.request("GET", URL).status == 200


# --- traces ------------------------------------------------------------------------------------------------


def traced(pool: ConnectionPool, method: str = "GET", **options: Any) -> list[tuple[str, dict[str, Any]]]:
    events: list[tuple[str, dict[str, Any]]] = []
    try:
        pool.request(
            method, URL, extensions={"trace": lambda name, info: events.append((name, info))}, **options
        )
    except LaminaError:
        pass
    return events


def test_the_events_are_those_of_httpcore_in_their_order() -> None:
    backend = ScriptedBackend([HEAD, OK, HEAD, OK])
    with checked_pool(backend) as pool:
        events = traced(pool)
        assert [name for name, _ in events] == EXCHANGE_EVENTS
        told = dict(events)
        request = told["http11.send_request_headers.started"]["request"]
        assert isinstance(request, Request)
        for name in ("send_request_body", "receive_response_headers", "receive_response_body"):
            assert told[f"http11.{name}.started"]["request"] is request
        assert told["http11.receive_response_headers.complete"]["return_value"] == (
            b"HTTP/1.1",
            200,
            b"OK",
            [(b"Content-Length", b"2")],
        )
        assert told["http11.send_request_body.complete"]["return_value"] is None
        # A second request over the same connection: no dialling.
        assert [name for name, _ in traced(pool, "POST", content=b"body")] == EXCHANGE_EVENTS[2:]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param(
            [HEAD, RESET],
            [*EXCHANGE_EVENTS[:7], "http11.receive_response_headers.failed"],
            id="no head",
        ),
        pytest.param(
            [HEAD, OK[:-1], RESET],
            [*EXCHANGE_EVENTS[:9], "http11.receive_response_body.failed"],
            id="half a body",
        ),
    ],
)
def test_a_step_that_fails_is_told_as_failed(steps: list[Any], expected: list[str]) -> None:
    with checked_pool(ScriptedBackend(steps)) as pool:
        events = traced(pool)
        assert [name for name, _ in events][: len(expected)] == expected
        assert isinstance(dict(events)[expected[-1]]["exception"], ReadError)


def test_with_a_trace_head_and_body_are_written_one_by_one_and_without_in_one() -> None:
    backend = ScriptedBackend([Received(b"body"), OK, Received(b"body"), OK])
    with checked_pool(backend) as pool:
        pool.request("POST", URL, content=b"body")
        assert len(backend.streams[0].writes) == 1
        traced(pool, "POST", content=b"body")
        assert [len(write) for write in backend.streams[0].writes[1:]] == [
            len(backend.streams[0].writes[0]) - 4,
            4,
        ]


# --- any servers, any callers ------------------------------------------------------------------------------

# How a server answers: what it makes of the right response, and what it does behind it.
MANNERS: dict[str, Callable[[bytes], list[Any]]] = {
    "well": lambda body: [response(body)],
    "in pieces": lambda body: [response(body)[i : i + 7] for i in range(0, len(response(body)), 7)],
    "chunked": lambda body: [EARLY + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)],
    "chunked in pieces": lambda body: [EARLY, b"%x\r\n" % len(body), body, b"\r\n0\r\n", b"\r\n"],
    "behind a hint": lambda body: [b"HTTP/1.1 103 x\r\n\r\n", response(body)],
    "until close": lambda body: [b"HTTP/1.1 200 OK\r\n\r\n", body, EOF],
    "for the last time": lambda body: [response(body, headers=b"Connection: close\r\n"), EOF],
    "twice at once": lambda body: [response(body) + EVIL],
    "twice": lambda body: [response(body), EVIL],
    "twice, the second late": lambda body: [response(body), CHECKED, EVIL],
    "framed twice": lambda body: [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n"
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    ],
    "with a body where none may be": lambda body: [b"HTTP/1.1 204 x\r\nContent-Length: 4\r\n\r\n", b"evil"],
    "and closes": lambda body: [response(body), EOF],
    "and resets": lambda body: [response(body), RESET],
    "and closes after the next request": lambda body: [response(body), Received(b"X-Token: "), EOF],
    "not at all": lambda body: [],
    "by closing": lambda body: [EOF],
    "by resetting": lambda body: [RESET],
    "in part": lambda body: [response(body)[:-3], EOF],
    "in part, then silence": lambda body: [response(body)[:-3]],
    "nonsense": lambda body: [b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nevil"],
    "something else": lambda body: [b"220 mail.test ESMTP\r\n"],
}
USES = ["read", "leave", "read a piece", "post", "post an iterator", "put"]


@given(
    st.lists(st.lists(st.sampled_from(sorted(MANNERS)), min_size=1, max_size=5), min_size=1, max_size=4),
    st.lists(st.sampled_from(USES), min_size=1, max_size=12),
    st.booleans(),
)
def test_whatever_servers_and_callers_do_no_request_gets_anothers_answer(
    manners: list[list[str]], uses: list[str], watchful: bool
) -> None:
    connections = itertools.count()

    def serve() -> Script:
        number = next(connections)

        def steps() -> Iterator[Any]:
            for manner in itertools.cycle(manners[number % len(manners)]):
                yield Received(b"X-Token: ")
                request = bytes(backend.streams[number].written).rpartition(b"X-Token: ")[2]
                yield from MANNERS[manner](b"for " + request.partition(b"\r\n")[0])

        script = Script(watchful=watchful)
        script.steps = steps()
        return script

    backend = ScriptedBackend(otherwise=serve)
    with checked_pool(backend, virtual_time=True, max_connections=2) as pool:
        origins: set[str | None] = {"http://a.test:80"}
        for token, use in enumerate(uses):
            headers = {"X-Token": f"{token}."}
            extensions = {"timeout": {"read": 2, "write": 2}}
            content: Any = {"post": b"body", "put": b"body", "post an iterator": iter([b"bo", b"dy"])}.get(
                use
            )
            got = b""
            try:
                with pool.stream(
                    use.partition(" ")[0].upper() if use.startswith(("post", "put")) else "GET",
                    URL,
                    headers=headers,
                    content=content,
                    extensions=extensions,
                ) as reply:
                    if use == "read a piece":
                        got = next(iter(reply.stream), b"")  # type: ignore[arg-type]
                    elif use != "leave":
                        got = reply.read()
                        assert got == (b"for %d." % token if reply.status == 200 else b"")
            except LaminaError as error:
                origins.add(error.origin)
            assert (b"for %d." % token).startswith(got)
        assert origins == {"http://a.test:80"}


# --- small things that add up ------------------------------------------------------------------------------


def test_k05_a_body_of_small_chunks_is_joined_per_read() -> None:
    count = 60_000
    wire = EARLY + b"1\r\nx\r\n" * count + b"0\r\n\r\n"
    backend = ScriptedBackend([HEAD, wire])
    with checked_pool(backend) as pool:
        start = time.process_time()
        with pool.stream("GET", URL) as reply:
            pieces = list(reply.iter_stream())
        assert b"".join(pieces) == b"x" * count
        assert len(pieces) <= len(wire) // 65536 + 2
        assert time.process_time() - start < 20  # seconds; by far


def test_a_large_body_is_passed_on_as_it_was_read() -> None:
    backend = ScriptedBackend([HEAD, response(b"x" * 1_000_000)])
    with checked_pool(backend) as pool, pool.stream("GET", URL) as reply:
        sizes = [len(piece) for piece in reply.iter_stream()]
        assert sum(sizes) == 1_000_000
        assert 65536 - 100 < sizes[0] < 65536
        assert sizes[1:4] == [131072, 262144, 524288]
        assert len(sizes) == 5


@pytest.mark.parametrize("odd", [b"", b"X: a\tb\r\n"])
@pytest.mark.parametrize(
    ("method", "head"),
    [("HEAD", b"HTTP/1.1 200 OK\r\n"), ("GET", b"HTTP/1.1 204 x\r\n"), ("GET", b"HTTP/1.1 304 x\r\n")],
)
def test_an_answer_without_a_body_need_not_be_read_for_its_connection_to_be_kept(
    method: str, head: bytes, odd: bytes
) -> None:
    backend = ScriptedBackend([HEAD, head + odd + b"\r\n", HEAD, MINE])
    with checked_pool(backend) as pool:
        with pool.stream(method, URL):
            pass
        assert pool.request("GET", URL).content == b"mine"
        assert len(backend.streams) == 1


def test_reads_grow_with_the_body_up_to_a_mebibyte_and_begin_small_with_each_exchange(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int | None] = []
    read = ScriptedStream.read

    def noting(self: ScriptedStream, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        asked.append(max_bytes)
        return read(self, max_bytes, timeout)

    monkeypatch.setattr(ScriptedStream, "read", noting)
    backend = ScriptedBackend([HEAD, response(b"x" * 5_000_000), HEAD, OK])
    with checked_pool(backend) as pool:
        assert len(pool.request("GET", URL).content) == 5_000_000
        assert asked == [65536, 131072, 262144, 524288, *[2**20] * 4]
        asked.clear()
        assert pool.request("GET", URL).content == b"ok"
        assert asked == [65536]


def test_reads_that_come_back_short_stay_as_they_are() -> None:
    backend = ScriptedBackend(
        [HEAD, *[b"HTTP/1.1 200 OK\r\nContent-Length: 600000\r\n\r\n", *[b"x" * 60_000] * 10]]
    )
    with checked_pool(backend) as pool, pool.stream("GET", URL) as reply:
        assert {len(piece) for piece in reply.iter_stream()} == {60_000}


def test_a_large_body_is_sent_uncopied_in_one_piece_and_a_small_one_with_its_head() -> None:
    backend = ScriptedBackend(Script(Received(b"x" * 1_000_000), OK, Received(b"tiny"), OK, watchful=False))
    with checked_pool(backend) as pool:
        pool.request("POST", URL, content=b"x" * 1_000_000)
        pool.request("POST", URL, content=b"tiny")
        assert backend.streams[0].writes[-1].endswith(b"\r\n\r\ntiny")


def test_trailers_come_with_the_end_of_the_body() -> None:
    wire = EARLY + b"2\r\nok\r\n"
    backend = ScriptedBackend([HEAD, wire, b"0\r\nDigest: abc\r\nDigest: def\r\n\r\n", HEAD, OK])
    with checked_pool(backend) as pool:
        with pool.stream("GET", URL) as reply:
            stream = reply.iter_stream()
            assert next(stream) == b"ok"
            assert reply.trailers == []
            assert list(stream) == []
            assert reply.trailers == [(b"Digest", b"abc"), (b"Digest", b"def")]
            assert reply.headers == [(b"Transfer-Encoding", b"chunked")]
        assert pool.request("GET", URL).trailers == []


@pytest.mark.parametrize(("hint", "elapsed", "is_reused"), [
    (b"timeout=5", 3.9, True),
    (b"timeout=5", 4.1, False),
    (b"timeout=1", 0.0, False),
    (b"timeout=0", 0.0, False),
    (b"max=100", 1000.0, True),
])  # fmt: skip
def test_the_servers_keep_alive_hint_is_obeyed(hint: bytes, elapsed: float, is_reused: bool) -> None:
    first = response(b"ok", headers=b"Keep-Alive: " + hint + b"\r\n")
    backend = ScriptedBackend([HEAD, first, HEAD, MINE], [HEAD, MINE])
    with checked_pool(backend, virtual_time=True) as pool:
        pool.request("GET", URL)
        backend.clock.advance(elapsed)
        assert pool.request("GET", URL).content == b"mine"
        assert len(backend.streams) == (1 if is_reused else 2)


def test_time_limits_reach_the_stream_as_they_were_given() -> None:
    backend = ScriptedBackend([HEAD, OK, HEAD, OK])
    with checked_pool(backend) as pool:
        pool.request("GET", URL, extensions={"timeout": {"read": 7, "write": 8}})
        pool.request("GET", URL)
        assert backend.streams[0].timeouts == [8, 7, None, None]


def test_an_answer_may_say_http_1_0() -> None:
    backend = ScriptedBackend([HEAD, b"HTTP/1.0 200 Fine\r\n\r\nall of it", EOF])
    with checked_pool(backend) as pool:
        reply = pool.request("GET", URL)
        assert reply.content == b"all of it"
        assert reply.extensions["http_version"] == b"HTTP/1.0"
        assert reply.extensions["reason_phrase"] == b"Fine"


# --- switching protocols -----------------------------------------------------------------------------------

SWITCHES = {
    "101": (
        "GET", {"Connection": "upgrade", "Upgrade": "echo"}, b"HTTP/1.1 101 Switching\r\nUpgrade: echo\r\n\r\n", 101
    ),
    "CONNECT": ("CONNECT", {}, b"HTTP/1.1 200 Established\r\nContent-Length: 5\r\n\r\n", 200),
}  # fmt: skip


def switch(pool: ConnectionPool, kind: str) -> Response:
    method, headers, _, status = SWITCHES[kind]
    extensions = {"target": b"b.test:443"} if method == "CONNECT" else {}
    reply = pool.handle_request(
        Request(method, URL, headers={"Host": "a.test", **headers}, extensions=extensions)
    )
    assert reply.status == status
    return reply


@pytest.mark.parametrize("kind", SWITCHES)
@pytest.mark.parametrize("leading", [b"", b"leading bytes"])
@pytest.mark.parametrize("closed_by", ["stream", "response", "both", "pool", "context"])
def test_after_a_switch_the_stream_is_the_callers(kind: str, leading: bytes, closed_by: str) -> None:
    backend = ScriptedBackend(
        [HEAD, SWITCHES[kind][2] + leading, Received(b"ping"), b"pong", EOF], [HEAD, MINE]
    )
    with checked_pool(backend, max_connections=1) as pool:
        reply = switch(pool, kind)
        stream = reply.extensions["network_stream"]
        assert read_all(reply) == (b"", None)
        if leading:
            assert stream.get_extra_info("is_readable") is True
            assert stream.read(4) == leading[:4]
            assert stream.read() == leading[4:]
        assert stream.get_extra_info("is_readable") is False
        stream.write(b"ping", timeout=3)
        assert stream.read(100, timeout=4) == b"pong"
        assert stream.read() == b""
        assert stream.read() == b""
        assert backend.streams[0].timeouts[-4:-2] == [3, 4]
        # It has its place in the pool as long as it is open.
        assert pool.stats().active == 1
        assert not backend.streams[0].is_closed
        if closed_by in {"stream", "both"}:
            stream.close()
        if closed_by in {"response", "both"}:
            reply.close()
        if closed_by == "context":
            with stream:
                pass
        if closed_by == "pool":
            pool.close()
        assert backend.streams[0].is_closed
        assert pool.stats().active == 0
        stream.close()
        reply.close()
        if closed_by != "pool":
            assert pool.request("GET", URL).content == b"mine"


@pytest.mark.parametrize("kind", SWITCHES)
def test_the_stream_outlives_a_response_that_is_dropped(kind: str) -> None:
    backend = ScriptedBackend([HEAD, SWITCHES[kind][2], Received(b"ping"), b"pong"])
    with checked_pool(backend) as pool:
        stream = switch(pool, kind).extensions["network_stream"]
        stream.write(b"ping")
        assert stream.read() == b"pong"
        assert pool.stats().active == 1
        stream.close()
        assert pool.stats().connections == 0


@pytest.mark.parametrize("kind", SWITCHES)
def test_a_stream_that_is_dropped_unclosed_is_warned_of_and_its_place_given_back(kind: str) -> None:
    backend = ScriptedBackend([HEAD, SWITCHES[kind][2]], [HEAD, MINE])
    with checked_pool(backend, max_connections=1) as pool:
        with pytest.warns(ResourceWarning, match="never"):
            switch(pool, kind)
        assert pool.request("GET", URL).content == b"mine"
        assert backend.streams[0].is_closed


def test_bytes_before_a_handshake_inside_a_tunnel_are_not_trusted() -> None:
    backend = ScriptedBackend([HEAD, SWITCHES["CONNECT"][2] + b"\x16"])
    with checked_pool(backend) as pool:
        stream = switch(pool, "CONNECT").extensions["network_stream"]
        with pytest.raises(LaminaError):
            stream.start_tls(object())
        assert backend.streams[0].is_closed


def test_a_refused_switch_is_an_ordinary_response_and_its_connection_is_kept() -> None:
    refusal = response(b"no", status="407 x")
    backend = ScriptedBackend([HEAD, refusal, HEAD, MINE])
    with checked_pool(backend) as pool:
        reply = pool.request("CONNECT", URL, extensions={"target": b"b.test:443"})
        assert (reply.status, reply.content) == (407, b"no")
        assert pool.request("GET", URL).content == b"mine"
        assert len(backend.streams) == 1


def test_a15_an_upgrade_that_nobody_asked_for_is_refused() -> None:
    backend = ScriptedBackend([HEAD, SWITCHES["101"][2] + EVIL], [HEAD, MINE])
    with checked_pool(backend) as pool:
        with pytest.raises(RemoteProtocolError):
            pool.request("GET", URL)
        assert backend.streams[0].is_closed
        assert pool.request("GET", URL).content == b"mine"


@pytest.mark.parametrize("watchful", [True, False])
def test_an_upgrade_with_a_body_is_switched_once_the_body_is_sent(watchful: bool) -> None:
    head = SWITCHES["101"][2]
    script = Script(HEAD, head, Received(b"last"), b"leading", watchful=watchful)
    backend = ScriptedBackend(script)
    with checked_pool(backend) as pool:
        body = b"x" * 300_000 + b"last"
        headers = {
            "Host": "a.test",
            "Connection": "upgrade",
            "Upgrade": "echo",
            "Content-Length": str(len(body)),
        }
        reply = pool.handle_request(Request("POST", URL, headers=headers, content=body))
        assert reply.status == 101
        assert backend.streams[0].written.endswith(b"last")
        stream = reply.extensions["network_stream"]
        assert stream.read() == b"leading"
        stream.close()


def test_any_stream_will_do_that_has_the_four_methods() -> None:
    """A stream as the documents have it: no `abort`, no `is_readable`, no `write_until_readable`.

    It cannot tell whether bytes came unasked, so each request has a connection of its own.
    """

    class Plain:
        def __init__(self, stream: NetworkStream) -> None:
            self.read = stream.read
            self.write = stream.write
            self.close = stream.close

        def get_extra_info(self, info: str) -> None:
            return None

    class PlainBackend(ScriptedBackend):
        def connect_tcp(self, *args: Any, **kwargs: Any) -> Any:
            return Plain(super().connect_tcp(*args, **kwargs))

    backend = PlainBackend([HEAD, OK, EVIL], [Received(b"body"), OK, EVIL], [HEAD, MINE])
    with ConnectionPool(network_backend=backend) as pool:
        warm(pool)
        assert pool.request("POST", URL, content=[b"body"]).content == b"ok"
        assert pool.request("GET", URL).content == b"mine"
        assert backend.streams[0].is_closed
        assert backend.streams[1].is_closed
    assert not backend.open_streams


def test_a_callback_in_the_midst_may_close_the_pool() -> None:
    pools: list[ConnectionPool] = []

    def close() -> None:
        pools[0].close()

    backend = ScriptedBackend([HEAD, Call(close), OK])
    pools.append(pool := ConnectionPool(network_backend=backend))
    with pytest.raises(PoolClosed):
        pool.request("GET", URL)
    assert not backend.open_streams
    assert pool.stats().connections == 0
