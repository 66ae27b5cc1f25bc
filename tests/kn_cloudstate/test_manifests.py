"""The YAML of a local run: what is read from it, and one clear line for everything that is wrong with it."""

from __future__ import annotations

import contextlib
import copy
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

from kn_cloudstate.manifests import LocalService, ManifestError, load

SAMPLE = pathlib.Path(__file__).resolve().parents[2] / "samples/shopping-cart"
SERVICE = """
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: cart, annotations: {cloudstate.io/shards: "32"}}
spec:
  template:
    metadata:
      labels: {app: cart}
      annotations: {cloudstate.io/enabled: "true", local.cloudstate.io/command: "python -u 'my cart.py'"}
    spec:
      containerConcurrency: 3
      timeoutSeconds: 10
      containers: [{image: example.com/cart, env: [{name: LEVEL, value: "7"}]}]
"""
POLICY = """
apiVersion: autoscaling.cloudstate.io/v1alpha1
kind: AutoscalingPolicy
metadata: {name: calm}
spec:
  selector: {matchLabels: {app: cart}}
  scale: {min: 0, max: 4}
  metrics: [{type: Concurrency, target: 12}]
  windows: {stable: 60s}
"""
ANNOTATIONS = "spec.template.metadata.annotations"


def changed(text: str, changes: dict[str, Any]) -> Any:
    """The document with the fields at some paths set; annotations have dots in their keys and are merged."""
    document = yaml.safe_load(text)
    for path, value in changes.items():
        node, *keys = document, *path.split(".")
        for key in keys[:-1]:
            node = node[key] if not key.isdecimal() else node[int(key)]
        if path.endswith("annotations") and isinstance(value, dict):
            value = {**node.get(keys[-1], {}), **value}
        node[keys[-1]] = value
    return document


@pytest.fixture
def read(tmp_path: pathlib.Path) -> Callable[..., list[LocalService]]:
    """Load documents (or texts) from one file, `all.yaml`."""

    def read(*documents: Any) -> list[LocalService]:
        path = tmp_path / "all.yaml"
        path.write_text("\n---\n".join(d if isinstance(d, str) else yaml.safe_dump(d) for d in documents))
        return load([path])

    return read


def test_what_a_service_says_is_what_runs(read: Any, tmp_path: pathlib.Path) -> None:
    (service,) = read(SERVICE, POLICY)
    assert (service.full_name, service.revision, service.shards, service.passivation_timeout) == ("default/cart", "cart-00001", 32, "30s")
    assert service.command == ("python", "-u", "my cart.py")
    assert (service.folder, service.environment) == (tmp_path, {"LEVEL": "7"})
    assert (service.container_concurrency, service.timeout_seconds) == (3, 10)


def test_what_is_not_said_has_its_default(read: Any) -> None:
    document = changed(SERVICE, {"metadata.annotations": None, "metadata.namespace": "shop"})
    document["spec"]["template"]["spec"] = {"containers": [{}]}
    (service,) = read(document)
    assert (service.full_name, service.shards, service.environment, service.policy) == ("shop/cart", 256, {}, None)
    assert (service.container_concurrency, service.timeout_seconds) == (0, 300)


def test_the_sample_loads_from_two_files() -> None:
    (service,) = load([SAMPLE / "policy.yaml", SAMPLE / "service.yaml"])
    assert service.policy is not None
    assert (service.full_name, service.policy.name, service.folder) == ("default/cart", "cart", SAMPLE)


@pytest.mark.parametrize(
    ("service", "policy", "name"),
    [
        ({}, {}, "calm"),
        ({"spec.template.metadata.labels": {"app": "other"}}, {}, None),
        ({"metadata.namespace": "shop"}, {}, None),
        ({"metadata.namespace": "shop"}, {"metadata.namespace": "shop"}, "calm"),
        ({"spec.template.metadata.labels": {}, ANNOTATIONS: {"cloudstate.io/policy": "calm"}}, {}, "calm"),
    ],
)
def test_which_policy_applies(read: Any, service: dict[str, Any], policy: dict[str, Any], name: str | None) -> None:
    (found,) = read(changed(POLICY, policy), changed(SERVICE, service))
    assert (found.policy.name if found.policy else None) == name


