"""The contracts: what a network stream and a network backend promise.

The base classes are plain: what has no sensible default raises `NotImplementedError`, so that a custom stream
implements only what its use needs, and a wrapper is four or five short methods. This is the first dialect, in
which each operation takes its own `timeout=`; the second, in which time limits are only ambient, is in
`_ambient.py`.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, overload

from ._deadlines import GLANCE_SECONDS, chain_clock, check_seconds, current_deadline
from ._runtimes import current_runtime

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Self

BytesLike: TypeAlias = "bytes | bytearray | memoryview"
"""What `write` takes."""

SocketOption: TypeAlias = (
    "tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]"
)
"""The arguments of one `socket.setsockopt` call: level, name, value (and length, where the value is `None`)."""

SocketAddress: TypeAlias = "tuple[Any, ...] | str | bytes"
"""An address as the `socket` module has it: `(host, port)`, `(host, port, flow, scope)`, or a unix path."""

DEFAULT_READ_SIZE = 64 * 1024
"""How many bytes `read()` asks for at most when it is given no number."""


LONGEST_SLEEP = 24 * 60 * 60.0
"""Seconds that one system call sleeps at most; the clock's own limit is far beyond."""


class ResolvedAddress(NamedTuple):
    """One address of a host.

    Attributes:
        family: `socket.AF_INET` or `socket.AF_INET6`.
        sockaddr: the address in the form that `socket.connect` takes for this family.
    """

    family: int
    sockaddr: tuple[Any, ...]


class TimingSpan(NamedTuple):
    """A step in the making of a connection, and when it took place.

    Attributes:
        name: `"dns"`, `"tcp"`, `"unix"` or `"tls"`; steps of one name may follow each other (TLS in TLS).
        start: seconds on the backend's clock (`time.monotonic` under threads).
        end: seconds on the same clock.
    """

    name: str
    start: float
    end: float


# The names that `get_extra_info` knows, by what they give. A name that a stream does not know gives `None`.
_AddressInfo: TypeAlias = Literal["client_addr", "server_addr"]


