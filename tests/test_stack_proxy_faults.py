"""Proxies that refuse, break, dawdle or lie, and whoever is between them and the server (group E of docs/faults.md).

The proxies are ours. The first connections to one meet the fault, and those after them are served: so every test ends
with a request that is right, and with nothing left behind.
"""

from __future__ import annotations

import base64
import logging
import pickle
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import anyio.lowlevel
import pytest

from lamina_interfaces import (
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    LaminaError,
    LocalProtocolError,
    PoolClosed,
    ProxyError,
    ReadError,
    RemoteProtocolError,
)
from lamina_pool import PoolStats, Proxy
from lamina_timeouts import timeout
from stack_h2_peer import H2Server
from stack_helpers import read_head, response, tries_in_time
from stack_proxies import (
    BASIC,
    GRANTED,
    PASSWORD,
    SOCKS_GRANTED,
    USER,
    FakeProxy,
    Origin,
    receive,
    receive_address,
    receive_auth,
    wait_for_the_end,
)
from stack_worlds import Cancelled

if TYPE_CHECKING:
    from stack_helpers import Certificates, FaultServer
    from stack_worlds import Job, Jobs, World

    StartServer = Callable[..., FaultServer]

Script = Callable[[socket.socket], object]
"""What a proxy does on one connection."""

EMPTY = PoolStats(0, 0, 0, 0, 0, 0)

LONG = 20.0
"""Seconds of a limit that is not to be reached."""


