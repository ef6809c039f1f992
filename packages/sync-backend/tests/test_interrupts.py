"""Interrupts at every line, and forks: no socket is left, and the parent's is not touched."""

from __future__ import annotations

import dis
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

import lamina_interfaces
import lamina_sync_backend
from lamina_interfaces import ConnectError, ReadError, ResolvedAddress, WriteError, WriteTimeout
from lamina_sync_backend import SyncBackend, _transport
from sync_peers import (
    PATIENCE,
    Peer,
    RefusingPorts,
    Table,
    client_context,
    echo,
    in_thread,
    open_fds,
    server_context,
    until,
)
from sync_tls import ServerTLS

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

FOLDERS = tuple(
    str(Path(module.__file__ or "").parent) for module in (lamina_interfaces, lamina_sync_backend)
)

MOST_LINES = 3000
POP_EXCEPT = dis.opmap["POP_EXCEPT"]


class InterruptAtLine:
    """Raises `KeyboardInterrupt` before the n-th line of our own code that this thread runs."""

    def __init__(self, number: int, within: tuple[str, ...] = ()) -> None:
        self.left = number
        self._within = within

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *exc_info: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, argument: object) -> Any:
        # Not in the clean-up itself: nothing can clean up after that but the collector. Not where a lock is held:
        # tracing can interrupt between the last line of a `with` and its end, which no signal can.
        code = frame.f_code
        if not code.co_filename.startswith(FOLDERS) or code.co_name in SPARED:
            return None
        return self._line if not self._within or code.co_name in self._within else None

    def _line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line":
            self.left -= 1
            # Between the last line of an `except` and its end no signal is handled. What is raised there leaves the
            # thread with an exception that it takes for handled for ever after: the next line, then.
            if self.left <= 0 and frame.f_code.co_code[frame.f_lasti] != POP_EXCEPT:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._line


CLEAN_UP = {
    "connect",
    "resolve",
    "start_tls",
    "clean_up",
    "close",
    "abort",
    "leave",
    "settle",
    "_free",
    "inherited",
    "users",
}
HOLDS_A_LOCK = {"_entered", "try_to_take_the_turn", "ring"}
SPARED = CLEAN_UP | HOLDS_A_LOCK


def interrupted_everywhere(operation: Callable[[], Any], base: Callable[[], Any]) -> int:
    """Run the operation with an interrupt at its first line, its second, … until it comes through."""
    for number in range(1, MOST_LINES):
        try:
            with InterruptAtLine(number):
                stream = operation()
        except KeyboardInterrupt as exc:
            interrupt = exc  # the traceback holds the frames, as in an interactive session
            base()
            del interrupt
        else:
            stream.close()
            assert sys.exception() is None, "the thread goes on with an exception in hand"
            return number
    raise AssertionError("the operation does not end")


@pytest.fixture
def no_trace() -> None:
    if sys.gettrace() is not None:
        pytest.skip("a debugger or coverage is tracing")


@pytest.mark.usefixtures("no_trace")
def test_an_interrupt_while_connecting_leaves_no_socket(refusing_address: RefusingPorts) -> None:
    """D04."""
    with Peer(echo) as peer:
        backend = SyncBackend(resolver=Table(v4=[refusing_address(), peer.address]))
        baseline = len(open_fds())

        def nothing_but_the_peers_ends() -> None:
            until(lambda: len(open_fds()) == baseline)

        lines = interrupted_everywhere(
            lambda: backend.connect_tcp("host.example", 80, timeout=30), nothing_but_the_peers_ends
        )
    assert lines > 100


@pytest.mark.usefixtures("no_trace")
def test_an_interrupt_while_resolving_leaves_no_socket() -> None:
    backend = SyncBackend(resolver=Table(v4=[ResolvedAddress(socket.AF_INET, ("192.0.2.1", 80))]))
    baseline = len(open_fds())

    def nothing() -> None:
        assert len(open_fds()) == baseline

    def resolve() -> Any:
        backend.resolve("host.example", 80, timeout=PATIENCE)
        return ExitStack()

    assert interrupted_everywhere(resolve, nothing) > 50


