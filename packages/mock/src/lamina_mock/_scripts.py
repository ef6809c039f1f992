"""Scripts: what a peer expects and does, step by step, and the peer that plays one on a connection.

A `Script` is a list of steps, of three kinds. *Acts* (reply, stall, end) are done as soon as the script comes to them,
with the time at which they take place. *Expectations* wait for the client's bytes. A *handshake* waits for the client
to begin TLS. `Play` is one run through a script; it keeps its place, and a script may be played many times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from lamina_interfaces import NEVER, ArgumentTypeError, ArgumentValueError, check_seconds

from ._failures import ScriptError
from ._wire import Peer, TLSFacts

if TYPE_CHECKING:
    from typing import Self

    from lamina_interfaces import BytesLike

    from ._wire import Fault, Line

LONGEST_HEAD = 1024 * 1024
"""Bytes of a head that h11 takes before it calls it too long. Generous: nobody attacks a test."""

SHOWN_BYTES = 400
"""Bytes that a comparison shows, a quarter of them before the first difference."""


# --- steps -------------------------------------------------------------------------------------------------


class Matcher(Protocol):
    """Compares what comes with what is expected."""

    def feed(self, data: bytes) -> bytes | None:
        """Take the next bytes; `None` if more are needed, else those that are left over.

        Raises:
            Mismatch: they are not what is expected.
        """
        ...


class Mismatch(Exception):
    """What came is not what is expected; the text says how."""


@dataclass(frozen=True, slots=True)
class Expect:
    """Certain bytes."""

    data: bytes

    def matcher(self) -> Matcher:
        return BytesMatcher(self.data)

    def __str__(self) -> str:
        return f"expect {_shortly(self.data)}"


@dataclass(frozen=True, slots=True)
class ExpectRequest:
    """An HTTP/1.1 request; what is `None` may be anything."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes | None

    def matcher(self) -> Matcher:
        return RequestMatcher(self)

    def __str__(self) -> str:
        return f"expect request {self.method.decode('latin-1')} {self.target.decode('latin-1')}"


@dataclass(frozen=True, slots=True)
class Reply:
    """Say something, in pieces perhaps."""

    pieces: tuple[bytes, ...]
    after: float
    every: float

    def act(self, line: Line, at: float) -> float:
        at += self.after
        for number, piece in enumerate(self.pieces):
            at += self.every if number else 0.0
            line.say(piece, at)
        return at

    def __str__(self) -> str:
        return f"reply {_shortly(b''.join(self.pieces))}"


@dataclass(frozen=True, slots=True)
class Stall:
    """Do nothing, for ever if `seconds` is `inf`."""

    seconds: float

    def act(self, line: Line, at: float) -> float:
        return at + self.seconds

    def __str__(self) -> str:
        return "stall" if self.seconds == NEVER else f"stall {self.seconds:g} s"


@dataclass(frozen=True, slots=True)
class Ending:
    """End the peer's side, or break the connection."""

    kind: str
    after: float

    def act(self, line: Line, at: float) -> float:
        end = line.end if self.kind == "eof" else line.reset
        end(at + self.after)
        return at + self.after

    def __str__(self) -> str:
        return self.kind


@dataclass(frozen=True, slots=True)
class BlackHole:
    """Take no more than fits into the buffers, and say nothing any more."""

    capacity: int

    def act(self, line: Line, at: float) -> float:
        line.stop_reading(self.capacity)
        return NEVER

    def __str__(self) -> str:
        return "black hole"


@dataclass(frozen=True, slots=True)
class Handshake:
    """The client begins TLS."""

    facts: TLSFacts

    def __str__(self) -> str:
        return "TLS handshake"


Step = Expect | ExpectRequest | Reply | Stall | Ending | BlackHole | Handshake


class BytesMatcher:
    """Compares bytes."""

    def __init__(self, expected: bytes) -> None:
        self._expected = expected
        self._came = b""

    def feed(self, data: bytes) -> bytes | None:
        self._came += data
        size = len(self._expected)
        if not self._came.startswith(self._expected[: len(self._came)]):
            raise Mismatch(f"something else came:\n{compare(self._expected, self._came[:size])}")
        return None if len(self._came) < size else self._came[size:]

    def __str__(self) -> str:
        return f"{len(self._came)} of {len(self._expected)} bytes have come"


