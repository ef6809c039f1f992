"""Examples for httpcore's network backends, blocking and async, run as they stand, with lamina in its place.

Each runs in a process of its own, as a script. The only thing that is not as in the wild is the name look-up: it
leads every host and port to a server here, whose certificate the process trusts through `SSL_CERT_FILE`.
"""

import contextlib
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import pytest

RUN = """
import socket, sys, types
import lamina

script, port = sys.argv[1], int(sys.argv[2])

def look_up(host, wanted_port, family=0, *rest, **options):
    asked.append((bytes(host).decode(), wanted_port))
    if family == socket.AF_INET6:
        raise socket.gaierror(socket.EAI_NONAME, "no such address")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

def trusting(protocol):
    import ssl
    context = ssl.SSLContext(protocol)
    context.load_default_certs()
    return context

asked = []
socket.getaddrinfo = look_up
sys.modules["httpcore"] = lamina
sys.modules["httpx"] = lamina.sync
sys.modules["truststore"] = types.SimpleNamespace(SSLContext=trusting)
names = {"__name__": "__main__"}
exec(compile(open(script, encoding="utf-8").read(), script, "exec"), names)
print("asked for", sorted(set(asked)))
print("last", names.get("resp"))
"""

ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 21\r\nConnection: close\r\n\r\n"
    b"<p>Example Domain</p>"
)


class Example(NamedTuple):
    """A script, and what is in its output.

    Attributes:
        text: of the script.
        output: lines, or beginnings of lines, in their order.
        asked: for which hosts and ports.
        files: that it has written.
    """

    text: str
    output: tuple[str, ...]
    asked: tuple[tuple[str, int], ...] = (("www.example.com", 443),)
    files: tuple[tuple[str, bytes], ...] = ()


DEFAULT_BACKEND = """\
import httpcore

with httpcore.ConnectionPool() as http:
    response = http.request('GET', 'https://www.example.com')
    print(response)
"""

EXPLICIT_BACKEND = """\
import httpcore

network_backend = httpcore.SyncBackend()
with httpcore.ConnectionPool(network_backend=network_backend) as http:
    response = http.request('GET', 'https://www.example.com')
    print(response)
"""

RAW_REQUEST = """\
import httpcore

# Create an SSL context using 'certifi' for the certificates.
ssl_context = httpcore.default_ssl_context()

# A basic HTTP/1.1 request as a plain bytestring.
request = b'\\r\\n'.join([
    b'GET / HTTP/1.1',
    b'Host: www.example.com',
    b'Accept: */*',
    b'Connection: close',
    b''
])

# Open a TCP stream and upgrade it to SSL.
network_backend = httpcore.SyncBackend()
network_stream = network_backend.connect_tcp("www.example.com", 443)
network_stream = network_stream.start_tls(ssl_context, server_hostname="www.example.com")

# Send the HTTP request.
network_stream.write(request)

# Read the HTTP response.
while True:
    response = network_stream.read(max_bytes=4096)
    if response == b'':
        break
    print(response)

# The output should look something like this:
#
# b'HTTP/1.1 200 OK\\r\\nAge: 600005\\r\\n [...] Content-Length: 1256\\r\\nConnection: close\\r\\n\\r\\n'
# b'<!doctype html>\\n<html>\\n<head>\\n    <title>Example Domain</title> [...] </html>\\n'
"""

ANYIO_BACKEND = """\
import httpcore
import asyncio

async def main():
    network_backend = httpcore.AnyIOBackend()
    async with httpcore.AsyncConnectionPool(network_backend=network_backend) as http:
        response = await http.request('GET', 'https://www.example.com')
        print(response)

asyncio.run(main())
"""

TRIO_BACKEND = """\
import httpcore
import trio

async def main():
    network_backend = httpcore.TrioBackend()
    async with httpcore.AsyncConnectionPool(network_backend=network_backend) as http:
        response = await http.request('GET', 'https://www.example.com')
        print(response)

trio.run(main)
"""

