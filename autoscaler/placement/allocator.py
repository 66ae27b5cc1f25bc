"""The target assignment of shards to pods: sticky, by measured load, with as little movement as balance allows (pure).

Homeless shards go, heaviest first, to the least loaded pod. Then shards move one at a time from the most to the least loaded pod, while some
pod is further from the mean than the tolerance (a pod that came empty is filled to half of it). A shard that alone is more than a pod's
share stays where it is: moving it would only move the problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

TOLERANCE = 0.10
LEAST_GAIN = 1e-6
"""A move must narrow a gap by more than this part of the hot pod's load: rounding could swap equal shards to and fro for ever."""


def allocate(
    shards: Sequence[str], pods: Sequence[str], current: Mapping[str, str], load: Mapping[str, float], tolerance: float = TOLERANCE
) -> dict[str, str]:
    """Shard → pod for every shard; `current` may be partial or name pods that are gone; `load` is a weight per shard.

    ValueError without pods.
    """
    if not pods:
        raise ValueError("shards cannot be placed: there is no pod")
    plan = _Plan(pods, load)
    homeless = []
    for shard in shards:
        owner = current.get(shard)
        if owner in plan.held:
            plan.put(shard, owner)
        else:
            homeless.append(shard)
    empty = {pod for pod in pods if not plan.held[pod]}
    for shard in sorted(homeless, key=lambda name: (-load[name], name)):
        plan.put(shard, min(pods, key=lambda pod: (plan.total[pod], len(plan.held[pod]))))
    plan.balance(tolerance, empty)
    return {shard: pod for pod, held in plan.held.items() for shard in held}


class _Plan:
    """An assignment in the making, with the load of each pod."""

    def __init__(self, pods: Sequence[str], load: Mapping[str, float]) -> None:
        self.held: dict[str, set[str]] = {pod: set() for pod in pods}
        self.total = dict.fromkeys(pods, 0.0)
        self._load = load

    def put(self, shard: str, pod: str) -> None:
        self.held[pod].add(shard)
        self.total[pod] += self._load[shard]

    def balance(self, tolerance: float, empty: set[str]) -> None:
        """Move shards from hot to cold pods until all are near the mean, or nothing more can be gained."""
        mean = sum(self.total.values()) / len(self.total)
        high, givers = mean * (1 + tolerance), set(self.total)
        while givers:
            hot = max(givers, key=lambda pod: (self.total[pod], pod))
            cold = min(self.total, key=lambda pod: (self.total[pod], pod))
            low = mean * (1 - (tolerance / 2 if cold in empty else tolerance))
            if self.total[hot] <= high and self.total[cold] >= low:
                return
            shard = self._best(hot, cold, mean, high)
            if shard is None:
                givers.discard(hot)
                continue
            self.held[hot].discard(shard)
            self.total[hot] -= self._load[shard]
            self.put(shard, cold)

    def _best(self, hot: str, cold: str, mean: float, high: float) -> str | None:
        """The shard whose move helps most: near the excess of one pod and the lack of the other, making no new hot pod."""
        gap = self.total[hot] - self.total[cold]
        limit = gap - LEAST_GAIN * self.total[hot]
        wanted = min(self.total[hot] - mean, mean - self.total[cold])
        if wanted <= 0:
            wanted = gap / 2
        best: str | None = None
        distance = 0.0
        for shard in sorted(self.held[hot]):
            weight = self._load[shard]
            if not 0 < weight < limit or self.total[cold] + weight > max(high, self.total[hot] - weight):
                continue
            if best is None or abs(weight - wanted) < distance:
                best, distance = shard, abs(weight - wanted)
        return best
