"""Opening connections: address, TLS, and new attempts after a failure. Written once, as `_pool.py` is.

Whoever opens a connection does so in its own thread or task, where nobody else can interrupt it. Yet closing the pool
must end it. So each dial opens a deadline without a limit around itself, which `close` brings forward to now. Every
wait of a backend looks at it, in a task it is a cancel scope besides, and a stream that is there already is aborted.

By way of a proxy it is the proxy that is connected to, with every option that there is; `_proxies.py` asks it for the
rest of the way. All of it, the TLS handshakes with the proxy and with the server included, is one attempt with one time
limit.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from lamina_interfaces import (
    ConnectError,
    ConnectTimeout,
    DeadlineBlock,
    DeadlineExceeded,
    LaminaError,
    Limit,
    PoolClosed,
    ProxyError,
    TimingSpan,
    UnsupportedProtocol,
    chain_clock,
)

from ._connection import HTTP11Connection
from ._info import spans_of
from ._proxies import UNREACHABLE, forwarded, open_socks, open_tunnel, route_of, within_proxy
from ._ssl import shared_ssl_context
from ._trace import MASK, Tracer
from ._urls import Origin, server_name

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from types import TracebackType

    from lamina_interfaces import Phase, Runtime, SocketOption

    from ._checks import RequestFraming, Timeouts
    from ._http2_connection import HTTP2Connection
    from ._io import Connection, Stream, World
    from ._models import Request
    from ._pool import Claim
    from ._proxies import ProxySettings, Route

BACKOFF_SECONDS = 0.5
"""Before the second new attempt to connect; then twice as long each time. The first follows at once."""


class DialOptions(NamedTuple):
    """How the pool opens connections."""

    http1: bool
    http2: bool
    http2_ping_interval: float | None
    http2_ping_timeout: float
    ssl_context: ssl.SSLContext | None
    proxy: ProxySettings | None
    retries: int
    local_address: str | None
    uds: str | None
    socket_options: Sequence[SocketOption] | None


class ConnectionKey(NamedTuple):
    """What has to be the same for a connection to serve another request of this pool.

    Whatever else a connection depends on (the proxy and its credentials, the TLS contexts, addresses, socket options)
    is the same for all connections of a pool, and cannot be changed.

    Attributes:
        origin: of the server, or of the proxy that forwards.
        server_hostname: for SNI and the certificate, in the place of the origin's host.
        protocols: what may be spoken, by the names of ALPN.
        route: how it leads to the server.
    """

    origin: Origin
    server_hostname: str | None
    protocols: tuple[str, ...]
    route: Route


class _Dial:
    """A connection in the making, so that closing the pool can end it."""

    __slots__ = (
        "_block", "_has_ended", "info", "key", "leading", "phase", "proxy_ssl_context", "spans", "ssl_context", "stream"
    )  # fmt: skip

    def __init__(self, runtime: Runtime, key: ConnectionKey) -> None:
        self.phase: Phase = "connect"
        self.key = key
        # Over when this object has gone, should an interrupt keep it from being closed.
        self._block = DeadlineBlock(None, runtime=runtime)
        self._has_ended = False
        self.ssl_context: ssl.SSLContext | None = None
        self.proxy_ssl_context: ssl.SSLContext | None = None
        self.stream: Stream | None = None
        self.info: dict[str, Any] = {}  # of the last step
        self.leading = b""  # what has come behind the proxy's answer
        self.spans: list[TimingSpan] = []  # the handshakes with the proxy

    def __enter__(self) -> None:
        self._block.open()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is not None:
            self.abort()
        error = self._block.close(exc_type, exc, traceback) or exc
        if isinstance(error, DeadlineExceeded) and error.deadline is self._block.deadline:
            raise _closed(error.phase or "connect") from error

    def end(self) -> None:
        """By another thread or task."""
        self._has_ended = True
        self._block.deadline.reschedule(0.0)
        self.abort()

    def abort(self) -> None:
        if self.stream is not None:
            self.stream.abort()

    def check(self) -> None:
        """The last step is done. A task that was on its way out of it may not have been stopped by `end`.

        Raises:
            PoolClosed: it was ended, and its stream is of no use.
        """
        if self._has_ended:
            raise _closed(self.phase)

    def timings(self) -> tuple[TimingSpan, ...]:
        """The steps that are done."""
        return (*(() if self.stream is None else spans_of(self.stream)), *self.spans)

    async def advance(
        self, trace: Tracer | None, name: str, info: dict[str, Any], step: Callable[..., Awaitable[Stream]]
    ) -> None:
        """Take a step with the arguments in `info`, in their order, and tell of it under its name."""
        self.info = info
        if trace is None:
            await self._keep(step, *info.values())
        else:
            await trace.around(name, info, self._keep, step, *info.values())

    async def _keep(self, step: Callable[..., Awaitable[Stream]], *arguments: Any) -> Any:
        """Keep what a step makes before anybody is told of it, who might raise. Returns what is to be told."""
        self.stream = await step(*arguments)
        return self.stream.public


def _closed(phase: Phase) -> PoolClosed:
    return PoolClosed("the pool was closed while connecting", phase=phase)


class LoneDial:
    """A dial in a task of its own, for all who hope for its connection: whoever began it may be cancelled.

    Attributes:
        claim: what it holds of the pool.
        slot: the place of its connection.
        dial: by which it can be ended, once it has begun.
        failure: why there is no connection, or `None`.
        has_ended: whether that is known.
        is_given_up: nobody wants the connection any more.
    """

    __slots__ = ("claim", "dial", "failure", "has_ended", "is_given_up", "slot")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.slot: Any = None
        self.dial: _Dial | None = None
        self.failure: Exception | None = None
        self.has_ended = False
        self.is_given_up = False

    @property
    def phase(self) -> Phase:
        """How far it has got."""
        return "connect" if self.dial is None else self.dial.phase

    def give_up(self) -> None:
        """End it. Never waits."""
        self.is_given_up = True
        if self.dial is not None:
            self.dial.end()


class Dialler:
    """Opens the connections of one pool.

    Args:
        world: blocking or async.
        options: how to open them.

    Attributes:
        is_closed: whether the pool is.
    """

    def __init__(self, world: World, options: DialOptions) -> None:
        self.is_closed = False
        self._world = world
        self._runtime = world.runtime
        self._now = world.runtime.now
        self._options = options
        self._dials: dict[_Dial, None] = {}
        self._last_key: ConnectionKey | None = None  # that depends on nothing but the origin

    def close(self) -> None:
        """End every dial, and refuse later ones. By any thread; never waits."""
        self.is_closed = True
        for dial in list(self._dials):
            dial.end()

    def abort(self) -> None:
        """In a forked child: free the sockets of the dials that were under way in the parent."""
        for dial in list(self._dials):
            dial.abort()

    def route(self, request: Request, framing: RequestFraming) -> tuple[ConnectionKey, RequestFraming]:
        """Which connections may carry a request, and what is to be sent over one.

        Raises:
            UnsupportedProtocol: it needs HTTP/1.1, and this pool does not speak that.
            LocalProtocolError: it must not go this way.
        """
        url, key = request.url, self._last_key
        needs_http1 = framing.is_upgrade or framing.is_connect
        is_plain = not needs_http1 and "sni_hostname" not in request.extensions
        if is_plain and key is not None and key.origin == url.origin:
            return key, framing  # the very same, so that nothing compares it piece by piece
        options = self._options
        route = route_of(options.proxy, request, framing, options.http1)
        if route == "forward" and options.proxy is not None:
            framing = forwarded(options.proxy, url, framing)
            return ConnectionKey(options.proxy.origin, None, ("http/1.1",), route), framing
        protocols = self._protocols(url.scheme, needs_http1=needs_http1)
        key = ConnectionKey(url.origin, request.extensions.get("sni_hostname"), protocols, route)
        if is_plain and options.proxy is None:
            self._last_key = key
        return key, framing

    def _protocols(self, scheme: bytes, *, needs_http1: bool) -> tuple[str, ...]:
        """What may be spoken on a connection, by its names in ALPN (RFC 7301), the preferred one first.

        Without TLS nothing can be agreed on. So there it is HTTP/1.1, unless this pool does not speak that.
        """
        options = self._options
        if needs_http1 or not options.http2:
            if not options.http1:
                raise UnsupportedProtocol(
                    "CONNECT, WebSocket and other upgrades need HTTP/1.1, which this pool was told not to speak"
                )
            return ("http/1.1",)
        if not options.http1:
            return ("h2",)
        return ("h2", "http/1.1") if scheme == b"https" else ("http/1.1",)

    async def dial(
        self, claim: Claim, request: Request, timeouts: Timeouts, lone: LoneDial | None = None
    ) -> None:
        """Open the claim's connection, with as many new attempts as `retries` allows.

        Args:
            claim: gets the connection.
            request: whose it is.
            timeouts: for each attempt.
            lone: by what it can be given up, if it is made in a task of its own.

        Raises:
            ConnectError, ConnectTimeout: the last attempt failed.
            ProxyError: the proxy refuses, or fails. That is not tried again.
            DeadlineExceeded: an ambient deadline passed.
            PoolClosed: the pool was closed meanwhile.
        """
        dial = _Dial(self._runtime, claim.key)
        try:
            try:
                with dial:
                    self._dials[dial] = None
                    if lone is not None:
                        lone.dial = dial
                    if self.is_closed:
                        raise PoolClosed(phase="connect")
                    await self._dial_with_retries(dial, claim, request, timeouts)
            finally:
                self._dials.pop(dial, None)
        finally:
            self._dials.pop(dial, None)  # again, should an interrupt have come in the midst of it

    async def _dial_with_retries(
        self, dial: _Dial, claim: Claim, request: Request, timeouts: Timeouts
    ) -> None:
        trace = Tracer.of(request, "connection")
        key, options = dial.key, self._options
        # The first default context of the process takes a while to build: not at the cost of the time-out.
        if key.route != "forward" and key.origin.scheme in (b"https", b"wss"):
            dial.ssl_context = options.ssl_context or shared_ssl_context(key.protocols)
        if key.route != "direct" and options.proxy is not None and options.proxy.is_secure:
            dial.proxy_ssl_context = options.proxy.ssl_context or shared_ssl_context(("http/1.1",))
        if "h2" in key.protocols:
            _http2_connection()  # now, while no server waits for us
        if key.route == "socks":
            import socksio.socks5  # noqa: F401 - the same: it takes longer than many a proxy
        for delay in _backoff(options.retries):
            if claim.record is not None:
                claim.record.note_attempt(self._now())
            try:
                await self._connect(dial, request, timeouts.connect)
                claim.connection, claim.spans = self._connection(dial), dial.spans
                return
            except BaseException as error:
                may_retry = isinstance(error, (ConnectError, ConnectTimeout)) and not self.is_closed
                if claim.record is not None:
                    claim.record.note_failure(
                        error,
                        dial.phase,
                        key.origin,
                        dial.timings(),
                        self._now(),
                        will_retry=may_retry and delay is not None,
                    )
                if delay is None or not may_retry:
                    raise
            await self._pause(delay, dial.info, trace)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _connection(self, dial: _Dial) -> Connection:
        stream: Stream = dial.stream  # type: ignore[assignment] # connected
        # The choice is the server's only where there is TLS with it, and not just with a proxy on the way.
        protocol = None if dial.ssl_context is None else _chosen(stream)
        if protocol is None and "http/1.1" not in dial.key.protocols:
            protocol = "h2"  # by prior knowledge
        return self.speak(stream, dial.leading, is_http2=protocol == "h2")

    def speak(self, stream: Stream, leading: bytes = b"", *, is_http2: bool) -> Connection:
        """A connection over a stream that is open, from which `leading` has been read already."""
        if not is_http2:
            return HTTP11Connection(stream, self._runtime, leading=leading)
        connection = _http2_connection()(
            stream,
            self._runtime,
            is_blocking=self._world.is_blocking,
            ping_interval=self._options.http2_ping_interval,
            ping_timeout=self._options.http2_ping_timeout,
        )
        if leading:
            connection.take(leading)
        return connection

    async def _pause(self, delay: float, info: dict[str, Any], trace: Tracer | None) -> None:
        try:
            if trace is None:
                await self._world.sleep(delay)
            else:
                await trace.around("retry", info, self._world.sleep, delay)  # what is tried again
        except DeadlineExceeded as error:
            if error.phase is None:
                error.phase = "connect"  # a sleep serves everybody, and knows no phase
            raise

    async def _connect(self, dial: _Dial, request: Request, timeout: float | None) -> None:
        """One attempt: all of it, every handshake included, within `timeout` seconds."""
        limit = Limit(timeout, self._now, "connect")
        clock = chain_clock(self._now)
        started_at = clock()
        proxy = self._options.proxy
        try:
            if dial.key.route == "direct" or proxy is None:
                await self._connect_transport(
                    dial, request.url.origin, limit, Tracer.of(request, "connection")
                )
                if dial.ssl_context is not None:
                    await self._start_tls(dial, dial.ssl_context, request, limit, "connection")
            else:
                await self._connect_by_way_of(proxy, dial, request, limit, clock)
            dial.check()
        except BaseException as error:
            dial.abort()
            if isinstance(error, ConnectTimeout) and timeout is not None:
                # The backend knows of one step, and what was left for it.
                error.elapsed, error.limit = clock() - started_at, float(timeout)
            raise

    async def _connect_transport(
        self, dial: _Dial, origin: Origin, limit: Limit, trace: Tracer | None
    ) -> None:
        options = self._options
        limit.phase = dial.phase = "connect"
        dial.stream, dial.leading, dial.spans = None, b"", []
        remaining = limit.remaining()
        info: dict[str, Any]
        connect: Callable[..., Awaitable[Stream]]
        if options.uds is not None:
            info = {"path": options.uds, "timeout": remaining, "socket_options": options.socket_options}
            name, connect = "connect_unix_socket", self._world.connect_unix_socket
        else:
            info = {
                "host": origin.host.decode("ascii"),
                "port": origin.port,
                "timeout": remaining,
                "local_address": options.local_address,
                "socket_options": options.socket_options,
            }
            name, connect = "connect_tcp", self._world.connect_tcp
        await dial.advance(trace, name, info, connect)

    # --- by way of a proxy ---------------------------------------------------------------------------------

    async def _connect_by_way_of(
        self,
        proxy: ProxySettings,
        dial: _Dial,
        request: Request,
        limit: Limit,
        clock: Callable[[], float],
    ) -> None:
        if dial.key.route == "socks":
            await self._pass_socks(proxy, dial, request, limit, clock)
        else:
            await self._reach(proxy, dial, request, limit, "connection")
            if dial.key.route == "forward":
                return
            await self._ask(proxy, dial, limit, clock, open_tunnel, request.url.origin, limit, request)
        if dial.ssl_context is not None:
            if dial.leading:
                raise ConnectError(
                    f"bytes came behind the answer of the proxy {proxy.origin}, before the TLS handshake; they cannot "
                    "be trusted",
                    phase="tls",
                )
            prefix = "socks" if proxy.is_socks else "proxy"
            await self._start_tls(dial, dial.ssl_context, request, limit, prefix)

    async def _reach(
        self, proxy: ProxySettings, dial: _Dial, request: Request, limit: Limit, prefix: str
    ) -> None:
        """Connect to the proxy itself."""
        trace = Tracer.of(request, prefix)
        try:
            await self._connect_transport(dial, proxy.origin, limit, trace)
            if dial.proxy_ssl_context is not None:
                await self._handshake(
                    dial, dial.proxy_ssl_context, server_name(proxy.origin.host), limit, trace
                )
        except LaminaError as error:
            error.message = f"the proxy {proxy.origin} cannot be reached: {error.message}"
            raise
        stream: Stream = dial.stream  # type: ignore[assignment] # connected
        if (protocol := _chosen(stream)) not in (None, "http/1.1"):
            raise ProxyError(
                f"the proxy {proxy.origin} chose the protocol {protocol!r}, which its ssl_context offers and which is "
                "not spoken with proxies",
                phase="tls",
            )

    async def _pass_socks(
        self,
        proxy: ProxySettings,
        dial: _Dial,
        request: Request,
        limit: Limit,
        clock: Callable[[], float],
    ) -> None:
        """Have a SOCKS proxy connect to the server, to one of its addresses after the other if they are known here."""
        host, port = server_name(request.url.host), request.url.origin.port
        hosts = [host]
        if proxy.is_told_addresses:
            limit.phase = dial.phase = "dns"
            hosts = await self._world.resolve(host, port, limit.remaining()) or hosts
        trace = Tracer.of(request, "socks")
        for host in hosts:
            await self._reach(proxy, dial, request, limit, "socks")
            arguments = (proxy, dial, limit, clock, open_socks, host, port, limit)
            try:
                if trace is None:
                    await self._ask(*arguments)
                else:
                    stream: Stream = dial.stream  # type: ignore[assignment] # connected
                    auth = None if proxy.auth is None else MASK
                    info = {"stream": stream.public, "host": host, "port": port, "auth": auth}
                    await trace.around("setup_socks5_connection", info, self._ask, *arguments)
                return
            except ProxyError as error:
                if error.errno not in UNREACHABLE or host is hosts[-1]:
                    raise
                dial.abort()

    async def _ask(
        self,
        proxy: ProxySettings,
        dial: _Dial,
        limit: Limit,
        clock: Callable[[], float],
        handshake: Callable[..., Awaitable[bytes]],
        *arguments: Any,
    ) -> Any:
        """Have the proxy open the rest of the way. Returns what is to be told of it."""
        dial.phase = "proxy"
        stream: Stream = dial.stream  # type: ignore[assignment] # connected
        begun_at = clock()
        dial.leading = await within_proxy(proxy, limit, handshake, stream, proxy, *arguments)
        dial.spans.append(TimingSpan("proxy", begun_at, clock()))
        return stream.public

    # --- TLS -----------------------------------------------------------------------------------------------

    async def _start_tls(
        self, dial: _Dial, context: ssl.SSLContext, request: Request, limit: Limit, prefix: str
    ) -> None:
        """TLS with the server."""
        hostname = request.extensions.get("sni_hostname") or server_name(request.url.host)
        await self._handshake(dial, context, hostname, limit, Tracer.of(request, prefix))
        stream: Stream = dial.stream  # type: ignore[assignment] # connected, and inside of TLS
        protocol = _chosen(stream)
        # A server that chooses nothing gets HTTP/1.1, unless the pool was told that it speaks nothing but HTTP/2. What
        # the two sides have agreed on is spoken, also where it was not the pool that has offered it.
        agreed = protocol in (None, *dial.key.protocols) or (
            protocol == "h2" and not self._options.http2 and has_h2()
        )
        if not agreed:
            raise ConnectError(
                f"the server chose the protocol {protocol!r}, which the ssl_context offers and this pool does not "
                "speak here",
                phase="tls",
            )

    async def _handshake(
        self, dial: _Dial, context: ssl.SSLContext, hostname: str, limit: Limit, trace: Tracer | None
    ) -> None:
        stream: Stream = dial.stream  # type: ignore[assignment] # connected
        limit.phase = dial.phase = "tls"
        limit.check()
        info = {"ssl_context": context, "server_hostname": hostname, "timeout": limit.remaining()}
        await dial.advance(trace, "start_tls", info, stream.start_tls)


def _http2_connection() -> type[HTTP2Connection]:
    """The class. Lazily: h2 takes 60 ms to import, and is an extra."""
    from ._http2_connection import HTTP2Connection

    return HTTP2Connection


def _chosen(stream: Stream) -> str | None:
    """Which protocol the server has chosen (ALPN): `"h2"`, `"http/1.1"` or another one; `None` for none."""
    ssl_object = stream.get_extra_info("ssl_object")
    protocol: str | None = None if ssl_object is None else ssl_object.selected_alpn_protocol()
    return "http/1.1" if protocol == "http/1.0" else protocol


def has_h2() -> bool:
    """Whether h2 can be imported; it is not, since it may not be needed."""
    if "h2" in sys.modules:
        return True
    from importlib.util import find_spec

    return find_spec("h2") is not None


def _backoff(retries: int) -> Iterator[float | None]:
    """How long to wait after each failed attempt; `None` after the last."""
    for attempt in range(retries):
        yield 0.0 if attempt == 0 else BACKOFF_SECONDS * 2.0 ** (attempt - 1)
    yield None