MOCK_BACKEND = """\
import httpcore

network_backend = httpcore.MockBackend([
    b"HTTP/1.1 200 OK\\r\\n",
    b"Content-Type: plain/text\\r\\n",
    b"Content-Length: 13\\r\\n",
    b"\\r\\n",
    b"Hello, world!",
])
with httpcore.ConnectionPool(network_backend=network_backend) as http:
    response = http.request("GET", "https://example.com/")
    print(response.extensions['http_version'])
    print(response.status)
    print(response.content)
"""

HTTP2_MOCK_BACKEND = """\
import hpack
import hyperframe.frame
import httpcore

content = [
    hyperframe.frame.SettingsFrame().serialize(),
    hyperframe.frame.HeadersFrame(
        stream_id=1,
        data=hpack.Encoder().encode(
            [
                (b":status", b"200"),
                (b"content-type", b"plain/text"),
            ]
        ),
        flags=["END_HEADERS"],
    ).serialize(),
    hyperframe.frame.DataFrame(
        stream_id=1, data=b"Hello, world!", flags=["END_STREAM"]
    ).serialize(),
]
# Note that we instantiate the mock backend with an `http2=True` argument.
# This ensures that the mock network stream acts as if the `h2` ALPN flag has been set,
# and causes the connection pool to interact with the connection using HTTP/2.
network_backend = httpcore.MockBackend(content, http2=True)
with httpcore.ConnectionPool(network_backend=network_backend) as http:
    response = http.request("GET", "https://example.com/")
    print(response.extensions['http_version'])
    print(response.status)
    print(response.content)
"""

RECORDING_BACKEND = """\
import httpcore

class RecordingNetworkStream(httpcore.NetworkStream):
    def __init__(self, record_file, stream):
        self.record_file = record_file
        self.stream = stream

    def read(self, max_bytes, timeout=None):
        data = self.stream.read(max_bytes, timeout=timeout)
        self.record_file.write(data)
        return data

    def write(self, buffer, timeout=None):
        self.stream.write(buffer, timeout=timeout)

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self,
        ssl_context,
        server_hostname=None,
        timeout=None,
    ):
        self.stream = self.stream.start_tls(
            ssl_context, server_hostname=server_hostname, timeout=timeout
        )
        return self

    def get_extra_info(self, info):
        return self.stream.get_extra_info(info)


class RecordingNetworkBackend(httpcore.NetworkBackend):
    \"\"\"
    A custom network backend that records network responses.
    \"\"\"
    def __init__(self, record_file):
        self.record_file = record_file
        self.backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host,
        port,
        timeout=None,
        local_address=None,
        socket_options=None,
    ):
        # Note that we're only using a single record file here,
        # so even if multiple connections are opened the network
        # traffic will all write to the same file.

        # An alternative implementation might automatically use
        # a new file for each opened connection.
        stream = self.backend.connect_tcp(
            host,
            port,
            timeout=timeout,
            local_address=local_address,
            socket_options=socket_options
        )
        return RecordingNetworkStream(self.record_file, stream)


# Once you make the request, the raw HTTP/1.1 response will be available
# in the 'network-recording' file.
#
# Try switching to `http2=True` to see the difference when recording HTTP/2 binary network traffic,
# or add `headers={'Accept-Encoding': 'gzip'}` to see HTTP content compression.
with open("network-recording", "wb") as record_file:
    network_backend = RecordingNetworkBackend(record_file)
    with httpcore.ConnectionPool(network_backend=network_backend) as http:
        response = http.request("GET", "https://www.example.com/")
        print(response)
"""

# Of the second dialect.
SENDING_HTTP_REQUESTS = """\
import httpx
import ssl
import truststore

net = httpx.NetworkBackend()
ctx = truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
req = b'\\r\\n'.join([
    b'GET / HTTP/1.1',
    b'Host: www.example.com',
    b'User-Agent: python/dev',
    b'Connection: close',
    b'',
    b'',
])

# Use a 10 second overall timeout for the entire request/response.
with httpx.timeout(10.0):
    # Use a 3 second timeout for the initial connection.
    with httpx.timeout(3.0) as t:
        # Open the connection & establish SSL.
        with net.connect("www.example.com", 443) as stream:
            stream.start_tls(ctx, hostname="www.example.com")
            t.cancel()
            # Send the request & read the response.
            stream.write(req)
            buffer = []
            while part := stream.read():
                buffer.append(part)
            resp = b''.join(buffer)
"""

