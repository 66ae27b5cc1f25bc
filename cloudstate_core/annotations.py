"""The rules of `cloudstate.io/*` annotations, one sentence each (pure); the same on a cluster and on one machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping

DOMAIN = "cloudstate.io/"
ENABLED = "cloudstate.io/enabled"
STORE = "cloudstate.io/stateful-store"
POLICY = "cloudstate.io/policy"
SHARDS = "cloudstate.io/shards"
PASSIVATION = "cloudstate.io/passivation-timeout"
ENTITY_HEADERS = "cloudstate.io/entity-headers"
SINK = "cloudstate.io/sink"
PAIRED = "cloudstate.io/paired"
"""Written by admission on a revision that has got its proxy; never by people."""
REDIS_DATABASE, REDIS_SECRET = "redis.cloudstate.io/database", "redis.cloudstate.io/secret"
LOCAL_COMMAND = "local.cloudstate.io/command"
"""The command line that stands for the image on one machine; without effect on a cluster, so that one file serves both."""
DEFAULT_SHARDS, MOST_SHARDS = 256, 4096
DEFAULT_PASSIVATION = "30s"

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_NUMBER = re.compile(r"[0-9]{1,9}")
_HEADERS = re.compile(r"\s*[0-9a-zA-Z_.\-]+\*?\s*(,\s*[0-9a-zA-Z_.\-]+\*?\s*)*")
_URL = re.compile(r"https?://[^\s/?#]+([/?][^\s#]*)?")
_SHOWN = 80
"""Characters of a value that an error shows."""


def _flag(value: str) -> str:
    return "" if value in ("true", "false") else 'must be "true" or "false"'


def _name(value: str) -> str:
    return "" if _NAME.fullmatch(value) else "must be the name of an object: lower case letters, digits, '-' and '.'"


def _shards(value: str) -> str:
    ok = _NUMBER.fullmatch(value) and 1 <= int(value) <= MOST_SHARDS
    return "" if ok else f"must be a whole number from 1 to {MOST_SHARDS}"


def _duration(value: str) -> str:
    found = _DURATION.fullmatch(value)
    return "" if found and float(found[1]) > 0 else "must be a duration above zero such as 500ms, 30s or 2m"


def _text(value: str) -> str:
    return "" if value.strip() else "must not be empty"


def _headers(value: str) -> str:
    return "" if _HEADERS.fullmatch(value) else "must be header names with commas between them; x-* stands for all that begin so"


def _url(value: str) -> str:
    return "" if _URL.fullmatch(value) else "must be an http:// or https:// URL; {topic} in it stands for the topic"


def _database(value: str) -> str:
    return "" if _NUMBER.fullmatch(value) else "must be the number of a Redis database"


RULES: Mapping[str, Callable[[str], str]] = {
    ENABLED: _flag,
    STORE: _name,
    POLICY: _name,
    SHARDS: _shards,
    PASSIVATION: _duration,
    ENTITY_HEADERS: _headers,
    SINK: _url,
    "cloudstate.io/stateful-service-config": _text,
    "postgres.cloudstate.io/database": _text,
    "postgres.cloudstate.io/secret": _name,
    "cassandra.cloudstate.io/keyspace": _text,
    "cassandra.cloudstate.io/secret": _name,
    REDIS_DATABASE: _database,
    REDIS_SECRET: _name,
    LOCAL_COMMAND: _text,
}
"""What people may set; each rule gives '' or what a value must be."""


OF_A_SINK_BINDING = ("K_SINK", "K_CE_OVERRIDES", "K_CA_CERTS")
"""Variables that a SinkBinding sets on a service's containers: a proxy needs the function's."""
_OF_THE_PROXY = {"CLOUDSTATE_ENTITY_HEADERS": ENTITY_HEADERS, "CLOUDSTATE_SINK": SINK}


def is_ours(key: str) -> bool:
    """True for a key of our domains."""
    domain, slash, _ = key.partition("/")
    return bool(slash) and (domain == "cloudstate.io" or domain.endswith(".cloudstate.io"))


def proxy_environment(annotations: Mapping[str, str]) -> dict[str, str]:
    """What annotations say to each pod's proxy, as its environment."""
    return {variable: annotations[key] for variable, key in _OF_THE_PROXY.items() if key in annotations}


def errors(annotations: Mapping[str, str], known: Collection[str] = ()) -> list[str]:
    """What is wrong with the keys of our domains, each with key, value and rule. `known` = further keys that are taken as they are."""
    found = []
    for key, value in sorted(annotations.items()):
        if not is_ours(key) or key in known:
            continue
        rule = RULES.get(key)
        if rule is None:
            found.append(f"annotation {key}: no such key (its value is {_shown(value)}); the keys are {', '.join(sorted(RULES))}")
        elif not isinstance(value, str):
            found.append(f"annotation {key}: {_shown(value)} must be a text: put it in quotes")
        elif problem := rule(value):
            found.append(f"annotation {key}: {_shown(value)} {problem}")
    return found


def enabled(annotations: Mapping[str, str]) -> bool:
    """True when a revision is to be paired with a proxy."""
    return annotations.get(ENABLED) == "true"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
