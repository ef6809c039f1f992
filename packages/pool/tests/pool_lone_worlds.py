"""One text for a test of connections without a pool, in every world: threads, asyncio, uvloop and trio.

A test is a coroutine function that is given a `World`. In threads it runs as the pool's own text does: what it awaits
are blocking calls, which never suspend. The network is in memory.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Self

import anyio

import lamina_pool
import pool_async_net
import pool_http2_blocking
import pool_http2_net
import pool_loopback
from lamina_interfaces import drive
from lamina_pool import URL, Request
from pool_async_runs import EVERYWHERE, loop_options

WORLDS = ["threads", *EVERYWHERE]
ORIGIN = URL("http://a.test/").origin


class World:
    """What a test runs in, and its network.

    Attributes:
        name: one of `WORLDS`.
        http2: whether the servers speak HTTP/2.
    """

    def __init__(self, name: str, *, http2: bool) -> None:
        self.name = name
        self.http2 = http2
        self.is_blocking = name == "threads"

    def run(self, test: Callable[[World], Coroutine[Any, Any, None]]) -> None:
        if self.is_blocking:
            drive(test(self))
        else:
            loop, options = loop_options(self.name)
            anyio.run(functools.partial(test, self), backend=loop, backend_options=options)

    def backend(self, answer: Any = None) -> Any:
        """A network, whose servers answer with the target, or do this with a request."""
        options = () if answer is None else (answer,)
        if self.http2:
            return (pool_http2_blocking if self.is_blocking else pool_http2_net).HTTP2Backend(*options)
        return (pool_loopback if self.is_blocking else pool_async_net).MemoryBackend(*options)

    async def stream(self, backend: Any) -> Any:
        """A network stream of this world that is open."""
        opened = backend.connect_tcp("a.test", 80)
        return opened if self.is_blocking else await opened

    def class_of(self, name: str) -> Any:
        """The class of this world for what is called so in threads."""
        return getattr(lamina_pool, name if self.is_blocking else f"Async{name}")

    def connection(self, backend: Any, **options: Any) -> Face:
        """An `HTTPConnection` to `ORIGIN`."""
        if self.http2:
            options = {"http1": False, "http2": True, **options}
        return Face(self, self.class_of("HTTPConnection")(ORIGIN, network_backend=backend, **options))

    def over(self, stream: Any, **options: Any) -> Face:
        """A connection over a stream that is open."""
        name = "HTTP2Connection" if self.http2 else "HTTP11Connection"
        return Face(self, self.class_of(name)(ORIGIN, stream, **options))

    async def beside(self, function: Callable[[], Coroutine[Any, Any, Any]], test: Any) -> None:
        """Do two things at the same time, in threads or tasks; the second may end the first."""
        if self.is_blocking:
            worker = pool_loopback.Worker(lambda: drive(function()))
            await test()
            worker.result()
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(function)
                await test()

    async def until(self, condition: Callable[[], object]) -> None:
        """Let others do something until it is so."""
        if self.is_blocking:
            pool_loopback.until(condition)
            return
        for _ in range(100_000):
            if condition():
                return
            await pool_async_net.checkpoint()
        raise AssertionError("it never came about")

    def event(self) -> Any:
        return threading.Event() if self.is_blocking else anyio.Event()

    def __repr__(self) -> str:
        return f"{self.name}, {'HTTP/2' if self.http2 else 'HTTP/1.1'}"


class Face:
    """A connection of either world, with the methods of the async one."""

    def __init__(self, world: World, inner: Any) -> None:
        self.world = world
        self.inner = inner

    async def handle(self, request: Request) -> Answer:
        if self.world.is_blocking:
            return Answer(self.world, self.inner.handle_request(request))
        return Answer(self.world, await self.inner.handle_async_request(request))

    async def get(self, target: str = "/", **extensions: Any) -> bytes:
        """The body of what the server answers."""
        response = self.inner.request("GET", f"http://a.test{target}", extensions=extensions)
        body: bytes = (response if self.world.is_blocking else await response).content
        return body

    @asynccontextmanager
    async def stream(self, target: str = "/") -> AsyncIterator[Answer]:
        context = self.inner.stream("GET", f"http://a.test{target}")
        if self.world.is_blocking:
            with context as response:
                yield Answer(self.world, response)
        else:
            async with context as response:
                yield Answer(self.world, response)

    async def aclose(self) -> None:
        if self.world.is_blocking:
            self.inner.close()
        else:
            await self.inner.aclose()

    async def __aenter__(self) -> Self:
        entered = self.inner.__enter__() if self.world.is_blocking else await self.inner.__aenter__()
        assert entered is self.inner
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self.world.is_blocking:
            self.inner.__exit__(*exc_info)
        else:
            await self.inner.__aexit__(*exc_info)

    @property
    def facts(self) -> str:
        """What it says when asked, the questions that it says yes to."""
        questions = ("is_available", "has_expired", "is_idle", "is_closed")
        return " ".join(name for name in questions if getattr(self.inner, name)())


class Answer:
    """A response of either world."""

    def __init__(self, world: World, inner: Any) -> None:
        self.world = world
        self.inner = inner

    async def read(self) -> bytes:
        body: bytes = self.inner.read() if self.world.is_blocking else await self.inner.aread()
        return body

    async def aclose(self) -> None:
        if self.world.is_blocking:
            self.inner.close()
        else:
            await self.inner.aclose()
