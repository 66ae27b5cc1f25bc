"""Who is alive: beats, suspicion and proof of death, with the brakes that keep a slow or cut-off leader from believing itself (pure state).

Nothing here is needed for safety: the journal fences. A wrong suspicion costs the activation of some entities, a missed one costs time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb

SUSPECT_AFTER = 3.0
"""Seconds of silence after which a member is taken for dead."""
EXPECTED_TICK = 0.2
"""Seconds between two looks of a leader that keeps up."""
LAG_LIMIT = 0.5
"""A leader later than this may not have read what members sent meanwhile: its lag is added to their deadlines."""
CROWD = 1 / 3
"""When more than this share of several members falls silent together, the leader suspects itself first."""


@dataclass(slots=True)
class MemberState:
    """One proxy process as the leader knows it."""

    member: pb.Member
    heard: float
    """When its last beat was received."""
    beats: int = 0
    generation: int = 0
    """Of the map that it has applied."""
    owned: dict[int, int] = field(default_factory=dict)
    """Shard → epoch, as it reported."""
    draining: bool = False
    journal_ok: bool = True
    function_concurrency: float = 0.0
    """Commands at its user function, on average over its last beat."""


class Membership:
    """The members of one service. All times are seconds on one monotonic clock of the caller."""

    def __init__(self, awaited: Iterable[str] = ()) -> None:
        """`awaited` = owners in a map of an earlier leader; they keep their shards for a while so that they can join again."""
        self.states: dict[str, MemberState] = {}
        self._awaited = set(awaited)
        self._awaited_until: float | None = None
        self._looked_at: float | None = None
        self._held_since: float | None = None

    def hello(self, now: float, member: pb.Member) -> None:
        """A process introduces itself; an earlier process of the same pod has thereby ended."""
        for name, state in list(self.states.items()):
            if state.member.pod == member.pod and name != member.member_id:
                self.gone(name)
        self._awaited.discard(member.member_id)
        known = self.states.get(member.member_id)
        if known is None:
            self.states[member.member_id] = MemberState(member, now)
        else:
            known.heard, known.member = max(now, known.heard), member

    def heartbeat(self, now: float, name: str, beat: pb.Heartbeat) -> bool:
        """A member is alive and tells what it holds; False for a stranger."""
        state = self.states.get(name)
        if state is None:
            return False
        state.heard, state.beats, state.generation, state.journal_ok = now, state.beats + 1, beat.generation, beat.journal_ok
        state.draining = state.draining or beat.draining
        state.function_concurrency = beat.function_concurrency
        state.owned = {shard.shard: shard.epoch for shard in beat.owned}
        return True

    def gone(self, name: str) -> None:
        """Proof that a member's process has ended."""
        self.states.pop(name, None)
        self._awaited.discard(name)

    def suspect(self, now: float) -> list[str]:
        """Forget members that have been silent too long; their names."""
        if self._awaited_until is None:
            self._awaited_until = now + SUSPECT_AFTER
        elif now >= self._awaited_until:
            self._awaited.clear()
        self._add_lag(now)
        silent = [name for name, state in self.states.items() if now - state.heard > SUSPECT_AFTER]
        if self._hold(now, len(silent)):
            return []
        for name in silent:
            self.gone(name)
        return silent

    def _add_lag(self, now: float) -> None:
        lag = 0.0 if self._looked_at is None else now - self._looked_at - EXPECTED_TICK
        self._looked_at = now
        if lag > LAG_LIMIT:
            for state in self.states.values():
                # Never beyond now: one that was heard meanwhile has lost nothing, nor one that joins a service which rested until then.
                state.heard = min(now, state.heard + lag)

    def _hold(self, now: float, silent: int) -> bool:
        """Too many at once: hold until the rest has been heard for as long again; hold on while nobody is heard at all."""
        if silent < 2 or silent <= CROWD * len(self.states):
            self._held_since = None
            return False
        if self._held_since is None:
            self._held_since = now
        return silent == len(self.states) or now - self._held_since < SUSPECT_AFTER

    # Views --------------------------------------------------------------------------------------------------------------

    def exists(self, name: str) -> bool:
        """Alive as far as the leader knows, or expected back from an earlier leader's map."""
        return name in self.states or name in self._awaited

    @property
    def outage(self) -> bool:
        """Most members cannot reach the journal: the store is at fault, not they."""
        return 2 * sum(not state.journal_ok for state in self.states.values()) > len(self.states)

    def leaving(self) -> set[str]:
        """Members whose shards must move out: draining, or cut off from the journal while most others reach it."""
        outage = self.outage
        return {name for name, state in self.states.items() if state.draining or not (state.journal_ok or outage)}

    def ready(self, revision: str | None = None) -> list[str]:
        """Members that may be given shards, of one revision or of all."""
        leaving = self.leaving()
        return [
            name
            for name, state in self.states.items()
            if state.beats > 0 and name not in leaving and revision in (None, state.member.revision)
        ]

    def arriving(self) -> bool:
        """True while a member has introduced itself but not beaten yet."""
        return any(state.beats == 0 and not state.draining for state in self.states.values())

    def holders(self) -> dict[int, str]:
        """Shard → a living member that says it holds it."""
        return {shard: name for name, state in self.states.items() for shard in state.owned}