class RequestMatcher:
    """Reads a request with h11, and compares what the script tells of it."""

    def __init__(self, expected: ExpectRequest) -> None:
        h11: Any = import_h11("Script.expect_request")
        self._h11 = h11
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=LONGEST_HEAD)
        self._expected = expected
        self._request: Any = None
        self._body: list[bytes] = []

    def feed(self, data: bytes) -> bytes | None:
        h11, connection = self._h11, self._connection
        try:
            connection.receive_data(data)
            while True:
                event = connection.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.Request):
                    self._request = event
                    self._compare_head()
                elif isinstance(event, h11.Data):
                    self._body.append(bytes(event.data))
                elif isinstance(event, h11.EndOfMessage):
                    break
        except h11.RemoteProtocolError as error:
            raise Mismatch(f"what came is not a request: {error}") from error
        body = b"".join(self._body)
        if self._expected.body not in (None, body):
            raise Mismatch(f"another body came:\n{compare(self._expected.body or b'', body)}")
        rest: bytes = connection.trailing_data[0]
        return rest

    def _compare_head(self) -> None:
        expected, request = self._expected, self._request
        wanted = [expected.method + b" " + expected.target]
        came = [request.method + b" " + request.target]
        rest = list(request.headers)  # each stands for one that is expected
        for name, value in expected.headers:
            wanted.append(name + b": " + value)
            values = [have for key, have in rest if key == name]
            if values:
                have = value if value in values else values[0]
                rest.remove((name, have))
                came.append(name + b": " + have)
        if wanted != came:
            raise Mismatch(f"another request came:\n{compare_lines(wanted, came)}")

    def __str__(self) -> str:
        return "its head has not come" if self._request is None else "its body has not come"


# --- scripts -----------------------------------------------------------------------------------------------


class Script:
    r"""What a peer does on one connection. Each method adds a step and returns the script.

    .. code-block:: python

        from lamina_mock import Script, ScriptedBackend

        script = Script("a slow greeting").expect(b"HELLO\r\n").reply(b"WELCOME\r\n", after=2.5).eof()
        with ScriptedBackend(script) as backend, backend.connect_tcp("mail.example.org", 25) as stream:
            stream.write(b"HELLO\r\n")
            assert stream.read(timeout=3.0) == b"WELCOME\r\n"  # 2.5 seconds later, of which none was waited

    Times are seconds on the clock of the connection, counted from the step before. What the client writes is compared
    as it comes; what it writes without being expected, and what it never writes or reads, is a `ScriptError`.

    A script may be played on any number of connections; a step that is added later counts for later ones.

    Args:
        name: what errors call it.
    """

    def __init__(self, name: str = "a script") -> None:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"the name of a script is a str, not {type(name).__name__}")
        self.name: str = name
        self._steps: list[Step] = []
        self._settings: list[Callable[[Line], object]] = []
        self._connect_delay = 0.0
        self._connect_error: str | None = None

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps so far; `str()` of one says what it is."""
        return tuple(self._steps)

    def _add(self, step: Step) -> Self:
        last = self._steps[-1] if self._steps else None
        if (
            isinstance(last, BlackHole)
            or last == Stall(NEVER)
            or (isinstance(last, Ending) and last.kind == "reset")
        ):
            raise ArgumentValueError(f"script {self.name!r}: nothing comes after {str(last)!r}")
        self._steps.append(step)
        return self

    # --- what is expected ----------------------------------------------------------------------------------

    def expect(self, data: BytesLike) -> Self:
        """The client writes exactly these bytes, in as many writes as it likes."""
        return self._add(Expect(_some_bytes(data)))

    def expect_request(
        self,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        body: BytesLike | None = None,
    ) -> Self:
        """The client writes an HTTP/1.1 request. Needs h11, which the extra `http` brings.

        Args:
            method: of the request.
            target: as it stands in the request line, `"/path?query"`.
            headers: that it has, among others; the case of the names does not matter.
            body: all of it, decoded if it is chunked; `None` for any.
        """
        import_h11("Script.expect_request")
        pairs = headers.items() if isinstance(headers, Mapping) else headers
        fields = tuple((name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs)
        if not isinstance(body, (bytes, bytearray, memoryview, type(None))):
            raise ArgumentTypeError(f"the body of a request is bytes, not {type(body).__name__}")
        content = None if body is None else bytes(body)
        return self._add(ExpectRequest(method.encode("ascii"), target.encode("ascii"), fields, content))

    def tls(
        self,
        *,
        alpn: str | None = None,
        error: str | None = None,
        delay: float = 0.0,
        certificate: dict[str, Any] | None = None,
        facts: TLSFacts | None = None,
    ) -> Self:
        """The client begins a TLS handshake, which comes to this. Nothing is encrypted.

        A script without this step takes a handshake before the first byte, and agrees on no protocol.

        Args:
            alpn: the protocol that is agreed on.
            error: why the handshake fails.
            delay: seconds that it takes; `inf` for one that never ends.
            certificate: what `getpeercert` gives.
            facts: all of this and more, instead.
        """
        if facts is None:
            facts = TLSFacts(
                alpn=alpn, error=error, delay=check_seconds(delay, "delay"), certificate=certificate
            )
        return self._add(Handshake(facts))

    # --- what the peer does --------------------------------------------------------------------------------

    def reply(self, data: BytesLike, *, after: float = 0.0, pieces: int = 1, every: float = 0.0) -> Self:
        """Say these bytes.

        Args:
            data: the bytes.
            after: seconds from the step before.
            pieces: in how many parts, each of which is a read of its own.
            every: seconds from one piece to the next.
        """
        content = _some_bytes(data)
        if isinstance(pieces, bool) or not isinstance(pieces, int):
            raise ArgumentTypeError(f"pieces must be an int, not {type(pieces).__name__}")
        if not 1 <= pieces <= len(content):
            raise ArgumentValueError(
                f"pieces must be from 1 to {len(content)}, one for each byte; got {pieces}"
            )
        cuts = [len(content) * number // pieces for number in range(pieces + 1)]
        parts = tuple(content[start:end] for start, end in pairwise(cuts))
        return self._add(Reply(parts, check_seconds(after, "after"), check_seconds(every, "every")))

    def stall(self, seconds: float | None = None) -> Self:
        """Do nothing for so long; `None` for ever."""
        return self._add(Stall(check_seconds(seconds, "seconds")))

    def eof(self, *, after: float = 0.0) -> Self:
        """End the peer's side in an orderly way."""
        return self._add(Ending("eof", check_seconds(after, "after")))

    def reset(self, *, after: float = 0.0) -> Self:
        """Break the connection; what was said before can still be read."""
        return self._add(Ending("reset", check_seconds(after, "after")))

    def black_hole(self, *, capacity: int = 0) -> Self:
        """From here on take `capacity` bytes, as the buffers of the system would, and let writes wait; say nothing."""
        return self._add(BlackHole(check_size(capacity, "capacity")))

    # --- what holds throughout -----------------------------------------------------------------------------

    def refuse(self, reason: str = "connection refused") -> Self:
        """The connection cannot be made: `ConnectError`."""
        self._connect_error = str(reason)
        return self

    def slow_connect(self, seconds: float | None = None) -> Self:
        """The connection takes so long to be made; `None` for ever."""
        self._connect_delay = check_seconds(seconds, "seconds")
        return self

    def fault_after_reading(self, size: int, fault: Fault) -> Self:
        """Once the client has read `size` bytes, `"reset"`, `"eof"` or `"stall"`, whatever was to come."""
        check_fault(check_size(size, "size"), fault)
        self._settings.append(lambda line: line.fault_after_reading(size, fault))
        return self

    def fault_after_writing(self, size: int, fault: Fault) -> Self:
        """Once the client has written `size` bytes, `"reset"`, `"eof"` or `"stall"`; the rest is never seen.

        After the first two nothing is said any more that was to be said later.
        """
        check_fault(check_size(size, "size"), fault)
        self._settings.append(lambda line: line.fault_after_writing(size, fault))
        return self

    def partial_reads(self, size: int) -> Self:
        """No read gives more than `size` bytes."""
        if check_size(size, "size") == 0:
            raise ArgumentValueError("size must be at least 1")
        self._settings.append(lambda line: line.read_at_most(size))
        return self

    def __repr__(self) -> str:
        return f"<Script {self.name!r} [{len(self._steps)} steps]>"


