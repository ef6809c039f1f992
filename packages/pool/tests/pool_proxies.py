"""Proxies for the tests of the pool: what they say, scripts of them that are played in every world, and live ones.

The same scripts (see `pool_helpers`) are played by a blocking pool, and by async ones in asyncio and trio: `play`.
The proxies in memory further down understand what they are asked, for tests that strike at any moment.
"""

from __future__ import annotations

import base64
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio

from lamina_interfaces import DeadlineBlock, LaminaError, Limit, ReadError, ResolvedAddress
from lamina_pool import AsyncConnectionPool, Proxy
from pool_async_net import MemoryBackend, WatchfulStream
from pool_async_runs import VIRTUAL, loop_options, until
from pool_async_runs import checked_pool as checked_async_pool
from pool_helpers import (
    EOF,
    HEAD,
    OK,
    RESET,
    Call,
    Received,
    Script,
    ScriptedBackend,
    VirtualRuntime,
    checked_pool,
)
from pool_http2_net import PromptStream
from pool_loopback import response, target_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Sequence


WORLDS = ["threads", *VIRTUAL]
"""Where a script is played; time is virtual in all of them."""

# --- what is said ------------------------------------------------------------------------------------------

HTTP_PROXY = "http://proxy.test:3128"
HTTPS_PROXY = "https://proxy.test:3129"
SOCKS_PROXY = "socks5h://proxy.test:1080"

USER, PASSWORD = "user", "s3cr3t-p4ss"
BASIC = b"Basic " + base64.b64encode(b"user:s3cr3t-p4ss")

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
TUNNEL = [HEAD, ESTABLISHED, HEAD, OK]
"""The script of an HTTP proxy that opens a tunnel, and of a server in it that answers one request."""

GREETING = b"\x05\x01\x00"
GREETING_WITH_CREDENTIALS = b"\x05\x02\x00\x02"
CREDENTIALS = b"\x01\x04user\x0bs3cr3t-p4ss"
NO_AUTH, USER_AUTH = b"\x05\x00", b"\x05\x02"
AUTH_OK = b"\x01\x00"
REPLY = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x04\x38"


def connect_to(host: bytes | str, port: int, *, version: int = 0) -> bytes:
    """What a SOCKS5 proxy is sent. `host` is packed if `version` is 4 or 6, otherwise a name."""
    if version or isinstance(host, bytes):
        assert isinstance(host, bytes)
        address = {4: b"\x01", 6: b"\x04"}[version] + host
    else:
        address = b"\x03" + bytes([len(host)]) + host.encode()
    return b"\x05\x01\x00" + address + port.to_bytes(2, "big")


def socks(command: bytes, *rest: Any, auth: bool = False, reply: bytes = REPLY) -> list[Any]:
    """The script of a SOCKS proxy, and of a server behind it."""
    greeting: list[Any] = [Received(GREETING), NO_AUTH]
    if auth:
        greeting = [Received(GREETING_WITH_CREDENTIALS), USER_AUTH, Received(CREDENTIALS), AUTH_OK]
    return [*greeting, Received(command), reply, *rest]


class Chosen:
    """What stands for an `ssl.SSLObject` after a handshake in which this protocol was agreed on."""

    def __init__(self, protocol: str | None) -> None:
        self._protocol = protocol

    def selected_alpn_protocol(self) -> str | None:
        return self._protocol


def layers(*steps: Any, proxy: str | None, server: str | None) -> Script:
    """A script in which the proxy agrees on one protocol, and the server, once there is a tunnel, on another."""
    script = Script(ssl_object=Chosen(proxy))
    script.steps = [HEAD, Call(partial(setattr, script, "ssl_object", Chosen(server))), ESTABLISHED, *steps]
    return script


# --- playing scripts ---------------------------------------------------------------------------------------


class Ask(NamedTuple):
    """A request, with what `ConnectionPool.request` takes."""

    url: str
    method: str = "GET"
    headers: Any = None
    content: bytes | None = None
    extensions: dict[str, Any] | None = None


class Seen(NamedTuple):
    """What was done with one connection, which is closed now.

    Attributes:
        place: host and port, or the path of a unix socket, that was connected to.
        written: everything that was sent.
        hostnames: of each TLS handshake.
        contexts: of the same.
        was_closed: before the pool was.
    """

    place: tuple[str, int | None]
    written: bytes
    hostnames: list[str | None]
    contexts: list[ssl.SSLContext]
    was_closed: bool

    @property
    def first_lines(self) -> list[str]:
        """Of each request, in their order."""
        return [
            head.partition(b"\r\n")[0].decode("latin-1") for head in self.written.split(b"\r\n\r\n") if head
        ]


