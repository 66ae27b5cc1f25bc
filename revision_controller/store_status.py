"""The StatefulStore reconciler: reads the spec, really connects, and tells the outcome in the status and as an event."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from cloudstate_core.kube.api import NotFound
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.kinds import SECRET, STATEFUL_STORE
from cloudstate_core.kube.objects import Secret, StatefulStore, condition, timestamp
from revision_controller.connection import Outcome, try_redis
from revision_controller.stores import NotSupported, SecretKey, Store, StoreError, store_of

AGAIN_GOOD, AGAIN_BAD = 300.0, 30.0
"""Seconds until the next test."""
IN_MEMORY = Outcome(True, "InMemory", "entities live as long as the one pod that holds them")


def store_in(found: StatefulStore) -> Store | Outcome:
    """What a spec says, or why no connection needs to be tried (pure)."""
    try:
        store = store_of(found.metadata.name, found.spec)
    except NotSupported as error:
        return Outcome(False, "NotSupported", str(error))
    except StoreError as error:
        return Outcome(False, "Invalid", str(error))
    return IN_MEMORY if store.kind == "inMemory" else store


def password_in(secret: Secret | None, wanted: SecretKey) -> str | Outcome:
    """The password that a Secret holds, or what is wrong with it (pure)."""
    if secret is None:
        return Outcome(False, "SecretMissing", f"Secret {wanted.name}: must exist in this namespace, with the key {wanted.key}")
    if wanted.key not in secret.data:
        return Outcome(False, "SecretMissing", f"Secret {wanted.name}: must have the key {wanted.key}, which holds the password")
    try:
        return base64.b64decode(secret.data[wanted.key]).decode()
    except (binascii.Error, UnicodeDecodeError):
        return Outcome(False, "SecretInvalid", f"Secret {wanted.name}: the key {wanted.key} must hold text in UTF-8")


def status_of(found: StatefulStore, outcome: Outcome, now: datetime) -> dict[str, Any] | None:
    """The status to write; None when it says that already. The condition's time moves only when another field of it does (pure)."""
    state = "True" if outcome.ready else "False"
    old = condition(found.status.conditions, "Ready")
    same = old is not None and (old.status, old.reason, old.message) == (state, outcome.reason, outcome.message)
    if same and found.status.observed_generation == found.metadata.generation:
        return None
    at = timestamp(now)
    if same and old is not None and old.last_transition_time:
        at = old.last_transition_time
    made = {"type": "Ready", "status": state, "reason": outcome.reason, "message": outcome.message, "lastTransitionTime": at}
    return {"observedGeneration": found.metadata.generation, "conditions": [made]}


class StoreStatus:
    """Brings the status of StatefulStores up to date."""

    def __init__(
        self,
        client: KubeClient,
        stores: Cache[StatefulStore],
        recorder: Recorder,
        try_store: Callable[[Store, str], Awaitable[Outcome]] = try_redis,
    ) -> None:
        self._client, self._stores, self._recorder, self._try = client, stores, recorder, try_store

    async def reconcile(self, key: str) -> float | None:
        """Test one store; seconds until the next test."""
        found = self._stores.items.get(key)
        if found is None:
            return None
        outcome = await self._outcome(found)
        await self._tell(key, found, outcome)
        return AGAIN_GOOD if outcome.ready else AGAIN_BAD

    async def _outcome(self, found: StatefulStore) -> Outcome:
        store = store_in(found)
        if isinstance(store, Outcome):
            return store
        password: str | Outcome = ""
        if store.password is not None:
            password = password_in(await self._secret(found.metadata.namespace, store.password.name), store.password)
        return password if isinstance(password, Outcome) else await self._try(store, password)

    async def _secret(self, namespace: str, name: str) -> Secret | None:
        try:
            return await self._client.get(SECRET, namespace, name)
        except NotFound:
            return None

    def _present(self, key: str, tested: StatefulStore) -> StatefulStore | None:
        """The store as last seen; None when it is not the one that was tested any more: then the next test is due already."""
        present, was = self._stores.items.get(key), tested.metadata
        same = present is not None and (present.metadata.uid, present.metadata.generation) == (was.uid, was.generation)
        return present if same else None

    async def _tell(self, key: str, tested: StatefulStore, outcome: Outcome) -> None:
        if (present := self._present(key, tested)) is None:
            return
        status = status_of(present, outcome, datetime.now(UTC))
        if status is None:
            return
        await self._client.merge(STATEFUL_STORE, present.metadata.namespace, present.metadata.name, {"status": status}, "status")
        if self._present(key, tested) is None:
            return  # gone meanwhile: what is told of it now would be remembered for ever
        note = outcome.message or "the store can be used"
        self._recorder.tell(STATEFUL_STORE, present, outcome.reason, note, not outcome.ready, topic="connection")
