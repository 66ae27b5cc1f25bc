"""Pods through a Deployment: cases one by one, then a state machine with a model of the ReplicaSet that takes not-ready pods first."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from autoscaler.cluster.pods import ClusterPods
from autoscaler.fleet import Phase, PodView, step
from cloudstate_core.kube import kinds, objects
from cloudstate_core.kube.api import KubeError, TooManyRequests

from .leading import Watched, deployment_body
from .world import NAMESPACE, Kube, pod

NAME = "cart-1-deployment"
COST = "controller.kubernetes.io/pod-deletion-cost"


@dataclass
class Member:
    """A pod of the model."""

    ready: bool = False
    owned: int = 0
    cost: int = 0
    age: int = 0


@dataclass
class Cluster:
    """A Deployment and its pods; `reconcile` does what the ReplicaSet controller would."""

    replicas: int = 1
    generation: int = 1
    pods: dict[str, Member] = field(default_factory=dict)
    fail: Callable[[str], KubeError | None] = lambda call: None
    calls: list[str] = field(default_factory=list)
    names: Any = field(default_factory=itertools.count)

    async def scale(self, kind: Any, namespace: str, name: str, replicas: int) -> None:
        self._may("scale")
        self.set(replicas)

    async def merge(self, kind: Any, namespace: str, name: str, body: Any) -> None:
        self._may(f"mark {name}")
        if name not in self.pods:
            raise KubeError(404, "NotFound", name)
        self.pods[name].cost = int(body["metadata"]["annotations"][COST])

    async def delete(self, kind: Any, namespace: str, name: str) -> None:
        self._may(f"delete {name}")
        self.pods.pop(name, None)

    def _may(self, call: str) -> None:
        if (error := self.fail(call)) is not None:
            raise error
        self.calls.append(call)

    def set(self, replicas: int) -> None:
        if replicas != self.replicas:
            self.replicas, self.generation = replicas, self.generation + 1

    def reconcile(self) -> list[tuple[str, Member]]:
        """Create what is missing or delete what is too many; what was deleted."""
        while len(self.pods) < self.replicas:
            number = next(self.names)
            self.pods[f"p{number}"] = Member(age=-number)
        order = sorted(self.pods, key=lambda name: (self.pods[name].ready, self.pods[name].cost, self.pods[name].age))
        return [(name, self.pods.pop(name)) for name in order[: len(self.pods) - self.replicas]]

    @property
    def deployment(self) -> objects.Deployment:
        metadata = objects.Metadata(name=NAME, namespace=NAMESPACE, generation=self.generation)
        return objects.Deployment(metadata, objects.ScaleSpec(self.replicas))

    def known(self) -> list[objects.Pod]:
        return [pod(name, ready=m.ready, cost=m.cost) for name, m in self.pods.items()]

    def up(self, *names: str) -> None:
        for name in names:
            self.pods[name].ready = True


async def settle() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


class Driven:
    """A driver that writes in the background."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.now = cluster, 0.0
        self.driver = ClusterPods(cluster, cluster.deployment, cluster.known, lambda: self.now)  # type: ignore[arg-type]
        self.task = asyncio.create_task(self.driver.run())

    async def settle(self) -> None:
        await settle()
        self.cluster.reconcile()
        self.driver.observed(self.cluster.deployment)
        await settle()

    def phases(self) -> dict[str, Phase]:
        return {p.name: p.phase for p in self.driver.pods()}


@pytest.fixture
async def three() -> Any:
    cluster = Cluster(replicas=3)
    cluster.reconcile()
    cluster.up("p0", "p1", "p2")
    driven = Driven(cluster)
    yield driven
    driven.task.cancel()
    await asyncio.gather(driven.task, return_exceptions=True)


async def test_what_the_deployment_has_still_to_make_counts(three: Driven) -> None:
    await three.driver.start()
    await three.driver.start()
    assert list(three.phases()) == ["p0", "p1", "p2", f"{NAME}#0", f"{NAME}#1"]
    await three.driver.stop(f"{NAME}#1")
    await three.settle()
    assert three.cluster.replicas == 4
    assert three.cluster.calls == ["scale"]


