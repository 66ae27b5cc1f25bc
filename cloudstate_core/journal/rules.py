"""What each journal operation answers, given the rows it touches (pure): the one place where the guards live.

Every store reads the rows, asks here, and writes what it is told in the same atomic step. The exhaustive exploration in the tests drives
these functions, so a guard that is weakened here is found there.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloudstate_core.journal.api import (
    Activate,
    Append,
    At,
    Check,
    Claim,
    Claimed,
    Commit,
    Current,
    Duplicate,
    Fenced,
    Outcome,
    Put,
    Raced,
    Regressed,
    Seal,
    Stale,
    Stored,
    Swap,
    Swapped,
    Token,
    Unbound,
    Uninitialised,
)  # fmt: skip


@dataclass(slots=True)
class ShardRow:
    """The fence of a shard."""

    epoch: int
    nonce: bytes
    generation: int
    owner: str


@dataclass(slots=True)
class EntityRow:
    """The head of an entity."""

    seq: int = 0
    epoch: int = 0
    binding: bytes = b""


def claim(row: ShardRow | None, operation: Claim) -> Outcome:
    """Claimed means: write epoch, nonce, generation and owner (nothing, when the row carries the nonce already)."""
    if row is None:
        return Uninitialised()
    if row.nonce == operation.nonce:
        return Claimed(Token(row.epoch, row.nonce))
    if operation.since < row.generation:
        return Stale(row.generation)
    if operation.expected_epoch not in (-1, row.epoch):
        return Raced(row.epoch)
    return Claimed(Token(row.epoch + 1, operation.nonce))


def fence(row: ShardRow | None, token: Token) -> Outcome | None:
    """None when the token is the shard's."""
    if row is None:
        return Uninitialised()
    return None if row.nonce == token.nonce else Fenced(row.epoch)


def seal(row: ShardRow | None, operation: Seal) -> Outcome | None:
    """None means: epoch + 1, a fresh nonce, no owner."""
    return fence(row, operation.token)


def check(row: ShardRow | None, operation: Check) -> Outcome:
    """Current or why not."""
    return fence(row, operation.token) or Current()


def commit(row: ShardRow | None, present: int, operation: Commit) -> Outcome:
    """At means: the cursor is there now; write it if it has moved. It only moves upwards."""
    return fence(row, operation.token) or At(max(present, operation.offset))


def swap(row: ShardRow | None, present: Stored, operation: Swap) -> Outcome:
    """Swapped means: write its version and the new value. There is no owner to fence, but a shard that was never made is not written to."""
    if row is None:
        return Uninitialised()
    return present if present.version != operation.expected_version else Swapped(present.version + 1)


def activate(shard: ShardRow | None, entity: EntityRow | None, operation: Activate) -> Outcome | None:
    """None means: write epoch and binding into the head (made new if there is none); then read."""
    refused = fence(shard, operation.token)
    if refused is None and entity is not None and entity.epoch > operation.token.epoch:
        return Fenced(entity.epoch)
    return refused


def append(shard: ShardRow | None, entity: EntityRow | None, recorded: bytes | None, operation: Append | Put) -> Outcome | None:
    """None means: write all of it. `recorded` = stored outcome of the command id, if any.

    Order: token, binding, duplicate, sequence. A duplicate is told before the sequence is compared, since the caller may lag behind.
    """
    refused = fence(shard, operation.token)
    if refused is not None:
        return refused
    if entity is None or entity.binding != operation.binding:
        return Unbound(0 if entity is None else entity.epoch)
    if recorded is not None:
        return Duplicate(recorded)
    if entity.seq != operation.expected_seq:
        return Regressed(entity.seq)
    return None
