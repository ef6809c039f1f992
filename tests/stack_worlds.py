"""One text for a test in every world: the blocking backend, and each async backend in its loop.

A test is a coroutine that is given a `World`. In threads it runs as the pool's own text does: what it awaits are
blocking calls, which never suspend. So whatever a test says of one backend it says of all of them.

`pytest_pyfunc_call` in conftest runs coroutine tests that take the fixture `world`.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import anyio
import anyio.lowlevel

from lamina_async_backends import AnyIOBackend, AsyncioBackend, TrioBackend
from lamina_interfaces import AsyncNetworkBackend, AsyncNetworkStream, NetworkBackend, NetworkStream
from lamina_pool import AsyncConnectionPool, ConnectionPool, Request
from lamina_sync_backend import SyncBackend, SyncStream

if TYPE_CHECKING:
    import socket
    from types import TracebackType
    from typing import Self

    from lamina_interfaces import Resolver
    from lamina_pool import Response

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds after which something that should happen at once counts as not happening."""

ASYNC: dict[str, tuple[type[Any], str, dict[str, Any]]] = {
    "asyncio": (AsyncioBackend, "asyncio", {}),
    "asyncio+uvloop": (AsyncioBackend, "asyncio", {"use_uvloop": True}),
    "anyio+asyncio": (AnyIOBackend, "asyncio", {}),
    "anyio+trio": (AnyIOBackend, "trio", {}),
    "trio": (TrioBackend, "trio", {}),
}
"""The backend, and the loop under it with anyio's options for it."""

NAMES = ["sync", *ASYNC]


class World:
    """A backend and what it runs in.

    Attributes:
        name: one of `NAMES`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_async = name in ASYNC
        self._class, self._loop, self._options = ASYNC.get(name, (SyncBackend, "threads", {}))

    def run(self, function: Callable[..., Coroutine[Any, Any, T]], *arguments: Any) -> T:
        """Run a coroutine function to its end."""
        if self.is_async:
            return anyio.run(function, *arguments, backend=self._loop, backend_options=self._options)
        return drive(function(*arguments))

    # --- what is tested ------------------------------------------------------------------------------------

    def backend(self, *, resolver: Resolver | None = None) -> AsyncNetworkBackend:
        backend = self._class(resolver=resolver)
        return backend if self.is_async else cast("AsyncNetworkBackend", BlockingBackend(backend))

    def public_backend(self, **options: Any) -> Any:
        """The backend itself, as a pool takes it."""
        return self._class(**options)

    async def wrap(self, sock: socket.socket) -> AsyncNetworkStream:
        """A stream over a connected socket."""
        if self.is_async:
            return cast("AsyncNetworkStream", await self._class().wrap_socket(sock))
        return cast("AsyncNetworkStream", BlockingStream(SyncStream(sock)))

    def pool(self, *, resolver: Resolver | None = None, **options: Any) -> AsyncConnectionPool:
        """A pool over the backend of this world."""
        options.setdefault("network_backend", self.public_backend(resolver=resolver))
        if self.is_async:
            return AsyncConnectionPool(**options)
        return cast("AsyncConnectionPool", BlockingPool(ConnectionPool(**options)))

    def body(self, pieces: Iterator[bytes]) -> Any:
        """A request's body of unknown length."""
        return _awaited(pieces) if self.is_async else pieces

    # --- time and tasks ------------------------------------------------------------------------------------

    async def pause(self, seconds: float = 0.001) -> None:
        """Let others do something."""
        if self.is_async:
            await anyio.sleep(seconds)
        else:
            threading.Event().wait(seconds)

    async def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, "it never came about"
            await self.pause()

    def jobs(self) -> Jobs:
        """Starts what runs beside the test: tasks or threads."""
        return Jobs(self)

    def __repr__(self) -> str:
        return self.name


