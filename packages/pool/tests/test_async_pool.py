"""The async pool, over a network in memory: what it sends, what comes back, and what ends it."""

from __future__ import annotations

import asyncio
import inspect
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trustme

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    AsyncNetworkBackendInterface,
    AsyncNetworkStreamInterface,
    BackendNotFound,
    ConcurrencyError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    LaminaError,
    Limit,
    NetworkBackend,
    PoolClosed,
    PoolTimeout,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    WriteError,
    WriteTimeout,
)
from lamina_pool import AsyncConnectionPool, ConnectionPool, PoolStats, Request, ResponseStateError
from pool_async_net import MemoryBackend, MemoryStream, checkpoint, checkpoints, echo, never, reflect, silent
from pool_async_runs import (
    EVERYWHERE,
    Cancelled,
    Jobs,
    all_tasks,
    ask,
    check_invariant,
    checked_pool,
    deadline,
    idle_streams,
    loop_options,
    now,
    pause,
    until,
    url,
)
from pool_loopback import request_for, response, target_of

pytestmark = pytest.mark.anyio

URL = "http://example.com/"
ORIGIN = "http://example.com:80"


@pytest.fixture(params=EVERYWHERE)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return loop_options(request.param)


@pytest.fixture
def virtual(anyio_backend: Any) -> bool:
    """Whether time is virtual; where it is real, a test of time bounds it only from below."""
    factory = anyio_backend[1].get("loop_factory")
    return factory is None or factory.__module__ == "pool_async_runs"


@pytest.fixture
def backend() -> MemoryBackend:
    return MemoryBackend()


def broken(stream: MemoryStream, head: bytes, body: bytes) -> None:
    stream.break_off()


def half(stream: MemoryStream, head: bytes, body: bytes) -> None:
    stream.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nsome")


def half_and_end(stream: MemoryStream, head: bytes, body: bytes) -> None:
    half(stream, head, body)
    stream.feed_eof()


def half_and_reset(stream: MemoryStream, head: bytes, body: bytes) -> None:
    half(stream, head, body)
    stream.break_off()


# --- signatures, arguments, what it shows ------------------------------------------------------------------

PAIRS = {
    "__init__": "__init__",
    "request": "request",
    "stream": "stream",
    "handle_async_request": "handle_request",
    "aclose": "close",
    "reap": "reap",
    "stats": "stats",
}


