"""A fake time.perf_counter, for tests of what is timed."""

import time

import pytest


class Clock:
    """A fake time.perf_counter that a test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def passes(self, seconds: float) -> None:
        """Advance the clock."""
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock that time.perf_counter reads during a test."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock
