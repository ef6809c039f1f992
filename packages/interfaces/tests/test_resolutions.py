"""Resolutions: what a dial would connect to, without connecting. Time is a number here."""

from __future__ import annotations

import socket
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from interfaces_clock import VirtualClock
from interfaces_sockets import Answers, SelectBell, open_fds, until
from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    AsyncNameResolver,
    AsyncNetworkBackend,
    AsyncResolver,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    Limit,
    NameResolver,
    NetworkBackend,
    ResolvedAddress,
    close_deadline,
    open_deadline,
)
from lamina_interfaces.connecting import Resolution
from lamina_interfaces.dialing import RESOLUTION_DELAY
from lamina_interfaces.resolving import LOOKUPS, SYSTEM_RESOLVER, Lookups

if TYPE_CHECKING:
    from collections.abc import Iterator

V4, V6 = socket.AF_INET, socket.AF_INET6

AWAITED = AsyncResolver()
"""For resolutions that are told what the resolver has said."""


def v4(number: int) -> ResolvedAddress:
    return ResolvedAddress(V4, (f"192.0.2.{number}", 80))


def v6(number: int) -> ResolvedAddress:
    return ResolvedAddress(V6, (f"2001:db8::{number}", 80, 0, 0))


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1000.0)


@pytest.fixture(autouse=True)
def _no_socket_is_made() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before
    until(lambda: not LOOKUPS._under_way)


def resolution_of(
    host: str, clock: Any = monotonic, timeout: float | None = 30, resolver: Any = AWAITED, **options: Any
) -> Resolution:
    limit = Limit(timeout, clock, "dns")
    return Resolution(host, 80, limit=limit, clock=clock, resolver=resolver, **options)


# --- answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.1", v4(1)),
        ("2001:db8::1", v6(1)),
    ],
)
def test_an_ip_address_is_its_own_answer(host: str, address: ResolvedAddress) -> None:
    resolution = resolution_of(host)
    assert not resolution.look_ups
    assert resolution.async_resolver is None
    assert resolution.advance() == [address]


def test_this_machine_is_known_without_asking() -> None:
    resolution = resolution_of("localhost", resolver=SYSTEM_RESOLVER)
    assert not resolution.look_ups
    assert resolution.advance() == [
        ResolvedAddress(V6, ("::1", 80, 0, 0)),
        ResolvedAddress(V4, ("127.0.0.1", 80)),
    ]


def test_the_answers_are_in_the_order_in_which_a_dial_tries_them(clock: VirtualClock) -> None:
    resolution = resolution_of("host.example", clock)
    assert resolution.look_ups == (V6, V4)
    resolution.found(V6, [v6(1), v6(2), v6(1)])
    resolution.found(V4, [v4(1), v4(2), v6(3)])
    assert resolution.advance() == [v6(1), v4(1), v6(2), v4(2)]


def test_the_slower_family_is_waited_for_a_moment_if_it_is_the_preferred_one(clock: VirtualClock) -> None:
    resolution = resolution_of("host.example", clock)
    resolution.found(V4, [v4(1)])
    assert resolution.advance() is None
    assert resolution.wake_at == clock.now + RESOLUTION_DELAY
    clock.sleep(RESOLUTION_DELAY)
    assert resolution.advance() == [v4(1)]


def test_the_other_family_is_not_waited_for(clock: VirtualClock) -> None:
    resolution = resolution_of("host.example", clock)
    resolution.found(V6, [v6(1)])
    assert resolution.advance() == [v6(1)]


def test_the_other_family_is_waited_for_if_the_first_has_none(clock: VirtualClock) -> None:
    resolution = resolution_of("host.example", clock)
    resolution.not_found(V6, socket.gaierror(socket.EAI_NONAME, "none"))
    assert resolution.advance() is None
    assert resolution.wake_at is None
    resolution.found(V4, [v4(1)])
    assert resolution.advance() == [v4(1)]


@pytest.mark.parametrize(("local", "address"), [("127.0.0.1", v4(1)), ("::1", v6(1))])
def test_a_local_address_asks_for_its_family_alone(
    clock: VirtualClock, local: str, address: ResolvedAddress
) -> None:
    resolution = resolution_of("host.example", clock, local_address=local)
    assert resolution.look_ups == (address.family,)
    resolution.found(address.family, [v4(1), v6(1)])
    assert resolution.advance() == [address]


def test_a_blocking_resolver_is_asked_in_threads() -> None:
    answers = Answers(v6=[v6(1)], v4=[v4(1)], held=True)
    bell = SelectBell()
    resolution = resolution_of("host.example", resolver=answers)
    resolution.ask(bell)
    assert resolution.advance() is None
    answers.release()
    while (found := resolution.advance()) is None:
        bell.wait()
    resolution.close()
    assert set(found) <= {v4(1), v6(1)}
    assert sorted(answers.calls) == sorted([("host.example", 80, V6), ("host.example", 80, V4)])


