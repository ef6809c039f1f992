"""The streams and backends of trio and anyio: `lamina_interfaces.connecting`, waited for by a library.

A dial that waits for one thing at a time, as one to an IP address does, waits in the calling task. Only where there
are several, sockets or look-ups, is there a nursery with a task for each.
"""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from lamina_interfaces import AsyncNameResolver, AsyncNetworkBackend, Limit
from lamina_interfaces.connecting import Dial, HostDial, Resolution, UnixDial
from lamina_interfaces.dialing import default_socket_options
from lamina_interfaces.resolving import check_resolver
from lamina_interfaces.sockets import make_non_blocking

from ._readiness import Waiter, running_here
from ._readiness_transport import ReadinessTransport
from ._stream import Stream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from lamina_interfaces import AsyncResolver, ResolvedAddress, Resolver, RuntimeName, SocketOption
    from lamina_interfaces.connecting import AnyDial

    from ._readiness import Library, Nursery


class ReadinessStream(Stream):
    """What the streams of both libraries are. The classes that are public have their own words."""

    _library: ClassVar[Library]
    _possible: ClassVar[tuple[RuntimeName, ...]]

    def _transport_over(self, sock: socket.socket) -> ReadinessTransport:
        runtime = running_here(type(self).__name__, self._possible)
        make_non_blocking(sock)
        return ReadinessTransport(sock, Waiter(self._library, runtime))


S = TypeVar("S", bound=ReadinessStream)
Outcome = TypeVar("Outcome")


class ReadinessBackend(AsyncNetworkBackend, AsyncNameResolver, Generic[S]):
    """What the backends of both libraries are. The classes that are public have their own words."""

    _stream_class: ClassVar[type[ReadinessStream]]

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
    ) -> S:
        """Connect to a TCP port, over the first of the host's addresses that answers (RFC 8305).

        See `AsyncNetworkBackend.connect_tcp`. `TCP_NODELAY` and keep-alive are set before the caller's options.
        """
        waiter = self._waiter()
        dial = Dial(
            host,
            port,
            limit=Limit(timeout, waiter.runtime.now, "connect"),
            clock=waiter.runtime.now,
            local_address=local_address,
            defaults=self._defaults,
            options=socket_options,
            resolver=self._resolver,
        )
        return await self._connect(dial, waiter)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> S:
        """Connect to a unix domain socket. See `AsyncNetworkBackend.connect_unix_socket`."""
        waiter = self._waiter()
        limit = Limit(timeout, waiter.runtime.now, "connect")
        dial = UnixDial(path, limit=limit, clock=waiter.runtime.now, options=socket_options)
        return await self._connect(dial, waiter)

    async def resolve(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None
    ) -> Sequence[ResolvedAddress]:
        """Return the addresses to which `connect_tcp` would connect. See `NameResolver.resolve`."""
        waiter = self._waiter()
        resolution = Resolution(
            host,
            port,
            limit=Limit(timeout, waiter.runtime.now, "dns"),
            clock=waiter.runtime.now,
            local_address=local_address,
            resolver=self._resolver,
        )
        waiting: Dialing[Sequence[ResolvedAddress]] = Dialing(resolution, waiter)
        try:
            return await waiting.run()
        finally:
            resolution.close()

    async def wrap_socket(self, sock: socket.socket) -> S:
        """A stream over a connected plain socket, which is the stream's from now on."""
        return self._stream(sock)

    def _stream(self, sock: socket.socket, dial: Dial | UnixDial | None = None) -> S:
        timings = () if dial is None else dial.timings
        return self._stream_class(sock, timings=timings)  # type: ignore[return-value] # it is this backend's

    def _waiter(self) -> Waiter:
        stream_class = self._stream_class
        return Waiter(stream_class._library, running_here(type(self).__name__, stream_class._possible))

    async def _connect(self, dial: Dial | UnixDial, waiter: Waiter) -> S:
        try:
            waiting: Dialing[socket.socket] = Dialing(dial, waiter)
            stream = self._stream(await waiting.run(), dial)
            dial.release()
        finally:
            dial.close()
        return stream

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{type(self._resolver).__name__}]>"


class Dialing(Generic[Outcome]):
    """The waiting of one dial. It also is the bell of the dial's look-ups.

    Args:
        dial: not begun; the caller closes it.
        waiter: how to wait.
    """

    def __init__(self, dial: AnyDial[Outcome], waiter: Waiter) -> None:
        self._dial = dial
        self._waiter = waiter
        self._rung = waiter.runtime.create_event()
        self._writable: list[int] = []  # indices of attempts
        self._outcome: Outcome | None = None

    async def run(self) -> Outcome:
        """Wait until there is an outcome.

        Returns:
            What the dial has come to, as a connected socket. It is the dial's.

        Raises:
            ConnectTimeout, DeadlineExceeded, ConnectError: with the attempts.
        """
        dial = self._dial
        try:
            # First, because nothing may come between the connection and the caller.
            await self._waiter.library.checkpoint()
            if dial.async_resolver is not None:
                await self._waiter.with_children(self._look_up_and_advance)
            else:
                if dial.look_ups:
                    dial.ask(self)
                await self._advance()
        except Exception:
            raise
        except BaseException:
            dial.interrupted()
            raise
        assert self._outcome is not None
        return self._outcome

    def ring(self) -> None:
        """See `lamina_interfaces.resolving.Bell`."""
        self._rung.set()

    async def _look_up_and_advance(self, nursery: Nursery) -> None:
        for family in self._dial.look_ups:
            nursery.start_soon(self._look_up, family)
        await self._advance()

    async def _look_up(self, family: int) -> None:
        dial = self._dial
        assert isinstance(dial, HostDial)
        assert dial.async_resolver is not None
        try:
            addresses = await dial.async_resolver.resolve(dial.host, dial.port, family)
        except BaseException as exc:
            dial.not_found(family, exc)
            if not isinstance(exc, Exception):
                raise
        else:
            dial.found(family, addresses)
        finally:
            self.ring()

    async def _advance(self) -> None:
        # The bell is made anew before the answers are looked at, so that one that comes in between is heard.
        while (outcome := self._dial.advance()) is None:
            await self._wait()
            self._rung = self._waiter.runtime.create_event()
        self._outcome = outcome

    async def _wait(self) -> None:
        dial = self._dial
        self._writable.clear()
        waits: list[Callable[[], Awaitable[object]]] = [
            partial(self._until_writable, index, sock) for index, sock in dial.pending.items()
        ]
        if dial.look_ups or not waits:
            waits.append(self._rung.wait)
        await self._waiter.wait(
            dial.limit, self._waiter.first_of, *waits, until=dial.wake_at, timeout_error=dial.timeout_error
        )
        for index in self._writable:
            if dial.ended(index):
                return

    async def _until_writable(self, index: int, sock: socket.socket) -> None:
        await self._waiter.library.wait_writable(sock)
        self._writable.append(index)
