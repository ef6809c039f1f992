"""The timers of a run of trio: no cancel scope for a read, the order, and the end of the run."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from lamina_async_backends import TrioBackend
from lamina_async_backends._trio_alarms import MAX_CANCELLED, _Alarms, _of_the_run, call_at
from lamina_interfaces import ReadTimeout
from readiness_peers import PATIENCE, answered, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


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


def test_cancelled_timers_do_not_pile_up() -> None:
    async def main() -> None:
        now = trio.current_time()
        gone: list[int] = []
        assert call_at(now + 3, lambda: gone.append(3))
        for number in range(20 * MAX_CANCELLED):
            timer = call_at(now + 3600 + number, lambda: gone.append(-1))
            assert timer is not None
            timer.cancel()
            alarms: Any = _of_the_run.get()
            assert len(alarms._timers) <= MAX_CANCELLED + 4
        assert call_at(now + 1, lambda: gone.append(1))
        await trio.sleep(5)
        assert gone == [1, 3]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.timeout(60)
def test_an_interrupt_in_the_midst_of_a_cancellation_leaves_no_task_that_goes_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(self: _Alarms) -> None:
        raise KeyboardInterrupt

    async def main() -> None:
        gone: list[int] = []
        timer = call_at(trio.current_time() + 1, lambda: gone.append(1))
        assert timer is not None
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(_Alarms, "forget", interrupted)
            timer.cancel()
        await trio.sleep(2)  # the clock only jumps where nobody runs
        assert call_at(trio.current_time() + 1, lambda: gone.append(2))
        await trio.sleep(2)
        assert gone == [2]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_caller_s_own_wait_for_the_socket_is_left_alone() -> None:
    ours, theirs = socket.socketpair()

    async def main() -> None:
        stream = await TrioBackend().wrap_socket(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.read, 1, 5.0)
            await trio.testing.wait_all_tasks_blocked()
            theirs.sendall(b"x")
        transport: Any = stream._transport
        assert transport._alarm._handle is not None  # nobody's by now, and due after 5 s
        with trio.move_on_after(20) as waited:
            await trio.lowlevel.wait_readable(stream.get_extra_info("socket"))
        assert waited.cancelled_caught
        await stream.aclose()

    with theirs:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.05))
