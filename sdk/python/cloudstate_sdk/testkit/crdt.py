"""A replicated value in memory, with what a proxy would know of it: its own changes, those of others, and who streams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cloudstate_sdk.any_values import Value
from cloudstate_sdk.context import Entries, pack
from cloudstate_sdk.crdt.base import Crdt, Scope
from cloudstate_sdk.crdt.context import WriteConsistency
from cloudstate_sdk.crdt.stream import LiveCrdt
from cloudstate_sdk.definition import CRDT
from cloudstate_sdk.pb.cloudstate import crdt_pb2, entity_pb2
from cloudstate_sdk.testkit.driving import Kit, metadata_of
from cloudstate_sdk.testkit.results import Crashed, Result, outcome

In = crdt_pb2.CrdtStreamIn
READING = "a kit's state is there to be read; `others` changes it"


@dataclass(frozen=True, slots=True)
class CrdtResult(Result):
    """What came of a command on a replicated value."""

    changed: bool = False
    """It changed the value."""
    deleted: bool = False
    write_consistency: WriteConsistency = WriteConsistency.LOCAL


@dataclass(eq=False, slots=True)
class CrdtStream:
    """A streamed command: `first` is its own answer, `answers` what came after it, one for each change that was told."""

    first: CrdtResult
    open: bool
    """More may come."""
    answers: list[Result] = field(default_factory=list)


class CrdtKit(Kit):
    """Calls the commands of one replicated value, as a proxy does. DefinitionError for a class that is no CRDT entity."""

    def __init__(self, entity: type, entity_id: str = "entity") -> None:
        super().__init__(entity, CRDT)
        self.entity_id = entity_id
        self._live: LiveCrdt | None = None
        self._commands = 0
        self._changes: list[crdt_pb2.CrdtDelta] = []
        """What a new instance would be told, in this order."""
        self._other_votes = 0, 0
        self._streams: dict[int, tuple[str, CrdtStream]] = {}
        """Command and stream by number."""

    @property
    def state(self) -> Any:
        """The value, to be read; None when there is none."""
        replica = self._instance_now().replica
        return replica.look(Scope(replica.pool, READING)) if replica.exists else None

    def call(self, command: str, request: Value, metadata: Entries = ()) -> CrdtResult:
        """Execute a command by the name of its gRPC method.

        Crashed when the handler raises anything but `fail`; LookupError for a method that the service has not, TypeError for a request or a reply of
        another type than the method's.
        """
        return self._run(self.acall(command, request, metadata))

    def stream(self, command: str, request: Value, metadata: Entries = ()) -> CrdtStream:
        """Execute a command that streams its answers: those that changes bring come to what is returned. Errors as of `call`."""
        return self._run(self.astream(command, request, metadata))

    def cancel(self, stream: CrdtStream) -> None:
        """The caller of a streamed command leaves."""
        self._run(self.acancel(stream))

    def others(self, change: Callable[[Any], None]) -> None:
        """Others change the value: `change` gets it. A vote is changed by `vote` instead."""
        self._run(self.aothers(change))

    def vote(self, votes_for: int, voters: int) -> None:
        """So many others vote, and so many of them for it."""
        self._run(self.avote(votes_for, voters))

    def restart(self) -> Any:
        """Forget what is in memory and begin again from what is stored, as after a crash or on another pod; the value. Streams are closed."""
        self._live = None
        for _, stream in self._streams.values():
            stream.open = False
        self._streams.clear()
        return self.state

    # For tests that are coroutines --------------------------------------------------------------------------------------

    async def acall(self, command: str, request: Value, metadata: Entries = ()) -> CrdtResult:
        """`call`, for tests that are coroutines."""
        return (await self._execute(command, request, metadata, streamed=False))[1]

    async def astream(self, command: str, request: Value, metadata: Entries = ()) -> CrdtStream:
        """`stream`, for tests that are coroutines."""
        number, first, stays = await self._execute(command, request, metadata, streamed=True)
        stream = CrdtStream(first, stays)
        if stays:
            self._streams[number] = command, stream
        return stream

    async def acancel(self, stream: CrdtStream) -> None:
        """`cancel`, for tests that are coroutines."""
        number = next((number for number, (_, found) in self._streams.items() if found is stream), None)
        if number is not None:
            del self._streams[number]
            stream.open = False
            await self._say(In(stream_cancelled=entity_pb2.StreamCancelled(entity_id=self.entity_id, id=number)))

    async def aothers(self, change: Callable[[Any], None]) -> None:
        """`others`, for tests that are coroutines."""
        replica = self._instance_now().replica
        view: Crdt = replica.look(Scope(replica.pool))
        change(view)
        delta = view._delta()
        view._forget()
        if delta.HasField("vote"):
            raise TypeError("others change a vote by the kit's `vote`")
        self._changes.append(delta)
        await self._say(In(delta=delta))

    async def avote(self, votes_for: int, voters: int) -> None:
        """`vote`, for tests that are coroutines."""
        mine = self.state.self_vote if self.state is not None else False
        self._other_votes = votes_for, voters
        self._changes = [self._votes(mine)]
        await self._say(In(delta=self._changes[0]))

    # The proxy's part ---------------------------------------------------------------------------------------------------

    def _instance_now(self) -> LiveCrdt:
        """The instance in memory; a new one, told what is stored, when there is none."""
        if self._live is None:
            init = crdt_pb2.CrdtInit(service_name=self._definition.service, entity_id=self.entity_id)
            if self._changes:
                init.delta.CopyFrom(self._changes[0])
            self._commands, self._live = 0, LiveCrdt(self._definition, init)
            for delta in self._changes[1:]:
                self._live.replica.apply(delta)
        return self._live

    async def _execute(self, command: str, request: Value, metadata: Entries, streamed: bool) -> tuple[int, CrdtResult, bool]:
        """Number and result of a command, and whether its stream stays open."""
        method = self._method(command)
        if method.server_streaming is not streamed:
            other = "stream" if method.server_streaming else "call"
            raise TypeError(f"{method.full_name}: is for the kit's `{other}`")
        message = entity_pb2.Command(entity_id=self.entity_id, name=command, streamed=streamed)
        pack(message.payload, self._checked(method, request))
        if metadata:
            message.metadata.CopyFrom(metadata_of(metadata))
        self._instance_now()
        self._commands += 1
        message.id = number = self._commands
        replies = [out.reply for out in await self._say(In(command=message)) if out.HasField("reply")]
        [reply] = [reply for reply in replies if reply.command_id == number]
        action = reply.state_action
        result = CrdtResult(
            **outcome(self._definition, command, reply.client_action, reply.side_effects),
            changed=action.HasField("update"),
            deleted=action.HasField("delete"),
            write_consistency=WriteConsistency(action.write_consistency),
        )
        return number, result, reply.streamed

    async def _say(self, message: In) -> list[crdt_pb2.CrdtStreamOut]:
        """Say something and take what comes of it. Crashed when a handler raised: that has ended its command or stream, and nothing else."""
        async with self._turn:
            said, crash = await self._instance_now().answer(message), ""
            for out in said:
                match out.WhichOneof("message"):
                    case "failure":
                        crash = crash or out.failure.description
                        self._closed(out.failure.command_id)
                    case "reply":
                        self._stored(out.reply.state_action)
                    case "stream_cancelled_response":
                        self._stored(out.stream_cancelled_response.state_action)
                    case "streamed_message":
                        self._streamed(out.streamed_message)
            if crash:
                raise Crashed(f"{self._component.__name__}: {crash}")
            return said

    def _stored(self, action: crdt_pb2.CrdtStateAction) -> None:
        """Do with a change what the proxy does."""
        if action.HasField("delete"):
            self._changes, self._other_votes = [], (0, 0)
            for _, stream in self._streams.values():
                stream.open = False
            self._streams.clear()
        elif action.update.HasField("vote"):
            self._changes = [self._votes(action.update.vote.self_vote)]
        elif action.HasField("update"):
            self._changes.append(action.update)

    def _votes(self, mine: bool) -> crdt_pb2.CrdtDelta:
        votes_for, voters = self._other_votes
        return crdt_pb2.CrdtDelta(vote=crdt_pb2.VoteDelta(self_vote=mine, votes_for=votes_for + mine, total_voters=voters + 1))

    def _streamed(self, message: crdt_pb2.CrdtStreamedMessage) -> None:
        if message.command_id not in self._streams:
            return
        command, stream = self._streams[message.command_id]
        stream.answers.append(Result(**outcome(self._definition, command, message.client_action, message.side_effects)))
        if message.end_stream:
            self._closed(message.command_id)

    def _closed(self, number: int) -> None:
        if number in self._streams:
            self._streams.pop(number)[1].open = False
