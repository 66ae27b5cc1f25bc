"""Pairs a revision with a stateful proxy: the pod that Knative will make gets a second container, which takes the port (pure).

Called on the creation of a Revision, perhaps several times for the same one (Knative fills in defaults in between): pairing what is paired
changes nothing. The user's container comes first and keeps its image and settings; it loses what only the container with the port may have.
The revision's annotations tell afterwards which store it was paired with, also when that was the installation's default.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloudstate_core import annotations as rules
from revision_controller.stores import Store

Body = dict[str, Any]
CLASS_KEY = "autoscaling.knative.dev/class"
CLASS = "concurrency.cloudstate.io"
PROXY = "cloudstate-proxy"
DATA_PORT, PEER_PORT, ADMIN_PORT = 8080, 8559, 8558
QUEUE_PROXY_H2C = 8013
RESERVED = frozenset((8008, 8012, 8013, 8022, 8112, 9090, 9091))
"""Ports of queue-proxy in each pod."""
CPU_REQUEST, MEMORY_REQUEST, LOG_LEVEL = "25m", "64Mi", "WARNING"
FUNCTION_PORT = 8090
"""Where the user function listens when it has not chosen a port, or chose the proxy's."""


class PairingError(ValueError):
    """A revision cannot be paired: says what, where and which rule."""


@dataclass(frozen=True, slots=True)
class ProxySettings:
    """What every proxy of this installation gets."""

    image: str
    coordinator: str
    cpu_request: str = CPU_REQUEST
    memory_request: str = MEMORY_REQUEST
    log_level: str = LOG_LEVEL


def paired(revision: Mapping[str, Any], store: Store, proxy: ProxySettings) -> Body:
    """The revision with its proxy; equal to what came when it has one. PairingError when it cannot have one."""
    metadata, spec = revision.get("metadata") or {}, revision.get("spec") or {}
    annotations = metadata.get("annotations") or {}
    containers = spec.get("containers") or []
    if annotations.get(rules.PAIRED) and any(c.get("name") == PROXY for c in containers):
        return copy.deepcopy(dict(revision))
    _check(metadata, annotations, containers)
    position = _with_the_port(containers)
    function = copy.deepcopy(containers[position])
    port = _function_port(function)
    _strip(function, port)
    made = copy.deepcopy(dict(revision))
    others = [copy.deepcopy(c) for n, c in enumerate(containers) if n != position]
    made["spec"]["containers"] = [function, _proxy(metadata, annotations, store, proxy, function, port), *others]
    made["metadata"]["annotations"] = {CLASS_KEY: CLASS, **annotations, rules.STORE: store.name, rules.PAIRED: "v1"}
    return made


def patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Body]:
    """The JSON patch between them, as far as pairing changes things; empty when nothing is to be done."""
    operations: list[Body] = []
    annotations = after["metadata"].get("annotations")
    if annotations != (before.get("metadata") or {}).get("annotations"):
        operations.append({"op": "add", "path": "/metadata/annotations", "value": annotations})
    if after["spec"]["containers"] != before["spec"]["containers"]:
        operations.append({"op": "replace", "path": "/spec/containers", "value": after["spec"]["containers"]})
    return operations


def _check(metadata: Mapping[str, Any], annotations: Mapping[str, str], containers: list[Body]) -> None:
    if not metadata.get("name"):
        raise PairingError("metadata.name: must be set before a revision can have a proxy; generateName is not enough")
    if (given := annotations.get(CLASS_KEY, CLASS)) != CLASS:
        raise PairingError(f"annotation {CLASS_KEY}: {given!r} must be {CLASS} on a revision with a proxy, or be left out")
    if any(c.get("name") == PROXY for c in containers):
        raise PairingError(f"spec.containers: the name {PROXY} is the proxy's; call yours something else")


