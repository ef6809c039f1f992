"""An HTTP server for tests, in memory: a handler behind real HTTP/1.1 or HTTP/2, without sockets, threads or tasks.

`MockServer` is what the connections have in common, `MockConnection` the server's end of one of them. What HTTP a
connection speaks is decided when the client's first bytes come, and an engine (`_http11_peer`, `_http2_peer`) does the
rest.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from lamina_interfaces import ArgumentTypeError, ArgumentValueError, LocalProtocolError, check_seconds

from ._failures import ScriptError
from ._http import NO_ERROR
from ._wire import AsyncPeerBackend, Peer, PeerBackend, TLSFacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from lamina_interfaces import AsyncNetworkBackend, NetworkBackend

    from ._clock import MockClock
    from ._http import Answer, MockRequest
    from ._http2_peer import HTTP2Engine
    from ._http_engine import Engine
    from ._wire import Line

T = TypeVar("T")

DEFAULT_WINDOW = 65_535
"""Bytes: what a window of HTTP/2 is at first (RFC 9113, section 6.9.2)."""

LARGEST_WINDOW = 2**31 - 1
"""Bytes: the most that a window of HTTP/2 may be (RFC 9113, section 6.9.1)."""

# RFC 9113, section 6.5.2, and RFC 8441, section 3. Written down here so that a server can be made without importing h2.
SETTINGS = {
    "header_table_size": 1,
    "enable_push": 2,
    "max_concurrent_streams": 3,
    "initial_window_size": 4,
    "max_frame_size": 5,
    "max_header_list_size": 6,
    "enable_connect_protocol": 8,
}

# What they may be; where nothing is said, any number of 32 bits.
_LEAST_AND_MOST = {2: (0, 1), 4: (0, LARGEST_WINDOW), 5: (2**14, 2**24 - 1), 8: (0, 1)}
_ANY_NUMBER = (0, 2**32 - 1)

PIECE_SIZE = 64 * 1024
"""Bytes that a client reads at once by default."""

# So much of the client's first bytes tells HTTP/2 from everything else (RFC 9113, section 3.4).
_PREFACE_START = b"PRI * HTTP/2.0"


class MockServer:
    r"""An HTTP server in memory, for tests of whatever uses a lamina backend.

    .. code-block:: python

        from lamina_mock import MockResponse, MockServer

        with MockServer(lambda request: MockResponse(content=request.target)) as server:
            with server.backend.connect_tcp("example.com", 80) as stream:  # a pool would do this
                stream.write(b"GET /hello HTTP/1.1\r\nHost: example.com\r\n\r\n")
                assert stream.read().startswith(b"HTTP/1.1 200")
        assert server.requests[0].target == "/hello"

    Every connection, to whatever host and port, leads to it. Over TLS it chooses HTTP/2 if that is on, else HTTP/1.1;
    without TLS it looks at the client's first bytes (prior knowledge, RFC 9113, section 3.3). Its answers take no real
    time: delays run on the clock of the backend.

    The handler is called once for each request, when all of it has come, in the thread or task of the client. It must
    not wait, and nothing else happens on its connection meanwhile. What it raises is kept for `check`, and the client
    sees a reset. Safe to use from several threads, of which one at a time is in the handler.

    Args:
        handler: gets a `MockRequest`, and returns a `MockResponse`; or a status, a content, or a tuple of status,
            headers and content. `None` leaves the request open until `MockRequest.respond` is called.
        http1: whether HTTP/1.1 is spoken.
        http2: whether HTTP/2 is spoken.
        latency: seconds from a request to the first byte of its answer, besides the delay of the answer.
        respond_early: call the handler when the head of the request has come. If it returns `None`, it is called again
            at the end. An answer to a request that is not complete ends with RST_STREAM(NO_ERROR) (RFC 9113, section
            8.1), under HTTP/1.1 with the end of the connection.
        max_requests: a connection takes so many, then it answers them and ends: with `Connection: close`, or GOAWAY.
        max_concurrent_streams: of each HTTP/2 connection; `None` for no limit. Streams above it are refused; if the
            client could have known, it is a failure of the test as well.
        settings: further settings of HTTP/2 by name or number: `header_table_size`, `initial_window_size` (bytes that
            each upload may be ahead), `max_frame_size`, `max_header_list_size` (bytes), `enable_connect_protocol`.
        connection_window: bytes that all uploads on one HTTP/2 connection may be ahead; at least 65,535.
        answer_pings: whether PING frames are answered.
        settings_delay: seconds from a client's first bytes to the SETTINGS of an HTTP/2 server; before it has sent
            them, it deals with nothing. `inf` for ever.
        connect_delay: seconds that connecting takes; `inf` for ever.
        connect_error: why no connection can be made.
        tls: what a TLS handshake comes to, such as an error or a delay. Where it names no protocol, the server chooses.
        clock: that the backends wait on: see `PeerBackend`.

    Attributes:
        handler, latency, respond_early, max_requests, answer_pings, settings_delay, connect_delay, connect_error, tls:
            as given; may be changed at any time.
        settings: of HTTP/2 connections to come, by number.
        requests: all requests, in the order in which their heads came.
        connections: all connections, in the order in which they were opened.

    Raises:
        ArgumentTypeError, ArgumentValueError: an argument makes no sense.
    """

    def __init__(
        self,
        handler: Callable[[MockRequest], Answer],
        *,
        http1: bool = True,
        http2: bool = False,
        latency: float = 0.0,
        respond_early: bool = False,
        max_requests: int | None = None,
        max_concurrent_streams: int | None = None,
        settings: Mapping[str | int, int] | None = None,
        connection_window: int = DEFAULT_WINDOW,
        answer_pings: bool = True,
        settings_delay: float = 0.0,
        connect_delay: float = 0.0,
        connect_error: str | None = None,
        tls: TLSFacts | None = None,
        clock: MockClock | None = None,
    ) -> None:
        if not callable(handler):
            raise ArgumentTypeError(f"a handler is callable, not {handler!r}")
        if not (http1 or http2):
            raise ArgumentValueError("a server speaks HTTP/1.1, HTTP/2 or both")
        if not DEFAULT_WINDOW <= connection_window <= LARGEST_WINDOW:
            raise ArgumentValueError(
                f"connection_window is between {DEFAULT_WINDOW} and {LARGEST_WINDOW}, got {connection_window!r}"
            )
        if max_requests is not None and max_requests < 1:
            raise ArgumentValueError(f"max_requests is at least 1, got {max_requests!r}")
        self.handler: Callable[[MockRequest], Answer] = handler
        self.http1 = http1
        self.http2 = http2
        self.latency: float = check_seconds(latency, "latency")
        self.respond_early = respond_early
        self.max_requests = max_requests
        self.connection_window = connection_window
        self.answer_pings = answer_pings
        self.settings_delay: float = check_seconds(settings_delay, "settings_delay")
        self.connect_delay: float = check_seconds(connect_delay, "connect_delay")
        self.connect_error = connect_error
        self.tls: TLSFacts = TLSFacts() if tls is None else tls
        self.settings: dict[int, int] = _by_number(settings or {})
        if max_concurrent_streams is not None:
            self.settings |= _by_number({"max_concurrent_streams": max_concurrent_streams})
        self.requests: list[MockRequest] = []
        self.connections: list[MockConnection] = []
        self._errors: list[tuple[str, BaseException | None]] = []
        self._lock = threading.Lock()
        self._backend = PeerBackend(self._make_peer, clock=clock)
        self._async_backend = AsyncPeerBackend(self._make_peer, clock=clock)

    def _make_peer(self, host: str, port: int) -> MockConnection:
        return MockConnection(self)

    def add(self, connection: MockConnection) -> int:
        """Take note of a connection that has been made; its number."""
        with self._lock:
            self.connections.append(connection)
            return len(self.connections) - 1

    @property
    def backend(self) -> NetworkBackend:
        """A backend whose every connection leads to this server, for blocking code."""
        return self._backend

    @property
    def async_backend(self) -> AsyncNetworkBackend:
        """A backend whose every connection leads to this server, for asyncio and trio."""
        return self._async_backend

    @property
    def open_streams(self) -> int:
        """Requests that are neither answered nor taken back, on all connections."""
        return sum(connection.open_streams for connection in self.connections)

    def change_settings(self, **settings: int) -> None:
        """Change settings of HTTP/2 by name, on all open connections and those to come. From any thread or task.

        Args:
            **settings: as for the class, `max_concurrent_streams` among them.

        Raises:
            ArgumentValueError: there is no such setting, or it may not have this value.
        """
        self.settings.update(_by_number(settings))
        for connection in self.connections:
            if connection.http_version == "HTTP/2" and connection.is_open:
                connection.change_settings(**settings)

    def record(self, cause: BaseException | None, message: str) -> None:
        """Keep a failure of the test for `check`."""
        self._errors.append((message, cause))

    def check(self) -> None:
        """Fail if a client broke the protocol, or the handler raised, since the last call.

        Raises:
            ScriptError: with what happened; its cause is what was raised first.
        """
        errors, self._errors = self._errors, []
        if errors:
            raise ScriptError("; ".join(message for message, _ in errors)) from errors[0][1]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc is not None and not isinstance(exc, Exception):
            return
        try:
            self.check()
        except ScriptError as failure:
            # What the code under test has made of it is less telling, but not to be hidden.
            if failure.__cause__ is None:
                failure.__cause__ = exc
            elif exc is not None:
                failure.add_note(f"The code under test met: {exc!r}")
            raise

    def __repr__(self) -> str:
        versions = [name for name, is_on in (("HTTP/1.1", self.http1), ("HTTP/2", self.http2)) if is_on]
        return (
            f"<MockServer [{' and '.join(versions)}, {_count(len(self.connections), 'connection')},"
            f" {_count(len(self.requests), 'request')}]>"
        )


class MockConnection(Peer):
    """The server's end of a connection: what came on it, and faults on demand.

    Its methods may be called from any thread, any task, and the handler. On a connection that has ended they do
    nothing.

    Attributes:
        server: the server.
        number: from 0, in the order in which connections were opened.
        requests: that came on it.
        http_version: `"HTTP/1.1"` or `"HTTP/2"`; `None` before the client's first bytes.
        is_open: whether neither side has ended it.
        frames_received: how many frames of HTTP/2 have come, by kind: `frames_received["RST_STREAM"]`. Acknowledgements
            are kinds of their own, `"SETTINGS ACK"` and `"PING ACK"`.
        goaway_received: last stream ID and error code of the client's GOAWAY; `None` if it sent none.
        switched_data: what has come after a change of protocol (101, CONNECT).
    """

    def __init__(self, server: MockServer) -> None:
        self.server: MockServer = server
        self.number: int = -1
        self.name: str = "the mock server"
        self.connect_delay: float = server.connect_delay
        self.connect_error: str | None = server.connect_error
        self.requests: list[MockRequest] = []
        self.http_version: str | None = None
        self.is_open: bool = True
        self.frames_received: Counter[str] = Counter()
        self.goaway_received: tuple[int, int] | None = None
        self.switched_data: bytearray = bytearray()
        self.is_crediting: bool = True
        self._is_black_hole = False
        self._first_bytes = b""
        self._engine: Engine | None = None
        self.line: Line

    # --- what a test may look at ---------------------------------------------------------------------------

    @property
    def host(self) -> str:
        """The host that the client has connected to."""
        return self.line.host

    @property
    def port(self) -> int:
        """The port that the client has connected to."""
        return self.line.port

    @property
    def is_tls(self) -> bool:
        """Whether the client has started TLS."""
        return self.line.tls

    @property
    def open_streams(self) -> int:
        """Requests that are neither answered nor taken back."""
        return self._engine.open_streams if self._engine is not None else 0

    @property
    def outbound_window(self) -> int:
        """Bytes that the server may send on the HTTP/2 connection until the client gives more credit."""
        return self._http2().outbound_window

    @property
    def largest_outbound_window(self) -> int:
        """The most that `outbound_window` has been."""
        return self._http2().largest_outbound_window

    @property
    def inbound_window(self) -> int:
        """Bytes that the client may send on the HTTP/2 connection until the server gives more credit."""
        return self._http2().inbound_window

    @property
    def is_exhausted(self) -> bool:
        """Whether `max_requests` have come."""
        return self.server.max_requests is not None and len(self.requests) >= self.server.max_requests

    # --- faults and changes on demand ----------------------------------------------------------------------

    def end(self) -> None:
        """End the connection in an orderly way: the client reads to the end of what was said, and then `b""`."""
        self.act(self._end)

    def reset(self) -> None:
        """Reset the connection: the client's reads and writes fail."""
        self.act(self._reset)

    def black_hole(self) -> None:
        """From now on take whatever comes, and say nothing, as behind a network that has gone away."""
        self._is_black_hole = True

    def stop_reading(self) -> None:
        """Take no more bytes: the client's writes wait once the buffers are full."""
        self.line.stop_reading()

    def read_again(self) -> None:
        """Take bytes again, after `stop_reading`."""
        self.line.read_again()

    def stop_crediting(self) -> None:
        """Give no more credit for content (WINDOW_UPDATE): HTTP/2 uploads wait once a window is used up."""
        self.is_crediting = False

    def credit_again(self) -> None:
        """Give all the credit that has been withheld since `stop_crediting`, and go on giving it."""
        self.is_crediting = True
        self._act_on_http2(lambda engine, now: engine.credit(now))

    def say_raw(self, data: bytes) -> None:
        """Send bytes that the engine knows nothing of: wrong ones, for instance."""
        self.act(lambda now: self.say(bytes(data), now))

    def send_frames(self, *frames: Any) -> None:
        """Send hand-made frames of HTTP/2 that the engine knows nothing of.

        Args:
            *frames: `hyperframe.frame.Frame` objects, or anything with a `serialize()` that gives bytes.
        """
        self.say_raw(b"".join(frame.serialize() for frame in frames))

    def goaway(
        self,
        last_stream_id: int | None = None,
        error_code: int = NO_ERROR,
        debug_data: bytes = b"",
        *,
        close: bool = True,
    ) -> None:
        """Send GOAWAY (RFC 9113, section 6.8).

        Streams up to `last_stream_id` are answered as if nothing had happened. Those above it are dropped without a
        word, also those that the client opens later.

        Args:
            last_stream_id: `None` for the last that has come.
            error_code: why.
            debug_data: for people.
            close: end the connection as soon as those streams are finished.

        Raises:
            LocalProtocolError: the connection does not speak HTTP/2.
        """
        self._act_on_http2(
            lambda engine, now: engine.goaway(last_stream_id, error_code, debug_data, close, now)
        )

    def reset_stream(self, stream_id: int, error_code: int) -> bool:
        """Send RST_STREAM for an open stream.

        Returns:
            Whether it was open.

        Raises:
            LocalProtocolError: the connection does not speak HTTP/2.
        """
        return bool(self._act_on_http2(lambda engine, now: engine.reset_stream(stream_id, error_code, now)))

    def ping(self, opaque_data: bytes = b"lamina  ") -> None:
        """Send PING with these 8 bytes; the answer counts in `frames_received` as `"PING ACK"`.

        Raises:
            LocalProtocolError: the connection does not speak HTTP/2.
        """
        self._act_on_http2(lambda engine, now: engine.ping(opaque_data, now))

    def change_settings(self, **settings: int) -> None:
        """Change settings of this connection. See `MockServer.change_settings`.

        Sent when the client has acknowledged the settings before; may be called several times in a row.

        Raises:
            LocalProtocolError: the connection does not speak HTTP/2.
            ArgumentValueError: there is no such setting, or it may not have this value.
        """
        changes = _by_number(settings)
        self._act_on_http2(lambda engine, now: engine.change_settings(changes, now))

    # --- the peer ------------------------------------------------------------------------------------------

    def connected(self, line: Line, now: float) -> None:
        """Keep the line. See `Peer.connected`."""
        self.line = line
        self.number = self.server.add(self)
        self.name = f"connection {self.number} of the mock server"

    def secured(self, now: float) -> None:
        """Choose the protocol. See `Peer.secured`."""
        facts = self.server.tls
        chosen = "h2" if self.server.http2 else "http/1.1"
        self.line.tls_facts = replace(facts, alpn=facts.alpn or chosen)

    def state(self) -> str:
        """What is still to be answered. See `Peer.state`."""
        unanswered = _count(self.open_streams, "request")
        return f"has {unanswered} to answer, but no answer" if self.open_streams else "waits for a request"

    def received(self, data: bytes, now: float) -> None:
        """Take the client's bytes. See `Peer.received`."""
        if self._is_black_hole or not self.is_open:
            return
        if self._engine is None:
            data = self._first_bytes = self._first_bytes + data
            self._begin(data, now)
        if self._engine is not None:
            self._first_bytes = b""
            self._engine.received(data, now)

    def ended(self, now: float) -> None:
        """Drop what is still to be answered. See `Peer.ended`."""
        self.is_open = False
        if self._engine is not None:
            self._engine.ended(now)

    def _begin(self, data: bytes, now: float) -> None:
        """Decide what HTTP is spoken, if `data` is enough to tell."""
        if not self.server.http1:
            is_http2 = True
        elif not self.server.http2:
            is_http2 = False
        elif self.is_tls:
            is_http2 = self.line.selected_alpn == "h2"
        elif len(data) < len(_PREFACE_START) and _PREFACE_START.startswith(data):
            return
        else:
            is_http2 = data.startswith(_PREFACE_START)
        if is_http2:
            from ._http2_peer import HTTP2Engine

            self.http_version = "HTTP/2"
            engine = HTTP2Engine(self)
            self._engine = engine
            if self.server.settings_delay:
                self.line.call_at(now + self.server.settings_delay, engine.start)
            else:
                engine.start(now)
        else:
            from ._http11_peer import HTTP11Engine

            self.http_version = "HTTP/1.1"
            self._engine = HTTP11Engine(self)

    def record_request(self, request: MockRequest) -> None:
        """Keep a request, whose head has just come."""
        self.requests.append(request)
        self.server.requests.append(request)

    def say(self, data: bytes, now: float) -> None:
        """Send bytes, unless nothing gets through any more."""
        if not self._is_black_hole:
            # In pieces: a read that takes a part of one copies the rest of it.
            for start in range(0, len(data), PIECE_SIZE):
                self.line.say(data[start : start + PIECE_SIZE], now)

    def act(self, function: Callable[[float], T]) -> T | None:
        """Do something now that no bytes of the client have caused; nothing on a connection that has ended."""
        wire = self.line._wire
        with wire._lock:
            now = wire._settle()
            return function(now) if self.is_open else None

    def _act_on_http2(self, function: Callable[[HTTP2Engine, float], T]) -> T | None:
        engine = self._http2()
        return self.act(lambda now: function(engine, now))

    def _http2(self) -> HTTP2Engine:
        if self.http_version != "HTTP/2":
            spoken = self.http_version or "nothing yet"
            raise LocalProtocolError(f"this exists in HTTP/2 only; {self!r} speaks {spoken}")
        engine: Any = self._engine
        return engine  # type: ignore[no-any-return] # the version tells which it is

    def _end(self, now: float) -> None:
        self.ended(now)
        self.line.end(now)

    def _reset(self, now: float) -> None:
        self.ended(now)
        self.line.reset(now)

    def __repr__(self) -> str:
        state = "" if self.is_open else ", ended"
        return (
            f"<MockConnection {self.number} [{self.http_version or 'new'}, {_count(len(self.requests), 'request')},"
            f" {_count(self.open_streams, 'open stream')}{state}]>"
        )


def _by_number(settings: Mapping[str | int, int] | Mapping[str, int]) -> dict[int, int]:
    """Settings of HTTP/2 by number.

    Raises:
        ArgumentValueError: a name is unknown, or a value is not allowed.
    """
    found = {}
    for key, value in settings.items():
        if isinstance(key, str) and key not in SETTINGS:
            raise ArgumentValueError(f"{key!r} is no setting of HTTP/2; there are {', '.join(SETTINGS)}")
        number = SETTINGS[key] if isinstance(key, str) else key
        least, most = _LEAST_AND_MOST.get(number, _ANY_NUMBER)
        if not least <= value <= most:
            raise ArgumentValueError(f"setting {key!r} is between {least} and {most}, got {value!r}")
        found[number] = value
    return found


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
