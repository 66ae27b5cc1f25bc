"""Shards moved and balance reached when pods are added, with skewed load; the floor is what the hottest shard allows."""

from __future__ import annotations

import random
import statistics
import time

from autoscaler.placement.allocator import allocate
from kn_cloudstate.results import Row

SHARDS, ENTITIES, SEEDS = 256, 50_000, 5


def loads(seed: int, skew: float = 0.8) -> dict[str, float]:
    """Load of each shard when entity number n carries 1/n^skew."""
    chosen, load = random.Random(seed), {str(shard): 1e-9 for shard in range(SHARDS)}
    for rank in range(1, ENTITIES + 1):
        load[str(chosen.randrange(SHARDS))] += rank**-skew
    return load


def grow(pods: int, seed: int) -> tuple[float, float]:
    """Share of the load that moves when one pod is added, and max ÷ mean afterwards."""
    load = loads(seed)
    names = [f"pod-{n}" for n in range(pods + 1)]
    before = allocate(list(load), names[:-1], {}, load)
    after = allocate(list(load), names, before, load)
    total = sum(load.values())
    moved = sum(load[shard] for shard in load if before[shard] != after[shard]) / total
    held = dict.fromkeys(names, 0.0)
    for shard, pod in after.items():
        held[pod] += load[shard]
    return moved, max(held.values()) * len(names) / total


def plan_time(shards: int, pods: int) -> float:
    """Milliseconds to plan from nothing."""
    load = {str(n): 1.0 + n % 7 for n in range(shards)}
    begun = time.perf_counter()
    allocate(list(load), [f"pod-{n}" for n in range(pods)], {}, load)
    return (time.perf_counter() - begun) * 1000


def rows() -> list[Row]:
    """4 → 5 and 10 → 11 pods, and the time of a large plan."""
    found = []
    for pods in (4, 10):
        figures = [grow(pods, seed) for seed in range(SEEDS)]
        moved, peak = statistics.mean(f[0] for f in figures), statistics.mean(f[1] for f in figures)
        name = f"{pods} to {pods + 1} pods"
        found.append(Row(f"load moved, {name}", moved, "of 1", bar=1.1 / (pods + 1)))
        found.append(Row(f"max/mean load, {name}", peak, "of 1", bar=1.10))
    found.append(Row("plan 1,024 shards, 200 pods", plan_time(1024, 200), "ms", bar=50))
    return found
