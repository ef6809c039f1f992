"""The faults of the network as data: what is done, and what has to come of it on every backend.

Each fault is a coroutine over a `World`, written once. `outcome` runs one in one world and tells all that is to be the
same everywhere: the exception's class, its attributes, its text, its cause, and the data that came before it. The
blocking backend is the measure, and the table says its class and its phase besides.

Read by `test_stack_fault_table.py`, and by `tools/fault_table.py`, which prints it.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import trustme

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    AsyncResolver,
    ConcurrencyError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    LaminaError,
    ReadError,
    ReadTimeout,
    ResolvedAddress,
    Resolver,
    WriteError,
    WriteTimeout,
)
from lamina_timeouts import timeout

if TYPE_CHECKING:
    from lamina_interfaces import AsyncDirectReader, AsyncNetworkStream, AsyncPromptWriter
    from stack_worlds import World

SHORT = 0.05
"""Seconds of a limit that is to be reached."""

LONG = 20.0
"""Seconds of a limit that is not."""

MUCH = 64 << 20
"""Bytes, more than all buffers between two sockets hold."""


@dataclass
class Case:
    """One run of one fault.

    Attributes:
        world: where it runs.
        scale: by how much its short limits are longer than usual, for a machine that is too busy for them.
        data: what was read before the fault, for the outcome.
        stream: the one that met the fault; the outcome tells whether it is closed.
        folder: for unix sockets.
        over: set when the client has gone.
    """

    world: World
    scale: float
    folder: str
    data: list[object] = field(default_factory=list)
    stream: AsyncNetworkStream | None = None

    over: threading.Event = field(default_factory=threading.Event)

    @property
    def short(self) -> float:
        return SHORT * self.scale

    def hold(self, peer: socket.socket) -> None:
        """For a peer: say nothing and read nothing until the client has gone."""
        self.over.wait(LONG)


class Fault(NamedTuple):
    """What is done, and what comes of it.

    Attributes:
        name: of the fault, in words.
        act: does it.
        error: the class of the exception; `None` where the fault is withstood.
        phase: its phase.
        timed: whether a limit is reached, so that a busy machine may be given another try.
        loose: what the system says beneath the error is not told of: it is about a socket that the caller has
            closed himself, or that was known to be broken before.
    """

    name: str
    act: Callable[[Case], Awaitable[None]]
    error: type[LaminaError] | None
    phase: str | None
    timed: bool
    loose: bool = False


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    error: type[LaminaError] | None,
    phase: str | None = None,
    *,
    timed: bool = False,
    loose: bool = False,
) -> Callable[[Callable[[Case], Awaitable[None]]], Callable[[Case], Awaitable[None]]]:
    """Put a coroutine function into the table."""

    def enter(act: Callable[[Case], Awaitable[None]]) -> Callable[[Case], Awaitable[None]]:
        assert name not in FAULTS, name
        FAULTS[name] = Fault(name, act, error, phase, timed, loose)
        return act

    return enter


# --- outcomes ----------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What came of a fault, without what differs from run to run: ports, times, the folder."""

    error: str | None = None
    bases: tuple[str, ...] = ()
    phase: str | None = None
    errno: int | None = None
    limit: float | None = None
    attempts: tuple[tuple[str, int | None], ...] = ()
    has_elapsed: bool = False
    message: str = ""
    cause: str | None = None
    data: tuple[object, ...] = ()
    stream: str = ""


def outcome(fault: Fault, world: World, scale: float = 1.0) -> Outcome:
    """Run a fault in a world.

    Raises:
        AssertionError: something that should have happened at once has waited for its limit.
    """
    start = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/tmp" if os.path.isdir("/tmp") else None) as folder:
        case = Case(world, scale, folder)
        error = world.run(_caught, fault, case)
        try:
            took = time.monotonic() - start
            assert took < LONG, f"{fault.name}: {world.name} was woken by a limit alone, after {took:.1f} s"
            found = _outcome(case, error)
            return found._replace(errno=None, message="", cause=None) if fault.loose else found
        finally:
            # Its traceback keeps the frames of the case, and they keep it.
            error = None


async def _caught(fault: Fault, case: Case) -> BaseException | None:
    try:
        await fault.act(case)
    except LaminaError as error:
        return error
    return None


def _outcome(case: Case, error: BaseException | None) -> Outcome:
    stream = "" if case.stream is None else "closed" if "closed" in repr(case.stream) else "open"
    if not isinstance(error, LaminaError):
        return Outcome(data=tuple(case.data), stream=stream)
    cause = error.__cause__
    if type(cause).__name__ in ("CancelledError", "Cancelled"):
        cause = None  # the block of a deadline was quicker than the wait: they do the same
    return Outcome(
        type(error).__name__,
        tuple(base.__name__ for base in type(error).__mro__),
        error.phase,
        error.errno,
        None if error.limit is None else round(error.limit / case.scale, 6),
        tuple((_plain(case, attempt.address), attempt.errno) for attempt in error.attempts),
        error.elapsed is not None,
        _plain(case, error.message),
        None if cause is None else f"{type(cause).__name__}, errno {getattr(cause, 'errno', None)}",
        tuple(case.data),
        stream,
    )


def _plain(case: Case, text: str) -> str:
    text = text.replace(case.folder, "FOLDER")
    text = re.sub(r"\b(Sync|Asyncio|AnyIO|Trio)(Stream|Backend)\b", r"\2", text)
    text = re.sub(r"another (thread|task)", "another one", text)
    return re.sub(r"(?<=[\w.\]]):\d{4,5}\b", ":PORT", text)


# --- peers -------------------------------------------------------------------------------------------------


