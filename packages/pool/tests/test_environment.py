"""Proxies as the environment names them: which variable counts, which hosts are left out, and what is never shown."""

from __future__ import annotations

import os
import traceback
import urllib.request
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import (
    ArgumentTypeError,
    InvalidURL,
    LaminaError,
    LocalProtocolError,
    UnsupportedProtocol,
)
from lamina_pool import URL, Proxy, ProxyEnvironment

if TYPE_CHECKING:
    from collections.abc import Mapping

bypass: Any = urllib.request.proxy_bypass_environment  # type: ignore[attr-defined] # it is there, undocumented

P = "http://proxy.example:3128"


def place_of(environ: Mapping[str, str], url: URL | bytes | str) -> str | None:
    """The proxy for a URL as text."""
    proxy = ProxyEnvironment(environ).proxy_for(url)
    return None if proxy is None else bytes(proxy.url.with_target(b"")).decode("ascii")


# --- which variable ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "url", "place"),
    [
        ({}, "http://host.example/", None),
        ({"http_proxy": P}, "http://host.example/", P),
        ({"http_proxy": P}, "https://host.example/", None),
        ({"http_proxy": P}, "ws://host.example/", P),
        ({"https_proxy": P}, "https://host.example/", P),
        ({"https_proxy": P}, "wss://host.example/", P),
        ({"https_proxy": P}, "http://host.example/", None),
        ({"all_proxy": P}, "http://host.example/", P),
        ({"all_proxy": P}, "wss://host.example/", P),
        ({"all_proxy": "http://other.example", "https_proxy": P}, "https://host.example/", P),
        ({"HTTP_PROXY": P}, "http://host.example/", P),
        ({"HTTPS_PROXY": P}, "https://host.example/", P),
        ({"ALL_PROXY": P}, "https://host.example/", P),
        ({"http_proxy": P, "HTTP_PROXY": "http://other.example"}, "http://host.example/", P),
        ({"all_proxy": "http://other.example", "HTTP_PROXY": P}, "http://host.example/", P),
        ({"http_proxy": "", "HTTP_PROXY": P}, "http://host.example/", None),
        ({"http_proxy": "  ", "all_proxy": P}, "http://host.example/", P),
        ({"http_proxy": f"  {P}\n"}, "http://host.example/", P),
        ({"Http_Proxy": P}, "http://host.example/", None),
        ({"ftp_proxy": P, "proxy": P}, "http://host.example/", None),
        ({"HTTP_PROXY": P, "REQUEST_METHOD": "GET"}, "http://host.example/", None),
        ({"http_proxy": P, "REQUEST_METHOD": "GET"}, "http://host.example/", P),
        ({"HTTPS_PROXY": P, "REQUEST_METHOD": "GET"}, "https://host.example/", P),
        ({"HTTP_PROXY": P, "ALL_PROXY": "http://other.example", "REQUEST_METHOD": ""}, "http://host.example/",
         "http://other.example"),
    ],
)  # fmt: skip
def test_which_variable_counts(environ: dict[str, str], url: str, place: str | None) -> None:
    assert place_of(environ, url) == place


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ("http://proxy.example:3128", "http://proxy.example:3128"),
        ("proxy.example:3128", "http://proxy.example:3128"),
        ("proxy.example", "http://proxy.example"),
        ("127.0.0.1:3128", "http://127.0.0.1:3128"),
        ("[::1]:3128", "http://[::1]:3128"),
        ("user:secret@proxy.example:3128", "http://proxy.example:3128"),
        ("https://proxy.example/", "https://proxy.example"),
        ("HTTP://Proxy.Example:3128/ignored", "http://proxy.example:3128"),
        ("socks5://proxy.example", "socks5://proxy.example"),
        ("socks5h://user:secret@proxy.example:1081", "socks5h://proxy.example:1081"),
    ],
)
def test_what_a_value_means(value: str, place: str) -> None:
    pytest.importorskip("socksio")
    assert place_of({"all_proxy": value}, "http://host.example/") == place


