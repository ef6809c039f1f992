"""Any nest of blocks against a simple model, in virtual time, under asyncio and trio."""

from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina_interfaces import NEVER, Deadline, DeadlineExceeded, current_deadline
from lamina_timeouts import timeout
from timeouts_loops import lamina_waits, virtual_backend

# Whole sixteenths of a second, and primes apart, so that virtual time adds them without rounding.
seconds = st.integers(0, 160).map(lambda sixteenths: sixteenths / 16)


@dataclass
class Wait:
    """Time passes, in a wait of lamina's or in one of somebody else."""

    seconds: float
    is_laminas: bool


@dataclass
class Change:
    """The limit of one of the open blocks is lifted (`None`) or moved."""

    which: int
    seconds: float | None


@dataclass
class Nested:
    """A block, whose expiry ends it and no more than that."""

    seconds: float | None
    steps: list[Any] = field(default_factory=list)


step = st.recursive(
    st.builds(Wait, seconds, st.booleans()) | st.builds(Change, st.integers(0, 5), st.none() | seconds),
    lambda steps: st.builds(Nested, st.none() | seconds, st.lists(steps, max_size=4)),
    max_leaves=12,
)
program = st.builds(Nested, st.none() | seconds, st.lists(step, max_size=5))


class Expired(Exception):
    """In the model: the block at this depth is over."""

    def __init__(self, depth: int) -> None:
        self.depth = depth


class Model:
    """What should happen: a log of when each block ended, and whether by its own expiry."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ends: list[float] = []
        self.log: list[tuple[int, float, bool]] = []

    def run(self, nested: Nested) -> None:
        depth = len(self.ends)
        self.ends.append(self.now + (NEVER if nested.seconds is None else nested.seconds))
        expired = False
        try:
            for one in nested.steps:
                if isinstance(one, Wait):
                    self.wait(one)
                elif isinstance(one, Change):
                    self.ends[one.which % len(self.ends)] = self.now + (
                        NEVER if one.seconds is None else one.seconds
                    )
                else:
                    self.run(one)
        except Expired as error:
            expired = error.depth == depth
            if not expired:
                raise
        finally:
            self.ends.pop()
            self.log.append((depth, self.now, expired))

    def wait(self, wait: Wait) -> None:
        soonest = min(self.ends)
        # What takes no time needs no await, and nothing ends it but a deadline that has passed.
        if soonest <= self.now + wait.seconds:
            self.now = max(self.now, soonest)
            # Of those that have passed, the outermost was cancelled with all that it holds.
            raise Expired(next(depth for depth, end in enumerate(self.ends) if end <= self.now))
        self.now += wait.seconds


class Real:
    """What does happen."""

    def __init__(self) -> None:
        self.begun = anyio.current_time()
        self.blocks: list[timeout] = []
        self.log: list[tuple[int, float, bool]] = []

    async def run(self, nested: Nested) -> None:
        depth = len(self.blocks)
        block = timeout(nested.seconds)
        deadline: Deadline | None = None
        expired = False
        try:
            async with block:
                self.blocks.append(block)
                deadline = current_deadline()
                for one in nested.steps:
                    if isinstance(one, Wait):
                        await self.wait(one)
                    elif isinstance(one, Change):
                        changed = self.blocks[one.which % len(self.blocks)]
                        if one.seconds is None:
                            changed.cancel()
                        else:
                            changed.reschedule(one.seconds)
                    else:
                        await self.run(one)
        except DeadlineExceeded as error:
            expired = error.deadline is deadline
            if not expired:
                raise
            assert block.expired
        finally:
            self.blocks.pop()
            self.log.append((depth, anyio.current_time() - self.begun, expired))

    async def wait(self, wait: Wait) -> None:
        if wait.is_laminas:
            await lamina_waits(wait.seconds)
        else:
            await anyio.sleep(wait.seconds)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(deadline=None, max_examples=150)
@given(program=program)
def test_any_nest_of_blocks_does_what_the_model_does(backend: str, program: Nested) -> None:
    model = Model()
    model.run(program)

    async def main() -> list[tuple[int, float, bool]]:
        real = Real()
        await real.run(program)
        assert current_deadline() is None
        return real.log

    name, options = virtual_backend(backend)
    assert anyio.run(main, backend=name, backend_options=options) == model.log
