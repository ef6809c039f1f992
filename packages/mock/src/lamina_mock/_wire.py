"""A connection in memory: a peer on one side, the stream of the code under test on the other.

A *peer* is plain code. It hears what the client does (`received`, `secured`, `ended`), and answers through its `Line`:
what it says, and when, how it ends, what it does not take. It never waits; time is an argument. A script is a peer, and
so is an HTTP server.

The *wire* between them holds what was said until its time has come, and keeps the contract of
`lamina_interfaces.NetworkStream`: limits, the end that stays the end, who may read and write at the same time, what
state a failure leaves behind. It is written once, as `async def` over a `Runtime`; the two streams are thin faces, and
the blocking one drives it.

What the peer has planned for a later time (`Line.call_at`, `Line.read_again`) happens when somebody looks at the
connection next, in order and with the time at which it was due. Nobody can tell the difference, since whatever
comes of it is seen through the connection only; and no timer is left behind by a connection that nobody looks at.

All wires of a backend share one lock, and a peer is called under it: peers need no locks of their own, and may speak on
each other's lines, as a server does that answers all requests when the last one has come.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    NEVER,
    THREADS,
    ArgumentTypeError,
    AsyncDirectReader,
    AsyncInterruptibleWriter,
    AsyncNetworkBackend,
    AsyncNetworkStream,
    AsyncPromptWriter,
    ConcurrencyError,
    ConnectError,
    DirectReader,
    InterruptibleWriter,
    Limit,
    NetworkBackend,
    NetworkStream,
    PromptCloser,
    PromptWriter,
    ReadError,
    TimingSpan,
    WriteError,
    chain_clock,
    check_seconds,
    current_runtime,
    drive,
)
from lamina_interfaces.dialing import check_host, check_port
from lamina_interfaces.sockets import byte_view, check_read_buffer, check_read_size

from ._clock import MockClock, VirtualClock

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from lamina_interfaces import BytesLike, Event, Phase, Runtime, SocketOption

T = TypeVar("T")

Fault = Literal["reset", "eof", "stall"]
"""How a connection goes wrong: it breaks, the peer ends its side, or nothing moves any more."""

MakePeer = Callable[[str, int], "Peer"]
"""Makes the peer of a new connection, from host and port; for a unix socket they are its path and 0."""

FIRST_CLIENT_PORT = 49152
"""The first of the dynamic ports (RFC 6335, section 6): our side's address is made of them."""

PIECE_SIZE = 64 * 1024
"""Bytes that are sent between two looks whether the peer has answered; as the real backends do."""


@dataclass(frozen=True, slots=True)
class TLSFacts:
    """What a TLS handshake with a mock comes to. Nothing is encrypted.

    Attributes:
        alpn: the protocol that was agreed on (RFC 7301), `"h2"` or `"http/1.1"`; `None` for none.
        version: of TLS.
        cipher: name, protocol version and secret bits, as `ssl.SSLObject.cipher` gives them.
        certificate: the peer's, as `ssl.SSLObject.getpeercert` gives it.
        error: why the handshake fails, with `ConnectError`; `None` if it does not.
        delay: seconds that it takes; `inf` for one that never ends.
    """

    alpn: str | None = None
    version: str = "TLSv1.3"
    cipher: tuple[str, str, int] = ("TLS_AES_256_GCM_SHA384", "TLSv1.3", 256)
    certificate: dict[str, Any] | None = None
    error: str | None = None
    delay: float = 0.0


class MockTLS:
    """What stands for an `ssl.SSLObject` on a mock: the questions that can be answered from `TLSFacts`."""

    __slots__ = ("_facts", "server_hostname")

    def __init__(self, facts: TLSFacts, server_hostname: str | None) -> None:
        self._facts = facts
        self.server_hostname: str | None = server_hostname

    def selected_alpn_protocol(self) -> str | None:
        """The protocol that was agreed on."""
        return self._facts.alpn

    def version(self) -> str:
        """Of TLS."""
        return self._facts.version

    def cipher(self) -> tuple[str, str, int]:
        """Name, protocol version, secret bits."""
        return self._facts.cipher

    def getpeercert(self, binary_form: bool = False) -> dict[str, Any] | bytes | None:
        """The peer's certificate as a dictionary; there is none in DER form."""
        return None if binary_form else (self._facts.certificate or {})


