"""A connection without a pool: a pool of one, to one origin, whose requests never wait for another connection.

So claims, bodies, cancellation and deadlines are the pool's own text (`_pool.py`), and hold here as they do there. What
is different stands here: where a request would have to wait for what will not come it is refused with
`ConnectionNotAvailable`; nothing is sent a second time; and the connection may run over a stream that was given. Who is
refused, `_lone_scheduler.py` says.
"""

from __future__ import annotations

import random
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectionNotAvailable,
    PoolClosed,
)

from ._dialling import Dialler
from ._lone_scheduler import LoneScheduler
from ._pool import Pool
from ._scheduler import Limits, SlotState
from ._settings import read_settings
from ._urls import Origin

if TYPE_CHECKING:
    from lamina_interfaces import LaminaError

    from ._checks import RequestFraming, Timeouts
    from ._dialling import ConnectionKey, DialOptions, LoneDial
    from ._io import Stream, World
    from ._models import Request
    from ._pool import Claim


class OriginMismatch(ArgumentValueError, RuntimeError):
    """A request was sent on a connection that leads to another origin: to another scheme, host or port."""

    default_message = "the connection leads to another origin"


def lone_settings(**given: Any) -> tuple[Limits, DialOptions]:
    """Check the arguments of a connection, which are some of a pool's.

    Raises:
        ArgumentValueError, ArgumentTypeError, UnsupportedProtocol: as for a pool.
    """
    return read_settings(
        **{
            "ssl_context": None,
            "proxy": None,
            "max_connections": 1,
            "max_keepalive_connections": None,
            "keepalive_expiry": None,
            "http1": True,
            "http2": False,
            "http2_ping_interval": None,
            "http2_ping_timeout": 20.0,
            "retries": 0,
            "local_address": None,
            "uds": None,
            "socket_options": None,
            "max_connections_per_origin": None,
            "max_connection_age": None,
            "age_jitter": 0.0,
            **given,
        }
    )


def settings_of(pool: Pool) -> tuple[Limits, DialOptions]:
    """Those of a connection as this pool would open it."""
    never = float("inf")
    limits = pool._limits._replace(max_connections=1, max_connections_per_origin=never, max_idle=never)
    return limits, pool._options


class _GivenStream(Dialler):
    """Has nothing to open: the stream was given."""

    def __init__(self, world: World, options: DialOptions, given: list[Stream]) -> None:
        super().__init__(world, options)
        self._given = given

    async def dial(
        self, claim: Claim, request: Request, timeouts: Timeouts, lone: LoneDial | None = None
    ) -> None:
        """See `Dialler.dial`."""
        if not self._given or self.is_closed:
            raise PoolClosed(phase="connect")
        claim.connection = self.speak(self._given[0], is_http2="h2" in claim.key.protocols)
        self._given.clear()  # last: until then whoever closes the connection closes it


class _Picture(NamedTuple):
    """A connection as it was at one moment.

    Attributes:
        state: `"NEW"`, `"FAILED"`, `"CONNECTING"`, `"ACTIVE"`, `"IDLE"` or `"CLOSED"`.
        http_version: `"HTTP/1.1"` or `"HTTP/2"`; `""` while that is not known.
        request_count: how many requests it has carried.
        takes_more: whether it would take a request.
        has_expired: whether its time is over, or the server has closed it.
    """

    state: str
    http_version: str
    request_count: int
    takes_more: bool
    has_expired: bool


