"""Name resolution that obeys a time limit.

`getaddrinfo` blocks for as long as it likes and cannot be interrupted, so it runs in threads of its own and the
caller waits no longer than it may. What follows from that:

- An abandoned call goes on, so the threads are bounded (`MAX_THREADS`), and they are daemons: neither a caller
  nor the end of the program ever waits for one. Look-ups beyond the bound queue up, within their callers' limits.
- Equal look-ups that are under way at the same time are one: a hundred dials to a host ask once per family. Each
  caller has its own limit, and giving up disturbs nobody else. A look-up that nobody waits for any more before
  it began is dropped; one that is older than `SHARED_FOR` is not joined, so that a call that hangs for ever
  does not make its name unusable for ever.
- Threads do not survive a fork, so a child begins with an empty pool.
"""

from __future__ import annotations

import contextvars
import os
import socket
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

from lamina_interfaces import ConnectError, ResolvedAddress, Resolver
from lamina_interfaces.dialing import check_host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MAX_THREADS = 16
"""Look-ups that run at the same time: eight hosts, two families each."""

THREAD_IDLE = 10.0
"""Seconds without work after which a thread ends."""

SHARED_FOR = 30.0
"""Seconds for which a look-up may be joined: as long as the system's resolver tries by default (three servers,
two rounds, five seconds each)."""


class SystemResolver(Resolver):
    """The system's own: hosts file, DNS and whatever else it is set up to ask.

    Except for `localhost` and the names below it, which mean this machine and are asked of nobody (RFC 6761,
    section 6.3): a hosts file that lacks one family would have the question go out to a name server.
    """

    def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        """Ask `getaddrinfo`. See `Resolver.resolve`."""
        name = host.lower().removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):
            loopback = ("::1", port, 0, 0) if family == socket.AF_INET6 else ("127.0.0.1", port)
            return [ResolvedAddress(family, loopback)]
        # Without AI_ADDRCONFIG: it leaves out a family of which this machine has only the loopback address, and
        # so breaks a name of this machine where there is no network. An address that cannot be reached fails at once.
        # As bytes, because for a str the socket module would load its IDNA tables, even for ASCII.
        found = socket.getaddrinfo(check_host(host).encode("ascii"), port, family, socket.SOCK_STREAM)
        return [ResolvedAddress(family, sockaddr) for family, _, _, _, sockaddr in found]


class Lookup:
    """One question to a resolver, and its answer once there is one.

    Attributes:
        addresses: the answer, or `None`.
        error: why there is no answer, or `None`.
    """

    def __init__(self, resolver: Resolver, host: str, port: int, family: int) -> None:
        self.key = (id(resolver), host, port, family)
        self.started_at = monotonic()
        self.addresses: list[ResolvedAddress] | None = None
        self.error: BaseException | None = None
        self.wakers: list[Callable[[], None]] = []
        self._resolver = resolver  # also keeps its id from being given to another
        self._question = (host, port, family)

    @property
    def done(self) -> bool:
        """Whether there is an answer or an error."""
        return self.addresses is not None or self.error is not None

    def ask(self) -> None:
        """Ask the resolver. Never raises: the thread belongs to everybody."""
        try:
            answer = self._resolver.resolve(*self._question)
            self.addresses = [_checked(address) for address in answer]
        except BaseException as exc:  # noqa: BLE001 - a custom resolver may raise anything; the waiting get it
            self.error = exc


_NONE = tuple(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)


def says_none(error: BaseException) -> bool:
    """Whether the resolver had an answer, and the answer was that there are no addresses."""
    return isinstance(error, socket.gaierror) and error.errno in _NONE


def _checked(address: ResolvedAddress) -> ResolvedAddress:
    """Refuse what `connect` would take for a name, and look up, blocking."""
    family, sockaddr = address
    ip_address(sockaddr[0], sockaddr[1])
    return ResolvedAddress(family, tuple(sockaddr))


