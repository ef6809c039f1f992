"""Servers on loopback, and an authority that signs for them."""

import os
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import settings

from dialect_worlds import WORLDS, World
from lamina._demo_server import DemoServer

HOSTS = ("localhost", "127.0.0.1", "www.example.com", "demo.test")

# The same examples every time; `HYPOTHESIS_PROFILE=long` searches anew.
settings.register_profile("short", deadline=None, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def serving(authority: trustme.CA) -> ssl.SSLContext:
    """The TLS settings of a server whose certificate is good for `HOSTS`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    authority.issue_cert(*HOSTS, common_name="lamina test").configure_cert(context)
    return context


@pytest.fixture(scope="session")
def cacert(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def server() -> Iterator[DemoServer]:
    with DemoServer() as server:
        yield server


@pytest.fixture
def secure_server(serving: ssl.SSLContext) -> Iterator[DemoServer]:
    with DemoServer(serving) as server:
        yield server


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name server is asked: every name but localhost is unknown."""
    known = socket.getaddrinfo

    def look_up(host: bytes | str, *rest: Any, **options: Any) -> Any:
        if host in (b"localhost", "localhost", b"127.0.0.1", "127.0.0.1"):
            return known(host, *rest, **options)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    """Threads with `lamina.sync`, or asyncio or trio with `lamina.aio`."""
    return World(request.param)
