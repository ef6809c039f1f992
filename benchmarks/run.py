"""Measures lamina beside its peers and raw sockets, in one run, on loopback.

    python benchmarks/run.py                                  # the main rows, briefly: a few minutes
    python benchmarks/run.py full                             # every row, five rounds
    python benchmarks/run.py --rows sequence,asyncio-100 --clients lamina,raw,aiohttp --rounds 3
    python benchmarks/run.py --list

Each cell of each round is a process of its own (`cell.py`), on one core; the servers run on another. The rounds are
interleaved: in each one all clients of a row take their turn, in another order every time, so that what changes on the
machine changes for all of them. What counts are ratios within a round, and their median over the rounds.

Needs Linux, where processes can be told what core to run on, and nginx; nghttpd too, or nginx speaks HTTP/2.

The figures go to a file of JSON and beside it a table and a plot (`report.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench_rows import BY_NAME, CLIENTS, CLIENTS_BY_NAME, NOT_INSTALLED, ROWS, installed_version, why_not
from bench_servers import NotInstalledError, find, servers, trust_by_default
from report import markdown, svg

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench_rows import Client, Row
    from bench_servers import Servers

HERE = Path(__file__).parent
RESULTS = HERE / "results"

PATIENCE = 60.0
"""Seconds beyond what is measured, after which a cell counts as failed."""

ALSO = ("h11", "h2", "hpack", "certifi", "trio", "anyio", "httptools")
"""Distributions whose versions matter, beside the clients."""


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rows: which rows.
        clients: which clients, where they are installed and can do it.
        rounds: how often.
        seconds: that are measured in each cell.
        warm_up: seconds before that.
    """

    rows: tuple[Row, ...]
    clients: tuple[Client, ...]
    rounds: int
    seconds: float
    warm_up: float


def plan_of(given: argparse.Namespace) -> Plan:
    is_full = given.extent == "full"
    rows: Iterable[Row] = ROWS if is_full else (row for row in ROWS if row.is_main)
    if given.rows:
        rows = (BY_NAME[name] for name in given.rows)
    return Plan(
        rows=tuple(rows),
        clients=tuple(CLIENTS_BY_NAME[name] for name in given.clients) if given.clients else CLIENTS,
        rounds=given.rounds or (5 if is_full or given.rows else 2),
        seconds=given.seconds or (2.0 if is_full or given.rows else 0.7),
        warm_up=given.warm_up if given.warm_up is not None else (0.5 if is_full or given.rows else 0.2),
    )


def names(known: Iterable[str]) -> Any:
    choices = set(known)

    def read(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",") if name.strip()]
        for name in found:
            if name not in choices:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(sorted(choices))}")
        return found

    return read


# --- one cell ----------------------------------------------------------------------------------------------


class Bench:
    """Measures cells against running servers.

    Args:
        running: the servers.
        environments: see `trust_by_default`.
        core: for the clients.
    """

    def __init__(self, running: Servers, environments: dict[str, dict[str, str]], core: int | None) -> None:
        self._servers = running
        self._environments = environments
        self._core = core

    def measure(self, row: Row, client: Client, warm_up: float, seconds: float) -> dict[str, Any]:
        """The figures of one cell, or why there are none."""
        command = [
            *(sys.executable, str(HERE / "cell.py"), row.name, client.name),
            *("--url", self._servers.url(row.server, row.file if row.server != "discard" else "upload")),
            *("--warm-up", f"{warm_up}", "--seconds", f"{seconds}"),
        ]
        if self._core is not None:
            command += ["--core", f"{self._core}"]
        environment = {
            name: value for name, value in os.environ.items() if name not in {"SSL_CERT_FILE", "SSL_CERT_DIR"}
        }
        if row.shape in {"cold", "fresh"}:
            environment |= self._environments.get(client.name, self._environments[""])
        else:
            command += ["--authority", str(self._servers.authority)]
        try:
            process = subprocess.run(
                command,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                env=environment,
                timeout=warm_up + seconds + PATIENCE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"failed": "took too long"}
        if process.returncode:
            lines = process.stderr.strip().splitlines() or [f"ended with {process.returncode}"]
            return {"failed": lines[-1][:300]}
        figures: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
        return figures


# --- a run -------------------------------------------------------------------------------------------------


