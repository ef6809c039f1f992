"""The adapters between the two dialects, both ways, on a clock that only tests move."""

import ssl
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from interfaces_clock import VirtualClock
from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    ArgumentTypeError,
    ArgumentValueError,
    ConnectAttempt,
    ConnectTimeout,
    DeadlineExceeded,
    LaminaError,
    Limit,
    NetworkBackend,
    NetworkBackendInterface,
    NetworkStream,
    NetworkStreamInterface,
    Phase,
    ReadError,
    ReadTimeout,
    TimeoutException,
    UnsupportedProtocol,
    WriteTimeout,
    _runtimes,
    _streams,
    backend_from_interface,
    close_deadline,
    current_deadline,
    interface_from_backend,
    interface_from_stream,
    open_deadline,
    stream_from_interface,
)

CONTEXT = ssl.create_default_context()


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[VirtualClock]:
    clock = VirtualClock(1000.0)
    for module in (_runtimes, _streams):
        monkeypatch.setattr(module, "time", types.SimpleNamespace(monotonic=clock, sleep=clock.sleep))
    yield clock
    left = current_deadline()
    while (deadline := current_deadline()) is not None:
        close_deadline(deadline)
    assert left is None


class SlowStream(NetworkStreamInterface):
    """A stream of the second dialect in which everything takes `seconds`, and obeys ambient deadlines."""

    def __init__(self, clock: VirtualClock, seconds: float = 0.0) -> None:
        self.clock = clock
        self.seconds = seconds
        self.calls: list[tuple[Any, ...]] = []
        self.data = b"hello"

    def _wait(self, phase: Phase) -> None:
        limit = Limit(None, self.clock, phase)
        remaining = limit.remaining()
        self.clock.sleep(self.seconds if remaining is None else min(self.seconds, remaining))
        limit.check()

    def read(self, max_bytes: int | None = None) -> bytes:
        self.calls.append(("read", max_bytes))
        self._wait("read")
        return self.data

    def write(self, data: bytes) -> None:
        self.calls.append(("write", data))
        self._wait("write")

    def start_tls(self, ctx: ssl.SSLContext, hostname: str | None = None) -> Any:
        self.calls.append(("start_tls", ctx, hostname))
        self._wait("tls")

    def get_extra_info(self, key: str) -> Any:
        return f"the {key}"

    def close(self) -> None:
        self.calls.append(("close",))

    def __repr__(self) -> str:
        return "<SlowStream>"


class SlowBackend(NetworkBackendInterface):
    """Connects to a `SlowStream` in as many seconds as the stream takes."""

    def __init__(self, stream: SlowStream) -> None:
        self.stream = stream

    def connect(self, host: str, port: int) -> NetworkStreamInterface:
        self.stream.calls.append(("connect", host, port))
        self.stream._wait("dns")
        return self.stream

    def __repr__(self) -> str:
        return "<SlowBackend>"


# --- towards the first dialect: what is called -------------------------------------------------------------


def test_a_stream_of_the_second_dialect_serves_as_one_of_the_first(clock: VirtualClock) -> None:
    inner = SlowStream(clock)
    stream = stream_from_interface(inner)
    assert isinstance(stream, NetworkStream)
    assert stream.read() == b"hello"
    assert stream.read(max_bytes=10, timeout=1.0) == b"hello"
    stream.write(b"data")
    assert stream.get_extra_info("server_addr") == "the server_addr"
    assert repr(stream) == "<SlowStream>"
    stream.close()
    stream.abort()
    assert inner.calls == [("read", None), ("read", 10), ("write", b"data"), ("close",), ("close",)]


def test_it_is_closed_at_the_end_of_a_with_block(clock: VirtualClock) -> None:
    inner = SlowStream(clock)
    with stream_from_interface(inner), interface_from_stream(stream_from_interface(inner)):
        pass
    assert inner.calls == [("close",), ("close",)]


@pytest.mark.parametrize(
    "buffer", [b"data", bytearray(b"data"), memoryview(b"data"), memoryview(b".data.")[1:-1]]
)
def test_a_stream_of_the_second_dialect_is_given_bytes(
    clock: VirtualClock, buffer: bytes | bytearray | memoryview
) -> None:
    # Its example calls `data.decode(…)`, which a memoryview does not have.
    inner = SlowStream(clock)
    stream_from_interface(inner).write(buffer)
    [(_, data)] = inner.calls
    assert type(data) is bytes
    assert data == b"data"


