"""One tick of the autoscaler for 10,000 revisions: record and decide."""

from __future__ import annotations

import statistics
import time

from autoscaler.revision_scaler import RevisionScaler
from autoscaler.settings import effective
from kn_cloudstate.results import Row

REVISIONS, TICKS = 10_000, 20


def rows() -> list[Row]:
    """Milliseconds of a tick, median."""
    scalers = [RevisionScaler(effective({}, None)) for _ in range(REVISIONS)]
    took = []
    for tick in range(TICKS):
        now = 2.0 * tick
        begun = time.perf_counter()
        for number, scaler in enumerate(scalers):
            scaler.record(now, (number + tick) % 250, 0.0)
            scaler.decide(now, ready=1 + number % 4, replicas=1 + number % 4)
        took.append((time.perf_counter() - begun) * 1000)
    return [Row("autoscaler tick, 10,000 revisions", statistics.median(took), "ms", bar=20)]
