"""Deadlines over whole blocks of code.

- `_timeout`: `timeout`, for threads and tasks, under `with` and `async with`, and its error.

The arithmetic, and the context variable through which each wait finds its deadlines, are in `lamina_interfaces`.
"""

from ._timeout import TimeoutStateError as TimeoutStateError
from ._timeout import timeout as timeout
from ._version import __version__ as __version__

__all__ = ["TimeoutStateError", "__version__", "timeout"]

for _public in (TimeoutStateError, timeout):
    _public.__module__ = __name__
