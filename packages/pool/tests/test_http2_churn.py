"""Forty tasks on four connections of ten streams each, most of them cancelled at a random point, again and again.

`-m soak` cancels a hundred thousand requests in each loop, the default run as many as take a second or two.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from lamina_pool import AsyncConnectionPool
from pool_async_churn import Churn
from pool_async_net import checkpoints
from pool_async_runs import EVERYWHERE, all_tasks, loop_options, until, url
from pool_http2_net import HTTP2Backend, check_servers, check_shared, echo
from pool_http2_server import (
    CANCEL,
    INITIAL_WINDOW_SIZE,
    INTERNAL_ERROR,
    MAX_CONCURRENT_STREAMS,
    REFUSED_STREAM,
    Asked,
)

pytestmark = pytest.mark.anyio

CONNECTIONS = 4
STREAMS = 10


@pytest.fixture(params=EVERYWHERE)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return loop_options(request.param)


def moody(seed: int) -> Callable[[Asked], None]:
    """A server that refuses now and then, resets, hangs up, or changes how many streams it likes."""
    chance = random.Random(seed)

    def answer(asked: Asked) -> None:
        mood = chance.random()
        server = asked.server
        if mood < 0.02:
            asked.reset(REFUSED_STREAM)
        elif mood < 0.04:
            asked.respond(b"some", ends=False)
            asked.reset(INTERNAL_ERROR)
        elif mood < 0.05:
            asked.reset(CANCEL)
        elif mood < 0.055:
            server.goaway(max(0, asked.id - 2))
        elif mood < 0.06:
            server.goaway(asked.id)
            asked.respond()
        else:
            if mood > 0.97:
                settings = {MAX_CONCURRENT_STREAMS: chance.randint(1, STREAMS)}
                if mood > 0.99:
                    settings[INITIAL_WINDOW_SIZE] = chance.choice([1, 4, 65_535])
                server.change(settings)
            asked.respond(length=len(asked.target))

    return answer


async def churn(cancellations: int, seed: int, **options: Any) -> None:
    tasks = all_tasks()
    backend = HTTP2Backend(moody(seed), settings={MAX_CONCURRENT_STREAMS: STREAMS}, **options)
    pool = AsyncConnectionPool(network_backend=backend, max_connections=CONNECTIONS, http1=False, http2=True)
    requests = Churn(pool, url, seed, places=CONNECTIONS * STREAMS)
    await requests.run(cancellations)
    assert requests.served > cancellations // 10
    assert backend.is_custom or backend.peak <= CONNECTIONS
    for _ in range(3):
        await checkpoints(3)
        await until(lambda: not pool._world._closing)
    check_shared(pool, backend, tasks)
    backend.answer_http2 = echo
    for stream in backend.open_streams:
        stream.peer.change({MAX_CONCURRENT_STREAMS: STREAMS, INITIAL_WINDOW_SIZE: 65_535})
    for _ in range(2):  # after the first round every leftover of the churn has gone out
        await requests.follow_up()
    check_shared(pool, backend, tasks)
    check_servers(backend)
    await pool.aclose()
    check_shared(pool, backend, tasks)
    assert backend.live == 0


KINDS: dict[str, dict[str, Any]] = {"prompt": {}, "thrifty": {"room": 100}, "custom": {"is_custom": True}}


@pytest.mark.parametrize("kind", KINDS)
async def test_most_requests_are_cancelled_G02(anyio_backend: Any, kind: str) -> None:
    await churn(250, 1, **KINDS[kind])


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_a_hundred_thousand_requests_are_cancelled_G02(anyio_backend: Any) -> None:
    for seed in range(10):
        await churn(10_000, seed, **KINDS[("prompt", "prompt", "thrifty", "custom")[seed % 4]])
