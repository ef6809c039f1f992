"""The same fault is the same error on every backend; the faults are in `stack_faults`.

They are the backends' share of A16, C01, C06, C07, D01, D02, D03, D05, D06, D07, F01, F02, H04 and J04.
"""

from __future__ import annotations

from functools import cache

import pytest

from stack_faults import FAULTS, Fault, Outcome, outcome
from stack_helpers import assert_no_sockets_since, open_sockets
from stack_worlds import ASYNC, World

SCALES = (1.0, 10.0, 100.0)
"""A machine that is too busy for a short limit is given longer ones."""


@cache
def on_the_blocking_backend(name: str, scale: float) -> Outcome:
    return outcome(FAULTS[name], World("sync"), scale)


def is_right(fault: Fault, found: Outcome) -> bool:
    wanted = None if fault.error is None else fault.error.__name__
    return (found.error, found.phase) == (wanted, fault.phase)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_the_error_that_the_table_says(name: str) -> None:
    fault = FAULTS[name]
    before = open_sockets()
    found = Outcome()
    for scale in SCALES if fault.timed else SCALES[:1]:
        found = on_the_blocking_backend(name, scale)
        if is_right(fault, found):
            break
    assert is_right(fault, found), found
    assert_no_sockets_since(before)


@pytest.mark.parametrize("world_name", ASYNC)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_the_same_error_as_on_the_blocking_backend(name: str, world_name: str) -> None:
    fault, world = FAULTS[name], World(world_name)
    before = open_sockets()
    found = wanted = Outcome()
    for scale in SCALES if fault.timed else SCALES[:1]:
        found, wanted = outcome(fault, world, scale), on_the_blocking_backend(name, scale)
        if found == wanted:
            break
    assert found == wanted
    assert_no_sockets_since(before)
