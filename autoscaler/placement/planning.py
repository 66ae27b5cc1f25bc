"""Which member should have each shard: quotas split the shards between revisions, the allocator within each (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoscaler.placement.allocator import allocate
from autoscaler.placement.quota import permutation, quotas, split

IDLE_LOAD = 0.0005
"""Weight of a shard without load, in handler seconds per second: idle shards spread too, and noise among nearly idle ones is no reason to move."""
IDLE_SHARE = 0.05
"""The same as a share of the mean load."""
ORPHANS_ONLY = 1e9
"""A tolerance with which nothing moves that has a member."""


def plan(
    service: str,
    holder: Sequence[str],
    revision_of: Mapping[str, str],
    traffic: Mapping[str, float],
    load: Mapping[int, float],
    tolerance: float,
) -> dict[int, str]:
    """Shard → member for every shard. `holder` names the present member of each shard ('' = none); `revision_of` has the members
    that may be given shards (none: an empty plan); `traffic` the percentage of each revision, empty = one pool.
    """
    if not revision_of:
        return {}
    weight = weights(load, len(holder))
    target: dict[int, str] = {}
    for pods, shards in _pools(service, holder, revision_of, traffic):
        current = {str(shard): holder[shard] for shard in shards}
        placed = allocate([str(shard) for shard in shards], pods, current, weight, tolerance)
        target.update((int(shard), pod) for shard, pod in placed.items())
    return target


def _pools(
    service: str, holder: Sequence[str], revision_of: Mapping[str, str], traffic: Mapping[str, float]
) -> list[tuple[list[str], list[int]]]:
    """Members and the shards that they share. A revision without a ready member takes no part: its shards stay where they can be served."""
    members: dict[str, list[str]] = {}
    for member, revision in revision_of.items():
        members.setdefault(revision, []).append(member)
    shares = {revision: traffic[revision] for revision in sorted(traffic) if revision in members and traffic[revision] > 0}
    if not shares:
        return [(list(revision_of), list(range(len(holder))))]
    order = permutation(service, len(holder))
    at = {shard: revision_of.get(member, "") for shard, member in enumerate(holder)}
    sides = split(order, at, quotas(shares, len(holder)))
    return [(members[revision], [s for s in range(len(holder)) if sides[s] == revision]) for revision in shares]


def weights(load: Mapping[int, float], shard_count: int) -> dict[str, float]:
    """Weight of each shard by its measured load; all alike while nothing is known."""
    idle = max(IDLE_LOAD, IDLE_SHARE * sum(load.values()) / shard_count)
    return {str(shard): load.get(shard, 0.0) + idle for shard in range(shard_count)}
