"""Every exception: its place in the tree, what it says and carries, and that it survives pickling."""

import copy
import errno
import inspect
import pickle
import re

import pytest

import lamina_interfaces
from interfaces_clock import VirtualClock
from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    BackendNotFound,
    ConcurrencyError,
    ConnectAttempt,
    ConnectError,
    ConnectionNotAvailable,
    ConnectTimeout,
    Deadline,
    DeadlineExceeded,
    InvalidURL,
    LaminaError,
    LocalProtocolError,
    NetworkError,
    PoolClosed,
    PoolTimeout,
    ProtocolError,
    ProxyError,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    TimeoutException,
    UnsupportedProtocol,
    WriteError,
    WriteTimeout,
    _errors,
)

# class: (its parent in the tree, the builtin that it also is by itself)
TREE: dict[type[LaminaError], tuple[type[Exception], type[Exception] | None]] = {
    LaminaError: (Exception, None),
    TimeoutException: (LaminaError, TimeoutError),
    PoolTimeout: (TimeoutException, None),
    ConnectTimeout: (TimeoutException, None),
    ReadTimeout: (TimeoutException, None),
    WriteTimeout: (TimeoutException, None),
    DeadlineExceeded: (TimeoutException, None),
    NetworkError: (LaminaError, ConnectionError),
    ConnectError: (NetworkError, None),
    ReadError: (NetworkError, None),
    WriteError: (NetworkError, None),
    ProxyError: (LaminaError, ConnectionError),
    ProtocolError: (LaminaError, None),
    LocalProtocolError: (ProtocolError, ValueError),
    RemoteProtocolError: (ProtocolError, None),
    UnsupportedProtocol: (LaminaError, ValueError),
    InvalidURL: (LaminaError, ValueError),
    ArgumentValueError: (LaminaError, ValueError),
    ArgumentTypeError: (LaminaError, TypeError),
    ConnectionNotAvailable: (LaminaError, None),
    PoolClosed: (LaminaError, RuntimeError),
    ConcurrencyError: (LaminaError, RuntimeError),
    BackendNotFound: (LaminaError, LookupError),
}

every_class = pytest.mark.parametrize("cls", TREE, ids=lambda cls: cls.__name__)

ATTEMPTS = (
    ConnectAttempt("192.0.2.1:443", errno.ECONNREFUSED, 0.25),
    ConnectAttempt("[2001:db8::1]:443", None, 1.0),
)


def defined_classes() -> list[type[LaminaError]]:
    return [
        value for value in vars(_errors).values() if inspect.isclass(value) and issubclass(value, LaminaError)
    ]


def with_every_attribute(cls: type[LaminaError]) -> LaminaError:
    return cls(
        "it broke",
        phase="tls",
        origin="https://example.com:443",
        attempts=ATTEMPTS,
        elapsed=1.5,
        limit=2.0,
        errno=errno.ECONNRESET,
    )


# --- the tree ----------------------------------------------------------------------------------------------


def test_the_tree_has_every_class_and_no_other() -> None:
    assert defined_classes() == list(TREE)


@every_class
def test_a_class_has_its_parent_and_its_builtin(cls: type[LaminaError]) -> None:
    parent, builtin = TREE[cls]
    assert cls.__bases__ == ((parent,) if builtin is None else (parent, builtin))


@every_class
def test_a_class_is_public_and_says_that_it_lives_in_the_package(cls: type[LaminaError]) -> None:
    assert getattr(lamina_interfaces, cls.__name__) is cls
    assert cls.__module__ == "lamina_interfaces"


def test_the_table_in_the_module_docstring_is_the_tree() -> None:
    rows = re.findall(r"^\| (\w+) \| (\w*) ?\| (.+) \|$", _errors.__doc__ or "", flags=re.MULTILINE)
    documented = {name: builtin for name, builtin, _ in rows}
    actual = {
        cls.__name__: "Exception" if cls is LaminaError else builtin.__name__ if builtin else ""
        for cls, (_, builtin) in TREE.items()
    }
    assert list(documented.items()) == list(actual.items())
    assert all(raised_when.strip() for _, _, raised_when in rows)
    parents = {base.__name__ for cls in TREE for base in cls.__bases__ if base in TREE}
    assert {name for name, _, raised_when in rows if raised_when.startswith("never itself")} == parents


# --- the text ----------------------------------------------------------------------------------------------


@every_class
@pytest.mark.parametrize("message", ["", None, OSError()], ids=["none", "None", "an empty cause"])
def test_the_text_is_never_empty(cls: type[LaminaError], message: object) -> None:
    error = cls() if message is None else cls(message)  # type: ignore[arg-type]  # a cause is often handed over as it is
    assert str(error) == error.message == cls.default_message
    assert error.message.strip()


