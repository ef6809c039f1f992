"""Pools that send everything through a proxy, under the names and with the parameters of httpcore 1.0.

`ConnectionPool(proxy=Proxy(…))` does the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lamina_interfaces import UnsupportedProtocol

from ._blocking import ConnectionPool
from ._models import Proxy, enforce_headers
from ._suspending import AsyncConnectionPool
from ._urls import enforce_bytes, enforce_url

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterable

    from lamina_interfaces import (
        AsyncNetworkBackend,
        AsyncNetworkBackendInterface,
        NetworkBackend,
        NetworkBackendInterface,
        SocketOption,
    )

    from ._models import HeaderTypes
    from ._urls import URL


def _http_proxy(
    url: URL | bytes | str,
    auth: tuple[bytes | str, bytes | str] | None,
    headers: HeaderTypes,
    ssl_context: ssl.SSLContext | None,
) -> Proxy:
    checked = enforce_headers(headers, "proxy_headers")
    proxy = Proxy(_url(url), auth=_auth(auth), headers=checked, ssl_context=ssl_context)
    return _speaking(proxy, b"http", b"https")


def _socks_proxy(url: URL | bytes | str, auth: tuple[bytes | str, bytes | str] | None) -> Proxy:
    return _speaking(Proxy(_url(url), auth=_auth(auth)), b"socks5", b"socks5h")


def _auth(given: tuple[bytes | str, bytes | str] | None) -> tuple[bytes | str, bytes | str] | None:
    if isinstance(given, tuple):
        for part in given:
            enforce_bytes(part, "proxy_auth")  # by the name that it has here
    return given


def _url(given: URL | bytes | str) -> URL | bytes | str:
    # Text is left to `Proxy`, which takes the credentials from it.
    return given if isinstance(given, (bytes, str)) else enforce_url(given, "proxy_url")


def _speaking(proxy: Proxy, *schemes: bytes) -> Proxy:
    if proxy.url.scheme not in schemes:
        expected = " or ".join(scheme.decode("ascii") for scheme in schemes)
        raise UnsupportedProtocol(
            f"proxy_url must have the scheme {expected} here, not {proxy.url.scheme.decode('latin-1')!r}"
        )
    return proxy


class HTTPProxy(ConnectionPool):
    """A `ConnectionPool` that sends requests through an HTTP proxy.

    Args:
        proxy_url: of the proxy, `"http://127.0.0.1:8080/"`. Text or bytes may have the credentials, as for `Proxy`.
        proxy_auth: user name and password for it; those of the URL if `None`.
        proxy_headers: sent to the proxy itself.
        ssl_context: for https origins.
        proxy_ssl_context: for the connection to the proxy, where its scheme is `https`.

        The others are those of `ConnectionPool`.

    Raises:
        LaminaError: as `Proxy` and `ConnectionPool` do.
    """

    def __init__(
        self,
        proxy_url: URL | bytes | str,
        proxy_auth: tuple[bytes | str, bytes | str] | None = None,
        proxy_headers: HeaderTypes = None,
        ssl_context: ssl.SSLContext | None = None,
        proxy_ssl_context: ssl.SSLContext | None = None,
        max_connections: int | None = 10,
        max_keepalive_connections: int | None = None,
        keepalive_expiry: float | None = None,
        http1: bool = True,
        http2: bool = False,
        retries: int = 0,
        local_address: str | None = None,
        uds: str | None = None,
        network_backend: NetworkBackend | NetworkBackendInterface | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> None:
        super().__init__(
            ssl_context=ssl_context,
            proxy=_http_proxy(proxy_url, proxy_auth, proxy_headers, proxy_ssl_context),
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            local_address=local_address,
            uds=uds,
            network_backend=network_backend,
            socket_options=socket_options,
        )


class SOCKSProxy(ConnectionPool):
    """A `ConnectionPool` that sends requests through a SOCKS5 proxy. Needs the extra `socks`.

    Args:
        proxy_url: of the proxy, `"socks5://127.0.0.1:1080/"`. Text or bytes may have the credentials, as for `Proxy`.
        proxy_auth: user name and password for it; those of the URL if `None`.

        The others are those of `ConnectionPool`.

    Raises:
        LaminaError: as `Proxy` and `ConnectionPool` do.
    """

    def __init__(
        self,
        proxy_url: URL | bytes | str,
        proxy_auth: tuple[bytes | str, bytes | str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int | None = 10,
        max_keepalive_connections: int | None = None,
        keepalive_expiry: float | None = None,
        http1: bool = True,
        http2: bool = False,
        retries: int = 0,
        network_backend: NetworkBackend | NetworkBackendInterface | None = None,
    ) -> None:
        super().__init__(
            ssl_context=ssl_context,
            proxy=_socks_proxy(proxy_url, proxy_auth),
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            network_backend=network_backend,
        )


class AsyncHTTPProxy(AsyncConnectionPool):
    """An `AsyncConnectionPool` that sends requests through an HTTP proxy.

    Args:
        proxy_url: of the proxy, `"http://127.0.0.1:8080/"`. Text or bytes may have the credentials, as for `Proxy`.
        proxy_auth: user name and password for it; those of the URL if `None`.
        proxy_headers: sent to the proxy itself.
        ssl_context: for https origins.
        proxy_ssl_context: for the connection to the proxy, where its scheme is `https`.

        The others are those of `AsyncConnectionPool`.

    Raises:
        LaminaError: as `Proxy` and `AsyncConnectionPool` do.
    """

    def __init__(
        self,
        proxy_url: URL | bytes | str,
        proxy_auth: tuple[bytes | str, bytes | str] | None = None,
        proxy_headers: HeaderTypes = None,
        ssl_context: ssl.SSLContext | None = None,
        proxy_ssl_context: ssl.SSLContext | None = None,
        max_connections: int | None = 10,
        max_keepalive_connections: int | None = None,
        keepalive_expiry: float | None = None,
        http1: bool = True,
        http2: bool = False,
        retries: int = 0,
        local_address: str | None = None,
        uds: str | None = None,
        network_backend: AsyncNetworkBackend | AsyncNetworkBackendInterface | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> None:
        super().__init__(
            ssl_context=ssl_context,
            proxy=_http_proxy(proxy_url, proxy_auth, proxy_headers, proxy_ssl_context),
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            local_address=local_address,
            uds=uds,
            network_backend=network_backend,
            socket_options=socket_options,
        )


class AsyncSOCKSProxy(AsyncConnectionPool):
    """An `AsyncConnectionPool` that sends requests through a SOCKS5 proxy. Needs the extra `socks`.

    Args:
        proxy_url: of the proxy, `"socks5://127.0.0.1:1080/"`. Text or bytes may have the credentials, as for `Proxy`.
        proxy_auth: user name and password for it; those of the URL if `None`.

        The others are those of `AsyncConnectionPool`.

    Raises:
        LaminaError: as `Proxy` and `AsyncConnectionPool` do.
    """

    def __init__(
        self,
        proxy_url: URL | bytes | str,
        proxy_auth: tuple[bytes | str, bytes | str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
        max_connections: int | None = 10,
        max_keepalive_connections: int | None = None,
        keepalive_expiry: float | None = None,
        http1: bool = True,
        http2: bool = False,
        retries: int = 0,
        network_backend: AsyncNetworkBackend | AsyncNetworkBackendInterface | None = None,
    ) -> None:
        super().__init__(
            ssl_context=ssl_context,
            proxy=_socks_proxy(proxy_url, proxy_auth),
            max_connections=max_connections,
            max_keepalive_connections=max_keepalive_connections,
            keepalive_expiry=keepalive_expiry,
            http1=http1,
            http2=http2,
            retries=retries,
            network_backend=network_backend,
        )