@pytest.mark.parametrize(
    ("value", "auth"),
    [
        ("http://proxy.example", None),
        ("http://@proxy.example", None),
        ("http://user:secret@proxy.example", (b"user", b"secret")),
        ("user:secret@proxy.example", (b"user", b"secret")),
        ("http://user@proxy.example", (b"user", b"")),
        ("http://:secret@proxy.example", (b"", b"secret")),
        ("http://user:a:b@proxy.example", (b"user", b"a:b")),
        ("http://us%40er:p%3A%2f%25@proxy.example", (b"us@er", b"p:/%")),
        ("http://user:100%@proxy.example", (b"user", b"100%")),
        ("http://user:%zz%C3%BC@proxy.example", (b"user", "%zzü".encode())),
        ("http://user:ü@proxy.example", (b"user", "ü".encode())),
        (b"http://user:\xfc@proxy.example".decode("utf-8", "surrogateescape"), (b"user", b"\xfc")),
    ],
)
def test_credentials_are_carried_over(value: str, auth: tuple[bytes, bytes] | None) -> None:
    proxy = ProxyEnvironment({"all_proxy": value}).proxy_for("http://host.example/")
    assert proxy is not None
    assert proxy.auth == auth
    assert bool(proxy.headers) == (auth is not None)


def test_equal_values_are_one_proxy() -> None:
    """So that a program finds its pool by it."""
    environment = ProxyEnvironment({"http_proxy": P, "https_proxy": P, "all_proxy": "http://other.example"})
    first = environment.proxy_for("http://host.example/")
    assert first is environment.proxy_for(URL("https://host.example/"))
    assert first is environment.proxy_for(b"http://www.host.example/")


def test_it_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name == "REQUEST_METHOD":
            monkeypatch.delenv(name)
    monkeypatch.setenv("http_proxy", P)
    environment = ProxyEnvironment()
    monkeypatch.setenv("http_proxy", "http://other.example")
    proxy = environment.proxy_for("http://host.example/")
    assert proxy is not None
    assert proxy.url == URL(P)


def test_where_names_have_no_case_none_counts_in_a_cgi_program() -> None:
    """As on Windows, whose `os.environ` has upper-case names and finds them by any."""

    class Caseless(dict[str, str]):
        def __getitem__(self, name: str) -> str:
            return super().__getitem__(name.upper())

        def __contains__(self, name: object) -> bool:
            return super().__contains__(str(name).upper())

        def get(self, name: str, default: Any = None) -> Any:
            return super().get(name.upper(), default)

    assert place_of(Caseless(HTTP_PROXY=P), "http://host.example/") == P
    assert place_of(Caseless(HTTP_PROXY=P, REQUEST_METHOD="GET"), "http://host.example/") is None


# --- which hosts are left out ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("no_proxy", "bypassed", "proxied"),
    [
        ("", [], ["http://host.example"]),
        ("*", ["http://host.example", "http://127.0.0.1", "http://[::1]:8080"], []),
        ("other.example, *", ["http://host.example"], []),
        (
            "host.example",
            ["http://host.example", "https://host.example:8443", "http://www.host.example", "ws://a.b.host.example"],
            ["http://ghost.example", "http://host.example.org", "http://example", "http://host.exampl"],
        ),
        (".host.example", ["http://host.example", "http://www.host.example"], ["http://ghost.example"]),
        ("*.host.example", ["http://host.example", "http://www.host.example"], ["http://ghost.example"]),
        ("HOST.Example", ["http://host.example"], []),
        ("host.example.", ["http://host.example", "http://host.example.", "http://www.host.example"], []),
        ("host.example", ["http://host.example."], []),
        ("a.example,b.example", ["http://a.example", "http://b.example"], ["http://c.example"]),
        (" a.example ,, b.example,", ["http://a.example", "http://b.example"], ["http://c.example"]),
        ("a.example b.example\tc.example", ["http://a.example", "http://b.example", "http://c.example"], []),
        (
            "host.example:8080",
            ["http://host.example:8080", "http://www.host.example:8080"],
            ["http://host.example", "http://host.example:8081"],
        ),
        ("host.example:80", ["http://host.example", "ws://host.example"], ["https://host.example"]),
        ("host.example:443", ["https://host.example", "wss://host.example:443"], ["http://host.example"]),
        ("localhost", ["http://localhost:8080", "http://app.localhost"], ["http://127.0.0.1", "http://[::1]"]),
        ("127.0.0.1", ["http://127.0.0.1", "http://127.0.0.1:8080"], ["http://127.0.0.2", "http://localhost"]),
        ("127.0.0.1:8080", ["http://127.0.0.1:8080"], ["http://127.0.0.1"]),
        ("10.0.0.0/8", ["http://10.0.0.0", "http://10.255.255.255"], ["http://11.0.0.0", "http://[::1]"]),
        ("10.1.2.3/8", ["http://10.255.0.1"], ["http://11.0.0.0"]),
        ("10.0.0.0/255.0.0.0", ["http://10.1.2.3"], ["http://11.0.0.0"]),
        ("0.0.0.0/0", ["http://192.0.2.1"], ["http://[::1]", "http://host.example"]),
        ("::1", ["http://[::1]", "http://[::1]:8080", "http://[0:0:0:0:0:0:0:1]"], ["http://[::2]", "http://0.0.0.1"]),
        ("[::1]", ["http://[::1]", "http://[::1]:8080"], ["http://[::2]"]),
        ("[::1]:8080", ["http://[::1]:8080"], ["http://[::1]", "http://[::1]:8081"]),
        ("2001:db8::/32", ["http://[2001:db8:1::1]"], ["http://[2001:db9::1]"]),
        ("2001:DB8::1", ["http://[2001:db8::1]"], []),
        ("fe80::/10", ["http://[fe80::1%25eth0]"], []),
        ("fe80::1%eth0", ["http://[fe80::1]", "http://[fe80::1%25eth1]"], []),
        (".0.0.1", [], ["http://127.0.0.1"]),
        ("1", ["http://host.1"], ["http://127.0.0.1"]),
        ("bücher.example", ["http://xn--bcher-kva.example", "http://www.bücher.example"], ["http://bcher.example"]),
        ("xn--bcher-kva.example", ["http://bücher.example"], []),
        ("my_host", ["http://my_host"], []),
        # What can mean no host is left aside, and takes nothing else with it.
        (
            "<local>, ., *:80, :80, host.example:port, [::1, ::1]:80, 10.0.0.0/99, a..b, http://c.example/, ok.example",
            ["http://ok.example"],
            ["http://host.example", "http://[::1]", "http://10.0.0.1", "http://b.example"],
        ),
        (f"{'a' * 300},ok.example", ["http://ok.example"], ["http://host.example"]),
    ],
)  # fmt: skip
def test_which_hosts_are_left_out(no_proxy: str, bypassed: list[str], proxied: list[str]) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        environment = ProxyEnvironment({"all_proxy": P, name: no_proxy})
        assert [url for url in bypassed if environment.proxy_for(url) is not None] == []
        assert [url for url in proxied if environment.proxy_for(url) is None] == []


