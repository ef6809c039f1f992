"""What a scripted peer says on one connection: a list of bytes, read from the front.

Blocking and async streams are both thin faces over this. It does no I/O and reads no clock of its own; the limit
of each operation is an argument.

When may a pool reuse such a connection? It refuses one that is readable while idle, since a server that speaks
unasked has closed, or is about to. On a scripted connection the rest of the script is the answer to requests that
have not been sent yet, so it does not count as readable. Nor does a script that has run out: the peer keeps silent
until somebody reads. Only an empty `b""` as the next item says that the peer has ended its side by itself.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    ArgumentTypeError,
    ArgumentValueError,
    ConnectError,
    ReadError,
    WriteError,
)

if TYPE_CHECKING:
    from collections.abc import Sized

    from lamina_interfaces import BytesLike, Limit

_CLOSED = "the stream is closed"


class ScriptedTLS:
    """What stands for an `ssl.SSLObject`: it only knows which protocol was agreed on (ALPN, RFC 7301)."""

    __slots__ = ("_protocol",)

    def __init__(self, http2: bool) -> None:
        self._protocol = "h2" if http2 else "http/1.1"

    def selected_alpn_protocol(self) -> str:
        """The protocol that the peer has chosen: `"h2"` or `"http/1.1"`."""
        return self._protocol


class Chunks:
    """The rest of what the peer will say, and whether we have closed the connection."""

    __slots__ = ("_chunks", "_closed", "_tls", "http2")

    def __init__(self, buffer: Sequence[bytes], http2: bool) -> None:
        self._chunks = deque(checked_chunks(buffer))
        self._closed = False
        self._tls = ScriptedTLS(http2)
        self.http2 = http2

    def read(self, max_bytes: int | None, limit: Limit) -> bytes:
        """Take the next item, or as much of it as is wanted; `b""`, for good, at the end."""
        wanted = DEFAULT_READ_SIZE if max_bytes is None else max_bytes
        if isinstance(wanted, bool) or not isinstance(wanted, int):
            raise ArgumentTypeError(f"max_bytes must be an int or None, not {type(max_bytes).__name__}")
        if wanted < 1:
            raise ArgumentValueError(f"max_bytes must be at least 1, got {max_bytes!r}")
        if self._closed:
            raise ReadError(_CLOSED, phase="read")
        limit.check()
        chunk = self._chunks[0] if self._chunks else b""
        if len(chunk) > wanted:
            self._chunks[0] = chunk[wanted:]
        elif chunk:
            self._chunks.popleft()
        return chunk[:wanted]

    def write(self, buffer: BytesLike, limit: Limit) -> None:
        """Take our bytes; the peer does not look at them."""
        if not isinstance(buffer, (bytes, bytearray, memoryview)):
            raise ArgumentTypeError(f"write takes bytes, not {type(buffer).__name__}")
        if self._closed:
            raise WriteError(_CLOSED, phase="write")
        limit.check()

    def start_tls(self, limit: Limit) -> None:
        """Agree to TLS. A limit that has passed closes the stream, as for every handshake."""
        if self._closed:
            raise ConnectError(_CLOSED, phase="tls")
        if limit.expired():
            self._closed = True
            raise limit.error()

    def close(self) -> None:
        """Close our side."""
        self._closed = True

    def get_extra_info(self, info: str) -> Any:
        """The names that a scripted stream knows: `"ssl_object"` and `"is_readable"`."""
        if info == "ssl_object":
            return self._tls
        if info == "is_readable":
            return self._closed or (bool(self._chunks) and not self._chunks[0])
        return None

    def describe(self) -> str:
        """The state in a few words, for a `repr`."""
        if self._closed:
            return "closed"
        return f"{count_chunks(self._chunks)}{', HTTP/2' if self.http2 else ''}"


def checked_chunks(buffer: object) -> list[bytes]:
    """Copy a script, so that reading leaves the caller's list alone.

    Raises:
        ArgumentTypeError: it is not a list of bytes. One `bytes` object is not: its items are numbers.
    """
    # An iterator would be used up by the first connection.
    if not isinstance(buffer, Sequence) or isinstance(buffer, (bytes, bytearray, memoryview, str)):
        raise ArgumentTypeError(f"a script is a list of bytes, not {type(buffer).__name__}")
    for chunk in buffer:
        if not isinstance(chunk, (bytes, bytearray, memoryview)):
            raise ArgumentTypeError(f"a script is a list of bytes, but holds {type(chunk).__name__}")
    return [bytes(chunk) for chunk in buffer]


def count_chunks(chunks: Sized) -> str:
    """How many items, in words."""
    return f"{len(chunks)} chunk{'' if len(chunks) == 1 else 's'}"
