"""The virtual clock: when it moves, to where, and what it costs."""

import asyncio
import contextvars
import importlib
import math
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    DeadlineBlock,
    DeadlineExceeded,
    LaminaError,
    ReadTimeout,
    close_deadline,
    current_deadline,
    open_deadline,
)
from lamina_mock import (
    ClockError,
    DeadlockError,
    Line,
    Peer,
    PeerBackend,
    RuntimeClock,
    VirtualClock,
)
from mock_faces import FACES, Face, async_face, face

__all__ = ["async_face", "face"]  # fixtures


class Echo(Peer):
    """Says what it hears, later."""

    name = "echo"

    def __init__(self, delay: float = 0.5) -> None:
        self.delay = delay

    def connected(self, line: Line, now: float) -> None:
        self.line = line

    def received(self, data: bytes, now: float) -> None:
        self.line.say(data, now + self.delay)


def echo(host: str, port: int) -> Peer:
    return Echo()


def silence(host: str, port: int) -> Peer:
    return Peer()


# --- the clock by itself -----------------------------------------------------------------------------------


def test_it_begins_where_it_is_told_and_stands_still() -> None:
    clock = VirtualClock(100.0)
    assert [clock(), clock()] == [100.0, 100.0]
    assert repr(clock) == "<VirtualClock [100 s]>"
    assert repr(RuntimeClock()) == "<RuntimeClock>"


@pytest.mark.parametrize("start", ["1", None, True])
def test_a_start_that_is_no_number_is_refused(start: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="start must be a number of seconds"):
        VirtualClock(start)


@pytest.mark.parametrize("start", [math.inf, math.nan])
def test_a_start_beyond_all_times_is_refused(start: float) -> None:
    with pytest.raises(ArgumentValueError, match="start must be finite"):
        VirtualClock(start)


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_it_goes_neither_back_nor_for_ever(seconds: float) -> None:
    clock = VirtualClock()
    with pytest.raises(ArgumentValueError):
        clock.advance(seconds)
    assert clock() == 0.0


@given(times=st.lists(st.floats(0, 10), max_size=20), steps=st.lists(st.floats(0, 4), max_size=10))
def test_a_timer_is_called_once_in_order_and_at_its_time(times: list[float], steps: list[float]) -> None:
    clock = VirtualClock()
    called: list[tuple[float, float]] = []

    def call(at: float) -> None:
        called.append((at, clock()))

    for at in times:
        clock.call_at(at, partial(call, at))
    for step in [*steps, 0.0]:
        clock.advance(step)
    assert [now for _, now in called] == [at for at, _ in called]
    assert [at for at, _ in called] == sorted(at for at in times if at <= clock())


def test_a_timer_that_was_cancelled_is_not_called() -> None:
    clock = VirtualClock()
    called: list[int] = []
    timers = [clock.call_at(number, partial(called.append, number)) for number in range(4)]
    timers[1].cancel()
    clock.call_at(2, timers[3].cancel)
    clock.advance(10)
    timers[0].cancel()
    assert called == [0, 2]


def test_a_timer_may_set_another_one() -> None:
    clock = VirtualClock()
    called: list[float] = []
    clock.call_at(1, lambda: clock.call_at(clock() + 1, lambda: called.append(clock())))
    clock.advance(3)
    assert called == [2.0]


# --- the clock of a block ----------------------------------------------------------------------------------


def test_it_is_the_clock_of_the_deadlines_inside(face: Face) -> None:
    async def body() -> None:
        with VirtualClock() as clock:
            deadline = open_deadline(5.0, time.monotonic)
            try:
                clock.advance(4.0)
                assert deadline.remaining() == 1.0
                clock.advance(1.0)
                assert deadline.expired()
            finally:
                close_deadline(deadline)
        assert current_deadline() is None

    face.run(body)


