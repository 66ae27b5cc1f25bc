"""What a reply asks for besides its answer: side effects, and a forward to the method that is to answer instead.

Effects are started in the order in which they were asked for, after the state is stored; synchronous ones are awaited, for a bounded time. What
becomes of an effect never changes the outcome of the command that asked for it. A target that does not exist is reported to the function with
the chain of calls that led to it; chains are bounded, so that two methods that forward to each other come to an end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cloudstate_core.pb.cloudstate import entity_pb2
from cloudstate_core.transport.api import Header, Status, Transport
from stateful_proxy.callers import Callers
from stateful_proxy.invocation import Invocation, Invoke
from stateful_proxy.service import MethodInfo

MAX_CHAIN = 20
"""Methods that one call may go through by forwards and side effects."""
EFFECT_LIMIT = 10.0
"""Seconds that a synchronous side effect is awaited."""


@dataclass(slots=True)
class Origin:
    """The command whose reply asks. Never changed (and not frozen: every call of an action has one)."""

    call: int
    method: MethodInfo
    chain: tuple[str, ...]
    command_id: str


class FollowUps:
    """Carries out what replies ask for. `invoke` and `cancel` are set before the first of them."""

    def __init__(
        self,
        transport: Transport,
        callers: Callers,
        methods: Mapping[str, MethodInfo],
        report_error: Callable[[str], None],
        flush: Callable[[], None],
    ) -> None:
        """`flush` sends what was asked of the journal: what goes on when a time is over belongs to no batch of events."""
        self._transport, self._callers, self._methods = transport, callers, methods
        self._report_error, self._flush = report_error, flush
        self.invoke: Invoke = _nowhere
        self.cancel: Callable[[int], object] = lambda call: None
        """Tells whoever executes a call that nobody waits for it any more."""
        self.effects = self.forwards = 0

    def run(self, origin: Origin, effects: Sequence[entity_pb2.SideEffect], then: Callable[[], None]) -> None:
        """Start the side effects, then `then`: at once, or when the last synchronous one has ended."""
        self._next(origin, iter(enumerate(effects)), then)

    def _next(self, origin: Origin, effects: Iterator[tuple[int, entity_pb2.SideEffect]], then: Callable[[], None]) -> None:
        for number, effect in effects:
            target = self._target(origin, effect.service_name, effect.command_name, "side effect")
            if target is None:
                continue
            self.effects += 1
            command_id = f"{origin.command_id}/{number}" if origin.command_id else ""
            invocation = Invocation(target, effect.payload.value, effect.metadata.SerializeToString(), command_id, _longer(origin))
            if not effect.synchronous:
                self.invoke(self._callers.attach(_Ignored()), invocation)
            elif not self._await(invocation, lambda: self._next(origin, effects, then)):
                return
        then()

    def _await(self, invocation: Invocation, then: Callable[[], None]) -> bool:
        """Start an effect, and call `then` when it has ended; True when it has ended at once: then that is not called, since many may do so in a
        row, which must not be done one within the other."""
        waiting = _Awaited()
        self.invoke(self._callers.attach(waiting), invocation)
        if not waiting.ended:
            waiting.then, waiting.cancel_timer = then, self._transport.cancel
            waiting.timer = self._transport.after(EFFECT_LIMIT, lambda: self._overdue(waiting))
        return waiting.ended

    def _overdue(self, waiting: _Awaited) -> None:
        waiting.over()
        self._flush()

    def relay(self, origin: Origin, forward: entity_pb2.Forward, message: OnMessage, end: OnEnd) -> Relay:
        """Let another method answer within a streamed call: its answers come to `message`, its end to `end`."""
        relay = Relay(self._callers, message, end, lambda call: self.cancel(call))
        self._forward(origin, forward, relay.call)
        return relay

    def forward(self, origin: Origin, forward: entity_pb2.Forward) -> None:
        """Let another method answer the call."""
        self._forward(origin, forward, origin.call)

    def _forward(self, origin: Origin, forward: entity_pb2.Forward, call: int) -> None:
        target = self._target(origin, forward.service_name, forward.command_name, "forward")
        if target is None:
            text = f"{origin.method.path}: was forwarded to {forward.service_name}.{forward.command_name}, which cannot take it"
            self._callers.finish(call, Status.UNKNOWN, text)
            return
        self.forwards += 1
        command_id = f"{origin.command_id}/f" if origin.command_id else ""
        metadata = forward.metadata.SerializeToString()
        self.invoke(call, Invocation(target, forward.payload.value, metadata, command_id, _longer(origin)))

    def _target(self, origin: Origin, service: str, name: str, what: str) -> MethodInfo | None:
        """The method that is meant; None when there is none, which the function is told."""
        chain = " -> ".join([*origin.chain, origin.method.path])
        found = self._methods.get(f"/{service}/{name}")
        if found is None:
            self._report_error(f"{chain}: {what} to {service}.{name}: the function has no such method")
            return None
        if len(origin.chain) + 1 >= MAX_CHAIN:
            self._report_error(f"{chain}: {what} to {service}.{name}: a call may go through {MAX_CHAIN} methods at most")
            return None
        return found


def _longer(origin: Origin) -> tuple[str, ...]:
    return (*origin.chain, origin.method.path)


def _nowhere(call: int, invocation: Invocation) -> None:
    raise AssertionError("follow-ups before there is anybody to carry them out")


OnMessage = Callable[[bytes, Sequence[Header]], None]
OnEnd = Callable[[int, str], None]


class Relay:
    """The answers of a forward's target, on their way into a streamed call. One that is withdrawn says nothing any more: what its target had
    answered by then may be published later."""

    def __init__(self, callers: Callers, message: OnMessage, end: OnEnd, cancel: Callable[[int], object]) -> None:
        self._callers, self._message, self._end, self._cancel = callers, message, end, cancel
        self.call = callers.attach(self)

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """One answer of the target."""
        if self.call:
            self._message(payload, headers)

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The target is done."""
        if self.call:
            self.call = 0
            self._end(status, text)

    def withdraw(self) -> None:
        """The streamed call is over: the target's answers are wanted no more. Does nothing when it is done."""
        call, self.call = self.call, 0
        if call:
            self._callers.detach(call)
            self._cancel(call)


class _Ignored:
    """Takes the outcome of a side effect that nobody waits for."""

    def message(self, payload: bytes, headers: Sequence[Header]) -> None:
        """Not wanted."""

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """Not wanted."""


class _Awaited(_Ignored):
    """Goes on when the effect has ended, whatever became of it, or when its time is over."""

    def __init__(self) -> None:
        self.then: Callable[[], None] | None = None
        self.ended = False
        self.timer = 0
        self.cancel_timer: Callable[[int], None] | None = None

    def finish(self, status: int, text: str, trailers: Sequence[Header]) -> None:
        """The effect is done."""
        self.ended = True
        if self.cancel_timer is not None:
            self.cancel_timer(self.timer)
        self.over()

    def over(self) -> None:
        """Wait no longer."""
        then, self.then = self.then, None
        if then is not None:
            then()
