"""Running the rules: each one by itself, bounded in time, and once more with more time where it has failed.

A rule runs in a thread or a task of its own. One that does not come back has its connections broken, which wakes
whatever waits for a socket; one that still does not come back (in threads nothing more can be done) is left behind, and
the report says so.

Limits are short first, so that a report takes seconds. What fails is tried again with limits ten times as long: then it
was not the machine that was slow. After a few rules that fail both times there is no such second try any more.
"""

from __future__ import annotations

import inspect
import time
from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    AsyncNetworkBackendInterface,
    NetworkBackendInterface,
    async_backend_from_interface,
    backend_from_interface,
    chain_clock,
    current_runtime,
    drive,
    running_runtime,
)

from .._clock import VirtualClock
from . import _rules_backends, _rules_bytes, _rules_closing, _rules_direct, _rules_tls, _worlds
from ._case import LONG, Broken, Case, describe_error
from ._peers import LoopbackPeer, NotApplicable, Peer
from ._report import Report, Result, Verdict
from ._rules import RULES, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable

    from lamina_interfaces import AsyncNetworkBackend, NetworkBackend, NetworkStream

# Each has put its rules into the table.
_MODULES = (_rules_bytes, _rules_closing, _rules_tls, _rules_direct, _rules_backends)

SCALES = (1.0, 10.0)
"""Factors for all limits: of the first try, and of the second."""

SECOND_TRIES = 3
"""So many rules may fail twice before no rule is tried twice."""

PATIENCE = 3 * LONG
"""Seconds for a whole rule, before the scale."""


def check_backend(
    backend: NetworkBackend | NetworkBackendInterface,
    *,
    peer: Peer | None = None,
    rules: Iterable[str] | None = None,
) -> Report:
    """Check a blocking backend, and its streams, against the contracts of `lamina_interfaces`.

    Takes some seconds; all connections are on loopback. Leaves no thread and no socket unless the backend itself hangs.
    Not to be called in an event loop, which it would block.

    Args:
        backend: of the first dialect or of the second.
        peer: what its streams are connected to; `None` for the kit's own server on 127.0.0.1.
        rules: names of the rules to check; `None` for all.

    Returns:
        What was found.

    Raises:
        ValueError: there is no rule of such a name.
        RuntimeError: an event loop runs in this thread, or this is in the block of a `VirtualClock`.
    """
    ready: Any = backend
    if _is_second_dialect(backend, NetworkBackendInterface):
        ready = backend_from_interface(ready)
    return _blocking(_check(_describe(backend), ready.connect_tcp, ready, peer, rules))


async def check_async_backend(
    backend: AsyncNetworkBackend | AsyncNetworkBackendInterface,
    *,
    peer: Peer | None = None,
    rules: Iterable[str] | None = None,
) -> Report:
    """Check an async backend, and its streams, in the event loop that runs: asyncio's, uvloop's or trio's.

    As `check_backend`. May be cancelled; what was begun ends within some seconds then.

    Args:
        backend: of the first dialect or of the second.
        peer: what its streams are connected to; `None` for the kit's own server on 127.0.0.1.
        rules: names of the rules to check; `None` for all.

    Returns:
        What was found.

    Raises:
        ValueError: there is no rule of such a name.
        RuntimeError: this is in the block of a `VirtualClock`.
    """
    ready: Any = backend
    if _is_second_dialect(backend, AsyncNetworkBackendInterface):
        ready = async_backend_from_interface(ready)
    return await _check(_describe(backend), ready.connect_tcp, ready, peer, rules)


def check_stream(
    open_stream: Callable[[str, int], NetworkStream],
    *,
    peer: Peer | None = None,
    rules: Iterable[str] | None = None,
) -> Report:
    """Check a blocking stream by itself, where there is no backend.

    Args:
        open_stream: called with a host and a port, for each rule; returns a new stream that is connected there. One of
            the second dialect will do.
        peer: what the streams are connected to; `None` for the kit's own server on 127.0.0.1.
        rules: names of the rules to check; `None` for all.

    Returns:
        What was found.

    Raises:
        ValueError: there is no rule of such a name.
        RuntimeError: an event loop runs in this thread, or this is in the block of a `VirtualClock`.
    """
    return _blocking(_check(_describe(open_stream), open_stream, None, peer, rules))


