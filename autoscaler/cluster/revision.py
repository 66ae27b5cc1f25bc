"""One revision on a cluster: its scaling loop, its pods, and what its PodAutoscaler is told.

Pods of paired revisions count as ready once their proxy has joined; pods of plain ones once queue-proxy passes a probe or the kubelet says so.
A pod that is being deleted is drained at once, whoever deletes it. Nothing is decided on a fleet that is there already before an activator
has spoken; proxies have a while to join a new leader, in which the kubelet's word on their pods counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from autoscaler.cluster.naming import data_port, host_port, is_paired
from autoscaler.cluster.pa_status import Observed
from autoscaler.cluster.pods import ClusterPods
from autoscaler.cluster.prober import Prober
from autoscaler.cluster.services import Services, shards_by_pod
from autoscaler.coordination import CoordinationServer
from autoscaler.fleet import Phase
from autoscaler.placement.by_pod import PlainByPod
from autoscaler.revision_scaler import RevisionScaler
from autoscaler.scaler import bounded
from autoscaler.scaling_loop import Pod, ScalingLoop
from autoscaler.settings import ScaleSettings
from cloudstate_core.kube import objects
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.objects import PodAutoscaler, condition

log = logging.getLogger(__name__)

Clock = Callable[[], float]
JOIN_AGAIN = 10.0
"""Seconds that the proxies of a fleet have to join a new leader."""


class Revision:
    """Scales one revision while its PodAutoscaler is ours. `on_change` is called when its status may be another one."""

    def __init__(
        self,
        client: KubeClient,
        pa: PodAutoscaler,
        settings: ScaleSettings,
        deployment: objects.Deployment,
        services: Services,
        coordination: CoordinationServer,
        pods: Callable[[], Iterable[objects.Pod]],
        clock: Clock,
        on_change: Callable[[], None],
        tick: float,
    ) -> None:
        self.pa, self.settings = pa, settings
        self._services, self._coordination, self._known, self._on_change = services, coordination, pods, on_change
        service = services.of(pa)
        assert service is not None, f"revision {pa.metadata.key} was not added to its service"
        self._service, self._shards = service, shards_by_pod(service)
        self.pods = ClusterPods(client, deployment, pods, clock)
        self.loop = _Loop(self._scaler(), self.pods, self._shards, clock, tick, deployment.spec.replicas, on_change, self._vouched_for)
        self._prober = Prober(self._passed)
        self._passing: set[str] = set()
        self._clock = clock
        self.let_in()
        self._tasks: list[asyncio.Task[None]] = []

    def _scaler(self) -> RevisionScaler:
        scaler = RevisionScaler(self.settings)
        initialized = condition(self.pa.status.conditions, "ScaleTargetInitialized")
        active = condition(self.pa.status.conditions, "Active")
        told = active.status if active is not None and active.reason != "NotOwned" else None
        scaler.resume(initialized is not None and initialized.status == "True", told)
        return scaler

    def start(self) -> None:
        """Begin to decide and to write replicas."""
        self._tasks = [asyncio.create_task(self.loop.run()), asyncio.create_task(self.pods.run())]

    def let_in(self) -> None:
        """Proxies may join from now on."""
        self._joining_until = self._clock() + JOIN_AGAIN

    async def stop(self) -> None:
        """Decide nothing more; pods stay as they are."""
        for task in self._tasks:
            task.cancel()
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            await self._prober.close()  # also when the leader's end interrupts a revision's

    def update(self, pa: PodAutoscaler, settings: ScaleSettings) -> bool:
        """Take over what changed of the PodAutoscaler, its policy or the defaults; what was measured stays. True for other settings."""
        self.pa = pa
        reachable, changed = pa.spec.reachability != "Unreachable", settings != self.settings
        if changed:
            self.settings = settings
            self.loop.reconfigure(settings)
        if changed or reachable is not self.loop.reachable:
            self.loop.reachable = reachable
            self.loop.wake()
        return changed

    def deployment_changed(self, deployment: objects.Deployment) -> None:
        """The Deployment as last seen; replicas that somebody else has set are decided on at once."""
        if self.pods.observed(deployment):
            self.loop.wake()

    def members_changed(self) -> None:
        """A proxy has joined, left, or begun to drain: pods that are being deleted get no shards, and the rest is decided on at once."""
        for pod in self._known():
            if pod.metadata.deletion_timestamp and not pod.ended:
                self._shards.drain_pod(pod.metadata.name)
        self.loop.wake()

    def pods_known(self) -> list[objects.Pod]:
        """The revision's pods as last seen."""
        return list(self._known())

    # Pods ---------------------------------------------------------------------------------------------------------------

    def pod_changed(self, before: objects.Pod | None, after: objects.Pod | None) -> None:
        """A pod of this revision came, changed or went."""
        pod = after or before
        assert pod is not None
        name = pod.metadata.name
        if after is None or after.ended:
            self._forget(name)
            if is_paired(self.pa):
                self._coordination.process_exited(self._service.name, name)
        elif after.metadata.deletion_timestamp and not (before is not None and before.metadata.deletion_timestamp):
            self._forget(name)
            self._shards.drain_pod(name)
            self._coordination.touch(self._service.name)
        elif before is not None and (_restarts(before) != _restarts(after) or (before.ready and not after.ready)):
            self._passing.discard(name)  # it passed as another process, or before it broke
        self._tell_members()
        self.loop.wake()

    def pod_released(self, name: str) -> None:
        """Somebody has taken a pod out of this revision by its label: it lives on, and takes no calls."""
        self._forget(name)
        self._shards.drain_pod(name)
        self._coordination.touch(self._service.name)
        self._tell_members()
        self.loop.wake()

    def _forget(self, name: str) -> None:
        self._prober.forget(name)
        self._passing.discard(name)

    def _passed(self, name: str) -> None:
        self._passing.add(name)
        self._tell_members()
        self.loop.wake()

    def _tell_members(self) -> None:
        """Tell activators which pods of a plain revision take calls, and probe the others."""
        if not isinstance(self._shards, PlainByPod):
            return
        port, serving = data_port(self.pa), dict[str, str]()
        living = [pod for pod in self._known() if pod.status.pod_ip and not pod.metadata.deletion_timestamp and not pod.ended]
        self._shards.draining &= {pod.metadata.name for pod in living}
        for pod in living:
            name, address = pod.metadata.name, host_port(pod.status.pod_ip, port)
            if not pod.ready and name not in self._passing:
                self._prober.follow(name, address)
                continue
            self._prober.forget(name)
            if name not in self._shards.draining:
                serving[name] = address
        self._services.set_plain_members(self._service, self.pa.metadata.name, serving)

    # Status -------------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> int:
        """Pods that take calls."""
        return sum(self.loop.is_ready(pod) for pod in self.pods.pods())

    def observed(self, network: bool) -> Observed:
        """What the status is made of."""
        decision, s = self.loop.state.decision, self.settings
        want = -1
        if decision is not None:
            # Knative tells zero while the last pod waits out its grace.
            may_be_zero = s.enable_zero and bounded(0, s.minimum, s.maximum, s.initial, True, self.loop.reachable) == 0
            want = 0 if decision.active == "False" and may_be_zero else decision.replicas_wanted
        return Observed(want, self.ready, s.minimum, s.initial, network, replicas=self.pods.wanted)

    def _vouched_for(self, name: str) -> bool:
        """True for a pod that the kubelet calls ready, while its proxy may still be on its way to this leader."""
        if not is_paired(self.pa) or self._clock() >= self._joining_until:
            return False
        return any(pod.metadata.name == name and pod.ready for pod in self._known())


