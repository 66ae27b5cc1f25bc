"""What the tests of the cluster driver share: objects, and an API server in memory that knows versions, generations and owners of nothing else."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from cloudstate_core.kube import objects
from cloudstate_core.kube.api import Body, Conflict, Kind, KubeError, NotFound

NAMESPACE = "ns"


def deep_merge(held: Any, patch: Any) -> Any:
    """A JSON merge patch."""
    if not isinstance(held, dict) or not isinstance(patch, dict):
        return patch
    merged = dict(held)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = deep_merge(held.get(key), value)
    return merged


class Kube:
    """Stands where a `KubeClient` stands. `fail(call)` may give an error that a call then raises; with `late` after it was done."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.calls: Counter[str] = Counter()
        self.fail: Callable[[str], KubeError | None] = lambda call: None
        self.late = False
        self._version = 0

    def _call(self, verb: str, kind: Kind[Any], name: str) -> KubeError | None:
        call = f"{verb} {kind.plural}/{name}"
        self.calls[verb] += 1
        error = self.fail(call)
        if error is not None and not self.late:
            raise error
        return error

    def _store(self, kind: Kind[Any], namespace: str, name: str, body: Any, error: KubeError | None) -> Any:
        self._version += 1
        before = self.held.get((kind.plural, namespace, name), {"metadata": {}})
        generation = before["metadata"].get("generation", 0) + (before.get("spec") != body.get("spec"))
        own = {"name": name, "namespace": namespace, "resourceVersion": str(self._version), "generation": generation}
        uid = {"uid": before["metadata"].get("uid") or f"uid-{self._version}"}
        self.held[kind.plural, namespace, name] = {**body, "metadata": {**uid, **body.get("metadata", {}), **own}}
        if error is not None:
            raise error
        return self.read(kind, namespace, name)

    def read(self, kind: Kind[Any], namespace: str, name: str) -> Any:
        found = self.held.get((kind.plural, namespace, name))
        if found is None:
            raise NotFound(404, "NotFound", f"{kind.plural} {name} not found")
        return msgspec.json.decode(json.dumps(found), type=kind.model)

    async def get(self, kind: Kind[Any], namespace: str, name: str) -> Any:
        self._call("get", kind, name)
        return self.read(kind, namespace, name)

    async def create(self, kind: Kind[Any], namespace: str, body: Body) -> Any:
        name = body["metadata"]["name"]
        error = self._call("create", kind, name)
        if (kind.plural, namespace, name) in self.held:
            raise Conflict(409, "AlreadyExists", f"{kind.plural} {name} already exists")
        return self._store(kind, namespace, name, body, error)

    async def replace(self, kind: Kind[Any], namespace: str, name: str, body: Body) -> Any:
        error = self._call("replace", kind, name)
        if self.read(kind, namespace, name).metadata.resource_version != body["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", f"{kind.plural} {name} has been modified")
        return self._store(kind, namespace, name, body, error)

    async def apply(self, kind: Kind[Any], namespace: str, name: str, body: Body, manager: str) -> Any:
        error = self._call("apply", kind, name)
        return self._store(kind, namespace, name, deep_merge(self.held.get((kind.plural, namespace, name), {}), dict(body)), error)

    async def merge(self, kind: Kind[Any], namespace: str, name: str, body: Body, subresource: str = "") -> Any:
        error = self._call("merge", kind, name)
        version = self.read(kind, namespace, name).metadata.resource_version
        if body.get("metadata", {}).get("resourceVersion", version) != version:
            raise Conflict(409, "Conflict", f"{kind.plural} {name} has been modified")
        return self._store(kind, namespace, name, deep_merge(self.held[kind.plural, namespace, name], dict(body)), error)

    async def scale(self, kind: Kind[Any], namespace: str, name: str, replicas: int) -> None:
        error = self._call("scale", kind, name)
        self.read(kind, namespace, name)
        self._store(kind, namespace, name, deep_merge(self.held[kind.plural, namespace, name], {"spec": {"replicas": replicas}}), error)

    async def delete(self, kind: Kind[Any], namespace: str, name: str) -> None:
        error = self._call("delete", kind, name)
        self.held.pop((kind.plural, namespace, name), None)
        if error is not None:
            raise error


def podautoscaler(
    name: str = "cart-1", annotations: dict[str, str] | None = None, labels: dict[str, str] | None = None, uid: str = "u1", **parts: Any
) -> objects.PodAutoscaler:
    """A PodAutoscaler of service 'cart'; `parts` = generation, protocol, concurrency, reachability, status."""
    own = {"serving.knative.dev/service": "cart", "serving.knative.dev/revision": name, "serving.knative.dev/revisionUID": f"r-{name}"}
    metadata = objects.Metadata(
        name=name,
        namespace=NAMESPACE,
        uid=uid,
        generation=parts.get("generation", 1),
        labels=own | {"app": "cart"} | (labels or {}),
        annotations={"autoscaling.knative.dev/class": "concurrency.cloudstate.io"} | (annotations or {}),
    )
    spec = objects.PodAutoscalerSpec(
        container_concurrency=parts.get("concurrency", 0),
        scale_target_ref=objects.TargetReference("Deployment", f"{name}-deployment"),
        reachability=parts.get("reachability", "Reachable"),
        protocol_type=parts.get("protocol", "http1"),
    )
    return objects.PodAutoscaler(metadata, spec, parts.get("status", objects.PodAutoscalerStatus()))


PAIRED = {"cloudstate.io/paired": "v1"}


def pod(name: str, ready: bool = True, address: str = "10.0.0.1", **parts: Any) -> objects.Pod:
    """A pod of revision 'cart-1'; `parts` = deleted, phase, restarts, cost."""
    annotations = {"controller.kubernetes.io/pod-deletion-cost": str(parts["cost"])} if "cost" in parts else {}
    metadata = objects.Metadata(
        name=name,
        namespace=NAMESPACE,
        labels={"serving.knative.dev/revision": "cart-1", "serving.knative.dev/service": "cart"},
        annotations=annotations,
        deletion_timestamp="2026-01-01T00:00:00Z" if parts.get("deleted") else "",
    )
    status = objects.PodStatus(
        phase=parts.get("phase", "Running"),
        pod_ip=address,
        conditions=(objects.Condition("Ready", "True" if ready else "False"),),
        container_statuses=(objects.ContainerStatus(restart_count=parts.get("restarts", 0)),),
    )
    return objects.Pod(metadata, status)


def read(kind: Kind[Any], body: Any) -> Any:
    """An object as it would come back from the API server."""
    return msgspec.json.decode(json.dumps(body), type=kind.model)
