"""Requests, responses, proxies: arguments, forms, and reading a body once."""

import asyncio
import copy
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import ArgumentTypeError, InvalidURL, LaminaError, ReadError, drive
from lamina_pool._models import ByteStream, Proxy, Request, Response, ResponseStateError
from lamina_pool._urls import URL


class Chunks:
    """A blocking body that remembers what was done with it."""

    def __init__(self, *chunks: bytes, error: Exception | None = None) -> None:
        self.chunks = chunks
        self.error = error
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        yield from self.chunks
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closed += 1


class AsyncChunks:
    """The same in async code."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)
        self.closed = 0

    def __aiter__(self) -> "AsyncChunks":
        return self

    async def __anext__(self) -> bytes:
        if not self.chunks:
            raise StopAsyncIteration
        return self.chunks.pop(0)

    async def aclose(self) -> None:
        self.closed += 1


async def collect(chunks: AsyncIterator[bytes]) -> list[bytes]:
    return [chunk async for chunk in chunks]


# --- requests


def test_text_becomes_bytes() -> None:
    request = Request("GET", "https://www.example.com/", headers=[("User-Agent", "lamina"), (b"X", b"\xff")])
    assert request.method == b"GET"
    assert request.url == URL("https://www.example.com/")
    assert request.headers == [(b"User-Agent", b"lamina"), (b"X", b"\xff")]
    assert isinstance(request.stream, ByteStream)
    assert request.stream.content == b""
    assert request.extensions == {}


@pytest.mark.parametrize(
    "headers",
    [
        [("A", "1"), (b"B", b"2")],
        (("A", b"1"), (b"B", "2")),
        [["A", "1"], ["B", "2"]],
        {"A": "1", "B": "2"},
        {b"A": b"1", "B": "2"},
        OrderedDict([("A", "1"), ("B", "2")]),
        MappingProxyType({"A": "1", "B": "2"}),
    ],
)
def test_headers_become_a_list_of_pairs(headers: Any) -> None:
    assert Request("GET", "http://h/", headers=headers).headers == [(b"A", b"1"), (b"B", b"2")]


def test_the_callers_headers_are_copied() -> None:
    headers = [(b"A", b"1")]
    request = Request("GET", "http://h/", headers=headers)
    headers.append((b"B", b"2"))
    assert request.headers == [(b"A", b"1")]


# As a caller without a type checker has them.
make_request: Any = Request
make_response: Any = Response
make_stream: Any = ByteStream
make_proxy: Any = Proxy

NO_HEADERS = "headers must be a mapping or sequence of two-tuples, but"
NO_CONTENT = "content must be bytes or an iterable of bytes, but"
NO_ASCII = "strings may not include unicode characters."


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: make_request(123, "http://h/"), "method must be bytes or str, but got int."),
        (lambda: make_request(None, "http://h/"), "method must be bytes or str, but got NoneType."),
        (lambda: make_request("GET☃", "http://h/"), "method strings may not include unicode characters."),
        (lambda: make_request("GET", 123), "url must be a URL, bytes, or str, but got int."),
        (lambda: make_request("GET", None), "url must be a URL, bytes, or str, but got NoneType."),
        (lambda: make_request("GET", "//h", headers=123), f"{NO_HEADERS} got int."),
        (lambda: make_request("GET", "//h", headers={1}), f"{NO_HEADERS} got set."),
        (lambda: make_request("GET", "//h", headers="ab"), "headers must be two-tuples, but one is str."),
        (lambda: make_request("GET", "//h", headers=[1]), "headers must be two-tuples, but one is int."),
        (lambda: make_request("GET", "//h", headers=[("a",)]), "headers must be two-tuples, but one is tuple."),
        (lambda: make_request("GET", "//h", headers=[("a", 1)]), "header value must be bytes or str, but got int."),
        (lambda: make_request("GET", "//h", headers={"a": ()}), "header value must be bytes or str, but got tuple."),
        (lambda: make_request("GET", "//h", headers={1: "a"}), "header name must be bytes or str, but got int."),
        (lambda: make_request("GET", "//h", headers={"a": "☃"}), f"header value {NO_ASCII}"),
        (lambda: make_request("GET", "//h", content="x"), f"{NO_CONTENT} got str."),
        (lambda: make_request("GET", "//h", content=1), f"{NO_CONTENT} got int."),
        (lambda: make_request("GET", "//h", content={"a": 1}), f"{NO_CONTENT} got dict."),
        (lambda: make_request("GET", "//h", extensions=[1]), "extensions must be a dictionary, but got list."),
        (lambda: make_request("GET", "//h", extensions={"target": 1}), "target must be bytes or str, but got int."),
        (lambda: make_response("200"), "status must be an int, but got str."),
        (lambda: make_response(200, headers=123), f"{NO_HEADERS} got int."),
        (lambda: make_response(200, content="x"), f"{NO_CONTENT} got str."),
        (lambda: make_stream("x"), "content must be bytes, but got str."),
        (lambda: make_proxy(123), "url must be a URL, bytes, or str, but got int."),
        (lambda: make_proxy("http://p/", auth="ab"), "auth must be a pair of user name and password."),
        (lambda: make_proxy("http://p/", auth=b"ab"), "auth must be a pair of user name and password."),
        (lambda: make_proxy("http://p/", auth=("a",)), "auth must be a pair of user name and password."),
        (lambda: make_proxy("http://p/", auth=1), "auth must be a pair of user name and password."),
        (lambda: make_proxy("http://p/", auth=("a", 1)), "auth must be bytes or str, but got int."),
        (lambda: make_proxy("http://p/", auth=("ü", "a")), "auth strings may not include unicode characters."),
    ],
)  # fmt: skip
def test_an_argument_of_the_wrong_type_is_refused(make: Callable[[], object], text: str) -> None:
    with pytest.raises(TypeError) as caught:
        make()
    assert type(caught.value) is ArgumentTypeError
    assert str(caught.value) == text


def test_a_url_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(InvalidURL):
        Request("GET", "http://h:99999/")
    with pytest.raises(InvalidURL):
        Proxy("http:///")


def test_the_target_extension_replaces_the_urls_own() -> None:
    request = Request("OPTIONS", "https://h:8443/ignored", extensions={"target": b"*"})
    assert request.url == URL(scheme=b"https", host=b"h", port=8443, target=b"*")


@pytest.mark.parametrize("content", [b"abc", bytearray(b"abc"), memoryview(b"xabcx")[1:4]])
def test_bytes_become_a_stream_that_can_be_read_again(content: Any) -> None:
    stream = Request("POST", "http://h/", content=content).stream
    assert isinstance(stream, ByteStream)
    assert [list(stream), list(stream), drive(collect(aiter(stream)))] == [[b"abc"]] * 3
    assert type(stream.content) is bytes


def test_other_bodies_are_kept_as_they_are() -> None:
    for body in ([b"a"], iter([b"a"]), Chunks(b"a"), AsyncChunks(b"a"), ByteStream(b"a")):
        assert Request("POST", "http://h/", content=body).stream is body


def test_extensions_are_the_callers_own() -> None:
    extensions: dict[str, Any] = {"timeout": {"read": 1.0}}
    assert Request("GET", "http://h/", extensions=extensions).extensions is extensions
    assert Response(200, extensions=extensions).extensions is extensions


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Request("GET", "https://user:secret@h/", headers={"Authorization": "secret"}), "<Request [b'GET']>"),
        (Response(204), "<Response [204]>"),
        (ByteStream(b"Hello"), "<ByteStream [5 bytes]>"),
        (Proxy("http://localhost:8080"), "<Proxy ['http://localhost:8080']>"),
        (Proxy("http://u:secret@localhost:8080"), "<Proxy ['http://localhost:8080', with credentials]>"),
        (
            Proxy("http://localhost:8080", auth=("u", "secret")),
            "<Proxy ['http://localhost:8080', with credentials]>",
        ),
        (Proxy("http://h", headers={"Proxy-Authorization": "secret"}), "<Proxy ['http://h']>"),
    ],
)
def test_reprs_are_short_and_hold_no_secret(value: object, text: str) -> None:
    assert repr(value) == text


# --- responses


def test_a_response_of_bytes_is_read_in_both_worlds() -> None:
    assert Response(200, content=b"Hello").read() == b"Hello"
    assert drive(Response(200, content=b"Hello").aread()) == b"Hello"
    assert list(Response(200, content=b"Hello").iter_stream()) == [b"Hello"]
    assert drive(collect(Response(200, content=b"Hello").aiter_stream())) == [b"Hello"]


def test_a_response_without_content_is_empty() -> None:
    assert Response(204).read() == b""


def test_reading_joins_the_chunks_and_keeps_them() -> None:
    stream = Chunks(b"Hello, ", b"", b"world!")
    response = Response(200, content=stream)
    assert response.read() == b"Hello, world!"
    assert response.content == b"Hello, world!"
    assert response.read() is response.content
    assert response.stream is stream


def test_a_single_chunk_is_not_copied() -> None:
    chunk = bytes(range(256))
    assert Response(200, content=[chunk]).read() is chunk


def test_an_async_response_is_read() -> None:
    response = Response(200, content=AsyncChunks(b"Hello, ", b"world!"))
    assert asyncio.run(response.aread()) == b"Hello, world!"
    assert response.content == b"Hello, world!"
    assert asyncio.run(response.aread()) == b"Hello, world!"


class Shouting:
    """A stream in the place of a pool's own, as a program may put it there."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        return (piece.upper() for piece in self._stream)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            yield piece.upper()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Quick:
    """Can be read at once, as a pool's streams can."""

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"a", b"b"])

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self:
            yield piece

    def read_whole(self) -> bytes:
        return b"ab"

    async def aread_whole(self) -> bytes:
        return b"ab"


