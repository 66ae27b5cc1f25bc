"""How many pods a demand asks for: stable and panic windows, rate limits, delay, as Knative decides (knative.dev, KPA)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from autoscaler.windows import MaxWindow

TICK = 2.0
"""Seconds of one bucket of the scale-down delay."""


@dataclass(frozen=True, slots=True)
class DeciderSettings:
    """What a decision depends on besides measurements. `target` = demand per pod to aim at, `total` = what a pod can take."""

    target: float
    total: float
    burst_capacity: float = 211
    max_scale_up_rate: float = 1000
    max_scale_down_rate: float = 2
    panic_threshold: float = 2.0
    stable_window: float = 60
    activation: int = 0
    scale_down_delay: float = 0
    reachable: bool = True


class Decision(NamedTuple):
    """Pods wanted for one demand, before any bounds."""

    desired: int
    excess_burst_capacity: int
    in_panic: bool


class Decider:
    """Decides for one demand of one revision; remembers panic and the scale-down delay."""

    def __init__(self, settings: DeciderSettings, ready_at_start: int = 0, now: float = 0.0) -> None:
        self.settings = settings
        restarted = ready_at_start >= 2
        self.panic_since: float | None = now if restarted else None
        self.panic_maximum = ready_at_start if restarted else 0
        size = math.ceil(settings.scale_down_delay / TICK)
        self._delay = MaxWindow(size) if settings.scale_down_delay > 0 else None

    def decide(self, now: float, ready: int, stable: float, panic: float) -> Decision:
        """`stable`, `panic` = demand averaged over the two windows; `ready` pods."""
        s = self.settings
        pods = max(1, ready)
        stable_wanted, panic_wanted = math.ceil(stable / s.target), math.ceil(panic / s.target)
        wanted_stable, wanted_panic = self._limited(stable_wanted, pods), self._limited(panic_wanted, pods)
        self._track_panic(now, panic_wanted / pods >= s.panic_threshold)
        desired = wanted_stable
        if self.panic_since is not None:
            self.panic_maximum = max(self.panic_maximum, wanted_stable, wanted_panic)
            desired = self.panic_maximum
        if self._delay is not None and s.reachable:
            self._delay.record(math.floor(now / TICK), desired)
            desired = int(self._delay.current())
        return Decision(desired, self._excess(ready, panic), self.panic_since is not None)

    def _limited(self, wanted: int, pods: int) -> int:
        """Within the rates, and at least the activation scale once anything is wanted."""
        s = self.settings
        up = math.ceil(s.max_scale_up_rate * pods)
        down = math.floor(pods / s.max_scale_down_rate) if s.reachable else 0
        limited = min(max(wanted, down), up)
        if s.activation > 1 and wanted > 0:
            limited = max(limited, s.activation)
        return limited

    def _track_panic(self, now: float, over: bool) -> None:
        if over:
            if self.panic_since is None:
                self.panic_maximum = 0
            self.panic_since = now
        elif self.panic_since is not None and now > self.panic_since + self.settings.stable_window:
            self.panic_since, self.panic_maximum = None, 0

    def _excess(self, ready: int, panic: float) -> int:
        s = self.settings
        if s.burst_capacity == 0:
            return 0
        if s.burst_capacity < 0:
            return -1
        return math.floor(ready * s.total - s.burst_capacity - panic)
