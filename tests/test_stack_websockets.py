"""WebSockets as the page `docs/how-to/websockets.md` has them: its own code, in every world, against real peers."""

from __future__ import annotations

import queue
import re
import socket
import struct
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Message, Ping, Pong, TextMessage
from wsproto.utilities import generate_accept_token

import lamina
import lamina_mock
from lamina_mock import VirtualClock
from stack_helpers import read_head, response
from stack_proxies import FakeProxy
from stack_worlds import PATIENCE, Cancelled, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from wsproto.events import Event

    from stack_helpers import Certificates, FaultServer
    from stack_servers import Server

    StartServer = Callable[..., FaultServer]

PAGE = Path(__file__).parent.parent / "docs" / "how-to" / "websockets.md"


def code_of_the_page() -> dict[str, Any]:
    """What the page defines. The examples of its use run with the other snippets."""
    names: dict[str, Any] = {"__name__": "websockets_page"}
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL):
        if re.search(r"^class |^def receive_", block, re.MULTILINE):
            exec(compile(block, str(PAGE), "exec"), names)  # noqa: S102 - our own page
    return names


page = code_of_the_page()
ConnectionClosed: type[Exception] = page["ConnectionClosed"]
HandshakeError: type[Exception] = page["HandshakeError"]


class BlockingSocket:
    """The page's `WebSocket` with the methods of its `AsyncWebSocket`."""

    def __init__(self, socket: Any) -> None:
        self.blocking = socket

    def __getattr__(self, name: str) -> Any:
        return getattr(self.blocking, name)

    async def send(self, message: str | bytes, timeout: float | None = None) -> None:
        self.blocking.send(message, timeout)

    async def ping(self, timeout: float | None = None) -> None:
        self.blocking.ping(timeout)

    async def receive(self, timeout: float | None = None) -> str | bytes:
        message: str | bytes = self.blocking.receive(timeout)
        return message

    async def aclose(self, *arguments: Any, **options: Any) -> None:
        self.blocking.close(*arguments, **options)


@asynccontextmanager
async def opened(world: World, pool: Any, url: str, **options: Any) -> AsyncIterator[Any]:
    if world.is_async:
        async with page["async_websocket"](pool, url, **options) as websocket:
            yield websocket
    else:
        with page["websocket"](pool.blocking, url, **options) as websocket:
            yield BlockingSocket(websocket)


# --- a peer ------------------------------------------------------------------------------------------------


SWITCH = "Upgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"


def consent(head: bytes, accept: bytes | None = None, headers: str = "", switch: str = SWITCH) -> bytes:
    """The answer to a handshake."""
    key = re.search(rb"Sec-WebSocket-Key: *(\S+)", head, re.IGNORECASE)
    assert key is not None, head
    return b"HTTP/1.1 101 Switching Protocols\r\n%bSec-WebSocket-Accept: %b\r\n%b\r\n" % (
        switch.encode(),
        accept or generate_accept_token(key[1]),
        headers.encode(),
    )