EXAMPLES = {
    "the default backend": Example(DEFAULT_BACKEND, ("<Response [200]>",)),
    "an explicit backend": Example(EXPLICIT_BACKEND, ("<Response [200]>",)),
    "a request over a raw stream": Example(
        RAW_REQUEST, (r"b'HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n",)
    ),
    "the backend for anyio, under asyncio": Example(ANYIO_BACKEND, ("<Response [200]>",)),
    # What its text says of it: "will work when running under either `asyncio` or `trio`".
    "the backend for anyio, under trio": Example(
        ANYIO_BACKEND.replace("import asyncio", "import trio").replace(
            "asyncio.run(main())", "trio.run(main)"
        ),
        ("<Response [200]>",),
    ),
    "the backend for trio": Example(TRIO_BACKEND, ("<Response [200]>",)),
    "a mock backend": Example(MOCK_BACKEND, ("b'HTTP/1.1'", "200", "b'Hello, world!'"), asked=()),
    "a mock backend over HTTP/2": Example(
        HTTP2_MOCK_BACKEND, ("b'HTTP/2'", "200", "b'Hello, world!'"), asked=()
    ),
    "a recording backend": Example(
        RECORDING_BACKEND, ("<Response [200]>",), files=(("network-recording", ANSWER),)
    ),
    "sending HTTP requests": Example(SENDING_HTTP_REQUESTS, (f"last {ANSWER!r}",)),
}


class ExampleCom:
    """What stands for www.example.com: answers each connection once, and closes it.

    One of the examples ends its request without the empty line that HTTP asks for. Real servers wait for it; this one
    does not, since a request that asks for `Connection: close` in its last line is as good as complete.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.heads: list[bytes] = []
        self._thread = threading.Thread(target=self._serve)

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            raw.settimeout(30.0)
            with contextlib.suppress(OSError), self._context.wrap_socket(raw, server_side=True) as sock:
                head = b""
                while not head.endswith((b"\r\n\r\n", b"Connection: close\r\n")):
                    head += sock.recv(4096)
                self.heads.append(head)
                sock.sendall(ANSWER)
                sock.unwrap().close()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(35.0)
        self._listener.close()


@pytest.fixture
def example_com(serving: ssl.SSLContext) -> Iterator[ExampleCom]:
    with ExampleCom(serving) as server:
        yield server


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_runs(name: str, example_com: ExampleCom, cacert: Path, tmp_path: Path) -> None:
    example = EXAMPLES[name]
    script = tmp_path / "example.py"
    script.write_text(example.text, "utf-8")
    environment = {**os.environ, "SSL_CERT_FILE": str(cacert), "PYTHONIOENCODING": "utf-8"}
    environment.pop("SSL_CERT_DIR", None)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(script), str(example_com.port)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    *lines, asked, last = done.stdout.splitlines()
    assert asked == f"asked for {sorted(example.asked)}"
    lines.append(last)
    for expected in example.output:
        assert [line for line in lines if line.startswith(expected)] != [], lines
    for file, content in example.files:
        assert (tmp_path / file).read_bytes() == content
    assert len(example_com.heads) == len(example.asked)
    assert [head for head in example_com.heads if b"\r\nHost: www.example.com\r\n" not in head] == []


def test_the_examples_are_refused_where_nobody_trusts_the_server(
    example_com: ExampleCom, tmp_path: Path
) -> None:
    """The trust above comes from the environment alone, not from a check that was left out."""
    script = tmp_path / "example.py"
    script.write_text(DEFAULT_BACKEND, "utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SSL_CERT")}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(script), str(example_com.port)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 1
    assert "ConnectError: the server's certificate was not accepted" in done.stderr
    assert example_com.heads == []
