"""What is refused before a byte is sent, compared with h11 where h11 has a say."""

import functools
import math
import re
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    InvalidURL,
    LaminaError,
    LocalProtocolError,
    UnsupportedProtocol,
)
from lamina_pool import _checks, _http11_fast
from lamina_pool._checks import (
    RequestFraming,
    Timeouts,
    build_request,
    check_proxy_headers,
    check_request,
    check_server_hostname,
    default_headers,
)
from lamina_pool._models import ByteStream, Proxy, Request
from lamina_pool._proxies import forwarded, read_proxy
from lamina_pool._urls import URL

HOST = (b"Host", b"example.com")
CHUNKED = (b"Transfer-Encoding", b"chunked")


def make(
    method: bytes = b"GET", *headers: tuple[bytes, bytes], content: Any = None, **extensions: Any
) -> Request:
    return Request(
        method, "http://example.com/", headers=[HOST, *headers], content=content, extensions=extensions
    )


def with_target(target: bytes) -> Request:
    return Request(b"GET", URL(scheme=b"http", host=b"h", target=target), headers=[HOST])


def sent_by_h11(request: Request) -> bytes:
    """The whole request as h11 writes it, from a body that is there as a whole."""
    connection = h11.Connection(h11.CLIENT)
    event = h11.Request(method=request.method, target=request.url.target, headers=request.headers)
    head = connection.send(event)
    assert isinstance(request.stream, ByteStream)
    body = connection.send(h11.Data(data=request.stream.content)) if request.stream.content else b""
    end = connection.send(h11.EndOfMessage())
    assert head is not None
    assert body is not None
    assert end is not None
    return head + body + end


async def async_body() -> AsyncIterator[bytes]:
    yield b"abc"


# --- what comes out


