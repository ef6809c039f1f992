"""The mock server over HTTP/1.1: a client end made of h11 speaks with it, in every runtime."""

from collections.abc import Callable
from typing import Any

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import LocalProtocolError, ReadError, ReadTimeout
from lamina_mock._clock import VirtualClock
from lamina_mock._failures import ScriptError
from lamina_mock._http import MockRequest, MockResponse
from lamina_mock._server import MockServer
from mock_http_clients import HTTP11Client, World, in_every_world


def serve(
    handler: Callable[[MockRequest], Any] = lambda request: request.target, **options: Any
) -> MockServer:
    return MockServer(handler, **options)


# --- requests and responses --------------------------------------------------------------------------------


@in_every_world
async def test_requests_follow_each_other_and_are_recorded(world: World) -> None:
    with serve(lambda request: MockResponse(201, {"X-One": "1"}, request.target, reason="Made")) as server:
        async with world.http1(server) as client:
            for path in ("/one", "/two?query"):
                result = await client.get(path, headers=[("Accept", "*/*")])
                assert (result.status, result.reason, result.content) == (201, "Made", path.encode())
                assert result.headers == [("X-One", "1"), ("Content-Length", str(len(path)))]
        assert [request.target for request in server.requests] == ["/one", "/two?query"]
        request = server.requests[0]
        assert (request.method, request.scheme, request.authority) == ("GET", "http", "example.com")
        assert request.headers == (("Host", "example.com"), ("Accept", "*/*"))
        assert (request.http_version, request.stream_id, request.is_complete) == ("HTTP/1.1", None, True)
        assert request.header("accept") == "*/*"
        assert len(server.connections) == 1


@in_every_world
async def test_content_and_trailers_go_both_ways(world: World) -> None:
    with serve(
        lambda request: MockResponse(content=["got ", request.content], trailers={"Sum": "7"})
    ) as server:
        async with world.http1(server) as client:
            await client.send("POST", content=[b"bo", b"dy"], trailers=[("Check", "4")])
            result = await client.receive()
            assert (result.content, result.trailers) == (b"got body", [("Sum", "7")])
            assert ("Transfer-Encoding", "chunked") in result.headers
            assert (await client.get()).status == 200
        assert server.requests[0].trailers == (("Check", "4"),)


@in_every_world
async def test_a_response_without_content_is_only_a_head(world: World) -> None:
    with serve(lambda request: MockResponse(int(request.target[1:]), content=b"never sent")) as server:
        async with world.http1(server) as client:
            for path, method in (("/204", "GET"), ("/304", "GET"), ("/200", "HEAD"), ("/404", "GET")):
                await client.send(method, path)
                result = await client.receive()
                assert (result.status, result.content) == (
                    int(path[1:]),
                    b"never sent" if path == "/404" else b"",
                )


@in_every_world
async def test_requests_that_are_sent_ahead_are_answered_in_order(world: World) -> None:
    with VirtualClock(), serve(lambda request: MockResponse(content=request.target, delay=1.0)) as server:
        async with world.http1(server) as client:
            head = b"GET /%d HTTP/1.1\r\nHost: example.com\r\n\r\n"
            await client.stream.write(head % 1 + head % 2 + head % 3)
            await client.stream.write(head % 4)
            said = b""
            while not said.endswith(b"/4"):
                said += await client.stream.read(timeout=100.0)
                assert len(server.requests) <= said.count(b"HTTP/1.1 200") + 1
            assert [part[-2:] for part in said.split(b"HTTP/1.1 200")] == [b"", b"/1", b"/2", b"/3", b"/4"]