def _with_the_port(containers: list[Body]) -> int:
    """Index of the container that serves: the one with a port, or the only one."""
    if not containers:
        raise PairingError("spec.containers: must have a container for the user function")
    serving = [n for n, container in enumerate(containers) if container.get("ports")]
    if len(serving) > 1:
        raise PairingError("spec.containers: exactly one container may have a port: the user function's")
    if not serving and len(containers) > 1:
        raise PairingError("spec.containers: with several containers one must have a port, to say which is the user function")
    return serving[0] if serving else 0


def _function_port(function: Body) -> int:
    ports = function.get("ports") or [{}]
    if len(ports) > 1:
        raise PairingError("spec.containers: the user function must have one port, has several")
    port = int(ports[0].get("containerPort") or 0)
    if port in RESERVED:
        raise PairingError(f"spec.containers: containerPort {port} is taken by queue-proxy in each pod; choose another")
    return port if port and port not in (DATA_PORT, PEER_PORT, ADMIN_PORT) else FUNCTION_PORT


def _strip(function: Body, port: int) -> None:
    """Take off what the container without the port may not have, and tell it where to listen."""
    for part in ("ports", "readinessProbe", "livenessProbe", "startupProbe"):
        function.pop(part, None)
    kept = [variable for variable in function.get("env") or [] if variable.get("name") not in ("PORT", "HOST")]
    function["env"] = [*kept, {"name": "PORT", "value": str(port)}, {"name": "HOST", "value": "127.0.0.1"}]


def _proxy(
    metadata: Mapping[str, Any], annotations: Mapping[str, str], store: Store, proxy: ProxySettings, function: Body, port: int
) -> Body:
    """The proxy's container; its probe is answered once the function was discovered and the leader has taken the pod in."""
    values = {
        "CLOUDSTATE_HOST": "0.0.0.0",
        "CLOUDSTATE_DATA_PORT": str(DATA_PORT),
        "CLOUDSTATE_PEER_PORT": str(PEER_PORT),
        "CLOUDSTATE_ADMIN_PORT": str(ADMIN_PORT),
        "CLOUDSTATE_ADVERTISE_PORT": str(QUEUE_PROXY_H2C),
        "CLOUDSTATE_USER_FUNCTION": f"127.0.0.1:{port}",
        "CLOUDSTATE_SERVICE": f"{metadata.get('namespace', '')}/{_service_of(metadata)}",
        "CLOUDSTATE_REVISION": metadata.get("name", ""),
        "CLOUDSTATE_SHARDS": annotations.get(rules.SHARDS, str(rules.DEFAULT_SHARDS)),
        "CLOUDSTATE_PASSIVATION_TIMEOUT": annotations.get(rules.PASSIVATION, rules.DEFAULT_PASSIVATION),
        "CLOUDSTATE_COORDINATOR": proxy.coordinator,
        "CLOUDSTATE_JOURNAL": store.url,
        "CLOUDSTATE_LOG": proxy.log_level,
        **rules.proxy_environment(annotations),
    }
    env: list[Body] = [{"name": key, "value": value} for key, value in values.items()]
    env += [variable for variable in function.get("env") or [] if variable.get("name") in rules.OF_A_SINK_BINDING]
    if store.password is not None:
        reference = {"secretKeyRef": {"name": store.password.name, "key": store.password.key}}
        env.append({"name": "CLOUDSTATE_JOURNAL_PASSWORD", "valueFrom": reference})
    return {
        "name": PROXY,
        "image": proxy.image,
        "ports": [{"name": "h2c", "containerPort": DATA_PORT, "protocol": "TCP"}],
        "env": env,
        "readinessProbe": {"grpc": {"port": DATA_PORT, "service": ""}, "successThreshold": 1},
        "resources": {"requests": {"cpu": proxy.cpu_request, "memory": proxy.memory_request}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def _service_of(metadata: Mapping[str, Any]) -> str:
    labels = metadata.get("labels") or {}
    return str(labels.get("serving.knative.dev/service") or labels.get("serving.knative.dev/configuration") or metadata.get("name", ""))
