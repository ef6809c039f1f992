"""The demonstration runs, and notices when something is wrong."""

import subprocess
import sys
import time
from typing import Any

import pytest

from lamina import demo
from lamina._demo_backends import CONTENDERS, Contender, Cut, Findings, Scene, findings
from lamina._demo_server import DemoServer
from lamina_interfaces import LaminaError


def test_it_shows_every_row_and_ends_by_itself() -> None:
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-m", "lamina.demo"],
        capture_output=True,
        timeout=50,
        check=False,
    )
    assert time.monotonic() - begin < 45  # three seconds of its own on an idle machine
    output = done.stdout.decode("utf-8")
    assert done.returncode == 0, output + done.stderr.decode()
    assert done.stderr == b""
    for row in demo.ROWS:
        assert row.what in output
    for contender in CONTENDERS:
        line = next(line for line in output.splitlines() if line.startswith(contender.name))
        assert "phase read, " in line
        assert line.endswith(" ms, then 200")
    assert "!!" not in output
    assert [line.split()[0] for line in output.splitlines() if "█" in line] == [
        "DNS",
        "TCP",
        "TLS",
        "wait",
        "body",
    ]
    assert output.endswith("all as it should be\n")


def test_a_row_that_is_not_as_it_should_be_is_marked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(stage: demo.Stage) -> demo.Seen:
        raise LaminaError("out of order")

    rows = (
        demo.Row("right", demo.one_request, 1),
        demo.Row("raises", broken, 0),
        demo.Row("wrong", lambda stage: demo.Seen("something else", False), 0),
        demo.Row("too many connections", demo.stale_connection, 1),
    )
    monkeypatch.setattr(demo, "ROWS", rows)
    monkeypatch.setattr(demo, "CONTENDERS", ())
    assert demo.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("right ") and "!!" not in line]
    assert [line for line in lines if line.startswith("raises ") and "!! LaminaError: out of order" in line]
    assert [line for line in lines if line.startswith("wrong ") and "!! something else" in line]
    assert [line for line in lines if line.startswith("too many connections ") and "2 not 1" in line]
    assert lines[-1] == "3 of 4 rows are not as they should be"


GOOD = Cut(0.2, "read", (0, 0), 200)


def found(wrong: int = 0, deadline: Cut = GOOD, cancelled: Cut = GOOD) -> Findings:
    return findings(1.0, 1.0, 1.0, wrong, deadline, cancelled)


@pytest.mark.parametrize(
    "changes",
    [
        {"wrong": 1},
        {"deadline": GOOD._replace(seconds=0.1)},
        {"deadline": GOOD._replace(seconds=60.0)},
        {"deadline": GOOD._replace(phase="connect")},
        {"deadline": GOOD._replace(phase=None)},
        {"deadline": GOOD._replace(status=503)},
        {"cancelled": GOOD._replace(phase=None)},
        {"cancelled": GOOD._replace(counts=(1, 0))},
        {"cancelled": GOOD._replace(counts=(0, 1))},
    ],
)
def test_a_backend_that_is_not_as_it_should_be_is_marked(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(scene: Scene) -> Findings:
        raise LaminaError("out of order")

    contenders = (
        Contender("good", lambda scene: found()),
        Contender("bad", lambda scene: found(**changes)),
        Contender("raises", broken),
    )
    monkeypatch.setattr(demo, "ROWS", ())
    monkeypatch.setattr(demo, "CONTENDERS", contenders)
    assert demo.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("good ") and "!!" not in line]
    assert [line for line in lines if line.startswith("bad ") and "!!" in line]
    assert [line for line in lines if line.startswith("raises ") and "!! LaminaError: out of order" in line]
    assert lines[-1] == "2 of 3 rows are not as they should be"


def test_without_a_certificate_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    monkeypatch.setattr(demo, "ROWS", (demo.Row("over TLS", demo.raw_tls_stream, 1, needs=demo.TRUSTME),))
    monkeypatch.setattr(demo, "CONTENDERS", ())
    assert demo.main([]) == 0
    output = capsys.readouterr().out
    assert "left out: needs pip install trustme" in output
    assert "GET http://demo.test" in output
    assert output.endswith("all as it should be; 1 left out\n")


@pytest.mark.parametrize(
    ("package", "kept", "left_out"),
    [
        ("lamina_mock", "ROWS", 3),
        ("h2", "ROWS", 2),
        ("trustme", "ROWS", 3),
        ("trustme", "CONTENDERS", 0),  # without TLS
        ("lamina_async_backends", "CONTENDERS", 5),
        ("anyio", "CONTENDERS", 2),
        ("trio", "CONTENDERS", 2),
        ("uvloop", "CONTENDERS", 1),
    ],
)
def test_what_is_not_installed_is_left_out(package: str, kept: str, left_out: int) -> None:
    emptied = "CONTENDERS" if kept == "ROWS" else "ROWS"
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"import lamina.demo as demo; demo.{emptied} = (); sys.exit(demo.main([]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=50, check=False)
    output = done.stdout.decode("utf-8")
    assert (done.returncode, done.stderr) == (0, b""), output
    assert output.count("left out: needs pip install ") == left_out
    verdict = f"all as it should be; {left_out} left out\n" if left_out else "all as it should be\n"
    assert output.endswith(verdict)


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), (["--nonsense"], 2), (["more"], 2)])
def test_it_has_no_options(arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        demo.main(arguments)
    assert caught.value.code == code
    captured = capsys.readouterr()
    assert "usage: python -m lamina.demo" in captured.out + captured.err


def test_a_connection_is_counted_before_the_server_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    never = property(lambda server: 0, lambda server, count: None)  # its thread has not had its turn yet
    monkeypatch.setattr(DemoServer, "connections", never, raising=False)
    with DemoServer() as server:
        stage = demo.Stage(server, None, None)
        assert demo.second_address(stage).as_expected
        assert stage.connections == 1  # without waiting for anybody


def test_the_resolver_knows_nobody_else() -> None:
    with pytest.raises(OSError, match="unknown host"):
        demo.DemoResolver().resolve("example.com", 80, 2)


def test_the_server_leaves_nothing_behind() -> None:
    import threading

    before = threading.active_count()
    with DemoServer() as server:
        stage = demo.Stage(server, None, None)
        assert demo.one_request(stage).as_expected
    assert (
        threading.active_count() <= before + 2
    )  # the resolver's idle threads, which live on for some seconds
