"""Which owned entities are in memory, and by what they are found: their key, their stream, a call, their shard.

A function may serve few streams at once. Then entities beyond that number are queued: known and found, without a stream, until another one
leaves.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable

from cloudstate_core.journal.api import EntityKey
from stateful_proxy.entity import IDLE, QUEUED, Entity

MOST_QUEUED = 10_000
"""Entities that may wait for a stream."""


class Residents:
    """The entities of one proxy. `places` = how many may have a stream at once; 0 = any number."""

    def __init__(self, places: int) -> None:
        self.by_key: dict[EntityKey, Entity] = {}
        self.by_stream: dict[int, Entity] = {}
        self.by_call: dict[int, Entity] = {}
        """Of callers who still wait."""
        self._by_shard: dict[int, set[EntityKey]] = defaultdict(set)
        self._places = places
        self.queued = deque[Entity]()
        """Those that wait for a place."""
        self._drains: dict[int, Callable[[], None]] = {}

    @property
    def full(self) -> bool:
        """No further entity can be taken in, not even queued."""
        return len(self.queued) >= MOST_QUEUED

    def __contains__(self, entity: Entity) -> bool:
        return self.by_key.get(entity.key) is entity

    def add(self, entity: Entity) -> bool:
        """Take an entity in; False when it has to wait for a place: it is queued then."""
        self.by_key[entity.key] = entity
        self._by_shard[entity.shard].add(entity.key)
        if not self._places or len(self.by_key) - len(self.queued) <= self._places:
            return True
        self.queue(entity)
        return False

    def queue(self, entity: Entity) -> None:
        """An entity waits for a place, behind those that do already."""
        entity.state = QUEUED
        self.queued.append(entity)

    def remove(self, entity: Entity) -> None:
        """An entity leaves memory; who waits for its shard to be empty hears when it is. Does nothing for one that has left."""
        if entity not in self:
            return
        del self.by_key[entity.key]
        if entity.state is QUEUED and entity in self.queued:
            self.queued.remove(entity)
        keys = self._by_shard[entity.shard]
        keys.discard(entity.key)
        if not keys:
            del self._by_shard[entity.shard]
            if (done := self._drains.pop(entity.shard, None)) is not None:
                done()

    def make_room(self) -> Entity | None:
        """The entity that has been idle longest, if others wait for its place."""
        if not self.queued:
            return None
        idle = (e for e in self.by_key.values() if e.state is IDLE and not e.mailbox)
        return min(idle, key=lambda e: e.used, default=None)

    def next_queued(self) -> Entity | None:
        """The entity that has waited longest, if there is a place for it; it waits no more then."""
        if self.queued and len(self.by_key) - len(self.queued) < self._places:
            return self.queued.popleft()
        return None

    def in_shard(self, shard: int) -> list[Entity]:
        """The entities of a shard."""
        return [self.by_key[key] for key in self._by_shard.get(shard, ())]

    def when_empty(self, shard: int, done: Callable[[], None]) -> None:
        """Hear when a shard has no entity in memory any more, which may be now."""
        if shard in self._by_shard:
            self._drains[shard] = done
        else:
            done()

    def counts(self) -> dict[int, int]:
        """How many entities are in memory, by shard."""
        return {shard: len(keys) for shard, keys in self._by_shard.items()}
