"""Fakes around the proxy's entities: a transport that records, a journal with faults, and a function that counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from cloudstate_core.journal.api import Append, Appended, Claim, Claimed, Done, EntityKey, Layout, Operation, Outcome, Token
from cloudstate_core.journal.memory import MemoryJournal
from cloudstate_core.pb.cloudstate import event_sourced_pb2
from cloudstate_core.transport import api
from stateful_proxy.callers import Callers
from stateful_proxy.entities import Entities, EntityLimits
from stateful_proxy.entity import Command
from stateful_proxy.follow_ups import FollowUps
from stateful_proxy.invocation import Invocation
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.kinds import KINDS, Kind
from stateful_proxy.service import EVENT_SOURCED, MethodInfo

STRING = 9
SHARDS = 4


@dataclass
class FakeStream:
    """What was done with one client stream."""

    path: str
    sent: list[bytes] = field(default_factory=list)
    half_closed: bool = False
    reset: bool = False

    @property
    def ended(self) -> bool:
        """No more messages come from the proxy."""
        return self.half_closed or self.reset


@dataclass
class FakeAnswer:
    """How one call ended. `status` 0 with the reply's bytes, or an error with its text."""

    status: int
    body: bytes = b""
    text: str = ""
    headers: list[tuple[str, bytes]] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        """The caller was told that nothing was executed."""
        return any(name == api.REFUSED_HEADER for name, _ in self.headers)


class FakeTransport:
    """Records what policy asks for; a call that ends twice is an error, unless its caller has gone."""

    def __init__(self) -> None:
        self.streams: dict[int, FakeStream] = {}
        self.answers: dict[int, FakeAnswer] = {}
        self.messages: dict[int, list[bytes]] = {}
        self.gone: set[int] = set()
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.posted: list[Callable[[], None]] = []
        self.backlogs: dict[int, int] = {}
        self.paused: set[tuple[str, int]] = set()
        self._numbered: dict[int, Any] = {}
        self._timers = 0

    def open(self, upstream: int, path: str, headers: Sequence[api.Header] = (), timeout: float | None = None) -> int:
        stream = len(self.streams) + 1
        self.streams[stream] = FakeStream(path)
        return stream

    def send(self, stream: int, message: bytes) -> None:
        assert not self.streams[stream].ended, f"stream {stream} has ended and takes no message"
        self.streams[stream].sent.append(message)

    def half_close(self, stream: int) -> None:
        self.streams[stream].half_closed = True

    def reset(self, stream: int) -> None:
        self.streams[stream].reset = True

    def backlog(self, either: int) -> int:
        assert either > 0
        return self.backlogs.get(either, 0)

    def pause(self, call: int) -> None:
        self.paused.add(("call", call))

    def resume(self, call: int) -> None:
        self.paused.discard(("call", call))

    def pause_stream(self, stream: int) -> None:
        self.paused.add(("stream", stream))

    def resume_stream(self, stream: int) -> None:
        self.paused.discard(("stream", stream))

    def reply(self, call: int, message: bytes, headers: Sequence[api.Header] = ()) -> None:
        self._end(call, FakeAnswer(0, message, headers=list(headers)))

    def send_message(self, call: int, message: bytes, headers: Sequence[api.Header] = ()) -> None:
        assert call not in self.answers, f"call {call} has ended and takes no message"
        self.messages.setdefault(call, []).append(message)

    def finish(self, call: int, status: int, message: str = "", trailers: Sequence[api.Header] = ()) -> None:
        self._end(call, FakeAnswer(int(status), text=message, headers=list(trailers)))

    def _end(self, call: int, answer: FakeAnswer) -> None:
        if call not in self.gone:
            assert call not in self.answers, f"call {call} has ended already: {self.answers[call]}"
            self.answers[call] = answer

    def after(self, delay: float, callback: Callable[[], None]) -> int:
        self._timers += 1
        timer = (delay, callback)
        self.timers.append(timer)
        self._numbered[self._timers] = timer
        return self._timers

    def cancel(self, number: int) -> None:
        timer = self._numbered.pop(number, None)
        if timer in self.timers:
            self.timers.remove(timer)

    def post(self, callback: Callable[[], None]) -> None:
        self.posted.append(callback)

    def fire(self) -> list[float]:
        """Run the timers that wait; their delays."""
        timers, self.timers = self.timers, []
        for _, callback in timers:
            callback()
        return [delay for delay, _ in timers]


