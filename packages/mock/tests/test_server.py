"""`MockServer` itself: which HTTP is spoken, what a handler may return, what is refused, and who may use it at once."""

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest
import trio

from lamina_interfaces import ArgumentTypeError, ArgumentValueError, ConnectError, ReadTimeout
from lamina_mock._clock import DeadlockError, RuntimeClock, VirtualClock
from lamina_mock._failures import ScriptError
from lamina_mock._http import MockRequest, MockResponse
from lamina_mock._server import MockServer
from lamina_mock._wire import TLSFacts
from mock_http_clients import (
    ASYNCIO,
    CONTEXT,
    THREADS,
    TRIO,
    HTTP2Client,
    HTTP11Client,
    World,
    in_every_world,
)


def echo(request: MockRequest) -> str:
    return request.target


# --- which HTTP is spoken ----------------------------------------------------------------------------------


@in_every_world
async def test_the_first_bytes_tell_which_http_is_spoken(world: World) -> None:
    with MockServer(echo, http2=True) as server:
        async with world.http1(server) as client:
            assert server.connections[0].http_version is None
            assert (await client.get("/1")).content == b"/1"
        async with world.http2(server) as second:
            assert (await second.get("/2")).content == b"/2"
        async with world.connect(server) as stream:
            for byte in b"PUT / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 0\r\n\r\n":
                await stream.write(bytes([byte]))
            assert (await stream.read(timeout=10.0)).startswith(b"HTTP/1.1 200")
        assert [connection.http_version for connection in server.connections] == [
            "HTTP/1.1",
            "HTTP/2",
            "HTTP/1.1",
        ]


@in_every_world
async def test_over_tls_the_handshake_tells(world: World) -> None:
    for http1, http2, agreed in ((True, False, "http/1.1"), (True, True, "h2"), (False, True, "h2")):
        with MockServer(echo, http1=http1, http2=http2) as server:
            async with world.connect(server, "example.com", 443) as stream:
                await stream.start_tls(CONTEXT, "example.com")
                assert stream.get_extra_info("ssl_object").selected_alpn_protocol() == agreed
                if agreed == "h2":
                    client: Any = HTTP2Client(stream)
                    await client.start()
                else:
                    client = HTTP11Client(stream)
                assert (await client.get()).content == b"/"
            [connection] = server.connections
            assert connection.is_tls
            assert (connection.host, connection.port) == ("example.com", 443)
            if agreed == "http/1.1":
                assert server.requests[0].scheme == "https"


@in_every_world
async def test_a_server_of_http2_only_takes_nothing_else(world: World) -> None:
    server = MockServer(echo, http1=False, http2=True)
    async with world.http1(server) as client:
        await client.stream.write(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
        while await client.stream.read(timeout=10.0):
            pass
    with pytest.raises(ScriptError, match="broke HTTP/2"):
        server.check()


@in_every_world
async def test_a_preface_that_is_cut_is_put_together(world: World) -> None:
    with MockServer(echo, http2=True) as server:
        async with world.connect(server) as stream:
            client = HTTP2Client(stream)
            client.h2.initiate_connection()
            for byte in client.h2.data_to_send():
                await stream.write(bytes([byte]))
            assert (await client.get()).content == b"/"


# --- what a handler may return -----------------------------------------------------------------------------


@in_every_world
async def test_shorter_answers_stand_for_responses(world: World) -> None:
    answers: dict[str, tuple[Any, tuple[int, bytes]]] = {
        "/status": (404, (404, b"")),
        "/bytes": (b"\xff", (200, b"\xff")),
        "/text": ("£", (200, b"\xc2\xa3")),
        "/three": ((201, {b"x": b"y"}, ["a", b"b"]), (201, b"ab")),
        "/response": (MockResponse(500, content="oh"), (500, b"oh")),
    }
    with MockServer(lambda request: answers[request.target][0], http2=True) as server:
        async with world.http1(server) as client:
            for target, (_, expected) in answers.items():
                result = await client.get(target)
                assert (result.status, result.content) == expected
        async with world.http2(server) as second:
            for target, (_, expected) in answers.items():
                result = await second.get(target)
                assert (result.status, result.content) == expected


@pytest.mark.parametrize("answer", [True, 1.5, ["a"], (200, {}), object()])
def test_anything_else_fails_the_test(answer: Any) -> None:
    server = MockServer(lambda _: answer)
    stream = server.backend.connect_tcp("example.com", 80)
    stream.write(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
    stream.close()
    with pytest.raises(ScriptError, match="a handler returns a MockResponse"):
        server.check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"status": "200"}, "a status is an int"),
        ({"status": True}, "a status is an int"),
        ({"status": 99}, "between 100 and 599"),
        ({"delay": -1.0}, "delay"),
        ({"content": [1]}, "a chunk of content"),
        ({"content": [(-1.0, b"")]}, "the delay of a chunk"),
        ({"headers": {"a": 1}}, "a header field is text"),
        ({"interim": [1000]}, "between 100 and 599"),
    ],
)
def test_a_response_that_makes_no_sense_is_refused_where_it_is_made(arguments: Any, message: str) -> None:
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match=message):
        MockResponse(**arguments)


