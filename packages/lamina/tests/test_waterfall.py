"""Bars under each other: which spans a request has, and how they are drawn."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lamina._waterfall import BAR_COLUMNS, Span, draw, spans_of
from lamina_interfaces import TimingSpan

DNS, TCP, TLS = TimingSpan("dns", 1.0, 1.2), TimingSpan("tcp", 1.2, 1.3), TimingSpan("tls", 1.3, 1.6)

REQUESTS = [
    (
        "a new connection",
        (DNS, TCP, TLS),
        {"started": 0.9, "sending": 1.7, "answered": 2.0, "finished": 2.5},
        [("DNS", 1.0, 1.2), ("TCP", 1.2, 1.3), ("TLS", 1.3, 1.6), ("wait", 1.7, 2.0), ("body", 2.0, 2.5)],
    ),
    (
        "a connection of an earlier request",
        (DNS, TCP, TLS),
        {"started": 5.0, "sending": 5.0, "answered": 6.0, "finished": 7.0},
        [("wait", 5.0, 6.0), ("body", 6.0, 7.0)],
    ),
    (
        "an upload",
        (TCP,),
        {"started": 1.0, "sending": 1.3, "sent": 1.5, "answered": 2.0, "finished": 2.5},
        [("TCP", 1.2, 1.3), ("send", 1.3, 1.5), ("wait", 1.5, 2.0), ("body", 2.0, 2.5)],
    ),
    ("no answer", (TCP,), {"started": 1.0, "sending": 1.3}, [("TCP", 1.2, 1.3)]),
    ("half a body", (), {"started": 1.0, "sending": 1.3, "answered": 1.4}, [("wait", 1.3, 1.4)]),
    (
        "broken off in the wait",
        (TCP,),
        {"started": 1.0, "sending": 1.3, "broken_off": 9.0},
        [("TCP", 1.2, 1.3), ("wait", 1.3, 9.0)],
    ),
    (
        "broken off in the upload",
        (),
        {"started": 1.0, "sending": 1.3, "uploading": 1.3, "broken_off": 9.0},
        [("send", 1.3, 9.0)],
    ),
    (
        "broken off in the body, after an answer before the end of the upload",
        (),
        {"started": 1.0, "sending": 1.3, "uploading": 1.3, "answered": 2.0, "broken_off": 9.0},
        [("wait", 1.3, 2.0), ("body", 2.0, 9.0)],
    ),
    ("broken off before the connection", (), {"started": 1.0, "broken_off": 9.0}, []),
    ("no connection", (), {"started": 1.0}, []),
    ("nothing known", (), {}, []),
    ("a unix socket", (TimingSpan("unix", 1.0, 1.1),), {}, [("unix", 1.0, 1.1)]),
    ("a step of another backend", (TimingSpan("quic", 1.0, 1.1),), {}, [("quic", 1.0, 1.1)]),
]


@pytest.mark.parametrize(
    ("timings", "moments", "expected"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS]
)
def test_the_spans_of(
    timings: tuple[TimingSpan, ...], moments: dict[str, float], expected: list[tuple[str, float, float]]
) -> None:
    assert spans_of(timings, moments) == [Span(*each) for each in expected]


DRAWINGS = [
    ("nothing", [], []),
    (
        "steps that follow each other",
        [Span("DNS", 10.0, 10.001), Span("TCP", 10.001, 10.002), Span("wait", 10.002, 10.010)],
        [
            "DNS    #                 1.0 ms",
            "TCP     #                1.0 ms",
            "wait     ########        8.0 ms",
            "total                   10.0 ms",
        ],
    ),
    (
        "a step too short to see",
        [Span("TCP", 0.0, 0.0), Span("wait", 0.0, 1.0), Span("body", 1.0, 1.0)],
        [
            "TCP    #                 0.0 ms",
            "wait   ##########    1,000.0 ms",
            "body            #        0.0 ms",
            "total                1,000.0 ms",
        ],
    ),
    (
        "no time at all",
        [Span("TCP", 1.0, 1.0)],
        ["TCP    #                 0.0 ms", "total                    0.0 ms"],
    ),
    (
        "a gap between two steps",
        [Span("a long title", 0.0, 0.005), Span("wait", 0.006, 0.010)],
        [
            "a long title  #####             5.0 ms",
            "wait                ####        4.0 ms",
            "total                          10.0 ms",
        ],
    ),
]


@pytest.mark.parametrize(
    ("spans", "expected"), [row[1:] for row in DRAWINGS], ids=[row[0] for row in DRAWINGS]
)
def test_the_drawing_of(spans: list[Span], expected: list[str]) -> None:
    assert draw(spans, columns=10, bar="#") == expected


moments = st.floats(min_value=-1e6, max_value=1e6, allow_nan=False)
span_lists = st.lists(
    st.builds(lambda a, b: Span("step", min(a, b), max(a, b)), moments, moments), min_size=1
)


@settings(deadline=None)
@given(spans=span_lists, columns=st.integers(min_value=1, max_value=100))
def test_every_step_has_its_bar_inside_the_columns(spans: list[Span], columns: int) -> None:
    lines = draw(spans, columns=columns)
    assert len(lines) == len(spans) + 1
    for line in lines[:-1]:
        cells = line[len("total  ") : len("total  ") + columns]
        assert 1 <= cells.count("█") == line.count("█")
        assert cells.strip(" ").strip("█") == ""


@settings(deadline=None)
@given(spans=span_lists)
def test_a_later_step_never_begins_further_left(spans: list[Span]) -> None:
    starts = [line.index("█") for line in draw(sorted(spans, key=lambda span: span.start))[:-1]]
    assert starts == sorted(starts)


def test_the_longest_line_fits_a_terminal() -> None:
    lines = draw([Span("wait", 0.0, 3599.0)])
    assert max(map(len, lines)) <= 79
    assert lines[0].count("█") == BAR_COLUMNS
