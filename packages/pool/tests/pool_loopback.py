"""Peers for the pool's tests: one in memory, whose every byte is counted, and a plain one over loopback sockets.

They keep the contracts of `lamina_interfaces`, as far as the pool relies on them, and no more.
"""

from __future__ import annotations

import os
import re
import select
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from lamina_interfaces import (
    GLANCE_SECONDS,
    ConnectError,
    Limit,
    NetworkBackend,
    NetworkStream,
    ReadError,
    WriteError,
)
from lamina_pool import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


def response(body: bytes = b"", *, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    """An HTTP/1.1 response with a declared length."""
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n%s\r\n%s" % (status, len(body), headers, body)


def request_for(url: str = "http://example.com/", method: str = "GET", **arguments: Any) -> Request:
    """A request for `handle_request`, which adds no header itself."""
    host = url.split("/")[2]
    return Request(method, url, headers=[("Host", host)], **arguments)


def target_of(head: bytes) -> bytes:
    """The target of a request, which the tests use as its token."""
    return head.split(b" ", 2)[1]


def echo(stream: MemoryStream, head: bytes, body: bytes) -> None:
    """A server that answers with the target."""
    stream.feed(response(target_of(head)))


def _nothing(*arguments: object) -> None:
    pass


class MemoryStream(NetworkStream):
    """One connection in memory. What is written is cut into requests, each of which is given to `backend.answer`."""

    def __init__(self, backend: MemoryBackend, number: int) -> None:
        self.backend = backend
        self.number = number
        self.requests: list[bytes] = []
        self.reads = 0
        self.is_closed = False
        self.was_aborted = False
        self.tls: list[str | None] = []
        self._changed = threading.Condition()
        self._incoming = bytearray()
        self._written = bytearray()
        self._has_ended = False
        self._is_broken = False
        backend.note_open(self)

    # --- the peer's side

    def feed(self, data: bytes) -> None:
        with self._changed:
            self._incoming += data
            self._changed.notify_all()

    def feed_eof(self) -> None:
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()

    def break_off(self) -> None:
        """As after a reset: writing fails, and so does reading."""
        with self._changed:
            self._is_broken = True
            self._changed.notify_all()

    def _cut_requests(self) -> None:
        while True:
            end = self._written.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self._written[: end + 4])
            length = _LENGTH.search(head)
            size = len(head) + (int(length.group(1)) if length else 0)
            if b"chunked" in head.lower():
                tail = self._written.find(b"0\r\n\r\n", len(head))
                if tail < 0:
                    return
                size = tail + 5
            if len(self._written) < size:
                return
            body = bytes(self._written[len(head) : size])
            del self._written[:size]
            self.requests.append(head + body)
            self.backend.answer(self, head, body)

    # --- our side

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        limit = Limit(timeout, time.monotonic, "read")
        limit.check()
        with self._changed:
            self.reads += 1
            while not self._incoming:
                if self.is_closed or self._is_broken:
                    raise ReadError("the stream is closed", phase="read")
                if self._has_ended:
                    return b""
                wait_on(self._changed, limit)
            data = bytes(self._incoming[: max_bytes or 65536])
            del self._incoming[: len(data)]
            return data

    def write(self, buffer: Any, timeout: float | None = None) -> None:
        Limit(timeout, time.monotonic, "write").check()
        with self._changed:
            if self.is_closed or self._is_broken:
                raise WriteError("the stream is closed", phase="write")
            self._written += buffer
            self._cut_requests()

    def __del__(self) -> None:
        if hasattr(self, "_is_broken"):  # else its constructor was interrupted
            self.close()  # as a socket does

    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> Self:
        self.tls.append(server_hostname)
        self.backend.calls.append(("start_tls", server_hostname, timeout))
        self.backend.on_start_tls(self, Limit(timeout, time.monotonic, "tls"))
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return bool(self._incoming) or self._has_ended or self._is_broken or self.is_closed
        return None

    def close(self) -> None:
        with self._changed:
            self.is_closed = True
            self.backend.note_closed(self)
            self._changed.notify_all()

    def abort(self) -> None:
        self.was_aborted |= not self.is_closed
        self.close()


def wait_on(condition: threading.Condition, limit: Limit) -> None:
    """Wait, within a limit that another thread may bring forward."""
    limit.check()
    remaining = limit.remaining()
    if limit.is_ambient:
        remaining = GLANCE_SECONDS if remaining is None else min(remaining, GLANCE_SECONDS)
    condition.wait(remaining)


