"""What an HTTP server of a test is asked and what it answers, for every version of HTTP.

An answer is a `MockResponse`, or something shorter that stands for one. `steps` turns it into the plan that a server
engine carries out: wait, interim responses, head, data, trailers, and whatever is to go wrong on the way. So delays and
faults are written once, and an engine only knows how each step looks in its protocol.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self, TypeAlias

from lamina_interfaces import ArgumentTypeError, ArgumentValueError, check_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._server import MockConnection

Text: TypeAlias = bytes | str
"""Text in a message: bytes as they are, or a string (Latin-1 in headers, UTF-8 in content)."""

HeaderTypes: TypeAlias = Mapping[str, Text] | Mapping[bytes, Text] | Iterable[tuple[Text, Text]]
"""Header fields as a handler may give them."""

Chunk: TypeAlias = Text | tuple[float, Text]
"""A part of the content, perhaps with the seconds to wait before it."""

FaultKind = Literal["reset", "eof", "stall", "goaway"]

# RFC 9110, sections 6.4.1 and 9.3.2: these have no content, whatever their header fields say.
_STATUS_WITHOUT_CONTENT = frozenset({204, 304})

# RFC 9113, section 7. Written down here so that an answer can be made without importing h2.
NO_ERROR = 0
PROTOCOL_ERROR = 1
INTERNAL_ERROR = 2
REFUSED_STREAM = 7
CANCEL = 8


class Fault(NamedTuple):
    """What goes wrong with an answer.

    Attributes:
        kind: what it is.
        after: so many bytes of the content are sent before it; `None` if not even the head is.
        error_code: of RST_STREAM or GOAWAY.
        last_stream_id: of GOAWAY.
    """

    kind: FaultKind
    after: int | None
    error_code: int
    last_stream_id: int | None


@dataclass(frozen=True, slots=True)
class MockResponse:
    """What a handler answers.

    A length or a transfer coding is filled in where the headers give none: `Content-Length` for a content in one
    piece, under HTTP/1.1 `Transfer-Encoding: chunked` for one in several. Immutable.

    Args:
        status: 200 to 599, or 101 for a change of protocol under HTTP/1.1.
        headers: a mapping, or pairs. Strings are sent as Latin-1.
        content: bytes, a string (sent as UTF-8), or a sequence of such chunks. A chunk may be `(seconds, bytes)`: then
            it is sent so much later than what is before it. Each chunk begins a DATA frame, or a chunk of HTTP/1.1.
        trailers: fields after the content. Under HTTP/1.1 they need a chunked content: give it as a list.
        delay: seconds from the request, or from the call of the handler, to the first byte.
        interim: responses 1xx that are sent before: statuses, or responses of which status, headers and delay count.
        reason: the phrase in the status line of HTTP/1.1; empty for the usual one.
        verbatim: send the headers under HTTP/2 exactly as given, however wrong. Otherwise names are put in lower case,
            fields that belong to a connection of HTTP/1.1 are left out, and what else the protocol forbids is a
            failure of the test. Under HTTP/1.1 all is checked, always.
        fault: what goes wrong; made by the methods.

    Raises:
        ArgumentTypeError, ArgumentValueError: one of them makes no sense.
    """

    status: int = 200
    headers: HeaderTypes = ()
    content: Text | Sequence[Chunk] = b""
    trailers: HeaderTypes = ()
    delay: float = 0.0
    interim: Sequence[int | MockResponse] = ()
    reason: str = ""
    verbatim: bool = False
    fault: Fault | None = None

    def __post_init__(self) -> None:
        if isinstance(self.status, bool) or not isinstance(self.status, int):
            raise ArgumentTypeError(f"a status is an int, not {type(self.status).__name__}")
        if not 100 <= self.status <= 599:
            raise ArgumentValueError(f"a status is between 100 and 599, got {self.status}")
        check_seconds(self.delay, "delay")
        # Turned into one form at once, so that a mistake shows where it was made.
        store = object.__setattr__
        store(self, "headers", tuple(_pairs(self.headers)))
        store(self, "trailers", tuple(_pairs(self.trailers)))
        if isinstance(self.content, bytes | str):
            store(self, "content", _encoded(self.content))
        else:
            store(self, "content", tuple(_timed(chunk) for chunk in self.content))
        store(
            self,
            "interim",
            tuple(item if isinstance(item, MockResponse) else MockResponse(item) for item in self.interim),
        )

    # --- answers that are none -----------------------------------------------------------------------------

    @classmethod
    def reset(cls, error_code: int = INTERNAL_ERROR, *, delay: float = 0.0) -> Self:
        """Instead of a response: RST_STREAM with `error_code`; under HTTP/1.1 the connection is reset."""
        return cls(delay=delay, fault=Fault("reset", None, error_code, None))

    @classmethod
    def refuse(cls, *, delay: float = 0.0) -> Self:
        """As `reset`, with REFUSED_STREAM: the request was not processed (RFC 9113, section 8.7)."""
        return cls.reset(REFUSED_STREAM, delay=delay)

    @classmethod
    def eof(cls, *, delay: float = 0.0) -> Self:
        """Instead of a response: the server ends the connection."""
        return cls(delay=delay, fault=Fault("eof", None, NO_ERROR, None))

    @classmethod
    def stall(cls) -> Self:
        """Instead of a response: nothing, unless `MockRequest.respond` is called later."""
        return cls(fault=Fault("stall", None, NO_ERROR, None))

    @classmethod
    def goaway(
        cls, last_stream_id: int | None = None, error_code: int = NO_ERROR, *, delay: float = 0.0
    ) -> Self:
        """Instead of a response: GOAWAY (RFC 9113, section 6.8); under HTTP/1.1 the server ends the connection.

        Args:
            last_stream_id: streams above it were not processed and never will be; those up to it finish. `None`
                stands for the stream before this request's.
            error_code: why.
            delay: seconds.
        """
        return cls(delay=delay, fault=Fault("goaway", None, error_code, last_stream_id))

    # --- responses that break off --------------------------------------------------------------------------

    def reset_after(self, size: int, error_code: int = INTERNAL_ERROR) -> Self:
        """The same, but after `size` bytes of the content comes RST_STREAM, or under HTTP/1.1 a reset connection."""
        return replace(self, fault=Fault("reset", size, error_code, None))

    def eof_after(self, size: int) -> Self:
        """The same, but after `size` bytes of the content the server ends the connection."""
        return replace(self, fault=Fault("eof", size, NO_ERROR, None))

    def stall_after(self, size: int) -> Self:
        """The same, but after `size` bytes of the content nothing more comes."""
        return replace(self, fault=Fault("stall", size, NO_ERROR, None))

    # --- for the engines -----------------------------------------------------------------------------------

    @property
    def raw_headers(self) -> RawHeaders:
        """The header fields as pairs of bytes, in order."""
        return _pairs(self.headers)

    @property
    def raw_trailers(self) -> RawHeaders:
        """The trailers as pairs of bytes, in order."""
        return _pairs(self.trailers)

    @property
    def known_length(self) -> int | None:
        """Bytes of the content, where it is in one piece; `None` for chunks, whose length the head does not tell."""
        return len(self.content) if isinstance(self.content, bytes) else None

    def chunks(self) -> Iterator[tuple[float, bytes]]:
        """The content, each part with the seconds to wait before it."""
        if isinstance(self.content, bytes | str):
            yield 0.0, _encoded(self.content)
        else:
            yield from (_timed(chunk) for chunk in self.content)


RawHeaders: TypeAlias = list[tuple[bytes, bytes]]
"""Header fields as the protocols have them."""

Answer: TypeAlias = MockResponse | int | bytes | str | tuple[int, HeaderTypes, Text | Sequence[Chunk]] | None
"""What a handler may return.

