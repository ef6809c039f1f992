"""Connecting: dead addresses, refusals, limits, options, and what is reported."""

from __future__ import annotations

import errno
import resource
import socket
import threading
from time import monotonic
from typing import Any

import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    Limit,
    ResolvedAddress,
    close_deadline,
    open_deadline,
)
from lamina_interfaces.connecting import Dial
from lamina_interfaces.dialing import default_socket_options
from lamina_interfaces.resolving import SYSTEM_RESOLVER
from lamina_sync_backend import SyncBackend
from lamina_sync_backend._connecting import connect
from sync_peers import PATIENCE, BlackHole, Peer, RefusingPorts, Table, echo, open_fds, tries

HAS_IPV6 = socket.has_ipv6


def quiet(connection: socket.socket) -> None:
    connection.recv(1)


# --- several addresses -------------------------------------------------------------------------------------


def test_a_good_address_behind_dead_ones_is_reached_after_their_turns() -> None:
    with BlackHole() as hole1, BlackHole() as hole2, BlackHole() as hole3, Peer(quiet) as peer:
        resolver = Table(v4=[hole1.address, hole2.address, hole3.address, peer.address])
        before = open_fds()
        start = monotonic()
        stream = SyncBackend(resolver=resolver).connect_tcp("host.example", 80, timeout=30)
        assert 0.75 <= monotonic() - start < PATIENCE / 2
        assert len(open_fds() - before) <= 2  # the stream's, and the peer's end of it
        assert stream.get_extra_info("server_addr") == peer.address.sockaddr
        assert [span.name for span in stream.get_extra_info("timings")] == ["dns", "tcp"]
        stream.close()


def test_four_dead_addresses_share_one_limit() -> None:
    """D01."""
    with BlackHole() as a, BlackHole() as b, BlackHole() as c, BlackHole() as d:
        resolver = Table(v4=[a.address, b.address, c.address, d.address])
        tried: list[list[str]] = []
        for this in tries():
            start = monotonic()
            with pytest.raises(ConnectTimeout) as caught:
                SyncBackend(resolver=resolver).connect_tcp("host.example", 80, timeout=1)
            elapsed, error = monotonic() - start, caught.value
            assert (error.phase, error.limit) == ("connect", 1)
            assert "host.example:80" in str(error)
            assert all(attempt.errno is None for attempt in error.attempts)
            tried.append([attempt.address for attempt in error.attempts])
            with this:
                assert 1 <= elapsed <= 1.25
                assert max(tried, key=len) == [f"127.0.0.1:{hole.port}" for hole in (a, b, c, d)]
                assert error.attempts[0].elapsed > 0.9


def test_an_address_that_refuses_is_passed_at_once(refusing_address: RefusingPorts) -> None:
    """D03."""
    with Peer(quiet) as peer:
        resolver = Table(v4=[*(refusing_address() for _ in range(60)), peer.address])
        start = monotonic()
        SyncBackend(resolver=resolver).connect_tcp("host.example", 80, timeout=30).close()
        assert monotonic() - start < 10  # by turns it would take fifteen seconds


@pytest.mark.skipif(not HAS_IPV6, reason="needs IPv6 on loopback")
def test_a_dead_family_is_passed(refusing_address: RefusingPorts) -> None:
    with Peer(quiet) as peer:
        resolver = Table(v6=[refusing_address(socket.AF_INET6)], v4=[peer.address])
        stream = SyncBackend(resolver=resolver).connect_tcp("host.example", 80, timeout=30)
        assert stream.get_extra_info("server_addr") == peer.address.sockaddr
        stream.close()


@pytest.mark.skipif(not HAS_IPV6, reason="needs IPv6 on loopback")
def test_ipv6_is_preferred() -> None:
    with Peer(quiet, family=socket.AF_INET6) as v6, Peer(quiet) as v4:
        backend = SyncBackend(resolver=Table(v6=[v6.address], v4=[v4.address]))
        for this in tries():  # the look-up of the other family may be the one whose thread is late
            with this, backend.connect_tcp("host.example", 80, timeout=30) as stream:
                assert stream.get_extra_info("server_addr")[:2] == ("::1", v6.port)


def test_one_good_address_is_connected_to_once() -> None:
    with Peer(quiet) as peer:
        SyncBackend(resolver=Table(v4=[peer.address] * 3)).connect_tcp("host.example", 80, timeout=30).close()
        assert peer.accepted <= 1


