"""Hypothesis profiles: `HYPOTHESIS_PROFILE=long` searches for hours, the default for seconds. No test leaves a pool.

The default one goes through the same examples every time, so that it tells of a change and not of its luck.

Beside the long profile, `-o faulthandler_timeout=0` keeps the repository's settings from ending what takes hours.
"""

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

from lamina_pool import _pool

settings.register_profile("short", max_examples=200, stateful_step_count=120, deadline=None, derandomize=True)
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


HAS_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[HAS_FAILED] = report.failed
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, object, object]:
    """No pool is left unclosed with connections: in a cycle the collector would find it at another test's cost."""
    result = yield
    left = [pool for pool in list(_pool._pools) if pool._scheduler.total and not pool._scheduler.is_closed]
    told = [[(slot.key, slot.state) for slot in pool._scheduler.slots()] for pool in left]
    for pool in left:
        pool._scheduler.is_closed = True  # or it would be told of a second time
    assert item.stash[HAS_FAILED] or not left, f"pools were left unclosed: {told}"
    return result
