"""Every store answers random programs as the memory journal does, whose guards are the rules; the Redis scripts say the rules once more, in Lua.

Each guard of the scripts is also taken away in turn: the programs must then tell the difference, else they prove nothing.
"""

from __future__ import annotations

import contextlib
import pathlib
import random
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloudstate_core.journal import api, redis_calls, redis_flights, redis_format, redis_layout
from cloudstate_core.journal.redis_format import Script
from tests.journal_programs import Program, found_by
from tests.journal_stores import DURABLE, open_redis, store


@pytest.mark.parametrize("name", DURABLE)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(choose=st.randoms(use_true_random=False), length=st.integers(1, 150))
def test_every_store_answers_as_the_memory_journal_does(
    name: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, choose: random.Random, length: int
) -> None:
    program = Program(choose, length)
    folder = tmp_path_factory.mktemp("alike")
    with store(name, folder, lambda: request.getfixturevalue("shared_redis").url)() as journal:
        answers = program.asked_of(journal)
    for operation, answered, expected in zip(program.operations, answers, program.outcomes, strict=True):
        assert answered == expected, operation


@pytest.fixture(scope="module")
def programs() -> list[Program]:
    made = [Program(random.Random(seed), 300) for seed in range(8)]
    never = set(get_args(api.Outcome)) - found_by(made) - {api.Unknown, api.Refused}
    assert not never, "the programs are too tame"
    return made


def differs(url: str, keyspace: str, programs: list[Program]) -> bool:
    """Does a server answer one of them as the memory journal does not?"""
    for number, program in enumerate(programs):
        with contextlib.closing(open_redis(url, f"{keyspace}-{number}")) as journal:
            if program.asked_of(journal) != program.outcomes:
                return True
    return False


def use_script(text: bytes, patch: pytest.MonkeyPatch) -> None:
    """Redis journals opened from now on ask this script."""
    shard, reading = Script(text), Script(text.replace(b"#!lua", b"#!lua flags=allow-oom", 1))
    patch.setattr(redis_calls, "shard_script", shard)
    patch.setattr(redis_calls, "reading_script", reading)
    for module in (redis_flights, redis_layout):
        patch.setattr(module, "SCRIPTS", (shard, reading, redis_format.open_script))


SCRIPT = (pathlib.Path(redis_format.__file__).parent / "redis_shard.lua").read_bytes()
FENCED = b"local refused = refused_by_fence(theirs)\n%bif refused then\n%b  return refused\n%bend\n%b"
MUTATIONS = {
    "claim: older generation": (b"tonumber(since) < generation", b"false"),
    "claim: expected epoch": (b"expected ~= -1 and expected ~= epoch", b"false"),
    "claim: same nonce": (b"nonce == fresh", b"false"),
    "fence": (b"theirs ~= nonce", b"false"),
    "activate: epoch of the entity": (b"entity[1] and tonumber(entity[1]) > tonumber(their_epoch)", b"false"),
    "activate: events without puts": (b"length + puts ~= tonumber(seq)", b"length ~= tonumber(seq)"),
    "activate: tail after puts": (b"covered - tonumber(seq), -1", b"covered, -1"),
    "guarded: fence": (
        FENCED % (b"  ", b"  ", b"  ", b"  ") + b"local entity = redis.call('HMGET', head, 'seq'",
        b"local entity = redis.call('HMGET', head, 'seq'",
    ),
    "guarded: binding": (b"entity[3] ~= binding", b"false"),
    "guarded: duplicate": (b"command and redis.call('GET', command)", b"false"),
    "guarded: sequence": (b"entity[1] ~= expected", b"false"),
    "append: log": (b"redis.call('RPUSH', log, following .. suffix)", b""),
    "append: log of several": (b"redis.call('RPUSH', log, unpack(entries))", b""),
    "append: snapshot": (b"'snapshot_seq', following, 'snapshot', snapshot", b"'snapshot', snapshot"),
    "put: counted": (b"puts + 1", b"puts"),
    "put: deletion": (b"redis.call('HDEL', head, 'snapshot')", b""),
    "swap: a shard that was never made": (b"if not epoch then\n      return {'uninitialised'}\n    end\n    if (redis", b"if (redis"),
    "swap: version": (b"(redis.call('HGET', record, 'version') or '0') ~= expected", b"false"),
    "swap: deletion": (b"redis.call('HDEL', record, 'value')", b""),
    "log: place after puts": (b"seq - puts - 1", b"seq - 1"),
    "commit: fence": (FENCED % ((b"    ",) * 4) + b"local present", b"local present"),
    "commit: only upwards": (b"tonumber(offset) > tonumber(present)", b"true"),
}


def test_the_script_as_it_is_answers_the_programs(shared_redis: Any, programs: list[Program], monkeypatch: pytest.MonkeyPatch) -> None:
    use_script(SCRIPT, monkeypatch)
    assert not differs(shared_redis.url, "alike/as-it-is", programs)


@pytest.mark.parametrize("name", MUTATIONS)
def test_every_guard_of_the_script_is_needed(name: str, shared_redis: Any, programs: list[Program], monkeypatch: pytest.MonkeyPatch) -> None:
    guard, without = MUTATIONS[name]
    assert SCRIPT.count(guard) == 1
    use_script(SCRIPT.replace(guard, without), monkeypatch)
    assert differs(shared_redis.url, f"alike/{name}", programs)
