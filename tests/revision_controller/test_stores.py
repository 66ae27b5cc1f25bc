"""StatefulStores: from a spec to an address, and what is refused in which words."""

from __future__ import annotations

from typing import Any

import pytest

from revision_controller.stores import NotSupported, SecretKey, Store, StoreError, store_of


@pytest.mark.parametrize(
    ("body", "url"),
    [
        ({"host": "redis"}, "redis://redis:6379/0"),
        ({"host": "redis.shop.svc.cluster.local", "port": 6380, "database": 3}, "redis://redis.shop.svc.cluster.local:6380/3"),
        ({"host": "10.0.0.7"}, "redis://10.0.0.7:6379/0"),
        ({"host": "fd00::7"}, "redis://[fd00::7]:6379/0"),
        ({"host": "redis", "tls": True}, "rediss://redis:6379/0"),
        ({"host": "redis", "username": "a/b@c:d"}, "redis://a%2Fb%40c%3Ad@redis:6379/0"),
    ],
)
def test_the_address_of_a_redis_store(body: dict[str, Any], url: str) -> None:
    assert store_of("carts", {"redis": body}) == Store("carts", "redis", url)


def test_credentials_come_by_reference() -> None:
    secret = {"name": "login", "key": "word"}
    assert store_of("carts", {"redis": {"host": "r", "credentialsFromSecret": secret}}).password == SecretKey("login", "word")
    assert store_of("carts", {"redis": {"host": "r", "credentialsFromSecret": {"name": "login"}}}).password == SecretKey("login", "password")


def test_a_services_own_annotations_choose_database_and_secret() -> None:
    own = {"redis.cloudstate.io/database": "5", "redis.cloudstate.io/secret": "own"}
    store = store_of("carts", {"redis": {"host": "r", "database": 1, "credentialsFromSecret": {"name": "login", "key": "word"}}}, own)
    assert store.url == "redis://r:6379/5"
    assert store.password == SecretKey("own", "word")


def test_in_memory_is_not_shared_by_pods() -> None:
    assert store_of("trial", {"inMemory": {}}) == Store("trial", "inMemory", "memory:", shared=False)


@pytest.mark.parametrize("kind", ["postgres", "cassandra"])
def test_a_kind_of_a_later_release_is_told_apart_from_a_mistake(kind: str) -> None:
    with pytest.raises(NotSupported) as refused:
        store_of("carts", {kind: {"host": "db"}})
    assert str(refused.value) == (f"StatefulStore carts: spec.{kind}: is not supported by this release; the stores it supports are inMemory, redis")


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({}, "spec: must name exactly one of inMemory, redis, postgres, cassandra, names 0"),
        ({"inMemory": {}, "redis": {"host": "r"}}, "spec: must name exactly one of inMemory, redis, postgres, cassandra, names 2"),
        ({"mysql": {}}, "spec.mysql: is not a store; the stores are inMemory, redis, postgres, cassandra"),
        ({"redis": {}}, "spec.redis.host: None must be the name or address of a Redis server, without scheme and port"),
        ({"redis": {"host": "redis:6379"}}, "spec.redis.host: 'redis:6379' must be the name or address"),
        ({"redis": {"host": "redis://redis"}}, "spec.redis.host: 'redis://redis' must be"),
        ({"redis": {"host": "evil@elsewhere"}}, "spec.redis.host: 'evil@elsewhere' must be"),
        ({"redis": {"host": "redis", "port": 0}}, "spec.redis.port: 0 must be a port from 1 to 65535"),
        ({"redis": {"host": "redis", "port": True}}, "spec.redis.port: True must be a port from 1 to 65535"),
        ({"redis": {"host": "redis", "database": -1}}, "spec.redis.database: '-1' must be the number of a Redis database"),
    ],
)
def test_what_breaks_a_rule_is_told(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(StoreError) as refused:
        store_of("carts", spec)
    assert str(refused.value).startswith(f"StatefulStore carts: {said}")
    assert not isinstance(refused.value, NotSupported)
