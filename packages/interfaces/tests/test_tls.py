"""TLS without a socket: engine against engine, in memory."""

from __future__ import annotations

import random
import ssl
import struct
import subprocess
import sys
import tracemalloc
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interfaces_tls import AUTHORITY, MemoryServer, Relay, client_context, server_context, shake_hands
from lamina_interfaces import ArgumentTypeError, ArgumentValueError, ConnectError, ReadError, WriteError
from lamina_interfaces.tls import TRANSFER_SIZE, TLSEngine, server_name

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


def connected(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[TLSEngine, MemoryServer]:
    engine = TLSEngine(client_context(), "server.example")
    server = MemoryServer(server_context(version=version))
    engine.feed(shake_hands(engine, server))
    return engine, server


@pytest.fixture(params=VERSIONS, ids=lambda version: version.name)
def pair(request: pytest.FixtureRequest) -> tuple[TLSEngine, MemoryServer]:
    return connected(request.param)


def say(server: MemoryServer, data: bytes) -> bytes:
    server.tls.write(data)
    return server.take()


# --- bytes -------------------------------------------------------------------------------------------------


def test_bytes_pass_both_ways(pair: tuple[TLSEngine, MemoryServer]) -> None:
    engine, server = pair
    engine.write(b"question")
    server.feed(engine.take())
    assert server.read() == b"question"
    engine.feed(say(server, b"answer"))
    assert engine.read(100) == b"answer"
    assert engine.read(100) is None


def test_one_read_collects_several_records() -> None:
    engine, server = connected()
    engine.feed(say(server, bytes(60_000)))
    assert len(engine.read(65536) or b"") == 60_000


class CountingReads:
    """An `ssl.SSLObject` that tells for how many bytes it was asked, each time."""

    def __init__(self, inner: ssl.SSLObject) -> None:
        self._inner = inner
        self.asked: list[int] = []

    def read(self, size: int) -> bytes:
        self.asked.append(size)
        return self._inner.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def test_openssl_is_not_asked_where_nothing_has_come_nor_for_more_than_a_record() -> None:
    """Its "nothing yet" is an exception, and `ssl` makes room for all that it is asked for."""
    engine, server = connected()
    assert engine.read(1) is None  # takes the tickets
    counting = CountingReads(engine.ssl_object)
    engine.ssl_object = cast("ssl.SSLObject", counting)
    assert engine.read(1_000_000) is None
    assert engine.readable() is False
    assert counting.asked == []
    engine.feed(say(server, bytes(20_000)))
    assert engine.read(17_000) == bytes(17_000)
    assert engine.read(1_000_000) == bytes(3_000)
    assert max(counting.asked) == 16384


def test_much_ciphertext_at_once_makes_openssl_keep_no_more_room() -> None:
    engine, server = connected()
    data = random.Random(0).randbytes(1 << 20)
    ciphertext = say(server, data)
    most = 0
    engine.feed(ciphertext[:500_000])
    engine.feed(ciphertext[500_000:700_001])  # though the first is not used up
    engine.feed(ciphertext[700_001:])
    received = bytearray()
    while piece := engine.read(10_000):
        most = max(most, engine._incoming.pending)
        received += piece
    assert received == data
    assert most <= TRANSFER_SIZE
    assert engine._ahead.obj == b"", "the last of it is kept"


def test_a_read_gives_no_more_than_was_asked_for() -> None:
    engine, server = connected()
    engine.feed(say(server, b"0123456789") + say(server, b"abc"))
    assert [engine.read(4) for _ in range(5)] == [b"0123", b"4567", b"89ab", b"c", None]


def read_into(engine: TLSEngine, size: int) -> bytes | int | None:
    buffer = bytearray(size + 1)
    with memoryview(buffer) as view, view[:size] as room:
        count = engine.read_into(room)
    assert not any(buffer[count or 0 :])
    return bytes(buffer[:count]) if count else count


def test_as_many_records_as_fit_are_put_into_a_buffer(pair: tuple[TLSEngine, MemoryServer]) -> None:
    engine, server = pair
    data = random.Random(0).randbytes(60_000)
    engine.feed(say(server, data))
    assert read_into(engine, 20_000) == data[:20_000]
    assert engine.read(10) == data[20_000:20_010]
    assert read_into(engine, 60_000) == data[20_010:]
    assert read_into(engine, 10) is None


def test_what_a_look_has_decrypted_is_put_into_the_buffer_first(pair: tuple[TLSEngine, MemoryServer]) -> None:
    engine, server = pair
    engine.feed(say(server, b"0123456789"))
    assert engine.readable()
    assert [read_into(engine, 4) for _ in range(4)] == [b"0123", b"4567", b"89", None]


def test_the_end_and_a_failure_are_kept_behind_what_was_put_into_a_buffer() -> None:
    engine, server = connected()
    engine.feed(say(server, b"all"))
    with pytest.raises(ssl.SSLWantReadError):
        server.tls.unwrap()
    engine.feed(server.take())
    assert [read_into(engine, 10) for _ in range(3)] == [b"all", 0, 0]
    assert engine.read(10) == b""
    engine, server = connected()
    engine.feed(say(server, b"half") + b"this is no record of TLS")
    assert read_into(engine, 10) == b"half"
    for _ in range(2):
        with pytest.raises(ReadError, match="TLS is broken"):
            read_into(engine, 10)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.binary(min_size=1, max_size=40_000), max_size=5),
    st.integers(1, 20_000),
    st.integers(1, 70_000),
)
def test_any_slicing_of_the_ciphertext_gives_the_same_bytes(pieces: list[bytes], cut: int, size: int) -> None:
    engine, server = connected()
    for piece in pieces:
        server.tls.write(piece)
    server.close()
    ciphertext = server.take()
    got = []
    for start in range(0, len(ciphertext), cut):
        engine.feed(ciphertext[start : start + cut])
        assert engine.readable() in {True, False}
        while data := engine.read(size):
            assert len(data) <= size
            got.append(data)
    assert b"".join(got) == b"".join(pieces)
    assert engine.read(size) == b""


