"""From the system's errors to lamina's, row by row."""

from __future__ import annotations

import errno
import os
import socket
from typing import TYPE_CHECKING

import pytest

from lamina_interfaces import ConnectError
from lamina_interfaces.translation import describe, network_error, system_errno

if TYPE_CHECKING:
    from lamina_interfaces import Phase

_CLASSES: dict[Phase, str] = {
    "dns": "ConnectError",
    "connect": "ConnectError",
    "tls": "ConnectError",
    "read": "ReadError",
    "write": "WriteError",
    "close": "WriteError",
}


@pytest.mark.parametrize("phase", _CLASSES)
@pytest.mark.parametrize("number", sorted(errno.errorcode))
def test_every_error_of_the_system_becomes_the_phases_own(phase: Phase, number: int) -> None:
    raised = OSError(number, os.strerror(number))
    error = network_error(raised, phase, "it broke")
    assert type(error).__name__ == _CLASSES[phase]
    assert (error.phase, error.errno) == (phase, number)
    assert error.message == f"it broke: {os.strerror(number)}"


@pytest.mark.parametrize(
    ("raised", "words", "number"),
    [
        (OSError("in words only"), "in words only", None),
        (OSError(), "OSError", None),
        (socket.gaierror(socket.EAI_NONAME, "unknown"), "unknown", None),
        (ValueError("odd"), "odd", None),
        (KeyError(), "KeyError", None),
        (ConnectionResetError(errno.ECONNRESET, "reset"), "reset", errno.ECONNRESET),
        (ConnectError("nobody there", phase="dns", errno=errno.EPERM), "nobody there", errno.EPERM),
    ],
)
def test_whatever_was_raised_is_described(raised: Exception, words: str, number: int | None) -> None:
    assert (describe(raised), system_errno(raised)) == (words, number)
