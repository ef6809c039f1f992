"""The scripted backends: one body for the blocking and the async ones, in every runtime that is installed."""

import asyncio
import ssl
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    AsyncNetworkBackend,
    AsyncNetworkStream,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    LaminaError,
    NetworkBackend,
    NetworkStream,
    ReadError,
    ReadTimeout,
    TimeoutException,
    WriteError,
    WriteTimeout,
    close_deadline,
    current_deadline,
    drive,
    open_deadline,
    running_runtime,
)
from lamina_mock import AsyncMockBackend, AsyncMockStream, MockBackend, MockStream

CONTEXT = ssl.create_default_context()


# --- one body, every face ----------------------------------------------------------------------------------


class AsyncNames:
    """A blocking stream or backend under the method names of an async one."""

    def __init__(self, blocking: Any) -> None:
        self.blocking = blocking

    def __getattr__(self, name: str) -> Any:
        if name in {"get_extra_info", "abort"}:
            return getattr(self.blocking, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            result = getattr(self.blocking, "close" if name == "aclose" else name)(*args, **kwargs)
            return AsyncNames(result) if isinstance(result, MockStream) else result

        return call

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AsyncNames) and self.blocking is other.blocking

    __hash__ = None  # type: ignore[assignment]  # as for every class that only defines __eq__

    def __repr__(self) -> str:
        return repr(self.blocking)


def run_in_trio(coroutine: Coroutine[Any, Any, Any]) -> Any:
    trio = sys.modules["trio"]

    async def main() -> Any:
        return await coroutine

    return trio.run(main)


class Face(NamedTuple):
    """One of the kinds of mock, and what it runs in."""

    name: str
    backend: Callable[..., Any]
    stream: Callable[..., Any]
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    now: Callable[[], float]


def blocking_face() -> Face:
    return Face(
        "threads",
        lambda *args, **kwargs: AsyncNames(MockBackend(*args, **kwargs)),
        lambda *args, **kwargs: AsyncNames(MockStream(*args, **kwargs)),
        drive,
        time.monotonic,
    )


def driven_face() -> Face:
    return Face("threads", AsyncMockBackend, AsyncMockStream, drive, time.monotonic)


def asyncio_face() -> Face:
    return Face(
        "asyncio", AsyncMockBackend, AsyncMockStream, asyncio.run, lambda: asyncio.get_running_loop().time()
    )


def trio_face() -> Face:
    trio = pytest.importorskip("trio")
    return Face("trio", AsyncMockBackend, AsyncMockStream, run_in_trio, trio.current_time)


@pytest.fixture(params=[blocking_face, driven_face, asyncio_face, trio_face], ids=lambda make: make.__name__)
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    made: Face = request.param()
    yield made
    assert current_deadline() is None


def test_each_face_runs_in_its_runtime(face: Face) -> None:
    async def body() -> str:
        return running_runtime()

    assert face.run(body()) == face.name


async def read_all(stream: Any, max_bytes: int | None = None) -> list[bytes]:
    parts: list[bytes] = []
    for _ in range(10_000):
        part = await stream.read(max_bytes)
        if not part:
            return parts
        parts.append(part)
    raise AssertionError("the stream does not end")


# --- reading -----------------------------------------------------------------------------------------------


def test_each_read_gives_one_item_and_then_the_end_for_good(face: Face) -> None:
    async def body() -> list[bytes]:
        stream = face.stream([b"HTTP/1.1 200 OK\r\n", b"\r\n", b"Hello"])
        return [await stream.read(max_bytes=4096) for _ in range(6)]

    assert face.run(body()) == [b"HTTP/1.1 200 OK\r\n", b"\r\n", b"Hello", b"", b"", b""]


def test_an_item_longer_than_max_bytes_comes_in_parts(face: Face) -> None:
    async def body() -> list[bytes]:
        return await read_all(face.stream([b"Hello, world!", b"Bye"]), 5)

    assert face.run(body()) == [b"Hello", b", wor", b"ld!", b"Bye"]


def test_a_read_without_number_gives_at_most_64_kib(face: Face) -> None:
    async def body() -> list[int]:
        return [len(part) for part in await read_all(face.stream([b"x" * 100_000]))]

    assert face.run(body()) == [65_536, 34_464]


