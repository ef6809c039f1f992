"""The worlds in which the tests of the backends of trio and anyio run, and what each test is checked for."""

from __future__ import annotations

import gc
import socket
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from lamina_async_backends import AnyIOBackend, TrioBackend
from lamina_interfaces import ResolvedAddress
from readiness_peers import open_sockets

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

WORLDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "anyio-asyncio": (AnyIOBackend, "asyncio", {}),
    "anyio-uvloop": (AnyIOBackend, "asyncio", {"use_uvloop": True}),
    "anyio-trio": (AnyIOBackend, "trio", {}),
    "trio": (TrioBackend, "trio", {}),
}
"""The backend, and the runtime under it with its options."""


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> tuple[Any, str, dict[str, Any]]:
    """Each backend in each runtime of its own."""
    if request.param == "anyio-uvloop":
        pytest.importorskip("uvloop")
    return WORLDS[request.param]


@pytest.fixture
def anyio_backend(world: tuple[Any, str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    return world[1:]


@pytest.fixture
def backend(world: tuple[Any, str, dict[str, Any]]) -> Any:
    return world[0]()


@pytest.fixture
def runtime_name(world: tuple[Any, str, dict[str, Any]]) -> str:
    return world[1]


@pytest.fixture
async def pair(backend: Any, nothing_is_left: None) -> AsyncIterator[tuple[Any, socket.socket]]:
    """A stream, and the plain socket at its other end, which blocks."""
    ours, theirs = socket.socketpair()
    theirs.settimeout(10)
    stream = await backend.wrap_socket(ours)
    with theirs:
        try:
            yield stream, theirs
        finally:
            stream.abort()


@pytest.fixture
def refusing_address() -> Iterator[Callable[[], ResolvedAddress]]:
    """Call it for an address of loopback where nobody listens, and that nobody is given until the test is over."""
    with ExitStack() as stack:

        def taken() -> ResolvedAddress:
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            return ResolvedAddress(socket.AF_INET, sock.getsockname())

        yield taken


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No socket is left open, without help of the garbage collector."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = open_sockets()
    gc.disable()  # so that no cycle is found, and no descriptor freed, by luck
    try:
        yield
        assert open_sockets() <= before, "sockets were left open"
    finally:
        gc.enable()


@pytest.fixture
async def no_task_is_left(anyio_backend: object) -> AsyncIterator[None]:
    """No task is left over from the test's own task."""
    before = len(anyio.get_running_tasks())
    yield
    for _ in range(10):  # the task that keeps trio's timers ends by itself once there are none
        if len(anyio.get_running_tasks()) > before:
            await anyio.lowlevel.checkpoint()
    assert len(anyio.get_running_tasks()) <= before, "tasks were left"
