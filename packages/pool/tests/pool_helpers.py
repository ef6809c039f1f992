"""A network in memory, played from a script, for the tests of the pool. Nothing here sleeps or opens a socket.

A script is what the server does on one connection, step by step:

- `bytes` come in; each step is what one `read` gets at most. `EOF` ends the stream, `RESET` breaks it.
- `Received(marker)` waits until the client has sent these bytes; `HEAD` until it has sent (another) request head.
- `Delay(seconds)` waits, `Call(function)` does something at this moment.
- `CHECKED` waits until the client has looked whether the stream is readable: what follows comes just after.
- After the last step the server is silent, and leaves the connection open. `stream.feed(...)` adds steps.

Waiting that has a limit only moves the `Clock`, and ends in the error that the contract promises. Waiting that has
none blocks until another thread closes the stream or feeds it; where nobody does, it fails after some seconds.

    backend = ScriptedBackend([HEAD, OK, HEAD, OK], [HEAD, RESET])
    with checked_pool(backend) as pool:
        assert pool.request("GET", "http://a.test/").status == 200

A script may be any iterable, endless ones included: `itertools.cycle([HEAD, OK])`. `Script(...)` has options besides.
Where an exception stands in place of a script, connecting raises it.
"""

from __future__ import annotations

import errno
import threading
import time
import warnings
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    DirectReader,
    InterruptibleWriter,
    Limit,
    NetworkBackend,
    NetworkStream,
    ReadError,
    ThreadRuntime,
    TimeoutException,
    WriteError,
)
from lamina_pool import ConnectionPool

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator

    from lamina_interfaces import BytesLike, SocketOption

PATIENCE = 10.0
"""Seconds of real time after which a wait without a limit is taken for a hang."""


class Clock:
    """Time that passes only when somebody waits."""

    def __init__(self) -> None:
        self._now = time.monotonic()  # comparable with deadlines that were opened by the real clock

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += max(0.0, seconds)

    def spend(self, seconds: float, limit: Limit) -> None:
        """Let something take its time, or as much of it as there is."""
        limit.check()
        remaining = limit.remaining()
        if remaining is not None and remaining < seconds:
            self.advance(remaining + 1e-9)
            raise limit.error()
        self.advance(seconds)


# --- the steps of a script ---------------------------------------------------------------------------------


class Received(NamedTuple):
    """Go on once the client has sent these bytes, behind those that the last such step found."""

    marker: bytes


class Delay(NamedTuple):
    """Go on after so many seconds."""

    seconds: float


class Call(NamedTuple):
    """Call this function, and go on."""

    function: Callable[[], Any]


class _Mark:
    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


HEAD = Received(b"\r\n\r\n")
EOF = _Mark("EOF")
RESET = _Mark("RESET")
CHECKED = _Mark("CHECKED")


def response(body: bytes = b"ok", *, status: str = "200 OK", headers: bytes = b"") -> bytes:
    """A response with a Content-Length; `headers` are whole lines."""
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n%b" % (status.encode(), len(body), headers, body)


OK = response()


class Script:
    """The steps of one connection, and what is peculiar about it.

    Args:
        *steps: see the top of the module.
        fail_write_after: after so many bytes writing fails with `WriteError`.
        stall_write_after: after so many bytes the peer takes no more.
        watchful: whether the stream has `write_until_readable`.
        direct: whether it has `read_into` besides.
        readable: what `is_readable` says; `None` for a stream that cannot say it, "auto" for the truth.
        connect_seconds: what connecting takes.
        tls_seconds: what each `start_tls` takes.
        tls_error: what `start_tls` raises.
        ssl_object: what `get_extra_info("ssl_object")` gives after `start_tls`.
    """

    def __init__(
        self,
        *steps: Any,
        fail_write_after: int | None = None,
        stall_write_after: int | None = None,
        watchful: bool = True,
        direct: bool = False,
        readable: Any = "auto",
        connect_seconds: float = 0.0,
        tls_seconds: float = 0.0,
        tls_error: BaseException | None = None,
        ssl_object: Any = None,
    ) -> None:
        self.steps: Iterable[Any] = steps
        self.fail_write_after = fail_write_after
        self.stall_write_after = stall_write_after
        self.watchful = watchful
        self.direct = direct
        self.readable = readable
        self.connect_seconds = connect_seconds
        self.tls_seconds = tls_seconds
        self.tls_error = tls_error
        self.ssl_object = ssl_object


