"""`lamina.sync` and `lamina.aio` on a network: streams, backends, pools, connections and clients, in each world."""

import gc
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import lamina
from dialect_worlds import World, limited
from lamina import aio, sync
from lamina._demo_server import DemoServer
from lamina_interfaces import load_backend

GET = b"GET /number/7 HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


@pytest.fixture
def trusting(cacert: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(cacert))


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """Nobody listens there, and nobody else can: it is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


# --- the modules -------------------------------------------------------------------------------------------


def test_the_modules_are_attributes_of_the_package() -> None:
    code = "import lamina; print(lamina.sync.Client.__module__, lamina.aio.Client.__module__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lamina.sync", "lamina.aio"]
    assert {"aio", "sync"} <= set(dir(lamina))


@pytest.mark.parametrize("module", ["sync", "aio"])
def test_importing_them_imports_nothing_slow(module: str) -> None:
    slow = (
        "asyncio",
        "anyio",
        "trio",
        "ssl",
        "h2",
        "certifi",
        "lamina_async_backends",
        "lamina_sync_backend",
    )
    code = (
        f"import sys\nfrom lamina import {module}\nprint(*[name for name in {slow!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_sync_works_without_the_async_backends(server: DemoServer) -> None:
    code = (
        "import sys\n"
        "for name in ('lamina_async_backends', 'anyio', 'trio'): sys.modules[name] = None\n"
        "from lamina import aio, sync\n"
        f"print(sync.Client().get({server.url('/number/7')!r}).text)\n"
        "import asyncio\n"
        "try: asyncio.run(aio.NetworkBackend().connect('127.0.0.1', 1))\n"
        "except aio.BackendNotFound as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "7"
    assert "pip install lamina-async-backends" in done.stdout.splitlines()[1]


@pytest.mark.parametrize("name", [name for name in sync.__all__ if name in lamina.__all__])
def test_a_name_of_the_first_dialect_too_is_the_same_thing(name: str) -> None:
    ours = {"ConnectionPool", "NetworkBackend", "NetworkStream", "Request", "Response"}
    assert (getattr(sync, name) is getattr(lamina, name)) is (name not in ours)
    assert (getattr(aio, name) is getattr(lamina, name)) is (name not in ours)


# --- streams and backends ----------------------------------------------------------------------------------


def test_the_backend_says_what_runs(world: World) -> None:
    assert repr(aio.NetworkBackend()) == "<NetworkBackend [async]>"

    @world.run
    async def _() -> None:
        runtime = "threaded" if world.name == "threads" else world.name
        assert repr(world.httpx.NetworkBackend()) == f"<NetworkBackend [{runtime}]>"


def test_a_stream_over_a_socket_of_the_callers_own(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        sock = socket.create_connection(("127.0.0.1", server.port))
        here, there = sock.getsockname(), sock.getpeername()
        stream = world.httpx.NetworkStream(sock)
        assert isinstance(stream, world.httpx.NetworkStreamInterface)
        for _ in range(2):  # an async stream takes the socket over when it is first awaited
            assert repr(stream) == f'<NetworkStream ["127.0.0.1:{server.port}"]>'
            assert stream.get_extra_info("client_addr") == here
            assert stream.get_extra_info("server_addr") == there
            assert stream.get_extra_info("socket").fileno() == sock.fileno()
            assert stream.get_extra_info("ssl_object") is None
            assert stream.get_extra_info("nonsense") is None
            await world.do(stream.write(GET))
        head = await world.do(stream.read(8))
        assert head == b"HTTP/1.1"
        assert len(await world.do(stream.read())) > 8
        await world.do(stream.close())
        await world.do(stream.close())
        assert repr(stream) == f'<NetworkStream ["127.0.0.1:{server.port}" CLOSED]>'
        with pytest.raises(world.httpx.ReadError):
            await world.do(stream.read())
        with pytest.raises(world.httpx.WriteError):
            await world.do(stream.write(b"x"))


def test_a_stream_that_nobody_has_used_closes_its_socket(world: World) -> None:
    @world.run
    async def _() -> None:
        sock, peer = socket.socketpair()
        with peer:
            async with world.within(world.httpx.NetworkStream(sock)) as stream:
                assert repr(stream) == '<NetworkStream ["an unnamed peer"]>'
            assert sock.fileno() == -1
            assert peer.recv(1) == b""
            operations: list[Callable[[], Any]] = [stream.read, lambda: stream.write(b"x")]
            for operation in operations:
                with pytest.raises(world.httpx.NetworkError, match="closed"):
                    await world.do(operation())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_one_task_reads_a_fresh_stream_while_another_writes(backend: str) -> None:
    sock, peer = socket.socketpair()
    received: list[bytes] = []

    async def body() -> None:
        async with aio.NetworkStream(sock) as stream, anyio.create_task_group() as tasks:

            async def read() -> None:
                received.append(await stream.read())

            tasks.start_soon(read)
            tasks.start_soon(stream.write, b"ping")
            with peer:
                assert await anyio.to_thread.run_sync(peer.recv, 10) == b"ping"
                peer.sendall(b"pong")

    anyio.run(limited, body, backend=backend)
    assert received == [b"pong"]


@pytest.mark.parametrize("given", [3, None, "socket", object()])
def test_a_stream_takes_nothing_but_a_socket(given: Any) -> None:
    for httpx in (sync, aio):
        with pytest.raises(httpx.ArgumentTypeError, match="plain socket"):
            httpx.NetworkStream(given)


def test_a_stream_takes_no_closed_socket() -> None:
    for httpx in (sync, aio):
        sock = socket.socket()
        sock.close()
        with pytest.raises(httpx.ArgumentValueError, match="closed"):
            httpx.NetworkStream(sock)


def test_tls_begins_in_place(world: World, secure_server: DemoServer, trusting: ssl.SSLContext) -> None:
    @world.run
    async def _() -> None:
        net = world.httpx.NetworkBackend()
        async with world.within(net.connect("127.0.0.1", secure_server.port)) as stream:
            assert await world.do(stream.start_tls(trusting, "localhost")) is stream
            assert repr(stream) == f'<NetworkStream ["127.0.0.1:{secure_server.port}" TLS]>'
            assert stream.get_extra_info("ssl_object").version().startswith("TLS")
            await world.do(stream.write(GET))
            assert (await world.do(stream.read())).startswith(b"HTTP/1.1 200 OK\r\n")
        assert repr(stream) == f'<NetworkStream ["127.0.0.1:{secure_server.port}" CLOSED]>'


def test_a_failed_handshake_closes(world: World, secure_server: DemoServer, trusting: ssl.SSLContext) -> None:
    @world.run
    async def _() -> None:
        net = world.httpx.NetworkBackend()
        async with world.within(net.connect("127.0.0.1", secure_server.port)) as stream:
            with pytest.raises(world.httpx.ConnectError, match="certificate"):
                await world.do(stream.start_tls(trusting, hostname="other.test"))
            assert "CLOSED" in repr(stream)
            with pytest.raises(world.httpx.NetworkError):
                await world.do(stream.read())


def test_a_backend_of_the_first_dialect_may_be_beneath(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        beneath = load_backend("sync" if world.name == "threads" else world.name)
        net = world.httpx.NetworkBackend(beneath)
        async with world.within(net.connect("127.0.0.1", server.port)) as stream:
            await world.do(stream.write(GET))
            assert await world.do(stream.read())
        # No adapters between a pool and lamina's own streams, which can do more than the second dialect asks for.
        assert world.httpx._timed_backend(net) is beneath
        for backend in (beneath, net):
            async with world.within(world.httpx.ConnectionPool(backend=backend)) as pool:
                assert (await world.do(pool.get(server.url("/number/7")))).content == b"7"


def test_nobody_listens(world: World, refusing_port: int) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        url = f"http://127.0.0.1:{refusing_port}/"
        asking: list[Callable[[], Any]] = [
            lambda: httpx.NetworkBackend().connect("127.0.0.1", refusing_port),
            lambda: httpx.open_connection(url),
            lambda: httpx.Client().get(url),
        ]
        for ask in asking:
            with pytest.raises(httpx.ConnectError, match=f"127.0.0.1:{refusing_port}") as caught:
                await world.do(ask())
            is_about_a_url = ask is not asking[0]
            assert caught.value.origin == (url.rstrip("/") if is_about_a_url else None)


class Stuck(lamina.Resolver):
    """Answers when it is let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def resolve(self, host: str, port: int, family: int) -> list[lamina.ResolvedAddress]:
        self.let_go.wait(30.0)
        return []


