"""One revision's scale from its measurements: the largest demand wins, bounds and settling apply, and zero is reached as Knative reaches it.

The activator is always in the path here, so "in the path for at least the grace period" is the time since the revision became inactive.
"""

from __future__ import annotations

from dataclasses import dataclass

from autoscaler.decider import Decider, DeciderSettings
from autoscaler.scaler import Activity, ScaleInput, scale
from autoscaler.settings import Demand, ScaleSettings
from autoscaler.windows import LinearWindow, WeightedWindow, panic_window


@dataclass(frozen=True, slots=True)
class ScaleDecision:
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

    def record(self, now: float, value: float) -> None:
        """One value per second counts: of several in a second the largest, so that a tick's length does not change the average."""
        second, largest = int(now), self.sample[1] if self.sample[0] == int(now) else 0.0
        if value > largest or second != self.sample[0]:
            self.stable.record(now, value - largest)
            self.panic.record(now, value - largest)
            self.sample = (second, max(value, largest))


class RevisionScaler:
    """Records measurements and decides; `now` is seconds on one clock of the caller."""

    def __init__(self, settings: ScaleSettings) -> None:
        self.settings = settings
        self._measured = [_Measured(demand, settings) for demand in settings.demands]
        self._activity, self._activity_since = Activity.NEVER, 0.0
        self._initialized = settings.initial == 0
        self._demanded = False
        self._last, self._changed_at = 0, -1e9

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

    def decide(self, now: float, ready: int, replicas: int) -> ScaleDecision:
        """How many pods to have, with `ready` pods serving and `replicas` existing."""
        desired, in_panic, stable, panic = self._desired(now, ready)
        if self._demanded and replicas == 0:
            desired = max(desired, 1)
        self._track_activity(now, ready, desired)
        step = scale(self._input(now, replicas, desired))
        want = replicas if step.want < 0 else step.want
        if step.want == 0 and not step.patch and replicas > 0:
            want = 1
            self._become(Activity.INACTIVE, now)
        want = self._settled(now, want, in_panic)
        return ScaleDecision(want, desired, in_panic, stable, panic, self._activity.value)

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

    def _track_activity(self, now: float, ready: int, desired: int) -> None:
        if ready >= max(1, self.settings.minimum):
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
            enable_zero=s.enable_zero,
            stable_window=s.stable_window,
            grace=s.grace,
            retention=s.retention,
            proxied_for=now - self._activity_since,
            in_path=True,
            burst_capacity=-1,
        )

    def _settled(self, now: float, want: int, in_panic: bool) -> int:
        """Hold still after a change of size, unless load asks for more in panic or from zero."""
        s = self.settings
        limit = s.settle_after_up if want > self._last else s.settle_after_down
        if want != self._last and now - self._changed_at < limit and not (want > self._last and (in_panic or self._last == 0)):
            return self._last
        if want != self._last:
            self._last, self._changed_at = want, now
        return want
