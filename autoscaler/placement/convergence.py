"""How the map gets from what is to what should be: revoke before assign, one entry at a time (pure).

| entry | happens | becomes |
|---|---|---|
| STABLE(A) | B shall have it | MOVING(A, B) |
| MOVING(A, B) | A reports that it holds it no longer, or A is gone, or B reports that it holds it | STABLE(B) |
| MOVING(A, B) | B is gone or leaves | STABLE(A); FREE if A is gone as well |
| STABLE(A) | A is gone | STABLE(C) at once; FREE without C |
| STABLE(A) | A leaves and there is nobody else | FREE: A drains it |
| FREE | somebody is ready | STABLE(C), or MOVING(A, C) while A still holds it |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from autoscaler.placement.members import Membership
from cloudstate_core.shard_map import Entry

FORCE_AFTER_MS = 5_000
"""Milliseconds a giver has to drain and seal; then the taker claims over it."""


def moving(giver: str, taker: str) -> Entry:
    """A planned handoff."""
    return Entry(owner=giver, next=taker, force_after_ms=FORCE_AFTER_MS)


def settle(entries: Sequence[Entry], members: Membership) -> dict[int, Entry]:
    """Finish the moves that are done, and turn back those that cannot be."""
    leaving, changes = members.leaving(), {}
    for shard, entry in enumerate(entries):
        if not entry.moving:
            continue
        if _holds(members, entry.next, shard, entry.since):
            changes[shard] = Entry(owner=entry.next)
        elif not members.exists(entry.next) or entry.next in leaving:
            changes[shard] = Entry(owner=entry.owner) if members.exists(entry.owner) else Entry()
        elif not members.exists(entry.owner) or _has_let_go(members, entry.owner, shard, entry.since):
            changes[shard] = Entry(owner=entry.next)
    return changes


def _holds(members: Membership, name: str, shard: int, since: int) -> bool:
    state = members.states.get(name)
    return state is not None and state.generation >= since and shard in state.owned


def _has_let_go(members: Membership, name: str, shard: int, since: int) -> bool:
    state = members.states.get(name)
    return state is not None and state.generation >= since and shard not in state.owned


def orphans(entries: Sequence[Entry], members: Membership) -> list[int]:
    """Shards of nobody, and of members that are gone."""
    return [shard for shard, entry in enumerate(entries) if not entry.moving and not members.exists(entry.owner)]


def adopt(orphaned: Sequence[int], entries: Sequence[Entry], members: Membership, target: Mapping[int, str]) -> dict[int, Entry]:
    """Give orphans to their target; without one they are free."""
    holders, changes = members.holders(), {}
    for shard in orphaned:
        taker = target.get(shard, "")
        holder = holders.get(shard, "")
        if not taker:
            entry = Entry()
        elif holder and holder != taker and not entries[shard].owner:
            entry = moving(holder, taker)
        else:
            entry = Entry(owner=taker)
        if (entry.owner, entry.next) != (entries[shard].owner, entries[shard].next):
            changes[shard] = entry
    return changes


def leavers(entries: Sequence[Entry], members: Membership) -> list[int]:
    """Shards at rest with members that leave."""
    leaving = members.leaving()
    return [shard for shard, entry in enumerate(entries) if entry.owner in leaving and not entry.moving]
