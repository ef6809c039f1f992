"""The network backends of lamina for asyncio, anyio and trio.

Each module is imported when one of its names is first used, so that nobody pays for a library that he does not use.

- `_stream`, `_tls`: what all streams are, over a `Transport` (`_transport`), which each of the others brings.
- `_asyncio` and the modules that begin like it: `AsyncioBackend`, `AsyncioStream`; standard library only.
- `_trio`, `_anyio`: `TrioBackend`, `TrioStream`, `AnyIOBackend`, `AnyIOStream`. What they have in common, which is all
  but their primitives, is in `_readiness` and the modules that begin like it.
- `_auto`: `AutoBackend`, which takes the one for what runs.
"""

from importlib import import_module as _import_module

from ._version import __version__ as __version__

# Type checkers take it for the one of `typing`, which would be most of what this module costs.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from ._anyio import AnyIOBackend as AnyIOBackend
    from ._anyio import AnyIOStream as AnyIOStream
    from ._asyncio import AsyncioBackend as AsyncioBackend
    from ._asyncio import AsyncioStream as AsyncioStream
    from ._auto import AutoBackend as AutoBackend
    from ._trio import TrioBackend as TrioBackend
    from ._trio import TrioStream as TrioStream

__all__ = [
    "AnyIOBackend",
    "AnyIOStream",
    "AsyncioBackend",
    "AsyncioStream",
    "AutoBackend",
    "TrioBackend",
    "TrioStream",
    "__version__",
]

_MODULES = {
    "AnyIOBackend": "_anyio",
    "AnyIOStream": "_anyio",
    "AsyncioBackend": "_asyncio",
    "AsyncioStream": "_asyncio",
    "AutoBackend": "_auto",
    "TrioBackend": "_trio",
    "TrioStream": "_trio",
}

_EXTRAS = {"_anyio": "anyio", "_trio": "trio"}

# Hidden from type checkers, which would take it as leave to use any name at all.
if not TYPE_CHECKING:
    # `from lamina_async_backends import *` asks for the list, and then for each name in it: `__getattr__` leaves out
    # what is not installed.
    del __all__

    def __getattr__(name: str) -> object:
        if name == "__all__":
            return _installed_names()
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _MODULES[name]
        extra = _EXTRAS.get(module)
        try:
            value = getattr(_import_module(f"{__name__}.{module}"), name)
        except ModuleNotFoundError as error:
            if extra is None or error.name != extra:
                raise
            # An AttributeError would let `from lamina_async_backends import …` replace this text by one of its own.
            raise ImportError(
                f"{__name__}.{name} needs {extra}, which is not installed; "
                f"install it with: pip install lamina-async-backends[{extra}]",
                name=extra,
            ) from error
        value.__module__ = __name__
        globals()[name] = value
        return value

    def _installed_names() -> list[str]:
        missing = {module for module, extra in _EXTRAS.items() if not _is_installed(extra)}
        return [*sorted(name for name, module in _MODULES.items() if module not in missing), "__version__"]

    def _is_installed(module: str) -> bool:
        from importlib.util import find_spec

        try:
            return find_spec(module) is not None
        except (ImportError, ValueError):  # a finder that refuses it, or `None` in `sys.modules`
            return False

    def __dir__() -> list[str]:
        # Without what is not installed: whoever walks over a module's names wants to read each of them.
        return sorted({*globals(), "__all__", *_installed_names()})
