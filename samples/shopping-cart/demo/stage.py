"""Where the demo is seen: a live view on a terminal, or plain lines for logs (`DEMO=plain`, or no terminal)."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import time
from collections.abc import Sequence
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kn_cloudstate.dashboard import line, render, snapshot
from kn_cloudstate.local import RunningService
from kn_cloudstate.results import Row


class Stage:
    """Shows one service until closed. `figures` is filled by the load generator."""

    def __init__(self, service: RunningService, console: Console, plain: bool) -> None:
        self.figures: dict[str, float] = {}
        self._service, self._console, self._plain = service, console, plain
        self._said: list[str] = []
        self._started = time.monotonic()
        self._live = None if plain else Live(console=console, refresh_per_second=8, get_renderable=self._render)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Stage:
        if self._live is not None:
            self._live.start()
        else:
            self._task = asyncio.create_task(self._lines())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def say(self, text: str) -> None:
        """A line of the story."""
        stamped = f"{time.monotonic() - self._started:5.1f} s  {text}"
        self._said.append(stamped)
        if self._plain:
            self._print(stamped)

    def table(self, rows: Sequence[Row], path: pathlib.Path) -> None:
        """The figures at the end."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        table = Table(title="shopping cart, from zero and back")
        for column in ("figure", "value", "unit", "bar", "met"):
            table.add_column(column)
        for row in rows:
            value = "" if row.value is None else f"{row.value:.2f}" if isinstance(row.value, float) else str(row.value)
            bar = "" if row.bar is None else f"{row.sense} {row.bar:g}"
            table.add_row(row.name, value, row.unit, bar, {None: "", True: "yes", False: "NO"}[row.met])
        self._console.print(table)
        self._console.print(f"written to {path}")

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _render(self) -> Group:
        story = Text("\n".join(self._said[-12:]))
        return Group(render(snapshot(self._service), Text(self._latency(), style="bold")), story)

    def _latency(self) -> str:
        figures = self.figures
        if not figures:
            return "no load"
        return (
            f"commands {figures['acknowledged']:.0f} answered, {figures['retried']:.0f} tried again, {figures['failed']:.0f} failed; "
            f"p50 {figures['p50_ms']:.1f} ms, p99 {figures['p99_ms']:.1f} ms"
        )

    async def _lines(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            self._print(f"        {line(snapshot(self._service))}  {self._latency()}")
