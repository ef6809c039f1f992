"""One HTTP/2 connection, shared by all who have a request on it. Written once as `async def`, as `_connection.py` is.

The session (`_http2.py`) knows the protocol and is fed bytes; this module moves the bytes, with nobody in charge of
it. There is no task or thread that reads in the background, so nothing has to be started, stopped or supervised, and
an idle connection costs nothing. Instead:

- *Reading is nobody's property.* Who waits for something, and finds that nobody reads, reads for all: whatever comes
  goes into the session, and those whom it concerns are woken. Who has what it waited for stops reading, and wakes one
  of the others to go on. A reader that is cancelled or times out does just the same: a read that ends so has lost no
  byte (`NetworkStream.read`), and nobody but the one request notices.
- *Writing does not wait, where the stream can do that* (`PromptWriter`). Every frame is handed over at once, by
  whoever has made it, under the connection's lock. What the system does not take stays in `_unsent`, and one of those
  who wait, wait for that as well. So no write is ever broken off, which would end the connection for all. With a
  stream that only knows `write` one at a time writes for all; there a cancellation in the middle of a write does end
  the connection, since nobody can know what was sent.
- *Everything that closes is a plain function.* A request that is given up resets its stream (RFC 9113, section 5.4.2)
  in the midst of a cancellation, without waiting.

Under threads a lock guards the session; it is held while bytes are put in or taken out, never while anybody waits. As
in `_pool.py`, a finaliser or a signal handler may run in the middle of such a step of its own thread: then its own step
is put off until that one is done. A step that an exception tore apart has left the session in nobody knows what state,
so the connection is given up.

A reader that is alone in the world hears of a request that ended elsewhere only when something comes. Where it must
hear of it (another thread closes its response) the peer is asked for a sign of life (PING).
"""

from __future__ import annotations

import os
from _thread import RLock
from collections import deque
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    GLANCE_SECONDS,
    ConnectionNotAvailable,
    LaminaError,
    Limit,
    ReadError,
    TimeoutException,
    interruptions,
)

from ._faces import pieces_of
from ._http2 import HTTP2Session
from ._http2_exchange import HTTP2Exchange
from ._releasing import locked_code

if TYPE_CHECKING:
    from collections.abc import Callable

    from lamina_interfaces import Event, Phase, Runtime

    from ._http2 import HTTP2Stream
    from ._info import ConnectionFacts
    from ._io import Stream

T = TypeVar("T")

FAREWELL_SECONDS = 1.0
"""How long a stream without `write_now` may take to send the reset of a request that was given up."""

LATE_ANSWER_SECONDS = 1.0
"""How long is still read after writing has failed. Answers that had been sent before are here already, or nearly."""

DOUBT_SECONDS = 1.0
"""After a request that has heard nothing for so long, the connection takes no other one before a sign of life."""

LEFT_OVER_READS = 64
"""How often, at most, is read what has come while nobody waited, before a connection is used again."""

_CLOSED = "the connection was closed while the request was under way"
_TORN = "an exception came in the middle of the connection's work"


