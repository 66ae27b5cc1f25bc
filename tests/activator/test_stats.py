"""What an activator reports, against Knative's own table and as a property: nothing is counted twice and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activator.stats import ConcurrencyReporter


@pytest.mark.golden("activator_stats")
def test_knatives_table(row: dict[str, Any]) -> None:
    reporter, told = ConcurrencyReporter(), []
    for step in row["ops"]:
        what, at = step.partition("#")[0].partition("@")[0], float(step.partition("@")[2])
        if what == "in":
            told.append(reporter.begin(at))
        elif what == "out":
            reporter.end(at)
        else:
            told.append(reporter.report(at))
    assert [[r.concurrency, r.requests] for r in told if r is not None] == row["want"]


@given(st.lists(st.tuples(st.sampled_from(["in", "out", "tick"]), st.floats(0, 2)), max_size=60))
def test_every_request_is_counted_once(steps: list[tuple[str, float]]) -> None:
    reporter, now, began, open_now, counted = ConcurrencyReporter(), 0.0, 0, 0, 0.0
    for what, passed in [*steps, ("tick", 1.0)]:
        now += passed
        report = None
        if what == "in":
            began, open_now = began + 1, open_now + 1
            report = reporter.begin(now)
        elif what == "out" and open_now:
            open_now -= 1
            reporter.end(now)
        elif what == "tick":
            report = reporter.report(now)
        counted += report.requests if report is not None else 0
        assert report is None or report.concurrency >= 0
    assert counted == began
    assert reporter.in_flight == open_now
