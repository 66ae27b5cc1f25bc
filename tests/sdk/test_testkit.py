"""The kits that run components in memory: what a test sees is what the proxy would store and the caller would get."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from typing import Any

import pytest
from cloudstate_sdk import ActionContext, Context, ValueContext, action, command, event, event_sourced, value_entity
from cloudstate_sdk.definition import DefinitionError
from cloudstate_sdk.testkit import ActionKit, Called, Crashed, Effect, EventSourcedKit, NoReply, ValueKit
from google.protobuf.empty_pb2 import Empty
from hypothesis import given
from hypothesis import strategies as st

from tests.tck.pb.cloudstate.tck.model import action_pb2 as actions
from tests.tck.pb.cloudstate.tck.model import eventsourced_pb2 as sourced
from tests.tck.pb.cloudstate.tck.model import valueentity_pb2 as values
from tests.tck.sdk.function import SOURCED_TWO, TWO, Box, Doer, Log

Step = dict[str, Any]


def log(*steps: Step) -> sourced.Request:
    return sourced.Request(id="a", actions=[sourced.RequestAction(**step) for step in steps])


def box(*steps: Step) -> values.Request:
    return values.Request(id="a", actions=[values.RequestAction(**step) for step in steps])


def emit(value: str) -> Step:
    return {"emit": {"value": value}}


# Event sourced entities -------------------------------------------------------------------------------------------------


def test_a_command_shows_its_reply_and_its_events(sample: Any) -> None:
    kit = EventSourcedKit(sample.Cart, "ann")
    result = kit.call("AddItem", sample.api.AddLineItem(user_id="ann", product_id="pear", name="Pear", quantity=2))
    item = sample.domain.LineItem(productId="pear", name="Pear", quantity=2)
    assert result.reply == Empty()
    assert result.events == [sample.domain.ItemAdded(item=item)] == kit.events
    assert kit.state.items == {"pear": item}
    assert kit.call("GetCart", sample.api.GetShoppingCart(user_id="ann")).reply.items[0].quantity == 2


def test_a_history_is_replayed(sample: Any) -> None:
    domain = sample.domain
    history = [domain.ItemAdded(item=domain.LineItem(productId=p, name=p, quantity=1)) for p in ("fig", "pear", "fig")]
    kit = EventSourcedKit(sample.Cart, "ann", events=[*history, domain.ItemRemoved(productId="pear")])
    assert {name: item.quantity for name, item in kit.state.items.items()} == {"fig": 2}
    assert kit.events[:3] == history


async def test_commands_that_come_at_once_run_one_after_the_other() -> None:
    @value_entity(TWO, persistence_id="slow", descriptor=values.DESCRIPTOR, state=values.Persisted)
    class Slow:
        @command
        async def call(self, request: values.Request, context: ValueContext[values.Persisted]) -> values.Response:
            held = context.state.value
            await asyncio.sleep(0)
            context.update(values.Persisted(value=held + request.id))
            return values.Response()

    kit = ValueKit(Slow)
    await asyncio.gather(*(kit.acall("Call", values.Request(id=letter)) for letter in "abc"))
    assert kit.state == values.Persisted(value="abc")


def test_a_failure_stores_nothing_and_has_no_reply() -> None:
    kit = EventSourcedKit(Log)
    kit.call("Process", log(emit("a")))
    before = kit.state
    result = kit.call("Process", log({"effect": {"id": "b"}}, {"fail": {"message": "no"}}))
    assert (result.failure, result.answer, result.events, result.effects) == ("no", None, [], [])
    assert kit.state is before, "nothing was emitted, so nothing is rebuilt"
    with pytest.raises(NoReply, match="Process gave no reply: it failed with 'no'"):
        _ = result.reply


def test_a_failure_after_an_event_rebuilds_the_entity() -> None:
    kit = EventSourcedKit(Log)
    kit.call("Process", log(emit("a")))
    before = kit.state
    assert kit.call("Process", log(emit("b"), {"fail": {"message": "no"}})).failure == "no"
    assert kit.state is not before
    assert kit.state.state == "a"
    assert kit.call("Process", log()).reply.message == "a"


def test_forwards_and_effects_are_decoded() -> None:
    kit = EventSourcedKit(Log)
    result = kit.call("Process", log({"effect": {"id": "b"}}, {"effect": {"id": "c", "synchronous": True}}, {"forward": {"id": "d"}}))
    assert result.forward == Called(SOURCED_TWO, "Call", sourced.Request(id="d"))
    assert result.effects == [Effect(SOURCED_TWO, "Call", sourced.Request(id=name), name == "c") for name in ("b", "c")]
    with pytest.raises(NoReply, match=r"it was forwarded to cloudstate\.tck\.model\.EventSourcedTwo\.Call"):
        _ = result.reply


@given(st.lists(st.lists(st.text("abc", min_size=1, max_size=2), max_size=4), max_size=8), st.integers(0, 4))
def test_a_restart_gives_the_same_from_a_snapshot_and_from_all_events(commands: list[list[str]], every: int) -> None:
    kit = EventSourcedKit(Log, snapshot_every=every)
    taken = [kit.call("Process", log(*map(emit, texts))).snapshot for texts in commands]
    expected = "".join(text for texts in commands for text in texts)
    assert kit.state.state == expected == "".join(event.value for event in kit.events)
    assert kit.restart().state == expected
    assert kit.restart(snapshot=False).state == expected
    saved = [snapshot for snapshot in taken if snapshot is not None]
    assert kit.snapshot == (saved[-1] if saved else None)
    if every == 0:
        assert not saved


def test_a_snapshot_replaces_the_events_before_it() -> None:
    """The saved state is what counts: a restart must not replay what it includes."""
    kit = EventSourcedKit(Log, snapshot_every=2)
    assert kit.call("Process", log(emit("a"))).snapshot is None
    assert kit.call("Process", log(emit("b"), emit("c"))).snapshot == sourced.Persisted(value="abc")
    kit.call("Process", log(emit("d")))
    assert kit.restart().state == "abcd"


@event_sourced("cloudstate.tck.model.EventSourcedTwo", persistence_id="faulty", descriptor=sourced.DESCRIPTOR)
class Faulty:
    """Goes wrong as its request says, after an event."""

    def __init__(self, entity_id: str) -> None:
        self.entity_id, self.state = entity_id, ""

    @command
    async def call(self, request: sourced.Request, context: Context) -> Any:
        await asyncio.sleep(0)
        context.emit(sourced.Persisted(value="x"))
        if request.id == "crash":
            raise RuntimeError("broken")
        if request.id == "other":
            return sourced.Request(id="x")
        if request.id == "silent":
            return None
        return sourced.Response(message=f"{self.entity_id} {context.metadata('X-User')}")

    @event
    def persisted(self, event: sourced.Persisted) -> None:
        self.state += event.value


def test_a_crash_is_raised_and_the_entity_comes_back() -> None:
    kit = EventSourcedKit(Faulty, "ann")
    kit.call("Call", sourced.Request())
    with pytest.raises(Crashed, match=r"^Faulty\.call: broken$"):
        kit.call("Call", sourced.Request(id="crash"))
    assert kit.state.state == "x"
    assert kit.call("Call", sourced.Request()).reply.message == "ann []"


def test_metadata_reaches_the_command() -> None:
    kit = EventSourcedKit(Faulty, "ann")
    assert kit.call("Call", sourced.Request(), {"x-user": "bob"}).reply.message == "ann ['bob']"
    assert kit.call("Call", sourced.Request(), [("x-user", "bob"), ("x-user", b"\1")]).reply.message == r"ann ['bob', b'\x01']"


def test_a_reply_of_the_wrong_type_is_told() -> None:
    with pytest.raises(TypeError, match=r"EventSourcedTwo\.Call returns cloudstate\.tck\.model\.Response, but `call` replied .*\.Request$"):
        EventSourcedKit(Faulty).call("Call", sourced.Request(id="other"))


def test_a_command_that_returns_nothing_has_no_reply() -> None:
    result = EventSourcedKit(Faulty).call("Call", sourced.Request(id="silent"))
    assert len(result.events) == 1
    with pytest.raises(NoReply, match="Call gave no reply: it returned nothing"):
        _ = result.reply


async def test_a_test_on_an_event_loop_awaits() -> None:
    kit = EventSourcedKit(Faulty, "ann")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeError, match="await the kit's `acall`"):
            kit.call("Call", sourced.Request())
    assert (await kit.acall("Call", sourced.Request())).reply.message == "ann []"
    assert kit.state.state == "x"
    assert kit.restart().state == "x"


def test_mistakes_of_a_test_are_named(sample: Any) -> None:
    with pytest.raises(DefinitionError, match=r"^Box: is a component of cloudstate\.valueentity\.ValueEntity; this kit is for .*EventSourced$"):
        EventSourcedKit(Box)
    kit = EventSourcedKit(sample.Cart, "ann")
    with pytest.raises(LookupError, match=r"^.*Cart has no command 'Add'; com\.example\.shoppingcart\.ShoppingCart has AddItem, RemoveItem, GetCart"):
        kit.call("Add", sample.api.AddLineItem())
    with pytest.raises(TypeError, match=r"^Cart: .*ShoppingCart\.AddItem takes com\.example\.shoppingcart\.AddLineItem, not GetShoppingCart$"):
        kit.call("AddItem", sample.api.GetShoppingCart())


# Value entities ---------------------------------------------------------------------------------------------------------


def test_a_value_is_kept_across_a_restart() -> None:
    kit = ValueKit(Box)
    assert kit.state is None
    result = kit.call("Process", box({"update": {"value": "one"}}))
    assert (result.reply, result.updated) == (values.Response(message="one"), values.Persisted(value="one"))
    assert kit.restart() == values.Persisted(value="one") == kit.state
    assert kit.call("Process", box()).reply.message == "one"
    result = kit.call("Process", box({"delete": {}}))
    assert (result.deleted, result.updated, kit.state) == (True, None, None)
    assert kit.restart() is None


def test_a_value_is_given_to_begin_with_and_kept_by_a_failure() -> None:
    kit = ValueKit(Box, state=values.Persisted(value="old"))
    result = kit.call("Process", box({"update": {"value": "new"}}, {"effect": {"id": "b"}}, {"fail": {"message": "no"}}))
    assert (result.failure, result.updated, result.deleted, result.effects) == ("no", None, False, [])
    assert kit.state == values.Persisted(value="old")
    assert kit.call("Process", box({"forward": {"id": "d"}})).forward == Called(TWO, "Call", values.Request(id="d"))


@value_entity(TWO, persistence_id="faulty", descriptor=values.DESCRIPTOR, state=values.Persisted)
class FaultyBox:
    """Crashes after an update."""

    @command
    def call(self, request: values.Request, context: ValueContext[values.Persisted]) -> values.Response:
        context.update(values.Persisted(value="never"))
        raise RuntimeError(f"{context.entity_id} is broken")


def test_a_crashed_value_entity_keeps_what_was_stored() -> None:
    kit = ValueKit(FaultyBox, "ann", state=values.Persisted(value="old"))
    for _ in range(2):
        with pytest.raises(Crashed, match=r"^FaultyBox\.call: ann is broken$"):
            kit.call("Call", values.Request())
    assert kit.state == values.Persisted(value="old")


# Actions ----------------------------------------------------------------------------------------------------------------


def steps(*found: Step) -> actions.Request:
    return actions.Request(groups=[actions.ProcessGroup(steps=[actions.ProcessStep(**step)]) for step in found])


def reply(text: str) -> Step:
    return {"reply": {"message": text}}


EFFECT = Effect("cloudstate.tck.model.action.ActionTwo", "Call", actions.OtherRequest(id="b"), False)


def test_an_action_that_answers_once() -> None:
    kit = ActionKit(Doer)
    result = kit.call("ProcessUnary", steps({"effect": {"id": "b"}}, reply("x")))
    assert (result.reply.message, result.effects) == ("x", [EFFECT])
    assert kit.call("ProcessStreamedIn", [steps(reply("x")), steps(), steps(reply("y"))]).reply.message == "y"
    assert kit.call("ProcessUnary", steps({"fail": {"message": "no"}})).failure == "no"


def test_an_action_that_streams() -> None:
    kit = ActionKit(Doer)
    results = kit.stream("ProcessStreamedOut", steps(reply("x"), {"forward": {"id": "b"}}, {"fail": {"message": "no"}}, reply("never")))
    assert [(r.answer and r.answer.message, r.forward, r.failure) for r in results] == [
        ("x", None, None),
        (None, Called("cloudstate.tck.model.action.ActionTwo", "Call", actions.OtherRequest(id="b")), None),
        (None, None, "no"),
    ]
    results = kit.stream("ProcessStreamed", (steps(reply(text)) for text in "xyz"))
    assert [r.reply.message for r in results] == ["x", "y", "z"]


@action("cloudstate.tck.model.action.ActionTckModel", descriptor=actions.DESCRIPTOR)
class Endless:
    """Streams without end, and notes when its caller has left."""

    def __init__(self) -> None:
        self.left = 0

    @command
    def process_unary(self, request: actions.Request, context: ActionContext) -> actions.Response:
        return actions.Response(message=str(context.metadata("x-user")))

    @command
    async def process_streamed_in(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> actions.Response:
        raise RuntimeError("broken")

    @command
    async def process_streamed_out(self, request: actions.Request, context: ActionContext) -> AsyncIterator[actions.Response]:
        try:
            for number in range(1_000_000_000):
                await asyncio.sleep(0)
                yield actions.Response(message=str(number))
        finally:
            self.left += 1

    @command
    async def process_streamed(self, requests: AsyncIterator[actions.Request], context: ActionContext) -> AsyncIterator[actions.Response]:
        async for _ in requests:
            yield actions.Response()


def test_a_caller_may_leave_an_endless_stream() -> None:
    kit = ActionKit(Endless)
    assert [r.reply.message for r in kit.stream("ProcessStreamedOut", actions.Request(), most=3)] == ["0", "1", "2"]
    assert kit.action.left == 1


async def test_a_test_on_an_event_loop_awaits_actions() -> None:
    kit = ActionKit(Endless)
    assert len(await kit.astream("ProcessStreamedOut", actions.Request(), most=2)) == 2
    assert (await kit.acall("ProcessUnary", actions.Request(), {"X-User": "ann"})).reply.message == "['ann']"
    assert (await kit.acall("ProcessStreamedIn", [actions.Request()])).failure == "broken"


@pytest.mark.parametrize(
    ("shape", "method", "requests", "says"),
    [
        ("call", "ProcessStreamedOut", actions.Request(), "answers with a stream: `stream` it"),
        ("stream", "ProcessUnary", actions.Request(), "answers once: `call` it"),
        ("call", "ProcessUnary", [actions.Request()] * 2, "takes one request, not 2"),
        ("call", "ProcessUnary", [], "takes one request, not 0"),
        ("call", "ProcessStreamedIn", [actions.Request(), Empty()], "takes cloudstate.tck.model.action.Request, not Empty"),
        ("call", "Process", [], "Doer has no command 'Process'"),
    ],
)
def test_mistakes_with_the_shape_of_a_method_are_named(shape: str, method: str, requests: Any, says: str) -> None:
    with pytest.raises((TypeError, LookupError), match=says):
        getattr(ActionKit(Doer), shape)(method, requests)


def test_metadata_goes_along_with_answers_forwards_and_effects() -> None:
    @action("cloudstate.tck.model.action.ActionTwo", descriptor=actions.DESCRIPTOR)
    class Teller:
        @command
        def call(self, request: actions.OtherRequest, context: ActionContext) -> Any:
            context.effect(TWO, "Call", request, {"x-why": "effect"})
            if request.id == "forward":
                return context.forward(TWO, "Call", request, [("x-why", "forward"), ("x-raw-bin", b"\x00")])
            context.reply_metadata("ce-subject", request.id)
            return actions.Response(message="told")

    kit = ActionKit(Teller)
    told = kit.call("Call", actions.OtherRequest(id="ann"))
    assert told.metadata == [("ce-subject", "ann")]
    assert [effect.metadata for effect in told.effects] == [[("x-why", "effect")]]
    forwarded = kit.call("Call", actions.OtherRequest(id="forward")).forward
    assert forwarded == Called(TWO, "Call", actions.OtherRequest(id="forward"), metadata=[("x-why", "forward"), ("x-raw-bin", b"\x00")])