def test_every_address_that_failed_is_listed(refusing_address: RefusingPorts) -> None:
    """D05: in the order of trying, with errno and elapsed time."""
    first, second = refusing_address(), refusing_address()
    with pytest.raises(ConnectError) as caught:
        SyncBackend(resolver=Table(v4=[first, second])).connect_tcp("host.example", 80, timeout=30)
    error = caught.value
    assert [(attempt.address, attempt.errno) for attempt in error.attempts] == [
        (f"127.0.0.1:{first.sockaddr[1]}", errno.ECONNREFUSED),
        (f"127.0.0.1:{second.sockaddr[1]}", errno.ECONNREFUSED),
    ]
    assert all(0 <= attempt.elapsed < PATIENCE for attempt in error.attempts)
    assert error.errno == errno.ECONNREFUSED
    assert error.phase == "connect"
    assert "host.example:80" in str(error)
    assert "ECONNREFUSED" in str(error)
    assert isinstance(error.__cause__, ConnectionRefusedError)


# --- one address -------------------------------------------------------------------------------------------


class Failing(socket.socket):
    """A socket whose attempt to connect fails with a given number, at once or after a while."""

    number = 0
    at_once = True

    def connect_ex(self, address: Any) -> int:
        if self.at_once:
            return self.number
        super().connect_ex(address)
        return errno.EINPROGRESS

    def getsockopt(self, *arguments: Any) -> Any:
        return self.number if arguments[1] == socket.SO_ERROR else super().getsockopt(*arguments)


NUMBERS = ["ENOBUFS", "EADDRNOTAVAIL", "EACCES", "EPERM", "ENETUNREACH", "EHOSTUNREACH", "ECONNREFUSED", "ETIMEDOUT",
           "EINVAL", "ENETDOWN", "ECONNABORTED", "ECONNRESET", "EADDRINUSE"]  # fmt: skip


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "later"])
@pytest.mark.parametrize("name", NUMBERS)
def test_whatever_the_system_says_is_a_connect_error(
    backend: SyncBackend, monkeypatch: pytest.MonkeyPatch, name: str, at_once: bool
) -> None:
    """D05, row by row: unreachable is ENETUNREACH or EHOSTUNREACH, prohibited is EACCES or EPERM."""
    number = getattr(errno, name)
    monkeypatch.setattr(Failing, "number", number)
    monkeypatch.setattr(Failing, "at_once", at_once)
    with Peer(quiet) as peer:
        before = open_fds()
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", Failing)
            with pytest.raises(ConnectError) as caught:
                backend.connect_tcp("127.0.0.1", peer.port, timeout=30)
        assert len(open_fds() - before) <= 1, "only the peer's end may be left"
    assert caught.value.errno == number
    assert [attempt.errno for attempt in caught.value.attempts] == [number]
    assert name in str(caught.value)


def test_too_many_open_files_is_a_connect_error_and_passes(backend: SyncBackend) -> None:
    """D05, K02."""
    with Peer(quiet) as peer:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with socket.socket() as probe:
            lowest_free = probe.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            for host, phase in (("127.0.0.1", "connect"), ("localhost", "connect"), ("host.example", "dns")):
                with pytest.raises(ConnectError) as caught:
                    backend.connect_tcp(host, peer.port, timeout=30)
                assert caught.value.errno == errno.EMFILE
                assert caught.value.phase == phase
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        backend.connect_tcp("127.0.0.1", peer.port, timeout=30).close()


def test_a_socket_that_connected_to_itself_is_no_connection(refusing_address: RefusingPorts) -> None:
    """D08."""
    address = refusing_address()
    # With our end bound to the very port, the simultaneous open is certain rather than rare.
    dial = Dial(
        "127.0.0.1",
        address.sockaddr[1],
        limit=Limit(30, monotonic, "connect"),
        clock=monotonic,
        options=[(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)],  # the fixture holds it
        resolver=SYSTEM_RESOLVER,
    )
    dial._local_address = address
    with pytest.raises(ConnectError) as caught:
        connect(dial)
    assert caught.value.errno == errno.ECONNREFUSED


