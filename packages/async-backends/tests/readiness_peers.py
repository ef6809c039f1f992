"""Peers on loopback for the tests of the backends: servers in threads, dead addresses, resolvers; and all worlds."""

from __future__ import annotations

import os
import select
import socket
import ssl
import threading
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.lowlevel
import trustme

from lamina_async_backends import AnyIOBackend, AsyncioBackend, TrioBackend
from lamina_interfaces import AsyncResolver, ResolvedAddress, Resolver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType
    from typing import Self

PATIENCE = 10.0
"""Seconds after which something that should happen at once counts as not happening."""

SMALL = 16 * 1024
"""Bytes that our system takes, so that little is on the way."""


ALL_WORLDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "asyncio": (AsyncioBackend, "asyncio", {}),
    "uvloop": (AsyncioBackend, "asyncio", {"use_uvloop": True}),
    "anyio-asyncio": (AnyIOBackend, "asyncio", {}),
    "anyio-trio": (AnyIOBackend, "trio", {}),
    "trio": (TrioBackend, "trio", {}),
}
"""The backends, asyncio's too, each with what it runs in and that one's options."""


# --- what is open, and what happens elsewhere --------------------------------------------------------------


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


async def until(condition: Callable[[], object]) -> None:
    """Let others run until something has happened."""
    end = monotonic() + PATIENCE
    while not condition():
        assert monotonic() < end, "it did not happen"
        await anyio.sleep(0.001)


async def rounds(count: int) -> None:
    """Let other tasks run that often."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


def has_ended(sock: socket.socket) -> bool:
    """Whether the other end of a blocking socket is over, within `PATIENCE`; takes what still comes."""
    sock.settimeout(PATIENCE)
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


# --- servers -----------------------------------------------------------------------------------------------


class Peer:
    """A server that runs `script(connection)` for each connection, in a thread of its own.

    An `OSError` in a script is its own business: many tests break connections. Other errors come out at the end.
    """

    def __init__(self, script: Callable[[socket.socket], object]) -> None:
        self._script = script
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.address = ResolvedAddress(socket.AF_INET, ("127.0.0.1", self.port))
        self.connections: list[socket.socket] = []
        self.ended = 0  # scripts, and their connections
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(PATIENCE)
        self._listener.close()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "a peer hangs"
        if self._errors and exc is None:
            raise self._errors[0]

    def _start(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            self._start(partial(self._serve, connection))

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                self._script(connection)
            except OSError:
                pass
            except BaseException as exc:  # noqa: BLE001 - raised again at the end of the test
                self._errors.append(exc)
        self.ended += 1


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


def silent(connection: socket.socket) -> None:
    """Read nothing, say nothing, until the connection is over in both directions."""
    poll = select.poll()
    poll.register(connection, 0)
    poll.poll(3 * PATIENCE * 1000)


def drain(connection: socket.socket) -> int:
    """Read to the end without keeping anything; returns how many bytes there were."""
    buffer = bytearray(1 << 18)
    total = 0
    while count := connection.recv_into(buffer):
        total += count
    return total


def tls_peer(script: Callable[[Any], object]) -> Callable[[socket.socket], None]:
    """The script over TLS."""

    def over_tls(connection: socket.socket) -> None:
        with SERVER_CONTEXT.wrap_socket(connection, server_side=True) as tls:
            script(tls)

    return over_tls


@contextmanager
def black_hole() -> Iterator[ResolvedAddress]:
    """An address that swallows connection attempts: a listener whose queue is full and stays full."""
    sockets = [socket.socket()]
    try:
        listener = sockets[0]
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = ResolvedAddress(socket.AF_INET, listener.getsockname())
        for _ in range(8):
            filler = socket.socket()
            sockets.append(filler)
            filler.settimeout(0.05)
            try:
                filler.connect(address.sockaddr)
            except TimeoutError:
                break
        else:
            raise AssertionError("the queue does not fill up")
        yield address
    finally:
        for sock in sockets:
            sock.close()


# --- TLS ---------------------------------------------------------------------------------------------------


_AUTHORITY = trustme.CA()


def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _AUTHORITY.issue_cert("server.example").configure_cert(context)
    return context


SERVER_CONTEXT = _server_context()
"""With a certificate for `server.example`."""


def client_context() -> ssl.SSLContext:
    """One that trusts that certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _AUTHORITY.configure_trust(context)
    return context