@pytest.mark.parametrize("name", PAIRS)
def test_has_the_signatures_of_the_blocking_pool(name: str) -> None:
    ours = inspect.signature(getattr(AsyncConnectionPool, name)).parameters
    theirs = inspect.signature(getattr(ConnectionPool, PAIRS[name])).parameters
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]
    assert AsyncConnectionPool.__module__ == "lamina_pool"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_connections": 0}, ArgumentValueError),
        ({"retries": -1}, ArgumentValueError),
        ({"http1": False}, ArgumentValueError),
        ({"network_backend": object()}, ArgumentTypeError),
        ({"network_backend": NetworkBackend()}, ArgumentTypeError),
        ({"network_backend": MemoryBackend}, ArgumentTypeError),
    ],
)
def test_refuses_arguments_that_make_no_sense(arguments: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        AsyncConnectionPool(**arguments)


async def test_repr_and_stats_tell_each_state(backend: MemoryBackend) -> None:
    async with checked_pool(backend, max_connections=1) as pool:
        name = "AsyncConnectionPool"
        assert repr(pool) == f"<{name} [Requests: 0 active, 0 queued | Connections: 0 active, 0 idle]>"
        held = await pool.handle_async_request(request_for(URL))
        async with Jobs() as jobs:
            queued = jobs.start(ask, pool)
            await until(lambda: pool.stats().queued)
            assert pool.stats() == PoolStats(
                connections=1, active=1, idle=0, connecting=0, queued=1, requests=1
            )
            assert repr(pool) == f"<{name} [Requests: 1 active, 1 queued | Connections: 1 active, 0 idle]>"
            assert [c.info() for c in pool.connections] == [
                "'http://example.com:80', HTTP/1.1, ACTIVE, Request Count: 1"
            ]
            await held.aclose()
            await queued.result()
        assert repr(pool) == f"<{name} [Requests: 0 active, 0 queued | Connections: 0 active, 1 idle]>"


def test_outside_of_a_loop_it_can_be_made_looked_at_and_nothing_more() -> None:
    pool = AsyncConnectionPool(network_backend=MemoryBackend())
    assert pool.stats() == PoolStats(0, 0, 0, 0, 0, 0)
    assert pool.connections == []
    pool.reap()
    coroutine = pool.request("GET", URL)
    with pytest.raises(BackendNotFound, match="asyncio or trio"):
        coroutine.send(None)


# --- requests ----------------------------------------------------------------------------------------------


async def test_a_request_and_another_one_over_the_same_connection(backend: MemoryBackend) -> None:
    async with checked_pool(backend) as pool:
        for _ in range(5):
            answer = await ask(pool)
            assert (answer.status, answer.extensions["http_version"]) == (200, b"HTTP/1.1")
        assert len(backend.streams) == 1
        assert backend.calls == [("connect_tcp", "example.com", 80, None, None, None)]


async def test_a_request_object_goes_out_as_it_is(backend: MemoryBackend) -> None:
    async with checked_pool(backend) as pool:
        answer = await pool.handle_async_request(request_for("http://example.com/x"))
        assert await answer.aread() == answer.content == b"/x"
        assert backend.streams[0].requests == [b"GET /x HTTP/1.1\r\nHost: example.com\r\n\r\n"]
        await answer.aclose()
        for wrong in (None, "GET", object()):
            with pytest.raises(ArgumentTypeError, match="must be a Request"):
                await pool.handle_async_request(wrong)  # type: ignore[arg-type] # that is the test


async def test_a_body_is_streamed(backend: MemoryBackend) -> None:
    backend.answer = lambda stream, head, body: stream.feed(response(b"0123456789" * 1000))
    backend.read_size = 4096
    async with checked_pool(backend) as pool, pool.stream("GET", URL) as answer:
        pieces = [piece async for piece in answer.aiter_stream()]
        assert b"".join(pieces) == b"0123456789" * 1000
        assert len(pieces) > 1
        with pytest.raises(ResponseStateError):
            answer.read()
        with pytest.raises(ResponseStateError):
            answer.close()


async def test_bodies_of_both_kinds_that_fit_and_none_of_the_other_world_J05(backend: MemoryBackend) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        await checkpoint()
        yield b"two"

    async with checked_pool(backend) as pool:
        await ask(pool, method="POST", content=b"whole")
        assert backend.streams[0].requests[-1].endswith(b"\r\n\r\nwhole")
        await ask(pool, method="POST", content=pieces())
        assert backend.streams[0].requests[-1].endswith(b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        for wrong in ([b"one"], iter([b"one"])):
            with pytest.raises(ArgumentTypeError, match="async iterable"):
                await pool.request("POST", URL, content=wrong)
    blocking = ConnectionPool()
    with pytest.raises(ArgumentTypeError, match="an iterable"):
        blocking.request("POST", URL, content=pieces())
    blocking.close()


async def test_trace_callbacks_plain_and_coroutine(backend: MemoryBackend) -> None:
    plain: list[str] = []
    awaited: list[str] = []

    async def trace(event: str, info: dict[str, Any]) -> None:
        await checkpoint()
        awaited.append(event)

    async with checked_pool(backend) as pool:
        await ask(pool, extensions={"trace": lambda event, info: plain.append(event)})
        await ask(pool, url(host="other.example"), extensions={"trace": trace})
    assert plain == awaited
    assert plain == [
        f"{step}.{end}"
        for step in (
            "connection.connect_tcp", "http11.send_request_headers", "http11.send_request_body",
            "http11.receive_response_headers", "http11.receive_response_body", "http11.response_closed",
        )
        for end in ("started", "complete")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "error", [KeyError("mine"), StopAsyncIteration("mine"), ReadError("mine"), TimeoutError("mine")]
)
@pytest.mark.parametrize("where", ["body", "trace", "trace-body"])
async def test_what_the_callers_code_raises_comes_out_as_it_is_G06(
    backend: MemoryBackend, error: Exception, where: str
) -> None:
    class Body:
        def __aiter__(self) -> Body:
            return self

        async def __anext__(self) -> bytes:
            await checkpoint()
            raise error

    async def trace(event: str, info: dict[str, Any]) -> None:
        if event == (
            "http11.receive_response_body.started"
            if where == "trace-body"
            else "http11.send_request_headers.started"
        ):
            raise error

    ends_body = isinstance(error, StopAsyncIteration) and where == "body"
    async with checked_pool(backend) as pool:
        options: dict[str, Any] = {"content": Body()} if where == "body" else {"extensions": {"trace": trace}}
        if ends_body:
            await ask(pool, method="POST", **options)
            return
        with pytest.raises((type(error), RuntimeError)) as caught:
            await pool.request("POST", URL, **options)
        raised = caught.value.__cause__ if isinstance(error, StopAsyncIteration) else caught.value
        assert raised is error
        assert getattr(error, "origin", None) is None
        check_invariant(pool, backend)
        await ask(pool)


async def test_the_generator_of_a_body_is_closed_whatever_happens_G06(backend: MemoryBackend) -> None:
    closed: list[str] = []

    async def body(name: str) -> AsyncIterator[Any]:
        try:
            yield b"one"
            yield b"two"
            if name == "wrong":
                yield "text"
        finally:
            await checkpoint()
            closed.append(name)

    def refuse(stream: MemoryStream, data: bytes) -> None:
        if b"one" in data:
            stream.feed(response(b"/refused", status=b"413 Content Too Large"))

    async with checked_pool(backend) as pool:
        await ask(pool, method="POST", content=body("whole"))
        with pytest.raises(ArgumentTypeError):
            await pool.request("POST", URL, content=body("wrong"))
        backend.hear = refuse
        answer = await pool.request("POST", URL, content=body("refused"))
        assert answer.status == 413
        backend.hear = lambda *_: None
        backend.answer = broken
        with pytest.raises(LaminaError):
            await pool.request("POST", URL, content=body("broken"))
    assert closed == ["whole", "wrong", "refused", "broken"]


@pytest.mark.parametrize("manner", ["short", "hangs", "raises"])
async def test_the_clean_up_of_a_body_is_run_after_a_cancellation_and_bounded_G05(
    backend: MemoryBackend, manner: str, virtual: bool
) -> None:
    """The body waits in a `yield`, while what it gave is being sent: nobody but the pool can end it."""
    if not virtual:
        return
    ended: list[float] = []
    backend.hear = lambda stream, data: setattr(stream, "stalls", True)

    async def body() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            start = now()
            try:
                await checkpoints(3)
                if manner == "raises":
                    raise KeyError("mine")
                await pause(0.5 if manner == "short" else 1e6)
            finally:
                ended.append(now() - start)

    async with checked_pool(backend) as pool, Jobs() as jobs:
        job = jobs.start(pool.request, "POST", URL, content=body())
        await until(lambda: backend.streams and backend.streams[0]._waiting)
        job.cancel()
        outcome = await job.outcome_in_time()
        # What a clean-up raises takes the place of what it cleans up after, as everywhere.
        assert isinstance(outcome, KeyError if manner == "raises" else Cancelled), outcome
        assert ended == [pytest.approx({"short": 0.5, "hangs": 1.0, "raises": 0.0}[manner])]
        assert backend.live == 0


async def test_an_early_answer_ends_the_upload_A18(backend: MemoryBackend) -> None:
    """Also where the server stops reading in the same moment, so that a write would wait for ever."""

    def refuse(stream: MemoryStream, data: bytes) -> None:
        if len(stream.heard) > 1_000_000:
            stream.stalls = True
            stream.feed(response(b"no", status=b"413 Content Too Large"))

    backend.hear, backend.write_size = refuse, 65536
    async with checked_pool(backend) as pool:
        answer = await pool.request("POST", URL, content=b"x" * 50_000_000)
        assert (answer.status, answer.content) == (413, b"no")
        assert len(backend.streams[0].heard) < 1_100_000
        assert backend.live == 0


async def test_an_upgrade_hands_over_the_stream_I08(backend: MemoryBackend) -> None:
    def switch(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.is_raw = True
        stream.feed(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\nleading")

    backend.answer = switch
    backend.hear = reflect
    headers = [("Host", "example.com"), ("Connection", "upgrade"), ("Upgrade", "x")]
    async with checked_pool(backend, max_connections=1) as pool:
        for how in ("aclose", "close_now", "abort", "response", "dropped"):
            answer = await pool.handle_async_request(Request("GET", URL, headers=headers))
            assert answer.status == 101
            stream = answer.extensions["network_stream"]
            assert "open" in repr(stream)
            with pytest.raises(ArgumentValueError):
                await stream.read(0)
            assert stream.get_extra_info("is_readable") is True
            assert (await stream.read(4), await stream.read()) == (b"lead", b"ing")
            await stream.write(b"ping")
            assert await stream.read(timeout=1.0) == b"PING"
            if (
                how != "dropped"
            ):  # trio keeps the last wait that it cancelled, and all that is in its traceback
                with pytest.raises(ReadTimeout) as caught:
                    await stream.read(timeout=0.01)
                assert caught.value.origin == "http://example.com:80"
                del caught
            assert pool.stats().active == 1
            if how == "response":
                await answer.aclose()
            elif how == "dropped":
                with pytest.warns(ResourceWarning, match="never read"):
                    del answer, stream
                    check_invariant(pool, backend)
            else:
                result = getattr(stream, how)()
                if how == "aclose":
                    await result
            check_invariant(pool, backend)
        assert backend.live == 0


async def test_tls_after_a_switch_of_protocols(backend: MemoryBackend) -> None:
    authority = trustme.CA()
    backend.server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("inner.example").configure_cert(backend.server_context)
    trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authority.configure_trust(trust)
    leading = b""

    def switch(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.is_raw = True
        stream.feed(b"HTTP/1.1 200 OK\r\n\r\n" + leading)

    backend.answer = switch
    backend.hear = reflect
    async with checked_pool(backend) as pool:
        for leading in (b"", b"planted"):
            request = Request("CONNECT", "http://example.com", headers=[("Host", "inner.example:443")],
                              extensions={"target": b"inner.example:443"})  # fmt: skip
            answer = await pool.handle_async_request(request)
            stream = answer.extensions["network_stream"]
            if leading:
                with pytest.raises(ReadError, match="cannot be trusted"):
                    await stream.start_tls(trust, server_hostname="inner.example")
            else:
                assert await stream.start_tls(trust, server_hostname="inner.example") is stream
                await stream.write(b"secret")
                assert await stream.read() == b"SECRET"
                await stream.aclose()
            check_invariant(pool, backend)


async def test_the_second_dialect_is_a_backend_too(backend: MemoryBackend) -> None:
    class Stream(AsyncNetworkStreamInterface):
        def __init__(self, stream: Any) -> None:
            self._stream = stream

        async def read(self, max_bytes: int | None = None) -> bytes:
            data: bytes = await self._stream.read(max_bytes)
            return data

        async def write(self, data: bytes) -> None:
            await self._stream.write(data)

        def get_extra_info(self, key: str) -> Any:
            return self._stream.get_extra_info(key)

        async def close(self) -> None:
            await self._stream.aclose()

    class Backend(AsyncNetworkBackendInterface):
        async def connect(self, host: str, port: int) -> AsyncNetworkStreamInterface:
            return Stream(await backend.connect_tcp(host, port))

    async with AsyncConnectionPool(network_backend=Backend()) as pool:
        await ask(pool)
        await ask(pool)
        assert len(backend.streams) == 1
        backend.answer = silent
        with pytest.raises(ReadTimeout):
            await pool.request("GET", URL, extensions={"timeout": {"read": 0.05}})
    assert backend.live == 0


# --- retries, stale connections ----------------------------------------------------------------------------


async def test_a_failed_attempt_is_repeated_with_growing_pauses(
    backend: MemoryBackend, virtual: bool
) -> None:
    if not virtual:
        return

    async def refuse(host: str, limit: Limit) -> None:
        if len(backend.calls) < 4:
            raise ConnectError("refused", phase="connect")

    backend.on_connect = refuse
    async with checked_pool(backend, retries=3) as pool:
        start = now()
        await ask(pool)
        assert backend.sleeps == [0.0, 0.5, 1.0]
        assert now() - start == pytest.approx(1.5)


async def test_the_last_failure_is_told_D05(backend: MemoryBackend) -> None:
    async def refuse(host: str, limit: Limit) -> None:
        raise ConnectError(f"refused {len(backend.calls)}", phase="connect")

    backend.on_connect = refuse
    async with checked_pool(backend, retries=1) as pool:
        with pytest.raises(ConnectError, match="refused 2") as caught:
            await pool.request("GET", URL)
        assert caught.value.origin == ORIGIN


async def test_a_dead_idle_connection_is_replaced_unseen_A05(backend: MemoryBackend) -> None:
    async with checked_pool(backend) as pool:
        for kill in (
            MemoryStream.feed_eof,
            MemoryStream.break_off,
            lambda stream: stream.feed(b"HTTP/1.1 408"),
        ):
            await ask(pool)
            kill(backend.streams[-1])
            await ask(pool, method="POST", content=b"x")  # which could not be sent twice
            assert backend.live == 1


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_connection_that_dies_under_a_request_A17(backend: MemoryBackend, method: str) -> None:
    def hang_up(stream: MemoryStream, head: bytes, body: bytes) -> None:
        backend.answer = echo
        stream.feed_eof()

    async with checked_pool(backend) as pool:
        await ask(pool)
        backend.answer = hang_up
        if method == "GET":
            await ask(pool)
            assert len(backend.streams) == 2
        else:
            with pytest.raises(RemoteProtocolError, match="without answering"):
                await pool.request(method, URL, content=b"x")


async def test_a_small_rest_is_drained_and_a_large_one_is_not(backend: MemoryBackend, virtual: bool) -> None:
    rest = b""

    def with_rest(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n" + rest)

    backend.answer = with_rest
    async with checked_pool(backend) as pool:
        for rest, is_kept in ((b"x" * 10_000, True), (b"x" * 9_999, False)):  # noqa: B007 - sent by `with_rest`
            start = now()
            async with pool.stream("GET", URL):
                pass
            assert pool.stats().idle == is_kept
            assert not virtual or now() - start < 0.1  # a rest that does not come is not waited for


# --- time --------------------------------------------------------------------------------------------------


async def test_keepalive_expiry_on_a_clock_that_jumps_I07(backend: MemoryBackend) -> None:
    """F04: a machine that slept for an hour finds its idle connections expired, and nothing else amiss."""
    async with checked_pool(backend, keepalive_expiry=5.0) as pool:
        await ask(pool)
        clock = pool._pool._now
        passed = 0.0
        pool._pool._now = lambda: clock() + passed
        await ask(pool)
        passed = 4.0
        await ask(pool)
        assert len(backend.streams) == 1
        passed += 3600.0
        answers = [await ask(pool) for _ in range(3)]
        assert len(answers) == 3
        assert len(backend.streams) == 2
        assert backend.live == 1
        passed += 5.1
        pool.reap()
        assert backend.live == 0


async def test_the_wall_clock_means_nothing_F04(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with checked_pool(backend, keepalive_expiry=5.0) as pool:
        await ask(pool)
        for seconds in (86_400.0, -86_400.0):
            monkeypatch.setattr("time.time", lambda seconds=seconds: 1e9 + seconds)
            await ask(pool)
        assert len(backend.streams) == 1


PHASES: dict[str, dict[str, Any]] = {
    "pool": {"pool": 1.0},
    "connect": {"connect": 1.0},
    "tls": {"connect": 1.0},
    "write": {"write": 1.0},
    "read": {"read": 1.0},
    "body": {"read": 1.0},
}
TIMEOUTS: dict[str, type[LaminaError]] = {
    "pool": PoolTimeout,
    "connect": ConnectTimeout,
    "tls": ConnectTimeout,
    "write": WriteTimeout,
    "read": ReadTimeout,
    "body": ReadTimeout,
}


async def stuck(pool: AsyncConnectionPool, backend: MemoryBackend, phase: str) -> Callable[[], Any]:
    """Make a request get stuck in a phase; returns what lets go of what was needed for it."""
    if phase == "pool":
        return (await pool.handle_async_request(request_for(URL))).aclose
    if phase == "connect":
        backend.on_connect = never
    elif phase == "write":
        backend.answer = silent
        backend.hear = lambda stream, data: setattr(stream, "stalls", True)
    elif phase in {"read", "body"}:
        backend.answer = silent if phase == "read" else half

    async def nothing() -> None: ...

    return nothing


@pytest.mark.parametrize("how", ["timeout", "deadline", "outer-deadline"])
@pytest.mark.parametrize("phase", PHASES)
async def test_every_phase_ends_in_time_F01(
    backend: MemoryBackend, phase: str, how: str, virtual: bool
) -> None:
    if not virtual:
        return
    target = "https://example.com/" if phase == "tls" else URL
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    async with checked_pool(backend, max_connections=1, ssl_context=context) as pool:
        let_go = await stuck(pool, backend, phase)
        content = b"x" * 1_000_000 if phase == "write" else None
        backend.write_size = 65536
        start = now()
        with pytest.raises(LaminaError) as caught:
            if how == "timeout":
                await pool.request("POST", target, content=content, extensions={"timeout": PHASES[phase]})
            else:
                with deadline(1.0 if how == "deadline" else 5.0), deadline(5.0 if how == "deadline" else 1.0):
                    await pool.request("POST", target, content=content)
        error = caught.value
        assert now() - start == pytest.approx(1.0, abs=1e-3)
        assert type(error) is (TIMEOUTS[phase] if how == "timeout" else DeadlineExceeded)
        assert isinstance(error, TimeoutError)
        assert error.phase == ("read" if phase == "body" else phase)
        assert error.origin == target.replace(
            "example.com/", "example.com:443" if phase == "tls" else "example.com:80"
        )
        assert str(error)
        await let_go()


async def test_the_pause_between_two_attempts_obeys_the_deadline_F03(
    backend: MemoryBackend, virtual: bool
) -> None:
    if not virtual:
        return

    async def refuse(host: str, limit: Limit) -> None:
        raise ConnectError("refused")

    backend.on_connect = refuse
    async with checked_pool(backend, retries=10) as pool:
        start = now()
        with pytest.raises(DeadlineExceeded) as caught, deadline(1.0):
            await pool.request("GET", URL)
        assert now() - start == pytest.approx(1.0, abs=1e-3)
        assert (caught.value.phase, caught.value.origin) == ("connect", ORIGIN)


@pytest.mark.parametrize("seconds", [0.0, 1e-9])
async def test_a_deadline_that_has_passed_allows_no_io_F02(backend: MemoryBackend, seconds: float) -> None:
    async with checked_pool(backend) as pool:
        await ask(pool)
        steps = len(backend.steps)
        with pytest.raises(DeadlineExceeded) as caught, deadline(seconds):
            await pause(0.001) if seconds else None
            await pool.request("GET", URL)
        assert caught.value.origin in {ORIGIN, None}
        assert len(backend.steps) == steps


async def test_the_time_out_and_the_answer_in_the_same_moment_F05(
    backend: MemoryBackend, virtual: bool
) -> None:
    """Either the one or the other, at every order of the two; and nothing is lost or held."""
    if not virtual:
        return
    late: list[MemoryStream] = []
    backend.answer = lambda stream, head, body: late.append(stream)
    outcomes: set[type] = set()
    async with checked_pool(backend) as pool:

        async def answer(delay: float) -> None:
            await until(lambda: late)
            await pause(delay)
            late.pop().feed(response(b"late"))

        for turn in range(1000):
            async with Jobs() as jobs:
                jobs.start(answer, 1.0 + (turn % 5 - 2) * 1e-9)
                try:
                    if turn % 2:
                        outcome = (
                            await pool.request("GET", URL, extensions={"timeout": {"read": 1.0}})
                        ).content
                    else:
                        with deadline(1.0):
                            outcome = (await pool.request("GET", URL)).content
                except (ReadTimeout, DeadlineExceeded) as error:
                    outcomes.add(type(error))
                else:
                    assert outcome == b"late"
                    outcomes.add(bytes)
                await until(lambda: not late, 100) if not late else None
                await pause(1.0)
                late.clear()
            check_invariant(pool, backend)
        assert len(outcomes) >= 2


async def test_time_outs_and_cancellations_are_never_confused_F06(
    backend: MemoryBackend, virtual: bool
) -> None:
    """The caller's own `TimeoutError`, a scope of the loop's around it, a task's end: each comes out as what it is."""
    if not virtual:
        return

    async def trace(event: str, info: dict[str, Any]) -> None:
        raise TimeoutError("mine")

    backend.answer = silent
    async with checked_pool(backend) as pool:
        with pytest.raises(TimeoutError, match="mine") as caught, deadline(1.0):
            await pool.request("GET", URL, extensions={"trace": trace})
        assert not isinstance(caught.value, LaminaError)
        start = now()
        if asyncio._get_running_loop() is not None:
            with pytest.raises(TimeoutError) as caught:
                async with asyncio.timeout(1.0):
                    with deadline(2.0):
                        await pool.request("GET", URL)
            assert not isinstance(caught.value, LaminaError)
            with pytest.raises(DeadlineExceeded):
                async with asyncio.timeout(2.0):
                    with deadline(1.0):
                        await pool.request("GET", URL)
        else:
            with trio.move_on_after(1.0) as scope, deadline(2.0):
                await pool.request("GET", URL)
            assert scope.cancelled_caught
            with trio.move_on_after(2.0) as scope, pytest.raises(DeadlineExceeded), deadline(1.0):
                await pool.request("GET", URL)
            assert not scope.cancelled_caught
        assert now() - start == pytest.approx(2.0, abs=1e-3)


async def test_a_pool_timeout_of_zero_takes_what_is_free_and_waits_for_nothing(
    backend: MemoryBackend,
) -> None:
    zero = {"timeout": {"pool": 0}}
    async with checked_pool(backend, max_connections=1) as pool:
        await ask(pool, extensions=zero)
        async with pool.stream("GET", URL):
            with pytest.raises(PoolTimeout, match="1 active"):
                await pool.request("GET", URL, extensions=zero)
        await ask(pool, extensions=zero)


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (broken, (ReadError, WriteError)),
        (lambda stream, head, body: stream.feed_eof(), RemoteProtocolError),
        (lambda stream, head, body: stream.feed(b"nonsense\r\n\r\n"), RemoteProtocolError),
        (half_and_end, RemoteProtocolError),
        (half_and_reset, ReadError),
    ],
)
async def test_errors_name_the_origin(backend: MemoryBackend, answer: Any, error: Any) -> None:
    backend.answer = answer
    async with checked_pool(backend) as pool:
        with pytest.raises(error) as caught:
            await pool.request("GET", URL)
        assert caught.value.origin == ORIGIN
        assert str(caught.value)
        assert backend.live == 0


@pytest.mark.parametrize("step", ["connect", "write", "read"])
async def test_what_a_custom_backend_raises_comes_out_as_it_is_G06(backend: MemoryBackend, step: str) -> None:
    async with checked_pool(backend) as pool:
        backend.fail_at = ["connect", "write", "read"].index(step) + 1
        with pytest.raises(RuntimeError, match=step):
            await pool.request("GET", URL)
        check_invariant(pool, backend)
        await ask(pool)


# --- many tasks --------------------------------------------------------------------------------------------


async def test_first_come_first_served_H02(backend: MemoryBackend) -> None:
    served: list[int] = []
    async with checked_pool(backend, max_connections=1) as pool:

        async def one(number: int) -> None:
            await ask(pool)
            served.append(number)

        async with Jobs() as jobs:
            held = await pool.handle_async_request(request_for(URL))
            for number in range(30):
                jobs.start(one, number)
                await until(lambda: pool.stats().queued == number + 1)  # noqa: B023 - is called at once
            await held.aclose()
            await until(lambda: len(served) == 30)
    assert served == list(range(30))
    assert backend.peak == 1


async def test_a_busy_origin_does_not_starve_another_H03(backend: MemoryBackend) -> None:
    done: list[str] = []
    async with checked_pool(backend, max_connections=2) as pool:

        async def hot() -> None:
            for _ in range(20):
                await ask(pool)
                done.append("hot")

        async def cold() -> None:
            await ask(pool, url(host="cold.example"))
            done.append("cold")

        async with Jobs() as jobs:
            workers = [jobs.start(hot) for _ in range(10)]
            await until(lambda: len(done) > 10)
            queued = pool.stats().queued
            before = len(done)
            await jobs.start(cold).result()
            assert done[before:].index("cold") <= 2 * (queued + 2)
            for worker in workers:
                await worker.result()
    assert backend.peak <= 2


async def test_a_thousand_tasks_open_no_more_connections_than_needed_H06(backend: MemoryBackend) -> None:
    async with checked_pool(backend, max_connections=20) as pool:
        async with Jobs() as jobs:
            tasks = [jobs.start(ask, pool) for _ in range(1000)]
            for task in tasks:
                await task.result()
        assert len(backend.streams) == backend.peak == 20
        assert sum(len(stream.requests) for stream in backend.streams) == 1000


@pytest.mark.parametrize("fault", ["cancel", "deadline"])
async def test_a_read_that_was_given_up_gives_the_connection_up(backend: MemoryBackend, fault: str) -> None:
    """At once, although the response is still held, and not closed yet."""
    backend.answer = half
    async with checked_pool(backend) as pool, Jobs() as jobs:
        answer = await pool.handle_async_request(request_for(URL))

        async def read() -> None:
            with deadline(0.01 if fault == "deadline" else None):
                await answer.aread()

        reader = jobs.start(read)
        await until(lambda: backend.streams[0]._waiting)
        if fault == "cancel":
            reader.cancel()
            await reader.outcome()
        else:
            error = await reader.outcome_in_time()
            assert isinstance(error, DeadlineExceeded)
            assert (error.phase, error.origin) == ("read", ORIGIN)
        check_invariant(pool, backend)
        assert backend.live == 0
        with pytest.raises(ResponseStateError):
            await anext(answer.stream)  # type: ignore[call-overload] # it is async
        await answer.aclose()


async def test_who_is_served_without_having_slept_is_not_woken_in_the_place_of_others_G08(
    backend: MemoryBackend,
) -> None:
    """An idle connection to another origin was closed for it. Later a response is dropped while somebody waits."""
    async with checked_pool(backend, max_connections=1) as pool, Jobs() as jobs:
        await ask(pool)
        await ask(pool, url(host="other.example"))
        check_invariant(pool, backend)
        dropped = [await pool.handle_async_request(request_for(URL))]
        waiter = jobs.start(ask, pool)
        await until(lambda: pool.stats().queued)
        await checkpoints(3)
        with pytest.warns(ResourceWarning, match="never read"):
            dropped.clear()
            await waiter.result()


async def test_two_tasks_cannot_read_one_body_H04(backend: MemoryBackend) -> None:
    backend.answer = half
    async with checked_pool(backend) as pool, Jobs() as jobs:
        answer = await pool.handle_async_request(request_for(URL))
        assert await anext(aiter(answer.stream)) == b"some"  # type: ignore[arg-type] # it is async
        reader = jobs.start(anext, aiter(answer.stream))  # type: ignore[arg-type] # it is async
        await until(lambda: backend.streams[0]._waiting)
        with pytest.raises(ConcurrencyError, match="another thread or task"):
            await anext(aiter(answer.stream))  # type: ignore[arg-type] # it is async
        await answer.aclose()
        assert isinstance(await reader.outcome(), ReadError)
        assert backend.live == 0


async def test_waiters_that_give_up_pass_their_turn_on_G03(
    backend: MemoryBackend, anyio_backend: Any
) -> None:
    """Every second one is cancelled, half of these when the connection has just been handed to it."""
    served: list[int] = []
    async with checked_pool(backend, max_connections=1) as pool:

        async def one(number: int) -> None:
            await ask(pool)
            served.append(number)

        async with Jobs() as jobs:
            held = await pool.handle_async_request(request_for(URL))
            waiters = []
            for number in range(20):
                waiters.append(jobs.start(one, number))
                await until(lambda: pool.stats().queued == number + 1)  # noqa: B023 - is called at once
            for number in range(2, 20, 4):
                waiters[number].cancel()
            await until(lambda: pool.stats().queued == 15)
            await held.aclose()
            assert pool.stats().queued == 14  # the first has it, and has not yet gone on
            for number in range(0, 20, 4):
                waiters[number].cancel()
            for waiter in waiters:
                await waiter.outcome()
    assert served == list(range(1, 20, 2))
    # trio lets a task that has got what it waited for go on to its next wait, where it takes the connection with it.
    assert len(backend.streams) == (2 if anyio_backend[0] == "trio" else 1)
    assert backend.peak == 1


async def test_a_cancelled_dial_passes_its_place_on_G04(backend: MemoryBackend) -> None:
    """Over HTTP/1.1 a connection is one request's; who waits behind a cancelled dial opens one of its own."""
    backend.on_connect = never
    async with checked_pool(backend, max_connections=1) as pool, Jobs() as jobs:
        first = jobs.start(ask, pool)
        await until(lambda: pool.stats().connecting)
        second = jobs.start(ask, pool)
        await until(lambda: pool.stats().queued)
        backend.on_connect = None
        first.cancel()
        await first.outcome()
        await second.result()
        assert [stream.is_closed for stream in backend.streams] == [False]
        assert idle_streams(pool) == backend.streams


# --- closing -----------------------------------------------------------------------------------------------


async def test_a_request_after_close_is_refused_and_opens_nothing_I01(backend: MemoryBackend) -> None:
    pool = AsyncConnectionPool(network_backend=backend)
    await ask(pool)
    await pool.aclose()
    for _ in range(2):
        with pytest.raises(PoolClosed):
            await pool.request("GET", URL)
        with pytest.raises(PoolClosed):
            async with pool.stream("GET", "http://other.example/"):
                pass
    assert len(backend.streams) == 1
    check_invariant(pool, backend)


async def test_closing_ends_everything_at_once_I02(backend: MemoryBackend, virtual: bool) -> None:
    """Readers, writers, queued, connecting, in a handshake, in the pause before a retry."""
    tasks = all_tasks()

    async def by_host(host: str, limit: Limit) -> None:
        if host == "blackhole.example":
            await never(host, limit)
        if host == "refused.example":
            raise ConnectError("refused")

    backend.on_connect = by_host
    backend.answer = lambda stream, head, body: half(stream, head, body) if b"/half" in head else None
    backend.hear = lambda stream, data: setattr(stream, "stalls", b"/stall" in data)
    backend.write_size = 65536
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    pool = AsyncConnectionPool(network_backend=backend, max_connections=60, retries=5, ssl_context=context)
    targets = [
        "http://example.com/", "http://example.com/half", "http://example.com/stall", "http://blackhole.example/",
        "http://refused.example/", "https://tls.example/",
    ]  # fmt: skip
    async with Jobs() as jobs:
        for target in targets:
            for _ in range(10):
                content = b"x" * 200_000 if "stall" in target else None
                jobs.start(pool.request, "POST", target, content=content)
                before = len(jobs.started)
                await until(lambda: pool.stats().connections == before)  # noqa: B023 - is called at once
        await until(lambda: pool.stats().active == 30 and len(backend.sleeps) >= 20)
        for target in targets:
            jobs.start(pool.request, "POST", target)
        await until(lambda: pool.stats() == PoolStats(60, 30, 0, 30, 6, 30))
        start = now()
        await pool.aclose()
        outcomes = [await job.outcome() for job in jobs.started]
        assert not virtual or now() - start < 0.01
    assert {type(outcome) for outcome in outcomes} == {PoolClosed}
    assert {outcome.origin for outcome in outcomes} == {
        ORIGIN, "http://blackhole.example:80", "http://refused.example:80", "https://tls.example:443",
    }  # fmt: skip
    assert all(str(outcome) for outcome in outcomes)
    check_invariant(pool, backend, tasks)
    assert backend.live == 0


async def test_close_twice_side_by_side_and_with_an_exception_I03(backend: MemoryBackend) -> None:
    async with AsyncConnectionPool(network_backend=backend) as pool, Jobs() as jobs:
        for number in range(5):
            await ask(pool, url(host=f"host{number}.example"))
        for job in [jobs.start(pool.aclose) for _ in range(10)]:
            await job.result()
        await pool.aclose()
        check_invariant(pool, backend)
    with pytest.raises(KeyError, match="mine"):
        async with AsyncConnectionPool(network_backend=backend) as pool, pool.stream("GET", URL):
            raise KeyError("mine")
    assert backend.live == 0


async def test_closing_is_not_taken_for_the_end_of_a_body_A16(backend: MemoryBackend) -> None:
    backend.answer = lambda stream, head, body: stream.feed(b"HTTP/1.1 200 OK\r\n\r\nsome")
    async with checked_pool(backend) as pool, Jobs() as jobs:
        answer = await pool.handle_async_request(request_for(URL))
        reader = jobs.start(answer.aread)
        await until(lambda: backend.streams[0].reads == 2)
        await pool.aclose()
        assert isinstance(await reader.outcome(), PoolClosed)


# --- what it costs -----------------------------------------------------------------------------------------


async def test_a_reused_connection_costs_no_task_no_timer_no_scope(
    backend: MemoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def counting(name: str, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            made.append(name)
            return function(*args, **kwargs)

        return counted

    async with checked_pool(backend) as pool:
        await ask(pool)
        tasks = all_tasks()
        if asyncio._get_running_loop() is not None:
            for name in ("create_task", "call_later", "call_at"):
                kind: Any = asyncio.BaseEventLoop
                monkeypatch.setattr(kind, name, counting(name, getattr(kind, name)))
        monkeypatch.setattr(trio.CancelScope, "__enter__", counting("scope", trio.CancelScope.__enter__))
        monkeypatch.setattr(trio.Nursery, "start_soon", counting("start_soon", trio.Nursery.start_soon))
        monkeypatch.setattr("lamina_pool._dialling.DeadlineBlock", counting("block", None))
        monkeypatch.setattr("lamina_pool._suspending.DeadlineBlock", counting("block", None))
        async with pool.stream("POST", URL, content=b"x") as answer:
            await answer.aread()
        await ask(pool)
        monkeypatch.undo()
        assert made == []
        assert all_tasks() == tasks
        check_invariant(pool, backend, tasks)


async def test_between_requests_nothing_of_the_pool_runs(backend: MemoryBackend) -> None:
    tasks = all_tasks()
    async with AsyncConnectionPool(network_backend=backend, keepalive_expiry=1.0) as pool:
        for _ in range(3):
            await ask(pool)
            assert all_tasks() == tasks
        async with pool.stream("GET", URL) as answer:
            assert all_tasks() == tasks
            assert await answer.aread() == target_of(b"GET / HTTP/1.1")
    assert all_tasks() == tasks
