"""Backends that play scripts: which script on which connection, and what is found out at the end."""

from typing import Any

import pytest

from lamina_interfaces import ArgumentTypeError, AsyncNetworkBackend, NetworkBackend
from lamina_mock import AsyncScriptedBackend, Script, ScriptedBackend, ScriptError, VirtualClock
from mock_faces import Face, face

__all__ = ["face"]  # a fixture


def greeting(text: bytes) -> Script:
    return Script(text.decode()).reply(text)


async def hear(backend: Any, host: str, port: int = 80) -> bytes:
    stream = await backend.connect_tcp(host, port)
    data: bytes = await stream.read()
    await stream.aclose()
    return data


def test_each_connection_plays_the_next_script(face: Face) -> None:
    async def body() -> None:
        with face.scripted([greeting(b"one"), greeting(b"two")]) as backend:
            assert [await hear(backend, "a.example"), await hear(backend, "b.example")] == [b"one", b"two"]

    face.run(body)


def test_scripts_are_chosen_by_host_or_by_host_and_port(face: Face) -> None:
    async def body() -> None:
        scripts = {
            "a.example": [greeting(b"one"), greeting(b"two")],
            ("a.example", 81): greeting(b"eighty-one"),
            "/run/app.sock": greeting(b"unix"),
        }
        with face.scripted(scripts) as backend:
            assert await hear(backend, "a.example", 81) == b"eighty-one"
            assert await hear(backend, "a.example", 81) == b"one"  # the exact one is used up
            assert await hear(backend, "a.example") == b"two"
            stream = await backend.connect_unix_socket("/run/app.sock")
            assert await stream.read() == b"unix"

    face.run(body)


def test_one_script_may_be_played_often(face: Face) -> None:
    async def body() -> None:
        with face.scripted([greeting(b"again")] * 3) as backend:
            assert [await hear(backend, "a.example") for _ in range(3)] == [b"again"] * 3

    face.run(body)


def test_one_connection_too_many_is_told(face: Face) -> None:
    async def body() -> None:
        backend = face.scripted(greeting(b"one"))
        await hear(backend, "a.example")
        with pytest.raises(ScriptError) as caught:
            await backend.connect_tcp("b.example", 443)
        assert (
            caught.value.message
            == "no script is left for a connection to b.example:443; played so far: script 'one'"
        )
        with pytest.raises(ScriptError, match="no script is left"):
            backend.check()

    face.run(body)


def test_a_connection_that_nobody_expects_is_told(face: Face) -> None:
    async def body() -> None:
        backend = face.scripted({"a.example": greeting(b"one"), ("b.example", 81): greeting(b"two")})
        with pytest.raises(
            ScriptError, match=r"no script is for c.example:80, only for a.example, b.example:81"
        ):
            await backend.connect_tcp("c.example", 80)
        with pytest.raises(ScriptError, match=r"no script is for /run/app.sock, only for"):
            await backend.connect_unix_socket("/run/app.sock")

    face.run(body)


def test_scripts_that_were_not_played_are_told_all_together(face: Face) -> None:
    async def body() -> None:
        backend = face.scripted(
            {"a.example": [greeting(b"one"), greeting(b"two")], ("b.example", 81): greeting(b"three")}
        )
        stream = await backend.connect_tcp("a.example", 80)
        with pytest.raises(ScriptError) as caught:
            backend.check()
        assert str(caught.value).splitlines() == [
            "script 'one', at its end (after 1 steps): 3 bytes of the replies were never read",
            "script 'two', for a.example, was never played",
            "script 'three', for b.example:81, was never played",
        ]
        await stream.aclose()

    face.run(body)


def test_as_a_context_manager_it_is_checked_at_the_end(face: Face) -> None:
    async def body() -> None:
        with (
            pytest.raises(ScriptError, match="script 'one' was never played"),
            face.scripted(greeting(b"one")),
        ):
            pass

    face.run(body)


def test_a_violation_is_raised_in_the_place_of_what_came_of_it(face: Face) -> None:
    async def body() -> None:
        with (
            pytest.raises(ScriptError, match="script 's'") as caught,
            face.scripted(Script("s").expect(b"a")) as backend,
        ):
            stream = await backend.connect_tcp("a.example", 80)
            try:
                await stream.write(b"b")
            except ScriptError:
                raise LookupError("swallowed") from None
        assert isinstance(caught.value.__cause__, LookupError)

    face.run(body)


def test_other_errors_and_interrupts_pass(face: Face) -> None:
    async def body() -> None:
        with pytest.raises(LookupError), face.scripted(greeting(b"one")):
            raise LookupError
        with pytest.raises(KeyboardInterrupt), face.scripted(Script("s").expect(b"a")) as backend:
            stream = await backend.connect_tcp("a.example", 80)
            with pytest.raises(ScriptError):
                await stream.write(b"b")
            raise KeyboardInterrupt

    face.run(body)


def test_the_first_violation_counts(face: Face) -> None:
    async def body() -> None:
        backend = face.scripted([Script("one").expect(b"a"), Script("two").expect(b"a")])
        streams = [await backend.connect_tcp("a.example", 80) for _ in range(2)]
        for stream in streams:
            with pytest.raises(ScriptError):
                await stream.write(b"b")
        with pytest.raises(ScriptError, match="script 'one'"):
            backend.check()

    face.run(body)


def test_time_is_that_of_the_clock(face: Face) -> None:
    async def body() -> None:
        with VirtualClock() as clock, face.scripted(Script().reply(b"late", after=3600.0)) as backend:
            assert await hear(backend, "a.example") == b"late"
            assert clock() == 3600.0

    face.run(body)


@pytest.mark.parametrize("scripts", [None, b"bytes", "text", [b"bytes"], {"a.example": b"bytes"}, iter([])])
def test_what_is_no_script_is_refused(scripts: Any) -> None:
    for kind in (ScriptedBackend, AsyncScriptedBackend):
        with pytest.raises(ArgumentTypeError):
            kind(scripts)


def test_what_they_are() -> None:
    assert issubclass(ScriptedBackend, NetworkBackend)
    assert issubclass(AsyncScriptedBackend, AsyncNetworkBackend)
    backend = ScriptedBackend([greeting(b"one"), greeting(b"two")])
    backend.connect_tcp("a.example", 80)
    assert repr(backend) == "<ScriptedBackend [1 played, 1 waiting]>"


def test_what_came_first_is_told_whatever_followed(face: Face) -> None:
    async def body() -> None:
        backend = face.scripted(Script("the only one").expect(b"this"))
        stream = await backend.connect_tcp("a.example", 80)
        with pytest.raises(ScriptError, match="something else came"):
            await stream.write(b"that")
        with pytest.raises(ScriptError, match="no script is left"):
            await backend.connect_tcp("a.example", 80)
        with pytest.raises(ScriptError, match="script 'the only one', step 1 of 1"):
            backend.check()

    face.run(body)
