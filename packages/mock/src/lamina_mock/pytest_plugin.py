"""Fixtures for tests on lamina. pytest loads this module by itself where lamina-mock is installed.

- `virtual_clock`: the time of the test, in which nothing takes real time;
- `scripted_backend`, `async_scripted_backend`: make a backend that plays scripts, and check it when the test is over;
- `mock_server`: makes a server in memory, and checks it when the test is over;
- `deny_network`: backends that fail whatever connects.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from . import (
        AsyncDenyNetworkBackend,
        AsyncScriptedBackend,
        DenyNetworkBackend,
        MockServer,
        ScriptedBackend,
        VirtualClock,
    )


class DeniedNetwork(NamedTuple):
    """What the fixture `deny_network` gives.

    Attributes:
        backend: for blocking code.
        async_backend: for asyncio and trio.
    """

    backend: DenyNetworkBackend
    async_backend: AsyncDenyNetworkBackend


def _checked(made: list[Any]) -> None:
    """Check all, and raise the first failure."""
    failures = []
    for each in made:
        try:
            each.check()
        except AssertionError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _factory(make: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def factory(*args: Any, **kwargs: Any) -> Any:
        made.append(make(*args, **kwargs))
        return made[-1]

    yield factory
    _checked(made)


@pytest.fixture
def virtual_clock() -> Iterator[VirtualClock]:
    """A `VirtualClock`, which is the clock of the test: of its time-outs, deadlines and mocks."""
    from . import VirtualClock

    with VirtualClock() as clock:
        yield clock


@pytest.fixture
def scripted_backend() -> Iterator[Callable[..., ScriptedBackend]]:
    """`ScriptedBackend`; each one that the test makes is checked at its end, so that leftovers fail it."""
    from . import ScriptedBackend

    yield from _factory(ScriptedBackend)


@pytest.fixture
def async_scripted_backend() -> Iterator[Callable[..., AsyncScriptedBackend]]:
    """`AsyncScriptedBackend`; each one that the test makes is checked at its end, so that leftovers fail it."""
    from . import AsyncScriptedBackend

    yield from _factory(AsyncScriptedBackend)


@pytest.fixture
def mock_server() -> Iterator[Callable[..., MockServer]]:
    """`MockServer`; each one that the test makes is checked at its end, so that a client's protocol errors fail it."""
    from . import MockServer

    yield from _factory(MockServer)


@pytest.fixture
def deny_network() -> DeniedNetwork:
    """Backends that let nothing out, as `deny_network.backend` and `deny_network.async_backend`.

    They have to be given to the code under test: nothing is replaced behind its back.
    """
    from . import AsyncDenyNetworkBackend, DenyNetworkBackend

    return DeniedNetwork(DenyNetworkBackend(), AsyncDenyNetworkBackend())
