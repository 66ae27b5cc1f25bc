"""One measured value of a revision over time, in the shape that its averages need: one value for each second."""

from __future__ import annotations

import math

from autoscaler.settings import ScaleSettings
from autoscaler.windows import LinearWindow, WeightedWindows, panic_window

HELD = 5
"""Seconds that a value stands for the seconds without one: more than a tick, less than an outage."""


class Signal:
    """A value that is measured now and then; one value counts for each second, so that a tick's length does not change the average.

    Of several in a second it is the largest; a second without one repeats the value before, up to `held` seconds.
    """

    __slots__ = ("_held", "_second", "_value", "averages", "_put")

    def __init__(self, settings: ScaleSettings, held: float = HELD) -> None:
        stable, recent = settings.stable_window, panic_window(settings.stable_window, settings.panic_percentage)
        weighted = settings.aggregation == "weighted-exponential"
        window = WeightedWindows(stable, recent) if weighted else LinearWindow(stable, recent=recent)
        self._put = window.put
        self.averages = window.averages
        """Over the stable window and over that of panic, at a given time."""
        self._second, self._value, self._held = -math.inf, 0.0, held

    def record(self, now: float, value: float) -> None:
        """The value at `now`."""
        second = now // 1
        gap = second - self._second
        if gap:
            self._put(second, value, self._value if gap <= self._held else None)
            self._second, self._value = second, value
        elif value > self._value:
            self._put(second, value - self._value)
            self._value = value

    def fresh(self, now: float) -> bool:
        """True when the value was measured lately."""
        return now - self._second <= HELD
