"""One HTTP/1.1 connection: the session's bytes, carried over a stream.

Written once as `async def`. In blocking code `drive` runs it over a stream whose methods block; see
`_blocking.py`. Nothing here decides whether the connection may be reused (`_http11.py` does) or for whom
(`_scheduler.py` does).

What makes sending hard is a server that answers before it has read the request. It may refuse an upload after
the first bytes and stop reading, or close. So a body is written in a way that stops when an answer comes in:

- An answer of 300 and above ends the upload; the connection is of no further use.
- An early 2xx may be an answer that grows as the body arrives, so the upload goes on; if it then breaks off, the
  answer is still given to the caller.
- A write that fails, or that takes too long, may have been met by an answer that is already here. It is read before
  the failure is told.

And a connection that is used again may have been closed by the server, or have brought bytes that nobody asked for.
So the last look at it comes immediately before the first byte is written, after whatever the caller's own code
(the body, the trace callback) has been given time for.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    ArgumentTypeError,
    LaminaError,
    Limit,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    WriteError,
    WriteTimeout,
)

from ._http11 import BodyData, EndOfResponse, HTTP11Session, InterimResponse, ResponseHead
from ._io import END, StaleConnectionError
from ._trace import Tracer, nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamina_interfaces import BytesLike, Runtime

    from ._checks import RequestFraming, Timeouts
    from ._http11 import Headers
    from ._info import ConnectionFacts
    from ._io import BodySource, Stream
    from ._models import Request

COALESCE_BYTES = 64 * 1024
"""Up to this size a head and a first piece of body go out in one write: one packet, one system call."""

MAX_READ_SIZE = 1024 * 1024
"""Up to this size reads grow, twofold with each that comes back full: fewer system calls for a large body."""

MIN_DIRECT_BYTES = 32 * 1024
"""From this size on, the rest of a body that is wanted as a whole is read straight into its place."""

MAX_DIRECT_BYTES = 16 * 1024 * 1024
"""The most memory that is taken at once for it, on the server's word that so much will come."""

EXPECT_CONTINUE_SECONDS = 1.0
"""How long a body is held back after `Expect: 100-continue` (RFC 9110, section 10.1.1: not "indefinite")."""

LATE_ANSWER_SECONDS = 1.0
"""How long an answer is waited for after a write has failed. If there is one it is here already, or nearly."""

HEARD_BYTES = 16 * 1024 * 1024
"""The most that is kept of an answer that grows while the request is being sent; then nobody listens any more."""

DRAIN_BYTES = 64 * 1024
"""The largest rest of a response that is read so that its connection can be kept."""

DRAIN_SECONDS = 0.05
"""How long that may take. A new connection over TLS seldom costs less."""


class _NotIdleError(RemoteProtocolError):
    """A connection that was to be used again has something to read, before anything was sent."""

    default_message = "the server had closed the idle connection, or sent bytes unasked"


