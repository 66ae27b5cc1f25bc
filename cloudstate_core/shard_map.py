"""Who owns which shard, as the leader wrote it: one map per service, the same value on every component.

An entry is STABLE (owner, no next), MOVING (owner gives up, next may claim once sealed or forced) or FREE (neither).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One shard. `owner` and `next` are member ids, '' = nobody; `since` = generation at which the entry last changed."""

    owner: str = ""
    next: str = ""
    since: int = 0
    force_after_ms: int = 0

    @property
    def moving(self) -> bool:
        """True while `owner` drains towards `next`."""
        return bool(self.next)

    @property
    def free(self) -> bool:
        """True when nobody owns it."""
        return not self.owner and not self.next


class ShardMap(msgspec.Struct, frozen=True):
    """The map of one service ('<namespace>/<name>'); every change makes a new value with a higher generation."""

    service: str
    journal_id: str
    generation: int
    entries: tuple[Entry, ...]

    @property
    def shard_count(self) -> int:
        """Number of shards; fixed for the life of the service."""
        return len(self.entries)

    def owned_by(self, member: str) -> list[int]:
        """Shards whose current owner is `member`, moving ones included."""
        return [shard for shard, entry in enumerate(self.entries) if entry.owner == member]

    def changed(self, changes: Mapping[int, Entry]) -> ShardMap:
        """A new map of the next generation with `changes` put in, each stamped with that generation; self if there are none."""
        if not changes:
            return self
        generation = self.generation + 1
        entries = list(self.entries)
        for shard, entry in changes.items():
            entries[shard] = msgspec.structs.replace(entry, since=generation)
        return ShardMap(self.service, self.journal_id, generation, tuple(entries))

    def since(self, generation: int) -> Iterable[tuple[int, Entry]]:
        """The entries changed after `generation`, with their shard."""
        return [(shard, entry) for shard, entry in enumerate(self.entries) if entry.since > generation]


def free_map(service: str, journal_id: str, shard_count: int, generation: int = 0) -> ShardMap:
    """A map in which nobody owns anything."""
    return ShardMap(service, journal_id, generation, (Entry(),) * shard_count)