async def test_the_pod_that_shall_go_is_marked_before_replicas_are_lowered(three: Driven) -> None:
    await three.driver.stop("p1")
    assert three.phases()["p1"] is Phase.STOPPING
    await settle()
    assert three.cluster.calls == ["mark p1", "scale"]
    assert [name for name, _ in three.cluster.reconcile()] == ["p1"]


async def test_nothing_is_written_when_nothing_changes(three: Driven) -> None:
    for _ in range(3):
        await three.settle()
    three.cluster.generation += 1  # somebody has edited the template
    await three.settle()
    assert three.cluster.calls == []


async def test_a_pod_named_long_ago_that_stayed_is_not_taken_instead_of_the_one_named_now(three: Driven) -> None:
    three.cluster.pods["p0"].cost = -1000  # by a leader that went before it lowered the replicas
    await three.driver.stop("p2")
    await three.settle()
    assert set(three.cluster.pods) == {"p0", "p1"}


async def test_a_victim_that_was_spared_goes_and_is_replaced(three: Driven) -> None:
    three.cluster.pods["p1"].ready = False
    await three.driver.stop("p2")
    await three.settle()
    assert set(three.cluster.pods) == {"p0", "p2"}, "the pod that is not ready went first"
    assert three.phases()["p2"] is not Phase.STOPPING, "the loop sees that it is still to be stopped"
    await three.driver.stop("p2")
    await three.driver.start()
    await three.settle()
    assert set(three.cluster.pods) == {"p0", "p3"}
    assert three.cluster.replicas == 2


async def test_replicas_set_by_somebody_else_are_taken_up(three: Driven) -> None:
    three.cluster.set(5)
    assert three.driver.observed(three.cluster.deployment)
    assert three.driver.wanted == 5
    three.cluster.set(1)
    assert three.driver.observed(three.cluster.deployment)
    assert [p is Phase.STOPPING for p in three.phases().values()].count(False) == 1
    await three.settle()
    assert three.cluster.calls == []


async def test_a_deployment_seen_late_is_not_taken_for_somebody_else_s(three: Driven) -> None:
    seen = []
    for _ in range(2):
        await three.driver.start()
        await settle()
        seen.append(three.cluster.deployment)
    assert [three.driver.observed(d) for d in seen] == [False, False]
    assert three.driver.wanted == 5
    await three.settle()
    assert three.cluster.replicas == 5


async def test_an_edit_right_after_a_write_is_not_lost(three: Driven) -> None:
    await three.driver.start()
    await settle()
    three.cluster.set(9)
    assert three.driver.observed(three.cluster.deployment)
    assert three.driver.wanted == 9


async def test_a_write_that_fails_is_repeated_with_what_is_wanted_by_then(three: Driven) -> None:
    refused = [KubeError(0, "Connection", "gone"), TooManyRequests(429, "TooManyRequests", "later", 0.05)]
    three.cluster.fail = lambda call: refused.pop() if call == "scale" and refused else None
    await three.driver.start()
    await settle()
    await three.driver.start()
    deadline = asyncio.get_running_loop().time() + 20
    while three.cluster.replicas != 5:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0.01)
    assert three.cluster.calls == ["scale"]


async def test_a_pod_that_cannot_be_marked_is_not_made_room_for(three: Driven) -> None:
    three.cluster.fail = lambda call: KubeError(500, "InternalError", "no") if call.startswith("mark") else None
    await three.driver.stop("p1")
    assert three.driver.wanted == 3
    three.cluster.fail = lambda call: KubeError(404, "NotFound", "gone") if call.startswith("mark") else None
    await three.driver.stop("p1")
    assert three.driver.wanted == 3