@pytest.mark.parametrize(
    ("environ", "is_bypassed"),
    [
        ({"no_proxy": "host.example", "NO_PROXY": "other.example"}, True),
        ({"no_proxy": "other.example", "NO_PROXY": "host.example"}, False),
        ({"no_proxy": "", "NO_PROXY": "*"}, False),
    ],
)
def test_the_lower_case_exceptions_go_first(environ: dict[str, str], is_bypassed: bool) -> None:
    assert (place_of({"all_proxy": P, **environ}, "http://host.example") is None) == is_bypassed


labels = st.sampled_from(["a", "b", "ab", "example", "org", "x-y", "EXAMPLE", "A"])
names = st.lists(labels, min_size=1, max_size=4).map(".".join)
entries = st.one_of(names, names.map(".{}".format), st.sampled_from(["", " "]))
ports = st.sampled_from(["", ":80", ":8080"])
values = st.sampled_from(["", P, "http://other.example:1"])


@given(
    st.dictionaries(
        st.sampled_from(["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "REQUEST_METHOD"]), values
    ),
    st.one_of(st.none(), st.just("*"), st.lists(entries, max_size=4).map(",".join)),
    st.sampled_from(["no_proxy", "NO_PROXY"]),
    names,
    ports,
    st.sampled_from(["http", "https"]),
)
def test_it_agrees_with_the_standard_library_where_that_has_a_rule(
    environ: dict[str, str], no_proxy: str | None, name: str, host: str, port: str, scheme: str
) -> None:
    """Names and suffixes, upper and lower case, CGI. It has none for ports in entries, and addresses."""
    if no_proxy is not None:
        environ = {**environ, name: no_proxy}
    with mock.patch.dict(os.environ, environ, clear=True):
        proxies = urllib.request.getproxies_environment()
        theirs = proxies.get(scheme)
        if bypass(host + port, proxies):
            theirs = None
    assert place_of(environ, f"{scheme}://{host}{port}/") == theirs


@given(st.text(max_size=40), st.sampled_from(["http://host.example", "http://10.0.0.1", "http://[::1]:80"]))
def test_no_exceptions_break_it(no_proxy: str, url: str) -> None:
    assert place_of({"all_proxy": P, "no_proxy": no_proxy}, url) in (P, None)


# --- what makes no sense, and what is never shown ----------------------------------------------------------

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (f"http://user:{SECRET}/x@proxy.example", InvalidURL),
        (f"http://user:12/{SECRET}@proxy.example", InvalidURL),
        (f"http://user:12#{SECRET}@proxy.example", InvalidURL),
        (f"http://user:12?{SECRET}@proxy.example", InvalidURL),
        (f"http://user@x:{SECRET}@proxy.example", InvalidURL),
        (f"http://user:{SECRET}@proxy.example:port", InvalidURL),
        (f"http://user:{SECRET}@", InvalidURL),
        (f"http:/user:{SECRET}@proxy.example", InvalidURL),
        (f"http://user:{SECRET} @proxy.example", InvalidURL),
        (f"http://user\\:{SECRET}@proxy.example", InvalidURL),
        # The host was forgotten.
        (f"http://user:{SECRET}", InvalidURL),
        (f"user:{SECRET}", InvalidURL),
        (f"http://[{SECRET}]", InvalidURL),
        (f"http://{SECRET}!^", InvalidURL),
        ("http://", InvalidURL),
        ("http://proxy.example:0", InvalidURL),
        ("http://a..b", InvalidURL),
        (f"socks://user:{SECRET}@proxy.example", UnsupportedProtocol),
        (f"socks4://user:{SECRET}@proxy.example", UnsupportedProtocol),
        (f"ftp://user:{SECRET}@proxy.example", UnsupportedProtocol),
        (f"socks5://{SECRET}@proxy.example", LocalProtocolError),
        (f"socks5://:{SECRET}@proxy.example", LocalProtocolError),
        (f"socks5h://user:{SECRET * 40}@proxy.example", LocalProtocolError),
    ],
)
def test_a_bad_value_is_an_error_of_ours_that_shows_no_credentials(
    value: str, error: type[LaminaError]
) -> None:
    pytest.importorskip("socksio")
    environment = ProxyEnvironment({"ALL_PROXY": value, "http_proxy": P})
    environment.proxy_for("http://host.example/")  # which has a good one
    with pytest.raises(error, match="the environment variable ALL_PROXY: ") as caught:
        environment.proxy_for("https://host.example/")
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET not in shown
    assert isinstance(caught.value, ValueError)


