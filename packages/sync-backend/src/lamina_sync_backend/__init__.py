"""The blocking network backend of lamina.

- `_backend`: `SyncBackend`, which connects; `_connecting` waits for that, in `poll`, woken by `_bell` for names.
- `_stream`: `SyncStream`; `_transport` is the socket beneath and its users, `_tls` the encryption between them.
- `_waiting`: the one place in which a thread waits.

What does not wait is shared with the async backends, in `lamina_interfaces`: `connecting`, `resolving`, `sockets`,
`translation`, `tls`.
"""

from ._backend import SyncBackend as SyncBackend
from ._stream import SyncStream as SyncStream
from ._version import __version__ as __version__

__all__ = ["SyncBackend", "SyncStream", "__version__"]

for _class in (SyncBackend, SyncStream):
    _class.__module__ = __name__
del _class
