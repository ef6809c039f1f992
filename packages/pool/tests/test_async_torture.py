"""Every path of a request is cancelled at its every suspension, and fails at every step of the backend.

A path is run until it passes untouched: first it is cancelled where it suspends for the first time, then for the
second, and so on. After each run nothing may be held or left behind, the next request has to be right, and no answer
may have a byte of another one. The short paths are struck twice, the second time during the clean-up after the first.

Under asyncio a cancellation may also come late: what the task waits for has come about, the connection was handed to
it, and it has not gone on yet.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import pytest
import trustme

from lamina_interfaces import ConnectError, Limit, ProxyError, ResolvedAddress, current_runtime
from lamina_pool import AsyncConnectionPool
from pool_async_net import (
    CustomStream,
    MemoryBackend,
    MemoryStream,
    checkpoint,
    checkpoints,
    echo,
    reflect,
)
from pool_async_runs import (
    EVERYWHERE,
    VIRTUAL,
    Job,
    Jobs,
    Strike,
    all_tasks,
    ask,
    check_invariant,
    fail_everywhere,
    lamina_error,
    loop_options,
    strike_everywhere,
    strike_twice,
    until,
    url,
)
from pool_loopback import request_for, response, target_of
from pool_proxies import WAYS, Way

pytestmark = pytest.mark.anyio

HANG = 3600.0  # in virtual time, which is no time


@pytest.fixture(params=VIRTUAL)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return loop_options(request.param)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


class Scene:
    """A pool over a network in memory, and what a path needs besides.

    Attributes:
        scheme: of the requests that come after the path.
        bodies: how many bodies of requests were begun, and how many of them came to their `finally`.
    """

    def __init__(self, authority: trustme.CA, way: Way | None = None, **options: Any) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("example.com", "proxy.test").configure_cert(context)
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        authority.configure_trust(trust)
        self.scheme = "http"
        if way is not None:
            self.scheme = way.scheme
            options["proxy"] = way.make_proxy(trust)
        self.backend = MemoryBackend(server_context=context, **options.pop("net", {}))
        self.pool = AsyncConnectionPool(network_backend=self.backend, ssl_context=trust, **options)
        self.jobs: Jobs | None = None
        self.bodies = [0, 0]

    async def body(self, *pieces: bytes) -> AsyncIterator[bytes]:
        """A request's body that suspends before each piece, and in its clean-up."""
        self.bodies[0] += 1
        try:
            for piece in pieces:
                await checkpoint()
                yield piece
        finally:
            self.bodies[1] += 1
            await checkpoint()

    def start(self, function: Callable[..., Any], *arguments: Any) -> Job:
        assert self.jobs is not None
        return self.jobs.start(function, *arguments)


Path = Callable[[Scene], Coroutine[Any, Any, Any]]


class Case:
    """A path, what is to be there before it, and what kind of pool it wants."""

    def __init__(
        self,
        path: Path,
        before: Path | None = None,
        *,
        at_least: int,
        net: Callable[[], dict[str, Any]] = dict,
        **options: Any,
    ) -> None:
        self.path = path
        self.before = before
        self.at_least = at_least
        self.net = net
        self.options = options


# --- the paths ---------------------------------------------------------------------------------------------


async def plain(scene: Scene) -> None:
    await ask(scene.pool)


async def idle_connection(scene: Scene) -> None:
    await ask(scene.pool)


async def tls(scene: Scene) -> None:
    await ask(scene.pool, url(scheme="https"))


async def upload(scene: Scene) -> None:
    await ask(scene.pool, method="POST", content=scene.body(b"one", b"two", b"three"))


def in_pieces(stream: MemoryStream, head: bytes, body: bytes) -> None:
    answer = response(target_of(head) * 100)
    for start in range(0, len(answer), 100):
        stream.feed(answer[start : start + 100])


async def body_read(scene: Scene) -> None:
    scene.backend.read_size = 100
    async with scene.pool.stream("GET", target := url()) as answer:
        whole = b"".join([piece async for piece in answer.aiter_stream()])
    assert whole == target.removeprefix("http://example.com").encode() * 100


