"""Servers under test as child processes, pinned to one core, with their CPU and memory read from /proc."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PATIENCE = 20.0
"""Seconds until a server must listen."""


@contextlib.contextmanager
def running(
    command: Sequence[str], core: int, environment: Mapping[str, str] | None = None, output: int = subprocess.DEVNULL
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command pinned to a core until the block ends; `output` as Popen's `stdout`."""
    process = subprocess.Popen(
        ["taskset", "-c", str(core % (os.cpu_count() or 1)), *command],
        env={**os.environ, **(environment or {})},
        stdout=output,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_listening(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return once the port accepts connections; RuntimeError when the process ends or time runs out."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r}: ended with {process.returncode} before it listened on {port}")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
            return
        time.sleep(0.01)
    raise RuntimeError(f"{process.args!r}: does not listen on {port} after {PATIENCE:g} s")


def resident_mb(pid: int) -> float:
    """Resident memory of a process in MB (10⁶ bytes)."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024 / 1e6


@dataclass(frozen=True, slots=True)
class Load:
    """What the load generator sends: calls of one method, each for the next of `keys` entities, on every stream of every connection at once."""

    path: str
    seconds: float
    """Length of the measurement, after one second of warming up."""
    connections: int = 5
    streams: int = 10
    keys: int = 100
    json: bool = False
    """The same messages as HTTP/JSON instead of gRPC."""


def measure(generator: pathlib.Path, port: int, pid: int, load: Load, core: int) -> dict[str, Any]:
    """One run of the load generator with per-request headers; its figures, `server_us` = CPU µs of `pid` per request."""
    command = [
        "taskset", "-c", str(core % (os.cpu_count() or 1)), str(generator), f"127.0.0.1:{port}", load.path, str(load.connections),
        str(load.streams), "1.0", str(load.seconds), "--keys", str(load.keys), "--rich", "--pid", f"server:{pid}",
        *(["--json"] if load.json else []),
    ]  # fmt: skip
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=load.seconds + 60)
    figures: dict[str, Any] = json.loads(output.stdout)
    if figures["err"]:
        raise RuntimeError(f"{figures['err']} of {figures['n']} requests failed: {output.stderr.strip()[:300]}")
    return figures