@pytest.mark.skipif(not HAS_IPV6, reason="needs IPv6 on loopback")
@pytest.mark.parametrize("host", ["::1", "0:0:0:0:0:0:0:1"])
def test_an_ipv6_address_needs_no_resolver(host: str) -> None:
    resolver = Table()
    backend = SyncBackend(resolver=resolver)
    with (
        Peer(echo, family=socket.AF_INET6) as peer,
        backend.connect_tcp(host, peer.port, timeout=30) as stream,
    ):
        stream.write(b"x")
        assert stream.read() == b"x"
        assert [span.name for span in stream.get_extra_info("timings")] == ["tcp"]
    assert resolver.calls == []


def test_an_ip_address_needs_no_thread(backend: SyncBackend) -> None:
    with Peer(quiet) as peer:
        before = {thread.name for thread in threading.enumerate()}
        backend.connect_tcp("127.0.0.1", peer.port, timeout=30).close()
        names = {thread.name for thread in threading.enumerate()} - before
    assert "lamina-resolver" not in names


# --- arguments ---------------------------------------------------------------------------------------------


def test_addresses_that_fail_at_once_are_tried_within_the_limit(refusing_address: RefusingPorts) -> None:
    address = refusing_address()
    many = [
        address._replace(sockaddr=(f"127.0.{n >> 8}.{n & 255}", address.sockaddr[1])) for n in range(20_000)
    ]
    start = monotonic()
    with pytest.raises(ConnectTimeout) as caught:
        SyncBackend(resolver=Table(v4=many)).connect_tcp("host.example", 80, timeout=0.15)
    assert monotonic() - start < PATIENCE
    assert len(caught.value.attempts) < 20_000
    assert len(str(caught.value)) < 1500


BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"host": "a\0b"}, ArgumentValueError),
    ({"host": "127.0.0.1:80"}, ArgumentValueError),
    ({"host": b"host"}, ArgumentTypeError),
    ({"port": 0}, ArgumentValueError),
    ({"port": "80"}, ArgumentTypeError),
    ({"timeout": -1}, ArgumentValueError),
    ({"timeout": "1"}, ArgumentTypeError),
    ({"local_address": "host.example"}, ArgumentValueError),
    ({"socket_options": [(1, 2, 3, 4)]}, ArgumentTypeError),
    ({"socket_options": [(1, 2, 2**80)]}, ArgumentValueError),
]


@pytest.mark.parametrize(("changed", "error"), BAD_ARGUMENTS)
def test_what_makes_no_sense_is_refused_before_anything_is_tried(
    changed: dict[str, Any], error: type[Exception]
) -> None:
    """One row of each kind: the interfaces' own tests have them all."""
    resolver = Table()
    arguments: dict[str, Any] = {"host": "host.example", "port": 80, "timeout": 5} | changed
    with pytest.raises(error):
        SyncBackend(resolver=resolver).connect_tcp(**arguments)
    assert resolver.calls == []


def test_a_limit_of_zero_tries_nothing() -> None:
    """F02."""
    resolver = Table()
    with pytest.raises(ConnectTimeout):
        SyncBackend(resolver=resolver).connect_tcp("host.example", 80, timeout=0)
    assert resolver.calls == []


def test_a_deadline_that_has_passed_tries_nothing() -> None:
    """F02."""
    resolver = Table()
    deadline = open_deadline(0, monotonic)
    try:
        with pytest.raises(DeadlineExceeded):
            SyncBackend(resolver=resolver).connect_tcp("host.example", 80)
    finally:
        close_deadline(deadline)
    assert resolver.calls == []


def test_no_limit_and_an_infinite_one_are_the_same(backend: SyncBackend) -> None:
    """F02."""
    with Peer(quiet) as peer:
        for limit in (None, float("inf"), 10**9):
            backend.connect_tcp("127.0.0.1", peer.port, timeout=limit).close()


def test_an_ambient_deadline_ends_the_attempt(backend: SyncBackend) -> None:
    with BlackHole() as hole:
        for this in tries():
            deadline = open_deadline(0.1, monotonic)
            try:
                with pytest.raises(DeadlineExceeded) as caught:
                    backend.connect_tcp("127.0.0.1", hole.port, timeout=30)
            finally:
                close_deadline(deadline)
            assert caught.value.phase == "connect"
            with this:  # it may have passed before the attempt began
                assert [attempt.address for attempt in caught.value.attempts] == [f"127.0.0.1:{hole.port}"]


