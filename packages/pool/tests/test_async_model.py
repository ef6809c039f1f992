"""An async pool is led through any order of requests, cancellations, answers, hang-ups, time and closing.

hypothesis makes up the order. The machine has a loop of its own, in virtual time, which runs between two rules until
nothing more moves. After each rule the pool's books have to agree with what the network saw; at the end, when every
request has been answered or cancelled, nothing is held.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lamina_interfaces import LaminaError, Limit, PoolClosed, PoolTimeout, ReadTimeout, current_runtime
from lamina_pool import AsyncConnectionPool
from pool_async_net import MemoryBackend, MemoryStream, echo
from pool_async_runs import VirtualLoop, check_invariant, url
from pool_loopback import response, target_of

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
CONNECTIONS = 3
HOSTS = ["a.example", "b.example"]


class Asked:
    """A request, and what became of it."""

    def __init__(self, target: str, task: asyncio.Task[Any]) -> None:
        self.target = target
        self.task = task


class PoolMachine(RuleBasedStateMachine):
    """The rules. A server answers only when a rule says so; a dial ends only then, too."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = VirtualLoop()
        self.unanswered: list[tuple[MemoryStream, bytes]] = []
        self.dials: list[Any] = []
        self.asked: list[Asked] = []
        self.backend = MemoryBackend(
            lambda stream, head, body: self.unanswered.append((stream, target_of(head)))
        )
        self.backend.on_connect = self._dial
        self.pool = AsyncConnectionPool(
            network_backend=self.backend,
            max_connections=CONNECTIONS,
            max_connections_per_origin=2,
            keepalive_expiry=10.0,
        )
        self.is_closed = False

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

    async def _ask(self, target: str, timeouts: dict[str, float], reads_all: bool) -> str:
        extensions = {"timeout": timeouts}
        async with self.pool.stream("GET", target, extensions=extensions) as answer:
            if reads_all:
                body = await answer.aread()
                assert target.endswith(body.decode()), (body, target)
        return "served"

    @rule(
        host=st.sampled_from(HOSTS),
        pool_timeout=st.sampled_from([None, 0.0, 1.0]),
        read_timeout=st.sampled_from([None, 1.0]),
        reads_all=st.booleans(),
    )
    def request(
        self, host: str, pool_timeout: float | None, read_timeout: float | None, reads_all: bool
    ) -> None:
        target = url(host=host)
        timeouts = {
            key: value for key, value in (("pool", pool_timeout), ("read", read_timeout)) if value is not None
        }
        coroutine = self._ask(target, timeouts, reads_all)
        self.asked.append(Asked(target, self.loop.create_task(coroutine)))
        self._go_on()

    @precondition(lambda self: self.asked)
    @rule(number=st.integers(0, 30), at_once=st.booleans())
    def cancel(self, number: int, at_once: bool) -> None:
        self.asked[number % len(self.asked)].task.cancel()
        if not at_once:
            self._go_on()

    @precondition(lambda self: self.unanswered)
    @rule(number=st.integers(0, 10), how=st.sampled_from(["whole", "close", "half", "eof", "reset", "whole"]))
    def answer(self, number: int, how: str) -> None:
        stream, target = self.unanswered.pop(number % len(self.unanswered))
        if how == "eof":
            stream.feed_eof()
        elif how == "reset":
            stream.break_off()
        elif how == "half":
            stream.feed(response(target)[:-1])
            stream.feed_eof()
        else:
            stream.feed(response(target, headers=b"Connection: close\r\n" if how == "close" else b""))
        self._go_on()

    @precondition(lambda self: self.dials)
    @rule(number=st.integers(0, 10))
    def connected(self, number: int) -> None:
        self.dials[number % len(self.dials)].set()
        self._go_on()

    @precondition(lambda self: self.backend.open_streams)
    @rule(number=st.integers(0, 10), junk=st.booleans())
    def server_speaks_unasked(self, number: int, junk: bool) -> None:
        """Over a connection that no request is under way on."""
        busy = {stream for stream, _ in self.unanswered}
        idle = sorted(self.backend.open_streams - busy, key=lambda stream: stream.number)
        if idle:
            stream = idle[number % len(idle)]
            if junk:
                stream.feed(response(b"unasked"))
            else:
                stream.feed_eof()

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

    @invariant()
    def the_books_agree(self) -> None:
        self._go_on()
        stats = self.pool.stats()
        under_way = sum(not asked.task.done() for asked in self.asked)
        assert stats.connections <= CONNECTIONS
        assert self.backend.live <= CONNECTIONS
        assert stats.active + stats.connecting + stats.queued == under_way
        assert stats.connecting == len(self.dials)
        assert self.backend.live == stats.active + stats.idle
        # Nobody waits in vain: where requests wait, all that there may be is in use.
        if stats.queued:
            assert stats.connections == CONNECTIONS or stats.active + stats.connecting >= 2
        for asked in self.asked:
            if asked.task.done() and not asked.task.cancelled():
                error = asked.task.exception()
                assert error is None or isinstance(error, LaminaError), error
                assert not isinstance(error, PoolClosed) or self.is_closed
                assert not isinstance(error, (PoolTimeout, ReadTimeout)) or error.origin

    def teardown(self) -> None:
        try:
            self.backend.answer = echo
            self.backend.on_connect = None
            for dial in list(self.dials):
                dial.set()
            while self.unanswered:
                stream, target = self.unanswered.pop()
                stream.feed(response(target))
            for _ in range(3):
                self._go_on()
            assert all(asked.task.done() for asked in self.asked)
            check_invariant(self.pool, self.backend)
            if not self.is_closed:
                for host in HOSTS:
                    self.loop.run_until_complete(self._ask(url(host=host), {}, True))
            self.loop.run_until_complete(self.pool.aclose())
            check_invariant(self.pool, self.backend)
            assert self.backend.live == 0
            assert not asyncio.all_tasks(self.loop)
        finally:
            for asked in self.asked:
                asked.task.cancel()
            self._go_on()
            self.loop.close()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = (
    settings(max_examples=60, stateful_step_count=40, deadline=None) if not IS_LONG else settings()
)
pytestmark = pytest.mark.timeout(0 if IS_LONG else 120)