class Peer:
    """The other side of a connection. The base class hears everything and says nothing.

    Attributes:
        name: what messages call it.
        connect_delay: seconds that connecting to it takes; `inf` for ever.
        connect_error: why it cannot be connected to, or `None` if it can.
    """

    name: str = "a silent peer"
    connect_delay: float = 0.0
    connect_error: str | None = None

    def connected(self, line: Line, now: float) -> None:
        """The connection is there; `line` is how to answer."""

    def secured(self, now: float) -> None:
        """The client begins a TLS handshake: the last moment to set `line.tls_facts` or `line.selected_alpn`."""

    def received(self, data: bytes, now: float) -> None:
        """The client has sent bytes, at least one."""

    def ended(self, now: float) -> None:
        """The client has closed or aborted the connection, or broke it off in the midst of a handshake. Comes once."""

    def state(self) -> str:
        """What it waits for, for error messages; empty for nothing worth telling."""
        return ""


class Line:
    """How a peer answers its client. Times are on the clock that `now` of the peer's methods is on.

    Attributes:
        host: that the client has asked for; the path of a unix socket.
        port: as well; 0 for a unix socket.
        tls: whether a TLS handshake has been done.
        server_hostname: the name that the client gave in it.
        tls_facts: what a handshake comes to. To be set before, in `Peer.secured` at the latest.
    """

    def __init__(self, wire: Wire, host: str, port: int) -> None:
        self._wire = wire
        self.host: str = host
        self.port: int = port
        self.tls: bool = False
        self.server_hostname: str | None = None
        self.tls_facts: TLSFacts = TLSFacts()

    @property
    def selected_alpn(self) -> str | None:
        """The protocol that a handshake agrees on: `tls_facts.alpn`."""
        return self.tls_facts.alpn

    @selected_alpn.setter
    def selected_alpn(self, protocol: str | None) -> None:
        self.tls_facts = replace(self.tls_facts, alpn=protocol)

    def say(self, data: bytes, at: float = 0.0) -> None:
        """Let the client read these bytes, from the time `at` on; never before what was said earlier."""
        if data:
            self._wire.say(data, at)

    def end(self, at: float = 0.0) -> None:
        """End the peer's side in an orderly way, after what was said."""
        self._wire.say("eof", at)

    def reset(self, at: float = 0.0) -> None:
        """Break the connection: reading fails after what was said, writing fails from that time on."""
        self._wire.say("reset", at)

    @property
    def unread(self) -> int:
        """Bytes that the client could have read before it closed, and has not; what a fault hides does not count."""
        return self._wire.unread()

    def call_at(self, at: float, function: Callable[[float], object]) -> None:
        """Have a function called at that time, with the time. It may use the line; what is said keeps its order."""
        self._wire.plan(at, function)

    def stop_reading(self, capacity: int = 0) -> None:
        """Take nothing more but what fits into the buffers between the two: `capacity` bytes. Then writes wait."""
        self._wire.capacity = capacity

    def read_again(self, at: float = 0.0) -> None:
        """Take what is waiting and whatever comes, from that time on."""
        self._wire.plan(at, self._wire.take_again)

    def read_at_most(self, size: int) -> None:
        """Let no read of the client return more than `size` bytes."""
        self._wire.read_size = size

    def fault_after_reading(self, size: int, fault: Fault) -> None:
        """Let that happen once the client has read `size` bytes of this connection, whatever was said."""
        self._wire.read_fault = (size, fault)

    def fault_after_writing(self, size: int, fault: Fault) -> None:
        """Let that happen once the client has written `size` bytes; the peer hears of no more."""
        self._wire.fail_after_writing(size, fault)

    def __repr__(self) -> str:
        return f"<Line [{self._wire.describe()}]>"


