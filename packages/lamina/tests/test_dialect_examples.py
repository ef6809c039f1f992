"""The examples of the second document, run as one session each in threads, asyncio and trio, and over anyio on both.

The session is typed into an interpreter, as the document's prompts suggest: values of expressions are shown, and
`await` stands at top level. Not as in the wild are the name look-up, which leads every host to servers here, and
`truststore`, for which there is a stand-in. Two names that the document uses without saying where they come from are
given: `NetworkBackend`, and a module name with two letters exchanged.

Three methods of the document's `RecordingStream` lack `self`. So as printed it can carry plain http only, and it cannot
close anything: the pool passes over that error, as over any that a custom stream raises from `close`, and the socket is
closed when the stream beneath is garbage. With `self` put in, the example with https runs as printed.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dialect_document import CUSTOM_BACKEND, CUSTOM_CLIENT, DOCUMENT
from lamina._demo_server import ROUTES, DemoServer, Peer, Received

RUN = """
import ast, inspect, json, socket, sys, types

world, ports, steps = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])

def look_up(host, port, family=0, *rest, **options):
    if family == socket.AF_INET6:
        raise socket.gaierror(socket.EAI_NONAME, "no such address")
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", ports[str(port)]))]

def trusting(protocol):
    import ssl
    context = ssl.SSLContext(protocol)
    context.load_default_certs()
    return context

async def session():
    for text in steps:
        print("#", flush=True)
        for statement in ast.parse(text).body:
            try:
                code = compile(ast.Interactive([statement]), "step", "single", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                result = eval(code, names)
                if inspect.iscoroutine(result):
                    await result
            except Exception as error:
                print(f"{type(error).__name__}: {error}")

from lamina import aio, sync
import lamina_interfaces

socket.getaddrinfo = look_up
sys.modules.update(httpx=sync, ahttpx=aio, truststore=types.SimpleNamespace(SSLContext=trusting))
module = sync if world == "threads" else aio
names = {"httpx": sync, "ahttpx": aio, "ahhtpx": aio, "NetworkBackend": module.NetworkBackend}
if world == "threads":
    lamina_interfaces.drive(session())
else:
    import anyio
    library, _, event_loop = world.partition(" on ")
    if event_loop:
        known = lamina_interfaces._defaults._KNOWN
        known["auto"] = known[library]
    anyio.run(session, backend=event_loop or library)
"""

BODY = b"<p>Example Domain</p>"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: 21\r\n\r\n"
SENT = [">>>  GET / HTTP/1.1", ">>>  Host: www.example.com", ">>>  User-Agent: lamina/0.1.0", ">>>  "]
RECEIVED = [f"<<<  {line}" for line in (HEAD + BODY).decode().splitlines()]


def page(peer: Peer, request: Received, rest: str) -> bool:
    """Answers once, says so, and closes; over TLS as the protocol asks."""
    peer.answer("200 OK", BODY, "Content-Type: text/html", "Connection: close")
    unwrap = getattr(peer.sock, "unwrap", None)
    if unwrap is not None:
        unwrap()
    return False


@pytest.fixture
def ports(server: DemoServer, secure_server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    monkeypatch.setitem(ROUTES, "", page)
    return server.port, secure_server.port


def with_self(text: str) -> str:
    for method in ("start_tls", "get_extra_info"):
        text = text.replace(f"def {method}(", f"def {method}(self, ")
    return text.replace("def close(", "def close(self")


@pytest.mark.parametrize("world", ["threads", "asyncio", "trio", "anyio on asyncio", "anyio on trio"])
def test_every_example_runs(world: str, ports: tuple[int, int], cacert: Path) -> None:
    is_async = world != "threads"
    printed = [pair[is_async] for pair in DOCUMENT]
    steps = [
        *printed[:-2],
        "resp\ntype(net._backend).__name__",
        CUSTOM_BACKEND[is_async],
        CUSTOM_CLIENT[is_async].replace("https:", "http:"),
        CUSTOM_CLIENT[is_async],
        with_self(CUSTOM_BACKEND[is_async]),
        CUSTOM_CLIENT[is_async],
    ]
    plain, secure = ports
    done = subprocess.run(
        [sys.executable, "-c", RUN, world, f'{{"80": {plain}, "443": {secure}}}', json.dumps(steps)],
        env={**os.environ, "SSL_CERT_FILE": str(cacert), "PYTHONIOENCODING": "utf-8", "SSL_CERT_DIR": ""},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    runtime = {"threads": "threaded"}.get(world, world.rpartition(" ")[2])
    backend = {"threads": "SyncBackend", "asyncio": "AutoBackend", "trio": "AutoBackend"}.get(
        world, "AnyIOBackend"
    )
    stream = f'<NetworkStream ["127.0.0.1:{plain}"]>'
    closed = f'<NetworkStream ["127.0.0.1:{plain}" CLOSED]>'
    answer = "<Response [200 OK]>"
    assert [part.splitlines()[1:] for part in done.stdout.split("#")[1:]] == [
        [f"<NetworkBackend [{runtime}]>"],
        [stream],
        ["Ellipsis", closed],
        ["Ellipsis", closed],
        [answer],
        [f">>> {answer}", f"... {BODY!r}"],
        [f'<NetworkStream ["127.0.0.1:{secure}" TLS]>'],  # what `start_tls` returned
        [repr(HEAD + BODY), repr(backend)],
        [],
        [*SENT, *RECEIVED, answer],
        ["TypeError: RecordingStream.start_tls() takes 2 positional arguments but 3 were given"],
        [],
        [*SENT, *RECEIVED, answer],
    ]
