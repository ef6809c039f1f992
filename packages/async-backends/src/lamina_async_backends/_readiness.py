"""Waiting for sockets to become ready, the same text for trio and for anyio.

Both libraries have the same primitives: they tell when a non-blocking socket can be read or written, they have
nurseries, and checkpoints. So the streams and the dialling over them are written once, against the few primitives of a
`Library`; this is the only module that knows how they are used.

How a wait ends. Its `Limit` is a time-out or an ambient deadline or both, and the block of a deadline is itself a
cancel scope around us. So a wait may end by a scope of its own, which then says with full circumstances what took
too long, or by being cancelled from outside, be it by that block at the very same moment or by somebody else.
A cancellation from outside is always let through; `Limit.interrupted` leaves the circumstances for the block.

The scopes are the runtime's own (`Runtime.open_scope`), which under asyncio count who has asked for a cancellation.
Those of anyio before 4.16 lose one by asyncio's own means (`Task.cancel`, `asyncio.timeout`) that comes in the moment
in which they end; its nurseries too, so that is made good after each (`Library.cancellations`).

Scopes and nurseries cost more than the system calls between them, so there is one only where it is needed: a scope
for a wait that has a limit and no `Alarm`, a nursery for two waits at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from lamina_interfaces import ConcurrencyError, Deadline, current_runtime
from lamina_interfaces.translation import network_error

from ._transport import UNWATCHED

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from lamina_interfaces import Limit, Runtime, RuntimeName, Scope

    from ._transport import Alarm, TimerHandle

INTERRUPTS = (KeyboardInterrupt, SystemExit)


class CancelScope(Protocol):
    """The part of a nursery's cancel scope that is used here."""

    def cancel(self) -> Any:
        """Cancel what is in it."""


class Nursery(Protocol):
    """The part of trio's nursery, or of anyio's task group, that is used here."""

    @property
    def cancel_scope(self) -> CancelScope:
        """Around all of its tasks."""
        ...

    def start_soon(self, function: Callable[..., Awaitable[Any]], /, *args: Any) -> Any:
        """Start a task in it."""


@dataclass(frozen=True, slots=True)
class Library:
    """The primitives of one library. Listed are those that their names do not explain.

    Attributes:
        checkpoint: lets other tasks run; raises a cancellation that is due.
        checkpoint_if_cancelled: only the second of these.
        open_nursery: to be entered, gives a `Nursery`.
        wait_checks: whether a wait for a socket raises a cancellation that is due though the socket is ready.
        cancellations: how many the running task has been sent by other means than the library's, and not got rid of.
        call_at: a timer that is cheaper than a cancel scope, for an `Alarm`; `None` if there is none.
        wake_all: ends all waits for a socket, for an `Alarm`.
        woken: what these waits then raise.
    """

    checkpoint: Callable[[], Awaitable[None]]
    checkpoint_if_cancelled: Callable[[], Awaitable[None]]
    wait_readable: Callable[[socket.socket | int], Awaitable[None]]
    wait_writable: Callable[[socket.socket | int], Awaitable[None]]
    wait_checks: bool
    open_nursery: Callable[[], AbstractAsyncContextManager[Any]]
    cancellations: Callable[[], int]
    call_at: Callable[[float, Callable[[], None]], TimerHandle | None] | None = None
    wake_all: Callable[[socket.socket], None] | None = None
    woken: tuple[type[Exception], ...] = ()


def running_here(who: str, possible: tuple[RuntimeName, ...]) -> Runtime:
    """The runtime of the calling task.

    Args:
        who: the class that needs one.
        possible: the runtimes that it can use.

    Raises:
        ConcurrencyError: another one runs here, or none.
    """
    runtime = current_runtime()
    if runtime.name not in possible:
        here = "no event loop" if runtime.name == "threads" else runtime.name
        raise ConcurrencyError(f"{who} works under {' or '.join(possible)}, and {here} runs here")
    return runtime


