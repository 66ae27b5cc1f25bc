"""The conformance suite's model cases of maps, under its names."""

from __future__ import annotations

from typing import Any

import grpc.aio
import pytest
from cloudstate_sdk.pb.cloudstate import crdt_pb2 as pb

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model
from tests.tck.sdk.crdt_playing import DELETE, Asks, Case, Delta, asks, change, play, stream, text, texts

Deltas = dict[str, Delta]
CLEAR = model.ORMapUpdate(clear=True)


def changed(added: Deltas | None = None, updated: Deltas | None = None, removed: tuple[str, ...] = (), cleared: bool = False) -> Delta:
    """A change of a map."""
    entries = ([pb.ORMapEntryDelta(key=text(key), delta=delta) for key, delta in (found or {}).items()] for found in (updated, added))
    return Delta(ormap=pb.ORMapDelta(cleared=cleared, removed=texts(removed), updated=next(entries), added=next(entries)))


def gone(*keys: str) -> Delta:
    return changed(removed=keys)


def grown(by: int) -> Delta:
    return Delta(gcounter=pb.GCounterDelta(increment=by))


def counted(by: int) -> Delta:
    return Delta(pncounter=pb.PNCounterDelta(change=by))


def elements(letters: str) -> Delta:
    return Delta(gset=pb.GSetDelta(added=texts(letters)))


def moved(added: str = "", removed: str = "") -> Delta:
    return Delta(orset=pb.ORSetDelta(removed=texts(removed), added=texts(added)))


def written(value: str) -> Delta:
    return Delta(lwwregister=pb.LWWRegisterDelta(value=text(value)))


def raised(value: bool) -> Delta:
    return Delta(flag=pb.FlagDelta(value=value))


def add(*keys: str) -> list[model.ORMapUpdate]:
    return [model.ORMapUpdate(add=key) for key in keys]


def remove(*keys: str) -> list[model.ORMapUpdate]:
    return [model.ORMapUpdate(remove=key) for key in keys]


def update(key: str, *updates: model.Update) -> list[model.ORMapUpdate]:
    return [model.ORMapUpdate(update=model.ORMapEntryUpdate(key=key, update=one)) for one in updates]


def grow(by: int) -> model.Update:
    return model.Update(gcounter=model.GCounterUpdate(increment=by))


def count(by: int) -> model.Update:
    return model.Update(pncounter=model.PNCounterUpdate(change=by))


def write(value: str) -> model.Update:
    return model.Update(lwwregister=model.LWWRegisterUpdate(value=value))


def put(letters: str) -> list[model.Update]:
    return [model.Update(orset=model.ORSetUpdate(add=letter)) for letter in letters]


def take(letters: str) -> list[model.Update]:
    return [model.Update(orset=model.ORSetUpdate(remove=letter)) for letter in letters]


def collect(letters: str) -> list[model.Update]:
    return [model.Update(gset=model.GSetUpdate(add=letter)) for letter in letters]


def state(**values: Any) -> model.State:
    """A map whose keys are types with a number: `PNCounter_1=3` is the key `PNCounter-1`."""
    return model.State(ormap=model.ORMapValue(entries=[_entry(key.replace("_", "-"), value) for key, value in sorted(values.items())]))


def _entry(key: str, value: Any) -> model.ORMapEntryValue:
    match key.partition("-")[0]:
        case "GCounter":
            found = model.State(gcounter=model.GCounterValue(value=value))
        case "PNCounter":
            found = model.State(pncounter=model.PNCounterValue(value=value))
        case "GSet":
            found = model.State(gset=model.GSetValue(elements=list(value)))
        case "ORSet":
            found = model.State(orset=model.ORSetValue(elements=list(value)))
        case "LWWRegister":
            found = model.State(lwwregister=model.LWWRegisterValue(value=value))
        case "Flag":
            found = model.State(flag=model.FlagValue(value=value))
        case _:
            found = value
    return model.ORMapEntryValue(key=key, value=found)


def does(*updates: model.ORMapUpdate, shows: model.State, tells: Delta | None = None, **more: Any) -> Asks:
    return asks(*(change(ormap=one) for one in updates), shows=shows, tells=tells, **more)


CHANGES = [
    does(
        *add("PNCounter-1", "ORSet-1"),
        shows=state(ORSet_1="", PNCounter_1=0),
        tells=changed({"ORSet-1": moved(), "PNCounter-1": counted(0)}),
    ),
    does(
        *add("ORSet-1"),
        *update("LWWRegister-1", write("zero")),
        shows=state(LWWRegister_1="zero", ORSet_1="", PNCounter_1=0),
        tells=changed({"LWWRegister-1": written("zero")}),
    ),
    does(
        *update("PNCounter-1", count(42)),
        *update("LWWRegister-1", write("one")),
        shows=state(LWWRegister_1="one", ORSet_1="", PNCounter_1=42),
        tells=changed(updated={"LWWRegister-1": written("one"), "PNCounter-1": counted(42)}),
    ),
    does(
        *update("ORSet-1", *put("abc")),
        shows=state(LWWRegister_1="one", ORSet_1="abc", PNCounter_1=42),
        tells=changed(updated={"ORSet-1": moved("abc")}),
    ),
    does(
        *update("ORSet-1", *take("b"), *put("d")),
        *update("PNCounter-1", count(-123)),
        *update("LWWRegister-1", write("two")),
        shows=state(LWWRegister_1="two", ORSet_1="acd", PNCounter_1=-81),
        tells=changed(updated={"LWWRegister-1": written("two"), "ORSet-1": moved("d", "b"), "PNCounter-1": counted(-123)}),
    ),
    does(*remove("ORSet-1"), shows=state(LWWRegister_1="two", PNCounter_1=-81), tells=gone("ORSet-1")),
    does(
        *remove("LWWRegister-1"),
        *update("Flag-1", model.Update(flag=model.FlagUpdate())),
        shows=state(Flag_1=True, PNCounter_1=-81),
        tells=changed({"Flag-1": raised(True)}, removed=("LWWRegister-1",)),
    ),
    does(CLEAR, shows=state(), tells=changed(cleared=True)),
    does(
        *add("PNCounter-2"),
        CLEAR,
        *update("GCounter-1", grow(123)),
        shows=state(GCounter_1=123),
        tells=changed({"GCounter-1": grown(123)}, cleared=True),
    ),
]

