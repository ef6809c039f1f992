"""The pool over the real backend, against peers that are slow, broken or hostile; over real sockets."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import (
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    LaminaError,
    PoolClosed,
    ReadTimeout,
    RemoteProtocolError,
    ResolvedAddress,
)
from lamina_pool import PoolStats, Request
from lamina_timeouts import timeout
from stack_faults import Table, refusing, stuck
from stack_helpers import read_head, response, tries_in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stack_helpers import Certificates, FaultServer
    from stack_worlds import Job, World

    StartServer = Callable[..., FaultServer]

pytestmark = pytest.mark.usefixtures("no_socket_left")

EMPTY = PoolStats(0, 0, 0, 0, 0, 0)


def get(url: str) -> Request:
    return Request("GET", url, headers=[("Host", "127.0.0.1")])


# --- connecting --------------------------------------------------------------------------------------------


@pytest.fixture
def black_holes() -> Iterator[list[ResolvedAddress]]:
    """Four addresses that answer no SYN: each belongs to a listener whose queue is full."""
    listeners, fillers, addresses = [], [], []
    for _ in range(4):
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        listeners.append(listener)
        addresses.append(ResolvedAddress(socket.AF_INET, listener.getsockname()))
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
    try:
        yield addresses
    finally:
        for sock in (*fillers, *listeners):
            sock.close()


async def test_four_dead_addresses_take_one_connect_timeout_in_all_D01(
    world: World, black_holes: list[ResolvedAddress]
) -> None:
    async with world.pool(resolver=Table(black_holes)) as pool:
        for _ in tries_in_time(0.95, 1.25):
            with pytest.raises(ConnectTimeout) as caught:
                await pool.request("GET", "http://dead.example/", extensions={"timeout": {"connect": 1.0}})
            assert len(caught.value.attempts) == 4
            assert caught.value.origin == "http://dead.example:80"
            assert pool.stats() == EMPTY


async def test_a_resolver_that_hangs_takes_one_connect_timeout_D02(world: World) -> None:
    with stuck() as unanswering:
        async with world.pool(resolver=unanswering) as pool:
            for _ in tries_in_time(0.45, 0.75):
                with pytest.raises(ConnectTimeout) as caught:
                    await pool.request(
                        "GET", "http://slow.example/", extensions={"timeout": {"connect": 0.5}}
                    )
                assert caught.value.phase == "dns"
                assert pool.stats() == EMPTY


async def test_a_deadline_ends_the_pause_before_a_retry_F03(world: World, refusing_port: int) -> None:
    async with world.pool(retries=9) as pool:
        for _ in tries_in_time(0.65, 0.95):
            with pytest.raises(DeadlineExceeded) as caught:
                async with timeout(0.7):
                    await pool.request("GET", f"http://127.0.0.1:{refusing_port}/")
            assert caught.value.phase == "connect"


async def test_a_refused_connection_names_what_was_tried_D05(world: World, refusing_port: int) -> None:
    async with world.pool() as pool:
        where = rf"127\.0\.0\.1:{refusing_port}"
        with pytest.raises(ConnectError, match=f"origin http://{where}, tried {where}"):
            await pool.request("GET", f"http://127.0.0.1:{refusing_port}/")
        assert pool.stats() == EMPTY


# --- TLS ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["timeout", "eof", "reset", "plaintext"])
async def test_broken_handshakes_leave_no_socket_C07_C08(
    world: World, end: str, fault_server: StartServer, certificates: Certificates
) -> None:
    ended = threading.Semaphore(0)

    def behave(sock: socket.socket) -> None:
        sock.recv(65536)
        if end == "plaintext":
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        elif end == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return
        elif end == "timeout":
            while sock.recv(65536):
                pass
            ended.release()

    server = fault_server(behave)
    async with world.pool(ssl_context=certificates.client, max_connections=5) as pool:
        # A short one could be over before the handshake has begun.
        tries, limits = (2, {"connect": 0.3}) if end == "timeout" else (20, {"connect": 10})
        for _ in range(tries):
            with pytest.raises(ConnectTimeout if end == "timeout" else ConnectError) as caught:
                await pool.request("GET", f"https://127.0.0.1:{server.port}/", extensions={"timeout": limits})
            assert caught.value.phase == "tls"
            assert pool.stats() == EMPTY
            if end == "timeout":
                assert ended.acquire(timeout=10), "the server never saw the end of the connection"
    assert server.accepted == tries


async def test_session_tickets_do_not_make_an_idle_connection_look_dead_C10(
    world: World, fault_server: StartServer, certificates: Certificates
) -> None:
    """TLS 1.3 tickets come behind the handshake, and may be read only when the connection idles already."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 4
    answered = threading.Semaphore(0)

    def behave(sock: socket.socket) -> None:
        while True:
            read_head(sock)
            sock.sendall(response(b"fine"))
            answered.release()

    server = fault_server(behave, context=context)
    async with world.pool(ssl_context=certificates.client) as pool:
        for _ in range(20):
            assert (
                await pool.request("POST", f"https://127.0.0.1:{server.port}/", content=b"")
            ).content == b"fine"
    assert server.accepted == 1


