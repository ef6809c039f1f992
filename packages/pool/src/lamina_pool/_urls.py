"""URLs and origins, taken apart strictly.

A URL decides where a connection is opened and what is written on it, so whatever two parsers could read in
two ways is refused instead of repaired: white space and control characters, backslashes before the path, two
`@`, brackets around anything but an IPv6 address, ports that no socket has. `urllib.parse` strips some of
these and lets others through, which is how a check in one layer comes to see another host than the layer that
dials.

A host has one form here: lower case, ASCII, no brackets. A name that is not ASCII is turned into its A-labels
(RFC 3490, the codec of the standard library); what comes out is checked like any other host, since the
codec's compatibility mapping can yield `/`, `:` or `@` (CVE-2019-9636). An IPv6 zone stays in the host, where
it is needed for dialling, and is left out of the Host header, where it means nothing to the peer (RFC 6874,
section 1).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, NamedTuple

from lamina_interfaces import ArgumentTypeError, InvalidURL, UnsupportedProtocol

DEFAULT_PORTS: dict[bytes, int] = {
    b"ftp": 21,
    b"http": 80,
    b"https": 443,
    b"socks5": 1080,
    b"socks5h": 1080,
    b"ws": 80,
    b"wss": 443,
}
"""The port of a URL that names none. FTP is there for the Host header of a request to a gateway."""

# RFC 1035, section 2.3.4: 255 octets on the wire, which is 253 characters as text, without a final dot.
MAX_HOST_LENGTH = 253
MAX_LABEL_LENGTH = 63
MAX_PORT = 65535

# In characters.
MAX_KNOWN_URL = 256

# RFC 3986, appendix B, with a scheme that keeps to its own rule and an authority kept apart from a path. Without what
# `_unprintable` finds; and since the parts have characters in common, none gives back what it has taken.
_split = re.compile(
    r"(?:(?P<scheme>[A-Za-z][A-Za-z0-9+.\-]*+):)?"
    r"(?://(?P<authority>[^/?#\x00-\x20\x7f]*+))?"
    r"(?P<path>[^?#\x00-\x20\x7f]*+)"
    r"(?P<query>\?[^#\x00-\x20\x7f]*+)?"
    r"(?:#[^\x00-\x20\x7f]*+)?",
).fullmatch
_unprintable = re.compile(r"[\x00-\x20\x7f]").search
_host_and_port = re.compile(
    r"(?:\[(?P<literal>[^\[\]]*)\]|(?P<name>[^\[\]:]*))(?::(?P<port>[0-9]*))?"
).fullmatch
# RFC 3986, section 3.2.2, reg-name without percent-encoding, which no resolver undoes.
_name = re.compile(r"[a-z0-9._~!$&'()*+,;=\-]+").fullmatch
_escape = re.compile(rb"%([0-9A-Fa-f]{2})")
_zone = re.compile(r"[A-Za-z0-9._~\-]+").fullmatch
_scheme_is_valid = re.compile(rb"[a-z][a-z0-9+.\-]*").fullmatch


class Origin(NamedTuple):
    """Where a request goes: what two requests must have in common to share a connection.

    Attributes:
        scheme: lower case, `b"https"`.
        host: lower case; an IPv6 address without brackets, a zone as `b"fe80::1%eth0"`.
        port: 1 to 65535.
    """

    scheme: bytes
    host: bytes
    port: int

    def __str__(self) -> str:
        return f"{self.scheme.decode('ascii')}://{_bracketed(self.host).decode('ascii')}:{self.port}"


class URL:
    """The URL of a request, in the four parts that the network layer needs.

    Give the whole of it, `URL("https://www.example.com/items?page=2")`, or the parts,
    `URL(scheme=b"https", host=b"www.example.com", port=None, target=b"/items?page=2")`. The parts can say
    what no text can: `target=b"*"` for `OPTIONS *`, or a complete URL as the target of a request to a proxy.

    Text is ASCII, but for the host, of which the A-labels are taken (RFC 3490). Bytes are taken as they are.
    A fragment and user information (`user:password@`) are left out. Immutable, hashable, usable from any
    thread.

    Args:
        url: the complete URL.
        scheme: `"http"`, `"https"`, `"ws"` or `"wss"`; others are refused by the pool, not here.
        host: a name, an IPv4 or an IPv6 address, the latter with or without brackets and zone.
        port: 1 to 65535, `None` for the scheme's own.
        target: what stands in the request line. Its characters are checked when the request is sent.

    Attributes:
        scheme: lower case.
        host: lower case ASCII, an IPv6 address without brackets, with its zone.
        port: the port that was given, or `None`.
        target: path and query, never the fragment.

    Raises:
        InvalidURL: it cannot be taken apart, or names a host or port that cannot exist.
        ArgumentTypeError: a part has the wrong type, or text outside of the host is not ASCII.
    """

    __slots__ = ("_origin", "host", "port", "scheme", "target")

    scheme: bytes
    host: bytes
    port: int | None
    target: bytes
    _origin: Origin | None

    def __init__(
        self,
        url: bytes | str = "",
        *,
        scheme: bytes | str = b"",
        host: bytes | str = b"",
        port: int | None = None,
        target: bytes | str = b"",
    ) -> None:
        if url or not isinstance(url, (str, bytes)):
            self._set(*_parse(url))
        else:
            self._set(
                _check_scheme(scheme), check_host(host), _check_port(port), enforce_bytes(target, "target")
            )

    def _set(self, scheme: bytes, host: bytes, port: int | None, target: bytes) -> None:
        # The instance refuses assignment, so its own goes past it, to the slots.
        _set_scheme(self, scheme)
        _set_host(self, host)
        _set_port(self, port)
        _set_target(self, target)
        _set_origin(self, None)

    @property
    def origin(self) -> Origin:
        """Scheme, host and port, the scheme's own port where none was given.

        Raises:
            UnsupportedProtocol: no port was given, and the scheme has none of its own.
        """
        origin = self._origin
        if origin is None:
            origin = _origin(self.scheme, self.host, self.port)
            _set_origin(self, origin)
        return origin

    def with_target(self, target: bytes | str) -> URL:
        """The same place, another target."""
        changed = URL.__new__(URL)
        changed._set(self.scheme, self.host, self.port, enforce_bytes(target, "target"))
        return changed

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a URL cannot be changed; build another one to set {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a URL cannot be changed; {name!r} stays")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, URL) and (
            self.host == other.host
            and self.target == other.target
            and self.port == other.port
            and self.scheme == other.scheme
        )

    def __hash__(self) -> int:
        return hash((self.scheme, self.host, self.port, self.target))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_url, (self.scheme, self.host, self.port, self.target)

    def __bytes__(self) -> bytes:
        port = b"" if self.port is None else b":%d" % self.port
        return b"%b://%b%b%b" % (self.scheme, _bracketed(self.host), port, self.target)

    def __repr__(self) -> str:
        return f"URL(scheme={self.scheme!r}, host={self.host!r}, port={self.port!r}, target={self.target!r})"


_set_scheme, _set_host, _set_port, _set_target, _set_origin = (
    URL.__dict__[name].__set__ for name in ("scheme", "host", "port", "target", "_origin")
)


@lru_cache(maxsize=256)  # most programs talk to few servers
def _origin(scheme: bytes, host: bytes, port: int | None) -> Origin:
    port = port or DEFAULT_PORTS.get(scheme)
    if port is None:
        raise UnsupportedProtocol(f"no port is known for the protocol {scheme.decode('ascii')!r}")
    return Origin(scheme, host, port)


def _rebuild_url(scheme: bytes, host: bytes, port: int | None, target: bytes) -> URL:
    return URL(scheme=scheme, host=host, port=port, target=target)


def host_header(url: URL) -> bytes:
    """The Host header for a URL (RFC 9110, section 7.2): no default port, no zone, IPv6 in brackets."""
    return _host_header(url.scheme, url.host, url.port)


@lru_cache(maxsize=256)
def _host_header(scheme: bytes, host: bytes, port: int | None) -> bytes:
    if b":" in host:
        host = b"[%b]" % host.partition(b"%")[0]
    if port is None or port == DEFAULT_PORTS.get(scheme):
        return host
    return b"%b:%d" % (host, port)


def authority(host: bytes, port: int) -> bytes:
    """Host and port as the target of a CONNECT request has them (RFC 9112, section 3.2.3)."""
    if b":" in host:
        host = b"[%b]" % host.partition(b"%")[0]
    return b"%b:%d" % (host, port)


def server_name(host: bytes) -> str:
    """The name for SNI and for the certificate: without an IPv6 zone or a final dot (RFC 6066, section 3)."""
    return host.partition(b"%")[0].decode("ascii").removesuffix(".")


def user_information(url: bytes | str) -> tuple[bytes, bytes] | None:
    """User name and password of a URL, percent-decoded, or `None` where it has none (RFC 3986, section 3.2.1).

    Args:
        url: one that `URL` has accepted. What is not ASCII becomes UTF-8.
    """
    text = url.decode("ascii") if isinstance(url, bytes) else url
    parts = _split(text)
    assert parts is not None
    information, separator, _ = (parts["authority"] or "").rpartition("@")
    if not separator:
        return None
    user, _, password = information.partition(":")
    return _percent_decoded(user), _percent_decoded(password)


def _percent_decoded(text: str) -> bytes:
    # What is no escape stays as it is: many write a password as they know it. A variable of the environment that is
    # not UTF-8 comes as surrogates.
    data = text.encode("utf-8", "surrogateescape")
    return _escape.sub(lambda escape: bytes.fromhex(escape[1].decode("ascii")), data)


def enforce_bytes(value: bytes | str, name: str) -> bytes:
    """Take bytes as they are and text as ASCII.

    Raises:
        ArgumentTypeError: it is neither, or the text is not ASCII.
    """
    if type(value) is bytes:
        return value
    if isinstance(value, str):
        try:
            return value.encode("ascii")
        except UnicodeEncodeError:
            raise ArgumentTypeError(f"{name} strings may not include unicode characters.") from None
    if isinstance(value, bytes):
        return bytes(value)
    raise ArgumentTypeError(f"{name} must be bytes or str, but got {type(value).__name__}.")


def enforce_url(value: URL | bytes | str, name: str) -> URL:
    """Take a URL as it is, and parse bytes or text.

    Raises:
        ArgumentTypeError: it is none of these.
        InvalidURL: it cannot be taken apart.
    """
    if isinstance(value, URL):
        return value
    if isinstance(value, (bytes, str)):
        # Neither what is long nor what may hold a secret is remembered.
        if type(value) is not str or len(value) > MAX_KNOWN_URL or "?" in value or "@" in value:
            return URL(value)
        return _known_url(value)
    raise ArgumentTypeError(f"{name} must be a URL, bytes, or str, but got {type(value).__name__}.")


@lru_cache(maxsize=256)  # a URL cannot be changed, and a program asks for the same ones again and again
def _known_url(url: str) -> URL:
    return URL(url)


def _parse(url: bytes | str) -> tuple[bytes, bytes, int | None, bytes]:
    if isinstance(url, bytes):
        try:
            text = url.decode("ascii")
        except UnicodeDecodeError:
            raise InvalidURL("the URL, given as bytes, is not ASCII") from None
    elif isinstance(url, str):
        text = url
    else:
        raise ArgumentTypeError(f"url must be bytes or str, but got {type(url).__name__}.")
    parts = _split(text)
    if parts is None:
        bad = _unprintable(text)
        # All else matches: all parts may be empty.
        assert bad is not None
        raise InvalidURL(f"the URL contains {bad.group()!r} at position {bad.start()}")
    scheme_text, authority, path, query = parts.groups()
    scheme = (scheme_text or "").lower().encode("ascii")
    host, port = _parse_authority(authority or "")
    if not host and (scheme in DEFAULT_PORTS or port is not None):
        raise InvalidURL("the URL names no host")
    target = (path or "/") + (query or "")
    try:
        return scheme, host, port, target.encode("ascii")
    except UnicodeEncodeError as error:
        raise InvalidURL(
            f"the URL's path or query contains {target[error.start]!r}; percent-encode what is not ASCII"
        ) from None


def _parse_authority(text: str) -> tuple[bytes, int | None]:
    user, _, place = text.rpartition("@")
    if "\\" in text or "@" in user:
        # Parsers disagree on where such a host begins, which is how requests are led astray.
        raise InvalidURL("the URL's authority contains a backslash or two '@'")
    return _parse_place(place)


@lru_cache(maxsize=256)  # most programs talk to few servers; credentials are never in it
def _parse_place(place: str) -> tuple[bytes, int | None]:
    parts = _host_and_port(place)
    if parts is None:
        raise InvalidURL(f"the URL's host and port cannot be told apart in {place!r}")
    digits = (parts["port"] or "").lstrip("0") or ("0" if parts["port"] else "")
    if len(digits) > 5:
        raise InvalidURL("the URL's port is not in the range 1 to 65535")
    port = _check_port(int(digits)) if digits else None
    literal = parts["literal"]
    if literal is not None:
        # RFC 6874, section 2: `%25` and the zone. The bare `%` is what people type.
        return _check_ipv6(literal.replace("%25", "%", 1)), port
    return _check_name(parts["name"]), port


def _check_scheme(scheme: bytes | str) -> bytes:
    lowered = enforce_bytes(scheme, "scheme").lower()
    if lowered and lowered not in DEFAULT_PORTS and not _scheme_is_valid(lowered):
        raise InvalidURL(f"{lowered!r} is not a URL scheme")
    return lowered


def _check_port(port: Any) -> int | None:
    if port is None:
        return None
    if not isinstance(port, int) or isinstance(port, bool):
        raise ArgumentTypeError(f"port must be an int or None, but got {type(port).__name__}.")
    if not 1 <= port <= MAX_PORT:
        raise InvalidURL(f"port {port} is not in the range 1 to {MAX_PORT}")
    return int(port)


def check_host(host: bytes | str) -> bytes:
    """Bring a host into its one form: lower case, ASCII, no brackets; an empty one is the caller's matter.

    Raises:
        InvalidURL: it is no host name or IP address.
        ArgumentTypeError: it is neither bytes nor text.
    """
    if isinstance(host, bytes):
        try:
            text = host.decode("ascii")
        except UnicodeDecodeError:
            raise InvalidURL("the host, given as bytes, is not ASCII; give its A-labels, or text") from None
    elif isinstance(host, str):
        text = host
    else:
        raise ArgumentTypeError(f"host must be bytes or str, but got {type(host).__name__}.")
    if ":" in text:
        if text[0] == "[" and text[-1] == "]":
            text = text[1:-1].replace("%25", "%", 1)
        return _check_ipv6(text)
    return _check_name(text)


def _check_ipv6(text: str) -> bytes:
    import ipaddress

    address, percent, zone = text.partition("%")
    if percent and not _zone(zone):
        raise InvalidURL(f"{zone!r} is not an IPv6 zone")
    try:
        ipaddress.IPv6Address(address)
    except ValueError:
        raise InvalidURL(f"{address!r} is not an IPv6 address") from None
    return (address.lower() + percent + zone).encode("ascii")


def _check_name(text: str) -> bytes:
    if not text:
        return b""
    # Before the codec, whose time grows with the square of the length (CVE-2022-45061).
    if len(text) > MAX_HOST_LENGTH + 1:
        raise InvalidURL(f"the host name is longer than {MAX_HOST_LENGTH} characters")
    if text.isascii():
        name = text.lower()
    else:
        try:
            name = text.encode("idna").decode("ascii").lower()
        except UnicodeError:
            raise InvalidURL(f"{text!r} has no form as an internationalised domain name") from None
    if not _name(name):
        raise InvalidURL(f"{text!r} is not a host name")
    labels = name.removesuffix(".")
    if len(labels) > MAX_HOST_LENGTH:
        raise InvalidURL(f"the host name is longer than {MAX_HOST_LENGTH} characters")
    if not labels or "" in labels.split("."):
        raise InvalidURL(f"{text!r} contains an empty label")
    if len(labels) > MAX_LABEL_LENGTH and max(map(len, labels.split("."))) > MAX_LABEL_LENGTH:
        raise InvalidURL(f"the host name contains a label longer than {MAX_LABEL_LENGTH} characters")
    return name.encode("ascii")


def _bracketed(host: bytes) -> bytes:
    return b"[%b]" % host.replace(b"%", b"%25") if b":" in host else host
