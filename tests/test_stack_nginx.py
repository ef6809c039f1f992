"""The pool over the real backend, against nginx, plain and over TLS."""

from __future__ import annotations

import gzip
import os
import re
from typing import TYPE_CHECKING

import pytest

from lamina_pool import ConnectionPool, PoolStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack_helpers import Certificates, Nginx, NginxRunner

pytestmark = pytest.mark.usefixtures("no_socket_left")


@pytest.fixture(params=["http", "https"])
def url(request: pytest.FixtureRequest, nginx: Nginx) -> str:
    return nginx.http if request.param == "http" else nginx.https


def test_a_request_and_its_response(pool: ConnectionPool, url: str) -> None:
    got = pool.request("GET", f"{url}/hello")
    assert (got.status, got.content) == (200, b"hello\n")
    headers = {name.lower(): value for name, value in got.headers}
    assert headers[b"server"].startswith(b"nginx")
    assert headers[b"content-length"] == b"6"
    assert got.extensions["http_version"] == b"HTTP/1.1"
    assert got.extensions["reason_phrase"] == b"OK"


def test_the_facts_of_tls_are_told(pool: ConnectionPool, nginx: Nginx) -> None:
    with pool.stream("GET", f"{nginx.https}/hello") as got:
        stream = got.extensions["network_stream"]
        ssl_object = stream.get_extra_info("ssl_object")
        assert ssl_object.version() in {"TLSv1.2", "TLSv1.3"}
        assert ssl_object.selected_alpn_protocol() in {"http/1.1", None}
        assert ("IP Address", "127.0.0.1") in ssl_object.getpeercert()["subjectAltName"]
        names = [span.name for span in stream.get_extra_info("timings")]
        assert names[-2:] == ["tcp", "tls"]
        assert got.read() == b"hello\n"


def test_connections_are_kept(pool: ConnectionPool, url: str) -> None:
    ports = set()
    for number in range(50):
        with pool.stream("GET", f"{url}/echo?token={number}") as got:
            ports.add(got.extensions["network_stream"].get_extra_info("client_addr"))
            assert got.read() == f"GET {number}".encode()
    assert len(ports) == 1
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0)


def test_methods_and_empty_answers(pool: ConnectionPool, url: str) -> None:
    assert pool.request("HEAD", f"{url}/hello").content == b""
    assert pool.request("GET", f"{url}/gone").status == 204
    assert pool.request("GET", f"{url}/missing").status == 404
    assert pool.request("DELETE", f"{url}/echo?token=x").content == b"DELETE x"
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0)


def test_the_servers_wish_to_close_is_respected(pool: ConnectionPool, url: str) -> None:
    for _ in range(5):
        assert pool.request("GET", f"{url}/closing").content == b"closing"
        assert pool.stats() == PoolStats(0, 0, 0, 0, 0)


@pytest.mark.parametrize("size", [0, 1, 100_000, 10_000_000])
def test_an_upload_arrives_whole(pool: ConnectionPool, url: str, size: int) -> None:
    got = pool.request("POST", f"{url}/upload", content=bytes(size))
    assert got.content == b"took %d" % size
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0)


def test_an_upload_of_unknown_length_goes_in_chunks(pool: ConnectionPool, url: str) -> None:
    def pieces() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(10_000)
            yield b""

    got = pool.request("POST", f"{url}/upload", content=pieces())
    assert got.content == b"took 1000000"
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0)


def test_large_bodies_come_whole(pool: ConnectionPool, nginx: Nginx, url: str) -> None:
    body = os.urandom(1 << 20) * 16
    (nginx.root / "large").write_bytes(body)
    with pool.stream("GET", f"{url}/large") as got:
        assert b"".join(got.iter_stream()) == body
    assert pool.request("GET", f"{url}/large").content == body
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0)


def test_a_large_body_that_is_not_wanted_costs_its_connection(
    pool: ConnectionPool, nginx: Nginx, url: str
) -> None:
    (nginx.root / "unwanted").write_bytes(bytes(50_000_000))
    with pool.stream("GET", f"{url}/unwanted") as got:
        assert got.status == 200
    assert pool.stats() == PoolStats(0, 0, 0, 0, 0)
    assert pool.request("GET", f"{url}/hello").content == b"hello\n"


def test_a_small_rest_is_read_so_that_the_connection_is_kept(pool: ConnectionPool, url: str) -> None:
    for _ in range(5):
        with pool.stream("GET", f"{url}/hello") as got:
            assert got.status == 200
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0)


def test_chunked_bodies(pool: ConnectionPool, nginx: Nginx, url: str) -> None:
    text = "".join(f"line {number}\n" for number in range(20_000)).encode()
    (nginx.root / "chunked.txt").write_bytes(text)
    for _ in range(3):
        got = pool.request("GET", f"{url}/chunked.txt", headers={"Accept-Encoding": "gzip"})
        headers = {name.lower(): value for name, value in got.headers}
        assert headers[b"transfer-encoding"] == b"chunked"
        assert gzip.decompress(got.content) == text
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0)


def test_a_refused_upload_is_answered(pool: ConnectionPool, url: str) -> None:
    """A18: nginx answers 413, and closes with data unread."""
    for _ in range(10):
        got = pool.request("POST", f"{url}/limited", content=bytes(5_000_000))
        assert got.status == 413
        assert re.search(rb"413", got.content)
    assert pool.stats() == PoolStats(0, 0, 0, 0, 0)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_recycles_its_connections_costs_no_error(
    nginx_runner: NginxRunner, certificates: Certificates, scheme: str
) -> None:
    """Nginx closes each connection after its tenth request. A thousand requests, no error."""
    recycling = nginx_runner.start(keepalive_requests=10)
    url = recycling.http if scheme == "http" else recycling.https
    with ConnectionPool(ssl_context=certificates.client) as pool:
        for number in range(1000):
            got = pool.request("POST", f"{url}/echo?token={number}", content=b"x")
            assert got.content == f"POST {number}".encode()
            assert pool.stats().connections <= 1


def test_a_unix_socket(nginx: Nginx) -> None:
    with ConnectionPool(uds=nginx.uds) as pool:
        for _ in range(3):
            assert pool.request("GET", "http://whatever/hello").content == b"hello\n"
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0)


def test_plain_http_to_a_tls_port_is_told_of(pool: ConnectionPool, nginx: Nginx) -> None:
    got = pool.request("GET", nginx.https.replace("https", "http") + "/hello")
    assert got.status == 400
