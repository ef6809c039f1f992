"""httpx and httpx2 over lamina, against real servers and bad ones, beside their own transports."""

from __future__ import annotations

import importlib.util
import inspect
import json
import select
import socket
import ssl
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, cast

import pytest

import lamina
from lamina._httpx_transports import DEADLINES, AsyncOptions, BlockingOptions, Settings
from lamina_interfaces import ConnectAttempt, LaminaError
from stack_helpers import FaultServer, missing, read_head, response
from stack_httpx import LAMINA, OWN, Library
from stack_httpx import library as library
from stack_proxies import PASSWORD, USER
from stack_servers import HELLO
from stack_worlds import Cancelled, World, at_once

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lamina import Proxy
    from stack_helpers import Certificates
    from stack_httpx import Client
    from stack_proxies import RunningProxy
    from stack_servers import Server

WORLDS = ["sync", "asyncio", "trio"]


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    """Each runtime; that every backend keeps the contract is shown elsewhere."""
    return World(request.param)


def trusting(certificates: Certificates, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.authority)
    context.set_alpn_protocols(protocols)
    return context


# --- the same answers as from the library's own transport ----------------------------------------------------


def facts(answer: Any) -> dict[str, Any]:
    """What a caller sees of a response, but for what differs from one second or connection to the next."""
    return {
        "status": answer.status_code,
        "headers": [pair for pair in answer.headers.raw if pair[0].lower() != b"date"],
        "content": answer.content,
        "version": answer.http_version,
        "reason": answer.reason_phrase,
        "url": str(answer.url),
        "history": [each.status_code for each in answer.history],
    }


async def converse(world: World, client: Client, base: str) -> list[Any]:
    """Requests of each kind, and what comes of them."""
    answers = [
        await client.get(f"{base}/hello"),
        await client.get(f"{base}/echo", params={"token": "a b/c?d=ä"}),
        await client.head(f"{base}/hello"),
        await client.get(f"{base}/nothing-here"),
        await client.post(f"{base}/upload", content=b"x" * 100_000),
        await client.post(f"{base}/upload", content=world.body(iter([b"y" * 1000] * 30))),
        await client.put(f"{base}/upload", data={"field": "value"}),
        await client.post(f"{base}/upload", json={"a": [1, 2]}),
        await client.request(
            "DELETE", f"{base}/echo?token=gone", headers=[("X-Twice", "1"), ("X-Twice", "2")]
        ),
        await client.post(f"{base}/upload", files={"f": ("name.txt", b"z" * 70_000)}),
    ]
    return [facts(answer) for answer in answers]


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP1", "HTTP2"])
@pytest.mark.parametrize("peer", ["nginx", "hypercorn"])
async def test_answers_are_those_of_the_own_transport(
    request: pytest.FixtureRequest,
    world: World,
    library: Library,
    certificates: Certificates,
    peer: str,
    http2: bool,
) -> None:
    server: Server = request.getfixturevalue(peer)
    protocols = ["h2", "http/1.1"] if http2 else ["http/1.1"]
    seen = []
    for whose in (OWN, LAMINA):
        transport = library.transport(world, whose, verify=trusting(certificates, *protocols), http2=http2)
        async with library.open(world, transport) as client:
            seen.append(await converse(world, client, server.https))
    own, ours = seen
    assert ours[0]["content"] == HELLO
    assert ours[0]["version"] == ("HTTP/2" if http2 else "HTTP/1.1")
    assert ours == own


# --- the same errors -----------------------------------------------------------------------------------------


def answering(*pieces: bytes, then: Callable[[socket.socket], None] | None = None) -> Callable[..., None]:
    """A server that reads a head, sends this, and hangs up."""

    def behave(sock: socket.socket) -> None:
        read_head(sock)
        for piece in pieces:
            sock.sendall(piece)
        if then is not None:
            then(sock)

    return behave


def stall(sock: socket.socket) -> None:
    """Send nothing until the client hangs up."""
    while sock.recv(65536):
        pass


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def take_nothing(sock: socket.socket) -> None:
    """Read no byte until the client hangs up. The kernel takes some, so the client has to send more than that."""
    waiting = select.poll()
    waiting.register(sock, select.POLLRDHUP)
    waiting.poll(20_000)