class Played(NamedTuple):
    """What came of it.

    Attributes:
        outcomes: of each request the response, or the error.
        connections: in the order of their opening.
        resolved: the names that the backend's resolver was asked for.
        sleeps: between attempts to connect.
    """

    outcomes: list[Any]
    connections: list[Seen]
    resolved: list[tuple[str, int]]
    sleeps: list[float]

    @property
    def outcome(self) -> Any:
        [outcome] = self.outcomes
        return outcome

    @property
    def connection(self) -> Seen:
        [connection] = self.connections
        return connection

    @property
    def error(self) -> Any:
        """Which ended the only request."""
        assert isinstance(self.outcome, LaminaError), self.outcome
        return self.outcome


class Resolver:
    """The ability of `NameResolver`, from a table; in both worlds.

    Args:
        addresses: of each name; an exception is raised.
    """

    def __init__(self, addresses: dict[str, Any]) -> None:
        self.addresses = addresses
        self.asked: list[tuple[str, int]] = []

    def look_up(self, host: str, port: int) -> list[ResolvedAddress]:
        self.asked.append((host, port))
        found = self.addresses[host]
        if isinstance(found, BaseException):
            raise found
        return [ResolvedAddress(0, (address, port)) for address in found]


class ResolvingBackend(ScriptedBackend):
    """One that tells addresses. `resolve_seconds` is how long each look-up takes."""

    def __init__(self, resolver: Resolver, *scripts: Any, resolve_seconds: float = 0.0) -> None:
        super().__init__(*scripts)
        self._resolver = resolver
        self._seconds = resolve_seconds

    def resolve(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None
    ) -> list[ResolvedAddress]:
        found = self._resolver.look_up(host, port)
        self.clock.spend(self._seconds, Limit(timeout, self.clock.now, "dns"))
        return found


class PlayedStream(WatchfulStream):
    """A stream that follows a script, without `Delay`."""

    backend: PlayedBackend

    def __init__(self, backend: PlayedBackend, number: int) -> None:
        super().__init__(backend, number)
        script = backend.scripts.pop(0)
        self.written = bytearray()
        self.handshakes: list[tuple[ssl.SSLContext, str | None]] = []
        self._script = script if isinstance(script, Script) else None
        self._steps = iter(script.steps if isinstance(script, Script) else script)
        self._current: Any = None
        self._searched = 0

    def _hear(self, data: bytes) -> None:
        self.written += data

    def _is_ready(self) -> bool:
        while True:
            if self._current is None:
                self._current = next(self._steps, None)
            step = self._current
            if isinstance(step, Received):
                found = self.written.find(step.marker, self._searched)
                if found < 0:
                    return False
                self._searched = found + len(step.marker)
            elif isinstance(step, Call):
                step.function()
            else:
                return step is not None
            self._current = None

    def _take(self, max_bytes: int) -> bytes | None:
        if not self._is_ready():
            return None
        if self._current is EOF:
            return b""
        if self._current is RESET:
            raise ReadError("the connection was reset", phase="read")
        data: bytes = self._current[:max_bytes]
        self._current = self._current[max_bytes:] or None
        return data

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> PlayedStream:
        self._is_ready()  # past a `Call` that stands behind what was sent
        self.handshakes.append((ssl_context, server_hostname))
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return self.is_closed or self._is_ready()
        if info == "ssl_object" and self.handshakes and self._script is not None:
            return self._script.ssl_object
        return None


class PlayedBackend(MemoryBackend):
    """Gives out streams that follow scripts; where an exception stands in place of one, it is raised."""

    def __init__(self, scripts: Sequence[Any]) -> None:
        kind: Any = PlayedStream  # of which there are no others here
        super().__init__(kind=kind)
        self.scripts = list(scripts)
        self.on_connect = self._refuse

    async def _refuse(self, host: str, limit: Any) -> None:
        assert self.scripts, f"one connection more than expected: {host}"
        if isinstance(self.scripts[0], BaseException):
            raise self.scripts.pop(0)


class ResolvingPlayedBackend(PlayedBackend):
    """One that tells addresses."""

    def __init__(self, resolver: Resolver, scripts: Sequence[Any]) -> None:
        super().__init__(scripts)
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None
    ) -> list[ResolvedAddress]:
        return self._resolver.look_up(host, port)


