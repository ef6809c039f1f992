"""The stream of asyncio: a socket on an event loop, and any number of layers of TLS."""

from __future__ import annotations

import socket
import warnings
from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    DEFAULT_READ_SIZE,
    ArgumentTypeError,
    ArgumentValueError,
    AsyncInterruptibleWriter,
    AsyncNetworkStream,
    ConcurrencyError,
    Limit,
    NetworkError,
    PromptCloser,
    TimingSpan,
)
from lamina_interfaces.dialing import format_address
from lamina_interfaces.sockets import byte_view, check_read_size, make_non_blocking, socket_address

from ._asyncio_transport import READING, WRITING, Transport, running_loop

if TYPE_CHECKING:
    import ssl
    from typing import Self

    from lamina_interfaces import BytesLike

    from ._asyncio_tls import TLSChannel


class AsyncioStream(AsyncNetworkStream, AsyncInterruptibleWriter, PromptCloser):
    """A stream over a connected socket, for asyncio. The contract is `AsyncNetworkStream`'s.

    It belongs to the event loop in which it is made; in another one it gives `ConcurrencyError`. One task may read
    while another writes; a second reader or writer gets `ConcurrencyError`. `aclose`, `close_now` and `abort` wake
    those who wait, and `abort` may be called from any thread, by finalisers, and when the loop has ended.

    What need not wait does not suspend, save now and then to let other tasks run.

    Args:
        sock: a connected stream socket (TCP or unix), not an `ssl.SSLSocket`. The stream's from now on; it is
            made non-blocking.
        timings: how long the steps of connecting took.

    Raises:
        ArgumentTypeError, ArgumentValueError: `sock` is no plain socket, or closed. It is left as it was.
        ConcurrencyError: no loop of asyncio runs here.
        UnsupportedProtocol: the running loop cannot watch sockets, as Windows' `ProactorEventLoop`.
    """

    def __init__(self, sock: socket.socket, *, timings: tuple[TimingSpan, ...] = ()) -> None:
        if not isinstance(sock, socket.socket) or hasattr(sock, "do_handshake"):
            raise ArgumentTypeError(
                f"AsyncioStream takes a plain socket, not {type(sock).__name__}; TLS is for start_tls"
            )
        if sock.fileno() < 0:
            raise ArgumentValueError("the socket is closed")
        loop = running_loop()
        make_non_blocking(sock)
        self._transport = Transport(sock, loop)
        self._tls: TLSChannel | None = None
        self._timings = timings
        # Asked for now, because a closed socket cannot tell, and warnings name the peer.
        self._client_addr = socket_address(sock.getsockname)
        self._server_addr = socket_address(sock.getpeername)

    @classmethod
    async def from_socket(cls, sock: socket.socket) -> Self:
        """A stream over a connected plain socket, as the class makes it."""
        return cls(sock)

    # --- bytes ---------------------------------------------------------------------------------------------

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """Wait for bytes, and return those that have come. See `AsyncNetworkStream.read`."""
        size = DEFAULT_READ_SIZE if max_bytes is None else check_read_size(max_bytes)
        transport = self._transport
        limit = Limit(timeout, transport.loop.time, "read")
        limit.check()
        transport.enter(READING, "read")
        try:
            if self._tls is None:
                return await transport.receive(size, limit)
            return await self._tls.read(size, limit)
        finally:
            transport.leave(READING)

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """Send all the bytes. See `AsyncNetworkStream.write`."""
        transport = self._transport
        limit = Limit(timeout, transport.loop.time, "write")
        # Released in any case: the traceback of an error keeps this frame, and would keep the buffer locked.
        with byte_view(buffer) as view:
            limit.check()
            transport.enter(WRITING, "write")
            try:
                if not view:
                    return
                if self._tls is None:
                    await transport.send(view, limit)
                else:
                    await self._tls.write(view, limit)
            except BaseException:
                transport.give_up_writing()
                raise
            finally:
                transport.leave(WRITING)

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        """Send the bytes, but return early once something can be read. See `InterruptibleWriter`.

        Over TLS, up to 128 KiB that have been encrypted but not sent count as sent; they go out as soon as the system
        takes them. While another task reads, that one will hear the answer, and all of the bytes are sent.
        """
        transport = self._transport
        if transport.users == READING:
            await self.write(buffer, timeout)
            with byte_view(buffer) as view:
                return len(view)
        limit = Limit(timeout, transport.loop.time, "write")
        with byte_view(buffer) as view:
            limit.check()
            transport.enter(READING | WRITING, "write")
            try:
                if self._tls is None:
                    return await transport.send_until_readable(view, limit)
                return await self._tls.write_until_readable(view, limit)
            except BaseException:
                transport.give_up_writing()
                raise
            finally:
                transport.leave(READING | WRITING)

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

        from ._asyncio_tls import TLSChannel

        transport = self._transport
        limit = Limit(timeout, transport.loop.time, "tls")
        limit.check()
        start = transport.loop.time()
        engine = TLSEngine(ssl_context, server_hostname, over=None if self._tls is None else self._tls.engine)
        channel = TLSChannel(transport, engine)
        await channel.handshake(limit)
        self._tls = channel
        self._timings += (TimingSpan("tls", start, transport.loop.time()),)

    # --- the end -------------------------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Close in the protocol's way, without waiting for the peer; does not suspend. See `NetworkStream.close`."""
        self.close_now()

    def close_now(self) -> None:
        """Do what `aclose` does. See `PromptCloser.close_now`."""
        try:
            if self._tls is not None:
                self._tls.farewell()
        finally:
            self._transport.close()

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
        return f"<AsyncioStream [{state}, {peer}{tls}]>"