@pytest.mark.usefixtures("no_trace")
def test_an_interrupt_while_connecting_to_a_unix_socket_leaves_none(
    backend: SyncBackend, tmp_path: Path
) -> None:
    """D07."""
    path = str(tmp_path / "peer.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        listener.settimeout(0)
        baseline = len(open_fds())

        def nothing() -> None:
            assert len(open_fds()) == baseline
            try:
                listener.accept()[0].close()  # or the queue fills up
            except BlockingIOError:
                pass

        lines = interrupted_everywhere(lambda: backend.connect_unix_socket(path, timeout=30), nothing)
    assert lines > 50


@pytest.mark.usefixtures("no_trace")
def test_an_interrupt_in_a_handshake_leaves_no_socket() -> None:
    """C08."""
    theirs, ours = server_context(), client_context()

    def script(connection: socket.socket) -> None:
        ServerTLS(connection, theirs).handshake().recv(1)

    with Peer(script) as peer:
        baseline = len(open_fds())
        backend = SyncBackend()
        # Once in peace, so that everything is imported.
        backend.connect_tcp("127.0.0.1", peer.port, timeout=30).start_tls(
            ours, "server.example", timeout=30
        ).close()
        until(lambda: len(open_fds()) == baseline)

        def handshake() -> Any:
            tracer = sys.gettrace()
            sys.settrace(None)
            stream = backend.connect_tcp("127.0.0.1", peer.port, timeout=30)
            sys.settrace(tracer)
            return stream.start_tls(ours, "server.example", timeout=30)

        def nothing_but_the_peers_ends() -> None:
            until(lambda: len(open_fds()) == baseline)

        lines = interrupted_everywhere(handshake, nothing_but_the_peers_ends)
    assert lines > 50


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals for one thread")
@pytest.mark.parametrize("operation", ["read", "write", "sleep"])
def test_a_signal_ends_every_wait_and_the_stream_can_be_used_again(
    backend: SyncBackend, operation: str
) -> None:
    class Alarm(BaseException):
        pass

    waits, over = threading.Event(), threading.Event()
    main = threading.get_ident()

    def ring(number: int, frame: FrameType | None) -> None:
        if not over.is_set():
            over.set()
            raise Alarm

    def knock() -> None:
        # A signal that comes just before the system call wakes nobody: once more, then.
        assert waits.wait(PATIENCE)
        while not over.wait(0.05):
            signal.pthread_kill(main, signal.SIGUSR1)

    with Peer(echo) as peer, backend.connect_tcp("127.0.0.1", peer.port, timeout=30) as stream:
        wait: dict[str, Callable[[], object]] = {
            "read": stream.read,
            "write": lambda: stream.write(bytes(500_000_000)),
            "sleep": lambda: backend.sleep(600),
        }
        before = signal.signal(signal.SIGUSR1, ring)
        knocking = in_thread(knock)
        try:
            with pytest.raises(Alarm):
                waits.set()
                wait[operation]()
        finally:
            over.set()
            knocking.result()
            signal.signal(signal.SIGUSR1, before)
        if operation == "read":
            stream.write(b"x")
            assert stream.read(timeout=30) == b"x"


# --- forks -------------------------------------------------------------------------------------------------


def in_child(work: Callable[[], object]) -> int:
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(40)  # a child that hangs ends, even if it no longer runs Python
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
@pytest.mark.parametrize("way", ["close", "abort", "__del__"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_child_that_closes_its_copy_does_not_end_the_parents_connection(
    backend: SyncBackend, way: str, tls: bool
) -> None:
    """I04: neither a shutdown nor a farewell, and no lock that another thread may have held."""

    def script(connection: socket.socket) -> None:
        echo(ServerTLS(connection, server_context()).handshake() if tls else connection)  # type: ignore[arg-type] # alike

    with Peer(script) as peer, backend.connect_tcp("127.0.0.1", peer.port, timeout=30) as stream:
        if tls:
            stream.start_tls(client_context(), "server.example", timeout=30)
        locked, release = threading.Event(), threading.Event()

        def hold() -> None:
            with stream._transport._lock:
                locked.set()
                release.wait(2 * PATIENCE)

        holder = threading.Thread(target=hold)
        holder.start()
        assert locked.wait(PATIENCE)
        status = in_child(getattr(stream, way))
        release.set()
        holder.join()
        assert status == 0
        stream.write(b"still here")
        assert stream.read(timeout=30) == b"still here"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_child_may_neither_read_nor_write_nor_handshake() -> None:
    ours, theirs = socket.socketpair()
    with lamina_sync_backend.SyncStream(ours) as stream, theirs:
        theirs.send(b"for the parent")

        def refused() -> None:
            with pytest.raises(ReadError, match="parent"):
                stream.read(timeout=1)
            with pytest.raises(WriteError, match="parent"):
                stream.write(b"x", timeout=1)
            with pytest.raises(ConnectError, match="parent"):
                stream.start_tls(client_context(), "server.example", timeout=1)

        assert in_child(refused) == 0
        theirs.setblocking(False)
        with pytest.raises(BlockingIOError):
            theirs.recv(1)
        assert stream.read(timeout=30) == b"for the parent"


@pytest.mark.parametrize("operation", ["read", "write", "write_until_readable"])
def test_an_interrupt_before_the_first_wait_leaves_the_next_one_whole(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A poll object that waits for nothing would be kept."""

    class Interrupting:
        def register(self, fd: int, eventmask: int, /) -> None:
            raise KeyboardInterrupt

    ours, theirs = socket.socketpair()
    with lamina_sync_backend.SyncStream(ours) as stream, theirs:
        argument = () if operation == "read" else (bytes(10_000_000),)
        with monkeypatch.context() as patch:
            patch.setattr(_transport, "new_poll", Interrupting)
            with pytest.raises(KeyboardInterrupt):
                getattr(stream, operation)(*argument, timeout=PATIENCE)
        stream._transport.half_sent = False  # or a second write would be refused
        theirs.send(b"answer")
        if operation == "read":
            assert stream.read(timeout=PATIENCE) == b"answer"
        elif operation == "write":
            with pytest.raises(WriteTimeout):
                stream.write(bytes(10_000_000), timeout=0.1)
        else:
            assert stream.write_until_readable(b"question", timeout=PATIENCE) == 0


@pytest.mark.usefixtures("no_trace")
@pytest.mark.parametrize("operation", ["read", "write", "write_until_readable"])
def test_an_interrupt_leaves_neither_side_in_use(operation: str) -> None:
    for number in range(1, MOST_LINES):
        ours, theirs = socket.socketpair()
        with lamina_sync_backend.SyncStream(ours) as stream, theirs:
            theirs.send(b"x")
            arguments = () if operation == "read" else (b"x",)
            try:
                with InterruptAtLine(
                    number, within=("enter", "receive", "send", "send_until_readable", "wait")
                ):
                    getattr(stream, operation)(*arguments, timeout=30)
            except KeyboardInterrupt:
                assert not stream._transport.users
            else:
                return
            stream.close()
            assert stream._transport.sock.fileno() == -1
    raise AssertionError("the operation does not end")


def test_a_write_that_timed_out_frees_the_writing_side(backend: SyncBackend) -> None:
    ours, theirs = socket.socketpair()
    with lamina_sync_backend.SyncStream(ours) as stream, theirs:
        with pytest.raises(WriteTimeout):
            stream.write(bytes(10_000_000), timeout=0.01)
        assert stream._transport.sender is None
