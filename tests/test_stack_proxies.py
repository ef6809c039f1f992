"""The pools over the real backends, through real proxies, to real servers; and what each option does on each way.

The ways are: *forward*, a request for `http://` that an HTTP proxy makes for us; *tunnel*, by CONNECT, to TLS or to
HTTP/2 without it; both of them through a proxy that is itself reached by TLS; and SOCKS5, which is always a tunnel.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import ssl
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import trustme

from lamina_interfaces import ConnectError, ProxyError, ResolvedAddress, Resolver
from lamina_pool import PoolStats, Proxy
from stack_faults import Table
from stack_helpers import read_head
from stack_proxies import BASIC, GRANTED, PASSWORD, USER, FakeProxy, Origin, noting_context
from stack_servers import HELLO
from stack_worlds import BlockingStream, at_once

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamina_pool import AsyncConnectionPool
    from stack_helpers import Certificates, FaultServer
    from stack_proxies import Asked, RunningProxy
    from stack_servers import Server, Servers
    from stack_worlds import World

    StartServer = Callable[..., FaultServer]

pytestmark = pytest.mark.usefixtures("no_socket_left")

EMPTY = PoolStats(0, 0, 0, 0, 0, 0)

MUCH = 3_000_000
"""Bytes of a body that takes more than one turn of every buffer on its way."""


# --- real proxies ------------------------------------------------------------------------------------------

HTTP_PROXIES = ("tinyproxy", "tinyproxy_auth", "haproxy_http", "haproxy_https", "stunnel")
SOCKS_PROXIES = ("microsocks", "microsocks_auth", "danted")

ORIGINS = {
    "http": ("nginx", "http"),
    "https": ("nginx", "https"),
    "HTTP/2 of nginx": ("nginx", "h2"),
    "HTTP/2 without TLS": ("hypercorn", "h2c"),
    "HTTP/2 of hypercorn": ("hypercorn", "h2"),
    "HTTP/2 of nghttpd": ("nghttpd", "h2"),
}
"""Where requests go, and what is spoken there."""


@dataclass(frozen=True)
class Route:
    """A proxy, a server behind it, and how a pool is to speak to both.

    Attributes:
        proxy: between the two.
        server: its name.
        url: of the server, without a path.
        is_forwarded: whether the proxy makes the requests itself.
        version: of HTTP, as responses tell it.
        options: for the pool.
    """

    proxy: RunningProxy
    server: str
    url: str
    is_forwarded: bool
    version: bytes
    options: dict[str, Any]


ROUTES = [
    *((proxy, origin) for proxy in HTTP_PROXIES + SOCKS_PROXIES for origin in list(ORIGINS)[:4]),
    *((proxy, origin) for proxy in ("stunnel", "microsocks") for origin in list(ORIGINS)[4:]),
]

MOST_USED = [route for route in ROUTES if "auth" not in route[0] and route[1] in list(ORIGINS)[:3]]


@pytest.fixture(params=ROUTES, ids=" to ".join)
def route(request: pytest.FixtureRequest, certificates: Certificates, http2_context: ssl.SSLContext) -> Route:
    proxy_name, origin = request.param
    proxy: RunningProxy = request.getfixturevalue(proxy_name)
    name, spoken = ORIGINS[origin]
    server: Server = request.getfixturevalue(name)
    options: dict[str, Any] = {"proxy": proxy.proxy(certificates)}
    version = b"HTTP/2" if spoken in ("h2", "h2c") else b"HTTP/1.1"
    is_forwarded = spoken == "http" and proxy_name in HTTP_PROXIES
    match spoken:
        case "https":
            options |= {"ssl_context": certificates.client}
        case "h2":
            options |= {"ssl_context": http2_context, "http2": True}
        case "h2c":
            options |= {"http1": False, "http2": True}
    url = {"http": server.http, "h2c": server.h2c}.get(spoken, server.https)
    return Route(proxy, name, url, is_forwarded, version, options)


@pytest.fixture(scope="session")
def digest(servers: Servers) -> str:
    """Of the file `much`, which all servers have."""
    content = os.urandom(MUCH)
    (servers.root / "much").write_bytes(content)
    return hashlib.sha256(content).hexdigest()


async def test_requests_and_their_responses(world: World, route: Route) -> None:
    # Tinyproxy ends a connection on which it has forwarded a request, and does not say so before.
    is_lasting = not (route.is_forwarded and route.proxy.name in ("tinyproxy", "stunnel"))
    async with world.pool(**route.options) as pool:
        for _ in range(3):
            got = await pool.request("GET", f"{route.url}/hello")
            assert (got.status, got.content) == (200, HELLO)
            assert got.extensions["http_version"] == route.version
            assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0) or not is_lasting
        assert (await pool.request("HEAD", f"{route.url}/hello")).content == b""
        assert (await pool.request("GET", f"{route.url}/missing")).status == 404
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0) or not is_lasting
    assert pool.stats() == EMPTY


@pytest.mark.parametrize("route", MOST_USED, indirect=True, ids=" to ".join)
async def test_much_goes_both_ways_C10(world: World, route: Route, digest: str) -> None:
    async with world.pool(**route.options) as pool:
        # Over HTTP/2 these proxies make a pause of 40 ms in each window (Nagle's algorithm): a few of them will do.
        size = MUCH if route.version == b"HTTP/1.1" else 300_000
        path = "hello" if route.server == "nghttpd" else "upload"  # which sends back what it was given
        got = await pool.request("POST", f"{route.url}/{path}", content=bytes(size))
        assert got.content == (bytes(size) if route.server == "nghttpd" else b"took %d" % size)
        found = hashlib.sha256()
        async with pool.stream("GET", f"{route.url}/much") as response:
            async for piece in response.aiter_stream():
                found.update(piece)
        assert found.hexdigest() == digest


@pytest.mark.parametrize("route", MOST_USED, indirect=True, ids=" to ".join)
async def test_a_response_that_is_not_wanted_leaves_nothing(world: World, route: Route, digest: str) -> None:
    async with world.pool(**route.options, max_connections=1) as pool:
        for _ in range(3):
            async with pool.stream("GET", f"{route.url}/much") as response:
                async for _piece in response.aiter_stream():
                    break
            assert (await pool.request("GET", f"{route.url}/hello")).content == HELLO


@pytest.mark.parametrize("route", MOST_USED, indirect=True, ids=" to ".join)
async def test_many_at_once(world: World, route: Route) -> None:
    async with world.pool(**route.options, max_connections=4) as pool:

        async def work(number: int) -> None:
            for _ in range(3):
                assert (await pool.request("GET", f"{route.url}/hello?{number}")).content == HELLO
                assert pool.stats().connections <= 4

        await at_once(world, 12, work)


# --- what real proxies refuse ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tinyproxy_auth", "haproxy_http", "haproxy_https"])
@pytest.mark.parametrize("auth", [None, (USER, "wrong")], ids=["none", "wrong"])
async def test_an_http_proxy_that_refuses_the_credentials_E01(
    world: World,
    name: str,
    auth: tuple[str, str] | None,
    request: pytest.FixtureRequest,
    certificates: Certificates,
    nginx: Server,
) -> None:
    """In answer to CONNECT that is an error. A forwarded request has a response, which says so."""
    proxy: RunningProxy = request.getfixturevalue(name)
    given = proxy.proxy(certificates, auth=auth)
    if (name, auth) == ("tinyproxy_auth", (USER, "wrong")):
        status, names = 401, set()  # so it says
    else:
        status, names = 407, {b"proxy-authenticate"}
    async with world.pool(proxy=given, ssl_context=certificates.client) as pool:
        with pytest.raises(ProxyError) as caught:
            await pool.request("GET", f"{nginx.https}/hello")
        error = caught.value
        assert (error.status, error.phase, error.origin) == (status, "proxy", nginx.https)
        assert {field.lower() for field, _ in error.headers} >= names
        assert pool.stats() == EMPTY
        got = await pool.request("GET", f"{nginx.http}/hello")
        assert got.status == status
        assert {field.lower() for field, _ in got.headers} >= names


@pytest.mark.parametrize("auth", [None, (USER, "wrong"), ("wrong", PASSWORD)], ids=["none", "wrong", "user"])
async def test_a_socks_proxy_that_refuses_the_credentials_E07(
    world: World,
    auth: tuple[str, str] | None,
    microsocks_auth: RunningProxy,
    certificates: Certificates,
    nginx: Server,
) -> None:
    async with world.pool(proxy=microsocks_auth.proxy(certificates, auth=auth)) as pool:
        with pytest.raises(ProxyError, match=r"credentials|authenticate") as caught:
            await pool.request("GET", f"{nginx.http}/hello")
        assert (caught.value.status, caught.value.phase) == (None, "proxy")
        assert pool.stats() == EMPTY


@pytest.mark.parametrize("name", HTTP_PROXIES + SOCKS_PROXIES)
async def test_a_server_that_a_proxy_cannot_reach(
    world: World,
    name: str,
    request: pytest.FixtureRequest,
    certificates: Certificates,
    refusing_port: int,
    nginx: Server,
) -> None:
    proxy: RunningProxy = request.getfixturevalue(name)
    async with world.pool(proxy=proxy.proxy(certificates), ssl_context=certificates.client) as pool:
        with pytest.raises(ProxyError) as caught:
            await pool.request("GET", f"https://127.0.0.1:{refusing_port}/")
        assert caught.value.phase == "proxy"
        if name in HTTP_PROXIES:
            assert (caught.value.status or 0) >= 500
            got = await pool.request("GET", f"http://127.0.0.1:{refusing_port}/")
            assert got.status >= 500
        else:
            assert "refused" in str(caught.value)
        assert pool.stats().active == 0
        assert (await pool.request("GET", f"{nginx.https}/hello")).content == HELLO


async def test_a_server_that_a_proxy_may_not_reach_E07(
    world: World, danted: RunningProxy, certificates: Certificates
) -> None:
    async with world.pool(proxy=danted.proxy(certificates)) as pool:
        with pytest.raises(ProxyError, match="not allowed"):
            await pool.request("GET", "http://192.0.2.1/")  # which belongs to nobody (RFC 5737)


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("name", ["tinyproxy", "stunnel", *SOCKS_PROXIES])
async def test_the_proxy_looks_up_the_name_E12(
    world: World,
    name: str,
    scheme: str,
    request: pytest.FixtureRequest,
    certificates: Certificates,
    nginx: Server,
) -> None:
    """Nobody is asked for it here."""
    proxy: RunningProxy = request.getfixturevalue(name)
    given = proxy.proxy(certificates, "socks5h" if name in SOCKS_PROXIES else None)
    port = (nginx.http if scheme == "http" else nginx.https).rpartition(":")[2]
    resolver = Table(AssertionError("it was asked for a name"))
    async with world.pool(proxy=given, resolver=resolver, ssl_context=certificates.client) as pool:
        assert (await pool.request("GET", f"{scheme}://localhost:{port}/hello")).content == HELLO


@pytest.mark.parametrize("name", SOCKS_PROXIES)
async def test_the_name_is_looked_up_here_for_socks5(
    world: World, name: str, request: pytest.FixtureRequest, certificates: Certificates, nginx: Server
) -> None:
    """The proxy knows no such name. The second address is tried where it has refused the first."""
    proxy: RunningProxy = request.getfixturevalue(name)
    addresses = [ResolvedAddress(socket.AF_INET, (host, 0)) for host in ("127.0.0.9", "127.0.0.1")]
    port = nginx.http.rpartition(":")[2]
    async with world.pool(proxy=proxy.proxy(certificates), resolver=Table(addresses)) as pool:
        assert (await pool.request("GET", f"http://only.here.example:{port}/hello")).content == HELLO


# --- every option on every way -----------------------------------------------------------------------------

SERVER, PROXY = "server.example", "proxy.example"
"""Names that nobody knows but `Names`."""

WAYS = {
    "direct": ("", "http"),
    "direct to TLS": ("", "https"),
    "forward": ("http", "http"),
    "forward in TLS": ("https", "http"),
    "tunnel": ("http", "https"),
    "tunnel in TLS": ("https", "https"),
    "SOCKS": ("socks5", "http"),
    "SOCKS to TLS": ("socks5", "https"),
    "SOCKS by name": ("socks5h", "http"),
}
"""The schemes of the proxy and of the server."""


class Names(Resolver):
    """Every name is on 127.0.0.1, at the ports that are given: the next one at each look-up, the last one for ever.

    Attributes:
        asked: which names were looked up.
    """

    def __init__(self, *ports: int) -> None:
        self._ports = list(ports)
        self.asked: list[str] = []

    def resolve(self, host: str, port: int, family: int) -> list[ResolvedAddress]:
        if family == socket.AF_INET6:
            return []
        self.asked.append(host)
        port = self._ports.pop(0) if len(self._ports) > 1 else self._ports[0]
        return [ResolvedAddress(socket.AF_INET, ("127.0.0.1", port))]


@dataclass
class Way:
    """A server, and a proxy before it unless it is reached directly.

    Attributes:
        first: whom the pool connects to: the proxy, or the server.
        url: of the server, without a path.
        options: for the pool: the proxy, and whom to trust.
        looked_up: the names that are to be looked up for one connection.
        is_tls: whether TLS is spoken with the server.
        is_tls_to_proxy: whether it is spoken with the proxy.
        clients: the addresses that the first one was connected to from.
        segments: the bytes that a packet to those clients may have, at most.
        server_names, proxy_names: what the two were called in TLS (SNI).
        asked: what the proxy was asked for.
    """

    first: FaultServer
    url: str
    options: dict[str, Any]
    looked_up: list[str]
    is_tls: bool
    is_tls_to_proxy: bool
    clients: list[Any]
    segments: list[int]
    server_names: list[str | None]
    proxy_names: list[str | None]
    asked: list[Asked]


class Authorities(NamedTuple):
    """Whom the server and the proxy have their certificates from."""

    server: trustme.CA
    proxy: trustme.CA

    def trusting(self, ca: trustme.CA) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca.configure_trust(context)
        return context


@pytest.fixture(scope="session")
def authorities() -> Authorities:
    return Authorities(trustme.CA(), trustme.CA())


@pytest.fixture(params=WAYS)
def way(
    request: pytest.FixtureRequest, fault_server: StartServer, authorities: Authorities
) -> Callable[..., Way]:
    """Call it to have its servers started, the first one on a unix socket if it is given a path for one."""
    proxy_scheme, scheme = WAYS[request.param]

    def start(path: str | None = None) -> Way:
        clients: list[Any] = []
        segments: list[int] = []
        server_names: list[str | None] = []
        proxy_names: list[str | None] = []

        def first(behave: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
            def note(sock: socket.socket) -> None:
                clients.append(sock.getpeername())
                if sock.family == socket.AF_INET:
                    segments.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG))
                behave(sock)

            return note

        def context(ca: trustme.CA, names: list[str | None], *hosts: str) -> ssl.SSLContext:
            made = noting_context(names)
            ca.issue_cert(*hosts).configure_cert(made)
            return made

        options: dict[str, Any] = {}
        server_context = None
        if scheme == "https":
            server_context = context(authorities.server, server_names, SERVER, "other.example")
            options["ssl_context"] = authorities.trusting(authorities.server)
        origin, fake = Origin(), FakeProxy(is_socks=proxy_scheme.startswith("socks"))
        if not proxy_scheme:
            server = fault_server(first(origin), context=server_context, path=path)
            url = f"{scheme}://{SERVER}:{server.port or 80}"
            return Way(
                server, url, options, [SERVER], scheme == "https", False,
                clients, segments, server_names, proxy_names, [],
            )  # fmt: skip
        server = fault_server(origin, context=server_context)
        proxy_context = None
        trusted = None
        if proxy_scheme == "https":
            proxy_context = context(authorities.proxy, proxy_names, PROXY)
            trusted = authorities.trusting(authorities.proxy)
        proxy = fault_server(first(fake), context=proxy_context, path=path)
        options["proxy"] = Proxy(f"{proxy_scheme}://{PROXY}:{proxy.port or 80}", ssl_context=trusted)
        looked_up = [SERVER, PROXY] if proxy_scheme == "socks5" else [PROXY]
        url = f"{scheme}://{SERVER}:{server.port}"
        return Way(
            proxy, url, options, looked_up, scheme == "https", proxy_scheme == "https",
            clients, segments, server_names, proxy_names, fake.asked,
        )  # fmt: skip

    return start


async def answers(pool: AsyncConnectionPool, way: Way, **extensions: Any) -> None:
    got = await pool.request("GET", f"{way.url}/found?it", extensions=extensions)
    assert got.content == b"/found?it"


async def test_the_resolver_and_who_looks_up_what_E12(world: World, way: Callable[..., Way]) -> None:
    """A proxy looks up the server's name itself; but for SOCKS5 without the h it is done here."""
    it = way()
    names = Names(it.first.port)
    async with world.pool(resolver=names, **it.options) as pool:
        await answers(pool, it)
        await answers(pool, it)
    assert names.asked == it.looked_up