# --- options -----------------------------------------------------------------------------------------------


def test_the_default_options_are_set(backend: SyncBackend) -> None:
    with Peer(quiet) as peer, backend.connect_tcp("127.0.0.1", peer.port, timeout=30) as stream:
        sock = stream.get_extra_info("socket")
        for level, name, *value in default_socket_options(socket):
            assert [sock.getsockopt(level, name)] == value


def test_keep_alive_can_be_turned_off() -> None:
    with (
        Peer(quiet) as peer,
        SyncBackend(keep_alive=False).connect_tcp("127.0.0.1", peer.port, timeout=30) as stream,
    ):
        sock = stream.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_options_are_set_before_connecting_and_the_callers_come_last(
    backend: SyncBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []

    class Watched(socket.socket):
        def setsockopt(self, *arguments: Any) -> None:
            steps.append(arguments)
            super().setsockopt(*arguments)

        def bind(self, address: Any) -> None:
            steps.append("bind")
            super().bind(address)

        def connect_ex(self, address: Any) -> int:
            steps.append("connect")
            return super().connect_ex(address)

    option = (socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    with Peer(quiet) as peer:
        monkeypatch.setattr(socket, "socket", Watched)
        stream = backend.connect_tcp(
            "127.0.0.1", peer.port, timeout=30, local_address="127.0.0.1", socket_options=[option]
        )
        monkeypatch.undo()
        stream.close()
    assert steps == [*default_socket_options(socket), option, "bind", "connect"]


def test_an_option_that_the_system_refuses_is_a_connect_error_and_frees_the_socket(
    backend: SyncBackend,
) -> None:
    """D06: at once, while the error and its traceback are still held."""
    with Peer(quiet) as peer:
        before = open_fds()
        with pytest.raises(ConnectError) as caught:
            backend.connect_tcp(
                "127.0.0.1", peer.port, timeout=30, socket_options=[(socket.SOL_SOCKET, 9999, 1)]
            )
        assert open_fds() == before
    assert caught.value.errno == errno.ENOPROTOOPT


def test_a_local_address_is_used(backend: SyncBackend) -> None:
    with Peer(quiet) as peer:
        stream = backend.connect_tcp("127.0.0.1", peer.port, timeout=30, local_address="127.0.0.9")
        stream.close()
        assert stream.get_extra_info("client_addr")[0] == "127.0.0.9"


def test_a_local_address_that_is_not_ours_is_a_connect_error_and_frees_the_socket(
    backend: SyncBackend,
) -> None:
    """D06."""
    with Peer(quiet) as peer:
        before = open_fds()
        with pytest.raises(ConnectError) as caught:
            backend.connect_tcp("127.0.0.1", peer.port, timeout=30, local_address="192.0.2.1")
        assert open_fds() == before
    assert caught.value.errno == errno.EADDRNOTAVAIL


def test_a_local_address_chooses_the_family() -> None:
    with Peer(quiet) as peer:
        resolver = Table(v6=[ResolvedAddress(socket.AF_INET6, ("::1", peer.port, 0, 0))], v4=[peer.address])
        backend = SyncBackend(resolver=resolver)
        backend.connect_tcp("host.example", 80, timeout=30, local_address="127.0.0.1").close()
        assert [family for _, _, family in resolver.calls] == [socket.AF_INET]


# --- sleeping ----------------------------------------------------------------------------------------------


def test_sleeping_takes_its_time(backend: SyncBackend) -> None:
    start = monotonic()
    backend.sleep(0.02)
    assert monotonic() - start >= 0.02
    backend.sleep(0)


@pytest.mark.parametrize("seconds", [-1, float("nan")])
def test_sleeping_for_no_time_that_there_is_is_refused(backend: SyncBackend, seconds: float) -> None:
    with pytest.raises(ArgumentValueError, match="seconds"):
        backend.sleep(seconds)


@pytest.mark.parametrize("seconds", [30.0, float("inf")])
def test_a_deadline_ends_a_sleep(backend: SyncBackend, seconds: float) -> None:
    deadline = open_deadline(0.02, monotonic)
    try:
        with pytest.raises(DeadlineExceeded):
            backend.sleep(seconds)
        with pytest.raises(DeadlineExceeded):
            backend.sleep(0)
    finally:
        close_deadline(deadline)
