"""Peers for the tests of the asyncio backend: servers in threads, on blocking sockets; and what must not be left."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import socket
import ssl
import struct
import sys
import threading
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

import trustme

from lamina_async_backends._asyncio import AsyncioStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

AUTHORITY = trustme.CA()

PATIENCE = 20.0
"""Seconds after which something that should happen at once counts as not happening."""

LOOPS: list[Any] = [
    ("asyncio", {"use_uvloop": False}),
    ("asyncio", {"use_uvloop": False, "debug": True}),
    *([("asyncio", {"use_uvloop": True})] if sys.platform != "win32" else []),
]
"""For anyio's plugin."""

LOOP_NAMES = ("asyncio", "asyncio-debug", "uvloop")


def transport_of(stream: AsyncioStream) -> Any:
    """What is within a stream, of a class that the tests need not name."""
    return stream._transport


# --- what must not be left -----------------------------------------------------------------------------------


def open_sockets() -> set[tuple[str, str]]:
    """The open sockets of this process, by number and identity."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the directory's own
            continue
        if target.startswith("socket:"):
            found.add((name, target))
    return found


@contextmanager
def no_socket_left() -> Iterator[None]:
    """Check that a test leaves no socket open, without help of the garbage collector."""
    if not sys.platform.startswith("linux"):
        yield
        return
    before = open_sockets()
    gc.disable()  # so that no cycle is found, and no descriptor freed, by luck
    try:
        yield
        assert open_sockets() <= before, "sockets were left open"
    finally:
        gc.enable()


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check, within a running loop, that no task and no watched descriptor is left."""
    tasks, watched = asyncio.all_tasks(), _watched()
    yield
    assert asyncio.all_tasks() <= tasks
    assert _watched() <= watched


def _watched() -> set[int]:
    selector = getattr(asyncio.get_running_loop(), "_selector", None)  # uvloop has none
    return set() if selector is None else set(selector.get_map())


# --- waiting -------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until something holds."""
    end = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < end, "it did not happen"
        await asyncio.sleep(0)


async def in_a_wait(task: asyncio.Task[Any]) -> None:
    """Let a task run as far as it gets; its next step needs something from outside."""
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()


async def end_of(task: asyncio.Task[Any]) -> BaseException | None:
    """How a task ends: its exception, or `None`."""
    await asyncio.wait([task], timeout=PATIENCE)
    assert task.done(), "the task hangs"
    return asyncio.CancelledError() if task.cancelled() else task.exception()


# --- peers ---------------------------------------------------------------------------------------------------


@contextmanager
def pair() -> Iterator[tuple[AsyncioStream, socket.socket]]:
    """A stream, and the plain blocking socket at its other end. TCP, which knows resets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    theirs.settimeout(PATIENCE)
    stream = AsyncioStream(ours)
    with theirs:
        try:
            yield stream, theirs
        finally:
            stream.abort()


def reset(sock: socket.socket) -> None:
    """Close with a reset instead of an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def has_ended(sock: socket.socket) -> bool:
    """Whether the other end has gone, orderly or not, after whatever it has sent before."""
    sock.settimeout(PATIENCE)
    try:
        while sock.recv(1 << 20):
            pass
    except ConnectionError:
        pass
    return True


class Outcome(threading.Thread):
    """A thread whose result, or exception, can be asked for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as exc:  # noqa: BLE001 - raised again where it is asked for
            self._error = exc

    def result(self) -> Any:
        """Wait, blocking the loop; for what needs nothing more from it."""
        self.join(PATIENCE)
        assert not self.is_alive(), "the thread hangs"
        error, self._error = self._error, None
        if error is not None:
            raise error
        return self._value

    async def ended(self) -> Any:
        """Wait, and let the loop run meanwhile."""
        await until(lambda: not self.is_alive())
        return self.result()


class Peer:
    """A server that runs `script(connection)` for each connection, in a thread of its own.

    An `OSError` in a script is its own business: many tests break connections.
    """

    def __init__(self, script: Callable[[socket.socket], object], *, family: int = socket.AF_INET) -> None:
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        self.listener = socket.create_server((host, 0), family=family)
        self.port: int = self.listener.getsockname()[1]
        self.outcomes: list[Outcome] = []
        self._script = script
        self._connections: list[socket.socket] = []

    def __enter__(self) -> Self:
        self._accepting = Outcome(self._accept)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self._accepting.result()
        self.listener.close()
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for outcome in self.outcomes:
            outcome.result()

    async def served(self, number: int = 0) -> Any:
        """What the script returned for one connection, or its `OSError`; waits for its end."""
        await until(lambda: len(self.outcomes) > number)
        return await self.outcomes[number].ended()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self.outcomes.append(Outcome(lambda connection=connection: self._serve(connection)))  # type: ignore[misc] # mypy infers no type for a default of a lambda

    def _serve(self, connection: socket.socket) -> Any:
        with connection:
            try:
                return self._script(connection)
            except OSError as exc:
                return exc


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def count(connection: socket.socket) -> int:
    """Read to the end without keeping anything; returns how many bytes there were."""
    buffer = bytearray(1 << 18)
    total = 0
    while size := connection.recv_into(buffer):
        total += size
    return total


def silent(connection: socket.socket) -> None:
    """Read nothing, say nothing, until the client has gone."""
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP)
    poll.poll(3 * PATIENCE * 1000)


# --- TLS -----------------------------------------------------------------------------------------------------


def server_context(*names: str, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    AUTHORITY.issue_cert(*(names or ("server.example",))).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


class ServerTLS:
    """A TLS server over a socket or over another one of itself; blocking, for one thread."""

    def __init__(self, beneath: Any, context: ssl.SSLContext) -> None:
        self._beneath = beneath
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def flush(self) -> None:
        if data := self._outgoing.read():
            self._beneath.sendall(data)

    def listen(self) -> None:
        data = self._beneath.recv(65536)
        if not data:
            raise ConnectionResetError("the client went away without a farewell")
        self._incoming.write(data)

    def handshake(self) -> Self:
        while True:
            try:
                self.tls.do_handshake()
                self.flush()
            except ssl.SSLWantReadError:
                self.flush()
                self.listen()
            else:
                return self

    def recv(self, size: int, /) -> bytes:
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                self.listen()
            except ssl.SSLZeroReturnError:
                return b""

    def sendall(self, data: bytes, /) -> None:
        for start in range(0, len(data), 65536):
            self.tls.write(data[start : start + 65536])
            self.flush()

    def end(self) -> None:
        """Send close_notify, and go on reading."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self.flush()


def over_tls(script: Callable[[ServerTLS], Any], *contexts: ssl.SSLContext) -> Callable[[socket.socket], Any]:
    """A script for `Peer` that runs `script` inside TLS, as deep as there are contexts."""

    def run(connection: socket.socket) -> Any:
        beneath: Any = connection
        for context in contexts or (server_context(),):
            beneath = ServerTLS(beneath, context).handshake()
        return script(beneath)

    return run


def tls_echo(tls: ServerTLS) -> None:
    while data := tls.recv(65536):
        tls.sendall(data)
