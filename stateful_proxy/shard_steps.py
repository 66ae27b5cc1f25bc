"""What a proxy does next about one shard (pure): a table over the phase it is in and what the map asks.

Nothing here waits, calls or remembers; `ownership` carries the steps out and comes back with the new phase.
"""

from __future__ import annotations

import enum

from cloudstate_core.shard_map import Entry


class Phase(enum.Enum):
    """Where this proxy stands with a shard."""

    NONE = 0
    """It holds no token."""
    CLAIMING = 1
    """It has asked the journal for one."""
    OWNED = 2
    """It serves."""
    DRAINING = 3
    """It holds the token until what is in flight is finished."""
    SEALING = 4
    """It has asked the journal to take the token back."""


class Duty(enum.Enum):
    """What the map asks of this member."""

    NONE = 0
    """The shard is nobody's, or another's."""
    TAKE = 1
    """It is this member's."""
    AWAIT = 2
    """It will be this member's once its owner has sealed it, or has had the time to."""
    GIVE = 3
    """It is this member's, to be given up to the next one."""


class Step(enum.Enum):
    """What to do."""

    STAY = 0
    """Nothing, or nothing before the journal has answered."""
    CLAIM = 1
    AWAIT = 2
    """Wait for the seal, and claim without it after the entry's time."""
    DRAIN = 3
    LOSE = 4
    """Another has it already: forget its entities, the token is worthless."""


def duty_of(entry: Entry, member: str) -> Duty:
    """What `entry` asks of `member`; a standalone proxy, member '', is to take every shard."""
    if not member:
        return Duty.TAKE
    if entry.owner == member:
        return Duty.GIVE if entry.next else Duty.TAKE
    return Duty.AWAIT if entry.next == member else Duty.NONE


def next_step(phase: Phase, entry: Entry, member: str, claimed_under: int) -> Step:
    """The step from `phase`; `claimed_under` = generation of the entry under which the token was claimed."""
    duty = duty_of(entry, member)
    if phase is Phase.NONE:
        return {Duty.TAKE: Step.CLAIM, Duty.AWAIT: Step.AWAIT}.get(duty, Step.STAY)
    if phase in (Phase.CLAIMING, Phase.SEALING) or duty is Duty.TAKE:
        return Step.STAY
    if duty is Duty.AWAIT and claimed_under == entry.since:
        return Step.STAY
    if duty is Duty.GIVE or entry.free:
        return Step.DRAIN if phase is Phase.OWNED else Step.STAY
    return Step.LOSE
