"""Connecting under trio and anyio: names, several addresses, limits, cancellation, unix sockets."""

import asyncio
import errno
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    ResolvedAddress,
    close_deadline,
    current_runtime,
    open_deadline,
)
from readiness_peers import (
    PATIENCE,
    AsyncTable,
    Hanging,
    Peer,
    Table,
    black_hole,
    echo,
    rounds,
    until,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("nothing_is_left", "no_task_is_left")]

tables = pytest.mark.parametrize("table", [Table, AsyncTable])


@pytest.fixture
def make(world: Any) -> Any:
    """Makes a backend."""
    return world[0]


# --- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_a_host_of_this_machine_needs_no_resolver(make: Any, host: str) -> None:
    backend = make(resolver=None)
    with Peer(echo) as peer:
        async with await backend.connect_tcp(host, peer.port, timeout=PATIENCE) as stream:
            await stream.write(b"hello")
            assert await stream.read(timeout=PATIENCE) == b"hello"
            assert stream.get_extra_info("server_addr") == ("127.0.0.1", peer.port)
            assert stream.get_extra_info("client_addr")[0] == "127.0.0.1"
            assert stream.get_extra_info("timings")[-1].name == "tcp"
            sock = stream.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


async def test_options_and_the_local_address_are_set_before_connecting(make: Any) -> None:
    with Peer(echo) as peer:
        async with await make(keep_alive=False).connect_tcp(
            "127.0.0.1",
            peer.port,
            timeout=PATIENCE,
            local_address="127.0.0.2",
            socket_options=[(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)],
        ) as stream:
            assert stream.get_extra_info("client_addr")[0] == "127.0.0.2"
            sock = stream.get_extra_info("socket")
            assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)


@tables
async def test_a_name_goes_through_the_resolver(make: Any, table: Any) -> None:
    with Peer(echo) as peer:
        backend = make(resolver=table(v6=socket.gaierror("none"), v4=[peer.address]))
        async with await backend.connect_tcp("host.example", 1, timeout=PATIENCE) as stream:
            assert [span.name for span in stream.get_extra_info("timings")] == ["dns", "tcp"]


@tables
async def test_the_next_address_is_tried_when_one_hangs_and_when_one_refuses(
    make: Any, table: Any, refusing_address: Callable[[], ResolvedAddress]
) -> None:
    with Peer(echo) as peer, black_hole() as hole:
        backend = make(resolver=table(v4=[refusing_address(), hole, peer.address]))
        async with await backend.connect_tcp("host.example", 1, timeout=PATIENCE) as stream:
            assert stream.get_extra_info("server_addr") == peer.address.sockaddr


async def test_a_family_that_is_not_answered_holds_up_nobody(make: Any) -> None:
    with Peer(echo) as peer:
        resolver = AsyncTable(v6=anyio.sleep_forever, v4=[peer.address])
        async with await make(resolver=resolver).connect_tcp("host.example", 1, timeout=PATIENCE) as stream:
            assert stream.get_extra_info("server_addr") == peer.address.sockaddr
        assert resolver.asked == resolver.left == 2


@tables
async def test_all_that_failed_is_told(
    make: Any, table: Any, refusing_address: Callable[[], ResolvedAddress]
) -> None:
    addresses = [refusing_address(), refusing_address()]
    backend = make(resolver=table(v4=addresses))
    with pytest.raises(ConnectError) as caught:
        await backend.connect_tcp("host.example", 1, timeout=PATIENCE)
    assert caught.value.errno == errno.ECONNREFUSED
    assert [attempt.errno for attempt in caught.value.attempts] == [errno.ECONNREFUSED] * 2


@tables
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((), "it has no address"),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "unknown"),
        (RuntimeError("out of order"), "out of order"),
        ([ResolvedAddress(socket.AF_INET, ("name.example", 1))], "illegal IP address|not an IP|no address"),
        (5, "int"),
    ],
)
async def test_a_name_without_addresses_is_an_error_with_the_cause(
    make: Any, table: Any, answer: Any, said: str
) -> None:
    backend = make(resolver=table(v4=answer))
    with pytest.raises(ConnectError, match=f"could not be resolved: .*({said})") as caught:
        await backend.connect_tcp("host.example", 1, timeout=PATIENCE)
    assert caught.value.phase == "dns"
    assert (caught.value.__cause__ is None) == (answer == ())


async def test_an_async_resolver_that_gives_up_like_a_cancelled_task_hangs_nobody(
    make: Any, runtime_name: str
) -> None:
    if runtime_name != "asyncio":
        return  # trio has no such thing
    backend = make(resolver=AsyncTable(v6=asyncio.CancelledError(), v4=asyncio.CancelledError()))
    with pytest.raises((ConnectError, asyncio.CancelledError)):
        await backend.connect_tcp("host.example", 1, timeout=PATIENCE)


async def test_arguments_are_checked_first(make: Any) -> None:
    for host, port, error in (
        ("", 1, ArgumentValueError),
        ("host.example", 0, ArgumentValueError),
        (None, 1, ArgumentTypeError),
    ):
        with pytest.raises(error):
            await make().connect_tcp(host, port)
    with pytest.raises(ArgumentTypeError):
        make(resolver=object())


# --- limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ambient", [False, True])
async def test_a_limit_ends_a_connection_attempt_and_tells_the_attempts(make: Any, ambient: bool) -> None:
    with black_hole() as hole:
        deadline = open_deadline(0.05 if ambient else None, current_runtime().now)
        try:
            with pytest.raises(DeadlineExceeded if ambient else ConnectTimeout) as caught:
                await make().connect_tcp(*hole.sockaddr, timeout=None if ambient else 0.05)
        finally:
            close_deadline(deadline)
    assert caught.value.phase == "connect"
    assert [attempt.errno for attempt in caught.value.attempts] == [None]


