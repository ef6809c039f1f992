"""A connection pool for HTTP/1.1, over any network backend that fulfils lamina's interfaces.

- `_blocking`, `_suspending`: the public pools, and the worlds in which the shared text blocks a thread or suspends a
  task. `_faces`, `_settings`: what the two have in common.
- `_pool`, `_dialling`, `_connection`, `_body`: the shared text, written once as `async def`; `_io` says what it needs.
- `_lone_blocking`, `_lone_suspending`: connections without a pool, over `_lone`, which is a pool of one. `_interfaces`:
  what pools and connections offer alike. `_proxy_pools`: pools under other names, whose requests go through proxies.
- `_scheduler`, `_lone_scheduler`: who gets which connection. `_http11`: what an HTTP/1.1 connection may do next, by way
  of `_http11_fast` or, in doubt, of h11 in `_http11_judge`; `_http11_events` is what these have in common. `_http2`:
  the same for HTTP/2, over h2. They are pure.
- `_models`, `_urls`: requests, responses, URLs. `_checks`: what is refused before a byte is sent.
- `_environment`: proxies as the environment names them, for those who ask.
- `_ssl`: the default TLS settings. `_trace`: what is told while a request is under way. `_stats`, `_info`: what a pool
  and a response tell when they are asked. `_events`, `_observing`: what a pool tells its listener, and how;
  `_releasing`: what of that the pool itself needs. `_opentelemetry` is a listener.
"""

import sys as _sys
from importlib import import_module as _import_module

from ._version import __version__ as __version__

# Type checkers take it for the one of `typing`, which would be most of what this module costs.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from ._blocking import ConnectionPool as ConnectionPool
    from ._checks import build_request as build_request
    from ._environment import ProxyEnvironment as ProxyEnvironment
    from ._events import BodyReceived as BodyReceived
    from ._events import ConnectFailed as ConnectFailed
    from ._events import ConnectionAcquired as ConnectionAcquired
    from ._events import ConnectionClosed as ConnectionClosed
    from ._events import ConnectionOpened as ConnectionOpened
    from ._events import ConnectionReleased as ConnectionReleased
    from ._events import ConnectStep as ConnectStep
    from ._events import ExchangeEvent as ExchangeEvent
    from ._events import NameResolved as NameResolved
    from ._events import PoolEvent as PoolEvent
    from ._events import ProxyConnected as ProxyConnected
    from ._events import RequestEnded as RequestEnded
    from ._events import RequestEvent as RequestEvent
    from ._events import RequestQueued as RequestQueued
    from ._events import RequestSent as RequestSent
    from ._events import RequestStarted as RequestStarted
    from ._events import ResponseStarted as ResponseStarted
    from ._events import TCPConnected as TCPConnected
    from ._events import TLSEstablished as TLSEstablished
    from ._info import ConnectionInfo as ConnectionInfo
    from ._interfaces import AsyncConnectionInterface as AsyncConnectionInterface
    from ._interfaces import ConnectionInterface as ConnectionInterface
    from ._lone import OriginMismatch as OriginMismatch
    from ._lone_blocking import HTTP2Connection as HTTP2Connection
    from ._lone_blocking import HTTP11Connection as HTTP11Connection
    from ._lone_blocking import HTTPConnection as HTTPConnection
    from ._lone_suspending import AsyncHTTP2Connection as AsyncHTTP2Connection
    from ._lone_suspending import AsyncHTTP11Connection as AsyncHTTP11Connection
    from ._lone_suspending import AsyncHTTPConnection as AsyncHTTPConnection
    from ._models import ByteStream as ByteStream
    from ._models import ContentTypes as ContentTypes
    from ._models import Extensions as Extensions
    from ._models import HeaderTypes as HeaderTypes
    from ._models import Proxy as Proxy
    from ._models import Request as Request
    from ._models import Response as Response
    from ._models import ResponseStateError as ResponseStateError
    from ._models import enforce_headers as enforce_headers
    from ._opentelemetry import OpenTelemetryMetrics as OpenTelemetryMetrics
    from ._proxy_pools import AsyncHTTPProxy as AsyncHTTPProxy
    from ._proxy_pools import AsyncSOCKSProxy as AsyncSOCKSProxy
    from ._proxy_pools import HTTPProxy as HTTPProxy
    from ._proxy_pools import SOCKSProxy as SOCKSProxy
    from ._releasing import ReleaseReason as ReleaseReason
    from ._scheduler import CloseReason as CloseReason
    from ._ssl import default_ssl_context as default_ssl_context
    from ._stats import OriginStats as OriginStats
    from ._stats import PooledConnection as PooledConnection
    from ._stats import PoolStats as PoolStats
    from ._suspending import AsyncConnectionPool as AsyncConnectionPool
    from ._urls import URL as URL
    from ._urls import Origin as Origin