def play(
    world: str,
    scripts: Iterable[Any],
    *asks: Ask,
    resolver: Resolver | None = None,
    deadline: float | None = None,
    **options: Any,
) -> Played:
    """Send requests one after the other through a pool over scripted connections, of which all have to be used.

    What holds after every request is checked: nothing is held, no stream is open that does not idle in the pool.

    Args:
        world: one of `WORLDS`.
        scripts: of the connections, in their order.
        *asks: the requests.
        resolver: for a backend that can tell addresses.
        deadline: seconds that there are for each request, ambiently.
        **options: of the pool.
    """
    play_there = _play_in_threads if world == "threads" else partial(_play_in_a_loop, world)
    return play_there(list(scripts), asks, resolver, deadline, options)


@contextmanager
def _within(seconds: float | None, runtime: Any = None) -> Iterator[None]:
    """What `lamina_timeouts.timeout` is."""
    block = DeadlineBlock(seconds, runtime=runtime)
    block.open()
    try:
        yield
    except BaseException as exc:
        error = block.close(type(exc), exc, exc.__traceback__)
        if error is not None:
            raise error from None
        raise
    else:
        error = block.close(None, None, None)
        if error is not None:
            raise error


def _play_in_threads(
    scripts: list[Any],
    asks: Sequence[Ask],
    resolver: Resolver | None,
    deadline: float | None,
    options: dict[str, Any],
) -> Played:
    backend = ScriptedBackend(*scripts) if resolver is None else ResolvingBackend(resolver, *scripts)
    outcomes: list[Any] = []
    with checked_pool(backend, virtual_time=True, **options) as pool:
        for ask in asks:
            try:
                with _within(deadline, VirtualRuntime(backend.clock)):
                    answer = pool.request(
                        ask.method,
                        ask.url,
                        headers=ask.headers,
                        content=ask.content,
                        extensions=ask.extensions,
                    )
            except LaminaError as error:
                outcomes.append(error)
            else:
                outcomes.append(answer)
        were_closed = [stream.is_closed for stream in backend.streams]
    assert not backend._scripts, "not every connection was opened"
    opened = [dial for dial, script in zip(backend.dials, scripts, strict=True) if not _fails(script)]
    connections = [
        Seen(
            (dial.host, dial.port),
            bytes(stream.written),
            [hostname for _, hostname, _ in stream.tls],
            [context for context, _, _ in stream.tls],
            was_closed,
        )
        for dial, stream, was_closed in zip(opened, backend.streams, were_closed, strict=True)
    ]
    return Played(outcomes, connections, [] if resolver is None else resolver.asked, backend.sleeps)


def _play_in_a_loop(
    world: str,
    scripts: list[Any],
    asks: Sequence[Ask],
    resolver: Resolver | None,
    deadline: float | None,
    options: dict[str, Any],
) -> Played:
    name, loop = loop_options(world)
    return anyio.run(_play, scripts, asks, resolver, deadline, options, backend=name, backend_options=loop)


async def _play(
    scripts: list[Any],
    asks: Sequence[Ask],
    resolver: Resolver | None,
    deadline: float | None,
    options: dict[str, Any],
) -> Played:
    backend = PlayedBackend(scripts) if resolver is None else ResolvingPlayedBackend(resolver, scripts)
    outcomes: list[Any] = []
    async with checked_async_pool(backend, **options) as pool:
        for ask in asks:
            try:
                with _within(deadline):
                    answer = await pool.request(
                        ask.method,
                        ask.url,
                        headers=ask.headers,
                        content=ask.content,
                        extensions=ask.extensions,
                    )
            except LaminaError as error:
                outcomes.append(error)
            else:
                outcomes.append(answer)
        # A dial for several requests has a task of its own, which ends a little later.
        await until(lambda: not pool._pool._lone_dials, 10)
        were_closed = [stream.is_closed for stream in backend.streams]
    assert not backend.scripts, "not every connection was opened"
    places = [call[1:3] if call[0] == "connect_tcp" else (call[1], None) for call in backend.calls]
    opened = [place for place, script in zip(places, scripts, strict=True) if not _fails(script)]
    streams: list[Any] = backend.streams
    connections = [
        Seen(
            place,
            bytes(stream.written),
            [hostname for _, hostname in stream.handshakes],
            [context for context, _ in stream.handshakes],
            was_closed,
        )
        for place, stream, was_closed in zip(opened, streams, were_closed, strict=True)
    ]
    return Played(outcomes, connections, [] if resolver is None else resolver.asked, backend.sleeps)


def _fails(script: Any) -> bool:
    return isinstance(script, BaseException)


# --- live proxies in memory --------------------------------------------------------------------------------


def path_of(head: bytes) -> bytes:
    """The path of a request's target, whether it was sent to a proxy or not: the tests' token."""
    return b"/" + target_of(head).rpartition(b"/")[2]


