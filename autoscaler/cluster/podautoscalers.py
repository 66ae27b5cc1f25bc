"""Brings PodAutoscalers of our class to their wanted state: network, scaling loop, status; and tells policies of their use.

A steady pass writes nothing: what is as it should be costs the API server no call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from datetime import UTC, datetime

from autoscaler.cluster import naming, pa_status
from autoscaler.cluster.caches import Caches
from autoscaler.cluster.defaults import Defaults
from autoscaler.cluster.network import Network, Path
from autoscaler.cluster.networking import chosen
from autoscaler.cluster.pa_status import Observed
from autoscaler.cluster.policies import Policies, status_of, users_of
from autoscaler.cluster.revision import Revision
from autoscaler.cluster.services import Services
from autoscaler.cluster.settings import Settings
from autoscaler.coordination import CoordinationServer
from autoscaler.settings import ScaleSettings, effective, placement_settings
from autoscaler.targets import activators_needed
from cloudstate_core.kube import kinds
from cloudstate_core.kube.api import NotFound
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.controller import Controller
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.objects import PodAutoscaler, timestamp

DEFAULT_TIMEOUT = 300
"""Seconds that a request may take when its revision does not say."""
PANIC = "panic"
"""Topic of the events that tell when panic begins and ends."""
FOREIGN_AGAIN = 2.0
"""Seconds between looks at a revision whose Service is somebody else's."""


