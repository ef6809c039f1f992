"""What goes into a connection and what comes out of it: `Request`, `Response`, `Proxy`.

Plain holders of data. The arguments are brought into one form here (bytes for text, a list of pairs for
headers, a stream for a body), and refused where that cannot be done; whether a request may be sent at all is
decided in `_checks`. Nothing here waits, and there are no async generators: an async iterator is an object,
so nothing hangs on a finaliser when it is left half-way.
"""

from __future__ import annotations

from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import TYPE_CHECKING, Any, Self

from lamina_interfaces import ArgumentTypeError, InvalidURL, LaminaError

from ._urls import URL, enforce_bytes, enforce_url, user_information

if TYPE_CHECKING:
    import ssl

Header = tuple[bytes, bytes]
HeaderTypes = (
    Sequence[tuple[bytes | str, bytes | str]]
    | Mapping[bytes, bytes | str]
    | Mapping[str, bytes | str]
    | Mapping[bytes | str, bytes | str]
    | None
)
"""Headers as they may be given: pairs, which may repeat a name, or a mapping."""

ContentTypes = bytes | bytearray | memoryview | Iterable[bytes] | AsyncIterable[bytes] | None
"""A body as it may be given. An iterator is read once, while the request is sent."""

Extensions = MutableMapping[str, Any]
"""What HTTP itself has no place for, by name."""


class ResponseStateError(LaminaError, RuntimeError):
    """A response was used in a way that does not fit its state, or a blocking one as an async one."""

    default_message = "the response cannot be used in this way now"


class ByteStream:
    """A body that is there as a whole: one chunk, in blocking and in async code, as often as one likes.

    Args:
        content: the bytes; `bytes`, or anything like them, of which a copy is made.

    Raises:
        ArgumentTypeError: it is neither.
    """

    __slots__ = ("_content",)

    def __init__(self, content: bytes | bytearray | memoryview) -> None:
        if type(content) is not bytes:
            if not isinstance(content, (bytes, bytearray, memoryview)):
                raise ArgumentTypeError(f"content must be bytes, but got {type(content).__name__}.")
            content = bytes(content)
        self._content: bytes = content

    @property
    def content(self) -> bytes:
        """All of it."""
        return self._content

    def __iter__(self) -> Iterator[bytes]:
        return iter((self._content,))

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _AsyncChunks((self._content,))

    def __repr__(self) -> str:
        return f"<ByteStream [{len(self._content)} bytes]>"


class _AsyncChunks:
    """An async iterator over chunks that are there already; never waits."""

    __slots__ = ("_chunks",)

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration


class Request:
    """A request, to be handed to a pool or a connection.

    Text may be given wherever bytes are kept, if it is ASCII. A request holds no state of its sending: it may
    be sent again if its body can be read again.

    Args:
        method: `"GET"` and so on; sent as it is, and it is case-sensitive.
        url: where to, as a `URL` or as text or bytes.
        headers: pairs, or a mapping. Nothing is added to them here, not even Host.
        content: the body: bytes, an iterable of bytes (blocking pools), or an async iterable of bytes
            (async).
        extensions: a dictionary of options by name: `"timeout"` (a dictionary with `"connect"`, `"read"`,
            `"write"` and `"pool"` in seconds), `"trace"` (a callback), `"sni_hostname"`, `"target"` (put in
            place of the URL's own).

    Attributes:
        method: bytes.
        url: a `URL`; its target is that of `extensions["target"]`, where given.
        headers: a list of pairs of bytes, in the order and the case in which they are sent.
        stream: the body, always iterable; a `ByteStream` where it was given as bytes or left out.
        extensions: the dictionary that was given.

    Raises:
        ArgumentTypeError: an argument has the wrong type, or its text is not ASCII.
        InvalidURL: the URL cannot be taken apart.
    """

    method: bytes
    url: URL
    headers: list[Header]
    stream: Iterable[bytes] | AsyncIterable[bytes]
    extensions: Extensions

    def __init__(
        self,
        method: bytes | str,
        url: URL | bytes | str,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
        extensions: Extensions | None = None,
    ) -> None:
        self.method = enforce_bytes(method, "method")
        self.url = enforce_url(url, "url")
        self.headers = enforce_headers(headers, "headers")
        self.stream = enforce_stream(content, "content")
        self.extensions = _enforce_extensions(extensions)
        if "target" in self.extensions:
            self.url = self.url.with_target(self.extensions["target"])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.method!r}]>"


