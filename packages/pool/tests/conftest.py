"""Hypothesis profiles: `HYPOTHESIS_PROFILE=long` searches for hours, the default for seconds."""

import os

import pytest
from hypothesis import settings

settings.register_profile("short", max_examples=200, stateful_step_count=120, deadline=None)
settings.register_profile("long", max_examples=50_000, stateful_step_count=120, deadline=None)

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "short")
settings.load_profile(PROFILE)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # The limit on one test's time is there for hangs, and a long search is none.
    if PROFILE == "long" and config.pluginmanager.hasplugin("timeout"):
        for item in items:
            item.add_marker(pytest.mark.timeout(0))
