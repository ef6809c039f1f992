"""Hypothesis profiles: `HYPOTHESIS_PROFILE=long` searches anew for an hour; the default goes through the same examples
every time, so that it tells of a change and not of its luck. A busy machine may take any time for an example."""

import os

from hypothesis import settings

settings.register_profile("short", deadline=None, derandomize=True)
settings.register_profile("long", deadline=None, max_examples=10_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))
