"""The pool over the real backend, against peers that are slow, broken or hostile; over real sockets."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import threading
import time
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
    Resolver,
    close_deadline,
    open_deadline,
)
from lamina_pool import ConnectionPool, PoolStats, Request
from lamina_sync_backend import SyncBackend
from stack_helpers import read_head, response, tries_in_time

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stack_helpers import Certificates, FaultServer

    StartServer = Callable[..., FaultServer]

pytestmark = pytest.mark.usefixtures("no_socket_left")

EMPTY = PoolStats(0, 0, 0, 0, 0)


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "it never came about"
        pause.wait(0.001)


class Thread(threading.Thread):
    """One whose outcome, result or exception, is kept."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        super().__init__(daemon=True)
        self._call = (function, arguments, options)
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        function, arguments, options = self._call
        try:
            self.outcome = function(*arguments, **options)
        except BaseException as error:  # noqa: BLE001 - it is what is asked for
            self.outcome = error


def get(url: str) -> Request:
    return Request("GET", url, headers=[("Host", "127.0.0.1")])


# --- connecting --------------------------------------------------------------------------------------------


class FixedResolver(Resolver):
    """Knows the addresses of every name."""

    def __init__(self, addresses: Sequence[ResolvedAddress]) -> None:
        self._addresses = addresses

    def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        return [address for address in self._addresses if address.family == family]


class StuckResolver(Resolver):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        self.gate.wait(30)
        return []


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


def test_four_dead_addresses_take_one_connect_timeout_in_all_D01(black_holes: list[ResolvedAddress]) -> None:
    backend = SyncBackend(resolver=FixedResolver(black_holes))
    with ConnectionPool(network_backend=backend) as pool:
        for _ in tries_in_time(0.95, 1.25):
            with pytest.raises(ConnectTimeout) as caught:
                pool.request("GET", "http://dead.example/", extensions={"timeout": {"connect": 1.0}})
            assert len(caught.value.attempts) == 4
            assert caught.value.origin == "http://dead.example:80"
            assert pool.stats() == EMPTY


def test_a_resolver_that_hangs_takes_one_connect_timeout_D02() -> None:
    resolver = StuckResolver()
    try:
        with ConnectionPool(network_backend=SyncBackend(resolver=resolver)) as pool:
            for _ in tries_in_time(0.95, 1.25):
                with pytest.raises(ConnectTimeout) as caught:
                    pool.request("GET", "http://slow.example/", extensions={"timeout": {"connect": 1.0}})
                assert caught.value.phase == "dns"
                assert pool.stats() == EMPTY
    finally:
        resolver.gate.set()


@pytest.mark.parametrize("phase", ["dns", "connect", "tls", "read", "body", "pool", "write"])
def test_an_ambient_deadline_ends_every_phase_F01(
    phase: str, black_holes: list[ResolvedAddress], fault_server: StartServer, certificates: Certificates
) -> None:
    resolver = StuckResolver()

    def silent(sock: socket.socket) -> None:
        if phase in ("read", "body", "pool"):
            read_head(sock)
        if phase == "body":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12")
        if phase == "pool":
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n12")
        done.wait(10)

    done = threading.Event()
    backend = SyncBackend(
        resolver=resolver if phase == "dns" else FixedResolver(black_holes) if phase == "connect" else None
    )
    server = fault_server(silent)
    host = "name.example" if phase in ("dns", "connect") else "127.0.0.1"
    url = f"{'https' if phase == 'tls' else 'http'}://{host}:{server.port}/"
    content = bytes(50_000_000) if phase == "write" else None
    try:
        with ConnectionPool(
            network_backend=backend, ssl_context=certificates.client, max_connections=1
        ) as pool:
            held = pool.handle_request(get(url)) if phase == "pool" else None
            for _ in tries_in_time(0.45, 0.75):
                deadline = open_deadline(0.5, time.monotonic)
                try:
                    with pytest.raises(DeadlineExceeded) as caught:
                        pool.request("POST", url, content=content)
                finally:
                    close_deadline(deadline)
                assert caught.value.phase == {"body": "read"}.get(phase, phase)
            if held is not None:
                held.close()
            assert pool.stats() == EMPTY
    finally:
        done.set()
        resolver.gate.set()


