"""Averages and maxima over sliding windows of buckets, as Knative's autoscaler computes them. Time is always an argument."""

from __future__ import annotations

import math
from collections import deque


class LinearWindow:
    """Average over the buckets of a window: each counts alike, missing ones count as zero since the first write.

    A trailing gap does not count, a write after a gap of a whole window starts anew, and a write older than the window is dropped.
    Recording is O(1), an average O(1) with a fresh last write (a running sum is kept).
    """

    def __init__(self, window: float, granularity: float = 1.0) -> None:
        self._granularity = granularity
        self._size = max(1, math.ceil(window / granularity))
        self._buckets = [0.0] * self._size
        self._first = self._last = -1
        self._total = 0.0

    def _index(self, now: float) -> int:
        return math.floor(now / self._granularity)

    def record(self, now: float, value: float) -> None:
        """Add a value to the bucket of `now`."""
        index = self._index(now)
        if self._last < 0 or index - self._last >= self._size:
            self._buckets = [0.0] * self._size
            self._first = self._last = index
            self._total = 0.0
        elif index > self._last:
            for passed in range(self._last + 1, index + 1):
                self._total -= self._buckets[passed % self._size]
                self._buckets[passed % self._size] = 0.0
            self._last = index
        elif index <= self._last - self._size:
            return
        else:
            self._first = min(self._first, index)
        self._buckets[index % self._size] += value
        self._total += value

    def average(self, now: float) -> float:
        """The average at `now`; 0 without data in the window."""
        index = self._index(now)
        if self.empty(now):
            return 0.0
        if index <= self._last:
            count = min(self._last - self._first + 1, self._size)
            return round(self._total / count, 6)
        total = 0.0
        for bucket in range(max(index - self._size + 1, self._last - self._size + 1), self._last + 1):
            total += self._buckets[bucket % self._size]
        oldest = max(self._first, index - self._size + 1)
        return round(total / (self._last - oldest + 1), 6)

    def empty(self, now: float) -> bool:
        """True when nothing was written within the window."""
        return self._last < 0 or self._index(now) - self._last >= self._size


def smoothing_factor(buckets: int) -> float:
    """α of the exponential weights: max(1 − (1 − 0.9999)^(1/n), 0.2), n buckets."""
    return max(1 - math.pow(1 - 0.9999, 1 / buckets), 0.2)


class WeightedWindow:
    """Average with weights α(1−α)^i, newest first."""

    def __init__(self, window: float, granularity: float = 1.0) -> None:
        self._granularity = granularity
        self._size = max(1, math.ceil(window / granularity))
        self.alpha = smoothing_factor(self._size)
        self._buckets: dict[int, float] = {}

    def record(self, now: float, value: float) -> None:
        """Add a value to the bucket of `now`."""
        index = math.floor(now / self._granularity)
        newest = max(self._buckets, default=index)
        if index <= newest - self._size:
            return
        self._buckets[index] = self._buckets.get(index, 0.0) + value
        self._buckets = {i: v for i, v in self._buckets.items() if i > max(newest, index) - self._size}

    def average(self, now: float) -> float:
        """The weighted average at `now`; 0 without data in the window."""
        index = math.floor(now / self._granularity)
        average = 0.0
        for bucket, value in self._buckets.items():
            if 0 <= index - bucket < self._size:
                average += value * self.alpha * float((1 - self.alpha) ** (index - bucket))
        return average

    def empty(self, now: float) -> bool:
        """True when nothing was written within the window."""
        index = math.floor(now / self._granularity)
        return all(index - bucket >= self._size for bucket in self._buckets)


class MaxWindow:
    """Maximum over the last `size` indices; a monotonic queue, O(1) amortised."""

    def __init__(self, size: int) -> None:
        self._size = max(1, size)
        self._queue: deque[tuple[int, float]] = deque()

    def record(self, index: int, value: float) -> None:
        """Note a value at a non-decreasing index."""
        while self._queue and self._queue[-1][1] <= value:
            self._queue.pop()
        self._queue.append((index, value))
        while self._queue[0][0] <= index - self._size:
            self._queue.popleft()

    def current(self) -> float:
        """The maximum; 0 without data."""
        return self._queue[0][1] if self._queue else 0.0


def panic_window(stable: float, percentage: float) -> float:
    """Seconds of the panic window: the share of the stable window, rounded to whole seconds, at least one."""
    return max(1.0, float(math.floor(stable * percentage / 100 + 0.5)))
