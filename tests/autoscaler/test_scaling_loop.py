"""The loop of one revision on a fake clock: decisions become pods, shards leave before pods do, silence decides nothing."""

from __future__ import annotations

from autoscaler.fleet import Phase
from autoscaler.revision_scaler import RevisionScaler
from autoscaler.scaling_loop import SILENCE, Pod, ScalingLoop
from autoscaler.settings import effective

PREFIX = "autoscaling.knative.dev/"
ONE_EACH = {f"{PREFIX}window": "6s", f"{PREFIX}target": "1", f"{PREFIX}target-utilization-percentage": "100"}


class World:
    """Driver, shards and clock in one; a pod is a member as soon as it is started."""

    def __init__(self, annotations: dict[str, str] | None = None) -> None:
        self.now, self.started = 100.0, 0
        self.running: dict[str, Pod] = {}
        self.shards: dict[str, int] = {}
        self.log: list[tuple[str, str]] = []
        self.loop = ScalingLoop(RevisionScaler(effective(annotations or ONE_EACH, None)), self, self, lambda: self.now)

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
        return pod in self.running

    def drain_pod(self, pod: str) -> None:
        self.log.append(("drain", pod))

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


async def test_lost_statistics_are_not_absence_of_load() -> None:
    world = World()
    await world.seconds(8, 4.0)
    await world.seconds(int(SILENCE) + 30, None)
    assert not world.did("drain")
    await world.seconds(12, 0.0)
    assert world.did("drain"), "once an activator says that all is idle, it counts"


async def test_a_rate_is_taken_over_the_time_that_has_passed() -> None:
    rps = {f"{PREFIX}metric": "rps", f"{PREFIX}target": "1", f"{PREFIX}target-utilization-percentage": "100", f"{PREFIX}window": "6s"}
    world = World(rps)
    await world.seconds(8, 0.5)
    assert len(world.running) == 1, "one request each second is one request a second, however long a tick is meant to be"
