"""What the caller's own code may do to the pool, and what it gets back.

Its code is everywhere: bodies and callbacks run in the midst of a request, generators that hold a response are closed
by the garbage collection, signal handlers come between any two lines, backends and streams may know only half of
their contract, and threads close what other threads are using.
"""

from __future__ import annotations

import gc
import io
import subprocess
import sys
import tempfile
import textwrap
import threading
import traceback
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    AsyncNetworkBackend,
    AsyncNetworkBackendInterface,
    ConcurrencyError,
    ConnectError,
    InterruptibleWriter,
    LaminaError,
    NetworkBackend,
    NetworkStream,
    PoolClosed,
    ReadError,
    RemoteProtocolError,
    WriteError,
)
from lamina_pool import ConnectionPool, PoolStats, Request, _connection
from pool_helpers import HEAD, OK, RESET, Clock, Script, ScriptedBackend, checked_pool, use_clock
from pool_loopback import MemoryBackend, MemoryStream, Worker, request_for, response, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

URL = "http://example.com/"
OTHER_URL = "http://other.example/"
EMPTY = PoolStats(0, 0, 0, 0, 0, 0)
HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nsome"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def upgrade() -> Request:
    return Request("GET", URL, headers={"Host": "example.com", "Upgrade": "x", "Connection": "upgrade"})


def half(stream: MemoryStream, head: bytes, body: bytes) -> None:
    """A server that stops in the midst of its answer, but for those who ask for `/whole`."""
    stream.feed(response(b"whole") if b"/whole" in head else HALF)


# --- in the midst of a step --------------------------------------------------------------------------------


class TellingLock:
    """The pool's lock, which tells when it has just been taken, or is just about to be let go."""

    def __init__(self, lock: Any, tell: Callable[[], object], moment: str) -> None:
        self._lock = lock
        self._tell = tell
        self._moment = moment

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._moment == "lock":
            self._tell()

    def __exit__(self, *exc_info: object) -> None:
        if self._moment == "unlock":
            self._tell()
        self._lock.release()

    def _is_owned(self) -> bool:
        is_owned: bool = self._lock._is_owned()
        return is_owned


MOMENTS = ["lock", "before", "after", "unlock"]
"""Just after the lock was taken, before the scheduler has done anything, after it, and when the step is over."""


def interrupt(
    pool: ConnectionPool, moment: str, action: Callable[[], object], event: str = "acquire"
) -> None:
    """Have something done once, in the midst of the next step of this kind."""
    core = pool._pool
    left = [action]

    def once() -> None:
        if left:
            left.pop()()

    if moment in {"lock", "unlock"}:
        core._lock = TellingLock(core._lock, once, moment)
        return
    step = getattr(core._scheduler, event)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if moment == "before":
            once()
        actions = step(*arguments, **options)
        if moment == "after":
            once()
        return actions

    setattr(core._scheduler, event, interrupted)


def lines_of(pool: ConnectionPool) -> Iterator[bytes]:
    """What a client library is likely to have."""
    with pool.stream("GET", URL) as got:
        yield from got.iter_stream()


# Where the response is finalised before the generator that would close it, it says that it was abandoned.
@pytest.mark.filterwarnings("ignore:the response to:ResourceWarning")
@pytest.mark.parametrize("moment", MOMENTS)
def test_an_abandoned_generator_is_collected_in_the_midst_of_a_step(moment: str) -> None:
    backend = MemoryBackend(half)
    pool = ConnectionPool(network_backend=backend)
    cycle: list[Any] = [lines_of(pool)]
    cycle.append(cycle)
    assert next(cycle[0]) == b"some"
    gc.disable()
    try:
        interrupt(pool, moment, gc.collect)
        del cycle
        # In a thread, since what hangs for ever must fail.
        assert Worker(pool.request, "GET", f"{OTHER_URL}whole").result().content == b"whole"
    finally:
        gc.enable()
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
    assert backend.streams[0].is_closed
    assert not backend.streams[1].is_closed
    pool.close()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_handler_closes_the_pool_in_the_midst_of_a_request(moment: str) -> None:
    backend = MemoryBackend()
    pool = ConnectionPool(network_backend=backend)
    pool.request("GET", OTHER_URL)
    interrupt(pool, moment, pool.close)
    assert isinstance(Worker(pool.request, "GET", URL).outcome(), PoolClosed)
    assert pool.stats() == EMPTY
    assert backend.live == 0


