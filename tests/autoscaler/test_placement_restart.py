"""A leader that starts anew: its map must begin above the generations that the journal has seen."""

from __future__ import annotations

from concurrent.futures import Future

from autoscaler.placement.service import ServicePlacement
from cloudstate_core.journal.api import Claim, Claimed, Outcome, Stale
from cloudstate_core.journal.memory import MemoryJournal
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import free_map

SHARDS = 4


def placed(generation: int) -> ServicePlacement:
    """A placement with one ready member that owns every shard."""
    placement = ServicePlacement("default/cart", SHARDS, kept=free_map("default/cart", "", SHARDS, generation))
    member = pb.Member(member_id="pod/1", pod="pod", revision="cart-1")
    assert placement.hello(0.0, pb.Hello(service="default/cart", member=member, journal_id="j", shard_count=SHARDS)) == ""
    placement.heartbeat(0.0, "pod/1", pb.Heartbeat(journal_ok=True))
    placement.tick(0.1)
    return placement


def claim(journal: MemoryJournal, placement: ServicePlacement, nonce: bytes) -> Outcome:
    answer: Future[Outcome] = Future()
    since = placement.map.entries[0].since
    journal.submit([Claim(0, -1, since, "pod/1", nonce)], lambda outcomes: answer.set_result(outcomes[0]))
    return answer.result(1)


def test_a_map_that_begins_above_the_earlier_one_can_claim() -> None:
    journal = MemoryJournal("default/cart", SHARDS)
    assert isinstance(claim(journal, placed(1_000), b"first"), Claimed)
    assert isinstance(claim(journal, placed(0), b"too old"), Stale)
    assert isinstance(claim(journal, placed(2_000), b"second"), Claimed)
