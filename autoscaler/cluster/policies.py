"""AutoscalingPolicies on a cluster: which one applies to a revision, and what each tells about itself.

A policy that breaks a rule (admission was away, or the rules changed) is told so in its status, and the last good form stays in force.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from autoscaler.settings import ScaleSettings
from cloudstate_core.annotations import POLICY
from cloudstate_core.kube.objects import AutoscalingPolicy, PodAutoscaler
from cloudstate_core.policy import Policy, PolicyError, parse_policy

log = logging.getLogger(__name__)


class Policies:
    """The policies of all namespaces, in their last good form."""

    def __init__(self) -> None:
        self._good: dict[str, Policy] = {}
        self.problems: dict[str, str] = {}
        """By key: what is wrong with the present form."""

    def changed(self, before: AutoscalingPolicy | None, after: AutoscalingPolicy | None) -> None:
        """A policy came, changed or went."""
        if after is None:
            if before is not None:
                self._good.pop(before.metadata.key, None)
                self.problems.pop(before.metadata.key, None)
            return
        key, metadata = after.metadata.key, {"name": after.metadata.name, "namespace": after.metadata.namespace}
        document = {"apiVersion": "autoscaling.cloudstate.io/v1alpha1", "kind": "AutoscalingPolicy", "metadata": metadata, "spec": after.spec}
        try:
            self._good[key] = parse_policy(document)
            self.problems.pop(key, None)
        except PolicyError as error:
            self.problems[key] = str(error)
            log.warning("policy %s: %s", key, error)

    def of(self, pa: PodAutoscaler) -> tuple[str, Policy | None]:
        """Key and value of the policy that applies to a revision: the one its annotation names, else the first whose selector matches."""
        namespace = pa.metadata.namespace
        named = pa.metadata.annotations.get(POLICY)
        if named is not None:
            key = f"{namespace}/{named}"
            return key, self._good.get(key)
        for key in sorted(self._good):
            if key.startswith(namespace + "/") and self._good[key].matches(pa.metadata.labels):
                return key, self._good[key]
        return "", None


def status_of(policy: AutoscalingPolicy, problem: str, users: Mapping[str, ScaleSettings], now: str) -> dict[str, Any]:
    """What a policy tells: whether it was accepted, the revisions it applies to, and the values in force there."""
    state, reason = ("False", "Invalid") if problem else ("True", "Accepted")
    old: Mapping[str, str] = next((c for c in policy.status.get("conditions", ()) if c.get("type") == "Ready"), {})
    unchanged = (old.get("status"), old.get("reason"), old.get("message")) == (state, reason, problem)
    made = {"type": "Ready", "status": state, "reason": reason, "message": problem}
    made["lastTransitionTime"] = old.get("lastTransitionTime", now) if unchanged else now
    effective = [effective_values(name, settings) for name, settings in sorted(users.items())]
    return {
        "observedGeneration": policy.metadata.generation,
        "conditions": [made],
        "matched": len(effective),
        "effective": effective,
    }


def effective_values(revision: str, settings: ScaleSettings) -> dict[str, Any]:
    """The values that a revision is scaled by, as a person would look for them."""
    return {
        "revision": revision,
        "min": settings.minimum,
        "max": settings.maximum,
        "metrics": [{"type": demand.type, "target": f"{demand.target:g}"} for demand in settings.demands],
        "stableWindow": f"{settings.stable_window:g}s",
        "scaleToZero": settings.enable_zero,
    }


def users_of(policy: str, revisions: Iterable[tuple[str, str, ScaleSettings]]) -> dict[str, ScaleSettings]:
    """Of (policy key, revision, settings) triples: those that the policy applies to."""
    return {revision: settings for key, revision, settings in revisions if key == policy}
