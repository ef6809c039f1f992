"""Redirects in `lamina.sync` and `lamina.aio`: which request comes next, and what is held while it does."""

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialect_worlds import World
from lamina import sync
from lamina._demo_server import ROUTES, DemoServer, Peer, Received
from lamina._dialect_redirects import join, redirected
from lamina.sync import RedirectError, Request, Response

BASE = "http://a.test/dir/page?q=1"


def follow(request: Request, status: int, location: str | bytes = "/next") -> Request | None:
    return redirected(request, Response(status, headers=[("Location", location)]))


# --- the method and the body -------------------------------------------------------------------------------

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "Custom")
BECOME_GET = {
    301: {"POST"},
    302: {"POST"},
    303: {"POST", "PUT", "PATCH", "DELETE", "OPTIONS", "Custom"},
    307: set(),
    308: set(),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("status", BECOME_GET)
def test_the_method_that_follows(status: int, method: str) -> None:
    """RFC 9110, sections 15.4.2 to 15.4.9."""
    request = Request(method, BASE, headers={"Content-Type": "text/plain", "X-One": "1"}, content=b"body")
    following = follow(request, status)
    assert following is not None
    if method in BECOME_GET[status]:
        assert (following.method, following.content) == ("GET", b"")
        assert following.headers == {"Host": "a.test", "X-One": "1"}
    else:
        assert (following.method, following.content) == (method, b"body")
        assert following.headers == request.headers


@pytest.mark.parametrize("status", [200, 201, 204, 300, 304, 305, 306, 309, 400])
def test_what_is_no_redirect(status: int) -> None:
    assert follow(Request("GET", BASE), status) is None


def test_a_redirect_without_a_location_is_an_answer() -> None:
    assert redirected(Request("GET", BASE), Response(302)) is None


@pytest.mark.parametrize(
    "name", ["Content-Encoding", "content-language", "Expect", "Trailer", "Digest", "Repr-Digest"]
)
def test_what_describes_a_body_goes_with_it(name: str) -> None:
    request = Request("POST", BASE, headers={name: "x"}, content=[b"a"])
    following = follow(request, 303)
    assert following is not None
    assert following.headers == {"Host": "a.test"}


def test_a_list_is_sent_again() -> None:
    request = Request("POST", BASE, content=[b"a", b"b"])
    following = follow(request, 307)
    assert following is not None
    assert following.stream is request.stream
    assert following.headers == {"Host": "a.test", "Transfer-Encoding": "chunked"}


def test_no_body_and_an_empty_one_stay_what_they_are() -> None:
    without = follow(Request("DELETE", BASE), 307)
    empty = follow(Request("PUT", BASE, content=b""), 307)
    assert without is not None
    assert "content-length" not in without.headers
    assert empty is not None
    assert empty.headers["content-length"] == "0"


def test_a_body_that_was_read_is_not_sent_again() -> None:
    request = Request("POST", BASE, content=iter([b"a"]))
    with pytest.raises(RedirectError, match="only once") as caught:
        follow(request, 307)
    assert caught.value.origin == "http://a.test:80"
    following = follow(request, 303)
    assert following is not None
    assert following.method == "GET"


# --- where to ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("http://b.test/x", "http://b.test/x"),
        ("https://b.test:8443", "https://b.test:8443/"),
        ("//b.test/x", "http://b.test/x"),
        ("/x", "http://a.test/x"),
        ("x", "http://a.test/dir/x"),
        ("../x", "http://a.test/x"),
        ("./x/../y", "http://a.test/dir/y"),
        ("?q=2", "http://a.test/dir/page?q=2"),
        ("", "http://a.test/dir/page?q=1"),
        ("#top", "http://a.test/dir/page?q=1#top"),
        ("/x#new", "http://a.test/x#new"),
        (b"/caf\xc3\xa9 x", "http://a.test/caf%C3%A9%20x"),
        (b"/\xe9", "http://a.test/%E9"),
        ("\\\\b.test\\x", "http://a.test/dir/\\\\b.test\\x"),
        ("/\\b.test", "http://a.test/\\b.test"),
        ("\tjavascript:x", "http://a.test/dir/%09javascript:x"),
        ("HTTP://B.Test/", "http://b.test/"),
        ("http://user:secret@b.test/", "http://b.test/"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
    ],
)
def test_the_location_is_resolved(location: str | bytes, url: str) -> None:
    """RFC 3986, section 5."""
    following = follow(Request("GET", BASE), 302, location)
    assert following is not None
    assert following.url == url


