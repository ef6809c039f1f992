"""How the asyncio backend connects: addresses, names, limits, cancellation, and what it leaves."""

import asyncio
import errno
import gc
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import anyio
import pytest

from asyncio_peers import (
    LOOP_NAMES,
    LOOPS,
    PATIENCE,
    Outcome,
    Peer,
    echo,
    end_of,
    in_a_wait,
    no_socket_left,
    nothing_left,
    silent,
    until,
)
from lamina_async_backends._asyncio import AsyncioBackend
from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    AsyncResolver,
    ConcurrencyError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    ResolvedAddress,
    Resolver,
    close_deadline,
    open_deadline,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=LOOPS, ids=LOOP_NAMES)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    with no_socket_left():
        yield


@pytest.fixture
def black_hole() -> Iterator[ResolvedAddress]:
    """A port that swallows connection attempts: a listener whose queue is full and stays full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(8)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield ResolvedAddress(socket.AF_INET, listener.getsockname())
        for filler in fillers:
            filler.close()


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
        return answer  # type: ignore[no-any-return] # the table holds anything


class AsyncTable(AsyncResolver):
    """The same, awaited. An answer of `None` never comes; cleaning up takes some turns of the loop."""

    def __init__(self, *, v6: Any = (), v4: Any = ()) -> None:
        self._answers: dict[int, Any] = {socket.AF_INET6: v6, socket.AF_INET: v4}
        self.ended = 0

    async def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        try:
            answer = self._answers[family]
            if answer is None:
                await asyncio.get_running_loop().create_future()
            if isinstance(answer, BaseException):
                raise answer
            return answer  # type: ignore[no-any-return] # the table holds anything
        finally:
            await asyncio.sleep(0)
            self.ended += 1


# --- connections ---------------------------------------------------------------------------------------------


async def test_a_connection_to_an_address() -> None:
    with Peer(echo) as peer, nothing_left():
        async with await AsyncioBackend().connect_tcp("127.0.0.1", peer.port, timeout=PATIENCE) as stream:
            await stream.write(b"hello")
            assert await stream.read() == b"hello"
            assert stream.get_extra_info("server_addr") == ("127.0.0.1", peer.port)
            assert [span.name for span in stream.get_extra_info("timings")] == ["tcp"]
            sock = stream.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_localhost_is_this_machine() -> None:
    with Peer(echo) as peer:
        async with await AsyncioBackend().connect_tcp("localhost", peer.port, timeout=PATIENCE) as stream:
            assert [span.name for span in stream.get_extra_info("timings")] == ["dns", "tcp"]


async def test_options_and_a_local_address() -> None:
    with Peer(echo) as peer:
        async with await AsyncioBackend(keep_alive=False).connect_tcp(
            "127.0.0.1",
            peer.port,
            local_address="127.0.0.2",
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)],
        ) as stream:
            sock = stream.get_extra_info("socket")
            assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert stream.get_extra_info("client_addr")[0] == "127.0.0.2"


@pytest.mark.parametrize("table", [Table, AsyncTable], ids=["blocking", "async"])
async def test_a_name_with_one_dead_address_and_one_that_lives(
    table: Any, refusing_address: Callable[[], ResolvedAddress]
) -> None:
    with Peer(echo) as peer:
        living = ResolvedAddress(socket.AF_INET, ("127.0.0.1", peer.port))
        backend = AsyncioBackend(resolver=table(v4=[refusing_address(), living]))
        with nothing_left():
            async with await backend.connect_tcp("server.example", peer.port, timeout=PATIENCE) as stream:
                assert stream.get_extra_info("server_addr") == living.sockaddr


async def test_an_address_that_swallows_attempts_is_overtaken(black_hole: ResolvedAddress) -> None:
    with Peer(echo) as peer:
        living = ResolvedAddress(socket.AF_INET, ("127.0.0.1", peer.port))
        backend = AsyncioBackend(resolver=Table(v4=[black_hole, living]))
        with nothing_left():
            async with await backend.connect_tcp("server.example", peer.port, timeout=PATIENCE) as stream:
                assert stream.get_extra_info("server_addr") == living.sockaddr


async def test_one_family_that_is_not_answered_holds_up_nothing() -> None:
    with Peer(echo) as peer:
        table = AsyncTable(v6=None, v4=[ResolvedAddress(socket.AF_INET, ("127.0.0.1", peer.port))])
        with nothing_left():
            stream = await AsyncioBackend(resolver=table).connect_tcp("server.example", 1, timeout=PATIENCE)
        assert table.ended == 2  # the other one was cancelled, and has cleaned up
        await stream.aclose()


async def test_many_at_once() -> None:
    with Peer(echo) as peer, nothing_left():
        backend = AsyncioBackend()

        async def use(number: int) -> bytes:
            async with await backend.connect_tcp("localhost", peer.port, timeout=PATIENCE) as stream:
                await stream.write(b"%d" % number)
                return await stream.read(timeout=PATIENCE)

        replies = await asyncio.gather(*map(use, range(30)))
        assert replies == [b"%d" % number for number in range(30)]


# --- errors --------------------------------------------------------------------------------------------------


async def test_a_refused_connection(refusing_address: Callable[[], ResolvedAddress]) -> None:
    port = refusing_address().sockaddr[1]
    with nothing_left(), pytest.raises(ConnectError) as caught:
        await AsyncioBackend().connect_tcp("127.0.0.1", port)
    assert (caught.value.phase, caught.value.errno) == ("connect", errno.ECONNREFUSED)
    assert [attempt.address for attempt in caught.value.attempts] == [f"127.0.0.1:{port}"]


@pytest.mark.parametrize("table", [Table, AsyncTable], ids=["blocking", "async"])
@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (RuntimeError("broken resolver"), "broken resolver"),
        ((), "it has no address"),
        ([("not", "an address")], "could not be resolved"),
    ],
    ids=["unknown", "raises", "empty", "nonsense"],
)
async def test_a_name_that_cannot_be_resolved(table: Any, answer: Any, message: str) -> None:
    backend = AsyncioBackend(resolver=table(v6=answer, v4=answer))
    with nothing_left(), pytest.raises(ConnectError, match=message) as caught:
        await backend.connect_tcp("server.example", 80, timeout=PATIENCE)
    assert caught.value.phase == "dns"


async def test_arguments_that_make_no_sense() -> None:
    backend = AsyncioBackend()
    for call, error in (
        (backend.connect_tcp("", 80), ArgumentValueError),
        (backend.connect_tcp("host", 0), ArgumentValueError),
        (backend.connect_tcp("host", "80"), ArgumentTypeError),  # type: ignore[arg-type] # that is the test
        (backend.connect_tcp("127.0.0.1", 80, timeout=-1), ArgumentValueError),
        (backend.connect_tcp("127.0.0.1", 80, timeout=0), ConnectTimeout),
        (backend.connect_tcp("127.0.0.1", 80, local_address="name"), ArgumentValueError),
        (backend.connect_unix_socket(""), ArgumentValueError),
    ):
        with pytest.raises(error):
            await call
    with pytest.raises(ArgumentTypeError, match="resolver must have a method resolve"):
        AsyncioBackend(resolver=3)  # type: ignore[arg-type] # that is the test


async def test_an_option_that_the_system_refuses() -> None:
    with Peer(echo) as peer, pytest.raises(ConnectError):
        await AsyncioBackend().connect_tcp("127.0.0.1", peer.port, socket_options=[(250, 250, 1)])


async def test_a_loop_that_refuses_to_watch_a_socket(
    black_hole: ResolvedAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(asyncio.get_running_loop(), "add_writer", refuse)
    with pytest.raises(ConnectError, match="cannot watch the socket") as caught:
        await AsyncioBackend().connect_tcp("127.0.0.1", black_hole.sockaddr[1])
    assert caught.value.errno == errno.ENOSPC


def test_without_a_loop_nothing_is_connected(anyio_backend: Any) -> None:
    with pytest.raises(ConcurrencyError, match="no event loop of asyncio is running here"):
        AsyncioBackend().connect_tcp("127.0.0.1", 80).send(None)


# --- limits --------------------------------------------------------------------------------------------------


async def test_connecting_has_a_limit(black_hole: ResolvedAddress) -> None:
    with nothing_left(), pytest.raises(ConnectTimeout) as caught:
        await AsyncioBackend().connect_tcp("127.0.0.1", black_hole.sockaddr[1], timeout=0.05)
    assert (caught.value.phase, caught.value.limit) == ("connect", 0.05)
    assert [attempt.errno for attempt in caught.value.attempts] == [None]


@pytest.mark.parametrize("ambient", [False, True], ids=["timeout", "deadline"])
@pytest.mark.parametrize("table", [Table, AsyncTable], ids=["blocking", "async"])
async def test_looking_up_has_a_limit(table: Any, *, ambient: bool) -> None:
    released = threading.Event()
    answer = (lambda: released.wait(PATIENCE) and ()) if table is Table else None
    backend = AsyncioBackend(resolver=table(v6=answer, v4=answer))
    deadline = open_deadline(0.05 if ambient else None, asyncio.get_running_loop().time)
    try:
        with nothing_left(), pytest.raises(DeadlineExceeded if ambient else ConnectTimeout) as caught:
            await backend.connect_tcp("server.example", 80, timeout=None if ambient else 0.05)
        assert (caught.value.phase, caught.value.limit) == ("dns", 0.05)
    finally:
        released.set()
        close_deadline(deadline)


async def test_a_resolver_that_the_same_deadline_ends_does_not_hide_it() -> None:
    now = [0.0]
    deadline = open_deadline(1.0, lambda: now[0])

    class Late(AsyncResolver):
        async def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
            now[0] = 1.0
            raise deadline.exceeded()

    try:
        with nothing_left(), pytest.raises(DeadlineExceeded) as caught:
            await AsyncioBackend(resolver=Late()).connect_tcp("server.example", 80)
    finally:
        close_deadline(deadline)
    assert caught.value.phase == "dns"


async def test_the_ambient_deadline_ends_connecting(black_hole: ResolvedAddress) -> None:
    deadline = open_deadline(0.05, asyncio.get_running_loop().time)
    try:
        with pytest.raises(DeadlineExceeded) as caught:
            await AsyncioBackend().connect_tcp("127.0.0.1", black_hole.sockaddr[1])
    finally:
        close_deadline(deadline)
    assert caught.value.phase == "connect"
    assert len(caught.value.attempts) == 1


async def test_sleeping_obeys_the_ambient_deadline() -> None:
    backend = AsyncioBackend()
    await backend.sleep(0)
    deadline = open_deadline(0.02, asyncio.get_running_loop().time)
    try:
        with pytest.raises(DeadlineExceeded):
            await backend.sleep(3600)
    finally:
        close_deadline(deadline)


# --- cancellation ---------------------------------------------------------------------------------------------


async def test_a_cancelled_connect_leaves_nothing(black_hole: ResolvedAddress) -> None:
    now = [0.0]
    deadline = open_deadline(1.0, lambda: now[0])
    try:
        with nothing_left():
            connecting = asyncio.ensure_future(
                AsyncioBackend().connect_tcp("127.0.0.1", black_hole.sockaddr[1])
            )
            await in_a_wait(connecting)
            now[0] = 1.0
            connecting.cancel()
            assert isinstance(await end_of(connecting), asyncio.CancelledError)
            del connecting
        assert deadline.interruption is not None
        assert (deadline.interruption.phase, len(deadline.interruption.attempts)) == ("connect", 1)
    finally:
        close_deadline(deadline)


@pytest.mark.parametrize("how", ["native", "anyio"])
async def test_a_cancelled_look_up_is_cancelled_and_waited_for(how: str) -> None:
    table = AsyncTable(v6=None, v4=None)
    backend = AsyncioBackend(resolver=table)
    with nothing_left():
        if how == "native":
            connecting = asyncio.ensure_future(backend.connect_tcp("server.example", 80))
            await in_a_wait(connecting)
            connecting.cancel()
            assert isinstance(await end_of(connecting), asyncio.CancelledError)
            del connecting
        else:
            with anyio.CancelScope() as scope:
                asyncio.get_running_loop().call_later(0.01, scope.cancel)
                await backend.connect_tcp("server.example", 80)
            assert scope.cancelled_caught
    assert table.ended == 2


async def test_cancelled_between_the_connection_and_the_end_of_a_look_up() -> None:
    class Hooked(AsyncTable):
        async def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
            try:
                return await super().resolve(host, port, family)
            except asyncio.CancelledError:
                connecting.cancel()  # there is a connection already, or nobody would have cancelled this
                raise

    with Peer(silent) as peer:
        table = Hooked(v6=None, v4=[ResolvedAddress(socket.AF_INET, ("127.0.0.1", peer.port))])
        with nothing_left():
            connecting = asyncio.ensure_future(
                AsyncioBackend(resolver=table).connect_tcp("server.example", 80)
            )
            assert isinstance(await end_of(connecting), asyncio.CancelledError)
        assert table.ended == 2
        await peer.served()


async def test_a_cancelled_look_up_in_threads_disturbs_nobody() -> None:
    released = threading.Event()
    table = Table(v6=lambda: released.wait(PATIENCE) and (), v4=lambda: released.wait(PATIENCE) and ())
    backend = AsyncioBackend(resolver=table)
    with nothing_left():
        first, second = (asyncio.ensure_future(backend.connect_tcp("server.example", 80)) for _ in range(2))
        await in_a_wait(first)
        await in_a_wait(second)
        first.cancel()
        assert isinstance(await end_of(first), asyncio.CancelledError)
        assert not second.done()
        released.set()
        error = await end_of(second)
        assert isinstance(error, ConnectError)
        assert "it has no address" in str(error)
        del first, second


async def test_a_cancellation_at_each_turn_of_the_loop_leaves_nothing(
    refusing_address: Callable[[], ResolvedAddress],
) -> None:
    """Cancelled at its first wait, at its second, …, until it is not cancelled any more."""
    with Peer(silent) as peer:
        living = [refusing_address(), ResolvedAddress(socket.AF_INET, ("127.0.0.1", peer.port))]
        for turns in range(200):
            backend = AsyncioBackend(resolver=AsyncTable(v4=living))
            with nothing_left():
                connecting = asyncio.ensure_future(
                    backend.connect_tcp("server.example", 80, timeout=PATIENCE)
                )
                for _ in range(turns):
                    await asyncio.sleep(0)
                connecting.cancel()
                error = await end_of(connecting)
                if error is None:
                    connecting.result().abort()
                    break
                assert isinstance(error, asyncio.CancelledError)
                del connecting
        else:
            raise AssertionError("it never gets so far")
        assert turns > 2
        await until(lambda: not any(outcome.is_alive() for outcome in peer.outcomes))


def test_a_look_up_whose_loop_has_ended_disturbs_nobody(anyio_backend: Any) -> None:
    released = threading.Event()
    asked = threading.Event()

    def answer() -> tuple[()]:
        asked.set()
        released.wait(PATIENCE)
        return ()

    backend = AsyncioBackend(resolver=Table(v6=answer, v4=answer))
    loop = asyncio.new_event_loop()

    async def abandon() -> None:
        await asyncio.wait_for(backend.connect_tcp("server.example", 80), 0.01)

    with pytest.raises(TimeoutError):
        loop.run_until_complete(abandon())
    loop.close()
    released.set()
    gc.collect()


def test_a_dial_that_is_thrown_away_with_its_loop_ends_without_a_word(anyio_backend: Any) -> None:
    class Silent(AsyncResolver):
        async def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
            asked.set()
            await asyncio.Event().wait()
            return ()

    asked = asyncio.Event()
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda _, context: None)  # it complains of tasks that are thrown away
    task = loop.create_task(AsyncioBackend(resolver=Silent()).connect_tcp("server.example", 80))
    loop.run_until_complete(asked.wait())
    loop.close()
    dial = task.get_coro()
    assert dial is not None
    dial.close()
    del dial, task
    gc.collect()


# --- unix sockets ---------------------------------------------------------------------------------------------


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield os.path.join(directory, "socket")


async def test_a_unix_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                echo(connection)

        server = Outcome(serve)
        with nothing_left():
            async with await AsyncioBackend().connect_unix_socket(path, timeout=PATIENCE) as stream:
                await stream.write(b"hello")
                assert await stream.read() == b"hello"
                assert [span.name for span in stream.get_extra_info("timings")] == ["unix"]
                assert repr(stream) == f"<AsyncioStream [open, {path}]>"
        await server.ended()


async def test_a_unix_socket_that_is_not_there(path: str) -> None:
    with pytest.raises(ConnectError) as caught:
        await AsyncioBackend().connect_unix_socket(path)
    assert caught.value.errno == errno.ENOENT
    assert [attempt.address for attempt in caught.value.attempts] == [path]


async def test_a_unix_socket_whose_queue_is_full(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as filler:
            filler.connect(path)
            backend = AsyncioBackend()
            with nothing_left(), pytest.raises(ConnectTimeout):
                await backend.connect_unix_socket(path, timeout=0.05)
            with nothing_left():
                connecting = asyncio.ensure_future(backend.connect_unix_socket(path, timeout=PATIENCE))
                await in_a_wait(connecting)
                connecting.cancel()
                assert isinstance(await end_of(connecting), asyncio.CancelledError)
            connecting = asyncio.ensure_future(backend.connect_unix_socket(path, timeout=PATIENCE))
            await in_a_wait(connecting)
            listener.accept()[0].close()
            await (await connecting).aclose()


def test_the_repr_names_the_resolver() -> None:
    assert repr(AsyncioBackend()) == "<AsyncioBackend [SystemResolver]>"
