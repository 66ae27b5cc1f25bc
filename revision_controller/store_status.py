"""The StatefulStore reconciler: reads the spec, really connects, and tells the outcome in the status and as an event."""

from __future__ import annotations

import base64
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import redis.asyncio as redis

from cloudstate_core.kube.api import NotFound
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.kinds import SECRET, STATEFUL_STORE
from cloudstate_core.kube.objects import StatefulStore, condition
from revision_controller.stores import SecretKey, Store, StoreError, store_of

log = logging.getLogger(__name__)

CONNECT_LIMIT = 5.0
"""Seconds a connection test may take."""
AGAIN_GOOD, AGAIN_BAD = 300.0, 15.0
"""Seconds until the next test."""

Outcome = tuple[str, str, str]
"""Status, reason, message of the Ready condition."""


async def try_redis(store: Store, password: str) -> Outcome:
    """Connect, and look at what a journal needs."""
    options: dict[str, Any] = {"socket_timeout": CONNECT_LIMIT, "socket_connect_timeout": CONNECT_LIMIT}
    if password:
        options["password"] = password
    connection = redis.from_url(store.url, **options)
    try:
        await connection.ping()
        policy = (await connection.config_get("maxmemory-policy")).get("maxmemory-policy", "noeviction")
    except redis.ResponseError as error:
        if "unknown command" in str(error).lower() or "noperm" in str(error).lower():
            return "True", "Connected", "connected; maxmemory-policy could not be read: it must be noeviction"
        return "False", "Refused", f"{store.url}: {error}"
    except (redis.RedisError, OSError) as error:
        return "False", "Unreachable", f"{store.url}: {error}"
    finally:
        await connection.aclose()
    if policy != "noeviction":
        return "False", "WouldForget", f"{store.url}: maxmemory-policy is {policy}; it must be noeviction, or entities are lost when memory is full"
    return "True", "Connected", ""


class StoreStatus:
    """Brings the status of StatefulStores up to date."""

    def __init__(
        self, client: KubeClient, stores: Cache[StatefulStore], recorder: Recorder, try_store: Callable[[Store, str], Awaitable[Outcome]] = try_redis
    ) -> None:
        self._client, self._stores, self._recorder, self._try = client, stores, recorder, try_store

    async def reconcile(self, key: str) -> float | None:
        """Test one store; seconds until the next test."""
        found = self._stores.items.get(key)
        if found is None:
            return None
        state, reason, message = await self._outcome(found)
        await self._tell(found, state, reason, message)
        return AGAIN_GOOD if state == "True" else AGAIN_BAD

    async def _outcome(self, found: StatefulStore) -> Outcome:
        try:
            store = store_of(found.metadata.name, found.spec)
        except StoreError as error:
            return "False", "Invalid", str(error)
        if store.kind == "inMemory":
            return "True", "InMemory", "entities live as long as the one pod that holds them"
        password = ""
        if store.password is not None:
            secret = await self._password(found.metadata.namespace, store.password)
            if secret is None:
                return "False", "SecretMissing", f"Secret {store.password.name}: must exist in this namespace with the key {store.password.key}"
            password = secret
        return await self._try(store, password)

    async def _password(self, namespace: str, key: SecretKey) -> str | None:
        try:
            secret = await self._client.get(SECRET, namespace, key.name)
        except NotFound:
            return None
        return base64.b64decode(secret.data[key.key]).decode() if key.key in secret.data else None

    async def _tell(self, found: StatefulStore, state: str, reason: str, message: str) -> None:
        """Write the condition when it is another one; its time moves only then."""
        old = condition(found.status.conditions, "Ready")
        if old is not None and (old.status, old.reason, old.message) == (state, reason, message):
            return
        made = {"type": "Ready", "status": state, "reason": reason, "message": message}
        made["lastTransitionTime"] = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        status = {"observedGeneration": found.metadata.generation, "conditions": [made]}
        await self._client.merge(STATEFUL_STORE, found.metadata.namespace, found.metadata.name, {"status": status}, "status")
        self._recorder.tell(STATEFUL_STORE, found, reason, message or "connected", warning=state != "True")
