"""`AutoBackend` finds out what runs, and hands everything on."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

from lamina_async_backends import AsyncioBackend, AsyncioStream, AutoBackend, TrioBackend, TrioStream
from lamina_interfaces import ArgumentTypeError, ConcurrencyError, load_backend
from readiness_peers import PATIENCE, Peer, Table, echo

pytestmark = pytest.mark.usefixtures("nothing_is_left")

Run = Callable[[Any], Any]

RUNS: dict[str, tuple[Run, type]] = {
    "asyncio": (lambda main: asyncio.run(main()), AsyncioStream),
    "anyio on asyncio": (anyio.run, AsyncioStream),
    "trio": (trio.run, TrioStream),
    "anyio on trio": (lambda main: anyio.run(main, backend="trio"), TrioStream),
}

runs = pytest.mark.parametrize(("run", "class_"), RUNS.values(), ids=RUNS)


@runs
def test_it_takes_the_backend_for_what_runs(run: Run, class_: type, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")

    async def main() -> None:
        backend = AutoBackend(resolver=Table(v4=[peer.address]), keep_alive=False)
        for host in ("127.0.0.1", "host.example"):
            async with await backend.connect_tcp(host, peer.port, timeout=PATIENCE) as stream:
                assert type(stream) is class_
                await stream.write(b"hello")
                assert await stream.read(timeout=PATIENCE) == b"hello"
                sock = stream.get_extra_info("socket")
                assert sock is not None
                assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        async with await backend.connect_unix_socket(path, timeout=PATIENCE) as stream:
            assert type(stream) is class_
        ours, theirs = socket.socketpair()
        with theirs:
            async with await backend.wrap_socket(ours) as stream:
                assert type(stream) is class_
        await backend.sleep(0)

    with Peer(echo) as peer, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        run(main)


def test_one_serves_every_runtime_and_makes_one_backend_for_each() -> None:
    backend = AutoBackend()

    async def look() -> Any:
        return backend._here()

    first = [run(look) for run, _ in RUNS.values()]
    assert [type(each) for each in first] == [AsyncioBackend, AsyncioBackend, TrioBackend, TrioBackend]
    assert first[0] is first[1]
    assert first[2] is first[3]


def test_where_nothing_runs_it_says_so() -> None:
    coroutine = AutoBackend().connect_tcp("127.0.0.1", 1)
    with pytest.raises(ConcurrencyError, match="works under asyncio or trio, and no event loop runs here"):
        coroutine.send(None)


def test_its_arguments_are_checked_at_once() -> None:
    with pytest.raises(ArgumentTypeError):
        AutoBackend(resolver=object())  # type: ignore[arg-type] # that is the point
    assert repr(AutoBackend()) == "<AutoBackend [SystemResolver]>"


@pytest.mark.parametrize(
    ("name", "class_"),
    [
        ("auto", "AutoBackend"),
        ("asyncio", "AsyncioBackend"),
        ("anyio", "AnyIOBackend"),
        ("trio", "TrioBackend"),
    ],
)
def test_each_is_found_by_its_name(name: str, class_: str) -> None:
    assert type(load_backend(name)).__name__ == class_


def test_under_asyncio_it_imports_neither_trio_nor_anyio() -> None:
    code = (
        "import asyncio, sys, lamina_async_backends as lab\n"
        "with __import__('socket').create_server(('127.0.0.1', 0)) as server:\n"
        "    async def main():\n"
        "        await (await lab.AutoBackend().connect_tcp(*server.getsockname())).aclose()\n"
        "    asyncio.run(main())\n"
        "print(*{'trio', 'anyio', 'ssl', 'lamina_async_backends._trio'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded - {"ssl"}  # which asyncio itself imports


@pytest.mark.parametrize("anyio_is_installed", [True, False])
def test_where_the_loop_cannot_watch_sockets_it_takes_anyios_way(anyio_is_installed: bool) -> None:
    """As under Windows' `ProactorEventLoop`. In a process of its own, since anyio's thread stays."""
    code = (
        "import asyncio, socket, sys, threading\n"
        f"if not {anyio_is_installed}:\n"
        "    sys.modules['anyio'] = None\n"
        "import lamina_async_backends as lab\n"
        "class Proactor(asyncio.SelectorEventLoop):\n"
        "    def refuse(self, *args):\n"
        "        raise NotImplementedError\n"
        "    add_reader = asyncio.AbstractEventLoop.add_reader\n"
        "    add_writer = remove_reader = remove_writer = refuse\n"
        "async def main():\n"
        "    backend = lab.AutoBackend()\n"
        "    try:\n"
        "        stream = await backend.connect_tcp(*server.getsockname(), timeout=10)\n"
        "    except Exception as exc:\n"
        "        print(type(exc).__name__)\n"
        "        return\n"
        "    await stream.write(b'hello', timeout=10)\n"
        "    with server.accept()[0] as connection:\n"
        "        connection.sendall(connection.recv(5))\n"
        "        print(type(stream).__name__, await stream.read(timeout=10))\n"
        "    await stream.aclose()\n"
        "with socket.create_server(('127.0.0.1', 0)) as server:\n"
        "    loop = Proactor()\n"
        "    loop.run_until_complete(main())\n"
        "    loop.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ("AnyIOStream b'hello'" if anyio_is_installed else "UnsupportedProtocol")
