"""Deadlines: arithmetic over a clock that the caller gives.

Two kinds of limit meet in every wait. A *time-out* is an argument, in seconds from the start of one
operation. A *deadline* is ambient: it bounds a whole block of code, is opened by `lamina_timeouts.timeout`
(or whoever else calls `open_deadline`), and is found through a context variable, so that no layer has to hand
it on. Blocks nest; the soonest deadline counts, and each keeps its own identity so that the block which
opened it can tell its own expiry from its neighbours'.

`Limit` joins the two for one operation: it is what a backend or a pool asks "how long may I still wait?".

Everything here is plain arithmetic over a clock that is passed in; nothing sleeps or interrupts. A chain of nested
deadlines has one clock, the outermost one's: trio counts from another start than `time.monotonic`, and a thread
may have been given its context by a trio task.

Two things may end a wait when a deadline passes: the wait itself, which looks at its `Limit`, and in async code the
block's cancel scope, which cancels the task wherever it is. Both may come in the same moment. A wait that is
cancelled therefore leaves what it knows with the deadline (`Limit.interrupted`), and the block raises that.
"""

from __future__ import annotations

import contextvars
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
    from collections.abc import Callable, Mapping

    from ._errors import Phase
    from ._runtimes import Event, Runtime

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
    if type(seconds) is float and seconds >= 0:
        return seconds  # as nearly always
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

    Each thread and task sees only the deadlines that its own context opened, or was given in a copy
    (`asyncio.to_thread` hands one on, and a new task has one), for as long as their blocks last. `cancel` and
    `reschedule` may be called from any thread, and the last one counts; a wait that is under way takes notice
    within `GLANCE_SECONDS`.

    Args:
        seconds: from now; `None` or `inf` for none.
        clock: returns the present in seconds. May be called from any thread.
        outer: the deadline of the block around this one.

    Attributes:
        clock: what its times are counted on.
        opened_at: when the block was entered.
        limit: the seconds that it was given, `inf` for none.
        expires_at: when it ends, `inf` for never, and once its block has ended in time.
        ended: whether its block has ended. No operation that begins is bounded by it, whatever context it stands in.
        outer: the deadline of the block around it, or `None`.
        shields: whether those around it do not bound its block.
        interruption: what the wait that this deadline ended by a cancellation knows of it, for the block to raise.
        on_change: called after `cancel` and `reschedule`, in their thread.
    """

    __slots__ = (
        "_passed_limit",
        "clock",
        "ended",
        "expires_at",
        "interruption",
        "limit",
        "on_change",
        "opened_at",
        "outer",
        "shields",
    )

    def __init__(
        self, seconds: float | None, clock: Callable[[], float], outer: Deadline | None = None
    ) -> None:
        self.limit: float = check_seconds(seconds)
        self.clock: Callable[[], float] = clock
        self.opened_at: float = clock()
        self.expires_at: float = self.opened_at + self.limit
        self.outer: Deadline | None = outer
        self.ended: bool = False
        self.shields: bool = False
        self.interruption: DeadlineExceeded | None = None
        self.on_change: Callable[[], None] | None = None
        self._passed_limit: float | None = None

    def remaining(self) -> float:
        """Seconds until this deadline, outer ones left aside; 0.0 once it has passed, `inf` without limit."""
        if self.expires_at == NEVER:
            return NEVER
        return max(0.0, self.expires_at - self.clock())

    def expired(self) -> bool:
        """Whether this deadline, outer ones left aside, has passed."""
        return self.expires_at != NEVER and self.clock() >= self.expires_at

    def end(self) -> None:
        """Take note that the block has ended. May be repeated.

        The deadline bounds nothing any more, save what was under way elsewhere when it passed: a worker thread that
        the block's task has been cancelled from waiting for, say, which is to end nevertheless.
        """
        if not self.expired():
            self.expires_at = NEVER
        self.ended = True
        # Which refers to this deadline in turn, and the other one to the block's task.
        self.interruption = self.on_change = None

    def cancel(self) -> None:
        """Lift this deadline; the outer ones stay."""
        self._move(NEVER)

    def reschedule(self, seconds: float | None) -> None:
        """Let this deadline end `seconds` from now; `None` lifts it. After its block it changes nothing.

        Raises:
            ArgumentValueError: `seconds` is negative or NaN.
        """
        self._move(self.clock() + check_seconds(seconds))

    def _move(self, expires_at: float) -> None:
        if self.ended:
            return
        if self.expired():
            # A scope may have acted upon it, and its block raises the error later.
            self._passed_limit = self.limit
        self.limit = expires_at - self.opened_at
        self.expires_at = expires_at
        on_change = self.on_change
        if self.ended:  # perhaps meanwhile, in another thread
            self.expires_at = NEVER
        elif on_change is not None:
            on_change()

    def soonest(self) -> Deadline:
        """The deadline that ends first among this one and those around it; of equals, the outermost."""
        soonest = deadline = self
        while not (deadline.shields and not deadline.ended) and deadline.outer is not None:
            deadline = deadline.outer
            if deadline.expires_at <= soonest.expires_at:
                soonest = deadline
        return soonest

    def exceeded(self, phase: Phase | None = None, message: str = "") -> DeadlineExceeded:
        """The error that says that this deadline has passed; `message` replaces the class's own."""
        elapsed = self.clock() - self.opened_at
        # Lifted or moved after it had passed, and before its error was made.
        limit = self.limit if self._passed_limit is None or self.expired() else self._passed_limit
        error = DeadlineExceeded(message, phase=phase, elapsed=elapsed, limit=limit)
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
    while current is not None and current.ended:
        current = current.outer
    if current is not innermost:
        _current.set(current)
    return current


