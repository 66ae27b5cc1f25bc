"""The published vectors hold, and shards spread evenly."""

from __future__ import annotations

import collections
import json
import pathlib

import pytest

from cloudstate_core.hashing import shard_of

VECTORS = json.loads((pathlib.Path(__file__).parent.parent / "data/hashing_vectors.json").read_text())


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['persistence_id']}/{v['entity_id']}")
def test_published_vectors(vector: dict[str, object]) -> None:
    pid, key = str(vector["persistence_id"]), str(vector["entity_id"])
    assert [shard_of(pid, key, n) for n in (256, 1024, 100)] == [vector["shards_256"], vector["shards_1024"], vector["shards_100"]]


def test_type_and_key_do_not_run_together() -> None:
    many = range(64)
    assert [shard_of("a", f"b{i}", 4096) for i in many] != [shard_of("ab", f"{i}", 4096) for i in many]


def test_spread_is_even() -> None:
    counts = collections.Counter(shard_of("cart", f"user-{i}", 256) for i in range(100_000))
    assert len(counts) == 256
    assert max(counts.values()) < 1.35 * 100_000 / 256
