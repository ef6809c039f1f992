"""From what the system raises to what lamina raises: one table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._errors import ConnectError, LaminaError, NetworkError, ReadError, WriteError

if TYPE_CHECKING:
    from ._errors import Phase

__all__ = ["describe", "network_error", "system_errno"]

_ERRORS: dict[Phase, type[NetworkError]] = {
    "dns": ConnectError,
    "connect": ConnectError,
    "tls": ConnectError,
    "read": ReadError,
    "write": WriteError,
    "close": WriteError,
}


def describe(exc: BaseException) -> str:
    """What went wrong, in the system's words; never empty."""
    if isinstance(exc, OSError) and exc.strerror:
        return str(exc.strerror)
    if isinstance(exc, LaminaError):
        return exc.message  # its circumstances are those of what comes of it
    return str(exc) or type(exc).__name__


def system_errno(exc: BaseException) -> int | None:
    """The system's error number. A `socket.gaierror` counts its own kinds, from another list, so it has none."""
    number = getattr(exc, "errno", None)
    return number if isinstance(number, int) and number > 0 and type(exc).__name__ != "gaierror" else None


def network_error(exc: BaseException, phase: Phase, message: str = "") -> NetworkError:
    """The error of `phase` for something that was raised by the system, or by code called for the caller.

    Args:
        exc: what was raised; the caller raises the result `from` it.
        phase: what was being done.
        message: put before the system's own words.
    """
    cause = describe(exc)
    return _ERRORS[phase](f"{message}: {cause}" if message else cause, phase=phase, errno=system_errno(exc))
