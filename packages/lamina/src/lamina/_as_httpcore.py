"""lamina in httpcore's place, for clients that import it by name."""

from __future__ import annotations

import sys


def as_httpcore() -> None:
    """Let `import httpcore` give lamina, everywhere in this process.

    For a program whose client imports httpcore by name and takes no transport; a library leaves the choice to the
    program. Call it before anything imports httpcore: what has taken names from it keeps those. A second call does
    nothing. httpcore need not be installed.

    Raises:
        ImportError: httpcore has been imported already.
    """
    import lamina

    if sys.modules.setdefault("httpcore", lamina) is not lamina:
        raise ImportError(
            "httpcore has been imported already; call lamina.as_httpcore() before the client is imported",
            name="httpcore",
        )


as_httpcore.__module__ = "lamina"
