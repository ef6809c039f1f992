"""The blocking stream: a socket, and any number of layers of TLS."""

from __future__ import annotations

import socket
import warnings
from time import monotonic
from typing import TYPE_CHECKING, Any, overload

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    ArgumentTypeError,
    ArgumentValueError,
    ConcurrencyError,
    DirectReader,
    InterruptibleWriter,
    Limit,
    NetworkError,
    NetworkStream,
    PromptWriter,
    TimingSpan,
    start_limit,
)
from lamina_interfaces.dialing import format_address
from lamina_interfaces.sockets import (
    byte_view,
    check_read_buffer,
    check_read_size,
    socket_address,
)

from ._transport import READING, SENDING, WAITING, WRITING, Look, Transport, User

if TYPE_CHECKING:
    import ssl

    from lamina_interfaces import BytesLike

    from ._tls import TLSChannel


class SyncStream(NetworkStream, DirectReader, InterruptibleWriter, PromptWriter):
    """A stream over a connected socket. The contract is `NetworkStream`'s.

    One thread may read while another writes; a second reader or writer gets `ConcurrencyError`. `close` and
    `abort` may be called from any thread and wake those who wait.

    Args:
        sock: a connected stream socket (TCP or unix), not an `ssl.SSLSocket`. The stream's from now on; it is
            made non-blocking.
        timings: how long the steps of connecting took.
    """

    def __init__(self, sock: socket.socket, *, timings: tuple[TimingSpan, ...] = ()) -> None:
        if not isinstance(sock, socket.socket) or hasattr(sock, "do_handshake"):
            raise ArgumentTypeError(
                f"SyncStream takes a plain socket, not {type(sock).__name__}; TLS is for start_tls"
            )
        if sock.fileno() < 0:
            raise ArgumentValueError("the socket is closed")
        self._transport = Transport(sock)
        self._tls: TLSChannel | None = None
        self._timings = timings
        # Asked for now, because a closed socket cannot tell, and warnings name the peer.
        self._client_addr = socket_address(sock.getsockname)
        self._server_addr = socket_address(sock.getpeername)

    # --- bytes ---------------------------------------------------------------------------------------------

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """Wait for bytes, and return those that have come. See `NetworkStream.read`."""
        return self._receive(DEFAULT_READ_SIZE if max_bytes is None else check_read_size(max_bytes), timeout)

    def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """Wait for bytes, put them into the buffer, and return how many. See `DirectReader`."""
        # Released in any case: the traceback of an error keeps this frame, and would keep the buffer locked.
        with check_read_buffer(buffer) as view:
            return self._receive(view, timeout)

    @overload
    def _receive(self, room: int, timeout: float | None) -> bytes: ...
    @overload
    def _receive(self, room: memoryview, timeout: float | None) -> int: ...

    def _receive(self, room: int | memoryview, timeout: float | None) -> bytes | int:
        """Read at most so many bytes, or into a buffer."""
        limit = start_limit(timeout, monotonic, "read")
        transport, user = self._transport, User()
        try:
            transport.enter(user, READING, "read")
            if self._tls is None:
                return transport.receive(room, limit)
            return self._tls.read(room, limit)
        finally:
            # No call stands first, so that no interrupt comes in between.
            if transport.reader is user:
                transport.reader = None
            if transport.closed:
                transport.settle()

    def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """Send all the bytes. See `NetworkStream.write`."""
        transport, user = self._transport, User()
        data = buffer if type(buffer) is bytes else byte_view(buffer)
        try:
            limit = start_limit(timeout, monotonic, "write")
            transport.enter(user, WRITING, "write")
            if not data:
                return
            if self._tls is None:
                transport.send(data, limit)
            else:
                self._tls.write(data, limit)
        except BaseException:
            transport.give_up_writing(user)
            raise
        finally:
            if transport.sender is user:
                transport.sender = None
            if transport.waiter is user:
                transport.waiter = None
            if transport.closed:
                transport.settle()
            if isinstance(data, memoryview):
                # The traceback of an error keeps this frame, and would keep the buffer locked.
                data.release()

    def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        """Send the bytes, but return early once something can be read. See `InterruptibleWriter`.

        Over TLS, up to 128 KiB that have been encrypted but not sent count as sent; the next read or write sends
        them. While another thread reads, that one will hear the answer, and all of the bytes are sent.
        """
        transport, user = self._transport, User()
        data = buffer if type(buffer) is bytes else byte_view(buffer)
        try:
            limit = start_limit(timeout, monotonic, "write")
            transport.enter(user, READING | WRITING, "write")
            if self._tls is None:
                return transport.send_until_readable(data, limit)
            return self._tls.write_until_readable(data, limit)
        except ConcurrencyError:
            self.write(data, timeout)  # refused too, if it is another writer
            return len(data)
        except BaseException:
            transport.give_up_writing(user)
            raise
        finally:
            if transport.reader is user:
                transport.reader = None
            if transport.sender is user:
                transport.sender = None
            if transport.waiter is user:
                transport.waiter = None
            if transport.closed:
                transport.settle()
            if isinstance(data, memoryview):
                data.release()

    def write_now(self, buffer: BytesLike) -> int:
        """Send what the system takes at once. See `PromptWriter`."""
        transport, user = self._transport, User()
        data = buffer if type(buffer) is bytes else byte_view(buffer)
        try:
            transport.enter(user, SENDING, "write")
            if self._tls is not None:
                return self._tls.write_now(data)
            return transport.send_now(data) if data else 0
        except ConcurrencyError:
            return 0  # another thread is writing
        except BaseException:
            transport.give_up_writing(user)
            raise
        finally:
            if transport.sender is user:
                transport.sender = None
            if transport.closed:
                transport.settle()
            if isinstance(data, memoryview):
                data.release()

    def wait_writable(self, timeout: float | None = None) -> None:
        """Wait until more can be sent, or something can be read. See `PromptWriter`."""
        limit = start_limit(timeout, monotonic, "write")
        transport, user = self._transport, User()
        try:
            try:
                transport.enter(user, READING | WAITING, "write")
            except ConcurrencyError:
                transport.enter(user, WAITING, "write")  # refused too, if another one waits or writes
            reads = transport.reader is user
            if self._tls is not None:
                self._tls.wait_writable(limit, reads=reads)
            elif reads:
                transport.wait_either(limit)
            else:
                transport.wait_writable(limit)
            transport.check_sending()
        finally:
            if transport.reader is user:
                transport.reader = None
            if transport.waiter is user:
                transport.waiter = None
            if transport.closed:
                transport.settle()

    @property
    def has_unsent(self) -> bool:
        """Whether bytes that were taken wait in the stream: over TLS only. See `PromptWriter`."""
        return not (self._tls is None or self._transport.closed) and self._tls.has_unsent()

    # --- TLS -----------------------------------------------------------------------------------------------

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> SyncStream:
        """Perform a TLS handshake as the client, in place. See `NetworkStream.start_tls`.

        Returns:
            This stream.

        Raises:
            ConnectTimeout, DeadlineExceeded, ConnectError: as in the contract. The stream is closed.
            ArgumentValueError, ArgumentTypeError: the limit, the name or the context cannot be used, or the
                context checks names and none was given. Nothing was sent; the stream is closed.
            ConcurrencyError: another thread is using the stream. Nothing has changed.
        """
        transport, user = self._transport, User()
        try:
            # First of all, so that no mistake of ours closes a stream that another thread is using.
            transport.enter(user, READING | WRITING, "tls")
            self._handshake(ssl_context, server_hostname, timeout)
        except ConcurrencyError:
            raise  # the stream belongs to another thread
        except BaseException:
            self.abort()
            raise
        finally:
            if transport.reader is user:
                transport.reader = None
            if transport.sender is user:
                transport.sender = None
            if transport.waiter is user:
                transport.waiter = None
            if transport.closed:
                transport.settle()
        return self

    def _handshake(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None, timeout: float | None
    ) -> None:
        # Lazily: a client of plain HTTP never needs them.
        from lamina_interfaces.tls import TLSEngine

        from ._tls import TLSChannel

        limit = Limit(timeout, monotonic, "tls")
        limit.check()
        start = monotonic()
        beneath = self._tls
        engine = TLSEngine(ssl_context, server_hostname, over=None if beneath is None else beneath.engine)
        channel = TLSChannel(self._transport, engine, beneath)
        channel.handshake(limit)
        self._tls = channel
        self._timings += (TimingSpan("tls", start, monotonic()),)

    # --- the end -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close in the protocol's way, without waiting for the peer. See `NetworkStream.close`."""
        transport = self._transport
        try:
            # After a write that was broken off a farewell would call whole what is not.
            if not (self._tls is None or transport.closed or transport.inherited or transport.half_sent):
                self._tls.farewell()
        finally:
            transport.close(gracefully=True)

    def abort(self) -> None:
        """Close without any farewell. Never raises or blocks. See `NetworkStream.abort`."""
        self._transport.close()

    def __del__(self) -> None:
        transport = getattr(self, "_transport", None)
        if transport is None or transport.sock.fileno() < 0:
            return
        try:
            if not (transport.closed or transport.inherited):
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        finally:
            transport.close()

    # --- facts ---------------------------------------------------------------------------------------------

    def get_extra_info(self, info: str) -> Any:
        """Tell something about what lies beneath. See `NetworkStream.get_extra_info`."""
        match info:
            case "is_readable":  # first, for it is asked again and again
                return self._is_readable()
            case "client_addr":
                return self._client_addr
            case "server_addr":
                return self._server_addr
            case "socket":
                return self._transport.sock
            case "ssl_object":
                return None if self._tls is None else self._tls.engine.ssl_object
            case "timings":
                return self._timings
        return None

    def _is_readable(self) -> bool:
        transport = self._transport
        if transport.closed:
            return True
        look = Look()
        try:
            transport.enter(look, READING, "read")
            return transport.readable_now() if self._tls is None else self._tls.readable()
        except ConcurrencyError:
            return False  # what comes belongs to the thread that is reading
        except NetworkError:
            return True  # closed in between, or the parent process's
        finally:
            if transport.reader is look:
                transport.reader = None
            if transport.closed:
                transport.settle()

    def __repr__(self) -> str:
        state = "closed" if self._transport.closed else "open"
        peer = "an unnamed peer" if not self._server_addr else format_address(self._server_addr)
        tls = "" if self._tls is None else ", TLS"
        return f"<SyncStream [{state}, {peer}{tls}]>"
