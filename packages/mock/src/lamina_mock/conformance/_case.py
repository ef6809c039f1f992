"""What a rule works with: a stream to a peer that performs its acts, jobs beside it, and ways to say what is wrong."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    AsyncNetworkStreamInterface,
    DeadlineBlock,
    LaminaError,
    NetworkStreamInterface,
    ReadError,
    TimeoutException,
    async_stream_from_interface,
    chain_clock,
    current_runtime,
    running_runtime,
    stream_from_interface,
)

from . import _worlds
from ._peers import NotApplicable, Peer, Place, describe_bytes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from ._acts import Act

SHORT = 0.05
"""Seconds of a limit that is to be reached, before `Case.scale`."""

LONG = 1.5
"""Seconds of a limit that is not to be reached, before `Case.scale`."""


class Broken(Exception):
    """A rule is broken; the text says what was seen."""


class Stream:
    """The stream under test, blocking or async, with the methods of an `AsyncNetworkStream`.

    Attributes:
        raw: the stream itself.
    """

    def __init__(self, raw: Any, *, is_async: bool) -> None:
        self.raw = raw
        self._is_async = is_async

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        data = await self._call("read", max_bytes, timeout=timeout)
        expect(isinstance(data, bytes), f"read returned {data!r:.60} instead of bytes")
        expect(
            max_bytes is None or len(data) <= max_bytes,
            f"read({max_bytes}) returned {describe_bytes(data)}: {len(data)} bytes",
        )
        return data  # type: ignore[no-any-return] # looked at above

    async def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        if not hasattr(self.raw, "read_into"):
            raise NotApplicable("the stream has no read_into")
        count = await self._call("read_into", buffer, timeout=timeout)
        expect(type(count) is int, f"read_into returned {count!r:.60} instead of a number")
        size = memoryview(buffer).nbytes
        expect(0 <= count <= size, f"read_into returned {count} for a buffer of {size} bytes")
        return count  # type: ignore[no-any-return] # looked at above

    async def write(self, buffer: Any, timeout: float | None = None) -> None:
        await self._call("write", buffer, timeout=timeout)

    async def write_until_readable(self, buffer: Any, timeout: float | None = None) -> int:
        return await self._call("write_until_readable", buffer, timeout=timeout)  # type: ignore[no-any-return] # as above

    async def wait_writable(self, timeout: float | None = None) -> None:
        await self._call("wait_writable", timeout=timeout)

    async def start_tls(self, context: Any, name: str | None, timeout: float | None = None) -> Stream:
        try:
            upgraded = await self._call("start_tls", context, server_hostname=name, timeout=timeout)
        except NotImplementedError:
            raise NotApplicable("start_tls is not implemented") from None
        expect(upgraded is not None, "start_tls returned None instead of the stream to use")
        self.raw = upgraded
        return self

    async def aclose(self) -> None:
        await self._call("aclose" if self._is_async else "close")

    def abort(self) -> None:
        try:
            self.raw.abort()
        except NotImplementedError:
            raise NotApplicable("abort is not implemented") from None

    def info(self, name: str) -> Any:
        return self.raw.get_extra_info(name)

    async def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        result = getattr(self.raw, name)(*arguments, **options)
        return await result if self._is_async else result


class Case:
    """One run of one rule.

    Args:
        opener: `connect_tcp` of the backend, or what opens the stream.
        backend: the backend, where one is checked.
        peer: the other end.
        scale: a factor for all seconds; a busy machine is given another try with a larger one.

    Attributes:
        place: the peer's, of the last connection.
        now: the clock that limits are counted on, in seconds.
    """

    def __init__(self, opener: Callable[..., Any], backend: Any, peer: Peer, scale: float) -> None:
        self._opener = opener
        self._backend = backend
        self.peer = peer
        self.scale = scale
        self.place = Place("", 0)
        self.now = chain_clock(current_runtime().now)
        self.is_async = running_runtime() != "threads"
        self._streams: list[Stream] = []
        self._places: list[Place] = []
        self._jobs: list[_worlds.Job] = []
        self._is_over = False

    @property
    def short(self) -> float:
        """Seconds of a limit that is to be reached."""
        return SHORT * self.scale

    @property
    def long(self) -> float:
        """Seconds within which everything happens that should happen at once."""
        return LONG * self.scale

    @property
    def backend(self) -> Any:
        """The backend itself."""
        return self._backend if self.place.backend is None else self.place.backend

    # --- connecting ----------------------------------------------------------------------------------------

    def serve(self, *acts: Act, unix: bool = False) -> Place:
        """Let the peer perform these acts on the next connections."""
        expect(not self._is_over, "the rule went on after it had been given up")
        self.place = self.peer.serve(acts, unix=unix)
        self._places.append(self.place)
        return self.place

    async def connect(self, *acts: Act) -> Stream:
        """A stream whose peer performs these acts."""
        self.serve(*acts)
        return await self.connect_again()

    async def connect_again(self) -> Stream:
        """Another stream to the same place."""
        backend = self.place.backend
        opener = self._opener if backend is None else backend.connect_tcp
        stream = await self.opened(opener, self.place.host, self.place.port)
        await self.place.greet(stream)
        return stream

    async def opened(self, opener: Callable[..., Any], *arguments: Any, **options: Any) -> Stream:
        """The stream that a function of the backend returns, closed when the rule is over."""
        raw = opener(*arguments, **options)
        if inspect.isawaitable(raw):
            raw = await raw
        if isinstance(raw, NetworkStreamInterface):
            raw = stream_from_interface(raw)
        elif isinstance(raw, AsyncNetworkStreamInterface):
            raw = async_stream_from_interface(raw)
        stream = Stream(raw, is_async=self.is_async)
        self._streams.append(stream)
        return stream

    # --- beside the rule -----------------------------------------------------------------------------------

    def start(self, function: Callable[..., Coroutine[Any, Any, Any]], *arguments: Any) -> _worlds.Job:
        """Run something beside the rule."""
        job = _worlds.start(function, *arguments)
        self._jobs.append(job)
        return job

    async def outcome(self, job: _worlds.Job, what: str) -> Any:
        """What a job has come to; the rule is broken if it goes on."""
        expect(await job.wait(self.long * 1.5), f"{what} did not come back")
        return job.outcome

    async def pause(self) -> None:
        """Let a job get to its wait. Nothing may depend on it but how sharp the rule is."""
        await _worlds.pause(self.short)

    async def until(self, condition: Callable[[], object], otherwise: str) -> None:
        """Wait for something that nobody tells of."""
        runtime = current_runtime()
        end = runtime.now() + self.long
        while not condition():
            expect(runtime.now() < end, otherwise)
            await _worlds.pause()

    async def within(self, seconds: float, function: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        """Call something under an ambient deadline."""
        block = DeadlineBlock(seconds)
        block.open()
        try:
            result = await function(*arguments)
        except BaseException as error:
            instead = block.close(type(error), error, error.__traceback__)
            if instead is None or instead is error:
                raise
            raise instead from error
        instead = block.close(None, None, None)
        if instead is not None:
            raise instead
        return result

    # --- what a rule says ----------------------------------------------------------------------------------

    async def read_all(self, stream: Stream, size: int) -> bytes:
        """Read so many bytes, in as many pieces as it takes."""
        data = b""
        while len(data) < size:
            piece = await stream.read(size - len(data), self.long)
            expect(bool(piece), f"the stream ended after {describe_bytes(data)}")
            data += piece
        return data

    async def gets(self, stream: Stream, data: bytes, when: str = "") -> None:
        """The next bytes are these."""
        got = await self.read_all(stream, len(data))
        expect(got == data, f"read {describe_bytes(got)} instead of {describe_bytes(data)} {when}".rstrip())

    async def peer_has(self, data: bytes) -> None:
        """The peer has received these bytes, and no others."""
        place = self.place
        if place.received is None:
            return
        await self.until(lambda: len(place.received or b"") >= len(data) or place.complaint, _NEVER_ARRIVED)
        expect(place.complaint is None, str(place.complaint))
        expect(place.received == data, f"the peer received {describe_bytes(place.received)}")

    async def raises(
        self,
        *classes: type[LaminaError],
        by: Callable[..., Awaitable[Any]],
        given: tuple[Any, ...] = (),
        what: str,
    ) -> LaminaError:
        """A call raises one of these, and nothing else; and soon, as its limit is a short one if it has any."""
        names = " or ".join(each.__name__ for each in classes)
        start = self.now()
        try:
            result = await by(*given)
        except classes as error:
            took = self.now() - start
            if isinstance(error, TimeoutException):
                expect(took <= self.long, f"{what} gave up after {took:.3f} s, long after its limit")
            return error
        except (NotApplicable, Broken):
            raise
        except Exception as error:
            raise Broken(f"{what} raised {describe_error(error)} instead of {names}") from error
        shown = "None" if result is None else "a result"
        if isinstance(result, bytes):
            shown = describe_bytes(result)
        raise Broken(f"{what} returned {shown} instead of raising {names}")

    async def is_closed(self, stream: Stream, when: str) -> None:
        """A stream that the contract calls closed refuses to be read."""
        await self.raises(ReadError, by=stream.read, given=(1, self.short), what=f"reading {when}")

    # --- the end -------------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """Break all connections, so that whoever waits for them wakes."""
        self._is_over = True
        for place in self._places:
            place.close()

    async def close(self) -> None:
        """Leave nothing behind. Whether closing is done as it should be is said by rules of its own."""
        cancellation: BaseException | None = None
        self.hang_up()
        for job in self._jobs:
            if not job.is_done:
                job.cancel()
        for stream in self._streams:
            try:
                await stream.aclose()
            except Exception:  # noqa: BLE001 - see above
                pass
            except BaseException as error:  # noqa: BLE001 - a rule that hung is cancelled; the others close nevertheless
                cancellation = error
        if cancellation is not None:
            raise cancellation
        for job in self._jobs:
            await job.wait(self.long)


_NEVER_ARRIVED = "the peer never received all the bytes"


def expect(condition: bool, otherwise: str) -> None:
    """A rule's own `assert`: what was seen is said in words, whatever tool runs the kit."""
    if not condition:
        raise Broken(otherwise)


def describe_error(error: BaseException) -> str:
    """An exception for a message."""
    return f"{type(error).__name__} ({error})" if str(error) else type(error).__name__


def describe_outcome(outcome: object) -> str:
    """What a job has come to, for a message."""
    if isinstance(outcome, BaseException):
        return describe_error(outcome)
    if isinstance(outcome, bytes):
        return describe_bytes(outcome)
    return "a cancellation" if isinstance(outcome, _worlds.Cancelled) else repr(outcome)
