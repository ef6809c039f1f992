"""asyncio's primitives. Imported when a loop runs.

A task is cancelled by one `CancelledError`, whoever asked for it; how many did is counted (`Task.cancelling`). So a
scope takes back what it asked for, and calls a cancellation its own only if nobody else has asked besides.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import time
from typing import TYPE_CHECKING, Any

from ._deadlines import NEVER

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from ._deadlines import Deadline
    from ._runtimes import RuntimeName

LONGEST_WAIT = 24 * 60 * 60.0
"""Seconds that one timer runs at most; some loops take no more than some weeks, and none infinity."""


# The loop itself keeps its tasks by weak references only.
_spawned: set[asyncio.Task[None]] = set()


class AsyncioEvent:
    """An `Event` for one task."""

    __slots__ = ("_future", "_is_set", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._future: asyncio.Future[None] | None = None

    def set(self) -> None:
        """Bring it about. See `Event.set`."""
        self._is_set = True
        future = self._future
        if future is None:
            return  # nobody waits yet; whoever begins to looks afterwards
        if asyncio._get_running_loop() is self._loop:
            _wake(future)
        else:
            _call_soon(self._loop, lambda: _wake(future))

    def is_set(self) -> bool:
        """Whether it has been brought about."""
        return self._is_set

    async def wait(self, timeout: float | None = None) -> bool:
        """Suspend the task until it is set, or `timeout` seconds have passed. See `Event.wait`."""
        self._future = future = self._loop.create_future()
        if self._is_set:
            return True
        timer = None
        if timeout is not None:
            timer = self._loop.call_later(min(timeout, LONGEST_WAIT), _wake, future)
        try:
            await future
        finally:
            self._future = None
            if timer is not None:
                timer.cancel()
        return self._is_set


class AsyncioScope:
    """Cancels the task that made it when a deadline passes."""

    __slots__ = ("__weakref__", "_asked", "_deadline", "_has_fired", "_loop", "_task", "_timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[object], deadline: Deadline
    ) -> None:
        self._loop = loop
        self._task = task
        self._deadline = deadline
        self._asked = task.cancelling()  # by others, so far
        self._has_fired = False
        self._timer: asyncio.Handle | None = None
        deadline.on_change = self._changed
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._deadline
        remaining = deadline.remaining()
        if remaining == NEVER or self._has_fired or deadline.ended:
            return
        if remaining == 0:
            self._timer = self._loop.call_soon(self._fire)  # timers come after what is ready
        elif deadline.clock in (self._loop.time, _clock_of(self._loop)) and remaining <= LONGEST_WAIT:
            self._timer = self._loop.call_at(deadline.expires_at, self._fire)  # equal deadlines fire together
        else:
            self._timer = self._loop.call_later(min(remaining, LONGEST_WAIT), self._fire)

    def _changed(self) -> None:
        if asyncio._get_running_loop() is self._loop:
            self._arm()
        else:
            _call_soon(self._loop, self._arm)

    def _fire(self) -> None:
        if not self._deadline.expired():
            self._arm()  # too early by the clocks' grain, or moved meanwhile by another thread
            return
        self._has_fired = True
        self._task.cancel()

    def close(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool:
        """End it. See `Scope.close`."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._has_fired:
            return False
        still_asked = self._task.uncancel()
        return (
            isinstance(exc, asyncio.CancelledError)
            and still_asked <= self._asked
            and asyncio.current_task(self._loop) is self._task  # and not one that finalises its generator
        )


class AsyncioRuntime:
    """The primitives of the running event loop."""

    __slots__ = ("_loop", "_now")

    name: RuntimeName = "asyncio"

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._now = _clock_of(self._loop)

    @property
    def now(self) -> Callable[[], float]:
        """`loop.time`, or what that calls."""
        return self._now

    def is_here(self) -> bool:
        """Whether this loop runs in this thread, and no trio task as its guest."""
        if asyncio._get_running_loop() is not self._loop:
            return False
        trio = getattr(sys.modules.get("trio"), "lowlevel", None)
        return trio is None or not trio.in_trio_task()

    def has_ended(self) -> bool:
        """Whether the loop is closed, or stands still."""
        return not self._loop.is_running()

    def create_event(self) -> AsyncioEvent:
        """A new event for one waiting task."""
        return AsyncioEvent(self._loop)

    def open_scope(self, deadline: Deadline, *, shield: bool = False) -> AsyncioScope | None:
        """Bound the rest of a block of the running task. See `Runtime.open_scope`."""
        task = asyncio.current_task(self._loop)
        return None if task is None else AsyncioScope(self._loop, task, deadline)

    def run_soon(self, function: Callable[[], object]) -> None:
        """Call it in the loop. See `Runtime.run_soon`."""
        _call_soon(self._loop, function)

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Run it in a task of its own. See `Runtime.spawn`."""
        # Not `create_task(…, context=…)`, which some task factories do not know.
        task = contextvars.Context().run(self._loop.create_task, function())
        _spawned.add(task)
        task.add_done_callback(_spawned.discard)
        return True

    async def sleep(self, seconds: float) -> None:
        """Suspend the task for that long."""
        while seconds > LONGEST_WAIT:
            await asyncio.sleep(LONGEST_WAIT)
            seconds -= LONGEST_WAIT
        await asyncio.sleep(seconds)

    def __repr__(self) -> str:
        return f"<AsyncioRuntime [{self._loop!r}]>"


def _clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    # A plain loop's method does nothing but call `time.monotonic`, and costs three times as much.
    is_plain = getattr(loop.time, "__func__", None) is asyncio.BaseEventLoop.time
    return time.monotonic if is_plain else loop.time


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _call_soon(loop: asyncio.AbstractEventLoop, function: Callable[[], object]) -> None:
    try:
        loop.call_soon_threadsafe(function)
    except RuntimeError:
        pass  # the loop is closed, and with it went whoever waited
