"""This version holds no backend, and whoever asks for one is told what to do about it."""

import pytest

import lamina_async_backends
from lamina_interfaces import BackendNotFound, load_backend

NAMES = {
    "auto": "lamina-async-backends",
    "asyncio": "lamina-async-backends",
    "anyio": "lamina-async-backends[anyio]",
    "trio": "lamina-async-backends[trio]",
}


@pytest.mark.parametrize(("name", "install"), NAMES.items())
def test_a_backend_that_is_not_here_yet_is_told_with_the_command(name: str, install: str) -> None:
    with pytest.raises(BackendNotFound) as caught:
        load_backend(name)
    assert str(caught.value) == (
        f"the {name!r} network backend is not in the installed "
        f"lamina-async-backends {lamina_async_backends.__version__}; "
        f"get a later release with: pip install --upgrade {install}"
    )


def test_the_package_offers_nothing_but_its_version() -> None:
    assert lamina_async_backends.__all__ == ["__version__"]
