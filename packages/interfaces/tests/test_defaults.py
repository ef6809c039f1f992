"""Backends by name: the table, entry points, and errors that say what to install."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lamina_interfaces import (
    ENTRY_POINT_GROUP,
    ArgumentTypeError,
    BackendNotFound,
    default_backend,
    load_backend,
)

# name: (module, attribute, what pip is to install)
TABLE = {
    "sync": ("lamina_sync_backend", "SyncBackend", "lamina-sync-backend"),
    "auto": ("lamina_async_backends", "AutoBackend", "lamina-async-backends"),
    "asyncio": ("lamina_async_backends", "AsyncioBackend", "lamina-async-backends"),
    "anyio": ("lamina_async_backends", "AnyIOBackend", "lamina-async-backends[anyio]"),
    "trio": ("lamina_async_backends", "TrioBackend", "lamina-async-backends[trio]"),
}

rows = pytest.mark.parametrize(("name", "row"), TABLE.items())


class FakeBackend:
    """Stands for any backend; made without arguments."""


@pytest.fixture
def put_module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Make a module importable under a name, whatever is installed here."""

    def put(name: str, **contents: object) -> ModuleType:
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


@pytest.fixture
def put_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str, str], None]:
    """Put a module's source in front of everything that is installed here."""

    def put(name: str, source: str) -> None:
        monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    return put


@pytest.fixture
def without_siblings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the packages of the table not be installed."""

    class NotInstalled:
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name in {row[0] for row in TABLE.values()}:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for row in TABLE.values():
        monkeypatch.delitem(sys.modules, row[0], raising=False)
    monkeypatch.setattr(sys, "meta_path", [NotInstalled(), *sys.meta_path])


@rows
def test_a_name_of_the_table_gives_a_new_backend_each_time(
    name: str, row: tuple[str, str, str], put_module: Callable[..., ModuleType]
) -> None:
    put_module(row[0], **{row[1]: FakeBackend})
    first, second = load_backend(name), load_backend(name)
    assert type(first) is type(second) is FakeBackend
    assert first is not second


def test_the_default_backend_is_the_blocking_one(put_module: Callable[..., ModuleType]) -> None:
    put_module("lamina_sync_backend", SyncBackend=FakeBackend)
    assert isinstance(default_backend(), FakeBackend)


@rows
@pytest.mark.usefixtures("without_siblings")
def test_a_package_that_is_not_installed_is_named_with_the_command(
    name: str, row: tuple[str, str, str]
) -> None:
    with pytest.raises(BackendNotFound) as caught:
        load_backend(name)
    assert (
        str(caught.value)
        == f"the {name!r} network backend is not installed; install it with: pip install {row[2]}"
    )
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert isinstance(caught.value, LookupError)


@pytest.mark.usefixtures("without_siblings")
def test_without_the_blocking_package_there_is_no_default() -> None:
    with pytest.raises(BackendNotFound, match="pip install lamina-sync-backend"):
        default_backend()


@rows
def test_a_package_that_is_too_old_is_to_be_upgraded(
    name: str, row: tuple[str, str, str], put_module: Callable[..., ModuleType]
) -> None:
    put_module(row[0], __version__="0.0.1")
    with pytest.raises(BackendNotFound) as caught:
        load_backend(name)
    distribution = row[2].partition("[")[0]
    assert str(caught.value) == (
        f"the {name!r} network backend is not in the installed {distribution} 0.0.1; "
        f"get a later release with: pip install --upgrade {row[2]}"
    )


@pytest.mark.parametrize("name", ["anyio", "trio"])
def test_a_package_without_its_extra_is_told_with_the_command(
    name: str, put_source: Callable[[str, str], None]
) -> None:
    put_source(
        TABLE[name][0], f"def __getattr__(name): raise ImportError('{name} is not there', name={name!r})"
    )
    with pytest.raises(BackendNotFound) as caught:
        load_backend(name)
    assert (
        str(caught.value)
        == f"the {name!r} network backend is not installed; install it with: pip install {TABLE[name][2]}"
    )
    assert isinstance(caught.value.__cause__, ImportError)


@pytest.mark.parametrize("lacking", ["idna", None])
def test_what_the_library_of_an_extra_lacks_is_told_in_its_own_words(
    lacking: str | None, put_source: Callable[[str, str], None]
) -> None:
    put_source(
        "lamina_async_backends",
        f"def __getattr__(name): raise ImportError('it lacks something', name={lacking!r})",
    )
    with pytest.raises(ImportError, match="it lacks something"):
        load_backend("trio")


def test_what_the_package_itself_lacks_is_told_in_its_own_words(
    put_source: Callable[[str, str], None],
) -> None:
    put_source("lamina_async_backends", "import a_module_that_nobody_has")
    with pytest.raises(ModuleNotFoundError, match="a_module_that_nobody_has") as caught:
        load_backend("trio")
    assert not isinstance(caught.value, BackendNotFound)


def test_a_package_that_fails_at_import_fails_as_it_does(put_source: Callable[[str, str], None]) -> None:
    put_source("lamina_async_backends", "raise ImportError('built for another Python')")
    with pytest.raises(ImportError, match="built for another Python"):
        load_backend("auto")


# --- entry points ------------------------------------------------------------------------------------------


@pytest.fixture
def put_distribution(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Put a distribution on the path that offers the given entry points in our group."""

    def put(entry_points: str) -> None:
        info = tmp_path / "their_backends-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-backends\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{entry_points}\n")
        (tmp_path / "their_backends.py").write_text("class QuicBackend: pass\nbroken = None\n")
        monkeypatch.delitem(sys.modules, "their_backends", raising=False)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()

    return put


