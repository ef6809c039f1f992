"""`import lamina as httpcore`: the names, where they come from, and what is said about those that are not there."""

import ast
import importlib
import importlib.util
import inspect
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lamina
import lamina_async_backends
import lamina_interfaces
import lamina_pool
import lamina_sync_backend
import lamina_timeouts
from lamina._demo_server import DemoServer

# Of httpcore 1.0.9, all.
NAMES_OF_HTTPCORE = [
    "request",
    "stream",
    "Origin",
    "URL",
    "Request",
    "Response",
    "Proxy",
    "ConnectionPool",
    "AsyncConnectionPool",
    "HTTPConnection",
    "HTTP11Connection",
    "HTTP2Connection",
    "ConnectionInterface",
    "HTTPProxy",
    "SOCKSProxy",
    "AsyncHTTPConnection",
    "AsyncHTTP11Connection",
    "AsyncHTTP2Connection",
    "AsyncConnectionInterface",
    "AsyncHTTPProxy",
    "AsyncSOCKSProxy",
    "SyncBackend",
    "AnyIOBackend",
    "TrioBackend",
    "AsyncMockBackend",
    "AsyncMockStream",
    "MockBackend",
    "MockStream",
    "AsyncNetworkStream",
    "AsyncNetworkBackend",
    "NetworkStream",
    "NetworkBackend",
    "default_ssl_context",
    "SOCKET_OPTION",
    "ConnectionNotAvailable",
    "ProxyError",
    "ProtocolError",
    "LocalProtocolError",
    "RemoteProtocolError",
    "UnsupportedProtocol",
    "TimeoutException",
    "PoolTimeout",
    "ConnectTimeout",
    "ReadTimeout",
    "WriteTimeout",
    "NetworkError",
    "ConnectError",
    "ReadError",
    "WriteError",
]

# Its hierarchy of exceptions.
PARENTS = {
    "ConnectTimeout": "TimeoutException",
    "PoolTimeout": "TimeoutException",
    "ReadTimeout": "TimeoutException",
    "WriteTimeout": "TimeoutException",
    "ConnectError": "NetworkError",
    "ReadError": "NetworkError",
    "WriteError": "NetworkError",
    "LocalProtocolError": "ProtocolError",
    "RemoteProtocolError": "ProtocolError",
}


