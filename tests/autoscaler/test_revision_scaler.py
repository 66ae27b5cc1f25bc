"""One revision from measurements to pods: what the parts do together over time."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.revision_scaler import RevisionScaler
from autoscaler.settings import effective
from cloudstate_core.policy import parse_policy

GOLDEN = pathlib.Path(os.environ.get("KNATIVE_GOLDEN", pathlib.Path(__file__).parent.parent / "data/knative_golden.json"))
TEN = [{"type": "Concurrency", "target": 10}]


def scaler(**spec: Any) -> RevisionScaler:
    return RevisionScaler(effective({}, parse_policy({"metadata": {"name": "p"}, "spec": {"metrics": TEN, **spec}})))


def wanted(subject: RevisionScaler, loads: list[float], pods: int = 0, start: float = 0.0, tick: float = 1.0) -> list[int]:
    """Pods after each tick, when wanted pods are ready at once."""
    found = []
    for number, load in enumerate(loads):
        now = start + number * tick
        subject.record(now, load, 0.0)
        pods = subject.decide(now, pods, pods).replicas_wanted
        found.append(pods)
    return found


@pytest.mark.golden("cloudstate_autoscaler")
def test_cloudstate_demand(row: dict[str, Any]) -> None:
    """Cloudstate's own scale-up decisions come of the metric FunctionConcurrency."""
    given = {**json.loads(GOLDEN.read_text())["cloudstate_autoscaler"]["settings"], **row}
    rate = 1 + given["max_factor"] if given["max_factor"] else 1000
    metrics = [{"type": "FunctionConcurrency", "target": given["target_uf"]}, {"type": "Concurrency", "target": given["target_req"]}]
    subject = scaler(metrics=metrics, scale={"max": given["max_members"]}, behavior={"maxScaleUpRate": rate})
    samples = given.get("uf_samples") or [sum(given["uf"])]
    for second, value in enumerate(samples):
        subject.record(second, 5.0 * given["members"], 0.0, function_concurrency=value)
    decision = subject.decide(len(samples) - 1, given["members"], given["members"])
    assert decision.replicas_wanted == (given["want"] or given["members"])


