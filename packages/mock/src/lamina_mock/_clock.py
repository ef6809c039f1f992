"""Time for tests: a clock that jumps to what is waited for, and how a mock waits on a clock.

A mock that waits would make every test of a time-out as slow as the time-out. So the time of a mock is virtual: nothing
passes by itself, and a wait moves the clock to its own end. What has to be right then is *when* the clock may move. It
may jump when nothing else is left to do at the present moment, and it jumps to the soonest time that anybody waits for,
so that twenty requests of half a second that overlap take half a second and not ten.

How that moment is found differs:

- In asyncio and trio the event loop tells. Nothing is left to do when every task of the loop waits. trio says so by
  itself (`trio.testing.wait_all_tasks_blocked`). For asyncio the tasks are looked at, and a few rounds of the loop must
  have passed without any of them moving, because callbacks that belong to no task cannot be seen.
- A thread that is alone with the clock knows it: it waits, so nothing is left to do. Nobody can tell whether another
  thread is about to do something. Threads that have used the clock before, and do not wait on it, are therefore given
  `GRACE_SECONDS` of real time before each jump.

What is waited for outside of the clock (a real socket, a worker thread, `asyncio.sleep`) does not hold the clock back.

A wait for something that nobody has announced (no time-out, no bytes to come) could last for ever. A thread that is
alone raises at once. Elsewhere another task or thread may still bring it about, so `patience` seconds of real time
pass first.

Two clocks may meet in one wait: the mock's, and that of an ambient deadline that was opened on another one. The end of
the deadline then passes in real time, as everywhere else, and the mock's own time jumps if the mock's wait is the
shorter of the two.
"""

from __future__ import annotations

