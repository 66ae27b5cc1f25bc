"""Mistakes that are easily made in entities: each ends what it must and no more, and is told in words that help."""

from __future__ import annotations

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import pytest
from cloudstate_sdk import (
    ActionContext,
    Context,
    Function,
    GCounter,
    NotYourTurn,
    ORSet,
    StreamedContext,
    ValueContext,
    action,
    command,
    crdt_entity,
    event,
    event_sourced,
    restore,
    snapshot,
    value_entity,
)
from cloudstate_sdk.any_values import to_any
from cloudstate_sdk.definition import DefinitionError
from cloudstate_sdk.event_sourcing import LiveEntity
from cloudstate_sdk.pb.cloudstate import event_sourced_pb2
from cloudstate_sdk.shapes import served_by
from cloudstate_sdk.testkit import ActionKit, Crashed, EventSourcedKit, ValueKit
from google.protobuf import any_pb2

from tests.tck.pb.cloudstate.tck.model import action_pb2 as actions
from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as replicated
from tests.tck.pb.cloudstate.tck.model import eventsourced_pb2 as sourced
from tests.tck.pb.cloudstate.tck.model import valueentity_pb2 as values

BOX, LOG = "cloudstate.tck.model.valueentity.ValueEntityTwo", "cloudstate.tck.model.EventSourcedTwo"
DOER, HITS = "cloudstate.tck.model.action.ActionTckModel", "cloudstate.tck.model.crdt.CrdtTckModel"
Decorator = Callable[[type], type]
as_log = event_sourced(LOG, persistence_id="log", descriptor=sourced.DESCRIPTOR)
as_box = value_entity(BOX, persistence_id="box", descriptor=values.DESCRIPTOR, state=values.Persisted)
as_hits = crdt_entity(HITS, persistence_id="hits", descriptor=replicated.DESCRIPTOR, crdt=GCounter)
as_doer = action(DOER, descriptor=actions.DESCRIPTOR)


async def shared() -> None:
    """Something that somebody else cancels."""
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


def test_a_cancellation_of_what_a_command_waits_for_crashes_the_entity() -> None:
    """It said nothing to the proxy, and the caller waited until its time was over."""

    @as_log
    class Waiting:
        def __init__(self, entity_id: str) -> None: ...

        @command
        async def call(self, request: sourced.Request, context: Context) -> Any:
            await shared()

    @as_box
    class WaitingBox:
        @command
        async def call(self, request: values.Request, context: ValueContext[values.Persisted]) -> Any:
            await shared()

    with pytest.raises(Crashed, match=r"^Waiting\.call: something that the command waited for was cancelled$"):
        EventSourcedKit(Waiting).call("Call", sourced.Request(id="a"))
    with pytest.raises(Crashed, match=r"^WaitingBox\.call: something that the command waited for was cancelled$"):
        ValueKit(WaitingBox).call("Call", values.Request(id="a"))


# Commands ---------------------------------------------------------------------------------------------------------------


class Keeper:
    """Keeps the contexts of its commands."""

    contexts: ClassVar[list[Any]] = []


def test_nothing_is_changed_for_a_command_that_is_over() -> None:
    """The entity in memory differed from what is stored, until it was loaded again."""

    @as_log
    class Log(Keeper):
        def __init__(self, entity_id: str) -> None:
            self.seen: list[str] = []

        @command
        def call(self, request: sourced.Request, context: Context) -> sourced.Response:
            self.contexts.append(context)
            return sourced.Response()

        @event
        def said(self, event: str) -> None:
            self.seen.append(event)

    @as_box
    class Box(Keeper):
        @command
        def call(self, request: values.Request, context: ValueContext[values.Persisted]) -> values.Response:
            self.contexts.append(context)
            return values.Response()

    log = EventSourcedKit(Log)
    log.call("Call", sourced.Request(id="a"))
    ValueKit(Box).call("Call", values.Request(id="a"))
    emitting, updating = Keeper.contexts
    late: list[Callable[[], None]] = [
        lambda: emitting.emit("late"),
        lambda: emitting.effect(BOX, "Call", values.Request()),
        lambda: updating.update(values.Persisted()),
        updating.delete,
    ]
    for change in late:
        with pytest.raises(NotYourTurn, match="the command is over"):
            change()
    assert log.state.seen == []


