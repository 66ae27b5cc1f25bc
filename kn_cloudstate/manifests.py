"""Reads the YAML that a cluster takes (Knative Service, AutoscalingPolicy) and picks what a local run needs.

Nothing is guessed: a document of another kind, a missing command or a policy that does not exist is an error that names the
file, the field and the rule, and all errors of all files are reported together.
"""

from __future__ import annotations

import pathlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from cloudstate_core import annotations as rules
from cloudstate_core.policy import Policy, PolicyError, parse_policy


class ManifestError(Exception):
    """One or more manifests cannot be run; each line says what, where and which rule."""


@dataclass(frozen=True, slots=True)
class LocalService:
    """One stateful service to run."""

    namespace: str
    name: str
    command: tuple[str, ...]
    folder: pathlib.Path
    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    environment: Mapping[str, str]
    container_concurrency: int
    timeout_seconds: int
    shards: int
    passivation_timeout: str
    policy: Policy | None = None

    @property
    def full_name(self) -> str:
        """'<namespace>/<name>', as the leader and the journal name it."""
        return f"{self.namespace}/{self.name}"

    @property
    def revision(self) -> str:
        """Name of the one revision of a local service."""
        return f"{self.name}-00001"


@dataclass(slots=True)
class _Reading:
    services: list[tuple[pathlib.Path, dict[str, Any]]] = field(default_factory=list)
    policies: dict[tuple[str, str], Policy] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def load(files: Sequence[pathlib.Path]) -> list[LocalService]:
    """The services of some files, each with the policy that applies to it. ManifestError lists everything that is wrong."""
    reading = _Reading()
    for path in files:
        _read(path, reading)
    services = [service for path, document in reading.services if (service := _service(path, document, reading))]
    if not reading.errors and not services:
        reading.errors.append("no Service found: at least one document must be a serving.knative.dev/v1 Service")
    if reading.errors:
        raise ManifestError("\n".join(reading.errors))
    return services


def _read(path: pathlib.Path, reading: _Reading) -> None:
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text()) if d is not None]
    except OSError as error:
        reading.errors.append(f"{path}: cannot be read: {error.strerror}")
        return
    except yaml.YAMLError as error:
        reading.errors.append(f"{path}: is not YAML: {' '.join(str(error).split())}")
        return
    for document in documents:
        kind = (document.get("apiVersion"), document.get("kind")) if isinstance(document, dict) else None
        if kind == ("serving.knative.dev/v1", "Service"):
            reading.services.append((path, document))
        elif kind == ("autoscaling.cloudstate.io/v1alpha1", "AutoscalingPolicy"):
            _read_policy(path, document, reading)
        else:
            reading.errors.append(
                f"{path}: kind {kind}: must be a Service of serving.knative.dev/v1 or an AutoscalingPolicy of "
                "autoscaling.cloudstate.io/v1alpha1"
            )


def _read_policy(path: pathlib.Path, document: dict[str, Any], reading: _Reading) -> None:
    try:
        policy = parse_policy(document)
    except PolicyError as error:
        reading.errors.append(f"{path}: {error}")
        return
    metadata = document["metadata"]
    reading.policies[metadata.get("namespace", "default"), metadata["name"]] = policy


def _service(path: pathlib.Path, document: dict[str, Any], reading: _Reading) -> LocalService | None:
    """A service from its document, or None with what is wrong added to the errors."""
    metadata = document.get("metadata") or {}
    template = (document.get("spec") or {}).get("template") or {}
    annotations = {**(metadata.get("annotations") or {}), **((template.get("metadata") or {}).get("annotations") or {})}
    name, namespace = metadata.get("name", ""), metadata.get("namespace", "default")
    where = f"{path}: Service {name or '(without a name)'}"
    before = len(reading.errors)
    reading.errors += [f"{where}: {text}" for text in _annotation_errors(name, annotations)]
    spec = template.get("spec") or {}
    containers = spec.get("containers") or []
    if len(containers) != 1:
        reading.errors.append(f"{where}: spec.template.spec.containers: must have exactly one container, has {len(containers)}")
    policy = _policy_of(where, namespace, metadata, annotations, reading)
    if len(reading.errors) > before:
        return None
    return LocalService(
        namespace=namespace,
        name=name,
        command=tuple(shlex.split(annotations[rules.LOCAL_COMMAND])),
        folder=path.resolve().parent,
        annotations=annotations,
        labels=metadata.get("labels") or {},
        environment={e["name"]: str(e.get("value", "")) for e in containers[0].get("env") or []},
        container_concurrency=int(spec.get("containerConcurrency") or 0),
        timeout_seconds=int(spec.get("timeoutSeconds") or 300),
        shards=int(annotations.get(rules.SHARDS, rules.DEFAULT_SHARDS)),
        passivation_timeout=annotations.get(rules.PASSIVATION, rules.DEFAULT_PASSIVATION),
        policy=policy,
    )


def _annotation_errors(name: str, annotations: Mapping[str, str]) -> list[str]:
    errors = []
    if not name:
        errors.append("metadata.name: must be set")
    if not rules.enabled(annotations):
        errors.append('annotation cloudstate.io/enabled: must be "true" for a service to be paired with a proxy')
    if rules.LOCAL_COMMAND not in annotations:
        errors.append(f"annotation {rules.LOCAL_COMMAND}: must be the command line that starts the user function locally")
    return errors + rules.errors(annotations)


def _policy_of(
    where: str, namespace: str, metadata: Mapping[str, Any], annotations: Mapping[str, str], reading: _Reading
) -> Policy | None:
    """The policy named by annotation, else the one whose selector matches, else None."""
    wanted = annotations.get(rules.POLICY)
    if wanted is not None:
        if (namespace, wanted) not in reading.policies:
            reading.errors.append(
                f"{where}: annotation cloudstate.io/policy: {wanted!r} must name an AutoscalingPolicy in namespace {namespace}"
            )
        return reading.policies.get((namespace, wanted))
    labels = metadata.get("labels") or {}
    matching = [p for (space, _), p in sorted(reading.policies.items()) if space == namespace and p.matches(labels)]
    return matching[0] if matching else None
