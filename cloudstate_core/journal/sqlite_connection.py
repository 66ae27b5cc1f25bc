"""The connection to an SQLite file that this process alone has open: how it is opened, and what its errors mean.

The write-ahead log is used where SQLite has it, else the rollback journal: both keep what was committed over a crash and a loss of power,
since every commit is flushed (a rollback journal's folder too: EXTRA).
"""

from __future__ import annotations

import os
import pathlib
import sqlite3

from cloudstate_core.journal.api import JournalError, Refused, Unknown

MAKE_ROOM = "make room, and writing goes on"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS layout (ks TEXT PRIMARY KEY, journal_id TEXT NOT NULL, shards INT NOT NULL, hash TEXT NOT NULL,"
    " format INT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS shard (ks TEXT, shard INT, epoch INT NOT NULL, nonce BLOB NOT NULL, generation INT NOT NULL,"
    " owner TEXT NOT NULL, PRIMARY KEY (ks, shard)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS entity (ks TEXT, pid TEXT, id TEXT, seq INT NOT NULL, epoch INT NOT NULL, binding BLOB NOT NULL,"
    " snapshot_seq INT NOT NULL DEFAULT 0, snapshot_type TEXT, snapshot BLOB, PRIMARY KEY (ks, pid, id)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS event (ks TEXT, pid TEXT, id TEXT, seq INT, type_url TEXT NOT NULL, payload BLOB NOT NULL,"
    " PRIMARY KEY (ks, pid, id, seq)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS command (ks TEXT, pid TEXT, id TEXT, command_id TEXT, outcome BLOB NOT NULL, at REAL NOT NULL,"
    " PRIMARY KEY (ks, pid, id, command_id)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS command_at ON command (at)",
    "CREATE TABLE IF NOT EXISTS log (ks TEXT, shard INT, pid TEXT, at INT, id TEXT NOT NULL, seq INT NOT NULL,"
    " PRIMARY KEY (ks, shard, pid, at)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS cursor (ks TEXT, shard INT, consumer TEXT, at INT NOT NULL, PRIMARY KEY (ks, shard, consumer)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS record (ks TEXT, pid TEXT, id TEXT, version INT NOT NULL, type_url TEXT, data BLOB,"
    " PRIMARY KEY (ks, pid, id)) WITHOUT ROWID",
)


def connect(path: str) -> sqlite3.Connection:
    """Open, take the exclusive lock, and make the tables. JournalError says what is wrong with the file."""
    folder = pathlib.Path(path).resolve().parent
    if not folder.is_dir():
        raise JournalError(f"journal {path}: folder {folder} does not exist; it must be made first")
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=2.0)
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        mode = db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":  # a build or a file system without what WAL needs
            mode = db.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
        if mode not in {"wal", "delete"}:
            raise JournalError(f"journal {path}: is not a durable file (journal mode {mode}); use `memory:` for a journal that forgets")
        db.execute(f"PRAGMA synchronous={'FULL' if mode == 'wal' else 'EXTRA'}")
        db.execute("BEGIN IMMEDIATE")
        for statement in _SCHEMA:
            db.execute(statement)
        db.execute("COMMIT")
    except (sqlite3.Error, JournalError) as error:
        if db is not None:
            db.close()
        if isinstance(error, JournalError):
            raise
        raise JournalError(cannot_open(path, error)) from error
    return db


def cannot_open(path: str, error: sqlite3.Error) -> str:
    """What is wrong with a file, and the rule."""
    text = str(error)
    if "readonly" in text or "unable to open" in text or not _writable(path):
        return f"journal {path}: cannot be written ({text}): the file and its folder must be writable"
    if "full" in text:
        return f"journal {path}: cannot be written ({text}): {MAKE_ROOM}"
    if "locked" in text:
        return f"journal {path}: another process has it open: one process opens it and serves it to the others"
    return f"journal {path}: {text}"


def _writable(path: str) -> bool:
    """SQLite itself calls a read-only file in WAL mode a disk I/O error."""
    return all(os.access(part, os.W_OK, effective_ids=True) for part in (path, pathlib.Path(path).resolve().parent) if os.path.exists(part))


def failed(path: str, error: Exception, committing: bool) -> Refused | Unknown:
    """What a failed transaction means. A flush that failed while committing may leave the commit in the log, to be found after a crash:
    that is not definite, nor is a failure of another kind."""
    name = str(getattr(error, "sqlite_errorname", ""))
    if name == "SQLITE_FULL":
        return Refused(f"journal {path}: nothing was written: {error}: {MAKE_ROOM}")
    definite = isinstance(error, sqlite3.Error) and not name.startswith("SQLITE_IOERR")
    if committing and not definite:
        return Unknown(f"journal {path}: the commit failed: {error}")
    return Refused(f"journal {path}: nothing was written: {error}")
