"""The server's side of TLS at any depth, by the standard library's memory BIOs."""

from __future__ import annotations

import ssl
from typing import Protocol


class Bytes(Protocol):
    """A socket, or TLS over one."""

    def recv(self, size: int, /) -> bytes: ...
    def sendall(self, data: bytes, /) -> None: ...


class ServerTLS:
    """A TLS server over a socket or over another one of itself; blocking, for one thread."""

    def __init__(self, beneath: Bytes, context: ssl.SSLContext) -> None:
        self._beneath = beneath
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def step(self) -> bool:
        """Go on with the handshake; what it has to say stays in `take`."""
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def take(self) -> bytes:
        return self._outgoing.read()

    def flush(self) -> None:
        if data := self.take():
            self._beneath.sendall(data)

    def listen(self) -> bool:
        data = self._beneath.recv(65536)
        self._incoming.write(data)
        return bool(data)

    def handshake(self) -> ServerTLS:
        while not self.step():
            self.flush()
            if not self.listen():
                raise ConnectionResetError("the client went away")
        self.flush()
        return self

    def recv(self, size: int, /) -> bytes:
        while True:
            try:
                return self.tls.read(size)
            except ssl.SSLWantReadError:
                if not self.listen():
                    raise ConnectionResetError("cut off") from None

    def sendall(self, data: bytes, /) -> None:
        for start in range(0, len(data), 65536):
            self.tls.write(data[start : start + 65536])
            self.flush()

    def end(self) -> None:
        """Send close_notify, and go on reading."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        self.flush()