class Peer:
    """The server's side of a WebSocket, over a blocking socket.

    Args:
        sock: on which a request is about to come.
        leading: what goes out together with the 101.
        accept: the key's token, if not the right one.
        headers: of the 101, besides.
        switch: those of its headers that say to what it switches.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        leading: bytes = b"",
        accept: bytes | None = None,
        headers: str = "",
        switch: str = SWITCH,
    ) -> None:
        self.sock = sock
        self.head = read_head(sock)
        self.connection = Connection(ConnectionType.SERVER)
        self.sock.sendall(consent(self.head, accept, headers, switch) + leading)

    def send(self, event: Event) -> None:
        self.sock.sendall(self.connection.send(event))

    def events(self) -> Iterator[Event]:
        """What comes, up to a Close or the end of the connection."""
        while True:
            for event in self.connection.events():
                yield event
                if isinstance(event, CloseConnection):
                    return
            self.connection.receive_data(self.sock.recv(65536) or None)

    def echo(self) -> None:
        """Send everything back, and answer the Close."""
        for event in self.events():
            match event:
                case TextMessage():
                    self.send(TextMessage(event.data, message_finished=event.message_finished))
                case BytesMessage():
                    self.send(BytesMessage(bytes(event.data), message_finished=event.message_finished))
                case Ping():
                    self.send(event.response())
                case CloseConnection():
                    self.answer(event)

    def answer(self, close: CloseConnection) -> None:
        if self.connection.state is ConnectionState.REMOTE_CLOSING:
            self.send(close.response())


def echo(sock: socket.socket) -> None:
    Peer(sock).echo()


LITTLE_ROOM = [(socket.SOL_SOCKET, option, 50_000) for option in (socket.SO_SNDBUF, socket.SO_RCVBUF)]
"""On the way, so that who sends `LARGE` waits for who reads."""
LARGE = bytes(5_000_000)


def with_little_room(sock: socket.socket) -> socket.socket:
    for option in LITTLE_ROOM:
        sock.setsockopt(*option)
    return sock


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """A frame as a server sends it."""
    length = struct.pack("!B", len(payload)) if len(payload) < 126 else struct.pack("!BH", 126, len(payload))
    return bytes([fin << 7 | opcode]) + length + payload


TEXT, CONTINUATION, BINARY, CLOSE, PING = 1, 0, 2, 8, 9


class Told:
    """What a peer's thread tells the test."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def __call__(self, item: Any) -> None:
        self._items.put(item)

    async def next(self, world: World) -> Any:
        await world.until(lambda: not self._items.empty())
        return self._items.get()


# --- messages ----------------------------------------------------------------------------------------------

MESSAGES: list[str | bytes] = ["Hello", "", b"", b"\x00\xff" * 100, "å∂ 🙂" * 1000, b"x" * 300_000]


@pytest.mark.parametrize("is_tls", [False, True], ids=["ws", "wss"])
async def test_messages_come_back_from_hypercorn(
    world: World, hypercorn: Server, certificates: Certificates, is_tls: bool
) -> None:
    url = (hypercorn.https if is_tls else hypercorn.h2c).replace("http", "ws") + "/websocket"
    async with world.pool(ssl_context=certificates.client) as pool:
        async with opened(world, pool, url, subprotocols=["other", "echo"]) as websocket:
            assert websocket.subprotocol == "echo"
            stats = pool.stats()
            assert (stats.active, stats.requests) == (1, 1)
            for message in MESSAGES:
                await websocket.send(message)
                assert await websocket.receive(PATIENCE) == message
            await websocket.ping()
            assert websocket.awaits_pong
            await websocket.send("close 4001")
            with pytest.raises(ConnectionClosed, match="4001 as you wish") as caught:
                await websocket.receive(PATIENCE)
            assert caught.value.code == 4001  # type: ignore[attr-defined]  # the page's class is known at run time only
            assert not websocket.awaits_pong
        assert pool.stats().connections == 0


async def test_the_handshake_asks_as_the_rfc_has_it(world: World, fault_server: StartServer) -> None:
    told = Told()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        told(peer.head)
        told(next(peer.events()))

    server = fault_server(behave)
    url, headers = f"{server.url}/chat?room=1", [(b"Cookie", b"a=b")]
    async with world.pool() as pool, opened(world, pool, url, headers=headers):
        head = await told.next(world)
    lines = head.lower().split(b"\r\n")
    assert lines[0] == b"get /chat?room=1 http/1.1"
    assert {b"connection: upgrade", b"upgrade: websocket", b"sec-websocket-version: 13", b"cookie: a=b"} < {
        *lines
    }
    assert b"host: 127.0.0.1:%d" % server.port in lines
    assert not any(line.startswith(b"sec-websocket-protocol") for line in lines)
    close = await told.next(world)
    assert (close.code, close.reason) == (1000, ""), "the end of the block closes it"


