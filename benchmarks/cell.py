"""Measures one client in one row, in this process, and prints the figures as one line of JSON. `run.py` starts it.

    python benchmarks/cell.py ROW CLIENT --url URL [--authority FILE] [--core N] [--seconds S] [--warm-up S]

What is measured begins after the warm-up, and ends before anything is closed. Threads and tasks go on sending while
a clock and the counters are read twice, so neither their start nor their end is part of it.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING, NoReturn, cast

from bench_clients import Target
from bench_rows import BY_NAME, CLIENTS_BY_NAME, FILES, UPLOAD_BYTES, world_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from bench_clients import AsyncClient, AsyncHolder, BlockingClient, Holder, Uploader
    from bench_rows import Row, World

IDLE_WARM_UP = 32
"""Connections that are opened before memory is looked at: by then all code is loaded."""

LEAST = 2
"""How often at least something is done, though one time takes longer than there is time."""

FRESH = {
    "raw": """
import socket, ssl, sys
host, _, port = sys.argv[1].removeprefix("https://").partition("/")[0].partition(":")
with socket.create_connection((host, int(port))) as sock:
    with ssl.create_default_context().wrap_socket(sock, server_hostname=host) as tls:
        tls.sendall(b"GET /hello HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
        data = b""
        while chunk := tls.recv(65536):
            data += chunk
assert data.endswith(b"Hello, world!"), data
""",
    "http.client": """
import http.client, sys
connection = http.client.HTTPSConnection(sys.argv[1].removeprefix("https://").partition("/")[0])
connection.request("GET", "/hello")
assert connection.getresponse().read() == b"Hello, world!"
connection.close()
""",
    "urllib3": """
import sys, urllib3
with urllib3.PoolManager() as pool:
    assert pool.request("GET", sys.argv[1]).data == b"Hello, world!"
""",
    "aiohttp": """
import aiohttp, asyncio, sys
async def main():
    async with aiohttp.ClientSession() as session, session.get(sys.argv[1]) as response:
        assert await response.read() == b"Hello, world!"
asyncio.run(main())
""",
    "pycurl": """
import certifi, io, pycurl, sys
handle, body = pycurl.Curl(), io.BytesIO()
handle.setopt(pycurl.URL, sys.argv[1])
handle.setopt(pycurl.CAINFO, certifi.where())
handle.setopt(pycurl.WRITEDATA, body)
handle.perform()
handle.close()
assert body.getvalue() == b"Hello, world!"
""",
    "pyreqwest": """
import sys
from pyreqwest.client import SyncClientBuilder
with SyncClientBuilder().build() as client:
    assert bytes(client.get(sys.argv[1]).build().send().bytes()) == b"Hello, world!"
""",
}
"""Whole programs, as somebody would write them."""
for _name in ("lamina", "httpcore", "httpcore2"):
    FRESH[_name] = f"""
import {_name}, sys
with {_name}.ConnectionPool() as pool:
    assert pool.request("GET", sys.argv[1]).content == b"Hello, world!"
"""


# --- reading the meters ------------------------------------------------------------------------------------


class Meter:
    """The time, and the processor's time of this process with all its threads, from one moment to another."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._cpu = time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._start, time.process_time() - self._cpu


def figures(row: Row, count: int, read: tuple[float, float]) -> dict[str, float]:
    """What becomes of so many requests, and of the meter at their end."""
    if not count:
        raise TimeoutError("not one request was done")
    units = count * row.units_per_request
    seconds, cpu_seconds = read
    return {
        "value": units / seconds,
        "cpu_us": cpu_seconds / units * 1e6,
        "count": count,
        "seconds": seconds,
        "peak_mib": memory("VmHWM") / 1024,
    }


def memory(field: str) -> int:
    """KiB of this process: now (`VmRSS`), or at most since it began (`VmHWM`)."""
    with open("/proc/self/status", encoding="ascii") as file:
        for line in file:
            if line.startswith(field):
                return int(line.split()[1])
    raise ValueError(field)


def forget_peak() -> None:
    """Let the peak begin anew at what there is now."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def resting_memory() -> int:
    """KiB, without what is free and not yet given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return memory("VmRSS")


def open_sockets() -> int:
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue  # the one that lists them
    return sum(link.startswith("socket:") for link in links)


def done(result: Mapping[str, float | str]) -> NoReturn:
    """Print, and end at once: how long a thousand unfinished requests take to end is not measured here."""
    print(json.dumps(result), flush=True)
    os._exit(0)


# --- blocking ----------------------------------------------------------------------------------------------


def repeat(function: Callable[[], int], seconds: float, expected: int) -> int:
    """Do something for so long, and check how many bytes came. Returns how often it was done."""
    count = total = 0
    end = time.perf_counter() + seconds
    while True:
        total += function()
        count += 1
        if time.perf_counter() >= end and count >= LEAST:
            break
    check_bytes(total, count * expected)
    return count


def check_bytes(total: int, expected: int) -> None:
    if total != expected:
        raise RuntimeError(f"{total} bytes, and not {expected}")


def measured(row: Row, function: Callable[[], int], warm_up: float, seconds: float) -> dict[str, float]:
    """One after the other."""
    repeat(function, warm_up, FILES[row.file])
    meter = Meter()
    count = repeat(function, seconds, FILES[row.file])
    return figures(row, count, meter.read())


def run_blocking(row: Row, name: str, target: Target, warm_up: float, seconds: float) -> dict[str, float]:
    from bench_blocking import open_client

    if row.shape == "cold":

        def once() -> int:
            client = open_client(name, target)
            try:
                return client.get()
            finally:
                client.close()

        return measured(row, once, warm_up, seconds)
    client = open_client(name, target)
    if row.shape == "threads":
        return run_threads(row, client.worker, warm_up, seconds)
    if row.shape == "idle":
        holder = cast("Holder", client)
        first = holder.hold(IDLE_WARM_UP)
        before = Resting()
        then = holder.hold(IDLE_WARM_UP + row.workers)
        return before.per_connection(row, first, then)
    return measured(row, client.download if row.action == "download" else client.get, warm_up, seconds)


def run_threads(
    row: Row, worker: Callable[[], BlockingClient], warm_up: float, seconds: float
) -> dict[str, float]:
    counts = [0] * row.workers
    failures: list[Exception] = []

    def work(number: int) -> None:
        try:
            get = worker().get
            while not failures:
                check_bytes(get(), FILES[row.file])
                counts[number] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, the main thread raises it
            failures.append(error)

    for number in range(row.workers):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    time.sleep(warm_up)
    meter, before = Meter(), sum(counts)
    time.sleep(seconds)
    count, read = sum(counts) - before, meter.read()
    if failures:
        raise failures[0]
    return figures(row, count, read)


class Resting:
    """What there is before many connections are opened."""

    def __init__(self) -> None:
        self._sockets = open_sockets()
        self._memory = resting_memory()

    def per_connection(self, row: Row, *kept: object) -> dict[str, float]:
        """How much has come to it for each new connection, while `kept` keeps them."""
        opened = open_sockets() - self._sockets
        if opened < row.workers:
            raise RuntimeError(f"{opened} connections are open, and not {row.workers}")
        grown = resting_memory() - self._memory
        del kept
        return {"value": grown / opened, "count": opened, "peak_mib": memory("VmHWM") / 1024}


# --- fresh processes ---------------------------------------------------------------------------------------


def run_fresh(row: Row, name: str, url: str, warm_up: float, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-c", FRESH[name], url]

    def once() -> int:
        with subprocess.Popen(command, stdin=subprocess.DEVNULL) as process:
            # With a time limit `wait` would only look now and then whether the process has ended, up to 50 ms too late.
            guard = threading.Timer(30.0, process.kill)
            guard.start()
            try:
                status = process.wait()
            finally:
                guard.cancel()
        if status:
            raise subprocess.CalledProcessError(status, command)
        return FILES[row.file]

    repeat(once, warm_up, FILES[row.file])
    meter, before = Meter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    count = repeat(once, seconds, FILES[row.file])
    taken, after = meter.read()[0], resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {**figures(row, count, (taken, cpu)), "peak_mib": after.ru_maxrss / 1024}


# --- asyncio and trio --------------------------------------------------------------------------------------


async def repeat_async(function: Callable[[], Awaitable[int]], seconds: float, expected: int) -> int:
    """As `repeat`."""
    count = total = 0
    end = time.perf_counter() + seconds
    while True:
        total += await function()
        count += 1
        if time.perf_counter() >= end and count >= LEAST:
            break
    check_bytes(total, count * expected)
    return count


async def measured_async(
    row: Row, function: Callable[[], Awaitable[int]], warm_up: float, seconds: float, expected: int
) -> dict[str, float]:
    """One after the other."""
    await repeat_async(function, warm_up, expected)
    meter = Meter()
    count = await repeat_async(function, seconds, expected)
    return figures(row, count, meter.read())


class Tasks:
    """What many tasks do, and how often."""

    def __init__(self, row: Row, client: AsyncClient) -> None:
        self._row = row
        self._get = client.get
        self._expected = FILES[row.file]
        self.count = 0
        self._failure: Exception | None = None

    async def work(self) -> None:
        try:
            while self._failure is None:
                check_bytes(await self._get(), self._expected)
                self.count += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, `measure` raises it
            self._failure = error

    async def measure(
        self, sleep: Callable[[float], Awaitable[object]], warm_up: float, seconds: float
    ) -> dict[str, float]:
        await sleep(warm_up)
        meter, before = Meter(), self.count
        await sleep(seconds)
        count, read = self.count - before, meter.read()
        if self._failure is not None:
            raise self._failure
        return figures(self._row, count, read)


async def run_asyncio(
    row: Row, name: str, target: Target, warm_up: float, seconds: float
) -> dict[str, float]:
    import asyncio

    from bench_asyncio import open_client

    expected = FILES[row.file]
    if row.shape == "cold":

        async def once() -> int:
            client = open_client(name, target)
            try:
                return await client.get()
            finally:
                await client.aclose()

        return await measured_async(row, once, warm_up, seconds, expected)
    client = open_client(name, target)
    if row.shape == "tasks":
        tasks = Tasks(row, client)
        async with asyncio.TaskGroup() as group:
            for _ in range(row.workers):
                group.create_task(tasks.work())
            done(await tasks.measure(asyncio.sleep, warm_up, seconds))
    if row.shape == "idle":
        holder = cast("AsyncHolder", client)
        first = await hold(holder, IDLE_WARM_UP)
        before = Resting()
        then = await hold(holder, IDLE_WARM_UP + row.workers)
        return before.per_connection(row, first, then)
    if row.action == "upload":
        return await run_upload(row, cast("Uploader", client), warm_up, seconds)
    function = client.download if row.action == "download" else client.get
    return await measured_async(row, function, warm_up, seconds, expected)


async def hold(client: AsyncHolder, count: int) -> object:
    """Open connections, and let what opening them has left to be done be done."""
    import asyncio

    held = await client.hold(count)
    await asyncio.sleep(0.05)
    return held


async def run_upload(row: Row, client: Uploader, warm_up: float, seconds: float) -> dict[str, float]:
    body = os.urandom(2**20) * (UPLOAD_BYTES // 2**20 + 1)
    body = body[:UPLOAD_BYTES]
    small = body[: 2**20]
    await repeat_async(lambda: client.upload(small), warm_up, len(small))
    before = resting_memory()
    forget_peak()
    meter = Meter()
    count = await repeat_async(lambda: client.upload(body), seconds, len(body))
    read = meter.read()
    extra = memory("VmHWM") - before
    return {**figures(row, count, read), "extra_mb": extra * 1024 / 1e6}


async def run_trio(row: Row, name: str, target: Target, warm_up: float, seconds: float) -> dict[str, float]:
    import trio

    from bench_trio import open_client

    client = open_client(name, target)
    if row.shape == "tasks":
        tasks = Tasks(row, client)
        async with trio.open_nursery() as nursery:
            for _ in range(row.workers):
                nursery.start_soon(tasks.work)
            done(await tasks.measure(trio.sleep, warm_up, seconds))
    function = client.download if row.action == "download" else client.get
    return await measured_async(row, function, warm_up, seconds, FILES[row.file])


# --- the command -------------------------------------------------------------------------------------------


def run(row: Row, name: str, target: Target, warm_up: float, seconds: float) -> dict[str, float]:
    if row.shape == "fresh":
        return run_fresh(row, name, target.url, warm_up, seconds)
    world: World = world_of(row, CLIENTS_BY_NAME[name])
    if world == "blocking":
        return run_blocking(row, name, target, warm_up, seconds)
    if world == "asyncio":
        import asyncio

        return asyncio.run(run_asyncio(row, name, target, warm_up, seconds))
    import trio

    return trio.run(run_trio, row, name, target, warm_up, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one client in one row.")
    parser.add_argument("row", choices=BY_NAME)
    parser.add_argument("client", choices=CLIENTS_BY_NAME)
    parser.add_argument("--url", required=True)
    parser.add_argument(
        "--authority", help="the certificate to trust, a PEM file; by default the client's own"
    )
    parser.add_argument("--core", type=int, help="the processor core to stay on")
    parser.add_argument("--warm-up", type=float, default=0.5, help="seconds")
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    row: Row = BY_NAME[given.row]
    connections = row.workers + IDLE_WARM_UP if row.shape == "idle" else row.connections
    target = Target(given.url, given.authority, connections, http2=row.is_http2)
    try:
        result = run(row, given.client, target, given.warm_up, given.seconds)
    except Exception as error:  # noqa: BLE001 - whatever it is, it stands in the table
        traceback.print_exc()
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        done({"failed": f"{type(error).__name__}: {error}"[:300]})
    done(result)


if __name__ == "__main__":
    main()
