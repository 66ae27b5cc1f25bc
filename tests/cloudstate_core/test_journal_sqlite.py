"""What only the SQLite journal promises: durability over kill -9, one opener, and clear words when the file cannot be written."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from cloudstate_core.hashing import shard_of
from cloudstate_core.journal import sqlite_file
from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    At,
    Claim,
    Commit,
    Cursor,
    EntityKey,
    Found,
    Incompatible,
    JournalError,
    LogPage,
    Lookup,
    Outcome,
    Read,
    ReadLog,
    Refused,
    Stored,
    Swap,
    Token,
    Unknown,
    Value,
)
from cloudstate_core.journal.sqlite import SqliteJournal
from tests.journals import CART, PATIENCE, append, bound, run, submit


@pytest.fixture
def journal(tmp_path: pathlib.Path) -> Iterator[SqliteJournal]:
    opened = SqliteJournal(str(tmp_path / "journal.db"), "ks", 4)
    yield opened
    opened.close()


@contextlib.contextmanager
def writer_paused(journal: SqliteJournal) -> Iterator[None]:
    """The writer waits inside an answer, so that what is submitted meanwhile gathers in its queue."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(outcomes: Sequence[Outcome]) -> None:
        reached.set()
        go_on.wait(PATIENCE)

    journal.submit((), hold)
    assert reached.wait(PATIENCE)
    yield
    go_on.set()


def test_what_waits_is_committed_together(journal: SqliteJournal) -> None:
    token = bound(journal)
    commits = []
    journal._db.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
    with writer_paused(journal):
        answers = [submit(journal, append(token, n)) for n in range(100)]
    assert [answer.result(PATIENCE) for answer in answers] == [[Appended(n + 1)] for n in range(100)]
    assert len(commits) == 2, "one for the pause, one for all the appends"


def test_a_full_queue_refuses_and_loses_nothing(journal: SqliteJournal, monkeypatch: Any) -> None:
    token = bound(journal)
    with writer_paused(journal):
        journal._file._waiting.maxsize = 2
        answers = [submit(journal, append(token, n)) for n in range(3)]
        assert "queue is full" in answers[2].result(0)[0].reason  # type: ignore[union-attr]
    assert [answer.result(PATIENCE) for answer in answers[:2]] == [[Appended(1)], [Appended(2)]]
    assert run(journal, append(token, 2)) == [Appended(3)]


def test_a_journal_that_closes_over_a_full_queue_has_answered_everything(journal: SqliteJournal) -> None:
    token = bound(journal)
    other = SqliteJournal(journal._path, "other", 1)  # the file stays open for it
    answered: list[bool] = []

    def close() -> None:
        journal.close()
        answered.extend(answer.done() for answer in answers)

    with writer_paused(journal):
        journal._file._waiting.maxsize = 2
        answers = [submit(journal, append(token, n)) for n in range(2)]
        closing = threading.Thread(target=close)
        closing.start()
        closing.join(0.5)
    closing.join(PATIENCE)
    other.close()
    assert answered == [True, True]


def test_a_receiver_that_fails_does_not_stop_the_writer(journal: SqliteJournal) -> None:
    token = bound(journal)
    journal.submit([append(token, 0)], lambda outcomes: 1 / 0)  # type: ignore[arg-type, return-value]
    assert run(journal, append(token, 1)) == [Appended(2)]


def test_a_value_that_cannot_be_stored_is_refused_alone(journal: SqliteJournal) -> None:
    token = bound(journal)
    odd = EntityKey("cart", "\ud800")
    bad = [append(token, 1, command_id="\ud800"), Lookup(0, CART, "\ud800"), Swap(0, odd, 0, None), Read(0, odd), Commit(0, token, "c", 2**70)]
    good, *refused, next_good = run(journal, append(token, 0), *bad, append(token, 1))
    assert (good, next_good) == (Appended(1), Appended(2))
    assert [type(outcome) for outcome in refused] == [Refused] * 5


def test_a_full_disk_refuses_definitely_and_recovers(journal: SqliteJournal) -> None:
    token = bound(journal)
    pages = journal._db.execute("PRAGMA page_count").fetchone()[0]
    journal._db.execute(f"PRAGMA max_page_count={pages}")
    (refused,) = run(journal, append(token, 0, b"x" * 100_000))
    assert isinstance(refused, Refused)
    assert "disk is full" in refused.reason
    journal._db.execute("PRAGMA max_page_count=1000000")
    assert run(journal, append(token, 0)) == [Appended(1)]