async def _awaited(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        await anyio.lowlevel.checkpoint()
        yield piece


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run what blocks, and never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    coroutine.close()
    raise AssertionError("a test suspended where nothing can be awaited")


# --- jobs --------------------------------------------------------------------------------------------------


class Cancelled(Exception):
    """What a `Job` tells of a task that ended by being cancelled."""


class Job:
    """One that was started; its outcome is what it has returned or raised."""

    def __init__(self, scope: anyio.CancelScope | None) -> None:
        self._outcome: Any = None
        self.is_done = False
        self.ended_at = 0.0
        self._scope = scope
        self._task: asyncio.Task[None] | None = None

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            if self._scope is None:
                self._outcome = await coroutine
            else:
                with self._scope:
                    self._outcome = await coroutine
                if self._scope.cancelled_caught:
                    self._outcome = Cancelled()
        except asyncio.CancelledError:
            self._outcome = Cancelled()
        except Exception as error:  # noqa: BLE001 - it is what is asked for
            self._outcome = error
        finally:
            self.ended_at = time.monotonic()
            self.is_done = True

    def run_in_task(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        def ended(task: asyncio.Task[None]) -> None:
            if not self.is_done:  # cancelled before it had begun
                coroutine.close()
                self._outcome = Cancelled()
                self.is_done = True

        self._task = asyncio.get_running_loop().create_task(self.run(coroutine))
        self._task.add_done_callback(ended)

    def run_in_thread(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        try:
            self._outcome = drive(coroutine)
        except BaseException as error:  # noqa: BLE001 - it is what is asked for
            self._outcome = error
        finally:
            self.ended_at = time.monotonic()
            self.is_done = True

    def cancel(self) -> None:
        """By the runtime's own means: a task of asyncio, a scope of anyio or trio."""
        if self._task is not None:
            self._task.cancel()
        if self._scope is not None:
            self._scope.cancel()

    async def outcome(self, world: World) -> Any:
        await world.until(lambda: self.is_done)
        return self._outcome

    async def result(self, world: World) -> Any:
        outcome = await self.outcome(world)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


class Jobs:
    """Tasks, or threads. At the end of its block all of them have ended; tasks that go on are cancelled."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._started: list[Job] = []
        self._threads: list[threading.Thread] = []
        self._group: Any = None

    def start(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> Job:
        is_native = not self._world.is_async or self._world.name.startswith("asyncio")
        job = Job(None if is_native else anyio.CancelScope())
        self._started.append(job)
        coroutine = function(*arguments)
        if not self._world.is_async:
            # With an empty context, as every thread has: the deadlines of who starts it are not its own.
            thread = threading.Thread(target=job.run_in_thread, args=(coroutine,), daemon=True)
            self._threads.append(thread)
            contextvars.Context().run(thread.start)
        elif is_native:
            job.run_in_task(coroutine)
        else:
            self._group.start_soon(job.run, coroutine)
        return job

    async def __aenter__(self) -> Self:
        if self._world.is_async:
            self._group = anyio.create_task_group()
            await self._group.__aenter__()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a thread hangs"
        for job in self._started:
            if not job.is_done and self._world.is_async:
                job.cancel()
                if job._task is not None:
                    await asyncio.wait([job._task])
        if self._group is not None:
            await self._group.__aexit__(None, None, None)  # what is raised in the block is no group of errors


async def at_once(world: World, count: int, work: Callable[..., Any]) -> list[Any]:
    """What comes of `work(0)` to `work(count - 1)`, all running at the same time."""
    async with world.jobs() as jobs:
        started = [jobs.start(work, number) for number in range(count)]
        return [await job.result(world) for job in started]


# --- what blocks, with the methods of what suspends ---------------------------------------------------------


class BlockingStream:
    """A `NetworkStream` with the methods of an `AsyncNetworkStream`."""

    def __init__(self, stream: NetworkStream) -> None:
        self.blocking: Any = stream

    async def read(self, max_bytes: Any = None, timeout: Any = None) -> bytes:
        return cast("bytes", self.blocking.read(max_bytes, timeout=timeout))

    async def read_into(self, buffer: Any, timeout: Any = None) -> int:
        return cast("int", self.blocking.read_into(buffer, timeout=timeout))

    async def write(self, buffer: Any, timeout: Any = None) -> None:
        self.blocking.write(buffer, timeout=timeout)

    async def write_until_readable(self, buffer: Any, timeout: Any = None) -> int:
        return cast("int", self.blocking.write_until_readable(buffer, timeout=timeout))

    def write_now(self, buffer: Any) -> int:
        return cast("int", self.blocking.write_now(buffer))

    async def wait_writable(self, timeout: Any = None) -> None:
        self.blocking.wait_writable(timeout=timeout)

    @property
    def has_unsent(self) -> bool:
        return cast("bool", self.blocking.has_unsent)

    async def start_tls(
        self, ssl_context: Any, server_hostname: Any = None, timeout: Any = None
    ) -> BlockingStream:
        assert self.blocking.start_tls(ssl_context, server_hostname, timeout=timeout) is self.blocking
        return self

    async def aclose(self) -> None:
        self.blocking.close()

    def abort(self) -> None:
        self.blocking.abort()

    def get_extra_info(self, info: str) -> Any:
        return self.blocking.get_extra_info(info)

    def __repr__(self) -> str:
        return repr(self.blocking)


class BlockingBackend:
    """A `NetworkBackend` with the methods of an `AsyncNetworkBackend`."""

    def __init__(self, backend: NetworkBackend) -> None:
        self.blocking: Any = backend

    async def connect_tcp(self, host: Any, port: Any, timeout: Any = None, **options: Any) -> BlockingStream:
        return BlockingStream(self.blocking.connect_tcp(host, port, timeout=timeout, **options))

    async def connect_unix_socket(self, path: Any, timeout: Any = None, **options: Any) -> BlockingStream:
        return BlockingStream(self.blocking.connect_unix_socket(path, timeout=timeout, **options))

    async def sleep(self, seconds: Any) -> None:
        self.blocking.sleep(seconds)


class BlockingResponse:
    """A blocking pool's `Response` with the methods of an async one's."""

    def __init__(self, response: Response) -> None:
        self._response = response

    def __getattr__(self, name: str) -> Any:
        return getattr(self._response, name)

    async def aread(self) -> bytes:
        return self._response.read()

    async def aiter_stream(self) -> AsyncIterator[bytes]:
        for piece in self._response.iter_stream():
            yield piece

    async def aclose(self) -> None:
        self._response.close()


class BlockingPool:
    """A `ConnectionPool` with the methods of an `AsyncConnectionPool`."""

    def __init__(self, pool: ConnectionPool) -> None:
        self.blocking = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self.blocking, name)

    async def request(self, *arguments: Any, **options: Any) -> Response:
        return self.blocking.request(*arguments, **options)

    async def handle_async_request(self, request: Request) -> BlockingResponse:
        return BlockingResponse(self.blocking.handle_request(request))

    @asynccontextmanager
    async def stream(self, *arguments: Any, **options: Any) -> AsyncIterator[BlockingResponse]:
        with self.blocking.stream(*arguments, **options) as response:
            yield BlockingResponse(response)

    async def aclose(self) -> None:
        self.blocking.close()

    async def __aenter__(self) -> Self:
        self.blocking.__enter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.blocking.__exit__(exc_type, exc, traceback)