class NetworkStream:
    """A two-way stream of bytes to one peer, blocking.

    One thread may read while another writes. Two threads that read, or two that write, would mix their bytes:
    an implementation may raise `ConcurrencyError`, and need not. `close` and `abort` may be called from any
    thread, at any time, as often as one likes.

    Every operation obeys the smaller of its `timeout` and the ambient deadline (`Limit`). An operation whose
    limit has passed before it begins does no I/O. Only lamina's exceptions come out.
    """

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """Wait for bytes, and return those that have come.

        Args:
            max_bytes: the most bytes to return, at least 1; `None` stands for 64 KiB.
            timeout: seconds to wait for the first byte, or `None` for no limit of its own.

        Returns:
            From 1 to `max_bytes` bytes, or `b""` if the peer has ended its side in an orderly way. After that
            every further read returns `b""` too. An implementation may have a maximum of its own.

        Raises:
            ReadTimeout: nothing came within `timeout`. No byte is lost; the stream may be read again.
            DeadlineExceeded: the ambient deadline passed. As for `ReadTimeout`.
            ReadError: the connection broke, TLS was cut off without its closing message, or the stream
                is closed. The stream is of no more use.
            ConcurrencyError: another thread is reading.
        """
        raise NotImplementedError

    def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """Send all the bytes.

        Returns when the operating system has taken the last byte, which does not mean that the peer has. The
        buffer must not change until then; it is not kept afterwards.

        Args:
            buffer: the bytes; an empty buffer sends nothing.
            timeout: seconds for the whole of the buffer, or `None` for no limit of its own.

        Raises:
            WriteTimeout: the peer did not take all of it within `timeout`. An unknown part has been sent, so
                the stream can only be closed.
            DeadlineExceeded: the ambient deadline passed. As for `WriteTimeout`.
            WriteError: the connection broke, or the stream is closed. As for `WriteTimeout`.
            ConcurrencyError: another thread is writing.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the stream in the protocol's way, without waiting for the peer.

        Over TLS the closing message is sent if the system takes it at once. Frees the socket in any case.
        Never raises; on a closed stream it does nothing. A thread that waits in `read` or `write` gets
        `ReadError` or `WriteError`.
        """
        raise NotImplementedError

    def abort(self) -> None:
        """Close the stream without any farewell. Never raises or blocks; may be called by a finaliser.

        The base class calls `close`, so that a custom stream need not implement it.
        """
        self.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> NetworkStream:
        """Perform a TLS handshake as the client, and carry on inside TLS.

        Lamina's own streams upgrade in place and return themselves, so that both
        `stream = stream.start_tls(…)` and `stream.start_tls(…)` are right. May be called on a stream that
        already is TLS: the new layer runs inside the old one. The context is used as it is, never changed.

        Args:
            ssl_context: settings, trusted certificates, and the protocols to offer (ALPN).
            server_hostname: the name that the certificate must bear. Sent as SNI unless it is an IP address.
            timeout: seconds for the whole handshake, or `None` for no limit of its own.

        Returns:
            The stream to use from now on.

        Raises:
            ConnectTimeout: the handshake was not done within `timeout`, or nothing of it was left to begin with.
                The stream is closed.
            DeadlineExceeded: the ambient deadline passed. The stream is closed.
            ConnectError: the peer broke off, did not speak TLS, or its certificate was not accepted (the
                text says why). The stream is closed.
            ArgumentValueError, ArgumentTypeError: the name or the context makes no sense. The stream is closed.
            ConcurrencyError: another thread is reading or writing. The stream is as it was, whatever else is
                wrong with the arguments.
        """
        raise NotImplementedError

    @overload
    def get_extra_info(self, info: _AddressInfo) -> SocketAddress | None: ...
    @overload
    def get_extra_info(self, info: Literal["ssl_object"]) -> ssl.SSLObject | None: ...
    @overload
    def get_extra_info(self, info: Literal["socket"]) -> socket.socket | None: ...
    @overload
    def get_extra_info(self, info: Literal["is_readable"]) -> bool | None: ...
    @overload
    def get_extra_info(self, info: Literal["timings"]) -> tuple[TimingSpan, ...] | None: ...
    @overload
    def get_extra_info(self, info: str) -> Any: ...

    def get_extra_info(self, info: str) -> Any:
        """Tell something about what lies beneath the stream.

        Args:
            info: one of

                - `"client_addr"`, `"server_addr"`: our address and the peer's, as the `socket` module has them;
                - `"ssl_object"`: the innermost `ssl.SSLObject` (peer certificate, ALPN, …), `None` without TLS;
                - `"socket"`: the `socket.socket`, for looking at; reading from it would steal bytes;
                - `"is_readable"`: whether a read would return at once, with bytes or the end of the stream.
                  A TLS message that carries no data does not count. Never blocks;
                - `"timings"`: how long each step of connecting took, a tuple of `TimingSpan`.

        Returns:
            The value, or `None` for a name that this stream does not know. Never raises for a closed stream.
        """
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class DirectReader:
    """An ability that a `NetworkStream` may have besides: to put what has come into the caller's buffer.

    For whoever knows how much is to come, and where it shall be in the end: it spares an object for each piece, and
    the copy out of it. May be used beside `read` on the same stream, one after the other, in any order: both take
    from the same bytes. As for those two, only one thread may be in either.
    """

    def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """Wait for bytes, put them at the beginning of the buffer, and return how many.

        What lies behind them is left as it was, and so is all of the buffer if this raises: what has come and was
        not reported is got by the next read. The buffer is neither kept nor written to afterwards.

        Args:
            buffer: writable, C-contiguous, at least 1 byte; elements of another size count by their bytes. Nobody
                else may use it meanwhile. A `bytearray` cannot be resized until this returns.
            timeout: seconds to wait for the first byte, or `None` for no limit of its own.

        Returns:
            From 1 to the buffer's size, in bytes, or 0 if the peer has ended its side in an orderly way. After that
            every further read says so too. An implementation may have a maximum of its own.

        Raises:
            ReadTimeout, DeadlineExceeded, ReadError, ConcurrencyError: as `NetworkStream.read`.
            ArgumentValueError: the buffer is empty, is not contiguous, or has been released. No byte was read.
            ArgumentTypeError: it is no buffer, or read-only. No byte was read.
        """
        raise NotImplementedError


class InterruptibleWriter:
    """An ability that a `NetworkStream` may have besides: to stop writing when the peer answers.

    A server may reject a large upload after its first bytes and stop reading. Whoever is blocked in `write`
    then waits for nothing. A stream with this ability lets the HTTP layer hear the answer at once; with any
    other stream the layer looks between pieces of 64 KiB.
    """

    def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        """Send the bytes, but return early once something can be read.

        Args:
            buffer: the bytes.
            timeout: seconds for the whole of the buffer, or `None` for no limit of its own.

        Returns:
            How many bytes were sent: all of them, or fewer if data, or the end of the stream, came in first. 0 if it
            was there before the first byte was sent: whoever uses a connection again relies on that.

        Raises:
            WriteTimeout, DeadlineExceeded, WriteError, ConcurrencyError: as `NetworkStream.write`.
        """
        raise NotImplementedError


