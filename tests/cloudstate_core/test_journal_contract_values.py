"""The journal contract of what is kept whole, one suite for every store: value entities (fenced) and replicated values (swapped)."""

from __future__ import annotations

import contextlib
import pathlib

from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    Duplicate,
    EntityKey,
    Event,
    Fenced,
    Found,
    Journal,
    Lookup,
    Put,
    Read,
    Regressed,
    Stored,
    Swap,
    Swapped,
    Token,
    Unbound,
    Uninitialised,
    Value,
)  # fmt: skip
from tests.journal_sets import SET, add_at_once, check_set, join
from tests.journal_stores import SHARDS, Store, client, serving
from tests.journals import CART, claim, run

OTHER = EntityKey("cart", "bob")


def put(token: Token, binding: bytes, seq: int, value: str | None, **more: object) -> Put:
    return Put(1, token, CART, binding, seq, None if value is None else Value("v", value.encode()), **more)  # type: ignore[arg-type]


def swap(version: int, value: str | None, entity: EntityKey = CART) -> Swap:
    return Swap(1, entity, version, None if value is None else Value("v", value.encode()))


# Value entities ---------------------------------------------------------------------------------------------------------


def test_a_value_replaces_the_one_before_and_its_version_grows(journal: Journal) -> None:
    token = claim(journal)
    first = run(journal, Activate(1, token, CART, b"1"), put(token, b"1", 0, "x"), put(token, b"1", 1, "y"))
    assert first == [Active(0, 0, None, ()), Appended(1), Appended(2)]
    assert run(journal, Activate(1, token, CART, b"2")) == [Active(2, 2, Value("v", b"y"), ())]


def test_a_deleted_value_keeps_its_version(journal: Journal) -> None:
    token = claim(journal)
    run(journal, Activate(1, token, CART, b"1"), put(token, b"1", 0, "x"), put(token, b"1", 1, None))
    assert run(journal, Activate(1, token, CART, b"2")) == [Active(2, 2, None, ())]
    assert run(journal, put(token, b"2", 0, "a fresh start"), put(token, b"2", 2, "z")) == [Regressed(2), Appended(3)]
    assert run(journal, Activate(1, token, CART, b"3")) == [Active(3, 3, Value("v", b"z"), ())]


def test_a_value_that_was_never_there_can_be_deleted(journal: Journal) -> None:
    token = claim(journal)
    assert run(journal, Activate(1, token, CART, b"1"), put(token, b"1", 0, None))[1] == Appended(1)
    assert run(journal, Activate(1, token, CART, b"2")) == [Active(1, 1, None, ())]


def test_an_empty_value_is_a_value(journal: Journal) -> None:
    token = claim(journal)
    run(journal, Activate(1, token, CART, b"1"), Put(1, token, CART, b"1", 0, Value("", b"")))
    assert run(journal, Activate(1, token, CART, b"2")) == [Active(1, 1, Value("", b""), ())]


def test_a_value_is_guarded_as_events_are(journal: Journal) -> None:
    old = claim(journal, b"a")
    assert run(journal, put(old, b"1", 0, "never activated")) == [Unbound(0)]
    run(journal, Activate(1, old, CART, b"1"), Activate(1, old, CART, b"2"))
    assert run(journal, put(old, b"1", 0, "late"), put(old, b"2", 7, "ahead")) == [Unbound(old.epoch), Regressed(0)]
    new = claim(journal, b"b")
    assert run(journal, put(old, b"2", 0, "lost")) == [Fenced(new.epoch)]
    assert run(journal, Activate(1, new, CART, b"3")) == [Active(0, 0, None, ())]
    assert run(journal, Put(SHARDS, new, CART, b"3", 0, None)) == [Uninitialised()]


def test_a_command_puts_once_and_its_outcome_is_kept(journal: Journal) -> None:
    token = claim(journal)
    run(journal, Activate(1, token, CART, b"1"), put(token, b"1", 0, "x", command_id="c", outcome=b"ok"))
    assert (
        run(journal, put(token, b"1", 1, "y", command_id="c", outcome=b"no"), put(token, b"1", 0, "lags", command_id="c")) == [Duplicate(b"ok")] * 2
    )
    assert run(journal, Lookup(1, CART, "c"), Activate(1, token, CART, b"2")) == [Found(b"ok"), Active(1, 1, Value("v", b"x"), ())]


def test_an_entity_may_turn_from_events_to_values_and_back(journal: Journal) -> None:
    token = claim(journal)
    events = tuple(Value("t", data) for data in (b"a", b"b"))
    run(journal, Activate(1, token, CART, b"1"), Append(1, token, CART, b"1", 0, events), put(token, b"1", 2, "x"), put(token, b"1", 3, "y"))
    assert run(journal, Activate(1, token, CART, b"2")) == [Active(4, 4, Value("v", b"y"), ())]
    assert run(journal, Append(1, token, CART, b"2", 4, events)) == [Appended(6)]
    assert run(journal, Activate(1, token, CART, b"3")) == [Active(6, 4, Value("v", b"y"), (Event(5, events[0]), Event(6, events[1])))]
    assert run(journal, Append(1, token, CART, b"3", 6, events[:1], snapshot=Value("s", b"all")), put(token, b"3", 7, None)) == [
        Appended(7),
        Appended(8),
    ]
    assert run(journal, Activate(1, token, CART, b"4"), Append(1, token, CART, b"4", 8, events[1:])) == [Active(8, 8, None, ()), Appended(9)]
    assert run(journal, Activate(1, token, CART, b"5")) == [Active(9, 8, None, (Event(9, events[1]),))]


