"""The pool: carries out what the scheduler decides, and takes a request from `acquire` to the end of its body.

Written once as `async def` for blocking and async code (`_io.py` says what it needs from either).

How nothing is lost:

- A request holds a `Claim` from beginning to end. It is the one token for its place in the queue, its dial or its
  connection, and giving it back is one call that fits every state. If it is dropped instead, because an exception
  hit between two lines or because a response was forgotten, its finaliser gives it back.
- Finalisers run anywhere, also in the middle of a step of this very thread that holds the lock. So they take no
  lock: they put what is left on a queue (a deque; its methods are atomic) and wake a waiting request, if there is
  one, to take care of it. Every step takes care of that queue first.
- The scheduler's actions go onto a queue as well, inside the same step. Who is interrupted while carrying them out
  leaves the rest to whoever comes next.
- A step, or an action, that an exception tore apart is marked as such beforehand. The next step has the scheduler
  compute everything again (`Scheduler.rebuild`).
- Everything that closes is a plain function that never waits, so no path of an error or a cancellation does.
"""

from __future__ import annotations

import _thread
import os
import random
import warnings
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from lamina_interfaces import (
    GLANCE_SECONDS,
    ConcurrencyError,
    ConnectError,
    ConnectTimeout,
    Deadline,
    DeadlineExceeded,
    LaminaError,
    Limit,
    PoolClosed,
    close_deadline,
    current_deadline,
    open_deadline,
)

from ._checks import Timeouts, check_request
from ._connection import HTTP11Connection, StaleConnectionError
from ._models import Response, ResponseStateError
from ._scheduler import Close, Scheduler, SlotState, Waiter, WaiterState
from ._ssl import shared_ssl_context
from ._trace import Tracer
from ._urls import server_name

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from lamina_interfaces import SocketOption

    from ._checks import RequestFraming
    from ._http11 import Headers, ResponseHead
    from ._io import Stream, World
    from ._models import Request
    from ._scheduler import Action, Limits, Slot
    from ._urls import Origin

BACKOFF_SECONDS = 0.5
"""Before the second new attempt to connect; then twice as long each time. The first follows at once."""


class ConnectionKey(NamedTuple):
    """What has to be the same for a connection to serve another request of this pool."""

    origin: Origin
    server_hostname: str | None


class DialOptions(NamedTuple):
    """How the pool opens connections."""

    ssl_context: ssl.SSLContext | None
    retries: int
    local_address: str | None
    uds: str | None
    socket_options: Sequence[SocketOption] | None


class PoolStats(NamedTuple):
    """How many connections and requests a pool has, at one moment.

    Attributes:
        connections: all of them, those being opened and closed included.
        active: connections that carry a request.
        idle: open connections that carry none.
        connecting: connections being opened.
        queued: requests that wait for one.
    """

    connections: int
    active: int
    idle: int
    connecting: int
    queued: int


class PooledConnection(NamedTuple):
    """A connection of the pool, as it was at one moment.

    Attributes:
        origin: what it is connected to.
        http_version: `"HTTP/1.1"`, or `""` while it is being opened.
        state: `"CONNECTING"`, `"ACTIVE"`, `"IDLE"` or `"CLOSED"`.
        request_count: how many requests it has carried.
    """

    origin: Origin
    http_version: str
    state: str
    request_count: int

    def info(self) -> str:
        """One line about it."""
        if self.state == "CONNECTING":
            return "CONNECTING"
        return f"'{self.origin}', {self.http_version}, {self.state}, Request Count: {self.request_count}"

    def is_available(self) -> bool:
        """Whether it could have taken a request."""
        return self.state == "IDLE"

    def is_idle(self) -> bool:
        """Whether it was open and carried no request."""
        return self.state == "IDLE"

    def is_closed(self) -> bool:
        """Whether it was being closed."""
        return self.state == "CLOSED"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.info()}]>"


