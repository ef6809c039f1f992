"""The certificate of the kit's own TLS server: for tests on loopback, and a secret to nobody.

Valid from 2001 to 2125, for server.example, localhost, 127.0.0.1 and ::1: P-256 keys, signed with SHA-256, made with
cryptography. The authority may sign certificates and nothing else, the other one serve TLS and nothing else. The
authority's key was thrown away.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import ssl

SERVER_NAME = "server.example"
"""A name in the certificate (RFC 2606, section 2: nobody's)."""

AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBhjCCASygAwIBAgIUFGomfEiOYI9r69CyuaVE0acI79MwCgYIKoZIzj0EAwIw
IDEeMBwGA1UEAwwVbGFtaW5hIGNvbmZvcm1hbmNlIENBMCAXDTAxMDEwMTAwMDAw
MFoYDzIxMjYwMTAxMDAwMDAwWjAgMR4wHAYDVQQDDBVsYW1pbmEgY29uZm9ybWFu
Y2UgQ0EwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAARwb78tZt+HoRNMCnwNTQ1N
c2HE8NnFlBvQH434Pm/7QNwcYKnMUDlDlHmUvcUsxeeuJtMBbALNWveh3VU0cPiy
o0IwQDAPBgNVHRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIBBjAdBgNVHQ4EFgQU
xGYMfDfU2ROZOC2BE/Wo3MOMOG4wCgYIKoZIzj0EAwIDSAAwRQIhAJA2sRDkaU7m
Bu1K6U96Crka9jPnZjgtyuV5AUJonyRgAiAvbyo67LJpS924LZjQZrN6lK39ypBY
w/urj3Edb9GqnA==
-----END CERTIFICATE-----
"""

CERTIFICATE_AND_KEY = """\
-----BEGIN CERTIFICATE-----
MIIB8zCCAZigAwIBAgIUfKvRpwFBYuvFQX3B70oYuMvlvc8wCgYIKoZIzj0EAwIw
IDEeMBwGA1UEAwwVbGFtaW5hIGNvbmZvcm1hbmNlIENBMCAXDTAxMDEwMTAwMDAw
MFoYDzIxMjYwMTAxMDAwMDAwWjAZMRcwFQYDVQQDDA5zZXJ2ZXIuZXhhbXBsZTBZ
MBMGByqGSM49AgEGCCqGSM49AwEHA0IABD1vRvXUWmvlHDxqVrqZMrnTktQ7hrXq
I/ilj5ra8xa9Du+fNNjY6LcYcBaHjb9cyoxhWww/jqLdfBYfHl/pG6ejgbQwgbEw
DAYDVR0TAQH/BAIwADAOBgNVHQ8BAf8EBAMCB4AwEwYDVR0lBAwwCgYIKwYBBQUH
AwEwPAYDVR0RBDUwM4IOc2VydmVyLmV4YW1wbGWCCWxvY2FsaG9zdIcEfwAAAYcQ
AAAAAAAAAAAAAAAAAAAAATAfBgNVHSMEGDAWgBTEZgx8N9TZE5k4LYET9ajcw4w4
bjAdBgNVHQ4EFgQUnXBEfJZabUy5h/EMRD86POBYa5YwCgYIKoZIzj0EAwIDSQAw
RgIhAIWRHgpaqbWLo82C/qdKXBSdS92Z458ilpkw5o1fIdMgAiEAoGngwnaI0biJ
2hOomkvMHFeNlJsWa50+IiRdebu8lZw=
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgzdSKq3UqkEpJCmNE
Idm1uHnIN/pUq7YzwqVJGT5tjuihRANCAAQ9b0b11Fpr5Rw8ala6mTK505LUO4a1
6iP4pY+a2vMWvQ7vnzTY2Oi3GHAWh42/XMqMYVsMP46i3XwWHx5f6Run
-----END PRIVATE KEY-----
"""


server_names: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""The name that each client has sent (SNI, RFC 6066, section 3), by the server's `ssl.SSLObject`."""


def _heard(ssl_object: Any, name: str | None, _: object) -> None:
    if name is not None:
        server_names[ssl_object] = name


@cache
def server_context(*protocols: str) -> ssl.SSLContext:
    """A context that shows the certificate, and chooses among these protocols (ALPN)."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    context.sni_callback = _heard
    # OpenSSL takes a key from a file only.
    handle, path = tempfile.mkstemp(suffix=".pem")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(CERTIFICATE_AND_KEY)
        context.load_cert_chain(path)
    finally:
        os.unlink(path)
    return context


def client_context(*protocols: str, trusting: bool = True) -> ssl.SSLContext:
    """A context for `start_tls`, which checks names; it trusts the kit's authority, or nobody."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if trusting:
        context.load_verify_locations(cadata=AUTHORITY)
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context
