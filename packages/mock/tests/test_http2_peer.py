"""The mock server over HTTP/2: a client end made of h2 speaks with it, in every runtime."""

from collections.abc import Callable
from typing import Any

import h2.events
import h2.settings
import pytest
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, SettingsFrame, WindowUpdateFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina_interfaces import LocalProtocolError, ReadError, ReadTimeout, WriteTimeout, drive
from lamina_mock._clock import VirtualClock
from lamina_mock._failures import ScriptError
from lamina_mock._http import MockRequest, MockResponse
from lamina_mock._server import MockServer
from mock_http_clients import THREADS, HTTP2Client, Result, World, head, in_every_world

WINDOW = 65_535
CANCEL, REFUSED_STREAM, INTERNAL_ERROR, NO_ERROR = 8, 7, 2, 0

# WINDOW_UPDATE by nothing, which RFC 9113, section 6.9, forbids.
ZERO_INCREMENT = WindowUpdateFrame(0, 1).serialize()[:9] + bytes(4)


def serve(
    handler: Callable[[MockRequest], Any] = lambda request: request.target, **options: Any
) -> MockServer:
    return MockServer(handler, http2=True, **options)


# --- requests and responses --------------------------------------------------------------------------------


@in_every_world
async def test_a_request_is_answered_and_recorded(world: World) -> None:
    with serve(lambda request: MockResponse(201, {"X-One": "1"}, b"hello")) as server:
        async with world.http2(server) as client:
            result = await client.get("/path?query", headers=[("accept", "*/*")])
        assert (result.status, result.content) == (201, b"hello")
        assert result.headers == [("x-one", "1"), ("content-length", "5")]
        [request] = server.requests
        assert (request.method, request.target, request.scheme) == ("GET", "/path?query", "http")
        assert (request.authority, request.headers) == ("example.com", (("accept", "*/*"),))
        assert (request.http_version, request.stream_id, request.is_complete) == ("HTTP/2", 1, True)
        assert request.connection is server.connections[0]
        assert request.header("Accept") == "*/*"
        assert request.header("absent") is None


@in_every_world
async def test_content_and_trailers_go_both_ways(world: World) -> None:
    with serve(
        lambda request: MockResponse(content=[b"got ", request.content], trailers={"sum": "7"})
    ) as server:
        async with world.http2(server) as client:
            stream_id = await client.send("POST", content=b"body", ends=False)
            client.h2.send_headers(stream_id, [("check", "4")], end_stream=True)
            await client.flush()
            result = await client.result(stream_id)
        assert (result.content, result.trailers) == (b"got body", [("sum", "7")])
        assert ("content-length", "8") not in result.headers
        assert server.requests[0].trailers == (("check", "4"),)


@in_every_world
async def test_a_response_without_content_ends_with_its_head(world: World) -> None:
    with serve(lambda request: MockResponse(int(request.target[1:]), content=b"never sent")) as server:
        async with world.http2(server) as client:
            for path, method in (("/204", "GET"), ("/304", "GET"), ("/200", "HEAD")):
                stream_id = await client.send(method, path)
                result = await client.result(stream_id)
                assert (result.status, result.content, result.ended) == (int(path[1:]), b"", True)
        assert client.order == []


@in_every_world
async def test_interim_responses_come_first(world: World) -> None:
    early_hints = MockResponse(103, {"link": "</style.css>"}, delay=1.0)
    with (
        VirtualClock() as clock,
        serve(lambda _: MockResponse(interim=[102, early_hints], delay=1.0)) as server,
    ):
        async with world.http2(server) as client:
            result = await client.get()
        assert (result.interim, result.status, clock()) == ([102, 103], 200, 2.0)


@in_every_world
async def test_an_expectation_is_met_before_the_content(world: World) -> None:
    with serve(lambda request: request.content) as server:
        async with world.http2(server) as client:
            stream_id = await client.send("PUT", headers=[("expect", "100-continue")], ends=False)
            await client.until(lambda: client.results[stream_id].interim == [100])
            await client.upload(stream_id, b"so be it")
            assert (await client.result(stream_id)).content == b"so be it"


@in_every_world
async def test_an_early_response_asks_the_client_to_stop_sending(world: World) -> None:
    def handler(request: MockRequest) -> Any:
        return 413 if request.method == "PUT" and not request.is_complete else request.content

    with serve(handler, respond_early=True) as server:
        async with world.http2(server) as client:
            result = await client.result(await client.send("PUT", ends=False))
            await client.round_trip()
            assert (result.status, result.ended, result.reset_code) == (413, True, NO_ERROR)
            assert server.connections[0].open_streams == 0
            # What was on its way costs no credit, and the connection is as good as new.
            server.connections[0].send_frames()
            assert (await client.get()).status == 200
        assert not server.requests[0].is_complete