class ScriptedStream(NetworkStream):
    """One connection of a `ScriptedBackend`.

    Attributes:
        written: everything that the client has sent.
        writes: the same, call by call.
        log: the calls in their order: "check", "read", "write", "start_tls", "close", "abort".
        timeouts: the `timeout` of every read and write, in order.
        is_closed: whether it was closed, in either way.
        tls: the arguments of each `start_tls`.
    """

    def __init__(self, script: Script, clock: Clock, name: str) -> None:
        self.written = bytearray()
        self.writes: list[bytes] = []
        self.log: list[str] = []
        self.timeouts: list[float | None] = []
        self.is_closed = False
        self.tls: list[tuple[ssl.SSLContext, str | None, float | None]] = []
        self._script = script
        self._clock = clock
        self._name = name
        self._steps = iter(script.steps)
        self._fed: deque[Any] = deque()
        self._step: Any = None
        self._due: float | None = None
        self._searched = 0
        self._has_ended = False
        self._changed = threading.Condition()
        self._advance()

    # --- the server's side

    def feed(self, *steps: Any) -> None:
        """Add steps, from any thread."""
        with self._changed:
            self._fed.extend(steps)
            self._changed.notify_all()

    def _next_step(self) -> None:
        self._due = None
        self._step = next(self._steps, None)
        if self._step is None and self._fed:
            self._step = self._fed.popleft()

    def _advance(self) -> bool:
        """Pass every step that needs nothing more. Returns whether a read would return at once."""
        while True:
            if self._step is None:
                self._next_step()
            step = self._step
            if step is None:
                return self._has_ended
            if isinstance(step, Received):
                found = self.written.find(step.marker, self._searched)
                if found < 0:
                    return self._has_ended
                self._searched = found + len(step.marker)
            elif isinstance(step, Delay):
                if self._due is None:
                    self._due = self._clock.now() + step.seconds
                if self._clock.now() < self._due:
                    return self._has_ended
            elif isinstance(step, Call):
                self._step = None
                step.function()
                continue
            elif step is EOF:
                self._has_ended = True
            elif step is CHECKED:
                return self._has_ended
            elif step is RESET:
                return True
            elif step:
                assert isinstance(step, bytes), f"{step!r} is no step"
                return True
            self._step = None

    def _wait(self, limit: Limit, error: type[ReadError | WriteError], until: Callable[[], bool]) -> None:
        """Wait until `until()`; in virtual time if anything says how long."""
        while not until():
            if self.is_closed:
                raise error("the stream was closed meanwhile")
            remaining = limit.remaining()
            due = None if self._due is None else self._due - self._clock.now()
            if due is not None and (remaining is None or due < remaining):
                self._clock.advance(due + 1e-9)
            elif remaining is not None:
                self._clock.advance(remaining + 1e-9)
                raise limit.error()
            else:
                self._block(limit, until)

    def _block(self, limit: Limit, until: Callable[[], bool]) -> None:
        patience = time.monotonic() + PATIENCE
        with self._changed:
            while not (self.is_closed or until() or limit.remaining() is not None):
                if time.monotonic() > patience:
                    raise AssertionError(f"{self!r} waits for ever, and nobody ends it")
                self._changed.wait(0.02)  # a glance: the ambient deadline may be changed by another thread

    # --- the client's side

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        self.log.append("read")
        self.timeouts.append(timeout)
        assert max_bytes is None or max_bytes >= 1
        if self.is_closed:
            raise ReadError("the stream is closed")
        limit = Limit(timeout, self._clock.now, "read")
        limit.check()
        self._wait(limit, ReadError, self._advance)
        if self._has_ended:
            return b""
        step = self._step
        if step is RESET:
            raise ReadError("the connection was reset", errno=errno.ECONNRESET, phase="read")
        size = DEFAULT_READ_SIZE if max_bytes is None else max_bytes
        data: bytes = step[:size]
        self._step = step[size:] or None
        self._advance()
        return data

    def _take(self, data: bytes) -> int:
        """What the system takes of it without waiting."""
        script = self._script
        room = len(data)
        for bound in (script.fail_write_after, script.stall_write_after):
            if bound is not None:
                room = min(room, max(0, bound - len(self.written)))
        if room:
            self.written += data[:room]
            self._advance()
        elif data and len(self.written) == script.fail_write_after:
            raise WriteError("the connection broke", errno=errno.EPIPE, phase="write")
        return room

    def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        self.log.append("write")
        self.timeouts.append(timeout)
        if self.is_closed:
            raise WriteError("the stream is closed")
        limit = Limit(timeout, self._clock.now, "write")
        limit.check()
        data = bytes(buffer)
        self.writes.append(data)
        sent = 0
        while sent < len(data):
            taken = self._take(data[sent:])
            sent += taken
            if not taken:
                self._wait(limit, WriteError, lambda: self._advance() and False)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            self.log.append("check")
            is_readable = self.is_closed or self._advance()
            if self._step is CHECKED:
                self._step = None
                self._advance()
            return is_readable if self._script.readable == "auto" else self._script.readable
        if info == "ssl_object" and self.tls:
            return self._script.ssl_object
        return None

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        self.log.append("start_tls")
        self.tls.append((ssl_context, server_hostname, timeout))
        try:
            self._clock.spend(self._script.tls_seconds, Limit(timeout, self._clock.now, "tls"))
        except TimeoutException:
            self.close()
            raise
        if self._script.tls_error is not None:
            self.close()
            raise self._script.tls_error
        return self

    def close(self) -> None:
        self._shut("close")

    def abort(self) -> None:
        self._shut("abort")

    def _shut(self, how: str) -> None:
        self.log.append(how)
        self.is_closed = True
        with self._changed:
            self._changed.notify_all()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {self._name} [{'closed' if self.is_closed else 'open'}, {self._step!r}]>"
        )

    def __del__(self) -> None:
        if not getattr(self, "is_closed", True):
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=1)


