"""One revision's scale from its measurements: the largest demand wins, bounds and settling apply, and zero is reached as Knative reaches it.

The activator is always in the path here, so "in the path for at least the grace period" is the time since the revision became inactive.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

from autoscaler.decider import Decider, DeciderSettings
from autoscaler.scaler import Activity, ScaleInput, bounded, scale
from autoscaler.settings import Demand, ScaleSettings
from autoscaler.windows import LinearWindow, WeightedWindow, panic_window

HELD = 5
"""Seconds that a value stands for the seconds without one: more than a tick, less than an outage."""


class ScaleDecision(NamedTuple):
    """`replicas_wanted` pods to have now; the rest says why."""

    replicas_wanted: int
    desired: int
    in_panic: bool
    stable: float
    panic: float
    active: str


class _Measured:
    """One demand with its two windows."""

    def __init__(self, demand: Demand, settings: ScaleSettings) -> None:
        window = WeightedWindow if settings.aggregation == "weighted-exponential" else LinearWindow
        self.type = demand.type
        self.stable = window(settings.stable_window)
        self.panic = window(panic_window(settings.stable_window, settings.panic_percentage))
        self.sample: tuple[int, float] = (-1, 0.0)
        self.decider = Decider(
            DeciderSettings(
                target=demand.target,
                total=demand.total,
                burst_capacity=settings.burst_capacity,
                max_scale_up_rate=settings.max_scale_up_rate,
                max_scale_down_rate=settings.max_scale_down_rate,
                panic_threshold=settings.panic_threshold,
                stable_window=settings.stable_window,
                activation=settings.activation,
                scale_down_delay=settings.scale_down_delay,
            )
        )

    def take_over(self, old: _Measured) -> None:
        """Go on with the windows and the panic of an earlier configuration."""
        self.stable, self.panic, self.sample = old.stable, old.panic, old.sample
        self.decider.panic_since, self.decider.panic_maximum = old.decider.panic_since, old.decider.panic_maximum

    def record(self, now: float, value: float) -> None:
        """One value counts for each second, so that a tick's length does not change the average.

        Of several in a second it is the largest; a second without one repeats the value before, up to HELD seconds.
        """
        second, (last, largest) = int(now), self.sample
        if second == last:
            if value <= largest:
                return
            self.sample, value = (second, value), value - largest
        else:
            if 1 < second - last <= HELD and last >= 0:
                for skipped in range(last + 1, second):
                    self.stable.record(skipped, largest)
                    self.panic.record(skipped, largest)
            self.sample = (second, value)
        self.stable.record(now, value)
        self.panic.record(now, value)


class RevisionScaler:
    """Records measurements and decides; `now` is seconds on one clock of the caller."""

    def __init__(self, settings: ScaleSettings) -> None:
        self.settings = settings
        self._measured = [_Measured(demand, settings) for demand in settings.demands]
        self._activity, self._activity_since = Activity.NEVER, 0.0
        self._initialized = settings.initial == 0
        self._demanded = False
        self._reachable = True
        self._told = Activity.NEVER
        self._begun = False
        self._last, self._changed_at, self._grew = 0, -math.inf, False

    def resume(self, initialized: bool, active: str | None) -> None:
        """Go on from what an earlier leader told: whether the initial scale was reached, and the Active condition (None = never set)."""
        self._initialized = self._initialized or initialized
        self._told = next((a for a in Activity if a.value == active), Activity.NEVER)

    def reconfigure(self, settings: ScaleSettings) -> None:
        """Decide by other settings from now on; a demand whose windows stay as they are keeps what it measured."""
        before = {measured.type: measured for measured in self._measured}
        same_windows = (settings.stable_window, settings.panic_percentage, settings.aggregation) == (
            self.settings.stable_window,
            self.settings.panic_percentage,
            self.settings.aggregation,
        )
        self.settings = settings
        self._measured = [_Measured(demand, settings) for demand in settings.demands]
        for measured in self._measured:
            old = before.get(measured.type)
            if old is not None and same_windows:
                measured.take_over(old)
        self._reach(self._reachable)

    def record(self, now: float, concurrency: float, requests: float, function_concurrency: float = 0.0) -> None:
        """Requests in flight, requests per second, commands at the user function: of all pods together."""
        values = {"Concurrency": concurrency, "RequestsPerSecond": requests, "FunctionConcurrency": function_concurrency}
        self._demanded = concurrency > 0 or requests > 0
        for measured in self._measured:
            if measured.type in values:
                measured.record(now, values[measured.type])

    def record_external(self, now: float, query_value: float) -> None:
        """The value of the Prometheus query, when it was asked."""
        for measured in self._measured:
            if measured.type == "Prometheus":
                measured.record(now, query_value)

    def decide(self, now: float, ready: int, replicas: int, reachable: bool = True) -> ScaleDecision:
        """How many pods to have, with `ready` pods serving and `replicas` existing; not `reachable` = no route leads here."""
        if not self._begun:
            self._begin(now, ready, replicas)
        if reachable is not self._reachable:
            self._reach(reachable)
        desired, in_panic, stable, panic = self._desired(now, ready)
        if self._demanded and replicas == 0:
            desired = max(desired, 1)
        self._track_activity(now, ready, desired)
        want = self._settled(now, self._wanted(now, replicas, desired), in_panic)
        return ScaleDecision(want, desired, in_panic, stable, panic, self._activity.value)

    def _begin(self, now: float, ready: int, replicas: int) -> None:
        """A fleet that is there already is not cut down before its load has been measured, nor a first pod before it was up."""
        self._begun, self._last = True, replicas
        told = self._told if self._told is not Activity.NEVER or not replicas else Activity.ACTIVATING
        self._become(told, now)
        for measured in self._measured:
            measured.decider = Decider(measured.decider.settings, ready, now)

    def _reach(self, reachable: bool) -> None:
        self._reachable = reachable
        for measured in self._measured:
            measured.decider.settings = replace(measured.decider.settings, reachable=reachable)

    def _wanted(self, now: float, replicas: int, desired: int) -> int:
        """Within the bounds; at zero as Knative's scaler decides, which alone needs to know how long things have been so."""
        s = self.settings
        want = bounded(desired, s.minimum, s.maximum, s.initial, self._initialized, self._reachable)
        if want > 0:
            return want
        step = scale(self._input(now, replicas, desired))
        if step.want == 0 and not step.patch and replicas > 0:
            self._become(Activity.INACTIVE, now)
            return 1
        return self._last if step.want < 0 else step.want

    def _desired(self, now: float, ready: int) -> tuple[int, bool, float, float]:
        """The largest demand; averages are those of the first one."""
        desired, in_panic, averages = 0, False, (0.0, 0.0)
        for position, measured in enumerate(self._measured):
            stable, panic = measured.stable.average(now), measured.panic.average(now)
            decision = measured.decider.decide(now, ready, stable, panic)
            desired, in_panic = max(desired, decision.desired), in_panic or decision.in_panic
            if position == 0:
                averages = (stable, panic)
        return desired, in_panic, *averages

    def _threshold(self) -> int:
        """Pods that must be ready for the revision to be active: at first the initial scale, then the minimum, at least one."""
        s = self.settings
        low = s.minimum if self._reachable else 0
        if not self._initialized:
            low = max(low, s.initial)
        return max(1, min(low, s.maximum) if s.maximum > 0 else low)

    def _track_activity(self, now: float, ready: int, desired: int) -> None:
        if ready >= self._threshold():
            self._initialized = True
            if desired > 0 or self._activity is not Activity.INACTIVE:
                self._become(Activity.ACTIVE, now)
        elif desired > 0:
            self._become(Activity.ACTIVATING, now)

    def _become(self, activity: Activity, now: float) -> None:
        if self._activity is not activity:
            self._activity, self._activity_since = activity, now

    def _input(self, now: float, replicas: int, desired: int) -> ScaleInput:
        s = self.settings
        return ScaleInput(
            current=replicas,
            desired=desired,
            activity=self._activity,
            activity_for=now - self._activity_since,
            minimum=s.minimum,
            maximum=s.maximum,
            initial=s.initial,
            initialized=self._initialized,
            reachability="Reachable" if self._reachable else "Unreachable",
            enable_zero=s.enable_zero,
            stable_window=s.stable_window,
            grace=s.grace,
            retention=s.retention,
            proxied_for=now - self._activity_since,
            in_path=True,
            burst_capacity=-1,
        )

    def _settled(self, now: float, want: int, in_panic: bool) -> int:
        """Hold still for a while after growing, and after shrinking, unless load asks for more in panic or from zero."""
        if want == self._last:
            return want
        limit = self.settings.settle_after_up if self._grew else self.settings.settle_after_down
        urgent = want > self._last and (in_panic or self._last == 0)
        if now - self._changed_at < limit and not urgent:
            return self._last
        self._grew = want > self._last
        self._last, self._changed_at = want, now
        return want
