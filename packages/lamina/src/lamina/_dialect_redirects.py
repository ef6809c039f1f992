"""Redirects, for `lamina.sync` and `lamina.aio`: which request comes next, and the loop, written once.

Which request comes next is decided without waiting, by `redirected`. `send_following` is `async def` text over a
`Hop`, which sends and closes; in blocking code it is driven, and never suspends.

RFC 9110, section 15.4, says what may follow from which status, and the Fetch standard (section 4.4, HTTP-redirect
fetch) what clients really do where the RFC leaves a choice:

| status | POST becomes | other methods | body |
|---|---|---|---|
| 301, 302 | GET | stay | goes with POST, else is sent again |
| 303 | GET | GET, but HEAD stays | goes, unless the method stays |
| 307, 308 | POST | stay | is sent again |

Another origin (scheme, host or port; so https to http, too) gets no credentials. They do not come back if a later
redirect leads to the first origin: whoever stands in between could have chosen what is asked for there.
"""

from __future__ import annotations

import re
from typing import Protocol, TypeVar

from lamina_interfaces import ArgumentTypeError, ArgumentValueError, InvalidURL, LaminaError
from lamina_pool import URL, ByteStream

from ._dialect_models import Request, ResponseBase

MAX_REDIRECTS = 20
"""Redirects in a row that a client follows: as many as browsers do (Fetch standard, section 4.4)."""

_FOLLOWED = frozenset({301, 302, 303, 307, 308})
_CREDENTIALS = ("Authorization", "Cookie", "Host", "Proxy-Authorization")
# What describes or announces a body that is not sent any more.
_OF_BODY = re.compile("content-.*|(repr-)?digest|expect|trailer|transfer-encoding", re.IGNORECASE).fullmatch
_not_plain = re.compile(rb"[^!-~]")

R = TypeVar("R", bound=ResponseBase)


class RedirectError(LaminaError):
    """A redirect cannot be followed: there were too many, its target makes no sense, or the body is used up."""

    default_message = "the redirect cannot be followed"


def redirected(request: Request, response: ResponseBase) -> Request | None:
    """The request that follows from a response, or `None` if it is no redirect.

    Raises:
        RedirectError: it is one, but cannot be followed.
    """
    locations = response.headers.get_list("location")
    if response.status_code not in _FOLLOWED or not locations:
        return None
    if len(set(locations)) > 1:
        raise RedirectError("the server redirects to several places at once", origin=_origin(request.url))
    url = join(request.url, locations[0])
    headers = request.headers
    if _origin(url) != _origin(request.url):
        headers = headers.copy_remove(*_CREDENTIALS)
    if _becomes_get(response.status_code, request.method):
        return Request("GET", url, headers=headers.copy_remove(*filter(_OF_BODY, headers)))
    stream = request.stream
    if isinstance(stream, ByteStream):
        # An empty one without a header that speaks of it is no body at all.
        has_body = bool(stream.content) or "content-length" in headers or "transfer-encoding" in headers
        return Request(request.method, url, headers=headers, content=stream.content if has_body else None)
    if isinstance(stream, (list, tuple)):
        return Request(request.method, url, headers=headers, content=stream)
    raise RedirectError(
        "the server redirects a request whose body can be read only once", origin=_origin(request.url)
    )


def _becomes_get(status_code: int, method: str) -> bool:
    if status_code == 303:
        return method not in ("GET", "HEAD")
    return status_code in (301, 302) and method == "POST"


def join(base: str, reference: str) -> str:
    """Resolve a reference against a URL (RFC 3986, section 5), and check what comes of it.

    Raises:
        RedirectError: nothing usable comes of it.
    """
    from urllib.parse import urljoin  # 4 ms that only a redirect has to pay

    # What is not plain ASCII should have been percent-encoded. Servers forget it, and browsers make up for it.
    plain = _not_plain.sub(lambda byte: b"%%%02X" % ord(byte[0]), reference.encode("latin-1")).decode("ascii")
    try:
        url = urljoin(base.partition("#")[0], plain)
        if URL(url).scheme not in (b"http", b"https"):
            raise InvalidURL("it is neither http nor https")
    except ValueError as error:
        reason = getattr(error, "message", "it is no URL")
        raise RedirectError(
            f"the server redirects to where nobody can go: {reason}", origin=_origin(base)
        ) from error
    # RFC 9110, section 10.2.2: the fragment is inherited.
    _, mark, fragment = base.partition("#")
    return url if "#" in url else url + mark + fragment


def _origin(url: str) -> str:
    return str(URL(url).origin)


class Hop(Protocol[R]):
    """What differs between blocking and async code when redirects are followed."""

    async def send(self, request: Request) -> R:
        """Send one request; the response's body is unread."""
        ...

    async def close(self, response: R) -> None:
        """Let go of a response."""
        ...


async def send_following(hop: Hop[R], request: Request, max_redirects: int | None) -> R:
    """Send a request, and follow redirects from it; none at all if there is no maximum.

    Raises:
        RedirectError: a redirect cannot be followed; nothing is held.
    """
    history: list[R] = []
    while True:
        response = await hop.send(request)
        if response.request is None:
            response.request = request
        try:
            following = None if max_redirects is None else redirected(request, response)
            if following is not None and max_redirects is not None and len(history) >= max_redirects:
                raise RedirectError(
                    f"gave up after {max_redirects} redirects in a row", origin=_origin(request.url)
                )
        except BaseException:
            await hop.close(response)
            raise
        if following is None:
            response.history = tuple(history)
            return response
        # Closing reads a small rest of the body, so that the connection can carry the next request.
        await hop.close(response)
        history.append(response)
        request = following


def most_redirects(number: int, *, follow: bool) -> int | None:
    """What `send_following` needs to know.

    Raises:
        ArgumentTypeError: it is no whole number.
        ArgumentValueError: it is below 0.
    """
    if isinstance(number, bool) or not isinstance(number, int):
        raise ArgumentTypeError(f"max_redirects must be an int, not {type(number).__name__}")
    if number < 0:
        raise ArgumentValueError(f"max_redirects must be at least 0, got {number}")
    return number if follow else None