class Wire:
    """What lies between a peer and a stream. See the top of the module.

    Args:
        peer: the other side.
        clock: that waits are on.
        runtime: that the stream is used in.
        lock: over this connection and its peer; never held for longer than a peer takes to answer.
        host: for the line, and for addresses.
        port: as well.
        client_port: our own.

    Attributes:
        line: what the peer has.
        capacity: bytes that it still takes, `None` for all.
        read_size: the most bytes that one read gives.
        read_fault: after so many bytes that were read, this.
    """

    def __init__(
        self,
        peer: Peer,
        clock: MockClock,
        runtime: Runtime,
        lock: threading.RLock,
        host: str,
        port: int,
        client_port: int,
    ) -> None:
        self._peer = peer
        self._clock = clock
        self._now = clock.now_in(runtime)
        self._client_port = client_port
        self.line: Line = Line(self, host, port)
        self._lock = lock
        self._numbers = count()
        self._plans: list[tuple[float, int, Callable[[float], object]]] = []
        self._said: deque[tuple[float, bytes | Fault]] = deque()
        self._said_until = 0.0
        self.capacity: int | None = None
        self._held = b""
        self.read_size: int | None = None
        self.read_fault: tuple[int, Fault] | None = None
        self._write_fault: tuple[int, Fault] | None = None
        self._read = self._written = 0
        self._reset_at = NEVER
        self._half_sent = self._closed = False
        self._closed_at = 0.0
        self._busy: dict[str, Event | None] = {}  # by "reading" and "writing": what whoever does it waits on
        self._tls: MockTLS | None = None
        self._timings: tuple[TimingSpan, ...] = ()

    # --- the peer's side -----------------------------------------------------------------------------------

    def say(self, what: bytes | Fault, at: float) -> None:
        with self._lock:
            self._said_until = max(at, self._said_until)
            if isinstance(what, bytes):
                # In pieces as they are read: cutting them off one large one would copy the rest each time.
                for start in range(0, len(what), DEFAULT_READ_SIZE):
                    self._said.append((self._said_until, what[start : start + DEFAULT_READ_SIZE]))
            else:
                self._said.append((self._said_until, what))
                if what == "reset":
                    self._reset_at = min(self._reset_at, self._said_until)
            self._wake()

    def unread(self) -> int:
        with self._lock:
            now = self._closed_at if self._closed else self._settle()
            said = sum(len(what) for at, what in self._said if at <= now and isinstance(what, bytes))
            return said if self.read_fault is None else min(said, max(0, self.read_fault[0] - self._read))

    def plan(self, at: float, function: Callable[[float], object]) -> None:
        with self._lock:
            heappush(self._plans, (at, next(self._numbers), function))
            self._wake()

    def take_again(self, now: float) -> None:
        self.capacity = None
        held, self._held = self._held, b""
        if held:
            self._peer.received(held, now)
        self._wake()

    # --- the client's side: what does not wait -------------------------------------------------------------

    def _settle(self) -> float:
        """Let happen what the peer has planned up to now; returns the present. Under the lock."""
        now = self._now()
        while self._plans and self._plans[0][0] <= now and not self._closed:
            at, _, function = heappop(self._plans)
            function(at)
        return now

    def _wake(self) -> None:
        for event in self._busy.values():
            if event is not None:
                event.set()

    def _next_due(self, now: float) -> float:
        """When something happens by itself, perhaps nothing that matters."""
        plan = self._plans[0][0] if self._plans else NEVER
        # What could be read already does not help whoever still waits.
        return min(plan, next((at for at, _ in self._said if at > now), NEVER))

    def _rest_to_read(self) -> int | Fault | None:
        """How many bytes there are until the fault, `None` for no fault; or the fault itself."""
        if self.read_fault is None:
            return None
        size, fault = self.read_fault
        return size - self._read if size > self._read else fault

    def _take(self, size: int, now: float, *, look: bool = False) -> bytes | None:
        """What a read gives now; `None` if it has to wait. With `look` nothing is taken."""
        rest = self._rest_to_read()
        if rest is None or isinstance(rest, int):
            if not self._said or self._said[0][0] > now:
                return None
            what = self._said[0][1]
            size = min(size, self.read_size or size, rest or size)
        else:
            what = rest
        if isinstance(what, bytes):
            piece = what[:size]
            if not look:
                self._read += len(piece)
                if len(piece) == len(what):
                    self._said.popleft()
                else:
                    self._said[0] = (self._said[0][0], what[size:])
            return piece
        if what == "eof":
            return b""  # and stays in its place
        if what == "stall":
            return None
        if not look:
            self._reset_at = min(self._reset_at, now)
            raise ReadError(f"the connection was reset by {self._peer.name}", phase="read")
        return b""

    def fail_after_writing(self, size: int, fault: Fault) -> None:
        with self._lock:
            self._write_fault = (size, fault)
            self._look_at_written(self._now())

    def _look_at_written(self, now: float) -> None:
        """Bring the fault about if its byte has been written."""
        if self._write_fault is None or self._written < self._write_fault[0]:
            return
        fault = self._write_fault[1]
        if fault != "stall":
            # What the peer would have said later it does not say any more.
            self._said = deque((at, what) for at, what in self._said if at <= now)
            self._said_until = now
            self.say(fault, now)
        if fault == "reset":
            self._reset_at = now  # whatever was said before

    def _check_writing(self, now: float) -> None:
        if now >= self._reset_at:
            raise WriteError(f"the connection was reset by {self._peer.name}", phase="write")
        if self._half_sent:
            raise WriteError(
                "an earlier write was broken off, so that the peer has an unknown part of it", phase="write"
            )

    def _takes_more(self) -> bool:
        """Whether a byte that is written now is taken."""
        if self._write_fault is not None and self._write_fault[1] == "stall":
            return self._written < self._write_fault[0] and self.capacity != 0
        return self.capacity != 0

    def _send(self, data: bytes, now: float) -> int:
        """Hand over what the peer takes; how much that was."""
        self._check_writing(now)
        size = len(data)
        if self._write_fault is not None:
            before, fault = self._write_fault
            size = max(0, min(size, before - self._written))
            if not size:
                # One that has ended its side throws away what comes.
                return 0 if fault == "stall" else len(data)
        if self.capacity is not None:
            size = min(size, self.capacity)
            self.capacity -= size
            self._held += data[:size]
        self._written += size
        if size and self.capacity is None:
            self._peer.received(data[:size], now)
        if size:
            self._look_at_written(now)
        return size

    def close(self) -> None:
        """Close the client's side. From anywhere, as often as one likes."""
        with self._lock:
            if self._closed:
                return
            self._closed_at = self._now()
            try:
                self._settle()
            finally:
                self._closed = True
                self._wake()
            self._peer.ended(self._closed_at)

    @property
    def is_readable(self) -> bool:
        with self._lock:
            if self._closed:
                return True
            return self._can_read(self._settle())

    # --- the client's side: what waits ---------------------------------------------------------------------

    def _enter(
        self,
        roles: tuple[str, ...],
        limit: Limit,
        *,
        against: tuple[str, ...] = (),
        reading_too: bool = False,
    ) -> tuple[str, ...]:
        """Become the only one who does such a thing, until `_repeat` is over.

        Args:
            roles: what is done, "reading" or "writing" or "waiting".
            limit: of the operation.
            against: what nobody else may be doing, besides.
            reading_too: be the reader as well, unless another is.

        Returns:
            The roles that were taken.
        """
        with self._lock:
            if self._closed:
                raise _closed(limit.phase)
            taken = [role for role in (*roles, *against) if role in self._busy]
            if taken:
                message = f"another thread or task is {taken[0]} on this stream"
                raise ConcurrencyError(message, phase=limit.phase)
            if reading_too and "reading" not in self._busy:
                roles = (*roles, "reading")
            self._busy.update(dict.fromkeys(roles))
            return roles

    async def _repeat(
        self, roles: tuple[str, ...], runtime: Runtime, limit: Limit, step: Callable[[float], T | None]
    ) -> T:
        """Repeat a step, with the present, for as long as it gives `None`, which means that it has to wait."""
        try:
            while True:
                event = runtime.create_event()
                with self._lock:
                    if self._closed:
                        raise _closed(limit.phase)
                    now = self._settle()
                    result = step(now)
                    if result is not None:
                        return result
                    due = self._next_due(now)
                    self._busy.update(dict.fromkeys(roles, event))
                limit.check()
                await self._clock.wait(event, due, limit, runtime, lambda: self._explain(limit.phase))
        except BaseException as error:
            if not isinstance(error, Exception):
                limit.interrupted()
            raise
        finally:
            self._leave(roles)

    def _leave(self, roles: tuple[str, ...]) -> None:
        with self._lock:
            for role in roles:
                del self._busy[role]

    def _can_read(self, now: float) -> bool:
        return self._take(1, now, look=True) is not None

    async def read(self, runtime: Runtime, max_bytes: int | None, timeout: float | None) -> bytes:
        size = DEFAULT_READ_SIZE if max_bytes is None else check_read_size(max_bytes)
        limit = Limit(timeout, self._now, "read")
        limit.check()
        return await self._repeat(
            self._enter(("reading",), limit), runtime, limit, lambda now: self._take(size, now)
        )

    async def read_into(self, runtime: Runtime, buffer: bytearray | memoryview, timeout: float | None) -> int:
        with check_read_buffer(buffer) as view:
            data = await self.read(runtime, len(view), timeout)
            view[: len(data)] = data
        return len(data)

    async def write(
        self, runtime: Runtime, buffer: BytesLike, timeout: float | None, *, until_readable: bool = False
    ) -> int:
        limit = Limit(timeout, self._now, "write")
        with byte_view(buffer) as view:
            data = bytes(view)
        limit.check()
        roles = self._enter(("writing",), limit, reading_too=until_readable)
        # While another reads, that one hears the answer.
        watches = "reading" in roles
        sent = 0

        def step(now: float) -> int | None:
            nonlocal sent
            self._check_writing(now)
            while sent < len(data) and not (watches and self._can_read(now)):
                taken = self._send(data[sent : sent + PIECE_SIZE], now)
                if not taken:
                    return None
                sent += taken
            return sent

        try:
            return await self._repeat(roles, runtime, limit, step)
        except BaseException:
            self._half_sent = True
            raise

    def write_now(self, buffer: BytesLike) -> int:
        with byte_view(buffer) as view, self._lock:
            if self._closed:
                raise _closed("write")
            if "writing" in self._busy:
                return 0
            now = self._settle()
            self._check_writing(now)
            return self._send(bytes(view), now)

    async def wait_writable(self, runtime: Runtime, timeout: float | None) -> None:
        limit = Limit(timeout, self._now, "write")
        limit.check()
        roles = self._enter(("waiting",), limit, against=("writing",), reading_too=True)
        watches = "reading" in roles

        def step(now: float) -> bool | None:
            self._check_writing(now)
            return True if self._takes_more() or (watches and self._can_read(now)) else None

        await self._repeat(roles, runtime, limit, step)

    async def start_tls(
        self,
        runtime: Runtime,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None,
        timeout: float | None,
    ) -> None:
        # Whatever is wrong with the arguments closes the stream; but not somebody else's.
        roles = self._enter(("reading", "writing"), Limit(None, self._now, "tls"), against=("waiting",))
        facts = TLSFacts()
        start = self._now()
        try:
            try:
                limit = Limit(timeout, self._now, "tls")
                limit.check()
                _check_tls(ssl_context, server_hostname)
                with self._lock:
                    self.line.server_hostname = server_hostname
                    self._peer.secured(start)
                    facts = self.line.tls_facts
                    self.plan(start + facts.delay, lambda _: None)
            except BaseException:
                self._leave(roles)
                raise
            await self._repeat(
                roles, runtime, limit, lambda now: True if now >= start + facts.delay else None
            )
            if facts.error is not None:
                raise ConnectError(f"the TLS handshake failed: {facts.error}", phase="tls")
        except BaseException:
            self.close()
            raise
        with self._lock:
            self.line.tls = True
            self._tls = MockTLS(facts, server_hostname)
            self._timings += (TimingSpan("tls", start, self._now()),)

    async def connect(self, runtime: Runtime, limit: Limit) -> None:
        """Connect, as slowly as the peer has it, or not at all."""
        start = self._now()
        done_at = start + self._peer.connect_delay
        self.plan(done_at, lambda _: None)
        roles = self._enter(("reading", "writing"), limit)
        await self._repeat(roles, runtime, limit, lambda now: True if now >= done_at else None)
        if self._peer.connect_error is not None:
            raise ConnectError(self._peer.connect_error, phase="connect")
        self._timings = (TimingSpan("tcp" if self.line.port else "unix", start, self._now()),)
        with self._lock:
            self._peer.connected(self.line, self._now())

    # --- words ---------------------------------------------------------------------------------------------

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "is_readable":
                return self.is_readable
            case "ssl_object":
                return self._tls
            case "timings":
                return self._timings
            case "client_addr":
                return ("127.0.0.1", self._client_port) if self.line.port else ""
            case "server_addr":
                return (self.line.host, self.line.port) if self.line.port else self.line.host
        return None

    def describe(self) -> str:
        """The state in a few words, for a `repr`."""
        line = self.line
        address = f"{line.host}:{line.port}" if line.port else line.host
        return f"{'closed' if self._closed else 'open'}, {address}, {self._peer.name}{', TLS' if line.tls else ''}"

    def _explain(self, phase: Phase | None) -> str:
        state = self._peer.state()
        return (
            f"nothing can end the wait to {phase}: {self._peer.name} has nothing more to say or do, and no time limit "
            f"is set{'; it ' + state if state else ''}"
        )


