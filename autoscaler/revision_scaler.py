"""One revision's scale from its measurements: the largest demand wins, bounds and settling apply, and zero is reached as Knative reaches it.

The activator is always in the path here, so "in the path for at least the grace period" is the time since the revision became inactive.
A revision that has arrived at zero and is asked for by nobody *rests*: it records and decides nothing until it is asked for again.
"""

from __future__ import annotations

import math

import msgspec

from autoscaler.decider import Decider, DeciderSettings
from autoscaler.scaler import Activity, ScaleInput, bounded, scale
from autoscaler.settings import Demand, ScaleSettings
from autoscaler.windows import HELD, LinearWindow, WeightedWindow, Window, panic_window

ACTIVE = Activity.ACTIVE.value
DAY = 86_400.0
UNBOUNDED = 2**30 - 1
"""Pods, where there is no maximum; a number that CPython still compares fast."""


class ScaleDecision(msgspec.Struct, frozen=True, gc=False):
    """`replicas_wanted` pods to have now; the rest says why. `stable` and `panic` are averages of the first demand."""

    replicas_wanted: int
    desired: int
    in_panic: bool
    stable: float
    panic: float
    active: str


class _Demand(Decider):
    """One demand: what it is measured by, and what that asks for."""

    __slots__ = ("asked", "external", "source", "window")

    def __init__(self, demand: Demand, settings: DeciderSettings, window: Window) -> None:
        super().__init__(settings)
        self.source, self.window = demand.source, window
        self.external = demand.type == "Prometheus"
        self.asked: int | None = None
        """Of an external demand: the pods that it asked for when it was measured last; None = never measured."""