def test_none_is_no_value_to_store() -> None:
    @as_box
    class Box:
        @command
        def call(self, request: values.Request, context: ValueContext[values.Persisted]) -> values.Response:
            context.update(None)  # type: ignore[arg-type]
            return values.Response()

    kit = ValueKit(Box, state=values.Persisted(value="kept"))
    with pytest.raises(Crashed, match="None is no value to store; `delete` removes the one that is stored"):
        kit.call("Call", values.Request(id="a"))
    assert kit.state == values.Persisted(value="kept")


def test_a_state_that_stays_encoded_is_a_copy_too() -> None:
    @value_entity(BOX, persistence_id="encoded", descriptor=values.DESCRIPTOR, state=any_pb2.Any)
    class Encoded:
        @command
        def call(self, request: values.Request, context: ValueContext[any_pb2.Any]) -> values.Response:
            seen = context.state.type_url
            context.state.type_url = "changed"
            return values.Response(message=seen)

    kit = ValueKit(Encoded, state=to_any("text"))
    assert [kit.call("Call", values.Request(id="a")).reply.message for _ in range(2)] == ["p.cloudstate.io/string"] * 2


@pytest.mark.parametrize("then", ["fails", "goes on"])
def test_an_event_that_was_applied_in_part_is_not_kept(then: str) -> None:
    """A command that caught the error went on with what the event had changed, which nothing stores."""

    @as_log
    class Log:
        def __init__(self, entity_id: str) -> None:
            self.seen: list[str] = []

        @command
        def call(self, request: sourced.Request, context: Context) -> sourced.Response:
            try:
                context.emit("never")
            except ValueError:
                if then == "fails":
                    context.fail("it cannot be")
            return sourced.Response()

        @event
        def said(self, event: str) -> None:
            self.seen.append(event)
            raise ValueError("cannot be applied")

    kit = EventSourcedKit(Log)
    if then == "fails":
        assert kit.call("Call", sourced.Request(id="a")).failure == "it cannot be"
    else:
        with pytest.raises(Crashed, match=r"^Log\.call: an event was applied in part: `said` failed, and the command went on$"):
            kit.call("Call", sourced.Request(id="a"))
    assert kit.state.seen == []


def test_an_event_is_applied_as_it_will_be_replayed() -> None:
    @as_log
    class Log:
        def __init__(self, entity_id: str) -> None:
            self.seen: list[Any] = []

        @command
        def call(self, request: sourced.Request, context: Context) -> sourced.Response:
            context.emit(to_any("text"))
            context.emit(sourced.Persisted(value="other"))
            return sourced.Response()

        @event
        def said(self, event: str) -> None:
            self.seen.append(event)

        @event
        def came(self, event: any_pb2.Any) -> None:
            self.seen.append(event)

    kit = EventSourcedKit(Log)
    kit.call("Call", sourced.Request(id="a"))
    assert kit.state.seen == ["text", to_any(sourced.Persisted(value="other"))] == kit.restart().seen


def test_an_error_without_words_is_told_by_its_name() -> None:
    """The caller of an action saw an empty text."""

    class Wordless(Doer):
        @command
        async def process_unary(self, request: actions.Request, context: ActionContext) -> Any:
            raise TimeoutError

    class WordlessLog(Log):
        @command
        def call(self, request: sourced.Request, context: Context) -> sourced.Response:
            raise NotImplementedError

    assert ActionKit(as_doer(Wordless)).call("ProcessUnary", actions.Request()).failure == "TimeoutError"
    with pytest.raises(Crashed, match=r"^WordlessLog\.call: NotImplementedError$"):
        EventSourcedKit(as_log(WordlessLog)).call("Call", sourced.Request(id="a"))


