"""How many shards may move, and how soon again: moves cost callers time, so they are rationed by what they are for (pure state).

| kind | shards in a round | at the same time, for each member | rest between moves of a shard |
|---|---|---|---|
| drain | no limit: the pod waits | `max_drain_moves` | none |
| fill (a new pod gets its first share) | no limit: the pod is there to help | `max_concurrent_moves` | none |
| roll-out (between revisions) | a tenth | `max_concurrent_moves` | none |
| balance | a tenth, its own | `max_concurrent_moves` | `min_dwell` |
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from cloudstate_core.shard_map import Entry


class Move(enum.Enum):
    """What a move is for."""

    DRAIN = "drain"
    FILL = "fill"
    ROLLOUT = "rollout"
    BALANCE = "balance"


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """How eagerly shards move."""

    tolerance: float = 0.10
    """Accepted distance from the mean load."""
    max_concurrent_moves: int = 4
    """Moves at the same time, for each pod that gives or takes."""
    min_dwell: float = 60.0
    """Seconds a shard stays before it moves again for balance alone."""
    round_seconds: float = 10.0
    """Length of a round: at most a tenth of the shards moves in one, and the balance is looked at once."""
    max_drain_moves: int = 32
    """Moves at the same time out of a pod that leaves."""


class MoveBudget:
    """What may still move. `open_tick` first, then `take` for each wished move, in order of urgency."""

    def __init__(self, settings: PlacementSettings, shard_count: int) -> None:
        self._settings = settings
        self._per_round = max(1, shard_count // 10)
        self._begun: dict[Move, deque[float]] = {Move.ROLLOUT: deque(), Move.BALANCE: deque()}
        self._moved_at: dict[int, float] = {}
        self._busy: Counter[str] = Counter()

    def reconfigure(self, settings: PlacementSettings) -> None:
        """Ration by other settings from now on; what has begun counts on."""
        self._settings = settings

    def open_tick(self, now: float, entries: Iterable[Entry]) -> None:
        """Count the moves under way and forget rounds that are over."""
        self._busy = Counter(name for entry in entries if entry.moving for name in (entry.owner, entry.next))
        for begun in self._begun.values():
            while begun and now - begun[0] >= self._settings.round_seconds:
                begun.popleft()

    def take(self, now: float, move: Move, shard: int, giver: str, taker: str) -> bool:
        """True, and counted, when this move may begin now."""
        if not self._has_room(move, giver, taker):
            return False
        begun = self._begun.get(move)
        if begun is not None and len(begun) >= self._per_round:
            return False
        if move is Move.BALANCE and now - self._moved_at.get(shard, -self._settings.min_dwell) < self._settings.min_dwell:
            return False
        if begun is not None:
            begun.append(now)
        self._moved_at[shard] = now
        self._busy[giver] += 1
        self._busy[taker] += 1
        return True

    def _has_room(self, move: Move, giver: str, taker: str) -> bool:
        if move is Move.DRAIN:
            return self._busy[giver] < self._settings.max_drain_moves
        return max(self._busy[giver], self._busy[taker]) < self._settings.max_concurrent_moves
