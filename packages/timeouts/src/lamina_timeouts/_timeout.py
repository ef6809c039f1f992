"""`timeout`: a deadline over a block of code, in threads and in tasks.

The block opens an ambient deadline, which all that waits in lamina looks at by itself, and raises `DeadlineExceeded`
with the deadline that ended the wait and the phase it was in. Such an error passes as it is, be it this block's
expiry, an outer block's, or the caller's own `TimeoutError`.

In a task of asyncio or trio the block is a cancel scope as well, for the awaits that are not lamina's. What leaves
the block is then a cancellation, which becomes `DeadlineExceeded` here, and only here: if nobody else has asked for
it. A wait of lamina that was hit by the cancellation, in the moment in which it would have seen the deadline itself,
has left word of its phase.

Nothing interrupts a thread. A block in which nothing of lamina waits any more, and which ends late, therefore
raises nothing: the work is done, and throwing its result away would help nobody. `expired` tells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina_interfaces import NEVER, DeadlineBlock, LaminaError, check_seconds

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from lamina_interfaces import Deadline


class TimeoutStateError(LaminaError, RuntimeError):
    """A `timeout` was used against its order: entered a second time, or rescheduled while it is not open."""

    default_message = "a timeout bounds one block, once"


class timeout:  # noqa: N801 - reads as a statement, as in `asyncio.timeout`, and the name is given
    r"""Bound a block of code: it ends when its seconds are over.

    .. code-block:: python

        from lamina_interfaces import default_backend
        from lamina_timeouts import timeout

        with timeout(10.0):
            with timeout(3.0) as connecting:
                stream = default_backend().connect_tcp("www.example.com", 80)
                connecting.cancel()
            with stream:
                stream.write(b"GET / HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
                answer = stream.read()

    In coroutines it is `async with timeout(10.0)`; `with` does the same there.

    Blocks nest, and the soonest deadline counts. What reaches it raises `DeadlineExceeded`, which leaves the block
    whose deadline it was like any other exception; the blocks around that one go on counting. Its `phase` is what
    lamina was doing, or `None` in the caller's own code. Where the deadline ends the tasks of a group inside the block,
    and nothing else goes wrong in them, the block raises one such error instead of an exception group. Operations have
    a `timeout=` of their own besides; reaching that one raises `ReadTimeout` and its siblings.

    In a task of asyncio or trio any `await` in the block ends: it is a cancel scope, of one cancellation under asyncio
    (as `asyncio.timeout`), of all that follow under trio. A cancellation by anybody else passes as it is, also in the
    same moment.

    In a thread only lamina's waits are bounded; a computation, or a wait of some other library, is not interrupted.
    A block that ends late without such a wait raises nothing; `expired` is true then. Once the seconds are over, the
    next operation of lamina in the block raises before it does anything.

    One object bounds one block, in the thread or task that enters it. Under trio blocks end innermost first, as its own
    scopes do. Other threads do not see the deadline, also not those that are started inside the block. What is handed a
    copy of the context has it too, until the block ends: `asyncio.to_thread`, and tasks that are started inside the
    block, of which lamina's waits are bounded then. What of these is still under way when the deadline passes ends as
    well, even if the block is left at that moment.
    `cancel` and `reschedule` may be called from any thread; a wait that is under way takes notice when it next looks,
    within `lamina_interfaces.GLANCE_SECONDS`.

    Args:
        seconds: from the moment the block is entered, not negative; `None` or `inf` for no limit. 0 has passed
            at once.

    Raises:
        ArgumentValueError: `seconds` is negative or NaN.
        ArgumentTypeError: `seconds` is no number.
    """

    __slots__ = ("__weakref__", "_block", "_remaining_at_end", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = check_seconds(seconds)
        self._block: DeadlineBlock | None = None
        self._remaining_at_end = NEVER

    @property
    def _deadline(self) -> Deadline | None:
        return None if self._block is None else self._block.deadline

    def __enter__(self) -> Self:
        if self._block is not None:
            raise TimeoutStateError(f"{self!r} was entered before; make a new timeout for each block")
        self._block = DeadlineBlock(self._seconds)
        self._block.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block = self._block
        if block is None or block.deadline.ended:
            return
        self._remaining_at_end = block.deadline.remaining()
        error = block.close(exc_type, exc, traceback)
        if error is not None:
            self._remaining_at_end = 0.0  # it did pass, even if it was moved or lifted afterwards
            try:
                raise error from exc
            finally:
                del error, exc  # which its traceback would keep in a cycle

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def cancel(self) -> None:
        """Lift this block's limit; those of the blocks around it stay. Afterwards it may be rescheduled.

        Lifting the limit before the block makes one without limit; after the block it changes nothing.
        """
        if self._deadline is None:
            self._seconds = NEVER
        elif not self._deadline.ended:
            self._deadline.cancel()

    def reschedule(self, seconds: float | None) -> None:
        """Let the block end `seconds` from now instead; `None` lifts the limit. Also after it has passed.

        Raises:
            ArgumentValueError: `seconds` is negative or NaN. The old limit stays.
            ArgumentTypeError: `seconds` is no number. The old limit stays.
            TimeoutStateError: the block has not been entered yet, or has ended.
        """
        if self._deadline is None or self._deadline.ended:
            raise TimeoutStateError(f"{self!r} cannot be rescheduled: its block is not open")
        self._deadline.reschedule(seconds)

    @property
    def remaining(self) -> float:
        """Seconds until this block's own limit, outer ones left aside: 0.0 once it has passed, `inf` without one.

        Before the block, all of its seconds; after it, what remained at its end.
        """
        if self._deadline is None:
            return self._seconds
        return self._remaining_at_end if self._deadline.ended else self._deadline.remaining()

    @property
    def expired(self) -> bool:
        """Whether this block's own limit has passed; after the block, whether it had passed at its end."""
        return self._block is not None and not self.remaining

    def __repr__(self) -> str:
        if self._deadline is None:
            return f"<timeout [{_in_words(self._seconds)}, not entered]>"
        state = "ended" if self._deadline.ended else "open"
        if self._deadline.limit == NEVER:
            left = ""
        elif self.expired:
            left = ", expired"
        else:
            left = f", {self.remaining:.3f} s left"
        return f"<timeout [{_in_words(self._deadline.limit)}, {state}{left}]>"


def _in_words(seconds: float) -> str:
    return "no limit" if seconds == NEVER else f"{seconds:g} s"
