"""Traffic percentages become whole shards, and a canary's entities are nested."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.placement.quota import permutation, quotas, split

N = 256
ORDER = permutation("ns/cart", N)


@pytest.mark.parametrize(
    ("percentages", "shards", "wanted"),
    [
        ({"a": 100}, 256, {"a": 256}),
        ({"a": 90, "b": 10}, 256, {"a": 230, "b": 26}),
        ({"a": 99, "b": 1}, 256, {"a": 253, "b": 3}),
        ({"a": 100, "b": 0}, 256, {"a": 256, "b": 0}),
        ({"a": 1, "b": 1, "c": 1}, 256, {"a": 86, "b": 85, "c": 85}),
        ({"a": 99.9, "b": 0.1}, 16, {"a": 15, "b": 1}),
        ({"a": 98, "b": 1, "c": 1}, 3, {"a": 1, "b": 1, "c": 1}),
        ({"a": 1, "b": 1, "c": 1, "d": 13}, 5, {"a": 1, "b": 1, "c": 1, "d": 2}),
        ({"a": 30, "b": 1, "c": 1, "d": 1, "e": 30}, 7, {"a": 2, "b": 1, "c": 1, "d": 1, "e": 2}),
        ({"a": 60, "b": 40}, 1, {"a": 1, "b": 0}),
    ],
)
def test_largest_remainder(percentages: dict[str, float], shards: int, wanted: dict[str, int]) -> None:
    assert quotas(percentages, shards) == wanted


def test_no_traffic_at_all_is_an_error() -> None:
    with pytest.raises(ValueError, match="no revision has traffic"):
        quotas({"a": 0}, 4)


@given(st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 100), min_size=1), st.integers(1, 300))
def test_quotas_are_whole_and_fair(percentages: dict[str, int], shards: int) -> None:
    live = {name: percent for name, percent in percentages.items() if percent}
    if not live:
        return
    found = quotas(percentages, shards)
    assert sum(found.values()) == shards
    assert all((found[name] > 0) == (name in live) for name in percentages) or len(live) > shards
    if len(live) * 20 < shards:
        total = sum(live.values())
        assert all(abs(found[name] - live[name] / total * shards) < 1 + len(live) for name in live)


def test_the_order_of_shards_is_fixed_and_differs_between_services() -> None:
    assert sorted(ORDER) == list(range(N))
    assert permutation("ns/other", N) != ORDER


@given(st.lists(st.integers(0, 100), min_size=2, max_size=8))
def test_a_canary_is_nested_whatever_the_history(history: list[int]) -> None:
    """The entities at 10 % are among those at 50 %, and a percentage names the same ones whenever it is set."""
    holder: dict[int, str] = dict.fromkeys(range(N), "old")
    seen: dict[int, set[int]] = {}
    for percent in history:
        share = quotas({"old": 100 - percent, "new": percent}, N)
        before, holder = holder, split(ORDER, holder, share)
        side = {shard for shard, revision in holder.items() if revision == "new"}
        assert seen.setdefault(percent, side) == side
        assert len([s for s in before if before[s] != holder[s]]) == abs(share["new"] - sum(r == "new" for r in before.values()))
    ordered = [seen[percent] for percent in sorted(seen)]
    assert all(smaller <= larger for smaller, larger in itertools.pairwise(ordered))


@given(st.lists(st.sampled_from(["a", "b", "c", "gone", ""]), min_size=32, max_size=32), st.lists(st.integers(0, 100), min_size=3, max_size=3))
def test_only_what_must_change_sides_does(holders: list[str], percentages: list[int]) -> None:
    if not any(percentages):
        return
    share = quotas(dict(zip("abc", percentages, strict=True)), 32)
    holder = dict(enumerate(holders))
    result = split(tuple(range(32)), holder, share)
    assert {revision: sum(r == revision for r in result.values()) for revision in "abc"} == share
    kept = sum(result[shard] == holder[shard] for shard in holder)
    assert kept == sum(min(share[revision], holders.count(revision)) for revision in "abc")
