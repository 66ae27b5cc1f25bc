"""Commands on owned entities: their mailboxes, the function's answers, and the journal behind them.

Guarantees: one command in flight per entity; an answer leaves only after its change is stored; after a refused or unknown append the
function's copy is thrown away and rebuilt, so memory never differs from the journal; every command ends with exactly one answer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from google.protobuf.message import DecodeError

from cloudstate_core.journal.api import Appended, Duplicate, EntityKey, Fenced, Found, Lookup, Outcome, Regressed, Token, Unbound, Unknown
from cloudstate_core.transport.api import Status, Transport
from stateful_proxy.answers import Answers, recorded
from stateful_proxy.callers import Callers
from stateful_proxy.entity import APPENDING, BUSY, IDLE, LOOKING_UP, Command, CommandEncoder, Entity
from stateful_proxy.follow_ups import FollowUps
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.kinds import KINDS, Kind, Reply
from stateful_proxy.lives import Lives, LossListener, why
from stateful_proxy.residents import Residents
from stateful_proxy.shard_load import ShardLoad

log = logging.getLogger(__name__)

_AT_JOURNAL = (APPENDING, LOOKING_UP)
MAX_ATTEMPTS = 3
"""Times that one command is executed again after its append was definitely refused."""
TURN = 100
"""Commands that an entity executes in a row while others wait for a stream."""


@dataclass(frozen=True, slots=True)
class EntityLimits:
    """Bounds of memory and time."""

    mailbox: int = 1_000
    """Commands that may wait for one entity."""
    idle: float = 30.0
    """Seconds without a command after which an entity leaves memory."""
    streams: int = 0
    """Entities that may be in memory at once, since the function serves no more streams; 0 = any number."""
    answer: float = 60.0
    """Seconds that the function has to answer a command."""


class Entities:
    """Executes commands on entities. Everything runs on the transport's callback thread."""

    def __init__(
        self,
        transport: Transport,
        function: int,
        batch: JournalBatch,
        losses: LossListener,
        limits: EntityLimits,
        callers: Callers,
        follow_ups: FollowUps,
        report_error: Callable[[str], None],
        kinds: Mapping[str, Kind] = KINDS,
    ) -> None:
        self._transport, self._ask = transport, batch.ask
        self._limits, self._report_error, self._callers = limits, report_error, callers
        residents = self._residents = Residents(limits.streams)
        self._by_key, self._by_stream, self._by_call = residents.by_key, residents.by_stream, residents.by_call
        self._answers = Answers(callers, follow_ups, report_error, residents.by_call)
        self.lives = Lives(transport, function, batch, losses, residents, self._answers, kinds, limits.idle, self._next)
        self._encoder = CommandEncoder()
        self._load = ShardLoad()
        self.regressed = self.commands = 0

    def route_again(self, reroute: Callable[[Command], bool]) -> None:
        """Let `reroute` take back what is not executed, since its shard leaves; it returns False for what it does not take."""
        self._answers.reroute = reroute

    @property
    def active(self) -> int:
        """Entities in memory."""
        return len(self._by_key)

    @property
    def function_concurrency(self) -> float:
        """Commands at the user function, on average between the last two calls of `load`."""
        return self._load.function_concurrency

    # Commands -----------------------------------------------------------------------------------------------------------

    def command(self, command: Command, shard: int, token: Token) -> None:
        """Execute a command on an entity of a shard that this proxy owns; it is answered through `Callers`."""
        call, method = command.call, command.method
        self.commands += 1
        key = EntityKey(method.persistence_id, command.key)
        entity = self._by_key.get(key)
        if entity is not None and entity.state is IDLE and entity.stream and not (entity.mailbox or entity.leaving or command.retry):
            self._by_call[call] = entity
            self._execute(entity, command)
            return
        if entity is None:
            if self.lives.closed:
                self._callers.finish(call, Status.UNAVAILABLE, f"{method.path}: not executed: {self.lives.closed}")
                return
            if self._residents.full:
                text = f"{method.service}: too many entities wait for a stream to the function, no more are taken"
                self._callers.finish(call, Status.RESOURCE_EXHAUSTED, text)
                return
            entity = self.lives.create(key, method, shard, token)
        elif entity.leaving:
            self._by_call[call] = entity
            self._answers.refuse(command, "draining")
            return
        elif len(entity.mailbox) >= self._limits.mailbox:
            text = f"{method.service}: {self._limits.mailbox} commands wait for this entity, no more are taken"
            self._callers.finish(call, Status.RESOURCE_EXHAUSTED, text)
            return
        self._by_call[call] = entity
        entity.mailbox.append(command)
        if entity.stream:  # else whoever this came from, as an effect does from a reply, opens one for what waits by then
            self._next(entity)
        self.lives.make_room()

    def _next(self, entity: Entity) -> None:
        """Begin the next waiting command, if the entity is free; leave, if it is to, or if others have waited for its place for long."""
        if entity.state is not IDLE:
            return
        if entity.leaving:
            self.lives.refuse_waiting(entity)
            self.lives.leave(entity)
            return
        if not entity.mailbox:
            self.lives.make_room()
            return
        if entity.next_id > TURN and self._residents.queued:
            self.lives.give_way(entity)
            return
        command = entity.mailbox.popleft()
        if command.retry and command.command_id and not command.looked_up:
            command.looked_up = True
            entity.state, entity.current = LOOKING_UP, command
            self._ask(Lookup(entity.shard, entity.key, command.command_id), lambda outcome: self._looked_up(entity, command, outcome))
            return
        self._execute(entity, command)

    def _looked_up(self, entity: Entity, command: Command, outcome: Outcome) -> None:
        """A command that may have been executed before is answered from the journal if it was; never executed while nobody knows."""
        if entity.current is not command:
            return
        entity.done()
        if not isinstance(outcome, Found):
            self._answers.finish(command, Status.UNAVAILABLE, f"{entity.service}: {why(outcome)}")
        elif outcome.outcome is not None:
            self._answers.repeat(command, outcome.outcome)
        else:
            entity.mailbox.appendleft(command)
        self._go_on(entity)

    def _go_on(self, entity: Entity) -> None:
        """After the journal's answer: the stream may have ended meanwhile."""
        if entity.stream or entity.leaving:
            self._next(entity)
        else:
            self.lives.reload(entity)

    def _execute(self, entity: Entity, command: Command) -> None:
        entity.state, entity.current = BUSY, command
        entity.started = entity.used = time.monotonic()
        kind = entity.kind
        encoded = self._encoder.encode(kind.command_tag, entity.id_field, entity.next_id, command.method, command.payload, command.metadata)
        self._transport.send(entity.stream, encoded)
        entity.next_id += 1

    # The function's answers ---------------------------------------------------------------------------------------------

    def message(self, stream: int, data: bytes) -> bool:
        """The function has sent a message on a stream; False when that is no entity's."""
        entity = self._by_stream.get(stream)
        if entity is None:
            return False
        try:
            out = entity.kind.parse(data)
        except DecodeError:
            self._crash(entity, "reply", "a message on the entity's stream does not parse")
            return True
        if out.HasField("reply"):
            self._replied(entity, out.reply)
        elif out.HasField("failure"):
            self._crash(entity, "failure", out.failure.description)
        else:
            self._crash(entity, "reply", "an empty message on the entity's stream")
        return True

    def _replied(self, entity: Entity, reply: Reply) -> None:
        command, kind = entity.current, entity.kind
        if command is None or entity.state is not BUSY or reply.command_id != entity.next_id - 1:
            self._crash(entity, "reply", f"reply with command id {reply.command_id}, which is not in flight")
            return
        entity.used = time.monotonic()
        self._load.add(entity.shard, entity.used - entity.started)
        client_action, steps = reply.client_action, kind.steps(reply)
        action = client_action.WhichOneof("action")
        if action == "failure":
            entity.done()
            self._answers.finish(command, Status.UNKNOWN, client_action.failure.description)
            self._after_failure(entity, reload=steps > 0 or client_action.failure.restart)
            return
        answer = self._answers.of(entity, command, reply, action, steps)
        if not steps:
            if ignored := kind.ignored(reply):
                self._report_error(f"{command.method.path}: {ignored}")
            entity.done()
            self._answers.deliver(command, answer)
            self._next(entity)
            return
        entity.state, entity.answer = APPENDING, answer
        outcome = recorded(answer) if command.command_id else b""  # without an id nobody can ask for it again
        self._ask(kind.change(entity, command, reply, outcome), partial(self._appended, entity))

    def _appended(self, entity: Entity, outcome: Outcome) -> None:
        command, answer = entity.current, entity.answer
        assert command is not None
        assert answer is not None
        if isinstance(outcome, Appended):
            entity.seq = outcome.seq
            self.lives.tell_appended(entity)
            entity.done()
            self._answers.deliver(command, answer)
            if entity.mailbox or entity.leaving or not entity.stream or self._residents.queued:  # mostly nothing waits
                self._go_on(entity)
        elif isinstance(outcome, Duplicate):
            entity.done()
            self._answers.repeat(command, outcome.outcome)
            self.lives.reload(entity)
        elif isinstance(outcome, Unknown):
            self.lives.reload(entity)
        else:
            self._refused(entity, command, outcome)

    def _refused(self, entity: Entity, command: Command, outcome: Outcome) -> None:
        """The append definitely did not happen."""
        entity.done()
        if isinstance(outcome, Fenced) or (isinstance(outcome, Unbound) and outcome.epoch > entity.token.epoch):
            entity.mailbox.appendleft(command)
            self.lives.lost(entity, outcome.epoch)
        elif isinstance(outcome, Unbound) and command.attempts < MAX_ATTEMPTS:
            command.attempts += 1
            entity.mailbox.appendleft(command)
            self.lives.reload(entity)
        elif isinstance(outcome, Regressed):
            self.regressed += 1
            log.error("%s: the journal is at sequence %d, not %d: it lost acknowledged writes", entity.service, outcome.seq, entity.seq)
            self._answers.finish(command, Status.DATA_LOSS, f"{entity.service}: the journal has lost acknowledged events of this entity")
            self.lives.reload(entity)
        else:
            self._answers.finish(command, Status.UNAVAILABLE, f"{entity.service}: {why(outcome)}")
            self.lives.reload(entity)

    def _after_failure(self, entity: Entity, reload: bool) -> None:
        if reload:
            self.lives.reload(entity, at_once=True)
        else:
            self._next(entity)

    def cancelled(self, call: int) -> bool:
        """A caller is gone; False when none of these waits for it. What is at the function already is finished."""
        entity = self._by_call.pop(call, None)
        if entity is None:
            return False
        waiting = next((c for c in entity.mailbox if c.call == call), None)
        if waiting is not None:
            entity.mailbox.remove(waiting)
        return True

    # Ends ---------------------------------------------------------------------------------------------------------------

    def closed(self, stream: int, detail: tuple[int, str, list[tuple[str, bytes]], bool]) -> bool:
        """The function ended a stream, or cannot be reached; False when that is no entity's."""
        entity = self._by_stream.pop(stream, None)
        if entity is not None and entity.stream == stream:
            self._stream_closed(entity, detail)
        return entity is not None

    def _stream_closed(self, entity: Entity, detail: tuple[int, str, list[tuple[str, bytes]], bool]) -> None:
        entity.stream = 0
        if entity.state in _AT_JOURNAL:
            return
        status, text, _, refused = detail
        if refused or status == Status.UNAVAILABLE:
            self.lives.fail_all(entity, Status.UNAVAILABLE, f"{entity.service}: the user function cannot be reached: {text}")
        else:
            self._crash(entity, "termination", f"the function closed the stream with status {status}: {text}")

    def _crash(self, entity: Entity, what: str, logged: str) -> None:
        noun = entity.kind.noun
        told = f"Unexpected {noun} {what}"
        log.warning("%s: %s: %s", entity.service, told, logged)
        if entity.state in _AT_JOURNAL:
            self.lives.close_stream(entity, reset=True)
            return
        command = entity.current
        entity.done()
        self.lives.fail_all(entity, Status.UNKNOWN, f"{noun[0].upper()}{noun[1:]} terminated")
        if command is not None:  # last: what comes after it goes to the entity's next life
            self._answers.finish(command, Status.UNKNOWN, told)

    def passivate(self, now: float) -> None:
        """Let idle entities leave memory, and wait no longer for answers that are overdue."""
        for entity in [e for e in self._by_key.values() if e.state is BUSY and now - e.used >= self._limits.answer]:
            self._overdue(entity)
        idle = [e for e in self._by_key.values() if e.state is IDLE and now - e.used >= e.idle_limit]
        for entity in idle:
            if not entity.mailbox:
                self.lives.leave(entity)

    def _overdue(self, entity: Entity) -> None:
        """The function does not answer: that stream is given up."""
        command = entity.current
        assert command is not None
        text = f"{command.method.path}: the function has not answered within {self._limits.answer:g} s"
        log.warning("%s", text)
        entity.done()
        self._answers.finish(command, Status.DEADLINE_EXCEEDED, text)
        self.lives.fail_all(entity, Status.UNAVAILABLE, f"{entity.service}: not executed: the function does not answer")

    # Shards -------------------------------------------------------------------------------------------------------------

    def drain_shard(self, shard: int, done: Callable[[], None]) -> None:
        """Finish what is in flight in a shard and forget its entities; then `done`. Waiting commands are given back."""
        self.lives.drain_shard(shard, done)

    def drop_shard(self, shard: int) -> None:
        """The shard is lost: nothing of it may be served from memory any more."""
        self.lives.drop_shard(shard)

    def load(self, now: float) -> dict[int, float]:
        """Load of each shard, see `ShardLoad.take`."""
        busy = [entity for entity in set(self._by_call.values()) if entity.state is BUSY]
        return self._load.take(now, busy, self._residents.counts())
