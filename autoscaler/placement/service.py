"""The placement of one service: members come, beat and go; `tick` turns that into the next map.

Revoke before assign: a planned move is MOVING(owner, next) until the owner reports that it holds the shard no longer, then STABLE(next). A
dead owner is replaced at once. Safety does not depend on any of this: the journal fences whoever is wrong about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from autoscaler.placement.allocator import allocate
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import Entry, ShardMap, free_map

SUSPECT_AFTER = 3.0
"""Seconds of silence after which a member is taken for dead."""
LAG_LIMIT = 0.5
"""A leader that was itself late by more than this gives every member that time on top."""
FORCE_AFTER_MS = 5_000


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """How eagerly shards move."""

    tolerance: float = 0.10
    """Accepted distance from the mean load."""
    max_concurrent_moves: int = 4
    """Moves at the same time, for each pod that gives or takes."""
    min_dwell: float = 60.0
    """Seconds a shard stays before it moves again for balance alone."""
    rebalance_every: float = 1.0
    """Seconds between looks at the balance."""


@dataclass(slots=True)
class MemberState:
    """One proxy process as the leader knows it."""

    member: pb.Member
    heard: float
    beats: int = 0
    generation: int = 0
    owned: dict[int, int] = field(default_factory=dict)
    """Shard → epoch, as it reported."""
    draining: bool = False
    journal_ok: bool = True

    @property
    def takes_shards(self) -> bool:
        """May be given shards."""
        return self.beats > 0 and not self.draining and self.journal_ok


class ServicePlacement:
    """Members and map of one service. All times are seconds on one monotonic clock of the caller."""

    def __init__(self, service: str, shard_count: int, settings: PlacementSettings | None = None, generation: int = 0) -> None:
        """`generation` must be above every one that an earlier life of the map has told: the journal refuses claims under an older one."""
        self.service, self.shard_count = service, shard_count
        self.settings = settings or PlacementSettings()
        self.map: ShardMap = free_map(service, "", shard_count, generation)
        self.states: dict[str, MemberState] = {}
        self.methods: Sequence[pb.Method] = ()
        self.moves_total = 0
        self._load: dict[int, float] = {}
        self._moved_at: dict[int, float] = {}
        self._balanced_at = -1e9
        self._ticked_at: float | None = None
        self._held_once = False

    # Members ------------------------------------------------------------------------------------------------------------

    @property
    def members(self) -> dict[str, pb.Member]:
        """Every living member by its id."""
        return {name: state.member for name, state in self.states.items()}

    def ready_members(self, revision: str | None = None) -> list[str]:
        """Members that take commands, of one revision or of all."""
        return [n for n, s in self.states.items() if s.takes_shards and revision in (None, s.member.revision)]

    def hello(self, now: float, hello: pb.Hello) -> str:
        """A member introduces itself; '' when it is taken, else why not."""
        if hello.shard_count != self.shard_count:
            return f"{hello.shard_count} shards: service {self.service} has {self.shard_count}, fixed for its life"
        if self.map.journal_id and hello.journal_id != self.map.journal_id:
            return f"journal {hello.journal_id}: service {self.service} keeps its entities in journal {self.map.journal_id}"
        if not self.map.journal_id:
            self.map = ShardMap(self.service, hello.journal_id, self.map.generation, self.map.entries)
        for name, state in list(self.states.items()):
            if state.member.pod == hello.member.pod and name != hello.member.member_id:
                self.gone(name)
        known = self.states.get(hello.member.member_id)
        if known is None:
            self.states[hello.member.member_id] = MemberState(hello.member, now)
        else:
            known.heard = now
        if hello.methods:
            self.methods = list(hello.methods)
        return ""

    def heartbeat(self, now: float, member: str, beat: pb.Heartbeat) -> None:
        """A member is alive, and tells what it holds."""
        state = self.states.get(member)
        if state is None:
            return
        state.heard, state.beats, state.generation = now, state.beats + 1, beat.generation
        state.journal_ok = beat.journal_ok
        state.draining = state.draining or beat.draining
        state.owned = {shard.shard: shard.epoch for shard in beat.owned}
        for shard in beat.owned:
            self._load[shard.shard] = shard.load

    def gone(self, member: str) -> None:
        """Proof that a member's process has ended; its shards are placed anew at the next tick."""
        self.states.pop(member, None)

    def drain(self, member: str) -> None:
        """Move everything away from a member."""
        if (state := self.states.get(member)) is not None:
            state.draining = True

    def drained(self, member: str) -> bool:
        """True when a member holds nothing and nothing is meant for it."""
        state = self.states.get(member)
        return not (state and state.owned) and not any(member in (e.owner, e.next) for e in self.map.entries)

    def load_of(self, member: str) -> float:
        """Load of the shards that the map gives to a member."""
        return sum(self._load.get(shard, 0.0) for shard in self.map.owned_by(member))

    # Decisions ----------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> bool:
        """Decide; True when the map changed."""
        self._suspect(now)
        changes: dict[int, Entry] = {}
        self._converge(changes)
        self._place_homeless(changes)
        self._drain_members(changes)
        if not changes:
            self._balance(now, changes)
        before = self.map
        self.map = before.changed(changes)
        return self.map is not before

    def _suspect(self, now: float) -> None:
        """Take silent members for dead; not if the leader itself was late, nor if too many fall silent at once."""
        lag = 0.0 if self._ticked_at is None else max(0.0, now - self._ticked_at - 1.0)
        self._ticked_at = now
        allowed = SUSPECT_AFTER + (lag if lag > LAG_LIMIT else 0.0)
        silent = [name for name, state in self.states.items() if now - state.heard > allowed]
        if len(silent) > 1 and len(silent) * 3 > len(self.states) and not self._held_once:
            self._held_once = True
            return
        self._held_once = False
        for name in silent:
            self.gone(name)

    def _converge(self, changes: dict[int, Entry]) -> None:
        """Finish moves whose owner has let go or died, and turn back those whose successor died."""
        for shard, entry in enumerate(self.map.entries):
            if not entry.moving:
                continue
            owner, successor = self.states.get(entry.owner), self.states.get(entry.next)
            if successor is None or not successor.takes_shards:
                changes[shard] = Entry(owner=entry.owner) if owner is not None else Entry()
            elif owner is None or (owner.generation >= entry.since and shard not in owner.owned):
                changes[shard] = Entry(owner=entry.next)
                self.moves_total += 1

    def _place_homeless(self, changes: dict[int, Entry]) -> None:
        """Shards of nobody, or of the dead, go to living members at once."""
        targets = self.ready_members()
        homeless = [s for s, e in self._entries(changes) if not e.moving and e.owner not in self.states]
        if not homeless:
            return
        if not targets:
            for shard in homeless:
                if self.map.entries[shard].owner:
                    changes[shard] = Entry()
            return
        plan = self._plan(changes, targets, tolerance=1e9)
        for shard in homeless:
            if self.map.entries[shard].owner:
                self.moves_total += 1
            changes[shard] = Entry(owner=plan[shard])

    def _drain_members(self, changes: dict[int, Entry]) -> None:
        """Shards of leaving members move to the others; without others nobody owns them."""
        leaving = {name for name, state in self.states.items() if state.draining or not state.journal_ok}
        if not leaving:
            return
        targets = self.ready_members()
        if not targets and any(state.beats == 0 for state in self.states.values()):
            return
        plan = self._plan(changes, targets, tolerance=1e9) if targets else {}
        for shard, entry in self._entries(changes):
            if entry.owner in leaving and not entry.moving:
                changes[shard] = self._moving(entry.owner, plan[shard]) if plan else Entry()

    def _balance(self, now: float, changes: dict[int, Entry]) -> None:
        """Planned moves for balance, within the budgets."""
        targets = self.ready_members()
        if len(targets) < 2 or now - self._balanced_at < self.settings.rebalance_every:
            return
        self._balanced_at = now
        plan = self._plan(changes, targets, self.settings.tolerance)
        empty = set(targets).difference(e.owner for e in self.map.entries)
        busy = dict.fromkeys(targets, 0)
        for entry in self.map.entries:
            if entry.moving:
                for name in (entry.owner, entry.next):
                    busy[name] = busy.get(name, 0) + 1
                empty.discard(entry.next)
        filling = empty | {e.next for e in self.map.entries if e.moving}
        for shard, entry in enumerate(self.map.entries):
            target = plan[shard]
            if entry.moving or entry.owner == target or entry.owner not in busy:
                continue
            rested = now - self._moved_at.get(shard, -1e9) >= self.settings.min_dwell
            if not rested and target not in filling and self._held(target) > 0:
                continue
            if max(busy[entry.owner], busy[target]) < self.settings.max_concurrent_moves:
                busy[entry.owner] += 1
                busy[target] += 1
                changes[shard] = self._moving(entry.owner, target)
                self._moved_at[shard] = now

    def _held(self, member: str) -> int:
        state = self.states.get(member)
        return len(state.owned) if state is not None else 0

    def _moving(self, owner: str, successor: str) -> Entry:
        return Entry(owner=owner, next=successor, force_after_ms=FORCE_AFTER_MS)

    def _entries(self, changes: dict[int, Entry]) -> Iterable[tuple[int, Entry]]:
        """The map as it will be with `changes`."""
        return [(shard, changes.get(shard, entry)) for shard, entry in enumerate(self.map.entries)]

    def _plan(self, changes: dict[int, Entry], targets: list[str], tolerance: float) -> dict[int, str]:
        names = [str(shard) for shard in range(self.shard_count)]
        current = {str(shard): entry.next or entry.owner for shard, entry in self._entries(changes)}
        plan = allocate(names, targets, current, self._weights(), tolerance)
        return {int(shard): member for shard, member in plan.items()}

    def _weights(self) -> dict[str, float]:
        """Measured load with a floor, so that idle shards spread evenly too; all alike while nothing is known."""
        known = sum(self._load.values())
        floor = known / self.shard_count * 0.5 if known > 0 else 1.0
        return {str(shard): self._load.get(shard, 0.0) + floor for shard in range(self.shard_count)}
