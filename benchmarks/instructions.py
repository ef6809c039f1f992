"""Count what the hot paths execute, so that a regression shows on a noisy machine.

    python benchmarks/instructions.py                    the counts, as a table
    python benchmarks/instructions.py --check            fails if a path has grown since they were stored
    python benchmarks/instructions.py --write            stores them, in instructions.json
    python benchmarks/instructions.py --functions        the costliest functions of each path
    python benchmarks/instructions.py --native           machine instructions too, by callgrind (some minutes)

With words only the paths whose names have one of them.

What is counted are bytecode instructions per exchange, by the module whose code they are. The counts are the same on
any machine, idle or busy, and in any run, but for a few instructions of trio's, which shuffles its tasks. They say
nothing of time spent in C (a regular expression, a join of buffers), which callgrind does see where it is installed.
They differ from one version of Python to the next, so that stored counts hold for one only.

Each path runs over streams in memory (`memory_streams.py`), whose own instructions are left out. It is warmed up
first, and the collector is off while it is counted: when that runs depends on everything that was allocated before.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hpack
import trio

from lamina_interfaces import drive
from lamina_pool import AsyncConnectionPool, ConnectionPool, Request
from lamina_pool._checks import check_request
from lamina_pool._http2 import HTTP2Session
from lamina_pool._http11 import BodyData, EndOfResponse, HTTP11Session, ResponseHead
from lamina_pool._scheduler import Limits, Scheduler, Waiter
from memory_streams import SMALL_ANSWER, SMALL_BODY, AsyncMemoryBackend, MemoryBackend

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from types import CodeType, FrameType

STORED = Path(__file__).with_name("instructions.json")

PYTHON = "3.12"
"""The version whose counts are stored."""

TOLERANCE = 0.03
"""By which fraction a path may grow before the check fails."""

WARM_UP = 10
"""Exchanges before the counted ones: the first opens the connection, and caches fill."""

EXCHANGES = 10
"""Exchanges that are counted."""

WITH = ("h11", "h2", "hpack", "trio")
"""Packages whose code is a part of the paths."""

MEBIBYTE = 1024 * 1024
URL = "http://example.org/index.html"
HEADERS = [
    (b"Accept", b"*/*"),
    (b"Accept-Encoding", b"gzip, deflate"),
    (b"User-Agent", b"benchmark/1.0"),
    (b"Authorization", b"Bearer 0123456789abcdef0123456789abcdef"),
]


# --- counting ----------------------------------------------------------------------------------------------


class InstructionCounter:
    """Counts, under `with`, the instructions of functions that are called, or resumed, in this thread meanwhile.

    The collector is off meanwhile: it would run finalisers, and callbacks of its own, that belong to something else.

    Attributes:
        counts: by code object.
        modules: the module of each.
    """

    def __init__(self, left_out: Iterable[str] = ()) -> None:
        """Make one that passes over the code of some files, and over this one's."""
        self.counts: Counter[CodeType] = Counter()
        self.modules: dict[CodeType, str] = {}
        self._left_out = frozenset((*left_out, count.__code__.co_filename))
        self._before: Any = None
        self._had_collector = False

    def __enter__(self) -> None:
        self._before = sys.gettrace()
        self._had_collector = gc.isenabled()
        gc.disable()
        sys.settrace(self._called)

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        if self._had_collector:
            gc.enable()

    def _called(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any] | None:
        code = frame.f_code
        if code.co_filename in self._left_out:
            return None
        if code not in self.modules:
            self.modules[code] = frame.f_globals.get("__name__", "?")
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return self._count

    def _count(self, frame: FrameType, event: str, argument: object) -> Callable[..., Any]:
        if event == "opcode":
            self.counts[frame.f_code] += 1
        return self._count


@dataclass(frozen=True)
class Count:
    """What one exchange costs, on average.

    Attributes:
        total: bytecode instructions.
        modules: the same by module, costliest first.
        functions: the same by module and function.
    """

    total: float
    modules: Mapping[str, float]
    functions: Mapping[str, float]


def count(path: HotPath, exchanges: int = EXCHANGES) -> Count:
    """Count one path."""
    counter = InstructionCounter([MemoryBackend.connect_tcp.__code__.co_filename])
    path.run(counter, exchanges)
    modules: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for code, executed in counter.counts.items():
        module = counter.modules[code]
        modules[module] += executed
        functions[f"{module}.{code.co_qualname}"] += executed

    def per_exchange(counts: Counter[str]) -> dict[str, float]:
        return {name: round(executed / exchanges, 1) for name, executed in counts.most_common()}

    return Count(round(modules.total() / exchanges, 1), per_exchange(modules), per_exchange(functions))


