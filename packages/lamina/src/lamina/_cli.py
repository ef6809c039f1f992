"""The command `lamina`: fetch a URL, and show what happened on the way.

`_cli_arguments` is the command line with its exit codes, `_cli_output` where the body goes, `_cli_report` what `-v`
tells. Here is how they go together, and what a person is told when it fails: one line, and what to do about it.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from typing import IO, TYPE_CHECKING, Any

from lamina_interfaces import (
    AsyncNetworkBackend,
    BackendNotFound,
    ConnectError,
    LaminaError,
    ProxyError,
    TimeoutException,
    load_backend,
)

from ._cli_arguments import Exit, parse
from ._cli_output import Output, OutputError, Progress
from ._cli_report import Report, printable
from ._cli_waiting import Descriptor, Stalled, open_within_limit
from ._version import __version__

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from lamina_interfaces import Phase
    from lamina_pool import Proxy, Response

    from ._cli_arguments import Options

READ_SIZE = 64 * 1024
"""Bytes of a file that are sent at a time."""

READING = "waiting for the data to send"

_ALPN = {(True, False): ["http/1.1"], (True, True): ["h2", "http/1.1"], (False, True): ["h2"]}
"""What is offered over TLS, by whether HTTP/1.1 and HTTP/2 may be spoken."""

_CHECK_THE_DATE = "check the date of this machine, or tell the server's owner"
_OTHER_NAME = "the server has no certificate for this name"

TLS_ADVICE = {9: _CHECK_THE_DATE, 10: _CHECK_THE_DATE, 62: _OTHER_NAME, 64: _OTHER_NAME}
"""By OpenSSL's verdict: X509_V_ERR_CERT_NOT_YET_VALID, ..._CERT_HAS_EXPIRED, ..._HOSTNAME_MISMATCH,
..._IP_ADDRESS_MISMATCH. For any other, trusting another authority may help."""


class Failure(Exception):
    """The command ends here.

    Attributes:
        code: to end with.
        text: for a person; nothing is said if it is empty.
    """

    def __init__(self, code: Exit, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def main(arguments: Sequence[str] | None = None, *, imported: Callable[[], object] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the command, or `None` for the process's own.
        imported: is called when everything that a fetch needs has been imported.

    Returns:
        The exit code, one of `Exit`.

    Raises:
        SystemExit: for nonsense on the command line, `--help` and `--version`.
    """
    try:
        options = parse(arguments)
        _fetch(options, imported)
    except Failure as failure:
        _complain(failure.text)
        return failure.code
    except OutputError as error:
        _complain(str(error))
        return Exit.OUTPUT
    except KeyboardInterrupt:
        _complain("interrupted")
        return Exit.INTERRUPTED
    return Exit.OK


def _complain(text: str) -> None:
    if text and sys.stderr is not None:
        encoding = sys.stderr.encoding or "utf-8"
        line = f"lamina: {printable(text)}".encode(encoding, "backslashreplace").decode(encoding)
        try:
            print(line, file=sys.stderr)
        except (OSError, ValueError):
            pass  # full, or gone: the exit code says it too


def _fetch(options: Options, imported: Callable[[], object] | None) -> None:
    # Imported only now, so that `--help` and nonsense are answered at once.
    from lamina_pool import ConnectionPool
    from lamina_timeouts import timeout

    if imported is not None:
        imported()
    _check_url(options.url)
    content, length = _content(options.data)
    proxy = _proxy(options)
    report = None
    if options.verbose and sys.stderr:
        report = Report(sys.stderr, has_body=content is not None, has_proxy=proxy is not None)
    if options.uds == "":
        raise Failure(Exit.ARGUMENT, "--uds names no socket")
    http1, http2 = _protocols(options)
    pool_options: dict[str, Any] = {
        "uds": options.uds,
        "proxy": proxy,
        "ssl_context": _ssl_context(options, _ALPN[http1, http2]),
        "http1": http1,
        "http2": http2,
    }
    if options.backend is not None:
        pool_options["network_backend"] = _backend(options.backend)
    try:
        with (
            timeout(options.timeout),
            Output(options.output) as output,
            ConnectionPool(**pool_options) as pool,
            pool.stream(
                options.method or ("GET" if content is None else "POST"),
                options.url,
                headers=_headers(options, length),
                content=content,
                extensions={} if report is None else {"trace": report},
            ) as response,
        ):
            if report is not None and "stream_id" in response.extensions:
                report.answered(response.extensions["stream_id"])
            if options.fail and response.status >= 400:
                reason = response.extensions.get("reason_phrase", b"").decode("latin-1")  # HTTP/2 has none
                raise Failure(Exit.HTTP_ERROR, f"the server answered {response.status} {reason}".rstrip())
            _copy(response, output, sys.stderr)
            if report is not None:
                report.finished()
            output.complete()
    except LaminaError as error:
        if report is not None:
            report.broken_off()
        raise explain(error, options) from error
    except KeyboardInterrupt:
        if report is not None:
            report.broken_off()
        raise
    finally:
        if report is not None:
            report.write_waterfall()