async def test_local_address(world: World, way: Callable[..., Way]) -> None:
    it = way()
    async with world.pool(resolver=Names(it.first.port), local_address="127.0.0.2", **it.options) as pool:
        await answers(pool, it)
    assert [client[0] for client in it.clients] == ["127.0.0.2"]


async def test_uds(world: World, way: Callable[..., Way], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = f"{tmp_path_factory.mktemp('uds')}/first"
    it = way(path)
    names = Names(0)
    async with world.pool(resolver=names, uds=path, **it.options) as pool:
        await answers(pool, it)
    assert len(it.clients) == 1
    assert names.asked == it.looked_up[:-1], "what is behind the socket was looked up all the same"


async def test_retries(world: World, way: Callable[..., Way], refusing_port: int) -> None:
    it = way()
    ports = [*[refusing_port] * len(it.looked_up), it.first.port]
    names = Names(*ports)
    async with world.pool(resolver=names, retries=0, **it.options) as pool:
        with pytest.raises(ConnectError) as caught:
            await answers(pool, it)
        assert caught.value.errno == errno.ECONNREFUSED
    assert names.asked == it.looked_up
    names = Names(*ports)
    async with world.pool(resolver=names, retries=1, **it.options) as pool:
        await answers(pool, it)
    assert names.asked == it.looked_up * 2


async def test_socket_options(world: World, way: Callable[..., Way]) -> None:
    """They are set before the connection is made: this one is told to the other side when it begins."""
    it = way()
    options = [(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 700)]
    async with world.pool(resolver=Names(it.first.port), socket_options=options, **it.options) as pool:
        await answers(pool, it)
    assert len(it.segments) == 1
    assert it.segments[0] <= 700


async def test_a_socket_option_that_is_refused(world: World, way: Callable[..., Way]) -> None:
    it = way()
    options = [(socket.SOL_SOCKET, 9999, 1)]
    async with world.pool(resolver=Names(it.first.port), socket_options=options, **it.options) as pool:
        with pytest.raises(ConnectError) as caught:
            await answers(pool, it)
        assert caught.value.errno == errno.ENOPROTOOPT
        assert pool.stats() == EMPTY


async def test_sni_hostname_is_for_the_server_C03(world: World, way: Callable[..., Way]) -> None:
    """Not for the proxy; and a connection made with it serves nobody who asks for another."""
    it = way()
    async with world.pool(resolver=Names(it.first.port), **it.options) as pool:
        await answers(pool, it, sni_hostname="other.example")
        await answers(pool, it, sni_hostname="other.example")
        await answers(pool, it)
        await answers(pool, it)
        assert len(it.clients) == 2 or not it.is_tls
        with pytest.raises(ConnectError) if it.is_tls else nullcontext():
            await answers(pool, it, sni_hostname="third.example")
    assert it.server_names == (["other.example", SERVER, "third.example"] if it.is_tls else [])
    assert set(it.proxy_names) == ({PROXY} if it.is_tls_to_proxy else set())


async def test_each_side_has_its_own_context_C03(
    world: World, way: Callable[..., Way], authorities: Authorities
) -> None:
    """Whom the one trusts the other does not."""
    it = way()
    async with world.pool(resolver=Names(it.first.port), **it.options) as pool:
        await answers(pool, it)
    if it.is_tls:
        options = {**it.options, "ssl_context": authorities.trusting(authorities.proxy)}
        async with world.pool(resolver=Names(it.first.port), **options) as pool:
            with pytest.raises(ConnectError, match="certificate") as caught:
                await answers(pool, it)
            assert caught.value.phase == "tls"
            assert pool.stats() == EMPTY
    if it.is_tls_to_proxy:
        trusting = authorities.trusting(authorities.server)
        options = {**it.options, "proxy": Proxy(it.options["proxy"].url, ssl_context=trusting)}
        asked = len(it.asked)
        async with world.pool(resolver=Names(it.first.port), **options) as pool:
            with pytest.raises(ConnectError, match="certificate") as caught:
                await answers(pool, it)
            assert caught.value.phase == "tls"
            assert pool.stats() == EMPTY
        assert len(it.asked) == asked, "it was told something all the same"


# --- what is no request and response -----------------------------------------------------------------------


def switch_and_echo(sock: socket.socket) -> None:
    """A server that switches to another protocol when asked, or is a proxy that opens a tunnel to itself."""
    head = read_head(sock)
    if head.startswith(b"CONNECT "):
        sock.sendall(GRANTED + b"first ")
    else:
        sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\nfirst "
        )
    while data := sock.recv(1 << 16):
        sock.sendall(data)


