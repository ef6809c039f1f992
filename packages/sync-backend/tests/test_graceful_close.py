"""What was written before a graceful close arrives, though the peer had sent something that nobody has read."""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import ReadError, WriteTimeout
from lamina_sync_backend import SyncBackend
from sync_peers import PATIENCE, Peer, client_context, server_context, until

if TYPE_CHECKING:
    from lamina_sync_backend import SyncStream

LAST_WORDS = bytes(160 * 1024)
"""More than the peer's system takes, and less than what ours does."""

MUCH = bytes(16 * 1024 * 1024)


def connect(peer: Peer, layer: str) -> SyncStream:
    options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 512 * 1024)]
    stream = SyncBackend().connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE, socket_options=options)
    if layer == "TLS":
        stream.start_tls(client_context(), "server.example", timeout=PATIENCE)
    return stream


@pytest.mark.parametrize("layer", ["plain", "TLS"])
def test_what_was_written_last_arrives_though_something_is_unread(layer: str) -> None:
    ends: list[object] = []
    sent, go_on = threading.Event(), threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        connection.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # what comes after our end breaks it anyway
        if layer == "plain":
            read_late(connection)
        else:
            with server_context("server.example").wrap_socket(connection, server_side=True) as tls:
                read_late(tls)

    def read_late(connection: Any) -> None:
        connection.sendall(b"unread")
        sent.set()
        go_on.wait(PATIENCE)
        total = 0
        try:
            while data := connection.recv(1 << 16):
                total += len(data)
        except OSError as exc:
            ends.append(exc)
        ends.append(total)

    with Peer(serve) as peer:
        stream = connect(peer, layer)
        stream.write(LAST_WORDS, timeout=PATIENCE)
        assert sent.wait(PATIENCE)
        assert select.select([stream.get_extra_info("socket")], [], [], PATIENCE)[0]
        stream.close()
        go_on.set()
        until(lambda: bool(ends))
    assert ends == [len(LAST_WORDS)]


def test_closing_does_not_wait_for_a_peer_that_sends_without_end() -> None:
    ended = threading.Event()

    def send_on(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(bytes(1 << 16))
        finally:
            ended.set()

    with Peer(send_on) as peer:
        stream = connect(peer, "plain")
        assert stream.read(timeout=PATIENCE)
        stream.close()
        assert ended.wait(PATIENCE)


def test_a_peer_that_makes_us_answer_but_does_not_read_is_cut_off() -> None:
    go_on = threading.Event()

    def deaf(connection: socket.socket) -> None:
        with server_context("server.example").wrap_socket(connection, server_side=True):
            go_on.wait(PATIENCE)

    with Peer(deaf) as peer:
        stream = connect(peer, "TLS")
        with pytest.raises(WriteTimeout):
            stream.write(MUCH, timeout=0.05)
        assert stream._tls is not None
        for _ in range(17):
            stream._tls.engine.write(bytes(64 * 1024))  # as if they were answers
        with pytest.raises(ReadError, match="wants answers, and does not read them"):
            stream.read(timeout=PATIENCE)
        stream.abort()
        go_on.set()