async def test_a_limit_ends_a_look_up_in_a_thread(make: Any) -> None:
    hanging = Hanging()
    try:
        with pytest.raises(ConnectTimeout) as caught:
            await make(resolver=Table(v6=hanging, v4=hanging)).connect_tcp("host.example", 1, timeout=0.05)
    finally:
        hanging.release()
    assert caught.value.phase == "dns"


async def test_a_limit_ends_an_async_look_up(make: Any) -> None:
    resolver = AsyncTable(v6=anyio.sleep_forever, v4=anyio.sleep_forever)
    with pytest.raises(ConnectTimeout) as caught:
        await make(resolver=resolver).connect_tcp("host.example", 1, timeout=0.05)
    assert caught.value.phase == "dns"
    assert resolver.asked == resolver.left == 2


async def test_a_limit_that_has_passed_asks_nobody(make: Any) -> None:
    resolver = AsyncTable()
    with pytest.raises(ConnectTimeout):
        await make(resolver=resolver).connect_tcp("host.example", 1, timeout=0)
    assert resolver.asked == 0


async def test_the_loop_runs_on_while_a_thread_looks_up(make: Any) -> None:
    hanging = Hanging()
    with Peer(echo) as peer:
        hanging._answer = [peer.address]
        async with anyio.create_task_group() as tasks:

            async def connect() -> None:
                backend = make(resolver=Table(v4=hanging))
                async with await backend.connect_tcp("host.example", 1, timeout=PATIENCE):
                    pass

            tasks.start_soon(connect)
            await until(lambda: hanging.waiting)
            await rounds(5)
            hanging.release()


# --- cancellation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["connect", "two attempts", "thread", "async"])
async def test_a_cancelled_dial_leaves_nothing_and_its_circumstances(make: Any, where: str) -> None:
    hanging = Hanging()
    asynchronous = AsyncTable(v6=anyio.sleep_forever, v4=anyio.sleep_forever)
    now = current_runtime().now
    with black_hole() as hole, black_hole() as other:
        resolver = {
            "connect": None,
            "two attempts": Table(v4=[hole, other]),
            "thread": Table(v6=hanging, v4=hanging),
            "async": asynchronous,
        }[where]
        host, port = hole.sockaddr if resolver is None else ("host.example", 1)
        # The deadline passes at the same time as the scope, which stands for that of its block.
        deadline = open_deadline(None, now)
        try:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:

                    async def expire() -> None:
                        await anyio.sleep(0.4 if where == "two attempts" else 0.05)
                        deadline.reschedule(0)
                        scope.cancel()

                    tasks.start_soon(expire)
                    await make(resolver=resolver).connect_tcp(host, port, timeout=PATIENCE)
        finally:
            hanging.release()
            interruption = deadline.interruption
            close_deadline(deadline)
    assert scope.cancelled_caught
    assert interruption is not None
    if where in {"thread", "async"}:
        assert interruption.phase == "dns"
    else:
        assert interruption.phase == "connect"
        assert len(interruption.attempts) == (2 if where == "two attempts" else 1)
    assert asynchronous.asked == asynchronous.left


@pytest.mark.parametrize("where", ["connect", "two attempts", "async"])
async def test_asyncios_own_timeout_ends_a_dial(make: Any, runtime_name: str, where: str) -> None:
    if runtime_name != "asyncio":
        return  # it works in its own loop only
    asynchronous = AsyncTable(v6=anyio.sleep_forever, v4=anyio.sleep_forever)
    with black_hole() as hole, black_hole() as other:
        resolver = {"connect": None, "two attempts": Table(v4=[hole, other]), "async": asynchronous}[where]
        host, port = hole.sockaddr if resolver is None else ("host.example", 1)
        with pytest.raises(TimeoutError) as caught:
            async with asyncio.timeout(0.4 if where == "two attempts" else 0.05):
                await make(resolver=resolver).connect_tcp(host, port, timeout=PATIENCE)
        assert not isinstance(caught.value, ConnectTimeout)
    assert asynchronous.asked == asynchronous.left


# --- unix sockets ------------------------------------------------------------------------------------------


async def test_a_unix_socket_is_connected_to(make: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        async with await make().connect_unix_socket(path, timeout=PATIENCE) as stream:
            theirs, _ = listener.accept()
            with theirs:
                await stream.write(b"hello")
                assert theirs.recv(10) == b"hello"
            assert [span.name for span in stream.get_extra_info("timings")] == ["unix"]


async def test_a_dial_in_a_cancelled_scope_connects_to_nothing(make: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await make().connect_unix_socket(path)
        assert scope.cancelled_caught
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_a_unix_socket_that_is_not_there_is_an_error(make: Any, tmp_path: Path) -> None:
    with pytest.raises(ConnectError) as caught:
        await make().connect_unix_socket(str(tmp_path / "none"), timeout=PATIENCE)
    assert caught.value.errno == errno.ENOENT


async def test_a_full_queue_of_a_unix_socket_is_waited_for(make: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
        listener.bind(path)
        listener.listen(0)
        filler.connect(path)
        with pytest.raises(ConnectTimeout):
            await make().connect_unix_socket(path, timeout=0.05)
        with anyio.move_on_after(0.05) as scope:
            await make().connect_unix_socket(path, timeout=PATIENCE)
        assert scope.cancelled_caught

        def make_room() -> None:
            listener.accept()[0].close()

        threading.Timer(0.05, make_room).start()
        async with await make().connect_unix_socket(path, timeout=PATIENCE):
            pass