def test_a_plain_request_has_no_body() -> None:
    assert check_request(make()) == RequestFraming(
        method=b"GET",
        target=b"/",
        headers=[HOST],
        body="none",
        length=0,
        expects_continue=False,
        is_idempotent=True,
        is_replayable=True,
        is_upgrade=False,
        is_connect=False,
        wants_close=False,
        wants_keep_alive=False,
        written=(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n", 0),
    )


def test_the_headers_cannot_be_changed_after_the_check() -> None:
    request = make()
    framing = check_request(request)
    request.headers.append((b"X", b"a\r\nb"))
    assert framing.headers == [HOST]


@pytest.mark.parametrize(
    ("headers", "content", "body", "length"),
    [
        ([(b"Content-Length", b"3")], b"abc", "length", 3),
        ([(b"content-length", b"0")], b"", "length", 0),
        ([(b"CONTENT-length", b"003")], b"abc", "length", 3),
        ([(b"Content-Length", b"3")], [b"a", b"bc"], "length", 3),
        ([(b"Content-Length", b"18446744073709551616")], [b"a"], "length", 2**64),
        ([(b"Transfer-Encoding", b"chunked")], b"abc", "chunked", 0),
        ([(b"transfer-encoding", b"CHUNKED")], [b"abc"], "chunked", 0),
        ([(b"Transfer-Encoding", b"chunked")], b"", "chunked", 0),
        ([], None, "none", 0),
        ([], [], "none", 0),
    ],
)
def test_the_framing_is_what_the_headers_say(
    headers: list[tuple[bytes, bytes]], content: Any, body: str, length: int
) -> None:
    framing = check_request(make(b"POST", *headers, content=content))
    assert (framing.body, framing.length) == (body, length)


@pytest.mark.parametrize(
    ("headers", "content", "expects"),
    [
        ([(b"Expect", b"100-continue"), (b"Content-Length", b"3")], b"abc", True),
        ([(b"expect", b"100-Continue"), (b"Content-Length", b"3")], b"abc", True),
        ([(b"Expect", b"x, 100-continue"), (b"Transfer-Encoding", b"chunked")], b"abc", True),
        ([(b"Expect", b"100-continue"), (b"Expect", b"x"), CHUNKED], b"abc", True),
        ([(b"Expect", b"100-continue-x"), (b"Content-Length", b"3")], b"abc", False),
        ([(b"Expect", b"100-continue"), (b"Content-Length", b"0")], b"", False),
        ([(b"Expect", b"100-continue")], None, False),
    ],
)
def test_only_a_body_waits_for_100_continue(
    headers: list[tuple[bytes, bytes]], content: Any, expects: bool
) -> None:
    assert check_request(make(b"PUT", *headers, content=content)).expects_continue is expects


@pytest.mark.parametrize(
    ("method", "is_idempotent"),
    [
        (b"GET", True),
        (b"HEAD", True),
        (b"OPTIONS", True),
        (b"TRACE", True),
        (b"PUT", True),
        (b"DELETE", True),
        (b"POST", False),
        (b"PATCH", False),
        (b"CONNECT", False),
        (b"get", False),
        (b"QUERY", False),
    ],
)
def test_methods_that_may_be_repeated(method: bytes, is_idempotent: bool) -> None:
    framing = check_request(make(method))
    assert framing.is_idempotent is is_idempotent
    assert framing.is_connect is (method == b"CONNECT")


@pytest.mark.parametrize(
    ("headers", "content", "is_replayable"),
    [
        ([CHUNKED], b"abc", True),
        ([CHUNKED], ByteStream(b"abc"), True),
        ([CHUNKED], None, True),
        ([CHUNKED], [b"abc"], True),
        ([CHUNKED], (b"abc",), True),
        ([CHUNKED], iter([b"abc"]), False),
        ([(b"Content-Length", b"3")], iter([b"abc"]), False),
        # Nothing of these bodies is ever sent.
        ([(b"Content-Length", b"0")], iter([b""]), True),
        ([], iter([]), True),
    ],
)
def test_bodies_that_can_be_read_again(
    headers: list[tuple[bytes, bytes]], content: Any, is_replayable: bool
) -> None:
    assert check_request(make(b"PUT", *headers, content=content)).is_replayable is is_replayable


@pytest.mark.parametrize(
    ("headers", "close", "keep_alive", "upgrade"),
    [
        ([(b"Connection", b"close")], True, False, False),
        ([(b"connection", b"Keep-Alive , Close")], True, True, False),
        ([(b"Connection", b"keep-alive"), (b"CONNECTION", b"close")], True, True, False),
        ([(b"Connection", b"closed")], False, False, False),
        ([(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")], False, False, True),
        ([(b"Upgrade", b"")], False, False, False),
        ([(b"X-Connection", b"close")], False, False, False),
    ],
)
def test_what_the_connection_is_told(
    headers: list[tuple[bytes, bytes]], close: bool, keep_alive: bool, upgrade: bool
) -> None:
    framing = check_request(make(b"GET", *headers))
    assert (framing.wants_close, framing.wants_keep_alive, framing.is_upgrade) == (close, keep_alive, upgrade)


@pytest.mark.parametrize("target", [b"/", b"*", b"http://h/x", b"h:443", b"/%00", b"/a#b", b'/"<>\\^`{|}'])
def test_targets_of_all_forms_are_sent(target: bytes) -> None:
    assert check_request(with_target(target)).target == target


def test_the_target_extension_is_what_is_sent_and_checked() -> None:
    assert check_request(make(target=b"*")).target == b"*"
    with pytest.raises(LocalProtocolError):
        check_request(make(target=b"/ HTTP/1.1\r\nX: y"))


# --- what is refused

# Every byte that may not stand somewhere, in the three places where it could.
CONTROL = [bytes([number]) for number in [*range(0x20), 0x7F]]


@pytest.mark.parametrize(
    "bad", [*CONTROL, b" ", *[bytes([c]) for c in b'"(),/:;<=>?@[\\]{}'], b"\x80", b"\xff"]
)
@pytest.mark.parametrize("place", [b"%b", b"GE%bT", b"GET%b", b"%bGET"])
def test_methods_and_header_names_are_tokens(place: bytes, bad: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        check_request(make(place % bad))
    with pytest.raises(LocalProtocolError):
        check_request(make(b"GET", (place % bad, b"x")))


@pytest.mark.parametrize("bad", [*CONTROL, b" ", b"\x80", b"\xff"])
@pytest.mark.parametrize("place", [b"/a%bb", b"/%b", b"%b/"])
def test_targets_are_visible_ascii(place: bytes, bad: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        check_request(with_target(place % bad))


@pytest.mark.parametrize("bad", [byte for byte in CONTROL if byte != b"\t"])
@pytest.mark.parametrize("place", [b"%b", b"a%bb", b"a%b", b"%ba"])
@pytest.mark.parametrize("name", [b"X-Any", b"Host", b"Cookie", b"Connection"])
def test_header_values_have_no_control_characters(name: bytes, place: bytes, bad: bytes) -> None:
    headers = [(name, place % bad)] if name == b"Host" else [HOST, (name, place % bad)]
    with pytest.raises(LocalProtocolError):
        check_request(Request(b"GET", "http://example.com/", headers=headers))


@pytest.mark.parametrize("value", [b" a", b"a ", b"\ta", b"a\t", b" ", b"\t", b" \t "])
def test_header_values_have_no_white_space_at_their_ends(value: bytes) -> None:
    with pytest.raises(LocalProtocolError):
        check_request(make(b"GET", (b"X-Any", value)))


@pytest.mark.parametrize("value", [b"", b"a", b"a b\tc", b"a  b", b"\xe4\xff\x80", bytes(range(0x21, 0x7F))])
def test_other_header_values_are_sent(value: bytes) -> None:
    check_request(make(b"GET", (b"X-Any", value), (b"Cookie", value)))


def test_an_empty_method_target_or_name_is_refused() -> None:
    for request in (make(b""), with_target(b""), make(b"GET", (b"", b"x"))):
        with pytest.raises(LocalProtocolError):
            check_request(request)


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"X-Host", b"h")],
        [HOST, HOST],
        [HOST, (b"host", b"other")],
        [(b"Host", b"exa mple.com")],
        [(b"Host", b"a,b c")],
        [(b"Host", b"h/x")],
        [(b"Host", b"u@h")],
        [(b"Host", b"h:80x")],
        [(b"Host", b"::1")],
        [(b"Host", b"[fe80::1%lo]")],
        [(b"Host", b"h\xff")],
        [HOST, (b"Content-Length", b"3"), (b"Content-Length", b"3")],
        [HOST, (b"Content-Length", b"3"), (b"content-length", b"4")],
        [HOST, (b"Content-Length", b"3, 3")],
        [HOST, (b"Content-Length", b"")],
        [HOST, (b"Content-Length", b"-3")],
        [HOST, (b"Content-Length", b"+3")],
        [HOST, (b"Content-Length", b"3.0")],
        [HOST, (b"Content-Length", b"0x3")],
        [HOST, (b"Content-Length", b"\xb3")],
        [HOST, (b"Content-Length", b"9" * 21)],
        [HOST, (b"Transfer-Encoding", b"gzip")],
        [HOST, (b"Transfer-Encoding", b"gzip, chunked")],
        [HOST, (b"Transfer-Encoding", b"chunked, chunked")],
        [HOST, (b"Transfer-Encoding", b"")],
        [HOST, CHUNKED, CHUNKED],
        [HOST, CHUNKED, (b"Content-Length", b"3")],
        [HOST, (b"Content-Length", b"3"), (b"transfer-encoding", b"chunked")],
    ],
    ids=repr,
)
def test_headers_that_frame_a_message_twice_or_not_at_all_are_refused(
    headers: list[tuple[bytes, bytes]],
) -> None:
    with pytest.raises(LocalProtocolError):
        check_request(Request(b"POST", "http://example.com/", headers=headers, content=iter([b"abc"])))


@pytest.mark.parametrize(
    "value", [b"", b"h", b"h:", b"h:80", b"[::1]", b"[::1]:80", b"under_score", b"h.", b"xn--a%41"]
)
def test_any_host_that_could_be_one_is_sent(value: bytes) -> None:
    check_request(Request(b"GET", "http://example.com/", headers=[(b"Host", value)]))


@pytest.mark.parametrize(
    ("headers", "content"),
    [
        ([(b"Content-Length", b"2")], b"abc"),
        ([(b"Content-Length", b"4")], b"abc"),
        ([(b"Content-Length", b"0")], b"abc"),
        ([(b"Content-Length", b"3")], b""),
        ([(b"Content-Length", b"3")], None),
        ([], b"abc"),
    ],
)
def test_a_body_of_another_length_than_declared_is_refused(
    headers: list[tuple[bytes, bytes]], content: Any
) -> None:
    with pytest.raises(LocalProtocolError):
        check_request(make(b"POST", *headers, content=content))


def test_no_secret_is_in_the_message() -> None:
    for headers in (
        [(b"Authorization", b"Bearer hunter2\n")],
        [(b"Cookie", b"hunter2\x00")],
        [(b"Host", b"hunter2 x")],
    ):
        with pytest.raises(LocalProtocolError) as caught:
            check_request(Request(b"GET", "http://h/", headers=headers))
        assert "hunter2" not in str(caught.value)
        assert headers[0][0].decode() in str(caught.value)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("example.com", "Request URL is missing an 'http://' or 'https://' protocol."),
        ("//example.com/", "Request URL is missing an 'http://' or 'https://' protocol."),
        ("ftp://example.com/", "Request URL has an unsupported protocol 'ftp://'."),
        ("file:///etc/hosts", "Request URL has an unsupported protocol 'file://'."),
        ("socks5://h", "Request URL has an unsupported protocol 'socks5://'."),
    ],
)
def test_other_protocols_are_refused(url: str, text: str) -> None:
    with pytest.raises(UnsupportedProtocol) as caught:
        check_request(build_request("GET", url))
    assert str(caught.value) == text


