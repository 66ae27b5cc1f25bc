"""The status of a PodAutoscaler: Knative's table row by row, and what must hold for every status ever written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.cluster.pa_status import Observed, same, status
from cloudstate_core.kube import kinds, objects

from .world import podautoscaler, read

THEN, NOW = "2026-01-01T00:00:00Z", "2026-01-01T00:10:00Z"


def by_type(made: dict[str, Any]) -> dict[str, dict[str, str]]:
    return {c["type"]: c for c in made["conditions"]}


def written(pa: objects.PodAutoscaler, made: dict[str, Any]) -> objects.PodAutoscaler:
    """The PodAutoscaler once this status was written."""
    again = read(kinds.POD_AUTOSCALER, {"metadata": {"name": "x"}, "status": made})
    return objects.PodAutoscaler(pa.metadata, pa.spec, again.status)


@pytest.mark.golden("pa_status")
def test_knative_s_table(row: dict[str, Any]) -> None:
    held = [objects.Condition("ScaleTargetInitialized", "True" if row["initialized"] else "Unknown", last_transition_time=THEN)]
    if row["active"] is not None:
        held.append(objects.Condition("Active", row["active"], last_transition_time=THEN))
    pa = podautoscaler(status=objects.PodAutoscalerStatus(conditions=tuple(held)), reachability=row["reachability"])
    made = by_type(status(pa, Observed(row["want"], row["ready"], row["min"], row["initial_scale"], network=row["service_name"]), NOW))
    expected = row["expect"]
    assert (made["Active"]["status"], made["Active"].get("reason", "")) == (expected["active"], expected["reason"])
    assert made["ScaleTargetInitialized"]["status"] == ("True" if expected["initialized"] else "Unknown")


STATES = st.sampled_from(["True", "False", "Unknown"])
CONDITIONS = st.lists(
    st.builds(
        objects.Condition,
        st.sampled_from(["Active", "ScaleTargetInitialized", "SKSReady", "Ready"]),
        STATES,
        st.sampled_from(["", "Queued", "NoTraffic"]),
        st.sampled_from(["", "words"]),
        st.just(THEN),
    ),
    unique_by=lambda c: c.type,
).map(tuple)
STATUSES = st.builds(
    objects.PodAutoscalerStatus,
    observed_generation=st.integers(0, 3),
    service_name=st.sampled_from(["", "cart-1"]),
    metrics_service_name=st.sampled_from(["", "cart-1-private"]),
    desired_scale=st.none() | st.integers(-1, 5),
    actual_scale=st.none() | st.integers(0, 5),
    conditions=CONDITIONS,
)
SEEN = st.builds(
    Observed,
    want=st.integers(-1, 5),
    ready=st.integers(0, 5),
    minimum=st.integers(0, 3),
    initial=st.integers(0, 3),
    network=st.booleans(),
    foreign=st.booleans(),
    replicas=st.integers(0, 5),
)
REACHABILITY = st.sampled_from(["", "Reachable", "Unreachable"])


@given(STATUSES, SEEN, REACHABILITY)
def test_what_holds_for_every_status(old: objects.PodAutoscalerStatus, seen: Observed, reachability: str) -> None:
    pa = podautoscaler(status=old, reachability=reachability, generation=3)
    made = status(pa, seen, NOW)
    found = by_type(made)
    assert [c["type"] for c in made["conditions"]] == ["Active", "Ready", "SKSReady", "ScaleTargetInitialized"]
    parts = [found[kind]["status"] for kind in ("Active", "SKSReady", "ScaleTargetInitialized")]
    assert found["Ready"]["status"] == ("False" if "False" in parts else "Unknown" if "Unknown" in parts else "True")
    assert made["desiredScale"] >= 0
    assert made["observedGeneration"] == 3
    assert made["metricsServiceName"] == "cart-1-private"
    assert made["serviceName"] == ("cart-1" if seen.network else old.service_name)
    if any(c.type == "ScaleTargetInitialized" and c.status == "True" for c in old.conditions):
        assert found["ScaleTargetInitialized"]["status"] == "True"
    for kept in old.conditions:
        now = found[kept.type]
        moved = (kept.status, kept.reason, kept.message) != (now["status"], now.get("reason", ""), now.get("message", ""))
        assert now["lastTransitionTime"] == (NOW if moved else THEN)


@given(STATUSES, SEEN, REACHABILITY)
def test_a_status_is_the_same_when_it_was_written_and_nothing_else(old: objects.PodAutoscalerStatus, seen: Observed, reachability: str) -> None:
    pa = podautoscaler(status=old, reachability=reachability, generation=2)
    made = status(pa, seen, NOW)
    after = written(pa, made)
    assert same(after, made)
    for key, other in (("observedGeneration", 9), ("serviceName", "x"), ("metricsServiceName", "x"), ("desiredScale", 9), ("actualScale", 9)):
        assert not same(after, made | {key: other}), key
    for key, other in (("status", "Other"), ("reason", "Other"), ("message", "Other")):
        changed = [made["conditions"][0] | {key: other}, *made["conditions"][1:]]
        assert not same(after, made | {"conditions": changed}), key
    assert not same(after, made | {"conditions": made["conditions"][1:]})


def test_a_service_of_somebody_else_is_told() -> None:
    made = by_type(status(podautoscaler(), Observed(-1, 1, foreign=True), NOW))
    assert (made["Active"]["status"], made["Active"]["reason"]) == ("False", "NotOwned")
    assert (made["Ready"]["status"], made["Ready"]["reason"]) == ("False", "NotOwned")
    assert "another controller" in made["Ready"]["message"]


@pytest.mark.parametrize(("told", "expected"), [(4, 4), (0, 0), (None, 2), (-1, 2)])
def test_a_leader_that_has_not_decided_tells_the_scale_told_before(told: int | None, expected: int) -> None:
    pa = podautoscaler(status=objects.PodAutoscalerStatus(desired_scale=told))
    assert status(pa, Observed(-1, 0, replicas=2), NOW)["desiredScale"] == expected