def test_any_other_name_is_looked_up_among_the_entry_points(put_distribution: Callable[[str], None]) -> None:
    put_distribution("other = nowhere:Nothing\nquic = their_backends:QuicBackend")
    assert type(load_backend("quic")).__name__ == "QuicBackend"


def test_an_entry_point_does_not_replace_a_name_of_the_table(
    put_distribution: Callable[[str], None], put_module: Callable[..., ModuleType]
) -> None:
    put_distribution("sync = their_backends:QuicBackend")
    put_module("lamina_sync_backend", SyncBackend=FakeBackend)
    assert type(load_backend("sync")) is FakeBackend


@pytest.mark.parametrize(
    ("target", "cause"),
    [
        ("a_module_that_nobody_has:Backend", ModuleNotFoundError),
        ("errno:Backend", AttributeError),
        ("errno:EINTR", TypeError),
    ],
)
def test_an_entry_point_that_cannot_be_used_says_why(
    put_distribution: Callable[[str], None], target: str, cause: type[Exception]
) -> None:
    put_distribution(f"quic = {target}")
    with pytest.raises(BackendNotFound, match=f"quic.*{target}") as caught:
        load_backend("quic")
    assert isinstance(caught.value.__cause__, cause)


@pytest.mark.parametrize("name", [None, [], 3])
def test_a_name_of_a_backend_is_a_str(name: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="str"):
        load_backend(name)


@pytest.mark.parametrize("name", ["quic", "", "Sync", "sync "])
def test_an_unknown_name_lists_those_that_are_known(
    name: str, put_distribution: Callable[[str], None]
) -> None:
    put_distribution("other = their_backends:QuicBackend")
    with pytest.raises(BackendNotFound) as caught:
        load_backend(name)
    text = str(caught.value)
    assert f"called {name!r}" in text
    assert all(repr(known) in text for known in TABLE)
    assert ENTRY_POINT_GROUP in text


def test_a_name_of_the_table_costs_no_look_through_the_installed_packages() -> None:
    code = (
        "import sys, types, lamina_interfaces as li\n"
        "module = sys.modules['lamina_sync_backend'] = types.ModuleType('lamina_sync_backend')\n"
        "module.SyncBackend = object\n"
        "before = set(sys.modules)\n"
        "li.default_backend()\n"
        "print(*(set(sys.modules) - before))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