def test_a_wrapper_that_passes_on_what_it_does_not_know_is_not_passed_over() -> None:
    assert Response(200, content=Quick()).read() == b"ab"
    assert Response(200, content=Shouting(Quick())).read() == b"AB"
    assert drive(Response(200, content=Quick()).aread()) == b"ab"
    assert drive(Response(200, content=Shouting(Quick())).aread()) == b"AB"


def test_content_that_has_not_been_read_is_not_there() -> None:
    with pytest.raises(ResponseStateError, match=r"'response\.read\(\)'"):
        _ = Response(200, content=Chunks(b"a")).content
    with pytest.raises(ResponseStateError, match=r"'await response\.aread\(\)'"):
        _ = Response(200, content=AsyncChunks(b"a")).content


def test_a_body_is_streamed_once() -> None:
    response = Response(200, content=Chunks(b"a", b"b"))
    assert list(response.iter_stream()) == [b"a", b"b"]
    for again in (response.iter_stream, response.read):
        with pytest.raises(ResponseStateError):
            again()
    with pytest.raises(ResponseStateError):
        _ = response.content


def test_an_async_body_is_streamed_once() -> None:
    response = Response(200, content=AsyncChunks(b"a", b"b"))
    assert drive(collect(response.aiter_stream())) == [b"a", b"b"]
    with pytest.raises(ResponseStateError):
        response.aiter_stream()
    with pytest.raises(ResponseStateError):
        drive(response.aread())


