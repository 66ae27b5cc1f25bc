"""Averages and maxima over sliding windows of buckets, as Knative's autoscaler computes them. Time is always an argument.

A demand is averaged over two windows that end now, the stable one and a shorter recent one (panic). Both read the same buckets, and neither is
summed anew: recording and averaging cost the same for any length. Buckets are counted in floats, which CPython adds and compares fast as long as
they meet no integers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from array import array
from collections import deque
from itertools import islice

HELD = 5.0
"""Buckets that a value stands for without being measured again: more than a tick, less than an outage."""
RESIDUE = 1e-9
"""A weighted average below this is what rounding has left of nothing."""


class Window(ABC):
    """What all windows share: values that are measured now and then become one value for each bucket, so that the time between two
    measurements does not change the average. Of several in a bucket it is the largest; a bucket without one repeats the value before, for
    `held` buckets at most.
    """

    __slots__ = ("_granularity", "_held", "_last", "_value")

    def __init__(self, granularity: float, held: float) -> None:
        self._granularity, self._held = granularity, held
        self._last, self._value = -math.inf, 0.0

    def record(self, now: float, value: float) -> None:
        """Add a value to the bucket of `now`."""
        self.put(now // self._granularity, value)

    def sample(self, now: float, value: float) -> None:
        """The value at `now` of something that goes on."""
        bucket = now // self._granularity
        gap = bucket - self._last
        if 0.0 < gap <= self._held:
            self.append(bucket, gap, value, self._value)
        elif gap:
            self.put(bucket, value)
        elif value > self._value:
            self.put(bucket, value - self._value)
        else:
            return
        self._value = value

    def fresh(self, now: float) -> bool:
        """True when something was measured lately."""
        return now // self._granularity - self._last <= HELD

    @abstractmethod
    def put(self, bucket: float, value: float) -> None:
        """Add a value to a bucket; those between it and the last one were not measured."""

    @abstractmethod
    def append(self, bucket: float, gap: float, value: float, held: float) -> None:
        """Give a value to a bucket that is `gap` after the last one, and `held` to those between."""

    @abstractmethod
    def averages(self, now: float) -> tuple[float, float]:
        """The averages of the window and of the recent one at `now`; 0 without data in them."""


class LinearWindow(Window):
    """Each bucket counts alike; a missing one counts as zero since the first write, a trailing gap does not count.

    A write after a gap of a whole window starts that window anew, and a write older than the window is dropped.
    Kept is a ring of running totals: a sum is the difference of two of them, and exactly 0 for zeros. Position -1 precedes 0, as in any list.
    A year at a thousand requests in flight makes an average wrong by some millionths of one request.
    """

    __slots__ = ("_at", "_count", "_full", "_recent", "_recent_count", "_size", "_totals")

    def __init__(self, window: float, granularity: float = 1.0, recent: float | None = None, held: float = HELD) -> None:
        """Lengths in seconds, of the window, of a bucket, and of the shorter window over the same buckets."""
        super().__init__(granularity, held)
        self._size, self._recent = _buckets(window, granularity), _buckets(recent or window, granularity)
        self._begin()

    def _begin(self) -> None:
        self._totals = array("d", bytes(8 * (self._size + 1)))
        self._at = 0
        self._count = self._recent_count = 0.0
        self._full = False

    def put(self, bucket: float, value: float) -> None:
        """Add a value to a bucket."""
        gap = bucket - self._last
        if gap < 1:
            self._put_late(int(-gap), value)
        else:
            self._leave_out(gap)
            self.append(bucket, 1.0, value, 0.0)

    def append(self, bucket: float, gap: float, value: float, held: float) -> None:
        """Give a value to a bucket after the last one."""
        if not self._full:
            self._grow(gap)
        at, size, totals = self._at, self._size, self._totals
        total = totals[at]
        while gap > 1.0:
            at = at + 1 if at < size else 0
            totals[at] = total = total + held
            gap -= 1.0
        self._at = at = at + 1 if at < size else 0
        totals[at] = total = total + value
        self._last = bucket

    def _grow(self, buckets: float) -> None:
        """More buckets have been measured since the windows began."""
        self._count += buckets
        if self._count > self._size:
            self._count = float(self._size)
        self._recent_count += buckets
        if self._recent_count > self._recent:
            self._recent_count = float(self._recent)
        self._full = self._count == self._size and self._recent_count == self._recent

    def _leave_out(self, gap: float) -> None:
        """The buckets in a gap were not measured: zeros, or a new beginning after a whole window."""
        if gap >= self._size:
            self._begin()
            return
        if gap > 1:
            self.append(self._last + gap - 1, gap - 1, 0.0, 0.0)
        if gap >= self._recent:
            self._recent_count, self._full = 0.0, False

    def _put_late(self, back: int, value: float) -> None:
        """Add to the bucket `back` before the last one; the windows begin there if they began later."""
        if back >= self._size:
            return
        for position in range(self._at - back, self._at + 1):
            self._totals[position] += value
        self._count = max(self._count, back + 1.0)
        if back < self._recent:
            self._recent_count = max(self._recent_count, back + 1.0)

    def average(self, now: float) -> float:
        """The average of the window at `now`; 0 without data in it."""
        return self.averages(now)[0]

    def averages(self, now: float) -> tuple[float, float]:
        """The averages of the window and of the recent one at `now`."""
        gap = now // self._granularity - self._last
        if gap > 0.0:
            return self._averages_after(gap)
        at, totals = self._at, self._totals
        total = totals[at]
        return (total - totals[at - self._size]) / self._count, (total - totals[at - self._recent]) / self._recent_count

    def _averages_after(self, gap: float) -> tuple[float, float]:
        """The averages when the last write was `gap` buckets ago."""
        return self._average(min(self._count, self._size - gap)), self._average(min(self._recent_count, self._recent - gap))

    def _average(self, buckets: float) -> float:
        total = self._totals[self._at]
        return (total - self._totals[self._at - int(buckets)]) / buckets if buckets > 0 else 0.0


def _buckets(window: float, granularity: float) -> int:
    return max(1, math.ceil(window / granularity))


def smoothing_factor(buckets: int) -> float:
    """α of the exponential weights: max(1 − (1 − 0.9999)^(1/n), 0.2), n buckets."""
    return max(1 - math.pow(1 - 0.9999, 1 / buckets), 0.2)


class WeightedWindow(Window):
    """Average with weights α(1−α)^i, newest first. A new bucket makes the average smaller by (1−α), takes what leaves away and adds its own."""

    __slots__ = ("_average", "_decay", "_recent", "_values", "alpha")

    def __init__(self, window: float, granularity: float = 1.0, recent: float | None = None, held: float = HELD) -> None:
        """As of a LinearWindow."""
        super().__init__(granularity, held)
        size = _buckets(window, granularity)
        self._values = deque([0.0] * size, maxlen=size)
        self._average = 0.0
        self.alpha = smoothing_factor(size)
        self._decay = 1 - self.alpha
        self._recent = WeightedWindow(recent, granularity) if recent is not None else None

    def put(self, bucket: float, value: float) -> None:
        """Add a value to a bucket."""
        if self._recent is not None:
            self._recent.put(bucket, value)
        gap = bucket - self._last
        if gap >= len(self._values):
            self._values.extend([0.0] * len(self._values))
            self._average = 0.0
        elif gap > 0:
            self._push_all(gap, 0.0, 0.0)
        back = int(max(0.0, -gap))
        if back < len(self._values):
            self._values[-1 - back] += value
            self._average += value * self.alpha * float(self._decay**back)
            self._last = max(self._last, bucket)

    def append(self, bucket: float, gap: float, value: float, held: float) -> None:
        """Give a value to a bucket after the last one."""
        if self._recent is not None:
            self._recent.append(bucket, gap, value, held)
        self._push_all(gap, value, held)
        self._last = bucket

    def _push_all(self, buckets: float, value: float, held: float) -> None:
        for _ in range(int(buckets) - 1):
            self._push(held)
        self._push(value)

    def _push(self, value: float) -> None:
        leaving = self._values[0] * self.alpha * float(self._decay ** len(self._values))
        self._values.append(value)
        self._average = max(0.0, self._average * self._decay - leaving + value * self.alpha)

    def average(self, now: float) -> float:
        """The weighted average at `now`; 0 without data in the window."""
        gap = max(0.0, now // self._granularity - self._last)
        if gap >= len(self._values):
            return 0.0
        average = self._average
        for value in islice(self._values, int(gap)):
            average = average * self._decay - value * self.alpha * float(self._decay ** len(self._values))
        return average if average > RESIDUE else 0.0

    def averages(self, now: float) -> tuple[float, float]:
        """The averages of the window and of the recent one at `now`."""
        return self.average(now), self._recent.average(now) if self._recent is not None else self.average(now)


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
