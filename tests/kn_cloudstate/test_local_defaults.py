"""Defaults for all services from config-autoscaler in a local run: whose word counts, what is refused, who is reachable."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest
import yaml

from autoscaler.settings import ScaleSettings, effective
from cloudstate_core.annotations import LOCAL_COMMAND
from kn_cloudstate.manifests import LocalService, ManifestError, load

PREFIX = "autoscaling.knative.dev/"


def service(annotations: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    own = {"cloudstate.io/enabled": "true", LOCAL_COMMAND: "python cart.py"}
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "cart"},
        "spec": {
            "template": {
                "metadata": {"labels": {"app": "cart"}, "annotations": {**own, **(annotations or {})}},
                "spec": {"containers": [{}]},
            },
            **spec,
        },
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
    ("configs", "says"),
    [
        ([config({"stable-window": "5s"})], "config-autoscaler: stable-window: 5.0 must be whole seconds from 6s to 1h"),
        ([config({"stable-window": "soon"})], "config-autoscaler: stable-window: 'soon' is not a duration"),
        ([config({"min-scale": 1})], "ConfigMap: data: min-scale: 1 must be a text: put it in quotes"),
        ([config(["min-scale"])], "ConfigMap: data: ['min-scale'] must be an object"),
        ([config({}), config({})], "ConfigMap: metadata.name: 'config-autoscaler' has been given already"),
        ([config({}, "config-features")], "ConfigMap: metadata.name: 'config-features' must be config-autoscaler"),
        ([{"apiVersion": "v1", "kind": "ConfigMap"}], "ConfigMap: metadata.name: must be config-autoscaler"),
        ([{"apiVersion": "v1", "kind": "ConfigMap", "metadata": []}], "ConfigMap: metadata: [] must be an object"),
        ([{**policy(), "specs": {}}], "AutoscalingPolicy p: specs: is not a field; fields are apiVersion, kind, metadata, spec, status"),
    ],
)
def test_what_is_wrong_is_told_with_its_file(file: pathlib.Path, configs: list[dict[str, Any]], says: str) -> None:
    with pytest.raises(ManifestError) as error:
        read(file, service(), *configs)
    assert f"{file}: {says}" in str(error.value)


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


@pytest.mark.parametrize("traffic", [{"percent": 100}, ["cart-00001"], [{"revisionName": 5}]])
def test_traffic_of_another_shape_is_told(file: pathlib.Path, traffic: Any) -> None:
    with pytest.raises(ManifestError, match=r"Service cart: spec\.traffic.* must be"):
        read(file, service(traffic=traffic))
