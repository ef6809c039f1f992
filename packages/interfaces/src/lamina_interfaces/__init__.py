"""What the layers of lamina agree on. Standard library only.

- `_streams`: the contracts of network streams, backends and resolvers, blocking and async.
- `_ambient`: the second dialect (no `timeout=` arguments), and adapters both ways.
- `_errors`: the exceptions, in one tree.
- `_deadlines`: time limits, as arithmetic over a given clock.
- `_blocks`: a block of code with a deadline, for whoever offers a context manager.
- `_runtimes`: which runtime runs, its primitives, and the driver for blocking code; `_asyncio_runtime` and
  `_trio_runtime` are imported where those run.
- `_defaults`: finding an installed backend by its name.
- What every backend needs and none should write twice, imported when it is needed, not here: `dialing`, in which
  order addresses are tried; `connecting`, the sockets for that; `resolving`, names, in threads; `sockets`, the rest
  that does not wait; `translation`, the system's errors as lamina's; `tls`, TLS without a socket.
"""

from __future__ import annotations

from ._ambient import AsyncNetworkBackendInterface as AsyncNetworkBackendInterface
from ._ambient import AsyncNetworkStreamInterface as AsyncNetworkStreamInterface
from ._ambient import NetworkBackendInterface as NetworkBackendInterface
from ._ambient import NetworkStreamInterface as NetworkStreamInterface
from ._ambient import async_backend_from_interface as async_backend_from_interface
from ._ambient import async_interface_from_backend as async_interface_from_backend
from ._ambient import async_interface_from_stream as async_interface_from_stream
from ._ambient import async_stream_from_interface as async_stream_from_interface
from ._ambient import backend_from_interface as backend_from_interface
from ._ambient import interface_from_backend as interface_from_backend
from ._ambient import interface_from_stream as interface_from_stream
from ._ambient import stream_from_interface as stream_from_interface
from ._blocks import DeadlineBlock as DeadlineBlock
from ._deadlines import GLANCE_SECONDS as GLANCE_SECONDS
from ._deadlines import NEVER as NEVER
from ._deadlines import NO_LIMIT as NO_LIMIT
from ._deadlines import Deadline as Deadline
from ._deadlines import Limit as Limit
from ._deadlines import chain_clock as chain_clock
from ._deadlines import check_seconds as check_seconds
from ._deadlines import close_deadline as close_deadline
from ._deadlines import current_deadline as current_deadline
from ._deadlines import enter_deadline as enter_deadline
from ._deadlines import interruptions as interruptions
from ._deadlines import open_deadline as open_deadline
from ._deadlines import start_limit as start_limit
from ._defaults import ENTRY_POINT_GROUP as ENTRY_POINT_GROUP
from ._defaults import default_backend as default_backend
from ._defaults import load_backend as load_backend
from ._errors import ArgumentTypeError as ArgumentTypeError
from ._errors import ArgumentValueError as ArgumentValueError
from ._errors import BackendNotFound as BackendNotFound
from ._errors import ConcurrencyError as ConcurrencyError
from ._errors import ConnectAttempt as ConnectAttempt
from ._errors import ConnectError as ConnectError
from ._errors import ConnectionNotAvailable as ConnectionNotAvailable
from ._errors import ConnectTimeout as ConnectTimeout
from ._errors import DeadlineExceeded as DeadlineExceeded
from ._errors import InvalidURL as InvalidURL
from ._errors import LaminaError as LaminaError
from ._errors import LocalProtocolError as LocalProtocolError
from ._errors import NetworkError as NetworkError
from ._errors import Phase as Phase
from ._errors import PoolClosed as PoolClosed
from ._errors import PoolTimeout as PoolTimeout
from ._errors import ProtocolError as ProtocolError
from ._errors import ProxyError as ProxyError
from ._errors import ReadError as ReadError
from ._errors import ReadTimeout as ReadTimeout
from ._errors import RemoteProtocolError as RemoteProtocolError
from ._errors import TimeoutException as TimeoutException
from ._errors import UnsupportedProtocol as UnsupportedProtocol
from ._errors import WriteError as WriteError
from ._errors import WriteTimeout as WriteTimeout
from ._runtimes import THREADS as THREADS
from ._runtimes import Event as Event
from ._runtimes import Runtime as Runtime
from ._runtimes import RuntimeName as RuntimeName
from ._runtimes import Scope as Scope
from ._runtimes import ThreadRuntime as ThreadRuntime
from ._runtimes import current_runtime as current_runtime
from ._runtimes import drive as drive
from ._runtimes import running_runtime as running_runtime
from ._streams import DEFAULT_READ_SIZE as DEFAULT_READ_SIZE
from ._streams import AsyncDirectReader as AsyncDirectReader
from ._streams import AsyncInterruptibleWriter as AsyncInterruptibleWriter
from ._streams import AsyncNameResolver as AsyncNameResolver
from ._streams import AsyncNetworkBackend as AsyncNetworkBackend
from ._streams import AsyncNetworkStream as AsyncNetworkStream
from ._streams import AsyncPromptWriter as AsyncPromptWriter
from ._streams import AsyncResolver as AsyncResolver
from ._streams import BytesLike as BytesLike
from ._streams import DirectReader as DirectReader
from ._streams import InterruptibleWriter as InterruptibleWriter
from ._streams import NameResolver as NameResolver
from ._streams import NetworkBackend as NetworkBackend
from ._streams import NetworkStream as NetworkStream
from ._streams import PromptCloser as PromptCloser
from ._streams import PromptWriter as PromptWriter
from ._streams import ResolvedAddress as ResolvedAddress
from ._streams import Resolver as Resolver
from ._streams import SocketAddress as SocketAddress
from ._streams import SocketOption as SocketOption
from ._streams import TimingSpan as TimingSpan
from ._version import __version__ as __version__

