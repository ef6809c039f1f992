"""What is refused before a byte is sent, and what a request means for the connection that carries it.

`check_request` looks at a request once and either raises or returns a `RequestFraming`. It is the only gate:
what it lets through, the HTTP/1.1 and the HTTP/2 writer may send as it is. HTTP/2 needs the gate more, since
its framing carries any byte and a gateway behind it would write CR and LF into HTTP/1.1 (RFC 9113, section
8.2.1).

Rules, and where each comes from:

- Methods and field names are tokens (RFC 9110, sections 9.1 and 5.1).
- A target is visible ASCII without spaces (RFC 9112, section 3.2).
- A field value has no control character but HTAB, and no white space at its ends (RFC 9110, section 5.5).
- Exactly one Host, which could be one (RFC 9112, section 3.2).
- At most one Content-Length, of digits; or Transfer-Encoding, only `chunked`, and never both: a message
  framed in two ways is how one peer's body becomes the next peer's request (RFC 9112, sections 6.1 to 6.3 and
  11.2).
- A body whose length is known has the length that it declares.

Most heads are beyond doubt by the patterns of `_http11_fast.py`, which are stricter than these rules and write the head
for HTTP/1.1 in the same pass. The rules themselves are gone through for the rest; the tests hold the one to the other.

Error messages name a header, and show no value but of those that frame the message: it may be a credential,
and errors end up in logs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    InvalidURL,
    LocalProtocolError,
    UnsupportedProtocol,
    check_seconds,
)

from ._http11_fast import CHUNKED, KNOWN_NAMES, REQUEST_NAMES, header_block, is_host, request_line
from ._models import EMPTY, ByteStream, Request, enforce_headers
from ._urls import check_host, enforce_url, host_header

if TYPE_CHECKING:
    from ._models import ContentTypes, Extensions, Header, HeaderTypes
    from ._urls import URL

Body = Literal["none", "length", "chunked"]
"""How a body is delimited: there is none, its length is declared, or it comes in chunks."""

# RFC 9110, section 5.6.2.
_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_is_token = re.compile(_TOKEN).fullmatch
_is_target = re.compile(rb"[!-~]+").fullmatch
_is_value = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?").fullmatch
# More than 20 digits is more than 2**64 bytes.
_is_length = re.compile(rb"[0-9]{1,20}").fullmatch

_SCHEMES = frozenset({b"http", b"https", b"ws", b"wss"})
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})  # RFC 9110, section 9.2.2
_name_of = itemgetter(0)
_TIMEOUT_KEYS = frozenset({"connect", "read", "write", "pool"})


class RequestFraming(NamedTuple):
    """What a checked request means for the connection.

    Attributes:
        method: as it is sent.
        target: as it is sent in an HTTP/1.1 request line.
        headers: as they are sent.
        body: how the body is delimited. With `"none"` nothing may follow the head.
        length: the bytes of the body, where `body` is `"length"`; otherwise 0.
        expects_continue: the body is to wait for 100 (Continue). Never without a body.
        is_idempotent: sending it twice does what sending it once does (RFC 9110, section 9.2.2).
        is_replayable: its body can be read a second time.
        is_upgrade: it has an Upgrade header, so that 101 (Switching Protocols) may be the answer.
        is_connect: it is a CONNECT request, whose success makes the connection a tunnel.
        wants_close: it says `Connection: close`.
        wants_keep_alive: it says `Connection: keep-alive`.
        written: where it is beyond doubt, its head as HTTP/1.1 sends it, and the length of the body that follows
            (`CHUNKED`, or bytes). `None` for anything else, and wherever `target` or `headers` were changed since.
    """

    method: bytes
    target: bytes
    headers: list[Header]
    body: Body
    length: int
    expects_continue: bool
    is_idempotent: bool
    is_replayable: bool
    is_upgrade: bool
    is_connect: bool
    wants_close: bool
    wants_keep_alive: bool
    written: tuple[bytes, int] | None = None


def check_request(request: Request, *, blocking: bool = True) -> RequestFraming:
    """Decide whether a request may be sent, and how.

    Args:
        request: it is not changed.
        blocking: whether it is sent by blocking code, which cannot iterate over an async body.

    Raises:
        LocalProtocolError: it is not valid HTTP.
        UnsupportedProtocol: the URL's scheme is missing, or none that is spoken here.
        InvalidURL: the URL names no host.
        ArgumentTypeError: something is not of its type, or the body is of the other world.
    """
    url = request.url
    if url.scheme not in _SCHEMES:
        _refuse_scheme(url.scheme)
    if not url.host:
        raise InvalidURL("the URL names no host")
    method = request.method
    target = url.target
    written = None
    is_upgrade = wants_close = False
    try:
        # A copy, so that nobody can change it between here and the writing.
        fields = tuple(request.headers)
        line = request_line(method, target)
        block = None if line is None else header_block(fields)
        if line is not None and block is not None:
            data, length, wants_keep_alive, expects_continue = block
            written = line + data, length or 0
        else:
            if not _is_token(method):
                raise LocalProtocolError(f"illegal method {method!r}: it must be a token")
            if not _is_target(target):
                raise LocalProtocolError(
                    "illegal target: it must be visible ASCII characters, and at least one"
                )
            length, expects_continue, is_upgrade, connection = _check_headers(fields)
            wants_close, wants_keep_alive = b"close" in connection, b"keep-alive" in connection
    except (TypeError, ValueError, BytesWarning) as error:  # the last with `python -bb`
        if isinstance(error, LocalProtocolError):
            raise
        # A pattern for bytes was given something else, or a header was no pair.
        raise _wrong_type(request) from None
    stream = request.stream
    body: Body = "none" if length is None else "chunked" if length == CHUNKED else "length"
    is_replayable = type(stream) is ByteStream
    if not is_replayable:
        _check_body_stream(stream, blocking)
        is_replayable = not length or isinstance(stream, (list, tuple))
    elif stream is not EMPTY or length is not None:
        _check_whole_body(stream, body, length)  # type: ignore[arg-type] # it is one, says the first of these lines
    extensions = request.extensions
    if extensions:
        _check_extensions(extensions)
    return RequestFraming(
        method,
        target,
        list(fields),
        body,
        length if length is not None and body == "length" else 0,
        expects_continue and bool(length),
        method in _IDEMPOTENT,
        is_replayable,
        is_upgrade,
        method == b"CONNECT",
        wants_close,
        wants_keep_alive,
        written,
    )


def _check_headers(
    fields: tuple[Header, ...],
) -> tuple[int | None, bool, bool, frozenset[bytes] | tuple[()]]:
    """Check every name and value. A wrong type comes out as a `TypeError` or `ValueError` of Python's own.

    Returns:
        What they say to the connection: Content-Length, if it is there, or `CHUNKED`; whether the body waits for 100,
        and an Upgrade is asked for; and the members of Connection.
    """
    length: int | None = None
    is_chunked = expects_continue = is_upgrade = has_host = False
    connection: frozenset[bytes] | tuple[()] = ()
    for name, value in fields:
        if not (isinstance(name, bytes) and isinstance(value, bytes)):
            raise TypeError  # above all what can still be changed once it was checked
        lowered = KNOWN_NAMES.get(name)
        if lowered is None:
            if not _is_token(name):
                raise LocalProtocolError(f"illegal header name {name!r}: it must be a token")
            lowered = name.lower()
        if not _is_value(value):
            raise LocalProtocolError(
                f"illegal value of header {name!r}: no control characters, and no white space at its ends"
            )
        if lowered not in REQUEST_NAMES:
            continue
        if lowered == b"host":
            if has_host:
                raise LocalProtocolError("more than one Host header")
            if not is_host(value):
                raise LocalProtocolError("illegal Host header: it must be a host, with or without a port")
            has_host = True
        elif lowered == b"content-length":
            if length is not None:
                raise LocalProtocolError("more than one Content-Length header")
            if not _is_length(value):
                raise LocalProtocolError(f"illegal Content-Length {value!r}: it must be 1 to 20 digits")
            length = int(value)
        elif lowered == b"transfer-encoding":
            if is_chunked:
                raise LocalProtocolError("more than one Transfer-Encoding header")
            if value.lower() != b"chunked":
                raise LocalProtocolError(f"Transfer-Encoding {value!r} is not supported, only chunked is")
            is_chunked = True
        elif lowered == b"connection":
            connection = _tokens(value).union(connection)
        elif lowered == b"expect":
            expects_continue = expects_continue or b"100-continue" in _tokens(value)
        else:
            is_upgrade = is_upgrade or bool(value)
    if not has_host:
        raise LocalProtocolError("the Host header is missing")
    if is_chunked and length is not None:
        raise LocalProtocolError("Content-Length and Transfer-Encoding exclude each other")
    return CHUNKED if is_chunked else length, expects_continue, is_upgrade, connection


def _tokens(value: bytes) -> frozenset[bytes]:
    """The members of a comma-separated list, in lower case (RFC 9110, section 5.6.1)."""
    return frozenset(member.strip() for member in value.lower().split(b","))


def _check_whole_body(stream: ByteStream, body: Body, length: int | None) -> None:
    size = len(stream.content)
    if body == "length":
        if size != length:
            raise LocalProtocolError(f"the body has {size} bytes, but Content-Length says {length}")
    elif size and body == "none":
        raise LocalProtocolError(
            f"the body has {size} bytes, which neither Content-Length nor Transfer-Encoding announces"
        )


def _check_body_stream(stream: Any, blocking: bool) -> None:
    needed = "__iter__" if blocking else "__aiter__"
    if not hasattr(stream, needed) or isinstance(stream, (str, bytes, bytearray, memoryview, Mapping)):
        kind = "an iterable" if blocking else "an async iterable"
        raise ArgumentTypeError(
            f"the request's content must be bytes or {kind} of bytes, not {type(stream).__name__}."
        )


def _check_extensions(extensions: Extensions) -> None:
    sni_hostname = extensions.get("sni_hostname")
    if sni_hostname is not None:
        check_server_hostname(sni_hostname)
    callback = extensions.get("trace")
    if callback is not None and not callable(callback):
        raise ArgumentTypeError(f"the trace extension must be callable, not {type(callback).__name__}.")


def check_server_hostname(name: str) -> None:
    """Check a name that is to be sent as SNI and to be found in the peer's certificate.

    Raises:
        ArgumentTypeError: it is no str.
        LocalProtocolError: it cannot be a host name or an IP address.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"the sni_hostname extension must be a str, not {type(name).__name__}.")
    try:
        check_host(name)
    except InvalidURL as error:
        raise LocalProtocolError(f"the sni_hostname extension is no host: {error.message}") from None