@given(
    script=st.lists(st.binary(min_size=1, max_size=20), max_size=8),
    sizes=st.lists(st.integers(1, 25) | st.none(), min_size=1, max_size=8),
)
def test_no_byte_is_lost_or_added_however_it_is_read(script: list[bytes], sizes: list[int | None]) -> None:
    stream = MockStream(script)
    received = []
    for turn in range(1000):
        size = sizes[turn % len(sizes)]
        part = stream.read(size)
        assert size is None or len(part) <= size
        if not part:
            break
        received.append(part)
    assert b"".join(received) == b"".join(script)


def test_an_empty_item_is_the_end_of_the_stream(face: Face) -> None:
    async def body() -> list[bytes]:
        stream = face.stream([b"first", b"", b"never"])
        return [await stream.read(100) for _ in range(4)]

    assert face.run(body()) == [b"first", b"", b"", b""]


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_a_read_of_no_bytes_is_refused(face: Face, max_bytes: int) -> None:
    async def body() -> bytes:
        stream = face.stream([b"data"])
        with pytest.raises(ArgumentValueError, match="max_bytes must be at least 1"):
            await stream.read(max_bytes)
        return bytes(await stream.read(10))

    assert face.run(body()) == b"data"


# --- writing and TLS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [b"", b"GET / HTTP/1.1", bytearray(b"x"), memoryview(b"x")])
def test_what_is_written_is_taken(face: Face, buffer: bytes) -> None:
    assert face.run(face.stream([]).write(buffer)) is None


@pytest.mark.parametrize("buffer", ["text", 3, None, [1, 2]])
def test_what_is_not_bytes_is_refused(face: Face, buffer: Any) -> None:
    with pytest.raises(ArgumentTypeError, match=f"write takes bytes, not {type(buffer).__name__}"):
        face.run(face.stream([]).write(buffer))


def test_start_tls_upgrades_in_place(face: Face) -> None:
    async def body() -> bytes:
        stream = face.stream([b"data"])
        assert await stream.start_tls(CONTEXT, server_hostname="example.com", timeout=3.0) == stream
        return bytes(await stream.read(10))

    assert face.run(body()) == b"data"


@pytest.mark.parametrize(
    ("options", "protocol"), [({}, "http/1.1"), ({"http2": False}, "http/1.1"), ({"http2": True}, "h2")]
)
@pytest.mark.parametrize("upgraded", [False, True])
def test_alpn_has_chosen_what_the_mock_was_told(
    face: Face, options: dict[str, bool], protocol: str, upgraded: bool
) -> None:
    async def body() -> str:
        stream = await face.backend([], **options).connect_tcp("example.com", 443)
        if upgraded:
            await stream.start_tls(CONTEXT)
        return str(stream.get_extra_info("ssl_object").selected_alpn_protocol())

    assert face.run(body()) == protocol


@pytest.mark.parametrize("info", ["socket", "client_addr", "server_addr", "timings", "", "nonsense"])
def test_other_facts_are_not_known(face: Face, info: str) -> None:
    assert face.stream([b"data"]).get_extra_info(info) is None


# --- what a pool asks before it reuses the connection ------------------------------------------------------


def test_the_answers_to_later_requests_do_not_make_the_connection_look_dead(face: Face) -> None:
    async def body() -> list[bool]:
        stream = face.stream([b"first answer", b"second answer"])
        seen = [stream.get_extra_info("is_readable")]
        for _ in range(2):
            await stream.write(b"request")
            await stream.read(100)
            seen.append(stream.get_extra_info("is_readable"))
        return seen

    assert face.run(body()) == [False, False, False]


def test_an_empty_item_is_a_peer_that_has_closed_by_itself(face: Face) -> None:
    async def body() -> list[bool]:
        stream = face.stream([b"only answer", b""])
        before = stream.get_extra_info("is_readable")
        await stream.read(100)
        return [before, stream.get_extra_info("is_readable")]

    assert face.run(body()) == [False, True]


def test_a_closed_stream_is_readable_since_a_read_would_not_wait(face: Face) -> None:
    async def body() -> bool:
        stream = face.stream([b"data"])
        await stream.aclose()
        return bool(stream.get_extra_info("is_readable"))

    assert face.run(body())


# --- closing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forcefully", [False, True])
def test_after_closing_every_operation_has_its_own_error(face: Face, forcefully: bool) -> None:
    async def body() -> None:
        stream = face.stream([b"data"])
        for _ in range(2):
            if forcefully:
                stream.abort()
            else:
                await stream.aclose()
        with pytest.raises(ReadError, match="the stream is closed"):
            await stream.read(100)
        with pytest.raises(WriteError, match="the stream is closed"):
            await stream.write(b"data")
        with pytest.raises(ConnectError, match="the stream is closed"):
            await stream.start_tls(CONTEXT)
        # That it is closed is worth more to know than that the time is over as well.
        with pytest.raises(ReadError):
            await stream.read(100, timeout=0)
        assert stream.get_extra_info("ssl_object") is not None

    face.run(body())


