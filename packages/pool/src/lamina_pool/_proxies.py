"""The ways to a server, and what is said to a proxy until the way through it is free.

With a proxy there are three ways:

- *forward*: a plain HTTP/1.1 request is sent to the proxy as it is, but for its target, which names the whole URL
  (RFC 9112, section 3.2.2). The proxy reads and answers it. Such a connection serves requests to any origin.
- *tunnel*: the proxy is asked to CONNECT (RFC 9110, section 9.3.6), and only passes bytes on from then on. For
  whatever the proxy is not to read, or would not pass on: TLS, upgrades, HTTP/2 by prior knowledge.
- *socks*: the same by SOCKS5 (RFC 1928, RFC 1929). `socksio` makes and takes apart the messages. Which bytes belong
  to a message is found out here: a reply may come in pieces, and with the first bytes of the tunnel behind it.

What a proxy is told about itself, its credentials first, goes to the proxy and nowhere else: not into the tunnel, and
not into what is told of a request (traces, logs, errors). And bytes that a proxy sends behind its answer may be its own
as well as the server's, so a TLS handshake must not begin with them.

The handshakes are written once as `async def`, as `_pool.py` is. Every wait is within one limit, that of connecting.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    ArgumentTypeError,
    ArgumentValueError,
    DeadlineExceeded,
    InvalidURL,
    LocalProtocolError,
    ProxyError,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    UnsupportedProtocol,
    WriteError,
    WriteTimeout,
    interruptions,
)

from ._checks import check_proxy_headers
from ._http11 import HTTP11Session, InterimResponse, ResponseHead, describe_foreign_bytes
from ._models import Proxy, Request
from ._trace import MASK, SECRET_HEADERS, Tracer, nothing
from ._urls import URL, authority, host_header

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from lamina_interfaces import Limit

    from ._checks import RequestFraming
    from ._io import Stream
    from ._models import Header
    from ._urls import Origin

T = TypeVar("T")

Route = Literal["direct", "forward", "tunnel", "socks"]
"""How a connection leads to the server."""

MAX_CREDENTIAL_BYTES = 255
"""Of a user name or a password in SOCKS5: its length is one byte (RFC 1929, section 2)."""

# RFC 1928, section 6: what a reply says, and the system's number for the same.
_REPLIES: dict[int, tuple[str, int | None]] = {
    1: ("general failure", None),
    2: ("not allowed by its rules", errno.EACCES),
    3: ("network unreachable", errno.ENETUNREACH),
    4: ("host unreachable", errno.EHOSTUNREACH),
    5: ("connection refused", errno.ECONNREFUSED),
    6: ("TTL expired", errno.ETIMEDOUT),
    7: ("command not supported", errno.EOPNOTSUPP),
    8: ("address type not supported", errno.EAFNOSUPPORT),
}
UNREACHABLE = frozenset({
    errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EAFNOSUPPORT
})  # fmt: skip
"""What a proxy says of one address, and need not be so of the next one."""


class ProxySettings(NamedTuple):
    """A proxy, as it was when the pool was made.

    Attributes:
        origin: where it is. The scheme says how it is spoken to.
        headers: for itself, Proxy-Authorization first.
        auth: for SOCKS: user name and password.
        ssl_context: for the connection to it, where its scheme is `https`.
    """

    origin: Origin
    headers: tuple[Header, ...]
    auth: tuple[bytes, bytes] | None
    ssl_context: ssl.SSLContext | None

    @property
    def is_socks(self) -> bool:
        """Whether it speaks SOCKS5."""
        return self.origin.scheme in (b"socks5", b"socks5h")

    @property
    def is_secure(self) -> bool:
        """Whether it is spoken to over TLS."""
        return self.origin.scheme == b"https"

    @property
    def is_told_addresses(self) -> bool:
        """Whether names are resolved here, and not there."""
        return self.origin.scheme == b"socks5"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.origin}]>"


def read_proxy(proxy: Proxy) -> ProxySettings:
    """Check the proxy that a pool is given.

    Raises:
        ArgumentTypeError, ArgumentValueError: it is no `Proxy`, or has what its kind has no use for.
        InvalidURL, UnsupportedProtocol: its URL names no host, or a scheme that is not spoken here.
        LocalProtocolError: credentials or headers that its protocol cannot carry.
    """
    if not isinstance(proxy, Proxy):
        raise ArgumentTypeError(f"proxy must be a Proxy, not {type(proxy).__name__}")
    url = proxy.url
    if url.scheme not in (b"http", b"https", b"socks5", b"socks5h"):
        raise UnsupportedProtocol(
            f"a proxy's URL must have the scheme http, https, socks5 or socks5h, not {url.scheme.decode('latin-1')!r}"
        )
    if not url.host:
        raise InvalidURL("the proxy's URL names no host")
    settings = ProxySettings(url.origin, tuple(proxy.headers), proxy.auth, proxy.ssl_context)
    check_proxy_headers(proxy.headers)  # once more: the list may have been changed
    if settings.ssl_context is not None and not settings.is_secure:
        raise ArgumentValueError(
            f"a proxy's ssl_context is for the scheme https, not {url.scheme.decode('ascii')}"
        )
    if settings.is_socks:
        _check_socks(settings)
    return settings


def _check_socks(settings: ProxySettings) -> None:
    from importlib.util import find_spec

    if find_spec("socksio") is None:
        raise UnsupportedProtocol("SOCKS needs the package socksio: pip install 'lamina-pool[socks]'")
    if len(settings.headers) > (settings.auth is not None):
        raise ArgumentValueError("a SOCKS proxy takes no headers")
    for what, value in zip(("user name", "password"), settings.auth or (), strict=False):
        if not 1 <= len(value) <= MAX_CREDENTIAL_BYTES:
            raise LocalProtocolError(
                f"the {what} for a SOCKS proxy must have 1 to {MAX_CREDENTIAL_BYTES} bytes, not {len(value)}"
            )


def route_of(proxy: ProxySettings | None, request: Request, framing: RequestFraming, http1: bool) -> Route:
    """Which way a request goes.

    Args:
        proxy: of the pool.
        request: whose URL is looked at.
        framing: of it.
        http1: whether HTTP/1.1 may be spoken.

    Raises:
        LocalProtocolError: it has credentials for a proxy, and goes past it.
    """
    if proxy is None:
        return "direct"
    url = request.url
    if (
        url.scheme == b"http"
        and http1
        and not proxy.is_socks
        and not (framing.is_upgrade or framing.is_connect)
        and (url.target[:1] == b"/" or url.target == b"*")
    ):
        return "forward"
    # To CONNECT by hand is to speak to another proxy at the end of the tunnel.
    if not framing.is_connect and any(name.lower() == b"proxy-authorization" for name, _ in framing.headers):
        raise LocalProtocolError(
            "a Proxy-Authorization header would go through the tunnel to the server; give it to the Proxy"
        )
    return "socks" if proxy.is_socks else "tunnel"


def forwarded(proxy: ProxySettings, url: URL, framing: RequestFraming) -> RequestFraming:
    """The same request as a proxy is sent it, which is to forward it.

    A header of the request's own stands in the place of one for the proxy that has its name.
    """
    # RFC 9112, section 3.2.4: what was `OPTIONS *` has no path.
    target = b"%b://%b%b" % (url.scheme, host_header(url), b"" if url.target == b"*" else url.target)
    if not proxy.headers:
        return framing._replace(target=target, written=None)
    own = {name.lower() for name, _ in framing.headers}
    added = [header for header in proxy.headers if header[0].lower() not in own]
    return framing._replace(target=target, headers=[*added, *framing.headers], written=None)


# --- CONNECT -----------------------------------------------------------------------------------------------


async def open_tunnel(
    stream: Stream, proxy: ProxySettings, place: Origin, limit: Limit, request: Request
) -> bytes:
    """Ask an HTTP proxy for a tunnel.

    Args:
        stream: the connection to it.
        proxy: what it is told besides.
        place: where the tunnel is to lead.
        limit: for all of it.
        request: for whoever traces it.

    Returns:
        What has come behind the answer, out of the tunnel or not.

    Raises:
        ProxyError: it refuses, or does not answer as it should.
        ConnectTimeout, DeadlineExceeded: it took too long.
    """
    target = authority(place.host, place.port)
    headers = [(b"Host", target), (b"Accept", b"*/*")]
    own = {name.lower() for name, _ in proxy.headers}
    headers = [*(header for header in headers if header[0].lower() not in own), *proxy.headers]
    session = HTTP11Session()
    trace = Tracer.of(request, "http11")
    data = session.send_head(b"CONNECT", target, headers) + session.send_end()
    if trace is None:
        await stream.write(data, limit.remaining())
        head = await _receive_head(stream, session, limit)
    else:
        info = {"request": _as_told(proxy, target, headers, request)}
        await trace.around("send_request_headers", info, stream.write, data, limit.remaining())
        await trace.around("send_request_body", info, nothing)
        await trace.started("receive_response_headers", info)
        try:
            head = await _receive_head(stream, session, limit)
        except BaseException as error:
            await trace.failed("receive_response_headers", error)
            raise
        await trace.complete(
            "receive_response_headers", (head.http_version, head.status, head.reason, head.headers)
        )
    if not 200 <= head.status < 300:
        refusal = ProxyError(
            f"{head.status} {_printable(head.reason)}: the proxy {proxy.origin} did not open a tunnel",
            phase="proxy",
        )
        refusal.status, refusal.headers = head.status, tuple(head.headers)
        raise refusal
    return session.left_over


async def _receive_head(stream: Stream, session: HTTP11Session, limit: Limit) -> ResponseHead:
    while True:
        event = session.next_event()
        if isinstance(event, ResponseHead):
            return event
        if not isinstance(event, InterimResponse):
            limit.check()
            session.receive(await stream.read(DEFAULT_READ_SIZE, limit.remaining()))


def _as_told(proxy: ProxySettings, target: bytes, headers: list[Header], request: Request) -> Request:
    """The request for the tunnel as it may be told of: without what only the proxy may know."""
    scheme, host, port = proxy.origin
    url = URL(scheme=scheme, host=host, port=port, target=target)
    masked = [(name, MASK if name.lower() in SECRET_HEADERS else value) for name, value in headers]
    # Its own target is for the server.
    extensions = {name: value for name, value in request.extensions.items() if name != "target"}
    return Request(b"CONNECT", url, headers=masked, extensions=extensions)


def _printable(reason: bytes) -> str:
    return reason.decode("ascii", "replace")


# --- SOCKS5 ------------------------------------------------------------------------------------------------


async def open_socks(stream: Stream, proxy: ProxySettings, host: str, port: int, limit: Limit) -> bytes:
    """Ask a SOCKS5 proxy for a connection.

    Args:
        stream: the connection to it.
        proxy: with the credentials.
        host: a name or an IP address. A name is resolved by the proxy.
        port: of the server.
        limit: for all of it.

    Returns:
        What has come behind the answer, out of the tunnel or not.

    Raises:
        ProxyError: it refuses, or does not answer as it should. Its `errno` says what of the server, if known.
        ConnectTimeout, DeadlineExceeded: it took too long.
    """
    from socksio import ProtocolError, socks5

    replies = _Replies(stream, limit, f"the proxy {proxy.origin}")
    method = socks5.SOCKS5AuthMethod
    # A proxy that asks for no credentials may have them offered all the same.
    offered = [method.NO_AUTH_REQUIRED]
    if proxy.auth is not None:
        offered.append(method.USERNAME_PASSWORD)
    await replies.send(socks5.SOCKS5AuthMethodsRequest(offered))
    reply = await replies.take(2, version=5)
    try:
        chosen = socks5.SOCKS5AuthReply.loads(reply).method
    except ProtocolError as error:
        raise ProxyError(
            f"{replies.whose} wants the unknown way to authenticate {reply[1]}", phase="proxy"
        ) from error
    if chosen not in offered:
        wants = "credentials" if chosen is method.USERNAME_PASSWORD else "a way to authenticate"
        raise ProxyError(f"{replies.whose} wants {wants} that it was not offered", phase="proxy")
    if chosen is method.USERNAME_PASSWORD and proxy.auth is not None:
        await replies.send(socks5.SOCKS5UsernamePasswordRequest(*proxy.auth))
        if not socks5.SOCKS5UsernamePasswordReply.loads(await replies.take(2, version=1)).success:
            raise ProxyError(f"{replies.whose} does not accept the credentials", phase="proxy")
    await replies.send(socks5.SOCKS5CommandRequest.from_address(socks5.SOCKS5Command.CONNECT, (host, port)))
    await _take_reply(replies)
    return replies.left_over


async def _take_reply(replies: _Replies) -> None:
    # RFC 1928, section 6: how long the address is, its type says, and for a name its first byte.
    _, code = await replies.take(2, version=5)
    if code:
        # The rest of a refusal says nothing, and some proxies leave it out.
        what, number = _REPLIES.get(code, (f"reply {code}", None))
        raise ProxyError(f"{replies.whose} could not connect: {what}", phase="proxy", errno=number)
    _, kind, first = await replies.take(3)
    length = {1: 4, 3: 1 + first, 4: 16}.get(kind)
    if length is None:
        raise ProxyError(f"{replies.whose} names an address of the unknown type {kind}", phase="proxy")
    await replies.take(length + 1)  # and the port, two bytes; the first byte of the address has been taken


class _Replies:
    """What comes from a SOCKS proxy, a message at a time."""

    def __init__(self, stream: Stream, limit: Limit, whose: str) -> None:
        self._stream = stream
        self._limit = limit
        self.whose = whose
        self.left_over = b""

    async def send(self, message: Any) -> None:
        self._limit.check()
        await self._stream.write(message.dumps(), self._limit.remaining())

    async def take(self, size: int, *, version: int | None = None) -> bytes:
        """The next bytes, as many as asked for.

        Raises:
            ProxyError: the connection ends first, or they do not begin with the version.
        """
        while True:
            if version is not None and self.left_over and self.left_over[0] != version:
                what = describe_foreign_bytes(self.left_over, f"a SOCKS{version} reply")
                raise ProxyError(f"{self.whose} does not speak SOCKS5: {what}", phase="proxy")
            if len(self.left_over) >= size:
                data, self.left_over = self.left_over[:size], self.left_over[size:]
                return data
            self._limit.check()
            received = await self._stream.read(DEFAULT_READ_SIZE, self._limit.remaining())
            if not received:
                raise ProxyError(f"{self.whose} ended the connection in the midst of it", phase="proxy")
            self.left_over += received


# --- both --------------------------------------------------------------------------------------------------


async def within_proxy(
    proxy: ProxySettings, limit: Limit, handshake: Callable[..., Awaitable[T]], *arguments: Any
) -> T:
    """Run a handshake with a proxy; what goes wrong in it comes out as a fault of connecting.

    Raises:
        ProxyError: the proxy broke the connection, or its protocol, or refused.
        ConnectTimeout, DeadlineExceeded: it took too long.
    """
    limit.phase = "proxy"
    try:
        limit.check()
        return await handshake(*arguments)
    except (ReadTimeout, WriteTimeout) as error:
        raise limit.error() from error
    except (ReadError, WriteError, RemoteProtocolError) as error:
        raise ProxyError(
            f"the proxy {proxy.origin} failed: {error.message}", phase="proxy", errno=error.errno
        ) from error
    except DeadlineExceeded as error:
        error.phase = "proxy"  # the stream knows only of reading and writing
        raise
    except BaseException:
        for interruption in interruptions():
            interruption.phase = "proxy"
        raise
