"""Which runtime runs, and the few primitives that the layers need in it.

Protocol and pool logic is written once, as `async def`, against these primitives and the stream contracts.
In blocking code the same coroutines are run by `drive`, over primitives whose `async` methods block the
thread and never suspend. So the one text needs no second copy, and the blocking face pays a function call for
it.

Finding out which runtime runs imports nothing: a runtime that is not in `sys.modules` cannot be running.
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


class Lock(Protocol):
    """A lock for a few lines that never wait. Not re-entrant."""

    def locked(self) -> bool:
        """Whether anybody holds it."""
        ...

    def __enter__(self) -> Any: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> Any: ...


class Runtime(Protocol):
    """The primitives of one runtime."""

    @property
    def name(self) -> RuntimeName:
        """Which one it is."""
        ...

    @property
    def now(self) -> Callable[[], float]:
        """The clock: seconds, monotonic, from an arbitrary start."""
        ...

    def create_event(self) -> Event:
        """A new event for one waiter."""
        ...

    def create_lock(self) -> Lock:
        """A new lock. Where one thread runs everything, nobody ever waits for it."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        ...


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

    @staticmethod
    def now() -> float:
        """`time.monotonic`."""
        return time.monotonic()

    def create_event(self) -> ThreadEvent:
        """A new event for one waiting thread."""
        return ThreadEvent()

    def create_lock(self) -> Lock:
        """A plain `threading.Lock`."""
        return threading.Lock()

    async def sleep(self, seconds: float) -> None:
        """Block the thread for that long."""
        time.sleep(seconds)  # noqa: ASYNC251 - blocking is what this runtime's primitives do

    def __repr__(self) -> str:
        return "<ThreadRuntime>"


THREADS = ThreadRuntime()
"""The runtime of blocking code; it has no state, so one is enough."""
