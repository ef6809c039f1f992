"""Every backend there is, with what the conformance kit needs to check it.

Read by `test_stack_conformance.py`, and by `tools/conformance_report.py`, which prints the reports.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from typing import Any

import anyio

import lamina
import lamina.aio
import lamina.sync
from lamina_async_backends import AnyIOBackend, AsyncioBackend, AutoBackend, TrioBackend
from lamina_interfaces import async_interface_from_backend, interface_from_backend
from lamina_mock import (
    AsyncDenyNetworkBackend,
    AsyncMockBackend,
    AsyncPeerBackend,
    AsyncScriptedBackend,
    DenyNetworkBackend,
    MockBackend,
    MockServer,
    PeerBackend,
    RuntimeClock,
    ScriptedBackend,
)
from lamina_mock.conformance import (
    RULES,
    ListPeer,
    MemoryPeer,
    Peer,
    Report,
    ScriptPeer,
    ServerPeer,
    check_async_backend,
    check_backend,
)
from lamina_sync_backend import SyncBackend

LOOPS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}
"""The name of a loop, and anyio's name and options for it."""

HERE = ("127.0.0.1", "localhost")
"""The hosts that the kit connects to."""

TCP_ONLY = [name for name in RULES if "unix" not in name]
"""For a backend that lets out to certain addresses only: nobody knows the kit's paths beforehand."""


# --- the custom backends of the documents ------------------------------------------------------------------


class RecordingNetworkStream(lamina.NetworkStream):
    """The first document's, word for word."""

    def __init__(self, record_file: Any, stream: Any) -> None:
        self.record_file = record_file
        self.stream = stream

    def read(self, max_bytes: Any, timeout: Any = None) -> Any:  # type: ignore[override] # the document's own signature
        data = self.stream.read(max_bytes, timeout=timeout)
        self.record_file.write(data)
        return data

    def write(self, buffer: Any, timeout: Any = None) -> None:
        self.stream.write(buffer, timeout=timeout)

    def close(self) -> None:
        self.stream.close()

    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: Any = None) -> Any:
        self.stream = self.stream.start_tls(ssl_context, server_hostname=server_hostname, timeout=timeout)
        return self

    def get_extra_info(self, info: Any) -> Any:
        return self.stream.get_extra_info(info)


class RecordingNetworkBackend(lamina.NetworkBackend):
    """The first document's, word for word."""

    def __init__(self, record_file: Any) -> None:
        self.record_file = record_file
        self.backend = lamina.SyncBackend()

    def connect_tcp(
        self, host: Any, port: Any, timeout: Any = None, local_address: Any = None, socket_options: Any = None
    ) -> Any:
        stream = self.backend.connect_tcp(
            host, port, timeout=timeout, local_address=local_address, socket_options=socket_options
        )
        return RecordingNetworkStream(self.record_file, stream)


class RecordingBackend(lamina.sync.NetworkBackendInterface):
    """The second document's, which prints; with the `self` that three of its methods lack there."""

    def __init__(self, output: Any) -> None:
        self._backend = lamina.sync.NetworkBackend()
        self._output = output

    def connect(self, host: Any, port: Any) -> Any:
        return RecordingStream(self._backend.connect(host, port), self._output)


class RecordingStream(lamina.sync.NetworkStreamInterface):
    """The second document's."""

    def __init__(self, stream: Any, output: Any) -> None:
        self._stream = stream
        self._output = output

    def read(self, max_bytes: Any = None) -> Any:
        data = self._stream.read(max_bytes)
        for line in data.decode("ascii", errors="replace").splitlines():
            print("<<< ", line, file=self._output)
        return data

    def write(self, data: Any) -> None:
        for line in data.decode("ascii", errors="replace").splitlines():
            print(">>> ", line, file=self._output)
        self._stream.write(data)

    def start_tls(self, ctx: Any, hostname: Any = None) -> Any:
        self._stream.start_tls(ctx, hostname)

    def get_extra_info(self, key: Any) -> Any:
        return self._stream.get_extra_info(key)

    def close(self) -> None:
        self._stream.close()


class AsyncRecordingBackend(lamina.aio.NetworkBackendInterface):
    """The second document's, async."""

    def __init__(self, output: Any) -> None:
        self._backend = lamina.aio.NetworkBackend()
        self._output = output

    async def connect(self, host: Any, port: Any) -> Any:
        return AsyncRecordingStream(await self._backend.connect(host, port), self._output)


