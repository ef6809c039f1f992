"""Deadlines: arithmetic over a clock that the caller gives.

Two kinds of limit meet in every wait. A *time-out* is an argument, in seconds from the start of one
operation. A *deadline* is ambient: it bounds a whole block of code, is opened by `lamina_timeouts.timeout`
(or whoever else calls `open_deadline`), and is found through a context variable, so that no layer has to hand
it on. Blocks nest; the soonest deadline counts, and each keeps its own identity so that the block which
opened it can tell its own expiry from its neighbours'.

`Limit` joins the two for one operation: it is what a backend or a pool asks "how long may I still wait?".
Everything here is plain arithmetic. Nothing reads a clock, sleeps or interrupts: `now` is an argument, or
comes from the function that the caller passes in.
"""

from __future__ import annotations

import contextvars
import weakref
from typing import TYPE_CHECKING

from ._errors import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectTimeout,
    DeadlineExceeded,
    PoolTimeout,
    ReadTimeout,
    TimeoutException,
    WriteTimeout,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._errors import Phase

NEVER = float("inf")
"""As a number of seconds: no limit; as a time: never."""

GLANCE_SECONDS = 0.25
"""How long a blocked thread may overlook that its ambient deadline was changed by another one."""

_TIMEOUT_OF_PHASE: dict[Phase, type[TimeoutException]] = {
    "pool": PoolTimeout,
    "dns": ConnectTimeout,
    "connect": ConnectTimeout,
    "tls": ConnectTimeout,
    "proxy": ConnectTimeout,
    "write": WriteTimeout,
    "read": ReadTimeout,
    "close": WriteTimeout,
}


def check_seconds(seconds: float | None, name: str = "timeout") -> float:
    """Return `seconds` as a float, `inf` for `None`.

    Args:
        seconds: a number of seconds, not negative; `None` or `inf` stands for "no limit".
        name: what the number is called in the error.

    Raises:
        ArgumentValueError: it is negative or not a number (NaN).
        ArgumentTypeError: it is no number at all.
    """
    if seconds is None:
        return NEVER
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ArgumentTypeError(f"{name} must be a number of seconds or None, not {type(seconds).__name__}")
    if not seconds >= 0:  # also true for NaN
        raise ArgumentValueError(f"{name} must not be negative or NaN, got {seconds!r}")
    try:
        return float(seconds)
    except OverflowError:  # an int beyond every float: nobody waits that long
        return NEVER


class Deadline:
    """The time limit of one block of code, inside the limits of the blocks around it.

    Times are seconds on whatever clock the opener uses; lamina's layers use `time.monotonic`, the loop's or
    trio's clock. Each thread and task sees only the deadlines that its own context opened, or was given in a
    copy (`asyncio.to_thread` hands one on), for as long as their blocks last. `cancel` and `reschedule` may be
    called from any thread, and the last one counts; a wait that is under way takes notice within
    `GLANCE_SECONDS`.

    Attributes:
        opened_at: when the block was entered.
        limit: the seconds that it was given, `inf` for none.
        expires_at: when it ends, `inf` for never, and once its block has ended.
        ended: whether its block has ended. It bounds nothing any more, in whatever context it still stands.
        outer: the deadline of the block around it, or `None`.
    """

    __slots__ = ("_block", "ended", "expires_at", "limit", "opened_at", "outer")

    def __init__(self, seconds: float | None, now: float, outer: Deadline | None = None) -> None:
        self.opened_at: float = now
        self.limit: float = check_seconds(seconds)
        self.expires_at: float = now + self.limit
        self.outer: Deadline | None = outer
        self.ended: bool = False
        self._block: weakref.ref[object] | None = None

    def remaining(self, now: float) -> float:
        """Seconds until this deadline, outer ones left aside; 0.0 once it has passed, `inf` without limit."""
        return max(0.0, self.expires_at - now)

    def expired(self, now: float) -> bool:
        """Whether this deadline, outer ones left aside, has passed."""
        return now >= self.expires_at

    def end(self) -> None:
        """Take note that the block has ended: the deadline bounds nothing any more. May be repeated."""
        self.ended = True
        self.expires_at = NEVER

    @property
    def _is_over(self) -> bool:
        # Ended in another thread or context, or left open by an interrupt that came before the first line of the
        # block's `__exit__`: then the block has gone.
        return self.ended or (self._block is not None and self._block() is None)

    def cancel(self) -> None:
        """Lift this deadline; the outer ones stay."""
        self.limit = NEVER
        self.expires_at = NEVER

    def reschedule(self, seconds: float | None, now: float) -> None:
        """Let this deadline end `seconds` from `now`; `None` lifts it. After its block it changes nothing.

        Raises:
            ArgumentValueError: `seconds` is negative or NaN.
        """
        expires_at = now + check_seconds(seconds)
        if not self.ended:
            self.limit = expires_at - self.opened_at
            self.expires_at = expires_at

    def soonest(self) -> Deadline:
        """The deadline that ends first among this one and those around it; of equals, the outermost."""
        soonest = self
        outer = self.outer
        while outer is not None:
            if outer.expires_at <= soonest.expires_at:
                soonest = outer
            outer = outer.outer
        return soonest

    def exceeded(self, now: float, phase: Phase | None = None, message: str = "") -> DeadlineExceeded:
        """The error that says that this deadline has passed; `message` replaces the class's own."""
        error = DeadlineExceeded(message, phase=phase, elapsed=now - self.opened_at, limit=self.limit)
        error.deadline = self
        return error

    def __repr__(self) -> str:
        limit = "no limit" if self.limit == NEVER else f"{self.limit:g} s"
        return f"<Deadline [{limit}]>"


