"""What the tests of the whole leader share: an API server in memory that can be watched, and a leader on it without its port.

Everything is answered in the same turn of the loop, so that what is to happen has happened once the loop has turned often enough; what the
test holds back stays away until it lets go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any

from autoscaler.cluster.leader import Leader
from autoscaler.cluster.settings import Settings
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import Gone, Kind, KubeError, NotFound

from .world import NAMESPACE, Kube

SETTINGS = Settings("leader", "10.0.0.9", "cloudstate-system", "knative-serving", 8101, 8558, 1000.0)
TURNS = 300
"""Turns of the loop in which everything that can be done is done."""


async def settle() -> None:
    """Let everything happen that can."""
    for _ in range(TURNS):
        await asyncio.sleep(0)


class Watched(Kube):
    """Lists and tells of changes. `held_back` are the plurals that nothing is told of for now, `cut` those whose watch is too old."""

    def __init__(self) -> None:
        super().__init__()
        self.told: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        self.held_back: set[str] = set()
        self.cut: set[str] = set()
        self.gates: dict[str, asyncio.Event] = {}
        self.waiting: list[str] = []
        self._news = asyncio.Event()

    def hold(self, call: str) -> asyncio.Event:
        """Make each '<verb> <plural>/<name>' wait for this event before it is done."""
        self.gates[call] = asyncio.Event()
        return self.gates[call]

    async def _pass(self, call: str) -> None:
        if (gate := self.gates.get(call)) is not None:
            self.waiting.append(call)
            await gate.wait()

    def let_go(self, *plurals: str) -> None:
        """Tell what was held back."""
        self.held_back -= set(plurals)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def _store(self, kind: Kind[Any], namespace: str, name: str, body: Any, error: KubeError | None) -> Any:
        known = (kind.plural, namespace, name) in self.held
        try:
            return super()._store(kind, namespace, name, body, error)
        finally:
            self._tell(kind, namespace, "MODIFIED" if known else "ADDED", self.read(kind, namespace, name))

    def _tell(self, kind: Kind[Any], namespace: str, what: str, item: Any) -> None:
        self.told[kind.api_version + kind.plural].append((what, item))
        self._wake()

    async def get(self, kind: Kind[Any], namespace: str, name: str) -> Any:
        await self._pass(f"get {kind.plural}/{name}")
        return await super().get(kind, namespace, name)

    async def create(self, kind: Kind[Any], namespace: str, body: Any) -> Any:
        await self._pass(f"create {kind.plural}/{body['metadata']['name']}")
        return await super().create(kind, namespace, body)

    async def merge(self, kind: Kind[Any], namespace: str, name: str, body: Any, subresource: str = "") -> Any:
        await self._pass(f"merge {kind.plural}/{name}")
        return await super().merge(kind, namespace, name, body, subresource)

    async def scale(self, kind: Kind[Any], namespace: str, name: str, replicas: int) -> None:
        await self._pass(f"scale {kind.plural}/{name}")
        await super().scale(kind, namespace, name, replicas)

    async def delete(self, kind: Kind[Any], namespace: str, name: str) -> None:
        with contextlib.suppress(NotFound):
            before = self.read(kind, namespace, name)
            await super().delete(kind, namespace, name)
            self._tell(kind, namespace, "DELETED", before)

    async def list(self, kind: Kind[Any], namespace: str = "", labels: str = "", fields: str = "") -> tuple[list[Any], str]:
        where = kind.api_version + kind.plural
        living: dict[str, Any] = {}
        for what, item in self.told[where]:
            living.pop(item.metadata.key, None)
            if what != "DELETED" and _selected(item, labels, fields):
                living[item.metadata.key] = item
        return list(living.values()), str(len(self.told[where]))

    async def watch(
        self, kind: Kind[Any], version: str, namespace: str = "", labels: str = "", fields: str = ""
    ) -> AsyncIterator[tuple[str, Any]]:
        at = int(version)
        while True:
            if kind.plural in self.cut:
                self.cut.discard(kind.plural)
                raise Gone(410, "Expired", "too old resource version")
            told = self.told[kind.api_version + kind.plural]
            while at < len(told) and kind.plural not in self.held_back:
                what, item = told[at]
                at += 1
                if _selected(item, labels, fields):
                    yield what, item
            await self._news.wait()

    async def begin(self, body: Any, kind: Kind[Any] = kinds.POD_AUTOSCALER) -> None:
        """Put an object there as if somebody had made it; one that is there is replaced as it is."""
        await asyncio.sleep(0)
        self._store(kind, NAMESPACE, body["metadata"]["name"], body, None)


def _selected(item: Any, labels: str, fields: str) -> bool:
    wanted = [part.partition("=") for part in labels.split(",") if part]
    has = item.metadata.labels
    return all(key in has and (not is_ or has[key] == value) for key, is_, value in wanted) and fields in ("", f"metadata.name={item.metadata.name}")


def pa_body(name: str = "cart-1", ours: bool = True, **annotations: str) -> dict[str, Any]:
    """A PodAutoscaler of service 'cart' as the API server has it."""
    of_class = "concurrency.cloudstate.io" if ours else "kpa.autoscaling.knative.dev"
    labels = {"serving.knative.dev/service": "cart", "serving.knative.dev/revision": name, "serving.knative.dev/revisionUID": f"r-{name}"}
    metadata = {"name": name, "labels": labels, "annotations": {"autoscaling.knative.dev/class": of_class} | annotations}
    spec = {"scaleTargetRef": {"kind": "Deployment", "name": f"{name}-deployment"}, "reachability": "Reachable", "protocolType": "http1"}
    return {"metadata": metadata, "spec": spec}


def deployment_body(revision: str = "cart-1", replicas: int = 1) -> dict[str, Any]:
    """The Deployment of a revision."""
    metadata = {"name": f"{revision}-deployment", "labels": {"serving.knative.dev/revision": revision}}
    return {"metadata": metadata, "spec": {"replicas": replicas}}


def revision_body(name: str = "cart-1", timeout: int = 300) -> dict[str, Any]:
    """A Knative Revision."""
    return {"metadata": {"name": name, "uid": f"r-{name}"}, "spec": {"timeoutSeconds": timeout}}


async def activator(kube: Watched) -> None:
    """One activator that takes calls."""
    labels = {"app.kubernetes.io/component": "activator", "app.kubernetes.io/part-of": "cloudstate-knative"}
    status = {"podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]}
    await kube.begin({"metadata": {"name": "activator", "labels": labels}, "status": status}, kinds.POD)


@contextlib.asynccontextmanager
async def leading(kube: Watched, settings: Settings = SETTINGS) -> AsyncIterator[Leader]:
    """A leader that follows the API server and brings PodAutoscalers to their state; nobody can call it."""
    leader = Leader(kube, settings)  # type: ignore[arg-type]
    leader._listen()
    caches, ours = leader._caches.all(), leader._podautoscalers
    tasks = [asyncio.ensure_future(cache.run()) for cache in caches]
    for cache in caches:
        await cache.synced.wait()
    ours.unseen = set(leader._caches.podautoscalers.items)
    tasks += [asyncio.ensure_future(ours.controller.run()), asyncio.ensure_future(ours.policies_controller.run())]
    await settle()
    try:
        yield leader
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await leader._end()


def status_of(kube: Watched, name: str = "cart-1") -> objects.PodAutoscalerStatus:
    """What a PodAutoscaler tells."""
    found: objects.PodAutoscaler = kube.read(kinds.POD_AUTOSCALER, NAMESPACE, name)
    return found.status


def pod_body(name: str, address: str, revision: str = "cart-1") -> dict[str, Any]:
    """A pod that is ready."""
    labels = {"serving.knative.dev/revision": revision, "serving.knative.dev/service": "cart"}
    status = {"phase": "Running", "podIP": address, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name, "labels": labels}, "status": status}
