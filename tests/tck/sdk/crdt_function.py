"""The conformance suite's models of replicated values, written with the SDK as a user would."""

from __future__ import annotations

from typing import Any

from cloudstate_sdk import (
    Change,
    Clock,
    Crdt,
    CrdtContext,
    Flag,
    Forward,
    GCounter,
    GSet,
    LWWRegister,
    ORMap,
    ORSet,
    PNCounter,
    StreamedContext,
    Vote,
    WriteConsistency,
    command,
    crdt_entity,
)
from cloudstate_sdk.context import CommandContext

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model

TWO = "cloudstate.tck.model.crdt.CrdtTwo"
KINDS: dict[str, type[Crdt]] = {kind.__name__: kind for kind in (GCounter, PNCounter, GSet, ORSet, LWWRegister, Flag, ORMap, Vote)}


def kind_of(name: str) -> type[Crdt]:
    """The type that the id of an entity, or the key of a map, asks for."""
    return KINDS[name.partition("-")[0]]


def begun(value: Crdt) -> Crdt:
    """A register holds an empty text from the beginning."""
    if isinstance(value, LWWRegister) and value.value is None:
        value.set("")
    return value


def state(value: Any) -> model.State:
    """A value as the model's answers have it."""
    match value:
        case GCounter():
            return model.State(gcounter=model.GCounterValue(value=value.value))
        case PNCounter():
            return model.State(pncounter=model.PNCounterValue(value=value.value))
        case GSet():
            return model.State(gset=model.GSetValue(elements=sorted(value)))
        case ORSet():
            return model.State(orset=model.ORSetValue(elements=sorted(value)))
        case LWWRegister():
            return model.State(lwwregister=model.LWWRegisterValue(value=value.value))
        case Flag():
            return model.State(flag=model.FlagValue(value=value.value))
        case Vote():
            return model.State(vote=model.VoteValue(self_vote=value.self_vote, votes_for=value.votes_for, total_voters=value.total_voters))
        case ORMap():
            entries = [model.ORMapEntryValue(key=key, value=state(value[key])) for key in sorted(value)]
            return model.State(ormap=model.ORMapValue(entries=entries))
    raise TypeError(type(value).__name__)


def update(value: Any, change: model.Update) -> None:
    """Change a value as a request says."""
    match value:
        case GCounter():
            value.increment(change.gcounter.increment)
        case PNCounter():
            value.increment(change.pncounter.change)
        case GSet():
            value.add(change.gset.add)
        case ORSet():
            update_set(value, change.orset)
        case LWWRegister():
            clock = change.lwwregister.clock
            value.set(change.lwwregister.value, Clock(clock.clockType), clock.customClockValue)
        case Flag():
            value.enable()
        case Vote():
            value.vote(change.vote.self_vote)
        case ORMap():
            update_map(value, change.ormap)


def update_set(found: ORSet[str], change: model.ORSetUpdate) -> None:
    match change.WhichOneof("action"):
        case "add":
            found.add(change.add)
        case "remove":
            found.discard(change.remove)
        case "clear":
            found.clear()


def update_map(found: ORMap[str, Crdt], change: model.ORMapUpdate) -> None:
    match change.WhichOneof("action"):
        case "add":
            begun(found.get_or_create(change.add, kind_of(change.add)))
        case "update":
            key = change.update.key
            update(begun(found.get_or_create(key, kind_of(key))), change.update.update)
        case "remove":
            found.remove(change.remove)
        case "clear":
            found.clear()


def cause(context: CommandContext, effect: model.Effect) -> None:
    context.effect(TWO, "Call", model.Request(id=effect.id), synchronous=effect.synchronous)


@crdt_entity("cloudstate.tck.model.crdt.CrdtTckModel", persistence_id="crdt-tck-model", descriptor=model.DESCRIPTOR)
class Replicated:
    """Does what each request says, to a value of the type that the id asks for."""

    @command
    def process(self, request: model.Request, context: CrdtContext[Crdt]) -> model.Response | Forward:
        value = begun(context.get_or_create(kind_of(context.entity_id)))
        answer: Forward | None = None
        for step in request.actions:
            match step.WhichOneof("action"):
                case "update":
                    update(value, step.update)
                    context.write_consistency = WriteConsistency(step.update.write_consistency)
                case "delete":
                    context.delete()
                case "forward":
                    answer = context.forward(TWO, "Call", model.Request(id=step.forward.id))
                case "effect":
                    cause(context, step.effect)
                case "fail":
                    context.fail(step.fail.message)
        return answer or model.Response(state=state(value))

    @command
    def process_streamed(self, request: model.StreamedRequest, context: StreamedContext[Crdt]) -> model.Response | None:
        value = begun(context.get_or_create(kind_of(context.entity_id)))

        def changed(change: Change[Crdt]) -> model.Response | None:
            for effect in request.effects:
                cause(change, effect)
            now = state(change.state)
            if request.HasField("end_state") and now == request.end_state:
                change.end()
            return None if request.empty else model.Response(state=now)

        context.on_change(changed)
        if request.HasField("cancel_update"):
            context.on_cancel(lambda cancelled: update(cancelled.state, request.cancel_update))
        if request.HasField("initial_update"):
            update(value, request.initial_update)
        return None if request.empty else model.Response(state=state(value))


@crdt_entity(TWO, persistence_id="crdt-tck-model-two", descriptor=model.DESCRIPTOR, crdt=GCounter)
class ReplicatedTwo:
    """Answers, and deletes its value when it is told to."""

    @command
    def call(self, request: model.Request, context: CrdtContext[GCounter]) -> model.Response:
        if any(step.HasField("delete") for step in request.actions):
            context.delete()
        return model.Response()


@crdt_entity(
    "cloudstate.tck.model.crdt.CrdtConfigured", persistence_id="crdt-configured", descriptor=model.DESCRIPTOR, crdt=GCounter, passivation=0.1
)
class ReplicatedConfigured:
    """Answers, and soon leaves memory."""

    @command
    def call(self, request: model.Request, context: CrdtContext[GCounter]) -> model.Response:
        return model.Response()


CRDT_MODELS = (Replicated, ReplicatedTwo, ReplicatedConfigured)
"""All of them."""
