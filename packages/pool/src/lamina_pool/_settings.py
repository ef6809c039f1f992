"""What a pool is told when it is made: checked, and brought into the form that the scheduler and the dialler take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina_interfaces import ArgumentTypeError, ArgumentValueError, UnsupportedProtocol, check_seconds

from ._dialling import DialOptions, has_h2
from ._proxies import read_proxy
from ._scheduler import Limits

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from lamina_interfaces import SocketOption

    from ._models import Proxy


def read_settings(
    *,
    ssl_context: ssl.SSLContext | None,
    proxy: Proxy | None,
    max_connections: int | None,
    max_keepalive_connections: int | None,
    keepalive_expiry: float | None,
    http1: bool,
    http2: bool,
    http2_ping_interval: float | None,
    http2_ping_timeout: float,
    retries: int,
    local_address: str | None,
    uds: str | None,
    socket_options: Iterable[SocketOption] | None,
    max_connections_per_origin: int | None,
    max_connection_age: float | None,
    age_jitter: float,
) -> tuple[Limits, DialOptions]:
    """Check the arguments of a pool. What they mean, `ConnectionPool` says.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense.
        UnsupportedProtocol: it needs a package that is not installed.
        InvalidURL, LocalProtocolError: the proxy cannot be one, or not be spoken to like this.
    """
    if not (http1 or http2):
        raise ArgumentValueError("either http1 or http2 must be true: a pool must speak something")
    if http2 and not has_h2():
        raise UnsupportedProtocol("HTTP/2 needs the package h2: pip install 'lamina-pool[http2]'")
    if uds is not None and local_address is not None:
        raise ArgumentValueError("uds and local_address exclude each other: a unix socket has no IP address")
    if not check_seconds(age_jitter, "age_jitter") <= 1.0:
        raise ArgumentValueError(f"age_jitter must be from 0 to 1, got {age_jitter!r}")
    limits = Limits(
        max_connections=_count(max_connections, "max_connections", least=1),
        max_connections_per_origin=_count(max_connections_per_origin, "max_connections_per_origin", least=1),
        max_idle=_count(max_keepalive_connections, "max_keepalive_connections", least=0),
        idle_seconds=check_seconds(keepalive_expiry, "keepalive_expiry"),
        max_age=check_seconds(max_connection_age, "max_connection_age"),
        age_jitter=age_jitter,
    )
    options = DialOptions(
        http1=bool(http1),
        http2=bool(http2),
        http2_ping_interval=(
            None if http2_ping_interval is None else check_seconds(http2_ping_interval, "http2_ping_interval")
        ),
        http2_ping_timeout=check_seconds(http2_ping_timeout, "http2_ping_timeout"),
        ssl_context=ssl_context,
        proxy=None if proxy is None else read_proxy(proxy),
        retries=_number(retries, "retries", least=0),
        local_address=local_address,
        uds=uds,
        socket_options=None if socket_options is None else _options(socket_options),
    )
    return limits, options


def _options(options: Iterable[SocketOption]) -> tuple[SocketOption, ...]:
    try:
        return tuple(options)
    except TypeError:
        raise ArgumentTypeError(f"socket_options must be iterable, not {type(options).__name__}") from None


def _count(number: int | None, name: str, *, least: int) -> float:
    return float("inf") if number is None else _number(number, name, least=least)


def _number(number: int, name: str, *, least: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise ArgumentTypeError(f"{name} must be an int, not {type(number).__name__}")
    if number < least:
        raise ArgumentValueError(f"{name} must be at least {least}, got {number}")
    return number
