"""Dials: what they ask for, what they report, and that no socket outlives them. Time is a number here."""

from __future__ import annotations

import errno
import gc
import os
import socket
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from interfaces_clock import VirtualClock
from interfaces_sockets import (
    Answers,
    SelectBell,
    address_of,
    connected,
    listening,
    open_fds,
    refusing_addresses,
    until,
    wait_until_ended,
)
from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    AsyncResolver,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    Limit,
    ResolvedAddress,
    Resolver,
    UnsupportedProtocol,
    close_deadline,
    open_deadline,
)
from lamina_interfaces.connecting import LONGEST_PAUSE, Dial, UnixDial
from lamina_interfaces.dialing import ATTEMPT_DELAY, RESOLUTION_DELAY, default_socket_options
from lamina_interfaces.resolving import LOOKUPS, SYSTEM_RESOLVER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

V4, V6 = socket.AF_INET, socket.AF_INET6

AWAITED = AsyncResolver()
"""For dials that are told what the resolver has said."""


@pytest.fixture(autouse=True)
def _no_socket_is_left() -> Iterator[None]:
    if not sys.platform.startswith("linux"):
        yield
        return
    before = open_fds()
    gc.disable()  # so that no cycle is found, and no descriptor freed, by luck
    try:
        yield
        assert open_fds() <= before, "sockets were left open"
    finally:
        gc.enable()
    until(lambda: not LOOKUPS._under_way)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(1000.0)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    yield from listening()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "peer.sock")


def dial_to(
    host: str, port: int, clock: Any = monotonic, timeout: float | None = 30, resolver: Any = AWAITED, **options: Any
) -> Dial:  # fmt: skip
    limit = Limit(timeout, clock, "connect")
    return Dial(host, port, limit=limit, clock=clock, resolver=resolver, **options)


def unix_dial(path: str, clock: Any = monotonic, timeout: float | None = 30, **options: Any) -> UnixDial:
    return UnixDial(path, limit=Limit(timeout, clock, "connect"), clock=clock, **options)


# --- one address -------------------------------------------------------------------------------------------


def test_an_ip_address_is_connected_to_without_a_look_up(listener: socket.socket) -> None:
    dial = dial_to("127.0.0.1", listener.getsockname()[1])
    assert not dial.look_ups
    assert dial.async_resolver is None
    with connected(dial) as sock:
        dial.release()
        dial.close()
        assert sock.getpeername() == listener.getsockname()
        assert sock.gettimeout() == 0
        assert not sock.get_inheritable()
        assert [span.name for span in dial.timings] == ["tcp"]


def test_a_socket_is_the_dials_until_it_is_released(listener: socket.socket) -> None:
    dial = dial_to("127.0.0.1", listener.getsockname()[1])
    sock = connected(dial)
    dial.close()
    assert sock.fileno() == -1
    dial.close()


def test_a_dial_that_is_given_up_closes_what_it_had_started(
    clock: VirtualClock, listener: socket.socket
) -> None:
    dial = dial_to("127.0.0.1", listener.getsockname()[1], clock)
    assert dial.advance() is None
    [sock] = dial.pending.values()
    dial.close()
    assert sock.fileno() == -1
    assert not dial.pending


def test_a_dial_makes_no_socket_before_it_is_advanced(listener: socket.socket) -> None:
    before = open_fds()
    dial_to("127.0.0.1", listener.getsockname()[1])
    assert open_fds() == before