def test_writing_nothing_sends_nothing() -> None:
    engine, _ = connected()
    engine.write(b"")
    assert not engine.outgoing
    assert engine.take() == b""


def test_a_memoryview_is_written_without_keeping_it() -> None:
    engine, server = connected()
    buffer = bytearray(b"question")
    engine.write(memoryview(buffer))
    buffer.extend(b"!")  # fails if the buffer were still exported
    server.feed(engine.take())
    assert server.read() == b"question"


def test_reading_a_megabyte_copies_little() -> None:
    engine, server = connected()
    ciphertext = [say(server, bytes(65536)) for _ in range(16)]
    tracemalloc.start()
    try:
        for piece in ciphertext:
            engine.feed(piece)
            for _ in range(4):
                engine.read(65536)
        assert tracemalloc.get_traced_memory()[1] < 300_000
    finally:
        tracemalloc.stop()


# --- the end of the stream ---------------------------------------------------------------------------------


def test_a_write_in_the_midst_of_a_renegotiation_breaks_both_ways(
    pair: tuple[TLSEngine, MemoryServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL has kept a part of the write, and would take anything else for its continuation."""
    engine, _ = pair

    class Renegotiating:
        def write(self, plaintext: bytes) -> int:
            raise ssl.SSLWantReadError

    monkeypatch.setattr(engine, "ssl_object", Renegotiating())
    with pytest.raises(WriteError, match="renegotiating"):
        engine.write(b"x")
    with pytest.raises(WriteError, match="renegotiating"):
        engine.write(b"y")
    with pytest.raises(ReadError, match="renegotiating"):
        engine.read(10)


def test_a_context_of_a_server_is_the_callers_mistake() -> None:
    with pytest.raises(ArgumentValueError, match="server"):
        TLSEngine(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))


def test_close_notify_is_the_end_and_stays_the_end(pair: tuple[TLSEngine, MemoryServer]) -> None:
    engine, server = pair
    engine.feed(say(server, b"last"))
    server.close()
    engine.feed(server.take())
    assert [engine.read(10) for _ in range(3)] == [b"last", b"", b""]
    engine.feed_eof()
    assert engine.read(10) == b""


def test_the_end_of_the_transport_without_close_notify_is_a_read_error(
    pair: tuple[TLSEngine, MemoryServer],
) -> None:
    """C06: CPython's OP_IGNORE_UNEXPECTED_EOF would report an orderly end."""
    engine, server = pair
    engine.feed(say(server, b"last"))
    engine.feed_eof()
    assert engine.read(10) == b"last"
    for _ in range(2):
        with pytest.raises(ReadError, match="without TLS's closing message"):
            engine.read(10)


def test_a_record_cut_in_the_middle_is_a_read_error() -> None:
    """C06."""
    engine, server = connected()
    engine.feed(say(server, b"last")[:-1])
    engine.feed_eof()
    with pytest.raises(ReadError):
        engine.read(10)


def test_close_notify_that_came_with_the_end_of_the_transport_counts() -> None:
    """C06."""
    engine, server = connected()
    server.tls.write(b"last")
    server.close()
    engine.feed(server.take())
    engine.feed_eof()
    assert [engine.read(10), engine.read(10)] == [b"last", b""]


def test_a_broken_record_is_a_read_error_and_never_the_end() -> None:
    engine, server = connected()
    ciphertext = bytearray(say(server, b"data"))
    ciphertext[-1] ^= 1
    engine.feed(bytes(ciphertext))
    for _ in range(3):
        with pytest.raises(ReadError, match="TLS is broken"):
            engine.read(10)
    with pytest.raises(WriteError, match="TLS is broken"):  # and not OpenSSL's "EOF occurred"
        engine.write(b"more")


def test_after_a_fatal_alert_reading_on_is_an_error_and_not_the_end() -> None:
    """OpenSSL reports an orderly end to whoever reads on."""
    engine, server = connected(ssl.TLSVersion.TLSv1_2)
    # The server takes a broken record and answers with an encrypted fatal alert.
    engine.write(b"data")
    ciphertext = bytearray(engine.take())
    ciphertext[-1] ^= 1
    server.feed(bytes(ciphertext))
    with pytest.raises(ssl.SSLError):
        server.read()
    engine.feed(server.take())
    engine.feed_eof()
    for _ in range(3):
        with pytest.raises(ReadError, match="bad record mac"):
            engine.read(10)


def test_data_before_a_broken_record_is_delivered_first() -> None:
    engine, server = connected()
    engine.feed(say(server, b"good") + b"\x17\x03\x03\x00\x05wrong")
    assert engine.read(100) == b"good"
    with pytest.raises(ReadError):
        engine.read(100)


def test_writing_goes_on_after_the_peer_has_ended_its_side(pair: tuple[TLSEngine, MemoryServer]) -> None:
    """C10: half close."""
    engine, server = pair
    server.close()
    engine.feed(server.take())
    assert engine.read(10) == b""
    engine.write(b"more")
    server.feed(engine.take())
    if server.tls.version() == "TLSv1.3":
        assert server.read() == b"more"


def test_close_sends_close_notify_and_does_not_wait(pair: tuple[TLSEngine, MemoryServer]) -> None:
    engine, server = pair
    engine.close()
    engine.close()
    server.feed(engine.take())
    assert server.read() == b""
    with pytest.raises(WriteError):
        engine.write(b"late")


def test_closing_before_the_handshake_is_silent() -> None:
    engine = TLSEngine(client_context(), "server.example")
    engine.close()
    assert engine.take() == b""


# --- is there something to read? ---------------------------------------------------------------------------


def test_session_tickets_are_nothing_to_read() -> None:
    """C10: a TLS 1.3 server sends two after the handshake, here after idling."""
    engine = TLSEngine(client_context(), "server.example")
    server = MemoryServer()
    tickets = shake_hands(engine, server)
    assert tickets
    engine.feed(tickets)
    assert not engine.readable()


def test_data_is_something_to_read_and_is_not_lost_by_looking() -> None:
    engine, server = connected()
    engine.feed(say(server, b"first") + say(server, b"second"))
    assert engine.readable()
    assert engine.readable()
    assert engine.read(2) == b"fi"
    assert engine.read(100) == b"rst"
    assert engine.read(100) == b"second"
    assert not engine.readable()


@pytest.mark.parametrize("end", ["close_notify", "cut", "broken"])
def test_the_end_is_something_to_read(end: str) -> None:
    engine, server = connected()
    assert not engine.readable()
    if end == "close_notify":
        server.close()
        engine.feed(server.take())
    elif end == "cut":
        engine.feed_eof()
    else:
        engine.feed(b"no TLS at all")
    assert engine.readable()
    assert engine.readable()


# --- the handshake -----------------------------------------------------------------------------------------


def flights_until_failure(engine: TLSEngine, server: MemoryServer) -> None:
    for _ in range(10):
        engine.handshake()
        server.feed(engine.take())
        server.handshake()
        engine.feed(server.take())
    raise AssertionError("the handshake did not fail")


@pytest.mark.parametrize(
    ("names", "wanted", "reason"),
    [
        (["other.example"], "server.example", "Hostname mismatch"),
        (["*.example"], "a.b.example", "Hostname mismatch"),
        (["server.example"], "127.0.0.1", "IP address mismatch"),
        (["127.0.0.2"], "127.0.0.1", "IP address mismatch"),
    ],
)
def test_a_certificate_for_somebody_else_is_refused(names: list[str], wanted: str, reason: str) -> None:
    """C01: wrong host, wildcard depth, IP address missing; the rest of the table is tested over sockets."""
    engine = TLSEngine(client_context(), wanted)
    with pytest.raises(ConnectError, match=reason) as caught:
        flights_until_failure(engine, MemoryServer(server_context(*names)))
    assert caught.value.phase == "tls"
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert engine.take(), "an alert tells the server why"


def test_an_untrusted_certificate_is_refused() -> None:
    """C01."""
    engine = TLSEngine(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), "server.example")
    with pytest.raises(ConnectError, match=r"certificate was not accepted: .*local issuer"):
        flights_until_failure(engine, MemoryServer())


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n", b"\0" * 20])
def test_a_peer_that_does_not_speak_tls_is_a_connect_error(answer: bytes) -> None:
    """C07, C09."""
    engine = TLSEngine(client_context(), "server.example")
    engine.handshake()
    engine.feed(answer)
    with pytest.raises(ConnectError, match="handshake failed") as caught:
        engine.handshake()
    assert caught.value.phase == "tls"


def test_the_end_of_the_transport_within_the_handshake_is_a_connect_error() -> None:
    """C07."""
    for length in range(0, 700, 90):
        engine, server = TLSEngine(client_context(), "server.example"), MemoryServer()
        engine.handshake()
        server.feed(engine.take())
        server.handshake()
        flight = server.take()
        assert len(flight) > 700
        engine.feed(flight[:length])
        engine.feed_eof()
        with pytest.raises(ConnectError, match="closed the connection during the TLS handshake"):
            engine.handshake()


def test_no_common_version_is_a_connect_error() -> None:
    context = client_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    engine = TLSEngine(context, "server.example")
    server = MemoryServer(server_context(version=ssl.TLSVersion.TLSv1_2))
    engine.handshake()
    server.feed(engine.take())
    with pytest.raises(ssl.SSLError):
        server.handshake()
    engine.feed(server.take())
    with pytest.raises(ConnectError, match="alert protocol version"):
        engine.handshake()


# --- names -------------------------------------------------------------------------------------------------


def client_hello(engine: TLSEngine) -> bytes:
    engine.handshake()
    return engine.take()


def server_name_extension(hello: bytes) -> bytes | None:
    """The host name in the `server_name` extension (RFC 6066, section 3), read byte by byte."""
    assert hello[0] == 22, "a handshake record"
    assert hello[5] == 1, "a ClientHello"
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]  # session id
    at += 2 + struct.unpack_from(">H", hello, at)[0]  # cipher suites
    at += 1 + hello[at]  # compression
    end = at + 2 + struct.unpack_from(">H", hello, at)[0]
    at += 2
    while at < end:
        kind, length = struct.unpack_from(">HH", hello, at)
        at += 4
        if kind == 0:
            list_length, name_type, name_length = struct.unpack_from(">HBH", hello, at)
            assert name_type == 0
            assert list_length == name_length + 3 == length - 2
            return hello[at + 5 : at + 5 + name_length]
        at += length
    return None


