"""What tests of several components share: a real Redis server, started on a free port and ended by its pid."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

LIMIT = 30.0


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Tests against a real API server are for `make envtest`, which starts one."""
    return True if collection_path.name == "envtest" and "CLOUDSTATE_ENVTEST" not in os.environ else None


class RedisServer:
    """One server; its data lives in `folder` and survives `kill` when `durable`."""

    def __init__(self, folder: pathlib.Path, *options: str, durable: bool = True) -> None:
        program = shutil.which("redis-server")
        assert program, "redis-server is not installed: these tests need the real one (Debian: apt-get install redis-server)"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        keep = ["--appendonly", "yes", "--appendfsync", "always"] if durable else ["--appendonly", "no"]
        self._command = [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", "", *keep, *options]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until it answers."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            try:
                with socket.create_connection(("127.0.0.1", self.port), 1.0) as connection:
                    connection.sendall(b"PING\r\n")
                    return
            except OSError:
                assert self._process.poll() is None, "redis-server ended"
                time.sleep(0.02)
        raise AssertionError("redis-server does not answer")

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture
def redis_of(tmp_path: pathlib.Path) -> Iterator[Callable[..., RedisServer]]:
    """Makes servers that end with the test; `redis_of(*options, durable=True)`."""
    made: list[RedisServer] = []

    def make(*options: str, durable: bool = True) -> RedisServer:
        folder = tmp_path / f"redis-{len(made)}"
        folder.mkdir()
        made.append(RedisServer(folder, *options, durable=durable))
        made[-1].start()
        return made[-1]

    yield make
    for server in made:
        server.kill()