def answer_as_proxy(stream: Any, head: bytes, body: bytes) -> None:
    """An HTTP proxy that opens every tunnel, and a server that answers with the path; in either kind of pool."""
    stream.feed(ESTABLISHED if head.startswith(b"CONNECT ") else response(path_of(head)))


UNREACHABLE = b"\xc0\x00\x02\x01"
"""192.0.2.1"""


class SOCKSEnd:
    """A SOCKS5 proxy's side of a connection, that understands what it is asked. It cannot reach `UNREACHABLE`.

    Args:
        feed: takes what is to go to the client.

    Attributes:
        is_open: whether the tunnel is.
    """

    def __init__(self, feed: Callable[[bytes], object]) -> None:
        self.is_open = False
        self._feed = feed
        self._heard = b""
        self._next: Callable[[bytes], int] = self._greeting

    def receive(self, data: bytes) -> bytes:
        """Returns what is meant for the server."""
        self._heard += data
        while not self.is_open and (used := self._next(self._heard)):
            self._heard = self._heard[used:]
        if not self.is_open:
            return b""
        data, self._heard = self._heard, b""
        return data

    def _greeting(self, heard: bytes) -> int:
        if len(heard) < 2 or len(heard) < 2 + heard[1]:
            return 0
        if 2 in heard[2 : 2 + heard[1]]:
            self._next = self._credentials
            self._feed(USER_AUTH)
        else:
            self._next = self._command
            self._feed(NO_AUTH)
        return 2 + heard[1]

    def _credentials(self, heard: bytes) -> int:
        if len(heard) < len(CREDENTIALS):
            return 0
        assert heard.startswith(CREDENTIALS)
        self._next = self._command
        self._feed(AUTH_OK)
        return len(CREDENTIALS)

    def _command(self, heard: bytes) -> int:
        if len(heard) < 5:
            return 0
        assert heard.startswith(b"\x05\x01\x00"), heard
        size = {1: 10, 3: 7 + heard[4], 4: 22}[heard[3]]
        if len(heard) < size:
            return 0
        self.is_open = connect_to(UNREACHABLE, 0, version=4)[:-2] not in heard
        self._feed(REPLY if self.is_open else b"\x05\x04\x00\x01" + bytes(6))
        return size


class SOCKSStream(WatchfulStream):
    """A connection to a SOCKS proxy, and to a server through it."""

    def __init__(self, backend: MemoryBackend, number: int) -> None:
        super().__init__(backend, number)
        self._proxy = SOCKSEnd(self.feed)

    def _hear(self, data: bytes) -> None:
        if not self._proxy.is_open:
            data = self._proxy.receive(data)
        if data:
            super()._hear(data)


class TunnelledHTTP2Stream(PromptStream):
    """A connection to an HTTP proxy, and through it to a server that speaks HTTP/2."""

    _asked = b""
    _is_open = False

    def _hear(self, data: bytes) -> None:
        if not self._is_open:
            self._asked += data
            head, end, data = self._asked.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"CONNECT "), head
            self._is_open = True
            self.feed(ESTABLISHED)
        if data:
            super()._hear(data)


class Way(NamedTuple):
    """A way through a proxy that is live.

    Attributes:
        proxy: its URL.
        scheme: of the requests that go this way.
        net: for a `MemoryBackend`.
    """

    proxy: str
    scheme: str
    net: dict[str, Any]

    def make_proxy(self, trust: ssl.SSLContext | None = None) -> Proxy:
        """Its settings; it is asked for credentials in any case."""
        context = trust if self.proxy.startswith("https") else None
        return Proxy(self.proxy, auth=(USER, PASSWORD), ssl_context=context)

    def pool(self, backend: MemoryBackend, trust: ssl.SSLContext | None = None, **options: Any) -> Any:
        """An `AsyncConnectionPool` that takes this way."""
        return AsyncConnectionPool(
            network_backend=backend, proxy=self.make_proxy(trust), ssl_context=trust, **options
        )


def _http() -> dict[str, Any]:
    return {"answer": answer_as_proxy}


WAYS: dict[str, Way] = {
    "forward": Way(HTTP_PROXY, "http", _http()),
    "forward-tls": Way(HTTPS_PROXY, "http", _http()),
    "tunnel": Way(HTTP_PROXY, "ws", _http()),
    "tunnel-tls": Way(HTTP_PROXY, "https", _http()),
    "tls-in-tls": Way(HTTPS_PROXY, "https", _http()),
    "socks": Way(SOCKS_PROXY, "http", {"kind": SOCKSStream}),
    "socks-tls": Way(SOCKS_PROXY, "https", {"kind": SOCKSStream}),
    "socks5": Way(SOCKS_PROXY.replace("socks5h", "socks5"), "https", {"kind": SOCKSStream}),
}
