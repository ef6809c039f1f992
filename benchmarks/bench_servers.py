"""The servers, all on loopback: nginx for HTTP/1.1 and TLS, nghttpd (or nginx) for HTTP/2, and one that only reads.

nginx and nghttpd serve with one thread each. Whoever starts them has chosen the core that they run on.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench_clients import content_length
from bench_rows import FILES, MIB

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

PATIENCE = 10.0
"""Seconds that a server has to start, and to end."""

ATTEMPTS = 5
"""To start one. Between our choice of a port and its own look another program may take it."""

NGINX_CONF = """
daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile 16384;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    sendfile on;
    tcp_nodelay on;
    open_file_cache max=16 inactive=1h;
    keepalive_requests 1000000000;
    keepalive_timeout 1h;
    http2_chunk_size 16k;
    server {{
        listen 127.0.0.1:{http} backlog=4096;
        listen 127.0.0.1:{https} ssl backlog=4096;
        listen 127.0.0.1:{h2c} http2;
        ssl_certificate {certificate};
        ssl_certificate_key {key};
        ssl_protocols TLSv1.2 TLSv1.3;
        root {root};
        location = /slow {{ alias {root}/hello; limit_rate 100; }}
    }}
}}
"""


@dataclass(frozen=True)
class Certificates:
    """A CA of our own, and a server's certificate from it, as files.

    Attributes:
        authority: the CA's certificate.
        certificate, key: the server's.
    """

    authority: Path
    certificate: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    import trustme

    ca = trustme.CA()
    issued = ca.issue_cert("localhost", "127.0.0.1")
    made = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    ca.cert_pem.write_to_path(made.authority)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(made.certificate, append=True)
    issued.private_key_pem.write_to_path(made.key)
    return made


@dataclass(frozen=True)
class Servers:
    """What runs.

    Attributes:
        ports: of each server in `bench_rows.Server`.
        authority: the certificate that clients have to trust.
        commands: how they were started, for the record.
    """

    ports: dict[str, int]
    authority: Path
    commands: list[str]

    def url(self, server: str, file: str) -> str:
        scheme = "https" if server == "https" else "http"
        return f"{scheme}://127.0.0.1:{self.ports[server]}/{file}"


class NotInstalledError(RuntimeError):
    """There is no nginx."""


@contextmanager
def servers(folder: Path) -> Iterator[Servers]:
    """Start all of them, with their files in `folder`, and end them.

    Raises:
        NotInstalledError: there is no nginx.
        RuntimeError: one does not start.
    """
    nginx, nghttpd = find("nginx"), find("nghttpd")
    if nginx is None:
        raise NotInstalledError("nginx is needed, and not installed")
    certificates = make_certificates(folder)
    root = folder / "root"
    root.mkdir()
    for name, size in FILES.items():
        with (root / name).open("wb") as file:
            # Letters: a file with holes would be read in another way.
            letters = b"Hello, world!" * (min(size, MIB) // 13 + 1)
            for _ in range(0, size, MIB):
                file.write(letters[: min(size, MIB)])

    def nginx_command(ports: Sequence[int]) -> list[str]:
        (folder / "nginx.conf").write_text(
            NGINX_CONF.format(
                folder=folder,
                root=root,
                http=ports[0],
                https=ports[1],
                h2c=ports[2],
                certificate=certificates.certificate,
                key=certificates.key,
            )
        )
        return [nginx, "-p", f"{folder}", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]

    commands = []
    with ExitStack() as stack:
        http, https, h2c = start(3, nginx_command, folder, stack)
        commands.append("nginx, one process")
        if nghttpd is not None:

            def nghttpd_command(ports: Sequence[int]) -> list[str]:
                return [nghttpd, "-a", "127.0.0.1", "-d", f"{root}", "--no-tls", f"{ports[0]}"]

            (h2c,) = start(1, nghttpd_command, folder, stack)
            commands.append("nghttpd --no-tls, one thread, for HTTP/2")
        else:
            commands.append("nginx for HTTP/2 too")
        (discard,) = start(1, lambda ports: [sys.executable, __file__, f"{ports[0]}"], folder, stack)
        commands.append("bench_servers.py, for uploads")
        ports = {"http": http, "https": https, "h2c": h2c, "discard": discard}
        yield Servers(ports, certificates.authority, commands)


def find(name: str) -> str | None:
    """Where a program is."""
    # What is for administrators is not on everybody's path.
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")


def start(
    count: int, command: Callable[[Sequence[int]], list[str]], folder: Path, stack: ExitStack
) -> list[int]:
    """Start a server on so many ports, until the stack is closed."""
    log = folder / "log"
    for _ in range(ATTEMPTS):
        ports = free_ports(count)
        with log.open("ab") as output:
            process = subprocess.Popen(command(ports), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        if is_ready(process, ports):
            stack.callback(stop, process)
            return ports
        stop(process)
    raise RuntimeError(f"a server did not start: {log.read_text()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:  # all of them at once, so that they differ
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def is_ready(process: subprocess.Popen[bytes], ports: Sequence[int]) -> bool:
    end = time.monotonic() + PATIENCE
    for port in ports:
        while not listens(port):
            if process.poll() is not None or time.monotonic() > end:
                return False
            time.sleep(0.005)
    return process.poll() is None


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


# --- the one that only reads -------------------------------------------------------------------------------


def discard(sock: socket.socket) -> None:
    """Answer each POST on a connection once its body has come, and keep nothing of it."""
    buffer = memoryview(bytearray(2**20))
    with sock:
        head = b""
        while True:
            while (end := head.find(b"\r\n\r\n")) < 0:
                data = sock.recv(65536)
                if not data:
                    return
                head += data
            missing = content_length(head[:end]) - (len(head) - end - 4)
            while missing > 0:
                taken = sock.recv_into(buffer[: min(missing, len(buffer))])
                if not taken:
                    return
                missing -= taken
            head = b""
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def main() -> None:
    with socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64) as listener:
        while True:
            sock, _ = listener.accept()
            threading.Thread(target=discard, args=(sock,), daemon=True).start()


# --- whom clients trust by default -------------------------------------------------------------------------


def trust_by_default(folder: Path, authority: Path) -> dict[str, dict[str, str]]:
    """What to set in the environment of a client that is to trust our CA without being told.

    A client that brings certifi's certificates finds another certifi first: a copy, and one certificate more in it.
    One that asks OpenSSL finds a copy of the system's file with one more. So loading them costs what it always costs.

    Returns:
        The variables by the names of clients, under `""` those of the others.
    """
    import certifi

    site = folder / "site"
    own = site / "certifi"
    shutil.copytree(Path(certifi.__file__).parent, own, ignore=shutil.ignore_patterns("__pycache__"))
    ours = authority.read_bytes()
    with (own / "cacert.pem").open("ab") as file:
        file.write(b"\n" + ours)
    system = folder / "system.pem"
    system.write_bytes(Path(system_bundle() or certifi.where()).read_bytes() + b"\n" + ours)
    bundled = {"PYTHONPATH": f"{site}"}
    return {
        "lamina": bundled,
        "httpcore": bundled,
        "pycurl": bundled,
        "": {**bundled, "SSL_CERT_FILE": f"{system}"},
    }


def system_bundle() -> str | None:
    """The system's certificates in one file."""
    import ssl

    paths = ssl.get_default_verify_paths()
    for path in (
        paths.openssl_cafile,
        "/etc/ssl/certs/ca-certificates.crt",
        "/etc/pki/tls/certs/ca-bundle.crt",
    ):
        if os.path.isfile(path):
            return path
    return None


if __name__ == "__main__":
    main()
