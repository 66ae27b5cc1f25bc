"""The conformance suite's model cases of registers, flags and votes, under its names."""

from __future__ import annotations

import grpc.aio
import pytest
from cloudstate_sdk import Clock
from cloudstate_sdk.pb.cloudstate import crdt_pb2 as pb

from tests.tck.pb.cloudstate.tck.model import crdt_pb2 as model
from tests.tck.sdk.crdt_playing import DELETE, Asks, Case, Delta, asks, change, play, stream, text

# Registers --------------------------------------------------------------------------------------------------------------


def written(value: str, clock: Clock = Clock.DEFAULT, custom: int = 0) -> Delta:
    return Delta(lwwregister=pb.LWWRegisterDelta(value=text(value), clock=clock.value, custom_clock_value=custom))


def reads(value: str, *, tells: Delta | None = None) -> Asks:
    return asks(shows=model.State(lwwregister=model.LWWRegisterValue(value=value)), tells=tells)


def writes(value: str, clock: Clock = Clock.DEFAULT, custom: int = 0) -> Asks:
    """A write, which is always told: it carries its clock."""
    asked = change(lwwregister=model.LWWRegisterUpdate(value=value, clock=model.LWWRegisterClock(clockType=clock.value, customClockValue=custom)))
    return asks(asked, shows=model.State(lwwregister=model.LWWRegisterValue(value=value)), tells=written(value, clock, custom))


REGISTER_LEFT = asks(DELETE, shows=model.State(lwwregister=model.LWWRegisterValue(value="one")), deletes=True)

REGISTERS = [
    Case("verify LWWRegister initial empty state", "LWWRegister", [stream(reads("", tells=written("")))]),
    Case("verify LWWRegister state changes", "LWWRegister", [stream(writes("one"), writes("two"))]),
    Case("verify LWWRegister initial delta in init", "LWWRegister", [stream(reads("one"), holds=written("one"))]),
    Case("verify LWWRegister initial empty state with replicated initial delta", "LWWRegister", [stream(written("one"), reads("one"))]),
    Case(
        "verify LWWRegister mix of local and replicated state changes",
        "LWWRegister",
        [stream(writes("A"), written("B"), written("C"), reads("C"), writes("D"), written("D"), writes("E"))],
    ),
    Case(
        "verify LWWRegister state changes with clock settings",
        "LWWRegister",
        [stream(writes("A", Clock.REVERSE), writes("A", Clock.CUSTOM, 123), writes("A", Clock.CUSTOM_AUTO_INCREMENT, 456))],
    ),
    Case(
        "verify LWWRegister rehydration after passivation",
        "LWWRegister",
        [
            stream(writes("A"), written("B"), reads("B"), writes("C")),
            stream(reads("C"), written("D"), writes("E"), holds=written("C")),
        ],
    ),
    Case("verify LWWRegister delete action received from entity", "LWWRegister", [stream(writes("one"), REGISTER_LEFT)]),
    Case("verify LWWRegister delete action sent to entity", "LWWRegister", [stream(None)]),
]

# Flags ------------------------------------------------------------------------------------------------------------------

UP, DOWN = (Delta(flag=pb.FlagDelta(value=value)) for value in (True, False))
SHOWS_UP, SHOWS_DOWN = (asks(shows=model.State(flag=model.FlagValue(value=value))) for value in (True, False))


def raises(*, tells: Delta | None = UP) -> Asks:
    return asks(change(flag=model.FlagUpdate()), shows=model.State(flag=model.FlagValue(value=True)), tells=tells)


FLAG_LEFT = asks(DELETE, shows=model.State(flag=model.FlagValue(value=True)), deletes=True)

FLAGS = [
    Case("verify Flag initial empty state", "Flag", [stream(SHOWS_DOWN)]),
    Case("verify Flag state changes", "Flag", [stream(raises())]),
    Case("verify Flag initial delta in init", "Flag", [stream(SHOWS_DOWN, holds=DOWN), stream(SHOWS_UP, holds=UP)]),
    Case("verify Flag initial empty state with replicated initial delta", "Flag", [stream(DOWN, SHOWS_DOWN), stream(UP, SHOWS_UP)]),
    Case(
        "verify Flag mix of local and replicated state changes",
        "Flag",
        [
            stream(DOWN, SHOWS_DOWN, raises(), UP, DOWN, SHOWS_UP),
            stream(UP, SHOWS_UP, raises(tells=None), UP, DOWN, SHOWS_UP),
        ],
    ),
    Case("verify Flag rehydration after passivation", "Flag", [stream(SHOWS_DOWN, raises()), stream(SHOWS_UP, holds=UP)]),
    Case("verify Flag delete action received from entity", "Flag", [stream(raises(), FLAG_LEFT)]),
    Case("verify Flag delete action sent to entity", "Flag", [stream(None)]),
]

# Votes ------------------------------------------------------------------------------------------------------------------


def counted(mine: bool, votes: int, voters: int) -> Delta:
    """What the proxy tells."""
    return Delta(vote=pb.VoteDelta(self_vote=mine, votes_for=votes, total_voters=voters))


def says(vote: bool | None, votes: int, voters: int, *, mine: bool = False, tells: bool = True) -> Asks:
    """A vote (None: none), the count after it, and whether it is told; `mine` is what this pod said before."""
    actions = [] if vote is None else [change(vote=model.VoteUpdate(self_vote=vote))]
    shown = model.VoteValue(self_vote=mine if vote is None else vote, votes_for=votes, total_voters=voters)
    told = Delta(vote=pb.VoteDelta(self_vote=vote)) if vote is not None and tells else None
    return asks(*actions, shows=model.State(vote=shown), tells=told)


VOTE_LEFT = asks(DELETE, shows=model.State(vote=model.VoteValue(self_vote=True, votes_for=1, total_voters=1)), deletes=True)

VOTES = [
    Case("verify Vote initial empty state", "Vote", [stream(says(None, 0, 1))]),
    Case(
        "verify Vote state changes",
        "Vote",
        [stream(says(True, 1, 1), says(True, 1, 1, tells=False), says(False, 0, 1), says(False, 0, 1, tells=False))],
    ),
    Case("verify Vote initial delta in init", "Vote", [stream(says(None, 2, 3, mine=True), says(False, 1, 3), holds=counted(True, 2, 3))]),
    Case(
        "verify Vote initial empty state with replicated initial delta",
        "Vote",
        [stream(counted(False, 3, 5), says(None, 3, 5), says(True, 4, 5))],
    ),
    Case(
        "verify Vote mix of local and replicated state changes",
        "Vote",
        [
            stream(
                counted(False, 2, 4),
                says(None, 2, 4),
                says(True, 3, 4),
                counted(True, 5, 7),
                counted(True, 4, 6),
                says(False, 3, 6),
            )
        ],
    ),
    Case(
        "verify Vote rehydration after passivation",
        "Vote",
        [
            stream(says(None, 0, 1), counted(False, 2, 5), says(True, 3, 5)),
            stream(says(None, 3, 5, mine=True), says(False, 2, 5), holds=counted(True, 3, 5)),
        ],
    ),
    Case("verify Vote delete action received from entity", "Vote", [stream(says(True, 1, 1), VOTE_LEFT)]),
    Case("verify Vote delete action sent to entity", "Vote", [stream(None)]),
]

CASES = [*REGISTERS, *FLAGS, *VOTES]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
async def test_value(channel: grpc.aio.Channel, case: Case) -> None:
    await play(channel, case)
