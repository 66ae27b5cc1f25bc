"""The journal contract: what a store must guarantee so that no entity's history can fork.

Every operation is one atomic, linearizable step. Safety rests on it alone: after `Activate(token, entity)` succeeded, no append
to that entity under an older token or an earlier binding succeeds. The shard row issues tokens, the entity row is where the
fence bites, the expected sequence detects a store that lost acknowledged writes. A missing fence row is an error, never 'epoch 0'.

Operations are values and outcomes are values; a store takes batches (`Journal.submit`) and answers all of a batch together,
each operation succeeding or failing on its own. Values are msgspec structs, so that the same ones travel between processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec


class Value(msgspec.Struct, frozen=True, gc=False):
    """A `google.protobuf.Any` as the function sent it, byte for byte."""

    type_url: str
    data: bytes


class Layout(msgspec.Struct, frozen=True):
    """What every writer of a keyspace must agree on; immutable, stored in the journal."""

    journal_id: str
    shard_count: int
    hash: str
    format: int


class Token(msgspec.Struct, frozen=True, gc=False):
    """Right to write in a shard: epochs grow with every claim and seal, nonces are random."""

    epoch: int
    nonce: bytes


class EntityKey(msgspec.Struct, frozen=True, gc=False):
    """Name of an entity in the journal."""

    persistence_id: str
    entity_id: str


# Operations -------------------------------------------------------------------------------------------------------------


class Claim(msgspec.Struct, frozen=True, tag="claim"):
    """Take a shard whose epoch is `expected_epoch` under map generation `since`; `expected_epoch` -1: whatever it is now."""

    shard: int
    expected_epoch: int
    since: int
    owner: str
    nonce: bytes


class Seal(msgspec.Struct, frozen=True, tag="seal"):
    """Give a shard up: epoch + 1, a fresh nonce, nobody owns it."""

    shard: int
    token: Token


class Activate(msgspec.Struct, frozen=True, tag="activate"):
    """Bind an entity to this activation and read it. Also settles an unknown append: a new binding makes it definite."""

    shard: int
    token: Token
    entity: EntityKey
    binding: bytes


class Append(msgspec.Struct, frozen=True, tag="append"):
    """All or nothing: `events` after sequence `expected_seq`, the snapshot of the state after them, the command's outcome."""

    shard: int
    token: Token
    entity: EntityKey
    binding: bytes
    expected_seq: int
    events: tuple[Value, ...]
    snapshot: Value | None = None
    command_id: str = ""
    """Empty: not recorded for deduplication."""
    outcome: bytes = b""
    """What a duplicate of the command is answered with."""


class Put(msgspec.Struct, frozen=True, tag="put"):
    """A value entity's state, whole: replaces what there was; the sequence counts versions. None deletes it and keeps the count.

    Guarded as an Append is. An entity may turn from events to values and back: a Put covers what was appended before it.
    """

    shard: int
    token: Token
    entity: EntityKey
    binding: bytes
    expected_seq: int
    value: Value | None
    command_id: str = ""
    """Empty: not recorded for deduplication."""
    outcome: bytes = b""
    """What a duplicate of the command is answered with."""


class Check(msgspec.Struct, frozen=True, tag="check"):
    """Is this token still the shard's?"""

    shard: int
    token: Token


class Lookup(msgspec.Struct, frozen=True, tag="lookup"):
    """The recorded outcome of a command, if any."""

    shard: int
    entity: EntityKey
    command_id: str


class Read(msgspec.Struct, frozen=True, tag="read"):
    """A replicated value's record. It has no owner and no fence: anybody may read and swap it."""

    shard: int
    entity: EntityKey


class Swap(msgspec.Struct, frozen=True, tag="swap"):
    """Replace a replicated value's record if its version is still `expected_version` (0: never written). None deletes the value, not the
    version. Uninitialised when the shard's fence row is missing: a store that lost its data is not written to."""

    shard: int
    entity: EntityKey
    expected_version: int
    value: Value | None


class ReadLog(msgspec.Struct, frozen=True, tag="read-log"):
    """Events of one entity type in one shard, in the order of their appends, snapshots or not: at most `limit`, beyond offset `after`.

    What Put wrote is no event.
    """

    shard: int
    persistence_id: str
    after: int
    limit: int


class Commit(msgspec.Struct, frozen=True, tag="commit"):
    """A consumer has handled everything up to `offset`. A smaller one than before changes nothing."""

    shard: int
    token: Token
    consumer: str
    offset: int


class Cursor(msgspec.Struct, frozen=True, tag="cursor"):
    """How far a consumer has come in a shard."""

    shard: int
    consumer: str