class FailsToCommit:
    """A connection whose commits fail on their way to the disk."""

    def __init__(self, db: sqlite3.Connection, name: str) -> None:
        self._db, self._name = db, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def execute(self, sql: str, *parameters: Any) -> Any:
        if sql == "COMMIT":
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorname = self._name
            raise error
        return self._db.execute(sql, *parameters)


def test_a_mistake_in_the_store_costs_its_batch_not_the_writer(journal: SqliteJournal, monkeypatch: Any) -> None:
    token = bound(journal)
    with monkeypatch.context() as patch:
        patch.setattr(journal._rows, "_append", lambda operation: 1 / 0)
        (refused,) = run(journal, append(token, 0))
        assert isinstance(refused, Refused)
        assert "nothing was written: division by zero" in refused.reason
    assert run(journal, append(token, 0)) == [Appended(1)]


class FailsToUndo(FailsToCommit):
    """Its disk fails while a failed commit is undone, too."""

    def execute(self, sql: str, *parameters: Any) -> Any:
        if sql == "ROLLBACK":
            raise sqlite3.OperationalError("disk I/O error")
        return super().execute(sql, *parameters)


def test_nothing_is_read_or_written_while_a_transaction_cannot_be_undone(journal: SqliteJournal, monkeypatch: Any) -> None:
    token = bound(journal)
    with monkeypatch.context() as patch:
        patch.setattr(journal._file, "db", FailsToUndo(journal._db, "SQLITE_FULL"))
        assert isinstance(run(journal, append(token, 0, command_id="c"))[0], Refused)
        assert isinstance(run(journal, Lookup(0, CART, "c"))[0], Refused), "it would be found where nothing was committed"
    assert run(journal, Lookup(0, CART, "c")) == [Found(None)]
    assert run(journal, append(token, 0)) == [Appended(1)]


@pytest.mark.parametrize(("name", "outcome"), [("SQLITE_IOERR_FSYNC", Unknown), ("SQLITE_FULL", Refused)])
def test_a_flush_that_fails_is_not_told_as_definite(journal: SqliteJournal, monkeypatch: Any, name: str, outcome: type) -> None:
    token = bound(journal)
    with monkeypatch.context() as patch:
        patch.setattr(journal._file, "db", FailsToCommit(journal._db, name))
        assert isinstance(run(journal, append(token, 0))[0], outcome)
    assert run(journal, append(token, 0)) == [Appended(1)]


def test_a_log_has_nothing_of_a_transaction_that_was_undone(journal: SqliteJournal, monkeypatch: Any) -> None:
    token = bound(journal)
    run(journal, append(token, 0, b"before"))
    with monkeypatch.context() as patch:
        patch.setattr(journal._file, "db", FailsToCommit(journal._db, "SQLITE_FULL"))
        run(journal, append(token, 1, b"undone"))
    run(journal, append(token, 1, b"after"))
    (page,) = run(journal, ReadLog(0, "cart", 0, 10))
    assert isinstance(page, LogPage)
    assert [(entry.sequence, entry.payload.data) for entry in page.entries] == [(1, b"before"), (2, b"after")]
    assert run(journal, ReadLog(0, "cart", page.entries[0].offset, 10)) == [LogPage(page.entries[1:])]


def test_a_closed_journal_has_answered_everything_and_refuses_more(tmp_path: pathlib.Path) -> None:
    journal = SqliteJournal(str(tmp_path / "journal.db"), "ks", 4)
    token = bound(journal)
    answers = [submit(journal, append(token, n)) for n in range(50)]
    journal.close()
    journal.close()
    assert [answer.result(0) for answer in answers] == [[Appended(n + 1)] for n in range(50)]
    assert "is closed" in submit(journal, append(token, 50)).result(0)[0].reason  # type: ignore[union-attr]


def test_keyspaces_share_a_file_and_nothing_else(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "journal.db")
    one, two = SqliteJournal(path, "one", 4), SqliteJournal(path, "two", 8)
    assert one.layout.journal_id != two.layout.journal_id
    token = bound(one)
    run(one, append(token, 0, command_id="c"))
    one.close()
    assert run(two, Lookup(1, CART, "c")) == [Found(None)]
    assert bound(two, b"m").epoch == 1
    two.close()


