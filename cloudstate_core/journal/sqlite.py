"""The journal in one SQLite file: the embedded default. One process opens it; the pods of a machine reach it through that process.

One writer thread takes everything that waits into one transaction (group commit): a savepoint for each operation, so that one refusal does
not undo its neighbours, and one flush to disk for all of them. Answers go out after the commit, never before. A commit that fails undoes
the whole group: every operation of it is answered Refused, which is definite.
"""

from __future__ import annotations

import pathlib
import queue
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

MAX_WAITING = 10_000
"""Batches that may wait for the writer; more are refused."""
GROUP = 512
"""Batches of one commit at most."""
COMMAND_WINDOW = 24 * 3600.0
"""Seconds that a command id is remembered."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS layout (ks TEXT PRIMARY KEY, journal_id TEXT NOT NULL, shards INT NOT NULL, hash TEXT NOT NULL, format INT NOT NULL);
CREATE TABLE IF NOT EXISTS shard (ks TEXT, shard INT, epoch INT NOT NULL, nonce BLOB NOT NULL, generation INT NOT NULL, owner TEXT NOT NULL,
  PRIMARY KEY (ks, shard)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entity (ks TEXT, pid TEXT, id TEXT, seq INT NOT NULL, epoch INT NOT NULL, binding BLOB NOT NULL,
  snapshot_seq INT NOT NULL DEFAULT 0, snapshot_type TEXT, snapshot BLOB, PRIMARY KEY (ks, pid, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS event (ks TEXT, pid TEXT, id TEXT, seq INT, type_url TEXT NOT NULL, payload BLOB NOT NULL,
  PRIMARY KEY (ks, pid, id, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS command (ks TEXT, pid TEXT, id TEXT, command_id TEXT, outcome BLOB NOT NULL, at REAL NOT NULL,
  PRIMARY KEY (ks, pid, id, command_id)) WITHOUT ROWID;
"""


class SqliteJournal:
    """See `cloudstate_core.journal.api.Journal`; `done` is called on the writer thread."""

    def __init__(self, path: str, keyspace: str, shard_count: int) -> None:
        """Open or create. JournalError says what is wrong with the file, Incompatible which layout it has."""
        self._path, self._keyspace = path, keyspace
        self._waiting: queue.Queue[tuple[Sequence[Operation], Done] | None] = queue.Queue(MAX_WAITING)
        self._closed = False
        try:
            self._db = self._connect()
            self._layout = self._open(shard_count)
        except sqlite3.Error as error:
            raise JournalError(_cannot_open(path, error)) from error
        self._writer = threading.Thread(target=self._write, name=f"journal {keyspace}", daemon=True)
        self._writer.start()

    def _connect(self) -> sqlite3.Connection:
        folder = pathlib.Path(self._path).resolve().parent
        if not folder.is_dir():
            raise JournalError(f"journal {self._path}: folder {folder} does not exist; it must be made first")
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=2.0)
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        return db

    def _open(self, shard_count: int) -> Layout:
        """Take the exclusive lock, make the tables and fence rows once, and compare the layout."""
        db = self._db
        for statement in _SCHEMA.split(";\n"):
            db.execute(statement)
        db.execute("BEGIN IMMEDIATE")
        try:
            row = db.execute("SELECT journal_id, shards, hash, format FROM layout WHERE ks=?", (self._keyspace,)).fetchone()
            if row is None:
                row = (secrets.token_hex(8), shard_count, HASH_NAME, 1)
                db.execute("INSERT INTO layout VALUES (?,?,?,?,?)", (self._keyspace, *row))
                rows = ((self._keyspace, shard, 0, secrets.token_bytes(8), 0, "") for shard in range(shard_count))
                db.executemany("INSERT INTO shard VALUES (?,?,?,?,?,?)", rows)
            db.execute("DELETE FROM command WHERE at < ?", (time.time() - COMMAND_WINDOW,))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        layout = Layout(*row)
        wanted = (shard_count, HASH_NAME, 1)
        if (layout.shard_count, layout.hash, layout.format) != wanted:
            db.close()
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
        try:
            if self._closed:
                raise queue.Full
            self._waiting.put_nowait((operations, done))
        except queue.Full:
            why = "is closed" if self._closed else f"has {MAX_WAITING} batches waiting, no more are taken"
            done([Refused(f"journal {self._path} {why}")] * len(operations))

    def close(self) -> None:
        """See Journal."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
            self._writer.join()
            self._db.close()

    # The writer ---------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        ended = False
        while not ended:
            first = self._waiting.get()
            group = [] if first is None else [first]
            ended = first is None
            while len(group) < GROUP and not self._waiting.empty():
                batch = self._waiting.get_nowait()
                if batch is None:
                    ended = True
                    break
                group.append(batch)
            if group:
                self._commit(group)

    def _commit(self, group: list[tuple[Sequence[Operation], Done]]) -> None:
        """One transaction for all of a group; answers after the commit."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            answers = [[self._guarded(operation) for operation in operations] for operations, _ in group]
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            reason = Refused(f"journal {self._path}: nothing was written: {error}")
            answers = [[reason] * len(operations) for operations, _ in group]
        for (_, done), outcomes in zip(group, answers, strict=True):
            done(outcomes)

    def _guarded(self, operation: Operation) -> Outcome:
        """One operation in a savepoint of its own."""
        if isinstance(operation, Check | Lookup):
            return self._perform(operation)
        self._db.execute("SAVEPOINT operation")
        try:
            outcome = self._perform(operation)
        except sqlite3.Error:
            self._db.execute("ROLLBACK TO operation")
            raise
        self._db.execute("RELEASE operation")
        return outcome

    def _perform(self, operation: Operation) -> Outcome:
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


def _cannot_open(path: str, error: sqlite3.Error) -> str:
    text = str(error)
    if "readonly" in text or "unable to open" in text:
        return f"journal {path}: cannot be written ({text}): the file and its folder must be writable"
    if "locked" in text:
        return f"journal {path}: another process has it open: one process opens it and serves it to the others"
    return f"journal {path}: {text}"
