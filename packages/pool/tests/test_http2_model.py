"""Anything that two honest ends may do, in any order, with any delay: nothing is lost, stuck, mixed up or left open.

The server is h2 itself, so what the session sends is judged by another implementation, and its idea of every window
is the measure for ours. Bytes are on their way for as long as the machine likes, in pieces of any size.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lamina_pool._http2 import CONNECTION_WINDOW, HTTP2Session, HTTP2Stream
from lamina_pool._http2_frames import (
    CANCEL,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    NO_ERROR,
    REFUSED_STREAM,
    frame,
)
from pool_http2_peer import goaway, request

HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 1, 3, 4

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"

SIZES = st.one_of(st.integers(0, 300), st.integers(10_000, 400_000))


class Exchange:
    """What both ends have done for one stream."""

    def __init__(self, stream: HTTP2Stream, body: int) -> None:
        self.stream = stream
        self.offset = 0
        self.unsent = body
        self.has_ended_request = body == 0
        self.is_given_up = False
        # What the server has got and sent.
        self.received = 0
        self.has_whole_request = False
        self.has_head = False
        self.sent = 0
        self.is_server_done = False
        self.is_spoilt = False  # the server has reset it, or sent nonsense
        # What the caller has read.
        self.read = 0


def body_of(number: int, start: int, size: int) -> bytes:
    """A piece of the body of this stream: each has bytes of its own, so that none can be mistaken for another's."""
    pattern = bytes((number * 7 + place) & 0xFF for place in range(251))
    start %= 251
    return (pattern * (size // 251 + 2))[start : start + size]


class HTTP2Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.session = HTTP2Session(self.now)
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.server.initiate_connection()
        self.to_client = bytearray()
        self.to_server = bytearray()
        self.exchanges: dict[int, Exchange] = {}
        self.blocked: dict[HTTP2Stream, None] = {}
        self.last_id: int | None = None
        # h2 takes the first acknowledgement for one of all SETTINGS that it has sent, so there is only ever one.
        self.is_settling = True
        self.unacknowledged: deque[tuple[int, int]] = deque()

    # --- the wire --------------------------------------------------------------------------------------------

    def collect(self) -> None:
        self.to_server += self.session.output()
        self.to_client += self.server.data_to_send()

    def deliver_to_client(self, size: int) -> None:
        self.collect()
        piece = bytes(self.to_client[:size])
        del self.to_client[:size]
        if piece:
            for stream in self.session.receive(piece, self.now):
                self.blocked.pop(stream, None)
        assert self.session.failure is None, self.session.failure

    def deliver_to_server(self, size: int) -> None:
        self.collect()
        piece = bytes(self.to_server[:size])
        del self.to_server[:size]
        for event in self.server.receive_data(piece):
            self.on_server_event(event)

    def on_server_event(self, event: Any) -> None:
        if isinstance(event, h2.events.SettingsAcknowledged):
            self.is_settling = False
        exchange = self.exchanges.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, h2.events.DataReceived):
            assert exchange is not None
            data = event.data or b""
            assert data == body_of(event.stream_id, exchange.received, len(data))
            exchange.received += len(data)
            self.unacknowledged.append((event.flow_controlled_length, event.stream_id))
        elif isinstance(event, h2.events.StreamEnded):
            assert exchange is not None
            exchange.has_whole_request = True
        elif isinstance(event, h2.events.StreamReset):
            assert exchange is not None
            exchange.is_server_done = True

    @rule(size=st.one_of(st.integers(1, 30), st.just(1 << 30)))
    def bytes_reach_the_client(self, size: int) -> None:
        self.deliver_to_client(size)

    @rule(size=st.one_of(st.integers(1, 30), st.just(1 << 30)))
    def bytes_reach_the_server(self, size: int) -> None:
        self.deliver_to_server(size)

    @rule(rounds=st.integers(1, 2))
    def all_bytes_arrive(self, rounds: int) -> None:
        for _ in range(rounds):
            self.deliver_to_server(1 << 30)
            self.deliver_to_client(1 << 30)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.1, 5.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # --- the client ------------------------------------------------------------------------------------------

    @precondition(lambda self: self.session.can_open)
    @rule(bodies=st.lists(st.one_of(st.just(0), SIZES), min_size=1, max_size=5), is_chunked=st.booleans())
    def open(self, bodies: list[int], is_chunked: bool) -> None:
        for body in bodies:
            if self.session.can_open:
                framing = request(b"POST", length=None if is_chunked else body, is_chunked=is_chunked)
                stream = self.session.open_stream(framing, b"https", ends=not body, now=self.now)
                self.exchanges[stream.id] = Exchange(stream, body)

    def some(self, data: st.DataObject, condition: Any) -> Exchange | None:
        found = [exchange for exchange in self.exchanges.values() if condition(exchange)]
        return data.draw(st.sampled_from(found)) if found else None

    @rule(data=st.data(), size=SIZES)
    def send(self, data: st.DataObject, size: int) -> None:
        exchange = self.some(data, lambda exchange: exchange.unsent and exchange.stream.wants_body)
        if exchange is not None:
            self.send_some(exchange, size)

    def send_some(self, exchange: Exchange, size: int) -> None:
        stream = exchange.stream
        size = min(size, exchange.unsent)
        taken = self.session.send_data(stream, memoryview(body_of(stream.id, exchange.offset, size)))
        assert 0 <= taken <= size
        exchange.unsent -= taken
        exchange.offset += taken
        if size and not taken:
            self.blocked[stream] = None

    @rule(data=st.data())
    def end_request(self, data: st.DataObject) -> None:
        exchange = self.some(data, lambda exchange: not exchange.unsent and not exchange.has_ended_request)
        if exchange is not None:
            self.end_body(exchange)

    def end_body(self, exchange: Exchange) -> None:
        stream = exchange.stream
        if stream.is_open and stream._send_window < 0:
            return  # h2 as a server takes even an empty frame for a fault then (RFC 9113, section 6.9, allows it)
        self.session.end_stream(stream)
        exchange.has_ended_request = True

    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        exchange = self.some(data, lambda exchange: exchange.stream.held)
        if exchange is not None:
            self.read(exchange)

    def read(self, exchange: Exchange) -> None:
        stream = exchange.stream
        held = stream.held
        data = stream.take(self.now)
        assert len(data) == held
        assert data == body_of(stream.id, exchange.read, len(data))
        exchange.read += len(data)

    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        exchange = self.some(data, lambda exchange: exchange.stream.is_open)
        if exchange is not None:
            self.session.reset(exchange.stream)
            exchange.is_given_up = True
            assert not exchange.stream.is_open

    @rule()
    def ping(self) -> None:
        self.session.ping(self.now)

    # --- the server ------------------------------------------------------------------------------------------

    def server_window(self, number: int) -> int:
        return self.server.local_flow_control_window(number)

    def answering(self, exchange: Exchange) -> bool:
        return (
            exchange.stream.id in self.server.streams
            and not exchange.is_server_done
            and self.is_on_server(exchange)
        )

    def is_on_server(self, exchange: Exchange) -> bool:
        stream = self.server.streams.get(exchange.stream.id)
        return stream is not None and stream.open

    @rule(
        data=st.data(),
        interim=st.booleans(),
        size=SIZES,
        padding=st.sampled_from([None, 0, 200]),
        end=st.sampled_from([None, None, "alone", "with trailers"]),
    )
    def respond(
        self, data: st.DataObject, interim: bool, size: int, padding: int | None, end: str | None
    ) -> None:
        """The head, if there was none, then some of the body, and perhaps the end."""
        exchange = self.some(data, self.answering)
        if exchange is None:
            return
        number = exchange.stream.id
        if not exchange.has_head:
            if interim:
                self.server.send_headers(number, [(b":status", b"103"), (b"link", b"<%d>" % number)])
            is_whole = end == "alone" and not size
            fields = [(b":status", b"200"), (b"x-stream", b"%d" % number)]
            self.server.send_headers(number, fields, end_stream=is_whole)
            exchange.has_head = True
            exchange.is_server_done = is_whole
        if not exchange.is_server_done:
            self.send_response(exchange, size, padding)
            if end is not None:
                self.end_answer(exchange, end == "with trailers")

    def send_response(self, exchange: Exchange, size: int, padding: int | None = None) -> None:
        number = exchange.stream.id
        extra = 0 if padding is None else padding + 1
        while size:
            piece = min(size, self.server.max_outbound_frame_size - extra, self.server_window(number) - extra)
            if piece <= 0:
                return
            self.server.send_data(number, body_of(number, exchange.sent, piece), pad_length=padding)
            exchange.sent += piece
            size -= piece

    def end_answer(self, exchange: Exchange, with_trailers: bool) -> None:
        if with_trailers:
            self.server.send_headers(exchange.stream.id, [(b"sum", b"%d" % exchange.sent)], end_stream=True)
        else:
            self.server.end_stream(exchange.stream.id)
        exchange.is_server_done = True

    @rule(data=st.data(), code=st.sampled_from([CANCEL, NO_ERROR, REFUSED_STREAM]))
    def server_resets(self, data: st.DataObject, code: int) -> None:
        exchange = self.some(data, self.is_on_server)
        if exchange is not None:
            self.server.reset_stream(exchange.stream.id, code)
            exchange.is_server_done = exchange.is_spoilt = True

    @rule(
        data=st.data(),
        field=st.sampled_from([(b":status", b"2000"), (b"Upper", b"case"), (b"a", b"b\r\nc: d")]),
    )
    def server_sends_nonsense(self, data: st.DataObject, field: tuple[bytes, bytes]) -> None:
        exchange = self.some(data, self.answering)
        if exchange is not None:
            self.collect()
            block = self.server.encoder.encode([field])
            self.to_client += frame(HEADERS, END_HEADERS | END_STREAM, exchange.stream.id, block)
            exchange.is_server_done = exchange.is_spoilt = True

    @rule(count=st.integers(1, 20))
    def server_reads(self, count: int) -> None:
        for _ in range(min(count, len(self.unacknowledged))):
            size, number = self.unacknowledged.popleft()
            if size:
                self.server.acknowledge_received_data(size, number)

    @precondition(lambda self: not self.is_settling)
    @rule(
        changes=st.dictionaries(
            st.sampled_from([HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE]),
            st.sampled_from([0, 1, 3, 100, 4_096, 65_535, 300_000]),
            max_size=3,
        ),
    )
    def server_changes_settings(self, changes: dict[Any, int]) -> None:
        self.update_settings(changes)

    def update_settings(self, changes: dict[Any, int]) -> None:
        self.server.update_settings(changes)
        self.is_settling = True

    @rule()
    def server_pings(self) -> None:
        self.server.ping(b"12345678")

    @precondition(lambda self: self.exchanges)
    @rule(data=st.data())
    def server_says_goodbye(self, data: st.DataObject) -> None:
        self.collect()
        last = data.draw(st.sampled_from([*self.exchanges, 2**31 - 1]))
        # A server that has answered a stream cannot say that it never looked at it.
        last = max(
            [last, *(number for number, exchange in self.exchanges.items() if self.was_touched(exchange))]
        )
        self.last_id = last if self.last_id is None else min(last, self.last_id)
        self.to_client += goaway(self.last_id)

    def was_touched(self, exchange: Exchange) -> bool:
        return exchange.has_head or exchange.is_server_done or exchange.stream.has_answer_begun

    # --- what holds ------------------------------------------------------------------------------------------

    @invariant()
    def counts_are_exact(self) -> None:
        session = self.session
        assert session.failure is None
        still_open = [exchange.stream for exchange in self.exchanges.values() if exchange.stream.is_open]
        assert session.open_streams == len(still_open)
        assert session.is_idle is (not still_open)
        assert session.opened == len(self.exchanges)
        assert session._blocked.keys() <= set(still_open)

    @invariant()
    def windows_add_up(self) -> None:
        assert 0.9 * CONNECTION_WINDOW < self.session._window_left <= CONNECTION_WINDOW
        for exchange in self.exchanges.values():
            stream = exchange.stream
            assert stream._window_left >= 0
            assert stream.held <= stream._window
            if stream.is_open and not stream.has_ended:
                assert stream._window_left + stream.held + stream._uncredited == stream._window
                assert stream._uncredited * 2 < stream._window

    @invariant()
    def nobody_waits_for_a_window_that_is_open(self) -> None:
        for stream in self.blocked:
            if stream.is_open and stream.wants_body:
                assert min(self.session._send_window, stream._send_window) <= 0

    @invariant()
    def streams_are_told_apart(self) -> None:
        for number, exchange in self.exchanges.items():
            stream = exchange.stream
            assert stream.head is None or stream.head.headers == [(b"x-stream", b"%d" % number)]
            assert stream.trailers in ([], [(b"sum", b"%d" % exchange.sent)])
            assert not (stream.is_refused and stream.has_answer_begun)

    def teardown(self) -> None:
        """Let both ends finish: everything arrives, everybody reads, and nothing is left."""
        self.now += 2  # a pause, so that nothing of this looks like a flood
        for _ in range(300):
            self.deliver_to_server(1 << 30)
            if self.is_finished():
                break
            if not self.is_settling and self.server.local_settings.initial_window_size != 65_535:
                self.update_settings({INITIAL_WINDOW_SIZE: 65_535})
            self.server_reads(1 << 30)
            for exchange in self.exchanges.values():
                stream = exchange.stream
                self.read(exchange)
                if stream.wants_body:
                    if exchange.unsent:
                        self.send_some(exchange, exchange.unsent)
                    elif not exchange.has_ended_request:
                        self.end_body(exchange)
                elif stream.is_open and not exchange.has_ended_request:
                    self.end_body(exchange) if not exchange.unsent else self.session.reset(stream)
                if self.answering(exchange):
                    if not exchange.has_head:
                        self.server.send_headers(
                            stream.id, [(b":status", b"200"), (b"x-stream", b"%d" % stream.id)]
                        )
                        exchange.has_head = True
                    elif exchange.sent < 200_000 and exchange.has_whole_request:
                        self.send_response(exchange, 50_000)
                    elif exchange.has_whole_request:
                        self.end_answer(exchange, with_trailers=False)
            self.deliver_to_client(1 << 30)
            self.now += 1
        self.counts_are_exact()
        self.windows_add_up()
        assert self.is_finished()
        for exchange in self.exchanges.values():
            stream = exchange.stream
            self.read(exchange)  # what came last
            assert not stream.is_open
            assert stream.has_ended or stream.failure is not None or exchange.is_given_up
            if stream.failure is not None:
                is_refused = self.last_id is not None and stream.id > self.last_id
                assert exchange.is_spoilt or is_refused
                assert (
                    stream.is_refused is (is_refused or stream.code == REFUSED_STREAM)
                    or stream.has_answer_begun
                )
            elif not exchange.is_given_up:
                assert exchange.read == exchange.sent
        assert self.server.outbound_flow_control_window == self.session._window_left
        assert self.session._send_window == self.server.inbound_flow_control_window
        if self.last_id is None:
            assert self.session.capacity == self.server.local_settings.max_concurrent_streams

    def is_finished(self) -> bool:
        self.collect()
        return not self.to_client and not self.to_server and not self.unacknowledged and self.session.is_idle


# Some seconds on an idle machine.
TestHTTP2Machine = pytest.mark.timeout(0 if IS_LONG else 600)(HTTP2Machine.TestCase)
TestHTTP2Machine.settings = (
    settings(max_examples=60, stateful_step_count=50, deadline=None) if not IS_LONG else settings()
)