@pytest.mark.parametrize("look", [repr, ConnectionPool.stats, lambda pool: pool.connections])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_handler_looks_at_the_pool_in_the_midst_of_a_request(
    moment: str, look: Callable[[ConnectionPool], object]
) -> None:
    pool = ConnectionPool(network_backend=MemoryBackend())
    pool.request("GET", OTHER_URL)
    seen: list[object] = []
    interrupt(pool, moment, lambda: seen.append(look(pool)))
    assert Worker(pool.request, "GET", f"{URL}mine").result().content == b"/mine"
    assert seen
    pool.close()


def test_what_a_handler_does_while_the_pool_is_looked_at_is_done_at_once() -> None:
    backend = MemoryBackend()
    pool = ConnectionPool(network_backend=backend)
    pool.request("GET", URL)
    interrupt(pool, "lock", pool.close)
    Worker(pool.stats).result()
    assert backend.live == 0  # and not when somebody uses the pool again


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_request_in_the_midst_of_a_step_is_refused(moment: str) -> None:
    backend = MemoryBackend()
    pool = ConnectionPool(network_backend=backend, max_connections=1)

    def request() -> None:
        with pytest.raises(ConcurrencyError, match="signal handler"):
            pool.request("GET", f"{URL}handler", extensions={"timeout": {"pool": 5}})
        refused.set()

    refused = threading.Event()
    interrupt(pool, moment, request)
    assert Worker(pool.request, "GET", f"{URL}mine").result().content == b"/mine"
    assert refused.is_set()
    assert [request.split(b" ")[1] for request in backend.streams[0].requests] == [b"/mine"]
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
    pool.close()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_handler_gives_a_response_back_in_the_midst_of_a_step(moment: str) -> None:
    backend = MemoryBackend(half)
    pool = ConnectionPool(network_backend=backend)
    held = pool.handle_request(request_for(URL))
    interrupt(pool, moment, held.close)
    assert Worker(pool.request, "GET", f"{OTHER_URL}whole").result().content == b"whole"
    assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
    assert backend.live == 1
    pool.close()


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_response_is_given_back_in_the_midst_of_the_last_step_of_a_request(moment: str) -> None:
    pool = ConnectionPool(network_backend=MemoryBackend(half))
    core = pool._pool
    held = pool.handle_request(request_for(URL))
    whole = pool.handle_request(request_for(f"{OTHER_URL}whole"))
    interrupt(pool, moment, held.close, "release")
    assert Worker(whole.read).result() == b"whole"
    assert (core._scheduler.active, core._scheduler.idle) == (
        0,
        1,
    )  # and not only when somebody uses the pool again
    pool.close()


def test_who_is_to_wait_and_is_served_in_the_same_step_sleeps_no_more() -> None:
    pool = ConnectionPool(network_backend=MemoryBackend(), max_connections=1)
    core = pool._pool
    held = pool.handle_request(request_for(URL))
    interrupt(pool, "after", held.read)
    with pool.stream("GET", f"{URL}mine") as got:
        assert not core._sleepers  # whom an alarm would wake in vain
        assert got.extensions["connection"].request_count == 2
        assert got.read() == b"/mine"
    pool.close()


class InterruptedDeque(deque[Any]):
    """An exception strikes just after something was taken off."""

    def popleft(self) -> Any:
        super().popleft()
        raise KeyboardInterrupt


def test_what_is_put_off_is_not_lost_to_an_interrupt() -> None:
    backend = MemoryBackend(half)
    pool = ConnectionPool(network_backend=backend)
    held = pool.handle_request(request_for(URL))
    pool._pool._put_off = InterruptedDeque()
    interrupt(pool, "after", held.close)
    with pytest.raises(KeyboardInterrupt):
        pool.request("GET", f"{OTHER_URL}whole")
    assert pool.stats() == EMPTY
    assert backend.live == 0
    pool.close()


PRELUDE = """
import faulthandler, gc, os, signal, sys
faulthandler.dump_traceback_later(40, exit=True)
sys.path.insert(0, {tests!r})
from lamina_interfaces import PoolClosed
from lamina_pool import ConnectionPool
from pool_loopback import MemoryBackend, response
"""