def check_proxy_headers(headers: list[Header]) -> None:
    """Check what is to be sent to a proxy besides the request: its names and values (RFC 9110, section 5).

    Raises:
        LocalProtocolError: a name or a value has characters that it must not have, or would make another message of
            the one that it goes into.
    """
    has_host = False
    for name, value in headers:
        if not _is_token(name):
            raise LocalProtocolError(f"illegal name of a proxy header, {name!r}: it must be a token")
        if not _is_value(value):
            raise LocalProtocolError(f"illegal value of proxy header {name!r}")
        lowered = name.lower()
        if lowered in {b"content-length", b"transfer-encoding", b"upgrade"}:
            raise LocalProtocolError(
                f"a proxy header cannot be {name!r}: it would change what CONNECT, or a forwarded request, means"
            )
        if lowered == b"host":
            if has_host:
                raise LocalProtocolError("more than one Host among the proxy headers")
            if not is_host(value):
                raise LocalProtocolError(
                    "illegal Host among the proxy headers: it must be a host, with or without a port"
                )
            has_host = True


def _refuse_scheme(scheme: bytes) -> None:
    if not scheme:
        raise UnsupportedProtocol("Request URL is missing an 'http://' or 'https://' protocol.")
    raise UnsupportedProtocol(f"Request URL has an unsupported protocol '{scheme.decode('latin-1')}://'.")


