"""How much work each shard makes at the user function: what the leader balances by."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Protocol

SMOOTHING = 0.3
"""Weight of the newest figure in the average."""
OF_AN_ENTITY = 1e-5
"""Load that an entity in memory stands for, idle or not."""


class Busy(Protocol):
    """An entity whose command is at the function since `started`."""

    shard: int
    started: float


class ShardLoad:
    """Handler seconds by shard."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = defaultdict(float)
        self._smoothed: dict[int, float] = {}
        self._at = time.monotonic()
        self.function_concurrency = 0.0
        """Commands at the user function, on average between the last two calls of `take`."""

    def add(self, shard: int, seconds: float) -> None:
        """A command has been at the function for so long."""
        self._seconds[shard] += seconds

    def take(self, now: float, busy: Iterable[Busy], residents: Mapping[int, int]) -> dict[int, float]:
        """Handler seconds per second of each shard, smoothed over calls of this method, plus a little for each entity in memory.

        `busy` count up to now, and from now on again; `residents` = entities in memory by shard.
        """
        elapsed = max(1e-3, now - self._at)
        self._at = now
        for entity in busy:
            self._seconds[entity.shard] += now - entity.started
            entity.started = now
        fresh = {shard: seconds / elapsed for shard, seconds in self._seconds.items()}
        self.function_concurrency = sum(fresh.values())
        self._seconds.clear()
        shards = fresh.keys() | self._smoothed.keys() | residents.keys()
        smoothed = {s: (1 - SMOOTHING) * self._smoothed.get(s, 0.0) + SMOOTHING * fresh.get(s, 0.0) for s in shards}
        self._smoothed = {s: value for s, value in smoothed.items() if value > 1e-9}
        return {s: self._smoothed.get(s, 0.0) + OF_AN_ENTITY * residents.get(s, 0) for s in shards}