@pytest.fixture(autouse=True)
def nothing_left(no_socket_left: None) -> Iterator[None]:
    """No socket, and no thread but those that were there."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(10)
        assert not thread.is_alive(), thread


# --- the scene ---------------------------------------------------------------------------------------------

TUNNELS = {"tunnel": "http", "tunnel in TLS": "https", "SOCKS": "socks5h"}
"""The ways that have a handshake with the proxy, and the schemes of its URL."""

EVERY_TUNNEL = pytest.mark.parametrize("way", TUNNELS)
HTTP_TUNNEL = pytest.mark.parametrize("way", ["tunnel", "tunnel in TLS"])


class FaultyProxy:
    """The first connections meet the fault, and those after them are served; for `fault_server`.

    Attributes:
        times: how many meet it.
        met: how many have.
        fake: serves the others.
    """

    def __init__(
        self, fault: Script | None, fake: FakeProxy, *, context: ssl.SSLContext | None, is_before_tls: bool
    ) -> None:
        self._fault = fault
        self._context = context
        self._is_before_tls = is_before_tls
        self._lock = threading.Lock()
        self.times = 0 if fault is None else 1
        self.met = 0
        self.fake = fake

    def __call__(self, sock: socket.socket) -> None:
        sock.settimeout(LONG)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            script: Script = self.fake
            if self._fault is not None and self.met < self.times:
                self.met += 1
                script = self._fault
        if self._context is None or (script is not self.fake and self._is_before_tls):
            script(sock)
        else:
            with self._context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as inside:
                script(inside)


@dataclass
class Scene:
    """A pool whose proxy is faulty, and a server behind it.

    Attributes:
        pool: what is tested.
        url: of the server, without a path.
        proxy: what the pool connects to; `faulty` and `fake`, what it does.
        server: behind the proxy; `origin`, what it does.
        given: to the pool.
        is_http2: whether the pool speaks that too.
    """

    world: World
    pool: Any
    url: str
    proxy: FaultServer
    server: FaultServer
    faulty: FaultyProxy
    origin: Origin
    given: Proxy
    is_http2: bool

    @property
    def fake(self) -> FakeProxy:
        return self.faulty.fake

    async def ask(self, path: str = "/fault", method: str = "GET", **options: Any) -> Any:
        """A request; its limits are long but for those that are given."""
        limits = {name: options.pop(name, LONG) for name in ("connect", "read", "write", "pool")}
        extensions = {"timeout": limits, **options.pop("extensions", {})}
        return await self.pool.request(method, self.url + path, extensions=extensions, **options)

    async def fails(
        self, kind: type[LaminaError], path: str = "/fault", *, deadline: float = LONG, **options: Any
    ) -> Any:
        """The error of a request. While it is held, its connection is closed and its place is free."""
        with pytest.raises(LaminaError) as caught:
            async with timeout(deadline):
                await self.ask(path, **options)
        error = caught.value
        assert type(error) is kind, repr(error)
        assert str(error)
        assert error.origin == self.url
        await self.is_free()
        return error

    async def fails_in_time(self, kind: type[LaminaError], limit: str, phase: str) -> None:
        """A request has this limit, and comes as far as this phase.

        A busy machine may not come that far, or be late, and then it is given more time.
        """
        found: list[tuple[str, float]] = []
        for seconds in (0.2, 0.4, 0.8, 1.6, 3.2):
            start = time.monotonic()
            options: dict[str, Any] = {limit: seconds}
            error = await self.fails(kind, **options)
            took = time.monotonic() - start
            assert error.limit == seconds
            assert (
                seconds - 0.01 <= error.elapsed <= took + 0.01
            )  # clocks differ, and uvloop's has milliseconds
            found.append((error.phase, took))
            if error.phase == phase and took <= seconds + 0.25:
                return
        pytest.fail(f"it took {found}, and not as long as its limit, up to the phase {phase}")

    async def is_free(self) -> None:
        """No connection is left: at once, or as soon as the task that makes one for HTTP/2 has ended."""
        if self.is_http2:
            await self.world.until(lambda: self.pool.stats() == EMPTY)
        assert self.pool.stats() == EMPTY
        await self.world.until(lambda: self.proxy.live == 0)


StartScene = Callable[..., Any]


@pytest.fixture
def scene(nothing_left: None, fault_server: StartServer, certificates: Certificates) -> StartScene:
    """Call it with a world, the way, and the fault."""

    @asynccontextmanager
    async def start(
        world: World,
        way: str,
        fault: Script | None = None,
        *,
        scheme: str = "https",
        host: str = "127.0.0.1",
        is_before_tls: bool = False,
        server: FaultServer | None = None,
        fake: FakeProxy | None = None,
        auth: tuple[bytes | str, bytes | str] | None = None,
        headers: Any = None,
        **options: Any,
    ) -> AsyncIterator[Scene]:
        origin = Origin()
        if server is None:
            server = fault_server(origin, context=certificates.server if scheme == "https" else None)
        in_tls = TUNNELS.get(way, "http") == "https"
        context = certificates.server if in_tls else None
        fake = fake or FakeProxy()
        fake.is_socks = way == "SOCKS"
        faulty = FaultyProxy(fault, fake, context=context, is_before_tls=is_before_tls)
        proxy = fault_server(faulty)
        given = Proxy(
            f"{TUNNELS.get(way, 'http')}://127.0.0.1:{proxy.port}",
            auth=auth,
            headers=headers,
            ssl_context=certificates.client if in_tls else None,
        )
        options = {"ssl_context": certificates.client, **options}
        async with world.pool(proxy=given, **options) as pool:
            url = f"{scheme}://{host}:{server.port}"
            is_http2 = bool(options.get("http2"))
            it = Scene(world, pool, url, proxy, server, faulty, origin, given, is_http2)
            yield it
            faulty.times = 0
            assert (await it.ask("/after")).content == b"/after"
            stats = pool.stats()
            assert (stats.active, stats.connecting, stats.queued, stats.requests) == (0, 0, 0, 0), stats
        assert pool.stats() == EMPTY
        await world.until(lambda: proxy.live == server.live == 0)

    return start


def sends(data: bytes, then: Script = wait_for_the_end) -> Script:
    """A fault: a head is answered with this."""

    def fault(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(data)
        then(sock)

    return fault


def sends_for_ever(first: bytes, data: bytes) -> Script:
    """A fault: a head is answered with this, and then with that again and again."""

    def fault(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(first)
        while True:
            sock.sendall(data)

    return fault


def drips(data: bytes, before: Script = read_head) -> Script:
    """A fault: a byte each 50 ms, so that no single read is slow."""

    def fault(sock: socket.socket) -> None:
        before(sock)
        for index in range(len(data)):
            sock.sendall(data[index : index + 1])
            threading.Event().wait(0.05)
        wait_for_the_end(sock)

    return fault


def ends(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RDWR)


def resets(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def send_in_pieces(sock: socket.socket, data: bytes) -> None:
    for index in range(len(data)):
        sock.sendall(data[index : index + 1])
        threading.Event().wait(0.002)  # else some of them would be read together


# --- CONNECT -----------------------------------------------------------------------------------------------

REFUSALS = {
    "407": b"407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 4\r\n\r\nbody",
    "502": b"502 Bad Gateway\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
    "302": b"302 Found\r\nLocation: https://elsewhere.example/\r\nConnection: close\r\n\r\nbody",
    "400": b"400 Bad Request\r\n\r\n",
    "304": b"304 Not Modified\r\n\r\n",
    "999": b"999 \r\n\r\n",
}


@HTTP_TUNNEL
@pytest.mark.parametrize("refusal", REFUSALS)
async def test_a_tunnel_that_is_refused_E01(world: World, way: str, refusal: str, scene: StartScene) -> None:
    """The error tells the status and the fields. Nobody asks again, with credentials or without."""
    options = {"auth": (USER, PASSWORD), "retries": 3}
    async with scene(world, way, sends(b"HTTP/1.1 " + REFUSALS[refusal]), **options) as it:
        it.faulty.times = 99
        error = await it.fails(ProxyError)
        assert (error.status, error.phase) == (int(refusal), "proxy")
        if refusal == "407":
            assert (b"Proxy-Authenticate", b"Basic realm=x") in error.headers
        if refusal == "302":
            assert (b"Location", b"https://elsewhere.example/") in error.headers
        assert refusal in str(error)
        assert isinstance(error, ConnectionError)
        assert it.proxy.accepted == 1
        assert not it.origin.heads


async def test_a_forwarded_request_has_the_proxys_answer_E01(world: World, scene: StartScene) -> None:
    """There it is a response as others are."""
    refusal = b"HTTP/1.1 " + REFUSALS["407"]
    async with scene(world, "forward", sends(refusal, ends), scheme="http", auth=(USER, PASSWORD)) as it:
        got = await it.ask()
        assert (got.status, got.content) == (407, b"body")
        assert (b"Proxy-Authenticate", b"Basic realm=x") in got.headers
        assert it.proxy.accepted == 1


NO_ANSWERS: dict[str, Script] = {
    "nothing": sends(b"", ends),
    "a reset": sends(b"", resets),
    "half a head": sends(b"HTTP/1.1 200 Connec", ends),
    "half a head and a reset": sends(b"HTTP/1.1 200 OK\r\nX: y", resets),
    "an interim response only": sends(b"HTTP/1.1 100 Continue\r\n\r\n", ends),
    "no HTTP": sends(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "SOCKS": sends(SOCKS_GRANTED + b"\r\n\r\n"),
    "TLS": sends(b"\x15\x03\x01\x00\x02\x02\x16\r\n\r\n"),
    "HTTP/2": sends(b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
    "a bad header": sends(b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n"),
    "a bad status": sends(b"HTTP/1.1 2x0 OK\r\n\r\n"),
    "endless interim responses": sends_for_ever(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "an endless line": sends_for_ever(b"HTTP/1.1 200 OK\r\nX: ", b"x" * 10_000),
    "endless lines": sends_for_ever(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 100),
    "a switch of protocols": sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\n\r\n"),
}


@HTTP_TUNNEL
@pytest.mark.parametrize("answer", NO_ANSWERS)
async def test_an_answer_to_connect_that_is_none_E02(
    world: World, way: str, answer: str, scene: StartScene
) -> None:
    async with scene(world, way, NO_ANSWERS[answer]) as it:
        error = await it.fails(ProxyError)
        assert error.phase == "proxy"
        assert error.status is None or answer == "a switch of protocols"
        assert not it.origin.heads


@EVERY_TUNNEL
async def test_an_answer_that_comes_a_byte_at_a_time_E02(world: World, way: str, scene: StartScene) -> None:
    """No wait for a byte is long, and all of them together are too long: for the time-out, and for a deadline."""
    if way == "SOCKS":
        # It names an address of 200 letters.
        fault = drips(b"\x05\x00\x00\x03\xc8" + b"x" * 202, asked_by_socks)
    else:
        fault = drips(b"HTTP/1.1 200 Connection established, at long last and with a long reason\r\n\r\n" * 2)
    async with scene(world, way, fault) as it:
        it.faulty.times = 99
        await it.fails_in_time(ConnectTimeout, "connect", "proxy")
        await it.fails_in_time(DeadlineExceeded, "deadline", "proxy")


GRANTS = {
    "a length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    "both": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    "an old version": b"HTTP/1.0 200 Connection established\r\nProxy-agent: old\r\n\r\n",
    "no reason": b"HTTP/1.1 200\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "299": b"HTTP/1.1 299 Why not\r\n\r\n",
    "interim responses first": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n"
    + GRANTED,
}


@HTTP_TUNNEL
@pytest.mark.parametrize("grant", GRANTS)
async def test_a_tunnel_that_is_granted_begins_behind_the_head_E03(
    world: World, way: str, grant: str, scene: StartScene
) -> None:
    async with scene(world, way, fake=FakeProxy(granted=GRANTS[grant])) as it:
        assert (await it.ask()).content == b"/fault"


async def test_a_grant_that_comes_in_pieces_of_one_byte_E06(world: World, scene: StartScene) -> None:
    async with scene(world, "tunnel", fake=FakeProxy(send=send_in_pieces)) as it:
        assert (await it.ask()).content == b"/fault"


# --- SOCKS5 ------------------------------------------------------------------------------------------------


def asked_by_socks(sock: socket.socket) -> None:
    """Everything up to the proxy's last answer."""
    receive(sock, receive(sock, 2)[1])
    sock.sendall(b"\x05\x00")
    receive_address(sock)


