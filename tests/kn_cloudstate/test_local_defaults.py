"""What a local run takes from its files, whose word counts, and how everything that is wrong is told at once."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import yaml

from autoscaler.settings import ScaleSettings, effective
from cloudstate_core.annotations import LOCAL_COMMAND as COMMAND
from kn_cloudstate.manifests import LocalService, ManifestError, load

TEMPLATE = "Service cart: spec.template.metadata.annotations: "
PREFIX = "autoscaling.knative.dev/"


def service(annotations: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    own = {"cloudstate.io/enabled": "true", COMMAND: "python cart.py"}
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "cart", "labels": {"app": "cart"}},
        "spec": {"template": {"metadata": {"annotations": {**own, **(annotations or {})}}, "spec": {"containers": [{}]}}, **spec},
    }


def policy(**spec: Any) -> dict[str, Any]:
    selector = {"selector": {"matchLabels": {"app": "cart"}}}
    return {
        "apiVersion": "autoscaling.cloudstate.io/v1alpha1",
        "kind": "AutoscalingPolicy",
        "metadata": {"name": "p"},
        "spec": {**selector, **spec},
    }


def config(data: Any, name: str = "config-autoscaler") -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "knative-serving"}, "data": data}


@pytest.fixture
def file(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "all.yaml"


def read(file: pathlib.Path, *documents: dict[str, Any]) -> LocalService:
    file.write_text(yaml.safe_dump_all(documents))
    return load([file])[0]


def settings(found: LocalService) -> ScaleSettings:
    return effective(found.annotations, found.policy, found.config, found.container_concurrency)


@pytest.mark.parametrize(
    ("annotations", "policies", "data", "window"),
    [
        ({}, [], None, 60),
        ({}, [], {}, 60),
        ({}, [], {"stable-window": "30s"}, 30),
        ({}, [policy(windows={"stable": "40s"})], {"stable-window": "30s"}, 40),
        ({f"{PREFIX}window": "50s"}, [policy(windows={"stable": "40s"})], {"stable-window": "30s"}, 50),
        ({f"{PREFIX}window": "50s"}, [], {"stable-window": "30s"}, 50),
        ({}, [policy(scale={"max": 3})], {"stable-window": "30s"}, 30),
    ],
)
@pytest.mark.parametrize("config_first", [True, False])
def test_annotation_then_policy_then_config_then_default(
    file: pathlib.Path, annotations: dict[str, str], policies: list[dict[str, Any]], data: Any, window: float, config_first: bool
) -> None:
    configs = [] if data is None else [config(data)]
    documents = [*configs, service(annotations), *policies] if config_first else [service(annotations), *policies, *configs]
    assert settings(read(file, *documents)).stable_window == window


@pytest.mark.parametrize(
    ("data", "field", "value"),
    [
        ({"_example": "anything", "enable-scale-to-zero": "false"}, "enable_zero", False),
        ({"scale-to-zero-grace-period": "5s"}, "grace", 5),
        ({"min-scale": "2", "max-scale": "4"}, "minimum", 2),
        ({"initial-scale": "0", "allow-zero-initial-scale": "true"}, "initial", 0),
        ({"max-scale-up-rate": "7.5"}, "max_scale_up_rate", 7.5),
        ({"panic-threshold-percentage": "150"}, "panic_threshold", 1.5),
        ({"container-concurrency-target-default": "10", "container-concurrency-target-percentage": "50"}, "demands", 5),
    ],
)
def test_values_of_config_autoscaler_count(file: pathlib.Path, data: dict[str, str], field: str, value: Any) -> None:
    found = getattr(settings(read(file, service(), config(data))), field)
    assert (found[0].target if field == "demands" else found) == value


def test_a_limit_of_the_config_holds_for_annotations(file: pathlib.Path) -> None:
    zero = service({f"{PREFIX}initial-scale": "0"})
    assert settings(read(file, zero, config({"allow-zero-initial-scale": "true"}))).initial == 0
    with pytest.raises(ManifestError, match="initial-scale: 0 is allowed only with allow-zero-initial-scale"):
        read(file, zero)


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ([service(), config({"stable-window": "5s"})], "config-autoscaler: stable-window: 5.0 must be whole seconds from 6s to 1h"),
        ([service(), config({"stable-window": "soon"})], "config-autoscaler: stable-window: 'soon' is not a duration"),
        ([service(), config({"min-scale": 1})], "config-autoscaler: min-scale: 1 must be a text: quote it"),
        ([service(), config(["min-scale"])], "ConfigMap config-autoscaler: data: ['min-scale'] must be an object"),
        ([service(), config({}), config({})], "ConfigMap config-autoscaler: is given twice"),
        ([service(), config({}, "config-features")], "ConfigMap config-features: must be config-autoscaler"),
        ([service(), {"apiVersion": "v1", "kind": "Secret"}], "kind Secret of v1: must be a Service of serving.knative.dev/v1"),
        ([service({f"{PREFIX}window": "1s"})], f"Service cart: annotation {PREFIX}window: '1s' must be from 6 s to 3600 s"),
        ([service({f"{PREFIX}min-scale": 1})], f"{TEMPLATE}{PREFIX}min-scale: 1 must be a text: put it in quotes"),
        ([service({"cloudstate.io/shards": 16})], f"{TEMPLATE}cloudstate.io/shards: 16 must be a text: put it in quotes"),
        ([service(), policy(scale={"mni": 1})], "AutoscalingPolicy p: spec.scale.mni: is not a field"),
        ([service(), {**policy(), "specs": {}}], "AutoscalingPolicy p: specs: is not a field; fields are apiVersion, kind, metadata, spec, status"),
    ],
)
def test_what_is_wrong_is_told_with_its_file(file: pathlib.Path, documents: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ManifestError) as error:
        read(file, *documents)
    assert f"{file}: {says}" in str(error.value)


def test_everything_that_is_wrong_is_told_together(file: pathlib.Path) -> None:
    with pytest.raises(ManifestError) as error:
        read(file, service({f"{PREFIX}window": "1s"}), config({"stable-window": "5s"}), policy(scale={"min": -1}))
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    ("traffic", "reachable"),
    [
        ([], True),
        ([{"latestRevision": True, "percent": 100}], True),
        ([{"percent": 100}], True),
        ([{"revisionName": "cart-00001", "percent": 10}, {"revisionName": "cart-other", "percent": 90}], True),
        ([{"revisionName": "cart-00001", "tag": "old"}, {"revisionName": "cart-other", "percent": 100}], True),
        ([{"revisionName": "cart-other", "percent": 100}], False),
    ],
)
def test_a_revision_is_reachable_when_traffic_leads_to_it(file: pathlib.Path, traffic: list[dict[str, Any]], reachable: bool) -> None:
    assert read(file, service(traffic=traffic)).reachable is reachable
