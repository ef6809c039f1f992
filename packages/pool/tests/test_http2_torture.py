"""Every path of a request over a shared connection is cancelled at its every suspension, and fails at every step.

As `test_async_torture`, and sharper: a request that is cancelled is the only one that ends. The others on its
connection come to their end, right, and the connection lives on; that holds with streams that only know `write`, too,
unless a write was cut in two. A lost wake-up would let somebody wait for ever, which in virtual time takes no time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import pytest

from lamina_interfaces import LaminaError
from lamina_pool import AsyncConnectionPool
from pool_async_net import checkpoint, checkpoints
from pool_async_runs import (
    EVERYWHERE,
    VIRTUAL,
    Job,
    Jobs,
    Strike,
    all_tasks,
    ask,
    fail_everywhere,
    lamina_error,
    loop_options,
    pause,
    strike_everywhere,
    strike_twice,
    until,
    url,
)
from pool_http2_net import Contexts, HTTP2Backend, check_servers, check_shared, make_contexts
from pool_http2_server import INITIAL_WINDOW_SIZE, MAX_CONCURRENT_STREAMS, NO_ERROR, REFUSED_STREAM, Asked
from pool_proxies import WAYS, TunnelledHTTP2Stream

pytestmark = pytest.mark.anyio

HANG = 300.0
"""Seconds of virtual time after which somebody waits for ever."""

LARGE = 300_000
"""Bytes: more than a stream's window has, and than the connection's has before the server opens it."""


@pytest.fixture(params=VIRTUAL)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return loop_options(request.param)


@pytest.fixture(scope="module")
def contexts() -> Contexts:
    return make_contexts()


class Scene:
    """A pool over a network in memory, and what a path needs besides.

    Attributes:
        siblings: requests of others, that have to come to a good end whatever becomes of the path.
        held: what the server answers when the path is over.
        bodies: how many bodies of requests were begun, and how many of them came to their `finally`.
    """

    def __init__(self, contexts: Contexts, net: dict[str, Any], **options: Any) -> None:
        kind = net.pop("kind", None)
        self.backend = HTTP2Backend(self.answer, server_context=contexts.server, **net)
        self.backend.kind = kind or self.backend.kind
        options.setdefault("http1", False)
        self.pool = AsyncConnectionPool(
            network_backend=self.backend, ssl_context=contexts.client, http2=True, **options
        )
        self.jobs: Jobs
        self.siblings: list[Job] = []
        self.held: list[Asked] = []
        self.is_over = False
        self.bodies = [0, 0]

    # --- the server

    def answer(self, asked: Asked) -> None:
        """What the first part of the target says."""
        kind = asked.target[1:].partition(b"-")[0]
        if self.is_over:
            asked.respond()
        elif kind == b"held":
            self.held.append(asked)
        elif kind == b"slow":
            self.start(self.later, 3, asked.respond)
        elif kind == b"pieces":
            self.start(self.in_pieces, asked)
        elif kind == b"large":
            asked.respond(bytes(LARGE) + asked.target)
        elif kind == b"half":
            asked.respond(b"some", ends=False)
        else:
            asked.respond()

    async def later(self, number: int, function: Callable[[], object]) -> None:
        await checkpoints(number)
        function()

    async def in_pieces(self, asked: Asked) -> None:
        for piece in (b"one", b"two"):
            asked.respond(piece, ends=False)
            await checkpoint()
        asked.respond()

    def release(self) -> None:
        """The path is over; now the server answers everybody, and takes everything."""
        self.is_over = True
        self.backend.on_open = lambda stream: None
        for asked in self.held:
            asked.respond()
        for stream in self.backend.streams:
            stream.peer.hear = stream.peer.begin = None
            stream.peer.credits_streams = True
            stream.unstall()
            for asked in list(stream.peer.open.values()):
                asked.open_window(100_000)

    # --- clients

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

    def start(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Job:
        return self.jobs.start(function, *arguments, **options)

    def sibling(self, path: str = "", **options: Any) -> Job:
        self.siblings.append(self.start(ask, self.pool, url(path), **options))
        return self.siblings[-1]

    @property
    def server(self) -> Any:
        """The server's end of the first connection."""
        return self.backend.streams[0].peer