@pytest.mark.parametrize(("location", "url"), [("/x", "http://a.test/x#part"), ("/x#y", "http://a.test/x#y")])
def test_a_fragment_is_inherited(location: str, url: str) -> None:
    """RFC 9110, section 10.2.2."""
    following = follow(Request("GET", BASE + "#part"), 302, location)
    assert following is not None
    assert following.url == url


@pytest.mark.parametrize(
    "location",
    [
        "ftp://b.test/",
        "javascript:alert(1)",
        "mailto:a@b.test",
        "ws://b.test/",
        "https:///x",
        "http://b.test:99999/",
        "http://b.test:x/",
        "http://[::1/",
        "http://[nonsense]/",
        "http://a b.test/",
        "http://b.test\\@c.test/",
        "http://x@y@b.test/",
        b"http://b\xff.test/",
    ],
)
def test_where_nobody_can_go(location: str | bytes) -> None:
    with pytest.raises(RedirectError, match="nobody can go") as caught:
        follow(Request("GET", BASE), 302, location)
    assert caught.value.origin == "http://a.test:80"
    assert isinstance(caught.value, sync.LaminaError)
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), RedirectError)


def test_two_locations_are_one_too_many() -> None:
    request = Request("GET", BASE)
    with pytest.raises(RedirectError, match="several places"):
        redirected(request, Response(302, headers=[("Location", "/a"), ("Location", "/b")]))
    following = redirected(request, Response(302, headers=[("Location", "/a"), ("location", "/a")]))
    assert following is not None
    assert following.url == "http://a.test/a"


@given(st.binary(max_size=30))
def test_any_location_gives_a_url_or_our_error(location: bytes) -> None:
    try:
        url = join(BASE, location.decode("latin-1"))
    except RedirectError:
        return
    Request("GET", url)


# --- credentials -------------------------------------------------------------------------------------------

CREDENTIALS = {"Authorization": "Basic eA==", "Cookie": "id=1", "Proxy-Authorization": "Basic eQ=="}


@pytest.mark.parametrize(
    ("start", "location", "same"),
    [
        ("https://a.test/", "/x", True),
        ("https://a.test/", "https://a.test:443/x", True),
        ("https://a.test/", "https://A.TEST/x", True),
        ("https://a.test/", "https://b.test/x", False),
        ("https://a.test/", "https://sub.a.test/x", False),
        ("https://a.test/", "https://a.test:8443/x", False),
        ("https://a.test/", "http://a.test/x", False),
        ("http://a.test/", "https://a.test/x", False),
        ("https://a.test/", "//b.test/x", False),
    ],
)
def test_credentials_stay_with_their_origin(start: str, location: str, same: bool) -> None:
    request = Request("GET", start, headers={**CREDENTIALS, "Host": "virtual.test", "X-One": "1"})
    following = follow(request, 302, location)
    assert following is not None
    assert following.headers["x-one"] == "1"
    if same:
        assert following.headers == request.headers
    else:
        assert set(following.headers) == {"Host", "X-One"}
        assert following.headers["host"] == following.url.split("/")[2]


def test_credentials_do_not_come_back() -> None:
    away = follow(Request("GET", "http://a.test/", headers=CREDENTIALS), 302, "http://b.test/")
    assert away is not None
    back = follow(away, 302, "http://a.test/")
    assert back is not None
    assert set(back.headers) == {"Host"}


