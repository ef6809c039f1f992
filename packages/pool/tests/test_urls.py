"""URLs: what is taken apart how, and what is refused."""

import copy
import pickle
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lamina_interfaces import ArgumentTypeError, InvalidURL, UnsupportedProtocol
from lamina_pool._urls import URL, Origin, authority, host_header, server_name


@pytest.mark.parametrize(
    ("text", "scheme", "host", "port", "target"),
    [
        ("https://www.example.com/", b"https", b"www.example.com", None, b"/"),
        ("https://www.example.com", b"https", b"www.example.com", None, b"/"),
        ("http://example.com:80/a", b"http", b"example.com", 80, b"/a"),
        ("http://example.com:8080?x=1", b"http", b"example.com", 8080, b"/?x=1"),
        ("http://example.com:/", b"http", b"example.com", None, b"/"),
        ("http://example.com:00080/", b"http", b"example.com", 80, b"/"),
        ("http://example.com:65535/", b"http", b"example.com", 65535, b"/"),
        ("HTTP://EXAMPLE.com/A", b"http", b"example.com", None, b"/A"),
        ("http://example.com/a;b=1;c?d;e#f", b"http", b"example.com", None, b"/a;b=1;c?d;e"),
        ("http://example.com/?", b"http", b"example.com", None, b"/?"),
        ("http://example.com#/?", b"http", b"example.com", None, b"/"),
        ("http://example.com//a//b/../c", b"http", b"example.com", None, b"//a//b/../c"),
        ("http://example.com/a@b:c", b"http", b"example.com", None, b"/a@b:c"),
        ("http://user:pass@example.com/", b"http", b"example.com", None, b"/"),
        ("http://user:80@example.com:81/", b"http", b"example.com", 81, b"/"),
        ("http://example.com./", b"http", b"example.com.", None, b"/"),
        ("http://under_score.example/", b"http", b"under_score.example", None, b"/"),
        ("http://127.0.0.1:9/", b"http", b"127.0.0.1", 9, b"/"),
        ("http://[::1]/", b"http", b"::1", None, b"/"),
        ("http://[2001:DB8::1]:8080/x", b"http", b"2001:db8::1", 8080, b"/x"),
        ("http://[::ffff:192.0.2.1]/", b"http", b"::ffff:192.0.2.1", None, b"/"),
        ("http://[fe80::1%25lo]/", b"http", b"fe80::1%lo", None, b"/"),
        ("http://[fe80::1%lo]/", b"http", b"fe80::1%lo", None, b"/"),
        ("http://[fe80::1%252]/", b"http", b"fe80::1%2", None, b"/"),
        ("http://[fe80::1%2525]/", b"http", b"fe80::1%25", None, b"/"),
        ("http://[fe80::1%25Eth0]:81/", b"http", b"fe80::1%Eth0", 81, b"/"),
        ("http://münchen.de/", b"http", b"xn--mnchen-3ya.de", None, b"/"),
        ("http://MÜNCHEN.de/", b"http", b"xn--mnchen-3ya.de", None, b"/"),
        ("http://例え。jp:81/", b"http", b"xn--r8jz45g.jp", 81, b"/"),
        ("http://" + "a" * 63 + ".com/", b"http", b"a" * 63 + b".com", None, b"/"),
        ("http://" + "a." * 127 + "/", b"http", b"a." * 127, None, b"/"),  # 253, and the dot of the root
        ("wss://example.com/chat", b"wss", b"example.com", None, b"/chat"),
        ("socks5://localhost:1080", b"socks5", b"localhost", 1080, b"/"),
        # Not refused here: the pool says which protocols it speaks.
        ("www.example.com", b"", b"", None, b"www.example.com"),
        ("//example.com/x", b"", b"example.com", None, b"/x"),
        ("/only/a/path?q", b"", b"", None, b"/only/a/path?q"),
        ("file:///etc/hosts", b"file", b"", None, b"/etc/hosts"),
        ("localhost:8080/x", b"localhost", b"", None, b"8080/x"),
        ("", b"", b"", None, b""),
    ],
)
def test_a_url_is_taken_apart(text: str, scheme: bytes, host: bytes, port: int | None, target: bytes) -> None:
    url = URL(text)
    assert (url.scheme, url.host, url.port, url.target) == (scheme, host, port, target)


def test_bytes_are_taken_apart_like_text() -> None:
    assert URL(b"https://example.com:1/?a") == URL("https://example.com:1/?a")


