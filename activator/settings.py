"""The activator's settings, from the environment; every error names the key, the value and the rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloudstate_core.process import SettingsError


@dataclass(frozen=True, slots=True)
class Settings:
    """What one activator needs to know; ports of 0 take a free one."""

    host: str
    port: int
    admin_port: int
    coordinator: str
    """Address of the leader, host:port."""
    transport: str
    queue: int = 10_000
    """Calls of one service that may be held."""
    hold: float = 30.0
    """Seconds that a call may be held."""


def settings_of(environment: Mapping[str, str]) -> Settings:
    """Read the environment. SettingsError on the first value that is wrong."""

    def port(name: str, default: int) -> int:
        value = environment.get(name, str(default))
        if not value.isdecimal() or int(value) > 65535:
            raise SettingsError(f"{name}={value!r}: must be a port from 0 to 65535")
        return int(value)

    coordinator = environment.get("CLOUDSTATE_COORDINATOR", "")
    if ":" not in coordinator:
        raise SettingsError(f"CLOUDSTATE_COORDINATOR={coordinator!r}: must be the leader's host:port")
    return Settings(
        host=environment.get("ACTIVATOR_HOST", "127.0.0.1"),
        port=port("ACTIVATOR_PORT", 9000),
        admin_port=port("ACTIVATOR_ADMIN_PORT", 0),
        coordinator=coordinator,
        transport=environment.get("CLOUDSTATE_TRANSPORT", "auto"),
    )