def test_a_body_that_was_read_is_not_streamed() -> None:
    response = Response(200, content=b"a")
    response.read()
    with pytest.raises(ResponseStateError):
        response.iter_stream()


@pytest.mark.parametrize("method", ["read", "iter_stream", "close"])
def test_an_async_response_is_not_used_in_blocking_code(method: str) -> None:
    stream = AsyncChunks(b"a")
    with pytest.raises(RuntimeError, match=rf"'response\.a{method}\(\)'") as caught:
        getattr(Response(200, content=stream), method)()
    assert isinstance(caught.value, LaminaError)
    assert (stream.chunks, stream.closed) == ([b"a"], 0)


@pytest.mark.parametrize("method", ["aread", "aiter_stream", "aclose"])
def test_a_blocking_response_is_not_used_in_async_code(method: str) -> None:
    stream = Chunks(b"a")
    response = Response(200, content=stream)
    with pytest.raises(RuntimeError, match=rf"'response\.{method[1:]}\(\)'") as caught:
        if method == "aiter_stream":
            response.aiter_stream()
        else:
            drive(getattr(response, method)())
    assert isinstance(caught.value, LaminaError)
    assert stream.closed == 0


def test_closing_closes_the_stream() -> None:
    stream = Chunks(b"a")
    response = Response(200, content=stream)
    response.close()
    response.close()
    assert stream.closed == 2
    astream = AsyncChunks(b"a")
    drive(Response(200, content=astream).aclose())
    assert astream.closed == 1


