"""Pods of a local service: each is a user function process and a stateful proxy process, started and stopped together.

A pod ends as a whole: when one of its processes dies the other is killed, and the end is reported with proof, so that shards move
at once. Output goes to one log file per pod. Pods that end unasked soon after their start are replaced ever more slowly.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from autoscaler.fleet import Phase
from autoscaler.scaling_loop import Pod
from cloudstate_core import annotations as rules
from kn_cloudstate.manifests import LocalService
from kn_cloudstate.ports import free_port
from kn_cloudstate.preconditions import PYTHON
from kn_cloudstate.process_log import ProcessLog
from kn_cloudstate.processes import send_signal

log = logging.getLogger(__name__)

STOP_LIMIT = 15.0
"""Seconds a process may take to end after SIGTERM before it is killed."""
EARLY = 10.0
"""Seconds after its start in which a pod that ends unasked counts as one that cannot run."""
BACKOFF_FIRST, BACKOFF_LAST = 1.0, 10.0
"""Seconds until the next pod is started after the second such pod in a row, doubled with each more, and at most."""


def backoff(failures: int) -> float:
    """Seconds to wait after so many pods in a row that could not run (pure)."""
    return 0.0 if failures < 2 else min(BACKOFF_LAST, BACKOFF_FIRST * 2.0 ** min(failures - 2, 10))


@dataclass(slots=True)
class _Running:
    pod: Pod
    log: ProcessLog
    function: asyncio.subprocess.Process
    proxy: asyncio.subprocess.Process
    killed: bool = False
    """On purpose."""
    ended: asyncio.Task[None] | None = None


class LocalPods:
    """The pods of one local service; a `PodDriver` for the scaling loop.

    `environment` goes to every proxy (journal, coordinator); `on_end(pod)` is called after a pod's processes have ended.
    """

    def __init__(
        self,
        service: LocalService,
        environment: dict[str, str],
        logs: pathlib.Path,
        clock: Callable[[], float],
        on_end: Callable[[str], None],
    ) -> None:
        self._service, self._environment, self._logs, self._clock, self._on_end = service, environment, logs, clock, on_end
        self._running: dict[str, _Running] = {}
        self._count = self._failures = 0
        self._not_before = -math.inf
        self.started_total = 0

    def pods(self) -> Sequence[Pod]:
        """Pods that have been started and have not ended."""
        return [running.pod for running in self._running.values()]

    def log_of(self, name: str) -> ProcessLog:
        """The log of a pod that has not ended."""
        return self._running[name].log

    async def start(self) -> None:
        """Spawn both processes of one more pod; nothing while the last ones could not run and the next must wait."""
        if self._clock() < self._not_before:
            return
        self._count += 1
        name = f"{self._service.revision}-{self._count:04d}"
        output = ProcessLog(self._logs / f"{name}.log")
        try:
            running = await self._spawn_pod(name, output)
        except OSError as error:
            log.warning("pod %s: cannot be started: %s", name, error)
            self._failed()
            return
        self.started_total += 1
        self._running[name] = running
        running.ended = asyncio.create_task(self._watch(name, running))

    def _failed(self) -> None:
        self._failures += 1
        self._not_before = self._clock() + backoff(self._failures)

    async def _spawn_pod(self, name: str, output: ProcessLog) -> _Running:
        """OSError when a process or the log cannot be made; then none is left, nor when this is called off."""
        port = free_port()
        with output.open() as file:
            function = await self._spawn_function(port, file)
            try:
                proxy = await self._spawn_proxy(name, port, file)
            except BaseException:
                send_signal(function, signal.SIGKILL)
                raise
        return _Running(Pod(name, Phase.STARTING, self._clock()), output, function, proxy)

    async def _spawn_function(self, port: int, output: IO[bytes]) -> asyncio.subprocess.Process:
        command = self._service.command
        program = sys.executable if command[0] in PYTHON else command[0]
        environment = {**os.environ, **self._service.environment, "PORT": str(port), "HOST": "127.0.0.1"}
        return await _spawn([program, *command[1:]], environment, output, self._service.folder)

    async def _spawn_proxy(self, name: str, port: int, output: IO[bytes]) -> asyncio.subprocess.Process:
        environment = {
            **os.environ,
            **self._environment,
            "CLOUDSTATE_USER_FUNCTION": f"127.0.0.1:{port}",
            "CLOUDSTATE_HOST": "127.0.0.1",
            "CLOUDSTATE_DATA_PORT": "0",
            "CLOUDSTATE_PEER_PORT": "0",
            "CLOUDSTATE_ADMIN_PORT": "0",
            "CLOUDSTATE_SERVICE": self._service.full_name,
            "CLOUDSTATE_REVISION": self._service.revision,
            "CLOUDSTATE_POD": name,
            "CLOUDSTATE_SHARDS": str(self._service.shards),
            "CLOUDSTATE_PASSIVATION_TIMEOUT": self._service.passivation_timeout,
            **rules.proxy_environment(self._service.annotations),
            **{name: value for name, value in self._service.environment.items() if name in rules.OF_A_SINK_BINDING},
        }
        return await _spawn([sys.executable, "-m", "stateful_proxy"], environment, output, None)

    async def stop(self, name: str) -> None:
        """Ask the proxy to drain and end, and end it if it does not; the function is ended after it."""
        running = self._running.get(name)
        if running is None or running.pod.phase is Phase.STOPPING:
            return
        running.pod = Pod(name, Phase.STOPPING, running.pod.started_at)
        send_signal(running.proxy, signal.SIGTERM)
        asyncio.get_running_loop().call_later(STOP_LIMIT, send_signal, running.proxy, signal.SIGKILL)

    def kill(self, name: str) -> None:
        """SIGKILL both processes of a pod, as a crashed machine would."""
        running = self._running[name]
        running.killed = True
        for process in (running.proxy, running.function):
            send_signal(process, signal.SIGKILL)

    async def close(self) -> None:
        """Stop every pod, kill what does not end in time, and wait for all."""
        for name in list(self._running):
            await self.stop(name)
        tasks = [running.ended for running in self._running.values() if running.ended]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_LIMIT)
        for name in list(self._running):
            self.kill(name)
        if tasks:
            await asyncio.wait(tasks)

    async def _watch(self, name: str, running: _Running) -> None:
        """Wait for the pod's end; the first process to go takes the other with it."""
        waits = {asyncio.create_task(running.proxy.wait()), asyncio.create_task(running.function.wait())}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        if running.pod.phase is Phase.STOPPING or running.killed:
            self._failures = 0
        else:
            self._tell_end(name, running)
        if running.pod.phase is not Phase.STOPPING:
            send_signal(running.proxy, signal.SIGKILL)
        send_signal(running.function, signal.SIGTERM)
        _, late = await asyncio.wait(waits, timeout=STOP_LIMIT)
        if late:
            self.kill(name)
            await asyncio.wait(waits)
        del self._running[name]
        self._on_end(name)

    def _tell_end(self, name: str, running: _Running) -> None:
        """A pod has ended unasked: say which process went, how, and its last words."""
        what, process = ("user function", running.function) if running.function.returncode is not None else ("proxy", running.proxy)
        code = process.returncode or 0
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended unasked with exit code {code}"
        log.warning("pod %s: its %s %s, and the pod is taken down: %s", name, what, how, running.log.reason())
        if self._clock() - running.pod.started_at < EARLY:
            self._failed()
        else:
            self._failures = 0


async def _spawn(
    command: Sequence[str], environment: dict[str, str], output: IO[bytes], folder: pathlib.Path | None
) -> asyncio.subprocess.Process:
    """Start a process in a session of its own, so that Ctrl-C reaches only the runner, which stops all in order."""
    return await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
