"""What the state machines over an async pool have in common: a loop in virtual time, dials, cancelling, time, closing.

hypothesis makes up the order of the rules. Between two of them the loop runs until nothing more moves.
"""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from lamina_interfaces import LaminaError, Limit, PoolClosed, PoolTimeout, ReadTimeout, current_runtime
from lamina_pool import AsyncConnectionPool
from pool_async_runs import VirtualLoop

CONNECTIONS = 3
HOSTS = ["a.example", "b.example"]


class Asked:
    """A request, and what became of it."""

    def __init__(self, target: str, task: asyncio.Task[Any]) -> None:
        self.target = target
        self.task = task


class MachineBase(RuleBasedStateMachine):
    """A server answers only when a rule says so; a dial ends only then, too."""

    pool: AsyncConnectionPool
    backend: Any  # a `MemoryBackend`, of one kind or another

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.dials: list[Any] = []
        self.asked: list[Asked] = []
        self.is_closed = False

    def _options(self) -> dict[str, Any]:
        """For the pool, besides those that a machine has itself."""
        return {}

    async def _dial(self, host: str, limit: Limit) -> None:
        event = current_runtime().create_event()
        self.dials.append(event)
        try:
            while not await event.wait(limit.glance()):
                limit.check()
        finally:
            if event in self.dials:
                self.dials.remove(event)

    def _go_on(self) -> None:
        """Let everything run that can without time passing."""

        async def turns() -> None:
            for _ in range(50):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())

    async def _ask(self, target: str, timeouts: dict[str, float], reads_all: bool, **options: Any) -> str:
        extensions = {"timeout": timeouts}
        method = options.pop("method", "GET")
        async with self.pool.stream(method, target, extensions=extensions, **options) as answer:
            if reads_all:
                body = await answer.aread()
                assert target.endswith(body.decode()), (body, target)
        return "served"

    @precondition(lambda self: self.asked)
    @rule(number=st.integers(0, 30), at_once=st.booleans())
    def cancel(self, number: int, at_once: bool) -> None:
        self.asked[number % len(self.asked)].task.cancel()
        if not at_once:
            self._go_on()

    @precondition(lambda self: self.dials)
    @rule(number=st.integers(0, 10))
    def connected(self, number: int) -> None:
        self.dials[number % len(self.dials)].set()
        self._go_on()

    @rule(seconds=st.sampled_from([0.02, 0.5, 1.0, 11.0]))
    def time_passes(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        self._go_on()

    @rule()
    def reap(self) -> None:
        self.pool.reap()

    @precondition(lambda self: len(self.asked) > 5)
    @rule()
    def close(self) -> None:
        self.is_closed = True
        self.loop.run_until_complete(self.pool.aclose())
        self._go_on()
        assert all(asked.task.done() for asked in self.asked)
        assert self.backend.live == 0

    @property
    def _under_way(self) -> int:
        return sum(not asked.task.done() for asked in self.asked)

    def _check_outcomes(self) -> None:
        """Whoever was served got his own answer; the others were told why not."""
        for asked in self.asked:
            if asked.task.done() and not asked.task.cancelled():
                error = asked.task.exception()
                assert error is None or isinstance(error, LaminaError), error
                assert not isinstance(error, PoolClosed) or self.is_closed
                assert not isinstance(error, (PoolTimeout, ReadTimeout)) or error.origin

    def _end(self) -> None:
        for asked in self.asked:
            asked.task.cancel()
        self._go_on()
        self.loop.close()
