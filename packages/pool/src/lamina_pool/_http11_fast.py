"""HTTP/1.1 that is beyond doubt, written and read by patterns in one pass: no state, no I/O.

h11 is exact, and costs more than all the rest of a small request. What nearly all peers send nearly always is a small
and strict part of the grammar that h11 takes (RFC 9112). This module knows that part only. Each function returns `None`
for anything else, valid or not, and the judge (`_http11_judge.py`) is asked from there on. So nothing here refuses
anything, nothing words an error, and to take too little is only slow. What has to hold is the one thing that a reader
should check, and the differential tests do: **what is taken here, h11 takes, and makes the same of it.**

- Heads end in CRLF CRLF, and all their lines in CRLF: a bare LF or CR, a fold and a NUL match no pattern.
- A field is a token, a colon, at most one blank, and a value of visible characters with single blanks or more in
  between; no control character, tabs included. (h11 takes tabs and most controls.)
- At most one of Content-Length (19 digits at most) and Transfer-Encoding, which is `chunked`. Both at once, or one of
  them twice, is how one peer's body becomes the next peer's response.
- Connection is `keep-alive` or `close`, an answer's status is 200 to 999: what switches protocols is the judge's.
- A chunk's header is 1 to 16 hexadecimal digits, without extensions; behind the last chunk there are no trailers.

No pattern can backtrack: each repetition is possessive, and what follows it is a character that it cannot take.

A head that is sent is checked piece by piece, before it is joined: in a joined text a value with a line break in it
looks like two fields. Most programs send few different lists of fields, each many times: what was found out about a
list is remembered, and its bytes with it. Only plain tuples of plain bytes are looked up, which cannot be changed, and
are equal to nothing but what is the same.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from ._http11_events import MAX_BLANKS, MAX_FIELDS, ResponseHead, keep_alive_timeout

if TYPE_CHECKING:
    from ._http11_events import Headers

CHUNKED = -1
"""In place of a body's length: it comes in chunks."""

BEFORE_FIRST_CHUNK = -1
"""In place of the bytes that are left of a chunk: there has been none."""

MAX_PLAIN_HEAD = 16 * 1024
"""The most bytes of a head that is read here. Few servers send more; and that many are searched in no time."""

MIN_VIEW = 1024
"""Pieces of up to this many bytes are copied once more than they need be."""

MAX_KNOWN_LINES = 256
"""How many lines of request heads are remembered. A program sends a few dozen different ones."""

MAX_KNOWN_LINE = 256
"""The longest line that is remembered, in bytes."""

MAX_KNOWN_BLOCKS = 64
"""How many lists of fields are remembered. A program has a few for each server that it speaks with."""

MAX_KNOWN_BLOCK = 4 * 1024
"""The longest list that is remembered, in bytes as it is sent."""

MAX_LENGTH_DIGITS = 19
"""The longest Content-Length that is taken here."""

# RFC 9110, section 5.6.2.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# RFC 9110, section 5.5, without tabs. Behind it stands `_NO_BLANK`.
_VALUE = rb"(?:[!-~\x80-\xff][ -~\x80-\xff]*+)?+"
_NO_BLANK = rb"(?<! )"

