"""TLS as a client, without a socket: bytes in, bytes out, at any depth.

The problem. Lamina needs TLS over three kinds of transport (a socket read by threads, asyncio, trio) and over
TLS itself (an HTTPS proxy on the way to an HTTPS server), with full control over waiting. `SSLSocket` does its
own I/O, locks out a writer while it reads, and cannot be put over another one; asyncio's `start_tls` fails over
TLS. So TLS is done here in memory, over `ssl.MemoryBIO`, and whoever owns the transport moves the ciphertext.

How it is used: `feed` what came from the transport, `take` what must go to it, always after `handshake`,
`read`, `readable`, `write` and `close`, since each may have produced some (a key update is answered while
reading). An engine `over` another one is TLS in TLS: the outermost takes and feeds through all of them, so that
the owner of the transport sees no difference. Use only the outermost from then on.

Four things that OpenSSL does not settle:

- *Truncation.* A TCP FIN without TLS's own closing message (close_notify) may come from an attacker who cuts the
  stream short (RFC 8446, section 6.1), and must be told apart. CPython sets `OP_IGNORE_UNEXPECTED_EOF` in every
  context, which makes OpenSSL call both the end, and a caller's context must not be changed. But OpenSSL only
  ever knows of an end of file that it is told of. It is not told here: all ciphertext is processed first, and if
  it contained no close_notify then an end of the transport is a truncation.
- *Is there something to read?* A TLS 1.3 server sends session tickets and key updates whenever it likes. They
  make the socket readable though a read would still wait. `readable` therefore decrypts what there is, and
  keeps plaintext that it finds for the next `read`.
- *Threads.* One `SSLObject` must not be used by two threads at once, and ciphertext must go out in the order in
  which it was made. Both are the stream's to arrange (one lock around the engine, one right to send); the
  engine does no I/O, so the lock is never held while anybody waits.
- *Renegotiation* (TLS 1.2). A server that wants a new handshake gets it while the client reads. A write that
  falls into the middle of one is refused, and the engine is of no more use in either direction.

`ssl` takes 10 ms to import, so it is imported when the first engine is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

from ._errors import ArgumentTypeError, ArgumentValueError, ConnectError, ReadError, WriteError
from .dialing import check_host

if TYPE_CHECKING:
    import ssl

__all__ = ["TLSEngine", "server_name"]

RECORD_SIZE = 16 * 1024
"""Most bytes of plaintext in one record (RFC 8446, section 5.1)."""

TRANSFER_SIZE = 64 * 1024
"""How many bytes are moved at once to an engine, from the transport or from the one beneath."""

NOTHING = memoryview(b"")


class TLSEngine:
    """The client's side of one TLS connection.

    Not thread-safe: see the module's text.

    Args:
        ssl_context: settings, trusted certificates, ALPN. Never changed.
        server_hostname: whom the certificate must name. An IP address is checked against the certificate but
            not sent as SNI (RFC 6066, section 3); a final dot is left aside; a non-ASCII name is sent as its
            IDNA A-label.
        over: the engine whose plaintext carries this one's ciphertext, for TLS in TLS. Its handshake is done.

    Attributes:
        ssl_object: for looking at: certificate, cipher, ALPN. Using it otherwise would steal bytes.

    Raises:
        ArgumentValueError: `server_hostname` is no host name, or missing where the context checks names; or
            the context is a server's.
        ArgumentTypeError: an argument is of the wrong type.
    """

    __slots__ = (
        "_ahead",
        "_cut",
        "_ended",
        "_failure",
        "_incoming",
        "_outgoing",
        "_over",
        "_ssl",
        "_stash",
        "_write_failure",
        "ssl_object",
    )

    ssl_object: ssl.SSLObject

    def __init__(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        *,
        over: TLSEngine | None = None,
    ) -> None:
        import ssl

        self._ssl = ssl
        self._over = over
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ahead = NOTHING  # ciphertext that OpenSSL has not been given yet
        self._stash = b""  # plaintext that was decrypted before anybody asked for it
        self._ended = False  # the peer has sent close_notify
        self._failure: str | None = None  # why nothing more can be read
        self._write_failure: str | None = None  # why nothing more can be written
        self._cut = False  # the transport has ended
        # As bytes, because for a str `ssl` would load the IDNA tables, even for ASCII.
        name = None if server_hostname is None else server_name(server_hostname).encode("ascii")
        if name is None and getattr(ssl_context, "check_hostname", False):
            # `SSLSocket` refuses this, `SSLObject` would accept any name without a word.
            raise ArgumentValueError(
                "the context checks host names (check_hostname), so server_hostname is needed"
            )
        if getattr(ssl_context, "protocol", None) == ssl.PROTOCOL_TLS_SERVER:
            raise ArgumentValueError("the context is a server's (PROTOCOL_TLS_SERVER); a client's is needed")
        try:
            self.ssl_object = ssl_context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        except (TypeError, AttributeError) as exc:
            raise ArgumentTypeError(f"TLS cannot be started: {exc}") from exc
        except ValueError as exc:
            raise ArgumentValueError(f"TLS cannot be started: {exc}") from exc
        except ssl.SSLError as exc:
            raise ConnectError(f"TLS cannot be started: {_reason(exc)}", phase="tls") from exc

    # --- the transport's side ------------------------------------------------------------------------------

    def feed(self, ciphertext: bytes) -> None:
        """Take bytes that came from the transport."""
        if self._over is not None:
            self._over.feed(ciphertext)
            return
        if not self._ahead and len(ciphertext) <= TRANSFER_SIZE:
            self._incoming.write(ciphertext)
            return
        # A BIO keeps the room of the most that it ever held, so it is never given much at once.
        self._ahead = memoryview(bytes(self._ahead) + ciphertext if self._ahead else ciphertext)
        if not self._incoming.pending:
            self._refill()

    def feed_eof(self) -> None:
        """Take note that no more bytes will come from the transport."""
        if self._over is not None:
            self._over.feed_eof()
        else:
            self._cut = True

    def take(self) -> bytes:
        """Return the bytes that must go to the transport now, `b""` if there are none."""
        if self._over is None:
            return self._outgoing.read() if self._outgoing.pending else b""
        if self._outgoing.pending:
            self._over.write(self._outgoing.read())
        return self._over.take()

    @property
    def outgoing(self) -> int:
        """How many bytes `take` has to give; somewhat more over another engine, which wraps them first."""
        return self._outgoing.pending + (0 if self._over is None else self._over.outgoing)

    # --- the caller's side ---------------------------------------------------------------------------------

    def handshake(self) -> bool:
        """Go on with the handshake as far as the bytes allow.

        Returns:
            Whether it is done. If it is not: `take`, send, receive, `feed`, and call again.

        Raises:
            ConnectError: the peer broke off, does not speak TLS, or its certificate is not accepted. An alert
                for the peer may be there to `take`.
        """
        while True:
            try:
                self.ssl_object.do_handshake()
            except self._ssl.SSLWantReadError:
                pass
            except self._ssl.SSLCertVerificationError as exc:
                reason = exc.verify_message or _reason(exc)
                raise ConnectError(
                    f"the server's certificate was not accepted: {reason}", phase="tls"
                ) from exc
            except self._ssl.SSLError as exc:
                raise ConnectError(f"the TLS handshake failed: {_reason(exc)}", phase="tls") from exc
            except ValueError as exc:
                # A certificate with an unreadable name, for instance.
                raise ConnectError(f"the TLS handshake failed: {exc}", phase="tls") from exc
            else:
                return True
            try:
                more = self._refill()
            except ReadError as exc:
                raise ConnectError(f"the TLS handshake failed: {exc.message}", phase="tls") from exc
            if not more:
                if self._cut:
                    raise ConnectError("the peer closed the connection during the TLS handshake", phase="tls")
                return False

    def read(self, max_bytes: int) -> bytes | None:
        """Return plaintext that is there, collected from as many records as fit.

        Returns:
            From 1 to `max_bytes` bytes; `b""` once the peer has ended its side with close_notify, and from
            then on; `None` if more ciphertext is needed first.

        Raises:
            ReadError: the records are broken, the peer sent an alert, or the transport ended without
                close_notify.
        """
        if self._stash:
            return self._from_stash(max_bytes)
        # OpenSSL hands out one record at a time, and `ssl` makes room for all that is asked for.
        first = self._decrypt(min(max_bytes, RECORD_SIZE))
        if not first:
            return first
        room = max_bytes - len(first)
        pieces = [first]
        while room and self._may_have_more():
            # An error, or the end, is kept for the next call; these bytes were sent before it.
            try:
                piece = self._decrypt(min(room, RECORD_SIZE))
            except ReadError:
                break
            if not piece:
                break
            pieces.append(piece)
            room -= len(piece)
        return b"".join(pieces) if len(pieces) > 1 else first

    def read_into(self, buffer: memoryview) -> int | None:
        """Put plaintext that is there into a buffer: as many records as fit, without a copy of them.

        Args:
            buffer: writable bytes, at least one.

        Returns:
            How many bytes, from the front; 0 once the peer has ended its side with close_notify, and from then
            on; `None` if more ciphertext is needed first.

        Raises:
            ReadError: as for `read`. Nothing was put into the buffer.
        """
        if self._stash:
            piece = self._from_stash(len(buffer))
            buffer[: len(piece)] = piece
            return len(piece)
        size = self._decrypt(len(buffer), buffer)
        if not size:
            return size
        while size < len(buffer) and self._may_have_more():
            with buffer[size:] as rest:
                # As in `read`.
                try:
                    count = self._decrypt(len(rest), rest)
                except ReadError:
                    break
            if not count:
                break
            size += count
        return size

    def readable(self) -> bool:
        """Whether `read` would return something, or raise, rather than ask for more ciphertext.

        Messages of TLS itself are processed on the way, and do not count.
        """
        if not self._stash:
            try:
                piece = self._decrypt(RECORD_SIZE)
            except ReadError:
                return True
            if piece is None:
                return False
            self._stash = piece
        return True

    def write(self, plaintext: bytes | memoryview) -> None:
        """Encrypt all of the bytes. The ciphertext stays in memory, so hand over large buffers in slices.

        Raises:
            WriteError: TLS cannot send any more.
        """
        if self._write_failure is not None:
            raise WriteError(self._write_failure, phase="write")
        try:
            if len(plaintext):  # OpenSSL does not define the writing of nothing
                self.ssl_object.write(plaintext)
        except self._ssl.SSLWantReadError as exc:
            # Served by reading alone: a writer that read would take bytes from under the reader. OpenSSL has kept
            # a part of this write, and would take whatever is written or read next for its continuation.
            message = "TLS cannot send: the server is renegotiating (TLS 1.2) and writing cannot wait for it"
            self._failure = self._write_failure = message
            raise WriteError(message, phase="write") from exc
        except (self._ssl.SSLError, ValueError) as exc:
            raise WriteError(f"TLS cannot send: {_reason(exc)}", phase="write") from exc

    def close(self) -> None:
        """Say that no more will be sent (close_notify), at every depth.

        Never raises; the peer's answer is not waited for.
        """
        try:
            self.ssl_object.unwrap()
        except (self._ssl.SSLError, ValueError):
            pass
        if self._over is not None:
            try:
                self._over.write(self._outgoing.read())
            except WriteError:
                pass
            self._over.close()

    # --- within --------------------------------------------------------------------------------------------

    @overload
    def _decrypt(self, max_bytes: int) -> bytes | None: ...
    @overload
    def _decrypt(self, max_bytes: int, buffer: memoryview, /) -> int | None: ...

    def _decrypt(self, max_bytes: int, *buffer: memoryview) -> bytes | int | None:
        """Read one record's plaintext, or put it into a buffer and tell how much it is.

        Returns:
            `None` if ciphertext is lacking, `b""` or 0 after close_notify.
        """
        piece: bytes | int | None
        while not self._ended:
            if self._failure is not None:
                raise ReadError(self._failure, phase="read")
            try:
                # Where there is nothing OpenSSL would say so too, by an exception that costs as much as a small read.
                piece = self.ssl_object.read(max_bytes, *buffer) if self._may_have_more() else None
            except self._ssl.SSLWantReadError:
                piece = None
            except self._ssl.SSLZeroReturnError:
                piece = b""
            except (self._ssl.SSLError, ValueError) as exc:
                # Kept, because OpenSSL reports an end to whoever reads on, or writes, after a fatal alert.
                self._failure = self._write_failure = f"TLS is broken: {_reason(exc)}"
                raise ReadError(self._failure, phase="read") from exc
            if piece:
                return piece
            if piece is not None:
                self._ended = True
            elif self._refill():
                continue
            elif self._cut:
                self._failure = "the connection was cut off: it ended without TLS's closing message"
            else:
                return None
        return 0 if buffer else b""

    def _may_have_more(self) -> bool:
        return self._incoming.pending > 0 or self.ssl_object.pending() > 0 or len(self._ahead) > 0

    def _refill(self) -> bool:
        """Give OpenSSL more ciphertext, from the engine beneath if there is one; whether there was any."""
        if self._ahead:
            self._incoming.write(self._ahead[:TRANSFER_SIZE])
            rest = self._ahead[TRANSFER_SIZE:]
            self._ahead = rest or NOTHING  # an empty view would keep all of it
            return True
        if self._over is None or self._cut:
            return False
        ciphertext = self._over.read(TRANSFER_SIZE)
        if ciphertext:
            self._incoming.write(ciphertext)
            return True
        if ciphertext is not None:
            self._cut = True
        return False

    def _from_stash(self, max_bytes: int) -> bytes:
        piece, self._stash = self._stash[:max_bytes], self._stash[max_bytes:]
        return piece

    def __repr__(self) -> str:
        # The version is unknown until the handshake is done.
        version = self.ssl_object.version() or "handshaking"
        return f"<TLSEngine [{version}{', in ' + repr(self._over) if self._over is not None else ''}]>"


def server_name(host: str) -> str:
    """The name to check a certificate against, and to send as SNI if it is no IP address.

    Args:
        host: a host name or an IP address, as for connecting.

    Raises:
        ArgumentValueError: it is no host name.
        ArgumentTypeError: it is not a `str`.
    """
    name = check_host(host)
    if ":" in name:
        return name.partition("%")[0]  # a zone belongs to this machine, not to the certificate
    return name.removesuffix(".")


def _reason(exc: Exception) -> str:
    """What went wrong, in words: OpenSSL gives its reason as `CERTIFICATE_VERIFY_FAILED`."""
    reason = getattr(exc, "reason", None)
    if reason:
        return str(reason).replace("_", " ").lower()
    return str(exc) or type(exc).__name__
