"""Wires one autoscaler process. Followers are ready too: they wait to lead."""

from __future__ import annotations

from collections.abc import Iterable

from autoscaler.cluster.leader import Leader
from autoscaler.cluster.naming import service_of
from autoscaler.cluster.settings import Settings
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.replica import Replica, Role


class Autoscaler(Replica):
    """One replica of the autoscaler."""

    def __init__(self, settings: Settings) -> None:
        role = Role("cloudstate-autoscaler", self._lead, metrics=lambda: metrics(self._leader))
        super().__init__(role, settings.namespace, settings.pod, settings.admin_port, settings.kubeconfig)
        self._settings = settings
        self._leader: Leader | None = None

    async def _lead(self, client: KubeClient) -> None:
        self._leader = Leader(client, self._settings)
        try:
            await self._leader.run()
        finally:
            self._leader = None


def metrics(leader: Leader | None) -> Iterable[str]:
    """Figures of every revision, under Knative's own names and labels where one exists."""
    revisions = list(leader.revisions.values()) if leader is not None else []
    decisions = [revision.loop.state.decision for revision in revisions]
    figures = {
        "kn_revision_pods_desired": [float(revision.pods.wanted) for revision in revisions],
        "kn_revision_pods_count": [float(revision.ready) for revision in revisions],
        "kn_revision_panic_mode": [float(bool(d and d.in_panic)) for d in decisions],
        "kn_revision_concurrency_stable": [d.stable if d else 0.0 for d in decisions],
        "kn_revision_concurrency_panic": [d.panic if d else 0.0 for d in decisions],
    }
    for name, values in figures.items():
        yield f"# TYPE {name} gauge\n"
        for revision, value in zip(revisions, values, strict=True):
            _, _, service = service_of(revision.pa).partition("/")
            m = revision.pa.metadata
            yield f'{name}{{k8s_namespace_name="{m.namespace}",kn_service_name="{service}",kn_revision_name="{m.name}"}} {value:g}\n'
