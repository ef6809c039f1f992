"""Telling a host's addresses without connecting: `AsyncNameResolver`, in every world."""

from __future__ import annotations

import socket
from typing import Any

import anyio
import pytest

from lamina_async_backends import AnyIOBackend, AsyncioBackend, AutoBackend, TrioBackend
from lamina_interfaces import (
    ArgumentValueError,
    AsyncNameResolver,
    ConcurrencyError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    ResolvedAddress,
    close_deadline,
    current_runtime,
    open_deadline,
)
from readiness_peers import PATIENCE, AsyncTable, Hanging, Table, until

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left", "no_task_is_left")]

WORLDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "asyncio": (AsyncioBackend, "asyncio", {}),
    "uvloop": (AsyncioBackend, "asyncio", {"use_uvloop": True}),
    "anyio-asyncio": (AnyIOBackend, "asyncio", {}),
    "anyio-trio": (AnyIOBackend, "trio", {}),
    "trio": (TrioBackend, "trio", {}),
    "auto-asyncio": (AutoBackend, "asyncio", {}),
    "auto-trio": (AutoBackend, "trio", {}),
}

V4 = ResolvedAddress(socket.AF_INET, ("192.0.2.1", 80))
V6 = ResolvedAddress(socket.AF_INET6, ("2001:db8::1", 80, 0, 0))

tables = pytest.mark.parametrize("table", [Table, AsyncTable])


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> tuple[Any, str, dict[str, Any]]:
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return WORLDS[request.param]


@pytest.fixture
def make(world: tuple[Any, str, dict[str, Any]]) -> Any:
    """Makes a backend."""
    return world[0]


async def test_the_backend_has_the_ability(make: Any) -> None:
    assert isinstance(make(), AsyncNameResolver)


@tables
async def test_a_name_goes_through_the_resolver(make: Any, table: Any) -> None:
    backend = make(resolver=table(v6=socket.gaierror(socket.EAI_NONAME, "none"), v4=[V4]))
    assert await backend.resolve("host.example", 80, timeout=PATIENCE) == [V4]


async def test_a_family_that_is_not_answered_holds_up_nobody(make: Any) -> None:
    resolver = AsyncTable(v6=anyio.sleep_forever, v4=[V4])
    assert await make(resolver=resolver).resolve("host.example", 80, timeout=PATIENCE) == [V4]
    assert resolver.asked == resolver.left == 2


@pytest.mark.parametrize(("host", "address"), [("192.0.2.1", V4), ("2001:db8::1", V6)])
async def test_an_ip_address_reaches_no_resolver(make: Any, host: str, address: ResolvedAddress) -> None:
    resolver = AsyncTable()
    assert await make(resolver=resolver).resolve(host, 80) == [address]
    assert resolver.asked == 0


async def test_this_machine_needs_no_resolver(make: Any) -> None:
    found = await make().resolve("localhost", 80, local_address="127.0.0.1")
    assert found == [ResolvedAddress(socket.AF_INET, ("127.0.0.1", 80))]


@tables
async def test_a_local_address_asks_for_its_family_alone(make: Any, table: Any) -> None:
    backend = make(resolver=table(v6=[V6], v4=[V4]))
    assert await backend.resolve("host.example", 80, timeout=PATIENCE, local_address="::1") == [V6]


@tables
async def test_a_name_without_addresses_is_the_error_of_a_dial(make: Any, table: Any) -> None:
    backend = make(resolver=table(v4=socket.gaierror(socket.EAI_NONAME, "unknown")))
    errors = []
    for call in (backend.resolve, backend.connect_tcp):
        with pytest.raises(
            ConnectError, match=r"host\.example:80 could not be resolved: .*unknown"
        ) as caught:
            await call("host.example", 80, timeout=PATIENCE)
        errors.append(caught.value.phase)
    assert errors == ["dns", "dns"]


@pytest.mark.parametrize("ambient", [False, True])
@pytest.mark.parametrize("in_threads", [True, False])
async def test_a_limit_ends_it(make: Any, ambient: bool, in_threads: bool) -> None:
    hanging = Hanging()
    asynchronous = AsyncTable(v6=anyio.sleep_forever, v4=anyio.sleep_forever)
    backend = make(resolver=Table(v6=hanging, v4=hanging) if in_threads else asynchronous)
    deadline = open_deadline(0.05 if ambient else None, current_runtime().now)
    try:
        with pytest.raises(DeadlineExceeded if ambient else ConnectTimeout) as caught:
            await backend.resolve("host.example", 80, timeout=None if ambient else 0.05)
    finally:
        hanging.release()
        close_deadline(deadline)
    assert caught.value.phase == "dns"
    assert asynchronous.asked == asynchronous.left


@pytest.mark.parametrize("in_threads", [True, False])
async def test_a_cancelled_one_leaves_nothing_and_its_circumstances(make: Any, in_threads: bool) -> None:
    hanging = Hanging()
    asynchronous = AsyncTable(v6=anyio.sleep_forever, v4=anyio.sleep_forever)
    backend = make(resolver=Table(v6=hanging, v4=hanging) if in_threads else asynchronous)
    # The deadline passes at the same time as the scope, which stands for that of its block.
    deadline = open_deadline(None, current_runtime().now)
    try:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:

                async def expire() -> None:
                    await until(lambda: hanging.waiting if in_threads else asynchronous.asked == 2)
                    deadline.reschedule(0)
                    scope.cancel()

                tasks.start_soon(expire)
                await backend.resolve("host.example", 80, timeout=PATIENCE)
    finally:
        hanging.release()
        interruption = deadline.interruption
        close_deadline(deadline)
    assert scope.cancelled_caught
    assert interruption is not None
    assert interruption.phase == "dns"
    assert asynchronous.asked == asynchronous.left


async def test_a_limit_that_has_passed_asks_nobody(make: Any) -> None:
    resolver = AsyncTable()
    with pytest.raises(ConnectTimeout) as caught:
        await make(resolver=resolver).resolve("host.example", 80, timeout=0)
    assert caught.value.phase == "dns"
    assert resolver.asked == 0


async def test_arguments_are_checked_first(make: Any) -> None:
    for host, port in (("", 80), ("host.example", 0)):
        with pytest.raises(ArgumentValueError):
            await make().resolve(host, port)


async def test_in_a_wrong_runtime_it_says_so(make: Any, world: tuple[Any, str, dict[str, Any]]) -> None:
    other: Any = TrioBackend if world[1] == "asyncio" else AsyncioBackend
    with pytest.raises(ConcurrencyError):
        await other().resolve("127.0.0.1", 80)
