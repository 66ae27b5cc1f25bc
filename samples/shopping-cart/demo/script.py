"""The acts of the demo, its checks and its figures; `make demo` runs it.

1. At zero pods a command arrives, is held, and is answered after the cold start. 2. Load ramps up: pods come, shards move to them.
3. One pod is killed in mid-load. 4. Load stops, the service goes to zero; a last command wakes it and every cart is read back.
Exits non-zero when an acknowledged command is lost or applied twice.
"""

from __future__ import annotations

import asyncio
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc
import grpc.aio
from rich.console import Console

from cloudstate_core.hashing import shard_of
from demo.client import CartClient
from demo.ledger import Verdict, judge
from demo.load_process import LoadProcess
from demo.stage import Stage
from kn_cloudstate.local import LocalInstallation, RunningService
from kn_cloudstate.manifests import load
from kn_cloudstate.results import Row, write

FOLDER = pathlib.Path(__file__).resolve().parent.parent
PORT = int(os.environ.get("DEMO_PORT", "9000"))
RAMP = (6, 12, 24, 36)
"""Workers of the load, a step each two seconds."""
PATIENCE = 120.0
"""Seconds that any one act may take."""


@dataclass(slots=True)
class Figures:
    """What the demo measures; seconds and counts."""

    cold_start: float | None = None
    warm_start: float | None = None
    max_pods: int = 0
    shards_moved: int = 0
    recovery_after_kill: float | None = None
    time_to_zero: float | None = None


class DemoFailed(Exception):
    """An act did not come to its end in time."""


class Script:
    """Plays the acts on a running installation."""

    def __init__(self, service: RunningService, client: CartClient, stage: Stage) -> None:
        self.service, self.client, self.stage, self.figures = service, client, stage, Figures()

    async def until(self, what: str, condition: Callable[[], bool], limit: float = PATIENCE) -> float:
        """Wait for a state; seconds it took. DemoFailed names what did not come."""
        started = time.monotonic()
        while not condition():
            self.figures.max_pods = max(self.figures.max_pods, self.service.loop.state.ready)
            if time.monotonic() - started > limit:
                raise DemoFailed(f"{what}: not within {limit:g} s")
            await asyncio.sleep(0.02)
        return time.monotonic() - started

    async def wake(self) -> float:
        """One command at zero pods; seconds until it was answered."""
        started = time.monotonic()
        await self.client.get_cart("cart-000", timeout=PATIENCE)
        return time.monotonic() - started

    async def act_one(self) -> None:
        """From zero."""
        self.stage.say("1  zero pods: one command arrives and is held by the activator")
        await self.until("zero pods at the start", lambda: not self.service.pods.pods())
        self.figures.cold_start = await self.wake()
        self.stage.say(f"   answered after a cold start of {self.figures.cold_start:.2f} s")

    async def act_two(self, load_process: LoadProcess) -> None:
        """Load ramps up."""
        self.stage.say(f"2  load ramps up to {RAMP[-1]} concurrent commands: pods come, shards move")
        for workers in RAMP:
            load_process.resize(workers)
            await asyncio.sleep(2.0)
        await self.until("three pods with shards", lambda: self._owners() >= 3)
        await asyncio.sleep(2.0)
        self.stage.say(f"   {self.service.loop.state.ready} pods, {self.service.placement.moves_total} shards moved")

    async def act_three(self) -> None:
        """A pod is killed."""
        victim = max(self.service.pods.pods(), key=lambda pod: self._shards(pod.name))
        shards = {s for s, e in enumerate(self.service.placement.map.entries) if e.owner == self._member(victim.name)}
        self.stage.say(f"3  SIGKILL of {victim.name}, owner of {len(shards)} shards, in mid-load")
        started = time.monotonic()
        self.service.pods.kill(victim.name)
        await self._answer_again(shards)
        self.figures.recovery_after_kill = time.monotonic() - started
        self.stage.say(f"   all of them answered again after {self.figures.recovery_after_kill:.2f} s; commands go on")
        await asyncio.sleep(2.0)

    async def act_four(self, load_process: LoadProcess) -> Verdict:
        """To zero and back; every cart is read from the service."""
        self.stage.say("4  load stops: the service goes to zero")
        ledger = await load_process.finish()
        self.figures.max_pods = max(self.figures.max_pods, self.service.loop.state.ready)
        self.figures.time_to_zero = await self.until("zero pods", lambda: not self.service.pods.pods())
        self.figures.shards_moved = self.service.placement.moves_total
        self.stage.say(f"   no pods {self.figures.time_to_zero:.1f} s after the last command; a last command wakes it")
        self.figures.warm_start = await self.wake()
        carts: dict[str, dict[str, int]] = {}
        for start in range(0, len(ledger.carts), 20):
            names = ledger.carts[start : start + 20]
            found = await asyncio.gather(*(self.client.get_cart(name, timeout=PATIENCE) for name in names))
            carts.update(zip(names, found, strict=True))
        verdict = judge(ledger, carts)
        self.stage.say(f"   {len(carts)} carts read back: {verdict.acknowledged} acknowledged, {verdict.lost} lost, {verdict.duplicated} twice")
        return verdict

    async def _answer_again(self, shards: set[int]) -> None:
        """Ask one entity of each shard until it answers."""
        names: dict[int, str] = {}
        number = 0
        while len(names) < len(shards):
            shard = shard_of("shopping-cart", name := f"probe-{number}", self.service.spec.shards)
            if shard in shards:
                names.setdefault(shard, name)
            number += 1

        async def ask(name: str) -> None:
            deadline = time.monotonic() + PATIENCE
            while time.monotonic() < deadline:
                try:
                    await self.client.get_cart(name, timeout=10)
                except grpc.aio.AioRpcError:
                    await asyncio.sleep(0.05)
                else:
                    return
            raise DemoFailed(f"shard of {name}: does not answer within {PATIENCE:g} s")

        await asyncio.gather(*(ask(name) for name in names.values()))

    def _member(self, pod: str) -> str:
        return next((name for name, member in self.service.placement.members.items() if member.pod == pod), "")

    def _shards(self, pod: str) -> int:
        member = self._member(pod)
        return sum(bool(member) and entry.owner == member for entry in self.service.placement.map.entries)

    def _owners(self) -> int:
        return sum(self._shards(pod.name) > 0 for pod in self.service.pods.pods())


