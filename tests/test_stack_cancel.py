"""Cancellation through the whole stack, on every async backend, by real sockets: what it leaves is nothing."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
import pytest

from lamina_interfaces import ResolvedAddress
from lamina_pool import AsyncConnectionPool, PoolStats, Request
from stack_faults import Table, black_hole, refusing, stuck
from stack_helpers import open_sockets, read_head, response
from stack_worlds import Cancelled, Jobs

if TYPE_CHECKING:
    from stack_helpers import Certificates, FaultServer
    from stack_worlds import Job, World

    StartServer = Callable[..., FaultServer]

pytestmark = pytest.mark.usefixtures("no_socket_left")

PLACES = [
    "queueing",
    "resolving",
    "connecting",
    "between attempts",
    "handshaking",
    "writing",
    "awaiting the head",
    "reading the body",
]


class Peer:
    """Lets a request hang where it is told to, and notes when it hangs there and when its connection ends."""

    def __init__(self) -> None:
        self.there = threading.Event()
        self.ended = threading.Event()
        self.place = ""

    def __call__(self, sock: socket.socket) -> None:
        try:
            if self.place == "handshaking":
                sock.recv(1 << 16)
            elif self.place == "writing":
                sock.recv(1000)
            else:
                self._answer(sock)
            self.there.set()
            self._wait_for_the_end(sock)
        finally:
            self.ended.set()

    def _answer(self, sock: socket.socket) -> None:
        while True:
            target = read_head(sock).split()[1]
            if target == b"/hang":
                break
            if target == b"/held":
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n12")
                break
            sock.sendall(response(target))
        if self.place == "reading the body" and target == b"/hang":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345")

    @staticmethod
    def _wait_for_the_end(sock: socket.socket) -> None:
        if isinstance(sock, ssl.SSLSocket):
            sock.setblocking(True)
        while sock.recv(1 << 16):
            pass


def get(url: str) -> Request:
    return Request("GET", url, headers=[("Host", "127.0.0.1")])


async def _settled() -> int:
    """How many tasks there are, once those that have something to finish have done it."""
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    return len(anyio.get_running_tasks())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_cancelled_request_leaves_nothing_G01(
    async_world: World, place: str, tls: bool, fault_server: StartServer, certificates: Certificates
) -> None:
    """No socket, no task, no place taken; the peer learns of it at once, and the pool goes on."""
    if place == "handshaking" and not tls:
        return  # there is none
    peer = Peer()
    context = certificates.server if tls and place not in ("handshaking", "writing") else None
    server = fault_server(peer, context=context)
    scheme = "https" if tls and (context is not None or place == "handshaking") else "http"
    world = async_world
    tasks = await _settled()
    with stuck() as unanswering, black_hole() as dead, refusing() as refused:
        hosts = {"resolving": "slow.example", "connecting": f"127.0.0.1:{dead}"}
        hosts["between attempts"] = f"127.0.0.1:{refused}"
        url = f"{scheme}://{hosts.get(place, f'127.0.0.1:{server.port}')}/hang"
        fine = f"{scheme}://127.0.0.1:{server.port}/fine"
        async with world.pool(
            resolver=unanswering, ssl_context=certificates.client, max_connections=1, retries=9
        ) as pool:
            held = None
            if place == "queueing":
                held = await pool.handle_async_request(get(fine.replace("/fine", "/held")))
                peer.there.clear()
            peer.place = place
            before = open_sockets()
            async with world.jobs() as jobs:
                job = await _hang(world, pool, place, url, jobs, peer)
                job.cancel()
                assert isinstance(await job.outcome(world), Cancelled)
                # At once, without a turn of the loop or of the garbage collector.
                assert pool.stats() == PoolStats(
                    1 if held else 0, 1 if held else 0, 0, 0, 0, 1 if held else 0
                )
                if place in ("handshaking", "writing", "awaiting the head", "reading the body"):
                    await world.until(peer.ended.is_set)
            if held is not None:
                await held.aclose()
            await world.until(lambda: not open_sockets() - before)  # the server's end of it comes later
            peer.place = ""
            if scheme == "http" or context is not None:
                got = await pool.request("GET", fine, extensions={"timeout": {"pool": 0}})
                assert got.content == b"/fine"
        assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)
    assert await _settled() <= tasks


async def _hang(world: World, pool: AsyncConnectionPool, place: str, url: str, jobs: Jobs, peer: Peer) -> Job:
    """Start a request, and wait until it hangs in its place."""

    async def ask() -> None:
        content = bytes(50_000_000) if place == "writing" else None
        await pool.request("POST", url, content=content)

    job = jobs.start(ask)
    if place == "queueing":
        await world.until(lambda: pool.stats().queued == 1)
    elif place in ("resolving", "connecting", "between attempts"):
        await world.until(lambda: pool.stats().connecting == 1)
    else:
        await world.until(peer.there.is_set)
    for _ in range(20):
        await anyio.lowlevel.checkpoint()
    assert not job.is_done, await job.outcome(world)
    return job


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_closing_is_not_stopped_by_a_cancellation_G05(
    async_world: World, tls: bool, fault_server: StartServer, certificates: Certificates
) -> None:
    """Of a response, and of the pool: the sockets are free, though the task that closed them was cancelled."""
    peer = Peer()
    server = fault_server(peer, context=certificates.server if tls else None)
    world = async_world
    tasks = await _settled()
    pool = world.pool(ssl_context=certificates.client, max_connections=4)
    before = open_sockets()
    responses = [await pool.handle_async_request(get(f"{server.url}/held")) for _ in range(3)]
    idle = await pool.request("GET", f"{server.url}/idle")
    assert idle.content == b"/idle"

    async with world.jobs() as jobs:
        for closing in (responses[0].aclose, pool.aclose):

            async def close(closing: Callable[[], object] = closing) -> None:
                with anyio.CancelScope() as scope:
                    scope.cancel()
                    await closing()  # type: ignore[misc] # a coroutine function; the loop variable hides it
                await anyio.lowlevel.checkpoint()

            await jobs.start(close).result(world)
    assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)
    await world.until(lambda: not open_sockets() - before)  # the server's ends come later
    for got in responses[1:]:
        await got.aclose()
    await pool.aclose()
    assert await _settled() <= tasks


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_a_cancellation_at_every_turn_leaves_the_pool_whole_G01(
    async_world: World, tls: bool, fault_server: StartServer, certificates: Certificates
) -> None:
    """After N turns of the loop, for N = 0, 1, 2, …, until three requests were through before."""
    peer = Peer()
    server = fault_server(peer, context=certificates.server if tls else None)
    world = async_world
    through = turns = 0

    async def ask(number: int) -> bytes:
        got = await pool.request("GET", f"{server.url}/{number}")
        return got.content

    async with world.pool(ssl_context=certificates.client, max_connections=1) as pool:
        async with world.jobs() as jobs:
            while through < 3:
                job = jobs.start(ask, turns)
                for _ in range(turns):
                    if job.is_done:
                        break
                    await anyio.lowlevel.checkpoint()
                through += job.is_done
                job.cancel()
                outcome = await job.outcome(world)
                assert isinstance(outcome, Cancelled) or outcome == b"/%d" % turns, outcome
                stats = pool.stats()
                assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0), turns
                assert stats.connections <= 1
                turns += 1 if turns < 40 else turns // 3  # then it waits for the server, which takes its time
        assert (await pool.request("GET", f"{server.url}/after")).content == b"/after"
    await world.until(lambda: server.live == 0)


async def test_the_attempts_of_a_cancelled_connect_are_closed_D04(async_world: World) -> None:
    with black_hole() as first, black_hole() as second:
        addresses = [ResolvedAddress(socket.AF_INET, ("127.0.0.1", port)) for port in (first, second)]
        backend = async_world.backend(resolver=Table(addresses))
        before = open_sockets()
        async with async_world.jobs() as jobs:
            job = jobs.start(backend.connect_tcp, "dead.example", 80)
            await async_world.until(lambda: len(open_sockets() - before) == 2)
            job.cancel()
            assert isinstance(await job.outcome(async_world), Cancelled)
            assert not open_sockets() - before
