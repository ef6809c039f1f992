"""The benchmarks: how figures become ratios, verdicts and tables; and one small run of two clients."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import report
from bench_clients import Target as Peer
from bench_clients import body_length
from bench_rows import (
    BY_NAME,
    CANNOT,
    CLIENTS,
    CLIENTS_BY_NAME,
    ROWS,
    TARGETS,
    Target,
    installed_version,
    why_not,
)
from cell import FRESH, figures
from stack_servers import installed

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def results_of(rows: dict[str, dict[str, list[float | None]]], figure: str = "value") -> dict[str, Any]:
    """What `run.py` writes, from one figure of each round."""

    def cell(value: float | None) -> dict[str, Any]:
        return {"failed": "OSError: it did not work"} if value is None else {figure: value}

    return {
        "made": "2026-01-02T03:04:05+00:00",
        "machine": {"implementation": "CPython", "python": "3", "kernel": "6", "cpu": "one", "cores": 2},
        "versions": {"lamina": "1"},
        "rows": {
            row: {
                "command": "python benchmarks/run.py",
                "seconds": 1.0,
                "left_out": {"aiohttp": "no blocking API"},
                "cells": {client: [cell(value) for value in values] for client, values in cells.items()},
            }
            for row, cells in rows.items()
        },
    }


# --- the tables of what is measured ------------------------------------------------------------------------


def test_names_are_unique_and_targets_are_of_rows_and_clients_that_there_are() -> None:
    assert len(BY_NAME) == len(ROWS)
    assert len(CLIENTS_BY_NAME) == len(CLIENTS)
    for target in TARGETS:
        row = BY_NAME[target.row]
        assert why_not(row, CLIENTS_BY_NAME["lamina"]) is None
        if target.peer is not None:
            assert why_not(row, CLIENTS_BY_NAME[target.peer]) is None, target
        assert target.least is not None or target.aim is not None


def test_every_row_has_a_target_but_the_one_that_the_goals_do_not_name() -> None:
    assert {row.name for row in ROWS} - {target.row for target in TARGETS} == {"idle"}


def test_lamina_takes_part_everywhere() -> None:
    assert [row.name for row in ROWS if why_not(row, CLIENTS_BY_NAME["lamina"])] == []
    assert {row for row, _ in CANNOT} <= set(BY_NAME)


@pytest.mark.parametrize(
    ("row", "client", "reason"),
    [
        ("sequence", "aiohttp", "no blocking API"),
        ("asyncio", "http.client", "no asyncio"),
        ("trio-100", "pycurl", "no trio"),
        ("h2-100", "raw", "no HTTP/2"),
        ("sequence", "h2", "no HTTP/1.1"),
        ("h2-threads-16", "pycurl", "threads cannot share a connection"),
        ("cold", "aiohttp", None),
        ("cold-asyncio", "urllib3", "no asyncio"),
        ("fresh", "aiohttp", None),
        ("sequence", "pyreqwest", None),
    ],
)
def test_what_a_client_cannot_do_has_a_reason(row: str, client: str, reason: str | None) -> None:
    assert why_not(BY_NAME[row], CLIENTS_BY_NAME[client]) == reason


def test_a_program_for_each_client_that_begins_in_a_fresh_process() -> None:
    taking_part = {client.name for client in CLIENTS if why_not(BY_NAME["fresh"], client) is None}
    assert taking_part == set(FRESH)


def test_what_comes_with_python_is_installed_in_no_version_and_what_is_not_there_is_not() -> None:
    assert installed_version(CLIENTS_BY_NAME["http.client"]) == ""
    assert installed_version(CLIENTS_BY_NAME["lamina"])
    absent = type(CLIENTS[0])("nobody", "no-such-distribution", ("blocking",))
    assert installed_version(absent) is None


# --- figures, ratios, verdicts -----------------------------------------------------------------------------


def test_figures_count_in_the_unit_of_their_row() -> None:
    one = figures(BY_NAME["sequence"], 1000, (0.5, 0.1))
    assert one["value"] == 2000
    assert one["cpu_us"] == pytest.approx(100)
    large = figures(BY_NAME["download"], 3, (0.5, 0.1))  # of 100 MiB each
    assert large["value"] == 600
    assert large["cpu_us"] == pytest.approx(0.1 / 300 * 1e6)


def test_a_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians() -> None:
    results = results_of({"sequence": {"lamina": [100, 10, 40], "raw": [50, 40, 10]}})
    assert report.ratio(results, "sequence", "raw") == 2.0
    assert report.middle(report.series(results, "sequence", "lamina")) == 40
    # of medians: 40 / 40


def test_rounds_that_failed_count_for_nobody() -> None:
    results = results_of({"sequence": {"lamina": [None, 10, 40], "raw": [50, 5, None]}})
    assert report.ratio(results, "sequence", "raw") == 2.0
    assert report.ratio(results, "sequence", "pycurl") is None
    assert report.ratio(results, "threads-16", "raw") is None


@pytest.mark.parametrize(
    ("target", "reached", "verdict"),
    [
        (Target("sequence", "http.client", 1.0), 1.0, "met"),
        (Target("sequence", "http.client", 1.0), 0.99, "short"),
        (Target("h2-100", "h2", 0.65, 0.9), 0.7, "met"),
        (Target("h2-100", "h2", 0.65, 0.9), 0.9, "aim met"),
        (Target("h2-100", "h2", 0.65, 0.9), 0.6, "short"),
        (Target("sequence", "pycurl", aim=1.0), 1.2, "aim met"),
        (Target("sequence", "pycurl", aim=1.0), 0.8, "aim missed"),
        (Target("idle-asyncio", "aiohttp", 1.0), 0.5, "met"),
        (Target("idle-asyncio", "aiohttp", 1.0), 1.1, "short"),
        (Target("idle-tls-asyncio", None, 52.0), 52.0, "met"),
        (Target("upload-asyncio", None, 8.0, figure="extra_mb"), 9.0, "short"),
        (Target("upload-asyncio", "raw", 0.8), 0.9, "met"),
    ],
)
def test_a_verdict_knows_whether_more_or_less_is_better(target: Target, reached: float, verdict: str) -> None:
    assert target.verdict(reached) == verdict


def test_targets_are_held_against_ratios_or_against_the_figure_itself() -> None:
    rows: dict[str, dict[str, list[float | None]]] = {
        "sequence": {"lamina": [10], "http.client": [20], "pycurl": [5]},
        "idle-tls-asyncio": {"lamina": [36]},
    }
    found = {(each.target.row, each.target.peer): each for each in report.reached(results_of(rows))}
    assert found["sequence", "http.client"].verdict == "short"
    assert found["sequence", "pycurl"].verdict == "aim met"
    assert found["idle-tls-asyncio", None].verdict == "met"
    assert len(found) == 3  # nothing is said about what was not measured


def test_the_extra_memory_of_an_upload_is_looked_at_by_itself() -> None:
    results = results_of({"upload-asyncio": {"lamina": [3.0], "raw": [1.0]}}, "extra_mb")
    (one,) = report.reached(results)
    assert (one.value, one.verdict) == (3.0, "met")


# --- tables and the plot -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0.1234, "0.123"),
        (9.999, "10"),
        (36.44, "36.4"),
        (123.4, "123"),
        (15678, "15,700"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert report.number(value) == text


def test_the_report_tells_figures_verdicts_and_why_there_is_none() -> None:
    results = results_of({"sequence": {"lamina": [10.0], "http.client": [20.0], "pycurl": [None]}})
    text = report.markdown(results)
    assert "| blocking, one connection, in sequence, requests/s | 10 | 20 | \N{EN DASH} |" in text
    assert "| ≥ 1 | 0.50 | **short** |  |" in text
    assert "0 of 1 targets are met, and 0 of 0 aims. Short of the target: blocking, one connection" in text
    assert "- aiohttp: no blocking API\n" in text
    assert "- pycurl: failed: OSError: it did not work (`sequence`)" in text


def test_beside_a_ratio_of_rates_stands_that_of_processor_time() -> None:
    results = results_of({"sequence": {"lamina": [10.0, 10.0], "http.client": [20.0, 20.0]}})
    cells = results["rows"]["sequence"]["cells"]
    for client, times in (("lamina", (50.0, 40.0)), ("http.client", (75.0, 60.0))):
        for cell, time in zip(cells[client], times, strict=True):
            cell["cpu_us"] = time
    assert "| 0.50 | **short** | 1.50 |" in report.markdown(results)


def test_every_line_of_a_table_has_the_same_columns() -> None:
    rows: dict[str, dict[str, list[float | None]]] = {
        row.name: {"lamina": [1.0], "raw": [2.0], "pycurl": [0.001]} for row in ROWS
    }
    for block in report.markdown(results_of(rows)).split("\n\n"):
        lines = block.splitlines()
        if lines[0].startswith("|"):
            assert len({line.count("|") for line in lines}) == 1


def test_the_plot_is_drawn_whatever_was_measured() -> None:
    rows: dict[str, dict[str, list[float | None]]] = {
        row.name: {client.name: [float(at + 1)] for at, client in enumerate(CLIENTS)} for row in ROWS
    }
    for results in (results_of({}), results_of(rows), results_of({"sequence": {"raw": [1.0]}})):
        drawn = ET.fromstring(report.svg(results))
        assert drawn.tag.endswith("svg")
    assert report.svg(results_of(rows)).count("<title>") == (len(CLIENTS) - 1) * len(ROWS)


def test_better_stands_to_the_right_whether_more_or_less_is_better() -> None:
    assert report.place(0.5) < report.place(1.0) < report.place(2.0)
    assert report.place(0.0001) == report.LEFT
    assert report.place(1000) == report.RIGHT

    def x_of(row: str) -> float:
        drawn = ET.fromstring(report.svg(results_of({row: {"lamina": [10.0], "httpcore": [20.0]}})))
        marks = [each for each in drawn.iter() if each.tag.endswith("circle")]
        return float(marks[0].get("cx", ""))

    assert x_of("sequence") > report.place(1.0)  # twice the rate
    assert x_of("idle-asyncio") < report.place(1.0)  # twice the memory


def test_figures_go_between_the_marks_of_a_page() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    written = report.with_figures(page, "new\n")
    assert written == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.with_figures(written, "new\n") == written
    for half in ("a page", report.BEGIN, report.END):
        with pytest.raises(ValueError, match="lacks the marks"):
            report.with_figures(half, "new\n")


# --- running -----------------------------------------------------------------------------------------------


def test_the_short_run_has_fewer_rows_and_rounds_than_the_full_one() -> None:
    run = importlib.import_module("run")
    nothing = {"rows": None, "clients": None, "rounds": None, "seconds": None, "warm_up": None}
    short, full = (run.plan_of(Namespace(extent=extent, **nothing)) for extent in ("short", "full"))
    assert full.rows == ROWS
    assert full.rounds == 5
    assert set(short.rows) < set(ROWS)
    assert short.rounds * short.seconds < full.rounds * full.seconds
    some = run.plan_of(Namespace(**{"extent": "short", **nothing, "rows": ["cold", "mib"], "rounds": 3}))
    assert [row.name for row in some.rows] == ["cold", "mib"]
    assert some.rounds == 3


def test_raw_clients_believe_only_what_they_asked_for() -> None:
    assert body_length(b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 13\r\nC: d") == 13
    assert body_length(b"HTTP/1.1 200 OK\r\ncontent-length: 13") == 13
    with pytest.raises(ConnectionError, match="404"):
        body_length(b"HTTP/1.1 404 Not Found\r\nContent-Length: 13")
    assert Peer("http://127.0.0.1:80/hello", None, 1).context() is None


def test_one_small_run_of_two_clients(tmp_path: Path) -> None:
    installed("nginx")
    output = tmp_path / "figures.json"
    subprocess.run(
        [
            *(sys.executable, str(BENCHMARKS / "run.py"), "--rows", "sequence", "--clients", "lamina,raw"),
            *("--rounds", "1", "--seconds", "0.1", "--warm-up", "0.05", "--output", str(output)),
        ],
        check=True,
        timeout=50,
        capture_output=True,
    )
    results = json.loads(output.read_text("utf-8"))
    for client in ("lamina", "raw"):
        (cell,) = results["rows"]["sequence"]["cells"][client]
        assert "failed" not in cell, cell
        assert cell["value"] > 0
        assert cell["cpu_us"] > 0
        assert cell["peak_mib"] > 1
    assert "| blocking, one connection, in sequence, requests/s |" in output.with_suffix(".md").read_text(
        "utf-8"
    )
    ET.fromstring(output.with_suffix(".svg").read_text("utf-8"))
