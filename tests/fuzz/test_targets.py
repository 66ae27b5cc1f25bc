"""The fuzzer's targets, each with some inputs of hypothesis's choice."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.draw import Draw
from tests.fuzz.targets import TARGETS

SCRIPTS = st.binary(min_size=300, max_size=300) | st.binary(max_size=80)
"""Long ones, which are the ones that lead far, and short ones, since a failure is best told by a short one."""


@pytest.mark.parametrize("target", TARGETS)
@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=SCRIPTS)
def test_nothing_that_strangers_send_breaks_a_rule(target: str, data: bytes) -> None:
    TARGETS[target](data)


@given(data=st.binary(max_size=20), rarity=st.integers(1, 255))
def test_every_script_has_an_end_and_every_choice_an_answer(data: bytes, rarity: int) -> None:
    draw = Draw(data, rarity)
    assert draw.choice("abc") in "abc"
    assert draw.often("d", "ef") in "def"
    assert len(draw.mutated(b"abc")) <= 3 + 4 * 8
    assert (len(draw.raw(5)) <= 5, len(draw.text(3)) <= 3) == (True, True)
    while draw.left:
        assert 0 <= draw.below(7) < 7
    assert (draw.byte(), draw.flag(), draw.choice("abc"), draw.raw(5)) == (0, False, "a", b"")
