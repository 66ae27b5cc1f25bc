"""What a person watches: pods, shards per pod, concurrency and decisions of a local installation.

`snapshot` reads the state (no I/O), `render` makes a rich panel of it, `line` one plain line for logs.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from kn_cloudstate.local import RunningService

BAR = 24
"""Width of the bar that all shards of a service make."""
NAME = 22
"""Longest name of a pod that is shown whole; the end of a longer one tells pods apart."""


@dataclass(frozen=True, slots=True)
class PodLine:
    """One pod as shown."""

    name: str
    phase: str
    shards: int
    receiving: int
    load: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One service as shown."""

    service: str
    pods: tuple[PodLine, ...]
    shard_count: int
    free: int
    moving: int
    moves_total: int
    concurrency: float
    ready: int
    wanted: int
    in_panic: bool


def snapshot(service: RunningService) -> Snapshot:
    """The present state of a service."""
    placement, state = service.placement, service.loop.state
    entries = placement.map.entries
    by_pod = {member.pod: name for name, member in placement.members.items()}
    pods = []
    for pod in service.pods.pods():
        member = by_pod.get(pod.name)
        draining = pod.name in state.draining
        phase = "draining" if draining else "ready" if member and pod.phase.value == "starting" else pod.phase.value
        owned = sum(member is not None and e.owner == member for e in entries)
        receiving = sum(member is not None and e.next == member for e in entries)
        load = placement.load_of(member) if member else 0.0
        pods.append(PodLine(pod.name, phase, owned, receiving, load))
    return Snapshot(
        service=service.spec.full_name,
        pods=tuple(pods),
        shard_count=len(entries),
        free=sum(e.free for e in entries),
        moving=sum(e.moving for e in entries),
        moves_total=placement.moves_total,
        concurrency=state.concurrency,
        ready=state.ready,
        wanted=state.wanted,
        in_panic=bool(state.decision and state.decision.in_panic),
    )


def line(view: Snapshot) -> str:
    """One line for logs."""
    pods = " ".join(f"{p.name.rsplit('-', 1)[-1]}:{p.shards}{'' if p.phase == 'ready' else '(' + p.phase + ')'}" for p in view.pods)
    return (
        f"pods={len(view.pods)} ready={view.ready} wanted={view.wanted} panic={'yes' if view.in_panic else 'no'} "
        f"concurrency={view.concurrency:.1f} shards moving={view.moving} free={view.free} moved={view.moves_total} [{pods}]"
    )


def render(view: Snapshot, extra: RenderableType | None = None) -> Panel:
    """The live view of a service; `extra` goes below it. It fits 80 columns, and its columns stay where they are as figures change."""
    table = Table(box=None, padding=(0, 1), show_header=True, header_style="dim")
    table.add_column("pod", no_wrap=True)
    table.add_column("state", width=8)
    table.add_column("shards", width=6, justify="right")
    table.add_column("", width=BAR, no_wrap=True, overflow="crop")
    table.add_column("load", width=6, justify="right")
    for pod in view.pods:
        style = {"ready": "green", "starting": "yellow", "draining": "magenta"}.get(pod.phase, "red")
        owned, receiving = _cells(pod.shards, view.shard_count), _cells(pod.receiving, view.shard_count)
        bar = Text.assemble(("█" * owned, style), ("░" * receiving, "yellow"))
        name = pod.name if len(pod.name) <= NAME else "…" + pod.name[1 - NAME :]
        table.add_row(name, Text(pod.phase, style=style), str(pod.shards), bar, f"{pod.load:.2f}")
    pods = table if view.pods else Text("no pods: at zero", style="dim")
    body = Group(*_head(view), pods, *([extra] if extra is not None else []))
    return Panel(body, title=f"[bold]{view.service}[/bold]", border_style="cyan")


def _head(view: Snapshot) -> tuple[Text, Text]:
    """Two lines: what is decided, and where the shards are."""
    scale = Text.assemble(
        ("ready ", "dim"), (f"{view.ready}", "bold green"), ("  wanted ", "dim"), (f"{view.wanted}", "bold"),
        ("  concurrency ", "dim"), (f"{view.concurrency:.1f}", "bold"),
        ("  panic ", "dim"), ("yes", "bold red") if view.in_panic else ("no", "green"),
    )  # fmt: skip
    shards = Text.assemble(
        ("shards ", "dim"), (f"{view.shard_count}", "bold"), ("  free ", "dim"), (f"{view.free}", "bold"),
        ("  moving ", "dim"), (f"{view.moving}", "bold yellow"), ("  moved so far ", "dim"), (f"{view.moves_total}", "bold"),
    )  # fmt: skip
    return scale, shards


def _cells(shards: int, of: int) -> int:
    """Length of a bar; a pod with any shard at all shows it."""
    return max(1, round(BAR * shards / of)) if shards else 0
