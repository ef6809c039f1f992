"""Exceptions that come at any moment, as KeyboardInterrupt does, and what has to hold after each.

The hard rule: whoever gets a response gets the answer to his own request. Every request carries a token, every
answer repeats it.
"""

from __future__ import annotations

import dis
import gc
import itertools
import linecache
import random
import signal
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from lamina_interfaces import PoolTimeout, current_deadline
from pool_loopback import MemoryBackend, request_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    import pytest

    from lamina_pool import ConnectionPool

    Scenario = Callable[[ConnectionPool, Iterator[int]], None]

URL = "http://example.com/"


def check_token(pool: ConnectionPool, token: str, method: str = "GET", **arguments: Any) -> None:
    got = pool.request(method, f"{URL}{token}", **arguments)
    assert got.content == f"/{token}".encode(), "somebody else's answer"


class Struck(BaseException):
    """What KeyboardInterrupt is, told apart from it."""


def check_recovery(
    backend: MemoryBackend, pool: ConnectionPool, tokens: Iterator[int], where: object
) -> None:
    """Every place comes back, nothing is open that the pool does not know, and answers are right."""
    gc.collect()
    stats = pool.stats()
    assert (stats.active, stats.connecting, stats.queued) == (0, 0, 0), (where, stats)
    assert stats.connections == stats.idle, (where, stats)
    limit = {"timeout": {"pool": 1.0}}
    held = []
    for _ in range(2):  # the limit: all places can be taken
        token = next(tokens)
        held.append((token, pool.handle_request(request_for(f"{URL}{token}", extensions=limit))))
    for token, got in held:
        assert got.read() == b"/%d" % token, where
    assert backend.live == pool.stats().connections, (where, backend.live, pool.stats())


class Striker:
    """Raises `Struck` at the n-th line that is executed in certain files."""

    def __init__(self, strike_at: int, files: Sequence[str | None]) -> None:
        self.left = strike_at
        self._files = files
        self.where: tuple[str, int] | None = None

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        if event == "line" and not leaves_with(frame) and not is_finaliser(frame):
            self.left -= 1
            if self.left == 0:
                self.where = (frame.f_code.co_filename, frame.f_lineno)
                raise Struck
        return self.trace

    def run(self, function: Any, *arguments: Any) -> None:
        sys.settrace(self.trace)
        try:
            function(*arguments)
        finally:
            sys.settrace(None)


def is_finaliser(frame: FrameType | None) -> bool:
    """Whether Python would swallow what is raised here, since a finaliser is running."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def leaves_with(frame: FrameType) -> bool:
    """Whether this is the way out of a `with`, before its `__exit__`: a signal is never handled there."""
    if not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
        return False
    following = dis.get_instructions(frame.f_code)
    first = next(instruction for instruction in following if instruction.offset == frame.f_lasti)
    return first.opname in {"LOAD_CONST", "PUSH_EXC_INFO", "WITH_EXCEPT_START", "PUSH_NULL", "SWAP"}


def strike_everywhere(
    make_backend: Callable[[], MemoryBackend],
    make_pool: Callable[[Any], ConnectionPool],
    scenario: Scenario,
    files: Sequence[str | None],
    step: int,
) -> None:
    """Play a scenario again and again, each time struck some lines later, until it has no more lines."""
    tokens = itertools.count()
    lost = []
    gc.collect()
    gc.freeze()  # the collections below are to look only at what comes from here on
    with warnings.catch_warnings():
        # A request that is struck down before it began, a response before its caller had it.
        warnings.simplefilter("ignore", ResourceWarning)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        strike_at = random.randint(1, step) - step
        while True:
            strike_at += step
            backend = make_backend()
            backend.keep_streams = False
            pool = make_pool(backend)
            striker = Striker(strike_at, files)
            try:
                striker.run(scenario, pool, tokens)
            except Struck:
                pass
            if striker.where is None:
                pool.close()
                break  # the scenario has fewer lines than this
            try:
                check_recovery(backend, pool, tokens, striker.where)
            except (AssertionError, PoolTimeout) as error:
                lost.append((strike_at, striker.where, repr(error)[:200]))
            pool.close()
            gc.collect()
    gc.unfreeze()
    assert not lost, "\n".join(str(one) for one in lost[:20])
    assert strike_at > 300
    assert current_deadline() is None, "the deadline of a dial outlived it"


def alarm_everywhere(
    backend: MemoryBackend,
    pool: ConnectionPool,
    scenario: Scenario,
    monkeypatch: pytest.MonkeyPatch,
    *,
    most: int = 600,
    seconds: float = 5.0,
) -> None:
    """Play a scenario again and again, while the handler of a signal raises at random moments."""
    choice = random.Random(7)
    tokens = itertools.count()
    strikes = 0
    backend.keep_streams = False

    def handler(number: int, frame: object) -> None:
        raise Struck

    def swallowed(unraisable: Any) -> None:
        """What strikes in a finaliser Python reports, and goes on."""
        assert unraisable.exc_type is Struck, unraisable

    def one_round() -> None:
        nonlocal strikes
        signal.setitimer(signal.ITIMER_REAL, choice.uniform(1e-5, 1.5e-3))
        try:
            try:
                for _ in range(100):
                    scenario(pool, tokens)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except Struck:
            strikes += 1

    monkeypatch.setattr(sys, "unraisablehook", swallowed)
    gc.collect()
    gc.freeze()
    before = signal.signal(signal.SIGALRM, handler)
    end = time.monotonic() + seconds
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            while strikes < 100 or (strikes < most and time.monotonic() < end):
                try:
                    one_round()
                except Struck:  # in the `finally` above
                    strikes += 1
                check_recovery(backend, pool, tokens, strikes)
            gc.collect()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.unfreeze()
        pool.close()
    gc.collect()
    assert backend.live == 0
