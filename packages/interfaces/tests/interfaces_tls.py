"""A TLS server in memory, and the passing of bytes between it and an engine."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from lamina_interfaces.tls import TLSEngine

AUTHORITY = trustme.CA()


def server_context(*names: str, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = context.maximum_version = version
    AUTHORITY.issue_cert(*(names or ("server.example",))).configure_cert(context)
    return context


def client_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    AUTHORITY.configure_trust(context)
    return context


class MemoryServer:
    """The server's side, by the standard library alone."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.incoming = ssl.MemoryBIO()
        self.outgoing = ssl.MemoryBIO()
        self.tls = (context or server_context()).wrap_bio(self.incoming, self.outgoing, server_side=True)

    def handshake(self) -> bool:
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def read(self, size: int = 65536) -> bytes | None:
        try:
            return self.tls.read(size)
        except ssl.SSLWantReadError:
            return None

    def read_all(self) -> bytes:
        pieces = []
        while piece := self.read():
            pieces.append(piece)
        return b"".join(pieces)

    def close(self) -> None:
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass

    def take(self) -> bytes:
        return self.outgoing.read()

    def feed(self, data: bytes) -> None:
        self.incoming.write(data)


def shake_hands(engine: TLSEngine, server: MemoryServer | Relay) -> bytes:
    """Complete the handshake; returns what the server said after it (session tickets)."""
    done = False
    for _ in range(10):
        done = engine.handshake() or done
        server.feed(engine.take())
        if server.handshake() and done:
            return server.take()
        engine.feed(server.take())
    raise AssertionError("the handshake did not end")


class Relay:
    """A server inside what an outer server (or relay) decrypts."""

    def __init__(self, outer: MemoryServer | Relay, inner: MemoryServer) -> None:
        self._outer = outer
        self._inner = inner
        self.tls = inner.tls
        self.read_all = inner.read_all

    def handshake(self) -> bool:
        return self._inner.handshake()

    def feed(self, data: bytes) -> None:
        self._outer.feed(data)
        self._inner.feed(self._outer.read_all())

    def take(self) -> bytes:
        data = self._inner.take()
        if data:
            self._outer.tls.write(data)
        return self._outer.take()
