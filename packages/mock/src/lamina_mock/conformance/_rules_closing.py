"""Rules about closing a stream, and about what it tells of itself."""

from __future__ import annotations

from lamina_interfaces import ReadError, TimingSpan, WriteError

from . import _worlds
from ._acts import Collect, End, Expect, Hold, Reset, Say
from ._case import Case, Stream, describe_outcome, expect
from ._peers import NotApplicable
from ._rules import rule
from ._rules_bytes import MUCH

NAMES = ("client_addr", "server_addr", "ssl_object", "socket", "is_readable", "timings")
"""What `get_extra_info` may be asked for."""


# --- closing -----------------------------------------------------------------------------------------------


@rule("NetworkStream.close", "Never raises; on a closed stream it does nothing.")
async def close_may_be_repeated(case: Case) -> None:
    stream = await case.connect(Say(b"unread"), End())
    for _ in range(3):
        await stream.aclose()


@rule("NetworkStream.close", "Never raises; on a closed stream it does nothing.")
async def close_after_a_break_does_not_raise(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Reset())
    await stream.write(b"?", case.long)
    await case.raises(
        ReadError, by=stream.read, given=(100, case.long), what="reading from a connection that broke"
    )
    await stream.aclose()


@rule("NetworkStream.close", "Frees the socket in any case.")
async def close_frees_the_socket(case: Case) -> None:
    stream = await case.connect(Collect())
    sock = stream.info("socket")
    await stream.aclose()
    await _peer_is_told(case)
    if hasattr(sock, "fileno"):
        expect(sock.fileno() == -1, "the socket is still open after close")


@rule("NetworkStream.close", "Close the stream in the protocol's way, without waiting for the peer.")
async def close_does_not_wait_for_the_peer(case: Case) -> None:
    stream = await case.connect(Hold())
    writer = case.start(stream.write, bytes(MUCH), case.short)
    await case.outcome(writer, "a write that times out")
    await case.outcome(case.start(stream.aclose), "close, where the peer does not read,")


@rule(
    "NetworkStream.read",
    "the connection broke, TLS was cut off without its closing message, or the stream is closed.",
)
async def reading_a_closed_stream_is_a_read_error(case: Case) -> None:
    stream = await case.connect(Say(b"unread"), End())
    await stream.aclose()
    await case.raises(ReadError, by=stream.read, given=(100, case.long), what="reading after close")


@rule("NetworkStream.write", "the connection broke, or the stream is closed.")
async def writing_to_a_closed_stream_is_a_write_error(case: Case) -> None:
    stream = await case.connect(Say(b"unread"), End())
    await stream.aclose()
    await case.raises(WriteError, by=stream.write, given=(b"x", case.long), what="writing after close")


@rule("NetworkStream.close", "A thread that waits in `read` or `write` gets `ReadError` or `WriteError`.")
async def close_wakes_who_reads(case: Case) -> None:
    stream = await case.connect(Hold())
    reader = case.start(stream.read, 100, case.long)
    await case.pause()
    await stream.aclose()
    got = await case.outcome(reader, "a read, when the stream was closed,")
    expect(
        isinstance(got, ReadError),
        f"a read that waited when the stream was closed ended with {describe_outcome(got)}",
    )


@rule("NetworkStream.close", "A thread that waits in `read` or `write` gets `ReadError` or `WriteError`.")
async def close_wakes_who_writes(case: Case) -> None:
    stream = await case.connect(Hold())
    writer = case.start(stream.write, bytes(MUCH), case.long)
    await case.pause()
    await stream.aclose()
    got = await case.outcome(writer, "a write, when the stream was closed,")
    expect(
        isinstance(got, WriteError),
        f"a write that waited when the stream was closed ended with {describe_outcome(got)}",
    )


@rule("NetworkStream.abort", "Close the stream without any farewell.")
async def abort_closes_the_stream(case: Case) -> None:
    stream = await case.connect(Collect())
    stream.abort()
    await _peer_is_told(case)
    await case.is_closed(stream, "after abort")
    stream.abort()
    await stream.aclose()