def run_script(body: str, *options: str) -> str:
    """Run it in a process of its own, which ends even if it hangs."""
    script = PRELUDE.format(tests=str(Path(__file__).parent)) + textwrap.dedent(body)
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", script],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_generators_are_collected_at_any_moment() -> None:
    done = run_script(
        """
        def half(stream, head, body):
            stream.feed(b"HTTP/1.1 200 OK\\r\\nContent-Length: 100000\\r\\n\\r\\nsome")

        def lines():
            with pool.stream("GET", "http://example.com/") as got:
                yield from got.iter_stream()

        backend = MemoryBackend(half)
        backend.keep_streams = False
        pool = ConnectionPool(network_backend=backend, max_connections=None)
        gc.collect()
        gc.freeze()
        gc.set_threshold(2)
        for number in range(300):
            cycle = [lines()]
            cycle.append(cycle)
            next(cycle[0])
            del cycle
        gc.collect()
        print(pool.stats().connections, backend.live)
        pool.close()
        """,
        "-W",
        "ignore:the response to:ResourceWarning",
    )
    assert done == "0 0\n"


def use_in_every_way(pool: ConnectionPool) -> None:
    for token in (b"/1", b"/2"):
        assert pool.request("GET", URL.encode() + token[1:]).content == token
    assert pool.request("GET", OTHER_URL).content == b"/"  # in the place of the connection to the first
    with pool.stream("GET", URL) as got:
        assert got.status == 200
    pool.reap()


@pytest.mark.parametrize("look", [repr, ConnectionPool.stats, lambda pool: pool.connections])
def test_a_signal_handler_looks_at_the_pool_at_any_moment(look: Callable[[ConnectionPool], object]) -> None:
    """Before every single bytecode: these are all the moments at which a handler, or a finaliser, can come."""
    backend = MemoryBackend()
    backend.keep_streams = False
    pool = ConnectionPool(network_backend=backend, max_connections=1)
    moments = 0

    def trace(frame: FrameType, what: str, argument: Any) -> Any:
        nonlocal moments
        frame.f_trace_opcodes = True
        if what in {"line", "opcode"}:
            moments += 1
            look(pool)
        return trace

    def looked_at(action: Callable[[ConnectionPool], object]) -> None:
        before = sys.gettrace()
        sys.settrace(trace)
        try:
            action(pool)
        finally:
            sys.settrace(before)

    def work() -> None:
        for _ in range(
            2
        ):  # newer interpreters report the bytecodes only of functions that were traced before
            looked_at(use_in_every_way)
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
        looked_at(ConnectionPool.close)

    Worker(work).result(50)
    assert moments > 20_000
    assert pool.stats() == EMPTY
    assert backend.live == 0


def test_an_interrupted_clean_up_throws_out_nobody_who_waits_in_another_thread() -> None:
    backend = MemoryBackend()
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        pool.request("GET", OTHER_URL)
        scheduler = pool._pool._scheduler
        waiting: list[Worker] = []

        def close() -> None:
            MemoryStream.close(backend.streams[0])
            del backend.streams[0].close  # only the first time
            before = scheduler.waiting
            waiting.append(Worker(pool.request, "GET", f"{URL}theirs"))
            until(lambda: scheduler.waiting > before)
            raise KeyboardInterrupt

        backend.streams[0].close = close  # type: ignore[method-assign] # closed to make room for the next request
        with pytest.raises(KeyboardInterrupt):
            pool.request("GET", f"{URL}mine")
        assert waiting[0].result().content == b"/theirs"
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


# --- closing what another thread reads ---------------------------------------------------------------------


def read_in_thread(pool: ConnectionPool, backend: MemoryBackend) -> tuple[Any, Worker]:
    """A response, half-read, and a thread that reads the rest."""
    got: Any = pool.handle_request(request_for(URL))
    assert next(got.stream) == b"some"
    stream = backend.streams[0]
    before = stream.reads
    reader = Worker(lambda: b"".join(got.stream))
    until(lambda: stream.reads > before)
    return got, reader


class Guard:
    """The guard of a body, which tells of its use."""

    def __init__(self, guard: Any) -> None:
        self._guard = guard
        self.before_trying: Callable[[], object] = bool
        self.is_waited_for = threading.Event()

    def acquire(self, blocking: bool = True) -> bool:
        self.before_trying()
        is_acquired: bool = self._guard.acquire(blocking)
        return is_acquired

    def release(self) -> None:
        self._guard.release()

    def __enter__(self) -> None:
        self.is_waited_for.set()
        self._guard.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._guard.release()