@in_every_world
async def test_a_handler_that_leaves_it_is_called_again_at_the_end(world: World) -> None:
    seen = []

    def handler(request: MockRequest) -> Any:
        seen.append((request.is_complete, request.content))
        return request.content if request.is_complete else None

    with serve(handler, respond_early=True) as server:
        async with world.http2(server) as client:
            stream_id = await client.send("PUT", content=b"all of it")
            assert (await client.result(stream_id)).content == b"all of it"
    assert seen == [(False, b""), (True, b"all of it")]


@in_every_world
async def test_a_test_may_answer_later_and_in_any_order(world: World) -> None:
    with serve(lambda _: None) as server:
        async with world.http2(server) as client:
            first, second = await client.send(path="/1"), await client.send(path="/2")
            await client.round_trip()
            assert server.open_streams == 2
            server.requests[1].respond("second")
            assert (await client.result(second)).content == b"second"
            assert not client.results[first].ended
            server.requests[0].respond((200, {}, "first"))
            assert (await client.result(first)).content == b"first"
            with pytest.raises(ValueError, match="answered already"):
                server.requests[0].respond(200)


# --- time --------------------------------------------------------------------------------------------------


@in_every_world
async def test_answers_that_overlap_take_no_longer_than_one(world: World) -> None:
    with VirtualClock() as clock, serve(latency=0.5) as server:
        async with world.http2(server) as client:
            streams = [await client.send(path=f"/{i}") for i in range(20)]
            results = [await client.result(stream_id) for stream_id in streams]
        assert [result.content for result in results] == [b"/%d" % i for i in range(20)]
        assert clock() == 0.5


@in_every_world
async def test_a_quick_answer_overtakes_a_slow_one(world: World) -> None:
    with (
        VirtualClock() as clock,
        serve(lambda request: MockResponse(delay=float(request.target[1:]))) as server,
    ):
        async with world.http2(server) as client:
            slow, quick = await client.send(path="/5"), await client.send(path="/0.25")
            await client.result(quick)
            assert (clock(), client.results[slow].status) == (0.25, 0)
            await client.result(slow)
            assert clock() == 5.0


@in_every_world
async def test_a_delay_without_end_never_answers(world: World) -> None:
    with VirtualClock(), serve(lambda request: MockResponse(delay=float(request.target[1:]))) as server:
        async with world.http2(server) as client:
            never, quick = await client.send(path="/inf"), await client.send(path="/1")
            await client.result(quick)
            with pytest.raises(ReadTimeout):
                await client.result(never)
            assert server.open_streams == 1


@in_every_world
async def test_chunks_come_at_their_time(world: World) -> None:
    with VirtualClock() as clock, serve(lambda _: MockResponse(content=["now", (2.0, "later")])) as server:
        async with world.http2(server) as client:
            stream_id = await client.send()
            await client.until(lambda: client.results[stream_id].content == b"now")
            assert clock() == 0.0
            assert (await client.result(stream_id)).content == b"nowlater"
            assert clock() == 2.0


# --- flow control ------------------------------------------------------------------------------------------


@in_every_world
async def test_an_upload_gets_credit_for_what_has_come(world: World) -> None:
    content = bytes(range(256)) * 4096
    with serve(lambda request: str(len(request.content))) as server:
        async with world.http2(server) as client:
            for _ in range(2):
                stream_id = await client.send("POST", content=content)
                assert (await client.result(stream_id)).content == b"%d" % len(content)
        assert server.requests[0].content == content
        assert server.connections[0].inbound_window > WINDOW / 2


@in_every_world
async def test_an_upload_waits_where_credit_is_withheld(world: World) -> None:
    with serve(lambda request: request.content) as server:
        async with world.http2(server) as client:
            server.connections[0].stop_crediting()
            stream_id = await client.send("POST", content=bytes(WINDOW), ends=False)
            await client.round_trip()
            assert client.h2.local_flow_control_window(stream_id) == 0
            server.connections[0].credit_again()
            await client.round_trip()
            assert client.h2.local_flow_control_window(stream_id) > WINDOW / 2
            await client.upload(stream_id, b"!")
            assert (await client.result(stream_id)).content == bytes(WINDOW) + b"!"