def test_its_block_may_end_before_a_deadline_inside() -> None:
    clock = VirtualClock()
    clock.__enter__()
    deadline = open_deadline(5.0, time.monotonic)
    clock.__exit__(None, None, None)  # as when a generator that has entered it is closed
    assert current_deadline() is deadline
    clock.advance(5.0)
    assert deadline.expired()
    close_deadline(deadline)
    assert current_deadline() is None


def test_its_blocks_nest() -> None:
    clock = VirtualClock()
    with clock:
        with clock:
            clock.advance(1.0)
        deadline = current_deadline()
        assert deadline is not None
        assert deadline.clock is clock
        assert not deadline.ended
    assert current_deadline() is None


def test_it_may_be_the_clock_of_several_threads() -> None:
    clock = VirtualClock()
    ready, done = threading.Barrier(3), threading.Barrier(3)
    seen: list[bool] = []

    def work() -> None:
        with clock:
            ready.wait(30)
            done.wait(30)
            deadline = current_deadline()
            seen.append(deadline is not None and deadline.clock is clock and not deadline.ended)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    with clock:
        ready.wait(30)
    done.wait(30)
    for thread in threads:
        thread.join(30)
    assert seen == [True, True]


def test_leaving_it_where_it_was_not_entered_changes_nothing() -> None:
    clock = VirtualClock()
    with clock:
        contextvars.Context().run(clock.__exit__, None, None, None)
        deadline = current_deadline()
        assert deadline is not None
        assert not deadline.ended


def test_inside_a_deadline_on_another_clock_it_is_refused(face: Face) -> None:
    async def body() -> None:
        deadline = open_deadline(5.0, time.monotonic)
        try:
            with pytest.raises(ClockError, match="enter the VirtualClock outside of it"), VirtualClock():
                pass
        finally:
            close_deadline(deadline)

    face.run(body)
    assert issubclass(ClockError, LaminaError)


# --- waiting -----------------------------------------------------------------------------------------------


def test_a_wait_moves_it_to_its_end_at_once(face: Face) -> None:
    async def body() -> None:
        with VirtualClock() as clock:
            stream = await face.peers(echo).connect_tcp("a.example", 80)
            await stream.write(b"hello")
            assert await stream.read() == b"hello"
            assert clock() == 0.5

    face.run(body)


@pytest.mark.parametrize("seconds", [0.1, 0.3, 3600.0, 1e9])
def test_a_time_limit_ends_a_wait_exactly(face: Face, seconds: float) -> None:
    async def body() -> None:
        with VirtualClock(0.7) as clock:
            stream = await face.peers(silence).connect_tcp("a.example", 80)
            with pytest.raises(ReadTimeout) as caught:
                await stream.read(timeout=seconds)
            assert caught.value.elapsed == pytest.approx(seconds)
            assert clock() == 0.7 + seconds

    face.run(body)


def test_a_deadline_ends_a_wait_exactly_and_as_the_deadline(face: Face) -> None:
    async def body() -> None:
        with VirtualClock() as clock:
            stream = await face.peers(silence).connect_tcp("a.example", 80)
            block = DeadlineBlock(60.0)
            block.open()
            try:
                with pytest.raises(DeadlineExceeded) as caught:
                    await stream.read(timeout=100.0)
            finally:
                block.close(None, None, None)
            assert caught.value.deadline is block.deadline
            assert caught.value.phase == "read"
            assert clock() == 60.0

    face.run(body)


def test_without_a_block_a_mock_has_a_clock_of_its_own(face: Face) -> None:
    async def body() -> None:
        stream = await face.peers(echo).connect_tcp("a.example", 80)
        with pytest.raises(ReadTimeout):
            await stream.read(timeout=3600.0)
        await stream.write(b"hello")
        assert await stream.read(timeout=0.6) == b"hello"

    started = time.monotonic()
    face.run(body)
    assert time.monotonic() - started < 30  # and not an hour


