"""The server's end of an HTTP/2 connection, by h2, for tests through a whole pool, blocking or async.

h2 is strict about what a client may do: more streams than it was allowed, bytes beyond a window, frames on streams that
are closed are all noted in `violations`, which every test looks at. GOAWAY is the one thing that h2 does not know of
here, since it would let no stream go on after it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from h2.exceptions import ProtocolError

from pool_http2_peer import PREFACE, goaway

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CONCURRENT_STREAMS = int(h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS)
INITIAL_WINDOW_SIZE = int(h2.settings.SettingCodes.INITIAL_WINDOW_SIZE)

NO_ERROR = 0x0
INTERNAL_ERROR = 0x2
REFUSED_STREAM = 0x7
CANCEL = 0x8


class _Connection(h2.connection.H2Connection):
    @property
    def open_inbound_streams(self) -> int:
        """None: how many there may be is looked at in `ServerEnd`, which knows what was acknowledged when."""
        return 0


class Asked:
    """A request as the server sees it.

    Attributes:
        target: its path, which the tests make a different one each time.
        body: what has come of it.
        is_whole: whether that is all.
        is_over: whether the stream is of no more use to the server: it was answered whole, or reset by either side.
        was_reset: whether the client did so.
    """

    def __init__(self, server: ServerEnd, number: int, headers: dict[bytes, bytes]) -> None:
        self.server = server
        self.id = number
        self.headers = headers
        self.target = headers[b":path"]
        self.body = bytearray()
        self.is_whole = False
        self.is_over = False
        self.was_reset = False
        self.has_head = False
        self._unsent = b""
        self._ends = False

    def respond(
        self, body: bytes | None = None, *, status: int = 200, ends: bool = True, length: int | None = None
    ) -> None:
        """Send the head if it was not sent, and of the body as much as the windows allow; the rest when they do."""
        if self.is_over or self.server.is_over:
            return
        if not self.has_head:
            self.has_head = True
            fields = [(b":status", b"%d" % status)]
            if length is not None:
                fields.append((b"content-length", b"%d" % length))
            self.server.h2.send_headers(self.id, fields)
        self._unsent += self.target if body is None else body
        self._ends |= ends
        self.pump()

    def inform(self, status: int) -> None:
        """Send an interim response."""
        if not self.is_over:
            self.server.h2.send_headers(self.id, [(b":status", b"%d" % status)])
            self.server.flush()

    def reset(self, code: int = CANCEL) -> None:
        if not self.is_over and not self.server.is_over:
            self.server.h2.reset_stream(self.id, code)
            self.close()
            self.server.flush()

    def open_window(self, size: int) -> None:
        """Let the client send more of its body."""
        if not self.is_over and not self.server.is_over and not self.is_whole:
            self.server.h2.increment_flow_control_window(size, self.id)
            self.server.flush()

    def close(self) -> None:
        self.is_over = True
        self.server.open.pop(self.id, None)

    def pump(self) -> None:
        connection = self.server.h2
        while self._unsent and not self.is_over:
            size = min(connection.local_flow_control_window(self.id), connection.max_outbound_frame_size)
            if size <= 0:
                break
            piece, self._unsent = self._unsent[:size], self._unsent[size:]
            connection.send_data(self.id, piece)
        if self._ends and not self._unsent and not self.is_over:
            connection.end_stream(self.id)
            if self.is_whole:
                self.close()
            else:
                self.is_over = True  # for us; the client may go on
        self.server.flush()


class ServerEnd:
    """See the top of the module. It begins to speak when the client has.

    Args:
        send: takes what is to go to the client.
        answer: is called with each request, when it is whole.
        settings: the server's, from the beginning.

    Attributes:
        begin: is called with each request as soon as its head has come.
        hear: is called with a request when more of its body has come, and the number of bytes.
        open: the streams that are open, by their number.
        asked: how many requests there were.
        credits_streams: whether the window of a stream opens as its bytes come. The connection's always does.
        violations: what the client did and may not.
        pings: how often the client asked for a sign of life.
        is_over: nothing goes in or out any more.
    """

    def __init__(
        self,
        send: Callable[[bytes], object],
        answer: Callable[[Asked], object],
        settings: dict[int, int] | None = None,
        *,
        violations: list[str],
    ) -> None:
        self._send = send
        self.answer = answer
        self.begin: Callable[[Asked], object] | None = None
        self.hear: Callable[[Asked, int], object] | None = None
        self.open: dict[int, Asked] = {}
        self.asked = 0
        self.credits_streams = True
        self.violations = violations
        self.pings = 0
        self.is_over = False
        self.last_id = 2**31 - 1
        self.h2 = _Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
        first = dict(settings or {})
        # Not at once: h2 would enforce it before the client can know of it.
        window = first.pop(INITIAL_WINDOW_SIZE, None)
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=first)  # type: ignore[arg-type] # ints
        # Streams that the server wants at most, and that it may insist on, since the client has said that it knows.
        self._wanted = (settings or {}).get(MAX_CONCURRENT_STREAMS, 100)
        self._limit: float = float("inf")
        self._has_begun = False
        self._incoming = bytearray()
        # One at a time, since h2 takes an acknowledgement to be for whatever was sent.
        self._changes: deque[dict[int, int]] = deque()
        if window is not None:
            self._changes.append({INITIAL_WINDOW_SIZE: window})
        self._awaits_ack = True

    def receive(self, data: bytes) -> None:
        """What the client has sent; frame by frame, so that none is answered when the next has closed its stream."""
        self._incoming += data
        if self._incoming:
            self._begin()
        while (size := self._frame_size()) and not self.is_over:
            piece = bytes(self._incoming[:size])
            del self._incoming[:size]
            try:
                events = self.h2.receive_data(piece)
            except ProtocolError as error:
                self.violations.append(repr(error))
                self.is_over = True
                return
            for event in events:
                self._take(event)
            self.flush()

    def _begin(self) -> None:
        """Whatever a server says, its SETTINGS come first."""
        if not self._has_begun:
            self._has_begun = True
            self.h2.initiate_connection()

    def _frame_size(self) -> int:
        """How many bytes the preface, or the next frame, has; 0 if it is not here whole."""
        if self._incoming.startswith(b"PRI"):
            return len(PREFACE) if len(self._incoming) >= len(PREFACE) else 0
        size = 9 + int.from_bytes(self._incoming[:3], "big")
        return size if len(self._incoming) >= size else 0

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.PingReceived):
            self.pings += 1
        elif isinstance(event, h2.events.SettingsAcknowledged):
            self._awaits_ack = False
            self._limit = self._wanted
            self._send_change()
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.is_over = True
        elif isinstance(event, h2.events.RequestReceived):
            self._take_request(event)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            for asked in list(self.open.values()):
                asked.pump()
        elif isinstance(event, h2.events.DataReceived | h2.events.StreamEnded | h2.events.StreamReset):
            asked_before = self.open.get(event.stream_id or 0)
            if isinstance(event, h2.events.DataReceived):
                self._credit(event, asked_before)
            if asked_before is not None:
                self._go_on(asked_before, event)

    def _take_request(self, event: h2.events.RequestReceived) -> None:
        number: Any = event.stream_id
        headers: Any = event.headers
        asked = Asked(self, number, dict(headers))
        if number > self.last_id:
            return  # of which GOAWAY has told
        if len(self.open) >= self._limit:
            self.violations.append(f"stream {number} is one more than the {self._limit} that may be open")
        self.open[number] = asked
        if len(self.open) > self._wanted:
            asked.reset(REFUSED_STREAM)  # perhaps the client does not know yet
            return
        self.asked += 1
        if self.begin is not None:
            self.begin(asked)

    def _credit(self, event: h2.events.DataReceived, asked: Asked | None) -> None:
        size = event.flow_controlled_length
        if not size:
            return
        self.h2.increment_flow_control_window(size)
        if asked is not None and self.credits_streams and event.stream_ended is None:
            try:
                self.h2.increment_flow_control_window(size, event.stream_id)
            except ProtocolError:
                pass  # it has been closed since

    def _go_on(self, asked: Asked, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.StreamReset):
            asked.was_reset = True
            asked.close()
        elif isinstance(event, h2.events.DataReceived):
            data = event.data or b""
            asked.body += data
            if self.hear is not None:
                self.hear(asked, len(data))
        elif asked.is_over:
            asked.close()  # answered before
        else:
            asked.is_whole = True
            self.answer(asked)

    def change(self, settings: dict[int, int]) -> None:
        """Send SETTINGS; what they say holds when the client has acknowledged them."""
        self._changes.append(settings)
        self._send_change()

    def _send_change(self) -> None:
        if self._changes and not self._awaits_ack and not self.is_over:
            self._awaits_ack = True
            settings = self._changes.popleft()
            self._wanted = settings.get(MAX_CONCURRENT_STREAMS, self._wanted)
            self.h2.update_settings(settings)
            self.flush()

    def goaway(self, last_id: int, code: int = NO_ERROR) -> None:
        """Take no stream above this one; forget those that there are."""
        if self.is_over:
            return
        self.last_id = min(last_id, self.last_id)
        for asked in list(self.open.values()):
            if asked.id > self.last_id:
                asked.close()
        self._begin()
        self.flush()
        self._send(goaway(self.last_id, code))

    def ping(self) -> None:
        """Ask for a sign of life."""
        if self._has_begun and not self.is_over:
            self.h2.ping(b"12345678")
            self.flush()

    def flush(self) -> None:
        data = self.h2.data_to_send()
        if data and not self.is_over:
            self._send(data)
