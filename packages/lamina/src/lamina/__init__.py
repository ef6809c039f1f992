"""The assembled network layer of an HTTP client, behind one flat module that speaks the words of httpcore 1.0.

- Here: the names, and the table that says which layer has each of them. A layer is imported when one of its names is
  first used, so `import lamina` alone costs next to nothing.
- `_api`: the functions that need no pool, `request` and `stream`, and names that only exist here.
- `sync`, `aio`: the second dialect, a small client over network streams without `timeout=`, blocking and async. They
  share `_dialect_models`, `_dialect_redirects` and `_dialect_faces`.
- `httpx`, `httpx2`: transports for the clients of these names, which share `_httpx_transports`. `_as_httpcore`: lamina
  in the place of httpcore.
- `__main__`, `_cli`, `_cli_arguments`, `_cli_report`, `_cli_output`, `_cli_waiting`: the command `lamina`, also
  `python -m lamina`. `_waterfall`: where the time of a request went, as text bars.
- `demo`: all layers at work on loopback, `python -m lamina.demo`. `_demo_server` is what they talk to.
"""

from importlib import import_module as _import_module

from ._version import __version__ as __version__

# Type checkers take it for the one of `typing`, which would be most of what this module costs.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from lamina_async_backends import AnyIOBackend as AnyIOBackend
    from lamina_async_backends import AnyIOStream as AnyIOStream
    from lamina_async_backends import AsyncioBackend as AsyncioBackend
    from lamina_async_backends import AsyncioStream as AsyncioStream
    from lamina_async_backends import AutoBackend as AutoBackend
    from lamina_async_backends import TrioBackend as TrioBackend
    from lamina_async_backends import TrioStream as TrioStream
    from lamina_interfaces import ArgumentTypeError as ArgumentTypeError
    from lamina_interfaces import ArgumentValueError as ArgumentValueError
    from lamina_interfaces import AsyncDirectReader as AsyncDirectReader
    from lamina_interfaces import AsyncInterruptibleWriter as AsyncInterruptibleWriter
    from lamina_interfaces import AsyncNameResolver as AsyncNameResolver
    from lamina_interfaces import AsyncNetworkBackend as AsyncNetworkBackend
    from lamina_interfaces import AsyncNetworkStream as AsyncNetworkStream
    from lamina_interfaces import AsyncPromptWriter as AsyncPromptWriter
    from lamina_interfaces import AsyncResolver as AsyncResolver
    from lamina_interfaces import BackendNotFound as BackendNotFound
    from lamina_interfaces import ConcurrencyError as ConcurrencyError
    from lamina_interfaces import ConnectAttempt as ConnectAttempt
    from lamina_interfaces import ConnectError as ConnectError
    from lamina_interfaces import ConnectionNotAvailable as ConnectionNotAvailable
    from lamina_interfaces import ConnectTimeout as ConnectTimeout
    from lamina_interfaces import DeadlineExceeded as DeadlineExceeded
    from lamina_interfaces import DirectReader as DirectReader
    from lamina_interfaces import InterruptibleWriter as InterruptibleWriter
    from lamina_interfaces import InvalidURL as InvalidURL
    from lamina_interfaces import LaminaError as LaminaError
    from lamina_interfaces import LocalProtocolError as LocalProtocolError
    from lamina_interfaces import NameResolver as NameResolver
    from lamina_interfaces import NetworkBackend as NetworkBackend
    from lamina_interfaces import NetworkError as NetworkError
    from lamina_interfaces import NetworkStream as NetworkStream
    from lamina_interfaces import PoolClosed as PoolClosed
    from lamina_interfaces import PoolTimeout as PoolTimeout
    from lamina_interfaces import PromptCloser as PromptCloser
    from lamina_interfaces import PromptWriter as PromptWriter
    from lamina_interfaces import ProtocolError as ProtocolError
    from lamina_interfaces import ProxyError as ProxyError
    from lamina_interfaces import ReadError as ReadError
    from lamina_interfaces import ReadTimeout as ReadTimeout
    from lamina_interfaces import RemoteProtocolError as RemoteProtocolError
    from lamina_interfaces import ResolvedAddress as ResolvedAddress
    from lamina_interfaces import Resolver as Resolver
    from lamina_interfaces import TimeoutException as TimeoutException
    from lamina_interfaces import TimingSpan as TimingSpan
    from lamina_interfaces import UnsupportedProtocol as UnsupportedProtocol
    from lamina_interfaces import WriteError as WriteError
    from lamina_interfaces import WriteTimeout as WriteTimeout
    from lamina_interfaces import default_backend as default_backend
    from lamina_interfaces import load_backend as load_backend
    from lamina_mock import AsyncMockBackend as AsyncMockBackend
    from lamina_mock import AsyncMockStream as AsyncMockStream
    from lamina_mock import MockBackend as MockBackend
    from lamina_mock import MockStream as MockStream
    from lamina_pool import URL as URL
    from lamina_pool import AsyncConnectionInterface as AsyncConnectionInterface
    from lamina_pool import AsyncConnectionPool as AsyncConnectionPool
    from lamina_pool import AsyncHTTP2Connection as AsyncHTTP2Connection
    from lamina_pool import AsyncHTTP11Connection as AsyncHTTP11Connection
    from lamina_pool import AsyncHTTPConnection as AsyncHTTPConnection
    from lamina_pool import AsyncHTTPProxy as AsyncHTTPProxy
    from lamina_pool import AsyncSOCKSProxy as AsyncSOCKSProxy
    from lamina_pool import BodyReceived as BodyReceived
    from lamina_pool import ByteStream as ByteStream
    from lamina_pool import CloseReason as CloseReason
    from lamina_pool import ConnectFailed as ConnectFailed
    from lamina_pool import ConnectionAcquired as ConnectionAcquired
    from lamina_pool import ConnectionClosed as ConnectionClosed
    from lamina_pool import ConnectionInfo as ConnectionInfo
    from lamina_pool import ConnectionInterface as ConnectionInterface
    from lamina_pool import ConnectionOpened as ConnectionOpened
    from lamina_pool import ConnectionPool as ConnectionPool
    from lamina_pool import ConnectionReleased as ConnectionReleased
    from lamina_pool import ConnectStep as ConnectStep
    from lamina_pool import ContentTypes as ContentTypes
    from lamina_pool import ExchangeEvent as ExchangeEvent
    from lamina_pool import Extensions as Extensions
    from lamina_pool import HeaderTypes as HeaderTypes
    from lamina_pool import HTTP2Connection as HTTP2Connection
    from lamina_pool import HTTP11Connection as HTTP11Connection
    from lamina_pool import HTTPConnection as HTTPConnection
    from lamina_pool import HTTPProxy as HTTPProxy
    from lamina_pool import NameResolved as NameResolved
    from lamina_pool import OpenTelemetryMetrics as OpenTelemetryMetrics
    from lamina_pool import Origin as Origin
    from lamina_pool import OriginMismatch as OriginMismatch
    from lamina_pool import OriginStats as OriginStats
    from lamina_pool import PooledConnection as PooledConnection
    from lamina_pool import PoolEvent as PoolEvent
    from lamina_pool import PoolStats as PoolStats
    from lamina_pool import Proxy as Proxy
    from lamina_pool import ProxyConnected as ProxyConnected
    from lamina_pool import ProxyEnvironment as ProxyEnvironment
    from lamina_pool import ReleaseReason as ReleaseReason
    from lamina_pool import Request as Request
    from lamina_pool import RequestEnded as RequestEnded
    from lamina_pool import RequestEvent as RequestEvent
    from lamina_pool import RequestQueued as RequestQueued
    from lamina_pool import RequestSent as RequestSent
    from lamina_pool import RequestStarted as RequestStarted
    from lamina_pool import Response as Response
    from lamina_pool import ResponseStarted as ResponseStarted
    from lamina_pool import ResponseStateError as ResponseStateError
    from lamina_pool import SOCKSProxy as SOCKSProxy
    from lamina_pool import TCPConnected as TCPConnected
    from lamina_pool import TLSEstablished as TLSEstablished
    from lamina_pool import default_ssl_context as default_ssl_context
    from lamina_sync_backend import SyncBackend as SyncBackend
    from lamina_sync_backend import SyncStream as SyncStream
    from lamina_timeouts import TimeoutStateError as TimeoutStateError
    from lamina_timeouts import timeout as timeout

    from . import aio as aio
    from . import sync as sync
    from ._api import SOCKET_OPTION as SOCKET_OPTION
    from ._api import request as request
    from ._api import stream as stream
    from ._as_httpcore import as_httpcore as as_httpcore

