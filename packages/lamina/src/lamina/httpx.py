"""lamina under httpx: transports for `httpx.Client` and `httpx.AsyncClient`.

```
client = httpx.Client(transport=lamina.httpx.HTTPTransport())
```

httpx is not installed with lamina; whoever imports this module has it, or is told to install it.
"""

from __future__ import annotations

from ._httpx_transports import AsyncTransport, Library, Transport

try:
    import httpx
except ImportError as _error:
    if _error.name != "httpx":
        raise  # it is there, and its own words are better than ours
    raise ImportError(
        "lamina.httpx needs httpx, which is not installed; install it with: pip install httpx",
        name=_error.name,
    ) from _error

__all__ = ["AsyncHTTPTransport", "HTTPTransport"]

_LIBRARY = Library(httpx, "httpcore")


class HTTPTransport(Transport, httpx.BaseTransport):
    """Sends the requests of a `httpx.Client` over a `ConnectionPool`.

    For any number of threads, as the client. Give it as `transport=`, or in `mounts=`. The client closes it.

    The arguments are those of `httpx.HTTPTransport`, in the same order and with the same defaults, and after them, by
    name only, those that `ConnectionPool` has besides: `network_backend`, `max_connections_per_origin`,
    `max_connection_age`, `age_jitter`, `http2_ping_interval`, `http2_ping_timeout`, `on_event`.

    Args:
        verify: true for the certificates that httpx trusts, false for no check at all, the path of a file or folder
            of certificates, or an `ssl.SSLContext`. Such a context is used as it is, never changed; what it offers
            (ALPN) may be spoken. For HTTP/2 its owner calls `set_alpn_protocols(["h2", "http/1.1"])` on it.
        cert: a client certificate: a file, or certificate, key and the key's password. Not together with a context,
            which has a `load_cert_chain`.
        trust_env: whether `SSL_CERT_FILE` and `SSL_CERT_DIR` say what `verify=True` trusts. Proxies are never read from
            the environment here.
        http1: whether HTTP/1.1 may be spoken.
        http2: whether HTTP/2 may be spoken. Here this counts; the client's own `http2=` is for transports that the
            client makes itself.
        limits: a `httpx.Limits`; by default 100 connections, of which 20 may idle, for 5 seconds.
        proxy: a URL, or a `httpx.Proxy`.
        uds: path of a unix socket to connect to instead of the URL's host and port.
        local_address: our own IP address to connect from.
        retries: how often a failed attempt to connect is repeated.
        socket_options: set on every socket before connecting, each as `socket.setsockopt` takes it.
        pool: a pool to use instead of a new one, for several clients for instance. It brings all settings with it, and
            whoever has made it closes it.
        options: further arguments of `ConnectionPool`.

    Raises:
        ArgumentValueError, ArgumentTypeError: an argument makes no sense, or was given besides `pool`.
        UnsupportedProtocol: HTTP/2 was asked for, and h2 is not installed.
        InvalidURL: the proxy's host or port cannot exist.
        OSError, ssl.SSLError: a certificate cannot be read.
    """

    _library = _LIBRARY

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the response's body is still on the network. Called by the client.

        Raises:
            httpx.TransportError: one of its subclasses. lamina's error is its `__cause__`.
            httpx.InvalidURL: the URL's host cannot exist.
        """
        response: httpx.Response = self._handle(request)
        return response


class AsyncHTTPTransport(AsyncTransport, httpx.AsyncBaseTransport):
    """Sends the requests of a `httpx.AsyncClient` over an `AsyncConnectionPool`.

    Under asyncio and trio. Arguments are those of `lamina.httpx.HTTPTransport`, with `httpx`'s types and errors.
    """

    _library = _LIBRARY

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; the response's body is still on the network. Called by the client.

        Raises:
            httpx.TransportError: one of its subclasses. lamina's error is its `__cause__`.
            httpx.InvalidURL: the URL's host cannot exist.
        """
        response: httpx.Response = await self._handle(request)
        return response