async def test_a_deployment_of_the_api_server_in_memory() -> None:
    """The real calls: scale part and merge patch."""
    kube = Kube()
    await kube.create(kinds.DEPLOYMENT, NAMESPACE, {"metadata": {"name": NAME}, "spec": {"replicas": 2}})
    await kube.create(kinds.POD, NAMESPACE, {"metadata": {"name": "a"}})
    known = [pod("a"), pod("b")]
    driver = ClusterPods(kube, kube.read(kinds.DEPLOYMENT, NAMESPACE, NAME), lambda: known, lambda: 0.0)  # type: ignore[arg-type]
    task = asyncio.create_task(driver.run())
    await driver.stop("a")
    await settle()
    task.cancel()
    assert kube.read(kinds.POD, NAMESPACE, "a").metadata.annotations == {COST: "-1000"}
    assert kube.read(kinds.DEPLOYMENT, NAMESPACE, NAME).spec.replicas == 1


# Random histories -------------------------------------------------------------------------------------------------------


class Histories(RuleBasedStateMachine):
    """A loop that wants a number of pods, a driver, a ReplicaSet, people with kubectl, and an API server that fails at times."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster, self.want, self.now, self.broken = Cluster(replicas=2), 2, 0.0, False
        self.cluster.reconcile()
        self.cluster.fail = lambda call: KubeError(503, "ServiceUnavailable", call) if self.broken else None
        self.loop = asyncio.new_event_loop()
        self.draining: dict[str, float] = {}
        self.edited = False
        self.seen = self.cluster.deployment
        self.driver = ClusterPods(self.cluster, self.seen, self.cluster.known, lambda: self.now)  # type: ignore[arg-type]
        self.task = self.loop.create_task(self.driver.run())

    def teardown(self) -> None:
        self.broken = False
        self.task.cancel()
        self.loop.run_until_complete(asyncio.gather(self.task, return_exceptions=True))
        self.loop.close()

    def run(self) -> None:
        """Let the driver write; what it waits for after a failure is skipped."""
        self.loop.run_until_complete(settle())
        if self.task.done():
            self.task.result()

    def tick(self) -> None:
        """What the scaling loop does."""
        self.now += 2.0
        pods = self.driver.pods()
        self.draining = {p.name: self.draining[p.name] for p in pods if p.name in self.draining}
        views = []
        for p in pods:
            m = self.cluster.pods.get(p.name, Member())
            phase = Phase.READY if p.phase is Phase.STARTING and m.ready else p.phase
            views.append(PodView(p.name, phase, p.started_at, float(m.owned), m.owned, self.draining.get(p.name)))
        plan = step(self.now, self.want, views)

        async def act() -> None:
            for name in plan.stop:
                await self.driver.stop(name)
            for name in plan.drain:
                self.draining[name] = self.now
                if name in self.cluster.pods:
                    self.cluster.pods[name].owned = 0
            for _ in range(plan.start):
                await self.driver.start()

        self.loop.run_until_complete(act())

    @rule()
    def decide(self) -> None:
        self.tick()
        self.run()

    @rule(want=st.integers(0, 5))
    def load_changes(self, want: int) -> None:
        self.want = want

    @rule()
    def controller_acts(self) -> None:
        named = [name for name, m in self.cluster.pods.items() if m.cost < 0 and name in self.draining]
        wanted_fewer = self.cluster.replicas < len(self.cluster.pods)
        gone = self.cluster.reconcile()
        left = [name for name in named if name in self.cluster.pods and self.cluster.pods[name].ready]
        if wanted_fewer and not self.edited:
            for name, member in gone:
                assert not (member.owned and left), f"{name} owned shards, {left} were named and stayed"
        if len(self.cluster.pods) == self.cluster.replicas == self.driver.wanted:
            self.edited = False

    @rule()
    def watch_catches_up(self) -> None:
        self.seen = self.cluster.deployment
        self.driver.observed(self.seen)
        self.run()

    @rule(data=st.data())
    def pod_becomes_ready_or_not(self, data: st.DataObject) -> None:
        if self.cluster.pods:
            name = data.draw(st.sampled_from(sorted(self.cluster.pods)))
            member = self.cluster.pods[name]
            member.ready = not member.ready
            member.owned = 3 if member.ready and name not in self.draining else 0

    @rule(replicas=st.integers(0, 6))
    def somebody_scales(self, replicas: int) -> None:
        self.cluster.set(replicas)
        self.edited = True

    @rule(data=st.data())
    def somebody_deletes_a_pod(self, data: st.DataObject) -> None:
        if self.cluster.pods:
            del self.cluster.pods[data.draw(st.sampled_from(sorted(self.cluster.pods)))]

    @rule()
    def server_breaks(self) -> None:
        self.broken = True

    @precondition(lambda self: self.broken)
    @rule()
    def server_is_back(self) -> None:
        self.broken = False

    @rule()
    def all_settles(self) -> None:
        """Once nobody interferes, the cluster comes to what the loop wants, and then nothing is written any more."""
        self.broken = False
        self._let_a_failed_write_be_repeated()
        for _ in range(30):
            self.cluster.reconcile()
            for member in self.cluster.pods.values():
                member.ready = True
            self.driver.observed(self.cluster.deployment)
            self.run()
            self.tick()
            self.run()
        assert self.cluster.replicas == len(self.cluster.pods) == self.want == self.driver.wanted
        assert not any(name in self.draining for name in self.cluster.pods)
        self.cluster.calls.clear()
        self.tick()
        self.run()
        assert self.cluster.calls == []
        self.edited = False

    def _let_a_failed_write_be_repeated(self) -> None:
        """The driver sleeps after a failure: begin its task anew instead of waiting, as a test of states and not of time."""
        self.task.cancel()
        self.loop.run_until_complete(asyncio.gather(self.task, return_exceptions=True))
        self.driver._changed.set()
        self.task = self.loop.create_task(self.driver.run())

    @invariant()
    def no_pod_is_named_twice(self) -> None:
        names = [p.name for p in self.driver.pods()]
        assert len(names) == len(set(names))


TestHistories = Histories.TestCase
TestHistories.settings = hypothesis_settings(max_examples=150, stateful_step_count=40, deadline=None)


async def test_a_deployment_made_again_is_looked_at_although_its_generation_is_the_same() -> None:
    """As a list tells it that was read after the watch had broken."""
    kube = Kube()
    deployment = objects.Deployment(objects.Metadata(NAME, NAMESPACE, uid="old", generation=1), objects.ScaleSpec(1))
    driver = ClusterPods(kube, deployment, list, lambda: 0.0)  # type: ignore[arg-type]
    again = objects.Deployment(objects.Metadata(NAME, NAMESPACE, uid="new", generation=1), objects.ScaleSpec(3))
    assert driver.observed(again)
    assert driver.wanted == 3


@pytest.mark.parametrize("fails", [False, True], ids=["under way", "failed"])
async def test_a_change_of_something_else_of_the_deployment_is_no_change_of_its_replicas(fails: bool) -> None:
    """Knative changes pods' templates; what this leader has set may not be there yet then."""
    kube = Watched()
    await kube.begin(deployment_body(replicas=3), kinds.DEPLOYMENT)
    before = kube.read(kinds.DEPLOYMENT, NAMESPACE, NAME)
    driver = ClusterPods(kube, before, list, lambda: 0.0)  # type: ignore[arg-type]
    gate = kube.hold(f"scale deployments/{NAME}")
    errors = [KubeError(500, "InternalError", "no")] if fails else []
    kube.fail = lambda call: errors.pop() if errors and call.startswith("scale") else None
    running = asyncio.create_task(driver.run())
    await driver.start()
    await settle()
    if fails:
        gate.set()
        await settle()
    await kube.begin({**deployment_body(replicas=3), "spec": {"replicas": 3, "template": {"another": "one"}}}, kinds.DEPLOYMENT)
    assert not driver.observed(kube.read(kinds.DEPLOYMENT, NAMESPACE, NAME))
    assert driver.wanted == 4
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
