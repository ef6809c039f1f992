"""Forty tasks on ten connections, most of them cancelled at a random point, again and again.

`-m soak` cancels a hundred thousand requests in each loop, the default run as many as take a second or two.
"""

from __future__ import annotations

import asyncio
import importlib.util
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from lamina_pool import AsyncConnectionPool
from pool_async_churn import CONNECTIONS, Churn
from pool_async_net import (
    AnyIOBackend,
    CustomStream,
    MemoryBackend,
    MemoryStream,
    checkpoints,
    echo,
)
from pool_async_runs import (
    EVERYWHERE,
    all_tasks,
    check_invariant,
    loop_options,
    pause,
    until,
    url,
)
from pool_loopback import EchoServer, response, target_of


@pytest.fixture(params=EVERYWHERE)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return loop_options(request.param)


def moody(seed: int) -> Callable[[MemoryStream, bytes, bytes], None]:
    """A server that hangs up now and then: before the answer, in it, after it."""
    chance = random.Random(seed)

    def answer(stream: MemoryStream, head: bytes, body: bytes) -> None:
        mood = chance.random()
        whole = response(target_of(head))
        if mood < 0.03:
            stream.feed_eof()
        elif mood < 0.06:
            stream.feed(whole[:-1])
            stream.break_off()
        else:
            stream.feed(whole)
            if mood > 0.95:
                stream.feed_eof()

    return answer


async def churn_in_memory(cancellations: int, seed: int, *, custom: bool = False) -> None:
    tasks = all_tasks()
    kind: dict[str, Any] = {"kind": MemoryStream, "wrap": CustomStream} if custom else {}
    backend = MemoryBackend(moody(seed), **kind)
    pool = AsyncConnectionPool(network_backend=backend, max_connections=CONNECTIONS)
    churn = Churn(pool, url, seed)
    await churn.run(cancellations)
    assert churn.served > cancellations // 10
    assert custom or backend.peak <= CONNECTIONS
    await until(lambda: not pool._world._closing)
    await checkpoints(3)
    check_invariant(pool, backend, tasks)
    backend.answer = echo
    await churn.follow_up()
    await pool.aclose()
    check_invariant(pool, backend, tasks)
    assert backend.live == 0


@pytest.mark.anyio
@pytest.mark.parametrize("custom", [False, True], ids=["own", "custom"])
async def test_most_requests_are_cancelled_G02(anyio_backend: Any, custom: bool) -> None:
    await churn_in_memory(1500, 1, custom=custom)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.anyio
async def test_a_hundred_thousand_requests_are_cancelled_G02(anyio_backend: Any) -> None:
    for seed in range(10):
        await churn_in_memory(10_000, seed, custom=seed == 9)


# --- over sockets ------------------------------------------------------------------------------------------


async def churn_over_sockets(cancellations: int, server: EchoServer) -> None:
    pool = AsyncConnectionPool(network_backend=AnyIOBackend(), max_connections=CONNECTIONS)
    tasks = all_tasks()
    churn = Churn(pool, lambda: url(host=f"127.0.0.1:{server.port}"), 1, has_bodies=False)
    await churn.run(cancellations)
    await churn.follow_up()
    stats = pool.stats()
    assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0)
    await pool.aclose()
    for _ in range(2000):  # the server's threads take their time
        if not server.live and all_tasks() == tasks:
            break
        await pause(0.005)
    assert server.live == 0
    assert all_tasks() == tasks
    assert not pool._world._closing


def sockets_in(loop: str, cancellations: int) -> None:
    with EchoServer(close_every=50) as server:
        if loop == "trio":
            trio.run(churn_over_sockets, cancellations, server)
            return
        factory = None
        if loop == "uvloop":
            import uvloop

            factory = uvloop.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(churn_over_sockets(cancellations, server))


LOOPS = ["asyncio", "trio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]


@pytest.mark.parametrize("loop", LOOPS)
def test_most_requests_over_sockets_are_cancelled_G02(loop: str) -> None:
    sockets_in(loop, 300)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("loop", LOOPS)
def test_many_requests_over_sockets_are_cancelled_G02(loop: str) -> None:
    for _ in range(10):
        sockets_in(loop, 2_000)
