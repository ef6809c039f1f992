"""What the command `lamina` understands, and with which code it ends."""

from __future__ import annotations

import argparse
import enum
import math
import sys
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:
    from collections.abc import Sequence


class Exit(enum.IntEnum):
    """How the command ended. The numbers are a promise to scripts."""

    OK = 0
    HTTP_ERROR = 1
    USAGE = 2
    ARGUMENT = 3
    CONNECT = 4
    TLS = 5
    TIMEOUT = 6
    RESPONSE = 7
    OUTPUT = 8
    INTERRUPTED = 130


MEANINGS = {
    Exit.OK: "the response is there, whatever its status",
    Exit.HTTP_ERROR: "the status is 400 or above (with --fail only)",
    Exit.USAGE: "the command line makes no sense",
    Exit.ARGUMENT: "a bad URL or argument, or a file that cannot be read",
    Exit.CONNECT: "cannot connect: unknown name, refused, unreachable, not let through by the proxy",
    Exit.TLS: "TLS failed; the certificate is not accepted, for instance",
    Exit.TIMEOUT: "too slow",
    Exit.RESPONSE: "the connection broke, or the response is not valid HTTP",
    Exit.OUTPUT: "the output cannot be written",
    Exit.INTERRUPTED: "interrupted",
}

EPILOG = "exit codes:\n" + "\n".join(f"  {code.value:>3}  {text}" for code, text in MEANINGS.items())


class Options(argparse.Namespace):
    """The parsed command line. A name that begins with `@` in `data` is a file, `@-` the standard input."""

    url: str
    output: str | None
    method: str | None
    headers: list[tuple[str, str]]
    data: str | None
    fail: bool
    verbose: bool
    timeout: float | None
    uds: str | None
    proxy: str | None
    proxy_env: bool
    proxy_user: str | None
    noproxy: str | None
    cacert: str | None
    insecure: bool
    http2: bool
    http2_prior_knowledge: bool
    backend: str | None


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Parse the command line; `None` stands for the process's own.

    Raises:
        SystemExit: with `Exit.USAGE` for nonsense, 0 after `--help` and `--version`.
    """
    return _parser().parse_args(arguments, namespace=Options())


class _Parser(argparse.ArgumentParser):
    def format_help(self) -> str:
        text = super().format_help()
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            # A terminal of few letters: the only one that it may lack is this.
            text = text.replace("…", "...").encode(encoding, "replace").decode(encoding)
        return text


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="lamina",
        description="Fetch a URL: the body goes to the standard output, byte for byte.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("url", metavar="URL", help="http://… or https://…")
    add(
        "-o",
        "--output",
        metavar="FILE",
        help="write the body to FILE, which appears once the body is complete",
    )
    add("-X", "--method", metavar="METHOD", type=_method, help="GET, or POST with --data, unless given")
    add(
        "-H",
        "--header",
        dest="headers",
        metavar="'NAME: VALUE'",
        action="append",
        default=[],
        type=_header,
        help="send this header; may be repeated",
    )
    add(
        "-d",
        "--data",
        metavar="DATA|@FILE",
        help="send this text, or the bytes of FILE (@- for the standard input), as the body; "
        "say what it is with -H 'Content-Type: …'",
    )
    add("-f", "--fail", action="store_true", help="status 400 and above: write no body, end with code 1")
    add(
        "-v",
        "--verbose",
        action="store_true",
        help="tell on the standard error what is connected to, what is sent and received, and where the time went",
    )
    add("--timeout", metavar="SECONDS", type=_seconds, help="for everything together; no limit unless given")
    add("--uds", metavar="PATH", help="connect to this unix socket instead of the URL's host")
    proxy = parser.add_mutually_exclusive_group()
    proxy.add_argument(
        "-x",
        "--proxy",
        metavar="URL",
        help="go through this proxy: http://…, https://…, socks5://… (names are looked up here) or socks5h://… "
        "(by the proxy)",
    )
    proxy.add_argument(
        "--proxy-env",
        action="store_true",
        help="go through the proxy that the environment names, if any: http_proxy, https_proxy, all_proxy, no_proxy",
    )
    add(
        "-U", "--proxy-user", metavar="USER:PASSWORD", help="for the proxy, in the place of what its URL says"
    )
    add(
        "--noproxy",
        metavar="HOSTS",
        help="no proxy for these names, addresses and networks, separated by commas; in the place of no_proxy",
    )
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument(
        "--cacert", metavar="FILE", help="trust the authorities in this PEM file, and no others"
    )
    trust.add_argument("--insecure", action="store_true", help="do not check the server's certificate")
    protocol = parser.add_mutually_exclusive_group()
    protocol.add_argument(
        "--http2",
        action="store_true",
        help="offer HTTP/2 over TLS; the server chooses. Without TLS it is HTTP/1.1",
    )
    protocol.add_argument(
        "--http2-prior-knowledge",
        action="store_true",
        help="speak HTTP/2 and nothing else, without TLS too: the server is known to understand it",
    )
    add("--backend", metavar="NAME", help="network backend: sync (the default), or one that a package offers")
    add("--version", action="version", version=f"lamina {__version__}")
    return parser


def _method(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("the method is empty")
    return text


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 'Name: value'")
    return name.strip(), value.strip()


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:  # also true for NaN
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds
