"""Names: what needs no asking, which resolvers there are, and the threads that ask them."""

from __future__ import annotations

import socket
import threading
from typing import TYPE_CHECKING, Any

import pytest

from interfaces_sockets import Answers, BrokenBell, SelectBell, until
from lamina_interfaces import ArgumentTypeError, AsyncResolver, ConnectError, ResolvedAddress, Resolver
from lamina_interfaces.resolving import (
    LOOKUPS,
    MAX_THREADS,
    SYSTEM_RESOLVER,
    SystemResolver,
    check_address,
    check_resolver,
    ip_address,
    is_async,
    is_localhost,
    loopback,
    says_none,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

V4, V6 = socket.AF_INET, socket.AF_INET6


@pytest.fixture(autouse=True)
def _no_lookup_is_left() -> Iterator[None]:
    yield
    until(lambda: not LOOKUPS._under_way)
    until(lambda: not LOOKUPS._shares)


@pytest.fixture
def held() -> Iterator[Answers]:
    """A resolver that does not answer before it is told to."""
    resolver = Answers(v4=[ResolvedAddress(V4, ("127.0.0.1", 80))], held=True)
    yield resolver
    resolver.release()


# --- which resolvers there are -----------------------------------------------------------------------------


class Duck:
    def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        return []


class AsyncDuck:
    async def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        return []


class AwaitableAnswer(AsyncResolver):
    def resolve(self, host: str, port: int, family: int) -> Any:
        return AsyncResolver().resolve(host, port, family)


def test_no_resolver_means_the_systems() -> None:
    assert check_resolver(None) is check_resolver(None, also_async=True) is SYSTEM_RESOLVER


@pytest.mark.parametrize("resolver", [Resolver(), SystemResolver(), Duck()])
def test_a_blocking_resolver_suits_every_backend(resolver: Any) -> None:
    assert not is_async(resolver)
    assert check_resolver(resolver) is check_resolver(resolver, also_async=True) is resolver


@pytest.mark.parametrize("resolver", [AsyncResolver(), AsyncDuck(), AwaitableAnswer()])
def test_a_resolver_to_be_awaited_suits_async_backends_alone(resolver: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="coroutine"):
        check_resolver(resolver)
    assert check_resolver(resolver, also_async=True) is resolver
    assert is_async(resolver)


class Named:
    resolve = "name"


@pytest.mark.parametrize("resolver", [len, "1.1.1.1", Named()], ids=["len", "str", "attribute"])
def test_what_is_no_resolver_is_refused(resolver: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="resolve"):
        check_resolver(resolver)
    with pytest.raises(ArgumentTypeError, match="resolve"):
        check_resolver(resolver, also_async=True)


# --- what needs no asking ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("127.0.0.1", ResolvedAddress(V4, ("127.0.0.1", 80))),
        ("::1", ResolvedAddress(V6, ("::1", 80, 0, 0))),
        ("::ffff:127.0.0.1", ResolvedAddress(V6, ("::ffff:127.0.0.1", 80, 0, 0))),
    ],
)
def test_an_ip_address_stands_for_itself(host: str, address: ResolvedAddress) -> None:
    assert ip_address(host, 80) == address


def test_the_zone_of_an_ipv6_address_becomes_its_scope() -> None:
    """A loopback interface has no link-local address to connect to, so the address itself is looked at."""
    number, name = socket.if_nameindex()[0]
    assert ip_address(f"fe80::1%{name}", 80).sockaddr[3] == number


@pytest.mark.parametrize(
    "host", ["host.example", "127.1", "2130706433", "0x7f000001", "127.0.0.1.", "::1::", "fe80::1%no-such-zone"]
)  # fmt: skip
def test_anything_else_is_no_ip_address(host: str) -> None:
    with pytest.raises(ValueError, match="not an IP address"):
        ip_address(host, 80)


@pytest.mark.parametrize(
    ("host", "local"),
    [("localhost", True), ("LocalHost.", True), ("app.localhost", True), ("localhost.example", False),
     ("mylocalhost", False)],
)  # fmt: skip
def test_localhost_and_the_names_below_it_are_this_machine(host: str, local: bool) -> None:
    """RFC 6761, section 6.3."""
    assert is_localhost(host) is local


@pytest.mark.parametrize("family", [V4, V6])
def test_nobody_is_asked_for_localhost(family: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "getaddrinfo")
    assert SystemResolver().resolve("localhost", 80, family) == [loopback(80, family)]


