"""One revision on a cluster: its scaling loop, its pods, and what its PodAutoscaler is told.

Pods of paired revisions count as ready once their proxy has joined; pods of plain ones once queue-proxy passes a probe or the kubelet says so.
A pod that is being deleted is drained at once, whoever deletes it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from autoscaler.cluster.naming import data_port, is_paired, service_of
from autoscaler.cluster.pa_status import Observed
from autoscaler.cluster.pods import ClusterPods
from autoscaler.cluster.prober import Prober
from autoscaler.cluster.services import Services, shards_by_pod
from autoscaler.coordination import CoordinationServer
from autoscaler.placement.by_pod import PlainByPod
from autoscaler.revision_scaler import RevisionScaler
from autoscaler.scaling_loop import ScalingLoop
from autoscaler.settings import ScaleSettings
from cloudstate_core.kube import objects
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.objects import PodAutoscaler, condition

log = logging.getLogger(__name__)

Clock = Callable[[], float]


class Revision:
    """Scales one revision while its PodAutoscaler is ours. `on_change` is called when its status may be another one."""

    def __init__(
        self,
        client: KubeClient,
        pa: PodAutoscaler,
        settings: ScaleSettings,
        replicas: int,
        services: Services,
        coordination: CoordinationServer,
        pods: Callable[[], Iterable[objects.Pod]],
        clock: Clock,
        on_change: Callable[[], None],
        tick: float,
    ) -> None:
        self.pa, self.settings = pa, settings
        self._services, self._coordination, self._known, self._on_change = services, coordination, pods, on_change
        service = services.get(service_of(pa))
        assert service is not None, f"revision {pa.metadata.key} was not added to its service"
        self._shards = shards_by_pod(service)
        self.pods = ClusterPods(client, pa.metadata.namespace, pa.spec.scale_target_ref.name, replicas, pods, clock)
        self.loop = _Loop(self._scaler(), self.pods, self._shards, clock, tick, replicas, on_change)
        self._prober = Prober(self._passed)
        self._passing: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    def _scaler(self) -> RevisionScaler:
        scaler = RevisionScaler(self.settings)
        initialized = condition(self.pa.status.conditions, "ScaleTargetInitialized")
        active = condition(self.pa.status.conditions, "Active")
        scaler.resume(initialized is not None and initialized.status == "True", active.status if active is not None else None)
        return scaler

    def start(self) -> None:
        """Begin to decide and to write replicas."""
        self._tasks = [asyncio.create_task(self.loop.run()), asyncio.create_task(self.pods.run())]

    async def stop(self) -> None:
        """Decide nothing more; pods stay as they are."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._prober.close()

    def update(self, pa: PodAutoscaler, settings: ScaleSettings) -> None:
        """Take over what changed of the PodAutoscaler, its policy or the defaults; what was measured stays."""
        self.pa = pa
        self.loop.reachable = pa.spec.reachability != "Unreachable"
        if settings != self.settings:
            self.settings = settings
            self.loop.reconfigure(settings)
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
                self._coordination.process_exited(service_of(self.pa), name)
        elif after.metadata.deletion_timestamp and not (before is not None and before.metadata.deletion_timestamp):
            self._forget(name)
            self._shards.drain_pod(name)
            self._coordination.touch(service_of(self.pa))
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
        port, serving = data_port(self.pa), {}
        living = [pod for pod in self._known() if pod.status.pod_ip and not pod.metadata.deletion_timestamp and not pod.ended]
        self._shards.draining &= {pod.metadata.name for pod in living}
        for pod in living:
            name, address = pod.metadata.name, f"{pod.status.pod_ip}:{port}"
            if not pod.ready and name not in self._passing:
                self._prober.follow(name, address)
                continue
            self._prober.forget(name)
            if name not in self._shards.draining:
                serving[name] = address
        self._services.set_plain_members(service_of(self.pa), self.pa.metadata.name, serving)

    # Status -------------------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> int:
        """Pods that take calls."""
        return sum(self.loop.is_ready(pod) for pod in self.pods.pods())

    def observed(self, network: bool, foreign: bool) -> Observed:
        """What the status is made of."""
        decision = self.loop.state.decision
        want = -1
        if decision is not None:
            # Knative tells zero while the last pod waits out its grace.
            want = 0 if decision.active == "False" else decision.replicas_wanted
        return Observed(want, self.ready, self.settings.minimum, self.settings.initial, network, foreign)


class _Loop(ScalingLoop):
    """Tells when something was decided."""

    def __init__(
        self,
        scaler: RevisionScaler,
        driver: ClusterPods,
        shards: object,
        clock: Clock,
        tick: float,
        replicas: int,
        on_change: Callable[[], None],
    ) -> None:
        super().__init__(scaler, driver, shards, clock, tick, replicas)  # type: ignore[arg-type]
        self._on_change = on_change
        self._told: tuple[object, ...] = ()

    async def tick(self) -> None:
        """Decide, then tell when the outcome is another one."""
        await super().tick()
        decision = self.state.decision
        outcome = (decision and (decision.replicas_wanted, decision.active, decision.in_panic), self.state.ready)
        if outcome != self._told:
            self._told = outcome
            self._on_change()
