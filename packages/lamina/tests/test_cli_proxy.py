"""The command `lamina` by way of a proxy: which one it takes, what it sends there, and what it tells of it."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lamina import _cli
from lamina._cli import main
from lamina._cli_arguments import Exit
from lamina._demo_server import DemoServer
from lamina_mock import Script, ScriptedBackend

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
OPENED = b"HTTP/1.1 200 Connection established\r\n\r\n"
BASIC = "Basic dXNlcjpzZWNyZXQ1"
"""`user:secret5` in base64 (RFC 7617)."""

SOCKS_NO_AUTH = (b"\x05\x01\x00", b"\x05\x00")
SOCKS_CONNECTED = b"\x05\x00\x00\x01\x7f\x00\x00\x01\x1f\x90"

Play = Callable[[Script, str], ScriptedBackend]


@pytest.fixture(autouse=True)
def _no_proxies_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "REQUEST_METHOD":
            monkeypatch.delenv(name)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Gives the command a backend that plays a script, for connections to one place and to no other."""

    def play(script: Script, place: str) -> ScriptedBackend:
        host, _, port = place.rpartition(":")
        backend = ScriptedBackend({(host, int(port)): script})
        monkeypatch.setattr(_cli, "load_backend", {"script": backend}.__getitem__)
        return backend

    return play


def fetch(*arguments: str) -> int:
    return main(["--backend", "script", *arguments])


def rows(lines: list[str]) -> list[str]:
    """The titles of the waterfall."""
    return [line.split()[0] for line in lines if line.endswith(" ms")]


def forwarding(target: str = "http://host.example/path?q", **headers: str) -> Script:
    return Script("forward").expect_request("GET", target, headers=headers).reply(ANSWER)


def tunnel(**headers: str) -> Script:
    script = Script("tunnel").expect_request("CONNECT", "host.example:443", headers=headers).reply(OPENED)
    return script.tls().expect_request("GET", "/path?q").reply(ANSWER)


def socks(address: bytes) -> Script:
    script = Script("socks").expect(SOCKS_NO_AUTH[0]).reply(SOCKS_NO_AUTH[1])
    return script.expect(b"\x05\x01\x00" + address).reply(SOCKS_CONNECTED)


