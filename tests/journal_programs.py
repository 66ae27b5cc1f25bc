"""Random programs for journals: operations that mostly fit what is stored, and often enough do not.

The memory journal is asked along the way, so that a program knows what would fit; what it answered is what every other store must answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from cloudstate_core.hashing import shard_of
from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Check,
    Claim,
    Claimed,
    Commit,
    Cursor,
    EntityKey,
    Journal,
    LogPage,
    Lookup,
    Operation,
    Outcome,
    Put,
    Read,
    ReadLog,
    Seal,
    Stored,
    Swap,
    Token,
    Value,
)  # fmt: skip
from cloudstate_core.journal.memory import MemoryJournal
from tests.journal_stores import SHARDS
from tests.journals import run

ENTITIES = (EntityKey("b:", "x"), EntityKey("b:", "y z"), EntityKey("a", ""), EntityKey("a", "x"))
"""All but the last are of one shard."""
COMMANDS = ("", "", "c1", "c2", "c3", "c4")
VALUES = (None, Value("", b""), Value("t/ä", b"1"), Value("t", bytes(300)))


class Program:
    """Operations and the memory journal's answers."""

    def __init__(self, choose: random.Random, length: int) -> None:
        self._choose = choose
        self._memory = MemoryJournal("ks", SHARDS)
        self._tokens = {shard_of(key.persistence_id, key.entity_id, SHARDS): Token(0, b"none") for key in ENTITIES}
        self._bindings: dict[EntityKey, bytes] = {}
        self._made = 0
        self.operations: list[Operation] = []
        self.outcomes: list[Outcome] = []
        makers: list[tuple[Callable[[EntityKey, int], Operation], int]] = [
            (self._claim, 3), (self._seal, 1), (self._activate, 4), (self._append, 12), (self._put, 5), (self._swap, 5), (self._commit, 3),
            (self._check, 1), (self._lookup, 2), (self._read, 1), (self._read_log, 2), (self._cursor, 1),
        ]  # fmt: skip
        for _ in range(length):
            key = choose.choice(ENTITIES)
            make = choose.choices([maker for maker, _ in makers], [weight for _, weight in makers])[0]
            self._ask(make(key, shard_of(key.persistence_id, key.entity_id, SHARDS)))

    def _ask(self, operation: Operation) -> None:
        (outcome,) = run(self._memory, operation)
        if isinstance(outcome, Claimed) and isinstance(operation, Claim):
            self._tokens[operation.shard] = outcome.token
        if isinstance(outcome, Active) and isinstance(operation, Activate):
            self._bindings[operation.entity] = operation.binding
        self.operations.append(operation)
        self.outcomes.append(outcome)

    def asked_of(self, journal: Journal) -> list[Outcome]:
        """What another journal answers, the operations in batches of any size."""
        answers: list[Outcome] = []
        while len(answers) < len(self.operations):
            size = self._choose.randint(1, 20)
            answers += run(journal, *self.operations[len(answers) : len(answers) + size])
        return answers

    # What may fit ---------------------------------------------------------------------------------------------------------

    def _fresh(self) -> bytes:
        self._made += 1
        return b"%d" % self._made

    def _seldom(self) -> bool:
        return self._choose.random() < 0.12

    def _token(self, shard: int) -> Token:
        token = self._tokens[shard]
        return Token(max(0, token.epoch - 1), self._choose.choice((b"old", token.nonce))) if self._seldom() else token

    def _number(self, fitting: int) -> int:
        return max(0, fitting + self._choose.choice((-1, 1, 2))) if self._seldom() else fitting

    def _seq(self, key: EntityKey) -> int:
        entity = self._memory._entities.get(key)
        return self._number(entity.seq if entity is not None else 0)

    def _binding(self, key: EntityKey) -> bytes:
        return b"other" if self._seldom() else self._bindings.get(key, b"")

    def _shard(self, shard: int) -> int:
        """Now and then one that does not exist."""
        return SHARDS if self._seldom() and self._seldom() else shard

    # Operations -----------------------------------------------------------------------------------------------------------

    def _claim(self, key: EntityKey, shard: int) -> Operation:
        nonce = self._tokens[shard].nonce if self._seldom() else self._fresh()
        expected = -1 if self._choose.random() < 0.5 else self._number(self._memory.shards[shard].epoch)
        return Claim(self._shard(shard), expected, self._choose.randint(0, 3) if self._seldom() else 3, "pod", nonce)

    def _seal(self, key: EntityKey, shard: int) -> Operation:
        return Seal(shard, self._token(shard))

    def _check(self, key: EntityKey, shard: int) -> Operation:
        return Check(self._shard(shard), self._token(shard))

    def _activate(self, key: EntityKey, shard: int) -> Operation:
        return Activate(shard, self._token(shard), key, self._fresh())

    def _append(self, key: EntityKey, shard: int) -> Operation:
        events = tuple(Value("t", b"%d" % n) for n in range(self._choose.choice((0, 1, 1, 1, 2, 5))))
        snapshot = self._choose.choice(VALUES) if self._seldom() else None
        fence = (self._token(shard), key, self._binding(key))
        return Append(shard, *fence, self._seq(key), events, snapshot, self._choose.choice(COMMANDS), self._fresh())

    def _put(self, key: EntityKey, shard: int) -> Operation:
        fence = (self._token(shard), key, self._binding(key))
        return Put(shard, *fence, self._seq(key), self._choose.choice(VALUES), self._choose.choice(COMMANDS), self._fresh())

    def _swap(self, key: EntityKey, shard: int) -> Operation:
        version = self._memory._values.get(key, Stored(0, None)).version
        return Swap(self._shard(shard), key, self._number(version), self._choose.choice(VALUES))

    def _commit(self, key: EntityKey, shard: int) -> Operation:
        return Commit(self._shard(shard), self._token(shard), self._choose.choice(("one", "zwei")), self._choose.randint(0, 30))

    def _lookup(self, key: EntityKey, shard: int) -> Operation:
        return Lookup(shard, key, self._choose.choice(COMMANDS[2:]))

    def _read(self, key: EntityKey, shard: int) -> Operation:
        return Read(shard, key)

    def _read_log(self, key: EntityKey, shard: int) -> Operation:
        return ReadLog(self._shard(shard), key.persistence_id, self._choose.randint(-1, 20), self._choose.choice((-1, 0, 1, 3, 100)))

    def _cursor(self, key: EntityKey, shard: int) -> Operation:
        return Cursor(self._shard(shard), self._choose.choice(("one", "zwei", "none")))


def found_by(programs: list[Program]) -> set[type]:
    """The kinds of outcomes that occur: a suite that never sees one proves nothing of it."""
    pages = [outcome for program in programs for outcome in program.outcomes if isinstance(outcome, LogPage)]
    assert any(len(page.entries) > 3 for page in pages)
    return {type(outcome) for program in programs for outcome in program.outcomes}
