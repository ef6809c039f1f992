"""Proxies on loopback: real ones, and one of ours that does what it is told.

The real ones are tinyproxy and haproxy (HTTP), haproxy and stunnel in front of tinyproxy (HTTP over TLS), microsocks
and danted (SOCKS5). None of them needs a name to be looked up: all servers are on 127.0.0.1.

`FakeProxy` speaks either protocol, and shows what it was told. It is what `fault_server` gives each connection to.
"""

from __future__ import annotations

import getpass
import select
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from lamina_pool import Proxy
from stack_helpers import read_head, response
from stack_servers import installed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stack_helpers import Certificates
    from stack_servers import Servers

USER, PASSWORD = "user", "secret5"
BASIC = "Basic dXNlcjpzZWNyZXQ1"
"""The two in base64 (RFC 7617)."""

TINYPROXY_CONF = """
Listen 127.0.0.1
Port {port}
Timeout 60
MaxClients 200
LogLevel Warning
{more}
"""

HAPROXY_CONF = """
global
    maxconn 512
defaults
    mode http
    retries 0
    timeout connect 10s
    timeout client 60s
    timeout server 60s
frontend front
    bind 127.0.0.1:{http}
    bind 127.0.0.1:{https} ssl crt {pair} alpn http/1.1
    acl known req.hdr(Proxy-Authorization) "{basic}"
    http-request return status 407 hdr Proxy-Authenticate "Basic realm=haproxy" unless known
    http-request del-header Proxy-Authorization
    use_backend tunnels if METH_CONNECT
    default_backend origins
backend tunnels
    server tinyproxy {tunnels}
backend origins
    http-request set-dst url_ip
    http-request set-dst-port url_port
    server any 0.0.0.0:0
"""

STUNNEL_CONF = """
foreground = yes
pid =
debug = err
[proxy]
accept = 127.0.0.1:{port}
connect = {proxy}
cert = {certificate}
key = {key}
"""

DANTED_CONF = """
logoutput: stderr
internal: 127.0.0.1 port = {port}
external: 127.0.0.1
clientmethod: none
socksmethod: none
user.privileged: {user}
user.unprivileged: {user}
client pass {{ from: 127.0.0.0/8 to: 0.0.0.0/0 }}
socks pass {{ from: 127.0.0.0/8 to: 127.0.0.0/8 }}
"""


# --- real ones ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunningProxy:
    """A real proxy.

    Attributes:
        name: of the program.
        url: where it is, for `Proxy`.
        needs_auth: whether it lets nobody in but `USER`.
    """

    name: str
    url: str
    needs_auth: bool = False

    @property
    def address(self) -> str:
        return self.url.partition("://")[2]

    def proxy(self, certificates: Certificates, scheme: str | None = None, **options: Any) -> Proxy:
        """What a pool is given.

        Args:
            certificates: to trust it, where it speaks TLS.
            scheme: if it is another one.
            options: further ones of `Proxy`, in the place of what it needs.
        """
        if self.needs_auth:
            options.setdefault("auth", (USER, PASSWORD))
        if self.url.startswith("https:"):
            options.setdefault("ssl_context", certificates.client)
        return Proxy(self.url if scheme is None else f"{scheme}://{self.address}", **options)


