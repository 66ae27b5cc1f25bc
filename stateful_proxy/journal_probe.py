"""Asks the journal now and then whether it is there, so that the leader moves shards away from a proxy that cannot reach it.

The question is a `check` of a shard that this proxy holds: the answer also tells a proxy that was paused that its shard is gone.
"""

from __future__ import annotations

from cloudstate_core.journal.api import Check, Fenced, Outcome, Refused, Token, Unknown
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.ownership import Ownership

PATIENCE = 2.0
"""Seconds without an answer after which the journal counts as out of reach."""


class JournalProbe:
    """Whether the journal answers. A proxy that holds no shard has nothing to ask and counts as well connected, unless the journal had failed it
    before: the leader gives it no shard then, so it asks after the one that it held last until there is an answer, whatever it says."""

    def __init__(self, batch: JournalBatch, ownership: Ownership) -> None:
        self._batch, self._ownership = batch, ownership
        self._asked_at: float | None = None
        self._next = 0
        self._last: tuple[int, Token] | None = None
        """The shard that was asked after last, and the token that was held then."""
        self._answered_well = True
        self._overdue = False

    @property
    def ok(self) -> bool:
        """False when the last question failed or is overdue."""
        return self._answered_well and not self._overdue

    def ask(self, now: float) -> None:
        """Once a second or so; the caller flushes the batch."""
        if self._asked_at is not None:
            self._overdue = now - self._asked_at >= PATIENCE
            return
        if owned := self._ownership.owned:
            shards = list(owned)
            self._next += 1
            shard = shards[self._next % len(shards)]
            self._last = shard, owned[shard]
        elif self._answered_well:
            return
        if self._last is not None:
            shard, token = self._last
            self._asked_at = now
            self._batch.ask(Check(shard, token), lambda outcome: self._answered(shard, token, outcome))

    def _answered(self, shard: int, token: Token, outcome: Outcome) -> None:
        self._asked_at, self._overdue = None, False
        self._answered_well = not isinstance(outcome, Refused | Unknown)
        if isinstance(outcome, Fenced):
            self._ownership.lost(shard, token, outcome.epoch)
