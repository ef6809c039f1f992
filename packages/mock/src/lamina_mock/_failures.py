"""What a mock raises at the test itself."""

from __future__ import annotations

from lamina_interfaces import LaminaError


class ScriptError(LaminaError, AssertionError):
    """The code under test did not do what a script, or the protocol of a mock server, asks for.

    It is an `AssertionError`, so that a test that meets it has failed and not merely met an error; and none of the
    classes that stand for a failing network, so that code which copes with those does not cope with this.
    """

    default_message = "the code under test did not keep to the script"


class NetworkDenied(LaminaError, AssertionError):
    """A test was about to use the network, which its backend does not allow. As `ScriptError`, it is no network error.

    Attributes:
        host: that was to be connected to; the path of a unix socket.
        port: as well; 0 for a unix socket.
    """

    default_message = "this test may not use the network"

    host: str
    port: int

    def __init__(self, message: str = "", *, host: str = "", port: int = 0) -> None:
        super().__init__(message, phase="connect")
        self.host = host
        self.port = port
