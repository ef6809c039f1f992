"""The place of lamina's network backends for asyncio, anyio and trio.

This version holds none of them yet: they come with the next minor. Until then `lamina_interfaces.load_backend`
raises `BackendNotFound` for their names, also where this package is installed.
"""

from ._version import __version__ as __version__

__all__ = ["__version__"]
