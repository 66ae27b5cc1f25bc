"""What a proxy says about its way to the journal, while shards come and go."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from cloudstate_core.journal.api import Claim, Claimed, Done, Operation, Outcome, Refused, Token, Unknown
from cloudstate_core.journal.memory import MemoryJournal
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.journal_probe import PATIENCE, JournalProbe

SHARDS = 2


class Way:
    """A journal that fails with what is `wrong`, and what a proxy holds there. Time goes on by a second with each question."""

    def __init__(self) -> None:
        self.journal = MemoryJournal("test/service", SHARDS)
        self.wrong: Outcome | None = None
        self.silent = False
        self.asked = 0
        self.owned: dict[int, Token] = {}
        self.losses: list[int] = []
        self.batch = JournalBatch(None, self)  # type: ignore[arg-type]
        self.probe = JournalProbe(self.batch, self)  # type: ignore[arg-type]
        self.now = 0.0

    def submit(self, operations: Sequence[Operation], done: Done) -> None:
        self.asked += len(operations)
        if self.wrong is not None:
            done([self.wrong] * len(operations))
        elif not self.silent:
            self.journal.submit(operations, done)

    def lost(self, shard: int, refused: Token, epoch: int) -> None:
        self.losses.append(shard)

    def claim(self, shard: int, by: str = "a") -> None:
        (outcome,) = self._claim(shard, by)
        assert isinstance(outcome, Claimed)
        if by == "a":
            self.owned[shard] = outcome.token

    def _claim(self, shard: int, by: str) -> list[Outcome]:
        outcomes: list[Outcome] = []
        self.journal.submit([Claim(shard, -1, 1, by, by.encode() * 8)], outcomes.extend)
        return outcomes

    def second(self) -> bool:
        """A second passes, in which the journal is asked; what the leader is told then."""
        self.now += 1.0
        self.probe.ask(self.now)
        self.batch.flush()
        return self.probe.ok


def test_it_is_well_while_the_journal_answers_and_not_while_it_fails() -> None:
    way = Way()
    assert (way.second(), way.asked) == (True, 0), "nothing to ask"
    way.claim(0)
    assert way.second()
    way.wrong = Unknown("away")
    assert not way.second()
    way.wrong = None
    assert way.second()
    way.silent = True
    assert [way.second() for _ in range(1 + int(PATIENCE))] == [True] * int(PATIENCE) + [False]


@pytest.mark.parametrize("wrong", [Unknown("away"), Refused("away")])
def test_a_proxy_that_gave_its_shards_up_since_the_journal_was_away_is_well_again_once_it_is_back(wrong: Outcome) -> None:
    """The leader gives no shard to a proxy that cannot reach the journal: without a question it would never hear better of it."""
    way = Way()
    way.claim(0)
    way.wrong = wrong
    assert not way.second()
    way.owned.clear()
    way.claim(0, by="b")
    assert not way.second()
    way.wrong = None
    assert way.second()
    asked = way.asked
    assert (way.second(), way.asked) == (True, asked), "nothing more to ask"


def test_a_shard_that_the_journal_gave_to_another_is_told_as_lost() -> None:
    way = Way()
    way.claim(1)
    way.claim(1, by="b")
    assert way.second()
    assert way.losses == [1]
