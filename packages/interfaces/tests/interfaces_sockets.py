"""For tests that connect: listeners on loopback, addresses that refuse, bells, and a loop that waits by `select`."""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import ExitStack, contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

from lamina_interfaces import ResolvedAddress, Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from lamina_interfaces.connecting import Dial, UnixDial

PATIENCE = 20.0
"""Seconds after which something that should happen at once counts as not happening."""


def open_fds() -> set[tuple[str, str]]:
    """The open sockets of this process, by number and identity."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the directory's own
            continue
        if target.startswith("socket:"):
            found.add((name, target))
    return found


def until(condition: Callable[[], object]) -> None:
    """Wait for another thread to get somewhere."""
    end = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < end, "it did not happen"
        threading.Event().wait(0.001)


def listening(family: int = socket.AF_INET) -> Iterator[socket.socket]:
    """A listener that accepts nothing by itself; the system connects all the same."""
    with socket.socket(family) as sock:
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        sock.listen(64)
        yield sock


def address_of(listener: socket.socket) -> ResolvedAddress:
    return ResolvedAddress(listener.family, listener.getsockname())


@contextmanager
def refusing_addresses(count: int) -> Iterator[list[ResolvedAddress]]:
    """Ports of loopback where nobody listens, and that nobody else is given meanwhile."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for sock in sockets:
            # So that a test may bind its own end to it.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", 0))
        yield [address_of(sock) for sock in sockets]


class SelectBell:
    """Counts how often it was rung, and can be waited for."""

    def __init__(self) -> None:
        self.rung = 0
        self.heard = threading.Event()

    def ring(self) -> None:
        self.rung += 1
        self.heard.set()

    def wait(self) -> None:
        assert self.heard.wait(PATIENCE), "nobody rang"
        self.heard.clear()


class BrokenBell:
    """Belongs to an event loop that has ended."""

    def __init__(self) -> None:
        self.rung = 0

    def ring(self) -> None:
        self.rung += 1
        raise RuntimeError("the loop is closed")


class Answers(Resolver):
    """Answers from a table of families; a value may be an exception. Holds them back while `held` is not set."""

    def __init__(self, *, v6: Any = (), v4: Any = (), held: bool = False) -> None:
        self._answers: dict[int, Any] = {socket.AF_INET6: v6, socket.AF_INET: v4}
        self._gate = threading.Event()
        self.calls: list[tuple[str, int, int]] = []
        if not held:
            self.release()

    def release(self) -> None:
        self._gate.set()

    def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        self.calls.append((host, port, family))
        assert self._gate.wait(3 * PATIENCE)
        answer = self._answers[family]
        if isinstance(answer, BaseException):
            raise answer
        found: Sequence[ResolvedAddress] = answer
        return found


def wait_until_ended(sock: socket.socket) -> None:
    """Wait for an attempt to connect. Even on loopback it may take a moment."""
    assert select.select([], [sock], [], PATIENCE)[1], "it does not end"


def connected(dial: Dial | UnixDial) -> socket.socket:
    """Wait for a dial whose names are known, in the simplest way there is."""
    end = monotonic() + PATIENCE
    while (sock := dial.advance()) is None:
        assert monotonic() < end, "it does not end"
        _, writable, _ = select.select([], list(dial.pending.values()), [], 0.01)
        for index, pending in list(dial.pending.items()):
            if pending in writable:
                dial.ended(index)
    return sock