def test_any_number_of_requests_may_be_sent_ahead() -> None:
    with serve() as server:
        stream = server.backend.connect_tcp("example.com", 80)
        stream.write(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n" * 1000)
        stream.close()
    assert len(server.requests) == 1000


@in_every_world
async def test_a_client_of_http_1_0_gets_what_it_understands(world: World) -> None:
    with serve(lambda _: MockResponse(content=["in ", "pieces"])) as server:
        async with world.connect(server) as stream:
            await stream.write(b"GET / HTTP/1.0\r\n\r\n")
            said = b""
            while piece := await stream.read(timeout=100.0):
                said += piece
        assert said.endswith(b"\r\n\r\nin pieces")
        assert b"chunked" not in said
        assert (server.requests[0].http_version, server.requests[0].authority) == ("HTTP/1.0", "")


@in_every_world
async def test_interim_responses_come_first(world: World) -> None:
    early_hints = MockResponse(103, {"Link": "</style.css>"}, delay=1.0)
    with (
        VirtualClock() as clock,
        serve(lambda _: MockResponse(interim=[102, early_hints], delay=1.0)) as server,
    ):
        async with world.http1(server) as client:
            result = await client.get()
        assert (result.interim, result.status, clock()) == ([102, 103], 200, 2.0)


@in_every_world
async def test_an_expectation_is_met_before_the_content(world: World) -> None:
    with serve(lambda request: request.content) as server:
        async with world.http1(server) as client:
            head = [("Host", "example.com"), ("Expect", "100-continue"), ("Content-Length", "2")]
            await client.say(h11.Request(method="PUT", target="/", headers=head))
            assert (await client.next_event()).status_code == 100
            await client.say(h11.Data(data=b"ok"))
            await client.say(h11.EndOfMessage())
            assert (await client.receive()).content == b"ok"


@in_every_world
async def test_an_early_response_ends_the_connection(world: World) -> None:
    with serve(lambda _: MockResponse(413, delay=1.0), respond_early=True) as server:
        async with world.http1(server) as client:
            head = [("Host", "example.com"), ("Expect", "100-continue"), ("Content-Length", "2000")]
            await client.say(h11.Request(method="PUT", target="/", headers=head))
            result = await client.receive()
            assert (result.status, result.interim) == (413, [])
            assert ("Connection", "close") in result.headers
            await client.say(h11.Data(data=bytes(2000)))  # is thrown away
            assert await client.stream.read(timeout=100.0) == b""
        assert not server.requests[0].is_complete
        assert server.open_streams == 0


@in_every_world
async def test_a_test_may_answer_later(world: World) -> None:
    with serve(lambda _: MockResponse.stall()) as server:
        async with world.http1(server) as client:
            await client.send()
            assert server.open_streams == 1
            server.requests[0].respond("at last")
            assert (await client.receive()).content == b"at last"
            assert server.open_streams == 0
            assert repr(server.connections[0]) == "<MockConnection 0 [HTTP/1.1, 1 request, 0 open streams]>"


@in_every_world
async def test_the_last_of_max_requests_ends_the_connection(world: World) -> None:
    with serve(max_requests=2) as server:
        for _ in range(2):
            async with world.http1(server) as client:
                assert ("Connection", "close") not in (await client.get()).headers
                assert ("Connection", "close") in (await client.get()).headers
                assert await client.stream.read(timeout=100.0) == b""


@in_every_world
async def test_an_upgrade_hands_over_the_bytes(world: World) -> None:
    upgrade = [("Connection", "upgrade"), ("Upgrade", "echo")]
    with serve(lambda _: MockResponse(101, upgrade)) as server:
        async with world.http1(server) as client:
            await client.send(headers=upgrade)
            assert (await client.next_event()).status_code == 101
            [connection] = server.connections
            await client.stream.write(b"not HTTP")
            assert bytes(connection.switched_data) == b"not HTTP"
            connection.say_raw(b"either")
            assert await client.stream.read(timeout=100.0) == b"either"


@in_every_world
async def test_a_tunnel_hands_over_the_bytes(world: World) -> None:
    with serve(lambda _: 200) as server:
        async with world.connect(server) as stream:
            await stream.write(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n")
            assert (await stream.read(timeout=100.0)).startswith(b"HTTP/1.1 200")
            await stream.write(b"opaque")
        assert server.requests[0].target == "example.com:443"
        assert bytes(server.connections[0].switched_data) == b"opaque"


# --- time --------------------------------------------------------------------------------------------------


@in_every_world
async def test_delays_run_on_the_clock(world: World) -> None:
    chunks = MockResponse(content=["now", (2.0, "later"), (0.5, "")])
    with VirtualClock() as clock, serve(lambda _: chunks, latency=1.0) as server:
        async with world.http1(server) as client:
            await client.send()
            await client.next_event()
            assert clock() == 1.0
            assert bytes((await client.next_event()).data) == b"now"
            assert clock() == 1.0
            assert bytes((await client.next_event()).data) == b"later"
            assert clock() == 3.0
            assert type(await client.next_event()) is h11.EndOfMessage
            assert clock() == 3.5


# --- what goes wrong ---------------------------------------------------------------------------------------


# A content of known length is complete, whatever comes after its last byte.
@pytest.mark.parametrize(
    ("content", "size"),
    [
        *((b"0123456789", size) for size in (0, 4, 9)),
        *(([b"01234", b"56789"], size) for size in (0, 4, 5, 7, 10, 99)),
    ],
)
@pytest.mark.parametrize("fault", ["reset", "eof", "stall"])
def test_a_response_may_break_off_after_some_bytes(fault: str, size: int, content: Any) -> None:
    errors = {"reset": ReadError, "eof": h11.RemoteProtocolError, "stall": ReadTimeout}
    with (
        VirtualClock(),
        serve(lambda _: getattr(MockResponse(content=content), f"{fault}_after")(size)) as server,
    ):
        stream = server.backend.connect_tcp("example.com", 80)
        client = HTTP11Client(stream)
        stream.write(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
        client.h11.send(h11.Request(method="GET", target="/", headers=[("Host", "example.com")]))
        client.h11.send(h11.EndOfMessage())
        got = b""
        with pytest.raises(errors[fault]):
            while True:
                event = client.h11.next_event()
                if event is h11.NEED_DATA:
                    client.h11.receive_data(stream.read(timeout=10.0))
                elif isinstance(event, h11.Data):
                    got += event.data
        assert got == b"0123456789"[:size]
        stream.close()


@in_every_world
async def test_an_answer_may_be_no_response(world: World) -> None:
    answers = {"/reset": MockResponse.reset(), "/eof": MockResponse.eof(), "/goaway": MockResponse.goaway()}
    with serve(lambda request: answers[request.target]) as server:
        for target in answers:
            async with world.http1(server) as client:
                await client.send(target=target)
                if target == "/reset":
                    with pytest.raises(ReadError):
                        await client.stream.read(timeout=100.0)
                else:
                    assert await client.stream.read(timeout=100.0) == b""
        assert server.open_streams == 0


@in_every_world
async def test_a_client_that_breaks_the_protocol_fails_the_test(world: World) -> None:
    server = serve()
    async with world.http1(server) as client:
        await client.stream.write(b"GET / HTTP/1.1\r\nHost : example.com\r\n\r\n")
        assert (await client.stream.read(timeout=100.0)).startswith(b"HTTP/1.1 400")
        assert await client.stream.read(timeout=100.0) == b""
        await client.stream.write(b"more")  # is thrown away
    with pytest.raises(ScriptError, match=r"broke HTTP/1\.1"):
        server.check()
    server.check()


def test_two_ways_to_tell_the_length_of_a_request_fail_the_test() -> None:
    server = serve()
    with server.backend.connect_tcp("example.com", 80) as stream:
        stream.write(
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
        )
        assert stream.read().startswith(b"HTTP/1.1 400 Bad Request")
    with pytest.raises(ScriptError, match="Content-Length beside Transfer-Encoding"):
        server.check()


@pytest.mark.parametrize("delay", [0.0, 5.0])
def test_a_client_may_break_the_protocol_while_it_is_answered(delay: float) -> None:
    server = serve(lambda _: MockResponse(content=[b"begin", (1.0, b"end")], delay=delay), respond_early=True)
    with server.backend.connect_tcp("example.com", 80) as stream:
        stream.write(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
        stream.write(b"no chunk\r\n")
        said = b""
        while piece := stream.read(timeout=100.0):
            said += piece
    assert said.startswith(b"HTTP/1.1 400" if delay else b"HTTP/1.1 200")
    assert b"end" not in said
    with pytest.raises(ScriptError) as caught:
        server.check()
    assert str(caught.value).count(";") == 0  # nothing is said of the answer that was given up
    assert "illegal chunk header" in str(caught.value)


@pytest.mark.parametrize(
    ("response", "line"),
    [
        (MockResponse(404), b"HTTP/1.1 404 Not Found"),
        (MockResponse(404, reason="Gone fishing"), b"HTTP/1.1 404 Gone fishing"),
        (MockResponse(599), b"HTTP/1.1 599 "),
    ],
)
def test_the_phrase_is_the_usual_one(response: MockResponse, line: bytes) -> None:
    with serve(lambda _: response).backend.connect_tcp("example.com", 80) as stream:
        stream.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert stream.read().partition(b"\r\n")[0] == line


@in_every_world
async def test_a_handler_that_raises_fails_the_test(world: World) -> None:
    def handler(request: MockRequest) -> Any:
        raise KeyError(request.target)

    server = serve(handler)
    async with world.http1(server) as client:
        await client.send()
        with pytest.raises(ReadError):
            await client.receive()
    with pytest.raises(ScriptError, match="handler failed") as caught:
        server.check()
    assert isinstance(caught.value.__cause__, KeyError)


@in_every_world
async def test_an_answer_that_the_protocol_forbids_fails_the_test(world: World) -> None:
    server = serve(lambda _: MockResponse(headers={"bad name": "1"}))
    async with world.http1(server) as client:
        await client.send()
        with pytest.raises(ReadError):
            await client.receive()
    with pytest.raises(ScriptError, match="breaks the protocol"):
        server.check()


@in_every_world
async def test_what_only_http2_has_is_refused(world: World) -> None:
    with serve() as server:
        async with world.http1(server) as client:
            await client.get()
            with pytest.raises(LocalProtocolError, match=r"HTTP/2 only; .* speaks HTTP/1\.1"):
                server.connections[0].reset_stream(1, 0)


@in_every_world
async def test_a_client_that_goes_away_leaves_nothing_open(world: World) -> None:
    with serve(lambda _: None) as server:
        async with world.http1(server) as client:
            await client.send()
        assert (server.open_streams, server.connections[0].is_open) == (0, False)
        server.requests[0].respond(200)


@given(st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=6), st.data())
def test_requests_cut_anywhere_are_the_same_requests(
    bodies: list[tuple[bytes, bool]], data: st.DataObject
) -> None:
    raw = b""
    for i, (body, is_chunked) in enumerate(bodies):
        raw += b"POST /%d HTTP/1.1\r\nHost: example.com\r\n" % i
        if is_chunked:
            raw += b"Transfer-Encoding: chunked\r\n\r\n" + (
                b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            )
            raw += b"0\r\n\r\n"
        else:
            raw += b"Content-Length: %d\r\n\r\n" % len(body) + body
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    with serve(lambda request: request.content) as server:
        stream = server.backend.connect_tcp("example.com", 80)
        for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            stream.write(raw[start:end])
        stream.close()
    assert [(request.target, request.content) for request in server.requests] == [
        (f"/{i}", body) for i, (body, _) in enumerate(bodies)
    ]
