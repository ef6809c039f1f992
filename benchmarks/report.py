"""Makes a table and a plot of the figures that `run.py` has measured, and puts them into the documentation.

    python benchmarks/report.py                          # the table of benchmarks/results/full.json
    python benchmarks/report.py FILE.json                # of another file
    python benchmarks/report.py --write-docs             # into docs/benchmarks.md and docs/images/benchmarks.svg
    python benchmarks/report.py --check                  # fails if they are not what it would write

A figure is the median over the rounds. A ratio is the median of the ratios of each round, in which both had the machine
in the same mood.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bench_rows import BY_NAME, CLIENTS, ROWS, SPEAKING, TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench_rows import Row, Target

HERE = Path(__file__).parent
FULL = HERE / "results" / "full.json"
PAGE = HERE.parent / "docs" / "benchmarks.md"
PICTURE = HERE.parent / "docs" / "images" / "benchmarks.svg"
BEGIN = "<!-- figures: written by benchmarks/report.py -->"
END = "<!-- figures end -->"

NOTHING = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"

Results = dict[str, Any]


# --- medians and ratios ------------------------------------------------------------------------------------


def series(results: Results, row: str, client: str, figure: str = "value") -> list[float | None]:
    """A client's figure in each round; `None` where it failed."""
    cells = results["rows"].get(row, {}).get("cells", {})
    return [cell.get(figure) for cell in cells.get(client, [])]


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what there is."""
    there = [value for value in values if value is not None]
    return median(there) if there else None


def ratio(results: Results, row: str, peer: str, figure: str = "value") -> float | None:
    """Lamina's figure by the peer's, round by round, and of that the median."""
    pairs = zip(series(results, row, "lamina", figure), series(results, row, peer, figure), strict=False)
    return middle(ours / theirs for ours, theirs in pairs if ours is not None and theirs)


@dataclass(frozen=True)
class Reached:
    """What came of a target.

    Attributes:
        target: the target.
        value: the ratio, or lamina's own figure.
    """

    target: Target
    value: float

    @property
    def verdict(self) -> str:
        return self.target.verdict(self.value)


def reached(results: Results) -> list[Reached]:
    """What came of every target that something is known of."""
    found = []
    for target in TARGETS:
        if target.peer is None:
            value = middle(series(results, target.row, "lamina", target.figure))
        else:
            value = ratio(results, target.row, target.peer, target.figure)
        if value is not None:
            found.append(Reached(target, value))
    return found


# --- tables ------------------------------------------------------------------------------------------------


def number(value: float | None) -> str:
    """Three digits that count; an en dash for nothing."""
    if value is None:
        return NOTHING
    if value >= 100:
        digits = max(0, math.floor(math.log10(value)) - 2)
        return f"{round(value, -digits):,.0f}"
    return f"{value:.3g}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(head)} |",
        f"|{'---|' * len(head)}",
        *(f"| {' | '.join(line)} |" for line in lines),
    ]


def label(client: str) -> str:
    return {"raw": "raw socket", "h2": "bare h2"}.get(client, client)


def measured_rows(results: Results) -> list[Row]:
    return [row for row in ROWS if row.name in results["rows"]]


def measured_clients(results: Results) -> list[str]:
    there = {client for row in results["rows"].values() for client in row["cells"]}
    return [client.name for client in CLIENTS if client.name in there]


def figure_table(results: Results, figure: str, heading: str) -> list[str]:
    """One figure of every client in every row that has it."""
    clients = measured_clients(results)
    lines = []
    for row in measured_rows(results):
        values = [middle(series(results, row.name, client, figure)) for client in clients]
        if any(value is not None for value in values):
            unit = row.unit if figure == "value" else ""
            lines.append([f"{row.title}{f', {unit}' if unit else ''}", *map(number, values)])
    return table([heading, *map(label, clients)], lines) if lines else []


def target_table(results: Results) -> list[str]:
    lines = []
    for each in reached(results):
        target = each.target
        what = f"lamina : {label(target.peer)}" if target.peer else "lamina"
        verdict = f"**{each.verdict}**" if each.verdict == "short" else each.verdict
        row = BY_NAME[target.row].title
        lines.append([row, what, target.wording, f"{each.value:.2f}", verdict, by_processor(results, target)])
    return table(["row", "figure", "to reach", "reached", "", "by CPU"], lines) if lines else []


def by_processor(results: Results, target: Target) -> str:
    """How many times the processor time of lamina's request the peer's takes."""
    share = target.peer and ratio(results, target.row, target.peer, "cpu_us")
    return f"{1 / share:.2f}" if share else ""


def gaps(results: Results) -> list[str]:
    """Why there is no figure where there is none."""
    reasons: dict[str, dict[str, list[str]]] = {}
    for row in measured_rows(results):
        measured = results["rows"][row.name]
        for client, reason in measured["left_out"].items():
            reasons.setdefault(client, {}).setdefault(reason, []).append(row.name)
        for client, cells in measured["cells"].items():
            for cell in cells:
                if "failed" in cell:
                    reasons.setdefault(client, {}).setdefault(f"failed: {cell['failed']}", []).append(
                        row.name
                    )
    lines = []
    for client, found in reasons.items():
        told = []
        for reason, rows in found.items():
            named = ", ".join(f"`{row}`" for row in dict.fromkeys(rows))
            told.append(reason if reason in SPEAKING else f"{reason} ({named})")
        lines.append(f"- {client}: {'; '.join(told)}")
    return lines


def summary(results: Results) -> str:
    """How many targets are met, and which are not."""
    found = reached(results)
    binding = [each for each in found if each.target.least is not None]
    short = [each for each in binding if each.verdict == "short"]
    aims = [each for each in found if each.target.aim is not None]
    met = [each for each in aims if each.verdict == "aim met"]
    text = (
        f"{len(binding) - len(short)} of {len(binding)} targets are met, and {len(met)} of {len(aims)} aims."
    )
    if short:
        rows = dict.fromkeys(BY_NAME[each.target.row].title for each in short)
        text += f" Short of the target: {'; '.join(rows)}."
    return text


def markdown(results: Results) -> str:
    """The whole report."""
    machine, versions = results["machine"], results["versions"]
    counts = {len(cells) for row in results["rows"].values() for cells in row["cells"].values()}
    commands = dict.fromkeys(row["command"] for row in results["rows"].values())
    rounds = f"{min(counts)} to {max(counts)}" if len(counts) > 1 else f"{max(counts, default=0)}"
    opening = (
        f"Measured on {results['made'][:10]} with {', '.join(f'`{command}`' for command in commands)}: "
        f"{machine['implementation']} "
        f"{machine['python']}, Linux {machine['kernel']}, {machine['cpu']}, {machine['cores']} cores; medians, rounds: "
        f"{rounds}."
    )
    parts = [
        [opening],
        [summary(results)],
        target_table(results),
        figure_table(results, "value", "figure"),
        ["Microseconds of the client's processor time for each request, or each MiB:"],
        figure_table(results, "cpu_us", "CPU, µs"),
        ["The most memory that the client's process took, in MiB:"],
        figure_table(results, "peak_mib", "memory, MiB"),
        ["Memory that an upload takes beyond the body, in MB:"]
        if figure_table(results, "extra_mb", "")
        else [],
        figure_table(results, "extra_mb", "memory, MB"),
        ["No figure:"] if gaps(results) else [],
        gaps(results),
        [f"Versions: {', '.join(f'{name} {told}' for name, told in versions.items())}."],
    ]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


# --- the plot ----------------------------------------------------------------------------------------------

WIDTH, LEFT, RIGHT, LINE = 900, 330, 870, 26
LOWEST, HIGHEST = 1 / 100, 20.0
"""The ends of the scale; what lies beyond is drawn at the end."""

MARKS = {
    "raw": ("#888888", "square"),
    "h2": ("#888888", "square"),
    "httpcore": ("#d55e00", "circle"),
    "httpcore2": ("#e69f00", "circle"),
    "http.client": ("#0072b2", "triangle"),
    "urllib3": ("#56b4e9", "triangle"),
    "aiohttp": ("#009e73", "triangle"),
    "pycurl": ("#cc79a7", "diamond"),
    "pyreqwest": ("#aa3377", "diamond"),
}
"""The look of each client, in colours that are told apart in most eyes, on white and on black."""

STYLE = """
.bench { --ink: #222; --faint: #bbb; --paper: #fff; }
@media (prefers-color-scheme: dark) { .bench { --ink: #ddd; --faint: #555; --paper: #161616; } }
.bench text { font: 12px sans-serif; fill: var(--color-foreground-primary, var(--ink)); }
.bench .end { text-anchor: end; }
.bench .mid { text-anchor: middle; }
.bench .grid { stroke: var(--color-background-border, var(--faint)); stroke-width: 1; }
.bench .one { stroke: var(--color-foreground-primary, var(--ink)); stroke-width: 2; }
.bench .mark { stroke: var(--color-background-primary, var(--paper)); stroke-width: 1; }
"""


def place(factor: float) -> float:
    """Where a factor stands on the scale, in pixels."""
    share = math.log(min(max(factor, LOWEST), HIGHEST) / LOWEST) / math.log(HIGHEST / LOWEST)
    return LEFT + share * (RIGHT - LEFT)


def mark(client: str, x: float, y: float, title: str = "") -> str:
    colour, shape = MARKS[client]
    told = f"<title>{title}</title>" if title else ""
    if shape == "circle":
        return f'<circle class="mark" cx="{x:.1f}" cy="{y}" r="5" fill="{colour}">{told}</circle>'
    paths = {
        "square": "m-4.5 -4.5h9v9h-9z",
        "triangle": "m0 -6l5.5 10h-11z",
        "diamond": "m0 -6l6 6l-6 6l-6 -6z",
    }
    return f'<path class="mark" d="M{x:.1f} {y}{paths[shape]}" fill="{colour}">{told}</path>'


def svg(results: Results) -> str:
    """For each row how the others stand to lamina: to the right of the line who does better."""
    rows = [row for row in measured_rows(results) if middle(series(results, row.name, "lamina")) is not None]
    bottom = 40 + LINE * len(rows)
    lines = []
    for factor in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20):
        x = place(factor)
        kind = "one" if factor == 1 else "grid"
        lines += [
            f'<path class="{kind}" d="M{x:.1f} 30V{bottom}"/>',
            f'<text class="mid" x="{x:.1f}" y="20">{"lamina" if factor == 1 else f"{factor:g} {TIMES}"}</text>',
        ]
    for at, row in enumerate(rows):
        y = 48 + LINE * at
        lines.append(f'<text class="end" x="{LEFT - 12}" y="{y + 4}">{row.title.replace("`", "")}</text>')
        for client in MARKS:
            share = ratio(results, row.name, client)
            if share:
                factor = share if row.is_less_better else 1 / share
                told = f"{client}: {number(middle(series(results, row.name, client)))} {row.unit}"
                lines.append(mark(client, place(factor), y, told))
    x = 20.0
    for client in MARKS:
        if client in measured_clients(results):
            name = label(client)
            lines += [mark(client, x, bottom + 24), f'<text x="{x + 12:.0f}" y="{bottom + 28}">{name}</text>']
            x += 34 + 7.2 * len(name)
    opening = (
        f'<svg class="bench" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 44}" role="img" '
        'aria-labelledby="bench-title bench-text">'
    )
    description = (
        "One line for each row of the table, on a logarithmic scale: left of the middle line are clients that are "
        "slower than lamina, or take more memory, right of it those that do better."
    )
    return "\n".join(
        [
            opening,
            '<title id="bench-title">Other clients beside lamina</title>',
            f'<desc id="bench-text">{description}</desc>',
            f"<style>{STYLE}</style>",
            *lines,
            "</svg>",
            "",
        ]
    )


# --- the documentation -------------------------------------------------------------------------------------


def with_figures(page: str, figures: str) -> str:
    """A page with other figures between its marks.

    Raises:
        ValueError: the marks are not there.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{figures}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a table and a plot of what was measured.")
    parser.add_argument("file", nargs="?", type=Path, default=FULL, help="of JSON, written by run.py")
    parser.add_argument("--write-docs", action="store_true", help="put them into the documentation")
    parser.add_argument("--check", action="store_true", help="fail if the documentation has others")
    given = parser.parse_args()
    results = json.loads(given.file.read_text("utf-8"))
    figures, picture = markdown(results), svg(results)
    if not given.check and not given.write_docs:
        print(figures)
        return 0
    page = PAGE.read_text("utf-8")
    written = with_figures(page, figures)
    is_same = written == page and PICTURE.is_file() and PICTURE.read_text("utf-8") == picture
    if given.check and not is_same:
        print(
            f"{PAGE.name} has other figures than {given.file.name}: run report.py --write-docs",
            file=sys.stderr,
        )
        return 1
    if given.write_docs:
        PAGE.write_text(written, "utf-8")
        PICTURE.write_text(picture, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