def rows(figures: Figures, sent: dict[str, float], verdict: Verdict) -> list[Row]:
    """The demo's figures in the common form."""
    return [
        Row("sent", sent["sent"], "commands"),
        Row("acknowledged", verdict.acknowledged, "commands", bar=1, sense="at least"),
        Row("lost", verdict.lost, "commands", bar=0),
        Row("duplicated", verdict.duplicated, "commands", bar=0),
        Row("cold_start", figures.cold_start, "s"),
        Row("max_pods", figures.max_pods, "pods", bar=2, sense="at least"),
        Row("shards_moved", figures.shards_moved, "shards", bar=1, sense="at least"),
        Row("recovery_after_kill", figures.recovery_after_kill, "s", bar=5),
        Row("time_to_zero", figures.time_to_zero, "s"),
        Row("cold_start_with_data", figures.warm_start, "s"),
    ]


async def play(stage_of: Callable[[RunningService], Stage]) -> int:
    """Start the service, play all acts, stop it; the exit code."""
    data = pathlib.Path(tempfile.mkdtemp(prefix="cloudstate-demo-"))
    installation = LocalInstallation(load([FOLDER / "service.yaml", FOLDER / "policy.yaml"]), data, PORT, tick=0.5)
    try:
        await installation.start()
        service = next(iter(installation.services.values()))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{PORT}") as channel, stage_of(service) as stage:
            return await _acts(Script(service, CartClient(channel), stage), stage, data)
    finally:
        await installation.stop()


async def _acts(script: Script, stage: Stage, data: pathlib.Path) -> int:
    load_process = await LoadProcess.start(f"127.0.0.1:{PORT}", stage.figures)
    try:
        await script.act_one()
        await script.act_two(load_process)
        await script.act_three()
        verdict = await script.act_four(load_process)
    except DemoFailed as error:
        stage.say(f"FAILED  {error}; logs in {data}")
        return 1
    finally:
        await load_process.close()
    found = rows(script.figures, load_process.latest, verdict)
    path = write("demo", found)
    stage.table(found, path)
    if not verdict.clean:
        stage.say(f"FAILED  {verdict}; logs in {data}")
    return 0 if verdict.clean else 1


def main() -> int:
    """Entry point."""
    plain = os.environ.get("DEMO") == "plain" or not sys.stdout.isatty()
    console = Console()
    return asyncio.run(play(lambda service: Stage(service, console, plain)))


if __name__ == "__main__":
    sys.exit(main())