class PromptWriter:
    """An ability that a `NetworkStream` may have besides: to send what goes at once, and to wait apart from that.

    For a protocol in which many requests share a connection, as HTTP/2: what one of them sends must not depend on
    the peer's patience, and one that is cancelled while it waits must leave the connection fit for the others. With
    `write` alone it could not, because a write that was broken off has sent an unknown part.

    A sender calls `write_now`, and where that took less than all, `wait_writable`, and then `write_now` again.
    """

    def write_now(self, buffer: BytesLike) -> int:
        """Send as many of the bytes as the system takes at once. Never waits; obeys no time limit.

        May be called while another thread reads, or waits in `wait_writable`.

        Over TLS, what has been encrypted counts as taken though the system may not have taken it yet. At most one
        slice of 128 KiB waits so in the stream, and while anything waits nothing more is taken. It goes out by
        `wait_writable`, by a read or a write that begins afterwards, or by the next call of this method, also one with
        an empty buffer; asyncio's streams send it by themselves.

        Args:
            buffer: the bytes; not kept.

        Returns:
            How many were taken, from the front: 0 if the system takes none, if bytes that were taken before still
            wait in the stream, or if another thread is writing.

        Raises:
            WriteError: the connection broke, or the stream is closed; or an earlier write was broken off. Nothing
                more can be sent. What the peer sent before may still be read.
            ArgumentValueError, ArgumentTypeError: it is no buffer of bytes. Nothing was sent.
        """
        raise NotImplementedError

    def wait_writable(self, timeout: float | None = None) -> None:
        """Wait until `write_now` may take more, or until something can be read.

        Over TLS it sends what waits in the stream, and returns once nothing does. Without TLS it returns once the
        system takes more. Unless another thread is reading when it begins, it is the stream's reader as well: it
        returns, too, once bytes or the end of the stream can be read, which it leaves there; a TLS message that
        carries no data does not count. It may return early, so ask `write_now` and `has_unsent` again.

        A wait that ends by its limit has lost nothing and broken nothing: the stream goes on as if it had never begun.
        So does one that ends by an interrupt (`KeyboardInterrupt`), unless that came in the very moment in which a
        piece of TLS was sent; then the connection may break.

        Args:
            timeout: seconds, or `None` for no limit of its own.

        Raises:
            WriteTimeout: neither happened within `timeout`.
            DeadlineExceeded: the ambient deadline passed.
            WriteError: it is known that nothing more can be sent, as for `write_now`.
            ConcurrencyError: another thread is in `write` or in this method.
        """
        raise NotImplementedError

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait in the stream that the system has not taken. Never raises or waits.

        They are such as `write_now` has taken, or such as TLS owes the peer. Always `False` without TLS, and once
        the stream is closed.
        """
        raise NotImplementedError


class NetworkBackend:
    """Opens network streams, blocking. Safe to use from several threads at once."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> NetworkStream:
        """Connect to a TCP port.

        Args:
            host: a name or an IP address (IPv6 without brackets, a zone as `fe80::1%eth0`).
            port: 1 to 65535.
            timeout: seconds for all of it: name resolution and every address that is tried.
            local_address: our own IP address to connect from.
            socket_options: set before connecting, in order, each as `socket.setsockopt` takes it.

        Returns:
            The connected stream, the caller's to close.

        Raises:
            ConnectTimeout: no address answered within `timeout`; `phase` is `"dns"` or `"connect"`, and
                `attempts` tells the addresses tried. No socket is left.
            DeadlineExceeded: the ambient deadline passed. As for `ConnectTimeout`.
            ConnectError: the name is unknown, or no address could be connected to. As for `ConnectTimeout`.
            ArgumentValueError, ArgumentTypeError: an argument makes no sense. Nothing was tried.
        """
        raise NotImplementedError

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> NetworkStream:
        r"""Connect to a unix domain socket.

        Args:
            path: of the socket; one that begins with `"\0"` is in Linux's abstract namespace.
            timeout: seconds, or `None` for no limit of its own.
            socket_options: as for `connect_tcp`.

        Returns:
            The connected stream, the caller's to close.

        Raises:
            ConnectTimeout, DeadlineExceeded, ConnectError, ArgumentValueError, ArgumentTypeError: as for
                `connect_tcp`.
            UnsupportedProtocol: this system has no unix sockets.
        """
        raise NotImplementedError

    def sleep(self, seconds: float) -> None:
        """Wait; between two attempts to connect, for instance. Obeys the ambient deadline.

        This one the base class has: it blocks the thread. A backend with a time of its own overrides it.

        Args:
            seconds: how long, not negative; `inf` for as long as the ambient deadline allows.

        Raises:
            DeadlineExceeded: the ambient deadline passed first. Its phase is the caller's to fill in.
            ArgumentValueError, ArgumentTypeError: `seconds` is negative, NaN or no number.
        """
        pause = _Pause(seconds, time.monotonic)
        while rest := pause.next():
            time.sleep(rest)


