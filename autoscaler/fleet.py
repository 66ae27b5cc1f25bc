"""Which pods to start, drain and stop so that a revision reaches its wanted size (pure).

A pod leaves in two steps: it is drained of its shards first (the least loaded one, so that little moves), then stopped. A pod
that has no shards yet is stopped at once. Nothing is stopped that still owns a shard, unless its drain has lasted too long.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass


class Phase(enum.Enum):
    """Where a pod is in its life, as its driver sees it."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class PodView:
    """One pod as a decision sees it."""

    name: str
    phase: Phase
    started_at: float
    load: float = 0.0
    """Of the shards it owns."""
    owned: int = 0
    """Shards it owns or receives."""
    draining_since: float | None = None


@dataclass(frozen=True, slots=True)
class FleetStep:
    """What to do now: start `start` pods, begin to drain `drain`, stop `stop`."""

    start: int = 0
    drain: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()


def step(now: float, wanted: int, pods: Sequence[PodView], drain_limit: float = 30.0) -> FleetStep:
    """The next step towards `wanted` pods; `drain_limit` = seconds after which a drained-for pod is stopped regardless."""
    staying = [pod for pod in pods if pod.phase is not Phase.STOPPING and pod.draining_since is None]
    leaving = [pod for pod in pods if pod.phase is not Phase.STOPPING and pod.draining_since is not None]
    done = [pod.name for pod in leaving if pod.owned == 0 or now - (pod.draining_since or now) >= drain_limit]
    if wanted >= len(staying):
        return FleetStep(start=wanted - len(staying), stop=tuple(done))
    victims = sorted(staying, key=_reluctance)[: len(staying) - wanted]
    return FleetStep(drain=tuple(pod.name for pod in victims), stop=tuple(done))


def _reluctance(pod: PodView) -> tuple[bool, float, int, float]:
    """Pods that are not ready leave first, then the least loaded, then the youngest."""
    return (pod.phase is Phase.READY, pod.load, pod.owned, -pod.started_at)
