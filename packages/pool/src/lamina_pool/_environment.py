"""Proxies as the environment names them, for those who ask: no pool reads the environment by itself.

There is no standard, only customs that grew. Where curl, Go and Python's `urllib.request` agree it is as they do it;
where they do not:

- *A lower-case name goes before an upper-case one*, also where it is empty, which switches that proxy off (`urllib`;
  curl would take the upper-case one then).
- *`HTTP_PROXY` does not count in a CGI program*, which `REQUEST_METHOD` gives away: there a client's header
  `Proxy: …` becomes that variable, and would lead the program's requests to the client (httpoxy, CVE-2016-5385). On
  Windows names have no case, so there neither counts.
- *A proxy without a port* has its scheme's own (`urllib`): 80, 443, 1080. curl takes 1080 for all but `https`.
- *An entry of `NO_PROXY` that begins with a dot* also means the name without it (curl and `urllib`, not Go). So does
  one that begins with `*.`, which only some know.
- *Addresses and networks in `NO_PROXY`* are compared as numbers, with hosts that are addresses (curl and Go). No name
  is looked up for that. And no entry for names means an address: `.1` is not the end of `127.0.0.1`.
- *An entry that makes no sense is left aside*, as everybody does. A proxy that makes none is an error, but only where
  it would be used: many desktops set `ALL_PROXY=socks://…` beside the others.

No error and no `repr` shows the value of a variable, for it may hold a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from lamina_interfaces import ArgumentTypeError, InvalidURL, LocalProtocolError, UnsupportedProtocol

from ._models import Proxy
from ._proxies import read_proxy
from ._urls import DEFAULT_PORTS, check_host, enforce_url

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from ._urls import URL

Network: TypeAlias = "IPv4Network | IPv6Network"

_VARIABLES = {b"http": "http_proxy", b"ws": "http_proxy", b"https": "https_proxy", b"wss": "https_proxy"}
"""The variable, in lower case, for the scheme of a request's URL."""

_EVERYTHING_ELSE = "all_proxy"
_EXCEPTIONS = "no_proxy"
_KNOWN = (*dict.fromkeys(_VARIABLES.values()), _EVERYTHING_ELSE, _EXCEPTIONS)

_separator = re.compile(r"[,\s]+").split
# The port of an entry: `name:8080`, `[::1]:8080`. A bare IPv6 address has none.
_host_and_port = re.compile(
    r"(?:\[(?P<literal>[^\[\]]*)\]|(?P<name>[^:]*))(?::(?P<port>[0-9]{1,5}))?"
).fullmatch


