"""What a rule is, and the table of all of them.

A rule is a coroutine over a `Case`, written once for threads, asyncio and trio. It stands for one sentence of a
docstring in `lamina_interfaces`, which it quotes: a test holds the quotations to the docstrings.

The rules themselves are in the modules `_rules_…`; importing those fills the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ._case import Case

Where = Literal["anywhere", "async"]
"""Whether a promise is made by async streams and backends only."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A promise, and how it is checked.

    Attributes:
        name: what reports call it.
        source: whose docstring makes the promise.
        sentence: the promise, in that docstring's words.
        check: the coroutine function; it raises `Broken`, `NotApplicable`, or whatever the stream raises.
        of_backends: whether it is about a backend, not a stream.
        where: in which worlds it holds.
    """

    name: str
    source: str
    sentence: str
    check: Callable[[Case], Coroutine[Any, Any, None]]
    of_backends: bool = False
    where: Where = "anywhere"


RULES: dict[str, Rule] = {}
"""All rules, by name, in the order of a report."""


def rule(
    source: str, sentence: str, *, where: Where = "anywhere"
) -> Callable[[Callable[[Case], Coroutine[Any, Any, None]]], Callable[[Case], Coroutine[Any, Any, None]]]:
    """Put a coroutine function into the table, under its own name."""

    def enter(
        check: Callable[[Case], Coroutine[Any, Any, None]],
    ) -> Callable[[Case], Coroutine[Any, Any, None]]:
        name = check.__name__.replace("_", "-")
        assert name not in RULES, name
        RULES[name] = Rule(name, source, sentence, check, "Backend" in source, where)
        return check

    return enter
