"""Which shards this proxy may serve: claims, drains and losses, following the leader's map and fenced by the journal.

The map says what should be; the token from the journal is what counts. A shard that the map gives away is drained (its entities finish
what is in flight), sealed, and only then gone; a shard that the map gives here is claimed at once. Losing the leader changes nothing: owned
shards stay owned until the journal says otherwise, and a handoff that has begun is finished between the two proxies alone.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from cloudstate_core.journal.api import Claim, Claimed, Outcome, Raced, Seal, Sealed, Stale, Token
from cloudstate_core.shard_map import Entry
from cloudstate_core.transport.api import Transport
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.shard_steps import Duty, Phase, Step, duty_of, next_step

log = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Calls that may wait for shards to be claimed."""
RETRY_FIRST, RETRY_LAST = 0.1, 2.0
"""Seconds until a claim is tried again that the journal could not take: at first, and at most."""
DRAIN_BUDGET = 4.0
"""Seconds that the entities of a shard have to finish; below the time after which the successor claims without a seal."""


_OWNED = Phase.OWNED  # each command asks, and an attribute of an enumeration is slow to read


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


@dataclass(frozen=True, slots=True)
class Unavailable:
    """It should be here, but the journal does not give it."""

    reason: str


Admission = Token | Elsewhere | Waiting | Unowned | Unavailable


class Tenants(Protocol):
    """What lives in shards."""

    def drain_shard(self, shard: int, done: Callable[[], None]) -> None:
        """Finish what is in flight, forget the shard's entities, then `done`."""

    def drop_shard(self, shard: int) -> None:
        """Forget the shard's entities at once; what the journal still has to answer is awaited."""


@dataclass(slots=True, eq=False)
class _Shard:
    entry: Entry = field(default_factory=Entry)
    phase: Phase = Phase.NONE
    token: Token | None = None
    claimed_under: int = -1
    """Generation of the entry under which the token was claimed."""
    armed: int = -1
    """Generation of the entry for which the timer of a forced claim runs."""
    blocked: str = ""
    """Why no claim is tried just now."""
    backoff: float = RETRY_FIRST
    notice: tuple[int, str, int] | None = None
    """(generation, owner, epoch) of a seal that this proxy was told of before the map change that it belongs to."""
    waiting: dict[int, Callable[[], None]] = field(default_factory=dict)


