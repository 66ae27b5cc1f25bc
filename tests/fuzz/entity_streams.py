"""What functions may say on the streams of event sourced and value entities, while callers, the journal and shards do what they like.

After any script, every call is answered once, and a fresh command on the same entities succeeds.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from cloudstate_core.journal.api import Activate, Append, Lookup, Put
from cloudstate_core.pb.cloudstate import event_sourced_pb2, value_entity_pb2
from stateful_proxy.service import EVENT_SOURCED, VALUE_ENTITY, MethodInfo
from tests.fuzz.draw import Draw
from tests.fuzz.follow_ups import KNOWN, fill_action, fill_effects
from tests.fuzz.stage import EntityStage
from tests.stateful_proxy.conftest import SHARDS, Bench

KEYS = ("a", "b", "c")
LONG = 1e6


def fuzz_event_sourced(data: bytes) -> None:
    """Event sourced entities."""
    _run(Draw(data), _Stage(EVENT_SOURCED))


def fuzz_value_entity(data: bytes) -> None:
    """Value entities."""
    _run(Draw(data), _Stage(VALUE_ENTITY))


def _run(draw: Draw, stage: _Stage) -> None:
    draw.rarity = draw.choice((16, 4, 255))
    if draw.seldom():
        stage = _Stage(stage.method.entity_type, mailbox=2, streams=1)
    steps = (stage.call, stage.call, stage.call, stage.say, stage.say, stage.say, stage.say, stage.leave, stage.close, stage.journal, stage.others,
             stage.shards, stage.time)  # fmt: skip
    while draw.left:
        draw.choice(steps)(draw)
    stage.end()
    stage.check_fresh()


class _Stage(EntityStage):
    """Entities, with the function, callers, journal and owners that the script plays."""

    operations = (Append, Put, Activate, Lookup)

    def __init__(self, entity_type: str, mailbox: int = 1_000, streams: int = 0) -> None:
        bench = Bench(mailbox, streams)
        super().__init__(bench, bench.follow_ups)
        self.method = MethodInfo("/test.T/Do", "test.T", "Do", "t", entity_type, "test.In", "test.Sum", (((1,), 9),), "key", None)
        other = MethodInfo(f"/{KNOWN[0]}/{KNOWN[1]}", *KNOWN, "o", entity_type, "test.In", "test.Sum", (((1,), 9),), "key", None)
        bench.method = self.method
        bench.methods[other.path] = other
        self.stolen: set[int] = set()

    def cancelled(self, call: int) -> None:
        """See Stage."""
        self.bench.entities.cancelled(call)

    # Steps --------------------------------------------------------------------------------------------------------------

    def call(self, draw: Draw) -> None:
        """A command, which may come a second time, and whose answer may have to be published."""
        bench = self.bench
        bench.method = replace(self.method, out=draw.choice(("", "", "topic")))
        self.published(bench.method)
        key = draw.below(len(KEYS))
        bench.call(draw.raw(8), KEYS[key], key, draw.choice(("", "id-1", "id-2", "id-3")), draw.flag(3))

    def say(self, draw: Draw) -> None:
        """The function says something on some stream."""
        streams = [number for number, stream in self.bench.transport.streams.items() if not stream.ended]
        if streams:
            stream = draw.choice(streams)
            message = self._message(draw, self._in_flight(stream))
            self.bench.message(stream, draw.mutated(message) if draw.seldom() else message)

    def _in_flight(self, stream: int) -> int:
        """Id of the last command on a stream."""
        read: Any = event_sourced_pb2.EventSourcedStreamIn if self.method.entity_type == EVENT_SOURCED else value_entity_pb2.ValueEntityStreamIn
        sent = self.bench.transport.streams[stream].sent
        return int(read.FromString(sent[-1]).command.id) if sent else 0

    def _message(self, draw: Draw, command_id: int) -> bytes:
        values = self.method.entity_type == VALUE_ENTITY
        out: Any = value_entity_pb2.ValueEntityStreamOut() if values else event_sourced_pb2.EventSourcedStreamOut()
        if draw.seldom():
            out.failure.command_id, out.failure.description = draw.choice((command_id, 0)), "broken"
        elif not draw.seldom():
            reply = out.reply
            reply.command_id = draw.often(command_id, (0, -1, command_id + 1, command_id - 1))
            fill_action(draw, reply.client_action)
            if draw.seldom():
                reply.ClearField("client_action")
            fill_effects(draw, reply.side_effects)
            (self._change_value if values else self._add_events)(draw, reply)
        return bytes(out.SerializeToString())

    def _add_events(self, draw: Draw, reply: Any) -> None:
        for _ in range(draw.choice((0, 1, 2))):
            reply.events.add(type_url="json.cloudstate.io/e", value=draw.raw(4))
        if draw.seldom():
            reply.snapshot.value = draw.raw(4)

    def _change_value(self, draw: Draw, reply: Any) -> None:
        match draw.below(4):
            case 1:
                reply.state_action.update.value.value = draw.raw(4)
            case 2:
                reply.state_action.delete.SetInParent()
            case 3:
                reply.state_action.SetInParent()

    def close(self, draw: Draw) -> None:
        """The function, or the connection, ends a stream."""
        streams = [number for number, stream in self.bench.transport.streams.items() if not stream.reset]
        if streams:
            status = draw.choice((0, 14, 2, 99))
            stream = draw.choice(streams)
            self.bench.transport.streams[stream].reset = True
            self.bench.closed(stream, status, "gone", refused=draw.flag(8))

    def shards(self, draw: Draw) -> None:
        """A shard drains, is lost, or is another's before anybody here knows."""
        shard = draw.below(SHARDS)
        match draw.below(4):
            case 0:
                self.bench.entities.drain_shard(shard, lambda: None)
            case 1:
                self.bench.entities.drop_shard(shard)
            case 2:
                self.bench.journal.claim(shard, "rival")
                self.stolen.add(shard)
            case _:
                self._own_again()
        self.bench.batch.flush()

    def _own_again(self) -> None:
        """What was another's comes back, by the rules: nothing of it is in memory then."""
        for shard in sorted(self.stolen):
            self.bench.entities.drop_shard(shard)
            self.bench.tokens[shard] = self.bench.journal.claim(shard)
        self.stolen.clear()

    def time(self, draw: Draw) -> None:
        """Time passes: timers, and what is idle or overdue."""
        if draw.flag():
            self.bench.transport.fire()
        else:
            self.bench.entities.passivate(time.monotonic() + draw.choice((31.0, 61.0)))
        self.bench.batch.flush()

    # The end ------------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Nothing is held back any more, and all that waits for the function waits too long."""
        bench = self.bench
        bench.journal.faults.clear()
        self.release()
        self.check_waiting()
        for _ in range(bench.calls + 2):
            self.elsewhere.end()
            self.broker.end()
            bench.transport.fire()
            bench.entities.passivate(time.monotonic() + LONG)
            bench.batch.flush()
        assert self.waiting() == [], "every call is answered"
        assert bench.entities.active == 0, "everything has left memory"
        assert bench.entities.function_concurrency >= 0
        open_streams = [number for number, stream in bench.transport.streams.items() if not stream.ended]
        assert open_streams == [], "the streams of what has left are ended"

    def check_waiting(self) -> None:
        """Who waits, waits for the function (a command is at it), for another method, or for his answer to be published."""
        busy = [number for number, stream in self.bench.transport.streams.items() if not stream.ended and self._in_flight(number)]
        assert not self.waiting() or busy or self.elsewhere.open or self.broker.open

    def check_fresh(self) -> None:
        """A fresh command is executed."""
        bench = self.bench
        for shard in range(SHARDS):
            bench.tokens[shard] = bench.journal.claim(shard)
        bench.method = self.method
        for shard, key in enumerate(KEYS):
            call = bench.call(b"fresh", key, shard)
            stream = max(bench.transport.streams)
            out: Any = (
                value_entity_pb2.ValueEntityStreamOut() if self.method.entity_type == VALUE_ENTITY else event_sourced_pb2.EventSourcedStreamOut()
            )
            out.reply.command_id = self._in_flight(stream)
            out.reply.client_action.reply.payload.value = b"fine"
            bench.message(stream, out.SerializeToString())
            answer = bench.transport.answers[call]
            assert (answer.status, answer.body) == (0, b"fine")
            bench.entities.passivate(time.monotonic() + LONG)
