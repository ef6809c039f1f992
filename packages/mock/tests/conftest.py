"""Hypothesis limits the time of an example to a fifth of a second, which a busy machine may take for any of them."""

from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
