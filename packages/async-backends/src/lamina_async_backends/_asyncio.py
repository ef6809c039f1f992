"""The backend for asyncio, on the standard library alone."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Generic, TypeVar

from lamina_interfaces import AsyncNameResolver, AsyncNetworkBackend, ConnectError, Limit
from lamina_interfaces.connecting import Dial, HostDial, Resolution, UnixDial
from lamina_interfaces.dialing import default_socket_options
from lamina_interfaces.resolving import check_resolver
from lamina_interfaces.sockets import make_non_blocking
from lamina_interfaces.translation import network_error

from ._asyncio_transport import REFUSALS, AsyncioTransport, running_loop, wake
from ._stream import Stream
from ._transport import UNWATCHED

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable, Sequence
    from typing import Self

    from lamina_interfaces import AsyncResolver, ResolvedAddress, Resolver, SocketOption
    from lamina_interfaces.connecting import AnyDial

Outcome = TypeVar("Outcome")

CLEAN_UP_SECONDS = 1.0
"""How long a resolver that was cancelled may take to end."""


class AsyncioStream(Stream):
    """A stream over a connected socket, for asyncio. The contract is `AsyncNetworkStream`'s.

    It belongs to the event loop in which it is made; in another one it gives `ConcurrencyError`. One task may read
    while another writes; a second reader or writer gets `ConcurrencyError`. `aclose`, `close_now` and `abort` wake
    those who wait, and `abort` may be called from any thread, by finalisers, and when the loop has ended.

    What need not wait does not suspend, save now and then to let other tasks run.

    Args:
        sock: a connected stream socket (TCP or unix), not an `ssl.SSLSocket`. The stream's from now on; it is
            made non-blocking.
        timings: how long the steps of connecting took.

    Raises:
        ArgumentTypeError, ArgumentValueError: `sock` is no plain socket, or closed. It is left as it was.
        ConcurrencyError: no loop of asyncio runs here.
        UnsupportedProtocol: the running loop cannot watch sockets, as Windows' `ProactorEventLoop`.
    """

    @classmethod
    async def from_socket(cls, sock: socket.socket) -> Self:
        """A stream over a connected plain socket, as the class makes it."""
        return cls(sock)

    def _transport_over(self, sock: socket.socket) -> AsyncioTransport:
        loop = running_loop()
        make_non_blocking(sock)
        return AsyncioTransport(sock, loop)


class AsyncioBackend(AsyncNetworkBackend, AsyncNameResolver):
    """TCP and unix sockets for asyncio. The contract is `AsyncNetworkBackend`'s.

    Runs in every loop that can watch sockets: those of the standard library save Windows' `ProactorEventLoop`, and
    uvloop. Holds no sockets and belongs to no loop, so one may serve several.

    What counts as an IP address, and how names are looked up by a blocking resolver, is as with the blocking backend:
    in threads, at most 16 for each resolver.

    Args:
        resolver: turns names into addresses; the system's own if `None`. Blocking (`Resolver`) or not
            (`AsyncResolver`). IP addresses do not reach it.
        keep_alive: whether the system probes a peer that has been silent for 60 seconds, and ends the
            connection when five probes stay unanswered.

    Raises:
        ArgumentTypeError: `resolver` is none.
    """

    def __init__(self, *, resolver: Resolver | AsyncResolver | None = None, keep_alive: bool = True) -> None:
        self._resolver = check_resolver(resolver, also_async=True)
        self._defaults = default_socket_options(socket, keep_alive=keep_alive)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncioStream:
        """Connect to a TCP port, over the first of the host's addresses that answers (RFC 8305).

        See `AsyncNetworkBackend.connect_tcp`. `TCP_NODELAY` and keep-alive are set before the caller's options.
        """
        loop = running_loop()
        dial = Dial(
            host,
            port,
            limit=Limit(timeout, loop.time, "connect"),
            clock=loop.time,
            local_address=local_address,
            defaults=self._defaults,
            options=socket_options,
            resolver=self._resolver,
        )
        return await _connect(dial, loop)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> AsyncioStream:
        """Connect to a unix domain socket. See `AsyncNetworkBackend.connect_unix_socket`."""
        loop = running_loop()
        limit = Limit(timeout, loop.time, "connect")
        dial = UnixDial(path, limit=limit, clock=loop.time, options=socket_options)
        return await _connect(dial, loop)

    async def resolve(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None
    ) -> Sequence[ResolvedAddress]:
        """Return the addresses to which `connect_tcp` would connect. See `NameResolver.resolve`."""
        loop = running_loop()
        resolution = Resolution(
            host,
            port,
            limit=Limit(timeout, loop.time, "dns"),
            clock=loop.time,
            local_address=local_address,
            resolver=self._resolver,
        )
        waiting: _Waiting[Sequence[ResolvedAddress]] = _Waiting(resolution, loop)
        try:
            return await waiting.outcome()
        finally:
            await waiting.clean_up()

    async def wrap_socket(self, sock: socket.socket) -> AsyncioStream:
        """A stream over a connected plain socket, which is the stream's from now on. See `AsyncioStream`."""
        return AsyncioStream(sock)

    def __repr__(self) -> str:
        return f"<AsyncioBackend [{type(self._resolver).__name__}]>"


