"""Real servers on loopback: nginx, nghttpd, hypercorn and haproxy, each with a configuration of its own.

All of them serve the files in `Server.root`, with `hello` among them. Where a server can, it also knows

- `/echo?token=x`: answered with the method and the token;
- `/upload`: answered with `took N`, the bytes of the request's body (nghttpd sends back the body instead);
- `/trailers`: a body, and after it the field `x-trailer: last` (nghttpd adds it to every response with a body).
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stack_helpers import missing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stack_helpers import Certificates

HELLO = b"hello\n"
BEFORE_TRAILERS = b"before the trailers\n"

ATTEMPTS = 5
"""To start a server that looks for its ports itself. Between our choice and its own look, another may take one."""

PATIENCE = 10.0
"""Seconds that a server has to start, and to end."""

NGINX_CONF = """
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log info;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 64m;
    keepalive_requests {keepalive_requests};
    server {{
        listen 127.0.0.1:{http};
        listen 127.0.0.1:{https} ssl http2;
        listen 127.0.0.1:{h2c} http2;
        listen unix:{folder}/sock;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        root {root};
        location = /echo {{ return 200 "$request_method $arg_token"; }}
        location = /gone {{ return 204; }}
        location = /limited {{ client_max_body_size 1k; proxy_pass http://127.0.0.1:{http}/upload; }}
        location = /upload {{ proxy_request_buffering on; proxy_pass http://127.0.0.1:{http}/swallowed; }}
        location = /swallowed {{ return 200 "took $content_length"; }}
        location = /closing {{ keepalive_timeout 0; return 200 "closing"; }}
        location = /chunked.txt {{ gzip on; gzip_http_version 1.1; gzip_min_length 1; gzip_types text/plain; }}
        location = /trailers {{ add_trailer X-Trailer last; }}
    }}
}}
"""

HAPROXY_CONF = """
global
    maxconn 512
defaults
    mode http
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend front
    bind fd@{https} ssl crt {pair} alpn h2,http/1.1
    bind fd@{h2c} proto h2
    default_backend origin
backend origin
    server origin {origin}
"""


@dataclass(frozen=True)
class Server:
    """A running server, and where it listens.

    Attributes:
        https: TLS; HTTP/2 and HTTP/1.1 by ALPN, nghttpd HTTP/2 only.
        h2c: HTTP/2 without TLS, to those who know it beforehand.
        root: the folder that it serves.
        http: HTTP/1.1 without TLS, where it has that.
        uds: the path of a unix socket, where it has one.
    """

    https: str
    h2c: str
    root: Path
    http: str = ""
    uds: str = ""


class Servers:
    """Starts servers; `stop` ends all of them. A server that is not installed is told of by `missing`.

    Attributes:
        root: the folder that they serve.
        certificates: what they show.
    """

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self._folder = folder
        self.certificates = certificates
        self._processes: list[subprocess.Popen[bytes]] = []
        self.root = folder / "root"
        self.root.mkdir()
        (self.root / "hello").write_bytes(HELLO)
        (self.root / "trailers").write_bytes(BEFORE_TRAILERS)

    def nginx(self, keepalive_requests: int = 1000) -> Server:
        """Nginx, which ends a connection after so many requests."""
        executable = installed("nginx")
        folder = self.new_folder()

        def command(ports: Sequence[int]) -> list[str]:
            http, https, h2c = ports
            (folder / "nginx.conf").write_text(
                NGINX_CONF.format(
                    folder=folder,
                    root=self.root,
                    http=http,
                    https=https,
                    h2c=h2c,
                    certificate=self.certificates.certificate,
                    key=self.certificates.key,
                    keepalive_requests=keepalive_requests,
                )
            )
            return [executable, "-p", f"{folder}", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]

        http, https, h2c = self.start_on_free_ports(3, command, folder)
        return Server(_url(https, tls=True), _url(h2c), self.root, _url(http), f"{folder}/sock")

    def nghttpd(self, *more: str) -> Server:
        """Two nghttpd, with TLS and without, with further options."""
        executable = installed("nghttpd")
        options = [
            "-a",
            "127.0.0.1",
            "-d",
            f"{self.root}",
            "--echo-upload",
            "--trailer=x-trailer: last",
            *more,
        ]
        key, certificate = f"{self.certificates.key}", f"{self.certificates.certificate}"
        folder = self.new_folder()
        (https,) = self.start_on_free_ports(
            1, lambda ports: [executable, *options, f"{ports[0]}", key, certificate], folder
        )
        (h2c,) = self.start_on_free_ports(
            1, lambda ports: [executable, *options, "--no-tls", f"{ports[0]}"], folder
        )
        return Server(_url(https, tls=True), _url(h2c), self.root)

    def hypercorn(self, app: str = "stack_asgi_app") -> Server:
        """Hypercorn with the application of one of our modules."""
        if importlib.util.find_spec("hypercorn") is None:
            missing("hypercorn")
        key, certificate = f"{self.certificates.key}", f"{self.certificates.certificate}"

        def command(https: int, h2c: int) -> list[str]:
            # No worker: it serves in its own process, and there is none besides to be stopped.
            return [
                *(sys.executable, "-m", "hypercorn", "--workers", "0", "--graceful-timeout", "0"),
                *("--certfile", certificate, "--keyfile", key),
                *("--bind", f"fd://{https}", "--insecure-bind", f"fd://{h2c}", f"{app}:app"),
            ]

        environment = {"STACK_ROOT": f"{self.root}", "PYTHONPATH": f"{Path(__file__).parent}"}
        https, h2c = self.start_on_open_ports(command, self.new_folder(), environment)
        return Server(_url(https, tls=True), _url(h2c), self.root)

    def haproxy(self, origin: Server) -> Server:
        """Haproxy in front of another server, to which it speaks HTTP/1.1."""
        executable = installed("haproxy")
        folder = self.new_folder()
        pair = self.certificates.pair(folder)

        def command(https: int, h2c: int) -> list[str]:
            config = folder / "haproxy.cfg"
            address = origin.http.removeprefix("http://")
            config.write_text(HAPROXY_CONF.format(https=https, h2c=h2c, pair=pair, origin=address))
            return [executable, "-db", "-f", f"{config}"]

        https, h2c = self.start_on_open_ports(command, folder)
        return Server(_url(https, tls=True), _url(h2c), self.root)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    # --- starting ------------------------------------------------------------------------------------------

    def new_folder(self) -> Path:
        """For the files of one server."""
        folder = self._folder / str(len(list(self._folder.iterdir())))
        folder.mkdir()
        return folder

    def start_on_free_ports(
        self, count: int, command: Callable[[Sequence[int]], list[str]], folder: Path
    ) -> list[int]:
        """Start a server that is told its ports by number."""
        for _ in range(ATTEMPTS):
            ports = _free_ports(count)
            process = self._spawn(command(ports), folder)
            if _is_ready(process, ports):
                return ports
            self._give_up(process)
        pytest.fail(f"the server did not start: {(folder / 'log').read_text()}")

    def start_on_open_ports(
        self,
        command: Callable[[int, int], list[str]],
        folder: Path,
        environment: dict[str, str] | None = None,
    ) -> list[int]:
        """Start a server that takes over two listening sockets: nobody can take their ports meanwhile."""
        with ExitStack() as stack:
            listeners = [
                stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512)) for _ in range(2)
            ]
            ports: list[int] = [listener.getsockname()[1] for listener in listeners]
            descriptors = [listener.fileno() for listener in listeners]
            process = self._spawn(command(descriptors[0], descriptors[1]), folder, environment, descriptors)
        # The system accepts for it until it does: whoever connects now waits until it has begun.
        if not _is_ready(process, ports, answers=True):
            self._give_up(process)
            pytest.fail(f"the server did not start: {(folder / 'log').read_text()}")
        return ports

    def _spawn(
        self,
        command: list[str],
        folder: Path,
        environment: dict[str, str] | None = None,
        descriptors: Sequence[int] = (),
    ) -> subprocess.Popen[bytes]:
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
                pass_fds=descriptors,
            )
        self._processes.append(process)
        return process

    def _give_up(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        self._processes.remove(process)


def installed(name: str) -> str:
    """Where a server is; `missing` tells of one that is not installed."""
    # Where a system keeps what is for administrators is not on everybody's path.
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        missing(name)
    return path


def _url(port: int, *, tls: bool = False) -> str:
    return f"{'https' if tls else 'http'}://127.0.0.1:{port}"


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:  # all of them at once, so that they differ
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def _is_ready(process: subprocess.Popen[bytes], ports: Sequence[int], *, answers: bool = False) -> bool:
    """Wait until a server listens on all its ports, or answers on the last one; false if it does not come to that."""
    end = time.monotonic() + PATIENCE
    for port in ports:
        while not (_answers(port) if answers and port == ports[-1] else _listens(port)):
            if process.poll() is not None or time.monotonic() > end:
                return False
            threading.Event().wait(0.005)
    return process.poll() is None


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _answers(port: int) -> bool:
    """Whether a server of HTTP/2 sends its preface."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))  # and empty SETTINGS
    try:
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as sock:
            sock.sendall(preface)
            return bool(sock.recv(1))
    except OSError:
        return False


# --- fixtures ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[Servers]:
    # The paths of unix sockets are short, and pytest's folders are not.
    servers = Servers(tmp_path_factory.mktemp("servers"), certificates)
    try:
        yield servers
    finally:
        servers.stop()


@pytest.fixture(scope="session")
def nginx(servers: Servers) -> Server:
    return servers.nginx()


@pytest.fixture(scope="session")
def nghttpd(servers: Servers) -> Server:
    return servers.nghttpd()


@pytest.fixture(scope="session")
def hypercorn(servers: Servers) -> Server:
    return servers.hypercorn()


@pytest.fixture(scope="session")
def haproxy(servers: Servers, nginx: Server) -> Server:
    return servers.haproxy(nginx)


@pytest.fixture(scope="session")
def http2_context(certificates: Certificates) -> ssl.SSLContext:
    """Trusts the servers, and offers them HTTP/2 before HTTP/1.1."""
    context = ssl.create_default_context(cafile=certificates.authority)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context
