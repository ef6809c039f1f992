"""Where the time of a request went, as bars of text under each other. Pure: no clock, no output.

`spans_of` joins what a stream tells of its making (`get_extra_info("timings")`) and what the trace callback saw of
the request; `draw` makes lines of it:

    DNS    ███                                 3.1 ms
    TCP       █                                0.4 ms
    TLS        ████████                        8.9 ms
    wait               ██████████████████     20.2 ms
    body                                 ██    2.0 ms
    total                                     34.6 ms
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lamina_interfaces import TimingSpan

TITLES = {"dns": "DNS", "tcp": "TCP", "unix": "unix", "tls": "TLS", "proxy": "proxy"}
"""How the steps of connecting are called for a reader; others by their own names."""

BAR = "█"
ASCII_BAR = "#"

BAR_COLUMNS = 40
"""Columns for the bars alone; with title and number a line stays below 60."""


@dataclass(frozen=True, slots=True)
class Span:
    """A step and when it took place.

    Attributes:
        title: for the reader.
        start: seconds, on any clock that all spans share.
        end: seconds on it.
    """

    title: str
    start: float
    end: float


def spans_of(timings: Iterable[TimingSpan], moments: Mapping[str, float]) -> list[Span]:
    """The steps of one request, in their order.

    Args:
        timings: of the connection; those that ended before `"started"` belong to an earlier request, and are left
            out, as they are for a connection that is used again.
        moments: seconds on the same clock: `"started"`, `"sending"` (the first byte of the request went out), `"sent"`
            (the last one), `"answered"` (the head of the response is there), `"finished"` (its body is). Those that
            did not come to pass are absent. `"uploading"` tells that there is a
            body to send, `"broken_off"` is the end of a request that failed, and of its last step.

    Returns:
        The spans; `send` is a row of its own only where `"sent"` is told.
    """
    started = moments.get("started", float("-inf"))
    spans = [Span(TITLES.get(name, name), start, end) for name, start, end in timings if end >= started]
    waits_from = moments.get("sent", moments.get("sending"))
    uploads = "sent" in moments or "uploading" in moments
    steps = [
        ("send", moments.get("sending") if uploads else None, moments.get("sent")),
        ("wait", waits_from, moments.get("answered")),
        ("body", moments.get("answered"), moments.get("finished")),
    ]
    for number, (title, start, end) in enumerate(steps):
        if start is not None and end is not None:
            spans.append(Span(title, start, end))
        elif start is not None and "broken_off" in moments and not any(each[2] for each in steps[number:]):
            spans.append(Span(title, start, moments["broken_off"]))
            break
    return spans


def draw(spans: Sequence[Span], *, columns: int = BAR_COLUMNS, bar: str = BAR) -> list[str]:
    """One line for each span, to one scale, and one for the whole.

    Args:
        spans: in the order of the lines.
        columns: how wide the longest bar may be.
        bar: one character.

    Returns:
        The lines, without line breaks; none for no spans. Every span has at least one character of bar.
    """
    if not spans:
        return []
    begin = min(span.start for span in spans)
    whole = max(span.end for span in spans) - begin
    width = max(len("total"), *(len(span.title) for span in spans))

    def column(moment: float) -> int:
        return round((moment - begin) / whole * columns) if whole > 0 else 0

    lines = []
    for span in spans:
        # The least bar still has to fit in: a step of no length at the very end stands in the last column.
        left = min(column(span.start), columns - 1)
        right = max(column(span.end), left + 1)
        cells = (" " * left + bar * (right - left)).ljust(columns)
        lines.append(f"{span.title:<{width}}  {cells}  {_milliseconds(span.end - span.start)}")
    lines.append(f"{'total':<{width}}  {' ' * columns}  {_milliseconds(whole)}")
    return lines


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:>9,.1f} ms"
