"""One keyspace's rows in an SQLite file: each operation inside the writer's transaction, by the rules that all stores share.

An event is stored once, with its entity; the log of an entity type in a shard points at it. So a log costs a short row for each event.
"""

from __future__ import annotations

import secrets
import sqlite3
import time

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
    EntityKey,
    Event,
    Found,
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
    Uninitialised,
    Value,
)  # fmt: skip

_SAVE_SNAPSHOT = "UPDATE entity SET seq=?, snapshot_seq=?, snapshot_type=?, snapshot=? WHERE ks=? AND pid=? AND id=?"
_READ_LOG = (
    "SELECT log.at, log.id, log.seq, type_url, payload FROM log CROSS JOIN event USING (ks, pid, id, seq)"
    " WHERE log.ks=? AND log.shard=? AND log.pid=? AND log.at>? ORDER BY log.at LIMIT ?"
)
_SAVE_RECORD = (
    "INSERT INTO record VALUES (?,?,?,?,?,?) ON CONFLICT (ks, pid, id) DO UPDATE"
    " SET version=excluded.version, type_url=excluded.type_url, data=excluded.data"
)
_SAVE_CURSOR = "INSERT INTO cursor VALUES (?,?,?,?) ON CONFLICT (ks, shard, consumer) DO UPDATE SET at=excluded.at"


