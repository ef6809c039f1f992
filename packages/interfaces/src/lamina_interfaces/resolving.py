"""Name resolution that obeys a time limit, for backends of every kind.

`getaddrinfo` blocks for as long as it likes and cannot be interrupted, so it runs in threads of its own and the
caller waits no longer than it may, in whatever way it waits, until its `Bell` is rung. What follows from that:

- An abandoned call goes on, so the threads are bounded: `MAX_THREADS` for each resolver, so that one whose
  names hang holds up no other. They are daemons, and each ends when there is nothing more to ask. Look-ups
  beyond the bound queue up, within their callers' limits.
- Equal look-ups that are under way at the same time are one: a hundred dials to a host ask once per family. Each
  caller has its own limit, and giving up disturbs nobody else. A look-up that nobody waits for any more before
  it began is dropped; one that is older than `SHARED_FOR` is not joined, so that a call that hangs for ever
  does not make its name unusable for ever.
- Threads do not survive a fork, so a child begins with nothing.
- No thread can be started once the program is ending. Names cannot be looked up from then on (`ConnectError`),
  save those that need no thread.

There is no lock around them. A signal handler or a finaliser may dial, in the middle of anything that another
dial of the same thread is doing, and would wait for ever for a lock that it holds itself. Instead, what threads share
is changed by single operations that the interpreter does not divide (of `dict`, `set` and `deque`), and
where two of them must agree each writes first and reads second, so that at least one sees the other.
"""

from __future__ import annotations

import contextvars
import os
import socket
import sys
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeGuard, overload

from ._errors import ArgumentTypeError, ConnectError
from ._streams import AsyncResolver, ResolvedAddress, Resolver
from .dialing import check_host

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "LOOKUPS",
    "MAX_THREADS",
    "SHARED_FOR",
    "SYSTEM_RESOLVER",
    "Bell",
    "Lookup",
    "Lookups",
    "SystemResolver",
    "check_address",
    "check_resolver",
    "ip_address",
    "is_async",
    "is_localhost",
    "loopback",
    "says_none",
]

MAX_THREADS = 16
"""Look-ups of one resolver that run at the same time: eight hosts, two families each."""

SHARED_FOR = 30.0
"""Seconds for which a look-up may be joined: as long as the system's resolver tries by default (three servers,
two rounds, five seconds each)."""

LARGEST_NUMBERS: dict[int, tuple[int, ...]] = {
    socket.AF_INET: (0xFFFF,),
    socket.AF_INET6: (0xFFFF, 0xFFFFF, 0xFFFFFFFF),
}
"""What may follow the host in an address, by family: the port, and for IPv6 the flow label and the scope."""


class SystemResolver(Resolver):
    """The system's own: hosts file, DNS and whatever else it is set up to ask.

    Except for `localhost` and the names below it, which mean this machine and are asked of nobody (RFC 6761,
    section 6.3): a hosts file that lacks one family would have the question go out to a name server.
    """

    def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        """Ask `getaddrinfo`. See `Resolver.resolve`."""
        if is_localhost(host):
            return [loopback(port, family)]
        # Without AI_ADDRCONFIG: it leaves out a family of which this machine has only the loopback address, and
        # so breaks a name of this machine where there is no network. An address that cannot be reached fails at once.
        # As bytes, because for a str the socket module would load its IDNA tables, even for ASCII.
        found = socket.getaddrinfo(check_host(host).encode("ascii"), port, family, socket.SOCK_STREAM)
        return [ResolvedAddress(family, sockaddr) for family, _, _, _, sockaddr in found]


SYSTEM_RESOLVER = SystemResolver()
"""One for all backends, so that the bound on its threads is one."""


@overload
def check_resolver(resolver: Resolver | None) -> Resolver: ...


@overload
def check_resolver(
    resolver: Resolver | AsyncResolver | None, *, also_async: Literal[True]
) -> Resolver | AsyncResolver: ...


def check_resolver(
    resolver: Resolver | AsyncResolver | None, *, also_async: bool = False
) -> Resolver | AsyncResolver:
    """Return the resolver that a backend was given; the system's own for `None`.

    Args:
        resolver: any object with a method `resolve` will do.
        also_async: whether `resolve` may be a coroutine function.

    Raises:
        ArgumentTypeError: it has no method `resolve`, or one that only an async backend can await.
    """
    if resolver is None:
        return SYSTEM_RESOLVER
    if not callable(getattr(resolver, "resolve", None)):
        raise ArgumentTypeError(f"resolver must have a method resolve, unlike {type(resolver).__name__}")
    if not also_async and is_async(resolver):
        raise ArgumentTypeError(
            f"resolver must be a blocking one, and {type(resolver).__name__}.resolve is a coroutine function"
        )
    return resolver


