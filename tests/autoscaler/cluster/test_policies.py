"""Policies, defaults and settings: who applies, what a bad one does, what is told."""

from __future__ import annotations

from typing import Any

import pytest

from autoscaler.cluster.defaults import Defaults
from autoscaler.cluster.policies import Policies, status_of, users_of
from autoscaler.cluster.settings import settings_of
from autoscaler.settings import Demand, ScaleSettings
from cloudstate_core.kube import objects
from cloudstate_core.process import SettingsError

from .world import NAMESPACE, podautoscaler


def policy(name: str, spec: dict[str, Any], namespace: str = NAMESPACE, status: Any = None) -> objects.AutoscalingPolicy:
    return objects.AutoscalingPolicy(objects.Metadata(name=name, namespace=namespace, generation=3), spec, status or {})


CART = {"selector": {"matchLabels": {"app": "cart"}}}


def test_an_annotation_beats_a_selector_and_of_selectors_the_first_name_wins() -> None:
    policies = Policies()
    for name, namespace in (("b", NAMESPACE), ("a", NAMESPACE), ("0", "other")):
        policies.changed(None, policy(name, CART, namespace))
    policies.changed(None, policy("named", {"scale": {"max": 3}}))
    assert policies.of(podautoscaler())[0] == "ns/a"
    key, found = policies.of(podautoscaler(annotations={"cloudstate.io/policy": "named"}))
    assert (key, found is not None and found.values) == ("ns/named", {"scale.max": 3})
    assert policies.of(podautoscaler(annotations={"cloudstate.io/policy": "missing"})) == ("ns/missing", None)
    assert policies.of(podautoscaler(labels={"app": "shop"})) == ("", None)


def test_a_bad_form_keeps_the_last_good_one_and_says_why() -> None:
    policies, good = Policies(), policy("p", CART | {"scale": {"max": 3}})
    policies.changed(None, good)
    bad = policy("p", CART | {"scale": {"max": -1}})
    policies.changed(good, bad)
    assert policies.of(podautoscaler())[1].values == {"scale.max": 3}  # type: ignore[union-attr]
    assert "scale.max" in policies.problems["ns/p"]
    policies.changed(bad, policy("p", CART | {"scale": {"max": 4}}))
    assert policies.problems == {}
    assert policies.of(podautoscaler())[1].values == {"scale.max": 4}  # type: ignore[union-attr]
    policies.changed(good, None)
    assert policies.of(podautoscaler()) == ("", None)


def test_a_bad_one_that_goes_leaves_nothing() -> None:
    policies, bad = Policies(), policy("p", {"nonsense": 1})
    policies.changed(None, bad)
    assert policies.of(podautoscaler(annotations={"cloudstate.io/policy": "p"})) == ("ns/p", None)
    policies.changed(bad, None)
    assert policies.problems == {}


NOW, THEN = "2026-01-01T00:10:00Z", "2026-01-01T00:00:00Z"


def test_a_policy_tells_whom_it_applies_to_and_with_what() -> None:
    settings = ScaleSettings((Demand("Concurrency", 7, 10),), minimum=1, maximum=9, stable_window=6)
    users = users_of("ns/p", [("ns/p", "cart-2", settings), ("ns/p", "cart-1", settings), ("", "cart-3", settings)])
    told = status_of(policy("p", {}), "", users, NOW)
    assert (told["observedGeneration"], told["matched"]) == (3, 2)
    assert [e["revision"] for e in told["effective"]] == ["cart-1", "cart-2"]
    assert told["effective"][0] == {
        "revision": "cart-1", "min": 1, "max": 9, "metrics": [{"type": "Concurrency", "target": "7"}], "stableWindow": "6s", "scaleToZero": True,
    }  # fmt: skip
    (condition,) = told["conditions"]
    assert condition == {"type": "Ready", "status": "True", "reason": "Accepted", "message": "", "lastTransitionTime": NOW}


def test_a_policy_s_condition_keeps_its_time_until_it_changes() -> None:
    first = status_of(policy("p", {}), "", {}, THEN)
    again = status_of(policy("p", {}, status=first), "", {}, NOW)
    assert again == first
    bad = status_of(policy("p", {}, status=first), "scale.max: -1 must be at least 0", {}, NOW)
    (condition,) = bad["conditions"]
    assert (condition["status"], condition["reason"], condition["lastTransitionTime"]) == ("False", "Invalid", NOW)
    assert "scale.max" in condition["message"]


def test_defaults_follow_the_config_map_and_survive_a_bad_one() -> None:
    defaults = Defaults()
    builtin = defaults.config
    defaults.changed(objects.ConfigMap(data={"stable-window": "30s", "_example": "not a key"}))
    assert defaults.config.stable_window == 30
    defaults.changed(objects.ConfigMap(data={"stable-window": "never"}))
    assert defaults.config.stable_window == 30
    defaults.changed(None)
    assert defaults.config == builtin


POD = {"POD_NAME": "a", "POD_IP": "10.0.0.1"}


def test_settings_have_defaults_for_all_but_the_pod() -> None:
    found = settings_of(POD)
    assert (found.pod, found.address, found.namespace, found.knative_namespace) == ("a", "10.0.0.1", "cloudstate-system", "knative-serving")
    assert (found.port, found.admin_port, found.tick, found.kubeconfig) == (8101, 8558, 2.0, "")


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("POD_NAME", "", "must be set"),
        ("POD_IP", "", "must be set"),
        ("POD_NAMESPACE", "", "must be set"),
        ("AUTOSCALER_PORT", "http", "port"),
        ("AUTOSCALER_ADMIN_PORT", "65536", "port"),
        ("AUTOSCALER_TICK", "soon", "duration"),
        ("AUTOSCALER_TICK", "0s", "at least 0.1s"),
    ],
)
def test_a_wrong_setting_is_told_with_key_and_rule(key: str, value: str, rule: str) -> None:
    with pytest.raises(SettingsError, match=f"{key}.*{rule}"):
        settings_of(POD | {key: value})
