"""TLS settings: the default context, built when it is first needed and shared.

Reading the trusted certificates takes about 15 ms and a megabyte, so a context per connection, or even per
pool, is what makes clients slow and large. There is one per process and set of protocols;
`shared_ssl_context` gives it to the pools, and nobody else gets hold of it, so that nobody can change it
under the others. `default_ssl_context`, for callers, builds a new one each time: it is the caller's own, to
be changed at will.

Trusted are the certificates of certifi, so that a program trusts the same servers on every machine, and no
second bundle has to be read. If `SSL_CERT_FILE` or `SSL_CERT_DIR` is set, those that OpenSSL finds by them are
trusted too: a company's own, for instance. `SSLKEYLOGFILE` is obeyed. The environment is read when a context is
built.

ALPN and a caller's context. Which protocols a context offers is part of the context, in Python as in OpenSSL,
and a context that a caller passes in is never changed: it may serve other pools, and other threads, at the
same time. So such a context offers what its owner has set. For HTTP/2, call
`context.set_alpn_protocols(["h2", "http/1.1"])` on it; without that the peer cannot choose HTTP/2, and
HTTP/1.1 is spoken. What the two sides have agreed on is what is spoken (`_dialling.py`).

`ssl` and `certifi` are imported when a context is built.
"""

from __future__ import annotations

import _thread
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl

_shared: dict[tuple[str, ...], ssl.SSLContext] = {}
_lock = _thread.allocate_lock()


def default_ssl_context() -> ssl.SSLContext:
    """Build a client context that trusts certifi's certificates.

    Each call builds a new one, which takes about 15 ms and is the caller's to change. Pools that are given no
    context share one among themselves, which is another one.

    Returns:
        A context that verifies certificates and host names, and offers no protocols (ALPN).
    """
    import ssl

    import certifi

    context = ssl.create_default_context(cafile=certifi.where())
    if os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR"):
        context.set_default_verify_paths()
    # A name counts only where the certificate says that it is one (RFC 9110, section 4.3.4, and RFC 9525).
    context.hostname_checks_common_name = False
    return context


def shared_ssl_context(alpn: tuple[str, ...]) -> ssl.SSLContext:
    """The one default context of this process that offers these protocols. Must not be changed.

    May be called from any thread; the first call builds the context, others wait for it.

    Args:
        alpn: the protocols to offer, the preferred one first, such as `("h2", "http/1.1")`.
    """
    context = _shared.get(alpn)
    if context is None:
        with _lock:
            context = _shared.get(alpn)
            if context is None:
                context = default_ssl_context()
                if alpn:
                    context.set_alpn_protocols(list(alpn))
                _shared[alpn] = context
    return context


def _forget_lock() -> None:
    # In a forked child the lock may be held by a thread that does not exist there.
    global _lock  # noqa: PLW0603 - the lock is the module's own state
    _lock = _thread.allocate_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_lock)
