"""Pods of a local service: each is a user function process and a stateful proxy process, started and stopped together.

A pod ends as a whole: when one of its processes dies the other is killed, and the end is reported with proof, so that shards move
at once. Output goes to one log file per pod.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

from autoscaler.fleet import Phase
from autoscaler.scaling_loop import Pod
from kn_cloudstate.manifests import LocalService

log = logging.getLogger(__name__)

STOP_LIMIT = 15.0
"""Seconds a process may take to end after SIGTERM before it is killed."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(slots=True)
class _Running:
    pod: Pod
    function: asyncio.subprocess.Process
    proxy: asyncio.subprocess.Process
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
        self._count = 0
        self.started_total = 0

    def pods(self) -> Sequence[Pod]:
        """Pods that have been started and have not ended."""
        return [running.pod for running in self._running.values()]

    async def start(self) -> None:
        """Spawn both processes of one more pod."""
        self._count += 1
        self.started_total += 1
        name = f"{self._service.revision}-{self._count:04d}"
        port = free_port()
        with (self._logs / f"{name}.log").open("ab") as output:
            function = await self._spawn_function(port, output)
            proxy = await self._spawn_proxy(name, port, output)
        running = _Running(Pod(name, Phase.STARTING, self._clock()), function, proxy)
        self._running[name] = running
        running.ended = asyncio.create_task(self._watch(name, running))

    async def _spawn_function(self, port: int, output: IO[bytes]) -> asyncio.subprocess.Process:
        command = self._service.command
        program = sys.executable if command[0] in {"python", "python3"} else command[0]
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
        }
        return await _spawn([sys.executable, "-m", "stateful_proxy"], environment, output, None)

    async def stop(self, name: str) -> None:
        """Ask the proxy to drain and end; the function is ended after it."""
        running = self._running.get(name)
        if running is None or running.pod.phase is Phase.STOPPING:
            return
        running.pod = Pod(name, Phase.STOPPING, running.pod.started_at)
        _signal(running.proxy, signal.SIGTERM)

    def kill(self, name: str) -> None:
        """SIGKILL both processes of a pod, as a crashed machine would."""
        running = self._running[name]
        for process in (running.proxy, running.function):
            _signal(process, signal.SIGKILL)

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
        asked = running.pod.phase is Phase.STOPPING
        if not asked:
            log.warning("pod %s: a process ended unasked; the pod is taken down", name)
            _signal(running.proxy, signal.SIGKILL)
        _signal(running.function, signal.SIGTERM)
        _, late = await asyncio.wait(waits, timeout=STOP_LIMIT)
        if late:
            self.kill(name)
            await asyncio.wait(waits)
        del self._running[name]
        self._on_end(name)


async def _spawn(
    command: Sequence[str], environment: dict[str, str], output: IO[bytes], folder: pathlib.Path | None
) -> asyncio.subprocess.Process:
    """Start a process in a session of its own, so that Ctrl-C reaches only the runner, which stops all in order."""
    return await asyncio.create_subprocess_exec(
        *command, env=environment, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process.returncode is None:
            process.send_signal(number)
