"""The connection test of a StatefulStore: log in as proxies do, and look at what a journal needs of the server."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from revision_controller.stores import Store

LIMIT = 5.0
"""Seconds the whole test may take."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the Ready condition says: True or False, a reason for programs, a message for people."""

    ready: bool
    reason: str
    message: str = ""


async def try_redis(store: Store, password: str) -> Outcome:
    """Whether a Redis server can hold a journal."""
    options: dict[str, Any] = {"retry": Retry(NoBackoff(), 0), "socket_timeout": LIMIT, "socket_connect_timeout": LIMIT}
    if password:
        options["password"] = password
    connection = redis.from_url(store.url, **options)
    try:
        async with asyncio.timeout(LIMIT):
            await connection.ping()
            return _judged(store, await _asked(connection, "maxmemory-policy"), await _role(connection), await _asked(connection, "appendonly"))
    except redis.AuthenticationError as error:
        return Outcome(False, "CredentialsRefused", f"{store.url}: {error}")
    except redis.ResponseError as error:
        return Outcome(False, "Refused", f"{store.url}: {error}")
    except TimeoutError:
        return Outcome(False, "Unreachable", f"{store.url}: no answer within {LIMIT:g} s")
    except (redis.RedisError, OSError) as error:
        return Outcome(False, "Unreachable", f"{store.url}: {error}")
    finally:
        await connection.aclose()


def _judged(store: Store, eviction: str, role: str, appendonly: str) -> Outcome:
    """From what the server told of itself; '' = it did not tell."""
    if role in ("slave", "replica"):
        return Outcome(False, "ReadOnly", f"{store.url}: is a replica, which cannot be written to; name the primary")
    if eviction not in ("", "noeviction"):
        rule = "it must be noeviction, or entities are lost when memory is full"
        return Outcome(False, "WouldForget", f"{store.url}: maxmemory-policy is {eviction}; {rule}")
    notes = []
    if not eviction:
        notes.append("maxmemory-policy could not be read, it must be noeviction")
    if appendonly == "no":
        notes.append("appendonly is no, so that events of the last moments are lost when the server crashes")
    return Outcome(True, "Connected", "; ".join(notes))


async def _asked(connection: redis.Redis, setting: str) -> str:
    """A setting of the server; '' when it does not tell (as many hosted ones)."""
    try:
        return str((await connection.config_get(setting)).get(setting, ""))
    except redis.ResponseError:
        return ""


async def _role(connection: redis.Redis) -> str:
    """'master' or 'slave'; '' when the server does not tell."""
    try:
        return str((await connection.info("replication")).get("role", ""))
    except redis.ResponseError:
        return ""
