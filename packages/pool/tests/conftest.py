"""Hypothesis profiles: `HYPOTHESIS_PROFILE=long` searches for hours, the default for seconds."""

import os

import pytest
from hypothesis import settings

settings.register_profile("short", max_examples=200, stateful_step_count=120, deadline=None)
settings.register_profile("long", max_examples=50_000, stateful_step_count=120, deadline=None)

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "short")
settings.load_profile(PROFILE)


def pytest_configure(config: pytest.Config) -> None:
    # A source archive has these tests without the settings of the repository, which tell of the marker too.
    config.addinivalue_line("markers", "soak: takes minutes; runs only where `-m` asks for it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("markexpr"):
        for item in items:
            if item.get_closest_marker("soak") is not None:
                item.add_marker(pytest.mark.skip(reason="takes minutes; ask for it with -m soak"))
    # The limit on one test's time is there for hangs, and a long search is none.
    if PROFILE == "long" and config.pluginmanager.hasplugin("timeout"):
        for item in items:
            item.add_marker(pytest.mark.timeout(0))
