"""The journal in one SQLite file: the embedded default. One process opens it; the pods of a machine reach it through that process.

A keyspace is opened here: its layout is made once, compared ever after, and brought up to date. Its rows are the business of `sqlite_rows`;
transactions, group commit and what happens when the file cannot be written, that of `sqlite_file`.
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections.abc import Sequence

import msgspec

from cloudstate_core.hashing import HASH_NAME, shard_of
from cloudstate_core.journal.api import Done, Incompatible, JournalError, Layout, Operation, Refused
from cloudstate_core.journal.sqlite_connection import cannot_open
from cloudstate_core.journal.sqlite_file import open_file, release
from cloudstate_core.journal.sqlite_rows import Rows

FORMAT = 2
"""1 had no logs: they are made from its events when the keyspace is opened."""
_LOG_OF_EVENTS = (
    "INSERT INTO log SELECT ks, shard, pid, row_number() OVER (PARTITION BY shard, pid ORDER BY id, seq), id, seq"
    " FROM (SELECT ks, shard_of(pid, id) AS shard, pid, id, seq FROM event WHERE ks=?)"
)


class SqliteJournal:
    """See `cloudstate_core.journal.api.Journal`; `done` is called on the file's writer thread. Keyspaces of one file share that thread."""

    def __init__(self, path: str, keyspace: str, shard_count: int) -> None:
        """Open or create. JournalError says what is wrong with the file, Incompatible which layout it has."""
        self._path, self._keyspace = path, keyspace
        self._closing = threading.Lock()
        self._closed = False
        self._file = open_file(path, keyspace)
        self._db = self._file.db
        self._rows = Rows(self._db, keyspace)
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
        """Make the layout and the fence rows once; afterwards compare, and bring what an earlier version wrote up to date."""
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            row = db.execute("SELECT journal_id, shards, hash, format FROM layout WHERE ks=?", (self._keyspace,)).fetchone()
            if row is None:
                row = (secrets.token_hex(8), shard_count, HASH_NAME, FORMAT)
                db.execute("INSERT INTO layout VALUES (?,?,?,?,?)", (self._keyspace, *row))
                rows = ((self._keyspace, shard, 0, secrets.token_bytes(8), 0, "") for shard in range(shard_count))
                db.executemany("INSERT INTO shard VALUES (?,?,?,?,?,?)", rows)
            layout = self._upgraded(self._agreed(Layout(*row), shard_count))
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
        return layout

    def _agreed(self, found: Layout, shard_count: int) -> Layout:
        if (found.shard_count, found.hash) != (shard_count, HASH_NAME) or found.format not in (1, FORMAT):
            raise Incompatible(
                f"journal {self._path}, keyspace {self._keyspace}: has {found.shard_count} shards, hash {found.hash}, format {found.format}; "
                f"asked for {shard_count} shards, {HASH_NAME}, format {FORMAT}: the layout of a keyspace never changes"
            )
        return found

    def _upgraded(self, found: Layout) -> Layout:
        """Format 1 lacks the logs. The order of events of different entities was not kept then: their logs go entity by entity."""
        if found.format == FORMAT:
            return found
        self._db.create_function("shard_of", 2, lambda kind, name: shard_of(kind, name, found.shard_count), deterministic=True)
        self._db.execute(_LOG_OF_EVENTS, (self._keyspace,))
        self._db.execute("UPDATE layout SET format=? WHERE ks=?", (FORMAT, self._keyspace))
        return msgspec.structs.replace(found, format=FORMAT)

    @property
    def layout(self) -> Layout:
        """See Journal."""
        return self._layout

    def submit(self, operations: Sequence[Operation], done: Done) -> None:
        """See Journal."""
        if self._closed:
            done([Refused(f"journal {self._path}: is closed")] * len(operations))
        else:
            self._file.submit(self._rows, operations, done)

    def close(self) -> None:
        """See Journal."""
        with self._closing:
            if self._closed:
                return
            self._closed = True
        self._file.flush()
        release(self._file, self._keyspace)
