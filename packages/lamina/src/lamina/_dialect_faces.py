"""What the faces of `lamina.sync` and `lamina.aio` share besides messages and redirects: checks, names, small rules.

Nothing here waits or holds anything.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectionNotAvailable,
    LaminaError,
    UnsupportedProtocol,
    interruptions,
)
from lamina_pool import URL, Origin

from ._dialect_models import Headers
from ._version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lamina_interfaces import SocketAddress
    from lamina_pool import Extensions, PoolStats

    from ._dialect_models import Request, URLTypes

CLIENT_HEADERS = Headers({"User-Agent": f"lamina/{__version__}"})
"""What a client sends if it is not told otherwise. Some servers refuse a request that does not say who asks."""


def stream_name(address: SocketAddress | None, *, is_closed: bool, is_tls: bool) -> str:
    """The `repr` of a `NetworkStream`."""
    from lamina_interfaces.dialing import format_address

    peer = format_address(address) if address else "an unnamed peer"
    state = " CLOSED" if is_closed else " TLS" if is_tls else ""
    return f'<NetworkStream ["{peer}"{state}]>'


def method_and_url(method: Any, url: URLTypes | None) -> tuple[Any, Any]:
    """Sort out the arguments of `stream(url)` and `stream(method, url)`."""
    return ("GET", method) if url is None else (method, url)


def check_transport(transport: Any, foreign: str, module: str) -> None:
    """Refuse what is no transport, or one of the other world.

    Raises:
        ArgumentTypeError: it is.
    """
    is_class = isinstance(transport, type)
    name = f"the class {transport.__name__}" if is_class else type(transport).__name__
    if is_class or not hasattr(transport, "send"):
        raise ArgumentTypeError(f"transport must be a {module}.Transport, or have its methods, not {name}")
    if hasattr(transport, foreign):
        raise ArgumentTypeError(f"transport must be a {module}.Transport; {name} is of the other module")


class OneOrigin:
    """What a `Connection` may be asked for: requests to its own origin.

    Args:
        url: of the origin.
        hostname: the name that the certificate must bear, if it is not the one in `url`.

    Raises:
        InvalidURL, UnsupportedProtocol, ArgumentTypeError: `url` is no URL of http or https.
        ArgumentTypeError: `hostname` is no text.
    """

    def __init__(self, url: URLTypes, hostname: str | None) -> None:
        place = url if isinstance(url, URL) else URL(url)
        if place.scheme not in (b"http", b"https"):
            raise UnsupportedProtocol(f"a connection is for http and https, not {place.scheme.decode()!r}")
        if hostname is not None and not isinstance(hostname, str):
            raise ArgumentTypeError(f"hostname must be a str or None, not {type(hostname).__name__}")
        self.origin: Origin = place.origin
        self._prefix = bytes(place.with_target(b"")).decode("ascii")
        self.host: str = self.origin.host.decode("ascii")
        self.port: int = self.origin.port
        self.extensions: Extensions | None = None if hostname is None else {"sni_hostname": hostname}

    def complete(self, url: URLTypes) -> URLTypes:
        """Put the origin before a path."""
        return f"{self._prefix}{url}" if isinstance(url, str) and url.startswith("/") else url

    def check(self, request: Request, *, is_closed: bool) -> None:
        """Refuse a request that cannot go over this connection.

        Raises:
            ArgumentValueError: it is for another origin.
            ConnectionNotAvailable: the connection is closed.
        """
        wanted = URL(request.url).origin
        if wanted != self.origin:
            raise ArgumentValueError(f"this connection leads to {self.origin}, not to {wanted}")
        if is_closed:
            raise ConnectionNotAvailable("the connection was closed", origin=str(self.origin))

    @contextmanager
    def named_in_errors(self) -> Iterator[None]:
        """Give the origin to the error that passes by, and to that which a deadline's block will raise instead."""
        try:
            yield
        except BaseException as error:
            for each in (error, *interruptions()):
                if isinstance(each, LaminaError) and each.origin is None:
                    each.origin = str(self.origin)
            raise

    def connection_name(self, stats: PoolStats, *, is_closed: bool) -> str:
        """The `repr` of a `Connection`."""
        state = "CLOSED" if is_closed else "ACTIVE" if stats.active or stats.connecting else "IDLE"
        return f'<Connection ["{self._prefix}" {state}]>'
