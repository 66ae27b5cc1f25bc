"""The cluster autoscaler's settings, from the environment; every error names the key, the value and the rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloudstate_core.durations import parse_duration
from cloudstate_core.process import SettingsError

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

    def text(name: str, default: str = "") -> str:
        value = environment.get(name, default)
        if not value:
            raise SettingsError(f"{name}: must be set")
        return value

    def port(name: str, default: int) -> int:
        value = environment.get(name, str(default))
        if not value.isdecimal() or int(value) > 65535:
            raise SettingsError(f"{name}={value!r}: must be a port from 0 to 65535")
        return int(value)

    def flag(name: str) -> bool:
        value = environment.get(name, "false")
        if value not in ("true", "false"):
            raise SettingsError(f"{name}={value!r}: must be true or false")
        return value == "true"

    tick = environment.get("AUTOSCALER_TICK", "2s")
    try:
        seconds = parse_duration(tick)
    except ValueError as error:
        raise SettingsError(f"AUTOSCALER_TICK={tick!r}: must be a duration: {error}") from error
    if seconds < SHORTEST_TICK:
        raise SettingsError(f"AUTOSCALER_TICK={tick!r}: must be at least {SHORTEST_TICK:g}s")
    return Settings(
        pod=text("POD_NAME"),
        address=text("POD_IP"),
        namespace=text("POD_NAMESPACE", "cloudstate-system"),
        knative_namespace=text("KNATIVE_NAMESPACE", "knative-serving"),
        port=port("AUTOSCALER_PORT", 8101),
        admin_port=port("AUTOSCALER_ADMIN_PORT", 8558),
        tick=seconds,
        endpoints=flag("AUTOSCALER_WRITE_ENDPOINTS"),
        kubeconfig=environment.get("KUBECONFIG", ""),
    )
