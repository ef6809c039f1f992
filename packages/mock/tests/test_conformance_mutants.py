"""Backends that break their contracts, each in one way, and the rule of the conformance kit that says so."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

import tiny_backends
from lamina_interfaces import (
    AsyncNetworkStreamInterface,
    DeadlineExceeded,
    Limit,
    NetworkStream,
    PromptCloser,
    ReadError,
    ReadTimeout,
    WriteError,
)
from lamina_interfaces.tls import TLSEngine
from lamina_mock.conformance import (
    NotApplicable,
    Peer,
    Place,
    Report,
    _run,
    check_async_backend,
    check_async_stream,
    check_backend,
    check_stream,
)
from tiny_backends import AsyncDirectStream, AsyncTinyBackend, AsyncTinyStream, TinyBackend, TinyStream


@pytest.fixture(autouse=True)
def none_left_open(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some of these streams do not close their sockets, which is a fault of theirs alone."""
    opened: list[socket.socket] = []
    monkeypatch.setattr(tiny_backends, "opened", opened)
    yield
    for sock in opened:
        sock.close()


SCALES = (0.2, 1.0, 10.0)
"""Factors for the kit's limits: short ones first. A busy machine is too slow for them, and is given longer ones."""


def assert_caught(check: Callable[[], Report], rule: str, seen: str) -> None:
    """A rule finds the fault, and says what it has seen."""
    results = []
    for scale in SCALES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_run, "SCALES", (scale,))  # what is broken stays broken: it is not tried again
            results.append(check()[rule])
        if results[-1].verdict == "failed" and seen in results[-1].detail:
            return
    pytest.fail(f"{rule} has not found {seen!r}: {results}")


# --- blocking streams --------------------------------------------------------------------------------------


