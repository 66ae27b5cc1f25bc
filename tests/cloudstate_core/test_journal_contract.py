"""The journal contract, one suite for every store: memory, SQLite, SQLite served to another process over gRPC, and a real Redis server."""

from __future__ import annotations

import pathlib

import pytest

from cloudstate_core.hashing import shard_of
from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    Check,
    Claim,
    Current,
    Duplicate,
    EntityKey,
    Event,
    Fenced,
    Found,
    Incompatible,
    Journal,
    JournalError,
    Lookup,
    Raced,
    Regressed,
    Seal,
    Sealed,
    Stale,
    Token,
    Unbound,
    Uninitialised,
    Value,
)  # fmt: skip
from cloudstate_core.journal.sqlite import SqliteJournal
from tests.journal_stores import SHARDS, sqlite
from tests.journals import CART, claim, run


def append(token: Token, binding: bytes, seq: int, *events: str, **more: object) -> Append:
    return Append(1, token, CART, binding, seq, tuple(Value("t", e.encode()) for e in events), **more)  # type: ignore[arg-type]


def test_claims_grow_epochs_and_answer_a_repetition_with_the_same_token(journal: Journal) -> None:
    first = claim(journal, b"a")
    assert claim(journal, b"a") == first
    second = claim(journal, b"b", expected=first.epoch)
    assert second.epoch == first.epoch + 1
    assert run(journal, Claim(1, first.epoch, 1, "pod", b"c")) == [Raced(second.epoch)]


def test_an_older_map_generation_never_takes_a_shard_back(journal: Journal) -> None:
    claim(journal, b"new", since=7)
    assert run(journal, Claim(1, -1, 6, "pod", b"old")) == [Stale(7)]


def test_a_missing_fence_row_is_an_error(journal: Journal) -> None:
    assert run(journal, Claim(SHARDS, -1, 1, "pod", b"x"), Check(99, Token(0, b""))) == [Uninitialised(), Uninitialised()]


def test_events_come_back_in_order_after_activation(journal: Journal) -> None:
    token = claim(journal)
    activated, appended, again = run(journal, Activate(1, token, CART, b"1"), append(token, b"1", 0, "x", "y"), append(token, b"1", 2, "z"))
    assert (activated, appended, again) == (Active(0, 0, None, ()), Appended(2), Appended(3))
    tail = tuple(Event(n, Value("t", d)) for n, d in ((1, b"x"), (2, b"y"), (3, b"z")))
    assert run(journal, Activate(1, token, CART, b"2")) == [Active(3, 0, None, tail)]


def test_a_snapshot_covers_the_events_before_it(journal: Journal) -> None:
    token = claim(journal)
    state = Value("s", b"xy")
    run(journal, Activate(1, token, CART, b"1"), append(token, b"1", 0, "x", "y", snapshot=state), append(token, b"1", 2, "z"))
    assert run(journal, Activate(1, token, CART, b"2")) == [Active(3, 2, state, (Event(3, Value("t", b"z")),))]


def test_after_a_new_activation_the_old_binding_cannot_append(journal: Journal) -> None:
    token = claim(journal)
    run(journal, Activate(1, token, CART, b"1"), Activate(1, token, CART, b"2"))
    assert run(journal, append(token, b"1", 0, "late")) == [Unbound(token.epoch)]
    assert run(journal, append(token, b"2", 0, "mine")) == [Appended(1)]


def test_after_another_claim_the_old_token_is_fenced_everywhere(journal: Journal) -> None:
    old = claim(journal, b"a")
    run(journal, Activate(1, old, CART, b"1"))
    new = claim(journal, b"b")
    refused = run(journal, append(old, b"1", 0, "late"), Activate(1, old, CART, b"x"), Check(1, old), Seal(1, old))
    assert refused == [Fenced(new.epoch)] * 4
    assert run(journal, Check(1, new)) == [Current()]


def test_an_append_that_lands_before_the_successor_activates_is_read_by_it(journal: Journal) -> None:
    old = claim(journal, b"a")
    run(journal, Activate(1, old, CART, b"1"), append(old, b"1", 0, "x"))
    new = claim(journal, b"b")
    assert run(journal, Activate(1, new, CART, b"2")) == [Active(1, 0, None, (Event(1, Value("t", b"x")),))]


def test_a_sealed_shard_is_nobodys_until_claimed(journal: Journal) -> None:
    token = claim(journal)
    assert run(journal, Seal(1, token)) == [Sealed(token.epoch + 1)]
    assert run(journal, Check(1, token)) == [Fenced(token.epoch + 1)]
    assert claim(journal, b"b", expected=token.epoch + 1).epoch == token.epoch + 2


