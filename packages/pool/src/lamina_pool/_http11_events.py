"""What comes of the bytes of an HTTP/1.1 connection, and how much of each there may be.

Shared by the session (`_http11.py`), its patterns (`_http11_fast.py`) and the judge (`_http11_judge.py`).
"""

from __future__ import annotations

import re
from typing import NamedTuple, TypeAlias

Headers: TypeAlias = "list[tuple[bytes, bytes]]"

MAX_HEAD_BYTES = 100 * 1024
"""The most bytes of one head. Servers' own limits lie at 8 to 64 KiB."""

MAX_CHUNK_OVERHEAD = 8 * 1024
"""The most bytes of one chunk's header, extensions included, or of the trailer section."""

MAX_BLANKS = 1024
"""The most blanks in a row in a head. Nobody needs two."""

SLICE_BYTES = 8 * 1024
"""How much h11 is fed at once while what comes may be a head or a chunk's header."""

BODY_SLICE_BYTES = 64 * 1024
"""How much h11 is fed at once of any other body. It moves all that it holds with each piece that it gives."""

MAX_FIELDS = 256
"""The most fields in one head or trailer section; in a head, the most lines of them."""

MAX_INTERIM_RESPONSES = 16
"""The most 1xx responses before the final one. A server needs one or two (100, 103)."""

MAX_INTERIM_BYTES = 64 * 1024
"""The most bytes of fields in all 1xx responses to one request."""

MAX_QUOTE = 200
"""The most characters of what a peer sent that an error message quotes."""

KEEP_ALIVE_MARGIN = 1.0
"""Seconds by which a server's `Keep-Alive: timeout=` is shortened, for a request that is on its way as it ends."""


_KEEP_ALIVE_TIMEOUT = re.compile(rb"(?:^|[,;\s])timeout\s*=\s*\"?(\d{1,9})\"?(?=$|[,;\s])", re.IGNORECASE)


class InterimResponse(NamedTuple):
    """A 1xx response that is not the answer yet (RFC 9110, section 15.2)."""

    status: int
    headers: Headers


class ResponseHead(NamedTuple):
    """Status line and fields of the answer.

    Attributes:
        http_version: `b"HTTP/1.1"` or `b"HTTP/1.0"`.
        status: 200 to 599 and beyond, or 101 when the server switches protocols as it was asked to.
        reason: the reason phrase, often empty.
        headers: the fields in their order, names as the server wrote them.
        switches_protocol: whether what follows is no longer HTTP: after 101, and after 2xx to CONNECT.
    """

    http_version: bytes
    status: int
    reason: bytes
    headers: Headers
    switches_protocol: bool


class BodyData(NamedTuple):
    """A piece of the answer's body; not empty."""

    data: bytes


class EndOfResponse(NamedTuple):
    """The answer is complete."""

    trailers: Headers


Event: TypeAlias = "InterimResponse | ResponseHead | BodyData | EndOfResponse"


def keep_alive_timeout(value: bytes) -> int | None:
    """The seconds that a field `Keep-Alive` promises, if it does."""
    found = _KEEP_ALIVE_TIMEOUT.search(value)
    return None if found is None else int(found.group(1))


def idle_seconds(timeout: int | None) -> float:
    """How long a connection may idle after `Keep-Alive: timeout=`, in seconds; `inf` where there was none."""
    return float("inf") if timeout is None else max(0.0, timeout - KEEP_ALIVE_MARGIN)


def shortened(text: str) -> str:
    """h11 quotes a whole line, which may be as long as a head may be."""
    return text if len(text) <= MAX_QUOTE else f"{text[:MAX_QUOTE]}…"


def describe_foreign_bytes(data: bytes, expected: str) -> str:
    """Say what a peer speaks whose first bytes are not those of what was expected."""
    if data[:1] in (b"\x15", b"\x16") and data[1:2] in (b"\x03", b""):
        return "the server answered with TLS to a request without TLS; is this an https port?"
    if data[3:4] == b"\x04" and data[5:9] == bytes(4):
        return "the server speaks HTTP/2 where HTTP/1.1 was expected"
    if data.startswith(b"SSH-"):
        return "the server speaks SSH, not HTTP"
    return f"the server's answer is not {expected}; it begins with {data[:32]!r}"