# --- the paths ---------------------------------------------------------------------------------------------


class Exchanges:
    """What a path consists of. Its methods are awaited, also where nothing in them ever suspends."""

    async def prepare(self) -> None:
        """Make ready for the next exchange. Not counted."""

    async def exchange(self) -> None:
        """Have one exchange."""
        raise NotImplementedError

    async def close(self) -> None:
        """Let go of what is held."""


@dataclass(frozen=True)
class HotPath:
    """One hot path.

    Attributes:
        name: for the table.
        create: makes its exchanges, in the runtime in which they run.
        runtime: `"threads"`, `"asyncio"` or `"trio"`.
    """

    name: str
    create: Callable[[], Exchanges]
    runtime: str = "threads"

    def run(self, counter: InstructionCounter | None, exchanges: int) -> None:
        """Warm up, then have so many exchanges, each under the counter."""
        if self.runtime == "asyncio":
            asyncio.run(self._run(counter, exchanges))
        elif self.runtime == "trio":
            trio.run(self._run, counter, exchanges)
        else:
            drive(self._run(counter, exchanges))

    async def _run(self, counter: InstructionCounter | None, exchanges: int) -> None:
        path = self.create()
        for _ in range(WARM_UP):
            await path.prepare()
            await path.exchange()
        if counter is not None:
            # Python 3.12 passes over what runs when it is asked for opcodes for the first time in a process.
            await path.prepare()
            with counter:
                await path.exchange()
            counter.counts.clear()
        gc.collect()
        gc.disable()
        try:
            mark()
            for _ in range(exchanges):
                await path.prepare()
                if counter is None:
                    await path.exchange()
                else:
                    with counter:
                        await path.exchange()
            mark()
        finally:
            gc.enable()
        await path.close()


def mark() -> None:
    """Tell callgrind that something begins, or has ended: it writes down what it has counted when it sees this call."""
    os.getppid()


class Blocking(Exchanges):
    """Requests on a blocking pool."""

    def __init__(
        self, answer: bytes, send: Callable[[ConnectionPool], object], request_size: int = 1
    ) -> None:
        self._pool = ConnectionPool(network_backend=MemoryBackend(answer, request_size))
        self._send = send

    async def exchange(self) -> None:
        """Send one, and read the answer."""
        self._send(self._pool)

    async def close(self) -> None:
        """Close the pool."""
        self._pool.close()


class Suspending(Exchanges):
    """Requests on an async pool."""

    def __init__(
        self, pause: Callable[[], Awaitable[object]] | None = None, max_connections: int | None = 10
    ) -> None:
        backend = AsyncMemoryBackend(SMALL_ANSWER, pause=pause)
        self._pool = AsyncConnectionPool(network_backend=backend, max_connections=max_connections)

    async def exchange(self) -> None:
        """Send one, and read the answer."""
        response = await self._pool.handle_async_request(get())
        await response.aread()

    async def close(self) -> None:
        """Close the pool."""
        await self._pool.aclose()


class Queued(Suspending):
    """Two requests at once under asyncio, on a pool of one: the second waits for the first."""

    def __init__(self) -> None:
        super().__init__(asyncio_pause, max_connections=1)

    async def exchange(self) -> None:
        """Send two, and read the answers."""
        await asyncio.gather(super().exchange(), super().exchange())


class HTTP11(Exchanges):
    """The HTTP/1.1 session alone: a request's head, a response's head and body."""

    def __init__(self) -> None:
        self._session = HTTP11Session()
        self._framing = check_request(get(), blocking=True)

    async def exchange(self) -> None:
        """Put out a head, take an answer in."""
        session, framing = self._session, self._framing
        session.send_head(framing.method, framing.target, framing.headers)
        session.send_end()
        session.receive(SMALL_ANSWER)
        kinds = [type(session.next_event()) for _ in range(3)]
        if kinds != [ResponseHead, BodyData, EndOfResponse] or session.obstacle_to_reuse() is not None:
            raise AssertionError(f"the answer is not what was to be counted: {kinds}")
        session.start_next()


