"""The public surface of lamina_pool: what is exported, documented, and cheap to import."""

import __future__

import importlib
import importlib.resources
import inspect
import pkgutil
import subprocess
import sys
import typing
from collections.abc import Iterator
from types import FunctionType, ModuleType

import lamina_pool as package

# Slow to import, or absent from an installation that does not ask for them: imported when first used.
LAZY = ("asyncio", "anyio", "trio", "ssl", "h2", "certifi")

# What a plain request of blocking code does without. `dataclasses` brings `inspect`, and each class takes its time.
NEEDED_BY_FEW = (
    *LAZY,
    "concurrent.futures",
    "dataclasses",
    "email",
    "encodings.idna",
    "h11",
    "importlib.metadata",
    "inspect",
    "lamina_pool._events",
    "lamina_pool._lone",
    "lamina_pool._suspending",
    "logging",
)

PLAIN_REQUEST = """
import sys
from lamina_interfaces import NetworkBackend, NetworkStream
from lamina_pool import ConnectionPool

class Stream(NetworkStream):
    def read(self, max_bytes, timeout=None):
        return b"HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\nhi"
    def write(self, buffer, timeout=None):
        pass
    def close(self):
        pass
    def get_extra_info(self, info):
        return None

class Backend(NetworkBackend):
    def connect_tcp(self, *arguments, **options):
        return Stream()

with ConnectionPool(network_backend=Backend()) as pool:
    assert pool.request("GET", "http://a.test/").content == b"hi"
"""


def public_modules() -> Iterator[ModuleType]:
    yield package
    for info in pkgutil.walk_packages(package.__path__, prefix=package.__name__ + "."):
        if "._" not in info.name:
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


def test_every_public_class_is_its_own() -> None:
    foreign = [
        where
        for where, value in public_values()
        if inspect.isclass(value) and value.__module__.partition(".")[0] != package.__name__
    ]
    assert foreign == []


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


def test_a_plain_request_imports_nothing_that_only_few_need() -> None:
    code = f"{PLAIN_REQUEST}print(*[name for name in {NEEDED_BY_FEW!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_class_bears_the_package_s_name_before_anybody_asks_for_it() -> None:
    code = (
        "from lamina_pool import ConnectionPool\n"
        "kinds = [type(ConnectionPool().stats())]\n"
        "ConnectionPool(on_event=lambda event: None)\n"
        "import lamina_pool._events, lamina_pool._models\n"
        "kinds += [lamina_pool._events.RequestEnded, lamina_pool._models.ResponseStateError]\n"
        "print(*{kind.__module__ for kind in kinds})\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["lamina_pool"]
