"""What callers of commands on owned entities get: the function's answer once its change is stored, another method's, or a status.

A stored command may be asked for again by its id: what is recorded with it is the answer's payload, or the forward that answers instead.
"""

from __future__ import annotations

from collections.abc import Callable

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import REFUSED_HEADER, Status
from stateful_proxy.callers import Callers
from stateful_proxy.entity import Answer, Command, Entity
from stateful_proxy.follow_ups import FollowUps, Origin
from stateful_proxy.kinds import Reply
from stateful_proxy.replies import answer_of

FORWARDED = b"\xff"
"""Begins the recorded outcome of a command that was forwarded; the Forward follows. No encoded message begins so; a payload that does, which
is none, is recorded with one more of it in front."""


class Answers:
    """Answers callers, each once. `waiting` = entities by the calls that wait for them."""

    def __init__(self, callers: Callers, follow_ups: FollowUps, report_error: Callable[[str], None], waiting: dict[int, Entity]) -> None:
        self._callers, self._follow_ups, self._report_error, self._waiting = callers, follow_ups, report_error, waiting
        self.reroute: Callable[[Command], bool] | None = None
        """Takes a command back whose shard leaves; False when it goes no further."""

    def of(self, entity: Entity, command: Command, reply: Reply, kind: str | None, steps: int) -> Answer:
        """What a reply that is no failure has for the caller, to be given once the change is stored. `kind` = that of its client action; `steps` =
        by how much the sequence grows."""
        if kind == "reply":
            payload, headers = answer_of(command.method, reply.client_action.reply, self._report_error)
            return Answer(payload, headers, entity.seq, steps, effects=reply.side_effects)
        if kind == "forward":
            return Answer(b"", [], entity.seq, steps, forward=reply.client_action.forward, effects=reply.side_effects)
        return Answer(b"", [], entity.seq, steps, missing=True, effects=reply.side_effects)

    def deliver(self, command: Command, answer: Answer) -> None:
        """The change is stored: side effects first, then what the caller gets."""
        self._waiting.pop(command.call, None)
        if answer.effects or answer.forward is not None:
            origin = _origin(command)
            self._follow_ups.run(origin, answer.effects, lambda: self._conclude(origin, answer))
        elif answer.missing:
            self._callers.unanswered(command.call, command.method.path)
        else:
            self._callers.reply(command.call, answer.payload, answer.headers)

    def _conclude(self, origin: Origin, answer: Answer) -> None:
        """After the side effects."""
        if answer.forward is not None:
            self._follow_ups.forward(origin, answer.forward)
        elif answer.missing:
            self._callers.unanswered(origin.call, origin.method.path)
        else:
            self._callers.reply(origin.call, answer.payload, answer.headers)

    def repeat(self, command: Command, recorded: bytes) -> None:
        """The command was executed before: its caller gets what was answered then."""
        self._waiting.pop(command.call, None)
        if recorded.startswith(FORWARDED * 2):
            self._callers.reply(command.call, recorded[1:])
        elif recorded.startswith(FORWARDED):
            self._follow_ups.forward(_origin(command), entity_pb2.Forward.FromString(recorded[1:]))
        else:
            self._callers.reply(command.call, recorded)

    def finish(self, command: Command, status: Status, text: str) -> None:
        """The command fails."""
        self._waiting.pop(command.call, None)
        self._callers.finish(command.call, status, text)

    def refuse(self, command: Command, why: str) -> None:
        """Not executed here: it is routed again, or whoever routed it is told to."""
        if self._waiting.pop(command.call, None) is None:
            return  # its caller has gone
        if self.reroute is None or not self.reroute(command):
            self._callers.finish(command.call, Status.UNAVAILABLE, "not executed: the shard is moving", [(REFUSED_HEADER, why.encode())])


def recorded(answer: Answer) -> bytes:
    """What the journal keeps of an answer, for `Answers.repeat`."""
    if answer.forward is not None:
        return FORWARDED + answer.forward.SerializeToString()
    return FORWARDED + answer.payload if answer.payload.startswith(FORWARDED) else answer.payload


def _origin(command: Command) -> Origin:
    return Origin(command.call, command.method, command.chain, command.command_id)
