"""The backend for anyio, whichever runtime it runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import anyio
import anyio.lowlevel

from lamina_interfaces import running_runtime

from ._readiness import Library
from ._readiness_backend import ReadinessBackend, ReadinessStream

if TYPE_CHECKING:
    from lamina_interfaces import RuntimeName


def _cancellations() -> int:
    if running_runtime() != "asyncio":
        return 0
    from asyncio import current_task

    task = current_task()
    return 0 if task is None else task.cancelling()


ANYIO = Library(
    checkpoint=anyio.lowlevel.checkpoint,
    checkpoint_if_cancelled=anyio.lowlevel.checkpoint_if_cancelled,
    wait_readable=anyio.wait_readable,
    wait_writable=anyio.wait_writable,
    wait_checks=False,  # under asyncio not those of a scope
    open_nursery=anyio.create_task_group,
    cancellations=_cancellations,
)
"""anyio's primitives, which find out for themselves what runs."""


class AnyIOStream(ReadinessStream):
    """A stream over a connected socket, for anyio on asyncio or on trio. The contract is `AsyncNetworkStream`'s.

    `read` and `write` are checkpoints, always; `aclose`, `close_now` and `abort` are not, and wake those who wait.
    `abort` may be called from any thread, by finalisers, and when the loop has ended. Cancellation by anyio's
    scopes and by the runtime's own means (`asyncio.timeout`, `Task.cancel`) both work.

    Args:
        sock: a connected stream socket (TCP or unix), not an `ssl.SSLSocket`. The stream's from now on; it is
            made non-blocking.
        timings: how long the steps of connecting took.

    Raises:
        ArgumentTypeError, ArgumentValueError: `sock` is no plain socket, or closed. It is left as it was.
        ConcurrencyError: neither asyncio nor trio runs here.
    """

    _library = ANYIO
    _possible: ClassVar[tuple[RuntimeName, ...]] = ("asyncio", "trio")


class AnyIOBackend(ReadinessBackend[AnyIOStream]):
    """TCP and unix sockets for anyio, on asyncio or on trio. The contract is `AsyncNetworkBackend`'s.

    For programs that use anyio throughout; `AutoBackend` does the same for everybody else, and is faster. Holds no
    sockets and belongs to no loop, so one may serve several.

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

    _stream_class = AnyIOStream
