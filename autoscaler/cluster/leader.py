"""What the leading autoscaler does: every PodAutoscaler of our class gets its network, its scale, its status, and its shards their owners.

Everything is made anew when a replica begins to lead and torn down when it stops: no state survives a lost lease but what the API server keeps.
Proxies and activators are let in once every revision has been looked at, so that nobody hears of half a service.
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
from autoscaler.cluster.network import Network, Path
from autoscaler.cluster.networking import chosen, leader_slice
from autoscaler.cluster.pa_status import Observed
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
FIRST_PASS = 10.0
"""Seconds after which proxies and activators are let in although not every revision has been looked at."""
FOREIGN_AGAIN = 2.0
"""Seconds between looks at a revision whose Service is somebody else's."""
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
        self._policies = Policies()
        self._defaults = Defaults()
        self._recorder = Recorder(client, "autoscaler", settings.pod)
        self._pas = Cache(client, kinds.POD_AUTOSCALER)
        self._pods = Cache(client, kinds.POD, labels=naming.REVISION)
        self._deployments = Cache(client, kinds.DEPLOYMENT, labels=naming.REVISION)
        self._own_services = Cache(client, kinds.SERVICE, labels=f"{naming.MANAGED_BY}={naming.MANAGER}")
        self._slices = Cache(client, kinds.ENDPOINT_SLICE, labels=f"{naming.SLICE_MANAGED_BY}={naming.MANAGER}")
        self._network = Network(client, self._own_services.items, self._slices.items, settings.endpoints)
        self._routes = Cache(client, kinds.ROUTE)
        self._activators = Cache(client, kinds.POD, settings.namespace, ACTIVATORS)
        self._policy_objects = Cache(client, kinds.AUTOSCALING_POLICY)
        self._config = Cache(client, kinds.CONFIG_MAP, settings.knative_namespace, fields="metadata.name=config-autoscaler")
        self._pods_by_revision: dict[str, dict[str, objects.Pod]] = {}
        self._unseen: set[str] = set()
        """PodAutoscalers of ours that this leader has found and not looked at yet."""
        self._all_seen = asyncio.Event()
        self._pas_controller = Controller("podautoscalers", self._look, workers=8)
        self._policies_controller = Controller("policies", self._reconcile_policy, workers=1)

    # Life ---------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Lead until cancelled."""
        self._listen()
        self._coordination.on_stats, self._coordination.on_heard = self._on_stats, self._on_heard
        self._coordination.on_members = self._on_members
        caches: list[Cache[Any]] = [
            self._config, self._policy_objects, self._routes, self._deployments, self._pods, self._activators, self._own_services,
            self._slices, self._pas,
        ]  # fmt: skip
        try:
            async with asyncio.TaskGroup() as group:
                for cache in caches:
                    group.create_task(cache.run())
                for cache in caches:
                    await cache.synced.wait()
                self._unseen = {key for key, pa in self._pas.items.items() if naming.is_ours(pa)}
                for task in (self._pas_controller.run(), self._policies_controller.run()):
                    group.create_task(task)
                await self._first_pass()
                await self._coordination.start("0.0.0.0" if ":" not in self._settings.address else "[::]", self._settings.port)
                for task in (self._coordination.run(), self._lead_here()):
                    group.create_task(task)
        finally:
            await asyncio.shield(self._end())

    async def _end(self) -> None:
        await asyncio.gather(*(revision.stop() for revision in self.revisions.values()))
        await self._coordination.stop()

    async def _first_pass(self) -> None:
        """Wait until all revisions have been looked at, but not for ever: one that fails must not keep the others from being served."""
        if not self._unseen:
            return
        try:
            async with asyncio.timeout(FIRST_PASS):
                await self._all_seen.wait()
        except TimeoutError:
            log.warning("%d revisions have not been looked at after %.0f s: the others are served", len(self._unseen), FIRST_PASS)

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
        self._pas.listen(self._pa_changed)
        self._pods.listen(self._pod_changed)
        self._deployments.listen(self._deployment_changed)
        self._routes.listen(self._route_changed)
        for cache in (self._own_services, self._slices):
            cache.listen(self._network_changed)
        self._activators.listen(lambda before, after: self._all_again() if _address(before) != _address(after) else None)
        self._policy_objects.listen(self._policy_changed)
        self._config.listen(self._config_changed)

    # Events -------------------------------------------------------------------------------------------------------------

    def _pa_changed(self, before: PodAutoscaler | None, after: PodAutoscaler | None) -> None:
        pa = after or before
        assert pa is not None
        if after is None:
            self._network.forget(pa.metadata.uid)
        if naming.is_ours(pa) or pa.metadata.key in self.revisions:
            self._pas_controller.queue.add(pa.metadata.key)

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
            return
        if pod.metadata.deletion_timestamp or pod.ended or after is None:
            service = f"{pod.metadata.namespace}/{pod.metadata.labels.get(naming.SERVICE, '')}"
            self._services.pod_left(service, pod.metadata.name, ended=after is None or pod.ended)
        if not pods:
            del self._pods_by_revision[key]

    def _deployment_changed(self, before: objects.Deployment | None, after: objects.Deployment | None) -> None:
        if after is None:
            return
        key = f"{after.metadata.namespace}/{after.metadata.labels.get(naming.REVISION, '')}"
        if (revision := self.revisions.get(key)) is not None:
            revision.deployment_changed(after)
        else:
            self._pas_controller.queue.add(key)

    def _route_changed(self, before: objects.Route | None, after: objects.Route | None) -> None:
        route = after or before
        assert route is not None
        self._services.set_traffic(route.metadata.key, after)

    def _network_changed(self, before: Any, after: Any) -> None:
        """A Service or slice of ours: what somebody has deleted or edited comes back."""
        if before is not None:
            for key in self._network.changed(before):
                self._pas_controller.queue.add(key)

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

    def _on_members(self, service: str) -> None:
        held = self._services.get(service)
        namespace, _, _ = service.partition("/")
        for name in held.revisions if held is not None else ():
            if (revision := self.revisions.get(f"{namespace}/{name}")) is not None:
                revision.members_changed()

    # PodAutoscalers -----------------------------------------------------------------------------------------------------

    async def _look(self, key: str) -> float | None:
        try:
            return await self._reconcile(key)
        finally:
            self._unseen.discard(key)
            if not self._unseen:
                self._all_seen.set()

    async def _reconcile(self, key: str) -> float | None:
        pa = self._pas.items.get(key)
        held = self.revisions.get(key)
        if pa is None or not naming.is_ours(pa) or pa.metadata.deletion_timestamp or (held and held.pa.metadata.uid != pa.metadata.uid):
            await self._forget(key)
            if pa is None or not naming.is_ours(pa) or pa.metadata.deletion_timestamp:
                return None
        path = await self._network.ensure(pa, self._activators_for(pa))
        if path is Path.FOREIGN:
            await self._forget(key)
            ready = sum(pod.ready for pod in self._pods_by_revision.get(key, {}).values())
            await self._tell(pa, Observed(-1, ready, foreign=True))
            return FOREIGN_AGAIN
        revision = self.revisions.get(key)
        policy, settings = self._settings_of(pa)
        if revision is None and (revision := await self._begin(key, pa, settings)) is None:
            return None  # its Deployment is not there yet; it is told when it comes
        changed = revision.update(pa, settings)
        self._services.set_eagerness(pa, placement_settings(self._policies.of(pa)[1]))
        self._used(key, policy, changed)
        self._tell_decision(revision, pa)
        await self._tell(pa, revision.observed(path is Path.READY))
        return None if path is Path.READY else 1.0

    async def _tell(self, pa: PodAutoscaler, seen: Observed) -> None:
        """Write the status, when it is another one."""
        status = pa_status.status(pa, seen, _now())
        if not pa_status.same(pa, status):
            await self._client.merge(kinds.POD_AUTOSCALER, pa.metadata.namespace, pa.metadata.name, {"status": status}, "status")

    def _used(self, key: str, policy: str, changed: bool) -> None:
        """A revision is scaled by this policy ('' = none): what policies tell of their use may be another thing now."""
        before = self._policy_of.get(key)
        self._policy_of[key] = policy
        for name in {before, policy} - {None, ""} if changed or before != policy else ():
            self._policies_controller.queue.add(str(name))

    async def _begin(self, key: str, pa: PodAutoscaler, settings: ScaleSettings) -> Revision | None:
        """Take a revision in; None while its Deployment is not there yet."""
        name = pa.metadata.namespace, pa.spec.scale_target_ref.name
        if self._deployments.get(*name) is None:
            return None
        timeout = await self._timeout_of(pa)
        _, policy = self._policies.of(pa)
        service = naming.service_of(pa)
        await self._services.add_revision(pa, lambda: self._routes.items.get(service), timeout, placement_settings(policy))
        if (deployment := self._deployments.get(*name)) is None:
            self._services.remove_revision(pa)
            return None
        revision = Revision(
            self._client,
            pa,
            settings,
            deployment,
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
        self._services.remove_revision(revision.pa)
        self._recorder.forget(revision.pa.metadata.uid)
        if policy := self._policy_of.pop(key, ""):
            self._policies_controller.queue.add(policy)
        if not self._pods_by_revision.get(key):
            self._pods_by_revision.pop(key, None)

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
