"""The conformance kit on backends that keep their contracts, and what it is made of."""

from __future__ import annotations

import inspect
import os
import re
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import anyio
import pytest

import lamina_interfaces
from lamina_interfaces import (
    AsyncNetworkStreamInterface,
    NetworkStreamInterface,
    interface_from_backend,
    stream_from_interface,
)
from lamina_mock import (
    AsyncMockBackend,
    AsyncMockStream,
    AsyncPeerBackend,
    AsyncScriptedBackend,
    MockBackend,
    MockServer,
    MockStream,
    PeerBackend,
    RuntimeClock,
    ScriptedBackend,
    VirtualClock,
)
from lamina_mock.conformance import (
    RULES,
    ConformanceError,
    End,
    ListPeer,
    MemoryPeer,
    NotApplicable,
    Peer,
    Place,
    Report,
    Result,
    Say,
    ScriptPeer,
    ServerPeer,
    _run,
    check_async_backend,
    check_async_stream,
    check_backend,
    check_stream,
)
from lamina_mock.conformance.__main__ import main
from lamina_mock.conformance._certificate import AUTHORITY, SERVER_NAME
from tiny_backends import AsyncTinyBackend, AsyncTinyStream, TinyBackend, TinyStream

LOOPS = {
    "asyncio": ("asyncio", {}),
    "asyncio+uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Runs a coroutine function in each event loop."""
    name, options = LOOPS[request.param]
    if "use_uvloop" in options:
        pytest.importorskip("uvloop")
    return lambda function, *arguments: anyio.run(function, *arguments, backend=name, backend_options=options)


@pytest.fixture(autouse=True)
def soon_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the kit's time is limits that are to be reached. Where shorter ones are not enough, there are longer."""
    monkeypatch.setattr(_run, "SCALES", (0.2, 1.0, 10.0))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """The kit leaves no thread behind; pytest itself objects to sockets that are not closed."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in set(threading.enumerate()) - before if "conformance" in thread.name]
    assert left == []


def verdicts(report: Report) -> dict[str, str]:
    return {result.rule: result.verdict for result in report.results}


# --- backends that keep their contracts --------------------------------------------------------------------


def test_a_blocking_backend_that_keeps_the_contract_passes() -> None:
    report = check_backend(TinyBackend())
    report.raise_for_failures()
    assert report.runtime == "threads"
    assert {result.rule for result in report.not_applicable} == {
        "a-missing-unix-socket-is-a-connect-error",
        "an-answer-interrupts-a-write",
        "an-interruptible-write-times-out",
        "an-uninterrupted-write-sends-all",
        "connect-unix-socket-connects",
        "local-address-is-where-it-comes-from",
        "socket-options-are-set",
        "the-addresses-are-true",
        "timings-are-spans",
    } | ({result.rule for result in report.not_applicable if "Linux" in result.detail})


class Numeric(AsyncTinyBackend):
    """The tiny backend looks up no names; the only one that is asked for is known."""

    async def connect(self, host: str, port: int) -> AsyncNetworkStreamInterface:
        return await super().connect("127.0.0.1" if host == "localhost" else host, port)


@cache
def async_report(loop: str) -> Report:
    name, options = LOOPS[loop]
    return anyio.run(check_async_backend, Numeric(), backend=name, backend_options=options)


@pytest.mark.parametrize("loop", LOOPS)
def test_an_async_backend_that_keeps_the_contract_passes(loop: str) -> None:
    if loop.endswith("uvloop"):
        pytest.importorskip("uvloop")
    report = async_report(loop)
    # The second dialect has no place for the addresses that were tried; nothing else is missing.
    assert {result.rule for result in report.failed} <= {"a-connect-timeout-tells-what-was-tried"}, str(
        report
    )
    assert report.runtime == LOOPS[loop][0]
    assert report["a-cancelled-read-loses-nothing"].verdict == "passed"
    assert report["a-second-writer-is-refused"].verdict == "passed"


@pytest.mark.parametrize("loop", LOOPS)
def test_the_verdicts_are_the_same_in_every_loop(loop: str) -> None:
    if loop.endswith("uvloop"):
        pytest.importorskip("uvloop")
    assert verdicts(async_report(loop)) == verdicts(async_report("asyncio"))


def test_the_list_of_bytes_passes_what_it_can_show() -> None:
    chunks: list[bytes] = []
    report = check_backend(MockBackend(chunks), peer=ListPeer(chunks))
    report.raise_for_failures()
    assert len(report.passed) >= 20
    assert all(result.detail for result in report.not_applicable)


def test_the_async_list_of_bytes_passes_the_same(run: Callable[..., Any]) -> None:
    chunks: list[bytes] = []

    async def check() -> Report:
        return await check_async_backend(AsyncMockBackend(chunks), peer=ListPeer(chunks))

    report = run(check)
    report.raise_for_failures()
    blocking = verdicts(check_backend(MockBackend(chunks), peer=ListPeer(chunks)))
    found = verdicts(report)
    assert {name: found[name] for name in blocking} == blocking


def test_mocks_in_memory_pass() -> None:
    peer = MemoryPeer()
    report = check_backend(PeerBackend(peer.make_peer, clock=RuntimeClock()), peer=peer)
    report.raise_for_failures()
    assert {result.detail for result in report.not_applicable} == {
        "addresses mean nothing here",
        "nothing is encrypted here",
        "ports mean nothing here",
        "there is no socket",
    }


def test_async_mocks_in_memory_pass() -> None:
    peer = MemoryPeer()

    async def check() -> Report:
        return await check_async_backend(AsyncPeerBackend(peer.make_peer, clock=RuntimeClock()), peer=peer)

    report = anyio.run(check, backend="trio")
    report.raise_for_failures()
    assert len(report.passed) > 60


def test_scripts_pass() -> None:
    peer = ScriptPeer(lambda script: ScriptedBackend(script, clock=RuntimeClock()))
    report = check_backend(ScriptedBackend([], clock=RuntimeClock()), peer=peer)
    report.raise_for_failures()
    assert len(report.passed) > 50


def test_async_scripts_pass() -> None:
    peer = ScriptPeer(lambda script: AsyncScriptedBackend(script, clock=RuntimeClock()))

    async def check() -> Report:
        return await check_async_backend(AsyncScriptedBackend([], clock=RuntimeClock()), peer=peer)

    report = anyio.run(check)
    report.raise_for_failures()
    assert len(report.passed) > 50


def test_servers_in_memory_pass() -> None:
    pytest.importorskip("h11")
    peer = ServerPeer()
    server = MockServer(peer.handler, clock=RuntimeClock())
    report = check_backend(server.backend, peer=peer)
    report.raise_for_failures()
    assert report["the-end-stays-the-end"].verdict == "passed"
    assert len(server.requests) >= len(report.passed) - 3  # sleeping, and what is refused, asks for nothing
    server.check()


def test_a_stream_is_checked_by_itself() -> None:
    report = check_stream(lambda host, port: TinyStream(TinyBackend().dial(host, port, _no_limit())))
    report.raise_for_failures()
    assert not [result for result in report.results if "Backend" in result.source]
    assert report["start-tls-within-tls"].verdict == "passed"


def test_an_async_stream_is_checked_by_itself() -> None:
    async def open_stream(host: str, port: int) -> AsyncTinyStream:
        stream = await AsyncTinyBackend().connect(host, port)
        assert isinstance(stream, AsyncTinyStream)
        return stream

    report = anyio.run(check_async_stream, open_stream)
    report.raise_for_failures()
    assert len(report.passed) > 30


def test_streams_without_a_backend_may_be_of_any_dialect() -> None:
    chunks: list[bytes] = []

    class Second(NetworkStreamInterface):
        def __init__(self) -> None:
            self.stream = MockStream(chunks)

        def read(self, max_bytes: int | None = None) -> bytes:
            return self.stream.read(max_bytes)

        def write(self, data: bytes) -> None:
            self.stream.write(data)

        def close(self) -> None:
            self.stream.close()

    check_stream(lambda host, port: Second(), peer=ListPeer(chunks)).raise_for_failures()  # type: ignore[arg-type, return-value] # the kit adapts it
    check_stream(
        lambda host, port: stream_from_interface(Second()), peer=ListPeer(chunks)
    ).raise_for_failures()


def test_a_plain_function_may_open_async_streams(run: Callable[..., Any]) -> None:
    chunks: list[bytes] = []

    async def check() -> Report:
        return await check_async_stream(lambda host, port: AsyncMockStream(chunks), peer=ListPeer(chunks))

    run(check).raise_for_failures()


def test_a_backend_of_the_second_dialect_is_adapted() -> None:
    report = check_backend(
        interface_from_backend(TinyBackend()), rules=["connect-tcp-connects", "start-tls-within-tls"]
    )
    assert [result.verdict for result in report.results] == ["passed", "passed"]


def _no_limit() -> lamina_interfaces.Limit:
    return lamina_interfaces.Limit(None, time.monotonic, "connect")


# --- a peer of one's own -----------------------------------------------------------------------------------


def test_a_peer_of_ones_own_may_speak_a_protocol_first() -> None:
    greeted = []

    class Polite(Place):
        async def greet(self, stream: Any) -> None:
            greeted.append(await stream.read(5))

    class PolitePeer(Peer):
        has_addresses = False

        def serve(self, acts: Any, *, unix: bool = False) -> Place:
            if acts != (Say(b"bye"), End()):
                raise NotApplicable("only one thing is ever said here")
            chunks[:] = [b"hello", b"bye"]
            return Polite("nowhere", 1)

    chunks: list[bytes] = []
    report = check_stream(lambda host, port: MockStream(chunks), peer=PolitePeer())
    assert [result.rule for result in report.passed] == ["the-end-stays-the-end"]
    assert report.failed == []
    assert greeted == [b"hello"]


# --- the rules ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_a_rule_quotes_the_docstring_that_makes_the_promise(name: str) -> None:
    owner, _, method = RULES[name].source.partition(".")
    described: Any = getattr(lamina_interfaces, owner)
    text = inspect.getdoc(getattr(described, method) if method else described)
    assert text is not None
    assert RULES[name].sentence in re.sub(r"\s+", " ", text)


def test_every_rule_is_checked_somewhere() -> None:
    blocking = {name for name, rule in RULES.items() if rule.where == "anywhere"}
    assert set(verdicts(check_backend(MockBackend([]), peer=ListPeer([])))) == blocking
    assert blocking < set(RULES)


def test_the_rules_to_check_may_be_chosen() -> None:
    report = check_backend(TinyBackend(), rules=iter(["the-end-stays-the-end"]))
    assert [result.rule for result in report.results] == ["the-end-stays-the-end"]
    with pytest.raises(ValueError, match="there is no rule 'nonsense'; there are "):
        check_backend(TinyBackend(), rules=["nonsense"])


def test_a_blocking_check_refuses_to_stop_an_event_loop(run: Callable[..., Any]) -> None:
    async def check() -> None:
        with pytest.raises(RuntimeError, match="would block the event loop"):
            check_backend(TinyBackend())

    run(check)


# --- the report --------------------------------------------------------------------------------------------

RESULTS = (
    Result("one", "NetworkStream.read", "It reads.", "passed", seconds=0.25),
    Result("second", "NetworkStream.close", "It closes.", "failed", "it did not", 0.5),
    Result("third", "NetworkStream.start_tls", "It is safe.", "not applicable", "there is no TLS"),
)


def test_a_report_is_a_table() -> None:
    assert str(Report("Backend", "threads", RESULTS)).splitlines() == [
        "ok   one",
        "FAIL second",
        '       NetworkStream.close: "It closes."',
        "       seen: it did not",
        "-    third   (there is no TLS)",
        "Backend under threads: 1 passed, 1 failed, 1 not applicable, in 0.8 s",
    ]


def test_a_report_raises_for_what_has_failed() -> None:
    with pytest.raises(ConformanceError) as caught:
        Report("Backend", "threads", RESULTS).raise_for_failures()
    assert isinstance(caught.value, AssertionError)
    assert "FAIL second" in str(caught.value)
    assert "third" not in str(caught.value)
    Report("Backend", "threads", RESULTS[::2]).raise_for_failures()


def test_a_result_is_found_by_its_rule() -> None:
    report = Report("Backend", "threads", RESULTS)
    assert report["second"] is RESULTS[1]
    with pytest.raises(KeyError):
        report["fourth"]


# --- the certificate ---------------------------------------------------------------------------------------


def test_the_certificate_outlives_us() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=AUTHORITY)
    (authority,) = context.get_ca_certs()
    end = ssl.cert_time_to_seconds(str(authority["notAfter"]))
    assert end - time.time() > 50 * 365 * 24 * 60 * 60
    assert SERVER_NAME.endswith(".example")


# --- the command -------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    line = [sys.executable, "-m", "lamina_mock.conformance", *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False, env=environment, timeout=50)


def test_the_command_prints_a_report() -> None:
    done = command("tiny_backends:TinyBackend", "--rule", "the-end-stays-the-end")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok   the-end-stays-the-end\nTinyBackend under threads: 1 passed, 0 failed")


def test_the_rules_are_not_checked_on_a_clock_that_stands_still(run: Callable[..., Any]) -> None:
    async def check() -> Report:
        return await check_async_backend(AsyncTinyBackend())

    with VirtualClock():
        with pytest.raises(RuntimeError, match="take real time"):
            check_backend(TinyBackend())
        with pytest.raises(RuntimeError, match="take real time"):
            run(check)


def test_a_single_rule_needs_no_list() -> None:
    report = check_backend(TinyBackend(), rules="the-end-stays-the-end")
    assert [result.rule for result in report.passed] == ["the-end-stays-the-end"]


@pytest.mark.parametrize("runtime", ["asyncio", "trio"])
def test_the_command_sees_by_itself_what_is_async(runtime: str) -> None:
    rule = ["--rule", "a-cancelled-read-loses-nothing"]
    done = command("tiny_backends:AsyncTinyBackend", "--runtime", runtime, *rule)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"AsyncTinyBackend under {runtime}: 1 passed" in done.stdout


def test_the_command_fails_for_a_broken_backend() -> None:
    done = command("lamina_interfaces:NetworkBackend", "--rule", "connect-tcp-connects")
    assert done.returncode == 1
    assert "seen: NotImplementedError was raised" in done.stdout


@pytest.mark.parametrize("mistake", ["nonsense", "no_such_module:x", "tiny_backends:Nothing"])
def test_a_mistake_in_the_command_has_an_exit_code_of_its_own(mistake: str) -> None:
    done = command(mistake)
    assert done.returncode == 2
    assert "cannot be imported" in done.stderr


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("lamina_mock:MockBackend", "cannot be called without arguments, or has failed: TypeError"),
        ("tiny_backends:monotonic", "returns no backend, but "),
        ("tiny_backends:DEFAULT_READ_SIZE", "'int' object is not callable"),
    ],
)
def test_a_factory_that_makes_no_backend_is_such_a_mistake(
    factory: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([factory])
    assert caught.value.code == 2
    assert text in capsys.readouterr().err


def test_an_unknown_rule_is_such_a_mistake() -> None:
    done = command("tiny_backends:TinyBackend", "--rule", "nonsense")
    assert done.returncode == 2
    assert "there is no rule 'nonsense'" in done.stderr
