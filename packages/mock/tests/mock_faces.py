"""One body for blocking and async mocks: it awaits, and where the face is the blocking one, nothing ever suspends."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from lamina_interfaces import NetworkBackend, NetworkStream, current_deadline, drive
from lamina_mock import (
    AsyncDenyNetworkBackend,
    AsyncPeerBackend,
    AsyncScriptedBackend,
    DenyNetworkBackend,
    PeerBackend,
    ScriptedBackend,
)

Body = Callable[[], Coroutine[Any, Any, Any]]

PLAIN = {"get_extra_info", "abort", "check", "write_now", "has_unsent"}


class InAsyncNames:
    """A blocking stream or backend under the method names of an async one."""

    def __init__(self, blocking: Any) -> None:
        self.blocking = blocking

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.blocking, "close" if name == "aclose" else name)
        if name in PLAIN:
            return value

        async def call(*args: Any, **kwargs: Any) -> Any:
            return in_async_names(value(*args, **kwargs), self)

        return call

    def __enter__(self) -> Any:
        self.blocking.__enter__()
        return self

    def __exit__(self, *exc: object) -> Any:
        return self.blocking.__exit__(*exc)

    def __repr__(self) -> str:
        return repr(self.blocking)


def in_async_names(value: Any, before: Any = None) -> Any:
    if before is not None and value is before.blocking:
        return before
    return InAsyncNames(value) if isinstance(value, (NetworkStream, NetworkBackend)) else value


@dataclass
class Face:
    """One of the kinds of mock, and what it runs in."""

    name: str
    runtime: str
    runner: Callable[[Coroutine[Any, Any, Any]], Any]
    is_blocking: bool = False

    def run(self, body: Body) -> Any:
        return self.runner(body())

    def peers(self, *args: Any, **kwargs: Any) -> Any:
        return self._backend(PeerBackend, AsyncPeerBackend, *args, **kwargs)

    def scripted(self, *args: Any, **kwargs: Any) -> Any:
        return self._backend(ScriptedBackend, AsyncScriptedBackend, *args, **kwargs)

    def denying(self, *args: Any, **kwargs: Any) -> Any:
        return self._backend(DenyNetworkBackend, AsyncDenyNetworkBackend, *args, **kwargs)

    def _backend(self, blocking: Any, suspending: Any, *args: Any, **kwargs: Any) -> Any:
        return InAsyncNames(blocking(*args, **kwargs)) if self.is_blocking else suspending(*args, **kwargs)

    async def together(self, *bodies: Callable[[], Awaitable[Any]]) -> list[Any]:
        """Run them side by side, in threads or tasks; what each returned or raised."""
        results: list[Any] = [None] * len(bodies)

        async def one(number: int) -> None:
            try:
                results[number] = await bodies[number]()
            except Exception as error:  # noqa: BLE001 - it is the test's result
                results[number] = error

        if self.is_blocking:
            threads = [threading.Thread(target=lambda n=n: drive(one(n))) for n in range(len(bodies))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(30)
            assert not any(thread.is_alive() for thread in threads)
        else:
            anyio = importlib.import_module("anyio")
            async with anyio.create_task_group() as group:
                for number in range(len(bodies)):
                    group.start_soon(one, number)
        return results


def run_in_trio(coroutine: Coroutine[Any, Any, Any]) -> Any:
    trio = pytest.importorskip("trio")

    async def main() -> Any:
        return await coroutine

    return trio.run(main)


def run_in_uvloop(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError:
        coroutine.close()
        pytest.skip("uvloop is not installed")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(coroutine)


FACES = [
    Face("blocking", "threads", drive, is_blocking=True),
    Face("asyncio", "asyncio", asyncio.run),
    Face("uvloop", "asyncio", run_in_uvloop),
    Face("trio", "trio", run_in_trio),
]
ASYNC_FACES = FACES[1:]


@pytest.fixture(params=FACES, ids=lambda face: face.name)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    yield request.param
    assert current_deadline() is None


@pytest.fixture(params=ASYNC_FACES, ids=lambda face: face.name)
def async_face(request: pytest.FixtureRequest) -> Face:
    made: Face = request.param
    return made
