"""Simulated time: event loops that share a clock which moves only when all of them wait, and that can be frozen like a stopped process."""

from __future__ import annotations

import asyncio
import math
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Idle(selectors.SelectSelector):
    """Never blocks: a loop that would is stopped, and says when it wants to go on."""

    loop: Machine

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout != 0:
            self.loop.wakes = math.inf if timeout is None else self.loop.world.now + timeout
            self.loop.stop()
        return ready


class Machine(asyncio.SelectorEventLoop):
    """One process's event loop. `frozen_until` > now: none of it runs; what came due meanwhile happens at once afterwards."""

    def __init__(self, world: World) -> None:
        selector = _Idle()
        selector.loop = self
        self.world, self.wakes, self.frozen_until = world, 0.0, 0.0
        super().__init__(selector)

    def time(self) -> float:
        return self.world.now


class World:
    """Machines and their clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.machines: list[Machine] = []
        self._dead: list[Machine] = []

    def machine(self) -> Machine:
        self.machines.append(Machine(self))
        return self.machines[-1]

    def step(self) -> bool:
        """Let all run until they wait, then move the clock to what comes next; False when nothing ever will."""
        for machine in self.machines:
            if machine.frozen_until <= self.now:
                machine.run_forever()
        self.now = min(max(machine.wakes, machine.frozen_until) for machine in self.machines)
        return self.now < math.inf

    def run(self, until: float) -> None:
        """Live until a time."""
        while self.now < until and self.step():
            pass

    def kill(self, machine: Machine) -> None:
        """End a machine where it stands: nothing of it runs any more."""
        self.machines.remove(machine)
        self._dead.append(machine)

    def close(self) -> None:
        """Cancel everything and live on until all has ended."""
        for machine in self.machines + self._dead:
            self.machines, machine.frozen_until = [machine], 0.0
            while tasks := asyncio.all_tasks(machine):
                for task in tasks:
                    task.cancel()
                    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen, as far as asyncio is concerned
                machine.run_forever()
                self.now = min(machine.wakes, self.now + 1.0)
            machine.close()


def simulate(work: Coroutine[Any, Any, T], limit: float = 3600.0) -> T:
    """Run a coroutine in simulated time; fails when it has not ended after `limit` simulated seconds or would wait for ever."""
    world = World()
    try:
        task = world.machine().create_task(work)
        while not task.done():
            assert world.now < limit, f"not ended after {world.now} simulated seconds"
            assert world.step() or task.done(), "it waits for something that never happens"
        return task.result()
    finally:
        world.close()