CLOUDSTATE, KNATIVE = "cloudstate.io/", "autoscaling.knative.dev/"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({ANNOTATIONS: {CLOUDSTATE + "enabled": "yes"}}, 'annotation cloudstate.io/enabled: must be "true"'),
        ({ANNOTATIONS: {CLOUDSTATE + "enabled": True}}, f"{ANNOTATIONS}: cloudstate.io/enabled: True must be a text: put it in quotes"),
        ({ANNOTATIONS: {CLOUDSTATE + "shard": "8"}}, "annotation cloudstate.io/shard: no such key"),
        ({ANNOTATIONS: {CLOUDSTATE + "shards": "0"}}, "annotation cloudstate.io/shards: '0' must be a whole number from 1 to 4096"),
        ({ANNOTATIONS: {CLOUDSTATE + "passivation-timeout": "soon"}}, "passivation-timeout: 'soon' must be a duration above zero such as"),
        ({ANNOTATIONS: {CLOUDSTATE + "policy": "wild"}}, "cloudstate.io/policy: 'wild' must name an AutoscalingPolicy in namespace default"),
        ({ANNOTATIONS: {"local." + CLOUDSTATE + "command": " "}}, "must be the command line that starts the user function locally"),
        ({ANNOTATIONS: {"local." + CLOUDSTATE + "command": "a 'b"}}, "\"a 'b\" is not a command line: No closing quotation"),
        ({ANNOTATIONS: {KNATIVE + "min-scale": "-1"}}, "annotation autoscaling.knative.dev/min-scale: '-1' must be a whole number from 0"),
        ({ANNOTATIONS: {KNATIVE + "window": "1s"}}, "annotation autoscaling.knative.dev/window: '1s' must be from 6 s to 3600 s"),
        ({ANNOTATIONS: {KNATIVE + "target": "many"}}, "annotation autoscaling.knative.dev/target: 'many' must be a number"),
        ({"metadata.annotations": {KNATIVE + "target": "5"}}, "autoscaling.knative.dev/target: belongs in spec.template.metadata.annotations"),
        ({"metadata.name": "../x"}, "metadata.name: '../x' must be set, in lower case letters"),
        ({"metadata.name": None}, "Service (without a name): metadata.name: must be set"),
        ({"metadata.namespace": "A"}, "metadata.namespace: 'A' must be set, in lower case letters"),
        ({"metadata": 5}, "metadata: 5 must be an object"),
        ({"spec": []}, "spec: [] must be an object"),
        ({"spec.template.spec.containers": [{}, {}]}, "spec.template.spec.containers: [{}, {}] must have exactly one container, has 2"),
        ({"spec.template.spec.containers": None}, "spec.template.spec.containers: must have exactly one container, has 0"),
        ({"spec.template.spec.containerConcurrency": -1}, "spec.template.spec.containerConcurrency: -1 must be a whole number from 0 to 1000"),
        ({"spec.template.spec.timeoutSeconds": "5"}, "spec.template.spec.timeoutSeconds: '5' must be a whole number from 1 to 600"),
        ({"spec.template.spec.containers": [{"env": [{"name": "A", "value": 7}]}]}, "containers[0].env[0].value: 7 must be a text: put it in"),
        ({"spec.template.spec.containers": [{"env": [{"value": "7"}]}]}, "containers[0].env[0].name: must be the name of an environment variable"),
        (
            {"spec.template.spec.containers": [{"env": [{"name": "A", "valueFrom": {}}]}]},
            "containers[0].env[0].valueFrom: {} cannot be looked up on one machine: give a value",
        ),
    ],
)
def test_a_wrong_service_is_told_with_file_path_and_rule(read: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ManifestError) as error:
        read(changed(SERVICE, changes))
    told = [line for line in str(error.value).splitlines() if says in line]
    assert len(told) == 1, error.value
    assert "all.yaml: Service " in told[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"spec.scale": {"min": 5, "max": 4}}, "spec.scale.min: 5 must not be above spec.scale.max (4)"),
        ({"spec.windows": {"stabel": "60s"}}, "spec.windows.stabel: is not a field; fields of spec.windows are stable, panicPercentage"),
        ({"spec.windows": {"stable": "1s"}}, "spec.windows.stable: '1s' must be from 6s to 3600s"),
        ({"spec.behaviour": {}}, "spec.behaviour: is not a field; fields are behavior, "),
        ({"spec.metrics": [{"type": "Cpu", "target": 1}]}, "spec.metrics[0].type: 'Cpu' must be one of Concurrency, "),
        ({"metadata.name": "Calm"}, "AutoscalingPolicy Calm: metadata.name: must be set"),
        ({"metadata.namespace": 5}, "AutoscalingPolicy calm: metadata.namespace: 5 must be a text: put it in quotes"),
    ],
)
def test_a_wrong_policy_is_told_with_file_path_and_rule(read: Any, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ManifestError) as error:
        read(changed(POLICY, changes), SERVICE)
    told = [line for line in str(error.value).splitlines() if says in line]
    assert len(told) == 1, error.value
    assert "all.yaml: AutoscalingPolicy " in told[0]


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        ((), "no Service found: at least one document must be a serving.knative.dev/v1 Service"),
        ((POLICY,), "no Service found"),
        (("a: [",), "all.yaml: is not YAML: while parsing"),
        (("at: 2024-99-99",), "all.yaml: is not YAML: month must be in 1..12"),
        (("just words",), "all.yaml: a document that is no object: must be a Service of serving.knative.dev/v1 or an AutoscalingPolicy"),
        (("{apiVersion: v1, kind: Pod}",), "all.yaml: kind Pod of v1: must be a Service"),
        ((SERVICE, SERVICE), "all.yaml: Service cart: namespace default has one of that name already"),
        ((SERVICE, POLICY, POLICY), "all.yaml: AutoscalingPolicy calm: namespace default has one of that name already"),
    ],
)
def test_wrong_documents_are_told(read: Any, documents: tuple[str, ...], says: str) -> None:
    with pytest.raises(ManifestError) as error:
        read(*documents)
    assert says in str(error.value)