@pytest.mark.parametrize("buffer", ["data", 4, None, [100]])
def test_what_is_not_bytes_is_refused_before_the_stream_sees_it(clock: VirtualClock, buffer: Any) -> None:
    inner = SlowStream(clock)
    with pytest.raises(ArgumentTypeError, match=type(buffer).__name__):
        stream_from_interface(inner).write(buffer)
    assert inner.calls == []


def test_start_tls_that_returns_nothing_keeps_the_stream(clock: VirtualClock) -> None:
    inner = SlowStream(clock)
    stream = stream_from_interface(inner)
    assert stream.start_tls(CONTEXT, server_hostname="example.com") is stream
    stream.write(b"secret")
    assert inner.calls == [("start_tls", CONTEXT, "example.com"), ("write", b"secret")]


def test_start_tls_that_returns_a_stream_goes_on_with_that(clock: VirtualClock) -> None:
    inside = SlowStream(clock)

    class Upgrading(SlowStream):
        def start_tls(self, ctx: ssl.SSLContext, hostname: str | None = None) -> Any:
            return inside

    outside = Upgrading(clock)
    stream = stream_from_interface(outside)
    assert stream.start_tls(CONTEXT) is stream
    stream.write(b"secret")
    assert inside.calls == [("write", b"secret")]
    assert outside.calls == []


def test_a_backend_of_the_second_dialect_serves_as_one_of_the_first(clock: VirtualClock) -> None:
    inner = SlowStream(clock)
    backend = backend_from_interface(SlowBackend(inner))
    assert isinstance(backend, NetworkBackend)
    stream = backend.connect_tcp("example.com", 80, timeout=3.0, socket_options=[])
    assert isinstance(stream, NetworkStream)
    stream.write(b"data")
    assert inner.calls == [("connect", "example.com", 80), ("write", b"data")]
    assert repr(backend) == "<SlowBackend>"


@pytest.mark.parametrize("options", [{"local_address": "127.0.0.1"}, {"socket_options": [(6, 1, 1)]}])
def test_what_connect_has_no_place_for_is_refused(clock: VirtualClock, options: dict[str, Any]) -> None:
    inner = SlowStream(clock)
    with pytest.raises(ArgumentValueError, match="no local address or socket options"):
        backend_from_interface(SlowBackend(inner)).connect_tcp("example.com", 80, **options)
    assert inner.calls == []


def test_it_has_no_unix_sockets(clock: VirtualClock) -> None:
    with pytest.raises(UnsupportedProtocol, match="<SlowBackend> connects to a host and a port only"):
        backend_from_interface(SlowBackend(SlowStream(clock))).connect_unix_socket("/run/socket")


# --- towards the first dialect: time -----------------------------------------------------------------------

Call = Callable[[SlowStream, float | None], object]

CALLS: dict[str, tuple[Call, type[TimeoutException], Phase]] = {
    "read": (lambda inner, timeout: stream_from_interface(inner).read(timeout=timeout), ReadTimeout, "read"),
    "write": (
        lambda inner, timeout: stream_from_interface(inner).write(b"x", timeout=timeout),
        WriteTimeout,
        "write",
    ),
    "start_tls": (
        lambda inner, timeout: stream_from_interface(inner).start_tls(CONTEXT, timeout=timeout),
        ConnectTimeout,
        "tls",
    ),
    "connect": (
        lambda inner, timeout: backend_from_interface(SlowBackend(inner)).connect_tcp(
            "a", 1, timeout=timeout
        ),
        ConnectTimeout,
        "dns",
    ),
}

every_call = pytest.mark.parametrize(("call", "error", "phase"), CALLS.values(), ids=CALLS)


@every_call
@pytest.mark.parametrize(
    ("takes", "timeout", "deadline"), [(2, None, None), (2, 3, None), (2, None, 3), (2, 3, 3)]
)
def test_what_is_done_in_time_is_done(
    call: Call,
    error: type[TimeoutException],
    phase: Phase,
    takes: float,
    timeout: float | None,
    deadline: float | None,
    clock: VirtualClock,
) -> None:
    ambient = open_deadline(deadline, clock)
    call(SlowStream(clock, takes), timeout)
    assert clock() == 1002.0
    assert current_deadline() is ambient
    close_deadline(ambient)


