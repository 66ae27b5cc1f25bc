"""The Redis journal when the server dies, stalls, is full, comes back empty or with old data: never a wrong answer, and it recovers by itself."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from cloudstate_core.journal import redis_journal, redis_link
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
    Current,
    Cursor,
    Duplicate,
    Event,
    Fenced,
    Found,
    Journal,
    JournalError,
    LogPage,
    Lookup,
    Operation,
    Outcome,
    Read,
    ReadLog,
    Refused,
    Seal,
    Stored,
    Swap,
    Swapped,
    Token,
    Unbound,
    Uninitialised,
    Unknown,
    Value,
)
from cloudstate_core.journal.redis_address import redis_address
from cloudstate_core.journal.redis_journal import RedisJournal
from cloudstate_core.journal.redis_link import Link
from tests.journal_sets import SET, add_at_once, check_set, join
from tests.journals import CART, PATIENCE, bound, run, submit

KEYSPACE, SHARDS = "outage/cart", 4
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


class Opened:
    """A journal that may take its time to open."""

    def __init__(self, url: str) -> None:
        self.result: Future[Journal | JournalError] = Future()
        self.journal = RedisJournal(redis_address(url), KEYSPACE, SHARDS, self.result.set_result)

    def ready(self) -> RedisJournal:
        assert self.result.result(PATIENCE) is self.journal, self.result.result()
        return self.journal


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Opened]]:
    """Begin to open journals; they close with the test. They ask nothing of their own accord: what is lost is what the test has asked."""
    monkeypatch.setattr(redis_journal, "IDLE", 3600.0)
    with contextlib.ExitStack() as stack:

        def start(url: str) -> Opened:
            opened = Opened(url)
            stack.callback(opened.journal.close)
            return opened

        yield start


class Relay:
    """Stands between journal and server; when `deaf`, what the server says is lost on the way."""

    def __init__(self, port: int) -> None:
        self.deaf = False
        self.swallowed = threading.Event()
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._links: list[socket.socket] = []
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._links += [near, far]
                threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if answers and self.deaf:
                    self.swallowed.set()
                else:
                    sink.sendall(data)
        sink.close()

    def cut(self) -> None:
        """End all connections; new ones are taken."""
        links, self._links = self._links, []
        for link in links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.fixture
def relay(redis_servers: Any) -> Iterator[Relay]:
    made = Relay(redis_servers().port)
    yield made
    made.close()


def until_answered(journal: Journal, *operations: Operation) -> list[Outcome]:
    """Ask until the journal neither refuses nor is in doubt."""
    deadline = time.monotonic() + PATIENCE
    while isinstance((outcomes := run(journal, *operations))[0], Refused | Unknown):
        assert time.monotonic() < deadline, outcomes
        time.sleep(0.01)
    return outcomes


def until_refused(journal: Journal, *operations: Operation) -> str:
    """Ask until the journal refuses; why."""
    deadline = time.monotonic() + PATIENCE
    while not isinstance((outcome := run(journal, *operations)[0]), Refused):
        assert time.monotonic() < deadline, outcome
        time.sleep(0.01)
    return outcome.reason


def awaited(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set once what is asked from now on has been sent, and its answer is waited for before anything else is done."""
    waiting, receive = threading.Event(), Link.receive

    async def told(self: Link, count: int) -> list[Any]:
        waiting.set()
        return await receive(self, count)

    monkeypatch.setattr(Link, "receive", told)
    return waiting


def append(token: Token, seq: int, data: bytes = b"x", command_id: str = "", binding: bytes = b"b") -> Append:
    return Append(0, token, CART, binding, seq, (Value("t", data),), command_id=command_id, outcome=b"ok")


# The outcome is unknown -------------------------------------------------------------------------------------------------


def test_an_append_whose_answer_was_lost_is_unknown_and_found_by_reading(connect: Callable[[str], Opened], relay: Relay) -> None:
    journal = connect(relay.url).ready()
    token = bound(journal)
    relay.deaf = True
    answer = submit(journal, append(token, 0, b"done", "c"))
    assert relay.swallowed.wait(PATIENCE)
    relay.deaf = False
    relay.cut()
    (unknown,) = answer.result(PATIENCE)
    assert isinstance(unknown, Unknown)
    assert "connection was lost" in unknown.reason
    assert until_answered(journal, Activate(0, token, CART, b"new")) == [Active(1, 0, None, (Event(1, Value("t", b"done")),))]
    assert run(journal, Lookup(0, CART, "c"), append(token, 1, binding=b"b")) == [Found(b"ok"), Unbound(token.epoch)]