def reset(sock: socket.socket) -> None:
    """Close with a RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextmanager
def listening() -> Iterator[tuple[socket.socket, int]]:
    with socket.create_server(("127.0.0.1", 0), backlog=8) as listener:
        yield listener, listener.getsockname()[1]


@contextmanager
def refusing() -> Iterator[int]:
    """A port that nobody listens on, and that nobody else is given."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@contextmanager
def black_hole() -> Iterator[int]:
    """A port that answers no SYN: its listener's queue is full."""
    sockets = [socket.socket()]
    try:
        sockets[0].bind(("127.0.0.1", 0))
        sockets[0].listen(0)
        address = sockets[0].getsockname()
        for _ in range(3):
            filler = socket.socket()
            sockets.append(filler)
            filler.setblocking(False)
            filler.connect_ex(address)
        yield address[1]
    finally:
        for sock in sockets:
            sock.close()


@asynccontextmanager
async def linked(case: Case) -> AsyncIterator[tuple[AsyncNetworkStream, socket.socket]]:
    """A connected stream and the plain socket at its other end. Nobody's thread: the test speaks for the peer."""
    with listening() as (listener, port):
        stream = case.stream = await case.world.backend().connect_tcp("127.0.0.1", port)
        try:
            peer, _ = listener.accept()
            with peer:
                peer.settimeout(LONG)
                yield stream, peer
        finally:
            stream.abort()


@asynccontextmanager
async def served(
    case: Case, script: Callable[[socket.socket], object]
) -> AsyncIterator[tuple[AsyncNetworkStream, threading.Thread]]:
    """A connected stream, and a thread at its other end; for what is said by turns."""

    def serve(peer: socket.socket) -> None:
        try:
            script(peer)
        except (OSError, ValueError):
            pass  # the client is gone, and that is what the test is about

    async with linked(case) as (stream, peer):
        thread = threading.Thread(target=serve, args=(peer,), daemon=True)
        thread.start()
        try:
            yield stream, thread
        finally:
            stream.abort()  # which ends the thread's last wait, if not this
            case.over.set()
            thread.join(LONG)
            assert not thread.is_alive(), "the peer hangs"


@asynccontextmanager
async def secured(
    case: Case,
    script: Callable[[ssl.SSLSocket], object] = lambda peer: None,
    *,
    until_done: bool = True,
) -> AsyncIterator[AsyncNetworkStream]:
    """A stream inside TLS; the peer runs `script`, to its end before this begins unless told otherwise."""

    def over_tls(sock: socket.socket) -> None:
        with server_context().wrap_socket(sock, server_side=True) as peer:
            script(peer)

    async with served(case, over_tls) as (stream, thread):
        await stream.start_tls(client_context(), "server.example", timeout=LONG)
        if until_done:
            thread.join(LONG)
        yield stream


AUTHORITY = trustme.CA()
"""Made here, and not on first use: a peer's thread and the client may want it in the same moment."""


@cache
def server_context(name: str = "server.example", ca: str = "known") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issuer = AUTHORITY if ca == "known" else trustme.CA()
    issuer.issue_cert(name).configure_cert(context)
    return context


