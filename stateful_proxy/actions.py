"""Calls of actions: commands without an entity, in the four shapes that a gRPC method may have.

Each call has a stream of its own to the function. Guarantees: responses are carried out one after another, each one's side effects before its
answer; a failure ends the call and the caller's requests; whichever side ends first, the other hears of it; the function's own status reaches
the caller of that one call. A side that reads slowly slows the other one down: what waits here is bounded.

The first message of a streamed request has the names alone; in protocol 0.1 there is no such message, and every one has them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from cloudstate_core.pb.cloudstate import action_pb2, entity_pb2
from cloudstate_core.transport import api
from cloudstate_core.transport.api import Event, Header, Status, Transport
from stateful_proxy.action_commands import ActionCommands
from stateful_proxy.callers import Callers
from stateful_proxy.follow_ups import FollowUps, Origin, Relay
from stateful_proxy.in_flight import InFlight
from stateful_proxy.invocation import Invocation
from stateful_proxy.replies import answer_of
from stateful_proxy.service import ACTION, STATELESS_FUNCTION, MethodInfo

_SERVICES: Mapping[str, str] = {ACTION: f"/{ACTION}/", STATELESS_FUNCTION: f"/{STATELESS_FUNCTION}/"}
_SHAPES: Mapping[tuple[bool, bool], str] = {
    (False, False): "handleUnary", (True, False): "handleStreamedIn", (False, True): "handleStreamedOut", (True, True): "handleStreamed",
}  # fmt: skip
MOST_WAITING = 1 << 20
"""Bytes that may wait for one side of a call before the other side is paused."""
MOST_RESPONSES = 100
"""Responses that may wait to be carried out before the function is paused."""


def path_of(method: MethodInfo) -> str:
    """The function's method that serves this shape."""
    return _SERVICES[method.entity_type] + _SHAPES[method.client_streaming, method.server_streaming]


@dataclass(slots=True, eq=False)
class _Running:
    """One call at the function."""

    call: int
    origin: Origin
    stream: int
    responses: deque[action_pb2.ActionResponse] = field(default_factory=deque)
    busy: bool = False
    """A response is being carried out."""
    advancing: bool = False
    """Responses are being carried out in a loop, which takes the next one by itself."""
    answered: bool = False
    ended: tuple[int, str] | None = None
    """Status and text with which the function ended the call."""
    paused: bool = False
    """The function is told to wait with further responses."""
    relay: Relay | None = None
    """The forward that answers within the call now."""


