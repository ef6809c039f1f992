"""A small HTTP/1.1 server on loopback, for the demonstration and the tests: standard library, one thread a connection.

It does what a path asks for, the odd things too: an answer before the request is read, one that never comes, one that
is no HTTP. `ROUTES` is the list. It counts connections, so that one can see how many a pool has opened.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

PIECE = bytes(64 * 1024)

TLS_HANDSHAKE = b"\x16"
"""The first byte of a TLS connection (RFC 8446, section 5.1). A line, which HTTP begins with, may never come of it."""


class Received(NamedTuple):
    """The head of a request.

    Attributes:
        method: `"GET"`.
        target: path and query.
        headers: by lower-case name; values of a repeated one are joined by commas.
    """

    method: str
    target: str
    headers: dict[str, str]


class Peer:
    """One connection, as a route sees it."""

    def __init__(self, server: DemoServer, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self._file = sock.makefile("rb")

    def receive_head(self) -> Received | None:
        """The next request, or `None` once the client has closed, or has turned out to speak TLS."""
        if self._file.peek(1)[:1] == TLS_HANDSHAKE:
            self.answer("400 Bad Request", b"this is plain HTTP\n", "Connection: close")
            return None
        line = self._file.readline(65536).decode("latin-1").split()
        if len(line) != 3:
            return None
        headers: dict[str, str] = {}
        while (field := self._file.readline(65536)) not in (b"\r\n", b"\n", b""):
            name, _, value = field.decode("latin-1").partition(":")
            key = name.strip().lower()
            headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
        return Received(line[0], line[1], headers)

    def body(self, request: Received) -> Iterator[bytes]:
        """The body of a request, piece by piece."""
        if request.headers.get("transfer-encoding") == "chunked":
            while size := int(self._file.readline().split(b";")[0], 16):
                yield self._file.read(size)
                self._file.readline()
            self._file.readline()
            return
        left = int(request.headers.get("content-length", "0"))
        while left and (piece := self._file.read(min(left, len(PIECE)))):
            left -= len(piece)
            yield piece

    def send(self, *pieces: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(b"".join(pieces))

    def answer(self, status: str, body: bytes = b"", *headers: str) -> None:
        """Send a whole response; each header as `Name: value`."""
        lines = [f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]
        self.send("\r\n".join(lines).encode("latin-1"), body)

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self.sock.close()


def _hello(peer: Peer, request: Received, rest: str) -> bool:
    del rest
    for _ in peer.body(request):
        pass
    peer.answer("200 OK", b"" if request.method == "HEAD" else b"Hello, world!\n", "Content-Type: text/plain")
    return True


def _echo(peer: Peer, request: Received, rest: str) -> bool:
    """What came: method, target, headers, and the length and digest of the body."""
    del rest
    size, digest = 0, hashlib.sha256()
    for piece in peer.body(request):
        size += len(piece)
        digest.update(piece)
    lines = [
        f"{request.method} {request.target}",
        *(f"{name}: {value}" for name, value in request.headers.items()),
    ]
    peer.answer("200 OK", "\n".join([*lines, "", f"{size} {digest.hexdigest()}", ""]).encode("latin-1"))
    return True


def _status(peer: Peer, request: Received, rest: str) -> bool:
    del request
    peer.answer(f"{rest} Requested", f"status {rest}\n".encode())
    return True


def _number(peer: Peer, request: Received, rest: str) -> bool:
    """`/number/17` is answered with `17`."""
    del request
    peer.answer("200 OK", rest.encode())
    return True


def _large(peer: Peer, request: Received, rest: str) -> bool:
    """So many bytes, of declared length."""
    del request
    left = int(rest)
    peer.send(f"HTTP/1.1 200 OK\r\nContent-Length: {left}\r\n\r\n".encode())
    while left:
        peer.send(PIECE[:left])
        left -= min(left, len(PIECE))
    return True


def _chunked(peer: Peer, request: Received, rest: str) -> bool:
    """So many chunks of 64 KiB."""
    del request
    peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    for _ in range(int(rest)):
        peer.send(b"%x\r\n" % len(PIECE), PIECE, b"\r\n")
    peer.send(b"0\r\n\r\n")
    return True


def _slow(peer: Peer, request: Received, rest: str) -> bool:
    """Answered after so many milliseconds."""
    del request
    time.sleep(int(rest) / 1000)
    peer.answer("200 OK", b"at last\n")
    return True


def _silent(peer: Peer, request: Received, rest: str) -> bool:
    """Never answered; over when the client or the server closes."""
    del request, rest
    peer.server.stopping.wait()
    return False


def _stalled(peer: Peer, request: Received, rest: str) -> bool:
    """The first half of a body, and then silence."""
    del request, rest
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf of it")
    peer.server.stopping.wait()
    return False


def _cut(peer: Peer, request: Received, rest: str) -> bool:
    """A body that ends too early."""
    del request, rest
    peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\nhalf of it")
    return False


def _garbage(peer: Peer, request: Received, rest: str) -> bool:
    """No HTTP."""
    del request, rest
    peer.send(b"SSH-2.0-OpenSSH_9.2\r\n")
    return False


def _refused(peer: Peer, request: Received, rest: str) -> bool:
    """413 before the body is read, which then is not read for a while; the connection stays open."""
    del request, rest
    peer.answer("413 Content Too Large", b"too large\n", "Connection: close")
    peer.server.stopping.wait(1.0)
    return False


def _then_close(peer: Peer, request: Received, rest: str) -> bool:
    """An answer that promises another one, after which the server closes all the same."""
    _hello(peer, request, rest)
    return False


def _escape(peer: Peer, request: Received, rest: str) -> bool:
    """Headers that would repaint the terminal, or are not ASCII."""
    del request, rest
    peer.answer("200 OK", b"fine\n", "X-Title: \x9b31mred", "X-Name: caf\xe9")
    return True


ROUTES: dict[str, Callable[[Peer, Received, str], bool]] = {
    "": _hello,
    "chunked": _chunked,
    "cut": _cut,
    "echo": _echo,
    "escape": _escape,
    "garbage": _garbage,
    "large": _large,
    "number": _number,
    "refused": _refused,
    "silent": _silent,
    "slow": _slow,
    "stalled": _stalled,
    "status": _status,
    "then-close": _then_close,
}
"""By the first segment of the path. Each gets the rest of it, and returns whether the connection goes on."""


class DemoServer:
    """The server. A context manager; at its end no thread and no socket is left.

    Args:
        ssl_context: for TLS; without it, plain TCP.
        path: of a unix socket to listen on, instead of a port that the system chooses on 127.0.0.1.

    Attributes:
        port: it listens on 127.0.0.1 there.
        connections: how many it has accepted.
        most_at_once: how many were open at the same time, at most.
        stopping: set when it ends, for routes that wait.
    """

    def __init__(self, ssl_context: ssl.SSLContext | None = None, path: str | None = None) -> None:
        self._ssl_context = ssl_context
        if path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(path)
            self._listener.listen(128)
        self._path = path
        self.port: int = 0 if path is not None else self._listener.getsockname()[1]
        self.connections: int = 0
        self.most_at_once: int = 0
        self.stopping: threading.Event = threading.Event()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._acceptor = threading.Thread(target=self._accept, name="demo-server", daemon=True)

    def url(self, target: str = "/", host: str = "127.0.0.1") -> str:
        """The URL of a target on this server."""
        scheme = "http" if self._ssl_context is None else "https"
        return f"{scheme}://{host}:{self.port}{target}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self.stopping.is_set():
                    sock.close()
                    return
                self.connections += 1
                self._open.add(sock)
                self.most_at_once = max(self.most_at_once, len(self._open))
                thread = threading.Thread(target=self._serve, args=(sock,), daemon=True)
                self._threads = [each for each in self._threads if each.is_alive()]
                self._threads.append(thread)
                thread.start()

    def _serve(self, raw: socket.socket) -> None:
        sock = raw
        try:
            if self._path is None:
                raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._ssl_context is not None:
                sock = self._ssl_context.wrap_socket(raw, server_side=True)
                with self._lock:
                    self._open.discard(raw)
                    self._open.add(sock)
            peer = Peer(self, sock)
            try:
                self._converse(peer)
            finally:
                peer.close()
        except (OSError, ValueError):
            pass  # a client that goes away in the middle is one of the things to be shown
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _converse(self, peer: Peer) -> None:
        while (request := peer.receive_head()) is not None:
            first, _, rest = request.target.partition("?")[0].removeprefix("/").partition("/")
            route = ROUTES.get(first)
            if route is None:
                peer.answer("404 Not Found", b"nothing here\n")
            elif not route(peer, request, rest):
                return

    def close(self) -> None:
        """Close every connection, and wait for the threads."""
        self.stopping.set()
        # Closing a listener does not wake a thread that is in accept; a shutdown does.
        for sock in (self._listener, *self._snapshot()):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it has gone already
        self._acceptor.join(5.0)
        self._listener.close()
        for thread in self._threads:
            thread.join(5.0)
        if self._path is not None:
            os.unlink(self._path)

    def _snapshot(self) -> list[socket.socket]:
        with self._lock:
            return list(self._open)

    def __enter__(self) -> Self:
        self._acceptor.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
