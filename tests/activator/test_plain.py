"""Services without a proxy, and calls whose first message is not here yet, with a recorded transport."""

from __future__ import annotations

from typing import Any

import pytest

from activator.probes import answer
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Status

ANY = "/some.other.Service/Whatever"


def test_every_call_goes_to_the_least_busy_pod_whatever_it_is(house: Any) -> None:
    house.plain("a", "b")
    calls = [house.call(path=ANY, message=b"\xff not protobuf"), house.unseen(ANY), house.http("/page"), house.call()]
    assert sorted(house.at(call) for call in calls) == ["a:9000", "a:9000", "b:9000", "b:9000"]
    assert house.transport.peeked == []


def test_calls_are_held_at_zero_and_the_service_wakes(house: Any) -> None:
    house.plain()
    calls = [house.call(path=ANY), house.http("/page"), house.unseen(ANY)]
    assert [(r.service, r.revision, r.concurrency) for r in house.reports] == [("shop/cart", "cart-1", 1)]
    assert (house.waiting(), house.router.cold_starts) == (3, 3)
    house.plain("a")
    assert [call for call, _, _ in house.transport.forwards] == calls


def test_a_revision_at_zero_is_held_though_another_one_is_ready(house: Any) -> None:
    other = pb.RevisionRoute(revision="cart-2")
    house.plain("a", revisions=[other])
    call = house.http("/", knative_serving_namespace=b"shop", knative_serving_revision=b"cart-2")
    assert (house.waiting(), house.at(call), house.router.cold_starts) == (1, "", 1)


def test_the_limit_of_a_pod_holds_and_the_first_room_is_taken(house: Any) -> None:
    house.plain("a", "b", limit=1)
    first, second, third = (house.http(f"/{n}") for n in range(3))
    assert {house.at(first), house.at(second), house.at(third)} == {"a:9000", "b:9000", ""}
    house.ended(first, text="200")
    assert house.at(third) != ""


def test_a_stream_counts_while_it_is_open(house: Any) -> None:
    house.plain("a")
    call = house.unseen(ANY)
    told = []
    for _ in range(3):
        house.transport.advance(1.0)
        told += [s.concurrency for s in house.router.statistics()]
    assert told == [0.0, 1.0, 1.0]  # the first second was told at once, when it began
    house.ended(call)
    assert house.router.reporters["shop/cart", "cart-1"].in_flight == 0


def test_a_plain_pod_gets_no_headers_of_ours_but_knatives(house: Any) -> None:
    house.plain("a")
    house.http("/", cloudstate_command_id=b"the caller's own")
    assert house.transport.forwards[0][2] == {"k-proxy-request": b"activator", "k-original-host": b"cart.shop.example.com"}
    call = house.http("/")
    house.refused(call, "connection refused")
    house.transport.advance(0.1)
    assert "cloudstate-retry" not in house.transport.forwards[-1][2]


def test_the_original_host_is_kept(house: Any) -> None:
    house.plain("a")
    house.http("/", k_original_host=b"first.example.com")
    assert "k-original-host" not in house.transport.forwards[0][2]  # so that the caller's passes


def test_a_dead_pods_call_goes_to_another_one_at_once(house: Any) -> None:
    house.plain("a", "b")
    call = house.http("/")
    first = house.at(call)
    house.refused(call, "connection refused")
    assert {first, house.at(call)} == {"a:9000", "b:9000"}


def test_what_waits_for_a_service_that_is_removed_is_told(house: Any) -> None:
    house.plain()
    grpc, web = house.call(path=ANY), house.http("/")
    house.plain(revisions=[], hosts=[], revision="")
    assert (house.transport.answers[grpc].status, house.transport.answers[web].status) == (Status.UNIMPLEMENTED, 404)
    assert "has been removed" in house.transport.answers[web].text
    late = house.http("/")
    assert house.transport.answers[late].status == 404


def test_a_removed_service_is_forgotten_once_its_last_request_has_ended(house: Any) -> None:
    house.plain("a")
    call = house.http("/")
    house.plain(revisions=[], hosts=[], revision="")
    house.transport.advance(1.0)
    assert "shop/cart" in house.router.desks
    house.ended(call, text="200")
    for _ in range(3):
        house.transport.advance(1.0)
        house.router.statistics()
        house.router.expire(house.transport.now)
    assert not house.router.desks
    assert not house.router.reporters
    assert house.transport.answers[house.http("/")].status == 404


def test_the_statistics_of_a_revision_that_is_gone_are_forgotten_once_told(house: Any) -> None:
    house.plain("a")
    call = house.http("/")
    house.plain("b", revision="cart-2")
    assert list(house.router.reporters) == [("shop/cart", "cart-1")]
    house.ended(call, text="200")
    for _ in range(2):
        house.transport.advance(1.0)
        house.router.statistics()
    house.plain("b", revision="cart-2")
    assert not house.router.reporters


# Limits and first messages -----------------------------------------------------------------------------------------------


def test_the_revisions_timeout_is_the_transports_to_keep(house: Any) -> None:
    house.plain()
    held = house.http("/")
    assert house.transport.limits == {held: 60}
    house.cancelled(held)  # as the transport does when the time is over
    assert house.waiting() == 0
    house.plain(revisions=[pb.RevisionRoute(revision="cart-9")])
    house.http("/", knative_serving_namespace=b"shop", knative_serving_revision=b"cart-9")
    assert house.transport.limits == {held: 60}


def test_a_command_waits_for_its_first_message_and_then_goes_to_its_owner(house: Any) -> None:
    house.routes({s: "a" if s % 2 else "b" for s in range(8)}, ["a", "b"])
    call = house.unseen()
    assert (house.transport.peeked, house.at(call)) == ([call], "")
    house.router.on_event((api.CALL_MESSAGE, call, house.command("ann"), None))
    assert house.at(call) == ("a:9000" if house.shard("ann") % 2 else "b:9000")


def test_at_zero_the_first_message_is_not_asked_for_until_somebody_can_take_the_call(house: Any) -> None:
    house.everything_at("", methods=[])
    call = house.unseen()
    assert (house.waiting(), house.transport.peeked) == (1, [])
    house.everything_at("a")
    assert (house.waiting(), house.transport.peeked) == (0, [call])
    house.router.on_event((api.CALL_MESSAGE, call, b"", None))
    assert house.transport.answers[call].status == Status.INVALID_ARGUMENT


def test_a_caller_that_leaves_before_its_first_message_is_forgotten(house: Any) -> None:
    house.everything_at("a")
    call = house.unseen()
    house.cancelled(call)
    house.router.on_event((api.CALL_MESSAGE, call, house.command("ann"), None))
    assert house.transport.forwards == []
    assert house.router.reporters["shop/cart", "cart-1"].in_flight == 0


# Probes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("problem", "status"), [("", 200), ("draining", 503)])
def test_the_kubelet_is_told_whether_traffic_should_come(house: Any, problem: str, status: int) -> None:
    house.problem = problem
    assert house.transport.answers[house.http(user_agent=b"kube-probe/1.34")].status == status
    assert house.router.requests == 0


def test_other_probes_and_requests_go_on_while_it_drains() -> None:
    assert answer(b"envoy", b"probe", b"h", "draining") == (200, [("k-network-hash", b"h")], b"")
    assert answer(b"curl/8", b"", b"", "draining") is None