class Claim:
    """What one request holds of the pool. Given back once, by `give_back` or by its finaliser."""

    __slots__ = ("_pool", "connection", "is_open", "waiter")

    def __init__(self, pool: Pool, key: ConnectionKey) -> None:
        self._pool = pool
        self.waiter = Waiter(key)
        self.connection: HTTP11Connection | None = None
        self.is_open = True

    def give_back(self, *, reusable: bool, idle_seconds: float = float("inf")) -> None:
        """Give back whatever it is, in whatever state; the second time nothing is done.

        Args:
            reusable: whether the connection, if there is one, can take another request. Otherwise it is aborted.
            idle_seconds: how long the server will keep it, by its own word.
        """
        if self.is_open:
            self.release(reusable=reusable, idle_seconds=idle_seconds)
            self._pool._settle()

    def release(self, *, reusable: bool, idle_seconds: float = float("inf")) -> None:
        """The same, but what is to be done in consequence is left to whoever settles next."""
        pool, waiter = self._pool, self.waiter
        if reusable:
            # Whoever gets it next must not lose it if we are interrupted and our finaliser comes this way again.
            self.connection = None
        else:
            # Two, if one was just put in the place of the other.
            granted = None if waiter.slot is None else waiter.slot.connection
            for connection in (self.connection, granted):
                if connection is not None:
                    connection.abort()
        pool._step(pool._scheduler.release, waiter, pool._now(), reusable=reusable, idle_seconds=idle_seconds)
        self.is_open = False
        self.connection = None

    def __del__(self) -> None:
        # A constructor that was interrupted has left some of it out.
        if getattr(self, "is_open", False) and self.waiter.state is not WaiterState.NEW:
            self._pool._abandon(self)


class _Dial:
    """A connection in the making, so that closing the pool can end it."""

    __slots__ = ("deadline", "ssl_context", "stream")

    def __init__(self) -> None:
        self.deadline: Deadline | None = None
        self.ssl_context: ssl.SSLContext | None = None
        self.stream: Stream | None = None

    def end(self, now: float) -> None:
        """By another thread."""
        if self.deadline is not None:
            self.deadline.reschedule(0.0, now)
        self.abort()

    def abort(self) -> None:
        if self.stream is not None:
            self.stream.abort()

    async def advance(self, step: Callable[..., Awaitable[Stream]], *arguments: Any) -> Any:
        """Keep what a step makes before anybody is told of it, who might raise. Returns what is to be told."""
        self.stream = await step(*arguments)
        return self.stream.public


