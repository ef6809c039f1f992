"""An async pool over HTTP/2 is led through any order of what clients, servers and time may do.

As `test_async_model`, where the servers besides change how many streams they allow and how far the windows are open,
refuse and reset single requests, say goodbye, and stop reading. There must be no deadlock and no leak, every place has
to be counted right, and every answer has to be the one that was asked for.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from lamina_pool import AsyncConnectionPool
from pool_async_machine import CONNECTIONS, HOSTS, MachineBase
from pool_async_machine import Asked as Request
from pool_async_net import checkpoint
from pool_async_runs import url
from pool_http2_net import HTTP2Backend, check_shared
from pool_http2_server import (
    INITIAL_WINDOW_SIZE,
    INTERNAL_ERROR,
    MAX_CONCURRENT_STREAMS,
    REFUSED_STREAM,
    Asked,
)

IS_LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
PER_ORIGIN = 2
KINDS: dict[str, dict[str, Any]] = {"prompt": {}, "thrifty": {"room": 30}, "custom": {"is_custom": True}}


async def body() -> AsyncIterator[bytes]:
    for piece in (b"one", b"two"):
        yield piece
        await checkpoint()


class SharedPoolMachine(MachineBase):
    """The rules for servers that speak HTTP/2."""

    backend: HTTP2Backend

    @initialize(
        kind=st.sampled_from(["prompt", "prompt", "thrifty", "custom"]),
        streams=st.sampled_from([1, 2, 100]),
        window=st.sampled_from([0, 4, 65_535]),
        ping=st.sampled_from([None, 0.4]),
    )
    def begin(self, kind: str, streams: int, window: int, ping: float | None) -> None:
        first = {MAX_CONCURRENT_STREAMS: streams, INITIAL_WINDOW_SIZE: window}
        self.unanswered: list[Asked] = []
        self.backend = HTTP2Backend(self.unanswered.append, settings=first, **KINDS[kind])
        self.backend.on_connect = self._dial
        self.pool = AsyncConnectionPool(
            network_backend=self.backend,
            max_connections=CONNECTIONS,
            max_connections_per_origin=PER_ORIGIN,
            keepalive_expiry=10.0,
            http1=False,
            http2=True,
            http2_ping_interval=ping,
            **self._options(),
        )

    def _stream(self, number: int) -> Any:
        streams = sorted(self.backend.open_streams, key=lambda stream: stream.number)
        return streams[number % len(streams)]

    @rule(
        host=st.sampled_from(HOSTS),
        pool_timeout=st.sampled_from([None, None, 0.0, 1.0]),
        timeout=st.sampled_from([None, None, 1.0]),
        uploads=st.booleans(),
        reads_all=st.booleans(),
    )
    def request(
        self, host: str, pool_timeout: float | None, timeout: float | None, uploads: bool, reads_all: bool
    ) -> None:
        target = url(host=host)
        pairs = (("pool", pool_timeout), ("read", timeout), ("write", timeout))
        timeouts = {key: value for key, value in pairs if value is not None}
        options: dict[str, Any] = {"method": "POST", "content": body()} if uploads else {}
        coroutine = self._ask(target, timeouts, reads_all, **options)
        self.asked.append(Request(target, self.loop.create_task(coroutine)))
        self._go_on()

    @precondition(lambda self: self.unanswered)
    @rule(
        number=st.integers(0, 10),
        how=st.sampled_from(["whole", "whole", "whole", "head", "half", "refuse", "reset", "cut"]),
    )
    def answer(self, number: int, how: str) -> None:
        asked = self.unanswered.pop(number % len(self.unanswered))
        if how == "refuse" and not asked.has_head:
            asked.reset(REFUSED_STREAM)
        elif how == "reset":
            asked.reset(INTERNAL_ERROR)
        elif how == "cut":
            asked.respond(b"", ends=False)
            asked.reset(INTERNAL_ERROR)
        elif how == "head":
            asked.respond(b"", ends=False)
            self.unanswered.append(asked)
        else:
            rest = asked.target[1:]
            asked.respond(rest[:1], ends=False)
            self._go_on()
            asked.respond(rest[1:])
        self._go_on()

    @precondition(lambda self: self.backend.open_streams)
    @rule(
        number=st.integers(0, 10),
        streams=st.sampled_from([None, 0, 1, 2, 100]),
        window=st.sampled_from([None, 0, 1, 100, 65_535]),
    )
    def server_changes(self, number: int, streams: int | None, window: int | None) -> None:
        if streams == 0 and self.backend.room is not None:
            streams = 1  # such a stream takes nothing while nobody waits for it, and there nobody would
        pairs = ((MAX_CONCURRENT_STREAMS, streams), (INITIAL_WINDOW_SIZE, window))
        self._stream(number).peer.change({key: value for key, value in pairs if value is not None})
        self._go_on()

    @precondition(lambda self: self.backend.open_streams)
    @rule(number=st.integers(0, 10), size=st.sampled_from([1, 3, 1000]))
    def window_opens(self, number: int, size: int) -> None:
        for asked in list(self._stream(number).peer.open.values()):
            asked.open_window(size)
        self._go_on()

    @precondition(lambda self: self.backend.open_streams)
    @rule(
        number=st.integers(0, 10),
        how=st.sampled_from(["last", "none", "first", "eof", "reset", "ping", "stall", "unstall"]),
    )
    def connection_event(self, number: int, how: str) -> None:
        stream = self._stream(number)
        peer = stream.peer
        if how == "eof":
            stream.hang_up()
        elif how == "reset":
            stream.break_off()
        elif how == "ping":
            peer.ping()
        elif how in {"stall", "unstall"}:
            stream.stalls = how == "stall"
            stream._wake()
        else:
            numbers = sorted(peer.open) or [1]
            peer.goaway({"last": numbers[-1], "first": numbers[0], "none": 0}[how])
        self._go_on()

    @invariant()
    def the_books_agree(self) -> None:
        self._go_on()
        self.backend.check()
        stats = self.pool.stats()
        assert stats.connections <= CONNECTIONS
        assert self.backend.live <= CONNECTIONS
        assert stats.connecting == len(self.dials)
        assert self.backend.live == stats.active + stats.idle
        assert stats.requests + self.pool._pool._scheduler.waiting == self._under_way, stats
        self._nobody_waits_in_vain()
        self._check_outcomes()

    def _nobody_waits_in_vain(self) -> None:
        """Where requests wait for a connection, all that their origin may have are full, or on their way."""
        scheduler = self.pool._pool._scheduler
        slots = scheduler.slots()
        for waiter in list(self.pool._pool._sleepers):
            own = [slot for slot in slots if slot.key == waiter.key]
            free = [slot for slot in own if slot.in_use < slot.capacity and not slot._is_retired]
            assert not free, [(slot.state, slot.in_use, slot.capacity, slot.connection) for slot in own]
            is_dialling = any(slot.connection is None for slot in own)
            is_shut = any(not slot.capacity for slot in own)  # for the time being; it may open at any time
            assert is_dialling or is_shut or len(own) >= PER_ORIGIN or len(slots) >= CONNECTIONS, waiter

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            self._end()
            return
        try:
            self.backend.answer_http2 = echo_short
            self.backend.on_connect = None
            for dial in list(self.dials):
                dial.set()
            for _ in range(4):
                for stream in list(self.backend.streams):
                    stream.unstall()
                    stream.peer.change({MAX_CONCURRENT_STREAMS: 100, INITIAL_WINDOW_SIZE: 65_535})
                while self.unanswered:
                    echo_short(self.unanswered.pop())
                self._go_on()
                self.loop.run_until_complete(asyncio.sleep(0.1))
            assert not self._under_way
            check_shared(self.pool, self.backend)
            if not self.is_closed:
                for host in HOSTS * PER_ORIGIN:
                    self.loop.run_until_complete(self._ask(url(host=host), {}, True))
                self._go_on()
                check_shared(self.pool, self.backend)
            self.loop.run_until_complete(self.pool.aclose())
            check_shared(self.pool, self.backend)
            assert self.backend.live == 0
            assert not asyncio.all_tasks(self.loop)
        finally:
            self._end()


def echo_short(asked: Asked) -> None:
    asked.respond(b"" if asked.has_head else asked.target[1:])


TestSharedPoolMachine = SharedPoolMachine.TestCase
TestSharedPoolMachine.settings = (
    settings(max_examples=150, stateful_step_count=40, deadline=None) if not IS_LONG else settings()
)
pytestmark = pytest.mark.timeout(0 if IS_LONG else 120)