def _check_tls(ssl_context: object, server_hostname: str | None) -> None:
    if not hasattr(ssl_context, "wrap_bio"):  # as `ssl.SSLContext` has, which is not imported for this
        raise ArgumentTypeError(f"ssl_context must be an ssl.SSLContext, not {type(ssl_context).__name__}")
    if server_hostname is not None:
        check_host(server_hostname)


def _closed(phase: Phase | None) -> Exception:
    kinds: dict[Any, type[Exception]] = {"read": ReadError, "write": WriteError}
    error: Exception = kinds.get(phase, ConnectError)("the stream is closed")
    error.phase = phase  # type: ignore[attr-defined]  # all three have it
    return error


# --- the faces ---------------------------------------------------------------------------------------------


class WireStream(NetworkStream, DirectReader, InterruptibleWriter, PromptWriter):
    """A stream to a mock's peer. The contract is `NetworkStream`'s; waits are on the mock's clock.

    Beyond the contract, `DeadlockError` is raised where nothing can end a wait, and whatever the peer raises on what it
    has received, such as a script's `ScriptError`.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """Wait for bytes, and return those that have come. See `NetworkStream.read`."""
        return drive(self._wire.read(THREADS, max_bytes, timeout))

    def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """Wait for bytes, put them into the buffer, and return how many. See `DirectReader`."""
        return drive(self._wire.read_into(THREADS, buffer, timeout))

    def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """Send all the bytes. See `NetworkStream.write`."""
        drive(self._wire.write(THREADS, buffer, timeout))

    def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        """Send the bytes, but return early once something can be read. See `InterruptibleWriter`."""
        return drive(self._wire.write(THREADS, buffer, timeout, until_readable=True))

    def write_now(self, buffer: BytesLike) -> int:
        """Send as many of the bytes as the peer takes at once. See `PromptWriter`."""
        return self._wire.write_now(buffer)

    def wait_writable(self, timeout: float | None = None) -> None:
        """Wait until the peer takes more, or something can be read. See `PromptWriter`."""
        drive(self._wire.wait_writable(THREADS, timeout))

    @property
    def has_unsent(self) -> bool:
        """Never: what the peer has not taken is the caller's still. See `PromptWriter`."""
        return False

    def close(self) -> None:
        """Close the stream. See `NetworkStream.close`."""
        self._wire.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> WireStream:
        """Do as if a handshake had taken place, as the peer has it. See `NetworkStream.start_tls`."""
        drive(self._wire.start_tls(THREADS, ssl_context, server_hostname, timeout))
        return self

    def get_extra_info(self, info: str) -> Any:
        """Tell something about the connection; there is no `"socket"`. See `NetworkStream.get_extra_info`."""
        return self._wire.get_extra_info(info)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self._wire.describe()}]>"