MIX: list[Asks | Delta | None] = [
    does(*add("PNCounter-1"), shows=state(PNCounter_1=0), tells=changed({"PNCounter-1": counted(0)})),
    changed({"ORSet-1": moved("x")}),
    changed({"LWWRegister-1": written("one")}, {"ORSet-1": moved("yz")}),
    does(
        *add("ORSet-2"),
        *update("LWWRegister-2", write("two")),
        shows=state(LWWRegister_1="one", LWWRegister_2="two", ORSet_1="xyz", ORSet_2="", PNCounter_1=0),
        tells=changed({"LWWRegister-2": written("two"), "ORSet-2": moved()}),
    ),
    does(
        *update("PNCounter-1", count(42)),
        *update("LWWRegister-1", write("ONE")),
        shows=state(LWWRegister_1="ONE", LWWRegister_2="two", ORSet_1="xyz", ORSet_2="", PNCounter_1=42),
        tells=changed(updated={"LWWRegister-1": written("ONE"), "PNCounter-1": counted(42)}),
    ),
    changed({"ORMap-1": changed({"PNCounter-1": counted(123)})}, removed=("LWWRegister-2",)),
    changed(updated={"ORSet-2": moved("abc"), "ORMap-1": changed({"LWWRegister-1": written("ABC")})}, removed=("ORSet-1",)),
    does(
        *update("ORMap-1", *(model.Update(ormap=one) for one in update("PNCounter-1", count(-456)))),
        shows=state(LWWRegister_1="ONE", ORMap_1=state(LWWRegister_1="ABC", PNCounter_1=-333), ORSet_2="abc", PNCounter_1=42),
        tells=changed(updated={"ORMap-1": changed(updated={"PNCounter-1": counted(-456)})}),
    ),
    changed({"GSet-1": elements("123")}, cleared=True),
    does(
        *remove("PNCounter-1", "LWWRegister-1"),
        *update("GSet-1", *collect("246")),
        shows=state(GSet_1="12346"),
        tells=changed(updated={"GSet-1": elements("46")}),
    ),
    does(CLEAR, *add("GCounter-1"), shows=state(GCounter_1=0), tells=changed({"GCounter-1": grown(0)}, cleared=True)),
    changed({"GCounter-1": grown(42)}, removed=("GSet-1",)),
    does(*update("GCounter-1", grow(7)), shows=state(GCounter_1=49), tells=changed(updated={"GCounter-1": grown(7)})),
]

CASES = [
    Case("verify ORMap initial empty state", "ORMap", [stream(does(shows=state()))]),
    Case("verify ORMap state changes", "ORMap", [stream(*CHANGES)]),
    Case(
        "verify ORMap initial delta in init",
        "ORMap",
        [
            stream(
                does(shows=state(GSet_1="abc", LWWRegister_1="one", PNCounter_1=123)),
                does(
                    *remove("LWWRegister-1"),
                    *update("PNCounter-1", count(-42)),
                    shows=state(GSet_1="abc", PNCounter_1=81),
                    tells=changed(updated={"PNCounter-1": counted(-42)}, removed=("LWWRegister-1",)),
                ),
                holds=changed({"PNCounter-1": counted(123), "LWWRegister-1": written("one"), "GSet-1": elements("abc")}),
            )
        ],
    ),
    Case(
        "verify ORMap initial empty state with replicated initial delta",
        "ORMap",
        [
            stream(
                changed({"GCounter-1": grown(42), "ORSet-1": moved("abc"), "Flag-1": raised(False)}),
                does(shows=state(Flag_1=False, GCounter_1=42, ORSet_1="abc")),
            )
        ],
    ),
    Case("verify ORMap mix of local and replicated state changes", "ORMap", [stream(*MIX)]),
    Case(
        "verify ORMap rehydration after passivation",
        "ORMap",
        [
            stream(
                changed({"PNCounter-1": counted(123)}),
                does(*update("PNCounter-1", count(321)), shows=state(PNCounter_1=444), tells=changed(updated={"PNCounter-1": counted(321)})),
            ),
            stream(
                does(shows=state(PNCounter_1=444)),
                changed(updated={"PNCounter-1": counted(-42)}),
                does(*update("PNCounter-1", count(-360)), shows=state(PNCounter_1=42), tells=changed(updated={"PNCounter-1": counted(-360)})),
                holds=changed({"PNCounter-1": counted(444)}),
            ),
        ],
    ),
    Case(
        "verify ORMap delete action received from entity",
        "ORMap",
        [
            stream(
                does(*add("Flag-1"), shows=state(Flag_1=False), tells=changed({"Flag-1": raised(False)})),
                asks(
                    *(change(ormap=one) for one in update("Flag-1", model.Update(flag=model.FlagUpdate()))),
                    DELETE,
                    shows=state(Flag_1=True),
                    deletes=True,
                ),
            )
        ],
    ),
    Case("verify ORMap delete action sent to entity", "ORMap", [stream(None)]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_map(channel: grpc.aio.Channel, case: Case) -> None:
    await play(channel, case)
