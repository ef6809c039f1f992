"""Rules about TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    ReadError,
    ReadTimeout,
)

from . import _worlds
from ._acts import Act, Collect, CutOff, End, Expect, Hold, Reset, Say, Secure
from ._case import Case, Stream, describe_outcome, expect
from ._certificate import SERVER_NAME, client_context
from ._peers import NotApplicable
from ._rules import rule
from ._rules_bytes import some

if TYPE_CHECKING:
    import ssl


REFUSED = (
    "the peer broke off, did not speak TLS, or its certificate was not accepted (the text says why). "
    "The stream is closed."
)


async def secured(case: Case, *acts: Act, protocols: tuple[str, ...] = ()) -> Stream:
    """A stream inside TLS, and the acts there."""
    stream = await case.connect(Secure(protocols), *acts)
    return await stream.start_tls(client_context(*protocols), SERVER_NAME, case.long)


def needs_tls(case: Case) -> None:
    if not case.peer.has_tls:
        raise NotApplicable("nothing is encrypted here")


async def _fails(case: Case, stream: Stream, *classes: Any, given: tuple[Any, ...], what: str) -> None:
    """A handshake fails, and the stream is closed."""
    await case.raises(*classes, by=stream.start_tls, given=given, what=what)
    await case.is_closed(stream, f"after {what}")


# --- handshakes that succeed -------------------------------------------------------------------------------


@rule("NetworkStream.start_tls", "Perform a TLS handshake as the client, and carry on inside TLS.")
async def start_tls_carries_on_inside_tls(case: Case) -> None:
    data = some(500_000)
    stream = await secured(case, Expect(data), Say(data[::-1]), End())
    await stream.write(data, case.long)
    await case.gets(stream, data[::-1])
    await case.peer_has(data)


@rule("NetworkStream.start_tls", "settings, trusted certificates, and the protocols to offer (ALPN).")
async def start_tls_offers_the_protocols(case: Case) -> None:
    stream = await secured(case, Say(b"x"), End(), protocols=("h2", "http/1.1"))
    ssl_object = stream.info("ssl_object")
    if ssl_object is None:
        raise NotApplicable("the stream does not tell its ssl_object")
    chosen = ssl_object.selected_alpn_protocol()
    expect(chosen == "h2", f"the peer chose {chosen!r} instead of 'h2', which both offer")


@rule("NetworkStream.start_tls", "Sent as SNI unless it is an IP address.")
async def start_tls_sends_the_name(case: Case) -> None:
    needs_tls(case)
    stream = await secured(case, Say(b"x"), End())
    await case.gets(stream, b"x")
    expect(case.place.server_name == SERVER_NAME, f"the peer was sent the name {case.place.server_name!r}")


@rule("NetworkStream.start_tls", "Sent as SNI unless it is an IP address.")
async def start_tls_sends_no_address_as_a_name(case: Case) -> None:
    needs_tls(case)
    stream = await case.connect(Secure(), Say(b"x"), End())
    stream = await stream.start_tls(client_context(), "127.0.0.1", case.long)
    await case.gets(stream, b"x")
    expect(case.place.server_name is None, f"the peer was sent the name {case.place.server_name!r}")


@rule("NetworkStream.start_tls", "The context is used as it is, never changed.")
async def start_tls_leaves_the_context_alone(case: Case) -> None:
    context = client_context()
    before = _settings(context)
    stream = await case.connect(Secure(), Say(b"x"), End())
    await stream.start_tls(context, SERVER_NAME, case.long)
    after = _settings(context)
    changed = [name for name, value in before.items() if after[name] != value]
    expect(not changed, f"start_tls has changed the context's {', '.join(changed)}")


@rule(
    "NetworkStream.start_tls",
    "May be called on a stream that already is TLS: the new layer runs inside the old one.",
)
async def start_tls_within_tls(case: Case) -> None:
    stream = await secured(case, Secure(), Expect(b"ping"), Say(b"pong"), End())
    stream = await stream.start_tls(client_context(), SERVER_NAME, case.long)
    await stream.write(b"ping", case.long)
    await case.gets(stream, b"pong")


@rule(
    "NetworkStream.get_extra_info",
    "the innermost `ssl.SSLObject` (peer certificate, ALPN, …), `None` without TLS;",
)
async def the_ssl_object_is_there_with_tls_only(case: Case) -> None:
    stream = await case.connect(Secure(), Say(b"x"), End())
    told = stream.info("ssl_object")
    expect(told is None, f"without TLS, ssl_object is {told!r:.60}")
    stream = await stream.start_tls(client_context(), SERVER_NAME, case.long)
    told = stream.info("ssl_object")
    if told is None:
        raise NotApplicable("the stream does not tell its ssl_object")
    expect(hasattr(told, "selected_alpn_protocol"), f"with TLS, ssl_object is {told!r:.60}")


@rule("NetworkStream.get_extra_info", "A TLS message that carries no data does not count. Never blocks;")
async def is_readable_counts_data_only(case: Case) -> None:
    # A TLS 1.3 server sends session tickets after its handshake.
    stream = await secured(case, Expect(b"?"), Say(b"x"))
    if stream.info("is_readable") is None:
        raise NotApplicable("the stream does not tell is_readable, so that its connections are used once")
    await case.pause()
    expect(stream.info("is_readable") is False, "is_readable is not False though the peer has sent no data")
    await stream.write(b"?", case.long)
    await case.until(lambda: stream.info("is_readable"), "is_readable stayed False when bytes had come")
    await case.gets(stream, b"x")


@rule("NetworkStream.read", "nothing came within `timeout`. No byte is lost; the stream may be read again.")
async def a_read_within_tls_that_times_out_loses_nothing(case: Case) -> None:
    stream = await secured(case, Expect(b"?"), Say(b"late"))
    await case.raises(
        ReadTimeout, by=stream.read, given=(100, case.short), what="read(timeout=…) from a silent peer"
    )
    await stream.write(b"?", case.long)
    await case.gets(stream, b"late", "after a time-out")


# --- handshakes that fail ----------------------------------------------------------------------------------


@rule(
    "NetworkStream.start_tls",
    REFUSED,
)
async def a_certificate_of_a_stranger_is_refused(case: Case) -> None:
    needs_tls(case)
    stream = await case.connect(Secure(), Hold())
    await _fails(
        case,
        stream,
        ConnectError,
        given=(client_context(trusting=False), SERVER_NAME, case.long),
        what="start_tls with a certificate from an authority that nobody trusts",
    )


@rule("NetworkStream.start_tls", "the name that the certificate must bear.")
async def a_certificate_for_another_name_is_refused(case: Case) -> None:
    needs_tls(case)
    stream = await case.connect(Secure(), Hold())
    await _fails(
        case,
        stream,
        ConnectError,
        given=(client_context(), "other.example", case.long),
        what="start_tls with a certificate for another name",
    )


@rule(
    "NetworkStream.start_tls",
    REFUSED,
)
async def a_peer_that_does_not_speak_tls_is_refused(case: Case) -> None:
    needs_tls(case)
    stream = await case.connect(Say(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"), Hold())
    await _fails(
        case,
        stream,
        ConnectError,
        given=(client_context(), SERVER_NAME, case.long),
        what="start_tls with a peer that does not speak TLS",
    )


@rule(
    "NetworkStream.start_tls",
    REFUSED,
)
async def a_handshake_that_is_broken_off_is_a_connect_error(case: Case) -> None:
    needs_tls(case)
    for act in (Reset(), CutOff()):
        stream = await case.connect(act)
        await _fails(
            case,
            stream,
            ConnectError,
            given=(client_context(), SERVER_NAME, case.long),
            what="start_tls with a peer that breaks off",
        )


@rule(
    "NetworkStream.start_tls",
    "the handshake was not done within `timeout`, or nothing of it was left to begin with.",
)
async def a_handshake_without_an_answer_times_out(case: Case) -> None:
    for seconds in (case.short, 0.0):
        stream = await case.connect(Secure(answered=False))
        await _fails(
            case,
            stream,
            ConnectTimeout,
            given=(client_context(), SERVER_NAME, seconds),
            what="start_tls(timeout=…) with a silent peer" if seconds else "start_tls(timeout=0)",
        )


@rule("NetworkStream.start_tls", "the ambient deadline passed. The stream is closed.")
async def a_handshake_obeys_the_deadline(case: Case) -> None:
    for seconds in (case.short, 0.0):
        stream = await case.connect(Secure(answered=False))
        await case.raises(
            DeadlineExceeded,
            by=case.within,
            given=(seconds, stream.start_tls, client_context(), SERVER_NAME, case.long),
            what="start_tls with a silent peer, under a deadline,",
        )
        await case.is_closed(stream, "after start_tls has met a deadline")


@rule("NetworkStream.start_tls", "the name or the context makes no sense. The stream is closed.")
async def a_missing_name_is_an_argument_error(case: Case) -> None:
    needs_tls(case)
    stream = await case.connect(Hold())
    await _fails(
        case,
        stream,
        ArgumentValueError,
        ArgumentTypeError,
        given=(client_context(), None, case.long),
        what="start_tls without a name, and with a context that checks names,",
    )


@rule(
    "NetworkStream.start_tls",
    "another thread is reading or writing. The stream is as it was, whatever else is wrong with the arguments.",
    where="async",
)
async def start_tls_does_not_disturb_a_reader(case: Case) -> None:
    stream = await case.connect(Expect(b"?"), Say(b"mine"))
    reader = case.start(stream.read, 100, case.long)
    await case.pause()
    await case.raises(
        ConcurrencyError,
        by=stream.start_tls,
        given=(client_context(), SERVER_NAME, case.short),
        what="start_tls while another task reads",
    )
    await stream.write(b"?", case.long)
    got = await case.outcome(reader, "the read meanwhile")
    expect(got == b"mine", f"the reader got {describe_outcome(got)} instead of b'mine'")


@rule("AsyncNetworkStream", "A cancelled `start_tls` has closed the stream.", where="async")
async def a_cancelled_handshake_closes_the_stream(case: Case) -> None:
    stream = await case.connect(Secure(answered=False))
    job = case.start(stream.start_tls, client_context(), SERVER_NAME)
    await case.pause()
    job.cancel()
    got = await case.outcome(job, "a cancelled start_tls")
    if isinstance(got, NotApplicable):
        raise got
    expect(isinstance(got, _worlds.Cancelled), f"a cancelled start_tls ended with {describe_outcome(got)}")
    await case.is_closed(stream, "after a cancelled start_tls")


# --- the end -----------------------------------------------------------------------------------------------


@rule(
    "NetworkStream.read",
    'From 1 to `max_bytes` bytes, or `b""` if the peer has ended its side in an orderly way.',
)
async def the_closing_message_is_the_end(case: Case) -> None:
    needs_tls(case)
    stream = await secured(case, Say(b"bye"), End())
    await case.gets(stream, b"bye")
    for _ in range(3):
        data = await stream.read(100, case.long)
        expect(data == b"", f"read returned {data!r} after TLS's closing message")


@rule(
    "NetworkStream.read",
    "the connection broke, TLS was cut off without its closing message, or the stream is closed.",
)
async def a_cut_off_tls_is_a_read_error(case: Case) -> None:
    needs_tls(case)
    stream = await secured(case, Say(b"half"), CutOff())
    await case.gets(stream, b"half")
    await case.raises(
        ReadError,
        by=stream.read,
        given=(100, case.long),
        what="reading where TLS was cut off without its closing message",
    )


@rule("NetworkStream.close", "Over TLS the closing message is sent if the system takes it at once.")
async def close_sends_the_closing_message(case: Case) -> None:
    needs_tls(case)
    stream = await secured(case, Say(b"x"), Collect())
    await case.gets(stream, b"x")
    await stream.aclose()
    await case.until(lambda: case.place.farewell, "the peer was not told that the stream was closed")
    expect(case.place.farewell == "end", "the connection was cut off without TLS's closing message")


@rule("NetworkStream.close", "Close the stream in the protocol's way, without waiting for the peer.")
async def close_does_not_wait_for_tls(case: Case) -> None:
    stream = await secured(case, Hold())
    await case.outcome(
        case.start(stream.aclose), "close, where the peer does not answer TLS's closing message,"
    )
    await case.is_closed(stream, "after close")


def _settings(context: ssl.SSLContext) -> dict[str, object]:
    return {
        "check_hostname": context.check_hostname,
        "keylog_filename": context.keylog_filename,
        "maximum_version": context.maximum_version,
        "minimum_version": context.minimum_version,
        "number of certificates": context.cert_store_stats(),
        "options": context.options,
        "verify_flags": context.verify_flags,
        "verify_mode": context.verify_mode,
    }