@pytest.mark.parametrize(
    ("host", "sent"),
    [
        ("server.example", b"server.example"),
        ("server.example.", b"server.example"),
        ("bücher.example", b"xn--bcher-kva.example"),
        ("192.0.2.1", None),
        ("192.0.2.1.", None),
        ("::1", None),
        ("fe80::1%eth0", None),
    ],
)
def test_the_client_hello_names_the_host_exactly(host: str, sent: bytes | None) -> None:
    """C02."""
    assert server_name_extension(client_hello(TLSEngine(client_context(), host))) == sent


@pytest.mark.parametrize(
    ("certified", "wanted"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("fe80::1", "fe80::1%lo")]
)
def test_an_ip_address_is_checked_against_the_certificate(certified: str, wanted: str) -> None:
    """C02: not sent is not unchecked."""
    shake_hands(TLSEngine(client_context(), wanted), MemoryServer(server_context(certified)))


def test_a_final_dot_does_not_keep_the_certificate_from_matching() -> None:
    """C02."""
    shake_hands(TLSEngine(client_context(), "server.example."), MemoryServer())


def test_without_a_name_none_is_sent() -> None:
    context = client_context()
    context.check_hostname = False
    assert server_name_extension(client_hello(TLSEngine(context))) is None


def test_a_missing_name_is_the_callers_mistake() -> None:
    with pytest.raises(ArgumentValueError, match="check_hostname"):
        TLSEngine(client_context())