@in_every_world
async def test_windows_for_uploads_are_as_asked(world: World) -> None:
    with serve(connection_window=1_000_000, settings={"initial_window_size": 300_000}) as server:
        async with world.http2(server) as client:
            await client.round_trip()
            stream_id = await client.send("POST", ends=False)
            assert client.h2.outbound_flow_control_window == 1_000_000
            assert client.h2.local_flow_control_window(stream_id) == 300_000


@in_every_world
async def test_a_download_stops_at_the_window_and_goes_on_with_credit(world: World) -> None:
    content = bytes(range(256)) * 2048
    with serve(lambda _: content) as server:
        async with world.http2(server, credits=False) as client:
            stream_id = await client.send()
            result = client.results[stream_id]
            await client.round_trip()
            assert (len(result.content), server.connections[0].outbound_window) == (WINDOW, 0)
            client.h2.increment_flow_control_window(1000)
            await client.round_trip()
            assert len(result.content) == WINDOW  # the stream's own window is still used up
            client.h2.increment_flow_control_window(10, stream_id)
            await client.round_trip()
            assert len(result.content) == WINDOW + 10
            assert server.connections[0].outbound_window == 990
            client.h2.increment_flow_control_window(len(content))
            client.h2.increment_flow_control_window(len(content), stream_id)
            assert (await client.result(stream_id)).content == content
            assert server.connections[0].largest_outbound_window == 990 + len(content)


@in_every_world
async def test_a_window_that_is_lowered_and_raised_by_settings_is_obeyed(world: World) -> None:
    initial_window = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
    with serve(lambda _: bytes(100_000)) as server:
        async with world.http2(server, credits=False) as client:
            client.h2.increment_flow_control_window(1_000_000)
            stream_id = await client.send()
            result = client.results[stream_id]
            await client.round_trip()
            assert len(result.content) == WINDOW
            client.h2.update_settings({initial_window: 1000})  # the window is negative now
            await client.round_trip()
            client.h2.update_settings({initial_window: WINDOW + 1})
            await client.round_trip()
            assert len(result.content) == WINDOW + 1
            client.h2.update_settings({initial_window: 200_000})
            assert len((await client.result(stream_id)).content) == 100_000


@in_every_world
async def test_streams_take_turns_for_the_connection_s_window(world: World) -> None:
    with serve(lambda _: bytes(60_000)) as server:
        async with world.http2(server, credits=False) as client:
            streams = [await client.send() for _ in range(3)]
            await client.round_trip()
            client.order.clear()
            client.h2.increment_flow_control_window(1_000_000)
            for stream_id in streams:
                await client.result(stream_id)
        assert client.order[:4] in ([3, 5, 3, 5], [5, 3, 5, 3])


@in_every_world
async def test_frames_are_as_large_as_the_client_allows(world: World) -> None:
    with serve(lambda _: bytes(60_000)) as server:
        async with world.http2(server) as client:
            await client.get()
            sizes = [len(event.data) for event in client.events if isinstance(event, h2.events.DataReceived)]
            assert max(sizes) == 16_384
            client.h2.update_settings({h2.settings.SettingCodes.MAX_FRAME_SIZE: 50_000})
            client.h2.increment_flow_control_window(100_000)
            await client.round_trip()
            await client.get()
            sizes = [len(event.data) for event in client.events if isinstance(event, h2.events.DataReceived)]
            assert max(sizes) == 50_000


# --- streams that break off --------------------------------------------------------------------------------


@in_every_world
async def test_the_client_may_take_a_request_back(world: World) -> None:
    with VirtualClock() as clock, serve(lambda _: MockResponse(content=b"too late", delay=1.0)) as server:
        async with world.http2(server) as client:
            stream_id = await client.send()
            client.h2.reset_stream(stream_id, CANCEL)
            await client.round_trip()
            assert server.requests[0].reset_code == CANCEL
            assert server.connections[0].open_streams == 0
            assert server.connections[0].frames_received["RST_STREAM"] == 1
            clock.advance(2.0)
            await client.round_trip()
            assert client.results[stream_id].status == 0


