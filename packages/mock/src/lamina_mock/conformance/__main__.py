"""Check a backend from the command line.

    python -m lamina_mock.conformance package.module:factory [--runtime asyncio|trio] [--rule NAME]...

The factory is called without arguments: a class, or a function; it returns the backend. Whether that is blocking or
async is seen by itself. Prints the report. The exit code is 0 where no rule is broken, 1 where one is, 2 for a mistake.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
import traceback
from typing import Any

from lamina_interfaces import AsyncNetworkBackend, AsyncNetworkBackendInterface

from . import Report, check_async_backend, check_backend


def main(arguments: list[str] | None = None) -> int:
    """Do as the arguments say, and return the exit code."""
    parser = argparse.ArgumentParser(
        "python -m lamina_mock.conformance", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("factory", help="what makes the backend, as package.module:name")
    parser.add_argument(
        "--runtime", choices=["asyncio", "trio"], default="asyncio", help="what an async backend runs in"
    )
    parser.add_argument(
        "--rule", action="append", metavar="NAME", help="check this rule only; may be repeated"
    )
    options = parser.parse_args(arguments)
    try:
        module, _, name = options.factory.partition(":")
        factory = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        parser.error(f"{options.factory!r} cannot be imported: {error}")
    try:
        backend = factory()
    except Exception as error:  # noqa: BLE001 - whatever it is, no rule has been broken
        traceback.print_exception(error)
        parser.error(f"{options.factory!r} cannot be called without arguments, or has failed: {error!r}")
    if not (hasattr(backend, "connect_tcp") or hasattr(backend, "connect")):
        parser.error(f"{options.factory!r} returns no backend, but {backend!r}")
    try:
        report = (
            _check_async(backend, options)
            if _is_async(backend)
            else check_backend(backend, rules=options.rule)
        )
    except ValueError as error:
        parser.error(str(error))
    print(report)  # noqa: T201 - a command prints
    return 1 if report.failed else 0


def _is_async(backend: Any) -> bool:
    if isinstance(backend, AsyncNetworkBackend | AsyncNetworkBackendInterface):
        return True
    return inspect.iscoroutinefunction(
        getattr(backend, "connect_tcp", None) or getattr(backend, "connect", None)
    )


def _check_async(backend: Any, options: argparse.Namespace) -> Report:
    async def check() -> Report:
        return await check_async_backend(backend, rules=options.rule)

    if options.runtime == "trio":
        import trio

        return trio.run(check)
    import asyncio

    return asyncio.run(check())


if __name__ == "__main__":
    sys.exit(main())
