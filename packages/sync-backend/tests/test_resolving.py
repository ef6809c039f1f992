"""Name resolution: limits, sharing, bounds, and answers of every kind."""

from __future__ import annotations

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import (
    ArgumentTypeError,
    AsyncResolver,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    ResolvedAddress,
    Resolver,
    close_deadline,
    current_deadline,
    open_deadline,
    resolving,
)
from lamina_interfaces.resolving import LOOKUPS, MAX_THREADS
from lamina_sync_backend import SyncBackend
from sync_peers import Hanging, Peer, RefusingPorts, Table, in_thread, tries, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType


def quiet(connection: socket.socket) -> None:
    connection.recv(1)


def resolver_threads() -> int:
    return sum(thread.name == "lamina-resolver" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def _no_lookup_is_left() -> Iterator[None]:
    yield
    until(lambda: not LOOKUPS._under_way)
    until(lambda: not LOOKUPS._shares)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    answer = Hanging()
    try:
        yield answer
    finally:
        answer.release()


# --- limits ------------------------------------------------------------------------------------------------


def test_a_slow_resolver_does_not_hold_up_the_caller(hanging: Hanging) -> None:
    """D02."""
    backend = SyncBackend(resolver=Table(v6=hanging, v4=hanging))
    for this in tries():
        start = monotonic()
        with pytest.raises(ConnectTimeout) as caught:
            backend.connect_tcp("slow.example", 80, timeout=0.2)
        elapsed = monotonic() - start
        with this:
            assert 0.2 <= elapsed < 0.5
            assert caught.value.phase == "dns"
            assert caught.value.attempts == ()
            assert "slow.example:80" in str(caught.value)


def test_a_deadline_ends_the_wait_for_a_resolver(hanging: Hanging) -> None:
    deadline = open_deadline(0.3, monotonic)
    try:
        with pytest.raises(DeadlineExceeded) as caught:
            SyncBackend(resolver=Table(v6=hanging, v4=hanging)).connect_tcp("slow.example", 80)
    finally:
        close_deadline(deadline)
    assert caught.value.phase == "dns"


def test_abandoned_lookups_are_bounded(hanging: Hanging) -> None:
    """D02."""
    backend = SyncBackend(resolver=Table(v6=hanging, v4=hanging))
    dials = [
        in_thread(partial(backend.connect_tcp, f"slow{number}.example", 80, timeout=0.2))
        for number in range(3 * MAX_THREADS)
    ]
    for dial in dials:
        with pytest.raises(ConnectTimeout):
            dial.result()
    until(lambda: resolver_threads() <= MAX_THREADS)  # one that ends may do so a moment later
    assert hanging.waiting <= MAX_THREADS
    assert len(LOOKUPS._under_way) <= MAX_THREADS, "what had not begun is dropped"


def test_lookups_beyond_the_bound_get_their_turn() -> None:
    with Peer(quiet) as peer:
        backend = SyncBackend(resolver=Table(v4=[peer.address]))
        dials = [
            in_thread(partial(backend.connect_tcp, f"host{number}.example", 80, timeout=30))
            for number in range(3 * MAX_THREADS)
        ]
        for dial in dials:
            dial.result().close()
    until(lambda: resolver_threads() <= MAX_THREADS)  # one that ends may do so a moment later


def test_a_thread_ends_when_there_is_nothing_more_to_ask() -> None:
    backend = SyncBackend(resolver=Table())
    for number in range(3):
        with pytest.raises(ConnectError):
            backend.connect_tcp(f"host{number}.example", 80, timeout=30)
    until(lambda: not resolver_threads())
    assert not LOOKUPS._shares, "nothing keeps the resolver"


def test_the_hanging_names_of_one_resolver_hold_up_no_other(hanging: Hanging) -> None:
    blocked = SyncBackend(resolver=Table(v6=hanging, v4=hanging))
    dials = [
        in_thread(partial(blocked.connect_tcp, f"slow{number}.example", 80, timeout=30))
        for number in range(MAX_THREADS)
    ]
    until(lambda: hanging.waiting == MAX_THREADS)
    with Peer(quiet) as peer:
        SyncBackend(resolver=Table(v4=[peer.address])).connect_tcp("host.example", 80, timeout=30).close()
    assert hanging.waiting == MAX_THREADS
    hanging.release()
    for dial in dials:
        with pytest.raises(ConnectError):
            dial.result()


def test_a_resolver_does_not_see_the_deadline_of_whoever_dials() -> None:
    seen: list[Any] = []

    class Looking(Resolver):
        def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
            seen.append(current_deadline())
            return []

    deadline = open_deadline(5.0, monotonic)
    try:
        with pytest.raises(ConnectError):
            SyncBackend(resolver=Looking()).connect_tcp("host.example", 80)
    finally:
        close_deadline(deadline)
    assert seen == [None, None]


def test_a_dial_in_the_middle_of_a_dial_of_the_same_thread_comes_through(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal handler or a finaliser may dial, wherever another dial of its thread has got to."""
    inner = SyncBackend(resolver=Table())
    lines = 0

    def call(frame: FrameType, event: str, argument: object) -> Any:
        return line if frame.f_code.co_filename == resolving.__file__ else None

    def line(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            sys.settrace(None)
            with pytest.raises(ConnectError, match="no address"):
                inner.connect_tcp("inner.example", 80, timeout=30)
            sys.settrace(call)
        return line

    before = sys.gettrace()
    sys.settrace(call)
    try:
        with pytest.raises(ConnectError, match="no address"):
            SyncBackend(resolver=Table()).connect_tcp("outer.example", 80, timeout=30)
    finally:
        sys.settrace(before)
    assert lines > 20


def test_an_interrupt_while_a_thread_is_started_costs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    backend = SyncBackend(resolver=Table())
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        for number in range(2 * MAX_THREADS):
            with pytest.raises(KeyboardInterrupt):
                backend.connect_tcp(f"host{number}.example", 80, timeout=30)
    until(lambda: not resolver_threads())
    with pytest.raises(ConnectError, match="no address"):
        backend.connect_tcp("host.example", 80, timeout=30)


def test_a_lookup_whose_starter_was_interrupted_is_done_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    backend = SyncBackend(resolver=Table())
    with monkeypatch.context() as patch:
        patch.setattr(LOOKUPS, "_add_thread", interrupted)
        with pytest.raises(KeyboardInterrupt):
            backend.connect_tcp("host.example", 80, timeout=30)
    with pytest.raises(ConnectError, match="no address"):
        backend.connect_tcp("host.example", 80, timeout=30)


def test_failed_lookups_leave_nothing_for_the_collector() -> None:
    backend = SyncBackend(resolver=Table(v6=OSError("no"), v4=OSError("no")))

    def fail() -> None:
        with pytest.raises(ConnectError):
            backend.connect_tcp("host.example", 80, timeout=30)
        until(lambda: not resolver_threads())

    def garbage() -> int:
        fail()
        return gc.collect()

    garbage()
    assert min(garbage() for _ in range(3)) < 10


# --- sharing -----------------------------------------------------------------------------------------------


def test_a_hundred_dials_at_once_are_one_lookup_per_family() -> None:
    with Peer(quiet) as peer:
        answer = Hanging([peer.address])
        resolver = Table(v4=answer)
        backend = SyncBackend(resolver=resolver)
        dials = [
            in_thread(lambda: backend.connect_tcp("host.example", 80, timeout=30).close()) for _ in range(100)
        ]

        def waiting() -> int:
            lookups = [lookup for key, lookup in list(LOOKUPS._under_way.items()) if key[3] == socket.AF_INET]
            return sum(len(lookup.bells) for lookup in lookups)

        until(lambda: waiting() == 100)
        answer.release()
        for dial in dials:
            dial.result()
    assert [family for _, _, family in resolver.calls].count(socket.AF_INET) == 1


def test_one_callers_time_out_disturbs_no_other() -> None:
    with Peer(quiet) as peer:
        answer = Hanging([peer.address])
        resolver = Table(v4=answer)
        backend = SyncBackend(resolver=resolver)
        patient = in_thread(lambda: backend.connect_tcp("host.example", 80, timeout=30).close())
        until(lambda: answer.waiting)
        with pytest.raises(ConnectTimeout):
            backend.connect_tcp("host.example", 80, timeout=0.05)
        assert answer.waiting == 1
        answer.release()
        patient.result()


def test_lookups_by_different_resolvers_are_not_shared(hanging: Hanging) -> None:
    with Peer(quiet) as peer:
        other = in_thread(
            lambda: SyncBackend(resolver=Table(v4=hanging)).connect_tcp("host.example", 80, timeout=30)
        )
        until(lambda: hanging.waiting)
        SyncBackend(resolver=Table(v4=[peer.address])).connect_tcp("host.example", 80, timeout=30).close()
        hanging.release()
        with pytest.raises(ConnectError):
            other.result()


def test_an_old_lookup_is_not_joined(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that hangs for ever must not make its name unusable for ever."""
    monkeypatch.setattr(resolving, "SHARED_FOR", 0.0)
    backend = SyncBackend(resolver=Table(v4=hanging))
    dials = []
    for number in (1, 2):
        dials.append(in_thread(partial(backend.connect_tcp, "host.example", 80, timeout=30)))
        until(lambda: hanging.waiting == number)  # noqa: B023 - it is over before the next
    hanging.release()
    for dial in dials:
        with pytest.raises(ConnectError):
            dial.result()


# --- answers -----------------------------------------------------------------------------------------------

NXDOMAIN = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
SERVFAIL = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


@pytest.mark.parametrize(
    ("v6", "v4", "reason"),
    [
        (NXDOMAIN, NXDOMAIN, "Name or service not known"),
        ((), SERVFAIL, "Temporary failure"),
        ((), (), "no address"),
        (RuntimeError("broken resolver"), (), "broken resolver"),
        (SystemExit(3), (), "3"),
        (None, (), "NoneType"),
        ([ResolvedAddress(socket.AF_INET6, ("other.example", 80))], (), "illegal IP address"),
    ],
)
def test_no_answer_is_a_connect_error_that_says_why(v6: Any, v4: Any, reason: str) -> None:
    """D03: NXDOMAIN, SERVFAIL, empty answers, and resolvers that break their promises.

    One row of each kind: the interfaces' own tests have them all.
    """
    with pytest.raises(ConnectError, match=f"host.example:80 could not be resolved: .*{reason}") as caught:
        SyncBackend(resolver=Table(v6=v6, v4=v4)).connect_tcp("host.example", 80, timeout=30)
    assert caught.value.phase == "dns"
    assert caught.value.errno is None
    assert caught.value.attempts == ()


@pytest.mark.parametrize("v6", [NXDOMAIN, ()], ids=repr)
def test_one_family_is_enough(v6: Any) -> None:
    """D03."""
    with Peer(quiet) as peer:
        backend = SyncBackend(resolver=Table(v6=v6, v4=[peer.address]))
        backend.connect_tcp("host.example", 80, timeout=30).close()


def test_a_family_whose_lookup_hangs_costs_50_ms(hanging: Hanging) -> None:
    """D03: A is there, AAAA hangs."""
    with Peer(quiet) as peer:
        backend = SyncBackend(resolver=Table(v6=hanging, v4=[peer.address]))
        for this in tries():
            start = monotonic()
            backend.connect_tcp("host.example", 80, timeout=30).close()
            with this:
                assert 0.05 <= monotonic() - start < 0.5


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6 on loopback")
def test_the_preferred_family_does_not_wait_for_the_other(hanging: Hanging) -> None:
    with Peer(quiet, family=socket.AF_INET6) as peer:
        backend = SyncBackend(resolver=Table(v6=[peer.address], v4=hanging))
        backend.connect_tcp("host.example", 80, timeout=30).close()


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6 on loopback")
def test_a_late_family_is_still_used_when_the_first_fails(refusing_address: RefusingPorts) -> None:
    with Peer(quiet) as peer:
        late = Hanging([peer.address])
        dead = refusing_address(socket.AF_INET6)
        dial = in_thread(
            lambda: SyncBackend(resolver=Table(v6=[dead], v4=late)).connect_tcp(
                "host.example", 80, timeout=30
            )
        )
        until(lambda: late.waiting)
        late.release()
        dial.result().close()


def test_the_resolver_is_asked_for_the_name_as_given() -> None:
    resolver = Table()
    with pytest.raises(ConnectError):
        SyncBackend(resolver=resolver).connect_tcp("Bücher.example.", 81, timeout=30)
    assert sorted(resolver.calls) == sorted(
        ("Bücher.example.", 81, family) for family in (socket.AF_INET6, socket.AF_INET)
    )


def test_what_is_no_resolver_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="resolve"):
        SyncBackend(resolver=len)  # type: ignore[arg-type] # the point of the test
    with pytest.raises(ArgumentTypeError, match="coroutine"):
        SyncBackend(resolver=AsyncResolver())  # type: ignore[arg-type] # the point of the test


# --- the system's resolver ---------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "app.localhost"])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_localhost_is_this_machine_and_nobody_is_asked_for_it(
    family: socket.AddressFamily, host: str, backend: SyncBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 6761, section 6.3. A hosts file that lacks one family would let the question out."""
    asked: list[Any] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **flags: Any) -> Any:
        # The socket's own look at an address that is one already goes through here too.
        if not isinstance(host, str):  # as which a question is asked: see SystemResolver
            asked.append(host)
        return real(host, *rest, **flags)

    with Peer(quiet, family=family) as peer:
        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        backend.connect_tcp(host, peer.port, timeout=30).close()
    assert not asked


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6 on loopback")
def test_a_family_of_which_this_machine_has_only_loopback_is_not_left_out(
    backend: SyncBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AI_ADDRCONFIG would leave it out, and so break names of this machine where there is no network."""
    with Peer(quiet, family=socket.AF_INET6) as peer:

        def getaddrinfo(
            host: bytes, port: int, family: int, kind: int, proto: int = 0, flags: int = 0
        ) -> Any:
            assert host == b"this-machine.example"
            assert not flags & socket.AI_ADDRCONFIG
            if family == socket.AF_INET:
                raise NXDOMAIN
            return [(family, kind, 6, "", ("::1", port, 0, 0))]

        real = socket.getaddrinfo

        def patched(host: Any, *rest: Any, **flags: Any) -> Any:
            # The socket's own look at an address that is one already goes through here too.
            ask: Any = real if isinstance(host, str) else getaddrinfo
            return ask(host, *rest, **flags)

        monkeypatch.setattr(socket, "getaddrinfo", patched)
        backend.connect_tcp("this-machine.example", peer.port, timeout=30).close()


def test_an_unknown_name_is_a_connect_error(backend: SyncBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*arguments: Any, **options: Any) -> Any:
        assert arguments[0] == b"xn--bcher-kva.invalid"
        raise NXDOMAIN

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(ConnectError, match="Name or service not known") as caught:
        backend.connect_tcp("bücher.invalid", 80, timeout=30)
    assert caught.value.__cause__ is NXDOMAIN


# --- the process -------------------------------------------------------------------------------------------


def test_no_thread_to_be_had_is_a_connect_error(monkeypatch: pytest.MonkeyPatch) -> None:

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(ConnectError, match="can't start new thread"):
        SyncBackend(resolver=Table()).connect_tcp("host.example", 80, timeout=30)
    assert not LOOKUPS._under_way
    LOOKUPS.reset()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process.*fork:DeprecationWarning")
def test_a_forked_child_resolves_with_threads_of_its_own(hanging: Hanging) -> None:
    with Peer(quiet) as peer:
        resolver = Table(v6=hanging, v4=hanging)
        backend = SyncBackend(resolver=resolver)
        dial = in_thread(lambda: backend.connect_tcp("slow.example", 80, timeout=30))
        until(lambda: hanging.waiting == 2)
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(40)  # a child that hangs ends, even if it no longer runs Python
            status = 1
            try:
                resolver.answers = {socket.AF_INET6: (), socket.AF_INET: [peer.address]}
                backend.connect_tcp("slow.example", 80, timeout=30).close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        hanging.release()
        with pytest.raises(ConnectError):
            dial.result()


def test_the_end_of_the_program_is_not_held_up() -> None:
    code = """if True:
        import threading
        from lamina_interfaces import ConnectTimeout, Resolver
        from lamina_sync_backend import SyncBackend
        class Slow(Resolver):
            def resolve(self, host, port, family):
                threading.Event().wait(600)
        try:
            SyncBackend(resolver=Slow()).connect_tcp("slow.example", 80, timeout=0.05)
        except ConnectTimeout:
            print("timed out")
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True
    )
    assert (done.stdout, done.stderr) == ("timed out\n", "")
