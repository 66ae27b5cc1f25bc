"""How many shards each revision gets, and which ones: an entity lives wholly on one side of a traffic split (pure).

Quotas follow the traffic percentages by largest remainder; every revision with traffic gets at least one shard. The shards of a service have a
fixed order of their own; older revisions hold its beginning, newer ones its end. Raising a percentage therefore only adds entities to
the newer revision, and lowering it takes back the same ones in reverse; unchanged percentages move nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from hashlib import blake2b


def quotas(percentages: Mapping[str, float], shard_count: int) -> dict[str, int]:
    """Shards per revision, summing to `shard_count`; percentages are relative to their sum, revisions without traffic get none.

    ValueError when no revision has traffic. With fewer shards than revisions the largest percentages come first.
    """
    live = {name: percent for name, percent in percentages.items() if percent > 0}
    if not live:
        raise ValueError("shards cannot be shared out: no revision has traffic")
    by_weight = sorted(live, key=lambda name: -live[name])
    if len(live) >= shard_count:
        return {name: int(name in by_weight[:shard_count]) for name in percentages}
    total = sum(live.values())
    exact = {name: percent / total * shard_count for name, percent in live.items()}
    result = {name: max(1, int(share)) for name, share in exact.items()}
    owed = shard_count - sum(result.values())
    for name in sorted(live, key=lambda name: result[name] - exact[name])[: max(0, owed)]:
        result[name] += 1
    while sum(result.values()) > shard_count:
        largest = max((name for name in by_weight if result[name] > 1), key=lambda name: result[name] - exact[name])
        result[largest] -= 1
    return {name: result.get(name, 0) for name in percentages}


@functools.lru_cache(maxsize=256)
def permutation(service: str, shard_count: int) -> tuple[int, ...]:
    """The fixed order of a service's shards."""
    return tuple(sorted(range(shard_count), key=lambda shard: blake2b(f"{service}\0{shard}".encode(), digest_size=8).digest()))


def split(order: Sequence[int], holder: Mapping[int, str], quota: Mapping[str, int]) -> dict[int, str]:
    """Shard → revision for every shard in `order`, with as few changes of `holder` as `quota` allows.

    `quota` names the revisions oldest first and sums to the number of shards; `holder` may be partial or name revisions without a quota.
    """
    held: dict[str, list[int]] = {revision: [] for revision in quota}
    free: list[int] = []
    for shard in order:
        held.get(holder.get(shard, ""), free).append(shard)
    for revision in quota:
        lack = max(0, quota[revision] - len(held[revision]))
        held[revision].extend(free[:lack])
        free = free[lack:]
    rank = {shard: n for n, shard in enumerate(order)}
    revisions = list(quota)
    for giver in revisions:
        held[giver].sort(key=rank.__getitem__)
        for taker in revisions:
            count = min(len(held[giver]) - quota[giver], quota[taker] - len(held[taker]))
            if count <= 0:
                continue
            newer = revisions.index(taker) > revisions.index(giver)
            given = held[giver][-count:] if newer else held[giver][:count]
            held[giver] = held[giver][:-count] if newer else held[giver][count:]
            held[taker].extend(given)
    return {shard: revision for revision, mine in held.items() for shard in mine}
