"""The async adapters between the two dialects: a stream that simply awaits is bounded as one of lamina's own."""

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio.testing

from interfaces_loops import VirtualLoop
from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    ArgumentTypeError,
    ArgumentValueError,
    AsyncNetworkBackend,
    AsyncNetworkBackendInterface,
    AsyncNetworkStream,
    AsyncNetworkStreamInterface,
    ConnectAttempt,
    ConnectTimeout,
    DeadlineBlock,
    DeadlineExceeded,
    LaminaError,
    Limit,
    Phase,
    ReadError,
    ReadTimeout,
    TimeoutException,
    UnsupportedProtocol,
    WriteTimeout,
    async_backend_from_interface,
    async_interface_from_backend,
    async_interface_from_stream,
    async_stream_from_interface,
    current_deadline,
    current_runtime,
)

pytestmark = pytest.mark.anyio

CONTEXT = ssl.create_default_context()


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "asyncio":
        return ("asyncio", {"loop_factory": VirtualLoop})
    return ("trio", {"clock": trio.testing.MockClock(autojump_threshold=0)})


@pytest.fixture(autouse=True)
async def no_deadline_is_left() -> AsyncIterator[None]:
    assert current_deadline() is None
    yield
    assert current_deadline() is None


class Deadlined:
    """What `lamina_timeouts.timeout` is: a context manager around a `DeadlineBlock`."""

    def __init__(self, seconds: float | None) -> None:
        self.block = DeadlineBlock(seconds)

    def __enter__(self) -> DeadlineBlock:
        self.block.open()
        return self.block

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        error = self.block.close(exc_type, exc, traceback)
        if error is not None:
            raise error from exc