async def test_a_body_that_ends_without_close_notify_is_not_whole_C06(
    world: World, fault_server: StartServer, certificates: Certificates
) -> None:
    def behave(sock: ssl.SSLSocket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nsome of it")
        os.close(sock.detach())

    server = fault_server(behave, context=certificates.server)
    async with world.pool(ssl_context=certificates.client) as pool:
        with pytest.raises(RemoteProtocolError, match="the end of the response is not known"):
            await pool.request("GET", f"https://127.0.0.1:{server.port}/")
        assert pool.stats() == EMPTY


# --- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("body", ["bytes", "pieces"])
async def test_an_answer_to_an_upload_that_nobody_reads_A18(
    world: World, tls: bool, body: str, fault_server: StartServer, certificates: Certificates
) -> None:
    """413 at once, 50 MB unread, the socket held open: no waiting for what will never be taken."""
    done = threading.Event()

    def behave(sock: socket.socket) -> None:
        read_some = sock.recv(1000)
        assert read_some
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
        done.wait(10)

    server = fault_server(behave, context=certificates.server if tls else None)
    async with world.pool(ssl_context=certificates.client) as pool:
        content: Any = (
            bytes(50_000_000) if body == "bytes" else world.body(bytes(500_000) for _ in range(100))
        )
        start = time.monotonic()
        got = await pool.request(
            "POST", f"{server.url}/", content=content, extensions={"timeout": {"write": 40}}
        )
        assert time.monotonic() - start < 8
        done.set()
        assert (got.status, got.content) == (413, b"too large")
        assert pool.stats() == EMPTY


@pytest.mark.parametrize("body", ["bytes", "pieces"])
async def test_an_answer_to_an_upload_before_a_reset_A19(
    world: World, body: str, fault_server: StartServer
) -> None:
    """It had come whole when the connection broke."""

    def behave(sock: socket.socket) -> None:
        assert sock.recv(1000)
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    server = fault_server(behave)
    async with world.pool() as pool:
        for _ in range(20):
            content: Any = (
                bytes(5_000_000) if body == "bytes" else world.body(bytes(500_000) for _ in range(10))
            )
            got = await pool.request("POST", f"{server.url}/", content=content)
            assert (got.status, got.content) == (413, b"too large")
            assert pool.stats() == EMPTY


async def test_a_server_that_closes_idle_connections_as_requests_go_out_A17(
    world: World, fault_server: StartServer
) -> None:
    """Each connection is closed right behind its answer: the end may come at any moment of the next request."""

    def behave(sock: socket.socket) -> None:
        for _ in range(3):
            head = read_head(sock)
            sock.sendall(response(head.split()[1]))

    server = fault_server(behave)
    async with world.pool() as pool:
        for number in range(600):
            assert (await pool.request("GET", f"{server.url}/{number}")).content == f"/{number}".encode()
            assert pool.stats().connections <= 1
    assert server.accepted >= 200


@pytest.mark.parametrize("how", ["eof", "reset", "408"])
async def test_a_connection_that_died_while_idle_is_replaced_unseen_A05(
    world: World, how: str, fault_server: StartServer
) -> None:
    answered, ended = threading.Event(), threading.Event()

    def behave(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(response(b"first"))
        assert answered.wait(10)
        if how == "408":
            sock.sendall(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
        elif how == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if how != "408":
            sock.close()
        ended.set()
        if how == "408":
            sock.recv(1)

    server = fault_server(behave)
    async with world.pool() as pool:
        for _ in range(10):
            answered.clear()
            ended.clear()
            assert (await pool.request("POST", f"{server.url}/", content=b"")).content == b"first"
            answered.set()
            assert ended.wait(10)
    assert server.accepted == 10


async def test_a_slow_answer_is_ended_by_the_read_timeout(world: World, fault_server: StartServer) -> None:
    done = threading.Event()

    def behave(sock: socket.socket) -> None:
        read_head(sock)
        done.wait(10)

    server = fault_server(behave)
    async with world.pool() as pool:
        for _ in tries_in_time(0.15, 0.5):
            with pytest.raises(ReadTimeout):
                await pool.request("GET", f"{server.url}/", extensions={"timeout": {"read": 0.2}})
            assert pool.stats() == EMPTY
    done.set()


# --- closing -----------------------------------------------------------------------------------------------


async def test_closing_ends_every_wait_within_a_second_I02(
    world: World,
    black_holes: list[ResolvedAddress],
    fault_server: StartServer,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Requests in a read, in a body, in a handshake, in a connect that nobody answers, in DNS, in a retry's pause."""
    monkeypatch.setattr("lamina_pool._dialling.BACKOFF_SECONDS", 10.0)
    arrived = 0
    lock = threading.Lock()

    def behave(sock: socket.socket) -> None:
        nonlocal arrived
        data = sock.recv(65536)
        if b"/body" in data:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12")
        with lock:
            arrived += 1
        while sock.recv(65536):
            pass

    server = fault_server(behave)
    common: dict[str, Any] = {"ssl_context": certificates.client, "retries": 9, "max_connections": 4}
    limits = dict.fromkeys(("connect", "read", "write", "pool"), 50)  # nothing but the closing ends a wait
    with stuck() as unanswering, refusing() as refused:
        pools = [
            world.pool(**common),
            world.pool(resolver=Table(black_holes), **common),
            world.pool(resolver=unanswering, **common),
        ]
        waits = [
            (pools[0], f"{server.url}/read"),
            (pools[0], f"{server.url}/body"),
            (pools[0], f"https://127.0.0.1:{server.port}/handshake"),
            (pools[0], f"http://127.0.0.1:{refused}/retry"),
            (pools[0], f"{server.url}/queued"),
            (pools[1], "http://blackhole.example/connect"),
            (pools[2], "http://stuck.example/dns"),
        ]
        async with world.jobs() as jobs:
            asked: list[Job] = []
            for pool, url in waits:
                asked.append(jobs.start(partial(pool.request, "GET", url, extensions={"timeout": limits})))
                await world.until(
                    lambda: (
                        sum(each.stats().connections + each.stats().queued for each in pools) == len(asked)
                    )
                )
            await world.until(lambda: arrived == 3)
            # By now the refused one has made its second attempt, which follows the first at once, and sleeps, or will.
            await world.pause(0.3)
            start = time.monotonic()
            for pool in pools:
                await pool.aclose()
            outcomes = [await job.outcome(world) for job in asked]
            # A small part of a second, on a machine that does nothing else.
            assert max(job.ended_at for job in asked) - start < 4
            for outcome, (_, url) in zip(outcomes, waits, strict=True):
                assert isinstance(outcome, PoolClosed), (url, outcome)
                assert outcome.origin is not None
            assert [pool.stats() for pool in pools] == [EMPTY] * 3


async def test_closing_many_connections_is_quick_though_nobody_reads_C11(
    world: World, fault_server: StartServer, certificates: Certificates
) -> None:
    """No waiting for a close_notify that never comes."""
    done = threading.Event()

    def behave(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(response(b"fine"))
        done.wait(20)

    server = fault_server(behave, context=certificates.server)
    pool = world.pool(ssl_context=certificates.client, max_connections=None)
    held = [await pool.handle_async_request(get(f"{server.url}/")) for _ in range(20)]
    for got in held[::2]:
        await got.aread()
    start = time.monotonic()
    await pool.aclose()
    assert time.monotonic() - start < 2.5  # a small part of a second, on a machine that does nothing else
    for got in held[1::2]:
        try:
            await got.aread()
        except LaminaError:
            pass
        await got.aclose()
    done.set()
    assert pool.stats() == EMPTY
