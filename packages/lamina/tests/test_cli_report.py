"""What `-v` tells."""

import io
import re
import ssl
from pathlib import Path
from typing import Any

import pytest

from lamina._cli import main
from lamina._cli_report import Report, certificate_lines, printable
from lamina._demo_server import DemoServer


def told(capfd: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    assert main(["-v", *arguments]) == code
    return capfd.readouterr().err.splitlines()


def rows(lines: list[str]) -> list[str]:
    """The titles of the waterfall."""
    return [line.split()[0] for line in lines if line.endswith(" ms")]


def test_the_heads_are_shown_as_they_went_over_the_wire(
    server: DemoServer, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = told(capfd, "-H", "X-One: 1", server.url("/?a=b"))
    assert [line for line in lines if line.startswith(">")] == [
        "> GET /?a=b HTTP/1.1",
        f"> Host: 127.0.0.1:{server.port}",
        *[line for line in lines if line.startswith("> User-Agent: lamina/")],
        "> Accept: */*",
        "> X-One: 1",
        ">",
    ]
    assert [line for line in lines if line.startswith("<")] == [
        "< HTTP/1.1 200 OK",
        "< Content-Type: text/plain",
        "< Content-Length: 14",
        "<",
    ]


def test_the_peer_is_named(server: DemoServer, capfd: pytest.CaptureFixture[str]) -> None:
    lines = told(capfd, server.url())
    assert re.fullmatch(rf"\* connected to 127\.0\.0\.1:{server.port}, from 127\.0\.0\.1:\d+", lines[0])


def test_the_facts_of_tls(secure_server: DemoServer, cacert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = told(capfd, "--cacert", str(cacert), secure_server.url(host="localhost"))
    facts = [line for line in lines if line.startswith("*")]
    assert re.fullmatch(r"\* TLSv1\.3, TLS_[A-Z0-9_]+, ALPN http/1\.1", facts[1])
    assert facts[2] == "* certificate for localhost, 127.0.0.1, www.example.com, demo.test"
    assert re.fullmatch(r"\*   subject .*CN=lamina test.*", facts[3])
    assert re.fullmatch(r"\*   issuer  O=trustme .*", facts[4])
    assert re.fullmatch(r"\*   expires \d{4}-\d\d-\d\d, in \d+ days", facts[5])


def test_a_certificate_that_was_not_checked_says_so(
    secure_server: DemoServer, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = told(capfd, "--insecure", secure_server.url())
    (fact,) = [line for line in lines if "certificate" in line]
    assert re.fullmatch(r"\* certificate not checked; SHA-256 [0-9a-f]{64}", fact)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), ["DNS", "TCP", "TLS", "wait", "body", "total"]),
        (("-d", "data"), ["DNS", "TCP", "TLS", "send", "wait", "body", "total"]),
    ],
    ids=["GET", "POST"],
)
def test_the_waterfall_has_a_bar_for_each_step(
    arguments: tuple[str, ...],
    expected: list[str],
    secure_server: DemoServer,
    cacert: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    lines = told(capfd, *arguments, "--cacert", str(cacert), secure_server.url("/slow/20", host="localhost"))
    assert rows(lines) == expected
    wait = next(line for line in lines if line.startswith("  wait "))
    assert float(wait.split()[-2]) >= 20.0
    assert "█" in wait


def test_a_failure_shows_how_far_it_came(server: DemoServer, capfd: pytest.CaptureFixture[str]) -> None:
    lines = told(capfd, "--timeout", "1", server.url("/silent"), code=6)
    assert lines[1].startswith("> GET /silent")
    assert rows(lines) == ["TCP", "wait", "total"]
    wait = next(line for line in lines if line.startswith("  wait "))
    assert 300 <= float(wait.split()[-2].replace(",", "")) < 30_000
    assert "█" in wait
    assert lines[-1].startswith("lamina: the deadline has passed (phase read, origin http://127.0.0.1")


@pytest.mark.usefixtures("no_names")
def test_a_failed_look_up_is_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    lines = told(capfd, "http://unknown.invalid/", code=4)
    assert rows(lines) == ["DNS", "total"]
    assert lines[-1].startswith("lamina: ")


def test_a_refusal_is_drawn(capfd: pytest.CaptureFixture[str]) -> None:
    lines = told(capfd, "http://127.0.0.1:1/", code=4)
    assert rows(lines) == ["connect", "total"]


def test_a_failed_handshake_is_drawn(server: DemoServer, capfd: pytest.CaptureFixture[str]) -> None:
    lines = told(capfd, server.url().replace("http", "https"), code=5)
    assert rows(lines) == ["TCP", "TLS", "total"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(["/stalled"], ["TCP", "wait", "body", "total"]), (["/silent"], ["TCP", "wait", "total"])],
)
def test_the_step_that_took_too_long_is_drawn(
    arguments: list[str], expected: list[str], server: DemoServer, capfd: pytest.CaptureFixture[str]
) -> None:
    drawn: list[list[str]] = []
    for limit in ("0.3", "2", "10"):  # a slow machine may need more to get as far as that
        drawn.append(rows(told(capfd, "--timeout", limit, server.url(*arguments), code=6)))
        if drawn[-1] == expected:
            return
    pytest.fail(f"drawn was {drawn}")


