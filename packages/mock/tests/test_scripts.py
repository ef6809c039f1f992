"""Scripts: each step does what it says, and each violation names the script, the step and the difference."""

import math
import re
import ssl
import sys
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina_interfaces import (
    ArgumentTypeError,
    ArgumentValueError,
    ConnectError,
    ConnectTimeout,
    ReadError,
    ReadTimeout,
    WriteTimeout,
)
from lamina_mock import Script, ScriptedBackend, ScriptError, TLSFacts, VirtualClock
from lamina_mock._scripts import compare
from mock_faces import Face, face

__all__ = ["face"]  # a fixture

CONTEXT = ssl.create_default_context()

REQUEST = (
    b"POST /items?n=1 HTTP/1.1\r\nHost: a.example\r\nX-Key: one\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabc\r\n0\r\n\r\n"
)
EMPTY = b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n"


async def connect(face: Face, script: Script, **options: Any) -> tuple[Any, Any]:
    backend = face.scripted(script, **options)
    return backend, await backend.connect_tcp("a.example", 80)


# --- what is expected --------------------------------------------------------------------------------------


def test_a_script_is_played_step_by_step(face: Face) -> None:
    async def body() -> None:
        script = Script("a talk").expect(b"one").reply(b"1").expect(b"two").reply(b"2").eof()
        backend, stream = await connect(face, script)
        await stream.write(b"o")
        await stream.write(b"ne")
        assert await stream.read() == b"1"
        await stream.write(b"two")
        assert [await stream.read() for _ in range(3)] == [b"2", b"", b""]
        backend.check()

    face.run(body)


def test_several_steps_may_come_in_one_write(face: Face) -> None:
    async def body() -> None:
        script = Script().expect(b"one").reply(b"1").expect_request("GET", "/").reply(b"2").expect(b"end")
        backend, stream = await connect(face, script)
        await stream.write(b"one" + EMPTY + b"end")
        assert [await stream.read() for _ in range(2)] == [b"1", b"2"]
        backend.check()

    face.run(body)


@given(data=st.binary(min_size=1, max_size=30), cuts=st.lists(st.integers(0, 30), max_size=5))
def test_it_does_not_matter_how_the_bytes_are_cut(data: bytes, cuts: list[int]) -> None:
    backend = ScriptedBackend(Script().expect(data).reply(b"ok"))
    stream = backend.connect_tcp("a.example", 80)
    places = sorted({0, *cuts, len(data)})
    for start, end in pairwise(places):
        stream.write(data[start : min(end, len(data))])
    assert stream.read() == b"ok"
    backend.check()


@pytest.mark.parametrize("size", range(1, len(REQUEST), 7))
def test_a_request_is_read_however_it_is_cut(size: int) -> None:
    script = Script().expect_request("POST", "/items?n=1", headers={"x-KEY": "one"}, body=b"abc").reply(b"ok")
    backend = ScriptedBackend(script)
    stream = backend.connect_tcp("a.example", 80)
    for start in range(0, len(REQUEST), size):
        stream.write(REQUEST[start : start + size])
    assert stream.read() == b"ok"
    backend.check()


# --- what the peer does ------------------------------------------------------------------------------------


def test_a_reply_comes_late_and_in_pieces(face: Face) -> None:
    async def body() -> None:
        clock = VirtualClock()
        script = (
            Script()
            .expect(b"?")
            .reply(b"0123456789", after=0.5, pieces=4, every=0.25)
            .stall(2.0)
            .reply(b"x")
            .eof(after=1)
        )
        backend, stream = await connect(face, script, clock=clock)
        clock.advance(10.0)
        await stream.write(b"?")
        got = [(await stream.read(), clock()) for _ in range(6)]
        assert got == [
            (b"01", 10.5),
            (b"234", 10.75),
            (b"56", 11.0),
            (b"789", 11.25),
            (b"x", 13.25),
            (b"", 14.25),
        ]
        backend.check()

    face.run(body)


def test_the_peer_may_speak_first(face: Face) -> None:
    async def body() -> None:
        backend, stream = await connect(face, Script().reply(b"220 ready\r\n", after=1.0).expect(b"HELO"))
        assert await stream.read(timeout=1.5) == b"220 ready\r\n"
        await stream.write(b"HELO")
        backend.check()

    face.run(body)


