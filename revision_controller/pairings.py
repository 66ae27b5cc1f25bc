"""The pairing reconciler: tells on each revision that asked for a proxy whether it has one, and what it still lacks."""

from __future__ import annotations

from cloudstate_core import annotations as rules
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.kinds import REVISION
from cloudstate_core.kube.objects import Revision, StatefulStore, condition


def verdict(revision: Revision, store: str, found: StatefulStore | None) -> tuple[str, str, bool]:
    """Reason, note and whether it is a warning: what there is to tell about a revision that asked for a proxy (pure)."""
    if rules.PAIRED not in revision.metadata.annotations:
        note = "This revision has no proxy: it was made while admission was not in force. Deploy a new revision"
        return "NotPaired", note, True
    if found is None:
        return "StoreMissing", f"StatefulStore {store} is not in this namespace: the proxy cannot open its journal", True
    ready = condition(found.status.conditions, "Ready")
    if ready is not None and ready.status == "False":
        return "StoreNotReady", f"StatefulStore {store}: {ready.message}", True
    return "Paired", f"Each pod of this revision has a stateful proxy; entities are kept in StatefulStore {store}", False


class Pairings:
    """Watches revisions and stores."""

    def __init__(self, revisions: Cache[Revision], stores: Cache[StatefulStore], recorder: Recorder, default_store: str = "") -> None:
        self._revisions, self._stores, self._recorder = revisions, stores, recorder
        self.default_store = default_store

    async def reconcile(self, key: str) -> None:
        """Tell about one revision."""
        revision = self._revisions.items.get(key)
        if revision is None or not rules.enabled(revision.metadata.annotations):
            return
        store = self.store_of(revision)
        reason, note, warning = verdict(revision, store, self._stores.get(revision.metadata.namespace, store))
        self._recorder.tell(REVISION, revision, reason, note, warning)

    def store_of(self, revision: Revision) -> str:
        """Name of the revision's store."""
        return revision.metadata.annotations.get(rules.STORE, "") or self.default_store

    def users_of(self, store: StatefulStore) -> list[str]:
        """Keys of the revisions that keep their entities in a store."""
        return [
            key
            for key, revision in self._revisions.items.items()
            if revision.metadata.namespace == store.metadata.namespace and self.store_of(revision) == store.metadata.name
        ]
