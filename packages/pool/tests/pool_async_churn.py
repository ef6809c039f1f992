"""Forty tasks that send requests, most of which are cancelled at a random point, again and again."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable

from lamina_interfaces import LaminaError
from lamina_pool import AsyncConnectionPool
from pool_async_net import checkpoint
from pool_async_runs import Cancelled, Jobs, Strike, ask, gather

TASKS = 40
CONNECTIONS = 10
CANCELLED = 0.7


class Churn:
    """Requests of several kinds, of which most are cancelled.

    Args:
        pool: under test.
        target: makes the URL of a request, which no other one has.
        seed: of the chances.
        has_bodies: whether the server understands requests with a body.
        places: how many requests the pool can carry at once.
    """

    def __init__(
        self,
        pool: AsyncConnectionPool,
        target: Callable[[], str],
        seed: int,
        *,
        has_bodies: bool = True,
        places: int = CONNECTIONS,
    ) -> None:
        self.pool = pool
        self.kinds = (self.get, self.get, self.half, self.post if has_bodies else self.get)
        self.target = target
        self.places = places
        self.chance = random.Random(seed)
        self.cancelled = self.served = self.failed = 0

    async def get(self) -> None:
        await ask(self.pool, self.target())

    async def post(self) -> None:
        async def body() -> AsyncIterator[bytes]:
            for piece in (b"one", b"two"):
                yield piece
                await checkpoint()

        await ask(self.pool, self.target(), method="POST", content=body())

    async def half(self) -> None:
        async with self.pool.stream("GET", self.target()) as answer:
            if self.chance.random() < 0.5:
                async for _ in answer.aiter_stream():
                    break

    async def one(self) -> None:
        """One request, cancelled or not."""
        kind = self.chance.choice(self.kinds)
        points = (self.chance.randint(1, 8),) if self.chance.random() < CANCELLED else ()
        strike = Strike(*points, late=self.chance.random() < 0.3)
        outcome = await strike.run(kind)
        if isinstance(outcome, Cancelled):
            self.cancelled += 1
        elif isinstance(outcome, Exception):
            if not isinstance(outcome, LaminaError):
                raise outcome
            self.failed += 1
        else:
            self.served += 1

    async def run(self, cancellations: int) -> None:
        async def worker() -> None:
            while self.cancelled < cancellations:
                await self.one()

        async with Jobs() as jobs:
            workers = [jobs.start(worker) for _ in range(TASKS)]
            for job in workers:
                # Time has to pass meanwhile: whoever reads for all looks now and then whether somebody still writes.
                assert await job.outcome_in_time(100_000.0) is None

    async def follow_up(self) -> None:
        """As many requests at the same time as the pool has places."""
        outcomes = await gather(*[self.get] * self.places)
        assert outcomes == [None] * self.places
