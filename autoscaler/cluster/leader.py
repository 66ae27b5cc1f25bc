"""What the leading autoscaler does: every PodAutoscaler of our class gets its network, its scale, its status, and its shards their owners.

Everything is made anew when a replica begins to lead and torn down when it stops: no state survives a lost lease but what the API server keeps.
Proxies and activators are let in once every revision has been looked at, so that nobody hears of half a service.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Any

from autoscaler.cluster import naming
from autoscaler.cluster.caches import Caches, revision_of
from autoscaler.cluster.networking import leader_slice
from autoscaler.cluster.podautoscalers import PodAutoscalers
from autoscaler.cluster.revision import Revision
from autoscaler.cluster.services import Services
from autoscaler.cluster.settings import Settings
from autoscaler.cluster.shard_maps import Followed, ShardMapStore
from autoscaler.coordination import CoordinationServer
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.controller import Controller
from cloudstate_core.kube.objects import PodAutoscaler
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from cloudstate_core.shard_map import ShardMap

log = logging.getLogger(__name__)

SERVICE = "cloudstate-autoscaler"
FIRST_PASS = 10.0
"""Seconds after which proxies and activators are let in although not every revision has been looked at."""


class _Over(Exception):
    """This term has to end."""


class Leader:
    """One term of leadership. `run` it; cancelling ends everything that it began."""

    def __init__(self, client: KubeClient, settings: Settings) -> None:
        self._client, self._settings = client, settings
        self._caches = Caches(client, settings)
        self._coordination = CoordinationServer(time.monotonic, self._keep)
        self._store = ShardMapStore(client, self._methods)
        self._followed = asyncio.Event()
        self._services = Services(self._coordination, self._store)
        self._podautoscalers = PodAutoscalers(client, settings, self._caches, self._services, self._coordination)

    @property
    def revisions(self) -> Mapping[str, Revision]:
        """The revisions that are scaled here, by '<namespace>/<name>'."""
        return self._podautoscalers.revisions

    # Life ---------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Lead until cancelled, or until another leader's map shows that this one does not know what is kept any more."""
        self._listen()
        self._coordination.on_stats, self._coordination.on_heard = self._on_stats, self._on_heard
        self._coordination.on_members = self._on_members
        caches, ours = self._caches.all(), self._podautoscalers
        try:
            async with asyncio.TaskGroup() as group:
                for cache in caches:
                    group.create_task(cache.run())
                for cache in caches:
                    await cache.synced.wait()
                ours.unseen = {key for key, pa in self._caches.podautoscalers.items.items() if naming.is_ours(pa)}
                for task in (ours.controller.run(), ours.policies_controller.run()):
                    group.create_task(task)
                await self._first_pass()
                await self._coordination.start("0.0.0.0" if ":" not in self._settings.address else "[::]", self._settings.port)
                for revision in self.revisions.values():
                    revision.let_in()
                for task in (self._coordination.run(), self._lead_here(), self._until_followed()):
                    group.create_task(task)
        except* _Over:
            log.warning("another leader has written shard maps: this term ends")
        finally:
            await asyncio.shield(self._end())

    async def _until_followed(self) -> None:
        """Raise once a map was not taken because of another leader's: whoever leads next reads anew what is kept."""
        await self._followed.wait()
        raise _Over

    async def _end(self) -> None:
        await self._podautoscalers.stop()
        await self._coordination.stop()

    async def _first_pass(self) -> None:
        """Wait until all revisions have been looked at, but not for ever: one that fails must not keep the others from being served."""
        if not self._podautoscalers.unseen:
            return
        try:
            async with asyncio.timeout(FIRST_PASS):
                await self._podautoscalers.all_seen.wait()
        except TimeoutError:
            log.warning("%d revisions have not been looked at after %.0f s: the others are served", len(self._podautoscalers.unseen), FIRST_PASS)

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
        self._caches.podautoscalers.listen(self._pa_changed)
        self._caches.pods.listen(self._pod_changed)
        self._caches.deployments.listen(self._deployment_changed)
        self._caches.routes.listen(self._route_changed)
        for cache in (self._caches.services, self._caches.slices, self._caches.endpoints):
            if cache is not None:
                cache.listen(self._network_changed)
                cache.listen_to_lists(self._network_listed)
        self._caches.activators.listen(lambda before, after: self._podautoscalers.all_again() if _address(before) != _address(after) else None)
        self._caches.policies.listen(self._policy_changed)
        self._caches.config.listen(self._config_changed)

    # Events -------------------------------------------------------------------------------------------------------------

    def _pa_changed(self, before: PodAutoscaler | None, after: PodAutoscaler | None) -> None:
        pa = after or before
        assert pa is not None
        # Also one that was ours: it may be about to be taken in.
        if any(each is not None and naming.is_ours(each) for each in (before, after)):
            self._podautoscalers.controller.queue.add(pa.metadata.key)

    def _pod_changed(self, before: objects.Pod | None, after: objects.Pod | None) -> None:
        pod = after or before
        assert pod is not None
        key = revision_of(pod)
        if before is not None and (left := self.revisions.get(revision_of(before))) is not None and revision_of(before) != key:
            left.pod_released(pod.metadata.name)
        if (revision := self.revisions.get(key)) is not None:
            revision.pod_changed(before, after)
            self._podautoscalers.controller.queue.add(key)
            return
        if pod.metadata.deletion_timestamp or pod.ended or after is None:
            service = f"{pod.metadata.namespace}/{pod.metadata.labels.get(naming.SERVICE, '')}"
            self._services.pod_left(service, pod.metadata.name, ended=after is None or pod.ended)

    def _deployment_changed(self, before: objects.Deployment | None, after: objects.Deployment | None) -> None:
        if after is None:
            return
        key = revision_of(after)
        if (revision := self.revisions.get(key)) is not None:
            revision.deployment_changed(after)
        else:
            self._podautoscalers.controller.queue.add(key)

    def _route_changed(self, before: objects.Route | None, after: objects.Route | None) -> None:
        route = after or before
        assert route is not None
        self._services.set_traffic(route.metadata.key, after)

    def _network_changed(self, before: Any, after: Any) -> None:
        """A Service, slice or Endpoints of ours: what somebody has deleted or edited comes back."""
        if before is not None:
            for key in self._podautoscalers.network.changed(before):
                self._podautoscalers.controller.queue.add(key)

    def _network_listed(self) -> None:
        self._podautoscalers.network.listed()
        self._podautoscalers.all_again()

    def _policy_changed(self, before: objects.AutoscalingPolicy | None, after: objects.AutoscalingPolicy | None) -> None:
        if before is not None and after is not None and before.spec == after.spec:
            # Its status, of which more may have been told since than was seen when it was written.
            self._podautoscalers.policies_controller.queue.add(after.metadata.key)
            return
        self._podautoscalers.policies.changed(before, after)
        self._podautoscalers.all_again()
        if after is not None:
            self._podautoscalers.policies_controller.queue.add(after.metadata.key)

    def _config_changed(self, before: objects.ConfigMap | None, after: objects.ConfigMap | None) -> None:
        self._podautoscalers.defaults.changed(after)
        self._podautoscalers.all_again()

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

    async def _keep(self, kept: ShardMap) -> None:
        try:
            await self._store.keep(kept)
        except Followed:
            self._followed.set()
            raise

    def _methods(self, service: str) -> list[pb.Method]:
        return list(self._services.methods(service))


def _address(pod: objects.Pod | None) -> str:
    """Where an activator takes calls; '' while it does not."""
    return pod.status.pod_ip if pod is not None and pod.ready else ""
