"""Store status: what is told without a connection, what a real Redis server leads to, and when the condition's time moves."""

from __future__ import annotations

import asyncio
import base64
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from cloudstate_core.kube.cache import Cache
from cloudstate_core.kube.events import Recorder
from cloudstate_core.kube.kinds import STATEFUL_STORE
from cloudstate_core.kube.objects import Condition, Metadata, Secret, StatefulStore, StoreStatus
from revision_controller.connection import Outcome, try_redis
from revision_controller.store_status import IN_MEMORY, password_in, status_of, store_in
from revision_controller.store_status import StoreStatus as StoreTests
from revision_controller.stores import SecretKey, Store

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
GOOD = Outcome(True, "Connected")

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def store(spec: dict[str, Any], generation: int = 1, status: StoreStatus | None = None) -> StatefulStore:
    return StatefulStore(Metadata(name="carts", namespace="shop", generation=generation), spec, status or StoreStatus())


# Without a connection ---------------------------------------------------------------------------------------------------


def test_memory_is_always_ready() -> None:
    assert store_in(store({"inMemory": {}})) == IN_MEMORY
    assert IN_MEMORY.ready


@pytest.mark.parametrize(("spec", "reason"), [({"postgres": {}}, "NotSupported"), ({"cassandra": {}}, "NotSupported"), ({}, "Invalid")])
def test_what_cannot_be_tried_is_told_apart(spec: dict[str, Any], reason: str) -> None:
    outcome = store_in(store(spec))
    assert isinstance(outcome, Outcome)
    assert (outcome.ready, outcome.reason) == (False, reason)
    assert outcome.message.startswith("StatefulStore carts: spec")


@pytest.mark.parametrize(
    ("secret", "expected"),
    [
        (Secret(data={"password": base64.b64encode(b"s3cret").decode()}), "s3cret"),
        (None, Outcome(False, "SecretMissing", "Secret login: must exist in this namespace, with the key password")),
        (Secret(data={"x": ""}), Outcome(False, "SecretMissing", "Secret login: must have the key password, which holds the password")),
        (
            Secret(data={"password": base64.b64encode(b"\xff").decode()}),
            Outcome(False, "SecretInvalid", "Secret login: the key password must hold text in UTF-8"),
        ),
    ],
)
def test_the_password_of_a_secret(secret: Secret | None, expected: str | Outcome) -> None:
    assert password_in(secret, SecretKey("login", "password")) == expected


# The condition ----------------------------------------------------------------------------------------------------------


def told(generation: int = 1, outcome: Outcome = GOOD) -> StoreStatus:
    state = "True" if outcome.ready else "False"
    return StoreStatus((Condition("Ready", state, outcome.reason, outcome.message, "2029-01-01T00:00:00Z"),), generation)


def test_the_first_outcome_is_written() -> None:
    condition = {"type": "Ready", "status": "True", "reason": "Connected", "message": "", "lastTransitionTime": "2030-01-01T12:00:00Z"}
    assert status_of(store({}, 3), GOOD, NOW) == {"observedGeneration": 3, "conditions": [condition]}


def test_the_same_outcome_is_not_written_again() -> None:
    assert status_of(store({}, status=told()), GOOD, NOW) is None


def test_a_new_generation_is_observed_without_moving_the_time() -> None:
    status = status_of(store({}, 2, told(1)), GOOD, NOW)
    assert status is not None
    assert status["observedGeneration"] == 2
    assert status["conditions"][0]["lastTransitionTime"] == "2029-01-01T00:00:00Z"


@pytest.mark.parametrize("outcome", [Outcome(False, "Connected"), Outcome(True, "Other"), Outcome(True, "Connected", "a note")])
def test_any_other_field_moves_the_time(outcome: Outcome) -> None:
    status = status_of(store({}, status=told()), outcome, NOW)
    assert status is not None
    assert status["conditions"][0]["lastTransitionTime"] == "2030-01-01T12:00:00Z"


