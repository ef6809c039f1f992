"""Check that an environment holds what the given requirements declare, all of it and nothing else.

    closure.py --python ENV/bin/python --ours lamina-pool=lamina_pool,... "lamina-pool[http2]" pytest

Needs ``packaging``; the environment under test needs nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable
from typing import TypedDict

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Runs in the environment under test, which need not have more than the standard library.
PROBE = """
import importlib.metadata, importlib.util, json, sys
print(json.dumps({
    "needs": {d.metadata["Name"]: d.requires or [] for d in importlib.metadata.distributions()},
    "importable": [name for name in sys.argv[1:] if importlib.util.find_spec(name)],
}))
"""
SEEDS = {"pip", "setuptools", "wheel"}  # what a new environment may hold by itself


class Environment(TypedDict):
    """What the probe prints."""

    needs: dict[str, list[str]]
    importable: list[str]


def closure(requirements: Iterable[str], needs: dict[str, list[str]]) -> set[str]:
    """Names of all distributions that the requirements lead to, by the metadata in `needs`."""
    found: set[tuple[str, str]] = set()
    queue = [Requirement(text) for text in requirements]
    while queue:
        requirement = queue.pop()
        name = canonicalize_name(requirement.name)
        for extra in ("", *requirement.extras):
            if (name, extra) in found:
                continue
            found.add((name, extra))
            queue.extend(
                needed
                for needed in map(Requirement, needs.get(name, ()))
                if needed.marker is None or needed.marker.evaluate({"extra": extra})
            )
    return {name for name, _ in found}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", required=True)
    parser.add_argument("--ours", required=True)
    parser.add_argument("requirements", nargs="+")
    options = parser.parse_args()

    ours: dict[str, str] = dict(pair.split("=") for pair in options.ours.split(","))
    probe = [options.python, "-I", "-c", PROBE, *ours.values()]
    seen: Environment = json.loads(subprocess.run(probe, capture_output=True, check=True).stdout)
    needs: dict[str, list[str]] = {
        canonicalize_name(name): requires for name, requires in seen["needs"].items()
    }

    declared = closure(options.requirements, needs)
    complaints = [f"installed but not declared: {name}" for name in sorted(set(needs) - declared - SEEDS)]
    complaints += [f"declared but not installed: {name}" for name in sorted(declared - set(needs))]
    complaints += [
        f"importable but not declared: {module}"
        for distribution, module in ours.items()
        if module in seen["importable"] and distribution not in declared
    ]
    print(f"{', '.join(options.requirements)}: {len(declared)} distributions", *complaints, sep="\n  ")
    return int(bool(complaints))


if __name__ == "__main__":
    sys.exit(main())
