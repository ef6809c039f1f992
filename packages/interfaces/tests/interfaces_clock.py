"""A clock that moves only when a test tells it to."""


class VirtualClock:
    """Stands for `time.monotonic`; `sleep` moves it on, and `readings` counts how often it was looked at."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        self.readings = 0

    def __call__(self) -> float:
        self.readings += 1
        return self.now

    monotonic = __call__

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds
