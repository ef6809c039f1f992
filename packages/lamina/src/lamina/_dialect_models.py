"""What `lamina.sync` and `lamina.aio` share about messages: headers, requests, and all of a response but its reading.

Nothing here waits. Requests and headers are the same classes in both modules; a response differs in how its body is
read, so each module finishes `ResponseBase` in its own way.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from lamina_interfaces import ArgumentTypeError
from lamina_pool import (
    URL,
    ByteStream,
    ContentTypes,
    HeaderTypes,
    ResponseStateError,
    build_request,
    enforce_headers,
)
from lamina_pool import Request as PoolRequest

if TYPE_CHECKING:
    from lamina_pool import Extensions

URLTypes: TypeAlias = URL | bytes | str
"""A URL as it may be given."""

# Their values are credentials, or make up some: not for a log. Services have names of their own for theirs.
_is_secret = re.compile("auth|cookie|key|passw|secret|token", re.IGNORECASE).search

# A method is case-sensitive (RFC 9110, section 9.1); what people write in lower case is meant to be one of these.
_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

# RFC 9110, section 5.6.6: a parameter's value is a token or a quoted string.
_charset = re.compile(r';\s*charset\s*=\s*"?([^\s;"]+)', re.IGNORECASE).search

# Codecs of Python that are no charsets: some take quadratic time, some warn, and no server means them.
_NO_CHARSETS = frozenset(
    {"idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"}
)


class Headers(Mapping[str, str]):
    """The header fields of a message: a mapping from names to values that ignores case and keeps repetitions.

    Reading a name that occurs more than once gives the values joined by a comma and a space (RFC 9110, section 5.3);
    `get_list` gives them one by one, which `Set-Cookie` needs. Order and spelling are kept. Immutable; the methods
    named `copy_…` return changed copies. Usable from any thread.

    Args:
        headers: a mapping, pairs, or other headers; text or bytes. Whether they may be sent is decided when they are.

    Raises:
        ArgumentTypeError: it is none of these, or its text is not ASCII.
    """

    __slots__ = ("_names", "_raw")

    def __init__(self, headers: HeaderTypes = None) -> None:
        self._raw: tuple[tuple[bytes, bytes], ...] = (
            headers._raw if isinstance(headers, Headers) else tuple(enforce_headers(headers, "headers"))
        )
        self._names: dict[str, list[str]] = {}
        for name, value in self.multi_items():
            self._names.setdefault(name.lower(), []).append(value)

    @property
    def raw(self) -> list[tuple[bytes, bytes]]:
        """The fields as they are on the wire: pairs of bytes, in order. A new list each time."""
        return list(self._raw)

    def multi_items(self) -> list[tuple[str, str]]:
        """The fields in order, repeated names included."""
        # Bytes beyond ASCII have no meaning of their own in a value (RFC 9110, section 5.5); Latin-1 loses none.
        return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self._raw]

    def get_list(self, name: str) -> list[str]:
        """The values of one name, in order; empty if it does not occur."""
        return list(self._names.get(name.lower(), ()))

    def copy_set(self, name: str, value: str) -> Headers:
        """A copy in which `name` occurs once, with this value; in its old place, or last."""
        return self.copy_update([(name, value)])

    def copy_update(self, headers: HeaderTypes) -> Headers:
        """A copy in which the fields of `headers` stand in place of those with the same names."""
        news: dict[bytes, list[tuple[bytes, bytes]]] = {}
        for pair in Headers(headers)._raw:
            news.setdefault(pair[0].lower(), []).append(pair)
        kept = []
        replaced = set()
        for pair in self._raw:
            name = pair[0].lower()
            if name not in news:
                kept.append(pair)
            elif name not in replaced:
                replaced.add(name)
                kept += news[name]
        kept += [pair for name, pairs in news.items() if name not in replaced for pair in pairs]
        return Headers(kept)

    def copy_remove(self, *names: str) -> Headers:
        """A copy without these names."""
        unwanted = {name.lower().encode("latin-1", "replace") for name in names}
        return Headers([pair for pair in self._raw if pair[0].lower() not in unwanted])

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._names[name.lower()])

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._names

    def __iter__(self) -> Iterator[str]:
        # In the spelling of the first occurrence.
        return iter(
            {name.lower(): name for name, _ in reversed(self.multi_items())}[key] for key in self._names
        )

    def __len__(self) -> int:
        return len(self._names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Headers):
            if not isinstance(other, Mapping):
                return NotImplemented
            try:
                other = Headers(other)
            except ArgumentTypeError:
                return False
        return self._names == other._names

    def __hash__(self) -> int:
        return hash(frozenset((name, tuple(values)) for name, values in self._names.items()))

    def __repr__(self) -> str:
        shown = [(name, "[secure]" if _is_secret(name) else value) for name, value in self.multi_items()]
        return f"<Headers {shown!r}>"


class Request:
    """A request, as a `Client` builds it and hands it to its transport.

    `Host` is added to the headers, and for a body `Content-Length`, or `Transfer-Encoding: chunked` where its length
    is not known, unless they are there.

    Args:
        method: `"GET"` and so on; the usual ones may be in lower case.
        url: where to. User information (`user:password@`) is left out.
        headers: pairs, or a mapping.
        content: the body: bytes, or an iterable of bytes, which has to be async in `lamina.aio`.

    Attributes:
        method: text.
        url: text, its fragment included, which is not sent.
        headers: `Headers`.
        stream: the body, iterable; empty where there is none.

    Raises:
        ArgumentTypeError: an argument has the wrong type, or text that should be ASCII is not.
        InvalidURL: the URL cannot be taken apart.
    """

    method: str
    url: str
    headers: Headers
    stream: Iterable[bytes] | AsyncIterable[bytes]

    def __init__(
        self,
        method: bytes | str,
        url: URLTypes,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
    ) -> None:
        built = build_request(method, url, headers=Headers(headers).raw, content=content)
        method = built.method.decode("ascii", "replace")
        self.method = method.upper() if method.upper() in _METHODS else method
        self.url = bytes(built.url).decode("ascii") + _fragment(url)
        self.headers = Headers(built.headers)
        self.stream = built.stream

    @property
    def content(self) -> bytes | None:
        """The body, where it is there as a whole, or `None` for an iterable one; `b""` where there is none."""
        return self.stream.content if isinstance(self.stream, ByteStream) else None

    def __repr__(self) -> str:
        # Without the query, which may hold secrets.
        return f"<Request [{self.method} {self.url.partition('#')[0].partition('?')[0]}]>"


def _fragment(url: URLTypes) -> str:
    if isinstance(url, URL):
        return ""
    _, mark, fragment = (url if isinstance(url, str) else url.decode("ascii")).partition("#")
    return mark + fragment


def for_pool(request: Request, extensions: Extensions | None = None) -> PoolRequest:
    """The request as the pool takes it; what its owner changed in it is honoured."""
    return PoolRequest(
        request.method,
        request.url,
        headers=Headers(request.headers).raw,
        content=request.stream,
        extensions=extensions,
    )


def facts_of(extensions: Mapping[str, Any]) -> dict[str, Any]:
    """What `ResponseBase` takes from the extensions of a pool's response."""
    phrase: bytes | None = extensions.get("reason_phrase")
    return {
        "reason_phrase": None if phrase is None else phrase.decode("latin-1"),
        "http_version": extensions.get("http_version", b"HTTP/1.1").decode("ascii"),
    }


