"""Default backends, found by name without depending on the packages that hold them.

lamina's own stand in a table of dotted strings, so that finding one costs no look through the installed
packages. Only for a name that is not in the table are entry points asked (group `lamina.backends`).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NamedTuple

from ._errors import ArgumentTypeError, BackendNotFound

if TYPE_CHECKING:
    from ._streams import NetworkBackend

ENTRY_POINT_GROUP = "lamina.backends"
"""The group under which other distributions offer a backend; each entry point is called without arguments."""


class _Known(NamedTuple):
    module: str
    attribute: str
    install: str
    library: str | None = None  # that the extra brings


_KNOWN = {
    "sync": _Known("lamina_sync_backend", "SyncBackend", "lamina-sync-backend"),
    "auto": _Known("lamina_async_backends", "AutoBackend", "lamina-async-backends"),
    "asyncio": _Known("lamina_async_backends", "AsyncioBackend", "lamina-async-backends"),
    "anyio": _Known("lamina_async_backends", "AnyIOBackend", "lamina-async-backends[anyio]", "anyio"),
    "trio": _Known("lamina_async_backends", "TrioBackend", "lamina-async-backends[trio]", "trio"),
}


def load_backend(name: str) -> Any:
    """Make the backend of that name.

    Args:
        name: `"sync"`, or one of the async ones: `"auto"`, `"asyncio"`, `"anyio"`, `"trio"`; or the name of
            an entry point in the group `lamina.backends`.

    Returns:
        A new `NetworkBackend` or `AsyncNetworkBackend`.

    Raises:
        BackendNotFound: the package is not installed, or too old to have it; the text says what to install. Or
            the entry point cannot be used: it fails (the failure is the cause), or there are several of its name.
        ArgumentTypeError: `name` is not a `str`.
    """
    if not isinstance(name, str):
        raise ArgumentTypeError(f"the name of a backend is a str, not {type(name).__name__}")
    known = _KNOWN.get(name)
    return _from_entry_points(name) if known is None else _from_table(name, known)()


def default_backend() -> NetworkBackend:
    """Make the backend that blocking code uses when it is given none.

    Raises:
        BackendNotFound: `lamina-sync-backend` is not installed.
    """
    backend: NetworkBackend = load_backend("sync")
    return backend


def _from_table(name: str, known: _Known) -> Any:
    try:
        module = importlib.import_module(known.module)
    except ModuleNotFoundError as error:
        if error.name != known.module:
            raise  # the package is there; what it needs is not, and its own words are better than ours
        raise _not_installed(name, known) from error
    try:
        return getattr(module, known.attribute)
    except ImportError as error:
        if known.library is None or error.name != known.library:
            raise
        raise _not_installed(name, known) from error
    except AttributeError as error:
        installed = f"{known.install.partition('[')[0]} {getattr(module, '__version__', '')}".rstrip()
        raise BackendNotFound(
            f"the {name!r} network backend is not in the installed {installed}; "
            f"get a later release with: pip install --upgrade {known.install}"
        ) from error


def _not_installed(name: str, known: _Known) -> BackendNotFound:
    return BackendNotFound(
        f"the {name!r} network backend is not installed; install it with: pip install {known.install}"
    )


def _from_entry_points(name: str) -> Any:
    from importlib.metadata import entry_points  # 20 ms that only a foreign name has to pay

    # One distribution may be found twice, installed and as a checkout.
    offers = {offer.value: offer for offer in entry_points(group=ENTRY_POINT_GROUP, name=name)}
    if len(offers) > 1:
        raise BackendNotFound(
            f"several installed packages offer a network backend {name!r}: {sorted(offers)}"
        )
    for value, offer in offers.items():
        try:
            return offer.load()()
        except Exception as exc:
            raise BackendNotFound(
                f"the network backend {name!r} ({value}) cannot be used: {type(exc).__name__}: {exc}"
            ) from exc
    known = ", ".join(repr(each) for each in _KNOWN)
    raise BackendNotFound(
        f"no network backend is called {name!r}: lamina's own are {known}, "
        f"and no installed package offers one under the entry point group {ENTRY_POINT_GROUP!r}"
    )
