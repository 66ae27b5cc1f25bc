"""One tick of the autoscaler for 10,000 revisions: record and decide."""

from __future__ import annotations

import statistics
import time

from autoscaler.revision_scaler import RevisionScaler
from autoscaler.settings import effective
from kn_cloudstate.results import Row

REVISIONS, TICKS = 10_000, 20


def all_busy() -> float:
    """Milliseconds of a tick, median, when every revision has a demand, another one at each tick."""
    scalers = [RevisionScaler(effective({}, None)) for _ in range(REVISIONS)]
    took = []
    for tick in range(TICKS):
        now = 2.0 * tick
        begun = time.perf_counter()
        for number, scaler in enumerate(scalers):
            scaler.record(now, (number + tick) % 250, 0.0)
            scaler.decide(now, ready=1 + number % 4, replicas=1 + number % 4)
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


def mostly_at_zero() -> float:
    """Milliseconds of a tick, median, when one revision of ten has a demand and the others are at zero."""
    scalers = [RevisionScaler(effective({}, None)) for _ in range(REVISIONS)]
    took = []
    for tick in range(TICKS):
        now = 2.0 * tick
        begun = time.perf_counter()
        for number, scaler in enumerate(scalers):
            pods = 0 if number % 10 else 1 + number % 4
            scaler.record(now, (number + tick) % 250 if pods else 0.0, 0.0)
            scaler.decide(now, ready=pods, replicas=pods)
        took.append((time.perf_counter() - begun) * 1000)
    return statistics.median(took)


def rows() -> list[Row]:
    """With a demand everywhere, and as a cluster mostly is."""
    return [
        Row("autoscaler tick, 10,000 revisions", all_busy(), "ms", bar=20),
        Row("autoscaler tick, 10,000 revisions, 9 of 10 at zero", mostly_at_zero(), "ms", bar=10),
    ]