# Real servers -----------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause of the machine is taken for a server that does not answer."""
    monkeypatch.setattr("revision_controller.connection.LIMIT", 60.0)


def at(server: Any, user: str = "", database: int = 0) -> Store:
    return Store("carts", "redis", f"redis://{user + '@' if user else ''}127.0.0.1:{server.port}/{database}")


async def test_a_durable_server_can_be_used(redis_servers: Callable[..., Any]) -> None:
    assert await try_redis(at(redis_servers(*DURABLE)), "") == Outcome(True, "Connected")


async def test_a_server_that_writes_nothing_down_can_be_used_with_a_note(redis_servers: Callable[..., Any]) -> None:
    outcome = await try_redis(at(redis_servers()), "")
    assert (outcome.ready, outcome.reason) == (True, "Connected")
    assert outcome.message == "appendonly is no, so that events of the last moments are lost when the server crashes"


async def test_a_server_that_evicts_is_not_used(redis_servers: Callable[..., Any]) -> None:
    outcome = await try_redis(at(redis_servers(*DURABLE, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")), "")
    assert (outcome.ready, outcome.reason) == (False, "WouldForget")
    assert "maxmemory-policy is allkeys-lru; it must be noeviction" in outcome.message


async def test_credentials(redis_servers: Callable[..., Any]) -> None:
    everything, only_ping = ("carts", "on", ">w0rd", "~*", "+@all"), ("blind", "on", ">w0rd", "~*", "+ping")
    server = redis_servers(*DURABLE, "--requirepass", "s3cret", "--user", *everything, "--user", *only_ping)
    assert (await try_redis(at(server), "s3cret")).reason == "Connected"
    assert (await try_redis(at(server, "carts"), "w0rd")).reason == "Connected"
    for store_, password in ((at(server), ""), (at(server), "wrong"), (at(server, "carts"), "s3cret")):
        refused = await try_redis(store_, password)
        assert (refused.ready, refused.reason) == (False, "CredentialsRefused")
        assert "s3cret" not in refused.message
    blind = await try_redis(at(server, "blind"), "w0rd")
    assert (blind.ready, blind.message) == (True, "maxmemory-policy could not be read, it must be noeviction")


async def test_a_database_that_the_server_does_not_have(redis_servers: Callable[..., Any]) -> None:
    outcome = await try_redis(at(redis_servers(*DURABLE, "--databases", "2"), database=2), "")
    assert (outcome.ready, outcome.reason) == (False, "Refused")
    assert "out of range" in outcome.message


async def test_a_replica_cannot_be_written_to(redis_servers: Callable[..., Any]) -> None:
    primary = redis_servers(*DURABLE)
    outcome = await try_redis(at(redis_servers(*DURABLE, "--replicaof", f"127.0.0.1 {primary.port}")), "")
    assert (outcome.ready, outcome.reason) == (False, "ReadOnly")


async def test_nobody_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        outcome = await try_redis(Store("carts", "redis", f"redis://127.0.0.1:{probe.getsockname()[1]}/0"), "")
    assert (outcome.ready, outcome.reason) == (False, "Unreachable")


async def test_a_server_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("revision_controller.connection.LIMIT", 0.3)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        outcome = await try_redis(Store("carts", "redis", f"redis://127.0.0.1:{port}/0"), "")
    assert (outcome.ready, outcome.reason) == (False, "Unreachable")


async def test_nothing_is_told_of_a_store_that_goes_while_its_status_is_written() -> None:
    """Nobody would forget again what was told."""

    class Server:
        async def merge(self, *_: Any) -> None:
            del stores.items["shop/carts"]
            recorder.forget("")

        async def create(self, *_: Any) -> None:
            return None

    client: Any = Server()
    stores, recorder = Cache(client, STATEFUL_STORE), Recorder(client, "test", "test")
    stores.items["shop/carts"] = store({"inMemory": {}})
    await StoreTests(client, stores, recorder).reconcile("shop/carts")
    assert not recorder._told
    await recorder.close()