class Pool:
    """The pool behind `ConnectionPool`. See the top of the module.

    Args:
        world: blocking or async.
        limits: for the scheduler.
        options: how to open connections.
    """

    def __init__(self, world: World, limits: Limits, options: DialOptions) -> None:
        self._world = world
        self._runtime = world.runtime
        self._now = world.runtime.now
        self._limits = limits
        self._options = options
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._lock = self._runtime.create_lock()
        self._scheduler = Scheduler(self._limits, random.random)
        self._todo: deque[Action] = deque()
        self._abandoned: deque[Claim] = deque()
        self._sleepers: dict[Waiter, None] = {}
        self._dials: dict[_Dial, None] = {}
        # Whether a step was begun and not ended, and whose it was. Under the lock.
        self._is_torn = False
        self._torn_waiter: Waiter | None = None
        # Whether an action may have been lost. Set without the lock.
        self._is_doubtful = False

    # --- steps and actions ---------------------------------------------------------------------------------

    def _step(self, event: Callable[..., Sequence[Action]], *arguments: Any, **options: Any) -> None:
        """One event of the scheduler. Its actions are carried out by `_settle`, outside of the lock.

        Its first argument is the waiter that it is about, if it is about one.
        """
        with self._lock:
            self._begin_step(arguments[0] if arguments else None)
            self._todo.extend(event(*arguments, **options))
            self._is_torn = False

    def _begin_step(self, subject: object) -> None:
        if self._is_torn or self._is_doubtful:
            self._is_torn = True
            self._is_doubtful = False
            self._todo.extend(self._scheduler.rebuild(self._torn_waiter))
        self._torn_waiter = subject if isinstance(subject, Waiter) else None
        self._is_torn = True

    def _settle(self) -> None:
        """Carry out what there is to do, until there is nothing."""
        if self._is_torn or self._is_doubtful:
            self._step(_no_event)  # for what is to be made good
        try:
            while self._todo or self._abandoned:
                self._reclaim()
                try:
                    action = self._todo.popleft()
                except IndexError:
                    continue  # another thread was faster
                self._carry_out(action)
        except BaseException:
            self._is_doubtful = True
            self._raise_alarm()
            raise

    def _carry_out(self, action: Action) -> None:
        if isinstance(action, Close):
            slot = action.slot
            if slot.in_use:
                slot.connection.abort()  # only the end of the pool closes what is in use
            else:
                slot.connection.close_now()
            self._step(self._scheduler.closed, slot)
        elif action.waiter.payload is not None:
            action.waiter.payload.set()

    def _abandon(self, claim: Claim) -> None:
        """Take over what a dropped claim held. Called by finalisers: no locks, no waiting."""
        self._abandoned.append(claim)  # which revives it; Python calls no finaliser twice
        self._raise_alarm()

    def _raise_alarm(self) -> None:
        """Have a waiting request settle what is left undone here."""
        try:
            sleeper = next(iter(self._sleepers), None)
        except RuntimeError:
            return  # somebody is falling asleep or waking up in another thread at this moment, and will look
        if sleeper is not None:
            sleeper.payload.set()

    def _reclaim(self) -> None:
        while True:
            try:
                claim = self._abandoned[0]  # taken off only when it is done: there is no second finaliser
            except IndexError:
                return
            if claim.is_open:
                claim.release(reusable=False)
            try:
                self._abandoned.remove(claim)
            except ValueError:
                pass  # another thread was faster

    # --- a request -----------------------------------------------------------------------------------------

    async def handle_request(self, request: Request) -> Response:
        """Send a request, and return the response with its body still to come.

        Raises:
            LaminaError: see `ConnectionPool.handle_request`. No connection is held then.
        """
        framing = check_request(request, blocking=self._world.is_blocking)
        timeouts = Timeouts.from_extensions(request.extensions)
        origin = request.url.origin
        claim = Claim(self, ConnectionKey(origin, request.extensions.get("sni_hostname")))
        try:
            head, connection = await self._exchange(claim, request, framing, timeouts)
            body = ResponseBody(
                self, claim, connection, request, timeouts.read, switched=head.switches_protocol
            )
            extensions: dict[str, Any] = {"http_version": head.http_version, "reason_phrase": head.reason}
            if head.switches_protocol:
                extensions["network_stream"] = self._world.switched_stream(body, connection.left_over)
            else:
                extensions["network_stream"] = connection.stream.public
            extensions["trailers"] = body.trailers
            return Response.received(head.status, head.headers, self._world.response_stream(body), extensions)
        except LaminaError as error:
            claim.give_back(reusable=claim.connection is None)
            explained = self.explain(error, origin)
            raise explained from explained.__cause__
        except BaseException:
            claim.give_back(reusable=claim.connection is None)
            raise

    async def _exchange(
        self, claim: Claim, request: Request, framing: RequestFraming, timeouts: Timeouts
    ) -> tuple[ResponseHead, HTTP11Connection]:
        """Get a connection, send the request, receive the head of the response; once more if that is safe."""
        limit = Limit(timeouts.pool, self._now, "pool")
        connection = await self._acquire(claim, request, timeouts, limit)
        has_failed = False
        body = self._world.body_source(request.stream)
        try:
            while True:
                try:
                    head = await connection.send_request(request, framing, body, timeouts)
                except StaleConnectionError as stale:
                    connection.abort()
                    is_unsent = stale.bytes_sent == 0
                    is_safe = is_unsent or (framing.is_idempotent and framing.is_replayable)
                    if has_failed or not is_safe or (body.has_begun and not framing.is_replayable):
                        raise stale.cause from stale.cause.__cause__
                    # A connection found dead before anything was sent costs nothing, so the next idle one may be
                    # tried. One that died under the request was the one chance: now only a new one will do.
                    has_failed = not is_unsent
                    connection = await self._replace(claim, request, timeouts, limit, fresh=has_failed)
                    if body.has_begun:
                        await body.aclose()
                        body = self._world.body_source(request.stream)
                else:
                    return head, connection
        finally:
            await body.aclose()

    async def _acquire(
        self, claim: Claim, request: Request, timeouts: Timeouts, limit: Limit
    ) -> HTTP11Connection:
        if limit.is_ambient:
            Limit(None, self._now, "pool").check()  # a pool timeout of 0 still takes what needs no waiting
        self._reclaim()
        waiter = claim.waiter
        with self._lock:
            self._begin_step(waiter)
            self._todo.extend(self._scheduler.acquire(waiter, self._now()))
            if waiter.state is WaiterState.PARKED:
                self._fall_asleep(waiter)
            self._is_torn = False
        self._settle()
        return await self._granted(claim, request, timeouts, limit)

    async def _replace(
        self, claim: Claim, request: Request, timeouts: Timeouts, limit: Limit, *, fresh: bool
    ) -> HTTP11Connection:
        """The claim's connection was dead, and is closed; get another one in its place."""
        waiter = claim.waiter
        with self._lock:
            self._begin_step(waiter)
            self._todo.extend(self._scheduler.replace(waiter, self._now(), fresh=fresh))
            if waiter.state is WaiterState.PARKED:
                self._fall_asleep(waiter)
            self._is_torn = False
        claim.connection = None  # not before: nobody may take the dead one for one that was never touched
        self._settle()
        return await self._granted(claim, request, timeouts, limit)

    async def _granted(
        self, claim: Claim, request: Request, timeouts: Timeouts, limit: Limit
    ) -> HTTP11Connection:
        """Wait for the scheduler's answer, and do what it says."""
        waiter = claim.waiter
        if waiter.state is WaiterState.PARKED:
            await self._sleep_until_served(waiter, limit)
        if waiter.state is WaiterState.DIALLING:
            await self._dial(claim, request, timeouts)
            self._step(self._scheduler.opened, waiter, claim.connection, self._now())
            self._settle()
        if waiter.state is WaiterState.REFUSED or waiter.slot is None:
            raise PoolClosed(phase="pool")
        claim.connection = waiter.slot.connection
        return waiter.slot.connection  # type: ignore[no-any-return] # the scheduler knows connections as Any

    def _fall_asleep(self, waiter: Waiter) -> None:
        waiter.payload = self._runtime.create_event()
        self._sleepers[waiter] = None

    async def _sleep_until_served(self, waiter: Waiter, limit: Limit) -> None:
        try:
            while waiter.state is WaiterState.PARKED:
                seconds = limit.remaining()
                if limit.is_ambient and self._world.is_blocking:
                    seconds = GLANCE_SECONDS if seconds is None else min(seconds, GLANCE_SECONDS)
                if not await waiter.payload.wait(seconds) and limit.expired():
                    raise limit.error(f"no connection became free: {self._describe_counts()}")
                # First a new alarm, then a look: what is left undone in between is seen by the one or the other.
                self._renew_alarm(waiter)
                self._settle()
        finally:
            self._sleepers.pop(waiter, None)
            self._settle()  # the alarm may have been meant for anybody

    def _renew_alarm(self, waiter: Waiter) -> None:
        """Let a waiter that was woken by a finaliser sleep on; an event can be set only once."""
        with self._lock:
            if waiter.state is WaiterState.PARKED and waiter.payload.is_set():
                waiter.payload = self._runtime.create_event()

    def explain(self, error: LaminaError, origin: Origin) -> LaminaError:
        """Say which origin it was; and if the pool was closed under the request, say that instead."""
        if self._scheduler.is_closed and not isinstance(error, (PoolClosed, ValueError, TypeError)):
            closed = PoolClosed("the pool was closed while the request was under way", phase=error.phase)
            closed.__cause__ = error
            error = closed
        if error.origin is None:
            error.origin = str(origin)
        return error

    # --- opening connections -------------------------------------------------------------------------------

    async def _dial(self, claim: Claim, request: Request, timeouts: Timeouts) -> None:
        """Open the claim's connection, with as many new attempts as the pool's `retries` allow."""
        dial, outer = _Dial(), current_deadline()
        try:
            try:
                await self._dial_with_retries(dial, claim, request, timeouts)
            finally:
                self._end_dial(dial, outer)
        finally:
            # Again, should an exception have struck in the midst of it: a deadline that stayed open would be that of
            # everything that this thread or task does afterwards.
            self._end_dial(dial, outer)

    def _end_dial(self, dial: _Dial, outer: Deadline | None) -> None:
        while (inner := current_deadline()) is not None and inner is not outer:
            close_deadline(inner)
        self._dials.pop(dial, None)

    async def _dial_with_retries(
        self, dial: _Dial, claim: Claim, request: Request, timeouts: Timeouts
    ) -> None:
        trace = Tracer.of(request, "connection")
        try:
            dial.deadline = open_deadline(None, self._now())
            self._dials[dial] = None
            if self._scheduler.is_closed:
                raise PoolClosed(phase="connect")
            if request.url.scheme in (b"https", b"wss"):
                # The first default context of the process takes a while to build: not at the cost of the time-out.
                dial.ssl_context = self._options.ssl_context or shared_ssl_context(("http/1.1",))
            for delay in _backoff(self._options.retries):
                try:
                    await self._connect(dial, request, timeouts.connect, trace)
                    claim.connection = HTTP11Connection(dial.stream, self._runtime)  # type: ignore[arg-type] # connected
                    return
                except (ConnectError, ConnectTimeout):
                    if delay is None or self._scheduler.is_closed:
                        raise
                if trace is None:
                    await self._world.sleep(delay)
                else:
                    await trace.around("retry", {}, self._world.sleep, delay)
            raise AssertionError("unreachable: the last attempt returns or raises")
        except DeadlineExceeded as error:
            if error.deadline is dial.deadline:
                raise PoolClosed("the pool was closed while connecting", phase=error.phase) from error
            if error.phase is None:
                error.phase = "connect"  # from the sleep, which serves everybody and knows no phase
            raise
        except BaseException:
            dial.abort()
            raise

    async def _connect(
        self, dial: _Dial, request: Request, timeout: float | None, trace: Tracer | None
    ) -> None:
        """One attempt: all of it, TLS included, within `timeout` seconds."""
        limit = Limit(timeout, self._now, "connect")
        dial.stream = None
        try:
            await self._connect_transport(dial, request.url.origin, limit, trace)
            if dial.ssl_context is not None:
                await self._start_tls(dial, dial.ssl_context, request, limit, trace)
        except BaseException:
            dial.abort()
            raise

    async def _connect_transport(
        self, dial: _Dial, origin: Origin, limit: Limit, trace: Tracer | None
    ) -> None:
        options = self._options
        remaining = limit.remaining()
        info: dict[str, Any]
        connect: Callable[..., Awaitable[Stream]]
        if options.uds is not None:
            info = {"path": options.uds, "timeout": remaining, "socket_options": options.socket_options}
            name, connect = "connect_unix_socket", self._world.connect_unix_socket
        else:
            info = {
                "host": origin.host.decode("ascii"),
                "port": origin.port,
                "timeout": remaining,
                "local_address": options.local_address,
                "socket_options": options.socket_options,
            }
            name, connect = "connect_tcp", self._world.connect_tcp
        if trace is None:
            await dial.advance(connect, *info.values())
        else:
            await trace.around(name, info, dial.advance, connect, *info.values())

    async def _start_tls(
        self, dial: _Dial, context: ssl.SSLContext, request: Request, limit: Limit, trace: Tracer | None
    ) -> None:
        stream: Stream = dial.stream  # type: ignore[assignment] # connected
        hostname = request.extensions.get("sni_hostname") or server_name(request.url.host)
        limit.phase = "tls"
        limit.check()
        remaining = limit.remaining()
        if trace is None:
            await dial.advance(stream.start_tls, context, hostname, remaining)
        else:
            info: dict[str, Any] = {"ssl_context": context, "server_hostname": hostname, "timeout": remaining}
            await trace.around("start_tls", info, dial.advance, stream.start_tls, *info.values())
        stream = dial.stream  # type: ignore[assignment] # as before, inside of TLS
        ssl_object = stream.get_extra_info("ssl_object")
        protocol = None if ssl_object is None else ssl_object.selected_alpn_protocol()
        if protocol not in (None, "http/1.1", "http/1.0"):
            raise ConnectError(
                f"the server chose the protocol {protocol!r}, which the ssl_context offers and this pool does not "
                "speak",
                phase="tls",
            )

    # --- the whole pool ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every connection, wake every waiting request, refuse what comes later. Never waits."""
        self._step(self._scheduler.close)
        now = self._now()
        for dial in list(self._dials):
            dial.end(now)
        self._settle()

    def stats(self) -> PoolStats:
        """Counts, in constant time."""
        self._settle()
        with self._lock:
            scheduler = self._scheduler
            return PoolStats(
                connections=scheduler.total,
                active=scheduler.active,
                idle=scheduler.idle,
                connecting=scheduler.dialling,
                queued=scheduler.waiting,
            )

    def connections(self) -> list[PooledConnection]:
        """What each connection is doing, oldest first."""
        self._settle()
        with self._lock:
            return [_snapshot(slot) for slot in self._scheduler.slots()]

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._scheduler.is_closed

    def _describe_counts(self) -> str:
        stats = self.stats()
        return (
            f"connections: {stats.active} active, {stats.connecting} connecting, {stats.idle} idle; "
            f"requests queued: {stats.queued}"
        )

    def _forget_inherited(self) -> None:
        """In a forked child: leave the parent's connections to the parent, and begin anew."""
        slots = self._scheduler.slots()
        is_closed = self._scheduler.is_closed
        dials = list(self._dials)
        self._reset()
        self._scheduler.is_closed = is_closed
        for dial in dials:
            dial.abort()
        for slot in slots:
            if slot.connection is not None:
                slot.connection.abort()  # which, on an inherited socket, only closes our copy
            slot.state = SlotState.GONE  # for claims that the child has inherited

    def __del__(self) -> None:
        scheduler: Scheduler | None = getattr(self, "_scheduler", None)
        if scheduler is None or scheduler.is_closed or not scheduler.total:
            return
        total = scheduler.total
        for slot in scheduler.slots():
            if slot.connection is not None:
                slot.connection.abort()
        # Last, since a filter may make an exception of it.
        warnings.warn(f"unclosed pool with {total} connections", ResourceWarning, source=self, stacklevel=1)