@pytest.mark.parametrize("host", ["", "a\r\nb", "a\0b", "a b", "x" * 64, "."])
def test_a_name_that_is_none_is_the_callers_mistake(host: str) -> None:
    with pytest.raises(ArgumentValueError):
        server_name(host)


@pytest.mark.parametrize("context", [None, "context", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)])
def test_an_unsuitable_context_is_refused_with_our_error(context: Any) -> None:
    with pytest.raises((ArgumentTypeError, ArgumentValueError, ConnectError)):
        TLSEngine(context, "server.example")


# --- ALPN and the context ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "known", "agreed"),
    [(["h2", "http/1.1"], ["h2"], "h2"), (["http/1.1"], ["h2"], None), (["h2", "http/1.1"], [], None)],
)
def test_alpn_is_what_both_know_and_never_a_guess(
    offered: list[str], known: list[str], agreed: str | None
) -> None:
    """C04."""
    mine, theirs = client_context(), server_context()
    mine.set_alpn_protocols(offered)
    if known:
        theirs.set_alpn_protocols(known)
    engine = TLSEngine(mine, "server.example")
    shake_hands(engine, MemoryServer(theirs))
    assert engine.ssl_object.selected_alpn_protocol() == agreed


class FrozenContext(ssl.SSLContext):
    frozen = False

    def __setattr__(self, name: str, value: Any) -> None:
        assert not self.frozen, f"{name} was set on the caller's context"
        super().__setattr__(name, value)

    def set_alpn_protocols(self, alpn_protocols: Any) -> None:
        raise AssertionError("the caller's context was changed")

    set_ciphers = load_verify_locations = set_alpn_protocols  # type: ignore[assignment] # each must not be called