class WatchfulStream(ScriptedStream, InterruptibleWriter):
    """A stream that can stop writing when something comes in."""

    def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        self.log.append("write")
        self.timeouts.append(timeout)
        if self.is_closed:
            raise WriteError("the stream is closed")
        limit = Limit(timeout, self._clock.now, "write")
        limit.check()
        data = bytes(buffer)
        sent = 0
        while sent < len(data) and not self._advance():
            taken = self._take(data[sent : sent + 16384])
            sent += taken
            if not taken:
                self._wait(limit, WriteError, self._advance)
        self.writes.append(data[:sent])
        return sent


class DirectStream(WatchfulStream, DirectReader):
    """One that can read into its user's buffer, too. The log has "read into 5" for a buffer of 5 bytes."""

    def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        size = len(buffer)
        data = self.read(size, timeout)
        self.log[-1] = f"read into {size}"
        buffer[: len(data)] = data
        return len(data)


class Dial(NamedTuple):
    """The arguments of one call to connect; `host` is the path of a unix socket where `port` is `None`."""

    host: str
    port: int | None
    timeout: float | None
    local_address: str | None
    socket_options: tuple[SocketOption, ...] | None


class ScriptedBackend(NetworkBackend):
    """Gives out streams that follow scripts, one script after another.

    Args:
        *scripts: for the first connection, the second, …; one more is a failure of the test.
        clock: the time that waiting takes; by default one of its own.
        otherwise: makes the scripts for all further connections, where there may be any number.

    Attributes:
        dials: every call to connect.
        streams: every stream that was given out, in order.
        sleeps: the arguments of `sleep`.
    """

    def __init__(
        self, *scripts: Any, clock: Clock | None = None, otherwise: Callable[[], Any] | None = None
    ) -> None:
        self.clock = clock or Clock()
        self.dials: list[Dial] = []
        self.streams: list[ScriptedStream] = []
        self.sleeps: list[float] = []
        self._scripts = deque(scripts)
        self._otherwise = otherwise
        self._lock = threading.Lock()

    def _connect(self, dial: Dial) -> NetworkStream:
        with self._lock:
            self.dials.append(dial)
            Limit(dial.timeout, self.clock.now, "connect").check()
            if self._scripts:
                script = self._scripts.popleft()
            elif self._otherwise is not None:
                script = self._otherwise()
            else:
                raise AssertionError(f"one connection more than expected: {dial}")
            if isinstance(script, BaseException):
                raise script
            if not isinstance(script, Script):
                whole = Script()
                whole.steps = script
                script = whole
            self.clock.spend(script.connect_seconds, Limit(dial.timeout, self.clock.now, "connect"))
            kind = DirectStream if script.direct else WatchfulStream if script.watchful else ScriptedStream
            stream = kind(script, self.clock, f"#{len(self.streams)}")
            self.streams.append(stream)
            return stream

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> NetworkStream:
        options = None if socket_options is None else tuple(socket_options)
        return self._connect(Dial(host, port, timeout, local_address, options))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> NetworkStream:
        options = None if socket_options is None else tuple(socket_options)
        return self._connect(Dial(path, None, timeout, None, options))

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        limit = Limit(None, self.clock.now, "connect")
        limit.check()
        remaining = limit.remaining()
        if remaining is not None and remaining <= seconds:
            self.clock.advance(remaining)
            raise limit.error()
        self.clock.advance(seconds)

    @property
    def open_streams(self) -> list[ScriptedStream]:
        return [stream for stream in self.streams if not stream.is_closed]


