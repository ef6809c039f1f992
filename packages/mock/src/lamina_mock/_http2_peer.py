"""The server's side of an HTTP/2 connection, over h2 (RFC 9113).

Importing this imports h2, so `_server` does it when the first client speaks HTTP/2.

h2 keeps the state of streams, windows and header compression. Where it is narrower than the protocol, this goes
round it:

- Frames are given to h2 one by one. When one is an error, what came before it in the same bytes has been dealt with.
- After a GOAWAY, sent or received, h2 sends nothing any more. The RFC lets the streams that are open finish (section
  6.8). So GOAWAY is written by hyperframe and never shown to h2, in both directions, and which streams it has cut
  off is known here.
- A stream above the limit is a connection error to h2, whether or not the client can know the limit yet. Here it is
  refused (section 5.1.2), and a failure of the test only if the client had acknowledged the limit.
- h2 lets pass that the first frame is none of SETTINGS (section 3.4), and a content-length without any content (section
  8.1.1); what comes on a stream after its end it answers with a reset (section 5.1). These are failures of the test.
- h2 takes all settings that wait for an acknowledgement as acknowledged together. So a change waits here until the one
  before it has been acknowledged.

Sending obeys both windows. A stream that is stopped by one of them waits in `_blocked`, and goes on, in turn with the
others and a frame at a time, when credit comes.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

from ._http import NO_ERROR, PROTOCOL_ERROR, REFUSED_STREAM, Data, MockRequest
from ._http_engine import Engine, Exchange, decoded, missing

try:
    import h2.config
    import h2.connection
    import h2.events
    import h2.exceptions
    import h2.settings
    from hyperframe.frame import GoAwayFrame
except ImportError as error:
    raise missing("h2", "HTTP/2") from error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from ._http import Fault, Head, MockResponse, RawHeaders
    from ._server import MockConnection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client says first (RFC 9113, section 3.4)."""

FRAME_HEADER_SIZE = 9
DEFAULT_WINDOW = 65_535

# RFC 9113, section 6, and RFC 9218, section 7.1.
FRAME_NAMES = {
    0: "DATA",
    1: "HEADERS",
    2: "PRIORITY",
    3: "RST_STREAM",
    4: "SETTINGS",
    5: "PUSH_PROMISE",
    6: "PING",
    7: "GOAWAY",
    8: "WINDOW_UPDATE",
    9: "CONTINUATION",
    16: "PRIORITY_UPDATE",
}
_PING, _GOAWAY, _SETTINGS, _ACK = 6, 7, 4, 0x1


# h2 lets these pass. RFC 9110, section 5.6.2, and RFC 9113, section 8.2.1.
_is_name = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+").fullmatch
_is_wrong_in_value = re.compile(rb"[\0\r\n]").search


class _Connection(h2.connection.H2Connection):
    """A connection whose streams the engine counts.

    h2 looks at every stream to count those that are open, for each new one, and tidies up the closed ones meanwhile.
    Ten thousand at once took half a minute. Here it does so when their number has grown by half.
    """

    _asked = 0

    @property
    def open_inbound_streams(self) -> int:
        self._asked += 1
        if self._asked * 2 > len(self.streams):
            self._asked = 0
            super().open_inbound_streams  # noqa: B018 - for its side effect
        return -1  # so that one more is above no limit, not even of none


class _Stream(Exchange):
    """An exchange, and the part of its content that waits for credit."""

    __slots__ = ("ends", "rest", "stream_id", "verbatim")

    def __init__(self, request: MockRequest, stream_id: int) -> None:
        super().__init__(request)
        self.stream_id = stream_id
        self.rest = memoryview(b"")
        self.ends = False
        self.verbatim = False