class AsyncWireStream(
    AsyncNetworkStream, AsyncDirectReader, AsyncInterruptibleWriter, AsyncPromptWriter, PromptCloser
):
    """`WireStream` for asyncio and trio."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """Wait for bytes, and return those that have come. See `NetworkStream.read`."""
        return await self._wire.read(current_runtime(), max_bytes, timeout)

    async def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """Wait for bytes, put them into the buffer, and return how many. See `DirectReader`."""
        return await self._wire.read_into(current_runtime(), buffer, timeout)

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """Send all the bytes. See `NetworkStream.write`."""
        await self._wire.write(current_runtime(), buffer, timeout)

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        """Send the bytes, but return early once something can be read. See `InterruptibleWriter`."""
        return await self._wire.write(current_runtime(), buffer, timeout, until_readable=True)

    def write_now(self, buffer: BytesLike) -> int:
        """Send as many of the bytes as the peer takes at once. See `AsyncPromptWriter`."""
        return self._wire.write_now(buffer)

    async def wait_writable(self, timeout: float | None = None) -> None:
        """Wait until the peer takes more, or something can be read. See `AsyncPromptWriter`."""
        await self._wire.wait_writable(current_runtime(), timeout)

    @property
    def has_unsent(self) -> bool:
        """Never: what the peer has not taken is the caller's still. See `PromptWriter`."""
        return False

    async def aclose(self) -> None:
        """Close the stream. See `NetworkStream.close`."""
        self._wire.close()

    def close_now(self) -> None:
        """Close the stream. See `PromptCloser.close_now`."""
        self._wire.close()

    def abort(self) -> None:
        """Close the stream. See `NetworkStream.abort`."""
        self._wire.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncWireStream:
        """Do as if a handshake had taken place, as the peer has it. See `NetworkStream.start_tls`."""
        await self._wire.start_tls(current_runtime(), ssl_context, server_hostname, timeout)
        return self

    def get_extra_info(self, info: str) -> Any:
        """Tell something about the connection; there is no `"socket"`. See `NetworkStream.get_extra_info`."""
        return self._wire.get_extra_info(info)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self._wire.describe()}]>"


