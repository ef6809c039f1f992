"""What every test of this package is checked for: no socket is left, without help of the garbage collector."""

from __future__ import annotations

import gc
import socket
import sys
from typing import TYPE_CHECKING

import pytest

from lamina_sync_backend import SyncBackend, SyncStream
from sync_peers import PATIENCE, RefusingPorts, open_fds

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _no_socket_is_left() -> Iterator[None]:
    if not sys.platform.startswith("linux"):
        yield
        return
    before = open_fds()
    gc.disable()  # so that no cycle is found, and no descriptor freed, by luck
    try:
        yield
        assert open_fds() <= before, "sockets were left open"
    finally:
        gc.enable()


@pytest.fixture
def backend() -> SyncBackend:
    return SyncBackend()


@pytest.fixture
def refusing_address() -> Iterator[RefusingPorts]:
    """Call it for an address that refuses until the test is over."""
    ports = RefusingPorts()
    try:
        yield ports
    finally:
        ports.close()


@pytest.fixture
def pair() -> Iterator[tuple[SyncStream, socket.socket]]:
    """A stream, and the plain socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    with SyncStream(ours) as stream, theirs:
        yield stream, theirs
