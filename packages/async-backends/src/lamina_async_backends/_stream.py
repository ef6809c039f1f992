"""The stream: a transport, and any number of layers of TLS."""

from __future__ import annotations

import socket
import warnings
from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    ArgumentTypeError,
    ArgumentValueError,
    AsyncDirectReader,
    AsyncInterruptibleWriter,
    AsyncNetworkStream,
    AsyncPromptWriter,
    ConcurrencyError,
    NetworkError,
    PromptCloser,
    TimingSpan,
    start_limit,
)
from lamina_interfaces.dialing import format_address
from lamina_interfaces.sockets import byte_view, check_read_buffer, check_read_size, socket_address
from lamina_interfaces.translation import network_error

from ._transport import CLOSED, READING, SENDING, WAITING, WRITING

if TYPE_CHECKING:
    import ssl
    from typing import Self

    from lamina_interfaces import BytesLike, Limit

    from ._tls import TLSChannel
    from ._transport import Transport


class Stream(
    AsyncNetworkStream, AsyncDirectReader, AsyncInterruptibleWriter, AsyncPromptWriter, PromptCloser
):
    """What all streams are. The classes that are public have their own words."""

    def __init__(self, sock: socket.socket, *, timings: tuple[TimingSpan, ...] = ()) -> None:
        if not isinstance(sock, socket.socket) or hasattr(sock, "do_handshake"):
            raise ArgumentTypeError(
                f"{type(self).__name__} takes a plain socket, not {type(sock).__name__}; TLS is for start_tls"
            )
        if sock.fileno() < 0:
            raise ArgumentValueError("the socket is closed")
        self._transport = self._transport_over(sock)
        self._now = self._transport.now
        self._tls: TLSChannel | None = None
        self._timings = timings
        # Asked for now, because a closed socket cannot tell, and warnings name the peer.
        self._client_addr = socket_address(sock.getsockname)
        self._server_addr = socket_address(sock.getpeername)

    def _transport_over(self, sock: socket.socket) -> Transport:
        """Make the transport, and the socket non-blocking; or raise, and leave it as it was."""
        raise NotImplementedError

    # --- bytes ---------------------------------------------------------------------------------------------

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """Wait for bytes, and return those that have come. See `AsyncNetworkStream.read`."""
        size = DEFAULT_READ_SIZE if max_bytes is None else check_read_size(max_bytes)
        transport = self._transport
        limit = start_limit(timeout, self._now, "read")
        transport.enter(READING, "read")
        try:
            data: bytes = await (self._tls or transport).receive(size, limit)
            return data
        except BaseException as exc:
            _note_cancellation(exc, limit)
            raise
        finally:
            transport.leave(READING)

    async def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """Wait for bytes, put them into the buffer, and return how many. See `AsyncDirectReader.read_into`."""
        transport = self._transport
        # Released in any case, as by `write`.
        with check_read_buffer(buffer) as view:
            limit = start_limit(timeout, self._now, "read")
            transport.enter(READING, "read")
            try:
                count: int = await (self._tls or transport).receive(view, limit)
                return count
            except BaseException as exc:
                _note_cancellation(exc, limit)
                raise
            finally:
                transport.leave(READING)

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """Send all the bytes. See `AsyncNetworkStream.write`."""
        transport = self._transport
        # Released in any case: the traceback of an error keeps this frame, and would keep the buffer locked.
        with byte_view(buffer) as view:
            limit = start_limit(timeout, self._now, "write")
            transport.enter(WRITING, "write")
            try:
                if not view:
                    await transport.take_turns()
                elif self._tls is None:
                    await transport.send(view, limit)
                else:
                    await self._tls.write(view, limit)
            except BaseException as exc:
                transport.give_up_writing()
                _note_cancellation(exc, limit)
                raise
            finally:
                transport.leave(WRITING)

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        """Send the bytes, but return early once something can be read. See `InterruptibleWriter`.

        Over TLS, up to 128 KiB that have been encrypted but not sent count as sent; they go out when the system
        takes them, at the latest with the next read or write. While another task reads, that one will hear the
        answer, and all of the bytes are sent.
        """
        transport = self._transport
        if transport.users & READING:
            await self.write(buffer, timeout)
            with byte_view(buffer) as view:
                return len(view)
        with byte_view(buffer) as view:
            limit = start_limit(timeout, self._now, "write")
            transport.enter(READING | WRITING, "write")
            try:
                if self._tls is not None:
                    sent = await self._tls.write_until_readable(view, limit)
                else:
                    sent = transport.send_at_once(view)
                    if not sent or sent < len(view):
                        sent = await transport.send_until_readable(view, limit, sent)
                if transport.closed:  # and what can be read is our own end
                    raise network_error(OSError(CLOSED), "write")
                return sent
            except BaseException as exc:
                transport.give_up_writing()
                _note_cancellation(exc, limit)
                raise
            finally:
                transport.leave(READING | WRITING)

    def write_now(self, buffer: BytesLike) -> int:
        """Send what the system takes at once. See `AsyncPromptWriter`."""
        transport = self._transport
        with byte_view(buffer) as view:
            if transport.users & SENDING:
                return 0  # another task is writing
            transport.enter(SENDING, "write")
            try:
                if self._tls is not None:
                    return self._tls.write_now(view)
                return transport.send_now(view) if view else 0
            except BaseException:
                transport.give_up_writing()
                raise
            finally:
                transport.leave(SENDING)

    async def wait_writable(self, timeout: float | None = None) -> None:
        """Wait until more can be sent, or something can be read. See `AsyncPromptWriter`."""
        transport = self._transport
        limit = start_limit(timeout, self._now, "write")
        reads = not transport.users & READING
        sides = READING | WAITING if reads else WAITING
        transport.enter(sides, "write")
        try:
            await transport.take_turns()
            if self._tls is not None:
                await self._tls.wait_writable(limit, reads=reads)
            elif not reads:
                await transport.wait_writable(limit)
            elif not transport.readable_now():
                await transport.wait_either(limit)
            transport.check_sending()
        except BaseException as exc:
            _note_cancellation(exc, limit)
            raise
        finally:
            transport.leave(sides)

    @property
    def has_unsent(self) -> bool:
        """Whether bytes that were taken wait in the stream: over TLS only. See `PromptWriter`."""
        return bool(self._transport.unsent) and not self._transport.closed

    # --- TLS -----------------------------------------------------------------------------------------------

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> Self:
        """Perform a TLS handshake as the client, in place. See `AsyncNetworkStream.start_tls`.

        Returns:
            This stream.

        Raises:
            ConnectTimeout, DeadlineExceeded, ConnectError: as in the contract. The stream is closed.
            ArgumentValueError, ArgumentTypeError: the limit, the name or the context cannot be used, or the
                context checks names and none was given. Nothing was sent; the stream is closed.
            ConcurrencyError: another task is using the stream. Nothing has changed.
        """
        transport = self._transport
        try:
            # First of all, so that no mistake of ours closes a stream that another task is using.
            transport.enter(READING | WRITING, "tls")
        except NetworkError:
            transport.close()
            raise
        try:
            await self._handshake(ssl_context, server_hostname, timeout)
        except BaseException:
            transport.close()
            raise
        finally:
            transport.leave(READING | WRITING)
        return self

    async def _handshake(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None, timeout: float | None
    ) -> None:
        # Lazily: a client of plain HTTP never needs them.
        from lamina_interfaces.tls import TLSEngine

        from ._tls import TLSChannel

        limit = start_limit(timeout, self._now, "tls")
        start = self._now()
        engine = TLSEngine(ssl_context, server_hostname, over=None if self._tls is None else self._tls.engine)
        channel = TLSChannel(self._transport, engine)
        try:
            await channel.handshake(limit)
        except BaseException as exc:
            _note_cancellation(exc, limit)
            raise
        self._tls = channel
        self._timings += (TimingSpan("tls", start, self._now()),)

    # --- the end -------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close in the protocol's way, without waiting for the peer; does not suspend. See `NetworkStream.close`."""
        self.close_now()

    def close_now(self) -> None:
        """Do what `aclose` does. See `PromptCloser.close_now`."""
        transport = self._transport
        gracefully = transport.may_take_leave
        try:
            if gracefully and self._tls is not None:
                self._tls.farewell()
        finally:
            transport.close(gracefully=gracefully)

    def abort(self) -> None:
        """Close without any farewell. Never raises or blocks, from any thread. See `AsyncNetworkStream.abort`."""
        self._transport.close()

    def __del__(self) -> None:
        transport = getattr(self, "_transport", None)
        if transport is None or transport.sock.fileno() < 0:
            return
        try:
            if not (transport.closed or transport.inherited):
                warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
        finally:
            transport.users = 0  # nobody can: a task that used it would know this stream
            transport.close()

    # --- facts ---------------------------------------------------------------------------------------------

    def get_extra_info(self, info: str) -> Any:
        """Tell something about what lies beneath. See `NetworkStream.get_extra_info`."""
        match info:
            case "client_addr":
                return self._client_addr
            case "server_addr":
                return self._server_addr
            case "socket":
                return self._transport.sock
            case "ssl_object":
                return None if self._tls is None else self._tls.engine.ssl_object
            case "is_readable":
                return self._is_readable()
            case "timings":
                return self._timings
        return None

    def _is_readable(self) -> bool:
        transport = self._transport
        if transport.closed:
            return True
        try:
            transport.enter(READING, "read")
        except ConcurrencyError:
            return False  # what comes belongs to the task that is reading, or cannot be read here
        except NetworkError:
            return True  # the parent process's
        try:
            return transport.readable_now() if self._tls is None else self._tls.readable()
        finally:
            transport.leave(READING)

    def __repr__(self) -> str:
        state = "closed" if self._transport.closed else "open"
        peer = "an unnamed peer" if not self._server_addr else format_address(self._server_addr)
        tls = "" if self._tls is None else ", TLS"
        return f"<{type(self).__name__} [{state}, {peer}{tls}]>"


def _note_cancellation(exc: BaseException, limit: Limit) -> None:
    if not isinstance(exc, Exception):
        limit.interrupted()