# --- the ways ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["-x", "http://proxy.example:3128"],
        ["--proxy", "proxy.example:3128"],
        ["--proxy=http://proxy.example:3128/", "--noproxy", "other.example"],
    ],
)
def test_a_plain_request_is_forwarded(
    arguments: list[str], play: Play, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with play(forwarding(), "proxy.example:3128"):
        assert fetch(*arguments, "http://host.example/path?q") == 0
    assert capfdbinary.readouterr() == (b"hello", b"")


def test_a_secure_request_goes_through_a_tunnel(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    with play(tunnel(), "proxy.example:3128"):
        assert fetch("-v", "-x", "proxy.example:3128", "https://host.example/path?q") == 0
    out, err = capfd.readouterr()
    assert out == "hello"
    lines = err.splitlines()
    assert lines[0].startswith("* connected to the proxy ")
    told = [line for line in lines if line[:1] in "><" and line[2:]]
    assert told[:4] == [
        "> CONNECT host.example:443 HTTP/1.1",
        "> Host: host.example:443",
        "> Accept: */*",
        "< HTTP/1.1 200 Connection established",
    ]
    assert told[4] == "> GET /path?q HTTP/1.1"
    assert rows(lines)[-4:] == ["proxy", "wait", "body", "total"]


def test_an_https_proxy_is_spoken_to_over_tls(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    script = Script("https proxy").tls().expect_request("CONNECT", "host.example:443").reply(OPENED)
    with play(script.tls().expect_request("GET", "/").reply(ANSWER), "proxy.example:443"):
        assert fetch("-v", "-x", "https://proxy.example", "https://host.example/") == 0
    lines = capfd.readouterr().err.splitlines()
    assert rows(lines)[-4:] == ["proxy", "wait", "body", "total"]


@pytest.mark.parametrize(
    ("proxy", "url", "address"),
    [
        ("socks5h://proxy.example", "http://host.example:8080/", b"\x03\x0chost.example\x1f\x90"),
        ("socks5h://proxy.example", "http://192.0.2.7:8080/", b"\x01\xc0\x00\x02\x07\x1f\x90"),
        ("socks5://proxy.example", "http://192.0.2.7:8080/", b"\x01\xc0\x00\x02\x07\x1f\x90"),
    ],
)
def test_socks(proxy: str, url: str, address: bytes, play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("socksio")
    with play(socks(address).expect_request("GET", "/").reply(ANSWER), "proxy.example:1080"):
        assert fetch("-v", "-x", proxy, url) == 0
    out, err = capfd.readouterr()
    assert out == "hello"
    lines = err.splitlines()
    assert lines[1] == "* the proxy has connected to the server"
    assert lines[2] == "> GET / HTTP/1.1"
    assert rows(lines)[-4:] == ["proxy", "wait", "body", "total"]


def test_what_is_forwarded_is_shown_as_it_is_sent(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    with play(forwarding(), "proxy.example:3128"):
        assert fetch("-v", "-x", "proxy.example:3128", "http://host.example/path?q") == 0
    lines = capfd.readouterr().err.splitlines()
    assert "> GET http://host.example/path?q HTTP/1.1" in lines
    assert "proxy" not in rows(lines), "there is no handshake with it"


def test_a_connect_of_the_users_own_is_another_one(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    script = Script().expect_request("CONNECT", "host.example:80").reply(OPENED)
    script.expect_request("CONNECT", "/").reply(b"HTTP/1.1 400 No\r\nContent-Length: 0\r\n\r\n")
    with play(script, "proxy.example:3128"):
        assert fetch("-v", "-X", "CONNECT", "-x", "proxy.example:3128", "http://host.example/") == 0
    lines = capfd.readouterr().err.splitlines()
    assert [line for line in lines if "HTTP/1.1" in line] == [
        "> CONNECT host.example:80 HTTP/1.1",
        "< HTTP/1.1 200 Connection established",
        "> CONNECT / HTTP/1.1",
        "< HTTP/1.1 400 No",
    ]
    assert rows(lines)[-4:] == ["proxy", "wait", "body", "total"]


# --- credentials -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["-x", "http://user:secret5@proxy.example:3128"],
        ["-x", "user:secret5@proxy.example:3128"],
        ["-x", "http://proxy.example:3128", "-U", "user:secret5"],
        ["-x", "http://nobody:nothing@proxy.example:3128", "--proxy-user", "user:secret5"],
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_credentials_are_sent_and_never_shown(
    arguments: list[str], scheme: str, play: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    headers = {"Proxy-Authorization": BASIC}
    script = tunnel(**headers) if scheme == "https" else forwarding(**headers)
    with play(script, "proxy.example:3128"):
        assert fetch("-v", *arguments, f"{scheme}://host.example/path?q") == 0
    out, err = capfd.readouterr()
    assert out == "hello"
    assert BASIC.split()[1] not in err
    assert "secret5" not in err


def test_credentials_for_socks(play: Play) -> None:
    pytest.importorskip("socksio")
    script = Script().expect(b"\x05\x02\x00\x02").reply(b"\x05\x02")
    script.expect(b"\x01\x04user\x08sec:ret5").reply(b"\x01\x00")
    script.expect(b"\x05\x01\x00\x03\x0chost.example\x00\x50").reply(SOCKS_CONNECTED)
    with play(script.expect_request("GET", "/").reply(ANSWER), "proxy.example:1080"):
        assert fetch("-x", "socks5h://proxy.example", "-U", "user:sec:ret5", "http://host.example/") == 0


# --- the environment, and hosts that are left out ----------------------------------------------------------


def test_the_environment_is_asked_only_on_request(
    server: DemoServer, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert main([server.url()]) == 0
    assert main(["--proxy-env", server.url()]) == Exit.CONNECT
    assert capfd.readouterr().out == "Hello, world!\n"


def test_the_proxy_of_the_environment_is_taken(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "user:secret5@proxy.example:3128")
    with play(forwarding(**{"Proxy-Authorization": BASIC}), "proxy.example:3128"):
        assert fetch("--proxy-env", "http://host.example/path?q") == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--proxy-env"],
        ["--proxy-env", "--noproxy", "127.0.0.0/8"],
        ["-x", "127.0.0.1:1", "--noproxy", "a.example, 127.0.0.1"],
        ["-x", "127.0.0.1:1", "--noproxy", "*"],
        ["-U", "user:secret5", "--noproxy", ""],
    ],
)
def test_a_host_that_is_left_out_is_reached_without(
    arguments: list[str],
    server: DemoServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "127.0.0.1" if "--noproxy" not in arguments else "")
    assert main(["-v", *arguments, server.url()]) == 0
    assert f"* connected to 127.0.0.1:{server.port}" in capfd.readouterr().err


# --- what goes wrong ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("407 Authentication required", "407 .*; give user name and password with --proxy-user$"),
        ("403 Forbidden", "403 Forbidden: the proxy http://proxy.example:3128 did not open a tunnel$"),
    ],
)
def test_a_proxy_that_refuses(answer: str, said: str, play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    script = Script().expect_request("CONNECT", "host.example:443")
    script.reply(f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
    with play(script, "proxy.example:3128"):
        assert fetch("-x", "proxy.example:3128", "https://host.example/") == Exit.CONNECT
    out, err = capfd.readouterr()
    assert out == ""
    assert re.search(said, err.strip()), err


def test_a_refusal_is_a_part_of_the_story(play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    script = Script().expect_request("CONNECT", "host.example:443")
    script.reply(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    with play(script, "proxy.example:3128"):
        assert fetch("-v", "-x", "proxy.example:3128", "https://host.example/") == Exit.CONNECT
    lines = capfd.readouterr().err.splitlines()
    assert "< HTTP/1.1 403 Forbidden" in lines
    assert rows(lines)[-2:] == ["proxy", "total"]


@pytest.mark.parametrize("scheme", ["http", "socks5h"])
def test_a_proxy_that_does_not_answer(scheme: str, play: Play, capfd: pytest.CaptureFixture[str]) -> None:
    script = Script().expect(b"\x05\x01\x00") if scheme == "socks5h" else Script()
    if scheme == "http":
        script.expect_request("CONNECT", "host.example:443")
    else:
        pytest.importorskip("socksio")
    with play(script.eof(), "proxy.example:3128"):
        code = fetch("-v", "-x", f"{scheme}://proxy.example:3128", "https://host.example/")
    assert code == Exit.CONNECT
    lines = capfd.readouterr().err.splitlines()
    assert rows(lines)[-2:] == ["proxy", "total"]
    assert f"the proxy {scheme}://proxy.example:3128 " in lines[-1]


def test_a_forwarded_request_that_is_refused_has_a_response(
    play: Play, capfd: pytest.CaptureFixture[str]
) -> None:
    script = Script().expect_request("GET", "http://host.example/")
    script.reply(b"HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n")
    with play(script, "proxy.example:3128"):
        assert fetch("--fail", "-x", "proxy.example:3128", "http://host.example/") == Exit.HTTP_ERROR
    assert "407 Who are you" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-x", ""], "must name a host"),
        (["-x", "http://user:hunter2/x@proxy.example"], "cannot be taken apart"),
        (["-x", "http://user:hunter2"], "must name a host"),
        (["-x", "http://proxy.example:port"], "its port as a number"),
        (["-x", "socks4://proxy.example"], "socks4"),
        (["-x", "socks5h://hunter2@proxy.example"], "password for a SOCKS proxy"),
        (["--proxy-env"], "the environment variable ALL_PROXY: .*'ftp'"),
    ],
)
def test_a_proxy_that_makes_no_sense(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("socksio")
    monkeypatch.setenv("ALL_PROXY", "ftp://user:hunter2@proxy.example")
    assert main([*arguments, "http://host.example/"]) == Exit.ARGUMENT
    err = capfd.readouterr().err
    assert re.search(said, err), err
    assert "hunter2" not in err
    assert len(err.splitlines()) == 1


def test_one_proxy_at_most(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["-x", "proxy.example", "--proxy-env", "http://host.example/"])
    assert caught.value.code == Exit.USAGE
    capfd.readouterr()


def test_tls_with_the_proxy_is_told_as_such(secure_server: DemoServer, cacert: Path) -> None:
    """The demonstration's server is no proxy, and forwarding needs none: it answers whatever it is asked.

    In a process of its own, since the default context is built once for each.
    """
    command = [sys.executable, "-X", "dev", "-m", "lamina", "-v"]
    proxy = secure_server.url(host="localhost")
    done = subprocess.run(
        [*command, "-x", proxy, "http://host.example/"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "SSL_CERT_FILE": str(cacert), "PYTHONIOENCODING": "utf-8"},
        timeout=50,
        check=True,
    )
    lines = done.stderr.splitlines()
    assert lines[0].startswith("* connected to the proxy 127.0.0.1")
    assert lines[1].startswith("* with the proxy: TLSv1.3, ")
    assert "> GET http://host.example/ HTTP/1.1" in lines
    assert rows(lines)[:3] == ["DNS", "TCP", "TLS"]
