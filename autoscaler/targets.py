"""Per-pod targets, and how many activators and scraped pods go with them (pure; formulas of Knative Serving)."""

from __future__ import annotations

import math
from collections.abc import Sequence


def metric_target(
    container_concurrency: float = 0,
    annotation: float | None = None,
    utilization: float = 0.7,
    default: float = 100,
    rps: bool = False,
) -> tuple[float, float]:
    """`(target, total)` of a metric: total = what a pod takes, target = total × utilization, at least 0.01."""
    total = default if rps else (container_concurrency or default)
    if annotation is not None:
        total = annotation if rps or not container_concurrency else min(annotation, container_concurrency)
    return max(0.01, round(total * utilization, 9)), total


def activators_needed(pods: int, total: float, burst_capacity: float, capacity: float) -> int:
    """Activators to put in the path of a revision, at least two."""
    if burst_capacity == 0:
        return 2
    return max(2, math.ceil((pods * total + max(burst_capacity, 0)) / capacity))


def initial_excess(initial_scale: int, total: float, burst_capacity: float) -> int:
    """Excess burst capacity before the first decision."""
    if burst_capacity in (-1, 0):
        return int(burst_capacity)
    return int(initial_scale * total - burst_capacity)


def pods_to_sample(pods: int) -> int:
    """How many of a revision's pods to ask, for a margin of error of about a quarter at 95 %."""
    if pods <= 3:
        return pods
    factor = 1.96**2 * 100 / 25
    return math.ceil(pods * factor / (pods + factor - 1))


def pod_slice(pods: int, activators: int, index: int) -> tuple[int, int, int]:
    """`(begin, end, remnants)`: the pods of a sorted list that activator `index` owns, and how many are left over after equal slices."""
    if pods < activators:
        own = index % pods if pods else 0
        return own, own + 1, 0
    size = pods // activators
    return index * size, (index + 1) * size, pods - activators * size


def pods_of_activator(pods: Sequence[str], activators: int, index: int) -> list[str]:
    """The pods that an activator owns: its slice, and its share of the remnants, one each to the lowest indices."""
    begin, end, remnants = pod_slice(len(pods), activators, index)
    own = list(pods[begin:end])
    if index < remnants:
        own.append(pods[len(pods) - remnants + index])
    return own


def activator_capacity(concurrency: int, backends: int, activators: int, index: int, trackers: int) -> int:
    """Requests that one activator may have in flight; for unlimited pods 1 = open, 0 = closed."""
    activators = max(1, activators)
    if concurrency == 0:
        return 1 if max(backends, trackers) > 0 else 0
    if trackers > 0:
        names = [str(n) for n in range(trackers)]
        owned = names if activators == 1 or trackers == 1 else pods_of_activator(names, activators, index)
        return concurrency * len(owned)
    return 0 if backends <= 0 else max(1, concurrency * backends // activators)


def through_activator(wanted: int, excess: float, inactive: bool) -> bool:
    """Knative's routing mode: True = Proxy (through activators), False = Serve."""
    return wanted == 0 or excess < 0 or (wanted == -1 and inactive)
