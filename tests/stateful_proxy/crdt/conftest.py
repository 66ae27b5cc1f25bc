"""Proxies with replicated entities, as their tests want them."""

from __future__ import annotations

import pytest

from tests.stateful_proxy.crdt.bench import CrdtBench


@pytest.fixture
def bench() -> CrdtBench:
    return CrdtBench()


@pytest.fixture
def pair() -> tuple[CrdtBench, CrdtBench]:
    """Two proxies on one journal; they do not hear of each other unless a test tells them."""
    one = CrdtBench(others=["other"])
    two = CrdtBench(others=["me"], journal=one.journal)
    two.replication.member = "other"
    return one, two