Path = Callable[[Scene], Coroutine[Any, Any, Any]]


class Case:
    """A path, what is to be there before it, and what it needs.

    Args:
        stays: whether the first connection outlives the path, and is the only one.
        streams: of which kinds; "prompt", "thrifty" for those that write a few bytes at a time, "custom", "tunnelled"
            for those of an HTTP proxy.
    """

    def __init__(
        self,
        path: Path,
        *before: Path,
        at_least: int,
        stays: bool = True,
        streams: tuple[str, ...] = ("prompt", "custom"),
        settings: dict[int, int] | None = None,
        **options: Any,
    ) -> None:
        self.path = path
        self.before = before
        self.at_least = at_least
        self.stays = stays
        self.streams = streams
        self.settings = settings
        self.options = options


PROXY = WAYS["tunnel"].make_proxy()

KINDS: dict[str, dict[str, Any]] = {
    "prompt": {},
    "thrifty": {"room": 7},
    "custom": {"is_custom": True},
    "tunnelled": {"kind": TunnelledHTTP2Stream},
}

# --- what was there before ---------------------------------------------------------------------------------


async def warm(scene: Scene) -> None:
    """There is a connection, and nothing under way on it."""
    await ask(scene.pool)


async def company(scene: Scene) -> None:
    """Others have requests under way on the same connection; one of them reads."""
    await ask(scene.pool)
    scene.sibling("held-")
    scene.sibling("held-")
    await until(lambda: len(scene.held) == 2)
    await checkpoints(3)


async def busy(scene: Scene) -> None:
    """Somebody has the only place, and gives it back when somebody waits for it."""
    await ask(scene.pool)
    held = await scene.pool.handle_async_request(request_for_half())

    async def give_back() -> None:
        for _ in range(20):
            if scene.pool.stats().queued:
                break
            await checkpoint()
        await checkpoints(3)
        await held.aclose()

    scene.start(give_back)


def request_for_half() -> Any:
    from lamina_pool import Request

    return Request("GET", url("half-"), headers=[("Host", "example.com")])


# --- the paths ---------------------------------------------------------------------------------------------


async def plain(scene: Scene) -> None:
    await ask(scene.pool)


async def slow(scene: Scene) -> None:
    await ask(scene.pool, url("slow-"))


async def reader(scene: Scene) -> None:
    """Who waits first reads for all; others fall asleep behind it, and must not sleep on when it goes."""
    scene.start(scene.later, 2, partial(scene.sibling, "held-"))
    scene.start(scene.later, 3, partial(scene.sibling, "slow-"))
    await ask(scene.pool, url("pieces-"))


async def traced(scene: Scene) -> None:
    async def trace(event: str, info: dict[str, Any]) -> None:
        await checkpoint()

    await ask(scene.pool, extensions={"trace": trace})


async def tls(scene: Scene) -> None:
    await ask(scene.pool, url(scheme="https"))


async def tls_upload(scene: Scene) -> None:
    await ask(scene.pool, url("slow-", scheme="https"), method="POST", content=scene.body(b"one", b"two"))


async def upload(scene: Scene) -> None:
    await ask(scene.pool, method="POST", content=scene.body(b"one", b"two", b"three"))


async def shut_window(scene: Scene) -> None:
    """The window takes four bytes, and opens when they have come, but only after a while."""

    def hear(asked: Asked, size: int) -> None:
        scene.start(scene.later, 2, partial(asked.open_window, size))

    scene.server.credits_streams = False
    scene.server.hear = hear
    try:
        await ask(scene.pool, method="POST", content=scene.body(b"one", b"two-three", b"four"))
    finally:
        scene.server.hear = None


async def congested(scene: Scene) -> None:
    """The system takes nothing for a while. Another one wants to write as well."""
    stream = scene.backend.streams[0]
    stream.stalls = True
    scene.start(scene.later, 2, partial(scene.sibling, method="POST", content=b"others"))
    scene.start(scene.later, 5, stream.unstall)
    await ask(scene.pool, method="POST", content=scene.body(b"one", b"two"))


