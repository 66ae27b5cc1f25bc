"""Keys that need work: each at most once in the queue, never worked on twice at the same time, failing ones later and later.

A key that is added while it is worked on comes again afterwards, so that no change is missed. Pure but for the waiting: time comes from `clock`.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections.abc import Callable

BACKOFF_FIRST, BACKOFF_LAST = 0.05, 60.0


class WorkQueue:
    """A queue of keys for one control loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._ready: dict[str, None] = {}
        self._working: set[str] = set()
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._later: list[tuple[float, str]] = []
        self._due: dict[str, float] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        """Keys that could be worked on now."""
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Nothing is ready and nobody works; delayed keys may wait."""
        return not self._ready and not self._working

    def add(self, key: str) -> None:
        """Work on this key as soon as somebody is free."""
        if key in self._working:
            self._again.add(key)
        else:
            self._ready[key] = None
        self._changed.set()

    def add_after(self, key: str, seconds: float) -> None:
        """Work on this key in a while; the earliest wish counts."""
        due = self._clock() + seconds
        if due < self._due.get(key, float("inf")):
            self._due[key] = due
            heapq.heappush(self._later, (due, key))
            self._changed.set()

    async def take(self) -> str:
        """The next key; `done` must follow."""
        while True:
            self._promote()
            if self._ready:
                key = next(iter(self._ready))
                del self._ready[key]
                self._working.add(key)
                return key
            self._changed.clear()
            wait = self._later[0][0] - self._clock() if self._later else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    def done(self, key: str, failed: bool = False, least: float = 0.0) -> None:
        """Work on a key has ended; a failed one comes again after its own growing delay, which is `least` seconds or more."""
        self._working.discard(key)
        if failed:
            count = self._failures.get(key, 0)
            self._failures[key] = count + 1
            self.add_after(key, max(least, min(BACKOFF_LAST, BACKOFF_FIRST * 2 ** min(count, 20))))
        else:
            self._failures.pop(key, None)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def _promote(self) -> None:
        """Make ready what is due."""
        now = self._clock()
        while self._later and self._later[0][0] <= now:
            due, key = heapq.heappop(self._later)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
