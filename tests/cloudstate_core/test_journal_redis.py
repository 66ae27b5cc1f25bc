"""What only the Redis journal promises on a server that is well: one round trip a batch, fencing between processes, clear words at open."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from cloudstate_core.hashing import shard_of
from cloudstate_core.journal import redis_format, redis_journal
from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    At,
    Check,
    Claim,
    Claimed,
    Commit,
    EntityKey,
    Fenced,
    Found,
    Journal,
    LogEntry,
    LogPage,
    Lookup,
    Outcome,
    ReadLog,
    Refused,
    Seal,
    Sealed,
    Swap,
    Swapped,
    Token,
    Unbound,
    Value,
)
from cloudstate_core.journal.redis_journal import RedisJournal
from cloudstate_core.journal.redis_link import Link
from tests.journals import CART, PATIENCE, append, bound, run, submit

SHARDS = 4


Open = Callable[..., RedisJournal]


@pytest.fixture
def journal(open_redis: Open, shared_redis: Any) -> RedisJournal:
    return open_redis(shared_redis)


def calls_of(server: Any, command: str) -> int:
    """How often the server was called with a command."""
    line = next((x for x in server.cli("INFO", "commandstats").splitlines() if x.startswith(f"cmdstat_{command}:")), ":calls=0,")
    return int(line.split("calls=")[1].split(",")[0])


@contextlib.contextmanager
def thread_paused(journal: Journal, token: Token) -> Iterator[None]:
    """The journal's thread waits inside an answer, so that what is submitted meanwhile gathers."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(outcomes: Sequence[Outcome]) -> None:
        reached.set()
        go_on.wait(PATIENCE)

    journal.submit([Check(0, token)], hold)
    assert reached.wait(PATIENCE)
    yield
    go_on.set()


# One round trip ---------------------------------------------------------------------------------------------------------


