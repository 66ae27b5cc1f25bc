"""The fast forms of a tick equal a plain reference written here: windows summed anew, formulas as they are told, nothing remembered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autoscaler.decider import Decider, DeciderSettings
from autoscaler.revision_scaler import RevisionScaler, ScaleDecision
from autoscaler.scaler import Activity, ScaleInput, bounded, scale
from autoscaler.settings import Demand, ScaleSettings
from autoscaler.windows import HELD, LinearWindow, WeightedWindow, panic_window, smoothing_factor


class PlainWindow:
    """Every bucket that was written, by its number; averages walk over them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.buckets: dict[int, float] = {}
        self.last, self.value = -math.inf, 0.0

    def put(self, bucket: int, value: float) -> None:
        if bucket - self.last >= self.size:
            self.buckets = {}
        if bucket > self.last - self.size:
            self.buckets[bucket] = self.buckets.get(bucket, 0.0) + value
            self.last = max(self.last, bucket)

    def sample(self, now: float, value: float) -> None:
        second = math.floor(now)
        gap = second - self.last
        if gap == 0:
            self.buckets[second] = max(self.buckets[second], value)
        else:
            for skipped in range(second - int(gap) + 1, second) if 1 < gap <= HELD else ():
                self.put(skipped, self.value)
            self.put(second, value)
        self.value = value if gap else max(self.value, value)

    def linear(self, now: float) -> float:
        end = max(self.last, math.floor(now))
        begin = max(min(self.buckets, default=0), end - self.size + 1)
        if self.last < begin or end - self.last >= self.size:
            return 0.0
        return sum(v for n, v in self.buckets.items() if n >= begin) / (self.last - begin + 1)

    def weighted(self, now: float) -> float:
        end, alpha = max(self.last, math.floor(now)), smoothing_factor(self.size)
        return sum(v * alpha * (1 - alpha) ** (end - n) for n, v in self.buckets.items() if end - n < self.size)


class PlainDecider:
    """Knative's formulas, one after the other."""

    def __init__(self, s: DeciderSettings) -> None:
        self.s, self.since, self.most = s, None, 0
        self.since: float | None
        self.history: list[tuple[int, int]] = []

    def desired(self, now: float, ready: int, stable: float, panic: float) -> int:
        s, pods = self.s, max(1, ready)
        wanted, panicking = (math.ceil(value / (s.target * 1.000001)) for value in (stable, panic))
        if panicking / pods >= s.panic_threshold:
            self.most, self.since = (0 if self.since is None else self.most), now
        elif self.since is not None and now - self.since > s.stable_window:
            self.most, self.since = 0, None
        desired = self.limited(wanted, pods)
        if self.since is not None:
            desired = self.most = max(self.most, desired, self.limited(panicking, pods))
        if s.scale_down_delay and s.reachable:
            slot = math.floor(now / 2)
            self.history.append((slot, desired))
            desired = max(d for n, d in self.history if n > slot - math.ceil(s.scale_down_delay / 2))
        return desired

    def limited(self, wanted: int, pods: int) -> int:
        s = self.s
        down = math.floor(pods / s.max_scale_down_rate) if s.reachable else 0
        limited = min(max(wanted, down), math.ceil(s.max_scale_up_rate * pods))
        return max(limited, s.activation) if s.activation > 1 and wanted > 0 else limited