__all__ = [
    "SOCKET_OPTION",
    "URL",
    "AnyIOBackend",
    "AnyIOStream",
    "ArgumentTypeError",
    "ArgumentValueError",
    "AsyncConnectionInterface",
    "AsyncConnectionPool",
    "AsyncDirectReader",
    "AsyncHTTP2Connection",
    "AsyncHTTP11Connection",
    "AsyncHTTPConnection",
    "AsyncHTTPProxy",
    "AsyncInterruptibleWriter",
    "AsyncMockBackend",
    "AsyncMockStream",
    "AsyncNameResolver",
    "AsyncNetworkBackend",
    "AsyncNetworkStream",
    "AsyncPromptWriter",
    "AsyncResolver",
    "AsyncSOCKSProxy",
    "AsyncioBackend",
    "AsyncioStream",
    "AutoBackend",
    "BackendNotFound",
    "BodyReceived",
    "ByteStream",
    "CloseReason",
    "ConcurrencyError",
    "ConnectAttempt",
    "ConnectError",
    "ConnectFailed",
    "ConnectStep",
    "ConnectTimeout",
    "ConnectionAcquired",
    "ConnectionClosed",
    "ConnectionInfo",
    "ConnectionInterface",
    "ConnectionNotAvailable",
    "ConnectionOpened",
    "ConnectionPool",
    "ConnectionReleased",
    "ContentTypes",
    "DeadlineExceeded",
    "DirectReader",
    "ExchangeEvent",
    "Extensions",
    "HTTP2Connection",
    "HTTP11Connection",
    "HTTPConnection",
    "HTTPProxy",
    "HeaderTypes",
    "InterruptibleWriter",
    "InvalidURL",
    "LaminaError",
    "LocalProtocolError",
    "MockBackend",
    "MockStream",
    "NameResolved",
    "NameResolver",
    "NetworkBackend",
    "NetworkError",
    "NetworkStream",
    "OpenTelemetryMetrics",
    "Origin",
    "OriginMismatch",
    "OriginStats",
    "PoolClosed",
    "PoolEvent",
    "PoolStats",
    "PoolTimeout",
    "PooledConnection",
    "PromptCloser",
    "PromptWriter",
    "ProtocolError",
    "Proxy",
    "ProxyConnected",
    "ProxyEnvironment",
    "ProxyError",
    "ReadError",
    "ReadTimeout",
    "ReleaseReason",
    "RemoteProtocolError",
    "Request",
    "RequestEnded",
    "RequestEvent",
    "RequestQueued",
    "RequestSent",
    "RequestStarted",
    "ResolvedAddress",
    "Resolver",
    "Response",
    "ResponseStarted",
    "ResponseStateError",
    "SOCKSProxy",
    "SyncBackend",
    "SyncStream",
    "TCPConnected",
    "TLSEstablished",
    "TimeoutException",
    "TimeoutStateError",
    "TimingSpan",
    "TrioBackend",
    "TrioStream",
    "UnsupportedProtocol",
    "WriteError",
    "WriteTimeout",
    "__version__",
    "aio",
    "as_httpcore",
    "default_backend",
    "default_ssl_context",
    "load_backend",
    "request",
    "stream",
    "sync",
    "timeout",
]

