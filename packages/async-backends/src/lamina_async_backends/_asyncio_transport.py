"""A connected socket on an event loop of asyncio: its users, its waits, and the end of its life.

Why not `asyncio.BufferedProtocol` over a transport. Both were built and put to the same tests, and move data equally
fast. But a transport is a second owner of the descriptor. It closes the socket by itself when a send fails, with the
peer's last answer unread in the kernel, and frees it a turn of the loop later than we do. Where a loop ends before its
streams, asyncio's transports warn though the socket was freed, and uvloop's warn in the midst of closing the loop,
which fails (`OSError: EBUSY`) where warnings are errors; so a pool could not outlive its loop. And connecting costs 15
to 30 % more. Here the loop only says when the socket is ready (`add_reader`, `add_writer`, which every selector loop
has, and uvloop), and the socket stays ours. What has neither, Windows' `ProactorEventLoop`, is left to anyio, which
watches sockets there by a thread (`AutoBackend`).

On a busy loop of 100 connections a small question and its answer, both with a time-out, take 12.7 µs of processor time
this way (uvloop 12.5); with a `Protocol` 26 (uvloop 9), with `asyncio.StreamReader` 25.

Four things make it fast:

- What need not be waited for costs no turn of the loop: sends always, and reads after one that filled its buffer.
  A task that never waits would hold up all others, so after `TURNS` such operations it lets them go first.
- The loop's callback receives at once (`_on_readable`), for the task that waits. Were the task only told that it may
  receive, then the loop, which looks at the socket before that task's turn, would find it readable again. Into the
  caller's buffer the task receives itself, since it may be cancelled before its turn, and has written nothing then; so
  there the callback looks whether the socket still is readable, which costs less than to be wrong.
- The socket stays watched for reading from one wait to the next. When it becomes readable and nobody waits, it is no
  longer watched; so back-pressure is the kernel's, and nothing is read ahead.
- The limits of all waits share one timer, which is hardly ever moved (`Alarm`).

Bytes that were received for a task that was cancelled, or whose time ended, in the same turn stay in `_stash`.

The loop knows this object, and not the stream, so that a stream that nobody holds any more is found as garbage.

A forked child has a copy of the descriptor, and of the loop's selector. It may close its copy, but a shutdown would
end the parent's connection, and a change of the selector would be one of the parent's; so the process is remembered.
"""

from __future__ import annotations

import socket
from time import monotonic
from types import coroutine
from typing import TYPE_CHECKING, Any

from lamina_interfaces import ConcurrencyError, UnsupportedProtocol
from lamina_interfaces.sockets import close_without_lingering, drop_incoming
from lamina_interfaces.translation import network_error

from ._transport import CLOSED, READING, UNWATCHED, WRITING, Alarm, Transport

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator

    from lamina_interfaces import Limit, Phase

TURNS = 16
"""Operations in a row that do not wait, before other tasks get their turn: with 64 KiB each, some 0.3 ms."""

DIRECT_SIZE = 64 * 1024
"""Bytes that are received at once where nobody has said how many are wanted."""

REFUSALS = (OSError, RuntimeError)
"""What a loop raises that will not watch a socket: its selector is full, or a transport of asyncio has the socket."""


def running_loop() -> asyncio.AbstractEventLoop:
    """The event loop of this thread.

    Raises:
        ConcurrencyError: there is none.
        UnsupportedProtocol: it cannot watch sockets.
    """
    from asyncio import AbstractEventLoop, events

    loop = events._get_running_loop()
    if loop is None:
        raise ConcurrencyError("no event loop of asyncio is running here")
    if type(loop).add_reader is AbstractEventLoop.add_reader:
        raise UnsupportedProtocol(
            f"{type(loop).__name__} cannot watch sockets (add_reader); use a SelectorEventLoop, or AnyIOBackend"
        )
    return loop


def clock_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """The loop's clock: where its method does nothing but call `time.monotonic`, that, for a third of the cost."""
    from asyncio import BaseEventLoop

    return monotonic if getattr(loop.time, "__func__", None) is BaseEventLoop.time else loop.time


