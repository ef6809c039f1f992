"""What an HTTP/1.1 connection may do next: bytes in, events out, no I/O.

There are two ways through it. What is beyond doubt is written and read by the patterns of `_http11_fast.py`, and this
module keeps count of what is still to be sent and to come. At the first thing that they do not recognise, in either
direction, the exchange goes to a judge, h11 in `_http11_judge.py`, who decides and words the error. He is told what
has been so far by a request and an answer that are framed as the real ones, as far as these were sent and read, and
then gets all bytes that were not read yet; of an answer's head that is all of it. From there on he answers every
question. The next exchange begins without him. What he says is what he would have said had he been asked from the
start; the tests hold the two ways to that.

What a client that reuses connections has to decide besides:

- The one gate for reuse: `is_reusable`, and in words `obstacle_to_reuse`. A connection is used again only if both sides
  are done, no byte was left over, the framing was beyond doubt and the answer did not begin before the request had
  ended. Whatever else may be the case, the connection is closed: closing one too many costs a handshake, reusing one
  too many gives somebody another one's answer.
- An answer that is not HTTP/1.x is named for what it is (TLS, SSH, HTTP/2) at its first bytes, instead of
  being waited for until a time-out.

Every exception is one of lamina's: `LocalProtocolError` for what we were asked to send,
`RemoteProtocolError` for what came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina_interfaces import LocalProtocolError

from ._http11_events import MAX_CHUNK_OVERHEAD as MAX_CHUNK_OVERHEAD
from ._http11_events import MAX_FIELDS as MAX_FIELDS
from ._http11_events import MAX_HEAD_BYTES as MAX_HEAD_BYTES
from ._http11_events import MAX_INTERIM_BYTES as MAX_INTERIM_BYTES
from ._http11_events import MAX_INTERIM_RESPONSES as MAX_INTERIM_RESPONSES
from ._http11_events import MAX_QUOTE as MAX_QUOTE
from ._http11_events import BodyData as BodyData
from ._http11_events import EndOfResponse as EndOfResponse
from ._http11_events import InterimResponse as InterimResponse
from ._http11_events import ResponseHead as ResponseHead
from ._http11_events import describe_foreign_bytes as describe_foreign_bytes
from ._http11_events import idle_seconds
from ._http11_events import shortened as shortened
from ._http11_fast import (
    BEFORE_FIRST_CHUNK,
    CHUNKED,
    MAX_PLAIN_HEAD,
    has_odd_end,
    may_be_plain,
    read_chunks,
    read_head,
    write_head,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina_interfaces import BytesLike

    from ._http11_events import Event as Event
    from ._http11_events import Headers as Headers
    from ._http11_judge import HTTP11Judge

# How far the request is …
_UNSENT, _SENDING, _SENT = range(3)
# … and what comes next of the answer.
_HEAD, _LENGTH, _CHUNKS, _NOTHING = range(4)

_HOST = (b"Host", b"a.test")  # in what the judge is told


class HTTP11Session:
    """The protocol state of one HTTP/1.1 connection, from the client's side. Not thread-safe.

    Attributes:
        has_answer_begun: whether any byte of the answer to the present request has come.
        exchanges: how many requests were begun.
    """

    __slots__ = (
        "_awaited",
        "_buffer",
        "_has_peer_ended",
        "_is_answered_early",
        "_is_head_request",
        "_judge",
        "_keep_alive_timeout",
        "_keeps_alive",
        "_left",
        "_length",
        "_progress",
        "_searched",
        "_status",
        "_unsent",
        "exchanges",
        "has_answer_begun",
    )

    def __init__(self) -> None:
        self.exchanges = 0
        self._has_peer_ended = False
        self._begin()

    def _begin(self) -> None:
        self.has_answer_begun = False
        self._judge: HTTP11Judge | None = None
        self._progress = _UNSENT
        self._is_head_request = False
        self._unsent = 0  # bytes of the request's body, or CHUNKED
        self._awaited = _HEAD
        self._buffer = b""  # what has come and was not read
        self._searched = 0  # so far there is no end of the head in it
        self._status = 0
        self._length = 0  # of the answer's body
        self._left = 0  # of that, or of the chunk that is being read
        self._keeps_alive = True
        self._keep_alive_timeout: int | None = None
        self._is_answered_early = False

    # --- sending -------------------------------------------------------------------------------------------

    def send_head(
        self, method: bytes, target: bytes, headers: Headers, written: tuple[bytes, int] | None = None
    ) -> bytes:
        """Begin a request; the bytes of its head.

        Args:
            method: as it is sent.
            target: as it is sent.
            headers: as they are sent.
            written: what `write_head` makes of these, if somebody has called it.

        Raises:
            LocalProtocolError: it is not valid, or the connection is not ready for a request.
        """
        plain = (written or write_head(method, target, headers)) if self._progress == _UNSENT else None
        if plain is None or self._judge is not None:
            data = self._judged().send_head(method, target, headers)
        else:
            data, self._unsent = plain
            self._is_head_request = data.startswith(b"HEAD ")
            self._progress = _SENDING
        self.exchanges += 1
        return data

    def send_body(self, data: BytesLike) -> Sequence[BytesLike]:
        """A piece of the request's body, framed; the data itself is passed through, not copied.

        Raises:
            LocalProtocolError: more than the declared Content-Length.
        """
        size = len(data)
        if self._judge is None and self._progress == _SENDING:
            if self._unsent == CHUNKED:
                return (b"%x\r\n" % size, data, b"\r\n") if size else ()
            if size <= self._unsent:
                self._unsent -= size
                return (data,)
        return self._judged().send_body(data)

    def send_end(self) -> bytes:
        """End the request; what is still to be sent for it.

        Raises:
            LocalProtocolError: less than the declared Content-Length.
        """
        if self._judge is None and self._progress == _SENDING and self._unsent <= 0:
            self._progress = _SENT
            return b"0\r\n\r\n" if self._unsent == CHUNKED else b""
        return self._judged().send_end()

    # --- receiving -----------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> None:
        """Take what the peer sent; `b""` for the orderly end of the connection.

        Raises:
            RemoteProtocolError: this is not HTTP/1.x, or nothing at all.
        """
        if self._judge is None:
            if self._awaited != _HEAD:
                self._buffer += data
                self._has_peer_ended |= not data
                return
            buffer = self._buffer + data  # which copies nothing where one of them is empty
            if data and self._progress != _UNSENT and may_be_plain(buffer):
                self.has_answer_begun = True
                self._buffer = buffer
                return
        judge = self._judged()
        if data:
            self.has_answer_begun = True
        judge.receive(data)

    def next_event(self) -> Event | None:
        """The next thing that has come, or `None` if more bytes are needed first.

        Raises:
            RemoteProtocolError: the peer broke the protocol, or one of the limits. After that there is
                no more to come.
        """
        if self._judge is not None:
            return self._judge.next_event()
        if self._awaited == _HEAD:
            return self._next_head() if self._buffer else None
        if self._awaited == _CHUNKS and (body := self._read_chunks()):
            return BodyData(body)
        if self._judge is not None:
            return self._judge.next_event()
        if self._awaited == _LENGTH:
            return self._next_of_length()
        return None

    def _next_head(self) -> Event | None:
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n", self._searched)
        if end < 0:
            if len(buffer) > MAX_PLAIN_HEAD or has_odd_end(buffer, self._searched):
                return self._judged().next_event()
            self._searched = max(0, len(buffer) - 3)
            return None
        plain = read_head(buffer, end, self._is_head_request)
        if plain is None:
            return self._judged().next_event()
        head, self._length, self._keeps_alive, self._keep_alive_timeout = plain
        self._buffer = buffer[end + 4 :]
        self._status = head.status
        self._is_answered_early = self._progress == _SENDING
        if self._length == CHUNKED:
            self._awaited = _CHUNKS
            self._left = BEFORE_FIRST_CHUNK
        else:
            self._awaited = _LENGTH
            self._left = self._length
        return head

    def _next_of_length(self) -> Event | None:
        if self.take_end():
            return EndOfResponse([])
        if data := self.take_body():
            return BodyData(data)
        return self._judged().next_event() if self._has_peer_ended else None

    def take_body(self) -> bytes:
        """All that has come of a body of declared length, without events.

        Returns:
            The bytes. `b""`: there are none, or it is not that simple; ask `next_event`.
        """
        left, data = self._left, self._buffer
        if self._awaited != _LENGTH or not data or not left or self._judge is not None:
            return b""
        self._buffer = data[left:]
        if len(data) > left:
            data = data[:left]
        self._left = left - len(data)
        return data

    def take_whole(self) -> bytes:
        """The body, if that is of declared length, all of it has come and nothing was taken yet; otherwise `b""`."""
        if not 0 < self._length == self._left <= len(self._buffer):
            return b""
        data = self.take_body()
        self.take_end()
        return data

    def take_end(self) -> bool:
        """Whether the body has been taken to its end; then the answer is complete. If not, ask `next_event`."""
        if self._left or self._awaited != _LENGTH or self._judge is not None:
            return False
        self._awaited = _NOTHING
        return True

    @property
    def missing(self) -> int:
        """Bytes of a body of declared length that have not come, and may go past us (`skip_body`); otherwise 0."""
        if self._awaited != _LENGTH or self._judge is not None or self._has_peer_ended:
            return 0
        return max(0, self._left - len(self._buffer))

    def skip_body(self, count: int) -> None:
        """So many bytes of the body have come, behind all that was taken. At most as many as are `missing`."""
        self._left -= count

    def _read_chunks(self) -> bytes:
        """What there is of the body. If that is nothing, and cannot become more, the judge is called."""
        chunks = read_chunks(self._buffer, self._left)
        self._buffer = self._buffer[chunks.end :]
        self._left = chunks.left
        if chunks.has_ended:
            self._awaited = _LENGTH  # … of which nothing is left
            self._left = 0
        elif not chunks.body and (self._has_peer_ended or not chunks.is_plain):
            self._judged()
        return chunks.body

    # --- the judge -----------------------------------------------------------------------------------------

    def _judged(self) -> HTTP11Judge:
        """The judge of this exchange, who knows what has been so far."""
        if self._judge is not None:
            return self._judge
        try:
            from ._http11_judge import HTTP11Judge  # and h11 with it: most programs never need them
        except (ImportError, OSError) as error:  # the second where there are no descriptors left
            raise LocalProtocolError(f"h11 cannot be imported: {error}") from error

        self._judge = judge = HTTP11Judge()
        if self._progress != _UNSENT:
            judge.send_head(
                b"HEAD" if self._is_head_request else b"POST", b"/", [_HOST, _framing(self._unsent)]
            )
            if self._is_answered_early:
                self._retell_answer(judge)
            if self._progress == _SENT:
                judge.send_end()
            if self._awaited != _HEAD and not self._is_answered_early:
                self._retell_answer(judge)
        if self._buffer:
            judge.receive(self._buffer)
        if self._has_peer_ended:
            judge.receive(b"")
        return judge

    def _retell_answer(self, judge: HTTP11Judge) -> None:
        """Tell of a head and a body like those of the answer, as far as these have been read."""
        left = 0 if self._awaited == _NOTHING else CHUNKED if self._length == CHUNKED else self._left
        headers = [_framing(left)]
        if not self._keeps_alive:
            headers.append((b"Connection", b"close"))
        if self._keep_alive_timeout is not None:
            headers.append((b"Keep-Alive", b"timeout=%d" % self._keep_alive_timeout))
        lines = [b"%b: %b\r\n" % field for field in headers]
        judge.receive(b"HTTP/1.1 %d x\r\n%b\r\n" % (self._status, b"".join(lines)))
        judge.next_event()
        if self._awaited == _NOTHING:
            judge.next_event()  # the end
        elif self._length != CHUNKED:
            judge.length = self._length
        elif self._awaited == _LENGTH:
            judge.receive(b"0\r\n\r\n")
        elif self._left > 0:
            judge.receive(b"%x\r\n" % self._left)
            judge.next_event()  # not yet
        elif self._left == 0:
            judge.receive(b"1\r\nx")
            judge.next_event()  # a chunk, and not what must stand behind it

    # --- after the answer ----------------------------------------------------------------------------------

    @property
    def is_answered_early(self) -> bool:
        """Whether the final response began before the request had ended."""
        return self._is_answered_early if self._judge is None else self._judge.is_answered_early

    @property
    def is_delimited_by_close(self) -> bool:
        """Whether nothing but the orderly end of the connection tells where the body ends."""
        return self._judge is not None and self._judge.is_delimited_by_close

    @property
    def body_left(self) -> int | None:
        """Bytes of the body still to come, where its length was declared; 0 before and after the body."""
        if self._judge is not None:
            return self._judge.body_left
        if self._awaited in (_HEAD, _NOTHING):
            return 0
        return None if self._length == CHUNKED else self._left

    @property
    def idle_seconds(self) -> float:
        """How long the server will keep the idle connection, by its own word; `inf` if it said nothing."""
        return idle_seconds(self._keep_alive_timeout) if self._judge is None else self._judge.idle_seconds

    @property
    def left_over(self) -> bytes:
        """Bytes that came behind the answer: the first of the new protocol after a switch, else a fault."""
        return self._buffer if self._judge is None else self._judge.left_over

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can take another request. The one gate."""
        if self._judge is not None:
            return self._judge.obstacle_to_reuse() is None
        return (
            self._awaited == _NOTHING
            and self._progress == _SENT
            and self._keeps_alive
            and not self._is_answered_early
            and not self._has_peer_ended
            and not self._buffer
        )

    def obstacle_to_reuse(self) -> str | None:
        """Why the connection cannot take another request, in the judge's words, or `None` if it can."""
        return None if self.is_reusable else self._judged().obstacle_to_reuse()

    def start_next(self) -> None:
        """Make ready for another request. Only where it `is_reusable`."""
        if self._judge is not None:
            self._begin()
            return
        # Where it is reusable the buffer is empty, nothing is left, no answer was early and the peer has not ended, as
        # at the beginning. The rest is set by the next head that is sent (method, length of the body), or that comes
        # (status, length, whether the server keeps the connection), before anybody looks at it.
        self.has_answer_begun = False
        self._progress = _UNSENT
        self._awaited = _HEAD
        self._searched = 0
        self._keep_alive_timeout = None


def _framing(length: int) -> tuple[bytes, bytes]:
    if length == CHUNKED:
        return (b"Transfer-Encoding", b"chunked")
    return (b"Content-Length", b"%d" % length)
