"""A grow-only set in one replicated record, as replicas keep it: each adds members of its own by swapping, whatever becomes of its questions."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from cloudstate_core.journal.api import EntityKey, Journal, Read, Refused, Stored, Swap, Swapped, Unknown, Value
from tests.journals import PATIENCE, run

SET = EntityKey("sets", "one")


def members_of(stored: Any) -> frozenset[bytes]:
    """The members of the record."""
    assert isinstance(stored, Stored), stored
    return frozenset(stored.value.data.split()) if stored.value is not None else frozenset()


class Adder:
    """One replica."""

    def __init__(self, journal: Journal, name: str) -> None:
        self.journal, self.name = journal, name
        self.added: list[bytes] = []
        """What was told to be in the set."""
        self.conflicts = self.doubts = self.answered = 0
        self._version, self._members = 0, frozenset[bytes]()

    def work(self, additions: int) -> None:
        """Add so many members, one after the other."""
        for number in range(additions):
            mine = f"{self.name}-{number}".encode()
            while mine not in self._members:
                self._add(mine)
            self.added.append(mine)

    def _add(self, mine: bytes) -> None:
        wanted = self._members | {mine}
        (outcome,) = run(self.journal, Swap(1, SET, self._version, Value("set", b" ".join(sorted(wanted)))))
        self.answered += isinstance(outcome, Swapped | Stored)
        if isinstance(outcome, Swapped):
            assert outcome.version == self._version + 1
            self._version, self._members = outcome.version, wanted
        elif isinstance(outcome, Unknown | Refused):
            self.doubts += isinstance(outcome, Unknown)
            self._read()
        else:
            self.conflicts += 1
            self._take(outcome)

    def _read(self) -> None:
        """See what became of a swap. One that lands even later is noticed by the next: it changes the version."""
        (outcome,) = run(self.journal, Read(1, SET))
        if isinstance(outcome, Unknown | Refused):
            time.sleep(0.005)  # as whoever finds a store gone
        else:
            self._take(outcome)

    def _take(self, outcome: Any) -> None:
        assert outcome.version >= self._version
        self._version, self._members = outcome.version, members_of(outcome)


def add_at_once(journals: Sequence[Journal], additions: int) -> tuple[list[Adder], list[threading.Thread]]:
    """Let a replica of each journal add members; they are at it."""
    adders = [Adder(journal, f"r{number}") for number, journal in enumerate(journals)]
    threads = [threading.Thread(target=adder.work, args=(additions,)) for adder in adders]
    for thread in threads:
        thread.start()
    return adders, threads


def check_set(journal: Journal, adders: Sequence[Adder], additions: int) -> None:
    """Everything that was added is there, and they have met."""
    (stored,) = run(journal, Read(1, SET))
    assert members_of(stored) == {member for adder in adders for member in adder.added}
    assert [len(adder.added) for adder in adders] == [additions] * len(adders)
    assert sum(adder.conflicts for adder in adders) > 0, "they never met, which proves nothing"


def join(threads: Sequence[threading.Thread]) -> None:
    """Wait for all of them."""
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