class NameResolver:
    """An ability that a `NetworkBackend` may have besides: to tell a host's addresses, and connect to none of them.

    For whoever has somebody else connect, as a SOCKS5 proxy, and has the name looked up here.
    """

    def resolve(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None
    ) -> Sequence[ResolvedAddress]:
        """Return the addresses to which `connect_tcp` would connect.

        They are found in the same way, by the same resolver. The answer for one of the two families is not waited for
        much longer than the other's (RFC 8305, section 3), so it may hold the addresses of one family alone.

        Args:
            host: a name or an IP address (IPv6 without brackets, a zone as `fe80::1%eth0`). An IP address is its
                own answer, and nobody is asked.
            port: 1 to 65535, to put into the addresses.
            timeout: seconds, or `None` for no limit of its own.
            local_address: our own IP address, for addresses of its family only.

        Returns:
            At least one address, in the order in which `connect_tcp` would try them, none of them twice.

        Raises:
            ConnectTimeout: the look-up took longer than `timeout`. Its `phase` is `"dns"`.
            DeadlineExceeded: the ambient deadline passed. As for `ConnectTimeout`.
            ConnectError: the name is unknown, or has no address (of that family). Its `phase` is `"dns"`.
            ArgumentValueError, ArgumentTypeError: an argument makes no sense. Nobody was asked.
        """
        raise NotImplementedError


class _Pause:
    """A sleep, in pieces: somebody else may bring the ambient deadline forward meanwhile, as closing a pool does."""

    __slots__ = ("_clock", "_deadline", "_end")

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._deadline = current_deadline()
        self._clock = chain_clock(clock)
        self._end = self._clock() + check_seconds(seconds, "seconds")

    def next(self) -> float:
        """Seconds until the next look, 0.0 at the end.

        Raises:
            DeadlineExceeded: the ambient deadline has passed.
        """
        rest = max(0.0, min(self._end - self._clock(), LONGEST_SLEEP))
        if self._deadline is None:
            return rest
        soonest = self._deadline.soonest()
        left = soonest.remaining()  # asked once: it may pass between two questions
        if not left:
            raise soonest.exceeded()
        return min(rest, left, GLANCE_SECONDS)


class Resolver:
    """Turns a host name into addresses, blocking. For a cache, a fixed table, DNS over HTTPS.

    The blocking backend calls it in threads of its own, several at once, so it must be thread-safe. A call
    that outlives the caller's time limit is left to end by itself.
    """

    def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        """Return the addresses of a host.

        Called once for IPv6 and once for IPv4, side by side, so that the slower of two answers does not hold
        up the faster (RFC 8305, section 3).

        Args:
            host: the name as the caller gave it; never an IP address as RFC 3986 has it. The short and numeric
                forms that only `getaddrinfo` takes for one (`127.1`, `2130706433`, `0x7f000001`) are names here.
            port: to put into the addresses.
            family: `socket.AF_INET6` or `socket.AF_INET`. Addresses of another family are left aside, so a
                resolver may return all that it has, each time.

        Returns:
            The addresses, best first; empty where there are none of the family.

        Raises:
            OSError: the look-up failed (`socket.gaierror` among them). It becomes a `ConnectError`, unless the
                other family has an address that works.
        """
        raise NotImplementedError


