"""A pytest plugin that runs every snippet: Python blocks in Markdown, and examples in docstrings.

Snippets speak to `example.org` and its like, by HTTP and HTTPS, as a reader would. Here these names lead to a
server on loopback, whose certificate is trusted; any other name does not exist. Nothing leaves the machine.

The ports 3128 and 1080 lead to a proxy, which speaks HTTP and SOCKS5, with TLS or without; 3129 to another one, which
wants the credentials `user:secret`.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from doctest import ELLIPSIS, NORMALIZE_WHITESPACE
from pathlib import Path
from typing import Any

import pytest
import trustme
import wsproto
from sybil import Sybil
from sybil.document import PythonDocStringDocument
from sybil.parsers import myst, rest
from wsproto.connection import ConnectionState
from wsproto.events import AcceptConnection, CloseConnection, Message, Ping, Request

from loopback_proxy import LoopbackProxy

EXAMPLES = ("example.com", "example.net", "example.org")  # RFC 2606, section 3
FLAGS = ELLIPSIS | NORMALIZE_WHITESPACE
ROOT = str(Path(__file__).parent.parent)

_markdown = Sybil(
    parsers=[myst.PythonCodeBlockParser(doctest_optionflags=FLAGS), myst.SkipParser()],
    path=ROOT,
    patterns=["*.md"],
)
_docstrings = Sybil(
    parsers=[rest.DocTestParser(optionflags=FLAGS), rest.PythonCodeBlockParser(), rest.SkipParser()],
    path=ROOT,
    patterns=["*.py"],
    document_types={".py": PythonDocStringDocument},
)
pytest_collect_file = (_markdown + _docstrings).pytest()


class Site(http.server.BaseHTTPRequestHandler):
    """Greets whoever asks, and sends back whatever is sent; `/slow` takes a second, `/large` is a megabyte.

    `/chat` is a WebSocket, which sends back each message too.
    """

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/slow":
            time.sleep(1.0)
        if self.path == "/chat":
            self.chat()
        elif self.path == "/large":
            self.reply(bytes(1_000_000))
        else:
            self.reply(f"Hello from {self.headers['Host']}{self.path}\n".encode())

    def do_POST(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.reply(b"".join(self.chunks()))
        else:
            self.reply(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def chat(self) -> None:
        """Speak WebSocket until one side has had enough."""
        self.close_connection = True
        connection = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        connection.initiate_upgrade_connection(
            [(name.encode(), value.encode()) for name, value in self.headers.items()], self.path
        )
        while True:
            for event in connection.events():
                match event:
                    case Request():
                        chosen = next(iter(event.subprotocols), None)
                        self.wfile.write(connection.send(AcceptConnection(subprotocol=chosen)))
                    case Message():
                        echo = type(event)(event.data, message_finished=event.message_finished)
                        self.wfile.write(connection.send(echo))
                    case Ping():
                        self.wfile.write(connection.send(event.response()))
                    case CloseConnection():
                        if connection.state is ConnectionState.REMOTE_CLOSING:
                            self.wfile.write(connection.send(event.response()))
                        return
            connection.receive_data(self.connection.recv(65536) or None)

    def chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    do_PUT = do_POST  # noqa: N815  # the name that the standard library calls

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: the snippets' own output is compared."""


class Server(http.server.ThreadingHTTPServer):
    """Ends TLS as the protocol asks (RFC 8446, section 6.1), which the standard library's server does not."""

    def shutdown_request(self, request: Any) -> None:
        if isinstance(request, ssl.SSLSocket):
            with contextlib.suppress(OSError, ValueError):
                request.settimeout(1.0)
                request.unwrap()
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay silent: a snippet may hang up when it likes."""


class Loopback:
    """The servers, and the only name resolution there is while snippets run."""

    def __init__(self) -> None:
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        names = [name for host in EXAMPLES for name in (host, f"*.{host}")]
        authority.issue_cert(*names, "localhost", "127.0.0.1").configure_cert(context)
        self.directory = tempfile.TemporaryDirectory()
        bundle = Path(self.directory.name, "authority.pem")
        authority.cert_pem.write_to_path(bundle)
        self.environment = {"SSL_CERT_FILE": str(bundle), "SSL_CERT_DIR": self.directory.name}

        plain = Server(("127.0.0.1", 0), Site)
        secure = Server(("127.0.0.1", 0), Site)
        secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
        self.ports = {80: plain.server_port, 443: secure.server_port}
        proxy = LoopbackProxy(context, self.ports)
        locked = LoopbackProxy(context, self.ports, is_locked=True)
        self.servers = [plain, secure, proxy, locked]
        self.ports |= {3128: proxy.port, 1080: proxy.port, 3129: locked.port}
        self.resolve = socket.getaddrinfo

    def __enter__(self) -> None:
        os.environ.update(self.environment)
        socket.getaddrinfo = self.getaddrinfo
        for server in self.servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()

    def __exit__(self, *_: object) -> None:
        socket.getaddrinfo = self.resolve
        for server in self.servers:
            server.shutdown()
            server.server_close()
        self.directory.cleanup()

    def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else str(host)
        if name in EXAMPLES or name.endswith(tuple(f".{example}" for example in EXAMPLES)):
            return self.resolve("127.0.0.1", self.ports.get(int(port), port), *args, **kwargs)
        if name == "localhost" or name.replace(".", "").isdigit() or ":" in name:
            return self.resolve(host, port, *args, **kwargs)
        raise socket.gaierror(socket.EAI_NONAME, f"snippets run without a network: {name} is not known")


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop() -> Generator[None, Any, Any]:
    # Snippets do not run with fixtures, so this stands around all of them.
    with Loopback():
        return (yield)