def test_closing_a_response_whose_reader_has_just_finished_leaves_its_connection_alone() -> None:
    backend = MemoryBackend(half)
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        got, reader = read_in_thread(pool, backend)
        stream = backend.streams[0]

        def let_the_reader_finish() -> None:
            stream.feed(b"rest")
            assert reader.result() == b"rest"
            backend.answer = lambda *_: None
            others.append(Worker(send_order))
            until(lambda: len(stream.requests) == 2)

        def send_order() -> Any:
            return pool.request("POST", f"{URL}order", content=b"order")

        others: list[Worker] = []
        guard = got.stream._body._guard = Guard(got.stream._body._guard)
        guard.before_trying = let_the_reader_finish
        got.close()  # has seen the reader, and comes too late for him
        assert not stream.is_closed
        stream.feed(response(b"done"))
        assert others[0].result().content == b"done"


def test_a_connection_is_not_given_back_while_it_is_being_aborted() -> None:
    backend = MemoryBackend(half)
    with ConnectionPool(network_backend=backend, max_connections=1) as pool:
        got, reader = read_in_thread(pool, backend)
        stream = backend.streams[0]
        body = got.stream._body
        guard = body._guard = Guard(body._guard)
        abort = body._connection.abort

        def abort_late() -> None:
            stream.feed(b"rest")
            until(lambda: guard.is_waited_for.is_set() or not reader.is_alive())
            held.append(pool.stats().active)
            abort()

        held: list[int] = []
        body._connection.abort = abort_late
        got.close()
        assert held == [1]
        assert reader.result() == b"rest"
        assert pool.stats() == EMPTY
        assert pool.request("POST", f"{URL}whole", content=b"order").content == b"whole"
        assert len(backend.streams) == 2


def test_a_connection_that_was_found_in_order_is_not_aborted_any_more() -> None:
    backend = MemoryBackend()
    with ConnectionPool(network_backend=backend) as pool:
        got: Any = pool.handle_request(request_for(f"{URL}mine"))
        connection = got.stream._body._connection
        start_next = connection.start_next

        def start_next_and_close() -> bool:
            is_reusable: bool = start_next()
            got.stream.close()  # as another thread would
            return is_reusable

        connection.start_next = start_next_and_close
        assert got.read() == b"/mine"
        assert not backend.streams[0].is_closed
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)


def test_who_reads_while_another_thread_closes_is_told_so() -> None:
    backend = MemoryBackend(half)
    with ConnectionPool(network_backend=backend) as pool:
        got: Any = pool.handle_request(request_for(URL))
        connection = got.stream._body._connection
        drain = connection.drain
        told: list[object] = []

        def drain_and_read() -> Any:
            told.append(Worker(next, got.stream).outcome())
            return drain()

        connection.drain = drain_and_read
        got.close()
        assert [type(error) for error in told] == [ReadError]
        assert "being closed" in str(told[0])
        assert pool.stats() == EMPTY


# --- bodies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("watchful", [True, False])
@pytest.mark.parametrize("pieces", [[None], [b"one", None, b"two"], [b"x" * 100_000, None]])
def test_a_body_that_yields_none_is_refused_and_not_cut_short(pieces: list[Any], watchful: bool) -> None:
    backend = ScriptedBackend(Script(HEAD, watchful=watchful))
    with checked_pool(backend) as pool:
        with pytest.raises(ArgumentTypeError, match="must yield bytes, not NoneType"):
            pool.request("POST", URL, content=(piece for piece in pieces))
        assert not backend.streams[0].written.endswith(b"0\r\n\r\n")


class Reader:
    """A file of the caller's own make."""

    def __init__(self) -> None:
        self._pieces = iter([b"line\n", b"line\n"])
        self.closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def read(self, size: int = -1) -> bytes:
        raise AssertionError("bodies are iterated over")

    def close(self) -> None:
        self.closed = True


def temporary_file() -> Any:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the test closes it
    file.write(b"line\n" * 2)
    file.seek(0)
    return file


@pytest.mark.parametrize("fault", [None, "connect", "write"])
@pytest.mark.parametrize("make", [temporary_file, lambda: io.BytesIO(b"line\n" * 2), Reader])
def test_a_file_stays_open(make: Callable[[], Any], fault: str | None) -> None:
    script: Any = [HEAD, OK]
    if fault == "connect":
        script = ConnectError("refused")
    elif fault == "write":
        script = Script(fail_write_after=0)
    file = make()
    with checked_pool(ScriptedBackend(script)) as pool:
        if fault is None:
            pool.request("PUT", URL, headers={"Content-Length": "10"}, content=file)
        else:
            with pytest.raises((ConnectError, WriteError)):
                pool.request("PUT", URL, headers={"Content-Length": "10"}, content=file)
    assert not file.closed
    if hasattr(file, "seek"):
        file.seek(0)  # for a second attempt
        assert file.read() == b"line\n" * 2
    file.close()


