"""The pool over the real backend: forks, forgotten responses, and exceptions that strike anywhere."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import LaminaError
from lamina_pool import ConnectionPool, PoolStats, Request
from stack_helpers import read_head, response

if TYPE_CHECKING:
    from collections.abc import Callable

    from stack_helpers import Certificates, FaultServer

    StartServer = Callable[..., FaultServer]

pytestmark = pytest.mark.usefixtures("no_socket_left")

EMPTY = PoolStats(0, 0, 0, 0, 0, 0)


def echo(sock: socket.socket) -> None:
    """Answers with the target, and where the request came from; `/large` with much."""
    while True:
        target = read_head(sock).split(b" ", 2)[1]
        body = target * 1_000_000 if target == b"/large" else target
        sock.sendall(response(body, f"X-Peer: {sock.getpeername()[1]}\r\n"))


def get(url: str) -> Request:
    return Request("GET", url, headers=[("Host", "127.0.0.1")])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_parent_and_child_never_share_a_connection_I04(
    tls: bool, fault_server: StartServer, certificates: Certificates
) -> None:
    """No cross-talk, and the parent's connections, idle and active, go on."""
    server = fault_server(echo, context=certificates.server if tls else None)
    with ConnectionPool(ssl_context=certificates.client, max_connections=4) as pool:
        held = pool.handle_request(get(f"{server.url}/large"))
        peers = {dict(pool.request("GET", f"{server.url}/idle").headers)[b"X-Peer"]}
        assert pool.stats() == PoolStats(2, 1, 1, 0, 0, 1)
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # 3.12: threads and forks; that is what is tested
            pid = os.fork()
        if pid == 0:
            status = 1
            try:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(30)  # a child that hangs is ended, even if it no longer runs Python
                assert pool.stats() == EMPTY
                for number in range(200):
                    got = pool.request("GET", f"{server.url}/child{number}")
                    assert got.content == b"/child%d" % number
                    assert dict(got.headers)[b"X-Peer"] not in peers
                try:
                    held.read()
                except LaminaError:
                    pool.close()
                    status = 0
            finally:
                os._exit(status)
        for number in range(200):
            got = pool.request("GET", f"{server.url}/parent{number}")
            assert got.content == b"/parent%d" % number
            assert dict(got.headers)[b"X-Peer"] in peers
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert held.read() == b"/large" * 1_000_000
        assert pool.request("GET", f"{server.url}/after").content == b"/after"
        assert pool.stats() == PoolStats(2, 0, 2, 0, 0, 0)
    assert server.accepted == 3


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_forgotten_response_serves_who_waits_G08(
    tls: bool, fault_server: StartServer, certificates: Certificates
) -> None:
    server = fault_server(echo, context=certificates.server if tls else None)
    outcome: list[bytes] = []

    def wait() -> None:
        outcome.append(pool.request("GET", f"{server.url}/waited").content)

    with ConnectionPool(ssl_context=certificates.client, max_connections=1) as pool:
        for _ in range(5):
            outcome.clear()
            held: Any = pool.handle_request(get(f"{server.url}/large"))
            waiting = threading.Thread(target=wait)
            waiting.start()
            end = time.monotonic() + 10
            while not pool._pool._scheduler.waiting:
                assert time.monotonic() < end
            with pytest.warns(ResourceWarning, match="/large was never read to its end or closed"):
                held = None
            waiting.join(10)
            assert outcome == [b"/waited"]
            assert held is None
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


class Struck(BaseException):
    """What KeyboardInterrupt is, told apart from it."""


# By a thread, since the signal is the one by which a test is usually ended that hangs.
@pytest.mark.timeout(60, method="thread")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timer signals here")
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_an_alarm_at_any_moment_mixes_nothing_up_G07(
    tls: bool, fault_server: StartServer, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C: no mix-up ever, the places come back, and no socket stays open."""
    server = fault_server(echo, context=certificates.server if tls else None)
    choice = random.Random(11)
    tokens = itertools.count()
    strikes = 0
    held: list[Any] = []
    pool = ConnectionPool(ssl_context=certificates.client, max_connections=2)

    def ask() -> None:
        token = next(tokens)
        assert pool.request("GET", f"{server.url}/{token}").content == b"/%d" % token, (
            "somebody else's answer"
        )

    def scenario() -> None:
        ask()
        with pool.stream("GET", f"{server.url}/large") as got:
            assert got.status == 200
        ask()

    def handler(number: int, frame: object) -> None:
        raise Struck

    def one_round() -> None:
        nonlocal strikes
        signal.setitimer(signal.ITIMER_REAL, choice.uniform(1e-4, 1e-2))
        try:
            try:
                for _ in range(100):
                    scenario()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Struck:
            strikes += 1

    monkeypatch.setattr(
        sys, "unraisablehook", lambda unraisable: None
    )  # what strikes in a finaliser is reported
    before = signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + 4
    gc.collect()
    gc.freeze()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            while strikes < 20 or (strikes < 200 and time.monotonic() < end):
                try:
                    one_round()
                except Struck:  # in the `finally` above
                    strikes += 1
                gc.collect()
                stats = pool.stats()
                assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0), strikes
                held = [
                    pool.handle_request(
                        Request(
                            "GET",
                            f"{server.url}/held",
                            headers=[("Host", "127.0.0.1")],
                            extensions={"timeout": {"pool": 1, "read": 5}},
                        )
                    )
                    for _ in range(2)
                ]
                assert [got.read() for got in held] == [b"/held", b"/held"]
            held.clear()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        pool.close()
        gc.unfreeze()
        gc.collect()