# Replicated values ------------------------------------------------------------------------------------------------------


def test_a_record_is_swapped_by_whoever_knows_its_version(journal: Journal) -> None:
    assert run(journal, Read(1, CART), swap(0, "x"), swap(0, "lost"), swap(1, "y"), Read(1, CART)) == [
        Stored(0, None),
        Swapped(1),
        Stored(1, Value("v", b"x")),
        Swapped(2),
        Stored(2, Value("v", b"y")),
    ]


def test_a_deleted_record_keeps_its_version(journal: Journal) -> None:
    run(journal, swap(0, "x"), swap(1, None))
    assert run(journal, Read(1, CART), swap(0, "a fresh start"), swap(2, "z")) == [Stored(2, None), Stored(2, None), Swapped(3)]
    assert run(journal, Read(1, CART)) == [Stored(3, Value("v", b"z"))]


def test_a_version_ahead_of_the_record_writes_nothing(journal: Journal) -> None:
    assert run(journal, swap(3, "x"), Read(1, CART)) == [Stored(0, None), Stored(0, None)]


def test_records_need_no_token_and_claims_leave_them_alone(journal: Journal) -> None:
    run(journal, swap(0, "x"))
    token = claim(journal)
    run(journal, Activate(1, token, CART, b"1"), put(token, b"1", 0, "of the entity"))
    assert run(journal, Read(1, CART), swap(1, "y"), Read(1, OTHER)) == [Stored(1, Value("v", b"x")), Swapped(2), Stored(0, None)]
    assert run(journal, Activate(1, token, CART, b"2")) == [Active(1, 1, Value("v", b"of the entity"), ())]


def test_a_record_is_not_written_into_a_shard_that_was_never_made(journal: Journal) -> None:
    assert run(journal, Swap(SHARDS, CART, 0, Value("v", b"x")), Read(SHARDS, CART)) == [Uninitialised(), Stored(0, None)]


def test_ten_megabytes_come_back_as_they_were(journal: Journal) -> None:
    token, large = claim(journal), [Value("type.example/large", bytes([n]) * 10_000_000) for n in range(2)]
    outcomes = run(journal, Activate(1, token, CART, b"1"), Put(1, token, CART, b"1", 0, large[0]), Swap(1, CART, 0, large[1]))
    assert outcomes[1:] == [Appended(1), Swapped(1)]
    active, stored, raced = run(journal, Activate(1, token, CART, b"2"), Read(1, CART), Swap(1, CART, 0, None))
    assert active == Active(1, 1, large[0], ())
    assert stored == raced == Stored(1, large[1])


# Several at once, and restarts ------------------------------------------------------------------------------------------


def test_no_addition_is_lost_among_concurrent_swaps(journal: Journal) -> None:
    adders, threads = add_at_once([journal] * 4, 50)
    join(threads)
    check_set(journal, adders, 50)
    assert isinstance(stored := run(journal, Read(1, SET))[0], Stored)
    assert stored.version == 200


def test_no_addition_is_lost_among_the_clients_of_a_server(tmp_path: pathlib.Path) -> None:
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(serving(tmp_path))
        clients = [stack.enter_context(client(port)) for _ in range(3)]
        adders, threads = add_at_once(clients, 50)
        join(threads)
        check_set(clients[0], adders, 50)


def test_values_and_records_survive_a_restart(store: Store) -> None:
    with store() as journal:
        token = claim(journal)
        run(journal, Activate(1, token, CART, b"1"), put(token, b"1", 0, "x", command_id="c", outcome=b"ok"), swap(0, "y"), swap(1, None))
        run(journal, Activate(1, token, OTHER, b"1"), Put(1, token, OTHER, b"1", 0, Value("v", b"z")), Put(1, token, OTHER, b"1", 1, None))
    with store() as journal:
        assert run(journal, put(token, b"1", 0, "again", command_id="c"), Read(1, CART)) == [Duplicate(b"ok"), Stored(2, None)]
        token = claim(journal, b"b")
        active = run(journal, Activate(1, token, CART, b"2"), Activate(1, token, OTHER, b"2"))
        assert active == [Active(1, 1, Value("v", b"x"), ()), Active(2, 2, None, ())]


def test_records_whose_names_run_together_are_told_apart(journal: Journal) -> None:
    names = [EntityKey("a", "b:c"), EntityKey("a:b", "c"), EntityKey("a", "b"), EntityKey("", "a:b:c"), EntityKey("ключ", "日本")]
    assert run(journal, *[Swap(1, name, 0, Value("v", b"%d" % n)) for n, name in enumerate(names)]) == [Swapped(1)] * len(names)
    assert run(journal, *[Read(1, name) for name in names]) == [Stored(1, Value("v", b"%d" % n)) for n in range(len(names))]