class LonePool(Pool):
    """The pool behind a connection. See the top of the module.

    Args:
        world: blocking or async.
        limits: of which the times matter.
        options: how to open it.
        origin: where it leads.
        given: a stream that is open already, which then is the connection's own.
    """

    can_connect_again = False
    _scheduler: LoneScheduler

    def __init__(
        self, world: World, limits: Limits, options: DialOptions, origin: Origin, given: Stream | None = None
    ) -> None:
        if not isinstance(origin, Origin):
            raise ArgumentTypeError(f"origin must be an Origin, not {type(origin).__name__}")
        self.origin = origin
        # Shared with the dialler, which uses it up.
        self._given: list[Stream] = [] if given is None else [given]
        self._is_given = given is not None
        super().__init__(world, limits, options)

    def take_given(self) -> Stream | None:
        """The stream that was given, if no request has been sent over it; the caller's from now on."""
        try:
            return self._given.pop()
        except IndexError:
            return None

    # --- what is different from a pool ---------------------------------------------------------------------

    def _create_scheduler(self) -> LoneScheduler:
        before: LoneScheduler | None = getattr(self, "_scheduler", None)
        # After a fork, and in another event loop, what was opened is lost; it is not opened again.
        is_spent = before is not None and before.is_spent
        return LoneScheduler(self._limits, random.random, is_spent=is_spent, opens_once=self._is_given)

    def _create_dialler(self) -> Dialler:
        if self._is_given:
            return _GivenStream(self._world, self._options, self._given)
        return super()._create_dialler()

    def _route(self, request: Request, framing: RequestFraming) -> tuple[ConnectionKey, RequestFraming]:
        if request.url.origin != self.origin:
            raise OriginMismatch(
                f"Attempted to send request to {request.url.origin} on connection to {self.origin}",
                origin=str(request.url.origin),
            )
        wanted, framing = super()._route(request, framing)
        slot = self._scheduler.slot
        if slot is not None and slot.connection is not None:
            key: ConnectionKey = slot.key  # type: ignore[assignment] # every key here is one
            protocol = "h2" if slot.connection.http_version == "HTTP/2" else "http/1.1"
            # What was asked for when it was opened need not be asked for again. What contradicts it is refused.
            if (
                protocol in wanted.protocols
                and wanted.server_hostname in (None, key.server_hostname)
                and wanted.route == key.route
            ):
                return key, framing
        return wanted, framing

    def _refusal(self) -> LaminaError:
        return ConnectionNotAvailable(f"the connection cannot take this request: {self.info()}", phase="pool")

    def explain(self, error: LaminaError, origin: Origin) -> LaminaError:
        """Say which origin it was. Whoever closes a connection under a request finds what comes of that, as it is."""
        if isinstance(error, PoolClosed):
            closed = ConnectionNotAvailable("the connection was closed", phase=error.phase)
            closed.__cause__ = error.__cause__
            error = closed
        if error.origin is None:
            error.origin = str(origin)
        return error

    @property
    def is_closed(self) -> bool:
        """Not asked: it would be said of a pool."""
        return False

    def _describe_unclosed(self, connections: int) -> str:
        return f"unclosed connection to {self.origin}"

    def __del__(self) -> None:
        if not getattr(self, "_given", None):
            super().__del__()
            return
        self._given.pop().abort()
        warnings.warn(self._describe_unclosed(1), ResourceWarning, source=self, stacklevel=1)

    # --- what one may ask ----------------------------------------------------------------------------------

    def picture(self) -> _Picture:
        """How it is at this moment."""
        return self._look(self._take_picture)

    def _take_picture(self) -> _Picture:
        scheduler = self._scheduler
        slot, connection = scheduler.slot, scheduler.connection
        is_shared = self._may_share if connection is None else not connection.is_exclusive
        has_expired = False
        if scheduler.is_closed:
            state = "CLOSED"
        elif slot is not None and slot.state is SlotState.DIALLING:
            state = "CONNECTING"
        elif slot is not None and slot.state is SlotState.OPEN:
            state = "IDLE" if slot.is_idle else "ACTIVE"
            if slot.is_idle:
                has_expired = slot._past_its_time(self._now()) is not None or (
                    slot.connection.is_exclusive
                    and bool(slot.connection.stream.get_extra_info("is_readable"))
                )
        elif scheduler.is_over:
            state = "CLOSED"
        elif self._is_given:
            state = "IDLE" if is_shared else "NEW"
        else:
            state = "FAILED" if scheduler.has_failed else "NEW"
            has_expired = scheduler.has_failed
        return _Picture(
            state,
            self._version_of(connection),
            0 if connection is None else connection.exchanges,
            not scheduler.is_over and state != "FAILED" and (is_shared or state == "IDLE"),
            has_expired,
        )

    @property
    def _may_share(self) -> bool:
        """Whether, once it is open, it may turn out to carry several requests at once."""
        return self._options.http2 and (self.origin.scheme == b"https" or not self._options.http1)

    def _version_of(self, connection: Any) -> str:
        if connection is not None:
            version: str = connection.http_version
            return version
        if not self._is_given:
            return ""
        return "HTTP/1.1" if self._options.http1 else "HTTP/2"

    def info(self) -> str:
        """One line about it."""
        picture = self.picture()
        if picture.http_version:
            return f"{str(self.origin)!r}, {picture.http_version}, {_counted(picture)}"
        return {"NEW": "CONNECTING", "FAILED": "CONNECTION FAILED"}.get(picture.state, picture.state)

    def short_info(self) -> str:
        """The same, for one whose protocol is known from its class."""
        return f"{str(self.origin)!r}, {_counted(self.picture())}"


def _counted(picture: _Picture) -> str:
    return f"{picture.state}, Request Count: {picture.request_count}"


class LoneFace:
    """What the blocking and the async face of a connection have in common. Nothing here waits."""

    _lone: LonePool

    def can_handle_request(self, origin: Origin) -> bool:
        """See `ConnectionInterface.can_handle_request`."""
        return origin == self._lone.origin

    def is_available(self) -> bool:
        """See `ConnectionInterface.is_available`."""
        return self._lone.picture().takes_more

    def has_expired(self) -> bool:
        """See `ConnectionInterface.has_expired`."""
        return self._lone.picture().has_expired

    def is_idle(self) -> bool:
        """See `ConnectionInterface.is_idle`. So is one that could not be opened."""
        return self._lone.picture().state in ("IDLE", "FAILED")

    def is_closed(self) -> bool:
        """See `ConnectionInterface.is_closed`. So is one that could not be opened, until a request tries again."""
        return self._lone.picture().state in ("CLOSED", "FAILED")

    def info(self) -> str:
        """See `ConnectionInterface.info`."""
        return self._lone.info()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self._lone.info()}]>"


class LoneStreamFace(LoneFace):
    """The same for those over a stream that was given, whose protocol is known from their class."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self._lone.short_info()}]>"
