"""The allocator: balance and movement by the figures that are promised, stickiness, and an end to every plan."""

from __future__ import annotations

import math
import random
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.placement.allocator import TOLERANCE, allocate


def skewed(seed: int, shards: int = 256, entities: int = 20_000, zipf: float = 0.8) -> dict[str, float]:
    """Load of shards when entity number n carries 1/n^zipf."""
    rnd, load = random.Random(seed), {f"s{n}": 1e-9 for n in range(shards)}
    for rank in range(1, entities + 1):
        load[f"s{rnd.randrange(shards)}"] += rank**-zipf
    total = sum(load.values())
    return {shard: value / total for shard, value in load.items()}


def peak(assignment: dict[str, str], pods: list[str], load: dict[str, float]) -> float:
    held = dict.fromkeys(pods, 0.0)
    for shard, pod in assignment.items():
        held[pod] += load[shard]
    return max(held.values()) * len(pods) / sum(held.values())


@pytest.mark.parametrize("pods", [4, 10])
@pytest.mark.parametrize("zipf", [0.0, 0.8])
def test_one_more_pod_moves_its_share_and_balances(pods: int, zipf: float) -> None:
    for seed in range(3):
        load, names = skewed(seed, zipf=zipf), [f"p{n}" for n in range(pods + 1)]
        before = allocate(list(load), names[:-1], {}, load)
        after = allocate(list(load), names, before, load)
        moved = sum(load[shard] for shard in load if before[shard] != after[shard])
        assert moved <= 1.1 / (pods + 1)
        assert peak(after, names, load) <= 1.10
        assert all(after[shard] == names[-1] for shard in load if before[shard] != after[shard])


def test_a_lost_pod_moves_its_own_shards_and_little_else() -> None:
    load, names = skewed(1), [f"p{n}" for n in range(10)]
    before = allocate(list(load), names, {}, load)
    after = allocate(list(load), names[:-1], before, load)
    moved = [shard for shard in load if before[shard] != after[shard]]
    lost = [shard for shard in load if before[shard] == names[-1]]
    assert len(moved) <= len(lost) + 0.05 * len(load)
    assert peak(after, names[:-1], load) <= 1.10


def test_drifting_load_moves_seldom() -> None:
    rnd, load, names = random.Random(7), skewed(7), [f"p{n}" for n in range(10)]
    swing, seen = dict.fromkeys(load, 0.0), dict(load)
    now, moved, peaks = allocate(list(load), names, {}, seen), 0, []
    for _ in range(100):
        true = {}
        for shard, value in load.items():
            swing[shard] = 0.95 * swing[shard] + rnd.gauss(0, 0.10)
            true[shard] = value * math.exp(swing[shard])
            seen[shard] += 0.3 * (true[shard] * max(0.05, rnd.gauss(1, 0.2)) - seen[shard])
        before, now = now, allocate(list(load), names, now, seen)
        moved += sum(now[shard] != before[shard] for shard in load)
        peaks.append(peak(now, names, true))
    assert moved / 100 <= 0.5
    assert sum(peaks) / len(peaks) <= 1.10


def test_nothing_moves_when_nothing_changed() -> None:
    load, names = skewed(3), ["a", "b", "c"]
    first = allocate(list(load), names, {}, load)
    assert allocate(list(load), names, first, load) == first


def test_a_pod_with_one_indivisible_shard_keeps_it() -> None:
    load = {"hot": 10.0, "x": 1.0, "y": 1.0}
    current = {"hot": "a", "x": "b", "y": "b"}
    assert allocate(list(load), ["a", "b"], current, load) == current


def test_equal_shards_that_cannot_be_split_evenly_are_not_swapped_for_ever() -> None:
    load = {f"s{n}": 0.015 for n in range(64)}
    names = [f"p{n}" for n in range(5)]
    counts = Counter(allocate(list(load), names, {}, load).values())
    assert max(counts.values()) - min(counts.values()) <= 1


def test_without_a_pod_there_is_no_plan() -> None:
    with pytest.raises(ValueError, match="no pod"):
        allocate(["s"], [], {}, {"s": 1.0})


@given(
    st.lists(st.one_of(st.sampled_from([0.1, 0.3, 1.0]), st.floats(0, 100)), min_size=1, max_size=40),
    st.integers(1, 9),
    st.randoms(use_true_random=False),
)
def test_every_plan_ends_whole_and_no_worse(weights: list[float], count: int, rnd: random.Random) -> None:
    load = {f"s{n}": weight for n, weight in enumerate(weights)}
    names = [f"p{n}" for n in range(count)]
    current = {shard: rnd.choice([*names, "gone"]) for shard in load}
    first = allocate(list(load), names, {s: p for s, p in current.items() if p != "gone"}, load)
    assert set(first) == set(load)
    assert set(first.values()) <= set(names)
    again = allocate(list(load), names, first, load)
    if sum(weights) > 0:
        limit = max(1 + TOLERANCE, peak(first, names, load))
        assert peak(again, names, load) <= limit + 1e-6


def test_a_large_plan_is_quick() -> None:
    load, names = {f"s{n}": 1.0 + n % 7 for n in range(1024)}, [f"p{n}" for n in range(200)]
    current = allocate(list(load), names, {}, load)
    begun = time.thread_time()  # of this thread alone: others are at work too
    allocate(list(load), [*names, "new"], current, load)
    assert time.thread_time() - begun < 0.5