def test_a_stream_that_need_not_be_closed_is_not() -> None:
    Response(200, content=b"a").close()
    drive(Response(200, content=b"a").aclose())
    Response(200, content=[b"a"]).close()


def test_an_error_of_the_stream_comes_out_and_no_part_is_taken_for_the_whole() -> None:
    error = ReadError("cut off")
    response = Response(200, content=Chunks(b"a", error=error))
    with pytest.raises(ReadError) as caught:
        response.read()
    assert caught.value is error
    with pytest.raises(ResponseStateError):
        response.read()
    with pytest.raises(ResponseStateError):
        _ = response.content


def test_trailers_are_those_of_the_extensions() -> None:
    response = Response(200, headers=[(b"A", b"1")], content=Chunks(b"a"))
    assert response.trailers == []
    response.extensions["trailers"] = [(b"Digest", b"x"), (b"A", b"2")]
    assert response.trailers == [(b"Digest", b"x"), (b"A", b"2")]
    assert response.headers == [(b"A", b"1")]


def test_a_received_response_is_like_any_other() -> None:
    stream = Chunks(b"a", b"b")
    headers = [(b"A", b"1")]
    extensions: dict[str, Any] = {"http_version": b"HTTP/1.1"}
    response = Response.received(200, headers, stream, extensions)
    assert (response.status, response.headers, response.extensions) == (200, headers, extensions)
    with pytest.raises(ResponseStateError):
        _ = response.content
    assert response.trailers == []
    assert response.read() == response.content == b"ab"
    response.close()
    assert stream.closed == 1
    assert repr(response) == "<Response [200]>"


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_all_ways_of_reading_give_the_same_bytes(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    assert Response(200, content=chunks).read() == whole
    assert b"".join(Response(200, content=iter(chunks)).iter_stream()) == whole
    assert drive(Response(200, content=AsyncChunks(*chunks)).aread()) == whole
    assert b"".join(drive(collect(Response(200, content=AsyncChunks(*chunks)).aiter_stream()))) == whole
    assert Response(200, content=whole).read() == whole


# --- proxies


def test_a_proxy_keeps_what_it_was_given() -> None:
    context = object()
    proxy = Proxy("https://localhost:8080", headers={"X-A": "1"}, ssl_context=context)  # type: ignore[arg-type] # only kept
    assert proxy.url == URL("https://localhost:8080/")
    assert proxy.auth is None
    assert proxy.headers == [(b"X-A", b"1")]
    assert proxy.ssl_context is context


def test_credentials_become_a_header() -> None:
    proxy = Proxy("http://localhost:8080", auth=("user", b"p:\xff" * 40), headers=[("X-A", "1")])
    assert proxy.auth == (b"user", b"p:\xff" * 40)
    name, value = proxy.headers[0]
    assert name == b"Proxy-Authorization"
    # base64 of the pair, on one line however long it is.
    assert value.startswith(b"Basic dXNlcjpw")
    assert value.isascii()
    assert not set(value) & set(b"\r\n")
    assert proxy.headers[1:] == [(b"X-A", b"1")]
    assert Proxy("http://h", auth=("user", "pass")).headers == [
        (b"Proxy-Authorization", b"Basic dXNlcjpwYXNz")
    ]


def test_requests_can_be_copied() -> None:
    request = Request("POST", "http://h/", headers={"A": "1"}, content=b"x", extensions={"a": 1})
    again = copy.deepcopy(request)
    assert (again.method, again.url, again.headers, again.extensions) == (
        b"POST",
        URL("http://h/"),
        [(b"A", b"1")],
        {"a": 1},
    )
