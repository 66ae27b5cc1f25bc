"""One submission has the questions of many: what becomes of one of them does not concern the others."""

from __future__ import annotations

from typing import Any

import pytest

from cloudstate_core.journal.api import Check, Outcome


def test_a_mistake_with_one_outcome_costs_nobody_else_theirs(bench: Any) -> None:
    heard: list[str] = []
    check = Check(0, bench.tokens[0])

    def mistaken(outcome: Outcome) -> None:
        raise KeyError("a mistake")

    bench.journal.holding = True
    bench.batch.ask(check, mistaken)
    bench.batch.ask(check, lambda outcome: heard.append("the second"))
    bench.batch.flush()
    with pytest.raises(KeyError, match="a mistake"):
        bench.journal.release()
    assert heard == ["the second"]