def test_a_command_is_applied_once_and_its_outcome_is_kept(journal: Journal) -> None:
    token = claim(journal)
    first = append(token, b"1", 0, "x", command_id="c1", outcome=b"ok")
    assert run(journal, Activate(1, token, CART, b"1"), first)[1] == Appended(1)
    assert run(journal, append(token, b"1", 1, "x", command_id="c1", outcome=b"other")) == [Duplicate(b"ok")]
    assert run(journal, Lookup(1, CART, "c1"), Lookup(1, CART, "c2")) == [Found(b"ok"), Found(None)]
    assert run(journal, append(token, b"1", 1, "y", command_id="c2", outcome=b"")) == [Appended(2)]


def test_a_wrong_sequence_writes_nothing(journal: Journal) -> None:
    token = claim(journal)
    run(journal, Activate(1, token, CART, b"1"))
    assert run(journal, append(token, b"1", 5, "x")) == [Regressed(0)]
    assert run(journal, Activate(1, token, CART, b"2")) == [Active(0, 0, None, ())]


def test_operations_of_a_batch_succeed_and_fail_alone(journal: Journal) -> None:
    token = claim(journal)
    run(journal, Activate(1, token, CART, b"1"))
    outcomes = run(journal, append(token, b"1", 0, "x"), append(token, b"wrong", 1, "y"), append(token, b"1", 1, "z"))
    assert outcomes == [Appended(1), Unbound(token.epoch), Appended(2)]


def test_an_empty_event_a_large_one_and_many_come_back_as_they_were(journal: Journal) -> None:
    token = claim(journal)
    values = [Value("", b""), Value("type.example/ä ö", bytes(range(256)) * 4000), *(Value(f"t{n}", b"%d" % n) for n in range(2500))]
    whole = Append(1, token, CART, b"1", 0, tuple(values), snapshot=None)
    assert run(journal, Activate(1, token, CART, b"1"), whole)[1] == Appended(len(values))
    (active,) = run(journal, Activate(1, token, CART, b"2"))
    assert isinstance(active, Active)
    assert [event.payload for event in active.tail] == values


def test_entities_whose_names_run_together_are_told_apart(journal: Journal) -> None:
    names = [EntityKey("a", "b:c"), EntityKey("a:b", "c"), EntityKey("a", "b"), EntityKey("", "a:b:c"), EntityKey("ключ", "日本")]
    places = [shard_of(name.persistence_id, name.entity_id, SHARDS) for name in names]
    tokens = [claim(journal, shard=shard) for shard in places]
    for number, (name, shard, token) in enumerate(zip(names, places, tokens, strict=True)):
        command = "c" if name.entity_id == "b" else f":{number}"
        event = Append(shard, token, name, b"1", 0, (Value("t", b"%d" % number),), command_id=command, outcome=b"%d" % number)
        assert run(journal, Activate(shard, token, name, b"1"), event) == [Active(0, 0, None, ()), Appended(1)]
    for number, (name, shard, token) in enumerate(zip(names, places, tokens, strict=True)):
        command = "c" if name.entity_id == "b" else f":{number}"
        assert run(journal, Lookup(shard, name, command)) == [Found(b"%d" % number)]
        assert run(journal, Activate(shard, token, name, b"2")) == [Active(1, 0, None, (Event(1, Value("t", b"%d" % number)),))]


def test_generations_as_large_as_a_clock_in_milliseconds_are_kept_exactly(journal: Journal) -> None:
    claim(journal, b"a", since=1_795_000_000_123)
    assert run(journal, Claim(1, -1, 1_795_000_000_122, "pod", b"b")) == [Stale(1_795_000_000_123)]
    assert claim(journal, b"b", since=1_795_000_000_123).epoch == 2


def test_sqlite_keeps_everything_over_a_restart(tmp_path: pathlib.Path) -> None:
    with sqlite(tmp_path) as journal:
        token = claim(journal)
        run(journal, Activate(1, token, CART, b"1"), append(token, b"1", 0, "x", command_id="c", outcome=b"ok"))
        identity = journal.layout.journal_id
    with sqlite(tmp_path) as journal:
        assert journal.layout.journal_id == identity
        assert run(journal, append(token, b"1", 1, "y", command_id="c")) == [Duplicate(b"ok")]
        assert claim(journal, b"b").epoch == token.epoch + 1


def test_sqlite_refuses_another_layout_and_says_both(tmp_path: pathlib.Path) -> None:
    with sqlite(tmp_path):
        pass
    with pytest.raises(Incompatible, match=r"has 8 shards.*asked for 16"):
        SqliteJournal(str(tmp_path / "journal.db"), "default/cart", 16)


def test_sqlite_refuses_a_second_opener(tmp_path: pathlib.Path) -> None:
    with sqlite(tmp_path), pytest.raises(JournalError, match="another process has it open"):
        SqliteJournal(str(tmp_path / "journal.db"), "default/cart", SHARDS)


def test_sqlite_tells_a_missing_folder(tmp_path: pathlib.Path) -> None:
    with pytest.raises(JournalError, match="does not exist"):
        SqliteJournal(str(tmp_path / "nowhere" / "journal.db"), "default/cart", SHARDS)