# What is not in the table comes from `lamina_interfaces`.
_HOMES = {
    "AnyIOBackend": "lamina_async_backends",
    "AnyIOStream": "lamina_async_backends",
    "AsyncConnectionInterface": "lamina_pool",
    "AsyncConnectionPool": "lamina_pool",
    "AsyncHTTP11Connection": "lamina_pool",
    "AsyncHTTP2Connection": "lamina_pool",
    "AsyncHTTPConnection": "lamina_pool",
    "AsyncHTTPProxy": "lamina_pool",
    "AsyncMockBackend": "lamina_mock",
    "AsyncMockStream": "lamina_mock",
    "AsyncSOCKSProxy": "lamina_pool",
    "AsyncioBackend": "lamina_async_backends",
    "AsyncioStream": "lamina_async_backends",
    "AutoBackend": "lamina_async_backends",
    "BodyReceived": "lamina_pool",
    "ByteStream": "lamina_pool",
    "CloseReason": "lamina_pool",
    "ConnectFailed": "lamina_pool",
    "ConnectStep": "lamina_pool",
    "ConnectionAcquired": "lamina_pool",
    "ConnectionClosed": "lamina_pool",
    "ConnectionInfo": "lamina_pool",
    "ConnectionInterface": "lamina_pool",
    "ConnectionOpened": "lamina_pool",
    "ConnectionPool": "lamina_pool",
    "ConnectionReleased": "lamina_pool",
    "ContentTypes": "lamina_pool",
    "ExchangeEvent": "lamina_pool",
    "Extensions": "lamina_pool",
    "HTTP11Connection": "lamina_pool",
    "HTTP2Connection": "lamina_pool",
    "HTTPConnection": "lamina_pool",
    "HTTPProxy": "lamina_pool",
    "HeaderTypes": "lamina_pool",
    "MockBackend": "lamina_mock",
    "MockStream": "lamina_mock",
    "NameResolved": "lamina_pool",
    "OpenTelemetryMetrics": "lamina_pool",
    "Origin": "lamina_pool",
    "OriginMismatch": "lamina_pool",
    "OriginStats": "lamina_pool",
    "PoolEvent": "lamina_pool",
    "PoolStats": "lamina_pool",
    "PooledConnection": "lamina_pool",
    "Proxy": "lamina_pool",
    "ProxyConnected": "lamina_pool",
    "ProxyEnvironment": "lamina_pool",
    "ReleaseReason": "lamina_pool",
    "Request": "lamina_pool",
    "RequestEnded": "lamina_pool",
    "RequestEvent": "lamina_pool",
    "RequestQueued": "lamina_pool",
    "RequestSent": "lamina_pool",
    "RequestStarted": "lamina_pool",
    "Response": "lamina_pool",
    "ResponseStarted": "lamina_pool",
    "ResponseStateError": "lamina_pool",
    "SOCKET_OPTION": "lamina._api",
    "SOCKSProxy": "lamina_pool",
    "SyncBackend": "lamina_sync_backend",
    "SyncStream": "lamina_sync_backend",
    "TCPConnected": "lamina_pool",
    "TLSEstablished": "lamina_pool",
    "TimeoutStateError": "lamina_timeouts",
    "TrioBackend": "lamina_async_backends",
    "TrioStream": "lamina_async_backends",
    "URL": "lamina_pool",
    "as_httpcore": "lamina._as_httpcore",
    "default_ssl_context": "lamina_pool",
    "request": "lamina._api",
    "stream": "lamina._api",
    "timeout": "lamina_timeouts",
}