def chain_clock(clock: Callable[[], float]) -> Callable[[], float]:
    """The clock for a new deadline: that of the deadlines around it, or `clock` where there are none."""
    outer = current_deadline()
    return clock if outer is None else outer.clock


def open_deadline(seconds: float | None, clock: Callable[[], float]) -> Deadline:
    """Open a deadline inside the current one and make it the current one of this thread or task.

    Whoever opens it closes it with `close_deadline`, innermost first. An interrupt may come before the caller
    has the result, and nobody could close the deadline then; `enter_deadline` takes one that the caller has, and
    `DeadlineBlock` is a whole block.

    Args:
        seconds: from now; `None` or `inf` for a block without a limit of its own.
        clock: of the waits in the block. The deadlines around it go before.

    Raises:
        ArgumentValueError: `seconds` is negative or NaN.
    """
    deadline = Deadline(seconds, chain_clock(clock), current_deadline())
    _current.set(deadline)
    return deadline


def enter_deadline(deadline: Deadline) -> None:
    """Make `deadline` the current one of this thread or task, inside the one that is now.

    For whoever must be able to close it even if an interrupt comes before this returns.

    Args:
        deadline: not open yet, on the clock that `chain_clock` gives.
    """
    deadline.outer = current_deadline()
    _current.set(deadline)


