"""Every exception that lamina raises, in one tree.

The names are those of httpcore 1.0. What is added: each class also is the builtin that a caller would catch
without knowing lamina (`TimeoutError`, `ConnectionError`, `ValueError`, `TypeError`), each instance tells its
circumstances as attributes, its text is never empty, and it survives pickling.

| class | also a | raised when |
|---|---|---|
| LaminaError | Exception | never itself: the root |
| TimeoutException | TimeoutError | never itself: the parent of all time-outs |
| PoolTimeout | | no connection became free in time |
| ConnectTimeout | | name resolution, connecting or a handshake took too long |
| ReadTimeout | | no bytes came in time |
| WriteTimeout | | the peer did not take our bytes in time |
| DeadlineExceeded | | an ambient deadline ran out |
| NetworkError | ConnectionError | never itself: the parent of all connection failures |
| ConnectError | | no connection could be made; `attempts` lists the addresses tried |
| ReadError | | the connection broke while reading, or the stream is closed |
| WriteError | | the connection broke while writing, or the stream is closed |
| ProxyError | ConnectionError | the proxy refused or broke its protocol |
| ProtocolError | | never itself: the parent of both protocol errors |
| LocalProtocolError | ValueError | we were asked to send what the protocol forbids |
| RemoteProtocolError | | the peer sent what the protocol forbids |
| UnsupportedProtocol | ValueError | the URL's scheme, or the option, is not one that we speak |
| InvalidURL | ValueError | a URL that cannot be taken apart |
| ArgumentValueError | ValueError | any other argument of the wrong value |
| ArgumentTypeError | TypeError | an argument of the wrong type |
| ConnectionNotAvailable | | this connection cannot take the request now |
| PoolClosed | RuntimeError | the pool was closed before or during the request |
| ConcurrencyError | RuntimeError | two threads or tasks use one stream at once |
| BackendNotFound | LookupError | no installed package provides the backend |
"""

from __future__ import annotations

from errno import errorcode
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self

Phase = Literal["pool", "dns", "connect", "tls", "proxy", "write", "read", "close"]
"""The step of a request in which an error arose."""


MOST_ATTEMPTS_IN_TEXT = 10
"""So many addresses an error's text lists; `attempts` has them all."""


class ConnectAttempt(NamedTuple):
    """One address that was tried in vain.

    Attributes:
        address: the address as a reader would write it, `"192.0.2.1:443"` or `"[2001:db8::1]:443"`.
        errno: the system's error number (`errno.ECONNREFUSED`, …), or `None` where the system gave none: the
            attempt was still going on when the time was over.
        elapsed: seconds from the start of this attempt to its end.
    """

    address: str
    errno: int | None
    elapsed: float


class LaminaError(Exception):
    """The root of everything that lamina raises.

    Layers fill in what they know: a backend knows addresses, the pool knows the origin. An attribute that
    nobody knew is `None` (or empty). `str()` is the message followed by the circumstances, and never empty.

    Attributes:
        message: what happened, without the circumstances.
        phase: the step in which it happened.
        origin: scheme, host and port of the server that was wanted, `"https://example.com:443"`.
        attempts: the addresses tried, in the order of trying.
        elapsed: seconds since the step, or the deadline, began.
        limit: seconds that it was allowed, where a limit was what ended it.
        errno: the system's error number, where the system refused.
    """

    default_message: ClassVar[str] = "something went wrong in the network layer"

    message: str
    phase: Phase | None
    origin: str | None
    attempts: tuple[ConnectAttempt, ...]
    elapsed: float | None
    limit: float | None
    # `errno` is declared by the builtin parents of some subclasses; here it is the same name for all.
    errno: Any

    def __init__(
        self,
        message: str = "",
        *,
        phase: Phase | None = None,
        origin: str | None = None,
        attempts: Iterable[ConnectAttempt] = (),
        elapsed: float | None = None,
        limit: float | None = None,
        errno: int | None = None,
    ) -> None:
        self.message = str(message) or self.default_message
        super().__init__(self.message)
        self.phase = phase
        self.origin = origin
        self.attempts = tuple(attempts)
        self.elapsed = elapsed
        self.limit = limit
        self.errno = errno

    def __str__(self) -> str:
        circumstances = list(self._circumstances())
        return f"{self.message} ({', '.join(circumstances)})" if circumstances else self.message

    def _circumstances(self) -> Iterable[str]:
        if self.phase is not None:
            yield f"phase {self.phase}"
        if self.origin is not None:
            yield f"origin {self.origin}"
        for attempt in self.attempts[:MOST_ATTEMPTS_IN_TEXT]:
            yield f"tried {attempt.address}: {self._outcome(attempt)} after {attempt.elapsed:.3f} s"
        if len(self.attempts) > MOST_ATTEMPTS_IN_TEXT:
            yield f"and {len(self.attempts) - MOST_ATTEMPTS_IN_TEXT} more addresses"
        if self.limit is not None and self.elapsed is not None:
            yield f"{self.elapsed:.3f} s of {self.limit:g} s"
        elif self.limit is not None:
            yield f"limit {self.limit:g} s"
        elif self.elapsed is not None and not self.attempts:
            yield f"after {self.elapsed:.3f} s"

    def _outcome(self, attempt: ConnectAttempt) -> str:
        return "failed" if attempt.errno is None else _errno_name(attempt.errno)

    def __reduce__(self) -> tuple[Any, ...]:
        # OSError keeps `errno` outside of `__dict__`, so the default reduction would lose it.
        state = {"errno": self.errno, **self.__dict__}
        return _rebuild, (type(self), self.message), state


