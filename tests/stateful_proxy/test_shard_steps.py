"""The whole table of steps."""

from __future__ import annotations

import pytest

from cloudstate_core.shard_map import Entry
from stateful_proxy.shard_steps import Duty, Phase, Step, duty_of, next_step

MINE = Entry("me", "", 5)
GIVEN = Entry("me", "other", 5)
COMING = Entry("other", "me", 5)
OTHERS = Entry("other", "", 5)
PASSING = Entry("other", "third", 5)
FREE = Entry("", "", 5)


@pytest.mark.parametrize(
    ("entry", "duty"),
    [(MINE, Duty.TAKE), (GIVEN, Duty.GIVE), (COMING, Duty.AWAIT), (OTHERS, Duty.NONE), (PASSING, Duty.NONE), (FREE, Duty.NONE)],
)
def test_duty(entry: Entry, duty: Duty) -> None:
    assert duty_of(entry, "me") is duty
    assert duty_of(entry, "") is Duty.TAKE


@pytest.mark.parametrize(
    ("entry", "none", "owned", "draining"),
    [
        (MINE, Step.CLAIM, Step.STAY, Step.STAY),
        (GIVEN, Step.STAY, Step.DRAIN, Step.STAY),
        (COMING, Step.AWAIT, Step.LOSE, Step.LOSE),
        (OTHERS, Step.STAY, Step.LOSE, Step.LOSE),
        (PASSING, Step.STAY, Step.LOSE, Step.LOSE),
        (FREE, Step.STAY, Step.DRAIN, Step.STAY),
    ],
)
def test_steps(entry: Entry, none: Step, owned: Step, draining: Step) -> None:
    def step(phase: Phase) -> Step:
        return next_step(phase, entry, "me", claimed_under=3)

    assert [step(p) for p in (Phase.NONE, Phase.OWNED, Phase.DRAINING)] == [none, owned, draining]
    assert step(Phase.CLAIMING) is Step.STAY
    assert step(Phase.SEALING) is Step.STAY


def test_a_claim_under_the_move_itself_is_kept() -> None:
    assert next_step(Phase.OWNED, COMING, "me", claimed_under=5) is Step.STAY