async def test_pieces_are_joined_and_a_ping_between_them_is_answered(
    world: World, fault_server: StartServer
) -> None:
    told = Told()
    euro = "€".encode()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        sock.sendall(frame(TEXT, b"a" + euro[:1], fin=False) + frame(PING, b"still there?"))
        told(next(peer.events()))
        sock.sendall(frame(CONTINUATION, euro[1:], fin=False) + frame(CONTINUATION, b"", fin=False))
        for byte in frame(CONTINUATION, b"z") + frame(BINARY, b"1", fin=False) + frame(CONTINUATION, b"2"):
            sock.sendall(bytes([byte]))
        peer.echo()

    async with world.pool() as pool, opened(world, pool, fault_server(behave).url) as websocket:
        assert await websocket.receive(PATIENCE) == "a€z"
        assert await websocket.receive(PATIENCE) == b"12"
    assert await told.next(world) == Pong(b"still there?")


async def test_what_comes_with_the_101_is_not_lost(world: World, fault_server: StartServer) -> None:
    leading = frame(TEXT, b"first") + frame(PING, b"p") + frame(TEXT, b"sec")[:-2]
    told = Told()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock, leading=leading)
        told(next(peer.events()))
        sock.sendall(b"ec")
        peer.echo()

    async with world.pool() as pool, opened(world, pool, fault_server(behave).url) as websocket:
        assert await websocket.receive(PATIENCE) == "first"
        assert await websocket.receive(PATIENCE) == "sec"
    assert await told.next(world) == Pong(b"p")


async def test_both_sides_send_at_once(world: World, fault_server: StartServer) -> None:
    """A server that reads on only once it has been read from, and pings meanwhile: nobody waits for ever."""
    count, size = 3, 2_000_000

    def behave(sock: socket.socket) -> None:
        peer = Peer(with_little_room(sock))
        for event in peer.events():
            if isinstance(event, Message):
                peer.send(Ping(b"p" * 100))
                peer.send(BytesMessage(bytes(event.data), message_finished=event.message_finished))
            elif isinstance(event, CloseConnection):
                peer.answer(event)

    async def send_all(websocket: Any, letter: bytes) -> None:
        for _ in range(count):
            await websocket.send(letter * size)

    async with (
        world.pool(socket_options=LITTLE_ROOM) as pool,
        opened(world, pool, fault_server(behave).url, max_size=size) as websocket,
        world.jobs() as jobs,
    ):
        senders = [jobs.start(send_all, websocket, letter) for letter in (b"a", b"b")]
        received = [await websocket.receive(PATIENCE) for _ in range(2 * count)]
        for sender in senders:
            await sender.result(world)
    assert sorted(received) == [b"a" * size] * count + [b"b" * size] * count


async def test_a_pong_that_has_to_wait_for_a_message_follows_it(
    world: World, fault_server: StartServer
) -> None:
    told, reads = Told(), threading.Event()

    def behave(sock: socket.socket) -> None:
        peer = Peer(with_little_room(sock), leading=frame(PING, b"p") + frame(TEXT, b"go on"))
        assert reads.wait(PATIENCE)
        for event in peer.events():
            if isinstance(event, Message):
                if event.message_finished:
                    told("message")
            else:
                told(event)
                break
        peer.echo()

    async with (
        world.pool(socket_options=LITTLE_ROOM) as pool,
        opened(world, pool, fault_server(behave).url) as websocket,
        world.jobs() as jobs,
    ):
        sender = jobs.start(websocket.send, LARGE)
        await world.until(websocket._writing.locked)
        assert await websocket.receive(PATIENCE) == "go on", "who receives does not wait for who sends"
        reads.set()
        await sender.result(world)
        assert await told.next(world) == "message"
        assert await told.next(world) == Pong(b"p")


# --- the end -----------------------------------------------------------------------------------------------


