"""One stream to the user function, for one key: commands and their answers, and whose turn it is to change the value.

The function changes the value while a command or a cancellation is unanswered; in between, the proxy tells it what has changed elsewhere, as
the difference to what it holds. Guarantees: every command ends with one answer; a cancellation is told once, and never for a call that the
function has ended itself; a function that does not answer a cancellation delays the others' changes for a moment only.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from google.protobuf.message import DecodeError

from cloudstate_core.pb.cloudstate import crdt_pb2, entity_pb2
from cloudstate_core.transport.api import Status
from stateful_proxy.crdt.cancellations import Cancellations
from stateful_proxy.crdt.delivery import Delivery, Stored
from stateful_proxy.crdt.function_copy import FunctionCopy
from stateful_proxy.crdt.keeper import Keeper
from stateful_proxy.crdt.kinds import Incompatible
from stateful_proxy.crdt.replica import DELETED, Operation
from stateful_proxy.crdt.storing import Storing
from stateful_proxy.crdt.surroundings import Command, Surroundings
from stateful_proxy.follow_ups import Origin

log = logging.getLogger(__name__)

HANDLE = "/cloudstate.crdt.Crdt/handle"
ANSWER_LIMIT = 60.0
"""Seconds that the function has to answer a command."""


class Session:
    """See the module. `on_end` is called once with the stream, when it has ended."""

    def __init__(self, surroundings: Surroundings, keeper: Keeper, service: str, on_end: Callable[[int], None]) -> None:
        self._around, self._keeper, self._service, self._on_end = surroundings, keeper, service, on_end
        self._replica = keeper.replica
        self._copy = FunctionCopy(self._replica, surroundings.replication.living)
        self._next = 1
        self._unanswered: dict[int, Command] = {}
        self._streaming: dict[int, Command] = {}
        self._cancelling = Cancellations(surroundings, self.turn)
        self._deleted = False
        self._broken = ""
        self.deleting = self.leaving = False
        self.stream = surroundings.transport.open(surroundings.function, HANDLE)
        self._open()

    @property
    def accepts(self) -> bool:
        """Takes commands: its value lives and is what the function holds, and the proxy stays."""
        return bool(self.stream) and not (self.deleting or self.leaving or self._broken or self._replica.ended)

    @property
    def commands(self) -> int:
        """Calls at the function."""
        return len(self._unanswered) + len(self._streaming)

    @property
    def quiet(self) -> bool:
        """Nothing is open: it may leave memory."""
        return not (self._unanswered or self._streaming or self._cancelling or self.deleting)

    def _open(self) -> None:
        init = crdt_pb2.CrdtInit(service_name=self._service, entity_id=self._keeper.key.entity_id)
        if (whole := self._copy.whole()) is not None:
            init.delta.CopyFrom(whole)
        self._send(crdt_pb2.CrdtStreamIn(init=init))

    def _send(self, message: crdt_pb2.CrdtStreamIn, first_value: bool = False) -> None:
        self._around.transport.send(self.stream, self._around.dialect.encode(message, first_value))

    # Callers ------------------------------------------------------------------------------------------------------------

    def execute(self, command: Command, answered: Callable[[], None]) -> None:
        """Give a command to the function; `answered` hears that its caller gets nothing more."""
        around, method = self._around, command.method
        command.number, self._next = self._next, self._next + 1
        origin = Origin(command.call, method, command.chain, command.command_id)
        command.delivery = Delivery(origin, around.callers, around.follow_ups, around.report_error, lambda: self._failed(command), answered)
        command.since = time.monotonic()
        self._unanswered[command.number] = command
        around.in_flight.add(1, command.since)
        message = entity_pb2.Command(entity_id=self._keeper.key.entity_id, id=command.number, name=method.name, streamed=method.server_streaming)
        message.payload.type_url, message.payload.value = f"type.googleapis.com/{method.input_type}", command.payload
        if command.metadata:
            message.metadata.MergeFromString(command.metadata)
        self._send(crdt_pb2.CrdtStreamIn(command=message))

    def _failed(self, command: Command) -> None:
        """A call has ended, and not by the function: tell it, if it streams."""
        if self._streaming.pop(command.number, None) is None or not self.stream:
            return
        cancelled = entity_pb2.StreamCancelled(entity_id=self._keeper.key.entity_id, id=command.number)
        self._send(crdt_pb2.CrdtStreamIn(stream_cancelled=cancelled))
        self._cancelling.begin(command)

    # The function -------------------------------------------------------------------------------------------------------

    def on_message(self, data: bytes) -> None:
        """The function says something."""
        try:
            out = self._around.dialect.decode(data)
        except DecodeError:
            self.crash("Unexpected entity reply", "a message on the entity's stream does not parse")
            return
        match out.WhichOneof("message"):
            case "reply":
                self._replied(out.reply)
            case "streamed_message":
                self._streamed(out.streamed_message)
            case "stream_cancelled_response":
                self._answered_cancellation(out.stream_cancelled_response)
            case "failure":
                self._reported(out.failure)
            case _:
                self.crash("Unexpected entity reply", "an empty message on the entity's stream")

    def _replied(self, reply: crdt_pb2.CrdtReply) -> None:
        command = self._unanswered.get(reply.command_id)
        if command is None:
            self.crash("Unexpected entity reply", f"reply with command id {reply.command_id}, which is not in flight")
            return
        if reply.streamed and not command.method.server_streaming:
            text = f"{command.method.path}: replied with streamed = true to a command that is not streamed"
            self._around.report_error(text)
            self.crash("Unexpected entity reply", text)
            return
        self._answered(reply.command_id)
        if reply.streamed:
            self._streaming[reply.command_id] = command
        stored = self._change(command, reply.state_action)
        command.delivery.step(stored, reply.side_effects, reply.client_action, last=not reply.streamed)
        if self.leaving and reply.streamed:
            command.delivery.end(Status.OK)
        if self.leaving or command.gone:
            self._failed(command)
        self.turn()

    def _answered(self, number: int) -> Command | None:
        """The function has answered a command, if it was one that it was to answer."""
        command = self._unanswered.pop(number, None)
        if command is not None:
            self._around.in_flight.add(-1, time.monotonic())
        return command

    def _streamed(self, message: crdt_pb2.CrdtStreamedMessage) -> None:
        number = message.command_id
        command = self._streaming.get(number)
        if command is None:
            if number in self._unanswered or not 0 < number < self._next:
                self.crash("Unexpected entity reply", f"a streamed message with command id {number}, which streams nothing")
            return
        if message.end_stream:
            del self._streaming[number]
        command.delivery.step(None, message.side_effects, message.client_action, last=message.end_stream)

    def _answered_cancellation(self, response: crdt_pb2.CrdtStreamCancelledResponse) -> None:
        number = response.command_id
        command = self._cancelling.answered(number)
        if command is None:
            self.crash("Unexpected entity reply", f"an answer to the cancellation of command {number}, which was not cancelled")
            return
        stored = self._change(command, response.state_action)
        command.delivery.step(stored, response.side_effects, entity_pb2.ClientAction(), last=True)
        self.turn()

    def _reported(self, failure: entity_pb2.Failure) -> None:
        """One command has failed, or the entity."""
        number = failure.command_id
        command = self._answered(number) or self._streaming.pop(number, None)
        if command is not None:
            command.delivery.end(Status.UNKNOWN, failure.description)
            self.turn()
        elif self._cancelling.failed(number):
            self.turn()
        else:
            self.crash("Unexpected entity failure", failure.description)

    # Changes ------------------------------------------------------------------------------------------------------------

    def _change(self, command: Command, action: crdt_pb2.CrdtStateAction) -> Stored | None:
        """Apply a state action; what is returned tells when it is stored as was asked."""
        kind = action.WhichOneof("action")
        if kind is None:
            return None
        stored, path = Stored(), command.method.path
        if self._replica.ended or self.deleting:
            stored.settle((Status.ABORTED, f"{path}: {DELETED}"))
            return stored
        now = self._around.wall_clock()
        if kind == "delete":
            self.deleting = True
            operation = self._replica.delete(now)
        else:
            changed = self._copy.change(action.update, now)
            if isinstance(changed, Incompatible):
                self._broken = f"{path}: the update cannot be applied: {changed.reason}"
                self._around.report_error(self._broken)
                stored.settle((Status.UNKNOWN, self._broken))
                return stored
            operation = changed
        Storing(self._around, self._keeper, path, action.write_consistency, stored).keep(operation, self._settled)
        return stored

    def _settled(self, operation: Operation) -> None:
        """An operation is in the journal, or will never be."""
        if operation.delta is None:
            self._deleted = True
        self.turn()

    def turn(self, members_changed: bool = False) -> None:
        """Tell the function what is new, if it is the proxy's turn."""
        if not self.stream or self._unanswered or self._cancelling:
            if self._broken:
                self.crash("Entity terminated", self._broken)
            return
        if self._broken:
            self.crash("Entity terminated", self._broken)
        elif self.deleting:
            if self._deleted:
                self._close()
        elif self._replica.ended:
            self._tell_deleted()
        else:
            self._synchronize(members_changed)
            if self.leaving and not self._streaming and not self._keeper.busy and self.stream:
                self._close()

    def _synchronize(self, members_changed: bool) -> None:
        """Give the function what it does not know yet."""
        first = self._copy.empty
        delta = self._copy.news(members_changed)
        if self._copy.gone:
            self._tell_deleted()
        elif isinstance(delta, Incompatible):
            self.crash("Entity terminated", delta.reason)
        elif delta is not None and first and not self._around.dialect.keeps_first_value:
            self._begin_anew()
        elif delta is not None:
            self._send(crdt_pb2.CrdtStreamIn(delta=delta), first_value=first)

    # Ends ---------------------------------------------------------------------------------------------------------------

    def leave(self) -> None:
        """The proxy stops: end streamed calls in good order, and leave when everything is stored."""
        self.leaving = True
        for command in list(self._streaming.values()):
            command.delivery.end(Status.OK)
            self._failed(command)
        self.turn()

    def close(self) -> None:
        """Out of memory, in good order; only while it is quiet."""
        self._close()

    def _begin_anew(self) -> None:
        """The function would not keep the value that there is now: the next command opens a stream that begins with it."""
        self._around.transport.half_close(self.stream)
        self._end_all(Status.UNAVAILABLE, f"{self._service}: the value has been made elsewhere meanwhile; call again")

    def _tell_deleted(self) -> None:
        self._send(crdt_pb2.CrdtStreamIn(delete=crdt_pb2.CrdtDelete()))
        self._close()

    def _close(self) -> None:
        self._around.transport.half_close(self.stream)
        self._end_all(Status.OK)

    def tick(self, now: float) -> None:
        """Give the stream up if the function does not answer: nothing that happens elsewhere could be told any more."""
        late = next((c for c in self._unanswered.values() if now - c.since >= ANSWER_LIMIT), None)
        if late is not None:
            text = f"{late.method.path}: the function has not answered within {ANSWER_LIMIT:g} s"
            self.crash(text, text, Status.DEADLINE_EXCEEDED)

    def crash(self, told: str, logged: str, status: Status = Status.UNKNOWN) -> None:
        """Function and proxy do not agree any more: everything fails, and the next command gets a new stream."""
        if not self.stream:
            return
        log.warning("%s: %s: %s", self._service, told, logged)
        self._around.transport.reset(self.stream)
        self._end_all(status, told)

    def on_closed(self, detail: tuple[int, str, list[tuple[str, bytes]], bool]) -> None:
        """The function ended the stream, or cannot be reached."""
        status, text, _, refused = detail
        if refused or status == Status.UNAVAILABLE:
            self._end_all(Status.UNAVAILABLE, f"{self._service}: the user function cannot be reached: {text}")
        else:
            if not self.quiet:
                log.warning("%s: the function closed the stream with status %s: %s", self._service, status, text)
            self._end_all(Status.UNKNOWN, "Unexpected entity termination")

    def _end_all(self, status: Status, text: str = "") -> None:
        """The stream has ended, and every call on it. The stream first: a call that ends may bring the next one, which needs another stream."""
        commands = [*self._unanswered.values(), *self._streaming.values()]
        self._around.in_flight.add(-len(self._unanswered), time.monotonic())
        self._unanswered, self._streaming = {}, {}
        self._cancelling.end()
        stream, self.stream = self.stream, 0
        self._on_end(stream)
        for command in commands:
            command.delivery.end(status, text)
