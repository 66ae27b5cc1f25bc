"""`config-cloudstate`: what an installation sets for all services (pure)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from revision_controller.pairing import CPU_REQUEST, LOG_LEVEL, MEMORY_REQUEST, ProxySettings


@dataclass(frozen=True, slots=True)
class Config:
    """Effective values."""

    proxy: ProxySettings
    default_store: str = ""
    """StatefulStore of revisions that name none; looked for in their own namespace."""


def config_of(data: Mapping[str, str], image: str, coordinator: str) -> Config:
    """From the ConfigMap's data; `image` and `coordinator` are the installation's own."""
    proxy = ProxySettings(
        image=data.get("proxy-image") or image,
        coordinator=coordinator,
        cpu_request=data.get("proxy-cpu-request") or CPU_REQUEST,
        memory_request=data.get("proxy-memory-request") or MEMORY_REQUEST,
        log_level=data.get("proxy-log-level") or LOG_LEVEL,
    )
    return Config(proxy, data.get("default-stateful-store", ""))
