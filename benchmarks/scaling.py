"""Measure what one request costs with 10, 100, 1,000 and 10,000 of them in flight.

    python benchmarks/scaling.py                       all cells, as a Markdown table
    python benchmarks/scaling.py --json scaling.json   and as JSON
    python benchmarks/scaling.py --rounds 5            medians of so many rounds
    python benchmarks/scaling.py asyncio               only cells whose names have the word

The figures are microseconds of CPU per request, of the client alone: the streams are in memory, and each read lets
all other tasks (or threads) run before it returns, so that as many requests are in flight as there are tasks, at any
moment. With one connection for each, none waits; on a pool of 100, the others wait in its queue. What grows with their
number is then the cost of holding many: in the pool, in the event loop, in the collector, in the processor's caches.

Each cell runs in a fresh process, rounds are interleaved, and what is compared are medians of the ratios within a
round. Cells named "frozen" take the objects that are there when it begins out of the collector's sight
(`gc.freeze`), as a server may; all others leave it as Python sets it.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import resource
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lamina_pool import AsyncConnectionPool, ConnectionPool, Request
from memory_streams import SMALL_ANSWER, SMALL_BODY, AsyncMemoryBackend, MemoryBackend, yield_thread

REQUESTS = 20_000
"""How many are measured in each cell."""

WARM_UP = 3
"""How many each task sends before, on average."""

TARGET = 1.5
"""What 10,000 in flight may cost, in multiples of what 10 cost."""

AIM = 1.1
"""What they should."""


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        runtime: `"asyncio"`, `"trio"` or `"threads"`.
        in_flight: how many tasks or threads send requests, one after the other.
        connections: what the pool may open; `None` for one each.
        is_frozen: whether the collector is spared what is there after the warm-up.
    """

    runtime: str
    in_flight: int
    connections: int | None = None
    is_frozen: bool = False

    @property
    def series(self) -> str:
        """What it is to be compared with others of."""
        pool = "a connection each" if self.connections is None else f"pool of {self.connections}"
        return f"{self.runtime}, {pool}" + (", frozen" if self.is_frozen else "")

    @property
    def name(self) -> str:
        """For the command line."""
        return f"{self.runtime}/{self.in_flight}/{self.connections or 'each'}" + (
            "/frozen" if self.is_frozen else ""
        )

    @property
    def max_connections(self) -> int:
        """For the pool."""
        return self.connections or self.in_flight


def cells() -> list[Cell]:
    """All of them, each series from few to many."""
    found = []
    for runtime in ("asyncio", "trio"):
        for is_frozen in (False, True):
            found += [Cell(runtime, number, is_frozen=is_frozen) for number in (10, 100, 1_000, 10_000)]
        found += [Cell(runtime, number, 100) for number in (10, 100, 1_000, 10_000)]
    return found + [Cell("threads", number) for number in (10, 100, 1_000)]


# --- one cell, in a process of its own -----------------------------------------------------------------------


class Clock:
    """Measures so many requests in the midst of many: all tasks are under way before the first, and after the last.

    What it takes to get there is left out: each task's first request opens a connection, and while tasks begin, what
    they hold grows, which has the collector run far more often than later.
    """

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._numbers = itertools.count(1)  # threads may take from it at once
        self._first = WARM_UP * cell.in_flight
        self._cpu = self._wall = 0.0
        self.cpu_microseconds = self.requests_per_second = 0.0
        self.has_ended = False

    def note_request(self) -> None:
        """One has been answered."""
        number = next(self._numbers)
        if number == self._first:
            gc.collect()
            if self._cell.is_frozen:
                gc.freeze()
            self._cpu, self._wall = time.process_time(), time.perf_counter()
        elif number == self._first + REQUESTS:
            self.cpu_microseconds = (time.process_time() - self._cpu) / REQUESTS * 1e6
            self.requests_per_second = REQUESTS / (time.perf_counter() - self._wall)
            self.has_ended = True


def get() -> Request:
    """What is sent."""
    return Request("GET", "http://example.org/", headers=[(b"Host", b"example.org"), (b"Accept", b"*/*")])


def check(body: bytes) -> None:
    """It is what was asked for."""
    if body != SMALL_BODY:
        raise AssertionError(f"another body than was to come: {body!r}")