# --- the pool under test -----------------------------------------------------------------------------------


class VirtualRuntime(ThreadRuntime):
    """The threads' primitives, with the time of a `Clock`. Only its clock is virtual: events really block."""

    def __init__(self, clock: Clock) -> None:
        self.now = staticmethod(clock.now)  # the one thing that is virtual


def use_clock(pool: ConnectionPool, clock: Clock) -> None:
    """Let a new pool live in virtual time."""
    inner = pool._pool
    runtime = VirtualRuntime(clock)
    inner._runtime = inner._dialler._runtime = runtime
    inner._now = inner._dialler._now = clock.now
    inner._world.runtime = runtime  # type: ignore[misc] # the protocol has it for reading only


def idle_streams(pool: ConnectionPool) -> list[Any]:
    """The streams of the connections that idle in the pool, as the backend gave them."""
    slots = pool._pool._scheduler.slots()
    return [slot.connection.stream.public for slot in slots if slot.is_idle]


def check_invariant(pool: ConnectionPool, backend: ScriptedBackend) -> None:
    """What has to hold after every test, without any garbage collection: nothing is held, nothing is left open."""
    stats = pool.stats()
    assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0), stats
    idle = idle_streams(pool)
    assert stats.connections == stats.idle == len(idle), stats
    assert backend.open_streams == [stream for stream in backend.streams if stream in idle]
    assert len(backend.open_streams) == len(idle)


@contextmanager
def checked_pool(
    backend: ScriptedBackend, *, virtual_time: bool = False, **options: Any
) -> Iterator[ConnectionPool]:
    """A pool over this backend; at the end the invariant is checked, before and after closing it.

    Args:
        backend: see above.
        virtual_time: whether the pool, too, goes by the backend's clock. Not where a request waits in the queue with
            a limit: its wait is a real one.
        **options: for the `ConnectionPool`.
    """
    pool = ConnectionPool(network_backend=backend, **options)
    if virtual_time:
        use_clock(pool, backend.clock)
    try:
        yield pool
        check_invariant(pool, backend)
    finally:
        pool.close()
        for stream in backend.streams:
            if (
                pool.stats().active == 0 and not stream.is_closed
            ):  # a failing test reports its own failure only
                stream.abort()
                raise AssertionError(f"{stream!r} was left open by a closed pool")
    assert pool.stats().connections == 0