def _wrong_type(request: Request) -> ArgumentTypeError:
    """Say which part of a request is not of its type."""
    for part, value in (("method", request.method), ("target", request.url.target)):
        if not isinstance(value, bytes):
            return ArgumentTypeError(f"{part} must be bytes, but got {type(value).__name__}.")
    return ArgumentTypeError("headers must be a list of two-tuples of bytes.")


class Timeouts(NamedTuple):
    """The time limits of one request, each in seconds for one wait; `None` for no limit.

    Attributes:
        connect: for all of connecting: name resolution, addresses, TLS and proxy handshakes.
        read: for bytes to come.
        write: for bytes to be taken.
        pool: for a connection of the pool.
    """

    connect: float | None = None
    read: float | None = None
    write: float | None = None
    pool: float | None = None

    @classmethod
    def from_extensions(cls, extensions: Mapping[str, Any]) -> Timeouts:
        """Read `extensions["timeout"]`, a dictionary with some of the four names.

        Raises:
            ArgumentValueError: a name is unknown, or a number is negative or NaN.
            ArgumentTypeError: it is no dictionary, or a value is no number.
        """
        given = extensions.get("timeout")
        if given is None:
            return _NO_TIMEOUTS
        if not isinstance(given, (dict, Mapping)):
            raise ArgumentTypeError(
                f"the timeout extension must be a dictionary, not {type(given).__name__}."
            )
        if not given.keys() <= _TIMEOUT_KEYS:
            unknown = ", ".join(sorted(repr(key) for key in given.keys() - _TIMEOUT_KEYS))
            raise ArgumentValueError(
                f"the timeout extension has no {unknown}; it may have 'connect', 'read', 'write' and 'pool'."
            )
        return cls(
            _seconds(given.get("connect"), "connect"),
            _seconds(given.get("read"), "read"),
            _seconds(given.get("write"), "write"),
            _seconds(given.get("pool"), "pool"),
        )