def test_a_bad_value_does_not_matter_where_no_proxy_is_used() -> None:
    assert place_of({"all_proxy": "socks://x", "no_proxy": "host.example"}, "http://host.example/") is None


def test_its_repr_names_the_variables_and_no_value() -> None:
    environment = ProxyEnvironment({"HTTPS_PROXY": f"http://u:{SECRET}@h", "no_proxy": "x", "http_proxy": ""})
    assert repr(environment) == "<ProxyEnvironment [http_proxy, HTTPS_PROXY, no_proxy]>"
    assert repr(ProxyEnvironment({})) == "<ProxyEnvironment [nothing set]>"


@pytest.mark.parametrize("environ", [["http_proxy"], "http_proxy=x", 5])
def test_an_environment_that_is_none(environ: Any) -> None:
    with pytest.raises(ArgumentTypeError, match="environ must be a mapping"):
        ProxyEnvironment(environ)


@pytest.mark.parametrize(
    ("url", "error"), [(5, ArgumentTypeError), ("http://", InvalidURL), ("http://a b", InvalidURL)]
)
def test_a_url_that_is_none(url: Any, error: type[LaminaError]) -> None:
    with pytest.raises(error):
        ProxyEnvironment({"all_proxy": P}).proxy_for(url)


# --- a proxy's own URL -------------------------------------------------------------------------------------


def test_a_proxy_takes_the_credentials_of_its_url() -> None:
    for url in ("http://user:p%40ss@proxy.example", b"http://user:p%40ss@proxy.example"):
        proxy = Proxy(url)
        assert proxy.auth == (b"user", b"p@ss")
        assert proxy.headers == Proxy("http://proxy.example", auth=("user", "p@ss")).headers
        assert proxy.url == URL("http://proxy.example")


def test_credentials_that_are_given_go_before_those_of_the_url() -> None:
    proxy = Proxy("http://user:old@proxy.example", auth=("user", "new"))
    assert proxy.auth == (b"user", b"new")
    assert len(proxy.headers) == 1


@pytest.mark.parametrize(
    "url", [f"http://user:{SECRET}", f"http://user:{SECRET}".encode(), f"http://[{SECRET}]"]
)
def test_an_error_shows_nothing_of_a_url_that_may_have_credentials(url: str | bytes) -> None:
    """What stands in the place of a port may be a password whose host was forgotten."""
    with pytest.raises(InvalidURL) as caught:
        Proxy(url)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
