"""Elections among processes that are frozen, cut off, killed and started again, with lossy lines and clocks that differ: never two leaders."""

from __future__ import annotations

import asyncio
import random

import pytest

from cloudstate_core.kube.api import KubeError
from cloudstate_core.kube.leader import DURATION, STOP_WITHIN, Election, StillWorking

from .lease_store import LeaseStore, Line
from .world import World

DRIFT = 0.02
"""How far the rates of clocks differ."""


class Process:
    """A replica: its own machine, clock and line. Its work acts twice a second and goes on acting for a while when it is cancelled."""

    def __init__(self, life: Life, identity: str) -> None:
        chance = life.chance
        self.life, self.identity = life, identity
        self.machine = life.world.machine()
        self.line = Line(delay=chance.choice([0.0, 0.01, 0.5, 2.5]), lost=chance.choice([0.0, 0.1]), chance=chance)
        self.working = False
        self.acted = -1.0
        offset, rate = chance.uniform(-1e6, 1e6), 1 + chance.uniform(-DRIFT, DRIFT)
        election = Election(life.store.client(self.line), "n", "lead", identity, lambda: offset + rate * life.world.now)
        self.task = self.machine.create_task(election.run(self.work))

    @property
    def excused(self) -> bool:
        """A process that was frozen knows nothing of the time since: it has as long to stop as any other."""
        return self.life.world.now <= self.machine.frozen_until + STOP_WITHIN * (1 + DRIFT) and self.machine.frozen_until > 0

    async def work(self) -> None:
        self.working = True
        chance = self.life.chance
        try:
            while True:
                self.act()
                await asyncio.sleep(0.5)
        finally:
            for _ in range(chance.choice([0, 1, 7, 7])):
                self.act()
                await asyncio.sleep(0.5)
            self.working = False

    def act(self) -> None:
        self.acted = self.life.world.now
        others = [p.identity for p in self.life.processes if p is not self and p.working and not p.excused]
        if others and not self.excused:
            self.life.violations.append(f"{self.identity} acts at {self.life.world.now:.2f} beside {others}")


class Life:
    """Three replicas through random trouble."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.world, self.store = World(), LeaseStore()
        self.violations: list[str] = []
        self.processes: list[Process] = []
        self.processes += [Process(self, f"p{n}") for n in range(3)]
        self.leaders: set[str] = set()

    def trouble(self) -> None:
        """One thing goes wrong, or right again."""
        victim, now = self.chance.choice(self.processes), self.world.now
        leaders = [process for process in self.processes if process.working]
        if leaders and self.chance.random() < 0.6:
            victim = leaders[0]
        what = self.chance.choice(["freeze", "freeze", "cut", "cut", "heal", "heal", "kill", "end"])
        if what == "freeze":
            victim.machine.frozen_until = now + self.chance.choice([0.5, 3.0, 9.0, 12.0, 16.0, 40.0])
        elif what == "cut":
            victim.line.down = True
        elif what == "heal":
            for process in self.processes:
                process.line.down = False
        elif what == "kill":
            self.restart(victim)
        else:
            victim.task.cancel()  # told to end in order; started again once it has

    def restart(self, process: Process) -> None:
        """The process ends at once; its container starts again under the same name."""
        process.working = False
        self.world.kill(process.machine)
        self.processes[self.processes.index(process)] = Process(self, process.identity)

    def supervise(self) -> None:
        for process in list(self.processes):
            if process.task.done():
                if not process.task.cancelled():
                    assert isinstance(process.task.exception(), StillWorking)
                self.restart(process)
        self.leaders |= {process.identity for process in self.processes if process.working}

    def run(self, seconds: float) -> None:
        until = self.world.now + seconds
        while self.world.now < until:
            self.world.step()
            self.supervise()

    def close(self) -> None:
        for process in self.processes:
            process.line.error = KubeError(0, "Connection", "over")
        self.world.close()


@pytest.mark.parametrize("seed", range(40))
def test_there_are_never_two_leaders_and_in_quiet_there_is_one(seed: int) -> None:
    life = Life(seed)
    try:
        for _ in range(40):
            life.run(life.chance.choice([0.3, 2.0, 7.0, 20.0]))
            life.trouble()
            assert not life.violations
        for process in life.processes:
            process.line.down, process.line.lost, process.line.delay = False, 0.0, 0.1
        life.run(40 + 3 * DURATION)
        assert not life.violations
        working = [process for process in life.processes if process.working]
        assert len(working) == 1
        assert life.world.now - working[0].acted <= 1
        assert life.store.holder == working[0].identity
        assert len(life.leaders) > 1, "no trouble worth the name"
    finally:
        life.close()
