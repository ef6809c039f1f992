"""The front door of the repository: ``nox`` runs all that must hold, ``nox -l`` lists the sessions.

Continuous integration calls the same sessions. What several of them need (which packages there are, what
depends on what, how one is installed) stands first; steps longer than a few lines are scripts in ``tools/``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

import nox
from packaging.requirements import Requirement
from packaging.version import Version

# An interpreter that is absent is skipped at once, where looking for a download costs seconds each time.
os.environ.setdefault("NOX_DOWNLOAD_PYTHON", "never")
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv|virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "layers", "tests", "wheels", "lowest", "docs", "stack"]

ROOT = Path(__file__).parent
PYTHONS = ["3.11", "3.12", "3.13"]
# With every runtime that a package may meet, whether it needs one or not. There is no uvloop for Windows.
TEST_TOOLS = [
    "anyio",
    "hypothesis",
    "pytest>=9",
    "pytest-randomly",
    "pytest-timeout",
    "pytest-xdist",
    "trio",
    "trustme",
]
if os.name != "nt":
    TEST_TOOLS.append("uvloop")
# Client libraries that lamina has transports for, and that it does not bring.
CLIENTS = ["httpx>=0.28,<0.29", "httpx2>=2.16"]
# For the tests of the whole stack: httpcore to compare with, a server, and SDKs over lamina. Other servers are programs
# of the system, and `.ci/run` installs them.
PEERS = [
    "httpcore[http2,socks]==1.0.9",
    "hypercorn",
    *CLIENTS,
    "anthropic",
    "openai",
    "opentelemetry-sdk",
    "wsproto",
]
# Whom the benchmarks measure lamina beside. The servers are programs of the system here too: nginx and nghttpd.
RIVALS = ["httpcore[http2]==1.0.9", "httpcore2", "aiohttp", "h2", "pycurl", "pyreqwest", "trio", "urllib3"]
# With an end, whatever happens; and for what takes hours, without any.
PYTEST = ["python", str(ROOT / "tools" / "watched.py")]
UNWATCHED = ["python", "-bb", "-m", "pytest", "-o", "faulthandler_timeout=0"]
if os.environ.get("HYPOTHESIS_PROFILE") == "long":
    PYTEST = UNWATCHED
# What takes minutes is done by two processes. They have to collect the same tests in the same order, which sets among
# the parameters prevent; those of the other packages have such.
LONG = {"async-backends", "lamina", "mock", "pool"}
PARALLEL = ["-n", "2", "--dist", "worksteal"]


@dataclass(frozen=True)
class Package:
    """One folder under ``packages/``, as its own metadata describes it."""

    folder: str
    requirements: tuple[Requirement, ...]
    extras: tuple[str, ...]
    optional: tuple[Requirement, ...]

    @property
    def distribution(self) -> str:
        return "lamina" if self.folder == "lamina" else f"lamina-{self.folder}"

    @property
    def module(self) -> str:
        return self.distribution.replace("-", "_")

    @property
    def with_extras(self) -> str:
        return f"[{','.join(self.extras)}]" if self.extras else ""


def _read(path: Path) -> Package:
    project = tomllib.loads(path.read_text("utf-8"))["project"]
    optional: dict[str, list[str]] = project.get("optional-dependencies", {})
    return Package(
        folder=path.parent.name,
        requirements=tuple(map(Requirement, project["dependencies"])),
        extras=tuple(sorted(optional)),
        optional=tuple(Requirement(text) for texts in optional.values() for text in texts),
    )


PACKAGES = {package.folder: package for package in map(_read, sorted(ROOT.glob("packages/*/pyproject.toml")))}
BY_DISTRIBUTION = {package.distribution: package for package in PACKAGES.values()}
EACH_PACKAGE = nox.parametrize("package", [nox.param(folder, id=folder) for folder in PACKAGES])


def _siblings(package: Package) -> list[Package]:
    """What of this repository a package needs, with all its extras, itself last."""
    found: dict[str, Package] = {}
    for requirement in (*package.requirements, *package.optional):
        sibling = BY_DISTRIBUTION.get(requirement.name)
        if sibling is not None and sibling is not package:
            found.update((each.folder, each) for each in _siblings(sibling))
    found[package.folder] = package
    return list(found.values())


def _install_editable(session: nox.Session, *packages: Package) -> None:
    # One hatchling for all of them: an isolated build environment for each would cost seconds apiece.
    session.install("editables", "hatchling>=1.27")
    arguments = [arg for each in packages for arg in ("-e", f"./packages/{each.folder}{each.with_extras}")]
    session.install("--no-build-isolation", *arguments)


def _released_interfaces() -> list[Version]:
    """The released versions of lamina-interfaces, by our tags: an index may offer anything under the name."""
    command = ["git", "tag", "--list", "interfaces/v*"]
    try:
        tags = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []  # an unpacked archive instead of a clone
    return sorted(Version(tag.removeprefix("interfaces/v")) for tag in tags)


def _oldest_interfaces(package: Package) -> str | None:
    """The oldest release of lamina-interfaces that a package admits."""
    for requirement in package.requirements:
        if requirement.name == "lamina-interfaces":
            admitted = [version for version in _released_interfaces() if version in requirement.specifier]
            return str(admitted[0]) if admitted else None
    return None


def _wheel_runs() -> list[object]:
    """Each package with the interfaces of this tree, and with the oldest ones that it admits."""
    runs: list[object] = [nox.param(folder, "tree", id=folder) for folder in PACKAGES]
    for package in PACKAGES.values():
        oldest = _oldest_interfaces(package)
        if oldest is not None:
            runs.append(nox.param(package.folder, oldest, id=f"{package.folder}, interfaces {oldest}"))
    return runs


def _wheels(session: nox.Session, interfaces: str = "tree") -> dict[str, Path]:
    """The wheels that the session ``build`` has made, by folder."""
    house = Path(session.cache_dir, "wheels").resolve()
    folders = {folder: house / folder for folder in PACKAGES}
    if interfaces != "tree":
        folders["interfaces"] = house / f"interfaces-{interfaces}"
    return {folder: next(path.glob("*.whl")) for folder, path in folders.items()}


def _constraints(session: nox.Session, package: Package, interfaces: str = "tree") -> str:
    """A file that ties every sibling to its wheel, whatever an index offers under that name."""
    lines = [
        f"{PACKAGES[folder].distribution} @ {wheel.as_uri()}\n"
        for folder, wheel in _wheels(session, interfaces).items()
        if folder != package.folder
    ]
    file = Path(session.virtualenv.location, "siblings.txt")
    file.write_text("".join(lines), "utf-8")
    return str(file)


def _python(session: nox.Session) -> str:
    return str(Path(session.bin, "python"))


def _pins(session: nox.Session) -> str:
    """A file that keeps everything installed at its version, whatever is installed next."""
    frozen = session.run("uv", "pip", "freeze", "--python", _python(session), silent=True) or ""
    file = Path(session.virtualenv.location, "pins.txt")
    file.write_text("".join(line for line in frozen.splitlines(keepends=True) if "==" in line), "utf-8")
    return str(file)


def _workers(package: Package) -> list[str]:
    return PARALLEL if package.folder in LONG else []


def _run_copied_tests(session: nox.Session, package: Package) -> None:
    """Run a package's tests from where no source of this repository can be imported by accident."""
    copy = Path(session.virtualenv.location, "copy").resolve()
    shutil.rmtree(copy, ignore_errors=True)
    tests = f"packages/{package.folder}/tests"
    shutil.copytree(ROOT / tests, copy / tests, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    with session.chdir(copy):
        session.run(*PYTEST, *_workers(package), tests, *session.posargs)


def _check_closure(session: nox.Session, *requirements: str) -> None:
    modules = ",".join(f"{each.distribution}={each.module}" for each in PACKAGES.values())
    session.run(
        sys.executable,
        "tools/closure.py",
        "--python",
        _python(session),
        "--ours",
        modules,
        *requirements,
        external=True,
    )


# ------------------------------------------------------------------------------------------ default sessions


@nox.session
def lint(session: nox.Session) -> None:
    """Hold one style: no unused code, no likely bug, no unformatted file."""
    session.install("ruff")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def types(session: nox.Session) -> None:
    """Keep the types that users see complete, and true in both checkers."""
    _install_editable(session, *PACKAGES.values())
    pyright = "pyright" if shutil.which("node") else "pyright[nodejs]"
    session.install(
        *TEST_TOOLS, *CLIENTS, "mypy", "nox", "opentelemetry-sdk", "packaging", "sybil", "wsproto", pyright
    )
    for package in PACKAGES.values():
        # One run each: test modules of different packages share their names.
        session.run("mypy", f"packages/{package.folder}/src", f"packages/{package.folder}/tests")
    session.run("mypy", "noxfile.py", "tools", "tests", "benchmarks")
    session.run("pyright")
    for package in PACKAGES.values():
        session.run("pyright", "--verifytypes", package.module, "--ignoreexternal")


@nox.session
def layers(session: nox.Session) -> None:
    """Keep the layers apart, the pure modules pure, and every import cheap."""
    _install_editable(session, *PACKAGES.values())
    session.install("import-linter")
    session.run("lint-imports", "--no-logo", "--no-cache")
    modules = [package.module for package in PACKAGES.values()]
    session.run("python", "tools/import_check.py", *modules, "lamina.sync", "lamina.aio")


@nox.session(python=PYTHONS)
@EACH_PACKAGE
def tests(session: nox.Session, package: str) -> None:
    """Hold each package to its own tests on every Python that it supports."""
    _install_editable(session, *_siblings(PACKAGES[package]))
    session.install(*TEST_TOOLS)
    session.run(*PYTEST, *_workers(PACKAGES[package]), f"packages/{package}/tests", *session.posargs)


@nox.session(reuse_venv=False, requires=["build"])
@nox.parametrize(("package", "interfaces"), _wheel_runs())
def wheels(session: nox.Session, package: str, interfaces: str) -> None:
    """Prove that each wheel works alone: nothing undeclared is needed, nothing undeclared is installed."""
    this = PACKAGES[package]
    constraints = _constraints(session, this, interfaces)
    uri = _wheels(session)[package].as_uri()

    session.install("--constraint", constraints, f"{this.distribution} @ {uri}")
    _check_closure(session, this.distribution)
    session.run("python", "-I", "-c", f"import {this.module}")

    everything = f"{this.distribution}{this.with_extras}"
    session.install("--constraint", constraints, f"{everything} @ {uri}", *TEST_TOOLS)
    _check_closure(session, everything, *TEST_TOOLS)
    _run_copied_tests(session, this)


@nox.session(reuse_venv=False, requires=["build"])
@nox.parametrize(
    "package",
    [
        nox.param(each.folder, id=each.folder)
        for each in PACKAGES.values()
        if any(need.name not in BY_DISTRIBUTION for need in (*each.requirements, *each.optional))
    ],
)
def lowest(session: nox.Session, package: str) -> None:
    """Keep the lower bounds honest: the oldest third-party versions that a package admits pass its tests."""
    this = PACKAGES[package]
    session.install("uv")
    session.run(
        *("uv", "pip", "install", "--python", _python(session)),
        *("--no-sources", "--resolution", "lowest-direct"),
        *("--constraint", _constraints(session, this), f"./packages/{package}{this.with_extras}"),
    )
    session.install("--constraint", _pins(session), *TEST_TOOLS)
    _run_copied_tests(session, this)


@nox.session
def docs(session: nox.Session) -> None:
    """Keep the documentation buildable without a warning, and its snippets, figures and drawings true."""
    _install_editable(session, *PACKAGES.values())
    session.install(
        *TEST_TOOLS,
        *CLIENTS,
        "furo",
        "myst-parser",
        "openai",
        "opentelemetry-api",
        "sphinx",
        "sybil",
        "wsproto",
    )
    session.run("python", "tools/pool_pictures.py", "--check")
    session.run("python", "benchmarks/report.py", "--check")
    session.run("sphinx-build", "-W", "--keep-going", "-q", "-b", "html", "docs", "docs/_build/html")
    pages = ["README.md", "docs", *(f"packages/{folder}/README.md" for folder in PACKAGES)]
    sources = [f"packages/{folder}/src" for folder in PACKAGES]
    # In the order of the page: a snippet may build on the one before it.
    plugins = ["-p", "no:randomly", "-p", "snippets"]
    session.run(*PYTEST, *plugins, *pages, *sources, env={"PYTHONPATH": "tools"})


@nox.session
def stack(session: nox.Session) -> None:
    """Hold the whole stack, all layers installed, to real peers on loopback."""
    _install_editable(session, *PACKAGES.values())
    session.install(*TEST_TOOLS, *PEERS)
    session.run(*PYTEST, *PARALLEL, "tests", *session.posargs)


# ------------------------------------------------------------------------------------------ sessions by name


@nox.session(default=False)
def build(session: nox.Session) -> None:
    """Make the wheels that other sessions install, as a release would make them."""
    session.install("hatchling>=1.27")
    house = Path(session.cache_dir, "wheels").resolve()
    shutil.rmtree(house, ignore_errors=True)
    sources = {folder: ROOT / "packages" / folder for folder in PACKAGES}
    for version in {_oldest_interfaces(package) for package in PACKAGES.values()} - {None}:
        released = house / "sources" / f"interfaces-{version}"
        released.mkdir(parents=True)
        archive = str(released / "source.tar")
        session.run(
            "git", "archive", "-o", archive, f"interfaces/v{version}:packages/interfaces", external=True
        )
        with tarfile.open(archive) as contents:
            contents.extractall(released, filter="data")
        sources[released.name] = released
    for name, source in sources.items():
        with session.chdir(source):
            session.run("hatchling", "build", "-t", "wheel", "-d", str(house / name), silent=True)


@nox.session(default=False)
def demo(session: nox.Session) -> None:
    """Show the main job: requests through the layers to a server on loopback, as a table and a waterfall."""
    _install_editable(session, *PACKAGES.values())
    session.install("trustme", *(["uvloop"] if os.name != "nt" else []))  # certificates; another event loop
    session.run("python", "-m", "lamina.demo", *session.posargs)


@nox.session(default=False)
def faults(session: nox.Session) -> None:
    """Show what comes of each fault on each backend: the class of the exception, as a table."""
    _install_editable(session, *PACKAGES.values())
    session.install(*TEST_TOOLS)
    session.run("python", "tools/fault_table.py", *session.posargs)


@nox.session(default=False)
def conformance(session: nox.Session) -> None:
    """Show that every backend, ours, the mocks and the documents', keeps the interfaces' contract, rule by rule."""
    _install_editable(session, *PACKAGES.values())
    session.install(*TEST_TOOLS)
    session.run("python", "tools/conformance_report.py", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure lamina beside its peers and raw sockets: ``nox -s bench`` briefly, ``nox -s bench -- full`` for good."""
    _install_editable(session, *PACKAGES.values())
    session.install(*RIVALS, "trustme")
    session.run("python", "benchmarks/run.py", *session.posargs)


@nox.session(default=False, python="3.12")
def instructions(session: nox.Session) -> None:
    """Find hot paths that have grown, on a machine however busy: instructions, counted; ``-- --write`` stores them."""
    _install_editable(session, *PACKAGES.values())
    session.run("python", "benchmarks/instructions.py", *(session.posargs or ["--check"]))


@nox.session(default=False)
def soak(session: nox.Session) -> None:
    """Run what takes minutes: load, churn and long lives, where leaks and races show."""
    _install_editable(session, *PACKAGES.values())
    session.install(*TEST_TOOLS, "psutil")
    session.run(*UNWATCHED, "-m", "soak", "--timeout=1800", *session.posargs)


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Search for bytes that HTTP/1.1's plain way takes for something else than h11: ``nox -s fuzz -- --minutes 60``."""
    _install_editable(session, *_siblings(PACKAGES["pool"]))
    # There is no wheel of it for every Python and system; without it the tool searches at random, and says so.
    session.install("--only-binary", "atheris", "atheris", success_codes=[0, 1, 2])
    session.run("python", "tools/fuzz_http11.py", *session.posargs)


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """Show which lines no test runs."""
    _install_editable(session, *PACKAGES.values())
    session.install(*TEST_TOOLS, *PEERS, "coverage")
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "combine", "-q")
    session.run("coverage", "report")


@nox.session(default=False, python=False)
def dev(session: nox.Session) -> None:
    """Make ``.venv`` with every package editable and every tool: for editors, and for single tests."""
    session.run(sys.executable, "-m", "venv", ".venv")
    python = str(Path(".venv", "Scripts" if os.name == "nt" else "bin", "python"))
    arguments = [
        arg for each in PACKAGES.values() for arg in ("-e", f"packages/{each.folder}{each.with_extras}")
    ]
    tools = ["import-linter", "mypy", "nox", "pyright", "ruff", "towncrier"]
    # Python 3.11 brings a pip that looks for the siblings on an index, though they are named beside each other.
    session.run(python, "-m", "pip", "install", "-q", "--upgrade", "pip")
    session.run(python, "-m", "pip", "install", "-q", *arguments, *TEST_TOOLS, *PEERS, *tools)


@nox.session(default=False, requires=["build"])
def release(session: nox.Session) -> None:
    """Release one package, the same way each time: ``nox -s release -- pool minor``, ``--tag`` for good."""
    session.install("griffe", "hatch", "towncrier", "twine>=7")
    house = str(Path(session.cache_dir, "wheels").resolve())
    session.run("python", "tools/release.py", "--siblings", house, *session.posargs)