@pytest.mark.parametrize("scheme", ["http", "https", "ws", "wss"])
def test_the_protocols_that_are_spoken(scheme: str) -> None:
    check_request(build_request("GET", f"{scheme}://h/"))


def test_a_url_without_a_host_is_refused() -> None:
    with pytest.raises(InvalidURL):
        check_request(Request("GET", URL(scheme=b"http", target=b"/"), headers=[HOST]))


# --- types


def change(name: str, value: Any) -> Request:
    request = make()
    setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    "request_",
    [
        change("method", "GET"),
        change("method", None),
        change("headers", None),
        change("headers", 1),
        change("headers", ["ab", "cd"]),
        change("headers", [("Host", "h")]),
        change("headers", [(b"Host", "h")]),
        change("headers", [("host", b"h")]),
        change("headers", [(b"Host", 1)]),
        change("headers", [(1, b"h")]),
        change("headers", [(b"Host",)]),
        change("headers", [b"Host"]),
        change("headers", [([], b"h")]),
        change("headers", [(bytearray(b"Host"), b"h")]),
        change("headers", [(memoryview(b"Host"), b"h")]),
        change("headers", [HOST, (b"X", bytearray(b"a"))]),  # could be changed once it was checked
        change("headers", [HOST, [b"X", bytearray(b"a")]]),
        change("headers", [HOST, (b"X", memoryview(bytearray(b"a")))]),
        change("headers", [HOST, [b"X", memoryview(b"a")]]),
    ],
    ids=lambda request: re.sub(" at 0x[^>]*", "", repr(request.headers))[:40],  # the same in each process
)
def test_what_is_no_bytes_is_refused(request_: Request) -> None:
    with pytest.raises(TypeError) as caught:
        check_request(request_)
    assert type(caught.value) is ArgumentTypeError