A status, a content, or `(status, headers, content)` stands for the response that has it. `None` stands for no response
now: the handler of an early call is called again when the request is complete, after that `MockRequest.respond` has to
be called.
"""


def as_response(answer: object) -> MockResponse | None:
    """The response that a handler's result stands for.

    Raises:
        ArgumentTypeError: it stands for none.
    """
    if answer is None or isinstance(answer, MockResponse):
        return answer
    if isinstance(answer, int) and not isinstance(answer, bool):
        return MockResponse(answer)
    if isinstance(answer, bytes | str):
        return MockResponse(content=answer)
    if isinstance(answer, tuple) and len(answer) == 3:
        return MockResponse(*answer)
    raise ArgumentTypeError(
        "a handler returns a MockResponse, a status, bytes, a string, (status, headers, content) or None,"
        f" not {answer!r}"
    )


def _pairs(headers: HeaderTypes) -> RawHeaders:
    """Header fields as pairs of bytes.

    Raises:
        ArgumentTypeError: they are neither a mapping nor pairs of text.
    """
    pairs: Any = headers.items() if isinstance(headers, Mapping) else headers
    found = []
    for name, value in pairs:
        if not isinstance(name, bytes | str) or not isinstance(value, bytes | str):
            raise ArgumentTypeError(f"a header field is text, not {name!r}: {value!r}")
        found.append((_encoded(name, "latin-1"), _encoded(value, "latin-1")))
    return found


def _encoded(text: Text, encoding: str = "utf-8") -> bytes:
    return text.encode(encoding) if isinstance(text, str) else bytes(text)


def _timed(chunk: Chunk) -> tuple[float, bytes]:
    seconds, text = chunk if isinstance(chunk, tuple) else (0.0, chunk)
    if not isinstance(text, bytes | str):
        raise ArgumentTypeError(f"a chunk of content is bytes or a string, not {type(text).__name__}")
    return check_seconds(seconds, "the delay of a chunk"), _encoded(text)


# --- the plan ----------------------------------------------------------------------------------------------


class Wait(NamedTuple):
    """Do the rest so many seconds later; with `inf`, never."""

    seconds: float


class Head(NamedTuple):
    """Send the head of the response; `ends` if nothing follows it."""

    response: MockResponse
    ends: bool


class Interim(NamedTuple):
    """Send the head of a response 1xx."""

    response: MockResponse


class Data(NamedTuple):
    """Send a part of the content; `ends` if nothing follows it."""

    content: bytes
    ends: bool


class End(NamedTuple):
    """Send trailers, which end the message."""

    trailers: RawHeaders


Step: TypeAlias = Wait | Interim | Head | Data | End | Fault


def steps(response: MockResponse, latency: float, is_head: bool) -> Iterator[Step]:
    """What has to be done to answer, in order.

    Args:
        response: the answer.
        latency: seconds that every answer of this server takes.
        is_head: whether the method was HEAD, so that no content is sent.
    """
    for interim in response.interim:
        assert isinstance(interim, MockResponse)
        yield Wait(interim.delay)
        yield Interim(interim)
    yield Wait(latency + response.delay)
    fault = response.fault
    if fault is not None and fault.after is None:
        yield fault
        return
    has_content = not (is_head or response.status in _STATUS_WITHOUT_CONTENT or response.status < 200)
    chunks = [chunk for chunk in response.chunks() if any(chunk)] if has_content else []
    has_trailers = has_content and bool(response.raw_trailers)
    yield Head(response, ends=not (chunks or has_trailers or fault))
    room = sum(len(content) for _, content in chunks) if fault is None else fault.after or 0
    for i, (seconds, content) in enumerate(chunks):
        yield Wait(seconds)
        yield Data(content[:room], ends=i == len(chunks) - 1 and not (has_trailers or fault))
        room -= len(content)
        if room < 0:
            break
    if fault is not None:
        yield fault
    elif has_trailers:
        yield End(response.raw_trailers)


# --- requests ----------------------------------------------------------------------------------------------


class MockRequest:
    """A request as the server got it; recorded when its head has come.

    Attributes:
        method: `"GET"`.
        target: `"/path?query"`; whatever the client sent there.
        scheme: `"http"` or `"https"`. Under HTTP/1.1 by whether the connection is TLS.
        authority: `"example.com:8080"`; under HTTP/1.1 the `Host` field. Empty where the client sent none.
        headers: the fields in order, as sent, decoded as Latin-1, without those that begin with a colon.
        content: what has come of the content.
        trailers: the fields after the content, as `headers`.
        is_complete: whether the end has come.
        http_version: `"HTTP/1.0"`, `"HTTP/1.1"` or `"HTTP/2"`.
        stream_id: under HTTP/2; `None` else.
        connection: on which it came.
        received_at: when the head came, in seconds of the clock that the client waits on.
        reset_code: of the RST_STREAM with which the client took it back; `None` if it did not.
    """

    __slots__ = (
        "_content",
        "_respond",
        "authority",
        "connection",
        "headers",
        "http_version",
        "is_complete",
        "method",
        "received_at",
        "reset_code",
        "scheme",
        "stream_id",
        "target",
        "trailers",
    )

    def __init__(
        self,
        connection: MockConnection,
        *,
        method: str,
        target: str,
        scheme: str,
        authority: str,
        headers: Sequence[tuple[str, str]],
        http_version: str,
        stream_id: int | None,
        received_at: float,
    ) -> None:
        self.connection: MockConnection = connection
        self.method: str = method
        self.target: str = target
        self.scheme: str = scheme
        self.authority: str = authority
        self.headers: tuple[tuple[str, str], ...] = tuple(headers)
        self.http_version: str = http_version
        self.stream_id: int | None = stream_id
        self.received_at: float = received_at
        self.trailers: tuple[tuple[str, str], ...] = ()
        self.is_complete: bool = False
        self.reset_code: int | None = None
        self._content = bytearray()
        self._respond: Callable[[MockResponse], None] | None = None

    @property
    def content(self) -> bytes:
        """What has come of the content so far."""
        return bytes(self._content)

    def header(self, name: str) -> str | None:
        """The value of a field, whatever the case of its name.

        Returns:
            Repeated fields joined by a comma and a space (RFC 9110, section 5.3); `None` if there is none.
        """
        values = [value for each, value in self.headers if each.lower() == name.lower()]
        return ", ".join(values) if values else None

    def respond(self, answer: Answer) -> None:
        """Answer now what the handler has left open (by `None` or `MockResponse.stall()`). From any thread or task.

        Args:
            answer: as a handler returns it, but not `None`. Nothing comes of it if the client has taken the request
                back or closed the connection.

        Raises:
            ArgumentTypeError, ArgumentValueError: it stands for no response.
            ArgumentValueError: the request has been answered already.
        """
        response = as_response(answer)
        if response is None:
            raise ArgumentTypeError("None is no response")
        if self._respond is None:
            raise ArgumentValueError(f"{self!r} has been answered already")
        self._respond(response)

    def __repr__(self) -> str:
        stream = f", stream {self.stream_id}" if self.stream_id is not None else ""
        state = "" if self.is_complete else ", incomplete"
        return (
            f"<MockRequest [{self.method} {self.target}, {self.http_version},"
            f" connection {self.connection.number}{stream}{state}]>"
        )
