"""The front door as a state machine: whatever happens, limits hold, order is kept, and no call is lost or answered twice."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from activator.admission import Desk, PodSlots, Room, WaitQueue
from cloudstate_core.transport.api import Outcome, Status

QUEUE = 6
MEMBERS = ["a", "b", "c"]
KEYS = ["ann", "bob", "cy", "dee"]
ENDS = [Outcome.DELIVERED, Outcome.FAILED, Outcome.CANCELLED]


def machine(new_house: Any) -> type[RuleBasedStateMachine]:
    """The machine over houses of this kind."""

    class FrontDoor(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.house = new_house(queue=QUEUE, hold=30.0)
            self.calls: list[int] = []
            self.gone: set[int] = set()
            self.limit = 0
            self.keys: dict[int, str] = {}
            self.clean: set[int] = set()
            """Commands that have never been refused: among these order is kept for each key."""

        @initialize(limit=st.integers(0, 2))
        def at_zero(self, limit: int) -> None:
            self.limit = limit
            self.house.everything_at("", limit=limit)

        def open_calls(self) -> list[int]:
            return [c for c in self.calls if c not in self.house.transport.answers and c not in self.gone]

        @rule(key=st.sampled_from(KEYS))
        def command(self, key: str) -> None:
            call = self.house.call(key)
            self.calls.append(call)
            self.keys[call] = key
            self.clean.add(call)

        @rule()
        def stateless(self) -> None:
            self.calls.append(self.house.call(path="/shop.Cart/Price"))

        @rule()
        def web(self) -> None:
            self.calls.append(self.house.http())

        @rule(ready=st.sets(st.sampled_from(MEMBERS)), owners=st.lists(st.sampled_from(["", *MEMBERS]), min_size=8, max_size=8))
        def routes(self, ready: set[str], owners: list[str]) -> None:
            self.house.routes(dict(enumerate(owners)), sorted(ready), limit=self.limit)

        @rule(number=st.integers(0, 50), outcome=st.sampled_from(ENDS))
        def ends(self, number: int, outcome: Outcome) -> None:
            if in_flight := list(self.house.transport.in_flight):
                call = in_flight[number % len(in_flight)]
                self.gone.add(call)
                self.house.ended(call, outcome)

        @rule(number=st.integers(0, 50))
        def refused(self, number: int) -> None:
            if in_flight := list(self.house.transport.in_flight):
                call = in_flight[number % len(in_flight)]
                self.clean.discard(call)
                self.house.refused(call)

        @rule(number=st.integers(0, 50))
        def cancelled(self, number: int) -> None:
            if waiting := [c for c in self.open_calls() if c not in self.house.transport.in_flight]:
                call = waiting[number % len(waiting)]
                self.gone.add(call)
                self.house.cancelled(call)

        @rule(seconds=st.sampled_from([0.05, 1.0, 31.0]))
        def time_passes(self, seconds: float) -> None:
            self.house.transport.advance(seconds)
            self.house.router.expire(self.house.transport.now)

        @invariant()
        def limits_hold(self) -> None:
            assert self.house.waiting() <= QUEUE
            if self.limit:
                for member in MEMBERS:
                    assert list(self.house.transport.in_flight.values()).count(f"{member}:9000") <= self.limit

        @invariant()
        def nothing_is_lost(self) -> None:
            assert self.house.waiting() == len(self.open_calls()) - len(self.house.transport.in_flight)
            assert sum(r.in_flight for r in self.house.router.reporters.values()) == len(self.open_calls())
            for desk in self.house.router.desks.values():
                queues = [desk.held, desk.anywhere, *(slots.waiting for slots in desk.pods.values())]
                assert desk.room.taken == sum(map(len, queues))

        @invariant()
        def nobody_waits_for_a_pod_with_room(self) -> None:
            for desk in self.house.router.desks.values():
                for slots in desk.pods.values():
                    assert not len(slots.waiting) or (self.limit and slots.in_flight >= self.limit)

        @invariant()
        def order_is_kept_for_each_entity(self) -> None:
            sent = [c for c, _, _ in self.house.transport.forwards if c in self.clean]
            for key in KEYS:
                mine = [c for c in sent if self.keys[c] == key]
                assert mine == sorted(mine)

        def teardown(self) -> None:
            """With one healthy pod everything that is still open is delivered."""
            self.house.everything_at("a", limit=self.limit)
            for _ in range(len(self.calls) * 3):
                for call in list(self.house.transport.in_flight):
                    self.gone.add(call)
                    self.house.ended(call)
                self.house.transport.advance(1.0)
            assert not self.open_calls()
            assert self.house.waiting() == 0

    return FrontDoor


def test_limits_order_and_loss_under_anything(new_house: Any) -> None:
    run_state_machine_as_test(machine(new_house), settings=settings(max_examples=100, stateful_step_count=40, deadline=None))


@pytest.mark.parametrize("ready", [[], ["a"]])
def test_room_at_a_pod_that_may_not_take_what_waits_is_not_offered_for_ever(house: Any, ready: list[str]) -> None:
    """A pod that drains, or has just refused the call, gives back its slot while a call for any pod waits for the busy other one."""
    every = dict.fromkeys(range(8), "a")
    house.routes(every, ["b"], limit=1)
    keyed, busy, waits = house.call(), house.call(path="/shop.Cart/Price"), house.call(path="/shop.Cart/Price")
    house.routes(every, [*ready, "b"], limit=1)
    house.ended(keyed)
    assert house.at(waits) == ("a:9000" if ready else "")
    house.ended(busy)
    assert house.at(waits)


def test_a_call_waits_for_the_busy_pod_after_the_free_one_refused_it_and_returns_there_later(house: Any) -> None:
    house.routes({}, ["a", "b"], limit=1)
    first, second = house.call(path="/shop.Cart/Price"), house.call(path="/shop.Cart/Price")
    refuser = house.at(second)
    house.refused(second)
    assert (house.at(second), bool(house.at(first))) == ("", True)
    house.transport.advance(0.05)
    assert house.at(second) == refuser


def test_a_pod_that_has_just_refused_a_call_is_not_offered_it_with_the_next_slot(house: Any) -> None:
    house.routes({}, ["a", "b"], limit=2)
    calls = [house.call(path="/shop.Cart/Price") for _ in range(4)]
    refused, neighbour = [call for call in calls if house.at(call) == "a:9000"]
    house.refused(refused)
    house.ended(neighbour)
    assert house.at(refused) == ""
    house.transport.advance(0.05)
    assert house.at(refused) == "a:9000"


def test_queues_share_a_room_and_keep_their_order() -> None:
    room = Room(3)
    first: WaitQueue[int] = WaitQueue(room)
    second: WaitQueue[int] = WaitQueue(room)
    assert [first.push(1, 0.0), second.push(2, 1.0), first.push(3, 2.0), second.push(4, 3.0)] == [True, True, True, False]
    first.discard(9)
    assert room.taken == 3
    assert first.expired(10.0, 9.0) == [1]
    assert (first.release(), second.pop(), room.taken) == ([3], 2, 0)


def test_a_free_slot_goes_to_whoever_has_waited_longest_and_fits() -> None:
    desk: Desk[str] = Desk(10)
    slots: PodSlots[str] = desk.slots("a")
    for call, since in (("alien", 0.5), ("any", 1.0)):
        desk.anywhere.push(call, since)
    for call, since in (("early", 0.0), ("late", 2.0)):
        slots.waiting.push(call, since)
    assert [slots.next(0, desk.anywhere, lambda call: call != "alien") for _ in range(4)] == ["early", "any", "late", None]


def test_a_mass_of_callers_that_go_away_costs_little(new_house: Any) -> None:
    """10,000 waiting calls are cancelled one by one: a quadratic queue would need 10^8 steps."""
    house = new_house(queue=10_000)
    house.everything_at("a", limit=1)
    calls = [house.call(f"k{n}") for n in range(10_001)]
    refused = house.call("one more")
    assert house.transport.answers[refused].status == Status.RESOURCE_EXHAUSTED
    for call in reversed(calls[1:]):
        house.cancelled(call)
    assert house.waiting() == 0


@pytest.mark.parametrize(("limit", "taken"), [(0, 5), (1, 1), (3, 3)])
def test_slots(limit: int, taken: int) -> None:
    slots: PodSlots[int] = PodSlots(Room(1))
    assert sum(slots.take(limit) for _ in range(5)) == taken