def count_round_trips(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of commands of each pipeline from now on."""
    trips: list[int] = []
    send = Link.send

    async def counted(self: Link, commands: Sequence[bytes]) -> None:
        if b"PING" not in commands[0]:
            trips.append(len(commands))
        await send(self, commands)

    monkeypatch.setattr(Link, "send", counted)
    return trips


def test_a_batch_of_a_thousand_appends_is_one_round_trip_with_one_call_a_shard(
    open_redis: Open, redis_servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = redis_servers()
    journal = open_redis(server)
    tokens = [run(journal, Claim(shard, -1, 1, "pod", b"n"))[0].token for shard in range(SHARDS)]  # type: ignore[union-attr]
    keys = [EntityKey("cart", f"user-{number}") for number in range(1000)]
    places = [shard_of(key.persistence_id, key.entity_id, SHARDS) for key in keys]
    run(journal, *[Activate(shard, tokens[shard], key, b"b") for key, shard in zip(keys, places, strict=True)])
    before, trips = calls_of(server, "evalsha"), count_round_trips(monkeypatch)
    event = (Value("t", b"x"),)
    appends = [Append(shard, tokens[shard], key, b"b", 0, event) for key, shard in zip(keys, places, strict=True)]
    assert run(journal, *appends) == [Appended(1)] * 1000
    assert trips == [SHARDS]
    assert calls_of(server, "evalsha") - before == SHARDS


def test_what_waits_during_a_round_trip_goes_out_with_the_next(journal: RedisJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    token = bound(journal)
    with thread_paused(journal, token):
        trips = count_round_trips(monkeypatch)
        answers = [submit(journal, append(token, n)) for n in range(100)]
    assert [answer.result(PATIENCE) for answer in answers] == [[Appended(n + 1)] for n in range(100)]
    assert trips == [1]


def test_a_full_queue_refuses_and_loses_nothing(journal: RedisJournal, monkeypatch: pytest.MonkeyPatch) -> None:
    token = bound(journal)
    monkeypatch.setattr(redis_journal, "MAX_WAITING", 2)
    with thread_paused(journal, token):
        answers = [submit(journal, append(token, n)) for n in range(3)]
        assert "queue is full" in answers[2].result(0)[0].reason  # type: ignore[union-attr]
    assert [answer.result(PATIENCE) for answer in answers[:2]] == [[Appended(1)], [Appended(2)]]
    assert run(journal, append(token, 2)) == [Appended(3)]


def test_a_receiver_that_fails_does_not_stop_the_journal(journal: RedisJournal) -> None:
    token = bound(journal)
    journal.submit([append(token, 0)], lambda outcomes: 1 / 0)  # type: ignore[arg-type, return-value]
    assert run(journal, append(token, 1)) == [Appended(2)]


def test_a_value_that_cannot_be_stored_is_refused_alone(journal: RedisJournal) -> None:
    token = bound(journal)
    good, bad, next_good = run(journal, append(token, 0), append(token, 1, command_id="\ud800"), append(token, 1))
    assert (good, next_good) == (Appended(1), Appended(2))
    assert isinstance(bad, Refused)
    assert "append cannot be stored" in bad.reason


def test_an_empty_batch_is_answered(journal: RedisJournal) -> None:
    assert run(journal) == []


def test_a_closed_journal_has_answered_everything_and_refuses_more(open_redis: Open, shared_redis: Any) -> None:
    journal = open_redis(shared_redis)
    token = bound(journal)
    answers = [submit(journal, append(token, n)) for n in range(50)]
    journal.close()
    journal.close()
    assert [answer.result(0) for answer in answers] == [[Appended(n + 1)] for n in range(50)]
    assert "is closed" in submit(journal, append(token, 50)).result(0)[0].reason  # type: ignore[union-attr]


def test_large_events_come_back_as_they_were(journal: RedisJournal) -> None:
    token = bound(journal)
    large = [bytes([n]) * 10_000_000 for n in range(3)]
    assert run(journal, *[append(token, n, data) for n, data in enumerate(large)]) == [Appended(1), Appended(2), Appended(3)]
    (active,) = run(journal, Activate(0, token, CART, b"c"))
    assert isinstance(active, Active)
    assert [event.payload.data for event in active.tail] == large


def test_scripts_that_the_server_forgot_are_given_to_it_again(journal: RedisJournal, shared_redis: Any) -> None:
    token = bound(journal)
    assert shared_redis.cli("SCRIPT", "FLUSH").strip() == "OK"
    assert run(journal, append(token, 0), append(token, 1), Check(1, Token(0, b""))) == [Appended(1), Appended(2), Fenced(0)]


def test_command_ids_expire_and_nothing_else_does(journal: RedisJournal, shared_redis: Any, keyspace: str) -> None:
    token = bound(journal)
    name = next(str(n) for n in range(100) if shard_of("cart", str(n), SHARDS) == 0)
    key = EntityKey("cart", name)
    run(journal, Activate(0, token, key, b"b"), Append(0, token, key, b"b", 0, (Value("t", b"x"),), command_id="c", outcome=b"ok"))
    assert run(journal, Lookup(0, key, "c"), Swap(0, key, 0, None), Commit(0, token, "c", 1)) == [Found(b"ok"), Swapped(1), At(1)]
    keys = shared_redis.cli("--scan", "--pattern", f"cs:{{{keyspace}*").split("\n")[:-1]
    lives = {key: int(shared_redis.cli("TTL", key)) for key in keys}
    assert 86_000 < lives.pop(f"cs:{{{keyspace}:0}}:c:4.{len(name)}:cart:{name}:c") <= 86_400
    assert len(lives) == 1 + SHARDS + 6, "layout, fences, two heads, events, log, record, cursors"
    assert set(lives.values()) == {-1}


def test_an_append_that_cannot_write_its_events_leaves_nothing_in_the_log(journal: RedisJournal, shared_redis: Any, keyspace: str) -> None:
    token = bound(journal)
    events = f"cs:{{{keyspace}:0}}:e:4.3:cart:ann"
    shared_redis.cli("SET", events, "of another kind")
    many = Append(0, token, CART, b"b", 0, tuple(Value("t", b"%d" % n) for n in range(1_500)), command_id="c")
    for operation in (append(token, 0), many):
        (refused,) = run(journal, operation)
        assert isinstance(refused, Refused)
        assert "nothing was written: WRONGTYPE" in refused.reason
    shared_redis.cli("DEL", events)
    assert run(journal, ReadLog(0, "cart", 0, 9), Lookup(0, CART, "c"), append(token, 0)) == [LogPage(()), Found(None), Appended(1)]
    assert run(journal, ReadLog(0, "cart", 0, 9)) == [LogPage((LogEntry(1, "ann", 1, Value("t", b"x")),))]


def test_an_append_that_cannot_write_the_log_writes_no_events(journal: RedisJournal, shared_redis: Any, keyspace: str) -> None:
    token = bound(journal)
    shared_redis.cli("SET", f"cs:{{{keyspace}:0}}:l:cart", "of another kind")
    assert isinstance(run(journal, append(token, 0))[0], Refused)
    assert run(journal, Activate(0, token, CART, b"c")) == [Active(0, 0, None, ())]


def test_events_that_the_log_has_and_the_store_lost_are_noticed(journal: RedisJournal, shared_redis: Any, keyspace: str) -> None:
    token = bound(journal)
    run(journal, append(token, 0), append(token, 1))
    shared_redis.cli("LTRIM", f"cs:{{{keyspace}:0}}:e:4.3:cart:ann", "0", "0")
    read, activated = run(journal, ReadLog(0, "cart", 0, 9), Activate(0, token, CART, b"c"))
    assert isinstance(read, Refused)
    assert "event 2 of ann is in the log and not in the store: the store lost keys" in read.reason
    assert isinstance(activated, Refused)
    assert "an entity has 1 events and appended 2" in activated.reason
    assert isinstance(run(journal, ReadLog(0, "cart", 0, 1))[0], LogPage)


@pytest.mark.parametrize("arguments", [(b"PING",), (b"SET", b"", bytes(600)), (b"x" * 511, b"y" * 512, "ä ö".encode(), b"\r\n")])
def test_commands_are_packed_the_same_with_hiredis_and_without(arguments: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = redis_format.packed(*arguments)
    monkeypatch.setattr(redis_format, "pack_command", None)
    assert redis_format.packed(*arguments) == with_it
    assert with_it == b"*%d\r\n" % len(arguments) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in arguments)


# Two processes ----------------------------------------------------------------------------------------------------------


class Owner:
    """Takes the shard whenever it can, and appends what nobody else appends."""

    def __init__(self, journal: Journal, name: str, owners: list[Owner]) -> None:
        self.journal, self.name, self._owners = journal, name, owners
        self.acknowledged: list[bytes] = []
        self.fenced = 0
        owners.append(self)

    def done(self, appends: int) -> bool:
        """It has appended enough, and they have met, however the two are scheduled."""
        return len(self.acknowledged) >= appends and all(owner.fenced for owner in self._owners)

    def work(self, appends: int) -> None:
        term = 0
        while not self.done(appends):
            term += 1
            nonce = f"{self.name}-{term}".encode()
            (claimed,) = run(self.journal, Claim(0, -1, 1, self.name, nonce))
            assert isinstance(claimed, Claimed)
            (active,) = run(self.journal, Activate(0, claimed.token, CART, nonce))
            if isinstance(active, Active):
                self._append(claimed.token, nonce, active.seq, appends)

    def _append(self, token: Token, binding: bytes, seq: int, appends: int) -> None:
        """Until fenced, or done."""
        while not self.done(appends):
            data = f"{self.name}-{seq}".encode()
            (outcome,) = run(self.journal, Append(0, token, CART, binding, seq, (Value("t", data),)))
            if not isinstance(outcome, Appended):
                assert isinstance(outcome, Fenced | Unbound), outcome
                self.fenced += 1
                return
            self.acknowledged.append(data)
            seq = outcome.seq


def test_two_processes_that_race_for_a_shard_make_one_history(open_redis: Open, shared_redis: Any) -> None:
    owners: list[Owner] = []
    for name in ("a", "b"):
        Owner(open_redis(shared_redis), name, owners)
    threads = [threading.Thread(target=owner.work, args=(300,)) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    (claimed,) = run(owners[0].journal, Claim(0, -1, 1, "c", b"last"))
    assert isinstance(claimed, Claimed)
    (active,) = run(owners[0].journal, Activate(0, claimed.token, CART, b"last"))
    assert isinstance(active, Active)
    history = [event.payload.data for event in active.tail]
    assert [event.sequence for event in active.tail] == list(range(1, active.seq + 1))
    assert sorted(history) == sorted(owners[0].acknowledged + owners[1].acknowledged), "each acknowledged one once, and no other"
    for owner in owners:
        assert [data for data in history if data.startswith(owner.name.encode())] == owner.acknowledged


def test_two_openers_see_one_layout(open_redis: Open, shared_redis: Any) -> None:
    journals = [open_redis(shared_redis) for _ in range(2)]
    assert journals[0].layout == journals[1].layout
    token = bound(journals[0])
    assert run(journals[1], append(token, 0), Seal(0, token)) == [Appended(1), Sealed(2)]
    assert run(journals[0], Check(0, token)) == [Fenced(2)]


def test_keyspaces_share_a_server_and_nothing_else(open_redis: Open, shared_redis: Any, keyspace: str) -> None:
    one, two = open_redis(shared_redis), open_redis(shared_redis, 8, keyspace + "2")
    assert one.layout.journal_id != two.layout.journal_id
    run(one, append(bound(one), 0))
    assert bound(two, b"m").epoch == 1
    assert run(two, append(Token(1, b"m"), 0)) == [Appended(1)]
