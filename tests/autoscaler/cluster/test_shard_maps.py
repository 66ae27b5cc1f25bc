"""ShardMap objects: everything comes back as it was kept, and a map is never written over another leader's."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.cluster.shard_maps import ShardMapStore, body_of, map_of, methods_of
from autoscaler.placement.convergence import FORCE_AFTER_MS
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Conflict, KubeError
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import Entry, ShardMap, free_map

from .world import NAMESPACE, Kube, read

MEMBERS = st.sampled_from(["", "cart-1-a#1", "cart-1-b#2", "ü"])
ENTRIES = st.builds(
    lambda owner, next_, since: Entry(owner, next_, since, FORCE_AFTER_MS if next_ else 0), MEMBERS, MEMBERS, st.integers(0, 2**53)
)
MAPS = st.builds(
    ShardMap, st.just("ns/cart"), st.text(max_size=8), st.integers(0, 2**53), st.lists(ENTRIES, min_size=1, max_size=32).map(tuple)
)
FIELDS = st.builds(pb.KeyField, numbers=st.lists(st.integers(1, 1000), min_size=1, max_size=3), type=st.integers(1, 18))
WORDS = st.text(max_size=9)
METHODS = st.lists(st.builds(pb.Method, path=WORDS, persistence_id=WORDS, key_fields=st.lists(FIELDS, max_size=2), stateless=st.booleans()))


@given(MAPS, METHODS)
def test_what_is_kept_comes_back(kept: ShardMap, methods: list[pb.Method]) -> None:
    found = read(kinds.SHARD_MAP, body_of(kept, methods, None))
    assert map_of(found) == kept
    assert methods_of(found) == methods


def test_people_can_read_it_and_it_goes_with_its_service() -> None:
    owner = objects.Object(objects.Metadata(name="cart", namespace=NAMESPACE, uid="k1"))
    kept = ShardMap("ns/cart", "j", 7, (Entry("a"), Entry("a", "b"), Entry("b"), Entry()))
    body = body_of(kept, [], owner)
    assert (body["spec"]["owners"], body["spec"]["moving"], body["spec"]["generation"]) == (2, 1, 7)
    assert body["metadata"]["labels"] == {"serving.knative.dev/service": "cart"}
    (reference,) = body["metadata"]["ownerReferences"]
    assert (reference["kind"], reference["name"], reference["uid"]) == ("Service", "cart", "k1")


FIRST = free_map("ns/cart", "j", 4, 10)
SECOND = FIRST.changed({0: Entry("a")})
THIRD = SECOND.changed({1: Entry("a")})
METHOD = pb.Method(path="/shop.Cart/Get", persistence_id="cart")


def store(kube: Kube) -> ShardMapStore:
    return ShardMapStore(kube, lambda service: [METHOD])  # type: ignore[arg-type]


def kept(kube: Kube) -> ShardMap:
    return map_of(kube.read(kinds.SHARD_MAP, NAMESPACE, "cart"))


async def test_a_later_leader_finds_what_was_kept_and_goes_on() -> None:
    kube = Kube()
    await kube.create(kinds.KNATIVE_SERVICE, NAMESPACE, {"metadata": {"name": "cart", "uid": "k1"}})
    first, later = store(kube), store(kube)
    assert await first.load("ns/cart") is None
    await first.keep(FIRST)
    await first.keep(SECOND)
    assert kube.read(kinds.SHARD_MAP, NAMESPACE, "cart").metadata.owner_references[0].uid == "k1"
    assert await later.load("ns/cart") == (SECOND, [METHOD])
    await later.keep(THIRD)
    assert kept(kube) == THIRD


async def test_a_leader_that_was_followed_cannot_undo_its_follower_s_work() -> None:
    kube = Kube()
    first, later = store(kube), store(kube)
    await first.load("ns/cart")
    await first.keep(FIRST)
    await later.load("ns/cart")
    await later.keep(THIRD)
    for _ in range(3):
        with pytest.raises(Conflict, match="another leader"):
            await first.keep(SECOND)
    assert kept(kube) == THIRD
    await later.keep(THIRD.changed({2: Entry("b")}))


async def test_another_leader_s_map_of_the_same_generation_is_not_ours() -> None:
    kube = Kube()
    first, later = store(kube), store(kube)
    await first.load("ns/cart")
    await first.keep(FIRST)
    await later.load("ns/cart")
    await later.keep(FIRST.changed({0: Entry("b")}))
    for _ in range(2):
        with pytest.raises(Conflict):
            await first.keep(SECOND)
    assert kept(kube).entries[0].owner == "b"


async def test_a_label_or_a_deletion_by_hand_stops_nothing() -> None:
    kube = Kube()
    one = store(kube)
    await one.load("ns/cart")
    await one.keep(FIRST)
    await kube.merge(kinds.SHARD_MAP, NAMESPACE, "cart", {"metadata": {"labels": {"looked": "at"}}})
    await one.keep(SECOND)
    assert kept(kube) == SECOND
    await kube.delete(kinds.SHARD_MAP, NAMESPACE, "cart")
    await one.keep(THIRD)
    assert kept(kube) == THIRD


@pytest.mark.parametrize("verb", ["create", "replace"])
async def test_a_write_whose_answer_was_lost_is_no_other_leader_s(verb: str) -> None:
    kube = Kube()
    one = store(kube)
    await one.load("ns/cart")
    maps = [FIRST, SECOND, THIRD]
    if verb == "replace":
        await one.keep(maps.pop(0))
    kube.late = True
    lost = [KubeError(0, "Connection", "no answer")]
    kube.fail = lambda call: lost.pop() if call.startswith(verb) and lost else None
    with pytest.raises(KubeError, match="no answer"):
        await one.keep(maps[0])
    await one.keep(maps[1])
    assert kept(kube) == maps[1]


async def test_a_service_taken_in_again_sees_what_is_being_written() -> None:
    kube = Kube()
    one = store(kube)
    await one.load("ns/cart")
    await one.keep(FIRST)
    _, found = await asyncio.gather(one.keep(SECOND), one.load("ns/cart"))
    assert found is not None
    assert found[0] == SECOND
    await one.keep(THIRD)


async def test_a_map_does_not_come_back_when_its_service_is_deleted_while_it_is_written() -> None:
    """The API server deletes the map with its service; without an owner a new one would stay for ever, for the next service of the name."""
    kube = Kube()
    await kube.create(kinds.KNATIVE_SERVICE, NAMESPACE, {"metadata": {"name": "cart", "uid": "k1"}})
    one = store(kube)
    await one.load("ns/cart")
    await one.keep(FIRST)

    def deleted(call: str) -> None:
        if call.startswith("replace"):
            kube.held.clear()
            one.forget("ns/cart")

    kube.fail = deleted  # type: ignore[assignment]
    await one.keep(SECOND)
    assert not kube.held
    assert not one._records, "nor is anything remembered"


async def test_a_map_goes_with_the_present_service_when_that_was_made_again() -> None:
    kube = Kube()
    await kube.create(kinds.KNATIVE_SERVICE, NAMESPACE, {"metadata": {"name": "cart", "uid": "k1"}})
    one = store(kube)
    await one.load("ns/cart")
    await one.keep(FIRST)
    kube.held.clear()
    await kube.create(kinds.KNATIVE_SERVICE, NAMESPACE, {"metadata": {"name": "cart", "uid": "k2"}})
    await one.keep(SECOND)
    assert [owner.uid for owner in kube.read(kinds.SHARD_MAP, NAMESPACE, "cart").metadata.owner_references] == ["k2"]


@pytest.mark.parametrize("collected", [False, True], ids=["before it is deleted", "after"])
async def test_what_an_earlier_service_of_the_name_left_is_not_its_successor_s(collected: bool) -> None:
    """The API server deletes it later: until then it tells another number of shards, and perhaps another journal."""
    kube = Kube()
    await kube.create(kinds.KNATIVE_SERVICE, NAMESPACE, {"metadata": {"name": "cart", "uid": "k1"}})
    before, after = store(kube), store(kube)
    await before.load("ns/cart")
    await before.keep(SECOND)
    kube.held["services", NAMESPACE, "cart"]["metadata"]["uid"] = "k2"
    assert await after.load("ns/cart") is None
    if collected:
        await kube.delete(kinds.SHARD_MAP, NAMESPACE, "cart")
    new = free_map("ns/cart", "another", 2, 20)
    await after.keep(new)
    assert kept(kube) == new
    assert [owner.uid for owner in kube.read(kinds.SHARD_MAP, NAMESPACE, "cart").metadata.owner_references] == ["k2"]


async def test_a_map_that_is_not_taken_is_written_again_later_and_later_and_as_late_as_the_server_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever decides on a service comes again at once, with every beat of a proxy."""
    kube, waits = Kube(), list[float]()

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    one = store(kube)
    await one.load("ns/cart")
    monkeypatch.setattr(asyncio, "sleep", wait)
    errors = [*[KubeError(403, "Forbidden", "no")] * 5, KubeError(429, "TooManyRequests", "busy", retry_after=7.0)]
    kube.fail = lambda call: errors.pop(0) if errors and call.startswith("create") else None
    for _ in range(6):
        with pytest.raises(KubeError):
            await one.keep(FIRST)
    assert waits == [0.2, 0.4, 0.8, 1.6, 2.0, 7.0]
    await one.keep(FIRST)
    assert kept(kube) == FIRST


