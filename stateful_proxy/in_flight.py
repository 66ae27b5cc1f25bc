"""How many commands are at the user function, averaged over time: Cloudstate's own signal of load."""

from __future__ import annotations


class InFlight:
    """A count that changes. Times are monotonic seconds."""

    def __init__(self, now: float) -> None:
        self._count, self._seconds, self._at, self._since = 0, 0.0, now, now

    def add(self, commands: int, now: float) -> None:
        """So many more from now on; a negative number when they are back."""
        self._seconds += self._count * (now - self._at)
        self._count, self._at = self._count + commands, now

    def average(self, now: float) -> float:
        """Since this was asked last."""
        self.add(0, now)
        average = self._seconds / max(1e-3, now - self._since)
        self._seconds, self._since = 0.0, now
        return average