class ReadsMoreThanAsked(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        return super().read(None, timeout)


class FillsTheBuffer(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        data = b""
        while len(data) < (max_bytes or 1) and (piece := super().read(1, timeout)):
            data += piece
        return data


class DoesNotWait(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        if self.sock.fileno() >= 0 and not self.is_readable():
            return b""
        return super().read(max_bytes, timeout)


class LargerReads(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        data = super().read(max_bytes, timeout)
        while (
            max_bytes is None
            and data
            and len(data) <= 64 * 1024
            and (piece := super().read(64 * 1024, timeout))
        ):
            data += piece
        return data


class EndsOnce(TinyStream):
    ended = False

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        if self.ended:
            raise ReadError("the peer has ended")
        data = super().read(max_bytes, timeout)
        self.ended = not data
        return data


class RaisesTheBuiltinTimeout(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        try:
            return super().read(max_bytes, timeout)
        except ReadTimeout:
            raise TimeoutError("timed out") from None


class HasNoLimits(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        return super().read(max_bytes)


class HasNoDeadlines(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        self.sock.settimeout(timeout)
        try:
            return self.sock.recv(max_bytes or 1)
        except TimeoutError:
            raise ReadTimeout from None
        except OSError as error:
            raise ReadError(str(error)) from error


class GivesUpLate(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        return super().read(max_bytes, timeout and timeout * 40)


class TakesEveryLimitForADeadline(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        try:
            return super().read(max_bytes, timeout)
        except ReadTimeout as error:
            raise DeadlineExceeded from error


class DropsBytesInATimeout(TinyStream):
    dropping = False

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        if self.dropping:
            super().read(1, timeout)
        self.dropping = True
        data = super().read(max_bytes, timeout)
        self.dropping = False
        return data


class PollsWithoutTime(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        if timeout == 0 and self.sock.fileno() >= 0 and self.is_readable():
            return super().read(max_bytes)
        return super().read(max_bytes, timeout)


class TakesABreakForTheEnd(TinyStream):
    def receive(self, size: int, limit: Limit) -> bytes:
        try:
            return super().receive(size, limit)
        except ConnectionError:
            return b""


class LetsOSErrorsOut(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        try:
            return super().read(max_bytes, timeout)
        except ReadError as error:
            raise ConnectionResetError("reset") from error


class ReadsAndWritesByTurns(TinyStream):
    reading = False

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        self.reading = True
        try:
            return super().read(max_bytes, timeout)
        finally:
            self.reading = False

    def write(self, buffer: Any, timeout: float | None = None) -> None:
        if self.reading:
            raise WriteError("somebody reads")
        super().write(buffer, timeout)


class SendsOnce(TinyStream):
    def write(self, buffer: Any, timeout: float | None = None) -> None:
        self.sock.send(buffer)


class KeepsTheBuffer(TinyStream):
    def write(self, buffer: Any, timeout: float | None = None) -> None:
        super().write(buffer, timeout)
        self.kept = memoryview(buffer)


class TakesBytesOnly(TinyStream):
    def write(self, buffer: Any, timeout: float | None = None) -> None:
        super().write(buffer + b"", timeout)


class SendsLater(TinyStream):
    later: Any = b""

    def write(self, buffer: Any, timeout: float | None = None) -> None:
        super().write(self.later, timeout)
        self.later = buffer
        if self.sock.fileno() >= 0 and bytes(buffer).endswith(b"second"):
            super().write(buffer, timeout)


class SendsSomethingForNothing(TinyStream):
    def write(self, buffer: Any, timeout: float | None = None) -> None:
        super().write(buffer or b"\0", timeout)


class WaitsForEverToWrite(TinyStream):
    def write(self, buffer: Any, timeout: float | None = None) -> None:
        super().write(buffer)


class WritesWithoutTime(TinyStream):
    def write(self, buffer: Any, timeout: float | None = None) -> None:
        super().write(buffer, timeout or None)


class CallsEveryWriteALostOne(TinyStream):
    def write(self, buffer: Any, timeout: float | None = None) -> None:
        try:
            super().write(buffer, timeout)
        except TimeoutError as error:
            raise WriteError("it did not work") from error


class WritesAfterABreak(TinyStream):
    def send(self, view: memoryview, limit: Limit) -> None:
        try:
            super().send(view, limit)
        except ConnectionError:
            pass


class ClosesOnce(TinyStream):
    def close(self) -> None:
        if self.sock.fileno() < 0:
            raise ReadError("the stream is closed")
        super().close()


class OnlyHidesTheSocket(TinyStream):
    kept: Any = None

    def close(self) -> None:
        # Somebody must close it after all, or the test would leak it.
        if self.kept is None:
            self.kept, self.sock = self.sock, socket.socket()
            self.sock.close()

    def get_extra_info(self, info: str) -> Any:
        return None


class WaitsForThePeerToClose(TinyStream):
    def close(self) -> None:
        if self.sock.fileno() >= 0:
            try:
                self.sock.shutdown(socket.SHUT_WR)
                select.select([self.sock], [], [], 10.0)
            except OSError:
                pass
        super().close()


class WaitsForTheClosingMessage(TinyStream):
    def close(self) -> None:
        if self.sock.fileno() >= 0:
            try:
                while self.read(None, 10.0):
                    pass
            except (ReadError, TimeoutError):
                pass
        super().close()


class LeavesReadersAsleep(TinyStream):
    def wait(self, limit: Limit, *, to_read: bool) -> None:
        with self.sock.dup() as sock:
            if not any(select.select([sock] * to_read, [sock] * (not to_read), [], limit.remaining())):
                raise limit.error()


class IsEmptyOnceClosed(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        return b"" if self.sock.fileno() < 0 else super().read(max_bytes, timeout)


class SwallowsOnceClosed(TinyStream):
    def write(self, buffer: Any, timeout: float | None = None) -> None:
        if self.sock.fileno() >= 0:
            super().write(buffer, timeout)


class AbortsHalf(TinyStream):
    def abort(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        super().close()


class RaisesForUnknownNames(TinyStream):
    def get_extra_info(self, info: str) -> Any:
        return {"socket": self.sock}[info]


class AsksAClosedSocket(TinyStream):
    def get_extra_info(self, info: str) -> Any:
        return self.sock.getpeername() if info == "server_addr" else super().get_extra_info(info)


class MistakesTheAddresses(TinyStream):
    def get_extra_info(self, info: str) -> Any:
        return self.sock.getsockname() if info == "server_addr" else super().get_extra_info(info)


class IsNeverReadable(TinyStream):
    def is_readable(self) -> bool:
        return False


class IsAlwaysReadable(TinyStream):
    def is_readable(self) -> bool:
        return True


class CountsTicketsAsData(TinyStream):
    def is_readable(self) -> bool:
        return self.sock.fileno() < 0 or bool(select.select([self.sock], [], [], 0)[0])


class TellsNumbersAsTimings(TinyStream):
    def get_extra_info(self, info: str) -> Any:
        return (0.1, 0.2) if info == "timings" else super().get_extra_info(info)


class WritesLess(TinyStream):
    def write_until_readable(self, buffer: Any, timeout: float | None = None) -> int:
        self.write(buffer[:10], timeout)
        return 10


class WritesOn(TinyStream):
    def write_until_readable(self, buffer: Any, timeout: float | None = None) -> int:
        self.write(buffer, timeout)
        return len(buffer)


class WritesOnForEver(TinyStream):
    def write_until_readable(self, buffer: Any, timeout: float | None = None) -> int:
        self.write(buffer)
        return len(buffer)


class CountsWhatIsNotSent(TinyStream):
    def write_now(self, buffer: Any) -> int:
        super().write_now(buffer)
        return len(buffer)


class WaitsWhereItMustNot(TinyStream):
    def write_now(self, buffer: Any) -> int:
        self.write(buffer)
        return len(buffer)


class DoesNotHearThePeer(TinyStream):
    def wait_writable(self, timeout: float | None = None) -> None:
        self.wait(Limit(timeout, monotonic, "write"), to_read=False)


class TakesNothingOnceClosed(TinyStream):
    def write_now(self, buffer: Any) -> int:
        return 0 if self.sock.fileno() < 0 else super().write_now(buffer)


class FillsToTheBrim(TinyStream):
    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        count = super().read_into(buffer, timeout)
        while 0 < count < len(buffer):
            with memoryview(buffer)[count:] as rest:
                count += super().read_into(rest, timeout)
        return count


class PutsNothingAtOnce(TinyStream):
    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        return super().read_into(buffer, timeout) if self.is_readable() else 0


class WritesBehind(TinyStream):
    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        count = super().read_into(buffer, timeout)
        with memoryview(buffer).cast("B")[count:] as rest:
            rest[:] = bytes(len(rest))
        return count


class ClearsTheBuffer(TinyStream):
    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        with memoryview(buffer).cast("B") as view:
            view[:10] = bytes(len(view[:10]))
        return super().read_into(buffer, timeout)


class CountsElements(TinyStream):
    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        return super().read_into(buffer, timeout) // memoryview(buffer).itemsize


class ReadsAhead(TinyStream):
    ahead = b""

    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        self.ahead = self.ahead or self.read(None, timeout)
        count = min(len(buffer), len(self.ahead))
        buffer[:count] = self.ahead[:count]
        self.ahead = self.ahead[count:]
        return count


class KeepsAView(TinyStream):
    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        self.view = memoryview(buffer)
        return super().read_into(self.view, timeout)


class TakesAnyBuffer(TinyStream):
    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        data = self.read(len(buffer) or 1, timeout)
        buffer[: len(data)] = data
        return len(data)


class ReadsCiphertext(TinyStream):
    def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        self.wait(Limit(timeout, monotonic, "read"), to_read=True)
        return self.sock.recv_into(buffer)


class ReturnsNoStream(TinyStream):
    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: float | None = None) -> Any:
        super().start_tls(ssl_context, server_hostname, timeout)


class StaysInTheClear(TinyStream):
    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: float | None = None) -> Any:
        return self


class ForgetsTheName(TinyStream):
    def handshake(self, engine: TLSEngine, limit: Limit) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().handshake(TLSEngine(context), limit)


class TrustsAnybody(TinyStream):
    def handshake(self, engine: TLSEngine, limit: Limit) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        super().handshake(TLSEngine(context, "server.example", over=self.engine), limit)


class ChangesTheContext(TinyStream):
    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: float | None = None) -> Any:
        ssl_context.minimum_version = ssl.TLSVersion.TLSv1_3
        return super().start_tls(ssl_context, server_hostname, timeout)


class SecuresTheSocketAgain(TinyStream):
    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: float | None = None) -> Any:
        self.engine = None
        return super().start_tls(ssl_context, server_hostname, timeout)


class LetsSSLErrorsOut(TinyStream):
    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: float | None = None) -> Any:
        try:
            return super().start_tls(ssl_context, server_hostname, timeout)
        except OSError as error:
            raise ssl.SSLError("handshake failed") from error


class StaysOpenAfterAHandshake(TinyStream):
    opening = False

    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: float | None = None) -> Any:
        self.opening = True
        try:
            return super().start_tls(ssl_context, server_hostname, timeout)
        except Exception:
            self.engine = None
            raise
        finally:
            self.opening = False

    def close(self) -> None:
        if not self.opening:
            super().close()


class TakesTheWrongTimeout(TinyStream):
    def start_tls(self, ssl_context: Any, server_hostname: Any = None, timeout: float | None = None) -> Any:
        try:
            return super().start_tls(ssl_context, server_hostname, timeout)
        except TimeoutError as error:
            raise ReadTimeout from error


class BelievesACut(TinyStream):
    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        try:
            return super().read(max_bytes, timeout)
        except ReadError as error:
            if "cut off" in str(error):
                return b""
            raise


class LeavesWithoutAWord(TinyStream):
    def close(self) -> None:
        self.sock.close()


STREAMS: list[tuple[type[TinyStream], str, str]] = [
    (ReadsMoreThanAsked, "read-gives-at-most-max-bytes", "read(1) returned 4096 bytes"),
    (FillsTheBuffer, "read-returns-what-has-come", "ReadTimeout"),
    (DoesNotWait, "read-waits-for-bytes", "did not wait"),
    (LargerReads, "read-without-a-number-gives-64-kib-at-most", "bytes"),
    (EndsOnce, "the-end-stays-the-end", "ReadError (the peer has ended) was raised"),
    (
        RaisesTheBuiltinTimeout,
        "a-read-that-times-out-loses-nothing",
        "TimeoutError (timed out) instead of ReadTimeout",
    ),
    (HasNoLimits, "a-read-that-times-out-loses-nothing", "nothing happened for"),
    (HasNoDeadlines, "a-read-obeys-the-deadline", "ReadTimeout"),
    (GivesUpLate, "a-read-that-times-out-loses-nothing", "long after its limit"),
    (TakesEveryLimitForADeadline, "a-read-obeys-its-timeout-within-a-deadline", "DeadlineExceeded"),
    (DropsBytesInATimeout, "a-read-that-times-out-loses-nothing", "ReadTimeout"),
    (PollsWithoutTime, "a-read-without-time-takes-nothing", "read(timeout=0) returned b'here'"),
    (
        TakesABreakForTheEnd,
        "a-broken-connection-is-a-read-error",
        "returned b'' instead of raising ReadError",
    ),
    (
        LetsOSErrorsOut,
        "a-broken-connection-is-a-read-error",
        "raised ConnectionResetError (reset) instead of ReadError",
    ),
    (ReadsAndWritesByTurns, "one-may-read-while-another-writes", "WriteError (somebody reads"),
    (SendsOnce, "write-sends-all-of-it", ""),
    (KeepsTheBuffer, "write-takes-any-buffer-and-keeps-none", "has kept the bytearray"),
    (TakesBytesOnly, "write-takes-any-buffer-and-keeps-none", "TypeError"),
    (SendsLater, "write-takes-any-buffer-and-keeps-none", "the peer received b'XXXXXX!second'"),
    (SendsSomethingForNothing, "write-of-nothing-sends-nothing", "received"),
    (WaitsForEverToWrite, "a-write-that-is-not-taken-times-out", "nothing happened for"),
    (CallsEveryWriteALostOne, "a-write-that-is-not-taken-times-out", "raised WriteError"),
    (CallsEveryWriteALostOne, "a-write-obeys-the-deadline", "raised WriteError"),
    (
        WritesWithoutTime,
        "a-write-without-time-sends-nothing",
        "returned None instead of raising WriteTimeout",
    ),
    (
        WritesAfterABreak,
        "a-broken-connection-is-a-write-error",
        "returned None instead of raising WriteError",
    ),
    (ClosesOnce, "close-may-be-repeated", "ReadError (the stream is closed) was raised"),
    (OnlyHidesTheSocket, "close-frees-the-socket", "the peer was not told that the stream was closed"),
    (WaitsForThePeerToClose, "close-does-not-wait-for-the-peer", "did not come back"),
    (WaitsForTheClosingMessage, "close-does-not-wait-for-tls", "did not come back"),
    (LeavesReadersAsleep, "close-wakes-who-reads", "ReadTimeout"),
    (LeavesReadersAsleep, "close-wakes-who-writes", "WriteTimeout"),
    (
        IsEmptyOnceClosed,
        "reading-a-closed-stream-is-a-read-error",
        "returned b'' instead of raising ReadError",
    ),
    (
        SwallowsOnceClosed,
        "writing-to-a-closed-stream-is-a-write-error",
        "returned None instead of raising WriteError",
    ),
    (AbortsHalf, "abort-closes-the-stream", "reading after abort"),
    (RaisesForUnknownNames, "an-unknown-name-tells-nothing", "KeyError ('no such name') was raised"),
    (AsksAClosedSocket, "a-closed-stream-still-tells", "OSError"),
    (MistakesTheAddresses, "the-addresses-are-true", "server_addr is"),
    (IsNeverReadable, "is-readable-tells-of-bytes", "stayed False when bytes had come"),
    (IsNeverReadable, "is-readable-tells-of-the-end", "stayed False when the peer had ended"),
    (IsAlwaysReadable, "is-readable-tells-of-bytes", "not False while the peer is silent"),
    (CountsTicketsAsData, "is-readable-counts-data-only", "the peer has sent no data"),
    (TellsNumbersAsTimings, "timings-are-spans", "timings has 0.1"),
    (WritesLess, "an-uninterrupted-write-sends-all", "returned 10 instead of"),
    (WritesOn, "an-answer-interrupts-a-write", "WriteTimeout"),
    (WritesOnForEver, "an-interruptible-write-times-out", "nothing happened for"),
    (
        CountsWhatIsNotSent,
        "what-goes-at-once-and-what-waits-is-sent",
        "the peer never received all the bytes",
    ),
    (WaitsWhereItMustNot, "write-now-does-not-wait", "nothing happened for"),
    (DoesNotHearThePeer, "wait-writable-hears-the-peer", "WriteTimeout"),
    (
        TakesNothingOnceClosed,
        "write-now-to-a-closed-stream-is-a-write-error",
        "returned None instead of raising",
    ),
    (FillsToTheBrim, "read-into-puts-what-has-come", "ReadTimeout"),
    (PutsNothingAtOnce, "read-into-puts-what-has-come", "did not wait"),
    (WritesBehind, "read-into-writes-what-it-reports", "has written more than that"),
    (CountsElements, "read-into-fills-any-buffer", "the stream ended after 3 bytes"),
    (ReadsAhead, "read-into-goes-with-read", "another order"),
    (EndsOnce, "the-end-stays-the-end-for-read-into", "ReadError (the peer has ended) was raised"),
    (ClearsTheBuffer, "a-read-into-that-times-out-loses-nothing", "has written into the buffer"),
    (KeepsAView, "a-read-into-that-times-out-loses-nothing", "has kept the bytearray"),
    (DropsBytesInATimeout, "a-read-into-that-times-out-loses-nothing", "ReadTimeout"),
    (TakesEveryLimitForADeadline, "a-read-into-obeys-the-deadline", "DeadlineExceeded"),
    (PollsWithoutTime, "a-read-into-without-time-takes-nothing", "instead of raising ReadTimeout"),
    (TakesAnyBuffer, "read-into-refuses-what-cannot-be-filled", "TypeError"),
    (
        TakesABreakForTheEnd,
        "a-read-into-of-a-broken-connection-is-a-read-error",
        "instead of raising ReadError",
    ),
    (ReadsCiphertext, "read-into-within-tls-goes-with-read", ""),
    (
        RaisesTheBuiltinTimeout,
        "a-read-into-within-tls-that-times-out-loses-nothing",
        "TimeoutError (timed out) instead of ReadTimeout",
    ),
    (BelievesACut, "a-read-into-of-a-cut-off-tls-is-a-read-error", "instead of raising ReadError"),
    (ReturnsNoStream, "start-tls-carries-on-inside-tls", "start_tls returned None instead of the stream"),
    (StaysInTheClear, "start-tls-carries-on-inside-tls", ""),
    (ForgetsTheName, "start-tls-sends-the-name", "the peer was sent the name None"),
    (ForgetsTheName, "start-tls-offers-the-protocols", "the peer chose None instead of 'h2'"),
    (
        TrustsAnybody,
        "a-certificate-of-a-stranger-is-refused",
        "returned a result instead of raising ConnectError",
    ),
    (
        TrustsAnybody,
        "a-certificate-for-another-name-is-refused",
        "returned a result instead of raising ConnectError",
    ),
    (TrustsAnybody, "start-tls-sends-no-address-as-a-name", "the peer was sent the name 'server.example'"),
    (ChangesTheContext, "start-tls-leaves-the-context-alone", "has changed the context's minimum_version"),
    (SecuresTheSocketAgain, "start-tls-within-tls", "ConnectError"),
    (LetsSSLErrorsOut, "a-peer-that-does-not-speak-tls-is-refused", "SSLError"),
    (LetsSSLErrorsOut, "a-handshake-that-is-broken-off-is-a-connect-error", "SSLError"),
    (StaysOpenAfterAHandshake, "a-handshake-without-an-answer-times-out", "reading after start_tls"),
    (StaysOpenAfterAHandshake, "a-handshake-obeys-the-deadline", "reading after start_tls"),
    (StaysOpenAfterAHandshake, "a-missing-name-is-an-argument-error", "reading after start_tls"),
    (TakesTheWrongTimeout, "a-handshake-without-an-answer-times-out", "ReadTimeout"),
    (BelievesACut, "a-cut-off-tls-is-a-read-error", "returned b'' instead of raising ReadError"),
    (LeavesWithoutAWord, "close-sends-the-closing-message", "cut off without TLS's closing message"),
    (RaisesTheBuiltinTimeout, "a-read-within-tls-that-times-out-loses-nothing", "TimeoutError"),
    (EndsOnce, "the-closing-message-is-the-end", "ReadError (the peer has ended) was raised"),
]


@pytest.mark.parametrize(
    ("stream", "rule", "seen"), STREAMS, ids=[f"{stream.__name__}-{rule}" for stream, rule, _ in STREAMS]
)
def test_a_broken_stream_is_caught(stream: type[TinyStream], rule: str, seen: str) -> None:
    assert_caught(lambda: check_backend(TinyBackend(stream), rules=[rule]), rule, seen)


# --- blocking backends -------------------------------------------------------------------------------------


class LetsOSErrorsOutWhenRefused(TinyBackend):
    def dial(self, host: str, port: int, limit: Limit) -> socket.socket:
        return socket.create_connection((host, port), limit.remaining())


class LeavesTheSocket(TinyBackend):
    def dial(self, host: str, port: int, limit: Limit) -> socket.socket:
        sock = self.stream(socket.socket()).sock
        sock.settimeout(limit.remaining())
        try:
            sock.connect((host, port))
        except TimeoutError:
            sock.setblocking(False)
            sock.connect_ex((host, port))
            raise limit.error() from None
        return sock


class ConnectsWithoutTime(TinyBackend):
    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *rest: Any, **more: Any
    ) -> NetworkStream:
        super().connect_tcp(host, port).close()
        return super().connect_tcp(host, port, timeout)


class TakesAnyTimeout(TinyBackend):
    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *rest: Any, **more: Any
    ) -> NetworkStream:
        return super().connect_tcp(host, port, timeout if timeout == 0 else None)


class TakesAnyPort(TinyBackend):
    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *rest: Any, **more: Any
    ) -> NetworkStream:
        return self.stream(socket.create_connection((host, port), timeout))


class TellsNothingOfItsAttempts(TinyBackend):
    def dial(self, host: str, port: int, limit: Limit) -> socket.socket:
        try:
            return super().dial(host, port, limit)
        except TimeoutError:
            raise limit.error() from None


class ForgetsTheOptions(TinyBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> NetworkStream:
        return super().connect_tcp(host, port, timeout)


class TakesOneAtATime(TinyBackend):
    connecting = False

    def dial(self, host: str, port: int, limit: Limit) -> socket.socket:
        if self.connecting:
            raise RuntimeError("one at a time")
        self.connecting = True
        try:
            sock = super().dial(host, port, limit)
            while (
                not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                and not limit.expired()
                and self.dawdling()
            ):
                pass
            return sock
        finally:
            self.connecting = False

    def dawdling(self) -> bool:
        self.ends = getattr(self, "ends", monotonic() + 0.5)
        return monotonic() < self.ends


class KnowsNoNames(TinyBackend):
    def dial(self, host: str, port: int, limit: Limit) -> socket.socket:
        socket.inet_aton(host)
        return super().dial(host, port, limit)


class DoesNotSleep(TinyBackend):
    def sleep(self, seconds: float) -> None:
        pass


BACKENDS: list[tuple[type[TinyBackend], str, str]] = [
    (LetsOSErrorsOutWhenRefused, "a-refused-connection-is-a-connect-error", "ConnectionRefusedError"),
    (LetsOSErrorsOutWhenRefused, "an-unanswered-connection-times-out", "TimeoutError"),
    (LetsOSErrorsOutWhenRefused, "connecting-obeys-the-deadline", "TimeoutError"),
    (LeavesTheSocket, "an-unanswered-connection-times-out", "has left a socket that still connects"),
    (ConnectsWithoutTime, "connecting-without-time-connects-nothing", "has made a connection nevertheless"),
    (
        TakesAnyTimeout,
        "a-senseless-timeout-is-refused",
        "returned a result instead of raising ArgumentValueError",
    ),
    (TakesAnyPort, "a-senseless-port-is-refused", "instead of ArgumentValueError or ArgumentTypeError"),
    (TellsNothingOfItsAttempts, "a-connect-timeout-tells-what-was-tried", "the error's attempts name []"),
    (ForgetsTheOptions, "socket-options-are-set", "the socket does not have the option"),
    (TakesOneAtATime, "several-connect-at-once", "RuntimeError (one at a time) was raised"),
    (KnowsNoNames, "connect-tcp-takes-a-name", "OSError"),
    (DoesNotSleep, "sleep-waits", "returned after"),
    (DoesNotSleep, "sleep-obeys-the-deadline", "returned None instead of raising DeadlineExceeded"),
    (DoesNotSleep, "a-senseless-sleep-is-refused", "sleep(-1.0) returned None"),
]


@pytest.mark.parametrize(
    ("backend", "rule", "seen"), BACKENDS, ids=[f"{backend.__name__}-{rule}" for backend, rule, _ in BACKENDS]
)
def test_a_broken_backend_is_caught(backend: type[TinyBackend], rule: str, seen: str) -> None:
    assert_caught(lambda: check_backend(backend(), rules=[rule]), rule, seen)


# --- async streams -----------------------------------------------------------------------------------------


class AllowsTwo(AsyncTinyStream):
    def enter(self, what: str) -> None:
        pass


class SwallowsCancellations(AsyncTinyStream):
    async def read(self, max_bytes: int | None = None) -> bytes:
        try:
            return await super().read(max_bytes)
        except (anyio.get_cancelled_exc_class(), trio.Cancelled):
            return b""


class DropsBytesInACancellation(AsyncTinyStream):
    dropping = False

    async def read(self, max_bytes: int | None = None) -> bytes:
        if self.dropping:
            await super().read(1)
        self.dropping = True
        data = await super().read(max_bytes)
        self.dropping = False
        return data


class ClosesSlowly(AsyncTinyStream):
    async def close(self) -> None:
        if self.sock.fileno() >= 0:
            await anyio.sleep(0.01)
            await super().close()


class WritesBeforeItCloses(AsyncTinyStream):
    async def close(self) -> None:
        if self.sock.fileno() >= 0:
            await self.write(bytes(16 << 20))
            await super().close()


class IsDisturbedByAHandshake(AsyncTinyStream):
    async def start_tls(self, ctx: Any, hostname: str | None = None) -> Any:
        self.abort()
        raise ReadError("handshake")


class StaysOpenAfterACancelledHandshake(AsyncTinyStream):
    is_to_stay = False

    async def start_tls(self, ctx: Any, hostname: str | None = None) -> Any:
        self.is_to_stay = True
        await self.wait("read")

    async def close(self) -> None:
        if not self.is_to_stay:  # the adapter to the first dialect would close it
            await super().close()
        self.is_to_stay = False


class HasAnIdleCloseNow(AsyncTinyStream, PromptCloser):
    def close_now(self) -> None:
        pass


ASYNC_STREAMS: list[tuple[type[AsyncTinyStream], str, str]] = [
    (AllowsTwo, "a-second-reader-is-refused", "instead of"),
    (AllowsTwo, "a-second-writer-is-refused", "instead of"),
    (SwallowsCancellations, "a-cancelled-read-loses-nothing", "a cancelled read ended with b''"),
    (DropsBytesInACancellation, "a-cancelled-read-loses-nothing", "ReadTimeout"),
    (ClosesSlowly, "a-cancelled-aclose-frees-the-socket", "still open after an aclose that was cancelled"),
    (WritesBeforeItCloses, "a-cancelled-write-ends", "closing after a cancelled write did not come back"),
    (IsDisturbedByAHandshake, "start-tls-does-not-disturb-a-reader", "instead of ConcurrencyError"),
    (
        StaysOpenAfterACancelledHandshake,
        "a-cancelled-handshake-closes-the-stream",
        "reading after a cancelled start_tls",
    ),
]


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
@pytest.mark.parametrize(
    ("stream", "rule", "seen"),
    ASYNC_STREAMS,
    ids=[f"{stream.__name__}-{rule}" for stream, rule, _ in ASYNC_STREAMS],
)
def test_a_broken_async_stream_is_caught(
    stream: type[AsyncTinyStream], rule: str, seen: str, loop: str
) -> None:
    async def check() -> Report:
        return await check_async_backend(AsyncTinyBackend(stream), rules=[rule])

    assert_caught(lambda: anyio.run(check, backend=loop), rule, seen)


class LoopReads(AsyncDirectStream):
    """As asyncio does it: what came in the turn of a cancellation is in the buffer, and nobody is told."""

    async def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        return await asyncio.get_running_loop().sock_recv_into(self.sock, buffer)


class GivesWayAfterReading(AsyncDirectStream):
    async def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        count = await super().read_into(buffer, timeout)
        await anyio.lowlevel.checkpoint()
        return count


class ClearsTheBufferWhenCancelled(AsyncDirectStream):
    async def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        try:
            return await super().read_into(buffer, timeout)
        except BaseException:
            buffer[:] = bytes(len(buffer))
            raise


class KeepsAViewWhenCancelled(AsyncDirectStream):
    async def read_into(self, buffer: Any, timeout: float | None = None) -> int:
        self.view = memoryview(buffer)
        count = await super().read_into(buffer, timeout)
        self.view.release()
        return count


CANCELLED_IN_TIME = "a-read-into-cancelled-as-bytes-come-loses-nothing"

DIRECT_STREAMS: list[tuple[type[AsyncDirectStream], str, str, str]] = [
    (LoopReads, "asyncio", CANCELLED_IN_TIME, "ReadTimeout"),
    (GivesWayAfterReading, "asyncio", CANCELLED_IN_TIME, "ReadTimeout"),
    (GivesWayAfterReading, "trio", CANCELLED_IN_TIME, "ReadTimeout"),
    (ClearsTheBufferWhenCancelled, "trio", "a-cancelled-read-into-loses-nothing", "written into the buffer"),
    (KeepsAViewWhenCancelled, "asyncio", "a-cancelled-read-into-loses-nothing", "has kept the bytearray"),
]


@pytest.mark.parametrize(
    ("stream", "loop", "rule", "seen"),
    DIRECT_STREAMS,
    ids=[f"{stream.__name__}-{rule}-{loop}" for stream, loop, rule, _ in DIRECT_STREAMS],
)
def test_an_async_stream_that_fills_buffers_badly_is_caught(
    stream: type[AsyncDirectStream], loop: str, rule: str, seen: str
) -> None:
    def check(kind: type[AsyncDirectStream]) -> Report:
        async def open_stream(host: str, port: int) -> Any:
            tiny = await AsyncTinyBackend().connect(host, port)
            assert isinstance(tiny, AsyncTinyStream)
            return kind(tiny)

        return anyio.run(lambda: check_async_stream(open_stream, rules=[rule]), backend=loop)

    check(AsyncDirectStream).raise_for_failures()
    assert_caught(lambda: check(stream), rule, seen)


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_two_readers_of_whom_one_fills_a_buffer_are_caught(loop: str) -> None:
    rule = "a-second-reader-into-a-buffer-is-refused"

    def check(kind: type[AsyncTinyStream]) -> Report:
        async def open_stream(host: str, port: int) -> Any:
            tiny = await AsyncTinyBackend(kind).connect(host, port)
            assert isinstance(tiny, AsyncTinyStream)
            return AsyncDirectStream(tiny)

        return anyio.run(lambda: check_async_stream(open_stream, rules=[rule]), backend=loop)

    check(AsyncTinyStream).raise_for_failures()
    assert_caught(lambda: check(AllowsTwo), rule, "read_into during read")


class LeavesTheSocketWhenCancelled(AsyncTinyBackend):
    async def connect(self, host: str, port: int) -> AsyncNetworkStreamInterface:
        stream = self.stream(socket.socket())
        stream.sock.connect_ex((host, port))
        await stream.wait("write")
        return stream


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_a_socket_that_a_cancelled_connection_leaves_is_caught(loop: str) -> None:
    rule = "a-cancelled-connection-leaves-nothing"

    async def check() -> Report:
        return await check_async_backend(LeavesTheSocketWhenCancelled(), rules=[rule])

    assert_caught(lambda: anyio.run(check, backend=loop), rule, "has left a socket that still connects")


# --- what hangs --------------------------------------------------------------------------------------------


def test_an_async_read_that_ignores_its_limit_is_given_up() -> None:
    class Deaf(AsyncTinyStream):
        async def read(self, max_bytes: int | None = None) -> bytes:
            data = b""
            with anyio.CancelScope(shield=True):
                data = await super().read(max_bytes)
            return data

    rule = "a-read-that-times-out-loses-nothing"

    async def check() -> Report:
        return await check_async_backend(AsyncTinyBackend(Deaf), rules=[rule])

    assert_caught(lambda: anyio.run(check, backend="trio"), rule, "nothing happened for")


def test_what_cannot_be_woken_is_left_behind() -> None:
    gate = threading.Event()

    class Stuck(TinyStream):
        def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
            gate.wait(600.0)
            return b""

    rule = "the-end-stays-the-end"
    try:
        assert_caught(
            lambda: check_backend(TinyBackend(Stuck), rules=[rule]),
            rule,
            "it cannot be woken, and is left behind",
        )
    finally:
        gate.set()
        for thread in threading.enumerate():
            if "conformance" in thread.name:
                thread.join(30.0)
    assert not [thread for thread in threading.enumerate() if "conformance" in thread.name]


# --- second tries ------------------------------------------------------------------------------------------


class Moody(Peer):
    """Refuses its service so many times, by an error that looks like a fault."""

    def __init__(self, times: int) -> None:
        self.left = times
        self.asked = 0

    def serve(self, acts: Any, *, unix: bool = False) -> Place:
        self.asked += 1
        if self.left:
            self.left -= 1
            raise OSError("not now")
        raise NotApplicable("nothing to serve")


def test_what_fails_once_is_tried_again_with_longer_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run, "SCALES", (1.0, 2.0))
    report = check_stream(
        lambda host, port: TinyStream(socket.socket()), peer=Moody(1), rules=["the-end-stays-the-end"]
    )
    assert [(result.verdict, result.detail) for result in report.results] == [
        ("not applicable", "nothing to serve")
    ]


def test_a_machine_that_is_never_quick_enough_is_not_waited_for_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_run, "SCALES", (1.0, 2.0))
    peer = Moody(1000)
    report = check_stream(lambda host, port: TinyStream(socket.socket()), peer=peer)
    assert len(report.failed) == len(report.results)
    assert peer.asked == len(report.results) + _run.SECOND_TRIES


def test_a_second_try_that_passes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_run, "SCALES", (1.0, 2.0))
    failures = [ReadError("once")]

    class Once(TinyStream):
        def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
            if failures:
                raise failures.pop()
            return super().read(max_bytes, timeout)

    report = check_backend(TinyBackend(Once), rules=["the-end-stays-the-end"])
    assert str(report["the-end-stays-the-end"].detail) == "at the second try, with longer limits"
