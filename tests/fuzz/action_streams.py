"""What functions may say on the streams of actions, in all shapes, while callers send, wait, leave, and read slowly.

After any script, when the function has ended its streams, every call is answered once, and a fresh one succeeds.
"""

from __future__ import annotations

import time
from typing import Any

from cloudstate_core.pb.cloudstate import action_pb2
from cloudstate_core.transport import api
from stateful_proxy.actions import Actions
from stateful_proxy.callers import Callers
from stateful_proxy.follow_ups import FollowUps
from stateful_proxy.invocation import Invocation
from stateful_proxy.metadata import metadata_of
from stateful_proxy.service import ACTION, STATELESS_FUNCTION, MethodInfo
from tests.fuzz.draw import Draw
from tests.fuzz.follow_ups import KNOWN, fill_effects, fill_metadata, fill_target
from tests.fuzz.stage import Stage
from tests.stateful_proxy.conftest import FakeTransport

SHAPES = [(entity_type, i, o) for entity_type in (ACTION, STATELESS_FUNCTION) for i in (False, True) for o in (False, True)]


def fuzz_actions(data: bytes) -> None:
    """Calls of all shapes at once."""
    draw, stage = Draw(data), _Stage()
    draw.rarity = draw.choice((16, 4, 255))
    steps = (stage.begin, stage.say, stage.say, stage.say, stage.more, stage.leave, stage.close, stage.pace, stage.others, stage.time)
    while draw.left:
        draw.choice(steps)(draw)
    stage.end()
    stage.check_fresh()


def _method(entity_type: str, streams_in: bool, streams_out: bool, out: str = "") -> MethodInfo:
    output = "google.protobuf.Any" if out and streams_in else "test.Sum"
    return MethodInfo("/test.A/Do", "test.A", "Do", "", entity_type, "test.In", output, (), "", None, streams_in, streams_out, False, out)


class _Stage(Stage):
    """Actions, with the function and callers that the script plays."""

    def __init__(self) -> None:
        transport: Any = FakeTransport()
        self.reported: list[str] = []
        callers = Callers(transport)
        methods = {f"/{KNOWN[0]}/{KNOWN[1]}": _method(ACTION, False, False)}
        follow_ups = FollowUps(transport, callers, methods, self.reported.append, lambda: None)
        super().__init__(transport, callers, follow_ups)
        self.actions = Actions(transport, 1, callers, follow_ups, self.reported.append)
        self.sending: set[int] = set()
        self.closed: set[int] = set()
        self.calls = 0

    def made(self) -> int:
        """See Stage."""
        return self.calls

    def cancelled(self, call: int) -> None:
        """See Stage."""
        self.actions.cancelled(call)

    def drained(self, call: int) -> None:
        """See Stage."""
        self.actions.drained(call)

    # Steps --------------------------------------------------------------------------------------------------------------

    def begin(self, draw: Draw) -> None:
        """A call, of any shape."""
        entity_type, streams_in, streams_out = draw.choice(SHAPES)
        more = streams_in and draw.flag()
        metadata = metadata_of([("x-a", draw.raw(4)), ("x-bin", draw.raw(4))])
        method = _method(entity_type, streams_in, streams_out, draw.choice(("", "topic")))
        self.published(method)
        self.calls += 1
        if more:
            self.sending.add(self.calls)
        self.actions.begin(self.calls, Invocation(method, draw.raw(8), metadata, type_url=draw.often("", ("t",))), more, streams_in and draw.flag())

    def _open(self) -> list[int]:
        """Streams that the function has not ended. What is reset may still have messages on their way."""
        return [number for number in self.transport.streams if number not in self.closed]

    def say(self, draw: Draw) -> None:
        """The function says something on some stream."""
        if not (streams := self._open()):
            return
        response = action_pb2.ActionResponse()
        match draw.below(6):
            case 0 | 1 | 2:
                response.reply.payload.type_url = draw.often("type.googleapis.com/test.Sum", ("", "x"))
                response.reply.payload.value = draw.raw(8)
                fill_metadata(draw, response.reply.metadata)
            case 3:
                fill_target(draw, response.forward)
            case 4:
                response.failure.description = "no"
        fill_effects(draw, response.side_effects)
        message = response.SerializeToString()
        self._event(api.STREAM_MESSAGE, draw.choice(streams), draw.mutated(message) if draw.seldom() else message, None)

    def _event(self, kind: int, stream: int, data: bytes, detail: Any) -> None:
        assert self.actions.on_event((kind, stream, data, detail)), "streams of actions are known until they end"

    def close(self, draw: Draw) -> None:
        """The function, or the connection, ends a stream."""
        if streams := self._open():
            self._close(draw.choice(streams), draw.choice((0, 0, 2, 14, 16, 99)), draw.flag(8))

    def _close(self, stream: int, status: int, refused: bool = False) -> None:
        self.closed.add(stream)
        self.transport.streams[stream].reset = True
        self._event(api.STREAM_CLOSED, stream, b"", (status, "over", [], refused))

    def more(self, draw: Draw) -> None:
        """A caller sends one more request, or its last."""
        if calls := sorted(self.sending.intersection(self.waiting())):
            call = draw.choice(calls)
            if draw.flag(3):
                self.sending.discard(call)
                self.actions.end(call)
            else:
                self.actions.feed(call, draw.raw(8))

    def pace(self, draw: Draw) -> None:
        """A side does not keep up, or has caught up."""
        either = draw.choice([*self.waiting(), *self._open(), 1])
        if draw.flag():
            self.transport.backlogs[either] = 1 << 21
        else:
            self.transport.backlogs.pop(either, None)
            self.actions.drained(either)

    def time(self, draw: Draw) -> None:
        """Waiting for synchronous effects is over."""
        self.transport.fire()

    # The end ------------------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """The function ends all its streams, and effects and forwards end too."""
        for stream in self._open():
            self._close(stream, 0)
        for _ in range(self.calls + 2):
            self.elsewhere.end()
            self.broker.end()
            self.transport.fire()
        assert self.waiting() == [], "every call is answered"
        self.actions.concurrency(time.monotonic())
        assert self.actions.concurrency(time.monotonic() + 1) == 0, "nothing is at the function"

    def check_fresh(self) -> None:
        """A fresh call is executed."""
        self.calls += 1
        self.actions.begin(self.calls, Invocation(_method(ACTION, False, False), b"fresh"))
        response = action_pb2.ActionResponse()
        response.reply.payload.value = b"fine"
        self._event(api.STREAM_MESSAGE, max(self.transport.streams), response.SerializeToString(), None)
        answer = self.transport.answers[self.calls]
        assert (answer.status, answer.body) == (0, b"fine")
