"""The status of a PodAutoscaler, to the letter of what Revision, Route and Knative's tools read (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoscaler.cluster.networking import private_name
from autoscaler.status import Conditions, conditions
from cloudstate_core.kube.objects import Condition, PodAutoscaler, condition

ACTIVE, INITIALIZED, NETWORK, READY = "Active", "ScaleTargetInitialized", "SKSReady", "Ready"
MESSAGES = {
    "Queued": "Requests to the target are being buffered as resources are provisioned.",
    "NoTraffic": "The target is not receiving traffic.",
    "TimedOut": "The target could not be activated.",
    "NotOwned": "A Service of the revision's name exists that another controller owns.",
}


@dataclass(frozen=True, slots=True)
class Observed:
    """What a status is made of. `want` = scale after bounds, -1 = nothing decided yet; `ready` pods; bounds as configured."""

    want: int
    ready: int
    minimum: int = 0
    initial: int = 1
    network: bool = False
    """Service and slices are there."""
    foreign: bool = False
    """The Service is somebody else's."""
    replicas: int = 0
    """What the Deployment has: the scale to tell while neither this leader nor one before has decided."""


def status(pa: PodAutoscaler, seen: Observed, now: str) -> dict[str, Any]:
    """The whole status to write; `now` = RFC 3339 time for conditions that change."""
    old = pa.status
    before = Conditions(_state(old.conditions, ACTIVE), _reason(old.conditions, ACTIVE), _state(old.conditions, INITIALIZED) == "True")
    after = conditions(before, seen.want, seen.ready, seen.minimum, seen.initial, pa.spec.reachability, seen.network)
    active, reason = after.active or "Unknown", after.reason
    if seen.foreign:
        active, reason = "False", "NotOwned"
    network = "True" if seen.network else "Unknown"
    found = [
        _condition(old.conditions, ACTIVE, active, reason, now),
        _condition(old.conditions, INITIALIZED, "True" if after.initialized else "Unknown", "", now),
        _condition(old.conditions, NETWORK, network, "" if seen.network else "Deploying", now),
    ]
    ready, why = _living([(c["status"], c.get("reason", "")) for c in found])
    found.append(_condition(old.conditions, READY, ready, why, now))
    return {
        "observedGeneration": pa.metadata.generation,
        "serviceName": pa.metadata.name if seen.network else old.service_name,
        "metricsServiceName": private_name(pa),
        "desiredScale": _desired(pa, seen),
        "actualScale": seen.ready,
        "conditions": sorted(found, key=lambda c: str(c["type"])),
    }


def _desired(pa: PodAutoscaler, seen: Observed) -> int:
    """Never unknown: a scale once told stays until another one is decided."""
    if seen.want >= 0:
        return seen.want
    told = pa.status.desired_scale
    return told if told is not None and told >= 0 else seen.replicas


def same(pa: PodAutoscaler, new: dict[str, Any]) -> bool:
    """True when writing would change nothing."""
    old = pa.status
    held = (old.observed_generation, old.service_name, old.metrics_service_name, old.desired_scale, old.actual_scale)
    wanted = tuple(new[k] for k in ("observedGeneration", "serviceName", "metricsServiceName", "desiredScale", "actualScale"))
    told = [(c.type, c.status, c.reason, c.message) for c in old.conditions]
    return held == wanted and told == [(c["type"], c["status"], c.get("reason", ""), c.get("message", "")) for c in new["conditions"]]


def _state(held: tuple[Condition, ...], kind: str) -> str | None:
    found = condition(held, kind)
    return found.status if found is not None else None


def _reason(held: tuple[Condition, ...], kind: str) -> str:
    found = condition(held, kind)
    return found.reason if found is not None else ""


def _living(parts: list[tuple[str, str]]) -> tuple[str, str]:
    """False if any part is False, else Unknown if any is, else True; with the reason of the part that decides."""
    for wanted in ("False", "Unknown"):
        for state, reason in parts:
            if state == wanted:
                return wanted, reason
    return "True", ""


def _condition(held: tuple[Condition, ...], kind: str, state: str, reason: str, now: str) -> dict[str, Any]:
    """One condition; its time moves only when something of it does."""
    old = condition(held, kind)
    message = MESSAGES.get(reason, "")
    unchanged = old is not None and (old.status, old.reason, old.message) == (state, reason, message)
    made = {"type": kind, "status": state, "lastTransitionTime": old.last_transition_time if unchanged and old is not None else now}
    if reason:
        made |= {"reason": reason}
    if message:
        made |= {"message": message}
    return made