BAD_URLS = [
    "http://example.com:99999/",
    "http://example.com:65536/",
    "http://example.com:-1/",
    "http://example.com:0/",
    "http://example.com:0000/",
    "http://example.com:80a/",
    "http://example.com:٣/",  # digits, but not ASCII ones
    "http://example.com:" + "9" * 5000 + "/",
    "http://example.com:80:80/",
    "http:///",
    "http://",
    "https:/path",
    "http:path",
    "http://:80/",
    "http://user@/",
    "//:80/",
    "http://[::1/",
    "http://::1]/",
    "http://::1/",
    "http://[]/",
    "http://[::1]x/",
    "http://[::1]:x/",
    "http://x[::1]/",
    "http://[127.0.0.1]/",
    "http://[v1.fe]/",
    "http://[::12345]/",
    "http://[fe80::1%]/",
    "http://[fe80::1%25]/",
    "http://[fe80::1%25lo%25]/",
    "http://[fe80::1%25l o]/",
    "http://[[::1]]/",
    "http://" + "a" * 64 + ".com/",
    "http://" + ".".join(["a" * 49] * 6) + "/",
    "http://" + "a." * 126 + "aa/",  # 254 characters
    "http://" + "a" * 100_000 + "/",
    "http://" + "ü" * 100_000 + "/",
    "http://" + "ü" * 64 + ".de/",
    "http://a..b/",
    "http://.a/",
    "http://./",
    "http://a../",
    "http://ü..de/",
    "http://exa mple.com/",
    "http://exa%20mple.com/",
    "http://exa%00mple.com/",
    "http://exa|mple.com/",
    "http://exa^mple.com/",
    "http://exa<mple>.com/",
    'http://exa"mple.com/',
    "http://good.example\\@evil.example/",
    "http://good.example\\.evil.example/",
    "http://a@b@evil.example/",
    # The compatibility mapping of these yields "/", ":", "#", "@" and "?".
    "http://exa℀mple.com/",
    "http://example.com\uff1a80/",
    "http://good.example\uff03.evil.example/",
    "http://good.example\uff20evil.example/",
    "http://good.example\uff1fevil.example/",
    "http://\u2028example.com/",
    "http://\ud800.com/",
    "http://example.com/ü",
    "http://example.com/?q=ü",
    "www.exämple.com",
]


@pytest.mark.parametrize("text", BAD_URLS, ids=lambda text: ascii(text[:40]))
def test_a_url_that_cannot_be_used_is_refused(text: str) -> None:
    with pytest.raises(InvalidURL) as caught:
        URL(text)
    assert str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("character", [*map(chr, range(0x21)), "\x7f"], ids=ascii)
@pytest.mark.parametrize(
    "place",
    [
        "{}http://h/",
        "ht{}tp://h/",
        "http:/{}/h/",
        "http://u{}@h/",
        "http://h{}/",
        "http://h:8{}/",
        "http://[::1{}]/",
        "http://h/{}",
        "http://h/x{}",
        "http://h/?{}",
        "http://h/#{}",
        "{}",
    ],
)
def test_white_space_and_control_characters_are_refused_anywhere(place: str, character: str) -> None:
    with pytest.raises(InvalidURL):
        URL(place.format(character))
    with pytest.raises(InvalidURL):
        URL(place.format(character).encode("ascii"))


@pytest.mark.parametrize(
    "url", ["http://münchen.de/".encode("latin-1"), "http://münchen.de/".encode(), b"http://h/\xff"]
)
def test_bytes_that_are_not_ascii_are_refused(url: bytes) -> None:
    with pytest.raises(InvalidURL):
        URL(url)


@pytest.mark.parametrize(
    "url", [123, None, 1.5, bytearray(b"http://h/"), ["http://h/"], object(), 0, [], False]
)
def test_something_else_than_text_or_bytes_is_refused(url: object) -> None:
    with pytest.raises(ArgumentTypeError, match=f"but got {type(url).__name__}"):
        URL(url)  # type: ignore[arg-type] # that is the point


# --- from parts


def test_a_url_is_made_of_parts() -> None:
    url = URL(scheme="https", host="www.example.com", port=8443, target="*")
    assert url == URL(scheme=b"https", host=b"www.example.com", port=8443, target=b"*")
    assert (url.scheme, url.host, url.port, url.target) == (b"https", b"www.example.com", 8443, b"*")


def test_parts_are_all_optional() -> None:
    url = URL()
    assert (url.scheme, url.host, url.port, url.target) == (b"", b"", None, b"")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b"EXAMPLE.com", b"example.com"),
        ("münchen.de", b"xn--mnchen-3ya.de"),
        (b"::1", b"::1"),
        (b"[::1]", b"::1"),
        ("[FE80::1%25lo]", b"fe80::1%lo"),
        (b"fe80::1%lo", b"fe80::1%lo"),
        (b"fe80::1%25", b"fe80::1%25"),
    ],
)
def test_a_host_as_a_part_takes_the_same_form(given: bytes | str, kept: bytes) -> None:
    assert URL(scheme=b"http", host=given).host == kept


