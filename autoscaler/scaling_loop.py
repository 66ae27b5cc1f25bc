"""The loop of one revision: statistics in, a decision each tick, pods started, drained and stopped through a driver.

The decisions are `RevisionScaler` and `fleet.step`; placement knows which shards a pod still owns. The same loop runs on one machine
and on a cluster: only the `PodDriver` differs. A request at zero is decided on at once, not at the next tick. A revision at rest does not
tick: requests, a query's value, a pod or a change of settings wake it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from autoscaler.fleet import Phase, PodView, step
from autoscaler.prometheus import Queries, Source
from autoscaler.revision_scaler import RevisionScaler, ScaleDecision
from autoscaler.settings import ScaleSettings

log = logging.getLogger(__name__)

SILENCE = 5.0
"""Seconds without a word from any activator after which nothing is decided: lost statistics are not absence of load."""
OUT_OF_DATE = 3.0
"""Seconds after which statistics that an activator no longer repeats count no more."""
REPORTED = 1.0
"""Seconds that an activator's message tells of, and so that a rate is taken over at least: a poke may follow a tick closely, with one between."""


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as its driver knows it."""

    name: str
    phase: Phase
    started_at: float


class PodDriver(Protocol):
    """Starts and stops the pods of one revision."""

    def pods(self) -> Sequence[Pod]:
        """Every pod that has been started and has not ended."""

    async def start(self) -> None:
        """Begin to start one more pod."""

    async def stop(self, name: str) -> None:
        """Begin to stop a pod gracefully."""


class ShardsOfPods(Protocol):
    """What the loop needs to know and say about shards."""

    def load_of_pod(self, pod: str) -> float:
        """Load of the shards the pod owns."""

    def shards_of_pod(self, pod: str) -> int:
        """Shards the pod owns or is about to receive."""

    def is_member(self, pod: str) -> bool:
        """True once the pod takes commands."""

    def function_concurrency_of_pod(self, pod: str) -> float:
        """Commands at the pod's user function, on average since its last heartbeat."""

    def drain_pod(self, pod: str) -> None:
        """Move the pod's shards away, or free them when no other pod is left."""


@dataclass(slots=True)
class ScalingState:
    """What the loop last saw and decided, for views and tests."""

    wanted: int = 0
    ready: int = 0
    concurrency: float = 0.0
    decision: ScaleDecision | None = None
    draining: dict[str, float] = field(default_factory=dict)