def test_a_response_does_not_change_with_what_it_was_made_of() -> None:
    headers, chunks = {"a": "1"}, [b"one"]
    response = MockResponse(headers=headers, content=chunks)
    headers["b"] = "2"
    chunks.append(b"two")
    assert response.raw_headers == [(b"a", b"1")]
    assert list(response.chunks()) == [(0.0, b"one")]
    assert response == MockResponse(headers=[("a", b"1")], content=["one"])


@in_every_world
async def test_none_is_no_later_answer(world: World) -> None:
    with MockServer(lambda _: None) as server:
        async with world.http1(server) as client:
            await client.send()
            with pytest.raises(ArgumentTypeError, match="None is no response"):
                server.requests[0].respond(None)
            server.requests[0].respond(204)
            assert (await client.receive()).status == 204


# --- the server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"handler": b"hello"}, "callable"),
        ({"http1": False}, "HTTP/1.1, HTTP/2 or both"),
        ({"latency": -1}, "latency"),
        ({"max_requests": 0}, "at least 1"),
        ({"connection_window": 1000}, "between 65535 and"),
        ({"settings": {"max_frame_size": 1}}, "between 16384 and"),
        ({"settings": {"no_such_setting": 1}}, "is no setting of HTTP/2; there are header_table_size"),
        ({"max_concurrent_streams": -1}, "between 0 and"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ArgumentTypeError, ArgumentValueError), match=message):
        MockServer(**{"handler": echo, **arguments})


def test_a_failure_is_raised_by_the_block_once() -> None:
    server = MockServer(echo)
    server.record(None, "first")
    server.record(ValueError("why"), "second")
    with pytest.raises(ScriptError, match="first; second"), server:
        pass
    server.check()
    with server:
        pass