def carry_out(plan: Plan, bench: Bench, results: dict[str, Any], output: Path) -> None:
    """Measure every cell in every round. What there is stands in the file after each round of a row."""
    rows: dict[str, Any] = results["rows"]
    command = " ".join(["python", "benchmarks/run.py", *sys.argv[1:]])
    for row in plan.rows:
        taking_part, left_out = sort_clients(row, plan.clients)
        cells: dict[str, list[dict[str, Any]]] = {client.name: [] for client in taking_part}
        rows[row.name] = {"command": command, "seconds": plan.seconds, "left_out": left_out, "cells": cells}
        for number in range(plan.rounds):
            for client in random.sample(taking_part, len(taking_part)):
                figures = bench.measure(row, client, plan.warm_up, plan.seconds)
                cells[client.name].append(figures)
                told = figures.get("failed") or f"{figures['value']:,.4g} {row.unit}"
                if "cpu_us" in figures:
                    told += f", {figures['cpu_us']:,.4g} us of CPU each"
                print(
                    f"{row.name} {number + 1}/{plan.rounds} {client.name}: {told}",
                    file=sys.stderr,
                    flush=True,
                )
            write(output, results)


def sort_clients(row: Row, clients: Sequence[Client]) -> tuple[list[Client], dict[str, str]]:
    """Those that take part in a row, and why the others do not."""
    left_out = {}
    for client in clients:
        reason = NOT_INSTALLED if installed_version(client) is None else why_not(row, client)
        if reason is not None:
            left_out[client.name] = reason
    return [client for client in clients if client.name not in left_out], left_out


def describe(running: Servers, cores: Sequence[int]) -> dict[str, Any]:
    """The machine, and the versions of all that takes part."""
    versions = {client.name: installed_version(client) for client in CLIENTS if client.distribution}
    for name in ALSO:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    for name, option in (("nginx", "-v"), ("nghttpd", "--version")):
        path = find(name)
        if path is not None:
            told = subprocess.run([path, option], capture_output=True, text=True, check=False)
            versions[name] = (told.stdout + told.stderr).strip().rpartition("/")[2]
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "kernel": platform.release(),
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "core of the clients": cores[-1] if len(cores) > 1 else None,
            "core of the servers": cores[0] if len(cores) > 1 else None,
        },
        "versions": {name: told for name, told in versions.items() if told is not None},
        "servers": running.commands,
    }


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def write(output: Path, results: dict[str, Any]) -> None:
    """The JSON, and what is made of it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    output.with_suffix(".md").write_text(markdown(results), "utf-8")
    output.with_suffix(".svg").write_text(svg(results), "utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure lamina beside its peers.")
    parser.add_argument("extent", nargs="?", choices=["short", "full"], default="short")
    parser.add_argument("--rows", type=names(BY_NAME), help="only these, by name, with commas between them")
    parser.add_argument("--clients", type=names(CLIENTS_BY_NAME), help="only these")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--seconds", type=float, help="measured in each cell")
    parser.add_argument("--warm-up", type=float, help="seconds before that")
    parser.add_argument("--output", type=Path, help="the file of JSON; by default in benchmarks/results")
    parser.add_argument(
        "--merge", action="store_true", help="keep the rows in that file that are not measured now"
    )
    parser.add_argument(
        "--list", action="store_true", help="show the rows and the clients, and measure nothing"
    )
    given = parser.parse_args()
    if given.list:
        for row in ROWS:
            print(f"{row.name:24}{row.title}{'' if row.is_main else ' (full)'}")
        for client in CLIENTS:
            told = installed_version(client)
            print(f"{client.name:24}{NOT_INSTALLED if told is None else told}")
        return 0
    plan = plan_of(given)
    extent = "latest" if given.rows or given.clients else given.extent
    output: Path = given.output or RESULTS / f"{extent}.json"
    # The servers inherit the core that this process is on now, and it waits while a client works.
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > 1:
        os.sched_setaffinity(0, {cores[0]})
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        try:
            with servers(folder) as running:
                results = describe(running, cores)
                results["rows"] = {}
                if given.merge and output.is_file():
                    results["rows"] = json.loads(output.read_text("utf-8"))["rows"]
                environments = trust_by_default(folder, running.authority)
                carry_out(
                    plan, Bench(running, environments, cores[-1] if len(cores) > 1 else None), results, output
                )
        except NotInstalledError as error:
            print(error, file=sys.stderr)
            return 2
    print(markdown(results))
    print(f"{time.monotonic() - started:.0f} s; {output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