def _restarts(pod: objects.Pod) -> int:
    return sum(container.restart_count for container in pod.status.container_statuses)


class _Loop(ScalingLoop):
    """Tells when something was decided; decides nothing on pods that are there before any activator has spoken."""

    def __init__(
        self,
        scaler: RevisionScaler,
        driver: ClusterPods,
        shards: object,
        clock: Clock,
        tick: float,
        replicas: int,
        on_change: Callable[[], None],
        vouched_for: Callable[[str], bool],
    ) -> None:
        super().__init__(scaler, driver, shards, clock, tick, replicas)  # type: ignore[arg-type]
        self._on_change, self._vouched_for = on_change, vouched_for
        self._told: tuple[object, ...] = ()
        self._spoken_to = False

    def heard(self, activator: str) -> None:
        """An activator has spoken."""
        super().heard(activator)
        self._spoken_to = True

    def is_ready(self, pod: Pod) -> bool:
        """True for a pod that takes calls and is not about to leave."""
        if super().is_ready(pod):
            return True
        return pod.phase is not Phase.STOPPING and pod.name not in self.state.draining and self._vouched_for(pod.name)

    async def tick(self) -> None:
        """Decide, then tell when the outcome is another one."""
        if not self._spoken_to and self._driver.pods():
            return  # statistics that have not come yet are no absence of load
        await super().tick()
        decision = self.state.decision
        outcome = (decision and (decision.replicas_wanted, decision.active, decision.in_panic), self.state.ready)
        if outcome != self._told:
            self._told = outcome
            self._on_change()
