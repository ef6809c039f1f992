"""Headers, requests and responses of `lamina.sync` and `lamina.aio`, as far as nothing is read from a network."""

import pickle
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialect_worlds import World
from lamina import URL, aio, sync

PAIRS = [("Accept", "a"), ("X-Two", "1"), ("accept", "b"), ("Set-Cookie", "id=1"), ("Set-Cookie", "id=2")]


@pytest.fixture(params=[sync, aio], ids=["sync", "aio"])
def httpx(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_both_modules_have_the_same_names() -> None:
    assert sync.__all__ == aio.__all__


# --- headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "joined", "values"),
    [
        ("accept", "a, b", ["a", "b"]),
        ("ACCEPT", "a, b", ["a", "b"]),
        ("X-Two", "1", ["1"]),
        ("set-cookie", "id=1, id=2", ["id=1", "id=2"]),
    ],
)
def test_a_field_is_found_in_any_case(name: str, joined: str, values: list[str]) -> None:
    headers = sync.Headers(PAIRS)
    assert headers[name] == headers.get(name) == joined
    assert headers.get_list(name) == values
    assert name in headers


def test_an_absent_field_is_absent() -> None:
    headers = sync.Headers(PAIRS)
    assert "missing" not in headers
    assert 1 not in headers  # type: ignore[comparison-overlap] # that is the test
    assert headers.get("missing") is None
    assert headers.get_list("missing") == []
    with pytest.raises(KeyError, match="missing"):
        headers["missing"]


def test_headers_are_a_mapping_and_keep_what_a_mapping_cannot() -> None:
    headers = sync.Headers(PAIRS)
    assert isinstance(headers, Mapping)
    assert list(headers) == ["Accept", "X-Two", "Set-Cookie"]
    assert len(headers) == 3
    assert dict(headers) == {"Accept": "a, b", "X-Two": "1", "Set-Cookie": "id=1, id=2"}
    assert headers.multi_items() == PAIRS
    assert headers.raw == [(name.encode(), value.encode()) for name, value in PAIRS]


@pytest.mark.parametrize(
    "given_headers",
    [
        {"A": "1", "B": "2"},
        {b"A": b"1", b"B": "2"},
        [("A", "1"), (b"B", b"2")],
        sync.Headers({"A": "1", "B": "2"}),
    ],
)
def test_headers_are_made_of_what_headers_may_be_given_as(given_headers: Any) -> None:
    assert sync.Headers(given_headers).raw == [(b"A", b"1"), (b"B", b"2")]


@pytest.mark.parametrize(
    "given_headers", [3, "A: 1", [("A", "1", "2")], {"A": 1}, {"A": "\u20ac"}, {"\xe9": "1"}]
)
def test_headers_refuse_what_they_cannot_hold(given_headers: Any) -> None:
    with pytest.raises(sync.ArgumentTypeError):
        sync.Headers(given_headers)


def test_bytes_beyond_ascii_survive() -> None:
    headers = sync.Headers([(b"X-Name", b"caf\xe9")])
    assert headers["x-name"] == "caf\xe9"
    assert sync.Headers(headers).raw == [(b"X-Name", b"caf\xe9")]


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ({"A": "1"}, {"a": "1"}, True),
        ([("A", "1"), ("B", "2")], [("b", "2"), ("a", "1")], True),
        ([("A", "1"), ("A", "2")], [("A", "2"), ("A", "1")], False),
        ({"A": "1"}, {"A": "2"}, False),
        ({"A": "1"}, {}, False),
    ],
)
def test_headers_are_equal_in_any_case_and_order_of_names(one: Any, other: Any, equal: bool) -> None:
    assert (sync.Headers(one) == sync.Headers(other)) is equal
    assert (hash(sync.Headers(one)) == hash(sync.Headers(other))) is equal


def test_headers_compare_with_mappings_and_with_nothing_else() -> None:
    assert sync.Headers({"A": "1"}) == {"a": "1"}
    assert sync.Headers({"A": "1"}) != {"a": 1}
    assert sync.Headers({"A": "1"}) != [("A", "1")]


def test_copies_are_changed_and_originals_are_not() -> None:
    headers = sync.Headers(PAIRS)
    assert headers.copy_set("ACCEPT", "c").multi_items() == [("ACCEPT", "c"), PAIRS[1], *PAIRS[3:]]
    assert headers.copy_set("X-New", "n").multi_items() == [*PAIRS, ("X-New", "n")]
    assert headers.copy_remove("accept", "Set-Cookie", "absent").multi_items() == [("X-Two", "1")]
    updated = headers.copy_update([("x-two", "2"), ("x-two", "3"), ("Host", "h")])
    assert updated.multi_items() == [PAIRS[0], ("x-two", "2"), ("x-two", "3"), *PAIRS[2:], ("Host", "h")]
    assert headers.multi_items() == PAIRS