def test_a_deadline_ends_the_pause_before_a_retry_F03(refusing_port: int) -> None:
    with ConnectionPool(retries=9) as pool:
        for _ in tries_in_time(0.65, 0.95):
            deadline = open_deadline(0.7, time.monotonic)
            try:
                with pytest.raises(DeadlineExceeded) as caught:
                    pool.request("GET", f"http://127.0.0.1:{refusing_port}/")
            finally:
                close_deadline(deadline)
            assert caught.value.phase == "connect"


def test_a_refused_connection_names_what_was_tried_D05(refusing_port: int) -> None:
    with ConnectionPool() as pool:
        where = rf"127\.0\.0\.1:{refusing_port}"
        with pytest.raises(ConnectError, match=f"origin http://{where}, tried {where}"):
            pool.request("GET", f"http://127.0.0.1:{refusing_port}/")
        assert pool.stats() == EMPTY


# --- TLS ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["timeout", "eof", "reset", "plaintext"])
def test_broken_handshakes_leave_no_socket_C07_C08(
    end: str, fault_server: StartServer, certificates: Certificates
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
    with ConnectionPool(ssl_context=certificates.client, max_connections=5) as pool:
        # A short one could be over before the handshake has begun.
        tries, timeout = (4, {"connect": 0.3}) if end == "timeout" else (20, {"connect": 10})
        for _ in range(tries):
            with pytest.raises(ConnectTimeout if end == "timeout" else ConnectError) as caught:
                pool.request("GET", f"https://127.0.0.1:{server.port}/", extensions={"timeout": timeout})
            assert caught.value.phase == "tls"
            assert pool.stats() == EMPTY
            if end == "timeout":
                assert ended.acquire(timeout=10), "the server never saw the end of the connection"
    assert server.accepted == tries


def test_session_tickets_do_not_make_an_idle_connection_look_dead_C10(
    fault_server: StartServer, certificates: Certificates
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
    with ConnectionPool(ssl_context=certificates.client) as pool:
        for _ in range(20):
            assert pool.request("POST", f"https://127.0.0.1:{server.port}/", content=b"").content == b"fine"
    assert server.accepted == 1


def test_a_body_that_ends_without_close_notify_is_not_whole_C06(
    fault_server: StartServer, certificates: Certificates
) -> None:
    def behave(sock: ssl.SSLSocket) -> None:
        read_head(sock)
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\nsome of it")
        os.close(sock.detach())

    server = fault_server(behave, context=certificates.server)
    with ConnectionPool(ssl_context=certificates.client) as pool:
        with pytest.raises(RemoteProtocolError, match="the end of the response is not known"):
            pool.request("GET", f"https://127.0.0.1:{server.port}/")
        assert pool.stats() == EMPTY


# --- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("body", ["bytes", "pieces"])
def test_an_answer_to_an_upload_that_nobody_reads_A18(
    tls: bool, body: str, fault_server: StartServer, certificates: Certificates
) -> None:
    """413 at once, 50 MB unread, the socket held open: no waiting for what will never be taken."""
    done = threading.Event()

    def behave(sock: socket.socket) -> None:
        read_some = sock.recv(1000)
        assert read_some
        sock.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\n\r\ntoo large")
        done.wait(10)

    server = fault_server(behave, context=certificates.server if tls else None)
    with ConnectionPool(ssl_context=certificates.client) as pool:
        content: Any = bytes(50_000_000) if body == "bytes" else (bytes(500_000) for _ in range(100))
        start = time.monotonic()
        got = pool.request("POST", f"{server.url}/", content=content, extensions={"timeout": {"write": 40}})
        assert time.monotonic() - start < 8
        done.set()
        assert (got.status, got.content) == (413, b"too large")
        assert pool.stats() == EMPTY


def test_a_server_that_closes_idle_connections_as_requests_go_out_A17(fault_server: StartServer) -> None:
    """Each connection is closed right behind its answer: the end may come at any moment of the next request."""

    def behave(sock: socket.socket) -> None:
        for _ in range(3):
            head = read_head(sock)
            sock.sendall(response(head.split()[1]))

    server = fault_server(behave)
    with ConnectionPool() as pool:
        for number in range(600):
            assert pool.request("GET", f"{server.url}/{number}").content == f"/{number}".encode()
            assert pool.stats().connections <= 1
    assert server.accepted >= 200


@pytest.mark.parametrize("how", ["eof", "reset", "408"])
def test_a_connection_that_died_while_idle_is_replaced_unseen_A05(
    how: str, fault_server: StartServer
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
    with ConnectionPool() as pool:
        for _ in range(10):
            answered.clear()
            ended.clear()
            assert pool.request("POST", f"{server.url}/", content=b"").content == b"first"
            answered.set()
            assert ended.wait(10)
    assert server.accepted == 10


def test_a_slow_answer_is_ended_by_the_read_timeout(fault_server: StartServer) -> None:
    done = threading.Event()

    def behave(sock: socket.socket) -> None:
        read_head(sock)
        done.wait(10)

    server = fault_server(behave)
    with ConnectionPool() as pool:
        for _ in tries_in_time(0.15, 0.5):
            with pytest.raises(ReadTimeout):
                pool.request("GET", f"{server.url}/", extensions={"timeout": {"read": 0.2}})
            assert pool.stats() == EMPTY
    done.set()


# --- closing -----------------------------------------------------------------------------------------------


def test_closing_ends_every_wait_within_a_second_I02(
    black_holes: list[ResolvedAddress],
    fault_server: StartServer,
    certificates: Certificates,
    refusing_port: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Threads in a read, in a body, in a handshake, in a connect that nobody answers, in DNS, in a retry's pause."""
    monkeypatch.setattr("lamina_pool._dialling.BACKOFF_SECONDS", 10.0)
    arrived = threading.Semaphore(0)

    def behave(sock: socket.socket) -> None:
        data = sock.recv(65536)
        if b"/body" in data:
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12")
        arrived.release()
        while sock.recv(65536):
            pass

    server = fault_server(behave)
    resolver = StuckResolver()
    common: dict[str, Any] = {"ssl_context": certificates.client, "retries": 9, "max_connections": 4}
    timeout = dict.fromkeys(("connect", "read", "write", "pool"), 50)  # nothing but the closing ends a wait
    pools = [
        ConnectionPool(**common),
        ConnectionPool(network_backend=SyncBackend(resolver=FixedResolver(black_holes)), **common),
        ConnectionPool(network_backend=SyncBackend(resolver=resolver), **common),
    ]
    waits = [
        (pools[0], f"{server.url}/read"),
        (pools[0], f"{server.url}/body"),
        (pools[0], f"https://127.0.0.1:{server.port}/handshake"),
        (pools[0], f"http://127.0.0.1:{refusing_port}/retry"),
        (pools[0], f"{server.url}/queued"),
        (pools[1], "http://blackhole.example/connect"),
        (pools[2], "http://stuck.example/dns"),
    ]
    threads = []
    for pool, url in waits:
        threads.append(Thread(pool.request, "GET", url, extensions={"timeout": timeout}))
        until(lambda: sum(p.stats().connections + p.stats().queued for p in pools) == len(threads))
    for _ in range(3):
        assert arrived.acquire(timeout=10)
    # By now the refused one has made its second attempt, which follows the first at once, and sleeps, or will.
    threading.Event().wait(0.3)
    try:
        start = time.monotonic()
        for pool in pools:
            pool.close()
        for thread in threads:
            thread.join(5)
        assert time.monotonic() - start < 4  # a small part of a second, on a machine that does nothing else
        for thread, (_, url) in zip(threads, waits, strict=True):
            assert isinstance(thread.outcome, PoolClosed), (url, thread.outcome)
            assert thread.outcome.origin is not None
        assert [pool.stats() for pool in pools] == [EMPTY] * 3
    finally:
        resolver.gate.set()


def test_closing_many_connections_is_quick_though_nobody_reads_C11(
    fault_server: StartServer, certificates: Certificates
) -> None:
    """No waiting for a close_notify that never comes."""
    done = threading.Event()

    def behave(sock: socket.socket) -> None:
        read_head(sock)
        sock.sendall(response(b"fine"))
        done.wait(20)

    server = fault_server(behave, context=certificates.server)
    pool = ConnectionPool(ssl_context=certificates.client, max_connections=None)
    held = [pool.handle_request(get(f"{server.url}/")) for _ in range(50)]
    for got in held[::2]:
        got.read()
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 2.5  # a small part of a second, on a machine that does nothing else
    for got in held[1::2]:
        try:
            got.read()
        except LaminaError:
            pass
        got.close()
    done.set()
    assert pool.stats() == EMPTY