class Pieces:
    """An iterator that has to be closed, and is no file."""

    def __init__(self, error: BaseException | None = None) -> None:
        self._pieces = iter([b"one", b"two"])
        self._error = error
        self.is_closed = False

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        self.is_closed = True
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("script", [[HEAD, OK], Script(fail_write_after=0)], ids=["well", "broken"])
def test_generators_and_other_iterators_are_closed(script: Any) -> None:
    ended: list[str] = []

    def generate() -> Iterator[bytes]:
        try:
            yield b"one"
            yield b"two"
        finally:
            ended.append("now")

    for content in (generate(), Pieces()):
        with checked_pool(ScriptedBackend(script)) as pool:
            try:
                pool.request("POST", URL, content=content)
            except LaminaError:
                assert not isinstance(script, list)
        if isinstance(content, Pieces):
            assert content.is_closed
        else:
            assert ended == ["now"]


# --- what the caller's code raises -------------------------------------------------------------------------

OUR_ERRORS = [ReadError, WriteError, RemoteProtocolError, ConnectError, PoolClosed]
"""Of the caller's code they may be too: a body that is the answer to another request, a callback that makes one."""


def check_is_callers_own(error: BaseException, caught: BaseException | None, line_in: str) -> None:
    """It is the same object, untouched, and its traceback ends where the caller raised it."""
    assert caught is error
    assert caught is not None
    assert caught.__cause__ is None
    assert caught.__context__ is None
    assert getattr(caught, "origin", None) is None
    assert traceback.extract_tb(caught.__traceback__)[-1].name == line_in


def requests_in(backend: ScriptedBackend, method: bytes) -> int:
    return sum(stream.written.count(method + b" /") for stream in backend.streams)


@pytest.mark.parametrize("is_warm", [False, True], ids=["fresh", "reused"])
@pytest.mark.parametrize("pieces", [[], [b"x" * 100], [b"x" * 100_000]], ids=["none", "small", "large"])
@pytest.mark.parametrize("kind", OUR_ERRORS)
def test_our_own_errors_of_a_body_come_out_as_they_are(
    kind: type[LaminaError], pieces: list[bytes], is_warm: bool
) -> None:
    error = kind("mine")

    class Body:
        """Can be read as often as one likes, and so could be sent again."""

        def __iter__(self) -> Iterator[bytes]:
            yield from pieces
            raise error

    backend = ScriptedBackend([HEAD, OK, HEAD] if is_warm else [HEAD])
    with checked_pool(backend) as pool:
        if is_warm:
            pool.request("GET", URL)
        with pytest.raises(kind) as caught:
            pool.request("PUT", URL, content=Body())
        check_is_callers_own(error, caught.value, "__iter__")
        assert requests_in(backend, b"PUT") <= 1
        assert backend.streams[0].is_closed


@pytest.mark.parametrize("kind", [*OUR_ERRORS, StopIteration])
def test_errors_from_iter_and_from_closing_a_body_come_out_as_they_are(kind: type[Exception]) -> None:
    error = kind("mine")

    class Refusing:
        def __iter__(self) -> Iterator[bytes]:
            raise error

    with checked_pool(ScriptedBackend([HEAD, OK], [HEAD, OK])) as pool:
        pool.request("GET", URL)
        with pytest.raises(kind) as caught:
            pool.request("PUT", URL, content=Refusing())
        check_is_callers_own(error, caught.value, "__iter__")
        error = kind("mine too")
        with pytest.raises(kind) as caught:
            pool.request("PUT", URL, content=Pieces(error))
        check_is_callers_own(error, caught.value, "close")


EXCHANGE_EVENTS = [
    f"http11.{step}.{moment}"
    for step in (
        "send_request_headers",
        "send_request_body",
        "receive_response_headers",
        "receive_response_body",
        "response_closed",
    )
    for moment in ("started", "complete")
]
CONNECT_EVENTS = ["connection.connect_tcp.started", "connection.connect_tcp.complete"]


def raising_at(event: str, error: Exception) -> Callable[[str, dict[str, Any]], None]:
    def trace(name: str, info: dict[str, Any]) -> None:
        if name == event:
            raise error

    return trace