def close_deadline(deadline: Deadline) -> None:
    """End `deadline`, and make the one around it the current one again.

    It bounds nothing that begins from now on, also where another thread or task has a copy of this context. One that
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


def interruptions() -> list[DeadlineExceeded]:
    """What the open deadlines of this thread or task know of a wait that they have ended by a cancellation.

    For layers that know more than the wait did: they add it while the cancellation passes by.
    """
    found = []
    deadline = current_deadline()
    while deadline is not None:
        if deadline.interruption is not None:
            found.append(deadline.interruption)
        deadline = deadline.outer
    return found


class Limit:
    """How long one operation may take: the smaller of its time-out and the ambient deadline.

    Made at the start of the operation. `remaining()` is asked before each wait, `error()` makes the exception
    when nothing remains: a `DeadlineExceeded` if the ambient deadline was what ended it, else the time-out of
    the phase (`ReadTimeout`, …). A limit that has passed before the operation begins allows no I/O: call
    `check()` first.

    Args:
        timeout: seconds from now for this operation, or `None`.
        clock: returns the present in seconds. Where there is an ambient deadline, its clock is used instead.
        phase: what the operation is; may be set anew as the operation goes on.

    Raises:
        ArgumentValueError: `timeout` is negative or NaN.
        ArgumentTypeError: `timeout` is no number.
    """

    __slots__ = ("_ambient", "_clock", "_expires_at", "_seconds", "_started_at", "phase")

    def __init__(self, timeout: float | None, clock: Callable[[], float], phase: Phase) -> None:
        # Each operation makes one, and mostly there is no deadline. What a call would find out, even of `min`, is found
        # out without it here and below: the call would cost as much as all the rest.
        self.phase: Phase = phase
        self._ambient = ambient = None if _current.get() is None else current_deadline()
        self._clock = clock if ambient is None else ambient.clock
        if timeout is None and ambient is None:
            # Nothing will ever have to read the clock.
            self._seconds = self._expires_at = NEVER
            self._started_at = 0.0
        else:
            self._seconds = seconds = check_seconds(timeout)
            self._started_at = now = self._clock()
            self._expires_at = now + seconds

    def _end_within(self, ambient: Deadline) -> float:
        # Looked up anew each time: a deadline may be cancelled or rescheduled while the operation goes on.
        end = ambient.soonest().expires_at
        if end <= self._expires_at:
            return end
        return self._expires_at

    def remaining(self) -> float | None:
        """Seconds left, never below 0.0, or `None` for no limit: the form that `select` and locks take."""
        end = self._expires_at if self._ambient is None else self._end_within(self._ambient)
        if end == NEVER:
            return None
        left = end - self._clock()
        if left > 0.0:
            return left
        return 0.0

    @property
    def is_ambient(self) -> bool:
        """Whether a deadline is part of it, which somebody else may cancel or bring forward during a wait."""
        return self._ambient is not None

    def glance(self) -> float | None:
        """Seconds that a wait may last before it looks whether anything remains; `None` for no limit."""
        if self._ambient is None and self._expires_at == NEVER:
            return None
        seconds = self.remaining()
        if self._ambient is not None and (seconds is None or seconds > GLANCE_SECONDS):
            return GLANCE_SECONDS
        return seconds

    async def wait_for(self, event: Event, runtime: Runtime) -> bool:
        """Wait for an event, not longer than `glance` says.

        A clock whose time does not pass by itself, as one for tests may be, waits in a way of its own: if the ambient
        deadline's clock has a method `wait`, that is awaited instead. Its arguments are the event, a time at which it
        may return in any case (`inf`), this limit, the runtime, and a function that says what is waited for. It may
        set the event to end the wait.

        Args:
            event: one of the runtime's.
            runtime: that the caller runs in.

        Returns:
            Whether it came about. If not, look whether the limit has `expired`, and wait again.
        """
        wait = getattr(self._clock, "wait", None)
        if wait is None:
            return await event.wait(self.glance())
        await wait(event, NEVER, self, runtime, lambda: f"nothing ends this wait, of phase {self.phase}")
        return event.is_set() and not self.expired()  # such a clock may set it at the end

    def expired(self) -> bool:
        """Whether nothing remains."""
        end = self._expires_at if self._ambient is None else self._end_within(self._ambient)
        return end != NEVER and self._clock() >= end

    def check(self) -> None:
        """Raise `error()` if nothing remains."""
        # As `expired`, whose call would cost as much again.
        end = self._expires_at if self._ambient is None else self._end_within(self._ambient)
        if end != NEVER and self._clock() >= end:
            raise self.error()

    def error(self, message: str = "") -> TimeoutException:
        """The exception for a limit that has run out; `message` replaces the class's own."""
        if self._ambient is not None:
            deadline = self._ambient.soonest()
            if deadline.expires_at <= self._expires_at:
                return deadline.exceeded(self.phase, message)
        return _TIMEOUT_OF_PHASE[self.phase](
            message, phase=self.phase, elapsed=self._clock() - self._started_at, limit=self._seconds
        )

    def interrupted(self, error: TimeoutException | None = None) -> None:
        """Take note that the wait was cancelled: perhaps by the block of a deadline that has passed.

        Whoever waits calls it when a cancellation comes by, and lets the cancellation pass.

        Args:
            error: what the wait would have raised if it had seen the deadline pass by itself; `error()` if `None`.
        """
        if self._ambient is not None:
            deadline = self._ambient.soonest()
            if deadline.expired() and deadline.interruption is None:
                found = self.error() if error is None else error
                if isinstance(found, DeadlineExceeded):
                    deadline.interruption = found


class _NoLimit(Limit):
    """The limit of every operation of a phase that nothing bounds. They share it, so nothing may change it."""

    __slots__ = ()

    def __setattr__(self, name: str, value: object) -> None:
        if hasattr(self, name):
            raise AttributeError(f"this limit is shared with other operations: its {name} cannot be set")
        super().__setattr__(name, value)


NO_LIMIT: Mapping[Phase, Limit] = {phase: _NoLimit(None, float, phase) for phase in _TIMEOUT_OF_PHASE}
"""What `start_limit` gives where nothing bounds the operation, by its phase. Their clock is never read."""


def start_limit(timeout: float | None, clock: Callable[[], float], phase: Phase) -> Limit:
    """The limit of an operation that begins now: `Limit(timeout, clock, phase)`, of which something remains.

    Where nothing bounds the operation, as mostly, it costs a third of that: such operations share `NO_LIMIT`, whose
    phase cannot be set, and which does not know the clock.

    Args:
        timeout: seconds from now for this operation, or `None`.
        clock: returns the present in seconds. Where there is an ambient deadline, its clock is used instead.
        phase: what the operation is.

    Raises:
        TimeoutException: nothing remains to begin with; the class is as for `Limit.error`.
        ArgumentValueError: `timeout` is negative or NaN.
        ArgumentTypeError: `timeout` is no number.
    """
    if timeout is None and _current.get() is None:
        return NO_LIMIT[phase]
    limit = Limit(timeout, clock, phase)
    limit.check()
    return limit
