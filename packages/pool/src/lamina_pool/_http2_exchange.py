"""One request and its response on an HTTP/2 connection. Written once as `async def`, as `_connection.py` is.

It has the same face as `HTTP11Connection`, so that the pool and the response's body need not know which one they have.
All of it is steps on the shared session, and waits, which `HTTP2Connection` sees to.

What may be sent again is known better than in HTTP/1.1: a request that the server has refused (REFUSED_STREAM, or a
GOAWAY that names a lower stream, RFC 9113, sections 6.8 and 8.7) was not processed for certain, whatever its method.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    ArgumentTypeError,
    LocalProtocolError,
    ReadError,
    RemoteProtocolError,
    TimeoutException,
)

from ._connection import EXPECT_CONTINUE_SECONDS, smaller
from ._io import END, StaleConnectionError
from ._models import ByteStream
from ._trace import Tracer, nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._checks import RequestFraming, Timeouts
    from ._http2 import HTTP2Stream
    from ._http2_connection import HTTP2Connection
    from ._http11 import Headers, ResponseHead
    from ._info import ConnectionFacts
    from ._io import BodySource
    from ._io import Stream as IOStream
    from ._models import Request


class HTTP2Exchange:
    """One request on a shared connection: `send_request`, then `receive_body` until `b""`.

    Attributes:
        waits_since: when it began to wait for what it waited for last.
        is_sending: whether it has more to send than could be sent so far.
        bytes_sent: bytes of the request's body that were handed over, and 1 for its head.
        trace: who is told of the request step by step.
        on_sent: called when all of the request was sent, before its answer has come; the pool sets it.
    """

    trace_name = "http2"
    is_exclusive = False
    on_sent: Callable[[], None] | None = None

    def __init__(self, connection: HTTP2Connection) -> None:
        self.waits_since = float("inf")
        self.is_sending = False
        self.bytes_sent = 0
        self.trace: Tracer | None = None
        self._connection = connection
        self._stream: HTTP2Stream | None = None
        self._is_first = True
        self._is_sent = False
        self._begun = 0  # bytes of the first piece of the body that went out with the head
        self._is_given_up = False

    # --- facts ---------------------------------------------------------------------------------------------

    @property
    def stream(self) -> IOStream:
        """The network stream that it shares with others."""
        return self._connection.stream

    @property
    def facts(self) -> ConnectionFacts | None:
        """Of the connection."""
        return self._connection.facts

    @property
    def extensions(self) -> dict[str, Any]:
        """What a response says besides."""
        return {} if self._stream is None else {"stream_id": self._stream.id}

    @property
    def trailers(self) -> Headers:
        """The fields behind the body, once it has been read to its end."""
        return [] if self._stream is None else self._stream.trailers

    @property
    def has_ended(self) -> bool:
        """Whether the response was read to its end."""
        return self._stream is not None and self._stream.has_ended and not self._stream.held

    idle_seconds = float("inf")
    """The server does not say how long it will keep the connection."""

    left_over = b""
    """There is no switch of protocols."""

    # --- the request ---------------------------------------------------------------------------------------

    async def send_request(
        self, request: Request, framing: RequestFraming, body: BodySource, timeouts: Timeouts
    ) -> ResponseHead:
        """Send a request and receive the head of its answer. See `HTTP11Connection.send_request`."""
        if framing.is_upgrade or framing.is_connect:
            raise LocalProtocolError(
                "the server speaks HTTP/2, which knows neither upgrades nor a CONNECT that takes the whole connection"
            )
        self.trace = trace = Tracer.of(request, self.trace_name)
        try:
            return await self._exchange(request, framing, body, timeouts, trace)
        except BaseException:
            if trace is not None and self._stream is not None:
                await trace.around("response_closed", {**self.extensions}, nothing)
            raise

    async def _exchange(
        self,
        request: Request,
        framing: RequestFraming,
        body: BodySource,
        timeouts: Timeouts,
        trace: Tracer | None,
    ) -> ResponseHead:
        first: Any = b""
        if trace is None and framing.body != "none" and not framing.expects_continue:
            first = await _next_piece(body)  # which goes out together with the head
        try:
            await self._open(framing, first, timeouts, trace=trace, request=request)
        except StaleConnectionError:
            if body.has_begun:
                body.put_back(first)
            raise
        if trace is None:
            await self._send_rest(first, framing, body, timeouts)
        else:
            info = {"request": request, **self.extensions}
            await trace.around("send_request_body", info, self._send_rest, first, framing, body, timeouts)
        if self.on_sent is not None and not self._has_answer and not self._the_stream.wants_body:
            self.on_sent()
        if trace is None:
            return await self._receive_head(timeouts.read)
        await trace.started("receive_response_headers", {"request": request, **self.extensions})
        try:
            head = await self._receive_head(timeouts.read)
        except BaseException as error:
            await trace.failed("receive_response_headers", error)
            raise
        await trace.complete("receive_response_headers", (head.status, head.headers))
        return head

    async def _open(
        self,
        framing: RequestFraming,
        first: Any,
        timeouts: Timeouts,
        *,
        trace: Tracer | None,
        request: Request,
    ) -> None:
        """Get a stream, and hand over the head and what there is of the body."""
        connection = self._connection
        self._is_first = connection.exchanges == 0
        if trace is not None:
            info: dict[str, Any] = {"request": request}
            if self._is_first:
                await trace.around("send_connection_init", info, nothing)
            await trace.started("send_request_headers", info)
        try:
            while True:
                if not self._is_first:
                    await connection.read_left_over(self)
                if connection.step(self._try_to_open, framing, request, first):
                    break
                if connection.is_retired or connection.is_full or self._is_given_up:
                    # Perhaps the peer has lowered the number of streams since the pool granted us one.
                    connection.announce()
                    raise StaleConnectionError(connection.explain_refusal(), 0)
                # The peer does not read.
                await connection.wait(self, self._may_open, connection.limit(timeouts.write, "write"))
        except BaseException as error:
            if trace is not None:
                await trace.failed("send_request_headers", error)
            raise
        if trace is not None:
            await trace.complete("send_request_headers")

    def _may_open(self) -> bool:
        connection = self._connection
        return connection.is_retired or connection.is_full or connection.session.can_open or self._is_given_up

    def _try_to_open(self, framing: RequestFraming, request: Request, first: Any) -> bool:
        connection = self._connection
        if connection.is_retired or self._is_given_up or not connection.session.can_open:
            return False
        session = connection.session
        ends = framing.body == "none" or first is END
        self._stream = session.open_stream(
            framing, request.url.scheme, ends=ends, now=connection.runtime.now()
        )
        connection.enter(self._stream, self)
        self.bytes_sent = 1
        self._is_sent = ends
        if not ends and len(first):
            # In the same packet, as far as the window allows.
            taken = session.send_data(self._stream, memoryview(first).cast("B"))
            self.bytes_sent += taken
            self._begun = taken
            is_all = type(request.stream) is ByteStream  # any other may have more than it said
            if is_all and framing.body == "length" and taken == len(first) == framing.length:
                session.end_stream(self._stream)
                self._is_sent = True
        return True

    async def _send_rest(
        self, piece: Any, framing: RequestFraming, body: BodySource, timeouts: Timeouts
    ) -> None:
        """Send what did not go out together with the head."""
        if self._is_sent:
            await self._connection.flush(self._connection.limit(timeouts.write, "write"))
        else:
            await self._send_body(piece, framing, body, timeouts)

    async def _send_body(
        self, piece: Any, framing: RequestFraming, body: BodySource, timeouts: Timeouts
    ) -> None:
        """Send the body from this piece on, until it ends or the server has heard enough."""
        connection, stream = self._connection, self._the_stream
        if framing.expects_continue:
            await connection.flush(connection.limit(timeouts.write, "write"))
            if not await self._is_body_asked_for(smaller(timeouts.read, EXPECT_CONTINUE_SECONDS)):
                return
        while self._is_body_wanted:
            if len(piece):
                await self._send_piece(memoryview(piece).cast("B")[self._begun :], timeouts)
                self._begun = 0
                if not self._is_body_wanted:
                    return
            piece = await _next_piece(body)
            if piece is END:
                connection.step(connection.session.end_stream, stream)
                await connection.flush(connection.limit(timeouts.write, "write"))
                return

    async def _is_body_asked_for(self, patience: float) -> bool:
        limit = self._connection.limit(patience, "read")
        stream = self._the_stream
        try:
            await self._connection.wait(self, lambda: stream.is_continued or self._has_answer, limit)
        except TimeoutException:
            # The caller's own deadline is another matter.
            self._connection.limit(None, "read").check()
            return True  # it may not know what is expected of it
        return not self._has_answer

    async def _send_piece(self, rest: memoryview, timeouts: Timeouts) -> None:
        connection, stream = self._connection, self._the_stream
        limit = connection.limit(timeouts.write, "write")
        while rest and self._is_body_wanted:
            taken = connection.step(connection.session.send_data, stream, rest)
            rest = rest[taken:]
            self.bytes_sent += taken
            await connection.flush(limit)
            if taken:
                await connection.read_left_over(self)  # a refusal, it may be
                limit = connection.limit(timeouts.write, "write")
            if (rest and not taken) or connection.is_congested:
                self.is_sending = True
                try:
                    await connection.wait(self, self._may_send, limit)
                finally:
                    self.is_sending = False

    def _may_send(self) -> bool:
        if not self._is_body_wanted:
            return True
        return not self._connection.is_congested and self._connection.session.can_send(self._the_stream)

    @property
    def _is_body_wanted(self) -> bool:
        """Whether the server may still be reading."""
        stream = self._the_stream
        return (
            stream.wants_body
            and self._connection.failure is None
            and not self._is_given_up
            and (stream.head is None or stream.head.status < 300)
        )

    # --- the response --------------------------------------------------------------------------------------

    @property
    def _the_stream(self) -> HTTP2Stream:
        assert self._stream is not None
        return self._stream

    @property
    def _has_answer(self) -> bool:
        stream = self._the_stream
        return stream.head is not None or stream.failure is not None or self._is_given_up

    async def _receive_head(self, timeout: float | None) -> ResponseHead:
        stream = self._the_stream
        if stream.head is None:
            limit = self._connection.limit(timeout, "read")
            await self._connection.wait(self, lambda: self._has_answer, limit)
        if stream.head is None:
            raise self._explain()
        return stream.head

    def take_whole(self) -> bytes:
        """Never anything: what has come is accounted for, and told the server, where it is received."""
        return b""

    async def receive_body(self, timeout: float | None) -> bytes:
        """The next bytes of the body, as many as are here; `b""` at its end, and after it.

        Raises:
            RemoteProtocolError: the body is cut off, or not framed as it should be.
            ReadError, ReadTimeout, DeadlineExceeded: as the stream raised it.
        """
        connection, stream = self._connection, self._the_stream
        while True:
            if self._is_given_up:
                raise ReadError("the response is being closed", phase="read")
            if stream.held:
                data: bytes = connection.step(stream.take, connection.runtime.now())
                await connection.flush(connection.limit(timeout, "write"))
                return data
            if stream.has_ended:
                return b""
            if stream.failure is not None or connection.failure is not None:
                raise self._explain()
            limit = connection.limit(timeout, "read")
            await connection.wait(self, lambda: self._has_news, limit)

    receive_body_whole = receive_body  # what comes is shared with others' streams, and in frames

    @property
    def _has_news(self) -> bool:
        stream = self._the_stream
        return bool(stream.held) or stream.has_ended or stream.failure is not None or self._is_given_up

    def _explain(self) -> Exception:
        """Why no more will come: for the caller, or for the pool, which may try it again elsewhere."""
        connection, stream = self._connection, self._the_stream
        if self._is_given_up:
            return ReadError("the response is being closed", phase="read")
        failure = stream.failure or connection.failure
        assert failure is not None
        cause = connection.copy_of(failure)
        if stream.is_refused:
            # A server that recycles its connections refuses again and again, and yet gets on. One that refuses what
            # it has said it would deal with does not.
            last_id = connection.session.last_id
            return StaleConnectionError(cause, 0, is_futile=not last_id or stream.id <= last_id)
        if connection.failure is not None and not stream.has_answer_begun and not self._is_first:
            explained = RemoteProtocolError(
                "the connection ended without an answer to this request; whether it was processed is not known",
                phase=cause.phase,
            )
            explained.__cause__ = cause
            return StaleConnectionError(explained, self.bytes_sent)
        return cause

    # --- afterwards ----------------------------------------------------------------------------------------

    async def drain(self) -> None:
        """Tell the peer, if it is not done, that nobody will read the rest."""
        self._let_go()
        await self._connection.flush_quietly()

    def start_next(self) -> bool:
        """Be done. Returns whether the connection can take other requests: the pool is told otherwise if not."""
        self._let_go()
        return True

    def give_up(self) -> bool:
        """Let go of the stream, in whatever state; never waits. Returns whether others may go on: always."""
        self._is_given_up = True
        self._let_go()
        self._connection.flush_later()
        return True

    def _let_go(self) -> None:
        connection = self._connection
        if connection.failure is None:
            connection.step(connection.leave, self, self._stream)
        connection.announce()

    def abort(self) -> None:
        """Make whoever reads it stop: another thread or task closes the response."""
        self._is_given_up = True
        self._connection.step(self._connection.nudge, self)
        self._connection.flush_later()

    def close_now(self) -> None:
        """Nothing: the connection is the pool's."""


async def _next_piece(body: BodySource) -> Any:
    """The next piece of the body that is not empty, or `END`."""
    while True:
        piece = await body.next()
        if piece is END:
            return END
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            raise ArgumentTypeError(f"a request's body must yield bytes, not {type(piece).__name__}")
        if isinstance(piece, memoryview):
            piece = piece.cast("B") if piece.contiguous else piece.tobytes()
        if piece:
            return piece
