"""Happy eyeballs as a state machine, and the checks before dialling."""

from __future__ import annotations

import socket
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import ArgumentTypeError, ArgumentValueError, ResolvedAddress
from lamina_interfaces.dialing import (
    ATTEMPT_DELAY,
    RESOLUTION_DELAY,
    Action,
    Connected,
    Dialer,
    GiveUp,
    StartAttempt,
    Wait,
    check_host,
    check_port,
    default_socket_options,
    format_address,
)

V6, V4 = 6, 4
REFUSED, UNREACHABLE = 111, 101


def v6(*numbers: int) -> list[ResolvedAddress]:
    return [ResolvedAddress(V6, (f"2001:db8::{number}", 443, 0, 0)) for number in numbers]


def v4(*numbers: int) -> list[ResolvedAddress]:
    return [ResolvedAddress(V4, (f"192.0.2.{number}", 443)) for number in numbers]


def both(first: list[ResolvedAddress], second: list[ResolvedAddress]) -> Dialer:
    dialer = Dialer((V6, V4))
    dialer.found(V6, first, 0.0)
    dialer.found(V4, second, 0.0)
    return dialer


def hosts_started_when_nobody_answers(dialer: Dialer) -> list[tuple[float, str]]:
    now, started = 0.0, []
    for _ in range(100):
        match dialer.next_action(now):
            case StartAttempt(_, address):
                started.append((now, address.sockaddr[0]))
            case Wait(None):
                return started
            case Wait(until):
                assert until is not None
                assert until > now, "waiting until now is spinning"
                now = until
    raise AssertionError("the dialer never came to rest")


# --- the order ---------------------------------------------------------------------------------------------


def test_the_families_take_turns_and_ipv6_begins() -> None:
    started = hosts_started_when_nobody_answers(both(v6(1, 2, 3), v4(1, 2)))
    assert [host for _, host in started] == [
        "2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2", "2001:db8::3",
    ]  # fmt: skip


def test_an_attempt_starts_every_quarter_of_a_second() -> None:
    started = hosts_started_when_nobody_answers(both(v6(1, 2), v4(1, 2)))
    assert [now for now, _ in started] == [0.0, 0.25, 0.5, 0.75]


def test_a_repeated_address_is_tried_once() -> None:
    assert len(hosts_started_when_nobody_answers(both(v6(1, 1), v4(2, 2, 2)))) == 2


def test_addresses_of_another_family_are_left_aside() -> None:
    started = hosts_started_when_nobody_answers(both([*v4(1), *v6(1)], [*v6(1), *v4(1)]))
    assert [host for _, host in started] == ["2001:db8::1", "192.0.2.1"]


# --- the look-ups ------------------------------------------------------------------------------------------


def test_nothing_starts_before_there_is_an_address() -> None:
    assert Dialer((V6, V4)).next_action(0.0) == Wait(None)


def test_ipv6_addresses_are_not_held_up_by_the_ipv4_lookup() -> None:
    dialer = Dialer((V6, V4))
    dialer.found(V6, v6(1), 1.0)
    assert dialer.next_action(1.0) == StartAttempt(0, v6(1)[0])


def test_ipv4_addresses_wait_50_ms_for_the_ipv6_lookup_and_no_longer() -> None:
    dialer = Dialer((V6, V4))
    dialer.found(V4, v4(1), 1.0)
    assert dialer.next_action(1.0) == Wait(1.0 + RESOLUTION_DELAY)
    assert dialer.next_action(1.0 + RESOLUTION_DELAY) == StartAttempt(0, v4(1)[0])


def test_ipv6_addresses_that_come_within_the_50_ms_go_first() -> None:
    dialer = Dialer((V6, V4))
    dialer.found(V4, v4(1), 1.0)
    dialer.found(V6, v6(1), 1.03)
    assert dialer.next_action(1.03) == StartAttempt(0, v6(1)[0])


@pytest.mark.parametrize("answer", ["failed", "empty"])
def test_ipv4_starts_at_once_when_there_is_no_ipv6(answer: str) -> None:
    dialer = Dialer((V6, V4))
    dialer.found(V4, v4(1), 1.0)
    if answer == "failed":
        dialer.not_found(V6)
    else:
        dialer.found(V6, [], 1.01)
    assert dialer.next_action(1.01) == StartAttempt(0, v4(1)[0])


def test_a_late_family_joins_the_attempts_at_the_next_turn() -> None:
    dialer = Dialer((V6, V4))
    dialer.found(V6, v6(1, 2), 0.0)
    dialer.next_action(0.0)
    dialer.found(V4, v4(1), 0.1)
    assert dialer.next_action(0.1) == Wait(ATTEMPT_DELAY)
    assert dialer.next_action(0.25) == StartAttempt(1, v4(1)[0])


