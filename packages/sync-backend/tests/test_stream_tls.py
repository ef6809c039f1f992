"""TLS over sockets: certificates, broken handshakes, cut-off streams, TLS in TLS, threads."""

from __future__ import annotations

import os
import shutil
import socket
import ssl
import subprocess
import threading
import tracemalloc
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from lamina_interfaces import (
    ArgumentValueError,
    ConcurrencyError,
    ConnectError,
    ConnectTimeout,
    DeadlineExceeded,
    ReadError,
    ReadTimeout,
    WriteError,
    WriteTimeout,
    close_deadline,
    open_deadline,
)
from lamina_sync_backend import SyncBackend, SyncStream
from lamina_sync_backend._transport import READING, WRITING
from sync_certificates import Issuer
from sync_peers import (
    PATIENCE,
    Peer,
    client_context,
    drain,
    echo,
    in_thread,
    open_fds,
    server_context,
    silent,
    tls_echo,
    tries,
    until,
)
from sync_tls import ServerTLS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
NAME = "server.example"


def is_freed(stream: SyncStream) -> bool:
    return bool(stream.get_extra_info("socket").fileno() == -1)


def connect(backend: SyncBackend, peer: Peer) -> SyncStream:
    return backend.connect_tcp("127.0.0.1", peer.port, timeout=30)


@pytest.fixture(params=[V12, V13], ids=["TLSv1.2", "TLSv1.3"])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    chosen: ssl.TLSVersion = request.param
    return chosen


# --- in good order -----------------------------------------------------------------------------------------


def test_tls_carries_bytes_both_ways_and_tells_its_facts(
    backend: SyncBackend, version: ssl.TLSVersion
) -> None:
    with Peer(tls_echo(server_context(version=version))) as peer, connect(backend, peer) as stream:
        assert stream.start_tls(client_context(), NAME, timeout=30) is stream
        stream.write(b"question")
        assert stream.read(timeout=30) == b"question"
        assert stream.get_extra_info("ssl_object").version() == {V12: "TLSv1.2", V13: "TLSv1.3"}[version]
        names = [span.name for span in stream.get_extra_info("timings")]
        assert names == ["tcp", "tls"]
        assert "TLS" in repr(stream)


class Counting(socket.socket):
    def recv(self, size: int, *flags: int) -> bytes:
        self.__dict__.setdefault("asked", []).append(size)
        return super().recv(size, *flags)


def test_the_socket_is_asked_for_as_much_as_the_caller_wants_and_not_in_vain() -> None:
    with Peer(tls_echo()) as peer:
        plain = socket.create_connection(("127.0.0.1", peer.port))
        sock = Counting(fileno=plain.detach())
        with SyncStream(sock) as stream:
            stream.start_tls(client_context(), NAME, timeout=30)
            stream.write(b"x", timeout=30)
            assert stream.read(timeout=30) == b"x"  # and the tickets
            sock.__dict__["asked"].clear()
            for _ in range(3):
                assert stream.get_extra_info("is_readable") is False
            assert sock.__dict__["asked"] == []
            stream.write(b"y", timeout=30)
            assert stream.read(1, timeout=30) == b"y"
            stream.write(bytes(100_000), timeout=30)
            assert stream.read(120_000, timeout=30)
            assert sock.__dict__["asked"][0] == 65536
            assert sock.__dict__["asked"][-1] == 120_000


def test_an_interruptible_write_over_tls_looks_before_it_sends(backend: SyncBackend) -> None:
    with Peer(tls_echo()) as peer, connect(backend, peer) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        stream.write(b"408", timeout=30)
        until(lambda: stream.get_extra_info("is_readable"))
        assert stream.write_until_readable(b"question", timeout=30) == 0
        assert stream.read(timeout=30) == b"408"