class HTTP2(Exchanges):
    """The HTTP/2 session alone, with a body of so many bytes, which come by 64 KiB."""

    FRAME_BYTES = 16 * 1024

    def __init__(self, size: int) -> None:
        self._session = HTTP2Session(0.0)
        self._framing = check_request(get(), blocking=True)
        self._encoder = hpack.Encoder()
        self._size = size
        self._number = -1
        self._reads: list[bytes] = []
        self._session.receive(self._frame(4, 0, 0, b""), 0.0)  # SETTINGS, as a server begins
        self._session.receive(self._frame(4, 1, 0, b""), 0.0)  # and acknowledges ours

    @staticmethod
    def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, number) + payload

    async def prepare(self) -> None:
        """Put together what the server will have sent."""
        self._number += 2
        head = self._encoder.encode(
            [(":status", "200"), ("server", "nginx/1.22.1"), ("content-length", str(self._size))]
        )
        frames = []
        for start in range(0, self._size, self.FRAME_BYTES):
            size = min(self.FRAME_BYTES, self._size - start)
            frames.append(self._frame(0, start + size == self._size, self._number, bytes(size)))
        frames[0] = self._frame(1, 4, self._number, head) + frames[0]
        self._reads = [b"".join(frames[start : start + 4]) for start in range(0, len(frames), 4)]

    async def exchange(self) -> None:
        """Put out a request, take its answer in."""
        session = self._session
        stream = session.open_stream(self._framing, b"http", ends=True, now=0.0)
        session.output()
        received = 0
        for data in self._reads:
            session.receive(data, 0.0)
            received += len(stream.take(0.0))
            session.output()
        if received != self._size or not stream.has_ended:
            raise AssertionError(f"the answer is not what was to be counted: {stream!r}")


class Scheduling(Exchanges):
    """The scheduler alone: a connection that idles is acquired, and released."""

    def __init__(self) -> None:
        self._scheduler = Scheduler(Limits(max_connections=10))
        first = Waiter("origin")
        self._scheduler.acquire(first, 0.0)
        self._scheduler.opened(first, object(), 0.0)
        self._scheduler.release(first, 0.0, reusable=True)

    async def exchange(self) -> None:
        """Acquire and release it."""
        waiter = Waiter("origin")
        self._scheduler.acquire(waiter, 0.0)
        self._scheduler.release(waiter, 0.0, reusable=True)


def get() -> Request:
    """A request as clients pass them on: built already."""
    return Request("GET", URL, headers=[(b"Host", b"example.org"), *HEADERS])


def send_built(pool: ConnectionPool) -> None:
    """Send a request, and read the answer."""
    response = pool.handle_request(get())
    if response.read() != SMALL_BODY:
        raise AssertionError("the answer is not what was to be counted")


def send(pool: ConnectionPool, method: str = "GET", content: bytes | None = None) -> None:
    """The same by the call that does it all."""
    pool.request(method, URL, headers=HEADERS, content=content)


def send_open(pool: ConnectionPool) -> None:
    """The same without credentials, so that its headers are remembered as a whole."""
    pool.request("GET", URL, headers=HEADERS[:-1])


async def asyncio_pause() -> None:
    """Let the loop go round once."""
    await asyncio.sleep(0)


CHUNKED_ANSWER = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/plain\r\n"
    b"Transfer-Encoding: chunked\r\n"
    b"\r\n" + 8 * (b"400\r\n" + bytes(1024) + b"\r\n") + b"0\r\n\r\n"
)
LARGE_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % MEBIBYTE + bytes(MEBIBYTE)

PATHS = (
    HotPath("blocking GET", partial(Blocking, SMALL_ANSWER, send_built)),
    HotPath("blocking GET by request()", partial(Blocking, SMALL_ANSWER, send)),
    HotPath("blocking GET without credentials", partial(Blocking, SMALL_ANSWER, send_open)),
    HotPath(
        "blocking POST of 1 KiB",
        partial(Blocking, SMALL_ANSWER, partial(send, method="POST", content=bytes(1024)), 1025),
    ),
    HotPath("blocking GET, 8 chunks", partial(Blocking, CHUNKED_ANSWER, send)),
    HotPath("blocking GET, 1 MiB", partial(Blocking, LARGE_ANSWER, send)),
    HotPath("asyncio GET", Suspending, "asyncio"),
    HotPath("asyncio GET, suspending", partial(Suspending, asyncio_pause), "asyncio"),
    HotPath("asyncio, two GETs, one queued", Queued, "asyncio"),
    HotPath("trio GET", Suspending, "trio"),
    HotPath("trio GET, suspending", partial(Suspending, trio.lowlevel.checkpoint), "trio"),
    HotPath("HTTP/1.1 session", HTTP11),
    HotPath("HTTP/2 session", partial(HTTP2, len(SMALL_BODY))),
    HotPath("HTTP/2 session, 1 MiB", partial(HTTP2, MEBIBYTE)),
    HotPath("scheduler", Scheduling),
)


# --- machine instructions ----------------------------------------------------------------------------------