class HTTP11Connection:
    """One connection and what it carries: `send_request`, then `receive_body` until `b""`, then again.

    For one request at a time; the pool sees to that. After any exception, cancellation included, it can only
    be aborted.

    Args:
        stream: what it runs over.
        runtime: clock and events.
        leading: what has been read from it already: came behind the answer of a proxy.

    Attributes:
        stream: as given.
        trailers: the fields behind the body of the last response, once it has been read to its end.
        bytes_sent: bytes of the present request that the system has taken for certain.
        bytes_offered: the same, with those of a write that failed, any part of which may have been taken.
        trace: who is told of the present request step by step.
        facts: for the pool, which sets it.
        on_sent: called when all of a request was sent, before its answer has come; the pool sets it, too.
    """

    http_version = "HTTP/1.1"
    trace_name = "http11"
    is_exclusive = True
    capacity = 1
    facts: ConnectionFacts | None = None
    on_sent: Callable[[], None] | None = None

    def __init__(self, stream: Stream, runtime: Runtime, *, leading: bytes = b"") -> None:
        self.stream = stream
        self._leading = leading
        self.trace: Tracer | None = None
        self.trailers: Headers = []
        self.bytes_sent = 0
        self.bytes_offered = 0
        self._runtime = runtime
        self._session = HTTP11Session()
        self._read_size = DEFAULT_READ_SIZE
        self._early: ResponseHead | None = None
        self._first_piece: BytesLike = b""
        self._pieces: list[bytes] = []  # of the body: taken from the session, not yet by the caller
        self._held = 0  # bytes in them
        self._has_ended = False
        self._is_reused = False
        self._has_write_failed = False
        self._failure: LaminaError | None = None
        self._is_aborted = False

    # --- the request ---------------------------------------------------------------------------------------

    def begin(self) -> HTTP11Connection:
        """What one request has of it: all."""
        return self

    async def send_request(
        self, request: Request, framing: RequestFraming, body: BodySource, timeouts: Timeouts
    ) -> ResponseHead:
        """Send a request and receive the head of its answer.

        Args:
            request: for whoever traces it.
            framing: what is to be sent.
            body: the body, which is pulled from here.
            timeouts: for each read and write.

        Raises:
            StaleConnectionError: this was a reused connection, and it had ended.
            LocalProtocolError: the request is not valid; nothing, or not all of it, was sent.
            RemoteProtocolError: the answer is not valid.
            ReadError, WriteError, ReadTimeout, WriteTimeout, DeadlineExceeded: as the stream raised it.
        """
        session = self._session
        self.bytes_sent = self.bytes_offered = 0
        self.trailers = []
        self._read_size = DEFAULT_READ_SIZE
        self._early = None
        self._first_piece = b""
        self._has_ended = False
        head = session.send_head(framing.method, framing.target, framing.headers, framing.written)
        self._is_reused = session.exchanges > 1
        try:
            self.trace = trace = Tracer.of(request, self.trace_name)
            if trace is not None:
                return await self._exchange_told(trace, request, head, framing, body, timeouts)
            answer = await self._send(head, framing, body, timeouts)
            if answer is not None:
                return answer
            if self.on_sent is not None:
                self.on_sent()
            return await self._receive_head(timeouts.read)
        except _NotIdleError as error:
            if body.has_begun:
                body.put_back(self._first_piece)
            raise StaleConnectionError(RemoteProtocolError(error.message, phase="write"), 0) from None
        except (ReadError, WriteError, RemoteProtocolError) as error:
            if not self._is_reused or session.has_answer_begun:
                raise
            raise StaleConnectionError(self._explain_stale(error), self.bytes_offered) from error

    async def _exchange_told(self, trace: Tracer, *arguments: Any) -> ResponseHead:
        try:
            return await self._exchange_traced(trace, *arguments)
        except BaseException:
            await trace.around("response_closed", {}, nothing)
            raise

    async def _exchange_traced(
        self,
        trace: Tracer,
        request: Request,
        head: bytes,
        framing: RequestFraming,
        body: BodySource,
        timeouts: Timeouts,
    ) -> ResponseHead:
        """The same, step by step, head and body in writes of their own, with httpcore's events."""
        info = {"request": request}
        answer: ResponseHead | None
        try:
            await trace.around("send_request_headers", info, self._write, head, timeouts.write)
        except (WriteError, WriteTimeout) as error:
            answer = await self._answer_despite(error, timeouts.read)
            if answer is None:
                raise
        else:
            answer = await trace.around("send_request_body", info, self._send, b"", framing, body, timeouts)
        await trace.started("receive_response_headers", info)
        try:
            if answer is None:
                if self.on_sent is not None:
                    self.on_sent()
                answer = await self._receive_head(timeouts.read)
        except BaseException as error:
            await trace.failed("receive_response_headers", error)
            raise
        await trace.complete(
            "receive_response_headers", (answer.http_version, answer.status, answer.reason, answer.headers)
        )
        return answer

    def _explain_stale(self, error: LaminaError) -> LaminaError:
        explained = RemoteProtocolError(
            "the server closed a reused connection without answering; "
            f"up to {self.bytes_offered} bytes of the request had been sent, and whether it was processed is not known",
            phase=error.phase,
        )
        explained.__cause__ = error
        return explained

    async def _send(
        self, head: bytes, framing: RequestFraming, body: BodySource, timeouts: Timeouts
    ) -> ResponseHead | None:
        """Send all of the request, or what the server wants of it. Returns the answer if it came meanwhile."""
        try:
            if framing.body == "none" and body.is_whole:
                await self._write(head + self._session.send_end(), timeouts.write)
                return None
            if framing.expects_continue:
                if head:
                    await self._write(head, timeouts.write)
                    head = b""
                if (answer := await self._await_continue(timeouts.read)) is not None:
                    return answer
            await self._send_body(head, body, timeouts)
        except (WriteError, WriteTimeout) as error:
            answer = self._early or await self._answer_despite(error, timeouts.read)
            if answer is None:
                raise
            return answer
        return self._early

    async def _send_body(self, head: bytes, body: BodySource, timeouts: Timeouts) -> None:
        """Send the body, behind what is left to send of the head, until a refusal comes in."""
        session = self._session
        pending: list[BytesLike] = [head]
        while (piece := await body.next()) is not END:
            if not isinstance(piece, (bytes, bytearray, memoryview)):
                raise ArgumentTypeError(f"a request's body must yield bytes, not {type(piece).__name__}")
            if isinstance(piece, memoryview):
                piece = piece.cast("B") if piece.contiguous else piece.tobytes()
            if not piece:
                continue
            if not self.bytes_offered:
                self._first_piece = piece
            pending.extend(session.send_body(piece))
            for buffer in _coalesced(pending):
                await self._write_while_wanted(buffer, timeouts)
                if not self._is_body_wanted:
                    return
            pending = []
        if end := session.send_end():
            pending.append(end)
        for buffer in _coalesced(pending) if len(pending) > 1 else pending:
            await self._write(buffer, timeouts.write)

    @property
    def _is_body_wanted(self) -> bool:
        """Whether the server may still be reading: it has not refused, and its answer is not broken off."""
        return self._failure is None and (self._early is None or self._early.status < 300)

    async def _write(self, buffer: BytesLike, timeout: float | None) -> None:
        if self._is_reused and not self.bytes_offered:
            sent = await self._write_first(buffer, timeout)
            if sent == len(buffer):
                return
            buffer = bytes(memoryview(buffer)[sent:])
        if buffer:
            self.bytes_offered += len(buffer)
            await self.stream.write(buffer, timeout)
            self.bytes_sent += len(buffer)

    async def _write_while_wanted(self, buffer: BytesLike, timeouts: Timeouts) -> None:
        """Write all of it. If the peer speaks up meanwhile, hear it, and go on as long as it may be reading."""
        rest = memoryview(buffer)
        while rest and self._is_body_wanted:
            if self._has_ended or self._held > HEARD_BYTES:
                await self._write_unheard(rest, timeouts.write)
                return
            rest = rest[await self._write_some(rest, timeouts.write) :]
            if rest:
                await self._hear(timeouts.read)

    async def _write_unheard(self, rest: memoryview, timeout: float | None) -> None:
        """Write on without listening. Where the answer is here as a whole, a server that stops reading has enough."""
        if self._has_ended:
            timeout = smaller(timeout, LATE_ANSWER_SECONDS)
        for start in range(0, len(rest), COALESCE_BYTES):
            await self._write(bytes(rest[start : start + COALESCE_BYTES]), timeout)

    async def _write_some(self, buffer: BytesLike, timeout: float | None) -> int:
        """Write until something can be read; returns how many bytes were written."""
        before = self.bytes_offered
        if self._is_reused and not before:
            return await self._write_first(buffer, timeout)
        self.bytes_offered += len(buffer)
        sent = await self.stream.write_until_readable(buffer, timeout)
        self.bytes_offered = before + sent
        self.bytes_sent += sent
        return sent

    async def _write_first(self, buffer: BytesLike, timeout: float | None) -> int:
        """The same, for the first bytes on a connection that is used again.

        What can be read before they go out cannot be the answer to them.
        """
        stream = self.stream
        # A stream that watches looks before it writes, too. One that cannot tell (`None`) is not used again either: in
        # doubt for a new connection.
        if not stream.is_watchful and stream.get_extra_info("is_readable") is not False:
            raise _NotIdleError
        self.bytes_offered = len(buffer)
        sent = await stream.write_until_readable(buffer, timeout)
        self.bytes_offered = self.bytes_sent = sent
        if not sent:
            raise _NotIdleError
        return sent

    async def _hear(self, timeout: float | None) -> None:
        """Take what has come while we were sending, and keep what there is of the final response."""
        try:
            await self._fill(timeout)
        except ReadError as error:
            raise WriteError(
                "the connection broke while the request was being sent", phase="write", errno=error.errno
            ) from error
        while self._early is None and (event := self._session.next_event()) is not None:
            if isinstance(event, ResponseHead):
                self._early = event
        if self._early is not None:
            self._collect()

    async def _answer_despite(
        self, error: WriteError | WriteTimeout, timeout: float | None
    ) -> ResponseHead | None:
        """Sending failed. If the server had answered before, that is what counts; `None` if it had not."""
        self._has_write_failed = True
        if isinstance(error, WriteTimeout):
            if not self.stream.get_extra_info("is_readable"):
                return None
        elif self._is_reused and not self.bytes_sent:
            return None  # perhaps nothing was sent; what is here would then be the answer to nothing
        limit = Limit(smaller(timeout, LATE_ANSWER_SECONDS), self._runtime.now, "read")
        try:
            return await self._receive_head_within(limit)
        except (ReadError, ReadTimeout, RemoteProtocolError):
            return None

    async def _await_continue(self, timeout: float | None) -> ResponseHead | None:
        """Hold the body back until the server asks for it, answers without it, or takes too long."""
        limit = Limit(smaller(timeout, EXPECT_CONTINUE_SECONDS), self._runtime.now, "read")
        is_wanted = False
        while True:
            event = self._session.next_event()
            if isinstance(event, ResponseHead):
                return event
            if isinstance(event, InterimResponse):
                is_wanted |= event.status == 100
            elif is_wanted:
                return None
            elif event is None:
                try:
                    await self._fill(limit.remaining())
                except ReadTimeout:
                    return None

    # --- the response --------------------------------------------------------------------------------------

    async def _receive_head(self, timeout: float | None) -> ResponseHead:
        while True:
            event = self._session.next_event()
            if event is None:
                await self._fill(timeout)
            elif isinstance(event, ResponseHead):
                return event

    async def _receive_head_within(self, limit: Limit) -> ResponseHead:
        while True:
            event = self._session.next_event()
            if event is None:
                if not self.stream.is_watchful and self.stream.get_extra_info("is_readable") is False:
                    raise ReadError("nothing has come, and the stream may know no time limit", phase="read")
                await self._fill(limit.remaining())
            elif isinstance(event, ResponseHead):
                return event

    async def receive_body(self, timeout: float | None) -> bytes:
        """The next bytes of the body, as many as are here; `b""` at its end, and after it.

        Raises:
            RemoteProtocolError: the body is cut off or not framed as it should be.
            ReadError, ReadTimeout, DeadlineExceeded: as the stream raised it.
        """
        session = self._session
        while True:
            if not self._pieces:
                data = session.take_body()
                if not data and (missing := session.missing):
                    # What comes now is the body, up to what is missing: the session only has to count it.
                    data = await self._read(timeout)
                    if type(data) is not bytes or not 0 < len(data) <= missing:
                        session.receive(data)  # the end, too much, or what a custom stream has for bytes
                        continue
                    session.skip_body(len(data))
                if data:
                    self._has_ended = session.take_end()
                    return data
            self._collect()
            if self._pieces:
                pieces, self._pieces, self._held = self._pieces, [], 0
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            if self._failure is not None:
                try:
                    raise self._failure  # only now: first what came before it
                finally:
                    self._failure = None  # its traceback leads back here
            if self._has_ended:
                return b""
            await self._fill_body(timeout)

    def take_whole(self) -> bytes:
        """The body, if all of it has come with the head; otherwise, and if it is empty, `b""`."""
        if self._pieces or not (data := self._session.take_whole()):
            return b""
        self._has_ended = True
        return data

    async def receive_body_whole(self, timeout: float | None) -> bytes:
        """As `receive_body`, for whoever wants all of it: waits for more, if that can be read into its place.

        What has come when it fails is lost, as it is to whoever wants all or nothing.
        """
        data = await self.receive_body(timeout)
        missing = self._session.missing
        if missing < MIN_DIRECT_BYTES or self._pieces or not self.stream.is_direct:
            return data
        size = len(data)
        # The bytes that are handed out in the end, written to while nobody else has them. So none is copied.
        whole = BytesIO(bytes(min(size + missing, max(size, MAX_DIRECT_BYTES))))
        whole.write(data)
        with whole.getbuffer() as place:
            while size < len(place):
                with place[size:] as rest:
                    count = await self.stream.read_into(rest, timeout)
                if not count:
                    self._check_end()
                    self._session.receive(b"")
                    break
                self._session.skip_body(count)
                size += count
        whole.truncate(size)
        self._has_ended = self._session.take_end()
        return whole.getvalue()

    def _collect(self) -> None:
        """Take what has come of the body, up to what is missing or broken, or to its end."""
        try:
            while self._failure is None and not self._has_ended:
                event = self._session.next_event()
                if event is None:
                    return
                if isinstance(event, BodyData):
                    self._pieces.append(event.data)
                    self._held += len(event.data)
                elif isinstance(event, EndOfResponse):
                    self.trailers = event.trailers
                    self._has_ended = True
        except RemoteProtocolError as error:
            self._failure = error

    async def _fill_body(self, timeout: float | None) -> None:
        try:
            await self._fill(timeout)
        except ReadError as error:
            if not self._session.is_delimited_by_close:
                raise
            raise RemoteProtocolError(
                "the connection broke, so that the end of the response is not known", phase="read"
            ) from error

    async def _fill(self, timeout: float | None) -> None:
        self._session.receive(await self._read(timeout))

    async def _read(self, timeout: float | None) -> bytes:
        if self._leading:
            data, self._leading = self._leading, b""
        else:
            data = await self.stream.read(self._read_size, timeout)
            if len(data) == self._read_size < MAX_READ_SIZE:
                self._read_size *= 2
        if not data:
            self._check_end()
        return data

    def _check_end(self) -> None:
        """Some streams read our own closing, by another thread, as the peer's orderly end."""
        if self._is_aborted:
            raise ReadError("the connection was closed while it was being read", phase="read")

    # --- afterwards ----------------------------------------------------------------------------------------

    @property
    def has_ended(self) -> bool:
        """Whether the response was read to its end."""
        return self._has_ended and not self._pieces

    @property
    def exchanges(self) -> int:
        """How many requests it has carried, the present one included."""
        return self._session.exchanges

    @property
    def idle_seconds(self) -> float:
        """How long the server will keep the idle connection, by its own word."""
        return self._session.idle_seconds

    @property
    def left_over(self) -> bytes:
        """After a switch of protocols: the bytes of the new one that have come already."""
        return self._session.left_over

    async def drain(self) -> None:
        """Read a small rest of the response, if that is quicker than a new connection.

        A rest of declared length is waited for, but not long, and only on a stream that knows of time limits. Of any
        other only what is here already is taken: it may be an endless one. Never raises for what the peer does.
        """
        session = self._session
        left = session.body_left
        if (
            (left is not None and left > DRAIN_BYTES)
            or session.is_delimited_by_close
            or session.is_answered_early
        ):
            return
        may_wait = left is not None and self.stream.is_watchful
        limit = Limit(DRAIN_SECONDS, self._runtime.now, "read")
        try:
            while True:
                self._collect()
                if self._has_ended or self._failure is not None or self._held > DRAIN_BYTES:
                    return
                if not may_wait and not self.stream.get_extra_info("is_readable"):
                    return
                await self._fill(limit.remaining())
        except LaminaError:
            self._has_ended = False
        finally:
            self._pieces, self._held = [], 0

    def start_next(self) -> bool:
        """Make ready for another request. Returns whether that is possible; if not, it is to be closed."""
        if self._is_aborted or self._has_write_failed or not self._session.is_reusable:
            return False
        self._session.start_next()
        self.trace = None
        return True

    @property
    def extensions(self) -> dict[str, Any]:
        """What a response says besides: nothing."""
        return {}

    def give_up(self) -> bool:
        """Close the stream, since nobody can know in what state it is. Returns that it is of no more use."""
        self.abort()
        return False

    def close_now(self) -> None:
        """Close the stream in the protocol's way, as far as that needs no waiting."""
        self._is_aborted = True
        self.stream.close_now()

    def abort(self) -> None:
        """Close the stream without farewell; may be called from anywhere, at any time."""
        self._is_aborted = True
        self.stream.abort()


def smaller(timeout: float | None, seconds: float) -> float:
    return seconds if timeout is None else min(timeout, seconds)


def _coalesced(buffers: list[BytesLike]) -> list[BytesLike]:
    """Join what is small; leave what is large as it is, uncopied."""
    joined: list[BytesLike] = []
    small: list[BytesLike] = []
    size = 0
    for buffer in buffers:
        length = len(buffer)
        if size + length > COALESCE_BYTES and small:
            joined.append(b"".join(small))
            small, size = [], 0
        if length > COALESCE_BYTES:
            joined.append(buffer)
        elif length:
            small.append(buffer)
            size += length
    if small:
        joined.append(small[0] if len(small) == 1 else b"".join(small))
    return joined
