"""What a person sees of a service: the figures are those of the parts, and the view fits a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from autoscaler.coordination import CoordinationServer
from autoscaler.fleet import Phase
from autoscaler.scaling_loop import Pod, ScalingState
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from kn_cloudstate.dashboard import BAR, PodLine, Snapshot, line, render, snapshot

SHARDS = 8
VIEW = Snapshot(
    service="default/cart",
    pods=(
        PodLine("cart-00001-0002", "ready", 96, 16, 1.5),
        PodLine("cart-00001-0003", "starting", 0, 0, 0.0),
        PodLine("cart-00001-0004", "draining", 160, 0, 12.25),
        PodLine("cart-00001-0005", "stopping", 0, 0, 0.0),
    ),
    shard_count=256, free=0, moving=30, moves_total=342, concurrency=16.27, ready=2, wanted=3, in_panic=True,
)  # fmt: skip


def shown(what: RenderableType, width: int = 80) -> list[str]:
    """The lines of a terminal, without colours, frame and the spaces at their ends."""
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return [text.strip("│").strip() for text in console.file.getvalue().splitlines()]


def test_the_view_of_a_busy_service() -> None:
    title, scale, shards, columns, *pods, _ = shown(render(VIEW))
    assert " default/cart " in title
    assert scale == "ready 2  wanted 3  concurrency 16.3  panic yes"
    assert shards == "shards 256  free 0  moving 30  moved so far 342"
    assert columns.split() == ["pod", "state", "shards", "load"]
    assert [text.split() for text in pods] == [
        ["cart-00001-0002", "ready", "96", "█" * 9 + "░" * 2, "1.50"],
        ["cart-00001-0003", "starting", "0", "0.00"],
        ["cart-00001-0004", "draining", "160", "█" * 15, "12.25"],
        ["cart-00001-0005", "stopping", "0", "0.00"],
    ]


def test_the_view_of_a_service_at_zero() -> None:
    at_zero = replace(VIEW, pods=(), free=256, moving=0, concurrency=0.0, ready=0, wanted=0, in_panic=False)
    assert shown(render(at_zero))[1:-1] == [
        "ready 0  wanted 0  concurrency 0.0  panic no",
        "shards 256  free 256  moving 0  moved so far 342",
        "no pods: at zero",
    ]


def test_what_a_caller_adds_is_below() -> None:
    assert shown(render(VIEW, Text("p99 3.2 ms")))[-2] == "p99 3.2 ms"


@pytest.mark.parametrize("width", [80, 140])
def test_columns_stay_where_they_are_while_figures_change(width: int) -> None:
    def columns(*shards: int) -> list[int]:
        pods = tuple(PodLine(f"cart-00001-000{n}", "ready", count, 0, 10.0**n) for n, count in enumerate(shards))
        lines = shown(render(replace(VIEW, pods=pods)), width)
        assert max(map(len, lines)) <= width
        assert len(lines) == 5 + len(shards), "no line is broken"
        return [lines[3].index(name) for name in ("state", "shards", "load")]

    assert columns(0) == columns(256) == columns(1, 255) == columns(80, 80, 96, 0)


def test_of_a_long_name_the_end_is_seen() -> None:
    pods = (PodLine("a" * 63 + "-00001-0002", "ready", 256, 0, 1.5),)
    row = shown(render(replace(VIEW, pods=pods)))[4]
    assert row.split() == ["…" + "a" * 10 + "-00001-0002", "ready", "256", "█" * BAR, "1.50"]


@pytest.mark.parametrize(("owned", "receiving", "bar"), [(1, 0, "█"), (0, 1, "░"), (0, 0, ""), (256, 0, "█" * BAR), (255, 1, "█" * BAR)])
def test_any_shard_at_all_is_seen_and_the_bar_is_never_too_long(owned: int, receiving: int, bar: str) -> None:
    row = shown(render(replace(VIEW, pods=(PodLine("p", "ready", owned, receiving, 0.0),))))[4]
    assert row.split()[3:-1] == ([bar] if bar else [])


def test_the_line_for_logs() -> None:
    assert line(VIEW) == (
        "pods=4 ready=2 wanted=3 panic=yes concurrency=16.3 shards moving=30 free=0 moved=342 "
        "[0002:96 0003:0(starting) 0004:160(draining) 0005:0(stopping)]"
    )
    assert line(replace(VIEW, pods=())).endswith("moved=342 []")


class Service:
    """A running service whose placement is the real one."""

    def __init__(self) -> None:
        self.now = 100.0
        self.placement = CoordinationServer(lambda: self.now).add_service("default/cart", SHARDS, ["cart"], "r1")
        self.state = ScalingState(ready=1, wanted=2, concurrency=3.5, decision=None)
        self.running: list[Pod] = []
        self.spec = SimpleNamespace(full_name="default/cart")
        self.pods = SimpleNamespace(pods=lambda: self.running)
        self.loop = SimpleNamespace(state=self.state)

    def pod(self, name: str, phase: Phase = Phase.STARTING, joins: bool = True) -> None:
        self.running.append(Pod(name, phase, self.now))
        if joins:
            member = pb.Member(member_id=f"{name}/x", pod=name, revision="r1")
            self.placement.hello(self.now, pb.Hello(service="default/cart", member=member, journal_id="j", shard_count=SHARDS))
            self.tick()

    def tick(self, seconds: int = 3) -> None:
        """Members beat, hold what the map gives them, and the leader places."""
        for _ in range(seconds * 5):
            self.now += 0.2
            entries = list(enumerate(self.placement.map.entries))
            for name in self.placement.members:
                held = [pb.OwnedShard(shard=s, epoch=1, load=0.25) for s, e in entries if e.owner == name and not e.next]
                self.placement.heartbeat(self.now, name, pb.Heartbeat(owned=held, journal_ok=True, generation=self.placement.map.generation))
            self.placement.tick(self.now)

    def seen(self) -> Snapshot:
        service: Any = self
        return snapshot(service)


def test_a_snapshot_of_a_service_at_zero() -> None:
    view = Service().seen()
    assert (view.service, view.pods, view.shard_count, view.free, view.moving, view.moves_total) == ("default/cart", (), SHARDS, SHARDS, 0, 0)
    assert (view.ready, view.wanted, view.concurrency, view.in_panic) == (1, 2, 3.5, False)


def test_a_snapshot_tells_pods_by_what_they_own() -> None:
    service = Service()
    service.pod("one")
    service.pod("two", joins=False)
    service.pod("three", Phase.STOPPING, joins=False)
    view = service.seen()
    assert [(pod.name, pod.phase, pod.shards) for pod in view.pods] == [("one", "ready", SHARDS), ("two", "starting", 0), ("three", "stopping", 0)]
    assert (view.free, view.moving) == (0, 0)
    assert view.pods[0].load > 0
    service.state.draining["one"] = 1.0
    assert service.seen().pods[0].phase == "draining"


def test_a_snapshot_shows_shards_on_their_way() -> None:
    service = Service()
    service.pod("one")
    service.pod("two")
    service.placement.drain("one/x")
    service.now += 0.2
    service.placement.tick(service.now)
    view = service.seen()
    one, two = view.pods
    assert view.moving > 0
    assert two.receiving == sum(e.next == "two/x" for e in service.placement.map.entries) == view.moving
    assert one.shards + two.shards == SHARDS


def test_a_snapshot_tells_panic() -> None:
    service = Service()
    service.state.decision = SimpleNamespace(in_panic=True)  # type: ignore[assignment]
    assert service.seen().in_panic