def test_a_lookup_under_way_keeps_the_dial_alive_after_all_attempts_failed() -> None:
    dialer = Dialer((V6, V4))
    dialer.found(V6, v6(1), 0.0)
    dialer.next_action(0.0)
    dialer.failed(0, REFUSED, 0.01)
    assert dialer.next_action(0.01) == Wait(None)
    dialer.found(V4, v4(1), 2.0)
    assert dialer.next_action(2.0) == StartAttempt(1, v4(1)[0])


def test_without_any_address_the_dial_gives_up() -> None:
    dialer = Dialer((V6, V4))
    dialer.not_found(V6)
    dialer.found(V4, [], 0.0)
    assert dialer.next_action(0.0) == GiveUp(())


# --- the attempts ------------------------------------------------------------------------------------------


def test_a_failure_starts_the_next_attempt_at_once() -> None:
    dialer = both(v6(1), v4(1))
    dialer.next_action(0.0)
    dialer.failed(0, REFUSED, 0.001)
    assert dialer.next_action(0.001) == StartAttempt(1, v4(1)[0])


def test_the_failure_of_an_older_attempt_does_not_shorten_the_newest_ones_turn() -> None:
    dialer = both(v6(1, 2), v4(1))
    dialer.next_action(0.0)
    assert isinstance(dialer.next_action(0.25), StartAttempt)
    dialer.failed(0, REFUSED, 0.3)
    assert dialer.next_action(0.3) == Wait(0.5)


def test_the_first_to_connect_wins_and_the_others_are_dropped() -> None:
    dialer = both(v6(1, 2), v4(1))
    for now in (0.0, 0.25, 0.5):
        dialer.next_action(now)
    dialer.failed(0, REFUSED, 0.6)
    dialer.connected(1)
    assert dialer.next_action(0.6) == Connected(1)


def test_giving_up_lists_every_address_with_errno_and_elapsed_time() -> None:
    dialer = both(v6(1), v4(1))
    dialer.next_action(0.0)
    dialer.next_action(0.25)
    dialer.failed(1, REFUSED, 0.35)
    dialer.failed(0, UNREACHABLE, 0.5)
    action = dialer.next_action(0.5)
    assert isinstance(action, GiveUp)
    assert [(a.address, a.errno, round(a.elapsed, 6)) for a in action.attempts] == [
        ("[2001:db8::1]:443", UNREACHABLE, 0.5),
        ("192.0.2.1:443", REFUSED, 0.1),
    ]


def test_attempts_under_way_are_listed_without_errno() -> None:
    dialer = both(v6(1), v4(1))
    dialer.next_action(0.0)
    assert [tuple(attempt) for attempt in dialer.attempts(0.2)] == [("[2001:db8::1]:443", None, 0.2)]
    assert dialer.untried == 1


@given(st.data())
def test_whatever_happens_each_address_is_tried_once_and_the_dial_ends(data: st.DataObject) -> None:
    answers: dict[int, list[ResolvedAddress] | None] = {
        V6: data.draw(st.none() | st.lists(st.integers(1, 4), max_size=5).map(lambda n: v6(*n))),
        V4: data.draw(st.none() | st.lists(st.integers(1, 4), max_size=5).map(lambda n: v4(*n))),
    }
    dialer = Dialer((V6, V4))
    now = 0.0
    running: list[int] = []
    started: list[ResolvedAddress] = []
    last_start, last_failed = -1.0, True
    action: Action = Wait(None)
    for _ in range(200):
        action = dialer.next_action(now)
        if isinstance(action, StartAttempt):
            assert last_failed or now >= last_start + ATTEMPT_DELAY
            assert action.index == len(started)
            started.append(action.address)
            running.append(action.index)
            last_start, last_failed = now, False
            continue
        if isinstance(action, (GiveUp, Connected)):
            break
        events = [("answer", family) for family in answers] + [("end", index) for index in running]
        if action.until is not None:
            assert action.until > now
            events.append(("time", 0))
        assert events, "the dialer waits for something that cannot happen"
        event, which = data.draw(st.sampled_from(events))
        if event == "answer":
            found = answers.pop(which)
            if found is None:
                dialer.not_found(which)
            else:
                dialer.found(which, found, now)
        elif event == "time":
            assert action.until is not None
            now = action.until
        else:
            now += data.draw(st.sampled_from([0.0, 0.01, 0.1, 1.0]))
            running.remove(which)
            if data.draw(st.integers(0, 9)) == 0:
                dialer.connected(which)
            else:
                dialer.failed(which, REFUSED, now)
                last_failed = last_failed or which == len(started) - 1
    assert len(set(started)) == len(started)
    if isinstance(action, Connected):
        assert action.index not in running
    else:
        assert isinstance(action, GiveUp)
        assert len(action.attempts) == len(started)
        assert not answers
        assert not running
        assert dialer.untried == 0