_is_request_line = re.compile(rb"(?!CONNECT )" + _TOKEN + rb" [!-~]++ HTTP/1\.1\r\n").fullmatch
_is_name = re.compile(_TOKEN).fullmatch
_is_value = re.compile(_VALUE + _NO_BLANK).fullmatch
_match_status_line = re.compile(rb"HTTP/1\.1 ([2-9][0-9][0-9]) ([ -~\x80-\xff]*+)\r\n").match
# What is no field is found as a pair of nothings, the last, with all that is behind it: there are no gaps, so that each
# field begins where the one before it ended, and no byte is looked at again as the beginning of another.
_find_fields = re.compile(
    b"(" + _TOKEN + b"): ?+(" + _VALUE + b")" + _NO_BLANK + rb"\r\n|[\x00-\xff]++"
).findall
_START = b"HTTP/1.1 "
_OK = b"HTTP/1.1 200 OK\r\n"
# For what has no CRLF CRLF: h11 would take the head to end here. From an offset on.
has_odd_end = re.compile(rb"\n\r?\n").search
_match_first_size = re.compile(rb"([0-9A-Fa-f]{1,16}+)\r\n").match
_match_next_size = re.compile(rb"\r\n([0-9A-Fa-f]{1,16}+)\r\n").match
# What could become one of these, or the end of the body behind a size of nothing.
_PART_OF_SIZE = rb"(?:[0-9A-Fa-f]{1,16}+(?:\r(?:\n\r?+)?+)?+)?+"
_is_part_of_first_size = re.compile(_PART_OF_SIZE).fullmatch
_is_part_of_next_size = re.compile(rb"\r(?:\n" + _PART_OF_SIZE + rb")?+").fullmatch

# RFC 3986, sections 3.2.2 and 3.2.3: a name or a bracketed address, and a port. May be empty (RFC 9110, section 7.2).
is_host = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z\-._~%!$&'()*+,;=]*)(?::[0-9]*)?").fullmatch

# The names that nearly every request carries, in the two spellings that clients use: a look-up in place of a pattern
# and a conversion. Anything else takes the long way, with the same result.
KNOWN_NAMES: dict[bytes, bytes] = {
    spelling: name.lower()
    for name in (
        b"Accept", b"Accept-Encoding", b"Accept-Language", b"Authorization", b"Cache-Control", b"Connection",
        b"Content-Encoding", b"Content-Length", b"Content-Type", b"Cookie", b"Date", b"Expect", b"Host",
        b"If-Modified-Since", b"If-None-Match", b"Origin", b"Pragma", b"Proxy-Authorization", b"Range", b"Referer",
        b"TE", b"Traceparent", b"Transfer-Encoding", b"Upgrade", b"User-Agent", b"X-Request-Id",
    )
    for spelling in (name, name.lower())
}  # fmt: skip
# The same of answers: names that say nothing to the connection.
_SILENT_NAMES = frozenset(
    spelling
    for name in (
        b"Accept-Ranges", b"Access-Control-Allow-Credentials", b"Access-Control-Allow-Origin",
        b"Access-Control-Expose-Headers", b"Age", b"Alt-Svc", b"Cache-Control", b"CF-Cache-Status", b"CF-Ray",
        b"Content-Disposition", b"Content-Encoding", b"Content-Language", b"Content-Security-Policy",
        b"Content-Type", b"Date", b"ETag", b"Expires", b"Last-Modified", b"Location", b"P3P", b"Pragma",
        b"Referrer-Policy", b"Server", b"Set-Cookie", b"Strict-Transport-Security", b"Vary", b"Via", b"X-Cache",
        b"X-Content-Type-Options", b"X-Frame-Options", b"X-Powered-By", b"X-Request-Id", b"X-XSS-Protection",
    )
    for spelling in (name, name.lower())
)  # fmt: skip

# The names that say something to the connection, in a request and in an answer.
REQUEST_NAMES = frozenset(
    {b"connection", b"content-length", b"expect", b"host", b"transfer-encoding", b"upgrade"}
)
_ANSWER_NAMES = {
    spelling: name.lower()
    for name in (b"Connection", b"Content-Length", b"Keep-Alive", b"Transfer-Encoding")
    for spelling in (name, name.lower())
}
_is_secret = re.compile(
    rb"auth|bearer|cookie|credential|csrf|dpop|jwt|key|otp|pass|pin|proof|referer|secret|session|sign|token"
).search


class HeaderBlock(NamedTuple):
    """The fields of a request, and what they mean for the connection.

    Attributes:
        data: as HTTP/1.1 sends them: Host first, and up to the empty line behind them.
        length: of the body that follows, in bytes, or `CHUNKED`; `None` where none is declared.
        wants_keep_alive: they say `Connection: keep-alive`.
        expects_continue: they say `Expect: 100-continue`.
    """

    data: bytes
    length: int | None
    wants_keep_alive: bool
    expects_continue: bool


