"""Telling a pool's listener what happens, at moments at which its code can do no harm.

The listener is the caller's own code: it may be slow, raise, wait for a lock, use the pool. So:

- What happens in a step of the pool is only noted there, under the lock, in the order in which it happens. It is told
  afterwards, when no lock is held (`_pool.py` says where), by the thread or task whose request it is. So the events of
  one request come in their order, and a slow listener slows down whoever gives it work, and nobody else.
- A finaliser or a signal handler can close a response in the midst of a step, of this pool or another one, or while the
  listener is called; it may hold a lock of its own then. What there would be to tell is left to whoever tells something
  next, which is the interrupted code itself, as a rule.
- So is what comes of requests that the listener itself sends: all of it together, once such a request is over, or two
  threads might tell one request's events at the same time. Others who use its connection meanwhile may be told first.
- What the listener raises goes to `sys.unraisablehook`, and the request goes on. What an exception such as
  KeyboardInterrupt keeps from being told is left to others, too, but for the one event that it hits.

A pool without a listener has no `Observer`, and its requests no `RequestRecord`: no event is made and no clock is read.
"""

from __future__ import annotations

import os
import weakref
from _thread import get_ident
from collections import deque
from itertools import count
from typing import TYPE_CHECKING, Any

from lamina_interfaces import ArgumentTypeError, PoolClosed

# By way of the package, which makes the classes known as its own.
from . import (
    BodyReceived,
    ConnectFailed,
    ConnectionAcquired,
    ConnectionClosed,
    ConnectionOpened,
    ConnectionReleased,
    NameResolved,
    ProxyConnected,
    RequestEnded,
    RequestQueued,
    RequestSent,
    RequestStarted,
    ResponseStarted,
    TCPConnected,
    TLSEstablished,
)
from ._info import ConnectionInfo
from ._io import CallerError
from ._releasing import ReleaseReason, is_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lamina_interfaces import TimingSpan

    from ._events import ConnectStep, PoolEvent
    from ._info import ConnectionFacts
    from ._io import Connection
    from ._scheduler import CloseReason
    from ._urls import Origin

STEPS: dict[str, type[ConnectStep]] = {
    "dns": NameResolved,
    "tcp": TCPConnected,
    "unix": TCPConnected,
    "proxy": ProxyConnected,
    "tls": TLSEstablished,
}
"""What the spans of `get_extra_info("timings")` are told as."""

_CO_COROUTINE = 0x80  # `inspect.CO_COROUTINE`, without importing inspect

_request_ids = count(1)

# Threads that are calling a listener at this moment, or were interrupted in it.
_telling: set[int] = set()

# What was to be told at a bad moment.
_left: deque[tuple[Observer, deque[PoolEvent]]] = deque()


class Observer:
    """Calls the listener of one pool. Its methods may be called by any thread.

    Args:
        listener: what the pool was given as `on_event`.

    Raises:
        ArgumentTypeError: it cannot be called, or is a coroutine function.
    """

    def __init__(self, listener: Callable[[PoolEvent], object]) -> None:
        if not callable(listener):
            raise ArgumentTypeError(f"on_event must be callable, not {type(listener).__name__}")
        code = getattr(listener, "__code__", None) or getattr(type(listener).__call__, "__code__", None)
        if code is not None and code.co_flags & _CO_COROUTINE:
            raise ArgumentTypeError("on_event must be a plain function, not async: it is not awaited")
        self._listener = listener
        # Each is closed once, by whoever takes it out.
        self._open: dict[int, ConnectionFacts] = {}
        # What belongs to no request.
        self._line: deque[PoolEvent] = deque()

    def start(self, method: bytes, origin: Origin, now: float) -> RequestRecord:
        """A request begins."""
        record = RequestRecord(self, next(_request_ids), origin, now)
        record.note_start(method)
        return record

    # --- connections ---------------------------------------------------------------------------------------

    def note_open(self, facts: ConnectionFacts) -> None:
        self._open[facts.id] = facts

    def is_open(self, facts: ConnectionFacts) -> bool:
        return facts.id in self._open

    def note_closed(self, connection: Connection, reason: CloseReason, now: float) -> None:
        """A connection is closed; the second time nothing is noted. May be called in a step."""
        facts = connection.facts
        if facts is None:
            return
        event = ConnectionClosed(
            at=now,
            origin=facts.origin,
            connection_id=facts.id,
            reason=reason,
            duration=now - facts.opened_at,
            request_count=connection.exchanges,
        )
        if self._open.pop(facts.id, None) is not None:
            self._line.append(event)

    # --- telling -------------------------------------------------------------------------------------------

    def tell(self, record: RequestRecord | None) -> None:
        """Call the listener with what was noted, and with what others have left.

        Args:
            record: of the caller's own request.
        """
        if _is_telling():
            self.leave(record)
            return
        try:
            while _left:  # first, since it is older
                try:
                    observer, line = _left.popleft()
                except IndexError:
                    break  # another thread was faster
                observer._call_with_left(line)
            if record is not None:
                self._call_with(record.line)
            self._call_with(self._line)
        finally:
            self.leave(record)  # what an exception has kept from being told

    def leave(self, record: RequestRecord | None = None) -> None:
        """Leave it to whoever tells something next; of a request that is not over nothing, its own thread will."""
        if record is not None and record.has_ended:
            self.leave_line(record.line)
        self.leave_line(self._line)

    def leave_line(self, line: deque[PoolEvent]) -> None:
        """Leave these."""
        if line:
            _left.append((self, line))

    def _call_with_left(self, line: deque[PoolEvent]) -> None:
        try:
            self._call_with(line)
        finally:
            self.leave_line(line)

    def _call_with(self, line: deque[PoolEvent]) -> None:
        if not line:
            return
        me = get_ident()
        try:
            _telling.add(me)
            while line:
                try:
                    event = line.popleft()
                except IndexError:
                    return  # as above
                try:
                    self._listener(event)
                except Exception as error:  # noqa: BLE001 - the caller's own code; the request goes on
                    _report(self._listener, error)
        finally:
            _telling.discard(me)

    def forget(self) -> None:
        """In a forked child: what the parent has yet to tell, it will tell."""
        self._line.clear()


