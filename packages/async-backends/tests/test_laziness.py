"""What is imported when, and what is said where a library is not installed."""

import subprocess
import sys

import pytest

NAMES = {
    "AnyIOBackend": "anyio",
    "AnyIOStream": "anyio",
    "TrioBackend": "trio",
    "TrioStream": "trio",
}


def run(code: str, *, without: tuple[str, ...] = ()) -> str:
    """Run code in a process of its own, in which some libraries cannot be imported."""
    hide = f"import sys\nfor name in {without!r}: sys.modules[name] = None\n"
    done = subprocess.run([sys.executable, "-c", hide + code], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize(
    ("name", "foreign"),
    [
        ("AsyncioBackend", "anyio trio ssl"),
        ("AutoBackend", "asyncio anyio trio ssl"),
        ("AnyIOBackend", "trio"),
        ("TrioBackend", "asyncio anyio"),
    ],
)
def test_a_name_imports_what_it_needs_and_nothing_else(name: str, foreign: str) -> None:
    own = {"AsyncioBackend": "import asyncio", "AnyIOBackend": "import anyio", "TrioBackend": "import trio"}
    printed = run(
        f"{own.get(name, '')}\n"
        "before = set(sys.modules)\n"
        f"from lamina_async_backends import {name}\n"
        f"print(*(set({foreign!r}.split()) & set(sys.modules)) - before)\n"
    )
    assert printed.split() == []


def test_the_package_alone_costs_next_to_nothing() -> None:
    printed = run(
        "import importlib\nbefore = set(sys.modules)\n"
        "import lamina_async_backends\nprint(*sorted(set(sys.modules) - before))\n"
    )
    assert printed.split() == ["lamina_async_backends", "lamina_async_backends._version"]


@pytest.mark.parametrize(("name", "library"), NAMES.items())
def test_a_library_that_is_not_installed_is_told_with_the_command(name: str, library: str) -> None:
    printed = run(
        f"try:\n    from lamina_async_backends import {name}\nexcept ImportError as exc: print(exc, exc.name)\n",
        without=(library,),
    )
    assert printed.strip() == (
        f"lamina_async_backends.{name} needs {library}, which is not installed; "
        f"install it with: pip install lamina-async-backends[{library}] {library}"
    )


@pytest.mark.parametrize("library", ["anyio", "trio"])
def test_load_backend_tells_it_too(library: str) -> None:
    printed = run(
        "from lamina_interfaces import BackendNotFound, load_backend\n"
        f"try:\n    load_backend({library!r})\nexcept BackendNotFound as exc: print(exc)\n",
        without=(library,),
    )
    assert f"pip install lamina-async-backends[{library}]" in printed


def test_a_star_import_takes_what_is_installed() -> None:
    printed = run(
        "from lamina_async_backends import *\n"
        "import lamina_async_backends as package\n"
        "print(*sorted(name for name in globals() if name.endswith('Backend')), len(package.__all__))\n"
        "assert all(hasattr(package, name) for name in dir(package))\n",
        without=("anyio", "trio"),
    )
    assert printed.split() == ["AsyncioBackend", "AutoBackend", "4"]


def test_what_a_library_itself_lacks_is_told_in_its_own_words() -> None:
    printed = run(
        "import types\n"
        "class Broken:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'trio': raise ModuleNotFoundError('No module named attrs', name='attrs')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "try:\n    from lamina_async_backends import TrioBackend\n"
        "except ModuleNotFoundError as exc: print(exc.name)\n"
    )
    assert printed.split() == ["attrs"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    printed = run(
        "import lamina_async_backends\n"
        "print(hasattr(lamina_async_backends, 'CurioBackend'))\n"
        "try:\n    from lamina_async_backends import CurioBackend\nexcept ImportError as exc: print(exc)\n"
    )
    assert printed.startswith("False\ncannot import name 'CurioBackend'")
