"""Waiting for sockets, with `poll` and without."""

from __future__ import annotations

import errno
import math
import select
import socket
import sys
from time import monotonic

import pytest

from lamina_interfaces import ConnectError, ConnectTimeout, Limit, ReadError, ReadTimeout, WriteTimeout
from lamina_sync_backend import SyncBackend, SyncStream
from lamina_sync_backend._transport import READING
from lamina_sync_backend._waiting import READ, WRITE, SelectPoll, new_poll, wait
from sync_peers import (
    BlackHole,
    Peer,
    RefusingPorts,
    Table,
    client_context,
    echo,
    in_thread,
    tls_echo,
    until,
)


@pytest.fixture(params=["poll", "select"], autouse=True)
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "select":
        monkeypatch.delattr(select, "poll")
        assert isinstance(new_poll(), SelectPoll)


def limit(seconds: float | None = None) -> Limit:
    return Limit(seconds, monotonic, "read")


def test_what_is_ready_is_told() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poll = new_poll()
        poll.register(ours.fileno(), READ | WRITE)
        assert wait(poll, limit()) == [(ours.fileno(), WRITE)]
        theirs.send(b"x")
        assert wait(poll, limit()) == [(ours.fileno(), READ | WRITE)]
        poll.unregister(ours.fileno())
        assert wait(poll, limit(), until=monotonic()) == []


@pytest.mark.parametrize("seconds", [1e30, sys.float_info.max, math.inf])
def test_a_limit_may_be_as_long_as_one_likes(seconds: float) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poll = new_poll()
        poll.register(ours.fileno(), READ)
        theirs.send(b"x")
        assert wait(poll, limit(seconds))


def test_what_is_ready_counts_even_when_the_time_is_up() -> None:
    """A slow caller is not a slow peer."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poll = new_poll()
        poll.register(ours.fileno(), READ)
        theirs.send(b"x")
        assert wait(poll, limit(0))


def test_time_runs_out_but_never_early() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        poll = new_poll()
        poll.register(ours.fileno(), READ)
        for seconds in (0.0, 0.0004, 0.003, 0.02):
            start = monotonic()
            with pytest.raises(ReadTimeout):
                wait(poll, limit(seconds))
            assert monotonic() - start >= seconds
            start = monotonic()
            assert wait(poll, limit(60), until=start + seconds) == []
            assert monotonic() - start >= seconds


def test_the_last_fraction_of_a_millisecond_is_not_spun_through() -> None:
    class Counting:
        def __init__(self) -> None:
            self.inner = new_poll()
            self.register, self.unregister = self.inner.register, self.inner.unregister
            self.calls = 0

        def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
            self.calls += 1
            return self.inner.poll(timeout)

    poll = Counting()
    with pytest.raises(ReadTimeout):
        wait(poll, limit(0.0309))
    assert poll.calls <= 3


def test_a_stream_works() -> None:
    with Peer(echo) as peer, SyncBackend().connect_tcp("127.0.0.1", peer.port, timeout=30) as stream:
        data = bytes(3_000_000)
        writer = in_thread(lambda: stream.write(data, timeout=30))
        received = 0
        while received < len(data):
            received += len(stream.read(timeout=30))
        writer.result()
        assert stream.get_extra_info("is_readable") is False
        with pytest.raises(ReadTimeout):
            stream.read(timeout=0.01)


def test_a_tls_stream_works() -> None:
    with Peer(tls_echo()) as peer, SyncBackend().connect_tcp("127.0.0.1", peer.port, timeout=30) as stream:
        stream.start_tls(client_context(), "server.example", timeout=30)
        assert stream.write_until_readable(b"x", timeout=30) == 1
        assert stream.read(timeout=30) == b"x"


def test_closing_wakes_a_reader() -> None:
    ours, theirs = socket.socketpair()
    stream = SyncStream(ours)
    with theirs:
        reader = in_thread(stream.read)
        until(lambda: stream._transport.users & READING)
        stream.close()
        with pytest.raises(ReadError, match="closed"):
            reader.result()


def test_a_write_that_nobody_takes_times_out() -> None:
    ours, theirs = socket.socketpair()
    with SyncStream(ours) as stream, theirs, pytest.raises(WriteTimeout):
        stream.write(bytes(10_000_000), timeout=0.02)


def test_connecting_works_fails_and_times_out(refusing_address: RefusingPorts) -> None:
    with Peer(echo) as peer, BlackHole() as hole:
        backend = SyncBackend(resolver=Table(v4=[hole.address, refusing_address(), peer.address]))
        backend.connect_tcp("host.example", 80, timeout=30).close()
        with pytest.raises(ConnectError) as caught:
            backend.connect_tcp("127.0.0.1", refusing_address().sockaddr[1], timeout=30)
        assert caught.value.errno == errno.ECONNREFUSED
        with pytest.raises(ConnectTimeout):
            backend.connect_tcp("127.0.0.1", hole.port, timeout=0.05)
