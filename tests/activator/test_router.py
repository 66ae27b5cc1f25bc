"""The front door's policy with a recorded transport: hold at zero, route to owners, retry what was refused, keep limits."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstate_core.transport.api import Outcome, Status

PRICE, REFLECTION = "/shop.Cart/Price", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


def test_a_command_goes_to_the_owner_of_its_shard_with_its_headers(house: Any) -> None:
    house.routes({s: "a" if s % 2 else "b" for s in range(8)}, ["a", "b"])
    for key in ("ann", "bob", "cy", "dee", "eve"):
        call = house.call(key)
        assert house.at(call) == ("a:9000" if house.shard(key) % 2 else "b:9000")
    headers = [h for _, _, h in house.transport.forwards]
    assert len({h["cloudstate-command-id"] for h in headers}) == 5
    assert all(h["k-proxy-request"] == b"activator" and h["k-original-host"] == b"cart.shop.example.com" for h in headers)
    assert not any("cloudstate-retry" in h for h in headers)


def test_the_callers_command_id_is_kept(house: Any) -> None:
    house.everything_at("a")
    house.call(cloudstate_command_id=b"mine")
    assert house.transport.forwards[0][2]["cloudstate-command-id"] == b"mine"


def test_calls_at_zero_wake_the_service_at_once_and_go_in_order(house: Any) -> None:
    house.everything_at("")
    calls = [house.call(f"k{n}") for n in range(5)]
    assert [(r.service, r.revision, r.concurrency, r.requests) for r in house.reports] == [("shop/cart", "cart-1", 1, 1)]
    house.transport.advance(2.0)
    house.everything_at("a")
    assert [call for call, _, _ in house.transport.forwards] == calls
    assert (house.router.held, house.router.cold_starts, house.router.held_seconds) == (5, 5, 10.0)


def test_calls_wait_while_the_methods_are_not_known(house: Any) -> None:
    house.everything_at("a", methods=[])
    call = house.call()
    assert house.waiting() == 1
    house.everything_at("a")
    assert house.at(call) == "a:9000"


def test_a_pod_that_is_ready_without_an_owner_of_the_shard_holds(house: Any) -> None:
    house.routes({}, ["a"])
    keyed, anywhere = house.call(), house.call(path=PRICE)
    assert (house.at(keyed), house.at(anywhere)) == ("", "a:9000")
    house.everything_at("a")
    assert house.at(keyed) == "a:9000"


@pytest.mark.parametrize(
    ("path", "message", "status", "says"),
    [
        ("/shop.Cart/Nope", b"", Status.UNIMPLEMENTED, "/shop.Cart/Nope"),
        ("/shop.Cart/Add", b"", Status.INVALID_ARGUMENT, "entity key must not be empty"),
        ("/shop.Cart/Add", b"\x0a\x05abc", Status.INVALID_ARGUMENT, "does not parse"),
    ],
)
def test_what_cannot_be_routed_is_told_and_wakes_nobody(house: Any, path: str, message: bytes, status: Status, says: str) -> None:
    house.everything_at("")
    call = house.call(path=path, message=message)
    assert house.transport.answers[call].status == status
    assert says in house.transport.answers[call].text
    assert (house.reports, house.router.cold_starts) == ([], 0)


@pytest.mark.parametrize("path", [PRICE, REFLECTION])
def test_calls_without_an_entity_go_to_the_least_busy_ready_pod(house: Any, path: str) -> None:
    house.routes(dict.fromkeys(range(8), "a"), ["a", "b"])
    assert sorted(house.at(house.call(path=path)) for _ in range(6)) == ["a:9000"] * 3 + ["b:9000"] * 3


def test_a_service_is_found_by_header_then_host_then_alone(house: Any) -> None:
    house.everything_at("a")
    assert house.at(house.call(authority=b"whatever:80")) == "a:9000"
    house.everything_at("x", name="shop/other", revision="other-1")
    assert house.at(house.call(authority=b"OTHER.shop.example.com:8080")) == "x:9000"
    assert house.at(house.call(knative_serving_namespace=b"shop", knative_serving_revision=b"other-1")) == "x:9000"
    lost = house.call(authority=b"whatever")
    assert (house.transport.answers[lost].status, "whatever" in house.transport.answers[lost].text) == (Status.UNIMPLEMENTED, True)
    lost = house.call(knative_serving_namespace=b"shop", knative_serving_revision=b"gone")
    assert "shop/gone" in house.transport.answers[lost].text


def test_without_routes_a_call_may_be_tried_later(house: Any) -> None:
    call = house.call()
    assert house.transport.answers[call].status == Status.UNAVAILABLE


# Refusals ---------------------------------------------------------------------------------------------------------------


def test_a_refused_call_waits_for_the_new_owner_and_is_marked(house: Any) -> None:
    house.everything_at("a")
    call = house.call()
    first = house.transport.forwards[0][2]["cloudstate-command-id"]
    house.refused(call)
    assert (house.at(call), house.waiting()) == ("", 1)
    house.everything_at("b")
    assert house.at(call) == "b:9000"
    assert house.transport.forwards[-1][2]["cloudstate-command-id"] == first
    assert house.transport.forwards[-1][2]["cloudstate-retry"] == b"1"


def test_a_map_that_still_names_who_refused_does_not_bring_the_call_back_there(house: Any) -> None:
    house.everything_at("a")
    call = house.call()
    house.refused(call)
    for _ in range(10):
        house.everything_at("a")
    assert len(house.transport.forwards) == 1
    house.transport.advance(0.05)
    assert house.at(call) == "a:9000"


def test_retries_grow_rarer_and_end_with_the_hold_limit(house: Any) -> None:
    house.everything_at("a")
    call, tries = house.call(), 0
    while call not in house.transport.answers:
        if house.at(call):
            tries += 1
            house.refused(call, "connection refused")
        house.transport.advance(0.01)
        house.router.expire(house.transport.now)
    assert house.transport.now == pytest.approx(30.0, abs=0.1)
    assert 20 < tries < 40
    assert house.transport.answers[call].status == Status.UNAVAILABLE


def test_a_call_for_any_pod_is_tried_at_another_one_at_once_but_not_around_in_circles(house: Any) -> None:
    house.routes({}, ["a", "b"])
    call = house.call(path=PRICE)
    house.refused(call)
    house.refused(call)
    assert {target for _, target, _ in house.transport.forwards} == {"a:9000", "b:9000"}
    assert house.waiting() == 1


@pytest.mark.parametrize("outcome", [Outcome.DELIVERED, Outcome.FAILED, Outcome.CANCELLED])
def test_what_may_have_happened_is_never_repeated(house: Any, outcome: Outcome) -> None:
    house.everything_at("a")
    call = house.call()
    house.ended(call, outcome, "x")
    house.transport.advance(60)
    house.everything_at("b")
    assert len(house.transport.forwards) == 1
    assert house.router.reporters["shop/cart", "cart-1"].in_flight == 0


def test_a_retry_that_comes_after_its_service_was_forgotten_brings_nothing_of_it_back(house: Any) -> None:
    """As when a service is deleted under load: its pods refuse, then nothing leads there any more. What waits elsewhere still gets its answer."""
    house.everything_at("a")
    call = house.call()
    for _ in range(5):
        house.refused(call, "connection refused")
        house.transport.advance(1.0)
    house.refused(call, "connection refused")  # to be tried again in a second
    house.router.statistics()
    house.gone()
    assert house.transport.answers[call].status == Status.UNIMPLEMENTED
    house.router.statistics()
    house.router.expire(house.transport.now)
    assert not house.router.desks
    house.everything_at("", name="shop/other", revision="other-1")
    waits = house.call(authority=b"other.shop.example.com")
    house.transport.advance(31.0)
    house.router.expire(house.transport.now)
    assert house.transport.answers[waits].status == Status.UNAVAILABLE
    assert list(house.router.desks) == ["shop/other"]


# Limits -----------------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_with_a_sentence(new_house: Any) -> None:
    house = new_house(queue=3)
    house.everything_at("")
    calls = [house.call(f"k{n}") for n in range(4)]
    assert house.transport.answers[calls[3]].status == Status.RESOURCE_EXHAUSTED
    assert "3 requests wait already" in house.transport.answers[calls[3]].text
    web = house.http()
    assert house.transport.answers[web].status == 503
    house.cancelled(calls[0])
    assert house.call("k9") not in house.transport.answers
    house.everything_at("a")
    assert [c for c, _, _ in house.transport.forwards] == [calls[1], calls[2], 6]


def test_cancelled_calls_make_no_room_that_is_not_there(new_house: Any) -> None:
    house = new_house(queue=2)
    house.everything_at("a")
    for _ in range(10):  # in flight, refused, and gone: never more than one waits
        call = house.call()
        house.refused(call)
        house.cancelled(call)
    house.everything_at("")
    answers = [house.transport.answers.get(house.call()) for _ in range(3)]
    assert [a is not None for a in answers] == [False, False, True]


def test_a_held_call_is_given_back_after_the_limit(house: Any) -> None:
    house.everything_at("")
    early = house.call()
    house.transport.advance(20)
    late = house.call()
    house.transport.advance(10)
    house.router.expire(house.transport.now)
    assert house.transport.answers[early].status == Status.UNAVAILABLE
    assert "within 30 s" in house.transport.answers[early].text
    assert late not in house.transport.answers


def test_the_concurrency_limit_holds_and_releases_in_order(house: Any) -> None:
    house.everything_at("a", limit=2)
    calls = [house.call(f"k{n}") for n in range(5)]
    assert list(house.transport.in_flight) == calls[:2]
    house.ended(calls[1])
    house.ended(calls[0])
    assert list(house.transport.in_flight) == calls[2:4]
    house.transport.advance(61)
    house.router.expire(house.transport.now)
    assert "too busy" in house.transport.answers[calls[4]].text


def test_a_call_for_any_pod_takes_the_first_room_there_is(house: Any) -> None:
    house.routes({}, ["a", "b"], limit=1)
    first, second, third = (house.call(path=PRICE) for _ in range(3))
    free = house.at(second)
    house.ended(second)
    assert (house.at(third), house.at(first) != free) == (free, True)


def test_upstreams_of_pods_that_are_gone_are_forgotten_once_idle(house: Any) -> None:
    house.everything_at("a")
    call = house.call()
    house.everything_at("b")
    assert house.transport.disconnected == []
    house.ended(call)
    assert house.transport.disconnected == ["a:9000"]
    assert list(house.router.desks["shop/cart"].pods) == []


def test_a_pod_that_left_before_its_last_request_does_not_keep_other_services_connections(house: Any) -> None:
    """The service of that pod may rest for days, in which the pods of others come and go."""
    house.everything_at("a")
    last = house.call()
    house.everything_at("")
    house.everything_at("x", name="shop/other", revision="other-1")
    house.ended(house.call(authority=b"other.shop.example.com"))
    house.ended(last)
    house.everything_at("y", name="shop/other", revision="other-1")
    assert sorted(house.transport.disconnected) == ["a:9000", "x:9000"]


# HTTP -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status", "body", "echoed"),
    [
        ({"k_network_probe": b"probe", "k_network_hash": b"abc"}, 200, "", b"abc"),
        ({"k_network_probe": b"probe"}, 400, "K-Network-Hash must be set in a probe\n", None),
        ({"k_network_probe": b"activator"}, 200, "activator", None),
        ({"k_network_probe": b"queue"}, 400, "K-Network-Probe must be probe or activator\n", None),
    ],
)
def test_network_probes_are_answered_here(house: Any, headers: dict[str, bytes], status: int, body: str, echoed: bytes | None) -> None:
    answer = house.transport.answers[house.http(**headers)]
    assert (answer.status, answer.text, dict(answer.headers).get("k-network-hash")) == (status, body, echoed)


def test_plain_http_goes_to_any_ready_pod_and_waits_at_zero(house: Any) -> None:
    house.everything_at("")
    call = house.http("/page")
    house.everything_at("a")
    assert house.at(call) == "a:9000"
