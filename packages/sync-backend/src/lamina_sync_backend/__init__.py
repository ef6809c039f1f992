"""The blocking network backend of lamina.

- `_backend`: `SyncBackend`, which connects; `_connecting` carries out happy eyeballs, `_resolving` looks up names.
- `_stream`: `SyncStream`; `_transport` is the socket beneath and its users, `_tls` the encryption between them.
- `_waiting`: the one place in which a thread waits. `_translation`: from the system's errors to lamina's.
"""

from ._backend import SyncBackend as SyncBackend
from ._stream import SyncStream as SyncStream
from ._version import __version__ as __version__

__all__ = ["SyncBackend", "SyncStream", "__version__"]

for _class in (SyncBackend, SyncStream):
    _class.__module__ = __name__
del _class
