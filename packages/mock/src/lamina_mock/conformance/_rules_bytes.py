"""Rules about reading and writing."""

from __future__ import annotations

import random

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    ConcurrencyError,
    DeadlineExceeded,
    ReadError,
    ReadTimeout,
    WriteError,
    WriteTimeout,
)

from . import _worlds
from ._acts import Collect, End, Expect, Hold, Reset, Say
from ._case import Case, Stream, describe_outcome, expect
from ._peers import NotApplicable, describe_bytes
from ._rules import rule

MUCH = 16 << 20
"""Bytes, more than the buffers hold between two sockets of which one is not read."""

OBEYS = "Every operation obeys the smaller of its `timeout` and the ambient deadline (`Limit`)."


def some(size: int) -> bytes:
    """So many bytes, an even number, the same each time, of which no part is like another."""
    source = random.Random(size)
    start = source.randbytes(min(size, 4096))
    # Letters from there on: a backend that logs what passes, line by line, is slow enough.
    return start + source.randbytes((size - len(start)) // 2).hex().encode()


# --- reading -----------------------------------------------------------------------------------------------


@rule("NetworkStream.read", "Wait for bytes, and return those that have come.")
async def read_returns_what_has_come(case: Case) -> None:
    # The peer says no more, so that a read that waits for `max_bytes` waits for ever.
    stream = await case.connect(Say(b"hello"))
    await case.gets(stream, b"h")
    data = await stream.read(DEFAULT_READ_SIZE, case.long)
    expect(
        bool(data) and b"ello".startswith(data),
        f"read {describe_bytes(data)} where the peer had said b'hello'",
    )


@rule("NetworkStream.read", "Wait for bytes, and return those that have come.")
async def read_waits_for_bytes(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Say(b"answer"))
    reader = case.start(stream.read, 100, case.long)
    await case.pause()
    expect(
        not reader.is_done,
        f"a read from a silent peer did not wait; it came to {describe_outcome(reader.outcome)}",
    )
    await stream.write(b"?", case.long)
    data = await case.outcome(reader, "read")
    if isinstance(data, Exception):
        raise data
    expect(bool(data) and b"answer".startswith(data), f"read {describe_bytes(data)} instead of b'answer'")


@rule(
    "NetworkStream.read",
    'From 1 to `max_bytes` bytes, or `b""` if the peer has ended its side in an orderly way.',
)
async def read_gives_at_most_max_bytes(case: Case) -> None:
    data = some(4096)
    stream = await case.connect(Say(data), End())
    got = b""
    for size in (1, 2, 3, 1000, 1):
        piece = await stream.read(size, case.long)  # which looks at the length
        expect(bool(piece), f"read({size}) returned b'' with bytes to come")
        got += piece
    got += await case.read_all(stream, len(data) - len(got))
    expect(got == data, "the bytes came in another order, or not all of them")


@rule("NetworkStream.read", "the most bytes to return, at least 1; `None` stands for 64 KiB.")
async def read_without_a_number_gives_64_kib_at_most(case: Case) -> None:
    data = some(256 << 10)
    stream = await case.connect(Say(data), End())
    got = b""
    while piece := await stream.read(None, case.long):
        expect(len(piece) <= DEFAULT_READ_SIZE, f"read() returned {len(piece)} bytes")
        got += piece
        expect(len(got) <= len(data), "more bytes came than the peer has said")
    expect(got == data, f"{len(got)} of {len(data)} bytes came, or others than the peer has said")


@rule("NetworkStream.read", 'After that every further read returns `b""` too.')
async def the_end_stays_the_end(case: Case) -> None:
    stream = await case.connect(Say(b"bye"), End())
    await case.gets(stream, b"bye")
    for count in range(1, 4):
        data = await stream.read(100, case.long)
        expect(data == b"", f"read {count} after the end returned {describe_bytes(data)}")


@rule("NetworkStream.read", "nothing came within `timeout`. No byte is lost; the stream may be read again.")
async def a_read_that_times_out_loses_nothing(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Say(b"late"))
    start = case.now()
    await case.raises(
        ReadTimeout, by=stream.read, given=(100, case.short), what="read(timeout=…) from a silent peer"
    )
    took = case.now() - start
    expect(took >= case.short / 2, f"read gave up after {took:.3f} s of {case.short:g} s")
    await stream.write(b"?", case.long)
    await case.gets(stream, b"late", "after a time-out")


@rule("NetworkStream", OBEYS)
async def a_read_obeys_the_deadline(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Say(b"late"))
    await case.raises(
        DeadlineExceeded,
        by=case.within,
        given=(case.short, stream.read, 100, case.long),
        what="read(timeout=…) from a silent peer, under a sooner deadline,",
    )
    await stream.write(b"?", case.long)
    await case.gets(stream, b"late", "after a deadline")


@rule("NetworkStream", OBEYS)
async def a_read_obeys_its_timeout_within_a_deadline(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Say(b"late"))
    await case.raises(
        ReadTimeout,
        by=case.within,
        given=(case.long, stream.read, 100, case.short),
        what="read(timeout=…) from a silent peer, under a later deadline,",
    )


@rule("NetworkStream", "An operation whose limit has passed before it begins does no I/O.")
async def a_read_without_time_takes_nothing(case: Case) -> None:
    stream = await case.connect(Say(b"there"), End())
    await case.gets(stream, b"t")  # so that the rest has come, most likely
    await case.raises(ReadTimeout, by=stream.read, given=(100, 0.0), what="read(timeout=0)")
    await case.raises(
        DeadlineExceeded,
        by=case.within,
        given=(0.0, stream.read, 100, None),
        what="read under a deadline that has passed",
    )
    await case.gets(stream, b"here", "after reads without time")


@rule(
    "NetworkStream.read",
    "the connection broke, TLS was cut off without its closing message, or the stream is closed.",
)
async def a_broken_connection_is_a_read_error(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Reset())
    await stream.write(b"?", case.long)
    await case.raises(
        ReadError, by=stream.read, given=(100, case.long), what="reading from a connection that broke"
    )


@rule("NetworkStream", "One thread may read while another writes.")
async def one_may_read_while_another_writes(case: Case) -> None:
    data = some(1 << 20)
    stream = await case.connect(Expect(data), Say(b"got it"))
    reader = case.start(stream.read, 100, case.long)
    await case.pause()
    await stream.write(data, case.long)
    got = await case.outcome(reader, "read")
    if isinstance(got, Exception):
        raise got
    expect(
        bool(got) and b"got it".startswith(got), f"the reader got {describe_bytes(got)} instead of b'got it'"
    )


@rule("AsyncNetworkStream", "two that read, or two that write, get `ConcurrencyError`.", where="async")
async def a_second_reader_is_refused(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Say(b"mine"))
    first = case.start(stream.read, 100, case.long)
    await case.pause()
    await case.raises(
        ConcurrencyError, by=stream.read, given=(100, case.short), what="a second read meanwhile"
    )
    await stream.write(b"?", case.long)
    got = await case.outcome(first, "the first read")
    expect(got == b"mine", f"the first reader got {describe_outcome(got)} instead of b'mine'")


@rule("AsyncNetworkStream", "two that read, or two that write, get `ConcurrencyError`.", where="async")
async def a_second_writer_is_refused(case: Case) -> None:
    stream = await case.connect(Hold())
    case.start(stream.write, bytes(MUCH), case.long)
    await case.pause()
    await case.raises(
        ConcurrencyError, by=stream.write, given=(b"x", case.short), what="a second write meanwhile"
    )


@rule(
    "AsyncNetworkStream", "A cancelled `read` loses no byte, and the stream may be read again.", where="async"
)
async def a_cancelled_read_loses_nothing(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Say(b"late"))
    reader = case.start(stream.read, 100)
    await case.pause()
    reader.cancel()
    got = await case.outcome(reader, "a cancelled read")
    expect(isinstance(got, _worlds.Cancelled), f"a cancelled read ended with {describe_outcome(got)}")
    await stream.write(b"?", case.long)
    await case.gets(stream, b"late", "after a cancelled read")


# --- writing -----------------------------------------------------------------------------------------------


@rule("NetworkStream.write", "Send all the bytes.")
async def write_sends_all_of_it(case: Case) -> None:
    data = some(16 << 20)  # more than a socket usually takes at once
    stream = await case.connect(Collect())
    await stream.write(data[:10], case.long)
    await stream.write(data[10:], case.long)
    await case.peer_has(data)


@rule("NetworkStream.write", "The buffer must not change until then; it is not kept afterwards.")
async def write_takes_any_buffer_and_keeps_none(case: Case) -> None:
    stream = await case.connect(Collect())
    buffer = bytearray(b"first ")
    await stream.write(buffer, case.long)
    buffer[:] = b"XXXXXX"
    try:
        buffer.extend(b"!")
    except BufferError:
        expect(False, "write has kept the bytearray, which cannot be resized")
    await stream.write(memoryview(b"--second--")[2:8], case.long)
    await case.peer_has(b"first second")


@rule("NetworkStream.write", "the bytes; an empty buffer sends nothing.")
async def write_of_nothing_sends_nothing(case: Case) -> None:
    stream = await case.connect(Expect(b"x"), Say(b"y"), End())
    await stream.write(b"", case.long)
    await stream.write(b"x", case.long)
    await case.gets(stream, b"y")


@rule("NetworkStream.write", "the peer did not take all of it within `timeout`.")
async def a_write_that_is_not_taken_times_out(case: Case) -> None:
    stream = await case.connect(Hold())
    await case.raises(
        WriteTimeout,
        by=stream.write,
        given=(bytes(MUCH), case.short),
        what="write(timeout=…) to a peer that does not read",
    )


@rule("NetworkStream.write", "the ambient deadline passed. As for `WriteTimeout`.")
async def a_write_obeys_the_deadline(case: Case) -> None:
    stream = await case.connect(Hold())
    await case.raises(
        DeadlineExceeded,
        by=case.within,
        given=(case.short, stream.write, bytes(MUCH), case.long),
        what="write to a peer that does not read, under a deadline,",
    )


@rule("NetworkStream", "An operation whose limit has passed before it begins does no I/O.")
async def a_write_without_time_sends_nothing(case: Case) -> None:
    stream = await case.connect(Collect())
    await stream.write(b"before", case.long)
    await case.raises(WriteTimeout, by=stream.write, given=(b"late", 0.0), what="write(timeout=0)")
    await stream.aclose()
    if case.place.received is not None:
        await case.until(lambda: case.place.farewell, "the peer was not told that the stream was closed")
        expect(case.place.received == b"before", f"the peer received {describe_bytes(case.place.received)}")


@rule("NetworkStream.write", "the connection broke, or the stream is closed.")
async def a_broken_connection_is_a_write_error(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Reset())
    await stream.write(b"?", case.long)
    await case.raises(
        ReadError, by=stream.read, given=(100, case.long), what="reading from a connection that broke"
    )
    await case.raises(
        WriteError, by=stream.write, given=(some(4096), case.long), what="writing to a connection that broke"
    )


@rule(
    "AsyncNetworkStream",
    "A cancelled `write` has sent an unknown part, so that the stream can only be closed.",
    where="async",
)
async def a_cancelled_write_ends(case: Case) -> None:
    stream = await case.connect(Hold())
    writer = case.start(stream.write, bytes(MUCH))
    await case.pause()
    writer.cancel()
    got = await case.outcome(writer, "a cancelled write")
    expect(isinstance(got, _worlds.Cancelled), f"a cancelled write ended with {describe_outcome(got)}")
    closer = case.start(stream.aclose)
    got = await case.outcome(closer, "closing after a cancelled write")
    expect(got is None, f"closing after a cancelled write ended with {describe_outcome(got)}")


# --- writing until something can be read -------------------------------------------------------------------


def _interruptible(stream: Stream) -> Stream:
    if not hasattr(stream.raw, "write_until_readable"):
        raise NotApplicable("the stream has no write_until_readable")
    return stream


@rule(
    "InterruptibleWriter.write_until_readable",
    "How many bytes were sent: all of them, or fewer if data, or the end of the stream, came in first.",
)
async def an_uninterrupted_write_sends_all(case: Case) -> None:
    data = some(256 << 10)
    stream = _interruptible(await case.connect(Collect()))
    sent = await stream.write_until_readable(data, case.long)
    expect(sent == len(data), f"write_until_readable returned {sent!r} instead of {len(data)}")
    await case.peer_has(data)


@rule(
    "InterruptibleWriter.write_until_readable",
    "How many bytes were sent: all of them, or fewer if data, or the end of the stream, came in first.",
)
async def an_answer_interrupts_a_write(case: Case) -> None:
    for answer in (Say(b"413"), End()):
        stream = _interruptible(await case.connect(Expect(b"?"), answer))
        await stream.write(b"?", case.long)
        sent = await stream.write_until_readable(bytes(MUCH), case.long)
        expect(sent < MUCH, f"write_until_readable returned {sent!r}, and the peer has not read that much")
        data = await stream.read(100, case.long)
        wanted = b"413" if isinstance(answer, Say) else b""
        expect(data == wanted, f"then read returned {describe_bytes(data)} instead of {wanted!r}")


@rule(
    "InterruptibleWriter.write_until_readable",
    "WriteTimeout, DeadlineExceeded, WriteError, ConcurrencyError: as `NetworkStream.write`.",
)
async def an_interruptible_write_times_out(case: Case) -> None:
    stream = _interruptible(await case.connect(Hold()))
    await case.raises(
        WriteTimeout,
        by=stream.write_until_readable,
        given=(bytes(MUCH), case.short),
        what="write_until_readable(timeout=…) to a silent peer",
    )


# --- writing what goes at once -----------------------------------------------------------------------------


def _prompt(stream: Stream) -> Stream:
    if not (hasattr(stream.raw, "write_now") and hasattr(stream.raw, "wait_writable")):
        raise NotApplicable("the stream is no PromptWriter")
    return stream


def _fill(stream: Stream) -> None:
    """Write until nothing goes any more."""
    rest = memoryview(bytes(MUCH))
    while taken := stream.raw.write_now(rest):
        rest = rest[taken:]
        expect(len(rest) > 0, f"write_now has taken {MUCH} bytes, and the peer has read none of them")


@rule(
    "PromptWriter",
    "A sender calls `write_now`, and where that took less than all, `wait_writable`, and then `write_now` again.",
)
async def what_goes_at_once_and_what_waits_is_sent(case: Case) -> None:
    data = some(16 << 20)
    stream = _prompt(await case.connect(Collect()))
    rest = memoryview(data)
    while rest:
        taken = stream.raw.write_now(rest)
        expect(0 <= taken <= len(rest), f"write_now returned {taken!r} for {len(rest)} bytes")
        rest = rest[taken:]
        if rest:
            await stream.wait_writable(case.long)
    expect(stream.raw.has_unsent is False, "has_unsent is not False without TLS")
    await case.peer_has(data)


@rule(
    "PromptWriter.write_now",
    "Send as many of the bytes as the system takes at once. Never waits; obeys no time limit.",
)
async def write_now_does_not_wait(case: Case) -> None:
    stream = _prompt(await case.connect(Hold()))
    _fill(stream)
    await case.raises(
        WriteTimeout,
        by=stream.wait_writable,
        given=(case.short,),
        what="wait_writable(timeout=…) with a peer that does nothing",
    )
    _fill(stream)  # the stream goes on; a system may take a little more than it waits for


@rule("PromptWriter.wait_writable", "Wait until `write_now` may take more, or until something can be read.")
async def wait_writable_hears_the_peer(case: Case) -> None:
    stream = _prompt(await case.connect(Expect(b"?"), Say(b"stop"), Hold()))
    await stream.write(b"?", case.long)
    _fill(stream)
    await stream.wait_writable(case.long)
    await case.gets(stream, b"stop")


@rule(
    "PromptWriter.write_now",
    "the connection broke, or the stream is closed; or an earlier write was broken off.",
)
async def write_now_to_a_closed_stream_is_a_write_error(case: Case) -> None:
    stream = _prompt(await case.connect(Collect()))
    await stream.aclose()

    async def write_now() -> None:
        stream.raw.write_now(b"x")

    await case.raises(WriteError, by=write_now, what="write_now after close")


@rule(
    "AsyncPromptWriter.wait_writable", "A cancelled wait has lost nothing and broken nothing.", where="async"
)
async def a_cancelled_wait_writable_breaks_nothing(case: Case) -> None:
    stream = _prompt(await case.connect(Hold()))
    _fill(stream)
    waiter = case.start(stream.wait_writable)
    await case.pause()
    waiter.cancel()
    got = await case.outcome(waiter, "a cancelled wait_writable")
    expect(
        isinstance(got, _worlds.Cancelled), f"a cancelled wait_writable ended with {describe_outcome(got)}"
    )
    _fill(stream)
    await case.raises(
        ReadTimeout, by=stream.read, given=(1, case.short), what="reading after a cancelled wait_writable"
    )
