"""The conformance suite's model cases of counters, under its names."""

from __future__ import annotations

import grpc.aio
import pytest
from cloudstate_sdk.pb.cloudstate import crdt_pb2 as pb

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model
from tests.tck.sdk.crdt_playing import DELETE, Asks, Case, Delta, asks, change, play, stream


def grown(by: int) -> Delta:
    return Delta(gcounter=pb.GCounterDelta(increment=by))


def grow(*increments: int, shows: int, tells: int | None = None) -> Asks:
    """Increments that show a sum, and tell one change."""
    actions = [change(gcounter=model.GCounterUpdate(increment=by)) for by in increments]
    return asks(*actions, shows=model.State(gcounter=model.GCounterValue(value=shows)), tells=None if tells is None else grown(tells))


def changed(by: int) -> Delta:
    return Delta(pncounter=pb.PNCounterDelta(change=by))


def count(*changes: int, shows: int, tells: int | None = None) -> Asks:
    """The same up and down."""
    actions = [change(pncounter=model.PNCounterUpdate(change=by)) for by in changes]
    return asks(*actions, shows=model.State(pncounter=model.PNCounterValue(value=shows)), tells=None if tells is None else changed(tells))


G_LEFT = asks(DELETE, shows=model.State(gcounter=model.GCounterValue(value=42)), deletes=True)
PN_LEFT = asks(DELETE, shows=model.State(pncounter=model.PNCounterValue(value=42)), deletes=True)

CASES = [
    Case("verify GCounter initial empty state", "GCounter", [stream(grow(shows=0))]),
    Case("verify GCounter state changes", "GCounter", [stream(grow(42, shows=42, tells=42), grow(1, 2, 3, shows=48, tells=6))]),
    Case("verify GCounter initial delta in init", "GCounter", [stream(grow(123, shows=165, tells=123), holds=grown(42))]),
    Case("verify GCounter initial empty state with replicated initial delta", "GCounter", [stream(grown(42), grow(123, shows=165, tells=123))]),
    Case(
        "verify GCounter mix of local and replicated state changes",
        "GCounter",
        [
            stream(
                grow(1, shows=1, tells=1),
                grown(2),
                grown(3),
                grow(shows=6),
                grow(4, shows=10, tells=4),
                grown(5),
                grow(6, shows=21, tells=6),
            )
        ],
    ),
    Case(
        "verify GCounter rehydration after passivation",
        "GCounter",
        [
            stream(grow(1, shows=1, tells=1), grown(2), grow(shows=3), grow(3, shows=6, tells=3)),
            stream(grow(shows=6), grown(4), grow(5, shows=15, tells=5), holds=grown(6)),
        ],
    ),
    Case("verify GCounter delete action received from entity", "GCounter", [stream(grow(42, shows=42, tells=42), G_LEFT)]),
    Case("verify GCounter delete action sent to entity", "GCounter", [stream(None)]),
    Case("verify PNCounter initial empty state", "PNCounter", [stream(count(shows=0))]),
    Case("verify PNCounter state changes", "PNCounter", [stream(count(1, -2, 3, shows=2, tells=2), count(-4, 5, -6, shows=-3, tells=-5))]),
    Case("verify PNCounter initial delta in init", "PNCounter", [stream(count(-123, shows=-81, tells=-123), holds=changed(42))]),
    Case(
        "verify PNCounter initial empty state with replicated initial delta",
        "PNCounter",
        [stream(changed(-42), count(123, shows=81, tells=123))],
    ),
    Case(
        "verify PNCounter mix of local and replicated state changes",
        "PNCounter",
        [
            stream(
                count(1, shows=1, tells=1),
                changed(-2),
                changed(3),
                count(shows=2),
                count(-4, shows=-2, tells=-4),
                changed(5),
                count(-6, shows=-3, tells=-6),
            )
        ],
    ),
    Case(
        "verify PNCounter rehydration after passivation",
        "PNCounter",
        [
            stream(count(1, shows=1, tells=1), changed(-2), count(shows=-1), count(3, shows=2, tells=3)),
            stream(count(shows=2), changed(-4), count(5, shows=3, tells=5), holds=changed(2)),
        ],
    ),
    Case("verify PNCounter delete action received from entity", "PNCounter", [stream(count(42, shows=42, tells=42), PN_LEFT)]),
    Case("verify PNCounter delete action sent to entity", "PNCounter", [stream(None)]),
]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_counter(channel: grpc.aio.Channel, case: Case) -> None:
    await play(channel, case)
