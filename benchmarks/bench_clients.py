"""What every client is told, and what it is to do.

The clients stand in `bench_blocking.py`, `bench_asyncio.py` and `bench_trio.py`: each in its fastest usage that its
documentation shows, each taking every body to its end. Clients other than lamina are loaded by name, so that one that
is not installed is missing from the table and nowhere else. Nothing is imported for a client that does not run: the
memory of a process is measured too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import ssl

CHUNK = 2**18
"""Bytes that the raw clients take at once: what the caches of a core hold easily."""
WINDOW = 2**24
"""Bytes that clients which can be told let a server of HTTP/2 send ahead."""


@dataclass(frozen=True)
class Target:
    """What a client is to talk to.

    Attributes:
        url: what to ask for.
        authority: the file with the certificate to trust; `None` to trust what the client trusts by default.
        connections: how many a pool may have.
        http2: whether HTTP/2 is known to be spoken.
    """

    url: str
    authority: str | None
    connections: int
    http2: bool = False

    @property
    def is_tls(self) -> bool:
        return self.url.startswith("https:")

    @property
    def host(self) -> str:
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 0

    @property
    def path(self) -> str:
        return urlsplit(self.url).path

    def context(self) -> ssl.SSLContext | None:
        """One for the client to use, or none: there is no TLS, or the client is to take its own."""
        if self.authority is None or not self.is_tls:
            return None
        import ssl

        return ssl.create_default_context(cafile=self.authority)

    def request(self, method: str = "GET", fields: str = "") -> bytes:
        """A request of HTTP/1.1, as bytes."""
        return f"{method} {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n{fields}\r\n".encode()


class BlockingClient(Protocol):
    """Its methods return how many bytes of a body they have read."""

    def get(self) -> int:
        """One request, its body whole in memory."""
        ...

    def download(self) -> int:
        """One request, its body thrown away as it comes."""
        ...

    def worker(self) -> BlockingClient:
        """What one thread of several uses: this client, if they can share it."""
        ...

    def close(self) -> None: ...


class AsyncClient(Protocol):
    """The same for tasks, which always share a client."""

    async def get(self) -> int: ...

    async def download(self) -> int: ...

    async def aclose(self) -> None: ...


class Holder(Protocol):
    """A blocking client that can show what idle connections take."""

    def hold(self, count: int) -> object:
        """Have so many connections open, and leave them idle. What is returned keeps them."""
        ...


class AsyncHolder(Protocol):
    """The same for tasks."""

    async def hold(self, count: int) -> object: ...


class Uploader(Protocol):
    """A client that can show what an upload takes."""

    async def upload(self, body: bytes) -> int:
        """Send a body with POST. Returns its length."""
        ...


def body_length(head: bytes) -> int:
    """How long the body of a response is; the least that a client can find out."""
    if not head.startswith(b"HTTP/1.1 200"):
        raise ConnectionError(f"unexpected response: {head[:200]!r}")
    return content_length(head)


def content_length(head: bytes) -> int:
    start = head.lower().index(b"content-length:") + 15
    end = head.find(b"\r", start)
    return int(head[start : None if end < 0 else end])


def slow(url: str) -> str:
    """Where the same is to be had in a few seconds, so that each of many requests needs a connection of its own."""
    return url.replace("/hello", "/slow")
