"""What is common to the targets of streams: forwards and side effects in answers, and who carries them out; and where answers are published."""

from __future__ import annotations

from typing import Any

from cloudstate_core.pb.cloudstate import entity_pb2
from stateful_proxy.callers import Callers
from stateful_proxy.eventing.cloud_events import REQUIRED, CloudEvent, request_headers
from stateful_proxy.eventing.publication import Done
from stateful_proxy.invocation import Invocation
from tests.fuzz.draw import Draw

KNOWN, UNKNOWN = ("test.Other", "Do"), ("test.Other", "Missing")


class Elsewhere:
    """Carries out forwards and effects; `open` = the calls that were given to it and not answered yet."""

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self.open: list[int] = []

    def invoke(self, call: int, invocation: Invocation) -> None:
        """Take one on."""
        self.open.append(call)

    def cancel(self, call: int) -> None:
        """Nobody waits for it any more."""
        if call in self.open:
            self.open.remove(call)

    def step(self, draw: Draw) -> None:
        """Answer one, in some way, or give one more answer of several."""
        if not self.open:
            return
        call = draw.choice(self.open)
        match draw.below(5):
            case 0:
                self.open.remove(call)
                self._callers.reply(call, draw.raw(8))
            case 1:
                self.open.remove(call)
                self._callers.unanswered(call, "/test.Other/Do")
            case 2:
                self._callers.message(call, draw.raw(8)) if call < 0 else None
            case _:
                self.open.remove(call)
                self._callers.finish(call, draw.choice((2, 0, 14, 1, 16, 17, 99)), "no")

    def end(self) -> None:
        """Answer all; what they lead to may bring more."""
        while self.open:
            self._callers.finish(self.open.pop(), 2, "over")


class Broker:
    """Where answers are published: each stays open until it is taken or refused."""

    def __init__(self) -> None:
        self.open: list[Done] = []

    def publish(self, topic: str, event: CloudEvent, done: Done) -> None:
        """See EventSink."""
        assert all(event.attributes[name] for name in REQUIRED)
        request_headers(event)
        self.open.append(done)

    def step(self, draw: Draw) -> None:
        """Take or refuse one."""
        if self.open:
            self.open.pop(draw.below(len(self.open)))(draw.often("", ("no",)))

    def end(self) -> None:
        """Take all."""
        while self.open:
            self.open.pop(0)("")


def fill_action(draw: Draw, action: Any) -> None:
    """A client action, or none."""
    match draw.below(6):
        case 0 | 1:
            action.reply.payload.type_url = draw.often("type.googleapis.com/test.Sum", ("", "x"))
            action.reply.payload.value = draw.raw(8)
            if draw.flag(4):
                fill_metadata(draw, action.reply.metadata)
        case 2:
            action.failure.description, action.failure.restart = "no", draw.flag()
        case 3:
            fill_target(draw, action.forward)
        case 4:
            action.reply.SetInParent()


def fill_effects(draw: Draw, effects: Any) -> None:
    """No, one or two side effects."""
    for _ in range(draw.choice((0, 0, 1, 2))):
        effect = effects.add(synchronous=draw.flag())
        fill_target(draw, effect)


def fill_target(draw: Draw, target: Any) -> None:
    """Another method, that may not be there."""
    target.service_name, target.command_name = draw.often(KNOWN, (UNKNOWN, ("", "")))
    target.payload.value = draw.raw(8)


def fill_metadata(draw: Draw, metadata: entity_pb2.Metadata) -> None:
    """Entries, some of which no header can hold."""
    for _ in range(draw.below(3)):
        key = draw.choice(("x-a", "X-B", "x-bin", "", "grpc-status", "ä", "a b", "x\n"))
        if draw.flag():
            metadata.entries.add(key=key, bytes_value=draw.raw(8))
        else:
            metadata.entries.add(key=key, string_value=draw.raw(8).decode("latin-1"))