class _Network:
    """What makes wires: the part that a blocking backend and an async one share."""

    def __init__(self, make_peer: MakePeer, clock: MockClock | None) -> None:
        self.make_peer = make_peer
        self._clock = clock
        # A thread that is started in the block of a clock is outside of it: there is no ambient one there.
        own = VirtualClock()
        ambient = chain_clock(own)
        self._own_clock = ambient if isinstance(ambient, VirtualClock) else own
        self._ports = count(FIRST_CLIENT_PORT)
        self._lock = threading.RLock()  # a peer may speak while it is spoken to

    def _clock_here(self) -> MockClock:
        if self._clock is not None:
            return self._clock
        ambient = chain_clock(self._own_clock)
        return ambient if isinstance(ambient, VirtualClock) else self._own_clock

    async def connect(self, runtime: Runtime, host: str, port: int, timeout: float | None) -> Wire:
        clock = self._clock_here()
        if isinstance(clock, VirtualClock) and runtime.name == "threads":
            clock.use()
        limit = Limit(timeout, clock.now_in(runtime), "connect")
        limit.check()
        with self._lock:
            peer = self.make_peer(host, port)
        wire = Wire(peer, clock, runtime, self._lock, host, port, next(self._ports))
        await wire.connect(runtime, limit)
        return wire

    async def sleep(self, runtime: Runtime, seconds: float) -> None:
        clock = self._clock_here()
        now = clock.now_in(runtime)
        end = now() + check_seconds(seconds, "seconds")
        limit = Limit(None, now, "connect")
        while now() < end:
            limit.check()
            await clock.wait(
                runtime.create_event(), end, limit, runtime, lambda: "nothing can end this sleep"
            )


