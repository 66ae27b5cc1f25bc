"""The rules of `cloudstate.io/*` annotations, one sentence each (pure); the same on a cluster and on one machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

DOMAIN = "cloudstate.io/"
ENABLED = "cloudstate.io/enabled"
STORE = "cloudstate.io/stateful-store"
POLICY = "cloudstate.io/policy"
SHARDS = "cloudstate.io/shards"
PASSIVATION = "cloudstate.io/passivation-timeout"
PAIRED = "cloudstate.io/paired"
"""Written by admission on a revision that has got its proxy; never by people."""
DEFAULT_SHARDS, MOST_SHARDS = 256, 4096
DEFAULT_PASSIVATION = "30s"

_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")


def _flag(value: str) -> str:
    return "" if value in ("true", "false") else 'must be "true" or "false"'


def _name(value: str) -> str:
    return "" if _NAME.fullmatch(value) else "must be the name of an object: lower case letters, digits, '-' and '.'"


def _shards(value: str) -> str:
    ok = value.isdecimal() and 1 <= int(value) <= MOST_SHARDS
    return "" if ok else f"must be a whole number from 1 to {MOST_SHARDS}"


def _duration(value: str) -> str:
    found = _DURATION.fullmatch(value)
    return "" if found and float(found[1]) > 0 else "must be a duration above zero such as 500ms, 30s or 2m"


def _text(value: str) -> str:
    return "" if value.strip() else "must not be empty"


RULES: Mapping[str, Callable[[str], str]] = {
    ENABLED: _flag,
    STORE: _name,
    POLICY: _name,
    SHARDS: _shards,
    PASSIVATION: _duration,
    "cloudstate.io/stateful-service-config": _text,
    "postgres.cloudstate.io/database": _text,
    "postgres.cloudstate.io/secret": _name,
    "cassandra.cloudstate.io/keyspace": _text,
    "cassandra.cloudstate.io/secret": _name,
    "redis.cloudstate.io/database": lambda value: "" if value.isdecimal() else "must be the number of a Redis database",
    "redis.cloudstate.io/secret": _name,
}
"""What people may set; each rule gives '' or what a value must be."""


def errors(annotations: Mapping[str, str], known: Mapping[str, str] | None = None) -> list[str]:
    """What is wrong with the keys of our domains, each with key, value and rule. `known` = further keys that are taken as they are."""
    found = []
    for key, value in sorted(annotations.items()):
        domain = key.partition("/")[0]
        if (domain != "cloudstate.io" and not domain.endswith(".cloudstate.io")) or key in (known or {}):
            continue
        rule = RULES.get(key)
        if rule is None:
            found.append(f"annotation {key}: is not known; the keys are {', '.join(sorted(RULES))}")
        elif problem := rule(value):
            found.append(f"annotation {key}: {value!r} {problem}")
    return found


def enabled(annotations: Mapping[str, str]) -> bool:
    """True when a revision is to be paired with a proxy."""
    return annotations.get(ENABLED) == "true"
