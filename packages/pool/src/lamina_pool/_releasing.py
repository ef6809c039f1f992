"""Letting go of a connection: for what reasons a request does, and whether this is a moment at which it may.

Apart from `_events.py` and `_observing.py`, which only a pool with a listener needs.
"""

from __future__ import annotations

import enum
import sys
from typing import TYPE_CHECKING

from ._scheduler import CloseReason

if TYPE_CHECKING:
    from types import CodeType


class ReleaseReason(enum.Enum):
    """Why a request has let go of its connection."""

    COMPLETE = "the response was read to its end"
    CLOSED_EARLY = "the response was closed before its end"
    STALE = "the connection was dead, or refused the request; it is sent on another one"
    FAILED = "the request failed"
    CANCELLED = "the request was cancelled or interrupted"
    ABANDONED = "the response was forgotten"
    POOL_CLOSED = "the pool was closed"


CLOSE_REASONS: dict[ReleaseReason, CloseReason] = {
    ReleaseReason.COMPLETE: CloseReason.BROKEN,
    ReleaseReason.CLOSED_EARLY: CloseReason.CLOSED_EARLY,
    ReleaseReason.STALE: CloseReason.STALE,
    ReleaseReason.FAILED: CloseReason.FAILED,
    ReleaseReason.CANCELLED: CloseReason.CANCELLED,
    ReleaseReason.ABANDONED: CloseReason.ABANDONED,
    ReleaseReason.POOL_CLOSED: CloseReason.POOL_CLOSED,
}
"""Why a connection is closed that cannot be used again after a request has let go of it."""

locked_code: set[CodeType] = set()
"""The functions that hold a lock of ours, or call a listener: nobody is called from within them."""


def is_nested() -> bool:
    """Whether this is a finaliser or a signal handler that has come in while a lock of ours was held, of any pool."""
    return is_within(locked_code)


def is_within(code: set[CodeType]) -> bool:
    """Whether one of these functions is running, further up in this thread."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in code:
            return True
        frame = frame.f_back  # type: ignore[assignment] # None at the end
    return False
