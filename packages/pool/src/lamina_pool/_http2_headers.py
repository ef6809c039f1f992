"""The fields of HTTP/2 messages: what a request's become, and whether a response's are well-formed.

In HTTP/2 the start line is fields as well, the pseudo-header fields (RFC 9113, section 8.3), and the framing
carries any byte. So everything that a parser of HTTP/1.1 could not even read has to be looked for (section 8.2.1):
who passes a response on would write a CR LF in a value into somebody's HTTP/1.1.

What is wrong with a message concerns its stream alone, and is raised as `MalformedMessage`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from hpack import NeverIndexedHeaderTuple

from lamina_interfaces import LocalProtocolError

from ._http11 import MAX_FIELDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._checks import RequestFraming
    from ._http11 import Headers

# Lower case, RFC 9113, section 8.2.1; otherwise a token, RFC 9110, section 5.6.2.
_is_name = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_is_value = re.compile(rb"(?:[^\0\r\n\t ](?:[^\0\r\n]*[^\0\r\n\t ])?)?").fullmatch
_is_status = re.compile(rb"[1-9][0-9]{2}").fullmatch
_is_length = re.compile(rb"[0-9]{1,20}").fullmatch
_is_target = re.compile(rb"(?:/[!-~]*|\*)").fullmatch
_is_authority = re.compile(rb"[!-~\x80-\xff]*").fullmatch

# What speaks of one HTTP/1.1 connection has no place here: RFC 9113, section 8.2.2.
_CONNECTION_NAMES = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_FORBIDDEN_NAMES = _CONNECTION_NAMES | {b"te"}
_LEFT_OUT = _CONNECTION_NAMES | {b"host", b"http2-settings"}

SHORT_COOKIE = 20
"""Bytes below which a cookie could be guessed from how well it compresses (RFC 7541, section 7.1.3)."""

_SECRETS = frozenset({b"authorization", b"proxy-authorization"})


class MalformedMessage(Exception):
    """What the server sent on one stream is no HTTP message (RFC 9113, section 8.1.1)."""


class ResponseFields(NamedTuple):
    """A checked header section.

    Attributes:
        status: 100 to 999.
        headers: the fields without the pseudo-header field, as they came.
        length: what Content-Length says, if anything.
    """

    status: int
    headers: Headers
    length: int | None


def request_fields(framing: RequestFraming, scheme: bytes) -> Headers:
    """The field section of a request, as HTTP/2 has it (RFC 9113, section 8.3.1).

    Raises:
        LocalProtocolError: HTTP/2 cannot send it.
    """
    if framing.is_connect or framing.is_upgrade:
        raise LocalProtocolError("CONNECT and Upgrade are not sent over HTTP/2", phase="write")
    if not _is_target(framing.target):
        raise LocalProtocolError("illegal target for HTTP/2: it must be a path, visible ASCII", phase="write")
    authority = None
    fields: Headers = []
    named: set[bytes] = set()
    for name, value in framing.headers:
        lowered = name.lower()
        if not _is_name(lowered) or not _is_value(value):
            raise LocalProtocolError(f"illegal header {name!r}", phase="write")
        if lowered in _LEFT_OUT:
            if lowered == b"host":
                authority = value
            elif lowered == b"connection":
                named.update(token.strip() for token in value.lower().split(b","))
        elif lowered == b"te":
            if b"trailers" in value.lower():
                fields.append((b"te", b"trailers"))
        elif lowered in _SECRETS or (lowered == b"cookie" and len(value) < SHORT_COOKIE):
            # An entry of the compression table can be guessed at by whoever shares it (RFC 7541, section 7.1).
            fields.append(NeverIndexedHeaderTuple(lowered, value))
        else:
            fields.append((lowered, value))
    if named:
        # `te` stands there by rule (RFC 9110, section 10.1.4), and is sent all the same.
        fields = [field for field in fields if field[0] not in named or field[0] == b"te"]
    if not authority or not _is_authority(authority):
        raise LocalProtocolError("HTTP/2 needs a Host header that names a host", phase="write")
    return [
        (b":method", framing.method),
        (b":authority", authority),
        (b":scheme", scheme),
        (b":path", framing.target),
        *fields,
    ]


def check_response(fields: Sequence[tuple[bytes, bytes]]) -> ResponseFields:
    """Take apart a header section that is no trailer section (RFC 9113, sections 8.2 and 8.3.2).

    Raises:
        MalformedMessage: it is against the rules, or has too many fields.
    """
    if not fields or fields[0][0] != b":status":
        raise MalformedMessage("the response does not begin with its status")
    status = fields[0][1]
    if not _is_status(status):
        raise MalformedMessage(f"the response's status is {status[:32]!r}")
    headers, length = _check_fields(fields[1:])
    return ResponseFields(int(status), headers, length)


def check_trailers(fields: Sequence[tuple[bytes, bytes]]) -> Headers:
    """The fields of a trailer section, which has no pseudo-header field (RFC 9113, section 8.1).

    Raises:
        MalformedMessage: it is against the rules, or has too many fields.
    """
    return _check_fields(fields)[0]


def _check_fields(fields: Sequence[tuple[bytes, bytes]]) -> tuple[Headers, int | None]:
    if len(fields) > MAX_FIELDS:
        raise MalformedMessage(f"the response has {len(fields)} fields")
    headers: Headers = []
    length = None
    for name, value in fields:
        # A second :status, another pseudo-header field and one that comes too late are no names either.
        if not _is_name(name):
            raise MalformedMessage(f"the response has a field with the name {name[:32]!r}")
        if not _is_value(value):
            raise MalformedMessage(
                f"the value of the response's {name[:32]!r} has characters that it must not have"
            )
        if name in _FORBIDDEN_NAMES:
            raise MalformedMessage(f"the response has a field {name!r}, which HTTP/2 forbids")
        if name == b"content-length":
            length = _length(value, length)
        headers.append((name, value))
    return headers, length


def _length(value: bytes, known: int | None) -> int:
    # RFC 9110, section 8.6: the same number several times may be taken for one.
    numbers = {int(part) for part in (part.strip() for part in value.split(b",")) if _is_length(part)}
    if len(numbers) != 1 or not all(_is_length(part.strip()) for part in value.split(b",")):
        raise MalformedMessage(f"the response's Content-Length is {value[:32]!r}")
    (length,) = numbers
    if known not in (None, length):
        raise MalformedMessage("the response has two different Content-Lengths")
    return length
