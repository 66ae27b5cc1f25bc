"""One SQLite file and the one thread that writes it, shared by every keyspace that this process has open in it.

The file is locked exclusively while it is open: a second process is refused at open. That is also what makes WAL safe with every SQLite
version (3.7.0 to 3.51.2 may lose commits when a write races a checkpoint of *another* connection), and it does without shared memory.

Everything that waits goes into one transaction (group commit): a savepoint for each operation, so that one refusal does not undo its
neighbours, and one flush to disk for all of them. Answers go out after the commit, never before. On a full disk nothing is lost: writes
are refused, reads are answered, and once there is room again writing goes on by itself.
"""

from __future__ import annotations

import logging
import pathlib
import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from cloudstate_core.journal.answering import deliver
from cloudstate_core.journal.api import Done, JournalError, Operation, Outcome, Question, Refused, Unknown
from cloudstate_core.journal.sqlite_connection import connect, failed

log = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Batches that may wait for the writer; more are refused."""
GROUP = 512
"""Batches of one commit at most."""
COMMAND_WINDOW = 24 * 3600.0
"""Seconds that a command id is remembered."""
EXPIRY_INTERVAL, EXPIRY_ROWS = 1.0, 2_000
"""Expired command ids are deleted so often (seconds), so many at a time: the hot path never waits for a large delete."""

_EXPIRE = (
    "DELETE FROM command WHERE (ks, pid, id, command_id) IN (SELECT ks, pid, id, command_id FROM command WHERE at < ? ORDER BY at LIMIT ?)"
)


class Keyspace(Protocol):
    """Who performs the operations of a batch, on the writer thread, inside its transaction."""

    def perform(self, operation: Operation) -> Outcome:
        """Do it; an sqlite3.Error undoes it."""


class _Nobody:
    def perform(self, operation: Operation) -> Outcome:
        raise AssertionError("an empty batch has no operations")


_Batch = tuple[Keyspace, Sequence[Operation], Done]


class SqliteFile:
    """An open file. `open_file` gives the same one to everybody in this process; `release` lets go of it."""

    def __init__(self, path: str) -> None:
        """JournalError when the file cannot be opened for writing by this process alone."""
        self.path = path
        self.keyspaces: set[str] = set()
        """Open in this process."""
        self._waiting: queue.Queue[_Batch | None] = queue.Queue(MAX_WAITING)
        self._closed = False
        self._submitting = threading.Lock()
        self._expired_at = 0.0
        self.lock = threading.RLock()
        """Held while `db` is used: by the writer for each group, by whoever opens a keyspace."""
        self.db = connect(path)
        self._writer = threading.Thread(target=self._write, name=f"journal {path}", daemon=True)
        self._writer.start()

    def submit(self, keyspace: Keyspace, operations: Sequence[Operation], done: Done) -> None:
        """Queue a batch; refused at once when the file is closed or too many wait."""
        with self._submitting:
            why = "is closed" if self._closed else f"queue is full: {MAX_WAITING} batches wait, no more are taken"
            try:
                if not self._closed:
                    self._waiting.put_nowait((keyspace, operations, done))
                    return
            except queue.Full:
                pass
        done([Refused(f"journal {self.path}: {why}")] * len(operations))

    def flush(self) -> None:
        """Wait until everything queued so far is answered; at once on the writer thread itself. The file must be open."""
        if threading.current_thread() is not self._writer:
            answered = threading.Event()
            self._waiting.put((_Nobody(), (), lambda outcomes: answered.set()))  # waits for room: a refusal would end the wait at once
            answered.wait()

    def close(self) -> None:
        """Finish what waits, then let go of the file."""
        with self._submitting:
            self._closed = True
        self._waiting.put(None)
        if threading.current_thread() is not self._writer:
            self._writer.join()

    # The writer ---------------------------------------------------------------------------------------------------------

    def _write(self) -> None:
        ended = False
        while not ended:
            first = self._waiting.get()
            group = [] if first is None else [first]
            ended = first is None
            while not ended and len(group) < GROUP and not self._waiting.empty():
                batch = self._waiting.get_nowait()
                if batch is None:
                    ended = True
                else:
                    group.append(batch)
            if group:
                self._answer(group, self._commit(group))
        self.db.close()

    @staticmethod
    def _answer(group: list[_Batch], answers: Sequence[Sequence[Outcome]]) -> None:
        for (_, _, done), outcomes in zip(group, answers, strict=True):
            deliver(done, outcomes)

    def _commit(self, group: list[_Batch]) -> Sequence[Sequence[Outcome]]:
        """One transaction for all of a group. When nothing could be written, what only reads is answered all the same."""
        with self.lock:
            found = self._transact(group)
            if isinstance(found, Unknown):
                return [[found] * len(operations) for _, operations, _ in group]
            if isinstance(found, Refused):
                return [[self._read(keyspace, operation) or found for operation in operations] for keyspace, operations, _ in group]
            return found

    def _transact(self, group: list[_Batch]) -> list[list[Outcome]] | Refused | Unknown:
        """The answers; or what became of all of them, when nothing of the transaction is left."""
        committing = False
        try:
            self.db.execute("BEGIN IMMEDIATE")
            answers = [[self._guarded(keyspace, operation) for operation in operations] for keyspace, operations, _ in group]
            self._expire(time.time())
            committing = True
            self.db.execute("COMMIT")
            return answers
        except Exception as error:  # whatever it is, the writer of everybody must go on
            if not isinstance(error, sqlite3.Error):
                log.exception("journal %s: a transaction failed", self.path)
            self._rollback()
            return failed(self.path, error, committing)

    def _rollback(self) -> None:
        try:
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
        except sqlite3.Error as error:  # the next BEGIN fails, and this is tried again
            log.error("journal %s: a transaction cannot be undone yet: %s", self.path, error)

    def _read(self, keyspace: Keyspace, operation: Operation) -> Outcome | None:
        """The answer of an operation that only reads, if it can be had: never from a transaction that is still to be undone."""
        if not isinstance(operation, Question) or self.db.in_transaction:
            return None
        try:
            return self._guarded(keyspace, operation)
        except sqlite3.Error:
            return None

    def _guarded(self, keyspace: Keyspace, operation: Operation) -> Outcome:
        """One operation; in a savepoint of its own, if it writes. A store that cannot write fails the group, anything else this one alone."""
        writes = not isinstance(operation, Question)
        if writes:
            self.db.execute("SAVEPOINT operation")
        try:
            outcome = keyspace.perform(operation)
        except sqlite3.OperationalError:
            raise
        except (sqlite3.Error, ValueError, OverflowError) as error:
            outcome = Refused(f"journal {self.path}: {type(operation).__name__.lower()} cannot be {'stored' if writes else 'answered'}: {error}")
            if writes:
                self.db.execute("ROLLBACK TO operation")
        if writes:
            self.db.execute("RELEASE operation")
        return outcome

    def _expire(self, now: float) -> None:
        if now - self._expired_at >= EXPIRY_INTERVAL:
            self._expired_at = now
            self.db.execute(_EXPIRE, (now - COMMAND_WINDOW, EXPIRY_ROWS))


_files: dict[str, SqliteFile] = {}
_files_lock = threading.Lock()


def open_file(path: str, keyspace: str) -> SqliteFile:
    """The file at `path`, opened now if this process has not, with `keyspace` taken in it; give it back with `release`.

    JournalError as SqliteFile, and when the keyspace is taken: it has one opener.
    """
    name = str(pathlib.Path(path).resolve()) if path and path != ":memory:" else path
    with _files_lock:
        file = _files.get(name)
        if file is None:
            file = _files[name] = SqliteFile(path)
        elif keyspace in file.keyspaces:
            raise JournalError(
                f"journal {path}, keyspace {keyspace}: this or another process has it open: one opener serves it to the others"
            )
        file.keyspaces.add(keyspace)
        return file


def release(file: SqliteFile, keyspace: str) -> None:
    """Let a keyspace go; the last one closes the file."""
    with _files_lock:
        file.keyspaces.discard(keyspace)
        if file.keyspaces:
            return
        for name in [name for name, other in _files.items() if other is file]:
            del _files[name]
        file.close()
