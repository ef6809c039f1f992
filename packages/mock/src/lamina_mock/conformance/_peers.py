"""The other end of the connection: what performs the acts of a rule.

`LoopbackPeer` is a server on 127.0.0.1, with a thread for each connection. Every wait in it has an end: when the rule
is over, or has hung, `Place.close` wakes all of its threads and breaks the connections, which wakes the client too.

A backend without sockets needs a peer of its own, a short subclass of `Peer`; `ListPeer` is the one of `MockBackend`,
and those of the other mocks are in `_mock_peers`.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any, Protocol

from ._acts import Act, Collect, CutOff, End, Expect, Hold, Ignore, Refuse, Reset, Say, Secure
from ._certificate import server_context, server_names

if TYPE_CHECKING:
    import ssl
    from types import TracebackType
    from typing import Self

PIECE = 64 * 1024
"""Bytes that the server receives at once."""

LONGEST = 600.0
"""Seconds after which a thread of the server ends by itself, should nobody close its place."""


class NotApplicable(Exception):
    """A rule does not concern this backend, or this peer cannot show whether it is kept; the text says why."""


class Place:
    """Where the stream of one rule is to connect to, and what was seen there.

    Attributes:
        host, port: for `connect_tcp`.
        path: for `connect_unix_socket`, where the peer listens on one.
        clients: our end's address, of each connection that was accepted.
        received: what the client has sent, within TLS if there is any; `None` where the peer cannot tell.
        farewell: how the client has ended: `"end"` (with TLS's closing message, if there is TLS), `"cut"` (without it),
            `"reset"`; `None` before, and where the peer cannot tell.
        server_name: what the client has sent as SNI.
        complaint: what the client did that it should not have, in words.
        backend: to be used instead of the one that is checked; for a backend that is made for what its peer is to do.
    """

    def __init__(self, host: str, port: int, path: str = "") -> None:
        self.host = host
        self.port = port
        self.path = path
        self.clients: list[Any] = []
        self.received: bytearray | None = None
        self.farewell: str | None = None
        self.server_name: str | None = None
        self.complaint: str | None = None
        self.backend: Any = None

    def close(self) -> None:
        """End everything here, and wake whoever waits at the other end. May be repeated; by any thread."""

    async def greet(self, stream: Any) -> None:
        """Bring a stream that has just connected to where the acts begin, by speaking the peer's own protocol.

        Args:
            stream: has the methods of an `AsyncNetworkStream`, blocking or not.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class Peer:
    """What the streams of a backend are connected to, for the kit. Subclass it for a backend without sockets.

    Attributes:
        has_addresses: whether host and port mean something; else nothing is checked about them.
        has_time: whether waiting takes time.
        has_tls: whether TLS is real: keys, certificates, a closing message.
    """

    has_addresses: bool = True
    has_time: bool = True
    has_tls: bool = True

    def serve(self, acts: tuple[Act, ...], *, unix: bool = False) -> Place:
        """Get ready for connections; to each of them the acts are performed.

        Args:
            acts: what to do, in this order; then hold still.
            unix: listen on a unix socket; `Place.path` says where.

        Returns:
            Where to connect to. The kit closes it.

        Raises:
            NotApplicable: this peer cannot do that; the text says what.
        """
        raise NotImplementedError


class ListPeer(Peer):
    """The peer of `MockBackend` and of others that say a list of bytes: it only speaks, and then ends.

    Args:
        chunks: the list that the backend was made with. It is filled anew for each rule.
    """

    has_addresses = False
    has_time = False
    has_tls = False

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    def serve(self, acts: tuple[Act, ...], *, unix: bool = False) -> Place:
        """Fill the list. See `Peer.serve`."""
        heard = [act for act in acts if not isinstance(act, Expect | Collect)]
        for act in heard:
            if type(act) in _BEYOND_A_LIST:
                raise NotApplicable(f"a list of bytes cannot {_BEYOND_A_LIST[type(act)]}")
        if heard and not isinstance(heard[-1], End):
            raise NotApplicable("a list of bytes cannot hold still after the last one: it ends its side")
        self._chunks[:] = [act.data for act in heard if isinstance(act, Say)]
        return Place("server.example", 80, "/run/server.sock")


_BEYOND_A_LIST: dict[type[Act], str] = {
    CutOff: "break off",
    Hold: "hold still",
    Ignore: "leave a connection unanswered",
    Refuse: "refuse a connection",
    Reset: "break the connection",
    Secure: "speak TLS",
}


class LoopbackPeer(Peer):
    """A server on 127.0.0.1, or on a unix socket in a folder of its own."""

    def serve(self, acts: tuple[Act, ...], *, unix: bool = False) -> Place:
        """Listen. See `Peer.serve`."""
        if unix and not hasattr(socket, "AF_UNIX"):
            raise NotApplicable("this system has no unix sockets")
        if isinstance(acts[0] if acts else None, Refuse):
            return _Refusing(unix=unix)
        if isinstance(acts[0] if acts else None, Ignore):
            return _Ignoring()
        return _Server(acts, unix=unix)


def _folder() -> tempfile.TemporaryDirectory[str]:
    # A unix socket's path is 100 bytes at most, and some systems' temporary folders are far down.
    return tempfile.TemporaryDirectory(dir="/tmp" if os.path.isdir("/tmp") else None)


# --- places of the loopback peer ---------------------------------------------------------------------------


class _Refusing(Place):
    """A port, or a path, that nobody listens on, and that nobody else is given meanwhile."""

    def __init__(self, *, unix: bool) -> None:
        self._folder = _folder() if unix else None
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        path = "" if self._folder is None else os.path.join(self._folder.name, "s")
        super().__init__("127.0.0.1", self._socket.getsockname()[1], path)

    def close(self) -> None:
        self._socket.close()
        if self._folder is not None:
            self._folder.cleanup()


class _Ignoring(Place):
    """A port that answers no SYN: the queue of its listener is full."""

    def __init__(self) -> None:
        if sys.platform != "linux":
            raise NotApplicable("only Linux leaves a SYN unanswered where the listener's queue is full")
        self._sockets = [socket.socket()]
        self._sockets[0].bind(("127.0.0.1", 0))
        self._sockets[0].listen(0)
        host, port = self._sockets[0].getsockname()
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex((host, port))
            self._sockets.append(filler)
        super().__init__(host, port)
        self._ours = self.attempts()

    def attempts(self) -> int:
        """How many sockets of this system wait for an answer here, whoever they are of."""
        remote = f"0100007F:{self.port:04X}" if sys.byteorder == "little" else f"7F000001:{self.port:04X}"
        with open("/proc/self/net/tcp", encoding="ascii") as table:
            # Columns: number, local address, remote address, state; 02 is SYN_SENT (the kernel's tcp_states.h).
            return sum(line.split()[2:4] == [remote, "02"] for line in table)

    @property
    def pending(self) -> int:
        """How many of them are not the server's own."""
        return max(0, self.attempts() - self._ours)

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


class _Server(Place):
    """A listener, a thread that accepts, and one for each connection."""

    def __init__(self, acts: tuple[Act, ...], *, unix: bool) -> None:
        self._acts = acts
        self._folder = _folder() if unix else None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []
        if self._folder is None:
            listener = socket.socket()
            listener.bind(("127.0.0.1", 0))
            super().__init__(*listener.getsockname())
        else:
            listener = socket.socket(socket.AF_UNIX)
            super().__init__("", 0, os.path.join(self._folder.name, "s"))
            listener.bind(self.path)
        self._address = listener.getsockname()
        # Small, so that a client that writes to a peer which does not read has to wait soon.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, PIECE)
        listener.listen(64)
        self._listener = listener
        self.received = bytearray()
        self._start(self._accept)

    def _start(self, target: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, name="lamina conformance peer", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with self._listener:
            self._listener.settimeout(LONGEST)
            while True:
                try:
                    sock, address = self._listener.accept()
                except OSError:
                    return
                with self._lock:
                    if self._over.is_set():
                        sock.close()
                        return
                    self._sockets.append(sock)
                    self.clients.append(address)
                    self._start(self._perform, sock)

    def _perform(self, sock: socket.socket) -> None:
        # Leaving breaks the connection, which also wakes a client that has hung; and no port stays in TIME_WAIT.
        try:
            sock.settimeout(LONGEST)
            end: _Plain | _Secured = _Plain(sock)
            for act in self._acts:
                end = self._act(act, end, sock)
            self._over.wait(LONGEST)
        except (OSError, ValueError) as error:  # `ssl` raises ValueError for a closed socket
            if self.complaint is None and not self._over.is_set():
                self.complaint = f"{type(error).__name__}: {error}"
            self._over.wait(LONGEST)
        finally:
            with self._lock:
                self._sockets.remove(sock)
                _break(sock)

    def _act(self, act: Act, end: _Plain | _Secured, sock: socket.socket) -> _Plain | _Secured:
        received = self.received
        assert received is not None
        match act:
            case Say(data):
                end.send(data)
            case Expect(data):
                left = len(data)
                got = bytearray()
                while left > len(got) and (piece := end.receive(left - len(got))):
                    got += piece
                received += got
                if got != data:
                    self.complaint = f"the peer received {describe_bytes(got)} and not {describe_bytes(data)}"
                    raise ConnectionError(self.complaint)
            case Collect():
                self._collect(end, received)
            case End():
                end.end()
            case CutOff():
                sock.shutdown(socket.SHUT_WR)
            case Reset():
                _break(sock)
            case Hold() | Secure(answered=False):
                pass  # as at the end of all acts
            case Secure(protocols):
                end = _Secured(end, server_context(*protocols))
                self.server_name = end.handshake()
            case Refuse() | Ignore():
                raise AssertionError("these stand alone")
        return end

    def _collect(self, end: _Plain | _Secured, received: bytearray) -> None:
        import ssl

        try:
            while piece := end.receive(PIECE):
                received += piece
            if not self._over.is_set():
                self.farewell = "end"
        except ssl.SSLEOFError:
            self.farewell = "cut"
        except ConnectionError:
            self.farewell = "reset"

    def close(self) -> None:
        with self._lock:
            if not self._over.is_set():
                self._over.set()
                try:
                    # Nothing else wakes a thread in `accept` on every system.
                    with socket.socket(self._listener.family) as waker:
                        waker.settimeout(1.0)
                        waker.connect(self._address)
                except OSError:
                    pass
                for sock in self._sockets:
                    try:
                        sock.shutdown(socket.SHUT_RDWR)  # which wakes its thread
                    except OSError:
                        pass
        for thread in self._threads:
            thread.join(10.0)
        if self._folder is not None:
            self._folder.cleanup()


def _break(sock: socket.socket) -> None:
    """Close with a RST; a unix socket knows none."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    except OSError:
        pass
    sock.close()


# --- the server's end of a connection ----------------------------------------------------------------------


class _Under(Protocol):
    def send(self, data: bytes) -> None: ...
    def receive(self, size: int) -> bytes: ...
    def end(self) -> None: ...


class _Plain:
    """A socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self, size: int) -> bytes:
        return self._socket.recv(size)

    def end(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)


class _Secured:
    """TLS as the server, over a socket or over TLS."""

    def __init__(self, under: _Under, context: ssl.SSLContext) -> None:
        import ssl

        self._ssl = ssl
        self._under = under
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def handshake(self) -> str | None:
        """Perform it; returns the client's SNI."""
        self._until_done(self._object.do_handshake)
        return server_names.pop(self._object, None)

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            self._object.write(data[start : start + PIECE])
            self._flush()

    def receive(self, size: int) -> bytes:
        try:
            return bytes(self._until_done(lambda: self._object.read(size)))
        except self._ssl.SSLZeroReturnError:
            return b""

    def end(self) -> None:
        try:
            self._object.unwrap()
        except self._ssl.SSLWantReadError:
            pass  # the client's own message, which is not waited for
        self._flush()

    def _until_done(self, step: Any) -> Any:
        while True:
            try:
                result = step()
            except self._ssl.SSLWantReadError:
                self._flush()
            except self._ssl.SSLError:
                self._flush()  # an alert
                raise
            else:
                self._flush()
                return result
            ciphertext = self._under.receive(PIECE)
            if ciphertext:
                self._incoming.write(ciphertext)
            else:
                # CPython's contexts take a cut connection for an orderly end, so that OpenSSL is not told of it.
                raise self._ssl.SSLEOFError(8, "the connection ended without TLS's closing message")

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._under.send(self._outgoing.read())


def describe_bytes(data: bytes | bytearray) -> str:
    """Bytes for a message: whole if they are few."""
    return repr(bytes(data)) if len(data) <= 40 else f"{len(data)} bytes, {bytes(data[:20])!r}…"
