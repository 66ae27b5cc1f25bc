"""Policies: what is read, what is refused and how it is told, and whose word counts."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.annotations import PREFIX
from autoscaler.annotations import errors as annotation_errors
from autoscaler.config import parse_config
from autoscaler.settings import effective, placement_settings
from cloudstate_core.durations import parse_duration
from cloudstate_core.policy import PolicyError, parse_policy

FULL = """
apiVersion: autoscaling.cloudstate.io/v1alpha1
kind: AutoscalingPolicy
metadata: {name: cart}
spec:
  selector: {matchLabels: {app: cart}}
  scale: {min: 1, max: 20, initial: 2, activation: 3}
  metrics:
  - {type: Concurrency, target: 50, utilization: 70}
  - {type: RequestsPerSecond, target: 500}
  - {type: FunctionConcurrency, target: 1}
  - {type: Prometheus, query: 'sum(queue_depth)', target: 100, server: http://prometheus:9090}
  windows: {stable: 90s, panicPercentage: 20, panicThreshold: 300, aggregation: weighted-exponential}
  behavior: {maxScaleUpRate: 10, maxScaleDownRate: 4, scaleDownDelay: 1m, settleAfterScaleUp: 31s, settleAfterScaleDown: 32s}
  scaleToZero: {enabled: false, gracePeriod: 33s, retention: 34s}
  shards: {tolerance: 5, maxConcurrentMoves: 7, minDwell: 8s}
"""


def of(**spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": "cart"}, "spec": spec}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "AutoScalingPolicy"}, "kind: 'AutoScalingPolicy' must be AutoscalingPolicy"),
        ({"kind": None}, "kind: None must be AutoscalingPolicy"),
        ({"apiVersion": "autoscaling.cloudstate.io/v1"}, "apiVersion: 'autoscaling.cloudstate.io/v1' must be autoscaling.cloudstate.io/v1alpha1"),
        ({"scale": {"min": 1}}, "scale: is not a field; fields are apiVersion, kind, metadata, spec, status"),
        ({"Spec": {}}, "Spec: is not a field; fields are apiVersion, kind, metadata, spec, status"),
    ],
)
def test_a_document_that_is_no_policy_is_refused(changes: dict[str, Any], says: str) -> None:
    document = {**yaml.safe_load(FULL), **changes}
    with pytest.raises(PolicyError) as error:
        parse_policy(document)
    assert str(error.value) == f"AutoscalingPolicy cart: {says}"


def test_a_policy_as_the_cluster_tells_it_is_read() -> None:
    assert parse_policy({**yaml.safe_load(FULL), "status": {"matched": 1}}).name == "cart"


def test_every_field_arrives() -> None:
    policy = parse_policy(yaml.safe_load(FULL))
    s = effective({}, policy)
    assert [(d.type, d.target, d.total) for d in s.demands] == [
        ("Concurrency", 35, 50),
        ("RequestsPerSecond", 500, 500),
        ("FunctionConcurrency", 1, 1),
        ("Prometheus", 100, 100),
    ]
    assert (s.minimum, s.maximum, s.initial, s.activation) == (1, 20, 2, 3)
    assert (s.stable_window, s.panic_percentage, s.panic_threshold, s.aggregation) == (90, 20, 3.0, "weighted-exponential")
    assert (s.max_scale_up_rate, s.max_scale_down_rate, s.scale_down_delay) == (10, 4, 60)
    assert (s.settle_after_up, s.settle_after_down) == (31, 32)
    assert (s.enable_zero, s.grace, s.retention) == (False, 33, 34)
    p = placement_settings(policy)
    assert (p.tolerance, p.max_concurrent_moves, p.min_dwell) == (0.05, 7, 8)


@pytest.mark.parametrize(
    ("spec", "path", "value"),
    [
        ({"scale": {"mni": 1}}, "spec.scale.mni", ""),
        ({"scales": {}}, "spec.scales", ""),
        ({"scale": 3}, "spec.scale", "3"),
        ({"scale": {"min": -1}}, "spec.scale.min", "-1"),
        ({"scale": {"min": 1.5}}, "spec.scale.min", "1.5"),
        ({"scale": {"min": True}}, "spec.scale.min", "True"),
        ({"scale": {"min": float("nan")}}, "spec.scale.min", "nan"),
        ({"scale": {"max": float("inf")}}, "spec.scale.max", "inf"),
        ({"scale": {"min": 5, "max": 3}}, "spec.scale.min", "5"),
        ({"windows": {"stable": "5s"}}, "spec.windows.stable", "5s"),
        ({"windows": {"stable": 60}}, "spec.windows.stable", "60"),
        ({"windows": {"aggregation": "cubic"}}, "spec.windows.aggregation", "cubic"),
        ({"behavior": {"maxScaleUpRate": 1}}, "spec.behavior.maxScaleUpRate", "1"),
        ({"scaleToZero": {"enabled": "yes"}}, "spec.scaleToZero.enabled", "yes"),
        ({"metrics": {}}, "spec.metrics", "{}"),
        ({"metrics": [{"type": "Cpu", "target": 1}]}, "spec.metrics[0].type", "Cpu"),
        ({"metrics": [{"type": "Concurrency"}]}, "spec.metrics[0].target", "None"),
        ({"metrics": [{"type": "Concurrency", "target": 1, "utilization": 101}]}, "spec.metrics[0].utilization", "101"),
        ({"metrics": [{"type": "Prometheus", "target": 1, "query": 5, "server": "x"}]}, "spec.metrics[0].query", "5"),
        ({"selector": "cart"}, "spec.selector", "cart"),
    ],
)
def test_an_error_names_the_policy_the_path_and_the_value(spec: dict[str, Any], path: str, value: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(of(**spec))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"AutoscalingPolicy cart: {path}: ")
    assert value in line


def test_all_errors_are_told_together() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(of(scale={"min": -1, "most": 2}, windows={"stable": "soon"}, metrics=[{"type": "Cpu"}]))
    assert len(str(caught.value).splitlines()) == 5


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["min", "type", "target", "x"]), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from(["scale", "metrics", "windows", "selector", "behavior", "scaleToZero", "shards", "other"])


@given(st.dictionaries(fields, anything, max_size=4) | anything, anything)
def test_any_document_is_read_or_refused(spec: Any, metadata: Any) -> None:
    for document in ({"metadata": {"name": "cart"}, "spec": spec}, {"metadata": metadata, "spec": spec}, spec):
        with contextlib.suppress(PolicyError):
            effective({}, parse_policy(document))


def test_annotation_before_policy_before_config_before_default() -> None:
    config = parse_config({"stable-window": "40s", "max-scale": "9"})
    policy = parse_policy(of(windows={"stable": "50s"}))
    assert effective({}, None).stable_window == 60
    assert effective({}, None, config).stable_window == 40
    assert effective({}, policy, config).stable_window == 50
    assert effective({PREFIX + "window": "70s"}, policy, config).stable_window == 70
    assert effective({PREFIX + "window": "70s"}, policy, config).maximum == 9


def test_an_annotated_target_replaces_the_policys_metrics() -> None:
    policy = parse_policy(of(metrics=[{"type": "FunctionConcurrency", "target": 1}]))
    (demand,) = effective({PREFIX + "target": "20"}, policy).demands
    assert (demand.type, demand.total) == ("Concurrency", 20)


def test_a_selector_matches_when_all_its_labels_do() -> None:
    policy = parse_policy(of(selector={"matchLabels": {"app": "cart", "tier": "a"}}))
    assert policy.matches({"app": "cart", "tier": "a", "more": "x"})
    assert not policy.matches({"app": "cart"})
    assert not parse_policy(of()).matches({"app": "cart"})


@pytest.mark.parametrize(("text", "seconds"), [("1m9s82ms", 69.082), ("0", 0), ("-1s", -1), (".5s", 0.5), ("1h", 3600), ("250us", 0.00025)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-", "--1s", "+-1s", "5", "1d", "1 s", "s", "1s2"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_an_empty_metric_is_none_at_all() -> None:
    """Knative writes `metric: ""` on PodAutoscalers whose class is not its own."""
    policy = parse_policy({"metadata": {"name": "p"}, "spec": {"metrics": [{"type": "Concurrency", "target": 10, "utilization": 100}]}})
    (demand,) = effective({"autoscaling.knative.dev/metric": ""}, policy).demands
    assert (demand.type, demand.target) == ("Concurrency", 10)


@pytest.mark.parametrize(
    ("annotations", "minimum"), [({"minScale": "2"}, 2), ({"min-scale": "3"}, 3), ({"minScale": "2", "min-scale": "3"}, 3)]
)
def test_older_spellings_count_where_the_present_one_is_not_given(annotations: dict[str, str], minimum: int) -> None:
    older = {f"autoscaling.knative.dev/{key}": value for key, value in annotations.items()}
    assert effective(older, None).minimum == minimum
    assert annotation_errors({"autoscaling.knative.dev/maxScale": "many"}).keys() == {"max-scale"}
