"""lamina under httpx2: transports for `httpx2.Client` and `httpx2.AsyncClient`.

```
client = httpx2.Client(transport=lamina.httpx2.HTTPTransport())
```

httpx2 is not installed with lamina; whoever imports this module has it, or is told to install it.
"""

from __future__ import annotations

from ._httpx_transports import AsyncTransport, Library, Transport

try:
    import httpx2
except ImportError as _error:
    if _error.name != "httpx2":
        raise  # it is there, and its own words are better than ours
    raise ImportError(
        "lamina.httpx2 needs httpx2, which is not installed; install it with: pip install httpx2",
        name=_error.name,
    ) from _error

__all__ = ["AsyncHTTPTransport", "HTTPTransport"]

_LIBRARY = Library(httpx2, "httpcore2")


class HTTPTransport(Transport, httpx2.BaseTransport):
    """Sends the requests of a `httpx2.Client` over a `ConnectionPool`.

    Arguments are those of `lamina.httpx.HTTPTransport`, with `httpx2`'s types and errors.
    """

    _library = _LIBRARY

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; the response's body is still on the network. Called by the client.

        Raises:
            httpx2.TransportError: one of its subclasses. lamina's error is its `__cause__`.
            httpx2.InvalidURL: the URL's host cannot exist.
        """
        response: httpx2.Response = self._handle(request)
        return response


class AsyncHTTPTransport(AsyncTransport, httpx2.AsyncBaseTransport):
    """Sends the requests of a `httpx2.AsyncClient` over an `AsyncConnectionPool`.

    Under asyncio and trio. Arguments are those of `lamina.httpx.HTTPTransport`, with `httpx2`'s types and errors.
    """

    _library = _LIBRARY

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; the response's body is still on the network. Called by the client.

        Raises:
            httpx2.TransportError: one of its subclasses. lamina's error is its `__cause__`.
            httpx2.InvalidURL: the URL's host cannot exist.
        """
        response: httpx2.Response = await self._handle(request)
        return response
