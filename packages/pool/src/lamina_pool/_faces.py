"""What the blocking and the async face of the pool have in common. Nothing here waits, or knows which one it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from lamina_interfaces import ArgumentTypeError, ArgumentValueError, ReadError

from ._io import END, CallerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from lamina_interfaces import BytesLike, ResolvedAddress

    from ._body import ResponseBody
    from ._models import ByteStream
    from ._stats import PoolStats

S = TypeVar("S")

FALLBACK_WRITE_BYTES = 64 * 1024
"""After how many bytes a stream that cannot watch for an answer while it writes is asked whether one is there."""


class StreamFace(Generic[S]):
    """What `_io.Stream` asks for and needs no waiting."""

    __slots__ = ("is_direct", "is_prompt", "is_watchful", "public")

    def __init__(self, stream: S) -> None:
        self.public: Any = stream
        self.is_watchful = hasattr(stream, "write_until_readable")
        self.is_prompt = hasattr(stream, "write_now")
        self.is_direct = reads_directly(stream)

    @property
    def has_unsent(self) -> bool:
        is_there: bool = self.public.has_unsent
        return is_there

    def write_now(self, buffer: BytesLike) -> int:
        sent: int = self.public.write_now(buffer)
        return sent

    def get_extra_info(self, info: str) -> Any:
        try:
            return self.public.get_extra_info(info)
        except Exception:  # noqa: BLE001 - a custom stream without the method, or with one that breaks its contract
            return None


def reads_directly(stream: object) -> bool:
    """Whether a stream has `read_into`, and nobody has put a `read` of his own before it that would be passed by.

    Whoever records, counts or limits what is read does so in a class derived from ours, in a wrapper that passes on all
    that it does not know, or on the one instance.
    """
    if "read" in getattr(stream, "__dict__", ()):
        return False
    for kind in type(stream).__mro__:
        if "read_into" in vars(kind):
            return True
        if "read" in vars(kind):
            return False
    return False


def pieces_of(buffer: BytesLike) -> Iterator[tuple[int, bytes]]:
    """The buffer in pieces, each with its place, for a stream that cannot watch for an answer while it writes."""
    view = memoryview(buffer)
    for start in range(0, len(view), FALLBACK_WRITE_BYTES):
        # A copy: a stream written against the documents may treat what it is given as `bytes`.
        yield start, bytes(view[start : start + FALLBACK_WRITE_BYTES])


class BodyFace:
    """A request's body, pulled piece by piece; what `_io.BodySource` asks for, save `_pull` and `aclose`."""

    __slots__ = ("_returned", "has_begun")

    is_whole = False

    def __init__(self) -> None:
        self._returned: Any = None
        self.has_begun = False

    async def next(self) -> Any:
        self.has_begun = True
        if self._returned is not None:
            piece, self._returned = self._returned, None
            return piece
        try:
            return await self._pull()
        except Exception as error:
            raise CallerError(error) from error

    async def _pull(self) -> Any:
        """The next piece from the caller's iterator, or `END`."""
        raise NotImplementedError

    def put_back(self, piece: Any) -> None:
        self._returned = piece
        self.has_begun = False


class PlainBody(BodyFace):
    """A request's body, pulled from a plain iterable. Fulfils `_io.BodySource`, and never suspends."""

    __slots__ = ("_is_ours", "_iterator")

    def __init__(self, iterable: Iterable[bytes]) -> None:
        super().__init__()
        try:
            self._iterator = iter(iterable)
        except Exception as error:
            raise CallerError(error) from error
        # An iterator is used up with the request, and a generator's `finally` runs. A file stays the caller's own, to
        # be read again or closed.
        self._is_ours = not hasattr(iterable, "read")

    async def _pull(self) -> Any:
        return next(self._iterator, END)

    async def aclose(self) -> None:
        close = getattr(self._iterator, "close", None) if self._is_ours else None
        if close is not None:
            try:
                close()
            except Exception as error:
                raise CallerError(error) from error


class WholeBody:
    """A request's body that is there as a whole, in blocking and in async code. Fulfils `_io.BodySource`."""

    __slots__ = ("_piece", "has_begun")

    is_whole = True

    def __init__(self, body: ByteStream) -> None:
        self._piece: Any = body.content
        self.has_begun = False

    async def next(self) -> Any:
        self.has_begun = True
        piece, self._piece = self._piece, END
        return piece

    def put_back(self, piece: Any) -> None:
        self._piece = piece
        self.has_begun = False

    async def aclose(self) -> None:
        """Nothing is held."""


class Switched(Generic[S]):
    """A stream after a switch of protocols, which begins with what has come of the new one already."""

    def __init__(self, body: ResponseBody, leading: bytes) -> None:
        self._body = body
        self._stream: S = body.public_stream
        self._leading = leading

    def _take_leading(self, max_bytes: int | None) -> bytes:
        if max_bytes is not None and max_bytes < 1:
            raise ArgumentValueError(f"max_bytes must be at least 1, got {max_bytes}")
        size = len(self._leading) if max_bytes is None else max_bytes
        data, self._leading = self._leading[:size], self._leading[size:]
        return data

    def get_extra_info(self, info: str) -> Any:
        """See `NetworkStream.get_extra_info`."""
        if info == "is_readable" and self._leading:
            return True
        stream: Any = self._stream
        return stream.get_extra_info(info)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self._stream!r}]>"


def addresses_of(resolved: Iterable[ResolvedAddress]) -> list[str]:
    """The IP addresses as text, in their order, without zones, which mean nothing to a proxy."""
    return list(dict.fromkeys(address.sockaddr[0].partition("%")[0] for address in resolved))


def untrusted_bytes() -> ReadError:
    """The error for bytes that came before a handshake which begins now: somebody may have put them there."""
    return ReadError("the peer sent bytes before the TLS handshake, which cannot be trusted", phase="tls")


def check_kind(name: str, value: object, kind: type, foreign: type, method: str) -> None:
    """Refuse what is no backend (or stream), its class, and one of the other world. What has the method will do.

    Raises:
        ArgumentTypeError: it is one of these.
    """
    if isinstance(value, kind):
        return
    if isinstance(value, (type, foreign)) or not hasattr(value, method):
        given = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise ArgumentTypeError(f"{name} must be an instance of {kind.__name__}, not {given}")


def describe_pool(pool: object, stats: PoolStats) -> str:
    """A pool's `repr`."""
    return (
        f"<{type(pool).__name__} [Requests: {stats.requests + stats.connecting} active, {stats.queued} queued | "
        f"Connections: {stats.active + stats.connecting} active, {stats.idle} idle]>"
    )