def test_thousands_of_early_closes_leave_nothing_open() -> None:
    with serve(lambda _: MockResponse(content=bytes(1000)).stall_after(20)) as server:
        stream = server.backend.connect_tcp("example.com", 80)
        client = HTTP2Client(_Asynced(stream))

        async def main() -> None:
            await client.start()
            for _ in range(3000):
                stream_id = await client.send()
                result = client.results[stream_id]
                while not result.status:
                    await client.pump()
                client.h2.reset_stream(stream_id, CANCEL)
                del client.results[stream_id]
                client.events.clear()
            await client.round_trip()

        drive(main())
        stream.close()
        [connection] = server.connections
        assert connection.open_streams == 0
        assert connection.outbound_window == client.h2.inbound_flow_control_window > 0
        assert connection.frames_received["RST_STREAM"] == 3000


class _Asynced:
    def __init__(self, stream: Any) -> None:
        self.stream = stream

    async def read(self, timeout: float | None) -> bytes:
        return self.stream.read(timeout=timeout)  # type: ignore[no-any-return] # a NetworkStream's

    async def write(self, data: bytes, timeout: float | None) -> None:
        self.stream.write(data, timeout=timeout)


@in_every_world
async def test_a_response_may_be_a_reset(world: World) -> None:
    answers = {
        "/reset": MockResponse.reset(),
        "/refuse": MockResponse.refuse(),
        "/code": MockResponse.reset(0xB),
    }
    with serve(lambda request: answers.get(request.target, 200)) as server:
        async with world.http2(server) as client:
            codes = [(await client.get(path)).reset_code for path in ("/reset", "/refuse", "/code")]
            assert codes == [INTERNAL_ERROR, REFUSED_STREAM, 0xB]
            assert (await client.get()).status == 200


@pytest.mark.parametrize("content", [b"0123456789", [b"01234", b"56789"]], ids=["whole", "chunks"])
@pytest.mark.parametrize("size", [0, 4, 5, 7, 10, 99])
@pytest.mark.parametrize("fault", ["reset", "eof", "stall"])
def test_a_response_may_break_off_after_some_bytes(fault: str, size: int, content: Any) -> None:
    with (
        VirtualClock(),
        serve(lambda _: getattr(MockResponse(content=content), f"{fault}_after")(size)) as server,
    ):
        stream = server.backend.connect_tcp("example.com", 80)
        client = HTTP2Client(_Asynced(stream))

        async def main() -> None:
            await client.start()
            stream_id = await client.send()
            result = client.results[stream_id]
            try:
                await client.until(lambda: result.reset_code is not None or client.has_ended)
            except ReadTimeout:
                assert fault == "stall"
            assert (result.status, result.content) == (200, b"0123456789"[:size])
            assert not result.ended
            assert (result.reset_code is not None) == (fault == "reset")
            assert client.has_ended == (fault == "eof")

        drive(main())
        stream.close()


@in_every_world
async def test_a_test_may_reset_a_stream(world: World) -> None:
    with serve(lambda _: None) as server:
        async with world.http2(server) as client:
            stream_id = await client.send()
            assert server.connections[0].reset_stream(stream_id, 3)
            assert (await client.result(stream_id)).reset_code == 3
            assert not server.connections[0].reset_stream(stream_id, 3)
            assert server.open_streams == 0


# --- GOAWAY ------------------------------------------------------------------------------------------------


@in_every_world
async def test_streams_up_to_the_last_finish_and_later_ones_are_dropped(world: World) -> None:
    with serve(lambda _: None) as server:
        async with world.http2(server) as client:
            first, second, third = [await client.send(path=f"/{i}") for i in range(3)]
            server.connections[0].goaway(second)
            late = await client.send(path="/late", headers=[("x-new-in-the-table", "1")])
            await client.round_trip()
            assert client.goaways == [(second, NO_ERROR)]
            assert len(server.requests) == 3
            assert server.connections[0].open_streams == 2
            for request in server.requests:
                request.respond(request.target)
            assert (await client.result(first)).content == b"/0"
            assert (await client.result(second)).content == b"/1"
            await client.until(lambda: client.has_ended)
            assert client.results[third].status == client.results[late].status == 0
        assert not server.connections[0].is_open


@in_every_world
async def test_goaway_of_an_idle_connection_ends_it(world: World) -> None:
    with serve() as server:
        async with world.http2(server) as client:
            await client.get()
            server.connections[0].goaway(error_code=0xB, debug_data=b"calm down")
            await client.until(lambda: client.has_ended)
            assert client.goaways == [(1, 0xB)]


@in_every_world
async def test_goaway_may_leave_the_connection_open(world: World) -> None:
    with serve() as server:
        async with world.http2(server) as client:
            server.connections[0].goaway(2**31 - 1, close=False)
            assert (await client.get()).status == 200
            server.connections[0].goaway(1)
            await client.until(lambda: client.has_ended)
            assert client.goaways == [(2**31 - 1, NO_ERROR), (1, NO_ERROR)]