class Response:
    """A response: status and headers, and a body that is read once.

    From a pool it comes with its body still on the network, unless it was asked for with `request`. Read it
    with `read` or `iter_stream`, or with `aread` or `aiter_stream` in async code, and close it. One thread or
    task at a time may read.

    Args:
        status: the status code.
        headers: pairs, or a mapping.
        content: the body, as for `Request`.
        extensions: what else is known: `"http_version"`, `"reason_phrase"`, `"network_stream"`, `"trailers"`.

    Attributes:
        status: the status code, `200`.
        headers: a list of pairs of bytes, in the order and the case in which they came.
        stream: the body as it comes from the network.
        extensions: the dictionary.

    Raises:
        ArgumentTypeError: an argument has the wrong type, or its text is not ASCII.
    """

    status: int
    headers: list[Header]
    stream: Iterable[bytes] | AsyncIterable[bytes]
    extensions: Extensions
    _content: bytes | None = None
    _consumed = False

    def __init__(
        self,
        status: int,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
        extensions: Extensions | None = None,
    ) -> None:
        if not isinstance(status, int):
            raise ArgumentTypeError(f"status must be an int, but got {type(status).__name__}.")
        self.status = status
        self.headers = enforce_headers(headers, "headers")
        self.stream = enforce_stream(content, "content")
        self.extensions = _enforce_extensions(extensions)

    @classmethod
    def received(
        cls,
        status: int,
        headers: list[Header],
        stream: Iterable[bytes] | AsyncIterable[bytes],
        extensions: Extensions,
    ) -> Self:
        """A response from the network, whose parser has brought everything into form already."""
        response = cls.__new__(cls)
        response.status = status
        response.headers = headers
        response.stream = stream
        response.extensions = extensions
        return response

    @property
    def content(self) -> bytes:
        """The whole body, once it has been read.

        Raises:
            ResponseStateError: it has not been read with `read` or `aread`.
        """
        if self._content is None:
            call = "response.read()" if hasattr(self.stream, "__iter__") else "await response.aread()"
            raise ResponseStateError(
                f"Attempted to access 'response.content' on a streaming response. Call '{call}' first."
            )
        return self._content

    @property
    def trailers(self) -> list[Header]:
        """The fields that came after the body (RFC 9110, section 6.5), apart from the headers on purpose.

        Empty until the body has been read to its end, and where there were none.
        """
        trailers: list[Header] = self.extensions.get("trailers") or []
        return trailers

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.status}]>"

    # --- blocking

    def read(self) -> bytes:
        """Read the whole body, keep it, and return it. A second call returns the same bytes.

        Raises:
            ResponseStateError: the response is an async one, or its body was read as a stream.
            ReadTimeout, ReadError, RemoteProtocolError, …: the body could not be read to its end.
        """
        if self._content is None:
            stream = self._take("read", "read()", "aread()")
            # A pool's has it. Of the class, for a wrapper may pass on what it does not know to what it wraps.
            read_whole = getattr(type(stream), "read_whole", None)
            content: bytes = b"".join(stream) if read_whole is None else read_whole(stream)
            self._content = content
        return self._content

    def iter_stream(self) -> Iterator[bytes]:
        """Iterate over the body as it comes in; once.

        Raises:
            ResponseStateError: the response is an async one, or its body has been read or is being read.
        """
        return iter(self._take("stream", "iter_stream()", "aiter_stream()"))

    def close(self) -> None:
        """Let go of the connection, whatever is still unread. Closing twice does nothing.

        Raises:
            ResponseStateError: the response is an async one.
        """
        stream = self.stream
        if not hasattr(stream, "__iter__"):
            raise _wrong_world("close", "close()", "aclose()", is_async=True)
        close = getattr(stream, "close", None)
        if close is not None:
            close()

    # --- async

    async def aread(self) -> bytes:
        """Read the whole body, keep it, and return it. A second call returns the same bytes.

        Raises:
            ResponseStateError: the response is a blocking one, or its body was read as a stream.
            ReadTimeout, ReadError, RemoteProtocolError, …: the body could not be read to its end.
        """
        if self._content is None:
            stream = self._atake("read", "read()", "aread()")
            read_whole = getattr(type(stream), "aread_whole", None)
            content: bytes = await (_joined(stream) if read_whole is None else read_whole(stream))
            self._content = content
        return self._content

    def aiter_stream(self) -> AsyncIterator[bytes]:
        """Iterate over the body as it comes in, with `async for`; once.

        Raises:
            ResponseStateError: the response is a blocking one, or its body has been read or is being read.
        """
        return aiter(self._atake("stream", "iter_stream()", "aiter_stream()"))

    async def aclose(self) -> None:
        """Let go of the connection, whatever is still unread. Closing twice does nothing.

        Raises:
            ResponseStateError: the response is a blocking one.
        """
        stream = self.stream
        if not hasattr(stream, "__aiter__"):
            raise _wrong_world("close", "close()", "aclose()", is_async=False)
        aclose = getattr(stream, "aclose", None)
        if aclose is not None:
            await aclose()

    # --- the one reading of the body

    def _take(self, verb: str, method: str, amethod: str) -> Any:
        stream: Any = self.stream
        if not hasattr(stream, "__iter__"):
            raise _wrong_world(verb, method, amethod, is_async=True)
        self._consume(method)
        return stream

    def _atake(self, verb: str, method: str, amethod: str) -> Any:
        stream: Any = self.stream
        if not hasattr(stream, "__aiter__"):
            raise _wrong_world(verb, method, amethod, is_async=False)
        self._consume(amethod)
        return stream

    def _consume(self, method: str) -> None:
        if self._consumed:
            raise ResponseStateError(f"Attempted to call 'response.{method}', but the body was read before.")
        self._consumed = True