def wake(waiter: asyncio.Future[None]) -> None:
    """End somebody's wait, if it has not ended."""
    if not waiter.done():
        waiter.set_result(None)


@coroutine
def _let_others_go_first() -> Generator[None, None, None]:
    yield  # as `asyncio.sleep(0)` does


class AsyncioTransport(Transport):
    """A non-blocking socket, and the loop that watches it: the `Transport` of asyncio.

    What is queued is sent by callbacks, as soon as the kernel takes it.

    Args:
        sock: a connected, non-blocking socket, the transport's from now on.
        loop: the running loop.
    """

    def __init__(self, sock: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        from asyncio import events

        super().__init__(sock, clock_of(loop), events._get_running_loop, loop)
        self.loop = loop
        self._fd = sock.fileno()
        self._watched = 0  # the sides that the loop watches
        self._read_waiter: asyncio.Future[None] | None = None
        self._write_waiter: asyncio.Future[None] | None = None
        self._wanted = DIRECT_SIZE
        self._stash = b""  # where there is something in it, that is news; the stream's end or failure, too
        self._turns = 0
        self._alarm = Alarm(loop.call_at, self)
        # uvloop no longer watches a socket that was reset while nobody waited, and does not say so.
        self._forgets = type(loop).__module__.startswith("uvloop")

    # --- users and the end ---------------------------------------------------------------------------------

    def close(self, *, gracefully: bool = False) -> None:
        """See `Transport.close`."""
        if gracefully and not self.users:
            drop_incoming(self.sock)
        self.closed = True
        if self.sock.fileno() < 0:
            return
        if self.inherited:
            self.sock.close()
        elif self.is_here() or not self.loop.is_running():
            self._free()
        else:
            try:
                self.loop.call_soon_threadsafe(self._free)
            except RuntimeError:  # closed in this moment
                self._free()

    def _free(self) -> None:
        if self.sock.fileno() < 0:
            return
        self._read_failure = self._write_failure = OSError(CLOSED)
        self.has_news = True
        self._alarm.stop()
        self._stash = b""
        self.unsent.clear()
        try:
            if not self.loop.is_closed():
                # In this order: a descriptor that is closed may be another connection's in the next moment.
                self._stop_watching(READING | WRITING)
                self.wake_all()
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer was faster
        except RuntimeError:
            pass  # the loop was closed in this moment
        finally:
            close_without_lingering(self.sock)

    def __del__(self) -> None:
        # The loop has ended before it called `_free`.
        sock = getattr(self, "sock", None)
        if sock is not None:
            sock.close()

    def wake_all(self) -> None:
        """See `Transport.wake_all`."""
        for waiter in (self._read_waiter, self._write_waiter):
            if waiter is not None:
                wake(waiter)

    # --- reading -------------------------------------------------------------------------------------------

    async def receive(self, room: int | memoryview, limit: Limit) -> Any:
        """See `Transport.receive`."""
        received = None
        if self.has_news:
            received = self._tell(room)
        elif self._bulk and self._turns < TURNS:
            self._turns += 1
            received = self.receive_now(room)
        elif self._forgets and self._watched & READING and self.readable_now():
            await self.take_turns()
            received = self.receive_now(room)
        while received is None:
            # The callback must not write to a buffer: this task may be cancelled before it could tell.
            self._wanted = room if isinstance(room, int) else 0
            self._read_waiter = waiter = self.loop.create_future()
            self._turns = 0
            try:
                if not self._watched & READING:
                    self._watch(READING)
                seconds = limit.glance()
                if seconds is not None:
                    self._alarm.set(self.now() + seconds)
                await waiter
            finally:
                self._read_waiter = None
            if self.has_news:
                received = self._tell(room)
                continue
            is_over = limit.expired()
            if is_over or not self._wanted:
                received = self.receive_now(room)  # what has come counts as in time
                if is_over and received is None:
                    raise limit.error()
        return received

    def _tell(self, room: int | memoryview) -> Any:
        data = self._stash
        if not data:
            return super()._tell(room)
        size = room if isinstance(room, int) else len(room)
        if len(data) <= size:  # as nearly always
            self._stash = b""
            self.has_news = self._read_failure is not None
        else:
            data, self._stash = data[:size], data[size:]
        if isinstance(room, int):
            return data
        room[: len(data)] = data
        return len(data)

    def _on_readable(self) -> None:
        waiter = self._read_waiter
        if waiter is None or waiter.done():
            if self.readable_now():  # still: not that what was there has been received since
                self._stop_watching(READING)
        elif self._wanted:
            if not self.has_news:
                self._stash = self._ask(self._wanted) or b""
                self.has_news = self.has_news or bool(self._stash)
            if self.has_news:
                waiter.set_result(None)
        elif self.readable_now():
            waiter.set_result(None)

    # --- writing -------------------------------------------------------------------------------------------

    async def send(self, data: memoryview, limit: Limit) -> None:
        """See `Transport.send`."""
        if self._turns < TURNS:  # here too, since a coroutine that has nothing to wait for costs its call
            self._turns += 1
        else:
            await self.take_turns()
        sent = self.send_now(data)
        while sent < len(data):
            await self.wait_writable(limit)
            sent += self.send_now(data, sent)

    def send_at_once(self, data: memoryview) -> int:
        """See `Transport.send_at_once`. All of it, nearly always."""
        if not data or self._turns >= TURNS or self.readable_now():
            return 0
        self._turns += 1
        return self.send_now(data)

    async def take_turns(self) -> None:
        """See `Transport.take_turns`. It is due if this task has not waited for long."""
        self._turns += 1
        if self._turns > TURNS:
            self._turns = 0
            await _let_others_go_first()

    async def wait_writable(self, limit: Limit) -> None:
        """See `Transport.wait_writable`. Until it has taken all that is queued, too."""
        await self._wait_to_write(limit, WRITING)

    async def wait_either(self, limit: Limit) -> None:
        """See `Transport.wait_either`. By the user of both sides."""
        await self._wait_to_write(limit, READING | WRITING)

    async def _wait_to_write(self, limit: Limit, sides: int) -> None:
        waits = True
        while waits:
            self._write_waiter = waiter = self.loop.create_future()
            self._turns = 0
            if sides & READING:
                self._wanted = DIRECT_SIZE
                self._read_waiter = waiter
            try:
                self._watch(sides)
                seconds = limit.glance()
                if seconds is not None:
                    self._alarm.set(self.now() + seconds)
                await waiter
            finally:
                self._write_waiter = None
                if sides & READING:
                    self._read_waiter = None
            waits = bool(self._watched & WRITING) and not (sides & READING and self.has_news)
            if waits:
                limit.check()  # it was the timer, or a glance
        if self.closed:
            raise network_error(OSError(CLOSED), limit.phase)

    def queue(self, data: bytes) -> None:
        """See `Transport.queue`. The rest goes out though nobody waits."""
        if not self.unsent:
            data = data[self.send_now(data) :] if data else data
        if data:
            self.unsent += data
            self._watch(WRITING)

    def _on_writable(self) -> None:
        if self.unsent:
            try:
                del self.unsent[: self.send_now(self.unsent)]
            except OSError:
                self.unsent.clear()  # whoever writes finds out why
            if self.unsent:
                return
        # Once only: the socket is nearly always writable.
        self._stop_watching(WRITING)
        if self._write_waiter is not None:
            wake(self._write_waiter)

    # --- within --------------------------------------------------------------------------------------------

    def _watch(self, sides: int) -> None:
        sides &= ~self._watched
        try:
            if sides & READING:
                self.loop.add_reader(self._fd, self._on_readable)
                self._watched |= READING
            if sides & WRITING:
                self.loop.add_writer(self._fd, self._on_writable)
                self._watched |= WRITING
        except REFUSALS as exc:
            phase: Phase = "read" if sides == READING else "write"
            raise network_error(exc, phase, UNWATCHED) from exc

    def _stop_watching(self, sides: int) -> None:
        sides &= self._watched
        self._watched &= ~sides
        if sides & READING:
            self.loop.remove_reader(self._fd)
        if sides & WRITING:
            self.loop.remove_writer(self._fd)
