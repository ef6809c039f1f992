"""The body of a response on its way in. Written once, as `_pool.py` is."""

from __future__ import annotations

import _thread
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lamina_interfaces import ConcurrencyError, LaminaError, PoolClosed, ReadError

from ._models import ResponseStateError
from ._releasing import ReleaseReason
from ._trace import nothing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._http11 import Headers
    from ._io import Exchange
    from ._models import Request
    from ._pool import Claim, Pool
    from ._trace import Tracer


class ResponseBody:
    """The body of a response on its way in, and with it the hold on its connection.

    The connection goes back to the pool as soon as the body has been read to its end, or when it is closed.

    Attributes:
        is_open: whether it has the connection still.
        opened_at: when the head had come, by the pool's clock.
        trailers: empty until the end of the body.
    """

    __slots__ = (
        "_claim",
        "_connection",
        "_guard",
        "_is_closing",
        "_is_complete",
        "_is_traced",
        "_now",
        "_pool",
        "_reading",
        "_record",
        "_request",
        "_switched",
        "_timeout",
        "_trace",
        "is_open",
        "opened_at",
        "trailers",
    )

    def __init__(
        self,
        pool: Pool,
        claim: Claim,
        connection: Exchange,
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
        self._trace = connection.trace
        self._is_traced = False
        self._now = pool._now  # kept: the pool may move to another event loop, whose clock is another
        self.opened_at = self._now()
        self._record = claim.record
        self.is_open = True
        self._is_complete = switched
        # A raw lock, only ever tried: it tells a second reader, in a thread or a task, from the first.
        self._reading = _thread.allocate_lock()
        # Held while the connection is given up. Whoever aborts a reader must not hit the connection's next user.
        self._guard = _thread.allocate_lock()
        self._is_closing = False
        self.trailers: Headers = []

    async def receive(self, *, whole: bool = False) -> bytes:
        """The next bytes, as many as are here; `b""` at the end.

        Args:
            whole: whether all of them are wanted, so that more may be waited for than is here.

        Raises:
            ConcurrencyError: another thread or task is reading, or it is another event loop's.
            ReadError: another thread or task is closing.
            ResponseStateError: the body was closed before its end.
            PoolClosed: the pool was.
            ReadTimeout, ReadError, RemoteProtocolError, DeadlineExceeded: the connection is given up.
        """
        if not self._reading.acquire(False):
            if self._is_closing:
                raise ReadError("the response is being closed", phase="read")
            raise ConcurrencyError("another thread or task is reading this response", phase="read")
        try:
            if not self.is_open or self._switched:
                return self._after_the_end()
            pool = self._pool
            if not (pool._world.is_blocking or pool._runtime.is_here()):
                raise ConcurrencyError("the response belongs to another event loop", phase="read")
            if self._trace is None:
                return await self._receive(whole)
            return await self._receive_traced(self._trace, whole)
        finally:
            self._reading.release()
            if self._record is not None:
                self._pool.tell_at_end(self._record)

    def take_whole(self) -> bytes:
        """All bytes, if they have come with the head, as most have; otherwise `b""`, and `receive_whole` has them.

        Never waits, so that it does without a coroutine.
        """
        if self._trace is not None or self._record is not None or not self._reading.acquire(False):
            return b""
        try:
            pool = self._pool
            if not self.is_open or self._switched or not (pool._world.is_blocking or pool._runtime.is_here()):
                return b""
            try:
                data = self._connection.take_whole()
                self._is_complete = bool(data)
            except BaseException:
                self._end(reusable=False)
                raise
            if data:
                self._give_back_whole()
            return data
        finally:
            self._reading.release()

    async def receive_whole(self) -> bytes:
        """All bytes up to the end. Errors are those of `receive`."""
        piece = await self.receive(whole=True)
        if self._is_complete:
            return piece  # at once, as most are
        pieces = [piece]
        while piece:
            piece = await self.receive(whole=True)
            pieces.append(piece)
        return b"".join(pieces)

    async def _receive(self, whole: bool) -> bytes:
        connection = self._connection
        receive = connection.receive_body_whole if whole else connection.receive_body
        try:
            data = await receive(self._timeout)
        except LaminaError as error:
            if self._record is not None:
                self._record.note_error(self._pool.explain(error, self._request.url.origin))
            self._end(reusable=False)
            raise self._pool.explain(error, self._request.url.origin)  # noqa: B904 - it has its cause already
        except BaseException as error:
            if self._record is not None:
                self._record.note_error(error)
            self._end(reusable=False)
            self._pool.explain_interruption(self._request.url.origin)
            raise
        if self._record is not None:
            self._record.size += len(data)
        if connection.has_ended:
            self.trailers.extend(connection.trailers)
            self._is_complete = True
            if self._record is not None:
                self._record.note_end_of_body(self._now())
            self._give_back_whole()
        return data

    async def _receive_traced(self, trace: Tracer, whole: bool) -> bytes:
        if not self._is_traced:
            self._is_traced = True
            await trace.started(
                "receive_response_body", {"request": self._request, **self._connection.extensions}
            )
        try:
            data = await self._receive(whole)
        except BaseException as error:
            await trace.failed("receive_response_body", error)
            await trace.around("response_closed", {**self._connection.extensions}, nothing)
            raise
        if not self.is_open:
            await trace.complete("receive_response_body")
            await trace.around("response_closed", {**self._connection.extensions}, nothing)
        return data

    def _after_the_end(self) -> bytes:
        if self._is_complete:
            return b""
        if self._pool.is_closed:
            raise PoolClosed(origin=str(self._request.url.origin), phase="read")
        raise ResponseStateError("the response was closed before its body had been read")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """For what is done with the stream after a switch of protocols: its errors are told as those of the pool."""
        origin = self._request.url.origin
        try:
            yield
        except LaminaError as error:
            raise self._pool.explain(error, origin)  # noqa: B904 - it has its cause already
        except BaseException:
            self._pool.explain_interruption(origin)
            raise

    @property
    def public_stream(self) -> Any:
        """The network stream that it comes over, as the backend gave it."""
        return self._connection.stream.public

    async def close(self) -> None:
        """Let go of the connection, whatever is unread. While another thread reads, that one gets `ReadError`."""
        if not self.is_open:
            return
        if not self._reading.acquire(False):
            self._interrupt_reader()
            return
        try:
            if not self.is_open:
                return
            self._is_closing = True
            self._note_close()
            if self._must_not_lock:
                self._end(reusable=False)
                return
            try:
                if not self._switched and self._pool.may_wait:
                    await self._connection.drain()
            except BaseException:
                self._end(reusable=False)
                raise
            self._give_back_whole()
            if self._trace is not None:
                await self._trace.around("response_closed", {**self._connection.extensions}, nothing)
        finally:
            self._reading.release()
            if self._record is not None:
                self._pool.tell_at_end(self._record)

    def abort(self) -> None:
        """Let go of the connection without farewell. Never waits; may be called by a finaliser."""
        if self.is_open:
            self._note_close()
            self._end(reusable=False)
            if self._record is not None:
                self._pool.tell_at_end(self._record)

    def _note_close(self) -> None:
        if self._record is not None:
            self._record.note_reason(
                ReleaseReason.COMPLETE if self._is_complete else ReleaseReason.CLOSED_EARLY
            )

    def _interrupt_reader(self) -> None:
        if self._guard.acquire(False):  # otherwise the reader is giving the connection up at this moment
            try:
                if self.is_open:
                    self._note_close()
                    self._connection.abort()
            finally:
                self._guard.release()

    def _give_back_whole(self) -> None:
        """Give back a connection that nothing has gone wrong with; the one gate decides what becomes of it."""
        connection = self._connection
        idle_seconds = connection.idle_seconds
        try:
            with self._guard:  # after this look at it nobody may abort it
                reusable = connection.start_next()
                self.is_open = False
            if not reusable:
                connection.close_now()
        except BaseException:
            self._end(reusable=False)
            raise
        self._let_go(reusable, idle_seconds)

    def _end(self, *, reusable: bool) -> None:
        with self._guard:
            self.is_open = False
        self._let_go(reusable)

    def _let_go(self, reusable: bool, idle_seconds: float | None = None) -> None:
        if self._must_not_lock:
            self._pool._abandon(self._claim)
        else:
            self._claim.give_back(reusable=reusable, idle_seconds=idle_seconds)

    @property
    def _must_not_lock(self) -> bool:
        """Whether this is a finaliser or a signal handler in the midst of a step of the pool, whose lock is ours.

        In the midst of a step of the connection another thread may do the same, and wait for the pool's lock.
        """
        return not self._connection.is_exclusive and self._pool.is_in_step

    def __del__(self) -> None:
        # A constructor that was interrupted has left some of it out.
        if getattr(self, "is_open", False) and self._claim.is_open:
            # Not left to the claim's own finaliser: whoever records the warning keeps us, and the claim with us.
            if self._record is not None:
                self._record.note_reason(ReleaseReason.ABANDONED)
            self._pool._abandon(self._claim)
            age = self._now() - self.opened_at
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