def test_the_callers_context_is_never_changed() -> None:
    """C05."""
    context = FrozenContext(ssl.PROTOCOL_TLS_CLIENT)
    ssl.SSLContext.load_verify_locations(context, cadata=AUTHORITY.cert_pem.bytes().decode())
    before = (context.options, context.verify_flags, context.verify_mode, context.check_hostname)
    FrozenContext.frozen = True
    try:
        engine, server = TLSEngine(context, "server.example"), MemoryServer()
        shake_hands(engine, server)
        engine.feed_eof()
        with pytest.raises(ReadError):
            engine.read(10)
        engine.close()
    finally:
        FrozenContext.frozen = False
    assert (context.options, context.verify_flags, context.verify_mode, context.check_hostname) == before


# --- TLS in TLS --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3])
def test_tls_in_tls_carries_a_megabyte_both_ways(depth: int) -> None:
    """C10."""
    servers = [MemoryServer() for _ in range(depth)]
    engine: TLSEngine | None = None
    far: Any = None
    for server in servers:
        engine = TLSEngine(client_context(), "server.example", over=engine)
        far = server if far is None else Relay(far, server)
        engine.feed(shake_hands(engine, far))
    assert engine is not None
    assert repr(engine).count("TLSv1.3") == depth
    data = bytes(range(256)) * 4096
    received = bytearray()
    for start in range(0, len(data), 100_000):
        engine.write(data[start : start + 100_000])
        far.feed(engine.take())
        received += servers[-1].read_all()
        assert not engine.outgoing
    assert bytes(received) == data
    back = bytearray()
    for start in range(0, len(data), 100_000):
        servers[-1].tls.write(data[start : start + 100_000])
        engine.feed(far.take())
        while piece := engine.read(65536):
            back += piece
    assert bytes(back) == data


