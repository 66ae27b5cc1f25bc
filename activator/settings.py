"""The activator's settings, from the environment; every error names the key, the value and the rule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloudstate_core.environment import Environment
from cloudstate_core.process import SettingsError


@dataclass(frozen=True, slots=True)
class Settings:
    """What one activator needs to know; ports of 0 take a free one."""

    host: str
    port: int
    """Takes everything; only h2c where `http_port` is set and the transport cannot tell the protocols apart."""
    admin_port: int
    coordinator: str
    """Address of the leader, host:port."""
    transport: str
    queue: int = 10_000
    """Calls of one service that may be held."""
    hold: float = 30.0
    """Seconds that a call may be held; its revision's timeout ends it earlier."""
    http_port: int | None = None
    """Takes HTTP/1.1, if it has a port of its own."""
    linger: float = 0.0
    """Seconds after SIGTERM in which new connections are still taken: those who route to this activator learn late that it ends."""
    drain: float = 5.0
    """Seconds after SIGTERM until what is still open is cut."""


def settings_of(environment: Mapping[str, str]) -> Settings:
    """Read the environment. SettingsError on the first value that is wrong.

    ACTIVATOR_PORT is the one port; a pod has ACTIVATOR_HTTP_PORT and ACTIVATOR_H2C_PORT in its place.
    """

    read = Environment(environment)
    pair = [name for name in ("ACTIVATOR_HTTP_PORT", "ACTIVATOR_H2C_PORT") if name in environment]
    if len(pair) == 1:
        raise SettingsError(f"{pair[0]}={environment[pair[0]]!r}: ACTIVATOR_HTTP_PORT and ACTIVATOR_H2C_PORT must be set together")
    drain = read.seconds("ACTIVATOR_DRAIN_SECONDS", 5.0)
    coordinator = environment.get("CLOUDSTATE_COORDINATOR", "")
    if ":" not in coordinator:
        raise SettingsError(f"CLOUDSTATE_COORDINATOR={coordinator!r}: must be the leader's host:port")
    return Settings(
        host=environment.get("ACTIVATOR_HOST", "127.0.0.1"),
        port=read.port("ACTIVATOR_H2C_PORT", 8013) if pair else read.port("ACTIVATOR_PORT", 9000),
        http_port=read.port("ACTIVATOR_HTTP_PORT", 8012) if pair else None,
        admin_port=read.port("ACTIVATOR_ADMIN_PORT", 0),
        coordinator=coordinator,
        transport=environment.get("CLOUDSTATE_TRANSPORT", "auto"),
        queue=read.whole("ACTIVATOR_QUEUE", 10_000, 1, 1_000_000),
        hold=read.seconds("ACTIVATOR_HOLD_SECONDS", 30.0),
        linger=min(drain, read.seconds("ACTIVATOR_LINGER_SECONDS", drain / 3 if pair else 0.0)),
        drain=drain,
    )