@pytest.mark.parametrize("scheme", [b"http:", "ht tp", b"http\r\n", b"1http", b"\x00"])
def test_a_scheme_that_is_none_is_refused(scheme: bytes | str) -> None:
    with pytest.raises(InvalidURL):
        URL(scheme=scheme, host=b"h")


@pytest.mark.parametrize(
    "host",
    [
        b"h\r\n",
        "h\n",
        b"h h",
        b"h\x00",
        b"m\xfcnchen",
        b"a" * 64,
        b"h/",
        b"h:80",
        b"[::1",
        b"u@h",
        b"h?",
        b"h#",
        b"..",
        "℀",
    ],
)
def test_a_host_that_is_none_is_refused(host: bytes | str) -> None:
    with pytest.raises(InvalidURL):
        URL(scheme=b"http", host=host)


@pytest.mark.parametrize("port", [0, -1, 65536, 99999, 10**30])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(InvalidURL, match="65535"):
        URL(scheme=b"http", host=b"h", port=port)


@pytest.mark.parametrize(
    "parts",
    [
        {"scheme": 1},
        {"host": 1},
        {"host": None},
        {"target": 1},
        {"target": None},
        {"port": "80"},
        {"port": 80.0},
        {"port": True},
        {"port": b"80"},
        {"scheme": "hättp"},
        {"target": "/☃"},
    ],
)
def test_a_part_of_the_wrong_type_is_refused(parts: dict[str, object]) -> None:
    with pytest.raises(TypeError) as caught:
        URL(**{"scheme": b"http", "host": b"h", **parts})  # type: ignore[arg-type] # that is the point
    assert type(caught.value) is ArgumentTypeError


# --- the object


def test_the_repr_is_how_one_would_write_it() -> None:
    url = URL("https://www.example.com:8443/?a=1")
    assert repr(url) == "URL(scheme=b'https', host=b'www.example.com', port=8443, target=b'/?a=1')"
    assert repr(URL("http://user:secret@h/")) == "URL(scheme=b'http', host=b'h', port=None, target=b'/')"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("https://www.example.com/a?b#c", b"https://www.example.com/a?b"),
        ("https://www.example.com:443", b"https://www.example.com:443/"),
        ("http://[::1]:80/", b"http://[::1]:80/"),
        ("http://[fe80::1%lo]/", b"http://[fe80::1%25lo]/"),
    ],
)
def test_its_bytes_are_the_whole_url(text: str, whole: bytes) -> None:
    assert bytes(URL(text)) == whole
    assert URL(whole) == URL(text)


def test_equal_urls_are_equal_in_every_part() -> None:
    url = URL("http://h:1/a")
    same = URL("http://h:1/a")
    assert url == same
    assert hash(url) == hash(same)
    others = [
        URL("http://h:1/b"),
        URL("http://h:2/a"),
        URL("http://i:1/a"),
        URL("https://h:1/a"),
        "http://h:1/a",
    ]
    assert [other for other in others if other == url] == []
    assert URL("http://h/") != URL("http://h:80/")


def test_a_url_cannot_be_changed() -> None:
    url = URL("http://h/")
    with pytest.raises(AttributeError):
        url.host = b"evil"
    with pytest.raises(AttributeError):
        url.other = 1
    with pytest.raises(AttributeError):
        del url.host
    assert url == URL("http://h/")


def test_a_url_survives_pickling_and_copying() -> None:
    url = URL(scheme=b"http", host=b"fe80::1%lo", port=3, target=b"*")
    assert pickle.loads(pickle.dumps(url)) == copy.copy(url) == copy.deepcopy(url) == url


def test_another_target_leaves_the_rest() -> None:
    url = URL("http://[fe80::1%lo]:3/a?b")
    assert url.with_target("*") == URL(scheme=b"http", host=b"fe80::1%lo", port=3, target=b"*")
    with pytest.raises(ArgumentTypeError):
        url.with_target(1)  # type: ignore[arg-type] # that is the point


# --- origins and what is derived


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("http://h/", Origin(b"http", b"h", 80)),
        ("https://h/", Origin(b"https", b"h", 443)),
        ("ws://h/", Origin(b"ws", b"h", 80)),
        ("wss://h/", Origin(b"wss", b"h", 443)),
        ("socks5://h", Origin(b"socks5", b"h", 1080)),
        ("socks5h://h", Origin(b"socks5h", b"h", 1080)),
        ("https://H:8443/", Origin(b"https", b"h", 8443)),
        ("other://h:5/", Origin(b"other", b"h", 5)),
    ],
)
def test_the_origin_has_a_port_in_any_case(text: str, origin: Origin) -> None:
    assert URL(text).origin == origin
    assert hash(URL(text).origin) == hash(origin)