def test_a_stall_for_ever_keeps_silent_and_takes_what_comes(face: Face) -> None:
    async def body() -> None:
        backend, stream = await connect(face, Script().expect(b"?").stall())
        await stream.write(b"?")
        with pytest.raises(ReadTimeout):
            await stream.read(timeout=3600)
        await stream.write(b"anything")
        backend.check()

    face.run(body)


def test_a_reset_breaks_the_connection(face: Face) -> None:
    async def body() -> None:
        backend, stream = await connect(face, Script().expect(b"?").reply(b"par").reset(after=1.0))
        await stream.write(b"?")
        assert await stream.read() == b"par"
        with pytest.raises(ReadError, match="reset by script 'a script'"):
            await stream.read()
        backend.check()

    face.run(body)


def test_a_black_hole_takes_what_its_buffers_hold(face: Face) -> None:
    async def body() -> None:
        backend, stream = await connect(face, Script().expect(b"?").black_hole(capacity=100))
        await stream.write(b"?")
        await stream.write(bytes(60))
        with pytest.raises(WriteTimeout):
            await stream.write(bytes(60), timeout=1.0)
        backend.check()

    face.run(body)


def test_what_holds_throughout(face: Face) -> None:
    async def body() -> None:
        script = Script().expect(b"?").reply(b"0123456789").partial_reads(4).fault_after_reading(6, "eof")
        backend, stream = await connect(face, script)
        await stream.write(b"?")
        assert [await stream.read() for _ in range(3)] == [b"0123", b"45", b""]
        backend.check()
        backend, stream = await connect(face, Script("s").expect(b"0123").fault_after_writing(4, "stall"))
        with pytest.raises(WriteTimeout):
            await stream.write(b"01234", timeout=1.0)
        backend.check()

    face.run(body)


def test_connecting_may_fail_or_be_slow(face: Face) -> None:
    async def body() -> None:
        clock = VirtualClock()
        backend = face.scripted(
            [Script().refuse("no route to host"), Script().slow_connect(), Script().slow_connect(2.0)],
            clock=clock,
        )
        with pytest.raises(ConnectError, match="no route to host"):
            await backend.connect_tcp("a.example", 80)
        with pytest.raises(ConnectTimeout):
            await backend.connect_tcp("a.example", 80, timeout=5.0)
        await backend.connect_tcp("a.example", 80, timeout=5.0)
        assert clock() == 7.0
        backend.check()

    face.run(body)


def test_tls_is_a_step(face: Face) -> None:
    async def body() -> None:
        clock = VirtualClock()
        script = (
            Script().expect(b"STARTTLS").reply(b"go").tls(alpn="h2", delay=0.5).reply(b"inside").expect(b"!")
        )
        backend, stream = await connect(face, script, clock=clock)
        await stream.write(b"STARTTLS")
        assert await stream.read() == b"go"
        assert stream.get_extra_info("is_readable") is False
        stream = await stream.start_tls(CONTEXT, "a.example")
        assert stream.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        assert await stream.read() == b"inside"
        assert clock() == 0.5
        await stream.write(b"!")
        backend.check()

    face.run(body)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        (Script().tls(error="self-signed certificate"), ConnectError),
        (Script().tls(delay=math.inf), ConnectTimeout),
        (Script().tls(facts=TLSFacts(error="nothing in common")), ConnectError),
    ],
)
def test_tls_may_fail(face: Face, script: Script, error: type[Exception]) -> None:
    async def body() -> None:
        backend, stream = await connect(face, script)
        with pytest.raises(error):
            await stream.start_tls(CONTEXT, "a.example", timeout=2.0)
        backend.check()

    face.run(body)


def test_a_script_that_says_nothing_of_tls_takes_a_handshake_before_all_else(face: Face) -> None:
    async def body() -> None:
        backend, stream = await connect(face, Script().expect(b"?").reply(b"ok"))
        await stream.start_tls(CONTEXT, "a.example")
        assert stream.get_extra_info("ssl_object").selected_alpn_protocol() is None
        await stream.write(b"?")
        assert await stream.read() == b"ok"
        backend.check()

    face.run(body)


# --- violations --------------------------------------------------------------------------------------------