Question = Check | Lookup | Read | ReadLog | Cursor
"""Changes nothing: answered also by a store that has no room to write."""
Operation = Claim | Seal | Activate | Append | Put | Swap | Commit | Question

# Outcomes ---------------------------------------------------------------------------------------------------------------


class Claimed(msgspec.Struct, frozen=True, tag="claimed"):
    """The shard is the claimer's (also when its row already carried the nonce)."""

    token: Token


class Raced(msgspec.Struct, frozen=True, tag="raced"):
    """Another epoch is current."""

    epoch: int


class Stale(msgspec.Struct, frozen=True, tag="stale"):
    """A newer map generation has claimed: final for this claim."""

    generation: int


class Uninitialised(msgspec.Struct, frozen=True, tag="uninitialised"):
    """The fence row is missing."""


class Sealed(msgspec.Struct, frozen=True, tag="sealed"):
    """The shard is nobody's; a successor claims with this epoch."""

    epoch: int


class Fenced(msgspec.Struct, frozen=True, tag="fenced"):
    """The token is not current (`epoch`: the current one): the shard is lost."""

    epoch: int


class Event(msgspec.Struct, frozen=True, gc=False):
    """A stored event: 1-based sequence within the entity."""

    sequence: int
    payload: Value


class Active(msgspec.Struct, frozen=True, tag="active"):
    """The entity at its head: `snapshot` covers events up to `snapshot_seq`; `tail` = those after it, in order. A value entity's state is its
    snapshot (None: it has none), its tail is empty."""

    seq: int
    snapshot_seq: int
    snapshot: Value | None
    tail: tuple[Event, ...]


class Appended(msgspec.Struct, frozen=True, tag="appended"):
    """Durable; the entity's sequence is now `seq`."""

    seq: int


class Duplicate(msgspec.Struct, frozen=True, tag="duplicate"):
    """The command was applied before, with this outcome; nothing was written."""

    outcome: bytes


class Unbound(msgspec.Struct, frozen=True, tag="unbound"):
    """The entity carries another binding, issued at `epoch`."""

    epoch: int


class Regressed(msgspec.Struct, frozen=True, tag="regressed"):
    """Token and binding fit, the sequence does not: the store lost acknowledged writes (or the caller is wrong)."""

    seq: int


class Current(msgspec.Struct, frozen=True, tag="current"):
    """The token is the shard's."""


class Found(msgspec.Struct, frozen=True, tag="found"):
    """Answer to Lookup; None: no such command is recorded."""

    outcome: bytes | None


class Stored(msgspec.Struct, frozen=True, tag="stored"):
    """A replicated value as it is; also the answer to a Swap that expected another version: nothing was written."""

    version: int
    value: Value | None


class Swapped(msgspec.Struct, frozen=True, tag="swapped"):
    """The record is the new one."""

    version: int


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """An event in a shard's log. Offsets grow strictly within shard and entity type, and may have gaps."""

    offset: int
    entity_id: str
    sequence: int
    payload: Value


class LogPage(msgspec.Struct, frozen=True, tag="log"):
    """Entries in order; fewer than asked for: there are no more now."""

    entries: tuple[LogEntry, ...]


class At(msgspec.Struct, frozen=True, tag="at"):
    """A consumer's cursor: the answer to Cursor and Commit. 0: at the beginning."""

    offset: int


class Unknown(msgspec.Struct, frozen=True, tag="unknown"):
    """The store did not answer: it may or may not have happened. Settle by activating again, never by guessing."""

    reason: str


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Definitely not done, for a reason of the store (read-only, full disk): what, where, which rule."""

    reason: str


Outcome = (
    Claimed | Raced | Stale | Uninitialised | Sealed | Fenced | Active | Appended | Duplicate | Unbound | Regressed | Current
    | Found | Stored | Swapped | LogPage | At | Unknown | Refused
)  # fmt: skip

Done = Callable[[Sequence[Outcome]], None]


class JournalError(Exception):
    """A keyspace cannot be opened: says what, where and which rule."""


class Incompatible(JournalError):
    """The keyspace has another layout than asked for."""


class Journal(Protocol):
    """An opened keyspace."""

    @property
    def layout(self) -> Layout:
        """Read from the store at open."""

    def submit(self, operations: Sequence[Operation], done: Done) -> None:
        """Perform each operation atomically and independently, those of one shard in order; `done` gets the outcomes in
        the order of `operations`, once. It may be called before `submit` returns, or later on the journal's own thread."""

    def close(self) -> None:
        """Finish what was submitted and let go of the store. Idempotent."""
