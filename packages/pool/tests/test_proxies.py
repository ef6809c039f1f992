"""Requests through proxies: what is written, which way they go, what proxies may answer, and how long it may take.

Scripts are played in every world: by a blocking pool, and by async ones in asyncio and trio (`pool_proxies`).
Group E of the faults, and what proxies have to do with C03, C09, F01, F03 and J03.
"""

from __future__ import annotations

import errno
import itertools
import logging
import pickle
import ssl
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import (
    THREADS,
    ArgumentTypeError,
    ArgumentValueError,
    ConnectError,
    ConnectTimeout,
    DeadlineBlock,
    DeadlineExceeded,
    InvalidURL,
    LaminaError,
    Limit,
    LocalProtocolError,
    PoolClosed,
    ProxyError,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    UnsupportedProtocol,
    WriteError,
    drive,
)
from lamina_pool import AsyncConnectionPool, ConnectionPool, Proxy, Request
from lamina_pool._http11 import MAX_HEAD_BYTES, MAX_INTERIM_BYTES, MAX_INTERIM_RESPONSES
from lamina_pool._proxies import open_socks, open_tunnel, read_proxy, within_proxy
from pool_async_runs import Jobs, loop_options
from pool_async_runs import checked_pool as checked_async_pool
from pool_async_runs import until as async_until
from pool_helpers import (
    EOF,
    HEAD,
    OK,
    RESET,
    Delay,
    Received,
    Script,
    ScriptedBackend,
    VirtualRuntime,
    checked_pool,
    response,
)
from pool_loopback import Worker, until
from pool_proxies import (
    AUTH_OK,
    BASIC,
    CREDENTIALS,
    ESTABLISHED,
    GREETING,
    GREETING_WITH_CREDENTIALS,
    HTTP_PROXY,
    HTTPS_PROXY,
    NO_AUTH,
    PASSWORD,
    REPLY,
    SOCKS_PROXY,
    TUNNEL,
    USER,
    USER_AUTH,
    WORLDS,
    Ask,
    Chosen,
    PlayedBackend,
    Resolver,
    ResolvingBackend,
    connect_to,
    layers,
    play,
    socks,
)

AUTH = (USER, PASSWORD)
SOCKS5_PROXY = "socks5://proxy.test:1080"
BRIEF = {"timeout": {"connect": 5.0}}


def client_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


# --- settings ----------------------------------------------------------------------------------------------

REFUSED: list[tuple[Any, type[LaminaError], str]] = [
    (HTTP_PROXY, ArgumentTypeError, "must be a Proxy, not str"),
    (Proxy("ftp://proxy.test"), UnsupportedProtocol, "'ftp'"),
    (Proxy("socks4://proxy.test:1080"), UnsupportedProtocol, "'socks4'"),
    (Proxy("//proxy.test"), UnsupportedProtocol, "''"),
    (
        Proxy(HTTP_PROXY, ssl_context=client_context()),
        ArgumentValueError,
        "ssl_context is for the scheme https",
    ),
    (
        Proxy(SOCKS_PROXY, ssl_context=client_context()),
        ArgumentValueError,
        "ssl_context is for the scheme https",
    ),
    (Proxy(SOCKS_PROXY, headers=[("X-Tag", "1")]), ArgumentValueError, "takes no headers"),
    (Proxy(SOCKS_PROXY, auth=AUTH, headers=[("X-Tag", "1")]), ArgumentValueError, "takes no headers"),
    (Proxy(SOCKS_PROXY, auth=("", "p")), LocalProtocolError, "the user name .* 1 to 255 bytes, not 0"),
    (Proxy(SOCKS_PROXY, auth=("u", "")), LocalProtocolError, "the password .* 1 to 255 bytes, not 0"),
    (Proxy(SOCKS_PROXY, auth=("u" * 256, "p")), LocalProtocolError, "the user name .* not 256"),
    (Proxy(SOCKS_PROXY, auth=("u", "p" * 256)), LocalProtocolError, "the password .* not 256"),
]


@pytest.mark.parametrize("pool", [ConnectionPool, AsyncConnectionPool])
@pytest.mark.parametrize(("proxy", "error", "text"), REFUSED)
def test_refuses_a_proxy_that_it_cannot_use_E08(
    pool: Any, proxy: Any, error: type[LaminaError], text: str
) -> None:
    with pytest.raises(error, match=text) as caught:
        pool(proxy=proxy)
    assert PASSWORD not in str(caught.value)


def test_refuses_a_proxy_without_a_host() -> None:
    from lamina_pool import URL

    with pytest.raises(InvalidURL, match="names no host"):
        ConnectionPool(proxy=Proxy(URL(scheme="http", host="", port=80)))


@pytest.mark.parametrize(
    "header",
    [
        ("X\r\nY", "1"),
        ("X", "1\r\nProxy-Authorization: x"),
        ("X", "a\0b"),
        ("Content-Length", "3"),
        ("Transfer-Encoding", "chunked"),
        ("upgrade", "h2c"),
        ("Host", "a b"),
    ],
)
def test_refuses_headers_that_would_be_more_than_one_J03(header: tuple[str, str]) -> None:
    """Or would ask for something else than a tunnel, or than what a forwarded request asks for."""
    with pytest.raises(LocalProtocolError):
        Proxy(HTTP_PROXY, headers=[header])


def test_refuses_two_hosts_J03() -> None:
    with pytest.raises(LocalProtocolError, match="more than one Host"):
        Proxy(HTTP_PROXY, headers=[("Host", "a.test"), ("host", "b.test")])


def test_headers_that_were_changed_later_are_refused_before_connecting_J03() -> None:
    proxy = Proxy(HTTP_PROXY)
    proxy.headers.append((b"X", b"1\r\nY: 2"))
    with pytest.raises(LocalProtocolError, match="illegal value"):
        ConnectionPool(proxy=proxy)


def test_socks_without_socksio_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    ConnectionPool(proxy=Proxy(HTTP_PROXY)).close()
    with pytest.raises(UnsupportedProtocol, match=r"pip install 'lamina-pool\[socks\]'"):
        ConnectionPool(proxy=Proxy(SOCKS_PROXY))


# --- forward: what is written ------------------------------------------------------------------------------