class ProxyEnvironment:
    """The proxies that the environment names: `http_proxy`, `https_proxy`, `all_proxy`, and `no_proxy`.

    A pool has one proxy or none, so a program that obeys the environment has a pool for each.

    .. code-block:: python

        from lamina_pool import ProxyEnvironment

        environment = ProxyEnvironment({"https_proxy": "proxy.example:3128", "no_proxy": ".internal.example"})
        proxy = environment.proxy_for("https://www.example.org/")
        assert proxy is environment.proxy_for("https://www.example.com/")  # pools can be kept by it
        assert environment.proxy_for("https://www.internal.example/") is None

    Each variable counts in lower and in upper case, the lower one first. `HTTP_PROXY` does not count where there is a
    `REQUEST_METHOD`, as in a CGI program (CVE-2016-5385). A value may be a URL, or a host and port, which is taken for
    an HTTP proxy. It may have a user name and a password, percent-encoded where they have special characters.

    `no_proxy` lists the hosts that are reached without a proxy, separated by commas or white space: `*` for all; a
    name, which also means the names below it, with or without a dot before it; an IP address, or a network
    (`10.0.0.0/8`), for URLs with addresses. A name or an address may have a port (`example.org:8080`, `[::1]:8080`).

    The environment is read once, when this is made. Thread-safe.

    Args:
        environ: the variables; those of the process if `None`.

    Raises:
        ArgumentTypeError: `environ` is no mapping.
    """

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        if environ is None:
            environ = os.environ
        elif not isinstance(environ, Mapping):
            raise ArgumentTypeError(f"environ must be a mapping, not {type(environ).__name__}")
        # The value by the lower-case name, with the name as it is set, for errors.
        self._values: dict[str, tuple[str, str]] = {}
        # Over the names as they are: on Windows it is `get` that knows no case.
        names = dict.fromkeys(environ)
        for lower in _KNOWN:
            upper = lower.upper()
            if lower in names:
                self._values[lower] = lower, environ[lower].strip()
            elif upper in names and not (upper == "HTTP_PROXY" and "REQUEST_METHOD" in names):
                self._values[lower] = upper, environ[upper].strip()
        _, no_proxy = self._values.get(_EXCEPTIONS, ("", ""))
        entries = [entry for entry in _separator(no_proxy) if entry]
        self._is_off = "*" in entries
        self._networks: list[tuple[Network, int | None]] = []
        self._suffixes: list[tuple[bytes, int | None]] = []
        for entry in entries:
            self._except(entry)
        self._proxies: dict[str, Proxy] = {}  # by the value of the variable

    def proxy_for(self, url: URL | bytes | str) -> Proxy | None:
        """Return the proxy for requests to a URL, or `None` for none.

        Where it is the same proxy it is the same object, so that pools can be found by it.

        Args:
            url: of the request.

        Raises:
            InvalidURL: the URL, or the variable for it, cannot be taken apart.
            UnsupportedProtocol: the variable has a scheme that is not spoken, or socksio is not installed.
            LocalProtocolError: the variable has credentials that the proxy's protocol cannot carry.
            ArgumentTypeError: `url` is no URL.
        """
        place = enforce_url(url, "url")
        for lower in (_VARIABLES.get(place.scheme), _EVERYTHING_ELSE):
            variable, value = self._values.get(lower or "", ("", ""))
            if value:
                return None if self._is_excepted(place) else self._proxy(variable, value)
        return None

    def _proxy(self, variable: str, value: str) -> Proxy:
        known = self._proxies.get(value)
        if known is not None:
            return known
        try:
            proxy = Proxy(value if "://" in value else f"http://{value}")
            read_proxy(proxy)
        except (InvalidURL, UnsupportedProtocol, LocalProtocolError) as error:
            raise type(error)(f"the environment variable {variable}: {error.message}") from None
        return self._proxies.setdefault(value, proxy)  # another thread may have been first

    def _except(self, entry: str) -> None:
        """Take in an entry of `no_proxy`, unless it can mean no host."""
        host, port = entry, None
        network = _network(host)
        if network is None:
            parts = _host_and_port(entry)
            if parts is None:
                return
            host, port = parts["literal"] or parts["name"], int(parts["port"] or 0) or None
            network = _network(host)
        if network is not None:
            self._networks.append((network, port))
            return
        try:
            name = check_host(host.removeprefix("*").lstrip(".").removesuffix("."))
        except InvalidURL:
            return
        if name:
            self._suffixes.append((b"." + name, port))

    def _is_excepted(self, place: URL) -> bool:
        if self._is_off:
            return True
        port = place.port or DEFAULT_PORTS.get(place.scheme)
        address = _network(place.host.decode("ascii"))
        if address is not None:
            return any(
                address.network_address in network and only in (None, port)
                for network, only in self._networks
            )
        name = b"." + place.host.removesuffix(b".")
        return any(name.endswith(suffix) and only in (None, port) for suffix, only in self._suffixes)

    def __repr__(self) -> str:
        names = ", ".join(variable for variable, _ in self._values.values())
        return f"<{type(self).__name__} [{names or 'nothing set'}]>"


def _network(text: str) -> Network | None:
    """The address or network that a text stands for, or `None`."""
    if ":" not in text and not text[-1:].isdigit():
        return None  # a name, as most are
    import ipaddress

    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