def _copy(response: Response, output: Output, terminal: IO[str] | None) -> None:
    total = next((int(value) for name, value in response.headers if name.lower() == b"content-length"), None)
    shows = output.is_file and terminal is not None and terminal.isatty()
    progress = Progress(total, terminal if shows else None)
    try:
        for chunk in response.iter_stream():
            output.write(chunk)
            progress.advance(len(chunk))
    finally:
        progress.end()


# --- from the command line to the pool's arguments ---------------------------------------------------------


def _check_url(url: str) -> None:
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise Failure(Exit.ARGUMENT, f"{url!r} is no complete URL; write {_completed(url)}")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in authority:
        place = authority.rpartition("@")[2]
        raise Failure(
            Exit.ARGUMENT,
            "user name and password are not taken from the URL; write "
            f"{scheme}://{place}{rest[len(authority) :] or '/'} and -H 'Authorization: Basic …'",
        )


def _completed(url: str) -> str:
    """What was probably meant by a URL without `://`."""
    match = re.fullmatch(r"(?i:(https?):)?(/*)(.*)", url, re.DOTALL)
    assert match is not None  # every part may be empty
    scheme, slashes, rest = match.groups()
    if not rest or (scheme is None and slashes == "/"):
        rest = f"HOST/{rest}"  # a path alone, or nothing
    return f"{(scheme or 'https').lower()}://{rest}"


def _headers(options: Options, length: int | None) -> list[tuple[bytes, bytes]]:
    headers = [(_header_bytes(name), _header_bytes(value)) for name, value in options.headers]
    given = {name.lower() for name, _ in headers}
    defaults = [(b"User-Agent", f"lamina/{__version__}".encode()), (b"Accept", b"*/*")]
    if length is not None and b"transfer-encoding" not in given:
        defaults.append((b"Content-Length", b"%d" % length))
    return [*(each for each in defaults if each[0].lower() not in given), *headers]


def _header_bytes(text: str) -> bytes:
    # As the shell gave them: what is not ASCII goes out in the bytes that were typed (RFC 9110, section 5.5).
    return os.fsencode(text)


def _content(data: str | None) -> tuple[bytes | Iterable[bytes] | None, int | None]:
    """The body, and its length where that is known and the pool cannot see it."""
    if data is None:
        return None, None
    if not data.startswith("@"):
        return os.fsencode(data), None
    path = data[1:]
    if path == "-":
        return _standard_input(), None
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            return FileBody(path), None
        with open(path, "rb"):
            pass  # so that a file that cannot be read is told of before anything is sent
    except OSError as error:
        raise _unreadable(path, error) from error
    return FileBody(path), status.st_size


def _standard_input() -> Iterator[bytes]:
    place = "the standard input"
    if sys.stdin is None:
        raise Failure(Exit.ARGUMENT, f"cannot read {place}: it is closed")
    try:
        source = Descriptor(sys.stdin.fileno())
        os.read(source.number, 0)  # so that one which cannot be read is told of before anything is sent
    except OSError as error:
        raise _unreadable(place, error) from error
    return _pieces(source, place)


def _pieces(source: Descriptor, place: str) -> Iterator[bytes]:
    try:
        while piece := source.read(READ_SIZE, READING):
            yield piece
    except Stalled:  # an `OSError` too, as `TimeoutError` is
        raise
    except OSError as error:
        raise _unreadable(place, error) from error


