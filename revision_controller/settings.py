"""The revision controller's settings, from the environment; every error names the key, the value and the rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloudstate_core.environment import Environment


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

    read = Environment(environment)
    namespace = read.text("POD_NAMESPACE", "cloudstate-system")
    return Settings(
        pod=read.text("POD_NAME"),
        namespace=namespace,
        webhook_port=read.port("WEBHOOK_PORT", 8443),
        admin_port=read.port("ADMIN_PORT", 8558),
        proxy_image=read.text("PROXY_IMAGE"),
        coordinator=read.text("CLOUDSTATE_COORDINATOR", f"cloudstate-autoscaler.{namespace}.svc.cluster.local:8101"),
        names=tuple(environment.get("WEBHOOK_NAMES", "").split()),
        host=environment.get("WEBHOOK_HOST", "0.0.0.0"),
        linger=read.duration("WEBHOOK_LINGER", "5s", high=8.0),
        kubeconfig=environment.get("KUBECONFIG", ""),
    )
