"""What needs no pool of the caller's own, and the names that only the flat module has."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lamina_pool import URL, ConnectionPool, ContentTypes, Extensions, HeaderTypes, Response

# A real union and no text, since code written for httpcore may build on it: `Iterable[SOCKET_OPTION] | None`.
SOCKET_OPTION = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]
"""The arguments of one `socket.setsockopt` call: level, name, value (and length, where the value is `None`)."""


def request(
    method: bytes | str,
    url: URL | bytes | str,
    *,
    headers: HeaderTypes = None,
    content: ContentTypes = None,
    extensions: Extensions | None = None,
) -> Response:
    """Send one request, and read the whole response.

    The connection is made for it and closed after it; for several requests use a `ConnectionPool`. Thread-safe.

    Args:
        method: `"GET"` and so on.
        url: where to.
        headers: pairs, or a mapping. `Host`, and `Content-Length` or `Transfer-Encoding` for a body, are added where
            they are missing.
        content: the body: bytes, or an iterable of bytes, which is sent in chunks.
        extensions: options by name, as for `Request`: `"timeout"`, `"trace"`, `"sni_hostname"`, `"target"`.

    Returns:
        The response; `response.content` is its body.

    Raises:
        LaminaError: as `ConnectionPool.request`.
    """
    with ConnectionPool() as pool:
        return pool.request(method, url, headers=headers, content=content, extensions=extensions)


@contextmanager
def stream(
    method: bytes | str,
    url: URL | bytes | str,
    *,
    headers: HeaderTypes = None,
    content: ContentTypes = None,
    extensions: Extensions | None = None,
) -> Iterator[Response]:
    """Send one request; a context manager that gives the response before its body is read, and closes it.

    Arguments and errors are those of `request`. The connection is closed at the end of the block, whether the body
    has been read or not.
    """
    with (
        ConnectionPool() as pool,
        pool.stream(method, url, headers=headers, content=content, extensions=extensions) as response,
    ):
        yield response


for _function in (request, stream):
    _function.__module__ = "lamina"