@in_every_world
async def test_a_handler_may_use_the_connection_itself(world: World) -> None:
    def handler(request: MockRequest) -> Any:
        if request.target == "/reset":
            assert request.stream_id is not None
            request.connection.reset_stream(request.stream_id, 3)
        else:
            request.connection.goaway()
        return "done"

    with serve(handler) as server:
        async with world.http2(server) as client:
            result = await client.get("/reset")
            assert (result.reset_code, result.status) == (3, 0)
            assert (await client.get("/goaway")).content == b"done"
            await client.until(lambda: client.has_ended)
            assert client.goaways == [(3, NO_ERROR)]


@in_every_world
async def test_an_answer_may_be_goaway(world: World) -> None:
    with serve(lambda request: MockResponse.goaway() if request.target == "/go" else None) as server:
        async with world.http2(server) as client:
            first = await client.send(path="/stay")
            await client.send(path="/go")
            await client.round_trip()
            assert client.goaways == [(first, NO_ERROR)]
            server.requests[0].respond("done")
            assert (await client.result(first)).content == b"done"
            await client.until(lambda: client.has_ended)


@in_every_world
async def test_max_requests_ends_the_connection_gracefully(world: World) -> None:
    with serve(max_requests=2) as server:
        for _ in range(2):
            async with world.http2(server) as client:
                streams = [await client.send(path=f"/{i}") for i in range(3)]
                for stream_id in streams[:2]:
                    assert (await client.result(stream_id)).status == 200
                await client.until(lambda client=client: client.has_ended)  # type: ignore[misc] # the loop's own
                assert client.goaways == [(streams[1], NO_ERROR)]
                assert client.results[streams[2]].status == 0
        assert [len(connection.requests) for connection in server.connections] == [2, 2]


@in_every_world
async def test_the_client_s_goaway_stops_no_answer(world: World) -> None:
    with serve(lambda _: None) as server:
        async with world.http2(server) as client:
            stream_id = await client.send()
            client.h2.close_connection()
            await client.flush()
            client.h2.state_machine.state = client.h2.state_machine.state.CLIENT_OPEN
            server.requests[0].respond("still here")
            assert (await client.result(stream_id)).content == b"still here"
        assert server.connections[0].goaway_received == (0, NO_ERROR)


# --- settings ----------------------------------------------------------------------------------------------


@in_every_world
async def test_streams_above_a_limit_are_refused(world: World) -> None:
    server = serve(lambda _: None, max_concurrent_streams=2)
    async with world.connect(server) as stream:
        client = HTTP2Client(stream)
        client.h2.initiate_connection()
        streams = [await client.send() for _ in range(3)]  # before anything was read: the client cannot know
        assert (await client.result(streams[2])).reset_code == REFUSED_STREAM
        server.check()
        await client.round_trip()
        client.h2.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 100
        client.h2.remote_settings.acknowledge()
        assert (await client.result(await client.send())).reset_code == REFUSED_STREAM
        with pytest.raises(ScriptError, match=r"opened 3 streams .* acknowledged a limit of 2"):
            server.check()
        server.requests[0].respond(200)
        server.requests[1].respond(200)
        assert len(server.requests) == 2
        fourth = await client.send()
        server.requests[2].respond(200)
        assert (await client.result(fourth)).status == 200
    server.check()


@in_every_world
async def test_settings_may_come_late(world: World) -> None:
    with VirtualClock() as clock, serve(max_concurrent_streams=2, settings_delay=3.0) as server:
        async with world.connect(server) as stream:
            client = HTTP2Client(stream)
            client.h2.initiate_connection()
            streams = [await client.send() for _ in range(3)]
            assert (server.requests, clock()) == ([], 0.0)
            results = [await client.result(stream_id) for stream_id in streams]
            assert clock() == 3.0
            assert isinstance(client.events[0], h2.events.RemoteSettingsChanged)
            assert [result.reset_code for result in results] == [
                None,
                None,
                None,
            ]  # each was over before the next
        server.settings_delay = float("inf")
        async with world.connect(server) as stream:
            await stream.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            with pytest.raises(ReadTimeout):
                await stream.read(timeout=1000.0)