class Actions:
    """All action calls of one proxy. Everything runs on the transport's callback thread."""

    def __init__(self, transport: Transport, function: int, callers: Callers, follow_ups: FollowUps, report_error: Callable[[str], None]) -> None:
        self._transport, self._function, self._callers = transport, function, callers
        self._follow_ups, self._report_error = follow_ups, report_error
        self._by_call: dict[int, _Running] = {}
        self._by_stream: dict[int, _Running] = {}
        self._commands = ActionCommands()
        self._in_flight = InFlight(time.monotonic())
        self.calls = 0

    # Requests -----------------------------------------------------------------------------------------------------------

    def begin(self, call: int, invocation: Invocation, more: bool = False, empty: bool = False) -> None:
        """Give a call to the function. `more`: further requests may follow by `feed`; `empty`: there is no first one."""
        self.calls += 1
        method = invocation.method
        stream = self._transport.open(self._function, path_of(method))
        origin = Origin(call, method, invocation.chain, invocation.command_id)
        running = _Running(call, origin, stream)
        self._in_flight.add(1, time.monotonic())
        self._by_call[call] = self._by_stream[stream] = running
        metadata = invocation.metadata
        if method.client_streaming and method.entity_type == ACTION:
            self._transport.send(stream, self._commands.opening(method, metadata))
            if not empty:
                self._transport.send(stream, self._commands.payload(method, invocation.payload, invocation.type_url))
        elif not empty:
            self._transport.send(stream, self._commands.whole(method, invocation.payload, invocation.type_url, metadata))
        if not more:
            self._transport.half_close(stream)

    def feed(self, call: int, payload: bytes, type_url: str = "") -> bool:
        """One more request of a streamed call; False when it is none of these."""
        running = self._by_call.get(call)
        if running is None:
            return False
        method, stream = running.origin.method, running.stream
        if not stream:
            return True  # the function has ended already, and what it said last is still being carried out
        if method.entity_type == STATELESS_FUNCTION:
            self._transport.send(stream, self._commands.whole(method, payload, type_url, b""))
        else:
            self._transport.send(stream, self._commands.payload(method, payload, type_url))
        if call > 0 and self._transport.backlog(stream) > MOST_WAITING:
            self._transport.pause(call)
        return True

    def drained(self, either: int) -> bool:
        """Nothing waits any more for one side of a call, so the other may go on; False when it is none of these."""
        if (running := self._by_stream.get(either)) is not None:
            if running.call > 0:
                self._transport.resume(running.call)
        elif (running := self._by_call.get(either)) is not None:
            self._pace(running)
        return running is not None

    def _pace(self, running: _Running) -> None:
        """Let the function wait while its responses pile up, here or on their way to the caller."""
        if not running.stream or not running.origin.method.server_streaming:
            return
        crowded = len(running.responses) > MOST_RESPONSES or self._callers.backlog(running.call) > MOST_WAITING
        if crowded != running.paused:
            running.paused = crowded
            (self._transport.pause_stream if crowded else self._transport.resume_stream)(running.stream)

    def end(self, call: int) -> bool:
        """No more requests of a streamed call; False when it is none of these."""
        running = self._by_call.get(call)
        if running is not None and running.stream:
            self._transport.half_close(running.stream)
        return running is not None

    def cancelled(self, call: int) -> bool:
        """The caller is gone; False when it waits for none of these."""
        running = self._by_call.get(call)
        if running is not None:
            self._forget(running, reset=True)
        return running is not None

    # The function's answers ---------------------------------------------------------------------------------------------

    def on_event(self, event: Event) -> bool:
        """Handle an event of a call at the function; False when it belongs to another."""
        kind, stream, data, detail = event
        running = self._by_stream.get(stream)
        if running is None:
            return False
        if kind == api.STREAM_CLOSED:
            del self._by_stream[stream]
        if not running.stream:
            return True  # nobody waits for it any more
        if kind == api.STREAM_MESSAGE:
            try:
                running.responses.append(action_pb2.ActionResponse.FromString(data))
            except DecodeError:
                self._fail(running, Status.UNKNOWN, f"{running.origin.method.path}: the function's answer does not parse")
                return True
        elif kind == api.STREAM_CLOSED:
            status, text, _, refused = detail
            running.stream = 0
            running.ended = (Status.UNAVAILABLE, f"the user function cannot be reached: {text}") if refused else (status, text)
        self._advance(running)
        self._pace(running)
        return True

    def _advance(self, running: _Running) -> None:
        """Carry out the next response, or the end, unless one is under way."""
        if running.advancing:
            return
        running.advancing = True
        try:
            while not running.busy and running.responses and self._by_call.get(running.call) is running:
                self._carry_out(running, running.responses.popleft())
        finally:
            running.advancing = False
        if not running.busy and running.ended is not None and self._by_call.get(running.call) is running:
            self._ended(running, *running.ended)

    def _carry_out(self, running: _Running, response: action_pb2.ActionResponse) -> None:
        """Side effects, then the answer."""
        running.busy = True
        if response.side_effects:
            self._follow_ups.run(running.origin, response.side_effects, lambda: self._conclude(running, response))
        else:
            self._conclude(running, response)

    def _conclude(self, running: _Running, response: action_pb2.ActionResponse) -> None:
        """After the side effects of a response: what the caller gets."""
        if self._by_call.get(running.call) is not running:
            return
        kind, single = response.WhichOneof("response"), not running.origin.method.server_streaming
        if kind == "failure":
            method = running.origin.method  # a unary call is over with its one answer: the function ends it by itself
            self._fail(running, Status.UNKNOWN, response.failure.description, reset=method.client_streaming or method.server_streaming)
            return
        if kind == "forward" and not single:
            running.relay = self._follow_ups.relay(
                running.origin,
                response.forward,
                lambda payload, headers: self._message(running, payload, headers),
                lambda status, text: self._relayed(running, status, text),
            )
            return
        if kind == "forward":
            self._forget(running)
            self._follow_ups.forward(running.origin, response.forward)
            return
        if kind == "reply":
            self._reply(running, response.reply, single)
        elif single:
            self._forget(running)
            self._callers.unanswered(running.call, running.origin.method.path)
        self._next(running)

    def _reply(self, running: _Running, reply: entity_pb2.Reply, single: bool) -> None:
        payload, headers = answer_of(running.origin.method, reply, self._report_error)
        if single:
            self._forget(running)
            self._callers.reply(running.call, payload, headers)
        else:
            self._message(running, payload, headers)

    def _message(self, running: _Running, payload: bytes, headers: Sequence[Header]) -> None:
        """One answer of a streamed call."""
        self._callers.message(running.call, payload, () if running.answered and not running.origin.method.out else headers)
        running.answered = True

    def _next(self, running: _Running) -> None:
        """A response has been carried out."""
        running.busy = False
        self._advance(running)
        self._pace(running)

    def _relayed(self, running: _Running, status: int, text: str) -> None:
        """A forward within a streamed call has ended; its failure is the call's."""
        if status == Status.OK:
            self._next(running)
        elif self._by_call.get(running.call) is running:
            self._fail(running, status, text)

    def _ended(self, running: _Running, status: int, text: str) -> None:
        self._forget(running)
        if status == Status.OK and not running.origin.method.server_streaming:
            self._callers.unanswered(running.call, running.origin.method.path)
        else:
            self._callers.finish(running.call, status, text)

    def _fail(self, running: _Running, status: int, text: str, reset: bool = True) -> None:
        self._forget(running, reset)
        self._callers.finish(running.call, status, text)

    def _forget(self, running: _Running, reset: bool = False) -> None:
        self._by_call.pop(running.call, None)
        self._in_flight.add(-1, time.monotonic())
        if running.relay is not None:
            running.relay.withdraw()
        if running.stream and reset:
            self._transport.reset(running.stream)
        running.stream = 0

    def concurrency(self, now: float) -> float:
        """Calls at the function, on average since this was asked last."""
        return self._in_flight.average(now)
