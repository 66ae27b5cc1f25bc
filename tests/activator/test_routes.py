"""The routing table: what the leader sends is taken over in order, and what it leaves out stays known."""

from __future__ import annotations

from typing import Any

import pytest

from activator.routes import Destination, Hold, RouteTable, host_of
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb


def update(generation: int, entries: dict[int, str], full: bool = False, shard_count: int = 4) -> pb.ServiceRoute:
    members = [pb.Member(member_id=m, revision="r", data_address=f"{m}:1") for m in ("a", "b")]
    return pb.ServiceRoute(
        map=pb.MapUpdate(
            service="ns/s",
            shard_count=shard_count,
            generation=generation,
            entries=[pb.ShardEntry(shard=s, owner=o) for s, o in entries.items()],
            members=members,
            full=full,
        ),
        methods=[pb.Method(path="/p.S/M", persistence_id="e", key_fields=[pb.KeyField(numbers=[1], type=9)])],
        revisions=[pb.RevisionRoute(revision="r", ready_members=["a", "b"], container_concurrency=7)],
        default_revision="r",
    )


def owners(table: RouteTable) -> list[str]:
    return [entry.owner for entry in table.services["ns/s"].entries]


def test_changes_are_laid_over_the_whole_map() -> None:
    table = RouteTable()
    table.apply([update(3, {0: "a", 1: "a", 2: "a", 3: "a"}, full=True)])
    table.apply([update(4, {1: "b"})])
    assert owners(table) == ["a", "b", "a", "a"]


def test_an_older_change_is_left_out_but_a_new_leaders_whole_map_counts() -> None:
    table = RouteTable()
    table.apply([update(9, {0: "a"}, full=True)])
    table.apply([update(8, {0: "b"})])
    assert owners(table)[0] == "a"
    table.apply([update(1, {0: "b"}, full=True)])
    assert (owners(table)[0], table.services["ns/s"].generation) == ("b", 1)


def test_an_entry_beyond_the_map_is_left_out() -> None:
    table = RouteTable()
    table.apply([update(1, {0: "a", 99: "b"}, full=True)])
    assert owners(table) == ["a", "", "", ""]


def test_a_leader_that_has_not_learned_the_methods_yet_does_not_take_them_away() -> None:
    table = RouteTable()
    table.apply([update(1, dict.fromkeys(range(4), "a"), full=True)])
    fresh = update(2, {})
    fresh.ClearField("methods")
    table.apply([fresh])
    assert isinstance(table.services["ns/s"].decide("/p.S/M", b"\x0a\x01k", "r", lambda member: 0), Destination)


@pytest.mark.parametrize("owner", ["", "gone"])
def test_an_owner_that_nobody_knows_is_waited_for(owner: str) -> None:
    table = RouteTable()
    table.apply([update(1, dict.fromkeys(range(4), owner), full=True)])
    assert table.services["ns/s"].decide("/p.S/M", b"\x0a\x01k", "r", lambda member: 0) == Hold()


def test_a_draining_owner_still_takes_its_commands() -> None:
    table = RouteTable()
    route = update(1, dict.fromkeys(range(4), "a"), full=True)
    del route.revisions[0].ready_members[:]
    table.apply([route])
    assert table.services["ns/s"].decide("/p.S/M", b"\x0a\x01k", "r", lambda member: 0) == Destination("a", "a:1", True)


def test_the_limit_is_that_of_the_members_revision() -> None:
    table = RouteTable()
    table.apply([update(1, {}, full=True)])
    assert (table.services["ns/s"].limit("a"), table.services["ns/s"].limit("nobody")) == (7, 0)


@pytest.mark.parametrize(
    ("authority", "host"),
    [("A.b:80", "a.b"), ("a.b", "a.b"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", ""), ("a.b:", "a.b:")],
)
def test_host_of(authority: str, host: str) -> None:
    assert host_of(authority) == host


def test_every_live_revision_names_its_service(house: Any) -> None:
    house.everything_at("a", revisions=[pb.RevisionRoute(revision="cart-2", ready_members=["a"])])
    cart = house.table.services["shop/cart"]
    assert house.table.find("", "shop", "cart-2") == (cart, "cart-2")
    assert house.table.find("", "shop", "cart-1") == (cart, "cart-1")
    assert house.table.find("", "shop", "cart-3") is None
    assert house.table.find("", "", "cart-1") is None


def test_the_clusters_name_of_a_revision_leads_to_it(house: Any) -> None:
    house.everything_at("a", revisions=[pb.RevisionRoute(revision="cart-2", ready_members=["a"])])
    cart = house.table.services["shop/cart"]
    for host in ("cart-2.shop.svc.cluster.local:80", "cart-2.shop.svc", "CART-2.shop.svc.example.org"):
        assert house.table.find(host, "", "") == (cart, "cart-2")
    assert house.table.find("cart-9.shop.svc.cluster.local", "", "") is None
    assert house.table.find("cart-2.shop", "", "") == (cart, "cart-1")  # no such name: the only service there is