@pytest.mark.parametrize("tick", [0.25, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("aggregation", ["linear", "weighted-exponential"])
def test_the_length_of_a_tick_does_not_change_what_is_measured(tick: float, aggregation: str) -> None:
    subject = scaler(windows={"aggregation": aggregation})
    assert wanted(subject, [40.0] * int(120 / tick), pods=4, tick=tick)[-1] == 4
    subject.record(120, 40, 0)
    assert subject.decide(120, 4, 4).stable == pytest.approx(40, rel=0.001)


def test_a_value_does_not_outlive_an_outage_of_the_measurements() -> None:
    subject = scaler()
    subject.record(0, 40, 0)
    subject.record(30, 40, 0)
    assert subject.decide(30, 4, 4).stable == pytest.approx(80 / 31, abs=0.01)


def test_the_initial_scale_holds_until_all_its_pods_were_ready() -> None:
    subject = scaler(scale={"initial": 3})
    seen = []
    for now, ready in ((0, 0), (2, 1), (4, 2), (6, 3), (8, 3)):
        subject.record(now, 0, 0)
        seen.append(subject.decide(now, ready, 3).replicas_wanted)
    assert seen == [3, 3, 3, 1, 1]


def test_an_initial_scale_above_the_maximum_is_reached_at_the_maximum() -> None:
    subject = scaler(scale={"initial": 5, "max": 2})
    assert subject.decide(0, 0, 0).replicas_wanted == 2
    subject.record(2, 0, 0)
    assert subject.decide(2, 2, 2).replicas_wanted == 1


def test_a_restarted_leader_does_not_cut_a_fleet_down_before_it_has_measured() -> None:
    assert wanted(scaler(), [1.0] * 60, pods=8) == [8] * 60


def test_a_request_at_zero_brings_a_pod_at_once() -> None:
    subject = scaler(scale={"initial": 0})
    assert wanted(subject, [0.0] * 30) == [0] * 30
    assert wanted(subject, [0.01], start=30.0) == [1]


def test_zero_is_reached_after_the_stable_window_and_the_grace_period() -> None:
    subject = scaler(windows={"stable": "6s"}, scaleToZero={"gracePeriod": "3s"})
    found = wanted(subject, [5.0] * 10 + [0.0] * 30)
    first_zero = found.index(0)
    last_load = 9
    assert last_load + 6 + 3 <= first_zero <= last_load + 6 + 3 + 2
    assert set(found[first_zero:]) == {0}


def test_the_last_pod_is_retained() -> None:
    subject = scaler(windows={"stable": "6s"}, scaleToZero={"gracePeriod": "1s", "retention": "20s"})
    last_load = 9
    assert wanted(subject, [5.0] * 10 + [0.0] * 40).index(0) >= last_load + 6 + 20


def test_zero_can_be_switched_off() -> None:
    subject = scaler(windows={"stable": "6s"}, scaleToZero={"enabled": False})
    assert wanted(subject, [5.0] * 5 + [0.0] * 200)[-1] == 1


def test_an_unreachable_revision_may_fall_below_its_minimum() -> None:
    subject = scaler(scale={"min": 2}, windows={"stable": "6s"})
    for now in range(100):
        subject.record(now, 0, 0)
        assert subject.decide(now, 2, 2).replicas_wanted == 2
    pods = 2
    for now in range(100, 200):
        subject.record(now, 0, 0)
        pods = subject.decide(now, pods, pods, reachable=False).replicas_wanted
    assert pods == 0


SHRINKING = [40.0] * 10 + [15.0] * 50


@pytest.mark.parametrize(("behavior", "first_change"), [({}, 11), ({"settleAfterScaleUp": "30s"}, 30), ({"settleAfterScaleDown": "30s"}, 11)])
def test_settling_is_counted_from_the_change_before(behavior: dict[str, str], first_change: int) -> None:
    found = wanted(scaler(windows={"stable": "6s"}, behavior=behavior), SHRINKING)
    assert found[0] == 4
    assert next(n for n, pods in enumerate(found) if pods < 4) >= first_change


def test_settling_after_a_scale_down_spaces_the_steps() -> None:
    found = wanted(scaler(windows={"stable": "6s"}, behavior={"settleAfterScaleDown": "20s"}), SHRINKING)
    changes = [n for n in range(1, len(found)) if found[n] != found[n - 1]]
    assert len(changes) == 2
    assert changes[1] - changes[0] >= 20


def test_settling_never_keeps_a_panic_waiting() -> None:
    subject = scaler(behavior={"settleAfterScaleUp": "300s"})
    assert wanted(subject, [10.0] * 3 + [400.0] * 6)[-1] > 10


def test_the_largest_demand_wins() -> None:
    metrics = [*TEN, {"type": "RequestsPerSecond", "target": 100}, {"type": "Prometheus", "target": 1, "query": "q", "server": "http://p"}]
    subject = scaler(metrics=metrics)
    subject.record(0, 10, 300)
    assert subject.decide(0, 1, 1).desired == 3
    subject.record_external(0, 7)
    assert subject.decide(0, 1, 1).desired == 7


loads = st.lists(st.floats(0, 5000, allow_nan=False), min_size=1, max_size=80)


@given(loads, st.integers(0, 5), st.integers(0, 20), st.integers(0, 6), st.sampled_from(["linear", "weighted-exponential"]))
def test_bounds_and_rates_hold_for_any_load(load: list[float], low: int, above: int, initial: int, aggregation: str) -> None:
    high = low + above
    scale = {"min": low, "max": high, "initial": initial}
    rates = {"maxScaleUpRate": 3, "maxScaleDownRate": 2}
    subject = scaler(scale=scale, behavior=rates, windows={"stable": "6s", "aggregation": aggregation})
    pods = 0
    for now, value in enumerate(load):
        subject.record(now, value, 0)
        before, pods = pods, subject.decide(now, pods, pods).replicas_wanted
        assert low <= pods
        assert pods <= high or high == 0
        assert pods <= max(3 * max(1, before), low, initial)
        assert pods >= min(before, max(1, before // 2)) or before == 1 or high == pods
        assert pods > 0 or value == 0 or before > 0


@given(loads)
def test_in_panic_the_wish_never_shrinks(load: list[float]) -> None:
    subject = scaler()
    pods, last = 1, None
    for now, value in enumerate(load):
        subject.record(now, value, 0)
        decision = subject.decide(now, pods, pods)
        if decision.in_panic and last is not None and last.in_panic:
            assert decision.desired >= last.desired
        pods, last = max(1, decision.replicas_wanted), decision


@given(st.lists(st.tuples(st.integers(0, 200), st.floats(0, 1000)), min_size=1, max_size=60))
def test_averages_lie_within_what_was_measured(samples: list[tuple[int, float]]) -> None:
    subject = scaler()
    for now, value in sorted(samples):
        subject.record(now, value, 0)
    decision = subject.decide(max(now for now, _ in samples), 1, 1)
    assert -1e-5 <= decision.stable <= max(value for _, value in samples) + 1e-5