def test_a_server_killed_with_an_append_in_its_socket_leaves_it_unknown_and_undone(
    connect: Callable[[str], Opened], redis_servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = redis_servers(*DURABLE)
    journal = connect(server.url).ready()
    token = bound(journal)
    assert run(journal, append(token, 0)) == [Appended(1)]
    server.signal(signal.SIGSTOP)
    sent = awaited(monkeypatch)
    answer = submit(journal, append(token, 1))
    assert sent.wait(PATIENCE)
    waiting = submit(journal, append(token, 2))
    server.stop()
    assert isinstance(answer.result(PATIENCE)[0], Unknown)
    (refused,) = waiting.result(PATIENCE)
    assert isinstance(refused, Refused), "what was never sent is definitely not done"
    server.start()
    assert until_answered(journal, Activate(0, token, CART, b"new")) == [Active(1, 0, None, (Event(1, Value("t", b"x")),))]
    assert run(journal, append(token, 1, binding=b"new")) == [Appended(2)]


def test_what_was_acknowledged_survives_kill_9_of_the_server(connect: Callable[[str], Opened], redis_servers: Any) -> None:
    server = redis_servers(*DURABLE)
    journal = connect(server.url).ready()
    token = bound(journal)
    outcomes: list[Outcome] = []
    told, ended = threading.Event(), threading.Event()

    def go_on(answer: Sequence[Outcome]) -> None:
        outcomes.extend(answer)
        if len(outcomes) == 200:
            told.set()
        if isinstance(answer[0], Appended):
            journal.submit([append(token, answer[0].seq)], go_on)
        else:
            ended.set()

    journal.submit([append(token, 0)], go_on)
    assert told.wait(PATIENCE)
    server.stop()
    assert ended.wait(PATIENCE)
    acknowledged = max(outcome.seq for outcome in outcomes if isinstance(outcome, Appended))
    server.start()
    (active,) = until_answered(journal, Activate(0, token, CART, b"new"))
    assert isinstance(active, Active)
    assert active.seq in (acknowledged, acknowledged + 1)
    assert [event.sequence for event in active.tail] == list(range(1, active.seq + 1))


def test_a_silent_server_leaves_what_was_sent_unknown_and_refuses_what_comes(
    connect: Callable[[str], Opened], redis_servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = redis_servers()
    journal = connect(server.url).ready()
    token = bound(journal)
    server.signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(redis_link, "ANSWER_LIMIT", 0.3)
        patch.setattr(redis_link, "CONNECT_LIMIT", 0.3)
        assert isinstance(run(journal, append(token, 0))[0], Unknown)
        assert "no answer within 0.3 s" in until_refused(journal, Check(0, token))
    server.signal(signal.SIGCONT)
    (active,) = until_answered(journal, Activate(0, token, CART, b"new"))
    assert isinstance(active, Active)
    assert run(journal, append(token, active.seq, binding=b"new")) == [Appended(active.seq + 1)], "the old append does not land any more"


def test_a_claim_whose_answer_was_lost_is_told_again_to_its_nonce(connect: Callable[[str], Opened], relay: Relay) -> None:
    journal = connect(relay.url).ready()
    relay.deaf = True
    answer = submit(journal, Claim(0, -1, 1, "pod", b"mine"))
    assert relay.swallowed.wait(PATIENCE)
    relay.deaf = False
    relay.cut()
    assert isinstance(answer.result(PATIENCE)[0], Unknown)
    assert until_answered(journal, Claim(0, -1, 1, "pod", b"mine")) == [Claimed(Token(1, b"mine"))]


# It comes back ----------------------------------------------------------------------------------------------------------


def test_a_journal_opens_once_its_server_is_there(connect: Callable[[str], Opened], redis_servers: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = redis_servers()
    server.stop()
    opened = connect(server.url)
    while "cannot be reached" not in caplog.text:
        assert not opened.result.done()
        time.sleep(0.01)
    assert isinstance(run(opened.journal, Check(0, Token(0, b"")))[0], Refused)
    server.start()
    bound(opened.ready())


def test_a_journal_whose_server_never_comes_can_be_closed() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        opened = Opened(f"redis://127.0.0.1:{nobody.getsockname()[1]}/0")
        assert isinstance(run(opened.journal, Check(0, Token(0, b"")))[0], Refused)
        opened.journal.close()
    assert isinstance(opened.result.result(0), JournalError)


def test_a_server_that_restarts_with_its_data_is_used_again(
    connect: Callable[[str], Opened], redis_servers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_servers(*DURABLE)
    journal = connect(server.url).ready()
    token = bound(journal)
    run(journal, append(token, 0, command_id="c"))
    server.stop()
    until_refused(journal, Check(0, token))  # the reason is soon another one: the server cannot be reached
    while "the connection was lost" not in caplog.text:
        time.sleep(0.01)
    server.start()
    assert until_answered(journal, Check(0, token)) == [Current()]
    assert run(journal, append(token, 0, command_id="c"), append(token, 1)) == [Duplicate(b"ok"), Appended(2)]


def test_a_server_that_comes_back_empty_is_not_written_to_until_its_data_are_back(
    connect: Callable[[str], Opened], redis_servers: Any, tmp_path: pathlib.Path
) -> None:
    server = redis_servers(*DURABLE)
    journal = connect(server.url).ready()
    token = bound(journal)
    run(journal, append(token, 0))
    server.stop()
    (server.folder / "appendonlydir").rename(tmp_path / "saved")
    server.start()
    while "is empty now: a store that came back without its data is not written to" not in until_refused(journal, Check(0, token)):
        time.sleep(0.01)
    assert server.cli("DBSIZE").strip() == "0"
    other = connect(server.url).ready()
    while f"is now {other.layout.journal_id}" not in until_refused(journal, append(token, 1)):
        time.sleep(0.01)
    server.stop()
    for file in (server.folder / "appendonlydir").iterdir():
        file.unlink()
    (server.folder / "appendonlydir").rmdir()
    (tmp_path / "saved").rename(server.folder / "appendonlydir")
    server.start()
    assert until_answered(journal, append(token, 1)) == [Appended(2)]
    while f"was {other.layout.journal_id} and is now {journal.layout.journal_id}" not in until_refused(other, Check(0, token)):
        time.sleep(0.01)


def test_a_store_emptied_under_a_standing_connection_is_an_error_for_everybody(
    connect: Callable[[str], Opened], redis_servers: Any
) -> None:
    server = redis_servers()
    journal = connect(server.url).ready()
    token = bound(journal)
    server.cli("FLUSHALL")
    operations = (append(token, 0), Activate(0, token, CART, b"c"), Check(0, token), Seal(0, token), Claim(0, -1, 1, "p", b"z"))
    assert run(journal, *operations) == [Uninitialised()] * 5
    other = connect(server.url).ready()
    (refused,) = run(journal, Claim(0, -1, 1, "p", b"z"))
    assert isinstance(refused, Refused)
    assert other.layout.journal_id in refused.reason
    assert run(other, Check(0, Token(0, b""))) == [Fenced(0)], "nothing was claimed"


def test_a_store_that_lost_its_last_writes_is_noticed(
    connect: Callable[[str], Opened], redis_servers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    server = redis_servers()
    journal = connect(server.url).ready()
    token = bound(journal)
    server.cli("SAVE")
    newer = bound(journal, b"newer")
    assert newer.epoch == token.epoch + 1
    server.stop()
    server.start()
    assert until_answered(journal, Check(0, newer)) == [Fenced(token.epoch)]
    assert f"shard 0 is at epoch {token.epoch}, was at {newer.epoch}: the store lost acknowledged writes" in caplog.text
    assert run(journal, append(newer, 0)) == [Fenced(token.epoch)]
    again = bound(journal, b"again")
    assert (again.epoch, run(journal, Check(0, newer))) == (newer.epoch, [Fenced(newer.epoch)]), "the number is issued again, the nonce is not"
    assert caplog.text.count("the store lost acknowledged writes") == 1


def test_a_server_that_is_still_loading_is_waited_for(
    connect: Callable[[str], Opened], redis_servers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_servers()
    journal = connect(server.url).ready()
    token = bound(journal)
    run(journal, append(token, 0))
    server.cli("EVAL", "for n = 1, 3000 do redis.call('SET', 'filler:' .. n, string.rep('x', 1000)) end", "0")
    server.cli("SAVE")
    server.stop()
    server.options = ("--key-load-delay", "100000", "--loading-process-events-interval-bytes", "1024")  # minutes, unless it is told to hurry
    server.start_only()
    while "it is loading its data" not in caplog.text:
        run(journal, Check(0, token))
        time.sleep(0.01)
    assert server.cli("CONFIG", "SET", "key-load-delay", "0").strip() == "OK"
    assert until_answered(journal, append(token, 1)) == [Appended(2)]


def test_no_addition_to_a_record_is_lost_while_connections_are_cut(connect: Callable[[str], Opened], relay: Relay) -> None:
    journals = [connect(relay.url).ready() for _ in range(3)]
    adders, threads = add_at_once(journals, 40)
    chosen, cuts = random.Random(5), 0
    while any(thread.is_alive() for thread in threads):
        enough = sum(adder.answered for adder in adders) + chosen.randint(5, 25)
        while any(thread.is_alive() for thread in threads) and sum(adder.answered for adder in adders) < enough:
            time.sleep(0.001)
        if cuts < 12:
            cuts += 1
            relay.swallowed.clear()
            relay.deaf = True
            relay.swallowed.wait(1.0)
            relay.deaf = False
            relay.cut()
    join(threads)
    assert isinstance(until_answered(journals[0], Read(1, SET))[0], Stored)
    check_set(journals[0], adders, 40)
    assert sum(adder.doubts for adder in adders) > 0, "no outcome was ever in doubt, which proves nothing"


def test_a_swap_whose_answer_was_lost_is_unknown_and_found_by_reading(connect: Callable[[str], Opened], relay: Relay) -> None:
    journal = connect(relay.url).ready()
    relay.deaf = True
    answer = submit(journal, Swap(0, SET, 0, Value("t", b"done")))
    assert relay.swallowed.wait(PATIENCE)
    relay.deaf = False
    relay.cut()
    assert isinstance(answer.result(PATIENCE)[0], Unknown)
    assert until_answered(journal, Read(0, SET)) == [Stored(1, Value("t", b"done"))]


def test_a_record_is_not_written_into_a_store_that_was_emptied(connect: Callable[[str], Opened], redis_servers: Any) -> None:
    server = redis_servers()
    journal = connect(server.url).ready()
    assert run(journal, Swap(0, SET, 0, None)) == [Swapped(1)]
    server.cli("FLUSHALL")
    assert run(journal, Swap(0, SET, 1, None)) == [Uninitialised()]


# It does not take writes ------------------------------------------------------------------------------------------------


def test_a_full_memory_refuses_writes_definitely_and_answers_reads(connect: Callable[[str], Opened], redis_servers: Any) -> None:
    server = redis_servers()
    journal = connect(server.url).ready()
    token = bound(journal)
    server.cli("CONFIG", "SET", "maxmemory", "1")
    refused, current, found = run(journal, append(token, 0, command_id="c"), Check(0, token), Lookup(0, CART, "c"))
    assert isinstance(refused, Refused)
    assert "its memory is full (maxmemory)" in refused.reason
    assert (current, found) == (Current(), Found(None))
    token_free = Swap(0, SET, 0, None), Read(0, SET), ReadLog(0, "cart", 0, 9), Cursor(0, "c"), Commit(0, token, "c", 1)
    refused, record, page, cursor, moved = run(journal, *token_free)
    assert (record, page, cursor) == (Stored(0, None), LogPage(()), At(0))
    assert isinstance(refused, Refused)
    assert isinstance(moved, Refused)
    assert isinstance(run(journal, Claim(0, -1, 1, "pod", b"z"))[0], Refused)
    server.cli("CONFIG", "SET", "maxmemory", "0")
    assert run(journal, Check(0, token), append(token, 0, command_id="c")) == [Current(), Appended(1)]


def test_too_few_replicas_refuse_writes_definitely(connect: Callable[[str], Opened], redis_servers: Any) -> None:
    server = redis_servers()
    journal = connect(server.url).ready()
    token = bound(journal)
    server.cli("CONFIG", "SET", "min-replicas-to-write", "1")
    refused, unsure = run(journal, append(token, 0), Check(0, token))
    assert isinstance(refused, Refused)
    assert "fewer replicas than min-replicas-to-write" in refused.reason
    assert isinstance(unsure, Refused), "a master without its replicas may have been replaced"
    server.cli("CONFIG", "SET", "min-replicas-to-write", "0")
    assert run(journal, append(token, 0)) == [Appended(1)]


def test_a_replica_is_refused_until_it_is_the_master(
    connect: Callable[[str], Opened], redis_servers: Any, caplog: pytest.LogCaptureFixture
) -> None:
    master = redis_servers()
    journal = connect(master.url).ready()
    token = bound(journal)
    replica = redis_servers("--replicaof", f"127.0.0.1 {master.port}")
    behind = connect(replica.url)
    while "it is a read-only replica" not in caplog.text:
        time.sleep(0.01)
    assert not behind.result.done()
    while "master_link_status:up" not in replica.cli("INFO", "replication"):
        time.sleep(0.01)
    replica.cli("REPLICAOF", "NO", "ONE")
    assert run(behind.ready(), append(token, 0)) == [Appended(1)]
    master.cli("REPLICAOF", "127.0.0.1", str(replica.port))
    assert "it is a read-only replica" in until_refused(journal, Check(0, token))
    while "role is slave" not in until_refused(journal, Check(0, token)):
        time.sleep(0.01)
