"""The journal contract of logs and their readers, one suite for every store."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    At,
    Commit,
    Cursor,
    EntityKey,
    Fenced,
    Journal,
    LogEntry,
    LogPage,
    Put,
    ReadLog,
    Token,
    Uninitialised,
    Value,
)  # fmt: skip
from tests.journal_stores import SHARDS, Store
from tests.journals import PATIENCE, claim, run

ANN, BOB = EntityKey("cart", "ann"), EntityKey("cart", "bob")


def append(token: Token, entity: EntityKey, seq: int, *events: str, **more: object) -> Append:
    return Append(1, token, entity, b"b", seq, tuple(Value("t", e.encode()) for e in events), **more)  # type: ignore[arg-type]


def bound(journal: Journal, *entities: EntityKey) -> Token:
    token = claim(journal)
    run(journal, *[Activate(1, token, entity, b"b") for entity in entities])
    return token


def pages(journal: Journal, limit: int, persistence_id: str = "cart", shard: int = 1, after: int = 0) -> Iterator[tuple[LogEntry, ...]]:
    """The log, page after page, to its end."""
    while True:
        (page,) = run(journal, ReadLog(shard, persistence_id, after, limit))
        assert isinstance(page, LogPage), page
        yield page.entries
        if len(page.entries) < limit:
            return
        after = page.entries[-1].offset


def entries(journal: Journal, persistence_id: str = "cart", shard: int = 1) -> list[LogEntry]:
    return [entry for page in pages(journal, 100, persistence_id, shard) for entry in page]


def told(found: list[LogEntry]) -> list[tuple[str, int, str]]:
    """What is there, without the offsets, which must grow."""
    offsets = [entry.offset for entry in found]
    assert all(one < next_one for one, next_one in zip([0, *offsets], offsets, strict=False)), offsets
    return [(entry.entity_id, entry.sequence, entry.payload.data.decode()) for entry in found]


def test_a_log_has_the_events_of_all_entities_in_the_order_of_their_appends(journal: Journal) -> None:
    token = bound(journal, ANN, BOB)
    run(journal, append(token, ANN, 0, "a1", "a2"), append(token, BOB, 0, "b1"), append(token, ANN, 2, "a3"), append(token, BOB, 1))
    assert told(entries(journal)) == [("ann", 1, "a1"), ("ann", 2, "a2"), ("bob", 1, "b1"), ("ann", 3, "a3")]


def test_a_log_is_of_one_entity_type_in_one_shard(journal: Journal) -> None:
    other = EntityKey("order", "ann")
    token = bound(journal, ANN, other)
    elsewhere = claim(journal, shard=2)
    run(journal, Activate(2, elsewhere, BOB, b"b"), Append(2, elsewhere, BOB, b"b", 0, (Value("t", b"far"),)))
    run(journal, append(token, ANN, 0, "a"), append(token, other, 0, "o"))
    assert [told(entries(journal, *log)) for log in (("cart", 1), ("order", 1), ("cart", 2), ("cart", 3), ("none", 1), ("cart", SHARDS))] == [
        [("ann", 1, "a")], [("ann", 1, "o")], [("bob", 1, "far")], [], [], [],
    ]  # fmt: skip


def test_events_stay_in_the_log_when_a_snapshot_or_a_value_covers_them(journal: Journal) -> None:
    token = bound(journal, ANN)
    run(journal, append(token, ANN, 0, "a", "b", snapshot=Value("s", b"ab")), Put(1, token, ANN, b"b", 2, Value("v", b"value")))
    run(journal, append(token, ANN, 3, "c"), Put(1, token, ANN, b"b", 4, None), append(token, ANN, 5, "d", snapshot=Value("s", b"")))
    assert told(entries(journal)) == [("ann", 1, "a"), ("ann", 2, "b"), ("ann", 4, "c"), ("ann", 6, "d")]


def test_what_was_refused_is_not_in_the_log(journal: Journal) -> None:
    token = bound(journal, ANN)
    run(journal, append(token, ANN, 0, "a", command_id="c"), append(token, ANN, 1, "twice", command_id="c"), append(token, ANN, 7, "ahead"))
    run(journal, Append(1, token, ANN, b"other", 1, (Value("t", b"unbound"),)), append(Token(9, b"?"), ANN, 1, "fenced"))
    assert told(entries(journal)) == [("ann", 1, "a")]


def test_a_log_goes_on_under_the_next_owner(journal: Journal) -> None:
    run(journal, append(bound(journal, ANN), ANN, 0, "a"))
    token = claim(journal, b"next")
    run(journal, Activate(1, token, ANN, b"b"), append(token, ANN, 1, "b"))
    assert told(entries(journal)) == [("ann", 1, "a"), ("ann", 2, "b")]


@pytest.mark.parametrize("limit", [1, 3, 10, 11])
def test_pages_make_up_the_log(journal: Journal, limit: int) -> None:
    token = bound(journal, ANN)
    run(journal, append(token, ANN, 0, *map(str, range(10))))
    found = list(pages(journal, limit))
    assert [entry.payload.data for page in found for entry in page] == [b"%d" % n for n in range(10)]
    assert all(len(page) == limit for page in found[:-1])


def test_a_page_of_nothing_and_one_from_before_the_beginning(journal: Journal) -> None:
    token = bound(journal, ANN)
    run(journal, append(token, ANN, 0, "a", "b"))
    whole = run(journal, ReadLog(1, "cart", 0, 9))
    assert run(journal, ReadLog(1, "cart", -5, 9)) == whole
    assert run(journal, ReadLog(1, "cart", 0, 0), ReadLog(1, "cart", 0, -1), ReadLog(1, "cart", 10**9, 9)) == [LogPage(())] * 3


def test_thousands_of_entries_are_read_in_pages(store: Store) -> None:
    with store() as journal:
        names = [EntityKey("cart", f"user-{n}") for n in range(20)]
        token = bound(journal, *names)
        for seq in range(0, 250, 10):
            events = [str(seq + n) for n in range(10)]
            assert run(journal, *[append(token, name, seq, *events) for name in names]) == [Appended(seq + 10)] * 20
        found = [entry for page in pages(journal, 300) for entry in page]
    assert len(told(found)) == 5_000
    for name in names:
        mine = [entry for entry in found if entry.entity_id == name.entity_id]
        assert [(entry.sequence, entry.payload.data) for entry in mine] == [(n + 1, b"%d" % n) for n in range(250)]


def test_one_append_of_thousands_of_events_is_in_the_log(store: Store) -> None:
    with store() as journal:
        token = bound(journal, ANN)
        run(journal, append(token, ANN, 0, *map(str, range(2_500))))
        assert told(entries(journal)) == [("ann", n + 1, str(n)) for n in range(2_500)]


def test_odd_names_and_large_events_come_back_as_they_were(journal: Journal) -> None:
    odd = [EntityKey("ключ 1", name) for name in ("", " ", "7 8", "日本:1 2", "a b")]
    token, large = bound(journal, *odd), Value("type.example/large", bytes(10_000_000))
    run(journal, *[Append(1, token, name, b"b", 0, (large if n == 2 else Value("", b"%d" % n),)) for n, name in enumerate(odd)])
    found = entries(journal, "ключ 1")
    assert [entry.entity_id for entry in found] == [name.entity_id for name in odd]
    assert [entry.payload for entry in found if entry.payload != large] == [Value("", b"%d" % n) for n in (0, 1, 3, 4)]


# Cursors ----------------------------------------------------------------------------------------------------------------


def test_a_cursor_begins_at_nought_and_only_grows(journal: Journal) -> None:
    token = claim(journal)
    assert run(journal, Cursor(1, "c"), Commit(1, token, "c", 5), Commit(1, token, "c", 3), Cursor(1, "c")) == [At(0), At(5), At(5), At(5)]
    assert run(journal, Commit(1, token, "c", 2**50 + 1), Cursor(1, "c")) == [At(2**50 + 1)] * 2


def test_cursors_are_of_one_consumer_in_one_shard(journal: Journal) -> None:
    token, other = claim(journal), claim(journal, shard=2)
    run(journal, Commit(1, token, "c", 5), Commit(2, other, "c", 7), Commit(1, token, "d:日本", 9))
    assert run(journal, Cursor(1, "c"), Cursor(2, "c"), Cursor(1, "d:日本"), Cursor(2, "d:日本")) == [At(5), At(7), At(9), At(0)]


def test_only_the_owner_of_a_shard_moves_its_cursors(journal: Journal) -> None:
    old = claim(journal, b"a")
    run(journal, Commit(1, old, "c", 5))
    new = claim(journal, b"b")
    assert run(journal, Commit(1, old, "c", 9), Cursor(1, "c"), Commit(1, new, "c", 6)) == [Fenced(new.epoch), At(5), At(6)]
    assert run(journal, Commit(SHARDS, new, "c", 1), Cursor(SHARDS, "c")) == [Uninitialised(), At(0)]


def test_logs_and_cursors_survive_a_restart(store: Store) -> None:
    with store() as journal:
        token = bound(journal, ANN)
        run(journal, append(token, ANN, 0, "a", "b", snapshot=Value("s", b"")), Commit(1, token, "c", 1))
        before = entries(journal)
    with store() as journal:
        assert entries(journal) == before
        assert run(journal, Cursor(1, "c"), append(token, ANN, 2, "c")) == [At(1), Appended(3)]
        (page,) = run(journal, ReadLog(1, "cart", 1, 10))
        assert isinstance(page, LogPage)
        assert told(list(page.entries)) == [("ann", 2, "b"), ("ann", 3, "c")]


def test_a_reader_beside_the_writer_misses_nothing(journal: Journal) -> None:
    """Whoever has read up to an offset will never find anything new at or before it."""
    names = [EntityKey("cart", f"user-{n}") for n in range(4)]
    token = bound(journal, *names)

    def write(name: EntityKey) -> None:
        for seq in range(100):
            assert run(journal, append(token, name, seq, str(seq))) == [Appended(seq + 1)]

    writers = [threading.Thread(target=write, args=(name,)) for name in names]
    for writer in writers:
        writer.start()
    seen: list[LogEntry] = []
    while len(seen) < 400:
        writing = any(writer.is_alive() for writer in writers)
        (page,) = run(journal, ReadLog(1, "cart", seen[-1].offset if seen else 0, 7))
        assert isinstance(page, LogPage)
        seen += page.entries
        assert writing or page.entries or len(seen) == 400, "the writers are done and the rest never came"
    for writer in writers:
        writer.join(PATIENCE)
    assert sorted(told(seen)) == sorted((name.entity_id, n + 1, str(n)) for name in names for n in range(100))
    assert seen == entries(journal)


class Pod:
    """Takes the shard whenever it can; while it has it, appends and consumes what it and others have appended. After some of it, it lets a rival
    that has work left take the shard, however the two are scheduled."""

    def __init__(self, journal: Journal, name: str, handled: list[LogEntry]) -> None:
        self.journal, self.name, self.handled = journal, name, handled
        self.appended = self.fenced = self.term = 0
        self.lets = False

    def work(self, appends: int, rival: Pod, waits: bool) -> None:
        self.rival = rival
        while self.appended < appends:
            seen = rival.appended
            while (waits or self.term) and rival.appended < min(seen + 8, appends) and not rival.lets:  # let it have the shard for a while
                time.sleep(0.0005)
            nonce = f"{self.name}-{self.term}".encode()
            token = claim(self.journal, nonce)
            self.term += 1
            cursor, active = run(self.journal, Cursor(1, "c"), Activate(1, token, ANN, nonce))
            if isinstance(active, Active) and isinstance(cursor, At):
                self._own(token, nonce, active.seq, cursor.offset, appends)

    def _own(self, token: Token, binding: bytes, seq: int, after: int, appends: int) -> None:
        """Until fenced, or done."""
        begun, rivals = self.appended, self.rival.term
        while self.appended < appends:
            self.lets = self.appended >= begun + 10
            while self.lets and self.rival.term == rivals and self.rival.appended < appends:
                time.sleep(0.0005)
            self.lets = False
            appended, page = run(self.journal, Append(1, token, ANN, binding, seq, (Value("t", b"e"),)), ReadLog(1, "cart", after, 5))
            assert isinstance(page, LogPage)
            if not isinstance(appended, Appended):
                self.fenced += 1
                return
            self.appended, seq = self.appended + 1, appended.seq
            self.handled += page.entries
            after = page.entries[-1].offset if page.entries else after
            if not isinstance(run(self.journal, Commit(1, token, "c", after))[0], At):
                self.fenced += 1
                return


def test_pods_that_race_for_a_shard_consume_everything_at_least_once(store: Store) -> None:
    with store() as journal:
        handled: list[LogEntry] = []
        pods = [Pod(journal, name, handled) for name in "ab"]
        threads = [threading.Thread(target=pods[n].work, args=(80, pods[1 - n], n == 1)) for n in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        log = entries(journal)
        (cursor,) = run(journal, Cursor(1, "c"))
        assert isinstance(cursor, At)
        assert [entry.sequence for entry in log] == list(range(1, len(log) + 1))
        assert {entry.offset for entry in handled} >= {entry.offset for entry in log if entry.offset <= cursor.offset}
        assert cursor.offset >= 80
        assert sum(pod.fenced for pod in pods) > 5, "they hardly met, which proves little"