class ResponseBase:
    """A response, but for the reading of its body.

    Attributes:
        status_code: `200`.
        reason_phrase: what the server wrote after the code; where it wrote nothing, the usual words.
        headers: `Headers`.
        http_version: `"HTTP/1.1"`.
        request: what it answers, the last request after redirects; `None` if nobody has said.
        history: the redirects on the way to it, oldest first. Their bodies are gone.
    """

    # How an iterable body is recognised.
    _needs: Literal["__iter__", "__aiter__"]

    def __init__(
        self,
        status_code: int,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
        reason_phrase: str | None = None,
        http_version: str = "HTTP/1.1",
        request: Request | None = None,
    ) -> None:
        if not isinstance(status_code, int):
            raise ArgumentTypeError(f"status_code must be an int, not {type(status_code).__name__}")
        self.status_code: int = status_code
        self.headers: Headers = Headers(headers)
        self.http_version: str = http_version
        self.reason_phrase: str = reason_phrase or _usual_phrase(status_code)
        self.request: Request | None = request
        self.history: tuple[Self, ...] = ()
        self._is_closed = False
        self._has_begun = False
        self._content: bytes | None = None
        self._body: Any = None
        self._source: Any = content
        if content is None or isinstance(content, (bytes, bytearray, memoryview)):
            self._content = bytes(content or b"")
        elif isinstance(content, str) or not hasattr(content, self._needs):
            raise ArgumentTypeError(
                f"content must be bytes or have {self._needs}, but got {type(content).__name__}"
            )

    @property
    def url(self) -> str:
        """Where it came from, after redirects; `""` if nobody has said what it answers."""
        return "" if self.request is None else self.request.url

    @property
    def content(self) -> bytes:
        """The whole body, once it has been read. As it came: `Content-Encoding` is not undone.

        Raises:
            ResponseStateError: it has not been read.
        """
        if self._content is None:
            self._check_unread(whole=True)
            raise ResponseStateError("the body has not been read yet: call read() first")
        return self._content

    @property
    def text(self) -> str:
        """The whole body as text: in the `charset` of Content-Type, or UTF-8; what does not fit becomes U+FFFD.

        Raises:
            ResponseStateError: it has not been read.
        """
        import codecs

        found = _charset(self.headers.get("content-type", ""))
        if found:
            try:
                if codecs.lookup(found[1]).name not in _NO_CHARSETS:
                    return self.content.decode(found[1], "replace")
            except (LookupError, ValueError):  # unknown, no text encoding, or one that cannot replace
                pass
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """What the whole body says as JSON: UTF-8 (RFC 8259, section 8.1), or UTF-16 or UTF-32.

        Raises:
            ValueError: it is no JSON, or nested too deeply to be read; mostly a `json.JSONDecodeError`, or a
                `UnicodeDecodeError`.
            ResponseStateError: it has not been read.
        """
        import json

        try:
            return json.loads(self.content)
        except RecursionError as error:
            raise ValueError("the JSON is nested too deeply") from error

    def _check_unread(self, *, whole: bool) -> None:
        if whole and self._has_begun:
            raise ResponseStateError("the body has been read as a stream, and cannot be read as a whole now")
        if self._is_closed:
            raise ResponseStateError("the response was closed before its body had been read")

    def _begin(self, *, whole: bool) -> None:
        """Take note that the body is being read from the network now."""
        self._check_unread(whole=whole)
        self._has_begun = True

    def __repr__(self) -> str:
        # The phrase is the server's: no control characters into a log.
        return f"<Response [{self.status_code} {repr(self.reason_phrase)[1:-1]}".rstrip() + "]>"


def _usual_phrase(status_code: int) -> str:
    from http import HTTPStatus

    try:
        return HTTPStatus(status_code).phrase
    except ValueError:
        return ""
