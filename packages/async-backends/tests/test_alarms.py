"""The one timer that all waits of a connection share: what it costs, that limits hold, that nothing is left of it."""

from __future__ import annotations

import gc
import select
import socket
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from lamina_async_backends import AsyncioBackend, TrioBackend
from lamina_interfaces import ReadTimeout, WriteTimeout, current_runtime
from readiness_peers import PATIENCE, answered, until

if TYPE_CHECKING:
    from collections.abc import Callable

Pair = tuple[Any, socket.socket]

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("no_task_is_left")]

WORLDS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "asyncio": (AsyncioBackend, "asyncio", {}),
    "uvloop": (AsyncioBackend, "asyncio", {"use_uvloop": True}),
    "trio": (TrioBackend, "trio", {}),
}

MUCH = bytes(8 * 1024 * 1024)
"""More than the system takes."""


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> tuple[Any, str, dict[str, Any]]:
    """Those that have such a timer."""
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
    return WORLDS[request.param]


class Timers:
    """Counts the timers that a stream has made, and those that are still to go off."""

    def __init__(self, stream: Any) -> None:
        alarm = stream._transport._alarm
        self._call_at = alarm._call_at
        alarm._call_at = self
        self.made = 0
        self.gone_off = 0
        self.times: list[float] = []

    def __call__(self, at: float, function: Callable[[], None]) -> Any:
        self.made += 1
        self.times.append(at)

        def go_off() -> None:
            self.gone_off += 1
            function()

        return self._call_at(at, go_off)


async def test_waits_that_end_in_time_share_one_timer(pair: Pair) -> None:
    stream, theirs = pair
    timers = Timers(stream)
    for _ in range(20):
        await answered(stream, theirs, PATIENCE)
    assert timers.made == 1


async def test_no_timer_without_a_limit(pair: Pair) -> None:
    stream, theirs = pair
    timers = Timers(stream)
    theirs.sendall(b"x")
    assert await stream.read() == b"x"
    await stream.write(b"x", timeout=PATIENCE)  # which need not wait
    assert timers.made == 0


async def test_a_sooner_limit_after_a_later_one_holds(pair: Pair) -> None:
    stream, theirs = pair
    await answered(stream, theirs, 4 * PATIENCE)
    began = monotonic()
    with pytest.raises(ReadTimeout) as caught:
        await stream.read(timeout=0.02)
    assert monotonic() - began < 2 * PATIENCE
    assert caught.value.limit == 0.02
    theirs.sendall(b"late")
    assert await stream.read() == b"late"


async def test_a_later_limit_after_a_sooner_one_is_not_cut_short(pair: Pair) -> None:
    stream, theirs = pair
    timers = Timers(stream)
    runtime = current_runtime()
    while not timers.made:  # on a machine that is very busy its own limit might pass
        try:
            await answered(stream, theirs, 0.05)
        except* ReadTimeout:
            assert await stream.read() == b"x"
    began = runtime.now()
    with pytest.raises(ReadTimeout):
        await stream.read(timeout=0.25)
    assert runtime.now() - began >= 0.249
    assert timers.gone_off >= 2  # the first of which nobody was meant by


async def test_two_waits_with_limits_of_their_own(pair: Pair) -> None:
    stream, theirs = pair
    outcomes: list[object] = []

    async def read() -> None:
        outcomes.append(await stream.read(timeout=PATIENCE))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(read)
        await until(lambda: stream._transport.users)
        with pytest.raises(WriteTimeout):
            await stream.write(MUCH, timeout=0.05)
        assert outcomes == []  # the reader was perhaps woken, and waits on
        theirs.sendall(b"to the reader")
    assert outcomes == [b"to the reader"]


async def test_a_reader_s_limit_leaves_the_writer_alone(pair: Pair) -> None:
    stream, theirs = pair
    received = bytearray()

    async def write() -> None:
        await stream.write(MUCH, timeout=6 * PATIENCE)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        await until(lambda: stream._transport.users)
        for _ in range(2):
            with pytest.raises(ReadTimeout):
                await stream.read(timeout=0.02)
        while len(received) < len(MUCH):
            received += await anyio.to_thread.run_sync(theirs.recv, 1 << 20)
    assert received == MUCH


async def test_a_closed_stream_leaves_no_timer(pair: Pair) -> None:
    stream, theirs = pair
    await answered(stream, theirs, PATIENCE)
    alarm = stream._transport._alarm
    assert alarm._handle is not None
    await stream.aclose()
    assert alarm._handle is None


async def test_a_stream_that_nobody_holds_is_freed_though_its_timer_is_set(backend: Any) -> None:
    ours, theirs = socket.socketpair()
    theirs.settimeout(PATIENCE)
    with theirs:
        stream = await backend.wrap_socket(ours)
        await answered(stream, theirs, PATIENCE)
        transport = ref(stream._transport)
        gc.disable()
        try:
            with pytest.warns(ResourceWarning, match="unclosed"):
                del stream
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            assert transport() is None
        finally:
            gc.enable()
        assert theirs.recv(1) == b""


async def test_looking_whether_it_is_readable_makes_no_poll_object_each_time(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, theirs = pair
    made = []
    original = select.poll

    def counting() -> Any:
        made.append(original())
        return made[-1]

    monkeypatch.setattr("lamina_async_backends._transport.select.poll", counting)
    for _ in range(5):
        assert stream.get_extra_info("is_readable") is False
    theirs.sendall(b"x")
    assert stream.get_extra_info("is_readable") is True
    assert len(made) == 1


async def test_an_interrupted_look_leaves_no_poll_object_that_sees_nothing(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, theirs = pair

    class Interrupted:
        def register(self, *_: object) -> None:
            raise KeyboardInterrupt

        def poll(self, _: int) -> list[object]:
            return []

    with monkeypatch.context() as patch:
        patch.setattr("lamina_async_backends._transport.select.poll", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.get_extra_info("is_readable")
    theirs.sendall(b"x")
    assert stream.get_extra_info("is_readable") is True