def test_one_that_is_given_up_leaves_its_look_ups(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = Lookups()
    monkeypatch.setattr("lamina_interfaces.connecting.LOOKUPS", lookups)
    answers = Answers(held=True)
    resolution = resolution_of("host.example", resolver=answers)
    resolution.ask(SelectBell())
    started = list(lookups._under_way.values())
    assert len(started) == 2
    resolution.close()
    assert not any(lookup.bells for lookup in started)
    answers.release()
    until(lambda: not lookups._under_way)


# --- no answers --------------------------------------------------------------------------------------------


def test_a_name_that_nobody_knows(clock: VirtualClock) -> None:
    resolution = resolution_of("host.example", clock)
    why = socket.gaierror(socket.EAI_AGAIN, "try again")
    resolution.not_found(V6, socket.gaierror(socket.EAI_NONAME, "none"))
    resolution.not_found(V4, why)
    with pytest.raises(ConnectError, match=r"host\.example:80 could not be resolved: .*try again") as caught:
        resolution.advance()
    assert caught.value.phase == "dns"
    assert caught.value.__cause__ is why


@pytest.mark.parametrize(("host", "local"), [("192.0.2.1", "::1"), ("2001:db8::1", "127.0.0.1")])
def test_an_address_of_the_wrong_family_for_the_local_address(host: str, local: str) -> None:
    with pytest.raises(ConnectError, match="no address of the local address's family") as caught:
        resolution_of(host, local_address=local).advance()
    assert caught.value.phase == "dns"


def test_a_zone_that_does_not_exist() -> None:
    with pytest.raises(ConnectError, match="fe80::1%nowhere0") as caught:
        resolution_of("fe80::1%nowhere0")
    assert caught.value.phase == "dns"


# --- limits ------------------------------------------------------------------------------------------------


def test_a_limit_that_has_passed_asks_nobody(clock: VirtualClock) -> None:
    with pytest.raises(ConnectTimeout) as caught:
        resolution_of("host.example", clock, timeout=0)
    assert caught.value.phase == "dns"


def test_a_limit_that_passes_meanwhile(clock: VirtualClock) -> None:
    resolution = resolution_of("host.example", clock, timeout=2)
    assert resolution.advance() is None
    clock.sleep(2)
    with pytest.raises(
        ConnectTimeout, match=r"looking up the name of host\.example:80 took too long"
    ) as caught:
        resolution.advance()
    error = caught.value
    assert (error.phase, error.limit, error.elapsed, error.attempts) == ("dns", 2, 2, ())


def test_an_answer_that_has_come_counts_although_the_limit_has_passed(clock: VirtualClock) -> None:
    resolution = resolution_of("host.example", clock, timeout=2)
    resolution.found(V6, [v6(1)])
    clock.sleep(2)
    assert resolution.advance() == [v6(1)]


@pytest.mark.parametrize(("waited", "error"), [(2, DeadlineExceeded), (1, ConnectError)])
def test_a_resolver_that_timed_out_is_no_resolver_that_failed(
    clock: VirtualClock, waited: int, error: type[Exception]
) -> None:
    """One that is awaited is under the deadline of whoever asks, unless it timed out by its own limit."""
    deadline = open_deadline(2, clock)
    try:
        resolution = resolution_of("host.example", clock)
        clock.sleep(waited)
        for family in (V6, V4):
            resolution.not_found(family, ConnectTimeout("the name server took too long", phase="connect"))
        with pytest.raises(error, match=r"host\.example") as caught:
            resolution.advance()
    finally:
        close_deadline(deadline)
    assert getattr(caught.value, "phase", None) == "dns"


def test_a_cancelled_one_leaves_its_circumstances_to_the_block(clock: VirtualClock) -> None:
    deadline = open_deadline(2, clock)
    try:
        resolution = resolution_of("host.example", clock)
        clock.sleep(2)
        resolution.interrupted()
        interruption = deadline.interruption
    finally:
        close_deadline(deadline)
    assert interruption is not None
    assert interruption.phase == "dns"
    assert "host.example" in str(interruption)


# --- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"host": ""}, ArgumentValueError),
        ({"host": "[::1]"}, ArgumentValueError),
        ({"host": None}, ArgumentTypeError),
        ({"port": 0}, ArgumentValueError),
        ({"port": "80"}, ArgumentTypeError),
        ({"local_address": "host.example"}, ArgumentValueError),
        ({"local_address": 1}, ArgumentTypeError),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], error: type[Exception]) -> None:
    given: dict[str, Any] = {"host": "host.example", "port": 80, **arguments}
    with pytest.raises(error):
        Resolution(limit=Limit(1, monotonic, "dns"), clock=monotonic, resolver=AWAITED, **given)


def test_its_repr_tells_its_state() -> None:
    assert repr(resolution_of("host.example")) == "<Resolution [host.example:80, 2 look-ups]>"


# --- the ability -------------------------------------------------------------------------------------------


def test_the_ability_does_nothing_itself() -> None:
    with pytest.raises(NotImplementedError):
        NameResolver().resolve("host.example", 80)
    with pytest.raises(NotImplementedError):
        AsyncNameResolver().resolve("host.example", 80).send(None)


@pytest.mark.parametrize("backend", [NetworkBackend, AsyncNetworkBackend])
def test_no_backend_has_the_ability_unless_it_claims_it(backend: type[Any]) -> None:
    """In the base class it would break every backend that exists."""
    assert not hasattr(backend, "resolve")
