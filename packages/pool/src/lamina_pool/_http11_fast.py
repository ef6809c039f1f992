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
looks like two fields.
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

# RFC 9110, section 5.6.2.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# RFC 9110, section 5.5, without tabs. Behind it stands `_NO_BLANK`.
_VALUE = rb"(?:[!-~\x80-\xff][ -~\x80-\xff]*+)?+"
_NO_BLANK = rb"(?<! )"

_is_request_line = re.compile(_TOKEN + rb" [!-~]++ HTTP/1\.1\r\n").fullmatch
_is_name = re.compile(_TOKEN).fullmatch
_is_value = re.compile(_VALUE + _NO_BLANK).fullmatch
_match_status_line = re.compile(rb"HTTP/1\.1 ([2-9][0-9][0-9]) ([ -~\x80-\xff]*+)\r\n").match
# What is no field is found as a pair of nothings, with all that is behind it: there are no gaps, so that each field
# begins where the one before it ended, and no byte is looked at again as the beginning of another.
_find_fields = re.compile(
    b"(" + _TOKEN + b"): ?+(" + _VALUE + b")" + _NO_BLANK + rb"\r\n|[\x00-\xff]++"
).findall
_START = b"HTTP/1.1 "
_NO_FIELD = (b"", b"")
# For what has no CRLF CRLF: h11 would take the head to end here. From an offset on.
has_odd_end = re.compile(rb"\n\r?\n").search
_is_length = re.compile(rb"[0-9]{1,19}").fullmatch
_match_first_size = re.compile(rb"([0-9A-Fa-f]{1,16}+)\r\n").match
_match_next_size = re.compile(rb"\r\n([0-9A-Fa-f]{1,16}+)\r\n").match
# What could become one of these, or the end of the body behind a size of nothing.
_PART_OF_SIZE = rb"(?:[0-9A-Fa-f]{1,16}+(?:\r(?:\n\r?+)?+)?+)?+"
_is_part_of_first_size = re.compile(_PART_OF_SIZE).fullmatch
_is_part_of_next_size = re.compile(rb"\r(?:\n" + _PART_OF_SIZE + rb")?+").fullmatch

# Names and values whose line has been checked, with the line; `_checks.py` looks here, too. So what says something to
# the connection is left out, and what may be a secret by its name. With `clear` in place of an order of use there is
# nothing that two threads could get wrong.
known_lines: dict[tuple[bytes, bytes], bytes] = {}
# The names that say something to the connection, in a request and in an answer.
_REQUEST_NAMES = frozenset({b"connection", b"content-length", b"host", b"transfer-encoding", b"upgrade"})
_ANSWER_NAMES = frozenset({b"connection", b"content-length", b"keep-alive", b"transfer-encoding"})
_is_not_kept = re.compile(rb"^expect$|auth|cookie|credential|key|pass|secret|session|sign|token").search


def may_be_plain(data: bytes) -> bool:
    """Whether this can be the beginning of an answer that is read here."""
    return data.startswith(_START) or _START.startswith(data)


def write_head(method: bytes, target: bytes, headers: Headers) -> tuple[bytes, int] | None:
    """The head of a request, as h11 writes it.

    Returns:
        The head, and the length of the body that follows it (`CHUNKED`, or bytes). `None`: ask the judge.
    """
    try:
        start = b"%b %b HTTP/1.1\r\n" % (method, target)
        if start.startswith(b"CONNECT ") or not _is_request_line(start):
            return None
        lines = [start, b""]  # the second is for Host: RFC 9112, section 3.2
        length: int | None = None
        for field in headers:
            # Only of a plain tuple is it certain that it is what it was, and is iterated over as it is compared.
            line = known_lines.get(field) if type(field) is tuple else None
            if line is None:
                line = _checked_line(field)
                if line is None:
                    return None
                lowered = field[0].lower()
                if lowered in _REQUEST_NAMES:
                    value = field[1]
                    if lowered == b"host" and not lines[1]:
                        lines[1] = line
                        continue
                    if lowered == b"content-length" and length is None and _is_length(value):
                        length = int(value)
                    elif lowered == b"transfer-encoding" and length is None and value == b"chunked":
                        length = CHUNKED
                    elif lowered != b"connection" or value.lower() != b"keep-alive":
                        return None
                elif len(line) <= MAX_KNOWN_LINE and not _is_not_kept(lowered):
                    _remember(field, line)
            lines.append(line)
    except (TypeError, ValueError, BytesWarning):  # the last with `python -bb`
        return None  # something is no bytes, or no pair
    if not lines[1]:
        return None
    lines.append(b"\r\n")
    return b"".join(lines), length or 0


def _checked_line(field: tuple[bytes, bytes]) -> bytes | None:
    if type(field) is not tuple:
        return None
    name, value = field
    if type(name) is bytes is type(value) and _is_name(name) and _is_value(value):
        return b"%b: %b\r\n" % (name, value)
    return None


def _remember(field: tuple[bytes, bytes], line: bytes) -> None:
    if len(known_lines) >= MAX_KNOWN_LINES:
        known_lines.clear()
    known_lines[field] = line


class PlainHead(NamedTuple):
    """The head of an answer, and what it means for the connection.

    Attributes:
        head: as it is told.
        length: of the body, in bytes, or `CHUNKED`.
        keeps_alive: whether the server means to keep the connection.
        keep_alive_timeout: for how many seconds, if it says so.
    """

    head: ResponseHead
    length: int
    keeps_alive: bool
    keep_alive_timeout: int | None


def read_head(data: bytes, end: int, is_head_request: bool) -> PlainHead | None:
    """Read the head of an answer.

    Args:
        data: what has come of it.
        end: where the first CRLF CRLF is in it.
        is_head_request: whether it answers a HEAD, and so has no body.

    Returns:
        The head; `None`: ask the judge.
    """
    start = _match_status_line(data)
    if start is None or end > MAX_PLAIN_HEAD or (end > MAX_BLANKS and data.find(b"  ", 0, end) >= 0):
        return None
    fields = _find_fields(data, start.end(), end + 2)
    if _NO_FIELD in fields or len(fields) > MAX_FIELDS:
        return None
    length = timeout = None
    keeps_alive = True
    has_connection = False
    for name, value in fields:
        lowered = name.lower()
        if lowered not in _ANSWER_NAMES:
            continue
        if lowered == b"content-length":
            if length is not None or not _is_length(value):
                return None
            length = int(value)
        elif lowered == b"transfer-encoding":
            if length is not None or value != b"chunked":
                return None
            length = CHUNKED
        elif lowered == b"connection":
            option = value.lower()
            if has_connection or option not in (b"keep-alive", b"close"):
                return None
            has_connection = True
            keeps_alive = option == b"keep-alive"
        elif lowered == b"keep-alive":
            found = keep_alive_timeout(value)
            timeout = timeout if found is None else found
    status = int(start[1])
    if status in (204, 304) or is_head_request:
        # RFC 9110, section 8.6: with 204 there must be no length. The judge knows what a server means by one.
        if status == 204 and length is not None:
            return None
        length = 0
    elif length is None:
        return None  # delimited by the end of the connection
    return PlainHead(ResponseHead(b"HTTP/1.1", status, start[2], fields, False), length, keeps_alive, timeout)


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