@every_call
@pytest.mark.parametrize("deadline", [None, 5.0])
def test_a_time_out_comes_out_as_the_first_dialect_has_it(
    call: Call, error: type[TimeoutException], phase: Phase, deadline: float | None, clock: VirtualClock
) -> None:
    ambient = open_deadline(deadline, clock)
    with pytest.raises(TimeoutException) as caught:
        call(SlowStream(clock, seconds=60.0), 2.0)
    assert type(caught.value) is error
    assert (caught.value.phase, caught.value.elapsed, caught.value.limit) == (phase, 2.0, 2.0)
    assert isinstance(caught.value.__cause__, DeadlineExceeded)
    assert clock() == 1002.0
    assert current_deadline() is ambient
    close_deadline(ambient)


@every_call
@pytest.mark.parametrize("timeout", [None, 2.0, 5.0])
def test_an_outer_deadline_comes_out_as_itself(
    call: Call, error: type[TimeoutException], phase: Phase, timeout: float | None, clock: VirtualClock
) -> None:
    ambient = open_deadline(2.0, clock)
    with pytest.raises(DeadlineExceeded) as caught:
        call(SlowStream(clock, seconds=60.0), timeout)
    assert (caught.value.deadline, caught.value.phase, caught.value.limit) == (ambient, phase, 2.0)
    assert caught.value.__cause__ is None
    assert clock() == 1002.0
    assert current_deadline() is ambient
    close_deadline(ambient)


@every_call
def test_a_limit_that_has_passed_begins_nothing(
    call: Call, error: type[TimeoutException], phase: Phase, clock: VirtualClock
) -> None:
    inner = SlowStream(clock)
    with pytest.raises(error):
        call(inner, 0)
    ambient = open_deadline(0, clock)
    with pytest.raises(DeadlineExceeded):
        call(inner, 3.0)
    close_deadline(ambient)
    # A handshake that does not come about leaves no stream behind.
    assert set(inner.calls) == ({("close",)} if phase == "tls" else set())


@every_call
@pytest.mark.parametrize(
    ("timeout", "refusal"),
    [(-1, ArgumentValueError), (float("nan"), ArgumentValueError), ("3", ArgumentTypeError)],
)
def test_a_time_out_that_is_no_number_of_seconds_begins_nothing(
    call: Call,
    error: type[TimeoutException],
    phase: Phase,
    timeout: Any,
    refusal: type[LaminaError],
    clock: VirtualClock,
) -> None:
    inner = SlowStream(clock)
    with pytest.raises(refusal):
        call(inner, timeout)
    # A handshake that does not come about leaves no stream behind.
    assert set(inner.calls) == ({("close",)} if phase == "tls" else set())


def test_what_the_backend_knew_is_not_lost_with_the_translation(clock: VirtualClock) -> None:
    attempts = (ConnectAttempt("192.0.2.1:80", None, 2.0),)

    class Knowing(NetworkBackendInterface):
        def connect(self, host: str, port: int) -> NetworkStreamInterface:
            clock.sleep(2.0)
            error = Limit(None, clock, "connect").error()
            error.attempts = attempts
            error.origin = "http://example.com:80"
            raise error

    with pytest.raises(ConnectTimeout) as caught:
        backend_from_interface(Knowing()).connect_tcp("example.com", 80, timeout=2.0)
    assert caught.value.attempts == attempts
    assert caught.value.origin == "http://example.com:80"


@pytest.mark.parametrize("error", [ReadError("reset"), TimeoutError("the caller's own"), KeyboardInterrupt()])
def test_any_other_error_passes_as_it_is(error: BaseException, clock: VirtualClock) -> None:
    class Failing(SlowStream):
        def read(self, max_bytes: int | None = None) -> bytes:
            raise error

    with pytest.raises(type(error)) as caught:
        stream_from_interface(Failing(clock)).read(timeout=3.0)
    assert caught.value is error
    assert caught.value.__cause__ is None
    assert current_deadline() is None


# --- towards the first dialect: sleep ----------------------------------------------------------------------


@pytest.mark.parametrize(("seconds", "deadline"), [(2.0, None), (2.0, 3.0), (0, None), (0, 3.0)])
def test_sleep_takes_its_seconds(seconds: float, deadline: float | None, clock: VirtualClock) -> None:
    ambient = open_deadline(deadline, clock)
    backend_from_interface(SlowBackend(SlowStream(clock))).sleep(seconds)
    assert clock() == 1000.0 + seconds
    close_deadline(ambient)


