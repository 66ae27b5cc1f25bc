"""`config-cloudstate`: what an installation sets for all services (pure)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from revision_controller.pairing import CPU_REQUEST, LOG_LEVEL, MEMORY_REQUEST, ProxySettings

NAME = "config-cloudstate"

_QUANTITY = (re.compile(r"[0-9]+(\.[0-9]+)?(m|[kMGTPE]|[KMGTPE]i)?"), "must be a quantity such as 100m or 64Mi")
_RULES = {
    "default-stateful-store": (re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?)?"), "must be the name of a StatefulStore, or empty"),
    "proxy-image": (re.compile(r"\S*"), "must be the reference of an image, without blanks"),
    "proxy-cpu-request": _QUANTITY,
    "proxy-memory-request": _QUANTITY,
    "proxy-log-level": (re.compile(r"DEBUG|INFO|WARNING|ERROR"), "must be DEBUG, INFO, WARNING or ERROR"),
}


class ConfigError(ValueError):
    """The ConfigMap breaks rules; the text names each key, value and rule."""


@dataclass(frozen=True, slots=True)
class Config:
    """Effective values."""

    proxy: ProxySettings
    default_store: str = ""
    """StatefulStore of revisions that name none; looked for in their own namespace."""


def config_of(data: Mapping[str, str], image: str, coordinator: str) -> Config:
    """From the ConfigMap's data; `image` and `coordinator` are the installation's own. ConfigError lists everything that is wrong.

    `_example` is Knative's way to show the keys in the ConfigMap itself, and is not read.
    """
    problems = [f"{NAME}: {key}: no such key" for key in sorted(data) if key not in _RULES and key != "_example"]
    for key, (form, rule) in _RULES.items():
        if data.get(key) and not form.fullmatch(data[key]):
            problems.append(f"{NAME}: {key}: {data[key]!r} {rule}")
    if problems:
        raise ConfigError("; ".join(problems))
    proxy = ProxySettings(
        image=data.get("proxy-image") or image,
        coordinator=coordinator,
        cpu_request=data.get("proxy-cpu-request") or CPU_REQUEST,
        memory_request=data.get("proxy-memory-request") or MEMORY_REQUEST,
        log_level=data.get("proxy-log-level") or LOG_LEVEL,
    )
    return Config(proxy, data.get("default-stateful-store", ""))
