"""Which runtime runs, and the few primitives that the layers need in it.

Protocol and pool logic is written once, as `async def`, against these primitives and the stream contracts.
In blocking code the same coroutines are run by `drive`, over primitives whose `async` methods block the
thread and never suspend. So the one text needs no second copy, and the blocking face pays a function call for
it.

Finding out which runtime runs imports nothing: a runtime that is not in `sys.modules` cannot be running. Those of
asyncio and trio are in modules of their own, which are imported when one of them does.
"""

from __future__ import annotations

import _thread
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from ._deadlines import Deadline

T = TypeVar("T")

RuntimeName = Literal["threads", "asyncio", "trio"]
"""What code can run in; `"threads"` stands for everything that blocks."""


def running_runtime() -> RuntimeName:
    """Tell what the caller runs in: a trio task, an asyncio task or callback, or neither (`"threads"`)."""
    # A module may be there half made, while another thread imports it; then nothing of it runs yet. The
    # question is whether this is a trio *task*: where trio is asyncio's guest, the host's callbacks are in
    # a trio run as well.
    trio = getattr(sys.modules.get("trio"), "lowlevel", None)
    if trio is not None and trio.in_trio_task():
        return "trio"
    running_loop = getattr(sys.modules.get("asyncio.events"), "_get_running_loop", None)
    if running_loop is not None and running_loop() is not None:
        return "asyncio"
    return "threads"


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over blocking primitives to its end, in this thread, and return its result.

    Args:
        coroutine: one whose every `await` ends in something that blocks instead of suspending.

    Raises:
        RuntimeError: it did suspend, which is a bug in the coroutine or in what it was given. It is closed.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return] # StopIteration carries the coroutine's T
    coroutine.close()
    raise RuntimeError(
        f"{coroutine!r} suspended in blocking code; one of its primitives belongs to an event loop"
    )


class Event(Protocol):
    """Something that one waits for and another brings about, once."""

    def set(self) -> None:
        """Bring it about. Never blocks; may be called from any thread, more than once, and by a finaliser."""
        ...

    def is_set(self) -> bool:
        """Whether it has been brought about."""
        ...

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait for it, at most `timeout` seconds.

        Returns:
            Whether it came about.
        """
        ...


class Scope(Protocol):
    """The cancel scope of a deadline's block: cancels the task that opened it when the deadline passes."""

    def close(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> bool:
        """End it. By the task that opened it, innermost first.

        Returns:
            Whether what leaves the block is nothing but this scope's own cancellation.
        """
        ...


class Runtime(Protocol):
    """The primitives of one runtime: of all blocking code, of one event loop, of one trio run."""

    @property
    def name(self) -> RuntimeName:
        """Which kind it is."""
        ...

    @property
    def now(self) -> Callable[[], float]:
        """The clock: seconds, monotonic, from an arbitrary start. May be called from any thread."""
        ...

    def is_here(self) -> bool:
        """Whether it is this one that the caller runs in."""
        ...

    def has_ended(self) -> bool:
        """Whether it runs nothing any more, or nothing at present."""
        ...

    def create_event(self) -> Event:
        """A new event for one waiter."""
        ...

    def open_scope(self, deadline: Deadline, *, shield: bool = False) -> Scope | None:
        """Bound the rest of the calling task's block by a deadline, until the scope is closed.

        Args:
            deadline: of the block.
            shield: keep the scopes around it from cancelling it, for a clean-up. Under asyncio a cancellation that
                has been delivered does not come again by itself, so nothing is needed there.

        Returns:
            The scope; `None` where nothing can be cancelled: in threads, and in callbacks of an event loop.
        """
        ...

    def run_soon(self, function: Callable[[], object]) -> None:
        """Have a function called in the event loop, soon. From any thread, and by finalisers; never raises.

        Nothing comes of it if the loop has ended. In blocking code it is called at once.
        """
        ...

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Run a coroutine function that never raises, in a task of its own and an empty context. Never raises itself.

        By the loop's own thread. In blocking code it is driven to its end at once.

        Returns:
            Whether it is run; a loop that is about to end may take no more tasks.
        """
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


def current_runtime() -> Runtime:
    """The runtime that the caller runs in.

    Returns:
        For asyncio and trio an object for the running loop or run, for everything else `THREADS`.
    """
    name = running_runtime()
    if name == "asyncio":
        from ._asyncio_runtime import AsyncioRuntime

        return AsyncioRuntime()
    if name == "trio":
        from ._trio_runtime import TrioRuntime

        return TrioRuntime()
    return THREADS


class ThreadEvent:
    """An `Event` between threads: one raw lock, a tenth of the cost of `threading.Event`. For one waiter."""

    __slots__ = ("_gate", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._gate = _thread.allocate_lock()
        self._gate.acquire()

    def set(self) -> None:
        """Bring it about. See `Event.set`."""
        self._is_set = True
        try:
            self._gate.release()
        except RuntimeError:
            pass  # set twice: the gate was open already

    def is_set(self) -> bool:
        """Whether it has been brought about."""
        return self._is_set

    async def wait(self, timeout: float | None = None) -> bool:
        """Block the thread until it is set, or `timeout` seconds have passed. See `Event.wait`."""
        if not self._is_set:
            # A lock refuses to wait longer than TIMEOUT_MAX (292 years), infinity among it, and takes -1
            # for "for ever", which a limit that has passed must never become.
            seconds = -1 if timeout is None else min(max(timeout, 0.0), threading.TIMEOUT_MAX)
            self._gate.acquire(True, seconds)
        return self._is_set


class ThreadRuntime:
    """The primitives of blocking code. Their `async` methods block the calling thread and never suspend."""

    name: RuntimeName = "threads"

    now: staticmethod[[], float] = staticmethod(time.monotonic)

    def create_event(self) -> ThreadEvent:
        """A new event for one waiting thread."""
        return ThreadEvent()

    def is_here(self) -> bool:
        """Always: blocking code may be called from anywhere."""
        return True

    def has_ended(self) -> bool:
        """Never."""
        return False

    def open_scope(self, deadline: Deadline, *, shield: bool = False) -> None:
        """Nothing interrupts a thread: `None`."""

    def run_soon(self, function: Callable[[], object]) -> None:
        """Call it."""
        function()

    def spawn(self, function: Callable[[], Coroutine[Any, Any, None]]) -> bool:
        """Drive it to its end."""
        drive(function())
        return True

    async def sleep(self, seconds: float) -> None:
        """Block the thread for that long."""
        time.sleep(seconds)  # noqa: ASYNC251 - blocking is what this runtime's primitives do

    def __repr__(self) -> str:
        return "<ThreadRuntime>"


THREADS = ThreadRuntime()
"""The runtime of blocking code; it has no state, so one is enough."""
