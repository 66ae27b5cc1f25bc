"""What tests of several packages share: properties that may take their time, and real Redis servers."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, settings

from kn_cloudstate.ports import free_port

PATIENCE = 60.0
# how long an example takes says nothing of a property on a machine that has other work; the rest stays as it is, in CI and elsewhere
settings.register_profile("unhurried", settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Tests against a real API server are for `make envtest`, which starts one; those on published SDKs for `make test-sdks`."""
    asked = {"envtest": "CLOUDSTATE_ENVTEST", "sdks": "CLOUDSTATE_SDKS"}.get(collection_path.name)
    return True if asked is not None and asked not in os.environ else None


class RedisServer:
    """A redis-server process on a port and in a folder of its own; it keeps both over a restart.

    `options` go on its command line; TLS_PORT in them stands for a second port.
    """

    def __init__(self, folder: pathlib.Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.port, self.tls_port = free_port(), free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RedisServer:
        """Start it and wait until it serves."""
        self.start_only()
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while self.cli("PING").strip() not in ("PONG", "NOAUTH Authentication required."):
            assert self.process.poll() is None, f"redis-server ended: {(self.folder / 'redis.log').read_text()[-2000:]}"
            assert time.monotonic() < deadline, "redis-server does not answer"
            time.sleep(0.01)
        return self

    def start_only(self) -> None:
        """Start it, to serve some time later."""
        options = [option.replace("TLS_PORT", str(self.tls_port)) for option in self.options]
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", "", *options]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def cli(self, *arguments: str) -> str:
        """What redis-cli prints."""
        return subprocess.run(["redis-cli", "-p", str(self.port), *arguments], capture_output=True, text=True, check=False, timeout=PATIENCE).stdout

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        """Kill it, as a power cut would; nothing if it does not run."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def redis_servers() -> Iterator[Callable[..., RedisServer]]:
    """Make started servers with options of their own; they end with the session. Without redis-server: skipped here, failed in CI."""
    if shutil.which("redis-server") is None:
        if os.environ.get("CI"):
            pytest.fail("redis-server is not installed: it must be where CI runs")
        pytest.skip("redis-server is not installed here; with CI set this is a failure")
    with contextlib.ExitStack() as stack:
        # A pause of a shared machine must not be taken for a server that is lost; tests of lost servers set limits of their own.
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for limit in ("CONNECT_LIMIT", "ANSWER_LIMIT"):
            patch.setattr(f"cloudstate_core.journal.redis_link.{limit}", PATIENCE)

        def start(*options: str) -> RedisServer:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="redis-"))
            server = RedisServer(pathlib.Path(folder), *options)
            stack.callback(server.stop)
            return server.start()

        yield start


@pytest.fixture(scope="session")
def shared_redis(redis_servers: Callable[..., RedisServer]) -> RedisServer:
    """The server that tests share which do it no harm: each takes keyspaces of its own."""
    return redis_servers()