def test_options_are_set_before_connecting_and_the_callers_come_last(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[Any] = []

    class Watched(socket.socket):
        def setsockopt(self, *arguments: Any) -> None:
            steps.append(arguments)
            super().setsockopt(*arguments)

        def bind(self, address: Any) -> None:
            steps.append("bind")
            super().bind(address)

        def connect_ex(self, address: Any) -> int:
            steps.append("connect")
            return super().connect_ex(address)

    defaults = default_socket_options(socket)
    option = (socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    dial = dial_to(
        "127.0.0.1", listener.getsockname()[1], defaults=defaults, options=[option], local_address="127.0.0.9"
    )
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Watched)
        sock = connected(dial)
    assert sock.getsockname()[0] == "127.0.0.9"
    dial.close()
    assert steps == [*defaults, option, "bind", "connect"]


def test_a_socket_that_connected_to_itself_is_no_connection() -> None:
    """D08."""
    with refusing_addresses(1) as [address]:
        reuse = (socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        dial = dial_to("127.0.0.1", address.sockaddr[1], options=[reuse])
        dial._local_address = address  # with our end bound to the very port, it is certain rather than rare
        with pytest.raises(ConnectError) as caught:
            connected(dial)
        dial.close()
    assert caught.value.errno == errno.ECONNREFUSED


def test_a_local_address_of_another_family_than_the_hosts_leaves_no_address() -> None:
    dial = dial_to("::1", 80, local_address="127.0.0.1")
    with pytest.raises(ConnectError, match="no address of the local address's family"):
        dial.advance()


@pytest.mark.parametrize("host", ["fe80::1%no-such-zone", "fe80::1%"])
def test_a_zone_that_does_not_exist_is_a_connect_error(host: str) -> None:
    with pytest.raises(ConnectError, match="not an IP address"):
        dial_to(host, 80)


# --- names -------------------------------------------------------------------------------------------------


def test_the_systems_resolver_is_not_needed_for_localhost(listener: socket.socket) -> None:
    dial = dial_to(
        "localhost", listener.getsockname()[1], resolver=SYSTEM_RESOLVER, local_address="127.0.0.1"
    )
    assert not dial.look_ups
    with connected(dial) as sock:
        dial.release()
        assert sock.getpeername()[0] == "127.0.0.1"
        assert [span.name for span in dial.timings] == ["dns", "tcp"]
    dial.close()


def test_a_resolver_of_ones_own_is_asked_for_localhost_too() -> None:
    assert dial_to("localhost", 80, resolver=Resolver()).look_ups == (V6, V4)


def test_a_blocking_resolver_is_asked_in_threads(listener: socket.socket) -> None:
    resolver = Answers(v4=[address_of(listener)])
    dial = dial_to("Bücher.example.", 81, resolver=resolver)
    bell = SelectBell()
    assert dial.async_resolver is None
    dial.ask(bell)
    while dial.look_ups:
        bell.wait()
        dial.advance()
    with connected(dial) as sock:
        dial.release()
        assert sock.getpeername() == listener.getsockname()
    dial.close()
    assert sorted(resolver.calls) == sorted(("Bücher.example.", 81, family) for family in (V4, V6))


def test_closing_leaves_the_look_ups() -> None:
    resolver = Answers(held=True)
    dial = dial_to("host.example", 80, resolver=resolver)
    bell = SelectBell()
    dial.ask(bell)
    until(lambda: len(resolver.calls) == 2)
    dial.close()
    resolver.release()
    until(lambda: not LOOKUPS._shares)
    assert bell.rung == 0


def test_an_async_resolver_is_the_backends_to_ask(clock: VirtualClock, listener: socket.socket) -> None:
    dial = dial_to("host.example", 80, clock)
    assert dial.async_resolver is AWAITED
    assert list(dial.look_ups) == [V6, V4]
    assert dial.advance() is None
    assert dial.limit.phase == "dns"
    assert dial.wake_at is None
    dial.found(V4, [address_of(listener)])
    assert dial.advance() is None
    assert list(dial.look_ups) == [V6]
    assert dial.wake_at == 1000.0 + RESOLUTION_DELAY
    assert not dial.pending
    dial.not_found(V6, OSError("no"))
    assert dial.advance() is None
    assert dial.limit.phase == "connect"
    with connected(dial) as sock:
        dial.release()
        assert sock.getpeername() == listener.getsockname()
    dial.close()


def test_a_local_address_chooses_the_family_that_is_looked_up() -> None:
    assert list(dial_to("host.example", 80, local_address="127.0.0.1").look_ups) == [V4]
    assert list(dial_to("host.example", 80, local_address="::1").look_ups) == [V6]


NXDOMAIN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
SERVFAIL = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.mark.parametrize(
    ("v6", "v4", "reason"),
    [
        (NXDOMAIN, NXDOMAIN, "Name or service not known"),
        (SERVFAIL, SERVFAIL, "Temporary failure"),
        (NXDOMAIN, SERVFAIL, "Temporary failure"),
        (SERVFAIL, NXDOMAIN, "Temporary failure"),
        ((), (), "it has no address"),
        ((), NXDOMAIN, "Name or service not known"),
        (OSError("no network"), (), "no network"),
        (RuntimeError("broken resolver"), (), "broken resolver"),
        (None, (), "NoneType"),
        ([("nonsense",)], (), ""),
        ([ResolvedAddress(V6, ("other.example", 80))], (), "illegal IP address"),
        ([ResolvedAddress(V4, ("127.0.0.1", 65536))], (), "is no address"),
    ],
)
@pytest.mark.parametrize("awaited", [False, True])
def test_no_answer_is_a_connect_error_that_says_why(awaited: bool, v6: Any, v4: Any, reason: str) -> None:
    """D03: alike for both kinds of resolvers."""
    dial = dial_to("host.example", 80, resolver=AWAITED if awaited else Answers(v6=v6, v4=v4))
    bell = SelectBell()
    if awaited:
        for family, answer in ((V6, v6), (V4, v4)):
            if isinstance(answer, Exception):
                dial.not_found(family, answer)
            else:
                dial.found(family, answer)
    else:
        dial.ask(bell)
    with pytest.raises(ConnectError, match=f"host.example:80 could not be resolved: .*{reason}") as caught:
        while dial.advance() is None:
            bell.wait()
    dial.close()
    assert (caught.value.phase, caught.value.errno, caught.value.attempts) == ("dns", None, ())
    if isinstance(v6, RuntimeError):
        assert caught.value.__cause__ is v6


# --- several addresses -------------------------------------------------------------------------------------


def test_the_next_address_has_its_turn_and_the_first_to_connect_wins(
    clock: VirtualClock, listener: socket.socket
) -> None:
    others = [sock for _ in range(2) for sock in [socket.create_server(("127.0.0.1", 0))]]
    dial = dial_to("host.example", 80, clock, timeout=None)
    dial.found(V6, [])
    dial.found(V4, [address_of(other) for other in others] + [address_of(listener)])
    for started in (1, 2, 3):
        assert dial.advance() is None
        assert len(dial.pending) == started
        assert dial.wake_at == (None if started == 3 else clock.now + ATTEMPT_DELAY)
        clock.sleep(ATTEMPT_DELAY)
    losers = [dial.pending[0], dial.pending[1]]
    wait_until_ended(dial.pending[2])
    assert dial.ended(2)
    assert dial.ended(0), "late, and it changes nothing"
    sock = dial.advance()
    assert sock is not None
    assert sock.getpeername() == listener.getsockname()
    dial.release()
    dial.close()
    assert [loser.fileno() for loser in losers] == [-1, -1]
    assert dial.timings[-1] == ("tcp", 1000.0, clock.now)
    sock.close()
    for other in others:
        other.close()


def test_every_address_that_failed_is_listed() -> None:
    """D05: in the order of trying, with errno."""
    dial = dial_to("host.example", 80)
    dial.found(V6, [])
    with refusing_addresses(2) as [first, second]:
        dial.found(V4, [first, second])
        with pytest.raises(ConnectError, match=r"could not connect to host.example:80") as caught:
            connected(dial)
    dial.close()
    assert [(attempt.address, attempt.errno) for attempt in caught.value.attempts] == [
        (f"127.0.0.1:{address.sockaddr[1]}", errno.ECONNREFUSED) for address in (first, second)
    ]
    assert caught.value.errno == errno.ECONNREFUSED
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


# --- limits ------------------------------------------------------------------------------------------------


def test_a_limit_that_has_passed_while_names_are_looked_up(clock: VirtualClock) -> None:
    dial = dial_to("host.example", 80, clock, timeout=2)
    assert dial.advance() is None
    clock.sleep(2)
    with pytest.raises(
        ConnectTimeout, match=r"looking up the name of host.example:80 took too long"
    ) as caught:
        dial.advance()
    error = caught.value
    assert (error.phase, error.limit, error.elapsed, error.attempts) == ("dns", 2, 2, ())


def test_a_time_out_names_the_look_up_that_was_waited_for(clock: VirtualClock) -> None:
    """The addresses of one family have all refused, and the other family's have not come."""
    dial = dial_to("host.example", 80, clock, timeout=2)
    with refusing_addresses(1) as [address]:
        dial.found(V4, [address])
        clock.sleep(RESOLUTION_DELAY)
        assert dial.advance() is None
        wait_until_ended(dial.pending[0])
        assert not dial.ended(0)
    assert dial.advance() is None
    assert dial.limit.phase == "dns"
    clock.sleep(2)
    with pytest.raises(ConnectTimeout, match="looking up the name") as caught:
        dial.advance()
    assert caught.value.phase == "dns"
    assert [attempt.errno for attempt in caught.value.attempts] == [errno.ECONNREFUSED]
    dial.close()


@pytest.mark.parametrize(("waited", "error"), [(2, DeadlineExceeded), (1, ConnectError)])
def test_a_resolver_that_timed_out_is_no_resolver_that_failed(
    clock: VirtualClock, waited: int, error: type[Exception]
) -> None:
    """One that is awaited is under the deadline of whoever dials, unless it timed out by its own limit."""
    deadline = open_deadline(2, clock)
    try:
        dial = dial_to("host.example", 80, clock)
        clock.sleep(waited)
        for family in (V6, V4):
            dial.not_found(
                family, ConnectTimeout("connecting to the name server took too long", phase="connect")
            )
        with pytest.raises(error, match=r"host\.example") as caught:
            dial.advance()
    finally:
        close_deadline(deadline)
    assert getattr(caught.value, "phase", None) == "dns"


def test_a_limit_that_has_passed_while_addresses_are_tried(
    clock: VirtualClock, listener: socket.socket
) -> None:
    """D01: all tried, or counted."""
    port = listener.getsockname()[1]
    dial = dial_to("host.example", 80, clock, timeout=0.4)
    dial.found(V6, [])
    dial.found(V4, [ResolvedAddress(V4, (f"127.0.0.{number}", port)) for number in (1, 2, 3)])
    dial.advance()
    clock.sleep(ATTEMPT_DELAY)
    dial.advance()
    clock.sleep(0.15)
    with pytest.raises(ConnectTimeout, match=r"connecting to .*; addresses left untried: 1") as caught:
        dial.advance()
    dial.close()
    assert caught.value.phase == "connect"
    assert [(attempt.address, attempt.errno) for attempt in caught.value.attempts] == [
        (f"127.0.0.1:{port}", None),
        (f"127.0.0.2:{port}", None),
    ]
    assert [attempt.elapsed for attempt in caught.value.attempts] == pytest.approx([0.4, 0.15])


def test_what_has_connected_in_time_counts_even_when_the_limit_has_passed_since(
    clock: VirtualClock, listener: socket.socket
) -> None:
    dial = dial_to("127.0.0.1", listener.getsockname()[1], clock, timeout=1)
    assert dial.advance() is None
    wait_until_ended(dial.pending[0])
    clock.sleep(2)
    assert dial.ended(0)
    assert dial.advance() is not None
    dial.close()


def test_addresses_that_fail_at_once_are_tried_within_the_limit(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(socket.socket):
        def connect_ex(self, address: Any) -> int:
            clock.sleep(0.1)
            return errno.ENETUNREACH

    dial = dial_to("host.example", 80, clock, timeout=0.95)
    dial.found(V6, [])
    dial.found(V4, [ResolvedAddress(V4, ("192.0.2.1", port)) for port in range(1, 100)])
    monkeypatch.setattr(socket, "socket", Failing)
    with pytest.raises(ConnectTimeout, match="untried: 88") as caught:
        dial.advance()
    assert len(caught.value.attempts) == 11  # the one that could not begin is among them


@pytest.mark.parametrize("timeout", [0, -0.0])
def test_a_limit_that_has_passed_before_tries_nothing(timeout: float) -> None:
    """F02."""
    with pytest.raises(ConnectTimeout):
        dial_to("host.example", 80, timeout=timeout)
    with pytest.raises(ConnectTimeout):
        unix_dial("/nowhere", timeout=timeout)


def test_a_wait_that_a_deadlines_block_has_cancelled_leaves_the_attempts_with_it(
    clock: VirtualClock, listener: socket.socket
) -> None:
    deadline = open_deadline(1, clock)
    try:
        dial = dial_to("127.0.0.1", listener.getsockname()[1], clock, timeout=30)
        dial.advance()
        dial.interrupted()
        assert deadline.interruption is None, "somebody else has cancelled it"
        clock.sleep(1)
        dial.interrupted()
        interruption = deadline.interruption
    finally:
        close_deadline(deadline)
    dial.close()
    assert isinstance(interruption, DeadlineExceeded)
    assert interruption.phase == "connect"
    assert len(interruption.attempts) == 1


# --- arguments ---------------------------------------------------------------------------------------------

BAD_ARGUMENTS: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"host": ""}, ArgumentValueError),
    ({"host": "a\0b"}, ArgumentValueError),
    ({"host": "a\r\nb"}, ArgumentValueError),
    ({"host": "a" * 64}, ArgumentValueError),
    ({"host": b"host"}, ArgumentTypeError),
    ({"host": "example.com:80"}, ArgumentValueError),
    ({"host": "127.0.0.1:80"}, ArgumentValueError),
    ({"host": "1::2::3"}, ArgumentValueError),
    ({"host": ":"}, ArgumentValueError),
    ({"port": 0}, ArgumentValueError),
    ({"port": -1}, ArgumentValueError),
    ({"port": 65536}, ArgumentValueError),
    ({"port": "80"}, ArgumentTypeError),
    ({"timeout": -1}, ArgumentValueError),
    ({"timeout": float("nan")}, ArgumentValueError),
    ({"timeout": "1"}, ArgumentTypeError),
    ({"local_address": "host.example"}, ArgumentValueError),
    ({"local_address": ""}, ArgumentValueError),
    ({"local_address": 1}, ArgumentTypeError),
    ({"options": 5}, ArgumentTypeError),
    ({"options": ["abc"]}, ArgumentTypeError),
    ({"options": [(1, 2)]}, ArgumentTypeError),
    ({"options": [(1, 2, "x")]}, ArgumentTypeError),
    ({"options": [(1, 2, None)]}, ArgumentTypeError),
    ({"options": [(1, 2, 3, 4)]}, ArgumentTypeError),
    ({"options": [("1", 2, 3)]}, ArgumentTypeError),
    ({"options": [(1, "x", 1)]}, ArgumentTypeError),
    ({"options": [(1, 2, {})]}, ArgumentTypeError),
    ({"options": [(1, 2, 2**80)]}, ArgumentValueError),
    ({"options": [(1, 2**80, 1)]}, ArgumentValueError),
]


