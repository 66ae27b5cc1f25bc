"""The shipped manifests agree with the code: names, paths, schemas."""

from __future__ import annotations

import pathlib
from typing import Any

import yaml

from cloudstate_core import policy
from revision_controller import config, trust
from revision_controller.stores import KINDS

BASE = pathlib.Path(__file__).parents[2] / "deploy/knative/base"


def documents(name: str) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all((BASE / name).read_text()) if document]


def spec_schema(name: str) -> dict[str, Any]:
    (version,) = documents(f"crds/{name}.yaml")[0]["spec"]["versions"]
    found: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    return found


def test_the_policys_schema_has_the_fields_that_are_read() -> None:
    schema = spec_schema("autoscalingpolicy")
    groups = {name: part["properties"] for name, part in schema.items() if name not in ("metrics", "selector")}
    assert {f"{group}.{field}" for group, fields in groups.items() for field in fields} == set(policy._SCHEMA)
    assert tuple(schema["metrics"]["items"]["properties"]["type"]["enum"]) == policy.METRIC_TYPES


def test_the_policys_schema_has_the_bounds_that_are_read() -> None:
    schema = spec_schema("autoscalingpolicy")
    for path, rule in policy._SCHEMA.items():
        group, field = path.split(".")
        shape = schema[group]["properties"][field]
        if rule[0] == "number":
            low = shape["minimum"] + (1e-6 if shape.get("exclusiveMinimum") else 0)
            assert (low, shape.get("maximum", float("inf"))) == (rule[1], rule[2]), path
        elif rule[0] == "choice":
            assert tuple(shape["enum"]) == rule[1:], path


def test_the_stores_schema_has_the_kinds_that_are_read() -> None:
    assert tuple(spec_schema("statefulstore")) == KINDS


def test_the_webhooks_call_paths_that_are_served_at_the_service_that_has_the_certificate() -> None:
    served = {"/mutate-revision", "/validate-service", "/validate-store", "/validate-policy"}
    called = set()
    for document in documents("webhooks.yaml"):
        assert document["metadata"]["name"] == trust.CONFIGURATION
        for webhook in document["webhooks"]:
            service = webhook["clientConfig"]["service"]
            assert (service["name"], service["namespace"]) == (trust.SERVICE, "cloudstate-system")
            assert webhook["sideEffects"] == "None"
            called.add(service["path"])
    assert called == served


def test_only_what_carries_our_annotations_waits_for_the_webhook() -> None:
    for document in documents("webhooks.yaml"):
        for webhook in document["webhooks"]:
            conditions = " ".join(condition["expression"] for condition in webhook.get("matchConditions", ()))
            assert webhook["failurePolicy"] == ("Fail" if "cloudstate.io/" in conditions else "Ignore"), webhook["name"]


def test_the_shipped_config_is_valid() -> None:
    (shipped,) = documents("config.yaml")
    assert shipped["metadata"]["name"] == config.NAME
    config.config_of(shipped["data"], "proxy:1", "leader:8101")