class MemoryBackend(NetworkBackend):
    """Counts what is open, and answers each request with its own target unless `answer` is replaced.

    Attributes:
        streams: all that were opened, in order.
        live: how many are open now; `peak`: how many were at most.
        calls: what was asked of the backend.
    """

    def __init__(self, answer: Callable[[MemoryStream, bytes, bytes], object] | None = None) -> None:
        self.streams: list[MemoryStream] = []
        self.calls: list[tuple[Any, ...]] = []
        self._live: set[int] = set()
        self.peak = 0
        self.sleeps: list[float] = []
        self.keep_streams = True
        self._count_lock = threading.RLock()
        self.answer: Callable[[MemoryStream, bytes, bytes], object] = echo if answer is None else answer
        # Replaced by tests that refuse, or wait.
        self.on_connect: Callable[[Limit], object] = _nothing
        self.on_start_tls: Callable[[MemoryStream, Limit], object] = _nothing
        self.on_sleep: Callable[[float], object] = self.sleeps.append

    @property
    def live(self) -> int:
        return len(self._live)

    def note_open(self, stream: MemoryStream) -> None:
        with self._count_lock:
            self._live.add(id(stream))
            self.peak = max(self.peak, len(self._live))

    def note_closed(self, stream: MemoryStream) -> None:
        # By name and not by number, since an exception may strike between any two lines.
        self._live.discard(id(stream))

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> MemoryStream:
        self.calls.append(("connect_tcp", host, port, timeout, local_address, socket_options))
        return self._open(timeout)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> MemoryStream:
        self.calls.append(("connect_unix_socket", path, timeout, socket_options))
        return self._open(timeout)

    def _open(self, timeout: float | None) -> MemoryStream:
        limit = Limit(timeout, time.monotonic, "connect")
        limit.check()
        self.on_connect(limit)
        stream = MemoryStream(self, len(self.streams))
        if self.keep_streams:
            self.streams.append(stream)
        else:
            self.calls.clear()
        return stream

    def sleep(self, seconds: float) -> None:
        self.on_sleep(seconds)


class LoopbackStream(NetworkStream):
    """A socket. Closing it wakes whoever waits on it; the descriptor is freed when the last of them has left."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._lock = threading.RLock()
        self._users = 0
        self._is_closed = False
        self._pid = os.getpid()

    def read(self, max_bytes: int | None = None, timeout: float | None = None) -> bytes:
        limit = Limit(timeout, time.monotonic, "read")
        data: bytes = self._use(limit, select.POLLIN, self._receive, max_bytes or 65536)
        return data

    def _receive(self, size: int) -> bytes:
        data: bytes = self._sock.recv(size)
        if not data and self._is_closed:
            raise ReadError("the stream is closed", phase="read")
        return data

    def write(self, buffer: Any, timeout: float | None = None) -> None:
        limit = Limit(timeout, time.monotonic, "write")
        rest = memoryview(buffer)
        while rest:
            rest = rest[self._use(limit, select.POLLOUT, self._sock.send, rest) :]

    def _use(self, limit: Limit, event: int, action: Callable[..., Any], argument: Any) -> Any:
        error = ReadError if event == select.POLLIN else WriteError
        limit.check()
        with self._lock:
            if self._is_closed:
                raise error("the stream is closed")
            self._users += 1
        try:
            poll = select.poll()
            poll.register(self._sock, event)
            while True:
                remaining = limit.remaining()
                glance = GLANCE_SECONDS if remaining is None else min(remaining, GLANCE_SECONDS)
                if poll.poll(glance * 1000):
                    return action(argument)
                limit.check()
        except OSError as exc:
            if isinstance(exc, TimeoutError | ReadError):
                raise
            raise error(str(exc), errno=exc.errno) from exc
        finally:
            with self._lock:
                self._users -= 1
                if self._is_closed and not self._users:
                    self._sock.close()

    def get_extra_info(self, info: str) -> Any:
        if info == "socket":
            return self._sock
        if info == "is_readable":
            return self._is_closed or bool(select.select([self._sock], [], [], 0)[0])
        return None

    def close(self) -> None:
        if os.getpid() != self._pid:
            self._is_closed = True
            self._sock.close()  # only our copy
            return
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            try:
                self._sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            if not self._users:
                self._sock.close()


class LoopbackBackend(NetworkBackend):
    """TCP by IPv4, and nothing that one could do without."""

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> LoopbackStream:
        try:
            return LoopbackStream(socket.create_connection((host, port), 5.0))
        except OSError as exc:
            raise ConnectError(str(exc), phase="connect", errno=exc.errno) from exc

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


class EchoServer:
    """Answers each request with its target (`/large`: a million times), and the port that it came from as a header.

    A thread for each connection.

    Args:
        close_every: closes the connection after every so-many-th request, without saying so.
    """

    def __init__(self, close_every: int = 0) -> None:
        self._close_every = close_every
        self._count = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.targets: list[bytes] = []
        self._spawn(self._accept)

    def _spawn(self, function: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=function, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.add(sock)
            self._spawn(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        buffer = b""
        try:
            while True:
                while b"\r\n\r\n" not in buffer:
                    data = sock.recv(65536)
                    if not data:
                        return
                    buffer += data
                head, _, buffer = buffer.partition(b"\r\n\r\n")
                target = target_of(head)
                self.targets.append(target)
                body = target * 1_000_000 if target == b"/large" else target
                sock.sendall(response(body, headers=b"X-Peer: %d\r\n" % sock.getpeername()[1]))
                self._count += 1
                if self._close_every and self._count % self._close_every == 0:
                    return
        except OSError:
            return
        finally:
            self._sockets.discard(sock)
            sock.close()

    @property
    def live(self) -> int:
        return len(self._sockets)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        for sock in list(self._sockets):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads:
            thread.join(10)


class Worker(threading.Thread):
    """A thread whose result, or exception, is asked for by `result()`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._arguments = arguments
        self._result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._function(*self._arguments)
        except BaseException as error:  # noqa: BLE001 - is raised again in `result`
            self.error = error

    def outcome(self, seconds: float = 20.0) -> Any:
        """What it returned, or the exception that ended it."""
        self.join(seconds)
        assert not self.is_alive(), "the thread hangs"
        return self.error if self.error is not None else self._result

    def result(self, seconds: float = 20.0) -> Any:
        outcome = self.outcome(seconds)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait until something holds that another thread brings about."""
    end = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, "it never came about"
        pause.wait(0.001)