# Which extra brings a name: what `pip install lamina` does not.
_EXTRAS = {
    "AnyIOBackend": "anyio",
    "AnyIOStream": "anyio",
    "AsyncMockBackend": "mock",
    "AsyncMockStream": "mock",
    "AsyncioBackend": "asyncio",
    "AsyncioStream": "asyncio",
    "AutoBackend": "asyncio",
    "MockBackend": "mock",
    "MockStream": "mock",
    "TrioBackend": "trio",
    "TrioStream": "trio",
}

# What an extra brings, as modules.
_BRINGS = {
    "anyio": ("lamina_async_backends", "anyio"),
    "asyncio": ("lamina_async_backends",),
    "mock": ("lamina_mock",),
    "trio": ("lamina_async_backends", "trio"),
}

_SUBMODULES = frozenset({"aio", "sync"})

# Hidden from type checkers, which would take it as leave to use any name at all, and need the list as it stands.
if not TYPE_CHECKING:
    _NAMES = frozenset(__all__)
    # `from lamina import *` asks for the list, and then for each name in it: `__getattr__` leaves out what is absent.
    del __all__

    def __getattr__(name: str) -> object:
        if name == "__all__":
            return _installed_names()
        if name in _SUBMODULES:
            return _import_module(f"{__name__}.{name}")
        if name not in _NAMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        home, extra = _HOMES.get(name, "lamina_interfaces"), _EXTRAS.get(name)
        try:
            value = getattr(_import_module(home), name)
        except ImportError as error:
            package = home.replace("_", "-")
            if error.name == home:
                where = f"is in the package {package}"
            elif error.name in _BRINGS.get(extra, ()):
                where = f"needs {error.name}"
            else:
                raise  # all of it is there, and its own words are better than ours
            # An AttributeError would let `from lamina import …` replace this text by one of its own.
            raise ImportError(
                f"lamina.{name} {where}, which is not installed; "
                f"install it with: pip install {package if extra is None else f'lamina[{extra}]'}",
                name=error.name,
            ) from error
        globals()[name] = value
        return value

    def _installed_names() -> list[str]:
        from ._installed import is_installed

        missing = {extra for extra, modules in _BRINGS.items() if not all(map(is_installed, modules))}
        return sorted(name for name in _NAMES if _EXTRAS.get(name) not in missing)

    def __dir__() -> list[str]:
        # Without what is not installed: whoever walks over a module's names wants to read each of them.
        return sorted({*globals(), "__all__", *_installed_names()})