def test_a_blocking_stream_closes_at_the_end_of_its_with_block() -> None:
    with MockBackend([b"data"]).connect_tcp("example.com", 80) as stream:
        assert stream.read(10) == b"data"
    with pytest.raises(ReadError):
        stream.read(10)


def test_an_async_stream_closes_at_the_end_of_its_with_block() -> None:
    async def body() -> None:
        async with await AsyncMockBackend([b"data"]).connect_tcp("example.com", 80) as stream:
            assert await stream.read(10) == b"data"
        with pytest.raises(ReadError):
            await stream.read(10)

    drive(body())


# --- backends ----------------------------------------------------------------------------------------------


def test_every_connection_begins_the_list_anew(face: Face) -> None:
    async def body() -> list[bytes]:
        backend = face.backend([b"one", b"two"])
        first = await backend.connect_tcp("example.com", 80)
        seen = [await first.read(10)]
        second = await backend.connect_tcp("example.org", 443, timeout=3.0, local_address="127.0.0.1")
        third = await backend.connect_unix_socket("/run/socket", timeout=3.0, socket_options=[(6, 1, 1)])
        return seen + [await stream.read(2) for stream in (second, third, first, second)]

    assert face.run(body()) == [b"one", b"on", b"on", b"tw", b"e"]


def test_reading_leaves_the_callers_list_alone_and_later_items_count(face: Face) -> None:
    script = [b"one"]
    backend = face.backend(script)

    async def body() -> list[bytes]:
        return await read_all(await backend.connect_tcp("example.com", 80))

    assert face.run(body()) == [b"one"]
    assert script == [b"one"]
    script.append(b"two")
    assert face.run(body()) == [b"one", b"two"]


BAD_SCRIPTS: list[tuple[Any, str]] = [
    (b"HTTP/1.1 200 OK", "not bytes"),
    (bytearray(b"x"), "not bytearray"),
    ("text", "not str"),
    (["text"], "but holds str"),
    ([b"data", 3], "but holds int"),
    (iter([b"data"]), "not list_iterator"),
    (None, "not NoneType"),
]


@pytest.mark.parametrize(("script", "text"), BAD_SCRIPTS, ids=[text for _, text in BAD_SCRIPTS])
def test_what_is_not_a_list_of_bytes_is_refused_at_once(face: Face, script: Any, text: str) -> None:
    for make in (face.backend, face.stream):
        with pytest.raises(ArgumentTypeError, match=f"a script is a list of bytes, {text}"):
            make(script)


@pytest.mark.parametrize("chunk", [bytearray(b"data"), memoryview(b"data")])
def test_a_script_may_hold_any_bytes_and_reads_give_bytes(face: Face, chunk: Any) -> None:
    data = face.run(face.stream([chunk]).read(10))
    assert (type(data), data) == (bytes, b"data")


def test_threads_that_connect_at_once_each_get_the_whole_list() -> None:
    backend = MockBackend([b"x"] * 100)
    together = threading.Barrier(8)
    totals: list[int] = []

    def work() -> None:
        together.wait(10)
        totals.append(len(drive(read_all(AsyncNames(backend.connect_tcp("example.com", 80))))))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert totals == [100] * 8


# --- time --------------------------------------------------------------------------------------------------


class Operation(NamedTuple):
    """Something with a `timeout=`, and what it raises when that has passed."""

    call: Callable[[Face, Any, Any, float | None], Awaitable[Any]]
    error: type[TimeoutException]
    phase: str


OPERATIONS = {
    "read": Operation(lambda face, backend, stream, t: stream.read(10, timeout=t), ReadTimeout, "read"),
    "write": Operation(lambda face, backend, stream, t: stream.write(b"x", timeout=t), WriteTimeout, "write"),
    "start_tls": Operation(
        lambda face, backend, stream, t: stream.start_tls(CONTEXT, timeout=t), ConnectTimeout, "tls"
    ),
    "connect_tcp": Operation(
        lambda face, backend, stream, t: backend.connect_tcp("a", 1, timeout=t), ConnectTimeout, "connect"
    ),
    "connect_unix_socket": Operation(
        lambda face, backend, stream, t: backend.connect_unix_socket("/a", timeout=t),
        ConnectTimeout,
        "connect",
    ),
}