@in_every_world
async def test_limits_change_at_run_time(world: World) -> None:
    with serve(lambda _: None, max_concurrent_streams=1) as server:
        async with world.http2(server) as client:
            assert client.h2.remote_settings.max_concurrent_streams == 1
            server.change_settings(max_concurrent_streams=3)
            server.change_settings(initial_window_size=100_000)
            await client.round_trip()
            await client.round_trip()
            assert client.h2.remote_settings.max_concurrent_streams == 3
            assert client.h2.remote_settings.initial_window_size == 100_000
            for _ in range(3):
                await client.send()
            server.connections[0].change_settings(max_concurrent_streams=1)
            await client.round_trip()
            assert client.h2.remote_settings.max_concurrent_streams == 1
            assert server.open_streams == 3
            assert server.connections[0].frames_received["SETTINGS ACK"] == 4
        async with world.http2(server) as client:
            assert client.h2.remote_settings.max_concurrent_streams == 3


@in_every_world
async def test_a_client_may_keep_to_old_settings_until_it_has_seen_the_new_ones(world: World) -> None:
    with serve(lambda request: str(len(request.content))) as server:
        async with world.http2(server) as client:
            await client.round_trip()
            server.connections[0].stop_crediting()
            server.change_settings(max_concurrent_streams=5)
            server.change_settings(initial_window_size=10)
            await client.until(lambda: client.h2.remote_settings.max_concurrent_streams == 5)
            stream_id = await client.send("POST", content=bytes(WINDOW))
            assert (await client.result(stream_id)).content == b"%d" % WINDOW
            assert client.h2.remote_settings.initial_window_size == 10


@in_every_world
async def test_a_setting_that_makes_no_sense_is_refused(world: World) -> None:
    server = serve()
    async with world.http2(server):
        with pytest.raises(ValueError, match="'max_streams' is no setting"):
            server.change_settings(max_streams=1)
        with pytest.raises(ValueError, match="between 16384 and"):
            server.change_settings(max_frame_size=1)


# --- the connection ----------------------------------------------------------------------------------------


@in_every_world
async def test_pings_are_answered_unless_told_otherwise(world: World) -> None:
    with serve() as server:
        async with world.http2(server) as client:
            await client.round_trip()
            server.answer_pings = False
            with pytest.raises(ReadTimeout):
                await client.round_trip()
            assert (await client.get()).status == 200


@in_every_world
async def test_the_server_pings(world: World) -> None:
    with serve() as server:
        async with world.http2(server) as client:
            server.connections[0].ping()
            await client.round_trip()
            assert server.connections[0].frames_received["PING ACK"] == 1


@in_every_world
async def test_a_black_hole_takes_everything_and_says_nothing(world: World) -> None:
    with serve() as server:
        async with world.http2(server) as client:
            server.connections[0].black_hole()
            with pytest.raises(ReadTimeout):
                await client.get()
        assert server.requests == []


@in_every_world
async def test_a_server_that_stops_reading_stops_the_client_s_writes(world: World) -> None:
    with VirtualClock(), serve() as server:
        async with world.http2(server) as client:
            server.connections[0].stop_reading()
            client.h2.send_headers(1, head("GET", "/"), end_stream=True)
            with pytest.raises(WriteTimeout):
                await client.flush(timeout=1.0)
            assert server.requests == []


@in_every_world
async def test_a_connection_ends_or_breaks_on_demand(world: World) -> None:
    with serve(lambda _: None) as server:
        async with world.http2(server) as client:
            await client.send()
            server.connections[0].end()
            await client.until(lambda: client.has_ended)
            server.requests[0].respond(200)  # nothing comes of it
        async with world.http2(server) as client:
            await client.send()
            server.connections[1].reset()
            with pytest.raises(ReadError):
                await client.result(1)
        assert [connection.is_open for connection in server.connections] == [False, False]
        assert server.open_streams == 0


@in_every_world
async def test_an_answer_may_be_the_end_of_the_connection(world: World) -> None:
    with serve(lambda _: MockResponse.eof()) as server:
        async with world.http2(server) as client:
            await client.send()
            await client.until(lambda: client.has_ended)
            assert client.results[1].status == 0


@in_every_world
async def test_hand_made_frames_are_sent_as_they_are(world: World) -> None:
    with serve(lambda _: None) as server:
        async with world.http2(server) as client:
            stream_id = await client.send()
            block = client.h2.encoder.__class__().encode([(":status", "200")])
            server.connections[0].send_frames(
                PingFrame(0, b"12345678"),
                HeadersFrame(stream_id, block, flags=["END_HEADERS"]),
                DataFrame(stream_id, b"by hand", flags=["END_STREAM"]),
            )
            assert (await client.result(stream_id)).content == b"by hand"
            server.connections[0].say_raw(SettingsFrame(0, {3: 7}).serialize())
            await client.round_trip()
            assert client.h2.remote_settings.max_concurrent_streams == 7


