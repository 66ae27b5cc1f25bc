"""The stream to the leader: what is told when, and what happens while the leader is away. And the admin port's answers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from activator.admin import Admin
from activator.coordinator import ROUTE, LeaderStream
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api


class Leader:
    """A house whose router talks to a leader over the fake transport."""

    def __init__(self, house: Any) -> None:
        self.house, self.routes = house, 0
        router = house.router
        self.stream = LeaderStream(house.transport, "leader:1", "activator-x", router.statistics, router.present, self._routes)
        self.stream.start()

    def _routes(self, routes: Any) -> None:
        self.routes += len(routes)

    def told(self) -> list[list[tuple[str, float, float]]]:
        """Statistics of each message so far."""
        messages = [pb.RouteRequest.FromString(data) for _, data in self.house.transport.sent]
        assert all(m.activator_id == "activator-x" for m in messages)
        return [[(s.revision, s.concurrency, s.requests) for s in m.stats] for m in messages]

    def close(self) -> None:
        """The present stream ends."""
        number = self.house.transport.sent[-1][0]
        self.stream.on_event((api.STREAM_CLOSED, number, b"", (14, "gone", [], False)))

    def says(self, data: bytes) -> None:
        """A message comes on the present stream."""
        self.stream.on_event((api.STREAM_MESSAGE, self.house.transport.sent[-1][0], data, None))


@pytest.fixture
def leader(house: Any) -> Leader:
    return Leader(house)


def test_a_stream_begins_with_a_name_and_statistics_follow_each_second(house: Any, leader: Leader) -> None:
    house.everything_at("a")
    assert (house.transport.opened, leader.told()) == ([ROUTE], [[]])
    call = house.call()
    house.transport.advance(1.0)
    assert leader.told()[1:] == [[("cart-1", 0, 0)]]  # the first request was told at once, through `report`
    house.transport.advance(1.0)
    assert leader.told()[2:] == [[("cart-1", 1, 0)]]
    house.ended(call)
    house.transport.advance(5.0)
    assert leader.told()[3:] == [[("cart-1", 0, 0)], [], [], [], []]  # idle: one zero, then only that it is there


def test_a_new_leader_hears_at_once_of_what_waits(house: Any, leader: Leader) -> None:
    house.everything_at("")
    house.call()
    leader.says(pb.RouteResponse().SerializeToString())
    assert leader.stream.connected
    leader.close()
    assert not leader.stream.connected
    house.transport.advance(0.06)
    assert house.transport.opened == [ROUTE, ROUTE]
    assert leader.told()[-1] == [("cart-1", 1, 0)]


def test_each_attempt_is_a_new_connection_so_that_the_leaders_name_is_resolved_again(house: Any, leader: Leader) -> None:
    target = next(iter(house.transport.targets.values()))
    leader.close()
    house.transport.advance(0.06)
    assert house.transport.disconnected == [target]
    assert list(house.transport.targets.values()) == [target]


def test_a_leader_that_falls_silent_is_given_up_but_not_one_that_never_acknowledges(house: Any, leader: Leader) -> None:
    leader.says(b"")  # the first message: no services
    house.transport.advance(60)
    assert house.transport.resets == []
    leader.says(b"")
    house.transport.advance(4.5)
    leader.says(b"")
    house.transport.advance(4.5)
    assert house.transport.resets == []
    house.transport.advance(60)
    assert house.transport.resets == [house.transport.sent[-1][0]]


def test_a_leader_that_takes_the_connection_and_never_says_anything_is_given_up(house: Any, leader: Leader) -> None:
    """Every leader tells all routes first. One whose process stands still takes connections, and keeps who waits for it from the next leader."""
    leader.says(b"")
    leader.close()
    house.transport.advance(0.06)
    assert not leader.stream.connected
    house.transport.advance(6.5)
    assert house.transport.resets == [house.transport.sent[-1][0]]


def test_attempts_grow_rarer_and_messages_of_an_old_stream_are_ignored(house: Any, leader: Leader) -> None:
    old = house.transport.sent[-1][0]
    for _ in range(8):
        leader.close()
        house.transport.advance(2.0)
    assert len(house.transport.opened) == 9
    leader.stream.on_event((api.STREAM_CLOSED, old, b"", (14, "late", [], False)))
    house.transport.advance(10)
    assert len(house.transport.opened) == 9


def test_what_is_not_a_message_changes_nothing(house: Any, leader: Leader) -> None:
    leader.says(b"\xff\xff\xff")
    assert leader.routes == 0
    leader.says(pb.RouteResponse(services=[pb.ServiceRoute()]).SerializeToString())
    assert leader.routes == 1


def test_admin(house: Any, leader: Leader) -> None:
    admin = Admin(house.table, house.router, leader.stream)

    def get(target: str) -> tuple[int, str]:
        status, _, body = admin.answer(target)
        return status, body.decode()

    assert get("/alive") == (200, "alive\n")
    assert get("/ready") == (503, "no routes have come from the leader yet\n")
    leader.says(pb.RouteResponse().SerializeToString())  # a leader without services: there is nothing to wait for
    assert get("/ready") == (200, "ready\n")
    house.routes({0: "a", 1: "a"}, ["a"])
    assert get("/ready?verbose") == (200, "ready\n")
    house.call(path="/shop.Cart/Price")
    house.call(next(key for key in map(str, range(99)) if house.shard(key) > 1))
    metrics = get("/metrics")[1]
    labels = '{k8s_namespace_name="shop",kn_service_name="cart",kn_revision_name="cart-1"}'
    assert f"kn_revision_request_concurrency{labels} 2\n" in metrics
    assert f"kn_revision_request_queued{labels} 1\n" in metrics
    assert "cloudstate_activator_held_seconds_count 1\n" in metrics
    routes = json.loads(get("/routes")[1])
    assert routes[0]["shards"] == {"total": 8, "moving": 0, "free": 6, "owned": {"a": 2}}
    assert get("/nope")[0] == 404
    admin.draining = True
    assert get("/ready") == (503, "draining\n")