class ServerTLS:
    """A TLS server over a socket or over another one of itself; blocking, for one thread."""

    def __init__(self, beneath: Any) -> None:
        self._beneath = beneath
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = SERVER_CONTEXT.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self) -> Self:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._listen()
            else:
                self._flush()
                return self

    def recv(self, size: int, /) -> bytes:
        while True:
            try:
                return self._tls.read(size)
            except ssl.SSLWantReadError:
                self._listen()
            except ssl.SSLZeroReturnError:
                return b""

    def sendall(self, data: bytes, /) -> None:
        for start in range(0, len(data), 65536):
            self._tls.write(data[start : start + 65536])
            self._flush()

    def end(self) -> None:
        """Send close_notify, and go on reading."""
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self._flush()

    def _flush(self) -> None:
        if data := self._outgoing.read():
            self._beneath.sendall(data)

    def _listen(self) -> None:
        data = self._beneath.recv(65536)
        if not data:
            raise ConnectionResetError("the client went away")
        self._incoming.write(data)


class Server:
    """A peer in a thread, that does nothing before it is let go on.

    It is at the other end of a pair of sockets, whose system takes the same number of bytes each time.

    Args:
        depth: how many layers of TLS.
        script: what it does then.
        greeting: what it does before, inside TLS.
        tcp: over TCP.
    """

    def __init__(
        self,
        depth: int,
        script: Callable[[Any], object],
        greeting: Callable[[Any], object] | None = None,
        *,
        tcp: bool = False,
    ) -> None:
        self.go_on = threading.Event()
        self._depth = depth
        self._script = script
        self._greeting = greeting
        self._errors: list[BaseException] = []
        if tcp:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self._ours = socket.create_connection(listener.getsockname())
                self._theirs = listener.accept()[0]
        else:
            self._ours, self._theirs = socket.socketpair()
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)
        self._theirs.settimeout(PATIENCE)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        try:
            with self._theirs:
                tls: Any = self._theirs
                for _ in range(self._depth):
                    tls = ServerTLS(tls).handshake()
                if self._greeting is not None:
                    self._greeting(tls)
                self.go_on.wait(PATIENCE)
                self._script(tls)
        except ConnectionError:
            pass  # the client has gone
        except BaseException as exc:  # noqa: BLE001 - raised again at the end of the test
            self._errors.append(exc)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.go_on.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the peer hangs"
        if self._errors and exc is None:
            raise self._errors[0]

    @property
    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    async def client(self, backend: Any) -> Any:
        stream = await backend.wrap_socket(self._ours)
        for _ in range(self._depth):
            await stream.start_tls(client_context(), "server.example", timeout=PATIENCE)
        return stream


# --- resolvers ---------------------------------------------------------------------------------------------


class Table(Resolver):
    """Answers from a table of families; a value may be an exception, or something to call."""

    def __init__(self, *, v6: Any = (), v4: Any = ()) -> None:
        self._answers: dict[int, Any] = {socket.AF_INET6: v6, socket.AF_INET: v4}

    def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        answer = self._answers[family]
        if callable(answer):
            answer = answer()
        if isinstance(answer, BaseException):
            raise answer
        return cast("Sequence[ResolvedAddress]", answer)


class AsyncTable(AsyncResolver):
    """The same, awaited; what is called may be awaited too."""

    def __init__(self, *, v6: Any = (), v4: Any = ()) -> None:
        self._answers: dict[int, Any] = {socket.AF_INET6: v6, socket.AF_INET: v4}
        self.asked = 0
        self.left = 0

    async def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        self.asked += 1
        try:
            await anyio.lowlevel.checkpoint()
            answer: Any = self._answers[family]
            if callable(answer):
                pending: Any = answer()
                answer = await pending
            if isinstance(answer, BaseException):
                raise answer
            return cast("Sequence[ResolvedAddress]", answer)
        finally:
            self.left += 1


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


async def answered(stream: Any, theirs: socket.socket, timeout: float) -> None:
    """One read that has to wait, and gets its answer in time."""
    async with anyio.create_task_group() as tasks:

        async def answer() -> None:
            await until(lambda: stream._transport.users)
            await anyio.lowlevel.checkpoint()
            theirs.sendall(b"x")

        tasks.start_soon(answer)
        assert await stream.read(1, timeout=timeout) == b"x"
