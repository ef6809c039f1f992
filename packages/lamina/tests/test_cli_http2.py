"""The command `lamina` over HTTP/2, against a server in memory."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lamina import _cli
from lamina._cli import main
from lamina._cli_arguments import Exit
from lamina._demo_server import DemoServer
from lamina_mock import MockRequest, MockResponse, MockServer

OPTIONS = ["--http2", "--http2-prior-knowledge"]


def answer(request: MockRequest) -> MockResponse:
    if request.target == "/missing":
        return MockResponse(404, content="nothing here\n")
    return MockResponse(
        headers={"Content-Type": "text/plain"}, content=[f"{request.method} ", "", request.content]
    )


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[MockServer]:
    """The server behind `--backend memory`."""
    with MockServer(answer, http2=True) as server:
        monkeypatch.setattr(_cli, "load_backend", {"memory": server.backend}.__getitem__)
        yield server


def fetch(*arguments: str) -> int:
    return main(["--backend", "memory", *arguments])


@pytest.mark.parametrize(
    ("arguments", "version"),
    [
        (["https://example.com/"], "HTTP/1.1"),
        (["http://example.com/"], "HTTP/1.1"),
        (["--http2", "https://example.com/"], "HTTP/2"),
        (["--http2", "http://example.com/"], "HTTP/1.1"),
        (["--http2-prior-knowledge", "https://example.com/"], "HTTP/2"),
        (["--http2-prior-knowledge", "http://example.com/"], "HTTP/2"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_the_protocol_is_as_asked_for(
    arguments: list[str], version: str, memory: MockServer, capfd: pytest.CaptureFixture[str]
) -> None:
    memory.http2 = version == "HTTP/2" or "--http2" in arguments
    assert fetch("-v", *arguments) == 0
    out, err = capfd.readouterr()
    assert out == "GET "
    assert f"> GET / {version}\n" in err
    assert f"< {version} 200" in err
    (request,) = memory.requests
    assert request.http_version == version


def test_the_whole_story_is_told(memory: MockServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert fetch("-v", "--http2", "-d", "text", "https://example.com/path?q") == 0
    lines = capfd.readouterr().err.splitlines()
    assert "> POST /path?q HTTP/2" in lines
    assert "> Host: example.com" in lines
    answered = lines.index("< HTTP/2 200")
    assert lines.index(">") < answered
    assert lines[answered + 1 : answered + 4] == ["< content-type: text/plain", "<", "* on stream 1"]
    titles = [line.split()[0] for line in lines if line.endswith(" ms")]
    assert titles[-4:] == ["send", "wait", "body", "total"]
    assert [request.content for request in memory.requests] == [b"text"]


def test_a_status_has_no_reason(memory: MockServer, capfd: pytest.CaptureFixture[str]) -> None:
    assert fetch("--fail", "--http2", "https://example.com/missing") == Exit.HTTP_ERROR
    assert capfd.readouterr() == ("", "lamina: the server answered 404\n")


def test_an_offer_may_be_declined(
    secure_server: DemoServer, cacert: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["-v", "--http2", "--cacert", str(cacert), secure_server.url(host="localhost")]) == 0
    out, err = capfd.readouterr()
    assert out == "Hello, world!\n"
    assert ", ALPN http/1.1\n" in err
    assert "< HTTP/1.1 200 OK\n" in err


def test_a_server_that_knows_nothing_of_it_is_told_of(
    server: DemoServer, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--http2-prior-knowledge", "--timeout", "20", server.url()]) == Exit.RESPONSE
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "HTTP/1.1" in err


@pytest.mark.parametrize("option", OPTIONS)
def test_without_h2_it_says_what_to_install(
    option: str, server: DemoServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "h2", None)
    assert main([option, server.url()]) == Exit.ARGUMENT
    assert capfd.readouterr() == (
        "",
        f"lamina: {option} needs h2, which is not installed; install it with: pip install 'lamina[http2]'\n",
    )
    assert main([server.url()]) == 0
    assert server.connections == 1


def test_one_of_the_options_is_enough(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*OPTIONS, "http://localhost/"])
    assert caught.value.code == Exit.USAGE
    assert "not allowed with argument --http2" in capsys.readouterr().err