_NO_TIMEOUTS = Timeouts()
_INFINITY = float("inf")


def _seconds(value: Any, key: str) -> float | None:
    if value is None:
        return None
    seconds = check_seconds(value, f"the {key} timeout")
    return None if seconds == _INFINITY else seconds


def build_request(
    method: bytes | str,
    url: URL | bytes | str,
    *,
    headers: HeaderTypes = None,
    content: ContentTypes = None,
    extensions: Extensions | None = None,
) -> Request:
    """Make a request as `ConnectionPool.request` does: with the headers that HTTP demands added.

    The arguments are those of `ConnectionPool.request`.

    Raises:
        ArgumentTypeError: an argument has the wrong type.
        InvalidURL: the URL cannot be taken apart.
    """
    place = enforce_url(url, "url")
    complete = default_headers(enforce_headers(headers, "headers"), url=place, content=content)
    request = Request(method, place, content=content, extensions=extensions)
    request.headers = complete
    return request


def default_headers(headers: list[Header], *, url: URL, content: ContentTypes) -> list[Header]:
    """Add what HTTP demands and the caller left out: Host, and how the body is delimited.

    Host comes first (RFC 9110, section 7.2). A body of known length gets Content-Length, another one
    `Transfer-Encoding: chunked`, unless the caller has chosen one; no body (`None`) gets neither.

    Args:
        headers: the caller's; the list is not changed.
        url: where the request goes.
        content: the body as the caller gave it.

    Returns:
        The same list if nothing was missing, otherwise a new one.
    """
    names = {*map(bytes.lower, map(_name_of, headers))} if headers else ()
    if b"host" not in names:
        headers = [(b"Host", host_header(url)), *headers]
    if content is not None and b"content-length" not in names and b"transfer-encoding" not in names:
        if isinstance(content, ByteStream):
            content = content.content
        if isinstance(content, memoryview):
            headers = [*headers, (b"Content-Length", b"%d" % content.nbytes)]
        elif isinstance(content, (bytes, bytearray)):
            headers = [*headers, (b"Content-Length", b"%d" % len(content))]
        else:
            headers = [*headers, (b"Transfer-Encoding", b"chunked")]
    return headers