# --- hosts and ports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("example.com", "example.com"),
        ("example.com.", "example.com."),
        ("EXAMPLE.com", "EXAMPLE.com"),
        ("_sip.example.com", "_sip.example.com"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("例え。テスト", "xn--r8jz45g.xn--zckzah"),
        ("192.0.2.1", "192.0.2.1"),
        ("::1", "::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("a" * 63, "a" * 63),
    ],
)
def test_a_host_is_given_back_as_ascii(host: str, expected: str) -> None:
    assert check_host(host) == expected


@pytest.mark.parametrize(
    "host",
    [
        "", ".", "..", "a..b", ".a", "a b", " a", "a ", "a\0b", "a\r\nb", "a\tb", "a\x7fb", "a\u00a0b", "a" * 64,
        "ü" * 64, "[::1]", "::1\0", "\udc80.example", ".".join(["a" * 60] * 5), "fe80::1%\u00e9",
    ],
)  # fmt: skip
def test_what_cannot_be_a_host_is_refused(host: str) -> None:
    with pytest.raises(ArgumentValueError, match="host"):
        check_host(host)


@pytest.mark.parametrize("host", [b"example.com", None, 1])
def test_a_host_that_is_no_str_is_refused(host: object) -> None:
    with pytest.raises(ArgumentTypeError, match="host must be a str"):
        check_host(host)  # type: ignore[arg-type] # the point of the test


@given(st.text(max_size=80))
def test_any_text_is_either_ascii_without_controls_or_refused(host: str) -> None:
    try:
        name = check_host(host)
    except ArgumentValueError:
        return
    assert name.isascii()
    assert all("\x20" < character < "\x7f" for character in name)


@pytest.mark.parametrize("port", [1, 80, 65535])
def test_a_port_is_given_back(port: int) -> None:
    assert check_port(port) == port


@pytest.mark.parametrize("port", [0, -1, 65536, 99999])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(ArgumentValueError, match="port"):
        check_port(port)


@pytest.mark.parametrize("port", ["80", 80.0, None, True])
def test_a_port_that_is_no_int_is_refused(port: object) -> None:
    with pytest.raises(ArgumentTypeError, match="port"):
        check_port(port)  # type: ignore[arg-type] # the point of the test


# --- sockets -----------------------------------------------------------------------------------------------

_COMMON = {"IPPROTO_TCP": 6, "TCP_NODELAY": 1, "SOL_SOCKET": 7, "SO_KEEPALIVE": 9}
_SYSTEMS = {
    "Linux": ({"TCP_KEEPIDLE": 4, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 8}, [(6, 4, 60), (6, 5, 60), (6, 8, 5)]),
    "macOS": ({"TCP_KEEPALIVE": 16, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 8}, [(6, 16, 60), (6, 5, 60), (6, 8, 5)]),
    "Windows": ({"TCP_KEEPIDLE": 3, "TCP_KEEPINTVL": 17, "TCP_KEEPCNT": 16}, [(6, 3, 60), (6, 17, 60), (6, 16, 5)]),
    "a system with none of them": ({}, []),
}  # fmt: skip


@pytest.mark.parametrize("system", _SYSTEMS)
def test_keep_alive_is_set_by_the_names_that_the_system_has(system: str) -> None:
    names, expected = _SYSTEMS[system]
    constants = types.SimpleNamespace(**_COMMON, **names)
    assert list(default_socket_options(constants)) == [(6, 1, 1), (7, 9, 1), *expected]


def test_keep_alive_can_be_left_out() -> None:
    options = default_socket_options(socket, keep_alive=False)
    assert options == ((socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),)


@pytest.mark.parametrize(
    ("sockaddr", "text"),
    [
        (("192.0.2.1", 443), "192.0.2.1:443"),
        (("2001:db8::1", 443, 0, 0), "[2001:db8::1]:443"),
        (("fe80::1", 443, 0, 2), "[fe80::1%2]:443"),
        (("fe80::1%eth0", 443, 0, 2), "[fe80::1%eth0]:443"),
        ("/run/peer.sock", "/run/peer.sock"),
        ("\0peer", "@peer"),
        (b"\0peer", "@peer"),
        (b"/run/\xff", "/run/\\xff"),
    ],
)
def test_an_address_is_written_as_one_reads_it(sockaddr: object, text: str) -> None:
    assert format_address(sockaddr) == text  # type: ignore[arg-type] # a table of all kinds


def test_a_decision_is_compared_by_kind_and_value() -> None:
    assert Connected(1) == Connected(1)
    assert len({Connected(1), Connected(1), Wait(1), Wait(None)}) == 3
    assert Connected(1) != Connected(2)
    assert Connected(1) != Wait(1)
    assert repr(StartAttempt(0, v4(1)[0])) == f"StartAttempt(index=0, address={v4(1)[0]!r})"
