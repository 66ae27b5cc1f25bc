"""From a wanted scale to the scale that is applied: bounds, and the careful way to zero (pure; as Knative's scaler does it)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Activity(Enum):
    """The PodAutoscaler's Active condition."""

    NEVER = "never set"
    ACTIVE = "True"
    INACTIVE = "False"
    ACTIVATING = "Unknown"


@dataclass(frozen=True, slots=True)
class ScaleInput:
    """Everything that one pass looks at. Times in seconds; `desired` -1 = no metrics; bounds of 0 = none."""

    current: int
    desired: int
    activity: Activity = Activity.NEVER
    activity_for: float = 0
    minimum: int = 0
    maximum: int = 0
    initial: int = 1
    initialized: bool = False
    reachability: str = ""
    enable_zero: bool = True
    stable_window: float = 60
    grace: float = 30
    retention: float = 0
    proxied_for: float = 0
    in_path: bool = False
    """The activator is in the path already."""
    burst_capacity: float = 211
    probe_ok: bool = True
    """A probe through the public service was answered by an activator."""
    activation_deadline: float = 151


@dataclass(frozen=True, slots=True)
class ScaleStep:
    """What comes of a pass: the scale to report, whether the replicas are written, whether to look again later or to probe."""

    want: int
    patch: bool = False
    requeue: bool = False
    probe: bool = False


def scale(given: ScaleInput) -> ScaleStep:
    """One pass."""
    if given.desired < 0 and given.activity is not Activity.ACTIVATING:
        return ScaleStep(given.desired)
    want = bounded(given.desired, given.minimum, given.maximum, given.initial, given.initialized, given.reachability != "Unreachable")
    requeue = False
    if want == 0:
        step = _to_zero(given)
        if step.want != 0 or not step.patch:
            if step.want <= 0:
                return step
            want, requeue = step.want, step.requeue
    if want < 0:
        return ScaleStep(want)
    return ScaleStep(want, patch=want != given.current, requeue=requeue)


def bounded(desired: int, minimum: int, maximum: int, initial: int, initialized: bool, reachable: bool) -> int:
    """`desired` within the bounds (0 = none): the minimum, and the initial scale until it was reached, hold for reachable revisions."""
    low = minimum if reachable else 0
    if not initialized and reachable and initial > 1:
        low = max(low, initial)
    want = max(desired, low)
    return min(want, maximum) if maximum > 0 else want


def _to_zero(given: ScaleInput) -> ScaleStep:
    """The last pod leaves only after the idle window, with the activator in the path, and after grace and retention."""
    if not given.enable_zero:
        return ScaleStep(1)
    if given.activity is Activity.ACTIVATING:
        if given.activity_for >= given.activation_deadline:
            return ScaleStep(0, patch=True)
        return ScaleStep(-1, requeue=True)
    if given.activity is Activity.ACTIVE:
        if given.activity_for >= given.stable_window:
            return ScaleStep(0, requeue=given.in_path)
        return ScaleStep(1, requeue=True)
    return _inactive(given)


def _inactive(given: ScaleInput) -> ScaleStep:
    if given.burst_capacity != -1 and not given.probe_ok:
        return ScaleStep(0, probe=True)
    retention = 0.0 if given.reachability == "Unreachable" else given.retention
    if given.activity_for >= max(given.grace, retention):
        return ScaleStep(0, patch=given.current != 0)
    if given.activity_for < retention:
        return ScaleStep(0, requeue=True)
    if given.proxied_for >= given.grace:
        return ScaleStep(0, patch=given.current != 0)
    return ScaleStep(0, requeue=True)
