"""Reads the YAML that a cluster takes (Knative Service, AutoscalingPolicy, config-autoscaler) and picks what a local run needs.

Nothing is guessed: a document of another kind, a missing command or a policy that does not exist is an error that names the
file, the field and the rule, and all errors of all files are reported together.
"""

from __future__ import annotations

import pathlib
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from autoscaler import annotations as autoscaling
from autoscaler.config import Config, ConfigError, parse_config
from cloudstate_core import annotations as rules
from cloudstate_core.policy import Policy, PolicyError, parse_policy
from kn_cloudstate.fields import Field

CONFIG = "config-autoscaler"
"""Name of the ConfigMap with the defaults of all services."""
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


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
    config: Config = field(default_factory=Config)
    reachable: bool = True
    """False when `spec.traffic` leads to no revision that runs here: the minimum does not hold then."""

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
    config: Config | None = None
    """As the ConfigMap says; None without one."""
    errors: list[str] = field(default_factory=list)


def load(files: Sequence[pathlib.Path]) -> list[LocalService]:
    """The services of some files, each with the policy that applies to it. ManifestError lists everything that is wrong."""
    reading = _Reading()
    for path in files:
        _read(path, reading)
    services: dict[str, LocalService] = {}
    for path, document in reading.services:
        service = _service(path, document, reading)
        if service is not None and service.full_name in services:
            reading.errors.append(f"{path}: Service {service.name}: namespace {service.namespace} has one of that name already")
        elif service is not None:
            services[service.full_name] = service
    if not reading.errors and not services:
        reading.errors.append("no Service found: at least one document must be a serving.knative.dev/v1 Service")
    if reading.errors:
        raise ManifestError("\n".join(reading.errors))
    return list(services.values())


def _read(path: pathlib.Path, reading: _Reading) -> None:
    try:
        documents = [d for d in yaml.safe_load_all(path.read_text()) if d is not None]
    except OSError as error:
        reading.errors.append(f"{path}: cannot be read: {error.strerror}")
        return
    except (yaml.YAMLError, ValueError) as error:
        reading.errors.append(f"{path}: is not YAML: {' '.join(str(error).split())}")
        return
    for document in documents:
        kind = (document.get("apiVersion"), document.get("kind")) if isinstance(document, dict) else None
        if kind == ("serving.knative.dev/v1", "Service"):
            reading.services.append((path, document))
        elif kind == ("autoscaling.cloudstate.io/v1alpha1", "AutoscalingPolicy"):
            _read_policy(path, document, reading)
        elif kind == ("v1", "ConfigMap"):
            _read_config(path, document, reading)
        else:
            reading.errors.append(
                f"{path}: {_kind(kind)}: must be a Service of serving.knative.dev/v1 or an AutoscalingPolicy of "
                f"autoscaling.cloudstate.io/v1alpha1, or the ConfigMap {CONFIG}"
            )


def _kind(kind: tuple[Any, Any] | None) -> str:
    return "a document that is no object" if kind is None else f"kind {kind[1]} of {kind[0]}"


def _read_policy(path: pathlib.Path, document: dict[str, Any], reading: _Reading) -> None:
    try:
        policy = parse_policy(document)
    except PolicyError as error:
        reading.errors += [f"{path}: {line}" for line in str(error).splitlines()]
        return
    where = f"{path}: AutoscalingPolicy {policy.name}"
    namespace = Field(document, "", lambda text: reading.errors.append(f"{where}: {text}"))["metadata"]["namespace"].text("default")
    if (namespace, policy.name) in reading.policies:
        reading.errors.append(f"{where}: namespace {namespace} has one of that name already")
    reading.policies[namespace, policy.name] = policy


def _read_config(path: pathlib.Path, document: dict[str, Any], reading: _Reading) -> None:
    def tell(text: str) -> None:
        reading.errors.append(f"{path}: ConfigMap: {text}")

    root = Field(document, "", tell)
    name = root["metadata"]["name"]
    if name.text() != CONFIG:
        name.wrong(f"must be {CONFIG}, the only one that a local run knows")
    elif reading.config is not None:
        name.wrong("has been given already")
    try:
        reading.config = parse_config(root["data"].texts())
    except ConfigError as error:
        reading.errors.append(f"{path}: {error}")


