"""Timers for trio, which has none: functions that are called at their time, by one task of the run.

A cancel scope for each read that has a time-out would cost more than all the rest of the read. So the limits of a
connection's reads are kept by one `Alarm`, and the alarms of all connections by one system task, which sleeps until the
first of them and ends once there is none. It is not there before a read with a time-out has had to wait.
"""

from __future__ import annotations

import contextvars
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_CANCELLED = 64
"""Cancelled timers that may be kept besides as many as are pending: their times may be hours away."""

_NEVER = float("inf")


class _Timer:
    """A function and its time; `None` once it has been called, or is not to be."""

    __slots__ = ("_alarms", "at", "function")

    def __init__(self, at: float, function: Callable[[], None], alarms: _Alarms) -> None:
        self.at = at
        self.function: Callable[[], None] | None = function
        self._alarms = alarms

    def __lt__(self, other: _Timer) -> bool:
        return self.at < other.at

    def cancel(self) -> None:
        """See `TimerHandle.cancel`."""
        if self.function is not None:
            self.function = None
            self._alarms.forget()


class _Alarms:
    """Those of one run."""

    def __init__(self) -> None:
        self._timers: list[_Timer] = []
        self._pending = 0  # those that have not been cancelled
        self._sleep: trio.CancelScope | None = None  # the task's, while there is one
        self._is_over = False

    def call_at(self, at: float, function: Callable[[], None]) -> _Timer | None:
        if self._sleep is None and not self._start():
            return None
        assert self._sleep is not None
        if len(self._timers) > 2 * self._pending + MAX_CANCELLED:
            # Not where they are cancelled, which a finaliser may do in the midst of a step of the heap.
            self._timers = [timer for timer in self._timers if timer.function is not None]
            heapify(self._timers)
        timer = _Timer(at, function, self)
        heappush(self._timers, timer)
        self._pending += 1
        self._sleep.deadline = min(self._sleep.deadline, at)
        return timer

    def forget(self) -> None:
        self._pending -= 1
        if not self._pending and self._sleep is not None:
            self._sleep.deadline = trio.current_time()

    def _start(self) -> bool:
        if not self._is_over:
            try:
                trio.lowlevel.spawn_system_task(self._run, context=contextvars.Context())
            except RuntimeError:
                self._is_over = True  # the run is about to end
            else:
                self._sleep = trio.CancelScope()
        return not self._is_over

    async def _run(self) -> None:
        try:
            while self._pending:
                assert self._sleep is not None
                with self._sleep:
                    await trio.sleep_forever()
                self._call_those_until(trio.current_time())
                # Without any, an interrupt has spoilt the count: that must not make it go round and round.
                deadline = self._timers[0].at if self._timers else _NEVER
                self._sleep = trio.CancelScope(deadline=deadline)
        except trio.Cancelled:
            self._is_over = True  # the run is about to end; those who still wait find another way
            raise
        finally:
            self._sleep = None
            self._call_those_until(_NEVER)

    def _call_those_until(self, now: float) -> None:
        while self._timers and self._timers[0].at <= now:
            timer = heappop(self._timers)
            function, timer.function = timer.function, None
            if function is not None:
                self._pending -= 1
                function()


_of_the_run: trio.lowlevel.RunVar[_Alarms] = trio.lowlevel.RunVar("lamina_alarms")


@trio.lowlevel.enable_ki_protection
def call_at(at: float, function: Callable[[], None]) -> _Timer | None:
    """Call a function at a time of the run's clock.

    Returns:
        For cancelling it; `None` if the run is about to end, and it will not be called.
    """
    try:
        alarms = _of_the_run.get()
    except LookupError:
        alarms = _Alarms()
        _of_the_run.set(alarms)
    return alarms.call_at(at, function)
