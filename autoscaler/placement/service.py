"""The placement of one service: members come, beat and go; `tick` turns that into the next map.

The target (who should have each shard) is kept apart from the map (who has it): each tick takes as many steps from one to the other as the
budgets allow. Orphans are placed at once. Safety does not depend on any of this: the journal fences whoever is wrong about it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence

from autoscaler.placement.budget import Move, MoveBudget, PlacementSettings
from autoscaler.placement.convergence import adopt, leavers, moving, orphans, settle
from autoscaler.placement.members import Membership, MemberState
from autoscaler.placement.planning import ORPHANS_ONLY, plan
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import Entry, ShardMap, free_map

__all__ = ["MemberState", "PlacementSettings", "ServicePlacement"]


class ServicePlacement:
    """Members and map of one service. All times are seconds on one monotonic clock of the caller; no I/O."""

    def __init__(self, service: str, shard_count: int, settings: PlacementSettings | None = None, kept: ShardMap | None = None) -> None:
        """`kept` = the map as an earlier leader wrote it; its generation goes on. ValueError when it has another number of shards."""
        if kept is not None and kept.shard_count != shard_count:
            raise ValueError(f"{shard_count} shards: the map of {service} has {kept.shard_count}, fixed for its life")
        self.service, self.shard_count = service, shard_count
        self.settings = settings or PlacementSettings()
        self.map: ShardMap = kept or free_map(service, "", shard_count)
        self.methods: Sequence[pb.Method] = ()
        """Of all revisions; a pod that does not have one says so itself."""
        self.moves_total = 0
        self.handoffs: deque[float] = deque(maxlen=1000)
        """Seconds from the order to the confirmation of the last planned moves."""
        self._membership = Membership({name for entry in self.map.entries for name in (entry.owner, entry.next)} - {""})
        self._budget = MoveBudget(self.settings, shard_count)
        self._traffic: dict[str, float] = {}
        self._load: dict[int, float] = {}
        self._moving_since: dict[int, float] = {}
        self._target: dict[int, str] = {}
        self._target_for: tuple[frozenset[str], tuple[tuple[str, float], ...]] | None = None
        self._fresh: set[str] = set()
        self._free: ShardMap | None = None
        """The last map in which nobody was named."""
        self._next_round = self._balance_from = 0.0

    # Members ------------------------------------------------------------------------------------------------------------

    @property
    def states(self) -> dict[str, MemberState]:
        """Every living member as the leader knows it."""
        return self._membership.states

    @property
    def members(self) -> dict[str, pb.Member]:
        """Every living member by its id."""
        return {name: state.member for name, state in self.states.items()}

    def ready_members(self, revision: str | None = None) -> list[str]:
        """Members that take commands, of one revision or of all."""
        return self._membership.ready(revision)

    def hello(self, now: float, hello: pb.Hello) -> str:
        """A member introduces itself; '' when it is taken, else why not."""
        if hello.shard_count != self.shard_count:
            return f"{hello.shard_count} shards: service {self.service} has {self.shard_count}, fixed for its life"
        if not hello.member.member_id or not hello.journal_id:
            return "the first message must name a member and the journal that it has read"
        if self.map.journal_id and hello.journal_id != self.map.journal_id:
            return f"journal {hello.journal_id}: service {self.service} keeps its entities in journal {self.map.journal_id}"
        if not self.map.journal_id:
            self.map = ShardMap(self.service, hello.journal_id, self.map.generation, self.map.entries)
        self._membership.hello(now, hello.member)
        # A pod of an older revision may be the last to join, above all a new leader: what newer ones serve besides stays known.
        self.methods = list(({method.path: method for method in (*self.methods, *hello.methods)}).values())
        return ""

    def heartbeat(self, now: float, member: str, beat: pb.Heartbeat) -> None:
        """A member is alive, and tells what it holds; its word on the load of shards that it does not own is not taken."""
        if self._membership.heartbeat(now, member, beat):
            for shard in beat.owned:
                if shard.shard < self.shard_count and self.map.entries[shard.shard].owner == member:
                    self._load[shard.shard] = shard.load

    def gone(self, member: str) -> None:
        """Proof that a member's process has ended; its shards are placed anew at the next tick."""
        self._membership.gone(member)

    def drain(self, member: str) -> None:
        """Move everything away from a member."""
        if (state := self.states.get(member)) is not None:
            state.draining = True

    def drained(self, member: str) -> bool:
        """True when a member holds nothing and nothing is meant for it."""
        state = self.states.get(member)
        return not (state and state.owned) and not any(member in (e.owner, e.next) for e in self.map.entries)

    def load_of(self, member: str) -> float:
        """Load of the shards that the map gives to a member, in handler seconds per second."""
        return sum(self._load.get(shard, 0.0) for shard in self.map.owned_by(member))

    def set_traffic(self, percentages: Mapping[str, float]) -> None:
        """Share the shards out between revisions by these percentages; empty = all members are one pool."""
        self._traffic = dict(percentages)

    def reconfigure(self, settings: PlacementSettings) -> None:
        """Move shards as eagerly as these settings say from now on."""
        if settings != self.settings:
            self.settings = settings
            self._budget.reconfigure(settings)
            self._next_round = 0.0

    # Decisions ----------------------------------------------------------------------------------------------------------

    @property
    def quiet(self) -> bool:
        """True when time alone changes nothing: there is no member, and nobody is named in the map."""
        if self.states:
            return False
        if self._free is not self.map and not any(entry.owner or entry.next for entry in self.map.entries):
            self._free = self.map
        return self._free is self.map

    def tick(self, now: float) -> bool:
        """Decide; True when the map changed."""
        self._membership.suspect(now)
        changes = settle(self.map.entries, self._membership)
        for shard, entry in changes.items():
            begun = self._moving_since.pop(shard, None)
            if entry.owner == self.map.entries[shard].next:
                self.moves_total += 1
                if begun is not None:
                    self.handoffs.append(now - begun)
        entries = self._with(changes)
        self._budget.open_tick(now, entries)
        self._place(now, entries, changes)
        self._approach(now, self._with(changes), changes)
        before = self.map
        self.map = before.changed(changes)
        return self.map is not before

    def _with(self, changes: Mapping[int, Entry]) -> list[Entry]:
        """The entries as they will be."""
        return [changes.get(shard, entry) for shard, entry in enumerate(self.map.entries)]

    def _place(self, now: float, entries: list[Entry], changes: dict[int, Entry]) -> None:
        """Orphans get an owner at once, and the shards of leaving members move; without another member they are free."""
        homeless, leaving = orphans(entries, self._membership), leavers(entries, self._membership)
        if not homeless and not leaving:
            return
        target = self._plan(entries, ORPHANS_ONLY)
        for shard, entry in adopt(homeless, entries, self._membership, target).items():
            self.moves_total += bool(entry.owner and entries[shard].owner)
            changes[shard] = entry
        for shard in leaving:
            owner = entries[shard].owner
            if not target:
                if not self._membership.arriving():
                    changes[shard] = Entry()
            elif self._budget.take(now, Move.DRAIN, shard, owner, target[shard]):
                self._begin(now, changes, shard, owner, target[shard])

    def _approach(self, now: float, entries: list[Entry], changes: dict[int, Entry]) -> None:
        """Begin moves towards the target, within the budgets."""
        self._aim(now, entries)
        wished = list(self._wished(entries))
        self._fresh.intersection_update({taker for _, _, taker, _ in wished} | {e.next for e in entries if e.moving})
        busy_growing = bool(self._fresh) or self._membership.arriving()
        for shard, owner, taker, move in wished:
            if move is Move.BALANCE and (busy_growing or now < self._balance_from):
                continue
            if self._budget.take(now, move, shard, owner, taker):
                self._begin(now, changes, shard, owner, taker)

    def _wished(self, entries: list[Entry]) -> Iterator[tuple[int, str, str, Move]]:
        """Shards at rest with a ready member that another one should have."""
        ready = set(self._membership.ready())
        for shard, taker in self._target.items():
            entry = entries[shard]
            if entry.moving or entry.owner == taker or entry.owner not in ready or taker not in ready:
                continue
            revisions = (self.states[entry.owner].member.revision, self.states[taker].member.revision)
            if self._traffic and revisions[0] != revisions[1]:
                yield shard, entry.owner, taker, Move.ROLLOUT
            else:
                yield shard, entry.owner, taker, Move.FILL if taker in self._fresh else Move.BALANCE

    def _aim(self, now: float, entries: list[Entry]) -> None:
        """Renew the target when members or traffic have changed, and once a round."""
        ready = self._membership.ready()
        wanted = (frozenset(ready), tuple(sorted(self._traffic.items())))
        if wanted != self._target_for:
            known = self._target_for[0] if self._target_for is not None else frozenset()
            named = {name for entry in entries for name in (entry.owner, entry.next)}
            self._fresh = {name for name in ready if name in self._fresh or (name not in known and name not in named)}
            self._target_for = wanted
            self._balance_from = now + self.settings.round_seconds
        elif now < self._next_round:
            return
        self._next_round = now + self.settings.round_seconds
        self._target = self._plan(entries, self.settings.tolerance)

    def _begin(self, now: float, changes: dict[int, Entry], shard: int, owner: str, taker: str) -> None:
        changes[shard] = moving(owner, taker)
        self._moving_since[shard] = now

    def _plan(self, entries: Sequence[Entry], tolerance: float) -> dict[int, str]:
        """Shard → ready member; empty when there is none."""
        revision_of = {name: self.states[name].member.revision for name in self._membership.ready()}
        holder = [entry.next or entry.owner for entry in entries]
        return plan(self.service, holder, revision_of, self._traffic, self._load, tolerance)