__all__ = [
    "DEFAULT_READ_SIZE",
    "ENTRY_POINT_GROUP",
    "GLANCE_SECONDS",
    "NEVER",
    "NO_LIMIT",
    "THREADS",
    "ArgumentTypeError",
    "ArgumentValueError",
    "AsyncDirectReader",
    "AsyncInterruptibleWriter",
    "AsyncNameResolver",
    "AsyncNetworkBackend",
    "AsyncNetworkBackendInterface",
    "AsyncNetworkStream",
    "AsyncNetworkStreamInterface",
    "AsyncPromptWriter",
    "AsyncResolver",
    "BackendNotFound",
    "BytesLike",
    "ConcurrencyError",
    "ConnectAttempt",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionNotAvailable",
    "Deadline",
    "DeadlineBlock",
    "DeadlineExceeded",
    "DirectReader",
    "Event",
    "InterruptibleWriter",
    "InvalidURL",
    "LaminaError",
    "Limit",
    "LocalProtocolError",
    "NameResolver",
    "NetworkBackend",
    "NetworkBackendInterface",
    "NetworkError",
    "NetworkStream",
    "NetworkStreamInterface",
    "Phase",
    "PoolClosed",
    "PoolTimeout",
    "PromptCloser",
    "PromptWriter",
    "ProtocolError",
    "ProxyError",
    "ReadError",
    "ReadTimeout",
    "RemoteProtocolError",
    "ResolvedAddress",
    "Resolver",
    "Runtime",
    "RuntimeName",
    "Scope",
    "SocketAddress",
    "SocketOption",
    "ThreadRuntime",
    "TimeoutException",
    "TimingSpan",
    "UnsupportedProtocol",
    "WriteError",
    "WriteTimeout",
    "__version__",
    "async_backend_from_interface",
    "async_interface_from_backend",
    "async_interface_from_stream",
    "async_stream_from_interface",
    "backend_from_interface",
    "chain_clock",
    "check_seconds",
    "close_deadline",
    "current_deadline",
    "current_runtime",
    "default_backend",
    "drive",
    "enter_deadline",
    "interface_from_backend",
    "interface_from_stream",
    "interruptions",
    "load_backend",
    "open_deadline",
    "running_runtime",
    "start_limit",
    "stream_from_interface",
]

for _name in __all__:
    if callable(_public := globals()[_name]) and _public.__module__.startswith(f"{__name__}._"):
        _public.__module__ = __name__
