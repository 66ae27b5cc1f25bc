"""The life of owned entities in memory: brought in from the journal, given to the function, thrown away, let go.

Guarantees: an entity is bound anew each time it is read, so that nothing of its life before can land; after an append whose outcome is unknown
the journal tells, on the next reading, whether it happened; what leaves with its shard is finished or given back, never forgotten.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from cloudstate_core.journal.api import Activate, Active, EntityKey, Fenced, Found, Lookup, Outcome, Token
from cloudstate_core.transport.api import Status, Transport
from stateful_proxy.answers import Answers
from stateful_proxy.entity import ACTIVATING, IDLE, QUEUED, Entity, id_field
from stateful_proxy.journal_batch import JournalBatch
from stateful_proxy.kinds import Kind
from stateful_proxy.residents import Residents
from stateful_proxy.service import MethodInfo

IN_DOUBT = "the journal gave no definite answer, so the command may have been executed"


class LossListener(Protocol):
    """Hears that the journal has fenced this proxy out of a shard."""

    def lost(self, shard: int, refused: Token, epoch: int) -> None:
        """The token is the shard's no more, which is at `epoch`."""


class Lives:
    """Entities as they come and go. `go_on` begins what waits at an entity that the function has; `idle` = seconds that an unused one stays."""

    def __init__(
        self,
        transport: Transport,
        function: int,
        batch: JournalBatch,
        losses: LossListener,
        residents: Residents,
        answers: Answers,
        kinds: Mapping[str, Kind],
        idle: float,
        go_on: Callable[[Entity], None],
    ) -> None:
        self._transport, self._function, self._ask, self._losses = transport, function, batch.ask, losses
        self._residents, self._by_stream = residents, residents.by_stream
        self._answers, self._kinds, self._idle, self._go_on = answers, kinds, idle, go_on
        self.appended: Callable[[int, str], None] | None = None
        """Hears when a change is stored: (shard, persistence id)."""
        self.closed = ""
        """Why no entity may be brought to life just now: the function is away, or may be another one."""
        self.passivated = self.fenced = 0

    def create(self, key: EntityKey, method: MethodInfo, shard: int, token: Token) -> Entity:
        """Bring an entity to life, at once or when there is a place for it."""
        kind = self._kinds[method.entity_type]
        entity = Entity(key, shard, token, method.service, kind, id_field(key.entity_id), used=time.monotonic())
        entity.idle_limit = method.passivation or self._idle
        if self._residents.add(entity):
            self._activate(entity)
        return entity

    def make_room(self) -> None:
        """Let an idle entity leave, if others wait for its place."""
        if (idle := self._residents.make_room()) is not None:
            self.leave(idle)

    def give_way(self, entity: Entity) -> None:
        """Let others have its place: one that is called without end would keep it for ever. What waits for it waits for its next turn."""
        self.close_stream(entity, reset=False)
        self._residents.queue(entity)
        self._fill()

    def _activate(self, entity: Entity) -> None:
        """Bind the entity afresh and read it; whatever was in flight under the old binding can no longer land."""
        entity.state = ACTIVATING
        entity.binding = secrets.token_bytes(8)
        operation = Activate(entity.shard, entity.token, entity.key, entity.binding)
        self._ask(operation, lambda outcome: self._activated(entity, outcome))

    def _activated(self, entity: Entity, outcome: Outcome) -> None:
        if entity not in self._residents:
            return
        if isinstance(outcome, Active):
            self._settle(entity, outcome.seq)
            entity.state = IDLE
            if entity.leaving or not entity.mailbox:
                self.refuse_waiting(entity)
                self.leave(entity)
                return
            self._open(entity, outcome)
        elif isinstance(outcome, Fenced):
            self._settle_fenced(entity)
            self.lost(entity, outcome.epoch)
        else:
            if entity.current is not None:
                self._answers.finish(entity.current, Status.UNAVAILABLE, f"{entity.service}: {why(outcome)}; {IN_DOUBT}")
                entity.done()
            self.fail_all(entity, Status.UNAVAILABLE, f"{entity.service}: {why(outcome)}")

    def _open(self, entity: Entity, active: Active) -> None:
        """Give the function the entity as the journal has it."""
        entity.seq, entity.next_id, entity.state = active.seq, 1, IDLE
        if self.closed:
            self.fail_all(entity, Status.UNAVAILABLE, f"{entity.service}: not executed: {self.closed}")
            return
        entity.stream = self._transport.open(self._function, entity.kind.handle)
        self._by_stream[entity.stream] = entity
        for message in entity.kind.opening(entity, active):
            self._transport.send(entity.stream, message)
        self._go_on(entity)

    def _settle(self, entity: Entity, seq: int) -> None:
        """After an append whose outcome was unknown: the journal tells now whether it happened."""
        command, answer = entity.current, entity.answer
        entity.current = entity.answer = None
        if command is None:
            return
        if answer is not None and seq >= answer.expected_seq + answer.steps:
            self.tell_appended(entity)
            self._answers.deliver(command, answer)
        else:
            entity.mailbox.appendleft(command)

    def _settle_fenced(self, entity: Entity) -> None:
        """After an append whose outcome was unknown, in a shard that is lost: it can no longer land, so its command id tells."""
        command, answer = entity.current, entity.answer
        entity.done()
        if command is None:
            return
        if answer is None:  # nothing of it was appended: it goes with what waits
            entity.mailbox.appendleft(command)
            return
        doubt = f"{entity.service}: the shard has moved; {IN_DOUBT}"
        if not command.command_id:
            self._answers.finish(command, Status.UNAVAILABLE, doubt)
            return

        def found(outcome: Outcome) -> None:
            if not isinstance(outcome, Found):
                self._answers.finish(command, Status.UNAVAILABLE, doubt)
            elif outcome.outcome is None:
                self._answers.refuse(command, "lost")
            else:
                self._answers.repeat(command, outcome.outcome)

        self._ask(Lookup(entity.shard, entity.key, command.command_id), found)

    def reload(self, entity: Entity, at_once: bool = False) -> None:
        """Throw the function's copy away; rebuild it if commands wait (or at once), else with the next one."""
        self.close_stream(entity, reset=not at_once)
        if entity.mailbox or entity.current is not None or entity.leaving:
            self._activate(entity)
        elif at_once:
            self._rebuild(entity)
        else:
            self._forget(entity)

    def _rebuild(self, entity: Entity) -> None:
        """Activate without a waiting command: the function asked for a fresh start now."""
        entity.state = ACTIVATING
        entity.binding = secrets.token_bytes(8)

        def rebuilt(outcome: Outcome) -> None:
            if isinstance(outcome, Active) and entity in self._residents and not entity.leaving:
                self._open(entity, outcome)
            else:
                self._activated(entity, outcome)

        self._ask(Activate(entity.shard, entity.token, entity.key, entity.binding), rebuilt)

    def fail_all(self, entity: Entity, status: Status, text: str) -> None:
        """Everything that waits fails and the entity leaves memory; the next command activates it anew."""
        waiting = [*([entity.current] if entity.current else []), *entity.mailbox]
        entity.mailbox.clear()
        entity.done()
        self.close_stream(entity, reset=True)
        self._forget(entity)
        for command in waiting:
            self._answers.finish(command, status, text)

    def close_stream(self, entity: Entity, reset: bool) -> None:
        """The function is to forget its copy: `reset` when it may be in the middle of something."""
        if entity.stream:
            self._by_stream.pop(entity.stream, None)
            if reset:
                self._transport.reset(entity.stream)
            else:
                self._transport.half_close(entity.stream)
            entity.stream = 0

    def leave(self, entity: Entity) -> None:
        """Out of memory, in good order."""
        self.passivated += 1
        self.close_stream(entity, reset=False)
        self._forget(entity)

    def _forget(self, entity: Entity) -> None:
        self._residents.remove(entity)
        self._fill()

    def _fill(self) -> None:
        """Whoever waits for a place gets it, as long as there are any."""
        while (waiting := self._residents.next_queued()) is not None:
            if waiting.mailbox:
                self._activate(waiting)
            else:  # its callers have gone
                self._residents.remove(waiting)

    # Shards -------------------------------------------------------------------------------------------------------------

    def drain_shard(self, shard: int, done: Callable[[], None]) -> None:
        """Finish what is in flight in a shard and forget its entities; then `done`. Waiting commands are refused."""
        self._residents.when_empty(shard, done)
        for entity in self._residents.in_shard(shard):
            entity.leaving = True
            self.refuse_waiting(entity)
            if entity.state in (IDLE, QUEUED):
                self.leave(entity)

    def drop_shard(self, shard: int) -> None:
        """The shard is lost: nothing of it may be served from memory any more."""
        for entity in self._residents.in_shard(shard):
            entity.leaving = True
            self.refuse_waiting(entity)
            if entity.answer is not None:
                continue  # an append is on its way, or its outcome is being settled: the journal tells what the caller gets
            if entity.current is not None:
                self._answers.refuse(entity.current, "lost")
            entity.done()
            self.close_stream(entity, reset=True)
            self._forget(entity)

    def refuse_waiting(self, entity: Entity) -> None:
        """What waits is not executed here."""
        while entity.mailbox:
            self._answers.refuse(entity.mailbox.popleft(), "moving")

    def lost(self, entity: Entity, epoch: int) -> None:
        """The journal has fenced this proxy out of the entity's shard, which is at `epoch`."""
        self.fenced += 1
        entity.leaving = True
        self.refuse_waiting(entity)
        if entity.current is not None:
            self._answers.refuse(entity.current, "lost")
        entity.done()
        self.close_stream(entity, reset=True)
        self._forget(entity)
        self._losses.lost(entity.shard, entity.token, epoch)

    def tell_appended(self, entity: Entity) -> None:
        """A change of the entity is stored."""
        if self.appended is not None:
            self.appended(entity.shard, entity.key.persistence_id)


def why(outcome: Outcome) -> str:
    """What went wrong, of an outcome that is a failure."""
    return str(getattr(outcome, "reason", None) or f"the journal answered {type(outcome).__name__}")
