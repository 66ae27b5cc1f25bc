"""What one call gets, in order: each answer of the function waits for its change to be stored, then for its side effects.

A unary call has one step; a streamed one has one for each message. A caller that has gone gets nothing, but what the function asked for
besides is still done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Header, Status
from stateful_proxy.callers import Callers
from stateful_proxy.follow_ups import FollowUps, Origin, Relay
from stateful_proxy.replies import answer_of

Problem = tuple[int, str]
"""A gRPC status, which may be none of the known ones where it comes from the function, and a text."""
MAX_STEPS = 1_000
"""Answers of one call that may wait for their turn."""


class Stored:
    """Whether a change is stored as was asked: not known yet, yes, or why not."""

    def __init__(self) -> None:
        self._done = False
        self._problem: Problem | None = None
        self._then: Callable[[Problem | None], None] | None = None

    def settle(self, problem: Problem | None = None) -> None:
        """It is known now; only the first time counts."""
        if not self._done:
            self._done, self._problem = True, problem
            if self._then is not None:
                self._then(problem)

    def when_known(self, then: Callable[[Problem | None], None]) -> None:
        """Call back once it is known; for one listener."""
        self._then = then
        if self._done:
            then(self._problem)


@dataclass(slots=True)
class _Step:
    stored: Stored | None
    effects: Sequence[entity_pb2.SideEffect]
    action: entity_pb2.ClientAction
    last: bool
    end: Problem | None = None


class Delivery:
    """The answers of one call. `on_failed` hears that it has failed, or its caller has gone, though the function would go on; `on_ended` that
    it has ended."""

    def __init__(
        self,
        origin: Origin,
        callers: Callers,
        follow_ups: FollowUps,
        report_error: Callable[[str], None],
        on_failed: Callable[[], None],
        on_ended: Callable[[], None],
    ) -> None:
        self.origin = origin
        self._callers, self._follow_ups, self._report_error = callers, follow_ups, report_error
        self._on_failed, self._on_ended = on_failed, on_ended
        self._steps: deque[_Step] = deque()
        self._busy = self._advancing = False
        self._headed = False
        self._relay: Relay | None = None
        self.ended = False
        """The caller gets nothing more."""

    def step(self, stored: Stored | None, effects: Sequence[entity_pb2.SideEffect], action: entity_pb2.ClientAction, last: bool) -> None:
        """One answer of the function's."""
        if len(self._steps) >= MAX_STEPS:
            text = f"{self.origin.method.path}: {MAX_STEPS} answers wait for their side effects and forwards, no more are taken"
            self._fail((Status.RESOURCE_EXHAUSTED, text))
            return
        self._steps.append(_Step(stored, effects, action, last))
        self._advance()

    def end(self, status: int, text: str = "") -> None:
        """End the call after what is under way."""
        self._steps.append(_Step(None, (), entity_pb2.ClientAction(), True, (status, text)))
        self._advance()

    def leave(self) -> None:
        """The caller has gone, which the stream that the command was given on hears; the key may have another one by now."""
        self.ended = True
        self._withdraw()
        self._on_failed()

    def _advance(self) -> None:
        """Carry out what waits, in a loop and not each step within the one before: a thousand of them may have waited for one effect."""
        if self._advancing:
            return
        self._advancing = True
        while self._steps and not self._busy:
            self._busy = True
            step = self._steps.popleft()
            if step.stored is None:
                self._effects(step, None)
            else:
                step.stored.when_known(lambda problem, step=step: self._effects(step, problem))  # type: ignore[misc]
        self._advancing = False

    def _effects(self, step: _Step, problem: Problem | None) -> None:
        if problem is not None:
            self._fail(problem)
            self._done()
        else:
            self._follow_ups.run(self.origin, step.effects, lambda: self._act(step))

    def _act(self, step: _Step) -> None:
        """Carry out the client action."""
        kind, method = step.action.WhichOneof("action"), self.origin.method
        if self.ended:
            pass
        elif step.end is not None:
            self._end()
            self._callers.finish(self.origin.call, *step.end)
        elif kind == "failure":
            self._fail((Status.UNKNOWN, step.action.failure.description), told=step.last)
        elif kind == "forward" and step.last:
            self._end()
            self._follow_ups.forward(self.origin, step.action.forward)
        elif kind == "forward":
            self._relay = self._follow_ups.relay(self.origin, step.action.forward, self._message, self._relayed)
            return
        elif kind == "reply":
            self._reply(step.action.reply, step.last)
        elif step.last:
            self._end()
            if method.server_streaming:
                self._callers.finish(self.origin.call, Status.OK)
            else:
                self._callers.unanswered(self.origin.call, method.path)
        self._done()

    def _reply(self, reply: entity_pb2.Reply, last: bool) -> None:
        method = self.origin.method
        payload, headers = answer_of(method, reply, self._report_error)
        if not method.server_streaming:
            self._end()
            self._callers.reply(self.origin.call, payload, headers)
            return
        self._message(payload, headers)
        if last:
            self._end()
            self._callers.finish(self.origin.call, Status.OK)

    def _message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """One message of a streamed call."""
        if not self.ended:
            self._callers.message(self.origin.call, payload, () if self._headed and not self.origin.method.out else headers)
            self._headed = True

    def _relayed(self, status: int, text: str) -> None:
        """A forward within a streamed call has ended; its failure is the call's."""
        if status != Status.OK:
            self._fail((status, text))
        self._done()

    def _fail(self, problem: Problem, told: bool = False) -> None:
        """End the call with a failure. `told`: the function has ended it itself."""
        if self.ended:
            return
        self._end()
        self._callers.finish(self.origin.call, *problem)
        self._withdraw()
        if not told:
            self._on_failed()

    def _withdraw(self) -> None:
        """What another method answers within the call is wanted no more."""
        if self._relay is not None and self._relay.call:
            self._relay.withdraw()
            self._done()

    def _end(self) -> None:
        self.ended = True
        self._on_ended()

    def _done(self) -> None:
        self._busy = False
        self._advance()
