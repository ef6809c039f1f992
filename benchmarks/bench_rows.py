"""What is measured: the rows of the table, the clients, and what lamina is to reach. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

World = Literal["blocking", "asyncio", "trio"]
Shape = Literal["sequence", "threads", "tasks", "cold", "fresh", "idle"]
Action = Literal["get", "download", "upload"]
Server = Literal["http", "https", "h2c", "discard"]

MIB = 2**20
FILES = {"hello": 13, "mib": MIB, "large": 100 * MIB}
"""What the servers have, in bytes."""
UPLOAD_BYTES = 200_000_000


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: for the command line.
        title: for the table.
        world: in which the client runs.
        shape: one request after the other, or by so many threads or tasks; each with a new pool (`cold`), or in a new
            process (`fresh`); or what connections take that do nothing (`idle`).
        server: which one answers. `h2c` is HTTP/2 without TLS, known beforehand.
        file: what is asked for.
        action: what is done with the body: taken whole, thrown away as it comes, or sent.
        workers: how many threads or tasks, or idle connections.
        connections: how many of them a pool may have.
        is_main: whether it belongs to the short run.
    """

    name: str
    title: str
    world: World
    shape: Shape
    server: Server = "http"
    file: str = "hello"
    action: Action = "get"
    workers: int = 1
    connections: int = 1
    is_main: bool = True

    @property
    def is_http2(self) -> bool:
        return self.server == "h2c"

    @property
    def unit(self) -> str:
        """Of the figure that counts."""
        if self.shape == "idle":
            return "KiB"
        return "requests/s" if self.action == "get" else "MiB/s"

    @property
    def units_per_request(self) -> float:
        if self.action == "upload":
            return UPLOAD_BYTES / MIB
        return FILES[self.file] / MIB if self.action == "download" else 1.0

    @property
    def is_less_better(self) -> bool:
        return self.shape == "idle"


ROWS = (
    Row("sequence", "blocking, one connection, in sequence", "blocking", "sequence"),
    Row("threads-16", "16 threads, one pool of 16", "blocking", "threads", workers=16, connections=16),
    Row("asyncio", "asyncio, in sequence", "asyncio", "sequence"),
    Row("asyncio-100", "asyncio, 100 tasks, pool of 100", "asyncio", "tasks", workers=100, connections=100),
    Row(
        "asyncio-1000",
        "asyncio, 1,000 tasks, pool of 100",
        "asyncio",
        "tasks",
        workers=1000,
        connections=100,
        is_main=False,
    ),
    Row("trio-100", "trio, 100 tasks, pool of 100", "trio", "tasks", workers=100, connections=100),
    Row("h2-100", "HTTP/2, 100 streams, one connection, asyncio", "asyncio", "tasks", "h2c", workers=100),
    Row("h2-threads-16", "HTTP/2, 16 threads, one connection", "blocking", "threads", "h2c", workers=16),
    Row("mib", "1 MiB body, buffered, blocking", "blocking", "sequence", file="mib"),
    Row("mib-asyncio", "1 MiB body, buffered, asyncio", "asyncio", "sequence", file="mib"),
    Row("download", "download of 100 MiB, blocking", "blocking", "sequence", "http", "large", "download"),
    Row(
        "download-asyncio", "download of 100 MiB, asyncio", "asyncio", "sequence", "http", "large", "download"
    ),
    Row(
        "download-tls",
        "download over TLS, blocking",
        "blocking",
        "sequence",
        "https",
        "large",
        "download",
        is_main=False,
    ),
    Row(
        "download-tls-asyncio",
        "download over TLS, asyncio",
        "asyncio",
        "sequence",
        "https",
        "large",
        "download",
    ),
    Row("download-h2", "download over HTTP/2, blocking", "blocking", "sequence", "h2c", "large", "download"),
    Row(
        "download-h2-asyncio",
        "download over HTTP/2, asyncio",
        "asyncio",
        "sequence",
        "h2c",
        "large",
        "download",
    ),
    Row(
        "download-h2-trio",
        "download over HTTP/2, trio",
        "trio",
        "sequence",
        "h2c",
        "large",
        "download",
        is_main=False,
    ),
    Row("cold", "cold: new pool, default context, one TLS request", "blocking", "cold", "https"),
    Row("cold-asyncio", "cold: the same on asyncio", "asyncio", "cold", "https", is_main=False),
    Row("fresh", "fresh process, import, one TLS request", "blocking", "fresh", "https"),
    Row("idle", "idle connection, blocking", "blocking", "idle", workers=300, is_main=False),
    Row("idle-asyncio", "idle connection, asyncio", "asyncio", "idle", workers=300),
    Row("idle-tls-asyncio", "idle TLS connection, asyncio", "asyncio", "idle", "https", workers=300),
    Row(
        "upload-asyncio",
        "upload of one 200 MB `bytes`, asyncio",
        "asyncio",
        "sequence",
        "discard",
        action="upload",
    ),
)
BY_NAME = {row.name: row for row in ROWS}


