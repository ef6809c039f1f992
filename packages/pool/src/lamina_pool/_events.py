"""What a pool tells its listener: one small object for each thing that happens to a request or to a connection.

A request's events, in their order; what is in brackets need not happen:

    RequestStarted
        [RequestQueued]
        [NameResolved] [TCPConnected] [ProxyConnected] [TLSEstablished] | ConnectFailed, for each attempt to connect
        [ConnectionOpened]
        ConnectionAcquired [RequestSent] [ResponseStarted] [BodyReceived] ConnectionReleased
    RequestEnded

All from `RequestQueued` on may come again: a request whose connection turned out to be dead is sent on another one.
`ConnectionClosed` belongs to no request. Each connection that was opened is closed once, and each that was acquired is
released once. The ids tie them together: a request has one, and a connection.

Pure data: who tells it, and when, says `_observing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lamina_interfaces import Phase

    from ._info import ConnectionInfo
    from ._releasing import ReleaseReason
    from ._scheduler import CloseReason
    from ._urls import Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolEvent:
    """Something that has happened in a pool. The parent of all events.

    Attributes:
        at: when, in seconds on the clock of the pool's runtime (`time.monotonic` in blocking code).
        origin: what it is about. In events named after a request the server that was asked; in those about
            connections what the connection leads to, which is the proxy where one forwards requests.
    """

    at: float
    origin: Origin


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEvent(PoolEvent):
    """Something that has happened to a request.

    Attributes:
        request_id: of the request; no two in this process are alike.
    """

    request_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangeEvent(RequestEvent):
    """Something that has happened to a request on its connection.

    Attributes:
        connection_id: of the connection; no two in this process are alike.
    """

    connection_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestStarted(RequestEvent):
    """The pool was given a request, which is valid.

    Attributes:
        method: `"GET"` and so on.
    """

    method: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestQueued(RequestEvent):
    """The request has to wait: for a connection to become free, or for one that somebody else opens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectStep(ExchangeEvent):
    """A step in the making of a connection is done. Told together when all are, or when connecting has failed.

    Attributes:
        at: when the step was done.
        request_id: of the request that has the connection opened; another one may be the first to use it.
        duration: seconds that the step took.
    """

    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NameResolved(ConnectStep):
    """The host's name has been looked up (DNS)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TCPConnected(ConnectStep):
    """The system has connected: over TCP, or to a unix socket."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyConnected(ConnectStep):
    """The proxy has opened the way to the server: CONNECT or SOCKS5."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSEstablished(ConnectStep):
    """A TLS handshake is done: with the server, or with the proxy before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectFailed(ExchangeEvent):
    """An attempt to connect has failed, or was cancelled.

    Attributes:
        phase: the step in which it failed: `"dns"`, `"connect"`, `"proxy"`, `"tls"`; `None` if that is not known.
        duration: seconds since the attempt began.
        error: the exception's class, `"ConnectTimeout"` for instance.
        will_retry: whether another attempt follows (the pool's `retries`).
    """

    phase: Phase | None
    duration: float
    error: str
    will_retry: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOpened(ExchangeEvent):
    """A connection is open, all handshakes included.

    Attributes:
        duration: seconds that it took, failed attempts and pauses between them included.
        connection: what there is to know of it.
    """

    duration: float
    connection: ConnectionInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionAcquired(ExchangeEvent):
    """The request has got a connection.

    Attributes:
        wait: seconds since the request began, or since it asked again: in the queue and for a connection to open.
        queued: seconds of these for which it stood in the queue; 0.0 where it opened the connection itself.
        reused: whether the connection has carried a request before.
    """

    wait: float
    queued: float
    reused: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSent(ExchangeEvent):
    """All of the request was handed to the system. Not told where the answer came first.

    Attributes:
        duration: seconds since the connection was acquired.
    """

    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseStarted(ExchangeEvent):
    """The first bytes of the final response are here: its head.

    Attributes:
        status: 200 and so on.
        duration: seconds since the request was sent, or, where the answer came before all of it was, since the
            connection was acquired.
    """

    status: int
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BodyReceived(ExchangeEvent):
    """The response was read to its end.

    Attributes:
        duration: seconds since the head came.
        size: bytes of the body.
    """

    duration: float
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionReleased(ExchangeEvent):
    """The request has let go of its connection.

    Attributes:
        reason: why.
        duration: seconds for which it had the connection.
    """

    reason: ReleaseReason
    duration: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestEnded(RequestEvent):
    """The pool is done with the request. The last of its events.

    Attributes:
        duration: seconds since it began.
        error: the exception's class, `"PoolTimeout"` for instance; `None` if none was raised.
    """

    duration: float
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionClosed(PoolEvent):
    """A connection is closed.

    Attributes:
        connection_id: as in the events of the requests that it has carried.
        reason: why.
        duration: seconds for which it was open.
        request_count: how many requests it has carried.
    """

    connection_id: int
    reason: CloseReason
    duration: float
    request_count: int
