"""Concurrency as an activator reports it: time-weighted averages, and the first request of an idle revision at once (pure).

The message that follows an immediate one leaves out what was told already, so that nothing counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Report:
    """Average requests in flight, and requests begun, since the last report."""

    concurrency: float
    requests: float


class ConcurrencyReporter:
    """Counts the requests of one revision."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._began = 0
        self._area = 0.0
        self._changed = self._reported = 0.0
        self._told_early = False
        self.idle = True
        """Nothing is in flight, and that was told."""

    def _advance(self, now: float) -> None:
        self._area += self.in_flight * (now - self._changed)
        self._changed = now

    def begin(self, now: float) -> Report | None:
        """A request begins; a report to send at once if the revision was idle."""
        if self.idle:
            self.idle, self._told_early = False, True
            self._area, self._began, self.in_flight = 0.0, 1, 1
            self._changed = self._reported = now
            return Report(1, 1)
        self._advance(now)
        self._began += 1
        self.in_flight += 1
        return None

    def end(self, now: float) -> None:
        """A request ends."""
        self._advance(now)
        self.in_flight -= 1

    def report(self, now: float) -> Report | None:
        """The periodic report; None when there is nothing to tell."""
        if self.idle:
            return None
        self._advance(now)
        elapsed = now - self._reported
        average = self._area / elapsed if elapsed > 0 else float(self.in_flight)
        early = 1 if self._told_early else 0
        found = Report(max(0.0, average - early), self._began - early)
        if self.in_flight == 0 and self._began == 0:
            self.idle = True
        self._area, self._began, self._told_early, self._reported = 0.0, 0, False, now
        return found