def test_command_ids_expire(journal: SqliteJournal, monkeypatch: Any) -> None:
    token = bound(journal)
    run(journal, append(token, 0, command_id="c"))
    monkeypatch.setattr(sqlite_file, "COMMAND_WINDOW", -1.0)
    monkeypatch.setattr(sqlite_file, "EXPIRY_INTERVAL", 0.0)
    run(journal, append(token, 1))
    assert run(journal, Lookup(1, CART, "c")) == [Found(None)]


def python(script: str, *arguments: str) -> subprocess.Popen[str]:
    root = pathlib.Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=root, stdout=subprocess.PIPE, text=True)


APPEND_FOR_EVER = """
import sys, threading
from cloudstate_core.journal.api import *
from cloudstate_core.journal.sqlite import SqliteJournal
journal = SqliteJournal(sys.argv[1], "ks", 4)
def run(operation):
    answered, outcomes = threading.Event(), []
    journal.submit([operation], lambda answer: (outcomes.extend(answer), answered.set()))
    answered.wait()
    return outcomes[0]
cart = EntityKey("cart", "ann")
token = run(Claim(0, -1, 1, "pod", b"n")).token
run(Activate(0, token, cart, b"b"))
for seq in range(10**9):
    print(run(Append(0, token, cart, b"b", seq, (Value("t", b"x"),))).seq, flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "journal.db")
    process = python(APPEND_FOR_EVER, path)
    assert process.stdout is not None
    told = [int(process.stdout.readline()) for _ in range(200)]
    with pytest.raises(JournalError, match="another process has it open"):
        SqliteJournal(path, "ks", 4)
    process.kill()
    told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    journal = SqliteJournal(path, "ks", 4)
    token: Token = run(journal, Claim(0, -1, 1, "pod", b"m"))[0].token  # type: ignore[union-attr]
    (active,) = run(journal, Activate(0, token, CART, b"c"))
    journal.close()
    assert isinstance(active, Active)
    assert token.epoch == 2
    assert [event.sequence for event in active.tail] == list(range(1, active.seq + 1))
    assert active.seq >= told[-1]


SWAP_AND_COMMIT_FOR_EVER = """
import sys, threading
from cloudstate_core.journal.api import *
from cloudstate_core.journal.sqlite import SqliteJournal
journal = SqliteJournal(sys.argv[1], "ks", 4)
def run(*operations):
    answered, outcomes = threading.Event(), []
    journal.submit(operations, lambda answer: (outcomes.extend(answer), answered.set()))
    answered.wait()
    return outcomes
cart = EntityKey("cart", "ann")
token = run(Claim(0, -1, 1, "pod", b"n"))[0].token
run(Activate(0, token, cart, b"b"))
for n in range(10**9):
    value = Value("t", b"%d" % (n + 1))
    outcomes = run(Put(0, token, cart, b"b", n, value), Swap(0, cart, n, value), Commit(0, token, "c", n + 1))
    assert [type(outcome) for outcome in outcomes] == [Appended, Swapped, At], outcomes
    print(n + 1, flush=True)