class Proxies:
    """Starts proxies, beside `Servers`, which ends them."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    def tinyproxy(self, *, needs_auth: bool = False) -> RunningProxy:
        executable = installed("tinyproxy")
        folder = self._servers.new_folder()
        more = f"BasicAuth {USER} {PASSWORD}" if needs_auth else ""

        def command(ports: Sequence[int]) -> list[str]:
            config = folder / "tinyproxy.conf"
            config.write_text(TINYPROXY_CONF.format(port=ports[0], more=more))
            return [executable, "-d", "-c", f"{config}"]

        (port,) = self._servers.start_on_free_ports(1, command, folder)
        return RunningProxy("tinyproxy", f"http://127.0.0.1:{port}", needs_auth)

    def haproxy(self, tunnels: RunningProxy, *, tls: bool) -> RunningProxy:
        """Haproxy asks for a password. CONNECT, which it does not speak itself, it leaves to another proxy."""
        executable = installed("haproxy")
        folder = self._servers.new_folder()
        pair = self._servers.certificates.pair(folder)

        def command(ports: Sequence[int]) -> list[str]:
            config = folder / "haproxy.cfg"
            http, https = ports
            config.write_text(
                HAPROXY_CONF.format(http=http, https=https, pair=pair, basic=BASIC, tunnels=tunnels.address)
            )
            return [executable, "-db", "-f", f"{config}"]

        http, https = self._servers.start_on_free_ports(2, command, folder)
        url = f"https://127.0.0.1:{https}" if tls else f"http://127.0.0.1:{http}"
        return RunningProxy("haproxy", url, needs_auth=True)

    def stunnel(self, proxy: RunningProxy) -> RunningProxy:
        """Stunnel puts TLS in front of another proxy, and knows nothing of what it passes on."""
        executable = installed("stunnel4")
        certificates = self._servers.certificates
        folder = self._servers.new_folder()

        def command(ports: Sequence[int]) -> list[str]:
            config = folder / "stunnel.conf"
            config.write_text(
                STUNNEL_CONF.format(
                    port=ports[0],
                    proxy=proxy.address,
                    certificate=certificates.certificate,
                    key=certificates.key,
                )
            )
            return [executable, f"{config}"]

        (port,) = self._servers.start_on_free_ports(1, command, folder)
        return RunningProxy("stunnel", f"https://127.0.0.1:{port}", proxy.needs_auth)

    def microsocks(self, *, needs_auth: bool = False) -> RunningProxy:
        executable = installed("microsocks")
        more = ["-u", USER, "-P", PASSWORD] if needs_auth else []

        def command(ports: Sequence[int]) -> list[str]:
            return [executable, "-i", "127.0.0.1", "-p", f"{ports[0]}", *more]

        (port,) = self._servers.start_on_free_ports(1, command, self._servers.new_folder())
        return RunningProxy("microsocks", f"socks5://127.0.0.1:{port}", needs_auth)

    def danted(self) -> RunningProxy:
        executable = installed("danted")
        folder = self._servers.new_folder()

        def command(ports: Sequence[int]) -> list[str]:
            config = folder / "danted.conf"
            config.write_text(DANTED_CONF.format(port=ports[0], user=getpass.getuser()))
            return [executable, "-f", f"{config}", "-p", f"{folder}/pid"]

        (port,) = self._servers.start_on_free_ports(1, command, folder)
        return RunningProxy("danted", f"socks5://127.0.0.1:{port}")


@pytest.fixture(scope="session")
def proxies(servers: Servers) -> Proxies:
    return Proxies(servers)


@pytest.fixture(scope="session")
def tinyproxy(proxies: Proxies) -> RunningProxy:
    return proxies.tinyproxy()


@pytest.fixture(scope="session")
def tinyproxy_auth(proxies: Proxies) -> RunningProxy:
    return proxies.tinyproxy(needs_auth=True)


@pytest.fixture(scope="session")
def haproxy_http(proxies: Proxies, tinyproxy: RunningProxy) -> RunningProxy:
    return proxies.haproxy(tinyproxy, tls=False)


@pytest.fixture(scope="session")
def haproxy_https(proxies: Proxies, tinyproxy: RunningProxy) -> RunningProxy:
    return proxies.haproxy(tinyproxy, tls=True)


@pytest.fixture(scope="session")
def stunnel(proxies: Proxies, tinyproxy: RunningProxy) -> RunningProxy:
    return proxies.stunnel(tinyproxy)


@pytest.fixture(scope="session")
def microsocks(proxies: Proxies) -> RunningProxy:
    return proxies.microsocks()


@pytest.fixture(scope="session")
def microsocks_auth(proxies: Proxies) -> RunningProxy:
    return proxies.microsocks(needs_auth=True)


@pytest.fixture(scope="session")
def danted(proxies: Proxies) -> RunningProxy:
    return proxies.danted()


# --- one of ours -------------------------------------------------------------------------------------------

GRANTED = b"HTTP/1.1 200 Connection established\r\n\r\n"
SOCKS_GRANTED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x50"
"""What SOCKS5 answers to a request that it grants (RFC 1928, section 6): bound to 127.0.0.1, port 80."""


@dataclass(frozen=True)
class Asked:
    """What a client has asked a proxy for.

    Attributes:
        target: of a tunnel: host and port as they were sent; of a forwarded request: its whole target.
        head: of the request, for HTTP.
        kind: of the address, for SOCKS5 (RFC 1928, section 5): 1 for IPv4, 3 for a name, 4 for IPv6.
        auth: user and password, for SOCKS5; `None` where the client has not offered any.
        methods: that the client has offered, for SOCKS5.
        peer: the client's address.
    """

    target: str
    head: bytes = b""
    kind: int = 0
    auth: tuple[bytes, bytes] | None = None
    methods: bytes = b""
    peer: Any = None


@dataclass
class FakeProxy:
    """A proxy for HTTP, or for SOCKS5. Every host that it is asked for is on 127.0.0.1.

    Attributes:
        is_socks: which of the two.
        granted: what is sent in answer to a tunnel that is asked for; `None` for what is usual.
        send: does it, and all that SOCKS says before.
        auth: what SOCKS5 clients must say; `None` to ask for nothing.
        asked: what clients have asked for, in order.
        inside: what each of them has sent since through its tunnel.
        is_greedy: it waits for the first bytes from the server, and sends half of them with its own answer.
    """

    is_socks: bool = False
    granted: bytes | None = None
    send: Callable[[socket.socket, bytes], object] = lambda sock, data: sock.sendall(data)
    auth: tuple[bytes, bytes] | None = None
    asked: list[Asked] = field(default_factory=list)
    inside: list[bytearray] = field(default_factory=list)
    is_greedy: bool = False
    _tunnels: list[socket.socket] = field(default_factory=list)

    def cut(self) -> None:
        """End all tunnels on the client's side, without a word of TLS."""
        for sock in tuple(self._tunnels):  # others may be opened meanwhile
            with suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def __call__(self, sock: socket.socket) -> None:
        if self.is_socks:
            self._socks(sock)
        else:
            self._http(sock)

    def _http(self, sock: socket.socket) -> None:
        while True:
            head = read_head(sock)
            method, target, _ = head.split(b" ", 2)
            asked = Asked(target.decode(), head, peer=sock.getpeername())
            self.asked.append(asked)
            if method == b"CONNECT":
                return self._tunnel(sock, asked, GRANTED)
            self._forward(sock, target, head)

    def _forward(self, sock: socket.socket, target: bytes, head: bytes) -> None:
        """Makes one request without a body, with the path alone, as it has to (RFC 9112, section 3.2.1)."""
        scheme, _, rest = target.partition(b"://")
        assert scheme == b"http", target
        authority, _, path = rest.partition(b"/")
        _, _, lines = head.partition(b"\r\n")
        with socket.create_connection(("127.0.0.1", int(authority.rpartition(b":")[2])), 10) as origin:
            origin.sendall(head.split(b" ", 1)[0] + b" /" + path + b" HTTP/1.1\r\n" + lines)
            answer, _, body = receive_until(origin, b"\r\n\r\n").partition(b"\r\n\r\n")
            size = int(answer.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            sock.sendall(answer + b"\r\n\r\n" + body + receive(origin, size - len(body)))

    def _socks(self, sock: socket.socket) -> None:
        version, count = receive(sock, 2)
        assert version == 5
        methods = receive(sock, count)
        auth = None
        if self.auth is None:
            self.send(sock, b"\x05\x00")
        else:
            self.send(sock, b"\x05\x02")
            auth = receive_auth(sock)
            self.send(sock, b"\x01\x00" if auth == self.auth else b"\x01\x01")
            if auth != self.auth:
                return
        kind, host, port = receive_address(sock)
        asked = Asked(f"{host}:{port}", b"", kind, auth, methods, sock.getpeername())
        self.asked.append(asked)
        self._tunnel(sock, asked, SOCKS_GRANTED)

    def _tunnel(self, sock: socket.socket, asked: Asked, granted: bytes) -> None:
        noted = bytearray()
        with socket.create_connection(("127.0.0.1", int(asked.target.rpartition(":")[2])), 10) as origin:
            granted, behind = self.granted or granted, b""
            if self.is_greedy:
                behind = origin.recv(1 << 16)
                granted += behind[: len(behind) // 2]
            self.send(sock, granted)
            self.inside.append(noted)
            self._tunnels.append(sock)
            sock.sendall(behind[len(behind) // 2 :])
            relay(sock, origin, noted)


def receive(sock: socket.socket, size: int) -> bytes:
    """So many bytes. For servers."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def receive_until(sock: socket.socket, mark: bytes) -> bytes:
    """All bytes up to a mark, and what has come with it. For servers."""
    data = b""
    while mark not in data:
        piece = sock.recv(1 << 16)
        if not piece:
            raise EOFError
        data += piece
    return data


def receive_auth(sock: socket.socket) -> tuple[bytes, bytes]:
    """User name and password of a SOCKS5 client (RFC 1929, section 2)."""
    assert receive(sock, 1) == b"\x01"
    user = receive(sock, receive(sock, 1)[0])
    return user, receive(sock, receive(sock, 1)[0])


def receive_address(sock: socket.socket) -> tuple[int, str, int]:
    """Kind of address, host and port that a SOCKS5 client wants to be connected to (RFC 1928, section 4)."""
    assert receive(sock, 3) == b"\x05\x01\x00"
    kind = receive(sock, 1)[0]
    if kind == 3:
        host = receive(sock, receive(sock, 1)[0]).decode()
    elif kind == 1:
        host = socket.inet_ntop(socket.AF_INET, receive(sock, 4))
    else:
        host = socket.inet_ntop(socket.AF_INET6, receive(sock, 16))
    return kind, host, int.from_bytes(receive(sock, 2), "big")


def relay(sock: socket.socket, origin: socket.socket, noted: bytearray) -> None:
    """Pass on what comes from either side until one of them ends. One thread: TLS allows no more."""
    while True:
        if not (isinstance(sock, ssl.SSLSocket) and sock.pending()):
            ready, _, _ = select.select([sock, origin], [], [])
            if origin in ready:
                data = origin.recv(1 << 16)
                if not data:
                    return
                sock.sendall(data)
                continue
        data = sock.recv(1 << 16)
        if not data:
            return
        noted += data
        origin.sendall(data)


def wait_for_the_end(sock: socket.socket) -> None:
    """Say nothing more until the client has gone."""
    with suppress(OSError):
        while sock.recv(1 << 16):
            pass


@dataclass
class Origin:
    """A server for `fault_server` that answers each request with its target.

    Attributes:
        heads: what it was sent.
    """

    heads: list[bytes] = field(default_factory=list)

    def __call__(self, sock: socket.socket) -> None:
        while True:
            head = read_head(sock)
            self.heads.append(head)
            sock.sendall(response(head.split(b" ", 2)[1]))


def noting_context(names: list[str | None]) -> ssl.SSLContext:
    """A server's, that notes what clients call it in TLS (SNI), `None` for nothing. It has no certificate yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

    def note(_sock: object, name: str | None, _context: object) -> None:
        names.append(name)

    context.sni_callback = note
    return context
