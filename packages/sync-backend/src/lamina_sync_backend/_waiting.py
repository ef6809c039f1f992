"""The one place in which a thread waits for sockets."""

from __future__ import annotations

import math
import select
from time import monotonic
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from lamina_interfaces import Limit

READ = getattr(select, "POLLIN", 0x01)
"""A read would return at once."""

WRITE = getattr(select, "POLLOUT", 0x04)
"""A write would send something, or a connection attempt has ended."""

BROKEN = getattr(select, "POLLERR", 0x08) | getattr(select, "POLLHUP", 0x10)
"""The connection is broken or ended; reported whether asked for or not."""

LONGEST = 24 * 60 * 60 * 1000
"""Milliseconds that one system call waits at most; `poll` takes no more than 2**31 - 1."""


class Poll(Protocol):
    """The part of `select.poll` that is used here."""

    def register(self, fd: int, eventmask: int, /) -> object: ...
    def unregister(self, fd: int, /) -> object: ...
    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]: ...


class SelectPoll:
    """The same by `select.select`, for systems that have no `poll` (Windows)."""

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}

    def register(self, fd: int, eventmask: int, /) -> None:
        self._masks[fd] = eventmask

    def unregister(self, fd: int, /) -> None:
        del self._masks[fd]

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        readers = [fd for fd, mask in self._masks.items() if mask & READ]
        writers = [fd for fd, mask in self._masks.items() if mask & WRITE]
        # Windows reports a failed connection attempt as an exceptional condition.
        ready = select.select(readers, writers, writers, None if timeout is None else timeout / 1000)
        events: dict[int, int] = {}
        for fds, event in zip(ready, (READ, WRITE, WRITE | BROKEN), strict=True):
            for fd in fds:
                events[fd] = events.get(fd, 0) | event
        return list(events.items())


def new_poll() -> Poll:
    """A poll object; used by one thread at a time."""
    return select.poll() if hasattr(select, "poll") else SelectPoll()


def wait(poll: Poll, limit: Limit, until: float | None = None) -> list[tuple[int, int]]:
    """Wait until something happens.

    Looks once even if nothing remains of the limit, so that what is ready counts as in time.

    Args:
        poll: what to wait for.
        limit: how long at most.
        until: a time (`time.monotonic`) at which to return without events.

    Returns:
        What happened, as `select.poll` has it; empty only once `until` has come.

    Raises:
        TimeoutException: nothing remains of the limit.
    """
    while True:
        seconds = limit.glance()  # another thread may bring the deadline forward: a pool that is closed does
        if until is not None:
            pause = max(0.0, until - monotonic())
            seconds = pause if seconds is None else min(seconds, pause)
        # Rounded up: to wake a moment late is better than to spin through the last millisecond.
        events = poll.poll(None if seconds is None else math.ceil(min(seconds * 1000, LONGEST)))
        if events:
            return events
        limit.check()
        if until is not None and monotonic() >= until:
            return events
