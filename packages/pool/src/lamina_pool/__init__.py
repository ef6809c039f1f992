"""A connection pool for HTTP/1.1, over any network backend that fulfils lamina's interfaces.

- `_blocking`, `_suspending`: the public pools, and the worlds in which the shared text blocks a thread or suspends a
  task. `_faces`, `_settings`: what the two have in common.
- `_pool`, `_dialling`, `_connection`, `_body`: the shared text, written once as `async def`; `_io` says what it needs.
- `_scheduler`: who gets which connection. `_http11`: what an HTTP/1.1 connection may do next. Both are pure.
- `_models`, `_urls`: requests, responses, URLs. `_checks`: what is refused before a byte is sent.
- `_ssl`: the default TLS settings. `_trace`: what is told while a request is under way. `_stats`: what a pool tells
  about itself.
"""

from __future__ import annotations

from ._blocking import ConnectionPool as ConnectionPool
from ._checks import build_request as build_request
from ._models import ByteStream as ByteStream
from ._models import ContentTypes as ContentTypes
from ._models import Extensions as Extensions
from ._models import HeaderTypes as HeaderTypes
from ._models import Proxy as Proxy
from ._models import Request as Request
from ._models import Response as Response
from ._models import ResponseStateError as ResponseStateError
from ._models import enforce_headers as enforce_headers
from ._ssl import default_ssl_context as default_ssl_context
from ._stats import PooledConnection as PooledConnection
from ._stats import PoolStats as PoolStats
from ._suspending import AsyncConnectionPool as AsyncConnectionPool
from ._urls import URL as URL
from ._urls import Origin as Origin
from ._version import __version__ as __version__

__all__ = [
    "URL",
    "AsyncConnectionPool",
    "ByteStream",
    "ConnectionPool",
    "ContentTypes",
    "Extensions",
    "HeaderTypes",
    "Origin",
    "PoolStats",
    "PooledConnection",
    "Proxy",
    "Request",
    "Response",
    "ResponseStateError",
    "__version__",
    "build_request",
    "default_ssl_context",
    "enforce_headers",
]

for _name in __all__:
    if callable(_public := globals()[_name]) and _public.__module__.startswith(f"{__name__}._"):
        _public.__module__ = __name__
