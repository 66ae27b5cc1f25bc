"""The conformance suite's model cases of sets, under its names. Elements are letters; a text of them is a set."""

from __future__ import annotations

import grpc.aio
import pytest
from cloudstate_sdk.pb.cloudstate import crdt_pb2 as pb

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model
from tests.tck.sdk.crdt_playing import DELETE, Asks, Case, Delta, asks, change, play, stream, texts


def more(added: str) -> Delta:
    return Delta(gset=pb.GSetDelta(added=texts(added)))


def grow(added: str = "", *, shows: str, tells: str = "") -> Asks:
    """Elements put into a GSet."""
    actions = [change(gset=model.GSetUpdate(add=letter)) for letter in added]
    return asks(*actions, shows=model.State(gset=model.GSetValue(elements=list(shows))), tells=more(tells) if tells else None)


def moved(added: str = "", removed: str = "", cleared: bool = False) -> Delta:
    return Delta(orset=pb.ORSetDelta(cleared=cleared, removed=texts(removed), added=texts(added)))


def move(*steps: str, shows: str, tells: Delta | None = None) -> Asks:
    """Elements put into an ORSet (`+abc`), taken out (`-abc`), or all of them taken out (`!`)."""
    actions = []
    for step in steps:
        if step == "!":
            actions.append(change(orset=model.ORSetUpdate(clear=True)))
        kind = {"+": "add", "-": "remove"}.get(step[0])
        actions += [change(orset=model.ORSetUpdate(**{kind: letter})) for letter in step[1:] if kind]  # type: ignore[arg-type]
    return asks(*actions, shows=model.State(orset=model.ORSetValue(elements=list(shows))), tells=tells)


G_LEFT = asks(DELETE, shows=model.State(gset=model.GSetValue(elements=["x"])), deletes=True)
OR_LEFT = asks(DELETE, shows=model.State(orset=model.ORSetValue(elements=["x"])), deletes=True)

GROWING = [
    Case("verify GSet initial empty state", "GSet", [stream(grow(shows=""))]),
    Case(
        "verify GSet state changes",
        "GSet",
        [stream(grow("ab", shows="ab", tells="ab"), grow("bc", shows="abc", tells="c"), grow("ca", shows="abc"))],
    ),
    Case("verify GSet initial delta in init", "GSet", [stream(grow("cde", shows="abcde", tells="de"), holds=more("abc"))]),
    Case("verify GSet initial empty state with replicated initial delta", "GSet", [stream(more("xy"), grow("z", shows="xyz", tells="z"))]),
    Case(
        "verify GSet mix of local and replicated state changes",
        "GSet",
        [
            stream(
                grow("a", shows="a", tells="a"),
                more("a"),
                more("b"),
                more("c"),
                grow(shows="abc"),
                grow("cde", shows="abcde", tells="de"),
                more("f"),
                grow("gdb", shows="abcdefg", tells="g"),
            )
        ],
    ),
    Case(
        "verify GSet rehydration after passivation",
        "GSet",
        [
            stream(grow("a", shows="a", tells="a"), more("b"), grow(shows="ab"), grow("c", shows="abc", tells="c")),
            stream(grow(shows="abc"), more("d"), grow("e", shows="abcde", tells="e"), holds=more("abc")),
        ],
    ),
    Case("verify GSet delete action received from entity", "GSet", [stream(grow("x", shows="x", tells="x"), G_LEFT)]),
    Case("verify GSet delete action sent to entity", "GSet", [stream(None)]),
]

MOVING = [
    Case("verify ORSet initial empty state", "ORSet", [stream(move(shows=""))]),
    Case(
        "verify ORSet state changes",
        "ORSet",
        [
            stream(
                move("+ab", shows="ab", tells=moved("ab")),
                move("+bc", shows="abc", tells=moved("c")),
                move("+ca", shows="abc"),
                move("-bd", shows="ac", tells=moved(removed="b")),
                move("-cd", "+bc", shows="abc", tells=moved("b")),
                move("!", shows="", tells=moved(cleared=True)),
                move("+a", "!", "+x", shows="x", tells=moved("x", cleared=True)),
            )
        ],
    ),
    Case("verify ORSet initial delta in init", "ORSet", [stream(move("-c", "+d", shows="abd", tells=moved("d", "c")), holds=moved("abc"))]),
    Case(
        "verify ORSet initial empty state with replicated initial delta",
        "ORSet",
        [stream(moved("xy"), move("-x", "+z", shows="yz", tells=moved("z", "x")))],
    ),
    Case(
        "verify ORSet mix of local and replicated state changes",
        "ORSet",
        [
            stream(
                move("+a", shows="a", tells=moved("a")),
                moved("ab"),
                moved("cd"),
                moved(removed="bd"),
                move(shows="ac"),
                move("+cde", shows="acde", tells=moved("de")),
                moved("f", "ac"),
                move("+g", "-ad", shows="efg", tells=moved("g", "d")),
                moved("xyz", cleared=True),
                move("+qx", "-z", shows="qxy", tells=moved("q", "z")),
                moved("rp", "xy"),
                move("+s", shows="pqrs", tells=moved("s")),
                moved("abc"),
                move("!", "+t", shows="t", tells=moved("t", cleared=True)),
            )
        ],
    ),
    Case(
        "verify ORSet rehydration after passivation",
        "ORSet",
        [
            stream(move("+a", shows="a", tells=moved("a")), moved("b", "a"), move(shows="b"), move("+c", shows="bc", tells=moved("c"))),
            stream(
                move(shows="bc"),
                moved("pq", cleared=True),
                move("+xy", "-x", shows="pqy", tells=moved("y")),
                holds=moved("bc"),
            ),
        ],
    ),
    Case("verify ORSet delete action received from entity", "ORSet", [stream(move("+x", shows="x", tells=moved("x")), OR_LEFT)]),
    Case("verify ORSet delete action sent to entity", "ORSet", [stream(None)]),
]
CASES = [*GROWING, *MOVING]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_set(channel: grpc.aio.Channel, case: Case) -> None:
    await play(channel, case)
