"""The pairing reconciler: tells on each revision that asked for a proxy whether it has one, and what its pods still lack."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cloudstate_core import annotations as rules
from cloudstate_core.kube.api import NotFound
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.client import KubeClient
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.kinds import REVISION, SECRET, STATEFUL_STORE
from cloudstate_core.kube.objects import Revision, Secret, StatefulStore, condition
from revision_controller.connection import Outcome
from revision_controller.store_status import password_in
from revision_controller.stores import SecretKey, StoreError, store_of

YOUNG = timedelta(minutes=10)
"""Age below which a revision is told that all is well; older ones were told before, maybe by an earlier leader."""
PAIRING = "pairing"
"""Topic of every event about whether a revision has what it needs."""
AGAIN_BAD = 30.0
"""Seconds until a Secret that is missing is looked for again."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What there is to tell about a revision that asked for a proxy."""

    reason: str
    note: str
    warning: bool = True


def verdict(revision: Revision, found: StatefulStore | None, secret_problem: str = "") -> Verdict:
    """From a revision, its store and what is wrong with the Secret that it chose for itself (pure)."""
    if rules.PAIRED not in revision.metadata.annotations:
        return Verdict("NotPaired", "This revision has no proxy: it was made while admission was not in force. Deploy a new revision")
    store = revision.metadata.annotations.get(rules.STORE, "")
    if found is None:
        return Verdict("StoreMissing", f"StatefulStore {store} is not in this namespace: the proxy cannot open its journal")
    if secret_problem:
        return Verdict("SecretMissing", f"annotation {rules.REDIS_SECRET}: {secret_problem}")
    ready = condition(found.status.conditions, "Ready")
    if ready is not None and ready.status == "False":
        return Verdict("StoreNotReady", f"StatefulStore {store}: {ready.message}")
    return Verdict("Paired", f"Each pod of this revision has a stateful proxy; entities are kept in StatefulStore {store}", warning=False)


def worth_telling(now_is: Verdict, before: str, created: str | None, now: datetime) -> bool:
    """Warnings always; that all is well after a warning, or while the revision is young (pure). `before` = reason told last, or ''."""
    if now_is.warning or before:
        return now_is.warning or before != now_is.reason
    try:
        return now - datetime.fromisoformat(created or "") < YOUNG
    except ValueError:
        return True


class Pairings:
    """Looks at revisions in the light of their stores."""

    def __init__(self, client: KubeClient, revisions: Cache[Revision], stores: Cache[StatefulStore], recorder: Recorder) -> None:
        self._client, self._revisions, self._stores, self._recorder = client, revisions, stores, recorder

    async def reconcile(self, key: str) -> float | None:
        """Tell about one revision; seconds until the next look, if time alone may change something."""
        revision = self._revisions.items.get(key)
        if revision is None or not rules.enabled(revision.metadata.annotations):
            return None
        found = await self._store(revision)
        found_now = verdict(revision, found, await self._secret_problem(revision, found))
        present = self._revisions.items.get(key)
        if present is None or present.metadata.uid != revision.metadata.uid:
            return None  # gone meanwhile: what is told of it now would be remembered for ever
        before = self._recorder.last(revision.metadata.uid, PAIRING)
        if worth_telling(found_now, before, revision.metadata.creation_timestamp, datetime.now(UTC)):
            self._recorder.tell(REVISION, revision, found_now.reason, found_now.note, found_now.warning, PAIRING)
        return AGAIN_BAD if found_now.reason == "SecretMissing" else None

    async def _store(self, revision: Revision) -> StatefulStore | None:
        """The store that a revision names: asked for when the watch has not brought it, since revision and store may come at once."""
        namespace, name = revision.metadata.namespace, revision.metadata.annotations.get(rules.STORE, "")
        found = self._stores.get(namespace, name)
        if found is not None or not name:
            return found
        try:
            return await self._client.get(STATEFUL_STORE, namespace, name)
        except NotFound:
            return None

    def forget(self, uid: str) -> None:
        """A revision is gone."""
        self._recorder.forget(uid)

    def users_of(self, store: StatefulStore) -> list[str]:
        """Keys of the revisions that keep their entities in a store."""
        metadata = store.metadata
        return [
            key
            for key, revision in self._revisions.items.items()
            if revision.metadata.namespace == metadata.namespace and revision.metadata.annotations.get(rules.STORE) == metadata.name
        ]

    async def _secret_problem(self, revision: Revision, found: StatefulStore | None) -> str:
        """What is wrong with the Secret that a revision has chosen instead of its store's; '' when it chose none."""
        wanted = chosen_secret(revision, found)
        if wanted is None:
            return ""
        secret: Secret | None
        try:
            secret = await self._client.get(SECRET, revision.metadata.namespace, wanted.name)
        except NotFound:
            secret = None
        held = password_in(secret, wanted)
        return held.message if isinstance(held, Outcome) else ""


def chosen_secret(revision: Revision, found: StatefulStore | None) -> SecretKey | None:
    """The Secret that a revision's own annotation names, if its store makes use of it (pure)."""
    annotations = revision.metadata.annotations
    if found is None or rules.REDIS_SECRET not in annotations:
        return None
    try:
        return store_of(found.metadata.name, found.spec, annotations).password
    except StoreError:
        return None