every_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


@every_operation
def test_a_time_out_that_has_passed_gives_the_error_of_its_operation(
    face: Face, operation: Operation
) -> None:
    async def body() -> LaminaError:
        with pytest.raises(operation.error) as caught:
            await operation.call(face, face.backend([b"data"]), face.stream([b"data"]), 0)
        return caught.value

    error = face.run(body())
    assert type(error) is operation.error
    assert (error.phase, error.limit) == (operation.phase, 0)


@every_operation
def test_an_ambient_deadline_that_has_passed_gives_deadline_exceeded(
    face: Face, operation: Operation
) -> None:
    async def body() -> None:
        deadline = open_deadline(0, face.now)
        try:
            with pytest.raises(DeadlineExceeded) as caught:
                await operation.call(face, face.backend([b"data"]), face.stream([b"data"]), 3.0)
        finally:
            close_deadline(deadline)
        assert (caught.value.deadline, caught.value.phase) == (deadline, operation.phase)

    face.run(body())


@every_operation
@pytest.mark.parametrize("timeout", [None, 1e6, float("inf")])
def test_a_limit_that_has_not_passed_changes_nothing(
    face: Face, operation: Operation, timeout: float | None
) -> None:
    async def body() -> None:
        deadline = open_deadline(1e6, face.now)
        try:
            await operation.call(face, face.backend([b"data"]), face.stream([b"data"]), timeout)
        finally:
            close_deadline(deadline)

    face.run(body())


@every_operation
def test_a_time_out_that_is_no_number_of_seconds_is_refused(face: Face, operation: Operation) -> None:
    async def body() -> None:
        for timeout in (-1.0, float("nan")):
            with pytest.raises(ArgumentValueError):
                await operation.call(face, face.backend([b"data"]), face.stream([b"data"]), timeout)

    face.run(body())


def test_a_read_that_timed_out_has_lost_nothing(face: Face) -> None:
    async def body() -> bytes:
        stream = face.stream([b"data"])
        with pytest.raises(ReadTimeout):
            await stream.read(10, timeout=0)
        return bytes(await stream.read(10))

    assert face.run(body()) == b"data"


def test_a_handshake_that_timed_out_has_closed_the_stream(face: Face) -> None:
    async def body() -> None:
        stream = face.stream([b"data"])
        with pytest.raises(ConnectTimeout):
            await stream.start_tls(CONTEXT, timeout=0)
        with pytest.raises(ReadError):
            await stream.read(10)

    face.run(body())


def test_sleep_does_not_sleep(face: Face) -> None:
    assert face.run(face.backend([]).sleep(1e9)) is None


def test_sleep_keeps_to_the_deadline_and_to_numbers(face: Face) -> None:
    async def body() -> None:
        backend = face.backend([])
        with pytest.raises(ArgumentValueError, match="seconds must not be negative"):
            await backend.sleep(-1)
        deadline = open_deadline(0, face.now)
        try:
            with pytest.raises(DeadlineExceeded):
                await backend.sleep(0)
        finally:
            close_deadline(deadline)

    face.run(body())


# --- what they are -----------------------------------------------------------------------------------------


def test_they_are_streams_and_backends_of_the_interfaces() -> None:
    assert issubclass(MockStream, NetworkStream)
    assert issubclass(MockBackend, NetworkBackend)
    assert issubclass(AsyncMockStream, AsyncNetworkStream)
    assert issubclass(AsyncMockBackend, AsyncNetworkBackend)


def test_repr_shows_what_is_left() -> None:
    assert repr(MockBackend([b"a", b"b"])) == "<MockBackend [2 chunks]>"
    assert repr(AsyncMockBackend([b"a"], http2=True)) == "<AsyncMockBackend [1 chunk, HTTP/2]>"
    stream = MockStream([b"abc", b"d"], http2=True)
    stream.read(2)
    assert repr(stream) == "<MockStream [2 chunks, HTTP/2]>"
    stream.read()
    assert repr(stream) == "<MockStream [1 chunk, HTTP/2]>"
    stream.close()
    assert repr(stream) == "<MockStream [closed]>"
    assert repr(AsyncMockStream([])) == "<AsyncMockStream [0 chunks]>"


@pytest.mark.parametrize("size", ["5", 1.5, True])
def test_a_read_of_no_number_is_refused(size: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="max_bytes"):
        MockStream([b"x"]).read(size)
