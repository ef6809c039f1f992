"""The server's side of an HTTP/1.1 connection, over h11 (RFC 9112).

Importing this imports h11, so `_server` does it when the first client speaks HTTP/1.1.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from ._http import MockRequest
from ._http_engine import Engine, Exchange, decoded, missing
from ._scripts import LONGEST_HEAD

try:
    import h11
except ImportError as error:
    raise missing("h11", "HTTP/1.1") from error

if TYPE_CHECKING:
    from ._http import Data, Fault, Head, MockResponse, RawHeaders
    from ._server import MockConnection


_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}


def _reason(response: MockResponse) -> bytes:
    """The phrase in the status line."""
    return response.reason.encode("latin-1") or _REASONS.get(response.status, b"")


class HTTP11Engine(Engine):
    """One connection. A request that comes before the answer to the last one waits for it (pipelining)."""

    local_error = h11.LocalProtocolError

    def __init__(self, connection: MockConnection) -> None:
        super().__init__(connection)
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        self._exchange: Exchange | None = None
        self._is_reading = False
        self._has_ended = False

    @property
    def open_streams(self) -> int:
        return int(self._exchange is not None)

    # --- the client's bytes --------------------------------------------------------------------------------

    def received(self, data: bytes, now: float) -> None:
        if self._h11.our_state is h11.SWITCHED_PROTOCOL:
            self.connection.switched_data += data
        elif not self._has_ended:
            self._h11.receive_data(data)
            self._read(now)

    def ended(self, now: float) -> None:
        if self._exchange is not None:
            self._exchange.is_over = True
            self._exchange = None
        self._has_ended = True

    def _read(self, now: float) -> None:
        # An answer that is given at once ends in here again, by `finish`; the loop that runs already goes on then.
        if self._is_reading:
            return
        self._is_reading = True
        try:
            while not self._has_ended:
                event = self._h11.next_event()
                if event is h11.NEED_DATA:
                    break
                if event is h11.PAUSED:
                    if self._h11.our_state is h11.SWITCHED_PROTOCOL:
                        self.connection.switched_data += self._h11.trailing_data[0]
                    break
                self._handle(event, now)
        except h11.RemoteProtocolError as error:
            self.server.record(error, f"the client broke HTTP/1.1 on {self.connection!r}: {error}")
            if self._h11.our_state in {h11.IDLE, h11.SEND_RESPONSE}:  # else an answer is under way
                self._say(
                    h11.Response(status_code=400, headers=[("Connection", "close")], reason=_REASONS[400]),
                    now,
                )
            self._close(now)
        finally:
            self._is_reading = False

    def _handle(self, event: type[h11.PAUSED | h11.NEED_DATA] | h11.Event, now: float) -> None:
        exchange = self._exchange
        if isinstance(event, h11.Request):
            self._begin(event, now)
        elif exchange is None:
            return  # the rest of a request that has been answered already
        elif isinstance(event, h11.Data):
            exchange.request._content += event.data
        elif isinstance(event, h11.EndOfMessage):
            exchange.request.trailers = tuple(decoded(event.headers.raw_items()))
            exchange.request.is_complete = True
            if exchange.steps is None:
                self.ask(exchange, now)

    def _begin(self, event: h11.Request, now: float) -> None:
        headers = decoded(event.headers.raw_items())
        if {"content-length", "transfer-encoding"} <= {name.lower() for name, _ in headers}:
            # h11 takes the second one (RFC 9112, section 6.2: a client sends one of them).
            raise h11.RemoteProtocolError("Content-Length beside Transfer-Encoding")
        request = MockRequest(
            self.connection,
            method=event.method.decode("ascii"),
            target=event.target.decode("latin-1"),
            scheme="https" if self.connection.is_tls else "http",
            authority=next((value for name, value in headers if name.lower() == "host"), ""),
            headers=headers,
            http_version=f"HTTP/{event.http_version.decode('ascii')}",
            stream_id=None,
            received_at=now,
        )
        self.connection.record_request(request)
        exchange = self._exchange = Exchange(request)
        if self.server.respond_early:
            self.ask(exchange, now)
        if self._h11.they_are_waiting_for_100_continue and exchange.steps is None:
            self._say(h11.InformationalResponse(status_code=100, headers=[], reason="Continue"), now)

    # --- the answer ----------------------------------------------------------------------------------------

    def send_interim(self, exchange: Exchange, response: MockResponse, now: float) -> None:
        self._say(
            h11.InformationalResponse(
                status_code=response.status,
                headers=response.raw_headers,
                reason=_reason(response),
            ),
            now,
        )

    def send_head(self, exchange: Exchange, head: Head, now: float) -> None:
        response = head.response
        if response.status == 101:
            self.send_interim(exchange, response, now)
            return
        headers = response.raw_headers
        names = {name.lower() for name, _ in headers}
        is_tunnel = exchange.request.method == "CONNECT" and response.status < 300
        is_known = response.known_length is not None and not response.raw_trailers
        has_content = response.status not in {204, 304} and not is_tunnel
        if is_known and has_content and not names & {b"content-length", b"transfer-encoding"}:
            headers.append((b"Content-Length", b"%d" % (response.known_length or 0)))
        # Where there is no length, h11 adds what a client of this version understands.
        is_last = not exchange.request.is_complete or self.connection.is_exhausted
        if is_last and not is_tunnel and b"connection" not in names:
            headers.append((b"Connection", b"close"))
        self._say(
            h11.Response(
                status_code=response.status,
                headers=headers,
                reason=_reason(response),
                http_version=b"1.1",
            ),
            now,
        )

    def send_data(self, exchange: Exchange, data: Data, now: float) -> bool:
        self._say(h11.Data(data=data.content), now)
        return True

    def send_trailers(self, exchange: Exchange, trailers: RawHeaders, now: float) -> None:
        self._say(h11.EndOfMessage(headers=trailers), now)

    def finish(self, exchange: Exchange, now: float) -> None:
        self._exchange = None
        if self._h11.our_state is h11.SWITCHED_PROTOCOL:
            return
        if self._h11.our_state is h11.SEND_BODY:
            self._say(h11.EndOfMessage(), now)
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
            self._read(now)
        else:
            # What the client still sends of its request is not answered any more (RFC 9112, section 9.6).
            self._close(now)

    def break_off(self, exchange: Exchange, fault: Fault, now: float) -> None:
        if fault.kind == "reset":
            self.ended(now)
            self.connection.line.reset(now)
        elif fault.kind != "stall":
            self._close(now)

    def _close(self, now: float) -> None:
        self.ended(now)
        self.connection.line.end(now)

    def _say(self, event: h11.Event, now: float) -> None:
        data = self._h11.send(event)
        if data:
            self.connection.say(data, now)

    def flush(self, now: float) -> None:
        """Nothing is ever left."""