class PlainScaler:
    """One demand for concurrency, decided on anew each time."""

    def __init__(self, s: ScaleSettings) -> None:
        self.s = s
        self.stable = PlainWindow(int(s.stable_window))
        self.panic = PlainWindow(int(panic_window(s.stable_window, s.panic_percentage)))
        fields = {f.name for f in dataclasses.fields(DeciderSettings)} & {f.name for f in dataclasses.fields(ScaleSettings)}
        demand = s.demands[0]
        self.decider = PlainDecider(DeciderSettings(demand.target, demand.total, **{f: getattr(s, f) for f in fields}))
        self.activity, self.since = Activity.NEVER, 0.0
        self.initialized, self.demanded, self.resting, self.begun = s.initial == 0, False, False, False
        self.last, self.changed, self.grew = 0, -math.inf, False

    def record(self, now: float, value: float) -> None:
        self.demanded = value > 0
        if not self.resting or self.demanded:
            self.resting = False
            self.stable.sample(now, value)
            self.panic.sample(now, value)

    def become(self, activity: Activity, now: float) -> None:
        if activity is not self.activity:
            self.activity, self.since = activity, now

    def decide(self, now: float, ready: int, replicas: int, reachable: bool) -> ScaleDecision:
        s = self.s
        if not self.begun:
            self.begun, self.last = True, replicas
            self.become(Activity.ACTIVATING if replicas else Activity.NEVER, now)
            if ready >= 2:
                self.decider.since, self.decider.most = now, ready
        self.decider.s = dataclasses.replace(self.decider.s, reachable=reachable)
        stable, panic = self.stable.linear(now), self.panic.linear(now)
        desired = self.decider.desired(now, ready, stable, panic)
        if replicas == 0 and self.demanded:
            desired = max(desired, 1)
        self.track(now, ready, desired, reachable)
        want = bounded(desired, s.minimum, s.maximum, s.initial, self.initialized, reachable)
        if want <= 0:
            want = self.towards_zero(now, replicas, desired, reachable)
        want = self.settled(now, want)
        nothing = not (want or replicas or self.demanded or desired or stable or panic)
        self.resting = nothing and self.decider.since is None
        return ScaleDecision(want, desired, self.decider.since is not None, stable, panic, self.activity.value)

    def track(self, now: float, ready: int, desired: int, reachable: bool) -> None:
        low = self.s.minimum if reachable else 0
        low = low if self.initialized else max(low, self.s.initial)
        if ready >= max(1, min(low, self.s.maximum or low)):
            self.initialized = True
            if desired > 0 or self.activity is not Activity.INACTIVE:
                self.become(Activity.ACTIVE, now)
        elif desired > 0:
            self.become(Activity.ACTIVATING, now)

    def towards_zero(self, now: float, replicas: int, desired: int, reachable: bool) -> int:
        s, lasted = self.s, now - self.since
        step = scale(
            ScaleInput(
                replicas, desired, self.activity, lasted, s.minimum, s.maximum, s.initial, self.initialized,
                "Reachable" if reachable else "Unreachable", s.enable_zero, s.stable_window, s.grace, s.retention, lasted, True, -1,
            )
        )  # fmt: skip
        if step.want == 0 and not step.patch and replicas > 0:
            self.become(Activity.INACTIVE, now)
            return 1
        return self.last if step.want < 0 else step.want

    def settled(self, now: float, want: int) -> int:
        limit = self.s.settle_after_up if self.grew else self.s.settle_after_down
        urgent = want > self.last and (self.decider.since is not None or self.last == 0)
        if want != self.last and (urgent or now - self.changed >= limit):
            self.grew, self.last, self.changed = want > self.last, want, now
        return self.last


eighths = st.integers(0, 2400).map(lambda n: n / 8) | st.just(0.0)
"""Values whose sums are exact, so that both forms must give the same number of pods and not nearly the same."""
steps = st.sampled_from([0.25, 0.5, 1.0, 2.0, 2.0, 2.0, 3.0, 4.5, 7.0, 21.0, 65.0])
some_settings = st.builds(
    ScaleSettings,
    demands=st.sampled_from([0.01, 1.0, 7.0, 70.0]).map(lambda target: (Demand("Concurrency", target, 100.0),)),
    minimum=st.sampled_from([0, 0, 2]),
    maximum=st.sampled_from([0, 3, 50]),
    initial=st.integers(0, 4),
    activation=st.sampled_from([0, 2, 5]),
    stable_window=st.sampled_from([6, 13, 60]),
    panic_percentage=st.sampled_from([1, 10, 50, 100]),
    panic_threshold=st.sampled_from([1.1, 2.0]),
    max_scale_up_rate=st.sampled_from([1.5, 3, 1000]),
    max_scale_down_rate=st.sampled_from([1.2, 2]),
    scale_down_delay=st.sampled_from([0, 0, 5, 30]),
    settle_after_up=st.sampled_from([0, 10]),
    settle_after_down=st.sampled_from([0, 10]),
    enable_zero=st.sampled_from([True, True, False]),
    grace=st.sampled_from([1, 30]),
)


