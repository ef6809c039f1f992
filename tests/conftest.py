"""Fixtures for tests of the whole stack; what they are made of is in `stack_helpers`, `stack_servers`
and `stack_worlds`."""

from __future__ import annotations

import inspect

import pytest

from stack_helpers import certificates as certificates
from stack_helpers import fault_server as fault_server
from stack_helpers import no_socket_left as no_socket_left
from stack_helpers import refusing_port as refusing_port
from stack_servers import haproxy as haproxy
from stack_servers import http2_context as http2_context
from stack_servers import hypercorn as hypercorn
from stack_servers import nghttpd as nghttpd
from stack_servers import nginx as nginx
from stack_servers import servers as servers
from stack_worlds import ASYNC, NAMES, World


@pytest.fixture(params=NAMES)
def world(request: pytest.FixtureRequest) -> World:
    """Each backend, in what it runs in."""
    return World(request.param)


@pytest.fixture(params=ASYNC)
def async_world(request: pytest.FixtureRequest) -> World:
    """Each async backend, in its loop."""
    return World(request.param)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """A coroutine test runs in its world, which for the blocking backend is no loop at all."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    world = arguments.get("world") or arguments["async_world"]
    assert isinstance(world, World)
    world.run(lambda: pyfuncitem.obj(**arguments))
    return True