@pytest.mark.parametrize(("seconds", "deadline"), [(2.0, 1.0), (1.0, 1.0), (float("inf"), 1.0), (0, 0)])
def test_sleep_ends_at_the_deadline(seconds: float, deadline: float, clock: VirtualClock) -> None:
    ambient = open_deadline(deadline, clock)
    with pytest.raises(DeadlineExceeded) as caught:
        backend_from_interface(SlowBackend(SlowStream(clock))).sleep(seconds)
    assert caught.value.deadline is ambient
    assert clock() == 1000.0 + deadline
    close_deadline(ambient)


@pytest.mark.parametrize("step", [0.1, 0.3, 0.7, 1.0])
def test_a_deadline_that_passes_while_it_is_looked_at_ends_the_sleep(step: float) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += step
        return now

    ambient = open_deadline(20.0, clock)
    with pytest.raises(DeadlineExceeded):
        NetworkBackend().sleep(3600.0)
    close_deadline(ambient)


def test_sleep_refuses_a_negative_number(clock: VirtualClock) -> None:
    with pytest.raises(ArgumentValueError, match="seconds must not be negative"):
        backend_from_interface(SlowBackend(SlowStream(clock))).sleep(-1.0)


# --- towards the second dialect ----------------------------------------------------------------------------


class RecordingStream(NetworkStream):
    """A stream of the first dialect that notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        self.calls.append(("read", max_bytes, timeout))
        Limit(timeout, lambda: 1000.0, "read").check()
        return b"hello"

    def write(self, buffer: bytes | bytearray | memoryview, timeout: float | None = None) -> None:
        self.calls.append(("write", buffer, timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        self.calls.append(("start_tls", ssl_context, server_hostname, timeout))
        return RecordingStream()

    def get_extra_info(self, info: str) -> Any:
        return f"the {info}"

    def close(self) -> None:
        self.calls.append(("close",))

    def __repr__(self) -> str:
        return "<RecordingStream>"


class RecordingBackend(NetworkBackend):
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def connect_tcp(self, host: str, port: int, *args: Any, **kwargs: Any) -> NetworkStream:
        self.calls.append((host, port, args, kwargs))
        return RecordingStream()

    def __repr__(self) -> str:
        return "<RecordingBackend>"


def test_a_stream_of_the_first_dialect_serves_as_one_of_the_second() -> None:
    inner = RecordingStream()
    stream = interface_from_stream(inner)
    assert isinstance(stream, NetworkStreamInterface)
    assert stream.read() == b"hello"
    assert stream.read(10) == b"hello"
    stream.write(b"data")
    assert stream.get_extra_info("socket") == "the socket"
    assert repr(stream) == "<RecordingStream>"
    stream.close()
    # A stream after the first document has `read(max_bytes)`: the number is not left to it.
    assert inner.calls == [
        ("read", DEFAULT_READ_SIZE, None),
        ("read", 10, None),
        ("write", b"data", None),
        ("close",),
    ]


def test_start_tls_of_the_second_dialect_upgrades_in_place() -> None:
    inner = RecordingStream()
    stream = interface_from_stream(inner)
    assert stream.start_tls(CONTEXT, hostname="example.com") is stream
    stream.write(b"secret")
    assert inner.calls == [
        ("start_tls", CONTEXT, "example.com", None)
    ]  # the write went to the upgraded stream


def test_ambient_deadlines_hold_through_it(clock: VirtualClock) -> None:
    stream = interface_from_stream(RecordingStream())
    ambient = open_deadline(0, clock)
    with pytest.raises(DeadlineExceeded):
        stream.read()
    close_deadline(ambient)


def test_a_backend_of_the_first_dialect_serves_as_one_of_the_second() -> None:
    inner = RecordingBackend()
    backend = interface_from_backend(inner)
    assert isinstance(backend, NetworkBackendInterface)
    with backend.connect("example.com", 80) as stream:
        assert isinstance(stream, NetworkStreamInterface)
        assert stream.read() == b"hello"
    assert inner.calls == [("example.com", 80, (), {})]
    assert repr(backend) == "<RecordingBackend>"


# --- the base classes --------------------------------------------------------------------------------------


def test_a_custom_stream_implements_only_what_it_needs() -> None:
    with pytest.raises(NotImplementedError):
        NetworkStreamInterface().read()
    with pytest.raises(NotImplementedError):
        NetworkBackendInterface().connect("example.com", 80)
    assert NetworkStreamInterface().get_extra_info("socket") is None