@pytest.mark.parametrize("how", ["an upgrade", "WebSocket", "CONNECT"])
@pytest.mark.parametrize("scheme", ["http", "https", "socks5h"])
async def test_other_protocols_go_through_a_tunnel_I08(
    world: World, scheme: str, how: str, fault_server: StartServer, certificates: Certificates
) -> None:
    """A proxy that forwards would not pass them on. CONNECT opens a tunnel at the end of the tunnel."""
    server = fault_server(switch_and_echo)
    fake = FakeProxy(is_socks=scheme == "socks5h")
    in_tls = scheme == "https"
    proxy = fault_server(fake, context=certificates.server if in_tls else None)
    given = Proxy(f"{scheme}://127.0.0.1:{proxy.port}", ssl_context=certificates.client if in_tls else None)
    place = f"127.0.0.1:{server.port}"
    headers = [("Host", place)]
    method, url, extensions = "GET", f"{'ws' if how == 'WebSocket' else 'http'}://{place}/", {}
    if how == "CONNECT":
        method, extensions = "CONNECT", {"target": b"further.example:443"}
        # It is for the second proxy.
        headers = [("Host", "further.example:443"), ("Proxy-Authorization", BASIC)]
    else:
        headers += [("Connection", "Upgrade"), ("Upgrade", "echo")]
    async with world.pool(proxy=given) as pool:
        async with pool.stream(method, url, headers=headers, extensions=extensions) as got:
            assert got.status == (200 if how == "CONNECT" else 101)
            stream = got.extensions["network_stream"]
            if not world.is_async:
                stream = BlockingStream(stream)
            await stream.write(b"second", timeout=20)
            data = b""
            while len(data) < len(b"first second"):
                data += await stream.read(100, timeout=20)
            assert data == b"first second"
            assert pool.stats().active == 1
        assert pool.stats() == EMPTY
    assert [asked.target for asked in fake.asked] == [place]
    assert fake.is_socks or fake.asked[0].head.startswith(b"CONNECT ")
    assert not any(BASIC.encode() in asked.head for asked in fake.asked)