def _rebuild(cls: type[LaminaError], message: str) -> LaminaError:
    return cls(message)


def _errno_name(number: int) -> str:
    return errorcode.get(number, f"errno {number}")


# --- time-outs ---------------------------------------------------------------------------------------------


class TimeoutException(LaminaError, TimeoutError):
    """Something took longer than it was allowed to. The parent of all time-outs."""

    default_message = "the operation took too long"

    def _outcome(self, attempt: ConnectAttempt) -> str:
        # An attempt without a number was still going on when the time was over.
        return "no answer" if attempt.errno is None else super()._outcome(attempt)


class PoolTimeout(TimeoutException):
    """No connection of the pool became free in time.

    Attributes:
        stats: what the pool held then, with a row for the origin that was wanted; for lamina's pools a `PoolStats`.
            `None` where nobody knew.
    """

    default_message = "no connection became free in time"

    stats: Any = None


class ConnectTimeout(TimeoutException):
    """Resolving the name, connecting, or a TLS or proxy handshake took too long; `phase` says which."""

    default_message = "connecting took too long"


class ReadTimeout(TimeoutException):
    """The peer sent nothing in time."""

    default_message = "no bytes were received in time"


class WriteTimeout(TimeoutException):
    """The peer did not take our bytes in time."""

    default_message = "the bytes could not be sent in time"


class DeadlineExceeded(TimeoutException):
    """An ambient deadline ran out. `phase` is what was being done, or `None` in the caller's own code.

    Attributes:
        deadline: the `Deadline` that ran out, so that the block that opened it knows its own. `None` in a
            copy that was pickled: a deadline belongs to its process.
    """

    default_message = "the deadline has passed"

    deadline: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments, state = super().__reduce__()
        return rebuild, arguments, {**state, "deadline": None}

    def __copy__(self) -> Self:
        copied = type(self)(self.message)
        copied.__dict__.update(self.__dict__)
        copied.errno = self.errno
        return copied


# --- connection failures -----------------------------------------------------------------------------------


class NetworkError(LaminaError, ConnectionError):
    """The network or the operating system refused. The parent of all connection failures."""

    default_message = "the network failed"


class ConnectError(NetworkError):
    """No usable connection could be made: name, address, socket, certificate or handshake.

    `attempts` lists the addresses that were tried, `errno` is the system's number for the last of them.
    """

    default_message = "no connection could be made"


class ReadError(NetworkError):
    """The connection broke while reading, or the stream had been closed before."""

    default_message = "the connection broke while reading"


class WriteError(NetworkError):
    """The connection broke while writing, or the stream had been closed before."""

    default_message = "the connection broke while writing"


class ProxyError(LaminaError, ConnectionError):
    """The proxy refused to connect, or did not keep to its protocol.

    Attributes:
        status: of the proxy's answer to CONNECT, 407 for instance; `None` where it gave none.
        headers: the fields of that answer, `Proxy-Authenticate` for instance: pairs of bytes in their order.
    """

    default_message = "the proxy refused"

    status: int | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()


# --- protocol ----------------------------------------------------------------------------------------------


class ProtocolError(LaminaError):
    """Somebody broke the protocol. The parent of the two that say who."""

    default_message = "the protocol was broken"


class LocalProtocolError(ProtocolError, ValueError):
    """We were asked to send what the protocol forbids. Raised before a byte of it is sent, where possible."""

    default_message = "the request is not valid HTTP"


class RemoteProtocolError(ProtocolError):
    """The peer sent what the protocol forbids, or ended the connection too early."""

    default_message = "the peer did not send valid HTTP"


class UnsupportedProtocol(LaminaError, ValueError):
    """The URL's scheme, or a protocol that was asked for, is not one that is spoken here."""

    default_message = "the protocol is not supported"


# --- the caller's arguments --------------------------------------------------------------------------------


class InvalidURL(LaminaError, ValueError):
    """A URL, or a part of one, that cannot be used."""

    default_message = "the URL is not valid"


class ArgumentValueError(LaminaError, ValueError):
    """An argument has a value that it cannot have."""

    default_message = "an argument has a value that it cannot have"


class ArgumentTypeError(LaminaError, TypeError):
    """An argument has a type that it cannot have."""

    default_message = "an argument has a type that it cannot have"


# --- states ------------------------------------------------------------------------------------------------


class ConnectionNotAvailable(LaminaError):
    """This connection cannot take the request at the moment; another one may."""

    default_message = "the connection cannot take this request"


class PoolClosed(LaminaError, RuntimeError):
    """The pool was closed: before the request, while it waited, or while it was under way."""

    default_message = "the pool is closed"


class ConcurrencyError(LaminaError, RuntimeError):
    """Two threads or tasks use one stream at the same time, which would mix their bytes."""

    default_message = "another thread or task is using this stream"


class BackendNotFound(LaminaError, LookupError):
    """No installed package provides the backend that was asked for; the text says what to install."""

    default_message = "no such network backend is installed"
