"""The proxy's settings, from the environment; every error names the key, the value and the rule."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from cloudstate_core import annotations as rules
from cloudstate_core.environment import Environment
from cloudstate_core.process import SettingsError
from stateful_proxy.service import PROTOCOLS, Version


@dataclass(frozen=True, slots=True)
class Settings:
    """What one proxy process needs to know."""

    function: str
    """Address of the user function, host:port."""
    host: str
    """Address that all ports are bound to."""
    data_port: int
    peer_port: int
    admin_port: int
    """0 takes a free port."""
    journal: str = field(repr=False)
    """`memory:`, `sqlite:PATH`, `remote:HOST:PORT`, `redis://HOST:PORT/DATABASE` or `rediss://…` for TLS."""
    coordinator: str
    """Address of the leader; empty: standalone, every shard is this proxy's."""
    service: str
    """'<namespace>/<name>'; also the journal's keyspace."""
    revision: str
    pod: str
    shards: int
    passivation: float
    """Idle seconds after which an entity leaves memory."""
    transport: str
    entity_headers: tuple[str, ...] = ()
    """Request headers that commands of entities carry; actions get all of them."""
    journal_password: str = field(default="", repr=False)
    """Of the journal's server; it wins over one in the URL."""
    advertise_host: str = ""
    """Where others reach this proxy, when it is bound to every address; empty: found by the host's own name."""
    function_streams: int = 0
    """Entity streams that the function can serve at once; 0: as many as its library is known for."""
    oldest_protocol: Version = PROTOCOLS[0]
    """Functions that speak an older one are refused."""
    sink: str = ""
    """URL that events are posted to; `{topic}` in it stands for the topic's name."""
    sink_extensions: Mapping[str, str] = field(default_factory=dict)
    """Attributes that events get besides their own."""
    sink_certificates: str = field(default="", repr=False)
    """Further authorities that an https sink may be certified by, PEM."""
    advertise_port: int = 0
    """Port that calls are sent to, when something in front takes them (queue-proxy in a pod); 0: the data port."""

    @property
    def reachable_host(self) -> str:
        """The address that others are told."""
        if self.advertise_host:
            return self.advertise_host
        return socket.gethostbyname(socket.gethostname()) if self.host in ("0.0.0.0", "::", "[::]") else self.host


def settings_of(environment: Mapping[str, str]) -> Settings:
    """Read CLOUDSTATE_* variables. SettingsError on the first that is wrong."""

    def text(name: str, default: str) -> str:
        return environment.get(f"CLOUDSTATE_{name}", default)

    def number(name: str, default: int, low: int, high: int) -> int:
        return Environment(environment).whole(f"CLOUDSTATE_{name}", default, low, high)

    function, service = text("USER_FUNCTION", "127.0.0.1:8080"), text("SERVICE", "default/service")
    if not re.fullmatch(r".+:\d+", function):
        raise SettingsError(f"CLOUDSTATE_USER_FUNCTION={function!r}: must be host:port")
    if service.count("/") != 1:
        raise SettingsError(f"CLOUDSTATE_SERVICE={service!r}: must be namespace/name")
    return Settings(
        function=function,
        host=text("HOST", "127.0.0.1"),
        data_port=number("DATA_PORT", 9000, 0, 65535),
        peer_port=number("PEER_PORT", 8559, 0, 65535),
        admin_port=number("ADMIN_PORT", 8558, 0, 65535),
        journal=text("JOURNAL", "memory:"),
        journal_password=text("JOURNAL_PASSWORD", ""),
        coordinator=text("COORDINATOR", ""),
        service=service,
        revision=text("REVISION", ""),
        pod=text("POD", "") or environment.get("HOSTNAME", "local"),
        shards=number("SHARDS", 256, 1, 4096),
        passivation=_seconds(text("PASSIVATION_TIMEOUT", "30s")),
        transport=text("TRANSPORT", "auto"),
        entity_headers=_names(text("ENTITY_HEADERS", "")),
        advertise_host=text("ADVERTISE_HOST", ""),
        function_streams=number("FUNCTION_STREAMS", 0, 0, 1_000_000),
        oldest_protocol=_protocol(text("OLDEST_PROTOCOL", _shown(PROTOCOLS[0]))),
        sink=_sink(text("SINK", "") or environment.get("K_SINK", "")),
        sink_extensions=_extensions(environment.get("K_CE_OVERRIDES", "")),
        sink_certificates=_certificates(environment.get("K_CA_CERTS", "")),
        advertise_port=number("ADVERTISE_PORT", 0, 0, 65535),
    )


def _names(value: str) -> tuple[str, ...]:
    names = tuple(name.strip().lower() for name in value.split(",") if name.strip())
    if not all(re.fullmatch(r"[0-9a-z_.\-]+\*?", name) for name in names):
        raise SettingsError(f"CLOUDSTATE_ENTITY_HEADERS={value!r}: must be header names with commas between them; x-* stands for all that begin so")
    return names


def _sink(value: str) -> str:
    if value and (problem := rules.RULES[rules.SINK](value)):
        raise SettingsError(f"CLOUDSTATE_SINK={value!r}: {problem}")
    return value


def _certificates(value: str) -> str:
    if value:
        import ssl  # a heavy module, for the few that need it

        try:
            ssl.create_default_context(cadata=value)
        except ssl.SSLError as error:
            raise SettingsError(f"K_CA_CERTS: must be certificates in PEM form: {error}") from error
    return value


def _extensions(value: str) -> Mapping[str, str]:
    """As a SinkBinding gives them: {"extensions": {name: value}}."""
    try:
        found = json.loads(value or "{}").get("extensions") or {}
        return {str(name).lower(): str(text) for name, text in found.items()}
    except (ValueError, AttributeError) as error:
        raise SettingsError(f'K_CE_OVERRIDES={value!r}: must be JSON such as {{"extensions": {{"name": "value"}}}}') from error


def _shown(protocol: Version) -> str:
    return f"{protocol[0]}.{protocol[1]}"


def _protocol(value: str) -> Version:
    known = {_shown(protocol): protocol for protocol in PROTOCOLS}
    if value not in known:
        raise SettingsError(f"CLOUDSTATE_OLDEST_PROTOCOL={value!r}: must be one of {', '.join(known)}")
    return known[value]


def _seconds(value: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", value)
    if match is None or float(match[1]) <= 0:
        raise SettingsError(f"CLOUDSTATE_PASSIVATION_TIMEOUT={value!r}: must be a duration above zero such as 500ms, 30s or 2m")
    return float(match[1]) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[match[2]]
