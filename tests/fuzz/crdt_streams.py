"""What functions may say on the streams of replicated entities, while callers, the journal, and other proxies do what they like.

After any script, when the function has ended its streams, every call is answered once, nothing stays in memory, and a fresh command succeeds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cloudstate_core.journal.api import Read, Swap
from cloudstate_core.pb.cloudstate import crdt_pb2 as pb
from cloudstate_core.pb.cloudstate_knative.v1 import crdt_0_1_pb2 as old
from cloudstate_core.pb.cloudstate_knative.v1 import peer_pb2
from cloudstate_core.transport import api
from stateful_proxy.crdt.dialects import Legacy, Present
from stateful_proxy.crdt.replication import REPLICATE
from tests.fuzz.deltas import KINDS, fill_delta, fill_state
from tests.fuzz.draw import Draw
from tests.fuzz.follow_ups import KNOWN, fill_action, fill_effects
from tests.fuzz.stage import EntityStage
from tests.stateful_proxy.crdt.bench import CrdtBench, method_of

KEYS = ("a", "b")
LONG = 1e6


def fuzz_crdt(data: bytes) -> None:
    """Protocol 0.2."""
    _run(Draw(data), legacy=False)


def fuzz_crdt_0_1(data: bytes) -> None:
    """Protocol 0.1."""
    _run(Draw(data), legacy=True)


def _run(draw: Draw, legacy: bool) -> None:
    draw.rarity = draw.choice((16, 4, 255))
    stage = _Stage(legacy, draw.choice(((), ("b", "c"))), draw.flag())
    steps = (stage.call, stage.call, stage.say, stage.say, stage.say, stage.say, stage.leave, stage.close, stage.journal, stage.others,
             stage.peers, stage.time)  # fmt: skip
    while draw.left:
        draw.choice(steps)(draw)
    stage.end()
    stage.check_fresh()


class _Stage(EntityStage):
    """Replicated entities, with the function, callers, journal and other proxies that the script plays."""

    operations = (Swap, Read)

    def __init__(self, legacy: bool, others: tuple[str, ...], keeps_first_value: bool) -> None:
        bench = CrdtBench(others, commands=20, dialect=Legacy(keeps_first_value) if legacy else Present())
        super().__init__(bench, bench.crdts._around.follow_ups)
        self.legacy = legacy
        bench.methods[f"/{KNOWN[0]}/{KNOWN[1]}"] = method_of("Other")
        bench.methods["/test.Presence/Add"] = replace(bench.methods["/test.Presence/Add"], out="topic" if keeps_first_value else "")
        self.closed: set[int] = set()
        self.received = 1_000_000

    def cancelled(self, call: int) -> None:
        """See Stage."""
        self.bench.crdts.cancelled(call)

    # Steps --------------------------------------------------------------------------------------------------------------

    def call(self, draw: Draw) -> None:
        """A command, unary or streamed."""
        name = draw.choice(("Add", "Watch"))
        self.published(self.bench.methods[f"/test.Presence/{name}"])
        self.bench.call(name, draw.raw(8), draw.choice(KEYS))

    def streams(self, path: str = "") -> list[int]:
        """Streams that are open: to the function, or of a path."""
        streams = self.transport.streams.items()
        return [n for n, stream in streams if n not in self.closed and (stream.path == path if path else stream.path != REPLICATE)]

    def say(self, draw: Draw) -> None:
        """The function says something on some stream."""
        if streams := [n for n in self.streams() if not self.transport.streams[n].reset]:
            stream = draw.choice(streams)
            message = self._message(draw, self._ids(stream))
            self.bench.event(api.STREAM_MESSAGE, stream, draw.mutated(message) if draw.seldom() else message)

    def _ids(self, stream: int) -> list[int]:
        """Ids of the commands on a stream, the last one first."""
        read: Any = old.CrdtStreamIn if self.legacy else pb.CrdtStreamIn
        said = [read.FromString(message) for message in self.transport.streams[stream].sent]
        return [int(m.command.id) for m in reversed(said) if m.HasField("command")][:4] or [0]

    def _message(self, draw: Draw, ids: list[int]) -> bytes:
        out: Any = old.CrdtStreamOut() if self.legacy else pb.CrdtStreamOut()
        number = draw.often(draw.choice(ids), (0, -1, ids[0] + 1))
        match draw.below(8):
            case 0 | 1 | 2 | 3:
                out.reply.command_id, out.reply.streamed = number, draw.flag()
                fill_action(draw, out.reply.client_action)
                fill_effects(draw, out.reply.side_effects)
                self._change(draw, out.reply.state_action)
            case 4:
                out.streamed_message.command_id, out.streamed_message.end_stream = number, draw.flag()
                fill_action(draw, out.streamed_message.client_action)
                fill_effects(draw, out.streamed_message.side_effects)
            case 5:
                out.stream_cancelled_response.command_id = number
                fill_effects(draw, out.stream_cancelled_response.side_effects)
                self._change(draw, out.stream_cancelled_response.state_action)
            case 6:
                out.failure.command_id, out.failure.description = number, "broken"
        return bytes(out.SerializeToString())

    def _change(self, draw: Draw, action: Any) -> None:
        match draw.below(6):
            case 0:
                action.delete.SetInParent()
            case 1 | 2 | 3:
                fill_delta(draw, action.update, draw.often("pncounter", KINDS) if draw.flag() else draw.choice(KINDS), 2)
            case 4 if self.legacy:
                fill_state(draw, action.create, draw.choice(KINDS), 2)
        action.write_consistency = draw.often(0, (1, 2, 7))

    def close(self, draw: Draw) -> None:
        """The function, another proxy, or the connection ends a stream."""
        if streams := [*self.streams(), *self.streams(REPLICATE)]:
            self._close(draw.choice(streams), draw.choice((0, 0, 2, 14, 99)), draw.flag(8))

    def _close(self, stream: int, status: int, refused: bool = False) -> None:
        self.closed.add(stream)
        self.transport.streams[stream].reset = True
        self.bench.closed(stream, status, "over", refused)

    def peers(self, draw: Draw) -> None:
        """Another proxy tells of changes, has heard of ours, or comes or goes."""
        match draw.below(3):
            case 0:
                news = peer_pb2.Replication()
                change = news.changes.add(persistence_id="presence", entity_id=draw.choice(KEYS), version=draw.byte())
                if draw.flag():
                    change.record = draw.raw(20)
                change.deleted = draw.seldom()
                self.received += 1
                data = news.SerializeToString()
                self.bench.crdts.received(self.received, draw.mutated(data) if draw.seldom() else data)
            case 1:
                if self.bench.peers is not None:
                    self.bench.peers.others = frozenset(draw.choice((("b", "c"), ("b",), ())))
                self.bench.crdts.members_changed()
            case _:
                if streams := self.streams(REPLICATE):
                    self.bench.event(api.STREAM_MESSAGE, draw.choice(streams), draw.raw(4))
        self.bench.batch.flush()

    def time(self, draw: Draw) -> None:
        """Time passes."""
        match draw.below(3):
            case 0:
                self.bench.fire()
            case 1:
                self.bench.fire_only(1.0)
            case _:
                self.bench.later(draw.choice((6.0, 31.0, 61.0)))

    # The end ------------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Journal and other proxies answer, effects and forwards end, and so do the function's streams."""
        self.bench.journal.faults.clear()
        self.release()
        for _ in range(self.bench.calls + 4):
            self.elsewhere.end()
            self.broker.end()
            self.bench.fire()
            for stream in [*self.streams(), *self.streams(REPLICATE)]:
                self._close(stream, 0)
        assert self.waiting() == [], "every call is answered"
        self._empty()

    def _empty(self) -> None:
        """What is idle leaves memory."""
        for _ in range(3):
            self.bench.later(LONG)
            self.bench.fire()
        assert self.bench.crdts.active == 0, "everything has left memory"

    def check_fresh(self) -> None:
        """A fresh command is executed."""
        for key in KEYS:
            call = self.bench.call("Add", b"fresh", key)
            stream = max(self.streams())
            out: Any = old.CrdtStreamOut() if self.legacy else pb.CrdtStreamOut()
            out.reply.command_id = self._ids(stream)[0]
            out.reply.client_action.reply.payload.value = b"fine"
            self.bench.event(api.STREAM_MESSAGE, stream, out.SerializeToString())
            assert (self.transport.answers[call].status, self.transport.answers[call].body) == (0, b"fine")
            self._empty()