@pytest.mark.parametrize("event", [*CONNECT_EVENTS, *EXCHANGE_EVENTS])
@pytest.mark.parametrize("kind", [*OUR_ERRORS, StopIteration])
def test_our_own_errors_of_a_callback_come_out_as_they_are(kind: type[Exception], event: str) -> None:
    # What `__next__` raises would be taken for the end of the body, so there it is the cause of a `RuntimeError`.
    is_hidden = kind is StopIteration and ("response_body" in event or "closed" in event)
    for is_warm in (False, True):
        if is_warm and event in CONNECT_EVENTS:
            continue
        error = kind("mine")
        backend = ScriptedBackend([HEAD, OK, HEAD, OK])
        with checked_pool(backend, retries=2) as pool:
            if is_warm:
                pool.request("PUT", URL)
            with pytest.raises(RuntimeError if is_hidden else kind) as caught:
                pool.request("GET", URL, extensions={"trace": raising_at(event, error)})
            told = caught.value.__cause__ if is_hidden else caught.value
            check_is_callers_own(error, told, "trace")
            assert requests_in(backend, b"GET") <= 1
            assert len(backend.dials) == (event != CONNECT_EVENTS[0])
            assert not backend.sleeps


@pytest.mark.parametrize("kind", [*OUR_ERRORS, StopIteration])
def test_our_own_errors_of_a_callback_that_is_told_of_a_failure(kind: type[Exception]) -> None:
    error = kind("mine")
    backend = ScriptedBackend([HEAD, OK, HEAD, RESET])
    with checked_pool(backend) as pool:
        pool.request("PUT", URL)
        trace = raising_at("http11.receive_response_headers.failed", error)
        with pytest.raises(kind) as caught:
            pool.request("GET", URL, extensions={"trace": trace})
        assert caught.value is error
        assert isinstance(error.__context__, ReadError)  # it was raised while that one was being told of
        assert requests_in(backend, b"GET") == 1


# --- backends and streams that know only half of it --------------------------------------------------------


class MinimalStream(NetworkStream):
    """Reads, writes and closes."""

    def __init__(self, stream: NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout=timeout)

    def write(self, buffer: Any, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout=timeout)

    def close(self) -> None:
        self._stream.close()


class UnawareStream(MinimalStream):
    """Breaks its contract for what it does not know."""

    def get_extra_info(self, info: str) -> Any:
        raise KeyError(info)


class MinimalBackend(NetworkBackend):
    """Connects, and that is all."""

    def __init__(self, inner: NetworkBackend, wrap: Callable[[Any], NetworkStream] = MinimalStream) -> None:
        self._inner = inner
        self._wrap = wrap
        self.failures = 0
        self.calls = 0

    def connect_tcp(self, *arguments: Any, **options: Any) -> NetworkStream:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectError("refused")
        return self._wrap(self._inner.connect_tcp(*arguments, **options))


def test_retries_work_with_a_backend_that_can_only_connect() -> None:
    backend = MinimalBackend(MemoryBackend())
    backend.failures = 1
    with ConnectionPool(network_backend=backend, retries=1) as pool:
        assert pool.request("GET", f"{URL}mine").content == b"/mine"
        assert backend.calls == 2


@pytest.mark.parametrize("wrap", [MinimalStream, UnawareStream])
def test_a_stream_that_cannot_tell_whether_something_has_come_is_not_used_again(
    wrap: Callable[[Any], NetworkStream],
) -> None:
    memory = MemoryBackend()
    with ConnectionPool(network_backend=MinimalBackend(memory, wrap)) as pool:
        assert pool.request("GET", f"{URL}1").content == b"/1"
        memory.streams[0].feed(response(b"nobody asked"))
        assert pool.request("POST", f"{URL}2", content=(piece for piece in [b"once"])).content == b"/2"
        assert len(memory.streams) == 2
        assert memory.streams[0].is_closed
        assert len(memory.streams[0].requests) == 1


class TimelessStream(MinimalStream):
    """Takes no notice of time limits, as a plain socket does; but can say whether something has come."""

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        assert self.get_extra_info("is_readable"), "this would wait for the peer"
        return super().read(max_bytes)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