"""


def test_values_records_and_cursors_survive_kill_9(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "journal.db")
    process = python(SWAP_AND_COMMIT_FOR_EVER, path)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(100)]
    process.kill()
    told = int([*lines, *process.stdout.read().split("\n")[:-1]][-1])
    process.wait()
    journal = SqliteJournal(path, "ks", 4)
    token: Token = run(journal, Claim(0, -1, 1, "pod", b"m"))[0].token  # type: ignore[union-attr]
    active, stored, cursor = run(journal, Activate(0, token, CART, b"c"), Read(0, CART), Cursor(0, "c"))
    journal.close()
    assert isinstance(active, Active)
    assert active.seq in (told, told + 1), "what was told, and at most the transaction that was on its way: of all three or of none"
    value = Value("t", b"%d" % active.seq)
    assert (active.snapshot, stored, cursor) == (value, Stored(active.seq, value), At(active.seq))


# Files of earlier versions ----------------------------------------------------------------------------------------------


def made_before_there_were_logs(path: str, events: dict[EntityKey, int]) -> None:
    """A file of format 1, with so many events of each entity."""
    journal = SqliteJournal(path, "ks", 4)
    for key, count in events.items():
        shard = shard_of(key.persistence_id, key.entity_id, 4)
        token: Token = run(journal, Claim(shard, -1, 1, "pod", b"n"))[0].token  # type: ignore[union-attr]
        values = tuple(Value("t", b"%s %d" % (key.entity_id.encode(), n)) for n in range(1, count + 1))
        assert run(journal, Activate(shard, token, key, b"b"), Append(shard, token, key, b"b", 0, values))[1] == Appended(count)
    journal.close()
    db = sqlite3.connect(path)
    db.executescript("DROP TABLE log; DROP TABLE cursor; DROP TABLE record; UPDATE layout SET format=1")
    db.close()


def test_a_file_of_an_earlier_version_opens_and_gets_its_logs(tmp_path: pathlib.Path) -> None:
    path, names = str(tmp_path / "journal.db"), [EntityKey(kind, f"user-{n}") for kind in ("cart", "order") for n in range(20)]
    made_before_there_were_logs(path, {name: 1 + n for n, name in enumerate(names)})
    SqliteJournal(path, "another keyspace, which has nothing to bring up to date", 8).close()
    for _ in range(2):
        journal = SqliteJournal(path, "ks", 4)
        assert journal.layout.format == 2
        found = [
            (kind, shard, entry.entity_id, entry.sequence, entry.payload.data)
            for kind in ("cart", "order")
            for shard in range(4)
            for entry in run(journal, ReadLog(shard, kind, 0, 10_000))[0].entries  # type: ignore[union-attr]
        ]
        expected = [
            (name.persistence_id, shard_of(name.persistence_id, name.entity_id, 4), name.entity_id, seq, f"{name.entity_id} {seq}".encode())
            for n, name in enumerate(names)
            for seq in range(1, 2 + n)
        ]
        assert sorted(found) == sorted(expected)
        for name in names:
            mine = [sequence for kind, _, entity, sequence, _ in found if (kind, entity) == (name.persistence_id, name.entity_id)]
            assert mine == sorted(mine), "the order within an entity"
        journal.close()


def test_the_log_of_an_earlier_file_goes_on_with_what_is_appended(tmp_path: pathlib.Path) -> None:
    path, key = str(tmp_path / "journal.db"), next(EntityKey("cart", str(n)) for n in range(99) if shard_of("cart", str(n), 4) == 0)
    made_before_there_were_logs(path, {key: 3})
    journal = SqliteJournal(path, "ks", 4)
    token: Token = run(journal, Claim(0, -1, 1, "pod", b"m"))[0].token  # type: ignore[union-attr]
    run(journal, Activate(0, token, key, b"c"), Append(0, token, key, b"c", 3, (Value("t", b"new"),)))
    (page,) = run(journal, ReadLog(0, "cart", 0, 10))
    journal.close()
    assert isinstance(page, LogPage)
    assert [(entry.offset, entry.sequence) for entry in page.entries] == [(1, 1), (2, 2), (3, 3), (4, 4)]


def test_a_file_of_a_later_version_is_refused(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "journal.db")
    SqliteJournal(path, "ks", 4).close()
    db = sqlite3.connect(path)
    db.execute("UPDATE layout SET format=3")
    db.commit()
    db.close()
    with pytest.raises(Incompatible, match=r"format 3; asked for 4 shards, .*, format 2"):
        SqliteJournal(path, "ks", 4)


@pytest.fixture
def unprivileged() -> Iterator[pathlib.Path]:
    """A folder that others may enter, used as a user whom permissions bind (root is nobody meanwhile)."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        folder.chmod(0o755)
        SqliteJournal(str(folder / "journal.db"), "ks", 4).close()
        (folder / "journal.db").chmod(0o444)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        else:
            folder.chmod(0o555)
        try:
            yield folder
        finally:
            os.seteuid(user)
            folder.chmod(0o755)


@pytest.mark.parametrize("name", ["journal.db", "new.db"])
def test_what_cannot_be_written_is_told_at_open(unprivileged: pathlib.Path, name: str) -> None:
    with pytest.raises(JournalError, match=rf"{name}: cannot be written .*must be writable"):
        SqliteJournal(str(unprivileged / name), "ks", 4)


def test_a_path_that_would_forget_is_no_journal() -> None:
    with pytest.raises(JournalError, match="not a durable file"):
        SqliteJournal(":memory:", "ks", 4)


def test_a_file_that_is_no_database_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "notes.txt").write_text("these are my notes\n" * 100)
    with pytest.raises(JournalError, match=r"notes.txt: file is not a database"):
        SqliteJournal(str(tmp_path / "notes.txt"), "ks", 4)
    assert (tmp_path / "notes.txt").read_text().startswith("these are my notes")