def test_everything_that_is_wrong_is_told_at_once(tmp_path: pathlib.Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    (tmp_path / "service.yaml").write_text(yaml.safe_dump(changed(SERVICE, {"metadata.name": "X", ANNOTATIONS: {CLOUDSTATE + "shards": "x"}})))
    with pytest.raises(ManifestError) as error:
        load([tmp_path / "missing.yaml", tmp_path, tmp_path / "latin.yaml", tmp_path / "service.yaml"])
    starts = ["missing.yaml: cannot be read: No such file", f"{tmp_path.name}: cannot be read: Is a directory", "latin.yaml: is not YAML"]
    starts += ["service.yaml: Service X: metadata.name", "service.yaml: Service X: annotation cloudstate.io/shards"]
    lines = str(error.value).splitlines()
    assert len(lines) == len(starts)
    assert all(start in line for start, line in zip(starts, lines, strict=True)), lines


def paths(node: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value in a document."""
    yield at
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from paths(value, (*at, key))


def replaced(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    made = copy.deepcopy(document)
    node = made
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return made


@pytest.mark.parametrize("text", [SERVICE, POLICY], ids=["service", "policy"])
@pytest.mark.parametrize("value", [None, 10**400, -2.5, True, "'", [1], {"a": 1}, {1: [2]}], ids=lambda value: str(value)[:9])
def test_any_value_anywhere_is_taken_or_told_never_a_crash(read: Any, text: str, value: Any) -> None:
    document = yaml.safe_load(text)
    for path in paths(document):
        if path:
            with contextlib.suppress(ManifestError):
                assert read(replaced(document, path, value))
