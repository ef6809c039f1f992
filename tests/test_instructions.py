"""The count of instructions is the same each time, and its check finds what has grown."""

from __future__ import annotations

import gc
import json
from typing import Any

import pytest

import instructions
from instructions import PATHS, Count, HotPath, InstructionCounter, as_json, complaints, count


def path(name: str) -> HotPath:
    return next(each for each in PATHS if each.name == name)


def stored(**totals: float) -> dict[str, Any]:
    paths = {name: {"total": total, "modules": {"pool": total}} for name, total in totals.items()}
    return {"python": "3.12", "with": {}, "paths": paths}


def counted(**totals: float) -> dict[str, Count]:
    return {name: Count(total, {"pool": total - 1, "h11": 1}, {}) for name, total in totals.items()}


@pytest.mark.parametrize("name", ["scheduler", "HTTP/1.1 session", "blocking GET", "asyncio GET, suspending"])
def test_two_counts_of_one_path_are_equal(name: str) -> None:
    first = count(path(name), exchanges=3)
    assert first == count(path(name), exchanges=3)
    assert first.total > 100


@pytest.mark.parametrize("name", [each.name for each in PATHS])
def test_every_path_runs_and_is_counted(name: str) -> None:
    found = count(path(name), exchanges=1)
    assert found.total == pytest.approx(sum(found.modules.values()), abs=0.5)
    assert found.total == pytest.approx(sum(found.functions.values()), abs=0.5)


def test_a_count_is_the_average_of_equal_exchanges() -> None:
    assert count(path("scheduler"), exchanges=2) == count(path("scheduler"), exchanges=7)


def test_the_work_of_the_benchmark_itself_is_left_out() -> None:
    modules = count(path("blocking GET"), exchanges=1).modules
    assert "lamina_pool._pool" in modules
    assert not {"instructions", "memory_streams"} & set(modules)


def test_only_what_runs_under_the_counter_is_counted() -> None:
    def work() -> int:
        return sum(number for number in range(20))

    counter = InstructionCounter()
    for _ in range(2):  # not the first time: see `HotPath`
        counter.counts.clear()
        with counter:
            work()
    under = counter.counts.total()
    work()
    assert counter.counts.total() == under
    assert set(counter.modules.values()) == {__name__}
    assert counter.counts[work.__code__] < under  # the rest is the generator's


def test_the_collector_waits_until_nothing_is_counted() -> None:
    """It comes at any moment, and calls what others have told it to: finalisers, and callbacks of its own."""
    ran: list[str] = []

    def collected(phase: str, info: dict[str, int]) -> None:
        ran.append(phase)

    def work() -> list[list[object]]:
        return [[] for _ in range(100)]

    counter = InstructionCounter()
    thresholds = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    try:
        with counter:
            ran.clear()  # it may have come until now
            work()
            while_counted = list(ran)
        work()
        assert gc.isenabled()
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collected)
    assert not while_counted
    assert ran
    assert collected.__code__ not in counter.counts


@pytest.mark.parametrize(
    ("total", "is_fine"), [(50.0, True), (100.0, True), (103.0, True), (103.1, False), (200.0, False)]
)
def test_a_path_may_grow_by_three_in_a_hundred_and_shrink_at_will(total: float, is_fine: bool) -> None:
    assert (complaints(stored(get=100.0), counted(get=total)) == []) is is_fine


def test_a_complaint_names_the_path_the_growth_and_where_it_is() -> None:
    lines = complaints(stored(get=100.0, post=100.0), counted(get=150.0, post=90.0))
    assert lines == ["get: 100 -> 150 (+50.0%): pool +49, h11 +1"]


def test_a_path_that_was_never_stored_is_complained_of() -> None:
    assert complaints(stored(), counted(get=1.0)) == ["get: not stored yet"]


def test_what_is_stored_can_be_checked_against() -> None:
    found = {"scheduler": count(path("scheduler"), exchanges=1)}
    assert complaints(json.loads(as_json(found)), found) == []


def test_the_stored_counts_are_of_all_paths() -> None:
    kept = json.loads(instructions.STORED.read_text("utf-8"))
    assert kept["python"] == instructions.PYTHON
    assert list(kept["paths"]) == [each.name for each in PATHS]
