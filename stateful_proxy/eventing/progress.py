"""How far one consumer has come in the log of one shard, and what it does next (pure; the driver is `event_log`).

Guarantees: events are given out one at a time, in the order of the log; the next one only when the one before was handled; the cursor is saved
up to what was handled and never further. So after any crash each event has been handled at least once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from cloudstate_core.journal.api import LogEntry

SAVE_EVENTS, SAVE_INTERVAL = 20, 1.0
"""The cursor is saved after so many events, and after so many seconds when there were fewer."""
REST_FIRST, REST_LAST, REST_SPREAD = 3.0, 30.0, 0.2
"""Seconds of rest after a failure: the first, the longest; and by which part either is varied, so that shards do not come back together."""


@dataclass(frozen=True, slots=True)
class ReadCursor:
    """Ask where to begin."""


@dataclass(frozen=True, slots=True)
class ReadPage:
    """Ask for the events beyond an offset."""

    after: int


@dataclass(frozen=True, slots=True)
class Deliver:
    """Give an event to the function."""

    entry: LogEntry


@dataclass(frozen=True, slots=True)
class Save:
    """Store the cursor."""

    offset: int


@dataclass(frozen=True, slots=True)
class Rest:
    """Call `rested` after so many seconds."""

    seconds: float


Action = ReadCursor | ReadPage | Deliver | Save | Rest


class Progress:
    """One consumer in one shard. Each method tells what is to be done now; there is one question, delivery or rest at a time."""

    def __init__(self) -> None:
        self._begun = self._busy = self._more = False
        self._waiting: deque[LogEntry] = deque()
        self._handled, self._unsaved, self._saved_at = 0, 0, 0.0
        self._failures = 0

    def begin(self) -> list[Action]:
        """The shard is ours."""
        self._busy = True
        return [ReadCursor()]

    def cursor_is(self, offset: int, now: float) -> list[Action]:
        """Answer to ReadCursor."""
        self._begun, self._more, self._failures = True, True, 0
        self._handled, self._saved_at = offset, now
        return self._go_on()

    def woken(self) -> list[Action]:
        """There are events that were not there before."""
        self._more = True
        return [] if self._busy else self._go_on()

    def page_is(self, entries: Sequence[LogEntry], full: bool) -> list[Action]:
        """Answer to ReadPage; not `full`: there was no more."""
        self._waiting.extend(entries)
        self._more = self._more or full
        return self._go_on()

    def was_handled(self, now: float) -> list[Action]:
        """The delivery succeeded."""
        self._handled, self._failures = self._waiting.popleft().offset, 0
        self._unsaved += 1
        return [*self._save_if_due(now), *self._go_on()]

    def has_failed(self, chance: float) -> list[Action]:
        """A delivery failed, or the journal did not answer; `chance` is drawn from 0 to 1."""
        rest = min(REST_LAST, REST_FIRST * 2.0 ** min(self._failures, 10))
        self._failures, self._more = self._failures + 1, True
        return [Rest(rest * (1 + REST_SPREAD * (2 * chance - 1)))]

    def rested(self) -> list[Action]:
        """Go on where it failed."""
        return self._go_on() if self._begun else [ReadCursor()]

    def tick(self, now: float) -> list[Action]:
        """To be called about once a second."""
        return self._save_if_due(now)

    def leave(self) -> list[Action]:
        """The shard goes to somebody else, who begins at the cursor."""
        return [self._save()] if self._unsaved else []

    def save_failed(self) -> None:
        """The cursor may not be stored; the next save makes up for it."""
        self._unsaved += 1

    def _go_on(self) -> list[Action]:
        """The next event, or the next page, or nothing until woken."""
        self._busy = True
        if self._waiting:
            return [Deliver(self._waiting[0])]
        if self._more:
            self._more = False
            return [ReadPage(self._handled)]
        self._busy = False
        return []

    def _save_if_due(self, now: float) -> list[Action]:
        if not self._unsaved or (self._unsaved < SAVE_EVENTS and now - self._saved_at < SAVE_INTERVAL):
            return []
        self._saved_at = now
        return [self._save()]

    def _save(self) -> Save:
        self._unsaved = 0
        return Save(self._handled)