@pytest.mark.parametrize("text", ["other://h/", "//h/", "example.com"])
def test_an_unknown_scheme_has_no_origin(text: str) -> None:
    with pytest.raises(UnsupportedProtocol):
        _ = URL(text).origin


def test_an_origin_reads_like_one() -> None:
    assert str(Origin(b"https", b"example.com", 443)) == "https://example.com:443"
    assert str(Origin(scheme=b"http", host=b"::1", port=80)) == "http://[::1]:80"
    assert repr(Origin(b"https", b"h", 443)) == "Origin(scheme=b'https', host=b'h', port=443)"
    assert Origin(b"https", b"h", 443) != Origin(b"http", b"h", 443)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("http://example.com/", b"example.com"),
        ("http://example.com:80/", b"example.com"),
        ("http://example.com:443/", b"example.com:443"),
        ("https://example.com:443/", b"example.com"),
        ("wss://example.com:443/", b"example.com"),
        ("http://[::1]/", b"[::1]"),
        ("http://[::1]:81/", b"[::1]:81"),
        ("http://[fe80::1%25lo]/", b"[fe80::1]"),
        ("http://[fe80::1%25lo]:81/", b"[fe80::1]:81"),
        ("http://münchen.de/", b"xn--mnchen-3ya.de"),
    ],
)
def test_the_host_header_names_the_host_as_the_peer_knows_it(text: str, value: bytes) -> None:
    assert host_header(URL(text)) == value


def test_the_authority_always_has_a_port() -> None:
    assert authority(b"example.com", 443) == b"example.com:443"
    assert authority(b"fe80::1%lo", 80) == b"[fe80::1]:80"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://example.com/", "example.com"),
        ("https://example.com./", "example.com"),
        ("https://[fe80::1%25lo]/", "fe80::1"),
        ("https://127.0.0.1/", "127.0.0.1"),
        ("https://münchen.de/", "xn--mnchen-3ya.de"),
    ],
)
def test_the_certificate_bears_the_bare_name(text: str, name: str) -> None:
    assert server_name(URL(text).host) == name


# --- hypothesis

hosts = st.from_regex(r"[a-z0-9]([a-z0-9\-]{0,20}[a-z0-9])?(\.[a-z0-9]{1,10}){0,3}", fullmatch=True)
targets = st.text(string.ascii_letters + string.digits + "/;:@!$&'()*+,=-._~%", max_size=30).map("/".__add__)
queries = st.none() | st.text(string.ascii_letters + "=&/?", max_size=20)


@given(
    scheme=st.sampled_from(["http", "https", "ws", "wss"]),
    host=hosts,
    port=st.none() | st.integers(1, 65535),
    target=targets,
    query=queries,
)
def test_what_was_put_together_is_taken_apart_again(
    scheme: str, host: str, port: int | None, target: str, query: str | None
) -> None:
    whole = target if query is None else f"{target}?{query}"
    place = host if port is None else f"{host}:{port}"
    url = URL(f"{scheme}://{place}{whole}#ignored")
    parts = URL(scheme=scheme, host=host, port=port, target=whole)
    assert url == parts
    assert URL(bytes(url)) == url


@given(st.text())
@example("http://[")
@example("http://\ud800")
def test_any_text_is_parsed_or_refused(text: str) -> None:
    check_anything(text)
    check_anything("http://" + text)
    check_anything("http://h/" + text)
    check_anything("http://[" + text + "]")


@given(st.text("aü.:/?#@[]%\\1 \u3002\uff0e\xad", max_size=40))
def test_any_mixture_of_delimiters_is_parsed_or_refused(text: str) -> None:
    check_anything("http://" + text)


@given(st.binary())
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    check_anything(data)
    check_anything(b"http://" + data)


def check_anything(text: str | bytes) -> None:
    try:
        url = URL(text)
    except InvalidURL:
        return
    whole = bytes(url)
    assert whole.isascii()
    assert not set(whole) & {*range(0x21), 0x7F}
    assert not set(url.host) & set(b"/?#@[]\\ ")
    assert url.port is None or 1 <= url.port <= 65535
    if url.scheme and url.host:
        assert URL(whole) == url


@pytest.mark.parametrize(
    "text", ["http://" + "a" * 50_000 + " ", "//" + "a" * 50_000 + "\n", "a" * 50_000 + "\x7f"]
)
def test_a_long_url_is_refused_as_fast_as_it_is_read(text: str) -> None:
    """Where the parts gave back what they had taken this took a minute."""
    with pytest.raises(InvalidURL, match="contains"):
        URL(text)
