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
    """The live view of a service; `extra` goes below it."""
    head = Text.assemble(
        ("ready ", "dim"), (f"{view.ready}", "bold green"), ("  wanted ", "dim"), (f"{view.wanted}", "bold"),
        ("  concurrency ", "dim"), (f"{view.concurrency:5.1f}", "bold"),
        ("  panic ", "dim"), ("yes", "bold red") if view.in_panic else ("no", "green"),
        ("  shards moving ", "dim"), (f"{view.moving}", "bold yellow"), ("  free ", "dim"), (f"{view.free}", "bold"),
        ("  moved so far ", "dim"), (f"{view.moves_total}", "bold"),
    )  # fmt: skip
    table = Table(box=None, padding=(0, 2), show_header=True, header_style="dim")
    for column in ("pod", "state", "shards", "", "load"):
        table.add_column(column)
    for pod in view.pods:
        width = round(40 * pod.shards / max(1, view.shard_count))
        style = {"ready": "green", "starting": "yellow", "draining": "magenta"}.get(pod.phase, "red")
        bar = Text("█" * width, style=style) + Text("░" * round(40 * pod.receiving / max(1, view.shard_count)), style="yellow")
        table.add_row(pod.name, Text(pod.phase, style=style), str(pod.shards), bar, f"{pod.load:.2f}")
    body = Group(head, table if view.pods else Text("no pods: at zero", style="dim"), *([extra] if extra is not None else []))
    return Panel(body, title=f"[bold]{view.service}[/bold]", border_style="cyan")
