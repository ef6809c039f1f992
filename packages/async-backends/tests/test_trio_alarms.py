"""The timers of a run of trio: no cancel scope for a read, the order, and the end of the run."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from lamina_async_backends import TrioBackend
from lamina_async_backends._trio_alarms import call_at
from lamina_interfaces import ReadTimeout
from readiness_peers import PATIENCE, answered, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import pytest


def in_trio(function: Callable[[Any, socket.socket], Awaitable[None]]) -> None:
    """Run a test over a stream and its peer in a run of its own, to the run's end."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)

    async def main() -> None:
        stream = await TrioBackend().wrap_socket(ours)
        try:
            await function(stream, theirs)
        finally:
            await stream.aclose()

    with theirs:
        trio.run(main)


def test_a_read_with_a_limit_opens_no_cancel_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    entered = 0
    original = trio.CancelScope.__enter__

    def counting(self: trio.CancelScope) -> trio.CancelScope:
        nonlocal entered
        entered += 1
        return original(self)

    async def use(stream: Any, theirs: socket.socket) -> None:
        await answered(stream, theirs, PATIENCE)  # which starts the one task that keeps the timers
        nonlocal entered
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                for _ in range(10):
                    await trio.testing.wait_all_tasks_blocked()
                    theirs.sendall(b"x")

            nursery.start_soon(answer)
            await trio.lowlevel.checkpoint()
            monkeypatch.setattr(trio.CancelScope, "__enter__", counting)
            for _ in range(10):
                await stream.read(1, timeout=PATIENCE)
            monkeypatch.undo()

    in_trio(use)
    assert entered <= 1, "the keeper's own, as the time of the first timer comes"


def test_a_limit_holds_while_the_run_ends() -> None:
    outcomes: list[str] = []
    wakes: list[int] = []
    ours, theirs = socket.socketpair()

    async def main() -> None:
        stream = await TrioBackend().wrap_socket(ours)
        transport: Any = stream._transport
        original = transport.wake_all

        def counting() -> None:
            wakes.append(1)
            original()

        transport.wake_all = counting

        async def outlive() -> None:
            with trio.CancelScope(shield=True):
                for timeout in (0.3, 0.02):
                    try:
                        await stream.read(timeout=timeout)
                    except ReadTimeout:
                        outcomes.append(f"timed out after {timeout}")
                await stream.aclose()

        trio.lowlevel.spawn_system_task(outlive)
        await until(lambda: stream._transport.users)
        await trio.lowlevel.checkpoint()

    with theirs:
        trio.run(main)
    assert outcomes == ["timed out after 0.3", "timed out after 0.02"]
    assert len(wakes) <= 1, "it is not woken over and over"


def test_timers_go_off_in_order_and_a_cancelled_one_does_not() -> None:
    gone: list[str] = []

    async def main() -> None:
        now = trio.current_time()
        call_at(now + 5, lambda: gone.append("third"))
        call_at(now + 1, lambda: gone.append("first"))
        cancelled = call_at(now + 2, lambda: gone.append("never"))
        call_at(now + 3, lambda: gone.append("second"))
        assert cancelled is not None
        cancelled.cancel()
        cancelled.cancel()
        await trio.sleep(0.5)  # the task sleeps by now
        call_at(now + 0.75, lambda: gone.append("in between"))
        await trio.sleep(0.4)
        assert gone == ["in between"]
        gone.clear()
        await trio.sleep(3)
        assert gone == ["first", "second"]
        await trio.sleep(4)
        assert gone == ["first", "second", "third"]
        call_at(trio.current_time() + 1, lambda: gone.append("by another task"))
        await trio.sleep(2)
        assert gone[3:] == ["by another task"]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
