"""Exhaustive exploration of the journal's rules: two owners, one entity, two commands, messages delayed, lost or late, at most one rollback.

The store of the model asks `cloudstate_core.journal.rules`, the functions that the real stores ask. A message that is lost is one that is
never delivered; an owner may give up waiting at any point and activate again, or stop for good. The entity is event sourced or keeps a value;
of a value the history is that of its versions. Every guard is also taken away in turn, by
showing the rule a row that fits whatever it compares: the exploration must then find a violation, else it proves nothing.

The Redis journal says the rules once more, in Lua. Every question that the exploration asks is put to a real server too, on the same rows:
answer and rows must be what the rules say.

Violations: `prefix`: an event is stored that was decided on another history; `twice`: a command is stored twice; `stale`: an owner whose
token is the shard's, with nothing outstanding, remembers another history than the store has; `undead`: a command that was answered as not
applied is applied. A store that was rolled back breaks the last two by itself, so only the first two are asked of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import astuple, dataclass
from typing import Any

import pytest
import redis

from cloudstate_core.journal import rules
from cloudstate_core.journal.api import (
    Activate,
    Active,
    Append,
    Appended,
    Claim,
    Claimed,
    EntityKey,
    Event,
    Fenced,
    Operation,
    Outcome,
    Put,
    Token,
    Unbound,
    Value,
)  # fmt: skip
from cloudstate_core.journal.redis_address import redis_address
from cloudstate_core.journal.redis_format import Names, entity_name, stored
from cloudstate_core.journal.redis_journal import RedisJournal

LOST, HELD, ACTIVATING, ACTIVE, APPENDING = range(5)
ENTITY = EntityKey("carts", "one")
EVENT = (Value("t", b""),)

Log = tuple[int, ...]
"""Attempts stored, in order; attempt = 2 × command + retry."""
Store = tuple[int, bytes, int, bytes, Log]
"""Shard epoch and nonce, entity epoch and binding, history."""
Owner = tuple[int, int, bytes, bytes, int, Log, int]
"""Phase, token epoch and nonce, binding, request waited for, remembered history, attempt whose outcome is not known yet (-1: none)."""
Message = tuple[str, int, int, int, bytes, bytes, Log, int]
"""Kind, owner, request; then for a request its token (epoch, nonce), binding, history decided on and attempt; an answer reuses the slots."""
State = tuple[Store, tuple[Owner, Owner], frozenset[Message], tuple[int, int], tuple[int, int, int], frozenset[int], Store | None, bool]
"""Store, owners, messages, ids made by each owner, used (claims, retries of command 0, of 1), attempts denied, saved copy, rolled back."""


@dataclass(frozen=True)
class Bounds:
    """How far to look."""

    claims: int = 2
    activations: int = 3
    appends: int = 3
    rollback: bool = False
    value: bool = False
    """The entity keeps a value (Put), not events (Append)."""


class Violation(Exception):
    """The first one ends the exploration."""


class Model:
    """Successors of a state, under the real rules less the guards named in `without`."""

    def __init__(self, bounds: Bounds, without: str = "") -> None:
        self.bounds, self.without = bounds, without

    def start(self) -> State:
        nobody: Owner = (LOST, 0, b"", b"", -1, (), -1)
        return ((0, b"-", 0, b"-", ()), (nobody, nobody), frozenset(), (0, 0), (0, 0, 0), frozenset(), None, False)

    def successors(self, state: State) -> Iterator[State]:
        store, _, messages, _, _, _, saved, rolled_back = state
        for message in messages:
            yield self._deliver(state, message) if message[0] in ("activate", "append") else self._answer(state, message)
        for index in (0, 1):
            yield from self._act(state, index)
        if self.bounds.rollback and saved is None:
            yield (*state[:6], store, False)
        if saved is not None and not rolled_back:
            yield (saved, *state[1:7], True)

    def _act(self, state: State, index: int) -> Iterator[State]:
        """What an owner may do of its own accord."""
        store, owners, _, made, used, *_ = state
        phase, epoch, nonce, binding, _, memory, attempt = owners[index]
        request = index * 16 + made[index]
        if used[0] < self.bounds.claims and (index == 0 or used[0]):
            fresh = bytes([store[0] + 1]) if self.without == "randomness" else bytes([request])
            row = rules.ShardRow(store[0], store[1], 0, "")
            claimed = rules.claim(row, Claim(0, -1, 0, "o", fresh))
            assert isinstance(claimed, Claimed)
            token = claimed.token
            moved = self._move(state, index, (HELD, token.epoch, token.nonce, b"", -1, (), -1), None, (used[0] + 1, *used[1:]))
            yield ((token.epoch, token.nonce, *store[2:]), *moved[1:])
        activated = sum(made) - used[0] - used[1] - used[2]
        if phase not in (LOST, ACTIVE) and activated < self.bounds.activations:
            fresh = binding if self.without == "fresh binding" and binding else bytes([request])
            fresh = bytes([epoch]) if self.without == "randomness" else fresh
            message: Message = ("activate", index, request, epoch, nonce, fresh, (), -1)
            yield self._move(state, index, (ACTIVATING, epoch, nonce, fresh, request, (), attempt), message, used)
        if phase == ACTIVE and used[1] + used[2] < self.bounds.appends:
            for command in (0, 1):
                if used[1 + command] < 2:
                    attempt = 2 * command + used[1 + command]
                    message = ("append", index, request, epoch, nonce, binding, memory, attempt)
                    sent = (used[0], used[1] + (command == 0), used[2] + (command == 1))
                    yield self._move(state, index, (APPENDING, epoch, nonce, binding, request, memory, attempt), message, sent)

    def _move(self, state: State, index: int, owner: Owner, message: Message | None, used: tuple[int, int, int]) -> State:
        store, owners, messages, made, _, denied, saved, rolled_back = state
        if self.without != "matching":
            messages = frozenset(m for m in messages if m[1] != index or m[0] in ("activate", "append"))
        if message is not None:
            messages |= {message}
        owners = (owner, owners[1]) if index == 0 else (owners[0], owner)
        counted = (made[0] + (index == 0), made[1] + (index == 1))
        return (store, owners, messages, counted, used, denied, saved, rolled_back)

    # The store --------------------------------------------------------------------------------------------------------------

    def _rows(self, store: Store, message: Message) -> tuple[rules.ShardRow, rules.EntityRow]:
        """The rows as the rule sees them; a guard is taken away by showing it what it hopes to see."""
        _, _, _, epoch, nonce, binding, decided_on, _ = message
        shard, entity = rules.ShardRow(store[0], store[1], 0, ""), rules.EntityRow(len(store[4]), store[2], store[3])
        if self.without in ("token", "epoch"):
            shard.nonce, entity.epoch = nonce, min(entity.epoch, epoch)
        if self.without in ("binding", "epoch"):
            entity.binding = binding
        if self.without == "sequence":
            entity.seq = len(decided_on)
        return shard, entity

    def _deliver(self, state: State, message: Message) -> State:
        store, owners, messages, made, used, denied, saved, rolled_back = state
        kind, index, request, epoch, nonce, binding, decided_on, attempt = message
        shard, entity = self._rows(store, message)
        token, log, answer = Token(epoch, nonce), store[4], "applied"
        if kind == "activate":
            refused = rules.activate(shard, entity, Activate(0, token, ENTITY, binding))
            if refused is None:
                store, answer = (store[0], store[1], epoch, binding, log), "active"
        else:
            known = b"" if self.without != "dedupe" and any(stored // 2 == attempt // 2 for stored in log) else None
            refused = rules.append(shard, entity, known, self._write(token, binding, len(decided_on)))
            if refused is None:
                self._check_append(state, attempt, decided_on)
                store = (*store[:4], (*log, attempt))
        if refused is not None:
            answer = {Fenced: "lost", Unbound: "unbound"}.get(type(refused), type(refused).__name__.lower())
            epoch = refused.epoch if isinstance(refused, Fenced | Unbound) else 0
        messages -= {message}
        if owners[index][4] == request or self.without == "matching":
            messages |= {(answer, index, request, epoch, b"", b"", log, -1)}
        return (store, owners, messages, made, used, denied, saved, rolled_back)

    def _write(self, token: Token, binding: bytes, expected_seq: int) -> Append | Put:
        if self.bounds.value:
            return Put(0, token, ENTITY, binding, expected_seq, EVENT[0])
        return Append(0, token, ENTITY, binding, expected_seq, EVENT)

    def _check_append(self, state: State, attempt: int, decided_on: Log) -> None:
        log, denied = state[0][4], state[5]
        if decided_on != log:
            raise Violation("prefix")
        if any(stored // 2 == attempt // 2 for stored in log):
            raise Violation("twice")
        if attempt in denied and not self.bounds.rollback:
            raise Violation("undead")

    # Answers ----------------------------------------------------------------------------------------------------------------

    def _answer(self, state: State, message: Message) -> State:
        store, owners, messages, made, used, denied, saved, rolled_back = state
        answer, index, request, told_epoch, _, _, log, _ = message
        phase, epoch, nonce, binding, waiting, memory, attempt = owners[index]
        expected = phase == ACTIVATING if answer == "active" else phase in (ACTIVATING, APPENDING)
        owner = owners[index]
        if expected and (request == waiting or (self.without == "matching" and answer == "active")):
            if answer == "active":
                if attempt >= 0 and all(stored // 2 != attempt // 2 for stored in log):
                    denied |= {attempt}
                owner = (ACTIVE, epoch, nonce, binding, -1, log, -1)
            elif answer == "applied":
                owner = (ACTIVE, epoch, nonce, binding, -1, (*memory, attempt), -1)
            elif answer == "duplicate":
                owner = (ACTIVE, epoch, nonce, binding, -1, memory, -1)
            elif answer == "unbound" and told_epoch <= epoch:
                owner = (HELD, epoch, nonce, binding, -1, (), -1)
            else:
                owner = (LOST, 0, b"", b"", -1, (), -1)
        owners = (owner, owners[1]) if index == 0 else (owners[0], owner)
        return (store, owners, messages - {message}, made, used, denied, saved, rolled_back)

    def check(self, state: State) -> None:
        """Raise Violation when an owner that believes itself current is not."""
        store = state[0]
        if not self.bounds.rollback:
            for phase, _, nonce, _, _, memory, _ in state[1]:
                if phase == ACTIVE and nonce == store[1] and memory != store[4]:
                    raise Violation("stale")


def explore(model: Model) -> tuple[str, int]:
    """The first violation ('' = none) and how many states were seen."""
    seen = {model.start()}
    frontier = list(seen)
    while frontier:
        following = []
        for state in frontier:
            try:
                for successor in model.successors(state):
                    if successor not in seen:
                        model.check(successor)
                        seen.add(successor)
                        following.append(successor)
            except Violation as violation:
                return str(violation), len(seen)
        frontier = following
    return "", len(seen)


@pytest.mark.parametrize(
    "bounds",
    [
        Bounds(activations=4, appends=4),
        Bounds(claims=3),
        Bounds(activations=2, appends=4, rollback=True),
        Bounds(activations=4, appends=4, value=True),
    ],
    ids=["many commands", "three claims", "one rollback", "a value"],
)
def test_the_rules_hold_in_every_reachable_state(bounds: Bounds) -> None:
    violation, states = explore(Model(bounds))
    assert violation == ""
    assert states > 100_000, "the exploration got stuck early and proves nothing"


@pytest.mark.parametrize(
    ("without", "rollback", "found"),
    [
        ("epoch", False, {"stale", "undead"}),
        ("token", False, {"stale", "undead"}),
        ("fresh binding", False, {"stale", "undead"}),
        ("binding", False, {"stale", "undead"}),
        ("matching", False, {"stale"}),
        ("dedupe", False, {"twice"}),
        ("randomness", True, {"prefix", "twice"}),
        ("sequence", True, {"prefix"}),
    ],
)
@pytest.mark.parametrize("value", [False, True], ids=["events", "a value"])
def test_every_guard_is_needed(without: str, rollback: bool, found: set[str], value: bool) -> None:
    bounds = Bounds(activations=2 if rollback else 3, rollback=rollback, value=value)
    violation, _ = explore(Model(bounds, without))
    assert violation in found


Question = tuple[tuple[Any, ...], tuple[Any, ...] | None, bytes | None, Operation]
"""Fence and head as tuples, what is recorded of the command, and the operation."""
COMMAND = "c"


def questions(bounds: Bounds, monkeypatch: pytest.MonkeyPatch) -> set[Question]:
    """Everything that the exploration asks of the rules."""
    asked: set[Question] = set()

    def listened(rule: Callable[..., Any]) -> Callable[..., Any]:
        def listen(*given: Any) -> Any:
            shard, *between, operation = given
            rest = [astuple(row) if isinstance(row, rules.EntityRow) else row for row in between]
            asked.add((astuple(shard), *[*rest, None, None][:2], operation))  # type: ignore[arg-type]
            return rule(*given)

        return listen

    for name in ("claim", "activate", "append"):
        monkeypatch.setattr(rules, name, listened(getattr(rules, name)))
    explore(Model(bounds))
    monkeypatch.undo()
    return asked


def read(seq: int, value: bool) -> Active:
    """The entity as it is read."""
    if value:
        return Active(seq, seq, EVENT[0] if seq else None, ())
    return Active(seq, 0, None, tuple(Event(n + 1, EVENT[0]) for n in range(seq)))


def expected(question: Question, value: bool) -> tuple[Outcome, tuple[Any, ...], tuple[Any, ...] | None]:
    """Outcome and rows afterwards, by the rules."""
    fence, head, recorded, operation = question
    shard, entity = rules.ShardRow(*fence), None if head is None else rules.EntityRow(*head)
    if isinstance(operation, Claim):
        outcome: Outcome | None = rules.claim(shard, operation)
        if isinstance(outcome, Claimed):
            fence = (outcome.token.epoch, operation.nonce, operation.since, operation.owner)
        assert outcome is not None
        return outcome, fence, head
    assert entity is not None
    if isinstance(operation, Activate):
        outcome = rules.activate(shard, entity, operation)
        if outcome is None:
            return read(entity.seq, value), fence, (entity.seq, operation.token.epoch, operation.binding)
    else:
        assert isinstance(operation, Append | Put)
        outcome = rules.append(shard, entity, recorded, operation)
        if outcome is None:
            return Appended(entity.seq + 1), fence, (entity.seq + 1, entity.epoch, entity.binding)
    return outcome, fence, head


@dataclass
class Server:
    """Rows in a real server, a shard for each question."""

    db: Any
    names: Names
    value: bool

    def write(self, shard: int, question: Question) -> None:
        fence, head, recorded, _ = question
        prefix, name = self.names.shard(shard), entity_name(ENTITY)
        self.db.hset(prefix + b"f", mapping=dict(zip(("epoch", "nonce", "generation", "owner"), fence, strict=True)))
        if head is not None:
            self.db.hset(prefix + b"h:" + name, mapping=dict(zip(("seq", "epoch", "binding"), head, strict=True)))
            if head[0] and self.value:
                self.db.hset(prefix + b"h:" + name, mapping={"snapshot_seq": head[0], "puts": head[0], "snapshot": stored(EVENT[0])})
            elif head[0]:
                self.db.rpush(prefix + b"e:" + name, *[stored(EVENT[0])] * head[0])
        if recorded is not None:
            self.db.set(prefix + b"c:" + name + b":" + COMMAND.encode(), recorded)

    def read(self, shard: int) -> None:
        prefix, name = self.names.shard(shard), entity_name(ENTITY)
        self.db.hmget(prefix + b"f", "epoch", "nonce", "generation", "owner")
        self.db.hmget(prefix + b"h:" + name, "seq", "epoch", "binding", "puts")
        self.db.llen(prefix + b"e:" + name)


def on_shard(shard: int, operation: Any) -> Operation:
    """The operation as it is asked of the server: of this shard, with a command id."""
    fields = {name: getattr(operation, name) for name in operation.__struct_fields__}
    more = {"command_id": COMMAND} if isinstance(operation, Append | Put) else {}
    return type(operation)(**{**fields, "shard": shard, **more})  # type: ignore[no-any-return]


def ask(url: str, keyspace: str, asked: list[Question], value: bool) -> list[tuple[Outcome, tuple[Any, ...], tuple[Any, ...] | None]]:
    """What the server answers, and its rows afterwards."""
    opened: Future[Any] = Future()
    RedisJournal(redis_address(url), keyspace, len(asked), opened.set_result)
    journal = opened.result(60)
    server = Server(redis.Redis.from_url(url).pipeline(transaction=False), Names(keyspace), value)
    for shard, question in enumerate(asked):
        server.write(shard, question)
    server.db.execute()
    answer: Future[Any] = Future()
    journal.submit([on_shard(shard, question[3]) for shard, question in enumerate(asked)], answer.set_result)
    outcomes = answer.result(60)
    for shard in range(len(asked)):
        server.read(shard)
    rows = iter(server.db.execute())
    found = []
    for outcome in outcomes:
        fence, head, events = next(rows), next(rows), next(rows)
        assert events == int(head[0] or 0) - int(head[3] or 0), "as many events as the head says"
        assert not (value and events), "a value has no events"
        entity = None if head[2] is None else (int(head[0]), int(head[1]), head[2])
        found.append((outcome, (int(fence[0]), fence[1], int(fence[2]), fence[3].decode()), entity))
    journal.close()
    return found


@pytest.mark.parametrize(
    "bounds",
    [Bounds(), Bounds(claims=3, activations=2), Bounds(activations=2, rollback=True), Bounds(activations=2, value=True)],
    ids=["plain", "three claims", "one rollback", "a value"],
)
def test_the_redis_scripts_answer_and_write_what_the_rules_say(bounds: Bounds, shared_redis: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list(questions(bounds, monkeypatch))
    kinds = {(type(question[3]), type(expected(question, bounds.value)[0])) for question in asked}
    assert {outcome for _, outcome in kinds} >= {Claimed, Active, Appended, Fenced, Unbound}
    for begin in range(0, len(asked), 4_000):
        part = asked[begin : begin + 4_000]
        for question, found in zip(part, ask(shared_redis.url, f"model/{id(bounds)}-{begin}", part, bounds.value), strict=True):
            assert found == expected(question, bounds.value), question
