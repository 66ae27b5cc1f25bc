"""The journal in one SQLite file: the embedded default. One process opens it; the pods of a machine reach it through that process.

The rows of one keyspace are read and written here, by the rules that all stores share; transactions, group commit and what happens when the
file cannot be written are the business of `sqlite_file`.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
import time
from collections.abc import Sequence

from cloudstate_core.hashing import HASH_NAME
from cloudstate_core.journal import rules
from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    Check,
    Claim,
    Claimed,
    Done,
    EntityKey,
    Event,
    Found,
    Incompatible,
    JournalError,
    Layout,
    Lookup,
    Operation,
    Outcome,
    Refused,
    Seal,
    Sealed,
    Uninitialised,
    Value,
)  # fmt: skip
from cloudstate_core.journal.sqlite_connection import cannot_open
from cloudstate_core.journal.sqlite_file import open_file, release


class SqliteJournal:
    """See `cloudstate_core.journal.api.Journal`; `done` is called on the file's writer thread. Keyspaces of one file share that thread."""

    def __init__(self, path: str, keyspace: str, shard_count: int) -> None:
        """Open or create. JournalError says what is wrong with the file, Incompatible which layout it has."""
        self._path, self._keyspace = path, keyspace
        self._closing = threading.Lock()
        self._closed = False
        self._file = open_file(path, keyspace)
        self._db = self._file.db
        try:
            with self._file.lock:
                self._layout = self._open(shard_count)
        except sqlite3.Error as error:
            release(self._file, keyspace)
            raise JournalError(cannot_open(path, error)) from error
        except JournalError:
            release(self._file, keyspace)
            raise

    def _open(self, shard_count: int) -> Layout:
        """Make the layout and the fence rows once; afterwards compare."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            row = db.execute("SELECT journal_id, shards, hash, format FROM layout WHERE ks=?", (self._keyspace,)).fetchone()
            if row is None:
                row = (secrets.token_hex(8), shard_count, HASH_NAME, 1)
                db.execute("INSERT INTO layout VALUES (?,?,?,?,?)", (self._keyspace, *row))
                rows = ((self._keyspace, shard, 0, secrets.token_bytes(8), 0, "") for shard in range(shard_count))
                db.executemany("INSERT INTO shard VALUES (?,?,?,?,?,?)", rows)
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        layout = Layout(*row)
        if (layout.shard_count, layout.hash, layout.format) != (shard_count, HASH_NAME, 1):
            raise Incompatible(
                f"journal {self._path}, keyspace {self._keyspace}: has {layout.shard_count} shards, hash {layout.hash}, format {layout.format}; "
                f"asked for {shard_count}, {HASH_NAME}, 1: the layout of a keyspace never changes"
            )
        return layout

    @property
    def layout(self) -> Layout:
        """See Journal."""
        return self._layout

    def submit(self, operations: Sequence[Operation], done: Done) -> None:
        """See Journal."""
        if self._closed:
            done([Refused(f"journal {self._path}: is closed")] * len(operations))
        else:
            self._file.submit(self, operations, done)

    def close(self) -> None:
        """See Journal."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._file.flush()
        release(self._file, self._keyspace)

    # Operations, on the writer thread -----------------------------------------------------------------------------------

    def perform(self, operation: Operation) -> Outcome:
        """One operation inside the writer's transaction."""
        match operation:
            case Append():
                return self._append(operation)
            case Activate():
                return self._activate(operation)
            case Claim():
                return self._claim(operation)
            case Seal():
                return self._seal(operation)
            case Check():
                return rules.check(self._shard(operation.shard), operation)
            case Lookup():
                return Found(self._recorded(operation.entity, operation.command_id))
            case _:
                return Refused(f"{type(operation).__name__}: this store does not keep such records yet")

    def _shard(self, shard: int) -> rules.ShardRow | None:
        row = self._db.execute(
            "SELECT epoch, nonce, generation, owner FROM shard WHERE ks=? AND shard=?", (self._keyspace, shard)
        ).fetchone()
        return None if row is None else rules.ShardRow(*row)

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
        tail = self._db.execute(
            "SELECT seq, type_url, payload FROM event WHERE ks=? AND pid=? AND id=? AND seq>? ORDER BY seq", (*key, snapshot_seq)
        )
        events = tuple(Event(number, Value(type_url, payload)) for number, type_url, payload in tail)
        return Active(seq, snapshot_seq, None if kind is None else Value(kind, data), events)

    def _append(self, operation: Append) -> Outcome:
        recorded = self._recorded(operation.entity, operation.command_id) if operation.command_id else None
        refused = rules.append(self._shard(operation.shard), self._entity(operation.entity), recorded, operation)
        if refused is not None:
            return refused
        key, seq = self._key(operation.entity), operation.expected_seq
        rows = [(*key, seq + n, event.type_url, event.data) for n, event in enumerate(operation.events, 1)]
        self._db.executemany("INSERT INTO event VALUES (?,?,?,?,?,?)", rows)
        seq += len(rows)
        self._db.execute("UPDATE entity SET seq=? WHERE ks=? AND pid=? AND id=?", (seq, *key))
        if (snapshot := operation.snapshot) is not None:
            self._db.execute(
                "UPDATE entity SET snapshot_seq=?, snapshot_type=?, snapshot=? WHERE ks=? AND pid=? AND id=?",
                (seq, snapshot.type_url, snapshot.data, *key),
            )
        if operation.command_id:
            self._db.execute("INSERT INTO command VALUES (?,?,?,?,?,?)", (*key, operation.command_id, operation.outcome, time.time()))
        return Appended(seq)
