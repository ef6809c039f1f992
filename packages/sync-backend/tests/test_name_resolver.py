"""Telling a host's addresses without connecting: `NameResolver`."""

from __future__ import annotations

import socket
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import (
    ArgumentValueError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    NameResolver,
    ResolvedAddress,
    close_deadline,
    open_deadline,
)
from lamina_interfaces.resolving import LOOKUPS
from lamina_sync_backend import SyncBackend
from sync_peers import PATIENCE, Hanging, Table, in_thread, open_fds, until

if TYPE_CHECKING:
    from collections.abc import Iterator

V4 = ResolvedAddress(socket.AF_INET, ("192.0.2.1", 80))
V6 = ResolvedAddress(socket.AF_INET6, ("2001:db8::1", 80, 0, 0))


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before
    until(lambda: not LOOKUPS._under_way)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    answer = Hanging()
    try:
        yield answer
    finally:
        answer.release()


def test_the_backend_has_the_ability() -> None:
    assert isinstance(SyncBackend(), NameResolver)


def test_a_name_goes_through_the_resolver_once_for_each_family() -> None:
    table = Table(v6=socket.gaierror(socket.EAI_NONAME, "none"), v4=[V4])
    assert SyncBackend(resolver=table).resolve("host.example", 80, timeout=PATIENCE) == [V4]
    assert sorted(table.calls) == sorted(
        [("host.example", 80, socket.AF_INET6), ("host.example", 80, socket.AF_INET)]
    )


def test_a_family_that_is_not_answered_holds_up_nobody(hanging: Hanging) -> None:
    backend = SyncBackend(resolver=Table(v6=hanging, v4=[V4]))
    assert backend.resolve("host.example", 80, timeout=PATIENCE) == [V4]


@pytest.mark.parametrize(("host", "address"), [("192.0.2.1", V4), ("2001:db8::1", V6)])
def test_an_ip_address_needs_neither_resolver_nor_thread(host: str, address: ResolvedAddress) -> None:
    table = Table()
    before = set(threading.enumerate())
    assert SyncBackend(resolver=table).resolve(host, 80) == [address]
    assert not {thread for thread in set(threading.enumerate()) - before if thread.name == "lamina-resolver"}
    assert table.calls == []


def test_a_local_address_asks_for_its_family_alone() -> None:
    table = Table(v6=[V6], v4=[V4])
    found = SyncBackend(resolver=table).resolve(
        "host.example", 80, timeout=PATIENCE, local_address="127.0.0.1"
    )
    assert found == [V4]
    assert table.calls == [("host.example", 80, socket.AF_INET)]


def test_a_name_without_addresses_is_the_error_of_a_dial() -> None:
    backend = SyncBackend(resolver=Table(v4=socket.gaierror(socket.EAI_NONAME, "unknown")))
    with pytest.raises(ConnectError, match=r"could not be resolved: .*unknown") as resolving:
        backend.resolve("host.example", 80, timeout=PATIENCE)
    with pytest.raises(ConnectError) as dialling:
        backend.connect_tcp("host.example", 80, timeout=PATIENCE)
    assert str(resolving.value).partition(" (")[0] == str(dialling.value).partition(" (")[0]
    assert resolving.value.phase == dialling.value.phase == "dns"


@pytest.mark.parametrize("ambient", [False, True])
def test_a_slow_resolver_does_not_hold_up_the_caller(hanging: Hanging, ambient: bool) -> None:
    backend = SyncBackend(resolver=Table(v6=hanging, v4=hanging))
    deadline = open_deadline(0.05 if ambient else None, monotonic)
    try:
        with pytest.raises(DeadlineExceeded if ambient else ConnectTimeout) as caught:
            backend.resolve("slow.example", 80, timeout=None if ambient else 0.05)
    finally:
        close_deadline(deadline)
    assert caught.value.phase == "dns"


def test_it_shares_a_look_up_with_a_dial(hanging: Hanging) -> None:
    table = Table(v6=hanging, v4=hanging)
    backend = SyncBackend(resolver=table)
    calls = [
        in_thread(lambda: backend.resolve("host.example", 80, timeout=PATIENCE)),
        in_thread(lambda: backend.connect_tcp("host.example", 80, timeout=PATIENCE)),
    ]
    until(lambda: hanging.waiting == 2 and all(len(one.bells) == 2 for one in LOOKUPS._under_way.values()))
    hanging.release()
    for call in calls:
        with pytest.raises(ConnectError):
            call.result()
    assert len(table.calls) == 2


def test_a_limit_that_has_passed_asks_nobody() -> None:
    table = Table()
    with pytest.raises(ConnectTimeout) as caught:
        SyncBackend(resolver=table).resolve("host.example", 80, timeout=0)
    assert caught.value.phase == "dns"
    assert table.calls == []


def test_no_descriptor_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any) -> Any:
        raise OSError(24, "too many open files")

    monkeypatch.setattr("lamina_sync_backend._connecting.Bell", refuse)
    with pytest.raises(ConnectError, match=r"host\.example") as caught:
        SyncBackend(resolver=Table()).resolve("host.example", 80)
    assert caught.value.phase == "dns"


def test_arguments_are_checked_first() -> None:
    with pytest.raises(ArgumentValueError):
        SyncBackend().resolve("", 80)
    with pytest.raises(ArgumentValueError):
        SyncBackend().resolve("host.example", 0)
