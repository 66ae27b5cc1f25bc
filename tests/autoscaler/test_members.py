"""Suspicion, its brakes, and who may be given shards."""

from __future__ import annotations

from autoscaler.placement.members import Membership
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb

TICK = 0.2


def members(*names: str, now: float = 0.0) -> Membership:
    found = Membership()
    for name in names:
        found.hello(now, pb.Member(member_id=name, pod=name.partition("#")[0], revision="r1"))
        found.heartbeat(now, name, pb.Heartbeat(journal_ok=True))
    return found


def watch(found: Membership, begin: float, end: float, speaking: str = "") -> dict[str, float]:
    """Looks at every tick while `speaking` beat; who was suspected when."""
    suspected: dict[str, float] = {}
    for n in range(round((end - begin) / TICK) + 1):
        now = begin + n * TICK
        for name in speaking:
            found.heartbeat(now, name, pb.Heartbeat(journal_ok=True))
        for name in found.suspect(now):
            suspected[name] = now
    return suspected


def test_one_silent_member_is_suspected_after_three_seconds() -> None:
    suspected = watch(members("a", "b", "c", "d"), 0.0, 10.0, speaking="bcd")
    assert list(suspected) == ["a"]
    assert 3.0 < suspected["a"] <= 3.4


def test_the_only_other_member_of_two_is_suspected_as_well() -> None:
    assert list(watch(members("a", "b"), 0.0, 10.0, speaking="b")) == ["a"]


def test_a_leader_that_was_late_gives_that_time_to_all() -> None:
    found = members("a", "b", "c", "d")
    assert watch(found, 0.0, 1.0) == {}
    suspected = watch(found, 6.0, 12.0, speaking="bcd")
    assert 7.5 <= suspected["a"] <= 8.2


def test_who_is_heard_before_the_first_look_after_a_rest_is_given_nothing() -> None:
    """A service at zero is not looked at, for hours perhaps. Its first pod may die as it comes up."""
    found = Membership()
    found.suspect(0.0)
    found.hello(3600.0, pb.Member(member_id="a", pod="a", revision="r1"))
    found.heartbeat(3600.0, "a", pb.Heartbeat(journal_ok=True))
    assert 3603.0 < watch(found, 3600.0, 3610.0)["a"] <= 3603.4


def test_many_at_once_make_the_leader_doubt_itself_first() -> None:
    suspected = watch(members("a", "b", "c", "d"), 0.0, 12.0, speaking="cd")
    assert set(suspected) == {"a", "b"}
    assert min(suspected.values()) >= 6.0


def test_those_who_speak_again_during_the_hold_are_kept() -> None:
    found = members("a", "b", "c", "d")
    assert watch(found, 0.0, 5.0, speaking="cd") == {}
    assert watch(found, 5.2, 20.0, speaking="abcd") == {}


def test_a_leader_that_hears_nobody_suspects_nobody() -> None:
    assert watch(members("a", "b", "c"), 0.0, 100.0) == {}


def test_a_new_process_of_a_pod_is_proof_that_the_old_one_ended() -> None:
    found = members("pod-a#1", "pod-b#1")
    found.hello(1.0, pb.Member(member_id="pod-a#2", pod="pod-a"))
    assert set(found.states) == {"pod-a#2", "pod-b#1"}


def test_a_member_is_ready_once_it_has_beaten_and_until_it_leaves() -> None:
    found = Membership()
    found.hello(0.0, pb.Member(member_id="a", pod="a", revision="r1"))
    assert found.ready() == []
    assert found.arriving()
    found.heartbeat(0.1, "a", pb.Heartbeat(journal_ok=True))
    assert found.ready() == found.ready("r1") == ["a"]
    assert found.ready("r2") == []
    found.heartbeat(0.2, "a", pb.Heartbeat(journal_ok=True, draining=True))
    found.heartbeat(0.3, "a", pb.Heartbeat(journal_ok=True))
    assert found.ready() == []
    assert found.leaving() == {"a"}


def test_the_journal_is_to_blame_when_most_members_miss_it() -> None:
    found = members("a", "b", "c")
    found.heartbeat(0.1, "a", pb.Heartbeat(journal_ok=False))
    assert found.leaving() == {"a"}
    found.heartbeat(0.2, "b", pb.Heartbeat(journal_ok=False))
    assert found.leaving() == set()


def test_a_stranger_is_not_taken_for_a_member() -> None:
    assert not members("a").heartbeat(0.0, "b", pb.Heartbeat())


def test_owners_of_an_earlier_leader_are_awaited_and_then_given_up() -> None:
    found = Membership({"a", "b"})
    found.suspect(10.0)
    assert found.exists("a")
    found.gone("b")
    assert not found.exists("b")
    watch(found, 10.2, 13.2)
    assert not found.exists("a")
