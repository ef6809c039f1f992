"""All the layers at work, on this machine alone: `python -m lamina.demo`.

Starts a server on loopback and sends real requests through each layer. Prints a table of what came of them, one of the
same requests on every backend, and a waterfall of where the time of one went; ends by itself within seconds. The exit
code is 1 if anything is not as it should be. What needs a package that is not installed is left out, and says so: TLS
needs trustme, which makes a certificate for this one run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import socket
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import lamina

from ._demo_backends import CONTENDERS, LIMIT, Contender, Scene
from ._demo_server import DemoServer
from ._installed import is_installed
from ._waterfall import draw, spans_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["main"]

HOST = "demo.test"
"""The name of the server: nobody else's, since the resolver below is the only one that knows it (RFC 6761)."""

MEGABYTE = 1_000_000

TRUSTME = "trustme"
MOCK = "lamina[mock]"
HTTP2 = "lamina[http2,mock]"
"""What some rows need, as one writes it after `pip install`."""

MODULES: dict[str, tuple[str, ...]] = {MOCK: ("lamina_mock",), HTTP2: ("lamina_mock", "h2")}

COLUMNS = (39, 46, 11, 8)
"""Of the first table: what, result, connections, milliseconds."""

BACKEND_COLUMNS = (33, 8, 6, 6, 9, 19, 23)
"""Of the second one: backend, requests, milliseconds for one in three ways, and what came of two that were ended."""


class DemoResolver(lamina.Resolver):
    """Knows one host. Of its two addresses, nobody listens on the first."""

    def resolve(self, host: str, port: int, family: int) -> Sequence[lamina.ResolvedAddress]:
        """See `Resolver.resolve`."""
        time.sleep(0.005)  # as a name server nearby would take; it gives the waterfall its first bar
        if host != HOST:
            raise OSError(f"unknown host {host}")
        if family != socket.AF_INET:
            return []
        return [lamina.ResolvedAddress(family, (address, port)) for address in ("127.0.0.2", "127.0.0.1")]


class CountingBackend(lamina.SyncBackend):
    """Counts what it connects: a server hears of a connection later, whenever its thread has its turn."""

    def __init__(self) -> None:
        super().__init__(resolver=DemoResolver())
        self._lock = threading.Lock()
        self.connections: int = 0

    def connect_tcp(self, *args: Any, **kwargs: Any) -> lamina.SyncStream:
        """See `NetworkBackend.connect_tcp`."""
        stream = super().connect_tcp(*args, **kwargs)
        with self._lock:
            self.connections += 1
        return stream


@dataclass
class Stage:
    """What the rows share."""

    plain: DemoServer
    secure: DemoServer | None
    trusting: ssl.SSLContext | None
    backend: CountingBackend = field(default_factory=CountingBackend)

    @property
    def connections(self) -> int:
        """How many connections have been made."""
        return self.backend.connections

    def missing(self, row: Row) -> str:
        """What has to be installed for a row, and is not."""
        if row.needs == TRUSTME:
            return "" if self.secure is not None else TRUSTME
        return "" if all(map(is_installed, MODULES.get(row.needs, ()))) else row.needs

    def scene(self) -> Scene:
        """What the backends have to know."""
        return Scene(self.url, self.trusting, DemoResolver())

    def pool(self, **options: Any) -> lamina.ConnectionPool:
        """A pool that knows the host and trusts the certificate."""
        return lamina.ConnectionPool(ssl_context=self.trusting, network_backend=self.backend, **options)

    def url(self, target: str = "/", *, tls: bool = False) -> str:
        """The URL of a target on one of the servers."""
        server = self.secure if tls and self.secure is not None else self.plain
        return server.url(target, HOST)


class Seen(NamedTuple):
    """What came of a row: in words, and whether it is as it should be."""

    text: str
    as_expected: bool


class Row(NamedTuple):
    """One line of the table.

    Attributes:
        what: is shown.
        run: does it.
        connections: how many of them it should open.
        needs: what has to be installed for it, besides lamina.
    """

    what: str
    run: Callable[[Stage], Seen]
    connections: int
    needs: str = ""


