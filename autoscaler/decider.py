"""How many pods a demand asks for: stable and panic windows, rate limits, delay, as Knative decides (knative.dev, KPA).

What follows from the settings and the number of ready pods is worked out when these change, since they rarely do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil, floor
from typing import NamedTuple

from autoscaler.windows import MaxWindow

TICK = 2.0
"""Seconds of one bucket of the scale-down delay."""
NOISE = 1e-6
"""A demand that is above what some pods take by no more than this part comes from adding up, and asks for no pod more."""


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

    __slots__ = ("_calm_after", "_delay", "_down", "_low", "_panic_from", "_ready", "_target", "_up", "panic_maximum", "panic_since", "settings")

    def __init__(self, settings: DeciderSettings, ready_at_start: int = 0, now: float = 0.0) -> None:
        self.settings = settings
        self._delay = _delay_of(settings)
        self.panic_since: float | None = None
        self.panic_maximum = 0
        self.configure(settings)
        self.begin(ready_at_start, now)

    def begin(self, ready: int, now: float) -> None:
        """Pods that are ready at the start are kept until enough has been measured, as if in panic."""
        if ready >= 2:
            self.panic_since, self.panic_maximum = now, ready

    def configure(self, settings: DeciderSettings) -> None:
        """Decide by other settings from now on; panic goes on, and so does the delay when it is as long as before."""
        if settings.scale_down_delay != self.settings.scale_down_delay:
            self._delay = _delay_of(settings)
        self.settings = settings
        self._target = settings.target * (1 + NOISE)
        self._calm_after = settings.stable_window
        self._ready = -1

    def reach(self, reachable: bool) -> None:
        """Whether a route leads to the revision."""
        self.configure(replace(self.settings, reachable=reachable))

    def decide(self, now: float, ready: int, stable: float, panic: float) -> Decision:
        """`stable`, `panic` = demand averaged over the two windows; `ready` pods."""
        desired = self.desired(now, ready, stable, panic)
        return Decision(desired, self.excess_burst_capacity(ready, panic), self.panic_since is not None)

    def desired(self, now: float, ready: int, stable: float, panic: float) -> int:
        """The pods of a decision."""
        if ready != self._ready:
            self._see(ready)
        panicking = ceil(panic / self._target)
        if panicking >= self._panic_from:
            if self.panic_since is None:
                self.panic_maximum = 0
            self.panic_since = now
        elif self.panic_since is not None and now - self.panic_since > self._calm_after:
            self.panic_since, self.panic_maximum = None, 0
        wanted = ceil(stable / self._target)
        desired = wanted if self._low <= wanted <= self._up else self._limited(wanted)
        if self.panic_since is not None:
            limited = panicking if self._low <= panicking <= self._up else self._limited(panicking)
            if limited > desired:
                desired = limited
            if desired > self.panic_maximum:
                self.panic_maximum = desired
            desired = self.panic_maximum
        if self._delay is not None and self.settings.reachable:
            self._delay.record(floor(now / TICK), desired)
            desired = int(self._delay.current())
        return desired

    def _see(self, ready: int) -> None:
        """What follows from the number of ready pods: how far the scale may go at once, and from where on it is panic."""
        s, pods = self.settings, max(1, ready)
        self._ready = ready
        self._up = ceil(s.max_scale_up_rate * pods)
        self._down = floor(pods / s.max_scale_down_rate) if s.reachable else 0
        self._low = max(self._down, s.activation)
        self._panic_from = ceil(s.panic_threshold * pods - NOISE)

    def _limited(self, wanted: int) -> int:
        """Within the rates, and at least the activation scale once anything is wanted."""
        if wanted > self._up:
            return self._up if self._up > self._low else self._low
        return self._low if wanted > 0 else self._down

    def excess_burst_capacity(self, ready: int, panic: float) -> int:
        """Requests that the pods can take beyond what they have and the reserve; negative = through activators."""
        s = self.settings
        if s.burst_capacity == 0:
            return 0
        if s.burst_capacity < 0:
            return -1
        return floor(ready * s.total - s.burst_capacity - panic)


def _delay_of(settings: DeciderSettings) -> MaxWindow | None:
    return MaxWindow(ceil(settings.scale_down_delay / TICK)) if settings.scale_down_delay > 0 else None
