"""Hand-made HTTP clients over a stream, and the runtimes to run them in, for the tests of the mock server.

A test is one coroutine function. In threads it is driven over the blocking backend, whose methods get the async names.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import h2.config
import h2.connection
import h2.events
import h11
import pytest
import trio
from hyperframe.frame import Frame, GoAwayFrame

from lamina_interfaces import drive
from lamina_mock._server import MockServer

try:
    import uvloop as _uvloop
except ImportError:  # pragma: no cover - not made for every system
    uvloop: Any = None
else:
    uvloop = _uvloop

CONTEXT = ssl.create_default_context()

# More round trips than any of these exchanges needs; so no loop here is without end.
MANY = 20_000


class AsyncNames:
    """A blocking stream under the method names of an async one."""

    def __init__(self, blocking: Any) -> None:
        self._blocking = blocking

    def __getattr__(self, name: str) -> Any:
        if name == "get_extra_info":
            return self._blocking.get_extra_info

        async def call(*args: Any, **kwargs: Any) -> Any:
            return getattr(self._blocking, "close" if name == "aclose" else name)(*args, **kwargs)

        return call


class World(NamedTuple):
    """A runtime."""

    name: str
    is_async: bool
    run: Callable[[Coroutine[Any, Any, Any]], Any]

    @asynccontextmanager
    async def connect(
        self, server: MockServer, host: str = "example.com", port: int = 80
    ) -> AsyncIterator[Any]:
        if self.is_async:
            stream: Any = await server.async_backend.connect_tcp(host, port)
        else:
            stream = AsyncNames(server.backend.connect_tcp(host, port))
        try:
            yield stream
        finally:
            await stream.aclose()

    @asynccontextmanager
    async def http2(self, server: MockServer, **options: Any) -> AsyncIterator["HTTP2Client"]:
        async with self.connect(server) as stream:
            client = HTTP2Client(stream, **options)
            await client.start()
            yield client

    @asynccontextmanager
    async def http1(self, server: MockServer) -> AsyncIterator["HTTP11Client"]:
        async with self.connect(server) as stream:
            yield HTTP11Client(stream)


def run_in_trio(coroutine: Coroutine[Any, Any, Any]) -> Any:
    async def main() -> Any:
        return await coroutine

    return trio.run(main)


def run_in_uvloop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


THREADS = World("threads", False, drive)
ASYNCIO = World("asyncio", True, asyncio.run)
TRIO = World("trio", True, run_in_trio)
WORLDS = [
    THREADS,
    ASYNCIO,
    pytest.param(
        World("uvloop", True, run_in_uvloop),
        marks=pytest.mark.skipif(uvloop is None, reason="uvloop is not installed"),
    ),
    TRIO,
]

every_world = pytest.mark.parametrize("world", WORLDS, ids=["threads", "asyncio", "uvloop", "trio"])

Body = Callable[[World], Awaitable[None]]


def in_every_world(body: Body) -> Callable[[World], None]:
    """Make a test of a coroutine function that takes the world."""

    def test(world: World) -> None:
        world.run(body(world))  # type: ignore[arg-type] # a call of a coroutine function gives a coroutine

    test.__doc__ = body.__doc__
    made: Callable[[World], None] = every_world(test)
    return made


@dataclass
class Result:
    """What has come on a stream."""

    status: int = 0
    reason: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    content: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    ended: bool = False
    reset_code: int | None = None


def text(headers: Any) -> list[tuple[str, str]]:
    return [(name.decode(), value.decode()) for name, value in headers]


def head(method: str, path: str) -> list[tuple[str, str]]:
    return [(":method", method), (":scheme", "http"), (":authority", "example.com"), (":path", path)]


class HTTP2Client:
    """The client's side of an HTTP/2 connection. It gives credit as it reads, unless told not to."""

    def __init__(self, stream: Any, credits: bool = True, validate: bool = True) -> None:
        self.stream = stream
        self.credits = credits
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True, validate_outbound_headers=validate, normalize_outbound_headers=validate
            )
        )
        self.results: dict[int, Result] = {}
        self.goaways: list[tuple[int, int]] = []
        self.events: list[h2.events.Event] = []
        self.order: list[int] = []  # the streams of DATA frames
        self.has_ended = False
        self._input = b""

    async def start(self) -> None:
        self.h2.initiate_connection()
        # h2 would take the acknowledgement of these settings for that of a later change.
        await self.until(
            lambda: any(isinstance(event, h2.events.SettingsAcknowledged) for event in self.events)
        )

    async def flush(self, timeout: float | None = None) -> None:
        data = self.h2.data_to_send()
        if data:
            await self.stream.write(data, timeout=timeout)

    async def send(
        self,
        method: str = "GET",
        path: str = "/",
        headers: Any = (),
        content: bytes | None = None,
        ends: bool = True,
    ) -> int:
        """Send a request, its content as far as the window allows at once."""
        stream_id = self.h2.get_next_available_stream_id()
        self.results[stream_id] = Result()
        self.h2.send_headers(stream_id, [*head(method, path), *headers], end_stream=ends and content is None)
        await self.flush()
        if content is not None:
            await self.upload(stream_id, content, ends)
        return stream_id

    async def upload(self, stream_id: int, content: bytes, ends: bool = True) -> None:
        rest = memoryview(content)
        for _ in range(MANY):
            if self.results[stream_id].reset_code is not None:
                return
            size = min(
                len(rest), self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size
            )
            if size == 0 and rest:
                await self.pump()
                continue
            self.h2.send_data(stream_id, bytes(rest[:size]), end_stream=ends and size == len(rest))
            rest = rest[size:]
            await self.flush()
            if not rest:
                return
        raise AssertionError("the upload does not end")

    async def pump(self, timeout: float | None = 100.0) -> None:
        """Send what is ready, read once, and take in what has come."""
        await self.flush()
        data = await self.stream.read(timeout=timeout)
        self.has_ended = not data
        self._input += data
        while len(self._input) >= 9:
            frame, size = Frame.parse_frame_header(memoryview(self._input[:9]))
            if len(self._input) < 9 + size:
                break
            raw, self._input = self._input[: 9 + size], self._input[9 + size :]
            if isinstance(frame, GoAwayFrame):  # h2 would send and take nothing any more
                frame.parse_body(memoryview(raw[9:]))
                self.goaways.append((frame.last_stream_id, frame.error_code))
                continue
            for event in self.h2.receive_data(raw):
                self.events.append(event)
                self.take(event)

    def take(self, event: h2.events.Event) -> None:
        result = self.results.get(getattr(event, "stream_id", None) or 0, Result())
        match event:
            case h2.events.InformationalResponseReceived():
                result.interim.append(int(dict(event.headers)[b":status"]))
            case h2.events.ResponseReceived():
                result.status = int(dict(event.headers)[b":status"])
                result.headers = [pair for pair in text(event.headers) if pair[0] != ":status"]
            case h2.events.DataReceived():
                result.content += event.data
                self.order.append(event.stream_id)
                if self.credits and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.TrailersReceived():
                result.trailers = text(event.headers)
            case h2.events.StreamEnded():
                result.ended = True
            case h2.events.StreamReset():
                result.reset_code = int(event.error_code)

    async def until(self, is_done: Callable[[], bool]) -> None:
        for _ in range(MANY):
            if is_done():
                return
            assert not self.has_ended, "the connection has ended"
            await self.pump()
        raise AssertionError("it does not come about")

    async def result(self, stream_id: int) -> Result:
        """Wait for the end of a response."""
        result = self.results[stream_id]
        await self.until(lambda: result.ended or result.reset_code is not None)
        return result

    async def get(self, path: str = "/", **options: Any) -> Result:
        return await self.result(await self.send(path=path, **options))

    async def round_trip(self) -> None:
        """Wait until the server has dealt with everything, and we with all that it has said."""
        self.events.clear()
        self.h2.ping(b"are here")
        await self.flush()
        await self.until(lambda: any(isinstance(event, h2.events.PingAckReceived) for event in self.events))