class ResponseBody:
    """The body of a response on its way in, and with it the hold on its connection.

    The connection goes back to the pool as soon as the body has been read to its end, or when it is closed.

    Attributes:
        trailers: empty until the end of the body.
    """

    __slots__ = (
        "_claim",
        "_connection",
        "_is_complete",
        "_is_open",
        "_is_traced",
        "_opened_at",
        "_pool",
        "_reading",
        "_request",
        "_switched",
        "_timeout",
        "_trace",
        "trailers",
    )

    def __init__(
        self,
        pool: Pool,
        claim: Claim,
        connection: HTTP11Connection,
        request: Request,
        timeout: float | None,
        *,
        switched: bool,
    ) -> None:
        self._pool = pool
        self._claim = claim
        self._connection = connection
        self._request = request
        self._timeout = timeout
        self._switched = switched
        self._trace = Tracer.of(request, "http11")
        self._is_traced = False
        self._opened_at = pool._now()
        self._is_open = True
        self._is_complete = switched
        # A raw lock, only ever tried: it tells a second reader, in a thread or a task, from the first.
        self._reading = _thread.allocate_lock()
        self.trailers: Headers = []

    async def receive(self) -> bytes:
        """The next bytes, as many as are here; `b""` at the end.

        Raises:
            ConcurrencyError: another thread or task is reading.
            ResponseStateError: the body was closed before its end.
            PoolClosed: the pool was.
            ReadTimeout, ReadError, RemoteProtocolError, DeadlineExceeded: the connection is given up.
        """
        if not self._reading.acquire(False):
            raise ConcurrencyError("another thread or task is reading this response", phase="read")
        try:
            if not self._is_open or self._switched:
                return self._after_the_end()
            if self._trace is None:
                return await self._receive()
            return await self._receive_traced(self._trace)
        finally:
            self._reading.release()

    async def _receive(self) -> bytes:
        connection = self._connection
        try:
            data = await connection.receive_body(self._timeout)
        except LaminaError as error:
            self._end(reusable=False)
            explained = self._pool.explain(error, self._request.url.origin)
            raise explained from explained.__cause__
        except BaseException:
            self._end(reusable=False)
            raise
        if connection.has_ended:
            self.trailers.extend(connection.trailers)
            self._is_complete = True
            self._give_back_whole()
        return data

    async def _receive_traced(self, trace: Tracer) -> bytes:
        if not self._is_traced:
            self._is_traced = True
            await trace.started("receive_response_body", {"request": self._request})
        try:
            data = await self._receive()
        except BaseException as error:
            await trace.failed("receive_response_body", error)
            await trace.around("response_closed", {}, _nothing)
            raise
        if not self._is_open:
            await trace.complete("receive_response_body")
            await trace.around("response_closed", {}, _nothing)
        return data

    def _after_the_end(self) -> bytes:
        if self._is_complete:
            return b""
        if self._pool.is_closed:
            raise PoolClosed(origin=str(self._request.url.origin), phase="read")
        raise ResponseStateError("the response was closed before its body had been read")

    @property
    def public_stream(self) -> Any:
        """The network stream that it comes over, as the backend gave it."""
        return self._connection.stream.public

    async def close(self) -> None:
        """Let go of the connection, whatever is unread. While another thread reads, that one gets `ReadError`."""
        if not self._is_open:
            return
        if not self._reading.acquire(False):
            self._connection.abort()
            return
        try:
            if not self._is_open:
                return
            try:
                if not self._switched:
                    await self._connection.drain()
            except BaseException:
                self._end(reusable=False)
                raise
            self._give_back_whole()
            if self._trace is not None:
                await self._trace.around("response_closed", {}, _nothing)
        finally:
            self._reading.release()

    def _give_back_whole(self) -> None:
        """Give back a connection that nothing has gone wrong with; the one gate decides what becomes of it."""
        connection = self._connection
        idle_seconds = connection.idle_seconds
        reusable = connection.start_next()
        if not reusable:
            connection.close_now()
        self._end(reusable=reusable, idle_seconds=idle_seconds)

    def _end(self, *, reusable: bool, idle_seconds: float = float("inf")) -> None:
        self._is_open = False
        self._claim.give_back(reusable=reusable, idle_seconds=idle_seconds)

    def __del__(self) -> None:
        # A constructor that was interrupted has left some of it out.
        if getattr(self, "_is_open", False) and self._claim.is_open:
            # Not left to the claim's own finaliser: whoever records the warning keeps us, and the claim with us.
            self._pool._abandon(self._claim)
            age = self._pool._now() - self._opened_at
            url = self._request.url
            # Without the query, which may hold secrets.
            path = url.target.partition(b"?")[0].decode("latin-1")
            warnings.warn(
                f"the response to {self._request.method.decode('ascii')} {url.origin}{path} was never read "
                f"to its end or closed; it came {age:.1f} s ago",
                ResourceWarning,
                source=self,
                stacklevel=2,
            )


def _no_event() -> Sequence[Action]:
    return ()


async def _nothing() -> None:
    """What is traced where httpcore has an event and we have nothing to wait for."""


def _snapshot(slot: Slot) -> PooledConnection:
    connection: HTTP11Connection | None = slot.connection
    origin: Origin = slot.key.origin  # type: ignore[attr-defined] # every key here is a ConnectionKey
    if connection is None:
        return PooledConnection(origin, "", "CONNECTING", 0)
    state = "CLOSED" if slot.state is not SlotState.OPEN else "IDLE" if slot.is_idle else "ACTIVE"
    return PooledConnection(origin, "HTTP/1.1", state, connection.exchanges)


def _backoff(retries: int) -> Iterator[float | None]:
    """How long to wait after each failed attempt; `None` after the last."""
    for attempt in range(retries):
        yield 0.0 if attempt == 0 else BACKOFF_SECONDS * 2.0 ** (attempt - 1)
    yield None


# Every pool of the process, for the child of a fork.
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_inherited() -> None:
    for pool in list(_pools):
        pool._forget_inherited()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
