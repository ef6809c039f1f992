"""The command `lamina`, as a person runs it, against nginx."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from stack_proxies import PASSWORD, USER

if TYPE_CHECKING:
    from pathlib import Path

    from stack_helpers import Certificates
    from stack_proxies import RunningProxy
    from stack_servers import Server


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[bytes]:
    # The environment of some machines names certificates that are to be trusted besides, or proxies.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not (name.startswith("SSL_CERT_") or name.lower().endswith("_proxy"))
    }
    environment |= more
    return subprocess.run(
        [sys.executable, "-m", "lamina", *arguments],
        capture_output=True,
        timeout=30,
        env=environment,
        check=False,
    )


def test_a_page_over_tls(nginx: Server, certificates: Certificates) -> None:
    done = run("--cacert", str(certificates.authority), f"{nginx.https}/hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")


def test_the_whole_story_of_a_request(nginx: Server, certificates: Certificates) -> None:
    done = run("-v", "--cacert", str(certificates.authority), f"{nginx.https}/hello")
    told = done.stderr.decode()
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    for part in ("GET /hello", "200", "nginx", "TLSv1.", "TCP", "TLS", "wait", "body", "total"):
        assert part in told


def test_a_certificate_that_is_not_trusted(nginx: Server) -> None:
    done = run(f"{nginx.https}/hello")
    assert (done.returncode, done.stdout) == (5, b"")
    assert b"--cacert" in done.stderr


def test_a_download_into_a_file(nginx: Server, certificates: Certificates, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (nginx.root / "download").write_bytes(content)
    target = tmp_path / "here"
    done = run("--cacert", str(certificates.authority), "-o", str(target), f"{nginx.https}/download")
    assert (done.returncode, done.stdout) == (0, b"")
    assert target.read_bytes() == content


def test_a_page_over_a_unix_socket(nginx: Server) -> None:
    done = run("--uds", nginx.uds, "http://any.example/hello")
    assert (done.returncode, done.stdout) == (0, b"hello\n")


def test_http2_is_offered_and_taken(nginx: Server, certificates: Certificates) -> None:
    done = run("--http2", "-v", "--cacert", str(certificates.authority), f"{nginx.https}/hello")
    told = done.stderr.decode()
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    for part in (
        "ALPN h2",
        "> GET /hello HTTP/2",
        "stream 1",
        "< HTTP/2 200",
        "< server: nginx",
        "TLS",
        "wait",
    ):
        assert part in told


def test_http2_without_tls(nginx: Server) -> None:
    done = run("--http2-prior-knowledge", f"{nginx.h2c}/hello")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"hello\n", b"")


def test_a_transfer_each_way_over_http2(nginx: Server, certificates: Certificates, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (nginx.root / "download").write_bytes(content)
    target = tmp_path / "here"
    options = ("--http2", "--cacert", str(certificates.authority))
    done = run(*options, "-o", str(target), f"{nginx.https}/download")
    assert (done.returncode, done.stdout) == (0, b"")
    assert target.read_bytes() == content
    done = run(*options, "-d", f"@{target}", f"{nginx.https}/upload")
    assert (done.returncode, done.stdout) == (0, b"took 3000000")


def test_a_page_through_a_proxy_that_wants_to_know_who_asks(
    nginx: Server, tinyproxy_auth: RunningProxy, certificates: Certificates
) -> None:
    page = ["--cacert", str(certificates.authority), f"{nginx.https}/hello"]
    refused = run("-x", tinyproxy_auth.url, *page)
    assert (refused.returncode, refused.stdout) == (4, b"")
    assert b"407" in refused.stderr
    assert b"--proxy-user" in refused.stderr
    done = run("-v", "-x", tinyproxy_auth.url, "-U", f"{USER}:{PASSWORD}", *page)
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    told = done.stderr.decode()
    for part in ("CONNECT 127.0.0.1:", "Proxy-Authorization: [masked]", "TLSv1.", "proxy", "total"):
        assert part in told
    assert PASSWORD not in told


def test_a_page_through_the_proxy_that_the_environment_names(nginx: Server, microsocks: RunningProxy) -> None:
    pytest.importorskip("socksio")
    done = run("-v", "--proxy-env", f"{nginx.http}/hello", ALL_PROXY=microsocks.url)
    assert (done.returncode, done.stdout) == (0, b"hello\n")
    assert b"* the proxy has connected to the server" in done.stderr
    direct = run("-v", "--proxy-env", f"{nginx.http}/hello", ALL_PROXY=microsocks.url, NO_PROXY="127.0.0.0/8")
    assert (direct.returncode, direct.stdout) == (0, b"hello\n")
    assert b"proxy" not in direct.stderr