class ScalingLoop:
    """Scales one revision. `clock` gives seconds on the clock that all decisions share."""

    def __init__(
        self,
        scaler: RevisionScaler,
        driver: PodDriver,
        shards: ShardsOfPods,
        clock: Callable[[], float],
        tick: float = 2.0,
        initial_scale: int = 0,
    ) -> None:
        self.state = ScalingState(wanted=initial_scale)
        self._reachable = True
        self._scaler, self._driver, self._shards, self._clock, self._tick = scaler, driver, shards, clock, tick
        self._latest: dict[str, tuple[float, float]] = {}
        self._requests = self._rate = 0.0
        self._news = False
        """An activator has spoken since the last tick."""
        self._heard: dict[str, float] = {}
        self._recorded_at = self._began_at = clock()
        self._poke = asyncio.Event()
        self._queries = Queries(self._on_value, tick)

    @property
    def reachable(self) -> bool:
        """False when no route leads to this revision."""
        return self._reachable

    @reachable.setter
    def reachable(self, reachable: bool) -> None:
        if reachable is not self._reachable:
            self._reachable = reachable
            self._poke.set()

    def heard(self, activator: str) -> None:
        """An activator has spoken, with statistics or to say that all is idle."""
        now = self._clock()
        if activator not in self._heard:  # at rest nothing else forgets those that are gone
            self._heard = {name: at for name, at in self._heard.items() if now - at <= SILENCE}
        self._heard[activator] = now
        self._news = True

    def on_stats(self, activator: str, concurrency: float, requests: float) -> None:
        """Statistics of one activator since its last message; a first request at zero is decided on at once."""
        self._latest[activator] = (self._clock(), concurrency)
        self._requests += requests
        self._news = True
        if (concurrency > 0 or requests > 0) and self.state.wanted == 0:
            self._poke.set()

    def _on_value(self, source: Source, value: float) -> None:
        """A query has a value; the first above zero at zero is decided on at once."""
        self._scaler.record_external(self._clock(), value, source)
        if value > 0 and self.state.wanted == 0:
            self._poke.set()

    def reconfigure(self, settings: ScaleSettings) -> None:
        """Decide by other settings from now on."""
        self._scaler.reconfigure(settings)
        self._poke.set()

    def wake(self) -> None:
        """Decide now: something else than statistics has changed (a pod ended or became ready)."""
        self._poke.set()

    async def run(self) -> None:
        """Tick until cancelled. A failing tick is logged and tried again at the next."""
        try:
            while True:
                self._queries.follow(self._scaler.queries)
                try:
                    await self.tick()
                except Exception:
                    log.exception("a scaling tick failed")
                await self._pause()
        finally:
            await self._queries.close()

    async def _pause(self) -> None:
        """Until the next tick, or until something happens; at rest, only the latter."""
        resting = self._scaler.resting
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if resting else self._tick):
                await self._poke.wait()
        self._poke.clear()
        if resting:
            self._recorded_at = max(self._recorded_at, self._clock() - self._tick)

    async def tick(self) -> None:
        """Record, decide, act once."""
        now = self._clock()
        pods = self._driver.pods()
        silence = now - max(self._heard.values(), default=self._began_at)
        if pods and silence > SILENCE:
            log.warning("no activator has reported for %.0f s: the scale stays as it is", silence)
            self._recorded_at = now  # what comes next is no rate over the silence
            return
        self._record(now, sum(self._shards.function_concurrency_of_pod(pod.name) for pod in pods))
        self.state.draining = {p.name: at for p in pods if (at := self.state.draining.get(p.name)) is not None}
        ready = sum(self.is_ready(pod) for pod in pods)
        decision = self._scaler.decide(now, ready=ready, replicas=len(pods), reachable=self._reachable)
        self.state.ready, self.state.decision, self.state.wanted = ready, decision, decision.replicas_wanted
        await self._act(now, decision.replicas_wanted, pods)

    def _record(self, now: float, function_concurrency: float) -> None:
        """Give the scaler the concurrency of all activators heard lately, the requests since the last tick, and what the pods told.

        What an activator told last holds while it is silent; it is out of date once the activator has gone on speaking without it. A rate holds
        until one of them has spoken again: nobody has said that no request came.
        """
        self._heard = {name: at for name, at in self._heard.items() if now - at <= SILENCE}
        self._latest = {n: e for n, e in self._latest.items() if n in self._heard and self._heard[n] - e[0] < OUT_OF_DATE}
        self.state.concurrency = sum(concurrency for _, concurrency in self._latest.values())
        if self._news or not self._heard:
            self._rate = self._requests / max(REPORTED, now - self._recorded_at)
        self._scaler.record(now, self.state.concurrency, self._rate, function_concurrency)
        self._requests, self._recorded_at, self._news = 0.0, now, False

    def is_ready(self, pod: Pod) -> bool:
        """True for a pod that takes calls and is not about to leave."""
        return pod.phase is not Phase.STOPPING and pod.name not in self.state.draining and self._shards.is_member(pod.name)

    async def _act(self, now: float, wanted: int, pods: Sequence[Pod]) -> None:
        next_step = step(now, wanted, [self._view(pod) for pod in pods])
        for name in next_step.stop:
            await self._driver.stop(name)
        self.state.draining |= dict.fromkeys(next_step.drain, now)
        for name in self.state.draining:
            self._shards.drain_pod(name)  # each time: one that was still starting may be a member only since
        for _ in range(next_step.start):
            await self._driver.start()

    def _view(self, pod: Pod) -> PodView:
        phase = pod.phase
        if phase is Phase.STARTING and self._shards.is_member(pod.name):
            phase = Phase.READY
        return PodView(
            name=pod.name,
            phase=phase,
            started_at=pod.started_at,
            load=self._shards.load_of_pod(pod.name),
            owned=self._shards.shards_of_pod(pod.name),
            draining_since=self.state.draining.get(pod.name),
        )