def is_async(resolver: Resolver | AsyncResolver) -> TypeGuard[AsyncResolver]:
    """Whether the resolver's answer has to be awaited."""
    if isinstance(resolver, (AsyncResolver, SystemResolver)):
        return isinstance(resolver, AsyncResolver)
    from inspect import iscoroutinefunction  # which takes as long to import as all of this package

    return iscoroutinefunction(resolver.resolve)


def is_localhost(host: str) -> bool:
    """Whether the name means this machine whatever a name server may say."""
    name = host.lower().removesuffix(".")
    return name == "localhost" or name.endswith(".localhost")


def loopback(port: int, family: int) -> ResolvedAddress:
    """This machine's own address of a family."""
    return ResolvedAddress(family, ("::1", port, 0, 0) if family == socket.AF_INET6 else ("127.0.0.1", port))


# --- addresses ---------------------------------------------------------------------------------------------

_NONE = tuple(
    getattr(socket, name) for name in ("EAI_NONAME", "EAI_NODATA", "EAI_ADDRFAMILY") if hasattr(socket, name)
)


def says_none(error: BaseException) -> bool:
    """Whether the resolver had an answer, and the answer was that there are no addresses."""
    return isinstance(error, socket.gaierror) and error.errno in _NONE


def check_address(address: ResolvedAddress) -> ResolvedAddress:
    """Return what a resolver has found, unless `connect` would take it for a name, and look it up, blocking.

    Raises:
        ValueError, TypeError, OSError: it is no address.
    """
    family, sockaddr = address
    host, port, *rest = sockaddr
    numbers, limits = (port, *rest), LARGEST_NUMBERS.get(family, ())
    if len(numbers) > len(limits) or not all(
        type(number) is int and 0 <= number <= limit for number, limit in zip(numbers, limits, strict=False)
    ):
        raise ValueError(f"the resolver has returned {address!r}, which is no address")
    if "%" in host:
        ip_address(host, port)
    else:
        socket.inet_pton(family, host)
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
        if "%" not in host:
            socket.inet_pton(socket.AF_INET6, host)
            return ResolvedAddress(socket.AF_INET6, (host, port, 0, 0))
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV  # so that nothing is asked of anybody
        name = host.encode("ascii")  # as above
        found = socket.getaddrinfo(name, port, socket.AF_INET6, socket.SOCK_STREAM, flags=flags)
        return ResolvedAddress(socket.AF_INET6, found[0][4])
    except OSError as exc:
        raise ValueError(f"{host!r} is not an IP address of this machine's families and zones") from exc


# --- looking up --------------------------------------------------------------------------------------------


class Bell(Protocol):
    """How somebody who waits for a look-up is woken. Hashable, by identity."""

    def ring(self) -> None:
        """Wake the one who waits. Does not block.

        Called from any thread, perhaps more than once, perhaps after `Lookups.leave`: it must be harmless then.
        What it raises is lost.
        """


class Lookup:
    """One question to a resolver, and its answer once there is one.

    Attributes:
        addresses: the answer as the resolver gave it, or `None`.
        error: why there is no answer, or `None`.
        bells: of those who wait.
        begun: whether the resolver is being asked.
        dropped: whether it will not be asked, because nobody waited.
    """

    def __init__(self, resolver: Resolver, host: str, port: int, family: int) -> None:
        self.key: tuple[int, str, int, int] = (id(resolver), host, port, family)
        self.started_at: float = monotonic()
        self.addresses: list[ResolvedAddress] | None = None
        self.error: BaseException | None = None
        self.bells: set[Bell] = set()
        self.begun: bool = False
        self.dropped: bool = False
        self._resolver = resolver  # also keeps its id from being given to another
        self._question = (host, port, family)

    @property
    def done(self) -> bool:
        """Whether there is an answer or an error."""
        return self.addresses is not None or self.error is not None

    @property
    def wanted(self) -> bool:
        """Whether somebody waits; marks it as dropped otherwise."""
        if not self.bells:
            self.dropped = True  # before looking again: see `Lookups.join`
        return bool(self.bells)

    def ask(self) -> None:
        """Ask the resolver. Never raises: the thread belongs to everybody."""
        try:
            self.addresses = list(self._resolver.resolve(*self._question))
        except BaseException as exc:  # noqa: BLE001 - a custom resolver may raise anything; the waiting get it
            self.error = exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)
        # The resolver's frames are kept by the error, and keep this one, which must not keep the error.
        del self


