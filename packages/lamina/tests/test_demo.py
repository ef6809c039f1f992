"""The demonstration runs, and notices when something is wrong."""

import subprocess
import sys
import time

import pytest

from lamina import demo
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
    assert time.monotonic() - begin < 40  # ten seconds of its own on an idle machine
    output = done.stdout.decode("utf-8")
    assert done.returncode == 0, output + done.stderr.decode()
    assert done.stderr == b""
    for row in demo.ROWS:
        assert row.what in output
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
    assert demo.main([]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("right ") and "!!" not in line]
    assert [line for line in lines if line.startswith("raises ") and "!! LaminaError: out of order" in line]
    assert [line for line in lines if line.startswith("wrong ") and "!! something else" in line]
    assert [line for line in lines if line.startswith("too many connections ") and "2 not 1" in line]
    assert lines[-1] == "3 of 4 rows are not as they should be"


def test_without_a_certificate_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    monkeypatch.setattr(demo, "ROWS", (demo.Row("over TLS", demo.raw_tls_stream, 1, needs=demo.TRUSTME),))
    assert demo.main([]) == 0
    output = capsys.readouterr().out
    assert "left out: needs pip install trustme" in output
    assert "GET http://demo.test" in output
    assert output.endswith("all as it should be; 1 left out\n")


@pytest.mark.parametrize("package", ["lamina_mock", "trustme"])
def test_what_is_not_installed_is_left_out(package: str) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None\nimport lamina.demo as demo; sys.exit(demo.main([]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=50, check=False)
    output = done.stdout.decode("utf-8")
    assert (done.returncode, done.stderr) == (0, b""), output
    assert "left out: needs pip install " in output
    assert output.endswith(" left out\n")


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