class RequestRecord:
    """What is to be told of one request, and the numbers for it. For one thread or task at a time.

    Attributes:
        line: what was noted, and not yet told.
        has_ended: whether nothing more will be.
        reason: why it lets go of its connection, as soon as that is known.
        size: bytes of the body that have come.
    """

    __slots__ = (
        "_acquired_at",
        "_asked_at",
        "_connection_id",
        "_dials_since",
        "_error",
        "_facts",
        "_head_at",
        "_is_lone",
        "_observer",
        "_origin",
        "_queued",
        "_queued_at",
        "_request_id",
        "_sent_at",
        "_started_at",
        "_tries_since",
        "has_ended",
        "line",
        "reason",
        "size",
    )

    def __init__(
        self, observer: Observer, request_id: int, origin: Origin, now: float, *, is_lone: bool = False
    ) -> None:
        self._observer = observer
        self._request_id = request_id
        self._origin = origin
        self._is_lone = is_lone
        self._started_at = self._asked_at = now
        self._queued = 0.0
        self._queued_at: float | None = None
        self._connection_id = 0
        self._dials_since = self._tries_since = 0.0
        self._facts: ConnectionFacts | None = None
        self._acquired_at = self._head_at = 0.0
        self._sent_at: float | None = None
        self._error: str | None = None
        self.has_ended = False
        self.line: deque[PoolEvent] = deque()
        self.reason: ReleaseReason | None = None
        self.size = 0

    def for_lone_dial(self, now: float) -> RequestRecord:
        """One for the task that opens this request's connection, which may outlive it."""
        return RequestRecord(self._observer, self._request_id, self._origin, now, is_lone=True)

    def note_start(self, method: bytes) -> None:
        self.line.append(
            RequestStarted(
                at=self._started_at,
                origin=self._origin,
                request_id=self._request_id,
                method=method.decode("latin-1"),
            )
        )

    def note_queued(self, now: float) -> None:
        """It waits; the second time nothing is noted."""
        if self._queued_at is None:
            self._queued_at = now
            self.line.append(RequestQueued(at=now, origin=self._origin, request_id=self._request_id))

    def note_served(self, now: float) -> None:
        """It waits no longer, for whatever reason."""
        if self._queued_at is not None:
            self._queued += now - self._queued_at
            self._queued_at = None

    # --- opening a connection ------------------------------------------------------------------------------

    def note_dial(self, connection_id: int, now: float) -> None:
        self._connection_id = connection_id
        self._dials_since = self._tries_since = now

    def note_attempt(self, now: float) -> None:
        self._tries_since = now

    def note_failure(
        self,
        error: BaseException,
        phase: Any,
        origin: Origin,
        timings: Iterable[TimingSpan],
        now: float,
        *,
        will_retry: bool,
    ) -> None:
        """An attempt to connect has failed."""
        self._note_steps(timings, origin)
        self.line.append(
            ConnectFailed(
                at=now,
                origin=origin,
                request_id=self._request_id,
                connection_id=self._connection_id,
                phase=getattr(error, "phase", None) or phase,
                duration=now - self._tries_since,
                error=type(error).__name__,
                will_retry=will_retry,
            )
        )

    def note_opened(self, facts: ConnectionFacts) -> None:
        self._note_steps(facts.timings, facts.origin)
        event = ConnectionOpened(
            at=facts.opened_at,
            origin=facts.origin,
            request_id=self._request_id,
            connection_id=facts.id,
            duration=facts.opened_at - self._dials_since,
            connection=ConnectionInfo(facts, 0, 0.0),
        )
        self._observer.note_open(facts)
        self.line.append(event)

    def _note_steps(self, timings: Iterable[TimingSpan], origin: Origin) -> None:
        for span in timings:
            kind = STEPS.get(span.name)
            if kind is not None:
                self.line.append(
                    kind(
                        at=span.end,
                        origin=origin,
                        request_id=self._request_id,
                        connection_id=self._connection_id,
                        duration=span.end - span.start,
                    )
                )

    # --- the connection that it has ------------------------------------------------------------------------

    def note_acquired(self, facts: ConnectionFacts, turn: int, now: float) -> None:
        """In a step, so that it is not closed meanwhile. One that is closed already was never acquired."""
        if not self._observer.is_open(facts):
            return
        event = ConnectionAcquired(
            at=now,
            origin=facts.origin,
            request_id=self._request_id,
            connection_id=facts.id,
            wait=now - self._asked_at,
            queued=self._queued,
            reused=turn > 1,
        )
        self._acquired_at = now
        self._sent_at = None
        self._facts = facts
        self.line.append(event)

    def note_sent(self, now: float) -> None:
        if self._facts is not None:
            self._sent_at = now
            self.line.append(
                RequestSent(
                    at=now,
                    origin=self._origin,
                    request_id=self._request_id,
                    connection_id=self._facts.id,
                    duration=now - self._acquired_at,
                )
            )

    def note_head(self, status: int, now: float) -> None:
        if self._facts is not None:
            self._head_at = now
            since = self._acquired_at if self._sent_at is None else self._sent_at
            self.line.append(
                ResponseStarted(
                    at=now,
                    origin=self._origin,
                    request_id=self._request_id,
                    connection_id=self._facts.id,
                    status=status,
                    duration=now - since,
                )
            )

    def note_end_of_body(self, now: float) -> None:
        if self.reason is None:
            self.reason = ReleaseReason.COMPLETE
        if self._facts is not None:
            self.line.append(
                BodyReceived(
                    at=now,
                    origin=self._origin,
                    request_id=self._request_id,
                    connection_id=self._facts.id,
                    duration=now - self._head_at,
                    size=self.size,
                )
            )

    # --- the end -------------------------------------------------------------------------------------------

    def note_error(self, error: BaseException) -> None:
        """What the caller is told, or what passes by. The first one counts."""
        if isinstance(error, CallerError):
            error = error.original
        if self._error is None:
            self._error = type(error).__name__
        if self.reason is None:
            if isinstance(error, PoolClosed):
                self.reason = ReleaseReason.POOL_CLOSED
            elif isinstance(error, Exception):
                self.reason = ReleaseReason.FAILED
            else:
                self.reason = ReleaseReason.CANCELLED

    def note_reason(self, reason: ReleaseReason) -> None:
        """The first one counts."""
        if self.reason is None:
            self.reason = reason

    def note_released(self, reason: ReleaseReason, now: float) -> None:
        """It lets go of its connection, if it has one. In the step in which somebody else may get it."""
        if self._facts is not None:
            event = ConnectionReleased(
                at=now,
                origin=self._facts.origin,
                request_id=self._request_id,
                connection_id=self._facts.id,
                reason=reason,
                duration=now - self._acquired_at,
            )
            self._facts = None
            self.line.append(event)
        self._asked_at, self._queued = now, 0.0

    def note_end(self, now: float) -> None:
        """The request is over; the second time nothing is noted."""
        if self.has_ended:
            return
        event = RequestEnded(
            at=now,
            origin=self._origin,
            request_id=self._request_id,
            duration=now - self._started_at,
            error=self._error,
        )
        self.has_ended = True
        if not self._is_lone:
            self.line.append(event)

    def __del__(self) -> None:
        # What an exception has kept from being told. One that was interrupted in its making has no line.
        line = getattr(self, "line", None)
        if line:
            self._observer.leave_line(line)


def _is_telling() -> bool:
    # The set may tell of what was interrupted at its very end, so in that case it is looked at more closely.
    return get_ident() in _telling and is_within({Observer._call_with.__code__})


class _ListenerFailure:
    """Raises what a listener has raised, where nobody but `sys.unraisablehook` hears of it."""

    def __init__(self, listener: object, error: Exception) -> None:
        self._listener = listener
        self._error = error

    def __call__(self, _: object) -> None:
        try:
            raise self._error
        finally:
            del self._error  # whose traceback leads back here

    def __repr__(self) -> str:
        return f"<listener of a pool's events: {self._listener!r}>"


class _Anchor:
    """Something that can be let go of."""


def _report(listener: object, error: Exception) -> None:
    # The hook's argument cannot be made in Python. What the callback of a weak reference raises is brought to it.
    anchor = _Anchor()
    reference = weakref.ref(anchor, _ListenerFailure(listener, error))
    del anchor
    del reference


def _forget_inherited() -> None:
    _telling.clear()
    _left.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