async def check_async_stream(
    open_stream: Callable[[str, int], Any],
    *,
    peer: Peer | None = None,
    rules: Iterable[str] | None = None,
) -> Report:
    """Check an async stream by itself, in the event loop that runs. As `check_stream`.

    Args:
        open_stream: a function, or coroutine function, of a host and a port: returns a new stream.
        peer: what the streams are connected to; `None` for the kit's own server on 127.0.0.1.
        rules: names of the rules to check; `None` for all.

    Returns:
        What was found.

    Raises:
        ValueError: there is no rule of such a name.
        RuntimeError: this is in the block of a `VirtualClock`.
    """
    return await _check(_describe(open_stream), open_stream, None, peer, rules)


def _is_second_dialect(backend: object, interface: type[Any]) -> bool:
    return isinstance(backend, interface) or (
        hasattr(backend, "connect") and not hasattr(backend, "connect_tcp")
    )


def _blocking(check: Coroutine[Any, Any, Report]) -> Report:
    if running_runtime() != "threads":
        check.close()
        raise RuntimeError("this would block the event loop; run it in a thread, or check an async backend")
    return drive(check)


def _describe(subject: Any) -> str:
    name: str = subject.__qualname__ if inspect.isroutine(subject) else type(subject).__qualname__
    return name


# --- running -----------------------------------------------------------------------------------------------


async def _check(
    subject: str, opener: Callable[..., Any], backend: Any, peer: Peer | None, names: Iterable[str] | None
) -> Report:
    runtime = running_runtime()
    if isinstance(chain_clock(current_runtime().now), VirtualClock):
        # It would stand still, and so would every rule that waits for it.
        message = "the rules take real time; check outside of the block of a VirtualClock"
        raise RuntimeError(message)  # noqa: TRY004 - no argument is of a wrong type
    chosen = _chosen(names)
    results = []
    second_tries = SECOND_TRIES
    for rule in chosen:
        if (rule.where == "async" and runtime == "threads") or (rule.of_backends and backend is None):
            continue
        start = time.monotonic()
        result = Result(rule.name, rule.source, rule.sentence, "failed")
        for attempt, scale in enumerate(SCALES if second_tries else SCALES[:1]):
            case = Case(opener, backend, peer or LoopbackPeer(), scale)
            verdict, detail = await _tried(rule, case)
            if verdict == "passed" and attempt:
                detail = "at the second try, with longer limits"
            seconds = time.monotonic() - start
            result = Result(rule.name, rule.source, rule.sentence, verdict, detail, seconds)
            if verdict != "failed":
                break
        else:
            second_tries = max(0, second_tries - 1)
        results.append(result)
    return Report(subject, runtime, tuple(results))


def _chosen(names: Iterable[str] | None) -> list[Rule]:
    if names is None:
        return list(RULES.values())
    wanted = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in wanted if name not in RULES]
    if unknown:
        raise ValueError(f"there is no rule {unknown[0]!r}; there are {', '.join(RULES)}")
    return [RULES[name] for name in wanted]


async def _tried(rule: Rule, case: Case) -> tuple[Verdict, str]:
    """The verdict on one run of one rule, and what there is to say of it."""
    job = _worlds.start(_run, rule, case)
    try:
        if not await job.wait(PATIENCE * case.scale):
            case.hang_up()
            job.cancel()
            woken = await job.wait(PATIENCE * case.scale)
            rest = "" if woken else "; it cannot be woken, and is left behind"
            return "failed", f"nothing happened for {PATIENCE * case.scale:g} s{rest}"
    finally:
        if not job.is_done:
            case.hang_up()
            job.cancel()
    outcome = job.outcome
    if outcome is None:
        return "passed", ""
    if isinstance(outcome, NotApplicable):
        return "not applicable", str(outcome)
    if isinstance(outcome, Broken):
        return "failed", str(outcome)
    if isinstance(outcome, Exception):
        return "failed", f"{describe_error(outcome)} was raised"
    if isinstance(outcome, BaseException):
        raise outcome
    return "failed", "the rule was cancelled by something in the backend"


async def _run(rule: Rule, case: Case) -> None:
    try:
        await rule.check(case)
    finally:
        await case.close()