@dataclass(frozen=True)
class Client:
    """One that can be measured.

    Attributes:
        name: for the command line and the table.
        distribution: what has to be installed; `None` for what Python brings.
        worlds: where it runs.
        versions: of HTTP that it speaks.
    """

    name: str
    distribution: str | None
    worlds: tuple[World, ...]
    versions: tuple[int, ...] = (1, 2)


CLIENTS = (
    Client("lamina", "lamina", ("blocking", "asyncio", "trio")),
    Client("raw", None, ("blocking", "asyncio", "trio"), (1,)),
    Client("h2", "h2", ("blocking", "asyncio", "trio"), (2,)),
    Client("httpcore", "httpcore", ("blocking", "asyncio", "trio")),
    Client("httpcore2", "httpcore2", ("blocking", "asyncio", "trio")),
    Client("http.client", None, ("blocking",), (1,)),
    Client("urllib3", "urllib3", ("blocking",), (1,)),
    Client("aiohttp", "aiohttp", ("asyncio",), (1,)),
    Client("pycurl", "pycurl", ("blocking", "asyncio")),
    Client("pyreqwest", "pyreqwest", ("blocking", "asyncio")),
)
CLIENTS_BY_NAME = {client.name: client for client in CLIENTS}

NOT_INSTALLED = "not installed"

CANNOT = {
    ("idle", "pyreqwest"): "one thread cannot open many connections at once",
    ("h2-threads-16", "h2"): "one connection for many threads needs more than h2",
    ("h2-threads-16", "pycurl"): "threads cannot share a connection",
}
"""What a client of this world and version cannot do, with the reason."""


SPEAKING = {NOT_INSTALLED, "no blocking API", "no asyncio", "no trio", "no HTTP/2", "no HTTP/1.1"}
"""Reasons that tell by themselves in which rows there is no figure."""


def installed_version(client: Client) -> str | None:
    """The version of a client's distribution, `None` if it is not installed, `""` if it comes with Python."""
    if client.distribution is None:
        return ""
    try:
        return version(client.distribution)
    except PackageNotFoundError:
        return None


def why_not(row: Row, client: Client) -> str | None:
    """Why a client has no figure in a row; `None` if it has one."""
    reason = CANNOT.get((row.name, client.name))
    if reason is not None:
        return reason
    if row.is_http2 and 2 not in client.versions:
        return "no HTTP/2"
    if not row.is_http2 and 1 not in client.versions:
        return "no HTTP/1.1"
    # Without a context, and in a process of its own, it does not matter to a caller in which world one request is sent.
    if row.world not in client.worlds and not (row.shape in {"cold", "fresh"} and row.world == "blocking"):
        return {"blocking": "no blocking API", "asyncio": "no asyncio", "trio": "no trio"}[row.world]
    return None


def world_of(row: Row, client: Client) -> World:
    """The world in which a client runs in a row: its own, where it does not matter."""
    return row.world if row.world in client.worlds else client.worlds[0]


