"""Network backends for tests: the peer is a list of bytes.

- `_script`: what a scripted peer says on one connection, and when such a connection may be reused.
- `_sync`: `MockBackend` and `MockStream`, for blocking code.
- `_async`: `AsyncMockBackend` and `AsyncMockStream`, for asyncio and trio.
"""

from ._async import AsyncMockBackend as AsyncMockBackend
from ._async import AsyncMockStream as AsyncMockStream
from ._sync import MockBackend as MockBackend
from ._sync import MockStream as MockStream
from ._version import __version__ as __version__

__all__ = ["AsyncMockBackend", "AsyncMockStream", "MockBackend", "MockStream", "__version__"]

for _public in (AsyncMockBackend, AsyncMockStream, MockBackend, MockStream):
    _public.__module__ = __name__