def test_a_connection_that_was_not_made_in_time_says_to_where(world: World) -> None:
    resolver = Stuck()

    @world.run
    async def _() -> None:
        httpx = world.httpx
        kind = lamina.SyncBackend if world.name == "threads" else lamina.AutoBackend
        backend = kind(resolver=resolver)
        try:
            with pytest.raises(httpx.DeadlineExceeded) as caught:
                async with world.within(httpx.timeout(1.0)):  # long enough to come as far as that
                    await world.do(httpx.open_connection("http://a.test/", backend=backend))
        finally:
            resolver.let_go.set()
        assert (caught.value.phase, caught.value.origin) == ("dns", "http://a.test:80")


# --- pools and clients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["get", "head", "options", "post", "put", "patch", "delete"])
def test_a_method_for_each_method(world: World, server: DemoServer, method: str) -> None:
    @world.run
    async def _() -> None:
        async with world.within(world.httpx.Client()) as client:
            options: dict[str, Any] = {"headers": {"X-One": "1"}}
            if method in ("post", "put", "patch"):
                options["content"] = b"abc"
            url = server.url("/" if method == "head" else "/echo")
            response = await world.do(getattr(client, method)(url, **options))
            assert response.status_code == 200
            if method == "head":
                assert response.content == b""
            else:
                assert response.text.startswith(f"{method.upper()} /echo\n")
                assert "\nx-one: 1\n" in response.text
                assert ("\n3 ba7816bf" in response.text) is ("content" in options)


