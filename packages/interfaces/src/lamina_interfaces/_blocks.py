"""A block of code with a deadline: the ambient one, and in async code its cancel scope besides."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._deadlines import Deadline, chain_clock, close_deadline, enter_deadline
from ._errors import DeadlineExceeded
from ._runtimes import current_runtime

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from ._runtimes import Runtime, Scope


class DeadlineBlock:
    """A deadline of the running thread or task, from `open` to `close`.

    What a context manager that bounds its block is made of (`lamina_timeouts.timeout` is one): it makes this object,
    keeps it, then opens it. So an interrupt in between leaves nothing open: a deadline whose block object has gone
    is over.

    In a task of asyncio or trio any `await` of the block is cancelled when the deadline passes. In threads, and in
    callbacks of an event loop, only those waits end that look at the ambient deadline, as all of lamina's do.

    Args:
        seconds: from now; `None` or `inf` for none.
        runtime: the one that the caller runs in, if it is known already.
        shield: keep cancellations around the block out of it: for a clean-up that is to be done in spite of one. Under
            asyncio a cancellation comes but once, and a second one comes in.

    Attributes:
        deadline: what is opened.

    Raises:
        ArgumentValueError, ArgumentTypeError: `seconds` is negative, NaN or no number.
    """

    __slots__ = ("_runtime", "_scope", "deadline")

    def __init__(
        self, seconds: float | None, *, runtime: Runtime | None = None, shield: bool = False
    ) -> None:
        self._runtime = current_runtime() if runtime is None else runtime
        self._scope: Scope | None = None
        self.deadline: Deadline = Deadline(seconds, chain_clock(self._runtime.now))
        self.deadline.shields = shield

    def open(self) -> None:
        """Begin. Once."""
        try:
            enter_deadline(self.deadline)
            self._scope = self._runtime.open_scope(self.deadline, shield=self.deadline.shields)
        except BaseException:
            # An interrupt: the `with` statement does not have the context manager yet, and would not call `__exit__`.
            close_deadline(self.deadline)
            raise

    def close(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> DeadlineExceeded | None:
        """End it; what `__exit__` was called with goes in. By the same task, innermost first.

        Returns:
            The error to raise in the place of `exc`, which was nothing but this block's own cancellation, or a group of
            nothing but errors of its deadline; else `None`.
        """
        scope, self._scope = self._scope, None  # which keeps the task
        try:
            if scope is not None and scope.close(exc_type, exc, traceback):
                known = self.deadline.interruption
                return known or self.deadline.exceeded(message="the deadline passed in the caller's own code")
            return self._one_for_all(exc)
        except BaseExceptionGroup as rest:
            error = self._one_for_all(rest)
            if error is None:
                raise
            return error
        finally:
            close_deadline(self.deadline)

    def _one_for_all(self, exc: BaseException | None) -> DeadlineExceeded | None:
        """One error for those of a group of tasks, all of which the deadline has ended.

        Whether a task sees the deadline pass or is cancelled first is a matter of luck. It shall not decide whether the
        block raises a group.
        """
        if not isinstance(exc, BaseExceptionGroup):
            return None
        error = None
        for member in _members(exc):
            if not isinstance(member, DeadlineExceeded) or member.deadline is not self.deadline:
                return None
            if error is None:  # a new one, since those of the group are to be found in its cause
                error = self.deadline.exceeded(member.phase, member.message)
                error.origin, error.attempts = member.origin, member.attempts
        return error

    def __del__(self) -> None:
        # An interrupt came before the first line of the `__exit__` that calls `close`, or a generator was thrown away.
        deadline = getattr(self, "deadline", None)
        if deadline is not None and not deadline.ended:
            deadline.cancel()  # for the scope
            deadline.end()


def _members(exc: BaseException) -> Iterator[BaseException]:
    """What a group consists of, and the groups in it."""
    if isinstance(exc, BaseExceptionGroup):
        for member in exc.exceptions:
            yield from _members(member)
    else:
        yield exc