def test_a_deadline_on_real_time_ends_a_wait_in_real_time(face: Face) -> None:
    async def body() -> float:
        stream = await face.peers(silence).connect_tcp("a.example", 80)
        block = DeadlineBlock(0.05)
        started = time.monotonic()
        block.open()
        error: BaseException | None = None
        try:
            await stream.read()
        except BaseException as raised:  # noqa: BLE001 - a cancellation too, which the block explains
            error = raised
        found = block.close(None if error is None else type(error), error, None) or error
        assert isinstance(found, DeadlineExceeded)
        assert found.phase == "read"
        return time.monotonic() - started

    assert face.run(body) >= 0.04


def test_what_would_come_after_a_deadline_on_real_time_does_not_come_before_it(face: Face) -> None:
    async def body() -> None:
        stream = await face.peers(lambda *_: Echo(3600.0)).connect_tcp("a.example", 80)
        await stream.write(b"hello")
        block = DeadlineBlock(0.05)
        block.open()
        found: BaseException | None = None
        try:
            await stream.read()
        except BaseException as raised:  # noqa: BLE001 - a cancellation too, which the block explains
            found = raised
        found = block.close(None if found is None else type(found), found, None) or found
        assert isinstance(found, DeadlineExceeded)

    face.run(body)


def test_what_comes_within_a_deadline_on_real_time_is_not_waited_for(face: Face) -> None:
    async def body() -> None:
        stream = await face.peers(lambda *_: Echo(3000.0)).connect_tcp("a.example", 80)
        await stream.write(b"hello")
        block = DeadlineBlock(3600.0)
        block.open()
        try:
            assert await stream.read() == b"hello"
        finally:
            block.close(None, None, None)

    face.run(body)


def test_sleep_is_a_jump(face: Face) -> None:
    async def body() -> None:
        with VirtualClock() as clock:
            backend = face.peers(silence)
            await backend.sleep(1e6)
            assert clock() == 1e6
            await backend.sleep(0)
            with pytest.raises(ArgumentValueError):
                await backend.sleep(-1)
            deadline = open_deadline(2.5, time.monotonic)
            try:
                with pytest.raises(DeadlineExceeded):
                    await backend.sleep(math.inf)
            finally:
                close_deadline(deadline)
            assert clock() == 1e6 + 2.5

    face.run(body)


def test_waits_overlap(face: Face) -> None:
    clock = VirtualClock(grace=30.0)
    backend = face.peers(echo, clock=clock)
    together = threading.Barrier(20)

    async def one() -> Any:
        stream = await backend.connect_tcp("a.example", 80)
        if face.is_blocking:
            together.wait(30)  # a thread that has not begun yet cannot be waited for
        await stream.write(b"hello")
        return await stream.read()

    async def body() -> Any:
        return await face.together(*[one] * 20)

    assert face.run(body) == [b"hello"] * 20
    assert clock() == 0.5


def test_who_waits_for_less_goes_first(face: Face) -> None:
    clock = VirtualClock(grace=30.0)
    together = threading.Barrier(4)
    order: list[tuple[float, float]] = []

    def waiting(delay: float) -> Any:
        backend = face.peers(lambda *_: Echo(delay), clock=clock)

        async def one() -> None:
            stream = await backend.connect_tcp("a.example", 80)
            if face.is_blocking:
                together.wait(30)
            for _ in range(3):
                await stream.write(b"hello")
                await stream.read()
                order.append((clock(), delay))

        return one

    async def body() -> Any:
        return await face.together(*map(waiting, [3.0, 1.25, 7.5, 0.5]))

    assert face.run(body) == [None] * 4
    assert order == sorted(order)
    assert order[-1] == (22.5, 7.5)


