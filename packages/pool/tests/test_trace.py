"""What is told to a trace callback and to the log, and what it costs when nobody listens."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from lamina_interfaces import ArgumentTypeError, drive
from lamina_pool._io import CallerError
from lamina_pool._models import Request
from lamina_pool._trace import Tracer

Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Loggers as they are in a program that has not asked for DEBUG."""
    logger = logging.getLogger("lamina")
    before = logger.level
    logger.setLevel(logging.WARNING)
    yield
    logger.setLevel(before)


def traced(callback: Any) -> Request:
    return Request("GET", "http://h/", extensions={"trace": callback})


async def three_events(tracer: Tracer) -> None:
    await tracer.started("connect_tcp", {"host": "h", "port": 80})
    await tracer.complete("connect_tcp", "a stream")
    await tracer.failed("start_tls", ValueError("x"))


# --- whether anybody listens


@pytest.mark.parametrize("request_", [Request("GET", "http://h/"), traced(None), None])
def test_without_callback_and_log_there_is_no_tracer(request_: Request | None) -> None:
    assert Tracer.of(request_, "http11") is None


def test_a_callback_makes_a_tracer() -> None:
    assert Tracer.of(traced(print), "http11") is not None


def test_a_debug_log_makes_a_tracer_and_may_come_and_go() -> None:
    request = Request("GET", "http://h/")
    logging.getLogger("lamina").setLevel(logging.DEBUG)
    assert Tracer.of(request, "http11") is not None
    assert Tracer.of(None, "connection") is not None
    logging.getLogger("lamina").setLevel(logging.INFO)
    assert Tracer.of(request, "http11") is None


def test_asking_does_not_import_logging() -> None:
    code = (
        "import sys\n"
        "from lamina_pool._trace import Tracer\n"
        "from lamina_pool._models import Request\n"
        "request = Request('GET', 'http://h/')\n"
        "print('logging' in sys.modules, Tracer.of(request, 'http11'))\n"
        "import logging\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "print(Tracer.of(request, 'http11') is not None)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "None", "True"]


# --- the callback


def test_events_have_names_and_facts() -> None:
    events: Events = []
    tracer = Tracer.of(traced(lambda name, info: events.append((name, info))), "connection")
    assert tracer is not None
    drive(three_events(tracer))
    assert [name for name, _ in events] == [
        "connection.connect_tcp.started",
        "connection.connect_tcp.complete",
        "connection.start_tls.failed",
    ]
    assert events[0][1] == {"host": "h", "port": 80}
    assert events[1][1] == {"return_value": "a stream"}
    assert repr(events[2][1]["exception"]) == "ValueError('x')"


def test_a_step_without_facts_tells_an_empty_dictionary() -> None:
    events: Events = []
    tracer = Tracer.of(traced(lambda name, info: events.append((name, info))), "http11")
    assert tracer is not None
    drive(tracer.started("response_closed"))
    drive(tracer.complete("response_closed"))
    assert events == [
        ("http11.response_closed.started", {}),
        ("http11.response_closed.complete", {"return_value": None}),
    ]


def test_an_async_callback_is_awaited_in_async_code() -> None:
    events: list[str] = []

    async def callback(name: str, info: dict[str, Any]) -> None:
        await asyncio.sleep(0)
        events.append(name)

    async def main() -> None:
        tracer = Tracer.of(traced(callback), "connection")
        assert tracer is not None
        await three_events(tracer)

    asyncio.run(main())
    assert len(events) == 3


def test_a_plain_callback_is_called_in_async_code() -> None:
    events: Events = []

    async def main() -> None:
        tracer = Tracer.of(traced(lambda name, info: events.append((name, info))), "connection")
        assert tracer is not None
        await three_events(tracer)

    asyncio.run(main())
    assert len(events) == 3


def test_an_async_callback_is_run_to_its_end_in_blocking_code() -> None:
    events: list[str] = []

    async def note(name: str) -> None:
        events.append(name)

    async def callback(name: str, info: dict[str, Any]) -> None:
        await note(name)

    tracer = Tracer.of(traced(callback), "connection")
    assert tracer is not None
    drive(three_events(tracer))
    assert len(events) == 3


