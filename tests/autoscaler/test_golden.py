"""Every row of the golden tables that concerns decisions."""

from __future__ import annotations

import json
import os
import pathlib
from typing import Any

import pytest

from autoscaler.annotations import errors
from autoscaler.config import ConfigError, parse_config
from autoscaler.decider import Decider, DeciderSettings
from autoscaler.scaler import Activity, ScaleInput, scale
from autoscaler.status import Conditions, conditions
from autoscaler.targets import (
    activator_capacity,
    activators_needed,
    initial_excess,
    metric_target,
    pod_slice,
    pods_of_activator,
    pods_to_sample,
    through_activator,
)
from autoscaler.windows import LinearWindow, MaxWindow, WeightedWindow, panic_window, smoothing_factor

GOLDEN = json.loads(
    pathlib.Path(os.environ.get("KNATIVE_GOLDEN", pathlib.Path(__file__).parent.parent / "data/knative_golden.json")).read_text()
)


@pytest.mark.golden("kpa_scale")
def test_kpa_scale(row: dict[str, Any]) -> None:
    table = GOLDEN["kpa_scale"]
    case = {**table["defaults"], **row}
    settings = DeciderSettings(
        target=case["target"],
        total=case["target"] * case["total_factor"],
        burst_capacity=case["tbc"],
        max_scale_up_rate=case["max_up"],
        max_scale_down_rate=case["max_down"],
        panic_threshold=case["panic_threshold"],
        stable_window=case["stable_window_s"],
        activation=case.get("activation", 0),
        scale_down_delay=case.get("delay", 0),
        reachable=case["reachable"],
    )
    decider = Decider(settings, case.get("start_ready", 1), now=0.0)
    if "panic_since" in case:
        decider.panic_since, decider.panic_maximum = case["panic_since"], case["max_panic"]
    for step in case["steps"]:
        decision = decider.decide(step["t"], step["ready"], step["stable"], step["panic"])
        assert decision.desired == step["want"]
        assert decision.excess_burst_capacity == pytest.approx(step["want_ebc"], abs=table["ebc_tolerance"])
    if "panic_time_after" in case:
        assert decider.panic_since == case["panic_time_after"]


def test_linear_buckets() -> None:
    table = GOLDEN["linear_buckets"]
    window = LinearWindow(table["window_s"], table["granularity_s"])
    for event in table["events"]:
        if event["op"] == "record":
            window.record(event["t"], event["v"])
        else:
            assert window.average(event["t"]) == pytest.approx(event["want"], abs=1e-6), event


def test_weighted_buckets() -> None:
    table = GOLDEN["weighted_buckets"]
    window = WeightedWindow(table["window_s"])
    assert window.alpha == pytest.approx(table["alpha"], abs=1e-6)
    for op, now, value in table["events"]:
        if op == "record":
            window.record(now, value)
        else:
            assert window.average(now) == pytest.approx(value, abs=1e-5), (op, now, value)
    for buckets, alpha in table["alpha_by_buckets"].items():
        assert smoothing_factor(int(buckets)) == pytest.approx(alpha, abs=1e-5)


@pytest.mark.golden("scale_down_delay_max_window")
def test_max_window(row: dict[str, Any]) -> None:
    window = MaxWindow(GOLDEN["scale_down_delay_max_window"]["size"])
    for value, index, want in zip(row["values"], row["indices"], row["want"], strict=True):
        window.record(index, value)
        assert window.current() == want


def test_scrape_sample_size() -> None:
    for pods, want in GOLDEN["scrape_sample_size"]["pods_to_sample"].items():
        assert pods_to_sample(int(pods)) == want


@pytest.mark.golden("metric_target")
def test_metric_target(row: dict[str, Any]) -> None:
    given = {**GOLDEN["metric_target"]["defaults"], **row["inputs"]}
    rps = given.get("metric") == "rps"
    fraction = given["tu_ann"] / 100 if "tu_ann" in given else given["tu"] if rps else given["frac"]
    default = given["rpsdef"] if rps else given["ccdef"]
    assert metric_target(given.get("cc", 0), given.get("ann"), fraction, default, rps) == pytest.approx((row["target"], row["total"]))


@pytest.mark.golden("num_activators")
def test_activators_needed(row: dict[str, Any]) -> None:
    assert activators_needed(row["pods"], row["total"], row["tbc"], row["capacity"]) == row["want"]


