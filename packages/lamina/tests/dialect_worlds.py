"""One test for `lamina.sync` and `lamina.aio`: it is written as a coroutine, and run in each world.

In threads nothing in it suspends, so `drive` runs it to its end, as it runs lamina's own text.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio

from lamina import aio, sync
from lamina_interfaces import drive

WORLDS = ("threads", "asyncio", "trio")


class World:
    """Where a test runs, and the module that it tests there.

    Attributes:
        name: one of `WORLDS`.
        httpx: `lamina.sync` or `lamina.aio`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.httpx: Any = sync if name == "threads" else aio

    def run(self, body: Callable[[], Any]) -> None:
        """Run a coroutine function now; a decorator."""
        if self.name == "threads":
            drive(body())
        else:
            anyio.run(partial(limited, body), backend=self.name)

    async def do(self, value: Any) -> Any:
        """The value; awaited, where that is how one gets it."""
        return await value if inspect.isawaitable(value) else value

    @asynccontextmanager
    async def within(self, value: Any) -> AsyncIterator[Any]:
        """Enter a context manager of this world, awaited first where that has to be."""
        if self.name == "threads":
            with value as entered:
                yield entered
        else:
            async with await self.do(value) as entered:
                yield entered

    async def pieces(self, stream: Any) -> list[bytes]:
        """All that an iterator of this world gives."""
        return list(stream) if self.name == "threads" else [piece async for piece in stream]

    def body(self, *pieces: bytes) -> Any:
        """A body that can be read once."""
        if self.name == "threads":
            return iter(pieces)

        async def give() -> AsyncIterator[bytes]:
            for piece in pieces:
                yield piece

        return give()

    def transport(self, answer: Callable[[Any], Any]) -> Any:
        """A transport of the caller's own: `answer` makes a response of each request."""

        def start(self: Any) -> None:
            self.requests = []
            self.is_closed = False

        def send(self: Any, request: Any) -> Any:
            self.requests.append(request)
            return answer(request)

        def close(self: Any) -> None:
            self.is_closed = True

        async def send_async(self: Any, request: Any) -> Any:
            return send(self, request)

        async def close_async(self: Any) -> None:
            close(self)

        is_blocking = self.name == "threads"
        methods = {
            "__init__": start,
            "send": send if is_blocking else send_async,
            "close": close if is_blocking else close_async,
        }
        return type("Fake", (self.httpx.Transport,), methods)()


async def limited(body: Callable[[], Awaitable[None]]) -> None:
    """Not for ever: a thread's test is ended by pytest, a loop would go on."""
    with anyio.fail_after(50.0):
        await body()
