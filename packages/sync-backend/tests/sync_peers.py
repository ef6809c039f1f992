"""Peers on loopback for the tests of the blocking backend: servers in threads, dead addresses, resolvers."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import trustme

from lamina_interfaces import ResolvedAddress, Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

AUTHORITY = trustme.CA()

PATIENCE = 20.0
"""Seconds after which something that should happen at once counts as not happening."""


# --- a machine that is busy, or stands still for a while ---------------------------------------------------


def open_fds() -> set[tuple[str, str]]:
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


def until(condition: Callable[[], object]) -> None:
    """Wait for another thread to get somewhere."""
    end = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < end, "it did not happen"
        threading.Event().wait(0.001)


class Try:
    """A block whose failed assertion counts only in the last try."""

    def __init__(self, *, is_last: bool) -> None:
        self._is_last = is_last
        self.failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self.failed = isinstance(exc, AssertionError)
        return self.failed and not self._is_last


def tries() -> Iterator[Try]:
    """Up to five tries of what a slow machine may be late for. What is late five times has another reason."""
    for left in reversed(range(5)):
        this = Try(is_last=not left)
        yield this
        if not this.failed:
            return


# --- TLS ---------------------------------------------------------------------------------------------------


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


# --- threads -----------------------------------------------------------------------------------------------


def in_thread(work: Callable[[], Any]) -> Outcome:
    outcome = Outcome(work)
    outcome.start()
    return outcome


class Outcome(threading.Thread):
    """A thread whose result, or exception, can be asked for."""

    def __init__(self, work: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as exc:  # noqa: BLE001 - raised again in the thread that asks
            self._error = exc

    def result(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), "the thread hangs"
        try:
            if self._error is not None:
                raise self._error
            return self._value
        finally:
            self._error = None


# --- servers -----------------------------------------------------------------------------------------------


class Peer:
    """A server that runs `script(connection)` for each connection, in a thread of its own.

    An `OSError` in a script is its own business: many tests break connections.
    """

    def __init__(self, script: Callable[[socket.socket], object], *, family: int = socket.AF_INET) -> None:
        self._script = script
        host = "127.0.0.1" if family == socket.AF_INET else "::1"
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.bind((host, 0))
        self.listener.listen(512)  # a client that finds it full waits a second
        self.port: int = self.listener.getsockname()[1]
        self.address = ResolvedAddress(family, self.listener.getsockname())
        self.accepted = 0
        self._connections: list[socket.socket] = []
        self._threads: list[Outcome] = []

    def __enter__(self) -> Self:
        self._accepting = in_thread(self._accept)
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
        for thread in self._threads:
            thread.result()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._connections.append(connection)
            self._threads.append(in_thread(partial(self._serve, connection)))

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._script(connection)
            except OSError:
                pass


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def silent(connection: socket.socket) -> None:
    """Read nothing, say nothing, until the connection is over in both directions."""
    poll = select.poll()
    poll.register(connection, 0)
    poll.poll(3 * PATIENCE * 1000)


def tls_echo(context: ssl.SSLContext | None = None) -> Callable[[socket.socket], None]:
    context = context or server_context()

    def script(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as tls:
            echo(tls)

    return script


class BlackHole:
    """A port that swallows connection attempts: a listener whose queue is full and stays full."""

    def __init__(self) -> None:
        self._sockets = [socket.socket()]
        listener = self._sockets[0]
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        self.port: int = listener.getsockname()[1]
        self.address = ResolvedAddress(socket.AF_INET, ("127.0.0.1", self.port))

    def __enter__(self) -> Self:
        for number in range(8):
            filler = socket.socket()
            self._sockets.append(filler)
            filler.settimeout(0.05 if number else PATIENCE)  # there is room for the first
            try:
                filler.connect(("127.0.0.1", self.port))
            except TimeoutError:
                return self
        raise AssertionError("the queue does not fill up")

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for sock in self._sockets:
            sock.close()


class RefusingPorts:
    """Ports of loopback where nobody listens, and that nobody else is given meanwhile."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []

    def __call__(self, family: int = socket.AF_INET) -> ResolvedAddress:
        sock = socket.socket(family)
        self._sockets.append(sock)
        # So that a test may bind its own end to it.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
        return ResolvedAddress(family, sock.getsockname())

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


# --- resolvers ---------------------------------------------------------------------------------------------


class Table(Resolver):
    """Answers from a table of families; a value may be an exception, or something to call."""

    def __init__(self, *, v6: Any = (), v4: Any = ()) -> None:
        self.answers: dict[int, Any] = {socket.AF_INET6: v6, socket.AF_INET: v4}
        self.calls: list[tuple[str, int, int]] = []

    def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        self.calls.append((host, port, family))
        answer = self.answers[family]
        if callable(answer):
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer
        return cast("Sequence[ResolvedAddress]", answer)


class Hanging:
    """An answer that does not come before `release`."""

    def __init__(self, answer: Any = ()) -> None:
        self._answer = answer
        self._released = threading.Event()
        self.waiting = 0

    def __call__(self) -> Any:
        self.waiting += 1
        self._released.wait(PATIENCE * 3)
        return self._answer

    def release(self) -> None:
        self._released.set()


# --- bytes -------------------------------------------------------------------------------------------------


def drain(connection: socket.socket) -> int:
    """Read to the end without keeping anything; returns how many bytes there were."""
    buffer = bytearray(1 << 18)
    total = 0
    while count := connection.recv_into(buffer):
        total += count
    return total


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