async def test_we_close(world: World, no_socket_left: None, fault_server: StartServer) -> None:
    told = Told()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        close = next(peer.events())
        assert isinstance(close, CloseConnection)
        told((close.code, close.reason))
        sock.sendall(frame(TEXT, b"too late"))
        peer.answer(close)
        told(sock.recv(10))

    async with world.pool() as pool:
        async with opened(world, pool, fault_server(behave).url) as websocket:
            await websocket.aclose(4000, "enough")
            assert await told.next(world) == (4000, "enough")
            assert pool.stats().connections == 0
            for use in (websocket.receive, lambda: websocket.send("more")):
                with pytest.raises(ConnectionClosed, match="4000 enough"):
                    await use()
            await websocket.aclose()
        assert await told.next(world) == b""


async def test_the_peer_closes(world: World, fault_server: StartServer) -> None:
    told = Told()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        peer.send(TextMessage("last words"))
        peer.send(CloseConnection(1001, "going away"))
        told(next(peer.events()))
        told(sock.recv(10))

    async with world.pool() as pool:
        async with opened(world, pool, fault_server(behave).url) as websocket:
            assert await websocket.receive(PATIENCE) == "last words"
            for _ in range(2):
                with pytest.raises(ConnectionClosed, match="1001 going away"):
                    await websocket.receive(PATIENCE)
            with pytest.raises(ConnectionClosed, match="1001 going away"):
                await websocket.send("hello?")
            close = await told.next(world)
            assert (close.code, close.reason) == (1001, "going away")
            assert pool.stats().active == 1, "it keeps its place until we let go"
        assert pool.stats().connections == 0
        assert await told.next(world) == b""