CUT = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
SERVERS: dict[str, tuple[str, Callable[..., None]]] = {
    "garbage": ("RemoteProtocolError", answering(b"this is no HTTP\r\n\r\n")),
    "nothing": ("RemoteProtocolError", answering()),
    "reset": ("ReadError", answering(then=reset)),
    "silence": ("ReadTimeout", answering(then=stall)),
    "cut head": ("RemoteProtocolError", answering(b"HTTP/1.1 200 OK\r\nContent-")),
    "cut body": ("RemoteProtocolError", answering(CUT)),
    "reset body": ("ReadError", answering(CUT, then=reset)),
    "stalled body": ("ReadTimeout", answering(CUT, then=stall)),
    "bad chunk": (
        "RemoteProtocolError",
        answering(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nXX\r\n"),
    ),
}
SHORT = 0.1
"""Seconds until what never comes is given up."""


async def failure(client: Client, *arguments: Any, **options: Any) -> Any:
    """The error that comes of a request."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one it is, the caller asks
        await client.request(*arguments, **options)
    return caught.value


def check_error(library: Library, error: Any, name: str) -> None:
    """An error of the library's, of this class, that says what happened, and to which request."""
    assert type(error) is getattr(library.client, name), repr(error)
    assert isinstance(error, library.client.TransportError)
    assert isinstance(error.__cause__, LaminaError)
    assert str(error) == str(error.__cause__) != ""
    assert isinstance(error.request, library.client.Request)


async def check_failure(
    world: World, library: Library, name: str, *arguments: Any, timeout: dict[str, float], **options: Any
) -> None:
    """A request fails in the same way over the library's own transport and over ours."""
    # Left half-way, an async body of the library's is finalised with a warning under its own transport.
    for whose in (LAMINA,) if world.is_async and "content" in options else (OWN, LAMINA):
        transport = library.transport(world, whose)
        async with library.open(world, transport, timeout=library.client.Timeout(20.0, **timeout)) as client:
            error = await failure(client, *arguments, **options)
            assert type(error).__name__ == name, (whose, repr(error))
            if whose == LAMINA:
                check_error(library, error, name)
                assert transport.pool.connections == []


@pytest.mark.parametrize("fault", SERVERS)
async def test_errors_are_those_of_the_own_transport(
    world: World, library: Library, fault_server: Callable[..., FaultServer], fault: str
) -> None:
    name, behave = SERVERS[fault]
    timeout = {"read": SHORT} if name == "ReadTimeout" else {}
    await check_failure(world, library, name, "GET", fault_server(behave).url, timeout=timeout)


async def test_errors_of_connecting(
    world: World,
    library: Library,
    certificates: Certificates,
    fault_server: Callable[..., FaultServer],
    refusing_port: int,
) -> None:
    untrusted = fault_server(answering(), context=certificates.server)
    plain = fault_server(lambda sock: sock.sendall(b"this is no TLS, and never will be\r\n"))
    for url, name in {
        f"http://127.0.0.1:{refusing_port}/": "ConnectError",
        untrusted.url: "ConnectError",
        f"https://127.0.0.1:{plain.port}/": "ConnectError",
        "ftp://127.0.0.1/": "UnsupportedProtocol",
    }.items():
        await check_failure(world, library, name, "GET", url, timeout={})
    silent = f"https://127.0.0.1:{fault_server(stall).port}/"
    await check_failure(world, library, "ConnectTimeout", "GET", silent, timeout={"connect": SHORT})


async def test_errors_of_sending(
    world: World, library: Library, fault_server: Callable[..., FaultServer]
) -> None:
    url = fault_server(take_nothing).url
    large = b"x" * 20_000_000
    await check_failure(world, library, "WriteTimeout", "POST", url, timeout={"write": SHORT}, content=large)
    wrong: dict[str, Any] = {"content": b"12345", "headers": {"Content-Length": "3"}}
    await check_failure(world, library, "LocalProtocolError", "POST", url, timeout={}, **wrong)


async def test_a_full_pool_is_a_pool_timeout(
    world: World, library: Library, fault_server: Callable[..., FaultServer]
) -> None:
    url = fault_server(answering(CUT, then=stall)).url
    timeout = library.client.Timeout(20.0, pool=SHORT)
    transport = library.transport(world, limits=library.client.Limits(max_connections=1))
    async with library.open(world, transport, timeout=timeout) as client:
        async with client.stream("GET", url):
            check_error(library, await failure(client, "GET", url), "PoolTimeout")
        assert transport.pool.connections == []


async def test_an_error_in_a_streamed_body(
    world: World, library: Library, fault_server: Callable[..., FaultServer]
) -> None:
    async with library.open(world) as client, client.stream("GET", fault_server(answering(CUT)).url) as got:
        pieces = []
        with pytest.raises(library.client.RemoteProtocolError) as caught:
            async for piece in got.pieces():
                pieces.append(piece)  # noqa: PERF401 - the error comes after the first
    assert pieces == [b"abc"]
    check_error(library, caught.value, "RemoteProtocolError")


async def test_an_error_of_the_callers_own_body_comes_out_as_it_is(
    world: World, library: Library, nginx: Server
) -> None:
    class Mine(Exception):
        pass

    def broken() -> Iterator[bytes]:
        yield b"abc"
        raise Mine

    transport = library.transport(world)
    async with library.open(world, transport) as client:
        with pytest.raises(Mine):
            await client.post(f"{nginx.http}/upload", content=world.body(broken()))
        assert transport.pool.connections == []
        assert (await client.get(f"{nginx.http}/hello")).content == HELLO


async def test_the_end_of_an_ambient_deadline_is_a_time_out(
    world: World, library: Library, fault_server: Callable[..., FaultServer]
) -> None:
    """In a task the block may end as one first, which is no error of the client's."""
    url = fault_server(answering(then=stall)).url
    async with library.open(world, timeout=None) as client:
        either = (library.client.TimeoutException, lamina.DeadlineExceeded)
        with pytest.raises(either) as caught, lamina.timeout(SHORT):
            await client.get(url)
        error: Any = caught.value
        if not world.is_async:
            assert isinstance(error.__cause__, lamina.DeadlineExceeded)
            # Nearly always while it waits for the answer; on a busy machine while it connects.
            check_error(library, error, DEADLINES[error.__cause__.phase or ""].__name__)


async def test_a_closed_transport_sends_nothing(world: World, library: Library) -> None:
    transport = library.transport(world)
    async with library.open(world, transport):
        pass
    async with library.open(world, transport) as client:
        check_error(library, await failure(client, "GET", "http://127.0.0.1:1/"), "TransportError")


EXPECTED = {
    "ArgumentTypeError": None,
    "ArgumentValueError": None,
    "BackendNotFound": "TransportError",
    "ConcurrencyError": "TransportError",
    "ConnectError": "ConnectError",
    "ConnectTimeout": "ConnectTimeout",
    "ConnectionNotAvailable": "ConnectError",
    "DeadlineExceeded": "TimeoutException",
    "InvalidURL": "InvalidURL",
    "LaminaError": "TransportError",
    "LocalProtocolError": "LocalProtocolError",
    "NetworkError": "NetworkError",
    "OriginMismatch": None,
    "PoolClosed": "TransportError",
    "PoolTimeout": "PoolTimeout",
    "ProtocolError": "ProtocolError",
    "ProxyError": "ProxyError",
    "ReadError": "ReadError",
    "ReadTimeout": "ReadTimeout",
    "RemoteProtocolError": "RemoteProtocolError",
    "ResponseStateError": "TransportError",
    "TimeoutException": "TimeoutException",
    "TimeoutStateError": "TransportError",
    "UnsupportedProtocol": "UnsupportedProtocol",
    "WriteError": "WriteError",
    "WriteTimeout": "WriteTimeout",
}
"""Every error of lamina, and what becomes of it; `None` for one that stays."""


def all_errors() -> Iterator[type[LaminaError]]:
    """The tree, but for what tests and the command line define for themselves."""
    for name in lamina.__all__:
        kind = getattr(lamina, name)  # many are imported only now
        if isinstance(kind, type) and issubclass(kind, LaminaError):
            yield kind


def test_the_table_of_errors_is_complete() -> None:
    assert {kind.__name__ for kind in all_errors()} == EXPECTED.keys()


def refusing_with(library: Library, error: LaminaError) -> Any:
    """A transport whose backend raises this, whatever it is asked."""

    class Backend(lamina.NetworkBackend):
        def connect_tcp(self, *arguments: Any, **options: Any) -> Any:
            raise error

    return library.lamina.HTTPTransport(network_backend=Backend())


def blocking_failure(library: Library, transport: Any, url: str) -> Any:
    client = library.client.Client(transport=transport, trust_env=False)
    with client, pytest.raises(Exception) as caught:  # noqa: PT011 - which one it is, the caller asks
        client.get(url)
    return caught.value


@pytest.mark.parametrize("name", EXPECTED)
def test_every_error_has_its_class(library: Library, name: str) -> None:
    kind = getattr(lamina, name)
    attempts = [ConnectAttempt("192.0.2.1:80", None, 0.5)]
    error = kind("what happened", attempts=attempts)
    expected = EXPECTED[name]
    got = blocking_failure(library, refusing_with(library, error), "http://192.0.2.1/")
    assert "what happened" in str(got)
    if expected is None:
        assert type(got) is kind
        assert isinstance(got, (TypeError, ValueError))
        return
    assert type(got) is getattr(library.client, expected)
    assert isinstance(got.__cause__, kind)
    assert "tried 192.0.2.1:80" in str(got)
    if expected != "InvalidURL":  # which has no request, wherever it comes from
        assert str(got.request.url) == "http://192.0.2.1/"


def test_a_deadline_is_the_time_out_of_what_was_being_done(library: Library) -> None:
    assert {phase: kind.__name__ for phase, kind in DEADLINES.items()} == {
        "pool": "PoolTimeout",
        "dns": "ConnectTimeout",
        "connect": "ConnectTimeout",
        "tls": "ConnectTimeout",
        "proxy": "ConnectTimeout",
        "write": "WriteTimeout",
        "read": "ReadTimeout",
    }
    for phase, expected in DEADLINES.items():
        error = lamina.DeadlineExceeded(phase=cast("Any", phase))
        got = blocking_failure(library, refusing_with(library, error), "http://192.0.2.1/")
        assert type(got) is getattr(library.client, expected.__name__)


# --- what goes in and what comes out -------------------------------------------------------------------------


async def test_extensions_go_in(world: World, library: Library, certificates: Certificates) -> None:
    names: list[str] = []
    seen: list[str | None] = []

    def note_name(sock: Any, name: str | None, context: Any) -> None:
        seen.append(name)

    def trace(name: str, info: Any) -> None:
        names.append(name)

    async def async_trace(name: str, info: Any) -> None:
        names.append(name)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.sni_callback = note_name
    targets: list[bytes] = []

    def behave(sock: socket.socket) -> None:
        targets.append(read_head(sock).split(b" ")[1])
        sock.sendall(response(b""))

    with FaultServer(behave, context=context) as server:
        transport = library.transport(world, verify=trusting(certificates, "http/1.1"))
        async with library.open(world, transport) as client:
            answer = await client.get(
                server.url,
                extensions={
                    "sni_hostname": "localhost",
                    "target": b"*",
                    "trace": async_trace if world.is_async else trace,
                    "somebody-else's": object(),
                },
            )
    assert answer.status_code == 200
    assert seen == ["localhost"]
    assert targets == [b"*"]
    assert names[0] == "connection.connect_tcp.started"
    assert "http11.receive_response_headers.complete" in names


async def test_extensions_come_out(
    world: World, library: Library, certificates: Certificates, nginx: Server
) -> None:
    transport = library.transport(world, verify=trusting(certificates, "h2", "http/1.1"), http2=True)
    async with library.open(world, transport) as client:
        answer = await client.get(f"{nginx.https}/hello")
        stream = answer.extensions["network_stream"]
        assert answer.extensions["http_version"] == b"HTTP/2"
        assert answer.extensions["stream_id"] == 1
        assert stream.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        answer = await client.get(f"{nginx.http}/trailers")
        assert answer.extensions["http_version"] == b"HTTP/1.1"
        assert answer.extensions["reason_phrase"] == b"OK"
        stream = answer.extensions["network_stream"]
        assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"


async def test_what_is_sent_is_raw(
    world: World, library: Library, fault_server: Callable[..., FaultServer]
) -> None:
    heads: list[bytes] = []

    def behave(sock: socket.socket) -> None:
        heads.append(read_head(sock))
        sock.sendall(
            b"HTTP/1.1 299 Odd  Reason\r\nX-Mixed-Case: 1\r\nx-twice: a\r\nX-Twice: b\r\nConnection: close\r\n\r\nbody"
        )

    url = fault_server(behave).url
    async with library.open(world) as client:
        client.real.headers.clear()
        answer = await client.get(f"{url}/a%2Fb?q=%20&r", headers={"X-MiXed": "ä".encode()})
    assert heads[0].split(b"\r\n") == [
        b"GET /a%2Fb?q=%20&r HTTP/1.1",
        b"Host: " + url.removeprefix("http://").encode(),
        b"X-MiXed: \xc3\xa4",
        b"",
        b"",
    ]
    assert answer.headers.raw[:3] == [(b"X-Mixed-Case", b"1"), (b"x-twice", b"a"), (b"X-Twice", b"b")]
    assert (answer.status_code, answer.reason_phrase, answer.content) == (299, "Odd  Reason", b"body")


async def test_a_body_streams_as_it_comes(
    world: World, library: Library, fault_server: Callable[..., FaultServer]
) -> None:
    may_go_on = threading.Event()

    def behave(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n")
        assert may_go_on.wait(20.0)
        sock.sendall(b"3\r\ntwo\r\n0\r\n\r\n")

    async with library.open(world) as client, client.stream("GET", fault_server(behave).url) as got:
        pieces = []
        async for piece in got.pieces():
            pieces.append(piece)
            may_go_on.set()
    assert pieces == [b"one", b"two"]


async def test_closing_early_gives_the_connection_up(
    world: World, library: Library, no_socket_left: None, fault_server: Callable[..., FaultServer]
) -> None:
    transport = library.transport(world)
    async with library.open(world, transport) as client:
        async with client.stream("GET", fault_server(answering(CUT, then=stall)).url) as got:
            assert got.status_code == 200
            assert transport.pool.stats().active == 1
        assert transport.pool.connections == []


async def test_a_body_of_bytes_may_be_repeated(
    world: World, library: Library, fault_server: Callable[..., FaultServer]
) -> None:
    """PUT is sent again where a connection that was kept has turned out to be dead: its whole body is known."""
    bodies: list[bytes] = []
    numbers = iter(range(1, 100))

    def behave(sock: socket.socket) -> None:
        number = next(numbers)
        file = sock.makefile("rb")
        while file.readline():
            while file.readline().strip():
                pass
            bodies.append(file.read(3))
            if number == 1 and len(bodies) == 2:
                return
            sock.sendall(response(b"ok"))

    url = fault_server(behave).url
    async with library.open(world) as client:
        for _ in range(2):
            assert (await client.put(url, content=b"abc")).content == b"ok"
    assert bodies == [b"abc"] * 3


# --- settings --------------------------------------------------------------------------------------------------


async def test_mounts(
    world: World, library: Library, fault_server: Callable[..., FaultServer], nginx: Server
) -> None:
    mounted, other = library.transport(world, local_address="127.0.0.2"), library.transport(world)
    addresses: list[str] = []

    def behave(sock: socket.socket) -> None:
        addresses.append(sock.getpeername()[0])
        read_head(sock)
        sock.sendall(response(b""))

    servers = [fault_server(behave), fault_server(behave)]
    key = f"all://127.0.0.1:{servers[0].port}"
    async with library.open(world, other, mounts={key: mounted}) as client:
        for server in servers:
            await client.get(server.url)
    assert addresses == ["127.0.0.2", "127.0.0.1"]


async def test_a_unix_socket(world: World, library: Library, nginx: Server) -> None:
    async with library.open(world, library.transport(world, uds=nginx.uds)) as client:
        assert (await client.get("http://any.example/hello")).content == HELLO


async def test_options_of_the_pool(world: World, library: Library, nginx: Server) -> None:
    class Connecting:
        def __init__(self, backend: Any) -> None:
            self.connect_tcp = backend.connect_tcp
            self.sleep = backend.sleep

    backend = Connecting(world.public_backend())
    transport = library.transport(
        world, network_backend=backend, max_connections_per_origin=1, max_connection_age=100.0
    )
    timeout = library.client.Timeout(20.0, pool=SHORT)
    async with library.open(world, transport, timeout=timeout) as client:
        async with client.stream("GET", f"{nginx.http}/hello"):
            check_error(library, await failure(client, "GET", f"{nginx.http}/hello"), "PoolTimeout")
            async with client.stream("GET", f"http://localhost:{nginx.http.rpartition(':')[2]}/hello"):
                pass
        assert (await client.get(f"{nginx.http}/hello")).content == HELLO


async def test_a_pool_of_the_callers_own_outlives_the_client(
    world: World, library: Library, nginx: Server
) -> None:
    pool: Any = world.pool()
    real = pool if world.is_async else pool.blocking
    for _ in range(2):
        async with library.open(world, library.transport(world, pool=real)) as client:
            assert (await client.get(f"{nginx.http}/hello")).content == HELLO
    assert len(real.connections) == 1
    await pool.aclose()


def test_a_pool_that_is_given_has_its_settings(library: Library) -> None:
    with lamina.ConnectionPool() as pool:
        for options in ({"http2": True}, {"limits": library.client.Limits()}, {"max_connection_age": 1.0}):
            with pytest.raises(lamina.ArgumentValueError, match="where it is made"):
                library.lamina.HTTPTransport(pool=pool, **options)
        with pytest.raises(lamina.ArgumentTypeError, match="must be a AsyncConnectionPool"):
            library.lamina.AsyncHTTPTransport(pool=pool)
        with pytest.raises(TypeError):
            library.lamina.HTTPTransport(no_such_option=1)


@pytest.mark.parametrize("name", ["HTTPTransport", "AsyncHTTPTransport"])
def test_the_arguments_are_those_of_the_own_transport(library: Library, name: str) -> None:
    own = inspect.signature(getattr(library.client, name)).parameters
    ours = inspect.signature(getattr(library.lamina, name)).parameters
    assert list(ours)[: len(own)] == list(own)
    assert [ours[each].kind for each in own] == [own[each].kind for each in own]
    # `None` stands for the library's own limits, for which there is no public name.
    assert {each: ours[each].default for each in own if each != "limits"} == {
        each: own[each].default for each in own if each != "limits"
    }
    limits = own["limits"].default
    arguments = library.lamina._LIBRARY.pool_arguments(Settings())
    for each in ("max_connections", "max_keepalive_connections", "keepalive_expiry"):
        assert arguments[each] == getattr(limits, each)


def test_importing_it_imports_nothing_slow_besides(library: Library) -> None:
    code = f"""
import sys
import {library.name}
before = set(sys.modules)
import lamina.{library.name}
print(*sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert f"lamina.{library.name}" in imported
    assert not imported & {"asyncio", "anyio", "trio", "ssl", "h2", "certifi", "httpcore", "httpcore2"}


def test_settings_reach_the_pool_as_they_are(library: Library) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    limits = library.client.Limits(max_connections=7, max_keepalive_connections=None, keepalive_expiry=None)
    option = (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    settings = Settings(
        verify=context,
        http1=False,
        http2=True,
        limits=limits,
        proxy=library.client.Proxy(
            "https://proxy.example:8443", auth=("ü", "p"), headers={"X-To": "the proxy"}, ssl_context=context
        ),
        local_address="127.0.0.2",
        retries=3,
        socket_options=[option],
    )
    arguments = library.lamina._LIBRARY.pool_arguments(settings)
    proxy = arguments.pop("proxy")
    assert arguments == {
        "ssl_context": context,
        "max_connections": 7,
        "max_keepalive_connections": None,
        "keepalive_expiry": None,
        "http1": False,
        "http2": True,
        "retries": 3,
        "local_address": "127.0.0.2",
        "uds": None,
        "socket_options": [option],
    }
    assert (bytes(proxy.url.with_target(b"")), proxy.ssl_context) == (b"https://proxy.example:8443", context)
    assert proxy.auth == ("ü".encode(), b"p")
    assert (b"X-To", b"the proxy") in proxy.headers


@pytest.mark.parametrize("prefix", ["", "Async"])
def test_every_option_of_a_pool_is_there(prefix: str) -> None:
    """Under httpx's name for it, or under our own."""
    theirs = Library("httpx").lamina._LIBRARY.pool_arguments(Settings())
    ours = {"": BlockingOptions, "Async": AsyncOptions}[prefix].__annotations__
    assert {*theirs, *ours} == set(inspect.signature(getattr(lamina, f"{prefix}ConnectionPool")).parameters)


# --- TLS -------------------------------------------------------------------------------------------------------


class Untouchable(ssl.SSLContext):
    """A context that is not to be changed."""

    is_ready = False

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        assert not self.is_ready, "a caller's context was changed"
        super().set_alpn_protocols(alpn_protocols)

    def load_cert_chain(self, certfile: Any, keyfile: Any = None, password: Any = None) -> None:
        raise AssertionError("a caller's context was changed")


def test_a_context_is_used_as_it_is(library: Library, certificates: Certificates, nginx: Server) -> None:
    context = Untouchable(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certificates.authority)
    context.set_alpn_protocols(["h2"])
    context.is_ready = True
    transport = library.lamina.HTTPTransport(verify=context, http2=True)
    with library.client.Client(transport=transport, trust_env=False) as client:
        assert client.get(f"{nginx.https}/hello").http_version == "HTTP/2"
    with pytest.raises(lamina.ArgumentValueError, match="load_cert_chain"):
        library.lamina.HTTPTransport(verify=context, cert="client.pem")
    with pytest.raises(lamina.ArgumentTypeError, match="not PosixPath"):
        library.lamina.HTTPTransport(verify=certificates.authority)


@pytest.mark.parametrize(("http1", "http2"), [(True, False), (True, True), (False, True), ("", "yes")])
def test_the_default_context_offers_what_may_be_spoken(
    library: Library,
    certificates: Certificates,
    nginx: Server,
    monkeypatch: pytest.MonkeyPatch,
    http1: Any,
    http2: Any,
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    transport = library.lamina.HTTPTransport(http1=http1, http2=http2)
    with library.client.Client(transport=transport, trust_env=False) as client:
        answer = client.get(f"{nginx.https}/hello")
    assert answer.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    transport = library.lamina.HTTPTransport(trust_env=False)
    check_error(library, blocking_failure(library, transport, f"{nginx.https}/hello"), "ConnectError")


def test_verify_may_be_a_path_or_false(library: Library, certificates: Certificates, nginx: Server) -> None:
    with pytest.warns(DeprecationWarning, match="verify=<str>"):  # the library's own
        by_path = library.lamina.HTTPTransport(verify=str(certificates.authority))
    for transport in (by_path, library.lamina.HTTPTransport(verify=False, http2=True)):
        with library.client.Client(transport=transport, trust_env=False) as client:
            assert client.get(f"{nginx.https}/hello").content == HELLO


@pytest.mark.parametrize("parts", [1, 2])
def test_a_client_certificate(
    library: Library, certificates: Certificates, tmp_path: Path, parts: int
) -> None:
    seen: list[Any] = []

    def behave(sock: socket.socket) -> None:
        seen.append(cast("ssl.SSLSocket", sock).getpeercert())
        read_head(sock)
        sock.sendall(response(b""))

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.authority)
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.verify_mode = ssl.CERT_REQUIRED
    pair = (str(certificates.certificate), str(certificates.key))
    cert = str(certificates.pair(tmp_path)) if parts == 1 else pair
    with FaultServer(behave, context=context) as server:
        transport = library.lamina.HTTPTransport(verify=False, cert=cert)
        with library.client.Client(transport=transport, trust_env=False) as client:
            client.get(server.url)
    assert seen[0]["subjectAltName"]


# --- many at once, and cancellation ------------------------------------------------------------------------------


async def test_many_at_once(world: World, library: Library, nginx: Server) -> None:
    transport = library.transport(world, limits=library.client.Limits(max_connections=3))
    async with library.open(world, transport) as client:

        async def work(number: int) -> None:
            for _ in range(5):
                assert (await client.get(f"{nginx.http}/echo?token={number}")).text == f"GET {number}"

        await at_once(world, 8, work)
        stats = transport.pool.stats()
        assert (stats.active, stats.queued) == (0, 0)
        assert len(transport.pool.connections) <= 3


@pytest.mark.parametrize("http2", [False, True], ids=["HTTP1", "HTTP2"])
async def test_cancelling_leaves_nothing_behind(
    library: Library,
    async_world: World,
    certificates: Certificates,
    nginx: Server,
    no_socket_left: None,
    fault_server: Callable[..., FaultServer],
    http2: bool,
) -> None:
    world = async_world
    begun = threading.Event()

    def behave(sock: socket.socket) -> None:
        read_head(sock)
        begun.set()
        stall(sock)

    transport = library.transport(
        world,
        verify=trusting(certificates, *["h2"] * http2, "http/1.1"),
        http2=http2,
        limits=library.client.Limits(max_connections=2),
    )
    silent = fault_server(behave).url
    stalled = fault_server(answering(CUT, then=stall)).url
    got_head = threading.Event()
    async with library.open(world, transport, timeout=None) as client:

        async def read_slowly() -> None:
            async with client.stream("GET", stalled) as got:
                got_head.set()
                await got.read()

        async with world.jobs() as jobs:
            waiting = jobs.start(client.get, silent)
            await world.until(begun.is_set)
            reading = jobs.start(read_slowly)
            await world.until(got_head.is_set)
            queued = jobs.start(client.get, f"{nginx.https}/hello")
            await world.until(lambda: transport.pool.stats().queued == 1)
            for job in (queued, reading, waiting):
                job.cancel()
                assert isinstance(await job.outcome(world), Cancelled)
        stats = transport.pool.stats()
        assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0)
        assert transport.pool.connections == []
        answers = await at_once(world, 4, lambda _: client.get(f"{nginx.https}/hello"))
        assert [each.http_version for each in answers] == ["HTTP/2" if http2 else "HTTP/1.1"] * 4


# --- after a switch of protocols -----------------------------------------------------------------------------------

SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\nConnection: upgrade\r\n\r\nfirst"


@pytest.mark.parametrize("is_client", [False, True], ids=["stream closed", "client closed"])
async def test_a_switched_stream_has_the_errors_that_the_library_expects(
    world: World, library: Library, fault_server: Callable[..., FaultServer], is_client: bool
) -> None:
    core: Any = importlib.import_module({"httpx": "httpcore", "httpx2": "httpcore2"}[library.name])

    def behave(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(SWITCHING)
        sock.sendall(sock.recv(5, socket.MSG_WAITALL))
        stall(sock)

    headers = {"Connection": "upgrade", "Upgrade": "echo"}
    transport = library.transport(world)
    async with library.open(world, transport) as client:
        async with client.stream("GET", fault_server(behave).url, headers=headers) as got:
            stream: Any = got.extensions["network_stream"]
            kind = lamina.AsyncNetworkStream if world.is_async else lamina.NetworkStream
            assert issubclass(type(stream), kind)

            async def do(method: str, *arguments: Any, **options: Any) -> Any:
                outcome = getattr(stream, method)(*arguments, **options)
                return await outcome if world.is_async else outcome

            assert await do("read", 100) == b"first"
            await do("write", b"hello")
            assert await do("read", 100) == b"hello"
            assert stream.get_extra_info("server_addr")[0] == "127.0.0.1"
            with pytest.raises(core.ReadTimeout):
                await do("read", 100, timeout=SHORT)
            closed = client.real if is_client else stream
            if world.is_async:
                await closed.aclose()
            else:
                closed.close()
            with pytest.raises(core.ReadError):
                await do("read", 100)
            with pytest.raises(core.WriteError):
                await do("write", b"more")
        assert transport.pool.connections == []


async def test_websockets_of_httpx2(world: World, hypercorn: Server, certificates: Certificates) -> None:
    """httpx2 speaks WebSockets over the transport that it has, by itself."""
    if importlib.util.find_spec("wsproto") is None:
        missing("wsproto")
    library = Library("httpx2")
    transport = library.transport(world, verify=trusting(certificates, "http/1.1"))
    async with library.open(world, transport) as client:
        address = f"{hypercorn.https}/".replace("https", "wss")
        if world.is_async:
            async with client.real.websocket(address) as session:
                await session.send_text("hello")
                assert await session.receive_text(timeout=20.0) == "hello"
        else:
            with client.real.websocket(address) as blocking:
                blocking.send_text("hello")
                assert blocking.receive_text(timeout=20.0) == "hello"
        assert transport.pool.stats().active == 0


# --- proxies -------------------------------------------------------------------------------------------------------

PROXIES = [
    "tinyproxy",
    "tinyproxy_auth",
    "haproxy_http",
    "haproxy_https",
    "stunnel",
    "microsocks",
    "microsocks_auth",
    "danted",
]


def own_proxy(library: Library, proxy: Proxy) -> Any:
    """The library's `Proxy` for one of ours."""
    auth = None if proxy.auth is None else (proxy.auth[0].decode(), proxy.auth[1].decode())
    url = bytes(proxy.url.with_target(b"")).decode()
    return library.client.Proxy(url, auth=auth, ssl_context=proxy.ssl_context)


@pytest.mark.parametrize("peer", PROXIES)
async def test_proxies(
    request: pytest.FixtureRequest,
    world: World,
    library: Library,
    certificates: Certificates,
    nginx: Server,
    peer: str,
) -> None:
    running: RunningProxy = request.getfixturevalue(peer)
    seen: dict[str, list[Any]] = {OWN: [], LAMINA: []}
    for method, url, content in (
        ("GET", f"{nginx.http}/echo?token=1", None),
        ("POST", f"{nginx.http}/upload", b"x" * 1000),
        ("GET", f"{nginx.https}/echo?token=2", None),
        ("POST", f"{nginx.https}/upload", b"x" * 70_000),
    ):
        for whose, answers in seen.items():
            # A client for each request: some of these proxies hang up after one, and a client may see that too late.
            transport = library.transport(
                world,
                whose,
                verify=trusting(certificates, "h2", "http/1.1"),
                http2=True,
                proxy=own_proxy(library, running.proxy(certificates)),
            )
            async with library.open(world, transport) as client:
                body = None if content is None else world.body(iter([content] * 3))
                answer = await client.request(method, url, content=body)
                answers.append((answer.status_code, answer.content, answer.http_version))
    ours = seen[LAMINA]
    assert ours == seen[OWN]
    assert [each[0] for each in ours] == [200] * 4
    assert ours[2][2] == "HTTP/2"


async def test_a_proxy_by_its_url(
    world: World, library: Library, certificates: Certificates, tinyproxy_auth: RunningProxy, nginx: Server
) -> None:
    place = tinyproxy_auth.address
    for credentials, status in {f"{USER}:{PASSWORD}@": 200, "": 407}.items():
        transport = library.transport(world, proxy=f"http://{credentials}{place}")
        async with library.open(world, transport) as client:
            assert (await client.get(f"{nginx.http}/hello")).status_code == status
    transport = library.transport(world, proxy=f"http://{place}", verify=trusting(certificates, "http/1.1"))
    async with library.open(world, transport) as client:
        check_error(library, await failure(client, "GET", f"{nginx.https}/hello"), "ProxyError")


# --- in the place of httpcore ----------------------------------------------------------------------------------------

CLIENT = """
import inspect, json, ssl, sys
import lamina

lamina.as_httpcore()
import httpx  # after it

runtime, authority, peers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])


async def result_of(value):
    return await value if inspect.isawaitable(value) else value


async def converse(peer):
    context = ssl.create_default_context(cafile=authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    kind = httpx.Client if runtime == "sync" else httpx.AsyncClient
    client = kind(verify=context, http2=True, trust_env=False, proxy=peer["proxy"], timeout=20.0)
    assert type(client._transport_for_url(httpx.URL(peer["upload"]))._pool).__module__.startswith("lamina")
    for url in peer["urls"]:
        answer = await result_of(client.get(url))
        yield [answer.status_code, answer.http_version, answer.text]
    answer = await result_of(client.post(peer["upload"], content=b"x" * 70_000))
    yield answer.text
    try:
        await result_of(client.get(peer["wrong"]))
    except httpx.TransportError as error:
        yield type(error).__name__
    await result_of(client.close() if runtime == "sync" else client.aclose())


async def run():
    return [each for peer in peers async for each in converse(peer)]


if runtime == "sync":
    try:
        run().send(None)
    except StopIteration as stop:
        seen = stop.value
elif runtime == "trio":
    import trio

    seen = trio.run(run)
else:
    import asyncio

    seen = asyncio.run(run())
assert sys.modules["httpcore"] is lamina
assert not any(name.startswith("httpcore.") for name in sys.modules)
print(json.dumps(seen))
"""


def test_httpx_finds_lamina_as_httpcore(
    request: pytest.FixtureRequest,
    world: World,
    certificates: Certificates,
    nginx: Server,
    refusing_port: int,
) -> None:
    Library("httpx")
    common = {
        "urls": [f"{nginx.http}/hello", f"{nginx.https}/hello"],
        "upload": f"{nginx.https}/upload",
        "wrong": f"https://127.0.0.1:{refusing_port}/",
    }
    peers: list[dict[str, Any]] = [{**common, "proxy": None}]
    for name in ("tinyproxy_auth", "microsocks_auth"):
        running: RunningProxy = request.getfixturevalue(name)
        peers.append({**common, "proxy": running.url.replace("://", f"://{USER}:{PASSWORD}@")})
    arguments = [world.name, str(certificates.authority), json.dumps(peers)]
    done = subprocess.run(
        [sys.executable, "-bb", "-W", "error", "-c", CLIENT, *arguments],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert not done.stderr, done.stderr
    seen = json.loads(done.stdout)
    hello = HELLO.decode()
    assert seen == [
        each
        for error in ("ConnectError", "ProxyError", "ProxyError")
        for each in ([200, "HTTP/1.1", hello], [200, "HTTP/2", hello], "took 70000", error)
    ]
