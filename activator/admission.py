"""Calls that wait: for a pod to come, for a shard's owner, or for room at a pod with a concurrency limit (pure).

First come, first served within a queue; a queue that is full refuses; a call that has waited too long is given back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


@dataclass(slots=True)
class _Waiting(Generic[T]):
    call: T
    since: float


class HoldQueue(Generic[T]):
    """A bounded queue of calls in order of arrival."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: deque[_Waiting[T]] = deque()
        self._gone: set[T] = set()

    def __len__(self) -> int:
        return len(self._queue) - len(self._gone)

    def push(self, call: T, since: float) -> bool:
        """Hold a call that has waited since `since`; False when the queue is full."""
        if len(self) >= self._limit:
            return False
        self._queue.append(_Waiting(call, since))
        return True

    def discard(self, call: T) -> None:
        """The caller has gone."""
        self._gone.add(call)

    def release(self) -> list[T]:
        """All calls, oldest first; the queue is empty afterwards."""
        released = [waiting.call for waiting in self._queue if waiting.call not in self._gone]
        self._queue.clear()
        self._gone.clear()
        return released

    def expired(self, now: float, limit: float) -> list[T]:
        """Take out the calls that have waited longer than `limit` seconds."""
        late = [w.call for w in self._queue if now - w.since >= limit and w.call not in self._gone]
        if late:
            self._queue = deque(w for w in self._queue if now - w.since < limit)
            self._gone &= {w.call for w in self._queue}
        return late


class PodSlots(Generic[T]):
    """Calls in flight at one pod, and those that wait for room there."""

    def __init__(self) -> None:
        self.in_flight = 0
        self._waiting: deque[T] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def take(self, limit: int) -> bool:
        """Take a slot; False when the pod has no room (`limit` 0: always room)."""
        if limit and self.in_flight >= limit:
            return False
        self.in_flight += 1
        return True

    def wait(self, call: T) -> None:
        """Wait for room."""
        self._waiting.append(call)

    def discard(self, call: T) -> None:
        """The caller has gone."""
        if call in self._waiting:
            self._waiting.remove(call)

    def give_back(self, limit: int) -> list[T]:
        """A call has ended; the calls that may try again now."""
        self.in_flight -= 1
        room = len(self._waiting) if not limit else max(0, limit - self.in_flight)
        return [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]

    def release(self) -> list[T]:
        """Every waiting call: the pod is gone or the map has changed."""
        released = list(self._waiting)
        self._waiting.clear()
        return released
