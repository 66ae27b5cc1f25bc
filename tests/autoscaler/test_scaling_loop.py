"""The loop of one revision on a fake clock: decisions become pods, shards leave before pods do, silence decides nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from autoscaler.fleet import Phase
from autoscaler.revision_scaler import RevisionScaler
from autoscaler.scaling_loop import SILENCE, Pod, ScalingLoop
from autoscaler.settings import ScaleSettings, effective
from cloudstate_core.policy import parse_policy
from tests.autoscaler.cancelling import ends_all_the_same

PREFIX = "autoscaling.knative.dev/"
ONE_EACH = {f"{PREFIX}window": "6s", f"{PREFIX}target": "1", f"{PREFIX}target-utilization-percentage": "100"}


class World:
    """Driver, shards and clock in one; a pod is a member as soon as it is started."""

    def __init__(self, settings: ScaleSettings | None = None, tick: float = 2.0) -> None:
        self.now, self.started, self.at_function = 100.0, 0, 0.0
        self.running: dict[str, Pod] = {}
        self.shards: dict[str, int] = {}
        self.log: list[tuple[str, str]] = []
        self.unknown: set[str] = set()
        """Pods that are no members yet."""
        self.scaler = RevisionScaler(settings or effective(ONE_EACH, None))
        self.loop = ScalingLoop(self.scaler, self, self, lambda: self.now, tick)

    def pods(self) -> list[Pod]:
        return list(self.running.values())

    async def start(self) -> None:
        self.started += 1
        name = f"pod-{self.started}"
        self.running[name], self.shards[name] = Pod(name, Phase.STARTING, self.now), 8
        self.log.append(("start", name))

    async def stop(self, name: str) -> None:
        del self.running[name]
        self.log.append(("stop", name))

    def load_of_pod(self, pod: str) -> float:
        return 1.0

    def shards_of_pod(self, pod: str) -> int:
        return self.shards[pod]

    def is_member(self, pod: str) -> bool:
        return pod in self.running and pod not in self.unknown

    def function_concurrency_of_pod(self, pod: str) -> float:
        return self.at_function

    def drain_pod(self, pod: str) -> None:
        if pod not in self.unknown:
            self.log.append(("drain", pod))

    def joins_late(self, pod: str) -> None:
        self.unknown.add(pod)
        self.shards[pod] = 0

    def has_joined(self, pod: str) -> None:
        self.unknown.discard(pod)
        self.shards[pod] = 8

    def did(self, what: str) -> list[str]:
        return [name for kind, name in self.log if kind == what]

    async def seconds(self, count: int, concurrency: float | None, hands_over: bool = True) -> None:
        """Some seconds with a report each (None: with none), and a tick; drained pods lose their shards if it `hands_over`."""
        for _ in range(count):
            self.now += 1.0
            if concurrency is not None:
                self.loop.heard("a")
                if concurrency:
                    self.loop.on_stats("a", concurrency, 1)
            await self.loop.tick()
            for name in self.loop.state.draining if hands_over else ():
                self.shards[name] = 0


async def test_load_brings_pods_and_its_end_takes_them_away_after_their_shards() -> None:
    world = World()
    await world.seconds(8, 4.0)
    assert len(world.running) == 4
    await world.seconds(12, 0.0)
    assert len(world.did("stop")) >= 3
    assert all(world.log.index(("drain", name)) < world.log.index(("stop", name)) for name in world.did("stop"))


async def test_a_pod_that_still_owns_shards_is_not_stopped() -> None:
    world = World()
    await world.seconds(8, 4.0)
    await world.seconds(12, 0.0, hands_over=False)
    assert world.did("drain")
    assert not world.did("stop")


async def test_a_pod_that_becomes_a_member_after_it_was_chosen_to_leave_is_drained_all_the_same() -> None:
    """The one that is not ready is chosen first, and may join before it is stopped: then it has been given shards."""
    world = World()
    await world.seconds(3, 4.0)
    late = list(world.running)[-1]
    world.joins_late(late)
    while late not in world.loop.state.draining:
        await world.seconds(1, 0.0, hands_over=False)
    assert late not in world.did("drain"), "nobody knows it yet"
    world.has_joined(late)
    await world.seconds(1, 0.0, hands_over=False)
    assert late in world.did("drain")
    assert late not in world.did("stop")


async def test_lost_statistics_are_not_absence_of_load() -> None:
    world = World()
    await world.seconds(8, 4.0)
    await world.seconds(int(SILENCE) + 30, None)
    assert not world.did("drain")
    await world.seconds(12, 0.0)
    assert world.did("drain"), "once an activator says that all is idle, it counts"


RATE = {f"{PREFIX}metric": "rps", f"{PREFIX}target": "1", f"{PREFIX}target-utilization-percentage": "100", f"{PREFIX}window": "6s"}


async def test_a_silence_says_nothing_about_a_rate() -> None:
    """The same requests as before, told by an activator that was cut off: no reason for a pod to leave."""
    world = World(effective(RATE, None))
    for second in range(60):
        world.now += 1.0
        if not 20 <= second < 50:
            world.loop.heard("a")
            world.loop.on_stats("a", 0.5, 4)
        await world.loop.tick()
    assert (len(world.running), world.did("drain")) == (4, [])


async def test_a_poke_between_two_messages_does_not_change_a_rate() -> None:
    """What was told in the moment between two ticks were the requests of a second, and where nothing was told there were as many as before."""
    world = World(effective(RATE, None))
    for _ in range(20):
        world.now += 0.9
        await world.loop.tick()
        world.now += 0.1
        world.loop.heard("a")
        world.loop.on_stats("a", 0.5, 4)
        await world.loop.tick()
    assert (len(world.running), world.did("drain")) == (4, [])


async def test_a_rate_is_taken_over_the_time_that_has_passed() -> None:
    world = World(effective(RATE, None))
    await world.seconds(8, 0.5)
    assert len(world.running) == 1, "one request each second is one request a second, however long a tick is meant to be"


def policy(**spec: Any) -> ScaleSettings:
    document = {"apiVersion": "autoscaling.cloudstate.io/v1alpha1", "kind": "AutoscalingPolicy", "metadata": {"name": "p"}, "spec": spec}
    return effective({}, parse_policy(document))


async def test_commands_at_the_functions_of_all_pods_are_a_demand() -> None:
    world = World(policy(metrics=[{"type": "FunctionConcurrency", "target": 2}], windows={"stable": "6s"}))
    await world.seconds(2, 0.5)
    assert len(world.running) == 1, "a request brings the first pod: it has nothing to tell before"
    world.at_function = 3.0
    await world.seconds(1, 0.0)
    assert len(world.running) == 2
    world.at_function = 0.0
    await world.seconds(60, 0.0)
    assert world.running == {}


class Ticks(World):
    """Counts its ticks while the loop runs by itself."""

    def __init__(self, settings: ScaleSettings) -> None:
        super().__init__(settings, tick=0.001)
        self.ticks = 0

    def pods(self) -> list[Pod]:
        self.ticks += 1
        self.now += 1.0
        return super().pods()

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + 30.0
        while not condition():
            assert time.monotonic() < deadline, f"not reached: {what}"
            await asyncio.sleep(0.001)


ZERO = {"metrics": [{"type": "Concurrency", "target": 1}], "windows": {"stable": "6s"}, "scaleToZero": {"gracePeriod": "1s"}}


def a_request(world: Ticks) -> None:
    world.loop.on_stats("a", 0.0, 1)


def a_minimum(world: Ticks) -> None:
    world.loop.reconfigure(policy(**ZERO, scale={"min": 1}))


def a_pod(world: Ticks) -> None:
    world.running["foreign"], world.shards["foreign"] = Pod("foreign", Phase.STARTING, world.now), 0
    world.loop.wake()


@pytest.mark.parametrize("event", [a_request, a_minimum, a_pod])
async def test_a_revision_at_zero_does_not_tick_until_something_happens(event: Callable[[Ticks], None]) -> None:
    world = Ticks(policy(**ZERO, scale={"initial": 0}))
    task = asyncio.create_task(world.loop.run())
    await world.until(lambda: world.ticks == 1, "the first tick")
    await asyncio.sleep(0.05)
    assert world.ticks == 1
    event(world)
    await world.until(lambda: world.ticks >= 3 and world.running, "ticks again, with a pod")
    task.cancel()


async def test_a_revision_that_a_route_leads_to_again_gets_its_minimum() -> None:
    world = Ticks(policy(**ZERO, scale={"min": 2, "initial": 0}))
    world.loop.reachable = False
    task = asyncio.create_task(world.loop.run())
    await world.until(lambda: world.scaler.resting, "a rest")
    before = world.ticks
    await asyncio.sleep(0.05)
    assert (world.ticks, world.running) == (before, {})
    world.loop.reachable = True
    await world.until(lambda: len(world.running) == 2, "the minimum")
    task.cancel()


async def test_a_rate_after_a_rest_is_taken_over_a_tick_and_not_over_the_rest() -> None:
    metrics = [{"type": "RequestsPerSecond", "target": 10}]
    world = Ticks(policy(metrics=metrics, scale={"initial": 0}, windows={"stable": "6s"}))
    task = asyncio.create_task(world.loop.run())
    await world.until(lambda: world.ticks == 1, "the first tick")
    await asyncio.sleep(0.05)
    world.now += 10_000
    world.loop.on_stats("a", 5.0, 100)
    await world.until(lambda: world.running, "pods")
    assert len(world.running) >= 4
    task.cancel()


@pytest.mark.parametrize("turns", range(6))
async def test_a_cancellation_is_not_lost_when_something_wakes_the_loop_in_that_moment(turns: int) -> None:
    """A revision's end waits for its loop: a loop that goes on would never let it go."""
    world = World(tick=1000.0)
    world.scaler.record(world.now, 1.0, 1.0)
    running = asyncio.create_task(world.loop.run())
    assert await ends_all_the_same(running, world.loop.wake, turns)


def test_activators_that_are_gone_are_not_remembered_at_rest() -> None:
    world = World()
    for n in range(1000):
        world.now += SILENCE / 2
        world.loop.heard(f"activator-{n}")
    assert len(world.loop._heard) <= 3