def test_two_threads_move_megabytes_at_the_same_time(backend: SyncBackend) -> None:
    data = bytes(range(256)) * 20_000
    with Peer(tls_echo()) as peer, connect(backend, peer) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        writer = in_thread(lambda: stream.write(data, timeout=30))
        received = bytearray()
        while len(received) < len(data):
            received += stream.read(timeout=30)
        writer.result()
    assert received == data


def test_many_threads_share_one_context(backend: SyncBackend) -> None:
    """C05."""
    context = client_context()
    context.set_alpn_protocols(["http/1.1"])
    theirs = server_context()
    theirs.set_alpn_protocols(["h2", "http/1.1"])
    with Peer(tls_echo(theirs)) as peer:

        def once() -> str | None:
            with connect(backend, peer) as stream:
                stream.start_tls(context, NAME, timeout=30)
                agreed: str | None = stream.get_extra_info("ssl_object").selected_alpn_protocol()
                return agreed

        threads = [in_thread(once) for _ in range(32)]
        assert {thread.result() for thread in threads} == {"http/1.1"}


def test_a_large_buffer_is_encrypted_in_slices(backend: SyncBackend) -> None:
    def swallow(connection: socket.socket) -> None:
        with server_context().wrap_socket(connection, server_side=True) as tls:
            drain(tls)

    with Peer(swallow) as peer, connect(backend, peer) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        data = bytes(50_000_000)
        tracemalloc.start()
        try:
            stream.write(data, timeout=30)
            assert tracemalloc.get_traced_memory()[1] < 3_000_000  # the server's buffer counts too
        finally:
            tracemalloc.stop()


# --- certificates ------------------------------------------------------------------------------------------

CERTIFICATES: dict[str, tuple[dict[str, Any], str, str]] = {
    "expired": ({"names": [NAME], "starts": -10, "ends": -1}, NAME, "certificate has expired"),
    "not yet valid": ({"names": [NAME], "starts": 1, "ends": 10}, NAME, "not yet valid"),
    "self-signed": ({"names": [NAME], "self_signed": True}, NAME, "self[- ]signed certificate"),
    "wrong host": ({"names": ["other.example"]}, NAME, "Hostname mismatch"),
    "no alternative names": ({"common_name": "nobody"}, NAME, "Hostname mismatch"),
    "common name only": ({"common_name": NAME}, NAME, "Hostname mismatch"),
    "wildcard too deep": ({"names": ["*.server.example"]}, "a.b.server.example", "Hostname mismatch"),
    "wildcard for its own parent": ({"names": ["*.server.example"]}, NAME, "Hostname mismatch"),
    "partial wildcard of an A-label": (
        {"names": ["xn--*.server.example"]},
        "bücher.server.example",
        "Hostname mismatch",
    ),
    "address as a name": ({"names": ["127.0.0.1"]}, "127.0.0.1", "IP address mismatch"),
    "address missing": ({"names": [NAME], "addresses": ["127.0.0.2"]}, "127.0.0.1", "IP address mismatch"),
    "for clients": ({"names": [NAME], "usage": ExtendedKeyUsageOID.CLIENT_AUTH}, NAME, "(purpose|usage)"),
    "NUL in the common name": ({"common_name": f"{NAME}\0.evil.example"}, NAME, "Hostname mismatch"),
    "weak key": ({"names": [NAME], "weak": True}, NAME, "key too weak"),
}


@pytest.mark.parametrize("case", CERTIFICATES)
def test_a_bad_certificate_is_refused_before_a_byte_is_sent(
    backend: SyncBackend, tmp_path: Path, case: str
) -> None:
    """C01."""
    arguments, name, reason = CERTIFICATES[case]
    issuer = Issuer()
    context = issuer.server_context(tmp_path, **arguments)
    plaintext = []

    def script(connection: socket.socket) -> None:
        plaintext.append(ServerTLS(connection, context).handshake().recv(100))

    with Peer(script) as peer:
        stream = connect(backend, peer)
        with pytest.raises(ConnectError, match=rf"certificate was not accepted: .*{reason}") as caught:
            stream.start_tls(issuer.trusting_context(), name, timeout=30)
        assert is_freed(stream)
    assert caught.value.phase == "tls"
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert plaintext == []


