"""Whether a module could be imported, without importing it."""

from __future__ import annotations

import importlib.util


def is_installed(module: str) -> bool:
    """Whether there is such a module; false also for one that a finder refuses."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a finder that refuses it, or `None` in `sys.modules`
        return False