class PodAutoscalers:
    """The revisions that are ours. `controller` works on their keys, `policies_controller` on those of policies."""

    def __init__(
        self, client: KubeClient, settings: Settings, caches: Caches, services: Services, coordination: CoordinationServer
    ) -> None:
        self.revisions: dict[str, Revision] = {}
        endpoints = caches.endpoints.items if caches.endpoints is not None else None
        self.network = Network(client, caches.services.items, caches.slices.items, endpoints)
        self.policies, self.defaults = Policies(), Defaults()
        self.controller = Controller("podautoscalers", self._look, workers=8)
        self.policies_controller = Controller("policies", self._reconcile_policy, workers=1)
        self.unseen: set[str] = set()
        """Those of ours that this leader has found and not looked at yet."""
        self.all_seen = asyncio.Event()
        self._client, self._settings, self._caches = client, settings, caches
        self._services, self._coordination = services, coordination
        self._recorder = Recorder(client, "autoscaler", settings.pod)
        self._policy_of: dict[str, str] = {}

    def all_again(self) -> None:
        """Something changed that every revision depends on."""
        for key in self._caches.podautoscalers.items:
            self.controller.queue.add(key)

    async def stop(self) -> None:
        """Decide nothing more, tell nothing more; pods stay as they are."""
        await asyncio.gather(*(revision.stop() for revision in self.revisions.values()))
        await self._recorder.close()

    async def _look(self, key: str) -> float | None:
        again = await self._reconcile(key)  # one that fails has not been looked at
        self.unseen.discard(key)
        if not self.unseen:
            self.all_seen.set()
        return again

    async def _reconcile(self, key: str) -> float | None:
        pa = self._caches.podautoscalers.items.get(key)
        held = self.revisions.get(key)
        if pa is None or not naming.is_ours(pa) or pa.metadata.deletion_timestamp or (held and held.pa.metadata.uid != pa.metadata.uid):
            await self._forget(key)
            if pa is None or not naming.is_ours(pa) or pa.metadata.deletion_timestamp:
                self.network.forget(key)
                return None
        path = await self.network.ensure(pa, self._activators_for(pa))
        if path is Path.FOREIGN:
            await self._forget(key)
            ready = sum(pod.ready for pod in self._caches.pods_of(key))
            await self._tell(pa, Observed(-1, ready, foreign=True))
            return FOREIGN_AGAIN
        revision = self.revisions.get(key)
        policy, settings = self._settings_of(pa)
        if revision is None and (revision := await self._begin(key, pa, settings)) is None:
            return None  # its Deployment is not there yet; it is told when it comes
        changed = revision.update(pa, settings)
        self._services.set_eagerness(pa, placement_settings(self.policies.of(pa)[1]))
        self._used(key, policy, changed)
        seen = revision.observed(path is Path.READY)
        self._tell_decision(revision, pa, seen)
        await self._tell(pa, seen)
        return None if path is Path.READY else 1.0

    async def _tell(self, pa: PodAutoscaler, seen: Observed) -> None:
        """Write the status, when it is another one. Conflict when the object is another one by now, perhaps made again under its name."""
        status = pa_status.status(pa, seen, timestamp(datetime.now(UTC)))
        if not pa_status.same(pa, status):
            body = {"metadata": {"resourceVersion": pa.metadata.resource_version}, "status": status}
            await self._client.merge(kinds.POD_AUTOSCALER, pa.metadata.namespace, pa.metadata.name, body, "status")

    def _used(self, key: str, policy: str, changed: bool) -> None:
        """A revision is scaled by this policy ('' = none): what policies tell of their use may be another thing now."""
        before = self._policy_of.get(key)
        self._policy_of[key] = policy
        for name in {before, policy} - {None, ""} if changed or before != policy else ():
            self.policies_controller.queue.add(str(name))

    async def _begin(self, key: str, pa: PodAutoscaler, settings: ScaleSettings) -> Revision | None:
        """Take a revision in; None while its Deployment is not there yet."""
        name = pa.metadata.namespace, pa.spec.scale_target_ref.name
        if self._caches.deployments.get(*name) is None:
            return None
        timeout = await self._timeout_of(pa)
        _, policy = self.policies.of(pa)
        service = naming.service_of(pa)
        await self._services.add_revision(pa, lambda: self._caches.routes.items.get(service), timeout, placement_settings(policy))
        if (deployment := self._caches.deployments.get(*name)) is None:
            self._services.remove_revision(pa)
            return None
        revision = Revision(
            self._client,
            pa,
            settings,
            deployment,
            self._services,
            self._coordination,
            lambda: self._caches.pods_of(key),
            time.monotonic,
            lambda: self.controller.queue.add(key),
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
            self.policies_controller.queue.add(policy)

    async def _timeout_of(self, pa: PodAutoscaler) -> int:
        revision = self._caches.revisions.items.get(pa.metadata.key)
        if revision is None or revision.metadata.uid != pa.metadata.labels.get(naming.REVISION_UID, revision.metadata.uid):
            # Not seen yet, or one of the name before: it is older than its PodAutoscaler.
            try:
                revision = await self._client.get(kinds.REVISION, pa.metadata.namespace, pa.metadata.name)
            except NotFound:
                return DEFAULT_TIMEOUT
        return revision.spec.timeout_seconds or DEFAULT_TIMEOUT

    def _settings_of(self, pa: PodAutoscaler) -> tuple[str, ScaleSettings]:
        key, policy = self.policies.of(pa)
        return key, effective(pa.metadata.annotations, policy, self.defaults.config, pa.spec.container_concurrency)

    def _activators_for(self, pa: PodAutoscaler) -> list[str]:
        """Addresses of the activators in this revision's path."""
        ready = self._caches.activator_addresses()
        capacity = self.defaults.config.activator_capacity
        revision = self.revisions.get(pa.metadata.key)
        pods = revision.pods.wanted if revision is not None else 1
        needed = activators_needed(pods, pa.spec.container_concurrency or 100, self.defaults.config.target_burst_capacity, capacity)
        return chosen(pa.metadata.key, ready, needed) if ready else []

    def _tell_decision(self, revision: Revision, pa: PodAutoscaler, seen: Observed) -> None:
        """Events that people look for when they ask why there are as many pods as there are."""
        decision, told = revision.loop.state.decision, pa.status.desired_scale
        if decision is None:
            return
        if told is not None and told != seen.want >= 0:
            note = f"Scaled from {told} to {seen.want}: {decision.stable:.2f} in flight over the stable window"
            self._recorder.tell(kinds.POD_AUTOSCALER, pa, "Scaled", note)
        if decision.in_panic:
            note = "Demand is far above what the ready pods take: the scale only grows"
            self._recorder.tell(kinds.POD_AUTOSCALER, pa, "PanicEntered", note, topic=PANIC)
        elif self._recorder.last(pa.metadata.uid, PANIC) == "PanicEntered":
            self._recorder.tell(kinds.POD_AUTOSCALER, pa, "PanicLeft", "The scale follows the stable window again", topic=PANIC)

    async def _reconcile_policy(self, key: str) -> None:
        policy = self._caches.policies.items.get(key)
        if policy is None:
            return
        users = users_of(key, self._uses())
        status = status_of(policy, self.policies.problems.get(key, ""), users, timestamp(datetime.now(UTC)))
        if status != policy.status:
            await self._client.merge(
                kinds.AUTOSCALING_POLICY, policy.metadata.namespace, policy.metadata.name, {"status": status}, "status"
            )

    def _uses(self) -> Iterable[tuple[str, str, ScaleSettings]]:
        return [(self._policy_of.get(key, ""), revision.pa.metadata.name, revision.settings) for key, revision in self.revisions.items()]