def refuse(stream: MemoryStream, data: bytes) -> None:
    if b"one" in data:
        stream.feed(response(target_of(bytes(stream.heard)), status=b"413 Content Too Large"))


async def early_answer(scene: Scene) -> None:
    scene.backend.hear = refuse
    try:
        answer = await ask(scene.pool, method="POST", content=scene.body(b"one", b"two", b"three"))
        assert answer.status == 413
    finally:
        scene.backend.hear = lambda *_: None


async def drain(scene: Scene) -> None:
    """Closed after a piece; the rest comes in several reads."""
    scene.backend.read_size = 100
    async with scene.pool.stream("GET", url()) as answer:
        async for _ in answer.aiter_stream():
            break


def endless(stream: MemoryStream, head: bytes, body: bytes) -> None:
    stream.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome")


async def half_read(scene: Scene) -> None:
    scene.backend.answer = endless
    try:
        async with scene.pool.stream("GET", url()) as answer:
            async for _ in answer.aiter_stream():
                break
    finally:
        scene.backend.answer = echo


async def busy(scene: Scene) -> None:
    """Somebody holds the only connection for a while."""
    held = await scene.pool.handle_async_request(request_for(url()))

    async def give_back() -> None:
        await until(lambda: scene.pool.stats().queued, 20)
        await checkpoints(3)
        await held.aread()

    async def leave_it() -> None:
        try:
            await give_back()
        except AssertionError:
            await held.aclose()  # cancelled before it came into the queue

    scene.start(leave_it)


async def queue(scene: Scene) -> None:
    await ask(scene.pool)


async def retries(scene: Scene) -> None:
    async def refuse_twice(host: str, limit: Limit) -> None:
        await checkpoint()
        if len(scene.backend.calls) % 3:
            raise ConnectError("refused", phase="connect")

    scene.backend.calls.clear()
    scene.backend.on_connect = refuse_twice
    try:
        await ask(scene.pool)
    finally:
        scene.backend.on_connect = None