def inside() -> tuple[TLSEngine, MemoryServer, MemoryServer]:
    outer, inner = MemoryServer(), MemoryServer()
    below = TLSEngine(client_context(), "server.example")
    below.feed(shake_hands(below, outer))
    engine = TLSEngine(client_context(), "server.example", over=below)
    engine.feed(shake_hands(engine, Relay(outer, inner)))
    return engine, outer, inner


def test_closing_says_farewell_at_every_depth() -> None:
    """C10."""
    engine, outer, inner = inside()
    engine.close()
    outer.feed(engine.take())
    inner.feed(outer.read() or b"")
    assert inner.read() == b""
    assert outer.read() == b""


@pytest.mark.parametrize("outer_says_goodbye", [True, False])
def test_the_end_of_the_outer_layer_cuts_the_inner_one_off(outer_says_goodbye: bool) -> None:
    """C06 inside C10: only the inner layer's own close_notify is its end."""
    engine, outer, _ = inside()
    if outer_says_goodbye:
        outer.close()
        engine.feed(outer.take())
    engine.feed_eof()
    assert engine.readable()
    with pytest.raises(ReadError):
        engine.read(10)


def test_the_inner_layers_close_notify_is_the_end() -> None:
    """C06 inside C10."""
    engine, outer, inner = inside()
    inner.close()
    outer.tls.write(inner.take())
    engine.feed(outer.take())
    engine.feed_eof()
    assert engine.read(10) == b""


def test_the_outer_layer_may_end_during_the_inner_handshake() -> None:
    """C07 inside C10."""
    outer = MemoryServer()
    below = TLSEngine(client_context(), "server.example")
    below.feed(shake_hands(below, outer))
    engine = TLSEngine(client_context(), "server.example", over=below)
    assert not engine.handshake()
    engine.feed_eof()
    with pytest.raises(ConnectError, match="handshake"):
        engine.handshake()


def test_importing_the_module_does_not_import_ssl() -> None:
    code = (
        "import sys, lamina_interfaces.tls, lamina_interfaces.dialing\n"
        "print('ssl' in sys.modules, 'socket' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
