"""What was written before a graceful close arrives, though the peer had sent something that nobody has read."""

from __future__ import annotations

import select
import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from readiness_peers import ALL_WORLDS, PATIENCE, Peer, client_context, tls_peer, until

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left")]

LAST_WORDS = bytes(160 * 1024)
"""More than the peer's system takes, and less than what ours does."""


@pytest.fixture(params=ALL_WORLDS)
def world(request: pytest.FixtureRequest) -> tuple[Any, str, dict[str, Any]]:
    """Of asyncio too."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return ALL_WORLDS[request.param]


def _read_late(sent: threading.Event, go_on: threading.Event, ends: list[object]) -> Callable[[Any], None]:
    def script(connection: Any) -> None:
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

    return script


@pytest.mark.parametrize("layer", ["plain", "TLS"])
async def test_what_was_written_last_arrives_though_something_is_unread(backend: Any, layer: str) -> None:
    ends: list[object] = []
    sent, go_on = threading.Event(), threading.Event()
    script = _read_late(sent, go_on, ends)

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        connection.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # what comes after our end breaks it anyway
        (tls_peer(script) if layer == "TLS" else script)(connection)

    with Peer(serve) as peer:
        options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 512 * 1024)]
        stream = await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE, socket_options=options)
        if layer == "TLS":
            await stream.start_tls(client_context(), "server.example", timeout=PATIENCE)
        await stream.write(LAST_WORDS, timeout=PATIENCE)
        await until(sent.is_set)
        assert select.select([stream.get_extra_info("socket")], [], [], PATIENCE)[0]
        await stream.aclose()
        go_on.set()
        await until(lambda: peer.ended)
    assert ends == [len(LAST_WORDS)]


async def test_closing_does_not_wait_for_a_peer_that_sends_without_end(backend: Any) -> None:
    def send_on(connection: socket.socket) -> None:
        while True:
            connection.sendall(bytes(1 << 16))

    with Peer(send_on) as peer:
        stream = await backend.connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE)
        assert await stream.read(timeout=PATIENCE)
        await stream.aclose()
        await until(lambda: peer.ended)