@pytest.mark.parametrize("has_rest", [False, True])
def test_closing_a_response_waits_for_no_peer_where_the_stream_knows_no_time_limits(has_rest: bool) -> None:
    memory = MemoryBackend(half)
    with ConnectionPool(network_backend=MinimalBackend(memory, TimelessStream)) as pool:
        with pool.stream("GET", URL) as got:
            assert next(got.iter_stream()) == b"some"
            reads = memory.streams[0].reads
            if has_rest:
                memory.streams[0].feed(b"rest")
        assert memory.streams[0].reads - reads == has_rest
        assert pool.stats().idle == has_rest
        assert memory.streams[0].is_closed is not has_rest


def test_closing_a_response_waits_for_no_peer_where_the_stream_cannot_tell_anything() -> None:
    memory = MemoryBackend(half)
    with ConnectionPool(network_backend=MinimalBackend(memory)) as pool:
        with pool.stream("GET", URL):
            reads = memory.streams[0].reads
        assert memory.streams[0].reads == reads
        assert memory.streams[0].is_closed


@pytest.mark.parametrize("error", [OSError("odd"), KeyboardInterrupt()])
def test_a_switched_stream_gives_its_place_back_although_closing_it_raises(error: BaseException) -> None:
    class Raising(MinimalStream):
        left = 1

        def close(self) -> None:
            super().close()
            if self.left:
                self.left = 0
                raise error

    def switch(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n")

    memory = MemoryBackend(switch)
    with ConnectionPool(network_backend=MinimalBackend(memory, Raising), max_connections=1) as pool:
        got = pool.handle_request(upgrade())
        with pytest.raises(type(error)):
            got.extensions["network_stream"].close()
        assert pool.stats() == EMPTY
        got.close()
        assert memory.live == 0


# --- early answers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("watchful", [True, False])
@pytest.mark.parametrize("is_traced", [False, True])
@pytest.mark.parametrize("content", [b"x" * 1_000_000, [b"x" * 200_000] * 5], ids=["bytes", "pieces"])
def test_a_whole_early_answer_is_delivered_although_the_server_stops_reading(
    content: Any, is_traced: bool, watchful: bool
) -> None:
    script = Script(HEAD, OK, watchful=watchful, stall_write_after=100_000)
    backend = ScriptedBackend(script)
    extensions = {"trace": lambda name, info: None} if is_traced else {}
    with checked_pool(backend, virtual_time=True) as pool:
        began = backend.clock.now()
        reply = pool.request("POST", URL, content=content, extensions=extensions)
        assert (reply.status, reply.content) == (200, b"ok")
        assert backend.clock.now() - began < 1.5
        assert backend.streams[0].is_closed


class EchoStream(NetworkStream):
    """A server that answers with what it reads, up to two million times `y`. It reads nothing while too much of its
    answer is unread.
    """

    def __init__(self, backend: EchoBackend) -> None:
        self._backend = backend
        self._unread = bytearray()
        self._has_answered = False
        self._left = 2_000_000
        self.bytes_read = 0
        self.is_closed = False

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        assert self._unread, "nothing more will come"
        data = bytes(self._unread[:max_bytes])
        del self._unread[: len(data)]
        self.bytes_read += len(data)
        return data

    def write(self, buffer: Any, timeout: float | None = None) -> None:
        assert len(self._unread) <= self._backend.room, "both sides wait for each other"
        if self._left:
            if not self._has_answered:
                self._has_answered = True
                self._unread += CHUNKED_HEAD
            data = bytes(buffer)
            self._unread += b"%x\r\n%b\r\n" % (len(data), data)
            self._left -= data.count(b"y")
            if not self._left:
                self._unread += b"0\r\n\r\n"

    def get_extra_info(self, info: str) -> Any:
        return bool(self._unread) if info == "is_readable" else None

    def close(self) -> None:
        self.is_closed = True


class WatchfulEchoStream(EchoStream, InterruptibleWriter):
    def write_until_readable(self, buffer: Any, timeout: float | None = None) -> int:
        data = bytes(buffer)
        if self._unread:
            return 0
        self.write(data[:16384])
        return len(data[:16384])


class EchoBackend(NetworkBackend):
    def __init__(self, kind: type[EchoStream], room: float) -> None:
        self._kind = kind
        self.room = room
        self.streams: list[EchoStream] = []

    def connect_tcp(self, *arguments: Any, **options: Any) -> NetworkStream:
        self.streams.append(self._kind(self))
        return self.streams[-1]


@pytest.mark.parametrize("kind", [EchoStream, WatchfulEchoStream])
@pytest.mark.parametrize("content", [b"y" * 2_000_000, [b"y" * 20_000] * 100], ids=["bytes", "pieces"])
def test_an_early_answer_that_grows_with_the_request_is_heard(content: Any, kind: type[EchoStream]) -> None:
    backend = EchoBackend(kind, room=200_000)
    with ConnectionPool(network_backend=backend) as pool:
        reply = pool.request("POST", URL, content=content)
        assert reply.content.count(b"y") == 2_000_000
        assert backend.streams[0].is_closed


@pytest.mark.parametrize("kind", [EchoStream, WatchfulEchoStream])
def test_of_an_early_answer_no_more_than_so_much_is_kept(
    kind: type[EchoStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connection, "HEARD_BYTES", 300_000)
    backend = EchoBackend(kind, room=float("inf"))
    with ConnectionPool(network_backend=backend) as pool:
        with pool.stream("POST", URL, content=b"y" * 2_000_000) as reply:
            assert 300_000 < backend.streams[0].bytes_read < 500_000
            assert reply.read().count(b"y") == 2_000_000
        assert backend.streams[0].is_closed


# --- fields and arguments ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "second"), [(b"timeout=1", b"max=100"), (b"max=100", b"timeout=1")])
def test_two_keep_alive_fields_are_as_good_as_one(first: bytes, second: bytes) -> None:
    answer = response(b"ok", headers=b"Keep-Alive: %b\r\nKeep-Alive: %b\r\n" % (first, second))
    with checked_pool(ScriptedBackend([HEAD, answer])) as pool:
        pool.request("GET", URL)
        assert pool.connections == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"age_jitter": "x"}, "age_jitter"),
        ({"socket_options": 5}, "socket_options must be iterable, not int"),
        ({"network_backend": 5}, "network_backend must be an instance of NetworkBackend, not int"),
        ({"network_backend": "sync"}, "network_backend must be an instance of NetworkBackend, not str"),
        ({"network_backend": AsyncNetworkBackend()}, "of NetworkBackend, not AsyncNetworkBackend"),
        (
            {"network_backend": AsyncNetworkBackendInterface()},
            "of NetworkBackend, not AsyncNetworkBackendInterface",
        ),
        ({"network_backend": MemoryBackend}, "of NetworkBackend, not the class MemoryBackend"),
    ],
)
def test_an_argument_of_a_wrong_type_is_refused_in_our_words(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=text):
        ConnectionPool(**arguments)