# --- the rows ----------------------------------------------------------------------------------------------


def raw_stream(stage: Stage) -> Seen:
    """Bytes over a socket, no HTTP layer at all."""
    with stage.backend.connect_tcp(HOST, stage.plain.port) as stream:
        stream.write(b"GET /then-close HTTP/1.1\r\nHost: demo.test\r\n\r\n")
        data = b"".join(iter(stream.read, b""))
    return Seen(f"{len(data)} bytes, {_first_line(data)}", data.endswith(b"Hello, world!\n"))


def raw_tls_stream(stage: Stage) -> Seen:
    """The same after an upgrade in place."""
    assert stage.secure is not None
    assert stage.trusting is not None
    with stage.backend.connect_tcp(HOST, stage.secure.port) as stream:
        stream.start_tls(stage.trusting, HOST)
        stream.write(b"GET / HTTP/1.1\r\nHost: demo.test\r\n\r\n")
        data = stream.read()
        ssl_object = stream.get_extra_info("ssl_object")
        version = "no TLS" if ssl_object is None else ssl_object.version()
    return Seen(f"{version}, {_first_line(data)}", data.startswith(b"HTTP/1.1 200") and version == "TLSv1.3")


def second_address(stage: Stage) -> Seen:
    """Of two addresses the first refuses, and the second is tried at once."""
    with stage.backend.connect_tcp(HOST, stage.plain.port) as stream:
        address = stream.get_extra_info("server_addr")
    found = address[0] if isinstance(address, tuple) else ""
    return Seen(f"127.0.0.2 is dead, {found} answers", found == "127.0.0.1")


def one_request(stage: Stage) -> Seen:
    """A request and its response."""
    with stage.pool() as pool:
        response = pool.request("GET", stage.url())
    return Seen(f"{response.status}, {response.content!r}", response.content == b"Hello, world!\n")


def keep_alive(stage: Stage, *, tls: bool = False) -> Seen:
    """Fifty requests, one after the other."""
    with stage.pool() as pool:
        answers = [pool.request("GET", stage.url(f"/number/{n}", tls=tls)).content for n in range(50)]
        kept = repr(pool.connections[0]).partition("HTTP/1.1, ")[2].rstrip("]>")
    return Seen(f"50 right answers; {kept}", answers == [b"%d" % n for n in range(50)])


def streaming(stage: Stage) -> Seen:
    """A body that is looked at while it comes in."""
    size = largest = 0
    with stage.pool() as pool, pool.stream("GET", stage.url("/large/50000000")) as response:
        for chunk in response.iter_stream():
            size += len(chunk)
            largest = max(largest, len(chunk))
    return Seen(
        f"{size // MEGABYTE} MB, never more than {largest // 1024} KiB at once", size == 50 * MEGABYTE
    )


def upload(stage: Stage) -> Seen:
    """A body of unknown length, sent in chunks."""
    pieces = [bytes([n]) * 100_000 for n in range(200)]
    digest = hashlib.sha256(b"".join(pieces)).hexdigest()
    with stage.pool() as pool:
        response = pool.request("POST", stage.url("/echo"), content=iter(pieces))
    right = response.content.endswith(f"{20 * MEGABYTE} {digest}\n".encode())
    return Seen("20 MB in chunks, digest " + ("is right" if right else "is wrong"), right)


def refused_upload(stage: Stage) -> Seen:
    """The server answers before it has read the body, and stops reading."""
    sent = 0

    def body() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(500):
            sent += 100_000
            yield bytes(100_000)

    with stage.pool() as pool:
        response = pool.request("POST", stage.url("/refused"), content=body())
    text = f"{response.status} after {sent / MEGABYTE:.1f} of 50 MB"
    return Seen(text, response.status == 413 and sent < 50 * MEGABYTE)