# --- what fails the test -----------------------------------------------------------------------------------


@in_every_world
async def test_a_client_that_breaks_the_protocol_fails_the_test(world: World) -> None:
    server = serve()
    async with world.http2(server) as client:
        assert (await client.get()).status == 200
        await client.stream.write(ZERO_INCREMENT)
        await client.until(lambda: client.has_ended)
        assert client.goaways == [(1, 1)]
    with pytest.raises(ScriptError, match="broke HTTP/2") as caught:
        server.check()
    assert caught.value.__cause__ is not None
    server.check()


@in_every_world
async def test_what_comes_after_the_end_of_a_stream_fails_the_test(world: World) -> None:
    server = serve(lambda _: MockResponse(delay=5.0))
    async with world.http2(server) as client:
        stream_id = await client.send()
        await client.stream.write(DataFrame(stream_id, b"more").serialize())
        assert (await client.result(stream_id)).reset_code == 5
    with pytest.raises(ScriptError, match="something came on stream 1 after its end"):
        server.check()


@in_every_world
async def test_a_length_without_content_fails_the_test(world: World) -> None:
    server = serve()
    async with world.http2(server) as client:
        stream_id = await client.send(headers=[("content-length", "5")])
        assert (await client.result(stream_id)).reset_code == 1
        assert (await client.get(headers=[("content-length", "0")])).status == 200
    with pytest.raises(ScriptError, match="has no content, but a content-length"):
        server.check()


@in_every_world
async def test_a_client_without_settings_fails_the_test(world: World) -> None:
    server = serve()
    async with world.connect(server) as stream:
        client = HTTP2Client(stream)
        client.h2.initiate_connection()
        client.h2.clear_outbound_data_buffer()
        await stream.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + PingFrame(0, bytes(8)).serialize())
        await client.until(lambda: client.has_ended)
        assert client.goaways == [(0, 1)]
    with pytest.raises(ScriptError, match="its first frame is PING instead of SETTINGS"):
        server.check()


@in_every_world
async def test_a_frame_that_is_too_long_fails_the_test(world: World) -> None:
    server = serve()
    async with world.http2(server) as client:
        await client.stream.write(DataFrame(1, bytes(16_385)).serialize())
        await client.until(lambda: client.has_ended)
        assert client.goaways == [(0, 6)]
    with pytest.raises(ScriptError, match="FrameTooLarge"):
        server.check()


@in_every_world
async def test_what_came_before_a_mistake_in_the_same_bytes_is_dealt_with(world: World) -> None:
    server = serve()
    async with world.http2(server) as client:
        client.h2.send_headers(1, head("GET", "/"), end_stream=True)
        client.results[1] = Result()
        await client.stream.write(client.h2.data_to_send() + ZERO_INCREMENT)
        await client.until(lambda: client.has_ended)
        assert client.results[1].status == 200
    with pytest.raises(ScriptError):
        server.check()


@in_every_world
async def test_a_handler_that_raises_resets_the_stream_and_fails_the_test(world: World) -> None:
    def handler(request: MockRequest) -> Any:
        assert request.target == "/right"

    server = serve(handler)
    async with world.http2(server) as client:
        assert (await client.get("/wrong")).reset_code == INTERNAL_ERROR
    with pytest.raises(ScriptError, match=r"handler failed on <MockRequest \[GET /wrong") as caught:
        server.check()
    assert isinstance(caught.value.__cause__, AssertionError)


@in_every_world
async def test_an_answer_that_the_protocol_forbids_fails_the_test(world: World) -> None:
    server = serve(lambda _: MockResponse(headers={"x": "one\ntwo"}))
    async with world.http2(server) as client:
        assert (await client.get()).reset_code == INTERNAL_ERROR
        assert server.open_streams == 0
    with pytest.raises(ScriptError, match="breaks the protocol"):
        server.check()


