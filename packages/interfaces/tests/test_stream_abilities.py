"""The abilities that a stream may have besides: what they are where they are not implemented."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from lamina_interfaces import (
    AsyncDirectReader,
    AsyncInterruptibleWriter,
    AsyncNetworkStream,
    AsyncPromptWriter,
    DirectReader,
    InterruptibleWriter,
    NetworkStream,
    PromptCloser,
    PromptWriter,
)

if TYPE_CHECKING:
    from collections.abc import Callable

ABILITIES: list[tuple[type[Any], str, Callable[[Any], Any]]] = [
    (DirectReader, "read_into", lambda stream: stream.read_into(bytearray(1))),
    (InterruptibleWriter, "write_until_readable", lambda stream: stream.write_until_readable(b"x")),
    (PromptWriter, "write_now", lambda stream: stream.write_now(b"x")),
    (PromptWriter, "wait_writable", lambda stream: stream.wait_writable()),
    (PromptWriter, "has_unsent", lambda stream: stream.has_unsent),
    (AsyncDirectReader, "read_into", lambda stream: _run(stream.read_into(bytearray(1)))),
    (AsyncInterruptibleWriter, "write_until_readable", lambda s: _run(s.write_until_readable(b"x"))),
    (AsyncPromptWriter, "write_now", lambda stream: stream.write_now(b"x")),
    (AsyncPromptWriter, "wait_writable", lambda stream: _run(stream.wait_writable())),
    (AsyncPromptWriter, "has_unsent", lambda stream: stream.has_unsent),
    (PromptCloser, "close_now", lambda stream: stream.close_now()),
]


def _run(coroutine: Any) -> None:
    asyncio.run(coroutine)


@pytest.mark.parametrize(("ability", "name", "use"), ABILITIES)
def test_an_ability_is_an_interface_and_does_nothing_itself(
    ability: type[Any], name: str, use: Callable[[Any], Any]
) -> None:
    assert {part for part in vars(ability) if not part.startswith("_")} == {
        named for owner, named, _ in ABILITIES if owner is ability
    }
    with pytest.raises(NotImplementedError):
        use(ability())


@pytest.mark.parametrize("stream", [NetworkStream, AsyncNetworkStream])
def test_no_stream_has_an_ability_that_it_does_not_claim(stream: type[Any]) -> None:
    """A new one in the base class would break every stream that exists."""
    assert not [ability for ability, _, _ in ABILITIES if issubclass(stream, ability)]
    assert not [name for _, name, _ in ABILITIES if hasattr(stream, name)]


@pytest.mark.parametrize("name", ["write_now", "wait_writable", "has_unsent"])
def test_the_async_ability_has_the_same_names(name: str) -> None:
    assert hasattr(PromptWriter, name)
    assert hasattr(AsyncPromptWriter, name)