def switch(stream: MemoryStream, head: bytes, body: bytes) -> None:
    stream.is_raw = True
    stream.feed(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nlead")


async def upgrade(scene: Scene) -> None:
    scene.backend.answer = switch
    scene.backend.hear = reflect
    try:
        headers = [("Host", "example.com"), ("Connection", "upgrade"), ("Upgrade", "x")]
        async with scene.pool.stream("GET", url(), headers=headers) as answer:
            stream = answer.extensions["network_stream"]
            assert await stream.read() == b"lead"
            await stream.write(b"ping")
            assert await stream.read() == b"PING"
            await stream.aclose()
    finally:
        scene.backend.answer = echo
        scene.backend.hear = lambda *_: None


async def went_away(scene: Scene) -> None:
    """A connection that dies under the second request over it."""
    await ask(scene.pool)
    scene.backend.answer = hang_up


def hang_up(stream: MemoryStream, head: bytes, body: bytes) -> None:
    stream.backend.answer = echo
    stream.feed_eof()


async def stale(scene: Scene) -> None:
    try:
        await ask(scene.pool)
    finally:
        scene.backend.answer = echo


async def traced(scene: Scene) -> None:
    async def trace(event: str, info: dict[str, Any]) -> None:
        await checkpoint()

    await ask(scene.pool, extensions={"trace": trace})


async def expect_continue(scene: Scene) -> None:
    def go_on(stream: MemoryStream, data: bytes) -> None:
        if data.endswith(b"\r\n\r\n") and b"Expect" in data:
            stream.feed(b"HTTP/1.1 100 Continue\r\n\r\n")

    scene.backend.hear = go_on
    try:
        headers = [("Expect", "100-continue")]
        await ask(scene.pool, method="POST", headers=headers, content=scene.body(b"one", b"two"))
    finally:
        scene.backend.hear = lambda *_: None


async def by_way(scene: Scene) -> None:
    await ask(scene.pool, url(scheme=scene.scheme))


async def upload_by_way(scene: Scene) -> None:
    await ask(scene.pool, url(scheme=scene.scheme), method="POST", content=scene.body(b"one", b"two"))


async def traced_by_way(scene: Scene) -> None:
    async def trace(event: str, info: dict[str, Any]) -> None:
        await checkpoint()

    await ask(scene.pool, url(scheme=scene.scheme), extensions={"trace": trace})


def refuse_to_connect(stream: MemoryStream, head: bytes, body: bytes) -> None:
    stream.feed(b"HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno")


async def refused_by_proxy(scene: Scene) -> None:
    answer, scene.backend.answer = scene.backend.answer, refuse_to_connect
    try:
        await ask(scene.pool, url(scheme=scene.scheme))
    except ProxyError:
        pass
    finally:
        scene.backend.answer = answer


async def several_addresses(scene: Scene) -> None:
    """Of which the proxy cannot reach the first, and the last is not needed."""

    async def resolve(host: str, port: int, timeout: float | None = None) -> list[ResolvedAddress]:
        await scene.backend.step("resolve", Limit(timeout, current_runtime().now, "dns"))
        return [ResolvedAddress(0, (f"192.0.2.{number}", port)) for number in (1, 2, 3)]

    scene.backend.resolve = resolve  # type: ignore[attr-defined] # an ability that it has not by itself
    await ask(scene.pool, url(scheme=scene.scheme))


def through(way: str, path: Path, before: Path | None = None, *, at_least: int, **options: Any) -> Case:
    """A path through a proxy."""
    return Case(path, before, at_least=at_least, net=lambda: dict(WAYS[way].net), way=WAYS[way], **options)


def all_in_pieces() -> dict[str, Any]:
    return {"answer": in_pieces}


def custom_streams() -> dict[str, Any]:
    return {"kind": MemoryStream, "wrap": CustomStream}


CASES = {
    "plain": Case(plain, at_least=3),
    "idle": Case(idle_connection, plain, at_least=2),
    "tls": Case(tls, at_least=5),
    "upload": Case(upload, at_least=9),
    "body-read": Case(body_read, at_least=6, net=all_in_pieces),
    "drain": Case(drain, at_least=6, net=all_in_pieces),
    "early-answer": Case(early_answer, at_least=6),
    "half-read": Case(half_read, at_least=3),
    "queue": Case(queue, busy, at_least=3, max_connections=1),
    "retries": Case(retries, at_least=6, retries=3),
    "upgrade": Case(upgrade, at_least=5),
    "stale": Case(stale, went_away, at_least=5),
    "traced": Case(traced, at_least=14),
    "expect": Case(expect_continue, at_least=8),
    "custom": Case(plain, at_least=3, net=custom_streams),
    "custom-tls": Case(tls, at_least=5, net=custom_streams),
    "custom-half-read": Case(half_read, at_least=3, net=custom_streams),
    "forward": through("forward", by_way, at_least=3),
    "forward-tls": through("forward-tls", by_way, at_least=5),
    "tunnel": through("tunnel", by_way, at_least=5),
    "tunnel-tls": through("tunnel-tls", by_way, at_least=7),
    "tunnel-traced": through("tunnel-tls", traced_by_way, at_least=20),
    "tunnel-refused": through("tunnel-tls", refused_by_proxy, at_least=3),
    "tunnel-reused": through("tunnel-tls", by_way, by_way, at_least=2),
    "tunnel-upload": through("tunnel-tls", upload_by_way, at_least=10),
    "tls-in-tls": through("tls-in-tls", by_way, at_least=9),
    "socks": through("socks", by_way, at_least=9),
    "socks-tls": through("socks-tls", by_way, at_least=11),
    "socks-traced": through("socks-tls", traced_by_way, at_least=20),
    "socks-addresses": through("socks5", several_addresses, at_least=17),
}
SHORT = [
    *("plain", "idle", "tls", "upload", "queue", "retries", "drain", "stale", "custom"),
    *("forward", "tunnel", "tunnel-refused", "tunnel-reused", "socks"),
]


async def settled(pool: AsyncConnectionPool) -> None:
    """Wait for the custom streams that are being closed by tasks of their own."""
    await until(lambda: not pool._world._closing, 200)
    await checkpoints(2)


async def run(case: Case, authority: trustme.CA, strike: Strike, fail_at: int = 0, fault: Any = None) -> Any:
    """One run of a path on a new scene; afterwards nothing is left, and the next requests are right."""
    with anyio.fail_after(HANG):
        return await run_scene(case, authority, strike, fail_at, fault)


async def run_scene(case: Case, authority: trustme.CA, strike: Strike, fail_at: int, fault: Any) -> Any:
    tasks = all_tasks()
    scene = Scene(authority, net=case.net(), **case.options)
    pool, backend = scene.pool, scene.backend
    async with Jobs() as scene.jobs:
        if case.before is not None:
            await case.before(scene)
        backend.steps.clear()
        backend.fail_at, backend.fault = fail_at, fault
        outcome = await strike.run(partial(case.path, scene))
        backend.fail_at = 0
        for job in scene.jobs.started:
            await job.result()
        await settled(pool)
        check_invariant(pool, backend, tasks if not scene.jobs._nursery else None)
        assert scene.bodies[0] == scene.bodies[1]
    check_invariant(pool, backend, tasks)
    for _ in range(2):
        await ask(pool, url(scheme=scene.scheme))
    await settled(pool)
    check_invariant(pool, backend, tasks)
    await pool.aclose()
    assert backend.live == 0
    assert all_tasks() == tasks
    return outcome


@pytest.mark.parametrize("name", CASES)
async def test_cancelled_at_every_suspension_G01(
    name: str, authority: trustme.CA, anyio_backend: Any
) -> None:
    case = CASES[name]
    # The harness does strike, at as many points as there are at least.
    assert await strike_everywhere(partial(run, case, authority)) >= case.at_least


@pytest.mark.parametrize("anyio_backend", EVERYWHERE[len(VIRTUAL) :], indirect=True)
@pytest.mark.parametrize(
    "name", sorted(CASES.keys() - {"retries"})
)  # which takes its time, and here it is real
async def test_cancelled_at_every_suspension_in_uvloop_G01(
    name: str, authority: trustme.CA, anyio_backend: Any
) -> None:
    await test_cancelled_at_every_suspension_G01(name, authority, anyio_backend)


@pytest.mark.parametrize("name", CASES)
async def test_cancelled_when_what_is_waited_for_has_come_G01(
    name: str, authority: trustme.CA, anyio_backend: Any
) -> None:
    if anyio_backend[0] == "trio":
        return  # what has come is delivered there, and the cancellation comes with the next suspension
    await strike_everywhere(partial(run, CASES[name], authority), late=True)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("name", CASES)
async def test_cancelled_by_a_scope_of_anyios_G01(
    name: str, authority: trustme.CA, anyio_backend: Any
) -> None:
    """Which cancels every wait of the clean-up as well."""
    await strike_everywhere(partial(run, CASES[name], authority), by_anyio=True)


@pytest.mark.parametrize("name", SHORT)
async def test_cancelled_twice_G05(name: str, authority: trustme.CA, anyio_backend: Any) -> None:
    """The second time somewhere in what follows the first: during the clean-up, or in the rest of the path."""
    pairs = await strike_twice(partial(run, CASES[name], authority))
    assert pairs >= (1 if name == "upload" else 0)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("fault", [RuntimeError, lamina_error], ids=["foreign", "own"])
async def test_the_backend_fails_at_every_step_G01(
    name: str, fault: Callable[[str], Exception], authority: trustme.CA, anyio_backend: Any
) -> None:
    assert await fail_everywhere(partial(run, CASES[name], authority, Strike()), fault) >= 2


async def test_a_response_is_not_mixed_up_by_the_harness(authority: trustme.CA, anyio_backend: Any) -> None:
    """The canary of the canaries: an answer to another request is seen."""
    scene = Scene(authority, net={"answer": lambda stream, head, body: stream.feed(response(b"/other"))})
    with pytest.raises(AssertionError, match="other"):
        await ask(scene.pool)
    await scene.pool.aclose()