async def _connect(dial: Dial | UnixDial, loop: asyncio.AbstractEventLoop) -> AsyncioStream:
    """Connect.

    Raises:
        ConnectTimeout, DeadlineExceeded, ConnectError: with the attempts. No socket is left.
    """
    waiting: _Waiting[socket.socket] = _Waiting(dial, loop)
    stream: AsyncioStream | None = None
    try:
        try:
            stream = AsyncioStream(await waiting.outcome(), timings=dial.timings)
            dial.release()
        finally:
            await waiting.clean_up()
        return stream
    except BaseException:
        if stream is not None:
            stream.abort()
        raise


class _Waiting(Generic[Outcome]):
    """The waiting of one dial, by the loop.

    One future stands for all that can happen. What happens while nobody waits is noted in `_news`. There are no tasks,
    save for the look-ups of an async resolver; those are cancelled, and awaited, before this ends.
    """

    def __init__(self, dial: AnyDial[Outcome], loop: asyncio.AbstractEventLoop) -> None:
        self._dial = dial
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._news = False
        self._watched: dict[int, int] = {}  # file descriptors by the index of the attempt
        self._tasks: dict[
            asyncio.Task[Sequence[ResolvedAddress]], int
        ] = {}  # to the family that is looked up
        self._over = False

    # --- the bell of the look-ups, in whatever thread --------------------------------------------------------

    def ring(self) -> None:
        """See `resolving.Bell`. Raises once the loop is closed."""
        self._loop.call_soon_threadsafe(self._happened)

    # --- the rest, in the loop --------------------------------------------------------------------------------

    async def outcome(self) -> Outcome:
        """Wait until there is one. It is the dial's."""
        dial = self._dial
        try:
            self._look_up()
            while (outcome := dial.advance()) is None:
                await self._wait()
        except GeneratorExit:
            self._over = True  # our own task was thrown away, with its loop: nobody can wait any more
            raise
        return outcome

    async def clean_up(self) -> None:
        """Close what is not the caller's, and end the look-ups."""
        self._dial.close()
        if self._tasks and not self._over:
            await self._end_look_ups()

    def _happened(self) -> None:
        self._news = True
        if self._waiter is not None:
            wake(self._waiter)

    async def _wait(self) -> None:
        dial, loop = self._dial, self._loop
        seconds = dial.limit.glance()
        if dial.wake_at is not None:
            pause = max(0.0, dial.wake_at - loop.time())
            seconds = pause if seconds is None else min(seconds, pause)
        timer = None if seconds is None else loop.call_later(seconds, self._happened)
        self._waiter = loop.create_future()
        try:
            for index, sock in dial.pending.items():
                loop.add_writer(sock.fileno(), self._connected, index)
                self._watched[index] = sock.fileno()
            if not self._news:
                await self._waiter
        except REFUSALS as exc:
            raise network_error(exc, "connect", UNWATCHED) from exc
        except BaseException:
            dial.interrupted()
            raise
        finally:
            self._news = False
            self._waiter = None
            if timer is not None:
                timer.cancel()
            # Before the dial closes any of them.
            for fd in self._watched.values():
                loop.remove_writer(fd)
            self._watched.clear()

    def _connected(self, index: int) -> None:
        self._loop.remove_writer(self._watched.pop(index))
        self._dial.ended(index)
        self._happened()

    # --- an async resolver ------------------------------------------------------------------------------------

    def _look_up(self) -> None:
        dial = self._dial
        if dial.async_resolver is None:
            if dial.look_ups:
                dial.ask(self)
            return
        assert isinstance(dial, HostDial)
        for family in dial.look_ups:
            task = self._loop.create_task(_resolve(dial.async_resolver, dial.host, dial.port, family))
            self._tasks[task] = family
            task.add_done_callback(self._looked_up)

    def _looked_up(self, task: asyncio.Task[Sequence[ResolvedAddress]]) -> None:
        family = self._tasks.pop(task)
        error = _error_of(task)
        if self._over:
            return
        if error is None:
            self._dial.found(family, task.result())
        else:
            self._dial.not_found(family, error)
        self._happened()

    async def _end_look_ups(self) -> None:
        """Cancel those that go on, and wait for their end: a resolver's own clean-up, if it is in time."""
        from asyncio import CancelledError, wait

        self._over = True
        cancelled: CancelledError | None = None
        end = self._loop.time() + CLEAN_UP_SECONDS
        for task in self._tasks:
            task.cancel()
        while self._tasks and self._loop.time() < end:
            try:
                await wait(list(self._tasks), timeout=end - self._loop.time())
            except CancelledError as exc:  # anyio's scopes cancel again in every turn
                cancelled = exc
        if cancelled is not None:
            raise cancelled


async def _resolve(resolver: AsyncResolver, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
    return await resolver.resolve(host, port, family)


def _error_of(task: asyncio.Task[Sequence[ResolvedAddress]]) -> BaseException | None:
    if task.cancelled():
        return ConnectError("the look-up was cancelled", phase="dns")
    return task.exception()
