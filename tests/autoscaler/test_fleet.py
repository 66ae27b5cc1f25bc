"""Which pods start, drain and stop: rows of views in, a step out; and the fleet converges from anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoscaler.fleet import FleetStep, Phase, PodView, step


def ready(name: str, load: float = 1.0, owned: int = 8, since: float | None = None, started: float = 0.0) -> PodView:
    return PodView(name, Phase.READY, started, load, owned, since)


def starting(name: str) -> PodView:
    return PodView(name, Phase.STARTING, 5.0)


CASES: list[tuple[str, int, list[PodView], FleetStep]] = [
    ("nothing wanted, nothing there", 0, [], FleetStep()),
    ("from zero", 2, [], FleetStep(start=2)),
    ("starting pods count", 3, [ready("a"), starting("b")], FleetStep(start=1)),
    ("the least loaded leaves", 1, [ready("a", 3.0), ready("b", 1.0)], FleetStep(drain=("b",))),
    ("a pod that is not ready leaves first", 1, [ready("a", 0.0), starting("b")], FleetStep(drain=("b",))),
    ("the youngest of equals leaves", 1, [ready("a", started=1.0), ready("b", started=2.0)], FleetStep(drain=("b",))),
    ("a drained pod stops", 1, [ready("a"), ready("b", 0, 0, since=9.0)], FleetStep(stop=("b",))),
    ("a draining pod that owns shards waits", 1, [ready("a"), ready("b", since=9.0)], FleetStep()),
    ("a drain that hangs ends", 1, [ready("a"), ready("b", since=-25.0)], FleetStep(stop=("b",))),
    ("a draining pod does not count as staying", 2, [ready("a"), ready("b", since=9.0)], FleetStep(start=1)),
    ("to zero", 0, [ready("a", 2.0), ready("b", 1.0)], FleetStep(drain=("b", "a"))),
    ("a stopping pod is nobody", 1, [PodView("a", Phase.STOPPING, 0.0)], FleetStep(start=1)),
]


@pytest.mark.parametrize(("wanted", "pods", "expected"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_step(wanted: int, pods: list[PodView], expected: FleetStep) -> None:
    assert step(10.0, wanted, pods) == expected


@given(st.integers(0, 6), st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=6))
def test_nothing_is_stopped_that_owns_shards_and_the_size_is_reached(wanted: int, described: list[tuple[float, bool]]) -> None:
    pods = {f"p{i}": ready(f"p{i}", load, since=0.0 if leaving else None) for i, (load, leaving) in enumerate(described)}
    for now in range(1, 4):
        decided = step(float(now), wanted, list(pods.values()))
        assert all(pods[name].owned == 0 for name in decided.stop)
        for name in decided.stop:
            del pods[name]
        for name in decided.drain:
            pods[name] = ready(name, 0.0, 0, since=float(now))
        for number in range(decided.start):
            pods[f"n{now}-{number}"] = ready(f"n{now}-{number}")
        pods = {n: ready(n, 0.0, 0, p.draining_since) if p.draining_since is not None else p for n, p in pods.items()}
    assert len(pods) == wanted