_current: contextvars.ContextVar[Deadline | None] = contextvars.ContextVar("lamina_deadline", default=None)


def current_deadline() -> Deadline | None:
    """The innermost deadline of this thread or task whose block has not ended, or `None`."""
    innermost = _current.get()
    current = innermost
    while current is not None and current._is_over:
        current = current.outer
    if current is not innermost:
        _current.set(current)
    return current


def open_deadline(seconds: float | None, now: float) -> Deadline:
    """Open a deadline inside the current one and make it the current one of this thread or task.

    Whoever opens it closes it with `close_deadline`, innermost first. An interrupt may come before the caller
    has the result, and nobody could close the deadline then; `enter_deadline` takes one that the caller has.

    Args:
        seconds: from `now`; `None` or `inf` for a block without a limit of its own.
        now: the present, on the clock that the waits in the block use.

    Raises:
        ArgumentValueError: `seconds` is negative or NaN.
    """
    deadline = Deadline(seconds, now, current_deadline())
    _current.set(deadline)
    return deadline


def enter_deadline(deadline: Deadline, block: object) -> None:
    """Make `deadline` the current one of this thread or task, inside the one that is now.

    For whoever must be able to close it even if an interrupt comes before this returns.

    Args:
        deadline: not open yet.
        block: whose deadline it is; kept by a weak reference. When it has gone, the deadline has ended.
    """
    deadline._block = weakref.ref(block)
    deadline.outer = current_deadline()
    _current.set(deadline)


def close_deadline(deadline: Deadline) -> None:
    """End `deadline`, and make the one around it the current one again.

    It bounds nothing from now on, also where another thread or task has a copy of this context. A deadline that
    is not the innermost is taken out from between its neighbours: a block inside a generator may end before
    blocks that its caller opened later. One that this thread or task does not have open (its generator was
    finalised elsewhere) drops out where it is open, when that place next asks.
    """
    deadline.end()
    inner = _current.get()
    if inner is deadline:
        _current.set(deadline.outer)
        return
    while inner is not None and inner.outer is not deadline:
        inner = inner.outer
    if inner is not None:
        inner.outer = deadline.outer


class Limit:
    """How long one operation may take: the smaller of its time-out and the ambient deadline.

    Made at the start of the operation. `remaining()` is asked before each wait, `error()` makes the exception
    when nothing remains: a `DeadlineExceeded` if the ambient deadline was what ended it, else the time-out of
    the phase (`ReadTimeout`, …). A limit that has passed before the operation begins allows no I/O: call
    `check()` first.

    Args:
        timeout: seconds from now for this operation, or `None`.
        clock: returns the present in seconds; is called only where there is a limit.
        phase: what the operation is; may be set anew as the operation goes on.

    Raises:
        ArgumentValueError: `timeout` is negative or NaN.
        ArgumentTypeError: `timeout` is no number.
    """

    __slots__ = ("_ambient", "_clock", "_expires_at", "_seconds", "_started_at", "phase")

    def __init__(self, timeout: float | None, clock: Callable[[], float], phase: Phase) -> None:
        self.phase: Phase = phase
        self._ambient = current_deadline()
        self._clock = clock
        if timeout is None and self._ambient is None:
            # The fast path: nothing will ever have to read the clock.
            self._seconds = self._expires_at = NEVER
            self._started_at = 0.0
        else:
            self._seconds = check_seconds(timeout)
            self._started_at = clock()
            self._expires_at = self._started_at + self._seconds

    @property
    def _end(self) -> float:
        # Looked up anew each time: a deadline may be cancelled or rescheduled while the operation goes on.
        if self._ambient is None:
            return self._expires_at
        return min(self._expires_at, self._ambient.soonest().expires_at)

    def remaining(self) -> float | None:
        """Seconds left, never below 0.0, or `None` for no limit: the form that `select` and locks take."""
        end = self._end
        if end == NEVER:
            return None
        return max(0.0, end - self._clock())

    @property
    def is_ambient(self) -> bool:
        """Whether a deadline is part of it, which somebody else may cancel or bring forward during a wait.

        A wait that nobody can interrupt looks at `remaining()` again at least every `GLANCE_SECONDS` then.
        """
        return self._ambient is not None

    def expired(self) -> bool:
        """Whether nothing remains."""
        end = self._end
        return end != NEVER and self._clock() >= end

    def check(self) -> None:
        """Raise `error()` if nothing remains."""
        if self.expired():
            raise self.error()

    def error(self, message: str = "") -> TimeoutException:
        """The exception for a limit that has run out; `message` replaces the class's own."""
        now = self._clock()
        if self._ambient is not None:
            deadline = self._ambient.soonest()
            if deadline.expires_at <= self._expires_at:
                return deadline.exceeded(now, self.phase, message)
        return _TIMEOUT_OF_PHASE[self.phase](
            message, phase=self.phase, elapsed=now - self._started_at, limit=self._seconds
        )