class AsyncNetworkStream:
    """A two-way stream of bytes to one peer, for asyncio or trio.

    One task may read while another writes; two that read, or two that write, get `ConcurrencyError`. The time
    limits and the errors are those of `NetworkStream`, method by method.

    A cancelled `read` loses no byte, and the stream may be read again. A cancelled `write` has sent an unknown
    part, so that the stream can only be closed. A cancelled `start_tls` has closed the stream. `aclose` frees
    the socket even when it is cancelled.
    """

    async def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        """Wait for bytes, and return those that have come. See `NetworkStream.read`."""
        raise NotImplementedError

    async def write(self, buffer: BytesLike, timeout: float | None = None) -> None:
        """Send all the bytes. See `NetworkStream.write`."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close the stream in the protocol's way, without waiting for the peer. See `NetworkStream.close`."""
        raise NotImplementedError

    def abort(self) -> None:
        """Close the stream at once, without any farewell; never raises or waits.

        Unlike `aclose` it is a plain function, for finalisers and for the paths of cancellation. A custom
        stream that has no such way may leave it out: then those paths await `aclose`.
        """
        raise NotImplementedError

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> AsyncNetworkStream:
        """Perform a TLS handshake as the client. See `NetworkStream.start_tls`."""
        raise NotImplementedError

    @overload
    def get_extra_info(self, info: _AddressInfo) -> SocketAddress | None: ...
    @overload
    def get_extra_info(self, info: Literal["ssl_object"]) -> ssl.SSLObject | None: ...
    @overload
    def get_extra_info(self, info: Literal["socket"]) -> socket.socket | None: ...
    @overload
    def get_extra_info(self, info: Literal["is_readable"]) -> bool | None: ...
    @overload
    def get_extra_info(self, info: Literal["timings"]) -> tuple[TimingSpan, ...] | None: ...
    @overload
    def get_extra_info(self, info: str) -> Any: ...

    def get_extra_info(self, info: str) -> Any:
        """Tell something about what lies beneath the stream. See `NetworkStream.get_extra_info`."""
        return None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncDirectReader:
    """`DirectReader` for an `AsyncNetworkStream`."""

    async def read_into(self, buffer: bytearray | memoryview, timeout: float | None = None) -> int:
        """Wait for bytes, put them at the beginning of the buffer, and return how many. See `DirectReader.read_into`.

        A cancelled call has put nothing into the buffer, and loses no byte: the next read gets what has come. The
        buffer is not written to once the call has ended.
        """
        raise NotImplementedError


class AsyncInterruptibleWriter:
    """`InterruptibleWriter` for an `AsyncNetworkStream`."""

    async def write_until_readable(self, buffer: BytesLike, timeout: float | None = None) -> int:
        """Send the bytes, but return early once something can be read. As `InterruptibleWriter`'s."""
        raise NotImplementedError


class AsyncPromptWriter:
    """`PromptWriter` for an `AsyncNetworkStream`."""

    def write_now(self, buffer: BytesLike) -> int:
        """Send as many of the bytes as the system takes at once. See `PromptWriter.write_now`.

        A plain function, so that a finaliser or a path of cancellation may call it; in the loop's own thread, else it
        raises `ConcurrencyError`. It does not let other tasks run.
        """
        raise NotImplementedError

    async def wait_writable(self, timeout: float | None = None) -> None:
        """Wait until `write_now` may take more, or something can be read. See `PromptWriter.wait_writable`.

        A cancelled wait has lost nothing and broken nothing.
        """
        raise NotImplementedError

    @property
    def has_unsent(self) -> bool:
        """Whether bytes wait in the stream that the system has not taken. See `PromptWriter.has_unsent`."""
        raise NotImplementedError


class PromptCloser:
    """An optional ability of an `AsyncNetworkStream`: to close in the protocol's way without suspending.

    The pool closes connections in the midst of cancellations and in finalisers, where nothing can be awaited. A
    stream without this ability is closed there by a task of its own, within a second.
    """

    def close_now(self) -> None:
        """Do what `aclose` does, at once. Never raises or waits; may be repeated."""
        raise NotImplementedError


class AsyncNetworkBackend:
    """Opens network streams, for asyncio or trio. May be used by several tasks at once."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> AsyncNetworkStream:
        """Connect to a TCP port. See `NetworkBackend.connect_tcp`; a cancelled call leaves no socket."""
        raise NotImplementedError

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> AsyncNetworkStream:
        """Connect to a unix domain socket. See `NetworkBackend.connect_unix_socket`."""
        raise NotImplementedError

    async def sleep(self, seconds: float) -> None:
        """Wait. See `NetworkBackend.sleep`; may be cancelled."""
        runtime = current_runtime()
        pause = _Pause(seconds, runtime.now)
        while rest := pause.next():
            await runtime.sleep(rest)


class AsyncNameResolver:
    """`NameResolver` for an `AsyncNetworkBackend`."""

    async def resolve(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None
    ) -> Sequence[ResolvedAddress]:
        """Return the addresses to which `connect_tcp` would connect. See `NameResolver.resolve`; may be cancelled."""
        raise NotImplementedError


class AsyncResolver:
    """`Resolver` for asyncio or trio."""

    async def resolve(self, host: str, port: int, family: int) -> Sequence[ResolvedAddress]:
        """Return the addresses of a host. See `Resolver.resolve`; may be cancelled."""
        raise NotImplementedError