def test_time_passes_only_when_nobody_has_anything_to_do(async_face: Face) -> None:
    anyio = importlib.import_module("anyio")
    clock = VirtualClock()
    backend = async_face.peers(echo, clock=clock)
    seen: list[float] = []

    async def wait() -> None:
        stream = await backend.connect_tcp("a.example", 80)
        await stream.write(b"hello")
        await stream.read()
        seen.append(clock())

    async def work() -> None:
        for _ in range(50):
            await anyio.lowlevel.checkpoint()
        assert clock() == 0.0
        event = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(pass_on, 10, event)
            await event.wait()
        assert clock() == 0.0
        seen.append(clock())

    async def pass_on(depth: int, event: Any) -> None:
        if depth:
            inner = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(pass_on, depth - 1, inner)
                await inner.wait()
        event.set()

    async def body() -> Any:
        return await async_face.together(wait, work)

    assert async_face.run(body) == [None, None]
    assert seen == [0.0, 0.5]


@pytest.mark.parametrize(
    "face_of_asyncio", [face for face in FACES if face.runtime == "asyncio"], ids=lambda f: f.name
)
def test_callbacks_that_belong_to_no_task_are_let_on_too(face_of_asyncio: Face) -> None:
    clock = VirtualClock()

    async def wait() -> None:
        stream = await face_of_asyncio.peers(echo, clock=clock).connect_tcp("a.example", 80)
        await stream.write(b"hello")
        await stream.read()

    async def be_woken() -> float:
        loop = asyncio.get_running_loop()
        woken = loop.create_future()
        # As one finished task wakes another: by callbacks that follow one another.
        loop.call_soon(lambda: loop.call_soon(lambda: loop.call_soon(woken.set_result, None)))
        await woken
        return clock()

    async def body() -> Any:
        return await asyncio.gather(wait(), asyncio.gather(be_woken()))

    assert face_of_asyncio.run(body) == [None, [0.0]]
    assert clock() == 0.5


def test_it_goes_on_after_a_pause(async_face: Face) -> None:
    anyio = importlib.import_module("anyio")
    clock = VirtualClock()

    async def body() -> None:
        backend = async_face.peers(echo, clock=clock)
        for _ in range(3):
            await backend.sleep(1.0)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
        assert clock() == 3.0

    async_face.run(body)


def test_whoever_waits_on_it_from_outside_sets_a_timer(async_face: Face) -> None:
    anyio = importlib.import_module("anyio")
    clock = VirtualClock()

    async def body() -> None:
        event = anyio.Event()
        clock.call_at(7.0, event.set)
        await event.wait()
        assert clock() == 7.0

    async_face.run(body)


def test_it_serves_one_event_loop_after_another() -> None:
    clock = VirtualClock()
    faces = importlib.import_module("mock_faces").ASYNC_FACES
    for number, each in enumerate(faces * 2):
        backend = each.peers(echo, clock=clock)

        async def body(backend: Any = backend) -> None:
            stream = await backend.connect_tcp("a.example", 80)
            await stream.write(b"hello")
            assert await stream.read() == b"hello"

        each.run(body)
        assert clock() == 0.5 * (number + 1)


def test_a_wait_that_was_cancelled_leaves_nothing_on_the_clock(async_face: Face) -> None:
    anyio = importlib.import_module("anyio")
    clock = VirtualClock()

    async def body() -> None:
        stream = await async_face.peers(silence, clock=clock).connect_tcp("a.example", 80)
        async with anyio.create_task_group() as group:
            group.start_soon(stream.read, None, 1000.0)
            group.start_soon(stream.write, b"")
            group.cancel_scope.cancel()
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        assert clock() == 0.0
        assert not clock._has_timers()

    async_face.run(body)


# --- waits without end -------------------------------------------------------------------------------------


def test_a_wait_without_end_is_an_error_and_not_a_hang(face: Face) -> None:
    async def body() -> None:
        with VirtualClock(patience=0.05):
            stream = await face.peers(silence).connect_tcp("a.example", 80)
            with pytest.raises(
                DeadlockError, match="nothing can end the wait to read: a silent peer has nothing"
            ):
                await stream.read()

    face.run(body)


