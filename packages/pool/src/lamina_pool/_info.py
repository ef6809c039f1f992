"""What a response tells about its connection: `extensions["connection"]`.

Most of it is the same for all requests of a connection, and found out once, when it is open: an address cannot be asked
for any more when the socket is closed. Each response adds two numbers.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from lamina_interfaces import TimingSpan

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ._io import Stream
    from ._urls import Origin

new_connection_id = count(1).__next__
"""The next id of a connection: no two in this process are alike, of whatever pool."""


class ConnectionFacts(NamedTuple):
    """What stays as it is for as long as a connection lives. See `ConnectionInfo`."""

    id: int
    origin: Origin
    http_version: str
    peer_address: Any
    local_address: Any
    proxy: Origin | None
    tls_version: str | None
    cipher: str | None
    alpn_protocol: str | None
    timings: tuple[TimingSpan, ...]
    opened_at: float


def facts_of(
    stream: Stream,
    *,
    connection_id: int,
    origin: Origin,
    http_version: str,
    proxy: Origin | None,
    spans: Iterable[TimingSpan],
    opened_at: float,
) -> ConnectionFacts:
    """Ask an open stream.

    Args:
        stream: the connection's.
        connection_id: by `new_connection_id`.
        origin: what it leads to.
        http_version: `"HTTP/1.1"` or `"HTTP/2"`.
        proxy: where it goes through one.
        spans: the handshakes with the proxy, of which the stream knows nothing.
        opened_at: the present.
    """
    ssl_object = stream.get_extra_info("ssl_object")
    cipher = _told_by(ssl_object, "cipher")
    timings = (*spans_of(stream), *spans)
    return ConnectionFacts(
        id=connection_id,
        origin=origin,
        http_version=http_version,
        peer_address=stream.get_extra_info("server_addr"),
        local_address=stream.get_extra_info("client_addr"),
        proxy=proxy,
        tls_version=_told_by(ssl_object, "version"),
        cipher=cipher[0] if isinstance(cipher, tuple) else None,
        alpn_protocol=_told_by(ssl_object, "selected_alpn_protocol"),
        timings=tuple(sorted(timings, key=lambda span: span.start)),
        opened_at=opened_at,
    )


# A custom stream may have something of its own in these places, or nothing. No request fails for that.


def spans_of(stream: Stream) -> tuple[TimingSpan, ...]:
    """The steps of its making, as far as a stream tells."""
    told = stream.get_extra_info("timings")
    spans = told if isinstance(told, (tuple, list)) else ()
    return tuple(span for span in spans if isinstance(span, TimingSpan))


def _told_by(ssl_object: Any, name: str) -> Any:
    try:
        told = getattr(ssl_object, name)()
    except Exception:  # noqa: BLE001 - see above; and without TLS there is none
        return None
    return told if isinstance(told, (str, tuple)) else None


class ConnectionInfo:
    """The connection that a response came over, as it was then. Immutable; may be kept for as long as one likes."""

    # One is made for each response, so it is no frozen dataclass, which takes three times as long.
    __slots__ = ("_age", "_facts", "_request_count")

    def __init__(self, facts: ConnectionFacts, request_count: int, age: float) -> None:
        self._facts = facts
        self._request_count = request_count
        self._age = age

    @property
    def request_count(self) -> int:
        """To how many requests it was given, this one included. Over HTTP/2 some may be under way still."""
        return self._request_count

    @property
    def age(self) -> float:
        """Seconds from its opening to the head of the response."""
        return self._age

    @property
    def id(self) -> int:
        """Its number: no two connections in this process have the same, of whatever pool."""
        return self._facts.id

    @property
    def origin(self) -> Origin:
        """What it leads to: the server, or the proxy where that forwards requests."""
        return self._facts.origin

    @property
    def http_version(self) -> str:
        """`"HTTP/1.1"` or `"HTTP/2"`: what is spoken on it."""
        return self._facts.http_version

    @property
    def reused(self) -> bool:
        """Whether another request had it before."""
        return self._request_count > 1

    @property
    def peer_address(self) -> Any:
        """Of the server or the proxy, as the `socket` module has it; `None` if the backend does not tell."""
        return self._facts.peer_address

    @property
    def local_address(self) -> Any:
        """Our own, likewise."""
        return self._facts.local_address

    @property
    def proxy(self) -> Origin | None:
        """The proxy that it goes through, without credentials; `None` for none."""
        return self._facts.proxy

    @property
    def tls_version(self) -> str | None:
        """`"TLSv1.3"`, for instance; `None` without TLS."""
        return self._facts.tls_version

    @property
    def cipher(self) -> str | None:
        """The name of the cipher suite, `"TLS_AES_256_GCM_SHA384"` for instance; `None` without TLS."""
        return self._facts.cipher

    @property
    def alpn_protocol(self) -> str | None:
        """What the server has chosen (ALPN, RFC 7301): `"h2"`, `"http/1.1"`; `None` if nothing."""
        return self._facts.alpn_protocol

    @property
    def timings(self) -> tuple[TimingSpan, ...]:
        """The steps of its making in their order: `"dns"`, `"tcp"` or `"unix"`, `"proxy"`, `"tls"`, in seconds."""
        return self._facts.timings

    @property
    def opened_at(self) -> float:
        """When it was opened, in seconds on the clock of the pool's runtime (`time.monotonic` in blocking code)."""
        return self._facts.opened_at

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConnectionInfo):
            return NotImplemented
        return (self._facts, self._request_count, self._age) == (
            other._facts,
            other._request_count,
            other._age,
        )

    def __hash__(self) -> int:
        return hash((self._facts.id, self._request_count, self._age))

    def __repr__(self) -> str:
        parts = [f"'{self.origin}'", self.http_version]
        if self.proxy is not None:
            parts.append(f"by way of '{self.proxy}'")
        if self.tls_version is not None:
            parts.append(self.tls_version)
        return f"<ConnectionInfo [{self.id}, {', '.join(parts)}, Request Count: {self.request_count}]>"