class _Share:
    """The queue and the threads of one resolver."""

    def __init__(self) -> None:
        self.queue: deque[Lookup] = deque()
        # Taken and given back by the thread itself, where no signal handler can raise in between.
        self.permits = deque(range(MAX_THREADS))

    @property
    def threads(self) -> int:
        """How many are at work."""
        return MAX_THREADS - len(self.permits)


class Lookups:
    """The look-ups that are under way. Thread-safe, and safe in signal handlers and finalisers."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything: in a forked child the threads do not exist."""
        self._under_way: dict[tuple[Any, ...], Lookup] = {}
        self._shares: dict[int, _Share] = {}  # by the id of the resolver

    def join(self, resolver: Resolver, host: str, port: int, family: int, bell: Bell) -> Lookup:
        """Start a look-up, or join an equal one. `bell` is rung when it is done, here or in another thread.

        Where no thread can be had, the look-up is done at once, with an error.
        """
        lookup = Lookup(resolver, host, port, family)
        lookup.bells.add(bell)
        share = self._shares.setdefault(id(resolver), _Share())
        equal = self._under_way.get(lookup.key)
        if equal is not None and lookup.started_at - equal.started_at < SHARED_FOR:
            equal.bells.add(bell)
            # Added first: if it was dropped in this moment then either its thread sees the bell, or we see that.
            if not equal.dropped:
                if equal.done:
                    bell.ring()
                elif not equal.begun:
                    self._put(share, equal)  # an interrupt may have kept its starter from that
                return equal
        self._under_way[lookup.key] = lookup
        self._put(share, lookup)
        return lookup

    def leave(self, lookup: Lookup, bell: Bell) -> None:
        """Wait no longer. The bell may be rung all the same, by a thread that has taken it already."""
        lookup.bells.discard(bell)
        share = self._shares.get(lookup.key[0])
        if lookup.begun or lookup.wanted or share is None:
            return
        try:
            share.queue.remove(lookup)
        except ValueError:
            return  # a thread has it already
        self._forget(lookup)

    def _put(self, share: _Share, lookup: Lookup) -> None:
        if lookup not in share.queue:
            share.queue.append(lookup)
        if share.permits:
            self._add_thread(share, lookup)

    def _add_thread(self, share: _Share, lookup: Lookup) -> None:
        try:
            if sys.is_finalizing():  # threads of this kind have stopped for good
                raise RuntimeError("the program is ending")
            # An empty context: the limits of the caller who happens to start it are not those of its work.
            target = contextvars.Context().run
            arguments = (self._work, share, lookup.key[0])
            threading.Thread(target=target, args=arguments, name="lamina-resolver", daemon=True).start()
        except RuntimeError as exc:  # no more threads, or the interpreter is ending
            if not share.threads or sys.is_finalizing():
                message = f"no thread could be started to resolve a name: {exc}"
                lookup.error = ConnectError(message, phase="dns")
                self._end(lookup)

    def _work(self, share: _Share, resolver_id: int) -> None:
        # Asked again after the permit was given back: who put a look-up there in between may have seen no permit.
        while share.queue:
            try:
                permit = share.permits.pop()
            except IndexError:
                return  # there are enough
            self._ask_all(share)
            share.permits.append(permit)
        if not share.threads and self._shares.get(resolver_id) is share:
            self._shares.pop(resolver_id, None)

    def _ask_all(self, share: _Share) -> None:
        while share.queue:
            try:
                lookup = share.queue.popleft()
            except IndexError:
                return  # another thread was faster
            if not lookup.begun:
                if not lookup.done and lookup.wanted:
                    lookup.begun = True
                    lookup.ask()
                self._end(lookup)
            del lookup  # as in `ask`

    def _end(self, lookup: Lookup) -> None:
        self._forget(lookup)
        while lookup.bells:
            try:
                bell = lookup.bells.pop()
            except KeyError:
                return  # who waited has left
            try:
                bell.ring()
            except Exception:  # noqa: BLE001 - a loop that has ended raises; the thread belongs to everybody
                pass

    def _forget(self, lookup: Lookup) -> None:
        if self._under_way.get(lookup.key) is lookup:
            self._under_way.pop(lookup.key, None)

    def __repr__(self) -> str:
        threads = sum(share.threads for share in list(self._shares.values()))
        return f"<Lookups [{threads} threads, {len(self._under_way)} under way]>"


LOOKUPS = Lookups()
"""Shared by all backends of the process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=LOOKUPS.reset)
