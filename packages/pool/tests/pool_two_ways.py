"""The session of HTTP/1.1 in its two ways: with the judge from the start, and only where it is at a loss.

`differences(acts)` has both do the same and returns what differs, for the tests and for `tools/fuzz_http11.py`.
"""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any, TypeAlias

from lamina_interfaces import LocalProtocolError, RemoteProtocolError
from lamina_pool._http11 import BodyData, EndOfResponse, HTTP11Session, ResponseHead

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lamina_pool._http11 import Headers

Act: TypeAlias = "tuple[Any, ...]"
"""`("head", method, target, headers)`, `("body", data)`, `("end",)`, `("receive", data)`, `("ask",)` or `("next",)`."""


class JudgedSession(HTTP11Session):
    """It trusts no pattern."""

    __slots__ = ()

    def send_head(
        self, method: bytes, target: bytes, headers: Headers, written: tuple[bytes, int] | None = None
    ) -> bytes:
        self._judged()
        return super().send_head(method, target, headers, written)


def is_plain(session: HTTP11Session) -> bool:
    """Whether the present exchange has gone without the judge so far."""
    return session._judge is None


class Player:
    """Does the acts with one session, and writes down what comes of it."""

    def __init__(self, session: HTTP11Session) -> None:
        self.session = session
        self.sent = b""
        self.events: list[Any] = []
        self.error: tuple[type[Exception], str] | None = None
        self._has_ended = False

    def play(self, act: Act) -> None:
        session = self.session
        try:
            match act:
                case ("head", method, target, headers):
                    self.sent += session.send_head(method, target, headers)
                case ("body", data):
                    self.sent += b"".join(session.send_body(data))
                case ("end",):
                    self.sent += session.send_end()
                case ("receive", data):
                    session.receive(data)
                    self._drain()
                case ("ask",):
                    session.obstacle_to_reuse()
                case ("next",):
                    if session.is_reusable:
                        session.start_next()
                        self.events.append("next")
                        self._has_ended = False
                case _:
                    raise AssertionError(act)
        except (LocalProtocolError, RemoteProtocolError) as error:
            self.error = (type(error), _without_quote(str(error)))

    def _drain(self) -> None:
        while not self._has_ended and (event := self.session.next_event()) is not None:
            if isinstance(event, BodyData) and isinstance(self.events[-1], BodyData):
                self.events[-1] = BodyData(self.events[-1].data + event.data)
            else:
                self.events.append(event)
            switches = isinstance(event, ResponseHead) and event.switches_protocol
            self._has_ended = switches or isinstance(event, EndOfResponse)

    def facts(self) -> dict[str, Any]:
        """What can be asked without calling the judge."""
        session = self.session
        return {
            "sent": self.sent,
            "events": self.events,
            "error": self.error,
            "is_reusable": session.is_reusable,
            "left_over": session.left_over if self._has_ended else None,
            "body_left": session.body_left,
            "idle_seconds": session.idle_seconds,
            "is_delimited_by_close": session.is_delimited_by_close,
            "is_answered_early": session.is_answered_early,
            "has_answer_begun": session.has_answer_begun,
            "exchanges": session.exchanges,
        }


def _without_quote(text: str) -> str:
    # How much of what should have been CRLF h11 quotes depends on how much it was given at once.
    return re.sub(r"(?s)(malformed chunk footer).*", r"\1", text)


def differences(acts: Iterable[Act]) -> dict[str, tuple[Any, Any]]:
    """Play the acts with both sessions, up to the first error; what differs, after each act, plain way first."""
    plain, judged = Player(HTTP11Session()), Player(JudgedSession())
    for act in acts:
        plain.play(act)
        judged.play(act)
        ours, theirs = plain.facts(), judged.facts()
        if found := {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}:
            return {"act": (act, act), **found}
        if plain.error is not None:
            break
    words = plain.session.obstacle_to_reuse(), judged.session.obstacle_to_reuse()
    if words[0] != words[1]:
        return {"obstacle_to_reuse": words}
    # Asked for its words, the first has called the judge, who must not see anything else than before.
    if plain.error is None and plain.facts() != judged.facts():
        return {"afterwards": (plain.facts(), judged.facts())}
    return {}


def cut_at(data: bytes, places: Iterable[int]) -> list[bytes]:
    """The data in pieces, none of them empty."""
    bounds = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds) if start < end]