def test_a_response_tells_all(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        async with world.within(world.httpx.Client()) as client:
            response = await world.do(client.request("get", server.url("/?a=b")))
        assert repr(response) == "<Response [200 OK]>"
        assert (response.http_version, response.reason_phrase) == ("HTTP/1.1", "OK")
        assert response.url == server.url("/?a=b")
        assert response.request.method == "GET"
        assert response.headers["content-type"] == "text/plain"
        assert response.text == "Hello, world!\n"


def test_the_clients_headers_are_sent_unless_the_requests_are(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        client = world.httpx.Client(headers={"X-One": "client", "X-Two": "client"})
        async with world.within(client):
            response = await world.do(client.get(server.url("/echo"), headers={"x-one": "request"}))
        assert "\nx-one: request\n" in response.text
        assert "\nx-two: client\n" in response.text
        assert f"\nuser-agent: lamina/{lamina.__version__}\n" in response.text
        assert set(client.headers) == {"User-Agent", "X-One", "X-Two"}


def test_a_body_is_sent_in_pieces(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        async with world.within(world.httpx.Client()) as client:
            response = await world.do(client.post(server.url("/echo"), content=world.body(b"a", b"bc")))
        assert "\ntransfer-encoding: chunked\n" in response.text
        assert "\n3 ba7816bf" in response.text


@pytest.mark.parametrize("kind", ["url", "method and url", "keywords"])
def test_stream_gives_the_response_before_its_body(world: World, server: DemoServer, kind: str) -> None:
    @world.run
    async def _() -> None:
        url = server.url("/chunked/3")
        async with world.within(world.httpx.Client()) as client:
            match kind:
                case "url":
                    opened = client.stream(url)
                case "method and url":
                    opened = client.stream("GET", url)
                case _:
                    opened = client.stream(method="GET", url=url, headers={"X": "1"})
            async with world.within(opened) as response:
                assert response.status_code == 200
                with pytest.raises(world.httpx.ResponseStateError):
                    _ = response.content
                assert sum(map(len, await world.pieces(response.stream))) == 3 * 64 * 1024


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_async_stream_may_be_entered_without_await(backend: str, server: DemoServer) -> None:
    async def body() -> None:
        async with aio.Client() as client:
            async with client.stream(server.url("/number/1")) as response:
                assert await response.read() == b"1"
            response = await client.stream(server.url("/number/2"))
            assert await response.read() == b"2"
            await response.close()
            pool = client._transport
            assert isinstance(pool, aio.ConnectionPool)
            async with client.stream(server.url("/chunked/100")) as response:
                assert pool.stats().active == 1
            assert pool.stats().active == 0

    anyio.run(limited, body, backend=backend)


def test_a_response_left_half_way_is_let_go(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        async with world.within(world.httpx.ConnectionPool(max_connections=1)) as pool:
            with pytest.raises(ZeroDivisionError):
                async with world.within(pool.stream(server.url("/stalled"))):
                    raise ZeroDivisionError
            assert pool.stats().active == 0
            assert (await world.do(pool.get(server.url("/number/3")))).content == b"3"


def test_a_deadline_bounds_a_request_and_cancel_lifts_it(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        async with world.within(httpx.Client()) as client:
            phases = []
            for seconds in (0.1, 1.0, 10.0):  # a busy machine may take the first of them to connect
                with pytest.raises(httpx.DeadlineExceeded) as caught:
                    async with world.within(httpx.timeout(seconds)):
                        await world.do(client.get(server.url("/silent")))
                phases.append(caught.value.phase)
                if phases[-1] == "read":
                    break
            else:
                pytest.fail(f"the deadline passed in {phases}")
            async with (
                world.within(httpx.timeout(30.0)) as limit,
                world.within(client.stream(server.url("/slow/1"))) as response,
            ):
                limit.cancel()
                assert await world.do(response.read()) == b"at last\n"
            assert not limit.expired


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"url": "ftp://127.0.0.1/"}, "UnsupportedProtocol"),
        ({"url": "127.0.0.1"}, "UnsupportedProtocol"),
        ({"url": "http://"}, "InvalidURL"),
        ({"url": 3}, "ArgumentTypeError"),
        ({"headers": {"A B": "1"}}, "LocalProtocolError"),
        ({"headers": {"A": "1\r\nB: 2"}}, "LocalProtocolError"),
        ({"headers": {"Content-Length": "5"}, "content": b"1"}, "LocalProtocolError"),
        ({"headers": 3}, "ArgumentTypeError"),
        ({"content": "text"}, "ArgumentTypeError"),
        ({"method": "A B"}, "LocalProtocolError"),
        ({"method": 3}, "ArgumentTypeError"),
    ],
)
def test_bad_input_is_refused_before_a_byte_is_sent(
    world: World, server: DemoServer, options: dict[str, Any], error: str
) -> None:
    @world.run
    async def _() -> None:
        async with world.within(world.httpx.Client()) as client:
            with pytest.raises(getattr(world.httpx, error)):
                await world.do(client.request(**{"method": "GET", "url": server.url(), **options}))

    assert server.connections == 0


@pytest.mark.parametrize(
    "options",
    [{"transport": 3}, {"transport": lamina.ConnectionPool}, {"headers": 3}, {"max_redirects": "1"}],
)
def test_a_client_refuses_what_it_cannot_use(options: dict[str, Any]) -> None:
    for httpx in (sync, aio):
        with pytest.raises(httpx.ArgumentTypeError):
            httpx.Client(**options)


def test_a_client_refuses_the_class_of_a_transport() -> None:
    for httpx in (sync, aio):
        with pytest.raises(httpx.ArgumentTypeError, match="not the class ConnectionPool"):
            httpx.Client(transport=httpx.ConnectionPool)


def test_a_client_refuses_fewer_redirects_than_none() -> None:
    for httpx in (sync, aio):
        with pytest.raises(httpx.ArgumentValueError, match="max_redirects"):
            httpx.Client(max_redirects=-1)


def test_the_two_worlds_are_not_mixed() -> None:
    mixed: list[tuple[Any, Any]] = [(sync, aio), (aio, sync)]
    for httpx, other in mixed:
        with pytest.raises(httpx.ArgumentTypeError, match="of the other module"):
            httpx.Client(transport=other.Client())
        with pytest.raises(httpx.ArgumentTypeError, match="which NetworkBackend is not"):
            httpx.ConnectionPool(backend=other.NetworkBackend())
        with pytest.raises(httpx.ArgumentTypeError, match="NetworkBackendInterface"):
            httpx.ConnectionPool(backend=object())


def test_closing_a_client_closes_its_transport(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        given_transport = world.transport(lambda request: httpx.Response(200))
        async with world.within(httpx.Client(transport=given_transport)) as client:
            assert not given_transport.is_closed
        assert given_transport.is_closed
        async with world.within(httpx.Client()) as client:
            await world.do(client.get(server.url()))
            assert "1 idle" in repr(client)
        assert repr(client) == (
            "<Client [<ConnectionPool [Requests: 0 active, 0 queued | Connections: 0 active, 0 idle]>]>"
        )
        with pytest.raises(httpx.PoolClosed):
            await world.do(client.get(server.url()))


def test_a_client_may_be_the_transport_of_another(world: World) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        transport = world.transport(lambda request: httpx.Response(200, content=request.url.encode()))
        client = httpx.Client(transport=httpx.Client(transport=transport))
        assert (await world.do(client.get("http://a.test/b"))).content == b"http://a.test/b"


def test_a_request_may_be_changed_before_it_is_sent(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        async with world.within(world.httpx.ConnectionPool()) as pool:
            request = pool.build_request("GET", server.url("/echo"))
            request.headers = request.headers.copy_set("X-One", "1")
            request.method = "PUT"
            async with world.within(pool.send(request)) as response:
                text = (await world.do(response.read())).decode()
        assert text.startswith("PUT /echo\n")
        assert "\nx-one: 1\n" in text


# --- connections -------------------------------------------------------------------------------------------


def test_a_connection_carries_one_request_after_another(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        name = f'"http://127.0.0.1:{server.port}"'
        async with world.within(world.httpx.open_connection(server.url("/any"))) as connection:
            assert repr(connection) == f"<Connection [{name} IDLE]>"
            for number in ("1", "2"):
                response = await world.do(connection.get(f"/number/{number}"))
                assert response.text == number
                assert response.url == server.url(f"/number/{number}")
            response = await world.do(connection.post(server.url("/echo"), content=b"abc"))
            assert "\n3 ba7816bf" in response.text
            async with world.within(connection.stream(server.url("/chunked/1"))) as response:
                assert repr(connection) == f"<Connection [{name} ACTIVE]>"
                await world.do(response.read())
            assert repr(connection) == f"<Connection [{name} IDLE]>"
        assert repr(connection) == f"<Connection [{name} CLOSED]>"
        with pytest.raises(world.httpx.ConnectionNotAvailable, match="was closed"):
            await world.do(connection.get("/"))

    assert server.connections == 1


def test_a_connection_is_dialled_when_it_is_opened(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        connection = await world.do(world.httpx.open_connection(server.url()))
        stream = connection._supply.stream
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", server.port)
        await world.do(connection.close())
        await world.do(connection.close())
        assert stream.get_extra_info("socket").fileno() == -1


@pytest.mark.parametrize("url", ["http://elsewhere.test/", "https://127.0.0.1/", "//127.0.0.1:1/"])
def test_a_connection_refuses_other_origins(world: World, server: DemoServer, url: str) -> None:
    @world.run
    async def _() -> None:
        async with world.within(world.httpx.open_connection(server.url())) as connection:
            if url.startswith("//"):  # a path here, as it would be in a request line
                response = await world.do(connection.get(url))
                assert response.url == server.url(url)
                return
            with pytest.raises(world.httpx.ArgumentValueError, match="leads to"):
                await world.do(connection.get(url))
            assert "IDLE" in repr(connection)


def test_a_connection_that_the_server_has_closed_says_so(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        async with world.within(world.httpx.open_connection(server.url())) as connection:
            with pytest.raises(world.httpx.RemoteProtocolError):
                await world.do(connection.get("/cut"))
            assert "CLOSED" in repr(connection)
            with pytest.raises(world.httpx.ConnectionNotAvailable, match="has ended") as caught:
                await world.do(connection.get("/"))
            assert caught.value.origin == f"http://127.0.0.1:{server.port}"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"url": "ftp://127.0.0.1/"}, "UnsupportedProtocol"),
        ({"url": "127.0.0.1"}, "UnsupportedProtocol"),
        ({"url": "http:///"}, "InvalidURL"),
        ({"url": 3}, "ArgumentTypeError"),
        ({"url": "http://127.0.0.1:1/", "hostname": 3}, "ArgumentTypeError"),
        ({"url": "http://127.0.0.1:1/", "backend": 3}, "ArgumentTypeError"),
    ],
)
def test_a_connection_refuses_bad_input(world: World, arguments: dict[str, Any], error: str) -> None:
    @world.run
    async def _() -> None:
        with pytest.raises(getattr(world.httpx, error)):
            await world.do(world.httpx.open_connection(**arguments))


def test_a_connection_over_tls(world: World, secure_server: DemoServer, trusting: ssl.SSLContext) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        url = secure_server.url()
        opened = httpx.open_connection(url, hostname="www.example.com", ssl_context=trusting)
        async with world.within(opened) as connection:
            assert (await world.do(connection.get("/number/5"))).text == "5"
        opened = httpx.open_connection(url, hostname="other.test", ssl_context=trusting)
        async with world.within(opened) as connection:
            with pytest.raises(httpx.ConnectError, match="certificate"):
                await world.do(connection.get("/"))


def test_a_connection_over_a_stream_of_the_callers_own(world: World, server: DemoServer) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        streams = (
            httpx.NetworkStream(socket.create_connection(("127.0.0.1", server.port))),
            await world.do(httpx.NetworkBackend().connect("127.0.0.1", server.port)),
            await world.do(recording(httpx)[0]().connect("127.0.0.1", server.port)),
        )
        for stream in streams:
            async with world.within(httpx.Connection(stream, server.url())) as connection:
                assert (await world.do(connection.get("/number/7"))).content == b"7"


# --- custom backends ---------------------------------------------------------------------------------------


def recording(httpx: Any) -> tuple[Any, list[bytes]]:
    """A backend that wraps the default one, as the document has it, and what its streams have read."""
    record: list[bytes] = []

    if httpx is sync:

        class Stream(sync.NetworkStreamInterface):
            def __init__(self, stream: Any) -> None:
                self._stream = stream

            def read(self, max_bytes: int | None = None) -> bytes:
                data: bytes = self._stream.read(max_bytes)
                record.append(data)
                return data

            def write(self, data: bytes) -> None:
                self._stream.write(data)

            def start_tls(self, ctx: Any, hostname: str | None = None) -> None:
                self._stream.start_tls(ctx, hostname)

            def close(self) -> None:
                self._stream.close()

        class Backend(sync.NetworkBackendInterface):
            def connect(self, host: str, port: int) -> Stream:
                return Stream(sync.NetworkBackend().connect(host, port))

        return Backend, record

    class AsyncStream(aio.NetworkStreamInterface):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def read(self, max_bytes: int | None = None) -> bytes:
            data: bytes = await self._stream.read(max_bytes)
            record.append(data)
            return data

        async def write(self, data: bytes) -> None:
            await self._stream.write(data)

        async def start_tls(self, ctx: Any, hostname: str | None = None) -> None:
            await self._stream.start_tls(ctx, hostname)

        async def close(self) -> None:
            await self._stream.close()

    class AsyncBackend(aio.NetworkBackendInterface):
        async def connect(self, host: str, port: int) -> AsyncStream:
            return AsyncStream(await aio.NetworkBackend().connect(host, port))

    return AsyncBackend, record


@pytest.mark.parametrize("is_secure", [False, True], ids=["plain", "TLS"])
def test_a_custom_backend_carries_requests(
    world: World, server: DemoServer, secure_server: DemoServer, trusting: ssl.SSLContext, is_secure: bool
) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        backend, record = recording(httpx)
        site = secure_server if is_secure else server
        pool = httpx.ConnectionPool(backend=backend(), ssl_context=trusting)
        async with world.within(httpx.Client(transport=pool)) as client:
            response = await world.do(client.get(site.url("/number/8")))
            assert response.content == b"8"
        assert b"".join(record).startswith(b"HTTP/1.1 200 OK\r\n")
        async with world.within(httpx.open_connection(server.url(), backend=backend())) as connection:
            assert (await world.do(connection.get("/number/9"))).content == b"9"


def test_a_stream_whose_close_fails_is_closed_as_garbage(server: DemoServer) -> None:
    """As the document's example prints it: `def close():`, without `self`."""
    backend, _ = recording(sync)
    connect = backend.connect

    def connect_unclosable(self: Any, host: str, port: int) -> Any:
        stream = connect(self, host, port)
        stream.close = lambda self: None
        return stream

    backend.connect = connect_unclosable
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with sync.Client(transport=sync.ConnectionPool(backend=backend())) as client:
            assert client.get(server.url("/number/8")).content == b"8"
        del client
        gc.collect()
    # The stream's, or its socket's, if that one is finalised first.
    assert {each.category for each in caught} == {ResourceWarning}
