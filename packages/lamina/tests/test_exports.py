"""The public surface of lamina: what is exported, documented, and cheap to import."""

import __future__

import importlib
import importlib.resources
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from types import FunctionType, ModuleType

import lamina as package

# Slow to import, or absent from an installation that does not ask for them: imported when first used.
LAZY = ("asyncio", "anyio", "trio", "ssl", "h2", "certifi")


# Modules for a library that lamina does not bring, and that library.
NEEDED = {"lamina.httpx": "httpx", "lamina.httpx2": "httpx2"}


def public_modules() -> Iterator[ModuleType]:
    yield package
    for info in pkgutil.walk_packages(package.__path__, prefix=package.__name__ + "."):
        if "._" not in info.name and importlib.util.find_spec(NEEDED.get(info.name, info.name)):
            yield importlib.import_module(info.name)


def public_values() -> Iterator[tuple[str, object]]:
    for module in public_modules():
        for name in getattr(module, "__all__", ()):
            if not name.startswith("__"):
                yield f"{module.__name__}.{name}", getattr(module, name)


def test_all_lists_exactly_what_can_be_seen() -> None:
    borrowed = (typing, __future__)
    visible = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and not any(value is getattr(source, name, None) for source in borrowed)
    }
    listed = list(package.__all__)
    assert len(listed) == len(set(listed))
    assert visible <= set(listed)
    assert {name for name in listed if name.startswith("_")} == {"__version__"}


def test_everything_that_all_lists_exists() -> None:
    assert [name for name in package.__all__ if not hasattr(package, name)] == []


def test_the_version_is_a_release_number() -> None:
    assert all(part.isdigit() for part in package.__version__.split("."))


def test_typing_information_is_shipped() -> None:
    assert importlib.resources.files(package).joinpath("py.typed").is_file()


def test_every_public_module_says_what_it_holds() -> None:
    assert [module.__name__ for module in public_modules() if not inspect.getdoc(module)] == []


def test_a_public_class_is_found_where_it_says_it_lives() -> None:
    lost = [
        (where, value.__module__)
        for where, value in public_values()
        if inspect.isclass(value)
        and ("._" in value.__module__ or vars(sys.modules[value.__module__]).get(value.__name__) is not value)
    ]
    assert lost == []


def test_every_public_class_and_function_is_documented() -> None:
    bare = [
        where
        for where, value in public_values()
        if (inspect.isclass(value) or inspect.isroutine(value)) and not value.__doc__
    ]
    assert bare == []


def test_every_public_method_is_documented() -> None:
    bare = [
        f"{where}.{name}"
        for where, value in public_values()
        if inspect.isclass(value)
        for name, member in vars(value).items()
        if not name.startswith("_")
        and isinstance(member, FunctionType | property | classmethod | staticmethod)
        and not inspect.getdoc(getattr(value, name))
    ]
    assert bare == []


def test_importing_it_imports_nothing_slow() -> None:
    code = f"import sys, {package.__name__}; print(*[name for name in {LAZY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
