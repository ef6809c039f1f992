"""Where the body goes: whole files or none, and a progress bar for whoever watches."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lamina._cli import main
from lamina._cli_arguments import Exit
from lamina._cli_output import Output, OutputError, Progress, progress_line
from lamina._demo_server import DemoServer

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")


class Terminal:
    """A text stream that says it is a terminal, and remembers."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("target", ["/cut", "/stalled", "/garbage", "/status/404"])
def test_a_failure_keeps_the_old_file_and_no_half_one(
    target: str, server: DemoServer, tmp_path: Path
) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"as it was")
    assert main(["-o", str(file), "--fail", "--timeout", "0.2", server.url(target)]) != 0
    assert file.read_bytes() == b"as it was"
    assert os.listdir(tmp_path) == ["body"]


def test_a_failure_leaves_no_file_where_there_was_none(server: DemoServer, tmp_path: Path) -> None:
    assert main(["-o", str(tmp_path / "body"), server.url("/cut")]) == Exit.RESPONSE
    assert os.listdir(tmp_path) == []


def test_a_file_is_replaced_and_keeps_its_mode(server: DemoServer, tmp_path: Path) -> None:
    file = tmp_path / "body"
    file.write_bytes(b"something longer than what comes")
    file.chmod(0o640)
    assert main(["-o", str(file), server.url()]) == 0
    assert file.read_bytes() == b"Hello, world!\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_a_link_stays_a_link(server: DemoServer, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert main(["-o", str(tmp_path / "link"), server.url()]) == 0
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "elsewhere").read_bytes() == b"Hello, world!\n"


def test_an_empty_body_is_an_empty_file(server: DemoServer, tmp_path: Path) -> None:
    assert main(["-X", "HEAD", "-o", str(tmp_path / "body"), server.url()]) == 0
    assert (tmp_path / "body").read_bytes() == b""


def test_a_device_is_written_as_it_is(server: DemoServer) -> None:
    assert main(["-o", os.devnull, server.url()]) == 0
    assert [name for name in os.listdir(os.path.dirname(os.devnull)) if name.endswith(".part")] == []


def test_a_full_device_is_told_of(server: DemoServer, capsys: pytest.CaptureFixture[str]) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no full device")
    assert main(["-o", "/dev/full", server.url()]) == Exit.OUTPUT
    assert capsys.readouterr().err == "lamina: cannot write /dev/full: No space left on device\n"


def test_nothing_is_asked_of_the_server_if_the_file_cannot_be_written(
    server: DemoServer, tmp_path: Path
) -> None:
    assert main(["-o", str(tmp_path / "no" / "body"), server.url()]) == Exit.OUTPUT
    assert server.connections == 0


def test_a_file_whose_name_was_taken_meanwhile_is_told_of(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"cannot write .*body: Is a directory"),
        Output(str(tmp_path / "body")) as output,
    ):
        output.write(b"data")
        (tmp_path / "body").mkdir()
        output.complete()
    assert os.listdir(tmp_path) == ["body"]


def test_a_partial_file_that_somebody_removed_is_no_failure(tmp_path: Path) -> None:
    with Output(str(tmp_path / "body")):
        (name,) = os.listdir(tmp_path)
        (tmp_path / name).unlink()
    assert os.listdir(tmp_path) == []


def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    file = tmp_path / "body"
    with Output(str(file)) as first, Output(str(file)) as second:
        first.write(b"A" * 10)
        second.write(b"B" * 4)
        first.write(b"A" * 10)
        first.complete()
        assert file.read_bytes() == b"A" * 20
        second.write(b"B" * 16)
        second.complete()
        assert file.read_bytes() == b"B" * 20
    assert os.listdir(tmp_path) == ["body"]


def test_the_file_of_somebody_else_is_not_touched(server: DemoServer, tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "body.part").symlink_to(tmp_path / "victim")
    (tmp_path / "other.part").write_bytes(b"my notes")
    assert main(["-o", str(tmp_path / "body"), server.url()]) == 0
    assert main(["-o", str(tmp_path / "other"), server.url("/cut")]) == Exit.RESPONSE
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert (tmp_path / "other.part").read_bytes() == b"my notes"
    assert not (tmp_path / "body").is_symlink()
    assert sorted(os.listdir(tmp_path)) == ["body", "body.part", "other.part", "victim"]


def test_a_name_that_is_taken_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "body.00000000.part").symlink_to(tmp_path / "victim")
    tokens = iter([b"\0\0\0\0", b"\0\0\0\1"])
    monkeypatch.setattr(os, "urandom", lambda size: next(tokens))
    with Output(str(tmp_path / "body")) as output:
        assert "body.00000001.part" in os.listdir(tmp_path)
        output.write(b"data")
        output.complete()
    assert (tmp_path / "victim").read_bytes() == b"precious"