# Fields whose line has been checked, with the line: none that says something to the connection, and none that may be a
# secret by its name. With `clear` in place of an order of use there is nothing that two threads could get wrong.
known_lines: dict[tuple[bytes, bytes], bytes] = {}
# Whole lists of such fields, of Host and of Connection. What is new in each request, as a request's number, gets here
# as little as a secret: the lines must have been known before.
known_blocks: dict[tuple[tuple[bytes, bytes], ...], HeaderBlock] = {}


def may_be_plain(data: bytes) -> bool:
    """Whether this can be the beginning of an answer that is read here."""
    return data.startswith(_START) or _START.startswith(data)


def write_head(method: bytes, target: bytes, headers: Headers) -> tuple[bytes, int] | None:
    """The head of a request, as h11 writes it.

    Returns:
        The head, and the length of the body that follows it (`CHUNKED`, or bytes). `None`: ask the judge.
    """
    line = request_line(method, target)
    if line is None:
        return None
    block = header_block(tuple(headers))
    if block is None:
        return None
    return line + block.data, block.length or 0


def request_line(method: bytes, target: bytes) -> bytes | None:
    """The first line of a head. `None`: ask the judge."""
    if type(method) is not bytes or type(target) is not bytes:
        return None
    line = b"%b %b HTTP/1.1\r\n" % (method, target)
    return line if _is_request_line(line) else None


def header_block(fields: tuple[tuple[bytes, bytes], ...]) -> HeaderBlock | None:
    """What there is to know about the fields of a request. `None`: ask the judge."""
    try:
        for field in fields:
            name, value = field
            # Only of these is it certain that they stay what they are, and are what they are equal to.
            if type(name) is not bytes or type(value) is not bytes or type(field) is not tuple:
                return None
    except (TypeError, ValueError):
        return None  # no pair
    block = known_blocks.get(fields)
    return _checked_block(fields) if block is None else block


def _checked_block(fields: tuple[tuple[bytes, bytes], ...]) -> HeaderBlock | None:
    lines = [b""]  # for Host: RFC 9112, section 3.2
    length: int | None = None
    wants_keep_alive = expects_continue = False
    is_kept = True
    for field in fields:
        line = known_lines.get(field)
        if line is None:
            name, value = field
            lowered = KNOWN_NAMES.get(name)
            if lowered is None:
                if not _is_name(name):
                    return None
                lowered = name.lower()
            line = b"%b: %b\r\n" % field
            if lowered == b"host":
                if lines[0] or not is_host(value):
                    return None
                lines[0] = line
                continue
            if not _is_value(value):
                return None
            if lowered not in REQUEST_NAMES:
                if len(line) <= MAX_KNOWN_LINE and not _is_secret(lowered):
                    if len(known_lines) >= MAX_KNOWN_LINES:
                        known_lines.clear()
                    known_lines[field] = line
                is_kept = False
            elif lowered == b"connection":
                if value.lower() != b"keep-alive":
                    return None
                wants_keep_alive = True
            elif lowered == b"expect":
                if value.lower() != b"100-continue":
                    return None
                expects_continue = True
                is_kept = False
            else:
                if length is not None:
                    return None
                if lowered == b"content-length" and value.isdigit() and len(value) <= MAX_LENGTH_DIGITS:
                    length = int(value)
                elif lowered == b"transfer-encoding" and value == b"chunked":
                    length = CHUNKED
                else:
                    return None
                is_kept = False
        lines.append(line)
    if not lines[0]:
        return None
    lines.append(b"\r\n")
    data = b"".join(lines)
    block = HeaderBlock(data, length, wants_keep_alive, expects_continue)
    if is_kept and len(data) <= MAX_KNOWN_BLOCK:
        if len(known_blocks) >= MAX_KNOWN_BLOCKS:
            known_blocks.clear()
        known_blocks[fields] = block
    return block