def _service(path: pathlib.Path, document: dict[str, Any], reading: _Reading) -> LocalService | None:
    """A service from its document, or None with what is wrong added to the errors."""
    before = len(reading.errors)
    found = document.get("metadata")
    where = f"{path}: Service {(found.get('name') if isinstance(found, dict) else None) or '(without a name)'}"

    def tell(text: str) -> None:
        reading.errors.append(f"{where}: {text}")

    root = Field(document, "", tell)
    metadata, outer = root["metadata"], root["spec"]
    template = outer["template"]
    spec = template["spec"]
    name, namespace = _dns_name(metadata["name"], ""), _dns_name(metadata["namespace"], "default")
    config = reading.config or Config()
    annotations = _annotations(metadata["annotations"], template["metadata"]["annotations"], config, tell)
    labels = template["metadata"]["labels"].texts()  # as on a cluster, where only these reach the revision
    service = LocalService(
        namespace=namespace,
        name=name,
        command=_command(annotations.get(rules.LOCAL_COMMAND, ""), tell),
        folder=path.resolve().parent,
        annotations=annotations,
        labels=labels,
        environment=_environment(spec["containers"]),
        container_concurrency=spec["containerConcurrency"].whole(0, 0, 1000),
        timeout_seconds=spec["timeoutSeconds"].whole(300, 1, 600),
        shards=int(annotations.get(rules.SHARDS, rules.DEFAULT_SHARDS)) if len(reading.errors) == before else 0,
        passivation_timeout=annotations.get(rules.PASSIVATION, rules.DEFAULT_PASSIVATION),
        policy=_policy_of(namespace, labels, annotations, reading, tell),
        config=config,
        reachable=_reachable(outer["traffic"], f"{name}-00001"),
    )
    return service if len(reading.errors) == before else None


def _dns_name(given: Field, default: str) -> str:
    name = given.text(default)
    if not _NAME.fullmatch(name) and isinstance(given.value, str | None):
        given.wrong("must be set, in lower case letters, digits and '-', beginning with a letter, 63 characters at most")
    return name


def _reachable(traffic: Field, revision: str) -> bool:
    """True when some traffic leads to the revision, by name or as the latest one; without `traffic` all of it does."""
    targets = [target["revisionName"].text(revision) for target in traffic.items()]
    return not targets or revision in targets


def _annotations(of_service: Field, of_template: Field, config: Config, tell: Callable[[str], None]) -> dict[str, str]:
    """Those of the Service and of its template together, after the rules that admission and Knative have for them."""
    outer, inner = of_service.texts(), of_template.texts()
    for key in outer:
        if key.startswith(autoscaling.PREFIX):
            tell(f"annotation {key}: belongs in spec.template.metadata.annotations: Knative takes it from nowhere else")
    annotations = {**outer, **inner}
    if not rules.enabled(annotations):
        tell('annotation cloudstate.io/enabled: must be "true" for a service to be paired with a proxy')
    limits = {"max_scale_limit": config.max_scale_limit, "allow_zero_initial_scale": config.allow_zero_initial_scale}
    scaling = autoscaling.errors(annotations, {**limits, "pod_autoscaler_class": config.pod_autoscaler_class})
    for problem in (*rules.errors(annotations), *scaling.values()):
        tell(problem if problem.startswith("annotation") else f"annotation {problem}")
    return annotations


def _command(line: str, tell: Callable[[str], None]) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(line))
    except ValueError as error:
        tell(f"annotation {rules.LOCAL_COMMAND}: {line!r} is not a command line: {error}")
        return ()
    if not words:
        tell(f"annotation {rules.LOCAL_COMMAND}: must be the command line that starts the user function locally")
    return words


def _environment(given: Field) -> dict[str, str]:
    """Environment variables of the one container."""
    containers = given.items()
    if len(containers) != 1:
        given.wrong(f"must have exactly one container, has {len(containers)}")
        return {}
    environment = {}
    for variable in containers[0]["env"].items():
        name = variable["name"].text()
        if (not name or "=" in name) and isinstance(variable["name"].value, str | None):
            variable["name"].wrong("must be the name of an environment variable")
        if variable["valueFrom"].value is not None:
            variable["valueFrom"].wrong("cannot be looked up on one machine: give a value")
        environment[name] = variable["value"].text()
    return environment


def _policy_of(
    namespace: str, labels: Mapping[str, str], annotations: Mapping[str, str], reading: _Reading, tell: Callable[[str], None]
) -> Policy | None:
    """The policy named by annotation, else the one whose selector matches, else None."""
    wanted = annotations.get(rules.POLICY)
    if wanted is not None:
        if (namespace, wanted) not in reading.policies:
            tell(f"annotation {rules.POLICY}: {wanted!r} must name an AutoscalingPolicy in namespace {namespace}")
        return reading.policies.get((namespace, wanted))
    matching = [p for (space, _), p in sorted(reading.policies.items()) if space == namespace and p.matches(labels)]
    return matching[0] if matching else None