class AsyncRecordingStream(lamina.aio.NetworkStreamInterface):
    """The second document's, async."""

    def __init__(self, stream: Any, output: Any) -> None:
        self._stream = stream
        self._output = output

    async def read(self, max_bytes: Any = None) -> Any:
        data = await self._stream.read(max_bytes)
        for line in data.decode("ascii", errors="replace").splitlines():
            print("<<< ", line, file=self._output)
        return data

    async def write(self, data: Any) -> None:
        for line in data.decode("ascii", errors="replace").splitlines():
            print(">>> ", line, file=self._output)
        await self._stream.write(data)

    async def start_tls(self, ctx: Any, hostname: Any = None) -> Any:
        await self._stream.start_tls(ctx, hostname)

    def get_extra_info(self, key: Any) -> Any:
        return self._stream.get_extra_info(key)

    async def close(self) -> None:
        await self._stream.close()


class Forgetful(io.RawIOBase):
    """Takes what is recorded."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def _text() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BufferedWriter(Forgetful()), "utf-8")


# --- all of them -------------------------------------------------------------------------------------------


Rules = Iterable[str] | None


def _blocking(make: Callable[[], Any], peer: Peer | None = None, rules: Rules = None) -> Callable[[], Report]:
    return lambda: check_backend(make(), peer=peer, rules=rules)


def _async(
    make: Callable[[], Any], loop: str, peer: Peer | None = None, rules: Rules = None
) -> Callable[[], Report]:
    async def check() -> Report:
        return await check_async_backend(make(), peer=peer, rules=rules)

    name, options = LOOPS[loop]
    return lambda: anyio.run(check, backend=name, backend_options=options)


def _all() -> Iterable[tuple[str, Callable[[], Report]]]:
    yield "SyncBackend", _blocking(SyncBackend)
    for name, make, loops in (
        ("AsyncioBackend", AsyncioBackend, ("asyncio", "uvloop")),
        ("AnyIOBackend", AnyIOBackend, ("asyncio", "trio")),
        ("TrioBackend", TrioBackend, ("trio",)),
        ("AutoBackend", AutoBackend, ("asyncio", "trio")),
        (
            "AutoBackend, second dialect",
            lambda: async_interface_from_backend(AutoBackend()),
            ("asyncio", "trio"),
        ),
        ("the second document's async backend", lambda: AsyncRecordingBackend(_text()), ("asyncio", "trio")),
    ):
        for loop in loops:
            yield f"{name} on {loop}", _async(make, loop)
    guarded = _async(lambda: AsyncDenyNetworkBackend(HERE, backend=AutoBackend()), "trio", rules=TCP_ONLY)
    yield "AsyncDenyNetworkBackend on trio", guarded
    yield "SyncBackend, second dialect", _blocking(lambda: interface_from_backend(SyncBackend()))
    yield "the first document's backend", _blocking(lambda: RecordingNetworkBackend(Forgetful()))
    yield "the second document's backend", _blocking(lambda: RecordingBackend(_text()))
    yield (
        "DenyNetworkBackend",
        _blocking(lambda: DenyNetworkBackend(HERE, backend=SyncBackend()), rules=TCP_ONLY),
    )
    yield from _mocks()


def _mocks() -> Iterable[tuple[str, Callable[[], Report]]]:
    """Those without sockets; their waits take real time here, since the rules wait for each other."""
    chunks: list[bytes] = []
    memory, served = MemoryPeer(), ServerPeer()
    server = MockServer(served.handler, clock=RuntimeClock())
    scripts = ScriptPeer(lambda script: ScriptedBackend(script, clock=RuntimeClock()))
    async_scripts = ScriptPeer(lambda script: AsyncScriptedBackend(script, clock=RuntimeClock()))
    yield "MockBackend", _blocking(lambda: MockBackend(chunks), ListPeer(chunks))
    yield "PeerBackend", _blocking(lambda: PeerBackend(memory.make_peer, clock=RuntimeClock()), memory)
    yield "ScriptedBackend", _blocking(lambda: ScriptedBackend([], clock=RuntimeClock()), scripts)
    yield "MockServer.backend", _blocking(lambda: server.backend, served)
    for loop in LOOPS:
        yield f"AsyncMockBackend on {loop}", _async(lambda: AsyncMockBackend(chunks), loop, ListPeer(chunks))
        yield (
            f"AsyncPeerBackend on {loop}",
            _async(lambda: AsyncPeerBackend(memory.make_peer, clock=RuntimeClock()), loop, memory),
        )
        yield (
            f"AsyncScriptedBackend on {loop}",
            _async(lambda: AsyncScriptedBackend([], clock=RuntimeClock()), loop, async_scripts),
        )
        yield f"MockServer.async_backend on {loop}", _async(lambda: server.async_backend, loop, served)


CHECKS: dict[str, Callable[[], Report]] = dict(_all())
"""What checks each backend, by what a report calls it."""
