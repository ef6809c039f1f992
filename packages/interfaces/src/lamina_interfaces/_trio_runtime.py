"""trio's primitives. Imported when trio runs."""

from __future__ import annotations

import contextvars
import math
from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from ._deadlines import Deadline
    from ._runtimes import RuntimeName


class TrioEvent:
    """An `Event` for one task."""

    __slots__ = ("_is_set", "_task", "_token")

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._is_set = False
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        """Bring it about. See `Event.set`."""
        self._is_set = True
        if self._task is None:
            return  # nobody waits yet; whoever begins to looks afterwards
        if _is_here(self._token):
            self._wake()
        else:
            _run_soon(self._token, self._wake)

    def _wake(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def is_set(self) -> bool:
        """Whether it has been brought about."""
        return self._is_set

    async def wait(self, timeout: float | None = None) -> bool:
        """Suspend the task until it is set, or `timeout` seconds have passed. See `Event.wait`."""
        if timeout is None:
            await self._park()
        else:
            with trio.CancelScope(deadline=trio.current_time() + timeout):
                await self._park()
        return self._is_set

    async def _park(self) -> None:
        self._task = trio.lowlevel.current_task()
        if self._is_set:
            self._task = None
            return

        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


class TrioScope:
    """A cancel scope of trio's, which follows a deadline."""

    __slots__ = ("__weakref__", "_deadline", "_scope", "_token")

    def __init__(self, token: trio.lowlevel.TrioToken, deadline: Deadline, *, shield: bool) -> None:
        self._token = token
        self._deadline = deadline
        self._scope = trio.CancelScope(shield=shield)
        deadline.on_change = self._changed
        self._scope.__enter__()
        self._follow()  # not before: a scope that is entered late is cancelled there and then, for good

    def _changed(self) -> None:
        if _is_here(self._token):
            self._follow()
        else:
            _run_soon(self._token, self._follow)

    def _follow(self) -> None:
        self._scope.deadline = _on_trios_clock(self._deadline)

    def close(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool:
        """End it. See `Scope.close`.

        Raises:
            BaseExceptionGroup: other exceptions had come together with the scope's own cancellation; the rest of them.
        """
        return bool(self._scope.__exit__(exc_type, exc, traceback)) and self._scope.cancelled_caught


class TrioRuntime:
    """The primitives of the running trio."""

    __slots__ = ("_now", "_token")

    name: RuntimeName = "trio"

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        # Not `trio.current_time`, which only its own thread may ask.
        self._now = trio.lowlevel.current_clock().current_time

    @property
    def now(self) -> Callable[[], float]:
        """The run's clock."""
        return self._now

    def is_here(self) -> bool:
        """Whether the caller is a task of this run."""
        return _is_here(self._token)

    def has_ended(self) -> bool:
        """Whether the run is over."""
        try:
            self._token.run_sync_soon(_nothing, idempotent=True)
        except trio.RunFinishedError:
            return True
        return False

    def create_event(self) -> TrioEvent:
        """A new event for one waiting task."""
        return TrioEvent(self._token)

    def open_scope(self, deadline: Deadline, *, shield: bool = False) -> TrioScope:
        """Bound the rest of a block of the running task. See `Runtime.open_scope`."""
        return TrioScope(self._token, deadline, shield=shield)

    def run_soon(self, function: Callable[[], object]) -> None:
        """Call it in the run. See `Runtime.run_soon`."""
        _run_soon(self._token, function)

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Run it in a task of its own. See `Runtime.spawn`."""
        try:
            trio.lowlevel.spawn_system_task(function, context=contextvars.Context())
        except RuntimeError:
            return False  # the run finalises its last generators; its nursery is closed already
        return True

    async def sleep(self, seconds: float) -> None:
        """Suspend the task for that long."""
        await trio.sleep(seconds)

    def __repr__(self) -> str:
        return "<TrioRuntime>"


def _is_here(token: trio.lowlevel.TrioToken) -> bool:
    return trio.lowlevel.in_trio_task() and trio.lowlevel.current_trio_token() is token


def _run_soon(token: trio.lowlevel.TrioToken, function: Callable[[], object]) -> None:
    try:
        token.run_sync_soon(function)
    except trio.RunFinishedError:
        pass  # and with it went whoever waited


def _on_trios_clock(deadline: Deadline) -> float:
    if deadline.clock == trio.lowlevel.current_clock().current_time:
        return deadline.expires_at
    remaining = deadline.remaining()
    return math.inf if remaining == math.inf else trio.current_time() + remaining


def _nothing() -> None: ...
