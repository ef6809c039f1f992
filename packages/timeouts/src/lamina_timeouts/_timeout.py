"""`timeout`: a deadline over a block of blocking code.

The block only opens an ambient deadline and closes it again. All that waits in lamina looks at the ambient
deadlines by itself and raises `DeadlineExceeded` with the deadline that ended the wait, so there is nothing to
catch or to translate here: an error on its way out of the block passes as it is, be it this block's expiry, an
outer block's, or the caller's own `TimeoutError`.

Nothing interrupts a thread. A block in which nothing of lamina waits any more, and which ends late, therefore
raises nothing: the work is done, and throwing its result away would help nobody. `expired` tells.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING

from lamina_interfaces import NEVER, Deadline, LaminaError, check_seconds, close_deadline, enter_deadline

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self


class TimeoutStateError(LaminaError, RuntimeError):
    """A `timeout` was used against its order: entered a second time, or rescheduled while it is not open."""

    default_message = "a timeout bounds one block, once"


class timeout:  # noqa: N801 - reads as a statement, as in `asyncio.timeout`, and the name is given
    r"""Bound a block of blocking code: every wait of lamina in it ends when its seconds are over.

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

    Blocks nest, and the soonest deadline counts. A wait that reaches it raises `DeadlineExceeded`, which leaves
    the block whose deadline it was like any other exception; the blocks around that one go on counting.
    Operations have a `timeout=` of their own besides; reaching that one raises `ReadTimeout` and its siblings.

    Only lamina's waits are bounded; a computation, or a wait of some other library, is not interrupted. A block
    that ends late without such a wait raises nothing; `expired` is true then. Once the seconds are over, the
    next operation of lamina in the block raises before it does anything.

    The clock is `time.monotonic`. One object bounds one block, in the thread that enters it: other threads do
    not see the deadline, also not those that are started inside the block. Only work that is handed a copy of
    the context (`asyncio.to_thread`) has it too, until the block ends. `cancel` and `reschedule` may be
    called from any thread; a wait that is under way takes notice when it next looks, within
    `lamina_interfaces.GLANCE_SECONDS`.

    Args:
        seconds: from the moment the block is entered, not negative; `None` or `inf` for no limit. 0 has passed
            at once.

    Raises:
        ArgumentValueError: `seconds` is negative or NaN.
        ArgumentTypeError: `seconds` is no number.
    """

    __slots__ = ("__weakref__", "_deadline", "_remaining_at_end", "_seconds")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = check_seconds(seconds)
        self._deadline: Deadline | None = None
        self._remaining_at_end = NEVER

    def __enter__(self) -> Self:
        if self._deadline is not None:
            raise TimeoutStateError(f"{self!r} was entered before; make a new timeout for each block")
        self._deadline = Deadline(self._seconds, monotonic())
        try:
            enter_deadline(self._deadline, self)
        except BaseException:
            # An interrupt: the `with` statement does not have this object yet, and would not call `__exit__`.
            close_deadline(self._deadline)
            raise
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._deadline is not None and not self._deadline.ended:
            self._remaining_at_end = self._deadline.remaining(monotonic())
            close_deadline(self._deadline)

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
        self._deadline.reschedule(seconds, monotonic())

    @property
    def remaining(self) -> float:
        """Seconds until this block's own limit, outer ones left aside: 0.0 once it has passed, `inf` without one.

        Before the block, all of its seconds; after it, what remained at its end.
        """
        if self._deadline is None:
            return self._seconds
        return self._remaining_at_end if self._deadline.ended else self._deadline.remaining(monotonic())

    @property
    def expired(self) -> bool:
        """Whether this block's own limit has passed; after the block, whether it had passed at its end."""
        return self._deadline is not None and not self.remaining

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
