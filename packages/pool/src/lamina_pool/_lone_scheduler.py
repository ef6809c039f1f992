"""The pool's decisions where there is one connection, which is opened once. Pure, as `_scheduler.py` is.

What differs from a pool: nobody waits for what will not come. A request that would have to wait for an HTTP/1.1
connection, or for one that is closed, is refused; whoever sent it may have another connection. Only a connection that
carries several requests, or may turn out to do so once it is open, is waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._scheduler import Scheduler, SlotState, WaiterState, Wake

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._scheduler import Action, Limits, Slot, Waiter, _Origin


class LoneScheduler(Scheduler):
    """The state of one connection. See the top of the module.

    Args:
        limits: of which the times matter.
        random: as for `Scheduler`.
        is_spent: whether it was opened already, so that there is nothing to open.
        opens_once: whether an attempt to open it cannot be repeated, even if it fails.

    Attributes:
        connection: the shell's own object, from `opened` on for good.
        has_failed: whether the last attempt to open it did.
        is_spent: whether there is nothing to open any more.
    """

    def __init__(
        self, limits: Limits, random: Callable[[], float], *, is_spent: bool, opens_once: bool
    ) -> None:
        super().__init__(limits, random)
        self.connection: Any = None
        self.has_failed = False
        self.is_spent = is_spent
        self._opens_once = opens_once

    @property
    def slot(self) -> Slot | None:
        """The connection's place, if there is one."""
        return next(iter(self._slots), None)

    @property
    def is_over(self) -> bool:
        """Whether no further request will be carried."""
        slot = self.slot
        if self.is_closed or slot is None:
            return self.is_closed or self.is_spent
        return slot._is_retired or slot.state not in (SlotState.DIALLING, SlotState.OPEN)

    # --- events --------------------------------------------------------------------------------------------

    def acquire(self, waiter: Waiter, now: float, expected: int = 1) -> Sequence[Action]:
        """See `Scheduler.acquire`. A request that would have to wait for what will not come is refused."""
        slot = self.slot
        if self.is_over or (slot is not None and slot.key != waiter.key):
            self._check(waiter, WaiterState.NEW)
            waiter.state = WaiterState.REFUSED
            return ()
        return super().acquire(waiter, now, expected)

    def opened(self, waiter: Waiter, connection: Any, now: float, capacity: int = 1) -> Sequence[Action]:
        """See `Scheduler.opened`."""
        self.is_spent = True
        self.connection = connection
        return super().opened(waiter, connection, now, capacity)

    def release(
        self, waiter: Waiter, now: float, reusable: bool, idle_seconds: float | None = None
    ) -> Sequence[Action]:
        """See `Scheduler.release`."""
        self.has_failed |= waiter.state is WaiterState.DIALLING
        return super().release(waiter, now, reusable, idle_seconds)

    # --- steps of the events -------------------------------------------------------------------------------

    def _wants(self, origin: _Origin, newcomers: int = 0) -> float:
        return 0 if self.is_spent else super()._wants(origin, newcomers)

    def _dial(self, waiter: Waiter, origin: _Origin) -> None:
        super()._dial(waiter, origin)
        self.has_failed = False
        self.is_spent |= self._opens_once

    def _settle(self, origin: _Origin, actions: list[Action]) -> None:
        super()._settle(origin, actions)
        while (waiter := origin.first_in_line()) is not None and not self._may_hope(waiter):
            self._unpark(waiter, origin)
            waiter.slot, waiter.state = None, WaiterState.REFUSED
            actions.append(Wake(waiter))
        self._forget(origin)

    def _may_hope(self, waiter: Waiter) -> bool:
        """Whether what there is may yet serve a request that waits."""
        slot = self.slot
        if self.is_over or slot is None:
            return False
        if slot.state is SlotState.DIALLING:
            return waiter._expected > 1
        return not slot.connection.is_exclusive