@rule(
    "PromptCloser.close_now",
    "Do what `aclose` does, at once. Never raises or waits; may be repeated.",
    where="async",
)
async def close_now_closes_at_once(case: Case) -> None:
    stream = await case.connect(Collect())
    if not hasattr(stream.raw, "close_now"):
        raise NotApplicable("the stream is no PromptCloser")
    stream.raw.close_now()
    stream.raw.close_now()
    await case.is_closed(stream, "after close_now")
    await _peer_is_told(case)
    await stream.aclose()


@rule("AsyncNetworkStream", "`aclose` frees the socket even when it is cancelled.", where="async")
async def a_cancelled_aclose_frees_the_socket(case: Case) -> None:
    stream = await case.connect(Collect())
    sock = stream.info("socket")
    await _worlds.already_cancelled(stream.aclose)
    if hasattr(sock, "fileno"):
        expect(sock.fileno() == -1, "the socket is still open after an aclose that was cancelled")
    await _peer_is_told(case)


async def _peer_is_told(case: Case) -> None:
    if case.place.received is not None:
        await case.until(lambda: case.place.farewell, "the peer was not told that the stream was closed")


# --- facts -------------------------------------------------------------------------------------------------


@rule("NetworkStream.get_extra_info", "The value, or `None` for a name that this stream does not know.")
async def an_unknown_name_tells_nothing(case: Case) -> None:
    stream = await case.connect(End())
    told = stream.info("no such name")
    expect(told is None, f"get_extra_info('no such name') returned {told!r}")


@rule("NetworkStream.get_extra_info", "Never raises for a closed stream.")
async def a_closed_stream_still_tells(case: Case) -> None:
    stream = await case.connect(End())
    await stream.aclose()
    for name in NAMES:
        stream.info(name)


@rule("NetworkStream.get_extra_info", "our address and the peer's, as the `socket` module has them;")
async def the_addresses_are_true(case: Case) -> None:
    stream = await case.connect(Say(b"x"), End())
    await case.gets(stream, b"x")  # so that the peer has accepted
    client, server = stream.info("client_addr"), stream.info("server_addr")
    if client is None and server is None:
        raise NotApplicable("the stream does not tell addresses")
    if not case.peer.has_addresses:
        raise NotApplicable("addresses mean nothing here")
    place = case.place
    expect(server is None or server[:2] == (place.host, place.port), f"server_addr is {server!r}")
    expect(
        client is None or client in place.clients, f"client_addr is {client!r}, the peer sees {place.clients}"
    )


@rule(
    "NetworkStream.get_extra_info",
    "whether a read would return at once, with bytes or the end of the stream.",
)
async def is_readable_tells_of_bytes(case: Case) -> None:
    stream = _tells_readable(await case.connect(Expect(b"?"), Say(b"x")))
    expect(stream.info("is_readable") is False, "is_readable is not False while the peer is silent")
    await stream.write(b"?", case.long)
    await case.until(lambda: stream.info("is_readable"), "is_readable stayed False when bytes had come")
    await case.gets(stream, b"x")
    expect(stream.info("is_readable") is False, "is_readable is not False once everything was read")


@rule(
    "NetworkStream.get_extra_info",
    "whether a read would return at once, with bytes or the end of the stream.",
)
async def is_readable_tells_of_the_end(case: Case) -> None:
    stream = _tells_readable(await case.connect(Expect(b"?"), End()))
    await stream.write(b"?", case.long)
    if not case.peer.has_time:
        raise NotApplicable("the peer's end comes when somebody reads")
    await case.until(
        lambda: stream.info("is_readable"), "is_readable stayed False when the peer had ended its side"
    )
    data = await stream.read(100, case.long)
    expect(data == b"", f"read returned {data!r} instead of the end")


@rule("NetworkStream.get_extra_info", "how long each step of connecting took, a tuple of `TimingSpan`.")
async def timings_are_spans(case: Case) -> None:
    stream = await case.connect(End())
    timings = stream.info("timings")
    if timings is None:
        raise NotApplicable("the stream does not tell timings")
    expect(isinstance(timings, tuple), f"timings is {timings!r:.60}")
    for span in timings:
        expect(
            isinstance(span, TimingSpan)
            and span.name in ("dns", "tcp", "unix", "tls")
            and span.start <= span.end,
            f"timings has {span!r}",
        )


def _tells_readable(stream: Stream) -> Stream:
    if stream.info("is_readable") is None:
        raise NotApplicable("the stream does not tell is_readable, so that its connections are used once")
    return stream