def native(paths: Iterable[HotPath], exchanges: int) -> dict[str, float]:
    """Machine instructions per exchange, of user space; empty where there is no valgrind."""
    names = [path.name for path in paths]
    if shutil.which("valgrind") is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("valgrind", "--tool=callgrind", "--dump-before=getppid", f"--callgrind-out-file={folder}/out"),
            *(sys.executable, __file__, "--exchanges", str(exchanges), "--run", *names),
        ]
        subprocess.run(
            command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": "0"}, timeout=900
        )
        # Before the first mark, and after each second one, is what nobody asked for.
        totals = [_collected(Path(folder, f"out.{2 * number}")) for number in range(1, len(names) + 1)]
    return {name: total / exchanges for name, total in zip(names, totals, strict=True)}


def _collected(dump: Path) -> int:
    for line in dump.read_text("utf-8", "replace").splitlines():
        if line.startswith(("summary:", "totals:")):
            return int(line.split()[1])
    raise AssertionError(f"{dump} has no sum")


# --- what was stored ---------------------------------------------------------------------------------------


def versions() -> dict[str, str]:
    """Of what the counts depend on besides."""
    return {name: metadata.version(name) for name in WITH}


def as_json(counts: Mapping[str, Count]) -> str:
    """What `--write` stores."""
    paths = {name: {"total": each.total, "modules": dict(each.modules)} for name, each in counts.items()}
    return json.dumps({"python": PYTHON, "with": versions(), "paths": paths}, indent=2) + "\n"


def complaints(stored: Mapping[str, Any], counts: Mapping[str, Count]) -> list[str]:
    """What a check finds wrong, a line each: paths that have grown, and in which modules, or were never stored."""
    lines = []
    for name, now in counts.items():
        before = stored["paths"].get(name)
        if before is None:
            lines.append(f"{name}: not stored yet")
        elif now.total > before["total"] * (1 + TOLERANCE):
            grown = {
                module: executed - before["modules"].get(module, 0.0)
                for module, executed in now.modules.items()
            }
            modules = sorted(grown, key=grown.__getitem__, reverse=True)[:3]
            where = ", ".join(f"{module} {grown[module]:+g}" for module in modules if grown[module] > 0)
            growth = now.total / before["total"] - 1
            lines.append(f"{name}: {before['total']:g} -> {now.total:g} ({growth:+.1%}): {where}")
    return lines


def table(counts: Mapping[str, Count], natives: Mapping[str, float], stored: Mapping[str, Any]) -> str:
    """The counts in Markdown, beside the stored ones."""
    lines = [
        "| path | bytecodes | stored | machine instructions | costliest modules |",
        "|---|---|---|---|---|",
    ]
    for name, now in counts.items():
        before = stored.get("paths", {}).get(name)
        was = "-" if before is None else f"{before['total']:,.0f}"
        machine = f"{natives[name]:,.0f}" if name in natives else "-"
        modules = ", ".join(f"{module} {executed:,.0f}" for module, executed in list(now.modules.items())[:4])
        lines.append(f"| {name} | {now.total:,.0f} | {was} | {machine} | {modules} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only paths whose names have one of these")
    parser.add_argument("--check", action="store_true", help="fail if a path has grown")
    parser.add_argument("--write", action="store_true", help="store the counts")
    parser.add_argument("--functions", action="store_true", help="show the costliest functions of each path")
    parser.add_argument("--native", action="store_true", help="machine instructions too, by callgrind")
    parser.add_argument("--exchanges", type=int, default=EXCHANGES, help="how many are counted")
    parser.add_argument(
        "--run", action="store_true", help="only run the paths, for whoever counts from outside"
    )
    chosen = parser.parse_args(arguments)
    paths = [path for path in PATHS if not chosen.words or any(word in path.name for word in chosen.words)]
    if chosen.run:
        for path in paths:
            path.run(None, chosen.exchanges)
        return 0
    version = "{}.{}".format(*sys.version_info)
    if (chosen.check or chosen.write) and version != PYTHON:
        print(f"the stored counts are those of Python {PYTHON}, and this is {version}")
        return 2
    stored = json.loads(STORED.read_text("utf-8")) if STORED.exists() else {"paths": {}, "with": {}}
    counts = {path.name: count(path, chosen.exchanges) for path in paths}
    print(table(counts, native(paths, chosen.exchanges) if chosen.native else {}, stored))
    if chosen.functions:
        for name, each in counts.items():
            print(f"\n{name}: {each.total:,.0f}")
            for function, executed in list(each.functions.items())[:40]:
                print(f"{executed:10,.1f}  {function}")
    if chosen.write:
        STORED.write_text(as_json(counts), "utf-8")
    if chosen.check:
        if stored["with"] != versions():
            print(f"\nstored with {stored['with']}, counted with {versions()}")
        found = complaints(stored, counts)
        print("\n" + ("\n".join(found) if found else "nothing has grown"))
        return 1 if found else 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