class Rows:
    """The rows of a keyspace; used by whoever holds the file."""

    def __init__(self, db: sqlite3.Connection, keyspace: str) -> None:
        self._db, self._keyspace = db, keyspace
        self._last: dict[tuple[int, str], int] = {}

    def perform(self, operation: Operation) -> Outcome:
        """One operation. An sqlite3.Error undoes it."""
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
                return rules.check(self._shard(operation.shard), operation)
            case Lookup():
                return Found(self._recorded(operation.entity, operation.command_id))
            case Read():
                return self._record(operation.entity)
            case Swap():
                return self._swap(operation)
            case ReadLog():
                return self._read_log(operation)
            case Commit():
                return self._commit(operation)
            case Cursor():
                return At(self._cursor(operation.shard, operation.consumer))

    # Shards -------------------------------------------------------------------------------------------------------------

    def _shard(self, shard: int) -> rules.ShardRow | None:
        row = self._db.execute("SELECT epoch, nonce, generation, owner FROM shard WHERE ks=? AND shard=?", (self._keyspace, shard)).fetchone()
        return None if row is None else rules.ShardRow(*row)

    def _claim(self, operation: Claim) -> Outcome:
        row = self._shard(operation.shard)
        outcome = rules.claim(row, operation)
        if row is not None and isinstance(outcome, Claimed) and outcome.token.epoch != row.epoch:
            self._db.execute(
                "UPDATE shard SET epoch=?, nonce=?, generation=?, owner=? WHERE ks=? AND shard=?",
                (outcome.token.epoch, operation.nonce, operation.since, operation.owner, self._keyspace, operation.shard),
            )
        return outcome

    def _seal(self, operation: Seal) -> Outcome:
        row = self._shard(operation.shard)
        refused = rules.seal(row, operation)
        if refused is not None or row is None:
            return refused or Uninitialised()
        values = (row.epoch + 1, secrets.token_bytes(8), self._keyspace, operation.shard)
        self._db.execute("UPDATE shard SET epoch=?, nonce=?, owner='' WHERE ks=? AND shard=?", values)
        return Sealed(row.epoch + 1)

    # Entities -----------------------------------------------------------------------------------------------------------

    def _key(self, entity: EntityKey) -> tuple[str, str, str]:
        return (self._keyspace, entity.persistence_id, entity.entity_id)

    def _entity(self, entity: EntityKey) -> rules.EntityRow | None:
        row = self._db.execute("SELECT seq, epoch, binding FROM entity WHERE ks=? AND pid=? AND id=?", self._key(entity)).fetchone()
        return None if row is None else rules.EntityRow(*row)

    def _recorded(self, entity: EntityKey, command_id: str) -> bytes | None:
        row = self._db.execute(
            "SELECT outcome FROM command WHERE ks=? AND pid=? AND id=? AND command_id=?", (*self._key(entity), command_id)
        ).fetchone()
        return None if row is None else row[0]

    def _activate(self, operation: Activate) -> Outcome:
        refused = rules.activate(self._shard(operation.shard), self._entity(operation.entity), operation)
        if refused is not None:
            return refused
        key = self._key(operation.entity)
        self._db.execute(
            "INSERT INTO entity (ks, pid, id, seq, epoch, binding) VALUES (?,?,?,0,?,?)"
            " ON CONFLICT (ks, pid, id) DO UPDATE SET epoch=excluded.epoch, binding=excluded.binding",
            (*key, operation.token.epoch, operation.binding),
        )
        seq, snapshot_seq, kind, data = self._db.execute(
            "SELECT seq, snapshot_seq, snapshot_type, snapshot FROM entity WHERE ks=? AND pid=? AND id=?", key
        ).fetchone()
        tail = self._db.execute("SELECT seq, type_url, payload FROM event WHERE ks=? AND pid=? AND id=? AND seq>? ORDER BY seq", (*key, snapshot_seq))
        events = tuple(Event(number, Value(type_url, payload)) for number, type_url, payload in tail)
        return Active(seq, snapshot_seq, _value(kind, data), events)

    def _append(self, operation: Append) -> Outcome:
        refused = self._refused(operation)
        if refused is not None:
            return refused
        key, seq = self._key(operation.entity), operation.expected_seq
        rows = [(*key, seq + n, event.type_url, event.data) for n, event in enumerate(operation.events, 1)]
        if rows:
            self._db.executemany("INSERT INTO event VALUES (?,?,?,?,?,?)", rows)
            self._log(operation)
        seq += len(rows)
        if (snapshot := operation.snapshot) is not None:
            self._db.execute(_SAVE_SNAPSHOT, (seq, seq, snapshot.type_url, snapshot.data, *key))
        else:
            self._db.execute("UPDATE entity SET seq=? WHERE ks=? AND pid=? AND id=?", (seq, *key))
        return self._appended(operation, seq)

    def _put(self, operation: Put) -> Outcome:
        refused = self._refused(operation)
        if refused is not None:
            return refused
        seq = operation.expected_seq + 1
        self._db.execute(_SAVE_SNAPSHOT, (seq, seq, *_columns(operation.value), *self._key(operation.entity)))
        return self._appended(operation, seq)

    def _refused(self, operation: Append | Put) -> Outcome | None:
        recorded = self._recorded(operation.entity, operation.command_id) if operation.command_id else None
        return rules.append(self._shard(operation.shard), self._entity(operation.entity), recorded, operation)

    def _appended(self, operation: Append | Put, seq: int) -> Outcome:
        if operation.command_id:
            row = (*self._key(operation.entity), operation.command_id, operation.outcome, time.time())
            self._db.execute("INSERT INTO command VALUES (?,?,?,?,?,?)", row)
        return Appended(seq)

    # Logs and their readers ---------------------------------------------------------------------------------------------

    def _log(self, operation: Append) -> None:
        """Nobody else has the file, so the last offset of each log is known. What is undone later leaves a gap."""
        log = (operation.shard, operation.entity.persistence_id)
        last = self._last.get(log) or self._last_logged(*log)
        name, seq = operation.entity.entity_id, operation.expected_seq
        rows = [(self._keyspace, *log, last + n, name, seq + n) for n in range(1, len(operation.events) + 1)]
        self._db.executemany("INSERT INTO log VALUES (?,?,?,?,?,?)", rows)
        self._last[log] = last + len(rows)

    def _last_logged(self, shard: int, persistence_id: str) -> int:
        log = (self._keyspace, shard, persistence_id)
        return self._db.execute("SELECT max(at) FROM log WHERE ks=? AND shard=? AND pid=?", log).fetchone()[0] or 0

    def _read_log(self, operation: ReadLog) -> Outcome:
        asked = (self._keyspace, operation.shard, operation.persistence_id, operation.after, max(0, operation.limit))
        found = self._db.execute(_READ_LOG, asked)
        return LogPage(tuple(LogEntry(at, name, seq, Value(type_url, payload)) for at, name, seq, type_url, payload in found))

    def _cursor(self, shard: int, consumer: str) -> int:
        row = self._db.execute("SELECT at FROM cursor WHERE ks=? AND shard=? AND consumer=?", (self._keyspace, shard, consumer)).fetchone()
        return 0 if row is None else row[0]

    def _commit(self, operation: Commit) -> Outcome:
        present = self._cursor(operation.shard, operation.consumer)
        outcome = rules.commit(self._shard(operation.shard), present, operation)
        if isinstance(outcome, At) and outcome.offset != present:
            self._db.execute(_SAVE_CURSOR, (self._keyspace, operation.shard, operation.consumer, outcome.offset))
        return outcome

    # Replicated values --------------------------------------------------------------------------------------------------

    def _record(self, entity: EntityKey) -> Stored:
        row = self._db.execute("SELECT version, type_url, data FROM record WHERE ks=? AND pid=? AND id=?", self._key(entity)).fetchone()
        return Stored(0, None) if row is None else Stored(row[0], _value(*row[1:]))

    def _swap(self, operation: Swap) -> Outcome:
        outcome = rules.swap(self._shard(operation.shard), self._record(operation.entity), operation)
        if isinstance(outcome, Swapped):
            self._db.execute(_SAVE_RECORD, (*self._key(operation.entity), outcome.version, *_columns(operation.value)))
        return outcome


def _value(type_url: str | None, data: bytes | None) -> Value | None:
    return None if type_url is None or data is None else Value(type_url, data)


def _columns(value: Value | None) -> tuple[str | None, bytes | None]:
    return (None, None) if value is None else (value.type_url, value.data)
