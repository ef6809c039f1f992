"""Print what comes of each fault on each backend: the class of the exception, and how late a deadline was.

    python tools/fault_table.py [words]

With words only the faults whose names have one of them. Exits with 1 where a backend differs from the blocking one, in
the class or in anything else that the caller sees of the error, and says in what.

The faults are `tests/stack_faults.py`, which the tests use too.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from stack_faults import FAULTS, SHORT, Fault, Outcome, outcome  # pyright: ignore[reportMissingImports] # see above
from stack_worlds import NAMES, World  # pyright: ignore[reportMissingImports] # see above

TRIES = (1.0, 10.0)
"""Factors for the limits; the second for a machine that was too busy for the first."""


def run(fault: Fault, name: str) -> tuple[Outcome, float]:
    """What comes of it, and how many seconds it took."""
    start = time.perf_counter()
    try:
        found = outcome(fault, World(name))
    except AssertionError as error:
        found = Outcome(error="wrong", message=str(error))
    return found, time.perf_counter() - start


def differences(fault: Fault, name: str, wanted: Outcome, found: Outcome) -> list[str]:
    """In words, what a backend does in another way than the blocking one."""
    if found != wanted and fault.timed and "wrong" not in (found.error, wanted.error):
        wanted, found = (outcome(fault, World(each), TRIES[1]) for each in ("sync", name))
    return [
        f"    {name}: {attribute} is {ours!r}, and {theirs!r} on the blocking backend"
        for attribute, ours, theirs in zip(Outcome._fields, found, wanted, strict=True)
        if ours != theirs
    ]


def main(words: list[str]) -> int:
    chosen = [fault for fault in FAULTS.values() if not words or any(word in fault.name for word in words)]
    first = max(len(fault.name) for fault in chosen) + 2
    width = max(len("DeadlineExceeded"), *map(len, NAMES)) + 2
    print("fault".ljust(first) + "".join(name.ljust(width) for name in NAMES))
    differing = 0
    slowest = 0.0
    for fault in chosen:
        found = {}
        for name in NAMES:
            found[name], seconds = run(fault, name)
            if fault.timed and fault.error is not None:
                slowest = max(slowest, seconds - SHORT)
        cells = "".join((each.error or "-").ljust(width) for each in found.values())
        print(f"{fault.name.ljust(first)}{cells}".rstrip(), flush=True)
        lines = [line for name in NAMES[1:] for line in differences(fault, name, found["sync"], found[name])]
        differing += bool(lines)
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    print(f"\n{len(chosen)} faults, {len(NAMES)} backends, {differing} faults with differences")
    print(f"a limit of {SHORT} s was overrun by {slowest:.3f} s at most, peers and loops included")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
