"""The stream of trio and of anyio: a socket that is waited for, and any number of layers of TLS."""

from __future__ import annotations

import socket
import warnings
from typing import TYPE_CHECKING, Any, ClassVar

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
    current_runtime,
)
from lamina_interfaces.dialing import format_address
from lamina_interfaces.sockets import byte_view, check_read_size, make_non_blocking, socket_address

from ._readiness import Waiter
from ._readiness_transport import READING, WRITING, Transport

if TYPE_CHECKING:
    import ssl
    from typing import Self

    from lamina_interfaces import BytesLike, Runtime, RuntimeName

    from ._readiness import Library
    from ._readiness_tls import TLSChannel


def running_here(who: str, possible: tuple[RuntimeName, ...]) -> Runtime:
    """The runtime of the calling task.

    Args:
        who: the class that needs one.
        possible: the runtimes that it can use.

    Raises:
        ConcurrencyError: another one runs here, or none.
    """
    runtime = current_runtime()
    if runtime.name not in possible:
        here = "no event loop" if runtime.name == "threads" else runtime.name
        raise ConcurrencyError(f"{who} works under {' or '.join(possible)}, and {here} runs here")
    return runtime


class ReadinessStream(AsyncNetworkStream, AsyncInterruptibleWriter, PromptCloser):
    """What the streams of both libraries are. The classes that are public have their own words."""

    _library: ClassVar[Library]
    _possible: ClassVar[tuple[RuntimeName, ...]]

    def __init__(self, sock: socket.socket, *, timings: tuple[TimingSpan, ...] = ()) -> None:
        name = type(self).__name__
        if not isinstance(sock, socket.socket) or hasattr(sock, "do_handshake"):
            raise ArgumentTypeError(
                f"{name} takes a plain socket, not {type(sock).__name__}; TLS is for start_tls"
            )
        if sock.fileno() < 0:
            raise ArgumentValueError("the socket is closed")
        runtime = running_here(name, self._possible)
        make_non_blocking(sock)
        self._now = runtime.now
        self._transport = Transport(sock, Waiter(self._library, runtime))
        self._tls: TLSChannel | None = None
        self._timings = timings
        # Asked for now, because a closed socket cannot tell, and warnings name the peer.
        self._client_addr = socket_address(sock.getsockname)
        self._server_addr = socket_address(sock.getpeername)

    # --- bytes ---------------------------------------------------------------------------------------------

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """Wait for bytes, and return those that have come. See `AsyncNetworkStream.read`."""
        size = DEFAULT_READ_SIZE if max_bytes is None else check_read_size(max_bytes)
        transport = self._transport
        limit = Limit(timeout, self._now, "read")
        limit.check()
        transport.enter(READING, "read")
        try:
            if self._tls is None:
                return await transport.receive(size, limit)
            return await self._tls.read(size, limit)
        except BaseException as exc:
            _note_cancellation(exc, limit)
            raise
        finally:
            transport.leave(READING)

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """Send all the bytes. See `AsyncNetworkStream.write`."""
        transport = self._transport
        library = transport.waiter.library
        limit = Limit(timeout, self._now, "write")
        # Released in any case: the traceback of an error keeps this frame, and would keep the buffer locked.
        with byte_view(buffer) as view:
            limit.check()
            transport.enter(WRITING, "write")
            try:
                await library.checkpoint_if_cancelled()
                if self._tls is None:
                    await transport.send(view, limit)
                else:
                    await self._tls.write(view, limit)
                await library.cancel_shielded_checkpoint()
            except BaseException as exc:
                transport.give_up_writing()
                _note_cancellation(exc, limit)
                raise
            finally:
                transport.leave(WRITING)

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        """Send the bytes, but return early once something can be read. See `InterruptibleWriter`.

        Over TLS, up to 128 KiB that have been encrypted but not sent count as sent; the next read or write sends
        them. While another task reads, that one will hear the answer, and all of the bytes are sent.
        """
        transport = self._transport
        library = transport.waiter.library
        if transport.users & READING:
            await self.write(buffer, timeout)
            with byte_view(buffer) as view:
                return len(view)
        limit = Limit(timeout, self._now, "write")
        with byte_view(buffer) as view:
            limit.check()
            transport.enter(READING | WRITING, "write")
            try:
                await library.checkpoint_if_cancelled()
                channel = transport if self._tls is None else self._tls
                sent = await channel.write_until_readable(view, limit)
                await library.cancel_shielded_checkpoint()
            except BaseException as exc:
                transport.give_up_writing()
                _note_cancellation(exc, limit)
                raise
            finally:
                transport.leave(READING | WRITING)
        return sent

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
        # First of all, so that no mistake of ours closes a stream that another task is using.
        transport.enter(READING | WRITING, "tls")
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

        from ._readiness_tls import TLSChannel

        limit = Limit(timeout, self._now, "tls")
        limit.check()
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
            return False  # what comes belongs to the task that is reading
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