FORWARDED: dict[str, tuple[dict[str, Any], Ask, bytes]] = {
    "plain": (
        {},
        Ask("http://a.test/p?q=1"),
        b"GET http://a.test/p?q=1 HTTP/1.1\r\nHost: a.test\r\n\r\n",
    ),
    "no path": ({}, Ask("http://a.test"), b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n"),
    "default port": ({}, Ask("http://a.test:80/"), b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n"),
    "other port": (
        {},
        Ask("http://A.test:8080/"),
        b"GET http://a.test:8080/ HTTP/1.1\r\nHost: a.test:8080\r\n\r\n",
    ),
    "port of another scheme": (
        {},
        Ask("http://a.test:443/"),
        b"GET http://a.test:443/ HTTP/1.1\r\nHost: a.test:443\r\n\r\n",
    ),
    "IPv6": ({}, Ask("http://[::1]:81/x"), b"GET http://[::1]:81/x HTTP/1.1\r\nHost: [::1]:81\r\n\r\n"),
    "IPv6 with a zone": (
        {},
        Ask("http://[fe80::1%25eth0]/x"),
        b"GET http://[fe80::1]/x HTTP/1.1\r\nHost: [fe80::1]\r\n\r\n",
    ),
    "international": (
        {},
        Ask("http://bücher.test/"),
        b"GET http://xn--bcher-kva.test/ HTTP/1.1\r\nHost: xn--bcher-kva.test\r\n\r\n",
    ),
    # RFC 9112, section 3.2.4
    "OPTIONS *": (
        {},
        Ask("http://a.test:8001", "OPTIONS", extensions={"target": "*"}),
        b"OPTIONS http://a.test:8001 HTTP/1.1\r\nHost: a.test:8001\r\n\r\n",
    ),
    "body": (
        {},
        Ask("http://a.test/", "POST", content=b"data"),
        b"POST http://a.test/ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\ndata",
    ),
    "credentials": (
        {"auth": AUTH},
        Ask("http://a.test/"),
        b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nProxy-Authorization: %b\r\n\r\n" % BASIC,
    ),
    "headers for the proxy": (
        {"auth": AUTH, "headers": [("X-Tag", "1"), ("x-tag", "2")]},
        Ask("http://a.test/", headers=[("X", "y")]),
        b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nProxy-Authorization: %b\r\nX-Tag: 1\r\nx-tag: 2\r\nX: y\r\n"
        b"\r\n" % BASIC,
    ),
    "the request's own go before": (
        {"auth": AUTH, "headers": [("X-Tag", "1"), ("X-Other", "2"), ("Host", "evil.test")]},
        Ask("http://a.test/", headers=[("proxy-authorization", "own"), ("x-TAG", "own")]),
        b"GET http://a.test/ HTTP/1.1\r\nHost: a.test\r\nX-Other: 2\r\nproxy-authorization: own\r\nx-TAG: own\r\n\r\n",
    ),
}


@pytest.mark.parametrize("name", FORWARDED)
def test_what_is_written_to_a_proxy_that_forwards(name: str, world: str) -> None:
    settings, ask, written = FORWARDED[name]
    play(world, [[HEAD, OK] * 3], ask, ask, ask)  # so that its headers are known as a server gets them
    played = play(world, [[HEAD, OK] * 3], ask, ask, ask, proxy=Proxy(HTTP_PROXY, **settings))
    assert [outcome.status for outcome in played.outcomes] == [200, 200, 200]
    assert played.connection.written == written * 3
    assert played.connection.place == ("proxy.test", 3128)
    assert played.connection.hostnames == []


def test_forwarding_over_tls_begins_with_the_proxys_handshake(world: str) -> None:
    context = client_context()
    proxy = Proxy(HTTPS_PROXY, auth=AUTH, ssl_context=context)
    ask = Ask("http://a.test/", extensions={"sni_hostname": "other.test"})
    played = play(world, [[HEAD, OK]], ask, proxy=proxy)
    assert played.connection.place == ("proxy.test", 3129)
    assert played.connection.hostnames == ["proxy.test"]
    assert played.connection.contexts == [context]
    assert played.connection.first_lines == ["GET http://a.test/ HTTP/1.1"]


# --- CONNECT: what is written ------------------------------------------------------------------------------

CONNECTED: dict[str, tuple[dict[str, Any], str, bytes]] = {
    "default port": (
        {},
        "https://a.test/",
        b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nAccept: */*\r\n\r\n",
    ),
    "other port": (
        {},
        "https://A.test:8443/",
        b"CONNECT a.test:8443 HTTP/1.1\r\nHost: a.test:8443\r\nAccept: */*\r\n\r\n",
    ),
    "without TLS": (
        {},
        "ws://a.test/",
        b"CONNECT a.test:80 HTTP/1.1\r\nHost: a.test:80\r\nAccept: */*\r\n\r\n",
    ),
    "IPv6": (
        {},
        "https://[2001:db8::1]/",
        b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\nAccept: */*\r\n\r\n",
    ),
    "IPv6 with a zone": (
        {},
        "https://[fe80::1%25eth0]:444/",
        b"CONNECT [fe80::1]:444 HTTP/1.1\r\nHost: [fe80::1]:444\r\nAccept: */*\r\n\r\n",
    ),
    "credentials": (
        {"auth": AUTH},
        "https://a.test/",
        b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\nAccept: */*\r\nProxy-Authorization: %b\r\n\r\n"
        % BASIC,
    ),
    "headers for the proxy": (
        {"auth": AUTH, "headers": [("User-Agent", "x"), ("Accept", "text/plain"), ("host", "b.test:1")]},
        "https://a.test/",
        b"CONNECT a.test:443 HTTP/1.1\r\nhost: b.test:1\r\nProxy-Authorization: %b\r\nUser-Agent: x\r\n"
        b"Accept: text/plain\r\n\r\n" % BASIC,
    ),
}
INSIDE = b"GET / HTTP/1.1\r\nHost: %b\r\nX: y\r\n\r\n"


@pytest.mark.parametrize("name", CONNECTED)
def test_what_is_written_to_a_proxy_that_connects(name: str, world: str) -> None:
    settings, url, written = CONNECTED[name]
    played = play(world, [TUNNEL], Ask(url, headers=[("X", "y")]), proxy=Proxy(HTTP_PROXY, **settings))
    assert played.outcome.status == 200
    host = url.split("/")[2].replace("%25eth0", "").lower().encode()
    # Nothing of what the proxy was told goes into the tunnel, nor the other way round.
    assert played.connection.written == written + INSIDE % host


# --- SOCKS5: what is written -------------------------------------------------------------------------------

LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])
REACHED: dict[str, tuple[str, bytes]] = {
    "name": ("http://a.test/", connect_to("a.test", 80)),
    "name with a final dot": ("http://a.test./", connect_to("a.test", 80)),
    "port": ("http://a.test:65535/", connect_to("a.test", 65535)),
    "https": ("https://a.test/", connect_to("a.test", 443)),
    "IPv4": ("http://192.0.2.1/", connect_to(b"\xc0\x00\x02\x01", 80, version=4)),
    "IPv6": ("https://[2001:db8::1]/", connect_to(b"\x20\x01\x0d\xb8" + bytes(11) + b"\x01", 443, version=6)),
    "IPv6 with a zone": (
        "http://[fe80::1%25eth0]/",
        connect_to(b"\xfe\x80" + bytes(13) + b"\x01", 80, version=6),
    ),
    "the longest name": (f"http://{LONGEST}/", connect_to(LONGEST, 80)),
    "number that is no address": ("http://127.1/", connect_to("127.1", 80)),
    "international": ("http://bücher.test/", connect_to("xn--bcher-kva.test", 80)),
}


@pytest.mark.parametrize("name", REACHED)
@pytest.mark.parametrize("auth", [False, True], ids=["", "auth"])
def test_what_is_written_to_a_socks_proxy_E08(name: str, auth: bool, world: str) -> None:
    url, command = REACHED[name]
    proxy = Proxy(SOCKS_PROXY, auth=AUTH if auth else None)
    played = play(world, [socks(command, HEAD, OK, auth=auth)], Ask(url), proxy=proxy)
    assert played.outcome.status == 200
    greeting = GREETING_WITH_CREDENTIALS + CREDENTIALS if auth else GREETING
    begin = greeting + command + b"GET / HTTP/1.1\r\nHost: "
    assert played.connection.written[: len(begin)] == begin
    assert played.connection.place == ("proxy.test", 1080)
    assert played.connection.hostnames == ([url.split("/")[2].strip("[]")] if "https" in url else [])


def test_credentials_that_nobody_asks_for_are_not_sent(world: str) -> None:
    command = connect_to("a.test", 80)
    script = [Received(GREETING_WITH_CREDENTIALS), NO_AUTH, Received(command), REPLY, HEAD, OK]
    played = play(world, [script], Ask("http://a.test/"), proxy=Proxy(SOCKS_PROXY, auth=AUTH))
    assert played.outcome.status == 200
    assert played.connection.written.startswith(GREETING_WITH_CREDENTIALS + command + b"GET /")


def test_the_longest_credentials(world: str) -> None:
    credentials = b"\x01\xff" + b"u" * 255 + b"\xff" + b"p" * 255
    command = connect_to("a.test", 80)
    script = [Received(GREETING_WITH_CREDENTIALS), USER_AUTH, Received(credentials), AUTH_OK]
    script += [Received(command), REPLY, HEAD, OK]
    proxy = Proxy(SOCKS_PROXY, auth=("u" * 255, "p" * 255))
    assert play(world, [script], Ask("http://a.test/"), proxy=proxy).outcome.status == 200


@pytest.mark.parametrize(
    "address",
    [b"\x04" + bytes(16), b"\x03\x00", b"\x03\x04\xff\xfe\x80\x81", b"\x03\xff" + b"n" * 255],
    ids=["IPv6", "empty name", "name that is no text", "longest name"],
)
def test_where_the_proxy_connects_from_does_not_matter(address: bytes, world: str) -> None:
    script = socks(connect_to("a.test", 80), HEAD, OK, reply=b"\x05\x00\x00" + address + b"\x00\x50")
    assert play(world, [script], Ask("http://a.test/"), proxy=Proxy(SOCKS_PROXY)).outcome.content == b"ok"


# --- which way ---------------------------------------------------------------------------------------------

UPGRADE = [("Connection", "upgrade"), ("Upgrade", "x")]
H2_ONLY: dict[str, Any] = {"http1": False, "http2": True}
PREFACE = [Received(b"PRI * HTTP/2.0\r\n\r\n"), EOF]
FORWARD = [HEAD, OK]
WAYS: dict[str, tuple[Ask, dict[str, Any], list[Any], list[str], list[str]]] = {
    "http": (Ask("http://a.test/"), {}, FORWARD, ["GET http://a.test/ HTTP/1.1"], []),
    "http, http2 on": (Ask("http://a.test/"), {"http2": True}, FORWARD, ["GET http://a.test/ HTTP/1.1"], []),
    "https": (
        Ask("https://a.test/"),
        {},
        TUNNEL,
        ["CONNECT a.test:443 HTTP/1.1", "GET / HTTP/1.1"],
        ["a.test"],
    ),
    "ws": (Ask("ws://a.test/"), {}, TUNNEL, ["CONNECT a.test:80 HTTP/1.1", "GET / HTTP/1.1"], []),
    "wss": (Ask("wss://a.test/"), {}, TUNNEL, ["CONNECT a.test:443 HTTP/1.1", "GET / HTTP/1.1"], ["a.test"]),
    "upgrade": (
        Ask("http://a.test/", headers=UPGRADE),
        {},
        TUNNEL,
        ["CONNECT a.test:80 HTTP/1.1", "GET / HTTP/1.1"],
        [],
    ),
    "CONNECT by hand": (
        Ask("http://a.test/", "CONNECT", extensions={"target": "b.test:443"}),
        {},
        [HEAD, ESTABLISHED, HEAD, response(status="403 No")],
        ["CONNECT a.test:80 HTTP/1.1", "CONNECT b.test:443 HTTP/1.1"],
        [],
    ),
    "absolute target": (
        Ask("http://a.test/", extensions={"target": "http://b.test/"}),
        {},
        TUNNEL,
        ["CONNECT a.test:80 HTTP/1.1", "GET http://b.test/ HTTP/1.1"],
        [],
    ),
    "h2 by prior knowledge": (
        Ask("http://a.test/"),
        H2_ONLY,
        [HEAD, ESTABLISHED, *PREFACE],
        ["CONNECT a.test:80 HTTP/1.1", "PRI * HTTP/2.0"],
        [],
    ),
    "sni_hostname": (
        Ask("https://a.test/", extensions={"sni_hostname": "b.test"}),
        {},
        TUNNEL,
        ["CONNECT a.test:443 HTTP/1.1", "GET / HTTP/1.1"],
        ["b.test"],
    ),
}


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("proxy", [HTTP_PROXY, HTTPS_PROXY])
def test_which_way_a_request_goes(name: str, proxy: str, world: str) -> None:
    ask, options, steps, lines, hostnames = WAYS[name]
    # An https proxy says by ALPN what is spoken with itself. That says nothing of what is spoken in the tunnel.
    script = Script(*steps, ssl_object=Chosen("http/1.1" if "PRI * HTTP/2.0" in lines else None))
    played = play(world, [script], ask, proxy=Proxy(proxy), **options)
    assert played.connection.first_lines[: len(lines)] == lines
    assert played.connection.hostnames == ["proxy.test"] * (proxy == HTTPS_PROXY) + hostnames


@pytest.mark.parametrize("name", WAYS)
def test_by_socks_everything_goes_in_a_tunnel(name: str, world: str) -> None:
    ask, options, steps, lines, hostnames = WAYS[name]
    port = 443 if hostnames else 80
    inside = steps[2:] if steps[1] == ESTABLISHED else steps
    script = socks(connect_to("a.test", port), *inside)
    played = play(world, [script], ask, proxy=Proxy(SOCKS_PROXY), **options)
    begin = GREETING + connect_to("a.test", port)
    line = lines[-1].replace("GET http://a.test/", "GET /").encode()
    assert played.connection.written.startswith(begin + line)
    assert played.connection.hostnames == hostnames


@pytest.mark.parametrize("proxy", [HTTP_PROXY, SOCKS_PROXY])
def test_what_needs_http1_is_refused_where_that_is_not_spoken(proxy: str, world: str) -> None:
    played = play(world, [], Ask("http://a.test/", headers=UPGRADE), proxy=Proxy(proxy), **H2_ONLY)
    assert isinstance(played.error, UnsupportedProtocol)


SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nlead"


@pytest.mark.parametrize("proxy", [HTTP_PROXY, SOCKS_PROXY])
def test_an_upgrade_in_a_tunnel_hands_the_stream_over(proxy: str) -> None:
    begin = [HEAD, ESTABLISHED] if proxy == HTTP_PROXY else socks(connect_to("a.test", 80))
    backend = ScriptedBackend([*begin, HEAD, SWITCHED, Received(b"ping"), b"pong"])
    with (
        checked_pool(backend, virtual_time=True, proxy=Proxy(proxy)) as pool,
        pool.stream("GET", "http://a.test/", headers=UPGRADE) as answer,
    ):
        assert answer.status == 101
        stream = answer.extensions["network_stream"]
        assert stream.read() == b"lead"
        stream.write(b"ping")
        assert stream.read() == b"pong"


# --- TLS, and what is agreed on in it ----------------------------------------------------------------------


def test_each_of_the_two_handshakes_has_its_own_context(world: str) -> None:
    ours, theirs = client_context(), client_context()
    proxy = Proxy(HTTPS_PROXY, ssl_context=theirs)
    played = play(world, [TUNNEL], Ask("https://a.test/"), proxy=proxy, ssl_context=ours)
    assert played.connection.hostnames == ["proxy.test", "a.test"]
    assert played.connection.contexts == [theirs, ours]


def test_the_default_context_for_the_proxy_does_not_offer_h2(world: str) -> None:
    from lamina_pool._ssl import shared_ssl_context

    played = play(world, [TUNNEL], Ask("https://a.test/"), proxy=Proxy(HTTPS_PROXY), http2=True)
    assert played.connection.contexts == [
        shared_ssl_context(("http/1.1",)),
        shared_ssl_context(("h2", "http/1.1")),
    ]


@pytest.mark.parametrize("url", ["http://a.test/", "https://a.test/"])
def test_a_proxy_that_chooses_h2_is_refused(url: str, world: str) -> None:
    script = Script(HEAD, ESTABLISHED, ssl_object=Chosen("h2"))
    played = play(world, [script], Ask(url), proxy=Proxy(HTTPS_PROXY), retries=3)
    assert isinstance(played.error, ProxyError)
    assert played.error.phase == "tls"
    assert "chose the protocol 'h2'" in str(played.error)
    assert played.connection.written == b""


@pytest.mark.parametrize("chosen", ["http/1.1", "http/1.0", None])
def test_h2_in_the_tunnel_is_the_servers_choice(chosen: str | None, world: str) -> None:
    with_h2 = layers(*PREFACE, proxy=chosen, server="h2")
    played = play(world, [with_h2], Ask("https://a.test/"), proxy=Proxy(HTTPS_PROXY), http2=True)
    assert played.connection.first_lines[:2] == ["CONNECT a.test:443 HTTP/1.1", "PRI * HTTP/2.0"]
    without = layers(HEAD, OK, proxy=chosen, server=None)
    played = play(world, [without], Ask("https://a.test/"), proxy=Proxy(HTTPS_PROXY), http2=True)
    assert played.connection.first_lines[:2] == ["CONNECT a.test:443 HTTP/1.1", "GET / HTTP/1.1"]


@pytest.mark.parametrize("proxy", [HTTP_PROXY, SOCKS_PROXY])
def test_tls_that_fails_in_the_tunnel_is_no_fault_of_the_proxy(proxy: str) -> None:
    begin = [HEAD, ESTABLISHED] if proxy == HTTP_PROXY else socks(connect_to("a.test", 443))
    script = Script(*begin, tls_error=ConnectError("not the right certificate", phase="tls"))
    played = play("threads", [script], Ask("https://a.test/"), proxy=Proxy(proxy))
    assert type(played.error) is ConnectError
    assert played.error.phase == "tls"
    assert played.error.message == "not the right certificate"


def test_tls_that_fails_with_the_proxy_says_so() -> None:
    script = Script(tls_error=ConnectError("not the right certificate", phase="tls"))
    played = play("threads", [script], Ask("https://a.test/"), proxy=Proxy(HTTPS_PROXY, auth=AUTH))
    assert type(played.error) is ConnectError
    assert "the proxy https://proxy.test:3129 cannot be reached: not the right cert" in played.error.message
    assert played.error.origin == "https://a.test:443"
    assert played.connection.written == b""


# --- which connection --------------------------------------------------------------------------------------


def test_a_connection_that_is_forwarded_serves_several_origins(world: str) -> None:
    script = [HEAD, OK, HEAD, OK, HEAD, OK]
    urls = ["http://a.test/", "http://b.test:81/", "http://a.test/x"]
    asks = [*map(Ask, urls[:2]), Ask(urls[2], extensions={"sni_hostname": "c.test"})]
    played = play(world, [script], *asks, proxy=Proxy(HTTP_PROXY))
    assert played.connection.first_lines == [f"GET {url} HTTP/1.1" for url in urls]


@pytest.mark.parametrize("scheme", ["https", "ws"])
def test_a_tunnel_serves_one_origin(scheme: str, world: str) -> None:
    asks = [Ask(f"{scheme}://{host}/") for host in ("a.test", "b.test", "a.test", "a.test:444", "b.test")]
    scripts = [[*TUNNEL, HEAD, OK], [*TUNNEL, HEAD, OK], TUNNEL]
    played = play(world, scripts, *asks, proxy=Proxy(HTTP_PROXY))
    assert [len(seen.first_lines) for seen in played.connections] == [3, 3, 2]
    assert [seen.first_lines[0].split(":")[0] for seen in played.connections] == [
        "CONNECT a.test",
        "CONNECT b.test",
        "CONNECT a.test",
    ]


def test_by_socks_a_connection_serves_one_origin(world: str) -> None:
    asks = [Ask("http://a.test/"), Ask("http://b.test/"), Ask("http://a.test/")]
    scripts = [socks(connect_to(f"{name}.test", 80), HEAD, OK, HEAD, OK) for name in "ab"]
    played = play(world, scripts, *asks, proxy=Proxy(SOCKS_PROXY))
    assert [outcome.status for outcome in played.outcomes] == [200, 200, 200]


def test_what_is_forwarded_and_what_is_tunnelled_to_one_origin_do_not_mix(world: str) -> None:
    plain, upgrade = Ask("http://a.test/"), Ask("http://a.test/", headers=UPGRADE)
    scripts = [[HEAD, OK, HEAD, OK], [*TUNNEL, HEAD, OK]]
    played = play(world, scripts, plain, upgrade, plain, upgrade, proxy=Proxy(HTTP_PROXY))
    forwarded, tunnelled = played.connections
    assert forwarded.first_lines == ["GET http://a.test/ HTTP/1.1"] * 2
    assert tunnelled.first_lines == ["CONNECT a.test:80 HTTP/1.1", "GET / HTTP/1.1", "GET / HTTP/1.1"]


def test_a_request_to_the_proxy_itself_does_not_share_what_is_forwarded(world: str) -> None:
    """By TLS inside of the tunnel: its origin is that of the connections that forward."""
    scripts = [[HEAD, OK], TUNNEL]
    asks = [Ask("http://a.test/"), Ask(f"{HTTPS_PROXY}/")]
    played = play(world, scripts, *asks, proxy=Proxy(HTTPS_PROXY))
    assert played.connections[1].first_lines == ["CONNECT proxy.test:3129 HTTP/1.1", "GET / HTTP/1.1"]


def test_another_server_name_is_another_tunnel_C03(world: str) -> None:
    names = [None, "b.test", None, "b.test", "c.test"]
    asks = [Ask("https://a.test/", extensions={"sni_hostname": name} if name else {}) for name in names]
    scripts = [[*TUNNEL, HEAD, OK], [*TUNNEL, HEAD, OK], TUNNEL]
    played = play(world, scripts, *asks, proxy=Proxy(HTTP_PROXY))
    assert [seen.hostnames for seen in played.connections] == [["a.test"], ["b.test"], ["c.test"]]


@pytest.mark.parametrize("proxy", [HTTP_PROXY, HTTPS_PROXY, SOCKS_PROXY])
def test_options_of_dialling_are_those_of_the_connection_to_the_proxy(proxy: str) -> None:
    steps = socks(connect_to("a.test", 443), HEAD, OK) if proxy == SOCKS_PROXY else TUNNEL
    options = [(6, 1, 1)]
    backend = ScriptedBackend(steps)
    settings: Any = {"local_address": "192.0.2.9", "socket_options": options}
    with checked_pool(backend, proxy=Proxy(proxy), **settings) as pool:
        assert pool.request("GET", "https://a.test/", extensions=BRIEF).status == 200
    [dial] = backend.dials
    assert (dial.host, dial.local_address, dial.socket_options) == ("proxy.test", "192.0.2.9", ((6, 1, 1),))
    assert dial.timeout == pytest.approx(5.0, abs=0.5)


@pytest.mark.parametrize("url", ["http://a.test/", "https://a.test/"])
def test_the_proxy_is_reached_through_a_unix_socket(url: str, world: str) -> None:
    steps = TUNNEL if "https" in url else FORWARD
    played = play(world, [steps], Ask(url), proxy=Proxy(HTTP_PROXY), uds="/run/proxy")
    assert played.connection.place == ("/run/proxy", None)
    assert played.outcome.status == 200


# --- what only the proxy may know --------------------------------------------------------------------------

TAG = "hidden-tag"
SECRETS = [PASSWORD, BASIC.decode().removeprefix("Basic "), "0wn-s3cr3t"]
SPELLINGS = ["Proxy-Authorization", "proxy-authorization", "PROXY-AUTHORIZATION", "pROXY-aUTHORIZATION"]


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("proxy", [HTTP_PROXY, SOCKS_PROXY, SOCKS5_PROXY])
@pytest.mark.parametrize("url", ["https://a.test/", "ws://a.test/", "wss://a.test/"])
def test_a_request_with_credentials_for_a_proxy_goes_into_no_tunnel_E04(
    spelling: str, proxy: str, url: str, world: str
) -> None:
    ask = Ask(url, headers=[(spelling, "0wn-s3cr3t")])
    played = play(world, [], ask, proxy=Proxy(proxy))
    assert isinstance(played.error, LocalProtocolError)
    assert "give it to the Proxy" in str(played.error)
    assert "0wn-s3cr3t" not in repr(played.error)


def test_it_goes_into_no_tunnel_that_is_there_already_either_E04(world: str) -> None:
    headers = [("Proxy-Authorization", "0wn-s3cr3t")]
    asks = [Ask("https://a.test/"), Ask("https://a.test/", headers=headers)]
    played = play(world, [TUNNEL], *asks, proxy=Proxy(HTTP_PROXY))
    assert isinstance(played.outcomes[1], LocalProtocolError)
    assert b"0wn-s3cr3t" not in played.connection.written


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_request_may_have_credentials_of_its_own_for_a_proxy_that_forwards_E04(
    spelling: str, world: str
) -> None:
    ask = Ask("http://a.test/", headers=[(spelling, "own")])
    played = play(world, [[HEAD, OK]], ask, proxy=Proxy(HTTP_PROXY, auth=AUTH))
    [line] = [line for line in played.connection.written.splitlines() if b"uthorization:" in line.lower()]
    assert line == f"{spelling}: own".encode()


def test_credentials_for_a_proxy_at_the_end_of_the_tunnel_go_there(world: str) -> None:
    headers = [("Proxy-Authorization", "inner")]
    ask = Ask("http://a.test/", "CONNECT", headers, extensions={"target": "b.test:443"})
    script = [HEAD, ESTABLISHED, HEAD, response(status="403 No")]
    played = play(world, [script], ask, proxy=Proxy(HTTP_PROXY, auth=AUTH))
    outer, inner = played.connection.written.split(b"\r\n\r\n")[:2]
    assert BASIC in outer
    assert b"Proxy-Authorization: inner" not in outer
    assert b"Proxy-Authorization: inner" in inner
    assert BASIC not in inner


TELLING: dict[str, tuple[str, list[Any], str]] = {
    "forward": (HTTP_PROXY, FORWARD, "http://a.test/"),
    "forward, broken": (HTTP_PROXY, [HEAD, b"nonsense"], "http://a.test/"),
    "tunnel": (HTTP_PROXY, TUNNEL, "https://a.test/"),
    "tunnel, 407": (HTTP_PROXY, [HEAD, b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n"], "https://a.test/"),
    "tunnel, broken": (HTTP_PROXY, [HEAD, RESET], "https://a.test/"),
    "tunnel, silent": (HTTP_PROXY, [HEAD], "https://a.test/"),
    "tunnel, h2": (HTTP_PROXY, [HEAD, ESTABLISHED, *PREFACE], "http://a.test/"),
    "https": (HTTPS_PROXY, TUNNEL, "https://a.test/"),
    "socks": (SOCKS_PROXY, socks(connect_to("a.test", 443), HEAD, OK, auth=True), "https://a.test/"),
    "socks, refused": (
        SOCKS_PROXY,
        [Received(GREETING_WITH_CREDENTIALS), USER_AUTH, Received(CREDENTIALS), b"\x01\x01"],
        "https://a.test/",
    ),
    "socks, broken": (SOCKS_PROXY, [Received(GREETING_WITH_CREDENTIALS), USER_AUTH, RESET], "http://a.test/"),
    "unreachable": (HTTP_PROXY, [], "https://a.test/"),
}


def flattened(error: BaseException | None) -> str:
    """All that an error and its causes say."""
    texts = []
    while error is not None:
        texts += [str(error), repr(error), repr(error.args), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return " ".join(texts)


@pytest.mark.parametrize("name", TELLING)
def test_nobody_else_is_told_the_credentials_E04(
    name: str, world: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not the trace, the log, errors or anything's `repr`, whatever comes of the request."""
    url, steps, target = TELLING[name]
    headers = [("X-Tag", TAG), ("proxy-AUTHENTICATION-info", "x")] if url.startswith("http") else None
    events: list[str] = []

    def trace(event: str, info: dict[str, Any]) -> None:
        events.append(f"{event} {info!r}")
        for value in info.values():
            if isinstance(value, Request):
                events.append(f"{value.headers!r} {value.url!r}")
            if isinstance(value, BaseException):
                events.append(flattened(value))

    extensions = {"timeout": {"connect": 2.0, "read": 2.0}, "trace": trace}
    script: Any = steps or ConnectError("refused", phase="connect")
    proxy = Proxy(url, auth=AUTH, headers=headers)
    options: dict[str, Any] = H2_ONLY if name == "tunnel, h2" else {}
    with caplog.at_level(logging.DEBUG, "lamina"):
        played = play(world, [script], Ask(target, extensions=extensions), proxy=proxy, **options)
    told = [*events, caplog.text, repr(played.outcomes), repr(proxy), repr(read_proxy(proxy))]
    told += [flattened(outcome) for outcome in played.outcomes if isinstance(outcome, BaseException)]
    with ConnectionPool(proxy=proxy) as pool:
        told += [repr(pool), repr(pool._pool._options), repr(pool._pool._dialler._options)]
    assert len(events) >= 2
    assert len(caplog.records) >= 2
    for secret in SECRETS:
        assert not [text for text in told if secret in text]


@pytest.mark.parametrize(
    ("proxy", "steps", "names"),
    [
        (
            HTTPS_PROXY,
            TUNNEL,
            [
                "connection.connect_tcp",
                "connection.start_tls",
                "http11.send_request_headers",
                "http11.send_request_body",
                "http11.receive_response_headers",
                "proxy.start_tls",
            ],
        ),
        (
            SOCKS_PROXY,
            socks(connect_to("a.test", 443), HEAD, OK, auth=True),
            ["socks.connect_tcp", "socks.setup_socks5_connection", "socks.start_tls"],
        ),
    ],
)
def test_a_way_through_a_proxy_is_traced(proxy: str, steps: list[Any], names: list[str], world: str) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    ask = Ask("https://a.test/", extensions={"trace": lambda *event: events.append(event)})
    played = play(world, [steps], ask, proxy=Proxy(proxy, auth=AUTH))
    assert played.outcome.status == 200
    expected = [f"{name}.{end}" for name in names for end in ("started", "complete")]
    assert [name for name, _ in events][: len(expected)] == expected
    told = dict(events)
    if proxy == SOCKS_PROXY:
        info = told["socks.setup_socks5_connection.started"]
        assert (info["host"], info["port"], info["auth"]) == ("a.test", 443, b"[masked]")
    else:
        # Of the answer to CONNECT, the first of two heads.
        [answer, _] = [info for name, info in events if name == "http11.receive_response_headers.complete"]
        assert answer["return_value"] == (b"HTTP/1.1", 200, b"Connection established", [])
        request = next(info for name, info in events if name == "http11.send_request_headers.started")[
            "request"
        ]
        assert request.method == b"CONNECT"
        assert request.url.target == b"a.test:443"
        assert (b"Proxy-Authorization", b"[masked]") in request.headers


def test_a_target_of_the_requests_own_is_not_told_as_that_of_connect(world: str) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    trace = {"trace": lambda *event: events.append(event), "target": "/own"}
    played = play(world, [TUNNEL], Ask("https://a.test/", extensions=trace), proxy=Proxy(HTTP_PROXY))
    assert played.connection.first_lines == ["CONNECT a.test:443 HTTP/1.1", "GET /own HTTP/1.1"]
    told = [info["request"] for name, info in events if name == "http11.send_request_headers.started"]
    assert [request.url.target for request in told] == [b"a.test:443", b"/own"]


# --- answers to CONNECT ------------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[bytes, int, list[tuple[bytes, bytes]]]] = {
    "407": (
        b"HTTP/1.1 407 Who are you?\r\nProxy-Authenticate: Basic realm=x\r\nContent-Length: 5\r\n\r\nhello",
        407,
        [(b"Proxy-Authenticate", b"Basic realm=x"), (b"Content-Length", b"5")],
    ),
    "502": (b"HTTP/1.1 502 Bad\r\n\r\n", 502, []),
    "302": (
        b"HTTP/1.1 302 Found\r\nLocation: http://evil.test/\r\n\r\n",
        302,
        [(b"Location", b"http://evil.test/")],
    ),
    "403 in pieces": (
        b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        403,
        [(b"Transfer-Encoding", b"chunked")],
    ),
    "HTTP/1.0": (b"HTTP/1.0 503 No\r\n\r\n", 503, []),
    "after 1xx": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 No\r\n\r\n", 500, []),
    "reason that is no text": (b"HTTP/1.1 500 \xff\xfe\r\n\r\n", 500, []),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("pieces", [False, True], ids=["", "in-pieces"])
def test_a_refusal_is_told_with_its_status_and_headers_E01(name: str, pieces: bool, world: str) -> None:
    answer, status, headers = REFUSALS[name]
    steps = [bytes([byte]) for byte in answer] if pieces else [answer]
    refused, asked_again = Ask("https://a.test/"), Ask("https://a.test/")
    scripts = [[HEAD, *steps], TUNNEL]
    played = play(world, scripts, refused, asked_again, proxy=Proxy(HTTP_PROXY, auth=AUTH), retries=3)
    error, response = played.outcomes
    assert type(error) is ProxyError
    assert (error.status, error.headers) == (status, tuple(headers))
    assert (error.phase, error.origin) == ("proxy", "https://a.test:443")
    assert str(status) in str(error)
    assert "http://proxy.test:3128" in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.status, copy.headers, str(copy)) == (error.status, error.headers, str(error))
    # Closed at once; not asked again, with credentials or without; and nothing stands in the way of the next request.
    assert played.connections[0].was_closed
    assert played.connections[0].first_lines == ["CONNECT a.test:443 HTTP/1.1"]
    assert played.sleeps == []
    assert response.status == 200


@pytest.mark.parametrize(
    "answer",
    [
        ESTABLISHED,
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 299 Fine\r\n\r\n",
        b"HTTP/1.1 200\r\n\r\n",
        b"HTTP/1.1 103 x\r\n\r\n" * 3 + ESTABLISHED,
        b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
        # E03: RFC 9110, section 9.3.6: to be ignored.
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
)
@pytest.mark.parametrize("url", ["https://a.test/", "ws://a.test/"])
def test_any_2xx_opens_the_tunnel_E03(answer: bytes, url: str, world: str) -> None:
    for steps in ([answer], [bytes([byte]) for byte in answer]):
        played = play(world, [[HEAD, *steps, HEAD, OK]], Ask(url), proxy=Proxy(HTTP_PROXY))
        assert played.outcome.content == b"ok"


BROKEN: dict[str, tuple[list[Any], str]] = {
    "nothing": ([EOF], "ended the connection without sending a response"),
    "reset": ([RESET], "reset"),
    "nothing but 1xx": ([b"HTTP/1.1 103 x\r\n\r\n", EOF], "ended the connection"),
    "TLS": ([b"\x15\x03\x01\x00\x02\x02\x16"], "TLS"),
    "SSH": ([b"SSH-2.0-OpenSSH_9.2\r\n"], "SSH"),
    "SOCKS": ([b"\x05\x00"], "not an HTTP/1.x response"),
    "HTTP/2": ([b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"], "HTTP/2"),
    "HTTP/2 as text": ([b"HTTP/2 200\r\n\r\n"], ""),
    "ICY": ([b"ICY 200 OK\r\n\r\n"], "not an HTTP/1.x response"),
    "empty lines": ([b"\r\n" * 100], "not an HTTP/1.x response"),
    "status": ([b"HTTP/1.1 20 x\r\n\r\n"], ""),
    "header": ([b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n"], ""),
    "NUL": ([b"HTTP/1.1 200 O\0K\r\n\r\n"], ""),
    "100 fields more than enough": ([b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 400 + b"\r\n"], "fields"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("proxy", [HTTP_PROXY, HTTPS_PROXY])
def test_an_answer_that_is_none_is_the_proxys_fault_E02(name: str, proxy: str, world: str) -> None:
    steps, text = BROKEN[name]
    played = play(world, [[HEAD, *steps]], Ask("https://a.test/"), proxy=Proxy(proxy), retries=2)
    assert type(played.error) is ProxyError
    assert (played.error.phase, played.error.status) == ("proxy", None)
    assert text in str(played.error)
    assert played.error.__cause__ is not None
    assert played.connection.was_closed


def test_101_opens_no_tunnel(world: str) -> None:
    played = play(world, [[HEAD, SWITCHED]], Ask("https://a.test/"), proxy=Proxy(HTTP_PROXY))
    assert type(played.error) is ProxyError
    assert played.error.status is None  # for it cannot be an answer: nobody has asked for an upgrade


class Counted:
    """An endless script, which knows how much of it was asked for."""

    def __init__(self, *steps: Any, again: bytes) -> None:
        self.size = 0
        self._steps = iter(steps)
        self._again = again

    def __iter__(self) -> Counted:
        return self

    def __next__(self) -> Any:
        for step in self._steps:
            return step
        self.size += len(self._again)
        return self._again


@pytest.mark.parametrize(
    ("begin", "again", "most", "text"),
    [
        (b"", b"HTTP/1.1 103 Early\r\nX: y\r\n\r\n", 27 * (MAX_INTERIM_RESPONSES + 1), "interim"),
        (b"", b"HTTP/1.1 103 x\r\nX: " + b"y" * 9000 + b"\r\n\r\n", MAX_INTERIM_BYTES + 10_000, "interim"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n", MAX_HEAD_BYTES + 100, ""),
        (b"HTTP/1.1 200 OK\r\nX: ", b"y" * 1000, MAX_HEAD_BYTES + 2000, ""),
        (b"HTTP/1.1 200 OK\r\nX: ", b" ", MAX_HEAD_BYTES + 2000, ""),
    ],
    ids=["1xx", "large 1xx", "fields", "one field", "blanks"],
)
def test_an_answer_without_end_is_not_listened_to_for_ever_E02(
    begin: bytes, again: bytes, most: int, text: str, world: str
) -> None:
    script = Counted(HEAD, *([begin] if begin else []), again=again)
    played = play(world, [script], Ask("https://a.test/"), proxy=Proxy(HTTP_PROXY))
    assert type(played.error) is ProxyError
    assert text in str(played.error)
    assert script.size <= most + 2 * len(again)  # the script is a step ahead


@pytest.mark.parametrize("end", [EOF, RESET], ids=["EOF", "RESET"])
@pytest.mark.parametrize("proxy", [HTTP_PROXY, SOCKS_PROXY])
def test_the_proxy_goes_away_at_any_byte_of_its_answers_E07(proxy: str, end: Any, world: str) -> None:
    """At each of them: one of our errors, the stream is closed at once, and the next request is right."""
    if proxy == HTTP_PROXY:
        whole: list[Any] = [HEAD, b"HTTP/1.1 100 x\r\n\r\nHTTP/1.1 200 OK\r\nX: y\r\n\r\n"]
    else:
        whole = socks(connect_to("a.test", 443), auth=True)
    places = [
        (number, cut)
        for number, step in enumerate(whole)
        if isinstance(step, bytes)
        for cut in range(len(step))
    ]
    scripts = [[*whole[:number], *([whole[number][:cut]] if cut else []), end] for number, cut in places]
    asks = [Ask("https://a.test/")] * len(scripts)
    played = play(world, [*scripts, [*whole, HEAD, OK]], *asks, asks[0], proxy=Proxy(proxy, auth=AUTH))
    assert len(places) >= 14
    for error in played.outcomes[:-1]:
        assert type(error) is ProxyError
        assert error.phase == "proxy"
    assert all(seen.was_closed for seen in played.connections[:-1])
    assert played.outcomes[-1].content == b"ok"


@pytest.mark.parametrize("proxy", [HTTP_PROXY, SOCKS_PROXY])
def test_the_proxy_takes_no_more_of_what_it_is_told(proxy: str) -> None:
    """Writing fails after so many bytes, or waits for ever."""
    length = 60 if proxy == HTTP_PROXY else len(GREETING) + len(connect_to("a.test", 443))
    for taken in range(length):
        steps = [HEAD, ESTABLISHED] if proxy == HTTP_PROXY else socks(connect_to("a.test", 443))
        ask = Ask("https://a.test/", extensions=BRIEF)
        broken = play("threads", [Script(*steps, fail_write_after=taken)], ask, proxy=Proxy(proxy))
        assert type(broken.error) is ProxyError
        assert isinstance(broken.error.__cause__, WriteError)
        assert broken.error.errno == errno.EPIPE
        stalled = play("threads", [Script(*steps, stall_write_after=taken)], ask, proxy=Proxy(proxy))
        assert type(stalled.error) is ConnectTimeout
        assert stalled.error.phase == "proxy"


# --- bytes behind the answer -------------------------------------------------------------------------------


def test_bytes_behind_the_answer_belong_to_a_plain_tunnel_E10(world: str) -> None:
    for behind in (OK, OK[:1], OK[:-1]):
        script = [HEAD, ESTABLISHED + behind, *([OK[len(behind) :]] if len(behind) < len(OK) else [])]
        played = play(world, [script], Ask("ws://a.test/"), proxy=Proxy(HTTP_PROXY))
        assert played.outcome.content == b"ok"
        script = socks(connect_to("a.test", 80), *script[2:], reply=REPLY + behind)
        played = play(world, [script], Ask("http://a.test/"), proxy=Proxy(SOCKS_PROXY))
        assert played.outcome.content == b"ok"


@pytest.mark.parametrize("proxy", [HTTP_PROXY, HTTPS_PROXY, SOCKS_PROXY])
@pytest.mark.parametrize("behind", [b"\x16", OK, b"\x00" * 70_000])
def test_bytes_before_the_tls_handshake_are_never_taken_for_its_own_C09(
    proxy: str, behind: bytes, world: str
) -> None:
    if proxy == SOCKS_PROXY:
        script = socks(connect_to("a.test", 443), reply=REPLY + behind)
    else:
        script = [HEAD, ESTABLISHED + behind]
    played = play(world, [script], Ask("https://a.test/"), proxy=Proxy(proxy))
    assert type(played.error) is ConnectError
    assert played.error.phase == "tls"
    assert "cannot be trusted" in str(played.error)
    assert played.connection.hostnames == (["proxy.test"] if proxy == HTTPS_PROXY else [])
    assert played.connection.was_closed


def test_frames_behind_the_answer_belong_to_the_tunnel_E10(world: str) -> None:
    """The server's SETTINGS, which may come before it has heard anything. They are acknowledged."""
    settings, acknowledged = b"\0\0\0\x04\0" + bytes(4), b"\0\0\0\x04\x01" + bytes(4)
    script = [HEAD, ESTABLISHED + settings, Received(b"PRI * HTTP/2.0"), Received(acknowledged), EOF]
    ask = Ask("http://a.test/", extensions={"timeout": {"read": 5.0}})
    played = play(world, [script], ask, proxy=Proxy(HTTP_PROXY), **H2_ONLY)
    assert isinstance(played.error, RemoteProtocolError)


# --- answers of a SOCKS proxy ------------------------------------------------------------------------------

REPLIES: list[tuple[int, int | None, str]] = [
    (1, None, "general failure"),
    (2, errno.EACCES, "rules"),
    (3, errno.ENETUNREACH, "network unreachable"),
    (4, errno.EHOSTUNREACH, "host unreachable"),
    (5, errno.ECONNREFUSED, "connection refused"),
    (6, errno.ETIMEDOUT, "TTL"),
    (7, errno.EOPNOTSUPP, "command"),
    (8, errno.EAFNOSUPPORT, "address type"),
    (9, None, "reply 9"),
    (255, None, "reply 255"),
]


@pytest.mark.parametrize(("code", "number", "text"), REPLIES)
def test_a_socks_proxy_refuses_E07(code: int, number: int | None, text: str, world: str) -> None:
    """Some leave out the rest of a refusal."""
    for rest in (REPLY[2:], b"", b"\x00", b"\x00\x09\xff\xff"):
        script = socks(connect_to("a.test", 443), reply=bytes([5, code]) + rest)
        played = play(world, [script], Ask("https://a.test/"), proxy=Proxy(SOCKS_PROXY), retries=3)
        assert type(played.error) is ProxyError
        assert (played.error.errno, played.error.phase, played.error.status) == (number, "proxy", None)
        assert text in str(played.error)
        assert played.connection.was_closed


GREETED, ASKED = Received(GREETING), Received(connect_to("a.test", 80))
OFFERED, TOLD = Received(GREETING_WITH_CREDENTIALS), Received(CREDENTIALS)
MISSPOKEN: dict[str, tuple[bool, list[Any], str]] = {
    "HTTP": (False, [GREETED, b"HTTP/1.1 400 Bad Request\r\n\r\n"], "not a SOCKS5 reply"),
    "HTTP, one byte": (False, [GREETED, b"H"], "does not speak SOCKS5"),
    "TLS": (False, [GREETED, b"\x15\x03\x01\x00\x02\x02\x16"], "TLS"),
    "SSH": (False, [GREETED, b"SSH-2.0-x\r\n"], "SSH"),
    "SOCKS4": (False, [GREETED, b"\x00\x5b"], "does not speak SOCKS5"),
    "nothing acceptable": (False, [GREETED, b"\x05\xff"], "a way to authenticate"),
    "credentials that there are not": (False, [GREETED, b"\x05\x02"], "wants credentials"),
    "GSSAPI": (False, [GREETED, b"\x05\x01"], "a way to authenticate"),
    "GSSAPI besides": (True, [OFFERED, b"\x05\x01"], "a way to authenticate"),
    "nothing acceptable besides": (True, [OFFERED, b"\x05\xff"], "a way to authenticate"),
    "unknown method": (False, [GREETED, b"\x05\x42"], "unknown way to authenticate 66"),
    "credentials refused": (True, [OFFERED, USER_AUTH, TOLD, b"\x01\x01"], "does not accept the credentials"),
    "credentials refused, otherwise": (True, [OFFERED, USER_AUTH, TOLD, b"\x01\xff"], "does not accept"),
    "version of the authentication": (True, [OFFERED, USER_AUTH, TOLD, b"\x05\x00"], "does not speak SOCKS5"),
    "version of the reply": (False, [GREETED, NO_AUTH, ASKED, b"\x04\x00"], "does not speak SOCKS5"),
    "ATYP 0": (False, [GREETED, NO_AUTH, ASKED, b"\x05\x00\x00\x00" + bytes(6)], "unknown type 0"),
    "ATYP 2": (False, [GREETED, NO_AUTH, ASKED, b"\x05\x00\x00\x02" + bytes(6)], "unknown type 2"),
    "ATYP 255": (False, [GREETED, NO_AUTH, ASKED, b"\x05\x00\x00\xff" + bytes(6)], "unknown type 255"),
}


@pytest.mark.parametrize("name", MISSPOKEN)
def test_what_is_not_socks5_is_the_proxys_fault_E07(name: str, world: str) -> None:
    auth, script, text = MISSPOKEN[name]
    proxy = Proxy(SOCKS_PROXY, auth=AUTH if auth else None)
    played = play(world, [script], Ask("http://a.test/"), proxy=proxy, retries=2)
    assert type(played.error) is ProxyError
    assert played.error.phase == "proxy"
    assert text in str(played.error)
    assert played.connection.was_closed


@pytest.mark.parametrize("address", [b"\x01\x7f\0\0\x01", b"\x03\x05h.net", b"\x04" + bytes(16)])
def test_replies_may_come_in_pieces_of_one_byte_or_all_at_once_E06(address: bytes, world: str) -> None:
    command = connect_to("a.test", 80)
    reply = b"\x05\x00\x00" + address + b"\x00\x50"
    pieces = [
        step if isinstance(step, Received) else [bytes([byte]) for byte in step]
        for step in socks(command, auth=True, reply=reply)
    ]
    steps = list(itertools.chain.from_iterable([p] if isinstance(p, Received) else p for p in pieces))
    proxy = Proxy(SOCKS_PROXY, auth=AUTH)
    played = play(world, [[*steps, HEAD, OK]], Ask("http://a.test/"), proxy=proxy)
    assert played.outcome.content == b"ok"
    at_once = USER_AUTH + AUTH_OK + reply  # by a proxy that does not wait to be asked
    played = play(world, [[at_once, HEAD, OK]], Ask("http://a.test/"), proxy=proxy)
    assert played.outcome.content == b"ok"


# --- time --------------------------------------------------------------------------------------------------


def slow_http_proxy(url: str) -> Script:
    """Every step takes a second: connecting, TLS with the proxy, its answer, TLS with the server."""
    return Script(HEAD, Delay(1.0), ESTABLISHED, HEAD, OK, connect_seconds=1.0, tls_seconds=1.0)


def slow_socks_proxy(url: str) -> Script:
    """The same: connecting, the method, the credentials, the reply, TLS with the server."""
    steps = socks(connect_to("a.test", 443), HEAD, OK, auth=True)
    slowed = [
        step for each in steps[:6] for step in ([each] if isinstance(each, Received) else [Delay(1.0), each])
    ]
    return Script(*slowed, *steps[6:], connect_seconds=1.0, tls_seconds=1.0)


SLOW: list[tuple[str, Any, list[str]]] = [
    (HTTPS_PROXY, slow_http_proxy, ["connect", "tls", "proxy", "tls"]),
    (HTTP_PROXY, slow_http_proxy, ["connect", "proxy", "tls"]),
    (SOCKS_PROXY, slow_socks_proxy, ["connect", "proxy", "proxy", "proxy", "tls"]),
]


@pytest.mark.parametrize(("proxy", "script", "phases"), SLOW)
def test_one_limit_for_all_of_connecting_F01(proxy: str, script: Any, phases: list[str]) -> None:
    for number, phase in enumerate(phases):
        backend = ScriptedBackend(script(proxy))
        limit = number + 0.5
        with checked_pool(backend, virtual_time=True, proxy=Proxy(proxy, auth=AUTH)) as pool:
            before = backend.clock.now()
            with pytest.raises(ConnectTimeout) as caught:
                pool.request("GET", "https://a.test/", extensions={"timeout": {"connect": limit}})
            assert backend.clock.now() - before == pytest.approx(limit, abs=1e-6)
            assert not backend.open_streams
        error = caught.value
        assert (error.phase, error.limit) == (phase, limit)
        assert error.elapsed == pytest.approx(limit, abs=1e-6)
        assert error.origin == "https://a.test:443"
    backend = ScriptedBackend(script(proxy))
    with checked_pool(backend, virtual_time=True, proxy=Proxy(proxy, auth=AUTH)) as pool:
        timeouts = {"connect": len(phases) + 0.5, "read": 0.1}
        assert pool.request("GET", "https://a.test/", extensions={"timeout": timeouts}).status == 200


@pytest.mark.parametrize(("proxy", "script", "phases"), SLOW)
def test_a_deadline_ends_any_step_and_names_its_phase_F01(proxy: str, script: Any, phases: list[str]) -> None:
    for number, phase in enumerate(phases):
        backend = ScriptedBackend(script(proxy))
        block = DeadlineBlock(number + 0.5, runtime=VirtualRuntime(backend.clock))
        with checked_pool(backend, virtual_time=True, proxy=Proxy(proxy, auth=AUTH), retries=3) as pool:
            before = backend.clock.now()
            block.open()
            try:
                with pytest.raises(DeadlineExceeded) as caught:
                    pool.request("GET", "https://a.test/", extensions={"timeout": {"connect": 100.0}})
            finally:
                block.close(None, None, None)
            assert backend.clock.now() - before == pytest.approx(number + 0.5, abs=1e-6)
        assert caught.value.phase == phase
        assert caught.value.deadline is block.deadline
        assert (caught.value.limit, caught.value.origin) == (number + 0.5, "https://a.test:443")


SILENT: dict[str, tuple[str, list[Any]]] = {
    "CONNECT": (HTTP_PROXY, [HEAD]),
    "CONNECT, half an answer": (HTTP_PROXY, [HEAD, ESTABLISHED[:-1]]),
    "CONNECT, 1xx": (HTTP_PROXY, [HEAD, b"HTTP/1.1 103 x\r\n\r\n"]),
    "CONNECT over TLS": (HTTPS_PROXY, [HEAD]),
    "method": (SOCKS_PROXY, [OFFERED]),
    "half a method": (SOCKS_PROXY, [OFFERED, b"\x05"]),
    "credentials": (SOCKS_PROXY, [OFFERED, USER_AUTH, TOLD]),
    "reply": (SOCKS_PROXY, socks(connect_to("a.test", 443), auth=True, reply=b"")[:-1]),
    "half a reply": (SOCKS_PROXY, socks(connect_to("a.test", 443), auth=True, reply=REPLY[:-1])),
}


@pytest.mark.parametrize("name", SILENT)
def test_a_proxy_that_falls_silent_costs_the_time_for_connecting_E09(name: str, world: str) -> None:
    proxy, script = SILENT[name]
    ask = Ask("https://a.test/", extensions={"timeout": {"connect": 2.0, "read": 1.0, "write": 1.0}})
    played = play(world, [script], ask, proxy=Proxy(proxy, auth=AUTH))
    assert type(played.error) is ConnectTimeout
    assert (played.error.phase, played.error.limit) == ("proxy", 2.0)
    assert played.error.elapsed == pytest.approx(2.0, abs=0.01)
    assert played.connection.was_closed


@pytest.mark.parametrize("http2", [False, True], ids=["", "http2"])
@pytest.mark.parametrize("name", SILENT)
def test_a_proxy_that_falls_silent_is_not_waited_for_beyond_a_deadline_F01(
    name: str, http2: bool, world: str
) -> None:
    proxy, script = SILENT[name]
    settings = Proxy(proxy, auth=AUTH)
    played = play(world, [script], Ask("https://a.test/"), proxy=settings, http2=http2, deadline=2.0)
    assert type(played.error) is DeadlineExceeded
    assert (played.error.phase, played.error.limit) == ("proxy", 2.0)
    assert played.error.origin == "https://a.test:443"
    assert played.error.elapsed == pytest.approx(2.0, abs=0.01)
    assert played.connection.was_closed


@pytest.mark.parametrize("name", SILENT)
def test_closing_the_pool_ends_what_is_said_to_a_proxy_I02(name: str) -> None:
    proxy, script = SILENT[name]
    backend = ScriptedBackend(script)
    with ConnectionPool(network_backend=backend, proxy=Proxy(proxy, auth=AUTH)) as pool:
        asking = Worker(pool.request, "GET", "https://a.test/")
        until(lambda: backend.streams and backend.streams[0].written)
        pool.close()
        error = asking.outcome()
    assert isinstance(error, PoolClosed)
    assert error.phase == "proxy"
    assert backend.streams[0].is_closed


@pytest.mark.parametrize("name", SILENT)
@pytest.mark.parametrize("loop", WORLDS[1:])
def test_closing_the_pool_ends_what_is_said_to_a_proxy_in_a_task_I02(name: str, loop: str) -> None:
    proxy, script = SILENT[name]

    async def main() -> None:
        backend = PlayedBackend([script])
        streams: list[Any] = backend.streams
        async with Jobs() as jobs, checked_async_pool(backend, proxy=Proxy(proxy, auth=AUTH)) as pool:
            asking = jobs.start(pool.request, "GET", "https://a.test/")
            await async_until(lambda: streams and streams[0].written)
            await pool.aclose()
            error = await asking.outcome()
        assert isinstance(error, PoolClosed)
        assert error.phase == "proxy"
        assert streams[0].is_closed

    backend, options = loop_options(loop)
    anyio.run(main, backend=backend, backend_options=options)


@pytest.mark.parametrize("proxy", [HTTP_PROXY, SOCKS_PROXY])
def test_one_byte_a_second_does_not_renew_the_limit_E02(proxy: str) -> None:
    slowly = list(itertools.chain.from_iterable((Delay(1.0), bytes([byte])) for byte in ESTABLISHED))
    if proxy == SOCKS_PROXY:
        slowly = list(itertools.chain.from_iterable((Delay(1.0), bytes([byte])) for byte in NO_AUTH + REPLY))
    backend = ScriptedBackend(slowly)
    with checked_pool(backend, virtual_time=True, proxy=Proxy(proxy)) as pool:
        before = backend.clock.now()
        with pytest.raises(ConnectTimeout):
            pool.request("GET", "https://a.test/", extensions=BRIEF)
        assert backend.clock.now() - before == pytest.approx(5.0, abs=1e-6)


# --- new attempts ------------------------------------------------------------------------------------------


def test_what_fails_before_the_proxy_has_answered_is_tried_again_F03(world: str) -> None:
    ask = Ask("https://a.test/", extensions=BRIEF)
    unreachable = [ConnectError("refused", phase="connect") for _ in range(2)]
    untrusted = [HEAD, ESTABLISHED + b"x"]
    silent = [HEAD]
    scripts = [unreachable[0], unreachable[1], untrusted, silent, TUNNEL]
    played = play(world, scripts, ask, proxy=Proxy(HTTP_PROXY), retries=4)
    assert played.outcome.status == 200
    assert played.sleeps == [0.0, 0.5, 1.0, 2.0]
    assert [seen.was_closed for seen in played.connections] == [True, True, False]


def test_the_last_attempts_error_is_told(world: str) -> None:
    scripts = [ConnectError("refused", phase="connect"), [HEAD]]
    ask = Ask("https://a.test/", extensions=BRIEF)
    played = play(world, scripts, ask, proxy=Proxy(HTTP_PROXY), retries=1)
    assert type(played.error) is ConnectTimeout
    assert played.error.elapsed == pytest.approx(5.0, abs=0.01)  # of that attempt
    played = play(world, [ConnectError("refused", phase="connect", errno=111)], ask, proxy=Proxy(HTTP_PROXY))
    assert played.error.message == "the proxy http://proxy.test:3128 cannot be reached: refused"
    assert played.error.errno == 111


@pytest.mark.parametrize(
    ("proxy", "script"),
    [
        (HTTP_PROXY, [HEAD, RESET]),
        (HTTP_PROXY, [HEAD, b"HTTP/1.1 503 Busy\r\n\r\n"]),
        (SOCKS_PROXY, [GREETED, EOF]),
        (SOCKS_PROXY, socks(connect_to("a.test", 443), reply=b"\x05\x05")),
    ],
)
def test_what_a_proxy_has_said_is_not_asked_again(proxy: str, script: list[Any], world: str) -> None:
    scripts = [ConnectError("refused", phase="connect"), script]
    played = play(world, scripts, Ask("https://a.test/"), proxy=Proxy(proxy), retries=5)
    assert type(played.error) is ProxyError
    assert played.sleeps == [0.0]


def test_the_pause_before_a_new_attempt_is_within_the_deadline_F03() -> None:
    backend = ScriptedBackend(otherwise=lambda: ConnectError("refused", phase="connect"))
    block = DeadlineBlock(2.0, runtime=VirtualRuntime(backend.clock))
    with checked_pool(backend, virtual_time=True, proxy=Proxy(HTTP_PROXY), retries=9) as pool:
        before = backend.clock.now()
        block.open()
        try:
            with pytest.raises(DeadlineExceeded) as caught:
                pool.request("GET", "https://a.test/")
        finally:
            block.close(None, None, None)
        assert backend.clock.now() - before == pytest.approx(2.0, abs=1e-6)
        assert backend.sleeps == [0.0, 0.5, 1.0, 2.0]
        assert caught.value.phase == "connect"


# --- names, and who resolves them --------------------------------------------------------------------------

FIRST, SECOND, THIRD = "192.0.2.1", "2001:db8::2", "192.0.2.3"
PACKED: dict[str, Any] = {
    FIRST: connect_to(b"\xc0\x00\x02\x01", 443, version=4),
    SECOND: connect_to(b"\x20\x01\x0d\xb8" + bytes(11) + b"\x02", 443, version=6),
    THIRD: connect_to(b"\xc0\x00\x02\x03", 443, version=4),
}


def asked_for(address: str, code: int = 0, *rest: Any) -> list[Any]:
    return socks(PACKED[address], *rest, reply=bytes([5, code]) + REPLY[2:])


def test_socks5_sends_addresses_that_were_resolved_here(world: str) -> None:
    resolver = Resolver({"a.test": [FIRST, SECOND]})
    played = play(
        world,
        [asked_for(FIRST, 0, HEAD, OK)],
        Ask("https://a.test/"),
        resolver=resolver,
        proxy=Proxy(SOCKS5_PROXY),
    )
    assert played.outcome.status == 200
    assert played.resolved == [("a.test", 443)]
    assert played.connection.hostnames == ["a.test"]  # of the name, whatever the address


def test_socks5h_has_the_proxy_resolve_E12(world: str) -> None:
    resolver = Resolver({})
    script = socks(connect_to("a.test", 443), HEAD, OK)
    played = play(world, [script], Ask("https://a.test/"), resolver=resolver, proxy=Proxy(SOCKS_PROXY))
    assert played.outcome.status == 200
    assert played.resolved == []


def test_socks5_sends_the_name_where_nobody_can_resolve_it(world: str) -> None:
    script = socks(connect_to("a.test", 443), HEAD, OK)
    played = play(world, [script], Ask("https://a.test/"), proxy=Proxy(SOCKS5_PROXY))
    assert played.outcome.status == 200


@pytest.mark.parametrize("code", [3, 4, 5, 6, 8])
def test_an_address_that_the_proxy_cannot_reach_is_passed_over(code: int, world: str) -> None:
    """Each is asked for on a connection of its own, and all that are passed over are closed at once."""
    resolver = Resolver({"a.test": [FIRST, SECOND, THIRD]})
    scripts = [asked_for(FIRST, code), asked_for(SECOND, code), asked_for(THIRD, 0, HEAD, OK)]
    played = play(world, scripts, Ask("https://a.test/"), resolver=resolver, proxy=Proxy(SOCKS5_PROXY))
    assert played.outcome.status == 200
    assert [seen.was_closed for seen in played.connections] == [True, True, False]
    assert played.resolved == [("a.test", 443)]


def test_an_address_that_was_found_twice_is_no_reason_to_stop_at_it(world: str) -> None:
    resolver = Resolver({"a.test": [FIRST, SECOND, FIRST]})
    scripts = [asked_for(FIRST, 5), asked_for(SECOND, 0, HEAD, OK)]
    played = play(world, scripts, Ask("https://a.test/"), resolver=resolver, proxy=Proxy(SOCKS5_PROXY))
    assert played.outcome.status == 200


@pytest.mark.parametrize("code", [1, 2, 7, 9])
def test_what_the_proxy_says_of_itself_ends_the_attempt(code: int, world: str) -> None:
    resolver = Resolver({"a.test": [FIRST, SECOND]})
    scripts = [asked_for(FIRST, code)]
    played = play(
        world, scripts, Ask("https://a.test/"), resolver=resolver, proxy=Proxy(SOCKS5_PROXY), retries=2
    )
    assert type(played.error) is ProxyError


def test_no_address_can_be_reached(world: str) -> None:
    resolver = Resolver({"a.test": [FIRST, SECOND]})
    scripts = [asked_for(FIRST, 3), asked_for(SECOND, 5)]
    played = play(
        world, scripts, Ask("https://a.test/"), resolver=resolver, proxy=Proxy(SOCKS5_PROXY), retries=2
    )
    assert type(played.error) is ProxyError
    assert played.error.errno == errno.ECONNREFUSED
    assert all(seen.was_closed for seen in played.connections)


def test_nor_is_the_proxy_there_any_more(world: str) -> None:
    resolver = Resolver({"a.test": [FIRST, SECOND]})
    scripts = [asked_for(FIRST, 3), ConnectError("refused", phase="connect")]
    played = play(world, scripts, Ask("https://a.test/"), resolver=resolver, proxy=Proxy(SOCKS5_PROXY))
    assert type(played.error) is ConnectError
    assert played.connection.was_closed


def test_a_name_that_is_not_known_is_told_as_the_resolver_does(world: str) -> None:
    unknown = ConnectError("no such name", phase="dns")
    resolver = Resolver({"a.test": unknown})
    played = play(world, [], Ask("https://a.test/"), resolver=resolver, proxy=Proxy(SOCKS5_PROXY))
    assert played.error.message == "no such name"
    assert (played.error.phase, played.error.origin) == ("dns", "https://a.test:443")


def test_a_zone_means_nothing_to_the_proxy(world: str) -> None:
    resolver = Resolver({"a.test": [f"{SECOND}%eth0"]})
    scripts = [asked_for(SECOND, 0, HEAD, OK)]
    played = play(world, scripts, Ask("https://a.test/"), resolver=resolver, proxy=Proxy(SOCKS5_PROXY))
    assert played.outcome.status == 200


def test_resolving_and_all_addresses_share_one_limit_F01() -> None:
    """A second for the look-up, and one for each address to be connected to the proxy, and one for it to be refused."""

    def slowly(address: str, code: int) -> Script:
        *steps, reply = asked_for(address, code)
        return Script(*steps, Delay(1.0), reply, connect_seconds=1.0)

    for limit, phase, opened in [
        (0.5, "dns", 0),
        (1.5, "connect", 0),
        (2.5, "proxy", 1),
        (3.5, "connect", 1),
        (4.5, "proxy", 2),
    ]:
        scripts = [slowly(FIRST, 3), slowly(SECOND, 3)]
        resolver = Resolver({"a.test": [FIRST, SECOND]})
        backend = ResolvingBackend(resolver, *scripts, resolve_seconds=1.0)
        with checked_pool(backend, virtual_time=True, proxy=Proxy(SOCKS5_PROXY)) as pool:
            before = backend.clock.now()
            with pytest.raises(ConnectTimeout) as caught:
                pool.request("GET", "https://a.test/", extensions={"timeout": {"connect": limit}})
            assert backend.clock.now() - before == pytest.approx(limit, abs=1e-6)
        assert (caught.value.phase, caught.value.limit) == (phase, limit)
        assert caught.value.elapsed == pytest.approx(limit, abs=1e-6)
        assert len(backend.streams) == opened


# --- afterwards --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("proxy", [HTTP_PROXY, SOCKS_PROXY])
def test_a_tunnel_that_ends_in_the_body_or_while_it_idles_E11(proxy: str, world: str) -> None:
    begin = [HEAD, ESTABLISHED] if proxy == HTTP_PROXY else socks(connect_to("a.test", 443))
    asks = [Ask("https://a.test/")] * 4
    scripts = [
        [*begin, HEAD, OK, EOF],
        [*begin, HEAD, OK, HEAD, OK[:-1], EOF],
        [*begin, HEAD, OK],
    ]
    played = play(world, scripts, *asks, proxy=Proxy(proxy))
    # The first one had ended when it was to be used again; the second one ended in its second answer.
    assert [getattr(outcome, "status", None) for outcome in played.outcomes] == [200, 200, None, 200]
    assert isinstance(played.outcomes[2], RemoteProtocolError)


def test_a_forwarding_proxy_that_hangs_up_on_a_reused_connection_is_asked_once_more_A17(world: str) -> None:
    asks = [Ask("http://a.test/"), Ask("http://b.test/")]
    played = play(world, [[HEAD, OK, HEAD, EOF], [HEAD, OK]], *asks, proxy=Proxy(HTTP_PROXY))
    assert [outcome.status for outcome in played.outcomes] == [200, 200]


def test_a_refusal_of_what_is_forwarded_is_a_response(world: str) -> None:
    script = [HEAD, b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno", HEAD, OK]
    asks = [Ask("http://a.test/"), Ask("http://b.test/")]
    played = play(world, [script], *asks, proxy=Proxy(HTTP_PROXY))
    assert [outcome.status for outcome in played.outcomes] == [407, 200]


# --- any bytes at all --------------------------------------------------------------------------------------


class FedStream:
    """What `_io.Stream` asks of a stream, from pieces that are there already; never suspends.

    Attributes:
        reads: how often it was read.
        rest: what was not.
    """

    def __init__(self, pieces: list[bytes], *, is_silent: bool) -> None:
        self.rest = [piece for piece in pieces if piece]
        self.reads = 0
        self.written = b""
        self._is_silent = is_silent

    async def read(self, max_bytes: int, timeout: float | None) -> bytes:
        assert max_bytes >= 1
        self.reads += 1
        if not self.rest:
            if self._is_silent:
                raise ReadTimeout(phase="read")
            return b""
        piece = self.rest[0]
        self.rest[:1] = [piece[max_bytes:]] if len(piece) > max_bytes else []
        return piece[:max_bytes]

    async def write(self, buffer: bytes, timeout: float | None) -> None:
        self.written += buffer


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts})
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]


def spoil(data: bytes, place: int, byte: int) -> bytes:
    place %= len(data)
    return data[:place] + bytes([byte]) + data[place + 1 :]


def mutated(valid: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Valid bytes; the same with one byte of another value; and anything."""
    spoiled = st.builds(spoil, valid.filter(bool), st.integers(0, 2000), st.integers(0, 255))
    return st.one_of(valid, spoiled, st.binary(max_size=700))


def run_handshake(handshake: Any, stream: FedStream, *arguments: Any) -> bytes | LaminaError:
    proxy = read_proxy(arguments[0])
    limit = Limit(None, THREADS.now, "connect")
    coroutine: Any = within_proxy(proxy, limit, handshake, stream, proxy, *_filled(arguments[1:], limit))
    try:
        left_over: bytes = drive(coroutine)
    except (ProxyError, ConnectTimeout) as error:  # and nothing else
        return error
    return left_over


def _filled(arguments: tuple[Any, ...], limit: Limit) -> list[Any]:
    return [limit if argument is Limit else argument for argument in arguments]


SOCKS_BYTES = st.builds(
    lambda method, verdict, code, address, rest: (
        method + verdict + bytes([5, code, 0]) + address + b"\0\0" + rest
    ),
    st.sampled_from([NO_AUTH, USER_AUTH, b"\x05\xff"]),
    st.sampled_from([b"", AUTH_OK, b"\x01\x01"]),
    st.sampled_from([0, 0, 0, 1, 5, 99]),
    st.one_of(
        st.binary(min_size=4, max_size=4).map(lambda host: b"\x01" + host),
        st.binary(min_size=16, max_size=16).map(lambda host: b"\x04" + host),
        st.binary(max_size=255).map(lambda host: b"\x03" + bytes([len(host)]) + host),
    ),
    st.binary(max_size=300),
)


def socks_rest(data: bytes) -> bytes | None:
    """What is behind the replies to somebody with credentials, by a reading of its own; `None` for none."""
    if data[:2] == USER_AUTH and data[2:4] == AUTH_OK:
        data = data[4:]
    elif data[:2] == NO_AUTH:
        data = data[2:]
    else:
        return None
    if len(data) < 5 or data[0] != 5 or data[1] != 0 or data[3] not in (1, 3, 4):
        return None
    size = 4 + {1: 4, 4: 16, 3: 1 + data[4]}[data[3]] + 2
    return data[size:] if len(data) >= size else None


@given(data=mutated(SOCKS_BYTES), cuts=st.lists(st.integers(0, 2000), max_size=20), is_silent=st.booleans())
def test_any_bytes_of_a_socks_proxy(data: bytes, cuts: list[int], is_silent: bool) -> None:
    stream = FedStream(pieces_of(data, cuts), is_silent=is_silent)
    result = run_handshake(open_socks, stream, Proxy(SOCKS_PROXY, auth=AUTH), "a.test", 80, Limit)
    expected = socks_rest(data)
    if expected is None:
        assert isinstance(result, LaminaError)
        assert result.phase == "proxy"
        assert PASSWORD not in flattened(result)
    else:
        assert isinstance(result, bytes)
        assert result + b"".join(stream.rest) == expected
    assert stream.reads <= len(data) + 1


HTTP_BYTES = st.builds(
    lambda interim, status, reason, fields, rest: (
        b"".join(b"HTTP/1.1 %d x\r\n\r\n" % code for code in interim)
        + b"HTTP/1.1 %d %b\r\n" % (status, reason)
        + b"".join(b"%b: %b\r\n" % field for field in fields)
        + b"\r\n"
        + rest
    ),
    st.lists(st.integers(100, 199), max_size=3),
    st.sampled_from([200, 200, 200, 204, 299, 300, 407, 502, 999]),
    st.sampled_from([b"", b"OK", b"\xff"]),
    st.lists(
        st.tuples(
            st.sampled_from([b"X", b"Content-Length", b"Transfer-Encoding", b"Connection", b"Upgrade"]),
            st.sampled_from([b"", b"1", b"chunked", b"close", b"h2c"]),
        ),
        max_size=3,
    ),
    st.binary(max_size=300),
)


@given(data=mutated(HTTP_BYTES), cuts=st.lists(st.integers(0, 2000), max_size=20), is_silent=st.booleans())
def test_any_bytes_of_an_http_proxy(data: bytes, cuts: list[int], is_silent: bool) -> None:
    request = Request("GET", "https://a.test/")
    origin = request.url.origin
    stream = FedStream(pieces_of(data, cuts), is_silent=is_silent)
    result = run_handshake(open_tunnel, stream, Proxy(HTTP_PROXY, auth=AUTH), origin, Limit, request)
    if isinstance(result, bytes):
        whole = result + b"".join(stream.rest)
        assert data.endswith(whole)
        assert data[: len(data) - len(whole)].endswith((b"\r\n\r\n", b"\n\n", b"\n\r\n"))
    else:
        assert result.phase == "proxy"
        assert PASSWORD not in flattened(result)
    assert stream.reads <= len(data) + 1


@pytest.mark.parametrize(
    "piece", [b"\0", b"\x05", b"\x05\0", b"\xff" * 65536, b"HTTP/1.1 200 OK\r\n", b"\r\n", b" "]
)
def test_no_bytes_are_read_for_ever(piece: bytes) -> None:
    """Neither handshake takes more than its answer may have, whatever comes."""

    class Endless(FedStream):
        async def read(self, max_bytes: int, timeout: float | None) -> bytes:
            self.reads += 1
            return piece[:max_bytes]

    request = Request("GET", "https://a.test/")
    stream = Endless([], is_silent=True)
    run_handshake(open_tunnel, stream, Proxy(HTTP_PROXY), request.url.origin, Limit, request)
    assert stream.reads * len(piece) <= MAX_HEAD_BYTES + 65536 + len(piece)
    stream = Endless([], is_silent=True)
    run_handshake(open_socks, stream, Proxy(SOCKS_PROXY), "a.test", 80, Limit)
    assert stream.reads <= 300


def test_an_error_of_the_streams_own_is_not_taken_for_the_proxys() -> None:
    """What a custom stream raises, and is no fault of the network, comes out as it is."""

    class Odd(FedStream):
        async def read(self, max_bytes: int, timeout: float | None) -> bytes:
            raise ValueError("a slip of the stream's author")

    request = Request("GET", "https://a.test/")
    with pytest.raises(ValueError, match="slip"):
        run_handshake(open_socks, Odd([], is_silent=False), Proxy(SOCKS_PROXY), "a.test", 80, Limit)
    with pytest.raises(ValueError, match="slip"):
        run_handshake(
            open_tunnel, Odd([], is_silent=False), Proxy(HTTP_PROXY), request.url.origin, Limit, request
        )


def test_reading_that_fails_keeps_its_cause_and_number() -> None:
    class Broken(FedStream):
        async def read(self, max_bytes: int, timeout: float | None) -> bytes:
            raise ReadError("reset", errno=errno.ECONNRESET, phase="read")

    error = run_handshake(open_socks, Broken([], is_silent=False), Proxy(SOCKS_PROXY), "a.test", 80, Limit)
    assert isinstance(error, ProxyError)
    assert error.errno == errno.ECONNRESET
    assert isinstance(error.__cause__, ReadError)
