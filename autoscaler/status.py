"""The conditions of a PodAutoscaler (pure; what Revision and Route read of it)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Conditions:
    """`active` is "True", "False", "Unknown" or None (never set); `initialized` never goes back."""

    active: str | None
    reason: str
    initialized: bool


def conditions(
    before: Conditions, want: int, ready: int, minimum: int, initial_scale: int, reachability: str, has_service: bool
) -> Conditions:
    """The next conditions; `want` is the scale after bounds."""
    low = 0 if reachability == "Unreachable" else minimum
    threshold = max(low, 1) if before.initialized else max(low, initial_scale)
    initialized = before.initialized or (ready >= threshold and has_service)
    if want == 0 or threshold == 0:
        timed_out = before.active == "Unknown" and threshold > 0
        return Conditions("False", "TimedOut" if timed_out else "NoTraffic", initialized)
    if want < 0 and before.active == "False":
        return Conditions("False", "NoTraffic", initialized)
    if ready < threshold:
        return Conditions("Unknown", "Queued", initialized)
    return Conditions("True", "", initialized)
