"""The pools over the real backends speak HTTP/2 with nginx, nghttpd, hypercorn and haproxy, over TLS and without."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from stack_servers import BEFORE_TRAILERS, HELLO
from stack_worlds import at_once

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from lamina_pool import AsyncConnectionPool
    from stack_helpers import Certificates
    from stack_servers import Server, Servers
    from stack_worlds import World

pytestmark = pytest.mark.usefixtures("no_socket_left")

LARGE = 20 * 1024 * 1024
"""Bytes: more than any window, so that it comes only as fast as it is asked for."""

PIECE = 256 * 1024
"""Bytes of a file that 50 requests ask for at the same time."""


@dataclass(frozen=True)
class Target:
    """A server, and how a pool is to speak to it.

    Attributes:
        name: of the server.
        url: without a path.
        options: for the pool.
    """

    name: str
    url: str
    options: dict[str, Any]


def target_of(name: str, server: Server, scheme: str, context: ssl.SSLContext) -> Target:
    if scheme == "https":
        return Target(name, server.https, {"http2": True, "ssl_context": context})
    return Target(name, server.h2c, {"http1": False, "http2": True})


NAMES = ("nginx", "nghttpd", "hypercorn", "haproxy")
SCHEMES = ("https", "h2c")


@pytest.fixture(params=[(name, scheme) for name in NAMES for scheme in SCHEMES], ids="-".join)
def target(request: pytest.FixtureRequest, http2_context: ssl.SSLContext) -> Target:
    name, scheme = request.param
    return target_of(name, request.getfixturevalue(name), scheme, http2_context)


@pytest.fixture(params=SCHEMES)
def nginx_target(request: pytest.FixtureRequest, nginx: Server, http2_context: ssl.SSLContext) -> Target:
    return target_of("nginx", nginx, request.param, http2_context)


@pytest.fixture(scope="session")
def few_streams(servers: Servers) -> Server:
    """Admits five streams at a time."""
    return servers.nghttpd("--max-concurrent-streams=5")


@pytest.fixture(scope="session")
def narrow(servers: Servers) -> Server:
    """Takes uploads 1,023 bytes at a time, pads every frame, tells no length, and remembers no header."""
    return servers.nghttpd(
        "--window-bits=10", "--padding=255", "--no-content-length", "--header-table-size=0"
    )


@pytest.fixture(scope="session")
def recycling(servers: Servers) -> Server:
    """Sends GOAWAY with the second request of each connection, and drops what else was sent on it."""
    return servers.nginx(keepalive_requests=2)


@pytest.fixture(scope="session")
def digests(servers: Servers) -> dict[str, str]:
    """Two files that all servers have, and what is in them."""
    files = {"large": os.urandom(LARGE), "piece": os.urandom(PIECE)}
    for name, content in files.items():
        (servers.root / name).write_bytes(content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


async def download(pool: AsyncConnectionPool, url: str) -> str:
    """The digest of a body that is read piece by piece."""
    digest = hashlib.sha256()
    async with pool.stream("GET", url) as got:
        assert got.status == 200
        assert got.extensions["http_version"] == b"HTTP/2"
        async for piece in got.aiter_stream():
            digest.update(piece)
    return digest.hexdigest()


async def upload(pool: AsyncConnectionPool, target: Target, size: int, content: Any) -> None:
    """Send so many zeros, and have the server confirm them."""
    # Nghttpd knows no such target, and sends back what it was given.
    path = "hello" if target.name == "nghttpd" else "upload"
    got = await pool.request("POST", f"{target.url}/{path}", content=content)
    assert got.status == 200
    assert got.content == (bytes(size) if target.name == "nghttpd" else b"took %d" % size)


# --- one request -------------------------------------------------------------------------------------------


async def test_requests_and_their_responses(world: World, target: Target) -> None:
    async with world.pool(**target.options) as pool:
        for stream_id in (1, 3, 5):
            got = await pool.request("GET", f"{target.url}/hello")
            assert (got.status, got.content) == (200, HELLO)
            assert got.extensions["http_version"] == b"HTTP/2"
            assert got.extensions["stream_id"] == stream_id
            assert "reason_phrase" not in got.extensions
            assert {name for name, _ in got.headers} >= {b"date", b"server"} or target.name == "haproxy"
        assert (await pool.request("HEAD", f"{target.url}/hello")).content == b""
        assert (await pool.request("GET", f"{target.url}/missing")).status == 404
        assert pool.stats().connections == 1


async def test_the_protocol_was_agreed_on_in_tls(
    world: World, nginx: Server, http2_context: ssl.SSLContext
) -> None:
    async with (
        world.pool(ssl_context=http2_context, http2=True) as pool,
        pool.stream("GET", f"{nginx.https}/hello") as got,
    ):
        ssl_object = got.extensions["network_stream"].get_extra_info("ssl_object")
        assert ssl_object.selected_alpn_protocol() == "h2"
        assert await got.aread() == HELLO


async def test_who_does_not_want_it_gets_http11(
    world: World, nginx: Server, certificates: Certificates
) -> None:
    # Over TLS nothing is offered by this context, and without TLS nobody can offer anything.
    for url in (nginx.https, nginx.http):
        async with world.pool(http2=True, ssl_context=certificates.client) as pool:
            got = await pool.request("GET", f"{url}/hello")
            assert (got.content, got.extensions["http_version"]) == (HELLO, b"HTTP/1.1")
            assert got.extensions["reason_phrase"] == b"OK"


async def test_trailers(world: World, target: Target) -> None:
    async with world.pool(**target.options) as pool:
        for _ in range(2):
            got = await pool.request("GET", f"{target.url}/trailers", headers={"TE": "trailers"})
            assert got.content == BEFORE_TRAILERS
            assert (b"x-trailer", b"last") in got.extensions["trailers"]


# --- large ones --------------------------------------------------------------------------------------------


async def test_a_large_download(world: World, target: Target, digests: dict[str, str]) -> None:
    async with world.pool(**target.options) as pool:
        assert await download(pool, f"{target.url}/large") == digests["large"]
        assert pool.stats().connections == 1


async def test_an_upload_arrives_whole(world: World, target: Target) -> None:
    async with world.pool(**target.options) as pool:
        for size in (0, 1, 100_000, LARGE):
            await upload(pool, target, size, bytes(size))
        assert (await pool.request("GET", f"{target.url}/hello")).content == HELLO
        assert pool.stats().connections == 1


async def test_an_upload_of_unknown_length(world: World, target: Target) -> None:
    async with world.pool(**target.options) as pool:

        def pieces() -> Iterator[bytes]:
            for _ in range(100):
                yield bytes(10_000)
                yield b""

        await upload(pool, target, 1_000_000, world.body(pieces()))


async def test_a_response_that_is_not_wanted_costs_its_stream_only(
    world: World, target: Target, digests: dict[str, str]
) -> None:
    async with world.pool(**target.options) as pool:
        for _ in range(20):
            async with pool.stream("GET", f"{target.url}/large") as got:
                assert got.status == 200
                async for _piece in got.aiter_stream():
                    break
            assert (await pool.request("GET", f"{target.url}/hello")).content == HELLO
        assert await download(pool, f"{target.url}/piece") == digests["piece"]
        assert pool.stats().connections == 1


@pytest.mark.parametrize(("path", "status"), [("/limited", 413), ("/echo?token=x", 200)])
async def test_an_answer_before_the_upload_ends(
    world: World, nginx_target: Target, path: str, status: int
) -> None:
    """Nginx answers before it has the body, and then asks to be spared the rest (RST_STREAM, NO_ERROR)."""
    async with world.pool(**nginx_target.options) as pool:
        for _ in range(5):
            got = await pool.request("POST", nginx_target.url + path, content=bytes(5_000_000))
            assert got.status == status
        assert (await pool.request("GET", f"{nginx_target.url}/hello")).content == HELLO
        assert pool.stats().connections == 1


# --- many at once ------------------------------------------------------------------------------------------


async def test_fifty_at_once_share_a_connection(
    world: World, target: Target, digests: dict[str, str]
) -> None:
    async with world.pool(**target.options, max_connections=4) as pool:

        async def work(number: int) -> str:
            return await download(pool, f"{target.url}/piece?{number}")

        assert set(await at_once(world, 50, work)) == {digests["piece"]}
        assert pool.stats().connections == 1


async def test_stream_slots_are_capacity(
    world: World, few_streams: Server, http2_context: ssl.SSLContext, digests: dict[str, str]
) -> None:
    """What does not fit on a connection goes to a second one, or waits."""
    async with world.pool(http2=True, ssl_context=http2_context, max_connections=3) as pool:

        async def work(number: int) -> str:
            return await download(pool, f"{few_streams.https}/piece?{number}")

        assert set(await at_once(world, 50, work)) == {digests["piece"]}
        assert 1 <= pool.stats().connections <= 3


async def test_uploads_and_downloads_at_once(world: World, target: Target, digests: dict[str, str]) -> None:
    async with world.pool(**target.options) as pool:

        async def work(number: int) -> None:
            if number % 2:
                await upload(pool, target, 1_000_000, bytes(1_000_000))
            else:
                assert await download(pool, f"{target.url}/piece?{number}") == digests["piece"]

        await at_once(world, 16, work)


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_with_small_windows_and_padding(
    world: World, scheme: str, narrow: Server, http2_context: ssl.SSLContext, digests: dict[str, str]
) -> None:
    target = target_of("nghttpd", narrow, scheme, http2_context)
    async with world.pool(**target.options) as pool:

        async def work(number: int) -> None:
            if number % 2:
                await upload(pool, target, 100_000, bytes(100_000))
            else:
                assert await download(pool, f"{target.url}/piece?{number}") == digests["piece"]

        # So that its settings are there before an upload begins. One that has begun in the larger window of the
        # protocol, as it may, nghttp2 1.52 takes for too large once its own window holds (RFC 9113, section 6.9.3).
        got = await pool.request("GET", f"{target.url}/trailers")
        assert (got.content, got.extensions["trailers"]) == (BEFORE_TRAILERS, [(b"x-trailer", b"last")])
        await at_once(world, 10, work)
        assert pool.stats().connections == 1


# --- connections that end ----------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_server_that_recycles_its_connections_costs_no_error(
    world: World, scheme: str, recycling: Server, http2_context: ssl.SSLContext
) -> None:
    """10,000 requests on one pool in one of the worlds, some hundreds in the others, of which some are 50 at a time."""
    target = target_of("nginx", recycling, scheme, http2_context)
    alone, rounds = (9_000, 4) if (world.name, scheme) == ("asyncio", "https") else (250, 1)
    async with world.pool(**target.options) as pool:

        async def ask(number: int) -> None:
            method = "GET" if number % 2 else "POST"
            got = await pool.request(method, f"{target.url}/echo?token={number}", content=b"x" * (number % 2))
            assert (got.status, got.content) == (200, f"{method} {number}".encode())
            assert got.extensions["http_version"] == b"HTTP/2"

        async def work(worker: int) -> None:
            for number in range(worker * 5, worker * 5 + 5):
                await ask(number)

        for number in range(alone):
            await ask(number)
            assert pool.stats().connections <= 1
        for _ in range(rounds):
            await at_once(world, 50, work)