class FileBody:
    """A file as a request's body, which can be sent anew from its beginning."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __iter__(self) -> Iterator[bytes]:
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
        try:
            descriptor = open_within_limit(lambda more: os.open(self._path, flags | more), READING)
        except Stalled:  # an `OSError` too, as `TimeoutError` is
            raise
        except OSError as error:
            raise _unreadable(self._path, error) from error
        try:
            yield from _pieces(Descriptor(descriptor), self._path)
        finally:
            os.close(descriptor)


def _unreadable(place: str, error: OSError) -> Failure:
    return Failure(Exit.ARGUMENT, f"cannot read {place}: {error.strerror}")


def _protocols(options: Options) -> tuple[bool, bool]:
    """Whether HTTP/1.1 may be spoken, and whether HTTP/2 may."""
    wants_http2 = options.http2 or options.http2_prior_knowledge
    if wants_http2:
        try:
            # Here, since it takes as long as many a request, and in the midst of one the server would wait for it.
            import h2.connection  # noqa: F401 - what uses it is the pool
        except ModuleNotFoundError as error:
            option = "--http2" if options.http2 else "--http2-prior-knowledge"
            module = (error.name or "h2").partition(".")[0]
            text = f"{option} needs {module}, which is not installed; install it with: pip install 'lamina[http2]'"
            raise Failure(Exit.ARGUMENT, text) from error
    return not options.http2_prior_knowledge, wants_http2


def _proxy(options: Options) -> Proxy | None:
    """The proxy for the URL, if there is one."""
    from lamina_pool import Proxy, ProxyEnvironment

    exceptions = {} if options.noproxy is None else {"no_proxy": options.noproxy}
    try:
        if options.proxy_env:
            proxy = ProxyEnvironment({**os.environ, **exceptions}).proxy_for(options.url)
        elif options.proxy is not None:
            url = options.proxy if "://" in options.proxy else f"http://{options.proxy}"
            is_excepted = ProxyEnvironment({"all_proxy": "any", **exceptions}).proxy_for(options.url) is None
            proxy = None if is_excepted else Proxy(url)
        else:
            return None
        if proxy is not None and options.proxy_user is not None:
            user, _, password = os.fsencode(options.proxy_user).partition(b":")
            proxy = Proxy(proxy.url, auth=(user, password))
    except LaminaError as error:
        raise Failure(Exit.ARGUMENT, error.message) from error
    return proxy


def _ssl_context(options: Options, alpn: list[str]) -> ssl.SSLContext | None:
    """The context that the options ask for, with these protocols; `None` for the pool's own."""
    if options.cacert is None and not options.insecure:
        return None
    import ssl

    if options.insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        if not options.cacert:  # an empty name means the system's authorities to `ssl`
            raise Failure(Exit.ARGUMENT, "--cacert names no file")
        try:
            context = ssl.create_default_context(cafile=options.cacert)
        except ssl.SSLError as error:
            text = f"{options.cacert} is not a file of certificates in PEM form"
            raise Failure(Exit.ARGUMENT, text) from error
        except OSError as error:
            raise Failure(Exit.ARGUMENT, f"cannot read {options.cacert}: {error.strerror}") from error
    context.set_alpn_protocols(alpn)
    return context


def _backend(name: str) -> Any:
    try:
        backend = load_backend(name)
    except (BackendNotFound, ImportError) as error:
        raise Failure(Exit.ARGUMENT, str(error)) from error
    if isinstance(backend, AsyncNetworkBackend):
        raise Failure(
            Exit.ARGUMENT, f"the backend {name!r} is for async code; this command takes blocking ones"
        )
    return backend


# --- what a person is told ---------------------------------------------------------------------------------


DOING: dict[Phase | None, str] = {
    "dns": "looking up the name",
    "connect": "connecting",
    "tls": "the TLS handshake",
    "proxy": "the handshake with the proxy",
    "write": "sending the request",
    "read": "waiting for the server",
}
"""What a phase is called for a reader."""


def explain(error: LaminaError, options: Options) -> Failure:
    """The exit code for an error, and a line that says what to do about it.

    Every circumstance is told with `--verbose`; without it, only what a person needs.
    """
    text, advice = error.message, ""
    if isinstance(error, TimeoutException):
        code, advice = Exit.TIMEOUT, "" if options.timeout is None else "give it more time with --timeout"
        after = "" if error.elapsed is None else f" after {error.elapsed:.1f} s"
        doing = (
            error.doing if isinstance(error, Stalled) else f"during {DOING.get(error.phase, 'the request')}"
        )
        text = f"gave up{after}, {doing}"
    elif isinstance(error, (ValueError, TypeError)):
        code = Exit.ARGUMENT
    elif isinstance(error, ConnectError) and error.phase == "tls":
        code, advice = Exit.TLS, _tls_advice(error)
    elif isinstance(error, ProxyError):
        code, advice = (
            Exit.CONNECT,
            "give user name and password with --proxy-user" if error.status == 407 else "",
        )
    elif isinstance(error, ConnectError):
        code, advice = Exit.CONNECT, "check the name, or the network" if error.phase == "dns" else ""
    else:
        code = Exit.RESPONSE
    if options.verbose:
        text = str(error)
    elif len(error.attempts) > 1:
        text += f" (tried {', '.join(attempt.address for attempt in error.attempts)})"
    return Failure(code, f"{text}; {advice}" if advice else text)


def _tls_advice(error: ConnectError) -> str:
    verdict = getattr(error.__cause__, "verify_code", None)
    if verdict is not None:
        return TLS_ADVICE.get(verdict, "if you trust its authority, name that with --cacert FILE")
    return "does the server speak TLS on this port?" if "wrong version number" in str(error).lower() else ""
