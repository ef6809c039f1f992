"""Search for bytes that HTTP/1.1's plain way takes for something else than h11 does: ``nox -s fuzz -- --minutes 60``.

Each input is a request, cuts and an answer. Both ways play it (``packages/pool/tests/pool_two_ways.py``), and any
difference in what was sent, told, raised, or said of the connection afterwards ends the search with the input that
shows it. atheris leads it by the branches that an input takes; where it is not installed, the same inputs are changed
at random, which finds less.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "packages" / "pool" / "tests"))

atheris: Any
try:
    import atheris  # type: ignore[import-not-found, import-untyped, no-redef, unused-ignore] # pyright: ignore[reportMissingImports] # there is none for every Python
except ImportError:
    atheris = None

with nullcontext() if atheris is None else atheris.instrument_imports(include=["h11", "lamina_pool"]):
    import lamina_pool._http11_judge  # noqa: F401 - so that it is watched too; it would be imported only later
    from pool_catalogue import (  # type: ignore[import-not-found, unused-ignore] # pyright: ignore[reportMissingImports] # see above
        CATALOGUE,
    )
    from pool_two_ways import (  # type: ignore[import-not-found, unused-ignore] # pyright: ignore[reportMissingImports] # see above
        REQUESTS,
        WORDS,
        acts_of,
        cut_at,
        differences,
    )

KINDS = list(REQUESTS)
HEADER = 6
"""Bytes at the start of an input: the request, the moment of a question, and where the rest is cut."""


def one_input(data: bytes) -> None:
    """Play one input.

    Raises:
        AssertionError: the two ways differ.
    """
    if len(data) < HEADER:
        return
    kind, moment, *places = data[:HEADER]
    pieces = cut_at(data[HEADER:], [place * 3 for place in places])
    acts = acts_of(
        KINDS[kind % len(KINDS)], pieces, ends=bool(moment & 1), asks_at=moment >> 2 if moment & 2 else None
    )
    found = differences(acts)
    assert not found, f"{acts!r}: {found!r}"


def seeds() -> list[bytes]:
    """Inputs to begin with: the catalogue of faults, and good answers."""
    wires = [row.wire for row in CATALOGUE.values() if len(row.wire) < 2000]
    wires += [
        b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nKeep-Alive: timeout=5\r\n\r\n5\r\nhello\r\n1F\r\n"
        + b"x" * 31
        + b"\r\n0\r\n\r\n",
    ]
    return [
        bytes([kind, moment, 7, 13, 20, 40]) + wire
        for wire in wires
        for kind in range(3)
        for moment in (0, 1)
    ]


def changed(data: bytes, rng: random.Random) -> bytes:
    """The input with a few bytes or words more, less or doubled."""
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        match rng.randrange(5):
            case 0:
                data = data[:at] + rng.choice(WORDS) + data[at:]
            case 1:
                data = data[:at] + data[at + rng.randint(1, 3) :]
            case 2:
                data = data[:at] + bytes([rng.randrange(256)]) + data[at + rng.randrange(2) :]
            case 3:
                data = data[:at] + data[max(0, at - rng.randint(1, 30)) :]
            case _:
                line = data.find(b"\n", at) + 1
                data = data[:line] + rng.choice(WORDS) + data[line:]
    return data[:4000]


def search_at_random(seconds: float) -> None:
    rng = random.Random()
    inputs = seeds()
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        one_input(changed(rng.choice(inputs), rng))
        count += 1
    print(f"{count} inputs, and no difference", flush=True)


def search_with_atheris(seconds: float, corpus: str | None) -> None:
    with tempfile.TemporaryDirectory() as place:
        for number, seed in enumerate(seeds()):
            Path(place, f"seed-{number}").write_bytes(seed)
        words = Path(place, "words.dict")
        quoted = ["".join(f"\\x{byte:02x}" for byte in word) for word in WORDS if len(word) < 60]
        words.write_text("".join(f'"{text}"\n' for text in dict.fromkeys(quoted)), "ascii")
        atheris.Setup(
            [
                sys.argv[0],
                f"-max_total_time={seconds:.0f}",
                "-max_len=4000",
                "-len_control=0",
                f"-dict={words}",
                f"-artifact_prefix={tempfile.gettempdir()}/",
                *([corpus] if corpus is not None else []),
                place,
            ],
            one_input,
        )
        atheris.Fuzz()  # ends the process


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="how long to search (default: %(default)s)"
    )
    parser.add_argument("--corpus", help="a folder in which atheris keeps what it finds interesting")
    parser.add_argument("--random", action="store_true", help="do without atheris")
    options = parser.parse_args()
    seconds = 60 * options.minutes
    if atheris is not None and not options.random:
        search_with_atheris(seconds, options.corpus)
        return
    if atheris is None:
        print("atheris is not installed (there is none for every Python): searching at random", flush=True)
    search_at_random(seconds)


if __name__ == "__main__":
    main()