class FaultyJournal:
    """A MemoryJournal that lies on demand, holds answers back, and keeps the whole history of each entity."""

    def __init__(self) -> None:
        self.inner = MemoryJournal("test/service", SHARDS)
        self.history: dict[EntityKey, list[bytes]] = {}
        self.faults: list[tuple[type, Outcome, bool]] = []
        self.operations: list[Operation] = []
        self.batches = 0
        self.holding = False
        self._held: list[Callable[[], None]] = []

    @property
    def layout(self) -> Layout:
        return self.inner.layout

    def fail(self, operation: type, outcome: Outcome, applied: bool = False) -> None:
        """The next such operation is answered with `outcome`, performed or not."""
        self.faults.append((operation, outcome, applied))

    def submit(self, operations: Sequence[Operation], done: Done) -> None:
        self.batches += 1
        self.operations += operations
        outcomes = [self._perform(operation) for operation in operations]
        if self.holding:
            self._held.append(lambda: done(outcomes))
        else:
            done(outcomes)

    def release(self) -> None:
        """Give the answers held back, in order."""
        self.holding = False
        held, self._held = self._held, []
        for answer in held:
            answer()

    def _perform(self, operation: Operation) -> Outcome:
        fault = next((f for f in self.faults if isinstance(operation, f[0])), None)
        if fault is not None:
            self.faults.remove(fault)
            if not fault[2]:
                return fault[1]
        outcomes: list[Outcome] = []
        self.inner.submit([operation], outcomes.extend)
        if isinstance(operation, Append) and isinstance(outcomes[0], Appended):
            self.history.setdefault(operation.entity, []).extend(event.data for event in operation.events)
        return outcomes[0] if fault is None else fault[1]

    def claim(self, shard: int, owner: str = "me") -> Token:
        """Take a shard, whoever has it."""
        nonce = f"{owner}-{len(self.operations)}-{shard}".encode()
        outcomes: list[Outcome] = []
        self.inner.submit([Claim(shard, -1, 0, owner, nonce)], outcomes.extend)
        self.operations.append(Claim(shard, -1, 0, owner, nonce))
        assert isinstance(outcomes[0], Claimed)
        return outcomes[0].token

    def close(self) -> None:
        self.inner.close()


class Bench:
    """Entities with everything around them; a test plays the function and the callers."""

    def __init__(self, mailbox: int = 1_000, streams: int = 0, kinds: Mapping[str, Kind] = KINDS) -> None:
        self.transport, self.journal = FakeTransport(), FaultyJournal()
        self.batch = JournalBatch(self.transport, self.journal)  # type: ignore[arg-type]
        self.losses: list[tuple[int, int]] = []
        self.reported: list[str] = []
        self.tokens = {shard: self.journal.claim(shard) for shard in range(SHARDS)}
        limits = EntityLimits(mailbox=mailbox, idle=30.0, streams=streams)
        transport: Any = self.transport
        self.callers = Callers(transport)
        self.invoked: list[tuple[int, Invocation]] = []
        self.methods: dict[str, MethodInfo] = {}
        self.follow_ups = FollowUps(transport, self.callers, self.methods, self.reported.append, self.batch.flush)
        self.follow_ups.invoke = lambda call, invocation: self.invoked.append((call, invocation))
        self.entities = Entities(transport, 1, self.batch, self, limits, self.callers, self.follow_ups, self.reported.append, kinds)
        self.method = MethodInfo(
            "/test.Counter/Add", "test.Counter", "Add", "counter", EVENT_SOURCED, "test.Amount", "test.Sum", (((1,), STRING),), "key", None
        )
        self.calls = 0

    def lost(self, shard: int, refused: Token, epoch: int) -> None:
        """What ownership does: forget the shard's entities."""
        self.losses.append((shard, epoch))
        self.entities.drop_shard(shard)

    def call(self, payload: bytes = b"x", entity: str = "a", shard: int = 0, command_id: str = "", retry: bool = False) -> int:
        """A command arrives in a batch of its own; returns the call."""
        self.calls += 1
        self.entities.command(Command(self.calls, self.method, entity, payload, command_id, retry), shard, self.tokens[shard])
        self.batch.flush()
        return self.calls

    def closed(self, stream: int, status: int = 0, text: str = "", refused: bool = False) -> None:
        """The function, or the connection, ended a stream."""
        self.entities.closed(stream, (status, text, [], refused))
        self.batch.flush()

    def say(self, stream: int, message: event_sourced_pb2.EventSourcedStreamOut) -> None:
        """The function sends a message."""
        self.message(stream, message.SerializeToString())

    def message(self, stream: int, data: bytes) -> bool:
        """The function sends bytes, in a batch of their own; False when the stream is no entity's."""
        handled = self.entities.message(stream, data)
        self.batch.flush()
        return handled

    def reply(self, stream: int, command_id: int, body: bytes | None = b"ok", events: Sequence[bytes] = (), **more: Any) -> None:
        """The function answers; `failure` and `restart` make it a failure, `snapshot` adds one."""
        out = event_sourced_pb2.EventSourcedStreamOut()
        out.reply.command_id = command_id
        if "failure" in more:
            out.reply.client_action.failure.description = more["failure"]
            out.reply.client_action.failure.restart = more.get("restart", False)
        elif body is not None:
            out.reply.client_action.reply.payload.value = body
            for key, value in more.get("metadata", {}).items():
                out.reply.client_action.reply.metadata.entries.add(key=key, string_value=value)
        for event in events:
            out.reply.events.add(type_url="json.cloudstate.io/event", value=event)
        if "snapshot" in more:
            out.reply.snapshot.value = more["snapshot"]
        self.say(stream, out)

    def sent(self, stream: int) -> list[event_sourced_pb2.EventSourcedStreamIn]:
        """What the function got on a stream, decoded."""
        return [event_sourced_pb2.EventSourcedStreamIn.FromString(message) for message in self.transport.streams[stream].sent]

    def kinds(self, stream: int) -> list[str]:
        """The same, as init, event, command."""
        return [str(message.WhichOneof("message")) for message in self.sent(stream)]

    def history(self, entity: str = "a") -> list[bytes]:
        """Every event ever stored of an entity."""
        return self.journal.history.get(EntityKey("counter", entity), [])


@pytest.fixture
def transport() -> FakeTransport:
    """A transport that records."""
    return FakeTransport()


@pytest.fixture
def make_bench() -> type[Bench]:
    """Makes benches, for tests that need several or other limits."""
    return Bench


@pytest.fixture
def bench() -> Bench:
    """Entities, their journal and transport."""
    return Bench()