@pytest.mark.parametrize(
    "stream", [async_body, 1, None, "abc", b"abc", bytearray(b"abc"), memoryview(b"abc"), {b"a": b"b"}]
)
def test_what_is_no_iterable_of_bytes_is_refused_as_a_body(stream: Any) -> None:
    for blocking in (True, False):
        with pytest.raises(ArgumentTypeError):
            check_request(change("stream", stream), blocking=blocking)


def test_a_body_belongs_to_one_world() -> None:
    body = async_body()
    check_request(make(b"POST", CHUNKED, content=body), blocking=False)
    with pytest.raises(ArgumentTypeError, match="an iterable"):
        check_request(make(b"POST", CHUNKED, content=body), blocking=True)
    for content in ([b"abc"], iter([b"abc"])):
        check_request(make(b"POST", CHUNKED, content=content), blocking=True)
        with pytest.raises(ArgumentTypeError, match="an async iterable"):
            check_request(make(b"POST", CHUNKED, content=content), blocking=False)
    for blocking in (True, False):
        check_request(make(b"POST", CHUNKED, content=b"abc"), blocking=blocking)


# --- extensions


def plain(name: str, info: dict[str, Any]) -> None: ...
async def coroutine(name: str, info: dict[str, Any]) -> None: ...


class Callback:
    async def __call__(self, name: str, info: dict[str, Any]) -> None: ...
    async def method(self, name: str, info: dict[str, Any]) -> None: ...
    def plain(self, name: str, info: dict[str, Any]) -> None: ...


