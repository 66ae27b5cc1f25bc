"""The pods of one revision on a cluster, as the scaling loop drives them: through the replicas of a Deployment.

Replicas are written as a level, not as steps: a write that fails is repeated with what is wanted by then. A pod that shall go is given the
lowest deletion cost of all first, so that the ReplicaSet takes that one. A ReplicaSet prefers a pod that is not ready whatever its cost: the
pod it spared thereby is deleted. Replicas that somebody else has set become what is wanted; the loop goes on from there, so that pods which
are too many leave as every pod does, drained first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from autoscaler.cluster.naming import DELETION_COST
from autoscaler.fleet import Phase
from autoscaler.scaling_loop import Pod
from cloudstate_core.kube import objects
from cloudstate_core.kube.api import KubeError, NotFound
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.kinds import DEPLOYMENT, POD

log = logging.getLogger(__name__)

COST = -1000
"""Deletion cost of the first pod that shall go; the next ones cost less, so that a pod which was named long ago and stayed is not taken first."""
RETRY_FIRST, RETRY_LAST = 0.1, 5.0


class ClusterPods:
    """A `PodDriver`. `known` gives the revision's pods; `wanted` replicas are those of the Deployment at first."""

    def __init__(
        self, client: KubeClient, deployment: objects.Deployment, known: Callable[[], Iterable[objects.Pod]], clock: Callable[[], float]
    ) -> None:
        self.wanted = deployment.spec.replicas
        self._client, self._namespace, self._deployment = client, deployment.metadata.namespace, deployment.metadata.name
        self._known, self._clock = known, clock
        self._has: int | None = self.wanted
        """Replicas of the Deployment; None = that cannot be known now."""
        self._seen = deployment.metadata.uid, deployment.metadata.generation
        self._told = self.wanted
        """Replicas of the Deployment as last seen."""
        self._sent: deque[int] = deque(maxlen=100)
        """Replicas that were written and have not been seen yet."""
        self._first_seen: dict[str, float] = {}
        self._victims: set[str] = set()
        self._marked: set[str] = set()
        self._changed = asyncio.Event()

    def pods(self) -> Sequence[Pod]:
        """Pods that live and are not being deleted, and those that the Deployment has still to make ('<deployment>#<n>')."""
        now, living = self._clock(), self._living()
        self._first_seen = {name: self._first_seen.get(name, now) for name in living}
        self._victims &= living.keys()
        self._marked &= living.keys()
        if len(living) <= self.wanted:
            self._victims.clear()
        stopping = self._victims | set(self._surplus(living))
        found = [Pod(name, Phase.STOPPING if name in stopping else Phase.STARTING, at) for name, at in self._first_seen.items()]
        missing = self.wanted - (len(living) - len(stopping))
        return found + [Pod(f"{self._deployment}#{n}", Phase.STARTING, now) for n in range(missing)]

    def _living(self) -> dict[str, objects.Pod]:
        return {pod.metadata.name: pod for pod in self._known() if not pod.metadata.deletion_timestamp and not pod.ended}

    def _surplus(self, living: dict[str, objects.Pod]) -> list[str]:
        """Pods beyond what is wanted that nobody named: those that the ReplicaSet will probably take."""
        others = [name for name in living if name not in self._victims]
        others.sort(key=lambda name: (living[name].ready, _cost(living[name]), -self._first_seen[name]))
        return others[: max(0, len(others) - self.wanted)]

    async def start(self) -> None:
        """One more replica."""
        self._want(self.wanted + 1)

    async def stop(self, name: str) -> None:
        """One replica less, this one. Tried again by the caller when the API server does not take it: the pod is still there then."""
        if "#" not in name:
            try:
                await self._name_victim(name)
            except NotFound:
                return
            except KubeError as error:
                log.warning("pod %s/%s cannot be stopped yet: %s", self._namespace, name, error)
                return
        self._want(max(0, self.wanted - 1))

    async def _name_victim(self, name: str) -> None:
        """Have the ReplicaSet take this pod; delete it if it was named before and another one was taken in its place."""
        living = self._living()
        if name in self._marked and len(living) <= self.wanted:
            await self._client.delete(POD, self._namespace, name)
        else:
            cost = min([COST + 1, *map(_cost, living.values())]) - 1
            await self._client.merge(POD, self._namespace, name, {"metadata": {"annotations": {DELETION_COST: str(cost)}}})
            self._marked.add(name)
        self._victims.add(name)

    def observed(self, deployment: objects.Deployment) -> bool:
        """The Deployment as the API server tells it; True when somebody else has changed its replicas."""
        seen = deployment.metadata.uid, deployment.metadata.generation  # one that was made again counts from the start
        if seen == self._seen:
            return False
        self._seen, replicas = seen, deployment.spec.replicas
        ours = replicas in self._sent
        while ours and self._sent.popleft() != replicas:
            pass
        # The same as before: something else of it was changed, while ours is perhaps on its way.
        foreign = not ours and replicas not in (self._has, self._told)
        self._has = self._told = replicas
        if foreign:
            log.warning("%s/%s: somebody has set %d replicas", self._namespace, self._deployment, replicas)
            self.wanted = replicas
        elif replicas != self.wanted:
            self._changed.set()
        return foreign

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
            if replicas == self._has:
                continue
            # Before the call: what is seen of the Deployment meanwhile is newer.
            self._has = replicas
            self._sent.append(replicas)
            try:
                await self._client.scale(DEPLOYMENT, self._namespace, self._deployment, replicas)
                delay = RETRY_FIRST
            except KubeError as error:
                log.warning("scale of %s/%s to %d: %s", self._namespace, self._deployment, replicas, error)
                self._has = None
                await asyncio.sleep(max(delay, error.retry_after))
                delay = min(RETRY_LAST, delay * 2)
                self._changed.set()


def _cost(pod: objects.Pod) -> int:
    """What it costs to delete a pod, as the ReplicaSet reads it."""
    try:
        return int(pod.metadata.annotations.get(DELETION_COST, "0"))
    except ValueError:
        return 0
