"""Network backends for tests, on a clock that costs no time.

- `_sync`, `_async`: `MockBackend` and its siblings, whose peer is a list of bytes; `_chunks` is what both are made of.
- `_wire`: connections in memory, between a peer in plain code and a stream. `_clock`: what they wait on.
- `_scripts`, `_scripted`: peers that expect and reply step by step, and the backends whose connections play them.
- `_server`: peers that are HTTP servers. `_http`, `_http_engine`: its requests and responses, and what to do with them.
  `_http11_peer` and `_http2_peer` speak the protocols, by h11 and h2, and are imported when a client does.
- `_deny`: backends that let nothing out. `_failures`: what all of these raise at a test.
- `pytest_plugin`: fixtures. `conformance`: checks any backend or stream against its contract.
"""

from importlib import import_module as _import_module

from ._async import AsyncMockBackend as AsyncMockBackend
from ._async import AsyncMockStream as AsyncMockStream
from ._clock import ClockError as ClockError
from ._clock import DeadlockError as DeadlockError
from ._clock import MockClock as MockClock
from ._clock import RuntimeClock as RuntimeClock
from ._clock import Timer as Timer
from ._clock import VirtualClock as VirtualClock
from ._deny import AsyncDenyNetworkBackend as AsyncDenyNetworkBackend
from ._deny import DenyNetworkBackend as DenyNetworkBackend
from ._failures import NetworkDenied as NetworkDenied
from ._failures import ScriptError as ScriptError
from ._scripted import AsyncScriptedBackend as AsyncScriptedBackend
from ._scripted import ScriptedBackend as ScriptedBackend
from ._scripts import Script as Script
from ._sync import MockBackend as MockBackend
from ._sync import MockStream as MockStream
from ._version import __version__ as __version__
from ._wire import AsyncPeerBackend as AsyncPeerBackend
from ._wire import AsyncWireStream as AsyncWireStream
from ._wire import Line as Line
from ._wire import MockTLS as MockTLS
from ._wire import Peer as Peer
from ._wire import PeerBackend as PeerBackend
from ._wire import TLSFacts as TLSFacts
from ._wire import WireStream as WireStream

# Type checkers take it for the one of `typing`, which would be most of what this module costs.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from ._http import MockRequest as MockRequest
    from ._http import MockResponse as MockResponse
    from ._server import MockConnection as MockConnection
    from ._server import MockServer as MockServer

__all__ = [
    "AsyncDenyNetworkBackend",
    "AsyncMockBackend",
    "AsyncMockStream",
    "AsyncPeerBackend",
    "AsyncScriptedBackend",
    "AsyncWireStream",
    "ClockError",
    "DeadlockError",
    "DenyNetworkBackend",
    "Line",
    "MockBackend",
    "MockClock",
    "MockConnection",
    "MockRequest",
    "MockResponse",
    "MockServer",
    "MockStream",
    "MockTLS",
    "NetworkDenied",
    "Peer",
    "PeerBackend",
    "RuntimeClock",
    "Script",
    "ScriptError",
    "ScriptedBackend",
    "TLSFacts",
    "Timer",
    "VirtualClock",
    "WireStream",
    "__version__",
]

for _name in __all__:
    if (_public := globals().get(_name)) is not None and not isinstance(_public, str):
        _public.__module__ = __name__

if not TYPE_CHECKING:
    # With all that an HTTP server needs; a list of bytes does without.
    _LATER = {
        "MockConnection": "_server",
        "MockRequest": "_http",
        "MockResponse": "_http",
        "MockServer": "_server",
    }

    def __getattr__(name: str) -> object:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(_import_module(f"{__name__}.{_LATER[name]}"), name)
        value.__module__ = __name__
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