def test_without_a_step_there_is_no_waterfall(capfd: pytest.CaptureFixture[str]) -> None:
    assert len(told(capfd, "-X", "GE T", "http://127.0.0.1:1/", code=3)) == 1


def test_what_was_typed_is_shown_as_it_was_typed(
    server: DemoServer, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = told(capfd, "-H", "X-Name: café ☕", server.url())
    assert "> X-Name: café ☕" in lines
    assert "< X-Name: café" in told(capfd, server.url("/escape"))  # which is Latin-1


def test_a_new_attempt_is_told() -> None:
    out = io.StringIO()
    Report(out, has_body=False)("connection.retry.started", {})
    assert out.getvalue() == "* trying again\n"


CERTIFICATE: dict[str, Any] = {
    "subject": ((("countryName", "NO"),), (("commonName", "example.com"),), (("serialNumber", "7"),)),
    "issuer": ((("organizationName", "Trust Us"),),),
    "notAfter": "Nov 30 12:00:00 2026 GMT",
    "subjectAltName": (("DNS", "example.com"), ("IP Address", "192.0.2.1")),
}
TODAY = ssl.cert_time_to_seconds("Nov 20 12:00:00 2026 GMT")

CERTIFICATES: list[tuple[str, dict[str, Any] | None, bytes | None, list[str]]] = [
    (
        "checked",
        CERTIFICATE,
        b"der",
        [
            "certificate for example.com, 192.0.2.1",
            "  subject C=NO, CN=example.com, serialNumber=7",
            "  issuer  O=Trust Us",
            "  expires 2026-11-30, in 10 days",
        ],
    ),
    (
        "bare",
        {"notAfter": "Nov 20 12:00:01 2026 GMT"},
        b"der",
        ["certificate for no names", "  subject empty", "  issuer  empty", "  expires 2026-11-20, in 0 days"],
    ),
    (
        "not checked",
        {},
        b"",
        ["no certificate"],
    ),
    ("absent", None, None, ["no certificate"]),
]


@pytest.mark.parametrize(
    ("checked", "encoded", "lines"), [row[1:] for row in CERTIFICATES], ids=[row[0] for row in CERTIFICATES]
)
def test_the_certificate(checked: dict[str, Any] | None, encoded: bytes | None, lines: list[str]) -> None:
    assert certificate_lines(checked, encoded, TODAY) == lines


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é", "plain é"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\r\nb\tc", "a\\r\\nb\\tc"),
        ("\x9b", "\\x9b"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
    ],
)
def test_what_a_terminal_would_obey_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