# Requests as a whole, for answers to be tried on: the judge's own among them.
HOST = (b"Host", b"a.test")
LENGTH = (b"Content-Length", b"5")
IN_CHUNKS = (b"Transfer-Encoding", b"chunked")
REQUESTS: dict[str, list[Act]] = {
    "GET": [("head", b"GET", b"/", [HOST, (b"Accept", b"*/*")]), ("end",)],
    "HEAD": [("head", b"HEAD", b"/", [HOST]), ("end",)],
    "POST": [("head", b"POST", b"/", [HOST, LENGTH]), ("body", b"hello"), ("end",)],
    "POST in chunks": [("head", b"POST", b"/", [HOST, IN_CHUNKS]), ("body", b"hello"), ("end",)],
    "POST, half": [("head", b"POST", b"/", [HOST, LENGTH]), ("body", b"hel")],
    "POST, no end": [("head", b"POST", b"/", [HOST, IN_CHUNKS]), ("body", b"hel")],
    "CONNECT": [("head", b"CONNECT", b"a.test:443", [HOST]), ("end",)],
    "upgrade": [("head", b"GET", b"/", [HOST, (b"Upgrade", b"echo"), (b"Connection", b"upgrade")]), ("end",)],
    "close": [("head", b"GET", b"/", [HOST, (b"Connection", b"close")]), ("end",)],
    "nothing": [],
}
# What answers are made of, good and bad.
WORDS = [
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 404 Not Found\r\n", b"HTTP/1.1 204 No Content\r\n", b"HTTP/1.1 304 x\r\n",
    b"HTTP/1.1 500 \r\n", b"HTTP/1.1 200\r\n", b"HTTP/1.0 200 OK\r\n", b"HTTP/1.1 101 x\r\n", b"HTTP/1.1 100 x\r\n",
    b"HTTP/1.1 103 x\r\nLink: a\r\n\r\n", b"HTTP/1.1 099 x\r\n", b"HTTP/1.1 2000 x\r\n", b"HTTP/1.1  200 OK\r\n",
    b"HTTP/1.1 200 OK\n", b"HTTP/2 200\r\n", b"ICY 200 OK\r\n", b"HTTP/1.1\t200 OK\r\n",
    b"HTTP/1.1 200 \xe9\t\x7f\r\n", b"Content-Length: 5\r\n", b"content-length: 0\r\n", b"Content-Length: 005\r\n",
    b"Content-Length: 5, 5\r\n", b"Content-Length: +5\r\n", b"Content-Length: -5\r\n", b"Content-Length: 0x5\r\n",
    b"Content-Length: 5_0\r\n", b"Content-Length: \xd9\xa5\r\n", b"Content-Length:\r\n", b"Content-Length : 5\r\n",
    b"Content-Length: 5 \r\n", b"Content-Length: 9999999999999999999\r\n",
    b"Content-Length: 99999999999999999999\r\n", b"Content-Length: 100000000000000000000000\r\n",
    b"Content-Length: 6\r\n", b"Transfer-Encoding: chunked\r\n", b"transfer-encoding: Chunked\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: identity\r\n", b"Transfer-Encoding:\x0bchunked\r\n", b"Connection: close\r\n",
    b"Connection: Keep-Alive\r\n", b"Connection: keep-alive, close\r\n", b"Connection: x\r\n", b"Connection:\r\n",
    b"CONNECTION: close\r\n", b"content-Length: 5\r\n", b"Transfer-encoding: chunked\r\n", b"KEEP-alive: timeout=7\r\n",
    b"Keep-Alive: timeout=5\r\n", b"Keep-Alive: timeout=0\r\n", b"Keep-Alive: max=5\r\n", b"Upgrade: echo\r\n",
    b"Server: nginx\r\n", b"X:\r\n", b"X: \r\n", b"X:  y\r\n", b"X: y \r\n", b"X:y\r\n", b"X: y\tz\r\n",
    b"X: a  b\r\n", b"X : y\r\n", b" X: y\r\n", b"\tfolded\r\n", b": y\r\n", b"X\r\n", b"X: \x00\r\n", b"X: a\rb\r\n",
    b"X: y\n", b"X: y\r\r\n", b"X: \x7f\r\n", b"X: \x01\r\n", b"X: \xff\r\n", b"X: \x85\xa0\r\n", b"X\x00Y: z\r\n",
    b"X(Y): z\r\n", b"X: " + b" " * 1100 + b"y\r\n", b"X: a" + b" " * 1100 + b"y\r\n", b"\r\n", b"\r\n", b"\r\n",
    b"\n", b"\r", b"\n\n", b"\r\n\r\n", b" ", b"\x00", b"hello", b"5\r\nhello\r\n", b"05\r\nhello\r\n",
    b"5;a=b\r\nhello\r\n", b"5 \r\nhello\r\n", b"5\nhello\r\n", b"a\r\n", b"0\r\n\r\n", b"0000\r\n\r\n",
    b"0\r\nA: b\r\n\r\n", b"0;x\r\n\r\n", b"0\r\n", b"0\n\n", b"0x5\r\nhello\r\n", b"-5\r\nhello\r\n",
    b"+5\r\nhello\r\n", b"5_0\r\n", b"ffffffffffffffff\r\n", b"fffffffffffffffff\r\n", b"\xd9\xa5\r\nhello\r\n",
    b"0" * 16 + b"\r\n\r\n", b"0" * 17 + b"\r\n\r\n", b"0" * 21 + b"\r\n\r\n", b"5", b"1\r\nx\r\n",
]  # fmt: skip


def acts_of(
    request: str, pieces: Iterable[bytes], *, ends: bool = False, asks_at: int | None = None
) -> list[Act]:
    """A request, what comes of it, perhaps to its end, and a moment at which somebody asks for an obstacle."""
    acts: list[Act] = [*REQUESTS[request], *(("receive", piece) for piece in pieces)]
    if ends:
        acts.append(("receive", b""))
    if asks_at is not None:
        acts.insert(asks_at % (len(acts) + 1), ("ask",))
    return acts