def test_the_repr_of_headers_shows_no_credentials() -> None:
    names = ["authorization", "Cookie", "Proxy-Authorization", "SET-COOKIE"]
    names += ["X-API-Key", "X-Auth-Token", "X-Amz-Security-Token", "X-Client-Secret", "Password"]
    shown = repr(sync.Headers([*((name, "secret") for name in names), ("Accept", "a")]))
    assert "secret'" not in shown.replace("[secure]'", "")
    assert shown.count("[secure]") == len(names)
    assert shown.endswith("('Accept', 'a')]>")


def test_the_repr_of_headers_repaints_no_terminal() -> None:
    assert "\x9b" not in repr(sync.Headers([(b"X", b"\x9b31m")]))


def test_headers_survive_pickling() -> None:
    headers = sync.Headers(PAIRS)
    assert pickle.loads(pickle.dumps(headers)).raw == headers.raw


NAMES = st.sampled_from([b"A", b"a", b"B", b"Set-Cookie", b"set-cookie"])
FIELDS = st.lists(st.tuples(NAMES, st.binary(max_size=3)))


@given(FIELDS, FIELDS)
def test_headers_lose_nothing_and_updates_replace_whole_names(
    old: list[tuple[bytes, bytes]], new: list[tuple[bytes, bytes]]
) -> None:
    headers = sync.Headers(old)
    assert headers.raw == old
    assert len(headers) == len(list(headers)) == len({name.lower() for name, _ in old})
    updated = headers.copy_update(new)
    replaced = {name.lower() for name, _ in new}
    for name in {name.lower() for name, _ in [*old, *new]}:
        source = new if name in replaced else old
        expected = [value.decode("latin-1") for key, value in source if key.lower() == name]
        assert updated.get_list(name.decode()) == expected


# --- requests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "method", "url", "fields"),
    [
        (("GET", "http://a.test"), "GET", "http://a.test/", [("Host", "a.test")]),
        (("get", "HTTP://A.test:80/x?y#z"), "GET", "http://a.test:80/x?y#z", [("Host", "a.test")]),
        (("Custom", "https://[::1]:8/"), "Custom", "https://[::1]:8/", [("Host", "[::1]:8")]),
        ((b"HEAD", b"http://a.test/#f"), "HEAD", "http://a.test/#f", [("Host", "a.test")]),
        (("GET", URL("http://a.test/b")), "GET", "http://a.test/b", [("Host", "a.test")]),
        (("GET", "http://user:secret@a.test/"), "GET", "http://a.test/", [("Host", "a.test")]),
    ],
)
def test_a_request_is_brought_into_form(
    arguments: tuple[Any, Any], method: str, url: str, fields: list[tuple[str, str]]
) -> None:
    request = sync.Request(*arguments)
    assert (request.method, request.url, request.headers.multi_items()) == (method, url, fields)
    assert request.content == b""


@pytest.mark.parametrize(
    ("content", "field", "whole"),
    [
        (b"", ("Content-Length", "0"), b""),
        (b"abc", ("Content-Length", "3"), b"abc"),
        (memoryview(b"abc"), ("Content-Length", "3"), b"abc"),
        ([b"a", b"b"], ("Transfer-Encoding", "chunked"), None),
        (iter([b"a"]), ("Transfer-Encoding", "chunked"), None),
    ],
)
def test_a_body_is_announced(content: Any, field: tuple[str, str], whole: bytes | None) -> None:
    request = sync.Request("POST", "http://a.test/", headers={"X": "1"}, content=content)
    assert request.headers.multi_items() == [("Host", "a.test"), ("X", "1"), field]
    assert request.content == whole


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("GET", "http://a.test:0/"), sync.InvalidURL),
        (("GET", "http:///path"), sync.InvalidURL),
        (("GET", "http://a.test/a b"), sync.InvalidURL),
        (("GET", 3), sync.ArgumentTypeError),
        ((3, "http://a.test/"), sync.ArgumentTypeError),
        (("G\xcbT", "http://a.test/"), sync.ArgumentTypeError),
    ],
)
def test_a_request_refuses_what_cannot_be_one(arguments: tuple[Any, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        sync.Request(*arguments)


def test_the_repr_of_a_request_keeps_the_query_to_itself() -> None:
    assert repr(sync.Request("get", "http://a.test/b?token=1#c")) == "<Request [GET http://a.test/b]>"


# --- responses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ({"status_code": 200}, "<Response [200 OK]>"),
        ({"status_code": 404}, "<Response [404 Not Found]>"),
        ({"status_code": 200, "reason_phrase": "Fine"}, "<Response [200 Fine]>"),
        ({"status_code": 299}, "<Response [299]>"),
        ({"status_code": 200, "reason_phrase": "\x9b31mred"}, r"<Response [200 \x9b31mred]>"),
    ],
)
def test_the_repr_of_a_response_is_its_status(httpx: Any, arguments: dict[str, Any], shown: str) -> None:
    assert repr(httpx.Response(**arguments)) == shown


def test_a_response_made_by_hand_is_read_already(httpx: Any) -> None:
    request = httpx.Request("GET", "http://a.test/b")
    response = httpx.Response(201, headers={"A": "1"}, content=b'{"a": [1]}', request=request)
    assert response.content == b'{"a": [1]}'
    assert response.text == '{"a": [1]}'
    assert response.json() == {"a": [1]}
    assert response.headers["a"] == "1"
    assert response.reason_phrase == "Created"
    assert response.http_version == "HTTP/1.1"
    assert response.url == "http://a.test/b"
    assert response.history == ()
    assert httpx.Response(200).url == ""
    assert httpx.Response(204).content == b""


