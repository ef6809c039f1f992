"""Proxies under exceptions that strike anywhere, and under most requests being cancelled.

The hard rule: whoever gets a response gets the answer to his own request, whichever way it went. Cancelled and failing
at every single step are the paths through proxies in `test_async_torture` and `test_http2_torture`.
"""

from __future__ import annotations

import random
import ssl
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from lamina_interfaces import ProxyError
from lamina_pool import ConnectionPool, Proxy, _dialling, _proxies
from pool_async_churn import CONNECTIONS, Churn
from pool_async_net import MemoryBackend as AsyncMemoryBackend
from pool_async_net import checkpoints
from pool_async_runs import VIRTUAL, all_tasks, check_invariant, loop_options, url
from pool_loopback import MemoryBackend, MemoryStream, response
from pool_proxies import (
    ESTABLISHED,
    HTTP_PROXY,
    HTTPS_PROXY,
    PASSWORD,
    SOCKS_PROXY,
    USER,
    WAYS,
    SOCKSEnd,
    Way,
    answer_as_proxy,
    path_of,
)
from pool_strikes import strike_everywhere

if TYPE_CHECKING:
    from collections.abc import Iterator

# --- exceptions at any line --------------------------------------------------------------------------------

LINES_IN = (_proxies.__file__, _dialling.__file__)
SCHEMES = ["http", "https", "ws"]


class SOCKSStream(MemoryStream):
    """A connection to a SOCKS proxy, and to a server through it."""

    def __init__(self, backend: MemoryBackend, number: int) -> None:
        self._proxy = SOCKSEnd(self.feed)
        super().__init__(backend, number)

    def write(self, buffer: Any, timeout: float | None = None) -> None:
        data = bytes(buffer)
        super().write(data if self._proxy.is_open else self._proxy.receive(data), timeout)


class SOCKSBackend(MemoryBackend):
    """Of a SOCKS proxy and the servers behind it."""

    def _open(self, timeout: float | None) -> MemoryStream:
        return SOCKSStream(self, 0)


def answer(stream: MemoryStream, head: bytes, body: bytes) -> None:
    """A proxy that refuses to connect to one host, and answers with the path of what it is asked."""
    if head.startswith(b"CONNECT refused.example:"):
        stream.feed(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n")
    else:
        answer_as_proxy(stream, head, body)


def scenario(pool: ConnectionPool, tokens: Iterator[int]) -> None:
    """A request of each kind, one of them twice, and one that the proxy refuses."""
    for scheme in [*SCHEMES, "https"]:
        token = f"{next(tokens)}"
        got = pool.request("GET", f"{scheme}://example.com/{token}")
        assert got.content == f"/{token}".encode(), "somebody else's answer"
    if not pool._pool._options.proxy.is_socks:  # type: ignore[union-attr] # there is one
        with pytest.raises(ProxyError):
            pool.request("GET", "https://refused.example/")


@pytest.mark.parametrize("url", [HTTP_PROXY, HTTPS_PROXY, SOCKS_PROXY])
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=[pytest.mark.soak, pytest.mark.timeout(600)])])
def test_an_exception_at_any_line_mixes_nothing_up_and_loses_no_place_G07(step: int, url: str) -> None:
    kind = SOCKSBackend if url == SOCKS_PROXY else MemoryBackend
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url == HTTPS_PROXY else None
    proxy = Proxy(url, auth=(USER, PASSWORD), ssl_context=context)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    strike_everywhere(
        partial(kind, answer),
        lambda backend: ConnectionPool(
            network_backend=backend, proxy=proxy, ssl_context=trust, max_connections=2
        ),
        scenario,
        LINES_IN,
        step,
    )


# --- cancellations at random -------------------------------------------------------------------------------


@pytest.fixture(params=VIRTUAL)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return loop_options(request.param)


@pytest.fixture(scope="module")
def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("example.com", "proxy.test").configure_cert(server)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    return server, trust


def moody(seed: int) -> Any:
    """A proxy, and a server behind it, that refuse or hang up now and then: before the answer, in it, after it."""
    chance = random.Random(seed)

    def answer(stream: Any, head: bytes, body: bytes) -> None:
        mood = chance.random()
        is_asked_to_connect = head.startswith(b"CONNECT ")
        whole = ESTABLISHED if is_asked_to_connect else response(path_of(head))
        if mood < 0.03:
            stream.feed_eof()
        elif mood < 0.06:
            stream.feed(whole[:-1])
            stream.break_off()
        elif mood < 0.08 and is_asked_to_connect:
            stream.feed(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n")
        else:
            stream.feed(whole)
            # Behind an open tunnel the network in memory would forget it in the handshake.
            if mood > 0.97 and not is_asked_to_connect:
                stream.feed_eof()

    return answer


async def churn_through(
    way: Way, contexts: tuple[ssl.SSLContext, ssl.SSLContext], cancellations: int, seed: int
) -> None:
    tasks = all_tasks()
    server, trust = contexts
    backend = AsyncMemoryBackend(**{**way.net, "answer": moody(seed)}, server_context=server)
    pool = way.pool(backend, trust, max_connections=CONNECTIONS)
    churn = Churn(pool, partial(url, scheme=way.scheme), seed)
    await churn.run(cancellations)
    assert churn.served > cancellations // 10
    assert backend.peak <= CONNECTIONS
    await checkpoints(3)
    check_invariant(pool, backend, tasks)
    backend.answer = answer_as_proxy
    await churn.follow_up()
    await pool.aclose()
    check_invariant(pool, backend, tasks)
    assert backend.live == 0


@pytest.mark.anyio
@pytest.mark.parametrize("name", [name for name in WAYS if name != "socks5"])
async def test_most_requests_are_cancelled_G02(
    name: str, contexts: tuple[ssl.SSLContext, ssl.SSLContext], anyio_backend: Any
) -> None:
    await churn_through(WAYS[name], contexts, 150, 1)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.anyio
@pytest.mark.parametrize("name", [name for name in WAYS if name != "socks5"])
async def test_a_hundred_thousand_requests_are_cancelled_G02(
    name: str, contexts: tuple[ssl.SSLContext, ssl.SSLContext], anyio_backend: Any
) -> None:
    for seed in range(10):
        await churn_through(WAYS[name], contexts, 10_000, seed)
