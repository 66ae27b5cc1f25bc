"""StatefulStores: from a spec to what a proxy needs to reach the journal (pure)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cloudstate_core.annotations import REDIS_DATABASE, REDIS_SECRET

KINDS = ("inMemory", "redis", "postgres", "cassandra")
SUPPORTED = ("inMemory", "redis")

_HOST = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([-A-Za-z0-9_]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([-A-Za-z0-9_]*[A-Za-z0-9_])?)*\.?")


class StoreError(ValueError):
    """A store cannot be used: says what, where and which rule."""


class NotSupported(StoreError):
    """A store is well formed, but this release cannot use its kind."""


@dataclass(frozen=True, slots=True)
class SecretKey:
    """A value of a Secret in the store's namespace."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Store:
    """A store that proxies can use. `url` has no password in it; `shared` is False when each pod would have a journal of its own."""

    name: str
    kind: str
    url: str
    password: SecretKey | None = None
    shared: bool = True


def store_of(name: str, spec: Mapping[str, Any], annotations: Mapping[str, str] | None = None) -> Store:
    """Read a StatefulStore's spec; a service's own annotations may choose database and secret.

    StoreError when it breaks a rule, NotSupported when this release has no journal for its kind.
    """
    given = [kind for kind in KINDS if kind in spec]
    where = f"StatefulStore {name}"
    if unknown := sorted(set(spec) - set(KINDS)):
        raise StoreError(f"{where}: spec.{unknown[0]}: is not a store; the stores are {', '.join(KINDS)}")
    if len(given) != 1:
        raise StoreError(f"{where}: spec: must name exactly one of {', '.join(KINDS)}, names {len(given)}")
    kind = given[0]
    if kind not in SUPPORTED:
        raise NotSupported(f"{where}: spec.{kind}: is not supported by this release; the stores it supports are {', '.join(SUPPORTED)}")
    if kind == "inMemory":
        return Store(name, kind, "memory:", shared=False)
    return _redis(name, where, spec[kind] or {}, annotations or {})


def _redis(name: str, where: str, body: Mapping[str, Any], annotations: Mapping[str, str]) -> Store:
    host, port = body.get("host"), body.get("port", 6379)
    if not isinstance(host, str) or not (address := _address(host)):
        raise StoreError(f"{where}: spec.redis.host: {host!r} must be the name or address of a Redis server, without scheme and port")
    if isinstance(port, bool) or not isinstance(port, int) or not 1 <= port <= 65535:
        raise StoreError(f"{where}: spec.redis.port: {port!r} must be a port from 1 to 65535")
    database = annotations.get(REDIS_DATABASE, str(body.get("database", 0)))
    if not (database.isascii() and database.isdecimal()):
        raise StoreError(f"{where}: spec.redis.database: {database!r} must be the number of a Redis database")
    user, scheme = str(body.get("username", "")), "rediss" if body.get("tls") else "redis"
    secret = body.get("credentialsFromSecret") or {}
    secret_name = annotations.get(REDIS_SECRET, secret.get("name", ""))
    password = SecretKey(secret_name, secret.get("key", "password")) if secret_name else None
    login = f"{quote(user, safe='')}@" if user else ""
    return Store(name, "redis", f"{scheme}://{login}{address}:{port}/{database}", password)


def _address(host: str) -> str:
    """A host as URLs carry it; '' when it is none."""
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host if _HOST.fullmatch(host) else ""