@pytest.mark.golden("activator_pod_slices")
def test_pod_slices(row: dict[str, Any]) -> None:
    assert pod_slice(row["pods"], row["activators"], row["index"]) == (row["begin"], row["end"], row["remnants"])


def test_pod_slices_example() -> None:
    example = GOLDEN["activator_pod_slices"]["finite_example"]
    assert pods_of_activator(example["pods"], example["activators"], example["index"]) == example["assigned"]


@pytest.mark.golden("activator_capacity")
def test_activator_capacity(row: dict[str, Any]) -> None:
    assert activator_capacity(row["cc"], row["backends"], row["activators"], row["index"], row["pod_trackers"]) == row["want"]


@pytest.mark.golden("initial_ebc")
def test_initial_excess(row: dict[str, Any]) -> None:
    assert initial_excess(row.get("initial_scale", 1), row.get("total", 0), row["tbc"]) == row["want"]


@pytest.mark.golden("panic_window")
def test_panic_window(row: dict[str, Any]) -> None:
    assert panic_window(row["stable_s"], row["pct"]) == row["want_s"]


@pytest.mark.golden("routing_mode")
def test_routing_mode(row: dict[str, Any]) -> None:
    assert through_activator(row["want"], row["ebc"], row["inactive"]) == (row["mode"] == "Proxy")


@pytest.mark.golden("scale_to_zero")
def test_scale_to_zero(row: dict[str, Any]) -> None:
    constants = GOLDEN["scale_to_zero"]["constants"]
    activity, since = Activity.NEVER, 0.0
    for key, state in (("active_for", Activity.ACTIVE), ("inactive_for", Activity.INACTIVE), ("activating_for", Activity.ACTIVATING)):
        if key in row:
            activity, since = state, row[key]
    step = scale(
        ScaleInput(
            current=row["start"],
            desired=row["desired"],
            activity=activity,
            activity_for=since,
            minimum=row.get("min", 0),
            maximum=row.get("max", 0),
            initial=row.get("initial", 1),
            initialized=row.get("initialized", False),
            reachability=row.get("reach", ""),
            stable_window=row.get("window", constants["stable_window_s"]),
            grace=constants["grace_s"],
            retention=row.get("retention_ann", row.get("retention_cm", 0)),
            proxied_for=row.get("proxied_for", 0),
            in_path=row.get("sks_proxy_mode", False),
            burst_capacity=row.get("tbc", constants["tbc"]),
            probe_ok=row.get("probe") != "fail",
            activation_deadline=constants["progress_deadline_s"] + constants["activation_buffer_s"],
        )
    )
    assert (step.want, step.patch, int(step.requeue), int(step.probe)) == (
        row["want"],
        row["patch"],
        row["requeues"],
        row.get("async_probes", 0),
    )


@pytest.mark.golden("pa_status")
def test_pa_status(row: dict[str, Any]) -> None:
    before = Conditions(row["active"], "", row["initialized"])
    after = conditions(
        before, row["want"], row["ready"], row["min"], row["initial_scale"], row["reachability"], has_service=row["service_name"]
    )
    assert after == Conditions(row["expect"]["active"], row["expect"]["reason"], row["expect"]["initialized"])


@pytest.mark.golden("annotation_validation")
def test_annotations(row: dict[str, Any]) -> None:
    found = errors({f"autoscaling.knative.dev/{key}": value for key, value in row["ann"].items()}, row.get("config"))
    assert sorted(found) == row["bad"]
    for key, text in found.items():
        assert key in text


@pytest.mark.golden("config_autoscaler")
def test_config(row: dict[str, Any]) -> None:
    if not row["ok"]:
        with pytest.raises(ConfigError, match="config-autoscaler: "):
            parse_config(row["data"])
        return
    config = parse_config(row["data"])
    names = {"container-concurrency-target-default": "concurrency_target_default", "requests-per-second-target-default": "rps_target_default"}
    names |= {"scale-down-delay-s": "scale_down_delay", "stable-window-s": "stable_window", "retention-s": "retention", "grace-s": "grace"}
    for key, value in row.get("effective", {}).items():
        assert getattr(config, names.get(key, key.replace("-", "_"))) == value, key
