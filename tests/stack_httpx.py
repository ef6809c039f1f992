"""For tests of httpx and httpx2 over lamina: one text for both libraries, and for blocking and async clients."""

from __future__ import annotations

import importlib
import importlib.util
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from stack_helpers import missing
from stack_worlds import PATIENCE, World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import ModuleType
    from typing import Self

LIBRARIES = ["httpx", "httpx2"]
OWN = "own"
LAMINA = "lamina"


class Library:
    """A client library, and lamina's transports for it.

    Attributes:
        client: its module.
        lamina: ours.
    """

    def __init__(self, name: str) -> None:
        if importlib.util.find_spec(name) is None:
            missing(name)
        self.name = name
        self.client: Any = importlib.import_module(name)
        self.lamina: Any = importlib.import_module(f"lamina.{name}")

    def transport(self, world: World, whose: str = LAMINA, **options: Any) -> Any:
        """A transport: ours, or the library's own to compare with."""
        module: ModuleType = self.lamina if whose == LAMINA else self.client
        return getattr(module, f"{'Async' * world.is_async}HTTPTransport")(**options)

    def open(self, world: World, transport: Any = None, **options: Any) -> Client:
        """A client over a transport, ours where none is given."""
        if transport is None:
            transport = self.transport(world)
        kind = self.client.AsyncClient if world.is_async else self.client.Client
        options.setdefault("timeout", PATIENCE)
        return Client(world, kind(transport=transport, trust_env=False, **options))

    def __repr__(self) -> str:
        return self.name


class Client:
    """A client whose methods can be awaited, also those of a blocking one.

    Attributes:
        real: the library's client.
    """

    def __init__(self, world: World, real: Any) -> None:
        self._is_async = world.is_async
        self.real = real

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.real, name)
        if self._is_async:
            return method

        async def call(*arguments: Any, **options: Any) -> Any:
            return method(*arguments, **options)

        return call

    @asynccontextmanager
    async def stream(self, *arguments: Any, **options: Any) -> AsyncIterator[Any]:
        """The library's response, whose `read`, `pieces` and `close` can be awaited."""
        if self._is_async:
            async with self.real.stream(*arguments, **options) as response:
                yield Response(response, is_async=True)
        else:
            with self.real.stream(*arguments, **options) as response:
                yield Response(response, is_async=False)

    async def __aenter__(self) -> Self:
        if self._is_async:
            await self.real.__aenter__()
        else:
            self.real.__enter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._is_async:
            await self.real.__aexit__(*exc_info)
        else:
            self.real.__exit__(*exc_info)


class Response:
    """A response whose body is still to come."""

    def __init__(self, real: Any, *, is_async: bool) -> None:
        self.real = real
        self._is_async = is_async

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if self._is_async:
            async for piece in self.real.aiter_raw():
                yield piece
        else:
            for piece in self.real.iter_raw():
                yield piece

    async def read(self) -> bytes:
        content: bytes = await self.real.aread() if self._is_async else self.real.read()
        return content

    async def close(self) -> None:
        if self._is_async:
            await self.real.aclose()
        else:
            self.real.close()


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> Library:
    """Each of the two libraries."""
    return Library(request.param)
