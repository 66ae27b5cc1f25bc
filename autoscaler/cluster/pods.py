"""The pods of one revision on a cluster, as the scaling loop drives them: through the replicas of a Deployment.

Replicas are written as a level, not as steps: a write that fails is repeated with what is wanted by then. A pod that shall go is given the
lowest deletion cost first, so that the ReplicaSet takes that one; a pod which the ReplicaSet spared comes back as one that waits to be stopped.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from autoscaler.cluster.naming import DELETION_COST
from autoscaler.fleet import Phase
from autoscaler.scaling_loop import Pod
from cloudstate_core.kube import objects
from cloudstate_core.kube.api import KubeError, NotFound
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import DEPLOYMENT, POD

log = logging.getLogger(__name__)

COST = "-1000"
RETRY_FIRST, RETRY_LAST = 0.1, 5.0


class ClusterPods:
    """A `PodDriver`. `replicas` = what the Deployment has now; `known` gives the revision's pods that have not ended."""

    def __init__(
        self,
        client: KubeClient,
        namespace: str,
        deployment: str,
        replicas: int,
        known: Callable[[], Iterable[objects.Pod]],
        clock: Callable[[], float],
    ) -> None:
        self.wanted = replicas
        self._written = replicas
        self._client, self._namespace, self._deployment = client, namespace, deployment
        self._known, self._clock = known, clock
        self._seen: dict[str, float] = {}
        self._victims: set[str] = set()
        self._changed = asyncio.Event()

    def pods(self) -> Sequence[Pod]:
        """Pods that live and are not being deleted, and those that the Deployment has still to make ('<deployment>#<n>')."""
        now = self._clock()
        living = [pod.metadata.name for pod in self._known() if not pod.metadata.deletion_timestamp and not pod.ended]
        self._seen = {name: self._seen.get(name, now) for name in living}
        self._victims &= set(living)
        if len(living) <= self.wanted:
            self._victims.clear()
        found = [Pod(name, Phase.STOPPING if name in self._victims else Phase.STARTING, self._seen[name]) for name in living]
        missing = self.wanted - (len(living) - len(self._victims))
        return found + [Pod(f"{self._deployment}#{n}", Phase.STARTING, now) for n in range(missing)]

    async def start(self) -> None:
        """One more replica."""
        self._want(self.wanted + 1)

    async def stop(self, name: str) -> None:
        """One replica less, this one."""
        if "#" not in name:
            try:
                cost = {"metadata": {"annotations": {DELETION_COST: COST}}}
                await self._client.merge(POD, self._namespace, name, cost)
            except NotFound:
                return
            self._victims.add(name)
        self._want(max(0, self.wanted - 1))

    def observed(self, replicas: int) -> None:
        """The Deployment's replicas as the API server tells them; somebody else's value is corrected."""
        self._written = replicas
        if replicas != self.wanted:
            self._changed.set()

    def _want(self, replicas: int) -> None:
        self.wanted = replicas
        self._changed.set()

    async def run(self) -> None:
        """Write replicas until cancelled."""
        delay = RETRY_FIRST
        while True:
            await self._changed.wait()
            self._changed.clear()
            replicas = self.wanted
            if replicas == self._written:
                continue
            try:
                await self._client.scale(DEPLOYMENT, self._namespace, self._deployment, replicas)
                self._written, delay = replicas, RETRY_FIRST
            except KubeError as error:
                log.warning("scale of %s/%s to %d: %s", self._namespace, self._deployment, replicas, error)
                await asyncio.sleep(max(delay, error.retry_after))
                delay = min(RETRY_LAST, delay * 2)
                self._changed.set()