class Ownership:
    """Shards of one proxy process. `member` is '' in a standalone proxy, which owns every shard. `changed` is called on each change."""

    def __init__(self, transport: Transport, batch: JournalBatch, member: str, shard_count: int, changed: Callable[[], None]) -> None:
        self._transport, self._batch, self._member, self._changed = transport, batch, member, changed
        self._shards = [_Shard() for _ in range(shard_count)]
        self._held: dict[int, Token] = {}
        self._callers: dict[int, int] = {}
        self._leaving = self._failing = False
        self.shard_count = shard_count
        self.tenants: Tenants | None = None
        self.announce: Callable[[str, int, int, int], None] | None = None
        """Tells a successor that its shard is sealed: (member, shard, generation of the entry, sealed epoch)."""
        self.generation = 0
        self.claims = self.handoffs = self.losses = 0

    @property
    def owned(self) -> dict[int, Token]:
        """Shards held now, draining ones included."""
        return self._held

    @property
    def settled(self) -> bool:
        """True when no shard is held and no claim or seal is under way."""
        return not self._held and all(shard.phase is Phase.NONE for shard in self._shards)

    # Calls --------------------------------------------------------------------------------------------------------------

    def admit(self, number: int) -> Admission:
        """May a command for this shard run here, now?"""
        shard = self._shards[number]
        if shard.phase is _OWNED:
            assert shard.token is not None
            return shard.token
        entry, duty = shard.entry, duty_of(shard.entry, self._member)
        if duty is Duty.TAKE:
            self._advance(number)
            if shard.blocked:
                return Unavailable(shard.blocked)
            return Unowned() if self._leaving and shard.phase is Phase.NONE else Waiting()
        if duty is Duty.AWAIT:
            return Unavailable(shard.blocked) if shard.blocked else Waiting()
        if duty is Duty.GIVE:
            return Elsewhere(entry.next)
        return Elsewhere(entry.owner) if entry.owner else Unowned()

    def when_ready(self, number: int, call: int, retry: Callable[[], None]) -> bool:
        """Call `retry` once the shard's state has changed; False when too many calls wait already."""
        if len(self._callers) >= MAX_WAITING:
            return False
        self._shards[number].waiting[call] = retry
        self._callers[call] = number
        return True

    def withdraw(self, call: int) -> bool:
        """The caller of a waiting call is gone; False when it does not wait here."""
        number = self._callers.pop(call, None)
        if number is None:
            return False
        self._shards[number].waiting.pop(call, None)
        return True

    def _wake(self, number: int) -> None:
        """Let the calls that wait for a shard try again."""
        shard = self._shards[number]
        waiting, shard.waiting = shard.waiting, {}
        for call in waiting:
            self._callers.pop(call, None)
        for retry in waiting.values():
            retry()

    # The map and the other proxies --------------------------------------------------------------------------------------

    def apply(self, generation: int, entries: Iterable[tuple[int, Entry]]) -> None:
        """Take over what the leader changed; an older generation is ignored."""
        if generation < self.generation:
            return
        self.generation = generation
        for number, entry in entries:
            shard = self._shards[number]
            if entry == shard.entry:
                continue
            shard.entry, shard.blocked, shard.backoff = entry, "", RETRY_FIRST
            self._advance(number)
            self._wake(number)

    def sealed_by(self, owner: str, number: int, since: int, epoch: int) -> None:
        """`owner` tells that it has sealed a shard which the map of generation `since` moves here: claim it, with that epoch only."""
        if 0 <= number < self.shard_count:
            self._shards[number].notice = (since, owner, epoch)
            self._heed(number)

    def _heed(self, number: int) -> None:
        """Act on a seal notice, once the map change it belongs to is here."""
        shard = self._shards[number]
        if shard.notice is None or duty_of(shard.entry, self._member) is not Duty.AWAIT:
            return
        since, owner, epoch = shard.notice
        if (since, owner) == (shard.entry.since, shard.entry.owner):
            shard.notice = None
            self._claim(number, epoch)

    def _advance(self, number: int) -> None:
        """Do what the map asks of this shard next."""
        shard = self._shards[number]
        step = next_step(shard.phase, shard.entry, self._member, shard.claimed_under)
        if step is Step.CLAIM:
            if not shard.blocked:
                self._claim(number)
        elif step is Step.AWAIT:
            self._await(number, shard)
        elif step is Step.DRAIN:
            self._drain(number)
        elif step is Step.LOSE:
            self._lose(number)

    def _await(self, number: int, shard: _Shard) -> None:
        self._heed(number)
        if shard.phase is Phase.NONE and shard.armed != shard.entry.since:
            entry = shard.entry
            shard.armed = entry.since
            self._transport.after(entry.force_after_ms / 1000, lambda: self._force(number, entry))

    def _force(self, number: int, awaited: Entry) -> None:
        """The previous owner had its time to seal; the journal fences it from now on."""
        if self._shards[number].entry == awaited:
            self._claim(number)
            self._batch.flush()

    # Claiming -----------------------------------------------------------------------------------------------------------

    def _claim(self, number: int, expected_epoch: int = -1) -> None:
        shard = self._shards[number]
        if shard.phase is not Phase.NONE or self._leaving:
            return
        shard.phase, shard.claimed_under = Phase.CLAIMING, shard.entry.since
        operation = Claim(number, expected_epoch, shard.entry.since, self._member, secrets.token_bytes(8))
        self._batch.ask(operation, lambda outcome: self._claimed(number, expected_epoch, outcome))

    def _claimed(self, number: int, expected_epoch: int, outcome: Outcome) -> None:
        shard = self._shards[number]
        shard.phase = Phase.NONE
        if isinstance(outcome, Claimed):
            shard.phase, shard.token, shard.backoff = Phase.OWNED, outcome.token, RETRY_FIRST
            self._held[number] = outcome.token
            self._failing = False
            self.claims += 1
            self._changed()
        elif isinstance(outcome, Stale) and not self._member:
            shard.entry = Entry(since=outcome.generation)
        elif shard.claimed_under != shard.entry.since or (isinstance(outcome, Raced) and expected_epoch >= 0):
            shard.armed = -1  # The map has changed meanwhile, or the notice was out of date: go by the map as it is now.
        elif isinstance(outcome, Stale):
            shard.blocked = f"shard {number} was placed by a newer map, of generation {outcome.generation}"
        else:
            self._block(number, shard, f"shard {number} cannot be claimed: {getattr(outcome, 'reason', '') or outcome}")
        self._advance(number)
        self._wake(number)

    def _block(self, number: int, shard: _Shard, reason: str) -> None:
        """The journal could not take the claim: calls are told so, and it is tried again later."""
        if not self._failing:
            log.warning("%s", reason)
        self._failing, shard.blocked = True, reason
        self._transport.after(shard.backoff, lambda: self._unblock(number, reason))
        shard.backoff = min(RETRY_LAST, shard.backoff * 2)

    def _unblock(self, number: int, reason: str) -> None:
        shard = self._shards[number]
        if shard.blocked != reason:
            return
        shard.blocked = ""
        if duty_of(shard.entry, self._member) is Duty.AWAIT:
            self._claim(number)
        else:
            self._advance(number)
        self._batch.flush()

    # Giving up ----------------------------------------------------------------------------------------------------------

    def _drain(self, number: int) -> None:
        shard = self._shards[number]
        token = shard.token
        assert token is not None
        assert self.tenants is not None
        shard.phase = Phase.DRAINING
        self.tenants.drain_shard(number, lambda: self._drained(number, token))
        if shard.phase is Phase.DRAINING:
            self._transport.after(DRAIN_BUDGET, lambda: self._overdue(number, token))

    def _overdue(self, number: int, token: Token) -> None:
        """Commands that the function has not answered by now are refused: nothing of them was stored."""
        shard = self._shards[number]
        if shard.phase is Phase.DRAINING and shard.token is token and self.tenants is not None:
            self.tenants.drop_shard(number)
            self._batch.flush()

    def _drained(self, number: int, token: Token) -> None:
        shard = self._shards[number]
        if shard.phase is Phase.DRAINING and shard.token is token:
            shard.phase = Phase.SEALING
            self._batch.ask(Seal(number, token), lambda outcome: self._sealed(number, outcome))

    def _sealed(self, number: int, outcome: Outcome) -> None:
        """Whatever the answer: the shard is not ours any more, and the next claim settles the rest."""
        shard = self._shards[number]
        self._release(number)
        self.handoffs += 1
        entry = shard.entry
        if isinstance(outcome, Sealed) and entry.owner == self._member and entry.next and self.announce is not None:
            self.announce(entry.next, number, entry.since, outcome.epoch)
        self._advance(number)
        self._wake(number)

    def leave(self) -> None:
        """This process ends: claim nothing any more. The leader moves what is held; `drain_all` gives up what it does not."""
        self._leaving = True

    def drain_all(self) -> None:
        """Give up every shard in good order."""
        self._leaving = True
        for number in list(self._held):
            if self._shards[number].phase is Phase.OWNED:
                self._drain(number)

    def lost(self, number: int, refused: Token, epoch: int) -> None:
        """The journal has fenced this proxy out: it refused a token, since the shard is at `epoch`.

        A lower epoch than the token's is the mark of a store that lost the claim: the shard must be claimed again.
        """
        token = self._shards[number].token
        if token is not None and (token == refused or epoch > token.epoch):
            self._lose(number)

    def _lose(self, number: int) -> None:
        self.losses += 1
        self._release(number)
        if self.tenants is not None:
            self.tenants.drop_shard(number)
        self._advance(number)
        self._wake(number)

    def _release(self, number: int) -> None:
        shard = self._shards[number]
        shard.phase, shard.token = Phase.NONE, None
        self._held.pop(number, None)
        self._changed()