__all__ = [
    "URL",
    "AsyncConnectionInterface",
    "AsyncConnectionPool",
    "AsyncHTTP2Connection",
    "AsyncHTTP11Connection",
    "AsyncHTTPConnection",
    "AsyncHTTPProxy",
    "AsyncSOCKSProxy",
    "BodyReceived",
    "ByteStream",
    "CloseReason",
    "ConnectFailed",
    "ConnectStep",
    "ConnectionAcquired",
    "ConnectionClosed",
    "ConnectionInfo",
    "ConnectionInterface",
    "ConnectionOpened",
    "ConnectionPool",
    "ConnectionReleased",
    "ContentTypes",
    "ExchangeEvent",
    "Extensions",
    "HTTP2Connection",
    "HTTP11Connection",
    "HTTPConnection",
    "HTTPProxy",
    "HeaderTypes",
    "NameResolved",
    "OpenTelemetryMetrics",
    "Origin",
    "OriginMismatch",
    "OriginStats",
    "PoolEvent",
    "PoolStats",
    "PooledConnection",
    "Proxy",
    "ProxyConnected",
    "ProxyEnvironment",
    "ReleaseReason",
    "Request",
    "RequestEnded",
    "RequestEvent",
    "RequestQueued",
    "RequestSent",
    "RequestStarted",
    "Response",
    "ResponseStarted",
    "ResponseStateError",
    "SOCKSProxy",
    "TCPConnected",
    "TLSEstablished",
    "__version__",
    "build_request",
    "default_ssl_context",
    "enforce_headers",
]

# Where each is. A module is imported when one of its names is first used: whoever sends a request with a pool needs
# no lone connections, no proxies under other names, no listeners.
_HOMES = {
    "AsyncConnectionInterface": "_interfaces",
    "AsyncConnectionPool": "_suspending",
    "AsyncHTTP11Connection": "_lone_suspending",
    "AsyncHTTP2Connection": "_lone_suspending",
    "AsyncHTTPConnection": "_lone_suspending",
    "AsyncHTTPProxy": "_proxy_pools",
    "AsyncSOCKSProxy": "_proxy_pools",
    "BodyReceived": "_events",
    "ByteStream": "_models",
    "CloseReason": "_scheduler",
    "ConnectFailed": "_events",
    "ConnectStep": "_events",
    "ConnectionAcquired": "_events",
    "ConnectionClosed": "_events",
    "ConnectionInfo": "_info",
    "ConnectionInterface": "_interfaces",
    "ConnectionOpened": "_events",
    "ConnectionPool": "_blocking",
    "ConnectionReleased": "_events",
    "ContentTypes": "_models",
    "ExchangeEvent": "_events",
    "Extensions": "_models",
    "HTTP11Connection": "_lone_blocking",
    "HTTP2Connection": "_lone_blocking",
    "HTTPConnection": "_lone_blocking",
    "HTTPProxy": "_proxy_pools",
    "HeaderTypes": "_models",
    "NameResolved": "_events",
    "OpenTelemetryMetrics": "_opentelemetry",
    "Origin": "_urls",
    "OriginMismatch": "_lone",
    "OriginStats": "_stats",
    "PoolEvent": "_events",
    "PoolStats": "_stats",
    "PooledConnection": "_stats",
    "Proxy": "_models",
    "ProxyConnected": "_events",
    "ProxyEnvironment": "_environment",
    "ReleaseReason": "_releasing",
    "Request": "_models",
    "RequestEnded": "_events",
    "RequestEvent": "_events",
    "RequestQueued": "_events",
    "RequestSent": "_events",
    "RequestStarted": "_events",
    "Response": "_models",
    "ResponseStarted": "_events",
    "ResponseStateError": "_models",
    "SOCKSProxy": "_proxy_pools",
    "TCPConnected": "_events",
    "TLSEstablished": "_events",
    "URL": "_urls",
    "build_request": "_checks",
    "default_ssl_context": "_ssl",
    "enforce_headers": "_models",
}

# Hidden from type checkers, which would take it as leave to use any name at all.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        _import_module(f"{__name__}.{_HOMES[name]}")
        _publish()
        return globals()[name]

    def _publish() -> None:
        # Not only the name that was asked for: an exception, for one, may be met by who has never imported it.
        for name, home in _HOMES.items():
            module = _sys.modules.get(f"{__name__}.{home}")
            value = getattr(
                module, name, None
            )  # a module may be there half made, while another thread imports it
            if value is not None and name not in globals():
                globals()[name] = value
                if callable(value) and value.__module__ == module.__name__:
                    value.__module__ = __name__

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
