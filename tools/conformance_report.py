"""Print how each backend keeps the contracts of the interfaces: a table, and the reports of those that do not.

    python tools/conformance_report.py [words]

With words only the backends whose names have one of them, and all of their reports. Exits with 1 where a rule is
broken.

The backends are `tests/stack_conformance.py`, which the tests use too.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from stack_conformance import CHECKS  # pyright: ignore[reportMissingImports] # see above

COLUMNS = ("passed", "failed", "not applicable")


def main(words: list[str]) -> int:
    chosen = [name for name in CHECKS if not words or any(word in name for word in words)]
    width = max((len(name) for name in chosen), default=0) + 2
    print("backend".ljust(width) + "".join(column.rjust(len(column) + 2) for column in COLUMNS) + "  seconds")
    reports = {}
    for name in chosen:
        report = reports[name] = CHECKS[name]()
        counts = [len(found) for found in (report.passed, report.failed, report.not_applicable)]
        cells = "".join(
            str(count).rjust(len(column) + 2) for count, column in zip(counts, COLUMNS, strict=True)
        )
        seconds = sum(result.seconds for result in report.results)
        print(f"{name.ljust(width)}{cells}{seconds:9.1f}", flush=True)
    broken = {name: report for name, report in reports.items() if report.failed}
    for name, report in (reports if words else broken).items():
        print(f"\n{name}\n{report}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
