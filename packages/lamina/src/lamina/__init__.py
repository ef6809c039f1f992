"""The assembled network layer of an HTTP client, behind one flat module that speaks the words of httpcore 1.0.

- Here: the names, and the table that says which layer has each of them. A layer is imported when one of its names is
  first used, so `import lamina` alone costs next to nothing.
- `_api`: the functions that need no pool, `request` and `stream`, and names that only exist here.
- `sync`, `aio`: the second dialect, a small client over network streams without `timeout=`, blocking and async. They
  share `_dialect_models`, `_dialect_redirects` and `_dialect_faces`.
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
    from lamina_interfaces import AsyncInterruptibleWriter as AsyncInterruptibleWriter
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
    from lamina_interfaces import InterruptibleWriter as InterruptibleWriter
    from lamina_interfaces import InvalidURL as InvalidURL
    from lamina_interfaces import LaminaError as LaminaError
    from lamina_interfaces import LocalProtocolError as LocalProtocolError
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
    from lamina_pool import AsyncConnectionPool as AsyncConnectionPool
    from lamina_pool import ByteStream as ByteStream
    from lamina_pool import ConnectionPool as ConnectionPool
    from lamina_pool import ContentTypes as ContentTypes
    from lamina_pool import Extensions as Extensions
    from lamina_pool import HeaderTypes as HeaderTypes
    from lamina_pool import Origin as Origin
    from lamina_pool import PooledConnection as PooledConnection
    from lamina_pool import PoolStats as PoolStats
    from lamina_pool import Proxy as Proxy
    from lamina_pool import Request as Request
    from lamina_pool import Response as Response
    from lamina_pool import ResponseStateError as ResponseStateError
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

__all__ = [
    "SOCKET_OPTION",
    "URL",
    "AnyIOBackend",
    "AnyIOStream",
    "ArgumentTypeError",
    "ArgumentValueError",
    "AsyncConnectionPool",
    "AsyncInterruptibleWriter",
    "AsyncMockBackend",
    "AsyncMockStream",
    "AsyncNetworkBackend",
    "AsyncNetworkStream",
    "AsyncPromptWriter",
    "AsyncResolver",
    "AsyncioBackend",
    "AsyncioStream",
    "AutoBackend",
    "BackendNotFound",
    "ByteStream",
    "ConcurrencyError",
    "ConnectAttempt",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionNotAvailable",
    "ConnectionPool",
    "ContentTypes",
    "DeadlineExceeded",
    "Extensions",
    "HeaderTypes",
    "InterruptibleWriter",
    "InvalidURL",
    "LaminaError",
    "LocalProtocolError",
    "MockBackend",
    "MockStream",
    "NetworkBackend",
    "NetworkError",
    "NetworkStream",
    "Origin",
    "PoolClosed",
    "PoolStats",
    "PoolTimeout",
    "PooledConnection",
    "PromptCloser",
    "PromptWriter",
    "ProtocolError",
    "Proxy",
    "ProxyError",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "Request",
    "ResolvedAddress",
    "Resolver",
    "Response",
    "ResponseStateError",
    "SyncBackend",
    "SyncStream",
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
    "AsyncConnectionPool": "lamina_pool",
    "AsyncMockBackend": "lamina_mock",
    "AsyncMockStream": "lamina_mock",
    "AsyncioBackend": "lamina_async_backends",
    "AsyncioStream": "lamina_async_backends",
    "AutoBackend": "lamina_async_backends",
    "ByteStream": "lamina_pool",
    "ConnectionPool": "lamina_pool",
    "ContentTypes": "lamina_pool",
    "Extensions": "lamina_pool",
    "HeaderTypes": "lamina_pool",
    "MockBackend": "lamina_mock",
    "MockStream": "lamina_mock",
    "Origin": "lamina_pool",
    "PoolStats": "lamina_pool",
    "PooledConnection": "lamina_pool",
    "Proxy": "lamina_pool",
    "Request": "lamina_pool",
    "Response": "lamina_pool",
    "ResponseStateError": "lamina_pool",
    "SOCKET_OPTION": "lamina._api",
    "SyncBackend": "lamina_sync_backend",
    "SyncStream": "lamina_sync_backend",
    "TimeoutStateError": "lamina_timeouts",
    "TrioBackend": "lamina_async_backends",
    "TrioStream": "lamina_async_backends",
    "URL": "lamina_pool",
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

# Names of httpcore 1.0 whose time is yet to come: proxies, and connections without a pool.
_LATER = frozenset({
    "AsyncConnectionInterface",
    "AsyncHTTP11Connection",
    "AsyncHTTP2Connection",
    "AsyncHTTPConnection",
    "AsyncHTTPProxy",
    "AsyncSOCKSProxy",
    "ConnectionInterface",
    "HTTP11Connection",
    "HTTP2Connection",
    "HTTPConnection",
    "HTTPProxy",
    "SOCKSProxy",
})  # fmt: skip

# Hidden from type checkers, which would take it as leave to use any name at all, and need the list as it stands.
if not TYPE_CHECKING:
    _NAMES = frozenset(__all__)
    # `from lamina import *` asks for the list, and then for each name in it: `__getattr__` leaves out what is absent.
    del __all__

    def __getattr__(name: str) -> object:
        if name == "__all__":
            return _installed_names()
        if name in _LATER:
            raise AttributeError(f"lamina {__version__} has no {name} yet; a later version will")
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