@pytest.mark.parametrize(("changed", "error"), BAD_ARGUMENTS, ids=repr)
def test_what_makes_no_sense_is_refused_before_anything_is_tried(
    changed: dict[str, Any], error: type[Exception]
) -> None:
    arguments: dict[str, Any] = {"host": "host.example", "port": 80} | changed
    with pytest.raises(error):
        dial_to(**arguments)
    if "options" in changed:
        with pytest.raises(error):
            unix_dial("/nowhere", **changed)


@pytest.mark.parametrize(
    ("path", "error"),
    [("", ArgumentValueError), (b"/x", ArgumentTypeError), (None, ArgumentTypeError), ("/a\0b", ArgumentValueError),
     ("\ud800", ArgumentValueError)],
    ids=repr,
)  # fmt: skip
def test_a_path_that_no_socket_can_have_is_refused(path: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="path"):
        unix_dial(path)


def test_a_system_without_unix_sockets_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(UnsupportedProtocol):
        unix_dial("/nowhere")


# --- unix sockets ------------------------------------------------------------------------------------------


def test_a_unix_socket_is_connected_to(path: str) -> None:
    option = (socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        dial = unix_dial(path, options=[option])
        assert not dial.look_ups
        sock = connected(dial)
        dial.release()
        dial.close()
        with sock:
            assert sock.getpeername() == path
            assert sock.gettimeout() == 0
            assert sock.getsockopt(*option[:2]) == 1
            assert [span.name for span in dial.timings] == ["unix"]


def test_a_unix_socket_is_the_dials_until_it_is_released(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        dial = unix_dial(path)
        sock = connected(dial)
        dial.close()
        assert sock.fileno() == -1


def test_a_full_queue_is_tried_again_after_pauses_until_the_limit_is_over(
    clock: VirtualClock, path: str
) -> None:
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as filler:
        listener.bind(path)
        listener.listen(0)
        filler.connect(path)
        dial = unix_dial(path, clock, timeout=1)
        pauses = []
        with pytest.raises(ConnectTimeout, match=r"peer.sock took too long") as caught:
            while True:
                assert dial.advance() is None
                assert dial.wake_at is not None
                pauses.append(dial.wake_at - clock.now)
                clock.sleep(pauses[-1])
        assert pauses == sorted(pauses)
        assert 0 < pauses[0] < 0.01
        assert pauses[-1] == pytest.approx(LONGEST_PAUSE)
        assert [(attempt.address, attempt.errno) for attempt in caught.value.attempts] == [(path, None)]
        dial.close()

        dial = unix_dial(path, clock, timeout=1)
        assert dial.advance() is None
        listener.accept()[0].close()
        assert dial.advance() is not None, "there is room now"
        dial.close()


@pytest.mark.parametrize("case", ["missing", "stale", "too long", "a directory", "a plain file"])
def test_a_path_without_a_listener_is_a_connect_error(tmp_path: Path, case: str) -> None:
    """D07."""
    path = tmp_path / "peer.sock"
    number = errno.ECONNREFUSED
    if case == "missing":
        number = errno.ENOENT
    elif case == "too long":
        path, number = tmp_path / ("x" * 200), errno.ENAMETOOLONG
    elif case == "a directory":
        path = tmp_path
    elif case == "a plain file":
        path.touch()
    else:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
    dial = unix_dial(str(path))
    with pytest.raises(ConnectError, match="could not connect to") as caught:
        dial.advance()
    dial.close()
    assert (caught.value.errno, caught.value.phase) == (number, "connect")
    assert [(attempt.address, attempt.errno) for attempt in caught.value.attempts] == [(str(path), number)]
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.args == (number, os.strerror(number))


def test_a_dial_says_where_it_stands(listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    assert repr(dial_to("::1", 80)) == "<Dial [[::1]:80, 0 look-ups, 0 attempts under way]>"
    assert (
        repr(dial_to("host.example", port))
        == f"<Dial [host.example:{port}, 2 look-ups, 0 attempts under way]>"
    )
    assert repr(unix_dial("\0name")) == "<UnixDial [@name]>"
