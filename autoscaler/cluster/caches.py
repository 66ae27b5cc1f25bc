"""What the leader sees of the cluster: one cache for each kind, and the pods of each revision."""

from __future__ import annotations

from typing import Any

from autoscaler.cluster import naming
from autoscaler.cluster.settings import Settings
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient

ACTIVATORS = "app.kubernetes.io/component=activator,app.kubernetes.io/part-of=cloudstate-knative"


class Caches:
    """The objects that the leader follows; each cache is to be run."""

    def __init__(self, client: KubeClient, settings: Settings) -> None:
        self.podautoscalers = Cache(client, kinds.POD_AUTOSCALER)
        self.pods = Cache(client, kinds.POD, labels=naming.REVISION)
        self.deployments = Cache(client, kinds.DEPLOYMENT, labels=naming.REVISION)
        self.services = Cache(client, kinds.SERVICE, labels=f"{naming.MANAGED_BY}={naming.MANAGER}")
        self.endpoints = Cache(client, kinds.ENDPOINTS, labels=f"{naming.MANAGED_BY}={naming.MANAGER}") if settings.endpoints else None
        self.slices = Cache(client, kinds.ENDPOINT_SLICE, labels=f"{naming.SLICE_MANAGED_BY}={naming.MANAGER}")
        self.routes = Cache(client, kinds.ROUTE)
        self.revisions = Cache(client, kinds.REVISION)
        self.activators = Cache(client, kinds.POD, settings.namespace, ACTIVATORS)
        self.policies = Cache(client, kinds.AUTOSCALING_POLICY)
        self.config = Cache(client, kinds.CONFIG_MAP, settings.knative_namespace, fields="metadata.name=config-autoscaler")
        self._pods_by_revision: dict[str, dict[str, objects.Pod]] = {}
        self.pods.listen(self._pod_changed)

    def all(self) -> list[Cache[Any]]:
        """Every cache, what others refer to first."""
        return [
            self.config, self.policies, self.routes, self.revisions, self.deployments, self.pods, self.activators, self.services,
            self.slices, *([self.endpoints] if self.endpoints is not None else ()), self.podautoscalers,
        ]  # fmt: skip

    def pods_of(self, revision: str) -> list[objects.Pod]:
        """The pods of a revision ('<namespace>/<name>'), as last seen."""
        return list(self._pods_by_revision.get(revision, {}).values())

    def activator_addresses(self) -> list[str]:
        """Where activators take calls."""
        return [pod.status.pod_ip for pod in self.activators.items.values() if pod.ready and pod.status.pod_ip]

    def _pod_changed(self, before: objects.Pod | None, after: objects.Pod | None) -> None:
        if before is not None and (pods := self._pods_by_revision.get(key := revision_of(before))) is not None:
            pods.pop(before.metadata.name, None)
            if not pods:
                del self._pods_by_revision[key]
        if after is not None:  # perhaps under another revision's label than before
            self._pods_by_revision.setdefault(revision_of(after), {})[after.metadata.name] = after


def revision_of(item: objects.Object) -> str:
    """'<namespace>/<name>' of the revision that a pod or Deployment belongs to."""
    return f"{item.metadata.namespace}/{item.metadata.labels.get(naming.REVISION, '')}"