def stale_connection(stage: Stage) -> Seen:
    """The server closes a connection that it had promised to keep."""
    with stage.pool() as pool:
        first = pool.request("GET", stage.url("/then-close")).status
        second = pool.request("GET", stage.url()).status
    return Seen(f"{first}, closed by the server, {second} on a new one", (first, second) == (200, 200))


def deadline(stage: Stage) -> Seen:
    """A server that never answers, under an ambient deadline."""
    begin = time.monotonic()
    try:
        with stage.pool() as pool, lamina.timeout(0.2):
            pool.request("GET", stage.url("/silent"))
    except lamina.DeadlineExceeded as error:
        seconds = time.monotonic() - begin
        return Seen(f"DeadlineExceeded in phase {error.phase} after {seconds:.3f} s", 0.2 <= seconds < 5.0)
    return Seen("no error", False)


def read_timeout(stage: Stage) -> Seen:
    """A body that stops half-way."""
    try:
        with stage.pool() as pool:
            pool.request("GET", stage.url("/stalled"), extensions={"timeout": {"read": 0.1}})
    except lamina.ReadTimeout as error:
        return Seen(f"ReadTimeout, limit {error.limit} s", error.limit == 0.1)
    return Seen("no error", False)


def no_http(stage: Stage) -> Seen:
    """An answer that is none."""
    try:
        with stage.pool() as pool:
            pool.request("GET", stage.url("/garbage"))
    except lamina.RemoteProtocolError as error:
        return Seen(f"refused: {error.message}", True)
    return Seen("no error", False)


def untrusted(stage: Stage) -> Seen:
    """A certificate of an authority that nobody trusts."""
    try:
        with lamina.ConnectionPool(network_backend=stage.backend) as pool:
            pool.request("GET", stage.url(tls=True))
    except lamina.ConnectError as error:
        return Seen(f"ConnectError in phase {error.phase}", error.phase == "tls")
    return Seen("no error", False)


def many_threads(stage: Stage) -> Seen:
    """More threads than connections."""
    with stage.pool(max_connections=4) as pool:
        right = _ask_in_threads(pool, stage.url("/number/"), threads=32, requests=25)
    return Seen(f"{right} right answers, {32 * 25 - right} others", right == 32 * 25)


