"""The ways in which a server can answer wrongly, or strangely, and what is to come of each: group A of the faults.

The session is fed with these bytes directly (`test_http11`), and through a pool (`test_connection`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A request, sent as a whole before anything comes in."""

    method: bytes = b"GET"
    target: bytes = b"/"
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes = b""


GET = Sent()
HEAD = Sent(method=b"HEAD")
CONNECT = Sent(method=b"CONNECT", target=b"a.test:443")
UPGRADE = Sent(headers=[(b"Connection", b"upgrade"), (b"Upgrade", b"echo")])
CLOSE = Sent(headers=[(b"Connection", b"close")])


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to answer.

    Attributes:
        wire: what the server sends.
        request: what it answers.
        ends: whether it ends the stream then.
        status: of the response that is delivered, if one is.
        body: that is delivered, before the error if there is one.
        error: a part of the message, or `None` for no error.
        reusable: whether the connection may be used again.
        trailers: those of a response that is complete.
    """

    wire: bytes
    request: Sent = GET
    ends: bool = False
    status: int | None = 200
    body: bytes = b""
    error: str | None = None
    reusable: bool = False
    trailers: Sequence[tuple[bytes, bytes]] = ()

    def pieces(self, pieces: list[bytes]) -> list[bytes]:
        return [*pieces, b""] if self.ends else pieces


def ok(headers: bytes = b"", content: bytes = b"", /, **row: Any) -> Row:
    """A 200 with these lines of headers, complete, and its connection fit for reuse unless the row says otherwise."""
    return Row(wire=b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n" + content, **{"reusable": True, **row})


def bad(headers: bytes, content: bytes = b"", /, **row: Any) -> Row:
    """A 200 with a head that is refused."""
    return ok(headers, content, **{"reusable": False, "status": None, "error": "", **row})


def chunked(content: bytes, /, **row: Any) -> Row:
    return ok(b"Transfer-Encoding: chunked\r\n", content, **row)


def bad_chunk(content: bytes, got: bytes = b"", /, **row: Any) -> Row:
    return chunked(content, **{"reusable": False, "error": "", "body": got, **row})


TWO = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\none"

CATALOGUE: dict[str, Row] = {
    # Beyond doubt.
    "length": ok(b"Content-Length: 5\r\n", b"hello", body=b"hello"),
    "length zero": ok(b"Content-Length: 0\r\n"),
    "length repeated": ok(b"Content-Length: 2, 2\r\n", b"hi", body=b"hi"),
    "length in two fields": ok(b"Content-Length: 2\r\nContent-Length: 2\r\n", b"hi", body=b"hi"),
    "length with leading zeros": ok(b"Content-Length: 002\r\n", b"hi", body=b"hi"),
    "chunked": chunked(b"2\r\nhi\r\n003;a=b\r\n ho\r\n0\r\n\r\n", body=b"hi ho"),
    "chunked in capitals": ok(
        b"TRANSFER-ENCODING: ChunKed\r\n", b"A\r\n0123456789\r\n0\r\n\r\n", body=b"0123456789"
    ),
    "head of HEAD": ok(b"Content-Length: 5\r\n", request=HEAD),
    "head of HEAD, chunked": ok(b"Transfer-Encoding: chunked\r\n", request=HEAD),
    "204": Row(wire=b"HTTP/1.1 204 No Content\r\n\r\n", status=204, reusable=True),
    "204 with length 0": Row(wire=b"HTTP/1.1 204 x\r\nContent-Length: 0\r\n\r\n", status=204, reusable=True),
    "304 with the length of what it stands for": Row(
        wire=b"HTTP/1.1 304 x\r\nContent-Length: 10\r\n\r\n", status=304, reusable=True
    ),
    "no reason phrase": Row(wire=b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", status=404, reusable=True),
    "status beyond those of the RFC": Row(
        wire=b"HTTP/1.1 799 x\r\nContent-Length: 0\r\n\r\n", status=799, reusable=True
    ),
    "folded field": ok(b"X: a\r\n b\r\nContent-Length: 0\r\n"),
    "delimited by close": ok(b"", b"all", ends=True, body=b"all", reusable=False),
    "delimited by close, empty": ok(b"", ends=True, reusable=False),
    "not delimited yet": ok(b"", b"all", body=b"all", reusable=False),
    # A01 to A04: bytes behind the end of the response.
    "A01": Row(wire=TWO + TWO, body=b"one"),
    "A01 one byte": Row(wire=TWO + b"H", body=b"one"),
    "A01 chunked": chunked(b"1\r\nx\r\n0\r\n\r\n" + TWO, body=b"x", reusable=False),
    "A02": ok(b"Content-Length: 5\r\n", b"hello", request=HEAD, reusable=False),
    "A03": Row(wire=b"HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\nhello", status=204),
    "A03 body not here yet": Row(wire=b"HTTP/1.1 204 x\r\nContent-Length: 5\r\n\r\n", status=204),
    "A03 chunked, not here yet": Row(
        wire=b"HTTP/1.1 204 x\r\nTransfer-Encoding: chunked\r\n\r\n", status=204
    ),
    "A04": Row(wire=b"HTTP/1.1 304 x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n", status=304),
    # A07: framed twice. Read by its chunks, and not trusted any further.
    "A07": ok(
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        body=b"hello",
        reusable=False,
    ),
    "A07 the other way round": ok(
        b"Transfer-Encoding: chunked\r\nContent-Length: 15\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        body=b"hello",
        reusable=False,
    ),
    "A07 to HEAD": ok(b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n", request=HEAD, reusable=False),
    # A08
    "A08 +2": bad(b"Content-Length: +2\r\n", b"hi"),
    "A08 -1": bad(b"Content-Length: -1\r\n", b"hi"),
    "A08 list": bad(b"Content-Length: 2, 3\r\n", b"hi"),
    "A08 two": bad(b"Content-Length: 2\r\nContent-Length: 3\r\n", b"hi"),
    "A08 30 digits": bad(b"Content-Length: 100000000000000000000000000000\r\n", b"hi"),
    "A08 5,000 digits": bad(b"Content-Length: " + b"1" * 5000 + b"\r\n", b"hi"),
    "A08 0x2": bad(b"Content-Length: 0x2\r\n", b"hi"),
    "A08 empty": bad(b"Content-Length:\r\n", b"hi"),
    "A08 2_0": bad(b"Content-Length: 2_0\r\n", b"hi"),
    "A08 not ASCII digits": bad(b"Content-Length: \xb2\r\n", b"hi"),
    "A08 inner space": bad(b"Content-Length: 1 2\r\n", b"hi"),
    # A09
    "A09 0x2": bad_chunk(b"0x2\r\nhi\r\n0\r\n\r\n"),
    "A09 -2": bad_chunk(b"-2\r\nhi\r\n0\r\n\r\n"),
    "A09 +2": bad_chunk(b"+2\r\nhi\r\n0\r\n\r\n"),
    "A09 leading space": bad_chunk(b" 2\r\nhi\r\n0\r\n\r\n"),
    "A09 forty digits": bad_chunk(b"f" * 40 + b"\r\nhi\r\n0\r\n\r\n"),
    "A09 empty size": bad_chunk(b"\r\nhi\r\n0\r\n\r\n"),
    "A09 size of an extension only": bad_chunk(b";a\r\nhi\r\n0\r\n\r\n"),
    "A09 no CRLF behind the data": bad_chunk(b"2\r\nhi0\r\n\r\n", b"hi"),
    "A09 more data than announced": bad_chunk(b"2\r\nhiya\r\n0\r\n\r\n", b"hi"),
    "A09 LF only": bad_chunk(b"2\nhi\n0\n\n" + b"\r\n"),
    "A09 LF behind the data": bad_chunk(b"2\r\nhi\n\n0\r\n\r\n", b"hi"),
    "A09 second size": bad_chunk(b"2\r\nhi\r\nzz\r\n", b"hi"),
    "A09 trailer without a colon": bad_chunk(b"2\r\nhi\r\n0\r\nnonsense\r\n\r\n", b"hi"),
    "A09 trailer with an empty name": bad_chunk(b"2\r\nhi\r\n0\r\n: x\r\n\r\n", b"hi"),
    # A10
    "A10 gzip, chunked": bad(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n"),
    "A10 chunked, identity": bad(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n"),
    "A10 identity": bad(b"Transfer-Encoding: identity\r\n", b"0\r\n\r\n"),
    "A10 twice": bad(b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    "A10 twice in one": bad(b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
    "A10 vertical tab": bad(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n"),
    # A11
    "A11 NUL": bad(b"X: a\x00b\r\n"),
    "A11 bare CR": bad(b"X: a\rb\r\n"),
    "A11 CR CR LF": bad(b"X: a\r\r\n"),
    "A11 leading space": bad(b" X: a\r\n"),
    "A11 space before colon": bad(b"X : a\r\n"),
    "A11 empty name": bad(b": a\r\n"),
    "A11 no colon": bad(b"X\r\n"),
    "A11 form feed": bad(b"X: a\x0cb\r\n"),
    "A11 NUL in the reason": Row(wire=b"HTTP/1.1 200 O\x00K\r\n\r\n", status=None, error=""),
    # A12
    "A12 99999": Row(wire=b"HTTP/1.1 99999 x\r\n\r\n", status=None, error=""),
    "A12 20": Row(wire=b"HTTP/1.1 20 x\r\n\r\n", status=None, error=""),
    "A12 099": Row(wire=b"HTTP/1.1 099 x\r\n\r\n", status=None, error=""),
    "A12 +20": Row(wire=b"HTTP/1.1 +20 x\r\n\r\n", status=None, error=""),
    "A12 abc": Row(wire=b"HTTP/1.1 abc x\r\n\r\n", status=None, error=""),
    "A12 HTTP/2": Row(wire=b"HTTP/2 200\r\n\r\n", status=None, error=""),
    "A12 HTTP/2.0": Row(wire=b"HTTP/2.0 200 OK\r\n\r\n", status=None, error="HTTP/2.0"),
    "A12 HTTP/0.9": Row(wire=b"HTTP/0.9 200 OK\r\n\r\n", status=None, error="HTTP/0.9"),
    "A12 HTTP/3.0 interim": Row(wire=b"HTTP/3.0 103 x\r\n\r\n", status=None, error="HTTP/3.0"),
    "A12 HTTP/1.11": Row(wire=b"HTTP/1.11 200 OK\r\n\r\n", status=None, error=""),
    "A12 lower case": Row(wire=b"http/1.1 200 OK\r\n\r\n", status=None, error=""),
    "A12 ICY": Row(wire=b"ICY 200 OK\r\n\r\n", status=None, error=""),
    "A12 empty line first": Row(wire=b"\r\nHTTP/1.1 200 OK\r\n\r\n", status=None, error=""),
    "A12 empty lines": Row(wire=b"\r\n" * 100, status=None, error=""),
    "A12 two spaces": Row(wire=b"HTTP/1.1  200 OK\r\n\r\n", status=None, error=""),
    "A12 TLS alert": Row(wire=b"\x15\x03\x01\x00\x02\x02\x16", status=None, error=""),
    "A12 SSH": Row(wire=b"SSH-2.0-OpenSSH_9.2\r\n", status=None, error=""),
    "A12 nothing at all": Row(wire=b"", ends=True, status=None, error="without sending a response"),
    # A15
    "A15": Row(wire=b"HTTP/1.1 101 x\r\nUpgrade: echo\r\n\r\n", status=None, error=""),
    "A15 asked": Row(wire=b"HTTP/1.1 101 x\r\n\r\n", request=UPGRADE, status=101),
    # A16
    "A16 in the status line": Row(wire=b"HTTP/1.1 20", ends=True, status=None, error="ended the connection"),
    "A16 in the head": Row(
        wire=b"HTTP/1.1 200 OK\r\nX: ", ends=True, status=None, error="ended the connection"
    ),
    "A16 after an interim response": Row(
        wire=b"HTTP/1.1 103 x\r\n\r\n", ends=True, status=None, error="ended the connection"
    ),
    "A16 5 of 10": bad(b"Content-Length: 10\r\n", b"hello", ends=True, status=200, body=b"hello"),
    "A16 0 of 10": bad(b"Content-Length: 10\r\n", ends=True, status=200),
    "A16 in a chunk": bad_chunk(b"5\r\nhe", b"he", ends=True),
    "A16 behind a chunk": bad_chunk(b"5\r\nhello", b"hello", ends=True),
    "A16 in a size": bad_chunk(b"5\r\nhello\r\n1", b"hello", ends=True),
    "A16 before the last chunk": bad_chunk(b"5\r\nhello\r\n", b"hello", ends=True),
    "A16 behind the last size": bad_chunk(b"5\r\nhello\r\n0\r\n", b"hello", ends=True),
    "A16 in a trailer": bad_chunk(b"5\r\nhello\r\n0\r\nX: y", b"hello", ends=True),
    # A21
    "A21 close": ok(b"Connection: close\r\nContent-Length: 0\r\n", reusable=False),
    "A21 Close": ok(b"connection: Close\r\nContent-Length: 0\r\n", reusable=False),
    "A21 keep-alive, close": ok(b"Connection: keep-alive, close\r\nContent-Length: 0\r\n", reusable=False),
    "A21 in two fields": ok(
        b"Connection: keep-alive\r\nConnection: close\r\nContent-Length: 0\r\n", reusable=False
    ),
    "A21 keep-alive": ok(b"Connection: keep-alive\r\nContent-Length: 0\r\n"),
    "A21 1.0": Row(wire=b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", body=b"hi"),
    "A21 1.0 keep-alive": Row(
        wire=b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi", body=b"hi"
    ),
    "A21 we asked for it": ok(b"Content-Length: 0\r\n", request=CLOSE, reusable=False),
    # A22
    "A22": chunked(b"1\r\nx\r\n0\r\nA: b\r\nC: d\r\n\r\n", body=b"x", trailers=[(b"A", b"b"), (b"C", b"d")]),
    "A22 framing names": chunked(
        b"1\r\nx\r\n0\r\nHost: evil\r\nConnection: x\r\n\r\n",
        body=b"x",
        trailers=[(b"Host", b"evil"), (b"Connection", b"x")],
    ),
    "A22 ten thousand": bad_chunk(b"1\r\nx\r\n0\r\n" + b"A:\r\n" * 10_000 + b"\r\n", b"x"),
}
BIG = {"A22 ten thousand"}
