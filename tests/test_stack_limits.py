"""Time limits through the whole stack, on every backend: `lamina.timeout` over pool, names, sockets, TLS (F01, F06)."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
import trio

import lamina
from lamina_interfaces import (
    DeadlineExceeded,
    PoolTimeout,
    ReadTimeout,
    ResolvedAddress,
    WriteTimeout,
    running_runtime,
)
from lamina_pool import AsyncConnectionPool, PoolStats
from stack_faults import Table, black_hole, stuck
from stack_helpers import read_head, response

if TYPE_CHECKING:
    from typing import Self

    from stack_helpers import Certificates, FaultServer
    from stack_worlds import World

    StartServer = Callable[..., FaultServer]

pytestmark = pytest.mark.usefixtures("no_socket_left")

EMPTY = PoolStats(0, 0, 0, 0, 0, 0)
LATEST = 5.0
"""Seconds: on a machine with nothing else to do it is a few milliseconds more than the limit, and 0.25 at most."""

PLACES = {
    "pool": "pool",
    "dns": "dns",
    "connect": "connect",
    "tls": "tls",
    "write": "write",
    "head": "read",
    "body": "read",
}
"""Where the time passes, and the phase that the error names."""


class Scene:
    """A pool, and peers that let a request hang in one place."""

    def __init__(self, world: World, place: str, certificates: Certificates, start: StartServer) -> None:
        self._done = threading.Event()
        self._stack = ExitStack()
        self._place = place
        resolver = None
        host, scheme = "127.0.0.1", "https" if place == "tls" else "http"
        if place == "dns":
            host, resolver = "slow.example", self._stack.enter_context(stuck())
        elif place == "connect":
            ports = [self._stack.enter_context(black_hole()) for _ in range(4)]
            host = "dead.example"
            resolver = Table([ResolvedAddress(socket.AF_INET, ("127.0.0.1", port)) for port in ports])
        self.server = start(self._behave)
        self.url = f"{scheme}://{host}:{self.server.port}/"
        self.origin = self.url[:-1]
        self.content = bytes(50_000_000) if place == "write" else None
        self.pool: AsyncConnectionPool = world.pool(
            resolver=resolver, ssl_context=certificates.client, max_connections=1
        )

    def _behave(self, sock: socket.socket) -> None:
        if self._place in ("tls", "write"):
            self._done.wait(20)
            return
        if b"/held" in read_head(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n12")
            self._done.wait(20)
        if self._place == "head":
            self._drip(sock, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nX: " + b"x" * 1000)
        elif self._place == "body":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
            self._drip(sock, bytes(1000))

    def _drip(self, sock: socket.socket, data: bytes) -> None:
        """A byte each 100 ms: no single read is slow."""
        for index in range(len(data)):
            sock.sendall(data[index : index + 1])
            if self._done.wait(0.1):
                return

    async def ask(self, **timeouts: float) -> bytes:
        extensions = {"timeout": timeouts}
        got = await self.pool.request("POST", self.url, content=self.content, extensions=extensions)
        return got.content

    async def __aenter__(self) -> Self:
        self.held: Any = None
        if self._place == "pool":
            held = lamina.Request("GET", f"{self.url}held", headers=[("Host", "x")])
            self.held = await self.pool.handle_async_request(held)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._done.set()
        if self.held is not None:
            await self.held.aclose()
        assert self.pool.stats() == EMPTY
        await self.pool.aclose()
        self._stack.close()


SceneIn = Callable[["World", str], Scene]


@pytest.fixture
def scene(fault_server: StartServer, certificates: Certificates) -> SceneIn:
    def make(world: World, place: str) -> Scene:
        return Scene(world, place, certificates, fault_server)

    return make


@pytest.mark.parametrize("place", PLACES)
async def test_a_deadline_of_one_second_ends_every_wait_within_a_quarter_F01(
    world: World, place: str, scene: SceneIn
) -> None:
    taken: list[float] = []
    while len(taken) < 5:  # a busy machine may be late; what is late five times has another reason
        taken.append(await exceed(1.0, place, scene(world, place)))
        if taken[-1] <= 1.25:
            return
    pytest.fail(f"it took {taken} seconds")


async def exceed(seconds: float, place: str, scene: Scene) -> float:
    """Have a request take longer than a deadline; returns how long that took."""
    async with scene as it:
        start = time.monotonic()
        limit = lamina.timeout(seconds)
        with pytest.raises(DeadlineExceeded) as caught:
            async with limit:
                await it.ask()
        took = time.monotonic() - start
        assert seconds - 0.01 <= took
        error = caught.value
        assert (error.phase, error.origin, error.limit) == (PLACES[place], it.origin, seconds)
        assert error.elapsed is not None
        assert seconds - 0.01 <= error.elapsed <= took + 0.01  # clocks differ, and uvloop's has milliseconds
        assert limit.expired
        assert (len(error.attempts) >= 2) == (place == "connect")  # the next address is tried after 0.25 s
        return took


async def test_a_deadline_ends_the_callers_own_code_F01(async_world: World) -> None:
    start = time.monotonic()
    with pytest.raises(DeadlineExceeded) as caught:
        async with lamina.timeout(0.1):
            await anyio.sleep(60)
    assert 0.09 <= time.monotonic() - start < LATEST
    assert (caught.value.phase, caught.value.origin, caught.value.limit) == (None, None, 0.1)


PHASE_LIMITS: dict[str, tuple[dict[str, float], type[Exception]]] = {
    "pool": ({"pool": 0.2}, PoolTimeout),
    "write": ({"write": 0.2}, WriteTimeout),
    "head": ({"read": 0.02}, ReadTimeout),
}


@pytest.mark.parametrize("place", PHASE_LIMITS)
async def test_each_time_out_is_told_from_a_deadline_around_it_F06(
    world: World, place: str, scene: SceneIn
) -> None:
    timeouts, error = PHASE_LIMITS[place]
    async with scene(world, place) as it:
        async with lamina.timeout(60) as limit:
            with pytest.raises(error) as caught:
                await it.ask(**timeouts)
        assert not limit.expired
        assert getattr(caught.value, "phase", None) == PLACES[place]


@asynccontextmanager
async def native_timeout(kind: str, seconds: float) -> AsyncIterator[None]:
    if kind == "asyncio":
        async with asyncio.timeout(seconds):
            yield
    elif kind == "anyio":
        with anyio.fail_after(seconds):
            yield
    else:
        with trio.fail_after(seconds):
            yield


@pytest.mark.parametrize("place", ["pool", "dns", "connect", "tls", "write", "head"])
@pytest.mark.parametrize("by", ["the loop", "anyio"])
async def test_an_outer_scope_sees_its_own_time_out_F06(
    async_world: World, place: str, by: str, scene: SceneIn
) -> None:
    """`asyncio.timeout`, and the scopes of anyio and trio: a `lamina.timeout` within takes nothing for its own."""
    kind = "anyio" if by == "anyio" else running_runtime()
    async with scene(async_world, place) as it:
        expected = trio.TooSlowError if kind == "trio" else TimeoutError
        start = time.monotonic()
        limit = lamina.timeout(60)
        with pytest.raises(expected) as caught:
            async with native_timeout(kind, 0.1), limit:
                await it.ask()
        assert 0.09 <= time.monotonic() - start < LATEST
        assert not isinstance(caught.value, lamina.LaminaError)
        assert not limit.expired


@pytest.mark.parametrize("place", ["pool", "dns", "connect", "tls", "write", "head"])
async def test_an_inner_deadline_passes_through_outer_scopes_F06(
    async_world: World, place: str, scene: SceneIn
) -> None:
    async with scene(async_world, place) as it:
        with pytest.raises(DeadlineExceeded) as caught:
            async with native_timeout(running_runtime(), 60), lamina.timeout(60), lamina.timeout(0.1):
                await it.ask()
        assert (caught.value.phase, caught.value.limit) == (PLACES[place], 0.1)
        await anyio.lowlevel.checkpoint()  # nobody's cancellation is left over


async def test_the_callers_own_time_out_error_passes_F06(world: World) -> None:
    mine = TimeoutError("mine")
    with pytest.raises(TimeoutError) as caught:
        async with lamina.timeout(60):
            raise mine
    assert caught.value is mine


async def test_a_response_in_time_is_no_error_F06(world: World, fault_server: StartServer) -> None:
    def behave(sock: socket.socket) -> None:
        while True:
            sock.sendall(response(read_head(sock).split()[1]))

    server = fault_server(behave)
    async with world.pool() as pool:
        for number in range(50):
            async with lamina.timeout(20) as limit:
                got = await pool.request("GET", f"{server.url}/{number}")
            assert got.content == b"/%d" % number
            assert not limit.expired
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
