"""The command `lamina`: what it sends, what it writes and where, and how it ends."""

import errno
import hashlib
import importlib.metadata
import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import lamina
from lamina import _cli
from lamina.__main__ import command
from lamina._cli import explain, main
from lamina._cli_arguments import MEANINGS, Exit, Options, parse
from lamina._demo_server import DemoServer
from lamina_interfaces import (
    ArgumentValueError,
    ConnectAttempt,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    LaminaError,
    LocalProtocolError,
    NetworkBackendInterface,
    ReadError,
    RemoteProtocolError,
    WriteError,
)

COMMAND = [sys.executable, "-X", "dev", "-m", "lamina"]


@contextmanager
def started(*arguments: str, stdout: int, stderr: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The command under way. Killed at the end, where a test has failed: on its own a `Popen` would wait for it."""
    with subprocess.Popen([*COMMAND, *arguments], stdout=stdout, stderr=stderr) as process:
        try:
            yield process
        finally:
            process.kill()


def run(*arguments: str, **options: object) -> "subprocess.CompletedProcess[bytes]":
    """The command in a process of its own."""
    return subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=50, check=False, **options)  # type: ignore[call-overload, no-any-return] # options of `subprocess.run`


LIMITS = ("0.3", "2", "10")
"""Seconds for `--timeout`, one after the other: a slow machine may need more to get as far as a test wants."""


# --- the body ----------------------------------------------------------------------------------------------


def test_the_body_goes_to_the_standard_output(
    server: DemoServer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main([server.url("/large/100000")]) == 0
    captured = capfdbinary.readouterr()
    assert captured.out == bytes(100_000)
    assert captured.err == b""


def test_it_fetches_over_tls(
    secure_server: DemoServer, cacert: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["--cacert", str(cacert), secure_server.url(host="localhost")]) == 0
    assert capfdbinary.readouterr() == (b"Hello, world!\n", b"")


def test_a_status_is_no_failure_unless_asked_for(
    server: DemoServer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main([server.url("/status/404")]) == 0
    assert capfdbinary.readouterr().out == b"status 404\n"
    assert main(["--fail", server.url("/status/404")]) == Exit.HTTP_ERROR
    assert capfdbinary.readouterr() == (b"", b"lamina: the server answered 404 Requested\n")
    assert main(["-f", server.url("/status/399")]) == 0


def test_a_file_is_written(
    server: DemoServer, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    file = tmp_path / "body"
    assert main(["-o", str(file), server.url("/large/300000")]) == 0
    assert file.read_bytes() == bytes(300_000)
    assert os.listdir(tmp_path) == ["body"]
    assert capfdbinary.readouterr() == (b"", b"")


def test_a_dash_is_the_standard_output(server: DemoServer, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["-o", "-", server.url()]) == 0
    assert capfdbinary.readouterr().out == b"Hello, world!\n"


# --- the request -------------------------------------------------------------------------------------------


def echo(server: DemoServer, capfdbinary: pytest.CaptureFixture[bytes], *arguments: str) -> list[str]:
    assert main([*arguments, server.url("/echo?q=1")]) == 0
    return capfdbinary.readouterr().out.decode("latin-1").splitlines()


def digest(body: bytes) -> str:
    return f"{len(body)} {hashlib.sha256(body).hexdigest()}"


def test_a_plain_request(server: DemoServer, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert echo(server, capfdbinary) == [
        "GET /echo?q=1",
        f"host: 127.0.0.1:{server.port}",
        f"user-agent: lamina/{lamina.__version__}",
        "accept: */*",
        "",
        digest(b""),
    ]


def test_headers_are_added_and_replace_the_usual_ones(
    server: DemoServer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    headers = ["-H", "accept: text/html", "-H", "X-One:1", "-H", "X-Two: b: c", "-H", "X-Empty:"]
    lines = echo(server, capfdbinary, *headers)
    assert lines[1:-2] == [
        f"host: 127.0.0.1:{server.port}",
        f"user-agent: lamina/{lamina.__version__}",
        "accept: text/html",
        "x-one: 1",
        "x-two: b: c",
        "x-empty: ",
    ]


def test_the_method_is_as_given(server: DemoServer, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert echo(server, capfdbinary, "-X", "DELETE")[0] == "DELETE /echo?q=1"


def test_data_is_posted(server: DemoServer, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    lines = echo(server, capfdbinary, "-d", "naïve & plain")
    assert lines[0] == "POST /echo?q=1"
    assert "content-length: 14" in lines
    assert lines[-1] == digest("naïve & plain".encode())


def test_data_with_another_method(server: DemoServer, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert echo(server, capfdbinary, "-X", "PUT", "-d", "")[:1] == ["PUT /echo?q=1"]


def test_a_file_is_sent_byte_for_byte(
    server: DemoServer, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    content = os.urandom(200_000) + b"\r\n"
    (tmp_path / "upload").write_bytes(content)
    lines = echo(server, capfdbinary, "-d", f"@{tmp_path / 'upload'}")
    assert "content-length: 200002" in lines
    assert "transfer-encoding: chunked" not in lines
    assert lines[-1] == digest(content)


def test_a_file_is_sent_in_chunks_on_request(
    server: DemoServer, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "upload").write_bytes(b"abc")
    data = ["-H", "Transfer-Encoding: chunked", "-d", f"@{tmp_path / 'upload'}"]
    lines = echo(server, capfdbinary, *data)
    assert "transfer-encoding: chunked" in lines
    assert lines[-1] == digest(b"abc")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_sent_in_chunks(
    server: DemoServer, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"through a pipe",))
    writer.start()
    lines = echo(server, capfdbinary, "-d", f"@{pipe}")
    writer.join()
    assert "transfer-encoding: chunked" in lines
    assert lines[-1] == digest(b"through a pipe")


def test_the_standard_input_is_sent(server: DemoServer) -> None:
    done = run("-d", "@-", server.url("/echo"), input=b"from a pipe")
    assert done.stderr == b""
    assert done.stdout.decode().splitlines()[-1] == digest(b"from a pipe")


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no unix sockets")
def test_a_unix_socket_is_connected_to(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = str(tmp_path / "socket")
    with DemoServer(path=path) as server:
        assert main(["-v", "--uds", path, "http://localhost/echo"]) == 0
        assert server.connections == 1
    captured = capfdbinary.readouterr()
    assert b"host: localhost\n" in captured.out
    assert f"* connected to {path}\n" in captured.err.decode()
    assert "\n  unix " in captured.err.decode()


def test_a_backend_is_chosen_by_name(
    server: DemoServer, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    class Elsewhere(NetworkBackendInterface):
        def connect(self, host: str, port: int) -> object:  # type: ignore[override] # any stream will do
            wanted.append((host, port))
            return lamina.MockStream([b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nmock"])

    wanted: list[tuple[str, int]] = []
    assert main(["--backend", "sync", server.url()]) == 0
    monkeypatch.setattr(_cli, "load_backend", {"elsewhere": Elsewhere()}.__getitem__)
    assert main(["--backend", "elsewhere", "-v", "http://example.com/"]) == 0
    captured = capfdbinary.readouterr()
    assert captured.out == b"Hello, world!\nmock"
    assert wanted == [("example.com", 80)]
    assert b"* connected\n" in captured.err


def test_an_async_backend_is_refused(
    server: DemoServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_cli, "load_backend", lambda name: lamina.AsyncNetworkBackend())
    assert main(["--backend", "trio", server.url()]) == Exit.ARGUMENT
    assert "'trio' is for async code" in capfd.readouterr().err
    assert server.connections == 0


def test_the_connection_is_closed_afterwards(server: DemoServer) -> None:
    for _ in range(3):
        assert main(["-o", os.devnull, server.url("/chunked/3")]) == 0
    assert server.connections == 3


# --- how it ends -------------------------------------------------------------------------------------------

Arguments = Callable[[DemoServer, DemoServer, Path], list[str]]

FAILURES: list[tuple[str, Arguments, Exit, str]] = [
    ("no such scheme", lambda a, b, t: ["ftp://localhost/"], Exit.ARGUMENT, "unsupported protocol 'ftp://'"),
    (
        "no scheme",
        lambda a, b, t: ["localhost/a"],
        Exit.ARGUMENT,
        "no complete URL; write https://localhost/a",
    ),
    ("no host", lambda a, b, t: ["http:///a"], Exit.ARGUMENT, "names no host"),
    (
        "a space in the URL",
        lambda a, b, t: ["http://localhost/a b"],
        Exit.ARGUMENT,
        "contains ' ' at position 18",
    ),
    ("a port that cannot be", lambda a, b, t: ["http://localhost:99999/"], Exit.ARGUMENT, "99999"),
    (
        "a password in the URL",
        lambda a, b, t: [a.url(host="u:p@127.0.0.1")],
        Exit.ARGUMENT,
        "-H 'Authorization",
    ),
    ("a bad header", lambda a, b, t: ["-H", "a b: c", a.url()], Exit.ARGUMENT, "header"),
    ("a bad method", lambda a, b, t: ["-X", "GE T", a.url()], Exit.ARGUMENT, "method"),
    ("no file to send", lambda a, b, t: ["-d", f"@{t / 'no'}", a.url()], Exit.ARGUMENT, "cannot read"),
    ("a folder to send", lambda a, b, t: ["-d", f"@{t}", a.url()], Exit.ARGUMENT, "cannot read"),
    ("no certificates", lambda a, b, t: ["--cacert", str(t / "no"), b.url()], Exit.ARGUMENT, "cannot read"),
    ("no name of certificates", lambda a, b, t: ["--cacert", "", b.url()], Exit.ARGUMENT, "names no file"),
    ("no name of a socket", lambda a, b, t: ["--uds", "", a.url()], Exit.ARGUMENT, "names no socket"),
    ("bad certificates", lambda a, b, t: ["--cacert", __file__, b.url()], Exit.ARGUMENT, "in PEM form"),
    ("an unknown backend", lambda a, b, t: ["--backend", "nosuch", a.url()], Exit.ARGUMENT, "'nosuch'"),
    ("a refused connection", lambda a, b, t: ["http://127.0.0.1:1/"], Exit.CONNECT, "refused"),
    ("an unknown name", lambda a, b, t: ["http://unknown.invalid/"], Exit.CONNECT, "check the name"),
    ("no unix socket", lambda a, b, t: ["--uds", str(t / "no"), a.url()], Exit.CONNECT, "No such file"),
    ("an untrusted certificate", lambda a, b, t: [b.url(host="localhost")], Exit.TLS, "with --cacert FILE"),
    (
        "a server without TLS",
        lambda a, b, t: [a.url().replace("http", "https")],
        Exit.TLS,
        "does the server speak TLS on this port?",
    ),
    (
        "no answer",
        lambda a, b, t: ["--timeout", "0.3", a.url("/silent")],
        Exit.TIMEOUT,
        "more time with --timeout",
    ),
    (
        "half an answer",
        lambda a, b, t: ["--timeout", "0.3", a.url("/stalled")],
        Exit.TIMEOUT,
        "gave up after ",
    ),
    ("an answer cut short", lambda a, b, t: [a.url("/cut")], Exit.RESPONSE, "received 10 bytes, expected 20"),
    ("no HTTP", lambda a, b, t: [a.url("/garbage")], Exit.RESPONSE, "speaks SSH, not HTTP"),
    (
        "no folder",
        lambda a, b, t: ["-o", str(t / "no" / "x"), a.url()],
        Exit.OUTPUT,
        "No such file or directory",
    ),
    ("a folder for a file", lambda a, b, t: ["-o", str(t), a.url()], Exit.OUTPUT, "Is a directory"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES]
)
def test_a_failure_is_one_line_and_a_code(
    arguments: Arguments,
    code: Exit,
    words: str,
    server: DemoServer,
    secure_server: DemoServer,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    no_names: None,
) -> None:
    assert main(arguments(server, secure_server, tmp_path)) == code
    text = capfdbinary.readouterr().err.decode()
    assert text.startswith("lamina: ")
    assert text.count("\n") == 1
    assert text.endswith("\n")
    assert words in text
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--nonsense", "http://localhost/"],
        ["--timeout", "soon", "http://localhost/"],
        ["--timeout", "0", "http://localhost/"],
        ["--timeout", "nan", "http://localhost/"],
        ["-H", "no colon", "http://localhost/"],
        ["-H", ": no name", "http://localhost/"],
        ["--insecure", "--cacert", "file", "https://localhost/"],
        ["http://localhost/", "http://localhost/"],
        ["--verb", "http://localhost/"],
        ["-X", "", "http://localhost/"],
    ],
    ids=" ".join,
)
def test_nonsense_is_answered_with_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == Exit.USAGE
    assert capsys.readouterr().err.startswith("usage: lamina ")


def test_help_tells_every_code_and_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert set(MEANINGS) == set(Exit)
    for code, meaning in MEANINGS.items():
        assert f"{code.value:>3}  {meaning}\n" in text
    for option in (
        "-o",
        "-X",
        "-H",
        "-d",
        "-f",
        "-v",
        "--timeout",
        "--uds",
        "--cacert",
        "--insecure",
        "--http2",
        "--http2-prior-knowledge",
        "--backend",
    ):
        assert f"  {option}" in text


def test_the_codes_are_a_promise() -> None:
    assert {code.name: code.value for code in Exit} == {
        "OK": 0,
        "HTTP_ERROR": 1,
        "USAGE": 2,
        "ARGUMENT": 3,
        "CONNECT": 4,
        "TLS": 5,
        "TIMEOUT": 6,
        "RESPONSE": 7,
        "OUTPUT": 8,
        "INTERRUPTED": 130,
    }


ADVICE = [
    ("localhost", "write https://localhost"),
    ("localhost:8080/x?y", "write https://localhost:8080/x?y"),
    ("//localhost/x", "write https://localhost/x"),
    ("http:/localhost/", "write http://localhost/"),
    ("HTTPS:localhost", "write https://localhost"),
    ("/etc", "write https://HOST/etc"),
    ("", "write https://HOST/"),
    ("http://u:p@h/path?q=1", "write http://h/path?q=1 and -H 'Authorization: Basic …'"),
    ("http://u:p@h?q=/1", "write http://h?q=/1 and -H"),
    ("https://u@h", "write https://h/ and -H"),
]


@pytest.mark.parametrize(("url", "advice"), ADVICE)
def test_the_advice_is_a_url_that_works(url: str, advice: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([url]) == Exit.ARGUMENT
    assert advice in capfd.readouterr().err


ERRORS: list[tuple[LaminaError, Exit]] = [
    (ConnectTimeout(phase="connect"), Exit.TIMEOUT),
    (ConnectTimeout(phase="tls"), Exit.TIMEOUT),
    (DeadlineExceeded(), Exit.TIMEOUT),
    (ConnectError(phase="dns"), Exit.CONNECT),
    (ConnectError(phase="connect"), Exit.CONNECT),
    (ConnectError(), Exit.CONNECT),
    (ConnectError(phase="tls"), Exit.TLS),
    (ReadError(phase="read"), Exit.RESPONSE),
    (WriteError(phase="write"), Exit.RESPONSE),
    (RemoteProtocolError(), Exit.RESPONSE),
    (LocalProtocolError(), Exit.ARGUMENT),
    (ArgumentValueError(), Exit.ARGUMENT),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=repr)
def test_an_error_has_its_code(error: LaminaError, code: Exit) -> None:
    failure = explain(error, parse(["http://localhost/"]))
    assert failure.code is code
    assert failure.text


def test_the_addresses_are_told_where_there_were_several() -> None:
    one = ConnectAttempt("192.0.2.1:80", errno.ECONNREFUSED, 0.1)
    two = ConnectAttempt("[2001:db8::1]:80", errno.ECONNREFUSED, 0.1)
    options = parse(["http://localhost/"])
    assert explain(ConnectError("refused", attempts=[one]), options).text == "refused"
    assert explain(ConnectError("refused", attempts=[one, two]), options).text == (
        "refused (tried 192.0.2.1:80, [2001:db8::1]:80)"
    )


def test_verbose_tells_every_circumstance() -> None:
    error = ConnectError("refused", phase="connect", origin="http://localhost:80", elapsed=0.5)
    assert explain(error, parse(["-v", "http://localhost/"])).text == str(error)
    assert explain(error, parse(["http://localhost/"])).text == "refused"


TLS_VERDICTS = [
    (10, "check the date"),
    (62, "no certificate for this name"),
    (64, "no certificate for this name"),
    (18, "--cacert FILE"),
    (20, "--cacert FILE"),
]


@pytest.mark.parametrize(("verdict", "advice"), TLS_VERDICTS)
def test_the_advice_fits_what_is_wrong_with_the_certificate(verdict: int, advice: str) -> None:
    error = ConnectError("not accepted", phase="tls")
    error.__cause__ = OSError()
    error.__cause__.verify_code = verdict  # type: ignore[attr-defined] # as `ssl.SSLCertVerificationError` has it
    assert advice in explain(error, Options(verbose=False, timeout=None)).text


def test_a_wrong_name_is_told_from_an_unknown_authority(
    secure_server: DemoServer,
    cacert: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look_up(host: bytes, port: int, family: int, *rest: object, **options: object) -> list[object]:
        found = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))
        return [found] if family == socket.AF_INET else []

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert main(["--cacert", str(cacert), secure_server.url(host="other.test")]) == Exit.TLS
    assert b"the server has no certificate for this name\n" in capfdbinary.readouterr().err


def test_a_peer_cannot_command_the_terminal(
    server: DemoServer, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["-v", server.url("/escape")]) == 0
    error = capfdbinary.readouterr().err.decode()
    assert "\n< X-Title: \\x9b31mred\n" in error
    assert [each for each in error if not each.isprintable() and each != "\n"] == []


def test_an_error_cannot_command_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["\x1b[31mred"]) == Exit.ARGUMENT
    assert capfd.readouterr().err.startswith("lamina: '\\x1b[31mred' is no complete URL")
    assert main(["-o", "no such folder/\x1b[31mred", "http://127.0.0.1/"]) == Exit.OUTPUT
    assert capfd.readouterr().err.startswith("lamina: cannot write no such folder/\\x1b[31mred: ")


# --- the standard output, and signals ----------------------------------------------------------------------


def test_a_reader_that_has_enough_ends_it_quietly(server: DemoServer) -> None:
    with started(server.url("/large/50000000"), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == bytes(5)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(50) == Exit.OUTPUT


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")
def test_a_full_disk_is_told_of(server: DemoServer) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, server.url()], stdout=full, stderr=subprocess.PIPE, timeout=50, check=False
        )
    assert done.returncode == Exit.OUTPUT
    assert done.stderr == b"lamina: cannot write to the standard output: No space left on device\n"


@pytest.mark.skipif(os.name != "posix", reason="the shell's way to close a descriptor")
def test_a_closed_output_is_told_of(server: DemoServer) -> None:
    # `sys.stdout` is None in such a process; a shell makes it with `>&-`.
    command = f"{' '.join(COMMAND)} {server.url()} >&-"
    done = subprocess.run(command, shell=True, stderr=subprocess.PIPE, timeout=50, check=False)
    assert done.returncode == Exit.OUTPUT
    assert done.stderr == b"lamina: cannot write to the standard output: it is closed\n"


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_an_interrupt_leaves_no_half_file(server: DemoServer, tmp_path: Path) -> None:
    arguments = ["-v", "-o", str(tmp_path / "body"), server.url("/stalled")]
    with started(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line == b"<\n":  # the head is there, and the body will never be
                break
        (name,) = os.listdir(tmp_path)
        assert name.endswith(".part")
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(50) == Exit.INTERRUPTED
    assert rest.endswith(b"\nlamina: interrupted\n")
    assert b"Traceback" not in rest
    assert os.listdir(tmp_path) == []


def test_without_a_standard_error_it_still_works(server: DemoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["-v", "-o", os.devnull, server.url()]) == 0
    assert main(["-v", "-o", os.devnull, server.url("/cut")]) == Exit.RESPONSE


def test_a_terminal_of_few_letters_gets_what_it_can_show(
    server: DemoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, encoding="ascii"))
    assert main(["-v", "-o", os.devnull, server.url("/escape")]) == 0
    sys.stderr.flush()
    assert b"#" in raw.getvalue()
    assert b"X-Name: caf\\xe9\n" in raw.getvalue()
    assert main(["http://localhost/ü"]) == Exit.ARGUMENT


posix = pytest.mark.skipif(os.name != "posix", reason="descriptors and signals as POSIX has them")
full_device = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no full device")


@posix
@pytest.mark.parametrize(
    ("redirection", "words"),
    [("<&-", b"standard input: it is closed"), ("0>/dev/null", b"standard input: Bad file descriptor")],
)
def test_an_input_that_cannot_be_read_is_told_of(redirection: str, words: bytes, server: DemoServer) -> None:
    done = subprocess.run(
        f"{' '.join(COMMAND)} -d @- {server.url('/echo')} {redirection}",
        shell=True, capture_output=True, timeout=50, check=False,
    )  # fmt: skip
    assert done.returncode == Exit.ARGUMENT
    assert done.stderr == b"lamina: cannot read the " + words + b"\n"
    assert server.connections == 0


@full_device
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&0"], ids=["full", "closed", "gone"])
def test_a_standard_error_that_takes_nothing_changes_nothing(
    redirection: str, unbuffered: str, server: DemoServer
) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # as the descriptor 0 it is a pipe that nobody reads: what `2> >(true)` becomes
    try:
        for arguments, code, body in (
            (["http://127.0.0.1:1/"], Exit.CONNECT, b""),
            (["-v", server.url()], Exit.OK, b"Hello, world!\n"),
            (["-v", "--fail", server.url("/status/404")], Exit.HTTP_ERROR, b""),
            (["--nonsense"], Exit.USAGE, b""),
        ):
            done = subprocess.run(
                f"{' '.join(COMMAND)} {' '.join(arguments)} {redirection}",
                shell=True, stdin=writer, stdout=subprocess.PIPE, timeout=50, check=False,
                env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            )  # fmt: skip
            assert done.returncode == code
            assert done.stdout == body or code is Exit.USAGE  # argparse may fall back on it
    finally:
        os.close(writer)


@posix
def test_the_time_limit_is_for_a_silent_input_too(server: DemoServer) -> None:
    reader, writer = os.pipe()
    text = b""
    try:
        for limit in LIMITS:
            done = run("--timeout", limit, "-d", "@-", server.url("/echo"), stdin=reader)
            assert done.returncode == Exit.TIMEOUT
            assert b"Traceback" not in done.stderr
            text = done.stderr
            if b"waiting for the data" in text:
                break
    finally:
        os.close(reader)
        os.close(writer)
    assert b"waiting for the data to send; give it more time" in text


@posix
@pytest.mark.parametrize("method", [["-d"], ["-o"]], ids=["read", "written"])
def test_the_time_limit_is_for_a_pipe_whose_other_end_is_closed(
    method: list[str], server: DemoServer, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe")
    name = f"{'@' if method == ['-d'] else ''}{tmp_path / 'pipe'}"
    assert run("--timeout", "0.3", *method, name, server.url("/echo")).returncode == Exit.TIMEOUT
    assert os.listdir(tmp_path) == ["pipe"]


@posix
def test_the_time_limit_is_for_a_reader_that_stalls_too(server: DemoServer) -> None:
    text = ""
    for limit in LIMITS:
        arguments = ["-v", "--timeout", limit, server.url("/large/50000000")]
        with started(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            text = process.stderr.read().decode()
            assert process.wait(50) == Exit.TIMEOUT
        assert text.endswith("give it more time with --timeout\n")
        if "waiting for the output" in text:
            break
    assert "waiting for the output to be read" in text
    assert "\n  body " in text


@posix
def test_a_slow_pipe_gets_all_of_it_within_the_limit(server: DemoServer) -> None:
    done = run("--timeout", "40", server.url("/large/3000000"))
    assert (done.returncode, done.stdout) == (0, bytes(3_000_000))
    done = run("--timeout", "40", "-d", "@-", server.url("/echo"), input=b"x" * 300_000)
    assert done.stdout.decode().splitlines()[-1] == digest(b"x" * 300_000)


@posix
def test_a_pipe_that_does_not_block_is_waited_for(server: DemoServer) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with started(server.url("/large/3000000"), stdout=writer) as process:
        os.close(writer)
        with open(reader, "rb") as file:
            assert file.read() == bytes(3_000_000)
        assert process.wait(50) == 0


def test_help_is_for_every_terminal() -> None:
    for encoding in ("ascii", "latin-1", "utf-8"):
        done = run("--help", env={**os.environ, "PYTHONIOENCODING": encoding})
        assert (done.returncode, done.stderr) == (0, b"")
        assert "exit codes:" in done.stdout.decode(encoding)


INTERRUPTED_IMPORT = """
import importlib.abc, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
sys.argv[1:] = ["http://127.0.0.1:1/"]
from lamina.__main__ import command
sys.exit(command())
"""


@posix
@pytest.mark.parametrize(
    "module",
    [
        "lamina._cli",
        "argparse",
        "lamina_pool",
        "lamina_pool._http11",
        "lamina_sync_backend",
        "lamina_timeouts",
    ],
)
def test_an_interrupt_while_it_starts_is_no_traceback(module: str) -> None:
    script = INTERRUPTED_IMPORT.format(module=module)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (130, b"lamina: interrupted\n")


@posix
def test_an_interrupt_that_the_shell_ignores_stays_ignored(server: DemoServer) -> None:
    script = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)" + INTERRUPTED_IMPORT.format(
        module="lamina_pool"
    ).replace("http://127.0.0.1:1/", server.url())
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"Hello, world!\n", b"")


# --- as a command ------------------------------------------------------------------------------------------


def test_it_is_installed_as_a_command() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="lamina")
    assert script.load() is command


def test_the_module_is_the_command() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"lamina {lamina.__version__}\n", b"")


def test_it_runs_in_a_process_of_its_own(secure_server: DemoServer, cacert: Path) -> None:
    done = run("-v", "--cacert", str(cacert), secure_server.url("/status/200", host="localhost"))
    assert (done.returncode, done.stdout) == (0, b"status 200\n")
    assert b"Warning" not in done.stderr


def test_help_needs_no_layer() -> None:
    code = (
        "import sys\nfrom lamina._cli import main\n"
        "try: main(['--version'])\nexcept SystemExit: pass\n"
        "print([name for name in ('ssl', 'lamina_pool', 'h11', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
