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
- Code that is not ours can run there too: an abandoned generator that holds a response closes it when it is
  collected, a signal handler closes the pool. If it comes in the midst of a step of this very thread, its own step
  is put off until that one is done, where waiting for the lock would be for ever.
- A step, or an action, that an exception tore apart is marked as such beforehand. The next step has the scheduler
  compute everything again (`Scheduler.rebuild`).
- Everything that closes is a plain function that never waits, so no path of an error or a cancellation does.

A listener (`on_event`) is told of it all by `_observing.py`. What it is to be told is noted in the step in which it
happens, and told when no lock is held: `_tell` stands where a request, or closing, has come to such a place.
"""

from __future__ import annotations

import os
import random
import warnings
import weakref
from _thread import RLock, allocate_lock
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from lamina_interfaces import (
    ArgumentTypeError,
    ConcurrencyError,
    ConnectError,
    LaminaError,
    Limit,
    PoolClosed,
    PoolTimeout,
    chain_clock,
    interruptions,
    open_deadline,
)

from ._body import ResponseBody
from ._checks import Timeouts, check_request
from ._dialling import Dialler, LoneDial
from ._faces import WholeBody
from ._info import ConnectionInfo, facts_of, new_connection_id
from ._io import StaleConnectionError
from ._models import ByteStream, Request, Response
from ._releasing import CLOSE_REASONS, ReleaseReason, is_nested, locked_code
from ._scheduler import (
    PRESUMED_STREAMS,
    Close,
    CloseReason,
    Scheduler,
    SlotState,
    Waiter,
    WaiterState,
    Wake,
)
from ._stats import count_all, count_each_origin, count_origin, describe_counts, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lamina_interfaces import TimeoutException, TimingSpan

    from ._checks import RequestFraming
    from ._dialling import ConnectionKey, DialOptions
    from ._events import PoolEvent
    from ._http2_connection import HTTP2Connection
    from ._http11 import ResponseHead
    from ._info import ConnectionFacts
    from ._io import BodySource, Connection, Exchange, World
    from ._observing import Observer, RequestRecord
    from ._scheduler import Action, Limits, Slot
    from ._stats import PooledConnection, PoolStats
    from ._urls import Origin


T = TypeVar("T")
Event: TypeAlias = "Callable[..., Sequence[Action] | None]"
"""What happens in one step: mostly a method of the scheduler."""

MAX_REFUSALS = 5
"""How often a request is sent again though servers have refused it that dealt with no other one either."""


LOOK_SECONDS = 0.1
"""How often whoever waits for a connection that may carry nothing for the moment sees whether that has changed."""

# What every request asks for: a member of an enumeration is slow to look up.
_GRANTED, _PARKED, _REFUSED = WaiterState.GRANTED, WaiterState.PARKED, WaiterState.REFUSED

# Whom an event is about that is about no request.
_NOBODY = Waiter(None)

# Of all requests where nothing may follow the head. Nobody asks it for anything.
_NO_BODY = WholeBody(ByteStream(b""))


class Claim:
    """What one request holds of the pool. Given back once, by `give_back` or by its finaliser."""

    __slots__ = ("_pool", "connection", "is_open", "key", "record", "spans", "waiter")

    def __init__(self, pool: Pool, key: ConnectionKey) -> None:
        self._pool = pool
        self.key = key
        self.waiter = Waiter(key)
        # First the connection that it has opened, then what the request has of it.
        self.connection: Connection | Exchange | None = None
        self.is_open = True
        self.record: RequestRecord | None = None  # where there is a listener
        self.spans: Sequence[TimingSpan] = ()  # of the handshakes with a proxy

    def give_back(self, *, reusable: bool, idle_seconds: float | None = None) -> None:
        """Give back whatever it is, in whatever state; the second time nothing is done.

        Args:
            reusable: whether the connection, if there is one, can take another request. Otherwise it is aborted.
            idle_seconds: how long the server will keep it, by what it said in answer; `None` if nothing was asked.
        """
        if self.is_open:
            self.release(reusable=reusable, idle_seconds=idle_seconds)
            # Open until that is done, too: if an interrupt keeps us from it our finaliser wakes somebody who does it.
            if self._pool._is_unsettled:
                self._pool._settle()
            self.is_open = False

    def release(self, *, reusable: bool, idle_seconds: float | None = None) -> None:
        """The same, but what is to be done in consequence is left to whoever settles next. May be repeated."""
        pool, waiter, opened = self._pool, self.waiter, self.connection
        if reusable:
            # Whoever gets it next must not lose it if we are interrupted and our finaliser comes this way again.
            self.connection = None
        elif waiter.state is not _GRANTED:
            if self.connection is not None:
                self.connection.abort()  # opened, and not the pool's yet
        else:
            # Two, if one was just put in the place of the other.
            granted = None if waiter.slot is None else waiter.slot.connection
            for connection in (self.connection, granted):
                if connection is not None:
                    reusable = connection.give_up()
        event = pool._scheduler.release
        if self.record is None or self.record.has_ended:
            pool._step_of(waiter, event, waiter, pool._now(), reusable, idle_seconds)
        else:
            observed = partial(event, reusable=reusable, idle_seconds=idle_seconds)
            closed = None if reusable else opened
            pool._step_of(waiter, pool._end_observed, waiter, observed, self.record, closed)
        if pool._sleepers:
            pool._sleepers.pop(waiter, None)  # where an interrupt kept it from falling asleep
        self.connection = None

    def __del__(self) -> None:
        # A constructor that was interrupted has left some of it out.
        if getattr(self, "is_open", False) and self.waiter.state is not WaiterState.NEW:
            if self.record is not None:
                self.record.note_reason(ReleaseReason.ABANDONED)
            self._pool._abandon(self)


class Pool:
    """The pool behind `ConnectionPool`. See the top of the module.

    Args:
        world: blocking or async.
        limits: for the scheduler.
        options: how to open connections.
        on_event: the listener, if there is one.
    """

    def __init__(
        self,
        world: World,
        limits: Limits,
        options: DialOptions,
        on_event: Callable[[PoolEvent], object] | None = None,
    ) -> None:
        self._world = world
        self._limits = limits
        self._options = options
        self._observer: Observer | None = None
        if on_event is not None:
            from ._observing import Observer  # with all events, which nobody else needs

            self._observer = Observer(on_event)
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._runtime = self._world.runtime
        self._now = self._runtime.now
        # Never taken twice. It is one that knows its owner from the moment on that it is taken: `is_in_step` asks for
        # that, and a note made afterwards would be too late for a signal handler in between. `threading.Condition`
        # asks in the same way; the type stubs leave the method out.
        self._lock: Any = RLock()
        self._put_off: deque[tuple[Waiter, Event, tuple[Any, ...]]] = deque()
        self._scheduler = self._create_scheduler()
        self._todo: deque[Action] = deque()
        self._abandoned: deque[Claim] = deque()
        self._sleepers: dict[Waiter, None] = {}
        self._dialler = self._create_dialler()
        self._lone_dials: dict[Slot, LoneDial] = {}
        # Whose step was begun and not ended. Under the lock.
        self._torn: Waiter | None = None
        # Whether an action may have been lost. Set without the lock.
        self._is_doubtful = False

    # --- what is otherwise where there is but one connection, in `_lone.py` -----------------------------------

    can_connect_again = True
    """Whether there may be another connection for a request whose first one has failed."""

    def _create_scheduler(self) -> Scheduler:
        return Scheduler(self._limits, random.random)

    def _create_dialler(self) -> Dialler:
        return Dialler(self._world, self._options)

    def _route(self, request: Request, framing: RequestFraming) -> tuple[ConnectionKey, RequestFraming]:
        return self._dialler.route(request, framing)

    def _refusal(self) -> LaminaError:
        """What a request is told that gets no connection."""
        return PoolClosed(phase="pool")

    def _describe_unclosed(self, connections: int) -> str:
        return f"unclosed pool with {connections} connections"

    # --- steps and actions ---------------------------------------------------------------------------------

    def _step(self, event: Event, *arguments: Any) -> None:
        """One event of the scheduler. Its actions are carried out by `_settle`, outside of the lock."""
        self._step_of(_NOBODY, event, *arguments)

    def _step_of(self, waiter: Waiter, event: Event, *arguments: Any) -> None:
        """The same for an event that is about a waiter, which is mostly among the arguments as well."""
        lock = self._lock
        if lock._is_owned():
            self._put_off.append((waiter, event, arguments))
            return
        with lock:
            if self._torn is not None or self._is_doubtful:
                self._make_good()
            self._torn = waiter
            is_put_off = False
            while True:
                actions = event(*arguments)
                if actions:
                    self._todo.extend(actions)
                if waiter.state is _PARKED:
                    waiter.payload = self._runtime.create_event()
                    self._sleepers[waiter] = None
                self._torn = None
                if is_put_off:
                    # Only now: an interrupt must not lose it, and none of these does harm if it is repeated.
                    self._put_off.popleft()
                if not self._put_off:
                    break
                waiter, event, arguments = self._put_off[0]
                is_put_off = True
                self._torn = waiter

    @property
    def _is_unsettled(self) -> bool:
        """Whether there is anything to settle. To be asked last: then nothing can come that nobody is told of."""
        return bool(self._todo or self._abandoned or self._put_off or self._is_doubtful)

    def _make_good(self) -> None:
        if self._torn is None:
            self._torn = _NOBODY
        self._is_doubtful = False
        self._todo.extend(self._scheduler.rebuild(self._torn))

    @property
    def is_in_step(self) -> bool:
        """Whether this very thread is in the midst of a step: this is a finaliser, or a signal handler."""
        is_owned: bool = self._lock._is_owned()
        return is_owned

    @property
    def may_wait(self) -> bool:
        """Whether the caller may wait for a connection of this pool: not within a step, nor in another event loop."""
        return not self.is_in_step and self._runtime.is_here()

    def _settle(self) -> None:
        """Carry out what there is to do, until there is nothing."""
        if self._lock._is_owned():
            return  # whoever is in it will
        try:
            if self._torn is not None or self._is_doubtful or self._put_off:
                self._step(_no_event)  # for what is to be made good
            while self._todo or self._abandoned:
                if self._abandoned:
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
        if isinstance(action, Wake):
            if action.waiter.payload is not None:
                action.waiter.payload.set()
        elif isinstance(action, Close):
            slot = action.slot
            if slot.in_use:
                slot.connection.abort()  # only the end of the pool closes what is in use
            else:
                slot.connection.close_now()
            if self._observer is not None:
                self._observer.note_closed(slot.connection, action.reason, self._now())
            self._step(self._scheduler.closed, slot)
        else:
            lone = self._lone_dials.get(action.slot)
            if lone is not None:
                lone.give_up()

    def _abandon(self, claim: Claim) -> None:
        """Take over what a dropped claim held. Called by finalisers: no locks, no waiting."""
        self._abandoned.append(claim)  # which revives it; Python calls no finaliser twice
        self._raise_alarm()

    def _raise_alarm(self) -> None:
        """Have a waiting request settle what is left undone here, or else the event loop, where there is one."""
        try:
            sleeper = next(iter(self._sleepers), None)
        except RuntimeError:
            return  # somebody is falling asleep or waking up in another thread at this moment, and will look
        if sleeper is not None:
            sleeper.payload.set()
        elif not self._world.is_blocking:
            self._runtime.run_soon(self._settle_alone)

    def _settle_alone(self) -> None:
        self._settle()
        self._tell()

    def _reclaim(self) -> None:
        while True:
            try:
                claim = self._abandoned[0]  # taken off only when it is done: there is no second finaliser
            except IndexError:
                return
            if claim.is_open:
                claim.release(reusable=False)
                claim.is_open = False
                if self._observer is not None:
                    self._observer.leave(claim.record)
            try:
                self._abandoned.remove(claim)
            except ValueError:
                pass  # another thread was faster

    # --- what a listener is told ---------------------------------------------------------------------------

    def _tell(self, record: RequestRecord | None = None) -> None:
        """Tell what was noted. Called where no lock of ours is held, unless it is from within a step."""
        if self._observer is None:
            return
        if self.is_in_step:
            # Behind what is put off, and has yet to be noted.
            self._put_off.append((_NOBODY, self._observer.leave, (record,)))
        else:
            self._observer.tell(record)

    def tell_at_end(self, record: RequestRecord | None) -> None:
        """The same, where a finaliser or a signal handler may be the one who closes: perhaps in the midst of a step."""
        if self._observer is not None and not self.is_in_step and is_nested():
            self._observer.leave(record)
        else:
            self._tell(record)

    def _note_acquired(self, waiter: Waiter, record: RequestRecord) -> Sequence[Action]:
        slot = waiter.slot
        if slot is not None and slot.connection is not None:
            record.note_acquired(slot.connection.facts, waiter.turn, self._now())
        return ()

    def _let_go_observed(
        self,
        waiter: Waiter,
        event: Callable[..., Sequence[Action]],
        record: RequestRecord,
        opened: Connection | Exchange | None,
    ) -> Sequence[Action]:
        """Have a request let go of what it holds, by `event`, and note what becomes of its connection.

        Args:
            waiter: of the request.
            event: of the scheduler.
            record: of the request.
            opened: what it has opened, and closed again, if that was not the pool's yet.
        """
        now, reason = self._now(), record.reason or ReleaseReason.FAILED
        slot, was_granted = waiter.slot, waiter.state is WaiterState.GRANTED
        record.note_released(reason, now)
        actions = event(waiter, now)
        connection: Any = opened
        if was_granted:
            connection = slot.connection if slot is not None and slot.state is SlotState.GONE else None
        elif not hasattr(connection, "begin"):
            connection = None  # after an interrupt: what a request had of a shared connection, which lives
        if connection is not None and self._observer is not None:
            self._observer.note_closed(connection, CLOSE_REASONS[reason], now)
        return actions

    def _end_observed(
        self,
        waiter: Waiter,
        event: Callable[..., Sequence[Action]],
        record: RequestRecord,
        opened: Connection | Exchange | None,
    ) -> Sequence[Action]:
        actions = self._let_go_observed(waiter, event, record, opened)
        record.note_end(self._now())
        return actions

    def _note_sent(self, record: RequestRecord) -> None:
        record.note_sent(self._now())
        self._tell(record)

    # --- a request -----------------------------------------------------------------------------------------

    async def handle_request(self, request: Request) -> Response:
        """Send a request, and return the response with its body still to come.

        Raises:
            LaminaError: see `ConnectionPool.handle_request`. No connection is held then.
        """
        world, observer = self._world, self._observer
        if not (world.is_blocking or self._runtime.is_here()):
            self._move()
        if not isinstance(request, Request):
            raise ArgumentTypeError(f"request must be a Request, not {type(request).__name__}")
        framing = check_request(request, blocking=world.is_blocking)
        timeouts = Timeouts.from_extensions(request.extensions)
        key, framing = self._route(request, framing)
        claim = Claim(self, key)
        try:
            if observer is not None:
                claim.record = observer.start(request.method, request.url.origin, self._now())
            head, connection = await self._exchange(claim, request, framing, timeouts)
            http_version, status, reason, headers, switches = head
            body = ResponseBody(self, claim, connection, request, timeouts.read, switched=switches)
            facts: ConnectionFacts = connection.facts  # type: ignore[assignment] # known since it was opened
            extensions: dict[str, Any] = {
                "http_version": http_version,
                "reason_phrase": reason,
                "network_stream": connection.stream.public,
                "trailers": body.trailers,
                "connection": ConnectionInfo(facts, claim.waiter.turn, body.opened_at - facts.opened_at),
            }
            if http_version == b"HTTP/2":
                del extensions["reason_phrase"]
                extensions.update(connection.extensions)
            if switches:
                extensions["network_stream"] = world.switched_stream(body, connection.left_over)
            if claim.record is not None:
                claim.record.note_head(status, body.opened_at)
                self._tell(claim.record)
            return Response.received(status, headers, world.response_stream(body), extensions)
        except LaminaError as error:
            # A dial that has failed, others should not hope for.
            has_dialled = claim.waiter.state is WaiterState.DIALLING
            if claim.record is not None:
                claim.record.note_error(self.explain(error, request.url.origin))
            claim.give_back(reusable=claim.connection is None and not has_dialled)
            self._tell(claim.record)
            # Not by way of a variable, which its traceback would keep in a cycle, and the request with it.
            raise self.explain(error, request.url.origin)  # noqa: B904 - it has its cause already
        except BaseException as error:
            if claim.record is not None:
                claim.record.note_error(error)
            claim.give_back(reusable=claim.connection is None)
            self._tell(claim.record)
            self.explain_interruption(request.url.origin)
            raise

    async def _exchange(
        self, claim: Claim, request: Request, framing: RequestFraming, timeouts: Timeouts
    ) -> tuple[ResponseHead, Exchange]:
        """Get a connection, send the request, receive the head of the response; once more if that is safe."""
        limit = Limit(timeouts.pool, self._now, "pool")
        connection = self._ask(claim, limit)
        if connection is None:
            connection = await self._granted(claim, request, timeouts, limit)
        has_failed = False
        refusals = 0
        body: BodySource = _NO_BODY
        if framing.body != "none" or type(request.stream) is not ByteStream:
            body = self._world.body_source(request.stream)
        try:
            while True:
                if claim.record is not None:
                    connection.on_sent = partial(self._note_sent, claim.record)
                try:
                    head = await connection.send_request(request, framing, body, timeouts)
                except StaleConnectionError as stale:
                    connection.give_up()
                    refusals += stale.is_futile
                    is_unsent = stale.bytes_sent == 0
                    is_repeatable = framing.is_idempotent and framing.is_replayable
                    is_safe = is_unsent or (is_repeatable and self.can_connect_again)
                    is_hopeless = (has_failed and not is_unsent) or refusals > MAX_REFUSALS
                    if is_hopeless or not is_safe or (body.has_begun and not framing.is_replayable):
                        try:
                            raise stale.cause from stale.cause.__cause__
                        finally:
                            del stale.cause  # whose context this one is: a cycle
                    # A connection found dead or full before anything was sent costs nothing, so the next one may be
                    # tried. One that died under the request was the one chance: now only a new one will do.
                    has_failed |= not is_unsent
                    connection = await self._replace(claim, request, timeouts, limit, fresh=has_failed)
                    if body.has_begun:
                        await body.aclose()
                        body = self._world.body_source(request.stream)
                else:
                    connection.on_sent = None  # which leads back here, and the pool to an idle connection
                    return head, connection
        finally:
            if not body.is_whole:
                await body.aclose()

    def _ask(self, claim: Claim, limit: Limit) -> Exchange | None:
        """Ask the scheduler for a connection. If there is not one at once, `_granted` waits for its answer."""
        if limit.is_ambient:
            Limit(None, self._now, "pool").check()  # a pool timeout of 0 still takes what needs no waiting
        if self._lock._is_owned():
            raise ConcurrencyError(
                "a finaliser or signal handler sent a request in the midst of a step of the pool"
            )
        if self._abandoned:
            self._reclaim()
        waiter = claim.waiter
        expected = PRESUMED_STREAMS if claim.key.protocols[0] == "h2" else 1
        self._step_of(waiter, self._scheduler.acquire, waiter, self._now(), expected)
        if self._is_unsettled:
            self._settle()
        if waiter.state is _GRANTED and waiter.payload is None and claim.record is None:
            exchange: Exchange = waiter.slot.connection.begin()  # type: ignore[union-attr] # it is granted
            claim.connection = exchange
            return exchange  # nearly always
        return None

    async def _replace(
        self, claim: Claim, request: Request, timeouts: Timeouts, limit: Limit, *, fresh: bool
    ) -> Exchange:
        """The claim's connection was dead, and is closed, or others' requests go on there; get another one."""
        event: Callable[..., Sequence[Action]] = self._scheduler.renew
        if claim.connection is None or claim.connection.is_exclusive:
            event = partial(self._scheduler.replace, fresh=fresh)
        if claim.record is None:
            self._step_of(claim.waiter, event, claim.waiter, self._now())
        else:
            claim.record.reason = ReleaseReason.STALE
            self._step_of(claim.waiter, self._let_go_observed, claim.waiter, event, claim.record, None)
            claim.record.reason = None
        claim.connection = None  # not before: nobody may take the dead one for one that was never touched
        self._settle()
        return await self._granted(claim, request, timeouts, limit)

    async def _granted(self, claim: Claim, request: Request, timeouts: Timeouts, limit: Limit) -> Exchange:
        """Wait for the scheduler's answer, and do what it says."""
        waiter, record = claim.waiter, claim.record
        if waiter in self._sleepers:  # perhaps served already: by the closing of an idle connection
            await self._sleep_until_served(claim, limit)
        if record is not None:
            self._tell(record)
        while waiter.state is WaiterState.DIALLING:
            if self._world.is_blocking or claim.key.protocols[0] != "h2":
                await self._dial(claim, request, timeouts)
            else:
                await self._have_dialled(claim, request, timeouts, limit)
        exchange = self._take_granted(claim)
        if record is not None:
            self._step_of(waiter, self._note_acquired, waiter, record)
            if self._is_unsettled:
                self._settle()
            self._tell(record)
        return exchange

    def _take_granted(self, claim: Claim) -> Exchange:
        slot = claim.waiter.slot
        if slot is None or claim.waiter.state is _REFUSED:
            self._check_here()
            raise self._refusal()
        exchange: Exchange = slot.connection.begin()
        claim.connection = exchange
        return exchange

    async def _dial(
        self, claim: Claim, request: Request, timeouts: Timeouts, lone: LoneDial | None = None
    ) -> None:
        waiter, record = claim.waiter, claim.record
        connection_id = new_connection_id()
        if record is not None:
            record.note_dial(connection_id, self._now())
        try:
            await self._dialler.dial(claim, request, timeouts, lone)
        except PoolClosed:
            self._check_here()
            raise
        self._check_here()
        connection: Any = claim.connection
        connection.facts = facts_of(
            connection.stream,
            connection_id=connection_id,
            origin=claim.key.origin,
            http_version=connection.http_version,
            proxy=None if self._options.proxy is None else self._options.proxy.origin,
            spans=claim.spans,
            opened_at=self._now(),
        )
        if record is not None:
            # And told now: once it is the pool's, somebody else may tell of its end.
            record.note_opened(connection.facts)
            self._tell(record)
        slot = waiter.slot
        if slot is not None and not connection.is_exclusive:
            if (expected := self._scheduler.expected(claim.key)) is not None:
                connection.presume(expected)
            connection.on_change = partial(_capacity_changed, weakref.ref(self), slot)
        now, capacity = self._now(), connection.capacity
        self._step_of(waiter, self._scheduler.opened, waiter, connection, now, capacity)
        if waiter.state is WaiterState.DONE:
            claim.connection = None  # it belongs to those who hoped for it
        self._settle()

    async def _have_dialled(self, claim: Claim, request: Request, timeouts: Timeouts, limit: Limit) -> None:
        """Have a connection that others may hope for opened by a task of its own, and wait as they do.

        So it survives the cancellation of this request, if anybody else wants it.
        """
        lone = LoneDial(Claim(self, claim.key))
        if claim.record is not None:
            lone.claim.record = claim.record.for_lone_dial(self._now())
        asker, dialler = claim.waiter, lone.claim.waiter
        self._step_of(asker, self._scheduler.detach, asker, dialler, self._now())
        lone.slot = lone.claim.waiter.slot
        self._lone_dials[lone.slot] = lone
        # Its task has no deadlines of ours. But the clock of a chain of them is that of the backend's, too.
        step = partial(self._dial_alone, lone, claim.waiter, request, timeouts, chain_clock(self._now))
        if not self._runtime.spawn(step):
            self._end_lone_dial(
                lone, claim.waiter, PoolClosed("the event loop is about to end", phase="connect")
            )
        await self._sleep_until_served(claim, limit, lone)
        failure, lone.failure = lone.failure, None
        if failure is not None and claim.waiter.state is not WaiterState.GRANTED:
            try:
                raise failure
            finally:
                del failure  # which its traceback would keep in a cycle

    async def _dial_alone(
        self, lone: LoneDial, opener: Waiter, request: Request, timeouts: Timeouts, clock: Callable[[], float]
    ) -> None:
        failure: Exception | None = ConnectError(
            "the task that opens the connection was cancelled", phase="connect"
        )
        open_deadline(None, clock)
        try:
            if not lone.is_given_up:
                await self._dial(lone.claim, request, timeouts, lone)
            failure = None
        except Exception as error:  # noqa: BLE001 - whoever began it raises it
            failure = error.with_traceback(None)  # which leads back here
        finally:
            self._end_lone_dial(lone, opener, failure)

    def _end_lone_dial(self, lone: LoneDial, opener: Waiter, failure: Exception | None) -> None:
        lone.failure = failure
        lone.has_ended = True
        self._lone_dials.pop(lone.slot, None)
        is_spent = failure is None or lone.is_given_up
        lone.claim.give_back(reusable=is_spent and lone.claim.connection is None)
        self._tell(lone.claim.record)
        if opener.payload is not None:
            opener.payload.set()

    async def _sleep_until_served(self, claim: Claim, limit: Limit, lone: LoneDial | None = None) -> None:
        waiter, record = claim.waiter, claim.record
        pool_limit = limit
        connect_limit = limit if lone is None else Limit(None, self._now, "connect")
        try:
            while waiter.state is WaiterState.PARKED:
                if lone is None or lone.has_ended:
                    if lone is not None and lone.failure is not None:
                        return
                    limit = pool_limit
                    if record is not None:
                        record.note_queued(self._now())
                else:
                    limit, limit.phase = connect_limit, lone.phase  # its dial has a time limit of its own
                if record is not None:
                    self._tell(record)
                if stalled := self._scheduler.stalled(waiter.key):
                    await self._look_at(stalled, claim, limit)
                elif not await limit.wait_for(waiter.payload, self._runtime) and limit.expired():
                    raise self._overslept(limit, claim, lone)
                if waiter.state is _PARKED:
                    # First a new alarm, then a look: what is left undone in between is seen by the one or the other.
                    if waiter.payload.is_set():
                        self._step_of(waiter, _no_event)
                    self._settle()
        except BaseException:
            if limit.expired():
                limit.interrupted(self._overslept(limit, claim, lone))
            raise
        finally:
            if record is not None:
                record.note_served(self._now())
            self._sleepers.pop(waiter, None)
            self._settle()  # the alarm may have been meant for anybody

    def _overslept(self, limit: Limit, claim: Claim, lone: LoneDial | None) -> TimeoutException:
        if lone is None or limit.phase == "pool":
            return self._pool_timeout(limit, claim)
        limit.phase = lone.phase  # it has got further since the wait began
        return limit.error()

    async def _look_at(self, stalled: list[Slot], claim: Claim, limit: Limit) -> None:
        """Connections that may carry nothing for the moment are read by nobody. Whoever waits for them does it."""
        await Limit(LOOK_SECONDS, self._now, "pool").wait_for(claim.waiter.payload, self._runtime)
        if limit.expired():
            raise self._pool_timeout(limit, claim)
        for slot in stalled:
            await slot.connection.look()

    def _pool_timeout(self, limit: Limit, claim: Claim) -> TimeoutException:
        stats = self._look(partial(count_origin, self._scheduler, self._now, claim.key))
        error = limit.error(f"no connection became free: {describe_counts(stats, claim.key.origin)}")
        if isinstance(error, PoolTimeout):
            error.stats = stats
        return error

    def explain(self, error: LaminaError, origin: Origin) -> LaminaError:
        """Say which origin it was; and if the pool was closed under the request, say that instead."""
        if self._scheduler.is_closed and not isinstance(error, (PoolClosed, ValueError, TypeError)):
            closed = PoolClosed("the pool was closed while the request was under way", phase=error.phase)
            closed.__cause__ = error
            error = closed
        if error.origin is None:
            error.origin = str(origin)
        return error

    def explain_interruption(self, origin: Origin) -> None:
        """The same for what a deadline's block will raise in the place of the cancellation that passes by."""
        for error in interruptions():
            self.explain(error, origin)

    def note_capacity(self, slot: Slot, connection: HTTP2Connection) -> None:
        """A connection can carry more, or fewer, requests at once than before; or takes no more."""
        self._step(self._look_at_capacity, slot, connection, self._now())
        self._settle()
        # Nobody else may come by: perhaps the farewell of a request that was given up has failed.
        self.tell_at_end(None)

    def _look_at_capacity(self, slot: Slot, connection: HTTP2Connection, now: float) -> Sequence[Action]:
        # Within the step, or of two threads the one with the older number might come last.
        if connection.is_retired:
            return self._scheduler.retire(slot, now)
        return self._scheduler.capacity_changed(slot, connection.capacity, now)

    # --- the whole pool ------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close every connection, wake every waiting request, refuse what comes later. Never waits."""
        self._step(self._scheduler.close)
        self._dialler.close()
        self._settle()
        self.tell_at_end(None)

    def reap(self) -> None:
        """Close the idle connections whose time is over."""
        self._step(self._scheduler.expire, self._now())
        self._settle()
        self.tell_at_end(None)

    def stats(self, *, per_origin: bool = False) -> PoolStats:
        """Counts, in constant time; or in proportion to the number of origins, with a row for each."""
        return self._look(partial(count_each_origin if per_origin else count_all, self._scheduler, self._now))

    def connections(self) -> list[PooledConnection]:
        """What each connection is doing, oldest first."""
        return self._look(lambda: [snapshot(slot) for slot in self._scheduler.slots()])

    def _look(self, look: Callable[[], T]) -> T:
        """Look at the scheduler when it is at rest; from within a step of this thread, as it is."""
        if self.is_in_step:
            return look()
        self._settle()
        found: list[T] = []

        def event() -> Sequence[Action]:
            found.append(look())
            return ()

        self._step(event)
        self._settle()  # what was put off meanwhile
        return found[0]

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._scheduler.is_closed

    def _move(self) -> None:
        """Into the event loop that the caller runs in, if the pool's own has ended. Its connections are lost with it.

        Raises:
            ConcurrencyError: it has not ended.
        """
        with _moving:
            if self._runtime.is_here():
                return  # another task was faster
            if not self._runtime.has_ended():
                raise ConcurrencyError(
                    "the pool is in use in another event loop; each needs a pool of its own"
                )
            self._world.move()
            # The loop may only stand still. When it goes on, whoever is on the way to a connection there has to end.
            stranded = self._sleepers
            self._dialler.close()
            self._begin_anew()
            for waiter in stranded:
                waiter.state = WaiterState.REFUSED
                waiter.payload.set()

    def _check_here(self) -> None:
        """Raise `ConcurrencyError` if the pool has moved on while this request was waiting."""
        if not self._runtime.is_here():
            raise ConcurrencyError("the pool has moved on to another event loop", phase="pool")

    def _begin_anew(self) -> None:
        """Drop everything: in a forked child, where the connections are the parent's, and in another event loop."""
        now = self._now()  # of the clock by which they were opened
        slots = self._scheduler.slots()
        is_closed = self._scheduler.is_closed
        self._dialler.abort()
        self._reset()
        self._scheduler.is_closed = self._dialler.is_closed = is_closed
        for slot in slots:
            if slot.connection is not None:
                slot.connection.abort()  # which, on an inherited socket, only closes our copy
                if self._observer is not None:
                    self._observer.note_closed(slot.connection, CloseReason.LOST, now)
            slot.state = SlotState.GONE  # for claims that are left from before

    def __del__(self) -> None:
        scheduler: Scheduler | None = getattr(self, "_scheduler", None)
        if scheduler is None or scheduler.is_closed or not scheduler.total:
            return
        total = scheduler.total
        for slot in scheduler.slots():
            if slot.connection is not None:
                slot.connection.abort()
                if self._observer is not None:
                    self._observer.note_closed(slot.connection, CloseReason.ABANDONED, self._now())
        if self._observer is not None:
            self._observer.leave()
        # Last, since a filter may make an exception of it.
        warnings.warn(self._describe_unclosed(total), ResourceWarning, source=self, stacklevel=1)


def _capacity_changed(pool_of: weakref.ref[Pool], slot: Slot, connection: HTTP2Connection) -> None:
    """A shared connection says that it can carry more, or fewer, requests than before, or no more for good."""
    pool = pool_of()
    if pool is not None:
        pool.note_capacity(slot, connection)


def _no_event() -> Sequence[Action]:
    """Nothing happens, but for what a step does by itself: make good, and give a parked waiter an alarm."""
    return ()


locked_code.add(Pool._step_of.__code__)

# One pool at a time changes its loop; it hardly ever happens.
_moving = allocate_lock()

# Every pool of the process, for the child of a fork.
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _forget_inherited() -> None:
    for pool in list(_pools):
        pool._world.leave()
        if pool._observer is not None:
            pool._observer.forget()
        pool._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
