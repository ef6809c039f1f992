"""The backend for trio."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import trio

from ._readiness import Library
from ._readiness_backend import ReadinessBackend, ReadinessStream
from ._trio_alarms import call_at

if TYPE_CHECKING:
    from lamina_interfaces import RuntimeName

TRIO = Library(
    checkpoint=trio.lowlevel.checkpoint,
    checkpoint_if_cancelled=trio.lowlevel.checkpoint_if_cancelled,
    wait_readable=trio.lowlevel.wait_readable,
    wait_writable=trio.lowlevel.wait_writable,
    wait_checks=True,
    open_nursery=trio.open_nursery,
    cancellations=lambda: 0,
    call_at=call_at,
    wake_all=trio.lowlevel.notify_closing,
    woken=(trio.ClosedResourceError,),
)
"""trio's own primitives."""


class TrioStream(ReadinessStream):
    """A stream over a connected socket, for trio. The contract is `AsyncNetworkStream`'s.

    `read` and `write` are checkpoints, always; `aclose`, `close_now` and `abort` are not, and wake those who wait.
    `abort` may be called from any thread, by finalisers, and when the run has ended. Time-outs go by trio's clock.

    Args:
        sock: a connected stream socket (TCP or unix), not an `ssl.SSLSocket`. The stream's from now on; it is
            made non-blocking.
        timings: how long the steps of connecting took.

    Raises:
        ArgumentTypeError, ArgumentValueError: `sock` is no plain socket, or closed. It is left as it was.
        ConcurrencyError: no trio task runs here.
    """

    _library = TRIO
    _possible: ClassVar[tuple[RuntimeName, ...]] = ("trio",)


class TrioBackend(ReadinessBackend[TrioStream]):
    """TCP and unix sockets for trio. The contract is `AsyncNetworkBackend`'s.

    Holds no sockets and belongs to no run, so one may serve several.

    What counts as an IP address, and how names are looked up by a blocking resolver, is as with the blocking
    backend: in threads, at most 16 for each resolver. An async one is awaited in tasks within the call.

    Args:
        resolver: turns names into addresses; the system's own if `None`. Blocking (`Resolver`) or not
            (`AsyncResolver`). IP addresses do not reach it.
        keep_alive: whether the system probes a peer that has been silent for 60 seconds, and ends the
            connection when five probes stay unanswered.

    Raises:
        ArgumentTypeError: `resolver` is none.
    """

    _stream_class = TrioStream
