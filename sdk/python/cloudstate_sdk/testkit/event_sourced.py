"""An event sourced entity in memory, with the journal that a proxy would keep for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import any_pb2

from cloudstate_sdk import event_sourcing
from cloudstate_sdk.any_values import Value
from cloudstate_sdk.context import packed
from cloudstate_sdk.definition import EVENT_SOURCED
from cloudstate_sdk.pb.cloudstate import entity_pb2, event_sourced_pb2
from cloudstate_sdk.testkit.driving import Conversation
from cloudstate_sdk.testkit.entities import EntityKit
from cloudstate_sdk.testkit.results import Result, decoded, outcome

In = event_sourced_pb2.EventSourcedStreamIn


@dataclass(frozen=True, slots=True)
class EventSourcedResult(Result):
    """What came of a command on an event sourced entity."""

    events: list[Any] = field(default_factory=list)
    """That were stored, in their order."""
    snapshot: Any = None
    """That was stored with them; None when none was due."""


class EventSourcedKit(EntityKit[EventSourcedResult]):
    """Calls the commands of one entity and keeps its events, as a proxy does.

    `events` is a history to begin with; `snapshot_every` replaces that of the class (0: never). DefinitionError for a class that is no event sourced
    entity.
    """

    def __init__(self, entity: type, entity_id: str = "entity", *, events: Iterable[Value] = (), snapshot_every: int | None = None) -> None:
        super().__init__(entity, EVENT_SOURCED, entity_id, **({} if snapshot_every is None else {"snapshot_every": snapshot_every}))
        self._events = [packed(event) for event in events]
        self._snapshot: any_pb2.Any | None = None
        self._snapshot_sequence = 0

    @property
    def state(self) -> Any:
        """The entity in memory: the instance of the class, rebuilt first when a crash has ended it."""
        self._live()
        return self._instance

    @property
    def events(self) -> list[Any]:
        """All that is stored, from the first event on."""
        return [decoded(event, self._definition.descriptor) for event in self._events]

    @property
    def snapshot(self) -> Any:
        """The last one that was stored; None when there is none."""
        return None if self._snapshot is None else decoded(self._snapshot, self._definition.descriptor)

    def restart(self, *, snapshot: bool = True) -> Any:
        """Forget what is in memory and rebuild it from what is stored, as after a crash or a move to another pod; the new state.

        `snapshot=False` replays all events instead, which must give the same.
        """
        self._commands, self._stream = 0, self._open(snapshot)
        return self._instance

    def _open(self, from_snapshot: bool = True) -> Conversation[Any, Any]:
        stream: Conversation[Any, Any] = Conversation(event_sourcing.handler({self._definition.service: self._definition}).stream_stream)
        init = event_sourced_pb2.EventSourcedInit(service_name=self._definition.service, entity_id=self.entity_id)
        begin = 0
        if self._snapshot is not None and from_snapshot:
            begin = self._snapshot_sequence
            init.snapshot.snapshot_sequence = begin
            init.snapshot.snapshot.CopyFrom(self._snapshot)
        stream.send(In(init=init))
        for sequence, event in enumerate(self._events[begin:], begin + 1):
            stream.send(In(event=event_sourced_pb2.EventSourcedEvent(sequence=sequence, payload=event)))
        return stream

    def _command(self, command: entity_pb2.Command) -> Any:
        return In(command=command)

    def _stored(self, command: str, reply: Any) -> EventSourcedResult:
        """Nothing of a failed command is stored, and one that asks for a restart gets it at once."""
        file, result = self._definition.descriptor, outcome(self._definition, command, reply.client_action, reply.side_effects)
        if reply.client_action.HasField("failure"):
            if reply.client_action.failure.restart:
                self.restart()
            return EventSourcedResult(**result)
        self._events.extend(reply.events)
        taken = None
        if reply.events and reply.HasField("snapshot"):
            self._snapshot, self._snapshot_sequence, taken = reply.snapshot, len(self._events), decoded(reply.snapshot, file)
        return EventSourcedResult(**result, events=[decoded(event, file) for event in reply.events], snapshot=taken)