# --- the loop ----------------------------------------------------------------------------------------------


def test_a_client_follows(world: World) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        answers = {
            "http://a.test/1": httpx.Response(302, headers={"Location": "/2"}, content=world.body(b"moved")),
            "http://a.test/2": httpx.Response(301, headers={"Location": "https://b.test/3#end"}),
            "https://b.test/3#end": httpx.Response(200, content=b"here"),
        }
        transport = world.transport(lambda request: answers[request.url])
        async with world.within(httpx.Client(transport=transport, headers={"Cookie": "id=1"})) as client:
            response = await world.do(client.get("http://a.test/1"))
        assert response.content == b"here"
        assert response.url == "https://b.test/3#end"
        assert [each.status_code for each in response.history] == [302, 301]
        assert [each.url for each in response.history] == ["http://a.test/1", "http://a.test/2"]
        assert ["cookie" in request.headers for request in transport.requests] == [True, True, False]
        assert all(each._is_closed for each in response.history)


def test_a_client_that_does_not_follow_gives_the_redirect(world: World) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        transport = world.transport(lambda request: httpx.Response(302, headers={"Location": "/"}))
        client = httpx.Client(transport=transport, follow_redirects=False)
        response = await world.do(client.get("http://a.test/"))
        assert (response.status_code, response.url, response.history) == (302, "http://a.test/", ())


@pytest.mark.parametrize("most", [0, 3, None])
def test_a_loop_ends_with_an_error(world: World, most: int | None) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        made = []

        def answer(request: Any) -> Any:
            made.append(httpx.Response(302, headers={"Location": "/again"}, content=world.body(b"x")))
            return made[-1]

        transport = world.transport(answer)
        options = {} if most is None else {"max_redirects": most}
        client = httpx.Client(transport=transport, **options)
        limit = 20 if most is None else most
        with pytest.raises(httpx.RedirectError, match=f"after {limit} redirects") as caught:
            await world.do(client.get("http://a.test/"))
        assert caught.value.origin == "http://a.test:80"
        assert len(transport.requests) == limit + 1
        assert all(each._is_closed for each in made)


def test_a_redirect_that_cannot_be_followed_holds_nothing(world: World) -> None:
    @world.run
    async def _() -> None:
        httpx = world.httpx
        answer = httpx.Response(307, headers={"Location": "gopher://x"}, content=world.body(b"x"))
        client = httpx.Client(transport=world.transport(lambda request: answer))
        with pytest.raises(httpx.RedirectError):
            await world.do(client.get("http://a.test/"))
        assert answer._is_closed


def redirect(peer: Peer, request: Received, rest: str) -> bool:
    """`/go/302/number/5` leads to `/number/5`, with a body that has to be got rid of."""
    status, _, target = rest.partition("/")
    for _piece in peer.body(request):
        pass
    if request.target.endswith("?chunked"):
        head = f"HTTP/1.1 {status} Moved\r\nLocation: /{target}\r\nTransfer-Encoding: chunked\r\n\r\n"
        peer.send(head.encode(), b"400\r\n", bytes(1024), b"\r\n0\r\n\r\n")
    else:
        peer.answer(f"{status} Moved", bytes(10_000), f"Location: /{target}")
    return True


@pytest.mark.parametrize("query", ["", "?chunked"])
def test_redirects_share_one_connection(
    world: World, server: DemoServer, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ROUTES, "go", redirect)

    @world.run
    async def _() -> None:
        async with world.within(world.httpx.Client()) as client:
            response = await world.do(client.get(server.url(f"/go/302/go/307/number/5{query}")))
            assert response.content == b"5"
            assert len(response.history) == 2
            response = await world.do(client.post(server.url("/go/307/echo"), content=b"again"))
            assert response.content.startswith(b"POST /echo\n")
            async with world.within(client.stream(server.url("/go/303/chunked/2"))) as response:
                assert sum(map(len, await world.pieces(response.stream))) == 128 * 1024

    assert server.connections == 1