@pytest.mark.parametrize(
    ("response", "is_wrong"),
    [
        (MockResponse(headers={"Content-Length": "3"}, content=b"hello"), True),
        (MockResponse(headers={"Content-Length": "9"}, content=[b"hel", b"lo"]), True),
        (MockResponse(headers={"Content-Length": "5"}, content=[b"hel", b"lo"]), False),
        (MockResponse(headers={"Content-Length": "9"}, content=b"hello").stall_after(5), False),
        (MockResponse(304, headers={"Content-Length": "9"}), False),
    ],
)
def test_an_answer_of_another_length_than_it_says_fails_the_test(
    response: MockResponse, is_wrong: bool
) -> None:
    server = serve(lambda _: response)

    async def body() -> None:
        async with THREADS.http2(server) as client:
            stream_id = await client.send()
            if is_wrong:
                assert (await client.result(stream_id)).reset_code == 2
            else:
                await client.until(lambda: client.results[stream_id].status != 0)

    drive(body())
    if is_wrong:
        with pytest.raises(ScriptError, match=r"the content-length of 5 bytes is b'[39]'"):
            server.check()
    else:
        server.check()


def test_a_head_without_content_may_tell_any_length() -> None:
    server = serve(lambda _: MockResponse(headers={"Content-Length": "9"}))

    async def body() -> None:
        async with THREADS.http2(server) as client:
            assert (await client.get(method="HEAD")).headers[0] == ("content-length", "9")

    drive(body())
    server.check()


def test_an_answer_may_be_wrong_on_purpose() -> None:
    with serve(
        lambda _: MockResponse(headers=[("Upper", "Case")], content=["x"], trailers={"T": "t"}, verbatim=True)
    ) as server:
        stream = server.backend.connect_tcp("example.com", 80)
        client = HTTP2Client(_Asynced(stream))
        client.h2.config.validate_inbound_headers = False

        async def main() -> None:
            await client.start()
            result = await client.get()
            assert (result.headers, result.trailers) == ([("Upper", "Case")], [("T", "t")])
            # The next one is checked again.
            server.handler = lambda _: MockResponse(headers=[("Upper", "Case")])
            assert (await client.get()).headers == [("upper", "Case"), ("content-length", "0")]

        drive(main())
        stream.close()


@in_every_world
async def test_what_only_http2_has_is_refused_before_it_is_spoken(world: World) -> None:
    server = serve()
    async with world.connect(server):
        with pytest.raises(LocalProtocolError, match="HTTP/2 only"):
            server.connections[0].goaway()


# --- anything, in any order --------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.data())
def test_whatever_happens_in_between_contents_arrive_whole(data: st.DataObject) -> None:
    """Uploads and downloads of random sizes, windows and settings changed on both sides, resets, bytes cut anywhere."""
    server = serve(lambda request: MockResponse(content=[request.content, bytes(int(request.target[1:]))]))
    stream = server.backend.connect_tcp("example.com", 80)
    client = HTTP2Client(_Asynced(stream), credits=False)
    sizes = st.integers(0, 150_000)
    uploads: dict[int, tuple[bytes, int]] = {}

    async def write_in_pieces(raw: bytes, timeout: float | None = None) -> None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=3)))
        for start, end in zip([0, *cuts], [*cuts, len(raw)], strict=True):
            if end > start:
                stream.write(raw[start:end])

    async def main() -> None:
        await client.start()
        client.stream.write = write_in_pieces
        for _ in range(data.draw(st.integers(1, 8))):
            match data.draw(st.sampled_from(["open", "open", "reset", "window", "settings", "server's"])):
                case "open":
                    size = data.draw(sizes)
                    content = data.draw(st.binary(max_size=50)) * data.draw(st.integers(1, 50))
                    stream_id = await client.send("POST", f"/{size}", content=content)
                    uploads[stream_id] = (content, size)
                case "reset" if uploads:
                    stream_id = data.draw(st.sampled_from(sorted(uploads)))
                    del uploads[stream_id]
                    if not client.results[stream_id].ended:
                        client.h2.reset_stream(stream_id, CANCEL)
                case "window":
                    client.h2.increment_flow_control_window(data.draw(st.integers(1, 100_000)))
                case "settings":
                    code = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
                    client.h2.update_settings({code: data.draw(st.integers(0, 200_000))})
                case "server's":
                    server.change_settings(initial_window_size=data.draw(st.integers(1, 200_000)))
            await client.flush()
        await client.round_trip()
        client.h2.increment_flow_control_window(2_000_000)
        client.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000})
        await client.flush()
        for stream_id, (content, size) in uploads.items():
            result = await client.result(stream_id)
            assert result.content == content + bytes(size)
            assert result.ended
        await client.round_trip()

    drive(main())
    stream.close()
    server.check()
    assert server.open_streams == 0
