"""A map is a value: changes make a new one, stamped with its generation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cloudstate_core.shard_map import Entry, free_map


def test_change_stamps_the_new_generation_on_what_changed_only() -> None:
    before = free_map("default/cart", "j", 4, generation=7)
    after = before.changed({2: Entry(owner="a")})
    assert (before.generation, after.generation) == (7, 8)
    assert after.entries[2] == Entry(owner="a", since=8)
    assert after.since(7) == [(2, Entry(owner="a", since=8))]
    assert before.entries[2].free


def test_no_change_is_the_same_map() -> None:
    before = free_map("default/cart", "j", 4)
    assert before.changed({}) is before


@given(st.lists(st.dictionaries(st.integers(0, 7), st.sampled_from("abc"), max_size=8), max_size=10))
def test_deltas_since_any_generation_rebuild_the_map(changes: list[dict[int, str]]) -> None:
    maps = [free_map("default/cart", "j", 8)]
    for change in changes:
        maps.append(maps[-1].changed({shard: Entry(owner=owner) for shard, owner in change.items()}))
    for old in maps:
        entries = list(old.entries)
        for shard, entry in maps[-1].since(old.generation):
            entries[shard] = entry
        assert tuple(entries) == maps[-1].entries


def test_states() -> None:
    assert Entry().free
    assert not Entry().moving
    assert Entry(owner="a", next="b").moving
    assert not Entry(owner="a").free
