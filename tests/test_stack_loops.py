"""One pool in several event loops, one after another, by real sockets (I05)."""

from __future__ import annotations

import gc
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from lamina_async_backends import AutoBackend
from lamina_interfaces import LaminaError, PoolClosed
from lamina_pool import AsyncConnectionPool, PoolStats, Request
from stack_helpers import read_head, response
from stack_worlds import ASYNC, World

if TYPE_CHECKING:
    from lamina_pool import Response
    from stack_helpers import Certificates, FaultServer

    StartServer = Callable[..., FaultServer]

pytestmark = pytest.mark.usefixtures("no_socket_left")

LARGE = 1_000_000


def echo(sock: socket.socket) -> None:
    while True:
        target = read_head(sock).split(b" ", 2)[1]
        sock.sendall(response(target * LARGE if target == b"/large" else target))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("second", ["asyncio", "asyncio+uvloop", "trio"])
@pytest.mark.parametrize("first", ["asyncio", "asyncio+uvloop", "trio"])
def test_a_pool_moves_to_the_next_loop_I05(
    first: str, second: str, tls: bool, fault_server: StartServer, certificates: Certificates
) -> None:
    """With an idle connection, and a response that was not read, from the loop that has ended."""
    server = fault_server(echo, context=certificates.server if tls else None)
    pool = AsyncConnectionPool(
        ssl_context=certificates.client, max_connections=2, network_backend=AutoBackend()
    )

    async def use(number: int) -> Response:
        got = await pool.request("GET", f"{server.url}/{number}")
        assert got.content == b"/%d" % number
        large = Request("GET", f"{server.url}/large", headers=[("Host", "x")])
        held = await pool.handle_async_request(large)
        got = await pool.request("GET", f"{server.url}/beside", extensions={"timeout": {"pool": 20}})
        assert got.content == b"/beside"
        assert pool.stats() == PoolStats(2, 1, 1, 0, 0, 1)
        return held

    held = [World(name).run(use, number) for number, name in enumerate((first, second, first))]

    async def end() -> None:
        for got in held:
            with pytest.raises(LaminaError):
                await got.aread()
            await got.aclose()
        await pool.aclose()
        with pytest.raises(PoolClosed):
            await pool.request("GET", f"{server.url}/late")

    World(second).run(end)
    assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)
    gc.collect()  # whatever is left over would warn now
    assert server.accepted == 6


@pytest.mark.parametrize("name", ASYNC)
def test_a_loop_for_each_request_I05(name: str, fault_server: StartServer) -> None:
    """As `asyncio.run(pool.request(...))` again and again."""
    server = fault_server(echo)
    world = World(name)
    pool = world.pool()

    async def ask(number: int) -> bytes:
        got = await pool.request("GET", f"{server.url}/{number}")
        return got.content

    for number in range(20):
        assert world.run(ask, number) == b"/%d" % number
    world.run(pool.aclose)
    assert server.accepted == 20