class _Timer:
    """Ends its block after some seconds, by the runtime's cancel scope, and without a word."""

    __slots__ = ("_deadline", "_runtime", "_scope")

    def __init__(self, seconds: float, runtime: Runtime) -> None:
        self._deadline = Deadline(seconds, runtime.now)
        self._runtime = runtime
        self._scope: Scope | None = None

    def __enter__(self) -> None:
        self._scope = self._runtime.open_scope(self._deadline)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        scope, self._scope = self._scope, None
        try:
            return scope is not None and scope.close(exc_type, exc, traceback)
        finally:
            self._deadline.end()


class Waiter:
    """Waits, by means of a library, in the runtime in which it was made.

    Args:
        library: the primitives.
        runtime: what runs here.
    """

    __slots__ = ("_now", "library", "runtime")

    def __init__(self, library: Library, runtime: Runtime) -> None:
        self.library = library
        self.runtime = runtime
        self._now = runtime.now

    async def wait(
        self,
        limit: Limit,
        ready: Callable[..., Awaitable[object]],
        *args: object,
        until: float | None = None,
        timeout_error: Callable[[], Exception] | None = None,
        alarm: Alarm | None = None,
    ) -> None:
        """Wait for `ready(*args)`, which may be cancelled and called again any number of times.

        Args:
            limit: how long at most.
            ready: what to wait for.
            *args: for `ready`.
            until: a time on the runtime's clock at which to return even so.
            timeout_error: makes the error where nothing remains of the limit, instead of `limit.error`.
            alarm: ends the wait, which is for one socket alone; without it a cancel scope does.

        Raises:
            TimeoutException: nothing remains of the limit.
            NetworkError: the library cannot wait for the socket, or somebody else waits for it.
        """
        while True:
            seconds = limit.glance()
            if until is not None:
                pause = max(0.0, until - self._now())
                seconds = pause if seconds is None else min(seconds, pause)
            try:
                if seconds is None or (alarm is not None and alarm.set(self._now() + seconds)):
                    await ready(*args)
                    return
                with _Timer(seconds, self.runtime):
                    await ready(*args)
                    return
            except self.library.woken:
                pass  # by an alarm, perhaps another wait's
            except Exception as exc:
                raise network_error(exc, limit.phase, UNWATCHED) from exc
            # Here also after the scope has swallowed its own cancellation.
            if limit.expired():
                raise limit.error() if timeout_error is None else timeout_error()
            if until is not None and self._now() >= until:
                return

    async def with_children(self, main: Callable[[Nursery], Awaitable[None]]) -> None:
        """Run `main`, which may start tasks in the nursery that it gets; they are cancelled when it has returned.

        Raises:
            BaseException: what `main` or one of the tasks has raised, itself, not in a group.
        """
        failure: BaseException | None = None
        before = self.library.cancellations()
        try:
            async with self.library.open_nursery() as nursery:
                await main(nursery)
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            failure = _most_urgent(group)
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback knows this frame
        if self.library.cancellations() > before:
            await self.library.checkpoint_if_cancelled()  # lest it was for a scope of the library's
            from asyncio import CancelledError

            raise CancelledError

    async def first_of(self, *waits: Callable[[], Awaitable[object]]) -> None:
        """Return as soon as one of them has; the others are cancelled."""
        if len(waits) == 1:
            await waits[0]()
            return

        async def main(nursery: Nursery) -> None:
            async def run(wait: Callable[[], Awaitable[object]]) -> None:
                await wait()
                nursery.cancel_scope.cancel()

            for wait in waits[1:]:
                nursery.start_soon(run, wait)
            await run(waits[0])

        await self.with_children(main)


def _most_urgent(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One exception of a group: an interrupt, or else a cancellation, if there is one, lest it be swallowed."""
    leaves: list[BaseException] = []
    rest: list[BaseException] = [group]
    while rest:
        exc = rest.pop()
        if isinstance(exc, BaseExceptionGroup):
            rest.extend(exc.exceptions)
        else:
            leaves.append(exc)
    # A cancellation is swallowed by its scope, so it goes behind an interrupt.
    return max(leaves, key=lambda leaf: (isinstance(leaf, INTERRUPTS), not isinstance(leaf, Exception)))