class HTTP11Client:
    """The client's side of an HTTP/1.1 connection."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.h11 = h11.Connection(h11.CLIENT)

    async def send(
        self,
        method: str = "GET",
        target: str = "/",
        headers: Any = (),
        content: list[bytes] | None = None,
        trailers: Any = (),
    ) -> None:
        framing = [("Transfer-Encoding", "chunked")] if content is not None else []
        fields = [("Host", "example.com"), *framing, *headers]
        await self.say(h11.Request(method=method, target=target, headers=fields))
        for chunk in content or ():
            await self.say(h11.Data(data=chunk))
        await self.say(h11.EndOfMessage(headers=trailers))

    async def say(self, event: h11.Event) -> None:
        data = self.h11.send(event)
        if data:
            await self.stream.write(data)

    async def next_event(self) -> Any:
        for _ in range(MANY):
            event = self.h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            self.h11.receive_data(await self.stream.read(timeout=100.0))
        raise AssertionError("it does not come about")

    async def receive(self) -> Result:
        """Wait for a response, and make ready for the next request if there may be one."""
        result = Result()
        for _ in range(MANY):
            event = await self.next_event()
            match event:
                case h11.InformationalResponse():
                    result.interim.append(event.status_code)
                case h11.Response():
                    result.status = event.status_code
                    result.reason = event.reason.decode()
                    result.headers = text(event.headers.raw_items())
                case h11.Data():
                    result.content += event.data
                case h11.EndOfMessage():
                    result.trailers = text(event.headers.raw_items())
                    result.ended = True
                    if self.h11.our_state is h11.DONE and self.h11.their_state is h11.DONE:
                        self.h11.start_next_cycle()
                    return result
                case _:
                    return result
        raise AssertionError("the response does not end")

    async def get(self, target: str = "/", **options: Any) -> Result:
        await self.send(target=target, **options)
        return await self.receive()
