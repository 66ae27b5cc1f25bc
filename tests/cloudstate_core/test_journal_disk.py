"""The SQLite journal on a disk that is really full, with either of SQLite's own journals: nothing acknowledged is lost, and it goes on after."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    At,
    Check,
    Claim,
    Current,
    Cursor,
    Found,
    JournalError,
    LogEntry,
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
from tests.disks import Disk, small_disk
from tests.journals import CART, run
from tests.sqlite_modes import without_log

BIG = 6_000


@pytest.fixture(params=["wal", "delete"])
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    """Which of its own journals SQLite uses."""
    with without_log() if request.param == "delete" else contextlib.nullcontext():
        yield request.param


@pytest.fixture(params=["device", "limit"])
def disk(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[Disk]:
    """A disk with little room."""
    with small_disk(tmp_path / "disk", request.param) as found:
        yield found


def bound(journal: SqliteJournal, binding: bytes) -> tuple[Token, Active]:
    """A token under which the cart is bound, and the cart."""
    token: Token = run(journal, Claim(0, -1, 1, "pod", b"nonce of " + binding))[0].token  # type: ignore[union-attr]
    (active,) = run(journal, Activate(0, token, CART, binding))
    assert isinstance(active, Active)
    return token, active


def append(token: Token, binding: bytes, seq: int, data: bytes) -> Append:
    return Append(0, token, CART, binding, seq, (Value("t", data),), command_id=f"c{seq}", outcome=b"done")


def fill(journal: SqliteJournal, token: Token, binding: bytes, acknowledged: list[bytes]) -> Outcome:
    """Append until the disk is full; the answer to the append that found it so."""
    while True:
        data = os.urandom(BIG)
        (outcome,) = run(journal, append(token, binding, len(acknowledged), data))
        if not isinstance(outcome, Appended):
            return outcome
        acknowledged.append(data)


def data_of(active: Active) -> list[bytes]:
    return [event.payload.data for event in active.tail]


def test_a_full_disk_loses_nothing_and_writing_goes_on_once_there_is_room(disk: Disk, mode: str) -> None:
    path = str(disk.folder / "journal.db")
    journal = SqliteJournal(path, "ks", 4)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == (mode,)
    token, _ = bound(journal, b"first")
    acknowledged: list[bytes] = []
    disk.confine()
    full = fill(journal, token, b"first", acknowledged)
    assert len(acknowledged) > 10
    assert path in full.reason  # type: ignore[union-attr]
    if disk.mounted:
        assert isinstance(full, Refused)
        assert full.reason.endswith("nothing was written: database or disk is full: make room, and writing goes on")
    else:
        assert isinstance(full, Unknown), "a write at the limit of file size is an I/O error to SQLite, and that is not definite"
    for _ in range(5):
        assert not isinstance(run(journal, append(token, b"first", len(acknowledged), os.urandom(BIG)))[0], Appended)
    disk.make_room()
    token, active = bound(journal, b"second")
    assert data_of(active) == acknowledged
    assert run(journal, append(token, b"second", active.seq, b"more")) == [Appended(active.seq + 1)]
    journal.close()
    again = SqliteJournal(path, "ks", 4)
    assert data_of(bound(again, b"third")[1]) == [*acknowledged, b"more"]
    again.close()


def test_what_only_reads_is_answered_on_a_full_disk(tmp_path: pathlib.Path, mode: str) -> None:
    with small_disk(tmp_path / "disk", "device") as disk:
        journal = SqliteJournal(str(disk.folder / "journal.db"), "ks", 4)
        token, _ = bound(journal, b"b")
        acknowledged: list[bytes] = []
        disk.confine()
        fill(journal, token, b"b", acknowledged)
        found = run(journal, Check(0, token), append(token, b"b", len(acknowledged), os.urandom(BIG)), Lookup(0, CART, "c3"))
        found += run(journal, Swap(0, CART, 0, Value("t", os.urandom(BIG))), Read(0, CART), ReadLog(0, CART.persistence_id, 0, 2), Cursor(0, "c"))
        disk.make_room()
        journal.close()
    if disk.mounted:
        events = tuple(LogEntry(n + 1, CART.entity_id, n + 1, Value("t", acknowledged[n])) for n in range(2))
        assert (found[0], found[2]) == (Current(), Found(b"done"))
        assert found[4:] == [Stored(0, None), LogPage(events), At(0)]
    assert isinstance(found[1], Refused | Unknown)
    assert isinstance(found[3], Refused | Unknown)


FILL = """
import contextlib, os, sys, threading
from cloudstate_core.journal.api import *
from cloudstate_core.journal.sqlite import SqliteJournal
from tests.sqlite_modes import without_log
path, mode, size = sys.argv[1:]
with without_log() if mode == "delete" else contextlib.nullcontext():
    journal = SqliteJournal(path, "ks", 4)
def run(operation):
    answered, outcomes = threading.Event(), []
    journal.submit([operation], lambda answer: (outcomes.extend(answer), answered.set()))
    answered.wait()
    return outcomes[0]
cart = EntityKey("cart", "ann")
token = run(Claim(0, -1, 1, "pod", b"n")).token
run(Activate(0, token, cart, b"b"))
print("begun", flush=True)
sys.stdin.readline()
seq = 0
while True:
    outcome = run(Append(0, token, cart, b"b", seq, (Value("t", os.urandom(int(size))),)))
    seq = getattr(outcome, "seq", seq)
    print(seq if isinstance(outcome, Appended) else "full", flush=True)
"""


def test_what_was_acknowledged_before_a_full_disk_survives_kill_9(disk: Disk, mode: str) -> None:
    path, root = str(disk.folder / "journal.db"), pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-c", FILL, path, mode, str(BIG)]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    disk.confine(process.pid)
    process.stdin.write("go\n")
    process.stdin.flush()
    told = ["0"]
    while told.count("full") < 3:
        told.append(process.stdout.readline().strip())
    process.kill()
    process.wait()
    last = max(int(line) for line in told if line != "full")
    assert last > 10
    disk.make_room()
    journal = SqliteJournal(path, "ks", 4)
    _, active = bound(journal, b"c")
    journal.close()
    assert [event.sequence for event in active.tail] == list(range(1, active.seq + 1))
    assert active.seq >= last


def test_a_disk_without_room_for_a_journal_is_told_at_open(disk: Disk) -> None:
    disk.fill()
    why = r"cannot be written \(database or disk is full\): make room" if disk.mounted else "disk I/O error"
    with pytest.raises(JournalError, match=rf"^journal .*new.db: {why}"):
        SqliteJournal(str(disk.folder / "new.db"), "ks", 4)
    disk.make_room()
    SqliteJournal(str(disk.folder / "new.db"), "ks", 4).close()


def test_a_journal_that_is_there_opens_on_a_full_disk(disk: Disk, mode: str) -> None:
    path = str(disk.folder / "journal.db")
    SqliteJournal(path, "ks", 4).close()
    disk.fill()
    journal = SqliteJournal(path, "ks", 4)
    assert run(journal, Lookup(0, CART, "c")) == [Found(None)]
    disk.make_room()
    token, _ = bound(journal, b"b")
    assert run(journal, append(token, b"b", 0, b"x")) == [Appended(1)]
    journal.close()