async def test_a_service_that_is_made_again_while_it_is_looked_for_owns_its_map_all_the_same() -> None:
    kube = Kube()
    one = store(kube)
    await one.load("ns/cart")
    await one.keep(FIRST)
    await kube.create(kinds.KNATIVE_SERVICE, NAMESPACE, {"metadata": {"name": "cart", "uid": "k1"}})
    await one.keep(SECOND)
    assert [owner.uid for owner in kube.read(kinds.SHARD_MAP, NAMESPACE, "cart").metadata.owner_references] == ["k1"]


async def test_a_map_belongs_to_the_service_that_its_revisions_name_and_not_to_the_next_of_the_name() -> None:
    """The last revision of a deleted service may be taken in when the next one is there already, as by a new leader."""
    kube = Kube()
    await kube.create(kinds.KNATIVE_SERVICE, NAMESPACE, {"metadata": {"name": "cart", "uid": "k2"}})
    before, after = store(kube), store(kube)
    assert await before.load("ns/cart", "k1") is None
    await before.keep(FIRST)
    assert [owner.uid for owner in kube.read(kinds.SHARD_MAP, NAMESPACE, "cart").metadata.owner_references] == ["k1"]
    assert await after.load("ns/cart", "k2") is None
    await after.keep(SECOND)
    assert await store(kube).load("ns/cart", "k2") == (SECOND, [METHOD])


async def test_a_map_that_nobody_owns_is_not_a_service_s() -> None:
    """It was written when the one before was gone already."""
    kube = Kube()
    before, after = store(kube), store(kube)
    await before.load("ns/cart")
    await before.keep(FIRST)
    await kube.create(kinds.KNATIVE_SERVICE, NAMESPACE, {"metadata": {"name": "cart", "uid": "k1"}})
    assert await after.load("ns/cart") is None