@pytest.mark.skipif(os.name != "posix", reason="modes as POSIX has them")
def test_the_file_has_its_mode_from_the_beginning(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    secret.chmod(0o600)
    old = os.umask(0o027)
    try:
        with Output(str(secret)), Output(str(tmp_path / "new")) as output:
            modes = {name.partition(".")[0]: (tmp_path / name).stat().st_mode & 0o777
                     for name in os.listdir(tmp_path) if name.endswith(".part")}  # fmt: skip
            assert modes == {"secret": 0o600, "new": 0o640}
            output.complete()
    finally:
        os.umask(old)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["n" * 255, "\u00e9" * 127, "\U0001f600" * 63], ids=len)
def test_a_name_may_be_as_long_as_the_system_takes(name: str, tmp_path: Path) -> None:
    with Output(str(tmp_path / name)) as output:
        output.write(b"data")
        output.complete()
    assert os.listdir(tmp_path) == [name]


# --- progress ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("done", "total", "share", "filled"),
    [(0, 1000, "  0%", 0.0), (250, 1000, " 25%", 0.25), (1000, 1000, "100%", 1.0), (2000, 1000, "100%", 1.0)],
)
def test_the_bar_is_as_long_as_the_share(done: int, total: int, share: str, filled: float) -> None:
    line = progress_line(done, total, 1.0, 100)
    cells = line.count("█") + line.count("░")
    assert line.startswith(share + "  ")
    assert line.count("█") == round(filled * cells)
    assert cells == 40


@pytest.mark.parametrize("columns", [10, 30, 50, 60, 79, 200])
@pytest.mark.parametrize("total", [None, 0, 1, 10**15])
@pytest.mark.parametrize("done", [0, 1, 999, 10**6, 10**15])
def test_the_line_never_wraps(done: int, total: int | None, columns: int) -> None:
    assert len(progress_line(done, total, 3.0, columns)) <= columns


def test_sizes_and_times_are_for_reading() -> None:
    line = progress_line(1_500_000, 3_000_000_000, 1.0, 120)
    assert line.endswith("  1.5 MB of   3.0 GB    1.5 MB/s  33:19 left")
    assert progress_line(999_999, None, 2.0, 80) == "1000.0 kB  500.0 kB/s"


def test_the_bar_is_drawn_now_and_then_and_at_the_end() -> None:
    terminal = Terminal()
    progress = Progress(1000, terminal)  # type: ignore[arg-type] # enough of a text stream
    for _ in range(1000):
        progress.advance(1)
    progress.end()
    assert 2 <= terminal.text.count("\r") < 100
    assert terminal.text.startswith("\r  0%")
    assert "100%" in terminal.text
    assert terminal.text.endswith("\n")


def test_a_terminal_that_goes_away_is_no_failure() -> None:
    class Gone(Terminal):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    progress = Progress(1000, Gone())  # type: ignore[arg-type] # enough of a text stream
    progress.advance(500)
    progress.end()


def test_nothing_is_drawn_for_nobody() -> None:
    progress = Progress(1000, None)
    progress.advance(500)
    progress.end()


def test_nothing_is_drawn_before_the_first_byte() -> None:
    terminal = Terminal()
    Progress(1000, terminal).end()  # type: ignore[arg-type] # enough of a text stream
    assert terminal.text == ""


@pytest.mark.parametrize(("target", "last"), [("/large/3000000", "100%"), ("/chunked/50", "3.3 MB")])
def test_on_a_terminal_a_file_comes_with_a_bar(
    target: str, last: str, server: DemoServer, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "lamina", "-o", str(tmp_path / "body"), server.url(target)]
    parent, child = pty.openpty()
    try:
        done = subprocess.run(command, stdout=child, stderr=child, timeout=50, check=False)
        drawn = os.read(parent, 65536).decode()
    finally:
        os.close(parent)
        os.close(child)
    assert done.returncode == 0
    assert drawn.startswith("\r")
    assert drawn.endswith("\r\n")
    assert last in drawn.rpartition("\r")[0].rpartition("\r")[2]
    assert (tmp_path / "body").stat().st_size >= 3_000_000


def test_the_standard_output_comes_without_a_bar(server: DemoServer) -> None:
    parent, child = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lamina", server.url("/large/1000")],
            stdout=subprocess.PIPE,
            stderr=child,
            timeout=50,
            check=False,
        )
        os.set_blocking(parent, False)
        with pytest.raises(BlockingIOError):
            os.read(parent, 1)
    finally:
        os.close(parent)
        os.close(child)
    assert done.stdout == bytes(1000)