async def _joined(stream: AsyncIterable[bytes]) -> bytes:
    chunks = []
    async for chunk in stream:
        chunks.append(chunk)  # noqa: PERF401 - an async comprehension hides the await
    return b"".join(chunks)


def _wrong_world(verb: str, method: str, amethod: str, *, is_async: bool) -> ResponseStateError:
    if is_async:
        return ResponseStateError(
            f"Attempted to {verb} an asynchronous response using 'response.{method}'. "
            f"Use 'response.{amethod}' in async code instead."
        )
    return ResponseStateError(
        f"Attempted to {verb} a synchronous response using 'response.{amethod}'. Use 'response.{method}' instead."
    )


class Proxy:
    """A proxy to send requests through.

    Args:
        url: where it is; `http`, `https`, `socks5` or `socks5h`. Text or bytes may have the credentials, as
            `http://user:password@host`, percent-encoded where they have special characters.
        auth: user name and password; those of the URL if `None`. For an HTTP proxy they become a
            Proxy-Authorization header (RFC 7617).
        headers: sent to the proxy itself, after that one.
        ssl_context: for the connection to the proxy, where its scheme is `https`.

    Attributes:
        url: a `URL`.
        auth: a pair of bytes, or `None`.
        headers: a list of pairs of bytes, Proxy-Authorization first.
        ssl_context: as given.

    Raises:
        ArgumentTypeError: an argument has the wrong type, or its text is not ASCII.
        InvalidURL: the URL cannot be taken apart.
        LocalProtocolError: a header cannot be sent: an illegal character, a second Host, or one that would change what
            CONNECT, or a forwarded request, means (Content-Length, Transfer-Encoding, Upgrade).
    """

    url: URL

    def __init__(
        self,
        url: URL | bytes | str,
        auth: tuple[bytes | str, bytes | str] | None = None,
        headers: HeaderTypes = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self.url, from_url = _take_credentials(url)
        self.headers: list[Header] = enforce_headers(headers, "headers")
        self.ssl_context = ssl_context
        auth = from_url if auth is None else auth
        self.auth: tuple[bytes, bytes] | None = None
        if auth is not None:
            pair: Any = auth
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise ArgumentTypeError("auth must be a pair of user name and password.")
            user, password = pair
            self.auth = enforce_bytes(user, "auth"), enforce_bytes(password, "auth")
            self.headers.insert(0, (b"Proxy-Authorization", _basic(*self.auth)))
        from ._checks import check_proxy_headers  # which needs this module first

        check_proxy_headers(self.headers)

    def __repr__(self) -> str:
        place = bytes(self.url.with_target(b"")).decode("ascii")
        # Neither the credentials nor any header value: a repr ends up in logs.
        return f"<{type(self).__name__} [{place!r}{', with credentials' if self.auth is not None else ''}]>"


def _take_credentials(url: URL | bytes | str) -> tuple[URL, tuple[bytes, bytes] | None]:
    if not isinstance(url, (bytes, str)):
        return enforce_url(url, "url"), None
    place: URL | None = None
    credentials = None
    try:
        place = URL(url)
        credentials = user_information(url)
    except InvalidURL:
        pass
    is_astray = credentials is None and ("@" in url if isinstance(url, str) else b"@" in url)
    if place is None or is_astray:
        # Without the words of that error: what it takes for a host, a port or a path may be a part of the password.
        raise InvalidURL(
            "the proxy's URL cannot be taken apart: it must name a host, and its port as a number if it has one; "
            "percent-encode special characters in user name and password"
        )
    return place, credentials if credentials is not None and any(credentials) else None


def _basic(user: bytes, password: bytes) -> bytes:
    import binascii

    return b"Basic " + binascii.b2a_base64(user + b":" + password, newline=False)


def enforce_headers(value: HeaderTypes, name: str) -> list[Header]:
    """Bring headers into a new list of pairs of bytes. Whether they may be sent is not decided here.

    Args:
        value: a mapping, pairs, or `None`; names and values as bytes or ASCII text.
        name: what they are called in errors.

    Raises:
        ArgumentTypeError: they are no mapping or sequence of pairs, or something in them is no bytes or ASCII
        text.
    """
    if value is None:
        return []
    pairs: Iterable[Any]
    if isinstance(value, (list, tuple)):  # nearly always; the abstract classes below take ten times as long
        pairs = value
    elif isinstance(value, Mapping):
        pairs = value.items()
    elif isinstance(value, Sequence):
        pairs = value
    else:
        raise ArgumentTypeError(
            f"{name} must be a mapping or sequence of two-tuples, but got {type(value).__name__}."
        )
    headers = []
    for pair in pairs:
        try:
            key, content = pair
        except (TypeError, ValueError):
            raise ArgumentTypeError(f"{name} must be two-tuples, but one is {type(pair).__name__}.") from None
        if type(key) is bytes is type(content) and type(pair) is tuple:
            headers.append(pair)
        else:
            headers.append((enforce_bytes(key, "header name"), enforce_bytes(content, "header value")))
    return headers


def enforce_stream(value: ContentTypes, name: str) -> Iterable[bytes] | AsyncIterable[bytes]:
    """Bring a body into an iterable or async iterable of bytes.

    Raises:
        ArgumentTypeError: it cannot be one: text, a number, a mapping.
    """
    if value is None:
        return EMPTY
    if isinstance(value, (bytes, bytearray, memoryview)):
        return ByteStream(value if isinstance(value, bytes) else bytes(value))
    if isinstance(value, (str, Mapping)) or not (hasattr(value, "__iter__") or hasattr(value, "__aiter__")):
        raise ArgumentTypeError(
            f"{name} must be bytes or an iterable of bytes, but got {type(value).__name__}."
        )
    return value


# Immutable, and the body of most requests.
EMPTY = ByteStream(b"")


def _enforce_extensions(value: Extensions | None) -> Extensions:
    if value is None:
        return {}
    if type(value) is not dict and not isinstance(value, Mapping):
        raise ArgumentTypeError(f"extensions must be a dictionary, but got {type(value).__name__}.")
    return value
