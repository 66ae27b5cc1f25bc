"""The conformance suite's models of entities and actions, written with the SDK as a user would."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cloudstate_sdk import (
    ActionContext,
    Context,
    Forward,
    ValueContext,
    action,
    command,
    event,
    event_sourced,
    restore,
    snapshot,
    value_entity,
)

from tests.tck.pb.cloudstate.tck.model import action_pb2 as actions
from tests.tck.pb.cloudstate.tck.model import eventsourced_pb2 as sourced
from tests.tck.pb.cloudstate.tck.model import valueentity_pb2 as values

TWO = "cloudstate.tck.model.valueentity.ValueEntityTwo"


@value_entity(
    "cloudstate.tck.model.valueentity.ValueEntityTckModel",
    persistence_id="value-entity-tck-model",
    descriptor=values.DESCRIPTOR,
    state=values.Persisted,
)
class Box:
    """Does what each request says."""

    @command
    def process(self, request: values.Request, context: ValueContext[values.Persisted]) -> values.Response | Forward:
        answer: values.Response | Forward | None = None
        held = context.state.value
        for step in request.actions:
            kind = step.WhichOneof("action")
            if kind == "update":
                held = step.update.value
                context.update(values.Persisted(value=held))
            elif kind == "delete":
                held = ""
                context.delete()
            elif kind == "forward":
                answer = context.forward(TWO, "Call", values.Request(id=step.forward.id))
            elif kind == "effect":
                context.effect(TWO, "Call", values.Request(id=step.effect.id), synchronous=step.effect.synchronous)
            elif kind == "fail":
                context.fail(step.fail.message)
        return answer or values.Response(message=held)


@value_entity(TWO, persistence_id="value-entity-tck-model-two", descriptor=values.DESCRIPTOR, state=values.Persisted)
class BoxTwo:
    """Answers."""

    @command
    def call(self, request: values.Request, context: ValueContext[values.Persisted]) -> values.Response:
        return values.Response()


@value_entity(
    "cloudstate.tck.model.valueentity.ValueEntityConfigured",
    persistence_id="value-entity-configured",
    descriptor=values.DESCRIPTOR,
    state=values.Persisted,
    passivation=0.1,
)
class BoxConfigured:
    """Answers, and soon leaves memory."""

    @command
    def call(self, request: values.Request, context: ValueContext[values.Persisted]) -> values.Response:
        return values.Response()


SOURCED_TWO = "cloudstate.tck.model.EventSourcedTwo"


@event_sourced("cloudstate.tck.model.EventSourcedTckModel", persistence_id="event-sourced-tck-model", descriptor=sourced.DESCRIPTOR, snapshot_every=5)
class Log:
    """Does what each request says; its state is the text of all its events."""

    def __init__(self, entity_id: str) -> None:
        self.state = ""

    @command
    def process(self, request: sourced.Request, context: Context) -> sourced.Response | Forward:
        answer: sourced.Response | Forward | None = None
        for step in request.actions:
            kind = step.WhichOneof("action")
            if kind == "emit":
                context.emit(sourced.Persisted(value=step.emit.value))
            elif kind == "forward":
                answer = context.forward(SOURCED_TWO, "Call", sourced.Request(id=step.forward.id))
            elif kind == "effect":
                context.effect(SOURCED_TWO, "Call", sourced.Request(id=step.effect.id), synchronous=step.effect.synchronous)
            elif kind == "fail":
                context.fail(step.fail.message)
        return answer or sourced.Response(message=self.state)

    @event
    def persisted(self, event: sourced.Persisted) -> None:
        self.state += event.value

    @snapshot
    def save(self) -> sourced.Persisted:
        return sourced.Persisted(value=self.state)

    @restore
    def load(self, saved: sourced.Persisted) -> None:
        self.state = saved.value


@event_sourced(SOURCED_TWO, persistence_id="event-sourced-tck-model-two", descriptor=sourced.DESCRIPTOR)
class LogTwo:
    """Answers."""

    def __init__(self, entity_id: str) -> None:
        pass

    @command
    def call(self, request: sourced.Request, context: Context) -> sourced.Response:
        return sourced.Response()


@event_sourced(
    "cloudstate.tck.model.EventSourcedConfigured", persistence_id="event-sourced-configured", descriptor=sourced.DESCRIPTOR, passivation=0.1
)
class LogConfigured:
    """Answers, and soon leaves memory."""

    def __init__(self, entity_id: str) -> None:
        pass

    @command
    def call(self, request: sourced.Request, context: Context) -> sourced.Response:
        return sourced.Response()


def _step(step: actions.ProcessStep, context: ActionContext) -> actions.Response | Forward | None:
    kind = step.WhichOneof("step")
    if kind == "reply":
        return actions.Response(message=step.reply.message)
    if kind == "forward":
        return context.forward("cloudstate.tck.model.action.ActionTwo", "Call", actions.OtherRequest(id=step.forward.id))
    if kind == "fail":
        context.fail(step.fail.message)
    effect = step.effect
    context.effect("cloudstate.tck.model.action.ActionTwo", "Call", actions.OtherRequest(id=effect.id), synchronous=effect.synchronous)
    return None


@action("cloudstate.tck.model.action.ActionTckModel", descriptor=actions.DESCRIPTOR)
class Doer:
    """Does what each group of steps says."""

    @command
    def process_unary(self, request: actions.Request, context: ActionContext) -> actions.Response | Forward | None:
        answer = None
        for group in request.groups:
            for step in group.steps:
                answer = _step(step, context) or answer
        return answer

    @command
    async def process_streamed_in(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> actions.Response | Forward | None:
        answer = None
        async for request in requests:
            answer = self.process_unary(request, context) or answer
        return answer

    @command
    async def process_streamed_out(self, request: actions.Request, context: ActionContext) -> AsyncIterator[actions.Response | Forward | None]:
        for group in request.groups:
            yield self.process_unary(actions.Request(groups=[group]), context)

    @command
    async def process_streamed(
        self, requests: AsyncIterator[actions.Request], context: ActionContext
    ) -> AsyncIterator[actions.Response | Forward | None]:
        async for request in requests:
            for group in request.groups:
                yield self.process_unary(actions.Request(groups=[group]), context)


@action("cloudstate.tck.model.action.ActionTwo", descriptor=actions.DESCRIPTOR)
class DoerTwo:
    """Answers."""

    @command
    def call(self, request: actions.OtherRequest, context: ActionContext) -> actions.Response:
        return actions.Response()


MODELS = (Log, LogTwo, LogConfigured, Box, BoxTwo, BoxConfigured, Doer, DoerTwo)
"""All of them."""
