"""For tests of the whole stack: certificates, servers that misbehave, and what is open. Nothing leaves loopback."""

from __future__ import annotations

import os
import socket
import ssl
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import pytest
import trustme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self


def missing(peer: str) -> NoReturn:
    """Skip what needs a peer that is not installed; where peers are required, that is a failure."""
    if os.environ.get("LAMINA_REQUIRE_PEERS") == "1":
        pytest.fail(f"{peer} is not installed, and LAMINA_REQUIRE_PEERS is set")
    pytest.skip(f"{peer} is not installed")


# --- time --------------------------------------------------------------------------------------------------


def tries_in_time(shortest: float, longest: float) -> Iterator[None]:
    """What is done in this loop takes so many seconds, at least and at most.

    A busy machine may be late, and then it is tried again. What is late five times has another reason.
    """
    taken: list[float] = []
    for _ in range(5):
        start = time.monotonic()
        yield
        taken.append(time.monotonic() - start)
        assert taken[-1] >= shortest, taken
        if taken[-1] <= longest:
            return
    pytest.fail(f"it took {taken} seconds, and not {longest} at most")


# --- TLS ---------------------------------------------------------------------------------------------------


class Certificates(NamedTuple):
    """A CA, and a server's certificate from it.

    Attributes:
        client: a context that trusts the CA.
        server: a context that shows the certificate, for `localhost` and 127.0.0.1.
        authority: the CA's own certificate, as a file.
        certificate, key: the server's, as files.
    """

    client: ssl.SSLContext
    server: ssl.SSLContext
    authority: Path
    certificate: Path
    key: Path

    def pair(self, folder: Path) -> Path:
        """A file in `folder` with the server's certificate and its key, as some servers want them."""
        path = folder / "pair.pem"
        path.write_bytes(self.certificate.read_bytes() + self.key.read_bytes())
        return path


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    folder = tmp_path_factory.mktemp("certificates")
    ca = trustme.CA()
    issued = ca.issue_cert("localhost", "127.0.0.1", "::1")
    authority, certificate, key = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    ca.cert_pem.write_to_path(authority)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(certificate, append=True)
    issued.private_key_pem.write_to_path(key)
    client = ssl.create_default_context()
    client.set_alpn_protocols(["http/1.1"])
    ca.configure_trust(client)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(server)
    return Certificates(client, server, authority, certificate, key)


# --- servers that misbehave --------------------------------------------------------------------------------


class FaultServer:
    """Gives each connection to `behave` in a thread of its own. What it raises is forgotten: the peer is gone.

    Args:
        behave: what to do on each connection.
        context: for TLS.
        path: of a unix socket to listen on, and not on 127.0.0.1.

    Attributes:
        port: where it listens, on 127.0.0.1.
        accepted: how many connections it has had.
        live: how many it has; `peak`, at most.
    """

    def __init__(
        self,
        behave: Callable[[socket.socket], None],
        *,
        context: ssl.SSLContext | None = None,
        path: str | None = None,
    ) -> None:
        self._behave = behave
        self._context = context
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.accepted = self.live = self.peak = 0
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        else:
            self._listener = socket.create_server(path, family=socket.AF_UNIX)
        self.port: int = self._listener.getsockname()[1] if path is None else 0
        self.url = f"{'http' if context is None else 'https'}://127.0.0.1:{self.port}"
        self._spawn(self._accept)

    def _spawn(self, function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._sockets.add(sock)
                self.accepted += 1
                self.live += 1
                self.peak = max(self.peak, self.live)
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        stream = sock
        try:
            if self._context is not None:
                stream = self._context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
                with self._lock:
                    self._sockets.discard(sock)
                    self._sockets.add(stream)
                stream.do_handshake()
            self._behave(stream)
        except (OSError, EOFError, ValueError):
            pass
        finally:
            with self._lock:
                self._sockets.discard(stream)
                self.live -= 1
            stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for sock in sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive(), "the server's thread hangs"


@pytest.fixture
def fault_server() -> Iterator[Callable[..., FaultServer]]:
    """Call it with what to do on each connection."""
    servers: list[FaultServer] = []

    def start(behave: Callable[[socket.socket], None], **arguments: Any) -> FaultServer:
        servers.append(FaultServer(behave, **arguments))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.stop()


def read_head(sock: socket.socket) -> bytes:
    """The head of a request without a body. For servers."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = sock.recv(65536)
        if not piece:
            raise EOFError
        data += piece
    return data


def response(body: bytes, headers: str = "") -> bytes:
    """A response, for servers."""
    head = textwrap.dedent(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n{headers}\r\n")
    return head.encode() + body


@pytest.fixture
def refusing_port() -> Iterator[int]:
    """Nobody listens there, and it is taken: it becomes neither another server's nor, by chance, the client's own."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        yield port


# --- what is open ------------------------------------------------------------------------------------------


def open_sockets() -> set[str]:
    """The sockets that this process has open."""
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        pytest.skip("the system does not tell which descriptors are open")
    names = set()
    for entry in os.listdir(folder):
        try:
            names.add(os.readlink(f"{folder}/{entry}"))
        except OSError:
            continue
    return {name for name in names if name.startswith("socket:")}


def assert_no_sockets_since(before: set[str]) -> None:
    """No socket is open that was not before. The threads of test servers have some seconds to close theirs."""
    end = time.monotonic() + 10.0
    while (left := open_sockets() - before) and time.monotonic() < end:
        threading.Event().wait(0.01)
    assert not left, left


@pytest.fixture
def no_socket_left() -> Iterator[None]:
    """Fails a test after which more sockets are open than before."""
    before = open_sockets()
    yield
    assert_no_sockets_since(before)