def _ask_in_threads(pool: lamina.ConnectionPool, url: str, *, threads: int, requests: int) -> int:
    """How many of the requests are answered by the number that stands behind the URL."""
    right: list[int] = []

    def work(first: int) -> None:
        for n in range(first, first + requests):
            try:
                answer = pool.request("GET", f"{url}{n}").content
            except lamina.LaminaError:
                continue
            if answer == b"%d" % n:
                right.append(n)

    workers = [threading.Thread(target=work, args=(1000 * n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(right)


def http2(stage: Stage) -> Seen:
    """Several threads share a connection."""
    del stage
    from lamina_mock import MockServer

    with (
        MockServer(lambda request: request.target[1:], http2=True) as server,
        lamina.ConnectionPool(network_backend=server.backend, http1=False, http2=True) as pool,
    ):
        right = _ask_in_threads(pool, "http://demo.test/", threads=10, requests=20)
        connections = len(server.connections)
    return Seen(f"{right} right answers over {connections} connection", (right, connections) == (200, 1))


def http2_slots(stage: Stage) -> Seen:
    """A server that takes only two requests at a time on each connection, and half a second for each."""
    del stage
    import asyncio

    from lamina_mock import MockServer, VirtualClock

    async def ask_all() -> tuple[list[bytes], int, float]:
        async with lamina.AsyncConnectionPool(
            network_backend=server.async_backend, http1=False, http2=True
        ) as pool:
            targets = [f"http://demo.test/{n}" for n in range(20)]
            responses = await asyncio.gather(*(pool.request("GET", target) for target in targets))
            return [response.content for response in responses], len(server.connections), clock()

    with (
        VirtualClock() as clock,
        MockServer(
            lambda request: request.target[1:], http2=True, latency=0.5, max_concurrent_streams=2
        ) as server,
    ):
        answers, connections, seconds = asyncio.run(ask_all())
    right = answers == [b"%d" % n for n in range(20)]
    text = f"20 right answers over {connections} connections in {seconds:.1f} s"
    return Seen(text if right else "wrong answers", right and (connections, seconds) == (10, 0.5))


def mock(stage: Stage) -> Seen:
    """No network: a backend of bytes, for tests of code that sits on top."""
    del stage
    backend = lamina.MockBackend([b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\nHello, world!"])
    with lamina.ConnectionPool(network_backend=backend) as pool:
        response = pool.request("GET", "https://example.com/")
    return Seen(f"{response.status}, {response.content!r}", response.content == b"Hello, world!")


ROWS = (
    Row("raw stream", raw_stream, 1),
    Row("raw stream, upgraded to TLS", raw_tls_stream, 1, needs=TRUSTME),
    Row("host with a dead address", second_address, 1),
    Row("pool, one request", one_request, 1),
    Row("pool, 50 requests, keep-alive", keep_alive, 1),
    Row("pool, 50 requests, keep-alive, TLS", lambda stage: keep_alive(stage, tls=True), 1, needs=TRUSTME),
    Row("streamed download", streaming, 1),
    Row("streamed upload", upload, 1),
    Row("upload that the server refuses", refused_upload, 1),
    Row("keep-alive broken by the server", stale_connection, 2),
    Row("silent server, timeout(0.2)", deadline, 1),
    Row("stalled body, read timeout 0.1 s", read_timeout, 1),
    Row("answer that is not HTTP", no_http, 1),
    Row("certificate that nobody trusts", untrusted, 1, needs=TRUSTME),
    Row("800 requests, 32 threads, 4 connections", many_threads, 4),
    Row("HTTP/2 in memory, 10 threads", http2, 0, needs=HTTP2),
    Row("HTTP/2, 2 streams, virtual time", http2_slots, 0, needs=HTTP2),
    Row("mock backend, no network", mock, 0, needs=MOCK),
)


# --- the table ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every row and every backend, print what came of it, and draw the waterfall.

    Args:
        arguments: the command line without the command, or `None` for the process's own; there are no options.

    Returns:
        The exit code.

    Raises:
        SystemExit: for `--help`, and for arguments that it does not know.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lamina.demo",
        description="All layers of lamina at work on loopback: a table of what happened, and a waterfall.",
    )
    parser.parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # bars and lines that a terminal cannot show are no failure
    print(f"lamina {lamina.__version__}, Python {sys.version.split()[0]}, everything on 127.0.0.1\n")
    _print_line("what", "result", "connections", "ms")
    print("  ".join("─" * width for width in COLUMNS))
    with ExitStack() as stack:
        stage = _prepare(stack)
        failures = sum(not _show(row, stage) for row in ROWS)
        print()
        failures += _show_backends(stage)
        print()
        _show_waterfall(stage)
    rows = len(ROWS) + len(CONTENDERS)
    verdict = f"{failures} of {rows} rows are not as they should be" if failures else "all as it should be"
    left_out = sum(bool(stage.missing(row)) for row in ROWS) + sum(map(_is_left_out, CONTENDERS))
    if left_out:
        verdict += f"; {left_out} left out"
    print(f"\n{verdict}")
    return 1 if failures else 0


def _prepare(stack: ExitStack) -> Stage:
    plain = stack.enter_context(DemoServer())
    contexts = _tls_contexts()
    if contexts is None:
        return Stage(plain, None, None)
    serving, trusting = contexts
    return Stage(plain, stack.enter_context(DemoServer(serving)), trusting)


def _tls_contexts() -> tuple[ssl.SSLContext, ssl.SSLContext] | None:
    """For the server and for the client; `None` without trustme."""
    try:
        import trustme
    except ModuleNotFoundError:
        return None
    import ssl

    authority = trustme.CA()
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(serving)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trusting)
    return serving, trusting


def _show(row: Row, stage: Stage) -> bool:
    if missing := stage.missing(row):
        _print_line(row.what, f"left out: needs pip install {missing}", "", "")
        return True
    before = stage.connections
    begin = time.perf_counter()
    try:
        seen = row.run(stage)
    except Exception as error:  # noqa: BLE001 - whatever it is, the table says it and goes on
        seen = Seen(f"{type(error).__name__}: {error}", False)
    milliseconds = (time.perf_counter() - begin) * 1000
    opened = stage.connections - before
    good = seen.as_expected and opened == row.connections
    expected = "" if opened == row.connections else f" not {row.connections}"
    _print_line(
        row.what, seen.text if good else f"!! {seen.text}", f"{opened}{expected}", f"{milliseconds:,.1f}"
    )
    return good


def _print_line(what: str, result: str, connections: str, milliseconds: str) -> None:
    first, second, third, fourth = COLUMNS
    if len(result) > second:
        result = result[: second - 1] + "…"
    print(f"{what:<{first}}  {result:<{second}}  {connections:>{third}}  {milliseconds:>{fourth}}")


def _show_backends(stage: Stage) -> int:
    """The same on each of them; how many were not as they should be."""
    first, second, *ways = BACKEND_COLUMNS[:5]
    above = " ms for one request ".center(sum(ways) + 2 * len("  "), "─")
    print(" " * (first + second + 2 * len("  ")) + above)
    _print_cells(
        "the same on every backend", "requests", "plain", "TLS", "8 at once", f"timeout({LIMIT})", "cancelled"
    )
    print("  ".join("─" * width for width in BACKEND_COLUMNS))
    return sum(not _show_backend(contender, stage.scene()) for contender in CONTENDERS)


def _show_backend(contender: Contender, scene: Scene) -> bool:
    if _is_left_out(contender):
        print(f"{contender.name:<{BACKEND_COLUMNS[0]}}  left out: needs pip install {contender.install}")
        return True
    try:
        found = contender.run(scene)
    except Exception as error:  # noqa: BLE001 - whatever it is, the table says it and goes on
        print(f"{contender.name:<{BACKEND_COLUMNS[0]}}  !! {type(error).__name__}: {error}")
        return False
    times = (
        "-" if each is None else f"{each * 1000:.2f}" for each in (found.plain, found.tls, found.at_once)
    )
    wrong = f" {found.wrong} wrong" if found.wrong else ""
    mark = "" if found.as_expected else f"!!{wrong} "
    _print_cells(contender.name, str(found.requests), *times, mark + found.deadline, found.cancelled)
    return found.as_expected


def _print_cells(*cells: str) -> None:
    """A line of the second table: numbers to the right, words to the left."""
    aligned = zip(cells, BACKEND_COLUMNS, "<>>>><<", strict=True)
    print("  ".join(f"{cell:{side}{width}}" for cell, width, side in aligned).rstrip())


def _is_left_out(contender: Contender) -> bool:
    return not all(map(is_installed, contender.modules))


def _show_waterfall(stage: Stage) -> None:
    """Where the time of one request goes, as the events and the stream tell it."""
    tls = stage.secure is not None
    moments = {"started": time.monotonic()}
    names = {
        "http11.send_request_headers.started": "sending",
        "http11.receive_response_headers.complete": "answered",
    }

    def listen(event: str, info: dict[str, Any]) -> None:
        del info
        if event in names:
            moments[names[event]] = time.monotonic()

    url = stage.url("/slow/15", tls=tls)
    with stage.pool() as pool, pool.stream("GET", url, extensions={"trace": listen}) as response:
        response.read()
        moments["finished"] = time.monotonic()
        timings = response.extensions["network_stream"].get_extra_info("timings")
    print(f"GET {url}, which takes the server 15 ms\n")
    for line in draw(spans_of(timings or (), moments)):
        print(f"  {line}")


def _first_line(data: bytes) -> str:
    return data.partition(b"\r\n")[0].decode("latin-1")


if __name__ == "__main__":
    sys.exit(main())
