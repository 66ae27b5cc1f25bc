"""The journal in one process's memory: for tests, benchmarks and services that may forget. Nothing is durable.

Its `journal_id` is random for each process, so that a second pod can never take part in it.
"""

from __future__ import annotations

import itertools
import secrets
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from cloudstate_core.hashing import HASH_NAME
from cloudstate_core.journal import rules
from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    At,
    Check,
    Claim,
    Claimed,
    Commit,
    Cursor,
    Done,
    EntityKey,
    Event,
    Found,
    Layout,
    LogEntry,
    LogPage,
    Lookup,
    Operation,
    Outcome,
    Put,
    Read,
    ReadLog,
    Seal,
    Sealed,
    Stored,
    Swap,
    Swapped,
    Unbound,
    Uninitialised,
    Value,
)  # fmt: skip

COMMANDS_KEPT = 10_000
"""Command ids remembered for each entity; the oldest go first."""
LOG_KEPT = 1_000
"""Events remembered for the readers of each entity type's log in a shard; the oldest go first."""


@dataclass(slots=True)
class _Entity(rules.EntityRow):
    events: list[Event] = field(default_factory=list)
    snapshot_seq: int = 0
    snapshot: Value | None = None
    commands: dict[str, bytes] = field(default_factory=dict)


class MemoryJournal:
    """See `cloudstate_core.journal.api.Journal`; `done` is called before `submit` returns."""

    def __init__(self, keyspace: str, shard_count: int) -> None:
        self.keyspace = keyspace
        self._layout = Layout(secrets.token_hex(8), shard_count, HASH_NAME, 1)
        self.shards = {shard: rules.ShardRow(0, secrets.token_bytes(8), 0, "") for shard in range(shard_count)}
        self._entities: dict[EntityKey, _Entity] = {}
        self._values: dict[EntityKey, Stored] = {}
        self._logs: dict[tuple[int, str], deque[LogEntry]] = defaultdict(lambda: deque(maxlen=LOG_KEPT))
        self._cursors: dict[tuple[int, str], int] = {}
        self._lock = threading.Lock()

    @property
    def layout(self) -> Layout:
        """See Journal."""
        return self._layout

    def submit(self, operations: Sequence[Operation], done: Done) -> None:
        """See Journal."""
        with self._lock:
            outcomes = [self._perform(operation) for operation in operations]
        done(outcomes)

    def close(self) -> None:
        """See Journal."""

    def _perform(self, operation: Operation) -> Outcome:
        match operation:
            case Append():
                return self._append(operation)
            case Activate():
                return self._activate(operation)
            case Put():
                return self._put(operation)
            case Claim():
                return self._claim(operation)
            case Seal():
                return self._seal(operation)
            case Check():
                return rules.check(self.shards.get(operation.shard), operation)
            case Lookup():
                entity = self._entities.get(operation.entity)
                return Found(None if entity is None else entity.commands.get(operation.command_id))
            case Read():
                return self._values.get(operation.entity, Stored(0, None))
            case Swap():
                return self._swap(operation)
            case ReadLog():
                return self._read_log(operation)
            case Commit():
                return self._commit(operation)
            case Cursor():
                return At(self._cursors.get((operation.shard, operation.consumer), 0))

    def _claim(self, operation: Claim) -> Outcome:
        row = self.shards.get(operation.shard)
        outcome = rules.claim(row, operation)
        if row is not None and isinstance(outcome, Claimed) and outcome.token.epoch != row.epoch:
            row.epoch, row.nonce, row.generation, row.owner = outcome.token.epoch, operation.nonce, operation.since, operation.owner
        return outcome

    def _seal(self, operation: Seal) -> Outcome:
        row = self.shards.get(operation.shard)
        refused = rules.seal(row, operation)
        if refused is not None or row is None:
            return refused or Uninitialised()
        row.epoch, row.nonce, row.owner = row.epoch + 1, secrets.token_bytes(8), ""
        return Sealed(row.epoch)

    def _activate(self, operation: Activate) -> Outcome:
        entity = self._entities.get(operation.entity)
        refused = rules.activate(self.shards.get(operation.shard), entity, operation)
        if refused is not None:
            return refused
        if entity is None:
            entity = self._entities[operation.entity] = _Entity()
        entity.epoch, entity.binding = operation.token.epoch, operation.binding
        return Active(entity.seq, entity.snapshot_seq, entity.snapshot, tuple(entity.events))

    def _append(self, operation: Append) -> Outcome:
        entity = self._entities.get(operation.entity)
        refused = self._guard(entity, operation)
        if refused is not None or entity is None:
            return refused or Unbound(0)
        log = self._logs[operation.shard, operation.entity.persistence_id]
        for payload in operation.events:
            entity.seq += 1
            entity.events.append(Event(entity.seq, payload))
            log.append(LogEntry(log[-1].offset + 1 if log else 1, operation.entity.entity_id, entity.seq, payload))
        if operation.snapshot is not None:
            entity.snapshot, entity.snapshot_seq = operation.snapshot, entity.seq
            entity.events.clear()
        return self._appended(entity, operation)

    def _put(self, operation: Put) -> Outcome:
        entity = self._entities.get(operation.entity)
        refused = self._guard(entity, operation)
        if refused is not None or entity is None:
            return refused or Unbound(0)
        entity.seq += 1
        entity.snapshot, entity.snapshot_seq = operation.value, entity.seq
        entity.events.clear()
        return self._appended(entity, operation)

    def _guard(self, entity: _Entity | None, operation: Append | Put) -> Outcome | None:
        recorded = entity.commands.get(operation.command_id) if operation.command_id and entity is not None else None
        return rules.append(self.shards.get(operation.shard), entity, recorded, operation)

    def _appended(self, entity: _Entity, operation: Append | Put) -> Outcome:
        if operation.command_id:
            entity.commands[operation.command_id] = operation.outcome
            if len(entity.commands) > COMMANDS_KEPT:
                del entity.commands[next(iter(entity.commands))]
        return Appended(entity.seq)

    def _swap(self, operation: Swap) -> Outcome:
        present = self._values.get(operation.entity, Stored(0, None))
        outcome = rules.swap(self.shards.get(operation.shard), present, operation)
        if isinstance(outcome, Swapped):
            self._values[operation.entity] = Stored(outcome.version, operation.value)
        return outcome

    def _read_log(self, operation: ReadLog) -> Outcome:
        log = self._logs.get((operation.shard, operation.persistence_id), deque[LogEntry]())
        first = max(0, operation.after + 1 - log[0].offset) if log else 0  # offsets have no gaps here
        return LogPage(tuple(itertools.islice(log, first, first + max(0, operation.limit))))

    def _commit(self, operation: Commit) -> Outcome:
        cursor = operation.shard, operation.consumer
        outcome = rules.commit(self.shards.get(operation.shard), self._cursors.get(cursor, 0), operation)
        if isinstance(outcome, At):
            self._cursors[cursor] = outcome.offset
        return outcome
