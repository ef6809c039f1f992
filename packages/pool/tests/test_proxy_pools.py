"""The pools that are proxies by name: what their own parameters become. How requests go, `test_proxies.py` shows."""

from __future__ import annotations

from typing import Any

import pytest

from lamina_interfaces import ArgumentTypeError, InvalidURL, UnsupportedProtocol
from lamina_pool import URL, AsyncHTTPProxy, AsyncSOCKSProxy, HTTPProxy, Proxy, SOCKSProxy
from lamina_pool._proxies import read_proxy

KINDS = [
    (HTTPProxy, "http"),
    (AsyncHTTPProxy, "http"),
    (SOCKSProxy, "socks5"),
    (AsyncSOCKSProxy, "socks5h"),
]


@pytest.mark.parametrize(("kind", "scheme"), KINDS)
@pytest.mark.parametrize("as_given", [str, str.encode, URL])
@pytest.mark.parametrize("auth", [None, ("another", "one")])
def test_it_is_the_pool_with_that_proxy(kind: Any, scheme: str, as_given: Any, auth: Any) -> None:
    url = as_given(f"{scheme}://us%40er:p%3Aw@proxy.test:1080")
    in_url = None if as_given is URL else ("us@er", "p:w")
    place = f"{scheme}://proxy.test:1080"
    assert kind(url, auth)._pool._options.proxy == read_proxy(Proxy(place, auth=auth or in_url))


@pytest.mark.parametrize(("kind", "scheme"), KINDS)
def test_what_is_wrong_with_the_url_is_said_without_the_password_E04(kind: Any, scheme: str) -> None:
    for url in (f"{scheme}://user:sec/ret@proxy.test", f"{scheme}://user:secret@proxy.test:99999"):
        with pytest.raises(InvalidURL) as caught:
            kind(url)
        assert "sec" not in str(caught.value)
    with pytest.raises(
        UnsupportedProtocol, match=r"^proxy_url must have the scheme .*, not 'ftp'"
    ) as refused:
        kind("ftp://user:secret@proxy.test")
    assert "secret" not in str(refused.value)
    with pytest.raises(ArgumentTypeError, match=r"^proxy_url must be a URL, bytes, or str, but got int"):
        kind(1)