class Play(Peer):
    """A script on one connection.

    Args:
        script: what is played.
        failures: of the test; one of this connection is added.
    """

    def __init__(self, script: Script, failures: list[ScriptError]) -> None:
        self.name = f"script {script.name!r}"
        self.connect_delay = script._connect_delay
        self.connect_error = script._connect_error
        self.failure: ScriptError | None = None
        self._failures = failures
        self._settings = tuple(script._settings)
        self._steps = script.steps
        self._at_step = 0
        self._at = 0.0
        self._matcher: Matcher | None = None
        self._early = b""  # written before its step was reached
        self._came = 0
        self._line: Line | None = None

    # --- what the client does ------------------------------------------------------------------------------

    def connected(self, line: Line, now: float) -> None:
        self._line = line
        self._at = now
        for setting in self._settings:
            setting(line)
        self._go_on(now)

    def secured(self, now: float) -> None:
        line, step = self._connected_line, self._step
        if isinstance(step, Handshake):
            line.tls_facts = step.facts
            self._at = max(self._at, now) + step.facts.delay
            self._at_step += 1
            self._go_on(now)
        elif self._came or any(isinstance(each, Handshake) for each in self._steps):
            self._fail("the client begins a TLS handshake")

    def received(self, data: bytes, now: float) -> None:
        self._came += len(data)
        if self.failure is None:
            self._early += data
            self._go_on(now)

    # --- where it is ---------------------------------------------------------------------------------------

    @property
    def _connected_line(self) -> Line:
        assert self._line is not None, "nothing happens before the connection is made"
        return self._line

    @property
    def _step(self) -> Step | None:
        return self._steps[self._at_step] if self._at_step < len(self._steps) else None

    def _go_on(self, now: float) -> None:
        self._at = max(self._at, now)
        while self._at != NEVER:
            match step := self._step:
                case None | Handshake():
                    if self._early:
                        self._fail(f"the client wrote {_shortly(self._early)}")
                    return
                case Expect() | ExpectRequest():
                    if not self._meets(step):
                        return
                case _:
                    self._at = step.act(self._connected_line, self._at)
            self._at_step += 1

    def _meets(self, step: Expect | ExpectRequest) -> bool:
        if not self._early:
            return False
        if self._matcher is None:
            self._matcher = step.matcher()
        data, self._early = self._early, b""
        try:
            rest = self._matcher.feed(data)
        except Mismatch as mismatch:
            self._fail(str(mismatch))
        if rest is None:
            return False
        self._early = rest
        self._matcher = None
        return True

    def _fail(self, what: str) -> NoReturn:
        self.failure = ScriptError(f"{self.place()}: {what}")
        self._failures.append(self.failure)
        self._connected_line.reset()
        raise self.failure

    def place(self) -> str:
        """Where it is, for an error."""
        step, size = self._step, len(self._steps)
        if step is None:
            return f"{self.name}, at its end (after {size} steps)"
        return f"{self.name}, step {self._at_step + 1} of {size} ({step})"

    def state(self) -> str:
        return f"is at {self.place().partition(', ')[2].removeprefix('at ')}"

    def left(self) -> str:
        """What the client has left undone; empty if nothing."""
        if self.failure is not None or self.connect_error is not None or self._at == NEVER:
            return ""
        if self._line is None:
            # Nobody is asked to wait for a slow one.
            return "" if self.connect_delay else f"{self.name}: the connection was never made"
        if self._step is not None:
            partly = "" if self._matcher is None else f"; {self._matcher}"
            return f"{self.place()} was never reached or never met{partly}"
        if self._line.unread:
            return f"{self.place()}: {self._line.unread} bytes of the replies were never read"
        return ""


