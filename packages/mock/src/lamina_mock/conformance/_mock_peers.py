"""The peers of lamina_mock's own backends, for checking them, or what wraps them, without a socket.

Give these backends a `RuntimeClock`: the rules wait for each other in several threads or tasks, and take real time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamina_interfaces import NEVER

from .._scripts import Script
from .._wire import Peer as MockPeer
from .._wire import TLSFacts
from ._acts import Act, Collect, CutOff, End, Expect, Hold, Ignore, Refuse, Reset, Say, Secure
from ._peers import NotApplicable, Peer, Place, describe_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._http import MockRequest, MockResponse
    from .._wire import Line


class _MemoryPlace(Place):
    def __init__(self, path: str = "") -> None:
        super().__init__("server.example", 80, path)
        self.lines: list[Line] = []

    def close(self) -> None:
        for line in self.lines:
            line.reset()


class MemoryPeer(Peer):
    """Performs the acts on connections in memory.

    .. code-block:: python

        from lamina_mock import PeerBackend, RuntimeClock
        from lamina_mock.conformance import MemoryPeer, check_backend

        peer = MemoryPeer()
        backend = PeerBackend(peer.make_peer, clock=RuntimeClock())
        check_backend(backend, peer=peer).raise_for_failures()
    """

    has_addresses = False
    has_tls = False

    def __init__(self) -> None:
        self._acts: tuple[Act, ...] = ()
        self._place = _MemoryPlace()

    def serve(self, acts: tuple[Act, ...], *, unix: bool = False) -> Place:
        """Remember the acts for the connections to come. See `Peer.serve`."""
        self._acts = acts
        self._place = _MemoryPlace("/run/server.sock" if unix else "")
        self._place.received = bytearray()
        return self._place

    def make_peer(self, host: str, port: int) -> MockPeer:
        """What a `PeerBackend` asks for each connection."""
        return _Performer(self._acts, self._place)


class _Performer(MockPeer):
    """Performs acts, one after the other, until one has to wait for the client."""

    name = "the conformance kit"

    def __init__(self, acts: tuple[Act, ...], place: _MemoryPlace) -> None:
        self._acts = list(acts)
        self._place = place
        self._expected = bytearray()
        self._line: Line | None = None
        if Refuse() in acts:
            self.connect_error = "connection refused"
        if Ignore() in acts:
            self.connect_delay = NEVER

    def connected(self, line: Line, now: float) -> None:
        self._line = line
        self._place.lines.append(line)
        self._place.clients.append(None)
        self._go_on(b"", now)

    def secured(self, now: float) -> None:
        assert self._line is not None
        act = self._acts[0] if self._acts else None
        if isinstance(act, Secure):
            protocol = act.protocols[0] if act.protocols else None
            self._line.tls_facts = TLSFacts(alpn=protocol, delay=0.0 if act.answered else NEVER)
            del self._acts[0]
            self._go_on(b"", now)
        else:
            self._line.tls_facts = TLSFacts(error="no handshake was expected")

    def received(self, data: bytes, now: float) -> None:
        self._go_on(data, now)

    def ended(self, now: float) -> None:
        self._place.farewell = "end"

    def _go_on(self, data: bytes, now: float) -> None:
        line, received = self._line, self._place.received
        assert line is not None
        assert received is not None
        while self._acts:
            match self._acts[0]:
                case Say(said):
                    line.say(said, now)
                case Expect(wanted):
                    missing = len(wanted) - len(self._expected)
                    self._expected += data[:missing]
                    received += data[:missing]
                    data = data[missing:]
                    if not wanted.startswith(self._expected):
                        self._place.complaint = f"the peer received {describe_bytes(self._expected)}"
                    if len(self._expected) < len(wanted):
                        return
                    self._expected.clear()
                case Collect():
                    received += data
                    return
                case End() | CutOff():
                    line.end(now)
                case Reset():
                    line.reset(now)
                case Secure():
                    return
                case Hold() | Refuse() | Ignore():
                    break
            del self._acts[0]
        line.stop_reading()


class ScriptPeer(Peer):
    """Puts the acts into a `Script`, as far as a script can say them.

    Args:
        make_backend: makes the backend of a script: `lambda script: ScriptedBackend(script, clock=RuntimeClock())`.
            It is used instead of the one that is checked, which may play any script.
    """

    has_addresses = False
    has_tls = False

    def __init__(self, make_backend: Callable[[list[Script]], Any]) -> None:
        self._make_backend = make_backend

    def serve(self, acts: tuple[Act, ...], *, unix: bool = False) -> Place:
        """Write the script, and make the backend. See `Peer.serve`."""
        script = Script("the conformance kit's")
        for act in acts:
            _write(script, act)
        place = Place("server.example", 80, "/run/server.sock")
        place.backend = self._make_backend([script] * MOST_CONNECTIONS)
        return place


MOST_CONNECTIONS = 100
"""More than any rule makes to one place."""


def _write(script: Script, act: Act) -> None:
    match act:
        case Say(data):
            script.reply(data)
        case Expect(data):
            script.expect(data)
        case End():
            script.eof()
        case Reset():
            script.reset()
        case Hold():
            script.black_hole()
        case Secure(protocols, answered):
            script.tls(alpn=protocols[0] if protocols else None, delay=0.0 if answered else NEVER)
        case Refuse():
            script.refuse()
        case Ignore():
            script.slow_connect()
        case Collect():
            raise NotApplicable("a script knows what it expects")
        case CutOff():
            raise NotApplicable("a script does not cut TLS off")


class _ServerPlace(Place):
    async def greet(self, stream: Any) -> None:
        # HTTP/1.0 has no framing for a body of unknown length: the bytes are those of the connection (RFC 1945, 7.2.2).
        await stream.write(b"GET / HTTP/1.0\r\n\r\n")
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            piece = await stream.read(1)
            if not piece:
                raise NotApplicable("the server has ended without an answer")
            head += piece


class ServerPeer(Peer):
    """Lets a `MockServer` say what a rule wants to hear, as the body of a response.

    Give `handler` to the server, and `server.backend` to the kit.
    """

    has_addresses = False
    has_tls = False

    def __init__(self) -> None:
        self._acts: tuple[Act, ...] = ()

    def serve(self, acts: tuple[Act, ...], *, unix: bool = False) -> Place:
        """Remember the acts for the requests to come. See `Peer.serve`."""
        if not acts or not all(isinstance(act, Say | End) for act in acts):
            raise NotApplicable("an HTTP server answers whole requests")
        self._acts = acts
        return _ServerPlace("server.example", 80, "/run/server.sock")

    def handler(self, request: MockRequest) -> MockResponse:
        """The response that has the body."""
        from .._http import MockResponse

        chunks = [act.data for act in self._acts if isinstance(act, Say)]
        response = MockResponse(content=chunks)
        if isinstance(self._acts[-1], End):
            return response
        return response.stall_after(sum(map(len, chunks)))
