"""What `-v` tells: the connection, the heads of request and response, and where the time went.

The lines come while the request is under way, from the events of the `trace` extension, so that one sees how far it
got before it failed. They begin with `*` for facts, `>` for what is sent, `<` for what is received, as curl's do.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, TextIO

from lamina_interfaces import TimingSpan
from lamina_interfaces.dialing import format_address

from ._waterfall import ASCII_BAR, BAR, Span, draw, spans_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from lamina_pool import Request

SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
}
"""Parts of a distinguished name as RFC 4514, section 3, writes them."""


class Report:
    """A `trace` callback that writes what it hears.

    Args:
        out: text goes there.
        has_body: whether the request has a body, so that sending it is worth a line.
        has_proxy: whether it is a proxy that is connected to.
    """

    def __init__(self, out: TextIO, *, has_body: bool, has_proxy: bool = False) -> None:
        self._out = out
        self._has_body = has_body
        self._has_proxy = has_proxy
        self._speaks_to_proxy = has_proxy
        self._asks_for_tunnel = False
        self._proxy_spans: list[TimingSpan] = []
        self._is_deaf = False
        self._stream: Any = None
        self._moments = {"started": time.monotonic()}
        self._connecting_since: float | None = None
        self._failed_to_connect: list[Span] = []

    def __call__(self, event: str, info: dict[str, Any]) -> None:
        """An event of the request. See `lamina_pool`'s `trace` extension."""
        now = time.monotonic()
        match event.split("."):
            case [_, "connect_tcp" | "connect_unix_socket", "started"]:
                self._speaks_to_proxy = self._has_proxy
                self._proxy_spans.clear()
                self._begin(now)
            case [_, "start_tls" | "setup_socks5_connection", "started"]:
                self._begin(now)
            case [
                _,
                "connect_tcp" | "connect_unix_socket" | "start_tls" | "setup_socks5_connection",
                "failed",
            ]:
                self._add_failed(event, info["exception"], now)
            case [_, "connect_tcp" | "connect_unix_socket", "complete"]:
                self._stream = info["return_value"]
                self._write_peer()
            case [_, "start_tls", "complete"]:
                self._stream = info["return_value"]
                self._write_tls(self._stream.get_extra_info("ssl_object"))
            case ["socks", "setup_socks5_connection", "complete"]:
                self._write("* the proxy has connected to the server")
                self._add_handshake(now)
            case ["http11", name, what] if self._speaks_to_proxy and self._is_for_tunnel(name, what, info):
                self._tell_of_tunnel(name, what, info, now)
            case ["http11", "send_request_headers", "started"]:
                self._write_request(info["request"], "HTTP/1.1", now)
            case ["http2", "send_request_headers", "started"]:
                self._write_request(info["request"], "HTTP/2", now)
            case ["http11" | "http2", "send_request_body", "started"] if self._has_body:
                self._moments["uploading"] = now
            case ["http11" | "http2", "send_request_body", "complete"] if self._has_body:
                self._moments["sent"] = now
            case ["http11", "receive_response_headers", "complete"]:
                self._write_answer(info["return_value"])
                self._moments["answered"] = now
            case ["http2", "receive_response_headers", "complete"]:
                status, headers = info["return_value"]
                self._write_head("<", f"HTTP/2 {status}", headers)
                self._moments["answered"] = now
            case ["connection", "retry", "started"]:
                self._write("* trying again")

    def answered(self, stream_id: int) -> None:
        """The response came on this stream of an HTTP/2 connection."""
        self._write(f"* on stream {stream_id}")

    def finished(self) -> None:
        """The body is complete."""
        self._moments["finished"] = time.monotonic()

    def broken_off(self) -> None:
        """The request ends here, in the middle of a step."""
        self._moments["broken_off"] = time.monotonic()

    def write_waterfall(self) -> None:
        """Show where the time went, as far as the request came."""
        timings = () if self._stream is None else self._stream.get_extra_info("timings") or ()
        in_order = sorted((*timings, *self._proxy_spans), key=lambda span: span.start)
        spans = [*spans_of(in_order, self._moments), *self._failed_to_connect]
        lines = draw(spans, bar=self._bar())
        if lines:
            for line in ("", *lines, ""):
                self._write(f"  {line}".rstrip())

    # --- connecting ----------------------------------------------------------------------------------------

    def _begin(self, now: float) -> None:
        self._connecting_since = now
        self._failed_to_connect.clear()

    def _add_handshake(self, now: float) -> None:
        self._speaks_to_proxy = False
        if self._connecting_since is not None:
            self._proxy_spans.append(TimingSpan("proxy", self._connecting_since, now))

    def _add_failed(self, event: str, error: BaseException, now: float) -> None:
        """Remember the step of connecting that failed: no stream will tell of it."""
        if self._connecting_since is None:
            return
        # Where connecting failed, the name had been looked up in the same time: "TCP" alone would be untrue.
        title = "DNS" if getattr(error, "phase", None) == "dns" else "connect"
        if ".start_tls." in event:
            title = "TLS"
        elif ".setup_socks5_connection." in event:
            title = "proxy"
        self._failed_to_connect.append(Span(title, self._connecting_since, now))

    def _is_for_tunnel(self, name: str, what: str, info: dict[str, Any]) -> bool:
        """Whether an event is of the request for a tunnel: with a proxy, whatever is no CONNECT is forwarded by it."""
        if (name, what) == ("send_request_headers", "started"):
            self._asks_for_tunnel = info["request"].method == b"CONNECT"
        return self._asks_for_tunnel

    def _tell_of_tunnel(self, name: str, what: str, info: dict[str, Any], now: float) -> None:
        if (name, what) == ("send_request_headers", "started"):
            self._begin(now)
            self._write_request_head(info["request"], "HTTP/1.1")
        elif (name, what) == ("receive_response_headers", "complete"):
            self._write_answer(info["return_value"])
            self._add_handshake(now)
        elif what == "failed" and self._connecting_since is not None:
            self._failed_to_connect.append(Span("proxy", self._connecting_since, now))

    # --- facts ---------------------------------------------------------------------------------------------

    def _write_peer(self) -> None:
        peer = self._stream.get_extra_info("server_addr")
        ours = self._stream.get_extra_info("client_addr")
        via = "" if not isinstance(ours, tuple) else f", from {format_address(ours)}"
        whom = "the proxy " if self._has_proxy else ""
        self._write("* connected" if not peer else f"* connected to {whom}{format_address(peer)}{via}")

    def _write_tls(self, ssl_object: Any) -> None:
        if ssl_object is None or not hasattr(ssl_object, "cipher"):
            return
        alpn = ssl_object.selected_alpn_protocol()
        agreed = f"ALPN {alpn}" if alpn else "no ALPN"
        whom = "with the proxy: " if self._speaks_to_proxy else ""
        self._write(f"* {whom}{ssl_object.version()}, {ssl_object.cipher()[0]}, {agreed}")
        for line in certificate_lines(ssl_object.getpeercert(), ssl_object.getpeercert(True), time.time()):
            self._write(f"* {line}")

    def _write_request(self, request: Request, version: str, now: float) -> None:
        self._moments["sending"] = now
        self._write_request_head(request, version)

    def _write_request_head(self, request: Request, version: str) -> None:
        target = request.url.target
        if self._speaks_to_proxy and not self._asks_for_tunnel:
            target = bytes(request.url)  # as it is sent to a proxy that forwards (RFC 9112, section 3.2.2)
        self._write_head(">", f"{_text(request.method)} {_text(target)} {version}", request.headers)

    def _write_answer(self, answer: tuple[bytes, int, bytes, list[tuple[bytes, bytes]]]) -> None:
        version, status, reason, headers = answer
        self._write_head("<", f"{_text(version)} {status} {_text(reason)}".rstrip(), headers)

    def _write_head(self, mark: str, first: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        self._write(f"{mark} {first}")
        for name, value in headers:
            self._write(f"{mark} {_text(name)}: {_text(value)}")
        self._write(mark)

    def _write(self, line: str) -> None:
        # A terminal that cannot show a character must not end the request.
        if self._is_deaf:
            return
        encoding = self._out.encoding or "utf-8"
        try:
            self._out.write(f"{printable(line)}\n".encode(encoding, "backslashreplace").decode(encoding))
            self._out.flush()
        except (OSError, ValueError):
            self._is_deaf = True  # full, or gone: the request goes on without a witness

    def _bar(self) -> str:
        try:
            BAR.encode(self._out.encoding or "utf-8")
        except UnicodeEncodeError:
            return ASCII_BAR
        return BAR


def certificate_lines(checked: dict[str, Any] | None, encoded: bytes | None, now: float) -> list[str]:
    """What a person wants to know of the server's certificate.

    Args:
        checked: as `getpeercert()` has it; empty where the certificate was not checked.
        encoded: the same, DER.
        now: seconds since 1970.
    """
    if not encoded:
        return ["no certificate"]
    if not checked:
        import hashlib

        return [f"certificate not checked; SHA-256 {hashlib.sha256(encoded).hexdigest()}"]
    import ssl

    names = ", ".join(value for _, value in checked.get("subjectAltName", ()))
    expiry = ssl.cert_time_to_seconds(checked["notAfter"])
    date = time.strftime("%Y-%m-%d", time.gmtime(expiry))
    return [
        f"certificate for {names or 'no names'}",
        f"  subject {_distinguished(checked.get('subject', ())) or 'empty'}",
        f"  issuer  {_distinguished(checked.get('issuer', ())) or 'empty'}",
        f"  expires {date}, in {int(expiry - now) // 86400} days",
    ]


def _distinguished(name: Iterable[Iterable[tuple[str, str]]]) -> str:
    return ", ".join(f"{SHORT_NAMES.get(key, key)}={value}" for part in name for key, value in part)


def _text(data: bytes) -> str:
    # Field values have no charset (RFC 9110, section 5.5). What is UTF-8 hardly ever means anything else.
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def printable(text: str) -> str:
    """The text with everything escaped that a terminal would obey instead of showing."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text
    )
