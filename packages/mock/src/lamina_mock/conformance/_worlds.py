"""One text for a rule in every world: threads, asyncio, trio.

A rule is a coroutine. In threads it is driven as lamina's own text is: what it awaits blocks and never suspends. `Job`
is what runs beside a rule, or is the rule itself: a thread or a task, which has an outcome and may be cancelled.

Nothing here needs a library besides the one that runs.
"""

from __future__ import annotations

import contextvars
import threading
from typing import TYPE_CHECKING, Any

from lamina_interfaces import current_runtime, drive, running_runtime

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, Coroutine

    import trio

    from lamina_interfaces import RuntimeName

GLANCE = 0.001
"""Seconds between two looks at something that nobody tells of."""


class Cancelled:
    """The outcome of a job that ended by being cancelled."""


class Job:
    """A thread or a task.

    Attributes:
        is_done: whether it has ended.
        outcome: what it has returned or raised; a `Cancelled`.
    """

    def __init__(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self.is_done = False
        self.outcome: Any = None
        self._function = function
        self._event = current_runtime().create_event()

    async def wait(self, seconds: float) -> bool:
        """Wait until it has ended; tells whether it has. By one waiter at a time."""
        return self.is_done or await self._event.wait(seconds) or self.is_done

    def cancel(self) -> None:
        """Ask it to end, by the runtime's own means. A thread cannot be asked."""

    def _end(self, outcome: Any) -> None:
        self.outcome = outcome
        self.is_done = True
        self._event.set()


class _Thread(Job):
    def start(self) -> None:
        # Daemonic, so that one that hangs for good does not keep the process alive.
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run, args=(self._run,), name="lamina conformance", daemon=True
        ).start()

    def _run(self) -> None:
        try:
            outcome = drive(self._function())
        except BaseException as error:  # noqa: BLE001 - the outcome is the caller's to judge
            outcome = error
        self._end(outcome)


class _AsyncioTask(Job):
    def start(self) -> None:
        import asyncio

        self._task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._run())
        self._task.add_done_callback(self._ended)

    async def _run(self) -> None:
        import asyncio

        try:
            outcome = await self._function()
        except asyncio.CancelledError:
            outcome = Cancelled()
        except Exception as error:  # noqa: BLE001 - the outcome is the caller's to judge
            outcome = error
        self._end(outcome)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not self.is_done:  # cancelled before it had begun
            self._end(Cancelled())

    def cancel(self) -> None:
        self._task.cancel()


class _TrioTask(Job):
    def start(self) -> None:
        import trio

        self._scope: trio.CancelScope = trio.CancelScope()
        trio.lowlevel.spawn_system_task(self._run, context=contextvars.copy_context())

    async def _run(self) -> None:
        outcome: Any = None
        with self._scope:
            try:
                outcome = await self._function()
            except Exception as error:  # noqa: BLE001 - the outcome is the caller's to judge
                outcome = error
        self._end(Cancelled() if self._scope.cancelled_caught else outcome)

    def cancel(self) -> None:
        self._scope.cancel()


_JOBS: dict[RuntimeName, type[_Thread | _AsyncioTask | _TrioTask]] = {
    "threads": _Thread,
    "asyncio": _AsyncioTask,
    "trio": _TrioTask,
}


def start(function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Job:
    """Run a coroutine function beside the caller, in a copy of its context."""
    job = _JOBS[running_runtime()](lambda: function(*arguments))
    job.start()
    return job


async def pause(seconds: float = GLANCE) -> None:
    """Let others do something."""
    await current_runtime().sleep(seconds)


async def already_cancelled(function: Callable[[], Awaitable[object]]) -> None:
    """Run a function of async code in a task that has been cancelled a moment before, and swallow the cancellation."""

    async def cancel_and_run() -> None:
        await pause(0.0)  # a task may begin before its name is known here
        job.cancel()
        await function()

    job = start(cancel_and_run)
    await job.wait(LONG_ENOUGH)


LONG_ENOUGH = 60.0
"""Seconds after which a task that was cancelled counts as one that will never end."""