@pytest.mark.parametrize("request_", ["GET", None, b"GET / HTTP/1.1"])
def test_what_is_no_request_is_refused_in_our_words(request_: Any) -> None:
    backend = MemoryBackend()
    with ConnectionPool(network_backend=backend) as pool:
        with pytest.raises(ArgumentTypeError, match="request must be a Request, not"):
            pool.handle_request(request_)
        assert pool.stats() == EMPTY
    assert not backend.streams


@pytest.mark.parametrize("max_bytes", [0, -1])
def test_a_switched_stream_reads_at_least_one_byte(max_bytes: int) -> None:
    def switch(stream: MemoryStream, head: bytes, body: bytes) -> None:
        stream.feed(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\nlead")

    with ConnectionPool(network_backend=MemoryBackend(switch)) as pool:
        got = pool.handle_request(upgrade())
        stream = got.extensions["network_stream"]
        with pytest.raises(ArgumentValueError, match="max_bytes must be at least 1"):
            stream.read(max_bytes)
        assert stream.read(1) == b"l"
        assert stream.read() == b"ead"  # nothing was lost
        stream.close()


# --- reap --------------------------------------------------------------------------------------------------


def test_reap_closes_the_idle_connections_whose_time_is_over() -> None:
    backend = MemoryBackend()
    clock = Clock()
    with ConnectionPool(network_backend=backend, keepalive_expiry=5.0) as pool:
        use_clock(pool, clock)
        pool.request("GET", OTHER_URL)
        clock.advance(3.0)
        held = pool.handle_request(request_for(f"{URL}held"))
        pool.request("GET", URL)
        pool.reap()
        assert pool.stats() == PoolStats(3, 1, 2, 0, 0, 1)
        clock.advance(2.5)
        pool.reap()
        assert [stream.is_closed for stream in backend.streams] == [True, False, False]
        clock.advance(100.0)
        Worker(pool.reap).result()
        assert [stream.is_closed for stream in backend.streams] == [True, False, True]
        assert held.read() == b"/held"  # one in use is nobody's to reap
        assert pool.stats() == PoolStats(1, 0, 1, 0, 0, 0)
    pool.reap()
    assert backend.live == 0
