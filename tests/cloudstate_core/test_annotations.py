"""Annotations of our domains: what is taken, what is refused and in which words."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloudstate_core import annotations as rules

GOOD = {
    "cloudstate.io/enabled": "true",
    "cloudstate.io/stateful-store": "carts",
    "cloudstate.io/policy": "cart.v2",
    "cloudstate.io/shards": "4096",
    "cloudstate.io/passivation-timeout": "1.5m",
    "cloudstate.io/entity-headers": "x-user, ce-*",
    "cloudstate.io/sink": "http://broker.example:8080/default/{topic}",
    "cloudstate.io/stateful-service-config": "anything",
    "postgres.cloudstate.io/database": "carts",
    "postgres.cloudstate.io/secret": "pg",
    "cassandra.cloudstate.io/keyspace": "carts",
    "cassandra.cloudstate.io/secret": "c",
    "redis.cloudstate.io/database": "3",
    "redis.cloudstate.io/secret": "redis-login",
    "local.cloudstate.io/command": "python cart.py",
}


def test_every_known_key_takes_a_good_value() -> None:
    assert set(GOOD) == set(rules.RULES)
    assert rules.errors(GOOD) == []


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("cloudstate.io/enabled", "yes", "annotation cloudstate.io/enabled: 'yes' must be \"true\" or \"false\""),
        ("cloudstate.io/enabled", "", "annotation cloudstate.io/enabled: '' must be \"true\" or \"false\""),
        ("cloudstate.io/shards", "0", "annotation cloudstate.io/shards: '0' must be a whole number from 1 to 4096"),
        ("cloudstate.io/shards", "4097", "annotation cloudstate.io/shards: '4097' must be a whole number from 1 to 4096"),
        ("cloudstate.io/shards", "-1", "annotation cloudstate.io/shards: '-1' must be a whole number from 1 to 4096"),
        ("cloudstate.io/shards", "٣", "annotation cloudstate.io/shards: '٣' must be a whole number from 1 to 4096"),
        ("cloudstate.io/passivation-timeout", "0s", "annotation cloudstate.io/passivation-timeout: '0s' must be a duration above zero"),
        ("cloudstate.io/passivation-timeout", "30", "annotation cloudstate.io/passivation-timeout: '30' must be a duration above zero"),
        ("cloudstate.io/entity-headers", "x user", "annotation cloudstate.io/entity-headers: 'x user' must be header names with commas"),
        ("cloudstate.io/sink", "broker", "annotation cloudstate.io/sink: 'broker' must be an http:// or https:// URL"),
        ("cloudstate.io/sink", "http://a b", "annotation cloudstate.io/sink: 'http://a b' must be an http:// or https:// URL"),
        ("cloudstate.io/stateful-store", "My Store", "annotation cloudstate.io/stateful-store: 'My Store' must be the name of an object"),
        ("redis.cloudstate.io/database", "first", "annotation redis.cloudstate.io/database: 'first' must be the number of a Redis database"),
        ("cassandra.cloudstate.io/keyspace", " ", "annotation cassandra.cloudstate.io/keyspace: ' ' must not be empty"),
        ("cloudstate.io/shard", "8", "annotation cloudstate.io/shard: no such key (its value is '8'); the keys are cassandra."),
        ("mysql.cloudstate.io/secret", "x", "annotation mysql.cloudstate.io/secret: no such key (its value is 'x'); the keys are"),
        ("cloudstate.io/paired", "v1", "annotation cloudstate.io/paired: no such key (its value is 'v1'); the keys are"),
    ],
)
def test_an_error_names_key_value_and_rule(key: str, value: str, said: str) -> None:
    (problem,) = rules.errors({key: value})
    assert problem.startswith(said)


def test_everything_that_is_wrong_is_told_at_once() -> None:
    assert len(rules.errors({"cloudstate.io/shards": "0", "cloudstate.io/enabled": "1", "cloudstate.io/x": ""})) == 3


def test_a_value_of_yaml_that_is_no_text_is_told_to_be_quoted() -> None:
    unquoted: dict[str, Any] = {"cloudstate.io/shards": 64}
    assert rules.errors(unquoted) == ["annotation cloudstate.io/shards: 64 must be a text: put it in quotes"]


def test_a_huge_value_is_refused_and_shown_short() -> None:
    (problem,) = rules.errors({"cloudstate.io/shards": "9" * 5000})
    assert "must be a whole number" in problem
    assert len(problem) < 200


@pytest.mark.parametrize("key", ["autoscaling.knative.dev/class", "cloudstate.io", "notcloudstate.io/x", "example.com/cloudstate.io"])
def test_keys_of_others_are_left_alone(key: str) -> None:
    assert rules.errors({key: "?"}) == []


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*rules.RULES, "cloudstate.io/other"]), st.text(max_size=40)))
def test_any_text_is_judged_without_a_crash(annotations: dict[str, str]) -> None:
    assert len(rules.errors(annotations)) <= len(annotations)
