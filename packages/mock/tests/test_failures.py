"""What mocks raise at a test."""

import pickle

import pytest

from lamina_interfaces import LaminaError
from lamina_mock import ClockError, DeadlockError, NetworkDenied, ScriptError


@pytest.mark.parametrize("kind", [ScriptError, NetworkDenied, DeadlockError])
def test_they_fail_a_test_and_no_handler_of_network_errors_hides_them(kind: type[LaminaError]) -> None:
    assert issubclass(kind, LaminaError)
    assert issubclass(kind, AssertionError)
    assert not issubclass(kind, (OSError, TimeoutError, ValueError))


@pytest.mark.parametrize("kind", [ScriptError, NetworkDenied, DeadlockError, ClockError])
def test_they_say_something_and_can_be_pickled(kind: type[LaminaError]) -> None:
    error = kind()
    assert str(error)
    assert str(pickle.loads(pickle.dumps(kind("what happened")))) == str(kind("what happened"))
