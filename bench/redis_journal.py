"""The Redis journal against redis-py alone: fenced appends and plain RPUSHes of the same bytes, to the same server, interleaved."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future

import redis.asyncio as client

from bench.peers import MissingToolchain
from bench.processes import running, wait_listening
from bench.scenarios import SERVER_CORE
from cloudstate_core.hashing import shard_of
from cloudstate_core.journal.api import Activate, Append, Appended, Claim, Claimed, EntityKey, Journal, JournalError, Operation, Outcome, Value
from cloudstate_core.journal.redis_address import redis_address
from cloudstate_core.journal.redis_format import stored
from cloudstate_core.journal.redis_journal import RedisJournal
from kn_cloudstate.ports import free_port
from kn_cloudstate.results import Row

SHARDS, ENTITIES, BATCH, BATCHES_IN_FLIGHT, APPENDS = 256, 2_000, 50, 4, 40_000
EVENT = Value("type.googleapis.com/bench.Added", bytes(200))


@contextlib.contextmanager
def server() -> Iterator[int]:
    """A redis-server with an append-only file, flushed every second; its port."""
    program = shutil.which("redis-server")
    if program is None:
        raise MissingToolchain("redis-server is not installed: the Redis journal cannot be measured")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "yes"]
        with running([program, *options], SERVER_CORE) as process:
            wait_listening(port, process)
            yield port


def opened(port: int) -> Journal:
    """A journal of a new keyspace."""
    answer: Future[Journal | JournalError] = Future()
    RedisJournal(redis_address(f"redis://127.0.0.1:{port}/0"), "bench/echo", SHARDS, answer.set_result)
    journal = answer.result(20)
    if isinstance(journal, JournalError):
        raise journal
    return journal


def run(journal: Journal, operations: Sequence[Operation]) -> Sequence[Outcome]:
    """One batch."""
    answer: Future[Sequence[Outcome]] = Future()
    journal.submit(operations, answer.set_result)
    return answer.result(20)


class Writer:
    """Appends one event after the other to each of the entities, several batches in flight."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        claims = run(journal, [Claim(shard, -1, 1, "bench", b"nonce") for shard in range(SHARDS)])
        tokens = [claimed.token for claimed in claims if isinstance(claimed, Claimed)]
        keys = [EntityKey("echo", f"entity-{number}") for number in range(ENTITIES)]
        shards = [shard_of(key.persistence_id, key.entity_id, SHARDS) for key in keys]
        self._entities = [(shard, tokens[shard], key) for shard, key in zip(shards, keys, strict=True)]
        run(journal, [Activate(shard, token, key, b"binding") for shard, token, key in self._entities])
        self._sent = self._answered = 0
        self._done = threading.Event()

    def write(self) -> float:
        """Appends a second."""
        self._end = self._answered + APPENDS
        self._done.clear()
        begun = time.perf_counter()
        for _ in range(BATCHES_IN_FLIGHT):
            self._submit()
        self._done.wait()
        return APPENDS / (time.perf_counter() - begun)

    def _submit(self) -> None:
        batch = []
        for number in range(self._sent, self._sent + BATCH):
            shard, token, key = self._entities[number % ENTITIES]
            batch.append(Append(shard, token, key, b"binding", number // ENTITIES, (EVENT,)))
        self._sent += BATCH
        self._journal.submit(batch, self._got)

    def _got(self, outcomes: Sequence[Outcome]) -> None:
        if not all(isinstance(outcome, Appended) for outcome in outcomes):
            print(f"error: {outcomes[0]}", file=sys.stderr)
        self._answered += len(outcomes)
        if self._sent < self._end:
            self._submit()
        elif self._answered == self._end:
            self._done.set()


async def plain(port: int) -> float:
    """RPUSHes a second, pipelined by redis-py."""
    connection = client.Redis(port=port)
    data = stored(EVENT)

    async def push(first: int) -> None:
        for begin in range(first, APPENDS, BATCH * BATCHES_IN_FLIGHT):
            pipeline = connection.pipeline(transaction=False)
            for number in range(begin, begin + BATCH):
                pipeline.rpush(f"plain:{number % ENTITIES}", data)
            await pipeline.execute()

    begun = time.perf_counter()
    await asyncio.gather(*(push(number * BATCH) for number in range(BATCHES_IN_FLIGHT)))
    took = time.perf_counter() - begun
    await connection.aclose()
    return APPENDS / took


def rows(rounds: int = 3) -> list[Row]:
    """Appends a second, medians."""
    ours, theirs = [], []
    with server() as port:
        journal = opened(port)
        writer = Writer(journal)
        for _ in range(rounds):
            ours.append(writer.write())
            theirs.append(asyncio.run(plain(port)))
            print(f"  Redis journal: {ours[-1]:.0f} appends/s, plain RPUSH: {theirs[-1]:.0f}/s", flush=True)
        journal.close()
    name = f"Redis journal: fenced appends, batches of {BATCH}"
    return [Row(name, statistics.median(ours), "/s", "plain RPUSH, redis-py pipelines", statistics.median(theirs), bar=0.6, sense="at least")]


if __name__ == "__main__":
    print(rows())
