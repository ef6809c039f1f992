"""What the server engines of HTTP/1.1 and HTTP/2 have in common: they ask the handler, and carry out its answer.

An engine is pure: bytes and the time come in, bytes go out to the connection's line, each at its time. Whatever has to
happen later (a delay, a chunk) is asked of the line by `call`, so that it is made at its time and not before: under
HTTP/2 a frame depends on all frames before it (header compression), on the windows, and on whether the client still
wants it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._http import INTERNAL_ERROR, Data, End, Fault, Head, Interim, MockResponse, Wait, as_response, steps

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._http import MockRequest, RawHeaders, Step
    from ._server import MockConnection


class Exchange:
    """A request and how far its answer has come.

    Attributes:
        request: the request.
        steps: what is still to be done; `None` until there is an answer.
        is_over: whether nothing may be sent any more: the answer is complete, or somebody broke off.
    """

    __slots__ = ("is_over", "request", "steps")

    def __init__(self, request: MockRequest) -> None:
        self.request = request
        self.steps: Iterator[Step] | None = None
        self.is_over = False


class Engine:
    """The server's side of one connection, in one version of HTTP.

    All methods run under the lock of the connection's line.

    Args:
        connection: whose bytes these are.
    """

    # What the protocol's library raises where the handler's answer breaks the protocol.
    local_error: type[Exception]

    def __init__(self, connection: MockConnection) -> None:
        self.connection = connection
        self.server = connection.server

    # --- what each version does in its way -----------------------------------------------------------------

    def received(self, data: bytes, now: float) -> None:
        """Take the client's bytes."""
        raise NotImplementedError

    def ended(self, now: float) -> None:
        """Take note that the client has closed the connection."""
        raise NotImplementedError

    @property
    def open_streams(self) -> int:
        """Requests that are not over."""
        raise NotImplementedError

    def send_interim(self, exchange: Exchange, response: MockResponse, now: float) -> None:
        """Send a response 1xx."""
        raise NotImplementedError

    def send_head(self, exchange: Exchange, head: Head, now: float) -> None:
        """Send the head of the response."""
        raise NotImplementedError

    def send_data(self, exchange: Exchange, data: Data, now: float) -> bool:
        """Send a part of the content.

        Returns:
            Whether it has all been sent. Else the engine calls `proceed` when it has.
        """
        raise NotImplementedError

    def send_trailers(self, exchange: Exchange, trailers: RawHeaders, now: float) -> None:
        """Send the trailers."""
        raise NotImplementedError

    def finish(self, exchange: Exchange, now: float) -> None:
        """Take note that the response is complete."""
        raise NotImplementedError

    def break_off(self, exchange: Exchange, fault: Fault, now: float) -> None:
        """Let `fault` happen; a stall is nothing at all."""
        raise NotImplementedError

    def flush(self, now: float) -> None:
        """Say what is ready."""
        raise NotImplementedError

    # --- what they do alike --------------------------------------------------------------------------------

    def ask(self, exchange: Exchange, now: float) -> None:
        """Call the handler, and begin with its answer."""
        request = exchange.request
        try:
            response = as_response(self.server.handler(request))
        except Exception as error:  # noqa: BLE001 - the handler is the test's; its failure must not reach the client's code
            self.server.record(error, f"the handler failed on {request!r}: {error!r}")
            response = MockResponse.reset(INTERNAL_ERROR)
        if response is None or response.fault == MockResponse.stall().fault:
            request._respond = lambda response: self.connection.act(
                lambda now: self.answer(exchange, response, now)
            )
        else:
            self.answer(exchange, response, now)

    def answer(self, exchange: Exchange, response: MockResponse, now: float) -> None:
        """Begin with an answer."""
        exchange.request._respond = None
        exchange.steps = steps(response, self.server.latency, exchange.request.method == "HEAD")
        self.proceed(exchange, now)

    def proceed(self, exchange: Exchange, now: float) -> None:
        """Carry the answer on until it is complete, breaks off, or has to wait."""
        try:
            if exchange.steps is not None and not exchange.is_over:
                self._take_steps(exchange, exchange.steps, now)
        except self.local_error as error:
            self.server.record(error, f"the answer to {exchange.request!r} breaks the protocol: {error!r}")
            exchange.is_over = True
            self.break_off(exchange, Fault("reset", None, INTERNAL_ERROR, None), now)
        self.flush(now)

    def _take_steps(self, exchange: Exchange, rest: Iterator[Step], now: float) -> None:
        for step in rest:
            match step:
                case Wait(seconds):
                    if seconds > 0:
                        self.connection.line.call_at(now + seconds, lambda now: self.proceed(exchange, now))
                        return
                case Interim(response):
                    self.send_interim(exchange, response, now)
                case Head():
                    self.send_head(exchange, step, now)
                case Data():
                    if not self.send_data(exchange, step, now):
                        return
                case End(trailers):
                    self.send_trailers(exchange, trailers, now)
                case Fault():
                    exchange.is_over = step.kind != "stall"
                    self.break_off(exchange, step, now)
                    return
        exchange.is_over = True
        self.finish(exchange, now)


def decoded(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Header fields as text; Latin-1 loses no byte."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]


def missing(library: str, version: str) -> ImportError:
    """The error for an engine whose library is not installed."""
    return ImportError(
        f"a MockServer needs {library} to speak {version}: install lamina-mock[http]", name=library
    )
