"""What a revision is told about its proxy, and when it is worth telling."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cloudstate_core.kube.api import NotFound
from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.kinds import REVISION, STATEFUL_STORE
from cloudstate_core.kube.objects import Condition, Metadata, Revision, StatefulStore, StoreStatus
from revision_controller.pairings import PAIRING, YOUNG, Pairings, Verdict, chosen_secret, verdict, worth_telling
from revision_controller.stores import SecretKey

NOW = datetime(2030, 1, 1, tzinfo=UTC)
PAIRED = {"cloudstate.io/enabled": "true", "cloudstate.io/paired": "v1", "cloudstate.io/stateful-store": "carts"}
WELL, BAD = Verdict("Paired", "", warning=False), Verdict("StoreMissing", "")


def revision(**more: str) -> Revision:
    return Revision(Metadata(name="cart-1", namespace="shop", annotations=PAIRED | more))


def store(status: str = "", message: str = "") -> StatefulStore:
    conditions = (Condition("Ready", status, "", message),) if status else ()
    return StatefulStore(Metadata(name="carts", namespace="shop"), {"redis": {"host": "r"}}, StoreStatus(conditions))


def test_a_revision_that_slipped_through_is_told() -> None:
    bare = Revision(Metadata(name="cart-1", annotations={"cloudstate.io/enabled": "true"}))
    assert (verdict(bare, store()).reason, verdict(bare, store()).warning) == ("NotPaired", True)


@pytest.mark.parametrize(
    ("found", "secret", "reason", "said"),
    [
        (None, "", "StoreMissing", "StatefulStore carts is not in this namespace"),
        (store("False", "redis://r:6379/0: refused"), "", "StoreNotReady", "StatefulStore carts: redis://r:6379/0: refused"),
        (store("True"), "Secret own: must exist", "SecretMissing", "annotation redis.cloudstate.io/secret: Secret own: must exist"),
        (store("True"), "", "Paired", "entities are kept in StatefulStore carts"),
        (store(), "", "Paired", "entities are kept in StatefulStore carts"),
    ],
)
def test_verdicts(found: StatefulStore | None, secret: str, reason: str, said: str) -> None:
    given = verdict(revision(), found, secret)
    assert given.reason == reason
    assert said in given.note
    assert given.warning is (reason != "Paired")


def test_only_a_secret_of_the_revisions_own_is_looked_at() -> None:
    assert chosen_secret(revision(), store()) is None
    chosen = revision(**{"redis.cloudstate.io/secret": "own"})
    assert chosen_secret(chosen, store()) == SecretKey("own", "password")
    assert chosen_secret(chosen, None) is None


def written(age: timedelta) -> str:
    return (NOW - age).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("now_is", "before", "age", "expected"),
    [
        (WELL, "", timedelta(0), True),
        (WELL, "", YOUNG, False),
        (WELL, "Paired", timedelta(0), False),
        (WELL, "StoreMissing", YOUNG * 9, True),
        (BAD, "", YOUNG * 9, True),
        (BAD, "StoreMissing", YOUNG * 9, True),
        (BAD, "Paired", YOUNG * 9, True),
    ],
)
def test_a_new_leader_does_not_repeat_that_all_is_well(now_is: Verdict, before: str, age: timedelta, expected: bool) -> None:
    assert worth_telling(now_is, before, written(age), NOW) is expected


class Server:
    """An API server with one store or none, which takes every event."""

    def __init__(self, held: StatefulStore | None) -> None:
        self._held = held

    async def get(self, kind: Any, namespace: str, name: str) -> StatefulStore:
        if self._held is None:
            raise NotFound(404, "NotFound", "there is none")
        return self._held

    async def create(self, *_: Any) -> None:
        return None


@pytest.mark.parametrize(("held", "told"), [(store("True"), "Paired"), (None, "StoreMissing")])
async def test_a_store_that_the_watch_has_not_brought_is_asked_for_before_it_is_called_missing(held: StatefulStore | None, told: str) -> None:
    client: Any = Server(held)
    revisions, recorder = Cache(client, REVISION), Recorder(client, "test", "test")
    revisions.items["shop/cart-1"] = revision()
    await Pairings(client, revisions, Cache(client, STATEFUL_STORE), recorder).reconcile("shop/cart-1")
    assert recorder.last(revision().metadata.uid, PAIRING) == told
    await recorder.close()


async def test_nothing_is_told_of_a_revision_that_goes_while_it_is_looked_at() -> None:
    """Nobody would forget again what was told."""
    revisions = Cache[Revision](None, REVISION)  # type: ignore[arg-type]

    class Going(Server):
        async def get(self, kind: Any, namespace: str, name: str) -> StatefulStore:
            del revisions.items["shop/cart-1"]
            recorder.forget(revision().metadata.uid)
            return await super().get(kind, namespace, name)

    client: Any = Going(None)
    recorder = Recorder(client, "test", "test")
    revisions.items["shop/cart-1"] = revision()
    assert await Pairings(client, revisions, Cache(client, STATEFUL_STORE), recorder).reconcile("shop/cart-1") is None
    assert not recorder._told
    await recorder.close()
