"""Fixtures for tests of the whole stack; what they are made of is in `stack_helpers`, `stack_servers`,
`stack_proxies` and `stack_worlds`."""

from __future__ import annotations

import inspect

import pytest

from stack_helpers import certificates as certificates
from stack_helpers import fault_server as fault_server
from stack_helpers import no_socket_left as no_socket_left
from stack_helpers import refusing_port as refusing_port
from stack_proxies import danted as danted
from stack_proxies import haproxy_http as haproxy_http
from stack_proxies import haproxy_https as haproxy_https
from stack_proxies import microsocks as microsocks
from stack_proxies import microsocks_auth as microsocks_auth
from stack_proxies import proxies as proxies
from stack_proxies import stunnel as stunnel
from stack_proxies import tinyproxy as tinyproxy
from stack_proxies import tinyproxy_auth as tinyproxy_auth
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