class PeerBackend(NetworkBackend):
    """A backend whose connections lead to peers in memory. Safe to use from several threads.

    Args:
        make_peer: called with host and port for each connection. It may raise, as connecting may. Neither it nor a peer
            is ever called by two threads at once.
        clock: that the connections wait on; `RuntimeClock()` for real time. By default that of the `VirtualClock` block
            around the call, or else around the making of the backend, or else a `VirtualClock` of the backend's own.
    """

    def __init__(self, make_peer: MakePeer, *, clock: MockClock | None = None) -> None:
        self._network = _Network(make_peer, clock)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> WireStream:
        """Open a stream to a new peer. See `NetworkBackend.connect_tcp`."""
        check_host(host)
        check_port(port)
        return WireStream(drive(self._network.connect(THREADS, host, port, timeout)))

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> WireStream:
        """Open a stream to a new peer. See `NetworkBackend.connect_unix_socket`."""
        return WireStream(drive(self._network.connect(THREADS, _checked_path(path), 0, timeout)))

    def sleep(self, seconds: float) -> None:
        """Wait on the backend's clock. See `NetworkBackend.sleep`."""
        drive(self._network.sleep(THREADS, seconds))

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class AsyncPeerBackend(AsyncNetworkBackend):
    """`PeerBackend` for asyncio and trio."""

    def __init__(self, make_peer: MakePeer, *, clock: MockClock | None = None) -> None:
        self._network = _Network(make_peer, clock)

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncWireStream:
        """Open a stream to a new peer. See `NetworkBackend.connect_tcp`."""
        check_host(host)
        check_port(port)
        return AsyncWireStream(await self._network.connect(current_runtime(), host, port, timeout))

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> AsyncWireStream:
        """Open a stream to a new peer. See `NetworkBackend.connect_unix_socket`."""
        return AsyncWireStream(
            await self._network.connect(current_runtime(), _checked_path(path), 0, timeout)
        )

    async def sleep(self, seconds: float) -> None:
        """Wait on the backend's clock. See `NetworkBackend.sleep`."""
        await self._network.sleep(current_runtime(), seconds)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


def _checked_path(path: str) -> str:
    if not isinstance(path, str):
        raise ArgumentTypeError(f"path must be a str, not {type(path).__name__}")
    return path
