"""An asyncio loop whose time passes only while nothing is left to do."""

import asyncio
import selectors
from typing import Any


class _NeverWaits(selectors.DefaultSelector):
    loop: "VirtualLoop"

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            return super().select()  # for other threads
        if not ready and timeout is not None:
            self.loop.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 1000 s, and jumps to the next timer."""

    def __init__(self) -> None:
        self.now = 1000.0
        selector = _NeverWaits()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now