@cache
def client_context(*, trusting: bool = True, checking: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if not checking:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif trusting:
        AUTHORITY.configure_trust(context)
    return context


class Table(Resolver):
    """Answers the same for every name; an exception is raised, and something to call is called."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        answer = self._answer() if callable(self._answer) else self._answer
        if isinstance(answer, BaseException):
            raise answer
        return cast("Sequence[ResolvedAddress]", answer)


class AsyncTable(AsyncResolver):
    """The same, awaited."""

    def __init__(self, answer: Any) -> None:
        self._table = Table(answer)

    async def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        return self._table.resolve(host, port, family)


def local(*ports: int) -> list[ResolvedAddress]:
    """Addresses on loopback, each with a number of its own."""
    return [
        ResolvedAddress(socket.AF_INET, (f"127.0.0.{number}", port)) for number, port in enumerate(ports, 1)
    ]


@contextmanager
def stuck() -> Iterator[Table]:
    """A resolver that does not answer in this block."""
    gate = threading.Event()

    def wait() -> list[ResolvedAddress]:
        gate.wait(LONG)
        return []

    try:
        yield Table(wait)
    finally:
        gate.set()


# --- connecting --------------------------------------------------------------------------------------------


@fault("connect: refused", ConnectError, "connect")
async def _(case: Case) -> None:
    with refusing() as port:
        await case.world.backend().connect_tcp("127.0.0.1", port)


@fault("connect: no route", ConnectError, "connect")
async def _(case: Case) -> None:
    # To the broadcast address, which no system lets TCP connect to: nothing leaves the machine.
    await case.world.backend().connect_tcp("255.255.255.255", 80)


@fault("connect: every address refuses", ConnectError, "connect")
async def _(case: Case) -> None:
    with refusing() as port:
        resolver = Table(local(port, port, port))
        await case.world.backend(resolver=resolver).connect_tcp("host.example", 80)


@fault("connect: two dead addresses, then a good one", None)
async def _(case: Case) -> None:
    with refusing() as dead, listening() as (listener, port):
        addresses = [*local(dead, dead), ResolvedAddress(socket.AF_INET, ("127.0.0.1", port))]
        stream = await case.world.backend(resolver=Table(addresses)).connect_tcp("host.example", 80)
        with listener.accept()[0] as peer:
            peer.sendall(b"good")
            case.data.append(await stream.read())
        await stream.aclose()


@fault("connect: a black hole, then a good address", None)
async def _(case: Case) -> None:
    with black_hole() as dead, listening() as (listener, port):
        addresses = [ResolvedAddress(socket.AF_INET, ("127.0.0.1", number)) for number in (dead, port)]
        stream = await case.world.backend(resolver=Table(addresses)).connect_tcp("host.example", 80)
        with listener.accept()[0] as peer:
            peer.sendall(b"good")
            case.data.append(await stream.read())
        await stream.aclose()


@fault("connect: local address not ours", ConnectError, "connect")
async def _(case: Case) -> None:
    with listening() as (_, port):
        await case.world.backend().connect_tcp("127.0.0.1", port, local_address="192.0.2.1")


@fault("connect: local address of the other family", ConnectError, "dns")
async def _(case: Case) -> None:
    with listening() as (_, port):
        resolver = Table(local(port))
        await case.world.backend(resolver=resolver).connect_tcp("host.example", 80, local_address="::1")


@fault("connect: socket option refused", ConnectError, "connect")
async def _(case: Case) -> None:
    with listening() as (_, port):
        await case.world.backend().connect_tcp(
            "127.0.0.1", port, socket_options=[(socket.SOL_SOCKET, 9999, 1)]
        )


# --- names -------------------------------------------------------------------------------------------------

_ANSWERS: list[tuple[str, Any]] = [
    ("unknown name", socket.gaierror(socket.EAI_NONAME, "Name or service not known")),
    ("ask again later", socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")),
    ("server fails", OSError(5, "Input/output error")),
    ("resolver breaks", RuntimeError("a mistake in the resolver")),
    ("resolver breaks without a word", RuntimeError()),
    ("empty answer", []),
    ("addresses of no family", [ResolvedAddress(99, ("127.0.0.1", 80))]),
    ("answer that is none", 5),
    ("addresses that are none", [("127.0.0.1", 80)]),
]


def _looked_up(answer: Any, *, kind: type[Any]) -> Callable[[Case], Awaitable[None]]:
    async def act(case: Case) -> None:
        resolver = (kind if case.world.is_async else Table)(answer)
        await case.world.backend(resolver=resolver).connect_tcp("host.example", 80, timeout=LONG)

    return act


for _name, _answer in _ANSWERS:
    fault(f"dns: {_name}", ConnectError, "dns")(_looked_up(_answer, kind=Table))
    fault(f"dns: {_name}, awaited", ConnectError, "dns")(_looked_up(_answer, kind=AsyncTable))


# --- unix sockets ------------------------------------------------------------------------------------------


def _unix(name: str, make: Callable[[str], object]) -> Callable[[Case], Awaitable[None]]:
    async def act(case: Case) -> None:
        path = f"{case.folder}/{name}"
        made = make(path)
        try:
            await case.world.backend().connect_unix_socket(path)
        finally:
            if isinstance(made, socket.socket):
                made.close()

    return act


def _file(path: str) -> None:
    with open(path, "w", encoding="ascii"):
        pass


def _stale(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)


def _datagrams(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(path)
    return sock


fault("unix: missing", ConnectError, "connect")(_unix("missing", lambda path: None))
fault("unix: not a socket", ConnectError, "connect")(_unix("file", _file))
fault("unix: stale", ConnectError, "connect")(_unix("stale", _stale))
fault("unix: of datagrams", ConnectError, "connect")(_unix("datagrams", _datagrams))
fault("unix: path too long", ConnectError, "connect")(_unix("x" * 200, lambda path: None))


@fault("unix: socket option refused", ConnectError, "connect")
async def _(case: Case) -> None:
    path = f"{case.folder}/s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)
        options = [(socket.SOL_SOCKET, 9999, 1)]
        await case.world.backend().connect_unix_socket(path, socket_options=options)


# --- arguments ---------------------------------------------------------------------------------------------

_TYPE, _VALUE = ArgumentTypeError, ArgumentValueError

_ARGUMENTS: list[tuple[str, Any, type[LaminaError]]] = [
    ("host", 1, _TYPE),
    ("host", None, _TYPE),
    ("host", b"127.0.0.1", _TYPE),
    ("host", "", _VALUE),
    ("host", "a b", _VALUE),
    ("host", "a\0b", _VALUE),
    ("host", "[::1]", _VALUE),
    ("host", "1:2", _VALUE),
    ("host", "a..b", _VALUE),
    ("host", "x" * 64, _VALUE),
    ("host", "x." * 150, _VALUE),
    ("port", "80", _TYPE),
    ("port", 80.0, _TYPE),
    ("port", None, _TYPE),
    ("port", True, _TYPE),
    ("port", 0, _VALUE),
    ("port", -1, _VALUE),
    ("port", 65536, _VALUE),
    ("timeout", "1", _TYPE),
    ("timeout", True, _TYPE),
    ("timeout", -1, _VALUE),
    ("timeout", float("nan"), _VALUE),
    ("local_address", 1, _TYPE),
    ("local_address", "localhost", _VALUE),
    ("local_address", "127.0.0.1:80", _VALUE),
    ("socket_options", 5, _TYPE),
    ("socket_options", [5], _TYPE),
    ("socket_options", [(1, 2)], _TYPE),
    ("socket_options", [(1, 2, "3")], _TYPE),
    ("socket_options", [(1, 2, 1 << 80)], _VALUE),
]

_UNIX_ARGUMENTS: list[tuple[str, Any, type[LaminaError]]] = [
    ("path", 5, _TYPE),
    ("path", b"/socket", _TYPE),
    ("path", "", _VALUE),
    ("path", "a\0b", _VALUE),
    ("path", "\ud800", _VALUE),
    ("timeout", -1, _VALUE),
    ("timeout", "1", _TYPE),
    ("socket_options", [5], _TYPE),
]


def _with_argument(name: str, value: Any) -> Callable[[Case], Awaitable[None]]:
    async def act(case: Case) -> None:
        arguments: dict[str, Any] = {"host": "host.example", "port": 80, name: value}
        asked: list[str] = []

        def ask() -> list[ResolvedAddress]:
            asked.append("the resolver was asked")
            return []

        try:
            await case.world.backend(resolver=Table(ask)).connect_tcp(**arguments)
        finally:
            case.data.extend(asked)

    return act


def _with_unix_argument(name: str, value: Any) -> Callable[[Case], Awaitable[None]]:
    async def act(case: Case) -> None:
        arguments: dict[str, Any] = {"path": f"{case.folder}/missing", name: value}
        await case.world.backend().connect_unix_socket(**arguments)

    return act


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 30 else f"{text[:20]}..."


for _name, _answer, _class in _ARGUMENTS:
    fault(f"connect_tcp: {_name}={_short(_answer)}", _class)(_with_argument(_name, _answer))
for _name, _answer, _class in _UNIX_ARGUMENTS:
    fault(f"connect_unix_socket: {_name}={_short(_answer)}", _class)(_with_unix_argument(_name, _answer))


@fault("backend: resolver=5", ArgumentTypeError)
async def _(case: Case) -> None:
    case.world.public_backend(resolver=5)


@fault("stream: of no socket", ArgumentTypeError)
async def _(case: Case) -> None:
    await case.world.wrap(cast("socket.socket", 5))


@fault("stream: of a closed socket", ArgumentValueError)
async def _(case: Case) -> None:
    sock = socket.socket()
    sock.close()
    await case.world.wrap(sock)


@fault("stream: of an SSLSocket", ArgumentTypeError)
async def _(case: Case) -> None:
    ours, theirs = socket.socketpair()
    with (
        theirs,
        client_context().wrap_socket(ours, server_hostname="x", do_handshake_on_connect=False) as sock,
    ):
        await case.world.wrap(sock)


Use = Callable[["AsyncNetworkStream"], Awaitable[Any]]


async def _read_into(
    stream: AsyncNetworkStream, buffer: bytearray | memoryview | None = None, seconds: float | None = LONG
) -> bytes:
    """What is put into a buffer."""
    buffer = bytearray(100) if buffer is None else buffer
    count = await cast("AsyncDirectReader", stream).read_into(buffer, seconds)
    return bytes(buffer[:count])


async def _write_now(stream: AsyncNetworkStream, buffer: bytes) -> int:
    return cast("AsyncPromptWriter", stream).write_now(buffer)


async def _wait_writable(stream: AsyncNetworkStream, seconds: float | None = LONG) -> None:
    await cast("AsyncPromptWriter", stream).wait_writable(seconds)


async def _fill_and_wait(stream: AsyncNetworkStream, seconds: float | None = LONG) -> None:
    """Prompt writes without an end, to a peer that does not read."""
    piece = bytes(1 << 20)
    while True:
        while await _write_now(stream, piece):
            pass
        await _wait_writable(stream, seconds)


_USES: list[tuple[str, Use, type[LaminaError]]] = [
    ("read: max_bytes=0", lambda stream: stream.read(0), _VALUE),
    ("read: max_bytes=-1", lambda stream: stream.read(-1), _VALUE),
    ("read: max_bytes=True", lambda stream: stream.read(True), _TYPE),
    ("read: max_bytes=1.5", lambda stream: stream.read(cast("int", 1.5)), _TYPE),
    ("read: timeout=-1", lambda stream: stream.read(timeout=-1), _VALUE),
    ("read: timeout=nan", lambda stream: stream.read(timeout=float("nan")), _VALUE),
    ("read: timeout='1'", lambda stream: stream.read(timeout=cast("float", "1")), _TYPE),
    ("read_into: bytes", lambda stream: _read_into(stream, cast("bytearray", b"xyz")), _TYPE),
    ("read_into: a number", lambda stream: _read_into(stream, cast("bytearray", 5)), _TYPE),
    ("read_into: an empty buffer", lambda stream: _read_into(stream, bytearray()), _VALUE),
    ("read_into: a view with gaps", lambda stream: _read_into(stream, memoryview(bytearray(8))[::2]), _VALUE),
    ("read_into: timeout=-1", lambda stream: _read_into(stream, seconds=-1), _VALUE),
    ("read_into: timeout='1'", lambda stream: _read_into(stream, seconds=cast("float", "1")), _TYPE),
    ("write: text", lambda stream: stream.write(cast("bytes", "text")), _TYPE),
    ("write: a number", lambda stream: stream.write(cast("bytes", 5)), _TYPE),
    ("write: a list", lambda stream: stream.write(cast("bytes", [1, 2])), _TYPE),
    ("write: timeout=-1", lambda stream: stream.write(b"x", timeout=-1), _VALUE),
    ("write: timeout='1'", lambda stream: stream.write(b"x", timeout=cast("float", "1")), _TYPE),
    ("write_until_readable: text", lambda stream: cast("Any", stream).write_until_readable("text"), _TYPE),
    ("write_until_readable: timeout=-1", lambda s: cast("Any", s).write_until_readable(b"x", -1), _VALUE),
    ("write_now: text", lambda stream: _write_now(stream, cast("bytes", "text")), _TYPE),
    ("write_now: a number", lambda stream: _write_now(stream, cast("bytes", 5)), _TYPE),
    ("wait_writable: timeout=-1", lambda stream: _wait_writable(stream, -1), _VALUE),
    ("wait_writable: timeout='1'", lambda stream: _wait_writable(stream, cast("float", "1")), _TYPE),
    ("start_tls: no context", lambda stream: stream.start_tls(cast("ssl.SSLContext", 5), "x"), _TYPE),
    ("start_tls: a server's context", lambda stream: stream.start_tls(server_context(), "x"), _VALUE),
    ("start_tls: no name to check", lambda stream: stream.start_tls(client_context()), _VALUE),
    ("start_tls: an empty name", lambda stream: stream.start_tls(client_context(), ""), _VALUE),
    ("start_tls: a name with a NUL", lambda stream: stream.start_tls(client_context(), "a\0b"), _VALUE),
    ("start_tls: a number for a name", lambda s: s.start_tls(client_context(), cast("str", 5)), _TYPE),
    ("start_tls: timeout=-1", lambda stream: stream.start_tls(client_context(), "x", timeout=-1), _VALUE),
]


def _used(use: Use) -> Callable[[Case], Awaitable[None]]:
    async def act(case: Case) -> None:
        async with linked(case) as (stream, peer):
            try:
                await use(stream)
            finally:
                peer.settimeout(0)
                try:
                    case.data.append(peer.recv(100))  # nothing, or the end
                except OSError:
                    pass

    return act


for _name, _use, _class in _USES:
    fault(_name, _class)(_used(_use))


# --- a closed stream ---------------------------------------------------------------------------------------

_CLOSED_USES: list[tuple[str, Use, type[LaminaError]]] = [
    ("read", lambda stream: stream.read(), ReadError),
    ("read_into", _read_into, ReadError),
    ("write", lambda stream: stream.write(b"x"), WriteError),
    ("write of nothing", lambda stream: stream.write(b""), WriteError),
    ("write_until_readable", lambda stream: cast("Any", stream).write_until_readable(b"x"), WriteError),
    ("write_now", lambda stream: _write_now(stream, b"x"), WriteError),
    ("write_now of nothing", lambda stream: _write_now(stream, b""), WriteError),
    ("wait_writable", _wait_writable, WriteError),
    ("start_tls", lambda stream: stream.start_tls(client_context(), "x"), ConnectError),
]


def _used_closed(use: Use, how: str) -> Callable[[Case], Awaitable[None]]:
    async def act(case: Case) -> None:
        async with linked(case) as (stream, peer):
            peer.sendall(b"never read")
            if how == "aclose":
                await stream.aclose()
                await stream.aclose()
            elif how == "abort":
                stream.abort()
            else:
                peer.close()
                try:
                    await stream.start_tls(client_context(), "server.example")
                except ConnectError:
                    pass
            await use(stream)

    return act


_PHASES = {ReadError: "read", WriteError: "write", ConnectError: "tls"}

for _name, _use, _class in _CLOSED_USES:
    for _how in ("aclose", "abort", "a failed handshake"):
        fault(f"{_name}: after {_how}", _class, _PHASES[cast("Any", _class)])(_used_closed(_use, _how))


def _closed_while(wait: Use, how: str, *, tls: bool = False) -> Callable[[Case], Awaitable[None]]:
    """The stream is closed while somebody else waits in it."""

    async def act(case: Case) -> None:
        async with _link(case, tls=tls) as stream, case.world.jobs() as jobs:
            began = threading.Event()

            async def begin() -> None:
                began.set()
                await wait(stream)

            job = jobs.start(begin)
            await case.world.until(began.is_set)
            await case.world.pause(0.01)  # usually it waits by now; if not, it meets a closed stream
            if how == "aclose":
                await stream.aclose()
            else:
                stream.abort()
            outcome = await job.outcome(case.world)
            assert isinstance(outcome, LaminaError), outcome
            raise outcome

    return act


@asynccontextmanager
async def _link(case: Case, *, tls: bool) -> AsyncIterator[AsyncNetworkStream]:
    """A stream whose peer says nothing and reads nothing."""
    if tls:
        async with secured(case, case.hold, until_done=False) as stream:
            yield stream
    else:
        async with linked(case) as (stream, _):
            yield stream


for _how in ("aclose", "abort"):
    for _tls in (False, True):
        _over = " over TLS" if _tls else ""
        fault(f"read{_over}: {_how} meanwhile", ReadError, "read", loose=True)(
            _closed_while(lambda stream: stream.read(timeout=LONG), _how, tls=_tls)
        )
        fault(f"write{_over}: {_how} meanwhile", WriteError, "write", loose=True)(
            _closed_while(lambda stream: stream.write(bytes(MUCH), timeout=LONG), _how, tls=_tls)
        )
        fault(f"wait_writable{_over}: {_how} meanwhile", WriteError, "write", loose=True)(
            _closed_while(_fill_and_wait, _how, tls=_tls)
        )
    fault(f"start_tls: {_how} meanwhile", ConnectError, "tls", loose=True)(
        _closed_while(lambda stream: stream.start_tls(client_context(), "x", timeout=LONG), _how)
    )


# --- handshakes --------------------------------------------------------------------------------------------


def _shaken(
    script: Callable[[socket.socket], object], name: str = "server.example", **options: Any
) -> Callable[[Case], Awaitable[None]]:
    async def act(case: Case) -> None:
        async with served(case, script) as (stream, _):
            await stream.start_tls(client_context(**options), name, timeout=LONG)

    return act


def _as_server(*arguments: str) -> Callable[[socket.socket], None]:
    def script(sock: socket.socket) -> None:
        with server_context(*arguments).wrap_socket(sock, server_side=True) as peer:
            peer.recv(1)

    return script


def _hear_and_end(sock: socket.socket) -> None:
    sock.recv(1 << 16)
    sock.shutdown(socket.SHUT_WR)
    sock.recv(1 << 16)


def _hear_and_reset(sock: socket.socket) -> None:
    sock.recv(1 << 16)
    reset(sock)


def _hear_and_speak_http(sock: socket.socket) -> None:
    sock.recv(1 << 16)
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    sock.recv(1 << 16)


def _old_server(sock: socket.socket) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    AUTHORITY.issue_cert("server.example").configure_cert(context)
    with context.wrap_socket(sock, server_side=True) as peer:
        peer.recv(1)


@cache
def modern_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    AUTHORITY.configure_trust(context)
    return context


fault("handshake: the peer ends", ConnectError, "tls")(_shaken(_hear_and_end))
fault("handshake: the peer resets", ConnectError, "tls")(_shaken(_hear_and_reset))
fault("handshake: the peer speaks HTTP", ConnectError, "tls")(_shaken(_hear_and_speak_http))
fault("handshake: another name", ConnectError, "tls")(_shaken(_as_server(), "other.example"))
fault("handshake: another address", ConnectError, "tls")(_shaken(_as_server(), "127.0.0.1"))
fault("handshake: unknown authority", ConnectError, "tls")(_shaken(_as_server("server.example", "unknown")))
fault("handshake: nothing is trusted", ConnectError, "tls")(_shaken(_as_server(), trusting=False))


@fault("handshake: self-signed", ConnectError, "tls")
async def _(case: Case) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca = trustme.CA()
    with ca.private_key_pem.tempfile() as key, ca.cert_pem.tempfile() as certificate:
        context.load_cert_chain(certificate, key)

    def script(sock: socket.socket) -> None:
        with context.wrap_socket(sock, server_side=True) as peer:
            peer.recv(1)

    async with served(case, script) as (stream, _):
        await stream.start_tls(client_context(), "server.example", timeout=LONG)


@fault("handshake: no common version", ConnectError, "tls")
async def _(case: Case) -> None:
    async with served(case, _old_server) as (stream, _):
        await stream.start_tls(modern_context(), "server.example", timeout=LONG)


@fault("handshake: within TLS, another name", ConnectError, "tls")
async def _(case: Case) -> None:
    def script(peer: ssl.SSLSocket) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        inner = server_context().wrap_bio(incoming, outgoing, server_side=True)
        while True:
            try:
                inner.do_handshake()
            except ssl.SSLWantReadError:
                peer.sendall(outgoing.read())
                incoming.write(peer.recv(1 << 16))

    async with secured(case, script, until_done=False) as stream:
        await stream.start_tls(client_context(), "other.example", timeout=LONG)


# --- reading -----------------------------------------------------------------------------------------------


async def _read_all(case: Case, stream: AsyncNetworkStream, count: int = 2) -> None:
    for _ in range(count):
        case.data.append(await stream.read(timeout=LONG))


@fault("read: the peer ends", None)
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        peer.sendall(b"before")
        peer.close()
        await _read_all(case, stream, 3)


@fault("read: the peer resets", ReadError, "read")
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        reset(peer)
        await _read_all(case, stream)


@fault("read: the peer resets, data before", ReadError, "read")
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        peer.sendall(b"before")
        reset(peer)
        await _read_all(case, stream)


@fault("read: the peer resets, read twice", ReadError, "read", loose=True)
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        reset(peer)
        try:
            await stream.read(timeout=LONG)
        except ReadError as error:
            case.data.append(error.errno)
        await stream.read(timeout=LONG)


@fault("read: time-out, then data", None, timed=True)
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        try:
            await stream.read(timeout=case.short)
        except ReadTimeout as error:
            case.data.append(error.phase)
        peer.sendall(b"after")
        case.data.append(await stream.read(timeout=LONG))


def _say_and_cut(peer: ssl.SSLSocket) -> None:
    """Without close_notify."""
    peer.sendall(b"before")
    with socket.socket(fileno=peer.detach()) as sock:
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(LONG)
        sock.recv(1)  # else what the client sends would make it a reset


def _say_and_reset(peer: ssl.SSLSocket) -> None:
    peer.sendall(b"before")
    reset(socket.socket(fileno=peer.detach()))


def _say_and_break(peer: ssl.SSLSocket) -> None:
    peer.sendall(b"before")
    with socket.socket(fileno=peer.detach()) as sock:
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        sock.settimeout(LONG)
        sock.recv(1)


def _say_and_end(peer: ssl.SSLSocket) -> None:
    peer.sendall(b"before")
    peer.settimeout(LONG)
    try:
        peer.unwrap().close()
    except OSError:
        pass


async def _read_secured(case: Case, script: Callable[[ssl.SSLSocket], object], count: int) -> None:
    async with secured(case, script, until_done=False) as stream:
        await _read_all(case, stream, count)


@fault("read over TLS: cut off without close_notify", ReadError, "read")
async def _(case: Case) -> None:
    await _read_secured(case, _say_and_cut, 2)


@fault("read over TLS: the peer resets", ReadError, "read")
async def _(case: Case) -> None:
    async with secured(case, _say_and_reset) as stream:
        await _read_all(case, stream, 2)


@fault("read over TLS: broken record", ReadError, "read")
async def _(case: Case) -> None:
    await _read_secured(case, _say_and_break, 2)


@fault("read over TLS: close_notify", None)
async def _(case: Case) -> None:
    await _read_secured(case, _say_and_end, 3)


async def _put_all(case: Case, stream: AsyncNetworkStream, count: int) -> None:
    for _ in range(count):
        case.data.append(await _read_into(stream))


@fault("read_into: the peer ends", None)
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        peer.sendall(b"before")
        peer.close()
        await _put_all(case, stream, 3)


@fault("read_into: the peer resets", ReadError, "read")
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        reset(peer)
        await _put_all(case, stream, 2)


def _put_secured(script: Callable[[ssl.SSLSocket], object], count: int) -> Callable[[Case], Awaitable[None]]:
    async def act(case: Case) -> None:
        async with secured(case, script, until_done=False) as stream:
            await _put_all(case, stream, count)

    return act


fault("read_into over TLS: cut off without close_notify", ReadError, "read")(_put_secured(_say_and_cut, 2))
fault("read_into over TLS: broken record", ReadError, "read")(_put_secured(_say_and_break, 2))
fault("read_into over TLS: close_notify", None)(_put_secured(_say_and_end, 3))


# --- writing -----------------------------------------------------------------------------------------------


@fault("write: the peer has reset", WriteError, "write")
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        reset(peer)
        await stream.write(b"x", timeout=LONG)


@fault("write: the peer has reset, twice", WriteError, "write", loose=True)
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        reset(peer)
        try:
            await stream.write(b"x", timeout=LONG)
        except WriteError as error:
            case.data.append(error.errno)
        await stream.write(b"x", timeout=LONG)


@fault("write: the peer has gone", WriteError, "write")
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        peer.close()
        await stream.write(b"x", timeout=LONG)  # answered with a reset
        await stream.write(b"x", timeout=LONG)


@fault("write: the peer resets meanwhile", WriteError, "write")
async def _(case: Case) -> None:
    def script(peer: socket.socket) -> None:
        peer.recv(1 << 16)
        reset(peer)

    async with served(case, script) as (stream, _):
        await stream.write(bytes(MUCH), timeout=LONG)


@fault("write over TLS: the peer has reset", WriteError, "write")
async def _(case: Case) -> None:
    async with secured(case, lambda peer: reset(socket.socket(fileno=peer.detach()))) as stream:
        await stream.write(b"x", timeout=LONG)


@fault("write: again after a time-out", WriteError, "write", timed=True)
async def _(case: Case) -> None:
    async with linked(case) as (stream, _):
        try:
            await stream.write(bytes(MUCH), timeout=case.short)
        except WriteTimeout as error:
            case.data.append(error.phase)
        await stream.write(b"x", timeout=case.short)


async def _wait_again_and_again(stream: AsyncNetworkStream) -> None:
    """For who must be found waiting: a wait that began beside a reader leaves the reading to others to its end."""
    while True:
        try:
            await _fill_and_wait(stream, 0.01)
        except WriteTimeout:
            pass


def _hear_and_read_no_more(peer: socket.socket) -> None:
    peer.recv(1 << 16)
    if isinstance(peer, ssl.SSLSocket):
        peer = socket.socket(fileno=peer.detach())
    reset(peer)


@fault("write_now: the peer has reset", WriteError, "write")
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        reset(peer)
        await _write_now(stream, b"x")


@fault("write_now over TLS: the peer has reset", WriteError, "write")
async def _(case: Case) -> None:
    async with secured(case, lambda peer: reset(socket.socket(fileno=peer.detach()))) as stream:
        await _write_now(stream, b"x")


# Whoever looks first is told of the reset by the system; the others of a broken pipe.
@fault("wait_writable: the peer resets meanwhile", WriteError, "write", loose=True)
async def _(case: Case) -> None:
    async with served(case, _hear_and_read_no_more) as (stream, _):
        await _fill_and_wait(stream)


@fault("wait_writable over TLS: the peer resets meanwhile", WriteError, "write", loose=True)
async def _(case: Case) -> None:
    async with secured(case, _hear_and_read_no_more, until_done=False) as stream:
        await _fill_and_wait(stream)


@fault("write_now: after a write that timed out", WriteError, "write", timed=True)
async def _(case: Case) -> None:
    async with linked(case) as (stream, _):
        try:
            await stream.write(bytes(MUCH), timeout=case.short)
        except WriteTimeout as error:
            case.data.append(error.phase)
        await _write_now(stream, b"x")


@fault("wait_writable: time-out, then more", None, timed=True)
async def _(case: Case) -> None:
    async with linked(case) as (stream, peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        sent = 0
        try:
            while True:
                sent += await _write_now(stream, bytes(1 << 16))
                await _wait_writable(stream, case.short)
        except WriteTimeout as error:
            case.data.append(error.phase)
        while sent:
            sent -= len(peer.recv(sent))
        await _wait_writable(stream)
        case.data.append(await _write_now(stream, b"after"))
        case.data.append(peer.recv(100))


# --- two at once -------------------------------------------------------------------------------------------


def _twice(first: Use, second: Use, *, tls: bool) -> Callable[[Case], Awaitable[None]]:
    """`first` waits in another task or thread; then this one does `second`."""

    async def act(case: Case) -> None:
        async with _link(case, tls=tls) as stream, case.world.jobs() as jobs:

            async def begin() -> None:
                while True:
                    try:
                        await first(stream)
                    except ConcurrencyError:  # the second was quicker
                        await case.world.pause()

            job = jobs.start(begin)
            try:
                for _ in range(2000):
                    try:
                        await second(stream)
                    except (ReadTimeout, WriteTimeout):
                        pass
                    await case.world.pause()  # the first has not begun
            finally:
                case.data.append(job.is_done)
                stream.abort()
                await job.outcome(case.world)

    return act


async def _start_tls_while_read(stream: AsyncNetworkStream) -> None:
    try:
        await stream.read(timeout=0.001)
    except ConcurrencyError:  # now it is sure that the other one reads
        await stream.start_tls(client_context(), "server.example", timeout=LONG)


for _tls in (False, True):
    _over = " over TLS" if _tls else ""
    fault(f"read{_over}: two at once", ConcurrencyError, "read")(
        _twice(lambda s: s.read(timeout=LONG), lambda s: s.read(timeout=0.001), tls=_tls)
    )
    fault(f"write{_over}: two at once", ConcurrencyError, "write")(
        _twice(lambda s: s.write(bytes(MUCH), timeout=LONG), lambda s: s.write(b"", timeout=LONG), tls=_tls)
    )
    fault(f"wait_writable{_over}: two at once", ConcurrencyError, "write")(
        _twice(_fill_and_wait, lambda s: _wait_writable(s, 0.001), tls=_tls)
    )
    fault(f"wait_writable{_over}: while another writes", ConcurrencyError, "write")(
        _twice(lambda s: s.write(bytes(MUCH), timeout=LONG), lambda s: _wait_writable(s, 0.001), tls=_tls)
    )
    fault(f"write{_over}: while another waits to write", ConcurrencyError, "write")(
        _twice(_fill_and_wait, lambda s: s.write(b"", timeout=LONG), tls=_tls)
    )
    fault(f"read{_over}: while another waits to write", ConcurrencyError, "read")(
        _twice(_wait_again_and_again, lambda s: s.read(timeout=0.001), tls=_tls)
    )
    fault(f"start_tls{_over}: while another reads", ConcurrencyError, "tls")(
        _twice(lambda s: s.read(timeout=LONG), _start_tls_while_read, tls=_tls)
    )


# --- limits ------------------------------------------------------------------------------------------------

Wait = Callable[[Case, "float | None"], Awaitable[None]]


async def _wait_dns(case: Case, seconds: float | None) -> None:
    with stuck() as resolver:
        await case.world.backend(resolver=resolver).connect_tcp("host.example", 80, timeout=seconds)


async def _wait_connect(case: Case, seconds: float | None) -> None:
    with black_hole() as port, refusing() as dead:
        addresses = [ResolvedAddress(socket.AF_INET, ("127.0.0.1", number)) for number in (dead, port)]
        backend = case.world.backend(resolver=Table(addresses))
        await backend.connect_tcp("host.example", 80, timeout=seconds)


async def _wait_unix(case: Case, seconds: float | None) -> None:
    path = f"{case.folder}/full"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as filler:
            filler.connect(path)
            await case.world.backend().connect_unix_socket(path, timeout=seconds)


def _in_stream(
    use: Callable[[AsyncNetworkStream, float | None], Awaitable[Any]], *, tls: bool = False
) -> Wait:
    async def wait(case: Case, seconds: float | None) -> None:
        # The connection is made under no deadline but the fault's own, where that one has not passed.
        assert case.stream is not None
        await use(case.stream, seconds)

    wait.__dict__["needs"] = "tls" if tls else "stream"
    return wait


_WAITS: dict[str, tuple[Wait, str, type[LaminaError]]] = {
    "dns": (_wait_dns, "dns", ConnectTimeout),
    "connect": (_wait_connect, "connect", ConnectTimeout),
    "unix": (_wait_unix, "connect", ConnectTimeout),
    "handshake": (
        _in_stream(lambda s, t: s.start_tls(client_context(), "x", timeout=t)),
        "tls",
        ConnectTimeout,
    ),
    "read": (_in_stream(lambda s, t: s.read(timeout=t)), "read", ReadTimeout),
    "read over TLS": (_in_stream(lambda s, t: s.read(timeout=t), tls=True), "read", ReadTimeout),
    "read_into": (_in_stream(lambda s, t: _read_into(s, seconds=t)), "read", ReadTimeout),
    "read_into over TLS": (_in_stream(lambda s, t: _read_into(s, seconds=t), tls=True), "read", ReadTimeout),
    "write": (_in_stream(lambda s, t: s.write(bytes(MUCH), timeout=t)), "write", WriteTimeout),
    "write over TLS": (
        _in_stream(lambda s, t: s.write(bytes(MUCH), timeout=t), tls=True),
        "write",
        WriteTimeout,
    ),
    "wait_writable": (_in_stream(_fill_and_wait), "write", WriteTimeout),
    "wait_writable over TLS": (_in_stream(_fill_and_wait, tls=True), "write", WriteTimeout),
    "write_until_readable": (
        _in_stream(lambda s, t: cast("Any", s).write_until_readable(bytes(MUCH), t)),
        "write",
        WriteTimeout,
    ),
}


def _limited(wait: Wait, how: str) -> Callable[[Case], Awaitable[None]]:
    async def limited(case: Case) -> None:
        match how:
            case "time-out":
                await wait(case, case.short)
            case "time-out of 0":
                await wait(case, 0)
            case "deadline":
                async with timeout(case.short):
                    await wait(case, LONG)
            case "deadline inside a later one":
                async with timeout(LONG), timeout(case.short):
                    await wait(case, None)
            case "deadline outside a later one":
                async with timeout(case.short), timeout(LONG):
                    await wait(case, None)
            case "deadline of 0":
                async with timeout(0):
                    await wait(case, None)
            case "time-out within a deadline":
                async with timeout(LONG):
                    await wait(case, case.short)

    async def act(case: Case) -> None:
        match wait.__dict__.get("needs"):
            case "stream":
                async with linked(case):
                    await limited(case)
            case "tls":
                async with secured(case, case.hold, until_done=False):
                    await limited(case)
            case _:
                await limited(case)

    return act


for _name, (_wait, _phase, _class) in _WAITS.items():
    for _how in ("time-out", "time-out within a deadline"):
        fault(f"{_name}: {_how}", _class, _phase, timed=True)(_limited(_wait, _how))
    for _how in ("deadline", "deadline inside a later one", "deadline outside a later one"):
        fault(f"{_name}: {_how}", DeadlineExceeded, _phase, timed=True)(_limited(_wait, _how))
    # What has passed before it begins does not come to looking up a name.
    _phase = "connect" if _phase == "dns" else _phase
    fault(f"{_name}: time-out of 0", _class, _phase)(_limited(_wait, "time-out of 0"))
    fault(f"{_name}: deadline of 0", DeadlineExceeded, _phase)(_limited(_wait, "deadline of 0"))
