"""Unix domain sockets."""

from __future__ import annotations

import errno
import os
import socket
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    UnsupportedProtocol,
    close_deadline,
    open_deadline,
)
from sync_peers import client_context, echo, in_thread, open_fds, tls_echo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from lamina_sync_backend import SyncBackend


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "peer.sock")


@pytest.fixture
def listener(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen(8)
        yield sock


def serve_one(listener: socket.socket, script: Any) -> None:
    connection, _ = listener.accept()
    with connection:
        script(connection)


def test_a_unix_socket_carries_bytes_and_tells_its_facts(
    backend: SyncBackend, listener: socket.socket, path: str
) -> None:
    peer = in_thread(lambda: serve_one(listener, echo))
    with backend.connect_unix_socket(path, timeout=30) as stream:
        stream.write(b"x")
        assert stream.read(timeout=30) == b"x"
        assert stream.get_extra_info("server_addr") == path
        assert [span.name for span in stream.get_extra_info("timings")] == ["unix"]
        assert path in repr(stream)
        assert not stream.get_extra_info("socket").get_inheritable()
    peer.result()


@pytest.mark.skipif(sys.platform != "linux", reason="abstract names are Linux's")
def test_an_abstract_name_is_connected_to(backend: SyncBackend) -> None:
    name = f"\0lamina-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        peer = in_thread(lambda: serve_one(listener, echo))
        with backend.connect_unix_socket(name, timeout=30) as stream:
            stream.write(b"x")
            assert stream.read(timeout=30) == b"x"
            assert f"@{name[1:]}" in repr(stream)
        peer.result()


def test_tls_runs_over_a_unix_socket(backend: SyncBackend, listener: socket.socket, path: str) -> None:
    peer = in_thread(lambda: serve_one(listener, tls_echo()))
    with backend.connect_unix_socket(path, timeout=30) as stream:
        stream.start_tls(client_context(), "server.example", timeout=30)
        stream.write(b"x")
        assert stream.read(timeout=30) == b"x"
    peer.result()


def test_options_are_set(backend: SyncBackend, listener: socket.socket, path: str) -> None:
    option = (socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with backend.connect_unix_socket(path, timeout=30, socket_options=[option]) as stream:
        assert stream.get_extra_info("socket").getsockopt(*option[:2]) == 1


@pytest.mark.parametrize(("name", "number"), [("peer.sock", errno.ENOENT), ("x" * 200, errno.ENAMETOOLONG)])
def test_a_path_without_a_listener_is_a_connect_error(
    backend: SyncBackend, tmp_path: Path, name: str, number: int
) -> None:
    """D07: and the descriptor is free at once, while the error is still held."""
    path = tmp_path / name
    before = open_fds()
    with pytest.raises(ConnectError) as caught:
        backend.connect_unix_socket(str(path), timeout=30)
    assert open_fds() == before
    assert caught.value.errno == number
    assert caught.value.phase == "connect"
    assert [(attempt.address, attempt.errno) for attempt in caught.value.attempts] == [(str(path), number)]
    assert str(path) in str(caught.value)


def test_permission_denied_is_a_connect_error(backend: SyncBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """D07: made up, since root, who may well run this, has every permission."""

    class Denied(socket.socket):
        def connect(self, address: Any) -> None:
            raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "socket", Denied)
    before = open_fds()
    with pytest.raises(ConnectError) as caught:
        backend.connect_unix_socket("/run/peer.sock", timeout=30)
    assert open_fds() == before
    assert caught.value.errno == errno.EACCES


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full queue refuses")
@pytest.mark.parametrize("ambient", [False, True], ids=["time-out", "deadline"])
def test_a_full_queue_is_waited_for_within_the_limit(backend: SyncBackend, path: str, ambient: bool) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as filler:
            filler.connect(path)
            deadline = open_deadline(0.1 if ambient else None, monotonic)
            try:
                with pytest.raises(DeadlineExceeded if ambient else ConnectTimeout):
                    backend.connect_unix_socket(path, timeout=None if ambient else 0.1)
            finally:
                close_deadline(deadline)
            waiting = in_thread(lambda: backend.connect_unix_socket(path, timeout=30))
            listener.accept()[0].close()
            waiting.result().close()


def test_a_limit_of_zero_tries_nothing(backend: SyncBackend, listener: socket.socket, path: str) -> None:
    """F02."""
    with pytest.raises(ConnectTimeout):
        backend.connect_unix_socket(path, timeout=0)
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()


@pytest.mark.parametrize(("path", "error"), [("a\0b", ArgumentValueError), (b"path", ArgumentTypeError)])
def test_what_is_no_path_is_the_callers_mistake(
    backend: SyncBackend, path: Any, error: type[Exception]
) -> None:
    with pytest.raises(error, match="path"):
        backend.connect_unix_socket(path)


def test_a_system_without_unix_sockets_says_so(backend: SyncBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(UnsupportedProtocol):
        backend.connect_unix_socket("/run/peer.sock")