import math
import threading
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from lamina_interfaces import (
    GLANCE_SECONDS,
    NEVER,
    ArgumentTypeError,
    ArgumentValueError,
    Deadline,
    LaminaError,
    chain_clock,
    check_seconds,
    close_deadline,
    current_deadline,
    current_runtime,
    enter_deadline,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from lamina_interfaces import Event, Limit, Runtime

GRACE_SECONDS = 0.1
"""Real seconds that a jump leaves to threads which may still be doing something at the present virtual time."""

LOOK_SECONDS = 0.005
"""Real seconds between two looks whether those threads wait too by now, or have ended: nobody tells."""

QUIET_ROUNDS = 3
"""Rounds of an asyncio loop in which no task may have moved before the loop counts as idle: a callback that wakes a
task takes one, a future that wakes a callback another."""


class ClockError(LaminaError, RuntimeError):
    """A `VirtualClock` was to be the clock of a block that has another one already."""

    default_message = "another clock is in use here"


class DeadlockError(LaminaError, AssertionError):
    """A mock was waited for that will never say anything, and no time limit ends the wait."""

    default_message = "nothing can end this wait"


class MockClock(Protocol):
    """What a mock's streams wait on: `VirtualClock` or `RuntimeClock`."""

    def now_in(self, runtime: Runtime) -> Callable[[], float]:
        """What tells the time to a stream that is used in `runtime`."""
        ...

    async def wait(
        self, event: Event, until: float, limit: Limit, runtime: Runtime, what: Callable[[], str]
    ) -> None:
        """Wait until `event` is set, the time is `until`, or `limit` is over; or wake earlier, for no reason.

        Args:
            event: of `runtime`, and nobody else's.
            until: on this clock; `inf` where only the event or the limit ends the wait.
            limit: of the operation, perhaps on another clock.
            runtime: that the caller runs in.
            what: says what is waited for, for an error.
        """
        ...


class RuntimeClock:
    """The time of the runtime that a mock is used in: its waits take as long as they say.

    It is `time.monotonic` in threads, `loop.time` under asyncio, and trio's clock, so that under
    `trio.testing.MockClock`, or in a loop whose own time jumps, nothing is slow either. Streams in use by several
    threads at once are simplest to reason about on this one.
    """

    def now_in(self, runtime: Runtime) -> Callable[[], float]:
        """The runtime's own time."""
        return runtime.now

    async def wait(
        self, event: Event, until: float, limit: Limit, runtime: Runtime, what: Callable[[], str]
    ) -> None:
        """Wait. See the protocol."""
        left = limit.remaining()
        seconds = min(until - runtime.now(), NEVER if left is None else left)
        if limit.is_ambient and runtime.name == "threads":
            seconds = min(seconds, GLANCE_SECONDS)
        await event.wait(None if seconds == NEVER else max(0.0, seconds))

    def __repr__(self) -> str:
        return "<RuntimeClock>"


class Timer:
    """A function that a clock calls once, when its time has come; `cancel` it if it is not wanted any more."""

    __slots__ = ("at", "function")

    def __init__(self, at: float, function: Callable[[], object]) -> None:
        self.at: float = at
        self.function: Callable[[], object] | None = function

    def cancel(self) -> None:
        """Never call it. May be repeated, and come too late."""
        self.function = None


class VirtualClock:
    """A clock on which nothing takes real time: whoever waits on it moves it.

    .. code-block:: python

        from lamina_mock import VirtualClock
        from lamina_timeouts import timeout

        with VirtualClock() as clock:
            with timeout(60.0) as deadline:
                clock.advance(59.0)
                assert deadline.remaining == 1.0

    As a context manager (`with`, in coroutines too) it is the clock of every deadline and time-out that is opened
    inside the block, and of every mock that connects there. So a `timeout(60.0)` around a mock that is silent for an
    hour ends at 60.0 exactly, and at once. Deadlines that were open before keep their own clock, and the block must not
    be inside of one.

    A mock that is used outside of such a block has a `VirtualClock` of its own. Its own time limits (`timeout=` of an
    operation) are exact then as well; those of a `lamina_timeouts.timeout` block count real time.

    In a single thread the clock jumps as soon as anything waits on it. Under asyncio and trio it jumps when all tasks
    of the loop wait, to the soonest time that one of them waits for. Waits for anything else, a timer of the loop or a
    worker thread, do not hold it back, nor does a deadline on it end them.

    Where several threads use it, each jump leaves `grace` seconds of real time to those that do not wait on it;
    whatever takes them longer happens later, in virtual time, than it should. Only those count that have connected or
    waited before: let all of them do so before the first one waits.

    May be called, advanced and waited on from any thread.

    Args:
        start: what it shows at first, in seconds.
        patience: real seconds that a wait without end is allowed while another task or thread may still end it.
        grace: real seconds that each jump leaves to other threads that have something to do.

    Raises:
        ArgumentValueError, ArgumentTypeError: one of them is no number of seconds.
    """

    def __init__(self, start: float = 0.0, *, patience: float = 5.0, grace: float = GRACE_SECONDS) -> None:
        if isinstance(start, bool) or not isinstance(start, (int, float)):
            raise ArgumentTypeError(f"start must be a number of seconds, not {type(start).__name__}")
        if not math.isfinite(start):
            raise ArgumentValueError(f"start must be finite, got {start!r}")
        self._now = float(start)
        self.patience: float = check_seconds(patience, "patience")
        self.grace: float = check_seconds(grace, "grace")
        self._lock = threading.Lock()
        self._numbers = count()
        self._timers: list[tuple[float, int, Timer]] = []
        # By thread: what it is blocked on, `None` while it does something else.
        self._threads: dict[threading.Thread, Event | None] = {}
        self._watched: set[object] = set()  # the loops that tell when they are idle
        self._blocks: list[Deadline] = []  # that are open, in whatever thread or task

    def __call__(self) -> float:
        return self._now

    def now_in(self, runtime: Runtime) -> Callable[[], float]:
        """The clock itself, wherever it is."""
        return self

    def advance(self, seconds: float) -> None:
        """Move the clock on; what is waited for meanwhile ends at its own time.

        Raises:
            ArgumentValueError, ArgumentTypeError: `seconds` is negative, infinite or no number.
        """
        target = self._now + check_seconds(seconds, "seconds")
        if target == NEVER:
            raise ArgumentValueError(f"seconds must be finite, got {seconds!r}")
        while self._jump(target):
            pass
        with self._lock:
            self._now = max(self._now, target)

    def call_at(self, at: float, function: Callable[[], object]) -> Timer:
        """Have a function called when the clock shows `at`, by whoever moves it there.

        In an event loop the loop moves it when it is idle; elsewhere only what else waits on the clock does.

        Args:
            at: in seconds of this clock.
            function: must neither raise nor wait.
        """
        timer = self._set_timer(at, function)
        runtime = current_runtime()
        if at != NEVER and runtime.name != "threads":
            self._watch(runtime)
        return timer

    # --- the clock of a block ------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if chain_clock(self) is not self:
            raise ClockError("a deadline on another clock is open here; enter the VirtualClock outside of it")
        block = Deadline(None, self)
        enter_deadline(block)
        self._blocks.append(block)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block = current_deadline()
        while block is not None and block not in self._blocks:
            block = block.outer
        if block is not None:
            self._blocks.remove(block)
            close_deadline(block)

    # --- moving --------------------------------------------------------------------------------------------

    def _set_timer(self, at: float, function: Callable[[], object]) -> Timer:
        timer = Timer(at, function)
        if at != NEVER:
            with self._lock:
                heappush(self._timers, (at, next(self._numbers), timer))
        return timer

    def _has_timers(self) -> bool:
        with self._lock:
            return self._next() != NEVER

    def _next(self) -> float:
        """When the soonest timer is due; under the lock."""
        while self._timers and self._timers[0][2].function is None:
            heappop(self._timers)
        return self._timers[0][0] if self._timers else NEVER

    def _jump(self, furthest: float = NEVER) -> bool:
        """Move to the soonest timer, unless that is beyond `furthest`, and call what is due. Whether there was one."""
        with self._lock:
            at = self._next()
            if at == NEVER or at > furthest:
                return False
            self._now = max(self._now, at)
            due = []
            while self._next() <= self._now:
                due.append(heappop(self._timers)[2])
        for timer in due:
            function, timer.function = timer.function, None
            if function is not None:
                function()
        return True

    # --- waiting -------------------------------------------------------------------------------------------

    def use(self) -> None:
        """Take note that this thread uses the clock: others that wait on it let it go on first."""
        self._threads.setdefault(threading.current_thread(), None)

    async def wait(
        self, event: Event, until: float, limit: Limit, runtime: Runtime, what: Callable[[], str]
    ) -> None:
        """Wait. See the protocol.

        Raises:
            DeadlockError: nothing can end the wait, or nothing has for `patience` real seconds.
        """
        left = NEVER if (remaining := limit.remaining()) is None else remaining
        real = NEVER  # seconds until a limit that is on another clock
        if chain_clock(self) is self:
            until = min(until, self._now + left)
        else:
            real = left
            if until - self._now > left:
                until = NEVER
        timer = self._set_timer(until, event.set)
        try:
            if runtime.name == "threads":
                await self._block(event, limit, real, what)
            else:
                if until != NEVER:
                    self._watch(runtime)
                await self._suspend(event, real, what)
        finally:
            timer.cancel()

    async def _suspend(self, event: Event, real: float, what: Callable[[], str]) -> None:
        seconds = min(real, self.patience)
        if await event.wait(None if seconds == NEVER else seconds) or real != NEVER or self._has_timers():
            return
        raise self._deadlock(what)

    async def _block(self, event: Event, limit: Limit, real: float, what: Callable[[], str]) -> None:
        me = threading.current_thread()
        self._threads[me] = event
        try:
            grace = min(self.grace, real)
            while grace > 0 and self._others_are_busy(me):
                if await event.wait(min(grace, LOOK_SECONDS)):
                    return
                grace -= LOOK_SECONDS
            if event.is_set() or self._jump():
                return
            if real != NEVER:
                await event.wait(min(real, GLANCE_SECONDS))  # an ambient limit may change meanwhile
                return
            if threading.active_count() == 1:
                raise DeadlockError(what())
            await self._wait_for_others(event, limit, what)
        finally:
            self._threads[me] = None

    async def _wait_for_others(self, event: Event, limit: Limit, what: Callable[[], str]) -> None:
        patience = self.patience
        while patience > 0:
            if await event.wait(min(patience, GLANCE_SECONDS)) or limit.expired() or self._has_timers():
                return
            patience -= GLANCE_SECONDS
        raise self._deadlock(what)

    def _others_are_busy(self, me: threading.Thread) -> bool:
        for thread, event in list(self._threads.items()):
            if not thread.is_alive():
                self._threads.pop(thread, None)
            elif thread is not me and (event is None or event.is_set()):
                return True
        return False

    def _deadlock(self, what: Callable[[], str]) -> DeadlockError:
        return DeadlockError(f"{what()}, and nobody has ended this wait for {self.patience:g} s of real time")

    # --- event loops ---------------------------------------------------------------------------------------

    def _watch(self, runtime: Runtime) -> None:
        """Move the clock whenever the running loop is idle, for as long as there are timers."""
        loop: Any
        if runtime.name == "asyncio":
            import asyncio

            loop = asyncio.get_running_loop()
        else:
            import trio

            loop = trio.lowlevel.current_trio_token()
        with self._lock:
            if loop in self._watched:
                return
            self._watched.add(loop)
        if runtime.name == "asyncio":
            loop.call_soon(self._look, loop, 0)
        elif not runtime.spawn(lambda: self._watch_trio(loop)):
            self._watched.discard(loop)

    def _look(self, loop: asyncio.AbstractEventLoop, quiet: int) -> None:
        """One round of an asyncio loop."""
        if not self._has_timers():
            self._watched.discard(loop)
            return
        quiet = 0 if _is_busy(loop) else quiet + 1
        if quiet > QUIET_ROUNDS:
            self._jump()
            quiet = 0
        loop.call_soon(self._look, loop, quiet)

    async def _watch_trio(self, token: object) -> None:
        from trio.testing import wait_all_tasks_blocked

        try:
            while self._has_timers():
                await wait_all_tasks_blocked()
                self._jump()
        finally:
            self._watched.discard(token)

    def __repr__(self) -> str:
        return f"<VirtualClock [{self._now:g} s]>"


def _is_busy(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a task of the loop has something to do, now or in the next round."""
    import asyncio

    task: Any
    for task in asyncio.all_tasks(loop):
        # What it waits for, under a name that both of asyncio's implementations have. A loop may have tasks of its own
        # kind; of one that does not tell, nothing is expected.
        if hasattr(task, "_fut_waiter") and (task._fut_waiter is None or task._fut_waiter.done()):
            return True
    return False
