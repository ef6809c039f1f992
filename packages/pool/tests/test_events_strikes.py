"""What a listener is told when exceptions strike anywhere, under many threads, and through a SOCKS proxy.

The rule: each connection that was opened is closed once, each that was acquired is released once, each request that
began ends once. Nobody is told of anything twice.
"""

from __future__ import annotations

import gc
import threading
from functools import partial
from itertools import cycle
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import LaminaError, ProxyError
from lamina_pool import (
    ConnectionPool,
    PoolEvent,
    Proxy,
    RequestEvent,
    _blocking,
    _body,
    _connection,
    _dialling,
    _http2_connection,
    _http2_exchange,
    _pool,
    _proxies,
    _scheduler,
)
from pool_helpers import HEAD, OK, ScriptedBackend
from pool_http2_blocking import HTTP2Backend, moody
from pool_http2_server import INTERNAL_ERROR, MAX_CONCURRENT_STREAMS, Asked
from pool_journal import Journal
from pool_loopback import MemoryBackend, MemoryStream, Worker, echo
from pool_proxies import PASSWORD, REPLY, SOCKS_PROXY, USER, WORLDS, Ask, connect_to, play, socks
from pool_strikes import URL, check_token, strike_everywhere
from test_proxy_torture import SOCKSBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# --- exceptions at any line --------------------------------------------------------------------------------

# Not `_observing` itself: what strikes just where an event is noted or told is the end of that event.
LINES_IN = tuple(
    module.__file__
    for module in (
        _pool,
        _body,
        _dialling,
        _blocking,
        _connection,
        _http2_connection,
        _http2_exchange,
        _scheduler,
        _proxies,
    )
)


def answer(stream: MemoryStream, head: bytes, body: bytes) -> None:
    """Echoes, but breaks off in the midst of the head where it is asked to."""
    if b"/broken" in head:
        stream.feed(b"HTTP/1.1 20")
        stream.break_off()
    else:
        echo(stream, head, body)


def answer_http2(asked: Asked) -> None:
    if asked.target.startswith(b"/broken"):
        asked.reset(INTERNAL_ERROR)
    else:
        asked.respond()


def fail(_: Any) -> Any:
    raise ValueError("no")


def scenario(pool: ConnectionPool, tokens: Iterator[int]) -> None:
    """Requests that are read, left, refused by the server, spoilt by their own body; and one to another origin."""
    check_token(pool, f"a{next(tokens)}", method="POST", content=iter([b"one", b"two"]))
    with pool.stream("GET", f"{URL}b{next(tokens)}"):
        pass
    pool.request("GET", f"http://other.example/{next(tokens)}")
    with pytest.raises(LaminaError):
        pool.request("POST", f"{URL}broken{next(tokens)}")
    with pytest.raises(ValueError, match="no"):
        pool.request("POST", f"{URL}{next(tokens)}", content=map(fail, [1]))


KINDS: dict[str, tuple[Callable[[], MemoryBackend], dict[str, Any], int]] = {
    "HTTP/1.1": (partial(MemoryBackend, answer), {}, 17),
    "SOCKS": (partial(SOCKSBackend, answer), {"proxy": Proxy(SOCKS_PROXY)}, 23),
    "HTTP/2": (partial(HTTP2Backend, answer_http2), {"http1": False, "http2": True}, 53),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "is_thorough", [False, pytest.param(True, marks=[pytest.mark.soak, pytest.mark.timeout(900)])]
)
def test_an_exception_at_any_line_leaves_no_story_without_its_end_G07(kind: str, is_thorough: bool) -> None:
    make_backend, options, step = KINDS[kind]
    pools: list[tuple[ConnectionPool, Journal]] = []

    def check_last() -> None:
        pool, journal = pools.pop()
        pool._pool._observer.tell(None)  # type: ignore[union-attr] # there is one; what was left to whoever comes next
        journal.check_over()

    def make_pool(backend: Any) -> ConnectionPool:
        if pools:
            check_last()
        journal = Journal()
        pool = ConnectionPool(network_backend=backend, max_connections=2, on_event=journal, **options)
        pools.append((pool, journal))
        return pool

    strike_everywhere(make_backend, make_pool, scenario, LINES_IN, 1 if is_thorough else step)
    check_last()


class Interrupting:
    """A listener that is interrupted once, as by KeyboardInterrupt, behind this event."""

    def __init__(self, number: int) -> None:
        self.journal = Journal()
        self.number = number

    def __call__(self, event: PoolEvent) -> None:
        self.journal(event)
        if len(self.journal.events) == self.number:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_interrupted_listener_was_yet_to_be_told_it_is_told_later(kind: str) -> None:
    make_backend, options, _ = KINDS[kind]
    number = was_interrupted = 1
    while was_interrupted:
        was_interrupted = 0
        listener = Interrupting(number)
        pool = ConnectionPool(network_backend=make_backend(), on_event=listener, **options)
        responses = []
        for _ in range(2):
            try:
                # Kept, and with them what there is to tell of them.
                responses.append(pool.request("GET", URL))
            except KeyboardInterrupt:
                was_interrupted += 1
        try:
            pool.close()
        except KeyboardInterrupt:
            was_interrupted += 1
        pool.close()
        listener.journal.check_over()
        number += 1
    assert number > 12