class HTTP2Connection:
    """One connection and the requests that it carries. See the top of the module.

    Args:
        stream: what it runs over.
        runtime: clock and events.
        is_blocking: whether an exception in a read may have lost bytes: a cancellation has not, a signal handler's may.
        ping_interval: after how many seconds of silence, while somebody waits, the peer is asked for a sign of life;
            `None` for never.
        ping_timeout: how many seconds it has for that.

    Attributes:
        stream: as given.
        session: the protocol's state. Only for the exchanges, in a step.
        runtime: as given.
        failure: why it is of no more use, or `None`.
        on_change: called, outside of the lock, when `capacity` has changed.
        facts: for the pool, which sets it.
    """

    http_version = "HTTP/2"
    is_exclusive = False
    facts: ConnectionFacts | None = None

    def __init__(
        self,
        stream: Stream,
        runtime: Runtime,
        *,
        is_blocking: bool,
        ping_interval: float | None,
        ping_timeout: float,
    ) -> None:
        self.stream = stream
        self.runtime = runtime
        self.session = HTTP2Session(runtime.now())
        self.failure: LaminaError | None = None
        self.on_change: Callable[[HTTP2Connection], None] | None = None
        self._now = runtime.now
        self._is_blocking = is_blocking
        self._is_prompt = stream.is_prompt
        self._ping_interval = ping_interval
        self._ping_timeout = ping_timeout
        # Asked for its owner, as the pool's lock is.
        self._lock: Any = RLock()
        self._put_off: deque[Callable[[], object]] = deque()
        self._is_torn = False
        self._pid = os.getpid()
        # All that follows under the lock.
        self._exchanges: dict[HTTP2Stream, HTTP2Exchange] = {}
        self._asleep: dict[HTTP2Exchange, Event] = {}
        self._reader: HTTP2Exchange | None = None
        self._writer: HTTP2Exchange | None = None  # waits until more can be written
        self._turn: object = None  # whose it is to write, with a stream that only knows `write`
        self._unsent = memoryview(b"")
        self._was_congested = False
        self._write_failure: LaminaError | None = None
        self._write_failed_at = 0.0
        self._doubted_at: float | None = None
        self._is_announced_closed = False
        self._announced = self.capacity

    # --- for the pool --------------------------------------------------------------------------------------

    def begin(self) -> HTTP2Exchange:
        """What one request has of it."""
        return HTTP2Exchange(self)

    def take(self, data: bytes) -> None:
        """Take what has been read from the stream already: came behind the answer of a proxy."""
        self.step(self._receive, data)

    def presume(self, streams: int) -> None:
        """Carry no more requests than these at once, until the server has said how many it allows."""
        self.session.presume(streams)
        self._announced = self.capacity

    @property
    def capacity(self) -> int:
        """How many requests it can carry at once, at present; 0 when it takes no more."""
        return 0 if self.is_retired else self.session.capacity

    @property
    def is_retired(self) -> bool:
        """Whether it takes no more requests, for good."""
        return self.failure is not None or self._write_failure is not None or self.session.is_draining

    @property
    def is_full(self) -> bool:
        """Whether it has as many streams as the peer allows, or more."""
        return self.session.open_streams >= self.capacity

    @property
    def exchanges(self) -> int:
        """How many requests it has carried, the present ones included."""
        return self.session.opened

    def give_up(self) -> bool:
        """Let go of it before a request has begun. Returns whether others may go on: always."""
        return True

    def close_now(self) -> None:
        """Close the stream with such a farewell as needs no waiting."""
        if self.failure is None and self._is_prompt and os.getpid() == self._pid:
            self.step(self.session.goaway)
        self._end(self.stream.close_now)

    def abort(self) -> None:
        """Close the stream without farewell, and wake whoever waits; from anywhere, at any time."""
        self._end(self.stream.abort)

    def _end(self, close: Callable[[], None]) -> None:
        if os.getpid() != self._pid:
            # Of the parent's threads one may have held the lock, in the midst of a step.
            self._lock, self._is_torn = RLock(), False
            self.failure = ReadError(_CLOSED, phase="read")
            close()
            return
        try:
            self.step(self.fail, ReadError(_CLOSED, phase="read"))
        finally:
            self.on_change = None  # it leads back here
            close()

    # --- steps ---------------------------------------------------------------------------------------------

    def step(self, function: Callable[..., T], *arguments: Any) -> T:
        """Do something to the session, under the lock. What the peer is to be told of it goes out at once.

        If this is a finaliser or a signal handler in the midst of a step of this very thread, it is put off, and
        nothing is returned. Only what may be done in such a place is then ever asked for: giving up.
        """
        step = partial(function, *arguments)
        if self._lock._is_owned():
            self._put_off.append(step)
            return None  # type: ignore[return-value] # nobody looks at it there
        with self._lock:
            return self._take_step(step)

    def _take_step(self, step: Callable[[], T]) -> T:
        if self._is_torn:
            self._is_torn = False
            self.fail(ReadError(_TORN, phase="read"))
        self._is_torn = True
        try:
            result = step()
        except LaminaError:
            self._finish_step()  # that was our own, and complete
            raise
        self._finish_step()
        return result

    def _finish_step(self) -> None:
        while self._put_off:
            self._put_off.popleft()()
        if self._is_prompt:
            self._send()
        self._is_torn = False

    def announce(self) -> None:
        """Tell the pool if the capacity has changed. Not in a step."""
        capacity, is_retired = self.capacity, self.is_retired
        if capacity == self._announced and is_retired is self._is_announced_closed:
            return
        is_told = False
        try:
            self._announced, self._is_announced_closed = capacity, is_retired
            if (on_change := self.on_change) is not None:
                on_change(self)
            is_told = True
        finally:
            if not is_told:
                self._announced = -1  # an interrupt; the pool must hear of it all the same

    def fail(self, error: LaminaError) -> None:
        """Nothing goes in or out any more; every request that is not done is told. In a step."""
        if self.failure is None:
            self.failure = error
            self._unsent = memoryview(b"")
            self.stream.abort()
        self._wake_all()

    def limit(self, timeout: float | None, phase: Phase) -> Limit:
        """A limit on the connection's clock."""
        return Limit(timeout, self._now, phase)

    def copy_of(self, error: LaminaError) -> LaminaError:
        """The same error for one of those whom it concerns: each is told of its own request besides."""
        own = copy(error)
        own.__cause__ = error.__cause__
        return own

    # --- those who wait ------------------------------------------------------------------------------------

    async def wait(self, exchange: HTTP2Exchange, is_ready: Callable[[], bool], limit: Limit) -> None:
        """Wait until `is_ready`, which is asked in steps, or the connection has failed; read and write meanwhile.

        Raises:
            TimeoutException: the limit's error. Nothing is lost or broken by it, nor by a cancellation.
        """
        exchange.waits_since = self._now()
        while True:
            try:
                act = self.step(self._take_role, exchange, is_ready)
                if act is None:
                    return
                await act(exchange, limit)
            finally:
                if self._reader is exchange or self._writer is exchange or exchange in self._asleep:
                    self.step(self._leave_role, exchange)
                self.announce()

    def _take_role(self, exchange: HTTP2Exchange, is_ready: Callable[[], bool]) -> Callable[..., Any] | None:
        if self.failure is not None or is_ready():
            return None
        is_stuck = self._writer is None and self.is_congested
        if is_stuck:
            self._writer = exchange
            self._was_congested = True
        if self._reader is None:
            self._reader = exchange
            return self._read_and_write if is_stuck else self._read
        if is_stuck:
            return self._wait_to_write
        self._asleep[exchange] = self.runtime.create_event()
        return self._sleep

    def _leave_role(self, exchange: HTTP2Exchange) -> None:
        self._asleep.pop(exchange, None)
        if self._reader is exchange:
            self._reader = None
        if self._writer is exchange:
            self._writer = None
        # Whoever goes wakes somebody for what nobody does now; if that one was woken in vain it does the same.
        if self._reader is None or (self._writer is None and self.is_congested):
            for event in self._asleep.values():
                event.set()
                break

    async def _sleep(self, exchange: HTTP2Exchange, limit: Limit) -> None:
        event = self._asleep[exchange]
        until = limit
        if self._write_failure is not None:
            # The reader may have begun before that, and know nothing of it.
            until = self.limit(_sooner(limit.remaining(), self._patience()), limit.phase)
        try:
            if not await until.wait_for(event, self.runtime):
                if limit.expired():
                    raise limit.error()
                if until is not limit:
                    self._keep_watch()
        except BaseException:
            limit.interrupted()
            raise

    async def _wait_to_write(self, exchange: HTTP2Exchange, limit: Limit) -> None:
        """Somebody else reads, but may stop doing so at any time; so look again soon."""
        await self._wait_writable(limit, GLANCE_SECONDS)

    async def _read_and_write(self, exchange: HTTP2Exchange, limit: Limit) -> None:
        await self._wait_writable(limit, self._time_to_wait())
        self.step(self._stop_writing, exchange)
        # A stream that cannot tell is read for a while.
        if self.stream.get_extra_info("is_readable") is not False:
            await self._read(exchange, limit)

    def _stop_writing(self, exchange: HTTP2Exchange) -> None:
        if self._writer is exchange:
            self._writer = None  # and what is unsent goes out at the end of this step

    async def _wait_writable(self, limit: Limit, patience: float | None) -> None:
        try:
            await self.stream.wait_writable(_sooner(limit.remaining(), patience))
        except TimeoutException:
            if limit.expired():
                raise limit.error() from None
            self._keep_watch()
        except LaminaError as error:
            self.step(self._fail_writing, error)

    # --- reading -------------------------------------------------------------------------------------------

    async def _read(self, exchange: HTTP2Exchange, limit: Limit) -> None:
        """Read once, for all."""
        patience = self._time_to_wait()
        if self.is_congested:
            patience = _sooner(patience, GLANCE_SECONDS)  # whoever writes may stop doing so at any time
        if self._write_failure is not None and self._is_silent():
            self.step(self.fail, self._write_failure)
            return
        is_done = False
        try:
            try:
                data = await self.stream.read(DEFAULT_READ_SIZE, _sooner(limit.remaining(), patience))
            except TimeoutException:
                is_done = True
                if limit.expired():
                    raise limit.error() from None
                self._keep_watch()
            except LaminaError as error:
                is_done = True
                self.step(self.fail, self._write_failure or error)
            else:
                self.step(self._receive, data)
                is_done = True
        except BaseException as error:
            if not isinstance(error, Exception):
                for interruption in interruptions():
                    interruption.phase = limit.phase  # the stream knows only that it was reading
            if not is_done and (self._is_blocking or not _is_cancellation(error)):
                self.step(self.fail, ReadError(_TORN, phase="read"))  # bytes may be lost
            raise
        if not self._is_prompt and self.session.has_output:
            await self.flush_quietly()

    def _is_silent(self) -> bool:
        """Whether nothing can be read, on a stream that may know no time limit."""
        if self._is_prompt or self.stream.is_watchful:
            return False
        return self.stream.get_extra_info("is_readable") is False

    def _receive(self, data: bytes) -> None:
        session = self.session
        for stream in session.receive(data, self._now()):
            exchange = self._exchanges.get(stream)
            if exchange is not None:
                self.wake(exchange)
        if self.capacity != self._announced or self.is_congested:
            self._wake_all()  # who waits for a stream of its own, or for room, has no news of its own
        if session.failure is not None and self.failure is None:
            if self._is_prompt:
                self._send()  # the peer is told why
            self.fail(session.failure)

    async def look(self) -> None:
        """While it may carry nothing: see whether the server has changed its mind."""
        await self.read_left_over(self.begin())

    async def read_left_over(self, exchange: HTTP2Exchange) -> None:
        """Before a request: take what has come since somebody read last. A server says so when it closes."""
        await self._read_what_is_here(exchange)
        if self._doubted_at is not None:
            self.step(self._settle_doubt)
            self.announce()

    def _settle_doubt(self) -> None:
        if self._doubted_at is not None and self.session.last_received <= self._doubted_at:
            self.session.goaway()  # the server is silent still
        self._doubted_at = None

    async def _read_what_is_here(self, exchange: HTTP2Exchange) -> None:
        for _ in range(LEFT_OVER_READS):
            if self.failure is not None:
                return
            try:
                if self.step(self._begin_reading, exchange) is not None:
                    return
                if not self.stream.get_extra_info("is_readable"):
                    return
                await self._read(exchange, self.limit(GLANCE_SECONDS, "read"))
            except TimeoutException:
                # A custom stream may take for readable what is only half a record of TLS.
                self.limit(None, "read").check()  # the caller's own deadline is another matter
                return
            finally:
                if self._reader is exchange:
                    self.step(self._leave_role, exchange)
                self.announce()

    def _begin_reading(self, exchange: HTTP2Exchange) -> HTTP2Exchange | None:
        if self._reader is None:
            self._reader = exchange
            return None
        return self._reader

    def _patience(self) -> float | None:
        """How long a reader may wait before it has to look after the connection."""
        if self._write_failure is not None:
            begin = max(self._write_failed_at, self.session.last_received)
            return max(0.0, begin + LATE_ANSWER_SECONDS - self._now())
        if self._ping_interval is None:
            return None
        sent_at = self.session.ping_sent_at
        begin, seconds = (
            (self.session.last_received, self._ping_interval)
            if sent_at is None
            else (sent_at, self._ping_timeout)
        )
        return max(0.0, begin + seconds - self._now())

    def _time_to_wait(self) -> float | None:
        """The same for one who can look: what has come, and nobody has read, tells more than the clock."""
        patience = self._patience()
        if patience == 0.0 and self.stream.get_extra_info("is_readable"):
            return GLANCE_SECONDS
        return patience

    def _keep_watch(self) -> None:
        """Nothing came for as long as `_patience` has said, or not quite."""
        self.step(self._look_after)
        self.announce()

    def _look_after(self) -> None:
        if self._patience() == 0.0:
            if self._write_failure is not None:
                self.fail(self._write_failure)
            elif self.session.ping_sent_at is None:
                self.session.ping(self._now())
            else:
                self.fail(
                    ReadError(
                        f"the server has not answered a PING for {self._ping_timeout:g} seconds", phase="read"
                    )
                )

    # --- writing -------------------------------------------------------------------------------------------

    async def flush(self, limit: Limit) -> None:
        """See that what the session has for the peer goes out; with most streams it has done so already.

        Raises:
            TimeoutException: a stream that only knows `write` did not take it in time. The connection is given up.
        """
        if self._is_prompt:
            return
        turn = object()
        is_whole = False
        try:
            while (data := self.step(self._begin_writing, turn)) is not None:
                for _, piece in pieces_of(data):
                    await self.stream.write(piece, limit.remaining())
            is_whole = True
        except TimeoutException as error:
            self.step(self._fail_writing, error)
            raise limit.error() from None
        except LaminaError as error:
            is_whole = True
            self.step(self._fail_writing, error)
        finally:
            if self._turn is turn:
                self._turn = None
                if not is_whole:
                    self.step(self.fail, ReadError("a write was broken off", phase="write"))
            self.announce()

    def _begin_writing(self, turn: object) -> bytes | None:
        if self._turn not in (None, turn) or self.failure is not None or self._write_failure is not None:
            return None
        self._turn = turn
        if self.session.has_output:
            return self.session.output()
        self._turn = None
        return None

    async def flush_quietly(self) -> None:
        """The same, for nobody in particular."""
        try:
            await self.flush(self.limit(FAREWELL_SECONDS, "write"))
        except Exception:  # noqa: BLE001 - also what a custom stream raises that breaks its contract
            pass

    def _send(self) -> None:
        """Hand over what there is to be sent, as far as the system takes it. In a step."""
        if self._writer is not None or self._write_failure is not None or self.failure is not None:
            return  # whoever waits until it can be written will do it
        # What waits in the stream may go out by itself, or by a read: so it is remembered from step to step.
        was_congested = self._was_congested or self.is_congested
        self._was_congested = True
        try:
            while self._unsent or self.session.has_output:
                if not self._unsent:
                    self._unsent = memoryview(self.session.output())
                self._unsent = self._unsent[self.stream.write_now(self._unsent) :]
                if self._unsent:
                    return
            if was_congested and self.stream.has_unsent:
                self.stream.write_now(b"")
        except LaminaError as error:
            self._fail_writing(error)
            return
        self._was_congested = self.is_congested
        if was_congested and not self._was_congested:
            for exchange, event in self._asleep.items():
                if exchange.is_sending:
                    event.set()

    @property
    def is_congested(self) -> bool:
        """Whether the system takes no more at present, so that somebody has to wait for it."""
        if not self._is_prompt or self._write_failure is not None:
            return False  # or nothing will ever be taken
        return bool(self._unsent) or self.stream.has_unsent

    def _fail_writing(self, error: LaminaError) -> None:
        """What was sent before may yet be answered, so reading goes on for a while."""
        if self._write_failure is None:
            self._write_failure = error
            self._write_failed_at = self._now()
            self._unsent = memoryview(b"")
            self._wake_all()

    # --- the requests' own ---------------------------------------------------------------------------------

    def enter(self, stream: HTTP2Stream, exchange: HTTP2Exchange) -> None:
        """A request has got a stream. In a step."""
        self._exchanges[stream] = exchange

    def leave(self, exchange: HTTP2Exchange, stream: HTTP2Stream | None) -> None:
        """A request is done with its stream; what the peer still sends on it is dropped. In a step."""
        if stream is not None and self._exchanges.pop(stream, None) is not None:
            if stream.is_open and not stream.has_ended:
                self._doubt(exchange)
            self.session.reset(stream)
        if self._reader is exchange or self._writer is exchange or exchange in self._asleep:
            self._leave_role(exchange)  # an interrupt has kept it from doing so

    def _doubt(self, exchange: HTTP2Exchange) -> None:
        """A request is given up. If the server was silent all the while, it is asked for a sign of life."""
        now = self._now()
        if self.session.last_received <= exchange.waits_since <= now - DOUBT_SECONDS:
            self._doubted_at = now
            self.session.ping(now)

    def wake(self, exchange: HTTP2Exchange) -> None:
        """In a step."""
        event = self._asleep.get(exchange)
        if event is not None:
            event.set()

    def nudge(self, exchange: HTTP2Exchange) -> None:
        """Make an exchange look up, be it asleep or reading. In a step."""
        if self._reader is exchange and self.failure is None:
            self.session.ping(self._now())  # whose answer ends the read
        self.wake(exchange)

    def _wake_all(self) -> None:
        for event in self._asleep.values():
            event.set()

    def flush_later(self) -> None:
        """Have the session's bytes sent though nobody waits for it, by a stream that cannot do it at once."""
        if not self._is_prompt and self.failure is None and self.session.has_output:
            if self.runtime.is_here():
                self.runtime.spawn(self.flush_quietly)
            else:
                self.runtime.run_soon(partial(self.runtime.spawn, self.flush_quietly))

    def explain_refusal(self) -> LaminaError:
        """Why it takes no request now."""
        failure = self.failure or self._write_failure
        if failure is not None:
            return self.copy_of(failure)
        return ConnectionNotAvailable("the server takes no more requests on this connection at present")

    def __repr__(self) -> str:
        state = "failed" if self.failure else "retired" if self.is_retired else "open"
        return f"<HTTP2Connection [{state}, {self.session.open_streams} of {self.capacity} streams]>"


def _sooner(seconds: float | None, other: float | None) -> float | None:
    if seconds is None or other is None:
        return other if seconds is None else seconds
    return min(seconds, other)


def _is_cancellation(error: BaseException) -> bool:
    """Whether a task is being cancelled, after which a stream has lost nothing."""
    return not isinstance(error, (Exception, KeyboardInterrupt, SystemExit, GeneratorExit))


locked_code.add(HTTP2Connection.step.__code__)
