"""Calls that wait: for a pod to come, for a shard's owner, or for room at a pod with a concurrency limit (pure).

Guarantees: first come, first served within a queue; all queues of a service together hold no more than its `Room`; a pod never has more
calls in flight than its limit; a call leaves its queue exactly once (released, expired or discarded).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(slots=True)
class Room:
    """How many calls of one service may wait, and how many do."""

    limit: int
    taken: int = 0


class WaitQueue(Generic[T]):
    """Calls in order of arrival; several queues may share one room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._since: dict[T, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def __contains__(self, call: T) -> bool:
        return call in self._since

    def push(self, call: T, since: float) -> bool:
        """Let a call wait that began at `since`; False when there is no room. A call waits once at a time."""
        if self._room.taken >= self._room.limit:
            return False
        assert call not in self._since, f"call {call} waits already"
        self._since[call] = since
        self._room.taken += 1
        return True

    def discard(self, call: T) -> None:
        """A call waits no longer; a no-op when it does not."""
        if self._since.pop(call, None) is not None:
            self._room.taken -= 1

    @property
    def oldest(self) -> float:
        """When the first call in the queue began; infinity when none waits."""
        return next(iter(self._since.values()), math.inf)

    def calls(self) -> Iterable[tuple[T, float]]:
        """The calls in order, each with when it began."""
        return self._since.items()

    def pop(self) -> T:
        """Take the first call out. StopIteration when none waits."""
        call = next(iter(self._since))
        self.discard(call)
        return call

    def release(self) -> list[T]:
        """Take all calls out, oldest first."""
        released = list(self._since)
        self._room.taken -= len(released)
        self._since.clear()
        return released

    def expired(self, now: float, limit: float) -> list[T]:
        """Take out the calls that began `limit` seconds ago or earlier."""
        late = [call for call, since in self._since.items() if now - since >= limit]
        for call in late:
            self.discard(call)
        return late


class PodSlots(Generic[T]):
    """Calls in flight at one pod, and those of its shards that wait for room there."""

    def __init__(self, room: Room) -> None:
        self.in_flight = 0
        self.waiting: WaitQueue[T] = WaitQueue(room)

    def take(self, limit: int) -> bool:
        """Take a slot; False when the pod has none free (`limit` 0: always one)."""
        if limit and self.in_flight >= limit:
            return False
        self.in_flight += 1
        return True

    def give_back(self) -> None:
        """A call has ended."""
        assert self.in_flight > 0, "more slots were given back than taken"
        self.in_flight -= 1

    def next(self, limit: int, anywhere: WaitQueue[T], fits: Callable[[T], bool]) -> T | None:
        """Take out the call to send now: the older of this pod's first and the first of `anywhere` that `fits` here.

        None without a free slot or such a call; otherwise the caller must take the slot, so that asking again comes to an end.
        """
        if limit and self.in_flight >= limit:
            return None
        for call, since in anywhere.calls():
            if since >= self.waiting.oldest:
                break
            if fits(call):
                anywhere.discard(call)
                return call
        return self.waiting.pop() if len(self.waiting) else None


class Desk(Generic[T]):
    """Everything of one service that waits or is in flight."""

    def __init__(self, limit: int) -> None:
        self.room = Room(limit)
        self.held: WaitQueue[T] = WaitQueue(self.room)
        """For a pod or an owner."""
        self.anywhere: WaitQueue[T] = WaitQueue(self.room)
        """For room at whichever pod has some first."""
        self.pods: dict[str, PodSlots[T]] = {}

    def slots(self, member: str) -> PodSlots[T]:
        """The slots of a member, made when first needed."""
        found = self.pods.get(member)
        if found is None:
            found = self.pods[member] = PodSlots(self.room)
        return found

    def load(self, member: str) -> int:
        """Calls in flight or waiting at a member."""
        found = self.pods.get(member)
        return found.in_flight + len(found.waiting) if found is not None else 0

    @property
    def idle(self) -> bool:
        """True when nothing waits and nothing is in flight."""
        return self.room.taken == 0 and not any(slots.in_flight for slots in self.pods.values())

    def release(self) -> list[T]:
        """Take out every waiting call, the held ones first."""
        released = self.held.release() + self.anywhere.release()
        for slots in self.pods.values():
            released += slots.waiting.release()
        return released

    def forget_idle(self, keep: frozenset[str]) -> None:
        """Forget members that are gone and have nothing in flight."""
        for member in [m for m, s in self.pods.items() if m not in keep and not s.in_flight and not len(s.waiting)]:
            del self.pods[member]
