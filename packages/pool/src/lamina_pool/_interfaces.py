"""What pools and single connections offer alike: to send a request in one call, and what one may ask a connection.

The names are those of httpcore 1.0, so that code written against it can derive from them. Blocking and async stand side
by side here, since next to nothing in them is logic.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ._checks import build_request

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from ._models import ContentTypes, Extensions, HeaderTypes, Request, Response
    from ._urls import URL, Origin


class RequestInterface:
    """Whatever has `handle_request` can do this, too."""

    def request(
        self,
        method: bytes | str,
        url: URL | bytes | str,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
        extensions: Extensions | None = None,
    ) -> Response:
        """Send a request, and read the whole response.

        Args:
            method: `"GET"` and so on.
            url: where to.
            headers: pairs, or a mapping. `Host`, and `Content-Length` or `Transfer-Encoding` for a body, are added
                where they are missing.
            content: the body: bytes, or an iterable of bytes, which is sent in chunks.
            extensions: `"timeout"` (seconds for `"connect"`, `"read"`, `"write"`, `"pool"`), `"trace"`,
                `"sni_hostname"`, `"target"`.

        Returns:
            The response; `response.content` is its body.

        Raises:
            LaminaError: see `handle_request`; and the same from reading the body.
        """
        response = self.handle_request(
            build_request(method, url, headers=headers, content=content, extensions=extensions)
        )
        try:
            response.read()
        finally:
            response.close()
        return response

    @contextmanager
    def stream(
        self,
        method: bytes | str,
        url: URL | bytes | str,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
        extensions: Extensions | None = None,
    ) -> Iterator[Response]:
        """Send a request; a context manager that gives the response before its body is read, and closes it.

        Args and errors are those of `request`.
        """
        response = self.handle_request(
            build_request(method, url, headers=headers, content=content, extensions=extensions)
        )
        try:
            yield response
        finally:
            response.close()

    def handle_request(self, request: Request) -> Response:
        """Send a request as it is; nothing is added to its headers.

        Returns:
            The response, its body unread; the caller reads it to its end, or closes it.
        """
        raise NotImplementedError


class ConnectionInterface(RequestInterface):
    """One connection, or what will be one. What `HTTPConnection` and its like fulfil.

    A plain class whose methods raise `NotImplementedError`: derive from it for a connection of your own.
    """

    def close(self) -> None:
        """Close it, and its network stream. Never waits for the peer; the second time nothing is done."""
        raise NotImplementedError

    def info(self) -> str:
        """One line about it: origin, protocol, state, how many requests it has carried."""
        raise NotImplementedError

    def can_handle_request(self, origin: Origin) -> bool:
        """Whether it leads, or would lead, to this origin."""
        raise NotImplementedError

    def is_available(self) -> bool:
        """Whether it would take a request now.

        Over HTTP/1.1 it does while it idles. Over HTTP/2 it does unless it is closed, or the server has said that it
        is to be. While it is being opened, and might turn out to speak HTTP/2, it is taken to do so.
        """
        raise NotImplementedError

    def has_expired(self) -> bool:
        """Whether it should be closed: it has idled for too long, or the server has closed it; or there is none."""
        raise NotImplementedError

    def is_idle(self) -> bool:
        """Whether it is open and carries no request."""
        raise NotImplementedError

    def is_closed(self) -> bool:
        """Whether it takes no more requests, for good."""
        raise NotImplementedError


class AsyncRequestInterface:
    """Whatever has `handle_async_request` can do this, too."""

    async def request(
        self,
        method: bytes | str,
        url: URL | bytes | str,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
        extensions: Extensions | None = None,
    ) -> Response:
        """Send a request, and read the whole response.

        Args:
            method: `"GET"` and so on.
            url: where to.
            headers: pairs, or a mapping. `Host`, and `Content-Length` or `Transfer-Encoding` for a body, are added
                where they are missing.
            content: the body: bytes, or an async iterable of bytes, which is sent in chunks.
            extensions: `"timeout"` (seconds for `"connect"`, `"read"`, `"write"`, `"pool"`), `"trace"`,
                `"sni_hostname"`, `"target"`.

        Returns:
            The response; `response.content` is its body.

        Raises:
            LaminaError: see `handle_async_request`; and the same from reading the body.
        """
        response = await self.handle_async_request(
            build_request(method, url, headers=headers, content=content, extensions=extensions)
        )
        try:
            await response.aread()
        finally:
            await response.aclose()
        return response

    def stream(
        self,
        method: bytes | str,
        url: URL | bytes | str,
        *,
        headers: HeaderTypes = None,
        content: ContentTypes = None,
        extensions: Extensions | None = None,
    ) -> AbstractAsyncContextManager[Response]:
        """Send a request; an async context manager that gives the response before its body is read, and closes it.

        Args and errors are those of `request`.
        """
        return _RequestContext(
            self, build_request(method, url, headers=headers, content=content, extensions=extensions)
        )

    async def handle_async_request(self, request: Request) -> Response:
        """Send a request as it is; nothing is added to its headers.

        Returns:
            The response, its body unread; the caller reads it to its end, or closes it.
        """
        raise NotImplementedError


class _RequestContext:
    """What `AsyncRequestInterface.stream` returns: sends the request when entered, closes the response after."""

    __slots__ = ("_request", "_response", "_sender")

    def __init__(self, sender: AsyncRequestInterface, request: Request) -> None:
        self._sender = sender
        self._request = request
        self._response: Response | None = None

    async def __aenter__(self) -> Response:
        self._response = await self._sender.handle_async_request(self._request)
        return self._response

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._response is not None:
            await self._response.aclose()


class AsyncConnectionInterface(AsyncRequestInterface):
    """One connection, or what will be one. What `AsyncHTTPConnection` and its like fulfil.

    A plain class whose methods raise `NotImplementedError`: derive from it for a connection of your own.
    """

    async def aclose(self) -> None:
        """Close it, and its network stream. Never waits for the peer; the second time nothing is done."""
        raise NotImplementedError

    def info(self) -> str:
        """See `ConnectionInterface.info`."""
        raise NotImplementedError

    def can_handle_request(self, origin: Origin) -> bool:
        """See `ConnectionInterface.can_handle_request`."""
        raise NotImplementedError

    def is_available(self) -> bool:
        """See `ConnectionInterface.is_available`."""
        raise NotImplementedError

    def has_expired(self) -> bool:
        """See `ConnectionInterface.has_expired`."""
        raise NotImplementedError

    def is_idle(self) -> bool:
        """See `ConnectionInterface.is_idle`."""
        raise NotImplementedError

    def is_closed(self) -> bool:
        """See `ConnectionInterface.is_closed`."""
        raise NotImplementedError