def test_the_system_is_asked_for_the_encoded_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(host: bytes, port: int, family: int, kind: int) -> Any:
        assert (host, port, family, kind) == (b"xn--bcher-kva.example", 80, V4, socket.SOCK_STREAM)
        return [(V4, kind, 6, "", ("192.0.2.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert SystemResolver().resolve("bücher.example", 80, V4) == [ResolvedAddress(V4, ("192.0.2.1", 80))]


@pytest.mark.parametrize(
    ("error", "none"),
    [(socket.gaierror(socket.EAI_NONAME, "x"), True), (socket.gaierror(socket.EAI_AGAIN, "x"), False),
     (OSError(socket.EAI_NONAME, "x"), False), (RuntimeError(), False)],
    ids=repr,
)  # fmt: skip
def test_no_answer_is_told_from_the_answer_that_there_is_none(error: Exception, none: bool) -> None:
    assert says_none(error) is none


@pytest.mark.parametrize(
    "address",
    [("nonsense",), None, (V6, ("other.example", 80)), (V4, ("127.0.0.1", "80")), (V4, ("127.0.0.1", 65536)),
     (V4, ("127.0.0.1", -1)), (V4, ("127.0.0.1", True)), (V4, ("127.0.0.1", 80, 0, 0)), (V6, ("::1", 80, 0, 2**32)),
     (V6, ("127.0.0.1", 80)), (V4, ("localhost", 80)), (99, ("127.0.0.1", 80)), (V4, (None, 80)), (V4, ())],
    ids=repr,
)  # fmt: skip
def test_what_connect_would_look_up_or_refuse_is_no_address(address: Any) -> None:
    with pytest.raises((ValueError, TypeError, OSError)):
        check_address(address)


@pytest.mark.parametrize(
    "address", [(V4, ("192.0.2.1", 443)), (V6, ("::1", 443)), (V6, ("fe80::1", 443, 0, 2))], ids=repr
)  # fmt: skip
def test_an_address_is_taken_as_it_is(address: Any) -> None:
    assert check_address(address) == address


# --- threads -----------------------------------------------------------------------------------------------


def test_the_bell_is_rung_when_there_is_an_answer(held: Answers) -> None:
    bell = SelectBell()
    lookup = LOOKUPS.join(held, "host.example", 80, V4, bell)
    until(lambda: held.calls)
    assert not lookup.done
    assert bell.rung == 0
    held.release()
    bell.wait()
    assert lookup.addresses == [ResolvedAddress(V4, ("127.0.0.1", 80))]


def test_equal_lookups_are_one_and_every_bell_is_rung(held: Answers) -> None:
    bells = [SelectBell() for _ in range(10)]
    lookups = {LOOKUPS.join(held, "host.example", 80, V4, bell) for bell in bells}
    held.release()
    for bell in bells:
        bell.wait()
    assert len(lookups) == len(held.calls) == 1


def test_whoever_has_left_is_not_rung(held: Answers) -> None:
    gone, here = SelectBell(), SelectBell()
    lookup = LOOKUPS.join(held, "host.example", 80, V4, gone)
    LOOKUPS.join(held, "host.example", 80, V4, here)
    LOOKUPS.leave(lookup, gone)
    held.release()
    here.wait()
    assert gone.rung == 0


def test_what_nobody_waits_for_any_more_is_not_asked(held: Answers) -> None:
    for number in range(MAX_THREADS):
        LOOKUPS.join(held, f"host{number}.example", 80, V4, SelectBell())
    bell = SelectBell()
    lookup = LOOKUPS.join(held, "late.example", 80, V4, bell)
    LOOKUPS.leave(lookup, bell)
    held.release()
    until(lambda: not LOOKUPS._shares)
    assert "late.example" not in {host for host, _, _ in held.calls}


def test_a_bell_that_raises_silences_no_other_and_costs_no_thread(held: Answers) -> None:
    """The loop that it belongs to may have ended."""
    broken = [BrokenBell() for _ in range(2 * MAX_THREADS)]
    bells = [SelectBell() for _ in broken]
    for number, (bad, good) in enumerate(zip(broken, bells, strict=True)):
        LOOKUPS.join(held, f"host{number}.example", 80, V4, bad)
        LOOKUPS.join(held, f"host{number}.example", 80, V4, good)
    held.release()
    for bell in bells:
        bell.wait()
    until(lambda: all(bell.rung == 1 for bell in broken))
    after = SelectBell()
    LOOKUPS.join(held, "after.example", 80, V4, after)
    after.wait()


def test_where_no_thread_can_be_had_the_lookup_has_failed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    bell = SelectBell()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        lookup = LOOKUPS.join(Answers(), "host.example", 80, V4, bell)
    assert bell.rung == 1
    assert isinstance(lookup.error, ConnectError)
    assert "can't start new thread" in str(lookup.error)
    LOOKUPS.reset()