class SlowStream(AsyncNetworkStreamInterface):
    """A stream of the second dialect in which everything takes `seconds`, and which never heard of deadlines."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.calls: list[tuple[Any, ...]] = []

    async def _wait(self) -> None:
        await (anyio.sleep(self.seconds) if self.seconds else anyio.lowlevel.checkpoint())

    async def read(self, max_bytes: int | None = None) -> bytes:
        self.calls.append(("read", max_bytes))
        await self._wait()
        return b"hello"

    async def write(self, data: bytes) -> None:
        self.calls.append(("write", data))
        await self._wait()

    async def start_tls(self, ctx: ssl.SSLContext, hostname: str | None = None) -> Any:
        self.calls.append(("start_tls", ctx, hostname))
        await self._wait()

    def get_extra_info(self, key: str) -> Any:
        return f"the {key}"

    async def close(self) -> None:
        self.calls.append(("close",))

    def __repr__(self) -> str:
        return "<SlowStream>"


class SlowBackend(AsyncNetworkBackendInterface):
    """Connects to a `SlowStream` in as many seconds as the stream takes."""

    def __init__(self, stream: SlowStream) -> None:
        self.stream = stream

    async def connect(self, host: str, port: int) -> AsyncNetworkStreamInterface:
        self.stream.calls.append(("connect", host, port))
        await self.stream._wait()
        return self.stream

    def __repr__(self) -> str:
        return "<SlowBackend>"


# --- towards the first dialect: what is called -------------------------------------------------------------


async def test_a_stream_of_the_second_dialect_serves_as_one_of_the_first() -> None:
    inner = SlowStream()
    stream = async_stream_from_interface(inner)
    assert isinstance(stream, AsyncNetworkStream)
    assert await stream.read() == b"hello"
    assert await stream.read(max_bytes=10, timeout=1.0) == b"hello"
    await stream.write(b"data")
    assert stream.get_extra_info("server_addr") == "the server_addr"
    assert repr(stream) == "<SlowStream>"
    async with stream:
        pass
    assert inner.calls == [("read", None), ("read", 10), ("write", b"data"), ("close",)]


async def test_abort_is_passed_on_where_there_is_one() -> None:
    with pytest.raises(NotImplementedError):
        async_stream_from_interface(SlowStream()).abort()

    class Abortable(SlowStream):
        def abort(self) -> None:
            self.calls.append(("abort",))

    inner = Abortable()
    async_stream_from_interface(inner).abort()
    assert inner.calls == [("abort",)]


@pytest.mark.parametrize(
    "buffer", [b"data", bytearray(b"data"), memoryview(b"data"), memoryview(b".data.")[1:-1]]
)
async def test_a_stream_of_the_second_dialect_is_given_bytes(buffer: bytes | bytearray | memoryview) -> None:
    inner = SlowStream()
    await async_stream_from_interface(inner).write(buffer)
    [(_, data)] = inner.calls
    assert type(data) is bytes
    assert data == b"data"


@pytest.mark.parametrize("buffer", ["data", 4, None, [100]])
async def test_what_is_not_bytes_is_refused_before_the_stream_sees_it(buffer: Any) -> None:
    inner = SlowStream()
    with pytest.raises(ArgumentTypeError, match=type(buffer).__name__):
        await async_stream_from_interface(inner).write(buffer)
    assert inner.calls == []


async def test_start_tls_goes_on_with_the_stream_that_it_returns_or_with_the_same() -> None:
    inside = SlowStream()

    class Upgrading(SlowStream):
        async def start_tls(self, ctx: ssl.SSLContext, hostname: str | None = None) -> Any:
            return inside

    for inner, goes_on_with in ((outside := Upgrading(), inside), (same := SlowStream(), same)):
        stream = async_stream_from_interface(inner)
        assert await stream.start_tls(CONTEXT, server_hostname="example.com") is stream
        await stream.write(b"secret")
        assert goes_on_with.calls[-1] == ("write", b"secret")
    assert outside.calls == []
    assert same.calls[0] == ("start_tls", CONTEXT, "example.com")


async def test_a_backend_of_the_second_dialect_serves_as_one_of_the_first() -> None:
    inner = SlowStream()
    backend = async_backend_from_interface(SlowBackend(inner))
    assert isinstance(backend, AsyncNetworkBackend)
    stream = await backend.connect_tcp("example.com", 80, timeout=3.0, socket_options=[])
    assert isinstance(stream, AsyncNetworkStream)
    await stream.write(b"data")
    assert inner.calls == [("connect", "example.com", 80), ("write", b"data")]
    assert repr(backend) == "<SlowBackend>"


@pytest.mark.parametrize("options", [{"local_address": "127.0.0.1"}, {"socket_options": [(6, 1, 1)]}])
async def test_what_connect_has_no_place_for_is_refused(options: dict[str, Any]) -> None:
    inner = SlowStream()
    with pytest.raises(ArgumentValueError, match="no local address or socket options"):
        await async_backend_from_interface(SlowBackend(inner)).connect_tcp("example.com", 80, **options)
    with pytest.raises(UnsupportedProtocol, match="<SlowBackend> connects to a host and a port only"):
        await async_backend_from_interface(SlowBackend(inner)).connect_unix_socket("/run/socket")
    assert inner.calls == []


# --- towards the first dialect: time -----------------------------------------------------------------------

Call = Callable[[SlowStream, float | None], Awaitable[object]]

CALLS: dict[str, tuple[Call, type[TimeoutException], Phase]] = {
    "read": (
        lambda inner, timeout: async_stream_from_interface(inner).read(timeout=timeout),
        ReadTimeout,
        "read",
    ),
    "write": (
        lambda inner, timeout: async_stream_from_interface(inner).write(b"x", timeout=timeout),
        WriteTimeout,
        "write",
    ),
    "start_tls": (
        lambda inner, timeout: async_stream_from_interface(inner).start_tls(CONTEXT, timeout=timeout),
        ConnectTimeout,
        "tls",
    ),
    "connect": (
        lambda inner, timeout: async_backend_from_interface(SlowBackend(inner)).connect_tcp(
            "a", 1, timeout=timeout
        ),
        ConnectTimeout,
        "connect",
    ),
}

every_call = pytest.mark.parametrize(("call", "error", "phase"), CALLS.values(), ids=CALLS)


@every_call
@pytest.mark.parametrize(("timeout", "deadline"), [(None, None), (3, None), (None, 3), (3, 3)])
async def test_what_is_done_in_time_is_done(
    call: Call, error: type[TimeoutException], phase: Phase, timeout: float | None, deadline: float | None
) -> None:
    begun = anyio.current_time()
    with Deadlined(deadline) as ambient:
        await call(SlowStream(2.0), timeout)
        assert current_deadline() is ambient.deadline
    assert anyio.current_time() - begun == 2.0


@every_call
@pytest.mark.parametrize("deadline", [None, 5.0])
@pytest.mark.parametrize("seconds", [60.0, float("inf")])
async def test_a_time_out_comes_out_as_the_first_dialect_has_it(
    call: Call, error: type[TimeoutException], phase: Phase, deadline: float | None, seconds: float
) -> None:
    begun = anyio.current_time()
    with Deadlined(deadline):
        with pytest.raises(TimeoutException) as caught:
            await call(SlowStream(seconds), 2.0)
        await anyio.sleep(1.0)
    assert type(caught.value) is error
    assert (caught.value.phase, caught.value.elapsed, caught.value.limit) == (phase, 2.0, 2.0)
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert anyio.current_time() - begun == 3.0


@every_call
@pytest.mark.parametrize("timeout", [None, 2.0, 5.0])
async def test_an_outer_deadline_comes_out_as_itself_with_the_phase(
    call: Call, error: type[TimeoutException], phase: Phase, timeout: float | None
) -> None:
    begun = anyio.current_time()
    with pytest.raises(DeadlineExceeded) as caught, Deadlined(2.0) as ambient:
        await call(SlowStream(60.0), timeout)
    assert caught.value.deadline is ambient.deadline
    assert (caught.value.phase, caught.value.elapsed, caught.value.limit) == (phase, 2.0, 2.0)
    assert anyio.current_time() - begun == 2.0


@every_call
async def test_a_scope_of_somebody_else_passes(
    call: Call, error: type[TimeoutException], phase: Phase
) -> None:
    with anyio.move_on_after(1.0) as scope, Deadlined(9.0):
        await call(SlowStream(60.0), 5.0)
    assert scope.cancelled_caught


@every_call
async def test_a_limit_that_has_passed_begins_nothing(
    call: Call, error: type[TimeoutException], phase: Phase
) -> None:
    inner = SlowStream()
    with pytest.raises(error):
        await call(inner, 0)
    with pytest.raises(DeadlineExceeded), Deadlined(0):
        await call(inner, 3.0)
    # A handshake that does not come about leaves no stream behind.
    assert set(inner.calls) == ({("close",)} if phase == "tls" else set())


@every_call
@pytest.mark.parametrize(
    ("timeout", "refusal"),
    [(-1, ArgumentValueError), (float("nan"), ArgumentValueError), ("3", ArgumentTypeError)],
)
async def test_a_time_out_that_is_no_number_of_seconds_begins_nothing(
    call: Call, error: type[TimeoutException], phase: Phase, timeout: Any, refusal: type[LaminaError]
) -> None:
    inner = SlowStream()
    with pytest.raises(refusal):
        await call(inner, timeout)
    # A handshake that does not come about leaves no stream behind.
    assert set(inner.calls) == ({("close",)} if phase == "tls" else set())


ATTEMPTS = (ConnectAttempt("192.0.2.1:80", None, 2.0),)


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("outer", [None, 1.0])
async def test_what_the_backend_knew_is_not_lost_with_the_translation(
    looks: bool, outer: float | None
) -> None:
    """Whether it sees the limit by itself, or is cancelled and leaves word."""

    class Knowing(AsyncNetworkBackendInterface):
        async def connect(self, host: str, port: int) -> AsyncNetworkStreamInterface:
            limit = Limit(None, current_runtime().now, "dns")
            try:
                if looks:
                    await current_runtime().create_event().wait(limit.remaining())
                else:
                    await anyio.sleep_forever()
            except BaseException:
                error = limit.error()
                error.attempts = ATTEMPTS
                limit.interrupted(error)
                raise
            error = limit.error()
            error.attempts = ATTEMPTS
            raise error

    with pytest.raises(TimeoutException) as caught, Deadlined(outer):
        await async_backend_from_interface(Knowing()).connect_tcp("example.com", 80, timeout=2.0)
    assert type(caught.value) is (ConnectTimeout if outer is None else DeadlineExceeded)
    assert (caught.value.phase, caught.value.attempts) == ("dns", ATTEMPTS)


@pytest.mark.parametrize("error", [ReadError("reset"), TimeoutError("the caller's own"), KeyError()])
async def test_any_other_error_passes_as_it_is(error: Exception) -> None:
    class Failing(SlowStream):
        async def read(self, max_bytes: int | None = None) -> bytes:
            raise error

    with pytest.raises(type(error)) as caught:
        await async_stream_from_interface(Failing()).read(timeout=3.0)
    assert caught.value is error
    assert caught.value.__cause__ is None


# --- towards the first dialect: sleep ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "deadline"), [(2.0, None), (2.0, 3.0), (0, None), (0, 3.0), (200.0, None)]
)
async def test_sleep_takes_its_seconds(seconds: float, deadline: float | None) -> None:
    begun = anyio.current_time()
    with Deadlined(deadline):
        await async_backend_from_interface(SlowBackend(SlowStream())).sleep(seconds)
    assert anyio.current_time() - begun == seconds


@pytest.mark.parametrize(("seconds", "deadline"), [(2.0, 1.0), (1.0, 1.0), (float("inf"), 1.0), (0, 0)])
async def test_sleep_ends_at_the_deadline(seconds: float, deadline: float) -> None:
    begun = anyio.current_time()
    with pytest.raises(DeadlineExceeded) as caught, Deadlined(deadline) as ambient:
        await async_backend_from_interface(SlowBackend(SlowStream())).sleep(seconds)
    assert caught.value.deadline is ambient.deadline
    assert anyio.current_time() - begun == deadline


async def test_sleep_refuses_a_negative_number() -> None:
    with pytest.raises(ArgumentValueError, match="seconds must not be negative"):
        await async_backend_from_interface(SlowBackend(SlowStream())).sleep(-1.0)


# --- towards the second dialect ----------------------------------------------------------------------------


class RecordingStream(AsyncNetworkStream):
    """A stream of the first dialect that notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        self.calls.append(("read", max_bytes, timeout))
        Limit(timeout, current_runtime().now, "read").check()
        return b"hello"

    async def write(self, buffer: bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        self.calls.append(("write", buffer, timeout))

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        self.calls.append(("start_tls", ssl_context, server_hostname, timeout))
        return RecordingStream()

    def get_extra_info(self, info: str) -> Any:
        return f"the {info}"

    async def aclose(self) -> None:
        self.calls.append(("aclose",))

    def __repr__(self) -> str:
        return "<RecordingStream>"


class RecordingBackend(AsyncNetworkBackend):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    async def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> AsyncNetworkStream:
        self.calls.append((host, port, args, kwargs))
        return RecordingStream()

    def __repr__(self) -> str:
        return "<RecordingBackend>"


async def test_a_stream_of_the_first_dialect_serves_as_one_of_the_second() -> None:
    inner = RecordingStream()
    stream = async_interface_from_stream(inner)
    assert isinstance(stream, AsyncNetworkStreamInterface)
    assert await stream.read() == b"hello"
    assert await stream.read(10) == b"hello"
    await stream.write(b"data")
    assert stream.get_extra_info("socket") == "the socket"
    assert repr(stream) == "<RecordingStream>"
    async with stream:
        pass
    # A stream after the first document has `read(max_bytes)`: the number is not left to it.
    assert inner.calls == [
        ("read", DEFAULT_READ_SIZE, None),
        ("read", 10, None),
        ("write", b"data", None),
        ("aclose",),
    ]


async def test_start_tls_of_the_second_dialect_upgrades_in_place() -> None:
    inner = RecordingStream()
    stream = async_interface_from_stream(inner)
    assert await stream.start_tls(CONTEXT, hostname="example.com") is stream
    await stream.write(b"secret")
    assert inner.calls == [("start_tls", CONTEXT, "example.com", None)], (
        "the write went to the upgraded stream"
    )


async def test_a_backend_of_the_first_dialect_serves_as_one_of_the_second() -> None:
    inner = RecordingBackend()
    backend = async_interface_from_backend(inner)
    assert isinstance(backend, AsyncNetworkBackendInterface)
    async with await backend.connect("example.com", 80) as stream:
        assert isinstance(stream, AsyncNetworkStreamInterface)
        assert await stream.read() == b"hello"
        with pytest.raises(DeadlineExceeded), Deadlined(0):
            await stream.read()
    assert inner.calls == [("example.com", 80, (), {})]
    assert repr(backend) == "<RecordingBackend>"


# --- the base classes --------------------------------------------------------------------------------------


async def test_a_custom_stream_implements_only_what_it_needs() -> None:
    for awaitable in (
        AsyncNetworkStreamInterface().read(),
        AsyncNetworkStreamInterface().write(b""),
        AsyncNetworkStreamInterface().start_tls(CONTEXT),
        AsyncNetworkStreamInterface().close(),
        AsyncNetworkBackendInterface().connect("example.com", 80),
    ):
        with pytest.raises(NotImplementedError):
            await awaitable
    assert AsyncNetworkStreamInterface().get_extra_info("socket") is None
