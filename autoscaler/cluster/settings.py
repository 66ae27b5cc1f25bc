"""The cluster autoscaler's settings, from the environment; every error names the key, the value and the rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloudstate_core.environment import Environment

SHORTEST_TICK = 0.1
"""Seconds."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one replica needs to know."""

    pod: str
    address: str
    """IP address of this pod: where proxies and activators reach the leader."""
    namespace: str
    """Of this installation."""
    knative_namespace: str
    """Where `config-autoscaler` is."""
    port: int
    admin_port: int
    tick: float
    """Seconds between decisions on a revision."""
    kubeconfig: str = ""
    endpoints: bool = False
    """Write core Endpoints beside the slices, for ingresses that read those."""


def settings_of(environment: Mapping[str, str]) -> Settings:
    """Read the environment. SettingsError on the first value that is wrong."""

    read = Environment(environment)
    return Settings(
        pod=read.text("POD_NAME"),
        address=read.text("POD_IP"),
        namespace=read.text("POD_NAMESPACE", "cloudstate-system"),
        knative_namespace=read.text("KNATIVE_NAMESPACE", "knative-serving"),
        port=read.port("AUTOSCALER_PORT", 8101),
        admin_port=read.port("AUTOSCALER_ADMIN_PORT", 8558),
        tick=read.duration("AUTOSCALER_TICK", "2s", SHORTEST_TICK),
        endpoints=read.flag("AUTOSCALER_WRITE_ENDPOINTS"),
        kubeconfig=environment.get("KUBECONFIG", ""),
    )