# --- what is to be reached ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What lamina is to reach in a row.

    Attributes:
        row: the row's name.
        peer: whose figure lamina's is divided by; `None` where lamina's own is looked at.
        least: what has to be reached; `None` where there is only an aim.
        aim: what would be better still.
        figure: which one of the cell: `value` is the one of the row's unit.
    """

    row: str
    peer: str | None
    least: float | None = None
    aim: float | None = None
    figure: Literal["value", "extra_mb"] = "value"

    @property
    def is_less_better(self) -> bool:
        return self.figure == "extra_mb" or BY_NAME[self.row].is_less_better

    @property
    def wording(self) -> str:
        sign = "≤" if self.is_less_better else "≥"
        unit = "" if self.peer else (" MB" if self.figure == "extra_mb" else f" {BY_NAME[self.row].unit}")
        parts = []
        if self.least is not None:
            parts.append(f"{sign} {self.least:g}{unit}")
        if self.aim is not None:
            parts.append(f"aim {sign} {self.aim:g}{unit}")
        return ", ".join(parts)

    def verdict(self, reached: float) -> str:
        """`short`, `met`, `aim met`, or `aim missed` where there is only an aim."""
        if self.aim is not None and self._holds(reached, self.aim):
            return "aim met"
        if self.least is None:
            return "aim missed"
        return "met" if self._holds(reached, self.least) else "short"

    def _holds(self, reached: float, bound: float) -> bool:
        return reached <= bound if self.is_less_better else reached >= bound


TARGETS = (
    Target("sequence", "http.client", 1.0),
    Target("sequence", "httpcore2", 1.6),
    Target("sequence", "pycurl", aim=1.0),
    Target("sequence", "pyreqwest", aim=1.0),
    Target("threads-16", "http.client", 1.0),
    Target("threads-16", "httpcore2", 3.0),
    Target("threads-16", "pyreqwest", aim=1.0),
    Target("asyncio", "aiohttp", 1.2),
    Target("asyncio", "pyreqwest", aim=1.0),
    Target("asyncio-100", "aiohttp", 1.2),
    Target("asyncio-100", "pyreqwest", aim=1.0),
    Target("asyncio-1000", "aiohttp", 1.2),
    Target("asyncio-1000", "pyreqwest", aim=1.0),
    Target("trio-100", "httpcore2", 6.0),
    Target("trio-100", "raw", aim=0.4),
    Target("h2-100", "h2", 0.65, 0.9),
    Target("h2-100", "httpcore2", 2.0),
    Target("h2-threads-16", "httpcore2", 1.4),
    Target("mib", "http.client", 0.95),
    Target("mib", "pyreqwest", aim=1.0),
    Target("mib-asyncio", "raw", 0.9),
    Target("mib-asyncio", "pyreqwest", aim=1.0),
    Target("download", "http.client", 0.95),
    Target("download", "urllib3", 0.95),
    Target("download", "pyreqwest", aim=1.0),
    Target("download-asyncio", "aiohttp", 0.95),
    Target("download-asyncio", "pyreqwest", aim=1.0),
    Target("download-tls", "http.client", 0.95),
    Target("download-tls", "urllib3", 0.95),
    Target("download-tls", "pyreqwest", aim=1.0),
    Target("download-tls-asyncio", "aiohttp", 0.95),
    Target("download-tls-asyncio", "pyreqwest", aim=1.0),
    Target("download-h2", "h2", 1.0, 2.0),
    Target("download-h2-asyncio", "h2", 1.0, 2.0),
    Target("download-h2-trio", "h2", 1.0, 2.0),
    Target("cold", "aiohttp", 0.9),
    Target("cold", "pyreqwest", aim=1.0),
    Target("cold-asyncio", "aiohttp", 0.9),
    Target("cold-asyncio", "pyreqwest", aim=1.0),
    Target("fresh", "urllib3", 1.0),
    Target("fresh", "raw", aim=0.8),
    Target("idle-asyncio", "aiohttp", 1.0),
    Target("idle-asyncio", "pycurl", aim=1.0),
    Target("idle-tls-asyncio", None, 52.0),
    Target("idle-tls-asyncio", "pycurl", aim=1.0),
    Target("upload-asyncio", "raw", 0.8),
    Target("upload-asyncio", None, 8.0, figure="extra_mb"),
)
