"""An async pool is led through any order of requests, cancellations, answers, hang-ups, time and closing.

hypothesis makes up the order. The machine has a loop of its own, in virtual time, which runs between two rules until
nothing more moves. After each rule the pool's books have to agree with what the network saw; at the end, when every
request has been answered or cancelled, nothing is held.
"""

from __future__ import annotations

import asyncio
import os

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from lamina_pool import AsyncConnectionPool
from pool_async_machine import CONNECTIONS, HOSTS, Asked, MachineBase
from pool_async_net import MemoryBackend, MemoryStream, echo
from pool_async_runs import check_invariant, url
from pool_loopback import response, target_of

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


class PoolMachine(MachineBase):
    """The rules for servers that speak HTTP/1.1."""

    def __init__(self) -> None:
        super().__init__()
        self.unanswered: list[tuple[MemoryStream, bytes]] = []
        self.backend = MemoryBackend(
            lambda stream, head, body: self.unanswered.append((stream, target_of(head)))
        )
        self.backend.on_connect = self._dial
        self.pool = AsyncConnectionPool(
            network_backend=self.backend,
            max_connections=CONNECTIONS,
            max_connections_per_origin=2,
            keepalive_expiry=10.0,
            **self._options(),
        )

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

    @invariant()
    def the_books_agree(self) -> None:
        self._go_on()
        stats = self.pool.stats()
        assert stats.connections <= CONNECTIONS
        assert self.backend.live <= CONNECTIONS
        assert stats.active + stats.connecting + stats.queued == self._under_way
        assert stats.connecting == len(self.dials)
        assert self.backend.live == stats.active + stats.idle
        # Nobody waits in vain: where requests wait, all that there may be is in use.
        if stats.queued:
            assert stats.connections == CONNECTIONS or stats.active + stats.connecting >= 2
        self._check_outcomes()

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
            self._end()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = (
    settings(max_examples=60, stateful_step_count=40, deadline=None) if not IS_LONG else settings()
)
pytestmark = pytest.mark.timeout(0 if IS_LONG else 120)
