"""A whole installation on one machine: journal, leader, activator, and pods that the autoscaler starts and stops.

The same decision code, activator and proxy as on a cluster; only the driver that starts and stops pods differs. Everything that is
started here is stopped here, in order: front door, pods, leader, journal. Nothing starts these again but whoever runs the installation: `failure`
tells when one has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO

from autoscaler.coordination import CoordinationServer
from autoscaler.fleet import Phase
from autoscaler.placement.by_pod import ShardsByPod
from autoscaler.placement.service import ServicePlacement
from autoscaler.revision_scaler import RevisionScaler
from autoscaler.scaling_loop import ScalingLoop
from autoscaler.settings import effective, placement_settings
from cloudstate_core.pb.cloudstate_knative.v1 import coordination_pb2 as pb
from kn_cloudstate.manifests import LocalService
from kn_cloudstate.pods import LocalPods
from kn_cloudstate.ports import free_port
from kn_cloudstate.preconditions import StartError, require_folder, require_free, require_program
from kn_cloudstate.process_log import ProcessLog
from kn_cloudstate.processes import end

log = logging.getLogger(__name__)

START_LIMIT = 60.0
"""Seconds until the journal and the activator must answer; one that has ended is told of at once."""
LATE = 5.0
"""Seconds after which a pod that is not ready is told of."""


@dataclass(slots=True)
class RunningService:
    """One service of a running installation."""

    spec: LocalService
    placement: ServicePlacement
    pods: LocalPods
    loop: ScalingLoop
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Processes:
    journal: asyncio.subprocess.Process | None = None
    activator: asyncio.subprocess.Process | None = None
    outputs: dict[str, ProcessLog] = field(default_factory=dict)
    open_files: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)


class LocalInstallation:
    """Runs services on this machine. `data` keeps the journal and logs; `port` is the front door's."""

    def __init__(self, services: Sequence[LocalService], data: pathlib.Path, port: int = 9000, tick: float = 2.0) -> None:
        self.services: dict[str, RunningService] = {}
        self.admin_port = 0
        self._specs, self._data, self.port, self._tick = services, data, port, tick
        self._coordination = CoordinationServer(time.monotonic)
        self._processes = _Processes()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Start everything; pods only as the autoscaler wants them. StartError when a part cannot start."""
        require_free(self.port)
        for spec in self._specs:
            require_program(spec)
        require_folder(self._data)
        journal = await self._start_journal()
        leader_port = await self._coordination.start("127.0.0.1", 0)
        environment = {"CLOUDSTATE_JOURNAL": f"remote:{journal}", "CLOUDSTATE_COORDINATOR": f"127.0.0.1:{leader_port}"}
        for spec in self._specs:
            self._add(spec, environment)
        self._coordination.on_stats = self._on_stats
        self._coordination.on_heard = self._on_heard
        self._tasks += [asyncio.create_task(self._coordination.run()), asyncio.create_task(self._tell_late_pods())]
        await self._start_activator(environment)
        for service in self.services.values():
            service.task = asyncio.create_task(service.loop.run())

    def _add(self, spec: LocalService, environment: dict[str, str]) -> None:
        settings = effective(spec.annotations, spec.policy, spec.config, spec.container_concurrency)
        placement = self._coordination.add_service(
            spec.full_name,
            shard_count=spec.shards,
            hosts=(f"{spec.name}.{spec.namespace}.localhost", f"{spec.name}.{spec.namespace}.example.com"),
            default_revision=spec.revision,
            container_concurrency=spec.container_concurrency,
            timeout_seconds=spec.timeout_seconds,
            settings=placement_settings(spec.policy),
        )

        def on_end(pod: str) -> None:
            self._coordination.process_exited(spec.full_name, pod)
            self.services[spec.full_name].loop.wake()

        pods = LocalPods(spec, environment, self._data, time.monotonic, on_end)
        loop = ScalingLoop(RevisionScaler(settings), pods, ShardsByPod(placement), time.monotonic, self._tick)
        loop.reachable = spec.reachable
        self.services[spec.full_name] = RunningService(spec, placement, pods, loop)

    def _on_stats(self, activator: str, stats: pb.RevisionStats) -> None:
        if (service := self.services.get(stats.service)) is not None:
            service.loop.on_stats(activator, stats.concurrency, stats.requests)

    def _on_heard(self, activator: str) -> None:
        for service in self.services.values():
            service.loop.heard(activator)

    async def _start_journal(self) -> str:
        """Start the journal process; its address."""
        path, output = self._data / "journal.db", self._output("journal")
        keyspaces = [f"{spec.full_name}={spec.shards}" for spec in self._specs]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "kn_cloudstate.journal_host", str(path), *keyspaces,
            stdout=asyncio.subprocess.PIPE, stderr=self._open(output), start_new_session=True,
        )  # fmt: skip
        self._processes.journal = process
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_LIMIT):
                line = (await process.stdout.readline()).decode().strip()
        except TimeoutError:
            line = ""
        said, _, rest = line.partition(" ")
        if said != "listening":
            raise StartError(rest or f"journal {path}: did not start: {output.reason()}")
        return rest

    async def _start_activator(self, environment: dict[str, str]) -> None:
        """Start the front door and wait until it is ready."""
        self.admin_port = free_port()
        output = self._output("activator")
        own = {"ACTIVATOR_HOST": "127.0.0.1", "ACTIVATOR_PORT": str(self.port), "ACTIVATOR_ADMIN_PORT": str(self.admin_port)}
        written = self._open(output)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "activator",
            env={**os.environ, **environment, **own}, stdout=written, stderr=written, start_new_session=True,
        )  # fmt: skip
        self._processes.activator = process
        deadline = time.monotonic() + START_LIMIT
        while not await _ready(self.admin_port):
            if process.returncode is not None or time.monotonic() > deadline:
                raise StartError(f"activator on 127.0.0.1:{self.port}: did not start: {output.reason()}")
            await asyncio.sleep(0.02)

    def _output(self, name: str) -> ProcessLog:
        output = self._processes.outputs[name] = ProcessLog(self._data / f"{name}.log")
        return output

    def _open(self, output: ProcessLog) -> IO[bytes]:
        return self._processes.open_files.enter_context(output.open())

    async def _tell_late_pods(self) -> None:
        """A pod that takes long to become ready is told of once, with what it said last: its function may never answer."""
        told: set[str] = set()
        while True:
            await asyncio.sleep(1.0)
            for service in self.services.values():
                late = [p for p in service.pods.pods() if time.monotonic() - p.started_at >= LATE and not service.loop.is_ready(p)]
                for pod in late:
                    if pod.phase is Phase.STARTING and pod.name not in told and pod.name not in service.loop.state.draining:
                        told.add(pod.name)
                        log.warning("pod %s: is not ready after %.0f s: %s", pod.name, LATE, service.pods.log_of(pod.name).reason())

    async def failure(self) -> str:
        """Wait until the journal or the front door, without which nothing is served, has ended unasked; which, and what it said last."""
        processes = {"journal": self._processes.journal, "activator": self._processes.activator}
        ends = {asyncio.create_task(process.wait()): name for name, process in processes.items() if process is not None}
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in ends:
                task.cancel()
        first = done.pop()
        name = ends[first]
        return f"{name}: ended unasked with exit code {first.result()}: {self._processes.outputs[name].reason()}"

    async def stop(self) -> None:
        """Stop everything in order; safe to call after a failed start."""
        for service in self.services.values():
            if service.task is not None:
                service.task.cancel()
        await end(self._processes.activator)
        await asyncio.gather(*(service.pods.close() for service in self.services.values()))
        for task in self._tasks:
            task.cancel()
        await self._coordination.stop()
        await end(self._processes.journal)
        self._processes.open_files.close()


async def _ready(admin_port: int) -> bool:
    """True when the process behind an admin port says that it is ready."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", admin_port)
        writer.write(b"GET /ready HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(2.0):
            status = await reader.readline()
    except (OSError, TimeoutError):
        return False
    writer.close()
    return status.split()[1:2] == [b"200"]


def data_folder(chosen: pathlib.Path | None) -> pathlib.Path:
    """Where journal and logs go: the chosen folder, else a new temporary one."""
    return chosen if chosen is not None else pathlib.Path(tempfile.mkdtemp(prefix="cloudstate-"))