async def large_upload(scene: Scene) -> None:
    await ask(scene.pool, method="POST", content=scene.body(bytes(LARGE // 2), bytes(LARGE // 2)))


async def body_read(scene: Scene) -> None:
    async with scene.pool.stream("GET", target := url("pieces-")) as answer:
        whole = b"".join([piece async for piece in answer.aiter_stream()])
    assert whole == b"onetwo/" + target.rpartition("/")[2].encode()


async def large(scene: Scene) -> None:
    answer = await ask(scene.pool, url("large-"))
    assert len(answer.content) > LARGE


async def half_read(scene: Scene) -> None:
    async with scene.pool.stream("GET", url("half-")) as answer:
        async for _ in answer.aiter_stream():
            break


async def unread(scene: Scene) -> None:
    async with scene.pool.stream("GET", url("large-")):
        pass


async def shared_dial(scene: Scene) -> None:
    """Somebody else hopes for the connection that this one has begun to open."""
    scene.sibling("slow-")
    await ask(scene.pool)


async def dialling(scene: Scene) -> None:
    """Somebody else has begun to open a connection."""

    async def wait_a_little(host: str, limit: Any) -> None:
        await checkpoints(3)

    scene.backend.on_connect = wait_a_little
    scene.sibling("slow-")
    await until(lambda: scene.backend.calls)


def goodbye(scene: Scene) -> None:
    """From now on the server refuses the next request by GOAWAY; what came before goes on."""

    def begin(asked: Asked) -> None:
        asked.server.begin = None
        asked.server.goaway(asked.id - 2)

    scene.server.begin = begin


async def went_away(scene: Scene) -> None:
    goodbye(scene)
    await ask(scene.pool)


async def went_away_later(scene: Scene) -> None:
    """The GOAWAY comes while the body of the answer comes, and lets it come to its end."""

    def begin(asked: Asked) -> None:
        asked.server.begin = None
        scene.start(scene.later, 2, partial(asked.server.goaway, asked.id))

    scene.server.begin = begin
    await ask(scene.pool, url("pieces-"))


async def refused(scene: Scene) -> None:
    def begin(asked: Asked) -> None:
        asked.server.begin = None
        asked.reset(REFUSED_STREAM)

    scene.server.begin = begin
    await ask(scene.pool)


async def hung_up(scene: Scene) -> None:
    """The connection ends under the request, which goes to a new one."""

    def begin(asked: Asked) -> None:
        scene.backend.streams[0].hang_up()

    scene.server.begin = begin
    await ask(scene.pool)


async def early_answer(scene: Scene) -> None:
    """The server has heard enough of the body, and says so."""

    def begin(asked: Asked) -> None:
        asked.server.begin = None
        asked.respond(status=413)
        asked.is_over = False
        asked.reset(NO_ERROR)

    scene.server.begin = begin
    answer = await ask(scene.pool, method="POST", content=scene.body(b"one", b"two", b"three"))
    assert answer.status == 413


async def expect_continue(scene: Scene) -> None:
    def begin(asked: Asked) -> None:
        asked.server.begin = None
        scene.start(scene.later, 2, partial(asked.inform, 100))

    scene.server.begin = begin
    headers = [("Expect", "100-continue")]
    await ask(scene.pool, method="POST", headers=headers, content=scene.body(b"one", b"two"))


async def kept_alive(scene: Scene) -> None:
    """The server takes its time, and is asked whether it is there."""

    async def answer(asked: Asked) -> None:
        await pause(3.5)
        asked.respond()

    scene.backend.answer_http2 = lambda asked: scene.start(answer, asked)
    try:
        await ask(scene.pool)
        assert scene.server.pings == 3 or scene.backend.fail_at
    finally:
        scene.backend.answer_http2 = scene.answer


async def fewer_places(scene: Scene) -> None:
    """The server lets nobody in but those who are there, then two more."""
    before = MAX_CONCURRENT_STREAMS
    scene.server.change({before: 1})
    scene.start(scene.later, 6, partial(scene.server.change, {before: 4}))
    await checkpoint()
    await ask(scene.pool)


CASES = {
    "plain": Case(plain, at_least=2, stays=False),
    "warm": Case(slow, warm, at_least=2),
    "company": Case(slow, company, at_least=1),
    "reader": Case(reader, warm, at_least=3),
    "thrifty": Case(slow, company, at_least=3, streams=("thrifty",)),
    "traced": Case(traced, company, at_least=8),
    "tls": Case(tls, at_least=2, stays=False, http1=True),
    "tls-upload": Case(tls_upload, tls, at_least=6, http1=True, streams=("prompt", "thrifty", "custom")),
    "upload": Case(upload, company, at_least=4, streams=("prompt", "thrifty", "custom")),
    "shut-window": Case(
        shut_window,
        company,
        at_least=8,
        settings={INITIAL_WINDOW_SIZE: 4},
        streams=("prompt", "thrifty", "custom"),
    ),
    "congested": Case(congested, company, at_least=5),
    "large-upload": Case(large_upload, company, at_least=6),
    "body-read": Case(body_read, company, at_least=2),
    "large": Case(large, company, at_least=3),
    "half-read": Case(half_read, company, at_least=1),
    "unread": Case(unread, company, at_least=1),
    "place": Case(slow, busy, at_least=3, settings={MAX_CONCURRENT_STREAMS: 1}, max_connections=1),
    "fewer-places": Case(fewer_places, company, at_least=2, max_connections=1),
    "shared-dial": Case(shared_dial, at_least=2),
    "hopes": Case(plain, dialling, at_least=2),
    "goaway": Case(went_away, company, at_least=3, stays=False),
    "goaway-later": Case(went_away_later, company, at_least=3, stays=False),
    "refused": Case(refused, company, at_least=2),
    "hung-up": Case(hung_up, warm, at_least=3, stays=False),
    "early-answer": Case(early_answer, company, at_least=3),
    "expect": Case(expect_continue, company, at_least=4),
    "tunnel": Case(plain, at_least=2, stays=False, streams=("tunnelled",), proxy=PROXY),
    "tunnel-tls": Case(tls, at_least=2, stays=False, streams=("tunnelled",), http1=True, proxy=PROXY),
    "tunnel-company": Case(slow, company, at_least=1, streams=("tunnelled",), proxy=PROXY),
    "tunnel-shared-dial": Case(shared_dial, at_least=2, streams=("tunnelled",), proxy=PROXY),
    # A custom stream that does not know of time limits cannot be interrupted for a PING.
    "ping": Case(kept_alive, warm, at_least=8, streams=("prompt", "thrifty"), http2_ping_interval=1.0),
}
ALL = [f"{name}-{kind}" for name, case in CASES.items() for kind in case.streams]
SHORT = [
    f"{name}-{kind}"
    for name in (
        "warm",
        "reader",
        "upload",
        "congested",
        "half-read",
        "place",
        "shared-dial",
        "tunnel-shared-dial",
        "refused",
        "goaway",
    )
    for kind in CASES[name].streams
]
MOST = [
    pytest.param(name, marks=[] if name in SHORT else pytest.mark.soak) for name in ALL if "ping" not in name
]
"""The others are run where there is time for it."""


async def settled(scene: Scene) -> None:
    """Wait for what tasks of the pool's own do: close custom streams, and send the resets over them."""
    pool = scene.pool

    def is_done() -> bool:
        slots = pool._pool._scheduler.slots()
        return not pool._world._closing and not any(slot.connection._turn for slot in slots)

    for _ in range(3):
        await checkpoints(3)
        await until(is_done, 200)


async def run(
    name: str, contexts: Contexts, strike: Strike, fail_at: int = 0, fault: Any = RuntimeError
) -> Any:
    """One run of a path on a new scene; afterwards nothing is left, and the next requests are right."""
    name, _, kind = name.rpartition("-")
    with anyio.fail_after(HANG):
        return await run_scene(CASES[name], KINDS[kind], contexts, strike, fail_at, fault)


async def run_scene(
    case: Case, net: dict[str, Any], contexts: Contexts, strike: Strike, fail_at: int, fault: Any
) -> Any:
    tasks = all_tasks()
    scene = Scene(contexts, {"settings": case.settings, **net}, **case.options)
    pool, backend = scene.pool, scene.backend
    async with Jobs() as scene.jobs:
        for before in case.before:
            await before(scene)
        backend.steps.clear()
        backend.fail_at, backend.fault = fail_at, fault
        outcome = await strike.run(partial(case.path, scene))
        backend.on_connect = None
        await checkpoints(8)  # others go on for a while, until all wait for the server
        scene.release()
        for job in scene.jobs.started:
            ended = await job.outcome_in_time()
            if not isinstance(ended, Exception):
                continue
            was_cut = any(stream.was_cut for stream in backend.streams)
            is_excused = fail_at or (was_cut and job in scene.siblings)
            if not is_excused or not isinstance(ended, (LaminaError, RuntimeError)):
                raise ended
        backend.fail_at = 0
        await settled(scene)
        check_shared(pool, backend, tasks if not scene.jobs._nursery else None)
        assert scene.bodies[0] == scene.bodies[1]
        if case.stays and not fail_at and not any(stream.was_cut for stream in backend.streams):
            assert len(backend.streams) <= 1
            if scene.siblings or case.before:
                assert not backend.streams[0].is_closed
    check_shared(pool, backend, tasks)
    for _ in range(2):
        await ask(pool, url(scheme="https" if "http1" in case.options else "http"))
    await settled(scene)
    check_shared(pool, backend, tasks)
    check_servers(backend)
    await pool.aclose()
    assert backend.live == 0
    backend.check()
    assert all_tasks() == tasks
    return outcome


@pytest.mark.parametrize("name", ALL)
async def test_cancelled_at_every_suspension_G01(name: str, contexts: Contexts, anyio_backend: Any) -> None:
    cancelled = await strike_everywhere(partial(run, name, contexts))
    at_least = CASES[name.rpartition("-")[0]].at_least
    # The harness does strike. In trio the tasks' order, and with it the number of suspensions, is left to chance.
    assert cancelled >= (at_least if anyio_backend[0] == "asyncio" else 1)


@pytest.mark.parametrize("anyio_backend", EVERYWHERE[len(VIRTUAL) :], indirect=True)
@pytest.mark.parametrize("name", MOST)  # no PING: there time is real
async def test_cancelled_at_every_suspension_in_uvloop_G01(
    name: str, contexts: Contexts, anyio_backend: Any
) -> None:
    await strike_everywhere(partial(run, name, contexts))


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("name", ALL)
async def test_cancelled_when_what_is_waited_for_has_come_G01(
    name: str, contexts: Contexts, anyio_backend: Any
) -> None:
    await strike_everywhere(partial(run, name, contexts), late=True)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("name", MOST)
async def test_cancelled_by_a_scope_of_anyios_G01(name: str, contexts: Contexts, anyio_backend: Any) -> None:
    """Which cancels every wait of the clean-up as well."""
    await strike_everywhere(partial(run, name, contexts), by_anyio=True)


@pytest.mark.parametrize("name", SHORT)
async def test_cancelled_twice_G05(name: str, contexts: Contexts, anyio_backend: Any) -> None:
    """The second time somewhere in what follows the first: during the clean-up, or in the rest of the path."""
    await strike_twice(partial(run, name, contexts))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("fault", [RuntimeError, lamina_error], ids=["foreign", "own"])
async def test_the_backend_fails_at_every_step_G01(
    name: str, fault: Callable[[str], Exception], contexts: Contexts, anyio_backend: Any
) -> None:
    """The others fail with it, or do not; nobody hangs, and the next requests are right."""
    assert await fail_everywhere(partial(run, name, contexts, Strike()), fault) >= 2