async def test_a_server_that_is_cancelled_leaves_no_signal_handler() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    serving = asyncio.create_task(Function(as_box(type("Box", (Box,), {}))).serve("127.0.0.1", 0))
    await asyncio.sleep(0)
    assert signal.getsignal(signal.SIGTERM) != before[0]
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before


# Definitions ------------------------------------------------------------------------------------------------------------


class Log:
    """Fits its service."""

    def __init__(self, entity_id: str) -> None: ...

    @command
    def call(self, request: sourced.Request, context: Context) -> sourced.Response:
        return sourced.Response()


class Box:
    """Fits its service."""

    @command
    def call(self, request: values.Request, context: ValueContext[values.Persisted]) -> values.Response:
        return values.Response()


class Hits:
    """Fits its service."""

    @command
    def process(self, request: replicated.Request, context: Any) -> Any: ...

    @command
    def process_streamed(self, request: replicated.StreamedRequest, context: Any) -> Any: ...


class Doer:
    """Fits its service."""

    @command
    def process_unary(self, request: actions.Request, context: ActionContext) -> Any: ...

    @command
    async def process_streamed_in(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> Any: ...

    @command
    async def process_streamed_out(self, request: actions.Request, context: ActionContext) -> AsyncIterator[Any]:
        yield

    @command
    async def process_streamed(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> AsyncIterator[Any]:
        yield


@event
async def applied_later(self: Any, event: str) -> None: ...


@event
def applied_how(self: Any, event: str, more: int) -> None: ...


@snapshot
async def saved_later(self: Any) -> str:
    return ""


@restore
async def loaded_later(self: Any, saved: str) -> None: ...


@command
def without_context(self: Any, request: sourced.Request) -> Any: ...


@command
def yields_once(self: Any, request: sourced.Request, context: Context) -> Iterator[Any]:
    yield


@command
async def yields_later(self: Any, request: replicated.StreamedRequest, context: StreamedContext[GCounter]) -> AsyncIterator[Any]:
    yield


@command
async def returns(self: Any, request: actions.Request, context: ActionContext) -> Any: ...


@command
def yields_plainly(self: Any, request: actions.Request, context: ActionContext) -> Iterator[Any]:
    yield


@command
async def takes_one(self: Any, request: actions.Request, context: ActionContext) -> Any: ...


@command
async def takes_many(self: Any, requests: AsyncIterator[actions.Request], context: ActionContext) -> Any: ...


def made_of_two(self: Any, entity_id: str, other: str) -> None: ...


WRONG: list[tuple[Decorator, type, str, Any, str]] = [
    (as_log, Log, "said", applied_later, "Wrong.said: must neither be async nor yield: @event is for a plain method"),
    (as_log, Log, "said", applied_how, "Wrong.said: must take (self, event)"),
    (as_log, Log, "save", saved_later, "Wrong.save: must neither be async nor yield: @snapshot is for a plain method"),
    (as_log, Log, "load", loaded_later, "Wrong.load: must neither be async nor yield: @restore is for a plain method"),
    (as_log, Log, "call", without_context, "Wrong.call: must take (self, request, context)"),
    (as_log, Log, "call", yields_once, "Wrong.call: answers once, so it must return its answer and not yield"),
    (as_log, Log, "__init__", object.__init__, "Wrong: is made with its id, so it needs `def __init__(self, entity_id: str)`"),
    (as_box, Box, "__init__", made_of_two, "Wrong: is made without arguments, so `__init__` must need none"),
    (as_hits, Hits, "process_streamed", yields_later, "Wrong.process_streamed: answers once, so it must return its answer and not yield"),
    (
        as_doer,
        Doer,
        "process_streamed_out",
        returns,
        "Wrong.process_streamed_out: streams its answers, so it must be an async generator: `async def` with `yield`",
    ),
    (
        as_doer,
        Doer,
        "process_streamed_out",
        yields_plainly,
        "Wrong.process_streamed_out: streams its answers, so it must be an async generator: `async def` with `yield`",
    ),
    (
        as_doer,
        Doer,
        "process_streamed_in",
        takes_one,
        "Wrong.process_streamed_in: the request streams, so parameter 1 must be annotated with AsyncIterator[...]",
    ),
    (
        as_doer,
        Doer,
        "process_unary",
        takes_many,
        "Wrong.process_unary: the request does not stream, so parameter 1 must be annotated with what it is, not with an iterator",
    ),
]


@pytest.mark.parametrize(("decorate", "right", "name", "method", "text"), WRONG)
def test_a_method_of_another_shape_is_refused_as_its_class_is_decorated(decorate: Decorator, right: type, name: str, method: Any, text: str) -> None:
    decorate(type("Right", (right,), {}))
    with pytest.raises(DefinitionError) as refused:
        decorate(type("Wrong", (right,), {name: method}))
    assert str(refused.value) == text


@pytest.mark.parametrize(
    ("name", "wanted", "served"),
    [
        ("add_item", ["AddItem", "GetItem"], "AddItem"),
        ("get_item", ["getItem"], "getItem"),
        ("getItem", ["getItem"], "getItem"),
        ("get_url", ["GetURL", "GetUrls"], "GetURL"),
        ("get_url", ["GetURL", "GetUrl"], "GetUrl"),
        ("nothing", ["GetURL"], "Nothing"),
    ],
)
def test_a_service_may_write_its_methods_as_it_likes(name: str, wanted: list[str], served: str) -> None:
    """One with `getItem` could not be served at all."""
    assert served_by(name, wanted) == served


def test_an_argument_of_a_decorator_that_is_close_but_wrong_is_refused() -> None:
    text = "Hits: crdt=cloudstate_sdk.crdt.sets.ORSet[str] is no replicated type; it must be a class such as ORSet, without what it holds"
    with pytest.raises(DefinitionError, match=f"^{re.escape(text)}$"):
        crdt_entity(HITS, persistence_id="hits", descriptor=replicated.DESCRIPTOR, crdt=ORSet[str])(type("Hits", (Hits,), {}))
    with pytest.raises(DefinitionError, match=r"^Doer: descriptor=<module .*action_pb2.* is none; it must be the DESCRIPTOR of such a module$"):
        action(DOER, descriptor=actions)(type("Doer", (Doer,), {}))  # type: ignore[arg-type]


def test_two_components_for_one_service_are_refused() -> None:
    one, two = as_box(type("One", (Box,), {})), as_box(type("Two", (Box,), {}))
    with pytest.raises(DefinitionError, match=rf"^One and Two both serve {BOX}$"):
        Function(one, two)


def test_a_class_that_only_inherits_from_an_entity_is_none() -> None:
    """The entity served in its place, with nothing of what it adds."""
    one = as_box(type("One", (Box,), {}))
    with pytest.raises(DefinitionError, match=r"^More: is not an entity; decorate it with"):
        Function(type("More", (one,), {}))


# Event sourced entities -------------------------------------------------------------------------------------------------


def test_a_snapshot_that_nobody_takes_crashes_the_entity() -> None:
    """It was left out, and the state was that of the events after it."""
    definition = Function(as_log(type("Plain", (Log,), {})))._definitions[LOG]
    init = event_sourced_pb2.EventSourcedInit(service_name=LOG, entity_id="a")
    init.snapshot.snapshot_sequence = 7
    init.snapshot.snapshot.CopyFrom(to_any("of before"))
    with pytest.raises(LookupError, match=rf"^{LOG}: a snapshot is stored, and no @restore method takes it; to take no more: snapshot_every=0$"):
        LiveEntity(definition, init)