def test_a_failure_tells_more_than_what_came_of_it_and_hides_nothing() -> None:
    server = MockServer(lambda request: 1 // 0)
    with pytest.raises(ScriptError, match="the handler failed") as info, server:
        stream = server.backend.connect_tcp("example.com", 80)
        stream.write(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
        stream.read()
    assert isinstance(info.value.__cause__, ZeroDivisionError)
    assert "ReadError" in info.value.__notes__[0]
    server.record(None, "without a cause")
    with pytest.raises(ScriptError, match="without a cause") as info, server:
        raise KeyError
    assert isinstance(info.value.__cause__, KeyError)


def test_a_block_without_a_failure_lets_errors_pass() -> None:
    with pytest.raises(KeyError), MockServer(echo):
        raise KeyError
    server = MockServer(echo)
    server.record(None, "not now")
    with pytest.raises(KeyboardInterrupt), server:
        raise KeyboardInterrupt


def test_what_can_be_printed() -> None:
    server = MockServer(echo, http2=True)
    assert repr(server) == "<MockServer [HTTP/1.1 and HTTP/2, 0 connections, 0 requests]>"
    stream = server.backend.connect_tcp("example.com", 80)
    assert repr(server.connections[0]) == "<MockConnection 0 [new, 0 requests, 0 open streams]>"
    stream.write(b"POST /x HTTP/1.1\r\nHost: example.com\r\nContent-Length: 1\r\n\r\n")
    stream.close()
    assert repr(server.requests[0]) == "<MockRequest [POST /x, HTTP/1.1, connection 0, incomplete]>"
    assert repr(server.connections[0]) == "<MockConnection 0 [HTTP/1.1, 1 request, 0 open streams, ended]>"


@in_every_world
async def test_the_client_s_own_close_is_seen(world: World) -> None:
    with MockServer(echo, http2=True) as server:
        async with world.http2(server):
            assert server.connections[0].is_open
        assert not server.connections[0].is_open
        server.connections[0].end()
        server.connections[0].reset()
        server.connections[0].say_raw(b"to nobody")


@in_every_world
async def test_a_latency_counts_as_a_time_out(world: World) -> None:
    with VirtualClock() as clock, MockServer(echo, latency=5.0) as server:
        async with world.http1(server) as client:
            await client.send()
            with pytest.raises(ReadTimeout):
                await client.stream.read(timeout=2.0)
            assert clock() == 2.0
            assert (await client.receive()).content == b"/"
            assert clock() == 5.0


@in_every_world
async def test_connecting_and_tls_may_take_time_or_fail(world: World) -> None:
    with VirtualClock() as clock, MockServer(echo, connect_delay=1.0, tls=TLSFacts(delay=2.0)) as server:
        async with world.connect(server) as stream:
            assert clock() == 1.0
            await stream.start_tls(CONTEXT, "example.com")
            assert clock() == 3.0
            assert (await HTTP11Client(stream).get()).status == 200
        server.tls = TLSFacts(error="unknown authority")
        async with world.connect(server) as stream:
            with pytest.raises(ConnectError, match="unknown authority"):
                await stream.start_tls(CONTEXT, "example.com")
        server.connect_error = "nobody is there"
        with pytest.raises(ConnectError, match="nobody is there"):
            async with world.connect(server):
                pass
        assert [connection.number for connection in server.connections] == [0, 1]


@in_every_world
async def test_a_wait_that_nothing_can_end_says_what_is_missing(world: World) -> None:
    with VirtualClock(patience=0.05), MockServer(lambda _: None) as server:
        async with world.http1(server) as client:
            await client.send()
            with pytest.raises(
                DeadlockError, match=r"connection 0 of the mock server .* 1 request to answer"
            ):
                await client.stream.read()


# --- several at once ---------------------------------------------------------------------------------------


async def get_by_itself(world: World, server: MockServer, i: int) -> None:
    async with world.http1(server) as client:
        assert (await client.get(f"/{i}")).content == b"/%d" % i


async def twenty_in_asyncio(server: MockServer) -> None:
    async with asyncio.TaskGroup() as group:
        for i in range(20):
            group.create_task(get_by_itself(ASYNCIO, server, i))


async def twenty_in_trio(server: MockServer) -> None:
    async with trio.open_nursery() as nursery:
        for i in range(20):
            nursery.start_soon(get_by_itself, TRIO, server, i)


@pytest.mark.parametrize(("world", "main"), [(ASYNCIO, twenty_in_asyncio), (TRIO, twenty_in_trio)])
def test_connections_of_several_tasks_overlap(world: World, main: Any) -> None:
    with VirtualClock() as clock, MockServer(echo, latency=0.5) as server:
        world.run(main(server))
        assert clock() == 0.5
        assert len({request.connection for request in server.requests}) == 20


def test_threads_share_a_server_and_a_connection() -> None:
    """Eight threads with connections of their own, while another one looks, answers and changes settings."""
    failures: list[BaseException] = []

    def client(server: MockServer, i: int) -> None:
        try:
            THREADS.run(work(server, i))
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    async def work(server: MockServer, i: int) -> None:
        async with THREADS.http2(server) as http2:
            for j in range(20):
                content = b"%d %d " % (i, j) * 3000
                stream_id = await http2.send("POST", f"/{i}/{j}", content=content)
                assert (await http2.result(stream_id)).content == content

    with MockServer(lambda request: request.content, http2=True, clock=RuntimeClock()) as server:
        threads = [threading.Thread(target=client, args=(server, i)) for i in range(8)]
        for thread in threads:
            thread.start()
        for size in range(1000, 60_000, 1000):
            server.change_settings(initial_window_size=65_535 + size)
            assert server.open_streams <= 8
        for thread in threads:
            thread.join(60.0)
        assert not failures
        assert len(server.requests) == 8 * 20
        assert server.open_streams == 0


def test_an_answer_from_another_thread_wakes_the_client() -> None:
    with MockServer(lambda _: None, clock=RuntimeClock()) as server:
        stream = server.backend.connect_tcp("example.com", 80)
        stream.write(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
        said: list[bytes] = []
        reader = threading.Thread(target=lambda: said.append(stream.read(timeout=50.0)))
        reader.start()
        server.requests[0].respond("wake up")
        reader.join(50.0)
        assert said[0].startswith(b"HTTP/1.1 200")
        stream.close()


# --- what is imported --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "first_bytes", "message"),
    [
        ("h11", b"GET / HTTP/1.1\r\n", "needs h11 to speak HTTP/1.1: install lamina-mock[http]"),
        ("h2", b"PRI * HTTP/2.0\r\n", "needs h2 to speak HTTP/2: install lamina-mock[http]"),
    ],
)
def test_an_absent_library_is_named_when_it_is_needed(module: str, first_bytes: bytes, message: str) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
from lamina_mock._server import MockServer
server = MockServer(lambda request: 200, http2=True)
stream = server.backend.connect_tcp("example.com", 80)
try:
    stream.write({first_bytes!r})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert message in done.stdout


def test_making_a_server_imports_no_protocol() -> None:
    code = """
import sys
from lamina_mock._server import MockServer
MockServer(lambda request: 200, http2=True, max_concurrent_streams=3)
absent = ("h11", "h2", "hpack", "hyperframe", "asyncio", "trio", "anyio", "ssl")
print(*[name for name in absent if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_server_is_let_go_with_its_connections() -> None:
    server = MockServer(echo, http2=True)
    server.backend.connect_tcp("example.com", 80).close()
    watched = weakref.ref(server.connections[0])
    del server
    gc.collect()
    assert watched() is None
