"""What the leading autoscaler does: every PodAutoscaler of our class gets its network, its scale, its status, and its shards their owners.

Everything is made anew when a replica begins to lead and torn down when it stops: no state survives a lost lease but what the API server keeps.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any

from autoscaler.cluster import naming, pa_status
from autoscaler.cluster.defaults import Defaults
from autoscaler.cluster.network import Network
from autoscaler.cluster.networking import chosen, leader_slice
from autoscaler.cluster.policies import Policies, status_of, users_of
from autoscaler.cluster.revision import Revision
from autoscaler.cluster.services import Services
from autoscaler.cluster.settings import Settings
from autoscaler.cluster.shard_maps import ShardMapStore
from autoscaler.coordination import CoordinationServer
from autoscaler.settings import ScaleSettings, effective, placement_settings
from autoscaler.targets import activators_needed
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import NotFound
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.controller import Controller
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.objects import PodAutoscaler
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb

log = logging.getLogger(__name__)

SERVICE = "cloudstate-autoscaler"
ACTIVATORS = "app.kubernetes.io/component=activator,app.kubernetes.io/part-of=cloudstate-knative"


class Leader:
    """One term of leadership. `run` it; cancelling ends everything that it began."""

    def __init__(self, client: KubeClient, settings: Settings) -> None:
        self._client, self._settings = client, settings
        self.revisions: dict[str, Revision] = {}
        self._policy_of: dict[str, str] = {}
        self._coordination = CoordinationServer(time.monotonic, self._keep)
        self._store = ShardMapStore(client, self._methods)
        self._services = Services(self._coordination, self._store)
        self._network = Network(client, settings.endpoints)
        self._policies = Policies()
        self._defaults = Defaults()
        self._recorder = Recorder(client, "autoscaler", settings.pod)
        self._pas = Cache(client, kinds.POD_AUTOSCALER)
        self._pods = Cache(client, kinds.POD, labels=naming.REVISION)
        self._deployments = Cache(client, kinds.DEPLOYMENT, labels=naming.REVISION)
        self._slices = Cache(client, kinds.ENDPOINT_SLICE, labels=f"endpointslice.kubernetes.io/managed-by={naming.MANAGER}")
        self._routes = Cache(client, kinds.ROUTE)
        self._activators = Cache(client, kinds.POD, settings.namespace, ACTIVATORS)
        self._policy_objects = Cache(client, kinds.AUTOSCALING_POLICY)
        self._config = Cache(client, kinds.CONFIG_MAP, settings.knative_namespace, fields="metadata.name=config-autoscaler")
        self._pods_by_revision: dict[str, dict[str, objects.Pod]] = {}
        self._pas_controller = Controller("podautoscalers", self._reconcile, workers=8)
        self._policies_controller = Controller("policies", self._reconcile_policy, workers=1)

    # Life ---------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Lead until cancelled."""
        self._listen()
        self._coordination.on_stats, self._coordination.on_heard = self._on_stats, self._on_heard
        caches: list[Cache[Any]] = [
            self._config, self._policy_objects, self._routes, self._deployments, self._pods, self._activators, self._slices, self._pas,
        ]  # fmt: skip
        try:
            async with asyncio.TaskGroup() as group:
                for cache in caches:
                    group.create_task(cache.run())
                for cache in caches:
                    await cache.synced.wait()
                await self._coordination.start("0.0.0.0" if ":" not in self._settings.address else "[::]", self._settings.port)
                for task in (self._coordination.run(), self._pas_controller.run(), self._policies_controller.run(), self._lead_here()):
                    group.create_task(task)
        finally:
            await asyncio.shield(self._end())

    async def _end(self) -> None:
        await asyncio.gather(*(revision.stop() for revision in self.revisions.values()))
        await self._coordination.stop()

    async def _lead_here(self) -> None:
        """Lead the coordination Service to this pod, and keep it so."""
        s = self._settings
        body = leader_slice(SERVICE, s.namespace, s.address, s.port)

        async def write(_: str) -> float:
            await self._client.apply(kinds.ENDPOINT_SLICE, s.namespace, body["metadata"]["name"], body, naming.MANAGER)
            return 30.0

        controller = Controller("leader address", write, workers=1)
        controller.queue.add(SERVICE)
        await controller.run()

    def _listen(self) -> None:
        self._pas.listen(lambda before, after: self._add(after or before))
        self._pods.listen(self._pod_changed)
        self._deployments.listen(self._deployment_changed)
        self._routes.listen(self._route_changed)
        self._slices.listen(self._slice_changed)
        self._activators.listen(lambda before, after: self._all_again() if _address(before) != _address(after) else None)
        self._policy_objects.listen(self._policy_changed)
        self._config.listen(self._config_changed)

    # Events -------------------------------------------------------------------------------------------------------------

    def _add(self, item: objects.Object | None) -> None:
        if item is not None:
            self._pas_controller.queue.add(item.metadata.key)

    def _all_again(self) -> None:
        for key in self._pas.items:
            self._pas_controller.queue.add(key)

    def _pod_changed(self, before: objects.Pod | None, after: objects.Pod | None) -> None:
        pod = after or before
        assert pod is not None
        key = f"{pod.metadata.namespace}/{pod.metadata.labels.get(naming.REVISION, '')}"
        pods = self._pods_by_revision.setdefault(key, {})
        if after is not None:
            pods[pod.metadata.name] = after
        else:
            pods.pop(pod.metadata.name, None)
        if (revision := self.revisions.get(key)) is not None:
            revision.pod_changed(before, after)
            self._pas_controller.queue.add(key)
        elif not pods:
            del self._pods_by_revision[key]

    def _deployment_changed(self, before: objects.Deployment | None, after: objects.Deployment | None) -> None:
        if after is None:
            return
        key = f"{after.metadata.namespace}/{after.metadata.labels.get(naming.REVISION, '')}"
        if (revision := self.revisions.get(key)) is not None:
            revision.pods.observed(after.spec.replicas)
        else:
            self._pas_controller.queue.add(key)

    def _route_changed(self, before: objects.Route | None, after: objects.Route | None) -> None:
        route = after or before
        assert route is not None
        self._services.set_traffic(route.metadata.key, after)

    def _slice_changed(self, before: objects.EndpointSlice | None, after: objects.EndpointSlice | None) -> None:
        """Somebody deleted a slice of ours, or emptied it."""
        if before is None or (after is not None and after.endpoints):
            return
        for owner in before.metadata.owner_references:
            self._network.lost(owner.uid)
            self._pas_controller.queue.add(f"{before.metadata.namespace}/{owner.name}")

    def _policy_changed(self, before: objects.AutoscalingPolicy | None, after: objects.AutoscalingPolicy | None) -> None:
        if before is not None and after is not None and before.spec == after.spec:
            return
        self._policies.changed(before, after)
        self._all_again()
        if after is not None:
            self._policies_controller.queue.add(after.metadata.key)

    def _config_changed(self, before: objects.ConfigMap | None, after: objects.ConfigMap | None) -> None:
        self._defaults.changed(after)
        self._all_again()

    def _on_stats(self, activator: str, stats: pb.RevisionStats) -> None:
        namespace, _, _ = stats.service.partition("/")
        if (revision := self.revisions.get(f"{namespace}/{stats.revision}")) is not None:
            revision.loop.on_stats(activator, stats.concurrency, stats.requests)

    def _on_heard(self, activator: str) -> None:
        for revision in self.revisions.values():
            revision.loop.heard(activator)

    # PodAutoscalers -----------------------------------------------------------------------------------------------------

    async def _reconcile(self, key: str) -> float | None:
        pa = self._pas.items.get(key)
        held = self.revisions.get(key)
        if pa is None or not naming.is_ours(pa) or pa.metadata.deletion_timestamp or (held and held.pa.metadata.uid != pa.metadata.uid):
            await self._forget(key)
            if pa is None or not naming.is_ours(pa) or pa.metadata.deletion_timestamp:
                return None
        foreign = await self._network.foreign(pa)
        network = not foreign and await self._network.ensure(pa, self._activators_for(pa))
        policy, settings = self._settings_of(pa)
        if (before := self._policy_of.get(key)) != policy:
            self._policy_of[key] = policy
            self._policies_controller.queue.add(before or policy)
        revision = self.revisions.get(key)
        if revision is None:
            revision = await self._begin(key, pa, settings)
            if revision is None:
                return 0.2
        revision.update(pa, settings)
        self._tell_decision(revision, pa)
        status = pa_status.status(pa, revision.observed(network, foreign), _now())
        if not pa_status.same(pa, status):
            await self._client.merge(kinds.POD_AUTOSCALER, pa.metadata.namespace, pa.metadata.name, {"status": status}, "status")
        return None if network else 1.0

    async def _begin(self, key: str, pa: PodAutoscaler, settings: ScaleSettings) -> Revision | None:
        """Take a revision in; None while its Deployment is not there yet."""
        deployment = self._deployments.get(pa.metadata.namespace, pa.spec.scale_target_ref.name)
        if deployment is None:
            return None
        timeout = await self._timeout_of(pa)
        _, policy = self._policies.of(pa)
        route = self._routes.items.get(naming.service_of(pa))
        await self._services.add_revision(pa, route, timeout, placement_settings(policy))
        revision = Revision(
            self._client,
            pa,
            settings,
            deployment.spec.replicas,
            self._services,
            self._coordination,
            lambda: list(self._pods_by_revision.get(key, {}).values()),
            time.monotonic,
            lambda: self._pas_controller.queue.add(key),
            self._settings.tick,
        )
        self.revisions[key] = revision
        revision.start()
        for pod in revision.pods_known():
            revision.pod_changed(None, pod)
        return revision

    async def _forget(self, key: str) -> None:
        revision = self.revisions.pop(key, None)
        if revision is None:
            return
        await revision.stop()
        self._services.remove_revision(naming.service_of(revision.pa), revision.pa.metadata.name)
        self._network.forget(revision.pa.metadata.uid)
        self._recorder.forget(revision.pa.metadata.uid)
        if policy := self._policy_of.pop(key, ""):
            self._policies_controller.queue.add(policy)

    async def _timeout_of(self, pa: PodAutoscaler) -> int:
        try:
            revision = await self._client.get(kinds.REVISION, pa.metadata.namespace, pa.metadata.name)
        except NotFound:
            return 300
        return revision.spec.timeout_seconds or 300

    def _settings_of(self, pa: PodAutoscaler) -> tuple[str, ScaleSettings]:
        key, policy = self._policies.of(pa)
        return key, effective(pa.metadata.annotations, policy, self._defaults.config, pa.spec.container_concurrency)

    def _activators_for(self, pa: PodAutoscaler) -> list[str]:
        """Addresses of the activators in this revision's path."""
        ready = [pod.status.pod_ip for pod in self._activators.items.values() if pod.ready and pod.status.pod_ip]
        capacity = self._defaults.config.activator_capacity
        revision = self.revisions.get(pa.metadata.key)
        pods = revision.pods.wanted if revision is not None else 1
        needed = activators_needed(pods, pa.spec.container_concurrency or 100, self._defaults.config.target_burst_capacity, capacity)
        return chosen(pa.metadata.key, ready, needed) if ready else []

    def _tell_decision(self, revision: Revision, pa: PodAutoscaler) -> None:
        """Events that people look for when they ask why there are as many pods as there are."""
        decision = revision.loop.state.decision
        if decision is None:
            return
        told = pa.status.desired_scale
        if told is not None and told != decision.replicas_wanted and decision.active != "False":
            note = f"Scaled from {told} to {decision.replicas_wanted}: {decision.stable:.2f} in flight over the stable window"
            self._recorder.tell(kinds.POD_AUTOSCALER, pa, "Scaled", note)
        if decision.in_panic:
            self._recorder.tell(kinds.POD_AUTOSCALER, pa, "PanicEntered", "Demand is far above what the ready pods take: the scale only grows")

    # Policies and maps --------------------------------------------------------------------------------------------------

    async def _reconcile_policy(self, key: str) -> None:
        policy = self._policy_objects.items.get(key)
        if policy is None:
            return
        users = users_of(key, self._uses())
        status = status_of(policy, self._policies.problems.get(key, ""), users, _now())
        if status != policy.status:
            await self._client.merge(
                kinds.AUTOSCALING_POLICY, policy.metadata.namespace, policy.metadata.name, {"status": status}, "status"
            )

    def _uses(self) -> Iterable[tuple[str, str, ScaleSettings]]:
        return [(self._policy_of.get(key, ""), revision.pa.metadata.name, revision.settings) for key, revision in self.revisions.items()]

    def _keep(self, kept: Any) -> Coroutine[Any, Any, None]:
        return self._store.keep(kept)

    def _methods(self, service: str) -> list[pb.Method]:
        return list(self._services.methods(service))


def _address(pod: objects.Pod | None) -> str:
    """Where an activator takes calls; '' while it does not."""
    return pod.status.pod_ip if pod is not None and pod.ready else ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
