"""Backends that let nothing out."""

import pickle

import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    AsyncNetworkBackend,
    BackendNotFound,
    LaminaError,
    NetworkBackend,
    NetworkError,
)
from lamina_mock import AsyncDenyNetworkBackend, DenyNetworkBackend, NetworkDenied, Peer
from mock_faces import Face, face

__all__ = ["face"]  # a fixture


def test_every_connection_is_denied_by_name(face: Face) -> None:
    async def body() -> None:
        backend = face.denying()
        with pytest.raises(NetworkDenied, match=r"but connects to www\.example\.org:443") as caught:
            await backend.connect_tcp("www.example.org", 443)
        assert (caught.value.host, caught.value.port, caught.value.phase) == (
            "www.example.org",
            443,
            "connect",
        )
        with pytest.raises(NetworkDenied, match=r"connects to the unix socket /run/app\.sock"):
            await backend.connect_unix_socket("/run/app.sock")

    face.run(body)


def test_what_is_allowed_passes_through(face: Face) -> None:
    async def body() -> None:
        inner = face.peers(lambda host, port: Peer())
        allowed = ["localhost", ("db.example", 5432), "/run/app.sock"]
        backend = face.denying(allowed, backend=getattr(inner, "blocking", inner))
        assert (await backend.connect_tcp("localhost", 8080)).get_extra_info("server_addr") == (
            "localhost",
            8080,
        )
        await backend.connect_tcp("db.example", 5432)
        await backend.connect_unix_socket("/run/app.sock")
        for host, port in [("db.example", 80), ("www.example.org", 5432)]:
            with pytest.raises(NetworkDenied):
                await backend.connect_tcp(host, port)

    face.run(body)


def test_by_default_laminas_own_backend_does_what_is_allowed(face: Face) -> None:
    async def body() -> None:
        # Nobody listens there; or, where this package is installed alone, nobody can connect.
        with pytest.raises((NetworkError, BackendNotFound)):
            await face.denying(["localhost"]).connect_tcp("localhost", 1)

    face.run(body)


@pytest.mark.parametrize("allow", ["localhost", b"localhost"])
def test_one_name_is_no_list_of_names(allow: str) -> None:
    for kind in (DenyNetworkBackend, AsyncDenyNetworkBackend):
        with pytest.raises(ArgumentTypeError, match="a list of hosts"):
            kind(allow)


def test_what_they_are() -> None:
    assert issubclass(DenyNetworkBackend, NetworkBackend)
    assert issubclass(AsyncDenyNetworkBackend, AsyncNetworkBackend)
    assert repr(DenyNetworkBackend()) == "<DenyNetworkBackend [nothing allowed]>"
    assert repr(AsyncDenyNetworkBackend(["a", "b"])) == "<AsyncDenyNetworkBackend [2 allowed]>"


def test_a_denial_is_no_failure_of_the_network() -> None:
    assert issubclass(NetworkDenied, LaminaError)
    assert issubclass(NetworkDenied, AssertionError)
    assert not issubclass(NetworkDenied, (NetworkError, OSError))


def test_a_denial_can_be_pickled() -> None:
    error = NetworkDenied("no", host="a.example", port=80)
    error.origin = "http://a.example:80"
    copied = pickle.loads(pickle.dumps(error))
    assert (str(copied), copied.host, copied.port) == (str(error), "a.example", 80)
