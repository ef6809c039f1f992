"""What of lamina under a client holds without any client: what to install, and lamina in httpcore's place."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(code: str) -> list[str]:
    """The lines that a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-bb", "-c", code], capture_output=True, text=True, check=False)
    assert not done.stderr, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["httpx", "httpx2"])
def test_an_absent_client_library_is_named(name: str) -> None:
    code = f"""
import sys
sys.modules[{name!r}] = None
try:
    import lamina.{name}
except ImportError as error:
    print(error.name)
    print(error)
"""
    assert run(code) == [
        name,
        f"lamina.{name} needs {name}, which is not installed; install it with: pip install {name}",
    ]


def test_an_error_within_the_client_library_is_its_own() -> None:
    code = """
import sys, types

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "httpx":
            raise ImportError("a part of it is missing", name="httpx_part")

sys.meta_path.insert(0, Finder())
try:
    import lamina.httpx
except ImportError as error:
    print(error)
"""
    assert run(code) == ["a part of it is missing"]


def test_lamina_takes_the_place_of_httpcore() -> None:
    code = """
import sys
import lamina
lamina.as_httpcore()
lamina.as_httpcore()
import httpcore
from httpcore import ConnectionPool, URL
print(httpcore is lamina, ConnectionPool is lamina.ConnectionPool, URL is lamina.URL)
"""
    assert run(code) == ["True True True"]


def test_it_is_too_late_once_httpcore_is_imported() -> None:
    code = """
import sys, types
sys.modules["httpcore"] = there = types.ModuleType("httpcore")
import lamina
try:
    lamina.as_httpcore()
except ImportError as error:
    print(error)
print(sys.modules["httpcore"] is there)
"""
    assert run(code) == [
        "httpcore has been imported already; call lamina.as_httpcore() before the client is imported",
        "True",
    ]