def test_every_class_has_a_text_of_its_own() -> None:
    texts = [vars(cls).get("default_message") for cls in TREE]
    assert None not in texts
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ReadError("reset by peer"), "reset by peer"),
        (ReadError("gone", phase="read"), "gone (phase read)"),
        (ReadTimeout("slow", elapsed=1.00049, limit=1), "slow (1.000 s of 1 s)"),
        (ReadTimeout("slow", limit=0.25), "slow (limit 0.25 s)"),
        (ReadError("gone", elapsed=0.5), "gone (after 0.500 s)"),
        (
            ConnectError("no way", origin="http://a:80", attempts=ATTEMPTS),
            (
                "no way (origin http://a:80, tried 192.0.2.1:443: ECONNREFUSED after 0.250 s, "
                "tried [2001:db8::1]:443: failed after 1.000 s)"
            ),
        ),
        (
            ConnectError("no way", attempts=[ConnectAttempt("a", 99_999, 0.0)]),
            "no way (tried a: errno 99999 after 0.000 s)",
        ),
    ],
)
def test_the_text_ends_with_the_circumstances(error: LaminaError, text: str) -> None:
    assert str(error) == text


# --- the attributes ----------------------------------------------------------------------------------------


@every_class
def test_what_nobody_knew_is_none_or_empty(cls: type[LaminaError]) -> None:
    error = cls("it broke")
    assert (error.phase, error.origin, error.elapsed, error.limit, error.errno) == (None,) * 5
    assert error.attempts == ()
    assert error.args == ("it broke",)


@every_class
def test_every_attribute_is_kept(cls: type[LaminaError]) -> None:
    error = with_every_attribute(cls)
    assert error.message == "it broke"
    assert error.phase == "tls"
    assert error.origin == "https://example.com:443"
    assert error.attempts == ATTEMPTS
    assert error.elapsed == 1.5
    assert error.limit == 2.0
    assert error.errno == errno.ECONNRESET


def test_attempts_are_copied_from_any_iterable() -> None:
    attempts = list(ATTEMPTS)
    error = ConnectError(attempts=iter(attempts))
    attempts.clear()
    assert error.attempts == ATTEMPTS


@every_class
def test_the_cause_is_kept(cls: type[LaminaError]) -> None:
    cause = OSError(errno.ECONNRESET, "reset")
    with pytest.raises(cls) as caught:
        raise cls(str(cause)) from cause
    assert caught.value.__cause__ is cause


# --- pickling ----------------------------------------------------------------------------------------------


def state(error: LaminaError) -> tuple[object, ...]:
    return (
        type(error),
        str(error),
        error.args,
        error.message,
        error.phase,
        error.origin,
        error.attempts,
        error.elapsed,
        error.limit,
        error.errno,
    )


@every_class
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickled_error_is_the_same_error(cls: type[LaminaError], protocol: int) -> None:
    for error in (cls(), cls("it broke"), with_every_attribute(cls)):
        assert state(pickle.loads(pickle.dumps(error, protocol))) == state(error)


@every_class
def test_a_copied_error_is_the_same_error(cls: type[LaminaError]) -> None:
    error = with_every_attribute(cls)
    assert state(copy.copy(error)) == state(error)
    assert state(copy.deepcopy(error)) == state(error)


@every_class
def test_what_was_filled_in_later_is_pickled_too(cls: type[LaminaError]) -> None:
    error = cls("it broke", errno=1)
    error.origin = "https://example.com:443"
    error.errno = None
    error.add_note("while fetching the page")
    again = pickle.loads(pickle.dumps(error))
    assert state(again) == state(error)
    assert again.__notes__ == ["while fetching the page"]


def test_a_deadline_does_not_leave_its_process() -> None:
    clock = VirtualClock(10.0)
    deadline = Deadline(3.0, clock)
    clock.now = 14.0
    error = deadline.exceeded("dns")
    assert error.deadline is deadline
    again = pickle.loads(pickle.dumps(error))
    assert again.deadline is None
    assert (again.phase, again.elapsed, again.limit) == ("dns", 4.0, 3.0)


def test_the_text_lists_few_of_many_addresses() -> None:
    attempts = [ConnectAttempt(f"192.0.2.{number}:80", errno.ECONNREFUSED, 0.1) for number in range(25)]
    text = str(ConnectError("in vain", attempts=attempts))
    assert text.count("tried ") == 10
    assert "and 15 more addresses" in text


def test_an_attempt_that_was_still_going_on_had_no_answer() -> None:
    attempt = ConnectAttempt("192.0.2.1:80", None, 0.25)
    assert "192.0.2.1:80: no answer after 0.250 s" in str(ConnectTimeout("slow", attempts=[attempt]))
    assert "192.0.2.1:80: failed after 0.250 s" in str(ConnectError("in vain", attempts=[attempt]))


def test_a_copy_in_the_same_process_knows_its_deadline() -> None:
    deadline = Deadline(1.0, VirtualClock())
    error = deadline.exceeded("read")
    copied = copy.copy(error)
    assert (copied.deadline, str(copied), copied.errno) == (deadline, str(error), error.errno)
