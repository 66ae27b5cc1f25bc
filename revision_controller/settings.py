"""The revision controller's settings, from the environment; every error names the key, the value and the rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloudstate_core.durations import parse_duration
from cloudstate_core.process import SettingsError


@dataclass(frozen=True, slots=True)
class Settings:
    """What one replica needs to know."""

    pod: str
    namespace: str
    """Of this installation."""
    webhook_port: int
    admin_port: int
    proxy_image: str
    """Unless config-cloudstate names another."""
    coordinator: str
    """Where proxies find the leader, host:port."""
    host: str = "0.0.0.0"
    names: tuple[str, ...] = ()
    """What the API server calls the webhook, when that is not its Service (a controller outside the cluster)."""
    linger: float = 5.0
    """Seconds that the webhook goes on answering after it was told to end: callers learn late that it does."""
    kubeconfig: str = ""


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

    def seconds(name: str, default: str, most: float) -> float:
        value = environment.get(name, default)
        try:
            parsed = parse_duration(value)
        except ValueError as error:
            raise SettingsError(f"{name}={value!r}: must be a duration: {error}") from error
        if not 0 <= parsed <= most:
            raise SettingsError(f"{name}={value!r}: must be from 0s to {most:g}s")
        return parsed

    namespace = text("POD_NAMESPACE", "cloudstate-system")
    return Settings(
        pod=text("POD_NAME"),
        namespace=namespace,
        webhook_port=port("WEBHOOK_PORT", 8443),
        admin_port=port("ADMIN_PORT", 8558),
        proxy_image=text("PROXY_IMAGE"),
        coordinator=text("CLOUDSTATE_COORDINATOR", f"cloudstate-autoscaler.{namespace}.svc.cluster.local:8101"),
        names=tuple(environment.get("WEBHOOK_NAMES", "").split()),
        host=environment.get("WEBHOOK_HOST", "0.0.0.0"),
        linger=seconds("WEBHOOK_LINGER", "5s", 8.0),
        kubeconfig=environment.get("KUBECONFIG", ""),
    )