BY_PACKAGE = {
    "lamina_mock": ("AsyncMockBackend", "AsyncMockStream", "MockBackend", "MockStream"),
    "lamina_async_backends": (
        "AnyIOBackend",
        "AnyIOStream",
        "AsyncioBackend",
        "AsyncioStream",
        "AutoBackend",
        "TrioBackend",
        "TrioStream",
    ),
    "anyio": ("AnyIOBackend", "AnyIOStream"),
    "trio": ("TrioBackend", "TrioStream"),
}
"""What an installation without it lacks."""


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes as if a package were not installed."""

    def remove(package: str) -> None:
        layer = "lamina_mock" if package == "lamina_mock" else "lamina_async_backends"
        for name in BY_PACKAGE[layer]:
            getattr(lamina, name)  # so that all is there, and comes back afterwards
            monkeypatch.delitem(vars(lamina), name)
        for name in [name for name in sys.modules if name.partition(".")[0] in {layer, package}]:
            monkeypatch.delitem(sys.modules, name)
        find_spec = importlib.util.find_spec

        class Absent:
            def find_spec(self, name: str, path: object = None, target: object = None) -> None:
                if name == package:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
        # It asks the finders, which here raise; an installation without the package just finds nothing.
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
        )

    return remove


@pytest.mark.parametrize("name", NAMES_OF_HTTPCORE)
def test_a_name_of_httpcore_is_there(name: str) -> None:
    assert name in lamina.__all__
    assert getattr(lamina, name) is not None


@pytest.mark.parametrize(("name", "parent"), PARENTS.items())
def test_an_exception_stands_where_httpcore_has_it(name: str, parent: str) -> None:
    assert issubclass(getattr(lamina, name), getattr(lamina, parent))


@pytest.mark.parametrize(
    "module",
    [lamina_async_backends, lamina_pool, lamina_sync_backend, lamina_timeouts],
    ids=lambda module: module.__name__,
)
def test_a_layer_is_here_with_all_that_it_has(module: object) -> None:
    # The last two are for whoever builds another client on the pool, as the second dialect's is.
    elsewhere = {"__version__", "build_request", "enforce_headers"}
    names = [name for name in module.__all__ if name not in elsewhere]  # type: ignore[attr-defined] # of a module
    assert {name: getattr(lamina, name) for name in names} == {name: getattr(module, name) for name in names}


def test_every_exception_of_the_interfaces_is_here() -> None:
    names = [
        name
        for name, value in vars(lamina_interfaces).items()
        if inspect.isclass(value) and issubclass(value, lamina_interfaces.LaminaError)
    ]
    assert len(names) > 20
    assert set(names) <= set(lamina.__all__)


def test_what_a_type_checker_sees_is_what_runs() -> None:
    tree = ast.parse(inspect.getsource(lamina))
    block = next(
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        module = importlib.import_module("." * node.level + (node.module or ""), "lamina")
        for alias in node.names:
            seen[alias.asname or alias.name] = getattr(module, alias.name)
    assert {*seen, "__version__"} == set(lamina.__all__)
    assert [name for name, value in seen.items() if getattr(lamina, name) is not value] == []


def test_a_layer_is_imported_when_its_name_is_used() -> None:
    code = (
        "import sys, lamina\n"
        "def layers(): return sorted(name for name in sys.modules if name.startswith('lamina_') and '.' not in name)\n"
        "before = layers(); lamina.SyncBackend; print(before, layers())"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] ['lamina_interfaces', 'lamina_sync_backend']"


def test_an_unknown_name_is_refused_as_usual() -> None:
    with pytest.raises(AttributeError, match="module 'lamina' has no attribute 'Nonsense'"):
        lamina.Nonsense  # type: ignore[attr-defined]  # noqa: B018 - that is the test
    with pytest.raises(ImportError, match="cannot import name 'Nonsense'"):
        exec("from lamina import Nonsense")  # noqa: S102 - a constant
    assert not hasattr(lamina, "Nonsense")


WHAT_TO_INSTALL = [
    ("lamina_mock", "MockBackend", "is in the package lamina-mock", "lamina[mock]"),
    ("lamina_async_backends", "AsyncioBackend", "is in the package lamina-async-backends", "lamina[asyncio]"),
    ("lamina_async_backends", "AutoBackend", "is in the package lamina-async-backends", "lamina[asyncio]"),
    ("lamina_async_backends", "AnyIOBackend", "is in the package lamina-async-backends", "lamina[anyio]"),
    ("lamina_async_backends", "TrioStream", "is in the package lamina-async-backends", "lamina[trio]"),
    ("anyio", "AnyIOBackend", "needs anyio", "lamina[anyio]"),
    ("trio", "TrioBackend", "needs trio", "lamina[trio]"),
]


@pytest.mark.parametrize(("package", "name", "where", "install"), WHAT_TO_INSTALL)
def test_a_name_whose_package_is_absent_says_what_to_install(
    package: str, name: str, where: str, install: str, without: Callable[[str], None]
) -> None:
    without(package)
    with pytest.raises(ImportError) as caught:
        getattr(lamina, name)
    text = f"lamina.{name} {where}, which is not installed; install it with: pip install {install}"
    assert (str(caught.value), caught.value.name) == (text, package)
    with pytest.raises(ImportError, match="pip install"):
        exec(f"from lamina import {name}")  # noqa: S102 - a constant


@pytest.mark.parametrize("package", BY_PACKAGE)
def test_the_listing_leaves_out_what_is_not_installed(package: str, without: Callable[[str], None]) -> None:
    everything = set(lamina.__all__)
    without(package)
    assert everything - set(lamina.__all__) == set(BY_PACKAGE[package])
    assert set(lamina.__all__) <= set(dir(lamina))
    assert [name for name in dir(lamina) if not hasattr(lamina, name)] == []


@pytest.mark.parametrize("package", BY_PACKAGE)
def test_a_star_import_takes_what_is_installed(package: str, without: Callable[[str], None]) -> None:
    without(package)
    names: dict[str, object] = {}
    exec("from lamina import *", names)  # noqa: S102 - a constant
    assert names["ConnectionPool"] is lamina.ConnectionPool
    assert set(BY_PACKAGE[package]).isdisjoint(names)


def test_a_star_import_takes_everything() -> None:
    names: dict[str, object] = {}
    exec("from lamina import *", names)  # noqa: S102 - a constant
    assert {name for name in names if name != "__builtins__"} == set(lamina.__all__)
    assert names["MockBackend"] is lamina.MockBackend
    assert names["TrioBackend"] is lamina.TrioBackend


def test_the_listing_has_every_name() -> None:
    assert set(lamina.__all__) <= set(dir(lamina))


def test_a_broken_package_is_not_called_absent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lamina_mock.py").write_text("import lamina_no_such_module\n", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "lamina_mock"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(vars(lamina), "MockBackend", raising=False)
    with pytest.raises(ModuleNotFoundError, match="lamina_no_such_module"):
        lamina.MockBackend  # noqa: B018 - that is the test


# --- request and stream ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["request", "stream"])
def test_the_functions_have_the_parameters_of_httpcore(name: str) -> None:
    parameters = inspect.signature(getattr(lamina, name)).parameters.values()
    kinds = [(each.name, each.kind.name, each.default) for each in parameters]
    assert kinds == [
        ("method", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("url", "POSITIONAL_OR_KEYWORD", inspect.Parameter.empty),
        ("headers", "KEYWORD_ONLY", None),
        ("content", "KEYWORD_ONLY", None),
        ("extensions", "KEYWORD_ONLY", None),
    ]


def chunks() -> Iterator[bytes]:
    yield b"ab"
    yield b"cd"


def test_request_sends_and_reads(server: DemoServer) -> None:
    response = lamina.request("POST", server.url("/echo"), headers={"X-One": "1"}, content=chunks())
    assert response.status == 200
    assert b"POST /echo\n" in response.content
    assert b"x-one: 1\n" in response.content
    assert b"\n4 88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589\n" in response.content


def test_request_passes_extensions_on(server: DemoServer) -> None:
    with pytest.raises(lamina.ReadTimeout):
        lamina.request("GET", server.url("/silent"), extensions={"timeout": {"read": 0.05}})


def test_stream_gives_the_response_before_its_body(server: DemoServer) -> None:
    with lamina.stream("GET", server.url("/stalled")) as response:
        assert response.status == 200
        assert next(iter(response.iter_stream())) == b"half of it"


def test_a_socket_option_is_a_type_to_build_on() -> None:
    assert str(lamina.SOCKET_OPTION | None).endswith("| None")
    assert str(list[lamina.SOCKET_OPTION]).startswith("list[tuple[int, int, int] | ")