def read_head(
    data: bytes, end: int, is_head_request: bool
) -> tuple[ResponseHead, int, bool, int | None] | None:
    """Read the head of an answer.

    Args:
        data: what has come of it.
        end: where the first CRLF CRLF is in it.
        is_head_request: whether it answers a HEAD, and so has no body.

    Returns:
        The head as it is told; the length of the body, in bytes, or `CHUNKED`; whether the server means to keep the
        connection, and for how many seconds, if it says so. `None`: ask the judge.
    """
    if data.startswith(_OK):
        status, reason, at = 200, b"OK", len(_OK)
    else:
        start = _match_status_line(data)
        if start is None:
            return None
        status, reason, at = int(start[1]), start[2], start.end()
    if end > MAX_PLAIN_HEAD or (end > MAX_BLANKS and data.find(b"  ", 0, end) >= 0):
        return None
    fields = _find_fields(data, at, end + 2)
    if (fields and not fields[-1][0]) or len(fields) > MAX_FIELDS:
        return None
    length = timeout = None
    keeps_alive = True
    for name, value in fields:
        if name in _SILENT_NAMES:
            continue
        lowered = _ANSWER_NAMES.get(name) or _ANSWER_NAMES.get(name.lower())
        if lowered is None:
            continue
        if lowered == b"content-length":
            if length is not None or not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
                return None
            length = int(value)
        elif lowered == b"transfer-encoding":
            if length is not None or value != b"chunked":
                return None
            length = CHUNKED
        elif lowered == b"connection":
            option = value.lower()
            if option == b"close":
                keeps_alive = False
            elif option != b"keep-alive":  # which goes without saying
                return None
        elif lowered == b"keep-alive":
            found = keep_alive_timeout(value)
            timeout = timeout if found is None else found
    if status in (204, 304) or is_head_request:
        # RFC 9110, section 8.6: with 204 there must be no length. The judge knows what a server means by one.
        if status == 204 and length is not None:
            return None
        length = 0
    elif length is None:
        return None  # delimited by the end of the connection
    return ResponseHead(b"HTTP/1.1", status, reason, fields, False), length, keeps_alive, timeout


class PlainChunks(NamedTuple):
    """What there is of a body in chunks.

    Attributes:
        body: the bytes of it.
        end: where it was read to.
        left: the bytes that are left of the chunk that was read to last.
        has_ended: whether this was all of the body.
        is_plain: whether what is behind `end` can still become plain; otherwise ask the judge.
    """

    body: bytes
    end: int
    left: int
    has_ended: bool
    is_plain: bool


def read_chunks(data: bytes, left: int) -> PlainChunks:
    """Read all complete chunks and the beginning of the one that is not.

    Args:
        data: what has come.
        left: the bytes that are left of the chunk in whose midst it begins, 0 right behind one,
            `BEFORE_FIRST_CHUNK` before the first.
    """
    pieces: list[bytes | memoryview] = []
    size = len(data)
    at = 0
    has_ended = False
    view: memoryview | None = None
    while True:
        if left > 0:
            end = min(at + left, size)
            if view is None:
                view = memoryview(data)
            # The view of a few bytes takes many times their memory.
            pieces.append(view[at:end] if end - at > MIN_VIEW else data[at:end])
            left -= end - at
            at = end
        if at == size:
            break
        header = (_match_first_size if left else _match_next_size)(data, at)
        if header is None:
            break
        count = int(header[1], 16)
        if not count:
            has_ended = data.startswith(b"\r\n", header.end())
            if has_ended:
                at = header.end() + 2
            break
        left = count
        at = header.end()
    body = b"".join(pieces)
    is_part = _is_part_of_first_size if left else _is_part_of_next_size
    is_plain = has_ended or at == size or is_part(data, at) is not None
    return PlainChunks(body, at, left, has_ended, is_plain)