async def test_a_peer_that_has_gone_is_told_apart(world: World, fault_server: StartServer) -> None:
    """An orderly end of the connection without a Close has a code of its own; a broken connection is an error."""
    gone = threading.Event()

    def end(sock: socket.socket) -> None:
        Peer(sock)

    def reset(sock: socket.socket) -> None:
        Peer(sock)
        assert gone.wait(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with world.pool() as pool:
        async with opened(world, pool, fault_server(end).url) as websocket:
            with pytest.raises(ConnectionClosed, match="1006"):
                await websocket.receive(PATIENCE)
        server = fault_server(reset)
        async with opened(world, pool, server.url) as websocket:
            gone.set()
            with pytest.raises(lamina.ReadError) as caught:
                await websocket.receive(PATIENCE)
            assert caught.value.origin == server.url
        assert pool.stats().connections == 0


BAD_FRAMES = {
    "masked": (b"\x81\x81\x00\x00\x00\x00a", 1002),
    "a reserved bit": (b"\xc1\x01a", 1002),
    "an unknown opcode": (b"\x83\x01a", 1002),
    "a ping in pieces": (b"\x09\x01a", 1002),
    "a ping of 126 bytes": (frame(PING, b"p" * 126), 1002),
    "a continuation of nothing": (frame(CONTINUATION, b"a"), 1002),
    "a new message within a message": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    "no UTF-8": (frame(TEXT, b"\xff"), 1007),
    "half a character": (frame(TEXT, "€".encode()[:2]), 1007),
    "too large": (frame(BINARY, b"x" * 1001), 1009),
    "too large, in pieces": (frame(BINARY, b"x" * 600, fin=False) + frame(CONTINUATION, b"x" * 401), 1009),
    "too large, from the start of it": (b"\x82\x7f" + struct.pack("!Q", 2**40) + b"x" * 1001, 1009),
    "too large, and then a Close": (frame(BINARY, b"x" * 1001) + frame(CLOSE, b"\x03\xe8"), 1009),
    "a Close of one byte": (frame(CLOSE, b"x"), 1002),
}


@pytest.mark.parametrize("name", BAD_FRAMES)
async def test_what_breaks_the_protocol_ends_it(world: World, fault_server: StartServer, name: str) -> None:
    data, code = BAD_FRAMES[name]
    told = Told()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        sock.sendall(frame(BINARY, b"x" * 1000) + data)
        told(next(peer.events()))

    async with world.pool() as pool:
        async with opened(world, pool, fault_server(behave).url, max_size=1000) as websocket:
            assert await websocket.receive(PATIENCE) == b"x" * 1000
            with pytest.raises(ConnectionClosed, match=f": {code} "):
                await websocket.receive(PATIENCE)
        close = await told.next(world)
        assert isinstance(close, CloseConnection)
        assert close.code == code
        assert pool.stats().connections == 0


async def test_what_has_come_counts_though_it_cannot_be_answered(
    world: World, fault_server: StartServer
) -> None:
    told, is_open = Told(), threading.Event()

    def behave(sock: socket.socket) -> None:
        Peer(sock, leading=frame(TEXT, b"last words") + frame(CLOSE, b"\x03\xe9"))
        assert is_open.wait(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
        told("gone")

    async with world.pool() as pool, opened(world, pool, fault_server(behave).url) as websocket:
        is_open.set()
        assert await told.next(world) == "gone"
        assert await websocket.receive(PATIENCE) == "last words"
        with pytest.raises(ConnectionClosed, match="1001"):
            await websocket.receive(PATIENCE)


async def test_a_close_without_a_code(world: World, fault_server: StartServer) -> None:
    told = Told()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        sock.sendall(frame(CLOSE, b"") + frame(TEXT, b"after the end"))
        told(next(peer.events()))

    async with world.pool() as pool, opened(world, pool, fault_server(behave).url) as websocket:
        with pytest.raises(ConnectionClosed, match="1005"):
            await websocket.receive(PATIENCE)
        assert (await told.next(world)).code == 1005, "it is answered in kind"


async def test_a_peer_that_never_answers_the_close_is_not_waited_for_long(
    world: World, fault_server: StartServer
) -> None:
    done = threading.Event()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        assert isinstance(next(peer.events()), CloseConnection)
        while not done.is_set():  # and talks on, without an end
            peer.sock.sendall(frame(TEXT, b"and another thing"))

    async with world.pool() as pool, opened(world, pool, fault_server(behave).url) as websocket:
        await websocket.aclose(timeout=0.2)
        assert pool.stats().connections == 0
    done.set()


async def test_an_error_in_the_block_closes_without_a_word(world: World, fault_server: StartServer) -> None:
    told = Told()

    def behave(sock: socket.socket) -> None:
        told(next(Peer(sock).events()))

    async with world.pool() as pool:
        with pytest.raises(ZeroDivisionError):
            async with opened(world, pool, fault_server(behave).url):
                raise ZeroDivisionError
        assert pool.stats().connections == 0
        assert (await told.next(world)).code == 1006


# --- a handshake that fails --------------------------------------------------------------------------------

REFUSALS: dict[str, tuple[dict[str, Any], str]] = {
    "the token of another key": ({"accept": generate_accept_token(b"another")}, "does not match our key"),
    "an extension that nobody offered": (
        {"headers": "Sec-WebSocket-Extensions: permessage-deflate\r\n"},
        "was not offered",
    ),
    "another protocol": ({"switch": SWITCH.replace("WebSocket", "h2c")}, "another protocol"),
    "no protocol": ({"switch": "Connection: Upgrade\r\n"}, "another protocol"),
    "a switch that its Connection header does not name": (
        {"switch": "Upgrade: websocket\r\nConnection: close\r\n"},
        "does not say",
    ),
    "no Connection header": ({"switch": "Upgrade: websocket\r\n"}, "does not say"),
    "a subprotocol that nobody offered": ({"headers": "Sec-WebSocket-Protocol: y\r\n"}, "was not offered"),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_false_consent_is_refused(world: World, fault_server: StartServer, name: str) -> None:
    options, text = REFUSALS[name]
    told = Told()

    def behave(sock: socket.socket) -> None:
        told(next(Peer(sock, **options).events()))

    async with world.pool() as pool:
        with pytest.raises(HandshakeError, match=text):
            async with opened(world, pool, fault_server(behave).url, subprotocols=["x"]):
                pytest.fail("it was opened")
        assert pool.stats().connections == 0
    assert (await told.next(world)).code == 1006


async def test_a_refusal_gives_the_connection_back(world: World, fault_server: StartServer) -> None:
    def behave(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(response(b"not here").replace(b"200 OK", b"403 Forbidden"))
        read_head(sock)
        sock.sendall(response(b"hello"))
        read_head(sock)

    server = fault_server(behave)
    async with world.pool(max_connections=1) as pool:
        with pytest.raises(HandshakeError, match="403"):
            async with opened(world, pool, server.url):
                pytest.fail("it was opened")
        assert (await pool.request("GET", server.url)).content == b"hello"
    assert server.accepted == 1


async def test_a_server_that_chooses_http2_is_told_apart(
    world: World, hypercorn: Server, http2_context: Any
) -> None:
    async with world.pool(http2=True, ssl_context=http2_context) as pool:
        with pytest.raises(lamina.ConnectError, match="the protocol 'h2', which the ssl_context offers"):
            async with opened(world, pool, f"{hypercorn.https}/websocket"):
                pytest.fail("it was opened")


async def test_a_pool_that_speaks_http2_opens_them_too(
    world: World, hypercorn: Server, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own TLS settings, by which it offers the server nothing but HTTP/1.1 for this."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.authority))
    monkeypatch.setattr("lamina_pool._ssl._shared", {})
    async with world.pool(http2=True) as pool:
        first = await pool.request("GET", f"{hypercorn.https}/hello")
        async with opened(world, pool, f"{hypercorn.https}/websocket") as websocket:
            await websocket.send("Hello")
            assert await websocket.receive(PATIENCE) == "Hello"
            assert pool.stats().connections == 2
    assert first.extensions["http_version"] == b"HTTP/2"


@pytest.mark.parametrize("is_tls", [False, True], ids=["ws", "wss"])
@pytest.mark.parametrize("scheme", ["http", "socks5h"])
async def test_it_goes_through_a_proxy_in_a_tunnel(
    world: World, fault_server: StartServer, certificates: Certificates, scheme: str, is_tls: bool
) -> None:
    fake = FakeProxy(is_socks=scheme == "socks5h")
    server = fault_server(echo, context=certificates.server if is_tls else None)
    proxy = lamina.Proxy(f"{scheme}://127.0.0.1:{fault_server(fake).port}")
    url = f"{'wss' if is_tls else 'ws'}://localhost:{server.port}/chat"
    async with world.pool(proxy=proxy, ssl_context=certificates.client, max_connections=1) as pool:
        async with opened(world, pool, url) as websocket:
            await websocket.send("Hello")
            assert await websocket.receive(PATIENCE) == "Hello"
            assert pool.stats().active == 1
        assert pool.stats().connections == 0
    assert [asked.target for asked in fake.asked] == [f"localhost:{server.port}"]
    assert (b"GET /chat HTTP/1.1\r\n" in fake.inside[0]) is not is_tls


# --- limits ------------------------------------------------------------------------------------------------


async def test_it_takes_a_place_while_it_is_open_I08(world: World, fault_server: StartServer) -> None:
    server = fault_server(echo)
    extensions = {"timeout": {"pool": 0.01}}
    async with world.pool(max_connections=1) as pool:
        async with opened(world, pool, server.url) as websocket:
            with pytest.raises(lamina.PoolTimeout, match="1 active"):
                async with opened(world, pool, server.url, extensions=extensions):
                    pytest.fail("there was room for two")
            await websocket.send("still open")
            assert await websocket.receive(PATIENCE) == "still open"
        async with opened(world, pool, server.url, extensions={"timeout": {"pool": PATIENCE}}):
            assert server.accepted == 2


async def test_who_waits_for_a_place_gets_that_of_one_that_ends_I08(
    world: World, fault_server: StartServer
) -> None:
    server = fault_server(echo)
    async with world.pool(max_connections=1) as pool, world.jobs() as jobs:

        async def second() -> str | bytes:
            async with opened(world, pool, server.url) as websocket:
                await websocket.send("my turn")
                message: str | bytes = await websocket.receive(PATIENCE)
                return message

        async with opened(world, pool, server.url):
            job = jobs.start(second)
            await world.until(lambda: pool.stats().queued == 1)
        assert await job.result(world) == "my turn"


async def test_a_timeout_loses_nothing(world: World, fault_server: StartServer) -> None:
    told = threading.Event()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        data = frame(TEXT, b"late")
        sock.sendall(data[:3])
        assert told.wait(PATIENCE)
        sock.sendall(data[3:])
        peer.echo()

    server = fault_server(behave)
    async with world.pool() as pool, opened(world, pool, server.url) as websocket:
        with pytest.raises(lamina.ReadTimeout) as first:
            await websocket.receive(0.02)
        with pytest.raises(lamina.DeadlineExceeded) as second, lamina.timeout(0.02):
            await websocket.receive()
        told.set()
        assert await websocket.receive(PATIENCE) == "late"
    for caught in (first, second):
        assert (caught.value.phase, caught.value.origin) == ("read", server.url)


async def test_a_block_bounds_sending(world: World, fault_server: StartServer) -> None:
    """To a peer that does not read. Half a message has gone out then, so it is the end."""
    done = threading.Event()

    def behave(sock: socket.socket) -> None:
        Peer(with_little_room(sock))
        assert done.wait(PATIENCE)

    server = fault_server(behave)
    async with world.pool(socket_options=LITTLE_ROOM) as pool:
        async with opened(world, pool, server.url) as websocket:
            with pytest.raises(lamina.DeadlineExceeded) as caught, lamina.timeout(0.05):
                await websocket.send(LARGE)
            assert (caught.value.phase, caught.value.origin) == ("write", server.url)
            assert pool.stats().connections == 0
            with pytest.raises(lamina.WriteError):
                await websocket.send("more")
        done.set()


async def test_closing_waits_neither_for_a_sender_nor_for_the_peer(
    world: World, fault_server: StartServer
) -> None:
    done = threading.Event()

    def behave(sock: socket.socket) -> None:
        Peer(with_little_room(sock))
        assert done.wait(PATIENCE)

    async with (
        world.pool(socket_options=LITTLE_ROOM) as pool,
        opened(world, pool, fault_server(behave).url) as websocket,
    ):
        async with world.jobs() as jobs:
            sender = jobs.start(websocket.send, LARGE)
            await world.until(websocket._writing.locked)
            await websocket.aclose(timeout=0.1)
            assert isinstance(await sender.outcome(world), lamina.WriteError)
        done.set()


async def test_a_cancelled_receive_loses_nothing(async_world: World, fault_server: StartServer) -> None:
    world = async_world
    told = threading.Event()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        data = frame(TEXT, b"late")
        sock.sendall(data[:3])
        assert told.wait(PATIENCE)
        sock.sendall(data[3:])
        peer.echo()

    async with world.pool() as pool, opened(world, pool, fault_server(behave).url) as websocket:
        async with world.jobs() as jobs:
            job = jobs.start(websocket.receive)
            await world.pause(0.01)
            job.cancel()
            assert isinstance(await job.outcome(world), Cancelled)
        told.set()
        assert await websocket.receive(PATIENCE) == "late"


async def test_a_cancelled_send_ends_it(
    async_world: World, no_socket_left: None, fault_server: StartServer
) -> None:
    world = async_world
    done = threading.Event()

    def behave(sock: socket.socket) -> None:
        Peer(with_little_room(sock))
        assert done.wait(PATIENCE)

    async with world.pool(socket_options=LITTLE_ROOM) as pool:
        async with opened(world, pool, fault_server(behave).url) as websocket:
            async with world.jobs() as jobs:
                job = jobs.start(websocket.send, LARGE)
                await world.until(websocket._writing.locked)
                job.cancel()
                assert isinstance(await job.outcome(world), Cancelled)
            assert pool.stats().connections == 0
            with pytest.raises(lamina.WriteError):
                await websocket.send("more")
        done.set()


async def test_a_cancelled_block_leaves_nothing(
    async_world: World, no_socket_left: None, fault_server: StartServer
) -> None:
    world = async_world
    told = Told()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        told("open")
        told(next(peer.events()))

    server = fault_server(behave)
    async with world.pool() as pool:

        async def converse() -> None:
            async with opened(world, pool, server.url) as websocket:
                await websocket.receive()

        async with world.jobs() as jobs:
            job = jobs.start(converse)
            assert await told.next(world) == "open"
            job.cancel()
            assert isinstance(await job.outcome(world), Cancelled)
        assert (await told.next(world)).code == 1006
        assert pool.stats().connections == 0


# --- closing by others -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["the WebSocket", "the pool"])
async def test_who_receives_is_told_that_it_was_closed(
    world: World, fault_server: StartServer, by: str
) -> None:
    received = Told()

    def behave(sock: socket.socket) -> None:
        peer = Peer(sock)
        peer.send(TextMessage("Hello"))
        for _ in peer.events():  # a Close, which is not answered
            pass
        sock.recv(10)

    server = fault_server(behave)
    async with world.pool() as pool, opened(world, pool, server.url) as websocket:

        async def receive() -> None:
            received(await websocket.receive(PATIENCE))
            await websocket.receive(PATIENCE)

        async with world.jobs() as jobs:
            job = jobs.start(receive)
            assert await received.next(world) == "Hello"
            await (websocket if by == "the WebSocket" else pool).aclose()
            outcome = await job.outcome(world)
        assert isinstance(outcome, lamina.ReadError if by == "the WebSocket" else lamina.PoolClosed)
        assert outcome.origin == server.url
        assert pool.stats().connections == 0


# --- signs of life -----------------------------------------------------------------------------------------


async def test_a_ping_is_awaited_until_its_pong_comes(world: World, fault_server: StartServer) -> None:
    async with world.pool() as pool, opened(world, pool, fault_server(echo).url) as websocket:
        assert not websocket.awaits_pong
        await websocket.ping()
        await websocket.send("Hello")
        assert websocket.awaits_pong
        assert await websocket.receive(PATIENCE) == "Hello"
        assert not websocket.awaits_pong


class PongingPeer(lamina_mock.Peer):
    """Answers pings, a second later: so many with a pong, the next one with a message, and then none."""

    name = "a peer that answers pings"

    def __init__(self, pongs: int, *, speaks: bool) -> None:
        self._answers: list[Event] = [*[Pong()] * pongs, *[TextMessage("at last")] * speaks]
        self._head = b""
        self._connection = Connection(ConnectionType.SERVER)

    def connected(self, line: lamina_mock.Line, now: float) -> None:
        self._line = line

    def received(self, data: bytes, now: float) -> None:
        if not self._head.endswith(b"\r\n\r\n"):
            self._head += data
            if self._head.endswith(b"\r\n\r\n"):
                self._line.say(consent(self._head), at=now)
            return
        self._connection.receive_data(data)
        for event in self._connection.events():
            if isinstance(event, Ping) and self._answers:
                self._line.say(self._connection.send(self._answers.pop(0)), at=now + 1.0)


@pytest.mark.parametrize(
    ("pongs", "speaks", "seconds"), [(3, True, 84.0), (3, False, 103.0), (0, False, 40.0)]
)
def test_a_silent_peer_is_asked(pongs: int, speaks: bool, seconds: float) -> None:
    """20 seconds after the last sign of life there is a ping, and after 20 more without another one it is the end."""
    with VirtualClock() as clock:
        backend = lamina_mock.PeerBackend(lambda host, port: PongingPeer(pongs, speaks=speaks))
        with (
            lamina.ConnectionPool(network_backend=backend) as pool,
            page["websocket"](pool, "ws://www.example.org/") as websocket,
        ):
            if speaks:
                assert page["receive_from_the_living"](websocket) == "at last"
            else:
                with pytest.raises(lamina.ReadTimeout):
                    page["receive_from_the_living"](websocket)
            assert websocket.awaits_pong
            assert clock() == seconds