ASYNC_CALLBACKS = [
    coroutine,
    Callback(),
    Callback().method,
    functools.partial(functools.partial(coroutine), "x"),
]
PLAIN_CALLBACKS = [
    plain,
    lambda name, info: None,
    Callback().plain,
    print,
    dict,
    functools.partial(plain, "x"),
    [].append,
]


@pytest.mark.parametrize("callback", [*ASYNC_CALLBACKS, *PLAIN_CALLBACKS])
def test_a_callback_serves_both_plain_or_async(callback: Callable[..., Any]) -> None:
    check_request(make(trace=callback), blocking=True)
    check_request(make(trace=callback), blocking=False)


@pytest.mark.parametrize(
    ("extensions", "error"),
    [
        ({"trace": 1}, ArgumentTypeError),
        ({"trace": "print"}, ArgumentTypeError),
        ({"sni_hostname": b"h"}, ArgumentTypeError),
        ({"sni_hostname": 1}, ArgumentTypeError),
        ({"sni_hostname": "h\r\n"}, LocalProtocolError),
        ({"sni_hostname": "h\x00"}, LocalProtocolError),
        ({"sni_hostname": "h h"}, LocalProtocolError),
        ({"sni_hostname": "a" * 64}, LocalProtocolError),
        ({"sni_hostname": "h:80"}, LocalProtocolError),
    ],
)
def test_extensions_that_make_no_sense_are_refused(
    extensions: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        check_request(make(**extensions))


@pytest.mark.parametrize("extensions", [{"trace": None}, {"sni_hostname": None}, {"anything": object()}])
def test_extensions_that_are_left_out_or_of_others_are_let_be(extensions: dict[str, Any]) -> None:
    check_request(make(**extensions))


@pytest.mark.parametrize("name", ["example.com", "EXAMPLE.com", "münchen.de", "127.0.0.1", "::1", "a.b."])
def test_names_for_the_certificate(name: str) -> None:
    check_server_hostname(name)


@pytest.mark.parametrize(
    ("extensions", "timeouts"),
    [
        ({}, Timeouts(None, None, None, None)),
        ({"timeout": None}, Timeouts(None, None, None, None)),
        ({"timeout": {}}, Timeouts(None, None, None, None)),
        ({"timeout": {"connect": 1, "read": 2.5, "write": 0, "pool": None}}, Timeouts(1.0, 2.5, 0.0, None)),
        ({"timeout": {"read": math.inf}}, Timeouts(None, None, None, None)),
        ({"timeout": {"pool": 3}}, Timeouts(pool=3.0)),
    ],
)
def test_timeouts_are_read(extensions: dict[str, Any], timeouts: Timeouts) -> None:
    assert Timeouts.from_extensions(extensions) == timeouts


@pytest.mark.parametrize(
    ("timeout", "error", "text"),
    [
        ({"raed": 1.0}, ArgumentValueError, "'raed'"),
        ({"timeout": 1.0}, ArgumentValueError, "'timeout'"),
        ({"read": 1.0, 5: 1.0}, ArgumentValueError, "5"),
        ({"read": -1.0}, ArgumentValueError, "read"),
        ({"pool": math.nan}, ArgumentValueError, "pool"),
        ({"write": "5"}, ArgumentTypeError, "write"),
        ({"connect": True}, ArgumentTypeError, "connect"),
        (5.0, ArgumentTypeError, "float"),
        ([("read", 1.0)], ArgumentTypeError, "list"),
    ],
)
def test_timeouts_that_make_no_sense_are_refused(timeout: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        Timeouts.from_extensions({"timeout": timeout})


# --- headers that are added


@pytest.mark.parametrize(
    ("url", "headers", "content", "complete"),
    [
        ("http://h/", [], None, [("Host", "h")]),
        ("http://h:81/", [("A", "b")], None, [("Host", "h:81"), ("A", "b")]),
        ("http://h/", [("host", "other")], None, [("host", "other")]),
        ("http://[fe80::1%25lo]/", [], None, [("Host", "[fe80::1]")]),
        ("http://h/", [], b"abc", [("Host", "h"), ("Content-Length", "3")]),
        ("http://h/", [], b"", [("Host", "h"), ("Content-Length", "0")]),
        ("http://h/", [], bytearray(b"abc"), [("Host", "h"), ("Content-Length", "3")]),
        ("http://h/", [], memoryview(b"abcdef")[::2], [("Host", "h"), ("Content-Length", "3")]),
        ("http://h/", [], memoryview(array("d", [0.0])), [("Host", "h"), ("Content-Length", "8")]),
        ("http://h/", [], ByteStream(b"abc"), [("Host", "h"), ("Content-Length", "3")]),
        ("http://h/", [], [b"abc"], [("Host", "h"), ("Transfer-Encoding", "chunked")]),
        ("http://h/", [("content-length", "3")], [b"abc"], [("Host", "h"), ("content-length", "3")]),
        (
            "http://h/",
            [("TRANSFER-encoding", "chunked")],
            b"",
            [("Host", "h"), ("TRANSFER-encoding", "chunked")],
        ),
    ],
)
def test_what_http_demands_is_added(
    url: str, headers: Any, content: Any, complete: list[tuple[str, str]]
) -> None:
    request = build_request("POST", url, headers=headers, content=content)
    assert request.headers == [(name.encode(), value.encode()) for name, value in complete]
    check_request(request)


def test_the_callers_list_is_not_changed() -> None:
    headers = [(b"A", b"b")]
    default_headers(headers, url=URL("http://h/"), content=b"abc")
    assert headers == [(b"A", b"b")]


def test_a_whole_request_is_built() -> None:
    extensions: dict[str, Any] = {"target": b"*"}
    request = build_request("OPTIONS", "https://h/x", headers={"A": "b"}, content=b"c", extensions=extensions)
    assert request.method == b"OPTIONS"
    assert request.url == URL(scheme=b"https", host=b"h", target=b"*")
    assert list(request.stream) == [b"c"]  # type: ignore[arg-type] # a ByteStream, which is both
    assert request.extensions is extensions


@pytest.mark.parametrize(
    "headers",
    [
        [(b"X-Any\r\n", b"x")],
        [(b"X Any", b"x")],
        [(b"X-Any", b"x\r\nX-Other: y")],
        [(b"Proxy-Authorization", b"x\n")],
        [(b"Content-Length", b"1")],
        [(b"transfer-encoding", b"chunked")],
    ],
)
def test_headers_for_a_proxy_are_checked(headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(LocalProtocolError):
        check_proxy_headers([(b"X-Good", b"x"), *headers])


def test_good_headers_for_a_proxy_pass() -> None:
    check_proxy_headers([(b"Proxy-Authorization", b"Basic dXNlcjpwYXNz"), (b"User-Agent", b"lamina/1 (x)")])


# --- h11 as the judge

tokens = st.text("abcXYZ019!#$%&'*+-.^_`|~", min_size=1, max_size=8).map(str.encode)
nearly_tokens = tokens | st.binary(max_size=4)
nearly_values = st.text("ab \t,;\r\n\x00\x01\x0b\x7fÿ", max_size=8).map(lambda text: text.encode("latin-1"))
framing_names = st.sampled_from(
    [
        b"Host",
        b"host",
        b"Content-Length",
        b"content-LENGTH",
        b"Transfer-Encoding",
        b"Connection",
        b"Expect",
        b"Upgrade",
    ]
)
framing_values = st.sampled_from(
    [
        b"",
        b"h",
        b"h:80",
        b"a b",
        b"0",
        b"3",
        b"03",
        b"3, 3",
        b"-1",
        b"chunked",
        b"Chunked",
        b"gzip",
        b"close",
        b"keep-alive",
        b"Keep-Alive",
        b"keep-alive, close",
        b"100-continue",
        b"websocket",
        b"h2c",
    ]
)
header_lists = st.lists(
    st.tuples(framing_names, framing_values)
    | st.tuples(nearly_tokens, nearly_values)
    | st.tuples(tokens, st.sampled_from([b"x", b"y z"])),
    max_size=5,
)
targets = st.text("/*ab:%?#\\ \r\n\x00\x7fÿ", max_size=8).map(lambda text: text.encode("latin-1"))
bodies = st.sampled_from([b"", b"abc"])


def stricter_than_h11(request: Request) -> bool:
    """Whether one of the rules applies that go beyond h11's."""
    lengths = [value for name, value in request.headers if name.lower() == b"content-length"]
    codings = [value for name, value in request.headers if name.lower() == b"transfer-encoding"]
    hosts = [value for name, value in request.headers if name.lower() == b"host"]
    return (
        any(
            re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value) for _, value in request.headers
        )  # h11 lets \x01 through
        or len(lengths) > 1  # h11 joins equal ones
        or any(not value.isdigit() for value in lengths)  # h11 reads "3, 3" as 3
        or bool(lengths and codings)  # h11 lets Transfer-Encoding win
        or any(re.search(rb"[\s,;\xff]", value) for value in hosts)  # h11 does not look
    )


@given(method=nearly_tokens, target=targets, headers=header_lists, body=bodies, has_host=st.booleans())
@example(method=b"GET", target=b"/", headers=[(b"X", b"\x01")], body=b"", has_host=True)
@example(method=b"GET", target=b"/", headers=[(b"X", b"a\tb")], body=b"", has_host=True)
def test_h11_agrees(
    method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes, has_host: bool
) -> None:
    compare_with_h11(method, target, [HOST, *headers] if has_host else headers, body)


@given(headers=header_lists, body=bodies)
def test_h11_agrees_on_headers(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    compare_with_h11(b"POST", b"/", [HOST, *headers], body)


@given(framing=st.lists(st.tuples(framing_names, framing_values), max_size=3), body=bodies)
def test_h11_agrees_on_framing(framing: list[tuple[bytes, bytes]], body: bytes) -> None:
    compare_with_h11(b"POST", b"/", [HOST, *framing], body)


@given(value=st.binary(max_size=6))
def test_h11_agrees_on_values(value: bytes) -> None:
    compare_with_h11(b"POST", b"/", [HOST, (b"X", value)], b"")


def compare_with_h11(method: bytes, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    request = Request(method, URL(scheme=b"http", host=b"h", target=target), headers=headers, content=body)
    try:
        framing = check_request(request)
    except LocalProtocolError:
        if not stricter_than_h11(request):
            with pytest.raises(h11.LocalProtocolError):
                sent_by_h11(request)
        for _ in range(2):
            with pytest.raises(LocalProtocolError):
                check_request(request)
        return
    sent = sent_by_h11(request)
    assert sent == written_plainly(framing, body)
    if framing.written is not None:
        head, length = framing.written
        assert sent.startswith(head)
        assert sent[: len(head)].endswith(b"\r\n\r\n")
        assert length == (-1 if framing.body == "chunked" else framing.length)
    for _ in range(2):  # from the third time on its headers may be known as a whole
        assert check_request(request) == framing


def written_plainly(framing: RequestFraming, body: bytes) -> bytes:
    """What a writer that trusts the check sends."""
    first = [line for line in framing.headers if line[0].lower() == b"host"]
    rest = [line for line in framing.headers if line[0].lower() != b"host"]
    lines = []
    for name, value in first + rest:
        # h11 writes codings in lower case.
        lines.append(b"%b: %b\r\n" % (name, value.lower() if name.lower() == b"transfer-encoding" else value))
    if framing.body == "chunked":
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    else:
        assert framing.length == len(body)
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (framing.method, framing.target, b"".join(lines), body)


good_headers = st.lists(
    st.sampled_from(
        [
            (b"Connection", b"keep-alive, close"),
            (b"Expect", b"100-continue"),
            (b"Upgrade", b"websocket"),
            (b"X-Empty", b""),
            (b"X-Odd", b"a\tb \xff"),
        ]
    ),
    max_size=4,
)


@given(
    others=good_headers,
    framing=st.sampled_from(["length", "chunked", "none"]),
    body=bodies,
    before=st.booleans(),
)
def test_an_h11_server_reads_back_what_was_let_through(
    others: list[tuple[bytes, bytes]], framing: str, body: bytes, before: bool
) -> None:
    if framing == "none":
        body = b""
    framed = {"length": [(b"Content-Length", b"%d" % len(body))], "chunked": [CHUNKED], "none": []}[framing]
    headers = [*framed, *others] if before else [*others, *framed]
    facts = check_request(make(b"POST", *headers, content=body))
    assert facts.body == framing
    server = h11.Connection(h11.SERVER)
    server.receive_data(written_plainly(facts, body))
    event = server.next_event()
    assert isinstance(event, h11.Request)
    assert server.they_are_waiting_for_100_continue is False or facts.expects_continue or not body
    received = b""
    while isinstance(event := server.next_event(), h11.Data):
        received += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert received == body
    assert server.trailing_data == (b"", False)


anything = (
    st.none()
    | st.integers()
    | st.text(max_size=3)
    | st.binary(max_size=3)
    | st.lists(st.binary(max_size=2), max_size=3)
)


@given(
    method=anything,
    headers=st.lists(st.tuples(anything, anything) | anything, max_size=3) | anything,
    body=anything,
)
def test_only_our_own_errors_come_out(method: Any, headers: Any, body: Any) -> None:
    request = make()
    request.method, request.headers, request.stream = method, headers, body
    try:
        check_request(request)
    except LaminaError:
        pass


def test_a_generator_is_not_started_by_the_check() -> None:
    started = []

    def body() -> Iterator[bytes]:
        started.append(True)
        yield b"abc"

    check_request(make(b"POST", CHUNKED, content=body()))
    assert started == []


@given(headers=header_lists, body=bodies, has_host=st.booleans())
@example(headers=[(b"connection", b"Keep-Alive")], body=b"", has_host=True)
def test_what_is_beyond_doubt_means_what_it_means_to_who_looks_twice(
    headers: list[tuple[bytes, bytes]], body: bytes, has_host: bool
) -> None:
    """Whether the head is written at once or its fields are looked at one by one, as those of all others are."""
    request = make(b"PUT", content=body)
    request.headers = [HOST, *headers] if has_host else headers
    for _ in range(3):
        block = _http11_fast.header_block(tuple(request.headers))
        if block is None:
            return
        length, expects_continue, is_upgrade, connection = _checks._check_headers(tuple(request.headers))
        assert (length, expects_continue, is_upgrade) == (block.length, block.expects_continue, False)
        assert connection == (frozenset({b"keep-alive"}) if block.wants_keep_alive else ())


def test_what_is_sent_is_what_was_checked() -> None:
    request = make(b"GET", (b"Accept", b"*/*"))
    known = [check_request(request) for _ in range(3)][-1]
    assert known.written == (b"GET / HTTP/1.1\r\nHost: example.com\r\nAccept: */*\r\n\r\n", 0)
    request.headers[1] = (b"Accept", b"a")
    assert known.headers == [HOST, (b"Accept", b"*/*")]
    changed = check_request(request)
    assert changed.written == (b"GET / HTTP/1.1\r\nHost: example.com\r\nAccept: a\r\n\r\n", 0)
    known.headers[1] = (b"X", b"a\r\nb")  # nobody does; but it is a list of its own
    assert check_request(make(b"GET", (b"Accept", b"*/*"))).headers == [HOST, (b"Accept", b"*/*")]


@pytest.mark.parametrize("headers", [None, [(b"X-Tag", b"1")]])
def test_what_a_proxy_is_sent_is_written_anew(headers: Any) -> None:
    request = make(b"GET", (b"Accept", b"*/*"))
    for _ in range(3):
        framing = check_request(request)
        assert framing.written is not None
        proxy = read_proxy(Proxy("http://proxy.test", headers=headers))
        moved = forwarded(proxy, request.url, framing)
        assert moved.target == b"http://example.com/"
        assert moved.written is None


@pytest.mark.parametrize("name", sorted(_http11_fast.REQUEST_NAMES))
@pytest.mark.parametrize("value", [b"1", b"100-continue", b"chunked", b"keep-alive"])
def test_what_says_something_to_the_connection_is_looked_at_in_each_request(
    name: bytes, value: bytes
) -> None:
    for spelling in (name, name.title()):
        _http11_fast.write_head(b"POST", b"/", [(b"Host", b"a.test"), (spelling, value)])
        assert (spelling, value) not in _http11_fast.known_lines


def test_a_method_that_only_becomes_bytes_is_refused() -> None:
    class Method:
        def __bytes__(self) -> bytes:
            return b"GET"

    request = make(b"GET")
    request.method = Method()  # type: ignore[assignment] # as untyped code may
    with pytest.raises(ArgumentTypeError, match="method must be bytes"):
        check_request(request)