@settings(max_examples=300, deadline=None)
@given(some_settings, st.lists(st.tuples(steps, eighths, st.booleans(), st.integers(0, 9)), min_size=1, max_size=60), st.integers(0, 4))
def test_a_tick_decides_as_the_plain_form_does(chosen: ScaleSettings, ticks: list[tuple[float, float, bool, int]], pods: int) -> None:
    fast, plain, now = RevisionScaler(chosen), PlainScaler(chosen), 100.0
    for step, value, all_ready, unreachable in ticks:
        now += step
        fast.record(now, value, 0.0)
        plain.record(now, value)
        ready = pods if all_ready else pods // 2
        given_back = fast.decide(now, ready, pods, unreachable != 0)
        assert given_back == plain.decide(now, ready, pods, unreachable != 0)
        assert fast.resting == plain.resting
        pods = given_back.replicas_wanted


writes = st.lists(st.tuples(st.integers(-8, 70), st.integers(0, 800).map(lambda n: n / 8)), min_size=1, max_size=80)


@settings(max_examples=200, deadline=None)
@given(writes, st.integers(1, 61), st.integers(0, 70))
def test_a_linear_window_is_a_sum_over_its_buckets(writes: list[tuple[int, float]], recent: int, later: int) -> None:
    compare_windows(LinearWindow(61, recent=recent), PlainWindow.linear, writes, recent, later, exact=True)


@settings(max_examples=200, deadline=None)
@given(writes, st.integers(1, 61), st.integers(0, 70))
def test_a_weighted_window_is_a_weighted_sum_over_its_buckets(writes: list[tuple[int, float]], recent: int, later: int) -> None:
    compare_windows(WeightedWindow(61, recent=recent), PlainWindow.weighted, writes, recent, later, exact=False)


def compare_windows(
    fast: LinearWindow | WeightedWindow,
    average: Callable[[PlainWindow, float], float],
    writes: list[tuple[int, float]],
    recent: int,
    later: int,
    exact: bool,
) -> None:
    plain, plain_recent, now = PlainWindow(61), PlainWindow(recent), 1000
    for step, value in writes:
        now += step
        for window in (plain, plain_recent):
            window.put(now, value)
        fast.record(now, value)
        for at in (now, now + later):
            want = (average(plain, at), average(plain_recent, at))
            assert fast.averages(at) == (want if exact else pytest.approx(want, abs=1e-6))


@given(
    st.integers(0, 30), st.lists(st.tuples(st.integers(0, 40), eighths, eighths), min_size=1, max_size=30), st.sampled_from([0, 5, 30])
)
def test_a_decider_may_be_given_any_number_of_ready_pods(start: int, ticks: list[tuple[int, float, float]], delay: int) -> None:
    chosen = DeciderSettings(target=3.0, total=10.0, activation=4, scale_down_delay=delay, panic_threshold=1.1, max_scale_up_rate=2)
    fast, plain = Decider(chosen, start, 0.0), PlainDecider(chosen)
    if start >= 2:
        plain.since, plain.most = 0.0, start
    for number, (ready, stable, panic) in enumerate(ticks):
        assert fast.decide(2.0 * number, ready, stable, panic).desired == plain.desired(2.0 * number, ready, stable, panic)