def greets(data: bytes, then: Script = wait_for_the_end) -> Script:
    """A fault: this comes in answer to the offered methods."""

    def fault(sock: socket.socket) -> None:
        receive(sock, receive(sock, 2)[1])
        sock.sendall(data)
        then(sock)

    return fault


def authenticates(data: bytes, then: Script = wait_for_the_end) -> Script:
    """A fault: this comes in answer to user name and password."""

    def fault(sock: socket.socket) -> None:
        receive(sock, receive(sock, 2)[1])
        sock.sendall(b"\x05\x02")
        receive_auth(sock)
        sock.sendall(data)
        then(sock)

    return fault


def replies(data: bytes, then: Script = wait_for_the_end) -> Script:
    """A fault: this comes in answer to the request."""

    def fault(sock: socket.socket) -> None:
        asked_by_socks(sock)
        sock.sendall(data)
        then(sock)

    return fault


SOCKS_FAULTS: dict[str, Script] = {
    "ends at once": ends,
    "resets": greets(b"", resets),
    "hangs up": greets(b"", ends),
    "half a greeting": greets(b"\x05", ends),
    "half a greeting and a reset": greets(b"\x05", resets),
    "no method": greets(b"\x05\xff"),
    "a method that was not offered": greets(b"\x05\x01"),
    "an unknown method": greets(b"\x05\x77"),
    "SOCKS4": greets(b"\x04\x00"),
    "SOCKS4 refuses": greets(b"\x00\x5b\x00\x00\x00\x00\x00\x00"),
    "HTTP": greets(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "HTTP that hangs up": greets(b"HTTP/1.1 400 Bad Request\r\n\r\n", ends),
    "another protocol": greets(b"SSH-2.0-OpenSSH_9.2\r\n"),
    "credentials refused": authenticates(b"\x01\x01"),
    "credentials refused, ends": authenticates(b"\x01\xff", ends),
    "credentials, ends": authenticates(b"", ends),
    "credentials, half an answer": authenticates(b"\x01", ends),
    "credentials, another version": authenticates(b"\x02\x00"),
    "no reply": replies(b"", ends),
    "no reply and a reset": replies(b"", resets),
    "half a reply": replies(SOCKS_GRANTED[:3], ends),
    "all but a byte of a reply": replies(SOCKS_GRANTED[:-1], ends),
    "another version in the reply": replies(b"\x04" + SOCKS_GRANTED[1:]),
    "HTTP in the reply": replies(b"HTTP/1.1 502 Bad Gateway\r\n\r\n", ends),
    "an address of no known type": replies(b"\x05\x00\x00\x02\x7f\x00\x00\x01\x00\x50"),
}

SOCKS_REPLIES = {
    1: "general failure",
    2: "not allowed",
    3: "network unreachable",
    4: "host unreachable",
    5: "refused",
    6: "TTL expired",
    7: "command not supported",
    8: "address type not supported",
    9: "reply 9",
    255: "reply 255",
}


@pytest.mark.parametrize("fault", SOCKS_FAULTS)
async def test_a_socks_proxy_that_does_not_do_its_part_E07(
    world: World, fault: str, scene: StartScene
) -> None:
    auth = (USER, PASSWORD) if "credentials" in fault else None
    async with scene(world, "SOCKS", SOCKS_FAULTS[fault], auth=auth) as it:
        error = await it.fails(ProxyError)
        assert (error.phase, error.status) == ("proxy", None)
        assert it.proxy.accepted == 1
        assert not it.origin.heads


async def test_a_socks_proxy_that_wants_credentials_E07(world: World, scene: StartScene) -> None:
    """It chooses a method that was not offered."""
    async with scene(world, "SOCKS", greets(b"\x05\x02")) as it:
        error = await it.fails(ProxyError)
        assert "credentials" in str(error)


@pytest.mark.parametrize("code", SOCKS_REPLIES)
async def test_a_socks_proxy_that_refuses_says_why_E07(world: World, code: int, scene: StartScene) -> None:
    """Some leave out the rest of such a reply."""
    reply = bytes([5, code, 0, 1, 0, 0, 0, 0, 0, 0])
    async with scene(world, "SOCKS", replies(reply) if code % 2 else replies(reply[:2], ends)) as it:
        error = await it.fails(ProxyError)
        assert SOCKS_REPLIES[code] in str(error)
        assert isinstance(error, ConnectionError)


SOCKS_GRANTS = {
    "an IPv4 address": SOCKS_GRANTED,
    "an IPv6 address": b"\x05\x00\x00\x04" + bytes(16) + b"\x00\x50",
    "a name": b"\x05\x00\x00\x03\x0cname.example\x00\x50",
    "an empty name": b"\x05\x00\x00\x03\x00\x00\x50",
    "a reserved byte": b"\x05\x00\xaa\x01\x00\x00\x00\x00\x00\x00",
}


@pytest.mark.parametrize("auth", [None, (USER, PASSWORD)], ids=["", "auth"])
@pytest.mark.parametrize("grant", SOCKS_GRANTS)
async def test_socks_replies_in_pieces_of_one_byte_E06(
    world: World, grant: str, auth: tuple[str, str] | None, scene: StartScene
) -> None:
    fake = FakeProxy(granted=SOCKS_GRANTS[grant], send=send_in_pieces)
    if auth is not None:
        fake.auth = (USER.encode(), PASSWORD.encode())
    async with scene(world, "SOCKS", fake=fake, auth=auth) as it:
        assert (await it.ask()).content == b"/fault"
        assert fake.asked[0].auth == fake.auth


HOSTS = {
    "127.0.0.1": (1, "127.0.0.1"),
    "[::1]": (4, "::1"),
    "[::ffff:127.0.0.1]": (4, "::ffff:127.0.0.1"),
    "localhost": (3, "localhost"),
    "xn--bcher-kva.example": (3, "xn--bcher-kva.example"),
    ".".join(["a" * 63] * 3 + ["b" * 61]): (3, ".".join(["a" * 63] * 3 + ["b" * 61])),
}


@pytest.mark.parametrize("host", HOSTS)
async def test_how_socks_is_told_the_host_E08(world: World, host: str, scene: StartScene) -> None:
    """An IP address as such, a name of up to 253 letters as a name."""
    kind, sent = HOSTS[host]
    async with scene(world, "SOCKS", scheme="http", host=host) as it:
        assert (await it.ask()).content == b"/fault"
        asked = it.fake.asked[0]
        assert (asked.kind, asked.target) == (kind, f"{sent}:{it.server.port}")


@pytest.mark.parametrize("host", ["a" * 64 + ".example", ".".join(["a" * 60] * 5), "a" * 256])
@EVERY_TUNNEL
async def test_a_host_that_is_too_long_E08(world: World, way: str, host: str, scene: StartScene) -> None:
    async with scene(world, way) as it:
        with pytest.raises(LaminaError) as caught:
            await it.pool.request("GET", f"https://{host}/")
        assert isinstance(caught.value, ValueError)
        assert it.proxy.accepted == 0


@pytest.mark.parametrize("auth", [("u" * 256, "p"), ("u", "p" * 256), ("", "p"), ("u", "")])
async def test_socks_credentials_that_cannot_be_sent_E08(world: World, auth: tuple[str, str]) -> None:
    with pytest.raises(LocalProtocolError, match="1 to 255 bytes"):
        world.pool(proxy=Proxy("socks5://127.0.0.1:1080", auth=auth))


async def test_socks_credentials_of_255_bytes_E08(world: World, scene: StartScene) -> None:
    auth = (b"u" * 255, bytes(range(1, 256)))
    async with scene(world, "SOCKS", fake=FakeProxy(auth=auth), auth=auth) as it:
        assert (await it.ask()).content == b"/fault"
        assert it.fake.asked[0].auth == auth


# --- credentials -------------------------------------------------------------------------------------------

SECRETS = (PASSWORD, BASIC.removeprefix("Basic "))


@pytest.mark.parametrize("target", ["https", "http"])
@pytest.mark.parametrize("way", ["tunnel", "tunnel in TLS", "SOCKS", "refused", "SOCKS, refused"])
async def test_the_proxys_credentials_are_for_the_proxy_alone_E04(
    world: World, way: str, target: str, scene: StartScene, caplog: pytest.LogCaptureFixture
) -> None:
    """They are in no byte for the server, and in nothing that is told of: errors, reprs, logs, traces."""
    is_socks, is_refused = "SOCKS" in way, "refused" in way
    told: list[str] = []

    async def trace(name: str, info: dict[str, Any]) -> None:
        told.append(
            f"{name} {info!r} {[vars(value) for value in info.values() if hasattr(value, '__dict__')]!r}"
        )
        request = info.get("request")
        if request is not None and request.method == b"CONNECT":
            told.append(repr(request.headers))

    def plainly(name: str, info: dict[str, Any]) -> None:
        drive_trace = trace(name, info)
        with pytest.raises(StopIteration):
            drive_trace.send(None)

    caplog.set_level(logging.DEBUG)
    fault = None
    if is_refused:
        fault = authenticates(b"\x01\x01") if is_socks else sends(b"HTTP/1.1 " + REFUSALS["407"], ends)
    fake = FakeProxy(auth=(USER.encode(), PASSWORD.encode()) if is_socks else None)
    kind = "SOCKS" if is_socks else "tunnel" if is_refused else way
    async with scene(world, kind, fault, scheme=target, fake=fake, auth=(USER, PASSWORD)) as it:
        extensions = {"trace": trace if world.is_async else plainly}
        if is_refused and (is_socks or target == "https"):
            error = await it.fails(ProxyError, extensions=extensions)
            told += [
                str(error),
                repr(error),
                repr(vars(error)),
                repr(error.__cause__),
                repr(error.__context__),
            ]
            told.append(pickle.dumps(error).decode("latin-1"))
        else:
            got = await it.ask(extensions=extensions)
            told += [
                repr(got),
                repr(got.headers),
                repr(got.extensions),
                repr(vars(got.extensions["network_stream"])),
            ]
        told += [repr(it.pool), repr(it.pool.connections), repr(it.pool.stats()), repr(it.given)]
    assert told[1:]
    told += [record.getMessage() + repr(record.args) for record in caplog.records]
    assert caplog.records
    for secret in SECRETS:
        assert not any(secret in text for text in told), [text for text in told if secret in text]
        assert not any(secret.encode() in head for head in it.origin.heads if is_socks or target == "https")
        assert not any(secret.encode() in bytes(inside) for inside in fake.inside)
    if is_socks:
        assert {asked.auth for asked in fake.asked} == {fake.auth}
    else:
        assert all(b"Proxy-Authorization: " + BASIC.encode() in asked.head for asked in fake.asked)
    assert fake.asked


@EVERY_TUNNEL
async def test_a_request_with_credentials_for_a_proxy_does_not_go_past_it_E04(
    world: World, way: str, scene: StartScene
) -> None:
    """They would go to the server."""
    async with scene(world, way) as it:
        with pytest.raises(LocalProtocolError, match="Proxy-Authorization"):
            await it.ask(headers={"Proxy-Authorization": BASIC})
        assert it.proxy.accepted == 0


async def test_headers_for_the_proxy_E04(world: World, scene: StartScene) -> None:
    """They are for CONNECT, or beside those of a forwarded request, where its own count more."""
    headers = {"X-For-Proxy": "yes", "User-Agent": "proxied"}
    async with scene(world, "tunnel", headers=headers) as it:
        await it.ask(headers={"User-Agent": "own"})
        head = it.fake.asked[0].head
        assert b"\r\nX-For-Proxy: yes\r\n" in head
        assert b"\r\nUser-Agent: proxied\r\n" in head
        assert head.startswith(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\n" % it.server.port)
        assert b"\r\nHost: 127.0.0.1:%d\r\n" % it.server.port in head
        assert b"X-For-Proxy" not in it.origin.heads[0]
        assert b"\r\nUser-Agent: own\r\n" in it.origin.heads[0]
    async with scene(world, "forward", scheme="http", headers=headers) as it:
        await it.ask(headers={"User-Agent": "own"})
        head = it.fake.asked[0].head
        assert b"\r\nX-For-Proxy: yes\r\n" in head
        assert b"\r\nUser-Agent: own\r\n" in head
        assert b"proxied" not in head
        assert head.startswith(b"GET %b/fault HTTP/1.1\r\n" % it.url.encode())


# --- who shares a connection -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [*TUNNELS, "forward"])
async def test_other_credentials_have_other_connections_E05(
    world: World, way: str, scene: StartScene, certificates: Certificates
) -> None:
    """The same proxy, the same server; and a `Proxy` that is changed later changes no pool."""
    fake = FakeProxy(auth=(b"first", b"1") if way == "SOCKS" else None)
    scheme = "http" if way == "forward" else "https"
    async with scene(world, way, fake=fake, scheme=scheme, auth=("first", "1")) as it:
        assert (await it.ask()).content == b"/fault"
        if way == "SOCKS":
            fake.auth = (b"second", b"2")
        other = Proxy(it.given.url, auth=("second", "2"), ssl_context=it.given.ssl_context)
        async with world.pool(proxy=other, ssl_context=certificates.client) as pool:
            assert (await pool.request("GET", f"{it.url}/other")).content == b"/other"
        assert it.proxy.accepted == 2
        if way == "SOCKS":
            fake.auth = (b"first", b"1")
        it.given.auth = (b"third", b"3")
        it.given.headers[:] = [(b"X-Late", b"yes")]
        assert (await it.ask("/again", headers={"Connection": "close"})).content == b"/again"
        assert (await it.ask("/new")).content == b"/new"
        assert it.proxy.accepted == 3
        told = [asked.auth or basic_of(asked.head) for asked in fake.asked]
        first, second = (b"first", b"1"), (b"second", b"2")
        assert told == ([first, second, first, first] if way == "forward" else [first, second, first])


def basic_of(head: bytes) -> tuple[bytes, bytes]:
    """The credentials in the head of a request."""
    (value,) = re.findall(rb"\r\nProxy-Authorization: Basic (\S+)\r\n", head)
    user, _, password = base64.b64decode(value).partition(b":")
    return user, password


async def test_what_shares_a_connection_through_a_proxy_C03(
    world: World, scene: StartScene, fault_server: StartServer, certificates: Certificates
) -> None:
    """Forwarded requests to all servers do. A tunnel is for one server, one scheme, and one name in TLS."""
    second = fault_server(Origin())
    async with scene(world, "tunnel", scheme="http") as it:
        for url in (it.url, f"http://127.0.0.1:{second.port}", it.url):
            assert (await it.pool.request("GET", f"{url}/shared")).content == b"/shared"
        assert it.proxy.accepted == 1
    second = fault_server(Origin(), context=certificates.server)
    async with scene(world, "tunnel") as it:
        urls = (it.url, it.url.replace("127.0.0.1", "localhost"), f"https://127.0.0.1:{second.port}")
        for accepted, url in enumerate(urls, 1):
            for _ in range(2):
                assert (await it.pool.request("GET", f"{url}/own")).content == b"/own"
            assert it.proxy.accepted == accepted
        await it.ask(extensions={"sni_hostname": "localhost"})
        assert it.proxy.accepted == 4
        assert it.pool.stats().connections == 4


async def test_the_same_place_by_tunnel_and_by_forwarding_C03(
    world: World, scene: StartScene, fault_server: StartServer
) -> None:
    """What was opened for `https` is not used for `http` at the same port, nor the other way round."""

    def either(sock: socket.socket) -> None:
        sock.recv(1, socket.MSG_PEEK)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        wait_for_the_end(sock)

    server = fault_server(either)
    async with scene(world, "tunnel") as it:
        url = f"127.0.0.1:{server.port}/"
        with pytest.raises(ConnectError):
            await it.pool.request("GET", f"https://{url}")
        assert (await it.pool.request("GET", f"http://{url}")).content == b"ok"
        with pytest.raises(ConnectError):
            await it.pool.request("GET", f"https://{url}")
        assert it.proxy.accepted == 3


# --- what comes behind the answer --------------------------------------------------------------------------

LEADING = {
    "a byte": b"x",
    "a response": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil",
    "TLS": b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03",
    "an alert": b"\x15\x03\x03\x00\x02\x01\x00",
}


@EVERY_TUNNEL
@pytest.mark.parametrize("what", LEADING)
async def test_bytes_before_the_handshake_are_not_taken_for_content_C09(
    world: World, way: str, what: str, scene: StartScene
) -> None:
    """They came with the proxy's answer, and may be its own."""
    fake = FakeProxy(granted=(SOCKS_GRANTED if way == "SOCKS" else GRANTED) + LEADING[what])
    async with scene(world, way, fake=fake) as it:
        error = await it.fails(ConnectError)
        assert error.phase == "tls"
        assert not it.origin.heads
        assert [bytes(sent) for sent in fake.inside] == [b""], "something was sent all the same"
        fake.granted = None


async def test_a_proxy_that_chooses_a_protocol_that_is_not_spoken_with_it_C04(
    world: World, fault_server: StartServer, certificates: Certificates
) -> None:
    """The context offers it, and so the two agree on it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.set_alpn_protocols(["h2"])
    offering = ssl.create_default_context(cafile=str(certificates.authority))
    offering.set_alpn_protocols(["h2", "http/1.1"])
    fake = FakeProxy()
    proxy = fault_server(fake, context=context)
    given = Proxy(f"https://127.0.0.1:{proxy.port}", ssl_context=offering)
    async with world.pool(proxy=given, ssl_context=certificates.client) as pool:
        for url in ("http://127.0.0.1:9/", "https://127.0.0.1:9/"):
            with pytest.raises(ProxyError, match="'h2'"):
                await pool.request("GET", url)
            assert pool.stats() == EMPTY
    assert not fake.asked


@EVERY_TUNNEL
async def test_the_first_bytes_of_the_server_are_not_lost_E10(
    world: World, way: str, scene: StartScene
) -> None:
    """A half of what it sends first comes together with the proxy's answer, and the rest after it."""

    server = H2Server(lambda peer: peer.serve(), settings={3: 7, 4: 70_000})
    try:
        fake = FakeProxy(is_greedy=True)
        options = {"http1": False, "http2": True}
        async with scene(world, way, scheme="http", server=server, fake=fake, **options) as it:
            for number in range(3):
                got = await it.ask(f"/echo/{number}")
                assert (got.content, got.extensions["http_version"]) == (b"/echo/%d" % number, b"HTTP/2")
            assert it.proxy.accepted == 1
            fake.is_greedy = False
    finally:
        server.stop()


# --- tunnels that end --------------------------------------------------------------------------------------


@EVERY_TUNNEL
async def test_a_tunnel_that_ends_while_idle_E11(world: World, way: str, scene: StartScene) -> None:
    async with scene(world, way) as it:
        for accepted in range(1, 4):
            assert (await it.ask(method="POST")).content == b"/fault"
            assert it.proxy.accepted == accepted
            it.fake.cut()
            await world.until(lambda: it.proxy.live == 0)


@EVERY_TUNNEL
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_tunnel_that_ends_before_the_answer_E11(
    world: World,
    way: str,
    method: str,
    scene: StartScene,
    fault_server: StartServer,
    certificates: Certificates,
) -> None:
    """On a connection that was used before: what may be done twice is sent again, through another tunnel."""
    cuts = threading.Semaphore(1)

    def answer(sock: socket.socket) -> None:
        while True:
            path = read_head(sock).split(b" ", 2)[1]
            if path == b"/fault" and cuts.acquire(blocking=False):
                fake.cut()
                wait_for_the_end(sock)
                return
            sock.sendall(response(path))

    fake = FakeProxy()
    server = fault_server(answer, context=certificates.server)
    async with scene(world, way, fake=fake, server=server) as it:
        assert (await it.ask("/first")).content == b"/first"
        if method == "GET":
            assert (await it.ask()).content == b"/fault"
            assert it.proxy.accepted == 2
        else:
            with pytest.raises((RemoteProtocolError, ReadError)):
                await it.ask(method="POST")
            assert it.proxy.accepted == 1


@EVERY_TUNNEL
async def test_a_tunnel_that_ends_in_a_body_E11(
    world: World, way: str, scene: StartScene, fault_server: StartServer, certificates: Certificates
) -> None:
    def answer(sock: socket.socket) -> None:
        while True:
            path = read_head(sock).split(b" ", 2)[1]
            if path == b"/fault":
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")
                wait_for_the_end(sock)
                return
            sock.sendall(response(path))

    fake = FakeProxy()
    server = fault_server(answer, context=certificates.server)
    async with scene(world, way, fake=fake, server=server) as it:
        data = b""
        with pytest.raises((RemoteProtocolError, ReadError)):
            async with it.pool.stream("GET", f"{it.url}/fault") as got:
                async for piece in got.aiter_stream():
                    data += piece
                    fake.cut()
        assert data == b"12345"
        assert it.pool.stats() == EMPTY


# --- every place where it can hang -------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a connection in the making can hang.

    Attributes:
        way: to the server.
        fault: makes it hang there.
        phase: of the error.
        auth: whether credentials are given.
        is_before_tls: the fault comes before TLS with the proxy.
        http2: whether that is spoken too: then the connection is made in a task of its own.
    """

    way: str
    fault: Script
    phase: str = "proxy"
    auth: bool = False
    is_before_tls: bool = False
    http2: bool = False


def hangs(*steps: Script) -> Script:
    def fault(sock: socket.socket) -> None:
        for step in steps:
            step(sock)
        wait_for_the_end(sock)

    return fault


def says(data: bytes) -> Script:
    return lambda sock: sock.sendall(data)


def hears(count: int) -> Script:
    return lambda sock: receive(sock, count)


def hears_methods(sock: socket.socket) -> None:
    receive(sock, receive(sock, 2)[1])


PLACES = {
    "TLS with the proxy": Place("tunnel in TLS", hangs(hears(1)), "tls", is_before_tls=True),
    "CONNECT": Place("tunnel", hangs(read_head)),
    "CONNECT in TLS": Place("tunnel in TLS", hangs(read_head)),
    "the answer to CONNECT": Place("tunnel", hangs(read_head, says(GRANTED[:20]))),
    "TLS in the tunnel": Place("tunnel", hangs(read_head, says(GRANTED), hears(1)), "tls"),
    "TLS in TLS": Place("tunnel in TLS", hangs(read_head, says(GRANTED), hears(1)), "tls"),
    "the offer to SOCKS": Place("SOCKS", hangs(hears_methods)),
    "half of SOCKS' choice": Place("SOCKS", hangs(hears_methods, says(b"\x05"))),
    "credentials for SOCKS": Place("SOCKS", hangs(hears_methods, says(b"\x05\x02"), receive_auth), auth=True),
    "the request to SOCKS": Place("SOCKS", hangs(asked_by_socks)),
    "half of SOCKS' reply": Place("SOCKS", hangs(asked_by_socks, says(SOCKS_GRANTED[:6]))),
    "TLS behind SOCKS": Place("SOCKS", hangs(asked_by_socks, says(SOCKS_GRANTED), hears(1)), "tls"),
    "CONNECT for HTTP2": Place("tunnel", hangs(read_head), http2=True),
    "TLS in TLS for HTTP2": Place(
        "tunnel in TLS", hangs(read_head, says(GRANTED), hears(1)), "tls", http2=True
    ),
    "the request to SOCKS for HTTP2": Place("SOCKS", hangs(asked_by_socks), http2=True),
}

EVERY_PLACE = pytest.mark.parametrize("place", PLACES)


@asynccontextmanager
async def hanging(
    world: World, name: str, scene: StartScene, **options: Any
) -> AsyncIterator[tuple[Scene, Place]]:
    """A scene in which every connection hangs in this place."""
    place = PLACES[name]
    fake = FakeProxy(auth=(USER.encode(), PASSWORD.encode()) if place.auth else None)
    if place.auth:
        options["auth"] = (USER, PASSWORD)
    options["http2"] = place.http2
    async with scene(
        world, place.way, place.fault, fake=fake, is_before_tls=place.is_before_tls, **options
    ) as it:
        it.faulty.times = 10_000
        yield it, place


@EVERY_PLACE
async def test_silence_ends_with_the_connect_time_out_E09(
    world: World, place: str, scene: StartScene
) -> None:
    async with hanging(world, place, scene) as (it, where):
        await it.fails_in_time(ConnectTimeout, "connect", where.phase)


@EVERY_PLACE
async def test_silence_ends_with_the_deadline_F01(world: World, place: str, scene: StartScene) -> None:
    async with hanging(world, place, scene) as (it, where):
        await it.fails_in_time(DeadlineExceeded, "deadline", where.phase)


@EVERY_TUNNEL
async def test_all_handshakes_share_one_budget_E09(world: World, way: str, scene: StartScene) -> None:
    """Each of them is quick enough for itself."""

    def slow(data: bytes) -> Script:
        def step(sock: socket.socket) -> None:
            threading.Event().wait(0.3)
            sock.sendall(data)

        return step

    if way == "SOCKS":
        fault = hangs(hears_methods, slow(b"\x05\x00"), receive_address)
    else:
        fault = hangs(read_head, slow(GRANTED))
    async with scene(world, way, fault) as it:
        it.faulty.times = 99
        for _ in tries_in_time(0.49, 0.75):
            error = await it.fails(ConnectTimeout, connect=0.5)
            assert error.limit == 0.5


async def hang(it: Scene, jobs: Jobs) -> Job:
    """Start a request, and wait until its connection hangs."""
    met = it.faulty.met
    job = jobs.start(it.ask)
    await it.world.until(lambda: it.faulty.met > met and it.proxy.live == 1)
    for _ in range(20):
        if it.world.is_async:
            await anyio.lowlevel.checkpoint()
    return job


@EVERY_PLACE
async def test_a_cancelled_handshake_leaves_nothing_C08_G01(
    async_world: World, place: str, scene: StartScene
) -> None:
    """Neither at once, nor a little later and further on; ten times."""
    async with hanging(async_world, place, scene, max_connections=1) as (it, _):
        for number in range(10):
            async with async_world.jobs() as jobs:
                job = await hang(it, jobs)
                if number % 2:
                    await async_world.pause(0.02)
                assert not job.is_done, await job.outcome(async_world)
                job.cancel()
                outcome = await job.outcome(async_world)
                assert isinstance(outcome, Cancelled), outcome
                await it.is_free()


@EVERY_PLACE
async def test_closing_the_pool_ends_every_handshake_I02(
    world: World, place: str, scene: StartScene, certificates: Certificates
) -> None:
    async with hanging(world, place, scene) as (it, where), world.jobs() as jobs:
        options: dict[str, Any] = {"ssl_context": certificates.client, "http2": where.http2}
        pool, it.pool = it.pool, world.pool(proxy=it.given, **options)
        job = await hang(it, jobs)
        await world.pause(0.02)
        await it.pool.aclose()
        outcome = await job.outcome(world)
        assert isinstance(outcome, PoolClosed), outcome
        await it.is_free()
        it.pool = pool


@EVERY_TUNNEL
async def test_a_cancellation_at_every_turn_leaves_the_pool_whole_G01(
    async_world: World, way: str, scene: StartScene
) -> None:
    """After N turns of the loop, for N = 0, 1, 2, …, until three requests were through before."""
    world = async_world
    auth = (USER, PASSWORD) if way == "SOCKS" else None
    fake = FakeProxy(auth=(USER.encode(), PASSWORD.encode()) if auth else None)
    through = turns = 0
    async with scene(world, way, fake=fake, auth=auth, max_connections=1) as it, world.jobs() as jobs:
        while through < 3:
            job = jobs.start(it.ask, f"/{turns}", "GET")
            for _ in range(turns):
                if job.is_done:
                    break
                await anyio.lowlevel.checkpoint()
            through += job.is_done
            job.cancel()
            outcome = await job.outcome(world)
            assert isinstance(outcome, Cancelled) or outcome.content == b"/%d" % turns, outcome
            stats = it.pool.stats()
            assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0), turns
            await close_idle(it)
            turns += 1 if turns < 60 else turns // 3  # then it waits for the others, which takes its time


async def close_idle(it: Scene) -> None:
    """So that the next request has to connect anew."""
    if it.pool.stats().idle:
        assert (await it.ask("/last", headers={"Connection": "close"})).content == b"/last"
    assert it.pool.stats() == EMPTY


# --- what the caller does wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {"X": "a\r\nY: b"},
        {"X": "a\nb"},
        {"X": "a\0b"},
        {"X\r\nY": "b"},
        {"X ": "b"},
        {"": "b"},
        {"Content-Length": "5"},
        {"Transfer-Encoding": "chunked"},
    ],
    ids=repr,
)
async def test_headers_for_the_proxy_that_cannot_be_sent_J03(headers: dict[str, str], world: World) -> None:
    with pytest.raises(LocalProtocolError):
        world.pool(proxy=Proxy("http://127.0.0.1:8080", headers=headers))


@EVERY_TUNNEL
@pytest.mark.parametrize("name", ["a\r\nb", "a b", "a\0b"])
async def test_a_server_name_that_cannot_be_one_J03(
    world: World, way: str, name: str, scene: StartScene
) -> None:
    async with scene(world, way) as it:
        with pytest.raises(LocalProtocolError):
            await it.ask(extensions={"sni_hostname": name})
        assert it.proxy.accepted == 0


async def test_credentials_with_line_ends_stay_in_their_field_J03(world: World, scene: StartScene) -> None:
    """Base64 and lengths see to that."""
    auth = (b"us\r\ner", b"a\r\nX-Evil: yes")
    async with scene(world, "tunnel", auth=auth) as it:
        await it.ask()
        assert b"Evil" not in it.fake.asked[0].head
        assert basic_of(it.fake.asked[0].head) == auth
    async with scene(world, "SOCKS", auth=auth, fake=FakeProxy(auth=auth)) as it:
        await it.ask()
        assert it.fake.asked[0].auth == auth
