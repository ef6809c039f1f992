"""The pools over the real backends, against nginx, plain and over TLS."""

from __future__ import annotations

import gzip
import os
import re
from typing import TYPE_CHECKING

import pytest

from lamina_pool import PoolStats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stack_helpers import Certificates
    from stack_servers import Server, Servers
    from stack_worlds import World

pytestmark = pytest.mark.usefixtures("no_socket_left")


@pytest.fixture(params=["http", "https"])
def url(request: pytest.FixtureRequest, nginx: Server) -> str:
    return nginx.http if request.param == "http" else nginx.https


async def test_a_request_and_its_response(world: World, certificates: Certificates, url: str) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:
        got = await pool.request("GET", f"{url}/hello")
        assert (got.status, got.content) == (200, b"hello\n")
        headers = {name.lower(): value for name, value in got.headers}
        assert headers[b"server"].startswith(b"nginx")
        assert headers[b"content-length"] == b"6"
        assert got.extensions["http_version"] == b"HTTP/1.1"
        assert got.extensions["reason_phrase"] == b"OK"


async def test_the_facts_of_tls_are_told(world: World, certificates: Certificates, nginx: Server) -> None:
    async with (
        world.pool(ssl_context=certificates.client) as pool,
        pool.stream("GET", f"{nginx.https}/hello") as got,
    ):
        stream = got.extensions["network_stream"]
        ssl_object = stream.get_extra_info("ssl_object")
        assert ssl_object.version() in {"TLSv1.2", "TLSv1.3"}
        assert ssl_object.selected_alpn_protocol() in {"http/1.1", None}
        assert ("IP Address", "127.0.0.1") in ssl_object.getpeercert()["subjectAltName"]
        names = [span.name for span in stream.get_extra_info("timings")]
        assert names[-2:] == ["tcp", "tls"]
        assert await got.aread() == b"hello\n"


async def test_connections_are_kept(world: World, certificates: Certificates, url: str) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:
        ports = set()
        for number in range(50):
            async with pool.stream("GET", f"{url}/echo?token={number}") as got:
                ports.add(got.extensions["network_stream"].get_extra_info("client_addr"))
                assert await got.aread() == f"GET {number}".encode()
        assert len(ports) == 1
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


async def test_methods_and_empty_answers(world: World, certificates: Certificates, url: str) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:
        assert (await pool.request("HEAD", f"{url}/hello")).content == b""
        assert (await pool.request("GET", f"{url}/gone")).status == 204
        assert (await pool.request("GET", f"{url}/missing")).status == 404
        assert (await pool.request("DELETE", f"{url}/echo?token=x")).content == b"DELETE x"
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


async def test_the_servers_wish_to_close_is_respected(
    world: World, certificates: Certificates, url: str
) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:
        for _ in range(5):
            assert (await pool.request("GET", f"{url}/closing")).content == b"closing"
            assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("size", [0, 1, 100_000, 10_000_000])
async def test_an_upload_arrives_whole(world: World, certificates: Certificates, url: str, size: int) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:
        got = await pool.request("POST", f"{url}/upload", content=bytes(size))
        assert got.content == b"took %d" % size
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


async def test_an_upload_of_unknown_length_goes_in_chunks(
    world: World, certificates: Certificates, url: str
) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:

        def pieces() -> Iterator[bytes]:
            for _ in range(100):
                yield bytes(10_000)
                yield b""

        got = await pool.request("POST", f"{url}/upload", content=world.body(pieces()))
        assert got.content == b"took 1000000"
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


async def test_large_bodies_come_whole(
    world: World, certificates: Certificates, nginx: Server, url: str
) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:
        body = os.urandom(1 << 20) * 4
        (nginx.root / "whole").write_bytes(body)
        async with pool.stream("GET", f"{url}/whole") as got:
            assert b"".join([piece async for piece in got.aiter_stream()]) == body
        assert (await pool.request("GET", f"{url}/whole")).content == body
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


async def test_a_large_body_that_is_not_wanted_costs_its_connection(
    world: World, certificates: Certificates, nginx: Server, url: str
) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:
        (nginx.root / "unwanted").write_bytes(bytes(50_000_000))
        async with pool.stream("GET", f"{url}/unwanted") as got:
            assert got.status == 200
        assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)
        assert (await pool.request("GET", f"{url}/hello")).content == b"hello\n"


async def test_a_small_rest_is_read_so_that_the_connection_is_kept(
    world: World, certificates: Certificates, url: str
) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:
        for _ in range(5):
            async with pool.stream("GET", f"{url}/hello") as got:
                assert got.status == 200
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


async def test_chunked_bodies(world: World, certificates: Certificates, nginx: Server, url: str) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:
        text = "".join(f"line {number}\n" for number in range(20_000)).encode()
        (nginx.root / "chunked.txt").write_bytes(text)
        for _ in range(3):
            got = await pool.request("GET", f"{url}/chunked.txt", headers={"Accept-Encoding": "gzip"})
            headers = {name.lower(): value for name, value in got.headers}
            assert headers[b"transfer-encoding"] == b"chunked"
            assert gzip.decompress(got.content) == text
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


async def test_a_refused_upload_is_answered(world: World, certificates: Certificates, url: str) -> None:
    """A18: nginx answers 413, and closes with data unread."""
    async with world.pool(ssl_context=certificates.client) as pool:
        for _ in range(10):
            got = await pool.request("POST", f"{url}/limited", content=bytes(5_000_000))
            assert got.status == 413
            assert re.search(rb"413", got.content)
        assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_server_that_recycles_its_connections_costs_no_error(
    world: World, servers: Servers, certificates: Certificates, scheme: str
) -> None:
    """Nginx closes each connection after its tenth request. Hundreds of requests, no error."""
    recycling = servers.nginx(keepalive_requests=10)
    url = recycling.http if scheme == "http" else recycling.https
    async with world.pool(ssl_context=certificates.client) as pool:
        for number in range(300):
            got = await pool.request("POST", f"{url}/echo?token={number}", content=b"x")
            assert got.content == f"POST {number}".encode()
            assert pool.stats().connections <= 1


async def test_a_unix_socket(world: World, nginx: Server) -> None:
    async with world.pool(uds=nginx.uds) as pool:
        for _ in range(3):
            assert (await pool.request("GET", "http://whatever/hello")).content == b"hello\n"
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


async def test_plain_http_to_a_tls_port_is_told_of(
    world: World, certificates: Certificates, nginx: Server
) -> None:
    async with world.pool(ssl_context=certificates.client) as pool:
        got = await pool.request("GET", nginx.https.replace("https", "http") + "/hello")
        assert got.status == 400
