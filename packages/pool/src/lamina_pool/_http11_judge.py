"""One exchange of HTTP/1.1 as h11 sees it: bytes in, events out, no I/O.

h11 parses, serialises and keeps the two state machines (RFC 9112). It decides whatever `_http11_fast.py` does not
recognise, and words the errors. This module adds the limits that h11 leaves open: fields in a head, interim responses,
their bytes; and how long a line may be that h11 matches against patterns whose time grows with the square of its
length, blanks in a row above all. So h11 is fed slice by slice while what comes may be a head or a chunk's header, and
a head is looked through before.

Every exception is one of lamina's: `LocalProtocolError` for what we were asked to send, `RemoteProtocolError` for
what came.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import h11

from lamina_interfaces import LocalProtocolError, RemoteProtocolError

from ._http11_events import (
    BODY_SLICE_BYTES,
    MAX_BLANKS,
    MAX_CHUNK_OVERHEAD,
    MAX_FIELDS,
    MAX_HEAD_BYTES,
    MAX_INTERIM_BYTES,
    MAX_INTERIM_RESPONSES,
    SLICE_BYTES,
    BodyData,
    EndOfResponse,
    InterimResponse,
    ResponseHead,
    describe_foreign_bytes,
    idle_seconds,
    keep_alive_timeout,
    shortened,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina_interfaces import BytesLike

    from ._http11_events import Event, Headers

_PREFIX = b"HTTP/"
_CUT_OFF = "the server ended the connection in the midst of its response"
_HEAD_END = re.compile(rb"\n\r?\n")
_BLANKS = re.compile(rb"[ \t]{%d}" % (MAX_BLANKS + 1))


class HTTP11Judge:
    """The protocol state of one exchange, from the client's side; the methods are those of `HTTP11Session`.

    Attributes:
        is_answered_early: whether the final response began before the request had ended.
        length: the whole of the body, in bytes, where one was declared.
    """

    def __init__(self) -> None:
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._unfed = memoryview(b"")
        self._has_peer_ended = False
        self._is_end_fed = False
        self._has_failed = False
        self._is_head_request = False
        self._has_answer_begun = False
        self.is_answered_early = False
        self._prefix = b""
        self._interim_responses = 0
        self._interim_bytes = 0
        self._is_framing_ambiguous = False
        self._is_delimited_by_close = False
        self._is_chunked = False
        self._is_head_next = True
        self.length: int | None = None
        self._body_left: int | None = None
        self._keep_alive_timeout: int | None = None

    # --- sending -------------------------------------------------------------------------------------------

    def send_head(self, method: bytes, target: bytes, headers: Headers) -> bytes:
        """Begin a request; the bytes of its head.

        Raises:
            LocalProtocolError: it is not valid, or the connection is not ready for a request.
        """
        try:
            data = self._h11.send(h11.Request(method=method, target=target, headers=headers))
        except h11.LocalProtocolError as error:
            raise LocalProtocolError(str(error), phase="write") from error
        self._is_head_request = data.startswith(b"HEAD ")
        return data

    def send_body(self, data: BytesLike) -> Sequence[BytesLike]:
        """A piece of the request's body, framed; the data itself is passed through, not copied.

        Raises:
            LocalProtocolError: more than the declared Content-Length.
        """
        try:
            # h11's types say `bytes`, its documentation any bytes-like object.
            return self._h11.send_with_data_passthrough(h11.Data(data=data)) or ()  # type: ignore[arg-type]
        except h11.LocalProtocolError as error:
            raise LocalProtocolError(str(error), phase="write") from error

    def send_end(self) -> bytes:
        """End the request; what is still to be sent for it.

        Raises:
            LocalProtocolError: less than the declared Content-Length.
        """
        try:
            return self._h11.send(h11.EndOfMessage())
        except h11.LocalProtocolError as error:
            raise LocalProtocolError(str(error), phase="write") from error

    # --- receiving -----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take what the peer sent; `b""` for the orderly end of the connection.

        Raises:
            RemoteProtocolError: this is not HTTP/1.x, or nothing at all.
        """
        if data:
            self._has_answer_begun = True
            if len(self._prefix) < len(_PREFIX):
                self._prefix = (self._prefix + data[: len(_PREFIX)])[: len(_PREFIX)]
                if not _PREFIX.startswith(self._prefix):
                    self._has_failed = True
                    raise RemoteProtocolError(
                        describe_foreign_bytes(data, "an HTTP/1.x response"), phase="read"
                    )
            if len(data) <= SLICE_BYTES and not self._unfed:
                self._h11.receive_data(data)
                return
            self._unfed = memoryview(bytes(self._unfed) + data if self._unfed else data)
        else:
            self._has_peer_ended = True
            if not self._has_answer_begun:
                self._has_failed = True
                raise RemoteProtocolError(
                    "the server ended the connection without sending a response", phase="read"
                )
        self._feed()

    def _feed(self) -> bool:
        """Let h11 have more of what has come. Returns whether there was any."""
        if self._unfed:
            size = SLICE_BYTES if self._is_head_next or self._is_chunked else BODY_SLICE_BYTES
            # h11's types say `bytes`; it only appends them to a bytearray.
            self._h11.receive_data(self._unfed[:size])  # type: ignore[arg-type]
            self._unfed = self._unfed[size:]
            return True
        if self._has_peer_ended and not self._is_end_fed:
            self._is_end_fed = True
            self._h11.receive_data(b"")
            return True
        return False

    def next_event(self) -> Event | None:
        """The next thing that has come, or `None` if more bytes are needed first.

        Raises:
            RemoteProtocolError: the peer broke the protocol, or one of the limits above. After that there is
                no more to come.
        """
        if not self._has_answer_begun:
            return None
        try:
            return self._next_event()
        except RemoteProtocolError:
            self._has_failed = True
            raise

    def _next_event(self) -> Event | None:
        while (event := self._parse()) is h11.NEED_DATA:
            if self._is_chunked and len(self._h11.trailing_data[0]) > MAX_CHUNK_OVERHEAD:
                raise RemoteProtocolError(
                    f"a chunk's header or the trailer section is larger than {MAX_CHUNK_OVERHEAD} bytes",
                    phase="read",
                )
            if not self._feed():
                return None
        if isinstance(event, h11.Data):
            if self._body_left is not None:
                self._body_left -= len(event.data)
            return BodyData(bytes(event.data))
        if isinstance(event, h11.EndOfMessage):
            return EndOfResponse(_checked_fields(event.headers.raw_items(), "trailer section"))
        if isinstance(event, h11.InformationalResponse):
            return self._interim(event)
        if isinstance(event, h11.Response):
            return self._final(event)
        if event is h11.PAUSED:
            return EndOfResponse([])  # after a switch of protocols there is nothing more of ours
        raise RemoteProtocolError(_CUT_OFF, phase="read")

    def _parse(self) -> Any:
        if self._is_head_next:
            self._look_through_head()
        try:
            return self._h11.next_event()
        except h11.RemoteProtocolError as error:
            # h11 raises what its frame has in a variable: a cycle, which would keep the whole connection.
            if self._is_head_next and self._is_end_fed:
                raise RemoteProtocolError(_CUT_OFF, phase="read") from error.with_traceback(None)
            if self._is_end_fed and self.length is not None and self._body_left:
                # In h11's words, with our numbers: it may have been called in the midst of the body.
                raise RemoteProtocolError(
                    "peer closed connection without sending complete message body "
                    f"(received {self.length - self._body_left} bytes, expected {self.length})",
                    phase="read",
                ) from error.with_traceback(None)
            raise RemoteProtocolError(shortened(str(error)), phase="read") from error.with_traceback(None)

    def _look_through_head(self) -> None:
        held = self._h11.trailing_data[0]
        if len(held) <= MAX_BLANKS:
            return
        end = _HEAD_END.search(held)
        if end is None:
            return
        if held.count(b"\n", 0, end.start()) > MAX_FIELDS:
            raise RemoteProtocolError(
                f"the response's head has more than {MAX_FIELDS} lines of fields", phase="read"
            )
        if _BLANKS.search(held, 0, end.start()):
            raise RemoteProtocolError(
                f"the response's head has more than {MAX_BLANKS} blanks in a row", phase="read"
            )

    def _interim(self, event: h11.InformationalResponse) -> Event:
        headers = _checked_fields(event.headers.raw_items(), "head")
        _check_version(event.http_version)
        if event.status_code == 101:
            self._is_head_next = False
            return ResponseHead(b"HTTP/" + event.http_version, 101, bytes(event.reason), headers, True)
        self._interim_responses += 1
        self._interim_bytes += sum(len(name) + len(value) for name, value in headers)
        if self._interim_responses > MAX_INTERIM_RESPONSES or self._interim_bytes > MAX_INTERIM_BYTES:
            raise RemoteProtocolError(
                f"the server sent {self._interim_responses} interim (1xx) responses and no final one",
                phase="read",
            )
        return InterimResponse(event.status_code, headers)

    def _final(self, event: h11.Response) -> ResponseHead:
        headers = _checked_fields(event.headers.raw_items(), "head")
        _check_version(event.http_version)
        self._is_head_next = False
        self.is_answered_early = self._h11.our_state is h11.SEND_BODY
        self._judge_framing(event)
        switches = self._h11.their_state is h11.SWITCHED_PROTOCOL
        return ResponseHead(
            b"HTTP/" + event.http_version, event.status_code, bytes(event.reason), headers, switches
        )

    def _judge_framing(self, event: h11.Response) -> None:
        length = transfer_encoding = None
        for name, value in event.headers:
            if name == b"content-length":
                length = value
            elif name == b"transfer-encoding":
                transfer_encoding = value
            elif name == b"keep-alive" and (timeout := keep_alive_timeout(value)) is not None:
                self._keep_alive_timeout = timeout
        # RFC 9112, section 6.3: both at once "might indicate an attempt to perform response splitting". The
        # body is read by its chunks, as the RFC says; what follows it on this connection is not trusted.
        self._is_framing_ambiguous = length is not None and transfer_encoding is not None
        if event.status_code == 204 and (transfer_encoding is not None or length not in (None, b"0")):
            # RFC 9110, section 8.6: must not be sent. The body that it announces may be on its way.
            self._is_framing_ambiguous = True
        if self._h11.their_state is not h11.SEND_BODY:
            return
        if self._is_head_request or event.status_code in (204, 304):
            self.length = self._body_left = 0  # whatever it says: RFC 9112, section 6.3
            return
        self._is_chunked = transfer_encoding is not None
        if transfer_encoding is None:
            self._is_delimited_by_close = length is None
            # h11 has checked that it is one number, however often it was repeated.
            self.length = self._body_left = None if length is None else int(length.split(b",")[0])

    # --- after the answer ----------------------------------------------------------------------------------

    @property
    def is_delimited_by_close(self) -> bool:
        """Whether nothing but the orderly end of the connection tells where the body ends."""
        return self._is_delimited_by_close

    @property
    def body_left(self) -> int | None:
        """Bytes of the body still to come, where its length was declared; 0 before and after the body."""
        return self._body_left if self._h11.their_state is h11.SEND_BODY else 0

    @property
    def idle_seconds(self) -> float:
        """How long the server will keep the idle connection, by its own word; `inf` if it said nothing."""
        return idle_seconds(self._keep_alive_timeout)

    @property
    def left_over(self) -> bytes:
        """Bytes that came behind the answer: the first of the new protocol after a switch, else a fault."""
        return self._h11.trailing_data[0] + self._unfed

    def obstacle_to_reuse(self) -> str | None:
        """Why the connection cannot take another request, or `None` if it can. The one gate."""
        if self._has_failed:
            return "the peer broke the protocol"
        if self._has_peer_ended:
            return "the server has ended the connection"
        ours, theirs = self._h11.our_state, self._h11.their_state
        if h11.SWITCHED_PROTOCOL in (ours, theirs):
            return "the protocol was switched"
        if self.is_answered_early:
            return "the answer came before the request had ended"
        if theirs is h11.MUST_CLOSE or ours is h11.MUST_CLOSE:
            return "the connection was not to be kept alive"
        if ours is not h11.DONE:
            return "the request was not sent to its end"
        if theirs is not h11.DONE:
            return "the response was not read to its end"
        if self.left_over:
            return "bytes came behind the end of the response"
        if self._is_framing_ambiguous:
            return "the response was framed in two ways at once"
        return None


def _checked_fields(fields: Headers, where: str) -> Headers:
    """Refuse what is over the limits; h11 checks the size only of what has not come whole."""
    if len(fields) > MAX_FIELDS:
        raise RemoteProtocolError(f"the response's {where} has {len(fields)} fields", phase="read")
    if sum(len(name) + len(value) for name, value in fields) > MAX_HEAD_BYTES:
        raise RemoteProtocolError(
            f"the response's {where} is larger than {MAX_HEAD_BYTES} bytes", phase="read"
        )
    return fields


def _check_version(version: bytes) -> None:
    # RFC 9112, section 2.3; h11 takes any digits.
    if version[:2] != b"1.":
        raise RemoteProtocolError(
            f"the server answered in HTTP/{version.decode('ascii')} to a request in HTTP/1.1", phase="read"
        )