def test_a_thread_that_is_alone_needs_no_patience() -> None:
    code = """
from lamina_mock import DeadlockError, Peer, PeerBackend, VirtualClock
backend = PeerBackend(lambda host, port: Peer(), clock=VirtualClock(patience=float("inf")))
try:
    backend.connect_tcp("a.example", 80).read()
except DeadlockError:
    print("at once")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == ["at", "once"]


def test_a_deadlock_is_a_failed_test_and_one_of_our_errors() -> None:
    assert issubclass(DeadlockError, AssertionError)
    assert issubclass(DeadlockError, LaminaError)


def test_an_event_loop_has_patience(async_face: Face) -> None:
    anyio = importlib.import_module("anyio")

    async def body() -> None:
        with VirtualClock():
            stream = await async_face.peers(echo).connect_tcp("a.example", 80)

            async def later() -> None:
                await anyio.lowlevel.checkpoint()
                await stream.write(b"hello")

            assert await async_face.together(stream.read, later) == [b"hello", None]

    async_face.run(body)


def test_another_thread_may_end_a_wait_without_end() -> None:
    clock = VirtualClock()
    stream = PeerBackend(echo, clock=clock).connect_tcp("a.example", 80)
    thread = threading.Timer(0.01, stream.write, [b"hello"])
    thread.start()
    assert stream.read() == b"hello"
    thread.join(30)
    assert clock() == 0.5


def test_a_thread_that_uses_the_clock_is_let_on_before_a_time_out() -> None:
    clock = VirtualClock(grace=30.0)
    backend = PeerBackend(echo, clock=clock)
    stream = backend.connect_tcp("a.example", 80)
    connected = threading.Event()

    def write() -> None:
        backend.connect_tcp("b.example", 80).close()
        connected.set()
        stream.write(b"hello")

    thread = threading.Thread(target=write)
    thread.start()
    assert connected.wait(30)
    assert stream.read(timeout=30.0) == b"hello"
    thread.join(30)
    assert clock() == 0.5


def test_threads_that_have_ended_are_not_waited_for() -> None:
    clock = VirtualClock()
    backend = PeerBackend(echo, clock=clock)
    thread = threading.Thread(target=backend.connect_tcp, args=("a.example", 80))
    thread.start()
    thread.join(30)
    assert not clock._others_are_busy(threading.current_thread())
    assert thread not in clock._threads


# --- real time ---------------------------------------------------------------------------------------------


def test_on_the_runtimes_clock_waits_take_their_time(face: Face) -> None:
    async def body() -> float:
        started = time.monotonic()
        stream = await face.peers(lambda *_: Echo(0.03), clock=RuntimeClock()).connect_tcp("a.example", 80)
        with pytest.raises(ReadTimeout):
            await stream.read(timeout=0.02)
        await stream.write(b"hello")
        assert await stream.read(timeout=30.0) == b"hello"
        return time.monotonic() - started

    assert face.run(body) >= 0.04


def test_on_the_runtimes_clock_a_deadline_may_be_brought_forward_by_another_thread() -> None:
    stream = PeerBackend(silence, clock=RuntimeClock()).connect_tcp("a.example", 80)
    deadline = open_deadline(3600.0, time.monotonic)
    thread = threading.Timer(0.01, deadline.reschedule, [0.0])
    thread.start()
    try:
        with pytest.raises(DeadlineExceeded):
            stream.read()
    finally:
        close_deadline(deadline)
        thread.join(30)


def test_under_trios_own_mock_clock_the_runtimes_clock_jumps_too() -> None:
    trio = pytest.importorskip("trio")
    testing = importlib.import_module("trio.testing")

    async def main() -> float:
        backend = importlib.import_module("lamina_mock").AsyncPeerBackend(silence, clock=RuntimeClock())
        stream = await backend.connect_tcp("a.example", 80)
        with pytest.raises(ReadTimeout):
            await stream.read(timeout=3600.0)
        now: float = trio.current_time()
        return now

    assert trio.run(main, clock=testing.MockClock(autojump_threshold=0)) == 3600.0