@pytest.mark.filterwarnings("ignore:unclosed pool:ResourceWarning")
def test_what_was_left_and_is_interrupted_again_is_told_by_the_next_one() -> None:
    journal = Journal()

    def listener(event: PoolEvent) -> None:
        journal(event)
        if len(journal.closings()) == 1:
            raise KeyboardInterrupt

    pool = ConnectionPool(network_backend=ScriptedBackend([HEAD, OK], [HEAD, OK]), on_event=listener)
    for host in "ab":
        pool.request("GET", f"http://{host}.test/")
    del pool
    gc.collect()
    other = ScriptedBackend([HEAD, OK])
    with ConnectionPool(network_backend=other, on_event=Journal()) as last:
        with pytest.raises(KeyboardInterrupt):
            last.request("GET", "http://a.test/")
        last.request("GET", "http://a.test/")
    assert journal.closings() == ["ABANDONED"] * 2
    journal.check_over()


# --- threads -----------------------------------------------------------------------------------------------


def test_threads_that_share_connections_are_told_of_each_end_once_H01() -> None:
    """The events of one request come in their order; those of two threads about one connection need not."""
    backend = HTTP2Backend(moody(3, refuses=0.05, says_goodbye=0.01), settings={MAX_CONCURRENT_STREAMS: 6})
    journal = Journal()

    def work(name: int) -> None:
        for number in range(40):
            try:
                with pool.stream("GET", f"http://{'abc'[(name + number) % 3]}.test/") as got:
                    if number % 5:
                        got.read()
            except LaminaError:
                pass

    with ConnectionPool(
        network_backend=backend, http1=False, http2=True, max_connections=3, on_event=journal
    ) as pool:
        for worker in [Worker(work, name) for name in range(12)]:
            worker.result(50.0)
    journal.check_ends()
    assert not backend.violations


def test_a_listeners_own_request_is_told_by_one_thread_in_its_order() -> None:
    """Though another thread uses the pool, and tells what was left, before that request is over."""
    journal = Journal()
    told_by: dict[int, set[int]] = {}
    main = threading.get_ident()
    has_asked = False

    def listener(event: PoolEvent) -> None:
        nonlocal has_asked
        journal(event)
        if isinstance(event, RequestEvent):
            told_by.setdefault(event.request_id, set()).add(threading.get_ident())
        if not has_asked and threading.get_ident() == main:
            has_asked = True
            with pool.stream("GET", "http://b.test/") as got:
                Worker(pool.request, "GET", "http://c.test/").result()
                got.read()

    backend = ScriptedBackend(otherwise=lambda: cycle([HEAD, OK]))
    with ConnectionPool(network_backend=backend, on_event=listener) as pool:
        pool.request("GET", "http://a.test/")
    assert len(told_by) == 3
    assert all(len(threads) == 1 for threads in told_by.values())
    journal.check_over()


# --- through a SOCKS proxy -----------------------------------------------------------------------------------

SERVED = "started proxy opened acquired sent head body released:COMPLETE ended"


@pytest.mark.parametrize("world", WORLDS)
def test_the_way_through_a_socks_proxy_is_a_step_and_told_without_credentials(world: str) -> None:
    journal = Journal()
    proxy = Proxy(SOCKS_PROXY, auth=(USER, PASSWORD))
    script = socks(connect_to("a.test", 80), HEAD, OK, HEAD, OK, auth=True)
    played = play(world, [script], *[Ask("http://a.test/")] * 2, proxy=proxy, on_event=journal)
    journal.check_over()
    assert journal.story(0) == SERVED
    assert journal.story(1) == "started acquired sent head body released:COMPLETE ended"
    infos = [answer.extensions["connection"] for answer in played.outcomes]
    assert [(info.reused, info.proxy.host, info.origin.host) for info in infos] == [
        (False, b"proxy.test", b"a.test"),
        (True, b"proxy.test", b"a.test"),
    ]
    assert PASSWORD not in repr((journal.events, infos))


@pytest.mark.parametrize("world", WORLDS)
def test_a_socks_proxy_that_refuses_is_a_failure_to_connect(world: str) -> None:
    journal = Journal()
    refusal = REPLY[:1] + b"\x02" + REPLY[2:]
    script = socks(connect_to("a.test", 80), reply=refusal)
    played = play(world, [script], Ask("http://a.test/"), proxy=Proxy(SOCKS_PROXY), on_event=journal)
    journal.check_over()
    assert isinstance(played.error, ProxyError)
    assert journal.story() == "started failed:proxy:ProxyError ended:ProxyError"