@pytest.mark.parametrize("is_hidden", [False, True])
def test_an_async_callback_must_not_wait_in_blocking_code(is_hidden: bool) -> None:
    cleaned_up: list[bool] = []

    async def callback(name: str, info: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            cleaned_up.append(True)

    def plain(name: str, info: dict[str, Any]) -> object:
        return callback(name, info)

    tracer = Tracer.of(traced(plain if is_hidden else callback), "connection")
    assert tracer is not None
    with pytest.raises(ArgumentTypeError, match="waited for something"):
        drive(tracer.started("connect_tcp"))
    assert cleaned_up == [True]


def test_nor_while_it_is_ended_for_that() -> None:
    async def callback(name: str, info: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(0)
        finally:
            await asyncio.sleep(0)

    tracer = Tracer.of(traced(callback), "connection")
    assert tracer is not None
    with pytest.raises(ArgumentTypeError, match="waited for something"):
        drive(tracer.started("connect_tcp"))


def test_a_callback_may_return_any_awaitable() -> None:
    class Ready:
        def __await__(self) -> Iterator[None]:
            awaited.append(True)
            return iter(())

    class Waiting:
        def __await__(self) -> Iterator[None]:
            return iter([None])

    awaited: list[bool] = []
    tracer = Tracer.of(traced(lambda name, info: Ready()), "connection")
    assert tracer is not None
    drive(tracer.started("connect_tcp"))
    assert awaited == [True]
    tracer = Tracer.of(traced(lambda name, info: Waiting()), "connection")
    assert tracer is not None
    with pytest.raises(ArgumentTypeError, match="waited for something"):
        drive(tracer.started("connect_tcp"))


def test_what_the_callback_returns_does_not_matter() -> None:
    tracer = Tracer.of(traced(lambda name, info: 5), "connection")
    assert tracer is not None
    drive(tracer.started("connect_tcp"))


@pytest.mark.parametrize("is_async", [False, True])
def test_what_the_callback_raises_comes_out_as_it_is(is_async: bool) -> None:
    error = ZeroDivisionError("of the callback")

    def plain(name: str, info: dict[str, Any]) -> None:
        raise error

    async def coroutine(name: str, info: dict[str, Any]) -> None:
        raise error

    async def main() -> None:
        tracer = Tracer.of(traced(coroutine if is_async else plain), "connection")
        assert tracer is not None
        await tracer.started("connect_tcp")

    # In an envelope, so that nobody on the way out takes it for one of lamina's own; the public faces open it.
    for run in (asyncio.run, drive):
        with pytest.raises(CallerError) as caught:
            run(main())
        assert caught.value.original is error


# --- around a step


def test_a_step_is_told_and_its_result_returned() -> None:
    events: Events = []

    async def step(host: str, *, port: int) -> str:
        events.append(("step", {"host": host, "port": port}))
        return f"{host}:{port}"

    tracer = Tracer.of(traced(lambda name, info: events.append((name, info))), "connection")
    assert tracer is not None
    assert drive(tracer.around("connect_tcp", {"host": "h"}, step, "h", port=80)) == "h:80"
    assert events == [
        ("connection.connect_tcp.started", {"host": "h"}),
        ("step", {"host": "h", "port": 80}),
        ("connection.connect_tcp.complete", {"return_value": "h:80"}),
    ]


@pytest.mark.parametrize("error", [OSError("refused"), KeyboardInterrupt(), asyncio.CancelledError()])
def test_a_step_that_fails_is_told_and_its_error_comes_out(error: BaseException) -> None:
    events: Events = []

    async def step() -> None:
        raise error

    tracer = Tracer.of(traced(lambda name, info: events.append((name, info))), "connection")
    assert tracer is not None
    with pytest.raises(type(error)) as caught:
        drive(tracer.around("connect_tcp", None, step))
    assert caught.value is error
    assert events == [
        ("connection.connect_tcp.started", {}),
        ("connection.connect_tcp.failed", {"exception": error}),
    ]


def test_a_step_is_not_begun_when_the_callback_raises() -> None:
    begun: list[bool] = []

    async def step() -> None:
        begun.append(True)

    def callback(name: str, info: dict[str, Any]) -> None:
        raise ZeroDivisionError

    tracer = Tracer.of(traced(callback), "connection")
    assert tracer is not None
    with pytest.raises(CallerError):
        drive(tracer.around("connect_tcp", None, step))
    assert begun == []


# --- the log


def logged(caplog: pytest.LogCaptureFixture, prefix: str = "http11") -> Tracer:
    caplog.set_level(logging.DEBUG, logger="lamina")
    tracer = Tracer.of(Request("GET", "http://h/"), prefix)
    assert tracer is not None
    return tracer


def test_the_log_has_a_line_for_each_event(caplog: pytest.LogCaptureFixture) -> None:
    tracer = logged(caplog, "connection")
    drive(three_events(tracer))
    drive(tracer.started("close"))
    drive(tracer.complete("close"))
    assert caplog.record_tuples == [
        ("lamina.connection", logging.DEBUG, "connect_tcp.started host='h' port=80"),
        ("lamina.connection", logging.DEBUG, "connect_tcp.complete return_value='a stream'"),
        ("lamina.connection", logging.DEBUG, "start_tls.failed exception=ValueError('x')"),
        ("lamina.connection", logging.DEBUG, "close.started"),
        ("lamina.connection", logging.DEBUG, "close.complete"),
    ]


def test_a_percent_sign_is_only_a_character(caplog: pytest.LogCaptureFixture) -> None:
    drive(logged(caplog).started("x", {"host": "%s%d"}))
    assert caplog.messages == ["x.started host='%s%d'"]


@pytest.mark.parametrize("name", [b"Authorization", b"proxy-authorization", b"COOKIE", b"Set-Cookie"])
def test_secrets_stay_out_of_the_log_wherever_headers_appear(
    caplog: pytest.LogCaptureFixture, name: bytes
) -> None:
    tracer = logged(caplog)
    headers = [(b"Server", b"x"), (name, b"hunter2")]
    drive(
        tracer.started(
            "send_request_headers",
            {"headers": headers, "request": Request("GET", "http://h/", headers=headers)},
        )
    )
    drive(tracer.complete("receive_response_headers", (b"HTTP/1.1", 200, b"OK", headers)))
    drive(tracer.complete("receive_response_headers", [tuple(headers)]))
    assert "hunter2" not in caplog.text
    assert caplog.text.count(f"({name!r}, b'[masked]')") == 3
    assert caplog.text.count("(b'Server', b'x')") == 3
    assert headers[1] == (name, b"hunter2")


def test_the_callback_gets_everything_even_beside_a_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="lamina")
    events: Events = []
    tracer = Tracer.of(traced(lambda name, info: events.append((name, info))), "http11")
    assert tracer is not None
    drive(tracer.complete("receive_response_headers", [(b"Set-Cookie", b"hunter2")]))
    assert events[0][1]["return_value"] == [(b"Set-Cookie", b"hunter2")]
    assert "hunter2" not in caplog.text


def test_the_repr_says_who_listens() -> None:
    assert repr(Tracer.of(traced(len), "http11")) == (
        "<Tracer ['http11', callback: <built-in function len>, log: False]>"
    )