def ip_address(host: str, port: int) -> ResolvedAddress:
    """The address that an IP literal stands for; an IPv6 one may have a zone (`fe80::1%eth0`).

    Raises:
        ValueError: it is no IP address, or its zone does not exist here.
    """
    try:
        if ":" not in host:
            socket.inet_pton(socket.AF_INET, host)
            return ResolvedAddress(socket.AF_INET, (host, port))
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV  # so that nothing is asked of anybody
        found = socket.getaddrinfo(host, port, socket.AF_INET6, socket.SOCK_STREAM, flags=flags)
        return ResolvedAddress(socket.AF_INET6, found[0][4])
    except OSError as exc:
        raise ValueError(f"{host!r} is not an IP address of this machine's families and zones") from exc


class LookupPool:
    """The threads, and the look-ups that are under way. Thread-safe."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: in a forked child the threads do not exist, and the lock may be held for ever."""
        self._lock = threading.Lock()
        self._work_is_there = threading.Condition(self._lock)
        self._queue: deque[Lookup] = deque()
        self._under_way: dict[tuple[Any, ...], Lookup] = {}
        self._threads = 0
        self._idle = 0

    def join(self, resolver: Resolver, host: str, port: int, family: int, wake: Callable[[], None]) -> Lookup:
        """Start a look-up, or join an equal one. `wake` is called, from another thread, when it is done.

        Raises:
            ConnectError: no thread could be started.
        """
        lookup = Lookup(resolver, host, port, family)
        with self._lock:
            equal = self._under_way.get(lookup.key)
            if equal is not None and lookup.started_at - equal.started_at < SHARED_FOR:
                equal.wakers.append(wake)
                return equal
            self._queue.append(lookup)
            if len(self._queue) > self._idle and self._threads < MAX_THREADS:
                self._add_thread()
            lookup.wakers.append(wake)
            self._under_way[lookup.key] = lookup
            self._work_is_there.notify()
        return lookup

    def leave(self, lookup: Lookup, wake: Callable[[], None]) -> None:
        """Wait no longer. Once this has returned, `wake` is not called any more."""
        with self._lock:
            if wake in lookup.wakers:
                lookup.wakers.remove(wake)
            if not lookup.wakers and lookup in self._queue:
                self._queue.remove(lookup)
                self._forget(lookup)

    def _add_thread(self) -> None:
        # An empty context: the limits of the caller who happens to start the thread are not those of its work.
        target = contextvars.Context().run
        thread = threading.Thread(target=target, args=(self._work,), name="lamina-resolver", daemon=True)
        self._threads += 1  # before, so that an interrupt cannot leave a thread uncounted
        try:
            thread.start()
        except RuntimeError as exc:  # no more threads, or the interpreter is ending
            self._threads -= 1
            if not self._threads:
                self._queue.pop()
                message = f"no thread could be started to resolve a name: {exc}"
                raise ConnectError(message, phase="dns") from exc

    def _work(self) -> None:
        while (lookup := self._next()) is not None:
            lookup.ask()
            with self._lock:
                self._forget(lookup)
                # Within the lock, so that a waker is not called when its owner has left and closed what it uses.
                for wake in lookup.wakers:
                    wake()
                lookup.wakers.clear()
            del lookup  # hold nothing while waiting for work

    def _next(self) -> Lookup | None:
        with self._lock:
            while not self._queue:
                self._idle += 1
                came = self._work_is_there.wait(THREAD_IDLE)
                self._idle -= 1
                if not came and not self._queue:
                    self._threads -= 1
                    return None
            return self._queue.popleft()

    def _forget(self, lookup: Lookup) -> None:
        if self._under_way.get(lookup.key) is lookup:
            del self._under_way[lookup.key]

    def __repr__(self) -> str:
        return (
            f"<LookupPool [{self._threads} threads, {self._idle} idle, {len(self._queue)} queued, "
            f"{len(self._under_way)} under way]>"
        )


LOOKUPS = LookupPool()
"""Shared by all backends of the process, so that the bound on threads is one."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LOOKUPS.reset)
