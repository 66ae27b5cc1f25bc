"""One history: whatever the journal, the function, the callers and a rival do, no acknowledged command is lost and none counts twice."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from cloudstate_core.journal.api import Activate, Active, Append, Appended, EntityKey, Lookup, Refused, Unbound, Unknown, Value
from cloudstate_core.pb.cloudstate import event_sourced_pb2
from cloudstate_core.transport.api import Status

KEYS = ("a", "b")
SNAPSHOT_EVERY = 3
OFTEN = st.sampled_from([True, True, True, False])
SELDOM = st.sampled_from([False, False, True])


class ListFunction:
    """A user function whose entities are lists: 'read' answers the list, 'fail' fails, all else is appended."""

    def __init__(self, bench: Any) -> None:
        self._bench = bench
        self._read: dict[int, int] = {}
        self._states: dict[int, list[bytes]] = {}

    def waiting(self) -> list[int]:
        """Streams on which something has not been read yet."""
        streams = self._bench.transport.streams
        return [number for number, stream in streams.items() if not stream.ended and self._read.get(number, 0) < len(stream.sent)]

    def catch_up(self) -> None:
        """Read and answer all there is."""
        while waiting := self.waiting():
            self.step(waiting[0])

    def step(self, stream: int) -> None:
        """Read one message and answer it."""
        at = self._read.get(stream, 0)
        self._read[stream] = at + 1
        message = event_sourced_pb2.EventSourcedStreamIn.FromString(self._bench.transport.streams[stream].sent[at])
        state = self._states.setdefault(stream, [])
        if message.HasField("init"):
            assert at == 0
            state += [part for part in message.init.snapshot.snapshot.value.split(b",") if part]
        elif message.HasField("event"):
            state.append(message.event.payload.value)
            assert message.event.sequence == len(state)
        else:
            self._execute(stream, message.command.id, message.command.payload.value, state)

    def _execute(self, stream: int, command_id: int, payload: bytes, state: list[bytes]) -> None:
        if payload == b"read":
            self._bench.reply(stream, command_id, b",".join(state))
        elif payload == b"fail":
            state.append(b"never")
            self._bench.reply(stream, command_id, failure="no", events=[b"never"])
        else:
            state.append(payload)
            more = {"snapshot": b",".join(state)} if len(state) % SNAPSHOT_EVERY == 0 else {}
            self._bench.reply(stream, command_id, b"added " + payload, [payload], **more)


def machine(make_bench: Any) -> type[RuleBasedStateMachine]:
    """The machine, around benches of the given kind."""

    class OneHistory(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.bench = make_bench(mailbox=4)
            self.function = ListFunction(self.bench)
            self.adds: dict[int, tuple[str, bytes]] = {}
            self.reads: dict[int, tuple[str, int]] = {}
            self.checked: set[int] = set()
            self.rivals = 0
            self.stale: set[int] = set()

        def shard(self, key: str) -> int:
            return KEYS.index(key) % 2

        def call(self, key: str, payload: bytes, command_id: str, retry: bool) -> int:
            call: int = self.bench.call(payload, key, self.shard(key), command_id, retry)
            return call

        def go_on(self, served: bool) -> None:
            if served:
                self.function.catch_up()
            self.check()

        @rule(key=st.sampled_from(KEYS), named=st.booleans(), retry=st.booleans(), served=OFTEN)
        def add(self, key: str, named: bool, retry: bool, served: bool) -> None:
            payload = f"n{self.bench.calls + 1}".encode()
            self.adds[self.call(key, payload, payload.decode() if named else "", retry)] = (key, payload)
            self.go_on(served)

        @rule(data=st.data(), retry=st.booleans(), served=OFTEN)
        def add_again(self, data: st.DataObject, retry: bool, served: bool) -> None:
            """A router or client repeats a command under its id."""
            if self.adds:
                key, payload = self.adds[data.draw(st.sampled_from(sorted(self.adds)))]
                self.adds[self.call(key, payload, payload.decode(), retry)] = (key, payload)
                self.go_on(served)

        @rule(key=st.sampled_from(KEYS), what=st.sampled_from([b"read", b"read", b"fail"]), served=OFTEN)
        def other(self, key: str, what: bytes, served: bool) -> None:
            acknowledged = len(self.bench.history(key)) if self.shard(key) not in self.stale else 0
            call = self.call(key, what, "", False)
            if what == b"read":
                self.reads[call] = (key, acknowledged)
            self.go_on(served)

        @rule(data=st.data())
        def function_answers(self, data: st.DataObject) -> None:
            if waiting := self.function.waiting():
                self.function.step(data.draw(st.sampled_from(waiting)))
                self.check()

        @rule(data=st.data(), refused=st.booleans(), happens=SELDOM)
        def function_dies(self, data: st.DataObject, refused: bool, happens: bool) -> None:
            if happens and (alive := [number for number, stream in self.bench.transport.streams.items() if not stream.ended]):
                number = data.draw(st.sampled_from(alive))
                self.bench.transport.streams[number].reset = True
                self.bench.closed(number, 14 if refused else 0, "", refused)
                self.check()

        @rule(
            kind=st.sampled_from([Append, Append, Append, Activate, Lookup]),
            outcome=st.sampled_from([Unknown("timeout"), Refused("disk full"), Unbound(0)]),
            applied=st.booleans(),
        )
        def journal_fails(self, kind: type, outcome: Any, applied: bool) -> None:
            if isinstance(outcome, Unbound) and kind is not Append:
                return
            self.bench.journal.fail(kind, outcome, applied and isinstance(outcome, Unknown))

        @rule()
        def function_catches_up(self) -> None:
            self.go_on(True)

        @rule()
        def journal_is_slow(self) -> None:
            self.bench.journal.holding = True

        @rule()
        def journal_answers(self) -> None:
            self.bench.journal.release()
            self.bench.batch.flush()
            self.check()

        @rule(key=st.sampled_from(KEYS), writes=st.booleans(), happens=SELDOM)
        def rival_takes_over(self, key: str, writes: bool, happens: bool) -> None:
            """Another owner claims the shard and maybe writes; later this proxy gets it back with a new token."""
            if not happens:
                return
            journal, shard = self.bench.journal, self.shard(key)
            token = journal.claim(shard, "rival")
            self.rivals += 1
            self.stale.add(shard)
            if writes:
                self.rival_writes(shard, token, EntityKey("counter", key))

        def rival_writes(self, shard: int, token: Any, entity: EntityKey) -> None:
            journal, outcomes = self.bench.journal, []
            journal.inner.submit([Activate(shard, token, entity, b"rival")], outcomes.extend)
            assert isinstance(outcomes[0], Active)
            payload = f"r{self.rivals}".encode()
            append = Append(shard, token, entity, b"rival", outcomes[0].seq, (Value("json.cloudstate.io/event", payload),))
            journal.inner.submit([append], outcomes.extend)
            assert isinstance(outcomes[1], Appended)
            journal.history.setdefault(entity, []).append(payload)

        @rule(shard=st.sampled_from([0, 1]))
        def shard_comes_back(self, shard: int) -> None:
            self.bench.entities.drop_shard(shard)
            self.stale.discard(shard)
            self.bench.tokens[shard] = self.bench.journal.claim(shard)
            self.check()

        @rule(shard=st.sampled_from([0, 1]), happens=SELDOM)
        def shard_drains(self, shard: int, happens: bool) -> None:
            if not happens:
                return
            self.bench.entities.drain_shard(shard, lambda: None)
            self.bench.batch.flush()
            self.check()

        @rule()
        def idle(self) -> None:
            self.bench.entities.passivate(time.monotonic() + 45)

        @rule(data=st.data(), happens=SELDOM)
        def caller_leaves(self, data: st.DataObject, happens: bool) -> None:
            transport = self.bench.transport
            if happens and (
                pending := [call for call in range(1, self.bench.calls + 1) if call not in transport.answers and call not in transport.gone]
            ):
                call = data.draw(st.sampled_from(pending))
                transport.gone.add(call)
                self.bench.entities.cancelled(call)

        # What must hold -----------------------------------------------------------------------------------------------------

        def check(self) -> None:
            """Each answer as it comes: an acknowledged add is stored once, a refused one not at all by this call, a read is a prefix."""
            answers = self.bench.transport.answers
            for call in answers.keys() - self.checked:
                self.checked.add(call)
                answer = answers[call]
                if call in self.adds and answer.status == 0:
                    key, payload = self.adds[call]
                    assert self.bench.history(key).count(payload) >= 1, "acknowledged, not stored"
                    assert answer.body == b"added " + payload
                elif call in self.adds and answer.refused and self.only(call):
                    key, payload = self.adds[call]
                    assert payload not in self.bench.history(key), "told 'not executed', yet stored"
                elif call in self.reads and answer.status == 0:
                    key, acknowledged = self.reads[call]
                    seen = [part for part in answer.body.split(b",") if part]
                    assert seen == self.bench.history(key)[: len(seen)], "read what is not a prefix of the history"
                    assert self.shard(key) in self.stale or len(seen) >= acknowledged, "a read misses what was stored before it began"

        def only(self, call: int) -> bool:
            """True when no other call carries the same add."""
            return sum(1 for other in self.adds.values() if other == self.adds[call]) == 1

        def teardown(self) -> None:
            """Everything is answered in the end, and the histories hold each named command once."""
            if not hasattr(self, "bench"):
                return
            self.bench.journal.faults.clear()
            for _ in range(100):
                self.bench.journal.release()
                self.bench.batch.flush()
                self.function.catch_up()
            self.check()
            transport = self.bench.transport
            assert set(range(1, self.bench.calls + 1)) == transport.answers.keys() | transport.gone, "a call was never answered"
            for key in KEYS:
                history = self.bench.history(key)
                assert b"never" not in history
                assert len(set(history)) == len(history) or self.unnamed_twice(key), "a command counts twice"
            assert Status.DATA_LOSS not in {answer.status for answer in transport.answers.values()}
            assert self.bench.entities.regressed == 0

        def unnamed_twice(self, key: str) -> bool:
            """Commands first sent without an id may be executed again when they are repeated."""
            history = self.bench.history(key)
            twice = {payload for payload in history if history.count(payload) > 1}
            appends = [o for o in self.bench.journal.operations if isinstance(o, Append)]
            unnamed = {event.data for o in appends if not o.command_id for event in o.events}
            return all(payload in unnamed and history.count(payload) <= 2 for payload in twice) and any(o.command_id for o in appends)

    return OneHistory


def test_one_history(make_bench: Any, request: pytest.FixtureRequest) -> None:
    run_state_machine_as_test(machine(make_bench), settings=settings(max_examples=200, stateful_step_count=60, deadline=None))