def test_a_certificate_of_an_unknown_root_is_refused(backend: SyncBackend, tmp_path: Path) -> None:
    """C01."""
    theirs = Issuer().server_context(tmp_path, names=[NAME])
    with Peer(tls_echo(theirs)) as peer:
        stream = connect(backend, peer)
        with pytest.raises(ConnectError, match="unable to get local issuer certificate"):
            stream.start_tls(client_context(), NAME, timeout=30)
        assert is_freed(stream)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"names": [NAME]}, NAME),
        ({"names": ["*.server.example"]}, "a.server.example"),
        ({"addresses": ["127.0.0.1"]}, "127.0.0.1"),
    ],
)
def test_the_same_certificate_without_the_fault_is_accepted(
    backend: SyncBackend, tmp_path: Path, arguments: dict[str, Any], name: str
) -> None:
    """C01: the table above fails for its reasons and no others."""
    issuer = Issuer()
    with (
        Peer(tls_echo(issuer.server_context(tmp_path, **arguments))) as peer,
        connect(backend, peer) as stream,
    ):
        stream.start_tls(issuer.trusting_context(), name, timeout=30)


# --- broken handshakes -------------------------------------------------------------------------------------


def say_eof(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_WR)
    drain(connection)


def say_reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def say_plaintext(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 400 Bad Request\r\n" * 100)
    drain(connection)


FAULTS: dict[str, tuple[Callable[[socket.socket], None], type[Exception]]] = {
    "EOF": (say_eof, ConnectError),
    "RST": (say_reset, ConnectError),
    "plaintext": (say_plaintext, ConnectError),
    "silence": (silent, ConnectTimeout),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("version", "flight"),
    [
        (V13, "at once"), (V13, "after the hello"), (V13, "within the answer"),
        (V12, "at once"), (V12, "after the hello"), (V12, "within the answer"), (V12, "after the key exchange"),
    ],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_a_handshake_that_breaks_is_a_connect_error(
    backend: SyncBackend, version: ssl.TLSVersion, flight: str, fault: str
) -> None:
    """C07."""
    break_it, error = FAULTS[fault]
    is_connected = threading.Event()

    def script(connection: socket.socket) -> None:
        is_connected.wait(PATIENCE)
        tls = ServerTLS(connection, server_context(version=version))
        if flight != "at once":
            tls.listen()
        if flight == "within the answer":
            tls.step()
            connection.sendall(tls.take()[:-50])
        if flight == "after the key exchange":
            tls.step()
            tls.flush()
            tls.listen()
        break_it(connection)

    with Peer(script) as peer:
        stream = connect(backend, peer)
        is_connected.set()
        with pytest.raises(error) as caught:
            stream.start_tls(client_context(), NAME, timeout=0.15 if fault == "silence" else 5)
        assert is_freed(stream)
    assert caught.value.phase == "tls"  # type: ignore[attr-defined] # all of ours have it


def test_bytes_injected_before_the_handshake_are_never_plaintext(backend: SyncBackend) -> None:
    """C09."""

    def script(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nevil!")
        ServerTLS(connection, server_context()).handshake()

    with Peer(script) as peer:
        stream = connect(backend, peer)
        until(lambda: stream.get_extra_info("is_readable"))
        with pytest.raises(ConnectError, match="handshake failed"):
            stream.start_tls(client_context(), NAME, timeout=30)
        assert is_freed(stream)


def test_the_peer_is_told_why_the_handshake_failed(backend: SyncBackend) -> None:
    reasons = []

    def script(connection: socket.socket) -> None:
        try:
            ServerTLS(connection, server_context("other.example")).handshake()
        except ssl.SSLError as exc:
            reasons.append(exc.reason)

    with Peer(script) as peer, pytest.raises(ConnectError):
        connect(backend, peer).start_tls(client_context(), NAME, timeout=30)
    assert reasons == ["SSLV3_ALERT_BAD_CERTIFICATE"]


@pytest.mark.parametrize("limit", [0, -1.0])
def test_a_handshake_without_time_sends_nothing(backend: SyncBackend, limit: float) -> None:
    """F02."""
    received = []
    with Peer(lambda connection: received.append(connection.recv(10))) as peer:
        stream = connect(backend, peer)
        with pytest.raises(ConnectTimeout if limit == 0 else ArgumentValueError):
            stream.start_tls(client_context(), NAME, timeout=limit)
        assert is_freed(stream)
        until(lambda: received)
    assert received == [b""]


def test_an_ambient_deadline_ends_a_handshake(backend: SyncBackend) -> None:
    with Peer(silent) as peer:
        stream = connect(backend, peer)
        deadline = open_deadline(0.1, monotonic)
        try:
            with pytest.raises(DeadlineExceeded) as caught:
                stream.start_tls(client_context(), NAME)
        finally:
            close_deadline(deadline)
        assert caught.value.phase == "tls"
        assert is_freed(stream)


def test_closing_wakes_a_handshake(backend: SyncBackend) -> None:
    with Peer(silent) as peer:
        stream = connect(backend, peer)
        handshake = in_thread(lambda: stream.start_tls(client_context(), NAME))
        until(lambda: stream._transport.users == READING | WRITING)
        stream.close()
        with pytest.raises(ConnectError):
            handshake.result()
        assert is_freed(stream)


def test_a_handshake_beside_a_reader_is_refused_and_harms_nobody(backend: SyncBackend) -> None:
    with Peer(echo) as peer, connect(backend, peer) as stream:
        reader = in_thread(stream.read)
        until(lambda: stream._transport.users & READING)
        with pytest.raises(ConcurrencyError):
            stream.start_tls(client_context(), NAME)
        stream.write(b"x")
        assert reader.result() == b"x"


def test_a_handshake_on_a_closed_stream_is_a_connect_error(backend: SyncBackend) -> None:
    with Peer(echo) as peer:
        stream = connect(backend, peer)
        stream.close()
        with pytest.raises(ConnectError, match="closed"):
            stream.start_tls(client_context(), NAME)


# --- the end of the stream ---------------------------------------------------------------------------------


@pytest.mark.parametrize("goodbye", [True, False], ids=["close_notify", "FIN only"])
def test_only_close_notify_is_the_end(backend: SyncBackend, version: ssl.TLSVersion, goodbye: bool) -> None:
    """C06."""
    context = server_context(version=version)

    def script(connection: socket.socket) -> None:
        tls = ServerTLS(connection, context).handshake()
        tls.sendall(b"body")
        if goodbye:
            tls.end()

    with Peer(script) as peer, connect(backend, peer) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        assert stream.read(timeout=30) == b"body"
        for _ in range(2):
            if goodbye:
                assert stream.read(timeout=30) == b""
            else:
                with pytest.raises(ReadError, match="without TLS's closing message"):
                    stream.read(timeout=30)
        assert stream.get_extra_info("is_readable") is True


def test_half_close_the_peer_has_ended_and_still_reads(backend: SyncBackend) -> None:
    """C10."""
    received = []

    def script(connection: socket.socket) -> None:
        tls = ServerTLS(connection, server_context()).handshake()
        tls.end()
        received.append(tls.recv(100))

    with Peer(script) as peer, connect(backend, peer) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        assert stream.read(timeout=30) == b""
        stream.write(b"still heard", timeout=30)
        until(lambda: received)
    assert received == [b"still heard"]


def test_closing_sends_close_notify(backend: SyncBackend) -> None:
    received = []

    def script(connection: socket.socket) -> None:
        received.append(ServerTLS(connection, server_context()).handshake().recv(100))

    with Peer(script) as peer:
        with connect(backend, peer) as stream:
            stream.start_tls(client_context(), NAME, timeout=30)
        until(lambda: received)
    assert received == [b""]  # a cut-off would have raised


def test_aborting_sends_no_close_notify(backend: SyncBackend) -> None:
    ends = []

    def script(connection: socket.socket) -> None:
        try:
            ServerTLS(connection, server_context()).handshake().recv(100)
        except ConnectionResetError as exc:
            ends.append(str(exc))

    with Peer(script) as peer:
        stream = connect(backend, peer)
        stream.start_tls(client_context(), NAME, timeout=30)
        stream.abort()
        until(lambda: ends)
    assert ends == ["cut off"]


def test_closing_does_not_wait_for_a_peer_that_does_not_read(backend: SyncBackend) -> None:
    """C11."""

    def script(connection: socket.socket) -> None:
        ServerTLS(connection, server_context()).handshake()
        silent(connection)

    with Peer(script) as peer:
        for this in tries():
            stream = connect(backend, peer)
            stream.start_tls(client_context(), NAME, timeout=30)
            with pytest.raises(WriteTimeout):
                stream.write(bytes(50_000_000), timeout=0.1)
            start = monotonic()
            stream.close()
            elapsed = monotonic() - start
            assert is_freed(stream)
            with this:
                assert elapsed < 0.5


def test_no_farewell_is_sent_behind_an_unfinished_record(
    backend: SyncBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer would take it for the rest of the record."""

    def script(connection: socket.socket) -> None:
        ServerTLS(connection, server_context()).handshake()
        silent(connection)

    with Peer(script) as peer:
        stream = connect(backend, peer)
        stream.start_tls(client_context(), NAME, timeout=30)
        with pytest.raises(WriteTimeout):
            stream.write(bytes(50_000_000), timeout=0.3)
        assert stream._tls is not None
        rest = len(stream._tls._wire.unsent)
        attempts = []

        def takes_a_byte(view: memoryview) -> int:
            attempts.append(len(view))
            return 1

        monkeypatch.setattr(stream._transport, "send_now", takes_a_byte)
        # As `write_until_readable` leaves it, which may end with a rest.
        stream._transport.half_sent = False
        stream.close()
    assert attempts == [rest]


def test_no_farewell_is_sent_behind_a_write_that_was_broken_off(
    backend: SyncBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would say that all has been said."""

    def script(connection: socket.socket) -> None:
        ServerTLS(connection, server_context()).handshake()
        silent(connection)

    with Peer(script) as peer:
        stream = connect(backend, peer)
        stream.start_tls(client_context(), NAME, timeout=30)
        with pytest.raises(WriteTimeout):
            stream.write(bytes(50_000_000), timeout=0.3)
        sent: list[memoryview] = []
        monkeypatch.setattr(stream._transport, "send_now", sent.append)
        stream.close()
    assert sent == []


@pytest.mark.parametrize("way", ["close", "abort"])
def test_closing_wakes_reader_and_writer(backend: SyncBackend, way: str) -> None:
    def script(connection: socket.socket) -> None:
        ServerTLS(connection, server_context()).handshake()
        silent(connection)

    with Peer(script) as peer:
        stream = connect(backend, peer)
        stream.start_tls(client_context(), NAME, timeout=30)
        reader = in_thread(stream.read)
        writer = in_thread(lambda: stream.write(bytes(50_000_000)))
        until(lambda: stream._transport.users == READING | WRITING)
        getattr(stream, way)()
        with pytest.raises(ReadError):
            reader.result()
        with pytest.raises(WriteError):
            writer.result()
        assert is_freed(stream)


# --- is there something to read? ---------------------------------------------------------------------------


def test_session_tickets_do_not_make_a_stream_look_readable(backend: SyncBackend) -> None:
    """C10: an idle connection would be thrown away for them."""
    with Peer(tls_echo(server_context(version=V13))) as peer, connect(backend, peer) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        stream.write(b"x")
        until(lambda: stream.get_extra_info("is_readable"))
        assert stream.read() == b"x"
        assert stream.get_extra_info("is_readable") is False


def test_looking_for_data_loses_none(backend: SyncBackend) -> None:
    with Peer(tls_echo()) as peer, connect(backend, peer) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        stream.write(b"some data")
        until(lambda: stream.get_extra_info("is_readable"))
        assert stream.get_extra_info("is_readable") is True
        assert stream.read(4) == b"some"
        assert stream.read(100) == b" data"
        assert stream.get_extra_info("is_readable") is False
        with pytest.raises(ReadTimeout):
            stream.read(timeout=0.01)


def test_a_read_that_timed_out_in_the_middle_of_a_record_loses_nothing(backend: SyncBackend) -> None:
    go_on = threading.Event()

    def script(connection: socket.socket) -> None:
        tls = ServerTLS(connection, server_context()).handshake()
        tls.tls.write(b"one record")
        record = tls.take()
        connection.sendall(record[:7])
        go_on.wait(PATIENCE)
        connection.sendall(record[7:])
        drain(connection)

    with Peer(script) as peer, connect(backend, peer) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        with pytest.raises(ReadTimeout):
            stream.read(timeout=0.05)
        go_on.set()
        assert stream.read(timeout=30) == b"one record"


def test_a_write_ends_early_when_the_peer_answers(backend: SyncBackend) -> None:
    def script(connection: socket.socket) -> None:
        tls = ServerTLS(connection, server_context()).handshake()
        tls.recv(1000)
        tls.sendall(b"413")
        silent(connection)

    with Peer(script) as peer, connect(backend, peer) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        assert stream.write_until_readable(bytes(50_000_000), timeout=30) < 50_000_000
        assert stream.read(timeout=30) == b"413"


def test_after_an_early_end_the_rest_can_still_be_sent(backend: SyncBackend) -> None:
    """An interim answer (RFC 9110, section 15.2) is no reason to stop. What was encrypted is sent first."""
    data = bytes(range(256)) * 40_000
    received = bytearray()

    def script(connection: socket.socket) -> None:
        tls = ServerTLS(connection, server_context()).handshake()
        received.extend(tls.recv(1000))
        tls.sendall(b"103")
        while len(received) < len(data):
            received.extend(tls.recv(65536))
        tls.sendall(b"200")

    with Peer(script) as peer, connect(backend, peer) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        sent = stream.write_until_readable(data, timeout=30)
        assert stream.read(timeout=30) == b"103"
        while sent < len(data):
            sent += stream.write_until_readable(data[sent:], timeout=30)
        assert stream.read(timeout=30) == b"200"
    assert received == data


def test_what_an_early_end_left_over_goes_out_while_reading(backend: SyncBackend) -> None:
    data = bytes(100_000)
    received = bytearray()
    has_come_back = threading.Event()

    def script(connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tls = ServerTLS(connection, server_context()).handshake()
        tls.sendall(b"1")
        has_come_back.wait(PATIENCE)
        while len(received) < len(data):
            received.extend(tls.recv(65536))
        tls.sendall(b"2")

    with Peer(script) as peer:
        options = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]
        with backend.connect_tcp("127.0.0.1", peer.port, timeout=30, socket_options=options) as stream:
            stream.start_tls(client_context(), NAME, timeout=30)
            # Takes all of it into TLS in one slice, sends what fits, and comes back for the "1".
            sent = stream.write_until_readable(data, timeout=30)
            has_come_back.set()
            until(lambda: stream.get_extra_info("is_readable"))
            assert stream.read(1, timeout=30) == b"1"
            if sent < len(data):
                stream.write(data[sent:], timeout=30)
            assert stream.read(1, timeout=30) == b"2"
    assert received == data


# --- TLS in TLS --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [2, 3])
def test_tls_in_tls_carries_a_megabyte_both_ways(backend: SyncBackend, depth: int) -> None:
    """C10."""
    data = bytes(range(256)) * 4096

    def script(connection: socket.socket) -> None:
        layer: Any = connection
        for number in range(depth):
            layer = ServerTLS(layer, server_context(f"layer{number}.example")).handshake()
        while received := layer.recv(65536):
            layer.sendall(received)
        layer.end()

    with Peer(script) as peer, connect(backend, peer) as stream:
        for number in range(depth):
            stream.start_tls(client_context(), f"layer{number}.example", timeout=30)
        certificate = stream.get_extra_info("ssl_object").getpeercert()
        assert certificate["subjectAltName"] == (("DNS", f"layer{depth - 1}.example"),)
        assert len(stream.get_extra_info("timings")) == 1 + depth
        assert stream.get_extra_info("is_readable") is False
        writer = in_thread(lambda: stream.write(data, timeout=30))
        received = bytearray()
        while len(received) < len(data):
            received += stream.read(timeout=30)
        writer.result()
        assert received == data
        assert stream.get_extra_info("is_readable") is False


def test_a_cut_off_outer_layer_is_no_end_of_the_inner_one(backend: SyncBackend) -> None:
    """C06 inside C10."""

    def script(connection: socket.socket) -> None:
        outer = ServerTLS(connection, server_context()).handshake()
        ServerTLS(outer, server_context()).handshake()
        outer.end()

    with Peer(script) as peer, connect(backend, peer) as stream:
        for _ in range(2):
            stream.start_tls(client_context(), NAME, timeout=30)
        with pytest.raises(ReadError, match="cut off"):
            stream.read(timeout=30)


def test_a_failed_inner_handshake_frees_the_socket(backend: SyncBackend) -> None:
    """C07 inside C10."""

    def script(connection: socket.socket) -> None:
        outer = ServerTLS(connection, server_context()).handshake()
        outer.recv(1000)
        outer.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        drain(connection)

    with Peer(script) as peer:
        stream = connect(backend, peer).start_tls(client_context(), NAME, timeout=30)
        with pytest.raises(ConnectError, match="handshake failed"):
            stream.start_tls(client_context(), NAME, timeout=30)
        assert is_freed(stream)


# --- what only OpenSSL's own server can do -----------------------------------------------------------------


def missing(peer: str) -> NoReturn:
    """Skip what needs a peer that is not installed; where peers are required, that is a failure."""
    if os.environ.get("LAMINA_REQUIRE_PEERS") == "1":
        pytest.fail(f"{peer} is not installed, and LAMINA_REQUIRE_PEERS is set")
    pytest.skip(f"{peer} is not installed")


class OpenSSLServer:
    """`openssl s_server`, which takes commands: K and k for key updates, r for renegotiation."""

    def __init__(self, directory: Path, *options: str) -> None:
        from sync_peers import AUTHORITY

        pem = directory / "server.pem"
        AUTHORITY.issue_cert(NAME).private_key_and_cert_chain_pem.write_to_path(pem)
        program = shutil.which("openssl")
        if program is None:
            missing("the openssl program")
        self._process = subprocess.Popen(
            [program, "s_server", "-accept", "127.0.0.1:0", "-cert", pem, "-key", pem, "-naccept", "1", *options],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self.port = int(self.expect(b"ACCEPT 127.0.0.1:").rpartition(b":")[2])

    def expect(self, text: bytes) -> bytes:
        for _ in range(1000):
            line = self._stdout.readline()
            assert line, f"the server ended without saying {text!r}"
            if text in line:
                return line
        raise AssertionError(f"the server did not say {text!r}")

    def command(self, line: str) -> None:
        self._stdin.write(line.encode() + b"\n")
        self._stdin.flush()

    def close(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE)


@pytest.fixture
def openssl(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[OpenSSLServer]:
    server = OpenSSLServer(tmp_path, *request.param)
    try:
        yield server
    finally:
        server.close()


def wait_for_socket(stream: SyncStream) -> None:
    sock = stream.get_extra_info("socket")

    def peek() -> bool:
        try:
            return bool(sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False

    until(peek)


@pytest.mark.parametrize("openssl", [("-tls1_3",)], indirect=True)
@pytest.mark.parametrize("command", ["k", "K"], ids=["key update", "key update that wants an answer"])
def test_a_key_update_is_nothing_to_read_and_is_answered(
    backend: SyncBackend, openssl: OpenSSLServer, command: str
) -> None:
    """C10."""
    with backend.connect_tcp("127.0.0.1", openssl.port, timeout=30) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        openssl.expect(b"CIPHER is")
        stream.get_extra_info("is_readable")  # takes the tickets
        for number in range(3):
            openssl.command(command)
            wait_for_socket(stream)
            assert stream.get_extra_info("is_readable") is False
            stream.write(f"question {number}\n".encode(), timeout=30)
            openssl.expect(f"question {number}".encode())
            openssl.command(f"answer {number}")
            assert stream.read(timeout=30) == f"answer {number}\n".encode()


@pytest.mark.parametrize(
    ("openssl", "command", "end"),
    [(("-tls1_3",), "K", None), (("-tls1_2", "-state"), "r", b"read finished")],
    indirect=["openssl"],
    ids=["key update", "renegotiation"],
)
def test_talk_of_tls_itself_leaves_a_waiting_reader_waiting_and_is_answered(
    backend: SyncBackend,
    openssl: OpenSSLServer,
    command: str,
    end: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """C10: the renegotiation's answers go out though nobody writes."""
    with backend.connect_tcp("127.0.0.1", openssl.port, timeout=30) as stream:
        stream.start_tls(client_context(), NAME, timeout=30)
        openssl.expect(b"CIPHER is")
        received = []
        transport = stream._transport
        receive_now = transport.receive_now

        def watched(max_bytes: int) -> bytes | None:
            data = receive_now(max_bytes)
            received.append(data)
            return data

        stream.get_extra_info("is_readable")  # takes the tickets
        monkeypatch.setattr(transport, "receive_now", watched)
        reader = in_thread(lambda: stream.read(timeout=PATIENCE))
        openssl.command(command)
        until(lambda: received)  # the server reads its commands a line at a time
        if end is not None:
            # An answer may come between the two halves of a renegotiation, and then nobody would read the second.
            openssl.expect(end)
        openssl.command("answer")
        assert reader.result() == b"answer\n"
        stream.write(b"question\n")
        openssl.expect(b"question")


@pytest.mark.parametrize("openssl", [("-tls1_2",)], indirect=True)
def test_a_context_without_renegotiation_refuses_it(backend: SyncBackend, openssl: OpenSSLServer) -> None:
    """C10: refused by an alert, which this server takes as the end."""
    context = client_context()
    context.options |= ssl.OP_NO_RENEGOTIATION
    with backend.connect_tcp("127.0.0.1", openssl.port, timeout=30) as stream:
        stream.start_tls(context, NAME, timeout=30)
        openssl.expect(b"CIPHER is")
        openssl.command("r")
        with pytest.raises(ReadError):
            stream.read(timeout=30)


def test_twenty_broken_handshakes_leave_no_socket(backend: SyncBackend) -> None:
    """C08: at once, while the errors are still held."""
    kept = []
    before = open_fds()
    with Peer(say_plaintext) as peer:
        for _ in range(20):
            with pytest.raises(ConnectError) as caught:
                connect(backend, peer).start_tls(client_context(), NAME, timeout=30)
            kept.append(caught.value)  # its traceback holds frames, which must not hold sockets
        # The listener's and the peer's own ends are all that may be there.
        assert len(open_fds() - before) <= 1 + peer.accepted
        until(lambda: len(open_fds() - before) == 1)
    assert {error.phase for error in kept} == {"tls"}