async def one_of_many(pool: AsyncConnectionPool, clock: Clock) -> None:
    """What one task does."""
    while not clock.has_ended:
        response = await pool.handle_async_request(get())
        check(await response.aread())
        clock.note_request()


async def run_in_asyncio(cell: Cell, clock: Clock) -> None:
    """The cell under asyncio."""

    async def pause() -> None:
        await asyncio.sleep(0)

    backend = AsyncMemoryBackend(SMALL_ANSWER, pause=pause)
    async with (
        AsyncConnectionPool(network_backend=backend, max_connections=cell.max_connections) as pool,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(cell.in_flight):
            group.create_task(one_of_many(pool, clock))


async def run_in_trio(cell: Cell, clock: Clock) -> None:
    """The cell under trio."""
    import trio

    backend = AsyncMemoryBackend(SMALL_ANSWER, pause=trio.lowlevel.checkpoint)
    async with (
        AsyncConnectionPool(network_backend=backend, max_connections=cell.max_connections) as pool,
        trio.open_nursery() as nursery,
    ):
        for _ in range(cell.in_flight):
            nursery.start_soon(one_of_many, pool, clock)


def run_in_threads(cell: Cell, clock: Clock) -> None:
    """The cell in threads."""

    def one_of_many_threads() -> None:
        while not clock.has_ended:
            check(pool.handle_request(get()).read())
            clock.note_request()

    threading.stack_size(256 * 1024)
    backend = MemoryBackend(SMALL_ANSWER, pause=yield_thread)
    with ConnectionPool(network_backend=backend, max_connections=cell.max_connections) as pool:
        threads = [threading.Thread(target=one_of_many_threads) for _ in range(cell.in_flight)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def measure(cell: Cell) -> dict[str, float]:
    """Run the cell in this process."""
    clock = Clock(cell)
    if cell.runtime == "asyncio":
        asyncio.run(run_in_asyncio(cell, clock))
    elif cell.runtime == "trio":
        import trio

        trio.run(run_in_trio, cell, clock)
    else:
        run_in_threads(cell, clock)
    return {
        "cpu_us": clock.cpu_microseconds,
        "rate": clock.requests_per_second,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


# --- all of them ---------------------------------------------------------------------------------------------


def measure_apart(cell: Cell) -> dict[str, float]:
    """Run the cell in a fresh process."""
    done = subprocess.run(
        [sys.executable, __file__, "--cell", cell.name],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure_all(chosen: list[Cell], rounds: int) -> list[dict[str, Any]]:
    """A row for each cell, with medians over the rounds, and the cost in multiples of the series' first cell."""
    measured: dict[Cell, list[dict[str, float]]] = {cell: [] for cell in chosen}
    for _ in range(rounds):
        for cell in chosen:
            measured[cell].append(measure_apart(cell))
    rows = []
    first: dict[str, list[dict[str, float]]] = {}
    for cell, found in measured.items():
        base = first.setdefault(cell.series.replace(", frozen", ""), found)
        ratios = [now["cpu_us"] / then["cpu_us"] for now, then in zip(found, base, strict=True)]
        medians = {name: round(statistics.median(each[name] for each in found), 1) for name in found[0]}
        rows.append(
            {
                "series": cell.series,
                **asdict(cell),
                **medians,
                "ratio": round(statistics.median(ratios), 3),
                "rounds": [round(each["cpu_us"], 1) for each in found],
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    lines = [
        "| in flight | CPU per request, µs | in multiples of 10 in flight | requests per second | peak memory, MiB |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['series']}: {row['in_flight']:,} | {row['cpu_us']:.1f} | {row['ratio']:.2f} "
        f"| {row['rate']:,.0f} | {row['peak_mib']:.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", help="only cells whose series or names have one of these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the rows")
    parser.add_argument("--cell", help="run this one in this process, and print what was measured")
    chosen = parser.parse_args(arguments)
    every = cells()
    if chosen.cell:
        print(json.dumps(measure(next(cell for cell in every if cell.name == chosen.cell))))
        return 0
    if chosen.words:
        every = [cell for cell in every if any(word in f"{cell.series} {cell.name}" for word in chosen.words)]
    rows = measure_all(every, chosen.rounds)
    print(table(rows))
    if chosen.json:
        document = {"requests": REQUESTS, "target": TARGET, "aim": AIM, "rows": rows}
        chosen.json.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
