"""A proxy on loopback for the snippets: HTTP, HTTPS and SOCKS5 on one port, told apart by the first byte."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import ssl
from typing import Any

PATIENCE = 10.0
"""Seconds without a byte, after which a connection is given up."""

TLS, SOCKS5 = b"\x16", b"\x05"
BASIC = "Basic dXNlcjpzZWNyZXQ="
"""`user:secret` in base64 (RFC 7617)."""

REFUSAL = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\n"
    b'Proxy-Authenticate: Basic realm="example"\r\n'
    b"Content-Length: 13\r\n\r\nwho are you?\n"
)


class LoopbackProxy(socketserver.ThreadingTCPServer):
    """Connects to wherever it is asked to. One thread a connection.

    Args:
        context: for those who speak TLS with it.
        ports: where it connects to in the place of others.
        is_locked: whether HTTP needs the credentials `user:secret`.
    """

    daemon_threads = True

    def __init__(self, context: ssl.SSLContext, ports: dict[int, int], *, is_locked: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.port: int = self.socket.getsockname()[1]
        self.context = context
        self.ports = ports
        self.is_locked = is_locked

    def connect(self, host: str, port: int) -> socket.socket:
        """Connect to a server."""
        return socket.create_connection((host, self.ports.get(port, port)), PATIENCE)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a snippet may hang up when it likes."""


class _Client(socketserver.BaseRequestHandler):
    @property
    def proxy(self) -> LoopbackProxy:
        assert isinstance(self.server, LoopbackProxy)
        return self.server

    def handle(self) -> None:
        sock: socket.socket = self.request
        sock.settimeout(PATIENCE)
        first = sock.recv(1, socket.MSG_PEEK)
        if first == SOCKS5:
            self.serve_socks(sock)
            return
        if first == TLS:
            sock = self.proxy.context.wrap_socket(sock, server_side=True)
        with sock:
            self.serve_http(sock)

    def serve_http(self, sock: socket.socket) -> None:
        while head := _read_head(sock):
            line, *fields = head.decode("latin-1").split("\r\n")
            method, target, version = line.split(" ")
            names = [field.partition(":")[0].lower() for field in fields]
            if self.proxy.is_locked and f"Proxy-Authorization: {BASIC}" not in fields:
                sock.sendall(REFUSAL)
                continue
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                with self.proxy.connect(host.strip("[]"), int(port)) as server:
                    sock.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    _pass_on(sock, server)
                return
            # Without a body, and one request for each connection to the server: enough for an example.
            place, _, path = target.removeprefix("http://").partition("/")
            host, _, port = place.partition(":")
            kept = [field for name, field in zip(names, fields, strict=True) if not name.startswith("proxy-")]
            request = "\r\n".join(
                [f"{method} /{path} {version}", *kept, "Via: 1.1 proxy", "Connection: close", "", ""]
            )
            with self.proxy.connect(host, int(port or 80)) as server:
                server.sendall(request.encode("latin-1"))
                while data := server.recv(65536):
                    sock.sendall(data)
            return

    def serve_socks(self, sock: socket.socket) -> None:
        """RFC 1928, with no credentials."""
        sock.recv(sock.recv(2, socket.MSG_WAITALL)[1], socket.MSG_WAITALL)
        sock.sendall(b"\x05\x00")
        kind = sock.recv(4, socket.MSG_WAITALL)[3]
        length = sock.recv(1, socket.MSG_WAITALL)[0] if kind == 3 else {1: 4, 4: 16}[kind]
        data = sock.recv(length, socket.MSG_WAITALL)
        if kind == 3:
            host = data.decode("ascii")
        else:
            host = socket.inet_ntop(socket.AF_INET if kind == 1 else socket.AF_INET6, data)
        port = int.from_bytes(sock.recv(2, socket.MSG_WAITALL), "big")
        with self.proxy.connect(host, port) as server:
            sock.sendall(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00")
            _pass_on(sock, server)


def _read_head(sock: socket.socket) -> bytes:
    """A request's head without its end; empty where the client has gone."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            return b""
        head += byte
    return head[:-4]


def _pass_on(client: socket.socket, server: socket.socket) -> None:
    """Carry bytes both ways until one side has ended."""
    with contextlib.suppress(OSError):
        while True:
            # What TLS has read already is nothing that `select` knows of.
            ready: list[socket.socket]
            if isinstance(client, ssl.SSLSocket) and client.pending():
                ready = [client]
            else:
                ready, _, _ = select.select([client, server], [], [], PATIENCE)
            if not ready:
                return
            for source, other in ((client, server), (server, client)):
                if source in ready:
                    data = source.recv(65536)
                    if not data:
                        return
                    other.sendall(data)
