"""Replicated entities with everything around them; a test plays the function, the callers, and the other proxies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from google.protobuf.any_pb2 import Any as AnyValue

from cloudstate_core.hashing import shard_of
from cloudstate_core.journal.api import EntityKey, Outcome, Read, Stored, Swap, Value
from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport import api
from stateful_proxy.absence import Absence
from stateful_proxy.callers import Callers
from stateful_proxy.crdt import wire
from stateful_proxy.crdt.crdts import CrdtLimits, Crdts
from stateful_proxy.crdt.dialects import Dialect, Present
from stateful_proxy.crdt.replication import REPLICATE, Replication
from stateful_proxy.crdt.surroundings import Surroundings
from stateful_proxy.follow_ups import FollowUps
from stateful_proxy.in_flight import InFlight
from stateful_proxy.invocation import Invocation
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.service import CRDT, MethodInfo
from tests.stateful_proxy.conftest import SHARDS, STRING, FakeTransport, FaultyJournal

KEY = EntityKey("presence", "a")


def method_of(name: str, streamed: bool = False) -> MethodInfo:
    path = f"/test.Presence/{name}"
    return MethodInfo(path, "test.Presence", name, "presence", CRDT, "test.Ask", "test.Told", (((1,), STRING),), "key", None, False, streamed, False)


def text(value: str) -> AnyValue:
    return AnyValue(type_url="p.cloudstate.io/string", value=value.encode())


def plus(change: int) -> pb.CrdtDelta:
    return pb.CrdtDelta(pncounter=pb.PNCounterDelta(change=change))


def vote(yes: bool) -> pb.CrdtDelta:
    return pb.CrdtDelta(vote=pb.VoteDelta(self_vote=yes))


def adding(*letters: str) -> pb.CrdtDelta:
    return pb.CrdtDelta(orset=pb.ORSetDelta(added=map(text, letters)))


class FakePeers:
    """Other proxies: each is an upstream of its own, numbered from 100."""

    def __init__(self, others: Sequence[str]) -> None:
        self.others = frozenset(others)
        self.known = {member: 100 + n for n, member in enumerate(sorted(others))}

    def upstream_of(self, member: str) -> int | None:
        return self.known.get(member) if member in self.others else None


class CrdtBench:
    """One proxy named `me`."""

    def __init__(
        self, others: Sequence[str] = (), journal: FaultyJournal | None = None, commands: int = 1_000, dialect: Dialect | None = None
    ) -> None:
        self.transport, self.journal = FakeTransport(), journal or FaultyJournal()
        transport: Any = self.transport
        self.batch = JournalBatch(transport, self.journal)  # type: ignore[arg-type]
        self.peers: Any = FakePeers(others) if others else None
        self.reported: list[str] = []
        self.invoked: list[tuple[int, Invocation]] = []
        self.methods = {m.path: m for m in (method_of("Add"), method_of("Watch", streamed=True))}
        self.callers = Callers(transport)
        follow_ups = self.follow_ups = FollowUps(transport, self.callers, self.methods, self.reported.append, self.batch.flush)
        follow_ups.invoke = lambda call, invocation: self.invoked.append((call, invocation))
        self.absence = Absence(transport, self.callers)
        self.replication = Replication(transport, self.peers, "me")
        self.dialect = dialect or Present()
        self.in_flight = InFlight(time.monotonic())
        around = Surroundings(
            transport,
            1,
            self.callers,
            follow_ups,
            self.replication,
            self.absence,
            self.reported.append,
            lambda: 1_000,
            self.in_flight,
            self.dialect,
            self.batch.flush,
        )
        self.crdts = Crdts(around, self.batch, SHARDS, CrdtLimits(commands=commands))
        self.calls = 0

    # Callers ------------------------------------------------------------------------------------------------------------

    def call(self, name: str = "Add", payload: bytes = b"x", entity: str = "a") -> int:
        """A command arrives in a batch of its own; returns the call."""
        self.calls += 1
        self.crdts.command(self.calls, Invocation(self.methods[f"/test.Presence/{name}"], payload), entity)
        self.batch.flush()
        return self.calls

    def hang_up(self, call: int) -> None:
        """The caller goes away."""
        self.transport.gone.add(call)
        self.crdts.cancelled(call)
        self.batch.flush()

    def told(self, call: int) -> tuple[int, str]:
        """Status and text with which a call ended."""
        answer = self.transport.answers[call]
        return answer.status, answer.text

    # The function -------------------------------------------------------------------------------------------------------

    def event(self, kind: int, number: int, data: bytes = b"", detail: Any = None) -> bool:
        """One event in a batch of its own."""
        handled = self.crdts.on_event((kind, number, data, detail))
        self.batch.flush()
        return handled

    def say(self, stream: int, **cases: Any) -> None:
        """The function sends a message."""
        self.event(api.STREAM_MESSAGE, stream, pb.CrdtStreamOut(**cases).SerializeToString())

    def reply(self, stream: int, command_id: int, delta: pb.CrdtDelta | None = None, body: bytes | None = b"ok", **more: Any) -> None:
        """The function answers; `delete`, `failure`, `streamed`, `effects`, `consistency` say what else."""
        reply = pb.CrdtReply(command_id=command_id, streamed=more.get("streamed", False), side_effects=more.get("effects", ()))
        if delta is not None:
            reply.state_action.update.CopyFrom(delta)
        if more.get("delete"):
            reply.state_action.delete.SetInParent()
        if "consistency" in more:
            reply.state_action.write_consistency = more["consistency"]
        _act(reply.client_action, body, **more)
        self.say(stream, reply=reply)

    def stream_message(self, stream: int, command_id: int, body: bytes | None = b"news", **more: Any) -> None:
        """The function streams a message; `end` makes it the last."""
        message = pb.CrdtStreamedMessage(command_id=command_id, end_stream=more.get("end", False), side_effects=more.get("effects", ()))
        _act(message.client_action, body, **more)
        self.say(stream, streamed_message=message)

    def answer_cancellation(self, stream: int, command_id: int, delta: pb.CrdtDelta | None = None) -> None:
        """The function has seen that a streamed call was cancelled."""
        response = pb.CrdtStreamCancelledResponse(command_id=command_id)
        if delta is not None:
            response.state_action.update.CopyFrom(delta)
        self.say(stream, stream_cancelled_response=response)

    def closed(self, stream: int, status: int = 0, text_: str = "", refused: bool = False) -> None:
        """The function, or the connection, ended a stream."""
        self.event(api.STREAM_CLOSED, stream, b"", (status, text_, [], refused))

    def sent(self, stream: int) -> list[pb.CrdtStreamIn]:
        """What the function got on a stream, decoded."""
        return [pb.CrdtStreamIn.FromString(message) for message in self.transport.streams[stream].sent]

    def kinds(self, stream: int) -> list[str]:
        """The same, as init, command, delta, delete, stream_cancelled."""
        return [str(message.WhichOneof("message")) for message in self.sent(stream)]

    def deltas(self, stream: int) -> list[pb.CrdtDelta]:
        """Changes made elsewhere that the function got."""
        return [message.delta for message in self.sent(stream) if message.HasField("delta")]

    # The journal and the others -----------------------------------------------------------------------------------------

    def journal_has(self, entity: str = "a") -> Stored:
        """The journal's record."""
        outcomes: list[Outcome] = []
        key = EntityKey("presence", entity)
        self.journal.inner.submit([Read(shard_of("presence", entity, SHARDS), key)], outcomes.extend)
        assert isinstance(outcomes[0], Stored)
        return outcomes[0]

    def stored(self, entity: str = "a") -> Any:
        """What the journal's record looks like from here; None: there is no value."""
        value = self.journal_has(entity).value
        return None if value is None else wire.decoded(value.data)

    def requests(self) -> list[int]:
        """Streams to other proxies that replicate."""
        return [number for number, stream in self.transport.streams.items() if stream.path == REPLICATE]

    def later(self, seconds: float) -> None:
        """A tick, so much later than now."""
        self.crdts.tick(time.monotonic() + seconds)
        self.batch.flush()

    def fire(self) -> list[float]:
        """Let time pass: every timer that waits; their delays."""
        delays = self.transport.fire()
        self.batch.flush()
        return delays

    def fire_only(self, limit: float) -> None:
        """Let a little time pass: the timers of at most `limit` seconds."""
        due = [timer for timer in self.transport.timers if timer[0] <= limit]
        for timer in due:
            if timer in self.transport.timers:
                self.transport.timers.remove(timer)
                timer[1]()
        self.batch.flush()


def elsewhere(bench: CrdtBench, other: CrdtBench, delta: pb.CrdtDelta, entity: str = "a") -> None:
    """Another proxy on the same journal makes a change; `bench` is not told."""
    call = other.call(entity=entity)
    stream = max(n for n, s in other.transport.streams.items() if s.path != REPLICATE and not s.ended)
    number = [m.command.id for m in other.sent(stream) if m.HasField("command")][-1]
    other.reply(stream, number, delta)
    assert other.told(call)[0] == 0


def _act(action: entity_pb2.ClientAction, body: bytes | None, **more: Any) -> None:
    if "failure" in more:
        action.failure.description = more["failure"]
    elif "forward" in more:
        action.forward.CopyFrom(more["forward"])
    elif body is not None:
        action.reply.payload.type_url, action.reply.payload.value = "type.googleapis.com/test.Told", body


__all__ = ["KEY", "CrdtBench", "Swap", "Value", "adding", "elsewhere", "plus", "text", "vote"]


def hear(bench: CrdtBench) -> None:
    """The proxy reads its keys again, as it does from time to time."""
    bench.crdts.tick(0.0)
    bench.batch.flush()
