"""Rules about reading into a buffer of the caller's, for streams that can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    DeadlineExceeded,
    LaminaError,
    ReadError,
    ReadTimeout,
    current_runtime,
)

from . import _worlds
from ._acts import Act, CutOff, End, Expect, Reset, Say
from ._case import Case, Stream, describe_outcome, expect
from ._peers import describe_bytes
from ._rules import rule
from ._rules_bytes import some
from ._rules_tls import needs_tls, secured

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BLANK = b"\xaa"
"""What a buffer is full of, so that bytes are seen which nobody reported."""

SIZE = 100
"""Bytes of a buffer whose size does not matter."""

TICKS = 5
"""Turns of an event loop from when bytes have come until a cancellation, at most: reading takes two or three."""

UNTOUCHED = (
    "What lies behind them is left as it was, and so is all of the buffer if this raises: what has come and was not "
    "reported is got by the next read."
)


async def _put(case: Case, stream: Stream, size: int) -> bytes:
    """What one `read_into` puts into a buffer of this size, the rest of which it leaves alone."""
    buffer = bytearray(BLANK * size)
    count = await stream.read_into(buffer, case.long)  # which looks at the count
    expect(
        buffer[count:] == BLANK * (size - count),
        f"read_into returned {count}, and has written more than that",
    )
    _is_free(buffer)
    return bytes(buffer[:count])


def _is_free(buffer: bytearray) -> None:
    try:
        buffer.append(0)
    except BufferError:
        expect(False, "read_into has kept the bytearray, which cannot be resized")
    del buffer[-1]


async def _fails(
    case: Case,
    error: type[LaminaError],
    *,
    by: Callable[..., Awaitable[Any]],
    before: tuple[Any, ...] = (),
    timeout: float | None,
    what: str,
) -> bytearray:
    """A `read_into` raises, and leaves its buffer alone, which is returned."""
    buffer = bytearray(BLANK * SIZE)
    await case.raises(error, by=by, given=(*before, buffer, timeout), what=what)
    _is_blank(buffer, f"{what} raised {error.__name__}")
    _is_free(buffer)
    return buffer


def _is_blank(buffer: bytearray, when: str) -> None:
    expect(
        buffer == BLANK * SIZE,
        f"{when}, and has written into the buffer: {describe_bytes(buffer.rstrip(BLANK))}",
    )


# --- what comes --------------------------------------------------------------------------------------------


@rule(
    "DirectReader.read_into",
    "Wait for bytes, put them at the beginning of the buffer, and return how many.",
)
async def read_into_puts_what_has_come(case: Case) -> None:
    # The peer says no more, so that a read that waits for a full buffer waits for ever.
    stream = await case.connect(Expect(b"?"), Say(b"hello"))
    reader = case.start(_put, case, stream, SIZE)
    await case.pause()
    expect(
        not reader.is_done or isinstance(reader.outcome, Exception),
        f"a read_into from a silent peer did not wait; it came to {describe_outcome(reader.outcome)}",
    )
    await stream.write(b"?", case.long)
    data = await case.outcome(reader, "read_into")
    if isinstance(data, Exception):
        raise data
    expect(
        bool(data) and b"hello".startswith(data),
        f"read_into put {describe_bytes(data)} where the peer had said b'hello'",
    )


@rule("DirectReader.read_into", UNTOUCHED)
async def read_into_writes_what_it_reports(case: Case) -> None:
    data = some(200_000)
    stream = await case.connect(Say(data), End())
    got = b""
    for size in (1, 2, 3, 1000, 70_000, 1):
        got += await _put(case, stream, size)
    while piece := await _put(case, stream, 10_007):
        got += piece
    expect(got == data, "the bytes came in another order, or not all of them")


@rule(
    "DirectReader.read_into",
    "writable, C-contiguous, at least 1 byte; elements of another size count by their bytes.",
)
async def read_into_fills_any_buffer(case: Case) -> None:
    data = some(12)
    stream = await case.connect(Say(data), End())
    whole = bytearray(BLANK * 16)
    with memoryview(whole) as view, view[2:14] as part, part.cast("I") as numbers:
        count = await stream.read_into(numbers, case.long)
        while count < len(data):
            with part[count:] as rest:
                more = await stream.read_into(rest, case.long)
            expect(more > 0, f"the stream ended after {count} bytes")
            count += more
    expect(
        whole == BLANK * 2 + data + BLANK * 2,
        f"a part of a buffer was to become {describe_bytes(data)}; the whole is {describe_bytes(whole)}",
    )


@rule(
    "DirectReader",
    "May be used beside `read` on the same stream, one after the other, in any order: both take from the same bytes.",
)
async def read_into_goes_with_read(case: Case) -> None:
    data = some(100_000)
    stream = await case.connect(Say(data), End())
    await _goes_with_read(case, stream, data)


async def _goes_with_read(case: Case, stream: Stream, data: bytes) -> None:
    got = b""
    for size in (1, 3, 10, 5000, 70_000, 2):
        got += await stream.read(size, case.long)
        got += await _put(case, stream, size)
    while piece := await _put(case, stream, 3000):
        got += piece + await stream.read(7000, case.long)
    expect(got == data, "the bytes came in another order, or not all of them")


@rule("DirectReader.read_into", "After that every further read says so too.")
async def the_end_stays_the_end_for_read_into(case: Case) -> None:
    stream = await case.connect(Say(b"over"), End())
    await case.gets(stream, b"over")
    await _has_ended(case, stream)


async def _has_ended(case: Case, stream: Stream) -> None:
    for count in range(1, 4):
        data = await _put(case, stream, SIZE)
        expect(data == b"", f"read_into {count} after the end put {describe_bytes(data)}")
        data = await stream.read(SIZE, case.long)
        expect(data == b"", f"read {count} after the end returned {describe_bytes(data)}")


# --- limits ------------------------------------------------------------------------------------------------


@rule("DirectReader.read_into", "The buffer is neither kept nor written to afterwards.")
async def a_read_into_that_times_out_loses_nothing(case: Case) -> None:
    await _times_out(case, await case.connect(Expect(b"?"), Say(b"late")))


async def _times_out(case: Case, stream: Stream) -> None:
    what = "read_into(timeout=…) from a silent peer"
    start = case.now()
    buffer = await _fails(case, ReadTimeout, by=stream.read_into, timeout=case.short, what=what)
    took = case.now() - start
    expect(took >= case.short / 2, f"read_into gave up after {took:.3f} s of {case.short:g} s")
    await stream.write(b"?", case.long)
    await case.gets(stream, b"late", "after a time-out of read_into")
    _is_blank(buffer, f"{what} timed out")


@rule(
    "DirectReader.read_into",
    "ReadTimeout, DeadlineExceeded, ReadError, ConcurrencyError: as `NetworkStream.read`.",
)
async def a_read_into_obeys_the_deadline(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Say(b"late"))
    for error, ambient, timeout in (
        (DeadlineExceeded, case.short, case.long),
        (ReadTimeout, case.long, case.short),
    ):
        await _fails(
            case,
            error,
            by=case.within,
            before=(ambient, stream.read_into),
            timeout=timeout,
            what="read_into(timeout=…) from a silent peer, under a deadline,",
        )
    await stream.write(b"?", case.long)
    await case.gets(stream, b"late", "after a deadline")


@rule("NetworkStream", "An operation whose limit has passed before it begins does no I/O.")
async def a_read_into_without_time_takes_nothing(case: Case) -> None:
    stream = await case.connect(Say(b"there"), End())
    await case.gets(stream, b"t")  # so that the rest has come, most likely
    await _fails(case, ReadTimeout, by=stream.read_into, timeout=0.0, what="read_into(timeout=0)")
    await _fails(
        case,
        DeadlineExceeded,
        by=case.within,
        before=(0.0, stream.read_into),
        timeout=None,
        what="read_into under a deadline that has passed",
    )
    await case.gets(stream, b"here", "after reads without time")


# --- what is refused ---------------------------------------------------------------------------------------


@rule("DirectReader.read_into", "it is no buffer, or read-only. No byte was read.")
async def read_into_refuses_what_cannot_be_filled(case: Case) -> None:
    stream = await case.connect(Say(b"there"), End())
    await case.gets(stream, b"t")  # so that the rest has come, most likely
    mistakes: list[tuple[type[LaminaError], Any, str]] = [
        (ArgumentTypeError, b"####", "bytes"),
        (ArgumentTypeError, memoryview(b"####"), "a read-only view"),
        (ArgumentTypeError, 4, "a number"),
        (ArgumentTypeError, None, "nothing"),
        (ArgumentValueError, bytearray(), "an empty buffer"),
        (ArgumentValueError, memoryview(bytearray(8))[::2], "a view with gaps"),
    ]
    for error, buffer, name in mistakes:
        await case.raises(error, by=stream.read_into, given=(buffer, case.short), what=f"read_into of {name}")
    await case.gets(stream, b"here", "after arguments that were refused")


@rule(
    "NetworkStream.read",
    "the connection broke, TLS was cut off without its closing message, or the stream is closed.",
)
async def a_read_into_of_a_broken_connection_is_a_read_error(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Reset())
    await stream.write(b"?", case.long)
    await _fails(
        case,
        ReadError,
        by=stream.read_into,
        timeout=case.long,
        what="read_into from a connection that broke",
    )
    stream = await case.connect(Say(b"x"), End())
    await stream.aclose()
    await _fails(case, ReadError, by=stream.read_into, timeout=case.long, what="read_into of a closed stream")


@rule("AsyncNetworkStream", "two that read, or two that write, get `ConcurrencyError`.", where="async")
async def a_second_reader_into_a_buffer_is_refused(case: Case) -> None:
    for first, second in (("read", "read_into"), ("read_into", "read"), ("read_into", "read_into")):
        stream = await case.connect(Expect(b"?"), Say(b"mine"))
        await _is_able(case, stream)
        buffers = {"read": SIZE, "read_into": bytearray(BLANK * SIZE)}
        reader = case.start(getattr(stream, first), buffers[first], case.long)
        await case.pause()
        other: Any = SIZE if second == "read" else bytearray(BLANK * SIZE)
        await case.raises(
            ConcurrencyError,
            by=getattr(stream, second),
            given=(other, case.short),
            what=f"{second} during {first}",
        )
        await stream.write(b"?", case.long)
        got = await case.outcome(reader, f"the first {first}")
        wanted = b"mine" if first == "read" else 4
        expect(got == wanted, f"the first {first} came to {describe_outcome(got)} instead of {wanted!r}")


async def _is_able(case: Case, stream: Stream) -> None:
    """Leave the rule if there is no `read_into`."""
    await case.raises(
        ReadTimeout, by=stream.read_into, given=(bytearray(1), 0.0), what="read_into(timeout=0)"
    )


# --- cancellation ------------------------------------------------------------------------------------------


CANCELLED = (
    "A cancelled call has put nothing into the buffer, and loses no byte: the next read gets what has come."
)


@rule("AsyncDirectReader.read_into", CANCELLED, where="async")
async def a_cancelled_read_into_loses_nothing(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Say(b"late"))
    buffer = bytearray(BLANK * SIZE)
    reader = case.start(stream.read_into, buffer)
    await case.pause()
    reader.cancel()
    got = await case.outcome(reader, "a cancelled read_into")
    if isinstance(got, Exception):
        raise got
    expect(isinstance(got, _worlds.Cancelled), f"a cancelled read_into ended with {describe_outcome(got)}")
    _is_free(buffer)
    await stream.write(b"?", case.long)
    await case.gets(stream, b"late", "after a cancelled read_into")
    _is_blank(buffer, "read_into was cancelled")


@rule("AsyncDirectReader.read_into", CANCELLED, where="async")
async def a_read_into_cancelled_as_bytes_come_loses_nothing(case: Case) -> None:
    stream = await case.connect(*_answers())
    await _cancelled_as_bytes_come(case, stream)


def _answers() -> list[Act]:
    acts: list[Act] = []
    for ticks in range(TICKS):
        acts += Expect(b"?"), Say(b"late%d" % ticks)
    return acts


async def _cancelled_as_bytes_come(case: Case, stream: Stream) -> None:
    """Cancel a `read_into` when the bytes are there, and the event loop has had so many turns to notice."""
    for ticks in range(TICKS):
        data = b"late%d" % ticks
        buffer = bytearray(BLANK * SIZE)
        reader = case.start(stream.read_into, buffer)
        await case.pause()
        await stream.write(b"?", case.long)
        _wait_for_bytes(case, stream)
        for _ in range(ticks):
            await _worlds.pause(0.0)
        reader.cancel()
        got = await case.outcome(reader, "a cancelled read_into")
        if isinstance(got, Exception):
            raise got
        count = got if isinstance(got, int) else 0
        seen = bytes(buffer[:count]) + await case.read_all(stream, len(data) - count)
        expect(
            seen == data,
            f"a read_into ended with {describe_outcome(got)} as bytes came, and {describe_bytes(seen)} was read in all",
        )
        _is_blank_from(buffer, count)


def _is_blank_from(buffer: bytearray, count: int) -> None:
    expect(
        buffer[count:] == BLANK * (SIZE - count),
        f"a read_into was cancelled, has reported {count} bytes, and written more than that",
    )


def _wait_for_bytes(case: Case, stream: Stream) -> None:
    """Wait without letting the event loop notice. A stream that does not tell costs the rule its sharpness only."""
    now = current_runtime().now
    end = now() + case.short
    while not stream.info("is_readable") and now() < end:
        pass


# --- within TLS --------------------------------------------------------------------------------------------


@rule(
    "DirectReader",
    "May be used beside `read` on the same stream, one after the other, in any order: both take from the same bytes.",
)
async def read_into_within_tls_goes_with_read(case: Case) -> None:
    data = some(300_000)
    stream = await secured(case, Say(data), End())
    await _goes_with_read(case, stream, data)
    await _has_ended(case, stream)


@rule("DirectReader.read_into", "The buffer is neither kept nor written to afterwards.")
async def a_read_into_within_tls_that_times_out_loses_nothing(case: Case) -> None:
    await _times_out(case, await secured(case, Expect(b"?"), Say(b"late")))


@rule(
    "NetworkStream.read",
    "the connection broke, TLS was cut off without its closing message, or the stream is closed.",
)
async def a_read_into_of_a_cut_off_tls_is_a_read_error(case: Case) -> None:
    needs_tls(case)
    stream = await secured(case, Say(b"half"), CutOff())
    await case.gets(stream, b"half")
    await _fails(
        case,
        ReadError,
        by=stream.read_into,
        timeout=case.long,
        what="read_into where TLS was cut off without its closing message",
    )


@rule("AsyncDirectReader.read_into", CANCELLED, where="async")
async def a_read_into_within_tls_cancelled_as_bytes_come_loses_nothing(case: Case) -> None:
    stream = await secured(case, *_answers())
    await _cancelled_as_bytes_come(case, stream)