@pytest.mark.parametrize(
    ("content_type", "content", "text"),
    [
        (None, "\xe9".encode(), "\xe9"),
        ("text/plain", b"\xe9", "\ufffd"),
        ("text/plain; charset=iso-8859-1", b"\xe9", "\xe9"),
        ('text/html;charset="ISO-8859-1"; x=y', b"\xe9", "\xe9"),
        ("text/html; CharSet=utf-16", "\xe9".encode("utf-16"), "\xe9"),
        ("text/plain; charset=no-such-thing", "\xe9".encode(), "\xe9"),
        ("text/plain; charset=base64", b"YQ==", "YQ=="),
        ("text/plain; charset=undefined", b"a", "a"),
        ("text/plain; charset=idna", b"a\xff", "a\ufffd"),
        ("text/plain; charset=punycode", b"bcher-kva", "bcher-kva"),
        ("text/plain; charset=Unicode_Escape", b"\\x41\\d", "\\x41\\d"),
        ("text/plain; charset=raw-unicode-escape", b"\\u0041", "\\u0041"),
        ("text/plain; charset=utf-16le", "\xe9".encode("utf-16-le"), "\xe9"),
        ("text/plain; charset=a\x00b", b"a", "a"),
        ("text/plain; charset=", b"a", "a"),
        ("text/plain; xcharset=latin-1", b"\xe9", "\ufffd"),
    ],
)
def test_text_is_decoded_as_the_server_says(
    httpx: Any, content_type: str | None, content: bytes, text: str
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    assert httpx.Response(200, headers=headers, content=content).text == text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_json_is_read_in_any_unicode_encoding(httpx: Any, encoding: str) -> None:
    assert httpx.Response(200, content='["\xe9"]'.encode(encoding)).json() == ["\xe9"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"[" * 200_000, b'{"a":' * 200_000])
def test_what_is_no_json_is_a_value_error(httpx: Any, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        httpx.Response(200, content=content).json()


@pytest.mark.parametrize(
    "arguments",
    [{"status_code": "200"}, {"status_code": 200, "content": "text"}, {"status_code": 200, "content": 3}],
)
def test_a_response_refuses_what_it_cannot_hold(httpx: Any, arguments: dict[str, Any]) -> None:
    with pytest.raises(httpx.ArgumentTypeError):
        httpx.Response(**arguments)


def test_a_response_refuses_a_body_of_the_other_world() -> None:
    with pytest.raises(aio.ArgumentTypeError, match="__aiter__"):
        aio.Response(200, content=[b"a"])
    with pytest.raises(sync.ArgumentTypeError, match="__iter__"):
        sync.Response(200, content=World("asyncio").body(b"a"))


def test_a_body_is_read_once(world: World) -> None:
    @world.run
    async def _() -> None:
        state_error = world.httpx.ResponseStateError
        response = world.httpx.Response(200, content=world.body(b"a", b"b"))
        with pytest.raises(state_error, match="call read"):
            _ = response.content
        assert await world.do(response.read()) == b"ab"
        assert await world.do(response.read()) == response.content == b"ab"
        assert await world.pieces(response.stream) == [b"ab"]
        assert await world.pieces(world.httpx.Response(204).stream) == []

        response = world.httpx.Response(200, content=world.body(b"a", b"b"))
        assert await world.pieces(response.stream) == [b"a", b"b"]
        assert await world.pieces(response.stream) == []
        with pytest.raises(state_error, match="as a stream"):
            await world.do(response.read())
        with pytest.raises(state_error, match="as a stream"):
            _ = response.text
        await world.do(response.close())
        assert await world.pieces(response.stream) == []


def test_looking_at_the_stream_does_not_begin_it(world: World) -> None:
    @world.run
    async def _() -> None:
        response = world.httpx.Response(200, content=world.body(b"a", b"b"))
        assert response.stream is response.stream
        assert await world.do(response.read()) == b"ab"


def test_a_closed_response_cannot_be_read(world: World) -> None:
    @world.run
    async def _() -> None:
        for read in (lambda it: it.read(), lambda it: world.pieces(it.stream)):
            response = world.httpx.Response(200, content=world.body(b"a"))
            async with world.within(response):
                pass
            await world.do(response.close())
            with pytest.raises(world.httpx.ResponseStateError, match="closed before"):
                await world.do(read(response))


def test_closing_a_response_closes_its_body(world: World) -> None:
    @world.run
    async def _() -> None:
        closed = []

        class Body:
            def __iter__(self) -> Any: ...
            def __aiter__(self) -> Any: ...
            def close(self) -> None:
                closed.append(True)

            async def aclose(self) -> None:
                closed.append(True)

        async with world.within(world.httpx.Response(200, content=Body())):
            assert closed == []
        assert closed == [True]