class HTTP2Engine(Engine):
    """One connection."""

    local_error = h2.exceptions.ProtocolError

    def __init__(self, connection: MockConnection) -> None:
        super().__init__(connection)
        self._config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self._h2 = _Connection(self._config)
        self._input = bytearray()
        self._is_preface_due = True
        self._has_started = self._has_ended = False
        self._streams: dict[int, _Stream] = {}
        self._blocked: dict[int, _Stream] = {}
        # Bytes that have come but are not credited to the client, by stream.
        self._uncredited: list[tuple[int, int]] = []
        # What we have asked the client to keep to, and what it has acknowledged; `None` for no limit.
        self._asked_limit: int | None = None
        self._acknowledged_limit: int | None = None
        self._is_waiting_for_ack = False
        self._changes: deque[dict[int, int]] = deque()
        self._last_stream_id: int | None = None  # of the GOAWAY that we sent
        self._closes_when_idle = False
        self._largest_window = DEFAULT_WINDOW
        self._handlers: dict[type[h2.events.Event], Callable[[Any, float], None]] = {
            h2.events.RequestReceived: self._request_received,
            h2.events.DataReceived: self._data_received,
            h2.events.TrailersReceived: self._trailers_received,
            h2.events.StreamEnded: self._stream_ended,
            h2.events.StreamReset: self._stream_reset,
            h2.events.WindowUpdated: self._window_updated,
            h2.events.RemoteSettingsChanged: self._settings_changed,
            h2.events.SettingsAcknowledged: self._settings_acknowledged,
        }

    def start(self, now: float) -> None:
        """Send our SETTINGS, which are the first that the client hears, and begin to deal with what has come."""
        # h2 would send, and count as acknowledged, the defaults. Ours are a change that the client does not know yet.
        self._h2.initiate_connection()
        self._h2.clear_outbound_data_buffer()
        self.change_settings(self.server.settings, now)
        extra = self.server.connection_window - DEFAULT_WINDOW
        if extra > 0:
            self._h2.increment_flow_control_window(extra)
        self._has_started = True
        self._read(now)

    # --- what a test may look at ---------------------------------------------------------------------------

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    @property
    def outbound_window(self) -> int:
        """Bytes that we may send on the connection."""
        return self._h2.outbound_flow_control_window

    @property
    def largest_outbound_window(self) -> int:
        """The most that `outbound_window` has been."""
        return self._largest_window

    @property
    def inbound_window(self) -> int:
        """Bytes that the client may send on the connection."""
        return self._h2.inbound_flow_control_window

    # --- the client's bytes --------------------------------------------------------------------------------

    def received(self, data: bytes, now: float) -> None:
        self._input += data
        if self._has_started and not self._has_ended:
            self._read(now)

    def _read(self, now: float) -> None:
        start = 0
        if self._is_preface_due:
            if len(self._input) < len(PREFACE) and PREFACE.startswith(self._input):
                self.flush(now)
                return
            self._is_preface_due = False
            start = len(PREFACE)
            self._give_to_h2(bytes(self._input[:start]), now)
        while not self._has_ended and len(self._input) - start >= FRAME_HEADER_SIZE:
            size = FRAME_HEADER_SIZE + int.from_bytes(self._input[start : start + 3], "big")
            if len(self._input) - start < size:
                break
            self._take_frame(bytes(self._input[start : start + size]), now)
            start += size
        del self._input[:start]
        self.flush(now)

    def _take_frame(self, frame: bytes, now: float) -> None:
        kind, flags = frame[3], frame[4]
        name = FRAME_NAMES.get(kind, f"0x{kind:02x}")
        if kind in {_PING, _SETTINGS} and flags & _ACK:
            name += " ACK"
        if not self.connection.frames_received and name != "SETTINGS":
            self._client_broke(f"its first frame is {name} instead of SETTINGS")
            self.goaway(0, PROTOCOL_ERROR, b"", True, now)
            return
        self.connection.frames_received[name] += 1
        if kind == _GOAWAY:
            self.connection.goaway_received = (
                int.from_bytes(frame[9:13], "big") & 0x7FFF_FFFF,
                int.from_bytes(frame[13:17], "big"),
            )
        elif kind != _PING or flags & _ACK or self.server.answer_pings:
            self._give_to_h2(frame, now)

    def _give_to_h2(self, data: bytes, now: float) -> None:
        try:
            events = self._h2.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            self._client_broke(repr(error), error)
            self.flush(now)  # h2 has prepared the GOAWAY
            self._close(now)
            return
        for event in events:
            handle = self._handlers.get(type(event))
            if handle is not None:
                handle(event, now)

    def _client_broke(self, how: str, cause: Exception | None = None) -> None:
        self.server.record(cause, f"the client broke HTTP/2 on {self.connection!r}: {how}")

    def ended(self, now: float) -> None:
        self._has_ended = True
        for stream in self._streams.values():
            stream.is_over = True
        self._streams.clear()
        self._blocked.clear()

    # --- events --------------------------------------------------------------------------------------------

    def _request_received(self, event: h2.events.RequestReceived, now: float) -> None:
        stream_id = event.stream_id
        if self._last_stream_id is not None and stream_id > self._last_stream_id:
            return  # RFC 9113, section 6.8: ignored, but its header block has been decompressed
        pseudo = {name: value.decode("latin-1") for name, value in event.headers if name[:1] == b":"}
        headers = decoded([(name, value) for name, value in event.headers if name[:1] != b":"])
        host = next((value for name, value in headers if name == "host"), "")
        request = MockRequest(
            self.connection,
            method=pseudo[b":method"],
            target=pseudo.get(b":path", pseudo.get(b":authority", "")),
            scheme=pseudo.get(b":scheme", ""),
            authority=pseudo.get(b":authority", host),
            headers=headers,
            http_version="HTTP/2",
            stream_id=stream_id,
            received_at=now,
        )
        if self._is_above_limit(request):
            self._h2.reset_stream(stream_id, REFUSED_STREAM)
            return
        stream = self._streams[stream_id] = _Stream(request, stream_id)
        self.connection.record_request(request)
        if self.connection.is_exhausted and self._last_stream_id is None:
            self.goaway(stream_id, NO_ERROR, b"", True, now)
        request.is_complete = event.stream_ended is not None
        if request.is_complete and (request.header("content-length") or "0").strip("0"):
            self._client_broke(f"{request!r} has no content, but a content-length")
            self.reset_stream(stream_id, PROTOCOL_ERROR, now)
            return
        if self.server.respond_early and not request.is_complete:
            self.ask(stream, now)
        expects = not request.is_complete and (request.header("expect") or "").lower() == "100-continue"
        if expects and stream.steps is None and stream_id in self._streams:
            self._send_fields(stream, [(b":status", b"100")], False, False)

    def _is_above_limit(self, request: MockRequest) -> bool:
        count = len(self._streams) + 1
        if self._asked_limit is None or count <= self._asked_limit:
            return False
        if self._acknowledged_limit is not None and count > self._acknowledged_limit:
            self.server.record(
                None,
                f"the client opened {count} streams on {self.connection!r}, though it has acknowledged a limit of"
                f" {self._acknowledged_limit}: {request!r}",
            )
        return True

    def _data_received(self, event: h2.events.DataReceived, now: float) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.request._content += event.data
        if event.flow_controlled_length:
            self._uncredited.append((event.flow_controlled_length, event.stream_id))
        self.credit(now)

    def credit(self, now: float) -> None:
        """Give the client back the windows for what has come of its content, unless the test withholds them."""
        if self.connection.is_crediting and not self._has_ended:
            for size, stream_id in self._uncredited:
                self._h2.acknowledge_received_data(size, stream_id)
            self._uncredited.clear()
            self.flush(now)

    def _trailers_received(self, event: h2.events.TrailersReceived, now: float) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is not None:
            stream.request.trailers = tuple(decoded(list(event.headers)))

    def _stream_ended(self, event: h2.events.StreamEnded, now: float) -> None:
        stream = self._streams.get(event.stream_id)
        if stream is None:
            return
        stream.request.is_complete = True
        if stream.steps is None:
            self.ask(stream, now)

    def _stream_reset(self, event: h2.events.StreamReset, now: float) -> None:
        stream = self._streams.get(event.stream_id)
        if not event.remote_reset:
            self._client_broke(f"something came on stream {event.stream_id} after its end")
        if stream is not None:
            if event.remote_reset:
                stream.request.reset_code = int(event.error_code or 0)
            self._forget(stream, now)

    def _window_updated(self, event: h2.events.WindowUpdated, now: float) -> None:
        self._largest_window = max(self._largest_window, self.outbound_window)
        if event.stream_id == 0:
            self._go_on(deque(self._blocked.values()), now)
        elif event.stream_id in self._blocked:
            self._go_on(deque([self._blocked[event.stream_id]]), now)

    def _settings_changed(self, event: h2.events.RemoteSettingsChanged, now: float) -> None:
        if h2.settings.SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
            self._go_on(deque(self._blocked.values()), now)

    def _settings_acknowledged(self, event: h2.events.SettingsAcknowledged, now: float) -> None:
        self._acknowledged_limit = self._asked_limit
        self._is_waiting_for_ack = False
        if self._changes:
            self.change_settings(self._changes.popleft(), now)

    # --- the answer ----------------------------------------------------------------------------------------

    def send_interim(self, exchange: Exchange, response: MockResponse, now: float) -> None:
        self._send_headers(exchange, response, ends=False)

    def send_head(self, exchange: Exchange, head: Head, now: float) -> None:
        self._send_headers(exchange, head.response, ends=head.ends)

    def _send_headers(self, exchange: Exchange, response: MockResponse, ends: bool) -> None:
        headers = [(b":status", b"%d" % response.status), *response.raw_headers]
        length = response.known_length
        lengths = {value for name, value in headers if name.lower() == b"content-length"}
        has_content = response.status >= 200 and response.status not in {204, 304}
        if response.verbatim or not has_content:
            pass
        elif length is not None and not lengths and not response.raw_trailers:
            headers.append((b"content-length", b"%d" % length))
        elif exchange.request.method != "HEAD" and response.fault is None:
            size = sum(len(content) for _, content in response.chunks())
            if lengths - {b"%d" % size}:
                raise h2.exceptions.ProtocolError(f"the content-length of {size} bytes is {lengths.pop()!r}")
        self._send_fields(exchange, headers, ends, response.verbatim)

    def _send_fields(self, exchange: Exchange, headers: RawHeaders, ends: bool, verbatim: bool) -> None:
        assert isinstance(exchange, _Stream)
        exchange.verbatim = verbatim
        for name, value in () if verbatim else headers:
            if not (_is_name(name.lower()) or name == b":status") or _is_wrong_in_value(value):
                raise h2.exceptions.ProtocolError(f"{name!r}: {value!r} is no header field")
        self._config.validate_outbound_headers = self._config.normalize_outbound_headers = not verbatim
        self._h2.send_headers(exchange.stream_id, headers, end_stream=ends)

    def send_data(self, exchange: Exchange, data: Data, now: float) -> bool:
        assert isinstance(exchange, _Stream)
        exchange.rest = memoryview(data.content)
        exchange.ends = data.ends
        while self._send_frame(exchange):
            pass
        is_sent = not exchange.rest and not exchange.ends
        if not is_sent:
            self._blocked[exchange.stream_id] = exchange
        return is_sent

    def _send_frame(self, stream: _Stream) -> bool:
        """Send one frame of what waits, as large as may be; tell whether anything could be sent."""
        if not stream.rest and not stream.ends:
            return False
        window = self._h2.local_flow_control_window(stream.stream_id)
        # A window may be negative, after SETTINGS (RFC 9113, section 6.9.2).
        size = max(0, min(len(stream.rest), window, self._h2.max_outbound_frame_size))
        if stream.rest and not size:
            return False
        frame, stream.rest = stream.rest[:size], stream.rest[size:]
        ends = stream.ends and not stream.rest
        self._h2.send_data(stream.stream_id, bytes(frame), end_stream=ends)
        if ends:
            stream.ends = False
        return True

    def _go_on(self, queue: deque[_Stream], now: float) -> None:
        """Send what the windows allow now, a frame of each stream in turn."""
        while queue and self.outbound_window > 0:
            stream = queue.popleft()
            if stream.is_over or not self._send_frame(stream):
                continue
            if stream.rest or stream.ends:
                queue.append(stream)
            else:
                self._blocked.pop(stream.stream_id, None)
                self.proceed(stream, now)

    def send_trailers(self, exchange: Exchange, trailers: RawHeaders, now: float) -> None:
        assert isinstance(exchange, _Stream)
        self._send_fields(exchange, trailers, True, exchange.verbatim)

    def finish(self, exchange: Exchange, now: float) -> None:
        assert isinstance(exchange, _Stream)
        if not exchange.request.is_complete:
            # RFC 9113, section 8.1: the client is asked to stop sending, without any error.
            self._h2.reset_stream(exchange.stream_id, NO_ERROR)
        self._forget(exchange, now)

    def break_off(self, exchange: Exchange, fault: Fault, now: float) -> None:
        assert isinstance(exchange, _Stream)
        match fault.kind:
            case "reset":
                self.reset_stream(exchange.stream_id, fault.error_code, now)
            case "eof":
                self.flush(now)
                self._close(now)
            case "goaway":
                last = fault.last_stream_id
                last = exchange.stream_id - 2 if last is None else last
                self.goaway(max(last, 0), fault.error_code, b"", True, now)

    def _forget(self, stream: _Stream, now: float) -> None:
        """The stream is closed, or will never be heard of again."""
        stream.is_over = True
        stream.rest = memoryview(b"")
        self._streams.pop(stream.stream_id, None)
        self._blocked.pop(stream.stream_id, None)
        if self._closes_when_idle and not self._streams:
            self.flush(now)
            self._close(now)

    def _close(self, now: float) -> None:
        self.ended(now)
        self.connection.line.end(now)

    def flush(self, now: float) -> None:
        data = self._h2.data_to_send()
        if data and not self._has_ended:
            self.connection.say(data, now)

    # --- faults on demand ----------------------------------------------------------------------------------

    def goaway(
        self, last_stream_id: int | None, error_code: int, debug_data: bytes, close: bool, now: float
    ) -> None:
        """Send GOAWAY. See `MockConnection.goaway`."""
        last = self._h2.highest_inbound_stream_id if last_stream_id is None else last_stream_id
        self.flush(now)
        frame = GoAwayFrame(0, last_stream_id=last, error_code=error_code, additional_data=debug_data)
        self.connection.say(frame.serialize(), now)
        self._last_stream_id = last
        for stream in [stream for stream in self._streams.values() if stream.stream_id > last]:
            self._forget(stream, now)
        self._closes_when_idle = close
        if close and not self._streams:
            self._close(now)

    def reset_stream(self, stream_id: int, error_code: int, now: float) -> bool:
        """Send RST_STREAM; tell whether there was such a stream."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return False
        self._h2.reset_stream(stream_id, error_code)
        self.flush(now)
        self._forget(stream, now)
        return True

    def change_settings(self, changes: Mapping[int, int], now: float) -> None:
        """Send SETTINGS, once the client has acknowledged those that were sent before."""
        if self._is_waiting_for_ack:
            self._changes.append(dict(changes))
            return
        self._is_waiting_for_ack = True
        limit = changes.get(h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS)
        if limit is not None:
            self._asked_limit = limit
        self._h2.update_settings(dict(changes))
        self.flush(now)

    def ping(self, opaque_data: bytes, now: float) -> None:
        """Send PING."""
        self._h2.ping(opaque_data)
        self.flush(now)