# --- words and checks --------------------------------------------------------------------------------------


def compare(expected: bytes, came: bytes) -> str:
    """Both, line by line, around the place from which on they differ."""
    alike = 0
    for one, other in zip(expected, came, strict=False):
        if one != other:
            break
        alike += 1
    start = max(alike - SHOWN_BYTES // 4, 0)
    if start:
        start = (
            expected.find(b"\n", start, alike) + 1 or start
        )  # from the beginning of a line, if there is one
    window = slice(start, start + SHOWN_BYTES)
    text = compare_lines(expected[window].splitlines(keepends=True), came[window].splitlines(keepends=True))
    return (
        text
        if not start and max(len(expected), len(came)) <= SHOWN_BYTES
        else f"{text}\n  (from byte {start} on)"
    )


def compare_lines(expected: Sequence[bytes], came: Sequence[bytes]) -> str:
    """What was expected behind a minus, what came behind a plus."""
    import difflib

    lines = difflib.ndiff([*map(repr, expected)], [*map(repr, came)])
    return "\n".join(["  (- expected, + came)", *(f"  {line.rstrip()}" for line in lines)])


def _shortly(data: bytes) -> str:
    return repr(data) if len(data) <= 60 else f"{data[:50]!r} … ({len(data)} bytes)"


def _some_bytes(data: object) -> bytes:
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise ArgumentTypeError(f"a script's data is bytes, not {type(data).__name__}")
    if not len(data):
        raise ArgumentValueError("a script's data cannot be empty; eof() ends the peer's side")
    return bytes(data)


def check_size(size: int, name: str) -> int:
    """A number of bytes.

    Raises:
        ArgumentTypeError, ArgumentValueError: it is none.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise ArgumentTypeError(f"{name} must be a number of bytes, not {type(size).__name__}")
    if size < 0:
        raise ArgumentValueError(f"{name} must not be negative, got {size}")
    return size


def check_fault(_: int, fault: str) -> None:
    """One of the three.

    Raises:
        ArgumentValueError: it is none.
    """
    if fault not in {"reset", "eof", "stall"}:
        raise ArgumentValueError(f"a fault is 'reset', 'eof' or 'stall', not {fault!r}")


def import_h11(what: str) -> Any:
    """h11, or an error that says what to install.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import h11
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{what} needs h11, which is not installed; install it with: pip install 'lamina-mock[http]'",
            name="h11",
        ) from error
    return h11
