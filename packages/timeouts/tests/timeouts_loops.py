"""Virtual time under asyncio and trio, and a wait as lamina's layers make it."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

import trio.testing

from lamina_interfaces import ConnectAttempt, Limit, Phase, TimeoutException, current_runtime

T = TypeVar("T")


class _NeverWaits(selectors.DefaultSelector):
    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise RuntimeError("nothing will ever happen again")
        if not ready and timeout is not None:
            self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 1000 s, and jumps to the next timer. No other thread may take part."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = _NeverWaits()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


def virtual_backend(name: str) -> tuple[str, dict[str, Any]]:
    """For anyio's plugin, and for `anyio.run`."""
    if name == "asyncio":
        return name, {"loop_factory": VirtualLoop}
    return name, {"clock": trio.testing.MockClock(autojump_threshold=0)}


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


ATTEMPTS = (ConnectAttempt("192.0.2.1:80", None, 0.5),)


async def lamina_waits(
    seconds: float,
    timeout: float | None = None,
    phase: Phase = "read",
    left: list[TimeoutException] | None = None,
) -> None:
    """An operation that takes `seconds`; what it leaves when it is cancelled goes into `left`, too."""
    runtime = current_runtime()
    limit = Limit(timeout, runtime.now, phase)
    limit.check()
    event = runtime.create_event()
    end = runtime.now() + seconds
    try:
        while (rest := end - runtime.now()) > 0:
            glance = limit.glance()
            await event.wait(rest if glance is None else min(rest, glance))
            limit.check()
    except TimeoutException:
        raise
    except BaseException:
        error = limit.error()
        error.attempts = ATTEMPTS
        if left is not None:
            left.append(error)
        try:
            limit.interrupted(error)
        finally:
            del error
        raise