class RevisionScaler:
    """Records measurements and decides; `now` is seconds on one clock of the caller."""

    __slots__ = (
        "_active", "_activity", "_activity_since", "_backwards", "_begun", "_changed_at", "_concurrency", "_decision", "_demanded", "_enough",
        "_function", "_grew", "_high", "_initialized", "_last", "_low", "_reachable", "_requests", "_told", "resting", "settings",
    )  # fmt: skip

    def __init__(self, settings: ScaleSettings) -> None:
        self._backwards: tuple[_Demand, ...] = ()
        """The demands, the first one last: its averages are told."""
        self._initialized = settings.initial == 0
        self._reachable = True
        self.resting = False
        """True at zero, until there is demand or a change: `record` of zeros and `decide` do nothing meanwhile."""
        self._configure(settings, {})
        self._activity, self._activity_since = Activity.NEVER, 0.0
        self._active = Activity.NEVER.value
        self._demanded = False
        self._told = Activity.NEVER
        self._begun = False
        self._last, self._changed_at, self._grew = 0, -math.inf, False
        self._decision = ScaleDecision(0, 0, False, 0.0, 0.0, Activity.NEVER.value)

    def resume(self, initialized: bool, active: str | None) -> None:
        """Go on from what an earlier leader told: whether the initial scale was reached, and the Active condition (None = never set)."""
        self._initialized = self._initialized or initialized
        self._told = next((a for a in Activity if a.value == active), Activity.NEVER)
        self._bound()

    def reconfigure(self, settings: ScaleSettings) -> None:
        """Decide by other settings from now on; a demand whose windows stay as they are keeps what it measured."""
        same = _windows(settings) == _windows(self.settings)
        self._configure(settings, {demand.source: demand for demand in self._backwards} if same else {})

    def _configure(self, settings: ScaleSettings, before: dict[tuple[str, ...], _Demand]) -> None:
        windows = {source: demand.window for source, demand in before.items()}
        demands = []
        for given in reversed(settings.demands):
            own = _decider_settings(given, settings, self._reachable)
            demand = before.pop(given.source, None)
            if demand is None:
                demand = _Demand(given, own, windows.setdefault(given.source, _window_of(given, settings)))
            else:
                demand.configure(own)
            demands.append(demand)
        self.settings, self._backwards = settings, tuple(demands)
        windows = {demand.source: demand.window for demand in demands}
        self._concurrency = windows.get(("Concurrency",))
        self._requests = windows.get(("RequestsPerSecond",))
        self._function = windows.get(("FunctionConcurrency",))
        self._bound()

    # Measurements -------------------------------------------------------------------------------------------------------

    def record(self, now: float, concurrency: float, requests: float, function_concurrency: float = 0.0) -> None:
        """Requests in flight, requests per second, commands at the user function: of all pods together."""
        self._demanded = concurrency > 0 or requests > 0
        if self.resting:
            if not (self._demanded or function_concurrency > 0):
                return
            self.resting = False
        if self._concurrency is not None:
            self._concurrency.sample(now, concurrency)
        if self._requests is not None:
            self._requests.sample(now, requests)
        if self._function is not None:
            self._function.sample(now, function_concurrency)

    def record_external(self, now: float, query_value: float, source: tuple[str, ...] | None = None) -> None:
        """The value of a Prometheus query, when it was asked; of all that there are without a `source`. Below zero is zero."""
        for demand in self._backwards:
            if demand.external and source in (None, demand.source):
                demand.window.sample(now, max(0.0, query_value))
                self.resting = self.resting and query_value <= 0

    @property
    def queries(self) -> list[tuple[str, ...]]:
        """The sources of the demands that `record_external` is to be told of."""
        return [demand.source for demand in self._backwards if demand.external]

    # Decisions ----------------------------------------------------------------------------------------------------------

    def decide(self, now: float, ready: int, replicas: int, reachable: bool = True) -> ScaleDecision:
        """How many pods to have, with `ready` pods serving and `replicas` existing; not `reachable` = no route leads here."""
        if reachable is not self._reachable or not self._begun:
            self._begin(now, ready, replicas, reachable)
        if self.resting:
            if not replicas:
                return self._decision
            self.resting = False
        desired, in_panic, stable, panic = 0, False, 0.0, 0.0
        for demand in self._backwards:
            stable, panic = demand.window.averages(now)
            wanted = demand.desired(now, ready, stable, panic)
            if demand.external:
                wanted = self._or_held(now, demand, wanted)
            if wanted > desired:
                desired = wanted
            if demand.panic_since is not None:
                in_panic = True
        if desired == 0 and replicas == 0 and self._demanded:
            desired = 1
        if self._active != ACTIVE or ready < self._enough:
            self._track_activity(now, ready, desired)
        want = desired if self._low <= desired <= self._high else self._low if desired < self._low else self._high
        if want <= 0:
            want = self._towards_zero(now, replicas, desired)
        if want != self._last:
            want = self._settled(now, want, in_panic)
        decision = ScaleDecision(want, desired, in_panic, stable, panic, self._active)
        if want == 0 and replicas == 0 and desired == 0 and not self._demanded:
            # What was asked has left the windows, too, or something would be desired.
            self.resting, self._decision = True, decision
        return decision

    def _or_held(self, now: float, demand: _Demand, wanted: int) -> int:
        """What a demand asks for; while it is not measured, what it asked for before, and never that the last pod goes."""
        if demand.window.fresh(now):
            demand.asked = wanted
            return wanted
        return self._last if demand.asked is None else max(demand.asked, min(self._last, 1))

    def _begin(self, now: float, ready: int, replicas: int, reachable: bool) -> None:
        """Of the first decision: a fleet that is there is not cut down before its load has been measured, nor a first pod before it was up."""
        if not self._begun:
            self._begun, self._last = True, replicas
            told = self._told if self._told is not Activity.NEVER or not replicas else Activity.ACTIVATING
            self._become(told, now)
            for demand in self._backwards:
                demand.begin(ready, now)
        self._reachable = reachable
        for demand in self._backwards:
            demand.reach(reachable)
        self._bound()

    def _bound(self) -> None:
        """The bounds, and how many ready pods make the revision active: at first the initial scale, then the minimum, at least one."""
        s = self.settings
        self._high = s.maximum if s.maximum > 0 else UNBOUNDED
        self._low = bounded(0, s.minimum, s.maximum, s.initial, self._initialized, self._reachable)
        low = s.minimum if self._reachable else 0
        self._enough = max(1, min(low if self._initialized else max(low, s.initial), self._high))
        self.resting = False

    # Zero and activity --------------------------------------------------------------------------------------------------

    def _towards_zero(self, now: float, replicas: int, desired: int) -> int:
        """As Knative's scaler decides, which alone needs to know how long things have been so."""
        step = scale(self._input(now, replicas, desired))
        if step.want == 0 and not step.patch and replicas > 0:
            self._become(Activity.INACTIVE, now)
            return 1
        return self._last if step.want < 0 else step.want

    def _track_activity(self, now: float, ready: int, desired: int) -> None:
        if ready >= self._enough:
            if not self._initialized:
                self._initialized = True
                self._bound()
            if desired > 0 or self._activity is not Activity.INACTIVE:
                self._become(Activity.ACTIVE, now)
        elif desired > 0:
            self._become(Activity.ACTIVATING, now)

    def _become(self, activity: Activity, now: float) -> None:
        if self._activity is not activity:
            self._activity, self._activity_since = activity, now
            self._active = activity.value

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


def _windows(settings: ScaleSettings) -> tuple[object, ...]:
    return settings.stable_window, settings.panic_percentage, settings.aggregation


def _window_of(demand: Demand, settings: ScaleSettings) -> Window:
    """Missing values of our own count as zero after a while; those of a query never do."""
    kind = WeightedWindow if settings.aggregation == "weighted-exponential" else LinearWindow
    recent = panic_window(settings.stable_window, settings.panic_percentage)
    return kind(settings.stable_window, recent=recent, held=DAY if demand.type == "Prometheus" else HELD)


def _decider_settings(demand: Demand, settings: ScaleSettings, reachable: bool) -> DeciderSettings:
    return DeciderSettings(
        target=demand.target,
        total=demand.total,
        burst_capacity=settings.burst_capacity,
        max_scale_up_rate=settings.max_scale_up_rate,
        max_scale_down_rate=settings.max_scale_down_rate,
        panic_threshold=settings.panic_threshold,
        stable_window=settings.stable_window,
        activation=settings.activation,
        scale_down_delay=settings.scale_down_delay,
        reachable=reachable,
    )
