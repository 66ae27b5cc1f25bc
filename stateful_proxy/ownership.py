"""Which shards this proxy may serve: claims, drains and losses, following the leader's map and fenced by the journal.

The map says what should be; the token from the journal is what counts. A shard that the map gives away is drained (its entities finish
what is in flight), sealed, and only then gone; a shard that the map gives here is claimed at once. Losing the leader changes nothing: owned
shards stay owned until the journal says otherwise.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from cloudstate_core.journal.api import Claim, Claimed, Outcome, Raced, Seal, Stale, Token
from cloudstate_core.shard_map import Entry
from cloudstate_core.transport.api import Transport
from stateful_proxy.journal_batch import JournalBatch

log = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Calls that may wait for shards to be claimed."""
RETRY = 0.1
"""Seconds until a claim is tried again that the journal could not take."""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another member has the shard."""

    member: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """The shard is on its way here."""


@dataclass(frozen=True, slots=True)
class Unowned:
    """Nobody has it, as far as this proxy knows."""


Admission = Token | Elsewhere | Waiting | Unowned


class Tenants(Protocol):
    """What lives in shards."""

    def drain_shard(self, shard: int, done: Callable[[], None]) -> None:
        """Finish what is in flight, forget the shard's entities, then `done`."""

    def drop_shard(self, shard: int) -> None:
        """Forget the shard's entities at once."""


class Ownership:
    """Shards of one proxy process. `member` is '' in a standalone proxy, which owns every shard. `changed` is called on each change."""

    def __init__(self, transport: Transport, batch: JournalBatch, member: str, shard_count: int, changed: Callable[[], None]) -> None:
        self._transport, self._batch, self._member, self._changed = transport, batch, member, changed
        self._entries = [Entry() if member else Entry(owner="")] * shard_count
        self._tokens: dict[int, Token] = {}
        self._claiming: set[int] = set()
        self._draining: set[int] = set()
        self._waiting: dict[int, deque[Callable[[], None]]] = {}
        self._waiting_count = 0
        self.shard_count = shard_count
        self.tenants: Tenants | None = None
        self.generation = 0
        self.claims = self.handoffs = self.losses = 0

    @property
    def owned(self) -> dict[int, Token]:
        """Shards held now, draining ones included."""
        return self._tokens

    def admit(self, shard: int) -> Admission:
        """May a command for this shard run here, now?"""
        token = self._tokens.get(shard)
        if token is not None and shard not in self._draining:
            return token
        if not self._member:
            self._claim(shard)
            return Waiting()
        entry = self._entries[shard]
        if token is not None or (entry.owner == self._member and entry.next):
            return Elsewhere(entry.next) if entry.next else Waiting() if entry.owner == self._member else Unowned()
        if entry.owner == self._member:
            self._claim(shard)
            return Waiting()
        if entry.next == self._member:
            return Waiting()
        return Elsewhere(entry.owner) if entry.owner else Unowned()

    def when_ready(self, shard: int, retry: Callable[[], None]) -> bool:
        """Call `retry` once the shard's state has changed; False when too many calls wait already."""
        if self._waiting_count >= MAX_WAITING:
            return False
        self._waiting.setdefault(shard, deque()).append(retry)
        self._waiting_count += 1
        return True

    def apply(self, generation: int, entries: Iterable[tuple[int, Entry]]) -> None:
        """Take over what the leader changed; an older generation is ignored."""
        if generation < self.generation:
            return
        self.generation = generation
        for shard, entry in entries:
            self._entries[shard] = entry
            self._follow(shard, entry)
            self._wake(shard)

    def _follow(self, shard: int, entry: Entry) -> None:
        held = shard in self._tokens
        if entry.owner == self._member:
            if entry.next:
                if held:
                    self._drain(shard)
            elif held:
                self._draining.discard(shard)
            else:
                self._claim(shard)
        elif held:
            if entry.free:
                self._drain(shard)
            else:
                self._lose(shard)
        elif entry.next == self._member:
            self._transport.after(entry.force_after_ms / 1000, lambda: self._force(shard, entry))

    # Claiming -----------------------------------------------------------------------------------------------------------

    def _claim(self, shard: int) -> None:
        if shard in self._claiming or shard in self._tokens:
            return
        self._claiming.add(shard)
        operation = Claim(shard, -1, self._entries[shard].since, self._member, secrets.token_bytes(8))
        self._batch.ask(operation, lambda outcome: self._claimed(shard, outcome))

    def _claimed(self, shard: int, outcome: Outcome) -> None:
        self._claiming.discard(shard)
        if isinstance(outcome, Claimed):
            self._tokens[shard] = outcome.token
            self.claims += 1
            entry = self._entries[shard]
            self._changed()
            if self._member and entry.owner != self._member and entry.next != self._member:
                self._drain(shard)
        elif not isinstance(outcome, Stale | Raced):
            log.warning("shard %d: claim not taken: %s", shard, outcome)
            self._transport.after(RETRY, lambda: self._claim_again(shard))
            return
        self._wake(shard)

    def _claim_again(self, shard: int) -> None:
        if not self._member or self._entries[shard].owner == self._member:
            self._claim(shard)
            self._batch.flush()

    def _force(self, shard: int, awaited: Entry) -> None:
        """The previous owner had its time to seal; the journal fences it from now on."""
        if self._entries[shard] is awaited and shard not in self._tokens:
            self._claim(shard)
            self._batch.flush()

    def _wake(self, shard: int) -> None:
        """Let the calls that wait for a shard try again."""
        waiting = self._waiting.pop(shard, None)
        if waiting:
            self._waiting_count -= len(waiting)
            for retry in waiting:
                retry()

    # Giving up ----------------------------------------------------------------------------------------------------------

    def _drain(self, shard: int) -> None:
        if shard in self._draining or self.tenants is None:
            return
        self._draining.add(shard)
        self.tenants.drain_shard(shard, lambda: self._drained(shard))

    def _drained(self, shard: int) -> None:
        token = self._tokens.get(shard)
        if token is None or shard not in self._draining:
            return
        self._batch.ask(Seal(shard, token), lambda outcome: self._sealed(shard, outcome))

    def _sealed(self, shard: int, outcome: Outcome) -> None:
        """Whatever the answer: the shard is not ours any more, and the next claim settles the rest."""
        self._draining.discard(shard)
        self._tokens.pop(shard, None)
        self.handoffs += 1
        self._changed()
        self._wake(shard)
        entry = self._entries[shard]
        if entry.owner == self._member and not entry.next and self._member:
            self._claim(shard)

    def drain_all(self) -> None:
        """Give up every shard in good order: this process ends."""
        for shard in list(self._tokens):
            self._drain(shard)

    def lost(self, shard: int, epoch: int) -> None:
        """The journal has fenced this proxy out."""
        token = self._tokens.get(shard)
        if token is not None and epoch > token.epoch:
            self._lose(shard)

    def _lose(self, shard: int) -> None:
        self.losses += 1
        self._tokens.pop(shard, None)
        self._draining.discard(shard)
        if self.tenants is not None:
            self.tenants.drop_shard(shard)
        self._changed()
        self._wake(shard)
