"""What the kit has found: a result for each rule, and a table of them."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lamina_interfaces import RuntimeName

Verdict = Literal["passed", "failed", "not applicable"]
"""What came of a rule."""

WIDTH = 110
"""Columns of a report."""


class ConformanceError(AssertionError):
    """A backend or a stream has broken its contract; the text is the report of what failed."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one rule.

    Attributes:
        rule: its name.
        source: the method whose docstring makes the promise, `"NetworkStream.read"`.
        sentence: the promise, in that docstring's words.
        verdict: what came of it.
        detail: what was seen, where it failed; why it does not apply.
        seconds: how long it took.
    """

    rule: str
    source: str
    sentence: str
    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What the kit has found. `str` makes a table of it.

    Attributes:
        subject: what was checked.
        runtime: what it ran in: `"threads"`, `"asyncio"` or `"trio"`.
        results: one for each rule, in their order.
    """

    subject: str
    runtime: RuntimeName
    results: tuple[Result, ...]

    @property
    def passed(self) -> Sequence[Result]:
        """The rules that are kept."""
        return self._with("passed")

    @property
    def failed(self) -> Sequence[Result]:
        """The rules that are broken."""
        return self._with("failed")

    @property
    def not_applicable(self) -> Sequence[Result]:
        """The rules that could not be checked here."""
        return self._with("not applicable")

    def _with(self, verdict: Verdict) -> Sequence[Result]:
        return [result for result in self.results if result.verdict == verdict]

    def __getitem__(self, rule: str) -> Result:
        """The result of one rule.

        Raises:
            KeyError: no rule of that name was checked.
        """
        for result in self.results:
            if result.rule == rule:
                return result
        raise KeyError(rule)

    def raise_for_failures(self) -> None:
        """Do nothing if no rule is broken.

        Raises:
            ConformanceError: one is; the text is the summary and the broken rules.
        """
        if self.failed:
            raise ConformanceError("\n".join([self.summary, *map(_explained, self.failed)]))

    @property
    def summary(self) -> str:
        """The numbers, in a line."""
        seconds = sum(result.seconds for result in self.results)
        return (
            f"{self.subject} under {self.runtime}: {len(self.passed)} passed, {len(self.failed)} failed, "
            f"{len(self.not_applicable)} not applicable, in {seconds:.1f} s"
        )

    def __str__(self) -> str:
        width = max((len(result.rule) for result in self.results), default=0)
        lines = []
        for result in self.results:
            if result.verdict == "failed":
                lines.append(_explained(result))
                continue
            reason = f"  ({result.detail})" if result.detail else ""
            lines.append(f"{_MARKS[result.verdict]} {result.rule.ljust(width)}{reason}".rstrip())
        return "\n".join([*lines, self.summary])


_MARKS: dict[Verdict, str] = {"passed": "ok  ", "failed": "FAIL", "not applicable": "-   "}


def _explained(result: Result) -> str:
    """A broken rule: what is promised where, and what was seen instead."""
    lines = [f"{_MARKS[result.verdict]} {result.rule}"]
    for title, text in ((result.source, f'"{result.sentence}"'), ("seen", result.detail)):
        lines += textwrap.wrap(
            f"{title}: {text}",
            WIDTH,
            initial_indent=" " * 7,
            subsequent_indent=" " * 11,
            break_on_hyphens=False,
        )
    return "\n".join(lines)