async def violate(face: Face, script: Script, *writes: bytes) -> str:
    """The text of the error, which the operation raises, and the check again."""
    backend, stream = await connect(face, script)
    with pytest.raises(ScriptError) as caught:
        for data in writes:
            await stream.write(data)
    with pytest.raises(ScriptError) as again:
        backend.check()
    assert again.value is caught.value
    with pytest.raises(ReadError, match="reset"):  # nobody waits for a peer that has given up
        await stream.read()
    return str(caught.value)


def test_other_bytes_are_shown_beside_those_expected(face: Face) -> None:
    async def body() -> None:
        script = (
            Script("a greeting")
            .reply(b"x")
            .expect(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n")
            .fault_after_reading(0, "reset")
        )
        text = await violate(face, script, b"GET / HTTP/1.1\r\n", b"Host: b.example\r\n\r\n")
        lines = text.splitlines()
        assert lines[0].startswith("script 'a greeting', step 2 of 2 (expect b'GET / HTTP/1.1")
        assert lines[0].endswith("something else came:")
        assert lines[1:4] == [
            "  (- expected, + came)",
            r"    b'GET / HTTP/1.1\r\n'",
            r"  - b'Host: a.example\r\n'",
        ]
        assert r"  + b'Host: b.example\r\n'" in lines

    face.run(body)


def test_the_first_wrong_byte_is_enough(face: Face) -> None:
    async def body() -> None:
        text = await violate(face, Script("s").expect(b"abcdef"), b"ab", b"X")
        assert "- b'abcdef'" in text
        assert "+ b'abX'" in text

    face.run(body)


@pytest.mark.parametrize(
    ("before", "line"), [(b"a\n" * 5000, b"b\n"), (bytes(10_000), b"b\n"), (bytes(10_000), bytes(10_000))]
)
def test_a_long_comparison_is_shown_around_the_difference(before: bytes, line: bytes) -> None:
    expected = before + line + b"x" * 10_000
    lines = compare(expected, before + b"c\n" + b"y" * 10_000).splitlines()
    assert len(lines) < 100
    assert sum(map(len, lines)) < 10_000
    assert r"  + b'c\n'" in lines or r"\x00c\n" in "".join(lines)
    place = re.fullmatch(r"  \(from byte (\d+) on\)", lines[-1])
    assert place is not None
    assert 0 <= len(before) - int(place[1]) <= 100


@pytest.mark.parametrize(
    ("expected", "shown"),
    [
        ({"method": "PUT"}, ["- b'PUT /items?n=1'", "+ b'POST /items?n=1'"]),
        ({"target": "/"}, ["- b'POST /'", "+ b'POST /items?n=1'"]),
        ({"headers": [("X-Key", "two")]}, ["- b'x-key: two'", "+ b'x-key: one'"]),
        ({"headers": {"X-Other": "two"}}, ["- b'x-other: two'"]),
        ({"body": b"abd"}, ["- b'abd'", "+ b'abc'"]),
        ({"body": b""}, ["+ b'abc'"]),
    ],
)
def test_another_request_is_shown_beside_the_one_expected(
    face: Face, expected: dict[str, Any], shown: list[str]
) -> None:
    async def body() -> None:
        facts = {"method": "POST", "target": "/items?n=1", **expected}
        text = await violate(face, Script("upload").expect_request(**facts), REQUEST)
        assert text.startswith(
            f"script 'upload', step 1 of 1 (expect request {facts['method']} {facts['target']}): another "
        )
        for line in shown:
            assert f"  {line}" in text.splitlines()

    face.run(body)


def test_what_is_no_request_is_told(face: Face) -> None:
    async def body() -> None:
        text = await violate(face, Script("s").expect_request("GET", "/"), b"HELLO\r\n\r\n")
        assert "what came is not a request" in text

    face.run(body)


def test_an_unexpected_write_is_told(face: Face) -> None:
    async def body() -> None:
        script = Script("short").expect(b"one")
        text = await violate(face, script, b"one", b"two")
        assert text == "script 'short', at its end (after 1 steps): the client wrote b'two'"
        text = await violate(face, script, b"one" + bytes(100))
        assert "(100 bytes)" in text

    face.run(body)


def test_bytes_where_tls_is_expected_are_told(face: Face) -> None:
    async def body() -> None:
        text = await violate(face, Script("secret").tls(), b"GET / HTTP/1.1\r\n")
        assert text.startswith("script 'secret', step 1 of 1 (TLS handshake): the client wrote b'GET /")

    face.run(body)


@pytest.mark.parametrize(
    "script", [Script("s").expect(b"one").tls().expect(b"two"), Script("s").expect(b"one").expect(b"two")]
)
def test_a_handshake_out_of_turn_is_told(face: Face, script: Script) -> None:
    async def body() -> None:
        backend, stream = await connect(face, script)
        if len(script.steps) == 2:
            await stream.write(b"one")
        with pytest.raises(ScriptError, match=r"script 's', step .*: the client begins a TLS handshake"):
            await stream.start_tls(CONTEXT, "a.example")
        with pytest.raises(ScriptError):
            backend.check()

    face.run(body)


@pytest.mark.parametrize(
    ("script", "writes", "text"),
    [
        (
            Script("s").expect(b"one"),
            [],
            "script 's', step 1 of 1 (expect b'one') was never reached or never met; nothing",
        ),
        (
            Script("s").expect(b"one").expect(b"two"),
            [b"onet"],
            "script 's', step 2 of 2 (expect b'two') was never reached or never met; 1 of 3 bytes have come",
        ),
        (
            Script("s").expect_request("GET", "/"),
            [b"GET / HTTP/1.1\r\n"],
            "script 's', step 1 of 1 (expect request GET /) was never reached or never met; its head has not come",
        ),
        (
            Script("s").expect_request("POST", "/"),
            [b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nab"],
            "script 's', step 1 of 1 (expect request POST /) was never reached or never met; its body has not come",
        ),
        (Script("s").tls(), [], "script 's', step 1 of 1 (TLS handshake) was never reached or never met"),
        (
            Script("s").expect(b"one").reply(b"12345"),
            [b"one"],
            "script 's', at its end (after 2 steps): 5 bytes of the replies were never read",
        ),
    ],
)
def test_leftovers_are_told(face: Face, script: Script, writes: list[bytes], text: str) -> None:
    async def body() -> None:
        backend, stream = await connect(face, script)
        for data in writes:
            await stream.write(data)
        await stream.aclose()
        with pytest.raises(ScriptError) as caught:
            backend.check()
        assert str(caught.value) == text.removesuffix("; nothing")

    face.run(body)


def test_a_reply_that_came_too_late_is_no_leftover(face: Face) -> None:
    async def body() -> None:
        backend, stream = await connect(face, Script().expect(b"?").reply(b"late", after=10.0))
        await stream.write(b"?")
        with pytest.raises(ReadTimeout):
            await stream.read(timeout=9.0)
        await stream.aclose()
        backend.check()

    face.run(body)


# --- building one ------------------------------------------------------------------------------------------


def test_steps_can_be_looked_at() -> None:
    script = (
        Script("all")
        .tls()
        .expect(b"x" * 100)
        .expect_request("GET", "/")
        .reply(b"y", pieces=1)
        .stall(2)
        .eof()
        .black_hole()
    )
    assert repr(script) == "<Script 'all' [7 steps]>"
    assert [str(step) for step in script.steps] == [
        "TLS handshake",
        f"expect {b'x' * 50!r} … (100 bytes)",
        "expect request GET /",
        "reply b'y'",
        "stall 2 s",
        "eof",
        "black hole",
    ]
    assert [str(step) for step in Script().stall().steps] == ["stall"]


@pytest.mark.parametrize("last", [Script().stall(), Script().black_hole(), Script().reset()])
def test_nothing_comes_after_what_has_no_end(last: Script) -> None:
    with pytest.raises(ArgumentValueError, match="script 'a script': nothing comes after"):
        last.reply(b"x")


@pytest.mark.parametrize(
    ("build", "error"),
    [
        (lambda: Script(3), ArgumentTypeError),  # type: ignore[arg-type]  # wrong on purpose
        (lambda: Script().expect("text"), ArgumentTypeError),  # type: ignore[arg-type]  # as above
        (lambda: Script().expect(b""), ArgumentValueError),
        (lambda: Script().reply(b""), ArgumentValueError),
        (lambda: Script().reply(b"abc", pieces=0), ArgumentValueError),
        (lambda: Script().reply(b"abc", pieces=4), ArgumentValueError),
        (lambda: Script().reply(b"abc", pieces=True), ArgumentTypeError),
        (lambda: Script().reply(b"abc", after=-1), ArgumentValueError),
        (lambda: Script().stall(math.nan), ArgumentValueError),
        (lambda: Script().black_hole(capacity=-1), ArgumentValueError),
        (lambda: Script().partial_reads(0), ArgumentValueError),
        (lambda: Script().partial_reads("1"), ArgumentTypeError),  # type: ignore[arg-type]  # as above
        (lambda: Script().fault_after_reading(1, "no"), ArgumentValueError),  # type: ignore[arg-type]  # as above
        (lambda: Script().fault_after_writing(-1, "eof"), ArgumentValueError),
    ],
)
def test_a_step_that_makes_no_sense_is_refused(build: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        build()


def test_without_h11_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h11", None)
    with pytest.raises(ImportError, match=r"pip install 'lamina-mock\[http\]'"):
        Script().expect_request("GET", "/")
    assert len(Script().expect(b"needs no h11").steps) == 1


def test_a_head_may_be_long_and_come_in_pieces(face: Face) -> None:
    script = Script("long").expect_request("GET", "/", headers={"X-Long": "x" * 100_000}).reply(b"!").eof()

    async def body() -> None:
        with face.scripted(script) as backend:
            stream = await backend.connect_tcp("a.example", 80)
            await stream.write(b"GET / HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 100_000)
            await stream.write(b"\r\n\r\n")
            assert await stream.read() == b"!"

    face.run(body)


@pytest.mark.parametrize("fault", ["reset", "eof", "stall"])
def test_a_fault_that_never_came_hides_no_leftovers(fault: Any) -> None:
    script = Script("cut off").expect(b"?").reply(b"0123456789").fault_after_reading(8, fault)
    for size, left in [(3, 5), (8, 0), (10, 0)]:
        backend = ScriptedBackend(script)
        with backend.connect_tcp("a.example", 80) as stream:
            stream.write(b"?")
            assert len(stream.read(size)) == min(size, 8)
        if left:
            with pytest.raises(ScriptError, match=f"{left} bytes of the replies were never read"):
                backend.check()
        else:
            backend.check()


@pytest.mark.parametrize(("fault", "then"), [("reset", None), ("eof", b"")])
def test_a_fault_after_writing_comes_before_what_the_peer_would_say_later(
    fault: Any, then: bytes | None
) -> None:
    script = (
        Script("cut off")
        .expect(b"abc")
        .reply(b"now")
        .reply(b"later", after=5.0)
        .fault_after_writing(3, fault)
    )
    with VirtualClock() as clock, ScriptedBackend(script).connect_tcp("a.example", 80) as stream:
        stream.write(b"abc")
        assert stream.read() == b"now"
        if then is None:
            with pytest.raises(ReadError):
                stream.read()
        else:
            assert stream.read() == then
        assert clock() == 0.0


@pytest.mark.parametrize(
    ("expected", "sent", "is_met"),
    [
        (["1", "2"], ["1", "2"], True),
        (["2", "1"], ["1", "2"], True),
        (["1"], ["1", "2"], True),
        (["1", "1"], ["1", "1"], True),
        (["1", "1"], ["1"], False),
        (["1", "1"], ["1", "2"], False),
        (["1", "2"], ["1, 2"], False),
    ],
)
def test_a_header_that_is_expected_twice_comes_twice(
    expected: list[str], sent: list[str], is_met: bool
) -> None:
    script = Script("twice").expect_request("GET", "/", headers=[("a", value) for value in expected])
    fields = "".join(f"A: {value}\r\n" for value in sent)
    with ScriptedBackend(script).connect_tcp("a.example", 80) as stream:
        request = f"GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n".encode()
        if is_met:
            stream.write(request)
        else:
            with pytest.raises(ScriptError, match="another request came"):
                stream.write(request)


def test_a_body_that_is_no_bytes_is_refused() -> None:
    with pytest.raises(ArgumentTypeError, match="the body of a request is bytes, not str"):
        Script().expect_request("POST", "/", body="text")  # type: ignore[arg-type] # that is the mistake
